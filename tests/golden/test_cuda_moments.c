/* SPDX-License-Identifier: Apache-2.0
 *
 * Second moments of rows on a GPU against sums in double, for every order of pairs and both sorts of rows, and the same
 * bits however the rows come. Skipped without a GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/ok.h"

#include "backend/backend.h"
#include "backend/device_attn.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

static struct backend *gpu;
static struct rng rng;

static const double half_ulp = 5.9604644775390625e-8; /* of f32 */

enum { ROWS = 90, FIRST = 4, END = 83, TURNS = SR_TURN_STEP + 2, GROUPS = 2, MOST_DIM = 256 };

static int open_gpu(void **state)
{
    (void)state;
    sr_rng_seed(&rng, 7);
    if (sr_backend_cuda_open(&gpu, 0, 1, &err) == SR_OK) return 0;
    print_message("SKIP: %s\n", err.text);
    return err.status == SR_ERR_UNSUPPORTED ? 0 : -1;
}

static int close_gpu(void **state)
{
    (void)state;
    sr_backend_close(gpu);
    return 0;
}

struct moments_case {
    int32_t d, n_dims, per_group;
    enum rope_kind kind;
    int is_key;
};

static size_t unit_of(const struct moments_case *c) { return 2 * (size_t)c->d * (size_t)c->d + (size_t)c->d; }

/* Numbers in [-1, 1], and the same on the device. */
static float *new_numbers(size_t n, float **dev)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(2 * sr_rng_unit(&rng) - 1);
    OK(gpu->ops->mem_new(gpu, (void **)dev, n * sizeof *x, "test", &err));
    gpu->ops->upload(gpu, *dev, x, n * sizeof *x);
    return x;
}

/* A row turned back, and what its elements' terms add up to. */
static void turn_back(const struct moments_case *c, const float *turn, int64_t pos, const float *row, double *x, double *size)
{
    const int32_t half = c->kind == ROPE_NONE ? 0 : c->n_dims / 2;
    for (int32_t i = 0; i < c->d; i++) size[i] = fabs(x[i] = (double)row[i] * 0.5);
    for (int32_t i = 0; i < half; i++) {
        const float *f = turn + 2 * (pos % SR_TURN_STEP * half + i), *g = turn + 2 * ((SR_TURN_STEP + pos / SR_TURN_STEP) * half + i);
        const int32_t p = c->kind == ROPE_NEOX ? i : 2 * i, q = c->kind == ROPE_NEOX ? i + half : 2 * i + 1;
        const double k[4] = {(double)g[0] * (double)f[0], (double)g[1] * (double)f[1], (double)g[1] * (double)f[0], (double)g[0] * (double)f[1]};
        const double cosine = k[0] - k[1], sine = k[2] + k[3], a = x[p], b = x[q];
        const double c_size = fabs(k[0]) + fabs(k[1]), s_size = fabs(k[2]) + fabs(k[3]);
        x[p] = a * cosine + b * sine;
        x[q] = b * cosine - a * sine;
        size[p] = fabs(a) * c_size + fabs(b) * s_size;
        size[q] = fabs(b) * c_size + fabs(a) * s_size;
    }
}

static void sum_moments(const struct moments_case *c, const float *rows, const float *turn, double *want, double *size)
{
    const size_t d = (size_t)c->d;
    double x[MOST_DIM], s[MOST_DIM];
    for (int64_t r = 0; r < (int64_t)ROWS * GROUPS * c->per_group; r++) {
        const int64_t pos = r / (GROUPS * c->per_group);
        const size_t at = (size_t)(r % (GROUPS * c->per_group) / c->per_group) * unit_of(c) + (c->is_key ? d * d : 0);
        if (pos < FIRST || pos >= END) continue;
        turn_back(c, turn, pos, rows + r * c->d, x, s);
        for (size_t i = 0; i < d; i++) {
            for (size_t j = i; j < d; j++) want[at + i * d + j] += x[i] * x[j], size[at + i * d + j] += s[i] * s[j];
            if (c->is_key) want[at + d * d + i] += x[i], size[at + d * d + i] += s[i];
        }
    }
}

/* Rows in batches. */
static double *add_moments(const struct moments_case *c, const float *rows, const float *turn, int32_t batch)
{
    const size_t bytes = GROUPS * unit_of(c) * sizeof(double);
    double *dev, *sums = malloc(bytes);
    OK(gpu->ops->mem_new(gpu, (void **)&dev, bytes, "test", &err));
    gpu->ops->mem_clear(gpu, dev, bytes);
    for (int32_t at = 0, n; at < ROWS; at += n) {
        n = ROWS - at < batch ? ROWS - at : batch;
        const struct device_moments_args a = {.sums = dev, .unit_len = (int64_t)unit_of(c), .turn = turn, .n_kv_heads = GROUPS, .n = n,
                                              .rows = rows + (int64_t)at * GROUPS * c->per_group * c->d, .per_group = c->per_group,
                                              .head_dim = c->d, .n_dims = c->n_dims, .first = FIRST, .end = END, .pos0 = at, .kind = c->kind,
                                              .scale = 0.5f, .is_key = c->is_key};
        gpu->ops->device_attn->moments(gpu, &a, 1);
    }
    OK(gpu->ops->download(gpu, sums, dev, bytes, &err));
    gpu->ops->mem_free(gpu, dev);
    return sums;
}

/* A turned element rounds at most five times in f32, their sums hardly at all. */
static void check_case(struct moments_case c)
{
    const size_t n = GROUPS * unit_of(&c);
    float *dev_rows, *dev_turn;
    float *rows = new_numbers((size_t)(ROWS * GROUPS * c.per_group * c.d), &dev_rows), *turn = new_numbers((size_t)(TURNS * c.n_dims + 2), &dev_turn);
    double *want = calloc(n, sizeof *want), *size = calloc(n, sizeof *size), *whole = add_moments(&c, dev_rows, dev_turn, ROWS);
    sum_moments(&c, rows, turn, want, size);
    for (size_t i = 0; i < n; i++)
        if (!(fabs(whole[i] - want[i]) <= 11 * half_ulp * size[i]))
            fail_msg("%d of %d turned, kind %d: sum %zu is %.9g, want %.9g", c.n_dims, c.d, (int)c.kind, i, whole[i], want[i]);
    double *parts = add_moments(&c, dev_rows, dev_turn, 37), *steps = add_moments(&c, dev_rows, dev_turn, 1);
    assert_memory_equal(whole, parts, n * sizeof *whole);
    assert_memory_equal(whole, steps, n * sizeof *whole);
    double *sums[] = {want, size, whole, parts, steps};
    for (int i = 0; i < 5; i++) free(sums[i]);
    gpu->ops->mem_free(gpu, dev_rows);
    gpu->ops->mem_free(gpu, dev_turn);
    free(rows);
    free(turn);
}

static void moments(void **state)
{
    (void)state;
    if (!gpu) skip();
    check_case((struct moments_case){.d = 128, .n_dims = 128, .per_group = 4, .kind = ROPE_NORM});
    check_case((struct moments_case){.d = 128, .n_dims = 128, .per_group = 1, .kind = ROPE_NORM, .is_key = 1});
    check_case((struct moments_case){.d = 80, .n_dims = 32, .per_group = 7, .kind = ROPE_NEOX});
    check_case((struct moments_case){.d = 64, .n_dims = 64, .per_group = 1, .kind = ROPE_NEOX, .is_key = 1});
    check_case((struct moments_case){.d = MOST_DIM, .n_dims = MOST_DIM, .per_group = 16, .kind = ROPE_NEOX});
    check_case((struct moments_case){.d = 96, .per_group = 3, .kind = ROPE_NONE, .is_key = 1});
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(moments)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
