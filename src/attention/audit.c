/* SPDX-License-Identifier: Apache-2.0
 *
 * Audits: a seeded fraction of routed units is attended densely as well, into a state apart. That gives the
 * true unread share of every head, 1 - l_read e^{m_read} / (l_all e^{m_all}), and the error of its output.
 * What was routed stays as it is: an audit changes counters only.
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

static int is_audited(const struct attn_seq *s, int32_t layer, int32_t group)
{
    uint64_t h = mix(s->route.seed + 0x9e3779b97f4a7c15u);
    h = mix(h ^ (uint64_t)(uint32_t)layer << 32 ^ (uint32_t)group);
    h = mix(h ^ (uint64_t)(uint32_t)(s->len[layer] - 1));
    return (double)(h >> 11) * 0x1p-53 < (double)s->route.audit;
}

struct head_truth {
    double unread, output_error;
};

/* With everything read the routed state is the dense one. */
static struct head_truth compare(const struct decoded *d, int32_t u, int32_t head)
{
    const struct decode_scratch *w = &d->a->scratch;
    size_t at = (size_t)u * (size_t)d->a->group + (size_t)head, dim = (size_t)d->a->c.head_dim;
    struct head_truth t = {0, 0};
    if (d->plan->kind[u] == READ_ALL) return t;
    double l_all = w->audit_state.l[at], l_read = w->state.l[at], m_all = w->audit_state.m[at],
           m_read = w->state.m[at];
    t.unread = l_read > 0 ? 1 - l_read / l_all * exp(m_read - m_all) : 1;
    t.unread = t.unread < 0 ? 0 : t.unread; /* rounding */
    double diff = 0, norm = 0;
    for (size_t i = 0; i < dim; i++) {
        double dense = w->audit_state.o[at * dim + i] / l_all, e = d->out[at * dim + i] - dense;
        diff += e * e;
        norm += dense * dense;
    }
    t.output_error = norm > 0 ? sqrt(diff / norm) : diff > 0;
    return t;
}

static void count_case(struct attn_seq *s, const struct head_truth *t, float estimate)
{
    sr_route_stats *c = &s->stats;
    c->cases++;
    c->above_eps += t->unread > (double)s->route.eps;
    c->broken += t->unread > 2 * (double)s->route.eps;
    c->unread_sum += t->unread;
    c->output_error_sum += t->output_error;
    if (t->unread > c->unread_max) c->unread_max = t->unread;
    if (t->output_error > c->output_error_max) c->output_error_max = t->output_error;
    if (!isnan(estimate)) c->estimate_sum += (double)estimate;
}

static void count_unit(const struct decoded *d, int32_t u)
{
    const struct decode_scratch *w = &d->a->scratch;
    struct attn_seq *s = d->seqs[u / d->a->c.n_kv_heads];
    s->stats.audits++;
    s->stats.audit_bytes += (uint64_t)w->audit_touched[u].k_rows * s->shape.k_row_bytes +
                            (uint64_t)w->audit_touched[u].v_rows * s->shape.v_row_bytes;
    for (int32_t h = 0; h < d->a->group; h++) {
        struct head_truth t = compare(d, u, h);
        count_case(s, &t, w->unread[u * d->a->group + h]);
    }
}

void sr_audit(const struct decoded *d)
{
    struct decode_scratch *w = &d->a->scratch;
    int32_t n_kv = d->a->c.n_kv_heads;
    int has_any = 0, has_dense = 0;
    for (int32_t u = 0; u < d->n_units; u++) {
        w->audited[u] = (uint8_t)is_audited(d->seqs[u / n_kv], d->layer, u % n_kv);
        has_any |= w->audited[u];
        w->set[u] = w->audited[u] && d->plan->kind[u] != READ_ALL ? ATTN_ALL : ATTN_NONE;
        has_dense |= w->set[u] == ATTN_ALL;
    }
    if (!has_any) return;
    memset(w->audit_touched, 0, (size_t)d->n_units * sizeof *w->audit_touched);
    if (has_dense) {
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
    for (int32_t u = 0; u < d->n_units; u++) {
        if (w->audited[u]) count_unit(d, u);
    }
}
