/* SPDX-License-Identifier: Apache-2.0
 *
 * Floats into a cache row in terms of the vector layer, byte for byte as the scalar kv_store.
 */
#ifndef SR_CPU_ATTN_KV_STORE_BODY_H
#define SR_CPU_ATTN_KV_STORE_BODY_H

#include "base/half.h"
#include "cpu/kernels.h"

#include <assert.h>
#include <math.h>

SR_INLINE void store_q8_block(const float *x, uint8_t *dst)
{
    vec max = vec_all(0);
    unsigned nan = 0;
    for (int i = 0; i < 32; i += VEC) {
        nan |= vec_nan(vec_load(x + i));
        max = vec_max(vec_abs(vec_load(x + i)), max);
    }
    const float top = vec_top(max);
    const int bad = nan || isinf(top);
    const float scale = bad ? NAN : top / 127.0f, inverse = !bad && top > 0 ? 127.0f / top : 0.0f;
    const uint16_t h = sr_f16_of_f32(scale);
    memcpy(dst, &h, 2);
    for (int i = 0; i < 32; i += VEC) vec_store_i8(dst + 2 + i, bad ? vec_all(0) : vec_mul(vec_load(x + i), vec_all(inverse)));
}

SR_INLINE void store_q4_block(const float *x, uint8_t *dst)
{
    vec max = vec_all(0);
    unsigned nan = 0;
    uint32_t most = 0;
    for (int i = 0; i < 32; i += VEC) {
        nan |= vec_nan(vec_load(x + i));
        max = vec_max(vec_abs(vec_load(x + i)), max);
    }
    const float top = vec_top(max);
    for (int i = 0; i < 32; i += VEC) most |= (uint32_t)vec_at_least(vec_abs(vec_load(x + i)), vec_all(top)) << i;
    const int bad = nan || isinf(top);
    const float scale = bad ? NAN : (top > 0 ? x[__builtin_ctz(most)] : 0.0f) / -8.0f, one_over = 1.0f / scale;
    const vec inverse = vec_all(isfinite(one_over) ? one_over : 0.0f), half = vec_all(8.5f);
    const uint16_t h = sr_f16_of_f32(scale);
    memcpy(dst, &h, 2);
    for (int i = 0; i < 16; i += VEC) {
        const vec low = vec_add(vec_mul(vec_load(x + i), inverse), half), high = vec_add(vec_mul(vec_load(x + i + 16), inverse), half);
        vec_store_nibbles(dst + 2 + i, bad ? half : low, bad ? half : high);
    }
}

SR_INLINE void kv_store_body(sr_dtype type, const float *src, uint8_t *dst, int64_t n)
{
    switch (type) {
    case SR_DTYPE_F32: memcpy(dst, src, (size_t)n * 4); return;
    case SR_DTYPE_F16:
        for (int64_t i = 0; i < n; i += VEC) vec_store_f16(dst + 2 * i, vec_load(src + i));
        return;
    case SR_DTYPE_BF16:
        for (int64_t i = 0; i < n; i += VEC) vec_store_bf16(dst + 2 * i, vec_load(src + i));
        return;
    case SR_DTYPE_F8_E4M3:
        for (int64_t i = 0; i < n; i += VEC) vec_store_f8(dst + i, vec_load(src + i));
        return;
    default: break;
    }
    assert(sr_kv_is_blocked(type) && n % SR_KV_BLOCK == 0);
    for (int64_t b = 0; b < n; b += SR_KV_BLOCK, dst += sr_kv_block_bytes(type)) {
        if (type == SR_DTYPE_Q8_0) store_q8_block(src + b, dst);
        else store_q4_block(src + b, dst);
    }
}

#endif
