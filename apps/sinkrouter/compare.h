/* SPDX-License-Identifier: Apache-2.0
 *
 * A routed run against the dense one over the same tokens, teacher-forced: the dense log-probabilities are
 * kept, then each routed step is compared with its own. Sums in double. A step's logits predict the token
 * after it, so n steps give n distributions and n - 1 known next tokens.
 */
#ifndef SR_APP_COMPARE_H
#define SR_APP_COMPARE_H

#include "sinkrouter/engine.h"

struct compare {
    int32_t n_steps, n_vocab;
    const int32_t *ids; /* [n_steps] the tokens fed, borrowed */
    float *dense;       /* [n_steps][n_vocab] log-probabilities */
    double dense_loss;  /* mean -log p of the known next tokens */
};

/* What a mode cost. */
struct comparison {
    double kl; /* nats per token, mean over steps */
    double ppl, ppl_ratio;
    double top1;          /* share of steps with the same most probable token */
    sr_route_stats route; /* of this run alone */
    double decode_ms;
};

sr_status sr_compare_init(struct compare *c, int32_t n_vocab, const int32_t *ids, int32_t n_steps,
                          sr_error *err);
void sr_compare_fini(struct compare *c);
/* Decodes ids from the session's present position with route_dense, keeping the log-probabilities, and
 * truncates back. */
sr_status sr_compare_dense(struct compare *c, sr_session *s, const sr_route_options *route, sr_error *err);
/* The same with a mode, watching every decision except of baselines; watch may be NULL; *out gets the result. A signal ends it early:
 * SR_OK with *done = 0. */
sr_status sr_compare_mode(const struct compare *c, sr_session *s, const sr_route_options *route,
                          sr_route_watch_fn *watch, void *user, struct comparison *out, int *done, sr_error *err);
/* A watcher that only has everything audited. */
void sr_compare_ignore(void *user, const sr_route_case *c);

#endif
