/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations to codes of two bytes, AVX-512: bit-equal to the scalar variant (the same divisions, products and roundings).
 * Four blocks at a time where they hold nothing but ordinary numbers, else one by one.
 */
#include "cpu/kernels.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

/* 16 codes: the high bytes, the low bytes, and their sum. */
struct codes { __m128i high, low; float sum; };

static inline struct codes codes_of(__m512 x, __m512 id)
{
    const __m512i c = _mm512_cvtps_epi32(_mm512_mul_ps(x, id));
    const __m512i q = _mm512_srai_epi32(_mm512_add_epi32(c, _mm512_set1_epi32(64)), 7);
    return (struct codes){_mm512_cvtepi32_epi8(q), _mm512_cvtepi32_epi8(_mm512_sub_epi32(c, _mm512_slli_epi32(q, 7))),
                          (float)_mm512_reduce_add_epi32(c)};
}

/* Half h of block b, in both orders. */
static inline void store_half(const struct quantize_args *a, int64_t b, int h, struct codes c)
{
    const int64_t at = b * SR_ACT_BLOCK + 16 * h, split = b / 4 * 128 + 64 * h + b % 4 * 16;
    _mm_storeu_si128((__m128i *)(void *)(a->q + at), c.high);
    _mm_storeu_si128((__m128i *)(void *)(a->q_low + at), c.low);
    _mm_storeu_si128((__m128i *)(void *)(a->q_split + split), c.high);
    _mm_storeu_si128((__m128i *)(void *)(a->q_split_low + split), c.low);
    a->s16[2 * b + h] = a->d[b] * c.sum;
}

static void quantize_block(const struct quantize_args *a, int64_t b)
{
    const int inside = b * SR_ACT_BLOCK < a->n;
    const float *x = a->x + b * SR_ACT_BLOCK;
    const __m512 x0 = inside ? _mm512_loadu_ps(x) : _mm512_setzero_ps(), x1 = inside ? _mm512_loadu_ps(x + 16) : x0;
    const float amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x0), _mm512_abs_ps(x1)));
    /* a NaN has no code: the block's scale carries it */
    const int is_number = (_mm512_cmp_ps_mask(x0, x0, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(x1, x1, _CMP_UNORD_Q)) == 0;
    const float d = is_number ? amax / SR_ACT_MAX : NAN;
    const int has_codes = amax > 1e-30f && is_number && amax < INFINITY;
    const __m512 id = _mm512_set1_ps(has_codes ? SR_ACT_MAX / amax : 0.0f), zero = _mm512_setzero_ps();
    const struct codes c0 = codes_of(has_codes ? x0 : zero, id), c1 = codes_of(has_codes ? x1 : zero, id);
    a->d[b] = d;
    store_half(a, b, 0, c0);
    store_half(a, b, 1, c1);
    a->s32[b] = d * (c0.sum + c1.sum);
}

/* ---- four blocks: pairs (0, 1) and (2, 3) ------------------------------------------------------------------------ */

/* Lane i of the result: the largest of block i's 16 lanes. */
static inline __m128 four_max(const __m512 *m)
{
    const __m512 a = _mm512_max_ps(_mm512_unpacklo_ps(m[0], m[1]), _mm512_unpackhi_ps(m[0], m[1]));
    const __m512 b = _mm512_max_ps(_mm512_unpacklo_ps(m[2], m[3]), _mm512_unpackhi_ps(m[2], m[3]));
    const __m512 c = _mm512_max_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    return _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

/* Words of two blocks, each with its halves in turns of four: lanes of the result are the sums of block 0's halves, block 1's. */
static inline __m128i four_sums(__m512i a, __m512i b)
{
    const __m512i one = _mm512_set1_epi16(1), p = _mm512_madd_epi16(a, one), q = _mm512_madd_epi16(b, one);
    const __m512 even = _mm512_shuffle_ps(_mm512_castsi512_ps(p), _mm512_castsi512_ps(q), 0x88);
    const __m512 odd = _mm512_shuffle_ps(_mm512_castsi512_ps(p), _mm512_castsi512_ps(q), 0xdd);
    const __m512i s = _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd));
    const __m256i h = _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

/* Four blocks of bytes, stored in both orders. v[i] holds blocks 2 i, 2 i + 1; its word 4 u + 2 k + h is quarter u of half h of
 * block k. */
static inline void store_four(const __m512i *v, int8_t *q, int8_t *split)
{
    const __m512i halves = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
    const __m512i block = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(q, _mm512_permutexvar_epi32(block, v[0]));
    _mm512_storeu_si512(q + 64, _mm512_permutexvar_epi32(block, v[1]));
    _mm512_storeu_si512(split, _mm512_permutex2var_epi32(v[0], halves, v[1]));
    _mm512_storeu_si512(split + 64, _mm512_permutex2var_epi32(v[0], _mm512_add_epi32(halves, _mm512_set1_epi32(1)), v[1]));
}

/* Blocks b to b + 3, b a multiple of 4; 0: one of them is zero, infinite or no number, nothing is done. */
static int quantize_four(const struct quantize_args *a, int64_t b)
{
    const float *x = a->x + b * SR_ACT_BLOCK;
    __m512 v[8], m[4];
    __m512i c[4], q[4];
    __mmask16 odd = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[2 * i] = _mm512_loadu_ps(x + 32 * i);
        v[2 * i + 1] = _mm512_loadu_ps(x + 32 * i + 16);
        m[i] = _mm512_max_ps(_mm512_abs_ps(v[2 * i]), _mm512_abs_ps(v[2 * i + 1]));
        odd |= _mm512_cmp_ps_mask(v[2 * i], v[2 * i + 1], _CMP_UNORD_Q);
    }
    const __m128 amax = four_max(m), most = _mm_set1_ps(SR_ACT_MAX);
    odd |= (__mmask16)_mm_movemask_ps(_mm_or_ps(_mm_cmple_ps(amax, _mm_set1_ps(1e-30f)), _mm_cmpeq_ps(amax, _mm_set1_ps(INFINITY))));
    if (odd) return 0;
    const __m512 id = _mm512_castps128_ps512(_mm_div_ps(most, amax));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512 by = _mm512_permutexvar_ps(_mm512_set1_epi32(i), id);
        c[i] = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i], by)), _mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i + 1], by)));
        q[i] = _mm512_srai_epi16(_mm512_add_epi16(c[i], _mm512_set1_epi16(64)), 7);
    }
    const __m512i high[2] = {_mm512_packs_epi16(q[0], q[1]), _mm512_packs_epi16(q[2], q[3])};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) q[i] = _mm512_sub_epi16(c[i], _mm512_slli_epi16(q[i], 7));
    const __m512i low[2] = {_mm512_packs_epi16(q[0], q[1]), _mm512_packs_epi16(q[2], q[3])};
    store_four(high, a->q + b * SR_ACT_BLOCK, a->q_split + b * SR_ACT_BLOCK);
    store_four(low, a->q_low + b * SR_ACT_BLOCK, a->q_split_low + b * SR_ACT_BLOCK);

    const __m128 d = _mm_div_ps(amax, most);
    const __m256 sums = _mm256_cvtepi32_ps(_mm256_set_m128i(four_sums(c[2], c[3]), four_sums(c[0], c[1])));
    const __m256 twice = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(d), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    const __m128 s0 = _mm256_castps256_ps128(sums), s1 = _mm256_extractf128_ps(sums, 1);
    _mm_storeu_ps(a->d + b, d);
    _mm256_storeu_ps(a->s16 + 2 * b, _mm256_mul_ps(twice, sums));
    _mm_storeu_ps(a->s32 + b, _mm_mul_ps(d, _mm_add_ps(_mm_shuffle_ps(s0, s1, 0x88), _mm_shuffle_ps(s0, s1, 0xdd))));
    return 1;
}

/* All that lies behind block b. */
static void pad_from(const struct quantize_args *a, int64_t b)
{
    const int64_t at = b * SR_ACT_BLOCK;
    int8_t *const codes[] = {a->q, a->q_low, a->q_split, a->q_split_low};
    for (int i = 0; i < 4; i++) memset(codes[i] + at, 0, (size_t)(a->pad - at));
    memset(a->d + b, 0, (size_t)(a->pad / SR_ACT_BLOCK - b) * sizeof(float));
    memset(a->s32 + b, 0, (size_t)(a->pad / SR_ACT_BLOCK - b) * sizeof(float));
    memset(a->s16 + 2 * b, 0, (size_t)(a->pad / SR_ACT_BLOCK - b) * 2 * sizeof(float));
}

void sr_quantize_q8_avx512(const struct quantize_args *a)
{
    int64_t b = 0;
    for (; b * SR_ACT_BLOCK < a->n; b += 4) {
        if ((b + 4) * SR_ACT_BLOCK <= a->n && quantize_four(a, b)) continue;
        for (int64_t i = b; i < b + 4; i++) quantize_block(a, i);
    }
    pad_from(a, b);
}
