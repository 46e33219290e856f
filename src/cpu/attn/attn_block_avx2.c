/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over a block of rows, AVX2.
 */
#include "cpu/attn/vec_avx2.h"
#include "cpu/attn/attn_block_body.h"

void sr_attn_block_avx2(const struct attn_block *a) { attn_block_body(a); }
