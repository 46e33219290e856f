/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over a block of rows, NEON.
 */
#include "cpu/attn/vec_neon.h"
#include "cpu/attn/attn_block_body.h"

void sr_attn_block_neon(const struct attn_block *a) { attn_block_body(a); }
