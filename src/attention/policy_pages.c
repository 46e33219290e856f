/* SPDX-License-Identifier: Apache-2.0
 *
 * pages: sinks, window, and the far pages of 16 rows that score best by the mean and the standard deviation of their
 * keys, q.mean + sum |q_i| deviation_i, the largest over the heads of the group: what a page-wise method could do with the
 * same near part as mass. The two vectors of every far page count as two rows of K.
 */
#include "attention/observe.h"
#include "attention/policy.h"

#include <math.h>
#include <string.h>

static void score_pages(const struct route_step *step, int32_t u, int32_t n_pages, float *score)
{
    const struct observed *w = step->observed[u];
    int32_t d = step->shape->head_dim;
    for (int32_t page = 0; page < n_pages; page++) {
        const float *mean = w->pages + ((size_t)page * 4 + 2) * (size_t)d, *spread = mean + d;
        float best = -INFINITY;
        for (int32_t h = 0; h < step->shape->group; h++) {
            const float *q = step->units[u].q + h * d;
            float sum = 0;
            for (int32_t i = 0; i < d; i++) sum += q[i] * mean[i] + fabsf(q[i]) * spread[i];
            best = fmaxf(best, sum);
        }
        score[page] = best;
    }
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    const sr_route_options *o = step->options;
    for (int32_t u = 0; u < step->n_units; u++) {
        struct observed *w = step->observed[u];
        int32_t end = step->units[u].kv_len - o->window, n_pages = end / SR_PAGE_TOKENS;
        score_pages(step, u, n_pages, w->score);
        memset(w->kept, 0, (size_t)end);
        step->touched[u].k_rows +=
            2 * sr_observed_pages(w, w->score, o->n_sinks, end, (o->budget - o->n_sinks - o->window) / SR_PAGE_TOKENS,
                                  w->kept);
        p->n_list[u] = sr_observed_list(w->kept, end, p->list[u]);
        p->kind[u] = READ_NEAR_LIST;
    }
}

const struct policy sr_policy_pages = {.name = "pages", .keeps_near = 1, .needs_observer = 1, .has_budget = 1, .plan = plan};
