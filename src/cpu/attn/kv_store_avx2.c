/* SPDX-License-Identifier: Apache-2.0
 *
 * Floats into a cache row, AVX2.
 */
#include "cpu/attn/vec_avx2.h"
#include "cpu/attn/kv_store_body.h"

void sr_kv_store_avx2(sr_dtype type, const float *src, void *dst, int64_t n) { kv_store_body(type, src, dst, n); }
