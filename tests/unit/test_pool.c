/* SPDX-License-Identifier: Apache-2.0
 *
 * The pool: each task once, same results for any number of threads, loops so small that threads come late.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/pool.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { N = 1000, MAX_T = 8 };

struct job {
    atomic_int runs[N];
    uint64_t out[N];
    int n_threads;
    atomic_int bad_thread;
};

static void count_task(void *ctx, int32_t task, int32_t thread)
{
    struct job *j = ctx;
    atomic_fetch_add(&j->runs[task], 1);
    uint64_t x = (uint64_t)task;
    for (int i = 0; i < task % 97; i++) x = x * 6364136223846793005u + 1442695040888963407u;
    j->out[task] = x;
    if (thread < 0 || thread >= j->n_threads) atomic_store(&j->bad_thread, 1);
}

static void each_task_once_for_any_threads(void **state)
{
    (void)state;
    static struct job alone, j;
    alone.n_threads = 1;
    sr_pool_run(NULL, N, count_task, &alone);
    for (int t = 1; t <= MAX_T; t++) {
        struct pool *p = NULL;
        assert_int_equal(sr_pool_new(&p, t, NULL), SR_OK);
        assert_int_equal(sr_pool_threads(p), t);
        memset(&j, 0, sizeof j);
        j.n_threads = t;
        sr_pool_run(p, N, count_task, &j);
        for (int i = 0; i < N; i++) assert_int_equal(j.runs[i], 1);
        assert_memory_equal(j.out, alone.out, sizeof j.out);
        assert_int_equal(j.bad_thread, 0);
        sr_pool_free(p);
    }
}

struct order {
    int32_t seen[MAX_T][N]; /* tasks in the order that each thread had them */
    int n_seen[MAX_T];
    atomic_int n_started;
};

/* Nobody goes on before every thread has its first task. */
static void order_task(void *ctx, int32_t task, int32_t thread)
{
    struct order *o = ctx;
    if (o->n_seen[thread] == 0) atomic_fetch_add(&o->n_started, 1);
    o->seen[thread][o->n_seen[thread]++] = task;
    while (atomic_load(&o->n_started) < 4) usleep(10);
}

static void threads_begin_apart_and_go_on_in_order(void **state)
{
    (void)state;
    static struct order o;
    struct pool *p = NULL;
    assert_int_equal(sr_pool_new(&p, 4, NULL), SR_OK);
    sr_pool_run(p, N, order_task, &o);
    for (int t = 0; t < 4; t++) {
        assert_int_equal(o.seen[t][0], t * N / 4);
        for (int i = 1; i < o.n_seen[t] && o.seen[t][i] / (N / 4) == t; i++) assert_true(o.seen[t][i] > o.seen[t][i - 1]);
    }
    sr_pool_free(p);
}

/* Each loop has its own context on the stack: a late thread that ran an old loop's task would write into it.
 */
struct tiny {
    int64_t loop;
    int64_t out[4];
};

static void tiny_task(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    struct tiny *t = ctx;
    t->out[task] = t->loop * 4 + task;
}

static void many_tiny_loops(void **state)
{
    (void)state;
    for (int threads = 2; threads <= MAX_T; threads += 2) {
        struct pool *p = NULL;
        assert_int_equal(sr_pool_new(&p, threads, NULL), SR_OK);
        int n_loops = threads == 2 ? 20000 : 3000;
        for (int i = 0; i < n_loops; i++) {
            struct tiny t = {.loop = i, .out = {-1, -1, -1, -1}};
            int n = i % 5; /* 0 and 1 too */
            sr_pool_run(p, n, tiny_task, &t);
            for (int k = 0; k < 4; k++) assert_int_equal(t.out[k], k < n ? (int64_t)i * 4 + k : -1);
        }
        sr_pool_free(p);
    }
}

static void sleeping_threads_wake(void **state)
{
    (void)state;
    static struct job j;
    struct pool *p = NULL;
    assert_int_equal(sr_pool_new(&p, 4, NULL), SR_OK);
    for (int round = 0; round < 5; round++) {
        nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL); /* far beyond the spinning */
        memset(&j, 0, sizeof j);
        j.n_threads = 4;
        sr_pool_run(p, N, count_task, &j);
        for (int i = 0; i < N; i++) assert_int_equal(j.runs[i], 1);
    }
    sr_pool_free(p);
}

/* Two tasks that wait for each other end only if two threads run them at once. */
static void meet_task(void *ctx, int32_t task, int32_t thread)
{
    (void)task;
    (void)thread;
    atomic_int *here = ctx;
    atomic_fetch_add(here, 1);
    for (int i = 0; i < 20000 && atomic_load(here) < 2; i++)
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
}

static void tasks_run_at_once(void **state)
{
    (void)state;
    struct pool *p = NULL;
    atomic_int here = 0;
    assert_int_equal(sr_pool_new(&p, 2, NULL), SR_OK);
    sr_pool_run(p, 2, meet_task, &here);
    assert_int_equal(here, 2);
    sr_pool_free(p);
}

static void limits_are_refused(void **state)
{
    (void)state;
    struct pool *p = NULL;
    sr_error err;
    assert_int_equal(sr_pool_new(&p, -1, &err), SR_ERR_USAGE);
    assert_int_equal(sr_pool_new(&p, 513, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "513"));
    assert_non_null(strstr(err.text, "512"));
    assert_null(p);
    assert_int_equal(sr_pool_new(&p, 0, &err), SR_OK);
    assert_true(sr_pool_threads(p) >= 1 && sr_pool_threads(p) <= sysconf(_SC_NPROCESSORS_CONF));
    sr_pool_free(p);
    p = NULL;
    sr_alloc_fail_at(1);
    assert_int_equal(sr_pool_new(&p, 2, &err), SR_ERR_RESOURCE);
    sr_alloc_fail_at(0);
    assert_null(p);
    sr_pool_free(NULL);
}

static void limit_keeps_the_others_out(void **state)
{
    (void)state;
    static struct job j;
    struct pool *p = NULL;
    assert_int_equal(sr_pool_new(&p, 4, NULL), SR_OK);
    for (int limit = 1; limit <= 4; limit++) {
        memset(&j, 0, sizeof j);
        j.n_threads = limit;
        sr_pool_limit(p, limit);
        sr_pool_run(p, N, count_task, &j);
        for (int i = 0; i < N; i++) assert_int_equal(j.runs[i], 1);
        assert_int_equal(j.bad_thread, 0);
    }
    sr_pool_limit(p, 0);
    assert_int_equal(sr_pool_threads(p), 4);
    sr_pool_free(p);
}

static void runs_do_not_allocate(void **state)
{
    (void)state;
    static struct job j;
    struct pool *p = NULL;
    assert_int_equal(sr_pool_new(&p, 3, NULL), SR_OK);
    uint64_t before = sr_alloc_count();
    j.n_threads = 3;
    for (int i = 0; i < 20; i++) sr_pool_run(p, N, count_task, &j);
    assert_int_equal(sr_alloc_count(), before);
    sr_pool_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_task_once_for_any_threads),
        cmocka_unit_test(threads_begin_apart_and_go_on_in_order), cmocka_unit_test(many_tiny_loops),
        cmocka_unit_test(sleeping_threads_wake),
        cmocka_unit_test(tasks_run_at_once),
        cmocka_unit_test(limits_are_refused),
        cmocka_unit_test(limit_keeps_the_others_out),
        cmocka_unit_test(runs_do_not_allocate),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
