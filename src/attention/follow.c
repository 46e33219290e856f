/* SPDX-License-Identifier: Apache-2.0
 *
 * The trail (trail.h) in a decode step. Which rows have a large share is known of those that were read: what the trail named is
 * looked at again, and of the rows chosen those that the estimate gives much. Their exact logits are taken once more, of K rows
 * that the step has just read and counted.
 */
#include "attention/timeline.h"

#include <math.h>

/* Both rise. Returns how many rows there are together. */
static int32_t unite(const int32_t *a, int32_t n_a, const int32_t *b, int32_t n_b, int32_t *out)
{
    int32_t n = 0, i = 0, j = 0;
    while (i < n_a || j < n_b) {
        const int32_t row = j == n_b || (i < n_a && a[i] < b[j]) ? a[i] : b[j];
        i += i < n_a && a[i] == row;
        j += j < n_b && b[j] == row;
        out[n++] = row;
    }
    return n;
}

void sr_trail_follow(struct decode_scratch *w, struct attn_seq *s, int32_t layer, int32_t first)
{
    int32_t rows[SR_TRAIL_ROWS];
    sr_trail_step(&s->trail, s->len[layer]);
    const int32_t n = sr_trail_get(&s->trail, s->route.n_sinks, s->len[layer] - s->route.window, rows);
    for (int32_t u = first; n > 0 && u < first + s->a->c.n_kv_heads; u++) {
        int32_t *to = w->found_rows + (size_t)u * SR_FOUND_ROWS;
        w->n_found[u] = unite(w->found[u], w->n_found[u], rows, n, to);
        w->found[u] = to;
    }
}

/* ---- what this step leaves ---- */

struct looked_at { const struct decoded *d; struct attn_seq *s; int32_t unit; };

enum { MOST_HEADS = 16, AT_ONCE = 32 };

/* Logits that a share cannot have that is worth noting: exponentials are taken of few. */
static void lowest(const struct looked_at *at, float *logit)
{
    const struct attn_state *state = &at->d->a->scratch.state;
    const int32_t group = at->s->shape.group;
    for (int32_t h = 0; h < group; h++) {
        const size_t head = (size_t)at->unit * (size_t)group + (size_t)h;
        logit[h] = state->m[head] + logf(0.9f * SR_TRAIL_SHARE * state->l[head]);
    }
}

static void note_row(const struct looked_at *at, int32_t row, const float *logit, int32_t stride, const float *low)
{
    const struct attn_state *state = &at->d->a->scratch.state;
    const int32_t group = at->s->shape.group;
    float most = 0;
    for (int32_t h = 0; h < group; h++) {
        const size_t head = (size_t)at->unit * (size_t)group + (size_t)h;
        if (!(logit[h * stride] > low[h])) continue;
        const float share = expf(logit[h * stride] - state->m[head]) / state->l[head];
        if (share > most) most = share;
    }
    sr_trail_note(&at->s->trail, row, most < 1 ? most : 1);
}

static void note_rows(const struct looked_at *at, const int32_t *rows, int32_t n)
{
    struct backend *b = at->d->a->backend;
    float logits[AT_ONCE * MOST_HEADS], low[MOST_HEADS];
    if (n > 0) lowest(at, low);
    for (int32_t i = 0; i < n; i += AT_ONCE) {
        const int32_t take = n - i < AT_ONCE ? n - i : AT_ONCE;
        b->ops->attn_logits(b, &(struct attn_logits_args){.shape = &at->s->shape, .unit = &at->d->a->scratch.units[at->unit],
                                                          .rows = rows + i, .n = take, .logits = logits});
        for (int32_t j = 0; j < take; j++) note_row(at, rows[i + j], logits + j, take, low);
    }
}

/* Whether all that was read in any case has so much of some head that one of its rows may. */
static int may_have(const struct looked_at *at)
{
    const struct decode_scratch *w = &at->d->a->scratch;
    const int32_t group = at->s->shape.group;
    for (int32_t h = at->unit * group; h < (at->unit + 1) * group; h++)
        if (!(w->found_l[h] * expf(w->near_m[h] - w->state.m[h]) < 0.99f * SR_TRAIL_SHARE * w->state.l[h])) return 1;
    return 0;
}

/* Sinks are read in any case, and have their share from every query. */
static void note_unit(const struct looked_at *at, int32_t layer, int32_t kv_head)
{
    const struct decode_scratch *w = &at->d->a->scratch;
    const int32_t u = at->unit, *sinks, *found = w->found[u], *top = w->top + (size_t)u * SR_SKETCH_TOP;
    int32_t rows[SR_FOUND_ROWS], n = 0;
    const int may = w->n_found[u] > 0 && may_have(at);
    const int32_t n_sinks = sr_sinks_get(at->s->sinks, layer, kv_head, at->s->route.n_sinks, at->s->len[layer] - at->s->route.window, &sinks);
    for (int32_t i = 0, k = 0; i < w->n_found[u] && may; i++) {
        while (k < n_sinks && sinks[k] < found[i]) k++;
        if (k == n_sinks || sinks[k] != found[i]) rows[n++] = found[i];
    }
    note_rows(at, rows, n);
    note_rows(at, top, w->n_top[u]);
}

void sr_trail_lay(const struct decoded *d)
{
    const struct decode_scratch *w = &d->a->scratch;
    const int32_t n_kv = d->a->c.n_kv_heads;
    for (int32_t u = 0; u < d->n_units; u++) {
        const struct looked_at at = {d, d->seqs[u / n_kv], u};
        if (at.s->route.trail && !w->whole[u] && !w->drawn[u]) note_unit(&at, d->layer, u % n_kv);
    }
}
