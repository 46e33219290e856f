/* SPDX-License-Identifier: Apache-2.0
 *
 * What the AVX-512 and the VNNI score share: blocks of 16 rows by the first plane, pairs of open runs by the second, and
 * the largest logits at the end. The first plane is scored in floats by both: of four coordinates integers gain nothing.
 */
#ifndef SR_CPU_SKETCH_SKETCH_SCORE_AVX512_H
#define SR_CPU_SKETCH_SKETCH_SCORE_AVX512_H

#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { TILE_HEADS = 8, BLOCK_ROWS = 2 * SR_SKETCH_RUN, BLOCKS = SR_CHUNK_ROWS / BLOCK_ROWS };

/* Rows of the block at `row` that are in the range. */
SR_INLINE __mmask16 inside_of(const struct sketch_score *a, int32_t row)
{
    const uint32_t from = row < a->row0 ? (uint32_t)(a->row0 - row) : 0, left = (uint32_t)(a->row1 - row);
    return (__mmask16)((0xffffu << from) & (left >= 16 ? 0xffffu : (1u << left) - 1u));
}

/* The levels of a block's codes, `shift` bits up in its lanes: a permutation of 16 floats turns a code of 4 bits into its
 * level, since it looks at a lane's four lowest bits only. */
SR_INLINE __m512 level_of(const int bits, __m512i word, int shift)
{
    const __m512i code = _mm512_srli_epi32(word, (unsigned)shift);
    if (bits == 4) {
        const __m512 levels = _mm512_setr_ps(-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f, 4.5f,
                                             5.5f, 6.5f, 7.5f);
        return _mm512_permutexvar_ps(code, levels);
    }
    return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(code, _mm512_set1_epi32(255))), _mm512_set1_ps(127.5f));
}

/* ---- the first plane ---- */

/* A block of 16 rows and `heads` heads from g0 on. Rows that open their run. */
SR_INLINE __mmask16 score_first(const int bits, const int heads, const struct sketch_score *a, int32_t g0, int32_t row)
{
    const int32_t padded = sr_sketch_padded(a->sketch);
    const float *w = a->w + g0 * padded;
    __m512i word = _mm512_loadu_si512(a->y_chunk + sr_sketch_first_at(bits, row));
    __m512 acc[TILE_HEADS];
    __mmask16 open = 0;
    if (bits == 4) word = _mm512_srl_epi32(word, _mm_cvtsi32_si128(sr_sketch_first_shift(bits, row)));
    SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = _mm512_set1_ps(a->base[g0 + g]);
    SR_UNROLL for (int j = 0; j < SR_SKETCH_FIRST; j++) {
        const __m512 level = level_of(bits, word, 8 * j);
        SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = _mm512_fmadd_ps(level, _mm512_set1_ps(w[g * padded + j]), acc[g]);
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        _mm512_storeu_ps(a->logits + (g0 + g) * SR_CHUNK_ROWS + row, acc[g]);
        open |= _mm512_cmp_ps_mask(acc[g], _mm512_set1_ps(a->open[g0 + g]), _CMP_NLT_UQ);
    }
    return open;
}

SR_INLINE void first_heads(const int bits, const int heads, const struct sketch_score *a, int32_t g0, __mmask16 *rows)
{
    for (int32_t row = a->row0 & ~15; row < a->row1; row += BLOCK_ROWS) rows[row / BLOCK_ROWS] |= score_first(bits, heads, a, g0, row);
}

SR_INLINE void first_bits(const int bits, int32_t heads, const struct sketch_score *a, int32_t g0, __mmask16 *rows)
{
    switch (heads) {
    case 1: first_heads(bits, 1, a, g0, rows); return;
    case 2: first_heads(bits, 2, a, g0, rows); return;
    case 3: first_heads(bits, 3, a, g0, rows); return;
    case 4: first_heads(bits, 4, a, g0, rows); return;
    case 5: first_heads(bits, 5, a, g0, rows); return;
    case 6: first_heads(bits, 6, a, g0, rows); return;
    case 7: first_heads(bits, 7, a, g0, rows); return;
    default: first_heads(bits, 8, a, g0, rows); return;
    }
}

/* The number of heads from g on that are scored together. */
SR_INLINE int32_t tile_of(const struct sketch_score *a, int32_t g)
{
    const int32_t left = a->group - g, tiles = (left + TILE_HEADS - 1) / TILE_HEADS;
    return (left + tiles - 1) / tiles;
}

/* ---- the second ---- */

/* The open runs, listed so that no branch has to be guessed. They are read two at a time, whichever they are; of an odd
 * number the last one stands there twice. */
struct open_runs { int32_t n, row[2 * BLOCKS + 2]; };

/* All heads by the first plane; the runs that this opens. Counts what is read. */
SR_INLINE void first_plane(const struct sketch_score *a, struct open_runs *o)
{
    __mmask16 rows[BLOCKS] = {0};
    int64_t n_rest = 0, first = (int64_t)sr_sketch_first_bytes(a->sketch);
    o->n = 0;
    /* A plane of a chunk is too short for the processor to find out that it is read in order. */
    for (size_t i = sr_sketch_first_at(a->sketch->bits, a->row0), end = sr_sketch_first_at(a->sketch->bits, a->row1 - 1); i <= end; i += 64)
        _mm_prefetch((const char *)a->y_chunk + i, _MM_HINT_T0);
    for (int32_t g = 0; g < a->group; g += tile_of(a, g)) {
        if (a->sketch->bits == 4) first_bits(4, tile_of(a, g), a, g, rows);
        else first_bits(8, tile_of(a, g), a, g, rows);
    }
    for (int32_t row = a->row0 & ~15; row < a->row1; row += BLOCK_ROWS) {
        const unsigned inside = inside_of(a, row), open = inside & rows[row / BLOCK_ROWS];
        const int low = (open & 0x00ff) != 0, high = (open & 0xff00) != 0;
        o->row[o->n] = row;
        o->row[o->n + low] = row + SR_SKETCH_RUN;
        o->n += low + high;
        n_rest += __builtin_popcount(inside & (unsigned)(low * 0x00ff + high * 0xff00));
    }
    o->row[o->n] = o->row[o->n > 0 ? o->n - 1 : 0];
    for (int32_t i = 0; i < o->n; i++)
        for (int32_t j = 0; j < sr_sketch_words(a->sketch); j += 2)
            _mm_prefetch((const char *)a->y_chunk + sr_sketch_word_at(a->sketch, o->row[i], j), _MM_HINT_T0);
    a->touched->y_rows += a->row1 - a->row0;
    a->touched->y_bytes += (a->row1 - a->row0) * first + n_rest * ((int64_t)a->sketch->row_bytes - first);
}

/* Word i of two runs whose words of the second plane begin at y. */
SR_INLINE __m512i rest_words(const uint8_t *const y[2], int32_t i)
{
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(y[0] + i * SR_SKETCH_RUN * 4));
    const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(y[1] + i * SR_SKETCH_RUN * 4));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Adds to a head's logits of two runs. */
SR_INLINE void add_rest(float *logits, const int32_t run[2], __m512 x)
{
    const __m256 low = _mm256_add_ps(_mm256_loadu_ps(logits + run[0]), _mm512_castps512_ps256(x));
    const __m256 high = _mm256_add_ps(_mm256_loadu_ps(logits + run[1]), _mm512_extractf32x8_ps(x, 1));
    _mm256_storeu_ps(logits + run[0], low);
    _mm256_storeu_ps(logits + run[1], high);
}

/* Rows outside the range, and the largest logit of each head. */
SR_INLINE void finish_scores(const struct sketch_score *a)
{
    const int32_t first = a->row0 & ~15, last = (a->row1 - 1) & ~15;
    for (int32_t g = 0; g < a->group; g++) {
        float *x = a->logits + g * SR_CHUNK_ROWS;
        __m512 max[4];
        for (int i = 0; i < 4; i++) max[i] = _mm512_set1_ps(-INFINITY);
        _mm512_storeu_ps(x + first, _mm512_mask_mov_ps(max[0], inside_of(a, first), _mm512_loadu_ps(x + first)));
        _mm512_storeu_ps(x + last, _mm512_mask_mov_ps(max[0], inside_of(a, last), _mm512_loadu_ps(x + last)));
        int32_t row = first;
        for (; row + 48 <= last; row += 64) /* a maximum of anything and a NaN is the NaN, until the next row */
            SR_UNROLL for (int i = 0; i < 4; i++) max[i] = _mm512_max_ps(max[i], _mm512_loadu_ps(x + row + 16 * i));
        for (; row <= last; row += 16) max[0] = _mm512_max_ps(max[0], _mm512_loadu_ps(x + row));
        a->max[g] = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3])));
    }
}

#endif
