/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over a block of rows, 16 floats at a time. K: tiles of 4 rows x up to 7 heads keep 28 sums in registers
 * and load each element of a row once per tile. V: tiles of 64 elements x up to 7 heads keep the outputs in
 * registers over all rows. While K is read, the same rows of V are prefetched; while V is read, the next rows of K.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

/* WIDE_ROWS: V rows of more than 64 elements are read twice or more, in passes over so many rows. */
enum { TILE_HEADS = 7, TILE_ROWS = 4, WIDE_ROWS = 32, LINE = SR_LINE };

/* ---- logits ---- */

/* Four rows: their addresses, and for a blocked type the place of each in the table of scales. What to fetch meanwhile: what
 * follows `stream`, where the four lie, or lines of four rows to come, or nothing. */
struct qk_rows {
    const uint8_t *row[TILE_ROWS];
    const float *scale[TILE_ROWS];
    const uint8_t *stream;
    const uint8_t *const *ahead;
};

/* Bytes of n elements of a row, and lines to ask for while as many are read: about one for each 64 bytes. */
SR_INLINE int32_t bytes_of(const sr_dtype type, int32_t n)
{
    if (sr_kv_is_blocked(type)) return n * sr_kv_block_bytes(type) / SR_KV_BLOCK;
    return type == SR_DTYPE_F32 ? 4 * n : type == SR_DTYPE_F8_E4M3 ? n : 2 * n;
}
SR_INLINE int32_t lines_of(int32_t bytes) { return bytes < LINE ? 1 : bytes / LINE; }

/* Lines [from, to) of those that go with elements [i, i + n) of the tile. Rows of a list have them in turns, in whole lines. */
SR_INLINE void fetch_keys(const sr_dtype type, const struct qk_rows *t, int32_t i, const int32_t n, const int from, const int to)
{
    const int32_t bytes = bytes_of(type, TILE_ROWS * n), lines = lines_of(bytes);
    SR_UNROLL for (int k = from; k < to; k++) {
        if (t->stream) {
            sr_fetch_ahead_avx512(t->stream + i / n * bytes + k * (bytes / lines), SR_AHEAD);
        } else if (t->ahead) {
            const int32_t line = i / n * lines + k;
            _mm_prefetch((const char *)t->ahead[line % TILE_ROWS] + line / TILE_ROWS * LINE, _MM_HINT_T0);
        }
    }
}

SR_INLINE void qk_step(const sr_dtype type, const int heads, __m512 acc[][TILE_ROWS], const float *q, int32_t d, const struct qk_rows *t,
                       int32_t i, const int32_t n, const __m512 *k)
{
    const int lines = lines_of(bytes_of(type, TILE_ROWS * n)), half = lines / 2;
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512 x = _mm512_loadu_ps(q + g * d + i);
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_fmadd_ps(x, k[r], acc[g][r]);
        if (g == (heads - 1) / 2 && i % n == 0) fetch_keys(type, t, i, n, half, lines);
    }
}

SR_INLINE void qk_tile(const sr_dtype type, const int heads, const float *q, int32_t d, const struct qk_rows *t, float *out)
{
    const int32_t n = type == SR_DTYPE_Q4_0 ? 32 : 16;
    __m512 acc[TILE_HEADS][TILE_ROWS], k[TILE_ROWS];
    int32_t i = 0;
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[g][r] = _mm512_setzero_ps();
    for (; i + n <= d; i += n) {
        fetch_keys(type, t, i, n, 0, lines_of(bytes_of(type, TILE_ROWS * n)) / 2);
        SR_UNROLL for (int j = 0; j < n / 16; j++) {
            SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
                /* of Q4_0 the scale is multiplied into the sixteen values that a code can stand for */
                k[r] = n == 32 ? sr_load16_at_avx512(type, t->row[r], i, j) : sr_load16_avx512(type, t->row[r], i);
                if (sr_kv_is_blocked(type)) k[r] = _mm512_mul_ps(k[r], _mm512_set1_ps(t->scale[r][i / 32 * SR_ATTN_BLOCK]));
            }
            qk_step(type, heads, acc, q, d, t, i + 16 * j, n, k);
        }
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
    case 6: qk_tile(type, 6, q, d, t, out); return;
    default: qk_tile(type, 7, q, d, t, out); return;
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
    const int stream = sr_is_stream_avx512(a), spread = s->k_row_bytes == s->v_row_bytes && s->k_row_bytes % LINE == 0;
    const uint8_t *next = stream && sr_next_avx512(a) == SR_NEXT_JUMPS ? a->next_k[0] : NULL;
    sr_block_scales scales;
    if (sr_kv_is_blocked(type)) sr_load_scales_avx512(type, a->k, a->n, s->head_dim, scales);
    for (int32_t i = 0; i < a->n; i += TILE_ROWS) {
        const int32_t left = a->n - i, n = left < TILE_ROWS ? left : TILE_ROWS;
        struct qk_rows t = {.stream = NULL};
        for (int32_t r = 0; r < TILE_ROWS; r++) {
            const int32_t at = i + (r < n ? r : n - 1); /* a short tile repeats its last row */
            t.row[r] = a->k[at];
            t.scale[r] = &scales[0][at];
        }
        const int spreads = spread && n == TILE_ROWS;
        for (int32_t r = 0; r < n && !stream && !spreads; r++) sr_prefetch_row_avx512(a->v[i + r], s->v_row_bytes);
        for (int32_t g = 0, heads; g < s->group; g += heads) {
            heads = tile_heads(s->group, g);
            t.stream = g == 0 && stream ? sr_stream_at_avx512(a->k, i, s->k_row_bytes, next, SR_AHEAD) : NULL;
            t.ahead = g == 0 && spreads && !stream ? a->v + i : NULL;
            qk_heads(type, heads, a->q + g * s->head_dim, s->head_dim, &t, &p[g][i]);
        }
        *a->k_rows += n;
    }
}

/* ---- weights ---- */

/* As the scalar weights_of, for up to four heads, whose chains of reductions so overlap; weights up to the next multiple of
 * 16 rows become 0. */
SR_INLINE void weigh(const int heads, float (*p)[SR_ATTN_BLOCK], int32_t n, float *m, float *l, float *shrink)
{
    const __mmask8 mask = (__mmask8)((1u << heads) - 1);
    const __m128 none = _mm_set1_ps(-INFINITY), old = _mm_mask_loadu_ps(none, mask, m);
    __m512 top[4], sum[4];
    float base[4];
    SR_UNROLL for (int g = 0; g < heads; g++) {
        if (n % 16) _mm512_mask_storeu_ps(p[g] + n / 16 * 16, (__mmask16)(0xffffu << n % 16), _mm512_set1_ps(-INFINITY));
        top[g] = _mm512_set1_ps(-INFINITY);
    }
    for (int32_t i = 0; i < n; i += 16) /* of a NaN and top, top */
        SR_UNROLL for (int g = 0; g < heads; g++) top[g] = _mm512_max_ps(_mm512_loadu_ps(p[g] + i), top[g]);
    SR_UNROLL for (int g = heads; g < 4; g++) top[g] = top[0];
    const __m128 most = _mm_max_ps(sr_max4_avx512(top[0], top[1], top[2], top[3]), old);
    const __m128 from = _mm_maskz_mov_ps(_mm_cmp_ps_mask(most, none, _CMP_NEQ_OQ), most);
    _mm_storeu_ps(base, from);
    SR_UNROLL for (int g = 0; g < 4; g++) sum[g] = _mm512_setzero_ps();
    for (int32_t i = 0; i < n; i += 16)
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const __m512 x = sr_exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(p[g] + i), _mm512_set1_ps(base[g])));
            _mm512_storeu_ps(p[g] + i, x);
            sum[g] = _mm512_add_ps(sum[g], x);
        }
    const __m128 by = _mm512_castps512_ps128(sr_exp_avx512(_mm512_castps128_ps512(_mm_sub_ps(old, from))));
    const __m128 all = sr_sum4_avx512(sum[0], sum[1], sum[2], sum[3]);
    _mm_mask_storeu_ps(l, mask, _mm_fmadd_ps(_mm_maskz_loadu_ps(mask, l), by, all));
    _mm_mask_storeu_ps(m, mask, most);
    _mm_mask_storeu_ps(shrink, mask, by);
}

void sr_attn_weights_avx512(const struct attn_block *a, sr_block_weights p, float *shrink)
{
    for (int32_t g = 0; g < a->shape->group; g += 4) {
        float *m = a->m + g, *l = a->l + g, *by = shrink + g;
        switch (a->shape->group - g) {
        case 1: weigh(1, p + g, a->n, m, l, by); break;
        case 2: weigh(2, p + g, a->n, m, l, by); break;
        case 3: weigh(3, p + g, a->n, m, l, by); break;
        default: weigh(4, p + g, a->n, m, l, by); break;
        }
    }
}

/* ---- outputs ---- */

/* Elements [at, at + 64 or less) of rows [row0, row1). p holds the weights of the tile's heads, SR_ATTN_BLOCK apart; p2
 * those of the second half of 64 elements, the same except for blocked types, where weights already hold the scale of
 * their 32 elements. Fetched meanwhile: what follows `stream`, or `ahead` bytes of the next block's rows, from ahead_at. */
struct pv_tile {
    const struct attn_block *a;
    const float *p, *p2;
    float *o;
    const float *shrink;
    int32_t at, row0, row1;
    const uint8_t *stream;
    size_t ahead, ahead_at;
};

/* Lines [from, to) of those that go with a row's part. */
SR_INLINE void fetch_values(const uint8_t *stream, const int32_t bytes, const int from, const int to)
{
    if (!stream) return;
    SR_UNROLL for (int k = from; k < to; k++) sr_fetch_ahead_avx512(stream + k * (bytes / lines_of(bytes)), SR_AHEAD_WIDE);
}

/* Elements [at, at + 16 n_vec) of the outputs of `heads` heads; with `part`, 8 elements. */
SR_INLINE void pv_tile(const sr_dtype type, const int heads, const int n_vec, const int part, struct pv_tile *t)
{
    const int32_t d = t->a->shape->head_dim, bytes = bytes_of(type, 16 * n_vec), lines = lines_of(bytes);
    const __mmask16 mask = part ? 0xff : 0xffff;
    const uint8_t *stream = t->stream;
    __m512 acc[TILE_HEADS][4], v[4];
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int j = 0; j < n_vec; j++)
            acc[g][j] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, t->o + g * d + t->at + 16 * j), _mm512_set1_ps(t->shrink[g]));
    for (int32_t i = t->row0; i < t->row1; i++) {
        const uint8_t *row = t->a->v[i];
        fetch_values(stream, bytes, 0, lines / 2);
        if (i < t->a->n_next)
            for (size_t b = 0; b < t->ahead; b += LINE) _mm_prefetch((const char *)t->a->next_k[i] + t->ahead_at + b, _MM_HINT_T0);
        SR_UNROLL for (int j = 0; j < n_vec; j++)
            v[j] = part         ? sr_load_part_avx512(type, row, t->at, mask)
                   : n_vec == 4 ? sr_load16_at_avx512(type, row, t->at, j)
                                : sr_load16_avx512(type, row, t->at + 16 * j);
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const __m512 w = _mm512_set1_ps(t->p[g * SR_ATTN_BLOCK + i]);
            const __m512 w2 = sr_kv_is_blocked(type) ? _mm512_set1_ps(t->p2[g * SR_ATTN_BLOCK + i]) : w;
            SR_UNROLL for (int j = 0; j < n_vec; j++) acc[g][j] = _mm512_fmadd_ps(j < 2 ? w : w2, v[j], acc[g][j]);
            if (g == (heads - 1) / 2) fetch_values(stream, bytes, lines / 2, lines);
        }
        stream += stream ? bytes : 0;
    }
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int j = 0; j < n_vec; j++) _mm512_mask_storeu_ps(t->o + g * d + t->at + 16 * j, mask, acc[g][j]);
}

SR_INLINE void pv_heads(const sr_dtype type, int32_t heads, const int n_vec, const int part, struct pv_tile *t)
{
    switch (heads) {
    case 1: pv_tile(type, 1, n_vec, part, t); return;
    case 2: pv_tile(type, 2, n_vec, part, t); return;
    case 3: pv_tile(type, 3, n_vec, part, t); return;
    case 4: pv_tile(type, 4, n_vec, part, t); return;
    case 5: pv_tile(type, 5, n_vec, part, t); return;
    case 6: pv_tile(type, 6, n_vec, part, t); return;
    default: pv_tile(type, 7, n_vec, part, t); return;
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

/* What the tile fetches, in the passes of the first heads; next: as of sr_next_avx512, where the block is a stream. */
SR_INLINE void set_fetch(struct pv_tile *t, int stream, int next, int32_t n)
{
    const struct attn_shape *s = t->a->shape;
    const size_t part = s->k_row_bytes * (size_t)n / (size_t)s->head_dim, passed = s->v_row_bytes * (size_t)t->at / (size_t)s->head_dim;
    const int spread = s->k_row_bytes % LINE == 0 && part >= LINE;
    const uint8_t *jump = next == SR_NEXT_JUMPS ? t->a->next_v[0] : NULL;
    t->stream = NULL;
    if (stream)
        t->stream = sr_stream_at_avx512(t->a->v, t->row0, s->v_row_bytes, jump, SR_AHEAD_WIDE) + (size_t)(t->row1 - t->row0) * passed;
    t->ahead = next ? 0 : spread ? part : t->at == 0 ? s->k_row_bytes : 0;
    t->ahead_at = spread ? s->k_row_bytes * (size_t)t->at / (size_t)s->head_dim : 0;
}

static const float ones[TILE_HEADS] = {1, 1, 1, 1, 1, 1, 1};

SR_INLINE void outputs_of(const sr_dtype type, const struct attn_block *a, sr_block_weights p, const float *shrink)
{
    const int32_t d = a->shape->head_dim, group = a->shape->group, rows = d > 64 ? WIDE_ROWS : SR_ATTN_BLOCK;
    const int stream = sr_is_stream_avx512(a), next = stream ? sr_next_avx512(a) : 0;
    for (int32_t g = 0, heads; g < group; g += heads) {
        heads = tile_heads(group, g);
        struct pv_tile t = {.a = a, .p = p[g], .p2 = p[g], .o = a->o + g * d, .shrink = shrink + g};
        for (; t.row0 < a->n; t.row0 = t.row1, t.shrink = ones) {
            t.row1 = a->n - t.row0 < rows ? a->n : t.row0 + rows;
            for (t.at = 0; t.at < d; t.at += d - t.at >= 64 ? 64 : 16) {
                if (g == 0) set_fetch(&t, stream, next, d - t.at >= 64 ? 64 : 16);
                if (d - t.at >= 64) pv_heads(type, heads, 4, 0, &t);
                else pv_heads(type, heads, 1, d - t.at < 16, &t);
            }
            t.stream = NULL;
            t.ahead = 0;
        }
        if (g == 0) *a->v_rows += a->n;
    }
}

SR_INLINE void outputs_of_blocked(const sr_dtype type, const struct attn_block *a, sr_block_weights p, const float *shrink)
{
    const int32_t d = a->shape->head_dim, group = a->shape->group;
    const int stream = sr_is_stream_avx512(a), next = stream ? sr_next_avx512(a) : 0;
    sr_block_scales scale;
    float scaled[2][TILE_HEADS * SR_ATTN_BLOCK];
    sr_load_scales_avx512(type, a->v, a->n, d, scale);
    for (int32_t g = 0, heads; g < group; g += heads) {
        heads = tile_heads(group, g);
        struct pv_tile t = {.a = a, .p = scaled[0], .p2 = scaled[1], .o = a->o + g * d, .shrink = shrink + g, .row1 = a->n};
        for (int32_t step; t.at < d; t.at += step) {
            step = d - t.at >= 64 ? 64 : 16;
            if (g == 0) set_fetch(&t, stream, next, step);
            if (t.at % 32 == 0) scale_weights(a, p[g], heads, scale, t.at / 32, scaled);
            if (step == 64) pv_heads(type, heads, 4, 0, &t);
            else pv_heads(type, heads, 1, 0, &t);
        }
        if (g == 0) *a->v_rows += a->n;
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
    sr_attn_weights_avx512(a, p, shrink);
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
