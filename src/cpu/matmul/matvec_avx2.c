/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows times activations, AVX2. A quantized row is read in *pieces* of 32 codes; a piece has one scale (and offset) or
 * two, one for each half of 16. Codes times activation codes go through VPMADDUBSW, whose 16-bit pairs cannot overflow:
 * unsigned codes are at most 63, and signed ones are taken as |w| times x with w's sign, at most 128 * 127 * 2.
 */
#include "cpu/kernels.h"
#include "cpu/matmul/ahead_inline.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

struct piece {
    __m256i codes;
    float scale[2], offset[2]; /* of the halves; only [0] where the form has one scale */
};

/* Piece j of the block at b. */
typedef struct piece piece_fn(const uint8_t *b, int j);

struct form {
    int elems, bytes;   /* of a block */
    int halves, signs, offsets;
    piece_fn *piece;
};

INLINE __m256i at256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m128i at128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
INLINE __m256i masked(__m256i v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi8((char)mask)); }
INLINE __m256i shift_right(__m256i v, int n) { return _mm256_srl_epi16(v, _mm_cvtsi32_si128(n)); }
INLINE __m256i shift_left(__m256i v, int n) { return _mm256_sll_epi16(v, _mm_cvtsi32_si128(n)); }

INLINE float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}

INLINE float lane_sum(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------- */

/* 16 bytes: low nibbles, then high. */
INLINE __m256i nibbles(const uint8_t *p)
{
    const __m128i v = at128(p);
    return masked(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), 15);
}

/* 16 where the piece's bit is set. */
INLINE __m256i fifth_bits(const uint8_t *p)
{
    int32_t bits;
    memcpy(&bits, p, 4);
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                                                                       2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    return masked(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), 16);
}

INLINE struct piece one_scale(__m256i codes, const uint8_t *b, float offset)
{
    const float d = half_at(b);
    return (struct piece){codes, {d, 0}, {d * offset, 0}};
}

INLINE struct piece scale_and_min(__m256i codes, const uint8_t *b)
{
    return (struct piece){codes, {half_at(b), 0}, {half_at(b + 2), 0}};
}

INLINE struct piece piece_q4_0(const uint8_t *b, int j) { return (void)j, one_scale(nibbles(b + 2), b, -8.0f); }
INLINE struct piece piece_q4_1(const uint8_t *b, int j) { return (void)j, scale_and_min(nibbles(b + 4), b); }
INLINE struct piece piece_q5_0(const uint8_t *b, int j)
{
    return (void)j, one_scale(_mm256_or_si256(nibbles(b + 6), fifth_bits(b + 2)), b, -16.0f);
}
INLINE struct piece piece_q5_1(const uint8_t *b, int j)
{
    return (void)j, scale_and_min(_mm256_or_si256(nibbles(b + 8), fifth_bits(b + 4)), b);
}
INLINE struct piece piece_q8_0(const uint8_t *b, int j) { return (void)j, one_scale(at256(b + 2), b, 0.0f); }
INLINE struct piece piece_iq4_nl(const uint8_t *b, int j)
{
    const __m128i table = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return (void)j, one_scale(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles(b + 2)), b, 0.0f);
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------ */

INLINE __m256i nibble_piece(const uint8_t *qs, int j) { return masked(shift_right(at256(qs + 32 * (j / 2)), 4 * (j % 2)), 15); }
INLINE __m256i two_bit_piece(const uint8_t *qs, int j) { return masked(shift_right(at256(qs + 32 * (j / 4)), 2 * (j % 4)), 3); }
INLINE __m256i high_bit(const uint8_t *p, int j, int value) { return shift_left(masked(shift_right(at256(p), j), 1), value); }

INLINE struct piece k_scale_min(__m256i codes, const uint8_t *b, int j)
{
    const uint8_t *sc = b + 4;
    const int scale = j < 4 ? sc[j] & 63 : (sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4;
    const int min = j < 4 ? sc[j + 4] & 63 : sc[j + 4] >> 4 | (sc[j] >> 6) << 4;
    return (struct piece){codes, {half_at(b) * (float)scale, 0}, {-half_at(b + 2) * (float)min, 0}};
}

INLINE struct piece piece_q4_k(const uint8_t *b, int j) { return k_scale_min(nibble_piece(b + 16, j), b, j); }
INLINE struct piece piece_q5_k(const uint8_t *b, int j)
{
    return k_scale_min(_mm256_or_si256(nibble_piece(b + 48, j), high_bit(b + 16, j, 4)), b, j);
}

INLINE struct piece two_scales(__m256i codes, float d, int s0, int s1, float offset)
{
    const float d0 = d * (float)s0, d1 = d * (float)s1;
    return (struct piece){codes, {d0, d1}, {d0 * offset, d1 * offset}};
}

INLINE struct piece piece_q2_k(const uint8_t *b, int j)
{
    const float dmin = -half_at(b + 82);
    struct piece p = two_scales(two_bit_piece(b + 16, j), half_at(b + 80), b[2 * j] & 15, b[2 * j + 1] & 15, 0.0f);
    p.offset[0] = dmin * (float)(b[2 * j] >> 4);
    p.offset[1] = dmin * (float)(b[2 * j + 1] >> 4);
    return p;
}

INLINE int q3_k_scale(const uint8_t *sc, int g)
{
    return ((g < 8 ? sc[g] & 15 : sc[g - 8] >> 4) | (sc[8 + g % 4] >> (2 * (g / 4)) & 3) << 4) - 32;
}

INLINE struct piece piece_q3_k(const uint8_t *b, int j)
{
    const __m256i codes = _mm256_or_si256(two_bit_piece(b + 32, j), high_bit(b, j, 2));
    return two_scales(codes, half_at(b + 108), q3_k_scale(b + 96, 2 * j), q3_k_scale(b + 96, 2 * j + 1), -4.0f);
}

INLINE struct piece piece_q6_k(const uint8_t *b, int j)
{
    const int n = j / 4, k = j % 4;
    const __m256i low = masked(shift_right(at256(b + 64 * n + 32 * (k & 1)), k >= 2 ? 4 : 0), 15);
    const __m256i high = shift_left(masked(shift_right(at256(b + 128 + 32 * n), 2 * k), 3), 4);
    return two_scales(_mm256_or_si256(low, high), half_at(b + 208), (int8_t)b[192 + 2 * j], (int8_t)b[193 + 2 * j], -32.0f);
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

INLINE __m256i fours(__m256i w, __m256i x, int signs)
{
    const __m256i pairs = signs ? _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE __m256 dot32(__m256i w, const int8_t *q, const int8_t *low, int signs)
{
    const __m256i high = _mm256_slli_epi32(fours(w, at256(q), signs), 7);
    return _mm256_cvtepi32_ps(_mm256_add_epi32(high, fours(w, at256(low), signs)));
}

/* Adds the piece at element `at` of token t's codes. */
INLINE void add_piece(__m256 *acc, float *shift, struct piece p, const struct acts *x, int64_t at, struct form f)
{
    const float d = x->d[at / 32];
    const __m256 first = _mm256_set1_ps(p.scale[0] * d);
    const __m256 scale = f.halves ? _mm256_blend_ps(first, _mm256_set1_ps(p.scale[1] * d), 0xf0) : first;
    *acc = _mm256_fmadd_ps(dot32(p.codes, x->q + at, x->q_low + at, f.signs), scale, *acc);
    if (f.offsets && f.halves) *shift += p.offset[0] * x->s16[at / 16] + p.offset[1] * x->s16[at / 16 + 1];
    else if (f.offsets) *shift += p.offset[0] * x->s32[at / 32];
}

INLINE void row(const struct matvec_args *a, int64_t r, int32_t t0, int T, struct form f)
{
    const uint8_t *b = a->w + (size_t)r * a->row_bytes;
    __m256 acc[4];
    float shift[4] = {0};
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = _mm256_setzero_ps();
    for (int64_t e = 0; e < a->n_in; e += f.elems, b += f.bytes) {
        fetch_ahead(b, f.bytes);
#pragma GCC unroll 8
        for (int j = 0; j < f.elems / 32; j++) {
            const struct piece p = f.piece(b, j);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) add_piece(&acc[t], &shift[t], p, a->acts, (t0 + t) * a->acts->pad + e + 32 * j, f);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) a->y[(t0 + t) * a->y_stride + r] = lane_sum(acc[t]) + shift[t] + (a->bias ? a->bias[r] : 0.0f);
}

INLINE void rows(const struct matvec_args *a, struct form f)
{
    int32_t t = 0;
    for (; t + 4 <= a->n; t += 4)
        for (int64_t r = 0; r < a->n_rows; r++) row(a, r, t, 4, f);
    for (; t < a->n; t++)
        for (int64_t r = 0; r < a->n_rows; r++) row(a, r, t, 1, f);
}

void sr_matvec_q4_0_avx2(const struct matvec_args *a) { rows(a, (struct form){32, 18, 0, 0, 1, piece_q4_0}); }
void sr_matvec_q4_1_avx2(const struct matvec_args *a) { rows(a, (struct form){32, 20, 0, 0, 1, piece_q4_1}); }
void sr_matvec_q5_0_avx2(const struct matvec_args *a) { rows(a, (struct form){32, 22, 0, 0, 1, piece_q5_0}); }
void sr_matvec_q5_1_avx2(const struct matvec_args *a) { rows(a, (struct form){32, 24, 0, 0, 1, piece_q5_1}); }
void sr_matvec_q8_0_avx2(const struct matvec_args *a) { rows(a, (struct form){32, 34, 0, 1, 0, piece_q8_0}); }
void sr_matvec_iq4_nl_avx2(const struct matvec_args *a) { rows(a, (struct form){32, 18, 0, 1, 0, piece_iq4_nl}); }
void sr_matvec_q2_k_avx2(const struct matvec_args *a) { rows(a, (struct form){256, 84, 1, 0, 1, piece_q2_k}); }
void sr_matvec_q3_k_avx2(const struct matvec_args *a) { rows(a, (struct form){256, 110, 1, 0, 1, piece_q3_k}); }
void sr_matvec_q4_k_avx2(const struct matvec_args *a) { rows(a, (struct form){256, 144, 0, 0, 1, piece_q4_k}); }
void sr_matvec_q5_k_avx2(const struct matvec_args *a) { rows(a, (struct form){256, 176, 0, 0, 1, piece_q5_k}); }
void sr_matvec_q6_k_avx2(const struct matvec_args *a) { rows(a, (struct form){256, 210, 1, 0, 1, piece_q6_k}); }

/* ---- float rows --------------------------------------------------------------------------------------------------- */

typedef __m256 load_fn(const uint8_t *row, int64_t i);      /* 8 weights */
typedef float load_one_fn(const uint8_t *row, int64_t i);

INLINE __m256 load_f32(const uint8_t *w, int64_t i) { return _mm256_loadu_ps((const float *)(const void *)(w + 4 * i)); }
INLINE __m256 load_f16(const uint8_t *w, int64_t i) { return _mm256_cvtph_ps(at128(w + 2 * i)); }
INLINE __m256 load_bf16(const uint8_t *w, int64_t i)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(at128(w + 2 * i)), 16));
}
INLINE float one_f32(const uint8_t *w, int64_t i)
{
    float v;
    memcpy(&v, w + 4 * i, 4);
    return v;
}
INLINE float one_f16(const uint8_t *w, int64_t i) { return half_at(w + 2 * i); }
INLINE float one_bf16(const uint8_t *w, int64_t i)
{
    const uint8_t wide[4] = {0, 0, w[2 * i], w[2 * i + 1]};
    return one_f32(wide, 0);
}

INLINE float dot(const uint8_t *w, const float *x, int64_t n, int bytes, load_fn *load, load_one_fn *one)
{
    __m256 acc[4];
    int64_t i = 0;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[j] = _mm256_setzero_ps();
    for (; i + 32 <= n; i += 32) {
        fetch_ahead(w + bytes * i, 32 * bytes);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) acc[j] = _mm256_fmadd_ps(load(w, i + 8 * j), _mm256_loadu_ps(x + i + 8 * j), acc[j]);
    }
    for (; i + 8 <= n; i += 8) acc[0] = _mm256_fmadd_ps(load(w, i), _mm256_loadu_ps(x + i), acc[0]);
    float sum = lane_sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    for (; i < n; i++) sum += one(w, i) * x[i];
    return sum;
}

/* bytes: of an element */
INLINE void float_rows(const struct matvec_args *a, int bytes, load_fn *load, load_one_fn *one)
{
    for (int64_t r = 0; r < a->n_rows; r++)
        for (int32_t t = 0; t < a->n; t++) {
            const float sum = dot(a->w + (size_t)r * a->row_bytes, a->acts->x + t * a->acts->x_stride, a->n_in, bytes, load, one);
            a->y[t * a->y_stride + r] = sum + (a->bias ? a->bias[r] : 0.0f);
        }
}

void sr_matvec_f32_avx2(const struct matvec_args *a) { float_rows(a, 4, load_f32, one_f32); }
void sr_matvec_f16_avx2(const struct matvec_args *a) { float_rows(a, 2, load_f16, one_f16); }
void sr_matvec_bf16_avx2(const struct matvec_args *a) { float_rows(a, 2, load_bf16, one_bf16); }
