/* SPDX-License-Identifier: Apache-2.0
 *
 * A step's row whose heads are still to be rotated, and who does that (C++): a kernel of its own, or the first of a choice.
 */
#ifndef SR_CUDA_ROPE_TURN_H
#define SR_CUDA_ROPE_TURN_H

#include "cuda/attn_cuda.h"

extern "C" {
#include "backend/device_attn.h"
}

struct backend_cuda;

/* The q, k and v of a step of one sequence, q and k still to be rotated: [n_kv_heads * group][head_dim], [n_kv_heads][head_dim]. */
struct attn_cuda_turn {
    const float *q, *k, *v;
    float *q_to, *k_to;                   /* where they go, rotated; k_to may be NULL */
    const float *cos, *sin;               /* [half] */
    int32_t half, neox;
    struct found_sinks *found;            /* [n_kv_heads]; and as in struct attn_cuda_append */
    float *k_scale, *v_scale;
    float *q_kept, *k_kept;               /* of struct device_step_args */
};

/* smallops_cuda.cu: whether the angles of a rope are there, so that sr_cuda_rope_angles launches nothing. */
bool sr_cuda_rope_has_angles(const struct backend_cuda *c, const struct rope_args *a);

/* rope_append.cu: that rope in place, and its k with the v of `row` into the cache, as one thing. */
struct attn_cuda_turn sr_cuda_turn_of(struct backend_cuda *c, const struct rope_args *r, const struct attn_cuda_append *row, const struct device_step_args *a);

/* The same with angles at hand; and n of them at once, of one shape: cache[i] is of one sequence. */
struct attn_cuda_turn sr_cuda_turn_with(const struct rope_args *r, const float *cos, const float *sin, const struct attn_cuda_append *row,
                                        const struct device_step_args *a);
void sr_cuda_rope_append_each(struct backend_cuda *c, const struct attn_cuda_turn *turn, const struct attn_cuda_cache *cache, int32_t n,
                              const struct attn_shape *s, int32_t n_kv_heads);

/* sketch_cuda.cu: sr_attn_cuda_choose, but first the row is rotated and appended, if turn is not NULL. Then a has `encodes`, a window, and
 * turn->q_to, which is not turn->q, for q; angles and kv_len are older than the kernel before. */
sr_status sr_cuda_turn_and_choose(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_choose *a, const struct attn_cuda_turn *turn,
                                  sr_error *err);

#endif
