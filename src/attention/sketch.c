/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch of a sequence: which moments it stands on, when bases are made, which rows are encoded. Rows are
 * encoded as they leave the window; a step whose position is the first of a band encodes all of them anew.
 */
#include "attention/timeline.h"

#include <assert.h>
#include <string.h>

struct sketch_shape sr_sketch_shape_of(const struct attention *a, const sr_route_options *o)
{
    struct sketch_shape s = {.rank = o->rank ? o->rank : a->c.head_dim / 4, .bits = o->bits, .row_bytes = 0};
    s.row_bytes = ((size_t)s.rank * (size_t)s.bits + 31) / 32 * 4;
    if (a->backend->has_own_memory) s.row_bytes = sr_device_sketch_row_bytes(a, o);
    return s;
}

int sr_sketch_has_moments(const struct attn_seq *s)
{
    return s->a->moments || (s->own && sr_moments_ready(s->own));
}

void sr_sketch_drop(struct attn_seq *s)
{
    sr_bases_unref(s->bases);
    s->bases = NULL;
    s->band = -1;
    s->use_own = 0;
    if (s->device) sr_device_bases_dropped(s);
    for (int32_t l = 0; l < s->a->c.n_layers; l++) s->sketch_to[l] = s->sketch_first;
}

/* Bases from the attention's moments are the same for every sequence: one that another holds is shared. */
static struct band_bases *find_shared(const struct attn_seq *s, int32_t band)
{
    for (int32_t i = 0; i < s->a->n_seqs; i++) {
        const struct attn_seq *t = s->a->seqs[i];
        if (t->bases && !t->use_own && sr_bases_match(t->bases, band, s->sketch.rank, s->sketch.bits))
            return t->bases;
    }
    return NULL;
}

int sr_sketch_uses_own(const struct attn_seq *s)
{
    return s->use_own || !s->a->moments;
}

/* A sequence that has begun on its own moments stays on them, so that its sketch rows keep one meaning. */
static sr_status change_bases(struct attn_seq *s, int32_t band, sr_error *err)
{
    const struct attention *a = s->a;
    int use_own = sr_sketch_uses_own(s);
    struct band_bases *bases = use_own ? NULL : find_shared(s, band);
    if (bases) {
        sr_bases_ref(bases);
    } else {
        struct basis_spec spec = {
            .moments = use_own ? s->own : a->moments,
            .rotation = &a->rotation,
            .shape = {a->c.n_layers, a->c.n_heads, a->c.n_kv_heads, a->c.head_dim},
            .band = band,
            .rank = s->sketch.rank,
            .bits = s->sketch.bits,
        };
        SR_TRY(sr_bases_new(&bases, &spec, a->pool, err));
    }
    int is_same_band = s->band == band; /* a restored session: its rows are of this band already */
    sr_bases_unref(s->bases);
    s->bases = bases;
    s->use_own = use_own;
    s->band = band;
    for (int32_t l = 0; !is_same_band && l < a->c.n_layers; l++) s->sketch_to[l] = s->sketch_first;
    return SR_OK;
}

sr_status sr_sketch_rebase(struct attn_seq *s, int32_t len, sr_error *err)
{
    int32_t band = sr_band_of(&s->a->rotation, len);
    return s->band != band || !s->bases ? change_bases(s, band, err) : SR_OK;
}

static void encode(struct attn_seq *s, int32_t layer, int32_t to)
{
    struct attention *a = s->a;
    struct decode_scratch *w = &a->scratch;
    int32_t n_kv = a->c.n_kv_heads;
    sr_cache_units(s, layer, w->seq_units);
    memset(w->touched, 0, (size_t)n_kv * sizeof *w->touched);
    for (int32_t g = 0; g < n_kv; g++) {
        sr_bases_get(s->bases, layer, g, &w->seq_basis[g]);
        w->row0[g] = s->sketch_to[layer];
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
        s->stats.encoded += (int64_t)(to - s->sketch_to[layer]) * s->sketch.rank;
    }
    s->sketch_to[layer] = to;
}

/* Layers that are not in step change the band back and forth: right, but then every change encodes all rows.
 */
sr_status sr_sketch_sync(struct attn_seq *s, int32_t layer, sr_error *err)
{
    int32_t len = s->len[layer], to = len - s->route.window;
    SR_TRY(sr_sketch_rebase(s, len, err));
    if (s->sketch_to[layer] < to) encode(s, layer, to);
    return SR_OK;
}

uint64_t sr_sketch_bases_bytes(const struct attn_seq *s)
{
    return s->bases ? sr_bases_bytes(s->bases) : 0;
}
