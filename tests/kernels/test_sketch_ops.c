/* SPDX-License-Identifier: Apache-2.0
 *
 * sketch_encode and sketch_choose as a whole: the estimate against the formula in double, the choice against its
 * contract, its minimality up to one bin, and the cases without a choice.
 */
#include "ops_units.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_SINKS = 4, WINDOW = 64, MAX_GROUP = 5 };

/* The basis U of a reflection, so that analysis and synthesis are its rows and everything is known exactly. */
struct test_basis { struct sketch_basis b; float mu[SR_ATTN_MAX_DIM], u[SR_ATTN_MAX_DIM * SR_ATTN_MAX_DIM], step[SR_ATTN_MAX_DIM], lambda[SR_ATTN_MAX_DIM]; };

static void basis_init(struct check *c, struct test_basis *t, int32_t d, const struct sketch_shape *sketch)
{
    double v[SR_ATTN_MAX_DIM], norm = 0;
    for (int32_t i = 0; i < d; i++) {
        v[i] = sr_check_normal(c);
        norm += v[i] * v[i];
    }
    for (int32_t i = 0; i < d; i++)
        for (int32_t j = 0; j < d; j++) t->u[i * d + j] = (float)((i == j) - 2 * v[i] * v[j] / norm);
    sr_check_fill_normal(c, t->mu, d, 0.5);
    for (int32_t i = 0; i < d; i++) {
        t->lambda[i] = 1.25f / (float)(1 + i / 8);
        t->step[i] = 9 * sqrtf(t->lambda[i]) / (float)(1 << sr_sketch_code_bits(sketch, i));
    }
    t->b = (struct sketch_basis){t->mu, t->u, t->u, t->step, t->lambda};
}

struct choose_call {
    struct ops_units u;
    struct sketch_shape sketch;
    struct test_basis basis[SR_OPS_UNITS];
    struct sketch_basis bases[SR_OPS_UNITS];
    uint8_t mask[SR_OPS_UNITS];
    float eps[SR_OPS_UNITS], near_m[SR_OPS_UNITS * MAX_GROUP], near_l[SR_OPS_UNITS * MAX_GROUP];
    float unread[SR_OPS_UNITS * MAX_GROUP], far_share[SR_OPS_UNITS * MAX_GROUP];
    int32_t *list[SR_OPS_UNITS], n_list[SR_OPS_UNITS], row0[SR_OPS_UNITS], row1[SR_OPS_UNITS];
    float *logits[SR_OPS_UNITS];
    struct attn_touched touched[SR_OPS_UNITS];
    int64_t clipped[SR_OPS_UNITS];
};

static void call_init(struct choose_call *k, struct check *c, int32_t d, int32_t group, int32_t bits, const int32_t *kv_len)
{
    const struct attn_shape shape = sr_check_shape(d, group, SR_DTYPE_F16, SR_DTYPE_F16);
    const int32_t rank = bits == SR_SKETCH_MIXED ? 44 : d / 4 + 4;
    k->sketch = (struct sketch_shape){rank, bits, sr_sketch_host_row_bytes(rank, bits)};
    sr_ops_units_init(&k->u, c, &shape, kv_len, SR_OPS_UNITS, k->sketch.row_bytes);
    for (int32_t i = 0; i < k->u.n * shape.group * d; i++) k->u.q[i] *= 1.5f; /* logits of some weight */
    for (int32_t i = 0; i < SR_OPS_UNITS; i++) {
        basis_init(c, &k->basis[i], d, &k->sketch);
        k->bases[i] = k->basis[i].b;
        k->mask[i] = 1;
        k->eps[i] = 0.1f;
        k->list[i] = malloc((size_t)(kv_len[i] + 1) * sizeof(int32_t));
        k->logits[i] = malloc((size_t)(kv_len[i] * group + 1) * sizeof(float));
        k->row0[i] = 0;
        k->row1[i] = kv_len[i];
        k->clipped[i] = 0;
    }
    for (int32_t h = 0; h < SR_OPS_UNITS * group; h++) {
        k->near_m[h] = (float)(4 + 2 * sr_check_normal(c));
        k->near_l[h] = (float)(1 + 50 * sr_rng_unit(&c->rng));
    }
}

static void call_fini(struct choose_call *k)
{
    for (int32_t i = 0; i < SR_OPS_UNITS; i++) {
        free(k->list[i]);
        free(k->logits[i]);
    }
    sr_ops_units_fini(&k->u);
}

static void encode(struct backend *b, struct choose_call *k)
{
    b->ops->sketch_encode(b, &(struct sketch_encode_args){.shape = &k->u.shape, .sketch = &k->sketch, .units = k->u.unit,
                                                          .basis = k->bases, .row0 = k->row0, .row1 = k->row1, .n_units = k->u.n,
                                                          .clipped = k->clipped, .touched = k->touched});
}

static void choose(struct backend *b, struct choose_call *k)
{
    int32_t longest = 1;
    for (int32_t i = 0; i < k->u.n; i++) longest = k->u.unit[i].kv_len > longest ? k->u.unit[i].kv_len : longest;
    if (b->ops->attn_reserve(b, &k->u.shape, k->u.n, longest, NULL) != SR_OK) abort();
    memset(k->touched, 0, sizeof(k->touched));
    b->ops->sketch_choose(b, &(struct sketch_choose_args){
        .shape = &k->u.shape, .sketch = &k->sketch, .units = k->u.unit, .basis = k->bases, .mask = k->mask, .n_units = k->u.n,
        .n_sinks = N_SINKS, .window = WINDOW, .eps = k->eps, .near_state = {NULL, k->near_m, k->near_l}, .list = k->list,
        .n_list = k->n_list, .unread = k->unread, .far_share = k->far_share, .logits = k->logits, .touched = k->touched});
}

/* ---- against double -------------------------------------------------------------------------------------------------- */

/* Of one pair of words of mixed codes: 8 of 3 bits, 8 of 2 and 24 of 1. */
static uint32_t mixed_at(const uint8_t *words, int32_t rest)
{
    uint32_t two, one;
    memcpy(&two, words, 4);
    memcpy(&one, words + SR_SKETCH_RUN * 4, 4);
    return rest < 8 ? (two >> 2 * rest & 3) * 2 + (one >> rest & 1) : rest < 16 ? two >> 2 * rest & 3 : one >> (rest - 8) & 1;
}

static double level_at(const struct choose_call *k, int32_t unit, int32_t row, int32_t j)
{
    const int32_t per_word = 32 / k->sketch.bits, rest = j - SR_SKETCH_FIRST, in = row % SR_CHUNK_ROWS, mixed = k->sketch.bits == SR_SKETCH_MIXED;
    const int32_t bits = !mixed ? k->sketch.bits : rest < 0 ? 4 : rest < 8 ? 3 : rest < 16 ? 2 : 1;
    const uint8_t *y = k->u.y[unit][row / SR_CHUNK_ROWS];
    uint32_t word;
    if (rest < 0) word = (uint32_t)y[sr_sketch_first_at(k->sketch.bits, in) + (size_t)j] >> sr_sketch_first_shift(k->sketch.bits, in);
    else if (mixed) word = mixed_at(y + sr_sketch_word_at(&k->sketch, in, 0), rest);
    else memcpy(&word, y + sr_sketch_word_at(&k->sketch, in, rest / per_word), 4);
    const double code = word >> (rest < 0 || mixed ? 0 : rest % per_word * bits) & ((1u << bits) - 1u);
    return (code - (1 << (bits - 1)) + 0.5) * (double)k->basis[unit].step[j];
}

/* What docs/routing.md says that codes of few bits add to the variance, over step^2. */
static double rounding_at(const struct sketch_shape *s, int32_t j)
{
    const int32_t rest = j - SR_SKETCH_FIRST;
    return s->bits != SR_SKETCH_MIXED || rest < 0 ? 1.0 / 12 : rest < 8 ? 0.089 : rest < 16 ? 0.104 : 0.132;
}

/* The estimate of a head from the first `rank` coordinates, and its error; the integer kernel keeps each factor of the second
 * plane to a byte beside the largest, or to two. */
struct estimate { double z[SR_ATTN_MAX_DIM], base, size, most; int32_t unit, rank; };

static void estimate_init(struct estimate *e, const struct choose_call *k, int32_t unit, int32_t g, int32_t rank)
{
    const int32_t d = k->u.shape.head_dim;
    const struct test_basis *t = &k->basis[unit];
    const float *q = k->u.unit[unit].q + g * d;
    *e = (struct estimate){.unit = unit, .rank = rank};
    for (int32_t i = 0; i < d; i++) {
        for (int32_t j = 0; j < d; j++) e->z[i] += (double)t->u[i * d + j] * (double)q[j];
        e->base += (double)q[i] * (double)t->mu[i];
        e->base += e->z[i] * e->z[i] / 2 * (i < rank ? (double)t->step[i] * (double)t->step[i] * rounding_at(&k->sketch, i) : (double)t->lambda[i]);
        e->size += fabs((double)q[i]) * 4;
        if (i >= SR_SKETCH_FIRST && i < rank) e->most = fmax(e->most, fabs(e->z[i]) * (double)t->step[i]);
    }
}

static double estimate_at(const struct estimate *e, const struct check *c, const struct choose_call *k, int32_t row, double *tol)
{
    const struct test_basis *t = &k->basis[e->unit];
    double want = e->base, abs_sum = fabs(e->base) + e->size * e->size;
    for (int32_t j = 0; j < e->rank; j++) {
        want += e->z[j] * level_at(k, e->unit, row, j);
        abs_sum += fabs(e->z[j]) * (double)t->step[j] * (2 << (k->sketch.bits == 8 ? 8 : 4)) + e->size;
    }
    const int is_8 = k->sketch.bits == 8, is_mixed = k->sketch.bits == SR_SKETCH_MIXED;
    const double factor = (is_mixed ? 2 : 1) * e->most / (is_8 ? 32512 : 127) / 2, levels = is_8 ? 128 : is_mixed ? 4 : 8; /* of 3 bits the upper two have twice the factor */
    const int is_whole = c->isa == ISA_AVX2 ? !is_8 : c->isa >= ISA_VNNI && c->isa != ISA_NEON;
    const double integer = is_whole ? e->rank * levels * factor : 0;
    *tol = 2 * k->u.shape.head_dim * SR_CHECK_U * abs_sum + integer;
    return want;
}

/* Log share of a head's near part from which on a row opens its run. */
static double open_at(const struct choose_call *k, int32_t unit, int32_t g)
{
    const int32_t i = unit * k->u.shape.group + g, n_far = k->u.unit[unit].kv_len - WINDOW - N_SINKS;
    return (double)k->near_m[i] + log((double)k->near_l[i]) + log((double)k->eps[unit] * fmin((double)SR_SKETCH_OPEN / n_far, 1.0 / SR_SKETCH_SURE));
}

/* 1: the row's run is read whole, 0: by its first coordinates, -1: a logit is within its error of the threshold. */
static int is_open(const struct check *c, const struct choose_call *k, int32_t row, const struct estimate *first)
{
    const int32_t end = k->u.unit[first->unit].kv_len - WINDOW;
    int open = 0;
    for (int32_t i = row / SR_SKETCH_RUN * SR_SKETCH_RUN, last = i + SR_SKETCH_RUN; i < last; i++)
        for (int32_t g = 0; i >= N_SINKS && i < end && g < k->u.shape.group; g++) {
            double tol;
            const double x = estimate_at(&first[g], c, k, i, &tol) - open_at(k, first->unit, g);
            if (x > tol) return 1;
            if (x >= -tol) open = -1;
        }
    return open;
}

/* Rows with one estimate and with the other. */
static int n_by_first, n_by_all, n_twice;

static void compare_logits(struct check *c, const struct choose_call *k, int32_t unit)
{
    const int32_t group = k->u.shape.group, kv_len = k->u.unit[unit].kv_len, rank = k->sketch.rank;
    struct estimate *first = malloc((size_t)group * 2 * sizeof(*first)), *whole = first + group;
    for (int32_t g = 0; g < group; g++) {
        estimate_init(&first[g], k, unit, g, SR_SKETCH_FIRST);
        estimate_init(&whole[g], k, unit, g, rank);
    }
    int is_near = 1;
    for (int32_t row = N_SINKS; is_near && row < kv_len - WINDOW; row += 1 + row % 7) {
        const int open = is_open(c, k, row, first);
        n_by_first += open == 0;
        n_by_all += open == 1;
        for (int32_t g = 0; is_near && g < group; g++) {
            double tol, want = estimate_at(&first[g], c, k, row, &tol);
            const double got = k->logits[unit][g * kv_len + row];
            if (open == 1 || (open < 0 && fabs(got - want) > tol)) want = estimate_at(&whole[g], c, k, row, &tol);
            is_near = sr_check_near(c, "estimated logit", row, got, want, tol);
        }
    }
    free(first);
}

struct scored { double score; int32_t row; };

static int by_score(const void *a, const void *b)
{
    const double x = ((const struct scored *)a)->score, y = ((const struct scored *)b)->score;
    return (x < y) - (x > y);
}

/* Shares [group][n_far] and group scores from the op's own logits. */
static void shares_of(const struct choose_call *k, int32_t unit, int32_t n_far, double *share, struct scored *order)
{
    const int32_t group = k->u.shape.group, kv_len = k->u.unit[unit].kv_len;
    for (int32_t i = 0; i < n_far; i++) order[i] = (struct scored){0, N_SINKS + i};
    for (int32_t g = 0; g < group; g++) {
        const float *x = k->logits[unit] + g * kv_len + N_SINKS;
        double total = (double)k->near_l[unit * group + g] * exp((double)k->near_m[unit * group + g]);
        for (int32_t i = 0; i < n_far; i++) total += exp((double)x[i]);
        for (int32_t i = 0; i < n_far; i++) {
            share[g * n_far + i] = exp((double)x[i]) / total;
            order[i].score = fmax(order[i].score, share[g * n_far + i]);
        }
    }
    qsort(order, (size_t)n_far, sizeof(*order), by_score);
}

/* Number of rows of the shortest prefix that leaves every head within eps. */
static int32_t shortest(const struct scored *order, const double *share, int32_t n_far, int32_t group, double eps)
{
    double left[MAX_GROUP] = {0}, worst = 0;
    for (int32_t g = 0; g < group; g++) {
        for (int32_t i = 0; i < n_far; i++) left[g] += share[g * n_far + i];
        worst = fmax(worst, left[g]);
    }
    int32_t n = 0;
    for (; n < n_far && worst > eps; n++) {
        worst = 0;
        for (int32_t g = 0; g < group; g++) worst = fmax(worst, left[g] -= share[g * n_far + order[n].row - N_SINKS]);
    }
    return n;
}

static void compare_choice(struct check *c, const struct choose_call *k, int32_t unit)
{
    const int32_t group = k->u.shape.group, kv_len = k->u.unit[unit].kv_len, n_far = kv_len - WINDOW - N_SINKS;
    double *share = malloc((size_t)(group * n_far) * sizeof(*share)), eps = k->eps[unit];
    struct scored *order = malloc((size_t)n_far * sizeof(*order));
    uint8_t *chosen = calloc((size_t)kv_len, 1);
    shares_of(k, unit, n_far, share, order);
    for (int32_t i = 0; i < k->n_list[unit]; i++) {
        const int32_t row = k->list[unit][i];
        if (row < N_SINKS || row >= kv_len - WINDOW || (i > 0 && row <= k->list[unit][i - 1])) {
            sr_check_fail(c, "entry %d of the list is row %d", i, row);
            break;
        }
        chosen[row] = 1;
    }
    for (int32_t g = 0; g < group; g++) {
        double unread = 0, far = 0;
        for (int32_t i = 0; i < n_far; i++) {
            far += share[g * n_far + i];
            unread += chosen[N_SINKS + i] ? 0 : share[g * n_far + i];
        }
        const double tol = (n_far + 200) * SR_CHECK_U * far;
        if (unread > eps + tol) sr_check_fail(c, "unit %d head %d: %.6g unread, eps %g", unit, g, unread, eps);
        sr_check_near(c, "unread", g, k->unread[unit * group + g], unread, tol);
        sr_check_near(c, "far share", g, k->far_share[unit * group + g], far, tol);
    }
    const int32_t n = shortest(order, share, n_far, group, eps * (1 - 1e-5));
    const double bin = log((double)n_far / eps) / SR_SKETCH_BINS, last = n ? log(order[n - 1].score) : 1;
    const double sure = log(eps / fmin(n_far, SR_SKETCH_SURE)); /* read in any case from here on */
    for (int32_t i = 0; i < n_far; i++) {
        const double t = log(order[i].score);
        const int is = chosen[order[i].row];
        if (is && t < fmin(last, sure) - 1.01 * bin) sr_check_fail(c, "unit %d: row %d is below the last bin needed", unit, order[i].row);
        if (!is && t > sure + 1e-4) sr_check_fail(c, "unit %d: row %d of share %g is left out", unit, order[i].row, exp(t));
        if (!is && t > last + 1.01 * bin) sr_check_fail(c, "unit %d: row %d above the last bin is left out", unit, order[i].row);
    }
    if (k->touched[unit].y_rows != n_far) sr_check_fail(c, "counted %lld sketch rows, want %d", (long long)k->touched[unit].y_rows, n_far);
    /* where rows of little weight are needed all is read a second time */
    const int64_t bytes = k->touched[unit].y_bytes, least = n_far * (int64_t)sr_sketch_first_bytes(&k->sketch), most = n_far * (int64_t)k->sketch.row_bytes;
    if (bytes < least || bytes > 2 * most) sr_check_fail(c, "counted %lld bytes of the sketch", (long long)bytes);
    n_twice += bytes > most;
    free(share);
    free(order);
    free(chosen);
}

static void test_choose(struct check *c, enum cpu_isa isa)
{
    static const int32_t lens[][SR_OPS_UNITS] = {{5000, 1024, 1100, 69}, {2048 + 64, 1025, 70, 3000}};
    static const struct { int32_t d, group, bits; float eps; } cases[] = {{64, 3, 4, 0.1f}, {128, 4, 4, 0.01f}, {64, 1, 8, 0.3f}, {96, 5, 4, 1e-4f},
                                                                                   {64, 5, SR_SKETCH_MIXED, 0.1f}, {128, 3, SR_SKETCH_MIXED, 0.01f}};
    for (int i = 0; i < 6; i++) {
        struct choose_call *k = calloc(1, sizeof(*k));
        call_init(k, c, cases[i].d, cases[i].group, cases[i].bits, lens[i % 2]);
        for (int32_t u = 0; u < SR_OPS_UNITS; u++) k->eps[u] = cases[i].eps;
        struct backend *b = sr_ops_backend(isa, 1 + i % 3);
        encode(b, k);
        choose(b, k);
        for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
            compare_logits(c, k, u);
            compare_choice(c, k, u);
        }
        sr_backend_close(b);
        call_fini(k);
        free(k);
    }
    if (n_twice == 0) sr_check_fail(c, "no unit was scanned twice: no test");
    if (n_by_first < 100 || n_by_all < 100) sr_check_fail(c, "%d rows by their first coordinates, %d by all: no test", n_by_first, n_by_all);
}

/* The same lists and the same bits with any number of threads, and with K rows encoded one by one. */
static void test_same_bits(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {5000, 1500, 1030, 80};
    struct choose_call *k = calloc(1, sizeof(*k));
    call_init(k, c, 64, 3, 4, kv_len);
    int32_t *first = calloc(5000, sizeof(*first)), n_first = 0;
    float unread[SR_OPS_UNITS * 3];
    uint8_t *codes = malloc(k->u.y_bytes);
    for (int threads = 1; threads <= 3; threads++) {
        struct backend *b = sr_ops_backend(isa, threads);
        encode(b, k);
        choose(b, k);
        if (threads == 1) {
            n_first = k->n_list[0];
            memcpy(first, k->list[0], (size_t)n_first * sizeof(*first));
            memcpy(unread, k->unread, sizeof(unread));
            memcpy(codes, k->u.y[1][1], k->u.y_bytes);
        }
        for (int again = 0; again < 2 * threads; again++) { /* threads take chunks in another order each time */
            if (again) choose(b, k);
            if (k->n_list[0] != n_first) sr_check_fail(c, "%d rows, %d with one thread", k->n_list[0], n_first);
            else sr_check_same(c, "list", k->list[0], first, (size_t)n_first * sizeof(*first));
            sr_check_same(c, "unread", k->unread, unread, sizeof(unread));
        }
        memset(k->u.y[1][1], 0, k->u.y_bytes);
        for (int32_t row = 1000; row < 1500; row++) {
            for (int32_t u = 0; u < SR_OPS_UNITS; u++) k->row0[u] = k->row1[u] = row;
            k->row1[1] = row + 1;
            encode(b, k);
        }
        sr_check_same(c, "codes of rows one by one", k->u.y[1][1], codes, k->u.y_bytes);
        for (int32_t u = 0; u < SR_OPS_UNITS; u++) {
            k->row0[u] = 0;
            k->row1[u] = kv_len[u];
        }
        sr_backend_close(b);
    }
    free(codes);
    free(first);
    call_fini(k);
    free(k);
}

static void expect_rows(struct check *c, const struct choose_call *k, int32_t unit, int all)
{
    const int32_t n_far = k->u.unit[unit].kv_len - WINDOW - N_SINKS, want = all && n_far > 0 ? n_far : 0;
    if (k->n_list[unit] != want) sr_check_fail(c, "unit %d: %d rows, want %d", unit, k->n_list[unit], want);
    for (int32_t i = 0; i < k->n_list[unit] && i < want; i++)
        if (k->list[unit][i] != N_SINKS + i) sr_check_fail(c, "unit %d: entry %d is %d", unit, i, k->list[unit][i]);
}

/* Nothing far; eps 0, 1 and tiny; a unit that is masked out. */
static void test_edges(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {68, 1500, 30, 1500};
    struct choose_call *k = calloc(1, sizeof(*k));
    call_init(k, c, 64, 2, 4, kv_len);
    struct backend *b = sr_ops_backend(isa, 2);
    encode(b, k);
    k->eps[1] = 0;
    k->mask[3] = 0;
    k->n_list[3] = -7;
    choose(b, k);
    expect_rows(c, k, 0, 0);
    expect_rows(c, k, 1, 1);
    expect_rows(c, k, 2, 0);
    if (k->unread[0] != 0 || k->far_share[0] != 0 || k->unread[2] != 0) sr_check_fail(c, "far shares where nothing is far");
    if (k->n_list[3] != -7) sr_check_fail(c, "a masked unit was touched");
    k->mask[3] = 1;
    k->eps[1] = 1.0f;
    k->eps[3] = 1e-30f;
    choose(b, k);
    expect_rows(c, k, 1, 0);
    expect_rows(c, k, 3, 1);
    sr_check_near(c, "unread, eps 1", 1, k->unread[2], k->far_share[2], 1e-6);
    for (int32_t h = 2; h < 4; h++) { /* everything near: no far row matters */
        k->near_m[h] = 80;
        k->near_l[h] = 1;
    }
    k->eps[1] = 0.1f;
    choose(b, k);
    expect_rows(c, k, 1, 0);
    for (int32_t h = 2; h < 4; h++) { /* nothing near */
        k->near_m[h] = -INFINITY;
        k->near_l[h] = 0;
    }
    choose(b, k);
    compare_choice(c, k, 1);
    sr_backend_close(b);
    call_fini(k);
    free(k);
}

/* Whatever is not a number, in the query, the basis or the near state: everything far is read. */
static void test_not_a_number(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {1200, 1200, 1200, 1200};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        struct choose_call *k = calloc(1, sizeof(*k));
        call_init(k, c, 64, 2, i == 1 ? 8 : 4, kv_len);
        struct backend *b = sr_ops_backend(isa, 2);
        encode(b, k);
        k->u.q[64 + 3] = bad[i];
        k->basis[1].mu[7] = bad[i];
        k->near_m[2 * 2 + 1] = i == 2 ? NAN : bad[i];
        k->basis[3].step[2] = bad[i];
        choose(b, k);
        for (int32_t u = 0; u < SR_OPS_UNITS; u++) expect_rows(c, k, u, 1);
        sr_backend_close(b);
        call_fini(k);
        free(k);
    }
}

/* A heavy row lost from the list, or a sketch that is not of these rows, must be found. */
static void test_planted(struct check *c, enum cpu_isa isa)
{
    static const int32_t kv_len[] = {1200, 1200, 1200, 1200};
    struct choose_call *k = calloc(1, sizeof(*k));
    call_init(k, c, 64, 2, 4, kv_len);
    struct backend *b = sr_ops_backend(isa, 1);
    encode(b, k);
    choose(b, k);
    struct check lost = *c, other = *c;
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) k->n_list[u] -= k->n_list[u] > 0;
    for (int32_t u = 0; u < SR_OPS_UNITS; u++) compare_choice(&lost, k, u);
    ((uint8_t *)k->u.y[0][0])[sr_sketch_first_at(4, N_SINKS)] ^= 8;
    compare_logits(&other, k, 0);
    if (!lost.n_failed) sr_check_fail(c, "a row lost went unnoticed");
    if (!other.n_failed) sr_check_fail(c, "a changed code went unnoticed");
    sr_backend_close(b);
    call_fini(k);
    free(k);
}

int main(int argc, char **argv)
{
    static const struct ops_test tests[] = {
        {"sketch_choose keeps its contract", test_choose}, {"sketch same bits", test_same_bits}, {"sketch_choose edges", test_edges},
        {"sketch_choose reads all on NaN", test_not_a_number}, {"sketch_choose: planted faults are found", test_planted},
    };
    return sr_ops_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
}
