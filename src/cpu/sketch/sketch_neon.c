/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch kernels, NEON.
 */
#include "cpu/attn/vec_neon.h"
#include "cpu/sketch/sketch_body.h"

void sr_sketch_encode_neon(const struct sketch_rows *a) { sketch_encode_body(a); }
void sr_sketch_scan_neon(struct sketch_scan *a) { sketch_scan_body(a, NULL, NULL); }
void sr_sketch_share_neon(const struct sketch_share *a) { sketch_share_body(a); }
