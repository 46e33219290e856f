/* SPDX-License-Identifier: Apache-2.0
 *
 * The thread pool. The tasks of a loop are cut into as many ranges as threads may take part, and a counter deals each of
 * them: whoever takes it from k > 0 to k - 1 owns the k-th task from the range's end. A thread begins with its own range,
 * so that it works through memory in order (a jump every 32 KB costs a third of the bandwidth), and then helps the others.
 * A successful claim proves that its loop is not over (that task is not done), so what it reads of the loop after the
 * claim is of that loop, and a thread that wakes late finds nothing to claim. No barrier at either end: the caller waits
 * for the tasks, not for the threads.
 */
#include "base/pool.h"
#include "base/memory.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { MAX_THREADS = 512, SPIN_NS = 40000, STACK_BYTES = 4 << 20 };

struct worker {
    struct pool *pool;
    int32_t index; /* the caller is 0 */
    pthread_t thread;
};

struct range {
    _Alignas(64) atomic_int n_left; /* tasks not yet claimed; below 0 after claims that found none */
};

struct pool {
    _Alignas(64) atomic_int n_done;
    _Alignas(64) atomic_uint epoch; /* loops started */
    atomic_int n_asleep;
    atomic_int caller_asleep;
    atomic_int quit;
    atomic_int limit; /* threads below this index take tasks */

    /* The loop: written before the ranges are, read after a claim. */
    int32_t n_tasks, n_ranges;
    pool_fn *fn;
    void *ctx;

    int n_threads, n_started;
    int64_t spin_ns;
    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    struct range *ranges;    /* [n_threads], behind the workers */
    struct worker workers[]; /* [n_threads - 1] */
};

#if defined(__x86_64__) || defined(__i386__)
static void cpu_pause(void) { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
static void cpu_pause(void) { __asm__ volatile("yield"); }
#else
static void cpu_pause(void) {}
#endif

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- how many cores ---- */

static int cpu_quota(void)
{
    long long quota, period;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!f) return MAX_THREADS;
    int n = fscanf(f, "%lld %lld", &quota, &period);
    fclose(f);
    if (n != 2 || period <= 0 || quota <= 0) return MAX_THREADS;
    long long cpus = (quota + period - 1) / period;
    return cpus < MAX_THREADS ? (int)cpus : MAX_THREADS;
}

static int usable_cpus(cpu_set_t *set)
{
    if (sched_getaffinity(0, sizeof *set, set)) {
        CPU_ZERO(set);
        CPU_SET(0, set);
    }
    return CPU_COUNT(set);
}

/* Hyperthreads of a core share their list of siblings, so the first of the list names the core. */
static int physical_cores(void)
{
    cpu_set_t usable, cores;
    int n_cpus = usable_cpus(&usable), quota = cpu_quota();
    CPU_ZERO(&cores);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &usable)) continue;
        char path[96];
        int first = cpu;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        FILE *f = fopen(path, "re");
        if (f) {
            if (fscanf(f, "%d", &first) != 1 || first < 0 || first >= CPU_SETSIZE) first = cpu;
            fclose(f);
        }
        CPU_SET(first, &cores);
    }
    int n = CPU_COUNT(&cores);
    if (n < 1 || n > n_cpus) n = n_cpus;
    if (n > quota) n = quota;
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

/* ---- threads ---- */

/* First task of range i, of n_ranges; of range n_ranges the number of tasks. */
static int32_t range_begin(int32_t n_tasks, int32_t n_ranges, int32_t i) { return (int32_t)((int64_t)n_tasks * i / n_ranges); }

/* Runs what is left of range i; returns how many tasks. */
static int run_range(struct pool *p, int32_t i, int32_t thread)
{
    int n_run = 0;
    while (atomic_load_explicit(&p->ranges[i].n_left, memory_order_relaxed) > 0) {
        int k = atomic_fetch_sub_explicit(&p->ranges[i].n_left, 1, memory_order_acquire);
        if (k <= 0) break;
        p->fn(p->ctx, range_begin(p->n_tasks, p->n_ranges, i + 1) - k, thread);
        n_run++;
    }
    return n_run;
}

static void run_tasks(struct pool *p, int32_t thread)
{
    int n_run = 0;
    for (int32_t i = 0; i < p->n_threads; i++) n_run += run_range(p, (thread + i) % p->n_threads, thread);
    const int32_t n_tasks = n_run ? p->n_tasks : 0;
    /* One loop only: n_done cannot reach n_tasks, and so no next loop can start, before this thread adds. */
    if (n_run == 0 || atomic_fetch_add(&p->n_done, n_run) + n_run != n_tasks) return;
    if (thread != 0 && atomic_load(&p->caller_asleep)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_signal(&p->finished);
        pthread_mutex_unlock(&p->lock);
    }
}

/* Waits until a loop after `seen` has started; returns its number. */
static unsigned wait_epoch(struct pool *p, unsigned seen)
{
    unsigned e;
    for (int64_t end = p->spin_ns ? now_ns() + p->spin_ns : 0; end && now_ns() < end;)
        for (int i = 0; i < 32; i++) {
            if ((e = atomic_load_explicit(&p->epoch, memory_order_acquire)) != seen) return e;
            cpu_pause();
        }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->n_asleep,
                     1); /* before the look at epoch: the caller does the two in the other order */
    while ((e = atomic_load(&p->epoch)) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->n_asleep, 1);
    pthread_mutex_unlock(&p->lock);
    return e;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    for (unsigned seen = 0;;) {
        seen = wait_epoch(w->pool, seen);
        if (atomic_load(&w->pool->quit)) return NULL;
        if (w->index < atomic_load_explicit(&w->pool->limit, memory_order_relaxed)) run_tasks(w->pool, w->index);
    }
}

static void start_epoch(struct pool *p, int n_wanted)
{
    atomic_fetch_add(&p->epoch, 1);
    int asleep = atomic_load(&p->n_asleep);
    if (asleep == 0) return;
    pthread_mutex_lock(&p->lock);
    if (n_wanted >= asleep)
        pthread_cond_broadcast(&p->wake);
    else
        for (int i = 0; i < n_wanted; i++) pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

static void wait_done(struct pool *p, int n_tasks)
{
    for (int64_t end = p->spin_ns ? now_ns() + p->spin_ns : 0; end && now_ns() < end;)
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(&p->n_done, memory_order_acquire) == n_tasks) return;
            cpu_pause();
        }
    if (atomic_load(&p->n_done) == n_tasks) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_asleep, 1);
    while (atomic_load(&p->n_done) != n_tasks) pthread_cond_wait(&p->finished, &p->lock);
    atomic_store(&p->caller_asleep, 0);
    pthread_mutex_unlock(&p->lock);
}

void sr_pool_run(struct pool *p, int32_t n_tasks, pool_fn *fn, void *ctx)
{
    const int limit = p ? atomic_load_explicit(&p->limit, memory_order_relaxed) : 1;
    if (limit == 1 || n_tasks <= 1) {
        for (int32_t i = 0; i < n_tasks; i++) fn(ctx, i, 0);
        return;
    }
    p->n_tasks = n_tasks;
    p->n_ranges = n_tasks < limit ? n_tasks : limit;
    p->fn = fn;
    p->ctx = ctx;
    atomic_store(&p->n_done, 0);
    for (int32_t i = 0; i < p->n_ranges; i++)
        atomic_store_explicit(&p->ranges[i].n_left,
                              range_begin(n_tasks, p->n_ranges, i + 1) - range_begin(n_tasks, p->n_ranges, i), memory_order_release);
    start_epoch(p, limit < p->n_threads ? p->n_threads : n_tasks - 1); /* who is woken cannot be chosen */
    run_tasks(p, 0);
    wait_done(p, n_tasks);
}

/* Signals of the terminal belong to the program's own threads; faults stay with the thread that has them. */
static int start_threads(struct pool *p)
{
    sigset_t block, old;
    pthread_attr_t attr;
    int rc = pthread_attr_init(&attr);
    if (rc) return rc;
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&block);
    sigdelset(&block, SIGBUS);
    sigdelset(&block, SIGSEGV);
    sigdelset(&block, SIGFPE);
    sigdelset(&block, SIGILL);
    pthread_sigmask(SIG_SETMASK, &block, &old);
    for (int i = 0; i < p->n_threads - 1 && rc == 0; i++) {
        p->workers[i].pool = p;
        p->workers[i].index = i + 1;
        rc = pthread_create(&p->workers[i].thread, &attr, worker_main, &p->workers[i]);
        if (rc == 0) p->n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return rc;
}

sr_status sr_pool_new(struct pool **out, int n_threads, sr_error *err)
{
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return sr_fail(err, SR_ERR_USAGE, "threads: %d, want 1..%d, or 0 for one per core", n_threads,
                       MAX_THREADS);
    if (n_threads == 0) n_threads = physical_cores();
    const size_t head = (sizeof(struct pool) + (size_t)(n_threads - 1) * sizeof(struct worker) + 63) / 64 * 64;
    const size_t bytes = head + (size_t)n_threads * sizeof(struct range);
    struct pool *p = sr_alloc_zero(1, bytes);
    if (!p) return sr_fail_memory(err, bytes, "thread pool");
    cpu_set_t usable;
    p->ranges = (struct range *)(void *)((char *)p + head);
    p->n_threads = n_threads;
    atomic_init(&p->limit, n_threads);
    /* With more threads than CPUs a spinning thread only keeps the one that has work from running. */
    p->spin_ns = n_threads <= usable_cpus(&usable) ? SPIN_NS : 0;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->finished, NULL);
    int rc = start_threads(p);
    if (rc) {
        int n = p->n_started;
        sr_pool_free(p);
        return sr_fail(err, SR_ERR_RESOURCE, "threads: started %d of %d: %s", n + 1, n_threads, strerror(rc));
    }
    *out = p;
    return SR_OK;
}

void sr_pool_free(struct pool *p)
{
    if (!p) return;
    atomic_store(&p->quit, 1);
    start_epoch(p, p->n_started);
    for (int i = 0; i < p->n_started; i++) pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    sr_free(p);
}

int sr_pool_threads(const struct pool *p)
{
    return p ? p->n_threads : 1;
}

void sr_pool_limit(struct pool *p, int n_threads)
{
    if (!p) return;
    atomic_store(&p->limit, n_threads < 1 || n_threads > p->n_threads ? p->n_threads : n_threads);
}
