/* SPDX-License-Identifier: Apache-2.0
 *
 * Q4_0 rows, Q8_0 ones beside them, and Q8_0 ones of a single head, on the matrix units, as whole numbers. Several heads over
 * Q8_0 have a way of their own (attn_bytes_amx.c), which is slower for four bits and for one head; all else is the AVX-512
 * kernel's. Widening codes to floats costs more than the products, so codes stay bytes and what they meet becomes bytes:
 *
 *   logits  [2 group][16 keys] = q [2 group][32] x codes [32][16 keys]        for each block of 32 elements
 *   outputs [3 group][16]      = weights [3 group][64 keys] x codes [64][16]  for each half of a block
 *
 * A query's elements are whole numbers of two signed bytes, off by max |q| / 65024 at most. A weight times the scale of
 * its row's block has three, off by 2^-22 of the largest of the 64 rows at most. Sums are exact, and rows of codes only
 * need their bytes turned four to a lane.
 *
 * A product into a tile that was zeroed takes three times as long as one into a tile that was loaded: tiles of zeros are
 * loaded. Each phase runs two steps behind the one before it and between its instructions, so that none waits for what it
 * reads. Rows that do not lie together are copied together first.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_weights_amx.h"

#include <string.h>

enum { ROWS = 16, HEADS = 8, TILE = 1024, MAX_BLOCKS = SR_ATTN_MAX_DIM / SR_KV_BLOCK, ALL = SR_ATTN_BLOCK };

static const uint8_t zero[TILE] __attribute__((aligned(64)));

/* In the scratch of the call. What tiles have beyond the heads has no meaning. Arrays of two are written in turns; they
 * are not whole pages apart, or a load from one would wait for stores to the other.
 * A product with q takes two blocks at once where the rows of 8 heads leave room: rows are then [2 blocks], each with zeros in
 * the place of the other's elements. */
struct work {
    uint8_t q[2 * MAX_BLOCKS][TILE];               /* [per 8 heads][per product] rows of [block][high, low][heads] */
    struct { uint8_t block[MAX_BLOCKS][8 * 64], apart[2048]; } keys[2];         /* [8][16 keys][4 elements] */
    struct { int32_t product[2 * MAX_BLOCKS][16][ROWS]; uint8_t apart[2048]; } sums[2]; /* [as q][as q][16 keys] */
    uint8_t weights[2][WEIGHT_TILES * TILE];       /* [3: low byte first][group] rows of [64 keys] */
    uint8_t values[2][2][TILE];                    /* [][half of the block][16][16 elements][4 keys] */
    int32_t outs[2][2][WEIGHT_TILES * 16][16];     /* [][half][as weights][16 elements] */
    uint8_t rows[ALL * MAX_BLOCKS * 34];           /* copies of rows */
    float q_scale[SR_ATTN_MAX_GROUP];
    int32_t heads, step;                           /* heads of a tile of q; blocks of a product */
};
_Static_assert(sizeof(struct work) <= SR_ATTN_BLOCK_SCRATCH, "the caller's scratch");

/* ---- once per piece ---- */

/* Tiles 0, 1: sums of keys; 2: q; 3: keys; 4, 5: outputs; 6: weights; 7: values. */
static void use_tiles(const struct work *w, int32_t group)
{
    struct { uint8_t palette, start_row, zero[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    const uint8_t q_rows = (uint8_t)(2 * w->heads * w->step), weight_rows = (uint8_t)(DIGITS * group < 16 ? DIGITS * group : 16);
    const uint8_t rows[8] = {q_rows, q_rows, q_rows, (uint8_t)(8 * w->step), weight_rows, weight_rows, weight_rows, 16};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = (uint16_t)(i == 2 ? 32 * w->step : 64);
        config.rows[i] = rows[i];
    }
    in_memory();
    _tile_loadconfig(&config);
}

/* 16 whole numbers as pairs of signed bytes: x = 256 high + low. */
SR_INLINE void split16(__m512i x, uint8_t *high, uint8_t *low)
{
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8)));
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(x));
}

static void split_query(struct work *w, const struct attn_shape *s, const float *q, int32_t g)
{
    const int32_t d = s->head_dim, n_products = d / SR_KV_BLOCK / w->step, row_bytes = 32 * w->step;
    __m512 inverse;
    w->q_scale[g] = sr_query_scale_avx512(q, d, &inverse);
    for (int32_t i = 0; i < d; i += 16) {
        const int32_t b = i / SR_KV_BLOCK, part = b % w->step;
        uint8_t *to = w->q[g / HEADS * n_products + b / w->step] + (part * 2 * w->heads + g % HEADS) * row_bytes + 32 * part + i % 32;
        split16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(q + i), inverse)), to, to + w->heads * row_bytes);
    }
}

static void begin(const struct attn_block *a, struct work *w)
{
    const struct attn_shape *s = a->shape;
    const int32_t n_blocks = s->head_dim / SR_KV_BLOCK;
    w->heads = s->group < HEADS ? s->group : HEADS;
    w->step = n_blocks % 2 == 0 && s->group <= 4 ? 2 : 1;
    use_tiles(w, s->group);
    if (!sr_kv_is_blocked(s->k_type)) return;
    if (w->step == 2) memset(w->q, 0, (size_t)(n_blocks / 2) * TILE);
    for (int32_t g = 0; g < s->group; g++) split_query(w, s, a->q + g * s->head_dim, g);
}

/* ---- requests ---- */

/* A slot goes with so many bytes. */
enum { SLOT_AHEAD = 8192 };
SR_INLINE int32_t slot_bytes(const sr_dtype type) { return (type == SR_DTYPE_Q8_0 ? 2 : 4) * sr_kv_block_bytes(type); }

SR_INLINE void fetch_slot(const sr_dtype type, struct ahead *h)
{
    if (!h->stream) return;
    sr_fetch_far_avx512(h->stream, SLOT_AHEAD);
    h->stream += slot_bytes(type);
}

/* ---- scales ---- */

/* Scales of 32 blocks that follow each other go to 32 words [block of a row][row]. Word j is that of block SCALE_AT(j); 64
 * bytes hold the scales of a window of 2 or 4 blocks. n_blocks divides 32. */
#define SCALE_AT(j) ((j) % (32 / n_blocks) * n_blocks + (j) / (32 / n_blocks))
#define WORDS_8(f, j) f((j) + 7), f((j) + 6), f((j) + 5), f((j) + 4), f((j) + 3), f((j) + 2), f((j) + 1), f(j)
#define WORDS_32(f) _mm512_set_epi16(WORDS_8(f, 24), WORDS_8(f, 16), WORDS_8(f, 8), WORDS_8(f, 0))
#define ORDER(j) (int16_t)(SCALE_AT(j) % window * sr_kv_block_bytes(type) / 2)
#define OWN(j) (int16_t)(SCALE_AT(j) / window == i ? -1 : 0)

SR_INLINE __m512i scales_of_32(const sr_dtype type, const int32_t n_blocks, const uint8_t *p)
{
    const int32_t window = type == SR_DTYPE_Q4_0 ? 4 : 2;
    const __m512i order = WORDS_32(ORDER);
    __m512i x = _mm512_setzero_si512();
    SR_UNROLL for (int32_t i = 0; i < 16; i++) {
        if (i * window >= 32) continue;
        const __m512i y = _mm512_permutexvar_epi16(order, _mm512_loadu_si512(p + i * window * sr_kv_block_bytes(type)));
        x = _mm512_ternarylogic_epi32(x, y, WORDS_32(OWN), 0xf8); /* x | y & own */
    }
    return x;
}

SR_INLINE void load_scales(const sr_dtype type, const int32_t n_blocks, const uint8_t *p, sr_block_scales out)
{
    for (int32_t i = 0; i < ALL; i += 32 / n_blocks, p += 32 * sr_kv_block_bytes(type)) {
        const __m512i x = scales_of_32(type, n_blocks, p);
        if (n_blocks == 2) {
            _mm512_storeu_ps(&out[0][i], _mm512_cvtph_ps(_mm512_castsi512_si256(x)));
            _mm512_storeu_ps(&out[1][i], _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)));
        } else {
            _mm256_storeu_ps(&out[0][i], _mm256_cvtph_ps(_mm512_castsi512_si128(x)));
            _mm256_storeu_ps(&out[1][i], _mm256_cvtph_ps(_mm512_extracti32x4_epi32(x, 1)));
            _mm256_storeu_ps(&out[2][i], _mm256_cvtph_ps(_mm512_extracti32x4_epi32(x, 2)));
            _mm256_storeu_ps(&out[3][i], _mm256_cvtph_ps(_mm512_extracti32x4_epi32(x, 3)));
        }
    }
}

/* Any number of blocks. */
static void load_scales_slowly(sr_dtype type, int32_t n_blocks, const uint8_t *p, sr_block_scales out)
{
    uint16_t half[ALL];
    for (int32_t b = 0; b < n_blocks; b++) {
        for (int32_t i = 0; i < ALL; i++) memcpy(&half[i], p + (i * n_blocks + b) * sr_kv_block_bytes(type), 2);
        for (int32_t i = 0; i < ALL; i += 16)
            _mm512_storeu_ps(&out[b][i], _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)&half[i])));
    }
}

/* ---- codes ---- */

/* The low and the high four bits of each byte less 8: bit 3 turned over and repeated upwards. */
SR_INLINE __m512i low_codes(__m512i x) { return _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(0x0102040808080808), 0xf8); }
SR_INLINE __m512i high_codes(__m512i x) { return _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(0x1020408080808080), 0xf8); }

SR_INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

SR_INLINE __m512i load_four(const uint8_t *p, size_t step)
{
    const __m512i x = _mm512_inserti32x4(_mm512_castsi128_si512(load16(p)), load16(p + step), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(x, load16(p + 2 * step), 2), load16(p + 3 * step), 3);
}

/* 16 bytes of each of 16 rows: x[j] gets bytes 4 j .. 4 j + 3 of every row. */
SR_INLINE void turn_words(const sr_dtype type, const uint8_t *p, size_t row_bytes, __m512i *x, struct ahead *h)
{
    __m512i t[4];
    SR_UNROLL for (int i = 0; i < 4; i++) {
        x[i] = load_four(p + (size_t)i * row_bytes, 4 * row_bytes);
        fetch_slot(type, h);
    }
    t[0] = _mm512_unpacklo_epi32(x[0], x[1]);
    t[1] = _mm512_unpackhi_epi32(x[0], x[1]);
    t[2] = _mm512_unpacklo_epi32(x[2], x[3]);
    t[3] = _mm512_unpackhi_epi32(x[2], x[3]);
    SR_UNROLL for (int i = 0; i < 2; i++) {
        x[2 * i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        x[2 * i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    }
}

/* The block at p of 16 rows as a tile [8][16 keys][4 elements]. */
SR_INLINE void turn_keys(const sr_dtype type, const uint8_t *p, size_t row_bytes, uint8_t *to, struct ahead *h)
{
    __m512i x[4];
    turn_words(type, p + 2, row_bytes, x, h);
    SR_UNROLL for (int j = 0; j < 4; j++) {
        _mm512_store_si512(to + 64 * j, type == SR_DTYPE_Q8_0 ? x[j] : low_codes(x[j]));
        if (type == SR_DTYPE_Q4_0) _mm512_store_si512(to + 64 * (j + 4), high_codes(x[j]));
    }
    if (type == SR_DTYPE_Q4_0) return;
    turn_words(type, p + 18, row_bytes, x, h);
    SR_UNROLL for (int j = 0; j < 4; j++) _mm512_store_si512(to + 64 * (j + 4), x[j]);
}

/* The block at p of rows 0, 16, 32 and 48 from there, four rows to a lane: elements 0..15, then 16..31. */
SR_INLINE void turn_values(const sr_dtype type, const uint8_t *p, size_t row_bytes, uint8_t *first, uint8_t *second)
{
    if (type == SR_DTYPE_Q4_0) {
        const __m512i order = _mm512_set_epi32(0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a, 0x39291909,
                                               0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404, 0x33231303, 0x32221202,
                                               0x31211101, 0x30201000);
        const __m512i x = _mm512_permutexvar_epi8(order, load_four(p + 2, 16 * row_bytes));
        _mm512_store_si512(first, low_codes(x));
        _mm512_store_si512(second, high_codes(x));
        return;
    }
    turn_q8_values(p, row_bytes, first, second);
}

/* ---- logits ---- */

/* Product number b / step of 16 keys with all heads. */
SR_INLINE void multiply_keys(struct work *w, int32_t n_tiles, int32_t n_products, int32_t b, int32_t i, int32_t turn)
{
    in_memory();
    for (int32_t t = 0; t < n_tiles; t++, i += n_products) {
        if (i % 2) {
            _tile_loadd(0, zero, 64);
            _tile_loadd(2, w->q[i], 32 * w->step);
            _tile_loadd(3, w->keys[turn].block[b], 64);
            _tile_dpbssd(0, 2, 3);
            _tile_stored(0, w->sums[turn].product[i], 64);
        } else {
            _tile_loadd(1, zero, 64);
            _tile_loadd(2, w->q[i], 32 * w->step);
            _tile_loadd(3, w->keys[turn].block[b], 64);
            _tile_dpbssd(1, 2, 3);
            _tile_stored(1, w->sums[turn].product[i], 64);
        }
    }
    in_memory();
}

/* Logits of keys [i, i + 16). */
SR_INLINE void scale_keys(const struct work *w, const int32_t step, int32_t group, int32_t n_blocks, int32_t turn, sr_block_scales scale,
                          int32_t i, sr_block_weights p)
{
    const int32_t heads = w->heads;
    for (int32_t g = 0; g < group; g++) {
        __m512 sum = _mm512_setzero_ps();
        SR_UNROLL for (int32_t b = 0; b < n_blocks; b++) {
            const int32_t(*at)[ROWS] = &w->sums[turn].product[(g / HEADS * n_blocks + b) / step][b % step * 2 * heads + g % HEADS];
            const __m512i x = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(at[0]), 8), _mm512_load_si512(at[heads]));
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), _mm512_loadu_ps(&scale[b][i]), sum);
        }
        _mm512_storeu_ps(&p[g][i], _mm512_mul_ps(sum, _mm512_set1_ps(w->q_scale[g])));
    }
}

/* fast: n_blocks is a constant that divides 32. */
SR_INLINE void logits_of(const sr_dtype type, const int32_t n_blocks, const int32_t step, const int fast, const struct attn_block *a,
                         struct work *w, sr_block_weights p)
{
    const struct attn_shape *s = a->shape;
    const int32_t n_tiles = (a->n + ROWS - 1) / ROWS, n_head_tiles = (s->group + HEADS - 1) / HEADS;
    const size_t row_bytes = (size_t)(n_blocks * sr_kv_block_bytes(type));
    const uint8_t *rows = all_rows(w->rows, a->k, a->n, row_bytes);
    const int stream = sr_is_stream_avx512(a);
    struct ahead ahead = ahead_of(stream ? rows : NULL, a->v, stream ? 0 : a->n, s->v_row_bytes, n_tiles * n_blocks);
    sr_block_scales scale;
    if (fast) load_scales(type, n_blocks, rows, scale);
    else load_scales_slowly(type, n_blocks, rows, scale);
    for (int32_t i = 0; i < n_tiles + 2; i++) {
        for (int32_t b = 0; b < n_blocks; b++) {
            if (i < n_tiles) {
                fetch_rows(&ahead);
                turn_keys(type, rows + (size_t)(i * ROWS) * row_bytes + b * sr_kv_block_bytes(type), row_bytes,
                          w->keys[i % 2].block[b], &ahead);
            }
            if (i > 0 && i <= n_tiles && b % step == 0) multiply_keys(w, n_head_tiles, n_blocks / step, b, b / step, (i - 1) % 2);
        }
        if (i > 1) scale_keys(w, step, s->group, n_blocks, i % 2, scale, (i - 2) * ROWS, p);
    }
    *a->k_rows += a->n;
}

SR_INLINE void logits_by_size(const sr_dtype type, const struct attn_block *a, struct work *w, sr_block_weights p)
{
    const int32_t n_blocks = a->shape->head_dim / SR_KV_BLOCK;
    if (n_blocks == 2 && w->step == 2) logits_of(type, 2, 2, 1, a, w, p);
    else if (n_blocks == 2) logits_of(type, 2, 1, 1, a, w, p);
    else if (n_blocks == 4 && w->step == 2) logits_of(type, 4, 2, 1, a, w, p);
    else if (n_blocks == 4) logits_of(type, 4, 1, 1, a, w, p);
    else logits_of(type, n_blocks, w->step, 0, a, w, p);
}

/* ---- outputs ---- */

SR_INLINE void multiply_values(struct work *w, int32_t group, int32_t turn, const int half)
{
    in_memory();
    for (int32_t t = 0; t * 16 < DIGITS * group; t++) {
        if (half) {
            _tile_loadd(4, zero, 64);
            _tile_loadd(6, w->weights[turn] + t * TILE, 64);
            _tile_loadd(7, w->values[turn][1], 64);
            _tile_dpbssd(4, 6, 7);
            _tile_stored(4, w->outs[turn][1][16 * t], 64);
        } else {
            _tile_loadd(5, zero, 64);
            _tile_loadd(6, w->weights[turn] + t * TILE, 64);
            _tile_loadd(7, w->values[turn][0], 64);
            _tile_dpbssd(5, 6, 7);
            _tile_stored(5, w->outs[turn][0][16 * t], 64);
        }
    }
    in_memory();
}

SR_INLINE void outputs_of(const sr_dtype type, const int32_t n_blocks, const int fast, const struct attn_block *a, struct work *w,
                          sr_block_weights p)
{
    const int32_t group = a->shape->group;
    const size_t row_bytes = (size_t)(n_blocks * sr_kv_block_bytes(type));
    const uint8_t *rows = all_rows(w->rows, a->v, a->n, row_bytes);
    const size_t k_bytes = a->shape->k_row_bytes;
    const int stream = sr_is_stream_avx512(a), follows = stream && a->n_next > 0 && a->next_k[0] == a->k[a->n - 1] + k_bytes;
    struct ahead ahead = ahead_of(stream ? rows : NULL, a->next_k, follows ? 0 : a->n_next, k_bytes, 4 * n_blocks);
    float base[SR_ATTN_MAX_GROUP] = {0}, top[SR_ATTN_MAX_GROUP], shrink[SR_ATTN_MAX_GROUP], most[MAX_BLOCKS];
    sr_block_scales scale;
    tops_of_all(a, p, base);
    weights_of(a, p, base, top, shrink);
    if (fast) load_scales(type, n_blocks, rows, scale);
    else load_scales_slowly(type, n_blocks, rows, scale);
    for (int32_t b = 0; b < n_blocks + 2; b++) {
        const int multiplies = b > 0 && b <= n_blocks;
        if (multiplies) multiply_values(w, group, (b - 1) % 2, 0);
        if (b < n_blocks) {
            __m512 level[4];
            uint8_t *to = w->weights[b % 2];
            SR_UNROLL for (int i = 0; i < 4; i++) level[i] = _mm512_loadu_ps(scale[b] + 16 * i);
            most[b] = level_scales(level, (float)WEIGHT_ONE) / (float)WEIGHT_ONE;
            for (int32_t g = 0; g < group; g++) split_weights(p[g], level, to + g * 64, to + (group + g) * 64, to + (2 * group + g) * 64);
        }
        if (multiplies) multiply_values(w, group, (b - 1) % 2, 1);
        for (int32_t i = 0; i < 16 && b < n_blocks; i++) {
            if (i % 4 == 0) fetch_rows(&ahead);
            fetch_slot(type, &ahead);
            if (type == SR_DTYPE_Q8_0) fetch_slot(type, &ahead);
            turn_values(type, rows + (size_t)i * row_bytes + b * sr_kv_block_bytes(type), row_bytes, w->values[b % 2][0] + 64 * i,
                        w->values[b % 2][1] + 64 * i);
        }
        if (b > 1) add_values(w->outs[b % 2][0], w->outs[b % 2][1], a, most[b - 2], top, shrink, a->o + (b - 2) * SR_KV_BLOCK);
    }
    *a->v_rows += a->n;
}

SR_INLINE void outputs_by_size(const sr_dtype type, const struct attn_block *a, struct work *w, sr_block_weights p)
{
    const int32_t n_blocks = a->shape->head_dim / SR_KV_BLOCK;
    if (n_blocks == 2) outputs_of(type, 2, 1, a, w, p);
    else if (n_blocks == 4) outputs_of(type, 4, 1, a, w, p);
    else outputs_of(type, n_blocks, 0, a, w, p);
}

/* ---- the block ---- */

/* Rows of f16 have to be split, which costs what the vectors need for six heads; for seven where each row is fetched by itself,
 * between their instructions. */
static int is_for_half(const struct attn_block *a)
{
    const struct attn_shape *s = a->shape;
    const sr_dtype k = s->k_type, v = s->v_type;
    if ((k != SR_DTYPE_F16 && k != SR_DTYPE_BF16) || (v != SR_DTYPE_F16 && v != SR_DTYPE_BF16) || s->head_dim % 32) return 0;
    if (a->is_list && k == SR_DTYPE_F16 && v == SR_DTYPE_F16) return s->group > 7;
    return s->group > 6 || (k == SR_DTYPE_BF16 && v == SR_DTYPE_BF16 && s->group > 4);
}

void sr_attn_block_amx(const struct attn_block *a)
{
    const sr_dtype k = a->shape->k_type, v = a->shape->v_type;
    struct work *w = a->scratch;
    sr_block_weights p;
    if (!sr_kv_is_blocked(k) && !sr_kv_is_blocked(v)) {
        if (is_for_half(a)) sr_attn_half_amx(a);
        else sr_attn_block_avx512(a);
        return;
    }
    if (a->shape->group > 1 && k != SR_DTYPE_Q4_0 && v != SR_DTYPE_Q4_0) {
        sr_attn_bytes_amx(a);
        return;
    }
    if (a->begins) begin(a, w);
    if (k == SR_DTYPE_Q8_0) logits_by_size(SR_DTYPE_Q8_0, a, w, p);
    else if (k == SR_DTYPE_Q4_0) logits_by_size(SR_DTYPE_Q4_0, a, w, p);
    else sr_attn_logits_avx512(a, p);
    if (v == SR_DTYPE_Q8_0) outputs_by_size(SR_DTYPE_Q8_0, a, w, p);
    else if (v == SR_DTYPE_Q4_0) outputs_by_size(SR_DTYPE_Q4_0, a, w, p);
    else sr_attn_outputs_avx512(a, p);
    if (a->ends) _tile_release();
}
