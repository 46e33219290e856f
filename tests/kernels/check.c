/* SPDX-License-Identifier: Apache-2.0
 *
 * Buffers, comparisons and timing of the kernel checker.
 */
#include "check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct check *sr_check_now;

/* ---- buffers ---------------------------------------------------------------------------------------------------- */

enum { CANARY_BYTES = 256, CANARY = 0x5c, UNWRITTEN = 0xa5 };

struct check_buffer {
    struct check_buffer *next;
    uint8_t *map;
    size_t map_bytes;
    uint8_t *data;
    size_t bytes;
    int ringed;
};

/* The block ends `tail` bytes before an unreadable page and is aligned as far as its size allows. */
static uint8_t *add_buffer(struct check *c, size_t bytes, size_t tail)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct check_buffer *b = malloc(sizeof(*b));
    const size_t used = (bytes + tail + CANARY_BYTES + 64 + page - 1) / page * page;
    uint8_t *map = mmap(NULL, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!b || map == MAP_FAILED || mprotect(map + used, page, PROT_NONE)) {
        puts("Bail out! no memory for a test buffer");
        exit(1);
    }
    *b = (struct check_buffer){c->buffers, map, used + page, map + used - tail - bytes, bytes, tail > 0};
    c->buffers = b;
    return b->data;
}

void *sr_check_in(struct check *c, size_t bytes) { return add_buffer(c, bytes, 0); }

void *sr_check_out(struct check *c, size_t bytes)
{
    uint8_t *p = add_buffer(c, bytes, 64);
    memset(p - CANARY_BYTES, CANARY, CANARY_BYTES);
    memset(p + bytes, CANARY, 64);
    memset(p, UNWRITTEN, bytes);
    return p;
}

static int ring_intact(const struct check_buffer *b)
{
    for (int i = 1; i <= CANARY_BYTES; i++)
        if (b->data[-i] != CANARY) return 0;
    for (int i = 0; i < 64; i++)
        if (b->data[b->bytes + (size_t)i] != CANARY) return 0;
    return 1;
}

void sr_check_free_buffers(struct check *c)
{
    while (c->buffers) {
        struct check_buffer *b = c->buffers;
        if (b->ringed && !ring_intact(b)) sr_check_fail(c, "written outside an output of %zu bytes", b->bytes);
        c->buffers = b->next;
        munmap(b->map, b->map_bytes);
        free(b);
    }
}

double sr_check_normal(struct check *c)
{
    const double u = 1.0 - sr_rng_unit(&c->rng), v = sr_rng_unit(&c->rng);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

void sr_check_fill_normal(struct check *c, float *x, int64_t n, double scale)
{
    for (int64_t i = 0; i < n; i++) x[i] = (float)(scale * sr_check_normal(c));
}

int64_t sr_check_pick(struct check *c, int64_t n) { return (int64_t)(sr_rng_u64(&c->rng) % (uint64_t)n); }

/* ---- verdicts ---------------------------------------------------------------------------------------------------- */

void sr_check_fail(struct check *c, const char *fmt, ...)
{
    va_list ap;
    if (c->n_failed++) return;
    va_start(ap, fmt);
    vsnprintf(c->why, sizeof(c->why), fmt, ap);
    va_end(ap);
}

int sr_check_near(struct check *c, const char *what, int64_t index, double got, double want, double tol)
{
    if (isnan(got) && isnan(want)) return 1;
    if ((isinf(got) || isinf(want)) && got == want) return 1;
    if (isfinite(got) && isfinite(want) && fabs(got - want) <= tol) return 1;
    sr_check_fail(c, "%s [%lld]: %.9g, want %.9g, tolerance %.3g", what, (long long)index, got, want, tol);
    return 0;
}

int sr_check_same(struct check *c, const char *what, const void *got, const void *want, size_t bytes)
{
    const uint8_t *g = got, *w = want;
    for (size_t i = 0; i < bytes; i++) {
        if (g[i] == w[i]) continue;
        sr_check_fail(c, "%s: byte %zu of %zu is 0x%02x, want 0x%02x", what, i, bytes, g[i], w[i]);
        return 0;
    }
    return 1;
}

void sr_check_spoil(float *x) { *x += 0.02f * fabsf(*x) + 1e-3f; }

/* ---- bench -------------------------------------------------------------------------------------------------------- */

enum { MAX_RUNS = 401, MIN_RUNS = 5 };
static const double bench_seconds = 0.2;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void sr_check_time(struct check *c, const char *label, double bytes, double flop, void (*call)(void *ctx), void *ctx)
{
    static double runs[MAX_RUNS];
    int n = 0;
    call(ctx);
    for (double start = now(); n < MAX_RUNS && (n < MIN_RUNS || now() - start < bench_seconds); n++) {
        const double t = now();
        call(ctx);
        runs[n] = now() - t;
    }
    qsort(runs, (size_t)n, sizeof(runs[0]), by_value);
    const double median = runs[n / 2];
    printf("%-16s %-7s %-28s %10.2f us (best %10.2f)", c->family, sr_cpu_isa_name(c->isa), label, 1e6 * median, 1e6 * runs[0]);
    if (bytes > 0) printf(" %8.2f GB/s", 1e-9 * bytes / median);
    if (flop > 0) printf(" %8.1f GFLOP/s", 1e-9 * flop / median);
    putchar('\n');
}
