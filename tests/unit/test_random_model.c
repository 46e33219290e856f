/* SPDX-License-Identifier: Apache-2.0
 *
 * Synthetic models: the shapes against published counts of parameters, tensors and K/V bytes, random blocks of every type,
 * and files that are whole or not there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "formats/quant_random.h"
#include "model/shapes.h"
#include "tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static sr_error err;

static int64_t count_tensors(const struct model_shape *s, int64_t *params)
{
    struct shape_tensor t;
    int32_t n = 0;
    for (*params = 0; sr_shape_tensor(s, n, &t); n++)
        if (t.role != ROLE_FREQS) *params += t.ne[0] * t.ne[1] * t.ne[2];
    return n;
}

static void published_numbers(void **state)
{
    (void)state;
    static const struct { const char *name; int64_t params; int n_tensors, kv_bytes; } known[] = {
        {"Llama-3.1-8B", 8030261248, 292, 131072},      {"llama-3.1-70b", 70553706496, 724, 327680},
        {"mixtral-8x7b", 46702792704, 323, 131072},     {"mixtral-8x22b", 140620634112, 563, 229376},
        {"llama-3.2-1b", 1235814400, 147, 32768},       {"llama-3.2-3b", 3212749824, 255, 114688},
        {"yi-6b", 6061035520, 291, 65536},              {"yi-9b-200k", 8829407232, 435, 98304},
        {"yi-34b", 34388917248, 543, 245760},           {"vicuna-7b", 6738415616, 291, 524288},
        {"llava-1.5-13b", 13015864320, 363, 819200},    {"smollm2-135m", 134515008, 272, 23040},
        {"qwen2.5-0.5b", 494032768, 290, 12288},        {"qwen2.5-7b", 7615616512, 339, 57344},
        {"qwen2.5-72b", 72706203648, 963, 327680},      {"qwen3-0.6b", 596049920, 310, 114688},
        {"qwen3-8b", 8190735360, 399, 147456},          {"qwen3-32b", 32762123264, 707, 262144},
        {"qwen3-30b-a3b", 30532122624, 579, 98304},     {"qwen3-235b-a22b", 235093634560, 1131, 192512}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        const struct model_shape *s = sr_model_shape_find(known[i].name);
        int64_t params;
        assert_non_null(s);
        const int64_t n = count_tensors(s, &params);
        if (params != known[i].params || n != known[i].n_tensors)
            fail_msg("%s: %lld parameters in %lld tensors", s->name, (long long)params, (long long)n);
        assert_int_equal(4 * s->n_layers * s->n_kv_heads * s->head_dim, known[i].kv_bytes);
    }
}

static void random_blocks(void **state)
{
    (void)state;
    enum { N = 65536 };
    static const sr_dtype types[] = {SR_DTYPE_F32,  SR_DTYPE_F16,  SR_DTYPE_BF16, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1,
                                     SR_DTYPE_Q8_0, SR_DTYPE_Q2_K, SR_DTYPE_Q3_K, SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K, SR_DTYPE_IQ4_NL};
    uint8_t *data = malloc(4 * N), *again = malloc(4 * N);
    float *x = malloc(N * sizeof(float));
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        struct rng rng;
        double sum = 0, square = 0;
        sr_rng_seed(&rng, 5);
        sr_random_row(types[i], &rng, 0.02, data, N);
        sr_rng_seed(&rng, 5);
        sr_random_row(types[i], &rng, 0.02, again, N);
        assert_memory_equal(data, again, sr_row_bytes(types[i], N));
        assert_int_equal(sr_row_find_nonfinite(types[i], data, N), -1);
        sr_dequantize_row(types[i], data, x, N);
        for (int k = 0; k < N; k++) {
            sum += (double)x[k];
            square += (double)x[k] * (double)x[k];
        }
        const double rms = sqrt(square / N);
        if (fabs(rms - 0.02) > 0.0002 || fabs(sum / N) > 0.15 * rms)
            fail_msg("%s: root mean square %g, mean %g", sr_dtype_name(types[i]), rms, sum / N);
    }
    free(data);
    free(again);
    free(x);
}

static uint8_t *read_all(const char *path, long *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = ftell(f);
    rewind(f);
    uint8_t *data = malloc((size_t)*n);
    assert_int_equal(fread(data, 1, (size_t)*n, f), *n);
    fclose(f);
    return data;
}

static void same_seed_same_bytes(void **state)
{
    (void)state;
    const char *name[3] = {tiny_path("a.gguf"), tiny_path("b.gguf"), tiny_path("c.gguf")};
    uint8_t *data[3];
    long n[3];
    for (int i = 0; i < 3; i++) {
        sr_random_options o = sr_random_options_default();
        o.type = "q5_k_m";
        o.seed = i < 2 ? 9 : 10;
        assert_int_equal(sr_model_make_random(name[i], "tiny-qwen3moe", &o, &err), SR_OK);
        data[i] = read_all(name[i], &n[i]);
    }
    assert_int_equal(n[0], n[1]);
    assert_int_equal(n[0], n[2]);
    assert_memory_equal(data[0], data[1], (size_t)n[0]);
    assert_true(memcmp(data[0], data[2], (size_t)n[0]) != 0);
    for (int i = 0; i < 3; i++) free(data[i]);
}

/* Every shape opens at a size for tests; of the large ones the vocabulary and the numbers are the same code. */
static void every_type_opens(void **state)
{
    (void)state;
    static const char *const types[] = {"f32", "F16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k",
                                        "q6_k", "iq4_nl", "q4_k_m", "q5_k_m"};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        sr_random_options o = sr_random_options_default();
        const sr_model_options check = {.n_threads = 1, .check = 1};
        sr_model *m = NULL;
        o.type = types[i];
        const char *path = tiny_path("type.gguf"), *name = i % 2 ? "tiny-smollm" : "tiny-qwen3moe";
        if (sr_model_make_random(path, name, &o, &err) || sr_model_open(&m, path, &check, &err)) fail_msg("%s: %s", types[i], err.text);
        sr_model_close(m);
    }
}

static int cancel_at_half(void *user, const char *stage, double share)
{
    (void)user;
    assert_string_equal(stage, "write");
    return share > 0.5;
}

static void nothing_half_made(void **state)
{
    (void)state;
    const char *path = tiny_path("half.gguf"), *part = tiny_path("half.gguf.part");
    sr_random_options o = sr_random_options_default();
    struct statvfs v;
    o.progress = cancel_at_half;
    assert_int_equal(sr_model_make_random(path, "tiny-qwen2", &o, &err), SR_ERR_USAGE);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_not_equal(access(part, F_OK), 0);
    o = sr_random_options_default();
    o.type = "q9_z";
    assert_int_equal(sr_model_make_random(path, "tiny-qwen2", &o, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "q9_z"));
    assert_int_equal(sr_model_make_random(path, "gpt-9", NULL, &err), SR_ERR_USAGE);
    assert_int_equal(sr_model_make_random("/absent/x.gguf", "tiny-qwen2", NULL, &err), SR_ERR_IO);
    assert_int_equal(statvfs("/tmp", &v), 0);
    if ((uint64_t)v.f_bavail * v.f_frsize > 900000000000u) skip();
    o.type = "f32"; /* 940 GB */
    assert_int_equal(sr_model_make_random(path, "qwen3-235b-a22b", &o, &err), SR_ERR_RESOURCE);
    assert_non_null(strstr(err.text, "bytes needed"));
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_not_equal(access(part, F_OK), 0);
}

/* Scaling of Llama 3.1 in the file: divisors of the 8B shape. */
static void llama3_divisors(void **state)
{
    (void)state;
    static const float want[] = {1.20748389f, 1.5534147f, 2.02631307f, 2.69452953f, 3.68425274f, 5.25732613f};
    struct gguf *g;
    sr_random_options o = sr_random_options_default();
    const char *path = tiny_path("divisors.gguf");
    assert_int_equal(sr_model_make_random(path, "tiny-llama3", &o, &err), SR_OK);
    assert_int_equal(sr_gguf_open(&g, path, &err), SR_OK);
    const struct gguf_tensor *t = sr_gguf_find_tensor(g, "rope_freqs.weight");
    assert_non_null(t);
    assert_int_equal(t->ne[0], 16);
    /* a head of 32 has every fourth frequency of one of 128: i = 7 is 28, i = 8 is 32, i = 9 is 36 */
    const float *x = t->data;
    assert_true(x[7] == 1.0f && fabsf(x[8] - want[3]) < 1e-6f && x[9] == 8.0f && x[15] == 8.0f);
    sr_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_numbers), cmocka_unit_test(random_blocks),    cmocka_unit_test(same_seed_same_bytes),
        cmocka_unit_test(every_type_opens),  cmocka_unit_test(nothing_half_made), cmocka_unit_test(llama3_divisors),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
