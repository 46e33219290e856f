/* SPDX-License-Identifier: Apache-2.0
 *
 * Scores 16 rows per register in integers: w becomes round(w / s) of at most 127 * 256, split into two signed bytes,
 * and one instruction multiplies four codes of a row with four bytes. Sums are exact, so the estimate is off by at
 * most s / 2 per code step and coordinate: below 0.001 for logits of 10, where the sketch itself is off by tenths.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { TILE_HEADS = 8, MAX_FOURS = SR_ATTN_MAX_DIM / 4 };

/* One head's factors, four bytes to a lane: in the order of the codes' bytes, of 4-bit codes first the even coordinates
 * of a word, then the odd ones. */
struct head_factors { int32_t high[MAX_FOURS + 4], low[MAX_FOURS + 4]; float scale, base; };

struct score_tile { const struct sketch_score *a; const struct head_factors *head; int32_t g, words; };

static void split_factors(const struct sketch_score *a, int32_t g, struct head_factors *h)
{
    const int32_t padded = sr_sketch_padded(a->sketch->rank), bits = a->sketch->bits;
    const float *w = a->w + g * padded;
    const __m128i order = bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                    : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 most = _mm512_setzero_ps();
    __m512 sum = _mm512_setzero_ps(); /* of whole numbers below 2^24: exact */
    for (int32_t j = 0; j < padded; j += 16) {
        const __mmask16 mask = padded - j >= 16 ? 0xffff : 0xff;
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, w + j)));
    }
    h->scale = _mm512_reduce_max_ps(most) / 32512.0f;
    const __m512 inverse = _mm512_set1_ps(h->scale > 0 ? 1.0f / h->scale : 0.0f);
    for (int32_t j = 0; j < padded; j += 16) {
        const __mmask16 mask = padded - j >= 16 ? 0xffff : 0xff;
        const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, w + j), inverse));
        const __m512i top = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
        const __m512i rest = _mm512_sub_epi32(x, _mm512_slli_epi32(top, 8));
        sum = _mm512_add_ps(sum, _mm512_cvtepi32_ps(x));
        _mm_storeu_si128((__m128i *)(void *)(h->high + j / 4), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(top), order));
        _mm_storeu_si128((__m128i *)(void *)(h->low + j / 4), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(rest), order));
    }
    h->base = a->base[g] - h->scale * ((float)(1 << (bits - 1)) - 0.5f) * _mm512_reduce_add_ps(sum);
}

/* One block of 16 rows and `heads` heads: logits stored, maxima kept. Rows outside `inside` get -inf. */
SR_INLINE void score_block(const int bits, const int heads, const struct score_tile *t, int32_t row, __mmask16 inside, __m512 *max)
{
    const uint8_t *y = t->a->y_chunk + (size_t)row * t->a->sketch->row_bytes;
    const __m512i nibbles = _mm512_set1_epi8(15);
    __m512i high[TILE_HEADS], low[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) high[g] = low[g] = _mm512_setzero_si512();
    for (int32_t i = 0; i < t->words; i++) {
        const __m512i word = _mm512_loadu_si512(y + i * 64);
        const __m512i first = bits == 4 ? _mm512_and_si512(word, nibbles) : word;
        const __m512i second = _mm512_and_si512(_mm512_srli_epi32(word, 4), nibbles);
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const int32_t *top = t->head[g].high + i * (8 / bits), *rest = t->head[g].low + i * (8 / bits);
            high[g] = _mm512_dpbusd_epi32(high[g], first, _mm512_set1_epi32(top[0]));
            low[g] = _mm512_dpbusd_epi32(low[g], first, _mm512_set1_epi32(rest[0]));
            if (bits == 8) continue;
            high[g] = _mm512_dpbusd_epi32(high[g], second, _mm512_set1_epi32(top[1]));
            low[g] = _mm512_dpbusd_epi32(low[g], second, _mm512_set1_epi32(rest[1]));
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[g], 8), low[g]));
        __m512 x = _mm512_fmadd_ps(sum, _mm512_set1_ps(t->head[g].scale), _mm512_set1_ps(t->head[g].base));
        x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), inside, x);
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

void sr_sketch_score_vnni(const struct sketch_score *a)
{
    struct head_factors head[TILE_HEADS];
    struct score_tile t = {a, head, 0, (int32_t)(a->sketch->row_bytes / 4)};
    for (int32_t heads; t.g < a->group; t.g += heads) {
        const int32_t left = a->group - t.g, tiles = (left + TILE_HEADS - 1) / TILE_HEADS;
        heads = (left + tiles - 1) / tiles;
        for (int32_t g = 0; g < heads; g++) split_factors(a, t.g + g, &head[g]);
        if (a->sketch->bits == 4) score_bits(4, heads, &t);
        else score_bits(8, heads, &t);
    }
}
