/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over a block of rows in terms of the vector layer. K: two rows times up to four heads per pass over the
 * elements; V: outputs of up to four heads in registers over all rows.
 */
#ifndef SR_CPU_ATTN_ATTN_BLOCK_BODY_H
#define SR_CPU_ATTN_ATTN_BLOCK_BODY_H

#include "cpu/kernels.h"
#include "cpu/attn/vec_math_body.h"

#include <math.h>

/* PASS_ROWS: V rows are read in passes over so many, two vectors of each at a time. AHEAD, PAGE_FIRST: as in attn_avx512.h. */
enum { BLOCK_HEADS = 4, BLOCK_ROWS = 2, PASS_ROWS = 16, LINE = 64, AHEAD = 4096, AHEAD_PASS = 8192, PAGE_BYTES = 4096, PAGE_FIRST = 512 };

typedef float block_weights[SR_ATTN_MAX_GROUP][SR_ATTN_BLOCK];

SR_INLINE void prefetch_row(const uint8_t *row, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += LINE) vec_prefetch(row + i);
}

/* ---- what to fetch ---- */

/* Whether a whole block's rows are two streams. */
SR_INLINE int is_stream(const struct attn_block *a)
{
    const struct attn_shape *s = a->shape;
    const int32_t last = SR_ATTN_BLOCK - 1;
    return a->n == SR_ATTN_BLOCK && a->k[last] == a->k[0] + (size_t)last * s->k_row_bytes && a->v[last] == a->v[0] + (size_t)last * s->v_row_bytes;
}

/* Whether the next block is the streams' continuation, or begins two others. */
enum { NEXT_FOLLOWS = 1, NEXT_JUMPS = 2 };
SR_INLINE int next_is(const struct attn_block *a)
{
    const struct attn_shape *s = a->shape;
    const size_t last = SR_ATTN_BLOCK - 1;
    if (a->n_next > 0 && a->next_k[0] == a->k[a->n - 1] + s->k_row_bytes) return NEXT_FOLLOWS;
    return a->n_next == SR_ATTN_BLOCK && a->next_k[last] == a->next_k[0] + last * s->k_row_bytes &&
           a->next_v[last] == a->next_v[0] + last * s->v_row_bytes ? NEXT_JUMPS : 0;
}

/* From where to ask for what lies `ahead` of a block's row i: beyond the block's end are, if not NULL, the rows from next on. */
SR_INLINE const uint8_t *stream_at(const uint8_t *const *row, int32_t i, size_t bytes, const uint8_t *next, size_t ahead)
{
    const size_t left = (size_t)(SR_ATTN_BLOCK - i) * bytes;
    return next && left <= ahead ? (const uint8_t *)((uintptr_t)next - left) : row[i];
}

SR_INLINE int32_t bytes_of(const sr_dtype type, int32_t n)
{
    if (sr_kv_is_blocked(type)) return n * sr_kv_block_bytes(type) / SR_KV_BLOCK;
    return type == SR_DTYPE_F32 ? 4 * n : type == SR_DTYPE_F8_E4M3 ? n : 2 * n;
}

/* `bytes` of a stream are about to be read at `at`: asks for as many further on; about one line for each 64 bytes. */
SR_INLINE void fetch_stream(const uint8_t *at, const int32_t bytes, const int ahead)
{
    const int32_t lines = bytes < LINE ? 1 : bytes / LINE;
    SR_UNROLL for (int32_t k = 0; k < lines; k++) vec_prefetch(at + k * (bytes / lines) + ahead);
    if ((uintptr_t)at % PAGE_BYTES < PAGE_FIRST)
        SR_UNROLL for (int32_t k = 0; k < lines; k++) vec_prefetch_far(at + k * (bytes / lines) + ahead + PAGE_BYTES);
}

/* ---- logits ---- */

struct qk_rows { const uint8_t *row[BLOCK_ROWS], *stream; };

SR_INLINE void qk_step(const sr_dtype type, const int heads, vec acc[][BLOCK_ROWS], const float *q, int32_t d, const struct qk_rows *t, int32_t i,
                       const int32_t j)
{
    vec k[BLOCK_ROWS];
    SR_UNROLL for (int r = 0; r < BLOCK_ROWS; r++) k[r] = vec_value_at(type, t->row[r], i, j);
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const vec x = vec_load(q + g * d + i + j);
        SR_UNROLL for (int r = 0; r < BLOCK_ROWS; r++) acc[g][r] = vec_fma(x, k[r], acc[g][r]);
    }
}

SR_INLINE void qk_tile(const sr_dtype type, const int heads, const float *q, int32_t d, const struct qk_rows *t, float *out)
{
    vec acc[BLOCK_HEADS][BLOCK_ROWS];
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int r = 0; r < BLOCK_ROWS; r++) acc[g][r] = vec_all(0);
    const int32_t step = sr_kv_is_blocked(type) ? SR_KV_BLOCK : 16, bytes = bytes_of(type, BLOCK_ROWS * step);
    int32_t i = 0;
    for (; i + step <= d; i += step) {
        if (t->stream) fetch_stream(t->stream + i / step * bytes, bytes, AHEAD);
        SR_UNROLL for (int32_t j = 0; j < step; j += VEC) qk_step(type, heads, acc, q, d, t, i, j);
    }
    for (; !sr_kv_is_blocked(type) && i < d; i += VEC) qk_step(type, heads, acc, q, d, t, i, 0);
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int r = 0; r < BLOCK_ROWS; r++) out[g * SR_ATTN_BLOCK + r] = vec_sum(acc[g][r]);
}

SR_INLINE void qk_heads(const sr_dtype type, int32_t heads, const float *q, int32_t d, const struct qk_rows *t, float *out)
{
    switch (heads) {
    case 1: qk_tile(type, 1, q, d, t, out); return;
    case 2: qk_tile(type, 2, q, d, t, out); return;
    case 3: qk_tile(type, 3, q, d, t, out); return;
    default: qk_tile(type, 4, q, d, t, out); return;
    }
}

/* Heads of the tile that starts at g, so that all tiles of the group are about equal. */
SR_INLINE int32_t tile_heads(int32_t group, int32_t g)
{
    const int32_t tiles = (group - g + BLOCK_HEADS - 1) / BLOCK_HEADS;
    return (group - g + tiles - 1) / tiles;
}

/* p has room for a row beyond the last one. */
SR_INLINE void logits_of(const sr_dtype type, const struct attn_block *a, block_weights p)
{
    const struct attn_shape *s = a->shape;
    const int stream = is_stream(a);
    const uint8_t *next = stream && next_is(a) == NEXT_JUMPS ? a->next_k[0] : NULL;
    for (int32_t i = 0; i < a->n; i += BLOCK_ROWS) {
        const int32_t n = a->n - i < BLOCK_ROWS ? a->n - i : BLOCK_ROWS;
        struct qk_rows t;
        for (int32_t r = 0; r < BLOCK_ROWS; r++) t.row[r] = a->k[i + (r < n ? r : n - 1)]; /* a short tile repeats its last row */
        for (int32_t r = 0; r < n && !stream; r++) prefetch_row(a->v[i + r], s->v_row_bytes);
        for (int32_t g = 0, heads; g < s->group; g += heads) {
            heads = tile_heads(s->group, g);
            t.stream = stream && g == 0 ? stream_at(a->k, i, s->k_row_bytes, next, AHEAD) : NULL;
            qk_heads(type, heads, a->q + g * s->head_dim, s->head_dim, &t, &p[g][i]);
        }
        *a->k_rows += n;
    }
}

/* ---- weights ---- */

/* n logits become weights, those up to the next whole vector 0; m and l move on. Returns the factor of the old output. */
SR_INLINE float weights_of(float *p, int32_t n, float *m, float *l)
{
    vec max = vec_all(*m), sum = vec_all(0);
    for (int32_t i = n; i % VEC; i++) p[i] = -INFINITY;
    for (int32_t i = 0; i < n; i += VEC) max = vec_max(vec_load(p + i), max); /* of a NaN and max, max */
    const float new_m = vec_top(max), base = new_m == -INFINITY ? 0.0f : new_m;
    for (int32_t i = 0; i < n; i += VEC) {
        const vec x = vec_exp(vec_sub(vec_load(p + i), vec_all(base)));
        vec_store(p + i, x);
        sum = vec_add(sum, x);
    }
    const float shrink = expf(*m - base);
    *m = new_m;
    *l = *l * shrink + vec_sum(sum);
    return shrink;
}

/* ---- outputs ---- */

/* Of rows [row0, row1). next: whether the next block's K rows are to be fetched meanwhile. */
struct pv_tile {
    const struct attn_block *a;
    const float *p;
    float *o;
    const float *shrink;
    int32_t at, row0, row1, next;
    const uint8_t *stream;
};

SR_INLINE void pv_row(const sr_dtype type, const int heads, const int n_vec, const struct pv_tile *t, int32_t i, vec acc[][2])
{
    const int32_t step = sr_kv_is_blocked(type) ? SR_KV_BLOCK : 1; /* the two vectors are parts of one block */
    vec v[2];
    SR_UNROLL for (int j = 0; j < n_vec; j++) v[j] = vec_value_at(type, t->a->v[i], t->at / step * step, t->at % step + VEC * j);
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const vec w = vec_all(t->p[g * SR_ATTN_BLOCK + i]);
        SR_UNROLL for (int j = 0; j < n_vec; j++) acc[g][j] = vec_fma(w, v[j], acc[g][j]);
    }
}

/* Elements [at, at + VEC * n_vec) of the outputs of `heads` heads. */
SR_INLINE void pv_tile(const sr_dtype type, const int heads, const int n_vec, const struct pv_tile *t)
{
    const int32_t d = t->a->shape->head_dim, bytes = bytes_of(type, 2 * VEC * n_vec);
    const uint8_t *stream = t->stream;
    vec acc[BLOCK_HEADS][2];
    int32_t i = t->row0;
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int j = 0; j < n_vec; j++)
            acc[g][j] = vec_mul(vec_load(t->o + g * d + t->at + VEC * j), vec_all(t->shrink[g]));
    for (int32_t r = i; t->next && r < t->row1 && r < t->a->n_next; r++) prefetch_row(t->a->next_k[r], t->a->shape->k_row_bytes);
    for (; i + 2 <= t->row1; i += 2) {
        if (stream) fetch_stream(stream, bytes, AHEAD_PASS);
        stream += stream ? bytes : 0;
        pv_row(type, heads, n_vec, t, i, acc);
        pv_row(type, heads, n_vec, t, i + 1, acc);
    }
    if (i < t->row1) pv_row(type, heads, n_vec, t, i, acc);
    SR_UNROLL for (int g = 0; g < heads; g++)
        SR_UNROLL for (int j = 0; j < n_vec; j++) vec_store(t->o + g * d + t->at + VEC * j, acc[g][j]);
}

SR_INLINE void pv_heads(const sr_dtype type, int32_t heads, const int n_vec, const struct pv_tile *t)
{
    switch (heads) {
    case 1: pv_tile(type, 1, n_vec, t); return;
    case 2: pv_tile(type, 2, n_vec, t); return;
    case 3: pv_tile(type, 3, n_vec, t); return;
    default: pv_tile(type, 4, n_vec, t); return;
    }
}

SR_INLINE void outputs_of(const sr_dtype type, const struct attn_block *a, block_weights p, const float *shrink)
{
    static const float ones[BLOCK_HEADS] = {1, 1, 1, 1};
    const struct attn_shape *s = a->shape;
    const int stream = is_stream(a), next = stream ? next_is(a) : 0;
    const uint8_t *jump = next == NEXT_JUMPS ? a->next_v[0] : NULL;
    for (int32_t g = 0, heads; g < s->group; g += heads) {
        heads = tile_heads(s->group, g);
        struct pv_tile t = {.a = a, .p = p[g], .o = a->o + g * s->head_dim, .shrink = shrink + g};
        for (; t.row0 < a->n; t.row0 = t.row1, t.shrink = ones) {
            t.row1 = a->n - t.row0 < PASS_ROWS ? a->n : t.row0 + PASS_ROWS;
            for (t.at = 0; t.at < s->head_dim; t.at += 2 * VEC) {
                const size_t passed = s->v_row_bytes * (size_t)t.at / (size_t)s->head_dim * (size_t)(t.row1 - t.row0);
                t.stream = NULL;
                if (stream && g == 0) t.stream = stream_at(a->v, t.row0, s->v_row_bytes, jump, AHEAD_PASS) + passed;
                t.next = g == 0 && t.at == 0 && !next;
                if (s->head_dim - t.at >= 2 * VEC) pv_heads(type, heads, 2, &t);
                else pv_heads(type, heads, 1, &t);
            }
        }
        if (g == 0) *a->v_rows += a->n;
    }
}

/* ---- the block ---- */

SR_INLINE void attn_block_body(const struct attn_block *a)
{
    block_weights p;
    float shrink[SR_ATTN_MAX_GROUP];
    switch (a->shape->k_type) {
    case SR_DTYPE_F32: logits_of(SR_DTYPE_F32, a, p); break;
    case SR_DTYPE_F16: logits_of(SR_DTYPE_F16, a, p); break;
    case SR_DTYPE_BF16: logits_of(SR_DTYPE_BF16, a, p); break;
    case SR_DTYPE_F8_E4M3: logits_of(SR_DTYPE_F8_E4M3, a, p); break;
    case SR_DTYPE_Q8_0: logits_of(SR_DTYPE_Q8_0, a, p); break;
    default: logits_of(SR_DTYPE_Q4_0, a, p); break;
    }
    for (int32_t g = 0; g < a->shape->group; g++) shrink[g] = weights_of(p[g], a->n, &a->m[g], &a->l[g]);
    switch (a->shape->v_type) {
    case SR_DTYPE_F32: outputs_of(SR_DTYPE_F32, a, p, shrink); break;
    case SR_DTYPE_F16: outputs_of(SR_DTYPE_F16, a, p, shrink); break;
    case SR_DTYPE_BF16: outputs_of(SR_DTYPE_BF16, a, p, shrink); break;
    case SR_DTYPE_F8_E4M3: outputs_of(SR_DTYPE_F8_E4M3, a, p, shrink); break;
    case SR_DTYPE_Q8_0: outputs_of(SR_DTYPE_Q8_0, a, p, shrink); break;
    default: outputs_of(SR_DTYPE_Q4_0, a, p, shrink); break;
    }
}

#endif
