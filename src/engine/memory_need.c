/* SPDX-License-Identifier: Apache-2.0
 *
 * What a session will need, before anything is allocated: checked options, bytes of K/V, sketch and scratch.
 */
#include "engine/model.h"

#include "attention/basis.h"
#include "backend/device_attn.h"
#include "model/forward.h"

enum { MAX_BATCH = 4096, CHUNK = SR_CHUNK_ROWS };

sr_session_options sr_session_options_default(void)
{
    return (sr_session_options){.k_type = SR_DTYPE_F16, .v_type = SR_DTYPE_F16, .n_batch = 512,
                                .route = sr_route_options_default()};
}

static sr_status check_cache_type(const struct sr_model *m, const char *which, sr_dtype t, sr_error *err)
{
    const char *name = sr_dtype_name(t);
    if (!sr_kv_is_type(t))
        return sr_fail(err, SR_ERR_USAGE, "%s cache type %s: want " SR_KV_TYPE_NAMES, which, name ? name : "(none)");
    if (sr_kv_is_blocked(t) && m->config.head_dim % SR_KV_BLOCK)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s cache type %s: the head size %d is not a multiple of its block of %d",
                       which, name, m->config.head_dim, SR_KV_BLOCK);
    return SR_OK;
}

sr_status sr_session_options_check(const struct sr_model *m, sr_session_options *o, sr_error *err)
{
    if (!m->backend) return sr_fail(err, SR_ERR_USAGE, "%s: opened for its vocabulary only", m->path);
    if (o->n_ctx == 0) o->n_ctx = m->config.n_ctx_train;
    if (o->n_ctx < 1) return sr_fail(err, SR_ERR_USAGE, "context of %d tokens: want at least 1", o->n_ctx);
    if (o->n_ctx > m->config.n_ctx_train && !o->allow_extrapolation)
        return sr_fail(err, SR_ERR_USAGE,
                       "context of %d tokens: the model was trained for %d; --allow-extrapolation goes beyond", o->n_ctx,
                       m->config.n_ctx_train);
    if (o->n_batch < 1 || o->n_batch > MAX_BATCH)
        return sr_fail(err, SR_ERR_USAGE, "batch of %d tokens: want 1..%d", o->n_batch, MAX_BATCH);
    if (o->n_batch > o->n_ctx) o->n_batch = o->n_ctx;
    SR_TRY(check_cache_type(m, "K", o->k_type, err));
    return check_cache_type(m, "V", o->v_type, err);
}

uint64_t sr_model_kv_bytes(const sr_model *m, sr_dtype k_type, sr_dtype v_type)
{
    const struct model_config *c = &m->config;
    if (!m->has_config || !sr_kv_is_type(k_type) || !sr_kv_is_type(v_type)) return 0;
    const size_t row = sr_row_bytes(k_type, c->head_dim) + sr_row_bytes(v_type, c->head_dim);
    return (uint64_t)c->n_layers * (uint64_t)c->n_kv_heads * row;
}

static uint64_t whole_chunks(int32_t n_ctx) { return ((uint64_t)n_ctx + CHUNK - 1) / CHUNK * CHUNK; }

static int is_on_device(const struct sr_model *m) { return m->backend && m->backend->has_own_memory; }

static struct sketch_shape sketch_on(const struct sr_model *m, const sr_route_options *r, int on_device)
{
    const struct model_config *c = &m->config;
    if (!on_device) return sr_sketch_host_shape(c->head_dim, c->n_heads / c->n_kv_heads, r->rank, r->bits);
    const int32_t rank = r->rank > 0 ? r->rank : c->head_dim / 4;
    return (struct sketch_shape){rank, r->bits, m->backend->ops->device_attn->sketch_row_bytes(rank, r->bits)};
}

int32_t sr_model_sketch_rank(const struct sr_model *m)
{
    if (!m->has_config) return 0;
    if (is_on_device(m) && !m->n_lower) return m->config.head_dim / 4;
    const sr_route_options usual = sr_route_options_default();
    return sketch_on(m, &usual, 0).rank;
}

/* Of n_layers that lie together: rows, and the bases of two bands beside the moments. On the host there is room for the
 * rows of the next band beside those in use, where there is one to come; on a device for steps' rows that moments lack. */
static uint64_t sketch_of(const struct sr_model *m, const sr_route_options *r, int32_t n_ctx, int32_t n_layers, int on_device)
{
    const struct model_config *c = &m->config;
    const struct sketch_shape sketch = sketch_on(m, r, on_device);
    const uint64_t d = (uint64_t)c->head_dim, units = (uint64_t)n_layers * (uint64_t)c->n_kv_heads;
    const uint64_t halves = on_device || c->rope.kind == ROPE_NONE || n_ctx <= SR_BAND_TOKENS ? 1 : 2;
    const uint64_t row = sketch.row_bytes, rank = (uint64_t)sketch.rank;
    const uint64_t basis = 4 * (d + rank * (d + 1) + d * d + d), moments = 8 * (2 * d * d + d);
    const uint64_t kept = on_device ? 4 * d * SR_KEPT_ROWS * (uint64_t)(c->n_heads / c->n_kv_heads + 1) : 0;
    return units * (whole_chunks(n_ctx) * row * halves + 2 * basis + moments + kept);
}

uint64_t sr_model_sketch_bytes(const struct sr_model *m, const sr_route_options *r, int32_t n_ctx)
{
    const int32_t n_layers = m->config.n_layers, n_host = is_on_device(m) ? m->n_lower : n_layers;
    if (r->mode != SR_ROUTE_MASS || n_ctx < r->min_len) return 0;
    return sketch_of(m, r, n_ctx, n_host, 0) + (n_host < n_layers ? sketch_of(m, r, n_ctx, n_layers - n_host, 1) : 0);
}

sr_status sr_model_memory_need(const sr_model *m, const sr_session_options *o, sr_memory_need *out, sr_error *err)
{
    sr_session_options s = o ? *o : sr_session_options_default();
    SR_TRY(sr_session_options_check(m, &s, err));
    sr_memory_need n = {.weights = sr_gguf_weight_bytes(m->file)};
    n.kv = whole_chunks(s.n_ctx) * sr_model_kv_bytes(m, s.k_type, s.v_type);
    n.sketch = sr_model_sketch_bytes(m, &s.route, s.n_ctx);
    n.scratch = sr_forward_bytes(&m->config, m->backend, s.n_batch) + 2 * 4 * (uint64_t)m->config.n_vocab + 4 * (uint64_t)s.n_ctx;
    n.total = n.weights + n.kv + n.sketch + n.scratch;
    *out = n;
    return SR_OK;
}
