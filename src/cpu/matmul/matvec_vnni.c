/* SPDX-License-Identifier: Apache-2.0
 *
 * Quantized rows times quantized activations, AVX-512 VNNI. A *slot* is what shares one weight scale: 32 elements, or
 * 16 in Q2_K, Q3_K and Q6_K. Codes are unpacked to unsigned bytes; with u the unsigned code, a slot contributes
 *     scale * d * sum(u q) + offset * d * sum(q),
 * the first sum by VPDPBUSD in integers, the second known from the activations. Scales and offsets of up to 16 slots
 * are handled as one vector and spread over the lanes of their slot by a permutation.
 *
 * Types with blocks of 32 read q_split: four blocks fill a register twice, first halves and second halves, so that a
 * 128-bit lane belongs to one slot. Where 1 or 2 blocks are left over (18 blocks of 576 elements), those of 4 or 2 rows fill
 * a register together. Every row sums its lanes in the same order whatever n and n_rows are.
 */
#include "cpu/matmul/vnni_inline.h"

struct codes { __m512i lo, hi; };

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------- */

/* Codes of four blocks, from anywhere or one after the other; scales of `n` blocks (1..16), 0 for the missing ones; and
 * of four blocks whose first 32 bits are given, scales in lanes 0..3, offsets in 4..7. */
typedef struct codes codes_fn(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3);
typedef struct codes codes_run_fn(const uint8_t *p);
typedef struct slots slots_fn(const uint8_t *p, int n);
typedef __m256 four_slots_fn(__m128i heads);

/* How a type is read; ahead: in how many goes the lines of four blocks are asked for (1 or 2). */
struct form { int bytes; codes_fn *codes; codes_run_fn *codes_run; slots_fn *slots; four_slots_fn *four_slots; int ahead; };

INLINE __m512i four(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    const __m512i v = _mm512_mask_broadcast_i32x4(_mm512_castsi128_si512(load16(b0)), 0x00f0, load16(b1));
    return _mm512_mask_broadcast_i32x4(_mm512_mask_broadcast_i32x4(v, 0x0f00, load16(b2)), 0xf000, load16(b3));
}

/* The last 4 words of 32 bits of four blocks of `words` (5 or 6) in a run: two overlapping loads and a permutation. */
INLINE __m512i four_run(const uint8_t *p, int words)
{
    const int second = 4 * words - 16; /* first word of the second load */
    const __m512i lane = spread_of(0, 0), block = _mm512_srli_epi32(lane, 2), within = _mm512_and_epi32(lane, _mm512_set1_epi32(3));
    const __m512i word = _mm512_add_epi32(_mm512_add_epi32(_mm512_mullo_epi32(block, _mm512_set1_epi32(words)), within), _mm512_set1_epi32(words - 4));
    const __m512i from = _mm512_mask_add_epi32(word, _mm512_cmpgt_epi32_mask(word, _mm512_set1_epi32(15)), word, _mm512_set1_epi32(16 - second));
    return _mm512_permutex2var_epi32(at512(p), from, at512(p + 4 * second));
}

INLINE struct codes nibbles(__m512i v)
{
    const __m512i low = bytes_of(15);
    return (struct codes){_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16(v, 4), low)};
}

INLINE __m128i four_heads(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    const __m128i v = _mm_insert_epi32(_mm_cvtsi32_si128((int)load_u32(b0)), (int)load_u32(b1), 1);
    return _mm_insert_epi32(_mm_insert_epi32(v, (int)load_u32(b2), 2), (int)load_u32(b3), 3);
}

/* The first 32 bits of n blocks `stride` bytes apart, the others 0. */
INLINE __m512i heads(const uint8_t *p, int n, int stride)
{
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

INLINE __m256 four_halves(__m128i heads, char first, char second)
{
    const __m128i from = _mm_setr_epi8(first, first + 1, first + 4, first + 5, first + 8, first + 9, first + 12, first + 13,
                                       second, second + 1, second + 4, second + 5, second + 8, second + 9, second + 12, second + 13);
    return _mm256_cvtph_ps(_mm_shuffle_epi8(heads, from));
}

INLINE __m256 four_scales(__m128i heads, float offset)
{
    return _mm256_mul_ps(four_halves(heads, 0, 0), _mm256_setr_ps(1, 1, 1, 1, offset, offset, offset, offset));
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
INLINE struct codes run_q4_0(const uint8_t *p) { return codes_q4_0(p, p + 18, p + 36, p + 54); }
INLINE __m256 four_q4_0(__m128i heads) { return four_scales(heads, -8.0f); }
INLINE struct slots slots_q4_0(const uint8_t *p, int n) { return one_scale(p, n, 18, -8.0f); }

INLINE struct codes codes_q4_1(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    return nibbles(four(b0 + 4, b1 + 4, b2 + 4, b3 + 4));
}
INLINE struct codes run_q4_1(const uint8_t *p) { return nibbles(four_run(p, 5)); }
INLINE __m256 four_q4_1(__m128i heads) { return four_halves(heads, 0, 2); }
INLINE struct slots slots_q4_1(const uint8_t *p, int n) { return scale_and_min(p, n, 5); }

INLINE struct codes codes_q5_0(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    return with_fifth_bits(nibbles(four(b0 + 6, b1 + 6, b2 + 6, b3 + 6)), load_u32(b0 + 2), load_u32(b1 + 2), load_u32(b2 + 2),
                           load_u32(b3 + 2));
}
INLINE struct codes run_q5_0(const uint8_t *p) { return codes_q5_0(p, p + 22, p + 44, p + 66); }
INLINE __m256 four_q5_0(__m128i heads) { return four_scales(heads, -16.0f); }
INLINE struct slots slots_q5_0(const uint8_t *p, int n) { return one_scale(p, n, 22, -16.0f); }

INLINE struct codes codes_q5_1(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    return with_fifth_bits(nibbles(four(b0 + 8, b1 + 8, b2 + 8, b3 + 8)), load_u32(b0 + 4), load_u32(b1 + 4), load_u32(b2 + 4),
                           load_u32(b3 + 4));
}
INLINE struct codes run_q5_1(const uint8_t *p)
{
    return with_fifth_bits(nibbles(four_run(p, 6)), load_u32(p + 4), load_u32(p + 28), load_u32(p + 52), load_u32(p + 76));
}
INLINE __m256 four_q5_1(__m128i heads) { return four_halves(heads, 0, 2); }
INLINE struct slots slots_q5_1(const uint8_t *p, int n) { return scale_and_min(p, n, 6); }

INLINE struct codes codes_q8_0(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    const __m512i sign = bytes_of(-128); /* x + 128 in unsigned bytes */
    return (struct codes){_mm512_xor_si512(four(b0 + 2, b1 + 2, b2 + 2, b3 + 2), sign),
                          _mm512_xor_si512(four(b0 + 18, b1 + 18, b2 + 18, b3 + 18), sign)};
}
INLINE struct codes run_q8_0(const uint8_t *p) { return codes_q8_0(p, p + 34, p + 68, p + 102); }
INLINE __m256 four_q8_0(__m128i heads) { return four_scales(heads, -128.0f); }
INLINE struct slots slots_q8_0(const uint8_t *p, int n) { return one_scale(p, n, 34, -128.0f); }

INLINE struct codes codes_iq4_nl(const uint8_t *b0, const uint8_t *b1, const uint8_t *b2, const uint8_t *b3)
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153,
                                                               (char)166, (char)181, (char)197, (char)217, (char)241));
    const struct codes c = codes_q4_0(b0, b1, b2, b3);
    return (struct codes){_mm512_shuffle_epi8(table, c.lo), _mm512_shuffle_epi8(table, c.hi)};
}
INLINE struct codes run_iq4_nl(const uint8_t *p) { return codes_iq4_nl(p, p + 18, p + 36, p + 54); }
INLINE __m256 four_iq4_nl(__m128i heads) { return four_scales(heads, -128.0f); }
INLINE struct slots slots_iq4_nl(const uint8_t *p, int n) { return one_scale(p, n, 18, -128.0f); }

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* Integer dot of four blocks with the codes at x, those at x + low being their low bytes. */
INLINE __m512i dot128(struct codes w, const int8_t *x, ptrdiff_t low)
{
    __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.lo, at512(x));
    dot = _mm512_slli_epi32(_mm512_dpbusd_epi32(dot, w.hi, at512(x + 64)), 7);
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(dot, w.lo, at512(x + low)), w.hi, at512(x + low + 64));
}

/* One chunk of four blocks for T tokens; x is the chunk's place in the first token's q_split. */
INLINE void chunk32(__m512 *acc, const __m512 *scale, struct codes w, const int8_t *x, ptrdiff_t low, int64_t pad, __m512i spread, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = add_scaled(acc[t], dot128(w, x + t * pad, low), scale[t], spread);
}

/* n blocks (1..16) from p; x, d, s are the activations' there. */
INLINE void group32(__m512 *acc, const uint8_t *p, int n, const int8_t *x, ptrdiff_t low, const float *d, const float *s, int64_t pad, int T, struct form f)
{
    const int bytes = f.bytes;
    if (n < 16) fetch_ahead(p, n * bytes);
    const struct slots w = f.slots(p, n);
    __m512 scale[4];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        scale[t] = _mm512_mul_ps(w.scale, _mm512_loadu_ps(d + t * (pad / 32)));
        acc[t] = _mm512_fmadd_ps(w.offset, _mm512_loadu_ps(s + t * (pad / 32)), acc[t]);
    }
    if (n == 16) {
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4, p += 4 * bytes) {
            fetch_ahead(p, 4 / f.ahead * bytes);
            const struct codes c = f.codes_run(p);
            if (f.ahead == 2) fetch_ahead(p + 2 * bytes, 2 * bytes);
            chunk32(acc, scale, c, x + 32 * i, low, pad, spread_of(i, 2), T);
        }
        return;
    }
    for (int i = 0; i < n; i += 4, p += 4 * bytes) { /* missing blocks: their scale is 0, any readable codes do */
        const uint8_t *b1 = i + 1 < n ? p + bytes : p, *b2 = i + 2 < n ? p + 2 * bytes : p, *b3 = i + 3 < n ? p + 3 * bytes : p;
        chunk32(acc, scale, f.codes(p, b1, b2, b3), x + 32 * i, low, pad, spread_of(i, 2), T);
    }
}

/* The first n_blocks of a row. */
INLINE void row32(const struct matvec_args *a, int64_t r, int64_t n_blocks, int32_t t0, int T, __m512 *acc, struct form f)
{
    const uint8_t *p = a->w + (size_t)r * a->row_bytes;
    const int64_t pad = a->acts->pad;
    const int8_t *x = a->acts->q_split + t0 * pad;
    const ptrdiff_t low = a->acts->q_split_low - a->acts->q_split;
    const float *d = a->acts->d + t0 * (pad / 32), *s = a->acts->s32 + t0 * (pad / 32);
    int64_t b = 0;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = _mm512_setzero_ps();
    for (; b + 16 <= n_blocks; b += 16) group32(acc, p + b * f.bytes, 16, x + 32 * b, low, d + b, s + b, pad, T, f);
    if (b < n_blocks) group32(acc, p + b * f.bytes, (int)(n_blocks - b), x + 32 * b, low, d + b, s + b, pad, T, f);
}

/* What is left over, `left` blocks (1 or 2) of each row from block b on, 4 / left rows at a time. */
INLINE void leftovers(const struct matvec_args *a, int64_t r, int n, int64_t b, int left, int32_t t0, int T, __m512 (*sums)[16], struct form f)
{
    const int64_t pad = a->acts->pad;
    const int per = 4 / left;
    int8_t x[4][256];     /* activation codes of the blocks, once per row: as four blocks of q_split, then the low bytes */
    __m256 factors[4];    /* their scales in lanes 0..3, their sums in 4..7, once per row */
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        const int64_t at = (t0 + t) * pad + 32 * b, block = (t0 + t) * (pad / 32) + b;
        float v[8];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const int64_t from = at + 16 * (i % left); /* b is a multiple of 4: the chunk begins here */
            memcpy(x[t] + 16 * i, a->acts->q_split + from, 16);
            memcpy(x[t] + 64 + 16 * i, a->acts->q_split + from + 64, 16);
            memcpy(x[t] + 128 + 16 * i, a->acts->q_split_low + from, 16);
            memcpy(x[t] + 192 + 16 * i, a->acts->q_split_low + from + 64, 16);
            v[i] = a->acts->d[block + i % left];
            v[4 + i] = a->acts->s32[block + i % left];
        }
        factors[t] = _mm256_loadu_ps(v);
    }
    for (int i = 0; i < n; i += per) {
        const uint8_t *p[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const int row = i + j / left < n ? i + j / left : n - 1;
            p[j] = a->w + (size_t)(r + row) * a->row_bytes + (size_t)((b + j % left) * f.bytes);
        }
        const struct codes w = f.codes(p[0], p[1], p[2], p[3]);
        const __m256 slots = f.four_slots(four_heads(p[0], p[1], p[2], p[3]));
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            const __m512 both = _mm512_zextps256_ps512(_mm256_mul_ps(slots, factors[t]));
            const __m512 dot = _mm512_cvtepi32_ps(dot128(w, x[t], 128)), scale = _mm512_permutexvar_ps(spread_of(0, 2), both);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                if (j >= per || i + j >= n) break;
                const __mmask16 lanes = (__mmask16)(((1u << 4 * left) - 1u) << (4 * left * j)), offsets = (__mmask16)(((1u << left) - 1u) << (4 + left * j));
                const __m512 sum = _mm512_mask3_fmadd_ps(dot, scale, sums[t][i + j], lanes);
                sums[t][i + j] = _mm512_mask_add_ps(sum, offsets, sum, both);
            }
        }
    }
}

INLINE void block32(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16], struct form f)
{
    const int64_t n_blocks = a->n_in / 32, left = n_blocks % 4 < 3 ? n_blocks % 4 : 0;
    __m512 acc[4];
    for (int i = 0; i < n; i++) {
        row32(a, r + i, n_blocks - left, t0, T, acc, f);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[t][i] = acc[t];
    }
    if (left == 1) leftovers(a, r, n, n_blocks - 1, 1, t0, T, sums, f);
    if (left == 2) leftovers(a, r, n, n_blocks - 2, 2, t0, T, sums, f);
}

INLINE void block_q4_0(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block32(a, r, n, t0, T, sums, (struct form){18, codes_q4_0, run_q4_0, slots_q4_0, four_q4_0, 2});
}
void sr_matvec_q4_0_vnni(const struct matvec_args *a) { all_tokens(a, block_q4_0); }

INLINE void block_q4_1(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block32(a, r, n, t0, T, sums, (struct form){20, codes_q4_1, run_q4_1, slots_q4_1, four_q4_1, 1});
}
void sr_matvec_q4_1_vnni(const struct matvec_args *a) { all_tokens(a, block_q4_1); }

INLINE void block_q5_0(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block32(a, r, n, t0, T, sums, (struct form){22, codes_q5_0, run_q5_0, slots_q5_0, four_q5_0, 1});
}
void sr_matvec_q5_0_vnni(const struct matvec_args *a) { all_tokens(a, block_q5_0); }

INLINE void block_q5_1(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block32(a, r, n, t0, T, sums, (struct form){24, codes_q5_1, run_q5_1, slots_q5_1, four_q5_1, 2});
}
void sr_matvec_q5_1_vnni(const struct matvec_args *a) { all_tokens(a, block_q5_1); }

INLINE void block_q8_0(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block32(a, r, n, t0, T, sums, (struct form){34, codes_q8_0, run_q8_0, slots_q8_0, four_q8_0, 2});
}
void sr_matvec_q8_0_vnni(const struct matvec_args *a) { all_tokens(a, block_q8_0); }

INLINE void block_iq4_nl(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block32(a, r, n, t0, T, sums, (struct form){18, codes_iq4_nl, run_iq4_nl, slots_iq4_nl, four_iq4_nl, 2});
}
void sr_matvec_iq4_nl_vnni(const struct matvec_args *a) { all_tokens(a, block_iq4_nl); }
