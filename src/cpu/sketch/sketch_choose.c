/* SPDX-License-Identifier: Apache-2.0
 *
 * sketch_choose: estimates the logits of a unit's far rows, and lists those that must be read.
 *
 * The first plane of the sketch is read of every row, the second only in runs with a row of some weight beside the near
 * part. The near part is known before, so which runs those are depends on no thread; the others keep the estimate of the
 * first plane, and can be chosen like any row.
 *
 * One pass over the sketch, chunk by chunk over the pool, and no store of all logits: a row whose share is below
 * eps / n_far for every head can be left unread whatever happens to the others (all such rows together weigh at most
 * eps, for each head), and the near part and the chunks scored so far already bound the total from below, so most rows
 * are settled as soon as they are scored. Which rows are kept beyond those above the cut depends on the order of the
 * threads, what is chosen among them does not: only rows above the cut of the true total have a bin. Whoever finishes a
 * unit's last chunk sums the masses in order and chooses among the rows kept.
 */
#include "cpu/sketch/sketch_bins.h"
#include "cpu/attn/kv_row.h"

#include <math.h>
#include <sched.h>
#include <string.h>

struct choose_job { const struct sketch_choose_args *a; const struct backend_cpu *c; struct attn_scratch *s; };

/* ---- the query in the basis ---- */

/* Of a coordinate: where its factors lie, of 3 bits the upper two's, which is twice the lowest's, in `twice`; else twice = -1. */
struct factor_place { int32_t at, twice; float rounding; };

static struct factor_place factor_place(const struct sketch_shape *s, int32_t j)
{
    const float rounding = sr_sketch_rounding(sr_sketch_code_bits(s, j));
    if (j < SR_SKETCH_FIRST) return (struct factor_place){j, -1, rounding};
    const struct sketch_place p = sr_sketch_place_of(s, j);
    const int32_t word = SR_SKETCH_FIRST + sr_sketch_fields_before(s, p.word), field = word + p.shift / sr_sketch_field_bits(s, p.word);
    return p.low_shift < 0 ? (struct factor_place){field, -1, rounding} : (struct factor_place){word + SKETCH_TWOS + p.low_shift, field, rounding};
}

/* A head's factors and constants from its coordinates z. */
static void set_head(const struct choose_job *j, int32_t u, int32_t g, const float *z, const struct factor_place *place)
{
    const struct sketch_choose_args *a = j->a;
    const struct sketch_basis *basis = &a->basis[u];
    const int32_t d = a->shape->head_dim, rank = a->sketch->rank;
    const float *q = a->units[u].q + g * d;
    struct choose_unit *unit = &j->s->choose[u];
    float *w = unit->w + g * sr_sketch_padded(a->sketch);
    float first = 0, rest = 0, left_out = 0, tail = 0, base = 0;
    for (int32_t i = 0; i < d; i++) base += q[i] * basis->mu[i];
    for (int32_t i = 0; i < rank; i++) {
        const float x = z[i] * basis->step[i];
        w[place[i].at] = x;
        if (place[i].twice >= 0) w[place[i].twice] = 2 * x;
        *(i < SR_SKETCH_FIRST ? &first : &rest) += x * x * place[i].rounding;
        if (i >= SR_SKETCH_FIRST) left_out += z[i] * z[i] * basis->lambda[i];
    }
    for (int32_t i = rank; i < d; i++) tail += z[i] * z[i] * basis->lambda[i];
    unit->base[g] = base + 0.5f * (first + left_out + tail);
    unit->more[g] = 0.5f * (rest - left_out);
    if (!isfinite(unit->more[g])) unit->open[g] = -INFINITY; /* what is wrong with the second plane must show */
    if (!unit->has_near[g]) unit->from[g] = unit->base[g];
}

static void project_query(const struct choose_job *j, int32_t u)
{
    const struct sketch_choose_args *a = j->a;
    const int32_t d = a->shape->head_dim, group = a->shape->group, padded = sr_sketch_padded(a->sketch);
    struct factor_place place[SR_ATTN_MAX_DIM];
    float z[SR_ATTN_MAX_GROUP * SR_ATTN_MAX_DIM];
    for (int32_t g = 0; g < group; g += SR_MATVEC_TOKENS) {
        const struct acts acts = {.x = a->units[u].q + g * d, .x_stride = d};
        j->c->k.matvec_f32(&(struct matvec_args){
            .w = (const uint8_t *)a->basis[u].synthesis, .row_bytes = (size_t)d * sizeof(float), .n_rows = d, .n_in = d,
            .acts = &acts, .n = group - g < SR_MATVEC_TOKENS ? group - g : SR_MATVEC_TOKENS, .y = z + g * d, .y_stride = d});
    }
    for (int32_t i = 0; i < a->sketch->rank; i++) place[i] = factor_place(a->sketch, i);
    memset(j->s->choose[u].w, 0, (size_t)(group * padded) * sizeof(float));
    for (int32_t g = 0; g < group; g++) set_head(j, u, g, z + g * d, place);
}

/* The first thread that needs a unit's query projects it; others wait for it, since it is being worked on. */
static void want_query(const struct choose_job *j, int32_t u)
{
    struct choose_unit *w = &j->s->choose[u];
    int expected = QUERY_TODO;
    if (atomic_load_explicit(&w->query, memory_order_acquire) == QUERY_READY) return;
    if (atomic_compare_exchange_strong(&w->query, &expected, QUERY_CLAIMED)) {
        project_query(j, u);
        atomic_store_explicit(&w->query, QUERY_READY, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&w->query, memory_order_acquire) != QUERY_READY; spins++)
        if (spins > 1000) sched_yield();
}

/* ---- a chunk ---- */

static void copy_logits(const struct unit_job *j, const struct choose_span *s)
{
    const float *logits = sr_attn_thread_scratch(j->s, j->thread);
    for (int32_t g = 0; g < j->a->shape->group; g++)
        memcpy(j->a->logits[s->unit] + (size_t)g * (size_t)j->a->units[s->unit].kv_len + s->chunk * SR_CHUNK_ROWS + s->row0,
               logits + g * SR_SKETCH_STRIDE + s->row0, (size_t)(s->row1 - s->row0) * sizeof(float));
}

/* ---- the bound from below ---- */

enum { WORTH_SEEING = SR_CHUNK_ROWS / 8 };

static float float_of(unsigned bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static unsigned bits_of(float x)
{
    unsigned bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

/* Below the log of what was seen by more than all rounding on the way. */
static float floor_of(const struct choose_unit *w, int32_t g)
{
    const float mass = float_of(atomic_load_explicit(&w->seen[g], memory_order_relaxed));
    const float seen = mass == 1.0f ? w->from[g] : w->from[g] + logf(mass);
    return seen - (0.01f + 1e-5f * fabsf(seen));
}

static void add_seen(struct choose_unit *w, int32_t g, float mass)
{
    unsigned old = atomic_load_explicit(&w->seen[g], memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&w->seen[g], &old, bits_of(float_of(old) + mass),
                                                  memory_order_relaxed, memory_order_relaxed)) {}
}

/* ---- a span ---- */

static void scan_span(const struct unit_job *j, int32_t span)
{
    const struct choose_span *s = &j->s->spans[span];
    struct choose_unit *w = &j->s->choose[s->unit];
    struct attn_touched *touched = &j->s->span_touched[span];
    const int32_t group = j->a->shape->group;
    float floor[SR_ATTN_MAX_GROUP];
    for (int32_t g = 0; g < group; g++) floor[g] = floor_of(w, g);
    *touched = (struct attn_touched){0};
    const int is_usual = sr_span_scan(j, span, floor, sr_bins_upper(w->cut), touched);
    if (j->a->logits && j->a->logits[s->unit]) copy_logits(j, s);
    if (s->n_kept < WORTH_SEEING || !is_usual) return; /* the bound does already, and logarithms are not free */
    for (int32_t g = 0; g < group; g++) add_seen(w, g, j->s->span_sum[(size_t)span * SR_ATTN_MAX_GROUP + (size_t)g]);
}

/* ---- a unit ---- */

/* Of each head: log of the total, share of all far rows, log share of the largest of them. */
struct totals { float log[SR_ATTN_MAX_GROUP], top[SR_ATTN_MAX_GROUP]; double far_share[SR_ATTN_MAX_GROUP]; };

/* Returns 0 if some head's total is not a finite number: then nothing is known of any row. */
static int sum_totals(const struct unit_job *j, int32_t u, struct totals *t)
{
    const struct choose_unit *w = &j->s->choose[u];
    const int32_t group = j->a->shape->group;
    for (int32_t g = 0; g < group; g++) {
        const float near_m = j->a->near_state.m[u * group + g], near_l = j->a->near_state.l[u * group + g];
        double top = -INFINITY, far = 0;
        for (int32_t i = w->first; i < w->first + w->n; i++) {
            const double m = j->s->span_max[(size_t)i * SR_ATTN_MAX_GROUP + (size_t)g];
            top = m > top ? m : top;
        }
        const double max = near_l > 0 && near_m > top ? near_m : top;
        const double near = near_l == 0 ? 0 : near_l * exp(near_m - max);
        for (int32_t i = w->first; i < w->first + w->n; i++) {
            const size_t at = (size_t)i * SR_ATTN_MAX_GROUP + (size_t)g;
            if (j->s->span_sum[at] != 0) far += j->s->span_sum[at] * exp(j->s->span_from[at] - max);
        }
        const double total = max + log(near + far);
        if (!isfinite(total)) return 0;
        t->log[g] = (float)total;
        t->top[g] = (float)(top - total);
        t->far_share[g] = far / (near + far);
    }
    return 1;
}

static void report(const struct unit_job *j, int32_t u, const struct totals *t, const double *unread)
{
    const int32_t group = j->a->shape->group;
    for (int32_t g = 0; g < group; g++) {
        j->a->unread[u * group + g] = unread && unread[g] > 0 ? (float)unread[g] : 0.0f;
        if (j->a->far_share) j->a->far_share[u * group + g] = t ? (float)t->far_share[g] : 1.0f;
    }
}

/* Everything far that was not read: there is nothing for a second look. */
static void choose_all(const struct unit_job *j, int32_t u, const struct totals *t)
{
    const int32_t end = j->a->n_sinks + j->s->choose[u].n_far, n_found = j->a->found ? j->a->n_found[u] : 0;
    int32_t n = 0;
    for (int32_t row = j->a->n_sinks, f = 0; row < end; row++) {
        if (f < n_found && j->a->found[u][f] == row) f++;
        else j->a->list[u][n++] = row;
    }
    j->a->n_list[u] = n;
    report(j, u, t, NULL);
}

static int within(const double *share, int32_t group, float eps)
{
    for (int32_t g = 0; g < group; g++)
        if (!(share[g] <= eps)) return 0;
    return 1;
}

/* Log share from which on a row is read in any case. */
static float sure_of(float eps)
{
    return logf(eps / (float)SR_SKETCH_SURE);
}

static int has_sure(const struct totals *t, int32_t group, float eps)
{
    const float sure = sure_of(eps);
    for (int32_t g = 0; g < group; g++)
        if (t->top[g] >= sure) return 1;
    return 0;
}

/* The least number of whole bins that has the rows read in any case and brings every head within eps, or all; takes
 * what they hold off `unread`. */
static int32_t bins_needed(const struct unit_job *j, double *unread)
{
    const float eps = j->a->eps[j->unit], sure = sure_of(eps) * SR_SKETCH_BINS / j->s->choose[j->unit].cut;
    const int32_t least = sure < SR_SKETCH_BINS - 1 ? (int32_t)sure + 1 : SR_SKETCH_BINS;
    int32_t end = sr_bins_take_first(j, least, unread);
    for (; end < SR_SKETCH_BINS && (end < least || !within(unread, j->a->shape->group, eps)); end++) sr_bins_take(j, end, unread);
    return end;
}

/* The listed rows that some head gives much. */
static void name_top(const struct unit_job *j, const struct totals *t)
{
    const float weighty = logf(SR_SKETCH_WEIGHTY);
    const int32_t bins = (int32_t)(weighty * SR_SKETCH_BINS / j->s->choose[j->unit].cut), end = j->s->choose[j->unit].end;
    for (int32_t g = 0; g < j->a->shape->group; g++) {
        if (t->top[g] < weighty) continue;
        j->a->n_top[j->unit] = sr_bins_top(j, bins < end ? bins : end, j->a->top + (size_t)j->unit * SR_SKETCH_TOP, SR_SKETCH_TOP);
        return;
    }
}

static void choose_unit_rows(const struct unit_job *j)
{
    const int32_t u = j->unit;
    const float eps = j->a->eps[u];
    const int32_t group = j->a->shape->group;
    struct choose_unit *w = &j->s->choose[u];
    struct totals t;
    double unread[SR_ATTN_MAX_GROUP];
    if (!sum_totals(j, u, &t)) {
        choose_all(j, u, NULL);
        return;
    }
    if (eps <= 0) {
        choose_all(j, u, &t);
        return;
    }
    memcpy(unread, t.far_share, sizeof(unread));
    memcpy(w->log_total, t.log, (size_t)group * sizeof(*t.log));
    j->a->n_list[u] = 0;
    if (eps < 1 && (has_sure(&t, group, eps) || !within(unread, group, eps))) {
        sr_bins_fill(j);
        w->end = bins_needed(j, unread);
        j->a->n_list[u] = sr_bins_list(j, 0, w->end, j->a->list[u]);
        if (j->a->top) name_top(j, &t);
    }
    memcpy(w->far_share, t.far_share, sizeof(unread));
    memcpy(w->unread, unread, sizeof(unread));
    report(j, u, &t, unread);
}

static void choose_task(void *ctx, int32_t task, int32_t thread)
{
    const struct choose_job *j = ctx;
    const int32_t u = j->s->spans[task].unit;
    const struct unit_job unit = {j->a, j->c, j->s, u, thread};
    struct choose_unit *w = &j->s->choose[u];
    want_query(j, u);
    scan_span(&unit, task);
    if (atomic_fetch_sub_explicit(&w->left, 1, memory_order_acq_rel) != 1) return;
    choose_unit_rows(&unit);
    for (int32_t i = w->first; i < w->first + w->n; i++) {
        j->a->touched[u].y_rows += j->s->span_touched[i].y_rows;
        j->a->touched[u].y_bytes += j->s->span_touched[i].y_bytes;
    }
}

/* ---- the op ---- */

/* Rows are kept from the log share `cut` on; above every share if the answer does not depend on them. */
static float cut_of(float eps, int32_t n_far)
{
    if (!(eps > 0) || eps >= 1) return INFINITY;
    const float cut = logf(eps / (float)n_far);
    return cut < -1e-3f ? cut : -1e-3f;
}

/* Log share of the near part from which on a row opens its run; above every share if the answer does not depend on it. */
static float open_of(float eps, int32_t n_far)
{
    if (!(eps > 0) || eps >= 1) return INFINITY;
    const float few = (float)SR_SKETCH_OPEN / (float)n_far, sure = 1.0f / (float)SR_SKETCH_SURE;
    return logf(eps * (few < sure ? few : sure));
}

static void plan_unit(const struct choose_job *j, int32_t u, int32_t *n_spans)
{
    const struct sketch_choose_args *a = j->a;
    const int32_t end = a->units[u].kv_len - a->window, n_far = end - a->n_sinks, group = a->shape->group;
    struct choose_unit *w = &j->s->choose[u];
    w->n_far = n_far;
    w->first = *n_spans;
    for (int32_t row = a->n_sinks; row < end;) {
        const int32_t chunk = row / SR_CHUNK_ROWS, base = chunk * SR_CHUNK_ROWS;
        const int32_t stop = end < base + SR_CHUNK_ROWS ? end : base + SR_CHUNK_ROWS;
        assert(*n_spans < j->s->max_spans);
        j->s->spans[(*n_spans)++] = (struct choose_span){u, chunk, row - base, stop - base, 0};
        row = stop;
    }
    w->n = *n_spans - w->first;
    w->cut = cut_of(a->eps[u], n_far > 0 ? n_far : 1);
    w->end = SR_SKETCH_BINS;
    if (a->top) a->n_top[u] = 0;
    const float open = open_of(a->eps[u], n_far > 0 ? n_far : 1);
    for (int32_t g = 0; g < group; g++) {
        const float l = a->near_state.l[u * group + g];
        w->has_near[g] = l != 0;
        w->from[g] = l == 0 ? -INFINITY : a->near_state.m[u * group + g] + logf(l);
        atomic_store_explicit(&w->seen[g], bits_of(l == 0 ? 0.0f : 1.0f), memory_order_relaxed);
        w->open[g] = open == INFINITY ? INFINITY : w->from[g] + open;
    }
    atomic_store_explicit(&w->left, w->n, memory_order_relaxed);
    atomic_store_explicit(&w->query, QUERY_TODO, memory_order_relaxed);
    if (w->n > 0) return;
    const struct totals nothing = {{0}, {0}, {0}};
    a->n_list[u] = 0;
    report(&(struct unit_job){a, j->c, j->s, u, 0}, u, &nothing, NULL);
}

void sr_cpu_sketch_choose(struct backend *b, const struct sketch_choose_args *a)
{
    struct backend_cpu *c = sr_cpu_of(b);
    struct choose_job job = {a, c, c->attn};
    int32_t n_spans = 0;
    assert(c->attn && a->n_units <= c->attn->limits.n_units && a->shape->group <= c->attn->limits.group &&
           a->shape->head_dim <= c->attn->limits.head_dim);
    for (int32_t u = 0; u < a->n_units; u++)
        if (a->mask[u]) plan_unit(&job, u, &n_spans);
    c->attn->n_spans = n_spans;
    sr_pool_run(c->pool, n_spans, choose_task, &job);
}
