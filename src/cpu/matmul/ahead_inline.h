/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights are read once and in order, by more instructions than the processor's own prefetcher can look past: each kernel
 * asks for the lines a little ahead of what it reads. Beyond the end of a task lies the next one, mostly this thread's.
 */
#ifndef SR_CPU_MATMUL_AHEAD_INLINE_H
#define SR_CPU_MATMUL_AHEAD_INLINE_H

#include <stdint.h>

enum { AHEAD_BYTES = 3072, AHEAD_LINE = 64 };

/* The `bytes` from p on are about to be read: asks for as many further on. */
static inline __attribute__((always_inline)) void fetch_ahead(const uint8_t *p, int bytes)
{
    for (int i = 0; i < bytes; i += AHEAD_LINE) __builtin_prefetch(p + AHEAD_BYTES + i);
}

#endif
