/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights are read once and in order, by more instructions than the processor's own prefetcher can look past: each kernel
 * asks for the lines ahead of what it reads. Beyond the end of a task lies the next one, mostly this thread's. What is best
 * is measured (docs/speed.md, "Few tokens"): AVX2 and floats gain by two distances, VNNI's quantized types by one.
 */
#ifndef SR_CPU_MATMUL_AHEAD_INLINE_H
#define SR_CPU_MATMUL_AHEAD_INLINE_H

#include <stdint.h>

enum { AHEAD_BYTES = 3072, AHEAD_NEAR = 768, AHEAD_FAR = 6144, AHEAD_LINE = 64 };

/* The `bytes` from p on are about to be read: asks for as many further on. Lines at the ends may be asked for twice. */
static inline __attribute__((always_inline)) void fetch_ahead(const uint8_t *p, int bytes)
{
    for (int i = 0; i < bytes; i += AHEAD_LINE) __builtin_prefetch(p + AHEAD_BYTES + i);
}

/* The same, each line once: those that begin within. */
static inline __attribute__((always_inline)) void fetch_lines(const uint8_t *p, int bytes)
{
    for (const uint8_t *line = p + (-(uintptr_t)p & (AHEAD_LINE - 1)); line < p + bytes; line += AHEAD_LINE) __builtin_prefetch(line + AHEAD_BYTES);
}

/* The same at two distances, into the second cache and into the first. */
static inline __attribute__((always_inline)) void fetch_lines_twice(const uint8_t *p, int bytes)
{
    for (const uint8_t *line = p + (-(uintptr_t)p & (AHEAD_LINE - 1)); line < p + bytes; line += AHEAD_LINE) {
        __builtin_prefetch(line + AHEAD_NEAR, 0, 3);
        __builtin_prefetch(line + AHEAD_FAR, 0, 2);
    }
}

#endif
