/* SPDX-License-Identifier: Apache-2.0
 *
 * What moments.c (collecting) and moments_file.c (storing) share.
 */
#ifndef SR_ATTENTION_MOMENTS_PARTS_H
#define SR_ATTENTION_MOMENTS_PARTS_H

#include "attention/moments.h"

/* Either `sums` (being collected) or `stored` (from a file) is set. One unit is (layer, KV group): M_q
 * [d][d], M_k [d][d], m_k [d]. In sums only elements j >= i of the matrices are kept up to date: they are
 * symmetric. */
struct moments {
    struct moments_shape shape;
    const struct rotation *rotation; /* borrowed; NULL if stored */
    double *sums;                    /* [n_layers][n_kv_heads][unit]; a region, committed as it is touched */
    float *stored;                   /* [n_layers][n_kv_heads][unit] */
    int64_t *counts; /* [n_layers][4]: next q position, next k position, q positions, k positions */
    double *turn;    /* scratch: cos and sin of one block of tokens */
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
