/* SPDX-License-Identifier: Apache-2.0
 *
 * What moments.c (collecting) and moments_file.c (storing) share.
 */
#ifndef SR_ATTENTION_MOMENTS_PARTS_H
#define SR_ATTENTION_MOMENTS_PARTS_H

#include "attention/moments.h"

#define SR_MOMENTS_BLOCK 32 /* positions whose products are taken at once; divides SR_MOMENTS_LAST */

/* Either `sums` (being collected) or `stored` (from a file) is set. One unit is (layer, KV group): M_q
 * [d][d], M_k [d][d], m_k [d]. In sums only elements j >= i of the matrices are kept: they are symmetric.
 * Regions are committed as they are touched. */
struct moments {
    struct moments_shape shape;
    const struct rotation *rotation; /* borrowed; NULL if stored */
    double *sums;                    /* [n_layers][n_kv_heads][unit]; a region */
    float *held;                     /* rows of the block at hand, turned back; a region (moments.c) */
    float *turn;                     /* [SR_MOMENTS_END][d] cos and sin, up to position `turned`; a region */
    float *product;                  /* scratch [n_kv_heads][d][d] */
    float *stored;                   /* [n_layers][n_kv_heads][unit] */
    int64_t *counts; /* [n_layers][6], for q and k: next position, positions counted, rows held */
    int64_t turned, end; /* positions from `end` on do not count */
    uint64_t id;
};

static inline size_t sr_moments_unit(const struct moments_shape *s)
{
    size_t d = (size_t)s->head_dim;
    return 2 * d * d + d;
}

static inline size_t sr_moments_units(const struct moments_shape *s)
{
    return (size_t)s->n_layers * (size_t)s->n_kv_heads;
}

#endif
