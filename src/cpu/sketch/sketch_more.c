/* SPDX-License-Identifier: Apache-2.0
 *
 * sketch_more: the second look of struct sketch_more_args. It walks on through the bins that sketch_choose left in the
 * scratch, and only for the units that need it.
 */
#include "cpu/sketch/sketch_bins.h"

#include <math.h>
#include <string.h>

/* n_more of a unit that needs bins that are not there yet: what is kept of it is too little, and all threads scan it again. */
enum { LACKS_BINS = -1 };

struct more_job { const struct sketch_more_args *a; const struct backend_cpu *c; struct attn_scratch *s; const int32_t *units; };

/* Of a unit's heads: what the estimate of an unread row is multiplied by to be its share, and the largest estimated
 * unread share that is within eps then. */
struct seen { double scale[SR_ATTN_MAX_GROUP], limit[SR_ATTN_MAX_GROUP]; };

static void see(const struct more_job *j, int32_t u, struct seen *seen)
{
    const struct sketch_choose_args *a = j->a->choice;
    const struct choose_unit *w = &j->s->choose[u];
    for (int32_t g = 0; g < a->shape->group; g++) {
        const size_t at = (size_t)(u * a->shape->group + g);
        const double total = (double)w->log_total[g], unread = w->unread[g] > 0 ? w->unread[g] : 0;
        const double near = (double)a->near_state.l[at] * exp((double)a->near_state.m[at] - total);
        const double all = (double)j->a->read.l[at] * exp((double)j->a->read.m[at] - total);
        const double exact = all < near ? 0 : all - near, estimated = w->far_share[g] - unread;
        const double r = estimated + unread > 0 && exact > estimated ? (exact + unread) / (estimated + unread) : 1;
        seen->scale[g] = r / (near + exact + r * unread);
        seen->limit[g] = (double)a->eps[u] / seen->scale[g];
    }
}

/* Comparisons with what is not a number say no: then the first choice stands. */
static int is_above(const struct choose_unit *w, const struct seen *seen, int32_t group)
{
    for (int32_t g = 0; g < group; g++)
        if (w->unread[g] > seen->limit[g]) return 1;
    return 0;
}

static void report(const struct more_job *j, int32_t u, const struct seen *seen)
{
    const struct choose_unit *w = &j->s->choose[u];
    const int32_t group = j->a->choice->shape->group;
    for (int32_t g = 0; g < group; g++)
        j->a->choice->unread[u * group + g] = w->unread[g] > 0 ? (float)(w->unread[g] * seen->scale[g]) : 0.0f;
}

static struct unit_job unit_of(const struct more_job *j, int32_t u, int32_t thread)
{
    return (struct unit_job){j->a->choice, j->c, j->s, u, thread};
}

/* Lists further rows of a unit; or, where those need bins that are not there, leaves it as it was. */
static void list_more(const struct more_job *j, int32_t u, int32_t thread)
{
    const struct unit_job unit = unit_of(j, u, thread);
    struct choose_unit *w = &j->s->choose[u];
    const int32_t first = w->end;
    double unread[SR_ATTN_MAX_GROUP];
    struct seen seen;
    see(j, u, &seen);
    memcpy(unread, w->unread, sizeof(unread));
    for (; w->end < SR_SKETCH_BINS && is_above(w, &seen, j->a->choice->shape->group); w->end++) {
        if (!sr_bins_has(&unit, w->end)) {
            memcpy(w->unread, unread, sizeof(unread));
            w->end = first;
            j->a->n_more[u] = LACKS_BINS;
            return;
        }
        sr_bins_take(&unit, w->end, w->unread);
    }
    j->a->n_more[u] = sr_bins_list(&unit, first, w->end, j->a->more[u]);
    report(j, u, &seen);
}

static void more_task(void *ctx, int32_t task, int32_t thread)
{
    const struct more_job *j = ctx;
    list_more(j, j->units[task], thread);
}

static void again_task(void *ctx, int32_t task, int32_t thread)
{
    const struct more_job *j = ctx;
    const int32_t u = j->s->spans[task].unit;
    if (j->a->n_more[u] != LACKS_BINS) return;
    const struct unit_job unit = unit_of(j, u, thread);
    sr_bins_scan_again(&unit, task);
}

static void rest_task(void *ctx, int32_t task, int32_t thread)
{
    const struct more_job *j = ctx;
    const int32_t u = j->units[task];
    const struct unit_job unit = unit_of(j, u, thread);
    if (j->a->n_more[u] != LACKS_BINS) return;
    sr_bins_fill_all(&unit);
    list_more(j, u, thread);
}

void sr_cpu_sketch_more(struct backend *b, const struct sketch_more_args *a)
{
    struct backend_cpu *c = sr_cpu_of(b);
    int32_t *units = c->attn->more, n = 0;
    const struct more_job job = {a, c, c->attn, units};
    for (int32_t u = 0; u < a->choice->n_units; u++) {
        struct seen seen;
        a->n_more[u] = 0;
        if (!a->mask[u] || c->attn->choose[u].end == SR_SKETCH_BINS) continue;
        see(&job, u, &seen);
        report(&job, u, &seen);
        if (is_above(&c->attn->choose[u], &seen, a->choice->shape->group)) units[n++] = u;
    }
    if (n == 0) return;
    void *ctx = (void *)(uintptr_t)&job;
    int32_t n_lacking = 0;
    sr_pool_run(c->pool, n, more_task, ctx);
    for (int32_t i = 0; i < n; i++) n_lacking += a->n_more[units[i]] == LACKS_BINS;
    if (n_lacking == 0) return;
    sr_pool_run(c->pool, c->attn->n_spans, again_task, ctx);
    sr_pool_run(c->pool, n, rest_task, ctx);
}
