/* SPDX-License-Identifier: Apache-2.0
 *
 * One tiny random model per family against an independent implementation in double precision, over 512 positions: one
 * test per family, by name. Each runs prefill in two batches, and decode token by token.
 *
 * Of each position two numbers are kept: one logit, another one at each position, and the sum of all logits with random
 * signs over sqrt(vocabulary), which moves when any of them does. Tolerance, of the position's largest |logit|: 2e-4 in
 * float kernels; 4 * 2^-9 for prefill where the best kernels of the machine round q, k, p and v to bf16 (the rounding of
 * one element; the sum's errors average out). A router that is off by as much may pick another expert, which is no
 * error of the pass: with experts the bf16 run checks decode alone.
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

enum { N_TOKENS = 512, MAX_CASES = 32 };

#define FLOAT_TOLERANCE 2e-4
#define BF16_TOLERANCE (4.0 / 512)

struct golden { char name[16]; float kept[N_TOKENS][2]; };

static struct golden cases[MAX_CASES];

static int read_cases(const char *path)
{
    char magic[8];
    int32_t head[3];
    FILE *f = fopen(path, "rb");
    if (!f) return 0;
    int n = 0;
    if (fread(magic, 8, 1, f) == 1 && memcmp(magic, "SRGOLD3\n", 8) == 0 && fread(head, sizeof(head), 1, f) == 1 &&
        head[0] <= MAX_CASES && head[1] == TINY_VOCAB && head[2] == N_TOKENS)
        while (n < head[0] && fread(&cases[n], sizeof(cases[n]), 1, f) == 1) n++;
    fclose(f);
    return n && n == head[0] ? n : 0;
}

static const struct golden *golden_of(const struct tiny_family *t)
{
    for (int i = 0; i < MAX_CASES; i++)
        if (strncmp(cases[i].name, t->name, sizeof(cases[i].name)) == 0) return &cases[i];
    fail_msg("%s is not among the golden vectors", t->name);
    return NULL;
}

static void compare(const struct tiny_family *t, int32_t pos, const float *logits, double tolerance, const char *path)
{
    const float *want = golden_of(t)->kept[pos];
    const int one = pos * 97 % TINY_VOCAB;
    double top = 0, sum = 0;
    for (int i = 0; i < TINY_VOCAB; i++) {
        top = fmax(top, fabs((double)logits[i]));
        sum += tiny_number(t->spec.seed, "signs", (uint64_t)i) >> 63 ? -(double)logits[i] : (double)logits[i];
    }
    const double off = fmax(fabs((double)logits[one] - (double)want[0]), fabs(sum / sqrt(TINY_VOCAB) - (double)want[1]));
    if (!(off <= tolerance * top)) fail_msg("%s, %s: position %d is off by %g of %g", t->name, path, pos, off, top);
}

static void run_case(const struct tiny_family *t, double prefill_tolerance)
{
    const char *path = tiny_path("family.gguf");
    const sr_model_options mo = {.n_threads = 1};
    sr_session_options o = sr_session_options_default();
    sr_model *m;
    sr_session *s;
    int32_t ids[N_TOKENS];
    float *all = malloc(sizeof(float) * N_TOKENS * TINY_VOCAB);
    tiny_model_write(path, &t->spec);
    tiny_tokens(t->spec.seed, ids, N_TOKENS);
    OK(sr_model_open(&m, path, &mo, &err));
    o.k_type = o.v_type = SR_DTYPE_F32;
    OK(sr_session_new(&s, m, &o, &err));
    if (prefill_tolerance > 0) {
        OK(sr_session_prefill_logits(s, ids, 300, all, &err));
        OK(sr_session_prefill_logits(s, ids + 300, N_TOKENS - 300, all + 300 * TINY_VOCAB, &err));
        for (int32_t i = 0; i < N_TOKENS; i++) compare(t, i, all + (size_t)i * TINY_VOCAB, prefill_tolerance, "prefill");
        OK(sr_session_truncate(s, 0, &err));
    }
    for (int32_t i = 0; i < N_TOKENS; i++) {
        OK(sr_session_decode(s, ids[i], &err));
        compare(t, i, sr_session_logits(s), FLOAT_TOLERANCE, "decode");
    }
    sr_session_free(s);
    sr_model_close(m);
    free(all);
}

/* A cap in the environment is the caller's choice of kernels: then that one run is all. */
static void check_case(void **state)
{
    const struct tiny_family *t = *state;
    const double rounded = t->spec.n_experts ? 0 : BF16_TOLERANCE;
    const char *cap = getenv("SR_ISA");
    if (cap && *cap) {
        run_case(t, strcmp(cap, "amx") == 0 ? rounded : FLOAT_TOLERANCE);
        return;
    }
    setenv("SR_ISA", "bf16", 1);
    run_case(t, FLOAT_TOLERANCE);
    unsetenv("SR_ISA");
    run_case(t, rounded);
}

int main(void)
{
    static struct CMUnitTest tests[MAX_CASES];
    int n;
    const struct tiny_family *f = tiny_families(&n);
    if (read_cases("tests/golden/families.bin") != n) {
        printf("Bail out! tests/golden/families.bin cannot be read\n");
        return 1;
    }
    for (int i = 0; i < n; i++)
        tests[i] = (struct CMUnitTest){.name = f[i].name, .test_func = check_case, .initial_state = (void *)(uintptr_t)&f[i]};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return _cmocka_run_group_tests("golden_families", tests, (size_t)n, NULL, NULL);
}
