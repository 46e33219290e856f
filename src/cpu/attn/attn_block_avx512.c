/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over a block of rows, 16 floats at a time. K: tiles of 4 rows x up to 6 heads keep 24 sums in registers
 * and load each element of a row once per tile. V: tiles of 64 elements x up to 6 heads keep the outputs in
 * registers over all rows. While K is read, the same rows of V are prefetched; while V is read, the next rows of K.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { TILE_HEADS = 6, TILE_ROWS = 4, LINE = 64 };

typedef float block_weights[SR_ATTN_MAX_GROUP][SR_ATTN_BLOCK];

SR_INLINE void prefetch_row(const uint8_t *row, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += LINE) _mm_prefetch((const char *)row + i, _MM_HINT_T0);
    _mm_prefetch((const char *)row + bytes - 1, _MM_HINT_T0);
}

/* ---- logits ---- */

SR_INLINE void qk_step(const int heads, __m512 acc[][TILE_ROWS], const float *q, int32_t d, const __m512 *k)
{
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512 x = _mm512_loadu_ps(q + g * d);
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_fmadd_ps(x, k[r], acc[g][r]);
    }
}

SR_INLINE void qk_tile(const sr_dtype type, const int heads, const float *q, int32_t d, const uint8_t *const *row, float *out)
{
    __m512 acc[TILE_HEADS][TILE_ROWS], k[TILE_ROWS];
    int32_t i = 0;
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_setzero_ps();
    for (; i + 16 <= d; i += 16) {
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            k[r] = sr_load16_avx512(type, row[r], i);
            if (type == SR_DTYPE_Q8_0) k[r] = _mm512_mul_ps(k[r], sr_q8_scale_avx512(row[r], i));
        }
        qk_step(heads, acc, q + i, d, k);
    }
    if (type != SR_DTYPE_Q8_0 && i < d) {
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) k[r] = sr_load_part_avx512(type, row[r], i, 0xff);
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const __m512 x = _mm512_maskz_loadu_ps(0xff, q + g * d + i);
            SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_fmadd_ps(x, k[r], acc[g][r]);
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++)
        _mm_storeu_ps(out + g * SR_ATTN_BLOCK, sr_sum4_avx512(acc[g][0], acc[g][1], acc[g][2], acc[g][3]));
}

SR_INLINE void qk_heads(const sr_dtype type, int32_t heads, const float *q, int32_t d, const uint8_t *const *row, float *out)
{
    switch (heads) {
    case 1: qk_tile(type, 1, q, d, row, out); return;
    case 2: qk_tile(type, 2, q, d, row, out); return;
    case 3: qk_tile(type, 3, q, d, row, out); return;
    case 4: qk_tile(type, 4, q, d, row, out); return;
    case 5: qk_tile(type, 5, q, d, row, out); return;
    default: qk_tile(type, 6, q, d, row, out); return;
    }
}

/* Heads of the tile that starts at g, so that all tiles of the group are about equal. */
SR_INLINE int32_t tile_heads(int32_t group, int32_t g)
{
    const int32_t tiles = (group - g + TILE_HEADS - 1) / TILE_HEADS;
    return (group - g + tiles - 1) / tiles;
}

SR_INLINE void logits_of(const sr_dtype type, const struct attn_block *a, block_weights p)
{
    const struct attn_shape *s = a->shape;
    for (int32_t i = 0; i < a->n; i += TILE_ROWS) {
        const int32_t left = a->n - i, n = left < TILE_ROWS ? left : TILE_ROWS;
        const uint8_t *row[TILE_ROWS];
        for (int32_t r = 0; r < TILE_ROWS; r++) row[r] = a->k[i + (r < n ? r : n - 1)]; /* a short tile repeats its last row */
        for (int32_t r = 0; r < n; r++) prefetch_row(a->v[i + r], s->v_row_bytes);
        for (int32_t g = 0, heads; g < s->group; g += heads) {
            heads = tile_heads(s->group, g);
            qk_heads(type, heads, a->q + g * s->head_dim, s->head_dim, row, &p[g][i]);
        }
        *a->k_rows += n;
    }
}

/* ---- weights ---- */

/* As the scalar weights_of; columns from n to the block's end become 0. */
static float weights_of(float *p, int32_t n, float *m, float *l)
{
    const __m512 minus_inf = _mm512_set1_ps(-INFINITY);
    __m512 x[4], max = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    SR_UNROLL for (int i = 0; i < 4; i++) {
        const int32_t left = n - 16 * i;
        const __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1u);
        x[i] = _mm512_mask_loadu_ps(minus_inf, mask, p + 16 * i);
        max = _mm512_max_ps(x[i], max); /* of a NaN and max, max */
    }
    const float new_m = _mm512_reduce_max_ps(max), base = new_m == -INFINITY ? 0.0f : new_m;
    const float shrink = _mm512_cvtss_f32(sr_exp_avx512(_mm512_set1_ps(*m - base)));
    SR_UNROLL for (int i = 0; i < 4; i++) {
        x[i] = sr_exp_avx512(_mm512_sub_ps(x[i], _mm512_set1_ps(base)));
        sum = _mm512_add_ps(sum, x[i]);
        _mm512_storeu_ps(p + 16 * i, x[i]);
    }
    *m = new_m;
    *l = *l * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

/* ---- outputs ---- */

struct pv_tile { const struct attn_block *a; const float *p; float *o; const float *shrink; int32_t at, n_rows; };

/* Elements [at, at + 16 n_vec) of the outputs of `heads` heads; with `part`, 8 elements. */
SR_INLINE void pv_tile(const sr_dtype type, const int heads, const int n_vec, const int part, struct pv_tile *t)
{
    const int32_t d = t->a->shape->head_dim;
    const __mmask16 mask = part ? 0xff : 0xffff;
    __m512 acc[TILE_HEADS][4], v[4];
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int j = 0; j < n_vec; j++)
            acc[g][j] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, t->o + g * d + t->at + 16 * j), _mm512_set1_ps(t->shrink[g]));
    int32_t i = 0;
    for (; i < t->a->n; i++) {
        const uint8_t *row = t->a->v[i];
        if (t->at == 0 && i < t->a->n_next) prefetch_row(t->a->next_k[i], t->a->shape->k_row_bytes);
        SR_UNROLL for (int j = 0; j < n_vec; j++) {
            v[j] = part ? sr_load_part_avx512(type, row, t->at, mask) : sr_load16_avx512(type, row, t->at + 16 * j);
            if (type == SR_DTYPE_Q8_0) v[j] = _mm512_mul_ps(v[j], sr_q8_scale_avx512(row, t->at + 16 * j));
        }
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const __m512 w = _mm512_set1_ps(t->p[g * SR_ATTN_BLOCK + i]);
            SR_UNROLL for (int j = 0; j < n_vec; j++) acc[g][j] = _mm512_fmadd_ps(w, v[j], acc[g][j]);
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int j = 0; j < n_vec; j++) _mm512_mask_storeu_ps(t->o + g * d + t->at + 16 * j, mask, acc[g][j]);
    t->n_rows = i;
}

SR_INLINE void pv_heads(const sr_dtype type, int32_t heads, const int n_vec, const int part, struct pv_tile *t)
{
    switch (heads) {
    case 1: pv_tile(type, 1, n_vec, part, t); return;
    case 2: pv_tile(type, 2, n_vec, part, t); return;
    case 3: pv_tile(type, 3, n_vec, part, t); return;
    case 4: pv_tile(type, 4, n_vec, part, t); return;
    case 5: pv_tile(type, 5, n_vec, part, t); return;
    default: pv_tile(type, 6, n_vec, part, t); return;
    }
}

SR_INLINE void outputs_of(const sr_dtype type, const struct attn_block *a, block_weights p, const float *shrink)
{
    const int32_t d = a->shape->head_dim, group = a->shape->group;
    for (int32_t g = 0, heads; g < group; g += heads) {
        heads = tile_heads(group, g);
        struct pv_tile t = {a, p[g], a->o + g * d, shrink + g, 0, 0};
        for (; t.at + 64 <= d; t.at += 64) pv_heads(type, heads, 4, 0, &t);
        for (; t.at + 16 <= d; t.at += 16) pv_heads(type, heads, 1, 0, &t);
        if (type != SR_DTYPE_Q8_0 && t.at < d) pv_heads(type, heads, 1, 1, &t);
        if (g == 0) *a->v_rows += t.n_rows;
    }
}

/* ---- by type ---- */

void sr_attn_block_avx512(const struct attn_block *a)
{
    block_weights p;
    float shrink[SR_ATTN_MAX_GROUP];
    switch (a->shape->k_type) {
    case SR_DTYPE_F32: logits_of(SR_DTYPE_F32, a, p); break;
    case SR_DTYPE_F16: logits_of(SR_DTYPE_F16, a, p); break;
    case SR_DTYPE_BF16: logits_of(SR_DTYPE_BF16, a, p); break;
    default: logits_of(SR_DTYPE_Q8_0, a, p); break;
    }
    for (int32_t g = 0; g < a->shape->group; g++) shrink[g] = weights_of(p[g], a->n, &a->m[g], &a->l[g]);
    switch (a->shape->v_type) {
    case SR_DTYPE_F32: outputs_of(SR_DTYPE_F32, a, p, shrink); break;
    case SR_DTYPE_F16: outputs_of(SR_DTYPE_F16, a, p, shrink); break;
    case SR_DTYPE_BF16: outputs_of(SR_DTYPE_BF16, a, p, shrink); break;
    default: outputs_of(SR_DTYPE_Q8_0, a, p, shrink); break;
    }
}
