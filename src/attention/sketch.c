/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch of a sequence: which moments it stands on, when bases are made, which rows are encoded. Rows are
 * encoded as they leave the window, and all of them anew for a new band, which takes effect at a fixed position.
 * The steps before that position share the work: bases in the first half of the last SR_BAND_LEAD steps, rows, into
 * the other half of each sketch chunk, in the second. Where that was not enough (a prefill that ends beside the
 * position) the step that begins the band does what is left, so when the work is done changes no bit.
 */
#include "attention/timeline.h"

#include <assert.h>
#include <string.h>

#include "base/pool.h"

struct sketch_shape sr_sketch_shape_of(const struct attention *a, const sr_route_options *o)
{
    if (!a->backend->has_own_memory) return sr_sketch_host_shape(a->c.head_dim, a->group, o->rank, o->bits);
    return (struct sketch_shape){o->rank ? o->rank : a->c.head_dim / 4, o->bits, sr_device_sketch_row_bytes(a, o)};
}

int sr_sketch_has_moments(const struct attn_seq *s)
{
    return s->a->moments || (s->own && sr_moments_ready(s->own));
}

static void drop_next(struct attn_seq *s)
{
    sr_bases_unref(s->next);
    s->next = NULL;
    for (int32_t l = 0; l < s->a->c.n_layers; l++) s->next_to[l] = s->sketch_first;
}

void sr_sketch_drop(struct attn_seq *s)
{
    drop_next(s);
    sr_bases_unref(s->bases);
    s->bases = NULL;
    s->band = -1;
    s->use_own = 0;
    if (s->device) sr_device_bases_dropped(s);
    for (int32_t l = 0; l < s->a->c.n_layers; l++) s->sketch_to[l] = s->sketch_first;
}

int sr_sketch_uses_own(const struct attn_seq *s)
{
    return s->use_own || !s->a->moments;
}

/* Bases from the attention's moments are the same for every sequence: those that another holds are shared, made or in
 * the making. */
static struct band_bases *find_shared(const struct attn_seq *s, int32_t band)
{
    for (int32_t i = 0; i < s->a->n_seqs && !sr_sketch_uses_own(s); i++) {
        const struct attn_seq *t = s->a->seqs[i];
        if (t->use_own) continue;
        if (t->bases && sr_bases_match(t->bases, band, s->sketch.rank, s->sketch.bits)) return t->bases;
        if (t->next && sr_bases_match(t->next, band, s->sketch.rank, s->sketch.bits)) return t->next;
    }
    return NULL;
}

/* All bases of a sequence come from the same moments: of what was attended to before the first routed step. */
static void freeze_own(struct attn_seq *s)
{
    int32_t len = 0;
    for (int32_t l = 0; l < s->a->c.n_layers; l++) len = s->len[l] > len ? s->len[l] : len;
    sr_moments_freeze(s->own, len - 1);
}

/* A reference to bases of the band, of which some may still have to be made. */
static sr_status begin_bases(struct attn_seq *s, int32_t band, struct band_bases **out, sr_error *err)
{
    const struct attention *a = s->a;
    struct band_bases *shared = find_shared(s, band);
    struct basis_spec spec = {
        .moments = sr_sketch_uses_own(s) ? s->own : a->moments,
        .rotation = &a->rotation,
        .shape = {a->c.n_layers, a->c.n_heads, a->c.n_kv_heads, a->c.head_dim},
        .band = band,
        .rank = s->sketch.rank,
        .bits = s->sketch.bits,
    };
    if (sr_sketch_uses_own(s)) freeze_own(s);
    if (!shared) return sr_bases_begin(out, &spec, a->pool, err);
    *out = sr_bases_ref(shared);
    return SR_OK;
}

/* The rows encoded ahead, in the other half of the chunks, become those in use. */
static void take_next(struct attn_seq *s)
{
    void **y = s->y;
    int32_t *to = s->sketch_to;
    s->y = s->y_next;
    s->y_next = y;
    s->sketch_to = s->next_to;
    s->next_to = to;
    sr_bases_unref(s->bases);
    s->bases = s->next;
    s->next = NULL;
    drop_next(s);
}

/* A sequence that has begun on its own moments stays on them, so that its sketch rows keep one meaning. */
static sr_status change_bases(struct attn_seq *s, int32_t band, sr_error *err)
{
    int has_rows = s->band == band; /* a restored session: its rows are of this band already */
    if (s->next && !sr_bases_match(s->next, band, s->sketch.rank, s->sketch.bits)) drop_next(s);
    if (!s->next) SR_TRY(begin_bases(s, band, &s->next, err));
    sr_status st = sr_bases_make(s->next, sr_bases_left(s->next), s->a->pool, err);
    if (st != SR_OK) {
        drop_next(s);
        return st;
    }
    s->use_own = sr_sketch_uses_own(s);
    s->band = band;
    if (!has_rows) {
        take_next(s);
        return SR_OK;
    }
    sr_bases_unref(s->bases);
    s->bases = s->next;
    s->next = NULL;
    return SR_OK;
}

sr_status sr_sketch_rebase(struct attn_seq *s, int32_t len, sr_error *err)
{
    int32_t band = sr_band_of(&s->a->rotation, len);
    return s->band != band || !s->bases ? change_bases(s, band, err) : SR_OK;
}

/* Rows [done[layer], to) of the layer, in the bases and the table of rows that belong together. */
struct encoding {
    const struct band_bases *bases;
    void **y;
    int32_t *done;
};

static void encode(struct attn_seq *s, const struct encoding *e, int32_t layer, int32_t to)
{
    struct attention *a = s->a;
    struct decode_scratch *w = &a->scratch;
    int32_t n_kv = a->c.n_kv_heads;
    sr_cache_units(s, layer, w->seq_units);
    memset(w->touched, 0, (size_t)n_kv * sizeof *w->touched);
    for (int32_t g = 0; g < n_kv; g++) {
        w->seq_units[g].y.chunk = e->y + ((size_t)layer * (size_t)n_kv + (size_t)g) * (size_t)s->table_room;
        sr_bases_get(e->bases, layer, g, &w->seq_basis[g]);
        w->row0[g] = e->done[layer];
        w->row1[g] = to;
        w->clipped[g] = 0;
    }
    a->backend->ops->sketch_encode(a->backend, &(struct sketch_encode_args){
                                                   .shape = &s->shape,
                                                   .sketch = &s->sketch,
                                                   .units = w->seq_units,
                                                   .basis = w->seq_basis,
                                                   .row0 = w->row0,
                                                   .row1 = w->row1,
                                                   .n_units = n_kv,
                                                   .clipped = w->clipped,
                                                   .touched = w->touched,
                                               });
    for (int32_t g = 0; g < n_kv; g++) {
        uint64_t bytes = (uint64_t)w->touched[g].k_rows * s->shape.k_row_bytes;
        s->stats.k_rows += w->touched[g].k_rows;
        s->stats.kv_bytes += bytes;
        s->stats.sketch_bytes += bytes;
        s->stats.clipped += w->clipped[g];
        s->stats.encoded += (int64_t)(to - e->done[layer]) * s->sketch.rank;
    }
    e->done[layer] = to;
}

/* ---- the next band ---- */

/* How many of n bases are due `left` steps before the band, where the work began `from` steps before it: all of them
 * half-way. Never fewer at a time than there are threads. */
static sr_status make_due(struct attn_seq *s, int32_t left, sr_error *err)
{
    int32_t n_left = sr_bases_left(s->next), n = s->a->c.n_layers * s->a->c.n_kv_heads, half = s->next_from / 2;
    int32_t threads = s->a->pool ? sr_pool_threads(s->a->pool) : 1;
    int64_t due = left <= half ? n : ((int64_t)n * (s->next_from - left + 1) + s->next_from - half - 1) / (s->next_from - half);
    int64_t behind = due - (n - n_left);
    if (n_left == 0 || behind <= 0) return SR_OK;
    return sr_bases_make(s->next, (int32_t)((behind + threads - 1) / threads * threads), s->a->pool, err);
}

sr_status sr_sketch_prepare(struct attn_seq *s, int32_t len, sr_error *err)
{
    int32_t left = sr_band_left(&s->a->rotation, len);
    if (left > SR_BAND_LEAD || (int64_t)len - 1 + left >= s->max_len) return SR_OK;
    if (!s->next) {
        SR_TRY(begin_bases(s, s->band + 1, &s->next, err));
        s->next_from = left;
    }
    sr_status st = make_due(s, left, err);
    if (st != SR_OK) drop_next(s);
    return st;
}

/* An even share of the rows that the next band lacks. */
static void encode_ahead(struct attn_seq *s, int32_t layer, int32_t len, int32_t to)
{
    int32_t left = sr_band_left(&s->a->rotation, len), behind = to - s->next_to[layer];
    if (!s->next || sr_bases_left(s->next) > 0 || left > SR_BAND_LEAD || behind <= 0) return;
    encode(s, &(struct encoding){s->next, s->y_next, s->next_to}, layer, s->next_to[layer] + (behind + left - 1) / left);
}

/* Layers that are not in step change the band back and forth: right, but then every change encodes all rows.
 */
sr_status sr_sketch_sync(struct attn_seq *s, int32_t layer, sr_error *err)
{
    int32_t len = s->len[layer], to = len - s->route.window;
    SR_TRY(sr_sketch_rebase(s, len, err));
    SR_TRY(sr_sketch_prepare(s, len, err));
    if (s->sketch_to[layer] < to) encode(s, &(struct encoding){s->bases, s->y, s->sketch_to}, layer, to);
    encode_ahead(s, layer, len, to);
    return SR_OK;
}

uint64_t sr_sketch_bases_bytes(const struct attn_seq *s)
{
    return (s->bases ? sr_bases_bytes(s->bases) : 0) + (s->next ? sr_bases_bytes(s->next) : 0);
}
