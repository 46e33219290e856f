/* SPDX-License-Identifier: Apache-2.0
 *
 * Sketch rows from K rows, four at a time: the rows less mu are kept as floats, each coordinate is four dot products
 * that end in one register, and a word of codes is put together for the four rows at once.
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

/* Codes of the four rows; clipped values of the tile's own rows are counted. */
SR_INLINE __m128i codes_of(const struct tile *t, int32_t j, __m128 y)
{
    const float half = (float)(1 << (t->a->sketch->bits - 1));
    const __m128 zero = _mm_setzero_ps(), top = _mm_set1_ps(2 * half - 1);
    const __m128 c = _mm_add_ps(_mm_floor_ps(_mm_div_ps(y, _mm_set1_ps(t->a->basis->step[j]))), _mm_set1_ps(half));
    const __mmask8 inside = _mm_cmp_ps_mask(c, zero, _CMP_GE_OQ) & _mm_cmp_ps_mask(c, top, _CMP_LE_OQ);
    *t->a->clipped += __builtin_popcount(~(unsigned)inside & ((1u << t->n) - 1u));
    return _mm_cvttps_epi32(_mm_min_ps(_mm_max_ps(c, zero), top)); /* max of a NaN and 0: 0 */
}

/* Codes of the coordinates [j, j + n) of the four rows, `bits` apart. */
static __m128i word_of(const struct tile *t, int32_t j, int32_t n, int32_t bits)
{
    __m128i word = _mm_setzero_si128();
    for (int32_t i = 0, at_once; i < n; i += at_once) {
        __m128 y[COORDS];
        at_once = n - i >= COORDS ? COORDS : 1;
        if (at_once == COORDS) project(t, j + i, COORDS, y);
        else project(t, j + i, 1, y);
        for (int32_t c = 0; c < at_once; c++)
            word = _mm_or_si128(word, _mm_sll_epi32(codes_of(t, j + i + c, y[c]), _mm_cvtsi32_si128((i + c) * bits)));
    }
    return word;
}

static void encode_tile(const struct tile *t)
{
    const struct sketch_shape *s = t->a->sketch;
    const int32_t per_word = 32 / s->bits, n_first = s->rank < SR_SKETCH_FIRST ? s->rank : SR_SKETCH_FIRST;
    uint32_t out[ROWS];
    _mm_storeu_si128((__m128i *)(void *)out, word_of(t, 0, n_first, 8));
    for (int32_t r = 0; r < t->n; r++) sr_sketch_store_first(t->a->y_chunk, s->bits, t->row + r, out[r]);
    for (int32_t word = 0; word < sr_sketch_words(s); word++) {
        const int32_t j = SR_SKETCH_FIRST + word * per_word, n = s->rank - j < per_word ? s->rank - j : per_word;
        _mm_storeu_si128((__m128i *)(void *)out, word_of(t, j, n, s->bits));
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
