/* SPDX-License-Identifier: Apache-2.0
 *
 * topk: an oracle. Sinks, window, and the far rows with the largest true share of any head, as many as the budget has
 * room for. What it looks at to know them is not counted: it is a bound, not a method.
 */
#include "attention/observe.h"
#include "attention/policy.h"

#include <math.h>
#include <string.h>

static void plan(const struct route_step *step, struct route_plan *p)
{
    const sr_route_options *o = step->options;
    for (int32_t u = 0; u < step->n_units; u++) {
        struct observed *w = step->observed[u];
        int32_t len = step->units[u].kv_len, far_end = len - o->window, room = w->max_len;
        float *share = sr_observed_logits(w, &step->units[u]), *best = sr_observed_scratch(w);
        memset(best, 0, (size_t)len * sizeof *best);
        for (int32_t h = 0; h < step->shape->group; h++) {
            sr_observed_softmax(share + (size_t)h * (size_t)room, len);
            for (int32_t i = 0; i < len; i++) best[i] = fmaxf(best[i], share[(size_t)h * (size_t)room + (size_t)i]);
        }
        memset(w->kept, 0, (size_t)len);
        sr_observed_top(w, best, o->n_sinks, far_end, o->budget - o->n_sinks - o->window, w->kept);
        p->n_list[u] = sr_observed_list(w->kept, far_end, p->list[u]);
        p->kind[u] = READ_NEAR_LIST;
    }
}

const struct policy sr_policy_topk = {.name = "topk", .keeps_near = 1, .needs_observer = 1, .has_budget = 1, .plan = plan};
