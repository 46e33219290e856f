/* SPDX-License-Identifier: Apache-2.0
 *
 * How a device's pages of K or V (attn_cuda.h) and the host's rows go into each other, for session files. On the host; plain
 * C, so that it is tested without a GPU.
 */
#ifndef SR_CUDA_PAGE_ROWS_H
#define SR_CUDA_PAGE_ROWS_H

#include "backend/args.h"

/* SR_PAGE_ROWS rows; page and rows are as many bytes and do not overlap. */
void sr_rows_of_page(sr_dtype type, int32_t head_dim, const void *page, void *rows);
void sr_page_of_rows(sr_dtype type, int32_t head_dim, const void *rows, void *page);

#endif
