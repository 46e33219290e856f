/* SPDX-License-Identifier: Apache-2.0
 *
 * Sketch rows from K rows, four at a time: the rows less mu are kept as floats, each coordinate is four dot products
 * that end in one register, and words of codes are put together for the four rows at once.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

enum { ROWS = 4, COORDS = 4 };

struct tile { const struct sketch_rows *a; float k[ROWS][SR_ATTN_MAX_DIM]; int32_t row, n, d; };

SR_INLINE void load_rows(const sr_dtype type, struct tile *t)
{
    for (int32_t r = 0; r < ROWS; r++) {
        const int32_t i = t->row + (r < t->n ? r : t->n - 1); /* a short tile repeats its last row */
        const uint8_t *row = t->a->k_chunk + (size_t)i * t->a->shape->k_row_bytes;
        *t->a->k_rows += r < t->n;
        for (int32_t j = 0; j < t->d; j += 16) {
            const __mmask16 mask = t->d - j >= 16 ? 0xffff : 0xff;
            __m512 x = sr_widen_avx512(type, row, j, t->d);
            if (sr_kv_is_scaled(type)) x = _mm512_mul_ps(x, _mm512_set1_ps(t->a->k_scale));
            x = _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, t->a->basis->mu + j));
            _mm512_mask_storeu_ps(&t->k[r][j], mask, x);
        }
    }
}

/* The coordinates [j, j + n) of the four rows, n a constant. */
SR_INLINE void project(const struct tile *t, int32_t j, const int n, __m128 *y)
{
    const float *basis = t->a->basis->analysis + j * t->d;
    __m512 acc[COORDS][ROWS];
    SR_UNROLL for (int c = 0; c < n; c++)
        SR_UNROLL for (int r = 0; r < ROWS; r++) acc[c][r] = _mm512_setzero_ps();
    for (int32_t i = 0; i < t->d; i += 16) {
        const __mmask16 mask = t->d - i >= 16 ? 0xffff : 0xff;
        __m512 k[ROWS];
        SR_UNROLL for (int r = 0; r < ROWS; r++) k[r] = _mm512_maskz_loadu_ps(mask, &t->k[r][i]);
        SR_UNROLL for (int c = 0; c < n; c++) {
            const __m512 b = _mm512_maskz_loadu_ps(mask, basis + c * t->d + i);
            SR_UNROLL for (int r = 0; r < ROWS; r++) acc[c][r] = _mm512_fmadd_ps(b, k[r], acc[c][r]);
        }
    }
    SR_UNROLL for (int c = 0; c < n; c++) y[c] = sr_sum4_avx512(acc[c][0], acc[c][1], acc[c][2], acc[c][3]);
}

/* Codes of the four rows, of `bits` bits; clipped values of the tile's own rows are counted. */
SR_INLINE __m128i codes_of(const struct tile *t, int32_t j, int32_t bits, __m128 y)
{
    const float half = (float)(1 << (bits - 1));
    const __m128 zero = _mm_setzero_ps(), top = _mm_set1_ps(2 * half - 1);
    const __m128 c = _mm_add_ps(_mm_floor_ps(_mm_div_ps(y, _mm_set1_ps(t->a->basis->step[j]))), _mm_set1_ps(half));
    const __mmask8 inside = _mm_cmp_ps_mask(c, zero, _CMP_GE_OQ) & _mm_cmp_ps_mask(c, top, _CMP_LE_OQ);
    *t->a->clipped += __builtin_popcount(~(unsigned)inside & ((1u << t->n) - 1u));
    return _mm_cvttps_epi32(_mm_min_ps(_mm_max_ps(c, zero), top)); /* max of a NaN and 0: 0 */
}

static __m128i up(__m128i x, int32_t shift) { return _mm_sll_epi32(x, _mm_cvtsi32_si128(shift)); }

/* Adds the codes of coordinate j to the four rows' words: `first`, or those of the second plane. */
SR_INLINE void put_codes(const struct tile *t, int32_t j, __m128 y, __m128i *first, __m128i *words)
{
    const struct sketch_shape *s = t->a->sketch;
    const __m128i code = codes_of(t, j, sr_sketch_code_bits(s, j), y);
    if (j < SR_SKETCH_FIRST) {
        *first = _mm_or_si128(*first, up(code, 8 * j));
        return;
    }
    const struct sketch_place p = sr_sketch_place_of(s, j);
    words[p.word] = _mm_or_si128(words[p.word], up(p.low_shift < 0 ? code : _mm_srli_epi32(code, 1), p.shift));
    if (p.low_shift < 0) return;
    words[p.word + 1] = _mm_or_si128(words[p.word + 1], up(_mm_and_si128(code, _mm_set1_epi32(1)), p.low_shift));
}

static void encode_tile(const struct tile *t)
{
    const struct sketch_shape *s = t->a->sketch;
    const int32_t n_words = sr_sketch_words(s);
    __m128i first = _mm_setzero_si128(), words[SR_ATTN_MAX_DIM / 4];
    uint32_t out[ROWS];
    for (int32_t i = 0; i < n_words; i++) words[i] = _mm_setzero_si128();
    for (int32_t j = 0, n; j < s->rank; j += n) {
        __m128 y[COORDS];
        n = s->rank - j >= COORDS ? COORDS : 1;
        if (n == COORDS) project(t, j, COORDS, y);
        else project(t, j, 1, y);
        for (int32_t c = 0; c < n; c++) put_codes(t, j + c, y[c], &first, words);
    }
    _mm_storeu_si128((__m128i *)(void *)out, first);
    for (int32_t r = 0; r < t->n; r++) sr_sketch_store_first(t->a->y_chunk, s->bits, t->row + r, out[r]);
    for (int32_t word = 0; word < n_words; word++) {
        _mm_storeu_si128((__m128i *)(void *)out, words[word]);
        for (int32_t r = 0; r < t->n; r++) memcpy(t->a->y_chunk + sr_sketch_word_at(s, t->row + r, word), &out[r], 4);
    }
}

void sr_sketch_encode_avx512(const struct sketch_rows *a)
{
    struct tile t = {.a = a, .d = a->shape->head_dim};
    for (t.row = a->row0; t.row < a->row1; t.row += ROWS) {
        t.n = a->row1 - t.row < ROWS ? a->row1 - t.row : ROWS;
        switch (a->shape->k_type) {
        case SR_DTYPE_F32: load_rows(SR_DTYPE_F32, &t); break;
        case SR_DTYPE_F16: load_rows(SR_DTYPE_F16, &t); break;
        case SR_DTYPE_BF16: load_rows(SR_DTYPE_BF16, &t); break;
        case SR_DTYPE_F8_E4M3: load_rows(SR_DTYPE_F8_E4M3, &t); break;
        case SR_DTYPE_Q8_0: load_rows(SR_DTYPE_Q8_0, &t); break;
        default: load_rows(SR_DTYPE_Q4_0, &t); break;
        }
        encode_tile(&t);
    }
}
