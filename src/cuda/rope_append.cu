// SPDX-License-Identifier: Apache-2.0
//
// One token between its q, k, v product and attention: heads rotated, K and V into their pages, sinks noted, by one kernel
// instead of two. What depends on the position alone is looked up before the product is waited for. It gives the bits of
// sr_cuda_rope and sr_attn_cuda_append.
#include "cuda/append_parts.cuh"
#include "cuda/device_cuda.h"

extern "C" {
#include "backend/device_attn.h"
}

#include <assert.h>

using namespace sr;

namespace {

enum { HEAD_WARPS = 4, MOST_DIM = 256 };

struct turn_params {
    float *q, *k;
    const float *v, *cos, *sin;
    int32_t n_heads, n_kv_heads, head_dim, half, neox, type;
    struct attn_cuda_cache cache; // of one sequence
    struct found_sinks *found;    // [n_kv_heads]
    float *k_scale, *v_scale;     // [n_kv_heads], set by a first row; or NULL
    float *q_kept, *k_kept;       // of device_step_args
};

// Where a KV head's row goes, and what was noted of its head; all there before the step began.
struct row_place {
    uint8_t *k, *v;
    float k_inverse, v_inverse, mean_k, mean_v;
    int32_t row, last_sink;

    __device__ __forceinline__ void find(const turn_params &p, int head)
    {
        const struct found_sinks &u = p.found[head];
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

// Rotates a head; `copy` gets it too, as far as it is no NULL.
__device__ __forceinline__ void turn_head(const turn_params &p, float *x, float *copy, int lane)
{
#pragma unroll 2
    for (int j = lane; j < p.half; j += WARP) {
        const int first = p.neox ? j : 2 * j, second = p.neox ? j + p.half : 2 * j + 1;
        const float c = p.cos[j], s = p.sin[j], a = __ldcg(x + first), b = __ldcg(x + second), y = a * c - b * s, z = a * s + b * c;
        x[first] = y;
        x[second] = z;
        if (copy) copy[first] = y, copy[second] = z;
    }
    for (int i = 2 * p.half + lane; copy && i < p.head_dim; i += WARP) copy[i] = __ldcg(x + i);
}

// As append_kernel adds.
__device__ __forceinline__ float norm_of(const float *row, int d, int lane)
{
    float sum = 0;
    for (int i = lane; i < d; i += WARP) sum += row[i] * row[i];
    return norm_of_lanes(sum);
}

// 1 over the scale that a first row sets.
__device__ __forceinline__ float begin_with(float *scale, const float *x, int d, int lane)
{
    float max = 0.0f;
#pragma unroll 1
    for (int i = lane; i < d; i += WARP) max = fmaxf(max, fabsf(x[i]));
    return begin_scale(scale, max);
}

__device__ __forceinline__ void append_head(const turn_params &p, row_place &at, int head, const float *k, const float *v, int lane)
{
    const int d = p.head_dim, slot = at.row % SR_PAGE_ROWS;
    if (at.row == 0 && p.k_scale) {
        at.k_inverse = begin_with(p.k_scale + head, k, d, lane);
        at.v_inverse = begin_with(p.v_scale + head, v, d, lane);
    }
#pragma unroll 1
    for (int is_v = 0; is_v < 2; is_v++)
#pragma unroll 1
        for (int i = lane; i < d; i += WARP)
            store_element(p.type, is_v ? at.v : at.k, slot, d, i, is_v ? v[i] : k[i], is_v ? at.v_inverse : at.k_inverse);
    const float key = norm_of(k, d, lane), value = norm_of(v, d, lane);
    const bool is_plain = at.row >= SR_SINKS_REFERENCE && at.last_sink < at.row && !(value <= SR_SINKS_VALUE * at.mean_v && key <= SR_SINKS_KEY * at.mean_k);
    if (lane == 0 && !is_plain) note_row(p.found[head], at.row, key, value);
}

// A warp a head: those of K and V first, then those of q.
__global__ void __launch_bounds__(HEAD_WARPS * WARP) turn_kernel(const __grid_constant__ turn_params p)
{
    __shared__ float rows[HEAD_WARPS][2][MOST_DIM];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head = blockIdx.x * HEAD_WARPS + warp;
    float *k = rows[warp][0], *v = rows[warp][1];
    row_place at = {};
    if (head < p.n_kv_heads) at.find(p, head);
    const int64_t kept_row = p.q_kept ? (p.cache.kv_len[0] - 1) % SR_KEPT_ROWS : 0;
    wait_for_previous();
    if (head >= p.n_kv_heads) {
        const int64_t mine = (int64_t)(head - p.n_kv_heads) * p.head_dim;
        float *kept = p.q_kept ? p.q_kept + kept_row * p.n_heads * p.head_dim + mine : NULL;
        if (head < p.n_kv_heads + p.n_heads) turn_head(p, p.q + mine, kept, lane);
        return;
    }
#pragma unroll 4
    for (int i = lane; i < p.head_dim; i += WARP) v[i] = __ldcg(p.v + (int64_t)head * p.head_dim + i);
    turn_head(p, p.k + (int64_t)head * p.head_dim, k, lane);
    __syncwarp();
    append_head(p, at, head, k, v, lane);
#pragma unroll 1
    for (int i = lane; p.k_kept && i < p.head_dim; i += WARP) p.k_kept[(kept_row * p.n_kv_heads + head) * p.head_dim + i] = k[i];
}

} // namespace

void sr_cuda_rope_append(struct backend_cuda *c, const struct rope_args *r, const struct attn_cuda_append *row, const struct attn_cuda_cache *cache,
                         const struct device_step_args *a)
{
    const sr_dtype type = a->cache->shape.k_type;
    assert(r->head_dim <= MOST_DIM && r->n == 1);
    struct turn_params p = {};
    sr_cuda_rope_angles(c, r, &p.cos, &p.sin);
    p.q = r->x;
    p.k = r->x2;
    p.v = (const float *)row->v;
    p.n_heads = r->heads;
    p.n_kv_heads = r->heads2;
    p.head_dim = r->head_dim;
    p.half = r->spec->n_dims / 2;
    p.neox = r->spec->kind == ROPE_NEOX;
    p.type = type == SR_DTYPE_BF16 ? ELEM_BF16 : type == SR_DTYPE_F16 ? ELEM_F16 : type == SR_DTYPE_Q8_0 ? ELEM_Q8 : ELEM_F8;
    p.cache = *cache;
    p.found = row->found;
    p.k_scale = row->k_scale;
    p.v_scale = row->v_scale;
    p.q_kept = a->q_kept;
    p.k_kept = a->k_kept;
    const int heads = p.n_heads + p.n_kv_heads;
    // The next kernel starts when this one ends, not before: an SM that still holds a block of it cannot be divided anew
    // between shared memory and L1, and attention would run there with little of the latter (docs/speed-gpu.md).
    sr_cuda_launch(c, "rope and append", turn_kernel, dim3((unsigned)((heads + HEAD_WARPS - 1) / HEAD_WARPS)), dim3(HEAD_WARPS * WARP), 0, p);
}
