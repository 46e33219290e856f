/* SPDX-License-Identifier: Apache-2.0
 *
 * Tiny random models against an independent implementation in double precision: groups 1, 2, 3, 4, 7, 8 with head sizes
 * 64, 80, 128, biases, tied and untied output, both pairings of rotary embedding, Llama 3.1's scaling and YaRN. One test
 * per case; each runs prefill, and decode token by token.
 *
 * Tolerance, of the position's largest |logit|: 2e-4 in float kernels, where two layers of sums over 168 to 1,024 products
 * (u = 6e-8) stay near 1e-5; 4 * 2^-9 for prefill where the best kernels of the machine round q, k, p and v to bf16 (u =
 * 2^-9 each). A wrong pairing, scale, bias or head shows as more than 1e-2. So each case runs twice: capped to the kernels
 * that compute in float, and with everything the machine has.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/ok.h"

#include "sinkrouter/engine.h"

#include "../unit/tiny_family.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CASES = 64, KIND_LLAMA = 0, KIND_QWEN2, KIND_LLAMA3, KIND_YARN };

#define FLOAT_TOLERANCE 2e-4
#define BF16_TOLERANCE (4.0 / 512)

struct golden {
    int32_t kind, group, head_dim, n_kv;
    int64_t seed;
    float *logits; /* [n_tokens][n_kept] */
};

static struct { int32_t n_cases, n_vocab, n_tokens, step, n_kept; } head;
static struct golden cases[MAX_CASES];

static int read_cases(const char *path)
{
    char magic[8];
    FILE *f = fopen(path, "rb");
    if (!f) return -1;
    int bad = fread(magic, 8, 1, f) != 1 || memcmp(magic, "SRGOLD1\n", 8) != 0 || fread(&head, 16, 1, f) != 1;
    bad = bad || head.n_cases < 1 || head.n_cases > MAX_CASES || head.n_vocab != TINY_VOCAB;
    head.n_kept = bad ? 0 : (head.n_vocab + head.step - 1) / head.step;
    const size_t n = (size_t)head.n_tokens * (size_t)head.n_kept;
    for (int i = 0; !bad && i < head.n_cases; i++) {
        struct golden *g = &cases[i];
        g->logits = malloc(n * sizeof(float));
        bad = fread(g, 4, 4, f) != 4 || fread(&g->seed, 8, 1, f) != 1 || fread(g->logits, sizeof(float), n, f) != n;
    }
    fclose(f);
    return bad ? -1 : 0;
}

static void write_model(const char *path, const struct golden *g)
{
    static const struct tiny_change yarn[] = {
        {.key = "qwen2.rope.scaling.type", .kind = TINY_STR, .str = "yarn"},
        {.key = "qwen2.rope.scaling.factor", .kind = TINY_F32, .f32 = 4},
        {.key = "qwen2.rope.scaling.original_context_length", .kind = TINY_U32, .u32 = 64}};
    float divisors[128];
    struct tiny_spec s = tiny_spec_default();
    s.n_embd = 168;
    s.n_heads = g->n_kv * g->group;
    s.n_kv_heads = g->n_kv;
    s.head_dim = g->head_dim;
    s.seed = (uint64_t)g->seed;
    s.untied = g->head_dim == 80;
    if (g->kind == KIND_QWEN2 || g->kind == KIND_YARN) {
        s.architecture = "qwen2";
        s.biases = 1;
    }
    if (g->kind == KIND_LLAMA3) {
        tiny_llama3_divisors(divisors, g->head_dim, 10000.0, 8, 64);
        s.rope_freqs = divisors;
    }
    if (g->kind == KIND_YARN) {
        s.changes = yarn;
        s.n_changes = 3;
    }
    tiny_model_write(path, &s);
}

static void compare(const struct golden *g, int32_t t, const float *logits, double tolerance, const char *path)
{
    const float *want = g->logits + (size_t)t * (size_t)head.n_kept;
    double top = 0, worst = 0;
    for (int i = 0; i < head.n_kept; i++) {
        top = fmax(top, fabs((double)want[i]));
        worst = fmax(worst, fabs((double)logits[i * head.step] - (double)want[i]));
    }
    if (!(worst <= tolerance * top))
        fail_msg("kind %d, group %d, head size %d, %s: position %d is off by %g of %g", g->kind, g->group, g->head_dim, path, t,
                 worst, top);
}

static void run_case(const struct golden *g, double prefill_tolerance)
{
    const char *path = tiny_path("golden.gguf");
    const sr_model_options mo = {.n_threads = 1};
    sr_session_options o = sr_session_options_default();
    sr_model *m;
    sr_session *s;
    int32_t ids[256];
    float *all = malloc(sizeof(float) * (size_t)head.n_tokens * TINY_VOCAB);
    write_model(path, g);
    tiny_tokens((uint64_t)g->seed, ids, head.n_tokens);
    OK(sr_model_open(&m, path, &mo, &err));
    o.k_type = o.v_type = SR_DTYPE_F32;
    OK(sr_session_new(&s, m, &o, &err));
    OK(sr_session_prefill_logits(s, ids, head.n_tokens, all, &err));
    for (int t = 0; t < head.n_tokens; t++) compare(g, t, all + (size_t)t * TINY_VOCAB, prefill_tolerance, "prefill");
    OK(sr_session_truncate(s, 0, &err));
    for (int t = 0; t < head.n_tokens; t++) {
        OK(sr_session_decode(s, ids[t], &err));
        compare(g, t, sr_session_logits(s), FLOAT_TOLERANCE, "decode");
    }
    sr_session_free(s);
    sr_model_close(m);
    free(all);
}

/* A cap in the environment is the caller's choice of kernels: then that one run is all. */
static void check_case(void **state)
{
    const struct golden *g = *state;
    if (getenv("SR_ISA")) {
        run_case(g, strcmp(getenv("SR_ISA"), "amx") == 0 ? BF16_TOLERANCE : FLOAT_TOLERANCE);
        return;
    }
    setenv("SR_ISA", "bf16", 1);
    run_case(g, FLOAT_TOLERANCE);
    unsetenv("SR_ISA");
    run_case(g, BF16_TOLERANCE);
}

int main(void)
{
    static char names[MAX_CASES][64];
    static struct CMUnitTest tests[MAX_CASES];
    static const char *const kinds[] = {"llama", "qwen2", "llama3_scaling", "yarn"};
    if (read_cases("tests/golden/tiny_models.bin")) {
        printf("Bail out! tests/golden/tiny_models.bin cannot be read\n");
        return 1;
    }
    for (int i = 0; i < head.n_cases; i++) {
        snprintf(names[i], sizeof(names[i]), "%s_group%d_head%d", kinds[cases[i].kind & 3], cases[i].group, cases[i].head_dim);
        tests[i] = (struct CMUnitTest){.name = names[i], .test_func = check_case, .initial_state = &cases[i]};
    }
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const int failed = _cmocka_run_group_tests("golden_tiny", tests, (size_t)head.n_cases, NULL, NULL);
    for (int i = 0; i < head.n_cases; i++) free(cases[i].logits);
    return failed;
}
