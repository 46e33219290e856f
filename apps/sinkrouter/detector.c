/* SPDX-License-Identifier: Apache-2.0
 *
 * See detector.h.
 */
#include "detector.h"

#include <math.h>
#include <stdlib.h>

static const float label = 0.65f;

static float mean(const float *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i];
    return (float)(sum / n);
}

static void add_at_eps(struct detector *d, const sr_route_case *c)
{
    for (int32_t h = 0; h < c->n_heads && c->is_routed; h++) {
        if (!(c->estimate[h] > 0.8f * c->threshold && c->estimate[h] <= c->threshold)) continue;
        d->n_at_eps++;
        d->unread_at_eps += (double)c->unread[h];
    }
}

double sr_detector_at_eps(const struct detector *d)
{
    return d->n_at_eps ? d->unread_at_eps / (double)d->n_at_eps / (double)d->eps : NAN;
}

void sr_detector_watch(void *user, const sr_route_case *c)
{
    struct detector *d = user;
    if (d->eps > 0) add_at_eps(d, c);
    if (d->n == d->room && !d->is_short) {
        size_t room = d->room ? 2 * d->room : 4096;
        struct decision *v = realloc(d->v, room * sizeof *v);
        d->is_short = !v;
        d->v = v ? v : d->v;
        d->room = v ? room : d->room;
    }
    if (d->is_short) return;
    d->v[d->n++] = (struct decision){mean(c->sink, c->n_heads), mean(c->sink_estimate, c->n_heads), c->cosine,
                                     c->layer, c->kv_len};
}

void sr_detector_free(struct detector *d)
{
    free(d->v);
    *d = (struct detector){0};
}

double sr_detector_rate(const struct detector *d)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++) n += d->v[i].sink > label;
    return d->n ? (double)n / (double)d->n : NAN;
}

struct scored {
    float score;
    int has_label;
};

static int falling(const void *a, const void *b)
{
    float x = ((const struct scored *)a)->score, y = ((const struct scored *)b)->score;
    return (x < y) - (x > y);
}

/* Sum over the distinct scores, falling, of precision there times the recall gained. */
static double average_precision(const struct scored *s, size_t n, size_t n_label)
{
    size_t found = 0;
    double sum = 0;
    for (size_t i = 0, end; i < n; i = end) {
        size_t before = found;
        for (end = i; end < n && s[end].score == s[i].score; end++) found += s[end].has_label != 0;
        sum += (double)(found - before) * (double)found / (double)end;
    }
    return sum / (double)n_label;
}

double sr_detector_auprc(const struct detector *d, enum detector_score which)
{
    struct scored *s = malloc((d->n ? d->n : 1) * sizeof *s);
    size_t n = 0, n_label = 0;
    for (size_t i = 0; s && i < d->n; i++) {
        float score = which == SCORE_COSINE ? d->v[i].cosine : d->v[i].estimate;
        if (isnan(score)) continue;
        s[n++] = (struct scored){score, d->v[i].sink > label};
        n_label += d->v[i].sink > label;
    }
    double ap = NAN;
    if (n_label) {
        qsort(s, n, sizeof *s, falling);
        ap = average_precision(s, n, n_label);
    }
    free(s);
    return ap;
}
