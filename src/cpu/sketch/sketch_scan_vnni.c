/* SPDX-License-Identifier: Apache-2.0
 *
 * Scores the second plane in integers: its factors w become round(w / s), and one instruction multiplies four codes of a
 * row with four bytes. Sums are exact, so the estimate is off by at most s / 2 per code step and coordinate. Codes of 4
 * bits have one byte of factor, s = their largest / 127: an error of a fourteenth of that of the codes' own rounding, from
 * which a level is off by half a step; so have the fields of mixed codes. Codes of 8 bits, rounded 16 times finer, have two bytes, s = the largest / 32,512.
 */
#include "cpu/sketch/sketch_first_avx512.h"

enum { MAX_FOURS = SR_SKETCH_MAX_FIELDS / 4 };

/* One head's factors, four bytes to a lane, in the order of the fields' bytes: of b bits those of a word b * i bits up, which
 * are every (8 / b)-th field, for i = 0, 1, ... `low` belongs to codes of 8 bits. */
struct head_factors { int32_t high[MAX_FOURS + 4], low[MAX_FOURS + 4]; float scale, more; };

struct rest_factors { struct head_factors head[SR_ATTN_MAX_GROUP]; };

SR_INLINE __mmask16 lanes(int32_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1u); }

/* Of mixed codes, from the order of the fields: the 16 of 2 bits, then the 32 of 1 bit, of each pair of words. */
static void order_pairs(int32_t *high, int32_t n_words)
{
    const __m128i by_fours = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int32_t i = 0; i < n_words; i += 2, high += 12) {
        __m128i *at = (__m128i *)(void *)high;
        const __m128i low = _mm_loadu_si128(at + 1), top = _mm_loadu_si128(at + 2);
        const __m128i a = _mm_unpacklo_epi8(low, _mm_srli_si128(low, 8)), b = _mm_unpacklo_epi8(top, _mm_srli_si128(top, 8));
        _mm_storeu_si128(at, _mm_shuffle_epi8(_mm_loadu_si128(at), by_fours));
        _mm_storeu_si128(at + 1, _mm_unpacklo_epi16(a, b));
        _mm_storeu_si128(at + 2, _mm_unpackhi_epi16(a, b));
    }
}

static void split_factors(const struct sketch_scan *a, int32_t g, struct head_factors *h)
{
    const int32_t padded = sr_sketch_padded(a->sketch), n = padded - SR_SKETCH_FIRST, bits = a->sketch->bits;
    const float *w = a->w + g * padded + SR_SKETCH_FIRST;
    const __m128i order = bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                    : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 most = _mm512_setzero_ps();
    __m512 sum = _mm512_setzero_ps(); /* of whole numbers and halves below 2^23: exact */
    for (int32_t j = 0; j < n; j += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(n - j), w + j)));
    h->scale = _mm512_reduce_max_ps(most) / (bits == 8 ? 32512.0f : 127.0f);
    const __m512 inverse = _mm512_set1_ps(h->scale > 0 ? 1.0f / h->scale : 0.0f);
    for (int32_t j = 0; j < n; j += 16) {
        const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(n - j), w + j), inverse));
        const __m512i top = bits != 8 ? x : _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
        const __m512i rest = _mm512_sub_epi32(x, _mm512_slli_epi32(top, 8));
        const float centre = bits == 8 ? 127.5f : bits == 4 ? 7.5f : j / 16 % 3 == 0 ? 1.5f : 0.5f;
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), _mm512_set1_ps(centre), sum);
        _mm_storeu_si128((__m128i *)(void *)(h->high + j / 4), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(top), order));
        _mm_storeu_si128((__m128i *)(void *)(h->low + j / 4), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(rest), order));
    }
    if (bits == SR_SKETCH_MIXED) order_pairs(h->high, sr_sketch_words(a->sketch));
    h->more = a->more[g] - h->scale * _mm512_reduce_add_ps(sum);
}

static void rest_factors(const struct sketch_scan *a, struct rest_factors *f)
{
    for (int32_t g = 0; g < a->group; g++) split_factors(a, g, &f->head[g]);
}

struct scan;
SR_INLINE void rest_of_block(const int bits, const int heads, const struct scan *s, int32_t g0, int32_t row, __mmask16 lanes, __m512 *x);

#include "cpu/sketch/sketch_scan_body_avx512.h"

/* Adds the products of a word's fields of `bits` bits, four by four in turns to two chains of sums; with `two` not set to one,
 * which is enough for the words of four heads. */
SR_INLINE void add_word(const int bits, const int heads, const int two, const struct head_factors *head, __m512i word, int32_t at, __m512i *even, __m512i *odd)
{
    const __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    const int n = 8 / bits; /* outside of the condition: its check by a sanitizer would be the loop's */
    SR_UNROLL for (int i = 0; i < n; i++) {
        const __m512i fields = _mm512_and_si512(_mm512_srli_epi32(word, (unsigned)(i * bits)), mask);
        __m512i *to = two && i % 2 ? odd : even;
        SR_UNROLL for (int g = 0; g < heads; g++) to[g] = _mm512_dpbusd_epi32(to[g], fields, _mm512_set1_epi32(head[g].high[at + i]));
    }
}

SR_INLINE void add_word_of_8(const int heads, const struct head_factors *head, __m512i word, int32_t at, __m512i *high, __m512i *low)
{
    SR_UNROLL for (int g = 0; g < heads; g++) {
        high[g] = _mm512_dpbusd_epi32(high[g], word, _mm512_set1_epi32(head[g].high[at]));
        low[g] = _mm512_dpbusd_epi32(low[g], word, _mm512_set1_epi32(head[g].low[at]));
    }
}

SR_INLINE void add_words(const int bits, const int heads, const struct head_factors *head, const struct block_words *words, const int32_t i, __m512i *x, __m512i *y)
{
    const int two = heads < 4;
    if (bits == 8) add_word_of_8(heads, head, rest_words(words, i), i, x, y);
    else if (bits == 4) add_word(4, heads, two, head, rest_words(words, i), 2 * i, x, y);
    else if (i % 2 == 0) add_word(2, heads, 1, head, rest_words(words, i), 6 * i, x, y);
    else add_word(1, heads, 1, head, rest_words(words, i), 6 * i - 2, x, y);
}

/* n_words: 0 where it is no constant. */
SR_INLINE void rest_of_words(const int bits, const int heads, const int n_words, const struct scan *s, int32_t g0, const struct block_words *words, __m512 *x)
{
    const struct head_factors *head = s->factors.head + g0;
    __m512i high[TILE_HEADS], low[TILE_HEADS];
    SR_UNROLL for (int g = 0; g < heads; g++) high[g] = low[g] = _mm512_setzero_si512();
    SR_UNROLL for (int i = 0; i < n_words; i++) add_words(bits, heads, head, words, i, high, low);
    for (int32_t i = 0; n_words == 0 && i < s->plane.n_words; i += 2) {
        add_words(bits, heads, head, words, i, high, low);
        if (i + 1 < s->plane.n_words) add_words(bits, heads, head, words, i + 1, high, low);
    }
    SR_UNROLL for (int g = 0; g < heads; g++) {
        const __m512i sum = _mm512_add_epi32(bits == 8 ? _mm512_slli_epi32(high[g], 8) : high[g], low[g]);
        x[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(head[g].scale), _mm512_set1_ps(head[g].more));
    }
}

/* The usual ranks, a quarter of the head size and 4 or 12 more, and one pair of words have loops of their own. */
SR_INLINE void rest_of_block(const int bits, const int heads, const struct scan *s, int32_t g0, int32_t row, __mmask16 lanes, __m512 *x)
{
    const struct block_words words = block_words(s->plane.y + (size_t)(row / BLOCK_ROWS) * s->plane.block_bytes, s->plane.block_bytes, lanes);
    if (bits == 4 && s->plane.n_words == 2) rest_of_words(4, heads, 2, s, g0, &words, x);
    else if (bits == 4 && s->plane.n_words == 3) rest_of_words(4, heads, 3, s, g0, &words, x);
    else if (bits == 4 && s->plane.n_words == 4) rest_of_words(4, heads, 4, s, g0, &words, x);
    else if (bits == SR_SKETCH_MIXED && s->plane.n_words == 2) rest_of_words(SR_SKETCH_MIXED, heads, 2, s, g0, &words, x);
    else rest_of_words(bits, heads, 0, s, g0, &words, x);
}

void sr_sketch_scan_vnni(struct sketch_scan *a) { scan(a); }
