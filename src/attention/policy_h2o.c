/* SPDX-License-Identifier: Apache-2.0
 *
 * h2o: as published (Zhang et al., arXiv 2306.14048): half of the budget for the rows that attention fell on most, summed
 * over all queries so far, and half for the last rows. A row once left out never comes back; the memory is kept, so that
 * other modes can follow. Sums are over the heads of a KV group. Those of the prefill are from every eighth of its queries.
 */
#include "attention/observe.h"
#include "attention/policy.h"

#include <math.h>
#include <string.h>

/* The heavy rows of the prefill; what decoding adds is kept apart from what other runs begin with. */
static void begin(const struct route_step *step, struct observed *w, int32_t recent)
{
    int32_t n_heavy = step->options->budget - step->options->budget / 2;
    memcpy(w->score, w->column, (size_t)w->max_len * sizeof(float));
    memset(w->kept, 0, (size_t)w->max_len);
    sr_observed_top(w, w->score, 0, recent, n_heavy, w->kept);
    for (int32_t i = w->n_kept = 0; i < recent; i++) w->n_kept += w->kept[i];
}

/* The row that leaves the last ones takes the place of the weakest, or goes itself. */
static void move_on(const struct route_step *step, struct observed *w, int32_t recent)
{
    int32_t n_heavy = step->options->budget - step->options->budget / 2, weakest = recent - 1;
    w->kept[recent - 1] = 1;
    if (++w->n_kept <= n_heavy) return;
    for (int32_t i = 0; i < recent; i++) {
        if (w->kept[i] && w->score[i] < w->score[weakest]) weakest = i;
    }
    w->kept[weakest] = 0;
    w->n_kept--;
}

/* Attention over what is kept, added to its sums. */
static void add_step(const struct route_step *step, int32_t u, struct observed *w)
{
    int32_t len = step->units[u].kv_len;
    float *p = sr_observed_logits(w, &step->units[u]);
    for (int32_t h = 0; h < step->shape->group; h++, p += w->max_len) {
        for (int32_t i = 0; i < len; i++) p[i] = w->kept[i] ? p[i] : -INFINITY;
        sr_observed_softmax(p, len);
        for (int32_t i = 0; i < len; i++) w->score[i] += p[i];
    }
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    for (int32_t u = 0; u < step->n_units; u++) {
        struct observed *w = step->observed[u];
        int32_t len = step->units[u].kv_len, last = step->options->budget / 2;
        int32_t recent = len > last ? len - last : 0;
        if (w->run_len != len) { /* else the same step once more */
            if (w->run_len == 0 || w->run_len != len - 1)
                begin(step, w, recent);
            else if (recent > 0)
                move_on(step, w, recent);
            memset(w->kept + recent, 1, (size_t)(len - recent));
            w->score[len - 1] = 0;
            add_step(step, u, w);
            memset(w->kept + recent, 0, (size_t)(len - recent));
            w->run_len = len;
        }
        int32_t n = sr_observed_list(w->kept, recent, p->list[u]);
        for (int32_t i = recent; i < len; i++) p->list[u][n++] = i;
        p->n_list[u] = n;
        p->kind[u] = READ_LIST;
    }
}

const struct policy sr_policy_h2o = {.name = "h2o", .needs_observer = 1, .has_budget = 1, .plan = plan};
