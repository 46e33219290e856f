/* SPDX-License-Identifier: Apache-2.0
 *
 * K-quants times quantized activations, AVX-512 VNNI; the scheme of matvec_vnni.c with super-blocks of 256. Codes are
 * unpacked in rising order of the elements, 64 to a register, so these types read q. Q4_K and Q5_K have 8 slots of 32
 * (two per register), Q2_K, Q3_K and Q6_K 16 slots of 16 (four per register).
 */
#include "cpu/matmul/vnni_inline.h"

struct codes256 { __m512i v[4]; };

typedef struct codes256 codes_fn(const uint8_t *block);
typedef struct slots slots_fn(const uint8_t *block);
typedef __m512 units_fn(void);

/* ---- unpacking -------------------------------------------------------------------------------------------------
 *
 * A field that lies higher in its byte need not be shifted down: unsigned codes have room up to 255, and the power of two
 * goes into the slot's scale (`units`), which changes no bit of the result: integer sums stay below 2^24. */

INLINE __m512i twice(const uint8_t *p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p)); }

/* `low` in the lower half, `high` in the upper. */
INLINE __m512i byte_halves(int low, int high) { return _mm512_inserti64x4(bytes_of(low), _mm256_set1_epi8((char)high), 1); }
INLINE __m512i word_halves(int low, int high)
{
    return _mm512_inserti64x4(_mm512_set1_epi16((short)low), _mm256_set1_epi16((short)high), 1);
}

/* Each half's 16-bit words moved by so many bits to the left (below 0: right), both in the same direction. */
INLINE __m512i move_halves(__m512i v, int low, int high)
{
    if (low > 0 || high > 0) return _mm512_sllv_epi16(v, word_halves(low, high));
    return low < 0 || high < 0 ? _mm512_srlv_epi16(v, word_halves(-low, -high)) : v;
}

/* (a & mask) | b */
INLINE __m512i cut_into(__m512i a, __m512i mask, __m512i b) { return _mm512_ternarylogic_epi32(a, mask, b, 0xea); }

/* 32 bytes hold two runs of 32 codes: low nibbles, then high, the latter 16-fold. */
INLINE struct codes256 codes_q4_k(const uint8_t *b)
{
    struct codes256 c;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) c.v[i] = _mm512_and_si512(twice(b + 16 + 32 * i), byte_halves(0x0f, 0xf0));
    return c;
}

INLINE struct codes256 codes_q5_k(const uint8_t *b)
{
    struct codes256 c;
    const __m512i high = twice(b + 16);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* bits 2i and 2i + 1 to bit 4 */
        const __m512i bit = _mm512_and_si512(move_halves(high, 4 - 2 * i, 3 - 2 * i), bytes_of(16));
        c.v[i] = cut_into(move_halves(twice(b + 48 + 32 * i), 0, -4), bytes_of(15), bit);
    }
    return c;
}

/* Two bits per code: 32 bytes hold four runs of 32, which count 1, 4, 16 and 64. */
INLINE struct codes256 codes_q2_k(const uint8_t *b)
{
    struct codes256 c;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        c.v[i] = _mm512_and_si512(twice(b + 16 + 32 * (i / 2)), i & 1 ? byte_halves(0x30, 0xc0) : byte_halves(0x03, 0x0c));
    return c;
}

INLINE struct codes256 codes_q3_k(const uint8_t *b) /* plus 4 where the high bit is set; 4 too much; upper halves 4-fold */
{
    struct codes256 c;
    const __m512i high = twice(b);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* bits 2i and 2i + 1 to bits 2 and 4 */
        const __m512i two = twice(b + 32 + 32 * (i / 2)), bit = _mm512_and_si512(move_halves(high, 2 - 2 * i, 3 - 2 * i), byte_halves(4, 16));
        c.v[i] = cut_into(i & 1 ? _mm512_srli_epi16(two, 4) : two, byte_halves(0x03, 0x0c), bit);
    }
    return c;
}

INLINE struct codes256 codes_q6_k(const uint8_t *b) /* 32 too much */
{
    struct codes256 c;
#pragma GCC unroll 2
    for (int n = 0; n < 2; n++) {
        const __m512i low = at512(b + 64 * n), high = twice(b + 128 + 32 * n), two = bytes_of(0x30), four = bytes_of(15);
        c.v[2 * n] = cut_into(low, four, _mm512_and_si512(move_halves(high, 4, 2), two));
        c.v[2 * n + 1] = cut_into(_mm512_srli_epi16(low, 4), four, _mm512_and_si512(move_halves(high, 0, -2), two));
    }
    return c;
}

/* ---- scales ------------------------------------------------------------------------------------------------------- */

/* Q4_K, Q5_K: slots 0..7 are scales, 8..15 of `scale` are the minima, both times their f16 factor. Six bits each: eight
 * whole ones, then eight whose low four bits share bytes and whose high two lie above the first ones. */
INLINE struct slots slots_8(const uint8_t *b)
{
    const __m128i v = load16(b);
    const __m128i low = _mm_shuffle_epi8(v, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m128i high = _mm_shuffle_epi8(v, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m128i six = _mm_ternarylogic_epi32(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)),
                                               _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f),
                                               _mm_and_si128(_mm_srli_epi16(high, 2), _mm_set1_epi8(0x30)), 0xea);
    const __m512 factor = _mm512_permutexvar_ps(spread_of(0, 3), _mm512_castps128_ps512(_mm_cvtph_ps(v)));
    return (struct slots){_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(six)), factor), _mm512_setzero_ps()};
}

/* Bytes of a scale (low four bits) and a minimum; a permutation looks up four bits as a float. */
INLINE struct slots slots_q2_k(const uint8_t *b)
{
    const __m512 number = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i v = _mm512_cvtepu8_epi32(load16(b));
    const __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128((int)load_u32(b + 80)));
    const __m512 scale = _mm512_mul_ps(_mm512_permutexvar_ps(v, number), _mm512_broadcastss_ps(d));
    const __m512 min = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4), _mm512_sub_ps(_mm512_setzero_ps(), number));
    return (struct slots){scale, _mm512_mul_ps(min, _mm512_broadcastss_ps(_mm_movehdup_ps(d)))};
}

INLINE struct slots signed_scales(__m128i sc, float d, float offset)
{
    const __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sc)), _mm512_set1_ps(d));
    return (struct slots){scale, _mm512_mul_ps(scale, _mm512_set1_ps(offset))};
}

/* Bytes 96..107 hold the low four bits of 16 scales in eight, then two more of each in four. */
INLINE struct slots slots_q3_k(const uint8_t *b)
{
    const __m128i v = load16(b + 94);
    const __m128i low = _mm_shuffle_epi8(v, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    const __m128i high = _mm_srlv_epi32(_mm_sllv_epi32(_mm_shuffle_epi32(_mm_bsrli_si128(v, 10), 0), _mm_setr_epi32(4, 2, 0, 0)),
                                        _mm_setr_epi32(0, 0, 0, 2));
    const __m128i six = _mm_ternarylogic_epi32(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4)), _mm_set1_epi8(15),
                                               _mm_and_si128(high, _mm_set1_epi8(0x30)), 0xea);
    return signed_scales(_mm_sub_epi8(six, _mm_set1_epi8(32)), half_at(b + 108), -4.0f);
}

INLINE struct slots slots_q6_k(const uint8_t *b) { return signed_scales(load16(b + 192), half_at(b + 208), -32.0f); }

/* What a code counts in each slot, one over that; with 8 slots the sign of the minima besides. */
INLINE __m512 units_q4_k(void)
{
    const float f = 1.0f / 16;
    return _mm512_setr_ps(1, f, 1, f, 1, f, 1, f, -1, -1, -1, -1, -1, -1, -1, -1);
}
INLINE __m512 units_q5_k(void) { return _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1); }
INLINE __m512 units_q2_k(void)
{
    const float a = 1.0f / 4, b = 1.0f / 16, c = 1.0f / 64;
    return _mm512_setr_ps(1, 1, a, a, b, b, c, c, 1, 1, a, a, b, b, c, c);
}
INLINE __m512 units_q3_k(void)
{
    const float a = 1.0f / 4;
    return _mm512_setr_ps(1, 1, a, a, 1, 1, a, a, 1, 1, a, a, 1, 1, a, a);
}
INLINE __m512 units_q6_k(void) { return _mm512_set1_ps(1); }

/* ---- rows --------------------------------------------------------------------------------------------------------- */

INLINE __m512 two_halves(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }

/* Activation scales (and sums) of one super-block as the slots see them, times the weight's; sums are added to acc. */
INLINE __m512 slot_scales(struct slots w, int slots_8_of_32, __m512 units, const float *d, const float *s32, const float *s16, __m512 *acc)
{
    const __m256 dx = _mm256_loadu_ps(d);
    if (slots_8_of_32) {
        const __m512 both = _mm512_mul_ps(w.scale, _mm512_mul_ps(two_halves(dx, _mm256_loadu_ps(s32)), units));
        *acc = _mm512_mask_add_ps(*acc, 0xff00, *acc, both);
        return both;
    }
    *acc = _mm512_fmadd_ps(w.offset, _mm512_loadu_ps(s16), *acc);
    return _mm512_mul_ps(w.scale, _mm512_mul_ps(_mm512_permutexvar_ps(spread_of(0, 1), _mm512_castps256_ps512(dx)), units));
}

/* How a type is read: bytes of a super-block, 8 slots or 16, its unpackers, and in how many goes lines are asked for (1, 2 or 4). */
struct form { int bytes, wide; codes_fn *codes; slots_fn *slots; units_fn *units; int ahead; };

INLINE void row256(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc, struct form f)
{
    const uint8_t *p = a->w + (size_t)r * a->row_bytes;
    const struct acts *x = a->acts;
    const int64_t pad = x->pad;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = _mm512_setzero_ps();
    for (int64_t e = 0; e < a->n_in; e += 256, p += f.bytes) {
        const struct codes256 c = f.codes(p);
        const struct slots w = f.slots(p);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            const int64_t at = (t0 + t) * pad + e;
            const __m512 scale = slot_scales(w, f.wide, f.units(), x->d + at / 32, x->s32 + at / 32, x->s16 + at / 16, &acc[t]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                if (t == 0 && i < f.ahead) fetch_ahead(p + f.bytes * i / f.ahead, f.bytes * (i + 1) / f.ahead - f.bytes * i / f.ahead);
                __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), c.v[i], at512(x->q + at + 64 * i));
                dot = _mm512_dpbusd_epi32(_mm512_slli_epi32(dot, 7), c.v[i], at512(x->q_low + at + 64 * i));
                acc[t] = add_scaled(acc[t], dot, scale, f.wide ? spread_of(2 * i, 3) : spread_of(4 * i, 2));
            }
        }
    }
}

INLINE void block256(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16], struct form f)
{
    __m512 acc[4];
    for (int i = 0; i < n; i++) {
        row256(a, r + i, t0, T, acc, f);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[t][i] = acc[t];
    }
}

INLINE void block_q2_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){84, 0, codes_q2_k, slots_q2_k, units_q2_k, 1});
}
void sr_matvec_q2_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q2_k); }

INLINE void block_q3_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){110, 0, codes_q3_k, slots_q3_k, units_q3_k, 1});
}
void sr_matvec_q3_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q3_k); }

INLINE void block_q4_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){144, 1, codes_q4_k, slots_8, units_q4_k, 2});
}
void sr_matvec_q4_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q4_k); }

INLINE void block_q5_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){176, 1, codes_q5_k, slots_8, units_q5_k, 4});
}
void sr_matvec_q5_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q5_k); }

INLINE void block_q6_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){210, 0, codes_q6_k, slots_q6_k, units_q6_k, 4});
}
void sr_matvec_q6_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q6_k); }
