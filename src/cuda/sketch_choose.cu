// SPDX-License-Identifier: Apache-2.0
//
// The choice of `mass`. The far rows of a unit are dealt to up to 16 blocks, on a plain grid that leaves no SM idle and runs
// as a whole. A block asks for its sketch pages, takes the queries that the kernel before has projected, estimates its rows
// once, keeping those that may be chosen, and tells the others its sums; with every head's total it sums the shares of these
// rows in bins, and all blocks' bins are added up in device memory; then each block finds where the choice ends and writes its
// piece of the list. So blocks meet twice. Shares are summed as whole numbers, and so the order does not show. What runs once
// is kept short: fetching instructions is what a step's first microseconds go to.
#include "cuda/sketch_survivors.cuh"

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
        float2 far = lane < CHOOSE_WARPS ? s.far[lane][h] : make_float2(0, 0);
        far = make_float2(sum_of_lanes(far.x), max_of_lanes(far.y));
        if (n > 1) {
            if (lane == 0) tell(&ex->totals[x.index][h], far);
            far = lane < n ? hear(&ex->totals[lane][h]) : make_float2(0, 0);
            __syncwarp();
            far = make_float2(sum_of_lanes(far.x), max_of_lanes(far.y));
        }
        const float all = 1.0f + far.x, total = s.near[h] + __log2f(all), near = __fdividef(1.0f, all), share = far.x * near;
        if (lane == 0) {
            ((float *)s.share)[h] = near;
            s.far_share[h] = share;
            if (p.a.total && x.index == 0) p.a.total[x.u * p.group + h] = total * LN2;
            if (p.a.look && x.index == 0) {
                choose_rest &rest = *rest_of_unit(p, x.u);
                rest.log_total[h] = total, rest.near[h] = near, rest.far[h] = share;
            }
            if (!isfinite(total)) s.all = 1;
            if (!(share <= fminf(x.eps, plain_eps_of(p, x))) || (x.eps < 1 && far.y * near >= x.eps * (1.0f / SR_SKETCH_SURE))) s.none = 0;
        }
    }
    __syncthreads();
}

// ---- one pass ----

// The least share that a row may have to be chosen, as a logarithm.
static __device__ __forceinline__ float cut_of(float eps, int32_t n_far)
{
    return fminf(__log2f(__fdividef(eps, (float)max(n_far, 1))), -1e-3f * LOG2E);
}

template <int NT> static __device__ __forceinline__ void write_logits(const choose_params &p, const part &x, const float *near, int page, const float (*y)[NT])
{
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const float less = near[4 * n + lane % 4];
        float *to = p.a.logits + ((int64_t)x.u * p.group + 4 * n + lane % 4) * p.a.list_stride + page * SR_PAGE_ROWS + lane / 4;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (y[i][n] > -CUDART_INF_F) to[8 * i] = (y[i][n] + less) * LN2; // absent heads have -inf
    }
}

// The least exponential that counts for a cut of the same total; rounding must not drop a row that the cut itself would keep.
static __device__ __forceinline__ float least_of(float cut) { return exp2f(cut) * 0.999f; }

// Pages from the next on: exponentials added to a lane's sums by its heads, survivors kept. Where there is no room for
// these, the first pass goes on without and `again` is the first page left out; a second pass ends there.
template <int BITS, int NT, int PAGES>
static __device__ __forceinline__ int32_t read_pages(const choose_params &p, const part &x, const choose_space<NT> &s, const hidden_rows &hidden,
                                                     const scorer<BITS, NT, PAGES> &scores, page_ring<BITS, PAGES> &pages, int32_t k, bool is_first,
                                                     float keep, survivors<NT> &kept, float *sums, int32_t &again)
{
    const int32_t whole0 = (x.first + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS, whole1 = x.end / SR_PAGE_ROWS;
    const uint32_t plain = p.a.logits ? 0 : max(whole1 - whole0, 0); // pages from whole0 on of which all is taken, but what is hidden
#pragma unroll 1
    for (; k < pages.n; k++) {
        if (kept.is_full) {
            if (!is_first) return k;
            again = k, keep = -1, kept.close();
        }
        const int number = x.page0 + (int)threadIdx.x / WARP + k * CHOOSE_WARPS;
        float e[8][NT];
        scores.score(pages, e);
        if (__builtin_expect((uint32_t)(number - whole0) >= plain || hidden.may_be_in(number), 0)) {
            mask_rows<NT>(x, number, hidden, e);
            if (p.a.logits) write_logits<NT>(p, x, s.near, number, e);
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 8; i++) e[i][n] = exp2_of(e[i][n]);
            sums[n] += ((e[0][n] + e[1][n]) + (e[2][n] + e[3][n])) + ((e[4][n] + e[5][n]) + (e[6][n] + e[7][n]));
        }
        kept.push(k, e, keep > 0 ? draw(x, number, keep) : make_uint2(0, 0));
    }
    return k;
}

// The warp's sums and maxima to shared memory. Ends with a barrier.
template <int NT> static __device__ __forceinline__ void write_sums(const float *sums, const float *peak, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float2 far = make_float2(sums[n], peak[n]);
#pragma unroll
        for (int i = 4; i < WARP; i *= 2) far = make_float2(far.x + __shfl_xor_sync(~0u, far.x, i), fmaxf(far.y, __shfl_xor_sync(~0u, far.y, i)));
        if (lane < 4) s.far[threadIdx.x / WARP][4 * n + lane] = far;
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

// Far rows read in any case: those of the part are marked, since they are listed; how many are in each is known to all where they
// count as near, and are passed over. One thread a row: the last warps, since the first have the queries.
template <int NT> static __device__ __forceinline__ void mark_always(const choose_params &p, const part &x, uint32_t *bits, choose_space<NT> &s)
{
    const int i = CHOOSE_THREADS - 1 - (int)threadIdx.x;
    const int32_t *always = always_of(p, x.u);
    if (!always || i >= most_always(p)) return;
    const int32_t n = always[0], row = always[1 + i], first = x.first / SR_PAGE_ROWS, pages = (x.end + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS - first;
    if (i >= n || row < x.first || row >= x.end) return;
    const int page = row / SR_PAGE_ROWS, at = row - x.page0 * SR_PAGE_ROWS;
    if (hides_always(p)) atomicAdd(&s.hidden_in[((uint32_t)(page - first + 1) * gridDim.x - 1) / (uint32_t)pages], 1); // as part_of deals them
    if (page < x.page0 || page >= x.page1) return;
    atomicOr(&bits[at / 32], 1u << at % 32);
    if (!hides_always(p)) {
        s.found_at[i] = at, s.found[i] = x.index << 16 | NO_BIN;
        return;
    }
    atomicOr(&s.hidden[page / 32 % 2], 1u << page % 32);
    if (p.a.counters) atomicAdd((unsigned long long *)&p.a.counters[x.u].again_rows, 1ull);
}

// The part's rows in bins up to each, one bin a thread.
template <int NT> static __device__ __forceinline__ void sum_rows(choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP;
    const int32_t sum = sum_up_to((int32_t)s.rows[threadIdx.x]);
    if (lane == WARP - 1) s.warp_rows[w] = sum;
    __syncthreads();
    s.rows[threadIdx.x] = (uint32_t)(sum + __reduce_add_sync(~0u, lane < w ? s.warp_rows[lane] : 0));
}

// The part's shares by bin are added to those of the unit, and its rows are there for all; afterwards all parts' are. One bin a
// thread.
template <int NT> static __device__ __forceinline__ void share_bins(const part &x, choose_exchange *ex, const choose_space<NT> &s)
{
    const int b = threadIdx.x;
    ex->rows[x.index][b] = s.rows[b];
#pragma unroll 1
    for (int i = b; i < CHOOSE_BINS * 2 * NT; i += CHOOSE_THREADS) { // two sums at once: neither passes 2^32
        const unsigned long long two = ((const unsigned long long *)s.sums)[i];
        if (two) atomicAdd((unsigned long long *)ex->sums + i, two);
    }
    if (b < SR_ALWAYS_ROWS && s.found[b] >= 0) ex->found[b] = s.found[b];
    __syncthreads();
    if (b == 0) {
        unsigned arrived;
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

// The warp's sums up to each of 512 bins; s: where they go, in shared memory. Returns the lane's, up to its last of 16 neighbours.
static __device__ __forceinline__ uint32_t sum_bins(const uint32_t *from, uint32_t *s)
{
    const int lane = threadIdx.x % WARP;
    uint4 x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = ((const uint4 *)from)[4 * lane + i];
    uint32_t own = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) x[i].x = own += x[i].x, x[i].y = own += x[i].y, x[i].z = own += x[i].z, x[i].w = own += x[i].w;
    const uint32_t upto = (uint32_t)sum_up_to((int32_t)own), before = upto - own; // wraps alike in all lanes
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) ((uint4 *)s)[4 * lane + i] = make_uint4(x[i].x + before, x[i].y + before, x[i].z + before, x[i].w + before);
    __syncwarp();
    return upto;
}

// Bins to read so that at most eps of a head's far share is left; s: its sums up to each, `upto` those up to the lane's last.
static __device__ __forceinline__ int bins_for(const uint32_t *s, uint32_t upto, float far, float eps)
{
    if (far <= eps) return 0;
    const int lane = threadIdx.x % WARP;
    const uint32_t needed = (uint32_t)fminf(fmaxf(ceilf((far - eps) * SHARE_UNIT), 1.0f), SHARE_UNIT);
    const int lanes = __popc(__ballot_sync(~0u, upto < needed));
    if (lanes == WARP) return CHOOSE_BINS;
    return lanes * 16 + __popc(__ballot_sync(~0u, lane < 16 && s[lanes * 16 + lane % 16] < needed)) + 1;
}

// Where the choice ends, the first bin after which little enough is left of each head's far share; one warp a head.
template <int NT> static __device__ __forceinline__ choice find_end(const choose_params &p, const bin_rule &rule, const part &x, const choose_exchange *ex, choose_space<NT> &s)
{
    const int i = threadIdx.x, h = i / WARP;
    const float plain_eps = plain_eps_of(p, x);
    if (h < p.group) {
        const uint32_t upto = sum_bins(gridDim.x > 1 ? ex->sums + h * CHOOSE_BINS : s.sums[h], s.sums[h]);
#pragma unroll 1
        for (int k = 0; k < 1 + (p.a.plain_eps != NULL); k++) {
            const int end = bins_for(s.sums[h], upto, s.far_share[h], k ? plain_eps : x.eps);
            if (i % WARP == 0) atomicMax(&s.ends[k], end);
        }
    }
    __syncthreads();
    choice c;
    c.end = p.a.keep ? CHOOSE_BINS : max(s.ends[0], bins_of_sure(rule, x.eps));
    c.plain_end = p.a.plain_eps ? max(s.ends[1], bins_of_sure(rule, plain_eps)) : c.end;
    if (x.index != 0) return c;
    if (p.a.unread && i < p.group) p.a.unread[x.u * p.group + i] = fmaxf(s.far_share[i] - (c.end ? (float)s.sums[i][c.end - 1] / SHARE_UNIT : 0.0f), 0.0f);
    if (p.a.look) // what is unread once the bins up to each are read
#pragma unroll 1
        for (int k = i; k < CHOOSE_BINS * s.H; k += CHOOSE_THREADS)
            p.w.left[(int64_t)x.u * CHOOSE_BINS * s.H + k] = k % s.H < p.group ? s.far_share[k % s.H] - (float)s.sums[k % s.H][k / s.H] / SHARE_UNIT : 0.0f;
    return c;
}

// Of part `lane`: rows listed, chosen, chosen with the other eps, left for a second look.
template <int NT> static __device__ __forceinline__ int4 rows_of_part(const choose_params &p, const choose_exchange *ex, const choose_space<NT> &s, choice c)
{
    const int lane = threadIdx.x % WARP, n = gridDim.x;
    const volatile uint32_t *upto = n > 1 ? ex->rows[min(lane, n - 1)] : s.rows; // another block's, once it has arrived
    int4 all = make_int4(0, 0, 0, 0);
    if (lane < n) {
        all.y = c.end > 0 ? (int)upto[c.end - 1] : 0;
        all.z = c.plain_end == c.end ? all.y : c.plain_end > 0 ? (int)upto[c.plain_end - 1] : 0;
        all.w = p.a.look ? (int)upto[CHOOSE_BINS - 1] - all.y : 0;
    }
    all.x = all.y;
    if (hides_always(p)) {
        all.x += lane < n ? s.hidden_in[lane] : 0;
        return all;
    }
#pragma unroll 1
    for (int i = lane; i - lane < (p.a.always || p.a.found ? most_always(p) : 0); i += WARP) {
        const int32_t found = i >= SR_ALWAYS_ROWS ? -1 : n > 1 ? *(const volatile int32_t *)&ex->found[i] : s.found[i];
        for (unsigned more = __ballot_sync(~0u, found >= 0 && (found & 0xffff) >= c.end); more; more &= more - 1) // no bin that is chosen has it
            all.x += __shfl_sync(~0u, found, __ffs(more) - 1) >> 16 == lane;
    }
    return all;
}

// Of the warp's rows, those that a second look may add, from `place` on.
static __device__ __forceinline__ void write_rest(const part &x, const binned &mine, int end, int32_t *place)
{
    const int lane = threadIdx.x % WARP;
#pragma unroll 1
    for (int base = 0; base < mine.n; base += WARP) {
        const uint32_t code = base + lane < mine.n ? mine.codes[base + lane] : 0;
        const bool is_in = base + lane < mine.n && (int)(code % CHOOSE_BINS) >= end;
        const unsigned some = __ballot_sync(~0u, is_in);
        if (is_in) place[__popc(some & ((1u << lane) - 1u))] = (int32_t)(code + (uint32_t)(x.page0 * SR_PAGE_ROWS) * CHOOSE_BINS);
        place += __popc(some);
    }
}

// The warp's rows of chosen bins are marked; then each warp lists a stretch of the part's rows, 8 neighbouring rows a lane. What a
// second look may add follows the list of all parts, in an order that depends on nothing but the rows.
template <int NT>
static __device__ __forceinline__ void write_list(const choose_params &p, const part &x, const choose_exchange *ex, const binned &mine, uint32_t *bits, choose_space<NT> &s, choice c)
{
    constexpr int STEP = 8 * WARP;
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, rows = (x.page1 - x.page0) * SR_PAGE_ROWS;
    const int each = (rows + CHOOSE_WARPS * STEP - 1) / (CHOOSE_WARPS * STEP) * STEP, from = w * each, to = min(from + each, rows);
    int4 all = rows_of_part(p, ex, s, c);
    int32_t *list = p.a.list + x.u * p.a.list_stride, n = 0, n_marked = 0;
#pragma unroll 1
    for (int i = lane; i < mine.n; i += WARP) {
        const uint32_t code = mine.codes[i], at = code / CHOOSE_BINS;
        if ((int)(code % CHOOSE_BINS) < c.end) atomicOr(&bits[at / 32], 1u << at % 32), n_marked++;
    }
    n_marked = __reduce_add_sync(~0u, n_marked);
    if (lane == 0) s.warp_rest[w] = mine.n - n_marked;
    __syncthreads();
#pragma unroll 1
    for (int at = from + 8 * lane; at < to; at += STEP) n += __popc(((const uint8_t *)bits)[at / 8]);
    n = __reduce_add_sync(~0u, n);
    if (lane == 0) s.warp_rows[w] = n;
    __syncthreads();
    int32_t place = __reduce_add_sync(~0u, (lane < x.index ? all.x : 0) + (lane < w ? s.warp_rows[lane] : 0));
#pragma unroll 1
    for (int base = from; base < to; base += STEP) {
        const int at = base + 8 * lane;
        unsigned chosen = at < to ? ((const uint8_t *)bits)[at / 8] : 0;
        const int32_t own = __popc(chosen), upto = sum_up_to(own);
        for (int32_t i = place + upto - own; chosen; chosen &= chosen - 1) list[i++] = x.page0 * SR_PAGE_ROWS + at + __ffs(chosen) - 1;
        place += __shfl_sync(~0u, upto, WARP - 1);
    }
    if (p.a.look) write_rest(x, mine, c.end, list + __reduce_add_sync(~0u, all.x + (lane < x.index ? all.w : 0) + (lane < w ? s.warp_rest[lane] : 0)));
    if (x.index != 0 || w != 0) return;
    all.x = __reduce_add_sync(~0u, all.x), all.y = __reduce_add_sync(~0u, all.y), all.z = __reduce_add_sync(~0u, all.z);
    report(p, x, all.x > 0 ? CUDA_READ_NEAR_LIST : CUDA_READ_NEAR, all);
    if (!p.a.look) return;
    all.w = __reduce_add_sync(~0u, all.w);
    if (lane != 0) return;
    choose_rest &rest = *rest_of_unit(p, x.u);
    rest.end = x.eps < 1 && !p.a.keep ? c.end : CHOOSE_BINS;
    rest.n = all.w, rest.n_more = 0, rest.n_found = all.x - all.y;
}

// ---- the kernel ----

// Step and lambda of the coordinate of this thread's number.
static __device__ __forceinline__ float2 step_of(const choose_params &p, int u)
{
    const int i = threadIdx.x;
    const struct sketch_basis &basis = p.a.sketch.basis[u];
    return make_float2(i < p.a.sketch.rank ? basis.step[i] : 0, i < p.head_dim ? basis.lambda[i] : 0);
}

template <int NT>
static __device__ __forceinline__ void clear(float2 step, choose_space<NT> &s, const part &x)
{
    const int i = threadIdx.x;
    static_assert(CHOOSE_BINS == CHOOSE_THREADS, "one bin a thread");
#pragma unroll
    for (int n = 0; n < NT; n++) ((uint4 *)s.sums)[n * CHOOSE_THREADS + i] = make_uint4(0, 0, 0, 0);
    s.rows[i] = 0;
    if (i < 256) s.step[i] = step.x, s.lambda[i] = step.y;
    if (i < SR_ALWAYS_ROWS) s.found[i] = s.found_at[i] = -1;
    if (i < CHOOSE_PARTS) s.hidden_in[i] = 0;
    if (i < NT) s.share[i] = make_float4(0, 0, 0, 0);
    if (i == 0) s.all = !(x.eps > 0), s.none = 1, s.ends[0] = s.ends[1] = 0, s.hidden[0] = s.hidden[1] = 0;
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
    const int32_t *always = always_of(p, x.u);
    return s.none && !p.a.keep && !(always && *always > 0);
}

template <int BITS, int NT, int PAGES> __global__ void __maxnreg__(NT == 1 ? 96 : 128) choose_kernel_for(const __grid_constant__ choose_params p)
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
    const int w = threadIdx.x / WARP, n_pages = x.page1 - x.page0, last = (x.end - 1) / SR_PAGE_ROWS - x.page0 - w;
    const bool is_fresh = p.a.encodes && last >= 0 && last % CHOOSE_WARPS == 0 && x.index == (int)gridDim.x - 1;
    uint32_t *bits = p.bits_at ? (uint32_t *)(space + p.bits_at) : p.w.chosen + ((size_t)x.u * p.w.max_len + (size_t)x.page0 * SR_PAGE_ROWS) / 32;
    const float2 step = step_of(p, x.u);
    page_ring<BITS, PAGES> pages;
    pages.table = p.cache.y_page + (size_t)x.u * p.cache.max_pages + x.page0 + w;
    pages.n = (n_pages - w + CHOOSE_WARPS - 1) / CHOOSE_WARPS, pages.steps = (p.a.sketch.rank + 15) / 16, pages.size = p.ring;
    pages.slots = shared_of(space + p.rings_at) + w * p.ring + threadIdx.x % WARP * (4 * BITS);
    pages.begin(0);
    const uint32_t filled = pages.fill(0, pages.n - is_fresh);
    clear(step, s, x);
    wait_for_previous();
#pragma unroll 1
    for (int i = threadIdx.x; i < n_pages * (SR_PAGE_ROWS / 32); i += CHOOSE_THREADS) bits[i] = 0;
    __syncthreads();
    read_query<NT>(p, x.u, s);
    mark_always(p, x, bits, s);
    pages.fill(filled, pages.n);
    __syncthreads();
    const float cut = cut_of(x.eps, x.end - x.first);
    const bin_rule rule = {cut, CHOOSE_BINS / -cut, p.a.keep ? p.a.keep[x.u] : -1.0f};
    const scorer<BITS, NT, PAGES> scores(p, s);
    char *const stacks = space + p.stacks_at + w * p.levels * survivors<NT>::LEVEL;
    survivors<NT> kept;
    kept.begin(shared_of(stacks), p.levels);
    kept.survive_from(p.a.keep ? CUDART_INF_F : least_of(cut)); // of the near part
    const hidden_rows hidden = {(uint64_t)s.hidden[1] << 32 | s.hidden[0], bits};
    float sums[NT] = {};
    int32_t again = pages.n, k = 0;
    binned mine = {(uint32_t *)stacks, 0};
#pragma unroll 1
    for (bool is_first = true;; is_first = false) {
        k = read_pages(p, x, s, hidden, scores, pages, k, is_first, rule.keep, kept, sums, again);
        if (is_first) {
            write_sums<NT>(sums, kept.peak, s);
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
            const int before = w * (n_pages / CHOOSE_WARPS) + min(w, n_pages % CHOOSE_WARPS); // pages of the warps before
            if (again < pages.n) mine.codes = p.w.codes + (size_t)x.u * p.w.max_len + (size_t)(x.page0 + before) * SR_PAGE_ROWS;
        }
        bin_survivors(rule, x, s, bits, kept, mine, p.a.notes && x.eps < 1 && !p.a.keep ? weighty_of(p, x.u) : NULL);
        if (k == pages.n && (again == k || !is_first)) break;
        kept.begin(shared_of(stacks), p.levels);
        if (!is_first) continue;
        pages.begin(k = again), pages.fill(0, pages.n);
#pragma unroll
        for (int n = 0; n < NT; n++) kept.least[n] = p.a.keep ? CUDART_INF_F : least_of(cut) / ((float *)s.share)[4 * n + threadIdx.x % 4];
    }
    __syncthreads();
    sum_rows(s);
    if (gridDim.x > 1) share_bins(x, ex, s);
    else __syncthreads();
    const choice c = find_end(p, rule, x, ex, s);
    write_list(p, x, ex, mine, bits, s, c);
}

// ---- what a launch needs ----

constexpr int32_t WANTED_LEVELS = 48; // of survivors, before a ring is made shorter

// Tries a ring of the given bytes of each warp.
template <int BITS, int NT, int PAGES> static bool fits(choose_plan *plan, int32_t ring, int32_t need, int32_t least, size_t used, size_t room)
{
    const size_t level = (size_t)survivors<NT>::LEVEL * CHOOSE_WARPS, stacks = used + (size_t)ring * CHOOSE_WARPS;
    const int32_t most = stacks < room ? (int32_t)((room - stacks) / level) : 0;
    plan->ring = ring, plan->stacks_at = (int32_t)stacks;
    plan->levels = (need < most ? need : most) / 4 * 4; // four are read at once
    plan->smem = stacks + (size_t)plan->levels * level;
    if (plan->levels < (least < need ? least : need)) return false;
    plan->kernel = choose_kernel_for<BITS, NT, PAGES>;
    return true;
}

template <int BITS, int NT> static choose_plan plan_for(const choose_params &p, int32_t n_parts, size_t room)
{
    constexpr int PAGES = 16 / BITS, MORE = NT == 1 ? 2 * PAGES : PAGES; // more in flight where survivors are not many
    choose_plan plan = {};
    const int32_t pages = (p.w.max_len / SR_PAGE_ROWS + 2) / n_parts + 1, need = (pages + CHOOSE_WARPS - 1) / CHOOSE_WARPS * LEAST_LEVELS;
    size_t used = (sizeof(choose_space<NT>) + 127) / 128 * 128;
    const size_t row_bits = ((size_t)pages * SR_PAGE_ROWS / 8 + 127) / 128 * 128;
    if (row_bits <= 8192 && !p.a.levels) plan.bits_at = (int32_t)used, used += row_bits;
    plan.rings_at = (int32_t)used;
    plan.n_parts = n_parts;
    bool good = p.a.sketch.rank <= 32 && (fits<BITS, NT, MORE>(&plan, page_ring<BITS, MORE>::BYTES, need, WANTED_LEVELS, used, room) ||
                                          fits<BITS, NT, PAGES>(&plan, page_ring<BITS, PAGES>::BYTES, need, LEAST_LEVELS, used, room));
    for (int32_t ring = page_ring<BITS, 0>::MOST; !good && ring >= page_ring<BITS, 0>::MOST / 4; ring /= 2)
        good = fits<BITS, NT, 0>(&plan, ring, need, LEAST_LEVELS, used, room);
    if (p.a.levels && p.a.levels < plan.levels) plan.levels = p.a.levels;
    return plan;
}

template <int NT> static choose_plan plan_for(const choose_params &p, int32_t n_parts, int bits, size_t room)
{
    return bits == 4 ? plan_for<4, NT>(p, n_parts, room) : plan_for<8, NT>(p, n_parts, room);
}

choose_plan sr_choose_plan(const choose_params &p, int32_t n_parts, int bits, size_t room)
{
    return p.group <= 4 ? plan_for<1>(p, n_parts, bits, room) : p.group <= 8 ? plan_for<2>(p, n_parts, bits, room) : plan_for<4>(p, n_parts, bits, room);
}

int sr_choose_threads(void) { return CHOOSE_THREADS; }

} // namespace sr
