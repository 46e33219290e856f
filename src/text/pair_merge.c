/* SPDX-License-Identifier: Apache-2.0
 *
 * A key that has waited in the heap may be stale: its symbols may have been joined to others. It is still
 * valid if the left symbol lives and its present pair has the key's rank, whatever that pair was when the key
 * was pushed, for then this join at this place is due now. So a key is 64 bits and needs no version.
 */
#include "text/pair_merge.h"

#include "base/memory.h"

/* Above this the scratch comes straight from the kernel: fresh pages cost the same at any size, where the
 * heap's allocator would recycle blocks up to a limit and make longer words seem dearer per byte than they
 * are. */
#define REGION_SYMBOLS ((size_t)1 << 14)

static void *scratch_new(size_t cap, size_t bytes)
{
    return cap > REGION_SYMBOLS ? sr_region_map(bytes) : sr_alloc(bytes);
}

static void scratch_free(void *p, size_t cap, size_t bytes)
{
    if (cap <= REGION_SYMBOLS)
        sr_free(p);
    else if (p)
        sr_region_unmap(p, bytes);
}

/* n - 1 pairs to begin with; each join takes one key and adds at most two, n - 1 times */
static size_t sym_bytes(size_t cap)
{
    return cap * sizeof(struct symbol);
}
static size_t heap_bytes(size_t cap)
{
    return 2 * cap * sizeof(uint64_t);
}

sr_status sr_pair_merge_reserve(struct pair_merge *m, size_t n, sr_error *err)
{
    size_t cap = 64;

    if (n <= m->cap) return SR_OK;
    while (cap < n) cap *= 2;
    sr_pair_merge_fini(m);
    m->cap = cap;
    m->sym = scratch_new(cap, sym_bytes(cap));
    m->heap = scratch_new(cap, heap_bytes(cap));
    if (m->sym && m->heap) return SR_OK;
    sr_pair_merge_fini(m);
    return sr_fail_memory(err, sym_bytes(cap) + heap_bytes(cap), "merging");
}

void sr_pair_merge_fini(struct pair_merge *m)
{
    scratch_free(m->sym, m->cap, sym_bytes(m->cap));
    scratch_free(m->heap, m->cap, heap_bytes(m->cap));
    *m = (struct pair_merge){0};
}

static void heap_push(struct pair_merge *m, uint64_t key)
{
    size_t i = m->n_heap++;

    while (i > 0 && m->heap[(i - 1) / 2] > key) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = key;
}

static uint64_t heap_pop(struct pair_merge *m)
{
    uint64_t top = m->heap[0], key = m->heap[--m->n_heap];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= m->n_heap) break;
        if (child + 1 < m->n_heap && m->heap[child + 1] < m->heap[child]) child++;
        if (m->heap[child] >= key) break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = key;
    return top;
}

static void offer(struct pair_merge *m, int32_t left, pair_rank_fn *rank, const void *ctx)
{
    uint32_t r;
    int32_t id;

    if (left < 0 || m->sym[left].next < 0) return;
    if (rank(ctx, &m->sym[left], &m->sym[m->sym[left].next], &r, &id))
        heap_push(m, (uint64_t)r << 32 | (uint32_t)left);
}

static void join(struct pair_merge *m, int32_t left, int32_t id)
{
    struct symbol *l = &m->sym[left], *r = &m->sym[l->next];

    l->id = id;
    l->bytes += r->bytes;
    l->next = r->next;
    r->next = SYMBOL_GONE;
    if (l->next >= 0) m->sym[l->next].prev = left;
}

void sr_pair_merge_run(struct pair_merge *m, int32_t n, pair_rank_fn *rank, const void *ctx)
{
    for (int32_t i = 0; i < n; i++) {
        m->sym[i].prev = i - 1;
        m->sym[i].next = i + 1 < n ? i + 1 : -1;
    }
    m->n_heap = 0;
    for (int32_t i = 0; i + 1 < n; i++) offer(m, i, rank, ctx);
    while (m->n_heap > 0) {
        uint64_t key = heap_pop(m);
        int32_t left = (int32_t)(uint32_t)key, id;
        struct symbol *l = &m->sym[left];
        uint32_t r;
        if (l->next < 0 || !rank(ctx, l, &m->sym[l->next], &r, &id) || r != key >> 32) continue;
        join(m, left, id);
        offer(m, l->prev, rank, ctx);
        offer(m, left, rank, ctx);
    }
}
