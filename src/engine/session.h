/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of an sr_session, for session.c and session_file.c.
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
    sr_session_stats stats; /* route is filled on request */
};

/* The configuration of this session's attn_seq: restoring makes another of the same. */
struct attn_seq_config sr_session_seq_config(const struct sr_session *s);

#endif
