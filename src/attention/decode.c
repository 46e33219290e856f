/* SPDX-License-Identifier: Apache-2.0
 *
 * One routed decode step of one layer: units from sequences, a plan from their policy, the rows of the plan,
 * one state per head, the output; then audit and counters. Sequences next to each other whose options agree
 * make one run of units.
 */
#include "attention/timeline.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"

/* ---- scratch ---- */

static void layout(struct arena *a, struct decode_scratch *w, const struct attention_config *c,
                   int32_t n_units)
{
    size_t n = (size_t)n_units, kv = (size_t)c->n_kv_heads, heads = n * (size_t)(c->n_heads / c->n_kv_heads);
    w->room = n_units;
    w->units = sr_arena_take(a, n, sizeof *w->units);
    w->basis = sr_arena_take(a, n, sizeof *w->basis);
    w->touched = sr_arena_take(a, n, sizeof *w->touched);
    w->audit_touched = sr_arena_take(a, n, sizeof *w->audit_touched);
    w->probe_touched = sr_arena_take(a, n, sizeof *w->probe_touched);
    uint8_t **bytes[] = {&w->kind, &w->set, &w->bytes, &w->audited, &w->whole, &w->trial};
    for (int i = 0; i < 6; i++) *bytes[i] = sr_arena_take(a, n, 1);
    w->list = sr_arena_take(a, n, sizeof *w->list);
    w->n_list = sr_arena_take(a, n, sizeof *w->n_list);
    w->observed = sr_arena_take(a, n, sizeof(struct observed *));
    w->n_chosen = sr_arena_take(a, n, sizeof *w->n_chosen);
    w->found = sr_arena_take(a, n, sizeof *w->found);
    w->n_found = sr_arena_take(a, n, sizeof *w->n_found);
    w->found_rows = sr_arena_take(a, n * SR_FOUND_ROWS, sizeof *w->found_rows);
    w->top = sr_arena_take(a, n * SR_SKETCH_TOP, sizeof *w->top);
    w->n_top = sr_arena_take(a, n, sizeof *w->n_top);
    w->drawn = sr_arena_take(a, n, sizeof *w->drawn);
    w->more = sr_arena_take(a, n, sizeof *w->more);
    w->n_more = sr_arena_take(a, n, sizeof *w->n_more);
    w->n_drawn = sr_arena_take(a, n, sizeof *w->n_drawn);
    float **per_head[] = {&w->unread, &w->near_m, &w->near_l, &w->found_l};
    for (int i = 0; i < 4; i++) *per_head[i] = sr_arena_take(a, heads, sizeof(float));
    w->eps = sr_arena_take(a, n, sizeof(float));
    w->score = sr_arena_take(a, n, sizeof(float));
    struct attn_state *states[] = {&w->state, &w->audit_state, &w->probe_state};
    for (int i = 0; i < 3; i++) {
        states[i]->o = sr_arena_take(a, heads * (size_t)c->head_dim, sizeof(float));
        states[i]->m = sr_arena_take(a, heads, sizeof(float));
        states[i]->l = sr_arena_take(a, heads, sizeof(float));
    }
    w->append = sr_arena_take(a, kv, sizeof *w->append);
    w->seq_units = sr_arena_take(a, kv, sizeof *w->seq_units);
    w->seq_basis = sr_arena_take(a, kv, sizeof *w->seq_basis);
    w->row0 = sr_arena_take(a, kv, sizeof *w->row0);
    w->row1 = sr_arena_take(a, kv, sizeof *w->row1);
    w->clipped = sr_arena_take(a, kv, sizeof *w->clipped);
}

sr_status sr_decode_reserve(struct attention *a, int32_t n_units, sr_error *err)
{
    if (n_units <= a->scratch.room) return SR_OK;
    struct decode_scratch w = {0};
    struct arena arena = {NULL, 0};
    layout(&arena, &w, &a->c, n_units);
    void *block = sr_alloc(arena.used);
    if (!block) return sr_fail_memory(err, arena.used, "decode scratch");
    arena = (struct arena){block, 0};
    layout(&arena, &w, &a->c, n_units);
    w.block = block;
    sr_free(a->scratch.block);
    a->scratch = w;
    return SR_OK;
}

/* ---- which policy ---- */

const struct policy *sr_decode_policy(const struct attn_seq *s, int32_t layer)
{
    const struct policy *p = sr_policy_find(s->route.mode);
    int32_t len = s->len[layer];
    if (len < s->route.min_len) return &sr_policy_dense;
    if (p->keeps_near && len <= s->route.n_sinks + s->route.window) return &sr_policy_dense;
    /* own moments serve from the step after the one that completes them, so that all its layers read alike */
    if (p->needs_sketch && !s->a->moments && len <= SR_MOMENTS_LAST) return &sr_policy_dense;
    if (p->needs_sketch && !sr_sketch_has_moments(s)) return &sr_policy_dense;
    return p;
}

static int same_options(const sr_route_options *x, const sr_route_options *y)
{
    if (x->n_sinks != y->n_sinks || x->window != y->window || x->budget != y->budget || x->look != y->look || x->trail != y->trail)
        return 0;
    for (int i = 0; i < 4; i++) {
        if (x->tau[i] != y->tau[i]) return 0;
    }
    return x->tau_scale == y->tau_scale && x->tau_min_len == y->tau_min_len &&
           x->tau_max_len == y->tau_max_len;
}

/* Whether one op call can serve both: eps, audits and lengths may differ. */
static int same_run(const struct attn_seq *s, const struct attn_seq *t, int32_t layer)
{
    const struct policy *p = sr_decode_policy(s, layer);
    if (sr_decode_policy(t, layer) != p || s->shape.k_type != t->shape.k_type || s->shape.v_type != t->shape.v_type)
        return 0;
    if (p->needs_sketch && (s->sketch.rank != t->sketch.rank || s->sketch.bits != t->sketch.bits)) return 0;
    return p == &sr_policy_dense || same_options(&s->route, &t->route);
}

/* ---- one run ---- */

/* The threshold of a unit, and whether audits of earlier steps say that it must be read whole. */
static void trust_unit(const struct decoded *d, const struct policy *p, int32_t u)
{
    struct decode_scratch *w = &d->a->scratch;
    int32_t n_kv = d->a->c.n_kv_heads, at = d->layer * n_kv + u % n_kv;
    struct attn_seq *s = d->seqs[u / n_kv];
    w->eps[u] = s->route.eps;
    w->whole[u] = w->trial[u] = 0;
    if (!p->has_contract) return;
    w->eps[u] = sr_contract_threshold(s->contract, &s->route);
    if (!s->route.breaker) return;
    enum unit_trust trust = sr_contract_trust(s->contract, at, s->len[d->layer]);
    w->whole[u] = trust == UNIT_WHOLE;
    w->trial[u] = trust == UNIT_TRIAL;
}

static sr_status gather_units(struct decoded *d, const struct policy *p, const float *q, sr_error *err)
{
    struct decode_scratch *w = &d->a->scratch;
    const struct attention_config *c = &d->a->c;
    int32_t per_unit = d->a->group * c->head_dim;
    for (int32_t i = 0; i < d->n_seqs; i++) { /* first: it uses the scratch */
        struct attn_seq *s = d->seqs[i];
        if (p->needs_sketch) SR_TRY(sr_sketch_sync(s, d->layer, err));
        if (p->has_contract) sr_contract_step(s->contract, s->len[d->layer] - 1, &s->route, &s->stats);
    }
    for (int32_t i = 0; i < d->n_seqs; i++) {
        struct attn_seq *s = d->seqs[i];
        int32_t first = i * c->n_kv_heads;
        sr_cache_units(s, d->layer, w->units + first);
        for (int32_t g = 0; g < c->n_kv_heads; g++) {
            int32_t u = first + g;
            w->units[u].q = q + (int64_t)u * per_unit;
            trust_unit(d, p, u);
            w->list[u] = s->list + (size_t)g * (size_t)s->n_chunks * SR_CHUNK_ROWS;
            w->n_list[u] = w->n_more[u] = 0;
            w->n_found[u] = sr_sinks_get(s->sinks, d->layer, g, s->route.n_sinks,
                                         s->len[d->layer] - s->route.window, &w->found[u]);
            w->drawn[u] = s->route.keep > 0 ? sr_lot_get(s, s->len[d->layer] - s->route.window, &w->n_drawn[u]) : NULL;
            if (p->needs_observer) w->observed[u] = sr_observed_get(s->observer, d->layer, g);
            if (p->needs_sketch) sr_bases_get(s->bases, d->layer, g, &w->basis[u]);
        }
        if (p->needs_sketch && s->route.trail) sr_trail_follow(w, s, d->layer, first);
    }
    memset(w->touched, 0, (size_t)d->n_units * sizeof *w->touched);
    for (int32_t h = 0; h < d->n_units * d->a->group; h++) w->unread[h] = NAN;
    return SR_OK;
}

static void attend(const struct decoded *d, const struct attn_rows_args *base, int merge)
{
    struct attn_rows_args rows = *base;
    rows.merge = merge;
    d->a->backend->ops->attn_rows(d->a->backend, &rows);
}

static struct attn_rows_args rows_of(const struct decoded *d)
{
    struct decode_scratch *w = &d->a->scratch;
    const struct attn_seq *s = d->seqs[0];
    return (struct attn_rows_args){
        .shape = &s->shape,
        .units = w->units,
        .set = w->set,
        .n_units = d->n_units,
        .n_sinks = s->route.n_sinks,
        .window = s->route.window,
        .state = w->state,
        .touched = w->touched,
    };
}

/* What the plan says, in at most two calls: what needs no list, then the lists merged in. */
static void execute(const struct decoded *d, const struct route_plan *p)
{
    static const uint8_t first_set[] = {[READ_NONE] = ATTN_NONE,
                                        [READ_NEAR] = ATTN_NEAR,
                                        [READ_NEAR_LIST] = ATTN_NEAR,
                                        [READ_LIST] = ATTN_LIST,
                                        [READ_ALL] = ATTN_ALL};
    struct decode_scratch *w = &d->a->scratch;
    struct attn_rows_args rows = rows_of(d);
    rows.list = (const int32_t *const *)p->list;
    rows.n_list = p->n_list;
    int has_list = 0;
    for (int32_t u = 0; u < d->n_units; u++) {
        w->set[u] = first_set[p->kind[u]];
        has_list |= p->kind[u] == READ_NEAR_LIST;
        assert(!p->near_done || w->set[u] != ATTN_NONE);
    }
    if (!p->near_done) attend(d, &rows, 0);
    if (!has_list) return;
    for (int32_t u = 0; u < d->n_units; u++) w->set[u] = p->kind[u] == READ_NEAR_LIST ? ATTN_LIST : ATTN_NONE;
    attend(d, &rows, 1);
}

/* What a second look adds, merged in as well. */
static void execute_more(const struct decoded *d, const struct route_plan *p)
{
    struct decode_scratch *w = &d->a->scratch;
    struct attn_rows_args rows = rows_of(d);
    int has_more = 0;
    for (int32_t u = 0; u < d->n_units; u++) {
        w->set[u] = p->n_more[u] > 0 ? ATTN_LIST : ATTN_NONE;
        if (p->n_more[u] == 0) continue;
        has_more = 1;
        p->kind[u] = READ_NEAR_LIST;
    }
    if (!has_more) return;
    rows.list = (const int32_t *const *)p->more;
    rows.n_list = p->n_more;
    attend(d, &rows, 1);
}

static sr_status decode_run(struct decoded *d, const float *q, float *out, sr_error *err)
{
    struct decode_scratch *w = &d->a->scratch;
    const struct attn_seq *s = d->seqs[0];
    const struct policy *p = sr_decode_policy(s, d->layer);
    SR_TRY(gather_units(d, p, q, err));
    struct route_plan plan = {
        .kind = w->kind, .near_done = 0, .list = w->list, .n_list = w->n_list,
        .n_chosen = w->n_chosen, .unread = w->unread, .more = w->more, .n_more = w->n_more};
    const struct route_step step = {
        .backend = d->a->backend,
        .shape = &s->shape,
        .sketch = &s->sketch,
        .options = &s->route,
        .layer = d->layer,
        .n_units = d->n_units,
        .units = w->units,
        .basis = w->basis,
        .state = w->state,
        .touched = w->touched,
        .eps = w->eps,
        .whole = w->whole,
        .observed = w->observed,
        .found = w->found,
        .n_found = w->n_found,
        .drawn = w->drawn,
        .n_drawn = w->n_drawn,
        .top = s->route.trail ? w->top : NULL,
        .n_top = w->n_top,
        .near_m = w->near_m,
        .near_l = w->near_l,
        .found_l = w->found_l,
        .bytes = w->bytes,
        .score = w->score,
    };
    p->plan(&step, &plan);
    execute(d, &plan);
    if (p->look && s->route.look) {
        p->look(&step, &plan);
        execute_more(d, &plan);
    }
    d->plan = &plan;
    if (p->needs_sketch) sr_trail_lay(d);
    d->a->backend->ops->attn_finish(d->a->backend, &(struct attn_finish_args){
                                                       .shape = &s->shape,
                                                       .state = w->state,
                                                       .out = out,
                                                       .n_units = d->n_units,
                                                   });
    d->policy = p;
    d->is_routed = p != &sr_policy_dense;
    d->out = out;
    sr_stats_count(d);
    sr_audit(d);
    return SR_OK;
}

sr_status sr_attn_decode(struct attention *a, struct attn_seq *const *seqs, int32_t n_seqs, int32_t layer,
                         float *q, float *out, sr_error *err)
{
    int64_t stride = (int64_t)a->c.n_heads * a->c.head_dim;
    float scale = sr_attn_scale(a);
    assert(n_seqs >= 1 && n_seqs <= a->n_seqs && layer >= 0 && layer < a->c.n_layers);
    for (int64_t i = 0; i < n_seqs * stride; i++) q[i] *= scale;
    for (int32_t i = 0; i < n_seqs; i++) {
        struct attn_seq *s = seqs[i];
        assert(s->a == a && s->len[layer] >= 1);
        if (sr_seq_collects(s, layer))
            sr_moments_add_q(s->own, a->pool, layer, q + i * stride, 1, s->len[layer] - 1);
    }
    for (int32_t i = 0, n; i < n_seqs; i += n) {
        for (n = 1; i + n < n_seqs && same_run(seqs[i], seqs[i + n], layer);) n++;
        struct decoded d = {
            .a = a, .seqs = seqs + i, .n_seqs = n, .layer = layer, .n_units = n * a->c.n_kv_heads};
        SR_TRY(decode_run(&d, q + i * stride, out + i * stride, err));
    }
    return SR_OK;
}
