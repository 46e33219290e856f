/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations to int8 codes, AVX-512: bit-equal to the scalar variant (the same divisions, products and roundings).
 */
#include "cpu/kernels.h"

#include <immintrin.h>
#include <math.h>

static inline __m128i codes_of(__m512 x, __m512 id) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, id))); }

static inline float sum_of(__m128i q)
{
    /* signed codes + 128 summed as unsigned bytes, eight at a time */
    const __m128i u = _mm_xor_si128(q, _mm_set1_epi8(-128)), s = _mm_sad_epu8(u, _mm_setzero_si128());
    return (float)(_mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 2) - 16 * 128);
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
        const float d = is_number ? amax / 127.0f : NAN;
        const __m512 id = _mm512_set1_ps(amax > 1e-30f && is_number && amax < INFINITY ? 127.0f / amax : 0.0f);
        const __m128i q0 = codes_of(x0, id), q1 = codes_of(x1, id);
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
