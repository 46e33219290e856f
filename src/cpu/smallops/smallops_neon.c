/* SPDX-License-Identifier: Apache-2.0
 *
 * The small ops that pay, NEON; rests of less than 4 elements go to the scalar variants.
 */
#include "cpu/kernels.h"

#include <arm_neon.h>
#include <math.h>

void sr_norm_neon(const float *x, float *y, const float *w, int64_t d, float eps)
{
    float64x2_t lo = vdupq_n_f64(0), hi = vdupq_n_f64(0);
    int64_t i = 0;
    for (; i + 4 <= d; i += 4) {
        const float32x4_t v = vld1q_f32(x + i);
        const float64x2_t a = vcvt_f64_f32(vget_low_f32(v)), b = vcvt_high_f64_f32(v);
        lo = vfmaq_f64(lo, a, a);
        hi = vfmaq_f64(hi, b, b);
    }
    double sum = vaddvq_f64(vaddq_f64(lo, hi));
    for (; i < d; i++) sum += (double)x[i] * (double)x[i];
    const float scale = (float)(1.0 / sqrt(sum / (double)d + (double)eps));
    for (i = 0; i + 4 <= d; i += 4) vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(w + i)));
    for (; i < d; i++) y[i] = x[i] * scale * w[i];
}

void sr_rope_halves_neon(float *x, const float *cos, const float *sin, int64_t half)
{
    int64_t i = 0;
    for (; i + 4 <= half; i += 4) {
        const float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + half + i), c = vld1q_f32(cos + i), s = vld1q_f32(sin + i);
        vst1q_f32(x + i, vfmsq_f32(vmulq_f32(a, c), b, s));
        vst1q_f32(x + half + i, vfmaq_f32(vmulq_f32(a, s), b, c));
    }
    for (; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = a * sin[i] + b * cos[i];
    }
}

void sr_rope_pairs_neon(float *x, const float *cos, const float *sin, int64_t half)
{
    int64_t i = 0;
    for (; i + 4 <= half; i += 4) {
        const float32x4x2_t v = vld2q_f32(x + 2 * i);
        const float32x4_t c = vld1q_f32(cos + i), s = vld1q_f32(sin + i);
        float32x4x2_t r;
        r.val[0] = vfmsq_f32(vmulq_f32(v.val[0], c), v.val[1], s);
        r.val[1] = vfmaq_f32(vmulq_f32(v.val[0], s), v.val[1], c);
        vst2q_f32(x + 2 * i, r);
    }
    if (i < half) sr_rope_pairs_scalar(x + 2 * i, cos + i, sin + i, half - i);
}

/* As exp512 of smallops_avx512.c; 2^n goes into the exponent in two steps, so that n = 128 gives infinity. */
static inline float32x4_t exp4(float32x4_t x)
{
    const float32x4_t limited = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-87.3f)), vdupq_n_f32(89.0f));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(limited, 1.44269504f));
    const float32x4_t r = vfmaq_f32(vfmsq_f32(limited, n, vdupq_n_f32(0.693359375f)), n, vdupq_n_f32(2.12194440e-4f));
    float32x4_t p = vdupq_n_f32(1.0f / 5040.0f);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 720.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    const int32x4_t whole = vcvtnq_s32_f32(n), half = vshrq_n_s32(whole, 1), rest = vsubq_s32(whole, half), one = vdupq_n_s32(127);
    const float32x4_t f0 = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, one), 23));
    const float32x4_t f1 = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, one), 23));
    return vmulq_f32(vmulq_f32(p, f0), f1);
}

void sr_silu_mul_neon(const float *gate, const float *up, float *h, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i), e = exp4(vnegq_f32(g));
        vst1q_f32(h + i, vmulq_f32(vdivq_f32(g, vaddq_f32(e, vdupq_n_f32(1.0f))), vld1q_f32(up + i)));
    }
    if (i < n) sr_silu_mul_scalar(gate + i, up + i, h + i, n - i);
}
