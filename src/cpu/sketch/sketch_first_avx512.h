/* SPDX-License-Identifier: Apache-2.0
 *
 * What the AVX-512 and the VNNI scan share: rows by the first plane, in parts of a few KB of logits, and how the second
 * lies. The first plane is scored in floats by both: of four coordinates integers gain nothing.
 */
#ifndef SR_CPU_SKETCH_SKETCH_FIRST_AVX512_H
#define SR_CPU_SKETCH_SKETCH_FIRST_AVX512_H

#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"
#include "cpu/sketch/sketch_inside_inline.h"

#include <math.h>

/* PART_ROWS: the planes are read in turns of so many rows. */
enum { TILE_HEADS = 8, BLOCK_ROWS = 2 * SR_SKETCH_RUN, PART_ROWS = 256 };

/* The levels of a block's codes, `shift` bits up in its lanes: a permutation of 16 floats turns a code of 4 bits into its
 * level, since it looks at a lane's four lowest bits only; of 2 and of 1 bit those levels repeat. */
SR_INLINE __m512 level_of(const int bits, __m512i word, int shift)
{
    const __m512i code = _mm512_srli_epi32(word, (unsigned)shift);
    if (bits == 4) {
        const __m512 levels = _mm512_setr_ps(-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f, 4.5f,
                                             5.5f, 6.5f, 7.5f);
        return _mm512_permutexvar_ps(code, levels);
    }
    if (bits == 2) return _mm512_permutexvar_ps(code, _mm512_broadcast_f32x4(_mm_setr_ps(-1.5f, -0.5f, 0.5f, 1.5f)));
    if (bits == 1) return _mm512_permutexvar_ps(code, _mm512_broadcast_f32x4(_mm_setr_ps(-0.5f, 0.5f, -0.5f, 0.5f)));
    return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(code, _mm512_set1_epi32(255))), _mm512_set1_ps(127.5f));
}

/* ---- the first plane ---- */

/* Rows [row0, row1) of the blocks of a part that are wanted; lanes: of each block those of open runs. */
struct part { int32_t row0, row1; _Alignas(32) __mmask16 lanes[PART_ROWS / BLOCK_ROWS]; };
_Static_assert(PART_ROWS == 32 * SR_SKETCH_RUN, "runs of a part are the bytes of a register");

SR_INLINE uint32_t block_of(uint32_t row) { return row % PART_ROWS / BLOCK_ROWS; }

/* Of a head, copied: beside stores of logits nothing else is sure to stay as it is. */
struct first_head { float w[SR_SKETCH_FIRST], base, open; };

/* A block of 16 rows, its codes `shift` bits up. Rows that open their run. */
SR_INLINE __mmask16 score_first(const int bits, const int heads, const struct first_head *h, __m512i word, const int shift, float *logits)
{
    __m512 acc[TILE_HEADS];
    __mmask16 open = 0;
    SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = _mm512_set1_ps(h[g].base);
    SR_UNROLL for (int j = 0; j < SR_SKETCH_FIRST; j++) {
        const __m512 level = level_of(bits, word, 8 * j + shift);
        SR_UNROLL for (int g = 0; g < heads; g++) acc[g] = _mm512_fmadd_ps(level, _mm512_set1_ps(h[g].w[j]), acc[g]);
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        _mm512_storeu_ps(logits + g * SR_SKETCH_STRIDE, acc[g]);
        open |= _mm512_cmp_ps_mask(acc[g], _mm512_set1_ps(h[g].open), _CMP_NLT_UQ);
    }
    return open;
}

/* Of 4 bits two blocks share their words. */
SR_INLINE void first_heads(const int bits, const int heads, const struct sketch_scan *a, int32_t g0, const struct part *p, __mmask16 *rows)
{
    const uint8_t *y = a->y_chunk;
    float *logits = a->logits + g0 * SR_SKETCH_STRIDE;
    struct first_head h[TILE_HEADS];
    for (int g = 0; g < heads; g++) {
        memcpy(h[g].w, a->w + (g0 + g) * sr_sketch_padded(a->sketch), sizeof(h[g].w));
        h[g].base = a->base[g0 + g];
        h[g].open = a->open[g0 + g];
    }
    for (uint32_t row = (uint32_t)p->row0; row < (uint32_t)p->row1; row += BLOCK_ROWS) {
        const __m512i word = _mm512_loadu_si512(y + row / (bits == 4 ? 32 : 16) * 64);
        const int high = bits == 4 && row % 32;
        rows[block_of(row)] |= high ? score_first(bits, heads, h, word, 4, logits + row) : score_first(bits, heads, h, word, 0, logits + row);
    }
}

SR_INLINE void first_bits(const int bits, int32_t heads, const struct sketch_scan *a, int32_t g0, const struct part *p, __mmask16 *rows)
{
    switch (heads) {
    case 1: first_heads(bits, 1, a, g0, p, rows); return;
    case 2: first_heads(bits, 2, a, g0, p, rows); return;
    case 3: first_heads(bits, 3, a, g0, p, rows); return;
    case 4: first_heads(bits, 4, a, g0, p, rows); return;
    case 5: first_heads(bits, 5, a, g0, p, rows); return;
    case 6: first_heads(bits, 6, a, g0, p, rows); return;
    case 7: first_heads(bits, 7, a, g0, p, rows); return;
    default: first_heads(bits, 8, a, g0, p, rows); return;
    }
}

/* The number of heads from g on that are scored together. */
SR_INLINE int32_t tile_of(const struct sketch_scan *a, int32_t g)
{
    const int32_t left = a->group - g, tiles = (left + TILE_HEADS - 1) / TILE_HEADS;
    return (left + tiles - 1) / tiles;
}

/* ---- a part ---- */

/* The second plane of a chunk: words of a row, and the bytes of a block of 16 rows, which is two runs. */
struct rest_plane { const uint8_t *y; int32_t n_words; size_t block_bytes; };

SR_INLINE struct rest_plane rest_plane(const struct sketch_scan *a)
{
    const int32_t n = sr_sketch_words(a->sketch);
    return (struct rest_plane){a->y_chunk + sr_sketch_word_at(a->sketch, 0, 0), n, (size_t)n * BLOCK_ROWS * 4};
}

/* Both planes of a chunk are too short for the processor to find out that they are read in order. */
SR_INLINE void fetch_first(const struct sketch_scan *a, const uint8_t *y, int32_t part)
{
    const uint8_t *p = y + sr_sketch_first_at(a->sketch->bits, part * PART_ROWS), *end = y + sr_sketch_first_at(a->sketch->bits, (part + 1) * PART_ROWS);
    for (; p < end; p += SR_LINE) _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* The open runs of a block. */
SR_INLINE void fetch_rest(const uint8_t *block, size_t block_bytes, __mmask16 lanes)
{
    if (!lanes) return;
    const uint8_t *at = block + (lanes & 0x00ff ? 0 : block_bytes / 2), *end = block + (lanes & 0xff00 ? block_bytes : block_bytes / 2);
    for (; at < end; at += SR_LINE) _mm_prefetch((const char *)at, _MM_HINT_T0);
}

/* All heads by the first plane of part number i; the runs that this opens. Returns how many of their rows are in the range. */
SR_INLINE int64_t first_plane(const struct sketch_scan *a, const struct inside *in, int32_t i, struct part *p)
{
    _Alignas(32) __mmask16 rows[PART_ROWS / BLOCK_ROWS] = {0};
    const int32_t begin = i * PART_ROWS, low_row = a->row0 & ~15;
    int64_t n_rest = 0;
    int is_whole = 1;
    p->row0 = low_row > begin ? low_row : begin;
    p->row1 = a->row1 < begin + PART_ROWS ? a->row1 : begin + PART_ROWS;
    for (int32_t row = p->row0; row < p->row1; row += BLOCK_ROWS) is_whole &= inside_at(in, row, BLOCK_ROWS) == 0xffff;
    for (int32_t g = 0; g < a->group; g += tile_of(a, g)) {
        if (a->sketch->bits == 8) first_bits(8, tile_of(a, g), a, g, p, rows);
        else first_bits(4, tile_of(a, g), a, g, p, rows);
    }
    const __m256i open = _mm256_load_si256((const __m256i *)(const void *)rows);
    const __mmask32 runs = _mm256_test_epi8_mask(open, open); /* a run is a byte of them */
    _mm256_store_si256((__m256i *)(void *)p->lanes, _mm256_movm_epi8(runs));
    if (is_whole) return (int64_t)SR_SKETCH_RUN * __builtin_popcount(runs);
    for (int32_t row = p->row0; row < p->row1; row += BLOCK_ROWS) {
        const unsigned inside = inside_at(in, row, BLOCK_ROWS), x = rows[block_of((uint32_t)row)] & inside;
        const unsigned lanes = (x & 0x00ff ? 0x00ffu : 0) | (x & 0xff00 ? 0xff00u : 0);
        p->lanes[block_of((uint32_t)row)] = (__mmask16)lanes;
        n_rest += __builtin_popcount(inside & lanes);
    }
    return n_rest;
}

/* ---- the second plane ---- */

/* Addresses of a block's two runs; of one that is not open, which may be in no cache, the other one's. */
struct block_words { const uint8_t *low, *high; };

SR_INLINE struct block_words block_words(const uint8_t *block, size_t block_bytes, __mmask16 lanes)
{
    const uint8_t *high = block + block_bytes / 2;
    return (struct block_words){lanes & 0x00ff ? block : high, lanes & 0xff00 ? high : block};
}

/* Word number i of 16 rows. */
SR_INLINE __m512i rest_words(const struct block_words *b, int32_t i)
{
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(b->low + i * SR_SKETCH_RUN * 4));
    const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(b->high + i * SR_SKETCH_RUN * 4));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

#endif
