/* SPDX-License-Identifier: Apache-2.0
 *
 * Life of an attention and of its sequences, their rows and options. See sequence.h.
 */
#include "attention/sequence.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/timeline.h"
#include "base/memory.h"
#include "formats/quant.h"

/* ---- the attention ---- */

static sr_status check_config(const struct attention_config *c, sr_error *err)
{
    if (c->n_layers < 1 || c->n_layers > 65536)
        return sr_fail(err, SR_ERR_USAGE, "attention: n_layers %d: want 1..65536", c->n_layers);
    if (c->head_dim < 8 || c->head_dim > 256 || c->head_dim % 8) {
        return sr_fail(err, SR_ERR_UNSUPPORTED, "attention: head_dim %d: want a multiple of 8, 8..256",
                       c->head_dim);
    }
    if (c->n_kv_heads < 1 || c->n_kv_heads > 65536)
        return sr_fail(err, SR_ERR_USAGE, "attention: n_kv_heads %d: want 1..65536", c->n_kv_heads);
    if (c->n_heads < 1 || c->n_heads % c->n_kv_heads) {
        return sr_fail(err, SR_ERR_USAGE, "attention: n_heads %d: want a multiple of n_kv_heads %d",
                       c->n_heads, c->n_kv_heads);
    }
    if (c->n_heads / c->n_kv_heads > 16) {
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "attention: %d query heads per KV head (n_heads %d, n_kv_heads %d): limit 16",
                       c->n_heads / c->n_kv_heads, c->n_heads, c->n_kv_heads);
    }
    const struct rope_spec *r = &c->rope;
    if (r->kind == ROPE_NONE) return SR_OK;
    if (r->kind != ROPE_NORM && r->kind != ROPE_NEOX)
        return sr_fail(err, SR_ERR_USAGE, "attention: rope kind %d: want 0..2", (int)r->kind);
    if (r->n_dims < 2 || r->n_dims > c->head_dim || r->n_dims % 2) {
        return sr_fail(err, SR_ERR_USAGE, "attention: rope dims %d: want an even number, 2..%d", r->n_dims,
                       c->head_dim);
    }
    if (!(isfinite(r->magnitude) && r->magnitude > 0)) {
        return sr_fail(err, SR_ERR_USAGE, "attention: rope magnitude %g: want more than 0", r->magnitude);
    }
    for (int32_t i = 0; i < r->n_dims / 2; i++) {
        if (!isfinite(r->inv_freq[i]))
            return sr_fail(err, SR_ERR_USAGE, "attention: rope inv_freq[%d] %g: want a number", i,
                           r->inv_freq[i]);
    }
    return SR_OK;
}

static sr_status new_lower(struct attention **out, const struct attention_config *c, sr_error *err)
{
    struct attention_config lower = *c;
    assert(!c->lower->has_own_memory && c->n_lower < c->n_layers);
    lower.n_layers = c->n_lower;
    lower.n_lower = 0;
    return sr_attn_new(out, c->lower, &lower, err);
}

sr_status sr_attn_new(struct attention **out, struct backend *b, const struct attention_config *c,
                      sr_error *err)
{
    SR_TRY(check_config(c, err));
    struct attention *a = sr_alloc_zero(1, sizeof *a);
    if (!a) return sr_fail_memory(err, sizeof *a, "attention");
    a->backend = b;
    a->pool = sr_backend_pool(b);
    a->c = *c;
    a->c.n_layers -= c->n_lower;
    a->group = c->n_heads / c->n_kv_heads;
    sr_rotation_init(&a->rotation, &c->rope, c->head_dim);
    const sr_status st = c->n_lower ? new_lower(&a->lower, c, err) : SR_OK;
    if (st == SR_OK) *out = a;
    else sr_attn_free(a);
    return st;
}

void sr_attn_free(struct attention *a)
{
    if (!a) return;
    assert(a->n_seqs == 0);
    sr_attn_free(a->lower);
    sr_moments_free(a->moments);
    sr_free(a->seqs);
    sr_free(a->scratch.block);
    sr_free(a);
}

struct attention *sr_attn_lower(const struct attention *a)
{
    return a->lower;
}

struct attn_seq *sr_attn_seq_lower(const struct attn_seq *s)
{
    return s->lower;
}

static struct moments_shape moments_shape_of(const struct attention *a)
{
    return (struct moments_shape){a->c.n_layers, a->c.n_heads, a->c.n_kv_heads, a->c.head_dim};
}

/* Of layers [first, first + n_layers) of a file that has n_all. */
static sr_status load_moments(struct attention *a, int32_t first, int32_t n_all, const char *path, sr_error *err)
{
    struct moments_shape shape = moments_shape_of(a);
    struct moments *m;
    shape.n_layers = n_all;
    for (int32_t i = 0; a->moments && i < a->n_seqs; i++) {
        if (a->seqs[i]->band >= 0 && !a->seqs[i]->use_own) {
            return sr_fail(err, SR_ERR_USAGE, "%s: the moments loaded before are in use by a sequence", path);
        }
    }
    SR_TRY(sr_moments_load(&m, &shape, &a->c.rope, path, err));
    sr_moments_keep_layers(m, first, a->c.n_layers);
    sr_moments_free(a->moments);
    a->moments = m;
    return SR_OK;
}

sr_status sr_attn_load_moments(struct attention *a, const char *path, sr_error *err)
{
    const int32_t n_lower = a->c.n_lower, n_all = a->c.n_layers + n_lower;
    if (a->lower) SR_TRY(load_moments(a->lower, 0, n_all, path, err));
    return load_moments(a, n_lower, n_all, path, err);
}

int sr_attn_has_moments(const struct attention *a)
{
    return a->moments != NULL;
}

/* ---- a sequence ---- */

static sr_status check_type(const char *which, sr_dtype t, int32_t head_dim, sr_error *err)
{
    const char *name = sr_dtype_name(t);
    if (!sr_kv_is_type(t)) {
        return sr_fail(err, SR_ERR_UNSUPPORTED, "attention: %s %s (%d): want " SR_KV_TYPE_NAMES, which,
                       name ? name : "unknown", (int)t);
    }
    if (sr_kv_is_blocked(t) && head_dim % SR_KV_BLOCK) {
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "attention: %s %s stores blocks of 32 values, head_dim %d is no multiple", which, name,
                       head_dim);
    }
    return SR_OK;
}

static sr_status new_scales(struct attn_seq *s, size_t n_units, sr_error *err)
{
    if (!sr_kv_is_scaled(s->shape.k_type) && !sr_kv_is_scaled(s->shape.v_type)) return SR_OK;
    s->scales = sr_alloc(2 * n_units * sizeof *s->scales);
    if (!s->scales) return sr_fail_memory(err, 2 * n_units * sizeof *s->scales, "sequence");
    for (size_t i = 0; i < 2 * n_units; i++) s->scales[i] = 1.0f;
    return SR_OK;
}

/* The sequence of the lower layers, and room to tell the heat of all of them. */
static sr_status new_lower_seq(struct attn_seq *s, const struct attn_seq_config *c, sr_error *err)
{
    const size_t units = ((size_t)s->a->c.n_layers + (size_t)s->a->c.n_lower) * (size_t)s->a->c.n_kv_heads;
    s->heat = sr_alloc_zero(2 * units, sizeof *s->heat);
    if (!s->heat) return sr_fail_memory(err, 2 * units * sizeof *s->heat, "sequence");
    SR_TRY(sr_attn_seq_new(&s->lower, s->a->lower, c, err));
    s->lower->is_lower = 1;
    return SR_OK;
}

/* What a device's kernels cannot do. */
static sr_status check_device(const struct attention *a, const struct attn_seq_config *c, sr_error *err)
{
    const struct attn_shape shape = {
        .head_dim = a->c.head_dim, .group = a->group, .k_type = c->k_type, .v_type = c->v_type};
    if (!a->backend->has_own_memory) return SR_OK;
    return a->backend->ops->device_attn->check(a->backend, &shape, a->c.n_kv_heads, err);
}

static sr_status register_seq(struct attention *a, struct attn_seq *s, sr_error *err)
{
    if (a->n_seqs == a->seqs_room) {
        int32_t room = a->seqs_room ? 2 * a->seqs_room : 4;
        size_t size = sizeof *a->seqs;
        struct attn_seq **seqs = sr_realloc(a->seqs, (size_t)a->n_seqs * size, (size_t)room * size);
        if (!seqs) return sr_fail_memory(err, (size_t)room * size, "sequences");
        a->seqs = seqs;
        a->seqs_room = room;
    }
    SR_TRY(sr_decode_reserve(a, (a->n_seqs + 1) * a->c.n_kv_heads, err));
    if (!a->backend->has_own_memory)
        SR_TRY(a->backend->ops->attn_reserve(a->backend, &s->shape, a->scratch.room, SR_CHUNK_ROWS, err));
    a->seqs[a->n_seqs++] = s;
    return SR_OK;
}

static void unregister_seq(struct attention *a, const struct attn_seq *s)
{
    for (int32_t i = 0; i < a->n_seqs; i++) {
        if (a->seqs[i] == s) a->seqs[i--] = a->seqs[--a->n_seqs];
    }
}

static sr_status check_mode(const struct attention *a, const struct observer *o, const sr_route_options *r, sr_error *err)
{
    const struct policy *p = sr_policy_find(r->mode);
    if (a->backend->has_own_memory && p->rule == RULE_NONE)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "route mode %s: on the CPU only (--device none)", p->name);
    if (o || !p->needs_observer) return SR_OK;
    return sr_fail(err, SR_ERR_USAGE, "route mode %s: for measurements, of sequences observed from their first token on",
                   p->name);
}

sr_status sr_attn_seq_new(struct attn_seq **out, struct attention *a, const struct attn_seq_config *c,
                          sr_error *err)
{
    size_t n_layers = (size_t)a->c.n_layers, n_units = n_layers * (size_t)a->c.n_kv_heads;
    int32_t d = a->c.head_dim;
    SR_TRY(check_device(a, c, err));
    SR_TRY(check_type("k_type", c->k_type, d, err));
    SR_TRY(check_type("v_type", c->v_type, d, err));
    if (c->max_len < 1)
        return sr_fail(err, SR_ERR_USAGE, "attention: max_len %d: want at least 1", c->max_len);
    SR_TRY(sr_route_check(&c->route, d, err));
    SR_TRY(check_mode(a, NULL, &c->route, err));

    sr_status st;
    struct attn_seq *s = sr_alloc_zero(1, sizeof *s);
    if (!s) return sr_fail_memory(err, sizeof *s, "sequence");
    s->a = a;
    s->shape = (struct attn_shape){
        d, a->group, c->k_type, c->v_type, sr_row_bytes(c->k_type, d), sr_row_bytes(c->v_type, d)};
    s->max_len = c->max_len;
    s->route = c->route;
    s->sketch = sr_sketch_shape_of(a, &c->route);
    s->sketch_first = c->route.n_sinks;
    s->len = sr_alloc_zero(n_layers, sizeof *s->len);
    s->sketch_to = sr_alloc_zero(n_layers, sizeof *s->sketch_to);
    s->next_to = sr_alloc_zero(n_layers, sizeof *s->next_to);
    s->near_only = sr_alloc_zero(n_units, sizeof *s->near_only);
    s->decisions = sr_alloc_zero(n_units, sizeof *s->decisions);
    if (!s->len || !s->sketch_to || !s->next_to || !s->near_only || !s->decisions) {
        st = sr_fail_memory(err, n_units * sizeof *s->near_only, "sequence");
        goto fail;
    }
    sr_sketch_drop(s);
    if (!a->moments) {
        struct moments_shape shape = moments_shape_of(a);
        SR_TRY_GOTO(sr_moments_new(&s->own, &shape, &a->rotation, err));
        sr_moments_extend(s->own, SR_MOMENTS_END);
    }
    SR_TRY_GOTO(sr_sinks_new(&s->sinks, a->c.n_layers, a->c.n_kv_heads, d, err));
    SR_TRY_GOTO(sr_contract_new(&s->contract, (int32_t)n_units, a->group, err));
    SR_TRY_GOTO(a->backend->has_own_memory ? sr_device_seq_new(s, err) : new_scales(s, n_units, err));
    if (a->lower) SR_TRY_GOTO(new_lower_seq(s, c, err));
    SR_TRY_GOTO(register_seq(a, s, err));
    *out = s;
    return SR_OK;
fail:
    sr_attn_seq_free(s);
    return st;
}

void sr_attn_seq_free(struct attn_seq *s)
{
    if (!s) return;
    unregister_seq(s->a, s);
    sr_attn_seq_free(s->lower);
    sr_free(s->heat);
    sr_bases_unref(s->bases);
    sr_bases_unref(s->next);
    sr_cache_free(s);
    sr_device_seq_free(s);
    sr_moments_free(s->own);
    sr_contract_free(s->contract);
    sr_sinks_free(s->sinks);
    sr_observer_free(s->observer);
    sr_free(s->scales);
    sr_free(s->len);
    sr_free(s->sketch_to);
    sr_free(s->next_to);
    sr_free(s->near_only);
    sr_free(s->decisions);
    sr_free(s);
}

sr_status sr_attn_seq_reserve(struct attn_seq *s, int32_t len, sr_error *err)
{
    if (len < 0 || len > s->max_len)
        return sr_fail(err, SR_ERR_USAGE, "context full: %d tokens, max_len is %d", len, s->max_len);
    if (s->lower) SR_TRY(sr_attn_seq_reserve(s->lower, len, err));
    SR_TRY(sr_cache_reserve(s, len, err));
    if (len == s->len[0] + 1) sr_cache_ahead(s, len);
    return SR_OK;
}

int32_t sr_attn_seq_len(const struct attn_seq *s, int32_t layer)
{
    return s->len[layer];
}

/* Moments that the sequence collected are kept: they belong to the model, and positions are counted once. */
sr_status sr_attn_seq_truncate(struct attn_seq *s, int32_t len, sr_error *err)
{
    if (len < 0) return sr_fail(err, SR_ERR_USAGE, "truncate: length %d is negative", len);
    if (s->lower) SR_TRY(sr_attn_seq_truncate(s->lower, len, err));
    for (int32_t l = 0; l < s->a->c.n_layers; l++) {
        if (s->len[l] > len) s->len[l] = len;
        int32_t most = len > s->sketch_first ? len : s->sketch_first;
        if (s->sketch_to[l] > most) s->sketch_to[l] = most;
        if (s->next_to[l] > most) s->next_to[l] = most;
    }
    sr_sinks_truncate(s->sinks, len);
    if (s->device) sr_device_trail_truncate(s, len);
    else sr_trail_truncate(&s->trail, len);
    if (s->observer) sr_observer_truncate(s->observer, len);
    return SR_OK;
}

/* Everything that the tokens left is forgotten, own moments too: what follows is as in a new sequence.
 * Counters stay. */
void sr_attn_seq_clear(struct attn_seq *s)
{
    if (s->lower) sr_attn_seq_clear(s->lower);
    memset(s->len, 0, (size_t)s->a->c.n_layers * sizeof *s->len);
    sr_sketch_drop(s);
    sr_sinks_truncate(s->sinks, 0);
    if (s->device) sr_device_trail_truncate(s, 0);
    s->trail = (struct trail){0};
    if (s->observer) sr_observer_truncate(s->observer, 0);
    sr_cache_free(s);
    sr_contract_restart(s->contract, s->a->c.n_layers * s->a->c.n_kv_heads, s->a->group);
    if (s->own) sr_moments_reset(s->own);
    if (s->device) sr_device_own_reset(s);
}

/* Whether what audits taught under one set of options holds under another. */
static int same_contract(const sr_route_options *x, const sr_route_options *y)
{
    return x->mode == y->mode && x->eps == y->eps && x->delta == y->delta && x->window == y->window &&
           x->n_sinks == y->n_sinks && x->rank == y->rank && x->bits == y->bits && x->audit == y->audit &&
           x->seed == y->seed && x->breaker == y->breaker;
}

sr_status sr_attn_seq_route_set(struct attn_seq *s, const sr_route_options *r, sr_error *err)
{
    SR_TRY(sr_route_check(r, s->a->c.head_dim, err));
    SR_TRY(check_mode(s->a, s->observer, r, err));
    if (s->lower) SR_TRY(sr_attn_seq_route_set(s->lower, r, err));
    if (s->observer) sr_observer_restart(s->observer);
    struct sketch_shape shape = sr_sketch_shape_of(s->a, r);
    if (r->mode == SR_ROUTE_MASS) {
        SR_TRY(sr_cache_sketch_reserve(s, &shape, err));
        if (r->n_sinks != s->sketch_first) { /* the first sketch row moves */
            s->sketch_first = r->n_sinks;
            sr_sketch_drop(s);
        }
    }
    if (!same_contract(&s->route, r)) sr_contract_restart(s->contract, s->a->c.n_layers * s->a->c.n_kv_heads, s->a->group);
    s->route = *r;
    s->lot_to = s->n_lot = 0;
    if (s->device) sr_device_route_changed(s);
    return SR_OK;
}

sr_status sr_attn_seq_observe(struct attn_seq *s, sr_error *err)
{
    const struct attention *a = s->a;
    if (s->observer) return SR_OK;
    if (s->device || s->lower) return sr_fail(err, SR_ERR_UNSUPPORTED, "route modes of other papers: on the CPU only (--device none)");
    if (sr_kv_is_scaled(s->shape.k_type))
        return sr_fail(err, SR_ERR_UNSUPPORTED, "route modes of other papers: not with a K cache of %s; f16 (-ctk f16) or another type",
                       sr_dtype_name(s->shape.k_type));
    if (s->len[0] > 0) return sr_fail(err, SR_ERR_USAGE, "observe: the sequence has %d tokens, want none", s->len[0]);
    return sr_observer_new(&s->observer, a->backend, &s->shape, a->c.n_layers, a->c.n_kv_heads, s->max_len, err);
}

void sr_attn_seq_mark(struct attn_seq *s, int32_t pos, int is_punctuation)
{
    if (s->observer && pos < s->max_len) sr_observer_mark(s->observer, pos, is_punctuation);
}

void sr_attn_seq_watch(struct attn_seq *s, sr_route_watch_fn *fn, void *user)
{
    if (s->lower) sr_attn_seq_watch(s->lower, fn, user);
    s->watch = fn;
    s->watch_user = user;
}

const sr_route_options *sr_attn_seq_route(const struct attn_seq *s)
{
    return &s->route;
}

sr_status sr_attn_seq_save_moments(const struct attn_seq *s, const char *path, sr_error *err)
{
    const struct moments *m = s->a->moments && !s->use_own ? s->a->moments : s->own;
    if (s->lower) return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: moments are saved with all layers on one device", path);
    if (s->device && m == s->own) SR_TRY(sr_device_own_fetch(s, err));
    return sr_moments_save(m, &s->a->c.rope, path, err);
}

/* ---- rows ---- */

float sr_attn_scale(const struct attention *a)
{
    return 1.0f / sqrtf((float)a->c.head_dim);
}

int sr_seq_collects(const struct attn_seq *s, int32_t layer)
{
    return s->own && (s->use_own || !s->a->moments) && sr_moments_wants(s->own, layer);
}

/* What is largest in the first rows of a head is stored as less than 32, 14 times below where e4m3 ends: later rows may be
 * larger. One below 1 counts as 1. As the device has it (cuda/attn_small.cu); there too a NaN counts as nothing. */
static float scale_of(const float *x, int64_t stride, int32_t n, int32_t d)
{
    float max = 1.0f;
    for (int32_t t = 0; t < n; t++)
        for (int32_t i = 0; i < d; i++) max = fmaxf(max, fabsf(x[t * stride + i]));
    return isinf(max) ? 1.0f : ldexpf(1.0f, ilogbf(max) - 4);
}

static void set_scales(struct attn_seq *s, int32_t layer, const float *k, const float *v, int32_t n)
{
    const int32_t n_kv = s->a->c.n_kv_heads, d = s->a->c.head_dim;
    float *k_scale = s->scales + (int64_t)layer * n_kv, *v_scale = k_scale + (int64_t)s->a->c.n_layers * n_kv;
    for (int32_t g = 0; g < n_kv; g++) {
        k_scale[g] = scale_of(k + g * d, (int64_t)n_kv * d, n, d);
        v_scale[g] = scale_of(v + g * d, (int64_t)n_kv * d, n, d);
    }
}

void sr_attn_append(struct attn_seq *s, int32_t layer, const float *k, const float *v, int32_t n)
{
    struct attention *a = s->a;
    struct decode_scratch *w = &a->scratch;
    int32_t n_kv = a->c.n_kv_heads, d = a->c.head_dim, pos0 = s->len[layer];
    assert(n >= 0 && pos0 + n <= s->n_chunks * SR_CHUNK_ROWS);
    if (s->device) {
        sr_device_append(s, layer, k, v, n);
        return;
    }
    if (s->scales && pos0 == 0 && n > 0) set_scales(s, layer, k, v, n);
    sr_cache_units(s, layer, w->seq_units);
    for (int32_t g = 0; g < n_kv; g++) {
        w->append[g] = (struct kv_append_args){
            .shape = &s->shape,
            .k = w->seq_units[g].k,
            .v = w->seq_units[g].v,
            .k_src = k + g * d,
            .v_src = v + g * d,
            .stride = (int64_t)n_kv * d,
            .pos0 = pos0,
            .n = n,
        };
    }
    a->backend->ops->kv_append(a->backend, w->append, n_kv);
    sr_sinks_append(s->sinks, layer, k, v, n, pos0);
    if (s->observer) sr_observer_keys(s->observer, layer, w->seq_units, n, pos0);
    s->len[layer] = pos0 + n;
    if (sr_seq_collects(s, layer)) sr_moments_add_k(s->own, a->pool, layer, k, n, pos0);
}

void sr_attn_prefill(struct attn_seq *s, int32_t layer, float *q, int32_t n, float *out)
{
    sr_attn_prefill_at(s, layer, q, s->len[layer] - n, n, out);
}

void sr_attn_prefill_at(struct attn_seq *s, int32_t layer, float *q, int32_t pos0, int32_t n, float *out)
{
    struct attention *a = s->a;
    struct decode_scratch *w = &a->scratch;
    int64_t stride = (int64_t)a->c.n_heads * a->c.head_dim;
    float scale = sr_attn_scale(a);
    assert(n >= 1 && pos0 >= 0 && pos0 + n <= s->len[layer]);
    if (s->device) {
        sr_device_prefill(s, layer, q, pos0, n, out);
        return;
    }
    for (int64_t i = 0; i < n * stride; i++) q[i] *= scale;
    sr_cache_units(s, layer, w->seq_units);
    a->backend->ops->attn_prefill(a->backend, &(struct attn_prefill_args){
                                                  .shape = &s->shape,
                                                  .units = w->seq_units,
                                                  .n_units = a->c.n_kv_heads,
                                                  .q = q,
                                                  .out = out,
                                                  .q_stride = stride,
                                                  .out_stride = stride,
                                                  .pos0 = pos0,
                                                  .n = n,
                                              });
    if (sr_seq_collects(s, layer)) sr_moments_add_q(s->own, a->pool, layer, q, n, pos0);
    if (s->observer) sr_observer_queries(s->observer, layer, w->seq_units, q, n, pos0);
}
