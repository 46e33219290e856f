/* SPDX-License-Identifier: Apache-2.0
 *
 * Growth and end of the attention scratch.
 */
#include "cpu/attn/attn_scratch.h"

#include <string.h>

static int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }
static int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }

static void layout_choose(struct attn_scratch *s, struct arena *a)
{
    const struct attn_limits *n = &s->limits;
    const size_t units = (size_t)n->n_units, group = (size_t)n->group;
    /* the far rows may begin and end inside a chunk */
    s->max_spans = n->n_units * (n->max_len / SR_CHUNK_ROWS + 2);
    const size_t spans = (size_t)s->max_spans;
    s->spans = sr_arena_take(a, spans, sizeof(*s->spans));
    s->choose = sr_arena_take(a, units, sizeof(*s->choose));
    s->more = sr_arena_take(a, units, sizeof(*s->more));
    const size_t factors = (size_t)n->head_dim * 5 / 4 + 64; /* of mixed codes there are 48 to 40 coordinates, in whole pairs of words */
    float *w = sr_arena_take(a, units * group * factors, sizeof(float));
    const size_t n_sums = SR_SKETCH_BINS * (size_t)sr_sketch_width(n->group);
    float *sums = sr_arena_take(a, units * n_sums, sizeof(float)); /* rows of 64 bytes: every unit's are aligned */
    for (size_t u = 0; s->choose && u < units; u++) {
        s->choose[u].w = w + u * group * factors;
        s->choose[u].sums = sums + u * n_sums;
    }
    s->span_max = sr_arena_take(a, spans * SR_ATTN_MAX_GROUP, sizeof(float));
    s->span_from = sr_arena_take(a, spans * SR_ATTN_MAX_GROUP, sizeof(float));
    s->span_sum = sr_arena_take(a, spans * SR_ATTN_MAX_GROUP, sizeof(float));
    s->span_touched = sr_arena_take(a, spans, sizeof(*s->span_touched));
    s->kept = sr_arena_take(a, spans * group * SR_SKETCH_STRIDE, sizeof(float));
    s->kept_rows = sr_arena_take(a, spans * SR_CHUNK_ROWS, sizeof(int32_t));
    s->kept_bins = sr_arena_take(a, spans * SR_CHUNK_ROWS, sizeof(uint16_t));
}

static void layout(struct attn_scratch *s, struct arena *a)
{
    const struct attn_limits *n = &s->limits;
    s->max_pieces = 2 * n->n_units * min_i32(SR_MAX_PIECES, n->max_len / SR_PIECE_ROWS + 1); /* before a list, and of it */
    const size_t pieces = (size_t)s->max_pieces, group = (size_t)n->group;
    s->pieces = sr_arena_take(a, pieces, sizeof(*s->pieces));
    s->work = sr_arena_take(a, (size_t)n->n_units, sizeof(*s->work));
    s->q = sr_arena_take(a, (size_t)n->n_units * group * (size_t)n->head_dim, sizeof(float));
    s->o = sr_arena_take(a, pieces * group * (size_t)n->head_dim, sizeof(float));
    s->m = sr_arena_take(a, pieces * group, sizeof(float));
    s->l = sr_arena_take(a, pieces * group, sizeof(float));
    s->touched = sr_arena_take(a, pieces, sizeof(*s->touched));
    layout_choose(s, a);
    /* prefill's tiles, or the logits of a chunk, or what a block of rows wants */
    const size_t flash = sr_attn_flash_bytes(n->head_dim), choose = group * SR_SKETCH_STRIDE * sizeof(float);
    const size_t most = flash > choose ? flash : choose;
    s->thread_bytes = ((most > SR_ATTN_BLOCK_SCRATCH ? most : SR_ATTN_BLOCK_SCRATCH) + 127) / 64 * 64;
    s->threads = sr_arena_take(a, (size_t)n->n_threads, s->thread_bytes);
}

static void free_scratch(struct attn_scratch *s)
{
    if (!s) return;
    sr_region_unmap(s->block, s->bytes);
    sr_free(s);
}

sr_status sr_cpu_attn_reserve(struct backend *b, const struct attn_shape *shape, int32_t n_units, int32_t max_len, sr_error *err)
{
    struct backend_cpu *c = sr_cpu_of(b);
    const struct attn_limits none = {0}, *old = c->attn ? &c->attn->limits : &none;
    const struct attn_limits want = {max_i32(n_units, old->n_units), max_i32(max_len, old->max_len),
                                     max_i32(shape->group, old->group), max_i32(shape->head_dim, old->head_dim),
                                     sr_pool_threads(c->pool)};
    if (memcmp(&want, old, sizeof(want)) == 0) return SR_OK;
    struct attn_scratch *s = sr_alloc_zero(1, sizeof(*s));
    if (!s) return sr_fail_memory(err, sizeof(*s), "attention scratch");
    s->limits = want;
    struct arena a = {NULL, 0};
    layout(s, &a);
    const size_t bytes = s->bytes = a.used;
    s->block = sr_region_map(bytes); /* huge pages: a choice goes through some MB, each span of it through a dozen small ones */
    if (!s->block) {
        free_scratch(s);
        return sr_fail_memory(err, bytes, "attention scratch");
    }
    a = (struct arena){s->block, 0};
    layout(s, &a);
    free_scratch(c->attn);
    c->attn = s;
    return SR_OK;
}

void sr_cpu_attn_fini(struct backend_cpu *c)
{
    free_scratch(c->attn);
    c->attn = NULL;
}
