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

/* ---- unpacking ------------------------------------------------------------------------------------------------- */

INLINE __m512i twice(const uint8_t *p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p)); }

/* 16-bit shifts right by `low` in the lower half and by `high` in the upper, for fields that a mask then cuts out. */
INLINE __m512i shift_halves(__m512i v, int low, int high)
{
    return _mm512_srlv_epi16(v, _mm512_inserti64x4(_mm512_set1_epi16((short)low), _mm256_set1_epi16((short)high), 1));
}

/* 32 bytes hold two runs of 32 codes: low nibbles, then high. */
INLINE struct codes256 nibble_runs(const uint8_t *qs)
{
    struct codes256 c;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) c.v[i] = _mm512_and_si512(shift_halves(twice(qs + 32 * i), 0, 4), bytes_of(15));
    return c;
}

INLINE struct codes256 codes_q4_k(const uint8_t *b) { return nibble_runs(b + 16); }

INLINE struct codes256 codes_q5_k(const uint8_t *b)
{
    struct codes256 c = nibble_runs(b + 48);
    const __m512i high = twice(b + 16);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512i bit = _mm512_and_si512(shift_halves(high, 2 * i, 2 * i + 1), bytes_of(1));
        c.v[i] = _mm512_or_si512(c.v[i], _mm512_slli_epi16(bit, 4));
    }
    return c;
}

/* Two bits per code: 32 bytes hold four runs of 32. */
INLINE struct codes256 two_bit_runs(const uint8_t *qs)
{
    struct codes256 c;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const int shift = i & 1 ? 4 : 0;
        c.v[i] = _mm512_and_si512(shift_halves(twice(qs + 32 * (i / 2)), shift, shift + 2), bytes_of(3));
    }
    return c;
}

INLINE struct codes256 codes_q2_k(const uint8_t *b) { return two_bit_runs(b + 16); }

INLINE struct codes256 codes_q3_k(const uint8_t *b) /* plus 4 where the high bit is set; 4 too much */
{
    struct codes256 c = two_bit_runs(b + 32);
    const __m512i high = twice(b);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512i bit = _mm512_and_si512(shift_halves(high, 2 * i, 2 * i + 1), bytes_of(1));
        c.v[i] = _mm512_or_si512(c.v[i], _mm512_slli_epi16(bit, 2));
    }
    return c;
}

INLINE struct codes256 codes_q6_k(const uint8_t *b) /* 32 too much */
{
    struct codes256 c;
#pragma GCC unroll 2
    for (int n = 0; n < 2; n++) {
        const __m512i low = at512(b + 64 * n), high = twice(b + 128 + 32 * n), two = bytes_of(3), four = bytes_of(15);
        const __m512i h0 = _mm512_and_si512(shift_halves(high, 0, 2), two), h1 = _mm512_and_si512(shift_halves(high, 4, 6), two);
        c.v[2 * n] = _mm512_or_si512(_mm512_and_si512(low, four), _mm512_slli_epi16(h0, 4));
        c.v[2 * n + 1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low, 4), four), _mm512_slli_epi16(h1, 4));
    }
    return c;
}

/* ---- scales ------------------------------------------------------------------------------------------------------- */

/* Q4_K, Q5_K: slots 0..7 are scales, 8..15 of `scale` are the minima, both times their f16 factor. */
INLINE struct slots slots_8(const uint8_t *b)
{
    const uint32_t a0 = load_u32(b + 4), a1 = load_u32(b + 8), a2 = load_u32(b + 12);
    const uint32_t low = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x03030303;
    const __m128i packed = _mm_setr_epi32((int)(a0 & low), (int)((a2 & four) | (a0 >> 6 & two) << 4), (int)(a1 & low),
                                          (int)((a2 >> 4 & four) | (a1 >> 6 & two) << 4));
    const __m512 factor = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(half_at(b)), _mm512_set1_ps(-half_at(b + 2)));
    return (struct slots){_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(packed)), factor), _mm512_setzero_ps()};
}

INLINE struct slots slots_q2_k(const uint8_t *b)
{
    const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)b), low = _mm_set1_epi8(15);
    const __m512 scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(v, low)));
    const __m512 min = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(v, 4), low)));
    return (struct slots){_mm512_mul_ps(scale, _mm512_set1_ps(half_at(b + 80))), _mm512_mul_ps(min, _mm512_set1_ps(-half_at(b + 82)))};
}

INLINE struct slots signed_scales(__m128i sc, float d, float offset)
{
    const __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sc)), _mm512_set1_ps(d));
    return (struct slots){scale, _mm512_mul_ps(scale, _mm512_set1_ps(offset))};
}

INLINE struct slots slots_q3_k(const uint8_t *b)
{
    const uint32_t a0 = load_u32(b + 96), a1 = load_u32(b + 100), a2 = load_u32(b + 104);
    const uint32_t four = 0x0f0f0f0f, two = 0x03030303;
    const __m128i six = _mm_setr_epi32((int)((a0 & four) | (a2 & two) << 4), (int)((a1 & four) | (a2 >> 2 & two) << 4),
                                       (int)((a0 >> 4 & four) | (a2 >> 4 & two) << 4), (int)((a1 >> 4 & four) | (a2 >> 6 & two) << 4));
    return signed_scales(_mm_sub_epi8(six, _mm_set1_epi8(32)), half_at(b + 108), -4.0f);
}

INLINE struct slots slots_q6_k(const uint8_t *b)
{
    return signed_scales(_mm_loadu_si128((const __m128i *)(const void *)(b + 192)), half_at(b + 208), -32.0f);
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

INLINE __m512 two_halves(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }

/* Activation scales (and sums) of one super-block as the slots see them, times the weight's; sums are added to acc. */
INLINE __m512 slot_scales(struct slots w, int slots_8_of_32, const float *d, const float *s32, const float *s16, __m512 *acc)
{
    const __m256 dx = _mm256_loadu_ps(d);
    if (slots_8_of_32) {
        const __m512 both = _mm512_mul_ps(w.scale, two_halves(dx, _mm256_loadu_ps(s32)));
        *acc = _mm512_mask_add_ps(*acc, 0xff00, *acc, both);
        return both;
    }
    *acc = _mm512_fmadd_ps(w.offset, _mm512_loadu_ps(s16), *acc);
    return _mm512_mul_ps(w.scale, _mm512_permutexvar_ps(spread_of(0, 1), _mm512_castps256_ps512(dx)));
}

/* How a type is read: bytes of a super-block, 8 slots or 16, and its unpackers. */
struct form { int bytes, wide; codes_fn *codes; slots_fn *slots; };

INLINE void row256(const struct matvec_args *a, int64_t r, int32_t t0, int T, __m512 *acc, struct form f)
{
    const uint8_t *p = a->w + (size_t)r * a->row_bytes;
    const struct acts *x = a->acts;
    const int64_t pad = x->pad;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) acc[t] = _mm512_setzero_ps();
    for (int64_t e = 0; e < a->n_in; e += 256, p += f.bytes) {
        fetch_ahead(p, f.bytes);
        const struct codes256 c = f.codes(p);
        const struct slots w = f.slots(p);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            const int64_t at = (t0 + t) * pad + e;
            const __m512 scale = slot_scales(w, f.wide, x->d + at / 32, x->s32 + at / 32, x->s16 + at / 16, &acc[t]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
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
    block256(a, r, n, t0, T, sums, (struct form){84, 0, codes_q2_k, slots_q2_k});
}
void sr_matvec_q2_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q2_k); }

INLINE void block_q3_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){110, 0, codes_q3_k, slots_q3_k});
}
void sr_matvec_q3_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q3_k); }

INLINE void block_q4_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){144, 1, codes_q4_k, slots_8});
}
void sr_matvec_q4_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q4_k); }

INLINE void block_q5_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){176, 1, codes_q5_k, slots_8});
}
void sr_matvec_q5_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q5_k); }

INLINE void block_q6_k(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16])
{
    block256(a, r, n, t0, T, sums, (struct form){210, 0, codes_q6_k, slots_q6_k});
}
void sr_matvec_q6_k_vnni(const struct matvec_args *a) { all_tokens(a, block_q6_k); }
