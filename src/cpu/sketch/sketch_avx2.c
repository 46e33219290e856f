/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch kernels, AVX2.
 */
#include "cpu/attn/vec_avx2.h"
#include "cpu/sketch/sketch_body.h"

void sr_sketch_encode_avx2(const struct sketch_rows *a) { sketch_encode_body(a); }
void sr_sketch_scan_avx2(struct sketch_scan *a) { sketch_scan_body(a); }
void sr_sketch_share_avx2(const struct sketch_share *a) { sketch_share_body(a); }
