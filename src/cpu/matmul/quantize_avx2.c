/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations to int8 codes, AVX2: bit-equal to the scalar variant (the same divisions, products and roundings).
 */
#include "cpu/kernels.h"

#include <immintrin.h>

static inline float lane_max(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* 16 codes from two registers of 8. */
static inline __m128i codes_of(__m256 a, __m256 b, __m256 id)
{
    const __m256i i = _mm256_cvtps_epi32(_mm256_mul_ps(a, id)), j = _mm256_cvtps_epi32(_mm256_mul_ps(b, id));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(i, j), 0xd8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

static inline float sum_of(__m128i q)
{
    /* signed codes + 128 summed as unsigned bytes, eight at a time */
    const __m128i s = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(-128)), _mm_setzero_si128());
    return (float)(_mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 2) - 16 * 128);
}

void sr_quantize_q8_avx2(const struct quantize_args *a)
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t b = 0; b < a->pad / SR_ACT_BLOCK; b++) {
        const int inside = b * SR_ACT_BLOCK < a->n;
        __m256 x[4], most = _mm256_setzero_ps();
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            x[i] = inside ? _mm256_loadu_ps(a->x + b * SR_ACT_BLOCK + 8 * i) : _mm256_setzero_ps();
            most = _mm256_max_ps(most, _mm256_and_ps(x[i], magnitude));
        }
        const float amax = lane_max(most), d = amax / 127.0f;
        const __m256 id = _mm256_set1_ps(amax > 1e-30f ? 127.0f / amax : 0.0f);
        const __m128i q0 = codes_of(x[0], x[1], id), q1 = codes_of(x[2], x[3], id);
        int8_t *split = a->q_split + b / 4 * 128 + b % 4 * 16;
        _mm_storeu_si128((__m128i *)(void *)(a->q + b * SR_ACT_BLOCK), q0);
        _mm_storeu_si128((__m128i *)(void *)(a->q + b * SR_ACT_BLOCK + 16), q1);
        _mm_storeu_si128((__m128i *)(void *)split, q0);
        _mm_storeu_si128((__m128i *)(void *)(split + 64), q1);
        const float s0 = sum_of(q0), s1 = sum_of(q1);
        a->d[b] = d;
        a->s16[2 * b] = d * s0;
        a->s16[2 * b + 1] = d * s1;
        a->s32[b] = d * (s0 + s1);
    }
}
