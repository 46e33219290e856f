/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations to int8 codes, NEON: bit-equal to the scalar variant (the same divisions, products and roundings).
 */
#include "cpu/kernels.h"

#include <arm_neon.h>

static inline int16x8_t codes8(const float *x, float id)
{
    const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), id)), b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), id));
    return vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
}

static inline int8x16_t codes16(const float *x, float id) { return vcombine_s8(vqmovn_s16(codes8(x, id)), vqmovn_s16(codes8(x + 8, id))); }

void sr_quantize_q8_neon(const struct quantize_args *a)
{
    for (int64_t b = 0; b < a->pad / SR_ACT_BLOCK; b++) {
        const int inside = b * SR_ACT_BLOCK < a->n;
        const float *x = a->x + b * SR_ACT_BLOCK;
        float32x4_t most = vdupq_n_f32(0);
        for (int i = 0; inside && i < SR_ACT_BLOCK; i += 4) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + i)));
        const float amax = vmaxvq_f32(most), d = amax / 127.0f, id = amax > 1e-30f ? 127.0f / amax : 0.0f;
        const int8x16_t q0 = inside ? codes16(x, id) : vdupq_n_s8(0), q1 = inside ? codes16(x + 16, id) : vdupq_n_s8(0);
        int8_t *split = a->q_split + b / 4 * 128 + b % 4 * 16;
        vst1q_s8(a->q + b * SR_ACT_BLOCK, q0);
        vst1q_s8(a->q + b * SR_ACT_BLOCK + 16, q1);
        vst1q_s8(split, q0);
        vst1q_s8(split + 64, q1);
        const float s0 = (float)vaddlvq_s8(q0), s1 = (float)vaddlvq_s8(q1);
        a->d[b] = d;
        a->s16[2 * b] = d * s0;
        a->s16[2 * b + 1] = d * s1;
        a->s32[b] = d * (s0 + s1);
    }
}
