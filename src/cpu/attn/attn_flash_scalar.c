/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal attention of a few queries: the specification. Every query runs over its own rows in blocks, which
 * is the decode kernel's computation; faster variants share the converted rows between queries.
 */
#include "cpu/kernels.h"
#include "cpu/attn/kv_row.h"

static int32_t block_rows(const struct attn_flash *a, int64_t row, int64_t end, const uint8_t **k, const uint8_t **v)
{
    int32_t n = 0;
    for (; n < SR_ATTN_BLOCK && row + n < end; n++) {
        k[n] = sr_row_at(&a->unit->k, row + n, a->shape->k_row_bytes);
        v[n] = sr_row_at(&a->unit->v, row + n, a->shape->v_row_bytes);
    }
    return n;
}

static void one_query(const struct attn_flash *a, int32_t t)
{
    const int32_t d = a->shape->head_dim, group = a->shape->group;
    const uint8_t *k[SR_ATTN_BLOCK], *v[SR_ATTN_BLOCK];
    float m[SR_ATTN_MAX_GROUP], l[SR_ATTN_MAX_GROUP], q[SR_ATTN_MAX_GROUP * SR_ATTN_MAX_DIM], *o = a->out + t * a->out_stride;
    const float k_scale = sr_kv_scale(&a->unit->k, a->shape->k_type), v_scale = sr_kv_scale(&a->unit->v, a->shape->v_type);
    int64_t k_rows = 0, v_rows = 0;
    struct attn_block b = {.shape = a->shape, .q = q, .k = k, .v = v, .o = o, .m = m, .l = l,
                           .k_rows = &k_rows, .v_rows = &v_rows};
    for (int32_t i = 0; i < group * d; i++) q[i] = a->q[t * a->q_stride + i] * k_scale; /* the same product */
    memset(o, 0, (size_t)(group * d) * sizeof(float));
    for (int32_t g = 0; g < group; g++) {
        m[g] = sr_f32_of_bits(0xff800000u); /* -inf */
        l[g] = 0;
    }
    for (int64_t row = 0; row <= a->pos + t; row += b.n) {
        b.n = block_rows(a, row, a->pos + t + 1, k, v);
        sr_attn_block_scalar(&b);
    }
    for (int32_t g = 0; g < group; g++)
        for (int32_t j = 0; j < d; j++) o[g * d + j] = l[g] == 0 ? 0 : o[g * d + j] / l[g] * v_scale;
}

void sr_attn_flash_scalar(const struct attn_flash *a)
{
    for (int32_t t = 0; t < a->n_q; t++) one_query(a, t);
}
