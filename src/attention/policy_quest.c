/* SPDX-License-Identifier: Apache-2.0
 *
 * quest: as published (Tang et al., arXiv 2406.10774). Pages of 16 rows; a page's score is the largest q.k that a key
 * between its least and largest elements could have, here the largest over the heads of the group; the best pages are
 * read, as many as the budget has rows, and the page that is not full yet. The first two layers are dense. The two vectors
 * of every page count as two rows of K.
 */
#include "attention/observe.h"
#include "attention/policy.h"

#include <math.h>
#include <string.h>

enum { DENSE_LAYERS = 2 };

static void score_pages(const struct route_step *step, int32_t u, int32_t n_pages, float *score)
{
    const struct observed *w = step->observed[u];
    int32_t d = step->shape->head_dim;
    for (int32_t page = 0; page < n_pages; page++) {
        const float *least = w->pages + (size_t)page * 4 * (size_t)d, *most = least + d;
        float best = -INFINITY;
        for (int32_t h = 0; h < step->shape->group; h++) {
            const float *q = step->units[u].q + h * d;
            float sum = 0;
            for (int32_t i = 0; i < d; i++) sum += q[i] > 0 ? q[i] * most[i] : q[i] * least[i];
            best = fmaxf(best, sum);
        }
        score[page] = best;
    }
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    for (int32_t u = 0; u < step->n_units; u++) {
        struct observed *w = step->observed[u];
        int32_t len = step->units[u].kv_len, n_pages = len / SR_PAGE_TOKENS, whole = n_pages * SR_PAGE_TOKENS;
        if (step->layer < DENSE_LAYERS) {
            p->kind[u] = READ_ALL;
            continue;
        }
        score_pages(step, u, n_pages, w->score);
        memset(w->kept, 0, (size_t)len);
        sr_observed_pages(w, w->score, 0, whole, (step->options->budget - (len - whole)) / SR_PAGE_TOKENS, w->kept);
        memset(w->kept + whole, 1, (size_t)(len - whole));
        step->touched[u].k_rows += 2 * n_pages;
        p->n_list[u] = sr_observed_list(w->kept, len, p->list[u]);
        p->kind[u] = READ_LIST;
    }
}

const struct policy sr_policy_quest = {.name = "quest", .needs_observer = 1, .has_budget = 1, .plan = plan};
