/* SPDX-License-Identifier: Apache-2.0
 *
 * Scores the second plane in integers: its factors w become round(w / s), and one instruction multiplies four codes of a
 * row with four bytes. Sums are exact, so the estimate is off by at most s / 2 per code step and coordinate. Codes of 4
 * bits have one byte of factor, s = their largest / 127: an error of a fourteenth of that of the codes' own rounding, from
 * which a level is off by half a step. Codes of 8 bits, rounded 16 times finer, have two bytes, s = the largest / 32,512.
 */
#include "cpu/sketch/sketch_score_avx512.h"

enum { MAX_FOURS = SR_ATTN_MAX_DIM / 4 };

/* One head's factors, four bytes to a lane, in the order of the codes' bytes: of 4-bit codes first the even coordinates of
 * a word, then the odd ones. `low` belongs to codes of 8 bits. */
struct head_factors { int32_t high[MAX_FOURS + 4], low[MAX_FOURS + 4]; float scale, more; };

struct score_tile { const struct sketch_score *a; const struct head_factors *head; int32_t g; };

SR_INLINE __mmask16 lanes(int32_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1u); }

static void split_factors(const struct sketch_score *a, int32_t g, struct head_factors *h)
{
    const int32_t padded = sr_sketch_padded(a->sketch), n = padded - SR_SKETCH_FIRST, bits = a->sketch->bits;
    const float *w = a->w + g * padded + SR_SKETCH_FIRST;
    const __m128i order = bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                    : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 most = _mm512_setzero_ps();
    __m512 sum = _mm512_setzero_ps(); /* of whole numbers below 2^24: exact */
    for (int32_t j = 0; j < n; j += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(n - j), w + j)));
    h->scale = _mm512_reduce_max_ps(most) / (bits == 4 ? 127.0f : 32512.0f);
    const __m512 inverse = _mm512_set1_ps(h->scale > 0 ? 1.0f / h->scale : 0.0f);
    for (int32_t j = 0; j < n; j += 16) {
        const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(n - j), w + j), inverse));
        const __m512i top = bits == 4 ? x : _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
        const __m512i rest = _mm512_sub_epi32(x, _mm512_slli_epi32(top, 8));
        sum = _mm512_add_ps(sum, _mm512_cvtepi32_ps(x));
        _mm_storeu_si128((__m128i *)(void *)(h->high + j / 4), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(top), order));
        _mm_storeu_si128((__m128i *)(void *)(h->low + j / 4), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(rest), order));
    }
    h->more = a->more[g] - h->scale * ((float)(1 << (bits - 1)) - 0.5f) * _mm512_reduce_add_ps(sum);
}

/* The second plane is added to the rows of two open runs. */
SR_INLINE void score_rest(const int bits, const int heads, const struct score_tile *t, const int32_t run[2])
{
    const struct sketch_score *a = t->a;
    const uint8_t *const y[2] = {a->y_chunk + sr_sketch_word_at(a->sketch, run[0], 0), a->y_chunk + sr_sketch_word_at(a->sketch, run[1], 0)};
    const __m512i nibbles = _mm512_set1_epi8(15);
    __m512i high[TILE_HEADS], low[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) high[g] = low[g] = _mm512_setzero_si512();
    for (int32_t i = 0; i < sr_sketch_words(a->sketch); i++) {
        const __m512i word = rest_words(y, i);
        const __m512i even = _mm512_and_si512(word, nibbles), odd = _mm512_and_si512(_mm512_srli_epi32(word, 4), nibbles);
        SR_UNROLL for (int g = 0; g < heads; g++) {
            const struct head_factors *h = &t->head[g];
            if (bits == 4) { /* two chains, half as long */
                high[g] = _mm512_dpbusd_epi32(high[g], even, _mm512_set1_epi32(h->high[2 * i]));
                low[g] = _mm512_dpbusd_epi32(low[g], odd, _mm512_set1_epi32(h->high[2 * i + 1]));
            } else {
                high[g] = _mm512_dpbusd_epi32(high[g], word, _mm512_set1_epi32(h->high[i]));
                low[g] = _mm512_dpbusd_epi32(low[g], word, _mm512_set1_epi32(h->low[i]));
            }
        }
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512i sum = _mm512_add_epi32(bits == 4 ? high[g] : _mm512_slli_epi32(high[g], 8), low[g]);
        const __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(t->head[g].scale), _mm512_set1_ps(t->head[g].more));
        add_rest(a->logits + (t->g + g) * SR_CHUNK_ROWS, run, x);
    }
}

SR_INLINE void rest_heads(const int bits, const int heads, const struct score_tile *t, const struct open_runs *o)
{
    for (int32_t i = 0; i < o->n; i += 2) score_rest(bits, heads, t, o->row + i);
}

SR_INLINE void rest_bits(const int bits, int32_t heads, const struct score_tile *t, const struct open_runs *o)
{
    switch (heads) {
    case 1: rest_heads(bits, 1, t, o); return;
    case 2: rest_heads(bits, 2, t, o); return;
    case 3: rest_heads(bits, 3, t, o); return;
    case 4: rest_heads(bits, 4, t, o); return;
    case 5: rest_heads(bits, 5, t, o); return;
    case 6: rest_heads(bits, 6, t, o); return;
    case 7: rest_heads(bits, 7, t, o); return;
    default: rest_heads(bits, 8, t, o); return;
    }
}

void sr_sketch_score_vnni(const struct sketch_score *a)
{
    struct head_factors head[TILE_HEADS];
    struct open_runs open;
    first_plane(a, &open);
    for (int32_t g = 0; open.n > 0 && g < a->group; g += tile_of(a, g)) {
        const struct score_tile t = {a, head, g};
        for (int32_t i = 0; i < tile_of(a, g); i++) split_factors(a, g + i, &head[i]);
        if (a->sketch->bits == 4) rest_bits(4, tile_of(a, g), &t, &open);
        else rest_bits(8, tile_of(a, g), &t, &open);
    }
    finish_scores(a);
}
