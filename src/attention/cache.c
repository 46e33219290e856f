/* SPDX-License-Identifier: Apache-2.0
 *
 * Storage of a sequence: chunks of 1,024 rows, mapped as the sequence grows and never moved, so that a row's
 * address holds as long as the sequence. Chunks that are asked for at once, those of a prompt, are one region, in which
 * the rows of a unit follow one another through all of them: a stream of rows does not end at each chunk. Nothing here
 * knows what rows mean.
 */
#include "attention/timeline.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"

static size_t n_units(const struct attn_seq *s)
{
    return (size_t)s->a->c.n_layers * (size_t)s->a->c.n_kv_heads;
}

size_t sr_cache_chunk_bytes(const struct attn_seq *s)
{
    return n_units(s) * SR_CHUNK_ROWS * (s->shape.k_row_bytes + s->shape.v_row_bytes);
}

/* Whether chunks have room for the rows of the band in use and of the next one. A device encodes all at the change. */
static int has_two_halves(const struct attn_seq *s)
{
    return !s->a->backend->has_own_memory && s->max_len > SR_BAND_TOKENS && sr_band_left(&s->a->rotation, 1) != INT32_MAX;
}

size_t sr_cache_sketch_chunk_bytes(const struct attn_seq *s, const struct sketch_shape *shape)
{
    return n_units(s) * SR_CHUNK_ROWS * shape->row_bytes * (has_two_halves(s) ? 2 : 1);
}

/* ---- tables of addresses ---- */

/* All tables have the same room: the wider ones are all made before one of them takes effect. */
static sr_status grow_tables(struct attn_seq *s, int32_t n_chunks, sr_error *err)
{
    if (n_chunks <= s->table_room) return SR_OK;
    int32_t room = s->table_room ? s->table_room : 8;
    while (room < n_chunks) room = room > INT32_MAX / 2 ? n_chunks : room * 2;
    void **tables[6] = {s->k, s->v, s->y, s->y_next, s->region, s->sketch_region};
    void **wide[6] = {NULL};
    for (int i = 0; i < 6; i++) {
        size_t rows = i < 4 ? n_units(s) : 1;
        wide[i] = sr_alloc_zero(rows * (size_t)room, sizeof(void *));
        if (!wide[i]) {
            while (i-- > 0) sr_free(wide[i]);
            return sr_fail_memory(err, rows * (size_t)room * sizeof(void *), "KV cache table");
        }
        for (size_t r = 0; r < rows && s->table_room > 0; r++) {
            memcpy(wide[i] + r * (size_t)room, tables[i] + r * (size_t)s->table_room,
                   (size_t)s->table_room * sizeof(void *));
        }
    }
    for (int i = 0; i < 6; i++) sr_free(tables[i]);
    s->k = wide[0];
    s->v = wide[1];
    s->y = wide[2];
    s->y_next = wide[3];
    s->region = wide[4];
    s->sketch_region = wide[5];
    s->table_room = room;
    return SR_OK;
}

/* ---- chunks ---- */

static sr_status chunk_new(const struct attn_seq *s, void **out, size_t bytes, const char *what, sr_error *err)
{
    struct backend *b = s->a->backend;
    if (b->has_own_memory) return b->ops->mem_new(b, out, bytes, what, err);
    *out = sr_region_map(bytes);
    return *out ? SR_OK : sr_fail_memory(err, bytes, what);
}

static void chunk_free(const struct attn_seq *s, void *chunk, size_t bytes)
{
    struct backend *b = s->a->backend;
    if (b->has_own_memory) b->ops->mem_free(b, chunk);
    else sr_region_unmap(chunk, bytes);
}

int32_t sr_cache_region_chunks(void **region, int32_t first, int32_t n_chunks)
{
    int32_t n = 1;
    while (first + n < n_chunks && !region[first + n]) n++;
    return n;
}

/* How many of n chunks come in one region: all, but pages of a device are placed chunk by chunk. */
static int32_t region_chunks(const struct attn_seq *s, int32_t n) { return s->a->backend->has_own_memory ? 1 : n; }

static sr_status add_chunks(struct attn_seq *s, int32_t n, sr_error *err)
{
    const size_t k_run = SR_CHUNK_ROWS * s->shape.k_row_bytes, v_run = SR_CHUNK_ROWS * s->shape.v_row_bytes;
    void *region;
    SR_TRY(chunk_new(s, &region, (size_t)n * sr_cache_chunk_bytes(s), "KV cache", err));
    uint8_t *p = region;
    if (s->device) sr_device_place_chunk(s, p, s->n_chunks);
    for (size_t u = 0; u < n_units(s); u++, p += (size_t)n * (k_run + v_run)) {
        void **k = s->k + u * (size_t)s->table_room + s->n_chunks, **v = s->v + u * (size_t)s->table_room + s->n_chunks;
        for (int32_t i = 0; i < n; i++) k[i] = p + (size_t)i * k_run, v[i] = p + (size_t)n * k_run + (size_t)i * v_run;
    }
    for (int32_t i = 0; i < n; i++) s->region[s->n_chunks + i] = i ? NULL : region;
    s->n_chunks += n;
    return SR_OK;
}

static void place_sketch_chunks(struct attn_seq *s, uint8_t *p, int32_t n)
{
    const size_t run = SR_CHUNK_ROWS * s->sketch.row_bytes, half = has_two_halves(s) ? n_units(s) * (size_t)n * run : 0;
    const int32_t at = s->n_sketch_chunks;
    if (s->device) sr_device_place_sketch(s, p, at);
    for (int32_t i = 0; i < n; i++) s->sketch_region[at + i] = i ? NULL : p;
    for (size_t u = 0; u < n_units(s); u++)
        for (int32_t i = 0; i < n; i++, p += run) {
            s->y[u * (size_t)s->table_room + (size_t)(at + i)] = p;
            s->y_next[u * (size_t)s->table_room + (size_t)(at + i)] = p + half;
        }
    s->n_sketch_chunks += n;
}

static sr_status add_sketch_chunks(struct attn_seq *s, int32_t n, sr_error *err)
{
    void *p;
    SR_TRY(chunk_new(s, &p, (size_t)n * sr_cache_sketch_chunk_bytes(s, &s->sketch), "sketch", err));
    place_sketch_chunks(s, p, n);
    return SR_OK;
}

static void free_regions(const struct attn_seq *s, void **region, int32_t n_chunks, size_t chunk_bytes)
{
    for (int32_t i = 0, n; i < n_chunks; i += n) {
        n = sr_cache_region_chunks(region, i, n_chunks);
        chunk_free(s, region[i], (size_t)n * chunk_bytes);
    }
}

/* Chunks are committed only as rows are written: whether they will fit is asked here, where it can be
 * refused. */
static sr_status check_memory(const struct attn_seq *s, int32_t n_new, int32_t n_new_sketch, sr_error *err)
{
    uint64_t need = (uint64_t)n_new * sr_cache_chunk_bytes(s) +
                    (uint64_t)n_new_sketch * sr_cache_sketch_chunk_bytes(s, &s->sketch);
    uint64_t left = need ? s->a->backend->ops->mem_available(s->a->backend) : UINT64_MAX;
    if (need <= left) return SR_OK;
    return sr_fail(err, SR_ERR_RESOURCE, "KV cache: %d more tokens need %llu bytes, %llu can be had",
                   n_new * SR_CHUNK_ROWS, (unsigned long long)need, (unsigned long long)left);
}

static sr_status grow_list(struct attn_seq *s, int32_t n_chunks, sr_error *err)
{
    size_t n = (2 * (size_t)s->a->c.n_kv_heads + 1) * (size_t)n_chunks * SR_CHUNK_ROWS;
    int32_t *list = sr_alloc(n * sizeof *list);
    if (!list) return sr_fail_memory(err, n * sizeof *list, "list of chosen rows");
    sr_free(s->list);
    s->list = list;
    s->lot_to = s->n_lot = 0;
    return SR_OK;
}

static sr_status add_all(struct attn_seq *s, int32_t want, int32_t want_sketch, sr_error *err)
{
    while (s->n_chunks < want) SR_TRY(add_chunks(s, region_chunks(s, want - s->n_chunks), err));
    while (s->n_sketch_chunks < want_sketch) SR_TRY(add_sketch_chunks(s, region_chunks(s, want_sketch - s->n_sketch_chunks), err));
    return SR_OK;
}

/* All chunks from these on: a prompt that finds no room for its last rows leaves a device's memory to others. */
static void give_back(struct attn_seq *s, int32_t n_chunks, int32_t n_sketch_chunks)
{
    free_regions(s, s->sketch_region + n_sketch_chunks, s->n_sketch_chunks - n_sketch_chunks, sr_cache_sketch_chunk_bytes(s, &s->sketch));
    free_regions(s, s->region + n_chunks, s->n_chunks - n_chunks, sr_cache_chunk_bytes(s));
    s->n_chunks = n_chunks;
    s->n_sketch_chunks = n_sketch_chunks;
}

sr_status sr_cache_reserve(struct attn_seq *s, int32_t len, sr_error *err)
{
    const int32_t had = s->n_chunks, had_sketch = s->n_sketch_chunks;
    int32_t want = (int32_t)(((int64_t)len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS);
    int32_t want_sketch = s->route.mode == SR_ROUTE_MASS ? want : 0;
    int32_t n_new = want > s->n_chunks ? want - s->n_chunks : 0;
    int32_t n_new_sketch = want_sketch > s->n_sketch_chunks ? want_sketch - s->n_sketch_chunks : 0;
    if (n_new == 0 && n_new_sketch == 0) return SR_OK;
    SR_TRY(check_memory(s, n_new, n_new_sketch, err));
    SR_TRY(grow_tables(s, want, err));
    if (n_new && !s->device) {
        struct backend *b = s->a->backend;
        SR_TRY(b->ops->attn_reserve(b, &s->shape, s->a->scratch.room, want * SR_CHUNK_ROWS, err));
        SR_TRY(grow_list(s, want, err));
    }
    const sr_status st = add_all(s, want, want_sketch, err);
    if (st != SR_OK) give_back(s, had, had_sketch);
    return st;
}

/* Memory is committed, and cleared, when it is first written: the step that begins a chunk would pay for the rows of all
 * layers at once (55 ms for 24 MB under nested paging). The steps over the second half of a chunk map the next one and
 * touch an even share of it each. What cannot be had is refused when it is needed. */
void sr_cache_ahead(struct attn_seq *s, int32_t len)
{
    enum { HALF = SR_CHUNK_ROWS / 2, STRIDE = 4096 };
    const int32_t next = (len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS, into = len - (next - 1) * SR_CHUNK_ROWS - HALF;
    if (s->device || into <= 0 || (int64_t)next * SR_CHUNK_ROWS >= s->max_len) return;
    if (s->n_chunks == next) {
        if (sr_cache_reserve(s, (next + 1) * SR_CHUNK_ROWS, NULL) != SR_OK) return;
        s->touched = 0;
    }
    if (s->n_chunks != next + 1 || !s->region[next]) return; /* it has been longer: the memory is there */
    volatile uint8_t *p = s->region[next];
    const size_t to = sr_cache_chunk_bytes(s) / HALF * (size_t)into;
    for (; s->touched < to; s->touched += STRIDE) p[s->touched] = p[s->touched];
}

/* Sketch rows of another shape need other chunks: the old ones go once all of the new ones are there. */
static sr_status replace_sketch(struct attn_seq *s, const struct sketch_shape *shape, sr_error *err)
{
    const struct sketch_shape old_shape = s->sketch;
    const int32_t n_old = s->n_sketch_chunks, each = region_chunks(s, s->n_chunks);
    const size_t bytes = sr_cache_sketch_chunk_bytes(s, shape), old_bytes = sr_cache_sketch_chunk_bytes(s, &old_shape);
    void **fresh = sr_alloc_zero((size_t)s->n_chunks, sizeof *fresh);
    if (!fresh) return sr_fail_memory(err, (size_t)s->n_chunks * sizeof *fresh, "sketch table");
    for (int32_t i = 0; i < s->n_chunks; i += each) {
        if (chunk_new(s, &fresh[i], (size_t)each * bytes, "sketch", err) == SR_OK) continue;
        free_regions(s, fresh, i, bytes);
        sr_free(fresh);
        return SR_ERR_RESOURCE;
    }
    free_regions(s, s->sketch_region, n_old, old_bytes);
    s->sketch = *shape;
    s->n_sketch_chunks = 0;
    for (int32_t i = 0; i < s->n_chunks; i += each) place_sketch_chunks(s, fresh[i], each);
    sr_free(fresh);
    sr_sketch_drop(s);
    return SR_OK;
}

sr_status sr_cache_sketch_reserve(struct attn_seq *s, const struct sketch_shape *shape, sr_error *err)
{
    int is_new = shape->rank != s->sketch.rank || shape->bits != s->sketch.bits;
    if (s->n_chunks > 0)
        SR_TRY(check_memory(s, 0, is_new ? s->n_chunks : s->n_chunks - s->n_sketch_chunks, err));
    if (is_new) return replace_sketch(s, shape, err);
    while (s->n_sketch_chunks < s->n_chunks) SR_TRY(add_sketch_chunks(s, region_chunks(s, s->n_chunks - s->n_sketch_chunks), err));
    return SR_OK;
}

void sr_cache_free(struct attn_seq *s)
{
    free_regions(s, s->sketch_region, s->n_sketch_chunks, sr_cache_sketch_chunk_bytes(s, &s->sketch));
    free_regions(s, s->region, s->n_chunks, sr_cache_chunk_bytes(s));
    s->n_chunks = s->n_sketch_chunks = s->table_room = 0;
    void ***tables[6] = {&s->k, &s->v, &s->y, &s->y_next, &s->region, &s->sketch_region};
    for (int i = 0; i < 6; i++) {
        sr_free(*tables[i]);
        *tables[i] = NULL;
    }
    sr_free(s->list);
    s->list = NULL;
}

void sr_cache_units(const struct attn_seq *s, int32_t layer, struct attn_unit *out)
{
    for (int32_t g = 0; g < s->a->c.n_kv_heads; g++) {
        size_t unit = (size_t)layer * (size_t)s->a->c.n_kv_heads + (size_t)g, at = unit * (size_t)s->table_room;
        out[g] = (struct attn_unit){.k = {s->k + at, s->scales ? s->scales[unit] : 1.0f},
                                    .v = {s->v + at, s->scales ? s->scales[n_units(s) + unit] : 1.0f},
                                    .y = {s->n_sketch_chunks ? s->y + at : NULL, 1.0f},
                                    .kv_len = s->len[layer]};
    }
}
