/* SPDX-License-Identifier: Apache-2.0
 *
 * The correction against simulated audits whose law is known and changes; breakers; sinks found by norms; and both
 * over a whole sequence: a sketch that lies, sinks far from the start, keys without any sink.
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

enum { UNITS = 6, GROUP = 2 };

static sr_route_options options(float delta)
{
    sr_route_options o = sr_route_options_default();
    o.delta = delta;
    return o;
}

/* ---- the correction alone ---- */

/* The true unread share is threshold x a factor whose log is normal with the given spread. */
static double simulate(struct contract *c, const sr_route_options *o, struct rng *r, int32_t from, int32_t n,
                       double spread)
{
    sr_route_stats ignored = {0};
    int above = 0, cases = 0;
    for (int32_t pos = from; pos < from + n; pos++) {
        sr_contract_step(c, pos, o, &ignored);
        double threshold = (double)sr_contract_threshold(c, o), unread[GROUP];
        for (int32_t u = 0; u < 2; u++) {
            for (int h = 0; h < GROUP; h++) {
                double x = 1 - sr_rng_unit(r), y = sr_rng_unit(r);
                unread[h] = threshold * exp(spread * sqrt(-2 * log(x)) * cos(6.283185307179586 * y));
                above += unread[h] > (double)o->eps;
                cases++;
            }
            sr_contract_note(c, u, pos + 1, unread);
        }
    }
    return (double)above / cases;
}

static void test_correction(void **state)
{
    static const float deltas[] = {.02f, .05f, .2f};
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct contract *c;
        struct rng r;
        sr_route_options o = options(deltas[i]);
        o.breaker = 0;
        sr_rng_seed(&r, 5 + (uint64_t)i);
        assert_int_equal(sr_contract_new(&c, UNITS, GROUP, NULL), SR_OK);
        assert_true(sr_contract_threshold(c, &o) < .5f * o.eps); /* careful while nothing is known */
        assert_true(sr_contract_audit_share(c, &o) > (double)o.audit);
        double first = simulate(c, &o, &r, 3000, 100, .5), settled = simulate(c, &o, &r, 3100, 2000, .5);
        float before = sr_contract_threshold(c, &o);
        assert_float_equal(sr_contract_audit_share(c, &o), o.audit, 0);
        double changed = simulate(c, &o, &r, 5100, 3000, 1); /* the estimate becomes worse */
        print_message("# delta %.2f: %.4f, %.4f, %.4f above; threshold %.4f, then %.4f\n", (double)deltas[i],
                      first, settled, changed, (double)before, (double)sr_contract_threshold(c, &o));
        assert_true(first <= (double)deltas[i]);
        assert_true(settled <= 1.15 * (double)deltas[i] && settled >= .6 * (double)deltas[i]);
        assert_true(changed <= 1.3 * (double)deltas[i]);
        assert_true(sr_contract_threshold(c, &o) < .8f * before);
        sr_contract_free(c);
    }
}

/* Without delta the threshold is what eps makes it whatever audits say: eps, or with a second look more, never 1. */
static void test_no_correction(void **state)
{
    struct contract *c;
    struct rng r;
    sr_route_options o = options(0);
    (void)state;
    assert_int_equal(sr_contract_new(&c, UNITS, GROUP, NULL), SR_OK);
    sr_rng_seed(&r, 1);
    simulate(c, &o, &r, 3000, 50, 2);
    assert_float_equal(sr_contract_threshold(c, &o), .125 / 1.025, 1e-7);
    o.eps = .999f;
    assert_true(sr_contract_threshold(c, &o) > .999f && sr_contract_threshold(c, &o) < 1);
    o.look = 0;
    assert_true(sr_contract_threshold(c, &o) == .999f);
    sr_contract_free(c);
}

/* A correction allows no more than the estimate has without one, however far below it audits find the truth. */
static void test_correction_lowers(void **state)
{
    (void)state;
    for (int look = 0; look < 2; look++) {
        struct contract *c;
        sr_route_options o = options(.1f);
        sr_route_stats ignored = {0};
        const double unread[GROUP] = {.001, .001};
        o.look = look;
        assert_int_equal(sr_contract_new(&c, UNITS, GROUP, NULL), SR_OK);
        for (int32_t pos = 3000; pos < 3500; pos++) {
            sr_contract_step(c, pos, &o, &ignored);
            sr_contract_note(c, 1, pos + 1, unread);
        }
        assert_true(sr_contract_threshold(c, &o) == sr_contract_uncorrected(&o));
        sr_contract_free(c);
    }
}

/* What was noted counts once its step was followed by the next, and only then. */
static void test_retried_step(void **state)
{
    sr_route_options o = options(.1f);
    sr_route_stats st = {0};
    double good[GROUP] = {.01, .01}, bad[GROUP] = {.9, .9};
    struct contract *a, *b;
    size_t bytes;
    (void)state;
    assert_int_equal(sr_contract_new(&a, UNITS, GROUP, NULL), SR_OK);
    assert_int_equal(sr_contract_new(&b, UNITS, GROUP, NULL), SR_OK);
    for (int32_t pos = 100; pos < 110; pos++) {
        sr_contract_step(a, pos, &o, &st);
        sr_contract_note(a, 3, pos + 1, good);
        sr_contract_step(b, pos, &o, &st);
        sr_contract_note(b, 3, pos + 1, bad); /* this step fails, and is tried again */
        sr_contract_step(b, pos, &o, &st);
        sr_contract_note(b, 3, pos + 1, good);
    }
    sr_contract_step(b, 500, &o, &st); /* a sequence that went on elsewhere: the last note is dropped */
    sr_contract_step(a, 500, &o, &st);
    const void *x = sr_contract_piece(a, 0, &o, &st, &bytes), *y = sr_contract_piece(b, 0, &o, &st, &bytes);
    assert_memory_equal(x, y, bytes);
    assert_int_equal(st.breaker_opened[SR_BREAK_LOST], 0);
    sr_contract_free(a);
    sr_contract_free(b);
}

/* ---- breakers ---- */

static void audit(struct contract *c, const sr_route_options *o, sr_route_stats *st, int32_t pos, double unread)
{
    double all[GROUP] = {0, unread};
    sr_contract_step(c, pos, o, st);
    sr_contract_note(c, 2, pos + 1, all);
    sr_contract_step(c, pos + 1, o, st);
}

static void test_breaker(void **state)
{
    sr_route_options o = options(0);
    sr_route_stats st = {0};
    struct contract *c;
    (void)state;
    assert_int_equal(sr_contract_new(&c, UNITS, GROUP, NULL), SR_OK);
    audit(c, &o, &st, 1000, .25);
    for (int i = 0; i < 3; i++) audit(c, &o, &st, 1010 + 2 * i, .15); /* above eps is not broken */
    audit(c, &o, &st, 1020, .25);                                     /* the first failure is forgotten */
    assert_int_equal(sr_contract_trust(c, 2, 1022), UNIT_ROUTED);
    audit(c, &o, &st, 1030, .05);
    audit(c, &o, &st, 1040, .25);
    assert_int_equal(st.breaker_opened[SR_BREAK_UNREAD], 1);
    assert_int_equal(sr_contract_trust(c, 2, 1042), UNIT_WHOLE);
    assert_int_equal(sr_contract_trust(c, 1, 1042), UNIT_ROUTED);
    assert_int_equal(sr_contract_trust(c, 2, 1041 + 511), UNIT_WHOLE);
    assert_int_equal(sr_contract_trust(c, 2, 1041 + 512), UNIT_TRIAL);
    assert_int_equal(sr_contract_trust(c, 2, 500), UNIT_TRIAL); /* cut back */
    audit(c, &o, &st, 1041 + 511, .3);                           /* the trial fails: twice as long */
    assert_int_equal(sr_contract_trust(c, 2, 1041 + 512 + 1023), UNIT_WHOLE);
    assert_int_equal(sr_contract_trust(c, 2, 1041 + 512 + 1024), UNIT_TRIAL);
    audit(c, &o, &st, 1041 + 512 + 1023, .15);
    assert_int_equal(sr_contract_trust(c, 2, 5000), UNIT_ROUTED);
    assert_int_equal(st.breaker_closed, 1);
    audit(c, &o, &st, 6000, .6);
    assert_int_equal(st.breaker_opened[SR_BREAK_LOST], 1);
    assert_int_equal(sr_contract_trust(c, 2, 6002), UNIT_WHOLE);
    audit(c, &o, &st, 7000, NAN);
    assert_int_equal(st.breaker_opened[SR_BREAK_NUMERIC], 1);
    assert_int_equal(st.breaker_opened[SR_BREAK_UNREAD], 2);
    sr_contract_free(c);
}

/* ---- a sequence ---- */

enum { LEN = 2460, AT = 2400 };

/* A sketch that lies is found out: its units are read whole, so that fewer cases are broken and what is read is dense. */
static void test_breaker_in_use(void **state)
{
    struct attn_world *w = sr_shared.world;
    size_t stride = (size_t)w->n_heads * (size_t)w->head_dim;
    sr_route_stats st[2];
    float *out = malloc((size_t)w->n_layers * stride * sizeof *out);
    (void)state;
    assert_non_null(out);
    for (int on = 0; on < 2; on++) {
        struct attn_bench b;
        sr_route_options o = options(0);
        o.audit = 1;
        o.breaker = on;
        sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, sr_shared.moments);
        sr_bench_fill(&b, w, 0, AT);
        sr_bench_step(&b, w, AT, out);
        sr_attn_seq_stats_reset(b.seq);
        sr_spoil_sketch(b.seq);
        for (int32_t p = AT + 1; p < LEN; p++) sr_bench_step(&b, w, p, out);
        sr_attn_seq_stats(b.seq, &st[on]);
        for (int32_t g = 0; g < w->n_kv_heads; g++) { /* the last layer: an open unit gives what dense gives */
            double want[256];
            if (!b.attention->scratch.whole[g]) continue;
            assert_int_equal(b.attention->scratch.kind[g], READ_ALL);
            sr_world_attend(w, w->n_layers - 1, g * 3, LEN - 1, NULL, want);
            for (int32_t i = 0; i < w->head_dim; i++)
                assert_float_equal(out[(size_t)(w->n_layers - 1) * stride + (size_t)(g * 3 * w->head_dim + i)],
                                   want[i], 5e-5);
        }
        sr_bench_close(&b);
    }
    print_message("# broken without and with: %d, %d of %d; opened %d + %d, whole %d of %d units\n",
                  (int)st[0].broken, (int)st[1].broken, (int)st[0].cases, (int)st[1].breaker_opened[SR_BREAK_UNREAD],
                  (int)st[1].breaker_opened[SR_BREAK_LOST], (int)st[1].units_open, (int)st[1].units);
    assert_int_equal(st[0].units_open, 0);
    assert_true(st[1].units_open > 0 && st[1].units_all == st[1].units_open);
    assert_true(2 * st[1].broken < st[0].broken);
    assert_true(st[1].k_rows > st[0].k_rows);
    free(out);
}

/* Audits ask more of the sequence than the option says only while there are few; the correction is the same for any
 * number of threads, and reads more. */
static void test_correction_in_use(void **state)
{
    struct attn_world *w = sr_shared.world;
    size_t n = (size_t)w->n_layers * (size_t)w->n_heads * (size_t)w->head_dim;
    float *out[2] = {malloc(n * sizeof(float)), malloc(n * sizeof(float))};
    sr_route_stats st[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct attn_bench b;
        sr_route_options o = options(i < 2 ? .02f : 0);
        o.audit = .25f;
        sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, i == 0 ? 1 : 3, sr_shared.moments);
        sr_bench_fill(&b, w, 0, AT);
        for (int32_t p = AT; p < LEN; p++) sr_bench_step(&b, w, p, out[i & 1]);
        sr_attn_seq_stats(b.seq, &st[i]);
        sr_bench_close(&b);
        if (i == 1) assert_memory_equal(out[0], out[1], n * sizeof(float));
    }
    assert_memory_equal(&st[0], &st[1], sizeof st[0]);
    assert_true(st[0].thresholds == st[0].units && st[0].threshold_sum < .9 * .1 * (double)st[0].units);
    assert_float_equal(st[2].threshold_sum, (double)st[2].units * (double)(float)(.125 / 1.025), 1e-6);
    assert_true(st[0].far_rows > st[0].far_rows_uncorrected && st[0].far_rows_uncorrected > 0);
    assert_true(st[0].k_rows > st[2].k_rows);
    assert_true(st[0].above_eps <= st[2].above_eps);
    free(out[0]);
    free(out[1]);
}

/* ---- sinks ---- */

static void shrink(struct attn_world *w, int32_t layer, int32_t group, int32_t pos, float by)
{
    float *k = sr_world_k(w, layer, pos) + group * w->head_dim, *v = sr_world_v(w, layer, pos) + group * w->head_dim;
    for (int32_t i = 0; i < w->head_dim; i++) {
        k[i] *= by;
        v[i] *= by;
    }
}

static int is_listed(const struct attn_bench *b, int32_t group, int32_t row)
{
    const struct decode_scratch *s = &b->attention->scratch;
    for (int32_t i = 0; i < s->n_list[group]; i++) {
        if (i) assert_true(s->list[group][i] > s->list[group][i - 1]);
        if (s->list[group][i] == row) return 1;
    }
    return 0;
}

/* Of the last layer: rows that were read without being listed. */
static int32_t unlisted(const struct attn_bench *b, int32_t group)
{
    const struct decode_scratch *s = &b->attention->scratch;
    assert_true(s->touched[group].k_rows == s->touched[group].v_rows);
    return (int32_t)s->touched[group].k_rows - s->n_list[group] - s->n_more[group];
}

/* Rows of tiny norm are read by the units that have them, whatever the estimate says of them: with the near part where
 * there is a second look, else listed. Batches of any size and truncation find the same. */
static void test_sinks_found(void **state)
{
    static const int32_t rows[] = {30, 700, 2000};
    static const int32_t batches[] = {1, 7, 512};
    struct attn_world *w = sr_world_new(3, 2, 3, 64, LEN, 11);
    size_t stride = (size_t)w->n_heads * (size_t)w->head_dim;
    float *out = malloc((size_t)w->n_layers * stride * sizeof *out);
    const int32_t *found;
    (void)state;
    for (int i = 0; i < 3; i++) shrink(w, 2, 0, rows[i], .1f);
    for (int i = 0; i < 3; i++) {
        struct attn_bench b;
        sr_route_options o = options(0);
        o.eps = .9f; /* nothing far is worth reading */
        o.look = i < 2;
        sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, sr_shared.moments);
        for (int32_t at = 0; at < AT; at += batches[i])
            sr_bench_fill(&b, w, at, at + batches[i] < AT ? at + batches[i] : AT);
        if (i == 1) { /* to before two of them, and into the reference */
            assert_int_equal(sr_attn_seq_truncate(b.seq, 100, NULL), SR_OK);
            assert_int_equal(sr_sinks_get(b.seq->sinks, 2, 0, 0, AT, &found), 0);
            sr_bench_fill(&b, w, 100, AT);
        }
        assert_int_equal(sr_sinks_get(b.seq->sinks, 2, 0, 4, AT, &found), 3);
        assert_memory_equal(found, rows, sizeof rows);
        assert_int_equal(sr_sinks_get(b.seq->sinks, 2, 0, 31, 2000, &found), 1);
        assert_int_equal(sr_sinks_get(b.seq->sinks, 2, 1, 4, AT, &found), 0);
        assert_int_equal(sr_sinks_get(b.seq->sinks, 0, 0, 4, AT, &found), 0);
        sr_bench_step(&b, w, AT, out);
        for (int k = 0; k < 3; k++) assert_int_equal(is_listed(&b, 0, rows[k]), !o.look);
        assert_false(is_listed(&b, 1, 700));
        assert_int_equal(unlisted(&b, 1), o.n_sinks + o.window);
        assert_int_equal(unlisted(&b, 0), o.n_sinks + o.window + (o.look ? 3 : 0));
        assert_int_equal(sr_attn_seq_truncate(b.seq, 2000, NULL), SR_OK);
        assert_int_equal(sr_sinks_get(b.seq->sinks, 2, 0, 4, AT, &found), 2);
        sr_bench_close(&b);
    }
    free(out);
    sr_world_free(w);
}

/* At most so many, the first ones. */
static void test_sinks_are_few(void **state)
{
    struct sinks *s;
    float k[8] = {1}, v[8] = {1}, none[8] = {0};
    const int32_t *found;
    (void)state;
    assert_int_equal(sr_sinks_new(&s, 1, 1, 8, NULL), SR_OK);
    for (int32_t pos = 0; pos < 1000; pos++)
        sr_sinks_append(s, 0, pos % 10 == 5 ? none : k, pos % 10 == 5 ? none : v, 1, pos);
    assert_int_equal(sr_sinks_get(s, 0, 0, 0, 1000, &found), SR_SINKS_MOST);
    assert_int_equal(found[SR_SINKS_MOST - 1], 10 * SR_SINKS_MOST - 5);
    sr_sinks_free(s);
}

/* Keys and values of one size everywhere and no row that all heads look at: the contract holds as it does with sinks. */
static void test_no_sink(void **state)
{
    struct attn_world *w = sr_world_new(3, 2, 3, 64, LEN, 21);
    size_t stride = (size_t)w->n_heads * (size_t)w->head_dim, row = (size_t)(w->n_kv_heads * w->head_dim);
    float *out = malloc((size_t)w->n_layers * stride * sizeof *out);
    char moments[64];
    sr_route_options o = options(.05f);
    sr_route_stats st;
    struct attn_bench b;
    (void)state;
    for (int32_t l = 0; l < w->n_layers; l++) { /* the first row becomes one of the others */
        memcpy(sr_world_k(w, l, 0), sr_world_k(w, l, 9), row * sizeof(float));
        memcpy(sr_world_v(w, l, 0), sr_world_v(w, l, 9), row * sizeof(float));
    }
    sr_world_moments(w, moments);
    o.audit = 1;
    o.n_sinks = 0;
    sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, moments);
    sr_bench_fill(&b, w, 0, AT);
    for (int32_t p = AT; p < LEN; p++) sr_bench_step(&b, w, p, out);
    sr_attn_seq_stats(b.seq, &st);
    print_message("# read %.3f, above eps %d of %d, broken %d\n", (double)st.kv_bytes / (double)st.dense_bytes,
                  (int)st.above_eps, (int)st.cases, (int)st.broken);
    assert_true(st.units_list > 0 && (double)st.kv_bytes < .9 * (double)st.dense_bytes);
    assert_true((double)st.above_eps <= .05 * (double)st.cases);
    sr_bench_close(&b);
    unlink(moments);
    free(out);
    sr_world_free(w);
}

static int make_world(void **state)
{
    (void)state;
    sr_shared.world = sr_world_new(3, 2, 3, 64, LEN, 11);
    sr_world_round(sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16);
    sr_world_moments(sr_shared.world, sr_shared.moments);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_correction),        cmocka_unit_test(test_no_correction), cmocka_unit_test(test_correction_lowers),
        cmocka_unit_test(test_retried_step),      cmocka_unit_test(test_breaker),
        cmocka_unit_test(test_breaker_in_use),    cmocka_unit_test(test_correction_in_use),
        cmocka_unit_test(test_sinks_found),       cmocka_unit_test(test_sinks_are_few),
        cmocka_unit_test(test_no_sink),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_world, sr_shared_free);
}
