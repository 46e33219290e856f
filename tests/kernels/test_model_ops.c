/* SPDX-License-Identifier: Apache-2.0
 *
 * The ops of a layer as wholes: products of several weights at once, any number of tokens, the same bits for any number
 * of threads, no allocation, the cache of rotary angles.
 */
#include "ops_units.h"

#include "base/half.h"
#include "base/memory.h"
#include "formats/quant.h"
#include "formats/quant_random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_IN = 320, MAX_N = 70 };

static float *floats(struct check *c, int64_t n, double scale)
{
    float *x = sr_check_in(c, (size_t)n * sizeof(float));
    sr_check_fill_normal(c, x, n, scale);
    return x;
}

static struct weight make_weight(struct check *c, sr_dtype dtype, int64_t n_out, int64_t n_in)
{
    struct weight w = {.dtype = dtype, .n_out = n_out, .n_in = n_in, .row_bytes = sr_row_bytes(dtype, n_in)};
    uint8_t *data = sr_check_in(c, (size_t)n_out * w.row_bytes);
    float *row = malloc((size_t)n_in * sizeof(float));
    for (int64_t r = 0; r < n_out; r++) {
        sr_error err;
        sr_check_fill_normal(c, row, n_in, 0.05);
        if (sr_quantize_row(dtype, row, data + (size_t)r * w.row_bytes, n_in, &err) != SR_OK) abort();
    }
    free(row);
    w.data = data;
    return w;
}

/* ---- matmul ----------------------------------------------------------------------------------------------------------- */

struct product { struct weight w[3]; const float *bias; const float *x; float *y[3]; };

static void multiply(struct backend *b, struct product *p, int32_t n)
{
    b->ops->matmul(b, &(struct matmul_args){.n_weights = 3, .w = {&p->w[0], &p->w[1], &p->w[2]}, .bias = {p->bias, NULL, NULL},
                                            .y = {p->y[0], p->y[1], p->y[2]},
                                            .y_stride = {p->w[0].n_out, p->w[1].n_out + 1, p->w[2].n_out},
                                            .x = p->x, .x_stride = N_IN + 3, .n = n});
}

static struct product make_product(struct check *c, sr_dtype dtype)
{
    static const int64_t n_out[3] = {100, 33, 1};
    struct product p = {.x = floats(c, MAX_N * (N_IN + 3), 1.0), .bias = floats(c, n_out[0], 1.0)};
    for (int i = 0; i < 3; i++) {
        p.w[i] = make_weight(c, i == 1 ? SR_DTYPE_Q8_0 : dtype, n_out[i], N_IN);
        p.y[i] = sr_check_out(c, (size_t)(MAX_N * (n_out[i] + (i == 1))) * sizeof(float));
    }
    return p;
}

/* Against floats. What 8-bit activations or bf16 cost is bounded by half a code of each block of 32, or 2^-8 per product. */
static void check_product(struct check *c, const struct product *p, int32_t n)
{
    float w[N_IN];
    for (int i = 0; i < 3; i++)
        for (int64_t r = 0; r < p->w[i].n_out; r++) {
            sr_dequantize_row(p->w[i].dtype, (const uint8_t *)p->w[i].data + (size_t)r * p->w[i].row_bytes, w, N_IN);
            for (int32_t t = 0; t < n; t++) {
                const float *x = p->x + t * (N_IN + 3);
                double sum = i == 0 ? (double)p->bias[r] : 0.0, tol = 1e-6;
                for (int k = 0; k < N_IN; k++) {
                    double most = 0.0;
                    for (int j = k / 32 * 32; j < k / 32 * 32 + 32; j++) most = fmax(most, fabs((double)x[j]));
                    sum += (double)w[k] * (double)x[k];
                    tol += fabs((double)w[k]) * fmax(most / 254, fabs((double)x[k]) / 256) + N_IN * SR_CHECK_U * fabs((double)w[k] * (double)x[k]);
                }
                if (!sr_check_near(c, "y", r, p->y[i][t * (p->w[i].n_out + (i == 1)) + r], sum, tol)) return;
            }
        }
}

static void test_matmul(struct check *c, enum cpu_isa isa)
{
    static const sr_dtype types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_Q4_1, SR_DTYPE_Q8_0};
    static const int32_t tokens[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, MAX_N};
    struct backend *b = sr_ops_backend(isa, 2);
    sr_error err;
    for (int k = 0; k < 4; k++) {
        struct product p = make_product(c, types[k]);
        if (b->ops->matmul_reserve(b, MAX_N, N_IN, 100, &err) != SR_OK) sr_check_fail(c, "%s", err.text);
        const uint64_t allocations = sr_alloc_count();
        for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
            multiply(b, &p, tokens[i]);
            check_product(c, &p, tokens[i]);
        }
        if (sr_alloc_count() != allocations) sr_check_fail(c, "matmul allocated");
    }
    sr_backend_close(b);
}

static void test_planted(struct check *c, enum cpu_isa isa)
{
    struct backend *b = sr_ops_backend(isa, 1);
    struct product p = make_product(c, SR_DTYPE_Q4_1);
    struct check planted = *c;
    sr_error err;
    if (b->ops->matmul_reserve(b, MAX_N, N_IN, 100, &err) != SR_OK) sr_check_fail(c, "%s", err.text);
    multiply(b, &p, 3);
    p.y[0][2 * 100 + 99] += 0.2f;
    check_product(&planted, &p, 3);
    if (planted.n_failed == c->n_failed) sr_check_fail(c, "a spoilt element went unnoticed");
    sr_backend_close(b);
}

static void test_threads(struct check *c, enum cpu_isa isa)
{
    struct product p = make_product(c, SR_DTYPE_Q4_1);
    sr_error err;
    for (int32_t n = 1; n <= MAX_N; n += n < 8 ? 3 : 30) {
        float *first = NULL;
        const size_t bytes = (size_t)n * 100 * sizeof(float);
        for (int threads = 1; threads <= 4; threads++) {
            struct backend *b = sr_ops_backend(isa, threads);
            if (b->ops->matmul_reserve(b, MAX_N, N_IN, 100, &err) != SR_OK) sr_check_fail(c, "%s", err.text);
            multiply(b, &p, n);
            sr_backend_close(b);
            if (first) sr_check_same(c, "y by more threads", p.y[0], first, bytes);
            else first = memcpy(malloc(bytes), p.y[0], bytes);
        }
        free(first);
    }
}

/* ---- the small ops ------------------------------------------------------------------------------------------------------ */

static struct rope_spec make_spec(enum rope_kind kind, int32_t n_dims, double base)
{
    struct rope_spec s = {.kind = kind, .n_dims = n_dims, .magnitude = 1.25};
    for (int32_t i = 0; i < n_dims / 2; i++) s.inv_freq[i] = pow(base, -2.0 * i / n_dims);
    return s;
}

static void check_rope(struct check *c, struct backend *b, const struct rope_spec *s, int64_t pos0, int32_t n)
{
    enum { HEADS = 3, DIM = 48, STRIDE = HEADS * DIM + 5 };
    float *x = floats(c, n * STRIDE, 1.0), *y = sr_check_out(c, (size_t)(n * STRIDE) * sizeof(float));
    memcpy(y, x, (size_t)(n * STRIDE) * sizeof(float));
    b->ops->rope(b, &(struct rope_args){.x = y, .spec = s, .stride = STRIDE, .n = n, .heads = HEADS, .head_dim = DIM, .pos0 = pos0});
    for (int32_t t = 0; t < n; t++)
        for (int32_t i = 0; i < STRIDE; i++) {
            const int32_t head = i / DIM, e = i % DIM, half = s->n_dims / 2;
            double want = x[t * STRIDE + i], tol = 0.0;
            if (head < HEADS && e < s->n_dims && s->kind != ROPE_NONE) {
                const int32_t pair = s->kind == ROPE_NORM ? e / 2 : e % half, second = s->kind == ROPE_NORM ? e & 1 : e >= half;
                const int32_t other = s->kind == ROPE_NORM ? e ^ 1 : (e + half) % s->n_dims;
                const double angle = (double)(pos0 + t) * s->inv_freq[pair], a = x[t * STRIDE + i], o = x[t * STRIDE + head * DIM + other];
                want = s->magnitude * (a * cos(angle) + (second ? o : -o) * sin(angle));
                tol = 5 * SR_CHECK_U * s->magnitude * (fabs(a) + fabs(o));
            }
            if (!sr_check_near(c, "rope", t * STRIDE + i, y[t * STRIDE + i], want, tol)) return;
        }
}

static void test_rope(struct check *c, enum cpu_isa isa)
{
    struct backend *b = sr_ops_backend(isa, 2);
    struct rope_spec norm = make_spec(ROPE_NORM, 48, 1e4), neox = make_spec(ROPE_NEOX, 32, 1e6), none = make_spec(ROPE_NONE, 32, 1e4);
    check_rope(c, b, &norm, 0, 1);
    check_rope(c, b, &norm, 7, 40);      /* more positions than were reserved */
    check_rope(c, b, &neox, 7, 40);      /* another spec at the same positions */
    check_rope(c, b, &neox, 8, 3);
    check_rope(c, b, &neox, 100000, 2);
    check_rope(c, b, &none, 5, 2);
    neox.inv_freq[3] *= 2;               /* the same address, other contents */
    check_rope(c, b, &neox, 100000, 2);
    sr_backend_close(b);
}

static void test_rows(struct check *c, enum cpu_isa isa)
{
    enum { N = 60, D = 640, HEADS = 2 };
    struct backend *b = sr_ops_backend(isa, 2);
    float *x = floats(c, N * D, 1.0), *y = floats(c, N * D, 1.0), *w = floats(c, D / HEADS, 1.0), *out = sr_check_out(c, N * D * sizeof(float));
    b->ops->norm(b, &(struct norm_args){.x = x, .y = out, .w = w, .d = D / HEADS, .n = N, .heads = HEADS, .eps = 1e-5f});
    for (int32_t i = 0; i < N * D; i++) {
        double sum = 0.0;
        const float *v = x + i / (D / HEADS) * (D / HEADS);
        for (int j = 0; j < D / HEADS; j++) sum += (double)v[j] * (double)v[j];
        const double want = (double)x[i] * (double)w[i % (D / HEADS)] / sqrt(sum / (D / HEADS) + (double)1e-5f);
        if (!sr_check_near(c, "norm", i, out[i], want, 4 * SR_CHECK_U * fabs(want))) break;
    }
    b->ops->silu_mul(b, &(struct silu_mul_args){.gate = x, .up = y, .h = out, .d = D, .n = N});
    for (int32_t i = 0; i < N * D; i++) {
        const double want = (double)x[i] / (1 + exp(-(double)x[i])) * (double)y[i];
        if (!sr_check_near(c, "silu_mul", i, out[i], want, 8 * SR_CHECK_U * fabs(want))) break;
    }
    b->ops->add(b, &(struct add_args){.x = out, .y = y, .d = D, .n = N});
    memcpy(out, x, N * D * sizeof(float));
    b->ops->add(b, &(struct add_args){.x = out, .y = y, .d = D, .n = N});
    for (int32_t i = 0; i < N * D; i++)
        if (!sr_check_near(c, "add", i, out[i], (double)(x[i] + y[i]), 0.0)) break;
    sr_backend_close(b);
}

static void test_embed(struct check *c, enum cpu_isa isa)
{
    enum { N = 40, D = 1024, ROWS = 9 };
    struct backend *b = sr_ops_backend(isa, 2);
    const struct weight w = make_weight(c, SR_DTYPE_Q5_1, ROWS, D);
    float *x = sr_check_out(c, N * D * sizeof(float)), *row = floats(c, D, 1.0);
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = (int32_t)sr_check_pick(c, ROWS);
    b->ops->embed(b, &(struct embed_args){.w = &w, .ids = ids, .x = x, .n = N});
    for (int i = 0; i < N; i++) {
        sr_dequantize_row(w.dtype, (const uint8_t *)w.data + (size_t)ids[i] * w.row_bytes, row, D);
        sr_check_same(c, "row", x + i * D, row, D * sizeof(float));
    }
    sr_backend_close(b);
}

/* Every word is read once: contiguous, with ends that fill no task, and rows of a list. */
static void test_read(struct check *c, enum cpu_isa isa)
{
    enum { WORDS = 50000, ROW_WORDS = 17, N_ROWS = 1100 };
    uint64_t *x = aligned_alloc(64, WORDS * 8 / 64 * 64 + 64);
    int32_t rows[N_ROWS];
    for (int i = 0; i < WORDS; i++) x[i] = (uint64_t)sr_check_pick(c, 1 << 30) << 32 | sr_check_pick(c, 1 << 30);
    for (int i = 0; i < N_ROWS; i++) rows[i] = i * 2 + (int)sr_check_pick(c, 2);
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        struct backend *b = sr_ops_backend(isa, n_threads);
        for (size_t n = 1; n <= WORDS; n = n * 5 / 3 + 1) {
            uint64_t want = 7, sum = 7;
            for (size_t i = 0; i < n; i++) want ^= x[i];
            b->ops->read(b, &(struct read_args){.base = (const uint8_t *)x, .bytes = n * 8, .sum = &sum});
            sr_check_same(c, "contiguous", &sum, &want, 8);
        }
        uint64_t want = 0, sum = 0;
        for (int i = 0; i < N_ROWS * ROW_WORDS; i++) want ^= x[(size_t)rows[i / ROW_WORDS] * ROW_WORDS + (size_t)(i % ROW_WORDS)];
        b->ops->read(b, &(struct read_args){.base = (const uint8_t *)x, .rows = rows, .n_rows = N_ROWS, .row_bytes = ROW_WORDS * 8, .sum = &sum});
        sr_check_same(c, "rows", &sum, &want, 8);
        sr_backend_close(b);
    }
    free(x);
}

/* ---- bench: products of one token over more weights than caches hold, all threads, beside a plain read of them ---------- */

enum { BENCH_OUT = 2048, BENCH_RUNS = 5, BENCH_ROWS = 16 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A few random rows over and over. */
static void fill_weights(sr_dtype dtype, uint8_t *w, int64_t n_rows, int64_t n_in)
{
    struct rng r;
    const size_t row = sr_row_bytes(dtype, n_in);
    sr_rng_seed(&r, 1);
    for (int i = 0; i < BENCH_ROWS; i++) sr_random_row(dtype, &r, 0.02, w + (size_t)i * row, n_in);
    for (int64_t i = BENCH_ROWS; i < n_rows; i++) memcpy(w + (size_t)i * row, w + (size_t)(i - BENCH_ROWS) * row, row);
}

static void bench_type(struct backend *b, sr_dtype dtype, uint8_t *w, size_t bytes, int64_t n_in, int32_t n)
{
    const size_t row = sr_row_bytes(dtype, n_in), one = row * BENCH_OUT;
    const int64_t count = (int64_t)(bytes / one);
    float *x = calloc((size_t)(n * n_in), sizeof(float)), *y = calloc((size_t)n * BENCH_OUT, sizeof(float));
    double product = 1e9, read = 1e9;
    uint64_t sum = 0;
    for (int64_t i = 0; i < n * n_in; i++) x[i] = (float)(i % 17 - 8);
    fill_weights(dtype, w, count * BENCH_OUT, n_in);
    for (int run = 0; run < BENCH_RUNS; run++) {
        double t = now();
        for (int64_t k = 0; k < count; k++) {
            const struct weight m = {.data = w + (size_t)k * one, .dtype = dtype, .n_out = BENCH_OUT, .n_in = n_in, .row_bytes = row};
            b->ops->matmul(b, &(struct matmul_args){.n_weights = 1, .w = {&m}, .y = {y}, .y_stride = {BENCH_OUT}, .x = x, .x_stride = n_in, .n = n});
        }
        product = fmin(product, now() - t);
        t = now();
        b->ops->read(b, &(struct read_args){.base = w, .bytes = (size_t)count * one / 64 * 64, .sum = &sum});
        read = fmin(read, now() - t);
    }
    const double gb = 1e-9 * (double)count * (double)one;
    printf("%-6s %2d token%s %7.1f GB/s, read %7.1f, %.2f of it\n", sr_dtype_name(dtype), n, n > 1 ? "s" : " ", gb / product, gb / read, read / product);
    free(x);
    free(y);
}

/* --bench [MIB [TYPE [TOKENS [N_IN]]]] */
static int bench(int argc, char **argv)
{
    static const sr_dtype types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q6_K, SR_DTYPE_Q5_K, SR_DTYPE_Q4_K, SR_DTYPE_Q3_K,
                                     SR_DTYPE_Q2_K, SR_DTYPE_Q5_1, SR_DTYPE_Q5_0, SR_DTYPE_Q4_1, SR_DTYPE_Q4_0, SR_DTYPE_IQ4_NL};
    const size_t bytes = (size_t)(argc > 2 ? atoi(argv[2]) : 960) << 20;
    const char *only = argc > 3 ? argv[3] : "all";
    const int32_t n = argc > 4 ? atoi(argv[4]) : 1;
    const int64_t n_in = argc > 5 ? atoi(argv[5]) : 2048;
    struct backend *b;
    uint8_t *w = sr_region_map(bytes);
    if (!w || sr_backend_cpu_open(&b, 0, NULL) != SR_OK || b->ops->matmul_reserve(b, n, n_in, BENCH_OUT, NULL) != SR_OK) return 1;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(only, "all") == 0 || strcmp(only, sr_dtype_name(types[i])) == 0) bench_type(b, types[i], w, bytes, n_in, n);
    sr_backend_close(b);
    sr_region_unmap(w, bytes);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) return bench(argc, argv);
    static const struct ops_test tests[] = {
        {"matmul of three weights", test_matmul}, {"matmul: planted fault is found", test_planted},
        {"matmul by 1 to 4 threads", test_threads}, {"rope and its cache", test_rope},
        {"norm, silu_mul and add", test_rows}, {"embed", test_embed}, {"read", test_read},
    };
    return sr_ops_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
}
