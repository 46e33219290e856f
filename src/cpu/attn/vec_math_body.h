/* SPDX-License-Identifier: Apache-2.0
 *
 * On top of the vector layer: the exponential, scaled rows. Included after vec_avx2.h or vec_neon.h.
 */
#ifndef SR_CPU_ATTN_VEC_MATH_BODY_H
#define SR_CPU_ATTN_VEC_MATH_BODY_H

/* exp(x) for x <= 88 within 3 roundings; 0 below -87, where the result would leave the normal numbers; NaN stays.
 * x = n ln 2 + r, exp(r) = 1 + r + r^2 p(r) with p fitted for the least largest relative error on |r| <= ln 2 / 2. */
SR_INLINE vec vec_exp(vec x)
{
    const vec n = vec_round(vec_mul(x, vec_all(0x1.715476p+0f)));
    vec r = vec_fma(n, vec_all(-0x1.62e4p-1f), x);
    r = vec_fma(n, vec_all(-0x1.7f7d1cp-20f), r);
    vec p = vec_fma(vec_all(0x1.10628cp-7f), r, vec_all(0x1.572a0cp-5f));
    p = vec_fma(p, r, vec_all(0x1.5557aep-3f));
    p = vec_fma(p, r, vec_all(0x1.fffdfcp-2f));
    p = vec_fma(vec_mul(p, r), r, vec_add(r, vec_all(1.0f)));
    return vec_scale2(p, n, x, -87.0f);
}

/* Of the block that holds element i of a row of a blocked type. */
SR_INLINE float vec_scale(sr_dtype type, const uint8_t *row, int32_t i)
{
    uint16_t h;
    memcpy(&h, row + i / SR_KV_BLOCK * sr_kv_block_bytes(type), 2);
    return vec_f16(h);
}

/* Elements [i, i + VEC) of a row as they are meant, but for the scale of a scaled type. */
SR_INLINE vec vec_value(sr_dtype type, const uint8_t *row, int32_t i)
{
    const vec x = vec_row(type, row, i);
    return sr_kv_is_blocked(type) ? vec_mul(x, vec_all(vec_scale(type, row, i))) : x;
}

/* The same, elements [i + j, i + j + VEC): where j is a constant below 32 and i a multiple of 32, most of the work on a
 * blocked type's addresses is the compiler's, and the vectors of a block share its scale. */
SR_INLINE vec vec_value_at(sr_dtype type, const uint8_t *row, int32_t i, const int32_t j)
{
    if (!sr_kv_is_blocked(type)) return vec_value(type, row, i + j);
    return vec_value(type, row + i / SR_KV_BLOCK * sr_kv_block_bytes(type), j);
}

/* A whole row as floats; d is a multiple of 8. */
SR_INLINE void vec_unpack(sr_dtype type, const uint8_t *row, int32_t d, float *out)
{
    for (int32_t i = 0; i < d; i += VEC) vec_store(out + i, vec_value(type, row, i));
}

SR_INLINE void vec_unpack_any(sr_dtype type, const uint8_t *row, int32_t d, float *out)
{
    switch (type) {
    case SR_DTYPE_F32: vec_unpack(SR_DTYPE_F32, row, d, out); return;
    case SR_DTYPE_F16: vec_unpack(SR_DTYPE_F16, row, d, out); return;
    case SR_DTYPE_BF16: vec_unpack(SR_DTYPE_BF16, row, d, out); return;
    case SR_DTYPE_F8_E4M3: vec_unpack(SR_DTYPE_F8_E4M3, row, d, out); return;
    case SR_DTYPE_Q8_0: vec_unpack(SR_DTYPE_Q8_0, row, d, out); return;
    default: vec_unpack(SR_DTYPE_Q4_0, row, d, out); return;
    }
}

#endif
