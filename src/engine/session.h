/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of an sr_session, for session.c, batch.c and session_file.c.
 */
#ifndef SR_ENGINE_SESSION_H
#define SR_ENGINE_SESSION_H

#include "engine/model.h"

#include "model/forward.h"

struct sr_session {
    struct sr_model *model;
    sr_session_options options;
    struct forward *forward;
    struct attn_seq *seq;
    int32_t *tokens;        /* [n_ctx] */
    int32_t len;
    float *logits, *spare;  /* [n_vocab]: of the last token; where the next step writes. Swapped when a step succeeds. */
    int has_logits;
    int is_observed;        /* for baselines: punctuation is marked */
    sr_session_stats stats; /* route is filled on request */
};

/* The configuration of this session's attn_seq: restoring makes another of the same. */
struct attn_seq_config sr_session_seq_config(const struct sr_session *s);

/* The parts of a step. Whether n more tokens are ids of the vocabulary and fit; what must hold of the rows of logits
 * after it (NULL: none were wanted), else whose fault it is; the new logits become the session's; back to what was there
 * before a step that failed, the first fault staying the one that is told. */
sr_status sr_session_check_ids(const struct sr_session *s, const int32_t *ids, int32_t n, sr_error *err);
sr_status sr_session_check_step(const struct sr_session *s, const float *logits, int64_t n_rows, sr_error *err);
void sr_session_keep_logits(struct sr_session *s);
void sr_session_roll_back(struct sr_session *s, int32_t len);
double sr_session_clock_ms(void);

/* Room for the logits of a token: memory that a device writes by itself, where the model's backend is one. NULL is fine. */
sr_status sr_session_logits_new(const struct sr_model *m, float **out, sr_error *err);
void sr_session_logits_free(const struct sr_model *m, float *logits);

/* One decode step of n sessions of one model: all of them step, or none does. seqs[i] is the sequence of s[i]; f has room
 * for n tokens; logits[i] is scratch as sr_forward_decode wants it, or the `spare` of s[i]. */
sr_status sr_sessions_step(struct forward *f, sr_session *const *s, struct attn_seq *const *seqs, const int32_t *ids,
                           int32_t n, float *const *logits, sr_error *err);

#endif
