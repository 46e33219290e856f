/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract where a device plans: before a step it is told the threshold, the share of audits and which units are
 * read whole or on trial, as far as they changed; what its audits found lies in memory that both see, and is taken once
 * the step is over. What they say is decided by contract.c, as on the host, so that it takes effect at the next position
 * and never depends on when something arrives.
 */
#include "attention/device_seq.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"

static_assert((int)TRUST_ROUTED == (int)UNIT_ROUTED && (int)TRUST_WHOLE == (int)UNIT_WHOLE && (int)TRUST_TRIAL == (int)UNIT_TRIAL,
              "one set of values, two names");

sr_status sr_device_contract_init(struct attn_seq *s, sr_error *err)
{
    struct device_seq *d = s->device;
    const size_t n = sr_device_units(s);
    d->have_trust = sr_alloc_zero(2 * n, 1);
    if (!d->have_trust) return sr_fail_memory(err, 2 * n, "sequence");
    d->want_trust = d->have_trust + n;
    return s->a->backend->ops->shared_new(s->a->backend, (void **)&d->cases, &d->cases_there, n * sizeof *d->cases, "audits", err);
}

void sr_device_contract_fini(struct attn_seq *s)
{
    if (s->device->cases) s->a->backend->ops->shared_free(s->a->backend, s->device->cases);
    sr_free(s->device->have_trust);
}

/* ---- before a step ---- */

static void count_thresholds(struct attn_seq *s, int64_t n_open, float threshold)
{
    const int64_t n = (int64_t)sr_device_units(s) - n_open;
    s->stats.units_open += n_open;
    s->stats.thresholds += n;
    s->stats.threshold_sum += (double)n * (double)threshold;
}

/* Fills want_trust; returns how many are whole. *n_trials gets how many are on trial. */
static int64_t ask_trust(struct attn_seq *s, int64_t *n_trials)
{
    struct device_seq *d = s->device;
    int64_t n_open = 0;
    *n_trials = 0;
    for (size_t u = 0; u < sr_device_units(s); u++) {
        const enum unit_trust t = s->route.breaker ? sr_contract_trust(s->contract, (int32_t)u, s->len[0]) : UNIT_ROUTED;
        d->want_trust[u] = (uint8_t)t;
        n_open += t == UNIT_WHOLE;
        *n_trials += t == UNIT_TRIAL;
    }
    return n_open;
}

static void tell(struct attn_seq *s, struct device_terms terms)
{
    struct device_seq *d = s->device;
    struct backend *b = s->a->backend;
    const size_t n = sr_device_units(s);
    if (memcmp(&terms, &d->have_terms, sizeof terms)) {
        b->ops->upload(b, d->terms, &terms, sizeof terms);
        d->have_terms = terms;
    }
    if (memcmp(d->want_trust, d->have_trust, n)) {
        b->ops->upload(b, d->trust, d->want_trust, n);
        memcpy(d->have_trust, d->want_trust, n);
    }
}

int sr_device_contract_begin(struct attn_seq *s)
{
    struct device_seq *d = s->device;
    const struct policy *p = d->policy;
    struct device_terms terms = {s->route.eps, s->route.audit, s->route.eps, sr_contract_uncorrected(&s->route)};
    int64_t n_trials = 0;
    for (size_t u = 0; d->is_open && u < sr_device_units(s); u++) d->cases[u].kv_len = 0; /* of a step that failed */
    d->is_open = 1;
    memset(d->want_trust, UNIT_ROUTED, sr_device_units(s));
    if (p->has_contract) {
        sr_contract_step(s->contract, s->len[0] - 1, &s->route, &s->stats);
        terms.threshold = sr_contract_threshold(s->contract, &s->route);
        terms.audit = (float)sr_contract_audit_share(s->contract, &s->route);
        const int64_t n_open = ask_trust(s, &n_trials);
        count_thresholds(s, n_open, terms.threshold);
    }
    tell(s, terms);
    return s->watch || (p->rule != RULE_ALL && (terms.audit > 0 || n_trials > 0));
}

/* ---- after it ---- */

static void tell_watcher(const struct attn_seq *s, int32_t unit, const struct device_case *c)
{
    const int32_t n_kv = s->a->c.n_kv_heads;
    s->watch(s->watch_user, &(sr_route_case){
                                .layer = s->a->c.n_lower + unit / n_kv,
                                .kv_head = unit % n_kv,
                                .kv_len = c->kv_len,
                                .n_heads = s->a->group,
                                .is_routed = s->device->policy->rule != RULE_ALL,
                                .unread = c->unread,
                                .estimate = c->estimate,
                                .sink = c->sink,
                                .sink_estimate = c->sink_estimate,
                                .cosine = c->cosine,
                                .threshold = s->device->have_terms.threshold,
                            });
}

static void take_case(struct attn_seq *s, int32_t unit, const struct device_case *c)
{
    struct device_seq *d = s->device;
    double unread[16];
    for (int32_t h = 0; h < s->a->group; h++) unread[h] = (double)c->unread[h];
    if (c->is_drawn && d->policy->has_contract && d->have_trust[unit] != UNIT_WHOLE)
        sr_contract_note(s->contract, unit, c->kv_len, unread);
    if (s->watch) tell_watcher(s, unit, c);
}

void sr_attn_step_end(struct attn_seq *s)
{
    struct device_seq *d = s->device;
    assert(d->is_open);
    d->is_open = 0;
    if (!d->route.has_audits) return;
    for (int32_t u = 0; u < (int32_t)sr_device_units(s); u++) {
        if (d->cases[u].kv_len != s->len[0]) continue;
        take_case(s, u, &d->cases[u]);
        d->cases[u].kv_len = 0;
    }
}
