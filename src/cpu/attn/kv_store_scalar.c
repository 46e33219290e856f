/* SPDX-License-Identifier: Apache-2.0
 *
 * Floats into a cache row: the specification of every kv_store.
 */
#include "cpu/kernels.h"
#include "cpu/attn/kv_row.h"

#include <math.h>

static void store_q8_block(const float *x, uint8_t *dst)
{
    float max = 0, sum = 0;
    for (int i = 0; i < SR_KV_BLOCK; i++) {
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
        sum += x[i];
    }
    /* NaN anywhere, or infinities: the scale tells, the codes say nothing */
    const int bad = isnan(sum) || isinf(max);
    const float scale = bad ? NAN : max / 127.0f, inverse = !bad && max > 0 ? 127.0f / max : 0.0f;
    const uint16_t h = sr_f16_of_f32(scale);
    memcpy(dst, &h, 2);
    for (int i = 0; i < SR_KV_BLOCK; i++) dst[2 + i] = (uint8_t)(int8_t)(bad ? 0 : lrintf(x[i] * inverse));
}

/* The signed value of largest magnitude, the first of equals, lands on code 0: the bytes of sr_quantize_row and ggml. */
static void store_q4_block(const float *x, uint8_t *dst)
{
    float extreme = 0, sum = 0;
    for (int i = 0; i < SR_KV_BLOCK; i++) {
        extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
        sum += x[i];
    }
    const int bad = isnan(sum) || isinf(extreme);
    const float scale = bad ? NAN : extreme / -8.0f, one_over = 1.0f / scale;
    const float inverse = isfinite(one_over) ? one_over : 0.0f; /* else the scale is kept as 0 and any code means 0 */
    const uint16_t h = sr_f16_of_f32(scale);
    memcpy(dst, &h, 2);
    for (int i = 0; i < SR_KV_BLOCK / 2; i++) {
        const int low = bad ? 8 : (int)(x[i] * inverse + 8.5f), high = bad ? 8 : (int)(x[i + 16] * inverse + 8.5f);
        dst[2 + i] = (uint8_t)((low < 15 ? low : 15) | (high < 15 ? high : 15) << 4);
    }
}

void sr_kv_store_scalar(sr_dtype type, const float *src, void *dst, int64_t n)
{
    uint8_t *out = dst;
    uint16_t h;
    switch (type) {
    case SR_DTYPE_F32: memcpy(out, src, (size_t)n * 4); return;
    case SR_DTYPE_F16:
        for (int64_t i = 0; i < n; i++) {
            h = sr_f16_of_f32(src[i]);
            memcpy(out + 2 * i, &h, 2);
        }
        return;
    case SR_DTYPE_BF16:
        for (int64_t i = 0; i < n; i++) {
            h = sr_bf16_of_f32(src[i]);
            memcpy(out + 2 * i, &h, 2);
        }
        return;
    case SR_DTYPE_F8_E4M3:
        for (int64_t i = 0; i < n; i++) out[i] = sr_f8_of_f32(src[i]);
        return;
    default: break;
    }
    assert(sr_kv_is_blocked(type) && n % SR_KV_BLOCK == 0);
    for (int64_t b = 0; b < n; b += SR_KV_BLOCK, out += sr_kv_block_bytes(type)) {
        if (type == SR_DTYPE_Q8_0) store_q8_block(src + b, out);
        else store_q4_block(src + b, out);
    }
}
