/* SPDX-License-Identifier: Apache-2.0
 *
 * The mixture of experts as a whole op: against double for any number of tokens per expert and every stored type, the same
 * bits for any number of threads, no allocation, and no byte of an expert that was not chosen.
 */
#include "ops_units.h"

#include "base/memory.h"
#include "formats/quant_random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { D = 256, FF = 256, EXPERTS = 6, USED = 2, MAX_N = 48 };

struct mixture {
    struct weight gate, up, down;
    float *x, *y, *logits, *weight;
    int32_t *ids;
};

static struct weight make_experts(struct check *c, sr_dtype dtype, int64_t n_in, int64_t n_out)
{
    struct weight w = {.dtype = dtype, .n_out = n_out, .n_in = n_in, .row_bytes = sr_row_bytes(dtype, n_in), .n_experts = EXPERTS};
    uint8_t *data = sr_check_in(c, (size_t)(n_out * EXPERTS) * w.row_bytes);
    struct rng rng;
    sr_rng_seed(&rng, (uint64_t)sr_check_pick(c, 1 << 30));
    sr_random_row(dtype, &rng, 0.06, data, n_in * n_out * EXPERTS);
    w.data = data;
    return w;
}

/* With `crowd` most tokens choose the same experts. */
static struct mixture make_mixture(struct check *c, sr_dtype dtype, int crowd)
{
    struct mixture m = {.gate = make_experts(c, dtype, D, FF), .up = make_experts(c, dtype, D, FF), .down = make_experts(c, dtype, FF, D),
                        .x = sr_check_in(c, MAX_N * D * sizeof(float)), .y = sr_check_out(c, MAX_N * D * sizeof(float)),
                        .logits = sr_check_in(c, MAX_N * EXPERTS * sizeof(float)), .weight = sr_check_out(c, MAX_N * USED * sizeof(float)),
                        .ids = sr_check_out(c, MAX_N * USED * sizeof(int32_t))};
    sr_check_fill_normal(c, m.x, MAX_N * D, 1.0);
    sr_check_fill_normal(c, m.logits, MAX_N * EXPERTS, 1.0);
    for (int32_t i = 0; crowd && i < MAX_N * EXPERTS; i++) m.logits[i] += i % EXPERTS < 4 ? 3.0f : 0.0f;
    return m;
}

static void reserve(struct check *c, struct backend *b)
{
    const struct moe_shape shape = {.max_n = MAX_N, .n_used = USED, .n_experts = EXPERTS, .n_embd = D, .n_ff = FF};
    sr_error err;
    if (b->ops->matmul_reserve(b, MAX_N, D, D, &err) != SR_OK || b->ops->moe_reserve(b, &shape, &err) != SR_OK)
        sr_check_fail(c, "%s", err.text);
}

static void run(struct backend *b, const struct mixture *m, int32_t n)
{
    b->ops->topk(b, &(struct topk_args){.logits = m->logits, .ids = m->ids, .weight = m->weight, .n = n, .n_experts = EXPERTS,
                                        .n_used = USED, .normalize = 1});
    b->ops->moe(b, &(struct moe_args){.gate = &m->gate, .up = &m->up, .down = &m->down, .x = m->x, .ids = m->ids, .weight = m->weight,
                                      .y = m->y, .n = n, .n_used = USED});
}

static const uint8_t *row_of(const struct weight *w, int32_t expert, int64_t row)
{
    return (const uint8_t *)w->data + (size_t)(expert * w->n_out + row) * w->row_bytes;
}

/* w . x, and in `off` the bound of what x_off, rounding x to codes of 15 bits or both to bf16, and the sum may add. */
static double dot(const struct weight *w, int32_t expert, int64_t row, const double *x, const double *x_off, int bf16, double *off)
{
    float v[D];
    double sum = 0.0;
    sr_dequantize_row(w->dtype, row_of(w, expert, row), v, w->n_in);
    double most = 0.0; /* of the block of 32 */
    *off = 1e-9;
    for (int64_t k = 0; k < w->n_in; k++) {
        if (k % 32 == 0) most = 0.0;
        for (int64_t j = k; k % 32 == 0 && j < k + 32; j++) most = fmax(most, fabs(x[j]));
        sum += (double)v[k] * x[k];
        *off += fabs((double)v[k]) * (x_off[k] + fmax(most / SR_ACT_MAX, bf16 ? fabs(x[k]) / 128 : 0) + D * SR_CHECK_U * fabs(x[k]));
    }
    return sum;
}

static void check_token(struct check *c, const struct mixture *m, int32_t t, int bf16)
{
    double x[D], none[D] = {0}, y[D] = {0}, y_off[D] = {0};
    for (int k = 0; k < D; k++) x[k] = m->x[t * D + k];
    for (int j = 0; j < USED; j++) {
        const int32_t e = m->ids[t * USED + j];
        const double share = m->weight[t * USED + j];
        double h[FF], h_off[FF], off_g, off_u, off;
        for (int r = 0; r < FF; r++) {
            const double g = dot(&m->gate, e, r, x, none, bf16, &off_g), u = dot(&m->up, e, r, x, none, bf16, &off_u), s = g / (1.0 + exp(-g));
            h[r] = s * u;
            h_off[r] = 1.1 * off_g * (fabs(u) + off_u) + fabs(s) * off_u + 8 * SR_CHECK_U * fabs(h[r]); /* |silu'| < 1.1 */
        }
        for (int r = 0; r < D; r++) {
            y[r] += share * dot(&m->down, e, r, h, h_off, bf16, &off);
            y_off[r] += share * off;
        }
    }
    for (int r = 0; r < D; r++)
        if (!sr_check_near(c, "y", t * D + r, m->y[t * D + r], y[r], y_off[r])) return;
}

static void test_moe(struct check *c, enum cpu_isa isa)
{
    static const sr_dtype types[] = {SR_DTYPE_F32,  SR_DTYPE_F16,  SR_DTYPE_BF16, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1,
                                     SR_DTYPE_Q8_0, SR_DTYPE_Q2_K, SR_DTYPE_Q3_K, SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K, SR_DTYPE_IQ4_NL};
    static const int32_t tokens[] = {1, 3, 20, MAX_N};
    enum { CHECKED = 2 }; /* of each number of tokens: the first ones */
    for (size_t k = 0; k < sizeof(types) / sizeof(types[0]); k++) {
        struct backend *b = sr_ops_backend(isa, 2);
        struct mixture m = make_mixture(c, types[k], (int)k % 2);
        reserve(c, b);
        const uint64_t allocations = sr_alloc_count();
        for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
            run(b, &m, tokens[i]);
            for (int32_t t = 0; t < tokens[i] && t < CHECKED; t++) check_token(c, &m, t, isa == ISA_AMX && types[k] != SR_DTYPE_F32);
        }
        if (sr_alloc_count() != allocations) sr_check_fail(c, "the experts allocated");
        sr_backend_close(b);
    }
}

static void test_planted(struct check *c, enum cpu_isa isa)
{
    struct backend *b = sr_ops_backend(isa, 1);
    struct mixture m = make_mixture(c, SR_DTYPE_Q8_0, 0);
    struct check planted = *c;
    reserve(c, b);
    run(b, &m, 3);
    do m.ids[2 * USED] = (m.ids[2 * USED] + 1) % EXPERTS; /* as if another expert had been taken */
    while (m.ids[2 * USED] == m.ids[2 * USED + 1]);
    check_token(&planted, &m, 2, 0);
    if (planted.n_failed == c->n_failed) sr_check_fail(c, "another expert's result went unnoticed");
    sr_backend_close(b);
}

static void test_in_place(struct check *c, enum cpu_isa isa)
{
    struct backend *b = sr_ops_backend(isa, 2);
    struct mixture m = make_mixture(c, SR_DTYPE_Q8_0, 1), same = m;
    same.y = sr_check_out(c, MAX_N * D * sizeof(float));
    memcpy(same.y, m.x, MAX_N * D * sizeof(float));
    same.x = same.y;
    reserve(c, b);
    for (int32_t n = 1; n <= MAX_N; n += MAX_N - 1) {
        run(b, &m, n);
        memcpy(same.y, m.x, MAX_N * D * sizeof(float));
        run(b, &same, n);
        sr_check_same(c, "y in the place of x", same.y, m.y, (size_t)n * D * sizeof(float));
    }
    sr_backend_close(b);
}

static void test_threads(struct check *c, enum cpu_isa isa)
{
    struct mixture m = make_mixture(c, SR_DTYPE_Q4_0, 1);
    for (int32_t n = 1; n <= MAX_N; n += 23) {
        float *first = NULL;
        const size_t bytes = (size_t)n * D * sizeof(float);
        for (int threads = 1; threads <= 4; threads++) {
            struct backend *b = sr_ops_backend(isa, threads);
            reserve(c, b);
            run(b, &m, n);
            sr_backend_close(b);
            if (first) sr_check_same(c, "y by more threads", m.y, first, bytes);
            else first = memcpy(malloc(bytes), m.y, bytes);
        }
        free(first);
    }
}

/* Experts in pages of their own; those not chosen cannot be read. */
static void test_untouched(struct check *c, enum cpu_isa isa)
{
    enum { PAGE = 4096, WIDE = PAGE / 4, ROWS = 32 };
    struct backend *b = sr_ops_backend(isa, 2);
    struct weight w[3];
    float *x = sr_check_in(c, WIDE * sizeof(float)), *y = sr_check_out(c, WIDE * sizeof(float)), share[2] = {0.5f, 0.5f};
    const int32_t ids[2] = {3, 1};
    sr_error err;
    const struct moe_shape shape = {.max_n = 1, .n_used = 2, .n_experts = 4, .n_embd = WIDE, .n_ff = ROWS};
    sr_check_fill_normal(c, x, WIDE, 1.0);
    for (int i = 0; i < 3; i++) {
        const size_t bytes = (size_t)WIDE * ROWS * sizeof(float); /* of one expert: whole pages */
        float *data = mmap(NULL, 4 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) abort();
        sr_check_fill_normal(c, data, WIDE * ROWS * 4, 0.1);
        mprotect(data, bytes, PROT_NONE);                                           /* expert 0 */
        mprotect(data + 2 * WIDE * ROWS, bytes, PROT_NONE);                         /* expert 2 */
        w[i] = (struct weight){.data = data, .dtype = SR_DTYPE_F32, .n_in = i < 2 ? WIDE : ROWS, .n_out = i < 2 ? ROWS : WIDE,
                               .row_bytes = (i < 2 ? WIDE : ROWS) * sizeof(float), .n_experts = 4};
    }
    if (b->ops->matmul_reserve(b, 1, WIDE, WIDE, &err) != SR_OK || b->ops->moe_reserve(b, &shape, &err) != SR_OK)
        sr_check_fail(c, "%s", err.text);
    b->ops->moe(b, &(struct moe_args){.gate = &w[0], .up = &w[1], .down = &w[2], .x = x, .ids = ids, .weight = share, .y = y, .n = 1,
                                      .n_used = 2});
    for (int i = 0; i < WIDE; i++)
        if (!isfinite(y[i])) sr_check_fail(c, "element %d is not a number", i);
    for (int i = 0; i < 3; i++) munmap((void *)(uintptr_t)w[i].data, (size_t)WIDE * ROWS * sizeof(float) * 4);
    sr_backend_close(b);
}

int main(int argc, char **argv)
{
    static const struct ops_test tests[] = {
        {"experts against double", test_moe}, {"experts: planted fault is found", test_planted},
        {"experts in place", test_in_place},  {"experts by 1 to 4 threads", test_threads},
        {"experts not chosen are not read", test_untouched},
    };
    return sr_ops_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
}
