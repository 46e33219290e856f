// SPDX-License-Identifier: Apache-2.0
//
// Heads of one token rotated, and its row into the cache: for the kernels that stand between a q, k, v product and attention.
// They give the bits of sr_cuda_rope and sr_attn_cuda_append.
#ifndef SR_CUDA_ROPE_TURN_CUH
#define SR_CUDA_ROPE_TURN_CUH

#include "cuda/append_parts.cuh"
#include "cuda/rope_turn.h"

namespace sr {

constexpr int MOST_DIM = 256;

struct turn_params {
    struct attn_cuda_turn a; // q NULL: there is nothing to turn
    int32_t n_kv_heads, group, head_dim, type;
    struct attn_cuda_cache cache; // of one sequence
};

static inline turn_params turn_params_of(const struct attn_cuda_turn *a, const struct attn_cuda_cache *cache, int32_t n_kv_heads, int32_t group, int32_t head_dim, int32_t type)
{
    turn_params p = {};
    if (a) p.a = *a;
    p.n_kv_heads = n_kv_heads, p.group = group, p.head_dim = head_dim, p.type = type, p.cache = *cache;
    return p;
}

static __device__ __forceinline__ int64_t kept_row(const turn_params &p) { return (p.cache.kv_len[0] - 1) % SR_KEPT_ROWS; }

// Where a KV head's row goes, and what was noted of its head; all there before the step began.
struct row_place {
    uint8_t *k, *v;
    float k_inverse, v_inverse, mean_k, mean_v;
    int32_t row, last_sink;

    __device__ __forceinline__ void find(const turn_params &p, int head)
    {
        const struct found_sinks &u = p.a.found[head];
        row = p.cache.kv_len[0] - 1;
        const int64_t at = (int64_t)head * p.cache.max_pages + row / SR_PAGE_ROWS;
        k = (uint8_t *)p.cache.k_page[at];
        v = (uint8_t *)p.cache.v_page[at];
        k_inverse = p.type == ELEM_F8 && p.cache.k_scale ? 1.0f / p.cache.k_scale[head] : 1.0f;
        v_inverse = p.type == ELEM_F8 && p.cache.v_scale ? 1.0f / p.cache.v_scale[head] : 1.0f;
        mean_k = u.mean_k;
        mean_v = u.mean_v;
        last_sink = u.n > 0 ? u.rows[u.n - 1] : -1;
    }
};

// Two elements of a head that turn together.
static __device__ __forceinline__ float2 turned(float a, float b, float c, float s) { return make_float2(a * c - b * s, a * s + b * c); }

// A head, rotated, goes to `to` and `copy`, as far as they are no NULL; a warp.
static __device__ __forceinline__ void turn_head(const turn_params &p, const float *x, float *to, float *copy, int lane)
{
#pragma unroll 2
    for (int j = lane; j < p.a.half; j += WARP) {
        const int first = p.a.neox ? j : 2 * j, second = p.a.neox ? j + p.a.half : 2 * j + 1;
        const float2 y = turned(__ldcg(x + first), __ldcg(x + second), p.a.cos[j], p.a.sin[j]);
        if (to) to[first] = y.x, to[second] = y.y;
        if (copy) copy[first] = y.x, copy[second] = y.y;
    }
    for (int i = 2 * p.a.half + lane; copy && i < p.head_dim; i += WARP) copy[i] = __ldcg(x + i);
}

// ---- the row of a KV head, by a warp that has its k and v in shared memory ----

// 1 over the scale that a first row sets.
static __device__ __forceinline__ float begin_with(float *scale, const float *x, int d, int lane)
{
    float max = 0.0f;
#pragma unroll 1
    for (int i = lane; i < d; i += WARP) max = fmaxf(max, fabsf(x[i]));
    return begin_scale(scale, max);
}

static __device__ __forceinline__ void begin_scales(const turn_params &p, row_place &at, int head, const float *k, const float *v, int lane)
{
    if (at.row > 0 || !p.a.k_scale) return;
    at.k_inverse = begin_with(p.a.k_scale + head, k, p.head_dim, lane);
    at.v_inverse = begin_with(p.a.v_scale + head, v, p.head_dim, lane);
}

static __device__ __forceinline__ void store_row(int type, const turn_params &p, uint8_t *page, int32_t row, const float *x, float inverse, int lane)
{
#pragma unroll 1
    for (int i = lane; i < p.head_dim; i += WARP) store_element(type, page, row % SR_PAGE_ROWS, p.head_dim, i, x[i], inverse);
}

// As append_kernel adds.
static __device__ __forceinline__ float norm_of(const float *row, int d, int lane)
{
    float sum = 0;
    for (int i = lane; i < d; i += WARP) sum += row[i] * row[i];
    return norm_of_lanes(sum);
}

// Its sink, and a copy of the key where a step keeps it.
static __device__ __forceinline__ void note_head(const turn_params &p, const row_place &at, int head, const float *k, const float *v, int lane)
{
    const int d = p.head_dim;
    const float key = norm_of(k, d, lane), value = norm_of(v, d, lane);
    const bool is_plain = at.row >= SR_SINKS_REFERENCE && at.last_sink < at.row && !(value <= SR_SINKS_VALUE * at.mean_v && key <= SR_SINKS_KEY * at.mean_k);
    if (lane == 0 && !is_plain) note_row(p.a.found[head], at.row, key, value);
#pragma unroll 1
    for (int i = lane; p.a.k_kept && i < d; i += WARP) p.a.k_kept[(kept_row(p) * p.n_kv_heads + head) * d + i] = k[i];
}

} // namespace sr

#endif
