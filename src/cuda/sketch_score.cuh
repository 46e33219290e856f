// SPDX-License-Identifier: Apache-2.0
//
// Estimated logits: the query in the basis, and the product with the codes of a page.
//
// The estimate is a product of codes with the projected query, split into two f16 parts and scaled by a power of two, on
// the matrix units. Codes go there as they lie: c as the bits of an f16 is c 2^-24, exactly. Logits are in powers of 2, and
// less the logarithm of the near part, which is known before: so exponentials need no maximum. A far row that is 2^128 times
// the near part, which only broken numbers give, makes a sum that is no number, and the unit is read whole.
#ifndef SR_CUDA_SKETCH_SCORE_CUH
#define SR_CUDA_SKETCH_SCORE_CUH

#include "cuda/attn_deal.cuh"
#include "cuda/sketch_pages.cuh"

namespace sr {

constexpr float SHARE_UNIT = 1073741824.0f; // 2^30: a head's shares sum to at most 1
constexpr int32_t NO_BIN = 0x7fff; // of a found sink that is not worth one

// NT: tiles of the high and low parts of 4 heads.
template <int NT> struct choose_space {
    static constexpr int H = 4 * NT;
    uint2 fragments[MAX_RANK_STEPS][NT][WARP];  // by k step: heads' high parts, then low ones
    float step[256], lambda[256];
    float start[H], unscale[H], near[H];        // of the estimate, less the near part's logarithm; this
    float2 far[CHOOSE_WARPS][H];                // sums and maxima of far rows by warp
    float4 share[NT];                           // of the near part in all; 0 for absent heads
    float far_share[H];
    uint32_t sums[H][CHOOSE_BINS];              // fixed-point shares of the part's rows by bin; then of the unit's, up to each
    uint32_t rows[CHOOSE_BINS];                 // of the part by bin, then up to each
    int32_t warp_rows[CHOOSE_WARPS], all, none, ends[2];
    uint32_t hidden[2];                         // by page number modulo 64: pages that may have rows to pass over
    int32_t warp_rest[CHOOSE_WARPS];
    int32_t hidden_in[CHOOSE_PARTS];            // rows that are read in any case and count as near, by part; where they do not:
    int32_t found_at[SR_ALWAYS_ROWS], found[SR_ALWAYS_ROWS]; // the places of the part's among its rows, or -1; part and bin, or -1
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
    x.routed = is_routed(p, x.u, x.len);
    const uint32_t first = x.first / SR_PAGE_ROWS, n = (x.end + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS - first;
    x.page0 = (int32_t)(first + n * blockIdx.x / gridDim.x); // below 2^32 up to 2^33 rows
    x.page1 = (int32_t)(first + n * (blockIdx.x + 1) / gridDim.x);
    return x;
}

// ---- the query in the basis ----

// A power of two above |top|, by its bits; 1 for what is no number.
static __device__ __forceinline__ float power_above(float top)
{
    const uint32_t e = __float_as_uint(top) >> 23 & 255u;
    return e == 255u ? 1.0f : __uint_as_float(min(e + 1, 253u) << 23);
}

// Where each head's estimate starts, and the B fragments of the projected queries: of each head a column of high parts and
// one of low parts beside it, so that a lane has both. One warp a head; absent heads are zeros.
template <int NT> static __device__ __forceinline__ void read_query(const choose_params &p, int u, choose_space<NT> &s)
{
    const int lane = threadIdx.x % WARP, d = p.head_dim, rank = p.a.sketch.rank, g = threadIdx.x / WARP;
    if (g >= choose_space<NT>::H) return;
    const bool is_in = g < p.group;
    const choose_query &from = *query_of(p, u);
    const float centre = (float)(1 << (p.a.sketch.bits - 1)) - 0.5f;
    float y[2][4], base = 0, top = 0;
    float2 near = is_in && lane < CHOOSE_PARTS ? __ldcg(&from.near[lane][g]) : make_float2(-CUDART_INF_F, 0);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int j = i * 4 * WARP + 4 * lane;
        const float4 z4 = is_in && j < d ? __ldcg((const float4 *)&from.z[g][j]) : make_float4(0, 0, 0, 0);
        const float z[4] = {z4.x, z4.y, z4.z, z4.w};
#pragma unroll
        for (int c = 0; c < 4; c++) { // no step from rank on, no lambda from d on
            y[i][c] = z[c] * s.step[j + c];
            base += 0.5f * LN2 * (j + c < rank ? y[i][c] * y[i][c] * (1.0f / 12.0f) : z[c] * z[c] * s.lambda[j + c]) - centre * y[i][c];
            top = fmaxf(top, fabsf(y[i][c]));
        }
    }
    if (is_in && lane == 0) base += __ldcg(&from.q_mu[g]);
    base = sum_of_lanes(base), top = max_of_lanes(top), near = join_lanes(near, 1, CHOOSE_PARTS);
    const float unscale = power_above(top), inverse = __uint_as_float(0x7f000000u - __float_as_uint(unscale)); // of a power of two
    const float log_near = near.x + __log2f(near.y);
    if (lane == 0) s.start[g] = base - log_near, s.unscale[g] = unscale, s.near[g] = log_near;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int step = i * 8 + lane / 4;
        if (step >= (rank + 15) / 16) continue;
        float low[4];
#pragma unroll
        for (int c = 0; c < 4; c++) y[i][c] *= inverse, low[c] = y[i][c] - __half2float(__float2half_rn(y[i][c]));
        uint2 *to = &s.fragments[step][g / 4][g % 4 * 8 + lane % 4];
        to[0] = make_uint2(pack<ELEM_F16>(y[i][0], y[i][1]), pack<ELEM_F16>(y[i][2], y[i][3]));
        to[4] = make_uint2(pack<ELEM_F16>(low[0], low[1]), pack<ELEM_F16>(low[2], low[3]));
    }
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

// A k step of 16 coordinates of a page, added to the sums of its 4 tiles of 16 rows.
template <int BITS, int NT> static __device__ __forceinline__ void add_step(const uint32_t *words, const uint2 *b, float (*acc)[NT][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t a[4];
        code_fragment<BITS>(a, words, i);
#pragma unroll
        for (int n = 0; n < NT; n++) mma<ELEM_F16>(acc[i][n], a, (const uint32_t *)&b[n]);
    }
}

// The logits that a lane has of a page: of rows 8 i + lane / 4, for heads head(n). The fragments of two steps stay in registers.
template <int BITS, int NT, int PAGES> struct scorer {
    static constexpr int KEPT = PAGES ? 2 : 1;
    const uint2 (*fragments)[NT][WARP];
    int steps;
    float from[NT], unit[NT], unit_high[NT]; // an estimate is from + products * unit
    uint2 b[KEPT][NT];

    static __device__ __forceinline__ int head(int n) { return 4 * n + (threadIdx.x & 3); }

    __device__ __forceinline__ scorer(const choose_params &p, const choose_space<NT> &s) : fragments(s.fragments), steps((p.a.sketch.rank + 15) / 16)
    {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const bool is_in = head(n) < p.group;
            from[n] = is_in ? s.start[head(n)] : -CUDART_INF_F;
            unit[n] = is_in ? s.unscale[head(n)] * 0x1p24f : 0.0f;
            unit_high[n] = BITS == 4 ? unit[n] * 0x1p-4f : unit[n];
#pragma unroll
            for (int i = 0; i < KEPT; i++) b[i][n] = i < steps ? s.fragments[i][n][threadIdx.x % WARP] : make_uint2(0, 0);
        }
    }
    __device__ __forceinline__ void score(page_ring<BITS, PAGES> &pages, float (*y)[NT]) const
    {
        float acc[4][NT][4] = {};
        uint32_t words[KEPT * BITS];
        if (PAGES) {
            pages.take(words);
#pragma unroll
            for (int i = 0; i < KEPT; i++) add_step<BITS, NT>(words + i * BITS, b[i], acc); // a step that is not there weighs nothing
        } else
#pragma unroll 1
            for (int i = 0; i < steps; i++) {
                uint2 more[NT];
#pragma unroll
                for (int n = 0; n < NT; n++) more[n] = fragments[i][n][threadIdx.x % WARP];
                pages.take(words);
                add_step<BITS, NT>(words, more, acc);
            }
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float *c = acc[i / 2][n] + i % 2 * 2;
                y[i][n] = from[n] + (c[0] + c[1]) * (i % 2 ? unit_high[n] : unit[n]);
            }
    }
};

// Rows read in any case that count as near: their bits, and in which pages they may be, by number modulo 64.
struct hidden_rows {
    uint64_t pages;
    const uint32_t *bits; // of the part
    __device__ __forceinline__ bool may_be_in(int page) const { return pages >> page % 64 & 1; }
};

// Rows that are not far, and those that are hidden, have -inf.
template <int NT> static __device__ __forceinline__ void mask_rows(const part &x, int page, const hidden_rows &hidden, float (*y)[NT])
{
    const int own = (int)(threadIdx.x % WARP >> 2), before = x.first - page * SR_PAGE_ROWS - own;
    const bool looks = hidden.may_be_in(page);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const bool is_out = (unsigned)(i * 8 - before) >= (unsigned)(x.end - x.first);
        const bool is_hidden = looks && hidden.bits[(page - x.page0) * (SR_PAGE_ROWS / 32) + i / 4] >> (i % 4 * 8 + own) & 1u;
#pragma unroll
        for (int n = 0; n < NT; n++)
            if (is_out || is_hidden) y[i][n] = -CUDART_INF_F;
    }
}

} // namespace sr

#endif
