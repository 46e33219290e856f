/* SPDX-License-Identifier: Apache-2.0
 *
 * Scores 16 rows per register: a level costs one shift and one permutation, shared by all heads, and a multiply-add per
 * head.
 */
#include "cpu/sketch/sketch_score_avx512.h"

/* The second plane is added to the rows of two open runs. */
SR_INLINE void score_rest(const int bits, const int heads, const struct sketch_score *a, int32_t g0, const int32_t run[2])
{
    const uint8_t *const y[2] = {a->y_chunk + sr_sketch_word_at(a->sketch, run[0], 0), a->y_chunk + sr_sketch_word_at(a->sketch, run[1], 0)};
    const int32_t padded = sr_sketch_padded(a->sketch);
    const float *w = a->w + g0 * padded + SR_SKETCH_FIRST;
    const int per_word = bits == 4 ? 8 : 4;
    __m512 acc[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = _mm512_set1_ps(a->more[g0 + g]);
    for (int32_t i = 0; i < sr_sketch_words(a->sketch); i++) {
        const __m512i word = rest_words(y, i);
        SR_UNROLL for (int j = 0; j < per_word; j++) {
            const __m512 level = level_of(bits, word, bits * j);
            SR_UNROLL for (int g = 0; g < heads; g++)
                acc[g] = _mm512_fmadd_ps(level, _mm512_set1_ps(w[g * padded + i * per_word + j]), acc[g]);
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++) add_rest(a->logits + (g0 + g) * SR_CHUNK_ROWS, run, acc[g]);
}

SR_INLINE void rest_heads(const int bits, const int heads, const struct sketch_score *a, int32_t g0, const struct open_runs *o)
{
    for (int32_t i = 0; i < o->n; i += 2) score_rest(bits, heads, a, g0, o->row + i);
}

SR_INLINE void rest_bits(const int bits, int32_t heads, const struct sketch_score *a, int32_t g0, const struct open_runs *o)
{
    switch (heads) {
    case 1: rest_heads(bits, 1, a, g0, o); return;
    case 2: rest_heads(bits, 2, a, g0, o); return;
    case 3: rest_heads(bits, 3, a, g0, o); return;
    case 4: rest_heads(bits, 4, a, g0, o); return;
    case 5: rest_heads(bits, 5, a, g0, o); return;
    case 6: rest_heads(bits, 6, a, g0, o); return;
    case 7: rest_heads(bits, 7, a, g0, o); return;
    default: rest_heads(bits, 8, a, g0, o); return;
    }
}

void sr_sketch_score_avx512(const struct sketch_score *a)
{
    struct open_runs open;
    first_plane(a, &open);
    for (int32_t g = 0; g < a->group; g += tile_of(a, g)) {
        if (a->sketch->bits == 4) rest_bits(4, tile_of(a, g), a, g, &open);
        else rest_bits(8, tile_of(a, g), a, g, &open);
    }
    finish_scores(a);
}
