/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole models on a GPU against the CPU: tiny random ones of every head size and pairing that kernels know, and SmolLM2
 * in every route mode. Prefill and decode of the same tokens on both; logits within what half-precision products explain,
 * KL of SmolLM2 at most 0.001. Twice the same on the GPU: the same bits. Skipped without a GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "../unit/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char smollm2[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
static const char *path_of_model = smollm2; /* of the cases below: that, or SR_QWEN */

static sr_error err;

#define OK(call)                                                  \
    do {                                                          \
        if ((call) != SR_OK) fail_msg("%s: %s", #call, err.text); \
    } while (0)

static void need_gpu(void)
{
    char line[160];
    if (sr_device_get(0, line, sizeof line)) return;
    print_message("SKIP: no GPU\n");
    skip();
}

/* One session on a device. */
struct run {
    sr_model *m;
    sr_session *s;
    int32_t n_vocab;
};

static struct run open_part(const char *path, const char *device, int n_gpu_layers, const sr_session_options *o)
{
    struct run r;
    sr_model_options mo = sr_model_options_default();
    sr_model_info info;
    mo.device = device;
    mo.n_gpu_layers = n_gpu_layers;
    OK(sr_model_open(&r.m, path, &mo, &err));
    OK(sr_session_new(&r.s, r.m, o, &err));
    sr_model_get_info(r.m, &info);
    r.n_vocab = info.n_vocab;
    return r;
}

static struct run open_run(const char *path, const char *device, const sr_session_options *o) { return open_part(path, device, -1, o); }

static void close_run(struct run *r)
{
    sr_session_free(r->s);
    sr_model_close(r->m);
}

/* n tokens as prefill, the rest one by one; logits of all, [n_all][n_vocab]. */
static float *logits_of(struct run *r, const int32_t *ids, int32_t n, int32_t n_all)
{
    float *out = malloc((size_t)n_all * (size_t)r->n_vocab * sizeof(float));
    if (n) OK(sr_session_prefill_logits(r->s, ids, n, out, &err));
    for (int32_t t = n; t < n_all; t++) {
        OK(sr_session_decode(r->s, ids[t], &err));
        memcpy(out + (size_t)t * (size_t)r->n_vocab, sr_session_logits(r->s), (size_t)r->n_vocab * sizeof(float));
    }
    return out;
}

static double log_sum(const float *x, int32_t n)
{
    double top = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++) top = fmax(top, (double)x[i]);
    for (int32_t i = 0; i < n; i++) sum += exp((double)x[i] - top);
    return top + log(sum);
}

static double divergence(const float *p, const float *q, int32_t n)
{
    const double lp = log_sum(p, n), lq = log_sum(q, n);
    double kl = 0;
    for (int32_t i = 0; i < n; i++) kl += exp((double)p[i] - lp) * (((double)p[i] - lp) - ((double)q[i] - lq));
    return kl;
}

/* ---- tiny models ---- */

enum { N = 150, ALL = 200 }; /* tokens of a prefill, and with those decoded after it */

/* A model on the GPU (twice) against the CPU. */
struct tiny_case {
    struct tiny_spec spec;
    const char *name;
    sr_dtype kv;      /* on the GPU; where the CPU has no such type, f16 there */
    double tolerance; /* of the largest logit */
    int n_flips;      /* positions where rounding may have made the router choose otherwise */
};

static struct tiny_case small_case(int32_t head_dim, int32_t group, sr_dtype dtype, const char *architecture, double tolerance)
{
    struct tiny_case c = {.spec = tiny_spec_default(), .name = architecture, .kv = SR_DTYPE_F16, .tolerance = tolerance};
    c.spec.architecture = architecture;
    c.spec.biases = strcmp(architecture, "qwen2") == 0;
    c.spec.n_embd = 256;
    c.spec.n_ff = 512;
    c.spec.n_kv_heads = 2;
    c.spec.n_heads = 2 * group;
    c.spec.head_dim = head_dim;
    c.spec.dtype = dtype;
    return c;
}

static const char *write_case(const struct tiny_case *c)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/sr-golden-cuda-%d.gguf", (int)getpid());
    tiny_model_write(path, &c->spec);
    return path;
}

static void expect_like(const struct tiny_case *c, const char *against, const float *got, const float *want, int32_t n_vocab)
{
    int n_off = 0;
    for (int32_t t = 0; t < ALL; t++) {
        double top = 0, worst = 0;
        for (int32_t i = 0; i < n_vocab; i++) {
            const size_t at = (size_t)t * (size_t)n_vocab + (size_t)i;
            top = fmax(top, fabs((double)want[at]));
            worst = fmax(worst, fabs((double)want[at] - (double)got[at]));
        }
        n_off += !(worst <= c->tolerance * top);
        if (n_off > c->n_flips || isnan(worst))
            fail_msg("%s, head size %d, %s, K/V %s, against %s: position %d (prefill to %d) is off by %g of %g", c->name, c->spec.head_dim,
                     sr_dtype_name(c->spec.dtype), sr_dtype_name(c->kv), against, t, N, worst, top);
    }
}

static void tiny_run(const struct tiny_case *c)
{
    sr_session_options o = sr_session_options_default(), on_cpu = o;
    int32_t ids[ALL];
    const char *path = write_case(c);
    tiny_tokens(3, ids, ALL);
    o.k_type = o.v_type = c->kv;
    on_cpu.k_type = on_cpu.v_type = c->kv == SR_DTYPE_F8_E4M3 ? SR_DTYPE_F16 : c->kv;
    struct run cpu = open_run(path, "none", &on_cpu), gpu = open_run(path, "cuda", &o), again = open_run(path, "cuda", &o);
    float *want = logits_of(&cpu, ids, N, ALL), *got = logits_of(&gpu, ids, N, ALL), *twice = logits_of(&again, ids, N, ALL);
    assert_memory_equal(got, twice, (size_t)ALL * (size_t)cpu.n_vocab * sizeof(float));
    expect_like(c, "the CPU", got, want, cpu.n_vocab);
    free(want);
    free(got);
    free(twice);
    close_run(&cpu);
    close_run(&gpu);
    close_run(&again);
    unlink(path);
}

static void tiny_case(int32_t head_dim, int32_t group, sr_dtype dtype, const char *architecture, double tolerance)
{
    const struct tiny_case c = small_case(head_dim, group, dtype, architecture, tolerance);
    tiny_run(&c);
}

/* f32 weights are multiplied in f32; attention rounds to f16, whose 2^-11 a random model multiplies a few times over. */
static void tiny_models(void **state)
{
    (void)state;
    need_gpu();
    tiny_case(64, 1, SR_DTYPE_F32, "llama", 5e-3);
    tiny_case(64, 3, SR_DTYPE_F32, "qwen2", 5e-3);
    tiny_case(80, 4, SR_DTYPE_F32, "llama", 5e-3);
    tiny_case(96, 5, SR_DTYPE_F32, "qwen2", 5e-3);
    tiny_case(128, 8, SR_DTYPE_F32, "llama", 5e-3);
    tiny_case(256, 2, SR_DTYPE_F32, "qwen2", 5e-3);
}

/* Prefill rounds weights and activations to bf16. */
static void tiny_quantized(void **state)
{
    (void)state;
    need_gpu();
    static const sr_dtype types[] = {SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) tiny_case(64, 2, types[i], "llama", 4e-2);
}

/* Experts: QK-norm, more tokens than experts in prefill, and one at a time. A CPU with AMX rounds q, k, p and v of its prefill
 * to bf16: four times 2^-9 over two layers. */
static void mixtures(void **state)
{
    (void)state;
    need_gpu();
    static const struct { sr_dtype type; double tolerance; } types[] = {{SR_DTYPE_F32, 4.0 / 512}, {SR_DTYPE_Q8_0, 4e-2}, {SR_DTYPE_Q4_0, 4e-2}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        struct tiny_case c = small_case(64, 4, types[i].type, "qwen3moe", types[i].tolerance);
        c.spec.n_ff = 96;
        c.spec.n_experts = c.spec.n_used = 6;
        tiny_run(&c);
        c.spec.n_experts = 16; /* where the fourth and the fifth are close, f16 attention decides otherwise */
        c.spec.n_used = 4;
        c.n_flips = ALL / 5;
        tiny_run(&c);
    }
}

/* Rounding of the type itself, by 2^-12 to 2^-5 of a value, against the CPU's f16 for fp8. */
static void cache_types(void **state)
{
    (void)state;
    need_gpu();
    static const struct { sr_dtype type; double tolerance; } types[] = {{SR_DTYPE_BF16, 2e-2}, {SR_DTYPE_Q8_0, 2e-2}, {SR_DTYPE_F8_E4M3, 0.25}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        struct tiny_case c = small_case(128, 4, SR_DTYPE_F32, "llama", types[i].tolerance);
        c.kv = types[i].type;
        tiny_run(&c);
        c.spec.head_dim = 64;
        tiny_run(&c);
    }
}

/* fp8: prefill and decode read the same codes, though by other kernels, and rows may come in parts. */
static void fp8_codes(void **state)
{
    (void)state;
    need_gpu();
    struct tiny_case c = small_case(128, 2, SR_DTYPE_F32, "qwen2", 1e-2);
    sr_session_options o = sr_session_options_default();
    int32_t ids[ALL];
    const char *path = write_case(&c);
    c.kv = o.k_type = o.v_type = SR_DTYPE_F8_E4M3;
    tiny_tokens(5, ids, ALL);
    struct run decoded = open_run(path, "cuda", &o), whole = open_run(path, "cuda", &o), mixed = open_run(path, "cuda", &o);
    float *a = logits_of(&decoded, ids, 64, ALL), *b = logits_of(&whole, ids, ALL, ALL);
    expect_like(&c, "prefill", a, b, decoded.n_vocab);
    o.v_type = SR_DTYPE_F16;
    sr_session *s = NULL;
    assert_int_equal(sr_session_new(&s, mixed.m, &o, &err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "f8_e4m3"));
    free(a);
    free(b);
    close_run(&decoded);
    close_run(&whole);
    close_run(&mixed);
    unlink(path);
}

/* Layers beyond -ngl on the CPU, the embedding with them; the answer must not depend on where the cut is. */
static void some_layers(void **state)
{
    (void)state;
    need_gpu();
    struct tiny_case c = small_case(64, 2, SR_DTYPE_F32, "llama", 8.0 / 512); /* as with experts, over four layers */
    sr_session_options o = sr_session_options_default();
    int32_t ids[ALL];
    c.spec.n_layers = 4;
    const char *path = write_case(&c);
    tiny_tokens(7, ids, ALL);
    struct run cpu = open_run(path, "none", &o);
    float *want = logits_of(&cpu, ids, N, ALL);
    for (int n = 1; n <= 4; n++) {
        sr_model_info info;
        sr_session_stats a, b;
        struct run part = open_part(path, "cuda", n, &o);
        float *got = logits_of(&part, ids, N, ALL);
        sr_model_get_info(part.m, &info);
        assert_int_equal(info.n_gpu_layers, n);
        assert_true((strstr(info.backend, "layers") != NULL) == (n < 4));
        expect_like(&c, "the CPU, with fewer layers on the GPU", got, want, cpu.n_vocab);
        sr_session_get_stats(cpu.s, &a);
        sr_session_get_stats(part.s, &b);
        assert_true(a.route.steps == b.route.steps && a.route.units == b.route.units && a.route.dense_bytes == b.route.dense_bytes);
        free(got);
        close_run(&part);
    }
    struct run all = open_part(path, "cuda", SR_GPU_LAYERS_AUTO, &o);
    sr_model_info info;
    sr_model_get_info(all.m, &info);
    assert_int_equal(info.n_gpu_layers, 4);
    sr_session *s = NULL;
    o.n_ctx = 2000000000;
    o.allow_extrapolation = 1;
    assert_int_equal(sr_session_new(&s, all.m, &o, &err), SR_ERR_RESOURCE);
    assert_true(strstr(err.text, "missing") && strstr(err.text, "tokens would fit") && strstr(err.text, "-ngl"));
    print_message("%s\n", err.text);
    free(want);
    close_run(&cpu);
    close_run(&all);
    unlink(path);
}

/* ---- session files ---- */

/* Tokens [from, to) decoded on both; logits of the last. */
static void expect_to_go_on(const char *what, struct run *a, struct run *b, const int32_t *ids, int32_t from, int32_t to, double tolerance)
{
    double top = 0, worst = 0;
    for (int32_t t = from; t < to; t++) {
        OK(sr_session_decode(a->s, ids[t], &err));
        OK(sr_session_decode(b->s, ids[t], &err));
    }
    for (int32_t i = 0; i < a->n_vocab; i++) {
        top = fmax(top, fabs((double)sr_session_logits(a->s)[i]));
        worst = fmax(worst, fabs((double)sr_session_logits(a->s)[i] - (double)sr_session_logits(b->s)[i]));
    }
    if (!(worst <= tolerance * top)) fail_msg("%s: after %d tokens the two are %g of %g apart", what, to, worst, top);
}

/* Saved on one device after n tokens, restored on the other: both go on alike, and past where the first sketch is made. */
static void session_case(const char *from, const char *to, sr_dtype kv, int32_t n, int n_gpu_layers)
{
    enum { SKETCHED = 2150, LAST = 2200 };
    struct tiny_case c = small_case(64, 2, SR_DTYPE_F32, "llama", 0);
    sr_session_options o = sr_session_options_default();
    char file[64];
    int32_t *ids = malloc(LAST * sizeof *ids);
    sr_session_stats stats;
    c.spec.n_ctx = 4096;
    c.spec.n_layers = 3;
    const char *path = write_case(&c);
    snprintf(file, sizeof file, "/tmp/sr-golden-cuda-%d.session", (int)getpid());
    tiny_tokens(11, ids, LAST);
    o.n_ctx = 4096;
    o.k_type = o.v_type = kv;
    o.route.min_len = 512;
    o.route.window = 64;
    o.route.eps = 0.02f;
    o.route.breaker = 0;
    struct run a = open_part(path, from, n_gpu_layers, &o), b = open_part(path, to, n_gpu_layers, &o);
    OK(sr_session_prefill(a.s, ids, n - 2, NULL, NULL, NULL, &err));
    for (int32_t t = n - 2; t < n; t++) OK(sr_session_decode(a.s, ids[t], &err)); /* with n > 2048 there is a sketch now */
    OK(sr_session_save(a.s, file, &err));
    OK(sr_session_restore(b.s, file, &err));
    assert_int_equal(sr_session_len(b.s), n);
    assert_memory_equal(sr_session_logits(a.s), sr_session_logits(b.s), (size_t)a.n_vocab * sizeof(float));
    OK(sr_session_save(b.s, file, &err)); /* what was restored can be saved, with no step between */
    OK(sr_session_restore(a.s, file, &err));
    expect_to_go_on(from, &a, &b, ids, n, n + 4, 5e-2);
    OK(sr_session_prefill(a.s, ids + n + 4, SKETCHED - n - 4, NULL, NULL, NULL, &err));
    OK(sr_session_prefill(b.s, ids + n + 4, SKETCHED - n - 4, NULL, NULL, NULL, &err));
    expect_to_go_on(to, &a, &b, ids, SKETCHED, LAST, 5e-2);
    sr_session_get_stats(b.s, &stats);
    assert_true(stats.route.sketch_rows > 0 && stats.route.units_list + stats.route.units_near > 0);
    free(ids);
    close_run(&a);
    close_run(&b);
    unlink(file);
    unlink(path);
}

static void sessions(void **state)
{
    (void)state;
    need_gpu();
    static const sr_dtype types[] = {SR_DTYPE_F16, SR_DTYPE_Q8_0, SR_DTYPE_BF16};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        session_case("cuda", "none", types[i], 2100, -1);
        session_case("none", "cuda", types[i], 2100, -1);
    }
    session_case("cuda", "none", SR_DTYPE_F16, 333, -1); /* own moments half collected */
    session_case("none", "cuda", SR_DTYPE_F16, 333, -1);
    session_case("cuda", "cuda", SR_DTYPE_F8_E4M3, 2100, -1);
    session_case("cuda", "cuda", SR_DTYPE_Q8_0, 2100, 1);
}

/* ---- SmolLM2 ---- */

static int32_t *read_text(const sr_model *m, int32_t n)
{
    FILE *f = fopen("tests/golden/text.txt", "rb");
    assert_non_null(f);
    char *text = malloc(1 << 20);
    size_t bytes = fread(text, 1, 1 << 20, f);
    fclose(f);
    int32_t *ids, n_ids, *out = malloc((size_t)n * sizeof *out);
    OK(sr_tokenize(m, text, bytes, SR_BOS_AUTO, 0, &ids, &n_ids, &err));
    for (int32_t i = 0; i < n; i++) out[i] = ids[i % n_ids];
    sr_tokens_free(ids);
    free(text);
    return out;
}

/* Returns the GPU's counters. */
static sr_route_stats model_part(const char *what, const sr_session_options *o, int n_gpu_layers, int32_t n, int32_t n_all, double limit)
{
    sr_session_options on_cpu = *o;
    if (o->k_type == SR_DTYPE_F8_E4M3) on_cpu.k_type = on_cpu.v_type = SR_DTYPE_F16;
    struct run cpu = open_run(path_of_model, "none", &on_cpu), gpu = open_part(path_of_model, "cuda", n_gpu_layers, o);
    int32_t *ids = read_text(cpu.m, n_all);
    sr_session_stats a, b;
    double sum = 0, worst = 0;
    int at = 0;
    float *want = logits_of(&cpu, ids, n, n_all), *got = logits_of(&gpu, ids, n, n_all);
    for (int32_t t = 0; t < n_all; t++) {
        const double kl = divergence(want + (size_t)t * (size_t)cpu.n_vocab, got + (size_t)t * (size_t)cpu.n_vocab, cpu.n_vocab);
        sum += kl;
        if (kl > worst) {
            worst = kl;
            at = t;
        }
    }
    sr_session_get_stats(cpu.s, &a);
    sr_session_get_stats(gpu.s, &b);
    print_message("%s: KL mean %.2e, worst %.2e at %d; bytes of dense: CPU %.4f, GPU %.4f\n", what, sum / n_all, worst, at,
                  (double)a.route.kv_bytes / (double)a.route.dense_bytes, (double)b.route.kv_bytes / (double)b.route.dense_bytes);
    if (!(sum / n_all <= limit)) fail_msg("%s: mean KL %g, limit %g; worst %g at position %d", what, sum / n_all, limit, worst, at);
    assert_true(a.route.steps == b.route.steps && a.route.units == b.route.units);
    assert_true(a.route.dense_bytes == b.route.dense_bytes * (o->k_type == SR_DTYPE_F8_E4M3 ? 2 : 1));
    free(want);
    free(got);
    free(ids);
    close_run(&cpu);
    close_run(&gpu);
    return b.route;
}

static sr_route_stats model_case(const char *what, const sr_session_options *o, int32_t n, int32_t n_all, double limit)
{
    return model_part(what, o, -1, n, n_all, limit);
}

static void need_smollm2(void)
{
    need_gpu();
    path_of_model = smollm2;
    if (access(smollm2, R_OK) == 0) return;
    print_message("SKIP: %s is absent\n", smollm2);
    skip();
}

static void smollm2_dense(void **state)
{
    (void)state;
    need_smollm2();
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 1024;
    o.route.mode = SR_ROUTE_DENSE;
    model_case("dense", &o, 300, 360, 1e-3);
    model_case("dense, decoded from the first token", &o, 0, 60, 1e-3);
    o.k_type = o.v_type = SR_DTYPE_BF16;
    model_case("dense, bf16 cache", &o, 100, 130, 2e-3); /* an ulp of bf16 apart where q and k round otherwise */
    o.k_type = o.v_type = SR_DTYPE_Q8_0;
    model_case("dense, q8_0 cache", &o, 100, 130, 2e-3);
    o.k_type = o.v_type = SR_DTYPE_F8_E4M3;
    model_case("dense, fp8 cache against f16", &o, 100, 130, 5e-2);
}

static void smollm2_window(void **state)
{
    (void)state;
    need_smollm2();
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 1024;
    o.route.mode = SR_ROUTE_WINDOW;
    o.route.min_len = 320;
    o.route.window = 128;
    o.route.audit = 0.2f;
    const sr_route_stats s = model_case("window", &o, 300, 380, 1e-3);
    assert_true(s.units_near > 0 && s.units_all > 0 && s.audits > 0);
}

static void smollm2_paper(void **state)
{
    (void)state;
    need_smollm2();
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 1024;
    o.route.mode = SR_ROUTE_PAPER;
    o.route.min_len = 0;
    o.route.tau_set = 1;
    o.route.tau[0] = 0.9;
    const sr_route_stats s = model_case("paper", &o, 300, 360, 1e-3);
    assert_true(s.units_all > 0);
}

static void smollm2_mass(void **state)
{
    (void)state;
    need_smollm2();
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 4096;
    o.route.mode = SR_ROUTE_MASS;
    o.route.audit = 0.2f;
    const sr_route_stats s = model_case("mass", &o, 2200, 2260, 2e-3);
    assert_true(s.units_near + s.units_list > 0 && s.sketch_rows > 0 && s.audits > 0);
    model_part("mass, 10 of 30 layers on the GPU", &o, 10, 2200, 2230, 2e-3);
}

/* Qwen2.5 (0.5B, say) by SR_QWEN=FILE: biases, the other rotary pairing, keys far from zero. */
static void qwen(void **state)
{
    (void)state;
    need_gpu();
    path_of_model = getenv("SR_QWEN");
    if (!path_of_model) {
        print_message("SKIP: SR_QWEN names no model\n");
        skip();
    }
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 4096;
    o.route.mode = SR_ROUTE_DENSE;
    model_case("qwen, dense", &o, 300, 340, 1e-3);
    model_part("qwen, dense, 8 layers on the GPU", &o, 8, 300, 320, 1e-3);
    o.route.mode = SR_ROUTE_MASS;
    o.route.audit = 0.2f;
    model_case("qwen, mass", &o, 2200, 2240, 2e-3);
}

/* The first n tokens of texts that say nothing twice. */
static int32_t *read_files(const sr_model *m, int32_t n)
{
    static const char *const paths[] = {"LICENSE", "docs/attention.md", "docs/routing.md"};
    char *text = malloc(1 << 20);
    size_t bytes = 0;
    int32_t *ids, n_ids, *out = malloc((size_t)n * sizeof *out);
    for (int i = 0; i < 3; i++) {
        FILE *f = fopen(paths[i], "rb");
        if (!f) fail_msg("%s: cannot be opened", paths[i]);
        bytes += fread(text + bytes, 1, ((size_t)1 << 20) - bytes, f);
        fclose(f);
    }
    OK(sr_tokenize(m, text, bytes, SR_BOS_AUTO, 0, &ids, &n_ids, &err));
    assert_true(n_ids >= n);
    memcpy(out, ids, (size_t)n * sizeof *out);
    sr_tokens_free(ids);
    free(text);
    return out;
}

/* Tokens [n, n_all) one by one: how far each one's distribution is from that of `dense`, or with dense NULL the logits. */
static float *decode(struct run *r, const int32_t *ids, int32_t n, int32_t n_all, const float *dense, double *kl)
{
    const size_t vocab = (size_t)r->n_vocab;
    float *out = dense ? NULL : malloc((size_t)(n_all - n) * vocab * sizeof *out);
    for (int32_t t = 0; t < n_all - n; t++) {
        OK(sr_session_decode(r->s, ids[n + t], &err));
        if (dense) kl[t] = divergence(dense + (size_t)t * vocab, sr_session_logits(r->s), r->n_vocab);
        else memcpy(out + (size_t)t * vocab, sr_session_logits(r->s), vocab * sizeof *out);
    }
    return out;
}

static double share(int64_t part, int64_t all) { return all ? (double)part / (double)all : 0; }

/* Means of two series that come in pairs: apart by more than chance? */
static void same_mean(const char *what, const double *x, const double *y, int32_t n)
{
    double sum = 0, squares = 0, mean_x = 0, mean_y = 0;
    for (int32_t t = 0; t < n; t++) {
        sum += x[t] - y[t];
        squares += (x[t] - y[t]) * (x[t] - y[t]);
        mean_x += x[t] / n;
        mean_y += y[t] / n;
    }
    const double mean = sum / n, error = sqrt((squares / n - mean * mean) / n);
    print_message("%s: CPU %.5f, GPU %.5f, difference %.1e +- %.1e\n", what, mean_x, mean_y, mean, error);
    if (!(fabs(mean) <= 4 * error + 1e-4)) fail_msg("%s: CPU %g, GPU %g", what, mean_x, mean_y);
}

/* The whole contract, through the change to the third band at 4,000 rows: what is read, how far that is from dense and what
 * audits found and taught, beside the CPU. */
static void contract_case(const char *what, float delta, float audit)
{
    enum { FROM = 3900, TO = 4100 };
    sr_session_options o = sr_session_options_default();
    static double cpu_kl[TO - FROM], gpu_kl[TO - FROM];
    sr_session_stats x, y;
    o.n_ctx = TO;
    o.route.mode = SR_ROUTE_DENSE;
    struct run cpu = open_run(smollm2, "none", &o), gpu = open_run(smollm2, "cuda", &o);
    int32_t *ids = read_files(cpu.m, TO);
    OK(sr_session_prefill(cpu.s, ids, FROM, NULL, NULL, NULL, &err));
    OK(sr_session_prefill(gpu.s, ids, FROM, NULL, NULL, NULL, &err));
    float *dense = decode(&cpu, ids, FROM, TO, NULL, NULL);
    OK(sr_session_truncate(cpu.s, FROM, &err));
    o.route.mode = SR_ROUTE_MASS;
    o.route.min_len = 2048;
    o.route.delta = delta;
    o.route.audit = audit;
    o.route.breaker = 1;
    OK(sr_session_route_set(cpu.s, &o.route, &err));
    OK(sr_session_route_set(gpu.s, &o.route, &err));
    sr_session_stats_reset(cpu.s);
    decode(&cpu, ids, FROM, TO, dense, cpu_kl);
    decode(&gpu, ids, FROM, TO, dense, gpu_kl);
    sr_session_get_stats(cpu.s, &x);
    sr_session_get_stats(gpu.s, &y);
    const sr_route_stats *a = &x.route, *b = &y.route;
    const double read_a = (double)a->kv_bytes / (double)a->dense_bytes, read_b = (double)b->kv_bytes / (double)b->dense_bytes;
    const double broken = share(a->broken, a->cases), chance = sqrt(broken / (double)a->cases);
    print_message("%s: read CPU %.4f, GPU %.4f; cases %lld, %lld; above eps %.4f, %.4f; broken %.5f, %.5f; threshold %.4f, %.4f\n", what,
                  read_a, read_b, (long long)a->cases, (long long)b->cases, share(a->above_eps, a->cases), share(b->above_eps, b->cases),
                  broken, share(b->broken, b->cases), a->threshold_sum / (double)a->thresholds, b->threshold_sum / (double)b->thresholds);
    print_message("%s: open units %lld, %lld; opened %lld, %lld; list units %lld, %lld; encoded %lld, %lld\n", what, (long long)a->units_open,
                  (long long)b->units_open, (long long)(a->breaker_opened[0] + a->breaker_opened[1]),
                  (long long)(b->breaker_opened[0] + b->breaker_opened[1]), (long long)a->units_list, (long long)b->units_list,
                  (long long)a->encoded, (long long)b->encoded);
    same_mean(what, cpu_kl, gpu_kl, TO - FROM);
    assert_true(a->units == b->units && a->dense_bytes == b->dense_bytes && a->encoded > 0);
    /* a breaker that opened on one side only has read so many units whole */
    const double opened = (double)(a->breaker_opened[0] + a->breaker_opened[1]),
                 opened_b = (double)(b->breaker_opened[0] + b->breaker_opened[1]);
    assert_float_equal(opened, opened_b, 2 + sqrt(opened));
    assert_float_equal(read_a, read_b, .005 + fabs((double)(a->units_open - b->units_open)) / (double)a->units);
    assert_float_equal(broken, share(b->broken, b->cases), 4 * chance + 1e-3);
    assert_float_equal(share(a->above_eps, a->cases), share(b->above_eps, b->cases), .02);
    assert_float_equal(a->threshold_sum / (double)a->thresholds, b->threshold_sum / (double)b->thresholds, delta > 0 ? .01 : 1e-9);
    assert_float_equal((double)a->encoded, (double)b->encoded, .001 * (double)a->encoded);
    free(dense);
    free(ids);
    close_run(&cpu);
    close_run(&gpu);
}

static void smollm2_contract(void **state)
{
    (void)state;
    need_smollm2();
    contract_case("mass, all audited", 0, 1);
    contract_case("mass, delta .05", .05f, .25f);
}

/* A watched session is told every decision, and decides as another. */
static void count_told(void *user, const sr_route_case *c)
{
    double *told = user;
    told[0]++;
    for (int32_t h = 0; h < c->n_heads; h++) {
        assert_true(c->unread[h] >= 0 && c->unread[h] <= 1 && c->sink[h] >= 0 && c->sink[h] <= 1.0001f);
        told[1] += (double)c->sink[h] / c->n_heads;
        told[2] += isnan(c->sink_estimate[h]) ? 0 : fabs((double)c->sink_estimate[h] - (double)c->sink[h]) / c->n_heads;
    }
    told[3] += (double)c->cosine;
}

static void smollm2_watched(void **state)
{
    enum { FROM = 2100, TO = 2120 };
    static double kl[TO - FROM];
    double told[2][4] = {{0}};
    sr_route_stats stats[2];
    (void)state;
    need_smollm2();
    sr_session_options o = sr_session_options_default();
    o.n_ctx = TO;
    o.route.mode = SR_ROUTE_MASS;
    o.route.min_len = 2048;
    for (int i = 0; i < 3; i++) { /* watched on CPU and GPU, then on the GPU without */
        struct run r = open_run(smollm2, i ? "cuda" : "none", &o);
        static float *logits[3];
        int32_t *ids = read_files(r.m, TO);
        sr_session_stats s;
        if (i < 2) sr_session_watch(r.s, count_told, told[i]);
        OK(sr_session_prefill(r.s, ids, FROM, NULL, NULL, NULL, &err));
        logits[i] = decode(&r, ids, FROM, TO, NULL, kl);
        sr_session_get_stats(r.s, &s);
        if (i < 2) stats[i] = s.route;
        if (i == 2) assert_memory_equal(logits[1], logits[2], (size_t)(TO - FROM) * (size_t)r.n_vocab * sizeof(float));
        for (int j = 0; i == 2 && j < 3; j++) free(logits[j]);
        free(ids);
        close_run(&r);
    }
    print_message("told: %.0f, %.0f; sink %.4f, %.4f; estimate off by %.4f, %.4f; cosine %.4f, %.4f\n", told[0][0], told[1][0],
                  told[0][1] / told[0][0], told[1][1] / told[1][0], told[0][2] / told[0][0], told[1][2] / told[1][0],
                  told[0][3] / told[0][0], told[1][3] / told[1][0]);
    assert_true(told[0][0] > 0 && told[0][0] == told[1][0] && stats[0].cases == stats[1].cases);
    for (int i = 1; i < 4; i++) assert_float_equal(told[0][i] / told[0][0], told[1][i] / told[1][0], .005);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_models),    cmocka_unit_test(tiny_quantized), cmocka_unit_test(mixtures), cmocka_unit_test(cache_types),
        cmocka_unit_test(fp8_codes), cmocka_unit_test(some_layers), cmocka_unit_test(sessions), cmocka_unit_test(smollm2_dense),
        cmocka_unit_test(smollm2_window), cmocka_unit_test(smollm2_paper),  cmocka_unit_test(smollm2_mass),
        cmocka_unit_test(smollm2_contract), cmocka_unit_test(smollm2_watched),
        cmocka_unit_test(qwen),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
