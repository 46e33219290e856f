/* SPDX-License-Identifier: Apache-2.0
 *
 * Scores 16 rows per register: a 32-bit lane holds eight 4-bit codes of its row, and a permutation of 16 floats turns
 * a code into its level, since it looks at the lane's four lowest bits only. A level costs one shift and one
 * permutation, shared by all heads, and a multiply-add per head.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { TILE_HEADS = 8 };

struct score_tile { const struct sketch_score *a; int32_t g, padded, words; };

SR_INLINE __m512 level_of(const int bits, __m512i word, int j)
{
    if (bits == 4) {
        const __m512 levels = _mm512_setr_ps(-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f, 4.5f,
                                             5.5f, 6.5f, 7.5f);
        return _mm512_permutexvar_ps(_mm512_srli_epi32(word, (unsigned)(4 * j)), levels);
    }
    const __m512i code = _mm512_and_si512(_mm512_srli_epi32(word, (unsigned)(8 * j)), _mm512_set1_epi32(255));
    return _mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(127.5f));
}

/* One block of 16 rows and `heads` heads: logits stored, maxima kept. Rows outside `inside` get -inf. */
SR_INLINE void score_block(const int bits, const int heads, const struct score_tile *t, int32_t row, __mmask16 inside, __m512 *max)
{
    const uint8_t *y = t->a->y_chunk + (size_t)row * t->a->sketch->row_bytes;
    const float *w = t->a->w + t->g * t->padded;
    const int per_word = bits == 4 ? 8 : 4;
    __m512 acc[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = _mm512_set1_ps(t->a->base[t->g + g]);
    for (int32_t i = 0; i < t->words; i++) {
        const __m512i word = _mm512_loadu_si512(y + i * 64);
        SR_UNROLL for (int j = 0; j < per_word; j++) {
            const __m512 level = level_of(bits, word, j);
            SR_UNROLL for (int g = 0; g < heads; g++)
                acc[g] = _mm512_fmadd_ps(level, _mm512_set1_ps(w[g * t->padded + i * per_word + j]), acc[g]);
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512 x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), inside, acc[g]);
        _mm512_storeu_ps(t->a->logits + (t->g + g) * SR_CHUNK_ROWS + row, x);
        max[g] = _mm512_max_ps(max[g], x); /* of anything and a NaN, the NaN, until the next row */
    }
}

SR_INLINE void score_heads(const int bits, const int heads, const struct score_tile *t)
{
    const struct sketch_score *a = t->a;
    __m512 max[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) max[g] = _mm512_set1_ps(-INFINITY);
    for (int32_t row = a->row0 & ~15; row < a->row1; row += 16) {
        const uint32_t from = row < a->row0 ? (uint32_t)(a->row0 - row) : 0, left = (uint32_t)(a->row1 - row);
        const uint32_t inside = (0xffffu << from) & (left >= 16 ? 0xffffu : (1u << left) - 1u);
        score_block(bits, heads, t, row, (__mmask16)inside, max);
        if (t->g == 0) *a->y_rows += __builtin_popcount(inside & 0xffffu);
    }
    SR_UNROLL for (int g = 0; g < heads; g++) a->max[t->g + g] = _mm512_reduce_max_ps(max[g]);
}

SR_INLINE void score_bits(const int bits, int32_t heads, const struct score_tile *t)
{
    switch (heads) {
    case 1: score_heads(bits, 1, t); return;
    case 2: score_heads(bits, 2, t); return;
    case 3: score_heads(bits, 3, t); return;
    case 4: score_heads(bits, 4, t); return;
    case 5: score_heads(bits, 5, t); return;
    case 6: score_heads(bits, 6, t); return;
    case 7: score_heads(bits, 7, t); return;
    default: score_heads(bits, 8, t); return;
    }
}

void sr_sketch_score_avx512(const struct sketch_score *a)
{
    struct score_tile t = {a, 0, sr_sketch_padded(a->sketch->rank), (int32_t)(a->sketch->row_bytes / 4)};
    for (int32_t heads; t.g < a->group; t.g += heads) {
        const int32_t left = a->group - t.g, tiles = (left + TILE_HEADS - 1) / TILE_HEADS;
        heads = (left + tiles - 1) / tiles;
        if (a->sketch->bits == 4) score_bits(4, heads, &t);
        else score_bits(8, heads, &t);
    }
}
