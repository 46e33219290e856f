/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations to codes of two bytes, AVX2: bit-equal to the scalar variant (the same divisions, products and roundings).
 */
#include "cpu/kernels.h"

#include <immintrin.h>
#include <math.h>

static inline float lane_max(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* 16 codes: the high bytes, the low bytes, and their sum. */
struct codes { __m128i high, low; float sum; };

static inline __m128i bytes_of(__m256i words) { return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)); }

/* From two registers of 8. A code needs 15 bits, so 16-bit words hold it. */
static inline struct codes codes_of(__m256 a, __m256 b, __m256 id)
{
    const __m256i i = _mm256_cvtps_epi32(_mm256_mul_ps(a, id)), j = _mm256_cvtps_epi32(_mm256_mul_ps(b, id));
    const __m256i c = _mm256_permute4x64_epi64(_mm256_packs_epi32(i, j), 0xd8);
    const __m256i q = _mm256_srai_epi16(_mm256_add_epi16(c, _mm256_set1_epi16(64)), 7);
    const __m256i pairs = _mm256_madd_epi16(c, _mm256_set1_epi16(1));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return (struct codes){bytes_of(q), bytes_of(_mm256_sub_epi16(c, _mm256_slli_epi16(q, 7))), (float)_mm_cvtsi128_si32(s)};
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

void sr_quantize_q8_avx2(const struct quantize_args *a)
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t b = 0; b < a->pad / SR_ACT_BLOCK; b++) {
        const int inside = b * SR_ACT_BLOCK < a->n;
        __m256 x[4], most = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            x[i] = inside ? _mm256_loadu_ps(a->x + b * SR_ACT_BLOCK + 8 * i) : _mm256_setzero_ps();
            most = _mm256_max_ps(most, _mm256_and_ps(x[i], magnitude));
            odd = _mm256_or_ps(odd, _mm256_cmp_ps(x[i], x[i], _CMP_UNORD_Q));
        }
        /* a NaN has no code: the block's scale carries it */
        const int is_number = _mm256_movemask_ps(odd) == 0;
        const float amax = lane_max(most), d = is_number ? amax / SR_ACT_MAX : NAN;
        const int has_codes = amax > 1e-30f && is_number && amax < INFINITY;
        const __m256 id = _mm256_set1_ps(has_codes ? SR_ACT_MAX / amax : 0.0f);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) x[i] = has_codes ? x[i] : _mm256_setzero_ps();
        const struct codes c0 = codes_of(x[0], x[1], id), c1 = codes_of(x[2], x[3], id);
        a->d[b] = d;
        store_half(a, b, 0, c0);
        store_half(a, b, 1, c1);
        a->s32[b] = d * (c0.sum + c1.sum);
    }
}
