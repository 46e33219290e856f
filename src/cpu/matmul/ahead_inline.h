/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights are read once and in order, by more instructions than the processor's own prefetcher can look past: each kernel
 * asks for the lines ahead of what it reads, into the second cache first and near their turn into the first. Every line is
 * asked for once at each distance, and requests are spread among the products: several at once, or the same line again, take
 * the place of others under way (docs/notes/cpu-products.md). Beyond the end of a task lies the next one, mostly this thread's.
 */
#ifndef SR_CPU_MATMUL_AHEAD_INLINE_H
#define SR_CPU_MATMUL_AHEAD_INLINE_H

#include <stdint.h>

enum { AHEAD_NEAR = 768, AHEAD_FAR = 6144, AHEAD_LINE = 64 };

/* The `bytes` from p on are about to be read: asks for the lines that begin as many bytes further on. */
static inline __attribute__((always_inline)) void fetch_ahead(const uint8_t *p, int bytes)
{
    for (const uint8_t *line = p + (-(uintptr_t)p & (AHEAD_LINE - 1)); line < p + bytes; line += AHEAD_LINE) {
        __builtin_prefetch(line + AHEAD_NEAR, 0, 3);
        __builtin_prefetch(line + AHEAD_FAR, 0, 2);
    }
}

#endif
