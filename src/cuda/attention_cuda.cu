/* SPDX-License-Identifier: Apache-2.0
 *
 * The device's half of attention as ops: which kernels a rule takes, in which order, over which scratch. The kernels of
 * a decode step are behind attn_cuda.h; prefill and moments are in the files beside.
 */
#include "cuda/device_cuda.h"
#include "cuda/attn_cuda.h"
#include "cuda/rope_turn.h"
#include "cuda/prefill_cuda.h"

extern "C" {
#include "backend/device_attn.h"
#include "cuda/page_rows.h"
}

#include <math.h>

static_assert(sizeof(struct device_counters) == sizeof(struct attn_cuda_counters), "one record, two names");
static_assert(sizeof(struct device_case) == sizeof(struct attn_cuda_case), "one record, two names");
static_assert((int)TRUST_WHOLE == (int)CUDA_WHOLE && (int)TRUST_TRIAL == (int)CUDA_TRIAL, "one set of values, two names");

/* Scratch of a step: arrays over the KV groups of one layer. */
struct attn_device {
    struct attn_cuda_card card;
    struct attn_cuda_limits limits; /* n_units 0: nothing is reserved */
    void *block, *workspace;
    uint8_t *kinds, *audit_kinds;
    int32_t *list, *n_list, *n_chosen;
    float *unread, *score;
    float *q; /* rotated, where the choice does it */
    struct attn_state state, dense;
};

static struct attn_cuda_shape shape_of(const struct attn_shape *s, int32_t n_kv_heads)
{
    return attn_cuda_shape{s->head_dim, s->group, n_kv_heads, s->k_type};
}

static sr_status check(struct backend *b, const struct attn_shape *shape, int32_t n_kv_heads, sr_error *err)
{
    const char *both = sr_dtype_name(shape->k_type == SR_DTYPE_F16 ? shape->v_type : shape->k_type);
    (void)b;
    if (shape->k_type != shape->v_type)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA: K cache type %s, V cache type %s: want one for both, as -ctk %s -ctv %s",
                       sr_dtype_name(shape->k_type), sr_dtype_name(shape->v_type), both, both);
    const struct attn_cuda_shape s = shape_of(shape, n_kv_heads);
    return sr_attn_cuda_check(&s, err);
}

static size_t sketch_row_bytes(int32_t rank, int32_t bits) { return sr_attn_cuda_sketch_page_bytes(rank, bits) / SR_PAGE_ROWS; }

/* ---- scratch ---- */

static void layout(struct arena *a, struct attn_device *d)
{
    const size_t n = (size_t)d->limits.n_units, heads = n * (size_t)d->limits.group, dim = (size_t)d->limits.head_dim;
    d->workspace = sr_arena_take(a, sr_attn_cuda_workspace_bytes(&d->card, &d->limits), 1);
    d->kinds = static_cast<uint8_t *>(sr_arena_take(a, n, 1));
    d->audit_kinds = static_cast<uint8_t *>(sr_arena_take(a, n, 1));
    d->list = static_cast<int32_t *>(sr_arena_take(a, n * (size_t)d->limits.max_len, sizeof(int32_t)));
    d->n_list = static_cast<int32_t *>(sr_arena_take(a, n, sizeof(int32_t)));
    d->n_chosen = static_cast<int32_t *>(sr_arena_take(a, 2 * n, sizeof(int32_t)));
    d->unread = static_cast<float *>(sr_arena_take(a, heads, sizeof(float)));
    d->score = static_cast<float *>(sr_arena_take(a, n, sizeof(float)));
    d->q = static_cast<float *>(sr_arena_take(a, heads * dim, sizeof(float)));
    struct attn_state *states[] = {&d->state, &d->dense};
    for (int i = 0; i < 2; i++) {
        states[i]->o = static_cast<float *>(sr_arena_take(a, heads * dim, sizeof(float)));
        states[i]->m = static_cast<float *>(sr_arena_take(a, heads, sizeof(float)));
        states[i]->l = static_cast<float *>(sr_arena_take(a, heads, sizeof(float)));
    }
}

static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

static sr_status reserve(struct backend *b, const struct attn_shape *shape, int32_t n_kv_heads, int32_t max_len, sr_error *err)
{
    struct backend_cuda *c = sr_cuda_of(b);
    if (!c->attn) {
        c->attn = static_cast<struct attn_device *>(sr_alloc_zero(1, sizeof *c->attn));
        if (!c->attn) return sr_fail_memory(err, sizeof *c->attn, "attention");
        SR_TRY(sr_attn_cuda_card(&c->attn->card, err));
    }
    struct attn_device grown = *c->attn;
    const struct attn_cuda_limits *l = &c->attn->limits;
    grown.limits = attn_cuda_limits{most(l->n_units, n_kv_heads), most(l->max_len, max_len), most(l->group, shape->group),
                                    most(l->head_dim, shape->head_dim)};
    if (grown.limits.n_units == l->n_units && grown.limits.max_len == l->max_len && grown.limits.group == l->group &&
        grown.limits.head_dim == l->head_dim)
        return SR_OK;
    struct arena a = {NULL, 0};
    layout(&a, &grown);
    SR_TRY(sr_cuda_new(b, &grown.block, a.used, "attention scratch", err));
    b->ops->mem_clear(b, grown.block, a.used);
    a = arena{static_cast<uint8_t *>(grown.block), 0};
    layout(&a, &grown);
    sr_cuda_delete(b, c->attn->block);
    *c->attn = grown;
    b->generation++;
    return SR_OK;
}

void sr_cuda_attn_fini(struct backend_cuda *c)
{
    if (!c->attn) return;
    sr_cuda_delete(&c->base, c->attn->block);
    sr_free(c->attn);
    c->attn = NULL;
}

/* ---- what the launchers take ---- */

static struct attn_cuda common(struct backend_cuda *c, const struct device_cache *cache)
{
    return attn_cuda{c->attn->card, shape_of(&cache->shape, cache->n_kv_heads), c->attn->limits, c->attn->workspace, c->stream};
}

static struct attn_cuda_cache layer_of(const struct device_cache *c, int32_t layer)
{
    const size_t at = (size_t)layer * (size_t)c->n_kv_heads * (size_t)c->max_pages;
    const int64_t head = (int64_t)layer * c->n_kv_heads;
    const float *k_scale = c->k_scale ? c->k_scale + head : NULL, *v_scale = c->v_scale ? c->v_scale + head : NULL;
    return attn_cuda_cache{c->k_page + at, c->v_page + at, c->y_page ? c->y_page + at : NULL, k_scale, v_scale, c->kv_len, c->max_pages, 1};
}

static void note(struct backend_cuda *c, sr_status st, const sr_error *err)
{
    if (st != SR_OK) sr_cuda_note_status(c, err);
}

/* ---- pages ---- */

static __global__ void place_kernel(const struct device_place_args a)
{
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, u = at / a.n, i = at % a.n;
    if (u < a.n_units) a.table[u * a.max_pages + a.first + i] = a.base + (size_t)u * a.unit_bytes + (size_t)i * a.page_bytes;
}

static void place(struct backend *b, const struct device_place_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const int64_t n = (int64_t)a->n_units * a->n;
    place_kernel<<<(unsigned)((n + SR_CUDA_THREADS - 1) / SR_CUDA_THREADS), SR_CUDA_THREADS, 0, c->stream>>>(*a);
    sr_cuda_note(c, cudaGetLastError(), "page table");
}

static struct attn_cuda_append append_of(const struct device_cache *cache, int32_t layer, const float *k, const float *v, int32_t n)
{
    const int64_t head = (int64_t)layer * cache->n_kv_heads, stride = (int64_t)cache->n_kv_heads * cache->shape.head_dim;
    float *k_scale = cache->k_scale ? cache->k_scale + head : NULL, *v_scale = cache->v_scale ? cache->v_scale + head : NULL;
    return attn_cuda_append{k, v, SR_DTYPE_F32, stride, n, cache->found + head, k_scale, v_scale};
}

static void append_rows(struct backend_cuda *c, const struct device_cache *cache, int32_t layer, const float *k, const float *v, int32_t n)
{
    const struct attn_cuda call = common(c, cache);
    const struct attn_cuda_cache rows = layer_of(cache, layer);
    const struct attn_cuda_append a = append_of(cache, layer, k, v, n);
    sr_error err;
    note(c, sr_attn_cuda_append(&call, &rows, &a, &err), &err);
}

static void set_scales(struct backend_cuda *c, const struct device_rows_args *a)
{
    const struct attn_cuda call = common(c, a->cache);
    const int64_t head = (int64_t)a->layer * a->cache->n_kv_heads;
    const struct attn_cuda_scales s = {a->k, a->v, (int64_t)a->cache->n_kv_heads * a->cache->shape.head_dim, a->n, a->cache->k_scale + head,
                                       a->cache->v_scale + head};
    sr_error err;
    note(c, sr_attn_cuda_scales(&call, &s, &err), &err);
}

static void append(struct backend *b, const struct device_rows_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    if (a->pos0 == 0 && a->n > 1 && a->cache->k_scale) set_scales(c, a);
    append_rows(c, a->cache, a->layer, a->k, a->v, a->n);
}

static void prefill(struct backend *b, const struct device_rows_args *a)
{
    const struct device_cache *cache = a->cache;
    const struct attn_cuda_cache rows = layer_of(cache, a->layer);
    const struct prefill_params p = {rows.k_page, rows.v_page, rows.k_scale, rows.v_scale, a->q, a->out, cache->shape.k_type, cache->max_pages, cache->n_kv_heads,
                                     cache->shape.group, cache->shape.head_dim, a->n, a->pos0,
                                     1.0f / sqrtf((float)cache->shape.head_dim)};
    sr_cuda_prefill(sr_cuda_of(b), &p);
}

/* ---- steps ---- */

static struct attn_cuda_sketch sketch_of(const struct device_cache *c, const struct sketch_basis *basis)
{
    return attn_cuda_sketch{c->sketch.rank, c->sketch.bits, basis};
}

static struct attn_cuda_counters *counters_of(struct device_counters *c) { return reinterpret_cast<struct attn_cuda_counters *>(c); }

static sr_status encode_rows(const struct attn_cuda *call, const struct device_encode_args *a, sr_error *err)
{
    const struct attn_cuda_cache rows = layer_of(a->cache, a->layer);
    const struct attn_cuda_encode e = {sketch_of(a->cache, a->basis), a->n_sinks, a->window, a->n_last, counters_of(a->counters)};
    return sr_attn_cuda_encode(call, &rows, &e, err);
}

static void encode(struct backend *b, const struct device_encode_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const struct attn_cuda call = common(c, a->cache);
    sr_error err;
    note(c, encode_rows(&call, a, &err), &err);
}

/* kinds (and the list) of the step. */
static sr_status plan_cosine(const struct attn_device *d, const struct attn_cuda *call, const struct device_step_args *a, sr_error *err)
{
    const struct attn_cuda_cache rows = layer_of(a->cache, a->layer);
    const struct device_route *r = a->route;
    const struct attn_cuda_paper p = {a->q,       {r->tau[0], r->tau[1], r->tau[2], r->tau[3]}, r->tau_scale, r->tau_min_len, r->tau_max_len, 0,
                                      d->score, d->kinds, counters_of(a->counters)};
    return sr_attn_cuda_paper(call, &rows, &p, err);
}

static const struct always_rows *always_of(const struct device_step_args *a)
{
    return a->route->trail ? a->route->trail->always + (size_t)a->layer * (size_t)a->cache->n_kv_heads : NULL;
}

/* Before the first layer: what the step before left. */
static sr_status follow(const struct attn_cuda *call, const struct device_step_args *a, sr_error *err)
{
    const struct device_trail *t = a->route->trail;
    const struct attn_cuda_follow f = {t->words, t->max_len, a->cache->kv_len, a->cache->found, t->always, t->n_units, a->route->n_sinks, a->route->window};
    return sr_attn_cuda_follow(call, &f, err);
}

static sr_status plan_mass(const struct attn_device *d, const struct attn_cuda *call, const struct device_step_args *a, const struct attn_cuda_turn *turn, float scale,
                           sr_error *err)
{
    const struct attn_cuda_cache rows = layer_of(a->cache, a->layer);
    const struct device_route *r = a->route;
    struct attn_cuda_choose t = {};
    t.sketch = sketch_of(a->cache, a->basis);
    t.q = a->q;
    t.scale = scale;
    t.n_sinks = r->n_sinks;
    t.window = r->window;
    t.eps = &r->terms->threshold;
    t.keep = r->keep;
    t.found = a->cache->found + (size_t)a->layer * (size_t)a->cache->n_kv_heads;
    t.always = always_of(a);
    t.notes = r->trail != NULL;
    t.trust = a->trust;
    t.plain_eps = r->is_corrected ? &r->terms->plain : NULL;
    t.n_chosen = r->is_corrected ? d->n_chosen : NULL;
    t.kinds = d->kinds;
    t.list = d->list;
    t.n_list = d->n_list;
    t.list_stride = d->limits.max_len;
    t.unread = d->unread;
    t.encodes = 1;
    t.look = r->looks;
    t.counters = counters_of(a->counters);
    return sr_cuda_turn_and_choose(call, &rows, &t, turn, err);
}

static struct attn_cuda_look look_of(const struct attn_device *d, const struct device_step_args *a, float scale)
{
    const struct device_trail *t = a->route->trail;
    return attn_cuda_look{a->q, scale, &a->route->terms->threshold, d->kinds, d->list, d->n_list, d->limits.max_len, d->unread, d->state, a->out,
                                     counters_of(a->counters), t ? t->words : NULL, t ? t->max_len : 0, always_of(a), !a->route->looks};
}

/* Whether a plan was made; else all units are of one kind. */
static bool is_planned(const struct device_step_args *a)
{
    return a->layer >= a->route->dense_layers && (a->route->rule == RULE_COSINE || a->route->rule == RULE_MASS);
}

static enum attn_cuda_kind kind_of_all(const struct device_step_args *a)
{
    return a->route->rule == RULE_NEAR && a->layer >= a->route->dense_layers ? CUDA_READ_NEAR : CUDA_READ_ALL;
}

static sr_status audit(const struct attn_device *d, const struct attn_cuda *call, const struct device_step_args *a, float scale, sr_error *err)
{
    const struct attn_cuda_cache rows = layer_of(a->cache, a->layer);
    const struct device_route *r = a->route;
    const bool estimates = is_planned(a) && r->rule == RULE_MASS;
    struct attn_cuda_audit u = {};
    u.q = a->q;
    u.scale = scale;
    u.fraction = &r->terms->audit;
    u.trust = r->rule == RULE_MASS ? a->trust : NULL;
    u.is_watched = r->is_watched;
    u.is_routed = r->rule != RULE_ALL;
    u.seed = r->seed;
    u.layer = a->layer;
    u.n_sinks = r->n_sinks;
    u.window = r->window;
    u.keeps_near = r->keeps_near;
    u.routed = is_planned(a) ? d->kinds : NULL;
    u.kind = kind_of_all(a);
    u.eps = &r->terms->eps;
    u.unread = estimates ? d->unread : NULL;
    u.n_chosen = estimates && r->is_corrected ? d->n_chosen : NULL;
    u.state = d->state;
    u.out = a->out;
    u.dense = d->dense;
    u.kinds = d->audit_kinds;
    u.counters = counters_of(a->counters);
    u.cases = reinterpret_cast<struct attn_cuda_case *>(a->cases);
    return sr_attn_cuda_audit(call, &rows, &u, err);
}

/* Whether attention reads on, or notes rows, or both. */
static bool looks_again(const struct device_step_args *a) { return is_planned(a) && a->route->rule == RULE_MASS && (a->route->looks || a->route->trail); }

static sr_status attend(const struct attn_device *d, const struct attn_cuda *call, const struct device_step_args *a, float scale, sr_error *err)
{
    const struct attn_cuda_cache rows = layer_of(a->cache, a->layer);
    const struct device_route *r = a->route;
    struct attn_cuda_attend t = {};
    t.q = a->q;
    t.scale = scale;
    t.kinds = is_planned(a) ? d->kinds : NULL;
    t.kind = kind_of_all(a);
    if (is_planned(a) && r->rule == RULE_MASS) {
        t.list = d->list;
        t.n_list = d->n_list;
        t.list_stride = d->limits.max_len;
    }
    t.n_sinks = r->n_sinks;
    t.window = r->window;
    t.out = a->out;
    if (r->has_audits || looks_again(a)) t.state = d->state;
    t.counters = counters_of(a->counters);
    if (!looks_again(a)) return sr_attn_cuda_attend(call, &rows, &t, err);
    const struct attn_cuda_look l = look_of(d, a, scale);
    return sr_attn_cuda_attend_and_look(call, &rows, &t, &l, err);
}

static __global__ void keep_kernel(const float *row, float *kept, int32_t n, const int32_t *kv_len)
{
    const int32_t i = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) kept[(int64_t)((*kv_len - 1) % SR_KEPT_ROWS) * n + i] = row[i];
}

/* The same, of heads that are as attention wants them. */
static void append_and_keep(struct backend_cuda *c, const struct device_step_args *a)
{
    const struct device_cache *cache = a->cache;
    const int32_t k = cache->n_kv_heads * cache->shape.head_dim, q = k * cache->shape.group;
    append_rows(c, cache, a->layer, a->k, a->v, 1);
    if (!a->q_kept) return;
    keep_kernel<<<(unsigned)((q + SR_CUDA_THREADS - 1) / SR_CUDA_THREADS), SR_CUDA_THREADS, 0, c->stream>>>(a->q, a->q_kept, q, cache->kv_len);
    keep_kernel<<<(unsigned)((k + SR_CUDA_THREADS - 1) / SR_CUDA_THREADS), SR_CUDA_THREADS, 0, c->stream>>>(a->k, a->k_kept, k, cache->kv_len);
    sr_cuda_note(c, cudaGetLastError(), "rows kept");
}

/* Whether the choice rotates the heads and appends the row itself, before it has anything of layers before to wait for. */
static bool choice_turns(const struct device_step_args *a) { return is_planned(a) && a->route->rule == RULE_MASS && a->layer > 0 && a->route->window > 0; }

/* The step's row is appended, with heads that were still to be rotated if there is a rope. Returns whether that is left to the choice, and how.
 * is_old: angles that are there are older than the kernel before. */
static bool append_step(struct backend_cuda *c, const struct device_step_args *a, const struct rope_args *rope, bool is_old, struct attn_cuda_turn *turn)
{
    const struct attn_cuda_append row = append_of(a->cache, a->layer, a->k, a->v, 1);
    const struct attn_cuda_cache rows = layer_of(a->cache, a->layer);
    if (!rope) {
        if (a->k) append_and_keep(c, a);
        return false;
    }
    if (choice_turns(a) && is_old && sr_cuda_rope_has_angles(c, rope)) {
        *turn = sr_cuda_turn_of(c, rope, &row, a);
        turn->q_to = c->attn->q;
        turn->k_to = NULL;
        return true;
    }
    sr_cuda_rope_append(c, rope, &row, &rows, a);
    return false;
}

static void step_one(struct backend_cuda *c, const struct device_step_args *args, const struct rope_args *rope, bool is_old)
{
    struct device_step_args a = *args;
    struct attn_cuda_turn turn;
    const struct attn_cuda call = common(c, a.cache);
    const float scale = 1.0f / sqrtf((float)a.cache->shape.head_dim);
    sr_error err;
    sr_status st = SR_OK;
    if (a.layer == 0 && a.route->rule == RULE_MASS && a.route->trail) note(c, follow(&call, &a, &err), &err);
    const bool is_left = append_step(c, &a, rope, is_old, &turn);
    if (is_left) a.q = turn.q_to;
    if (is_planned(&a) && a.route->rule == RULE_COSINE) st = plan_cosine(c->attn, &call, &a, &err);
    if (is_planned(&a) && a.route->rule == RULE_MASS) st = plan_mass(c->attn, &call, &a, is_left ? &turn : NULL, scale, &err);
    if (st == SR_OK) st = attend(c->attn, &call, &a, scale, &err);
    if (st == SR_OK && a.route->has_audits) st = audit(c->attn, &call, &a, scale, &err);
    note(c, st, &err);
}

/* ---- steps of several sequences ---- */

/* Whether a launch may serve others too: it reads all, or sinks and window, and leaves nothing for an audit. */
static bool may_join(const struct device_step_args *a)
{
    return (a->route->rule == RULE_ALL || a->route->rule == RULE_NEAR) && !a->route->has_audits;
}

static bool are_alike(const struct device_step_args *a, const struct device_step_args *b)
{
    const struct device_route *r = a->route, *s = b->route;
    const struct attn_shape *x = &a->cache->shape, *y = &b->cache->shape;
    const bool same_shape = x->head_dim == y->head_dim && x->group == y->group && x->k_type == y->k_type && a->cache->n_kv_heads == b->cache->n_kv_heads;
    const enum attn_cuda_kind kind = kind_of_all(a);
    return same_shape && kind == kind_of_all(b) && (kind == CUDA_READ_ALL || (r->n_sinks == s->n_sinks && r->window == s->window));
}

/* Rows of several into their caches, by one kernel where they are still to be rotated: `rope` is then of each of the step's sequences,
 * with angles in rows, and else NULL. who[n] are of a. */
static void append_each(struct backend_cuda *c, const struct device_step_args *a, const int32_t *who, int32_t n, const struct rope_args *rope, const float *cos,
                        const float *sin)
{
    struct attn_cuda_turn turn[SR_STEP_SEQS];
    struct attn_cuda_cache cache[SR_STEP_SEQS];
    const struct device_cache *first = a[who[0]].cache;
    for (int32_t i = 0; i < n; i++) {
        const struct device_step_args *s = &a[who[i]];
        if (!rope) {
            append_step(c, s, NULL, false, &turn[i]);
            continue;
        }
        const struct attn_cuda_append row = append_of(s->cache, s->layer, s->k, s->v, 1);
        const int64_t at = (int64_t)who[i] * (rope->spec->n_dims / 2);
        turn[i] = sr_cuda_turn_with(&rope[who[i]], cos + at, sin + at, &row, s);
        cache[i] = layer_of(s->cache, s->layer);
    }
    if (rope) sr_cuda_rope_append_each(c, turn, cache, n, &first->shape, first->n_kv_heads);
}

static void attend_each(struct backend_cuda *c, const struct device_step_args *a, const int32_t *who, int32_t n)
{
    const struct device_step_args *first = &a[who[0]];
    const struct attn_cuda call = common(c, first->cache);
    struct attn_cuda_seq seqs[SR_STEP_SEQS];
    struct attn_cuda_attend t = {};
    sr_error err;
    for (int32_t i = 0; i < n; i++) {
        const struct device_step_args *s = &a[who[i]];
        const struct attn_cuda_cache rows = layer_of(s->cache, s->layer);
        seqs[i] = attn_cuda_seq{rows.k_page, rows.v_page, rows.kv_len, counters_of(s->counters), rows.max_pages, who[i]};
    }
    t.q = a[0].q;
    t.out = a[0].out;
    t.scale = 1.0f / sqrtf((float)first->cache->shape.head_dim);
    t.kind = kind_of_all(first);
    t.n_sinks = first->route->n_sinks;
    t.window = first->route->window;
    note(c, sr_attn_cuda_attend_seqs(&call, seqs, n, &t, &err), &err);
}

static_assert(SR_STEP_SEQS == ATTN_CUDA_SEQS, "one number, two names");

/* Those of a that are not done and like a[i], itself included, where that is more than one. */
static int32_t find_alike(struct backend_cuda *c, const struct device_step_args *a, int32_t n, int32_t i, const bool *is_done, int32_t *who)
{
    const struct attn_cuda call = common(c, a[i].cache);
    int32_t alike = 0;
    if (is_done[i] || !may_join(&a[i]) || !sr_attn_cuda_joins(&call)) return 0;
    for (int32_t k = i; k < n; k++)
        if (!is_done[k] && may_join(&a[k]) && are_alike(&a[i], &a[k])) who[alike++] = k;
    return alike > 1 ? alike : 0;
}

/* Those that are alike at once; then, since they may find angles anew, the others one after another. */
static void step(struct backend *b, const struct device_step_args *a, int32_t n)
{
    struct backend_cuda *c = sr_cuda_of(b);
    struct rope_args ropes[SR_STEP_SEQS];
    const struct rope_args *rope = sr_cuda_take_ropes(c, a, n, ropes) ? ropes : NULL;
    const float *cos = NULL, *sin = NULL;
    const bool is_old = n == 1 || !rope || sr_cuda_rope_angles_each(c, rope, n, &cos, &sin);
    bool is_done[SR_STEP_SEQS] = {};
    for (int32_t i = 0; i < n; i++) {
        int32_t who[SR_STEP_SEQS];
        const int32_t alike = find_alike(c, a, n, i, is_done, who);
        if (!alike) continue;
        for (int32_t k = 0; k < alike; k++) is_done[who[k]] = true;
        append_each(c, a, who, alike, rope, cos, sin);
        attend_each(c, a, who, alike);
    }
    for (int32_t i = 0; i < n; i++)
        if (!is_done[i]) step_one(c, &a[i], rope ? &rope[i] : NULL, is_old);
}

const struct device_attn_ops sr_cuda_attn_ops = {
    .check = check,
    .sketch_row_bytes = sketch_row_bytes,
    .reserve = sr_cuda_flushed<reserve>,
    .place = sr_cuda_flushed<place>,
    .rows_of_page = sr_rows_of_page,
    .page_of_rows = sr_page_of_rows,
    .append = sr_cuda_flushed<append>,
    .prefill = sr_cuda_flushed<prefill>,
    .encode = sr_cuda_flushed<encode>,
    .moments = sr_cuda_flushed<sr_cuda_moments>,
    .step = step,
};
