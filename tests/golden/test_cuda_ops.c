/* SPDX-License-Identifier: Apache-2.0
 *
 * Ops of the CUDA backend against the scalar kernels and against double: the same inputs, tolerances from the arithmetic
 * that each op's contract allows. Outputs are poisoned before each op. Skipped without a GPU. SR_QUICK=1: fewer shapes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/ok.h"

#include "backend/backend.h"
#include "base/rng.h"
#include "formats/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct backend *cpu, *gpu;
static struct rng rng;

static const double half_ulp = 5.9604644775390625e-8; /* of f32 */
static int is_quick;

static int open_both(void **state)
{
    (void)state;
    is_quick = getenv("SR_QUICK") != NULL;
    sr_rng_seed(&rng, 7);
    setenv("SR_ISA", "scalar", 1);
    if (sr_backend_cpu_open(&cpu, 1, &err) != SR_OK) return -1;
    if (sr_backend_cuda_open(&gpu, 0, 1, &err) == SR_OK) return 0;
    print_message("SKIP: %s\n", err.text);
    return err.status == SR_ERR_UNSUPPORTED ? 0 : -1;
}

static int close_both(void **state)
{
    (void)state;
    sr_backend_close(gpu);
    sr_backend_close(cpu);
    return 0;
}

/* ---- buffers: one in each memory ---- */

struct pair {
    float *host, *dev;
    size_t n;
};

static double draw(void) { return (sr_rng_unit(&rng) + sr_rng_unit(&rng) + sr_rng_unit(&rng) - 1.5) * 2; }

static struct pair new_pair(size_t n, double scale)
{
    struct pair p = {malloc(n * sizeof(float)), NULL, n};
    for (size_t i = 0; i < n; i++) p.host[i] = (float)(draw() * scale);
    OK(gpu->ops->mem_new(gpu, (void **)&p.dev, n * sizeof(float), "test", &err));
    gpu->ops->upload(gpu, p.dev, p.host, n * sizeof(float));
    return p;
}

/* Of NaN in both: what is not written shows. */
static struct pair new_output(size_t n)
{
    struct pair p = new_pair(n, 1);
    for (size_t i = 0; i < n; i++) p.host[i] = NAN;
    gpu->ops->upload(gpu, p.dev, p.host, n * sizeof(float));
    return p;
}

static float *fetch(const struct pair *p)
{
    float *x = malloc(p->n * sizeof(float));
    OK(gpu->ops->download(gpu, x, p->dev, p->n * sizeof(float), &err));
    return x;
}

static void drop(struct pair *p)
{
    gpu->ops->mem_free(gpu, p->dev);
    free(p->host);
}

/* Every element of the device within tol of the host's. */
static void expect_near(const char *what, const struct pair *p, double tol)
{
    float *got = fetch(p);
    for (size_t i = 0; i < p->n; i++) {
        const double e = fabs((double)got[i] - (double)p->host[i]);
        if (!(e <= tol * fmax(1.0, fabs((double)p->host[i])))) fail_msg("%s: element %zu is %g, want %g", what, i, (double)got[i], (double)p->host[i]);
    }
    free(got);
}

/* ---- matmul, embed ---- */

struct matrix {
    struct weight host, dev;
    uint8_t *data;
    float *values; /* [n_out][n_in] */
};

static struct matrix new_matrix(sr_dtype type, int64_t n_in, int64_t n_out)
{
    struct matrix m = {.data = malloc(sr_row_bytes(type, n_in) * (size_t)n_out), .values = malloc((size_t)(n_in * n_out) * sizeof(float))};
    const size_t row = sr_row_bytes(type, n_in);
    for (int64_t i = 0; i < n_in * n_out; i++) m.values[i] = (float)(draw() * 0.1);
    for (int64_t r = 0; r < n_out; r++) {
        if (sr_quantize_row(type, m.values + r * n_in, m.data + (size_t)r * row, n_in, NULL) != SR_OK) { /* no quantizer: random bits */
            for (size_t i = 0; i < row; i++) m.data[(size_t)r * row + i] = (uint8_t)sr_rng_u64(&rng);
            const int block = sr_dtype_find(type)->block_bytes, at = type == SR_DTYPE_Q6_K ? 208 : 0, n_scales = type == SR_DTYPE_Q6_K ? 1 : 2;
            for (size_t b = 0; b < row; b += (size_t)block)
                for (int s = 0; s < n_scales; s++) m.data[(size_t)r * row + b + (size_t)(at + 2 * s) + 1] = 0x11; /* f16 about 0.0006 */
        }
        sr_dequantize_row(type, m.data + (size_t)r * row, m.values + r * n_in, n_in);
    }
    m.host = (struct weight){.data = m.data, .dtype = type, .n_in = n_in, .n_out = n_out, .row_bytes = row};
    m.dev = m.host;
    OK(gpu->ops->weight_prepare(gpu, &m.dev, &err));
    return m;
}

static void drop_matrix(struct matrix *m)
{
    gpu->ops->weight_release(gpu, &m->dev);
    free(m->data);
    free(m->values);
}

static int is_float(sr_dtype t) { return t == SR_DTYPE_F32 || t == SR_DTYPE_F16 || t == SR_DTYPE_BF16; }

/* |error| of row r times x, where decode sees codes of 15 bits per 32 activations and prefill bf16 on both sides. */
static double product_tolerance(const float *w, const float *x, int64_t n, sr_dtype type, int is_prefill)
{
    double all = 0, codes = 0;
    for (int64_t i = 0; i < n; i += 32) {
        double most = 0, sum = 0;
        for (int64_t k = i; k < i + 32 && k < n; k++) {
            all += fabs((double)w[k] * (double)x[k]);
            most = fmax(most, fabs((double)x[k]));
            sum += fabs((double)w[k]);
        }
        codes += sum * most / 16256 / 2;
    }
    const double sums = (double)(n + 8) * half_ulp * all;
    if (is_prefill) return sums + (type == SR_DTYPE_F32 ? 0 : all / 128); /* 2^-8 each */
    return sums + (is_float(type) ? 0 : codes * 1.01 + all * 8 * half_ulp);
}

static void matmul_case(sr_dtype type, int64_t n_in, int32_t n)
{
    const int64_t outs[3] = {70, 16, 5};
    struct matrix m[3];
    struct pair x = new_pair((size_t)(n * n_in), 2), y[3], bias = new_pair(70, 1);
    struct matmul_args a = {.n_weights = 3, .x = x.dev, .x_stride = n_in, .n = n, .bias = {bias.dev, NULL, NULL}};
    for (int i = 0; i < 3; i++) {
        m[i] = new_matrix(i == 2 && !is_float(type) ? SR_DTYPE_Q8_0 : type, n_in, outs[i]); /* types may differ */
        y[i] = new_output((size_t)(n * outs[i]));
        a.w[i] = &m[i].dev;
        a.y[i] = y[i].dev;
        a.y_stride[i] = outs[i];
    }
    gpu->ops->matmul(gpu, &a);
    for (int i = 0; i < 3; i++) {
        float *got = fetch(&y[i]);
        for (int64_t t = 0; t < n; t++) {
            for (int64_t r = 0; r < outs[i]; r++) {
                const float *w = m[i].values + r * n_in, *v = x.host + t * n_in;
                double want = i == 0 ? (double)bias.host[r] : 0;
                for (int64_t k = 0; k < n_in; k++) want += (double)w[k] * (double)v[k];
                const double e = fabs((double)got[t * outs[i] + r] - want), tol = product_tolerance(w, v, n_in, m[i].host.dtype, n >= 16) + fabs(want) * 2 * half_ulp;
                if (!(e <= tol))
                    fail_msg("%s, %lld in, %d tokens: product %d, token %lld, row %lld: %g, want %g, tolerance %g", sr_dtype_name(type),
                             (long long)n_in, n, i, (long long)t, (long long)r, (double)got[t * outs[i] + r], want, tol);
            }
        }
        free(got);
        drop_matrix(&m[i]);
        drop(&y[i]);
    }
    drop(&x);
    drop(&bias);
}

static const sr_dtype types[] = {SR_DTYPE_F32,  SR_DTYPE_F16,  SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1,
                                 SR_DTYPE_Q5_0, SR_DTYPE_Q5_1, SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K};
enum { N_TYPES = sizeof types / sizeof types[0] };

static void need_gpu(void) { if (!gpu) skip(); }

static void matmul(void **state)
{
    (void)state;
    need_gpu();
    OK(gpu->ops->matmul_reserve(gpu, 64, 20480, 128, &err));
    for (int i = 0; i < N_TYPES; i++) {
        static const int32_t tokens[] = {1, 4, 6, 13, 17, 33};
        for (size_t k = 0; k < sizeof tokens / sizeof tokens[0]; k++) {
            matmul_case(types[i], 256, tokens[k]);
            if (!is_quick) matmul_case(types[i], 1536, tokens[k]);
            if (!is_quick && sr_dtype_find(types[i])->block_elems <= 32) matmul_case(types[i], 576, tokens[k]);
        }
    }
    /* Rows so long that a block has room for the activations of 8 tokens no more, of 4, of 1 alone. */
    for (int i = N_TYPES - 3; i < N_TYPES; i++)
        matmul_case(types[i], 8192, 8), matmul_case(types[i], 14336, 5), matmul_case(types[i], 20480, 3);
}

static void embed(void **state)
{
    (void)state;
    need_gpu();
    static const int32_t ids[4] = {3, 0, 18, 3};
    int32_t *dev_ids;
    OK(gpu->ops->mem_new(gpu, (void **)&dev_ids, sizeof ids, "test", &err));
    gpu->ops->upload(gpu, dev_ids, ids, sizeof ids);
    for (int i = 0; i < N_TYPES; i++) {
        struct matrix m = new_matrix(types[i], 512, 19);
        struct pair x = new_output(4 * 512);
        gpu->ops->embed(gpu, &(struct embed_args){.w = &m.dev, .ids = dev_ids, .x = x.dev, .n = 4});
        for (int t = 0; t < 4; t++) memcpy(x.host + t * 512, m.values + ids[t] * 512, 512 * sizeof(float));
        expect_near(sr_dtype_name(types[i]), &x, 4 * half_ulp);
        drop(&x);
        drop_matrix(&m);
    }
    gpu->ops->mem_free(gpu, dev_ids);
}

/* ---- small ops ---- */

static void norm(void **state)
{
    (void)state;
    need_gpu();
    static const struct { int64_t d; int32_t n, heads; } cases[] = {{64, 3, 5}, {576, 2, 1}, {4096, 1, 1}, {5120, 7, 1}, {8, 1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int64_t d = cases[i].d;
        const size_t n = (size_t)(d * cases[i].n * cases[i].heads);
        struct pair x = new_pair(n, 3), y = new_output(n), w = new_pair((size_t)d, 1), add = new_pair(n, 1);
        struct norm_args a = {.x = x.host, .y = y.host, .w = w.host, .d = d, .n = cases[i].n, .heads = cases[i].heads, .eps = 1e-5f};
        cpu->ops->norm(cpu, &a);
        a.x = x.dev;
        a.y = y.dev;
        a.w = w.dev;
        gpu->ops->norm(gpu, &a);
        expect_near("norm", &y, (double)(d / 32 + 16) * half_ulp * 4);
        if (cases[i].heads == 1) {
            cpu->ops->add_norm(cpu, &(struct add_args){.x = x.host, .y = add.host, .d = d, .n = cases[i].n},
                               &(struct norm_args){.x = x.host, .y = y.host, .w = w.host, .d = d, .n = cases[i].n, .heads = 1, .eps = 1e-5f});
            gpu->ops->add_norm(gpu, &(struct add_args){.x = x.dev, .y = add.dev, .d = d, .n = cases[i].n},
                               &(struct norm_args){.x = x.dev, .y = y.dev, .w = w.dev, .d = d, .n = cases[i].n, .heads = 1, .eps = 1e-5f});
            expect_near("sum", &x, 0);
            expect_near("add_norm", &y, (double)(d / 32 + 16) * half_ulp * 4);
        }
        struct pair *all[] = {&x, &y, &w, &add};
        for (int k = 0; k < 4; k++) drop(all[k]);
    }
}

static void silu_and_add(void **state)
{
    (void)state;
    need_gpu();
    struct pair g = new_pair(3 * 1000, 20), u = new_pair(3 * 1000, 1), h = new_output(3 * 1000), x = new_pair(3 * 1000, 1);
    cpu->ops->silu_mul(cpu, &(struct silu_mul_args){.gate = g.host, .up = u.host, .h = h.host, .d = 1000, .n = 3});
    gpu->ops->silu_mul(gpu, &(struct silu_mul_args){.gate = g.dev, .up = u.dev, .h = h.dev, .d = 1000, .n = 3});
    expect_near("silu_mul", &h, 16 * half_ulp);
    cpu->ops->add(cpu, &(struct add_args){.x = x.host, .y = u.host, .d = 1000, .n = 3});
    gpu->ops->add(gpu, &(struct add_args){.x = x.dev, .y = u.dev, .d = 1000, .n = 3});
    expect_near("add", &x, 0);
    struct pair *all[] = {&g, &u, &h, &x};
    for (int k = 0; k < 4; k++) drop(all[k]);
}

static void rope(void **state)
{
    (void)state;
    need_gpu();
    int32_t pos = 123456, *dev_pos;
    OK(gpu->ops->mem_new(gpu, (void **)&dev_pos, sizeof pos, "test", &err));
    gpu->ops->upload(gpu, dev_pos, &pos, sizeof pos);
    OK(gpu->ops->matmul_reserve(gpu, 8, 64, 64, &err));
    OK(cpu->ops->matmul_reserve(cpu, 8, 64, 64, &err));
    for (int i = 0; i < 4; i++) {
        struct rope_spec s = {.kind = i & 1 ? ROPE_NEOX : ROPE_NORM, .n_dims = i & 2 ? 48 : 64, .magnitude = 1.25};
        for (int k = 0; k < s.n_dims / 2; k++) s.inv_freq[k] = pow(10000.0, -2.0 * k / s.n_dims);
        struct pair q = new_pair(5 * 3 * 64, 1), k = new_pair(5 * 2 * 64, 1);
        struct rope_args a = {.x = q.host, .spec = &s, .stride = 3 * 64, .n = 5, .heads = 3, .head_dim = 64, .pos0 = -1, .pos = &pos,
                              .x2 = k.host, .stride2 = 2 * 64, .heads2 = 2};
        cpu->ops->rope(cpu, &a);
        a.x = q.dev;
        a.x2 = k.dev;
        a.pos = dev_pos;
        gpu->ops->rope(gpu, &a);
        expect_near("rope", &q, 16 * half_ulp);
        expect_near("rope of the second array", &k, 16 * half_ulp);
        drop(&q);
        drop(&k);
    }
    gpu->ops->mem_free(gpu, dev_pos);
}

/* ---- half a layer, as the forward pass asks for it: what one product makes the next one takes ---- */

/* |error| of `got` as rows of m times what the GPU itself has as x, added to `base` where that is given. */
static void expect_product(const char *what, const struct matrix *m, const float *x, const float *base, const float *got)
{
    for (int64_t r = 0; r < m->host.n_out; r++) {
        const float *w = m->values + r * m->host.n_in;
        double want = base ? (double)base[r] : 0;
        for (int64_t k = 0; k < m->host.n_in; k++) want += (double)w[k] * (double)x[k];
        const double tol = product_tolerance(w, x, m->host.n_in, m->host.dtype, 0) + (fabs(want) + (base ? fabs((double)base[r]) : 0)) * 4 * half_ulp;
        if (!(fabs((double)got[r] - want) <= tol))
            fail_msg("%s, %s: row %lld is %g, want %g, tolerance %g", what, sr_dtype_name(m->host.dtype), (long long)r, (double)got[r], want, tol);
    }
}

static void expect_norm(const float *x, const float *w, const float *got, int64_t d, float eps)
{
    double squares = 0;
    for (int64_t i = 0; i < d; i++) squares += (double)x[i] * (double)x[i];
    const double f = 1 / sqrt(squares / (double)d + (double)eps);
    for (int64_t i = 0; i < d; i++) {
        const double want = (double)x[i] * f * (double)w[i];
        if (!(fabs((double)got[i] - want) <= fabs(want) * (double)(d / 32 + 16) * half_ulp))
            fail_msg("norm behind a product: element %lld is %g, want %g", (long long)i, (double)got[i], want);
    }
}

/* x += down(silu(gate h) * up h) with h = norm(x); then three products of norm(x). */
static void half_layer(sr_dtype type, int64_t d, int64_t ff, sr_dtype third)
{
    struct matrix first = new_matrix(type, d, d), gate = new_matrix(type, d, ff), up = new_matrix(type, d, ff), down = new_matrix(type, ff, d);
    struct matrix last[3] = {new_matrix(type, d, 70), new_matrix(type, d, 16), new_matrix(third, d, 48)};
    struct pair in = new_pair((size_t)d, 1), x = new_pair((size_t)d, 1), w1 = new_pair((size_t)d, 1), w2 = new_pair((size_t)d, 1), bias = new_pair(70, 1);
    struct pair h1 = new_output((size_t)d), h2 = new_output((size_t)d), g = new_output((size_t)ff), u = new_output((size_t)ff);
    struct pair y[3] = {new_output(70), new_output(16), new_output(48)}, mid = new_output((size_t)d);
    const float eps = 1e-5f;
    for (int stop = 0; stop < 2; stop++) { /* the first time to see x between the two halves */
        gpu->ops->upload(gpu, x.dev, x.host, (size_t)d * sizeof(float));
        gpu->ops->matmul(gpu, &(struct matmul_args){.n_weights = 1, .w = {&first.dev}, .y = {h1.dev}, .y_stride = {d}, .x = in.dev, .x_stride = d, .n = 1});
        gpu->ops->add_norm(gpu, &(struct add_args){.x = x.dev, .y = h1.dev, .d = d, .n = 1},
                           &(struct norm_args){.x = x.dev, .y = h1.dev, .w = w1.dev, .d = d, .n = 1, .heads = 1, .eps = eps});
        if (!stop) OK(gpu->ops->download(gpu, mid.host, x.dev, (size_t)d * sizeof(float), &err));
    }
    gpu->ops->matmul(gpu, &(struct matmul_args){.n_weights = 2, .w = {&gate.dev, &up.dev}, .y = {g.dev, u.dev}, .y_stride = {ff, ff}, .x = h1.dev,
                                                .x_stride = d, .n = 1});
    gpu->ops->silu_mul(gpu, &(struct silu_mul_args){.gate = g.dev, .up = u.dev, .h = g.dev, .d = ff, .n = 1});
    gpu->ops->matmul(gpu, &(struct matmul_args){.n_weights = 1, .w = {&down.dev}, .y = {h2.dev}, .y_stride = {d}, .x = g.dev, .x_stride = ff, .n = 1});
    gpu->ops->add_norm(gpu, &(struct add_args){.x = x.dev, .y = h2.dev, .d = d, .n = 1},
                       &(struct norm_args){.x = x.dev, .y = h2.dev, .w = w2.dev, .d = d, .n = 1, .heads = 1, .eps = eps});
    struct matmul_args a = {.n_weights = 3, .x = h2.dev, .x_stride = d, .n = 1, .bias = {bias.dev, NULL, NULL}};
    for (int i = 0; i < 3; i++) a.w[i] = &last[i].dev, a.y[i] = y[i].dev, a.y_stride[i] = y[i].n;
    gpu->ops->matmul(gpu, &a);
    float *got_x = fetch(&x), *got_1 = fetch(&h1), *got_2 = fetch(&h2), *got_g = fetch(&g), *got_u = fetch(&u);
    expect_product("added product", &first, in.host, x.host, mid.host);
    expect_norm(mid.host, w1.host, got_1, d, eps);
    expect_product("up", &up, got_1, NULL, got_u);
    for (int64_t r = 0; r < ff; r++) { /* gate is gone: silu of the product that it should be */
        double z = 0;
        for (int64_t k = 0; k < d; k++) z += (double)gate.values[r * d + k] * (double)got_1[k];
        const double tol = product_tolerance(gate.values + r * d, got_1, d, type, 0), want = z / (1 + exp(-z)) * (double)got_u[r];
        if (!(fabs((double)got_g[r] - want) <= 1.1 * tol * fabs((double)got_u[r]) + fabs(want) * 16 * half_ulp))
            fail_msg("silu, %s: row %lld is %g, want %g", sr_dtype_name(type), (long long)r, (double)got_g[r], want);
    }
    expect_product("down", &down, got_g, mid.host, got_x);
    expect_norm(got_x, w2.host, got_2, d, eps);
    for (int i = 0; i < 3; i++) {
        float *got = fetch(&y[i]);
        expect_product("product of a norm", &last[i], got_2, i == 0 ? bias.host : NULL, got);
        free(got);
    }
    float *all[] = {got_x, got_1, got_2, got_g, got_u};
    for (int i = 0; i < 5; i++) free(all[i]);
    struct pair *pairs[] = {&in, &x, &w1, &w2, &bias, &h1, &h2, &g, &u, &mid, &y[0], &y[1], &y[2]};
    for (int i = 0; i < 13; i++) drop(pairs[i]);
    struct matrix *matrices[] = {&first, &gate, &up, &down, &last[0], &last[1], &last[2]};
    for (int i = 0; i < 7; i++) drop_matrix(matrices[i]);
}

static void half_layers(void **state)
{
    (void)state;
    need_gpu();
    OK(gpu->ops->matmul_reserve(gpu, 1, 768, 768, &err));
    for (int i = 0; i < N_TYPES; i++) {
        half_layer(types[i], 256, 768, SR_DTYPE_Q6_K);
        if (!is_quick) half_layer(types[i], 512, 256, SR_DTYPE_BF16);
        if (!is_quick && sr_dtype_find(types[i])->block_elems <= 32) half_layer(types[i], 288, 608, types[i]); /* codes are padded */
    }
}

/* ---- experts ---- */

enum { EXPERTS = 12, USED = 3, D = 256, FF = 320, MOST = 150 };

/* A matrix of EXPERTS experts in both memories. */
static struct matrix new_experts(sr_dtype type, int64_t n_in, int64_t n_out)
{
    struct matrix m = new_matrix(type, n_in, n_out * EXPERTS);
    gpu->ops->weight_release(gpu, &m.dev);
    m.host.n_out = n_out;
    m.host.n_experts = EXPERTS;
    m.dev = m.host;
    OK(gpu->ops->weight_prepare(gpu, &m.dev, &err));
    return m;
}

/* The choice is the CPU's, bit for bit, ties and NaN too. */
static void choice(void **state)
{
    (void)state;
    need_gpu();
    enum { N = 7, ALL = 128, K = 8 };
    struct pair logits = new_pair((size_t)N * ALL, 3), weight = new_output((size_t)N * K), ids = new_output((size_t)N * K);
    int32_t *want = malloc((size_t)N * K * sizeof *want);
    for (int i = 0; i < ALL; i++) {
        logits.host[i] = (float)(i % 5); /* ties */
        if (i % 3 == 0) logits.host[ALL + i] = NAN;
        logits.host[2 * ALL + i] = 0;
        logits.host[3 * ALL + i] = -INFINITY;
    }
    logits.host[3 * ALL + 77] = 1;
    gpu->ops->upload(gpu, logits.dev, logits.host, logits.n * sizeof(float));
    for (int normalize = 0; normalize < 2; normalize++) {
        struct topk_args a = {.logits = logits.host, .ids = want, .weight = weight.host, .n = N, .n_experts = ALL, .n_used = K, .normalize = normalize};
        cpu->ops->topk(cpu, &a);
        a.logits = logits.dev;
        a.ids = (int32_t *)(void *)ids.dev;
        a.weight = weight.dev;
        gpu->ops->topk(gpu, &a);
        float *got = fetch(&ids);
        assert_memory_equal(got, want, (size_t)N * K * sizeof *want);
        free(got);
        got = fetch(&weight);
        for (size_t i = 0; i < weight.n; i++) {
            const double e = fabs((double)got[i] - (double)weight.host[i]);
            if (!(e <= 4 * half_ulp) && !(isnan(got[i]) && isnan(weight.host[i])))
                fail_msg("share %zu: %g, want %g", i, (double)got[i], (double)weight.host[i]);
        }
        free(got);
    }
    free(want);
    struct pair *all[] = {&logits, &weight, &ids};
    for (int k = 0; k < 3; k++) drop(all[k]);
}

static double dot_of(const struct matrix *m, int64_t expert, int64_t row, const double *x, double *size)
{
    const float *w = m->values + (expert * m->host.n_out + row) * m->host.n_in;
    double sum = 0;
    *size = 0;
    for (int64_t k = 0; k < m->host.n_in; k++) {
        sum += (double)w[k] * x[k];
        *size += fabs((double)w[k] * x[k]);
    }
    return sum;
}

/* y of one token, and in `off` what `u` relative rounding of weights and inputs of each product explains. */
static void mixture_of(const struct matrix *m, const float *x, const int32_t *ids, const float *share, double u, double *y, double *off)
{
    double in[D], h[FF], size;
    for (int k = 0; k < D; k++) in[k] = (double)x[k], y[k] = off[k] = 0;
    for (int j = 0; j < USED; j++) {
        double h_off[FF], loose = 0;
        for (int r = 0; r < FF; r++) {
            double g_size, u_size;
            const double g = dot_of(&m[0], ids[j], r, in, &g_size), up = dot_of(&m[1], ids[j], r, in, &u_size), s = g / (1 + exp(-g));
            h[r] = s * up;
            h_off[r] = u * (1.1 * g_size * (fabs(up) + u * u_size) + fabs(s) * u_size);
        }
        for (int r = 0; r < D; r++) {
            const float *w = m[2].values + ((int64_t)ids[j] * D + r) * FF;
            y[r] += (double)share[j] * dot_of(&m[2], ids[j], r, h, &size);
            loose = u * size;
            for (int k = 0; k < FF; k++) loose += fabs((double)w[k]) * h_off[k];
            off[r] += fabs((double)share[j]) * loose;
        }
    }
}

static void mixture_case(sr_dtype gate, sr_dtype up, sr_dtype down, int32_t n)
{
    struct matrix m[3] = {new_experts(gate, D, FF), new_experts(up, D, FF), new_experts(down, FF, D)};
    struct pair x = new_pair((size_t)n * D, 1), y = new_output((size_t)n * D), share = new_pair((size_t)n * USED, 1);
    int32_t *ids = malloc((size_t)n * USED * sizeof *ids), *dev_ids;
    const int is_few = gate == up && (n < 16 || gate == SR_DTYPE_F32);
    for (int32_t i = 0; i < n * USED; i++) /* most tokens choose expert 5, none chooses 7 */
        ids[i] = i % USED == 0 ? 5 : i % USED == 1 ? (i / USED) % 5 : 8 + (i / USED * 7) % 4;
    OK(gpu->ops->mem_new(gpu, (void **)&dev_ids, (size_t)n * USED * sizeof *ids, "test", &err));
    gpu->ops->upload(gpu, dev_ids, ids, (size_t)n * USED * sizeof *ids);
    gpu->ops->moe(gpu, &(struct moe_args){.gate = &m[0].dev, .up = &m[1].dev, .down = &m[2].dev, .x = x.dev, .ids = dev_ids, .weight = share.dev,
                                          .y = y.dev, .n = n, .n_used = USED});
    float *got = fetch(&y);
    for (int32_t t = 0; t < n; t += n > 20 ? 13 : 1) {
        double want[D], off[D];
        mixture_of(m, x.host + t * D, ids + t * USED, share.host + t * USED, is_few ? 400 * half_ulp : 1.0 / 128, want, off);
        for (int r = 0; r < D; r++) {
            const double tol = off[r] + 1e-6 + fabs(want[r]) * 8 * half_ulp;
            if (!(fabs((double)got[t * D + r] - want[r]) <= tol))
                fail_msg("%s, %s, %s, %d tokens: token %d, element %d: %g, want %g, tolerance %g", sr_dtype_name(gate), sr_dtype_name(up),
                         sr_dtype_name(down), n, t, r, (double)got[t * D + r], want[r], tol);
        }
    }
    free(got);
    gpu->ops->moe(gpu, &(struct moe_args){.gate = &m[0].dev, .up = &m[1].dev, .down = &m[2].dev, .x = x.dev, .ids = dev_ids, .weight = share.dev,
                                          .y = x.dev, .n = n, .n_used = USED}); /* y may be x */
    float *first = fetch(&y), *second = fetch(&x);
    assert_memory_equal(first, second, (size_t)n * D * sizeof *first);
    free(first);
    free(second);
    gpu->ops->mem_free(gpu, dev_ids);
    free(ids);
    for (int i = 0; i < 3; i++) drop_matrix(&m[i]);
    struct pair *all[] = {&x, &y, &share};
    for (int k = 0; k < 3; k++) drop(all[k]);
}

static void mixture(void **state)
{
    (void)state;
    need_gpu();
    const struct moe_shape shape = {.max_n = MOST, .n_used = USED, .n_experts = EXPERTS, .n_embd = D, .n_ff = FF};
    OK(gpu->ops->moe_reserve(gpu, &shape, &err));
    for (int i = 0; i < N_TYPES; i++) {
        const sr_dtype down = sr_dtype_find(types[i])->block_elems > 32 ? SR_DTYPE_Q8_0 : types[i]; /* FF is no multiple of 256 */
        static const int32_t tokens[] = {1, 3, 17, MOST};
        for (size_t k = 0; k < sizeof tokens / sizeof tokens[0]; k += is_quick ? 2 : 1) mixture_case(types[i], types[i], down, tokens[k]);
    }
    mixture_case(SR_DTYPE_Q4_K, SR_DTYPE_Q6_K, SR_DTYPE_Q5_0, 2);
    struct weight w = {.dtype = SR_DTYPE_Q2_K, .n_in = 256, .n_out = 8, .row_bytes = 84, .n_experts = 4};
    assert_int_equal(gpu->ops->weight_prepare(gpu, &w, &err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "q2_K"));
}

/* ---- memory and recordings ---- */

static void memory(void **state)
{
    (void)state;
    need_gpu();
    void *p = NULL;
    assert_int_equal(gpu->ops->mem_new(gpu, &p, (size_t)1 << 50, "a petabyte", &err), SR_ERR_RESOURCE);
    assert_true(strstr(err.text, "a petabyte") && strstr(err.text, "missing"));
    OK(gpu->ops->mem_new(gpu, &p, 64, "test", &err)); /* a refusal leaves the device usable */
    gpu->ops->mem_free(gpu, p);
    gpu->ops->mem_free(gpu, NULL);
}

static void replayed(void **state)
{
    (void)state;
    need_gpu();
    struct pair x = new_pair(256, 1), y = new_pair(256, 1);
    struct recording *r;
    OK(gpu->ops->record_begin(gpu, &err));
    gpu->ops->add(gpu, &(struct add_args){.x = x.dev, .y = y.dev, .d = 256, .n = 1});
    OK(gpu->ops->record_end(gpu, &r, &err));
    expect_near("nothing ran", &x, 0);
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < 256; i++) y.host[i] += 0.5f; /* other data at the same place */
        gpu->ops->upload(gpu, y.dev, y.host, 256 * sizeof(float));
        gpu->ops->replay(gpu, r);
        for (int i = 0; i < 256; i++) x.host[i] += y.host[i];
        expect_near("replay", &x, 0);
    }
    gpu->ops->record_free(gpu, r);
    drop(&x);
    drop(&y);
}

static void unsupported(void **state)
{
    (void)state;
    need_gpu();
    uint8_t row[84] = {0};
    struct weight w = {.data = row, .dtype = SR_DTYPE_Q2_K, .n_in = 256, .n_out = 1, .row_bytes = 84};
    assert_int_equal(gpu->ops->weight_prepare(gpu, &w, &err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "q2_K"));
    assert_null(w.packed);
    struct backend *b;
    assert_int_equal(sr_backend_cuda_open(&b, 99, 1, &err), SR_ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul), cmocka_unit_test(embed),  cmocka_unit_test(norm),     cmocka_unit_test(silu_and_add), cmocka_unit_test(half_layers),
        cmocka_unit_test(choice), cmocka_unit_test(mixture),
        cmocka_unit_test(rope),   cmocka_unit_test(memory), cmocka_unit_test(replayed), cmocka_unit_test(unsupported),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_both, close_both);
}
