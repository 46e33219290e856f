/* SPDX-License-Identifier: Apache-2.0
 *
 * Quantizers of the types with 256 elements to a block: a block's groups get scales (and minima) by least squares over
 * a few candidate grids, weighted towards large elements, then both are rounded to the block's own scale, and the codes
 * are taken once more for what was stored. The same bits on every machine: plain float, no contraction.
 */
#ifndef SR_FORMATS_QUANT_K_H
#define SR_FORMATS_QUANT_K_H

#include <stdint.h>

/* x[256], all finite and at most 65,504 in magnitude, to one block. */
void sr_quantize_block_q4_k(const float *x, uint8_t *block);
void sr_quantize_block_q5_k(const float *x, uint8_t *block);
void sr_quantize_block_q6_k(const float *x, uint8_t *block);

#endif
