/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary embedding at positions up to 2^20 against 40-digit arithmetic, from the model's numbers to what the op does to a
 * pair: (1, 0) becomes (cos, sin). Tolerance: an angle below 2^20 rounded to double is off by 2^-33 at most, and twice more
 * by its frequency; the result is rounded to float. Angles in float would be off by 0.06.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "model/rotary.h"

#include "../unit/tiny_family.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NONE, LINEAR, YARN, LLAMA3, MAX_CASES = 16 };

static struct { double base, factor, original_len; int32_t head_dim, scaling, n; } cases[MAX_CASES];
static struct { int64_t pos, i; double cos, sin; } rows[MAX_CASES][128];
static int n_cases;

static int read_cases(void)
{
    char magic[8];
    int32_t n = 0;
    FILE *f = fopen("tests/golden/rotary.bin", "rb");
    if (!f) return 0;
    if (fread(magic, 8, 1, f) == 1 && memcmp(magic, "SRROTA1\n", 8) == 0 && fread(&n, 4, 1, f) == 1 && n <= MAX_CASES)
        for (n_cases = 0; n_cases < n; n_cases++)
            if (fread(&cases[n_cases], 36, 1, f) != 1 || cases[n_cases].n > 128 ||
                fread(rows[n_cases], sizeof(rows[0][0]), (size_t)cases[n_cases].n, f) != (size_t)cases[n_cases].n)
                break;
    fclose(f);
    return n > 0 && n_cases == n;
}

static struct rope_spec spec_of(int c, enum rope_kind kind)
{
    static const enum rope_scaling scalings[] = {ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_YARN, ROPE_SCALING_NONE};
    struct rope_spec s = {.kind = kind, .n_dims = cases[c].head_dim};
    const struct rope_params p = {.scaling = scalings[cases[c].scaling], .base = cases[c].base, .factor = cases[c].factor,
                                  .original_len = cases[c].original_len, .beta_fast = 32, .beta_slow = 1, .ext_factor = 1, .attn_factor = 1};
    float divisor[128];
    sr_rotary_fill(&s, &p);
    if (cases[c].scaling != LLAMA3) return s;
    tiny_llama3_divisors(divisor, s.n_dims, p.base, p.factor, p.original_len);
    sr_rotary_divide(&s, divisor);
    return s;
}

static void check(struct backend *b, int c, enum rope_kind kind)
{
    const struct rope_spec s = spec_of(c, kind);
    const int half = s.n_dims / 2;
    /* the divisors of Llama 3.1 are floats in a file: their rounding moves the angle by 2^-24 of it */
    for (int k = 0; k < cases[c].n; k++) {
        float x[256] = {0};
        const int64_t i = rows[c][k].i, pos = rows[c][k].pos;
        const int first = kind == ROPE_NORM ? (int)(2 * i) : (int)i, second = kind == ROPE_NORM ? first + 1 : first + half;
        const double angle = (double)pos * s.inv_freq[i];
        const double tol = s.magnitude * (2 * 5.96e-8 + angle * 3 * 1.11e-16 + (cases[c].scaling == LLAMA3 ? angle * 5.96e-8 : 0));
        x[first] = 1.0f;
        b->ops->rope(b, &(struct rope_args){.x = x, .spec = &s, .stride = s.n_dims, .n = 1, .heads = 1, .head_dim = s.n_dims, .pos0 = pos});
        if (!(fabs((double)x[first] - rows[c][k].cos) <= tol) || !(fabs((double)x[second] - rows[c][k].sin) <= tol))
            fail_msg("base %g, scaling %d: position %lld, frequency %lld: %.9g %.9g, want %.9g %.9g", cases[c].base, cases[c].scaling,
                     (long long)pos, (long long)i, (double)x[first], (double)x[second], rows[c][k].cos, rows[c][k].sin);
    }
}

static void far_positions(void **state)
{
    const int c = (int)(uintptr_t)*state;
    struct backend *b;
    sr_error err;
    assert_int_equal(sr_backend_cpu_open(&b, 1, &err), SR_OK);
    check(b, c, ROPE_NORM);
    check(b, c, ROPE_NEOX);
    sr_backend_close(b);
}

int main(void)
{
    static const char *const names[] = {"none", "linear", "yarn", "llama3"};
    static char text[MAX_CASES][64];
    struct CMUnitTest tests[MAX_CASES];
    if (!read_cases()) {
        printf("Bail out! tests/golden/rotary.bin cannot be read\n");
        return 1;
    }
    for (int i = 0; i < n_cases; i++) {
        snprintf(text[i], sizeof(text[i]), "%s_base%g_factor%g_head%d", names[cases[i].scaling & 3], cases[i].base, cases[i].factor,
                 cases[i].head_dim);
        tests[i] = (struct CMUnitTest){.name = text[i], .test_func = far_positions, .initial_state = (void *)(uintptr_t)i};
    }
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return _cmocka_run_group_tests("golden_rotary", tests, (size_t)n_cases, NULL, NULL);
}
