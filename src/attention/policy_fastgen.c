/* SPDX-License-Identifier: Apache-2.0
 *
 * fastgen: as published (Ge et al., arXiv 2310.01801). At the end of the prompt each head takes the cheapest of five rules
 * that recovers 1 - eps of its attention: the special token; and punctuation; and the most frequent rows; and the last rows;
 * everything. Half of the budget is for frequent rows, half for the last ones. What is recovered is judged by the prompt's
 * last 32 queries, and a KV group, whose rows its heads share, takes one rule for all of them.
 */
#include "attention/observe.h"
#include "attention/policy.h"

#include <math.h>
#include <string.h>

enum rule { SPECIAL, PUNCTUATION, FREQUENT, LOCAL, FULL };

/* Rows of the prompt that a rule keeps, without the last ones. */
static void mark(const struct route_step *step, struct observed *w, enum rule rule)
{
    const uint8_t *marks = sr_observer_marks(w->from);
    memset(w->kept, 0, (size_t)w->max_len);
    w->kept[0] = 1;
    for (int32_t i = 0; rule >= PUNCTUATION && i < w->prefill; i++) w->kept[i] |= marks[i];
    if (rule >= FREQUENT) sr_observed_top(w, w->column, 0, w->prefill, step->options->budget / 2, w->kept);
}

static int32_t last_of(const struct route_step *step, enum rule rule)
{
    return rule == LOCAL ? step->options->budget - step->options->budget / 2 : 1;
}

static void choose(const struct route_step *step, int32_t u, struct observed *w)
{
    int32_t n = w->prefill, rule = SPECIAL;
    double total = 0, found;
    sr_observed_votes(w, &step->units[u], n, w->score);
    for (int32_t i = 0; i < n; i++) total += (double)w->score[i];
    for (; rule < FULL; rule++) {
        int32_t last = n - last_of(step, (enum rule)rule);
        mark(step, w, (enum rule)rule);
        found = 0;
        for (int32_t i = 0; i < n; i++) found += w->kept[i] || i >= last ? (double)w->score[i] : 0;
        if (found >= (1 - (double)step->options->eps) * total) break;
    }
    w->n_kept = rule;
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    for (int32_t u = 0; u < step->n_units; u++) {
        struct observed *w = step->observed[u];
        int32_t len = step->units[u].kv_len;
        if (w->run_len == 0) choose(step, u, w);
        w->run_len = len;
        p->kind[u] = w->n_kept == FULL ? READ_ALL : READ_LIST;
        if (w->n_kept == FULL) continue;
        int32_t last = len - last_of(step, (enum rule)w->n_kept);
        int32_t n = sr_observed_list(w->kept, last, p->list[u]);
        for (int32_t i = last; i < len; i++) p->list[u][n++] = i;
        p->n_list[u] = n;
    }
}

const struct policy sr_policy_fastgen = {.name = "fastgen", .needs_observer = 1, .has_budget = 1, .plan = plan};
