/* SPDX-License-Identifier: Apache-2.0
 *
 * SmolLM2 at 64 positions of a real text against an independent float computation (README.md of this folder). The file holds
 * the largest 160 log probabilities p of each position; what is left of the mass is one more outcome on both sides. KL over
 * that partition is at most the full KL and, with 92 % of the mass resolved, close to it. Skipped where the model is absent.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/ok.h"

#include "sinkrouter/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char model_path[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

enum { MAX_POSITIONS = 256, MAX_TOP = 512 };

static struct {
    int32_t n, top;
    int32_t ids[MAX_POSITIONS];
    uint16_t best[MAX_POSITIONS * MAX_TOP];
    float logprob[MAX_POSITIONS * MAX_TOP];
} golden;

static sr_model *model;
static int32_t n_vocab;

static int read_golden(void **state)
{
    (void)state;
    char magic[8];
    FILE *f = fopen("tests/golden/smollm2_logprobs.bin", "rb");
    if (!f || fread(magic, 8, 1, f) != 1 || memcmp(magic, "SRGOLD2\n", 8) != 0 || fread(&golden, 8, 1, f) != 1) return -1;
    if (golden.n > MAX_POSITIONS || golden.top > MAX_TOP) return -1;
    const size_t n = (size_t)golden.n, all = n * (size_t)golden.top;
    const int bad = fread(golden.ids, 4, n, f) != n || fread(golden.best, 2, all, f) != all || fread(golden.logprob, 4, all, f) != all;
    fclose(f);
    if (bad || access(model_path, R_OK) != 0) return bad;
    const sr_status st = sr_model_open(&model, model_path, NULL, &err);
    if (st != SR_OK) return print_error("%s\n", err.text), -1;
    sr_model_info info;
    sr_model_get_info(model, &info);
    n_vocab = info.n_vocab;
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    sr_model_close(model);
    return 0;
}

struct verdict { double kl_sum, kl_max; int n, differ; };

static double log_sum(const float *x)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n_vocab; i++) top = fmax(top, (double)x[i]);
    for (int i = 0; i < n_vocab; i++) sum += exp((double)x[i] - top);
    return top + log(sum);
}

/* Another first choice counts only where the reference's own two differ by 0.02 or more. */
static int other_choice(int t, const float *logits)
{
    const uint16_t *best = golden.best + t * golden.top;
    const float *lp = golden.logprob + t * golden.top;
    int mine = 0;
    for (int i = 1; i < n_vocab; i++)
        if (logits[i] > logits[mine]) mine = i;
    for (int k = 0; k < golden.top; k++)
        if (best[k] == mine) return lp[0] - lp[k] >= 0.02f;
    return 1;
}

static void judge(struct verdict *v, int t, const float *logits)
{
    const uint16_t *best = golden.best + t * golden.top;
    const float *lp = golden.logprob + t * golden.top;
    const double norm = log_sum(logits);
    double kl = 0, p_rest = 1, q_rest = 1;
    for (int k = 0; k < golden.top; k++) {
        const double p = exp((double)lp[k]), lq = (double)logits[best[k]] - norm;
        kl += p * ((double)lp[k] - lq);
        p_rest -= p;
        q_rest -= exp(lq);
    }
    if (p_rest > 1e-9 && q_rest > 1e-9) kl += p_rest * log(p_rest / q_rest);
    v->kl_sum += kl;
    v->kl_max = fmax(v->kl_max, kl);
    v->differ += other_choice(t, logits);
    v->n++;
}

static void accept(const struct verdict *v, const char *path)
{
    print_message("# %s: mean KL %.2e, largest %.2e, %d of %d first choices differ\n", path, v->kl_sum / v->n, v->kl_max, v->differ, v->n);
    assert_true(v->n == golden.n);
    assert_true(v->kl_sum / v->n <= 1e-3);
    assert_int_equal(v->differ, 0);
}

static sr_session *new_session(void)
{
    sr_session *s;
    sr_session_options o = sr_session_options_default();
    OK(sr_session_new(&s, model, &o, &err));
    return s;
}

static void prefill(void **state)
{
    (void)state;
    if (!model) skip();
    struct verdict v = {0};
    sr_session *s = new_session();
    float *logits = malloc(sizeof(float) * (size_t)golden.n * (size_t)n_vocab);
    OK(sr_session_prefill_logits(s, golden.ids, golden.n, logits, &err));
    for (int t = 0; t < golden.n; t++) judge(&v, t, logits + (size_t)t * (size_t)n_vocab);
    free(logits);
    sr_session_free(s);
    accept(&v, "prefill");
}

static void decode(void **state)
{
    (void)state;
    if (!model) skip();
    struct verdict v = {0};
    sr_session *s = new_session();
    for (int t = 0; t < golden.n; t++) {
        OK(sr_session_decode(s, golden.ids[t], &err));
        judge(&v, t, sr_session_logits(s));
    }
    sr_session_free(s);
    accept(&v, "decode");
}

static void tokens(void **state)
{
    (void)state;
    if (!model) skip();
    char text[4096];
    FILE *f = fopen("tests/golden/text.txt", "rb");
    assert_non_null(f);
    const size_t bytes = fread(text, 1, sizeof(text), f);
    fclose(f);
    int32_t *ids, n;
    OK(sr_tokenize(model, text, bytes, SR_BOS_AUTO, 0, &ids, &n, &err));
    assert_true(n >= golden.n);
    assert_memory_equal(ids, golden.ids, sizeof(int32_t) * (size_t)golden.n);
    sr_tokens_free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tokens), cmocka_unit_test(prefill), cmocka_unit_test(decode)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, read_golden, close_model);
}
