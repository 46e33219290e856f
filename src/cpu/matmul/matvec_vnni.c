/* SPDX-License-Identifier: Apache-2.0
 *
 * Quantized rows times quantized activations, AVX-512 VNNI. A *slot* is what shares one weight scale: 32 elements, or
 * 16 in Q2_K, Q3_K and Q6_K. Codes are unpacked to unsigned bytes; with u the unsigned code, a slot contributes
 *     scale * d * sum(u q) + offset * d * sum(q),
 * the first sum by VPDPBUSD in integers, the second known from the activations. Scales and offsets of up to 16 slots
 * are handled as one vector and spread over the lanes of their slot by a permutation.
 *
 * Types with blocks of 32 read q_split: four blocks fill a register twice, first halves and second halves, so that a
 * 128-bit lane belongs to one slot. Every row sums its lanes in the same order whatever n and n_rows are.
 */
#include "cpu/matmul/vnni_inline.h"

struct codes { __m512i lo, hi; };

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------- */

/* Codes of four blocks; scales of `n` blocks (1..16), zero for the missing ones. */
typedef struct codes codes_fn(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3);
typedef struct slots slots_fn(const uint8_t *p, int n);

INLINE __m512i four(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)b0));
    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, _mm_loadu_si128((const __m128i *)(const void *)b1));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, _mm_loadu_si128((const __m128i *)(const void *)b2));
    return _mm512_mask_broadcast_i32x4(v, 0xf000, _mm_loadu_si128((const __m128i *)(const void *)b3));
}

INLINE struct codes nibbles(__m512i v)
{
    const __m512i low = bytes_of(15);
    return (struct codes){_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16(v, 4), low)};
}

/* The first 32 bits of n blocks `stride` bytes apart, the others 0. A gather costs about as much for 2 as for 16. */
INLINE __m512i heads(const uint8_t *p, int n, int stride)
{
    if (n <= 4) {
        __m128i v = _mm_cvtsi32_si128((int)load_u32(p));
        if (n > 1) v = _mm_insert_epi32(v, (int)load_u32(p + stride), 1);
        if (n > 2) v = _mm_insert_epi32(v, (int)load_u32(p + 2 * stride), 2);
        if (n > 3) v = _mm_insert_epi32(v, (int)load_u32(p + 3 * stride), 3);
        return _mm512_zextsi128_si512(v);
    }
    const __m512i at = _mm512_mullo_epi32(spread_of(0, 0), _mm512_set1_epi32(stride));
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), (__mmask16)((1u << n) - 1u), at, p, 1);
}

/* The same where blocks are `words` (5 or 6) words of 32 bits: 16 of them lie in `words` registers. */
INLINE __m512i heads_aligned(const uint8_t *p, int n, int words)
{
    if (n < 16) return heads(p, n, 4 * words);
    const __m512i at = _mm512_mullo_epi32(spread_of(0, 0), _mm512_set1_epi32(words)); /* word index of each head */
    __m512i v = _mm512_permutex2var_epi32(at512(p), at, at512(p + 64)); /* index modulo 32: right for the first 32 words */
    v = _mm512_mask_mov_epi32(v, _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(32)), _mm512_permutex2var_epi32(at512(p + 128), at, at512(p + 192)));
    const __mmask16 last = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(64));
    if (words == 5) return _mm512_mask_permutexvar_epi32(v, last, at, at512(p + 256));
    return _mm512_mask_mov_epi32(v, last, _mm512_permutex2var_epi32(at512(p + 256), at, at512(p + 320)));
}

INLINE struct slots one_scale(const uint8_t *p, int n, int stride, float offset)
{
    const __m512 d = half_to_float(heads(p, n, stride));
    return (struct slots){d, _mm512_mul_ps(d, _mm512_set1_ps(offset))};
}

INLINE struct slots scale_and_min(const uint8_t *p, int n, int words)
{
    const __m512i dm = heads_aligned(p, n, words);
    return (struct slots){half_to_float(dm), half_to_float(_mm512_srli_epi32(dm, 16))};
}

/* Bit 4 of codes from the 32 high bits of each block: halves of 16 bits are the masks of 16 bytes. */
INLINE struct codes with_fifth_bits(struct codes c, uint32_t h0, uint32_t h1, uint32_t h2, uint32_t h3)
{
    const uint64_t lo = (uint64_t)(h0 & 0xffff) | (uint64_t)(h1 & 0xffff) << 16 | (uint64_t)(h2 & 0xffff) << 32 | (uint64_t)(h3 & 0xffff) << 48;
    const uint64_t hi = (uint64_t)(h0 >> 16) | (uint64_t)(h1 >> 16) << 16 | (uint64_t)(h2 >> 16) << 32 | (uint64_t)(h3 >> 16) << 48;
    const __m512i sixteen = bytes_of(16);
    return (struct codes){_mm512_mask_add_epi8(c.lo, lo, c.lo, sixteen), _mm512_mask_add_epi8(c.hi, hi, c.hi, sixteen)};
}

INLINE struct codes codes_q4_0(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    return nibbles(four(b0 + 2, b1 + 2, b2 + 2, b3 + 2));
}
INLINE struct slots slots_q4_0(const uint8_t *p, int n) { return one_scale(p, n, 18, -8.0f); }

INLINE struct codes codes_q4_1(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    return nibbles(four(b0 + 4, b1 + 4, b2 + 4, b3 + 4));
}
INLINE struct slots slots_q4_1(const uint8_t *p, int n) { return scale_and_min(p, n, 5); }

INLINE struct codes codes_q5_0(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    return with_fifth_bits(nibbles(four(b0 + 6, b1 + 6, b2 + 6, b3 + 6)), load_u32(b0 + 2), load_u32(b1 + 2), load_u32(b2 + 2),
                           load_u32(b3 + 2));
}
INLINE struct slots slots_q5_0(const uint8_t *p, int n) { return one_scale(p, n, 22, -16.0f); }

INLINE struct codes codes_q5_1(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    return with_fifth_bits(nibbles(four(b0 + 8, b1 + 8, b2 + 8, b3 + 8)), load_u32(b0 + 4), load_u32(b1 + 4), load_u32(b2 + 4),
                           load_u32(b3 + 4));
}
INLINE struct slots slots_q5_1(const uint8_t *p, int n) { return scale_and_min(p, n, 6); }

INLINE struct codes codes_q8_0(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    const __m512i sign = bytes_of(-128); /* x + 128 in unsigned bytes */
    return (struct codes){_mm512_xor_si512(four(b0 + 2, b1 + 2, b2 + 2, b3 + 2), sign),
                          _mm512_xor_si512(four(b0 + 18, b1 + 18, b2 + 18, b3 + 18), sign)};
}
INLINE struct slots slots_q8_0(const uint8_t *p, int n) { return one_scale(p, n, 34, -128.0f); }

INLINE struct codes codes_iq4_nl(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153,
                                                               (char)166, (char)181, (char)197, (char)217, (char)241));
    const struct codes c = codes_q4_0(b0, b1, b2, b3);
    return (struct codes){_mm512_shuffle_epi8(table, c.lo), _mm512_shuffle_epi8(table, c.hi)};
}
INLINE struct slots slots_iq4_nl(const uint8_t *p, int n) { return one_scale(p, n, 18, -128.0f); }

/* How a type is read. */
struct form { int bytes; codes_fn *codes; slots_fn *slots; };

/* One chunk of four blocks for T tokens; x is the chunk's place in the first token's q_split, x + low in q_split_low. */
INLINE void chunk32(__m512 *acc, const __m512 *scale, struct codes w, const int8_t *x, ptrdiff_t low, int64_t pad, __m512i spread, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.lo, at512(x + t * pad));
        dot = _mm512_slli_epi32(_mm512_dpbusd_epi32(dot, w.hi, at512(x + t * pad + 64)), 7);
        dot = _mm512_dpbusd_epi32(dot, w.lo, at512(x + low + t * pad));
        dot = _mm512_dpbusd_epi32(dot, w.hi, at512(x + low + t * pad + 64));
        acc[t] = add_scaled(acc[t], dot, scale[t], spread);
    }
}

/* n blocks (1..16) from p; x, d, s are the activations' there. */
INLINE void group32(__m512 *acc, const uint8_t *p, int n, const int8_t *x, ptrdiff_t low, const float *d, const float *s, int64_t pad, int T, struct form f)
{
    const struct slots w = f.slots(p, n);
    const int bytes = f.bytes;
    __m512 scale[4];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        scale[t] = _mm512_mul_ps(w.scale, _mm512_loadu_ps(d + t * (pad / 32)));
        acc[t] = _mm512_fmadd_ps(w.offset, _mm512_loadu_ps(s + t * (pad / 32)), acc[t]);
    }
    if (n == 16) {
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4, p += 4 * bytes)
            chunk32(acc, scale, f.codes(p, p + bytes, p + 2 * bytes, p + 3 * bytes), x + 32 * i, low, pad, spread_of(i, 2), T);
        return;
    }
    for (int i = 0; i < n; i += 4, p += 4 * bytes) { /* missing blocks: their scale is 0, any readable codes do */
        const uint8_t *b1 = i + 1 < n ? p + bytes : p, *b2 = i + 2 < n ? p + 2 * bytes : p, *b3 = i + 3 < n ? p + 3 * bytes : p;
        chunk32(acc, scale, f.codes(p, b1, b2, b3), x + 32 * i, low, pad, spread_of(i, 2), T);
    }
}

INLINE void row32(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc, struct form f)
{
    const uint8_t *p = a->w + (size_t)r * a->row_bytes;
    const int64_t pad = a->acts->pad, n_blocks = a->n_in / 32;
    const int8_t *x = a->acts->q_split + t0 * pad;
    const ptrdiff_t low = a->acts->q_split_low - a->acts->q_split;
    const float *d = a->acts->d + t0 * (pad / 32), *s = a->acts->s32 + t0 * (pad / 32);
    int64_t b = 0;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = _mm512_setzero_ps();
    for (; b + 16 <= n_blocks; b += 16) group32(acc, p + b * f.bytes, 16, x + 32 * b, low, d + b, s + b, pad, T, f);
    if (b < n_blocks) group32(acc, p + b * f.bytes, (int)(n_blocks - b), x + 32 * b, low, d + b, s + b, pad, T, f);
}

INLINE void row_q4_0(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc)
{
    row32(a, r, t0, T, acc, (struct form){18, codes_q4_0, slots_q4_0});
}
void sr_matvec_q4_0_vnni(const struct matvec_args *a) { all_tokens(a, row_q4_0); }

INLINE void row_q4_1(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc)
{
    row32(a, r, t0, T, acc, (struct form){20, codes_q4_1, slots_q4_1});
}
void sr_matvec_q4_1_vnni(const struct matvec_args *a) { all_tokens(a, row_q4_1); }

INLINE void row_q5_0(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc)
{
    row32(a, r, t0, T, acc, (struct form){22, codes_q5_0, slots_q5_0});
}
void sr_matvec_q5_0_vnni(const struct matvec_args *a) { all_tokens(a, row_q5_0); }

INLINE void row_q5_1(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc)
{
    row32(a, r, t0, T, acc, (struct form){24, codes_q5_1, slots_q5_1});
}
void sr_matvec_q5_1_vnni(const struct matvec_args *a) { all_tokens(a, row_q5_1); }

INLINE void row_q8_0(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc)
{
    row32(a, r, t0, T, acc, (struct form){34, codes_q8_0, slots_q8_0});
}
void sr_matvec_q8_0_vnni(const struct matvec_args *a) { all_tokens(a, row_q8_0); }

INLINE void row_iq4_nl(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc)
{
    row32(a, r, t0, T, acc, (struct form){18, codes_iq4_nl, slots_iq4_nl});
}
void sr_matvec_iq4_nl_vnni(const struct matvec_args *a) { all_tokens(a, row_iq4_nl); }
