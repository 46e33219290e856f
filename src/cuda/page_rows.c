/* SPDX-License-Identifier: Apache-2.0
 *
 * Only q8_0 lies otherwise: in a page the codes of all rows come first, then the scales.
 */
#include "cuda/page_rows.h"

#include "formats/quant.h"

#include <stdint.h>
#include <string.h>

enum { SCALE = 2, CODES = SR_KV_BLOCK };

void sr_rows_of_page(sr_dtype type, int32_t head_dim, const void *page, void *rows)
{
    const int32_t n_blocks = head_dim / SR_KV_BLOCK * SR_PAGE_ROWS;
    const uint8_t *codes = page, *scales = codes + (size_t)SR_PAGE_ROWS * (size_t)head_dim;
    uint8_t *to = rows;
    if (type != SR_DTYPE_Q8_0) {
        memcpy(rows, page, SR_PAGE_ROWS * sr_row_bytes(type, head_dim));
        return;
    }
    for (int32_t b = 0; b < n_blocks; b++, to += SCALE + CODES) {
        memcpy(to, scales + (size_t)b * SCALE, SCALE);
        memcpy(to + SCALE, codes + (size_t)b * CODES, CODES);
    }
}

void sr_page_of_rows(sr_dtype type, int32_t head_dim, const void *rows, void *page)
{
    const int32_t n_blocks = head_dim / SR_KV_BLOCK * SR_PAGE_ROWS;
    uint8_t *codes = page, *scales = codes + (size_t)SR_PAGE_ROWS * (size_t)head_dim;
    const uint8_t *from = rows;
    if (type != SR_DTYPE_Q8_0) {
        memcpy(page, rows, SR_PAGE_ROWS * sr_row_bytes(type, head_dim));
        return;
    }
    for (int32_t b = 0; b < n_blocks; b++, from += SCALE + CODES) {
        memcpy(scales + (size_t)b * SCALE, from, SCALE);
        memcpy(codes + (size_t)b * CODES, from + SCALE, CODES);
    }
}
