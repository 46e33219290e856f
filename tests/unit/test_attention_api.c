/* SPDX-License-Identifier: Apache-2.0
 *
 * The public attention.h: every argument that is refused, with the field and the value in the text; and that
 * what is not refused is what the inner interface gives.
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

#include "sinkrouter/attention.h"

static sr_attention_options small(void)
{
    sr_attention_options o = sr_attention_options_default();
    o.n_layers = 2;
    o.n_heads = 4;
    o.n_kv_heads = 2;
    o.head_dim = 64;
    o.max_len = 100;
    o.n_threads = 1;
    return o;
}

static void assert_refused(sr_status got, sr_status want, const sr_error *err, const char *word,
                           const char *value)
{
    assert_int_equal(got, want);
    assert_int_equal(err->status, want);
    if (!strstr(err->text, word) || !strstr(err->text, value))
        fail_msg("\"%s\" does not name %s %s", err->text, word, value);
}

static void test_options_refused(void **state)
{
    sr_attention_options o;
    sr_attention *a = NULL;
    sr_error err;
    double nan_freq[32] = {1};
    nan_freq[7] = NAN;
    (void)state;
    static const struct {
        size_t at;
        int32_t value;
        sr_status want;
        const char *word, *text;
    } rows[] = {
        {offsetof(sr_attention_options, n_layers), 0, SR_ERR_USAGE, "n_layers", "0"},
        {offsetof(sr_attention_options, n_layers), -3, SR_ERR_USAGE, "n_layers", "-3"},
        {offsetof(sr_attention_options, n_heads), 0, SR_ERR_USAGE, "n_heads", "0"},
        {offsetof(sr_attention_options, n_heads), 5, SR_ERR_USAGE, "n_heads", "5"},
        {offsetof(sr_attention_options, n_heads), 34, SR_ERR_UNSUPPORTED, "query heads per KV head", "17"},
        {offsetof(sr_attention_options, n_kv_heads), 0, SR_ERR_USAGE, "n_kv_heads", "0"},
        {offsetof(sr_attention_options, head_dim), 60, SR_ERR_UNSUPPORTED, "head_dim", "60"},
        {offsetof(sr_attention_options, head_dim), 264, SR_ERR_UNSUPPORTED, "head_dim", "264"},
        {offsetof(sr_attention_options, head_dim), 0, SR_ERR_UNSUPPORTED, "head_dim", "0"},
        {offsetof(sr_attention_options, max_len), 0, SR_ERR_USAGE, "max_len", "0"},
        {offsetof(sr_attention_options, n_threads), -1, SR_ERR_USAGE, "", "-1"},
        {offsetof(sr_attention_options, n_threads), 100000, SR_ERR_USAGE, "", "100000"},
        {offsetof(sr_attention_options, k_type), SR_DTYPE_Q4_K, SR_ERR_UNSUPPORTED, "k_type", "q4_K"},
        {offsetof(sr_attention_options, v_type), 99, SR_ERR_UNSUPPORTED, "v_type", "99"},
        {offsetof(sr_attention_options, rope_kind), 3, SR_ERR_USAGE, "rope_kind", "3"},
        {offsetof(sr_attention_options, rope_dims), 66, SR_ERR_USAGE, "rope dims", "66"},
        {offsetof(sr_attention_options, rope_dims), 7, SR_ERR_USAGE, "rope_dims", "7"},
        {offsetof(sr_attention_options, route.mode), SR_ROUTE_TOPP + 1, SR_ERR_USAGE, "mode", "11"},
        {offsetof(sr_attention_options, route.window), 0, SR_ERR_USAGE, "window", "0"},
        {offsetof(sr_attention_options, route.window), 65537, SR_ERR_USAGE, "window", "65537"},
        {offsetof(sr_attention_options, route.n_sinks), -1, SR_ERR_USAGE, "n_sinks", "-1"},
        {offsetof(sr_attention_options, route.n_sinks), 1025, SR_ERR_USAGE, "n_sinks", "1025"},
        {offsetof(sr_attention_options, route.min_len), -1, SR_ERR_USAGE, "min_len", "-1"},
        {offsetof(sr_attention_options, route.rank), 65, SR_ERR_USAGE, "rank", "65"},
        {offsetof(sr_attention_options, route.rank), -1, SR_ERR_USAGE, "rank", "-1"},
        {offsetof(sr_attention_options, route.bits), 5, SR_ERR_USAGE, "bits", "5"},
        {offsetof(sr_attention_options, route.mode), SR_ROUTE_PAPER, SR_ERR_USAGE, "paper", "--route-tau"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        o = small();
        memcpy((char *)&o + rows[i].at, &rows[i].value, 4);
        assert_refused(sr_attention_new(&a, &o, &err), rows[i].want, &err, rows[i].word, rows[i].text);
        assert_null(a);
    }
    static const float bad_eps[] = {0, 1, -1, NAN, INFINITY}, bad_audit[] = {-.1f, 1.5f, NAN};
    for (int i = 0; i < 8; i++) {
        o = small();
        if (i < 5)
            o.route.eps = bad_eps[i];
        else
            o.route.audit = bad_audit[i - 5];
        assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_USAGE, &err, i < 5 ? "eps" : "audit", "");
    }
    o = small();
    o.rope_base = -1;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_USAGE, &err, "rope_base", "-1");
    o.rope_inv_freq = nan_freq;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_USAGE, &err, "inv_freq[7]", "nan");
    o = small();
    o.head_dim = 80;
    o.k_type = SR_DTYPE_Q8_0;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_UNSUPPORTED, &err, "k_type q8_0", "80");
    o.k_type = SR_DTYPE_F16;
    o.v_type = SR_DTYPE_Q4_0;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_UNSUPPORTED, &err, "v_type q4_0", "80");
    o.head_dim = 64;
    o.v_type = SR_DTYPE_Q4_1;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_UNSUPPORTED, &err, "v_type q4_1", "q4_0 or fp8");
    o = small();
    o.route.mode = SR_ROUTE_PAPER;
    o.route.tau_set = 1;
    o.route.tau[1] = 1;
    o.route.tau_scale = 0;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_USAGE, &err, "tau_scale", "0");
    o.route.tau_scale = 1;
    o.route.tau_min_len = 1e9;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_USAGE, &err, "tau_min_len", "1e+09");
    o.route.tau[2] = NAN;
    assert_refused(sr_attention_new(&a, &o, &err), SR_ERR_USAGE, &err, "tau[2]", "nan");
    o = small();
    assert_refused(sr_attention_new(NULL, &o, &err), SR_ERR_USAGE, &err, "out", "NULL");
    assert_refused(sr_attention_new(&a, NULL, &err), SR_ERR_USAGE, &err, "options", "NULL");
    assert_int_equal(sr_attention_new(&a, NULL, NULL), SR_ERR_USAGE);
}

static void test_names(void **state)
{
    sr_route_mode m;
    sr_error err;
    (void)state;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(sr_route_mode_find(&m, sr_route_mode_name((sr_route_mode)i), &err), SR_OK);
        assert_int_equal(m, i);
    }
    assert_null(sr_route_mode_name((sr_route_mode)(SR_ROUTE_TOPP + 1)));
    assert_refused(sr_route_mode_find(&m, "Mass\n", &err), SR_ERR_USAGE, &err, "Mass\\x0a",
                   "dense, mass, paper or window");
    assert_refused(sr_route_mode_find(&m, NULL, &err), SR_ERR_USAGE, &err, "name", "NULL");
}

static void test_calls_refused(void **state)
{
    sr_attention_options o = small();
    sr_attention *a;
    sr_error err;
    float kv[100 * 128] = {0}, q[256] = {0}, out[256];
    (void)state;
    assert_int_equal(sr_attention_new(&a, &o, &err), SR_OK);
    assert_refused(sr_attention_append(NULL, 0, kv, kv, 1, &err), SR_ERR_USAGE, &err, "attention", "NULL");
    assert_refused(sr_attention_append(a, 2, kv, kv, 1, &err), SR_ERR_USAGE, &err, "layer 2", "0..1");
    assert_refused(sr_attention_append(a, -1, kv, kv, 1, &err), SR_ERR_USAGE, &err, "layer -1", "0..1");
    assert_refused(sr_attention_append(a, 0, NULL, kv, 1, &err), SR_ERR_USAGE, &err, "k is", "NULL");
    assert_refused(sr_attention_append(a, 0, kv, NULL, 1, &err), SR_ERR_USAGE, &err, "v is", "NULL");
    assert_refused(sr_attention_append(a, 0, kv, kv, -1, &err), SR_ERR_USAGE, &err, "n", "-1");
    assert_refused(sr_attention_append(a, 0, kv, kv, 101, &err), SR_ERR_USAGE, &err, "101", "max_len 100");
    assert_refused(sr_attention_decode(a, 0, q, out, &err), SR_ERR_USAGE, &err, "layer 0", "no tokens");
    assert_int_equal(sr_attention_append(a, 0, NULL, NULL, 0, &err), SR_OK);
    assert_int_equal(sr_attention_append(a, 0, kv, kv, 60, &err), SR_OK);
    assert_refused(sr_attention_append(a, 0, kv, kv, 41, &err), SR_ERR_USAGE, &err, "60 tokens, 41", "100");
    assert_refused(sr_attention_append(a, 0, kv, kv, INT32_MAX, &err), SR_ERR_USAGE, &err, "2147483647",
                   "100");
    assert_int_equal(sr_attention_len(a, 0), 60); /* unchanged */
    assert_int_equal(sr_attention_len(a, 1), 0);
    assert_int_equal(sr_attention_len(a, 2) + sr_attention_len(NULL, 0), 0);
    assert_refused(sr_attention_prefill(a, 0, q, 61, out, &err), SR_ERR_USAGE, &err, "n 61", "0..60");
    assert_refused(sr_attention_prefill(a, 0, q, -1, out, &err), SR_ERR_USAGE, &err, "n -1", "0..60");
    assert_refused(sr_attention_prefill(a, 0, NULL, 1, out, &err), SR_ERR_USAGE, &err, "q is", "NULL");
    assert_refused(sr_attention_prefill(a, 0, q, 1, NULL, &err), SR_ERR_USAGE, &err, "out is", "NULL");
    assert_refused(sr_attention_decode(a, 0, NULL, out, &err), SR_ERR_USAGE, &err, "q is", "NULL");
    assert_refused(sr_attention_decode(a, 0, q, NULL, &err), SR_ERR_USAGE, &err, "out is", "NULL");
    assert_refused(sr_attention_truncate(a, -1, &err), SR_ERR_USAGE, &err, "-1", "negative");
    assert_refused(sr_attention_route_set(a, NULL, &err), SR_ERR_USAGE, &err, "route", "NULL");
    assert_refused(sr_attention_moments_load(a, NULL, &err), SR_ERR_USAGE, &err, "path", "NULL");
    assert_refused(sr_attention_moments_load(a, "/nonexistent/m", &err), SR_ERR_IO, &err, "/nonexistent/m",
                   "");
    assert_refused(sr_attention_moments_save(a, NULL, &err), SR_ERR_USAGE, &err, "path", "NULL");
    assert_refused(sr_attention_moments_save(a, "/tmp/x", &err), SR_ERR_USAGE, &err, "0 of 2044", "");
    sr_attention_stats(NULL, NULL);
    sr_attention_stats_reset(NULL);
    sr_attention_memory(NULL, NULL, NULL);
    sr_attention_free(NULL);
    sr_attention_free(a);
}

/* The whole path through the public header: one block prefill, steps, moments written and read. */
static void test_public_equals_inner(void **state)
{
    enum { N = 2110, FROM = 2100, STRIDE = 4 * 64 };
    struct attn_world *w = sr_world_new(2, 2, 2, 64, N, 17);
    struct attn_bench b;
    sr_attention_options o = small();
    sr_attention *a, *c;
    sr_error err = {SR_OK, ""};
    sr_route_stats mine, inner;
    float *pre = malloc(sizeof *pre * N * STRIDE), *want = malloc(2 * sizeof *want * N * STRIDE), out[STRIDE],
          other[STRIDE], step[2 * STRIDE];
    char path[] = "/tmp/sr-api-XXXXXX";
    int fd = mkstemp(path);
    (void)state;
    assert_true(pre && want && fd >= 0);
    close(fd);
    o.max_len = N;
    o.route.audit = 0.5f;
    assert_int_equal(sr_attention_new(&a, &o, &err), SR_OK);
    sr_bench_open(&b, w, SR_DTYPE_F16, SR_DTYPE_F16, &o.route, 2, NULL);
    sr_bench_prefill(&b, w, 0, FROM, 300, want);
    for (int l = 0; l < 2; l++) {
        assert_int_equal(sr_attention_append(a, l, sr_world_k(w, l, 0), sr_world_v(w, l, 0), FROM, &err),
                         SR_OK);
        assert_int_equal(sr_attention_prefill(a, l, sr_world_q(w, l, 0), FROM, pre, &err), SR_OK);
        assert_memory_equal(pre, want + (size_t)l * N * STRIDE, sizeof *pre * FROM * STRIDE);
    }
    assert_int_equal(sr_attention_moments_save(a, path, &err), SR_OK);
    assert_int_equal(sr_attention_new(&c, &o, &err), SR_OK);
    assert_int_equal(sr_attention_moments_load(c, path, &err), SR_OK);
    for (int l = 0; l < 2; l++)
        assert_int_equal(sr_attention_append(c, l, sr_world_k(w, l, 0), sr_world_v(w, l, 0), FROM, &err),
                         SR_OK);
    for (int32_t p = FROM; p < N; p++) {
        sr_bench_step(&b, w, p, step);
        for (int l = 0; l < 2; l++) {
            assert_int_equal(sr_attention_append(a, l, sr_world_k(w, l, p), sr_world_v(w, l, p), 1, &err),
                             SR_OK);
            assert_int_equal(sr_attention_decode(a, l, sr_world_q(w, l, p), out, &err), SR_OK);
            assert_memory_equal(out, step + l * STRIDE, sizeof out);
            assert_int_equal(sr_attention_append(c, l, sr_world_k(w, l, p), sr_world_v(w, l, p), 1, &err),
                             SR_OK);
            assert_int_equal(sr_attention_decode(c, l, sr_world_q(w, l, p), other, &err), SR_OK);
            assert_memory_equal(out, other, sizeof out);
        }
    }
    sr_attention_stats(a, &mine);
    sr_attn_seq_stats(b.seq, &inner);
    assert_memory_equal(&mine, &inner, sizeof mine);
    assert_true(mine.units_list > 0 && mine.audits > 0);
    uint64_t kv, sketch;
    sr_attention_memory(a, &kv, &sketch);
    assert_int_equal(kv, 3u * 1024 * 2 * 2 * 64 * 2 * 2);
    assert_true(sketch > 3u * 1024 * 2 * 2 * 8);
    sr_attention_stats_reset(a);
    sr_attention_stats(a, &mine);
    assert_int_equal(mine.units, 0);
    unlink(path);
    sr_attention_free(a);
    sr_attention_free(c);
    sr_bench_close(&b);
    sr_world_free(w);
    free(pre);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_refused),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_calls_refused),
        cmocka_unit_test(test_public_equals_inner),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
