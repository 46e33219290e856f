/* SPDX-License-Identifier: Apache-2.0
 *
 * A cache row as floats, for the scalar kernels and for the ops that read a row or two. Without the scale of a scaled type.
 */
#ifndef SR_CPU_ATTN_KV_ROW_H
#define SR_CPU_ATTN_KV_ROW_H

#include "base/half.h"
#include "backend/args.h"

#include <assert.h>

static inline void sr_row_load(sr_dtype type, const uint8_t *src, float *dst, int32_t n)
{
    uint16_t h;
    switch (type) {
    case SR_DTYPE_F32: memcpy(dst, src, (size_t)n * 4); return;
    case SR_DTYPE_F16:
        for (int32_t i = 0; i < n; i++) {
            memcpy(&h, src + 2 * i, 2);
            dst[i] = sr_f32_of_f16(h);
        }
        return;
    case SR_DTYPE_BF16:
        for (int32_t i = 0; i < n; i++) {
            memcpy(&h, src + 2 * i, 2);
            dst[i] = sr_f32_of_bf16(h);
        }
        return;
    case SR_DTYPE_F8_E4M3:
        for (int32_t i = 0; i < n; i++) dst[i] = sr_f32_of_f8(src[i]);
        return;
    default: break;
    }
    assert(sr_kv_is_blocked(type) && n % SR_KV_BLOCK == 0);
    for (int32_t i = 0; i < n; i++) {
        const uint8_t *block = src + i / SR_KV_BLOCK * sr_kv_block_bytes(type);
        const int e = i % SR_KV_BLOCK, code = type == SR_DTYPE_Q8_0 ? (int8_t)block[2 + e] : (block[2 + e % 16] >> e / 16 * 4 & 15) - 8;
        memcpy(&h, block, 2);
        dst[i] = (float)code * sr_f32_of_f16(h);
    }
}

/* Address of row i. */
static inline uint8_t *sr_row_at(const struct kv_rows *r, int64_t i, size_t row_bytes)
{
    return (uint8_t *)r->chunk[i / SR_CHUNK_ROWS] + (size_t)(i % SR_CHUNK_ROWS) * row_bytes;
}

#endif
