/* SPDX-License-Identifier: Apache-2.0
 *
 * Audits: a seeded fraction of routed units is attended densely as well, into a state apart. That gives the
 * true unread share of every head, 1 - l_read e^{m_read} / (l_all e^{m_all}), and the error of its output.
 * What was routed stays as it is: an audit changes counters, and what later steps are told (contract.h).
 *
 * A watched sequence has every unit audited and told; contract.h hears of the same units as without.
 */
#include "attention/timeline.h"

#include <math.h>
#include <string.h>

/* Steele and others' mixer: every bit of the key changes about half of the bits of the result. */
static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static double draw(const struct attn_seq *s, int32_t layer, int32_t group)
{
    uint64_t h = mix(s->route.seed + 0x9e3779b97f4a7c15u);
    h = mix(h ^ (uint64_t)(uint32_t)layer << 32 ^ (uint32_t)group);
    h = mix(h ^ (uint64_t)(uint32_t)(s->len[layer] - 1));
    return (double)(h >> 11) * 0x1p-53;
}

enum audited { AUDIT_NONE, AUDIT_WATCHED /* counted and told only */, AUDIT_DRAWN };

static enum audited audited_of(const struct decoded *d, int32_t u)
{
    int32_t n_kv = d->a->c.n_kv_heads;
    const struct attn_seq *s = d->seqs[u / n_kv];
    double share = d->policy->has_contract ? sr_contract_audit_share(s->contract, &s->route) : (double)s->route.audit;
    if (d->is_routed && (d->a->scratch.trial[u] || draw(s, d->layer, u % n_kv) < share)) return AUDIT_DRAWN;
    return s->watch ? AUDIT_WATCHED : AUDIT_NONE;
}

/* ---- one unit ---- */

struct truth {
    double unread[16], output_error[16];
};

/* The state over every row: with everything read the routed state is the dense one. */
static const struct attn_state *all_of(const struct decoded *d, int32_t u)
{
    const struct decode_scratch *w = &d->a->scratch;
    return d->plan->kind[u] == READ_ALL ? &w->state : &w->audit_state;
}

static void compare_head(const struct decoded *d, int32_t u, int32_t head, struct truth *t)
{
    const struct decode_scratch *w = &d->a->scratch;
    const struct attn_state *all = all_of(d, u);
    size_t at = (size_t)u * (size_t)d->a->group + (size_t)head, dim = (size_t)d->a->c.head_dim;
    t->unread[head] = t->output_error[head] = 0;
    if (d->plan->kind[u] == READ_ALL) return;
    double l_all = all->l[at], l_read = w->state.l[at], m_all = all->m[at], m_read = w->state.m[at];
    double unread = l_read > 0 ? 1 - l_read / l_all * exp(m_read - m_all) : 1;
    t->unread[head] = unread < 0 ? 0 : unread; /* rounding */
    double diff = 0, norm = 0;
    for (size_t i = 0; i < dim; i++) {
        double dense = all->o[at * dim + i] / l_all, e = d->out[at * dim + i] - dense;
        diff += e * e;
        norm += dense * dense;
    }
    t->output_error[head] = norm > 0 ? sqrt(diff / norm) : diff > 0;
}

static void count_case(struct attn_seq *s, double unread, double output_error, float estimate)
{
    sr_route_stats *c = &s->stats;
    c->cases++;
    c->above_eps += !(unread <= (double)s->route.eps);
    c->broken += !(unread <= 2 * (double)s->route.eps);
    c->unread_sum += unread;
    c->output_error_sum += output_error;
    if (unread > c->unread_max) c->unread_max = unread;
    if (output_error > c->output_error_max) c->output_error_max = output_error;
    if (!isnan(estimate)) c->estimate_sum += (double)estimate;
}

static void count_unit(const struct decoded *d, int32_t u, const struct truth *t)
{
    const struct decode_scratch *w = &d->a->scratch;
    struct attn_seq *s = d->seqs[u / d->a->c.n_kv_heads];
    s->stats.audits++;
    s->stats.audit_bytes += (uint64_t)w->audit_touched[u].k_rows * s->shape.k_row_bytes +
                            (uint64_t)w->audit_touched[u].v_rows * s->shape.v_row_bytes +
                            (uint64_t)w->audit_touched[u].y_bytes;
    for (int32_t h = 0; h < d->a->group; h++)
        count_case(s, t->unread[h], t->output_error[h], w->unread[u * d->a->group + h]);
}

/* ---- what a watcher is told ---- */

/* Shares of the first row: the true one, and that of the total which what was read and the estimate of the rest make. */
static void sink_shares(const struct decoded *d, int32_t u, float *sink, float *estimate)
{
    const struct decode_scratch *w = &d->a->scratch;
    const struct attn_state *all = all_of(d, u);
    for (int32_t h = 0; h < d->a->group; h++) {
        size_t at = (size_t)u * (size_t)d->a->group + (size_t)h;
        double logit = w->probe_state.m[at];
        sink[h] = (float)(exp(logit - all->m[at]) / all->l[at]);
        estimate[h] = (float)(exp(logit - w->state.m[at]) / w->state.l[at] * (1 - (double)w->unread[at]));
    }
}

static void tell(const struct decoded *d, int32_t u, const struct truth *t)
{
    const struct decode_scratch *w = &d->a->scratch;
    int32_t n_kv = d->a->c.n_kv_heads, group = d->a->group;
    const struct attn_seq *s = d->seqs[u / n_kv];
    float unread[16], sink[16], sink_estimate[16];
    for (int32_t h = 0; h < group; h++) unread[h] = (float)t->unread[h];
    sink_shares(d, u, sink, sink_estimate);
    s->watch(s->watch_user, &(sr_route_case){
                                .layer = d->layer,
                                .kv_head = u % n_kv,
                                .kv_len = s->len[d->layer],
                                .n_heads = group,
                                .is_routed = d->is_routed,
                                .unread = unread,
                                .estimate = w->unread + (size_t)u * (size_t)group,
                                .sink = sink,
                                .sink_estimate = sink_estimate,
                                .cosine = w->score[u],
                                .threshold = d->policy->has_contract ? sr_contract_threshold(s->contract, &s->route) : s->route.eps,
                            });
}

/* Logits of the first row, and cosines with it, for all units: only watched runs pay for it. */
static void probe_first(const struct decoded *d)
{
    static int32_t first_row[1] = {0};
    struct decode_scratch *w = &d->a->scratch;
    struct backend *b = d->a->backend;
    for (int32_t u = 0; u < d->n_units; u++) {
        w->set[u] = ATTN_LIST;
        w->list[u] = first_row;
        w->n_list[u] = 1;
    }
    b->ops->attn_rows(b, &(struct attn_rows_args){
                             .shape = &d->seqs[0]->shape,
                             .units = w->units,
                             .set = w->set,
                             .list = (const int32_t *const *)w->list,
                             .n_list = w->n_list,
                             .n_units = d->n_units,
                             .n_sinks = d->seqs[0]->route.n_sinks,
                             .window = d->seqs[0]->route.window,
                             .state = w->probe_state,
                             .touched = w->probe_touched,
                         });
    b->ops->attn_cosine(b, &(struct attn_cosine_args){
                               .shape = &d->seqs[0]->shape,
                               .units = w->units,
                               .n_units = d->n_units,
                               .score = w->score,
                               .touched = w->probe_touched,
                           });
}

/* ---- what a correction costs ---- */

/* At audited units the choice is made once more with the uncorrected threshold: how many rows would it have listed? */
static void choose_uncorrected(const struct decoded *d)
{
    struct decode_scratch *w = &d->a->scratch;
    int32_t n_kv = d->a->c.n_kv_heads;
    int any = 0;
    for (int32_t u = 0; u < d->n_units; u++) {
        const struct attn_seq *s = d->seqs[u / n_kv];
        w->bytes[u] = w->audited[u] == AUDIT_DRAWN && s->route.delta > 0 && !w->whole[u];
        if (!w->bytes[u]) continue;
        any = 1;
        d->seqs[u / n_kv]->stats.far_rows += w->n_chosen[u];
        w->eps[u] = sr_contract_uncorrected(&s->route);
        w->list[u] = s->list + (size_t)(n_kv + u % n_kv) * (size_t)s->n_chunks * SR_CHUNK_ROWS;
    }
    if (!any) return;
    struct attn_state near_state = {NULL, w->near_m, w->near_l};
    d->a->backend->ops->sketch_choose(d->a->backend, &(struct sketch_choose_args){
                                                         .shape = &d->seqs[0]->shape,
                                                         .sketch = &d->seqs[0]->sketch,
                                                         .units = w->units,
                                                         .basis = w->basis,
                                                         .mask = w->bytes,
                                                         .n_units = d->n_units,
                                                         .n_sinks = d->seqs[0]->route.n_sinks,
                                                         .window = d->seqs[0]->route.window,
                                                         .eps = w->eps,
                                                         .near_state = near_state,
                                                         .list = w->list,
                                                         .n_list = w->n_list,
                                                         .unread = w->probe_state.m,
                                                         .touched = w->audit_touched,
                                                         .found = d->seqs[0]->route.look ? w->found : NULL,
                                                         .n_found = w->n_found,
                                                     });
    for (int32_t u = 0; u < d->n_units; u++) {
        if (w->bytes[u]) d->seqs[u / n_kv]->stats.far_rows_uncorrected += w->n_list[u];
    }
}

/* ---- a run of units ---- */

static void attend_all(const struct decoded *d)
{
    struct decode_scratch *w = &d->a->scratch;
    int has_dense = 0;
    for (int32_t u = 0; u < d->n_units; u++) {
        w->set[u] = w->audited[u] && d->plan->kind[u] != READ_ALL ? ATTN_ALL : ATTN_NONE;
        has_dense |= w->set[u] == ATTN_ALL;
    }
    if (!has_dense) return;
    d->a->backend->ops->attn_rows(d->a->backend, &(struct attn_rows_args){
                                                     .shape = &d->seqs[0]->shape,
                                                     .units = w->units,
                                                     .set = w->set,
                                                     .n_units = d->n_units,
                                                     .n_sinks = d->seqs[0]->route.n_sinks,
                                                     .window = d->seqs[0]->route.window,
                                                     .state = w->audit_state,
                                                     .touched = w->audit_touched,
                                                 });
}

static void audit_unit(const struct decoded *d, int32_t u)
{
    const struct decode_scratch *w = &d->a->scratch;
    int32_t n_kv = d->a->c.n_kv_heads;
    struct attn_seq *s = d->seqs[u / n_kv];
    struct truth t;
    for (int32_t h = 0; h < d->a->group; h++) compare_head(d, u, h, &t);
    if (d->is_routed) count_unit(d, u, &t);
    if (w->audited[u] == AUDIT_DRAWN && d->policy->has_contract && !w->whole[u])
        sr_contract_note(s->contract, d->layer * n_kv + u % n_kv, s->len[d->layer], t.unread);
    if (s->watch) tell(d, u, &t);
}

void sr_audit(const struct decoded *d)
{
    struct decode_scratch *w = &d->a->scratch;
    int32_t n_kv = d->a->c.n_kv_heads;
    int has_any = 0, has_watch = 0;
    for (int32_t u = 0; u < d->n_units; u++) {
        w->audited[u] = (uint8_t)audited_of(d, u);
        has_any |= w->audited[u];
        has_watch |= d->seqs[u / n_kv]->watch != NULL;
    }
    if (!has_any) return;
    memset(w->audit_touched, 0, (size_t)d->n_units * sizeof *w->audit_touched);
    attend_all(d);
    if (d->policy->has_contract) choose_uncorrected(d);
    if (has_watch) probe_first(d);
    for (int32_t u = 0; u < d->n_units; u++) {
        if (w->audited[u]) audit_unit(d, u);
    }
}
