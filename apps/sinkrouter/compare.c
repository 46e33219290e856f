/* SPDX-License-Identifier: Apache-2.0
 *
 * KL, perplexity and top-1 agreement of routed decoding against dense.
 */
#include "compare.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>

sr_status sr_compare_init(struct compare *c, int32_t n_vocab, const int32_t *ids, int32_t n_steps,
                          sr_error *err)
{
    size_t bytes = (size_t)n_steps * (size_t)n_vocab * sizeof *c->dense;
    *c = (struct compare){
        .n_steps = n_steps, .n_vocab = n_vocab, .ids = ids, .dense = malloc(bytes ? bytes : 1)};
    if (!c->dense)
        return sr_refuse(err, SR_ERR_RESOURCE,
                         "no memory for %zu bytes of log-probabilities; decode fewer tokens (-n)", bytes);
    return SR_OK;
}

void sr_compare_fini(struct compare *c)
{
    free(c->dense);
    c->dense = NULL;
}

/* log of the sum of exponentials */
static double log_total(const float *logits, int32_t n)
{
    float most = logits[0];
    double sum = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > most) most = logits[i];
    for (int32_t i = 0; i < n; i++) sum += exp((double)logits[i] - (double)most);
    return (double)most + log(sum);
}

static int32_t best(const float *v, int32_t n)
{
    int32_t b = 0;
    for (int32_t i = 1; i < n; i++)
        if (v[i] > v[b]) b = i;
    return b;
}

sr_status sr_compare_dense(struct compare *c, sr_session *s, const sr_route_options *route, sr_error *err)
{
    sr_route_options dense = *route;
    int32_t at = sr_session_len(s);
    double loss = 0;
    dense.mode = SR_ROUTE_DENSE;
    sr_status st = sr_session_route_set(s, &dense, err);
    for (int32_t i = 0; !st && i < c->n_steps; i++) {
        if ((st = sr_session_decode(s, c->ids[i], err)) != SR_OK) break;
        const float *logits = sr_session_logits(s);
        float *kept = c->dense + (size_t)i * (size_t)c->n_vocab;
        double total = log_total(logits, c->n_vocab);
        for (int32_t v = 0; v < c->n_vocab; v++) kept[v] = (float)((double)logits[v] - total);
        if (i + 1 < c->n_steps) loss -= (double)kept[c->ids[i + 1]];
        if (sr_progress_show(NULL, "dense", (double)(i + 1) / c->n_steps)) break;
    }
    c->dense_loss = c->n_steps > 1 ? loss / (c->n_steps - 1) : NAN;
    return st ? st : sr_session_truncate(s, at, err);
}

/* Adds one step to the sums. */
static void add_step(const struct compare *c, int32_t i, const float *logits, struct comparison *sum,
                     double *loss)
{
    const float *dense = c->dense + (size_t)i * (size_t)c->n_vocab;
    double total = log_total(logits, c->n_vocab), kl = 0;
    for (int32_t v = 0; v < c->n_vocab; v++) {
        double p = exp((double)dense[v]);
        float q = (float)((double)logits[v] - total); /* rounded like dense, so that equal logits give 0 */
        if (p > 0) kl += p * ((double)dense[v] - (double)q);
    }
    sum->kl += kl;
    sum->top1 += best(dense, c->n_vocab) == best(logits, c->n_vocab);
    if (i + 1 < c->n_steps) *loss -= (double)(float)((double)logits[c->ids[i + 1]] - total);
}

void sr_compare_ignore(void *user, const sr_route_case *c)
{
    (void)user;
    (void)c;
}

sr_status sr_compare_mode(const struct compare *c, sr_session *s, const sr_route_options *route,
                          sr_route_watch_fn *watch, void *user, struct comparison *out, int *done, sr_error *err)
{
    struct comparison sum = {0};
    sr_session_stats stats;
    int32_t at = sr_session_len(s), i = 0;
    double loss = 0;
    sr_status st = sr_session_route_set(s, route, err);
    if (st) return st;
    /* baselines promise no bound: auditing them would only take time */
    if (route->mode < SR_ROUTE_QUEST || route->mode == SR_ROUTE_TOPP)
        sr_session_watch(s, watch ? watch : sr_compare_ignore, user);
    sr_session_stats_reset(s);
    for (; i < c->n_steps && !sr_interrupt_pending(); i++) {
        if ((st = sr_session_decode(s, c->ids[i], err)) != SR_OK) break;
        add_step(c, i, sr_session_logits(s), &sum, &loss);
        sr_progress_show(NULL, sr_route_mode_name(route->mode), (double)(i + 1) / c->n_steps);
    }
    sr_session_watch(s, NULL, NULL);
    if (st) return st;
    sr_session_get_stats(s, &stats);
    loss = c->n_steps > 1 ? loss / (c->n_steps - 1) : NAN;
    sum.kl /= c->n_steps;
    sum.top1 /= c->n_steps;
    sum.ppl = exp(loss);
    sum.ppl_ratio = exp(loss - c->dense_loss);
    sum.route = stats.route;
    sum.decode_ms = stats.decode_ms;
    *out = sum;
    *done = i == c->n_steps;
    return sr_session_truncate(s, at, err);
}
