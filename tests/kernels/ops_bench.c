/* SPDX-License-Identifier: Apache-2.0
 *
 * The keys are made so that logits have a standard deviation of 3, nearly all of it in the coordinates of the sketch:
 * then about 1 key in 20 holds nine tenths of the mass.
 */
#include "ops_bench.h"

#include "base/memory.h"
#include "base/pool.h"
#include "ops_units.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_UNITS = 8, MAX_CHUNKS = 32, N_SINKS = 4, WINDOW = 256, RUNS = 15, STACK_BYTES = 192 << 20 };

struct layer {
    struct attn_unit unit[MAX_UNITS];
    void *k[MAX_UNITS][MAX_CHUNKS], *v[MAX_UNITS][MAX_CHUNKS], *y[MAX_UNITS][MAX_CHUNKS];
};

struct stack {
    struct backend *b;
    struct attn_shape shape;
    struct sketch_shape sketch;
    int32_t n_layers, n_units, len;
    struct layer *layer;
    struct sketch_basis basis[MAX_UNITS];
    float *q, *o, *m, *l, eps[MAX_UNITS], *unread;
    int32_t *list[MAX_UNITS], n_list[MAX_UNITS];
    uint8_t *region;
    size_t region_bytes, used;
    int64_t chosen;
};

/* With one thread its own clock, which a busy machine disturbs less. */
static clockid_t bench_clock = CLOCK_MONOTONIC;

static double now(void)
{
    struct timespec t;
    clock_gettime(bench_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t layer_bytes(const struct stack *s)
{
    const size_t row = s->shape.k_row_bytes + s->shape.v_row_bytes + s->sketch.row_bytes;
    return (size_t)s->n_units * (size_t)((s->len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS) * SR_CHUNK_ROWS * row;
}

static void *take(struct stack *s, size_t bytes)
{
    s->used += bytes;
    return s->region + s->used - bytes;
}

/* One chunk of random rows is made and copied: only its size matters beyond the first layer. */
static void fill_layer(struct stack *s, struct layer *l, const uint8_t *k, const uint8_t *v)
{
    const int32_t width = s->shape.group * s->shape.head_dim, n_chunks = (s->len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS;
    for (int32_t u = 0; u < s->n_units; u++) {
        l->unit[u] = (struct attn_unit){s->q + u * width, {l->k[u]}, {l->v[u]}, {l->y[u]}, s->len};
        for (int32_t c = 0; c < n_chunks; c++) {
            l->k[u][c] = take(s, SR_CHUNK_ROWS * s->shape.k_row_bytes);
            l->v[u][c] = take(s, SR_CHUNK_ROWS * s->shape.v_row_bytes);
            l->y[u][c] = take(s, SR_CHUNK_ROWS * s->sketch.row_bytes);
            memcpy(l->k[u][c], k, SR_CHUNK_ROWS * s->shape.k_row_bytes);
            memcpy(l->v[u][c], v, SR_CHUNK_ROWS * s->shape.v_row_bytes);
        }
    }
}

static void fill(struct stack *s, struct check *c)
{
    const int32_t d = s->shape.head_dim, rank = s->sketch.rank;
    float *identity = sr_check_in(c, (size_t)(d * d) * 4), *step = sr_check_in(c, (size_t)d * 4), *zero = sr_check_in(c, (size_t)d * 4);
    uint8_t *k = sr_check_in(c, SR_CHUNK_ROWS * s->shape.k_row_bytes), *v = sr_check_in(c, SR_CHUNK_ROWS * s->shape.v_row_bytes);
    sr_check_fill_rows(c, s->shape.k_type, k, SR_CHUNK_ROWS, d, 1.0);
    sr_check_fill_rows(c, s->shape.v_type, v, SR_CHUNK_ROWS, d, 1.0);
    for (int32_t i = 0; i < s->n_units * s->shape.group * d; i++) { /* the heads of a group are alike */
        const float first = i / d % s->shape.group ? s->q[i / (s->shape.group * d) * s->shape.group * d + i % d] : 0;
        s->q[i] = first + (float)(sr_check_normal(c) * (first != 0 ? 0.3 : 1) * (i % d < rank ? 3 / sqrt(rank) : 0.05 / sqrt(d)));
    }
    for (int32_t i = 0; i < d; i++) {
        identity[i * d + i] = 1;
        step[i] = 9.0f / 16;
    }
    for (int32_t u = 0; u < s->n_units; u++) s->basis[u] = (struct sketch_basis){zero, identity, identity, step, zero};
    for (int32_t i = 0; i < s->n_layers; i++) {
        fill_layer(s, &s->layer[i], k, v);
        int64_t clipped[MAX_UNITS] = {0};
        int32_t row0[MAX_UNITS] = {0}, row1[MAX_UNITS];
        for (int32_t u = 0; u < s->n_units; u++) row1[u] = s->len;
        s->b->ops->sketch_encode(s->b, &(struct sketch_encode_args){&s->shape, &s->sketch, s->layer[i].unit, s->basis, row0, row1,
                                                                    s->n_units, clipped, NULL});
    }
}

/* ---- what is timed: one pass over all layers ---- */

static void rows_pass(struct stack *s, struct layer *l, enum attn_set set, int merge)
{
    uint8_t sets[MAX_UNITS];
    struct attn_touched touched[MAX_UNITS] = {{0, 0, 0}};
    memset(sets, (int)set, sizeof(sets));
    s->b->ops->attn_rows(s->b, &(struct attn_rows_args){&s->shape, l->unit, sets, (const int32_t *const *)s->list, s->n_list, s->n_units,
                                                        N_SINKS, WINDOW, {s->o, s->m, s->l}, merge, touched});
}

static void choose_pass(struct stack *s, struct layer *l)
{
    uint8_t mask[MAX_UNITS];
    struct attn_touched touched[MAX_UNITS] = {{0, 0, 0}};
    memset(mask, 1, sizeof(mask));
    s->b->ops->sketch_choose(s->b, &(struct sketch_choose_args){
        .shape = &s->shape, .sketch = &s->sketch, .units = l->unit, .basis = s->basis, .mask = mask, .n_units = s->n_units,
        .n_sinks = N_SINKS, .window = WINDOW, .eps = s->eps, .near_state = {s->o, s->m, s->l}, .list = s->list,
        .n_list = s->n_list, .unread = s->unread, .touched = touched});
}

static void dense(struct stack *s)
{
    for (int32_t i = 0; i < s->n_layers; i++) rows_pass(s, &s->layer[i], ATTN_ALL, 0);
}

static void near_and_choose(struct stack *s)
{
    for (int32_t i = 0; i < s->n_layers; i++) {
        rows_pass(s, &s->layer[i], ATTN_NEAR, 0);
        choose_pass(s, &s->layer[i]);
    }
}

static void routed(struct stack *s)
{
    s->chosen = 0;
    for (int32_t i = 0; i < s->n_layers; i++) {
        rows_pass(s, &s->layer[i], ATTN_NEAR, 0);
        choose_pass(s, &s->layer[i]);
        rows_pass(s, &s->layer[i], ATTN_LIST, 1);
        for (int32_t u = 0; u < s->n_units; u++) s->chosen += s->n_list[u];
    }
}

struct read_job { const uint8_t *p; size_t bytes; uint64_t *sums; };
enum { READ_BYTES = 1 << 18 };

static void read_task(void *ctx, int32_t task, int32_t thread)
{
    const struct read_job *j = ctx;
    const uint64_t *p = (const uint64_t *)(const void *)(j->p + (size_t)task * READ_BYTES);
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < READ_BYTES / 8; i += 8)
        for (size_t k = 0; k < 8; k++) sum[k] += p[i + k];
    for (size_t k = 0; k < 8; k++) j->sums[8 * thread] += sum[k];
}

static void plain_read(struct stack *s)
{
    uint64_t sums[8 * 64] = {0};
    struct read_job j = {s->region, s->used, sums};
    sr_pool_run(sr_backend_pool(s->b), (int32_t)(s->used / READ_BYTES), read_task, &j);
    if (sums[0] == 1) puts("#"); /* the sum is used */
}

static double best_of(struct stack *s, void (*pass)(struct stack *))
{
    double best = 1e9;
    for (int i = 0; i < RUNS; i++) {
        const double t = now();
        pass(s);
        best = fmin(best, now() - t);
    }
    return best / s->n_layers;
}

/* ---- shapes ---- */

static void bench_shape(int32_t n_units, int32_t group, int32_t d, sr_dtype type, int32_t len, int n_threads)
{
    struct check c = {.seed = 1};
    struct stack s = {.shape = sr_check_shape(d, group, type, type), .sketch = {d / 4, 4, (size_t)d / 8}, .n_units = n_units, .len = len};
    sr_rng_seed(&c.rng, 1);
    if (sr_backend_cpu_open(&s.b, n_threads, NULL) != SR_OK) exit(1);
    s.n_layers = (int32_t)(STACK_BYTES / layer_bytes(&s)) + 1;
    s.region_bytes = layer_bytes(&s) * (size_t)s.n_layers;
    s.region = sr_region_map(s.region_bytes);
    s.layer = sr_alloc((size_t)s.n_layers * sizeof(*s.layer));
    const size_t heads = (size_t)(n_units * group);
    float *floats = sr_check_in(&c, heads * (size_t)(2 * d + 3) * 4);
    s.q = floats;
    s.o = s.q + heads * (size_t)d;
    s.m = s.o + heads * (size_t)d;
    s.l = s.m + heads;
    s.unread = s.l + heads;
    for (int32_t u = 0; u < n_units; u++) {
        s.list[u] = sr_check_in(&c, (size_t)len * 4);
        s.eps[u] = 0.1f;
    }
    if (!s.region || !s.layer || s.b->ops->attn_reserve(s.b, &s.shape, n_units, len, NULL) != SR_OK) exit(1);
    fill(&s, &c);
    const double kv = (double)n_units * len * (double)(s.shape.k_row_bytes + s.shape.v_row_bytes);
    const double read = best_of(&s, plain_read) / ((double)s.used / s.n_layers), all = best_of(&s, dense);
    const double choice = best_of(&s, near_and_choose), part = best_of(&s, routed);
    printf("%2d/%d d %3d %-4s %5d: dense %8.1f us %6.1f GB/s (plain read %6.1f); routed %7.1f us (near + choice %7.1f), %.1f %% of rows\n",
           n_units * group, n_units, d, sr_check_type_name(type), len, 1e6 * all, 1e-9 * kv / all, 1e-9 / read, 1e6 * part, 1e6 * choice,
           100.0 * (double)s.chosen / ((double)n_units * len * s.n_layers));
    sr_region_unmap(s.region, s.region_bytes);
    sr_free(s.layer);
    sr_backend_close(s.b);
    sr_check_free_buffers(&c);
}

void sr_ops_bench(int n_threads, const char *only)
{
    if (n_threads == 1) bench_clock = CLOCK_THREAD_CPUTIME_ID;
    static const int32_t shapes[][3] = {{8, 4, 128}, {3, 3, 64}, {2, 7, 64}};
    static const sr_dtype types[] = {SR_DTYPE_F16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0};
    for (int i = 0; i < 3; i++)
        for (int t = 0; t < 3; t++) {
            if (only && strcmp(only, sr_check_type_name(types[t])) != 0) continue;
            for (int32_t len = 4096; len <= 32768; len *= len == 4096 ? 2 : 4)
                bench_shape(shapes[i][0], shapes[i][1], shapes[i][2], types[t], len, n_threads);
        }
}
