// SPDX-License-Identifier: Apache-2.0
//
// The choice of `mass` in one launch. The far rows of a unit are dealt to up to 16 blocks, which meet five times: every
// block projects some coordinates of the query and gives them to all; with those it estimates the logits of its rows and
// takes the exact ones of its share of the near rows, and every head's total is known to all; with the totals it sums the
// shares of its rows in bins; of a slice of the bins it sums those of all blocks and gives the sums to all. Then each block
// finds where the choice ends and writes its piece of the list. Shares are summed as whole numbers, so that the order does
// not show. What runs once is kept short: fetching instructions is what a step's first microseconds go to.
#include "cuda/sketch_score.cuh"

namespace sr {

// ---- totals ----

// m, l: the maximum and the sum of exponentials of what came so far.
static __device__ __forceinline__ void add_logit(float x, float2 &ml)
{
    if (x > ml.x) ml.y *= exp2_of(ml.x - x), ml.x = x;
    ml.y += exp2_of(x - (ml.x == -CUDART_INF_F ? 0.0f : ml.x));
}

static __device__ __forceinline__ float2 join(float2 a, float2 b)
{
    const float top = fmaxf(a.x, b.x), base = top == -CUDART_INF_F ? 0.0f : top;
    return make_float2(top, a.y * exp2_of(a.x - base) + b.y * exp2_of(b.x - base));
}

// Elements i .. i + 3 of a row of a page, without its head's scale.
static __device__ __forceinline__ float4 elements_of(int type, const uint8_t *page, int slot, int d, int i)
{
    const int at = slot * d + i;
    if (type == ELEM_BF16) {
        const uint2 x = *(const uint2 *)(page + 2 * at);
        return make_float4(__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u), __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000u));
    }
    if (type == ELEM_F16) {
        const uint2 x = *(const uint2 *)(page + 2 * at);
        const float2 lo = __half22float2(*(const __half2 *)&x.x), hi = __half22float2(*(const __half2 *)&x.y);
        return make_float4(lo.x, lo.y, hi.x, hi.y);
    }
    const uint32_t x = *(const uint32_t *)(page + at);
    if (type == ELEM_F8) {
        const __half2_raw lo = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(x & 0xffffu), __NV_E4M3), hi = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(x >> 16), __NV_E4M3);
        const float2 a = __half22float2(*(const __half2 *)&lo), b = __half22float2(*(const __half2 *)&hi);
        return make_float4(a.x, a.y, b.x, b.y);
    }
    const float scale = __half2float(((const __half *)(page + SR_PAGE_ROWS * d))[slot * (d / 32) + i / 32]);
    return make_float4((float)(int8_t)x * scale, (float)(int8_t)(x >> 8) * scale, (float)(int8_t)(x >> 16) * scale, (float)((int32_t)x >> 24) * scale);
}

// Exact logits of near rows: rows index, index + n, ... of the part, one warp a row. Lane i finds the page of the i-th.
template <int NT> struct near_rows {
    const choose_params &p;
    const part &x;
    int32_t n, at, i;
    uint64_t lane_page;
    row_of_warp k, next; // the row at `at`, and the one after it

    __device__ __forceinline__ int32_t stride() const { return (int32_t)gridDim.x * CHOOSE_WARPS; }
    __device__ __forceinline__ int32_t row_at(int32_t j) const { return j < p.a.n_sinks ? j : x.len - p.a.window + j - p.a.n_sinks; }

    __device__ __forceinline__ near_rows(const choose_params &p_, const part &x_)
        : p(p_), x(x_), n(min(p_.a.n_sinks + p_.a.window, x_.len)), at(x_.index + (int)gridDim.x * ((int)threadIdx.x / WARP)), i(0), lane_page(0)
    {
        find(0);
    }
    __device__ __forceinline__ void find(int ahead)
    {
        const int32_t mine = at + (ahead + (int32_t)(threadIdx.x % WARP)) * stride();
        if (mine < n) lane_page = (uint64_t)p.cache.k_page[(size_t)x.u * p.cache.max_pages + row_at(mine) / SR_PAGE_ROWS];
    }
    // The next row whose page is known, `ahead` after the one at `at`.
    __device__ __forceinline__ void load(row_of_warp &to, int ahead)
    {
        if (i == WARP) i = 0, find(ahead);
        const uint8_t *page = (const uint8_t *)__shfl_sync(~0u, lane_page, i++);
        const int32_t j = at + ahead * stride();
        if (j >= n) return;
        const int slot = row_at(j) % SR_PAGE_ROWS, lane = threadIdx.x % WARP, d = p.head_dim;
        const float4 none = make_float4(0, 0, 0, 0);
        to.x[0] = row_of_warp::is_in(0, d) ? elements_of(p.type, page, slot, d, 4 * lane) : none;
        to.x[1] = none;
        if (d > 128) to.x[1] = row_of_warp::is_in(1, d) ? elements_of(p.type, page, slot, d, 128 + 4 * lane) : none;
    }
    __device__ __forceinline__ void load_first() { load(k, 0), load(next, 1); }
    __device__ __forceinline__ void attend(choose_space<NT> &s)
    {
        const int lane = threadIdx.x % WARP;
        const float scale = p.type == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[x.u % p.n_kv_heads] : 1.0f;
        float2 ml = make_float2(-CUDART_INF_F, 0); // of head `lane`
#pragma unroll 1
        while (at < n) {
            float mine = 0;
#pragma unroll 1
            for (int h0 = 0; h0 < p.group; h0 += 4) {
                const float y = __shfl_sync(~0u, dot_four(s, k, h0, p.head_dim), lane % 4 * 8);
                if (lane / 4 == h0 / 4) mine = y * scale;
            }
            add_logit(mine, ml);
            k = next;
            at += stride();
            load(next, 1);
        }
        if (lane < choose_space<NT>::H) s.near[threadIdx.x / WARP][lane] = ml;
    }
};

// The part's maxima and sums to all parts.
template <int NT> static __device__ __forceinline__ void give_totals(const choose_params &p, const team<4 * NT> &t, const choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, h = threadIdx.x / WARP;
    if (h >= p.group) return;
    float2 ml = (lane < CHOOSE_WARPS ? s.near : s.far)[lane % CHOOSE_WARPS][h]; // lanes 0 to 15, and the rest
#pragma unroll
    for (int i = 1; i < CHOOSE_WARPS; i *= 2) ml = join(ml, make_float2(__shfl_xor_sync(~0u, ml.x, i), __shfl_xor_sync(~0u, ml.y, i)));
    const float4 both = make_float4(__shfl_sync(~0u, ml.x, 0), __shfl_sync(~0u, ml.y, 0), __shfl_sync(~0u, ml.x, 16), __shfl_sync(~0u, ml.y, 16));
    if (lane < t.n) t.give(lane, &s.ex.totals[t.index][h], both, ROUND_TOTALS);
}

static __device__ __forceinline__ float plain_eps_of(const choose_params &p, const part &x) { return p.a.plain_eps ? p.a.plain_eps[x.u / p.n_kv_heads] : x.eps; }

// The log share from which on a row is read in any case; see sketch_choose_args.
static __device__ __forceinline__ float sure_of(float eps) { return __log2f(eps * (1.0f / SR_SKETCH_SURE)); }

// The unit's totals. s.all: some total is no number; s.none: none of the bins is needed. Ends with a barrier.
template <int NT> static __device__ __forceinline__ void sum_totals(const choose_params &p, const part &x, const team<4 * NT> &t, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, h = threadIdx.x / WARP;
    if (h < p.group) {
        const float4 a = lane < t.n ? t.mine->totals[lane][h] : make_float4(-CUDART_INF_F, 0, -CUDART_INF_F, 0);
        const float top_far = max_of_lanes(a.z), top = fmaxf(max_of_lanes(a.x), top_far);
        const float near = sum_of_lanes(a.y * exp2_of(a.x - top)), far = sum_of_lanes(a.w * exp2_of(a.z - top));
        const float total = top + __log2f(near + far), share = __fdividef(far, near + far);
        if (lane == 0) {
            s.total[h] = total;
            s.far_share[h] = share;
            if (p.a.total && x.index == 0) p.a.total[x.u * p.group + h] = total * LN2;
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

// First pass: sums of a lane's rows, by its heads, less `base`, which follows their maximum `peak` from some way below.
constexpr float BASE_SLACK = 32.0f;

template <int NT> static __device__ __forceinline__ void add_pages(page_scores<NT> &y, float *base, float *l, float *peak)
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const float top = y.max_of_head(n);
        peak[n] = fmaxf(peak[n], base[n] + top);
        if (top > (l[n] == 0 ? -CUDART_INF_F : BASE_SLACK)) {
            l[n] = l[n] == 0 ? 0.0f : l[n] * exp2_of(-top);
            base[n] += top;
#pragma unroll
            for (int i = 0; i < y.ROWS; i++) y.x[i][n] -= top;
        }
        float sum[4] = {l[n], 0, 0, 0};
#pragma unroll
        for (int i = 0; i < y.ROWS; i++) sum[i % 4] += exp2_of(y.x[i][n]);
        l[n] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

// Second pass: the bin of each row that may be chosen, and the part's shares by bin.
struct bin_rule { float cut, per_octave, keep; };

// Which rows may be: bit i is row(i), the same in all lanes of a row. `all`: of all lanes.
template <int NT>
static __device__ __forceinline__ uint32_t rows_to_bin(const bin_rule &rule, const part &x, const int *page, page_scores<NT> &y, uint32_t *all)
{
    uint32_t mask = 0;
    if (rule.keep < 0) {
#pragma unroll
        for (int i = 0; i < y.ROWS; i++) {
            float top = y.x[i][0];
#pragma unroll
            for (int n = 1; n < NT; n++) top = fmaxf(top, y.x[i][n]);
            mask |= top >= rule.cut ? 1u << i : 0u;
        }
        *all = __reduce_or_sync(~0u, mask);
        if (*all == 0) return 0;
    } else { // each lane draws for a quarter of its rows
#pragma unroll
        for (int k = 0; k < y.ROWS / 4; k++) {
            const int i = 4 * k + (threadIdx.x & 3);
            mask |= drawn(x.u, page[k / 2] * SR_PAGE_ROWS + y.row(i), rule.keep) ? 1u << i : 0u;
        }
    }
    mask |= __shfl_xor_sync(~0u, mask, 1);
    mask |= __shfl_xor_sync(~0u, mask, 2);
    if (rule.keep >= 0) *all = __reduce_or_sync(~0u, mask);
    return mask;
}

template <int NT>
static __device__ __forceinline__ void add_to_bins(const bin_rule &rule, const part &x, const int *page, page_scores<NT> &y, choose_space<NT> &s, uint16_t *bin_of)
{
    uint32_t all;
    const uint32_t mask = rows_to_bin(rule, x, page, y, &all);
    if (all == 0) return;
#pragma unroll
    for (int i = 0; i < y.ROWS; i++) {
        if (!(all >> i & 1u)) continue;
        float top = y.x[i][0];
#pragma unroll
        for (int n = 1; n < NT; n++) top = fmaxf(top, y.x[i][n]);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        int bin = (int)fminf(fmaxf(-top * rule.per_octave, 0.0f), CHOOSE_BINS - 1.0f);
        if (rule.keep >= 0) bin = y.row(i) * 8 + page[i / 8] % 8; // whatever they are, not all in one
        if (!(mask >> i & 1u) || top == -CUDART_INF_F) continue;
        if ((threadIdx.x & 3) == 0) {
            bin_of[(page[i / 8] - x.page0) * SR_PAGE_ROWS + y.row(i)] = (uint16_t)bin;
            atomicAdd(&s.rows[bin], 1u);
        }
#pragma unroll
        for (int n = 0; n < NT; n++) // an absent head's share is 0
            atomicAdd(&s.ex.sums[bin * 4 * NT + y.head(n)], (uint32_t)(fminf(exp2_of(y.x[i][n]), 1.0f) * SHARE_UNIT));
    }
}

template <int NT> static __device__ __forceinline__ void write_logits(const choose_params &p, const part &x, const int *page, const page_scores<NT> &y, const float *base)
{
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < y.ROWS; i++)
            if (y.head(n) < p.group && y.x[i][n] > -CUDART_INF_F)
                p.a.logits[((int64_t)x.u * p.group + y.head(n)) * p.a.list_stride + page[i / 8] * SR_PAGE_ROWS + y.row(i)] = (y.x[i][n] + base[n]) * LN2;
}

// The warp's sums of the first pass to shared memory. Ends with a barrier.
template <int NT> static __device__ __forceinline__ void write_sums(const float *base, const float *l, const float *peak, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float2 ml = make_float2(l[n] == 0 ? -CUDART_INF_F : peak[n], l[n] == 0 ? 0.0f : l[n] * exp2_of(base[n] - peak[n]));
#pragma unroll
        for (int i = 4; i < WARP; i *= 2) ml = join(ml, make_float2(__shfl_xor_sync(~0u, ml.x, i), __shfl_xor_sync(~0u, ml.y, i)));
        if (lane < 4) s.far[threadIdx.x / WARP][4 * n + lane] = ml;
    }
    __syncthreads();
}

// ---- the choice ----

static __device__ __forceinline__ void report(const choose_params &p, const part &x, int kind, const int4 &rows)
{
    if (x.index != 0 || threadIdx.x != 0) return;
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

// Found sinks of the part's far rows are marked; one thread a sink. Whether this thread's is one.
static __device__ __forceinline__ bool mark_found(const choose_params &p, const part &x, uint16_t *bin_of, int32_t *at)
{
    const int i = threadIdx.x;
    if (!p.a.found || i >= SR_SINKS_MOST || i >= p.a.found[x.u].n) return false;
    const int32_t row = p.a.found[x.u].rows[i];
    *at = row - x.page0 * SR_PAGE_ROWS;
    if (row < max(x.first, x.page0 * SR_PAGE_ROWS) || row >= min(x.end, x.page1 * SR_PAGE_ROWS)) return false;
    bin_of[*at] |= FOUND;
    return true;
}

// Rows in bins up to each, one bin a thread.
template <int NT> static __device__ __forceinline__ void sum_rows(choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP;
    const int32_t sum = sum_up_to((int32_t)s.rows[threadIdx.x]);
    if (lane == WARP - 1) s.sums[w] = sum;
    __syncthreads();
    s.rows[threadIdx.x] = (uint32_t)(sum + __reduce_add_sync(~0u, lane < w ? s.sums[lane] : 0));
}

// The part's bins to those who sum them, and those of the own slice, summed, to all. One warp a part.
template <int NT> static __device__ __forceinline__ void share_bins(const team<4 * NT> &t, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, own = t.bins_of(t.index) * NT;
    const uint4 *bins = (const uint4 *)s.ex.sums;
    uint4 *own_sums = (uint4 *)s.own;
    if (w < t.n)
#pragma unroll 1
        for (int e = lane; e < t.bins_of(w) * NT; e += WARP)
            t.give(w, (uint4 *)s.ex.inbox + t.index * t.slice * NT + e, bins[w * t.slice * NT + e], ROUND_BINS);
    t.meet(ROUND_BINS);
    const uint4 *inbox = (const uint4 *)t.mine->inbox;
#pragma unroll 1
    for (int e = threadIdx.x; e < own; e += CHOOSE_THREADS) {
        uint4 sum = make_uint4(0, 0, 0, 0);
#pragma unroll 4
        for (int i = 0; i < t.n; i++) {
            const uint4 x = inbox[i * t.slice * NT + e];
            sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
        }
        own_sums[e] = sum;
    }
    __syncthreads();
    if (w < t.n)
#pragma unroll 1
        for (int e = lane; e < own; e += WARP) t.give(w, (uint4 *)s.ex.sums + t.index * t.slice * NT + e, own_sums[e], ROUND_SUMS);
    t.meet(ROUND_SUMS);
}

// The first bin after which little enough is left of a head's far share. One warp; `own` of lane i is the sum of bins 32 i on,
// `upto` with those before.
template <int H> static __device__ __forceinline__ int end_of_head(const uint32_t *sums, int h, uint32_t own, uint32_t upto, float far_share, float eps)
{
    const int lane = threadIdx.x % WARP;
    if (far_share <= eps) return 0;
    const unsigned good = __ballot_sync(~0u, lane < CHOOSE_BINS / WARP && far_share - (float)upto / SHARE_UNIT <= eps);
    if (!good) return CHOOSE_BINS;
    const int c = __ffs(good) - 1;
    const uint32_t sum = __shfl_sync(~0u, upto - own, c) + (uint32_t)sum_up_to((int32_t)sums[(c * WARP + lane) * H + h]); // wraps alike
    const unsigned at = __ballot_sync(~0u, far_share - (float)sum / SHARE_UNIT <= eps);
    return c * WARP + (at ? __ffs(at) : WARP);
}

// Bins that hold the rows read in any case.
static __device__ __forceinline__ int bins_of_sure(const bin_rule &rule, float eps)
{
    return eps < 1 ? (int)fminf(-sure_of(eps) * rule.per_octave, CHOOSE_BINS - 1.0f) + 1 : 0;
}

// Where the choice ends, what it leaves, and the part's rows to all.
template <int NT>
static __device__ __forceinline__ void find_end(const choose_params &p, const bin_rule &rule, const part &x, const team<4 * NT> &t, uint16_t *bin_of, choose_space<NT> &s)
{
    constexpr int H = 4 * NT;
    const int lane = threadIdx.x % WARP, h = threadIdx.x / WARP;
    int32_t at = 0;
    const bool is_found = mark_found(p, x, bin_of, &at);
    if (h < p.group) {
        uint32_t own = 0;
#pragma unroll 4
        for (int c = 0; c < CHOOSE_BINS / WARP; c++) {
            const uint32_t sum = __reduce_add_sync(~0u, t.mine->sums[(c * WARP + lane) * H + h]);
            own = lane == c ? sum : own;
        }
        const uint32_t upto = (uint32_t)sum_up_to((int32_t)own);
        const int end = p.a.keep ? CHOOSE_BINS : end_of_head<H>(t.mine->sums, h, own, upto, s.far_share[h], x.eps);
        const int plain_end = p.a.plain_eps ? end_of_head<H>(t.mine->sums, h, own, upto, s.far_share[h], plain_eps_of(p, x)) : 0;
        if (lane == 0) atomicMax(&s.end, max(end, bins_of_sure(rule, x.eps))), atomicMax(&s.plain_end, max(plain_end, bins_of_sure(rule, plain_eps_of(p, x))));
    }
    __syncthreads();
    if (h == 0) {
        const int n_more = __popc(__ballot_sync(~0u, is_found && (bin_of[at] & ~FOUND) >= s.end)); // no bin has it
        const int chosen = s.end > 0 ? (int)s.rows[s.end - 1] : 0, plain = s.plain_end > 0 ? (int)s.rows[s.plain_end - 1] : 0;
        if (lane < t.n) t.give(lane, &s.ex.counts[t.index], make_int4(chosen + n_more, chosen, p.a.plain_eps ? plain : chosen, 0), ROUND_COUNTS);
    }
    if (h < p.group && x.index == 0 && p.a.unread) {
        uint32_t sum = 0;
#pragma unroll 4
        for (int b = lane; b < s.end; b += WARP) sum += t.mine->sums[b * H + h];
        sum = __reduce_add_sync(~0u, sum);
        if (lane == 0) p.a.unread[x.u * p.group + h] = fmaxf(s.far_share[h] - (float)sum / SHARE_UNIT, 0.0f);
    }
}

// Which of 8 neighbouring rows are chosen.
static __device__ __forceinline__ unsigned chosen_of(const uint16_t *bin_of, int at, int end)
{
    const uint4 bins = *(const uint4 *)(bin_of + at);
    const uint32_t words[4] = {bins.x, bins.y, bins.z, bins.w};
    unsigned chosen = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int bin = (int)(words[i / 2] >> i % 2 * 16 & 0xffffu);
        chosen |= (bin < end || bin & FOUND ? 1u : 0u) << i;
    }
    return chosen;
}

// Each warp a stretch of the part's rows, 8 neighbouring rows a lane.
template <int NT>
static __device__ __forceinline__ void write_list(const choose_params &p, const part &x, const team<4 * NT> &t, const uint16_t *bin_of, choose_space<NT> &s)
{
    constexpr int STEP = 8 * WARP;
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, rows = (x.page1 - x.page0) * SR_PAGE_ROWS, end = s.end;
    const int each = (rows + CHOOSE_WARPS * STEP - 1) / (CHOOSE_WARPS * STEP) * STEP, from = w * each, to = min(from + each, rows);
    int32_t *list = p.a.list + x.u * p.a.list_stride, n = 0;
#pragma unroll 1
    for (int at = from + 8 * lane; at < to; at += STEP) n += __popc(chosen_of(bin_of, at, end));
    n = __reduce_add_sync(~0u, n);
    if (lane == 0) s.sums[w] = n;
    __syncthreads();
    t.meet(ROUND_COUNTS);
    int4 all = lane < t.n ? t.mine->counts[lane] : make_int4(0, 0, 0, 0);
    int32_t place = __reduce_add_sync(~0u, (lane < t.index ? all.x : 0) + (lane < w ? s.sums[lane] : 0));
    all.x = __reduce_add_sync(~0u, all.x), all.y = __reduce_add_sync(~0u, all.y), all.z = __reduce_add_sync(~0u, all.z);
#pragma unroll 1
    for (int base = from; base < to; base += STEP) {
        const int at = base + 8 * lane;
        unsigned chosen = at < to ? chosen_of(bin_of, at, end) : 0;
        const int32_t own = __popc(chosen), upto = sum_up_to(own);
        for (int32_t i = place + upto - own; chosen; chosen &= chosen - 1) list[i++] = x.page0 * SR_PAGE_ROWS + at + __ffs(chosen) - 1;
        place += __shfl_sync(~0u, upto, WARP - 1);
    }
    report(p, x, all.x > 0 ? CUDA_READ_NEAR_LIST : CUDA_READ_NEAR, all);
}

// ---- the kernel ----

template <int NT> static __device__ __forceinline__ void clear(choose_space<NT> &s, uint16_t *bin_of, const part &x)
{
    const uint32_t two = NO_BIN << 16 | NO_BIN;
    const uint4 none = make_uint4(two, two, two, two);
#pragma unroll 1
    for (int i = threadIdx.x; i < CHOOSE_BINS * NT; i += CHOOSE_THREADS) ((uint4 *)s.ex.sums)[i] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (int i = threadIdx.x; i < (x.page1 - x.page0) * SR_PAGE_ROWS / 8; i += CHOOSE_THREADS) ((uint4 *)bin_of)[i] = none;
    static_assert(CHOOSE_BINS == CHOOSE_THREADS, "one bin a thread");
    s.rows[threadIdx.x] = 0;
    if (threadIdx.x == 0) s.all = !(x.eps > 0), s.none = 1, s.end = s.plain_end = 0;
}

static __device__ __forceinline__ void count_rows(const choose_params &p, const part &x)
{
    if (threadIdx.x != 0 || !p.a.counters) return;
    const int32_t near = min(p.a.n_sinks + p.a.window, x.len), far = min(x.end, x.page1 * SR_PAGE_ROWS) - max(x.first, x.page0 * SR_PAGE_ROWS);
    const int32_t parts = gridDim.x;
    atomicAdd((unsigned long long *)&p.a.counters[x.u].again_rows, (unsigned long long)((near - x.index + parts - 1) / parts));
    atomicAdd((unsigned long long *)&p.a.counters[x.u].y_rows, (unsigned long long)max(far, 0));
}

// Whether nothing far is listed, nor counted.
template <int NT> static __device__ __forceinline__ bool is_plain(const choose_params &p, const part &x, const choose_space<NT> &s)
{
    return s.none && !p.a.keep && !(p.a.found && p.a.found[x.u].n > 0);
}

template <int BITS, int NT> __global__ void __launch_bounds__(CHOOSE_THREADS, 1) choose_kernel_for(const __grid_constant__ choose_params p)
{
    extern __shared__ __align__(128) char space[];
    choose_space<NT> &s = *(choose_space<NT> *)space;
    if (!p.a.after_encode) wait_for_previous();
    let_next_start();
    query_loads<NT> queries;
    const struct sketch_basis basis = p.a.sketch.basis[blockIdx.y];
    const part x = part_of(p);
    queries.load_rows(p, blockIdx.y);
    if (!x.routed) {
        wait_for_previous();
        report_all(p, x);
        return;
    }
    const team<4 * NT> t(p, &s.ex, s.rounds);
    if (threadIdx.x == 0) t.expect(p.group, p.head_dim);
    t.begin();
    // what is read first is asked for first
    const int w = threadIdx.x / WARP, fresh = (x.end - 1) / SR_PAGE_ROWS - x.page0 - w;
    const bool is_fresh = p.a.after_encode && fresh % CHOOSE_WARPS == 0 && t.index == t.n - 1;
    uint16_t *bin_of = p.rows_room ? (uint16_t *)(space + p.rows_at) : p.w.bin_of + (size_t)x.u * p.w.max_len + (size_t)x.page0 * SR_PAGE_ROWS;
    const char *slots = space + p.slots_at + w * p.ring * p.page_bytes;
    page_stream pages;
    pages.begin(p.cache.y_page + (size_t)x.u * p.cache.max_pages + x.page0 + w, (x.page1 - x.page0 - w + CHOOSE_WARPS - 1) / CHOOSE_WARPS,
                is_fresh ? fresh / CHOOSE_WARPS : -1, p.ring, p.page_bytes, (void *)slots, s.full[w]);
    {
        const int j = t.index + t.n * w;
        row_of_warp row;
        row.load(basis.synthesis + (size_t)j * p.head_dim, j < p.head_dim ? p.head_dim : 0);
        near_rows<NT> near(p, x);
        queries.load_basis(p, basis);
        clear(s, bin_of, x);
        pages.start();
        near.load_first();
        queries.store(p, s);
        __syncthreads();
        t.began();
        project(p, t, basis.synthesis, row, s);
        near.attend(s);
        t.meet(ROUND_QUERY);
    }
    find_starts(p, t.mine->z, s);
    make_fragments<NT>(p, t.mine->z, s);
    pages.complete();
    const float cut = cut_of(x.eps, x.end - x.first);
    const bin_rule rule = {cut, CHOOSE_BINS / -cut, p.a.keep ? p.a.keep[x.u] : -1.0f};
    float base[NT], l[NT], peak[NT]; // base, in the second pass: totals
#pragma unroll
    for (int n = 0; n < NT; n++) base[n] = l[n] = 0, peak[n] = -CUDART_INF_F;
#pragma unroll 1
    for (int pass = 0; pass < 2; pass++) {
        for_pages<BITS, NT>(p, x, s, pages, pass == 1, base, [&](const int *page, page_scores<NT> &y) {
            if (__builtin_expect(pass == 0 && p.a.logits != NULL, 0)) write_logits(p, x, page, y, base);
            if (pass == 0) add_pages(y, base, l, peak);
            else add_to_bins(rule, x, page, y, s, bin_of);
        });
        if (pass == 1) break;
        write_sums(base, l, peak, s);
        give_totals(p, t, s);
        wait_for_previous();
        t.meet(ROUND_TOTALS);
        sum_totals(p, x, t, s);
        if ((s.all && !p.a.keep) || is_plain(p, x, s)) break;
#pragma unroll
        for (int n = 0; n < NT; n++) base[n] = page_scores<NT>::head(n) < p.group ? s.total[page_scores<NT>::head(n)] : 0.0f;
    }
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
    __syncthreads();
    sum_rows(s);
    share_bins(t, s);
    find_end(p, rule, x, t, bin_of, s);
    write_list(p, x, t, bin_of, s);
}

// ---- what a launch needs ----

template <int NT> static choose_plan plan_for(const choose_params &p, int32_t n_parts, int bits, size_t room)
{
    choose_plan plan = {};
    plan.kernel = bits == 4 ? choose_kernel_for<4, NT> : choose_kernel_for<8, NT>;
    plan.n_parts = n_parts;
    const int32_t pages = (p.w.max_len / SR_PAGE_ROWS + 2) / n_parts + 1;
    size_t used = (sizeof(choose_space<NT>) + 127) / 128 * 128;
    const size_t rows = (size_t)pages * SR_PAGE_ROWS * sizeof(uint16_t);
    plan.rows_at = (int32_t)used;
    if (used + rows + 128 + 4 * (size_t)p.page_bytes * CHOOSE_WARPS <= room) plan.rows_room = pages * SR_PAGE_ROWS, used += rows;
    used = (used + 127) / 128 * 128;
    plan.slots_at = (int32_t)used;
    const int32_t most = room > used ? (int32_t)((room - used) / ((size_t)p.page_bytes * CHOOSE_WARPS)) : 0, need = (pages + CHOOSE_WARPS - 1) / CHOOSE_WARPS;
    int32_t ring = most < need ? most : need;
    ring = ring < MAX_RING ? (ring + 3) / 4 * 4 : MAX_RING; // batches of even numbers, which are scored in pairs
    if (ring > most) ring = most >= 4 ? most / 4 * 4 : most / 2 * 2;
    plan.ring = p.clusters ? ring : 0;
    plan.smem = used + (size_t)plan.ring * (size_t)p.page_bytes * CHOOSE_WARPS;
    return plan;
}

choose_plan sr_choose_plan(const choose_params &p, int32_t n_parts, int bits, size_t room)
{
    return p.group <= 4 ? plan_for<1>(p, n_parts, bits, room) : p.group <= 8 ? plan_for<2>(p, n_parts, bits, room) : plan_for<4>(p, n_parts, bits, room);
}

size_t sr_choose_exchange_bytes(int group)
{
    return group <= 4 ? sizeof(exchange<4>) : group <= 8 ? sizeof(exchange<8>) : sizeof(exchange<16>);
}

int sr_choose_threads(void) { return CHOOSE_THREADS; }

} // namespace sr
