/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations to codes of two bytes, AVX-512: bit-equal to the scalar variant (the same divisions, products and roundings).
 */
#include "cpu/kernels.h"

#include <immintrin.h>
#include <math.h>

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

void sr_quantize_q8_avx512(const struct quantize_args *a)
{
    for (int64_t b = 0; b < a->pad / SR_ACT_BLOCK; b++) {
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
}
