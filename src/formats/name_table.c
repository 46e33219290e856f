/* SPDX-License-Identifier: Apache-2.0
 *
 * Open addressing with linear probing. A slot keeps 32 bits of the hash beside the index, so that a probe touches a
 * record only when the name is almost surely equal.
 */
#include "formats/name_table.h"

#include "base/memory.h"
#include "base/rng.h"

#include <assert.h>
#include <string.h>
#include <xxhash.h>

struct name_slot {
    uint32_t index_plus_1; /* 0: free */
    uint32_t tag;
};

sr_status sr_name_table_init(struct name_table *t, const void *records, size_t record_bytes, int64_t n, sr_error *err)
{
    assert(n >= 0 && n < INT32_MAX);
    uint64_t n_slots = 8;
    while (n_slots < 2 * (uint64_t)n) n_slots *= 2;
    t->slots = sr_alloc_zero((size_t)n_slots, sizeof(*t->slots));
    if (!t->slots) return sr_fail_memory(err, (size_t)n_slots * sizeof(*t->slots), "name table");
    t->mask = n_slots - 1;
    t->records = records;
    t->record_bytes = record_bytes;
    t->seed = sr_random_seed();
    return SR_OK;
}

void sr_name_table_fini(struct name_table *t)
{
    sr_free(t->slots);
    memset(t, 0, sizeof(*t));
}

static const struct gguf_str *name_at(const struct name_table *t, int64_t i)
{
    return (const struct gguf_str *)(const void *)(t->records + (size_t)i * t->record_bytes);
}

/* The slot that holds the name, or the free one where it belongs. */
static struct name_slot *probe(const struct name_table *t, const char *name, size_t bytes, uint32_t *tag)
{
    const uint64_t hash = XXH3_64bits_withSeed(name, bytes, t->seed);
    *tag = (uint32_t)(hash >> 32);
    for (uint64_t i = hash & t->mask;; i = (i + 1) & t->mask) {
        struct name_slot *s = &t->slots[i];
        if (s->index_plus_1 == 0) return s;
        if (s->tag != *tag) continue;
        const struct gguf_str *have = name_at(t, (int64_t)s->index_plus_1 - 1);
        if (have->bytes == bytes && memcmp(have->data, name, bytes) == 0) return s;
    }
}

int64_t sr_name_table_add(struct name_table *t, int64_t i)
{
    uint32_t tag;
    const struct gguf_str *name = name_at(t, i);
    struct name_slot *s = probe(t, name->data, name->bytes, &tag);
    if (s->index_plus_1) return (int64_t)s->index_plus_1 - 1;
    s->index_plus_1 = (uint32_t)i + 1;
    s->tag = tag;
    return -1;
}

int64_t sr_name_table_find(const struct name_table *t, const char *name, size_t bytes)
{
    uint32_t tag;
    if (!t->slots) return -1;
    return (int64_t)probe(t, name, bytes, &tag)->index_plus_1 - 1;
}
