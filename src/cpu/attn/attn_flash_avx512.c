/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal attention of a block of queries, in tiles of 64 keys that all query rows share: a tile's K is turned to
 * [head_dim][64] floats and its V widened once; then for every 6 query rows one small product gives 6 x 64 logits, and
 * one adds the weighted V rows. Both products are the same loop: 6 x 4 registers of sums, one broadcast per factor.
 * A query row's arithmetic depends on the tiles' places alone, which are multiples of 64.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { ROWS = 6, VECS = 4, KEYS = SR_FLASH_KEYS };

/* Scratch of one call. dp = head_dim rounded up to 16. */
struct flash {
    const struct attn_flash *a;
    int32_t d, dp, n_rows;      /* n_rows = n_q * group */
    float *o, *m, *l;           /* [n_rows + ROWS][dp], [n_rows + ROWS] */
    float *k, *v;               /* [d rounded up to 16][KEYS], [KEYS][dp] */
    float *p;                   /* [ROWS][KEYS] */
};

/* ---- a tile's K and V ---- */

/* n rows, the rest of the tile zero. */
SR_INLINE void turn_k(const sr_dtype type, const struct flash *f, const uint8_t *rows, int32_t n)
{
    const size_t bytes = f->a->shape->k_row_bytes;
    const __m512 scale = _mm512_set1_ps(f->a->unit->k.scale);
    for (int32_t key = 0; key < KEYS; key += 16)
        for (int32_t i = 0; i < f->d; i += 16) {
            __m512 r[16];
            SR_UNROLL for (int j = 0; j < 16; j++)
                r[j] = key + j < n ? sr_widen_avx512(type, rows + (size_t)(key + j) * bytes, i, f->d) : _mm512_setzero_ps();
            if (sr_kv_is_scaled(type))
                SR_UNROLL for (int j = 0; j < 16; j++) r[j] = _mm512_mul_ps(r[j], scale);
            sr_transpose16_avx512(r);
            SR_UNROLL for (int j = 0; j < 16; j++) _mm512_store_ps(f->k + (i + j) * KEYS + key, r[j]);
        }
}

SR_INLINE void widen_v(const sr_dtype type, const struct flash *f, const uint8_t *rows, int32_t n)
{
    const size_t bytes = f->a->shape->v_row_bytes;
    for (int32_t key = 0; key < n; key++)
        for (int32_t i = 0; i < f->d; i += 16)
            _mm512_store_ps(f->v + key * f->dp + i, sr_widen_avx512(type, rows + (size_t)key * bytes, i, f->d));
}

static void load_tile(const struct flash *f, int64_t key, int32_t n)
{
    const struct attn_shape *s = f->a->shape;
    const int64_t chunk = key / SR_CHUNK_ROWS, row = key % SR_CHUNK_ROWS;
    const uint8_t *k = (const uint8_t *)f->a->unit->k.chunk[chunk] + (size_t)row * s->k_row_bytes;
    const uint8_t *v = (const uint8_t *)f->a->unit->v.chunk[chunk] + (size_t)row * s->v_row_bytes;
    switch (s->k_type) {
    case SR_DTYPE_F32: turn_k(SR_DTYPE_F32, f, k, n); break;
    case SR_DTYPE_F16: turn_k(SR_DTYPE_F16, f, k, n); break;
    case SR_DTYPE_BF16: turn_k(SR_DTYPE_BF16, f, k, n); break;
    case SR_DTYPE_F8_E4M3: turn_k(SR_DTYPE_F8_E4M3, f, k, n); break;
    case SR_DTYPE_Q8_0: turn_k(SR_DTYPE_Q8_0, f, k, n); break;
    default: turn_k(SR_DTYPE_Q4_0, f, k, n); break;
    }
    switch (s->v_type) {
    case SR_DTYPE_F32: widen_v(SR_DTYPE_F32, f, v, n); break;
    case SR_DTYPE_F16: widen_v(SR_DTYPE_F16, f, v, n); break;
    case SR_DTYPE_BF16: widen_v(SR_DTYPE_BF16, f, v, n); break;
    case SR_DTYPE_F8_E4M3: widen_v(SR_DTYPE_F8_E4M3, f, v, n); break;
    case SR_DTYPE_Q8_0: widen_v(SR_DTYPE_Q8_0, f, v, n); break;
    default: widen_v(SR_DTYPE_Q4_0, f, v, n); break;
    }
}

/* ---- products ---- */

/* acc[r][j] += sum over i < n of x[r][i] * y[i][16 j ..] */
SR_INLINE void product(const int n_vec, const float *const *x, const float *y, int32_t y_stride, int32_t n, __m512 acc[][VECS])
{
    for (int32_t i = 0; i < n; i++) {
        __m512 b[VECS];
        SR_UNROLL for (int j = 0; j < n_vec; j++) b[j] = _mm512_load_ps(y + i * y_stride + 16 * j);
        SR_UNROLL for (int r = 0; r < ROWS; r++) {
            const __m512 w = _mm512_set1_ps(x[r][i]);
            SR_UNROLL for (int j = 0; j < n_vec; j++) acc[r][j] = _mm512_fmadd_ps(w, b[j], acc[r][j]);
        }
    }
}

SR_INLINE void add_values(const int n_vec, const struct flash *f, const float *const *p, const float *shrink, float *o, int32_t at, int32_t n)
{
    __m512 acc[ROWS][VECS];
    SR_UNROLL for (int r = 0; r < ROWS; r++)
        SR_UNROLL for (int j = 0; j < n_vec; j++)
            acc[r][j] = _mm512_mul_ps(_mm512_load_ps(o + r * f->dp + at + 16 * j), _mm512_set1_ps(shrink[r]));
    product(n_vec, p, f->v + at, f->dp, n, acc);
    SR_UNROLL for (int r = 0; r < ROWS; r++)
        SR_UNROLL for (int j = 0; j < n_vec; j++) _mm512_store_ps(o + r * f->dp + at + 16 * j, acc[r][j]);
}

/* The first n of a row's logits become weights; m and l move on. Returns the factor of the old output. */
SR_INLINE float weights_of(__m512 *x, int32_t n, float *m, float *l, float *p)
{
    __m512 max = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    SR_UNROLL for (int j = 0; j < VECS; j++) {
        const int32_t left = n - 16 * j;
        const __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1u);
        x[j] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), mask, x[j]);
        max = _mm512_max_ps(x[j], max);
    }
    const float new_m = _mm512_reduce_max_ps(max), base = new_m == -INFINITY ? 0.0f : new_m;
    const float shrink = _mm512_cvtss_f32(sr_exp_avx512(_mm512_set1_ps(*m - base)));
    SR_UNROLL for (int j = 0; j < VECS; j++) {
        x[j] = sr_exp_avx512(_mm512_sub_ps(x[j], _mm512_set1_ps(base)));
        sum = _mm512_add_ps(sum, x[j]);
        _mm512_store_ps(p + 16 * j, x[j]);
    }
    *m = new_m;
    *l = *l * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

static const float *query_row(const struct flash *f, int32_t row)
{
    const int32_t r = row < f->n_rows ? row : f->n_rows - 1; /* a short block repeats the last row */
    return f->a->q + r / f->a->shape->group * f->a->q_stride + r % f->a->shape->group * f->d;
}

/* Rows [row, row + ROWS) over the n keys of the tile at `key`. */
static void block_tile(const struct flash *f, int32_t row, int64_t key, int32_t n)
{
    const float *q[ROWS], *p[ROWS];
    float shrink[ROWS], *o = f->o + row * f->dp;
    __m512 s[ROWS][VECS];
    int32_t last = 0;
    SR_UNROLL for (int r = 0; r < ROWS; r++) {
        q[r] = query_row(f, row + r);
        p[r] = f->p + r * KEYS;
        SR_UNROLL for (int j = 0; j < VECS; j++) s[r][j] = _mm512_setzero_ps();
    }
    product(VECS, q, f->k, KEYS, f->d, s);
    SR_UNROLL for (int r = 0; r < ROWS; r++) {
        const int64_t sees = f->a->pos + (row + r) / f->a->shape->group + 1 - key;
        const int32_t seen = sees < n ? (sees > 0 ? (int32_t)sees : 0) : n;
        shrink[r] = weights_of(s[r], seen, &f->m[row + r], &f->l[row + r], f->p + r * KEYS);
        last = seen > last ? seen : last;
    }
    int32_t at = 0;
    for (; at + 64 <= f->dp; at += 64) add_values(4, f, p, shrink, o, at, last);
    for (; at + 32 <= f->dp; at += 32) add_values(2, f, p, shrink, o, at, last);
    for (; at < f->dp; at += 16) add_values(1, f, p, shrink, o, at, last);
}

/* ---- the block ---- */

static void place(struct flash *f, const struct attn_flash *a)
{
    float *at = a->scratch;
    f->a = a;
    f->d = a->shape->head_dim;
    f->dp = (f->d + 15) / 16 * 16;
    f->n_rows = a->n_q * a->shape->group;
    const int32_t padded = (f->n_rows + ROWS + 15) / 16 * 16;
    f->o = at;
    f->m = at += padded * f->dp;
    f->l = at += padded;
    f->k = at += padded;
    f->v = at += KEYS * f->dp;
    f->p = at + KEYS * f->dp;
    for (int32_t i = 0; i < padded * f->dp; i += 16) _mm512_store_ps(f->o + i, _mm512_setzero_ps());
    for (int32_t i = 0; i < padded; i++) {
        f->m[i] = -INFINITY;
        f->l[i] = 0;
    }
}

static void write_out(const struct flash *f)
{
    const int32_t group = f->a->shape->group;
    const float v_scale = sr_kv_scale(&f->a->unit->v, f->a->shape->v_type);
    for (int32_t r = 0; r < f->n_rows; r++) {
        float *out = f->a->out + r / group * f->a->out_stride + r % group * f->d;
        const float l = f->l[r], inverse = l == 0 ? 0 : v_scale / l;
        for (int32_t i = 0; i < f->d; i += 16) {
            const __mmask16 mask = f->d - i >= 16 ? 0xffff : 0xff;
            _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(_mm512_load_ps(f->o + r * f->dp + i), _mm512_set1_ps(inverse)));
        }
    }
}

void sr_attn_flash_avx512(const struct attn_flash *a)
{
    struct flash f;
    place(&f, a);
    const int64_t end = a->pos + a->n_q;
    for (int64_t key = 0; key < end; key += KEYS) {
        const int32_t n = end - key < KEYS ? (int32_t)(end - key) : KEYS;
        const int64_t first = key > a->pos ? (key - a->pos) * a->shape->group : 0; /* first row that sees the tile */
        load_tile(&f, key, n);
        for (int32_t row = (int32_t)(first / ROWS * ROWS); row < f.n_rows; row += ROWS) block_tile(&f, row, key, n);
    }
    write_out(&f);
}
