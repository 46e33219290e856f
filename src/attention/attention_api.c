/* SPDX-License-Identifier: Apache-2.0
 *
 * The public attention.h over one sequence with a CPU backend of its own: checks arguments, copies queries
 * (they are scaled in place below), and forwards.
 */
#include "sinkrouter/attention.h"

#include <math.h>
#include <string.h>

#include "attention/sequence.h"
#include "base/memory.h"

enum { PREFILL_BLOCK = 128 }; /* queries copied at a time */

struct sr_attention {
    struct backend *backend;
    struct attention *attention;
    struct attn_seq *seq;
    int32_t n_layers, max_len;
    size_t q_elems; /* n_heads * head_dim */
    float *q;       /* [PREFILL_BLOCK][n_heads][head_dim] */
};

sr_attention_options sr_attention_options_default(void)
{
    return (sr_attention_options){
        .k_type = SR_DTYPE_F16,
        .v_type = SR_DTYPE_F16,
        .max_len = 131072,
        .rope_kind = SR_ROPE_NORM,
        .rope_base = 10000,
        .route = sr_route_options_default(),
    };
}

static sr_status rope_of(const sr_attention_options *o, struct rope_spec *r, sr_error *err)
{
    *r = (struct rope_spec){.kind = (enum rope_kind)o->rope_kind, .magnitude = 1};
    if ((unsigned)o->rope_kind > SR_ROPE_NEOX)
        return sr_fail(err, SR_ERR_USAGE, "rope_kind %d: want 0..2", (int)o->rope_kind);
    if (o->head_dim < 8 || o->head_dim > 256) r->kind = ROPE_NONE; /* sr_attn_new refuses it */
    if (r->kind == ROPE_NONE) return SR_OK;
    r->n_dims = o->rope_dims ? o->rope_dims : o->head_dim;
    if (r->n_dims < 2 || r->n_dims > 256 || r->n_dims % 2)
        return sr_fail(err, SR_ERR_USAGE, "rope_dims %d: want an even number, 2..256", r->n_dims);
    if (!o->rope_inv_freq && !(o->rope_base > 0 && isfinite(o->rope_base))) {
        return sr_fail(err, SR_ERR_USAGE, "rope_base %g: want more than 0", o->rope_base);
    }
    for (int32_t i = 0; i < r->n_dims / 2; i++) {
        r->inv_freq[i] = o->rope_inv_freq ? o->rope_inv_freq[i] : pow(o->rope_base, -2.0 * i / r->n_dims);
    }
    return SR_OK;
}

sr_status sr_attention_new(sr_attention **out, const sr_attention_options *o, sr_error *err)
{
    struct attention_config c;
    sr_status st;
    if (!out || !o)
        return sr_fail(err, SR_ERR_USAGE, "sr_attention_new: %s is NULL", out ? "options" : "out");
    c = (struct attention_config){
        .n_layers = o->n_layers, .n_heads = o->n_heads, .n_kv_heads = o->n_kv_heads, .head_dim = o->head_dim};
    SR_TRY(rope_of(o, &c.rope, err));
    sr_attention *a = sr_alloc_zero(1, sizeof *a);
    if (!a) return sr_fail_memory(err, sizeof *a, "attention");
    a->n_layers = o->n_layers;
    a->max_len = o->max_len;
    SR_TRY_GOTO(sr_backend_cpu_open(&a->backend, o->n_threads, err));
    SR_TRY_GOTO(sr_attn_new(&a->attention, a->backend, &c, err));
    struct attn_seq_config sc = {o->k_type, o->v_type, o->max_len, o->route};
    SR_TRY_GOTO(sr_attn_seq_new(&a->seq, a->attention, &sc, err));
    a->q_elems = (size_t)o->n_heads * (size_t)o->head_dim;
    a->q = sr_alloc(PREFILL_BLOCK * a->q_elems * sizeof(float));
    if (!a->q) {
        st = sr_fail_memory(err, PREFILL_BLOCK * a->q_elems * sizeof(float), "queries");
        goto fail;
    }
    *out = a;
    return SR_OK;
fail:
    sr_attention_free(a);
    return st;
}

void sr_attention_free(sr_attention *a)
{
    if (!a) return;
    sr_attn_seq_free(a->seq);
    sr_attn_free(a->attention);
    sr_backend_close(a->backend);
    sr_free(a->q);
    sr_free(a);
}

/* ---- rows ---- */

static sr_status check_call(const sr_attention *a, const char *what, int32_t layer, sr_error *err)
{
    if (!a) return sr_fail(err, SR_ERR_USAGE, "%s: attention is NULL", what);
    if (layer >= 0 && layer < a->n_layers) return SR_OK;
    return sr_fail(err, SR_ERR_USAGE, "%s: layer %d: want 0..%d", what, layer, a->n_layers - 1);
}

static sr_status check_pointer(const char *what, const char *name, const void *p, sr_error *err)
{
    return p ? SR_OK : sr_fail(err, SR_ERR_USAGE, "%s: %s is NULL", what, name);
}

sr_status sr_attention_append(sr_attention *a, int32_t layer, const float *k, const float *v, int32_t n,
                              sr_error *err)
{
    SR_TRY(check_call(a, "append", layer, err));
    if (n < 0) return sr_fail(err, SR_ERR_USAGE, "append: n %d is negative", n);
    if (n == 0) return SR_OK;
    SR_TRY(check_pointer("append", "k", k, err));
    SR_TRY(check_pointer("append", "v", v, err));
    int32_t len = sr_attn_seq_len(a->seq, layer);
    if (n > a->max_len - len) {
        return sr_fail(err, SR_ERR_USAGE, "append: layer %d has %d tokens, %d more exceed max_len %d", layer,
                       len, n, a->max_len);
    }
    SR_TRY(sr_attn_seq_reserve(a->seq, len + n, err));
    sr_attn_append(a->seq, layer, k, v, n);
    return SR_OK;
}

/* The last n tokens, in blocks. A block attends as if the tokens after it were not there yet. */
sr_status sr_attention_prefill(sr_attention *a, int32_t layer, const float *q, int32_t n, float *out,
                               sr_error *err)
{
    SR_TRY(check_call(a, "prefill", layer, err));
    int32_t len = sr_attn_seq_len(a->seq, layer);
    if (n < 0 || n > len)
        return sr_fail(err, SR_ERR_USAGE, "prefill: n %d: want 0..%d, the tokens of layer %d", n, len, layer);
    if (n == 0) return SR_OK;
    SR_TRY(check_pointer("prefill", "q", q, err));
    SR_TRY(check_pointer("prefill", "out", out, err));
    for (int32_t t = 0; t < n; t += PREFILL_BLOCK) {
        int32_t m = n - t < PREFILL_BLOCK ? n - t : PREFILL_BLOCK;
        size_t at = (size_t)t * a->q_elems;
        memcpy(a->q, q + at, (size_t)m * a->q_elems * sizeof(float));
        sr_attn_prefill_at(a->seq, layer, a->q, len - n + t, m, out + at);
    }
    return SR_OK;
}

sr_status sr_attention_decode(sr_attention *a, int32_t layer, const float *q, float *out, sr_error *err)
{
    SR_TRY(check_call(a, "decode", layer, err));
    SR_TRY(check_pointer("decode", "q", q, err));
    SR_TRY(check_pointer("decode", "out", out, err));
    if (sr_attn_seq_len(a->seq, layer) < 1)
        return sr_fail(err, SR_ERR_USAGE, "decode: layer %d has no tokens", layer);
    memcpy(a->q, q, a->q_elems * sizeof(float));
    return sr_attn_decode(a->attention, &a->seq, 1, layer, a->q, out, err);
}

int32_t sr_attention_len(const sr_attention *a, int32_t layer)
{
    return a && layer >= 0 && layer < a->n_layers ? sr_attn_seq_len(a->seq, layer) : 0;
}

sr_status sr_attention_truncate(sr_attention *a, int32_t len, sr_error *err)
{
    SR_TRY(check_call(a, "truncate", 0, err));
    return sr_attn_seq_truncate(a->seq, len, err);
}

/* ---- options, moments, counters ---- */

sr_status sr_attention_route_set(sr_attention *a, const sr_route_options *route, sr_error *err)
{
    SR_TRY(check_call(a, "route_set", 0, err));
    SR_TRY(check_pointer("route_set", "route", route, err));
    return sr_attn_seq_route_set(a->seq, route, err);
}

sr_status sr_attention_moments_load(sr_attention *a, const char *path, sr_error *err)
{
    SR_TRY(check_call(a, "moments_load", 0, err));
    SR_TRY(check_pointer("moments_load", "path", path, err));
    return sr_attn_load_moments(a->attention, path, err);
}

sr_status sr_attention_moments_save(const sr_attention *a, const char *path, sr_error *err)
{
    SR_TRY(check_call(a, "moments_save", 0, err));
    SR_TRY(check_pointer("moments_save", "path", path, err));
    return sr_attn_seq_save_moments(a->seq, path, err);
}

void sr_attention_watch(sr_attention *a, sr_route_watch_fn *fn, void *user)
{
    if (a) sr_attn_seq_watch(a->seq, fn, user);
}

void sr_attention_stats(const sr_attention *a, sr_route_stats *out)
{
    if (!out) return;
    *out = (sr_route_stats){0};
    if (a) sr_attn_seq_stats(a->seq, out);
}

void sr_attention_stats_reset(sr_attention *a)
{
    if (a) sr_attn_seq_stats_reset(a->seq);
}

void sr_attention_memory(const sr_attention *a, uint64_t *kv_bytes, uint64_t *sketch_bytes)
{
    uint64_t kv = 0, sketch = 0;
    if (a) sr_attn_seq_memory(a->seq, &kv, &sketch);
    if (kv_bytes) *kv_bytes = kv;
    if (sketch_bytes) *sketch_bytes = sketch;
}
