/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention against double precision, and everything that must be the same bits: modes below min_len, dense
 * in any guise, repeated runs, any number of threads.
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

#include "base/memory.h"

static size_t stride_of(const struct attn_world *w)
{
    return (size_t)w->n_heads * (size_t)w->head_dim;
}

/* Prefill may round the weights of a query to bf16 (their sum too): each is off by at most 2^-8 of itself, so
 * an element of the output is by at most 2^-8 sum_i p_i |v_i - o|. */
static void assert_prefill(const struct attn_world *w, int32_t layer, int32_t pos, const float *out)
{
    int32_t d = w->head_dim, per = w->n_heads / w->n_kv_heads;
    double want[256], *logits = malloc((size_t)(pos + 1) * sizeof *logits);
    assert_non_null(logits);
    for (int32_t h = 0; h < w->n_heads; h++) {
        double sum = 0;
        sr_world_attend(w, layer, h, pos, NULL, want);
        sr_world_logits(w, layer, h, pos, logits);
        for (int32_t r = 0; r <= pos; r++) sum += exp(logits[r]);
        for (int32_t i = 0; i < d; i++) {
            double spread = 0, got = (double)out[h * d + i];
            for (int32_t r = 0; r <= pos; r++)
                spread +=
                    exp(logits[r]) / sum * fabs((double)sr_world_v(w, layer, r)[h / per * d + i] - want[i]);
            double diff = fabs(got - want[i]), tol = 5e-5 + spread / 256;
            if (!(diff <= tol))
                fail_msg("prefill: layer %d head %d pos %d element %d: %g, want %g within %g", layer, h, pos,
                         i, got, want[i], tol);
        }
    }
    free(logits);
}

/* Rounding of the logits grows with sum |q k|, of the sum with its terms: what is left is far below 2e-5 of
 * the values' size, which is about 3 here. The library's f16, q8_0 and q4_0 rows are exact inputs once the world is
 * rounded. */
static void assert_output(const struct attn_world *w, int32_t layer, int32_t pos, const float *out,
                          const uint8_t *read, double tol)
{
    double want[256];
    for (int32_t h = 0; h < w->n_heads; h++) {
        sr_world_attend(w, layer, h, pos, read, want);
        for (int32_t i = 0; i < w->head_dim; i++) {
            double diff = fabs((double)out[h * w->head_dim + i] - want[i]);
            if (!(diff <= tol))
                fail_msg("layer %d head %d pos %d element %d: %g, want %g", layer, h, pos, i,
                         (double)out[h * w->head_dim + i], want[i]);
        }
    }
}

static void check_shape(int32_t n_kv, int32_t group, int32_t dim, sr_dtype k_type, sr_dtype v_type)
{
    enum { LEN = 300, PREFILL = 280 };
    struct attn_world *w = sr_world_new(2, n_kv, group, dim, LEN, 7);
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_DENSE);
    float *pre = malloc(2 * LEN * stride_of(w) * sizeof *pre), *out = malloc(2 * stride_of(w) * sizeof *out);
    assert_true(pre && out);
    sr_world_round(w, k_type, v_type);
    sr_bench_open(&b, w, k_type, v_type, &o, 2, NULL);
    sr_bench_prefill(&b, w, 0, PREFILL, 64, pre);
    for (int32_t p = 0; p < PREFILL; p += 31) assert_prefill(w, 1, p, pre + (LEN + (size_t)p) * stride_of(w));
    for (int32_t p = PREFILL; p < LEN; p++) {
        sr_bench_step(&b, w, p, out);
        assert_output(w, 0, p, out, NULL, 5e-5);
        assert_output(w, 1, p, out + stride_of(w), NULL, 5e-5);
    }
    sr_bench_close(&b);
    sr_world_free(w);
    free(pre);
    free(out);
}

static void test_dense_equals_double(void **state)
{
    static const int32_t groups[] = {1, 2, 3, 4, 7, 8}, dims[] = {64, 80, 128};
    static const sr_dtype types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_F8_E4M3};
    (void)state;
    for (int i = 0; i < 6; i++) check_shape(2, groups[i], dims[i % 3], SR_DTYPE_F16, SR_DTYPE_F16);
    for (int i = 0; i < 6; i++) check_shape(1, groups[i], dims[(i + 1) % 3], SR_DTYPE_F32, SR_DTYPE_F16);
    for (int i = 0; i < 6; i++) {
        for (int j = 0; j < 6; j++) check_shape(2, 3, 64, types[i], types[j]);
    }
}

/* ---- the same bits ---- */

enum { LONG = 2660, FIRST = 2600 };

static void assert_same(const struct attn_world *w, const float *a, const float *b, int32_t n_steps)
{
    assert_memory_equal(a, b, (size_t)n_steps * (size_t)w->n_layers * stride_of(w) * sizeof *a);
}

/* Outputs of steps from FIRST on, freed by the caller. */
static float *run(const struct attn_world *w, const sr_route_options *o, int n_threads, int32_t n_steps)
{
    struct attn_bench b;
    size_t step = (size_t)w->n_layers * stride_of(w);
    float *out = malloc((size_t)n_steps * step * sizeof *out);
    assert_non_null(out);
    sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, o, n_threads, sr_shared.moments);
    sr_bench_fill(&b, w, 0, FIRST);
    for (int32_t i = 0; i < n_steps; i++) sr_bench_step(&b, w, FIRST + i, out + (size_t)i * step);
    sr_bench_close(&b);
    return out;
}

static void test_short_is_dense(void **state)
{
    (void)state;
    static const sr_route_mode modes[] = {SR_ROUTE_MASS, SR_ROUTE_PAPER, SR_ROUTE_WINDOW};
    struct attn_world *w = sr_shared.world;
    sr_route_options dense = sr_world_route(SR_ROUTE_DENSE);
    float *want = run(w, &dense, 2, 5);
    for (int i = 0; i < 3; i++) {
        sr_route_options o = sr_world_route(modes[i]);
        o.min_len = FIRST + 3; /* the step over FIRST + 2 rows is still dense, the one after is not */
        o.tau_set = 1;
        o.tau[0] = -2;
        float *out = run(w, &o, 2, 5);
        assert_same(w, out, want, 2);
        size_t at = 2 * (size_t)w->n_layers * stride_of(w);
        size_t n = 3 * (size_t)w->n_layers * stride_of(w) * sizeof *out;
        assert_true(memcmp(out + at, want + at, n) != 0);
        free(out);
    }
    /* window and mass whose near part is everything */
    for (int i = 0; i < 3; i += 2) {
        sr_route_options o = sr_world_route(modes[i]);
        o.window = 4000;
        float *out = run(w, &o, 2, 5);
        assert_same(w, out, want, 5);
        free(out);
    }
    free(want);
}

static void test_threads_and_repeats(void **state)
{
    (void)state;
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_MASS, SR_ROUTE_WINDOW};
    struct attn_world *w = sr_shared.world;
    for (int i = 0; i < 3; i++) {
        sr_route_options o = sr_world_route(modes[i]);
        o.audit = 0.5f;
        float *want = run(w, &o, 1, 4);
        for (int threads = 1; threads <= 3; threads++) {
            float *out = run(w, &o, threads, 4);
            assert_same(w, out, want, 4);
            free(out);
        }
        o.audit = 0; /* audits change nothing */
        float *out = run(w, &o, 2, 4);
        assert_same(w, out, want, 4);
        free(out);
        free(want);
    }
}

/* Prefill deals queries by the thread count; that does not show. Neither does the batch. */
static void test_prefill_threads(void **state)
{
    enum { N = 700 };
    static const int32_t batches[] = {350, 25, 100, 37, 700};
    struct attn_world *w = sr_world_new(1, 2, 3, 64, N, 15);
    sr_route_options o = sr_world_route(SR_ROUTE_DENSE);
    size_t n = N * stride_of(w);
    float *want = malloc(n * sizeof *want), *out = malloc(n * sizeof *out);
    (void)state;
    assert_true(want && out);
    memcpy(sr_world_k(w, 0, 0), sr_world_k(w, 0, 1),
           2 * 64 * sizeof *out); /* no sink: the running maximum moves often */
    for (int i = 0; i < 5; i++) {
        for (int threads = 1; threads <= 4; threads++) {
            struct attn_bench b;
            sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, threads, NULL);
            sr_bench_prefill(&b, w, 0, N, batches[i], i + threads == 1 ? want : out);
            sr_bench_close(&b);
            for (size_t t = 0; i + threads > 1 && t < n; t++) {
                if (want[t] != out[t])
                    fail_msg("batch %d, %d threads: token %zu differs", batches[i], threads,
                             t / stride_of(w));
            }
        }
    }
    free(want);
    free(out);
    sr_world_free(w);
}

/* How tokens were batched in prefill, or that they came one by one through decode, does not show in what is
 * chosen: own moments are the same bits. */
static void test_batches(void **state)
{
    static const int32_t batches[] = {2040, 100, 7, 1};
    enum { LEN = 2058, AT = 2048 }; /* the first routed step is AT's, and ends the collecting of moments */
    struct attn_world *w = sr_world_new(1, 1, 2, 64, LEN, 5);
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    float *out[4];
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct attn_bench b;
        out[i] = malloc(10 * stride_of(w) * sizeof *out[i]);
        assert_non_null(out[i]);
        sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, NULL);
        sr_bench_prefill(&b, w, 0, i == 3 ? 2000 : AT, batches[i], NULL);
        for (int32_t p = 2000; i == 3 && p < AT; p++) sr_bench_step(&b, w, p, out[i]);
        for (int32_t p = AT; p < LEN; p++) sr_bench_step(&b, w, p, out[i] + (size_t)(p - AT) * stride_of(w));
        sr_route_stats st;
        sr_attn_seq_stats(b.seq, &st);
        assert_true(st.sketch_rows > 0);
        if (i) assert_same(w, out[i], out[0], 10);
        sr_bench_close(&b);
    }
    for (int i = 0; i < 4; i++) free(out[i]);
    sr_world_free(w);
}

static void test_everything_chosen_is_dense(void **state)
{
    (void)state;
    struct attn_world *w = sr_shared.world;
    sr_route_options dense = sr_world_route(SR_ROUTE_DENSE), all = sr_world_route(SR_ROUTE_MASS);
    all.eps = 1e-30f;
    float *want = run(w, &dense, 2, 4), *out = run(w, &all, 2, 4);
    for (size_t i = 0; i < 4 * (size_t)w->n_layers * stride_of(w); i++) {
        if (!(fabsf(out[i] - want[i]) <= 1e-5f))
            fail_msg("element %zu: %g, dense %g", i, (double)out[i], (double)want[i]);
    }
    free(want);
    free(out);
}

static void expect_near_dense(const struct attn_world *w, const char *moments)
{
    struct attn_bench b;
    sr_route_options o = sr_world_route(SR_ROUTE_MASS);
    sr_route_stats st;
    float *out = malloc((size_t)w->n_layers * stride_of(w) * sizeof *out);
    assert_non_null(out);
    o.audit = 1;
    sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o, 2, moments);
    sr_bench_fill(&b, w, 0, FIRST);
    for (int32_t i = 0; i < 20; i++) sr_bench_step(&b, w, FIRST + i, out);
    sr_attn_seq_stats(b.seq, &st);
    assert_int_equal(st.steps, 20);
    assert_int_equal(st.audits, st.units);
    assert_int_equal(st.cases, 20 * w->n_layers * w->n_heads);
    assert_true(st.units_list > 0);
    print_message("# read %.3f of dense, unread mean %.4f max %.4f, above eps %.4f, broken %.4f, estimate "
                  "%.4f, clipped %.5f\n",
                  (double)st.kv_bytes / (double)st.dense_bytes, st.unread_sum / (double)st.cases,
                  st.unread_max, (double)st.above_eps / (double)st.cases,
                  (double)st.broken / (double)st.cases, st.estimate_sum / (double)st.cases,
                  (double)st.clipped / (double)st.encoded);
    assert_true(st.kv_bytes < st.dense_bytes / 2);
    assert_true(st.broken * 50 <= st.cases);
    sr_bench_close(&b);
    free(out);
}

static void test_routed_is_near_dense(void **state)
{
    (void)state;
    expect_near_dense(sr_shared.world, sr_shared.moments);
}

/* Groups of more than 4 have mixed codes. */
static void test_large_groups(void **state)
{
    char moments[64];
    struct attn_world *w = sr_world_new(2, 1, 6, 64, LONG, 17);
    (void)state;
    sr_world_round(w, SR_DTYPE_F16, SR_DTYPE_F16);
    sr_world_moments(w, moments);
    expect_near_dense(w, moments);
    unlink(moments);
    sr_world_free(w);
}

static int make_world(void **state)
{
    (void)state;
    sr_shared.world = sr_world_new(3, 2, 3, 64, LONG, 11);
    sr_world_round(sr_shared.world, SR_DTYPE_F16, SR_DTYPE_F16);
    sr_world_moments(sr_shared.world, sr_shared.moments);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense_equals_double),  cmocka_unit_test(test_short_is_dense),
        cmocka_unit_test(test_threads_and_repeats),  cmocka_unit_test(test_batches),
        cmocka_unit_test(test_prefill_threads),      cmocka_unit_test(test_everything_chosen_is_dense),
        cmocka_unit_test(test_routed_is_near_dense), cmocka_unit_test(test_large_groups),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_world, sr_shared_free);
}
