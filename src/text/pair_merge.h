/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop that both kinds of tokenizer share: repeatedly join the neighbouring pair of best rank, leftmost
 * first on ties, until no pair can be joined. Symbols are a linked list in an array; candidates wait in a
 * heap keyed by (rank, left position) and are checked again when they come up, so the cost is O(n log n) for
 * n symbols.
 */
#ifndef SR_TEXT_PAIR_MERGE_H
#define SR_TEXT_PAIR_MERGE_H

#include "base/status.h"

#define SYMBOL_GONE (-2)

struct symbol {
    int32_t prev, next; /* -1: none; next of a symbol that was joined to its left is SYMBOL_GONE */
    int32_t id;         /* token, or -1 */
    uint32_t at, bytes; /* in the text that the caller cut into symbols */
};

struct pair_merge {
    struct symbol *sym;
    uint64_t *heap;
    size_t n_heap;
    size_t cap; /* symbols */
};

/* Whether l and r (neighbours) can be joined; the smaller rank goes first. A rank depends on the two only. */
typedef int pair_rank_fn(const void *ctx, const struct symbol *l, const struct symbol *r, uint32_t *rank,
                         int32_t *id);

/* Room for n symbols, kept for later calls; 0 < n < 2^31. */
sr_status sr_pair_merge_reserve(struct pair_merge *m, size_t n, sr_error *err);
void sr_pair_merge_fini(struct pair_merge *m);

/* sym[0..n) hold id, at and bytes; the links are set here. Afterwards follow next from sym[0]. */
void sr_pair_merge_run(struct pair_merge *m, int32_t n, pair_rank_fn *rank, const void *ctx);

#endif
