/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal attention of a block of queries, AVX2.
 */
#include "cpu/attn/vec_avx2.h"
#include "cpu/attn/attn_flash_body.h"

void sr_attn_flash_avx2(const struct attn_flash *a) { attn_flash_body(a); }
