/* SPDX-License-Identifier: Apache-2.0
 *
 * The one forward pass. Written against the op table; knows no policy, file format or text.
 */
#ifndef SR_MODEL_FORWARD_H
#define SR_MODEL_FORWARD_H

#include "attention/sequence.h"
#include "model/weights.h"

/* Scratch of a pass for up to max_n tokens; one per session. */
struct forward;
sr_status sr_forward_new(struct forward **out, const struct model_config *c, const struct model_weights *w, struct backend *b,
                         int32_t max_n, sr_error *err);
void sr_forward_free(struct forward *f);
size_t sr_forward_bytes(const struct model_config *c, struct backend *b, int32_t max_n); /* what new would allocate */

/* n (1..max_n) tokens of one sequence at its present length, exact attention; room is reserved already. Logits: of the last token if want == 1, of all n
 * ([n][n_vocab]) if want == 2, none if 0. */
sr_status sr_forward_prefill(struct forward *f, struct attn_seq *s, const int32_t *ids, int32_t n, int want, float *logits, sr_error *err);
/* One token for each of n_seqs (1..max_n) sequences through routed attention; logits[i]: [n_vocab] of sequence i. Where
 * the backend's memory is the host's they lie one behind the other. */
sr_status sr_forward_decode(struct forward *f, struct attention *a, struct attn_seq *const *seqs, const int32_t *ids, int32_t n_seqs,
                            float *const *logits, sr_error *err);

/* Milliseconds and calls per op (names in forward.c); NULL past the last. */
const char *sr_forward_profile(const struct forward *f, int32_t i, double *ms, int64_t *calls);
void sr_forward_profile_reset(struct forward *f);

#endif
