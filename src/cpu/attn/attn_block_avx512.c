/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over a block of rows, 16 floats at a time. K: tiles of 4 rows x up to 6 heads keep 24 sums in registers
 * and load each element of a row once per tile. V: tiles of 64 elements x up to 6 heads keep the outputs in
 * registers over all rows. While K is read, the same rows of V are prefetched; while V is read, the next rows of K.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { TILE_HEADS = 6, TILE_ROWS = 4, LINE = SR_LINE };

/* ---- logits ---- */

SR_INLINE void qk_step(const int heads, __m512 acc[][TILE_ROWS], const float *q, int32_t d, const __m512 *k)
{
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512 x = _mm512_loadu_ps(q + g * d);
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_fmadd_ps(x, k[r], acc[g][r]);
    }
}

/* Four rows: their addresses, and for a blocked type the place of each in the table of scales. */
struct qk_rows {
    const uint8_t *row[TILE_ROWS];
    const float *scale[TILE_ROWS];
    const uint8_t *const *ahead; /* rows to fetch meanwhile, or NULL; a part of each with every 32 elements */
    size_t ahead_step;
};

/* Fetching whole rows fills the core's 16 line buffers where four rows are more than 8 lines, and products wait behind
 * them; such rows are fetched a part at a time, between the products. */
SR_INLINE int is_spread(size_t row_bytes)
{
    return row_bytes > 2 * LINE && row_bytes % LINE == 0;
}

/* What belongs to elements [i, i + 32) of the rows to come. */
SR_INLINE void fetch_ahead(const struct qk_rows *t, int32_t i)
{
    const size_t at = (size_t)(i / 32) * t->ahead_step;
    SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) _mm_prefetch((const char *)t->ahead[r] + at, _MM_HINT_T0);
    if (t->ahead_step > LINE)
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) _mm_prefetch((const char *)t->ahead[r] + at + LINE, _MM_HINT_T0);
}

/* Elements [i, i + 32) of Q4_0 rows: the scale is multiplied into the sixteen values that a code can stand for. */
SR_INLINE void qk_step_q4(const int heads, __m512 acc[][TILE_ROWS], const float *q, int32_t d, const struct qk_rows *t, int32_t i)
{
    __m512 k[TILE_ROWS];
    SR_UNROLL for (int j = 0; j < 2; j++) {
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++)
            k[r] = _mm512_mul_ps(sr_load16_at_avx512(SR_DTYPE_Q4_0, t->row[r], i, j), _mm512_set1_ps(t->scale[r][i / 32 * SR_ATTN_BLOCK]));
        qk_step(heads, acc, q + i + 16 * j, d, k);
    }
}

SR_INLINE void qk_tile(const sr_dtype type, const int heads, const float *q, int32_t d, const struct qk_rows *t, float *out)
{
    __m512 acc[TILE_HEADS][TILE_ROWS], k[TILE_ROWS];
    int32_t i = 0;
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_setzero_ps();
    for (; type == SR_DTYPE_Q4_0 && i < d; i += 32) {
        if (t->ahead) fetch_ahead(t, i);
        qk_step_q4(heads, acc, q, d, t, i);
    }
    for (; i + 16 <= d; i += 16) {
        if (t->ahead && i % 32 == 0) fetch_ahead(t, i);
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            k[r] = sr_load16_avx512(type, t->row[r], i);
            if (type == SR_DTYPE_Q8_0) k[r] = _mm512_mul_ps(k[r], _mm512_set1_ps(t->scale[r][i / 32 * SR_ATTN_BLOCK]));
        }
        qk_step(heads, acc, q + i, d, k);
    }
    if (!sr_kv_is_blocked(type) && i < d) {
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) k[r] = sr_load_part_avx512(type, t->row[r], i, 0xff);
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const __m512 x = _mm512_maskz_loadu_ps(0xff, q + g * d + i);
            SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_fmadd_ps(x, k[r], acc[g][r]);
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++)
        _mm_storeu_ps(out + g * SR_ATTN_BLOCK, sr_sum4_avx512(acc[g][0], acc[g][1], acc[g][2], acc[g][3]));
}

SR_INLINE void qk_heads(const sr_dtype type, int32_t heads, const float *q, int32_t d, const struct qk_rows *t, float *out)
{
    switch (heads) {
    case 1: qk_tile(type, 1, q, d, t, out); return;
    case 2: qk_tile(type, 2, q, d, t, out); return;
    case 3: qk_tile(type, 3, q, d, t, out); return;
    case 4: qk_tile(type, 4, q, d, t, out); return;
    case 5: qk_tile(type, 5, q, d, t, out); return;
    default: qk_tile(type, 6, q, d, t, out); return;
    }
}

/* Heads of the tile that starts at g, so that all tiles of the group are about equal. */
SR_INLINE int32_t tile_heads(int32_t group, int32_t g)
{
    const int32_t tiles = (group - g + TILE_HEADS - 1) / TILE_HEADS;
    return (group - g + tiles - 1) / tiles;
}

SR_INLINE void logits_of(const sr_dtype type, const struct attn_block *a, sr_block_weights p)
{
    const struct attn_shape *s = a->shape;
    sr_block_scales scales;
    if (sr_kv_is_blocked(type)) sr_load_scales_avx512(type, a->k, a->n, s->head_dim, scales);
    for (int32_t i = 0; i < a->n; i += TILE_ROWS) {
        const int32_t left = a->n - i, n = left < TILE_ROWS ? left : TILE_ROWS;
        struct qk_rows t = {.ahead_step = s->v_row_bytes * 32 / (size_t)s->head_dim};
        for (int32_t r = 0; r < TILE_ROWS; r++) {
            const int32_t at = i + (r < n ? r : n - 1); /* a short tile repeats its last row */
            t.row[r] = a->k[at];
            t.scale[r] = &scales[0][at];
        }
        const int spread = n == TILE_ROWS && is_spread(s->v_row_bytes);
        for (int32_t r = 0; r < n && !spread; r++) sr_prefetch_row_avx512(a->v[i + r], s->v_row_bytes);
        for (int32_t g = 0, heads; g < s->group; g += heads) {
            heads = tile_heads(s->group, g);
            t.ahead = g == 0 && spread ? a->v + i : NULL;
            qk_heads(type, heads, a->q + g * s->head_dim, s->head_dim, &t, &p[g][i]);
        }
        *a->k_rows += n;
    }
}

/* ---- weights ---- */

/* As the scalar weights_of; those up to the next multiple of 16 become 0. */
static float weights_of(float *p, int32_t n, float *m, float *l)
{
    __m512 max = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    if (n % 16) _mm512_mask_storeu_ps(p + n / 16 * 16, (__mmask16)(0xffffu << n % 16), _mm512_set1_ps(-INFINITY));
    for (int32_t i = 0; i < n; i += 16) max = _mm512_max_ps(_mm512_loadu_ps(p + i), max); /* of a NaN and max, max */
    const float new_m = _mm512_reduce_max_ps(max), base = new_m == -INFINITY ? 0.0f : new_m;
    const float shrink = _mm512_cvtss_f32(sr_exp_avx512(_mm512_set1_ps(*m - base)));
    for (int32_t i = 0; i < n; i += 16) {
        const __m512 x = sr_exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(p + i), _mm512_set1_ps(base)));
        _mm512_storeu_ps(p + i, x);
        sum = _mm512_add_ps(sum, x);
    }
    *m = new_m;
    *l = *l * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

/* ---- outputs ---- */

/* p holds the weights of the tile's heads, SR_ATTN_BLOCK apart; p2 those of the second half of 64 elements, the same
 * except for blocked types, where weights already hold the scale of their 32 elements. */
struct pv_tile { const struct attn_block *a; const float *p, *p2; float *o; const float *shrink; int32_t at, n_rows; int first; };

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
    const size_t k_bytes = t->a->shape->k_row_bytes, part_at = k_bytes * (size_t)t->at / (size_t)d;
    const size_t part_bytes = k_bytes * (size_t)(n_vec * 16) / (size_t)d;
    const int spread = is_spread(k_bytes), fetches = t->first && (spread || t->at == 0);
    for (; i < t->a->n; i++) {
        const uint8_t *row = t->a->v[i];
        if (fetches && i < t->a->n_next) {
            if (spread) {
                for (size_t b = 0; b < part_bytes; b += LINE) _mm_prefetch((const char *)t->a->next_k[i] + part_at + b, _MM_HINT_T0);
            } else {
                sr_prefetch_row_avx512(t->a->next_k[i], k_bytes);
            }
        }
        SR_UNROLL for (int j = 0; j < n_vec; j++)
            v[j] = part         ? sr_load_part_avx512(type, row, t->at, mask)
                   : n_vec == 4 ? sr_load16_at_avx512(type, row, t->at, j)
                                : sr_load16_avx512(type, row, t->at + 16 * j);
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const __m512 w = _mm512_set1_ps(t->p[g * SR_ATTN_BLOCK + i]);
            const __m512 w2 = sr_kv_is_blocked(type) ? _mm512_set1_ps(t->p2[g * SR_ATTN_BLOCK + i]) : w;
            SR_UNROLL for (int j = 0; j < n_vec; j++) acc[g][j] = _mm512_fmadd_ps(j < 2 ? w : w2, v[j], acc[g][j]);
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

/* The weights of `heads` heads times the scales of blocks b and, if it is there, b + 1. */
static void scale_weights(const struct attn_block *a, const float *p, int32_t heads, sr_block_scales scale, int32_t b,
                          float out[][TILE_HEADS * SR_ATTN_BLOCK])
{
    const int32_t last = b + 1 < a->shape->head_dim / 32 ? b + 1 : b;
    for (int32_t g = 0; g < heads; g++)
        for (int32_t i = g * SR_ATTN_BLOCK, k = 0; k < a->n; i += 16, k += 16) {
            const __m512 x = _mm512_loadu_ps(p + i);
            _mm512_storeu_ps(&out[0][i], _mm512_mul_ps(x, _mm512_loadu_ps(&scale[b][k])));
            _mm512_storeu_ps(&out[1][i], _mm512_mul_ps(x, _mm512_loadu_ps(&scale[last][k])));
        }
}

SR_INLINE void outputs_of(const sr_dtype type, const struct attn_block *a, sr_block_weights p, const float *shrink)
{
    const int32_t d = a->shape->head_dim, group = a->shape->group;
    for (int32_t g = 0, heads; g < group; g += heads) {
        heads = tile_heads(group, g);
        struct pv_tile t = {a, p[g], p[g], a->o + g * d, shrink + g, 0, 0, g == 0};
        for (; t.at + 64 <= d; t.at += 64) pv_heads(type, heads, 4, 0, &t);
        for (; t.at + 16 <= d; t.at += 16) pv_heads(type, heads, 1, 0, &t);
        if (t.at < d) pv_heads(type, heads, 1, 1, &t);
        if (g == 0) *a->v_rows += t.n_rows;
    }
}

SR_INLINE void outputs_of_blocked(const sr_dtype type, const struct attn_block *a, sr_block_weights p, const float *shrink)
{
    const int32_t d = a->shape->head_dim, group = a->shape->group;
    sr_block_scales scale;
    float scaled[2][TILE_HEADS * SR_ATTN_BLOCK];
    sr_load_scales_avx512(type, a->v, a->n, d, scale);
    for (int32_t g = 0, heads; g < group; g += heads) {
        heads = tile_heads(group, g);
        struct pv_tile t = {a, scaled[0], scaled[1], a->o + g * d, shrink + g, 0, 0, g == 0};
        for (int32_t step; t.at < d; t.at += step) {
            step = d - t.at >= 64 ? 64 : 16;
            if (t.at % 32 == 0) scale_weights(a, p[g], heads, scale, t.at / 32, scaled);
            if (step == 64) pv_heads(type, heads, 4, 0, &t);
            else pv_heads(type, heads, 1, 0, &t);
        }
        if (g == 0) *a->v_rows += t.n_rows;
    }
}

/* ---- by type ---- */

void sr_attn_logits_avx512(const struct attn_block *a, sr_block_weights p)
{
    switch (a->shape->k_type) {
    case SR_DTYPE_F32: logits_of(SR_DTYPE_F32, a, p); break;
    case SR_DTYPE_F16: logits_of(SR_DTYPE_F16, a, p); break;
    case SR_DTYPE_BF16: logits_of(SR_DTYPE_BF16, a, p); break;
    case SR_DTYPE_F8_E4M3: logits_of(SR_DTYPE_F8_E4M3, a, p); break;
    case SR_DTYPE_Q8_0: logits_of(SR_DTYPE_Q8_0, a, p); break;
    default: logits_of(SR_DTYPE_Q4_0, a, p); break;
    }
}

void sr_attn_outputs_avx512(const struct attn_block *a, sr_block_weights p)
{
    float shrink[SR_ATTN_MAX_GROUP];
    for (int32_t g = 0; g < a->shape->group; g++) shrink[g] = weights_of(p[g], a->n, &a->m[g], &a->l[g]);
    switch (a->shape->v_type) {
    case SR_DTYPE_F32: outputs_of(SR_DTYPE_F32, a, p, shrink); break;
    case SR_DTYPE_F16: outputs_of(SR_DTYPE_F16, a, p, shrink); break;
    case SR_DTYPE_BF16: outputs_of(SR_DTYPE_BF16, a, p, shrink); break;
    case SR_DTYPE_F8_E4M3: outputs_of(SR_DTYPE_F8_E4M3, a, p, shrink); break;
    case SR_DTYPE_Q8_0: outputs_of_blocked(SR_DTYPE_Q8_0, a, p, shrink); break;
    default: outputs_of_blocked(SR_DTYPE_Q4_0, a, p, shrink); break;
    }
}

void sr_attn_block_avx512(const struct attn_block *a)
{
    sr_block_weights p;
    sr_attn_logits_avx512(a, p);
    sr_attn_outputs_avx512(a, p);
}
