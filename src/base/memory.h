/* SPDX-License-Identifier: Apache-2.0
 *
 * Allocation: every heap block of the library comes from here, so that tests can count allocations and make the
 * n-th one fail. Blocks are 64-byte aligned. No function prints; NULL means no memory.
 */
#ifndef SR_BASE_MEMORY_H
#define SR_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

void *sr_alloc(size_t bytes);                     /* uninitialised; bytes == 0 gives a valid block */
void *sr_alloc_zero(size_t count, size_t bytes);  /* overflow-checked product, zeroed */
void *sr_realloc(void *block, size_t old_bytes, size_t bytes); /* keeps the first min(old, new) bytes */
void sr_free(void *block);                        /* NULL is fine */

/* Large regions straight from the kernel: zeroed, lazily committed, advised to use huge pages, over all memory nodes
 * (base/nodes.h). */
void *sr_region_map(size_t bytes);
void sr_region_unmap(void *region, size_t bytes);

/* Physical memory that can still be had, in bytes (MemAvailable and the cgroup and address-space limits,
 * whichever is least); UINT64_MAX where the system does not tell. */
uint64_t sr_memory_available(void);

/* Checked arithmetic for sizes that come from a file or a user: 0 and *out set, or -1 on overflow. */
static inline int sr_mul_size(size_t a, size_t b, size_t *out) { return __builtin_mul_overflow(a, b, out) ? -1 : 0; }
static inline int sr_add_size(size_t a, size_t b, size_t *out) { return __builtin_add_overflow(a, b, out) ? -1 : 0; }

/* Test hooks: number of allocations (sr_alloc*, sr_realloc, sr_region_map) so far; make the n-th next one fail
 * (1 = the next), 0 = never. */
uint64_t sr_alloc_count(void);
void sr_alloc_fail_at(uint64_t n);

/* Scratch by measuring: with base NULL the arena only counts; with a base it places. A `_layout` function that
 * takes an arena lists the buffers once, so that size and placement cannot disagree. */
struct arena {
    uint8_t *base; /* NULL: measure */
    size_t used;
};
void *sr_arena_take(struct arena *a, size_t count, size_t elem_bytes); /* 64-byte aligned; NULL while measuring */

#endif
