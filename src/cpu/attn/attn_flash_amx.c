/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal attention of a block of queries on the matrix units, which multiply bf16 and add in f32. A float is kept as
 * the sum of two bf16 values: q k = hi hi + hi lo + lo hi, off by 2^-16 of each product at most, and p v = p (hi + lo)
 * with p rounded to bf16 (the sum l takes the rounded p, so that weights still add up to 1). A bf16 or fp8 cache has no lo.
 *
 * All of it is turned on its side: logits are [keys][16 queries], so that K tiles are K rows as they lie, the maximum
 * and the sum over keys need no shuffles, and the output is [head_dim][16 queries]. 16 query rows by 64 keys at a time.
 * Logits are in base 2: q is multiplied by log2 e first, and by the scale of scaled keys.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_amx_inline.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { LANES = 16, KEYS = SR_FLASH_KEYS, TILE = 1024 /* bytes: 16 rows of 64 */ };

/* Scratch of one call. nk: tiles of 32 dims along a K row; nv: tiles of 16 dims along an output. */
struct flash {
    const struct attn_flash *a;
    int32_t d, nk, nv, n_rows, n_blocks;
    int k_has_lo, v_has_lo;
    uint8_t *q;              /* [n_blocks][2: hi, lo][nk] tiles [16 pairs of dims][16 queries][2] */
    uint8_t *k;              /* [2: hi, lo][KEYS / 16][nk] tiles [16 keys][32 dims] */
    uint8_t *v;              /* [2: hi, lo][nv][KEYS / 32] tiles [16 dims][32 keys] */
    uint8_t *p;              /* [KEYS / 32] tiles [16 pairs of keys][16 queries][2] */
    float *s;                /* [KEYS][16 queries] */
    float *o;                /* [n_blocks][nv * 16][16 queries] */
    float *m, *l;            /* [n_blocks][16] */
};

SR_INLINE __m512 widen(const sr_dtype type, const uint8_t *row, int32_t i, int32_t d)
{
    return i < d ? sr_widen_avx512(type, row, i, d) : _mm512_setzero_ps();
}

SR_INLINE void turn_tile(__m512i *row, uint8_t *tile)
{
    __m512 r[16];
    SR_UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_castsi512_ps(row[i]);
    sr_transpose16_avx512(r);
    SR_UNROLL for (int i = 0; i < 16; i++) _mm512_store_ps(tile + 64 * i, r[i]);
}

/* Elements [i, i + 32) of two registers as one row of 32. */
SR_INLINE void split_row(__m512 x, __m512 y, uint8_t *hi, uint8_t *lo)
{
    const __m512i h = (__m512i)_mm512_cvtne2ps_pbh(y, x);
    const __m512 hx = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16));
    const __m512 hy = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16));
    _mm512_store_si512(hi, h);
    _mm512_store_si512(lo, (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(y, hy), _mm512_sub_ps(x, hx)));
}

/* ---- packing ---- */

static void pack_queries(const struct flash *f, int32_t block)
{
    const int32_t group = f->a->shape->group;
    uint8_t *hi = f->q + (size_t)(block * 2 * f->nk) * TILE, *lo = hi + (size_t)f->nk * TILE;
    const __m512 factor = _mm512_set1_ps(0x1.715476p+0f * sr_kv_scale(&f->a->unit->k, f->a->shape->k_type));
    for (int32_t t = 0; t < f->nk; t++, hi += TILE, lo += TILE) {
        uint8_t rows[2][TILE] __attribute__((aligned(64)));
        __m512i r[2][16];
        for (int32_t i = 0; i < LANES; i++) {
            const int32_t row = block * LANES + i;
            const int32_t n = row < f->n_rows ? row : f->n_rows - 1; /* a short block repeats the last row */
            const uint8_t *q = (const uint8_t *)(f->a->q + n / group * f->a->q_stride + n % group * f->d);
            split_row(_mm512_mul_ps(widen(SR_DTYPE_F32, q, 32 * t, f->d), factor),
                      _mm512_mul_ps(widen(SR_DTYPE_F32, q, 32 * t + 16, f->d), factor), rows[0] + 64 * i, rows[1] + 64 * i);
        }
        SR_UNROLL for (int i = 0; i < 16; i++) {
            r[0][i] = _mm512_load_si512(rows[0] + 64 * i);
            r[1][i] = _mm512_load_si512(rows[1] + 64 * i);
        }
        turn_tile(r[0], hi);
        turn_tile(r[1], lo);
    }
}

SR_INLINE void pack_k(const sr_dtype type, const struct flash *f, const uint8_t *rows, int32_t n)
{
    const size_t lo = (size_t)(KEYS / 16 * f->nk) * TILE;
    for (int32_t key = 0; key < KEYS; key++)
        for (int32_t t = 0; t < f->nk; t++) {
            uint8_t *at = f->k + (size_t)(key / 16 * f->nk + t) * TILE + key % 16 * 64;
            const uint8_t *row = rows + (size_t)key * f->a->shape->k_row_bytes;
            const __m512 zero = _mm512_setzero_ps();
            split_row(key < n ? widen(type, row, 32 * t, f->d) : zero, key < n ? widen(type, row, 32 * t + 16, f->d) : zero, at, at + lo);
        }
}

SR_INLINE void pack_v(const sr_dtype type, const struct flash *f, const uint8_t *rows, int32_t n)
{
    const size_t bytes = f->a->shape->v_row_bytes, lo = (size_t)(KEYS / 32 * f->nv) * TILE;
    for (int32_t t = 0; t < f->nv; t++)
        for (int32_t part = 0; part < KEYS / 32; part++) {
            __m512i hi[16], rest[16];
            SR_UNROLL for (int i = 0; i < 16; i++) {
                const int32_t key = 32 * part + 2 * i;
                const uint8_t *row = rows + (size_t)key * bytes;
                const __m512 x = key < n ? widen(type, row, 16 * t, f->d) : _mm512_setzero_ps();
                const __m512 y = key + 1 < n ? widen(type, row + bytes, 16 * t, f->d) : _mm512_setzero_ps();
                hi[i] = sr_pair_bf16(x, y);
                rest[i] = sr_rest_bf16(x, y, hi[i]);
            }
            uint8_t *at = f->v + (size_t)(t * (KEYS / 32) + part) * TILE;
            turn_tile(hi, at);
            if (f->v_has_lo) turn_tile(rest, at + lo);
        }
}

static void load_keys(const struct flash *f, int64_t key, int32_t n)
{
    const struct attn_shape *s = f->a->shape;
    const int64_t chunk = key / SR_CHUNK_ROWS, row = key % SR_CHUNK_ROWS;
    const uint8_t *k = (const uint8_t *)f->a->unit->k.chunk[chunk] + (size_t)row * s->k_row_bytes;
    const uint8_t *v = (const uint8_t *)f->a->unit->v.chunk[chunk] + (size_t)row * s->v_row_bytes;
    switch (s->k_type) {
    case SR_DTYPE_F32: pack_k(SR_DTYPE_F32, f, k, n); break;
    case SR_DTYPE_F16: pack_k(SR_DTYPE_F16, f, k, n); break;
    case SR_DTYPE_BF16: pack_k(SR_DTYPE_BF16, f, k, n); break;
    case SR_DTYPE_F8_E4M3: pack_k(SR_DTYPE_F8_E4M3, f, k, n); break;
    case SR_DTYPE_Q8_0: pack_k(SR_DTYPE_Q8_0, f, k, n); break;
    default: pack_k(SR_DTYPE_Q4_0, f, k, n); break;
    }
    switch (s->v_type) {
    case SR_DTYPE_F32: pack_v(SR_DTYPE_F32, f, v, n); break;
    case SR_DTYPE_F16: pack_v(SR_DTYPE_F16, f, v, n); break;
    case SR_DTYPE_BF16: pack_v(SR_DTYPE_BF16, f, v, n); break;
    case SR_DTYPE_F8_E4M3: pack_v(SR_DTYPE_F8_E4M3, f, v, n); break;
    case SR_DTYPE_Q8_0: pack_v(SR_DTYPE_Q8_0, f, v, n); break;
    default: pack_v(SR_DTYPE_Q4_0, f, v, n); break;
    }
}

/* ---- matrix units ---- */

/* Loads of tiles are not known to the compiler as reads of memory: stores before them must be done. */
SR_INLINE void stores_done(void) { __asm__ volatile("" ::: "memory"); }

/* Key tile c (0..3) of 16 keys, dims tile t: q in registers 4 (hi) and 5 (lo). */
#define ADD_KEYS(c)                                                                                \
    do {                                                                                           \
        _tile_loadd(6, k + (size_t)((c) * f->nk) * TILE, 64);                                      \
        _tile_dpbf16ps(c, 6, 4);                                                                   \
        _tile_dpbf16ps(c, 6, 5);                                                                   \
        if (f->k_has_lo) {                                                                         \
            _tile_loadd(7, k + lo + (size_t)((c) * f->nk) * TILE, 64);                             \
            _tile_dpbf16ps(c, 7, 4);                                                               \
        }                                                                                          \
    } while (0)

static void logits_of(const struct flash *f, int32_t block)
{
    const uint8_t *q = f->q + (size_t)(block * 2 * f->nk) * TILE;
    const size_t lo = (size_t)(KEYS / 16 * f->nk) * TILE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int32_t t = 0; t < f->nk; t++) {
        const uint8_t *k = f->k + (size_t)t * TILE;
        _tile_loadd(4, q + (size_t)t * TILE, 64);
        _tile_loadd(5, q + (size_t)(f->nk + t) * TILE, 64);
        ADD_KEYS(0);
        ADD_KEYS(1);
        ADD_KEYS(2);
        ADD_KEYS(3);
    }
    _tile_stored(0, f->s, 64);
    _tile_stored(1, f->s + 256, 64);
    _tile_stored(2, f->s + 512, 64);
    _tile_stored(3, f->s + 768, 64);
}

/* Output tile in register c += V tile t of the first and the second 32 keys, whose weights are in 4 and 5. */
#define ADD_VALUES(c, t)                                                                           \
    do {                                                                                           \
        const uint8_t *v = f->v + (size_t)(2 * (t)) * TILE;                                        \
        float *o = out + (t) * 256;                                                                \
        _tile_loadd(c, o, 64);                                                                     \
        _tile_loadd(6, v, 64);                                                                     \
        _tile_dpbf16ps(c, 6, 4);                                                                   \
        _tile_loadd(7, v + TILE, 64);                                                              \
        _tile_dpbf16ps(c, 7, 5);                                                                   \
        if (f->v_has_lo) {                                                                         \
            _tile_loadd(6, v + lo, 64);                                                            \
            _tile_dpbf16ps(c, 6, 4);                                                               \
            _tile_loadd(7, v + lo + TILE, 64);                                                     \
            _tile_dpbf16ps(c, 7, 5);                                                               \
        }                                                                                          \
        _tile_stored(c, o, 64);                                                                    \
    } while (0)

static void add_values(const struct flash *f, int32_t block)
{
    const size_t lo = (size_t)(2 * f->nv) * TILE;
    float *out = f->o + (size_t)(block * f->nv) * 256;
    int32_t t = 0;
    stores_done();
    _tile_loadd(4, f->p, 64);
    _tile_loadd(5, f->p + TILE, 64);
    for (; t + 4 <= f->nv; t += 4) {
        ADD_VALUES(0, t);
        ADD_VALUES(1, t + 1);
        ADD_VALUES(2, t + 2);
        ADD_VALUES(3, t + 3);
    }
    for (; t < f->nv; t++) ADD_VALUES(0, t);
}

/* ---- weights ---- */

/* Which queries of the block see key i of the tile, from how many of its keys they see. */
SR_INLINE __mmask16 sees(__m512i seen, int32_t i) { return _mm512_cmpgt_epi32_mask(seen, _mm512_set1_epi32(i)); }

SR_INLINE __m512 max_of(const struct flash *f, const int masked, __m512i seen, __m512 m)
{
    for (int32_t i = 0; i < KEYS; i++) {
        const __m512 x = _mm512_load_ps(f->s + i * LANES);
        m = masked ? _mm512_mask_max_ps(m, sees(seen, i), x, m) : _mm512_max_ps(x, m); /* of a NaN and m, m */
    }
    return m;
}

/* Writes the weights; returns their sum. */
SR_INLINE __m512 weigh(const struct flash *f, const int masked, __m512i seen, __m512 base)
{
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int32_t i = 0; i < KEYS; i += 2) {
        __m512 x = sr_exp2_rough_avx512(_mm512_sub_ps(_mm512_load_ps(f->s + i * LANES), base));
        __m512 y = sr_exp2_rough_avx512(_mm512_sub_ps(_mm512_load_ps(f->s + (i + 1) * LANES), base));
        if (masked) {
            x = _mm512_maskz_mov_ps(sees(seen, i), x);
            y = _mm512_maskz_mov_ps(sees(seen, i + 1), y);
        }
        const __m512i pair = sr_pair_bf16(x, y);
        _mm512_store_si512(f->p + i / 2 * 64, pair);
        even = _mm512_add_ps(even, sr_low_of(pair));
        odd = _mm512_add_ps(odd, sr_high_of(pair));
    }
    return _mm512_add_ps(even, odd);
}

/* m, l and the old output move on, the weights of the tile are left in p. */
SR_INLINE void weights_of(const struct flash *f, int32_t block, const int masked, __m512i seen)
{
    float *m_at = f->m + block * LANES, *l_at = f->l + block * LANES, *o = f->o + (size_t)(block * f->nv) * 256;
    const __m512 old = _mm512_load_ps(m_at), m = max_of(f, masked, seen, old);
    const __mmask16 none = _mm512_cmp_ps_mask(m, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    const __m512 base = _mm512_mask_mov_ps(m, none, _mm512_setzero_ps());
    const __m512 sum = weigh(f, masked, seen, base);
    const __mmask16 moved = _mm512_cmp_ps_mask(old, m, _CMP_NEQ_UQ);
    if (moved) { /* exactly 1 where m stays: which queries share a block must not change a bit */
        const __m512 shrink = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), moved, sr_exp2_rough_avx512(_mm512_sub_ps(old, base)));
        for (int32_t i = 0; i < f->nv * 16; i++) _mm512_store_ps(o + i * LANES, _mm512_mul_ps(_mm512_load_ps(o + i * LANES), shrink));
        _mm512_store_ps(l_at, _mm512_mul_ps(_mm512_load_ps(l_at), shrink));
        _mm512_store_ps(m_at, m);
    }
    _mm512_store_ps(l_at, _mm512_add_ps(_mm512_load_ps(l_at), sum));
}

/* ---- the block ---- */

/* 16 query rows over the keys [key, key + 64). */
static void block_tile(const struct flash *f, int32_t block, int64_t key)
{
    int32_t seen[LANES], all = 1;
    for (int32_t i = 0; i < LANES; i++) {
        const int64_t n = f->a->pos + (block * LANES + i) / f->a->shape->group + 1 - key;
        seen[i] = n < 0 ? 0 : n < KEYS ? (int32_t)n : KEYS;
        all &= n >= KEYS;
    }
    logits_of(f, block);
    if (all) weights_of(f, block, 0, _mm512_setzero_si512());
    else weights_of(f, block, 1, _mm512_loadu_si512(seen));
    add_values(f, block);
}

static void write_block(const struct flash *f, int32_t block)
{
    const int32_t group = f->a->shape->group;
    const float *o = f->o + (size_t)(block * f->nv) * 256;
    const __m512 l = _mm512_load_ps(f->l + block * LANES);
    const __m512 scale = _mm512_set1_ps(sr_kv_scale(&f->a->unit->v, f->a->shape->v_type));
    const __m512 inverse = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(l, _mm512_setzero_ps(), _CMP_NEQ_UQ), scale, l);
    for (int32_t t = 0; t < f->nv; t++) {
        const __mmask16 mask = f->d - 16 * t >= 16 ? 0xffff : 0xff;
        __m512 r[16];
        SR_UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_mul_ps(_mm512_load_ps(o + t * 256 + i * LANES), inverse);
        sr_transpose16_avx512(r);
        for (int32_t i = 0; i < LANES && block * LANES + i < f->n_rows; i++) {
            const int32_t row = block * LANES + i;
            _mm512_mask_storeu_ps(f->a->out + row / group * f->a->out_stride + row % group * f->d + 16 * t, mask, r[i]);
        }
    }
}

static void place(struct flash *f, const struct attn_flash *a)
{
    uint8_t *at = a->scratch;
    *f = (struct flash){.a = a, .d = a->shape->head_dim, .n_rows = a->n_q * a->shape->group};
    f->nk = (f->d + 31) / 32;
    f->nv = (f->d + 15) / 16;
    f->n_blocks = (f->n_rows + LANES - 1) / LANES;
    f->k_has_lo = a->shape->k_type != SR_DTYPE_BF16 && a->shape->k_type != SR_DTYPE_F8_E4M3;
    f->v_has_lo = a->shape->v_type != SR_DTYPE_BF16 && a->shape->v_type != SR_DTYPE_F8_E4M3;
    const size_t state = (size_t)(f->n_blocks * LANES) * sizeof(float);
    f->q = at;
    f->k = at += (size_t)(f->n_blocks * 2 * f->nk) * TILE;
    f->v = at += (size_t)(2 * KEYS / 16 * f->nk) * TILE;
    f->p = at += (size_t)(2 * KEYS / 32 * f->nv) * TILE;
    f->s = (float *)(void *)(at += KEYS / 32 * TILE);
    f->o = (float *)(void *)(at += KEYS / 16 * TILE);
    f->m = (float *)(void *)(at += (size_t)(f->n_blocks * f->nv) * TILE);
    f->l = (float *)(void *)(at + state);
    memset(f->o, 0, (size_t)(f->n_blocks * f->nv) * TILE);
    memset(f->l, 0, state);
    for (int32_t i = 0; i < f->n_blocks * LANES; i++) f->m[i] = -INFINITY;
    for (int32_t b = 0; b < f->n_blocks; b++) pack_queries(f, b);
}

static void use_tiles(void)
{
    struct { uint8_t palette, start_row, zero[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    stores_done();
    _tile_loadconfig(&config);
}

void sr_attn_flash_amx(const struct attn_flash *a)
{
    struct flash f;
    place(&f, a);
    use_tiles();
    const int64_t end = a->pos + a->n_q;
    for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t first = key > a->pos ? (key - a->pos) * a->shape->group : 0; /* first row that sees the tile */
        load_keys(&f, key, end - key < KEYS ? (int32_t)(end - key) : KEYS);
        stores_done();
        for (int32_t block = (int32_t)(first / LANES); block < f.n_blocks; block++) block_tile(&f, block, key);
    }
    _tile_release();
    for (int32_t b = 0; b < f.n_blocks; b++) write_block(&f, b);
}
