/* SPDX-License-Identifier: Apache-2.0
 *
 * Real models on a GPU against the CPU: SmolLM2 in every route mode, and a Qwen2.5 by SR_QWEN=FILE. Prefill and decode of the
 * same tokens on both; the KL of the logits is at most 0.001 in the mean. Skipped without a GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cuda_run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char smollm2[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
static const char *path_of_model = smollm2; /* of the cases below: that, or SR_QWEN */

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

/* ---- SmolLM2 ---- */

static int32_t *read_text(const sr_model *m, int32_t n)
{
    FILE *f = fopen("tests/golden/text.txt", "rb");
    assert_non_null(f);
    char *text = malloc(1 << 20);
    size_t bytes = fread(text, 1, 1 << 20, f);
    fclose(f);
    int32_t *ids, n_ids, *out = malloc((size_t)n * sizeof *out);
    OK(sr_tokenize(m, text, bytes, SR_BOS_AUTO, 0, &ids, &n_ids, &cuda_err));
    for (int32_t i = 0; i < n; i++) out[i] = ids[i % n_ids];
    sr_tokens_free(ids);
    free(text);
    return out;
}

/* Returns the GPU's counters. */
static sr_route_stats model_part(const char *what, const sr_session_options *o, int n_gpu_layers, int32_t n, int32_t n_all, double limit)
{
    struct run cpu = open_run(path_of_model, "none", o), gpu = open_part(path_of_model, "cuda", n_gpu_layers, o);
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
    assert_true(a.route.dense_bytes == b.route.dense_bytes);
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

/* Files are those of the source tree, which is the working directory (README.md says what to carry to another machine). */
static void need_file(const char *path)
{
    if (access(path, R_OK) == 0) return;
    print_message("SKIP: %s is absent\n", path);
    skip();
}

static void need_smollm2(void)
{
    need_gpu();
    path_of_model = smollm2;
    need_file(smollm2);
    need_file("tests/golden/text.txt");
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
    model_case("dense, fp8 cache", &o, 100, 130, 1e-2); /* codes beside each other where q and k round otherwise */
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
    o.route.rank = 16; /* a GPU has d / 4 by default */
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
    need_file("tests/golden/text.txt");
    sr_session_options o = sr_session_options_default();
    o.n_ctx = 4096;
    o.route.mode = SR_ROUTE_DENSE;
    model_case("qwen, dense", &o, 300, 340, 1e-3);
    model_part("qwen, dense, 8 layers on the GPU", &o, 8, 300, 320, 1e-3);
    o.route.mode = SR_ROUTE_MASS;
    o.route.rank = 16; /* a GPU has d / 4 by default */
    o.route.audit = 0.2f;
    model_case("qwen, mass", &o, 2200, 2240, 2e-3);
}

/* Texts that say nothing twice. */
static const char *const texts[] = {"LICENSE", "docs/attention.md", "docs/routing.md"};

static void need_texts(void)
{
    for (int i = 0; i < 3; i++) need_file(texts[i]);
}

/* Their first n tokens. */
static int32_t *read_files(const sr_model *m, int32_t n)
{
    char *text = malloc(1 << 20);
    size_t bytes = 0;
    int32_t *ids, n_ids, *out = malloc((size_t)n * sizeof *out);
    for (int i = 0; i < 3; i++) {
        FILE *f = fopen(texts[i], "rb");
        if (!f) fail_msg("%s: cannot be opened", texts[i]);
        bytes += fread(text + bytes, 1, ((size_t)1 << 20) - bytes, f);
        fclose(f);
    }
    OK(sr_tokenize(m, text, bytes, SR_BOS_AUTO, 0, &ids, &n_ids, &cuda_err));
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
        OK(sr_session_decode(r->s, ids[n + t], &cuda_err));
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
    OK(sr_session_prefill(cpu.s, ids, FROM, NULL, NULL, NULL, &cuda_err));
    OK(sr_session_prefill(gpu.s, ids, FROM, NULL, NULL, NULL, &cuda_err));
    float *dense = decode(&cpu, ids, FROM, TO, NULL, NULL);
    OK(sr_session_truncate(cpu.s, FROM, &cuda_err));
    o.route.mode = SR_ROUTE_MASS;
    o.route.rank = 16; /* a GPU has d / 4 by default */
    o.route.min_len = 2048;
    o.route.delta = delta;
    o.route.audit = audit;
    o.route.breaker = 1;
    OK(sr_session_route_set(cpu.s, &o.route, &cuda_err));
    OK(sr_session_route_set(gpu.s, &o.route, &cuda_err));
    sr_session_stats_reset(cpu.s);
    decode(&cpu, ids, FROM, TO, dense, cpu_kl);
    decode(&gpu, ids, FROM, TO, dense, gpu_kl);
    sr_session_get_stats(cpu.s, &x);
    sr_session_get_stats(gpu.s, &y);
    const sr_route_stats *a = &x.route, *b = &y.route;
    /* of K and V: the CPU reads the second half of its sketch only where it must, a GPU's has one */
    const double read_a = (double)(a->kv_bytes - a->sketch_bytes) / (double)a->dense_bytes,
                 read_b = (double)(b->kv_bytes - b->sketch_bytes) / (double)b->dense_bytes;
    const double broken = share(a->broken, a->cases), chance = sqrt(broken / (double)a->cases);
    print_message("%s: read CPU %.4f, GPU %.4f; cases %lld, %lld; above eps %.4f, %.4f; broken %.5f, %.5f; threshold %.4f, %.4f\n", what,
                  read_a, read_b, (long long)a->cases, (long long)b->cases, share(a->above_eps, a->cases), share(b->above_eps, b->cases),
                  broken, share(b->broken, b->cases), a->threshold_sum / (double)a->thresholds, b->threshold_sum / (double)b->thresholds);
    print_message("%s: sketch CPU %.4f, GPU %.4f; far rows over those of eps alone %.3f, %.3f\n", what, (double)a->sketch_bytes / (double)a->dense_bytes,
                  (double)b->sketch_bytes / (double)b->dense_bytes, share(a->far_rows, a->far_rows_uncorrected), share(b->far_rows, b->far_rows_uncorrected));
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
    need_texts();
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
    need_texts();
    sr_session_options o = sr_session_options_default();
    o.n_ctx = TO;
    o.route.mode = SR_ROUTE_MASS;
    o.route.rank = 16; /* a GPU has d / 4 by default */
    o.route.min_len = 2048;
    for (int i = 0; i < 3; i++) { /* watched on CPU and GPU, then on the GPU without */
        struct run r = open_run(smollm2, i ? "cuda" : "none", &o);
        static float *logits[3];
        int32_t *ids = read_files(r.m, TO);
        sr_session_stats s;
        if (i < 2) sr_session_watch(r.s, count_told, told[i]);
        OK(sr_session_prefill(r.s, ids, FROM, NULL, NULL, NULL, &cuda_err));
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
        cmocka_unit_test(smollm2_dense),    cmocka_unit_test(smollm2_window),  cmocka_unit_test(smollm2_paper), cmocka_unit_test(smollm2_mass),
        cmocka_unit_test(smollm2_contract), cmocka_unit_test(smollm2_watched), cmocka_unit_test(qwen),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
