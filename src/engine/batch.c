/* SPDX-License-Identifier: Apache-2.0
 *
 * Several sessions in one decode step: the weights are read once for all of them, attention is routed for each over its
 * own cache. Sessions come and go between steps, so continuous batching is a loop around sr_batch_decode.
 */
#include "engine/session.h"

#include "base/memory.h"

#include <string.h>

struct sr_batch {
    struct sr_model *model;
    int32_t max_sessions;
    struct forward *forward;
    struct attn_seq **seqs; /* [max_sessions] */
    float *logits;          /* [max_sessions][n_vocab]; NULL where a device writes each session's own */
    float **rows;           /* [max_sessions] of a step */
};

sr_status sr_sessions_step(struct forward *f, sr_session *const *s, struct attn_seq *const *seqs, const int32_t *ids,
                           int32_t n, float *const *logits, sr_error *err)
{
    const size_t row_bytes = (size_t)s[0]->model->config.n_vocab * sizeof(float);
    const double t0 = sr_session_clock_ms();
    sr_status st = SR_OK;
    for (int32_t i = 0; i < n; i++) SR_TRY(sr_session_check_ids(s[i], &ids[i], 1, err));
    for (int32_t i = 0; i < n; i++) SR_TRY(sr_attn_seq_reserve(seqs[i], s[i]->len + 1, err));
    SR_TRY_GOTO(sr_forward_decode(f, s[0]->model->attention, seqs, ids, n, logits, err));
    for (int32_t i = 0; i < n; i++) SR_TRY_GOTO(sr_session_check_step(s[i], logits[i], 1, err));
    const double ms = sr_session_clock_ms() - t0;
    for (int32_t i = 0; i < n; i++) {
        if (s[i]->spare != logits[i]) memcpy(s[i]->spare, logits[i], row_bytes);
        s[i]->tokens[s[i]->len++] = ids[i];
        sr_session_keep_logits(s[i]);
        s[i]->stats.decode_tokens++;
        s[i]->stats.decode_ms += ms;
    }
    return SR_OK;
fail:
    for (int32_t i = 0; i < n; i++) sr_session_roll_back(s[i], s[i]->len);
    return st;
}

sr_status sr_batch_new(sr_batch **out, sr_model *m, int32_t max_sessions, sr_error *err)
{
    if (!out || !m) return sr_fail(err, SR_ERR_USAGE, "sr_batch_new: an argument is NULL");
    if (!m->backend) return sr_fail(err, SR_ERR_USAGE, "%s: opened without its weights: nothing can be decoded", m->path);
    if (max_sessions < 1 || max_sessions > SR_BATCH_MAX)
        return sr_fail(err, SR_ERR_USAGE, "a batch of %d sessions, want 1..%d", max_sessions, SR_BATCH_MAX);
    const size_t n = (size_t)max_sessions, floats = m->backend->has_own_memory ? 0 : n * (size_t)m->config.n_vocab;
    struct sr_batch *b = sr_alloc_zero(1, sizeof(*b));
    if (!b) return sr_fail_memory(err, sizeof(*b), "batch");
    *b = (struct sr_batch){.model = m, .max_sessions = max_sessions};
    sr_status st = SR_ERR_RESOURCE;
    b->seqs = sr_alloc(n * sizeof(*b->seqs));
    b->rows = sr_alloc(n * sizeof(*b->rows));
    if (floats) b->logits = sr_alloc(floats * sizeof(float));
    if (!b->seqs || !b->rows || (floats && !b->logits)) {
        sr_fail_memory(err, n * (sizeof(*b->seqs) + sizeof(*b->rows)) + floats * sizeof(float), "batch");
        goto fail;
    }
    SR_TRY_GOTO(sr_forward_new(&b->forward, &m->config, &m->weights, m->backend, max_sessions, err));
    *out = b;
    return SR_OK;
fail:
    sr_batch_free(b);
    return st;
}

void sr_batch_free(sr_batch *b)
{
    if (!b) return;
    sr_forward_free(b->forward);
    sr_free(b->logits);
    sr_free(b->rows);
    sr_free(b->seqs);
    sr_free(b);
}

sr_status sr_batch_decode(sr_batch *b, sr_session *const *sessions, const int32_t *ids, int32_t n, sr_error *err)
{
    if (!sessions || !ids) return sr_fail(err, SR_ERR_USAGE, "sr_batch_decode: an argument is NULL");
    if (n < 1 || n > b->max_sessions)
        return sr_fail(err, SR_ERR_USAGE, "%d sessions in a batch for %d", n, b->max_sessions);
    for (int32_t i = 0; i < n; i++) {
        if (sessions[i]->model != b->model)
            return sr_fail(err, SR_ERR_USAGE, "session %d of the batch is of another model", i);
        for (int32_t k = 0; k < i; k++)
            if (sessions[k] == sessions[i])
                return sr_fail(err, SR_ERR_USAGE, "sessions %d and %d of the batch are the same", k, i);
        b->seqs[i] = sessions[i]->seq;
        b->rows[i] = b->logits ? b->logits + (int64_t)i * b->model->config.n_vocab : sessions[i]->spare;
    }
    return sr_sessions_step(b->forward, sessions, b->seqs, ids, n, b->rows, err);
}
