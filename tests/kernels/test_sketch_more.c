/* SPDX-License-Identifier: Apache-2.0
 *
 * The second look: a choice with rows that were read before, exact masses made up for what it read, and what
 * sketch_more lists then, against sums in double over the estimates that the choice gave out, those rows left out.
 */
#include "ops_units.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_SINKS = 4, WINDOW = 64, GROUP = 3, DIM = 64, RANK = 16, N_FOUND = 6, LEN = 3000, HEADS = SR_OPS_UNITS * GROUP };

struct call {
    struct ops_units u;
    struct sketch_shape sketch;
    float mu[DIM], basis[DIM * DIM], step[RANK], lambda[DIM];
    struct sketch_basis bases[SR_OPS_UNITS];
    uint8_t mask[SR_OPS_UNITS], look[SR_OPS_UNITS];
    float eps[SR_OPS_UNITS], near_m[HEADS], near_l[HEADS], read_m[HEADS], read_l[HEADS], unread[HEADS], first[HEADS], far_share[HEADS];
    int32_t n_list[SR_OPS_UNITS], n_more[SR_OPS_UNITS], n_found[SR_OPS_UNITS], row0[SR_OPS_UNITS], row1[SR_OPS_UNITS];
    int32_t list_of[SR_OPS_UNITS][LEN + 1], found_of[SR_OPS_UNITS][N_FOUND], *list[SR_OPS_UNITS], *more[SR_OPS_UNITS];
    const int32_t *found[SR_OPS_UNITS];
    float *logits[SR_OPS_UNITS], logits_of[SR_OPS_UNITS][LEN * GROUP];
    struct attn_touched touched[SR_OPS_UNITS];
    int64_t clipped[SR_OPS_UNITS];
    struct sketch_choose_args choice;
    int32_t top[SR_OPS_UNITS * SR_SKETCH_TOP], n_top[SR_OPS_UNITS];
};

static void fill(struct call *k, struct check *c, const int32_t *kv_len)
{
    const struct attn_shape shape = sr_check_shape(DIM, GROUP, SR_DTYPE_F16, SR_DTYPE_F16);
    k->sketch = (struct sketch_shape){RANK, 4, sr_sketch_host_row_bytes(RANK, 4)};
    sr_ops_units_init(&k->u, c, &shape, kv_len, SR_OPS_UNITS, k->sketch.row_bytes);
    for (int32_t i = 0; i < k->u.n * GROUP * DIM; i++) k->u.q[i] *= 1.5f; /* logits of some weight */
    for (int32_t i = 0; i < DIM; i++) {
        k->basis[i * DIM + i] = k->lambda[i] = 1;
        if (i < RANK) k->step[i] = 0.5f;
    }
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
        const int32_t n_far = kv_len[u] - WINDOW - N_SINKS;
        k->bases[u] = (struct sketch_basis){k->mu, k->basis, k->basis, k->step, k->lambda};
        k->mask[u] = k->look[u] = 1;
        k->eps[u] = u == 1 ? 0.02f : 0.1f;
        k->row1[u] = kv_len[u];
        k->list[u] = k->list_of[u];
        k->logits[u] = k->logits_of[u];
        k->found[u] = k->found_of[u];
        for (int32_t f = 0; f < N_FOUND && n_far > 0 && u != 2; f++) /* the third unit has none */
            k->found_of[u][k->n_found[u]++] = N_SINKS + n_far * f / N_FOUND + (int32_t)sr_check_pick(c, (uint32_t)(n_far / N_FOUND));
    }
    for (int32_t h = 0; h < HEADS; h++) {
        k->near_m[h] = (float)(4 + 2 * sr_check_normal(c));
        k->near_l[h] = (float)(1 + 50 * sr_rng_unit(&c->rng));
    }
}

static void choose(struct backend *b, struct call *k)
{
    if (b->ops->attn_reserve(b, &k->u.shape, k->u.n, LEN, NULL) != SR_OK) abort();
    b->ops->sketch_encode(b, &(struct sketch_encode_args){.shape = &k->u.shape, .sketch = &k->sketch, .units = k->u.unit, .basis = k->bases,
                                                          .row0 = k->row0, .row1 = k->row1, .n_units = k->u.n, .clipped = k->clipped});
    k->choice = (struct sketch_choose_args){
        .shape = &k->u.shape, .sketch = &k->sketch, .units = k->u.unit, .basis = k->bases, .mask = k->mask, .n_units = k->u.n,
        .n_sinks = N_SINKS, .window = WINDOW, .eps = k->eps, .near_state = {NULL, k->near_m, k->near_l}, .list = k->list,
        .n_list = k->n_list, .unread = k->unread, .far_share = k->far_share, .logits = k->logits, .touched = k->touched,
        .found = k->found, .n_found = k->n_found, .top = k->top, .n_top = k->n_top};
    b->ops->sketch_choose(b, &k->choice);
    memcpy(k->first, k->unread, sizeof(k->first));
}

static void look(struct backend *b, struct call *k)
{
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) k->more[u] = k->list[u] + k->n_list[u];
    memcpy(k->unread, k->first, sizeof(k->first));
    b->ops->sketch_more(b, &(struct sketch_more_args){.choice = &k->choice, .mask = k->look, .read = {NULL, k->read_m, k->read_l},
                                                      .more = k->more, .n_more = k->n_more});
}

/* ---- in double ------------------------------------------------------------------------------------------------------- */

/* Of a unit: estimated shares, what has been read, and of each head the sums of struct sketch_more_args. */
struct sums {
    int32_t n_far;
    double share[GROUP][LEN], score[LEN], near[GROUP], read[GROUP], unread[GROUP], total[GROUP];
    uint8_t is_found[LEN], is_read[LEN], is_more[LEN];
};

static void sum_unit(const struct call *k, int32_t u, struct sums *s)
{
    const int32_t kv_len = k->u.unit[u].kv_len, n_far = kv_len - WINDOW - N_SINKS;
    memset(s, 0, sizeof(*s));
    s->n_far = n_far;
    for (int32_t f = 0; f < k->n_found[u]; f++) s->is_found[k->found[u][f] - N_SINKS] = 1;
    for (int32_t g = 0; g < GROUP; g++) {
        const float *x = k->logits[u] + g * kv_len + N_SINKS;
        const double near = (double)k->near_l[u * GROUP + g] * exp((double)k->near_m[u * GROUP + g]);
        s->total[g] = near;
        for (int32_t i = 0; i < n_far; i++) s->total[g] += s->is_found[i] ? 0 : exp((double)x[i]);
        s->near[g] = near / s->total[g];
        for (int32_t i = 0; i < n_far; i++)
            s->score[i] = fmax(s->score[i], s->share[g][i] = s->is_found[i] ? 0 : exp((double)x[i]) / s->total[g]);
    }
    for (int32_t i = 0; i < k->n_list[u]; i++) s->is_read[k->list[u][i] - N_SINKS] = 1;
    for (int32_t g = 0; g < GROUP; g++)
        for (int32_t i = 0; i < n_far; i++) *(s->is_read[i] ? &s->read[g] : &s->unread[g]) += s->share[g][i];
}

/* Rows found are not listed, and neither their shares nor the total's part of them is there. */
static void compare_found(struct check *c, const struct call *k, int32_t u, const struct sums *s)
{
    for (int32_t f = 0; f < k->n_found[u]; f++)
        if (s->is_read[k->found[u][f] - N_SINKS]) sr_check_fail(c, "unit %d: row %d was found and is listed", u, k->found[u][f]);
    for (int32_t g = 0; g < GROUP; g++) {
        sr_check_near(c, "unread", g, k->first[u * GROUP + g], s->unread[g], (s->n_far + 200) * SR_CHECK_U);
        if (s->unread[g] > (double)k->eps[u] * 1.00001) sr_check_fail(c, "unit %d head %d: %g unread", u, g, s->unread[g]);
    }
}

/* The listed rows that some head gives much, but for those within a bin of that. */
static void compare_top(struct check *c, const struct call *k, int32_t u, const struct sums *s)
{
    const double bin = exp(1.01 * -log((double)k->eps[u] / s->n_far) / SR_SKETCH_BINS), weighty = (double)SR_SKETCH_WEIGHTY;
    const int32_t *top = k->top + u * SR_SKETCH_TOP;
    uint8_t is_top[LEN] = {0};
    if (k->n_top[u] < 0 || k->n_top[u] > SR_SKETCH_TOP) sr_check_fail(c, "unit %d: %d rows are weighty", u, k->n_top[u]);
    for (int32_t i = 0; i < k->n_top[u]; i++) {
        if (i && top[i] <= top[i - 1]) sr_check_fail(c, "unit %d: weighty row %d after %d", u, top[i], top[i - 1]);
        is_top[top[i] - N_SINKS] = 1;
    }
    for (int32_t i = 0; i < s->n_far; i++) {
        if (is_top[i] && (!s->is_read[i] || s->score[i] < weighty / bin)) sr_check_fail(c, "unit %d: row %d of share %g is weighty", u, i + N_SINKS, s->score[i]);
        if (!is_top[i] && s->score[i] > weighty * bin && k->n_top[u] < SR_SKETCH_TOP)
            sr_check_fail(c, "unit %d: row %d of share %g is not weighty", u, i + N_SINKS, s->score[i]);
    }
}

/* What a head's unread rows are worth by what its read ones were: r over the corrected total. */
static double scale_of(const struct call *k, int32_t u, int32_t g, const struct sums *s)
{
    const double all = (double)k->read_l[u * GROUP + g] * exp((double)k->read_m[u * GROUP + g]) / s->total[g];
    const double exact = fmax(all - s->near[g], 0), r = fmax(1, (exact + s->unread[g]) / (s->read[g] + s->unread[g]));
    return r / (s->near[g] + exact + r * s->unread[g]);
}

static void mark_more(struct check *c, const struct call *k, int32_t u, struct sums *s)
{
    for (int32_t i = 0, last = -1; i < k->n_more[u]; i++) {
        const int32_t row = k->more[u][i] - N_SINKS;
        if (row < 0 || row >= s->n_far || row <= last || s->is_read[row] || s->is_found[row]) {
            sr_check_fail(c, "unit %d: entry %d is row %d", u, i, k->more[u][i]);
            return;
        }
        s->is_more[last = row] = 1;
    }
}

/* Returns whether the unit needed more. */
static int compare_more(struct check *c, const struct call *k, int32_t u, struct sums *s)
{
    const double eps = (double)k->eps[u], cut = eps / s->n_far, bin = -log(cut) / SR_SKETCH_BINS;
    double scale[GROUP], after[GROUP], least = 1, most = 0; /* scores of the rows added and of those left */
    int needs = 0, was_needed = 0, is_above = 0;
    mark_more(c, k, u, s);
    for (int32_t i = 0; i < s->n_far; i++) {
        if (s->is_more[i]) least = fmin(least, s->score[i]);
        else if (!s->is_read[i]) most = fmax(most, s->score[i]);
    }
    for (int32_t g = 0; g < GROUP; g++) {
        const double tol = (s->n_far + 400) * SR_CHECK_U;
        double last = 0;
        scale[g] = scale_of(k, u, g, s);
        after[g] = s->unread[g];
        for (int32_t i = 0; i < s->n_far; i++) {
            if (s->is_more[i]) after[g] -= s->share[g][i];
            if (s->is_more[i] && log(s->score[i]) < log(least) + 1.01 * bin) last += s->share[g][i];
        }
        needs |= scale[g] * s->unread[g] > eps * (1 + 1e-4);
        is_above |= scale[g] * after[g] > eps + tol * scale[g];
        was_needed |= scale[g] * (after[g] + last) > eps - tol * scale[g];
        sr_check_near(c, "unread", g, k->unread[u * GROUP + g], scale[g] * after[g], tol * scale[g]);
    }
    if (is_above && most > cut * 1.001) sr_check_fail(c, "unit %d: more than eps is left unread", u);
    if (k->n_more[u] && !was_needed) sr_check_fail(c, "unit %d: the last bin was not needed", u);
    if (k->n_more[u] && log(most) > log(least) + 1.01 * bin) sr_check_fail(c, "unit %d: a row of share %g is left out, one of %g added", u, most, least);
    if (needs && !k->n_more[u] && most > cut * 1.001) sr_check_fail(c, "unit %d: nothing was added", u);
    return needs;
}

/* The exact mass of what was read is `times` its estimate. */
static void make_read(struct call *k, int32_t u, int32_t g, const struct sums *s, double times)
{
    const double all = s->near[g] + times * s->read[g];
    k->read_m[u * GROUP + g] = (float)log(s->total[g]) - 1;
    k->read_l[u * GROUP + g] = (float)(all * s->total[g] / exp((double)k->read_m[u * GROUP + g]));
}

/* ---- tests ----------------------------------------------------------------------------------------------------------- */

static void test_more(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {LEN, 1100, 2048 + 64, 1500};
    static const double times[] = {1, .3, 1.5, 2.5, 6};
    struct call *k = calloc(1, sizeof(*k));
    struct sums *s = malloc(SR_OPS_UNITS * sizeof(*s)), *t = malloc(sizeof(*t));
    struct backend *b = sr_ops_backend(isa, 2);
    int32_t n_needed = 0, n_not = 0, n_top = 0;
    fill(k, c, kv_len);
    for (int i = 0; i < 5; i++) {
        choose(b, k); /* a look goes on from where the one before left off: once a choice */
        for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
            sum_unit(k, u, &s[u]);
            compare_found(c, k, u, &s[u]);
            compare_top(c, k, u, &s[u]);
            n_top += k->n_top[u];
            for (int32_t g = 0; g < GROUP; g++) make_read(k, u, g, &s[u], g == 1 ? 1 : times[i]);
        }
        look(b, k);
        for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
            *t = s[u];
            if (compare_more(c, k, u, t)) n_needed++;
            else n_not++;
            if (i == 0 && k->n_more[u]) sr_check_fail(c, "unit %d: %d rows added where the estimate was right", u, k->n_more[u]);
        }
    }
    if (n_top < 4) sr_check_fail(c, "%d rows are weighty", n_top);
    if (n_needed < 4 || n_not < 8) sr_check_fail(c, "%d units needed more, %d not", n_needed, n_not);
    sr_backend_close(b);
    sr_ops_units_fini(&k->u);
    free(k);
    free(s);
    free(t);
}

/* Most of the mass is near, so that the first scan keeps no rows but those of its upper part, 1.5 nats above the cut; then the rows
 * read weigh 30 times their estimate, and rows are needed that only another scan has. */
static void test_again(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {LEN, 1100, 2048 + 64, 1500};
    struct call *k = calloc(1, sizeof(*k));
    struct sums *s = malloc(sizeof(*s));
    struct backend *b = sr_ops_backend(isa, 2);
    int32_t n_deep = 0;
    fill(k, c, kv_len);
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) k->eps[u] = 0.02f;
    choose(b, k);
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
        sum_unit(k, u, s);
        for (int32_t g = 0; g < GROUP; g++) k->near_l[u * GROUP + g] *= (float)(0.85 / 0.15 * (1 - s->near[g]) / s->near[g]);
    }
    choose(b, k);
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
        sum_unit(k, u, s);
        for (int32_t g = 0; g < GROUP; g++) make_read(k, u, g, s, 30);
    }
    look(b, k);
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
        sum_unit(k, u, s);
        if (!compare_more(c, k, u, s)) sr_check_fail(c, "unit %d needed nothing", u);
        int is_deep = 0;
        for (int32_t i = 0; i < s->n_far; i++) is_deep |= s->is_more[i] && s->score[i] < exp(1.2) * (double)k->eps[u] / s->n_far;
        n_deep += is_deep;
    }
    if (n_deep < 3) sr_check_fail(c, "%d units were scanned again", n_deep);
    sr_backend_close(b);
    sr_ops_units_fini(&k->u);
    free(k);
    free(s);
}

/* A mask, nothing far, and numbers that are none: nothing is added. */
static void test_edges(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {1500, 60, 1500, 1500};
    struct call *k = calloc(1, sizeof(*k));
    struct sums *s = malloc(sizeof(*s));
    struct backend *b = sr_ops_backend(isa, 1);
    fill(k, c, kv_len);
    k->u.q[2 * GROUP * DIM + 5] = NAN; /* the third unit reads all */
    choose(b, k);
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
        sum_unit(k, u, s);
        for (int32_t g = 0; g < GROUP; g++) make_read(k, u, g, s, u == 3 ? (double)NAN : 0.3);
    }
    k->look[0] = 0;
    look(b, k);
    for (int32_t u = 0; u < SR_OPS_UNITS; u++)
        if (k->n_more[u]) sr_check_fail(c, "unit %d: %d rows added", u, k->n_more[u]);
    sr_check_same(c, "unread of a masked unit", k->unread, k->first, GROUP * sizeof(float));
    k->look[0] = 1;
    look(b, k);
    if (!k->n_more[0]) sr_check_fail(c, "nothing was added without the mask");
    k->eps[0] = 0; /* all that was not read before */
    choose(b, k);
    sum_unit(k, 0, s);
    compare_found(c, k, 0, s);
    if (k->n_list[0] != s->n_far - k->n_found[0]) sr_check_fail(c, "%d of %d rows listed, %d found", k->n_list[0], s->n_far, k->n_found[0]);
    sr_backend_close(b);
    sr_ops_units_fini(&k->u);
    free(k);
    free(s);
}

static void test_same_bits(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {LEN, 1100, 2048 + 64, 1500};
    struct call *k = calloc(1, sizeof(*k)), *first = malloc(sizeof(*first));
    struct sums *s = malloc(sizeof(*s));
    fill(k, c, kv_len);
    for (int threads = 1; threads <= 3; threads++) {
        struct backend *b = sr_ops_backend(isa, threads);
        choose(b, k);
        for (int32_t u = 0; u < SR_OPS_UNITS && threads == 1; u++) {
            sum_unit(k, u, s);
            for (int32_t g = 0; g < GROUP; g++) make_read(k, u, g, s, 3);
        }
        look(b, k);
        if (threads == 1) memcpy(first, k, sizeof(*k));
        for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
            if (k->n_list[u] != first->n_list[u] || k->n_more[u] != first->n_more[u]) sr_check_fail(c, "unit %d: other numbers of rows", u);
            else sr_check_same(c, "rows", k->list_of[u], first->list_of[u], (size_t)(k->n_list[u] + k->n_more[u]) * sizeof(int32_t));
        }
        sr_check_same(c, "unread", k->unread, first->unread, sizeof(k->unread));
        sr_backend_close(b);
    }
    sr_ops_units_fini(&k->u);
    free(first);
    free(k);
    free(s);
}

int main(int argc, char **argv)
{
    static const struct ops_test tests[] = {
        {"sketch_more against double", test_more}, {"sketch_more scans again", test_again}, {"sketch_more edges", test_edges},
        {"sketch_more same bits", test_same_bits}};
    return sr_ops_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
}
