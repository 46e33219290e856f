// SPDX-License-Identifier: Apache-2.0
//
// Estimated logits: the query in the basis, and the product with the codes of a page.
//
// The estimate is a product of codes with the projected query, split into two f16 parts and scaled by a power of two, on
// the matrix units. Codes go there as they lie: c as the bits of an f16 is c 2^-24, exactly. All logits are in powers of 2.
#ifndef SR_CUDA_SKETCH_SCORE_CUH
#define SR_CUDA_SKETCH_SCORE_CUH

#include "cuda/attn_deal.cuh"
#include "cuda/sketch_pages.cuh"

namespace sr {

constexpr float SHARE_UNIT = 1073741824.0f; // 2^30: a head's shares sum to at most 1
constexpr uint16_t NO_BIN = 0x7fff, FOUND = 0x8000; // FOUND beside the bin: read whatever is chosen

// NT: tiles of the high and low parts of 4 heads.
template <int NT> struct choose_space {
    static constexpr int H = 4 * NT;
    exchange<H> ex;
    float q[H][256];                            // the unit's queries, times scale and log2 e
    float mu[256], step[256], lambda[256];
    uint2 fragments[MAX_RANK_STEPS][NT][WARP];  // by k step: heads' high parts, then low ones
    float start[H], unscale[H];                 // of the estimate
    float2 near[CHOOSE_WARPS][H], far[CHOOSE_WARPS][H]; // maxima and sums by warp
    float total[H], far_share[H];
    uint4 own[CHOOSE_BINS * NT];                // sums of the own slice, of all bins at most
    uint32_t rows[CHOOSE_BINS];                 // of the part by bin, then up to each
    uint64_t full[CHOOSE_WARPS][2], rounds[ROUNDS];
    int32_t sums[CHOOSE_WARPS], end, all, none;
    int32_t plain_end;                          // with the other eps
};

// ---- a part of a unit ----

struct part {
    int32_t u, index, len, first, end; // far rows [first, end) of the unit
    int32_t page0, page1;              // pages of the part
    float eps;
    bool routed;
};

static __device__ __forceinline__ part part_of(const choose_params &p)
{
    part x;
    x.u = blockIdx.y;
    x.index = blockIdx.x;
    const int seq = x.u / p.n_kv_heads;
    x.len = p.cache.kv_len[seq];
    x.eps = p.a.eps[seq];
    x.first = p.a.n_sinks;
    x.end = far_end(x.len, p.a.n_sinks, p.a.window);
    x.routed = x.len >= p.a.min_len && x.len > p.a.n_sinks + p.a.window && !(p.a.trust && p.a.trust[x.u] == CUDA_WHOLE);
    const uint32_t first = x.first / SR_PAGE_ROWS, n = (x.end + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS - first;
    x.page0 = (int32_t)(first + n * blockIdx.x / gridDim.x); // below 2^32 up to 2^33 rows
    x.page1 = (int32_t)(first + n * (blockIdx.x + 1) / gridDim.x);
    return x;
}

// ---- the query in the basis ----

static __device__ __forceinline__ float sum_of_lanes(float x)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

static __device__ __forceinline__ float max_of_lanes(float x)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

// Up to 256 elements of a row over a warp: lane i has 4 from 4 i and 4 from 128 + 4 i on.
struct row_of_warp {
    float4 x[2];

    static __device__ __forceinline__ bool is_in(int i, int d) { return i * 128 + 4 * (int)(threadIdx.x % WARP) < d; }
    __device__ __forceinline__ void load(const float *row, int d)
    {
        const float4 *from = (const float4 *)row + threadIdx.x % WARP;
        x[0] = is_in(0, d) ? from[0] : make_float4(0, 0, 0, 0);
        x[1] = is_in(1, d) ? from[WARP] : make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ float dot(const float *q, int d) const // the lane's share
    {
        float y = 0;
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (is_in(i, d)) {
                const float4 z = ((const float4 *)q)[i * WARP + threadIdx.x % WARP];
                y += x[i].x * z.x + x[i].y * z.y + x[i].z * z.z + x[i].w * z.w;
            }
        return y;
    }
};

// Products of a row with the queries h0 .. h0 + 3: lane i has that of query h0 + i / 8.
template <int NT> static __device__ __forceinline__ float dot_four(const choose_space<NT> &s, const row_of_warp &row, int h0, int d)
{
    const int lane = threadIdx.x % WARP;
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; i++) y[i] = row.dot(s.q[h0 + i], d);
    const bool upper = lane & 16, odd = lane & 8;
    const float a = upper ? y[2] : y[0], b = upper ? y[3] : y[1];
    const float c = a + __shfl_xor_sync(~0u, upper ? y[0] : y[2], 16), e = b + __shfl_xor_sync(~0u, upper ? y[1] : y[3], 16);
    float z = (odd ? e : c) + __shfl_xor_sync(~0u, odd ? c : e, 8);
#pragma unroll
    for (int i = 1; i < 8; i *= 2) z += __shfl_xor_sync(~0u, z, i);
    return z;
}

// What the projection needs, on its way to shared memory.
template <int NT> struct query_loads {
    row_of_warp row; // of head `warp`
    float mu, step, lambda;

    __device__ __forceinline__ void load_rows(const choose_params &p, int u)
    {
        const int g = threadIdx.x / WARP; // as many warps as heads at most
        row.load(p.a.q + ((size_t)u * p.group + g) * p.head_dim, g < p.group ? p.head_dim : 0);
    }
    __device__ __forceinline__ void load_basis(const choose_params &p, const struct sketch_basis &basis)
    {
        const int i = threadIdx.x;
        const bool is_in = i < p.head_dim;
        mu = is_in ? basis.mu[i] : 0, step = i < p.a.sketch.rank ? basis.step[i] : 0, lambda = is_in ? basis.lambda[i] : 0;
    }
    // Zeros for absent heads; no barrier.
    __device__ __forceinline__ void store(const choose_params &p, choose_space<NT> &s)
    {
        const int i = threadIdx.x;
        const float factor = p.a.scale * LOG2E;
        if (i / WARP < choose_space<NT>::H)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const float4 x = row.x[k];
                ((float4 *)s.q[i / WARP])[k * WARP + i % WARP] = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
            }
        if (i < 256) s.mu[i] = mu, s.step[i] = step, s.lambda[i] = lambda;
    }
};

// The part's coordinates of the projected queries, given to all parts. `row` is the warp's first row of the matrix.
template <int NT>
static __device__ __forceinline__ void project(const choose_params &p, const team<4 * NT> &t, const float *synthesis, row_of_warp &row, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, d = p.head_dim, stride = t.n * CHOOSE_WARPS;
#pragma unroll 1
    for (int j = t.index + t.n * (threadIdx.x / WARP); j < d;) {
        const int next = j + stride;
#pragma unroll 1
        for (int h0 = 0; h0 < p.group; h0 += 4) {
            const float z = dot_four(s, row, h0, d);
            const int h = h0 + lane / 8;
            for (int i = lane % 8; i < t.n && h < p.group; i += 8) t.give(i, &s.ex.z[h][j], z, ROUND_QUERY);
        }
        if (next < d) row.load(synthesis + (size_t)next * d, d);
        j = next;
    }
}

// A power of two above |top|, by its bits; 1 for what is no number.
static __device__ __forceinline__ float power_above(float top)
{
    const uint32_t e = __float_as_uint(top) >> 23 & 255u;
    return e == 255u ? 1.0f : __uint_as_float(min(e + 1, 253u) << 23);
}

// Where each head's estimate starts, from the projected queries of all parts. Ends with a barrier.
template <int NT> static __device__ __forceinline__ void find_starts(const choose_params &p, const float (*z)[256], choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, d = p.head_dim, rank = p.a.sketch.rank;
    const int g = threadIdx.x / WARP; // 16 warps, up to 16 heads
    if (g < p.group) {
        const float centre = (float)(1 << (p.a.sketch.bits - 1)) - 0.5f;
        float base = 0, top = 0;
#pragma unroll 2
        for (int i = lane; i < d; i += WARP) {
            const float x = z[g][i], y = x * s.step[i];
            base += s.q[g][i] * s.mu[i] + 0.5f * LN2 * (i < rank ? y * y * (1.0f / 12.0f) : x * x * s.lambda[i]) - centre * y;
            top = fmaxf(top, fabsf(y));
        }
        base = sum_of_lanes(base), top = max_of_lanes(top);
        if (lane == 0) s.start[g] = base, s.unscale[g] = power_above(top);
    }
    __syncthreads();
}

// B fragments of the projected queries: of each head a column of high parts and one of low parts beside it, so that a lane
// has both. Ends with a barrier.
template <int NT> static __device__ __forceinline__ void make_fragments(const choose_params &p, const float (*z)[256], choose_space<NT> &s)
{
    const int steps = (p.a.sketch.rank + 15) / 16;
#pragma unroll 1
    for (int i = threadIdx.x; i < steps * NT * WARP; i += CHOOSE_THREADS) {
        const int lane = i % WARP, n = i / WARP % NT, step = i / WARP / NT, head = 4 * n + lane / 8, j = step * 16 + 4 * (lane & 3);
        const bool low = lane >> 2 & 1, is_in = head < p.group;
        const float inverse = is_in ? __uint_as_float(0x7f000000u - __float_as_uint(s.unscale[head])) : 0.0f; // of a power of two
        float x[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            x[c] = is_in && j + c < p.a.sketch.rank ? z[head][j + c] * s.step[j + c] * inverse : 0.0f;
            if (low) x[c] -= __half2float(__float2half_rn(x[c]));
        }
        s.fragments[step][n][lane] = make_uint2(pack<ELEM_F16>(x[0], x[1]), pack<ELEM_F16>(x[2], x[3]));
    }
    __syncthreads();
}

// ---- estimated logits ----

// Codes of 16 rows by 16 coordinates as f16. With 4 bits those of rows 8 to 15 are 16 times too large.
template <int BITS> static __device__ __forceinline__ void code_fragment(uint32_t *a, const uint32_t *words, int i)
{
    if constexpr (BITS == 4) {
        const uint32_t x = words[i], y = x >> 8;
        a[0] = x & 0x000f000fu, a[1] = x & 0x00f000f0u, a[2] = y & 0x000f000fu, a[3] = y & 0x00f000f0u;
    } else {
#pragma unroll
        for (int n = 0; n < 4; n++) a[n] = __byte_perm(words[2 * i + (n & 1)], 0, n < 2 ? 0x4140 : 0x4342);
    }
}

// One k step of a page: what a lane has of its codes.
template <int BITS> struct step_words {
    uint32_t w[BITS];

    __device__ __forceinline__ void load(uint64_t page, bool in_shared, int step)
    {
        const uint64_t from = page + (uint32_t)(step * WARP + threadIdx.x % WARP) * (4 * BITS);
#pragma unroll
        for (int i = 0; i < BITS; i += 4) {
            if (in_shared)
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w[i]), "=r"(w[i + 1]), "=r"(w[i + 2]), "=r"(w[i + 3]) : "r"((uint32_t)from + 4 * i));
            else load16(w + i, (const uint8_t *)from + 4 * i);
        }
    }
};

// What turns the products of a lane into logits, and the fragments of the first k steps.
template <int BITS, int NT> struct page_factors {
    static constexpr int KEPT = NT == 1 ? 2 : 1;
    float start[NT], unscale[NT];
    uint2 b[KEPT][NT];

    __device__ __forceinline__ page_factors(const choose_params &p, const choose_space<NT> &s)
    {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const int h = 4 * n + lane % 4;
            start[n] = h < p.group ? s.start[h] : -CUDART_INF_F;
            unscale[n] = h < p.group ? s.unscale[h] * 0x1p24f : 0.0f;
#pragma unroll
            for (int i = 0; i < KEPT; i++) b[i][n] = i * 16 < p.a.sketch.rank ? s.fragments[i][n][lane] : make_uint2(0, 0);
        }
    }
};

// The logits that a lane has of pages that are scored together, so that one's latencies hide another's: of rows row(i) of
// page i / 8, for heads head(n).
template <int NT> struct page_scores {
    static constexpr int PAGES = NT == 1 ? 2 : 1, ROWS = 8 * PAGES;
    float x[ROWS][NT];

    static __device__ __forceinline__ int row(int i) { return i % 8 * 8 + (int)(threadIdx.x % WARP >> 2); }
    static __device__ __forceinline__ int head(int n) { return 4 * n + (threadIdx.x & 3); }
    __device__ __forceinline__ float max_of_head(int n) const
    {
        float top[ROWS / 2];
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) top[i] = fmaxf(x[2 * i][n], x[2 * i + 1][n]);
#pragma unroll
        for (int k = ROWS / 4; k > 0; k /= 2)
#pragma unroll
            for (int i = 0; i < k; i++) top[i] = fmaxf(top[i], top[i + k]);
        return top[0];
    }
};

template <int BITS, int NT> static __device__ __forceinline__ void add_step(const step_words<BITS> &words, const uint2 *b, float (*acc)[NT][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t a[4];
        code_fragment<BITS>(a, words.w, i);
#pragma unroll
        for (int n = 0; n < NT; n++) mma<ELEM_F16>(acc[i][n], a, (const uint32_t *)&b[n]);
    }
}

// Logits less `base`.
template <int BITS, int NT>
static __device__ __forceinline__ void score_pages(const choose_space<NT> &s, const page_factors<BITS, NT> &f, const uint64_t *page, bool in_shared,
                                                   int steps, const float *base, page_scores<NT> &y)
{
    constexpr int PAGES = page_scores<NT>::PAGES, KEPT = page_factors<BITS, NT>::KEPT;
    float acc[PAGES][4][NT][4] = {};
    step_words<BITS> words[PAGES][KEPT];
    if (in_shared)
#pragma unroll
        for (int k = 0; k < PAGES * KEPT; k++) words[k / KEPT][k % KEPT].load(page[k / KEPT], true, min(k % KEPT, steps - 1)); // a step that is not there weighs nothing
    else
#pragma unroll
        for (int k = 0; k < PAGES * KEPT; k++) words[k / KEPT][k % KEPT].load(page[k / KEPT], false, min(k % KEPT, steps - 1));
#pragma unroll
    for (int i = 0; i < KEPT; i++)
#pragma unroll
        for (int j = 0; j < PAGES; j++) add_step<BITS, NT>(words[j][i], f.b[i], acc[j]);
#pragma unroll 1
    for (int i = KEPT; i < steps; i++) {
        uint2 b[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) b[n] = s.fragments[i][n][threadIdx.x % WARP];
#pragma unroll
        for (int j = 0; j < PAGES; j++) {
            step_words<BITS> more;
            more.load(page[j], in_shared, i);
            add_step<BITS, NT>(more, b, acc[j]);
        }
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const float from = f.start[n] - base[n], high = BITS == 4 ? f.unscale[n] * 0x1p-4f : f.unscale[n];
#pragma unroll
        for (int i = 0; i < page_scores<NT>::ROWS; i++) {
            const float *c = acc[i / 8][i / 2 % 4][n] + i % 2 * 2;
            y.x[i][n] = from + (c[0] + c[1]) * (i % 2 ? high : f.unscale[n]);
        }
    }
}

// Calls take(page numbers, logits less base) for the pages of a part that are this warp's. Rows that are not far have -inf.
template <int BITS, int NT, typename F>
static __device__ __forceinline__ void for_pages(const choose_params &p, const part &x, const choose_space<NT> &s, page_stream &pages,
                                                 bool is_second, const float *base, F take)
{
    constexpr int PAGES = page_scores<NT>::PAGES;
    const int steps = (p.a.sketch.rank + 15) / 16, from = is_second ? pages.kept : 0;
    const page_factors<BITS, NT> factors(p, s);
    const bool in_shared = pages.batch > 0;
#pragma unroll 1
    for (int b = from; b < from + pages.batches; b++) {
        const int count = pages.count_of(b), first = x.page0 + (int)threadIdx.x / WARP + (in_shared ? pages.base_of(b) : 0) * CHOOSE_WARPS;
        pages.wait(b);
#pragma unroll 1
        for (int i = 0; i < count; i += PAGES) {
            uint64_t page[PAGES];
            int at[PAGES];
            bool whole = i + PAGES <= count;
#pragma unroll
            for (int j = 0; j < PAGES; j++) {
                page[j] = j == 0 || i + j < count ? pages.page(b, i + j) : page[0];
                at[j] = first + (i + j) * CHOOSE_WARPS;
                whole &= at[j] * SR_PAGE_ROWS >= x.first && (at[j] + 1) * SR_PAGE_ROWS <= x.end;
            }
            page_scores<NT> y;
            score_pages<BITS, NT>(s, factors, page, in_shared, steps, base, y);
            if (__builtin_expect(!whole, 0))
#pragma unroll
                for (int k = 0; k < y.ROWS; k++) {
                    const int row = at[k / 8] * SR_PAGE_ROWS + y.row(k);
#pragma unroll
                    for (int n = 0; n < NT; n++)
                        if (row < x.first || row >= x.end || i + k / 8 >= count) y.x[k][n] = -CUDART_INF_F;
                }
            take(at, y);
        }
        pages.release(b, is_second);
    }
}

} // namespace sr

#endif
