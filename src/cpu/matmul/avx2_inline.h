/* SPDX-License-Identifier: Apache-2.0
 *
 * What the AVX2 matvec files share. Codes times activation codes go through VPMADDUBSW, whose 16-bit pairs cannot overflow:
 * unsigned codes are at most 63, and signed ones are taken as |w| times x with w's sign, at most 128 * 127 * 2.
 */
#ifndef SR_CPU_MATMUL_AVX2_INLINE_H
#define SR_CPU_MATMUL_AVX2_INLINE_H

#include "cpu/kernels.h"
#include "cpu/matmul/ahead_inline.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i at256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m128i at128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
INLINE __m256i masked(__m256i v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi8((char)mask)); }

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

/* 128 times the pairs of the high bytes plus those of the low bytes: each lane the product of four codes, in f32. */
INLINE __m256 weigh(__m256i high, __m256i low)
{
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(128)), _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    return _mm256_cvtepi32_ps(sum);
}

#endif
