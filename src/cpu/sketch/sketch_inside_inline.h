/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of a scan that are in its range and not skipped, a bit each: some dozens of rows may be skipped, too many to be
 * looked for in every block.
 */
#ifndef SR_CPU_SKETCH_SKETCH_INSIDE_INLINE_H
#define SR_CPU_SKETCH_SKETCH_INSIDE_INLINE_H

#include "cpu/kernels.h"

#include <string.h>

struct inside { uint32_t bits[SR_CHUNK_ROWS / 32]; };

static inline __attribute__((always_inline)) void mark_inside(const struct sketch_scan *a, struct inside *in)
{
    const int32_t first = a->row0 / 32, last = (a->row1 - 1) / 32;
    memset(in, 0, sizeof(*in));
    for (int32_t i = first; i <= last; i++) in->bits[i] = ~0u;
    in->bits[first] &= ~0u << a->row0 % 32;
    in->bits[last] &= ~0u >> (31 - (a->row1 - 1) % 32);
    for (int32_t i = 0; i < a->n_skip; i++) {
        const int32_t row = a->skip[i] - a->first_row;
        in->bits[row / 32] &= ~(1u << row % 32);
    }
}

/* Of n <= 32 rows from `row` on, a multiple of n; n divides 32. */
static inline __attribute__((always_inline)) unsigned inside_at(const struct inside *in, int32_t row, int n)
{
    return in->bits[row / 32] >> row % 32 & (~0u >> (32 - n));
}

#endif
