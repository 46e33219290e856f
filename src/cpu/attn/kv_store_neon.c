/* SPDX-License-Identifier: Apache-2.0
 *
 * Floats into a cache row, NEON.
 */
#include "cpu/attn/vec_neon.h"
#include "cpu/attn/kv_store_body.h"

void sr_kv_store_neon(sr_dtype type, const float *src, void *dst, int64_t n) { kv_store_body(type, src, dst, n); }
