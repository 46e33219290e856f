// SPDX-License-Identifier: Apache-2.0
//
// The choice of `mass`. The far rows of a unit are dealt to up to 16 blocks, on a plain grid that leaves no SM idle and runs
// as a whole. A block asks for its sketch pages, takes the queries that the kernel before has projected, estimates the
// logits of its rows and tells the others its sums; with every head's total it sums the shares of its rows in bins, and all
// blocks' bins are added up in device memory; then each block finds where the choice ends and writes its piece of the list.
// So blocks meet twice. Shares are summed as whole numbers, and so the order does not show. What runs once is kept short:
// fetching instructions is what a step's first microseconds go to.
#include "cuda/sketch_score.cuh"

namespace sr {

// ---- totals ----

// A pair of floats is written and read at once, so that who sees one sees the other.
static __device__ __forceinline__ void tell(unsigned long long *to, float2 x)
{
    const unsigned long long pair = (unsigned long long)__float_as_uint(x.y) << 32 | __float_as_uint(x.x);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" :: "l"(to), "l"(pair) : "memory");
}

static __device__ __forceinline__ float2 hear(const unsigned long long *from)
{
    unsigned long long pair;
    do asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(pair) : "l"(from) : "memory");
    while (pair == NOT_YET);
    return make_float2(__uint_as_float((uint32_t)pair), __uint_as_float((uint32_t)(pair >> 32)));
}

static __device__ __forceinline__ float plain_eps_of(const choose_params &p, const part &x) { return p.a.plain_eps ? p.a.plain_eps[x.u / p.n_kv_heads] : x.eps; }

// The log share from which on a row is read in any case; see sketch_choose_args.
static __device__ __forceinline__ float sure_of(float eps) { return __log2f(eps * (1.0f / SR_SKETCH_SURE)); }

// The unit's totals from the warps' sums of all parts; one warp a head. s.all: some total is no number; s.none: none of the
// bins is needed. Ends with a barrier.
template <int NT> static __device__ __forceinline__ void sum_totals(const choose_params &p, const part &x, choose_exchange *ex, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, h = threadIdx.x / WARP, n = gridDim.x;
    if (h < p.group) {
        float2 ml = lane < CHOOSE_WARPS ? s.far[lane][h] : make_float2(-CUDART_INF_F, 0);
        ml = join_lanes(ml, 1, CHOOSE_WARPS);
        if (n > 1) {
            if (lane == 0) tell(&ex->totals[x.index][h], ml);
            ml = lane < n ? hear(&ex->totals[lane][h]) : make_float2(-CUDART_INF_F, 0);
            __syncwarp();
        }
        const float2 near = s.near[h];
        const float top_far = max_of_lanes(ml.x), top = fmaxf(near.x, top_far);
        const float far = n > 1 ? sum_of_lanes(ml.y * exp2_of(ml.x - top)) : __shfl_sync(~0u, ml.y * exp2_of(ml.x - top), 0);
        const float all = near.y * exp2_of(near.x - top) + far, total = top + __log2f(all), share = __fdividef(far, all);
        if (lane == 0) {
            ((float *)s.total)[h] = total;
            s.far_share[h] = share;
            if (p.a.total && x.index == 0) p.a.total[x.u * p.group + h] = total * LN2;
            if (p.a.look && x.index == 0) {
                choose_rest &rest = *rest_of_unit(p, x.u);
                rest.log_total[h] = total, rest.near[h] = near.y * exp2_of(near.x - total), rest.far[h] = share;
            }
            if (!isfinite(total)) s.all = 1;
            if (!(share <= fminf(x.eps, plain_eps_of(p, x))) || (x.eps < 1 && top_far - total >= sure_of(x.eps))) s.none = 0;
        }
    }
    __syncthreads();
}

// ---- the two passes ----

static __device__ __forceinline__ bool drawn(int32_t u, int32_t row, float share)
{
    uint32_t h = (uint32_t)row * 2654435761u ^ (uint32_t)u * 40503u;
    h = (h ^ h >> 15) * 2246822519u;
    h = (h ^ h >> 13) * 3266489917u;
    return (float)(h >> 8) * (1.0f / 16777216.0f) < share;
}

// The least share that a row may have to be chosen, as a logarithm.
static __device__ __forceinline__ float cut_of(float eps, int32_t n_far)
{
    return fminf(__log2f(__fdividef(eps, (float)max(n_far, 1))), -1e-3f * LOG2E);
}

// First pass: sums of a lane's rows, by its heads, less a base that follows their maximum `peak` from some way below.
constexpr float BASE_SLACK = 32.0f;

template <int NT> struct lane_sums {
    float base[NT], l[NT], peak[NT];

    __device__ __forceinline__ void add(const float (*y)[NT])
    {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float top[4];
#pragma unroll
            for (int i = 0; i < 4; i++) top[i] = fmaxf(y[2 * i][n], y[2 * i + 1][n]);
            top[0] = fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
            peak[n] = fmaxf(peak[n], top[0]);
            if (__builtin_expect(top[0] > base[n] + BASE_SLACK, 0)) { // at first base is -inf
                l[n] *= exp2_of(base[n] - top[0]);
                base[n] = top[0];
            }
            const float less = base[n] == -CUDART_INF_F ? 0.0f : base[n];
            float sum[4] = {l[n], 0, 0, 0};
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i % 4] += exp2_of(y[i][n] - less);
            l[n] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
    }
};

template <int NT> static __device__ __forceinline__ void write_logits(const choose_params &p, const part &x, int page, const float (*y)[NT])
{
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float *to = p.a.logits + ((int64_t)x.u * p.group + 4 * n + lane % 4) * p.a.list_stride + page * SR_PAGE_ROWS + lane / 4;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (y[i][n] > -CUDART_INF_F) to[8 * i] = y[i][n] * LN2; // absent heads have -inf
    }
}

// Second pass: the bin of each row that may be chosen, and the part's shares by bin.
struct bin_rule { float cut, per_octave, keep; };

struct bin_places { uint32_t total, rows, sums, chosen; }; // of choose_space, in shared memory; `chosen` of the warp

// Of one page, from its logits. A lane bins two rows; then four lanes a row, those that are binned, add the heads' shares.
template <int NT>
static __device__ __forceinline__ void add_to_bins(const bin_rule &rule, const part &x, int page, uint32_t slot, const bin_places &at, uint16_t *bin_of)
{
    const int lane = threadIdx.x % WARP;
    float top[2];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const float4 total = load_shared4(at.total + 16 * n);
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float4 z = load_shared4(slot + (n * SR_PAGE_ROWS + lane + k * WARP) * 16);
            const float most = fmaxf(fmaxf(z.x - total.x, z.y - total.y), fmaxf(z.z - total.z, z.w - total.w));
            top[k] = n ? fmaxf(top[k], most) : most;
        }
    }
    bool is_in[2];
#pragma unroll
    for (int k = 0; k < 2; k++) is_in[k] = top[k] >= rule.cut;
    if (rule.keep >= 0)
#pragma unroll
        for (int k = 0; k < 2; k++) is_in[k] = top[k] > -CUDART_INF_F && drawn(x.u, page * SR_PAGE_ROWS + lane + k * WARP, rule.keep);
    const unsigned some[2] = {__ballot_sync(~0u, is_in[0]), __ballot_sync(~0u, is_in[1])};
    if ((some[0] | some[1]) == 0) return;
    const int n_first = __popc(some[0]), n_some = n_first + __popc(some[1]);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (!is_in[k]) continue;
        const int row = lane + k * WARP;
        int bin = (int)fminf(fmaxf(-top[k] * rule.per_octave, 0.0f), CHOOSE_BINS - 1.0f);
        if (rule.keep >= 0) bin = row * 8 + page % 8; // whatever they are, not all in one
        bin_of[(page - x.page0) * SR_PAGE_ROWS + row] = (uint16_t)(bin + 1);
        add_shared(at.rows + 4 * bin, 1);
        const int place = (k ? n_first : 0) + __popc(some[k] & ((1u << lane) - 1u));
        asm volatile("st.shared.u16 [%0], %1;" :: "r"(at.chosen + 2 * place), "h"((uint16_t)(bin * SR_PAGE_ROWS + row)) : "memory");
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane / 4; i < n_some; i += 8) {
        uint16_t both;
        asm volatile("ld.shared.u16 %0, [%1];" : "=h"(both) : "r"(at.chosen + 2 * i) : "memory");
        const int row = both % SR_PAGE_ROWS, bin = both / SR_PAGE_ROWS;
#pragma unroll
        for (int n = 0; n < NT; n++) { // an absent head's share is 0
            const float share = exp2_of(load_shared(slot + (n * 256 + row * 4 + lane % 4) * 4) - load_shared(at.total + 16 * n + lane % 4 * 4));
            add_shared(at.sums + (bin * 4 * NT + 4 * n + lane % 4) * 4, (uint32_t)(fminf(share, 1.0f) * SHARE_UNIT));
        }
    }
    __syncwarp();
}

// The warp's sums of the first pass to shared memory. Ends with a barrier.
template <int NT> static __device__ __forceinline__ void write_sums(const lane_sums<NT> &a, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float2 ml = make_float2(a.peak[n], a.peak[n] == -CUDART_INF_F ? a.l[n] : a.l[n] * exp2_of(a.base[n] - a.peak[n])); // l may be NaN
        ml = join_lanes(ml, 4, WARP);
        if (lane < 4) s.far[threadIdx.x / WARP][4 * n + lane] = ml;
    }
    __syncthreads();
}

// ---- the choice ----

static __device__ __forceinline__ void report(const choose_params &p, const part &x, int kind, const int4 &rows)
{
    if (x.index != 0 || threadIdx.x != 0) return;
    if (p.a.look) rest_of_unit(p, x.u)->end = CHOOSE_BINS, rest_of_unit(p, x.u)->n_found = 0;
    p.a.kinds[x.u] = (uint8_t)kind;
    p.a.n_list[x.u] = rows.x;
    if (p.a.n_chosen) p.a.n_chosen[2 * x.u] = rows.y, p.a.n_chosen[2 * x.u + 1] = rows.z;
}

static __device__ __forceinline__ void report_unread(const choose_params &p, const part &x, float left)
{
    if (x.index == 0 && (int)threadIdx.x < p.group && p.a.unread) p.a.unread[x.u * p.group + threadIdx.x] = left;
}

// A unit that is read whole.
static __device__ __forceinline__ void report_all(const choose_params &p, const part &x)
{
    report(p, x, CUDA_READ_ALL, make_int4(0, 0, 0, 0));
    report_unread(p, x, x.routed ? 0.0f : CUDART_NAN_F);
    if (x.index == 0 && (int)threadIdx.x < p.group && p.a.total && !x.routed) p.a.total[x.u * p.group + threadIdx.x] = CUDART_NAN_F;
}

// The place of this thread's found sink among the part's rows, or -1; one thread a sink.
static __device__ __forceinline__ int32_t found_place(const choose_params &p, const part &x)
{
    const int i = threadIdx.x;
    if (!p.a.found || i >= SR_SINKS_MOST) return -1;
    const int32_t n = p.a.found[x.u].n, row = p.a.found[x.u].rows[i];
    const bool is_in = i < n && row >= max(x.first, x.page0 * SR_PAGE_ROWS) && row < min(x.end, x.page1 * SR_PAGE_ROWS);
    return is_in ? row - x.page0 * SR_PAGE_ROWS : -1;
}

// Those that count as near are marked before the scan, which passes them over.
template <int NT> static __device__ __forceinline__ void hide_found(const choose_params &p, const part &x, int32_t at, uint16_t *bin_of, choose_space<NT> &s)
{
    if (!p.a.look || p.a.keep || at < 0) return;
    bin_of[at] = FOUND;
    const int page = x.page0 + at / SR_PAGE_ROWS;
    atomicOr(&s.hidden[page / 32 % 2], 1u << page % 32);
    if (p.a.counters) atomicAdd((unsigned long long *)&p.a.counters[x.u].again_rows, 1ull);
}

// Found sinks of the part's far rows, each at its thread's place, are marked, and their bins noted.
template <int NT> static __device__ __forceinline__ void mark_found(const part &x, int32_t at, uint16_t *bin_of, choose_space<NT> &s)
{
    if (at < 0) return;
    s.found[threadIdx.x] = x.index << 16 | ((bin_of[at] == FOUND ? NO_BIN : bin_of[at]) - 1);
    bin_of[at] = FOUND;
}

// Rows in bins up to each, one bin a thread.
template <int NT> static __device__ __forceinline__ void sum_rows(choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP;
    const int32_t sum = sum_up_to((int32_t)s.rows[threadIdx.x]);
    if (lane == WARP - 1) s.warp_rows[w] = sum;
    __syncthreads();
    s.rows[threadIdx.x] = (uint32_t)(sum + __reduce_add_sync(~0u, lane < w ? s.warp_rows[lane] : 0));
}

// The part's bins are added to those of the unit; afterwards all parts' are. One bin a thread.
template <int NT> static __device__ __forceinline__ void share_bins(const part &x, choose_exchange *ex, const choose_space<NT> &s)
{
    const int b = threadIdx.x;
    ex->rows[x.index][b] = s.rows[b];
#pragma unroll
    for (int i = 0; i < 2 * NT; i++) { // two sums at once: neither passes 2^32
        const unsigned long long two = *(const unsigned long long *)&s.sums[b * 4 * NT + 2 * i];
        if (two) atomicAdd((unsigned long long *)&ex->sums[b * 4 * NT + 2 * i], two);
    }
    if (b < 16 && s.found[b] >= 0) ex->found[b] = s.found[b];
    __syncthreads();
    if (b == 0) {
        unsigned arrived;
        __threadfence();
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(&ex->arrived) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(&ex->arrived) : "memory");
        while (arrived < gridDim.x);
    }
    __syncthreads();
}

// Bins that hold the rows read in any case.
static __device__ __forceinline__ int bins_of_sure(const bin_rule &rule, float eps)
{
    return eps < 1 ? (int)fminf(-sure_of(eps) * rule.per_octave, CHOOSE_BINS - 1.0f) + 1 : 0;
}

struct choice { int end, plain_end; }; // bins that are chosen; with the other eps

// Where the choice ends, the first bin after which little enough is left of each head's far share, and what it leaves. One bin
// a thread.
template <int NT> static __device__ __forceinline__ choice find_end(const choose_params &p, const bin_rule &rule, const part &x, const choose_exchange *ex, choose_space<NT> &s)
{
    constexpr int H = 4 * NT;
    const int b = threadIdx.x, lane = b % WARP, w = b / WARP;
    const float plain_eps = plain_eps_of(p, x);
    uint32_t upto[H]; // wraps alike in all lanes
#pragma unroll
    for (int i = 0; i < NT; i++) {
        const uint4 sums = gridDim.x > 1 ? __ldcg((const uint4 *)&ex->sums[b * H + 4 * i]) : *(const uint4 *)&s.sums[b * H + 4 * i];
        upto[4 * i] = sums.x, upto[4 * i + 1] = sums.y, upto[4 * i + 2] = sums.z, upto[4 * i + 3] = sums.w;
    }
#pragma unroll
    for (int h = 0; h < H; h++) {
        upto[h] = (uint32_t)sum_up_to((int32_t)upto[h]);
        if (lane == WARP - 1) s.before[w][h] = upto[h];
    }
    __syncthreads();
    bool good = true, plain_good = true, wanted = false, plain_wanted = false;
    float left_of[H]; // once this bin is read
#pragma unroll
    for (int h = 0; h < H; h++) {
        upto[h] += __reduce_add_sync(~0u, lane < w ? s.before[lane][h] : 0u);
        const float far = h < p.group ? s.far_share[h] : 0.0f, left = left_of[h] = far - (float)upto[h] / SHARE_UNIT;
        good &= left <= x.eps, plain_good &= left <= plain_eps;
        wanted |= !(far <= x.eps), plain_wanted |= !(far <= plain_eps);
    }
    const int bad = __syncthreads_count(!good), plain_bad = __syncthreads_count(!plain_good);
    choice c = {wanted ? min(bad + 1, CHOOSE_BINS) : 0, plain_wanted ? min(plain_bad + 1, CHOOSE_BINS) : 0};
    c.end = p.a.keep ? CHOOSE_BINS : max(c.end, bins_of_sure(rule, x.eps));
    c.plain_end = p.a.plain_eps ? max(c.plain_end, bins_of_sure(rule, plain_eps)) : c.end;
    if (x.index == 0 && p.a.unread && b == max(c.end, 1) - 1)
#pragma unroll
        for (int h = 0; h < H; h++)
            if (h < p.group) p.a.unread[x.u * p.group + h] = fmaxf(c.end ? left_of[h] : s.far_share[h], 0.0f);
    if (x.index == 0 && p.a.look)
#pragma unroll
        for (int i = 0; i < NT; i++)
            ((float4 *)p.w.left)[(x.u * CHOOSE_BINS + b) * NT + i] = make_float4(left_of[4 * i], left_of[4 * i + 1], left_of[4 * i + 2], left_of[4 * i + 3]);
    return c;
}

// Which of 8 neighbouring rows are chosen: those whose word is below `end` + 1. A difference in either half of a word borrows
// from its own top bit, which no word has.
static __device__ __forceinline__ unsigned chosen_of(const uint16_t *bin_of, int at, int end)
{
    const uint4 bins = *(const uint4 *)(bin_of + at);
    const uint32_t words[4] = {bins.x, bins.y, bins.z, bins.w}, ends = (uint32_t)(end + 1) * 0x10001u;
    unsigned chosen = 0; // row 2 i at bit 2 i, row 2 i + 1 at bit 16 + 2 i
#pragma unroll
    for (int i = 0; i < 4; i++) chosen |= (~((words[i] | 0x80008000u) - ends) & 0x80008000u) >> (15 - 2 * i);
    return (chosen | chosen >> 15) & 0xffu;
}

// Of part `lane`: rows listed, chosen, chosen with the other eps, left for a second look.
template <int NT> static __device__ __forceinline__ int4 rows_of_part(const choose_params &p, const choose_exchange *ex, const choose_space<NT> &s, choice c)
{
    const int lane = threadIdx.x % WARP, n = gridDim.x;
    const uint32_t *rows = n > 1 ? ex->rows[min(lane, n - 1)] : s.rows; // another block's, once it has arrived
    const volatile uint32_t *at = rows;
    int4 all = make_int4(0, 0, 0, 0);
    if (lane < n) {
        all.y = c.end > 0 ? (int)at[c.end - 1] : 0;
        all.z = c.plain_end == c.end ? all.y : c.plain_end > 0 ? (int)at[c.plain_end - 1] : 0;
        all.w = p.a.look ? (int)at[CHOOSE_BINS - 1] - all.y : 0;
    }
    all.x = all.y;
    if (!p.a.found) return all;
    const int32_t found = lane >= 16 ? -1 : n > 1 ? *(const volatile int32_t *)&ex->found[lane] : s.found[lane];
    for (unsigned more = __ballot_sync(~0u, found >= 0 && (found & 0xffff) >= c.end); more; more &= more - 1) // no bin that is chosen has it
        all.x += __shfl_sync(~0u, found, __ffs(more) - 1) >> 16 == lane;
    return all;
}

// Each warp a stretch of the part's rows, 8 neighbouring rows a lane. What a second look may add follows the list of all parts.
template <int NT>
static __device__ __forceinline__ void write_list(const choose_params &p, const part &x, const choose_exchange *ex, const uint16_t *bin_of, choose_space<NT> &s, choice c)
{
    constexpr int STEP = 8 * WARP;
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, rows = (x.page1 - x.page0) * SR_PAGE_ROWS, most = p.a.look ? CHOOSE_BINS : c.end;
    const int each = (rows + CHOOSE_WARPS * STEP - 1) / (CHOOSE_WARPS * STEP) * STEP, from = w * each, to = min(from + each, rows);
    int4 all = rows_of_part(p, ex, s, c);
    int32_t *list = p.a.list + x.u * p.a.list_stride, n = 0, n_rest = 0;
#pragma unroll 1
    for (int at = from + 8 * lane; at < to; at += STEP) {
        const int own = __popc(chosen_of(bin_of, at, c.end));
        n += own, n_rest += most > c.end ? __popc(chosen_of(bin_of, at, most)) - own : 0;
    }
    n = __reduce_add_sync(~0u, n), n_rest = __reduce_add_sync(~0u, n_rest);
    if (lane == 0) s.warp_rows[w] = n, s.before[w][0] = (uint32_t)n_rest;
    __syncthreads();
    int32_t place = __reduce_add_sync(~0u, (lane < x.index ? all.x : 0) + (lane < w ? s.warp_rows[lane] : 0));
    int32_t rest_place = __reduce_add_sync(~0u, all.x + (lane < x.index ? all.w : 0) + (lane < w ? (int32_t)s.before[lane][0] : 0));
#pragma unroll 1
    for (int base = from; base < to; base += STEP) {
        const int at = base + 8 * lane;
        unsigned chosen = at < to ? chosen_of(bin_of, at, c.end) : 0, rest = at < to ? chosen_of(bin_of, at, most) & ~chosen : 0;
        const int32_t own = __popc(chosen) | __popc(rest) << 16, upto = sum_up_to(own), before = upto - own;
        for (int32_t i = place + (before & 0xffff); chosen; chosen &= chosen - 1) list[i++] = x.page0 * SR_PAGE_ROWS + at + __ffs(chosen) - 1;
        for (int32_t i = rest_place + (before >> 16); rest; rest &= rest - 1) {
            const int row = at + __ffs(rest) - 1;
            list[i++] = rest_of(x.page0 * SR_PAGE_ROWS + row, bin_of[row] - 1);
        }
        const int32_t both = __shfl_sync(~0u, upto, WARP - 1);
        place += both & 0xffff, rest_place += both >> 16;
    }
    if (x.index != 0 || w != 0) return;
    all.x = __reduce_add_sync(~0u, all.x), all.y = __reduce_add_sync(~0u, all.y), all.z = __reduce_add_sync(~0u, all.z), all.w = __reduce_add_sync(~0u, all.w);
    report(p, x, all.x > 0 ? CUDA_READ_NEAR_LIST : CUDA_READ_NEAR, all);
    if (lane != 0 || !p.a.look) return;
    choose_rest &rest = *rest_of_unit(p, x.u);
    rest.end = x.eps < 1 && !p.a.keep ? c.end : CHOOSE_BINS;
    rest.n = all.w, rest.n_more = 0, rest.n_found = all.x - all.y;
}

// ---- the kernel ----

template <int NT>
static __device__ __forceinline__ void clear(const choose_params &p, const struct sketch_basis &basis, choose_space<NT> &s, uint16_t *bin_of, const part &x)
{
    const uint32_t two = (uint32_t)NO_BIN << 16 | NO_BIN;
    const int i = threadIdx.x;
#pragma unroll
    for (int n = 0; n < NT; n++) ((uint4 *)s.sums)[n * CHOOSE_THREADS + i] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (int k = i; k < (x.page1 - x.page0) * SR_PAGE_ROWS / 8; k += CHOOSE_THREADS) ((uint4 *)bin_of)[k] = make_uint4(two, two, two, two);
    static_assert(CHOOSE_BINS == CHOOSE_THREADS, "one bin a thread");
    s.rows[i] = 0;
    if (i < 256) s.step[i] = i < p.a.sketch.rank ? basis.step[i] : 0, s.lambda[i] = i < p.head_dim ? basis.lambda[i] : 0;
    if (i < 16) s.found[i] = -1;
    if (i < NT) s.total[i] = make_float4(0, 0, 0, 0);
    if (i == 0) s.all = !(x.eps > 0), s.none = 1, s.hidden[0] = s.hidden[1] = 0;
}

static __device__ __forceinline__ void count_rows(const choose_params &p, const part &x)
{
    if (threadIdx.x != 0 || !p.a.counters) return;
    const int32_t near = p.a.n_sinks + p.a.window, far = min(x.end, x.page1 * SR_PAGE_ROWS) - max(x.first, x.page0 * SR_PAGE_ROWS);
    if (x.index == 0) atomicAdd((unsigned long long *)&p.a.counters[x.u].again_rows, (unsigned long long)near);
    atomicAdd((unsigned long long *)&p.a.counters[x.u].y_rows, (unsigned long long)max(far, 0));
}

// Whether nothing far is listed, nor counted.
template <int NT> static __device__ __forceinline__ bool is_plain(const choose_params &p, const part &x, const choose_space<NT> &s)
{
    return s.none && !p.a.keep && !(p.a.found && p.a.found[x.u].n > 0);
}

template <int BITS, int NT> __global__ void __maxnreg__(NT == 1 ? 96 : 128) choose_kernel_for(const __grid_constant__ choose_params p)
{
    extern __shared__ __align__(128) char space[];
    choose_space<NT> &s = *(choose_space<NT> *)space;
    let_next_start();
    const part x = part_of(p);
    if (!x.routed) {
        wait_for_previous();
        report_all(p, x);
        return;
    }
    choose_exchange *ex = exchange_of(p, x.u);
    // what is read first is asked for first; the kernel before may be writing the last page
    const int w = threadIdx.x / WARP, fresh = (x.end - 1) / SR_PAGE_ROWS - x.page0 - w;
    const bool is_fresh = p.a.encodes && fresh >= 0 && fresh % CHOOSE_WARPS == 0 && x.index == (int)gridDim.x - 1;
    uint16_t *bin_of = p.rows_room ? (uint16_t *)(space + p.rows_at) : p.w.bin_of + (size_t)x.u * p.w.max_len + (size_t)x.page0 * SR_PAGE_ROWS;
    page_stream pages;
    pages.begin(p.cache.y_page + (size_t)x.u * p.cache.max_pages + x.page0 + w, (x.page1 - x.page0 - w + CHOOSE_WARPS - 1) / CHOOSE_WARPS,
                is_fresh ? fresh / CHOOSE_WARPS : -1, p.ring, p.page_bytes, p.slot_bytes, space + p.slots_at + w * max(p.ring, 1) * p.slot_bytes, s.full[w]);
    pages.start();
    clear(p, p.a.sketch.basis[x.u], s, bin_of, x);
    wait_for_previous();
    __syncthreads();
    const int32_t found = found_place(p, x);
    read_query<NT>(p, x.u, s);
    hide_found(p, x, found, bin_of, s);
    pages.complete();
    __syncthreads();
    const float cut = cut_of(x.eps, x.end - x.first);
    const bin_rule rule = {cut, CHOOSE_BINS / -cut, p.a.keep ? p.a.keep[x.u] : -1.0f};
    const scorer<BITS, NT> scores(p, s);
    lane_sums<NT> sums;
#pragma unroll
    for (int n = 0; n < NT; n++) sums.base[n] = sums.peak[n] = -CUDART_INF_F, sums.l[n] = 0;
    const hidden_rows hidden = {(uint64_t)s.hidden[1] << 32 | s.hidden[0], bin_of};
    for_pages<false>(x, pages, scores, hidden, [&](int page, uint32_t, const float (*y)[NT]) {
        if (__builtin_expect(p.a.logits != NULL, 0)) write_logits<NT>(p, x, page, y);
        sums.add(y);
    });
    write_sums(sums, s);
    sum_totals(p, x, ex, s);
    count_rows(p, x);
    if (s.all && !p.a.keep) {
        report_all(p, x);
        return;
    }
    if (is_plain(p, x, s)) { // only the near rows
        report(p, x, CUDA_READ_NEAR, make_int4(0, 0, 0, 0));
        report_unread(p, x, s.far_share[threadIdx.x % choose_space<NT>::H]);
        return;
    }
    const bin_places places = {shared_of(s.total), shared_of(s.rows), shared_of(s.sums), shared_of(s.chosen[w])};
    for_pages<true>(x, pages, scores, hidden, [&](int page, uint32_t slot, const float (*)[NT]) { add_to_bins<NT>(rule, x, page, slot, places, bin_of); });
    __syncthreads();
    mark_found(x, found, bin_of, s);
    sum_rows(s);
    if (gridDim.x > 1) share_bins(x, ex, s);
    else __syncthreads();
    const choice c = find_end(p, rule, x, ex, s);
    write_list(p, x, ex, bin_of, s, c);
}

// ---- what a launch needs ----

template <int NT> static choose_plan plan_for(const choose_params &p, int32_t n_parts, int bits, size_t room)
{
    choose_plan plan = {};
    plan.kernel = bits == 4 ? choose_kernel_for<4, NT> : choose_kernel_for<8, NT>;
    plan.n_parts = n_parts;
    const int32_t pages = (p.w.max_len / SR_PAGE_ROWS + 2) / n_parts + 1, logits = SR_PAGE_ROWS * 4 * NT * (int32_t)sizeof(float);
    plan.slot_bytes = p.has_copies && p.page_bytes > logits ? p.page_bytes : logits;
    const size_t ring_page = (size_t)plan.slot_bytes * CHOOSE_WARPS, rows = (size_t)pages * SR_PAGE_ROWS * sizeof(uint16_t);
    size_t used = (sizeof(choose_space<NT>) + 127) / 128 * 128;
    plan.rows_at = (int32_t)used;
    if (used + rows + 128 + 4 * ring_page <= room) plan.rows_room = pages * SR_PAGE_ROWS, used += rows;
    used = (used + 127) / 128 * 128;
    plan.slots_at = (int32_t)used;
    const int32_t most = room > used ? (int32_t)((room - used) / ring_page) : 0, need = (pages + CHOOSE_WARPS - 1) / CHOOSE_WARPS;
    int32_t ring = (need < MAX_RING ? need + 1 : MAX_RING) / 2 * 2; // two batches
    if (ring > most) ring = most / 2 * 2;
    plan.ring = p.has_copies ? ring : 0;
    if (plan.ring == 0) plan.slot_bytes = logits;
    plan.smem = used + (plan.ring ? (size_t)plan.ring * ring_page : (size_t)logits * CHOOSE_WARPS);
    return plan;
}

choose_plan sr_choose_plan(const choose_params &p, int32_t n_parts, int bits, size_t room)
{
    return p.group <= 4 ? plan_for<1>(p, n_parts, bits, room) : p.group <= 8 ? plan_for<2>(p, n_parts, bits, room) : plan_for<4>(p, n_parts, bits, room);
}

int sr_choose_threads(void) { return CHOOSE_THREADS; }

} // namespace sr
