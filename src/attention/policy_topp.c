/* SPDX-License-Identifier: Apache-2.0
 *
 * topp: the other oracle. As mass, but with the true shares: sinks, window, and the fewest far rows, by their largest
 * share of any head, that leave no head with more than eps unread. What it looks at is not counted.
 */
#include "attention/observe.h"
#include "attention/policy.h"

#include <math.h>
#include <string.h>

#include <stdlib.h>

struct far_row {
    float best;
    int32_t row;
};

static int falling(const void *a, const void *b)
{
    const struct far_row *x = a, *y = b;
    return x->best != y->best ? (x->best < y->best) - (x->best > y->best) : x->row - y->row;
}

/* Rows of less than eps over their number cannot matter, all of them together: they are not sorted. */
static int32_t candidates(const struct route_step *step, int32_t u, const float *share, struct far_row *out)
{
    int32_t first = step->options->n_sinks, end = step->units[u].kv_len - step->options->window, n = 0;
    float least = step->eps[u] / (float)(end - first);
    for (int32_t i = first; i < end; i++) {
        float best = 0;
        for (int32_t h = 0; h < step->shape->group; h++)
            best = fmaxf(best, share[(size_t)h * (size_t)step->observed[u]->max_len + (size_t)i]);
        if (best >= least) out[n++] = (struct far_row){best, i};
    }
    qsort(out, (size_t)n, sizeof *out, falling);
    return n;
}

static void plan_unit(const struct route_step *step, struct route_plan *p, int32_t u)
{
    struct observed *w = step->observed[u];
    int32_t len = step->units[u].kv_len, group = step->shape->group, n_within = 0, n = 0;
    float *share = sr_observed_logits(w, &step->units[u]);
    double unread[16] = {0};
    for (int32_t h = 0; h < group; h++) {
        float *s = share + (size_t)h * (size_t)w->max_len;
        sr_observed_softmax(s, len);
        for (int32_t i = step->options->n_sinks; i < len - step->options->window; i++) unread[h] += (double)s[i];
    }
    struct far_row *rows = sr_observed_pairs(w);
    int32_t m = candidates(step, u, share, rows);
    memset(w->kept, 0, (size_t)len);
    for (;; n++) {
        for (n_within = 0; n_within < group && unread[n_within] <= (double)step->eps[u];) n_within++;
        if (n_within == group || n == m) break;
        w->kept[rows[n].row] = 1;
        for (int32_t h = 0; h < group; h++)
            unread[h] -= (double)share[(size_t)h * (size_t)w->max_len + (size_t)rows[n].row];
    }
    p->n_list[u] = sr_observed_list(w->kept, len, p->list[u]);
    p->kind[u] = n ? READ_NEAR_LIST : READ_NEAR;
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    for (int32_t u = 0; u < step->n_units; u++) plan_unit(step, p, u);
}

const struct policy sr_policy_topp = {.name = "topp", .keeps_near = 1, .needs_observer = 1, .plan = plan};
