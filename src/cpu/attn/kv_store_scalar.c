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
    for (int i = 0; i < SR_Q8_BLOCK; i++) {
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
        sum += x[i];
    }
    /* NaN anywhere, or infinities: the scale tells, the codes say nothing */
    const int bad = isnan(sum) || isinf(max);
    const float scale = bad ? NAN : max / 127.0f, inverse = !bad && max > 0 ? 127.0f / max : 0.0f;
    const uint16_t h = sr_f16_of_f32(scale);
    memcpy(dst, &h, 2);
    for (int i = 0; i < SR_Q8_BLOCK; i++) dst[2 + i] = (uint8_t)(int8_t)(bad ? 0 : lrintf(x[i] * inverse));
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
    default: break;
    }
    assert(type == SR_DTYPE_Q8_0 && n % SR_Q8_BLOCK == 0);
    for (int64_t b = 0; b < n / SR_Q8_BLOCK; b++) store_q8_block(src + b * SR_Q8_BLOCK, out + b * SR_Q8_BYTES);
}
