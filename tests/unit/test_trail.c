/* SPDX-License-Identifier: Apache-2.0
 *
 * The trail alone: what it keeps, for how long, and what is dropped; then over a sequence: a row that one head of one layer
 * looks at is read, with its neighbours, by every unit of the next step, and by no later one.
 */
#include "attn_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "attention/timeline.h"
#include "base/rng.h"
#include "ok.h"

/* ---- alone ---- */

static void assert_rows(const struct trail *t, int32_t first, int32_t last, int32_t n, const int32_t *want)
{
    int32_t rows[SR_TRAIL_ROWS];
    assert_int_equal(sr_trail_get(t, first, last, rows), n);
    assert_memory_equal(rows, want, (size_t)n * sizeof *want);
}

static void test_steps(void **state)
{
    static const int32_t want[] = {9, 10, 11, 12, 13, 39, 40, 41, 42}, cut[] = {11, 12, 13, 39, 40};
    struct trail t = {0};
    (void)state;
    sr_trail_step(&t, 100);
    sr_trail_note(&t, 40, .5f);
    sr_trail_note(&t, 11, .1f);
    sr_trail_note(&t, 10, .9f);
    sr_trail_note(&t, 40, .2f);
    sr_trail_note(&t, 50, .0999f);
    sr_trail_note(&t, 51, NAN);
    assert_rows(&t, 0, 100, 0, want); /* for the next step */
    assert_int_equal(sr_trail_check(&t, 100), 0);
    sr_trail_step(&t, 101);
    sr_trail_step(&t, 101); /* in every layer, and a step that is tried again */
    assert_rows(&t, 0, 100, 9, want);
    assert_rows(&t, 11, 41, 5, cut);
    assert_rows(&t, 43, 100, 0, want);
    sr_trail_step(&t, 102);
    assert_rows(&t, 0, 100, 0, want);
    sr_trail_note(&t, 10, .3f);
    sr_trail_step(&t, 104); /* one step was made by somebody else */
    assert_rows(&t, 0, 100, 0, want);
}

static void test_truncate(void **state)
{
    static const int32_t want[] = {19, 20, 21, 22};
    struct trail t = {0};
    (void)state;
    for (int i = 0; i < 2; i++) {
        sr_trail_step(&t, 100);
        sr_trail_note(&t, 20, .5f);
        sr_trail_step(&t, 101);
        sr_trail_note(&t, 30, .5f);
        sr_trail_truncate(&t, 101);
        assert_int_equal(t.n_now, 1);
        sr_trail_truncate(&t, 100); /* undoes the step, which is made again */
        sr_trail_step(&t, 101);
        assert_rows(&t, 0, 100, 4, want);
        sr_trail_truncate(&t, i ? 0 : 50);
        for (int32_t len = 50; len < 103; len++) {
            sr_trail_step(&t, len);
            assert_rows(&t, 0, 100, 0, want);
        }
    }
}

/* The largest shares, in whatever order they come. */
static void test_room(void **state)
{
    enum { N = 300 };
    struct rng r = {0};
    struct trail t = {0};
    float share[N], least = 1;
    int32_t n_above = 0;
    (void)state;
    sr_rng_seed(&r, 3);
    sr_trail_step(&t, 1000);
    for (int32_t i = 0; i < N; i++) {
        const int32_t row = i * 7 % N;
        share[row] = .1f + .9f * (float)sr_rng_unit(&r);
        sr_trail_note(&t, 3 * row, share[row]);
    }
    assert_int_equal(t.n_now, SR_TRAIL_NOTED);
    for (int32_t i = 0; i < SR_TRAIL_NOTED; i++) {
        assert_true(t.now[i] % 3 == 0 && (i == 0 || t.now[i] > t.now[i - 1]));
        assert_true(t.share[i] == share[t.now[i] / 3]);
        least = fminf(least, t.share[i]);
    }
    for (int32_t i = 0; i < N; i++) n_above += share[i] >= least;
    assert_int_equal(n_above, SR_TRAIL_NOTED);
    sr_trail_step(&t, 1001);
    int32_t rows[SR_TRAIL_ROWS];
    assert_in_range(sr_trail_get(&t, 0, 1000, rows), 3 * SR_TRAIL_NOTED, SR_TRAIL_ROWS);
}

static void test_damaged(void **state)
{
    struct trail good = {.step = 60, .n = 2, .n_now = 1, .rows = {3, 9}, .now = {7}, .share = {.5f}}, t;
    (void)state;
    assert_int_equal(sr_trail_check(&good, 60), 0);
    t = good, t.n = -1;
    assert_int_equal(sr_trail_check(&t, 60), -1);
    t = good, t.n_now = SR_TRAIL_NOTED + 1;
    assert_int_equal(sr_trail_check(&t, 60), -1);
    t = good, t.rows[0] = 9;
    assert_int_equal(sr_trail_check(&t, 60), -1);
    t = good, t.rows[0] = -1;
    assert_int_equal(sr_trail_check(&t, 60), -1);
    t = good, t.now[0] = 60;
    assert_int_equal(sr_trail_check(&t, 60), -1);
    t = good, t.share[0] = NAN;
    assert_int_equal(sr_trail_check(&t, 60), -1);
    t = good, t.step = -5;
    assert_int_equal(sr_trail_check(&t, 60), -1);
}

/* ---- over a sequence ---- */

enum { LEN = 2460, AT = 2400, ROW = 700, HEAD = 4 /* of the second group */ };

static const int32_t follows[] = {ROW - 1, ROW, ROW + 1, ROW + 2};

/* What that head of the first layer asks for at AT is key ROW of the second group. */
static void plant(struct attn_world *w)
{
    const float *k = sr_world_k(w, 0, ROW) + w->head_dim;
    float *q = sr_world_q(w, 0, AT) + HEAD * w->head_dim;
    double sum = 0;
    for (int32_t i = 0; i < w->head_dim; i++) sum += (double)k[i] * (double)k[i];
    const float by = (float)(40 * sqrt((double)w->head_dim) / sum); /* a logit of 40 */
    for (int32_t i = 0; i < w->head_dim; i++) q[i] = by * k[i];
}

static int has_rows(const int32_t *list, int32_t n, int32_t *of)
{
    int32_t n_has = 0;
    for (int32_t i = 0; i < n; i++) {
        if (i) assert_true(list[i] > list[i - 1]);
        for (int32_t k = 0; k < 4; k++) n_has += list[i] == follows[k];
    }
    *of = n;
    return n_has;
}

/* Of the last layer: how many of `follows` its units read in any case, and rows that were read without being listed. */
static int count_found(const struct attn_bench *b, int32_t group, int look)
{
    const struct decode_scratch *s = &b->attention->scratch;
    int32_t n, n_listed;
    const int n_has = has_rows(s->found[group], s->n_found[group], &n);
    const int in_list = has_rows(s->list[group], s->n_list[group], &n_listed);
    const int32_t unlisted = (int32_t)s->touched[group].k_rows - s->n_list[group] - s->n_more[group];
    assert_int_equal(unlisted, b->seq->route.n_sinks + b->seq->route.window + (look ? n : 0));
    if (n_has && !look) assert_int_equal(in_list, n_has);
    return n_has;
}

static void test_sequence(void **state)
{
    struct attn_world *w = sr_world_new(3, 2, 3, 64, LEN, 11);
    const size_t n = (size_t)w->n_layers * (size_t)w->n_heads * (size_t)w->head_dim;
    float *out = malloc(n * sizeof *out), *again = malloc(n * sizeof *again);
    (void)state;
    plant(w);
    for (int i = 0; i < 4; i++) {
        struct attn_bench b;
        sr_route_options o = sr_route_options_default();
        o.eps = .9f; /* hardly anything far is worth reading */
        o.trail = i != 2;
        o.look = i != 1;
        sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, i == 3 ? 1 : 3, sr_shared.moments);
        sr_bench_fill(&b, w, 0, AT);
        sr_bench_step(&b, w, AT, out);
        for (int32_t g = 0; g < 2; g++) assert_int_equal(count_found(&b, g, o.look), 0);
        sr_bench_step(&b, w, AT + 1, i == 3 ? again : out);
        for (int32_t g = 0; g < 2; g++) assert_int_equal(count_found(&b, g, o.look), o.trail ? 4 : 0);
        if (i == 3) { /* the same bits on any number of threads, and after the step is undone */
            OK(sr_attn_seq_truncate(b.seq, AT + 1, &err));
            sr_bench_step(&b, w, AT + 1, out);
            assert_memory_equal(out, again, n * sizeof *out);
            assert_int_equal(count_found(&b, 0, 1), 4);
        }
        sr_bench_step(&b, w, AT + 2, out);
        for (int32_t g = 0; g < 2; g++) assert_int_equal(count_found(&b, g, o.look), 0);
        sr_bench_close(&b);
    }
    free(out);
    free(again);
    sr_world_free(w);
}

static int make_shared(void **state)
{
    struct attn_world *w = sr_world_new(3, 2, 3, 64, LEN, 11);
    (void)state;
    sr_world_moments(w, sr_shared.moments);
    sr_shared.world = w;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_truncate), cmocka_unit_test(test_room),
                                       cmocka_unit_test(test_damaged), cmocka_unit_test(test_sequence)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_shared, sr_shared_free);
}
