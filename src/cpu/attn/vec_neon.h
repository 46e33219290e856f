/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector layer of the portable attention bodies for NEON: 4 floats. Same names as vec_avx2.h.
 */
#ifndef SR_CPU_ATTN_VEC_NEON_H
#define SR_CPU_ATTN_VEC_NEON_H

#include "base/half.h"
#include "backend/kv_type.h"

#include <arm_neon.h>
#include <string.h>

#define SR_INLINE static inline __attribute__((always_inline))
#define SR_UNROLL _Pragma("GCC unroll 16")

typedef float32x4_t vec;
typedef uint32x4_t veci;
enum { VEC = 4, TILE_ROWS = 6, TILE_VECS = 4 /* 24 sums in 32 registers */ };

SR_INLINE vec vec_load(const float *p) { return vld1q_f32(p); }
SR_INLINE void vec_store(float *p, vec x) { vst1q_f32(p, x); }
SR_INLINE vec vec_all(float x) { return vdupq_n_f32(x); }
SR_INLINE vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
SR_INLINE vec vec_sub(vec a, vec b) { return vsubq_f32(a, b); }
SR_INLINE vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
SR_INLINE vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
/* The larger; b where a is NaN. */
SR_INLINE vec vec_max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
SR_INLINE vec vec_abs(vec a) { return vabsq_f32(a); }
SR_INLINE float vec_sum(vec a) { return vaddvq_f32(a); }
/* The largest lane of a vector without NaN. */
SR_INLINE float vec_top(vec a) { return vmaxvq_f32(a); }

SR_INLINE unsigned vec_bits(uint32x4_t mask)
{
    const uint32_t weights[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, vld1q_u32(weights)));
}

/* Bit i: lane i of a >= lane i of b; and of NaN lanes. */
SR_INLINE unsigned vec_at_least(vec a, vec b) { return vec_bits(vcgeq_f32(a, b)); }
SR_INLINE unsigned vec_not_less(vec a, vec b) { return vec_bits(vmvnq_u32(vcltq_f32(a, b))); } /* or NaN */
SR_INLINE unsigned vec_nan(vec a) { return vec_bits(vmvnq_u32(vceqq_f32(a, a))); }

/* 2^n p where x >= least or NaN, else 0; n is whole and in -126..127. */
SR_INLINE vec vec_scale2(vec p, vec n, vec x, float least)
{
    const int32x4_t power = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    const uint32x4_t sum = vreinterpretq_u32_s32(vaddq_s32(vreinterpretq_s32_f32(p), power));
    return vreinterpretq_f32_u32(vandq_u32(vmvnq_u32(vcltq_f32(x, vdupq_n_f32(least))), sum));
}
SR_INLINE vec vec_round(vec x) { return vrndnq_f32(x); }
SR_INLINE vec vec_select_nan(vec r, vec x) { return vbslq_f32(vceqq_f32(x, x), r, x); }

/* e4m3 as f16 of 2^-8 times the value, which is a move of its bits, below the normal numbers too; but for NaN. */
SR_INLINE vec vec_of_f8(int8x8_t bytes)
{
    const uint16x4_t wide = vreinterpret_u16_s16(vget_low_s16(vmovl_s8(bytes))), most = vdup_n_u16(0x3f80);
    const uint16x4_t h = vand_u16(vshl_n_u16(wide, 7), vdup_n_u16(0xbf80));
    const uint16x4_t nan = vand_u16(vceq_u16(vand_u16(h, most), most), vdup_n_u16(0x7e00));
    return vmulq_f32(vcvt_f32_f16(vreinterpret_f16_u16(vorr_u16(h, nan))), vdupq_n_f32(256.0f));
}

/* Elements [i, i + VEC) of a row, `type` a constant; blocked and scaled types without their scale. */
SR_INLINE vec vec_row(sr_dtype type, const uint8_t *row, int32_t i)
{
    uint16_t h[4];
    int32_t w;
    switch (type) {
    case SR_DTYPE_F32: return vreinterpretq_f32_u8(vld1q_u8(row + 4 * i));
    case SR_DTYPE_F16:
        memcpy(h, row + 2 * i, 8);
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h)));
    case SR_DTYPE_BF16:
        memcpy(h, row + 2 * i, 8);
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(h), 16));
    case SR_DTYPE_F8_E4M3:
        memcpy(&w, row + i, 4);
        return vec_of_f8(vreinterpret_s8_s32(vdup_n_s32(w)));
    case SR_DTYPE_Q8_0:
        memcpy(&w, row + i / 32 * 34 + 2 + i % 32, 4);
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(w))))));
    default:
        memcpy(&w, row + i / 32 * 18 + 2 + i % 16, 4);
        w = (int32_t)((uint32_t)w >> i % 32 / 16 * 4 & 0x0f0f0f0fu);
        const int8x8_t code = vsub_s8(vreinterpret_s8_s32(vdup_n_s32(w)), vdup_n_s8(8));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(code))));
    }
}
SR_INLINE float vec_f16(uint16_t h) { return sr_f32_of_f16(h); }

SR_INLINE void vec_prefetch(const void *p) { __builtin_prefetch(p); }
SR_INLINE void vec_prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); } /* to the second cache */

/* ---- stores of the cache types ---- */

SR_INLINE void vec_store_f16(uint8_t *dst, vec x)
{
    /* the instruction keeps the payload of a NaN, the specification has one NaN of each sign */
    const uint32x4_t u = vreinterpretq_u32_f32(x);
    const uint32x4_t one = vorrq_u32(vandq_u32(u, vdupq_n_u32(0x80000000u)), vdupq_n_u32(0x7fc00000u));
    const vec y = vbslq_f32(vceqq_f32(x, x), x, vreinterpretq_f32_u32(one));
    uint16_t h[4];
    vst1_u16(h, vreinterpret_u16_f16(vcvt_f16_f32(y)));
    memcpy(dst, h, 8);
}

SR_INLINE void vec_store_bf16(uint8_t *dst, vec x)
{
    const uint32x4_t u = vreinterpretq_u32_f32(x), high = vshrq_n_u32(u, 16), odd = vandq_u32(high, vdupq_n_u32(1));
    const uint32x4_t round = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    uint16_t h[4];
    vst1_u16(h, vmovn_u32(vbslq_u32(vceqq_f32(x, x), round, vorrq_u32(high, vdupq_n_u32(0x40)))));
    memcpy(dst, h, 8);
}

/* As sr_f8_of_f32. */
SR_INLINE void vec_store_f8(uint8_t *dst, vec x)
{
    const vec mag = vabsq_f32(x);
    const uint32x4_t u = vreinterpretq_u32_f32(vminq_f32(mag, vdupq_n_f32(448.0f))), odd = vandq_u32(vshrq_n_u32(u, 20), vdupq_n_u32(1));
    const uint32x4_t round = vshrq_n_u32(vaddq_u32(vaddq_u32(u, odd), vdupq_n_u32(0x7ffff - 0x3c000000u)), 20);
    const uint32x4_t steps = vsubq_u32(vreinterpretq_u32_f32(vaddq_f32(mag, vdupq_n_f32(16384.0f))), vdupq_n_u32(0x46800000));
    const uint32x4_t sign = vandq_u32(vshrq_n_u32(vreinterpretq_u32_f32(x), 24), vdupq_n_u32(0x80));
    const uint32x4_t r = vorrq_u32(vbslq_u32(vcltq_f32(mag, vdupq_n_f32(0x1p-6f)), steps, round), sign);
    const uint16x4_t h = vmovn_u32(vbslq_u32(vceqq_f32(x, x), r, vdupq_n_u32(0x7f)));
    const uint32_t w = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(h, h))), 0);
    memcpy(dst, &w, 4);
}

/* Rounded to nearest, ties to even; |x| <= 127. */
SR_INLINE void vec_store_i8(uint8_t *dst, vec x)
{
    const int16x4_t h = vmovn_s32(vcvtnq_s32_f32(x));
    const int8x8_t b = vmovn_s16(vcombine_s16(h, h));
    const int32_t w = vget_lane_s32(vreinterpret_s32_s8(b), 0);
    memcpy(dst, &w, 4);
}

/* Bytes of a code from `low` and one from `high`: both are cut to whole numbers and 15 at most; none is negative. */
SR_INLINE void vec_store_nibbles(uint8_t *dst, vec low, vec high)
{
    const uint32x4_t most = vdupq_n_u32(15);
    const uint32x4_t a = vminq_u32(vcvtq_u32_f32(low), most), b = vminq_u32(vcvtq_u32_f32(high), most);
    const uint16x4_t h = vmovn_u32(vorrq_u32(a, vshlq_n_u32(b, 4)));
    const uint32_t w = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(h, h))), 0);
    memcpy(dst, &w, 4);
}

/* ---- codes ---- */

SR_INLINE veci vec_words(const uint8_t *p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
/* (word >> shift) & mask as floats */
SR_INLINE vec vec_code(veci words, int shift, int mask)
{
    return vcvtq_f32_u32(vandq_u32(vshlq_u32(words, vdupq_n_s32(-shift)), vdupq_n_u32((uint32_t)mask)));
}

#endif
