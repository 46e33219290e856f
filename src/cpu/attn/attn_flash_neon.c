/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal attention of a block of queries, NEON.
 */
#include "cpu/attn/vec_neon.h"
#include "cpu/attn/attn_flash_body.h"

void sr_attn_flash_neon(const struct attn_flash *a) { attn_flash_body(a); }
