/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal attention of a block of queries in terms of the vector layer: tiles of 64 keys, whose K is turned and whose V
 * is widened once for all query rows; 6 query rows at a time, TILE_VECS vectors of keys or of outputs in registers.
 */
#ifndef SR_CPU_ATTN_ATTN_FLASH_BODY_H
#define SR_CPU_ATTN_ATTN_FLASH_BODY_H

#include "cpu/kernels.h"
#include "cpu/attn/vec_math_body.h"

#include <math.h>

enum { KEYS = SR_FLASH_KEYS };

/* Scratch of one call. dp = head_dim rounded up to whole tiles of vectors. */
struct flash {
    const struct attn_flash *a;
    int32_t d, dp, n_rows;
    float *o, *m, *l;           /* [n_rows + TILE_ROWS][dp], [n_rows + TILE_ROWS] */
    float *k, *v, *p;           /* [d][KEYS], [KEYS][dp], [TILE_ROWS][KEYS] */
};

SR_INLINE void load_tile(const struct flash *f, int64_t key, int32_t n)
{
    const struct attn_shape *s = f->a->shape;
    const int64_t chunk = key / SR_CHUNK_ROWS, row = key % SR_CHUNK_ROWS;
    const uint8_t *k = (const uint8_t *)f->a->unit->k.chunk[chunk] + (size_t)row * s->k_row_bytes;
    const uint8_t *v = (const uint8_t *)f->a->unit->v.chunk[chunk] + (size_t)row * s->v_row_bytes;
    const float k_scale = sr_kv_scale(&f->a->unit->k, s->k_type);
    float wide[SR_ATTN_MAX_DIM];
    memset(f->k, 0, (size_t)(f->d * KEYS) * sizeof(float));
    memset(f->v, 0, (size_t)(KEYS * f->dp) * sizeof(float));
    for (int32_t i = 0; i < n; i++) {
        vec_unpack_any(s->k_type, k + (size_t)i * s->k_row_bytes, f->d, wide);
        for (int32_t j = 0; j < f->d; j++) f->k[j * KEYS + i] = wide[j] * k_scale;
        vec_unpack_any(s->v_type, v + (size_t)i * s->v_row_bytes, f->d, f->v + i * f->dp);
    }
}

/* o[r] = o[r] * shrink[r] + sum over i < n of x[r][i] y[i], for one tile of vectors; without shrink o starts from 0. */
SR_INLINE void product(const float *const *x, const float *y, int32_t y_stride, int32_t n, const float *shrink, float *o, int32_t o_stride)
{
    vec acc[TILE_ROWS][TILE_VECS], b[TILE_VECS];
    SR_UNROLL for (int r = 0; r < TILE_ROWS; r++)
        SR_UNROLL for (int j = 0; j < TILE_VECS; j++)
            acc[r][j] = shrink ? vec_mul(vec_load(o + r * o_stride + VEC * j), vec_all(shrink[r])) : vec_all(0);
    for (int32_t i = 0; i < n; i++) {
        SR_UNROLL for (int j = 0; j < TILE_VECS; j++) b[j] = vec_load(y + i * y_stride + VEC * j);
        SR_UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            const vec w = vec_all(x[r][i]);
            SR_UNROLL for (int j = 0; j < TILE_VECS; j++) acc[r][j] = vec_fma(w, b[j], acc[r][j]);
        }
    }
    SR_UNROLL for (int r = 0; r < TILE_ROWS; r++)
        SR_UNROLL for (int j = 0; j < TILE_VECS; j++) vec_store(o + r * o_stride + VEC * j, acc[r][j]);
}

/* The first n of a row's KEYS logits become weights, the others 0; m and l move on. */
SR_INLINE float row_weights(float *p, int32_t n, float *m, float *l)
{
    vec max = vec_all(*m), sum = vec_all(0);
    for (int32_t i = n; i < KEYS; i++) p[i] = -INFINITY;
    for (int32_t i = 0; i < KEYS; i += VEC) max = vec_max(vec_load(p + i), max);
    const float new_m = vec_top(max), base = new_m == -INFINITY ? 0.0f : new_m;
    for (int32_t i = 0; i < KEYS; i += VEC) {
        const vec x = vec_exp(vec_sub(vec_load(p + i), vec_all(base)));
        vec_store(p + i, x);
        sum = vec_add(sum, x);
    }
    const float shrink = expf(*m - base);
    *m = new_m;
    *l = *l * shrink + vec_sum(sum);
    return shrink;
}

/* Rows [row, row + TILE_ROWS) over the n keys of the tile at `key`. */
SR_INLINE void block_tile(const struct flash *f, int32_t row, int64_t key, int32_t n)
{
    const float *q[TILE_ROWS], *p[TILE_ROWS];
    float shrink[TILE_ROWS];
    const int32_t group = f->a->shape->group;
    int32_t last = 0;
    for (int r = 0; r < TILE_ROWS; r++) {
        const int32_t i = row + r < f->n_rows ? row + r : f->n_rows - 1; /* a short block repeats the last row */
        q[r] = f->a->q + i / group * f->a->q_stride + i % group * f->d;
        p[r] = f->p + r * KEYS;
    }
    for (int32_t at = 0; at < KEYS; at += VEC * TILE_VECS) product(q, f->k + at, KEYS, f->d, NULL, f->p + at, KEYS);
    for (int r = 0; r < TILE_ROWS; r++) {
        const int64_t sees = f->a->pos + (row + r) / group + 1 - key;
        const int32_t seen = sees < n ? (sees > 0 ? (int32_t)sees : 0) : n;
        shrink[r] = row_weights(f->p + r * KEYS, seen, &f->m[row + r], &f->l[row + r]);
        last = seen > last ? seen : last;
    }
    for (int32_t at = 0; at < f->dp; at += VEC * TILE_VECS) product(p, f->v + at, f->dp, last, shrink, f->o + row * f->dp + at, f->dp);
}

SR_INLINE void place(struct flash *f, const struct attn_flash *a)
{
    float *at = a->scratch;
    *f = (struct flash){.a = a, .d = a->shape->head_dim, .n_rows = a->n_q * a->shape->group};
    f->dp = (f->d + VEC * TILE_VECS - 1) / (VEC * TILE_VECS) * (VEC * TILE_VECS);
    const int32_t padded = f->n_rows + TILE_ROWS;
    f->o = at;
    f->m = at += padded * f->dp;
    f->l = at += padded;
    f->k = at += padded;
    f->v = at += KEYS * f->d;
    f->p = at + KEYS * f->dp;
    memset(f->o, 0, (size_t)(padded * f->dp) * sizeof(float));
    for (int32_t i = 0; i < padded; i++) {
        f->m[i] = -INFINITY;
        f->l[i] = 0;
    }
}

SR_INLINE void attn_flash_body(const struct attn_flash *a)
{
    struct flash f;
    place(&f, a);
    const int64_t end = a->pos + a->n_q;
    for (int64_t key = 0; key < end; key += KEYS) {
        const int32_t n = end - key < KEYS ? (int32_t)(end - key) : KEYS;
        const int64_t first = key > a->pos ? (key - a->pos) * a->shape->group : 0; /* first row that sees the tile */
        load_tile(&f, key, n);
        for (int32_t row = (int32_t)(first / TILE_ROWS * TILE_ROWS); row < f.n_rows; row += TILE_ROWS) block_tile(&f, row, key, n);
    }
    const float v_scale = sr_kv_scale(&a->unit->v, a->shape->v_type);
    for (int32_t r = 0; r < f.n_rows; r++) {
        float *out = a->out + r / a->shape->group * a->out_stride + r % a->shape->group * f.d;
        const vec inverse = vec_all(f.l[r] == 0 ? 0 : v_scale / f.l[r]);
        for (int32_t i = 0; i < f.d; i += VEC) vec_store(out + i, vec_mul(vec_load(f.o + r * f.dp + i), inverse));
    }
}

#endif
