/* SPDX-License-Identifier: Apache-2.0
 *
 * Logits of Q8_0 keys on the matrix units (attn_bytes_amx.c).
 *
 * Two or four blocks of a key, where there are few heads, share a tile of sums: a lane is [high or low][head][block], and one
 * load from a row's scales, repeated, is what the lanes of a key are multiplied with. Sums of 16 keys are made a step before
 * they are scaled, between the instructions that scale the ones before.
 */
#include "cpu/attn/attn_codes_amx.h"

#include <string.h>

/* Tiles of sums of 8 heads, and scales of a row with those that are 0. */
SR_INLINE int32_t n_sums_of(int32_t n_blocks, int32_t parts) { return (n_blocks + parts - 1) / parts; }
SR_INLINE int32_t width_of(int32_t n_blocks, int32_t parts)
{
    return n_blocks > 4 ? 8 : n_blocks > 2 || parts > 2 ? 4 : 2;
}

/* ---- once per piece ---- */

/* Tiles 0, 1: sums of keys; 2: keys; 3: q; 4, 5: outputs; 6: weights; 7: values. */
static void use_tiles(int32_t group)
{
    struct { uint8_t palette, start_row, zero[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    const uint8_t weight_rows = (uint8_t)min_i32(DIGITS * group, 16);
    const uint8_t rows[8] = {ROWS, ROWS, ROWS, SR_KV_BLOCK / 4, weight_rows, weight_rows, weight_rows, 16};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = (uint16_t)(i == 2 ? SR_KV_BLOCK : 64);
        config.rows[i] = rows[i];
    }
    in_memory();
    _tile_loadconfig(&config);
}

/* Elements [16 half, 16 half + 16) of block b of head g: whole numbers of two signed bytes, x = 256 high + low. */
static void put_query(struct sr_codes_work *w, const struct attn_shape *s, int32_t g, int32_t b, int32_t half, __m512i x)
{
    const int32_t parts = w->parts, part = b % parts, t = g / HEADS * n_sums_of(s->head_dim / SR_KV_BLOCK, parts) + b / parts;
    uint8_t *to = w->q[t * parts + part] + half * 4 * 64 + (g % HEADS * parts + part) * 4;
    uint8_t low[16], high[16];
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(x));
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8)));
    for (int i = 0; i < 4; i++, to += 64) {
        memcpy(to, low + 4 * i, 4);
        memcpy(to + 32, high + 4 * i, 4);
    }
}

static void split_query(struct sr_codes_work *w, const struct attn_shape *s, const float *q, int32_t g)
{
    __m512 inverse;
    w->q_scale[g] = sr_query_scale_avx512(q, s->head_dim, &inverse);
    for (int32_t i = 0; i < s->head_dim; i += 16)
        put_query(w, s, g, i / SR_KV_BLOCK, i / 16 % 2, _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(q + i), inverse)));
}

void sr_attn_keys_begin_amx(const struct attn_block *a, struct sr_codes_work *w)
{
    const struct attn_shape *s = a->shape;
    const int32_t n_blocks = s->head_dim / SR_KV_BLOCK, n_head_tiles = (s->group + HEADS - 1) / HEADS;
    w->parts = s->group == 2 ? 4 : s->group <= 4 ? 2 : 1;
    use_tiles(s->group);
    if (s->k_type != SR_DTYPE_Q8_0) return;
    memset(w->q, 0, (size_t)(n_head_tiles * n_sums_of(n_blocks, w->parts) * w->parts) * TILE);
    memset(w->k_half, 0, sizeof(w->k_half));
    for (int32_t g = 0; g < s->group; g++) split_query(w, s, a->q + g * s->head_dim, g);
}

/* ---- logits ---- */

SR_INLINE double load_pair(const float *p)
{
    double x;
    memcpy(&x, p, sizeof(x));
    return x;
}

/* What a tile of sums is made of: keys of 16 rows from `keys` on, product by product. */
struct key_product { const uint8_t *keys, *q; size_t row_bytes; int32_t n; int32_t (*sum)[16]; };

static void multiply_even(const struct key_product *x)
{
    in_memory();
    _tile_zero(0);
    for (int32_t i = 0; i < x->n; i++) {
        _tile_loadd(2, x->keys + i * BLOCK_BYTES, x->row_bytes);
        _tile_loadd(3, x->q + i * TILE, 64);
        _tile_dpbssd(0, 2, 3);
    }
    _tile_stored(0, x->sum, 64);
    in_memory();
}

static void multiply_odd(const struct key_product *x)
{
    in_memory();
    _tile_zero(1);
    for (int32_t i = 0; i < x->n; i++) {
        _tile_loadd(2, x->keys + i * BLOCK_BYTES, x->row_bytes);
        _tile_loadd(3, x->q + i * TILE, 64);
        _tile_dpbssd(1, 2, 3);
    }
    _tile_stored(1, x->sum, 64);
    in_memory();
}

/* Tile u of the sums of keys [16 tile, 16 tile + 16), whose rows begin at p. */
SR_INLINE void multiply_keys(const int32_t n_blocks, const int32_t parts, struct sr_codes_work *w, const uint8_t *p, int32_t u,
                             int32_t tile)
{
    const int32_t b = u % n_sums_of(n_blocks, parts) * parts;
    const struct key_product x = {.keys = p + b * BLOCK_BYTES + 2, .q = w->q[u * parts], .row_bytes = (size_t)n_blocks * BLOCK_BYTES,
                                  .n = min_i32(parts, n_blocks - b), .sum = w->sums[tile % 2].sum[u]};
    if (u % 2) multiply_odd(&x);
    else multiply_even(&x);
}

/* Lanes of one key, times scales, over the tiles of sums from `sum` on. */
SR_INLINE __m512 scale_key(const int32_t n_sums, const int32_t parts, const int32_t (*sum)[ROWS][16], int32_t key, const float *scale)
{
    __m512 x = _mm512_setzero_ps();
    _Pragma("GCC unroll 4") for (int32_t t = 0; t < n_sums; t++, scale += parts) {
        const __m512 by = parts == 4   ? _mm512_broadcast_f32x4(_mm_loadu_ps(scale))
                          : parts == 2 ? _mm512_castpd_ps(_mm512_set1_pd(load_pair(scale)))
                                       : _mm512_set1_ps(*scale);
        const __m512 y = _mm512_cvtepi32_ps(_mm512_load_si512(sum[t][key]));
        x = t ? _mm512_fmadd_ps(y, by, x) : _mm512_mul_ps(y, by);
    }
    return x;
}

/* 256 high + low of two keys: [2 keys][8 / parts heads][parts]. */
SR_INLINE __m512 join_digits(__m512 a, __m512 b)
{
    const __m512d low = _mm512_insertf64x4(_mm512_castps_pd(a), _mm512_castpd512_pd256(_mm512_castps_pd(b)), 1);
    return _mm512_fmadd_ps(_mm512_shuffle_f32x4(a, b, 0xee), _mm512_set1_ps(256), _mm512_castpd_ps(low));
}

SR_INLINE __m512 add_pairs(__m512 a, __m512 b) { return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)); }

/* From keys 0 and 4, 1 and 5, 2 and 6, 3 and 7, and so on from 8, [16 keys] of each head: 2, 4 or 8 of them. */
SR_INLINE void turn_logits(const int32_t parts, const __m512 *y, __m512 *out)
{
    __m512 z[8], t[8];
    if (parts == 4) {
        SR_UNROLL for (int i = 0; i < 2; i++) z[i] = add_pairs(add_pairs(y[4 * i], y[4 * i + 1]), add_pairs(y[4 * i + 2], y[4 * i + 3]));
        out[0] = _mm512_shuffle_f32x4(z[0], z[1], 0x88);
        out[1] = _mm512_shuffle_f32x4(z[0], z[1], 0xdd);
        return;
    }
    if (parts == 2) {
        SR_UNROLL for (int i = 0; i < 4; i++) z[i] = add_pairs(y[2 * i], y[2 * i + 1]);
        SR_UNROLL for (int h = 0; h < 2; h++) {
            SR_UNROLL for (int i = 0; i < 2; i++)
                t[i] = h ? _mm512_shuffle_ps(z[2 * i], z[2 * i + 1], 0xdd) : _mm512_shuffle_ps(z[2 * i], z[2 * i + 1], 0x88);
            out[h] = _mm512_shuffle_f32x4(t[0], t[1], 0x88);
            out[2 + h] = _mm512_shuffle_f32x4(t[0], t[1], 0xdd);
        }
        return;
    }
    SR_UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_ps(y[i], y[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(y[i], y[i + 1]);
    }
    SR_UNROLL for (int i = 0; i < 8; i += 4)
        SR_UNROLL for (int h = 0; h < 2; h++) {
            const __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + 2 + h]);
            z[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            z[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    SR_UNROLL for (int h = 0; h < 4; h++) {
        out[h] = _mm512_shuffle_f32x4(z[h], z[4 + h], 0x88);
        out[4 + h] = _mm512_shuffle_f32x4(z[h], z[4 + h], 0xdd);
    }
}

SR_INLINE void finish_keys(const int32_t parts, struct sr_codes_work *w, int32_t group, int32_t first_head, const __m512 *y,
                           int32_t i, sr_block_weights p)
{
    __m512 out[HEADS];
    turn_logits(parts, y, out);
    SR_UNROLL for (int32_t g = 0; g < HEADS; g++)
        if (g * parts < HEADS && first_head + g < group)
            _mm512_storeu_ps(&p[first_head + g][i], _mm512_mul_ps(out[g], _mm512_set1_ps(w->q_scale[first_head + g])));
}

/* One of the 32 places in a step where lines are asked for, once for all heads. */
SR_INLINE void fetch_key_line(const int32_t n_blocks, int32_t ht, const int32_t place, struct ahead *h)
{
    if (ht == 0) fetch_part((ROWS * n_blocks * BLOCK_BYTES + SR_LINE - 1) / SR_LINE, place, 32, h);
}

/* Logits of keys [i, i + 16), the ht-th 8 heads; meanwhile the products of the 16 at `next`, unless NULL. */
SR_INLINE void scale_keys(const int32_t n_blocks, const int32_t parts, struct sr_codes_work *w, int32_t group, int32_t ht, int32_t i,
                          const uint8_t *next, struct ahead *h, sr_block_weights p)
{
    const int32_t n_sums = n_sums_of(n_blocks, parts), width = width_of(n_blocks, parts), turn = i / ROWS % 2;
    const int32_t(*sum)[ROWS][16] = (const int32_t(*)[ROWS][16]) & w->sums[turn].sum[ht * n_sums];
    __m512 y[8];
    SR_UNROLL for (int j = 0; j < 8; j++) {
        const int32_t a = j + (j & 4), b = a + 4;
        if (next && j < 4)
            for (int32_t u = n_sums * j / 4; u < n_sums * (j + 1) / 4; u++)
                multiply_keys(n_blocks, parts, w, next, ht * n_sums + u, i / ROWS + 1);
        if (ht == 0) fetch_rows(h);
        fetch_key_line(n_blocks, ht, 4 * j, h);
        const __m512 ya = scale_key(n_sums, parts, sum, a, w->k_scale + (i + a) * width);
        fetch_key_line(n_blocks, ht, 4 * j + 1, h);
        const __m512 yb = scale_key(n_sums, parts, sum, b, w->k_scale + (i + b) * width);
        fetch_key_line(n_blocks, ht, 4 * j + 2, h);
        y[j] = join_digits(ya, yb);
        fetch_key_line(n_blocks, ht, 4 * j + 3, h);
    }
    finish_keys(parts, w, group, HEADS * ht, y, i, p);
}

/* parts and, unless it is 0, blocks are constants. */
SR_INLINE void logits_of(const int32_t blocks, const int32_t parts, const struct attn_block *a, struct sr_codes_work *w,
                         sr_block_weights p)
{
    const struct attn_shape *s = a->shape;
    const int32_t n_blocks = blocks ? blocks : s->head_dim / SR_KV_BLOCK, n_head_tiles = (s->group + HEADS - 1) / HEADS;
    const int32_t n_sums = n_sums_of(n_blocks, parts), width = width_of(n_blocks, parts);
    const size_t row_bytes = (size_t)n_blocks * BLOCK_BYTES;
    const uint8_t *rows = all_rows(w->rows, a->k, a->n, row_bytes);
    const int stream = sr_is_stream_avx512(a);
    struct ahead ahead = ahead_of(stream ? rows : NULL, a->v, stream ? 0 : a->n, s->v_row_bytes, (a->n + ROWS - 1) / ROWS * 8);
    take_scales(n_blocks, width, rows, w->k_half);
    for (int32_t u = 0; u < n_head_tiles * n_sums; u++) multiply_keys(n_blocks, parts, w, rows, u, 0);
    for (int32_t i = 0; i < ALL * width; i += 16) _mm512_storeu_ps(w->k_scale + i, widen_scales(w->k_half + i));
    for (int32_t i = 0; i < a->n; i += ROWS) {
        const uint8_t *next = i + ROWS < a->n ? rows + (size_t)(i + ROWS) * row_bytes : NULL;
        for (int32_t ht = 0; ht < n_head_tiles; ht++) scale_keys(n_blocks, parts, w, s->group, ht, i, next, &ahead, p);
    }
    *a->k_rows += a->n;
}

void sr_attn_keys_amx(const struct attn_block *a, struct sr_codes_work *w, sr_block_weights p)
{
    const int32_t n_blocks = a->shape->head_dim / SR_KV_BLOCK;
    switch (n_blocks == 2 || n_blocks == 4 ? 10 * n_blocks + w->parts : w->parts) {
    case 21: logits_of(2, 1, a, w, p); return;
    case 22: logits_of(2, 2, a, w, p); return;
    case 24: logits_of(2, 4, a, w, p); return;
    case 41: logits_of(4, 1, a, w, p); return;
    case 42: logits_of(4, 2, a, w, p); return;
    case 44: logits_of(4, 4, a, w, p); return;
    case 1: logits_of(0, 1, a, w, p); return;
    case 2: logits_of(0, 2, a, w, p); return;
    default: logits_of(0, 4, a, w, p); return;
    }
}
