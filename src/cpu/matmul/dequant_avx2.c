/* SPDX-License-Identifier: Apache-2.0
 *
 * Stored rows to floats, AVX2. See dequant_inline.h.
 */
#include "cpu/matmul/dequant_inline.h"

INLINE __m256 eight(__m128i q, float d) { return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), _mm256_set1_ps(d)); }

INLINE void scaled(float *y, __m128i q, float d)
{
    _mm256_storeu_ps(y, eight(q, d));
    _mm256_storeu_ps(y + 8, eight(_mm_srli_si128(q, 8), d));
}

INLINE void affine(float *y, __m128i q, float d, float m)
{
    _mm256_storeu_ps(y, _mm256_add_ps(eight(q, d), _mm256_set1_ps(m)));
    _mm256_storeu_ps(y + 8, _mm256_add_ps(eight(_mm_srli_si128(q, 8), d), _mm256_set1_ps(m)));
}

static const struct widen put = {scaled, affine};

void sr_dequant_f32_avx2(const uint8_t *src, float *dst, int64_t n) { memcpy(dst, src, (size_t)n * sizeof(float)); }

void sr_dequant_f16_avx2(const uint8_t *src, float *dst, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(at128(src + 2 * i)));
    for (; i < n; i++) dst[i] = half_at(src + 2 * i);
}

void sr_dequant_bf16_avx2(const uint8_t *src, float *dst, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_si256((__m256i *)(void *)(dst + i), _mm256_slli_epi32(_mm256_cvtepu16_epi32(at128(src + 2 * i)), 16));
    for (; i < n; i++) {
        const uint8_t wide[4] = {0, 0, src[2 * i], src[2 * i + 1]};
        memcpy(dst + i, wide, 4);
    }
}

void sr_dequant_q4_0_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 32, 18, block_q4_0, put); }
void sr_dequant_q4_1_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 32, 20, block_q4_1, put); }
void sr_dequant_q5_0_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 32, 22, block_q5_0, put); }
void sr_dequant_q5_1_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 32, 24, block_q5_1, put); }
void sr_dequant_q8_0_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 32, 34, block_q8_0, put); }
void sr_dequant_q2_k_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 256, 84, block_q2_k, put); }
void sr_dequant_q3_k_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 256, 110, block_q3_k, put); }
void sr_dequant_q4_k_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 256, 144, block_q4_k, put); }
void sr_dequant_q5_k_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 256, 176, block_q5_k, put); }
void sr_dequant_q6_k_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 256, 210, block_q6_k, put); }
void sr_dequant_iq4_nl_avx2(const uint8_t *src, float *dst, int64_t n) { all_blocks(src, dst, n, 32, 18, block_iq4_nl, put); }
