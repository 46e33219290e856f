/* SPDX-License-Identifier: Apache-2.0
 *
 * The public measure.h: what is refused, what fails without memory, and rows by lot. What it measures is seen by
 * tests/cli/test_op.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "attention/timeline.h"
#include "base/memory.h"
#include "sinkrouter/measure.h"

static sr_probe_options small(void)
{
    return (sr_probe_options){.device = "none", .n_threads = 1, .n_heads = 4, .n_kv_heads = 2, .head_dim = 32, .len = 2500,
                              .k_type = SR_DTYPE_F16, .v_type = SR_DTYPE_Q8_0, .bytes = 1 << 16};
}

static sr_route_options mass(void)
{
    sr_route_options r = sr_route_options_default();
    r.mode = SR_ROUTE_MASS;
    r.audit = 0;
    r.keep = 0.25f;
    return r;
}

static void test_refused(void **state)
{
    sr_probe *p = NULL;
    sr_probe_result r;
    sr_error err;
    (void)state;
    sr_probe_options o = small();
    const sr_route_options route = mass();
    assert_int_equal(sr_probe_new(NULL, &o, &err), SR_ERR_USAGE);
    assert_int_equal(sr_probe_new(&p, NULL, &err), SR_ERR_USAGE);
    o.len = 0;
    assert_int_equal(sr_probe_new(&p, &o, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "len 0"));
    o = small();
    o.n_heads = 5;
    assert_int_equal(sr_probe_new(&p, &o, &err), SR_ERR_USAGE);
    o = small();
    o.device = "abacus";
    assert_int_equal(sr_probe_new(&p, &o, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "abacus"));
    assert_null(p);
    o = small();
    assert_int_equal(sr_probe_new(&p, &o, &err), SR_OK);
    assert_int_equal(sr_probe_run(NULL, &route, 0, 1, NULL, &r, &err), SR_ERR_USAGE);
    assert_int_equal(sr_probe_run(p, NULL, 0, 1, NULL, &r, &err), SR_ERR_USAGE);
    assert_int_equal(sr_probe_run(p, &route, 0, 1, NULL, NULL, &err), SR_ERR_USAGE);
    assert_int_equal(sr_probe_run(p, &route, 0, 0, NULL, &r, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "0 runs"));
    assert_int_equal(sr_probe_run(p, &route, 3, 1, NULL, &r, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "3 KV heads"));
    assert_int_equal(sr_probe_run(p, &route, 0, 1, NULL, &r, &err), SR_OK);
    assert_int_equal(r.n_threads, 1);
    assert_non_null(strstr(sr_probe_backend(p), "cpu"));
    sr_probe_free(p);
    sr_probe_free(NULL);
}

/* The n-th allocation fails: a clean error, and all of it is given back (the sanitizers look). */
static void test_memory(void **state)
{
    const sr_probe_options o = small();
    const sr_route_options route = mass();
    sr_probe_result r;
    int n_failed = 0;
    (void)state;
    for (uint64_t n = 1;; n++) {
        sr_probe *p = NULL;
        sr_error err = {SR_OK, ""};
        sr_alloc_fail_at(n);
        sr_status st = sr_probe_new(&p, &o, &err);
        if (st == SR_OK) st = sr_probe_run(p, &route, 0, 1, NULL, &r, &err);
        sr_alloc_fail_at(0);
        sr_probe_free(p);
        if (st == SR_OK) break;
        assert_int_equal(st, SR_ERR_RESOURCE);
        assert_true(err.text[0] != '\0');
        n_failed++;
    }
    assert_true(n_failed > 20);
}

/* A longer context's lot holds a shorter one's; another seed draws other rows. */
static void test_lot(void **state)
{
    enum { LEN = 5000, PART = 1234 };
    struct backend *b;
    struct attention *a;
    struct attn_seq *s;
    int32_t n, m, first[LEN];
    (void)state;
    const struct attention_config c = {.n_layers = 1, .n_heads = 2, .n_kv_heads = 2, .head_dim = 32};
    struct attn_seq_config sc = {SR_DTYPE_F16, SR_DTYPE_F16, LEN, mass()};
    assert_int_equal(sr_backend_cpu_open(&b, 1, NULL), SR_OK);
    assert_int_equal(sr_attn_new(&a, b, &c, NULL), SR_OK);
    assert_int_equal(sr_attn_seq_new(&s, a, &sc, NULL), SR_OK);
    assert_int_equal(sr_attn_seq_reserve(s, LEN, NULL), SR_OK);
    const int32_t *rows = sr_lot_get(s, PART, &m);
    memcpy(first, rows, (size_t)m * sizeof *first);
    rows = sr_lot_get(s, LEN, &n);
    assert_true(abs(n - LEN / 4) < 5 * 31); /* five standard deviations: sqrt(5000 * 0.25 * 0.75) = 31 */
    for (int32_t i = 0; i < n; i++) assert_true(rows[i] < LEN && (i == 0 || rows[i] > rows[i - 1]));
    assert_true(m < n && rows[m] >= PART && rows[m - 1] < PART);
    assert_memory_equal(first, rows, (size_t)m * sizeof *first);
    sc.route.seed = 9;
    assert_int_equal(sr_attn_seq_route_set(s, &sc.route, NULL), SR_OK);
    rows = sr_lot_get(s, PART, &n);
    assert_true(n != m || memcmp(rows, first, (size_t)m * sizeof *first) != 0);
    sr_attn_seq_free(s);
    sr_attn_free(a);
    sr_backend_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refused), cmocka_unit_test(test_memory), cmocka_unit_test(test_lot)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
