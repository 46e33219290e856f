/* SPDX-License-Identifier: Apache-2.0
 *
 * Every family once as a GGUF file and once as a folder with safetensors of the same weights: the same logits over 512
 * positions bit for bit, from prefill and from decode. Then the forms that a folder can have (bf16, f16, shards, fused
 * experts, odd addresses), and blocks made at load.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/ok.h"

#include "sinkrouter/engine.h"

#include "../unit/hf_write.h"
#include "../unit/tiny_family.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { N_TOKENS = 512, N_DECODED = 64, N_LOGITS = (N_TOKENS + N_DECODED) * TINY_VOCAB };

/* Logits of a prefill of all tokens, then of decoding the first again. */
static float *logits_of(const char *path, const char *quantize, uint64_t seed, int threads)
{
    const sr_model_options mo = {.n_threads = threads, .quantize = quantize};
    sr_session_options o = sr_session_options_default();
    sr_model *m;
    sr_session *s;
    int32_t ids[N_TOKENS];
    float *out = malloc(sizeof(float) * N_LOGITS);
    tiny_tokens(seed, ids, N_TOKENS);
    OK(sr_model_open(&m, path, &mo, &err));
    o.k_type = o.v_type = SR_DTYPE_F32;
    OK(sr_session_new(&s, m, &o, &err));
    OK(sr_session_prefill_logits(s, ids, N_TOKENS, out, &err));
    OK(sr_session_truncate(s, 0, &err));
    for (int32_t i = 0; i < N_DECODED; i++) {
        OK(sr_session_decode(s, ids[i], &err));
        memcpy(out + (size_t)(N_TOKENS + i) * TINY_VOCAB, sr_session_logits(s), sizeof(float) * TINY_VOCAB);
    }
    sr_session_free(s);
    sr_model_close(m);
    return out;
}

/* Largest difference at a position over the largest |logit| there. */
static double distance(const float *a, const float *b)
{
    double worst = 0;
    for (int t = 0; t < N_TOKENS + N_DECODED; t++) {
        double top = 0, off = 0;
        for (int i = 0; i < TINY_VOCAB; i++) {
            const double x = (double)a[t * TINY_VOCAB + i], y = (double)b[t * TINY_VOCAB + i];
            top = fmax(top, fabs(x));
            off = fmax(off, fabs(x - y));
        }
        assert_true(top > 0);
        worst = fmax(worst, off / top);
    }
    return worst;
}

static const char *fresh_folder(void)
{
    static int n;
    char name[32];
    snprintf(name, sizeof(name), "folder-%d", n++);
    const char *path = tiny_path(name);
    assert_int_equal(mkdir(path, 0700), 0);
    return path;
}

static void same_logits(const struct tiny_family *t, const char *gguf, const char *folder)
{
    float *a = logits_of(gguf, NULL, t->spec.seed, 1), *b = logits_of(folder, NULL, t->spec.seed, 2);
    if (memcmp(a, b, sizeof(float) * N_LOGITS) != 0) fail_msg("%s: not the same bits: off by %g", t->name, distance(a, b));
    free(a);
    free(b);
}

static void check_family(void **state)
{
    const struct tiny_family *t = *state;
    const struct hf_write o = {.llama3_old_len = 256};
    const char *gguf = tiny_path("family.gguf"), *folder = fresh_folder();
    tiny_model_write(gguf, &t->spec);
    hf_write_folder(gguf, folder, &o);
    same_logits(t, gguf, folder);
}

/* ---- forms of a folder ---- */

static const struct tiny_family *family(const char *name)
{
    int n;
    const struct tiny_family *f = tiny_families(&n);
    for (int i = 0; i < n; i++)
        if (strcmp(f[i].name, name) == 0) return &f[i];
    fail_msg("no family %s", name);
    return NULL;
}

static void same_form(const char *name, sr_dtype dtype, const struct hf_write *o)
{
    struct tiny_family t = *family(name);
    const char *gguf = tiny_path("form.gguf"), *folder = fresh_folder();
    t.spec.dtype = dtype;
    tiny_model_write(gguf, &t.spec);
    hf_write_folder(gguf, folder, o);
    same_logits(&t, gguf, folder);
}

static void half_types(void **state)
{
    (void)state;
    same_form("qwen3", SR_DTYPE_BF16, &(struct hf_write){.keep_type = 1});
    same_form("qwen3", SR_DTYPE_F16, &(struct hf_write){.keep_type = 1});
    same_form("yi", SR_DTYPE_BF16, &(struct hf_write){.keep_type = 1});
    same_form("qwen2", SR_DTYPE_BF16, &(struct hf_write){.keep_type = 1, .odd_header = 1});
}

static void shards(void **state)
{
    (void)state;
    same_form("qwen3moe", SR_DTYPE_F32, &(struct hf_write){.n_shards = 3});
    same_form("qwen2", SR_DTYPE_F32, &(struct hf_write){.n_shards = 2, .odd_header = 1});
}

static void fused_experts(void **state)
{
    (void)state;
    same_form("qwen3moe", SR_DTYPE_F32, &(struct hf_write){.fused_experts = 1});
    same_form("qwen3moe-yarn", SR_DTYPE_BF16, &(struct hf_write){.fused_experts = 1, .keep_type = 1, .n_shards = 2});
}

/* A GGUF whose matrices were written in blocks gives what --quantize gives, at any number of threads. The output
 * table would be q8_0 here and is of the type there, so the type is q8_0. */
static void quantized(void **state)
{
    struct tiny_family t = *family("qwen3");
    const char *floats = tiny_path("floats.gguf"), *blocks = tiny_path("blocks.gguf"), *folder = fresh_folder();
    (void)state;
    tiny_model_write(floats, &t.spec);
    hf_write_folder(floats, folder, &(struct hf_write){0});
    t.spec.dtype = SR_DTYPE_Q8_0;
    tiny_model_write(blocks, &t.spec);
    float *want = logits_of(blocks, NULL, t.spec.seed, 1);
    for (int threads = 1; threads <= 3; threads++) {
        float *got = logits_of(folder, "q8_0", t.spec.seed, threads);
        assert_memory_equal(got, want, sizeof(float) * N_LOGITS);
        free(got);
    }
    float *file = logits_of(floats, "q8_0", t.spec.seed, 2); /* a GGUF of floats as well */
    assert_memory_equal(file, want, sizeof(float) * N_LOGITS);
    free(file);
    free(want);
}

/* A bit less of a code is further away from the floats. */
static void coarser(void **state)
{
    static const char *const types[] = {"q8_0", "q5_1", "q4_1"};
    const struct tiny_family *t = family("qwen3");
    const char *gguf = tiny_path("coarse.gguf");
    double before = 0;
    (void)state;
    tiny_model_write(gguf, &t->spec);
    float *want = logits_of(gguf, NULL, t->spec.seed, 1);
    for (int i = 0; i < 3; i++) {
        float *got = logits_of(gguf, types[i], t->spec.seed, 2);
        const double off = distance(want, got);
        assert_true(off > before);
        before = off;
        free(got);
    }
    free(want);
}

int main(void)
{
    static struct CMUnitTest tests[40];
    int n, k = 0;
    const struct tiny_family *f = tiny_families(&n);
    for (; k < n; k++) tests[k] = (struct CMUnitTest){.name = f[k].name, .test_func = check_family, .initial_state = (void *)(uintptr_t)&f[k]};
    tests[k++] = (struct CMUnitTest)cmocka_unit_test(half_types);
    tests[k++] = (struct CMUnitTest)cmocka_unit_test(shards);
    tests[k++] = (struct CMUnitTest)cmocka_unit_test(fused_experts);
    tests[k++] = (struct CMUnitTest)cmocka_unit_test(quantized);
    tests[k++] = (struct CMUnitTest)cmocka_unit_test(coarser);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return _cmocka_run_group_tests("golden_safetensors", tests, (size_t)k, NULL, NULL);
}
