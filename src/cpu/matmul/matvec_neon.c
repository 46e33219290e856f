/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows times activations, NEON of the base architecture (no dot-product instructions). As in the AVX2 file a quantized
 * row is read in *pieces* of 32 codes with one scale or two; codes are made signed here, so only types with a stored
 * minimum have an offset. Two products of codes fit 16 bits: at most 2 * 128 * 127.
 */
#include "cpu/kernels.h"

#include <arm_neon.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

struct piece {
    int8x16_t lo, hi;
    float scale[2], offset[2]; /* of the halves; only [0] where the form has one scale */
};

/* Piece j of the block at b. */
typedef struct piece piece_fn(const uint8_t *b, int j);

struct form {
    int elems, bytes;   /* of a block */
    int halves, offsets;
    piece_fn *piece;
};

INLINE float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

/* (v >> n) & mask in each byte. */
INLINE uint8x16_t field(const uint8_t *p, int n, int mask)
{
    return vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)-n)), vdupq_n_u8((uint8_t)mask));
}

INLINE int8x16_t minus(uint8x16_t v, int k) { return vsubq_s8(vreinterpretq_s8_u8(v), vdupq_n_s8((int8_t)k)); }

INLINE struct piece one_scale(uint8x16_t lo, uint8x16_t hi, int less, const uint8_t *d)
{
    return (struct piece){minus(lo, less), minus(hi, less), {half_at(d), 0}, {0, 0}};
}

INLINE struct piece scale_and_min(uint8x16_t lo, uint8x16_t hi, const uint8_t *d)
{
    return (struct piece){minus(lo, 0), minus(hi, 0), {half_at(d), 0}, {half_at(d + 2), 0}};
}

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------- */

INLINE uint8x16_t low4(const uint8_t *p) { return field(p, 0, 15); }
INLINE uint8x16_t high4(const uint8_t *p) { return field(p, 4, 15); }

/* 16 where the byte's bit is set among 16 bits at p. */
INLINE uint8x16_t fifth_bits(const uint8_t *p)
{
    static const uint8_t bits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t spread = vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1]));
    return vandq_u8(vtstq_u8(spread, vld1q_u8(bits)), vdupq_n_u8(16));
}

INLINE struct piece piece_q4_0(const uint8_t *b, int j) { return (void)j, one_scale(low4(b + 2), high4(b + 2), 8, b); }
INLINE struct piece piece_q4_1(const uint8_t *b, int j) { return (void)j, scale_and_min(low4(b + 4), high4(b + 4), b); }
INLINE struct piece piece_q5_0(const uint8_t *b, int j)
{
    return (void)j, one_scale(vorrq_u8(low4(b + 6), fifth_bits(b + 2)), vorrq_u8(high4(b + 6), fifth_bits(b + 4)), 16, b);
}
INLINE struct piece piece_q5_1(const uint8_t *b, int j)
{
    return (void)j, scale_and_min(vorrq_u8(low4(b + 8), fifth_bits(b + 4)), vorrq_u8(high4(b + 8), fifth_bits(b + 6)), b);
}
INLINE struct piece piece_q8_0(const uint8_t *b, int j) { return (void)j, one_scale(vld1q_u8(b + 2), vld1q_u8(b + 18), 0, b); }
INLINE struct piece piece_iq4_nl(const uint8_t *b, int j)
{
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const int8x16_t table = vld1q_s8(values);
    (void)j;
    return (struct piece){vqtbl1q_s8(table, low4(b + 2)), vqtbl1q_s8(table, high4(b + 2)), {half_at(b), 0}, {0, 0}};
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------ */

INLINE uint8x16_t high_bit(const uint8_t *p, int j, int value)
{
    return vandq_u8(vtstq_u8(vld1q_u8(p), vdupq_n_u8((uint8_t)(1u << j))), vdupq_n_u8((uint8_t)value));
}

INLINE struct piece k_scale_min(uint8x16_t lo, uint8x16_t hi, const uint8_t *b, int j)
{
    const uint8_t *sc = b + 4;
    const int scale = j < 4 ? sc[j] & 63 : (sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4;
    const int min = j < 4 ? sc[j + 4] & 63 : sc[j + 4] >> 4 | (sc[j] >> 6) << 4;
    return (struct piece){minus(lo, 0), minus(hi, 0), {half_at(b) * (float)scale, 0}, {-half_at(b + 2) * (float)min, 0}};
}

INLINE struct piece piece_q4_k(const uint8_t *b, int j)
{
    const uint8_t *qs = b + 16 + 32 * (j / 2);
    return k_scale_min(field(qs, 4 * (j % 2), 15), field(qs + 16, 4 * (j % 2), 15), b, j);
}

INLINE struct piece piece_q5_k(const uint8_t *b, int j)
{
    const uint8_t *qs = b + 48 + 32 * (j / 2);
    return k_scale_min(vorrq_u8(field(qs, 4 * (j % 2), 15), high_bit(b + 16, j, 16)),
                       vorrq_u8(field(qs + 16, 4 * (j % 2), 15), high_bit(b + 32, j, 16)), b, j);
}

INLINE struct piece two_scales(int8x16_t lo, int8x16_t hi, float d, int s0, int s1)
{
    return (struct piece){lo, hi, {d * (float)s0, d * (float)s1}, {0, 0}};
}

INLINE struct piece piece_q2_k(const uint8_t *b, int j)
{
    const uint8_t *qs = b + 16 + 32 * (j / 4);
    const float dmin = -half_at(b + 82);
    struct piece p = two_scales(minus(field(qs, 2 * (j % 4), 3), 0), minus(field(qs + 16, 2 * (j % 4), 3), 0), half_at(b + 80),
                                b[2 * j] & 15, b[2 * j + 1] & 15);
    p.offset[0] = dmin * (float)(b[2 * j] >> 4);
    p.offset[1] = dmin * (float)(b[2 * j + 1] >> 4);
    return p;
}

INLINE int q3_k_scale(const uint8_t *sc, int g)
{
    return ((g < 8 ? sc[g] & 15 : sc[g - 8] >> 4) | (sc[8 + g % 4] >> (2 * (g / 4)) & 3) << 4) - 32;
}

INLINE struct piece piece_q3_k(const uint8_t *b, int j)
{
    const uint8_t *qs = b + 32 + 32 * (j / 4);
    const uint8x16_t lo = vorrq_u8(field(qs, 2 * (j % 4), 3), high_bit(b, j, 4));
    const uint8x16_t hi = vorrq_u8(field(qs + 16, 2 * (j % 4), 3), high_bit(b + 16, j, 4));
    return two_scales(minus(lo, 4), minus(hi, 4), half_at(b + 108), q3_k_scale(b + 96, 2 * j), q3_k_scale(b + 96, 2 * j + 1));
}

INLINE uint8x16_t six_bits(const uint8_t *low, const uint8_t *high, int k)
{
    return vorrq_u8(field(low, k >= 2 ? 4 : 0, 15), vshlq_n_u8(field(high, 2 * k, 3), 4));
}

INLINE struct piece piece_q6_k(const uint8_t *b, int j)
{
    const int k = j % 4;
    const uint8_t *low = b + 64 * (j / 4) + 32 * (k & 1), *high = b + 128 + 32 * (j / 4);
    return two_scales(minus(six_bits(low, high, k), 32), minus(six_bits(low + 16, high + 16, k), 32), half_at(b + 208),
                      (int8_t)b[192 + 2 * j], (int8_t)b[193 + 2 * j]);
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

INLINE int32x4_t fours(int8x16_t w, int8x16_t x)
{
    return vpaddlq_s16(vmlal_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vget_high_s8(w), vget_high_s8(x)));
}

/* The half of a piece at element `at` of the codes. */
INLINE float32x4_t dot16(int8x16_t w, const struct acts *x, int64_t at)
{
    return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(fours(w, vld1q_s8(x->q + at)), 7), fours(w, vld1q_s8(x->q_low + at))));
}

INLINE float dot_row(const struct acts *x, int32_t t, const uint8_t *b, int64_t n_in, struct form f)
{
    float32x4_t lo = vdupq_n_f32(0), hi = vdupq_n_f32(0);
    float shift = 0.0f;
    for (int64_t e = 0; e < n_in; e += f.elems, b += f.bytes)
        for (int j = 0; j < f.elems / 32; j++) {
            const int64_t at = t * x->pad + e + 32 * j;
            const struct piece p = f.piece(b, j);
            const float d = x->d[at / 32];
            lo = vfmaq_n_f32(lo, dot16(p.lo, x, at), p.scale[0] * d);
            hi = vfmaq_n_f32(hi, dot16(p.hi, x, at + 16), (f.halves ? p.scale[1] : p.scale[0]) * d);
            if (f.offsets && f.halves) shift += p.offset[0] * x->s16[at / 16] + p.offset[1] * x->s16[at / 16 + 1];
            else if (f.offsets) shift += p.offset[0] * x->s32[at / 32];
        }
    return vaddvq_f32(vaddq_f32(lo, hi)) + shift;
}

INLINE void rows(const struct matvec_args *a, struct form f)
{
    for (int64_t r = 0; r < a->n_rows; r++)
        for (int32_t t = 0; t < a->n; t++)
            a->y[t * a->y_stride + r] = dot_row(a->acts, t, a->w + (size_t)r * a->row_bytes, a->n_in, f) + (a->bias ? a->bias[r] : 0.0f);
}

void sr_matvec_q4_0_neon(const struct matvec_args *a) { rows(a, (struct form){32, 18, 0, 0, piece_q4_0}); }
void sr_matvec_q4_1_neon(const struct matvec_args *a) { rows(a, (struct form){32, 20, 0, 1, piece_q4_1}); }
void sr_matvec_q5_0_neon(const struct matvec_args *a) { rows(a, (struct form){32, 22, 0, 0, piece_q5_0}); }
void sr_matvec_q5_1_neon(const struct matvec_args *a) { rows(a, (struct form){32, 24, 0, 1, piece_q5_1}); }
void sr_matvec_q8_0_neon(const struct matvec_args *a) { rows(a, (struct form){32, 34, 0, 0, piece_q8_0}); }
void sr_matvec_iq4_nl_neon(const struct matvec_args *a) { rows(a, (struct form){32, 18, 0, 0, piece_iq4_nl}); }
void sr_matvec_q2_k_neon(const struct matvec_args *a) { rows(a, (struct form){256, 84, 1, 1, piece_q2_k}); }
void sr_matvec_q3_k_neon(const struct matvec_args *a) { rows(a, (struct form){256, 110, 1, 0, piece_q3_k}); }
void sr_matvec_q4_k_neon(const struct matvec_args *a) { rows(a, (struct form){256, 144, 0, 1, piece_q4_k}); }
void sr_matvec_q5_k_neon(const struct matvec_args *a) { rows(a, (struct form){256, 176, 0, 1, piece_q5_k}); }
void sr_matvec_q6_k_neon(const struct matvec_args *a) { rows(a, (struct form){256, 210, 1, 0, piece_q6_k}); }

/* ---- float rows --------------------------------------------------------------------------------------------------- */

typedef float32x4_t load_fn(const uint8_t *row, int64_t i); /* 4 weights */
typedef float load_one_fn(const uint8_t *row, int64_t i);

INLINE float32x4_t load_f32(const uint8_t *w, int64_t i) { return vreinterpretq_f32_u8(vld1q_u8(w + 4 * i)); }
INLINE uint16x4_t load_u16(const uint8_t *w, int64_t i) { return vreinterpret_u16_u8(vld1_u8(w + 2 * i)); }
INLINE float32x4_t load_f16(const uint8_t *w, int64_t i) { return vcvt_f32_f16(vreinterpret_f16_u16(load_u16(w, i))); }
INLINE float32x4_t load_bf16(const uint8_t *w, int64_t i) { return vreinterpretq_f32_u32(vshll_n_u16(load_u16(w, i), 16)); }
INLINE float one_f32(const uint8_t *w, int64_t i)
{
    float v;
    memcpy(&v, w + 4 * i, 4);
    return v;
}
INLINE float one_f16(const uint8_t *w, int64_t i) { return half_at(w + 2 * i); }
INLINE float one_bf16(const uint8_t *w, int64_t i)
{
    const uint8_t wide[4] = {0, 0, w[2 * i], w[2 * i + 1]};
    return one_f32(wide, 0);
}

INLINE float dot(const uint8_t *w, const float *x, int64_t n, load_fn *load, load_one_fn *one)
{
    float32x4_t acc[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) acc[j] = vfmaq_f32(acc[j], load(w, i + 4 * j), vld1q_f32(x + i + 4 * j));
    for (; i + 4 <= n; i += 4) acc[0] = vfmaq_f32(acc[0], load(w, i), vld1q_f32(x + i));
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(acc[0], acc[1]), vaddq_f32(acc[2], acc[3])));
    for (; i < n; i++) sum += one(w, i) * x[i];
    return sum;
}

INLINE void float_rows(const struct matvec_args *a, load_fn *load, load_one_fn *one)
{
    for (int64_t r = 0; r < a->n_rows; r++)
        for (int32_t t = 0; t < a->n; t++) {
            const float sum = dot(a->w + (size_t)r * a->row_bytes, a->acts->x + t * a->acts->x_stride, a->n_in, load, one);
            a->y[t * a->y_stride + r] = sum + (a->bias ? a->bias[r] : 0.0f);
        }
}

void sr_matvec_f32_neon(const struct matvec_args *a) { float_rows(a, load_f32, one_f32); }
void sr_matvec_f16_neon(const struct matvec_args *a) { float_rows(a, load_f16, one_f16); }
void sr_matvec_bf16_neon(const struct matvec_args *a) { float_rows(a, load_bf16, one_bf16); }
