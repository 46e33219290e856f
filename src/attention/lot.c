/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows by lot (route.keep). Whether a row is drawn depends on the seed and the row alone, so the rows of a longer context
 * are those of a shorter one and some more: a step draws from the rows that are new, and a timed step from none.
 */
#include "attention/timeline.h"

static uint32_t lot_of(uint64_t seed, int32_t row)
{
    uint64_t x = (seed ^ (uint64_t)(uint32_t)row) * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(x >> 32);
}

/* How many of n rising numbers are below end. */
static int32_t count_below(const int32_t *rows, int32_t n, int32_t end)
{
    int32_t low = 0;
    while (low < n) {
        const int32_t middle = low + (n - low) / 2;
        if (rows[middle] < end) low = middle + 1;
        else n = middle;
    }
    return low;
}

const int32_t *sr_lot_get(struct attn_seq *s, int32_t end, int32_t *n)
{
    int32_t *rows = s->list + 2 * (size_t)s->a->c.n_kv_heads * (size_t)s->n_chunks * SR_CHUNK_ROWS;
    const uint64_t limit = (uint64_t)((double)s->route.keep * 0x1p32);
    for (; s->lot_to < end; s->lot_to++)
        if (lot_of(s->route.seed, s->lot_to) < limit) rows[s->n_lot++] = s->lot_to;
    *n = count_below(rows, s->n_lot, end);
    return rows;
}
