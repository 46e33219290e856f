/* SPDX-License-Identifier: Apache-2.0
 *
 * The element types of a K/V cache: floats, or blocks of 32 elements that have an f16 scale before their codes. Q8_0:
 * one signed byte each. Q4_0: byte i holds element i in its low four bits and i + 16 in the high ones; the code less 8
 * counts. F8_E4M3, on devices only: one byte each, times a scale that the rows of a head share. Valid as C11 and C++17;
 * all of it folds away where the type is a constant.
 */
#ifndef SR_BACKEND_KV_TYPE_H
#define SR_BACKEND_KV_TYPE_H

#include "sinkrouter/base.h"

#define SR_KV_BLOCK 32
#define SR_KV_TYPE_NAMES "f32, f16, bf16, q8_0 or q4_0"

static inline int sr_kv_is_blocked(sr_dtype t) { return t == SR_DTYPE_Q8_0 || t == SR_DTYPE_Q4_0; }
static inline int sr_kv_is_type(sr_dtype t)
{
    return t == SR_DTYPE_F32 || t == SR_DTYPE_F16 || t == SR_DTYPE_BF16 || sr_kv_is_blocked(t);
}

/* A type that no host keeps rows in. */
static inline int sr_kv_is_device_type(sr_dtype t) { return t == SR_DTYPE_F8_E4M3; }

/* Bytes of a block of a blocked type: the scale and its codes. */
static inline int32_t sr_kv_block_bytes(sr_dtype t) { return t == SR_DTYPE_Q4_0 ? 2 + 16 : 2 + 32; }

#endif
