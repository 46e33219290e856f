// SPDX-License-Identifier: Apache-2.0
//
// The choice of `mass` in one launch: blocks that all run at once, each with one stretch of a unit's rows, and two
// barriers over all of them. First the exact logits of the near rows and the estimated ones of the far rows give every
// head's total; then, with the totals known, the shares of the far rows are summed in bins; then the bins say which rows
// are read, and the lists are written. Shares are summed as whole numbers, so that the order does not show.
#include "cuda/sketch_score.cuh"

namespace sr {

// ---- one barrier over all blocks of the launch ----

static __device__ void wait_for_all(unsigned *barrier)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned long long *count = (unsigned long long *)barrier, before, now;
        asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(count) : "memory");
        const unsigned long long target = (before / gridDim.x + 1) * gridDim.x;
        do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(count) : "memory");
        while (now < target);
    }
    __syncthreads();
}

// ---- totals ----

static __device__ __forceinline__ void add_logit(float x, float &m, float &l)
{
    if (x > m) l *= m == -CUDART_INF_F ? 0.0f : __expf(m - x), m = x;
    if (x == x && m == -CUDART_INF_F) return; // -inf, and nothing else so far
    l += __expf(x - m);
}

// Exact logits of the part's share of the near rows: its maxima and sums of all heads, by warps.
static __device__ int32_t attend_near(const choose_params &p, const part &x, choose_space &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, d = p.head_dim;
    const int n_near = min(p.a.n_sinks + p.a.window, x.len);
    const float scale = p.type == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[x.u % p.n_kv_heads] : 1.0f;
    float m = -CUDART_INF_F, l = 0; // of head `lane`
    int32_t rows = 0;
    for (int i = x.index + p.n_parts * w; i < n_near; i += p.n_parts * CHOOSE_WARPS) {
        const int row = i < p.a.n_sinks ? i : x.len - p.a.window + i - p.a.n_sinks;
        const uint8_t *page = (const uint8_t *)p.cache.k_page[(int64_t)x.u * p.cache.max_pages + row / SR_PAGE_ROWS];
        float k[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            k[j] = lane + j * WARP < d ? element_of(p.type, page, row % SR_PAGE_ROWS, d, lane + j * WARP) * scale : 0.0f;
        float mine = 0;
        for (int g = 0; g < p.group; g++) {
            float y = 0;
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (lane + j * WARP < d) y += s.q[g * d + lane + j * WARP] * k[j];
            y = sum_of_lanes(y);
            if (lane == g) mine = y;
        }
        add_logit(mine, m, l);
        rows++;
    }
    if (lane < 16) s.m[w][lane] = m, s.l[w][lane] = l;
    __syncthreads();
    return rows;
}

// Joins the warps' states in order, one thread a head, and leaves the part's.
static __device__ void write_part(const choose_params &p, int slot, const choose_space &s, float *m_out, float *l_out)
{
    if ((int)threadIdx.x >= p.group) return;
    const int h = threadIdx.x;
    float m = -CUDART_INF_F, l = 0;
    for (int w = 0; w < CHOOSE_WARPS; w++) m = s.m[w][h] > m ? s.m[w][h] : m;
    for (int w = 0; w < CHOOSE_WARPS; w++) l += s.m[w][h] == -CUDART_INF_F ? s.l[w][h] : s.l[w][h] * expf(s.m[w][h] - m);
    m_out[slot * 16 + h] = m;
    l_out[slot * 16 + h] = l;
}

template <int BITS, int NT> static __device__ void scan(const choose_params &p, const part &x, int item, choose_space &s)
{
    constexpr int HEADS = NT == 4 ? 2 : 1;
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, g = lane >> 2, t = lane & 3;
    float m[HEADS][2], l[HEADS][2];
    int32_t near_rows = 0, far_rows = 0;
    project(p, x.u, s);
    make_fragments<NT>(p, s);
    near_rows = attend_near(p, x, s);
    write_part(p, item, s, p.w.near_m, p.w.near_l);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < HEADS; n++) m[n][0] = m[n][1] = -CUDART_INF_F, l[n][0] = l[n][1] = 0;
    for_pages<BITS, NT>(p, x, s, [&](int page, float (&y)[4][HEADS][4]) {
        far_rows += min(x.end, (page + 1) * SR_PAGE_ROWS) - max(x.first, page * SR_PAGE_ROWS);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int n = 0; n < HEADS; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int row = page * SR_PAGE_ROWS + i * 16 + g + c / 2 * 8, head = 8 * n + 2 * t + (c & 1);
                    if (row < x.first || row >= x.end) y[i][n][c] = -CUDART_INF_F;
                    else if (p.a.logits && head < p.group) p.a.logits[((int64_t)x.u * p.group + head) * p.a.list_stride + row] = y[i][n][c];
                }
#pragma unroll
        for (int n = 0; n < HEADS; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float top = m[n][h];
#pragma unroll
                for (int i = 0; i < 4; i++) top = fmaxf(top, fmaxf(y[i][n][h], y[i][n][h + 2]));
                const float base = top == -CUDART_INF_F ? 0.0f : top;
                float sum = l[n][h] * __expf(m[n][h] - base);
#pragma unroll
                for (int i = 0; i < 4; i++) sum += __expf(y[i][n][h] - base) + __expf(y[i][n][h + 2] - base);
                m[n][h] = top, l[n][h] = sum;
            }
    });
#pragma unroll
    for (int n = 0; n < HEADS; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = m[n][h];
#pragma unroll
            for (int i = 4; i < WARP; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
            float sum = m[n][h] == -CUDART_INF_F ? l[n][h] : l[n][h] * expf(m[n][h] - top);
#pragma unroll
            for (int i = 4; i < WARP; i *= 2) sum += __shfl_xor_sync(~0u, sum, i);
            if (g == 0) s.m[w][8 * n + 2 * t + h] = top, s.l[w][8 * n + 2 * t + h] = sum;
        }
    __syncthreads();
    write_part(p, item, s, p.w.share_m, p.w.share_l);
    if (lane == 0 && p.a.counters) {
        atomicAdd((unsigned long long *)&p.a.counters[x.u].again_rows, (unsigned long long)near_rows);
        atomicAdd((unsigned long long *)&p.a.counters[x.u].y_rows, (unsigned long long)far_rows);
    }
}

// The unit's totals from its parts, one warp a head. Sets s.all where some total is no number, s.none where nothing far is needed.
static __device__ void sum_totals(const choose_params &p, const part &x, choose_space &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, first = x.u * p.n_parts;
    if (threadIdx.x == 0) s.all = !(x.eps > 0), s.none = 1;
    __syncthreads();
    for (int h = w; h < p.group; h += CHOOSE_WARPS) {
        double top = -CUDART_INF, near = 0, far = 0;
        for (int i = lane; i < p.n_parts; i += WARP) {
            const double a = __ldcg(p.w.near_m + (first + i) * 16 + h), b = __ldcg(p.w.share_m + (first + i) * 16 + h);
            top = a > top ? a : top;
            top = b > top ? b : top;
        }
#pragma unroll
        for (int i = 1; i < WARP; i *= 2) {
            const double other = __shfl_xor_sync(~0u, top, i);
            top = other > top ? other : top;
        }
        for (int i = lane; i < p.n_parts; i += WARP) {
            const float a = __ldcg(p.w.near_l + (first + i) * 16 + h), b = __ldcg(p.w.share_l + (first + i) * 16 + h);
            near += a == 0 ? 0 : a * (double)expf((float)(__ldcg(p.w.near_m + (first + i) * 16 + h) - top));
            far += b == 0 ? 0 : b * (double)expf((float)(__ldcg(p.w.share_m + (first + i) * 16 + h) - top));
        }
#pragma unroll
        for (int i = 1; i < WARP; i *= 2) near += __shfl_xor_sync(~0u, near, i), far += __shfl_xor_sync(~0u, far, i);
        if (lane != 0) continue;
        const double total = top + (double)logf((float)(near + far));
        s.total[h] = (float)total;
        if (p.a.total && x.index == 0) p.a.total[x.u * p.group + h] = (float)total;
        s.far_share[h] = (float)(far / (near + far));
        if (!isfinite(total)) s.all = 1;
        if (!(far / (near + far) <= x.eps)) s.none = 0;
    }
    __syncthreads();
}

// ---- bins ----

static __device__ __forceinline__ bool drawn(int32_t u, int32_t row, float share)
{
    uint32_t h = (uint32_t)row * 2654435761u ^ (uint32_t)u * 40503u;
    h = (h ^ h >> 15) * 2246822519u;
    h = (h ^ h >> 13) * 3266489917u;
    return (float)(h >> 8) * (1.0f / 16777216.0f) < share;
}

static __device__ __forceinline__ float cut_of(float eps, int32_t n_far)
{
    const float cut = logf(eps / (float)n_far);
    return cut < -1e-3f ? cut : -1e-3f;
}

static __device__ __forceinline__ int32_t n_found(const choose_params &p, int u) { return p.a.found ? p.a.found[u].n : 0; }

// Found sink i of the unit, or -1 where it is not one of rows [first, end).
static __device__ __forceinline__ int32_t found_row(const choose_params &p, int u, int i, int32_t first, int32_t end)
{
    const int32_t row = i < n_found(p, u) ? p.a.found[u].rows[i] : -1;
    return row >= first && row < end ? row : -1;
}

// The bin of each row of a part, and what the part adds to the unit's.
template <int BITS, int NT> static __device__ void fill_bins(const choose_params &p, const part &x, int item, uint16_t *bin_of, choose_space &s)
{
    constexpr int HEADS = NT == 4 ? 2 : 1;
    const int lane = threadIdx.x % WARP, g = lane >> 2, t = lane & 3;
    const float cut = cut_of(x.eps, max(x.end - x.first, 1)), per_nat = CHOOSE_BINS / -cut;
    for (int i = threadIdx.x; i < CHOOSE_BINS * 16; i += blockDim.x) s.bins[i] = 0;
    for (int i = threadIdx.x; i < CHOOSE_BINS; i += blockDim.x) s.rows[i] = 0;
    __syncthreads();
    for_pages<BITS, NT>(p, x, s, [&](int page, float (&y)[4][HEADS][4]) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int row = page * SR_PAGE_ROWS + i * 8 + g;
            float top = -CUDART_INF_F;
#pragma unroll
            for (int n = 0; n < HEADS; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int head = 8 * n + 2 * t + c, h = NT == 1 ? head & 3 : head;
                    float &v = y[i / 2][n][i % 2 * 2 + c];
                    v = h < p.group ? v - s.total[h] : -CUDART_INF_F;
                    top = fmaxf(top, v);
                }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            const bool inside = row >= x.first && row < x.end;
            int bin = (int)fminf(fmaxf(-top * per_nat, 0.0f), CHOOSE_BINS - 1.0f);
            bool kept = inside && top >= cut;
            if (p.a.keep) bin = 0, kept = inside && drawn(x.u, row, p.a.keep[x.u]);
            if (t == 0 && inside) bin_of[row] = kept ? (uint16_t)bin : NO_BIN;
            if (!kept) continue;
            if (t == 0) atomicAdd(&s.rows[bin], 1u);
#pragma unroll
            for (int n = 0; n < HEADS; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int head = 8 * n + 2 * t + c;
                    if (head < p.group) atomicAdd(&s.bins[bin * 16 + head], (uint32_t)(fminf(__expf(y[i / 2][n][i % 2 * 2 + c]), 1.0f) * SHARE_UNIT));
                }
        }
    });
    __syncthreads();
    if (threadIdx.x < SR_SINKS_MOST) {
        const int32_t row = found_row(p, x.u, threadIdx.x, max(x.first, x.page0 * SR_PAGE_ROWS), min(x.end, x.page1 * SR_PAGE_ROWS));
        if (row >= 0) bin_of[row] |= FOUND;
    }
    uint32_t *bins = p.w.bins + (int64_t)x.u * CHOOSE_BINS * 16;
    for (int i = threadIdx.x; i < CHOOSE_BINS * 16; i += blockDim.x)
        if (s.bins[i]) atomicAdd(&bins[i], s.bins[i]);
    static_assert(CHOOSE_BINS == CHOOSE_THREADS, "one bin a thread"); // rows in bins up to each
    int32_t all;
    const int32_t own = (int32_t)s.rows[threadIdx.x];
    p.w.rows_below[(int64_t)item * CHOOSE_BINS + threadIdx.x] = (uint32_t)(sum_before(own, s.sums, &all) + own);
}

// ---- the choice ----

// Rows of the unit's parts up to bin `end`, those of parts before this one in *before; one warp, the sums in all lanes.
static __device__ int32_t rows_up_to(const choose_params &p, const part &x, int end, int32_t *before)
{
    int32_t sum = 0, all = 0;
    for (int i = threadIdx.x % WARP; i < p.n_parts && end > 0; i += WARP) {
        const int32_t n = (int32_t)__ldcg(p.w.rows_below + ((int64_t)x.u * p.n_parts + i) * CHOOSE_BINS + end - 1);
        sum += i < x.index ? n : 0;
        all += n;
    }
    *before = __reduce_add_sync(~0u, sum);
    return __reduce_add_sync(~0u, all);
}

// The least number of whole bins that brings every head within eps, and what is left of each head's far share.
static __device__ void find_end(const choose_params &p, const part &x, const uint16_t *bin_of, choose_space &s)
{
    const float plain = p.a.plain_eps ? p.a.plain_eps[x.u / p.n_kv_heads] : x.eps;
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP;
    const uint32_t *bins = p.w.bins + (int64_t)x.u * CHOOSE_BINS * 16;
    if (threadIdx.x == 0) s.end = p.a.keep ? 1 : 0, s.plain_end = 0;
    for (int i = threadIdx.x; i < CHOOSE_BINS * 16; i += blockDim.x) s.bins[i] = __ldcg(bins + i);
    __syncthreads();
    for (int h = w; h < p.group; h += CHOOSE_WARPS) { // 16 neighbouring bins a lane
        uint32_t own = 0;
        for (int i = 0; i < 16; i++) own += s.bins[(lane * 16 + i) * 16 + h];
        uint32_t sum = own;
#pragma unroll
        for (int j = 1; j < WARP; j *= 2) {
            const uint32_t y = __shfl_up_sync(~0u, sum, j);
            if (lane >= j) sum += y;
        }
        uint32_t upto = sum - own;
        int end = CHOOSE_BINS, plain_end = CHOOSE_BINS; // the first bin after which little enough is left
        for (int i = 0; i < 16; i++) {
            upto += s.bins[(lane * 16 + i) * 16 + h];
            const float left = s.far_share[h] - (float)upto / SHARE_UNIT;
            if (end == CHOOSE_BINS && left <= x.eps) end = lane * 16 + i + 1;
            if (plain_end == CHOOSE_BINS && left <= plain) plain_end = lane * 16 + i + 1;
        }
        end = __reduce_min_sync(~0u, end);
        plain_end = __reduce_min_sync(~0u, plain_end);
        if (lane == 0 && !p.a.keep && !(s.far_share[h] <= x.eps)) atomicMax(&s.end, end);
        if (lane == 0 && !(s.far_share[h] <= plain)) atomicMax(&s.plain_end, plain_end);
    }
    __syncthreads();
    for (int h = w; h < p.group; h += CHOOSE_WARPS) {
        uint32_t sum = 0;
        for (int i = lane; i < s.end; i += WARP) sum += s.bins[i * 16 + h];
        sum = __reduce_add_sync(~0u, sum);
        if (lane == 0) s.left[h] = fmaxf(s.far_share[h] - (float)sum / SHARE_UNIT, 0.0f);
    }
    // where the part's rows go
    if (w == 0) {
        int32_t before, ignored;
        const int32_t chosen = rows_up_to(p, x, s.end, &before), plain_rows = p.a.n_chosen ? rows_up_to(p, x, s.plain_end, &ignored) : 0;
        const int32_t row = lane < SR_SINKS_MOST ? found_row(p, x.u, lane, x.first, x.end) : -1;
        const bool more = row >= 0 && (__ldcg(bin_of + row) & ~FOUND) >= s.end; // no bin has it
        const int32_t n_more = __popc(__ballot_sync(~0u, more)), more_before = __popc(__ballot_sync(~0u, more && row < x.page0 * SR_PAGE_ROWS));
        if (lane == 0) s.offset = before + more_before, s.n_list = chosen + n_more, s.n_chosen[0] = chosen, s.n_chosen[1] = plain_rows;
    }
    __syncthreads();
}

// Eight neighbouring rows a thread.
static __device__ void write_list(const choose_params &p, const part &x, const uint16_t *bin_of, choose_space &s)
{
    int32_t *list = p.a.list + x.u * p.a.list_stride, at = s.offset;
    const int first = max(x.first, x.page0 * SR_PAGE_ROWS), end = min(x.end, x.page1 * SR_PAGE_ROWS);
    for (int base = first & ~7; base < end; base += 8 * CHOOSE_THREADS) {
        const int row = base + 8 * threadIdx.x;
        unsigned kept = 0;
        if (row < end) {
            const uint4 bins = *(const uint4 *)(bin_of + row);
            const uint32_t words[4] = {bins.x, bins.y, bins.z, bins.w};
#pragma unroll
            for (int i = 0; i < 8; i++)
            {
                const int bin = (int)(words[i / 2] >> i % 2 * 16 & 0xffffu);
                if (row + i >= first && row + i < end && (bin < s.end || bin & FOUND)) kept |= 1u << i;
            }
        }
        int32_t all, before = sum_before(__popc(kept), s.sums, &all);
        for (; kept; kept &= kept - 1) list[at + before++] = row + __ffs(kept) - 1;
        at += all;
        __syncthreads();
    }
}

static __device__ void report(const choose_params &p, const part &x, int kind, int32_t n_list, const int32_t *n_chosen, const float *left)
{
    if (x.index != 0) return;
    if (threadIdx.x == 0) p.a.kinds[x.u] = (uint8_t)kind, p.a.n_list[x.u] = n_list;
    if (threadIdx.x < 2 && p.a.n_chosen) p.a.n_chosen[2 * x.u + threadIdx.x] = n_chosen ? n_chosen[threadIdx.x] : 0;
    if ((int)threadIdx.x < p.group && p.a.total && !x.routed) p.a.total[x.u * p.group + threadIdx.x] = CUDART_NAN_F;
    if ((int)threadIdx.x < p.group && p.a.unread) p.a.unread[x.u * p.group + threadIdx.x] = left ? left[threadIdx.x] : x.routed ? 0.0f : CUDART_NAN_F;
}

static __device__ void choose(const choose_params &p, const part &x, const uint16_t *bin_of, choose_space &s)
{
    if (!x.routed || (s.all && !p.a.keep)) {
        report(p, x, CUDA_READ_ALL, 0, NULL, NULL);
        return;
    }
    find_end(p, x, bin_of, s);
    if (s.n_list > 0) write_list(p, x, bin_of, s);
    report(p, x, s.n_list > 0 ? CUDA_READ_NEAR_LIST : CUDA_READ_NEAR, s.n_list, s.n_chosen, s.left);
}

// A block has one item, or several where there are more units than blocks; then it makes its unit's numbers anew in each phase.
template <int BITS, int NT> __global__ void __launch_bounds__(CHOOSE_THREADS, 1) choose_kernel_for(const __grid_constant__ choose_params p)
{
    extern __shared__ __align__(16) char space[];
    choose_space &s = *(choose_space *)space;
    wait_for_previous();
    let_next_start();
    const int n_items = p.n_units * p.n_parts;
    const bool is_one = n_items <= (int)gridDim.x;
    for (int item = blockIdx.x; item < n_items; item += gridDim.x) {
        const part x = part_of(p, item);
        uint32_t *bins = p.w.bins + (int64_t)x.u * CHOOSE_BINS * 16;
        for (int i = x.index * CHOOSE_THREADS + threadIdx.x; i < CHOOSE_BINS * 16; i += p.n_parts * CHOOSE_THREADS) bins[i] = 0;
        if (x.routed) scan<BITS, NT>(p, x, item, s);
    }
    wait_for_all(p.w.barrier);
    for (int item = blockIdx.x; item < n_items; item += gridDim.x) {
        const part x = part_of(p, item);
        if (!x.routed) continue;
        if (!is_one) {
            __syncthreads();
            project(p, x.u, s);
            make_fragments<NT>(p, s);
        }
        sum_totals(p, x, s);
        fill_bins<BITS, NT>(p, x, item, p.w.bin_of + (int64_t)x.u * p.w.max_len, s);
    }
    wait_for_all(p.w.barrier);
    for (int item = blockIdx.x; item < n_items; item += gridDim.x) {
        const part x = part_of(p, item);
        if (!is_one && x.routed) {
            __syncthreads();
            sum_totals(p, x, s);
        }
        choose(p, x, p.w.bin_of + (int64_t)x.u * p.w.max_len, s);
    }
}

size_t sr_choose_smem(void) { return sizeof(choose_space); }
int sr_choose_threads(void) { return CHOOSE_THREADS; }

choose_kernel *choose_kernel_of(int bits, int group)
{
    if (bits == 4) return group <= 4 ? choose_kernel_for<4, 1> : group <= 8 ? choose_kernel_for<4, 2> : choose_kernel_for<4, 4>;
    return group <= 4 ? choose_kernel_for<8, 1> : group <= 8 ? choose_kernel_for<8, 2> : choose_kernel_for<8, 4>;
}

} // namespace sr
