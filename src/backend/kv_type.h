/* SPDX-License-Identifier: Apache-2.0
 *
 * The element types of a K/V cache: floats, or blocks of 32 elements that have an f16 scale before their codes. Q8_0:
 * one signed byte each. Q4_0: byte i holds element i in its low four bits and i + 16 in the high ones; the code less 8
 * counts. F8_E4M3: one byte each, times a power of two that the rows of a head share and that lies beside them. Valid as
 * C11 and C++17; all of it folds away where the type is a constant.
 */
#ifndef SR_BACKEND_KV_TYPE_H
#define SR_BACKEND_KV_TYPE_H

#include "sinkrouter/base.h"

#define SR_KV_BLOCK 32
#define SR_KV_TYPE_NAMES "f32, f16, bf16, q8_0, q4_0 or fp8"

static inline int sr_kv_is_blocked(sr_dtype t) { return t == SR_DTYPE_Q8_0 || t == SR_DTYPE_Q4_0; }
/* Rows are stored times the inverse of a scale that is not among their bytes. */
static inline int sr_kv_is_scaled(sr_dtype t) { return t == SR_DTYPE_F8_E4M3; }
static inline int sr_kv_is_type(sr_dtype t)
{
    return t == SR_DTYPE_F32 || t == SR_DTYPE_F16 || t == SR_DTYPE_BF16 || sr_kv_is_scaled(t) || sr_kv_is_blocked(t);
}

/* Bytes of a block of a blocked type: the scale and its codes. */
static inline int32_t sr_kv_block_bytes(sr_dtype t) { return t == SR_DTYPE_Q4_0 ? 2 + 16 : 2 + 32; }

#endif
