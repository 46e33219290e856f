/* SPDX-License-Identifier: Apache-2.0
 *
 * snapkv: as published (Li et al., arXiv 2404.14469). At the end of the prompt its last 32 queries vote for the rows before
 * them; votes are max-pooled over 7 neighbours, and the best rows are kept, as many as the budget has room for beside those
 * 32. Rows that come later are all read. Votes are summed over the heads of a KV group.
 */
#include "attention/observe.h"
#include "attention/policy.h"

#include <math.h>
#include <string.h>

enum { POOL = 7 };

static void choose(const struct route_step *step, int32_t u, struct observed *w)
{
    int32_t n = w->prefill - sr_observed_last_count(w);
    float *votes = w->score, *pooled = sr_observed_scratch(w);
    sr_observed_votes(w, &step->units[u], n, votes);
    for (int32_t i = 0; i < n; i++) {
        pooled[i] = votes[i];
        for (int32_t j = i - POOL / 2; j <= i + POOL / 2; j++) {
            if (j >= 0 && j < n) pooled[i] = fmaxf(pooled[i], votes[j]);
        }
    }
    memset(w->kept, 0, (size_t)w->max_len);
    sr_observed_top(w, pooled, 0, n, step->options->budget - (w->prefill - n), w->kept);
    memset(w->kept + n, 1, (size_t)(w->max_len - n));
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    for (int32_t u = 0; u < step->n_units; u++) {
        struct observed *w = step->observed[u];
        if (w->run_len == 0) choose(step, u, w);
        w->run_len = step->units[u].kv_len;
        p->n_list[u] = sr_observed_list(w->kept, step->units[u].kv_len, p->list[u]);
        p->kind[u] = READ_LIST;
    }
}

const struct policy sr_policy_snapkv = {.name = "snapkv", .needs_observer = 1, .has_budget = 1, .plan = plan};
