/* SPDX-License-Identifier: Apache-2.0
 *
 * Block layouts of the stored element types and their scalar reference conversions. Layout facts: docs/formats.md.
 * Knows no file format and no kernel.
 */
#ifndef SR_FORMATS_QUANT_H
#define SR_FORMATS_QUANT_H

#include "base/status.h"

struct dtype_traits {
    const char *name;     /* as sr_dtype_name */
    int32_t block_elems;  /* elements per block: 1, 32 or 256 */
    int32_t block_bytes;
};

/* NULL for a type id that is not supported. */
const struct dtype_traits *sr_dtype_find(int64_t type_id);

/* Sizes of any GGUF type id, supported or not, so that a file can be checked before its types are; NULL if never given out.
 * block_elems is 0 where only the name is known. */
const struct dtype_traits *sr_gguf_type_find(int64_t type_id);

/* Name of any GGUF type id, supported or not ("iq2_xs"); NULL if the id was never given out or was removed. */
const char *sr_gguf_type_name(int64_t type_id);

/* Bytes of a row of n elements; n must be a multiple of block_elems (assert). F8_E4M3, which only K/V rows have, is one a
 * byte, here and below without the scale that lies elsewhere. */
size_t sr_row_bytes(sr_dtype dtype, int64_t n);

/* dst[n] = the values of the row at src. n a multiple of block_elems. This is the specification of each type. */
void sr_dequantize_row(sr_dtype dtype, const void *src, float *dst, int64_t n);

/* Round-to-nearest quantisers: F32 F16 BF16 F8_E4M3 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0; with a search for scales: Q4_K Q5_K Q6_K. Others:
 * SR_ERR_UNSUPPORTED. */
sr_status sr_quantize_row(sr_dtype dtype, const float *src, void *dst, int64_t n, sr_error *err);

/* Index of the first element that is NaN or infinite in the row (float types), or whose block scale is
 * (quantized types); -1 if all are finite. */
int64_t sr_row_find_nonfinite(sr_dtype dtype, const void *src, int64_t n);

#endif
