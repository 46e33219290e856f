/* SPDX-License-Identifier: Apache-2.0
 *
 * K-quants times quantized activations, AVX2. A super-block is read in eight pieces of 32 codes; its scales are unpacked at
 * once, multiplied with those of the activations as vectors, and a permutation gives each piece its own: one (Q4_K, Q5_K), or
 * one for each half of 16. Offsets times the sums of the activations are vectors of their own.
 */
#include "cpu/matmul/avx2_inline.h"

/* Weight scales and offsets of a super-block, 8 or 16. */
struct slots { __m256 scale[2], offset[2]; };

typedef __m256i codes_fn(const uint8_t *block, int j);
typedef struct slots slots_fn(const uint8_t *block);

/* How a type is read: bytes of a super-block, whether its slots are 32 wide, its unpackers, what its offsets count. */
struct form { int bytes, wide; codes_fn *codes; slots_fn *slots; float offset; };

/* ---- codes: piece j of a super-block ------------------------------------------------------------------------------- */

/* 16-bit words moved by so many bits to the left, or, below 0, to the right. */
INLINE __m256i move(__m256i v, int by) { return by > 0 ? _mm256_slli_epi16(v, by) : by < 0 ? _mm256_srli_epi16(v, -by) : v; }

INLINE __m256i nibbles(const uint8_t *p, int high) { return masked(move(at256(p), high ? -4 : 0), 15); }
INLINE __m256i two_bits(const uint8_t *p, int j) { return masked(move(at256(p + 32 * (j / 4)), -2 * (j % 4)), 3); }
/* Bit j of each byte, as bit `to`. */
INLINE __m256i one_bit(const uint8_t *p, int j, int to) { return masked(move(at256(p), to - j), 1 << to); }

INLINE __m256i codes_q2_k(const uint8_t *b, int j) { return two_bits(b + 16, j); }
INLINE __m256i codes_q3_k(const uint8_t *b, int j) { return _mm256_or_si256(two_bits(b + 32, j), one_bit(b, j, 2)); } /* 4 too much */
INLINE __m256i codes_q4_k(const uint8_t *b, int j) { return nibbles(b + 16 + 32 * (j / 2), j & 1); }
INLINE __m256i codes_q5_k(const uint8_t *b, int j) { return _mm256_or_si256(nibbles(b + 48 + 32 * (j / 2), j & 1), one_bit(b + 16, j, 4)); }
INLINE __m256i codes_q6_k(const uint8_t *b, int j) /* 32 too much */
{
    const int n = j / 4, k = j % 4;
    return _mm256_or_si256(nibbles(b + 64 * n + 32 * (k & 1), k >= 2), masked(move(at256(b + 128 + 32 * n), 4 - 2 * k), 0x30));
}

/* ---- scales --------------------------------------------------------------------------------------------------------- */

INLINE __m256 floats_of_bytes(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)); }

/* Q4_K, Q5_K: eight scales and eight minima of six bits: eight whole ones, then eight whose low four bits share bytes and
 * whose high two lie above the first ones. */
INLINE struct slots slots_8(const uint8_t *b)
{
    const __m128i v = at128(b);
    const __m128i low = _mm_shuffle_epi8(v, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m128i high = _mm_shuffle_epi8(v, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m128i first = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)),
                                        _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m128i six = _mm_or_si128(first, _mm_and_si128(_mm_srli_epi16(high, 2), _mm_set1_epi8(0x30)));
    return (struct slots){{_mm256_mul_ps(floats_of_bytes(six), _mm256_set1_ps(half_at(b)))},
                          {_mm256_mul_ps(floats_of_bytes(_mm_bsrli_si128(six, 8)), _mm256_set1_ps(half_at(b + 2)))}};
}

INLINE struct slots slots_q2_k(const uint8_t *b)
{
    const __m128i v = at128(b), four = _mm_set1_epi8(15), sc = _mm_and_si128(v, four), min = _mm_and_si128(_mm_srli_epi16(v, 4), four);
    const __m256 d = _mm256_set1_ps(half_at(b + 80)), dmin = _mm256_set1_ps(half_at(b + 82));
    return (struct slots){{_mm256_mul_ps(floats_of_bytes(sc), d), _mm256_mul_ps(floats_of_bytes(_mm_bsrli_si128(sc, 8)), d)},
                          {_mm256_mul_ps(floats_of_bytes(min), dmin), _mm256_mul_ps(floats_of_bytes(_mm_bsrli_si128(min, 8)), dmin)}};
}

INLINE struct slots signed_scales(__m128i sc, float factor)
{
    const __m256 d = _mm256_set1_ps(factor);
    const __m256 s0 = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(sc)), d);
    const __m256 s1 = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_bsrli_si128(sc, 8))), d);
    return (struct slots){{s0, s1}, {s0, s1}};
}

/* Bytes 96..107 hold the low four bits of 16 scales in eight, then two more of each in four. */
INLINE struct slots slots_q3_k(const uint8_t *b)
{
    const __m128i v = at128(b + 94);
    const __m128i low = _mm_shuffle_epi8(v, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    const __m128i high = _mm_srlv_epi32(_mm_sllv_epi32(_mm_shuffle_epi32(_mm_bsrli_si128(v, 10), 0), _mm_setr_epi32(4, 2, 0, 0)),
                                        _mm_setr_epi32(0, 0, 0, 2));
    const __m128i six = _mm_or_si128(_mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4)), _mm_set1_epi8(15)),
                                     _mm_and_si128(high, _mm_set1_epi8(0x30)));
    return signed_scales(_mm_sub_epi8(six, _mm_set1_epi8(32)), half_at(b + 108));
}

INLINE struct slots slots_q6_k(const uint8_t *b) { return signed_scales(at128(b + 192), half_at(b + 208)); }

/* ---- rows ----------------------------------------------------------------------------------------------------------- */

/* The weight's scales times those of the activations at element `at`; offsets times their sums are added to shift. */
INLINE void slot_scales(__m256 *s, __m256 *shift, const struct slots *w, const struct acts *x, int64_t at, int wide)
{
    const __m256 d = _mm256_loadu_ps(x->d + at / 32);
    if (wide) {
        s[0] = _mm256_mul_ps(w->scale[0], d);
        *shift = _mm256_fmadd_ps(w->offset[0], _mm256_loadu_ps(x->s32 + at / 32), *shift);
        return;
    }
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    s[0] = _mm256_mul_ps(w->scale[0], _mm256_permutevar8x32_ps(d, twice));
    s[1] = _mm256_mul_ps(w->scale[1], _mm256_permutevar8x32_ps(d, _mm256_add_epi32(twice, _mm256_set1_epi32(4))));
    *shift = _mm256_fmadd_ps(w->offset[0], _mm256_loadu_ps(x->s16 + at / 16), *shift);
    *shift = _mm256_fmadd_ps(w->offset[1], _mm256_loadu_ps(x->s16 + at / 16 + 8), *shift);
}

/* What the lanes of piece j are multiplied with. */
INLINE __m256 scale_of(const __m256 *s, int j, int wide)
{
    if (wide) return _mm256_permutevar8x32_ps(s[0], _mm256_set1_epi32(j));
    const int k = 2 * (j % 4);
    return _mm256_permutevar8x32_ps(s[j / 4], _mm256_setr_epi32(k, k, k, k, k + 1, k + 1, k + 1, k + 1));
}

INLINE void row(const struct matvec_args *a, int64_t r, int32_t t0, int T, struct form f)
{
    const uint8_t *b = a->w + (size_t)r * a->row_bytes;
    const struct acts *x = a->acts;
    __m256 acc[4], shift[4], s[4][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = shift[t] = _mm256_setzero_ps();
    for (int64_t e = 0; e < a->n_in; e += 256, b += f.bytes) {
        fetch_ahead(b, f.bytes);
        const struct slots w = f.slots(b);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) slot_scales(s[t], &shift[t], &w, x, (t0 + t) * x->pad + e, f.wide);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m256i c = f.codes(b, j);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                const int64_t at = (t0 + t) * x->pad + e + 32 * j;
                const __m256 dot = weigh(_mm256_maddubs_epi16(c, at256(x->q + at)), _mm256_maddubs_epi16(c, at256(x->q_low + at)));
                acc[t] = _mm256_fmadd_ps(dot, scale_of(s[t], j, f.wide), acc[t]);
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
        a->y[(t0 + t) * a->y_stride + r] = lane_sum(_mm256_fmadd_ps(shift[t], _mm256_set1_ps(f.offset), acc[t])) + (a->bias ? a->bias[r] : 0.0f);
}

INLINE void rows(const struct matvec_args *a, struct form f)
{
    int32_t t = 0;
    for (; t + 4 <= a->n; t += 4)
        for (int64_t r = 0; r < a->n_rows; r++) row(a, r, t, 4, f);
    for (; t < a->n; t++)
        for (int64_t r = 0; r < a->n_rows; r++) row(a, r, t, 1, f);
}

void sr_matvec_q2_k_avx2(const struct matvec_args *a) { rows(a, (struct form){84, 0, codes_q2_k, slots_q2_k, -1.0f}); }
void sr_matvec_q3_k_avx2(const struct matvec_args *a) { rows(a, (struct form){110, 0, codes_q3_k, slots_q3_k, -4.0f}); }
void sr_matvec_q4_k_avx2(const struct matvec_args *a) { rows(a, (struct form){144, 1, codes_q4_k, slots_8, -1.0f}); }
void sr_matvec_q5_k_avx2(const struct matvec_args *a) { rows(a, (struct form){176, 1, codes_q5_k, slots_8, -1.0f}); }
void sr_matvec_q6_k_avx2(const struct matvec_args *a) { rows(a, (struct form){210, 0, codes_q6_k, slots_q6_k, -32.0f}); }
