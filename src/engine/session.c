/* SPDX-License-Identifier: Apache-2.0
 *
 * A session: tokens, their K/V cache, and the logits of the last one. Every step either happens or leaves the session
 * as it was: on failure rows that a step appended are cut off again and the logits of the step before stay.
 */
#include "engine/session.h"
#include "engine/placement.h"

#include "base/memory.h"

#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <string.h>
#include <time.h>

struct attn_seq_config sr_session_seq_config(const struct sr_session *s)
{
    return (struct attn_seq_config){.k_type = s->options.k_type, .v_type = s->options.v_type, .max_len = s->options.n_ctx,
                                    .route = s->options.route};
}

/* The most tokens of context for which there is memory, 0: for none. */
static int32_t find_context(const struct sr_model *m, const sr_session_options *o, uint64_t device, uint64_t host)
{
    sr_session_options less = *o;
    struct placement_need need;
    int32_t fits = 0;
    for (int64_t lo = 1, hi = o->n_ctx; lo <= hi;) {
        less.n_ctx = (int32_t)((lo + hi) / 2);
        if (sr_placement_need(m, &less, m->n_lower, &need, NULL) != SR_OK) return 0;
        if (need.device <= device && need.host <= host) {
            fits = less.n_ctx;
            lo = (int64_t)less.n_ctx + 1;
        } else {
            hi = (int64_t)less.n_ctx - 1;
        }
    }
    return fits;
}

/* Memory is asked for before it is taken: the kernel would grant pages that it does not have. */
static sr_status check_memory(const struct sr_model *m, const sr_session_options *o, sr_error *err)
{
    const int has_device = m->backend->has_own_memory;
    const uint64_t device = has_device ? m->backend->ops->mem_available(m->backend) : 0;
    const uint64_t host = has_device ? sr_memory_available() : m->backend->ops->mem_available(m->backend);
    struct placement_need need;
    SR_TRY(sr_placement_need(m, o, m->n_lower, &need, err));
    if (need.device <= device && need.host <= host) return SR_OK;
    const int32_t fits = find_context(m, o, device, host);
    if (need.device <= device)
        return sr_fail(err, SR_ERR_RESOURCE, "context of %d tokens needs %llu bytes, %llu available; %d tokens would fit", o->n_ctx,
                       (unsigned long long)need.host, (unsigned long long)host, fits);
    const uint64_t weights = sr_weights_upper_bytes(m->file, &m->config, m->n_lower);
    return sr_fail(err, SR_ERR_RESOURCE,
                   "context of %d tokens needs %llu bytes of device memory, %llu free: %llu are missing; %d tokens would fit, or -ngl %d", o->n_ctx,
                   (unsigned long long)need.device, (unsigned long long)device, (unsigned long long)(need.device - device), fits,
                   sr_placement_fit(m, o, device + weights));
}

sr_status sr_session_logits_new(const struct sr_model *m, float **out, sr_error *err)
{
    const size_t bytes = (size_t)m->config.n_vocab * sizeof(float);
    void *host, *there;
    if (!m->backend || !m->backend->ops->shared_new) {
        *out = sr_alloc(bytes);
        return *out ? SR_OK : sr_fail_memory(err, bytes, "session");
    }
    SR_TRY(m->backend->ops->shared_new(m->backend, &host, &there, bytes, "session", err));
    *out = host;
    return SR_OK;
}

void sr_session_logits_free(const struct sr_model *m, float *logits)
{
    if (m->backend && m->backend->ops->shared_free) m->backend->ops->shared_free(m->backend, logits);
    else sr_free(logits);
}

sr_status sr_session_new(sr_session **out, sr_model *m, const sr_session_options *o, sr_error *err)
{
    if (!out || !m) return sr_fail(err, SR_ERR_USAGE, "sr_session_new: an argument is NULL");
    sr_session_options options = o ? *o : sr_session_options_default();
    SR_TRY(sr_session_options_check(m, &options, err));
    SR_TRY(check_memory(m, &options, err));
    struct sr_session *s = sr_alloc_zero(1, sizeof(*s));
    if (!s) return sr_fail_memory(err, sizeof(*s), "session");
    s->model = m;
    s->options = options;
    const size_t n_ctx = (size_t)options.n_ctx;
    const struct attn_seq_config c = sr_session_seq_config(s);
    sr_status st = SR_ERR_RESOURCE;
    s->tokens = sr_alloc(n_ctx * sizeof(*s->tokens));
    if (!s->tokens) {
        sr_fail_memory(err, n_ctx * sizeof(*s->tokens), "session");
        goto fail;
    }
    SR_TRY_GOTO(sr_session_logits_new(m, &s->logits, err));
    SR_TRY_GOTO(sr_session_logits_new(m, &s->spare, err));
    SR_TRY_GOTO(sr_forward_new(&s->forward, &m->config, &m->weights, m->backend, options.n_batch, err));
    SR_TRY_GOTO(sr_attn_seq_new(&s->seq, m->attention, &c, err));
    *out = s;
    return SR_OK;
fail:
    sr_session_free(s);
    return st;
}

void sr_session_free(sr_session *s)
{
    if (!s) return;
    sr_attn_seq_free(s->seq);
    sr_forward_free(s->forward);
    sr_session_logits_free(s->model, s->spare);
    sr_session_logits_free(s->model, s->logits);
    sr_free(s->tokens);
    sr_free(s);
}

int32_t sr_session_len(const sr_session *s) { return s->len; }
int32_t sr_session_n_ctx(const sr_session *s) { return s->options.n_ctx; }
const int32_t *sr_session_tokens(const sr_session *s) { return s->tokens; }
const float *sr_session_logits(const sr_session *s) { return s->has_logits ? s->logits : NULL; }

/* ---- steps ---- */

double sr_session_clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Whether all n are numbers: x * 0 is NaN for NaN and infinity, and one NaN stays in the sum. */
static int all_finite(const float *x, int64_t n)
{
    float sum[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++) sum[k] += x[i + k] * 0.0f;
    for (; i < n; i++) sum[0] += x[i] * 0.0f;
    for (int k = 1; k < 8; k++) sum[0] += sum[k];
    return sum[0] == 0.0f;
}

sr_status sr_session_check_step(const struct sr_session *s, const float *logits, int64_t n_rows, sr_error *err)
{
    const struct sr_model *m = s->model;
    if (sr_mapfile_lost() && !m->weights.copy)
        return sr_fail(err, SR_ERR_IO, "%s: the file became shorter while it was in use; the session ends at token %d",
                       m->path, s->len);
    if (!logits || all_finite(logits, n_rows * m->config.n_vocab)) return SR_OK;
    const struct weights_options quiet = {0};
    const sr_status st = sr_weights_check(m->file, &quiet, err);
    if (st == SR_ERR_IO) return st;
    if (st != SR_OK) {
        if (err) err->status = SR_ERR_NUMERIC;
        return SR_ERR_NUMERIC;
    }
    return sr_fail(err, SR_ERR_NUMERIC, "logits after token %d hold NaN or infinity, though every weight is finite", s->len);
}

sr_status sr_session_check_ids(const struct sr_session *s, const int32_t *ids, int32_t n, sr_error *err)
{
    if (n < 1 || !ids) return sr_fail(err, SR_ERR_USAGE, "%d tokens given, want at least 1", n);
    if (n > s->options.n_ctx - s->len)
        return sr_fail(err, SR_ERR_USAGE, "context is full: %d tokens held, %d more do not fit in %d", s->len, n,
                       s->options.n_ctx);
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->model->config.n_vocab)
            return sr_fail(err, SR_ERR_USAGE, "token %d of %d: id %d, want 0..%d", i, n, ids[i],
                           s->model->config.n_vocab - 1);
    return SR_OK;
}

void sr_session_roll_back(struct sr_session *s, int32_t len)
{
    const sr_status st = sr_attn_seq_truncate(s->seq, len, NULL);
    assert(st == SR_OK);
    (void)st;
    s->len = len;
}

void sr_session_keep_logits(struct sr_session *s)
{
    float *t = s->logits;
    s->logits = s->spare;
    s->spare = t;
    s->has_logits = 1;
}

/* Nothing but marks and space, and a mark or a line end among them. */
static int is_punctuation(const struct sr_model *m, int32_t id)
{
    char text[64];
    size_t n = sr_token_text(m, id, 0, text, sizeof(text));
    int has_mark = 0;
    if (n == 0 || n > sizeof(text)) return 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c >= 0x80 || !(ispunct(c) || isspace(c))) return 0;
        has_mark |= ispunct(c) || c == '\n';
    }
    return has_mark;
}

/* One batch: rows are appended and tokens noted. */
static sr_status run_batch(struct sr_session *s, const int32_t *ids, int32_t n, int want, float *logits, sr_error *err)
{
    SR_TRY(sr_attn_seq_reserve(s->seq, s->len + n, err));
    SR_TRY(sr_forward_prefill(s->forward, s->seq, ids, n, want, logits, err));
    SR_TRY(sr_session_check_step(s, want ? logits : NULL, want == 2 ? n : 1, err));
    memcpy(s->tokens + s->len, ids, (size_t)n * sizeof(*ids));
    for (int32_t i = 0; s->is_observed && i < n; i++)
        sr_attn_seq_mark(s->seq, s->len + i, is_punctuation(s->model, ids[i]));
    s->len += n;
    return SR_OK;
}

sr_status sr_session_prefill(sr_session *s, const int32_t *ids, int32_t n, sr_progress_fn *progress, void *user,
                             int32_t *done, sr_error *err)
{
    SR_TRY(sr_session_check_ids(s, ids, n, err));
    const int32_t start = s->len;
    const double t0 = sr_session_clock_ms();
    sr_status st = SR_OK;
    int32_t at = 0;
    SR_TRY_GOTO(sr_attn_seq_reserve(s->seq, start + n, err)); /* at once: then a head's rows lie in one piece */
    while (at < n) {
        const int32_t left = n - at, batch = left < s->options.n_batch ? left : s->options.n_batch;
        SR_TRY_GOTO(run_batch(s, ids + at, batch, at + batch == n, s->spare, err));
        at += batch;
        s->has_logits = at == n ? s->has_logits : 0;
        if (progress && progress(user, "prefill", (double)at / n)) break;
    }
    if (at == n) sr_session_keep_logits(s);
    s->stats.prefill_tokens += at;
    s->stats.prefill_ms += sr_session_clock_ms() - t0;
    if (done) *done = at;
    return SR_OK;
fail:
    sr_session_roll_back(s, start);
    s->has_logits = start > 0 && at == 0 ? s->has_logits : 0;
    if (done) *done = 0;
    return st;
}

sr_status sr_session_prefill_logits(sr_session *s, const int32_t *ids, int32_t n, float *out, sr_error *err)
{
    SR_TRY(sr_session_check_ids(s, ids, n, err));
    if (!out) return sr_fail(err, SR_ERR_USAGE, "sr_session_prefill_logits: no place for the logits");
    const int32_t start = s->len, n_vocab = s->model->config.n_vocab;
    const double t0 = sr_session_clock_ms();
    sr_status st = SR_OK;
    for (int32_t at = 0; at < n;) {
        const int32_t left = n - at, batch = left < s->options.n_batch ? left : s->options.n_batch;
        SR_TRY_GOTO(run_batch(s, ids + at, batch, 2, out + (int64_t)at * n_vocab, err));
        at += batch;
    }
    memcpy(s->spare, out + (int64_t)(n - 1) * n_vocab, (size_t)n_vocab * sizeof(float));
    sr_session_keep_logits(s);
    s->stats.prefill_tokens += n;
    s->stats.prefill_ms += sr_session_clock_ms() - t0;
    return SR_OK;
fail:
    sr_session_roll_back(s, start);
    return st;
}

sr_status sr_session_decode(sr_session *s, int32_t id, sr_error *err)
{
    return sr_sessions_step(s->forward, &s, &s->seq, &id, 1, &s->spare, err);
}

/* ---- editing the timeline ---- */

sr_status sr_session_truncate(sr_session *s, int32_t len, sr_error *err)
{
    if (len < 0 || len > s->len)
        return sr_fail(err, SR_ERR_USAGE, "cannot keep %d tokens of a session of %d", len, s->len);
    if (len == s->len && len > 0) return SR_OK;
    if (len == 0) sr_attn_seq_clear(s->seq);
    else SR_TRY(sr_attn_seq_truncate(s->seq, len, err));
    s->len = len;
    s->has_logits = 0;
    return SR_OK;
}

sr_status sr_session_fill_random(sr_session *s, int32_t n, uint64_t seed, sr_error *err)
{
    if (n < 1 || n > s->options.n_ctx)
        return sr_fail(err, SR_ERR_USAGE, "%d random tokens: want 1..%d, the session's context", n, s->options.n_ctx);
    SR_TRY(sr_session_truncate(s, 0, err));
    SR_TRY(sr_attn_seq_fill_random(s->seq, n, seed, NULL, err));
    memset(s->tokens, 0, (size_t)n * sizeof(*s->tokens));
    s->len = n;
    return SR_OK;
}

sr_status sr_session_tile(sr_session *s, int32_t copies, sr_error *err)
{
    SR_TRY(sr_attn_seq_tile(s->seq, copies, err));
    const int32_t len = s->len;
    s->len = sr_attn_seq_len(s->seq, 0);
    for (int32_t i = len; i < s->len; i++) s->tokens[i] = s->tokens[i - len + 4];
    if (s->len > len) s->has_logits = 0;
    return SR_OK;
}

sr_status sr_session_sync(sr_session *s, const int32_t *ids, int32_t n, sr_progress_fn *progress, void *user,
                          int32_t *reused, sr_error *err)
{
    if (n < 1 || !ids) return sr_fail(err, SR_ERR_USAGE, "%d tokens given, want at least 1", n);
    if (n > s->options.n_ctx)
        return sr_fail(err, SR_ERR_USAGE, "context is full: %d tokens do not fit in %d", n, s->options.n_ctx);
    int32_t same = 0;
    while (same < n && same < s->len && s->tokens[same] == ids[same]) same++;
    if (same == n && same == s->len && s->has_logits) {
        if (reused) *reused = same;
        return SR_OK;
    }
    if (same == n) same--; /* the last token is fed again for its logits */
    SR_TRY(sr_session_truncate(s, same, err));
    if (reused) *reused = same;
    return sr_session_prefill(s, ids + same, n - same, progress, user, NULL, err);
}

sr_status sr_session_route_set(sr_session *s, const sr_route_options *r, sr_error *err)
{
    if (!r) return sr_fail(err, SR_ERR_USAGE, "sr_session_route_set: no options");
    SR_TRY(sr_attn_seq_route_set(s->seq, r, err));
    s->options.route = *r;
    return SR_OK;
}

sr_status sr_session_observe(sr_session *s, sr_error *err)
{
    SR_TRY(sr_attn_seq_observe(s->seq, err));
    s->is_observed = 1;
    return SR_OK;
}

void sr_session_watch(sr_session *s, sr_route_watch_fn *fn, void *user) { sr_attn_seq_watch(s->seq, fn, user); }

void sr_session_route_get(const sr_session *s, sr_route_options *out) { *out = *sr_attn_seq_route(s->seq); }

/* ---- what happened ---- */

void sr_session_get_stats(const sr_session *s, sr_session_stats *out)
{
    *out = s->stats;
    sr_attn_seq_stats(s->seq, &out->route);
}

void sr_session_stats_reset(sr_session *s)
{
    s->stats = (sr_session_stats){0};
    sr_attn_seq_stats_reset(s->seq);
    sr_forward_profile_reset(s->forward);
}

void sr_session_memory(const sr_session *s, uint64_t *kv_bytes, uint64_t *sketch_bytes)
{
    uint64_t kv, sketch;
    sr_attn_seq_memory(s->seq, &kv, &sketch);
    if (kv_bytes) *kv_bytes = kv;
    if (sketch_bytes) *sketch_bytes = sketch;
}

void sr_session_heat(const sr_session *s, float *heat)
{
    const int64_t *near_only, *decisions;
    sr_attn_seq_heat(s->seq, &near_only, &decisions);
    const int32_t n = s->model->config.n_layers * s->model->config.n_kv_heads;
    for (int32_t i = 0; i < n; i++) heat[i] = decisions[i] ? (float)near_only[i] / (float)decisions[i] : NAN;
}

const char *sr_session_profile(const sr_session *s, int32_t i, double *ms, int64_t *calls)
{
    return sr_forward_profile(s->forward, i, ms, calls);
}

sr_status sr_session_moments_all(sr_session *s, sr_error *err)
{
    if (s->len) return sr_fail(err, SR_ERR_USAGE, "moments are collected from the first token on; the session has %d", s->len);
    if (sr_attn_has_moments(s->model->attention))
        return sr_fail(err, SR_ERR_USAGE, "%s: a moments file is loaded, so that none are collected", s->model->path);
    return SR_OK;
}

sr_status sr_session_moments_save(sr_session *s, const char *path, sr_error *err)
{
    if (!path) return sr_fail(err, SR_ERR_USAGE, "sr_session_moments_save: no path");
    return sr_attn_seq_save_moments(s->seq, path, err);
}
