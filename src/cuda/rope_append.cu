// SPDX-License-Identifier: Apache-2.0
//
// One token between its q, k, v product and attention: heads rotated, K and V into their pages, sinks noted, by one kernel
// instead of two. What depends on the position alone is looked up before the product is waited for. Where a choice follows, its
// first kernel does all this instead (sketch_prepare.cu).
#include "cuda/device_cuda.h"
#include "cuda/rope_turn.cuh"

#include <assert.h>

using namespace sr;

namespace {

enum { HEAD_WARPS = 4 };

// A warp a head: those of K and V first, then those of q.
__device__ __forceinline__ void turn_heads(const turn_params &p)
{
    __shared__ float rows[HEAD_WARPS][2][MOST_DIM];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head = blockIdx.x * HEAD_WARPS + warp, d = p.head_dim;
    float *k = rows[warp][0], *v = rows[warp][1];
    row_place at = {};
    if (head < p.n_kv_heads) at.find(p, head);
    const int64_t kept = p.a.q_kept ? kept_row(p) * p.n_kv_heads * p.group * d : 0;
    wait_for_previous();
    if (head >= p.n_kv_heads) {
        const int64_t mine = (int64_t)(head - p.n_kv_heads) * d;
        if (head < p.n_kv_heads * (1 + p.group)) turn_head(p, p.a.q + mine, p.a.q_to + mine, p.a.q_kept ? p.a.q_kept + kept + mine : NULL, lane);
        return;
    }
#pragma unroll 4
    for (int i = lane; i < d; i += WARP) v[i] = __ldcg(p.a.v + (int64_t)head * d + i);
    turn_head(p, p.a.k + (int64_t)head * d, p.a.k_to + (int64_t)head * d, k, lane);
    __syncwarp();
    begin_scales(p, at, head, k, v, lane);
#pragma unroll 1
    for (int is_v = 0; is_v < 2; is_v++) store_row(p.type, p, is_v ? at.v : at.k, at.row, is_v ? v : k, is_v ? at.v_inverse : at.k_inverse, lane);
    note_head(p, at, head, k, v, lane);
}

__global__ void __launch_bounds__(HEAD_WARPS * WARP) turn_kernel(const __grid_constant__ turn_params p) { turn_heads(p); }

// Of several sequences, by rows of the grid.
struct turns_params { turn_params seq[SR_STEP_SEQS]; };
static_assert(sizeof(turns_params) <= 4096, "parameters of a kernel");
__global__ void __launch_bounds__(HEAD_WARPS * WARP) turns_kernel(const __grid_constant__ turns_params p) { turn_heads(p.seq[blockIdx.y]); }

dim3 grid_of(const turn_params &p, int32_t n)
{
    return dim3((unsigned)((p.n_kv_heads * (1 + p.group) + HEAD_WARPS - 1) / HEAD_WARPS), (unsigned)n);
}

} // namespace

struct attn_cuda_turn sr_cuda_turn_with(const struct rope_args *r, const float *cos, const float *sin, const struct attn_cuda_append *row,
                                        const struct device_step_args *a)
{
    assert(r->head_dim <= MOST_DIM && r->n == 1);
    struct attn_cuda_turn t = {};
    t.cos = cos;
    t.sin = sin;
    t.q = t.q_to = r->x;
    t.k = t.k_to = r->x2;
    t.v = (const float *)row->v;
    t.half = r->spec->n_dims / 2;
    t.neox = r->spec->kind == ROPE_NEOX;
    t.found = row->found;
    t.k_scale = row->k_scale;
    t.v_scale = row->v_scale;
    t.q_kept = a->q_kept;
    t.k_kept = a->k_kept;
    return t;
}

struct attn_cuda_turn sr_cuda_turn_of(struct backend_cuda *c, const struct rope_args *r, const struct attn_cuda_append *row, const struct device_step_args *a)
{
    const float *cos, *sin;
    sr_cuda_rope_angles(c, r, &cos, &sin);
    return sr_cuda_turn_with(r, cos, sin, row, a);
}

void sr_cuda_rope_append(struct backend_cuda *c, const struct rope_args *r, const struct attn_cuda_append *row, const struct attn_cuda_cache *cache,
                         const struct device_step_args *a)
{
    const struct attn_shape *s = &a->cache->shape;
    const struct attn_cuda_turn turn = sr_cuda_turn_of(c, r, row, a);
    const turn_params p = turn_params_of(&turn, cache, a->cache->n_kv_heads, s->group, s->head_dim, elem_of(s->k_type));
    // The next kernel starts when this one ends, not before: an SM that still holds a block of it cannot be divided anew
    // between shared memory and L1, and attention would run there with little of the latter (docs/notes/gpu-engine.md).
    sr_cuda_launch(c, "rope and append", turn_kernel, grid_of(p, 1), dim3(HEAD_WARPS * WARP), 0, p);
}

void sr_cuda_rope_append_each(struct backend_cuda *c, const struct attn_cuda_turn *turn, const struct attn_cuda_cache *cache, int32_t n,
                              const struct attn_shape *s, int32_t n_kv_heads)
{
    turns_params p;
    for (int32_t i = 0; i < n; i++) p.seq[i] = turn_params_of(&turn[i], &cache[i], n_kv_heads, s->group, s->head_dim, elem_of(s->k_type));
    sr_cuda_launch(c, "rope and append", turns_kernel, grid_of(p.seq[0], n), dim3(HEAD_WARPS * WARP), 0, p);
}
