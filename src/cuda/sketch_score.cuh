// SPDX-License-Identifier: Apache-2.0
//
// Estimated logits: the query in the basis, and the product with the codes of a page.
//
// The estimate is a product of codes (exact in f16) with the projected query, split into two f16 parts and scaled by a
// power of two, on the matrix units.
#ifndef SR_CUDA_SKETCH_SCORE_CUH
#define SR_CUDA_SKETCH_SCORE_CUH

#include "cuda/attn_deal.cuh"
#include "cuda/sketch_parts.cuh"

namespace sr {

constexpr int CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / WARP;
constexpr float SHARE_UNIT = 1073741824.0f; // 2^30: a head's shares sum to at most 1
constexpr uint16_t NO_BIN = 0x7fff, FOUND = 0x8000; // FOUND beside the bin: read whatever is chosen

struct choose_space {
    float q[16 * 256];                          // the unit's queries, then its projected ones
    float z[16 * 256];
    uint2 fragments[MAX_RANK_STEPS][4][WARP];   // by k step: heads' high parts, then low ones
    float start[16], unscale[16];               // of the estimate
    float m[CHOOSE_WARPS][16], l[CHOOSE_WARPS][16];
    float total[16], far_share[16], left[16];
    uint32_t bins[CHOOSE_BINS * 16];
    uint32_t rows[CHOOSE_BINS];
    int32_t sums[CHOOSE_WARPS], end, offset, n_list, all, none;
    int32_t plain_end, n_chosen[2];             // with the other eps; rows without found sinks
};

// ---- a part of a unit ----

struct part {
    int32_t u, index, len, first, end; // far rows [first, end) of the unit
    int32_t page0, page1;              // pages of the part
    float eps;
    bool routed;
};

static __device__ part part_of(const choose_params &p, int item)
{
    part x;
    x.u = item / p.n_parts;
    x.index = item % p.n_parts;
    const int seq = x.u / p.n_kv_heads;
    x.len = p.cache.kv_len[seq];
    x.eps = p.a.eps[seq];
    x.first = p.a.n_sinks;
    x.end = far_end(x.len, p.a.n_sinks, p.a.window);
    x.routed = x.len >= p.a.min_len && x.len > p.a.n_sinks + p.a.window && !(p.a.trust && p.a.trust[x.u] == CUDA_WHOLE);
    const int32_t first = x.first / SR_PAGE_ROWS, n = (x.end + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS - first;
    x.page0 = first + (int32_t)((int64_t)n * x.index / p.n_parts);
    x.page1 = first + (int32_t)((int64_t)n * (x.index + 1) / p.n_parts);
    return x;
}

// ---- the query in the basis ----

static __device__ __forceinline__ float sum_of_lanes(float x)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

static __device__ void project(const choose_params &p, int u, choose_space &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, d = p.head_dim, rank = p.a.sketch.rank;
    const struct sketch_basis basis = p.a.sketch.basis[u];
    for (int i = threadIdx.x; i < p.group * d; i += blockDim.x) s.q[i] = p.a.q[(int64_t)u * p.group * d + i] * p.a.scale;
    __syncthreads();
    constexpr int AHEAD = 4;
    for (int base = w; base < d; base += AHEAD * CHOOSE_WARPS) {
        float rows[AHEAD][8];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int j = base + k * CHOOSE_WARPS;
                rows[k][i] = j < d && lane + i * WARP < d ? __ldg(basis.synthesis + (int64_t)j * d + lane + i * WARP) : 0.0f;
            }
        for (int g = 0; g < p.group; g++) {
            float z[AHEAD] = {};
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (lane + i * WARP < d)
#pragma unroll
                    for (int k = 0; k < AHEAD; k++) z[k] += rows[k][i] * s.q[g * d + lane + i * WARP];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                z[k] = sum_of_lanes(z[k]);
                if (lane == 0 && base + k * CHOOSE_WARPS < d) s.z[g * d + base + k * CHOOSE_WARPS] = z[k];
            }
        }
    }
    __syncthreads();
    for (int g = w; g < p.group; g += CHOOSE_WARPS) {
        const float centre = (float)(1 << (p.a.sketch.bits - 1)) - 0.5f;
        float base = 0, more = 0, offset = 0, top = 0;
        for (int i = lane; i < d; i += WARP) {
            const float z = s.z[g * d + i], y = i < rank ? z * basis.step[i] : 0.0f;
            base += s.q[g * d + i] * basis.mu[i];
            more += i < rank ? y * y / 12.0f : z * z * basis.lambda[i];
            offset += y;
            top = fmaxf(top, fabsf(y));
            if (i < rank) s.z[g * d + i] = y;
        }
        base = sum_of_lanes(base), more = sum_of_lanes(more), offset = sum_of_lanes(offset);
#pragma unroll
        for (int i = 1; i < WARP; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
        int exponent = 0;
        if (top > 0 && top < CUDART_INF_F) frexpf(top, &exponent);
        if (lane == 0) s.start[g] = base + 0.5f * more - centre * offset, s.unscale[g] = ldexpf(1.0f, exponent);
    }
    __syncthreads();
}

// B fragments of the projected queries. Up to 4 heads: high and low parts share a tile; else tiles of high parts, then of low.
template <int NT> static __device__ void make_fragments(const choose_params &p, choose_space &s)
{
    const int steps = (p.a.sketch.rank + 15) / 16, d = p.head_dim;
    for (int i = threadIdx.x; i < steps * NT * WARP; i += blockDim.x) {
        const int lane = i % WARP, n = i / WARP % NT, step = i / WARP / NT, g = lane >> 2, t = lane & 3;
        const bool low = NT == 1 ? g >= 4 : n >= NT / 2;
        const int head = NT == 1 ? g & 3 : n % (NT / 2) * 8 + g;
        uint32_t pairs[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int j = step * 16 + 4 * t + 2 * h + c;
                x[c] = head < p.group && j < p.a.sketch.rank ? s.z[head * d + j] / s.unscale[head] : 0.0f;
                if (low) x[c] -= __half2float(__float2half_rn(x[c]));
            }
            pairs[h] = pack<ELEM_F16>(x[0], x[1]);
        }
        s.fragments[step][n][lane] = make_uint2(pairs[0], pairs[1]);
    }
    __syncthreads();
}

// ---- estimated logits ----

// Codes of 16 rows by 16 coordinates as f16: 0x6400 + c is 1024 + c.
template <int BITS> static __device__ __forceinline__ void code_fragment(uint32_t *a, const uint32_t *words, int i)
{
    const uint32_t bias = 0x64006400u;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        uint32_t x;
        if (BITS == 4) x = (words[i] >> 4 * n & 0x000f000fu) | bias;
        else x = __byte_perm(words[2 * i + (n & 1)], 0x64646464u, n < 2 ? 0x4140 : 0x4342);
        const __half2 y = __hsub2(*(const __half2 *)&x, *(const __half2 *)&bias);
        a[n] = *(const uint32_t *)&y;
    }
}

// What a warp has of a page while it works on another: the words of the first k steps.
template <int BITS> struct page_words {
    static constexpr int STEPS = BITS == 4 ? 2 : 1; // more are read when they are due
    uint32_t w[STEPS][BITS];

    static __device__ __forceinline__ void load_step(uint32_t *w, const uint8_t *page, int step)
    {
        const int lane = threadIdx.x % WARP;
        load16(w, page + (step * WARP + lane) * 4 * BITS);
        if constexpr (BITS == 8) load16(w + 4, page + (step * WARP + lane) * 32 + 16);
    }
    __device__ __forceinline__ void load(const uint8_t *page, int steps)
    {
#pragma unroll
        for (int i = 0; i < STEPS; i++)
            if (i < steps) load_step(w[i], page, i);
    }
};

template <int BITS, int NT> static __device__ __forceinline__ void add_step(const choose_space &s, const uint32_t *words, int step, float acc[4][NT][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t a[4];
        code_fragment<BITS>(a, words, i);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const uint2 b = s.fragments[step][n][threadIdx.x % WARP];
            mma<ELEM_F16>(acc[i][n], a, (const uint32_t *)&b);
        }
    }
}

// The logits of rows i 16 + g (0, 1) and + 8 (2, 3) of a page, i < 4, for heads 8 n + 2 t (0, 2) and + 1 (1, 3).
template <int BITS, int NT, int HEADS>
static __device__ __forceinline__ void score_page(const choose_params &p, const choose_space &s, const page_words<BITS> &words, const uint8_t *page,
                                                  float x[4][HEADS][4])
{
    const int t = threadIdx.x & 3, steps = (p.a.sketch.rank + 15) / 16;
    float acc[4][NT][4] = {};
#pragma unroll
    for (int i = 0; i < page_words<BITS>::STEPS; i++)
        if (i < steps) add_step<BITS, NT>(s, words.w[i], i, acc);
    for (int step = page_words<BITS>::STEPS; step < steps; step++) {
        uint32_t more[BITS];
        page_words<BITS>::load_step(more, page, step);
        add_step<BITS, NT>(s, more, step, acc);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < HEADS; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int head = 8 * n + 2 * t + (c & 1), h = NT == 1 ? head & 3 : head;
                float y = acc[i][n][c];
                if (NT == 1) y += __shfl_xor_sync(~0u, y, 2);
                else y += acc[i][n + NT / 2][c];
                x[i][n][c] = h < p.group ? s.start[h] + y * s.unscale[h] : -CUDART_INF_F;
            }
}

// Calls take(page number, logits) for the pages of a part that are this warp's, the next one's words under way meanwhile.
template <int BITS, int NT, typename F>
static __device__ __forceinline__ void for_pages(const choose_params &p, const part &x, const choose_space &s, F take)
{
    constexpr int HEADS = NT == 4 ? 2 : 1;
    const int steps = (p.a.sketch.rank + 15) / 16;
    void *const *table = p.cache.y_page + (int64_t)x.u * p.cache.max_pages;
    const auto page_at = [&](int i) { return (const uint8_t *)table[min(i, x.page1 - 1)]; };
    int i = x.page0 + threadIdx.x / WARP;
    if (i >= x.page1) return;
    page_words<BITS> words, next;
    const uint8_t *page = page_at(i), *page_1 = page_at(i + CHOOSE_WARPS);
    words.load(page, steps);
    for (; i < x.page1; i += CHOOSE_WARPS) {
        const uint8_t *page_2 = page_at(i + 2 * CHOOSE_WARPS);
        if (i + CHOOSE_WARPS < x.page1) next.load(page_1, steps);
        float y[4][HEADS][4];
        score_page<BITS, NT, HEADS>(p, s, words, page, y);
        take(i, y);
        words = next;
        page = page_1;
        page_1 = page_2;
    }
}

} // namespace sr

#endif
