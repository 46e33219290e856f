/* SPDX-License-Identifier: Apache-2.0
 *
 * Stored blocks to floats, 16 codes at a time with 128-bit unpacking; the x86 files bring their own way to widen 16
 * codes. Products and sums are those of sr_dequantize_row, in its order: results are bit-equal.
 */
#ifndef SR_CPU_MATMUL_DEQUANT_INLINE_H
#define SR_CPU_MATMUL_DEQUANT_INLINE_H

#include "cpu/kernels.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* y[16] = code * d, and = code * d + m, codes signed. */
struct widen {
    void (*scaled)(float *y, __m128i codes, float d);
    void (*affine)(float *y, __m128i codes, float d, float m);
};

typedef void block_fn(const uint8_t *b, float *y, struct widen put);

INLINE __m128i at128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
INLINE __m128i masked(__m128i v, int mask) { return _mm_and_si128(v, _mm_set1_epi8((char)mask)); }
INLINE __m128i low4(__m128i v) { return masked(v, 15); }
INLINE __m128i high4(__m128i v) { return masked(_mm_srli_epi16(v, 4), 15); }
INLINE __m128i minus(__m128i v, int k) { return _mm_sub_epi8(v, _mm_set1_epi8((char)k)); }

INLINE float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}

/* 16 where the bit of the byte's index is set. */
INLINE __m128i fifth_bits(const uint8_t *p)
{
    uint16_t bits;
    memcpy(&bits, p, 2);
    const __m128i spread = _mm_shuffle_epi8(_mm_set1_epi16((short)bits), _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
    const __m128i bit = _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128);
    return masked(_mm_cmpeq_epi8(_mm_and_si128(spread, bit), bit), 16);
}

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------- */

INLINE void block_q4_0(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b);
    const __m128i v = at128(b + 2);
    put.scaled(y, minus(low4(v), 8), d);
    put.scaled(y + 16, minus(high4(v), 8), d);
}

INLINE void block_q4_1(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b), m = half_at(b + 2);
    const __m128i v = at128(b + 4);
    put.affine(y, low4(v), d, m);
    put.affine(y + 16, high4(v), d, m);
}

INLINE void block_q5_0(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b);
    const __m128i v = at128(b + 6);
    put.scaled(y, minus(_mm_or_si128(low4(v), fifth_bits(b + 2)), 16), d);
    put.scaled(y + 16, minus(_mm_or_si128(high4(v), fifth_bits(b + 4)), 16), d);
}

INLINE void block_q5_1(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b), m = half_at(b + 2);
    const __m128i v = at128(b + 8);
    put.affine(y, _mm_or_si128(low4(v), fifth_bits(b + 4)), d, m);
    put.affine(y + 16, _mm_or_si128(high4(v), fifth_bits(b + 6)), d, m);
}

INLINE void block_q8_0(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b);
    put.scaled(y, at128(b + 2), d);
    put.scaled(y + 16, at128(b + 18), d);
}

INLINE void block_iq4_nl(const uint8_t *b, float *y, struct widen put)
{
    const __m128i table = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    const float d = half_at(b);
    const __m128i v = at128(b + 2);
    put.scaled(y, _mm_shuffle_epi8(table, low4(v)), d);
    put.scaled(y + 16, _mm_shuffle_epi8(table, high4(v)), d);
}

/* ---- super-blocks of 256: group g of 16 ------------------------------------------------------------------------ */

/* Bits [2k, 2k+2) of each byte, k = 0..3. */
INLINE __m128i two_bits(__m128i v, int k) { return masked(_mm_srl_epi16(v, _mm_cvtsi32_si128(2 * k)), 3); }
/* Bit j of each byte. */
INLINE __m128i one_bit(__m128i v, int j) { return masked(_mm_srl_epi16(v, _mm_cvtsi32_si128(j)), 1); }

INLINE void block_q2_k(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b + 80), dmin = half_at(b + 82);
#pragma GCC unroll 16
    for (int g = 0; g < 16; g++) {
        const __m128i q = two_bits(at128(b + 16 + 32 * (g / 8) + 16 * (g % 2)), g % 8 / 2);
        put.affine(y + 16 * g, q, d * (float)(b[g] & 15), -(dmin * (float)(b[g] >> 4)));
    }
}

INLINE void block_q3_k(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b + 108);
    const uint8_t *sc = b + 96;
#pragma GCC unroll 16
    for (int g = 0; g < 16; g++) {
        const __m128i low = two_bits(at128(b + 32 + 32 * (g / 8) + 16 * (g % 2)), g % 8 / 2);
        const __m128i high = _mm_slli_epi16(one_bit(at128(b + 16 * (g % 2)), g / 2), 2);
        const int scale = (g < 8 ? sc[g] & 15 : sc[g - 8] >> 4) | (sc[8 + g % 4] >> (2 * (g / 4)) & 3) << 4;
        put.scaled(y + 16 * g, minus(_mm_or_si128(low, high), 4), d * (float)(scale - 32));
    }
}

/* Six-bit scale and minimum j from 12 packed bytes. */
INLINE void scale_min(const uint8_t *sc, int j, int *scale, int *min)
{
    *scale = j < 4 ? sc[j] & 63 : (sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4;
    *min = j < 4 ? sc[j + 4] & 63 : sc[j + 4] >> 4 | (sc[j] >> 6) << 4;
}

/* Q4_K, and Q5_K with its fifth bits at `high`. */
INLINE void block_q45_k(const uint8_t *b, const uint8_t *qs, const uint8_t *high, float *y, struct widen put)
{
    const float d = half_at(b), dmin = half_at(b + 2);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_min(b + 4, j, &scale, &min);
        const float ds = d * (float)scale, dm = -(dmin * (float)min);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const __m128i v = at128(qs + 32 * (j / 2) + 16 * h);
            __m128i q = j % 2 ? high4(v) : low4(v);
            if (high) q = _mm_or_si128(q, _mm_slli_epi16(one_bit(at128(high + 16 * h), j), 4));
            put.affine(y + 32 * j + 16 * h, q, ds, dm);
        }
    }
}

INLINE void block_q4_k(const uint8_t *b, float *y, struct widen put) { block_q45_k(b, b + 16, NULL, y, put); }
INLINE void block_q5_k(const uint8_t *b, float *y, struct widen put) { block_q45_k(b, b + 48, b + 16, y, put); }

INLINE void block_q6_k(const uint8_t *b, float *y, struct widen put)
{
    const float d = half_at(b + 208);
#pragma GCC unroll 16
    for (int g = 0; g < 16; g++) {
        const int n = g / 8, k = g % 8 / 2, h = g % 2;
        const __m128i low = at128(b + 64 * n + 32 * (k & 1) + 16 * h), high = two_bits(at128(b + 128 + 32 * n + 16 * h), k);
        const __m128i q = _mm_or_si128(k >= 2 ? high4(low) : low4(low), _mm_slli_epi16(high, 4));
        put.scaled(y + 16 * g, minus(q, 32), d * (float)(int8_t)b[192 + g]);
    }
}

INLINE void all_blocks(const uint8_t *src, float *dst, int64_t n, int elems, int bytes, block_fn *block, struct widen put)
{
    for (int64_t i = 0; i < n; i += elems, src += bytes) block(src, dst + i, put);
}

#endif
