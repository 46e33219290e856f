/* SPDX-License-Identifier: Apache-2.0
 *
 * Counters of a sequence. Rows are those that kernels report as touched; kinds are what the plan decided.
 */
#include "attention/timeline.h"

#include <string.h>

static void count_unit(struct attn_seq *s, int32_t layer, int32_t group, enum route_kind kind,
                       const struct attn_touched *t)
{
    sr_route_stats *c = &s->stats;
    size_t at = (size_t)layer * (size_t)s->a->c.n_kv_heads + (size_t)group;
    uint64_t sketch = (uint64_t)t->y_bytes;
    c->units++;
    c->units_all += kind == READ_ALL;
    c->units_near += kind == READ_NEAR;
    c->units_list += kind == READ_NEAR_LIST;
    c->units_none += kind == READ_NONE;
    s->decisions[at]++;
    s->near_only[at] += kind == READ_NEAR || kind == READ_NONE;
    c->k_rows += t->k_rows;
    c->v_rows += t->v_rows;
    c->sketch_rows += t->y_rows;
    c->sketch_bytes += sketch;
    c->kv_bytes +=
        (uint64_t)t->k_rows * s->shape.k_row_bytes + (uint64_t)t->v_rows * s->shape.v_row_bytes + sketch;
    c->dense_bytes += (uint64_t)s->len[layer] * (s->shape.k_row_bytes + s->shape.v_row_bytes);
}

static void count_threshold(struct attn_seq *s, float threshold, int is_open)
{
    s->stats.units_open += is_open;
    s->stats.thresholds += !is_open;
    s->stats.threshold_sum += is_open ? 0 : (double)threshold;
}

void sr_stats_count(const struct decoded *d)
{
    const struct decode_scratch *w = &d->a->scratch;
    int32_t n_kv = d->a->c.n_kv_heads;
    for (int32_t u = 0; u < d->n_units; u++) {
        if (d->policy->has_contract) count_threshold(d->seqs[u / n_kv], w->eps[u], w->whole[u]);
        count_unit(d->seqs[u / n_kv], d->layer, u % n_kv, (enum route_kind)d->plan->kind[u],
                   &d->a->scratch.touched[u]);
    }
    /* a token is decoded once its last layer is */
    for (int32_t i = 0; i < d->n_seqs; i++) d->seqs[i]->stats.steps += d->layer == d->a->c.n_layers - 1;
}

static void add_sums(double *sum, double *max, double s, double m)
{
    *sum += s;
    if (m > *max) *max = m;
}

void sr_stats_add(sr_route_stats *sum, const sr_route_stats *s)
{
    const struct { int64_t *to; int64_t n; } counts[] = {
        {&sum->units, s->units}, {&sum->units_all, s->units_all}, {&sum->units_near, s->units_near},
        {&sum->units_list, s->units_list}, {&sum->units_none, s->units_none}, {&sum->k_rows, s->k_rows},
        {&sum->v_rows, s->v_rows}, {&sum->sketch_rows, s->sketch_rows}, {&sum->audits, s->audits},
        {&sum->cases, s->cases}, {&sum->above_eps, s->above_eps}, {&sum->broken, s->broken},
        {&sum->clipped, s->clipped}, {&sum->encoded, s->encoded}, {&sum->far_rows, s->far_rows},
        {&sum->far_rows_uncorrected, s->far_rows_uncorrected}, {&sum->thresholds, s->thresholds},
        {&sum->breaker_closed, s->breaker_closed}, {&sum->units_open, s->units_open}};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) *counts[i].to += counts[i].n;
    for (int i = 0; i < SR_BREAK_CAUSES; i++) sum->breaker_opened[i] += s->breaker_opened[i];
    sum->kv_bytes += s->kv_bytes;
    sum->sketch_bytes += s->sketch_bytes;
    sum->dense_bytes += s->dense_bytes;
    sum->audit_bytes += s->audit_bytes;
    sum->again_bytes += s->again_bytes;
    sum->estimate_sum += s->estimate_sum;
    sum->threshold_sum += s->threshold_sum;
    add_sums(&sum->unread_sum, &sum->unread_max, s->unread_sum, s->unread_max);
    add_sums(&sum->output_error_sum, &sum->output_error_max, s->output_error_sum, s->output_error_max);
}

void sr_attn_seq_stats(const struct attn_seq *s, sr_route_stats *out)
{
    *out = s->stats;
    if (s->device) sr_device_stats(s, out);
    if (s->lower) {
        sr_route_stats lower;
        sr_attn_seq_stats(s->lower, &lower);
        sr_stats_add(out, &lower);
    }
}

void sr_attn_seq_stats_reset(struct attn_seq *s)
{
    size_t n = (size_t)s->a->c.n_layers * (size_t)s->a->c.n_kv_heads;
    if (s->lower) sr_attn_seq_stats_reset(s->lower);
    s->stats = (sr_route_stats){0};
    memset(s->near_only, 0, n * sizeof *s->near_only);
    memset(s->decisions, 0, n * sizeof *s->decisions);
    if (s->device) sr_device_stats_reset(s);
}

void sr_attn_seq_memory(const struct attn_seq *s, uint64_t *kv_bytes, uint64_t *sketch_bytes)
{
    *kv_bytes = (uint64_t)s->n_chunks * sr_cache_chunk_bytes(s);
    *sketch_bytes =
        (uint64_t)s->n_sketch_chunks * sr_cache_sketch_chunk_bytes(s, &s->sketch) + sr_sketch_bases_bytes(s);
    if (s->lower) {
        uint64_t kv, sketch;
        sr_attn_seq_memory(s->lower, &kv, &sketch);
        *kv_bytes += kv;
        *sketch_bytes += sketch;
    }
}

void sr_attn_seq_heat(const struct attn_seq *s, const int64_t **near_only, const int64_t **decisions)
{
    if (s->device) sr_device_heat(s);
    *near_only = s->near_only;
    *decisions = s->decisions;
    if (!s->lower) return;
    const size_t n_lower = (size_t)s->a->c.n_lower * (size_t)s->a->c.n_kv_heads, n = (size_t)s->a->c.n_layers * (size_t)s->a->c.n_kv_heads;
    const int64_t *rest[2] = {s->near_only, s->decisions}, *first[2];
    sr_attn_seq_heat(s->lower, &first[0], &first[1]);
    for (size_t i = 0; i < 2; i++) {
        memcpy(s->heat + i * (n_lower + n), first[i], n_lower * sizeof *s->heat);
        memcpy(s->heat + i * (n_lower + n) + n_lower, rest[i], n * sizeof *s->heat);
    }
    *near_only = s->heat;
    *decisions = s->heat + n_lower + n;
}
