/* SPDX-License-Identifier: Apache-2.0
 *
 * Scans 16 rows per register: a level costs one shift and one permutation, shared by all heads, and a multiply-add per
 * head.
 */
#include "cpu/sketch/sketch_first_avx512.h"

struct rest_factors { const float *w; int32_t padded; };
static void rest_factors(const struct sketch_scan *a, struct rest_factors *f)
{
    *f = (struct rest_factors){a->w + SR_SKETCH_FIRST, sr_sketch_padded(a->sketch)};
}

struct scan;
SR_INLINE void rest_of_block(const int bits, const int heads, const struct scan *s, int32_t g0, int32_t row, __mmask16 lanes, __m512 *x);

#include "cpu/sketch/sketch_scan_body_avx512.h"

/* The fields of a word, all of `bits` bits. Returns the factors of the next word's. */
SR_INLINE const float *add_fields(const int bits, const int heads, __m512i word, const float *w, int32_t padded, __m512 *x)
{
    const int n = 32 / bits; /* outside of the condition: its check by a sanitizer would be the loop's */
    SR_UNROLL for (int j = 0; j < n; j++) {
        const __m512 level = level_of(bits, word, bits * j);
        SR_UNROLL for (int g = 0; g < heads; g++) x[g] = _mm512_fmadd_ps(level, _mm512_set1_ps(w[g * padded + j]), x[g]);
    }
    return w + n;
}

SR_INLINE void rest_of_block(const int bits, const int heads, const struct scan *s, int32_t g0, int32_t row, __mmask16 lanes, __m512 *x)
{
    const struct block_words words = block_words(s->plane.y + (size_t)(row / BLOCK_ROWS) * s->plane.block_bytes, s->plane.block_bytes, lanes);
    const int32_t padded = s->factors.padded;
    const float *w = s->factors.w + g0 * padded;
    SR_UNROLL for (int g = 0; g < heads; g++) x[g] = _mm512_set1_ps(s->a->more[g0 + g]);
    for (int32_t i = 0; i < s->plane.n_words; i++) {
        const __m512i word = rest_words(&words, i);
        if (bits != SR_SKETCH_MIXED) w = add_fields(bits, heads, word, w, padded, x);
        else if (i % 2 == 0) w = add_fields(2, heads, word, w, padded, x);
        else w = add_fields(1, heads, word, w, padded, x);
    }
}

void sr_sketch_scan_avx512(struct sketch_scan *a) { scan(a); }
