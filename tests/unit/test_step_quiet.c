/* SPDX-License-Identifier: Apache-2.0
 *
 * A decoded token asks nothing of the C library's heap and takes no lock: malloc and its kin and pthread_mutex_lock are
 * replaced by ones that count, for the whole program and whatever library calls them. Locks are looked at with one
 * thread; more of them meet in atomics alone unless one has nothing to do for 40 us and goes to sleep.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

#include "sinkrouter/engine.h"
#include "tiny_model.h"

static atomic_long n_blocks, n_locks;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_COUNTED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define IS_COUNTED 0
#endif
#endif
#ifndef IS_COUNTED
#define IS_COUNTED 1
#endif

#if IS_COUNTED
/* glibc's own names for what is replaced */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

void *malloc(size_t n)
{
    atomic_fetch_add(&n_blocks, 1);
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size)
{
    atomic_fetch_add(&n_blocks, 1);
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n)
{
    atomic_fetch_add(&n_blocks, 1);
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t align, size_t n)
{
    atomic_fetch_add(&n_blocks, 1);
    return __libc_memalign(align, n);
}
int posix_memalign(void **out, size_t align, size_t n)
{
    atomic_fetch_add(&n_blocks, 1);
    *out = __libc_memalign(align, n);
    return *out ? 0 : 12;
}
int pthread_mutex_lock(pthread_mutex_t *m)
{
    static int (*real)(pthread_mutex_t *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_mutex_lock");
    atomic_fetch_add(&n_locks, 1);
    return real(m);
}
#endif

enum { PROMPT = 2100, TOKENS = 60, LAST_STEP_BEFORE_A_CHUNK_ENDS = 3072 };

static sr_error err;
#define OK(call) assert_int_equal((call), SR_OK)

static int32_t text[PROMPT];

static sr_model *open_model(int n_threads)
{
    struct tiny_spec spec = tiny_spec_default();
    sr_model_options o = sr_model_options_default();
    sr_model *m;
    spec.n_ctx = 4096;
    o.n_threads = n_threads;
    o.device = "none";
    const char *path = tiny_path("quiet.gguf");
    tiny_model_write(path, &spec);
    tiny_tokens(5, text, PROMPT);
    OK(sr_model_open(&m, path, &o, &err));
    return m;
}

static sr_route_options route_of(sr_route_mode mode)
{
    sr_route_options r = sr_route_options_default();
    r.mode = mode;
    r.window = 64;
    r.audit = 0.2f;
    r.tau_set = 1; /* paper */
    return r;
}

/* What TOKENS tokens, decoded and sampled, add to the counts. */
static void count_tokens(sr_session *s, sr_sampler *p, long *blocks, long *locks)
{
    int32_t id = 1;
    for (int i = 0; i < 3; i++) OK(sr_session_decode(s, text[i], &err)); /* bases, sketch rows, recent tokens */
    OK(sr_sampler_next(p, sr_session_logits(s), text, 64, &id, &err));
    const long blocks_before = atomic_load(&n_blocks), locks_before = atomic_load(&n_locks);
    for (int i = 0; i < TOKENS; i++) {
        OK(sr_session_decode(s, id, &err));
        OK(sr_sampler_next(p, sr_session_logits(s), text, 64, &id, &err));
    }
    *blocks = atomic_load(&n_blocks) - blocks_before;
    *locks = atomic_load(&n_locks) - locks_before;
}

static void tokens_are_quiet(void **state)
{
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_WINDOW, SR_ROUTE_PAPER, SR_ROUTE_MASS};
    (void)state;
    if (!IS_COUNTED) skip();
    for (int n_threads = 1; n_threads <= 2; n_threads++) {
        sr_model *m = open_model(n_threads);
        for (int i = 0; i < 4; i++) {
            sr_session_options o = sr_session_options_default();
            sr_sampler_options so = sr_sampler_options_default();
            sr_session *s;
            sr_sampler *p;
            long blocks, locks;
            o.route = route_of(modes[i]);
            OK(sr_session_new(&s, m, &o, &err));
            OK(sr_sampler_new(&p, &so, TINY_VOCAB, &err));
            OK(sr_session_prefill(s, text, PROMPT, NULL, NULL, NULL, &err));
            count_tokens(s, p, &blocks, &locks);
            assert_int_equal(blocks, 0);
            if (n_threads == 1) assert_int_equal(locks, 0);
            assert_true(sr_session_len(s) < LAST_STEP_BEFORE_A_CHUNK_ENDS);
            sr_sampler_free(p);
            sr_session_free(s);
        }
        sr_model_close(m);
    }
}

/* The counters count: a session, which allocates, and threads, which are started under a lock. */
static void counters_work(void **state)
{
    (void)state;
    if (!IS_COUNTED) skip();
    const long blocks = atomic_load(&n_blocks), locks = atomic_load(&n_locks);
    sr_model *m = open_model(2);
    assert_true(atomic_load(&n_blocks) > blocks + 10);
    sr_model_close(m);
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    pthread_mutex_unlock(&lock);
    assert_true(atomic_load(&n_locks) > locks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(counters_work), cmocka_unit_test(tokens_are_quiet)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
