/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations to codes of two bytes, NEON: bit-equal to the scalar variant (the same divisions, products and roundings).
 */
#include "cpu/kernels.h"

#include <arm_neon.h>
#include <math.h>

static inline int16x8_t codes8(const float *x, float id)
{
    const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), id)), b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), id));
    return vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
}

/* Half h of block b, in both orders; x is NULL where all codes are 0. Returns the sum of the codes. */
static inline float store_half(const struct quantize_args *a, int64_t b, int h, const float *x, float id)
{
    const int64_t at = b * SR_ACT_BLOCK + 16 * h, split = b / 4 * 128 + 64 * h + b % 4 * 16;
    const int16x8_t c0 = x ? codes8(x, id) : vdupq_n_s16(0), c1 = x ? codes8(x + 8, id) : vdupq_n_s16(0);
    const int16x8_t q0 = vshrq_n_s16(vaddq_s16(c0, vdupq_n_s16(64)), 7), q1 = vshrq_n_s16(vaddq_s16(c1, vdupq_n_s16(64)), 7);
    const int8x16_t high = vcombine_s8(vmovn_s16(q0), vmovn_s16(q1));
    const int8x16_t low = vcombine_s8(vmovn_s16(vsubq_s16(c0, vshlq_n_s16(q0, 7))), vmovn_s16(vsubq_s16(c1, vshlq_n_s16(q1, 7))));
    vst1q_s8(a->q + at, high);
    vst1q_s8(a->q_low + at, low);
    vst1q_s8(a->q_split + split, high);
    vst1q_s8(a->q_split_low + split, low);
    return (float)(vaddlvq_s16(c0) + vaddlvq_s16(c1));
}

void sr_quantize_q8_neon(const struct quantize_args *a)
{
    for (int64_t b = 0; b < a->pad / SR_ACT_BLOCK; b++) {
        const int inside = b * SR_ACT_BLOCK < a->n;
        const float *x = a->x + b * SR_ACT_BLOCK;
        float32x4_t most = vdupq_n_f32(0);
        for (int i = 0; inside && i < SR_ACT_BLOCK; i += 4) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + i)));
        /* the maximum is NaN if an element is; a NaN has no code: the block's scale carries it */
        const float amax = vmaxvq_f32(most), d = amax == amax ? amax / SR_ACT_MAX : NAN;
        const int has_codes = amax > 1e-30f && amax < INFINITY;
        const float id = has_codes ? SR_ACT_MAX / amax : 0.0f;
        const float s0 = store_half(a, b, 0, has_codes ? x : NULL, id), s1 = store_half(a, b, 1, has_codes ? x + 16 : NULL, id);
        a->d[b] = d;
        a->s16[2 * b] = d * s0;
        a->s16[2 * b + 1] = d * s1;
        a->s32[b] = d * (s0 + s1);
    }
}
