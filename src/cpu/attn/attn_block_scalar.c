/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over a block of rows into running states: the specification.
 *
 * Online softmax (Milakov and Gimelshein): with the maximum of the block known, m' = max(m, block maximum), the old
 * state shrinks by exp(m - m') and the block adds p = exp(logit - m'). While everything seen is -inf, 0 stands for m',
 * so that p is 0 and nothing is ever -inf - -inf. NaN never wins the maximum but makes its own p, and so l and o, NaN.
 */
#include "cpu/kernels.h"
#include "cpu/attn/kv_row.h"

#include <math.h>

static float dot(const float *a, const float *b, int32_t n)
{
    float sum = 0;
    for (int32_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void logits_of(const struct attn_block *a, float p[][SR_ATTN_BLOCK])
{
    const struct attn_shape *s = a->shape;
    float row[SR_ATTN_MAX_DIM];
    for (int32_t i = 0; i < a->n; i++) {
        sr_row_load(s->k_type, a->k[i], row, s->head_dim);
        ++*a->k_rows;
        for (int32_t g = 0; g < s->group; g++) p[g][i] = dot(a->q + g * s->head_dim, row, s->head_dim);
    }
}

/* Logits become weights; m and l move on. Returns what the old o must be multiplied by. */
static float weights_of(float *p, int32_t n, float *m, float *l)
{
    float max = *m, sum = 0;
    for (int32_t i = 0; i < n; i++) max = p[i] > max ? p[i] : max;
    const float base = max == -INFINITY ? 0.0f : max, shrink = expf(*m - base);
    for (int32_t i = 0; i < n; i++) {
        p[i] = expf(p[i] - base);
        sum += p[i];
    }
    *m = max;
    *l = *l * shrink + sum;
    return shrink;
}

void sr_attn_block_scalar(const struct attn_block *a)
{
    const struct attn_shape *s = a->shape;
    const int32_t d = s->head_dim;
    float p[SR_ATTN_MAX_GROUP][SR_ATTN_BLOCK], row[SR_ATTN_MAX_DIM];
    logits_of(a, p);
    for (int32_t g = 0; g < s->group; g++) {
        const float shrink = weights_of(p[g], a->n, &a->m[g], &a->l[g]);
        for (int32_t j = 0; j < d; j++) a->o[g * d + j] *= shrink;
    }
    for (int32_t i = 0; i < a->n; i++) {
        sr_row_load(s->v_type, a->v[i], row, d);
        ++*a->v_rows;
        for (int32_t g = 0; g < s->group; g++)
            for (int32_t j = 0; j < d; j++) a->o[g * d + j] += p[g][i] * row[j];
    }
}
