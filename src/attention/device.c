/* SPDX-License-Identifier: Apache-2.0
 *
 * A sequence whose rows lie in a device's memory (backend/device_attn.h): its tables and counters there, what the host
 * does before a step, and the launches of a step. The host knows every length without asking; it reads nothing back but
 * counters, when somebody wants them, the sums of the sequence's own moments, when the first bases are made, and what
 * audits found (device_contract.c).
 */
#include "attention/device_seq.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"
#include "formats/quant.h"

static const struct device_attn_ops *ops_of(const struct attn_seq *s) { return s->a->backend->ops->device_attn; }

/* ---- life ---- */

static void layout(struct arena *a, struct attn_seq *s, struct device_seq *d)
{
    const size_t units = sr_device_units(s), pages = units * (size_t)d->cache.max_pages;
    d->cache.k_page = sr_arena_take(a, pages, sizeof(void *));
    d->cache.v_page = sr_arena_take(a, pages, sizeof(void *));
    d->cache.y_page = sr_arena_take(a, pages, sizeof(void *));
    d->counters = sr_arena_take(a, units, sizeof *d->counters);
    d->kv_len = sr_arena_take(a, 1, sizeof *d->kv_len);
    d->terms = sr_arena_take(a, 1, sizeof *d->terms);
    d->trust = sr_arena_take(a, units, 1);
    d->cache.found = sr_arena_take(a, units, sizeof *d->cache.found);
    d->keep = sr_arena_take(a, (size_t)d->cache.n_kv_heads, sizeof *d->keep);
    sr_device_trail_layout(a, s, d);
    d->scales = sr_arena_take(a, d->cache.shape.k_type == SR_DTYPE_F8_E4M3 ? 2 * units : 0, sizeof *d->scales);
}

/* 1, till the first rows come. */
static sr_status plain_scales(struct attn_seq *s, sr_error *err)
{
    struct device_seq *d = s->device;
    const size_t n = 2 * sr_device_units(s);
    if (s->shape.k_type != SR_DTYPE_F8_E4M3) return SR_OK;
    float *one = sr_alloc(n * sizeof *one);
    if (!one) return sr_fail_memory(err, n * sizeof *one, "sequence");
    for (size_t i = 0; i < n; i++) one[i] = 1.0f;
    s->a->backend->ops->upload(s->a->backend, d->scales, one, n * sizeof *one);
    sr_free(one);
    d->cache.k_scale = d->scales;
    d->cache.v_scale = d->scales + sr_device_units(s);
    return SR_OK;
}

enum { TURNS = SR_TURN_STEP + SR_MOMENTS_END / SR_TURN_STEP };

/* The device undoes the rotation of rows with these cosines and sines. */
static sr_status place_turns(struct attn_seq *s, sr_error *err)
{
    const struct attention *a = s->a;
    struct backend *b = a->backend;
    const size_t half = a->c.rope.kind == ROPE_NONE ? 0 : (size_t)a->c.rope.n_dims / 2, row = 2 * half * sizeof(float);
    float turn[2 * SR_MAX_PAIRS];
    if (half == 0) return SR_OK;
    float *all = sr_alloc(TURNS * row);
    if (!all) return sr_fail_memory(err, TURNS * row, "rotary angles");
    for (int64_t i = 0; i < TURNS; i++) {
        sr_rotation_turn(&a->rotation, i < SR_TURN_STEP ? i : (i - SR_TURN_STEP) * SR_TURN_STEP, turn);
        for (size_t j = 0; i < SR_TURN_STEP && j < 2 * half; j++) turn[j] *= (float)a->rotation.scale[j / 2];
        memcpy(all + (size_t)i * 2 * half, turn, row);
    }
    const sr_status st = b->ops->mem_new(b, (void **)&s->device->turn, TURNS * row, "rotary angles", err);
    if (st == SR_OK) b->ops->upload(b, s->device->turn, all, TURNS * row);
    sr_free(all);
    return st;
}

static sr_status collect_own(struct attn_seq *s, sr_error *err)
{
    struct backend *b = s->a->backend;
    size_t bytes = sr_moments_sums_bytes(s->own);
    SR_TRY(b->ops->mem_new(b, (void **)&s->device->sums, bytes, "moments", err));
    b->ops->mem_clear(b, s->device->sums, bytes);
    const size_t kept = (size_t)s->a->c.n_layers * SR_KEPT_ROWS * (size_t)(s->a->c.n_heads + s->a->c.n_kv_heads) * (size_t)s->a->c.head_dim;
    SR_TRY(b->ops->mem_new(b, (void **)&s->device->kept, kept * sizeof *s->device->kept, "moments", err));
    return place_turns(s, err);
}

sr_status sr_device_seq_new(struct attn_seq *s, sr_error *err)
{
    struct backend *b = s->a->backend;
    struct arena a = {NULL, 0};
    struct device_seq *d = sr_alloc_zero(1, sizeof *d);
    if (!d) return sr_fail_memory(err, sizeof *d, "sequence");
    s->device = d;
    d->fetched = sr_alloc_zero(sr_device_units(s), sizeof *d->fetched);
    if (!d->fetched) return sr_fail_memory(err, sr_device_units(s) * sizeof *d->fetched, "sequence");
    const int32_t n_chunks = (s->max_len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS;
    d->cache = (struct device_cache){.shape = s->shape, .n_kv_heads = s->a->c.n_kv_heads,
                                     .max_pages = n_chunks * (SR_CHUNK_ROWS / SR_PAGE_ROWS)};
    layout(&a, s, d);
    SR_TRY(b->ops->mem_new(b, &d->block, a.used, "sequence", err));
    b->ops->mem_clear(b, d->block, a.used);
    a = (struct arena){d->block, 0};
    layout(&a, s, d);
    d->cache.kv_len = d->kv_len;
    SR_TRY(plain_scales(s, err));
    SR_TRY(sr_device_contract_init(s, err));
    SR_TRY(ops_of(s)->reserve(b, &s->shape, d->cache.n_kv_heads, n_chunks * SR_CHUNK_ROWS, err));
    if (s->own) SR_TRY(collect_own(s, err));
    sr_device_route_changed(s);
    return SR_OK;
}

void sr_device_seq_free(struct attn_seq *s)
{
    struct device_seq *d = s->device;
    struct backend *b = s->a->backend;
    if (!d) return;
    void *blocks[] = {d->block, d->basis_block, d->sums, d->kept, d->turn};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) b->ops->mem_free(b, blocks[i]);
    sr_device_contract_fini(s);
    sr_free(d->fetched);
    sr_free(d);
    s->device = NULL;
}

void sr_device_route_changed(struct attn_seq *s)
{
    struct device_seq *d = s->device;
    const sr_route_options *o = &s->route;
    const struct policy *p = sr_policy_find(o->mode);
    const int32_t dense = p->dense_layers - s->a->c.n_lower; /* of these layers */
    d->route = (struct device_route){
        .rule = p->rule, .n_sinks = o->n_sinks, .window = o->window, .dense_layers = dense > 0 ? dense : 0, .terms = d->terms,
        .tau = {o->tau[0], o->tau[1], o->tau[2], o->tau[3]}, .tau_scale = o->tau_scale, .tau_min_len = o->tau_min_len,
        .tau_max_len = o->tau_max_len, .seed = o->seed, .keeps_near = p->keeps_near, .looks = p->look && o->look,
        .is_corrected = o->delta > 0};
    if (o->keep > 0) {
        for (int32_t g = 0; g < d->cache.n_kv_heads; g++)
            s->a->backend->ops->upload(s->a->backend, d->keep + g, &o->keep, sizeof o->keep);
        d->route.keep = d->keep;
    }
    d->cache.sketch = s->sketch;
    d->is_stale = 1;
}

void sr_device_bases_dropped(struct attn_seq *s)
{
    s->device->placed = NULL;
}

void sr_device_own_reset(struct attn_seq *s)
{
    struct device_seq *d = s->device;
    d->has_sums = 0;
    d->kept_from = d->kept_to;
    if (d->sums) s->a->backend->ops->mem_clear(s->a->backend, d->sums, sr_moments_sums_bytes(s->own));
}

/* ---- storage ---- */

size_t sr_device_sketch_row_bytes(const struct attention *a, const sr_route_options *o)
{
    return a->backend->ops->device_attn->sketch_row_bytes(o->rank ? o->rank : a->c.head_dim / 4, o->bits);
}

static void place(struct attn_seq *s, void **table, void *base, size_t unit_bytes, size_t run_bytes, int32_t chunk)
{
    const int32_t n = SR_CHUNK_ROWS / SR_PAGE_ROWS;
    ops_of(s)->place(s->a->backend, &(struct device_place_args){
                                        .table = table,
                                        .base = base,
                                        .unit_bytes = unit_bytes,
                                        .page_bytes = run_bytes / (size_t)n,
                                        .n_units = (int32_t)sr_device_units(s),
                                        .max_pages = s->device->cache.max_pages,
                                        .first = chunk * n,
                                        .n = n,
                                    });
}

void sr_device_place_chunk(struct attn_seq *s, uint8_t *base, int32_t chunk)
{
    const size_t k_run = SR_CHUNK_ROWS * s->shape.k_row_bytes, v_run = SR_CHUNK_ROWS * s->shape.v_row_bytes;
    place(s, s->device->cache.k_page, base, k_run + v_run, k_run, chunk);
    place(s, s->device->cache.v_page, base + k_run, k_run + v_run, v_run, chunk);
}

void sr_device_place_sketch(struct attn_seq *s, uint8_t *base, int32_t chunk)
{
    const size_t run = SR_CHUNK_ROWS * s->sketch.row_bytes;
    s->device->cache.sketch = s->sketch;
    place(s, s->device->cache.y_page, base, run, run, chunk);
}

/* ---- lengths and moments ---- */

static void tell_len(struct attn_seq *s, int32_t len)
{
    struct device_seq *d = s->device;
    if (d->have_len == len) return;
    d->have_len = len;
    s->a->backend->ops->upload(s->a->backend, d->kv_len, &len, sizeof len);
}

static struct device_moments_args moments_args(const struct attn_seq *s, int32_t layer, int is_key, const float *rows, float scale)
{
    const struct attention_config *c = &s->a->c;
    const int64_t d = c->head_dim, unit = 2 * d * d + d;
    return (struct device_moments_args){
        .sums = s->device->sums + (int64_t)layer * c->n_kv_heads * unit, .unit_len = unit, .rows = rows, .turn = s->device->turn,
        .n_kv_heads = c->n_kv_heads, .per_group = is_key ? 1 : s->a->group, .head_dim = c->head_dim, .n = 1,
        .n_dims = c->rope.n_dims, .first = SR_MOMENTS_FIRST, .end = SR_MOMENTS_END, .kind = c->rope.kind, .scale = scale,
        .is_key = is_key};
}

/* Where steps leave their rows of q (of k with is_key). */
static float *kept_rows(const struct attn_seq *s, int32_t layer, int is_key)
{
    const struct attention_config *c = &s->a->c;
    return s->device->kept + (int64_t)SR_KEPT_ROWS * c->head_dim * (layer * (c->n_heads + c->n_kv_heads) + (is_key ? c->n_heads : 0));
}

/* A step's rows are few for a launch of their own: they are added when their slots are full, or when somebody asks. */
static void add_kept(struct attn_seq *s)
{
    struct device_seq *d = s->device;
    const struct attention_config *c = &s->a->c;
    const int32_t n = (int32_t)(d->kept_to - d->kept_from);
    const int64_t slot = d->kept_from % SR_KEPT_ROWS * c->head_dim;
    for (int32_t l = 0; n > 0 && l < c->n_layers; l++) {
        struct device_moments_args m[2] = {moments_args(s, l, 0, kept_rows(s, l, 0) + slot * c->n_heads, sr_attn_scale(s->a)),
                                           moments_args(s, l, 1, kept_rows(s, l, 1) + slot * c->n_kv_heads, 1.0f)};
        for (int i = 0; i < 2; i++) m[i].pos0 = d->kept_from, m[i].n = n;
        ops_of(s)->moments(s->a->backend, m, 2);
    }
    d->kept_from = d->kept_to;
}

/* Rows [pos0, pos0 + n), as far as they count and were not counted before. */
static void collect(struct attn_seq *s, int32_t layer, int is_key, const float *rows, int32_t n, int64_t pos0)
{
    const struct attention_config *c = &s->a->c;
    int64_t from, to;
    if (!sr_seq_collects(s, layer)) return;
    struct device_moments_args m = moments_args(s, layer, is_key, rows, is_key ? 1.0f : sr_attn_scale(s->a));
    add_kept(s);
    sr_moments_note(s->own, layer, is_key, pos0, n, &from, &to);
    if (from >= to) return;
    s->device->has_sums = 0;
    m.rows += (from - pos0) * c->n_kv_heads * m.per_group * c->head_dim;
    m.pos0 = from;
    m.n = (int32_t)(to - from);
    ops_of(s)->moments(s->a->backend, &m, 1);
}

static sr_status fetch_own(struct attn_seq *s, sr_error *err)
{
    if (!s->own || s->device->has_sums) return SR_OK;
    add_kept(s);
    struct backend *b = s->a->backend;
    SR_TRY(b->ops->download(b, sr_moments_sums(s->own), s->device->sums, sr_moments_sums_bytes(s->own), err));
    s->device->has_sums = sr_moments_ready(s->own);
    return SR_OK;
}

sr_status sr_device_own_fetch(const struct attn_seq *s, sr_error *err)
{
    return fetch_own((struct attn_seq *)(uintptr_t)s, err);
}

void sr_device_own_place(struct attn_seq *s)
{
    s->device->has_sums = 0;
    s->device->kept_from = s->device->kept_to;
    s->a->backend->ops->upload(s->a->backend, s->device->sums, sr_moments_sums(s->own), sr_moments_sums_bytes(s->own));
}

/* ---- prefill ---- */

void sr_device_append(struct attn_seq *s, int32_t layer, const float *k, const float *v, int32_t n)
{
    const int32_t pos0 = s->len[layer];
    s->len[layer] = pos0 + n;
    tell_len(s, pos0 + n);
    ops_of(s)->append(s->a->backend, &(struct device_rows_args){
                                         .cache = &s->device->cache, .layer = layer, .k = k, .v = v, .n = n, .pos0 = pos0});
    collect(s, layer, 1, k, n, pos0);
}

void sr_device_prefill(struct attn_seq *s, int32_t layer, const float *q, int32_t pos0, int32_t n, float *out)
{
    ops_of(s)->prefill(s->a->backend, &(struct device_rows_args){
                                          .cache = &s->device->cache, .layer = layer, .q = q, .out = out, .n = n, .pos0 = pos0});
    collect(s, layer, 0, q, n, pos0);
}

/* ---- bases ---- */

static sr_status make_basis_room(struct attn_seq *s, size_t unit, sr_error *err)
{
    struct device_seq *d = s->device;
    struct backend *b = s->a->backend;
    const size_t n = sr_device_units(s), floats = (n * unit * sizeof(float) + 255) / 256 * 256, bytes = floats + n * sizeof(struct sketch_basis);
    b->ops->mem_free(b, d->basis_block);
    d->basis_block = NULL;
    SR_TRY(b->ops->mem_new(b, &d->basis_block, bytes, "sketch basis", err));
    d->basis = (struct sketch_basis *)(void *)((uint8_t *)d->basis_block + floats);
    d->is_stale = 1;
    return SR_OK;
}

/* Copies the bases of the band at hand, and the table of where they lie. */
static sr_status place_bases(struct attn_seq *s, sr_error *err)
{
    struct device_seq *d = s->device;
    struct backend *b = s->a->backend;
    const size_t n = sr_device_units(s), unit = sr_bases_unit(s->bases);
    const float *data = sr_bases_data(s->bases);
    d->placed = NULL; /* should this fail, later bases may lie where the last ones did */
    if (!d->basis_block || d->is_stale) SR_TRY(make_basis_room(s, unit, err));
    struct sketch_basis *table = sr_alloc(n * sizeof *table);
    if (!table) return sr_fail_memory(err, n * sizeof *table, "sketch basis");
    for (size_t u = 0; u < n; u++) {
        struct sketch_basis host;
        sr_bases_get(s->bases, (int32_t)(u / (size_t)s->a->c.n_kv_heads), (int32_t)(u % (size_t)s->a->c.n_kv_heads), &host);
        const float *base = d->basis_block;
        table[u] = (struct sketch_basis){.mu = base + (host.mu - data), .analysis = base + (host.analysis - data),
                                         .synthesis = base + (host.synthesis - data), .step = base + (host.step - data),
                                         .lambda = base + (host.lambda - data)};
    }
    b->ops->upload(b, d->basis_block, data, n * unit * sizeof(float));
    b->ops->upload(b, d->basis, table, n * sizeof *table);
    sr_free(table);
    d->placed = s->bases;
    return SR_OK;
}

/* Bases of the step's band, and sketch rows up to the one that the step itself encodes. */
static sr_status sync_sketch(struct attn_seq *s, sr_error *err)
{
    const int32_t len = s->len[0], to = len - s->route.window, n_layers = s->a->c.n_layers, n_kv = s->a->c.n_kv_heads;
    if (sr_sketch_uses_own(s)) SR_TRY(fetch_own(s, err));
    SR_TRY(sr_sketch_rebase(s, len, err));
    SR_TRY(sr_sketch_prepare(s, len, err));
    if (s->device->placed != s->bases) SR_TRY(place_bases(s, err));
    for (int32_t l = 0; l < n_layers; l++) {
        const int32_t behind = to - s->sketch_to[l];
        if (behind > 1) {
            ops_of(s)->encode(s->a->backend, &(struct device_encode_args){
                                                 .cache = &s->device->cache, .basis = s->device->basis + l * n_kv,
                                                 .counters = s->device->counters + l * n_kv, .layer = l,
                                                 .n_sinks = s->route.n_sinks, .window = s->route.window, .n_last = behind});
        }
        if (behind > 0) s->sketch_to[l] = to;
    }
    return SR_OK;
}

/* ---- steps ---- */

/* Notes the step's position in the moments of every layer; they go on together. Its rows will be kept where it counts. */
static int note_step(struct attn_seq *s, int64_t pos)
{
    int64_t from = 0, to = 0;
    if (!sr_seq_collects(s, 0)) return 0;
    for (int32_t l = 0; l < s->a->c.n_layers; l++) {
        sr_moments_note(s->own, l, 1, pos, 1, &from, &to);
        sr_moments_note(s->own, l, 0, pos, 1, &from, &to);
    }
    if (from >= to) return 0;
    struct device_seq *d = s->device;
    d->has_sums = 0;
    if (pos != d->kept_to || pos % SR_KEPT_ROWS == 0) {
        add_kept(s);
        d->kept_from = pos;
    }
    d->kept_to = pos + 1;
    return 1;
}

sr_status sr_attn_step_begin(struct attn_seq *s, sr_error *err)
{
    struct device_seq *d = s->device;
    const int32_t len = s->len[0] + 1;
    assert(len <= s->n_chunks * SR_CHUNK_ROWS);
    for (int32_t l = 0; l < s->a->c.n_layers; l++) s->len[l] = len;
    tell_len(s, len);
    const struct policy *p = sr_decode_policy(s, 0);
    if (p->rule == RULE_NONE) return sr_fail(err, SR_ERR_UNSUPPORTED, "route mode %s: not on a GPU", p->name);
    if (p->needs_sketch) SR_TRY(sync_sketch(s, err));
    const int collects = note_step(s, len - 1); /* after the first bases: they end it */
    d->is_stale |= p != d->policy || collects != d->collects;
    d->policy = p;
    d->route.trail = sr_device_trail_begin(s) ? &d->trail : NULL;
    const int has_audits = sr_device_contract_begin(s), is_watched = s->watch != NULL;
    if (has_audits != d->route.has_audits || is_watched != d->route.is_watched || d->is_stale) {
        d->route.has_audits = has_audits;
        d->route.is_watched = is_watched;
        d->collects = collects;
        d->is_stale = 0;
        d->key = ++s->a->n_keys;
    }
    s->stats.steps++;
    return SR_OK;
}

const int32_t *sr_attn_step_len(const struct attn_seq *s) { return s->device->kv_len; }

uint64_t sr_attn_step_key(const struct attn_seq *s) { return s->device->key; }

/* `route` is the sequence's, of the step at hand. */
static struct device_step_args step_args(const struct attn_seq *s, struct device_route *route, int32_t layer)
{
    const struct device_seq *d = s->device;
    const int32_t n_kv = s->a->c.n_kv_heads;
    *route = d->route;
    route->rule = d->policy->rule;
    return (struct device_step_args){
        .cache = &d->cache, .route = route, .layer = layer, .basis = d->basis ? d->basis + layer * n_kv : NULL,
        .counters = d->counters + layer * n_kv, .trust = d->trust + layer * n_kv,
        .cases = (struct device_case *)d->cases_there + layer * n_kv,
        .q_kept = d->collects ? kept_rows(s, layer, 0) : NULL, .k_kept = d->collects ? kept_rows(s, layer, 1) : NULL};
}

void sr_attn_step(struct attn_seq *const *seqs, int32_t n, int32_t layer, const float *q, const float *k, const float *v, float *out)
{
    struct device_step_args a[SR_STEP_SEQS];
    struct device_route routes[SR_STEP_SEQS];
    const struct attention_config *c = &seqs[0]->a->c;
    const int64_t q_dim = (int64_t)c->n_heads * c->head_dim, kv_dim = (int64_t)c->n_kv_heads * c->head_dim;
    assert(n >= 1 && n <= SR_STEP_SEQS);
    for (int32_t i = 0; i < n; i++) {
        a[i] = step_args(seqs[i], &routes[i], layer);
        a[i].q = q + i * q_dim;
        a[i].k = k ? k + i * kv_dim : NULL;
        a[i].v = v ? v + i * kv_dim : NULL;
        a[i].out = out + i * q_dim;
    }
    ops_of(seqs[0])->step(seqs[0]->a->backend, a, n);
}

/* ---- counters ---- */

static int fetch_counters(const struct attn_seq *s)
{
    struct backend *b = s->a->backend;
    const struct device_seq *d = s->device;
    return b->ops->download(b, d->fetched, d->counters, sr_device_units(s) * sizeof *d->fetched, NULL) == SR_OK;
}

static void add_counters(const struct attn_seq *s, const struct device_counters *c, sr_route_stats *out)
{
    const uint64_t k = s->shape.k_row_bytes, v = s->shape.v_row_bytes, projected = c->encoded_rows * k,
                   sketch = c->y_rows * s->sketch.row_bytes + projected;
    out->units += (int64_t)(c->kinds[KIND_NONE] + c->kinds[KIND_NEAR] + c->kinds[KIND_NEAR_LIST] + c->kinds[KIND_ALL]);
    out->units_none += (int64_t)c->kinds[KIND_NONE];
    out->units_near += (int64_t)c->kinds[KIND_NEAR];
    out->units_list += (int64_t)c->kinds[KIND_NEAR_LIST];
    out->units_all += (int64_t)c->kinds[KIND_ALL];
    out->k_rows += (int64_t)(c->k_rows + c->encoded_rows);
    out->v_rows += (int64_t)c->v_rows;
    out->sketch_rows += (int64_t)c->y_rows;
    out->kv_bytes += c->k_rows * k + c->v_rows * v + sketch;
    out->sketch_bytes += sketch;
    out->dense_bytes += c->dense_rows * (k + v);
    out->audit_bytes += c->audit_rows * (k + v);
    out->again_bytes += c->again_rows * k;
    out->audits += (int64_t)c->audits;
    out->cases += (int64_t)c->cases;
    out->above_eps += (int64_t)c->above_eps;
    out->broken += (int64_t)c->broken;
    out->unread_sum += c->unread_sum;
    out->estimate_sum += c->estimate_sum;
    out->output_error_sum += c->output_error_sum;
    if (c->unread_max > out->unread_max) out->unread_max = c->unread_max;
    if (c->output_error_max > out->output_error_max) out->output_error_max = c->output_error_max;
    out->far_rows += (int64_t)c->far_rows;
    out->far_rows_uncorrected += (int64_t)c->far_rows_uncorrected;
    out->clipped += (int64_t)c->clipped;
    out->encoded += (int64_t)c->encoded_rows * s->sketch.rank;
}

void sr_device_stats(const struct attn_seq *s, sr_route_stats *out)
{
    if (!fetch_counters(s)) return;
    for (size_t u = 0; u < sr_device_units(s); u++) add_counters(s, &s->device->fetched[u], out);
}

void sr_device_heat(const struct attn_seq *s)
{
    if (!fetch_counters(s)) return;
    for (size_t u = 0; u < sr_device_units(s); u++) {
        const uint64_t *kinds = s->device->fetched[u].kinds;
        s->near_only[u] = (int64_t)(kinds[KIND_NONE] + kinds[KIND_NEAR]);
        s->decisions[u] = s->near_only[u] + (int64_t)(kinds[KIND_NEAR_LIST] + kinds[KIND_ALL]);
    }
}

void sr_device_stats_reset(struct attn_seq *s)
{
    s->a->backend->ops->mem_clear(s->a->backend, s->device->counters, sr_device_units(s) * sizeof *s->device->counters);
}

/* ---- session files ---- */

sr_status sr_device_found_fetch(struct attn_seq *s, sr_error *err)
{
    struct backend *b = s->a->backend;
    size_t bytes;
    void *copy = sr_sinks_piece(s->sinks, &bytes);
    return b->ops->download(b, copy, s->device->cache.found, bytes, err);
}

void sr_device_found_place(struct attn_seq *s)
{
    size_t bytes;
    const void *copy = sr_sinks_piece(s->sinks, &bytes);
    s->a->backend->ops->upload(s->a->backend, s->device->cache.found, copy, bytes);
}

static sr_status visit_pages(struct attn_seq *s, attn_piece_fn *fn, void *ctx, const struct device_run *run, uint8_t *pages, uint8_t *rows, sr_error *err)
{
    struct backend *b = s->a->backend;
    const int32_t n = (run->n + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS, d = s->shape.head_dim;
    const size_t row = sr_row_bytes(run->type, d), page = SR_PAGE_ROWS * row;
    SR_TRY(b->ops->download(b, pages, run->data, (size_t)n * page, err));
    for (size_t i = 0; i < (size_t)n; i++) ops_of(s)->rows_of_page(run->type, d, pages + i * page, rows + i * page);
    SR_TRY(fn(ctx, run->what, rows, (size_t)run->n * row, err));
    for (size_t i = 0; i < (size_t)n; i++) ops_of(s)->page_of_rows(run->type, d, rows + i * page, pages + i * page);
    b->ops->upload(b, run->data, pages, (size_t)n * page); /* fn may have filled them */
    return SR_OK;
}

sr_status sr_device_visit_rows(struct attn_seq *s, attn_piece_fn *fn, void *ctx, const struct device_run *run, sr_error *err)
{
    const size_t most = SR_CHUNK_ROWS * sr_row_bytes(run->type, s->shape.head_dim);
    uint8_t *copy = sr_alloc(2 * most);
    if (!copy) return sr_fail_memory(err, 2 * most, "session");
    const sr_status st = visit_pages(s, fn, ctx, run, copy, copy + most, err);
    sr_free(copy);
    return st;
}

sr_status sr_device_visit_scales(struct attn_seq *s, attn_piece_fn *fn, void *ctx, sr_error *err)
{
    struct backend *b = s->a->backend;
    struct device_seq *d = s->device;
    const size_t bytes = 2 * sr_device_units(s) * sizeof *d->scales;
    if (!d->cache.k_scale) return SR_OK;
    void *copy = sr_alloc(bytes);
    if (!copy) return sr_fail_memory(err, bytes, "session");
    sr_status st = b->ops->download(b, copy, d->scales, bytes, err);
    if (st == SR_OK) st = fn(ctx, "scales", copy, bytes, err);
    if (st == SR_OK) st = sr_scales_check(copy, bytes / sizeof *d->scales, err);
    if (st == SR_OK) b->ops->upload(b, d->scales, copy, bytes);
    sr_free(copy);
    return st;
}
