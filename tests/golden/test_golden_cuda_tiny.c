/* SPDX-License-Identifier: Apache-2.0
 *
 * Tiny random models on a GPU against the CPU: every head size and pairing that kernels know, experts, types of weights and
 * of the cache, some layers on the CPU, session files from one to the other, several sessions in a step, a device that is
 * nearly full. Logits within what half-precision products explain; twice the same on the GPU: the same bits. Skipped without a GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cuda_run.h"

#include "../unit/tiny_model.h"
#include "backend/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    sr_session_options o = sr_session_options_default();
    int32_t ids[ALL];
    const char *path = write_case(c);
    tiny_tokens(3, ids, ALL);
    o.k_type = o.v_type = c->kv;
    struct run cpu = open_run(path, "none", &o), gpu = open_run(path, "cuda", &o), again = open_run(path, "cuda", &o);
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

/* Rounding of the type itself, by 2^-12 to 2^-5 of a value. */
static void cache_types(void **state)
{
    (void)state;
    need_gpu();
    static const struct { sr_dtype type; double tolerance; } types[] = {{SR_DTYPE_BF16, 2e-2}, {SR_DTYPE_Q8_0, 2e-2}, {SR_DTYPE_F8_E4M3, 0.1}};
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
    assert_int_equal(sr_session_new(&s, mixed.m, &o, &cuda_err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(cuda_err.text, "want one for both, as -ctk f8_e4m3 -ctv f8_e4m3"));
    free(a);
    free(b);
    close_run(&decoded);
    close_run(&whole);
    close_run(&mixed);
    unlink(path);
}

/* fp8: a first row that comes by a step sets the scales of its heads, whatever they were for a text that is gone. */
static void fp8_first_row(void **state)
{
    (void)state;
    need_gpu();
    struct tiny_case c = small_case(64, 2, SR_DTYPE_F32, "llama", 4e-2); /* codes beside each other where q and k round otherwise */
    sr_session_options o = sr_session_options_default();
    int32_t ids[ALL], others[ALL];
    const char *path = write_case(&c);
    c.kv = o.k_type = o.v_type = SR_DTYPE_F8_E4M3;
    tiny_tokens(9, ids, ALL);
    tiny_tokens(10, others, ALL);
    struct run cpu = open_run(path, "none", &o), gpu = open_run(path, "cuda", &o), emptied = open_run(path, "cuda", &o);
    OK(sr_session_prefill(emptied.s, others, N, NULL, NULL, NULL, &cuda_err));
    OK(sr_session_truncate(emptied.s, 0, &cuda_err));
    float *want = logits_of(&cpu, ids, 0, ALL), *got = logits_of(&gpu, ids, 0, ALL), *same = logits_of(&emptied, ids, 0, ALL);
    assert_memory_equal(got, same, (size_t)ALL * (size_t)gpu.n_vocab * sizeof(float));
    expect_like(&c, "the CPU, decoded from the first token", got, want, cpu.n_vocab);
    free(want);
    free(got);
    free(same);
    close_run(&cpu);
    close_run(&gpu);
    close_run(&emptied);
    unlink(path);
}

/* Where nothing is routed yet a mode has dense's bits, and so has a session that was routed and is dense again over the same rows. */
static void routing_off(void **state)
{
    (void)state;
    need_gpu();
    enum { LONG = 2130, STEPS_THERE = 20 };
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_MASS, SR_ROUTE_WINDOW};
    const struct tiny_case c = small_case(64, 3, SR_DTYPE_Q8_0, "llama", 0);
    struct tiny_spec spec = c.spec;
    sr_session_options o = sr_session_options_default();
    int32_t *ids = malloc(LONG * sizeof *ids);
    float *out[3];
    spec.n_ctx = o.n_ctx = 4096;
    const struct tiny_case longer = {.spec = spec};
    const char *path = write_case(&longer);
    tiny_tokens(19, ids, LONG);
    for (int i = 0; i < 3; i++) {
        o.route.mode = modes[i];
        o.route.min_len = 65536;
        struct run r = open_run(path, "cuda", &o);
        OK(sr_session_prefill(r.s, ids, LONG - STEPS_THERE, NULL, NULL, NULL, &cuda_err));
        if (i == 1) { /* routed for some steps, which are cut off again */
            o.route.min_len = 512;
            OK(sr_session_route_set(r.s, &o.route, &cuda_err));
            for (int t = LONG - STEPS_THERE; t < LONG; t++) OK(sr_session_decode(r.s, ids[t], &cuda_err));
            sr_session_stats stats;
            sr_session_get_stats(r.s, &stats);
            assert_true(stats.route.units_near + stats.route.units_list > 0);
            OK(sr_session_truncate(r.s, LONG - STEPS_THERE, &cuda_err));
            o.route.min_len = 65536;
            OK(sr_session_route_set(r.s, &o.route, &cuda_err));
        }
        out[i] = logits_of(&r, ids + LONG - STEPS_THERE, 0, STEPS_THERE);
        if (i) assert_memory_equal(out[i], out[0], (size_t)STEPS_THERE * (size_t)r.n_vocab * sizeof(float));
        close_run(&r);
    }
    for (int i = 0; i < 3; i++) free(out[i]);
    free(ids);
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
    assert_int_equal(sr_session_new(&s, all.m, &o, &cuda_err), SR_ERR_RESOURCE);
    assert_true(strstr(cuda_err.text, "missing") && strstr(cuda_err.text, "tokens would fit") && strstr(cuda_err.text, "-ngl"));
    print_message("%s\n", cuda_err.text);
    free(want);
    close_run(&cpu);
    close_run(&all);
    unlink(path);
}

/* ---- several sessions in one step ---- */

enum { MANY = 17, STEPS = 8, MIXED = -1 };

/* Lengths that pass the end of a page, of a chunk and of what is read whole, and short ones. */
static int32_t length_of(int i)
{
    static const int32_t lengths[] = {1020, 60, 2100, 5};
    return i < 4 ? lengths[i] : 20 + 7 * i;
}

/* Session i of several: with `is_mixed` of a mode of its own, so that of a step some are alike and some are not. */
static sr_session_options options_at(const sr_session_options *o, int i, int is_mixed)
{
    static const sr_route_mode modes[] = {SR_ROUTE_DENSE, SR_ROUTE_WINDOW, SR_ROUTE_MASS, SR_ROUTE_DENSE};
    sr_session_options x = *o;
    if (is_mixed) x.route.mode = modes[i % 4];
    return x;
}

/* n sessions, STEPS steps of all of them; kept: by one batch, else by a new one each time. Logits [STEPS][n][n_vocab]. */
static float *steps_of(sr_model *m, const sr_session_options *o, const int32_t *ids, int n, int32_t n_vocab, int is_mixed, int is_kept)
{
    sr_session *s[MANY];
    sr_batch *b = NULL;
    float *out = malloc((size_t)STEPS * (size_t)n * (size_t)n_vocab * sizeof *out);
    for (int i = 0; i < n; i++) {
        const sr_session_options x = options_at(o, i, is_mixed);
        OK(sr_session_new(&s[i], m, &x, &cuda_err));
        OK(sr_session_prefill(s[i], ids + i, length_of(i), NULL, NULL, NULL, &cuda_err));
    }
    for (int t = 0; t < STEPS; t++) {
        int32_t next[MANY];
        for (int i = 0; i < n; i++) next[i] = ids[i + length_of(i) + t];
        if (!b) OK(sr_batch_new(&b, m, n, &cuda_err));
        OK(sr_batch_decode(b, s, next, n, &cuda_err));
        for (int i = 0; i < n; i++)
            memcpy(out + ((size_t)t * (size_t)n + (size_t)i) * (size_t)n_vocab, sr_session_logits(s[i]), (size_t)n_vocab * sizeof *out);
        if (!is_kept) sr_batch_free(b), b = NULL;
    }
    sr_batch_free(b);
    for (int i = 0; i < n; i++) sr_session_free(s[i]);
    return out;
}

/* A batch that stays is recorded and replayed, one that is new each time never: the same bits. And near what each session gives alone. */
static void several_case(sr_dtype dtype, sr_dtype kv, int n, int mode, double tolerance)
{
    struct tiny_case c = small_case(64, 2, dtype, "llama", tolerance);
    sr_session_options o = sr_session_options_default();
    const int is_mixed = mode == MIXED;
    int32_t ids[2200];
    double worst = 0;
    c.spec.n_ctx = o.n_ctx = 4096;
    const char *path = write_case(&c);
    tiny_tokens(13, ids, 2200);
    o.k_type = o.v_type = kv;
    if (!is_mixed) o.route.mode = (sr_route_mode)mode;
    o.route.min_len = 512;
    o.route.window = 64;
    struct run r = open_run(path, "cuda", &o);
    const size_t row = (size_t)r.n_vocab;
    float *direct = steps_of(r.m, &o, ids, n, r.n_vocab, is_mixed, 0), *replayed = steps_of(r.m, &o, ids, n, r.n_vocab, is_mixed, 1);
    assert_memory_equal(direct, replayed, (size_t)STEPS * (size_t)n * row * sizeof *direct);
    for (int i = 0; i < n && i < 4; i++) {
        const sr_session_options x = options_at(&o, i, is_mixed);
        sr_session *alone;
        OK(sr_session_new(&alone, r.m, &x, &cuda_err));
        OK(sr_session_prefill(alone, ids + i, length_of(i), NULL, NULL, NULL, &cuda_err));
        for (int t = 0; t < STEPS; t++) {
            double top = 0, off = 0;
            OK(sr_session_decode(alone, ids[i + length_of(i) + t], &cuda_err));
            for (size_t v = 0; v < row; v++) {
                const double want = (double)sr_session_logits(alone)[v];
                top = fmax(top, fabs(want));
                off = fmax(off, fabs(want - (double)replayed[((size_t)t * (size_t)n + (size_t)i) * row + v]));
            }
            worst = fmax(worst, off / top);
        }
        sr_session_free(alone);
    }
    print_message("%d sessions in a step, %s, K/V %s, %s: %.1e of the largest logit from each alone\n", n, sr_dtype_name(dtype), sr_dtype_name(kv),
                  is_mixed ? "mixed" : sr_route_mode_name(o.route.mode), worst);
    if (!(worst <= tolerance)) fail_msg("%d sessions in a step, %s: %g of the largest logit, want %g", n, sr_dtype_name(dtype), worst, tolerance);
    free(direct);
    free(replayed);
    close_run(&r);
    unlink(path);
}

static void several(void **state)
{
    (void)state;
    need_gpu();
    /* One launch cuts the rows elsewhere: weights of V are rounded, by 2^-11, over other maxima. fp8 and q8_0 go one by one. */
    several_case(SR_DTYPE_F32, SR_DTYPE_F16, 3, SR_ROUTE_DENSE, 1.0 / 2048);
    several_case(SR_DTYPE_F32, SR_DTYPE_F8_E4M3, 3, SR_ROUTE_DENSE, 4e-2); /* where sums in another order give other codes */
    several_case(SR_DTYPE_F32, SR_DTYPE_Q8_0, 3, SR_ROUTE_DENSE, 2e-2);
    several_case(SR_DTYPE_Q4_0, SR_DTYPE_F16, 3, SR_ROUTE_WINDOW, 2e-3); /* codes of 15 bits with other scales */
    several_case(SR_DTYPE_F32, SR_DTYPE_F16, 4, SR_ROUTE_MASS, 5e-2);
    several_case(SR_DTYPE_F32, SR_DTYPE_F16, 11, MIXED, 5e-2);
    several_case(SR_DTYPE_Q8_0, SR_DTYPE_F16, MANY, SR_ROUTE_DENSE, 4e-2); /* products of prefill */
}

/* ---- session files ---- */

/* Tokens [from, to) decoded on both; logits of the last. */
static void expect_to_go_on(const char *what, struct run *a, struct run *b, const int32_t *ids, int32_t from, int32_t to, double tolerance)
{
    double top = 0, worst = 0;
    for (int32_t t = from; t < to; t++) {
        OK(sr_session_decode(a->s, ids[t], &cuda_err));
        OK(sr_session_decode(b->s, ids[t], &cuda_err));
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
    o.route.rank = 16; /* a GPU has d / 4 by default */
    o.route.min_len = 512;
    o.route.window = 64;
    o.route.eps = 0.02f;
    o.route.breaker = 0;
    struct run a = open_part(path, from, n_gpu_layers, &o), b = open_part(path, to, n_gpu_layers, &o);
    OK(sr_session_prefill(a.s, ids, n - 2, NULL, NULL, NULL, &cuda_err));
    for (int32_t t = n - 2; t < n; t++) OK(sr_session_decode(a.s, ids[t], &cuda_err)); /* with n > 2048 there is a sketch now */
    OK(sr_session_save(a.s, file, &cuda_err));
    OK(sr_session_restore(b.s, file, &cuda_err));
    assert_int_equal(sr_session_len(b.s), n);
    assert_memory_equal(sr_session_logits(a.s), sr_session_logits(b.s), (size_t)a.n_vocab * sizeof(float));
    OK(sr_session_save(b.s, file, &cuda_err)); /* what was restored can be saved, with no step between */
    OK(sr_session_restore(a.s, file, &cuda_err));
    expect_to_go_on(from, &a, &b, ids, n, n + 4, 5e-2);
    OK(sr_session_prefill(a.s, ids + n + 4, SKETCHED - n - 4, NULL, NULL, NULL, &cuda_err));
    OK(sr_session_prefill(b.s, ids + n + 4, SKETCHED - n - 4, NULL, NULL, NULL, &cuda_err));
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
    static const sr_dtype types[] = {SR_DTYPE_F16, SR_DTYPE_Q8_0, SR_DTYPE_BF16, SR_DTYPE_F8_E4M3};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        session_case("cuda", "none", types[i], 2100, -1);
        session_case("none", "cuda", types[i], 2100, -1);
    }
    session_case("cuda", "none", SR_DTYPE_F16, 333, -1); /* own moments half collected */
    session_case("none", "cuda", SR_DTYPE_F16, 333, -1);
    session_case("cuda", "cuda", SR_DTYPE_F8_E4M3, 2100, -1);
    session_case("cuda", "cuda", SR_DTYPE_Q8_0, 2100, 1);
    session_case("cuda", "cuda", SR_DTYPE_F8_E4M3, 2100, 1);
}

/* ---- memory that ends ---- */

/* A model and a session from nothing, a prefill and a step; SR_OK with the last logits. */
static sr_status attempt(const char *path, const sr_session_options *o, const int32_t *ids, float *out)
{
    sr_model_options mo = sr_model_options_default();
    sr_model *m = NULL;
    sr_session *s = NULL;
    mo.device = "cuda";
    sr_status st = sr_model_open(&m, path, &mo, &cuda_err);
    if (st == SR_OK) st = sr_session_new(&s, m, o, &cuda_err);
    if (st == SR_OK) st = sr_session_prefill(s, ids, N, NULL, NULL, NULL, &cuda_err);
    if (st == SR_OK) st = sr_session_decode(s, ids[N], &cuda_err);
    if (st == SR_OK) memcpy(out, sr_session_logits(s), TINY_VOCAB * sizeof *out);
    sr_session_free(s);
    sr_model_close(m);
    return st;
}

/* Less and less is left by somebody else: each time the same logits or one line, and afterwards all works again. */
static void nearly_full(void **state)
{
    (void)state;
    need_gpu();
    static const int mib[] = {1024, 256, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 2, 0};
    static float want[TINY_VOCAB], got[TINY_VOCAB];
    struct tiny_case c = small_case(128, 4, SR_DTYPE_Q8_0, "llama", 0);
    sr_session_options o = sr_session_options_default();
    int32_t ids[ALL];
    struct backend *b;
    int n_failed = 0, n_done = 0;
    c.spec.n_ctx = o.n_ctx = 4096;
    const char *path = write_case(&c);
    tiny_tokens(17, ids, ALL);
    OK(sr_backend_cuda_open(&b, 0, 1, &cuda_err));
    OK(attempt(path, &o, ids, want));
    for (size_t i = 0; i < sizeof mib / sizeof mib[0]; i++) {
        void *taken = NULL;
        const uint64_t left = (uint64_t)mib[i] << 20, have = b->ops->mem_available(b);
        for (uint64_t more = 0; !taken && left + more < have; more += (uint64_t)2 << 20)
            if (b->ops->mem_new(b, &taken, (size_t)(have - left - more), "what somebody else has", &cuda_err) != SR_OK) taken = NULL;
        assert_non_null(taken);
        const sr_status st = attempt(path, &o, ids, got);
        n_done += st == SR_OK;
        n_failed += st != SR_OK;
        if (st == SR_OK) assert_memory_equal(got, want, sizeof want);
        if (st != SR_OK) print_message("%d MiB left: %s\n", mib[i], cuda_err.text);
        if (st != SR_OK && (st != SR_ERR_RESOURCE || strchr(cuda_err.text, '\n'))) fail_msg("%d MiB left: status %d, %s", mib[i], (int)st, cuda_err.text);
        b->ops->mem_free(b, taken);
        memset(got, 0, sizeof got);
        OK(attempt(path, &o, ids, got));
        assert_memory_equal(got, want, sizeof want);
    }
    assert_true(n_done > 0 && n_failed > 0);
    sr_backend_close(b);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_models), cmocka_unit_test(tiny_quantized), cmocka_unit_test(mixtures), cmocka_unit_test(cache_types),
        cmocka_unit_test(fp8_codes),   cmocka_unit_test(fp8_first_row),  cmocka_unit_test(some_layers), cmocka_unit_test(sessions), cmocka_unit_test(several), cmocka_unit_test(nearly_full), cmocka_unit_test(routing_off),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
