/* SPDX-License-Identifier: Apache-2.0
 *
 * f16, bf16 and fp8 (e4m3) against their definition in double precision. Widening: all 65,536 values. Narrowing: at every
 * pair of neighbours a < b the float just below the middle, the middle and the float just above it; rounding
 * is monotonic, so nothing between them can go elsewhere unseen, and a coarse sweep over all floats checks
 * that.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/half.h"

#include <math.h>

struct format {
    int mantissa_bits, bias;
    uint32_t inf; /* bits of +infinity */
    float (*widen)(uint16_t);
    uint16_t (*narrow)(float);
};

static const struct format f16 = {10, 15, 0x7c00, sr_f32_of_f16, sr_f16_of_f32};
static const struct format bf16 = {7, 127, 0x7f80, sr_f32_of_bf16, sr_bf16_of_f32};

/* Value of a finite magnitude; at `inf` this gives the value the next binade would start with. */
static double value_of(const struct format *f, uint32_t mag)
{
    int e = (int)(mag >> f->mantissa_bits), m = (int)(mag & ((1u << f->mantissa_bits) - 1));
    int shift = (e ? e : 1) - f->bias - f->mantissa_bits;
    return ldexp(e ? m + (1 << f->mantissa_bits) : m, shift);
}

static void check_widen(const struct format *f)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float got = f->widen((uint16_t)h);
        uint32_t mag = h & 0x7fff;
        assert_int_equal(!!signbit(got), h >> 15);
        if (mag > f->inf)
            assert_true(isnan(got));
        else if (mag == f->inf)
            assert_true(isinf(got));
        else if ((double)fabsf(got) != value_of(f, mag))
            fail_msg("0x%04x gives %g", h, (double)got);
    }
}

static void want(const struct format *f, float x, uint32_t mag)
{
    uint16_t plus = f->narrow(x), minus = f->narrow(-x);
    if (plus != mag || minus != (mag | 0x8000))
        fail_msg("%a gives 0x%04x and 0x%04x, want 0x%04x", (double)x, plus, minus, mag);
}

static void check_narrow(const struct format *f)
{
    for (uint32_t a = 0; a < f->inf; a++) {
        double lo = value_of(f, a), hi = value_of(f, a + 1), mid = (lo + hi) / 2;
        float m = (float)mid;
        want(f, (float)lo, a);
        if ((double)m != mid) { /* bf16's least subnormals: the middle is no float; its neighbours are */
            continue;
        }
        want(f, nextafterf(m, 0), a);
        want(f, m, a & 1 ? a + 1 : a);
        if (m < 3.4028234e38f) want(f, nextafterf(m, INFINITY), a + 1);
    }
    want(f, INFINITY, f->inf);
    assert_true(f->narrow(NAN) > f->inf && (f->narrow(NAN) & 0x7fff) > f->inf);
    /* A NaN whose payload lies only in the dropped bits must not become infinity. */
    assert_true((f->narrow(sr_f32_of_bits(0x7f800001u)) & 0x7fffu) > f->inf);
    assert_true((f->narrow(sr_f32_of_bits(0xff800001u)) & 0x7fffu) > f->inf);
}

static void check_round_trip(const struct format *f)
{
    for (uint32_t h = 0; h < 65536; h++)
        if ((h & 0x7fff) <= f->inf) assert_int_equal(f->narrow(f->widen((uint16_t)h)), h);
}

/* Nearest by search over distances, for floats spread over the whole range. */
static void check_sweep(const struct format *f)
{
    for (uint64_t bits = 0; bits < 0x7f800000u; bits += 9973) {
        float x = sr_f32_of_bits((uint32_t)bits);
        uint32_t got = f->narrow(x);
        double d = fabs(value_of(f, got) - (double)x);
        if (got > 0 && fabs(value_of(f, got - 1) - (double)x) < d)
            fail_msg("%a: 0x%04x is not nearest", (double)x, got);
        if (got < f->inf && fabs(value_of(f, got + 1) - (double)x) < d)
            fail_msg("%a: 0x%04x is not nearest", (double)x, got);
    }
}

/* All codes; then the middles between neighbours, as above, and what is too large. */
static void f8_codes(void **state)
{
    (void)state;
    for (int c = 0; c < 256; c++) {
        const int e = c >> 3 & 15, m = c & 7;
        const double size = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
        const float got = sr_f32_of_f8((uint8_t)c);
        assert_int_equal(!!signbit(got), c >> 7);
        if ((c & 0x7f) == 0x7f) {
            assert_true(isnan(got));
            continue;
        }
        if ((double)fabsf(got) != size) fail_msg("0x%02x gives %g, want %g", c, (double)got, size);
        assert_int_equal(sr_f8_of_f32(got), c);
    }
    for (int c = 0; c < 0x7e; c++) {
        const float mid = (sr_f32_of_f8((uint8_t)c) + sr_f32_of_f8((uint8_t)(c + 1))) / 2;
        assert_int_equal(sr_f8_of_f32(nextafterf(mid, 0)), c);
        assert_int_equal(sr_f8_of_f32(mid), c + (c & 1));
        assert_int_equal(sr_f8_of_f32(nextafterf(mid, INFINITY)), c + 1);
        assert_int_equal(sr_f8_of_f32(-nextafterf(mid, INFINITY)), (c + 1) | 0x80);
    }
    static const float large[] = {448.0f, 449.0f, 464.0f, 480.0f, 1e30f, INFINITY};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(sr_f8_of_f32(large[i]), 0x7e);
        assert_int_equal(sr_f8_of_f32(-large[i]), 0xfe);
    }
    assert_int_equal(sr_f8_of_f32(NAN), 0x7f);
}

static void f16_widen(void **state)
{
    (void)state;
    check_widen(&f16);
}
static void f16_narrow(void **state)
{
    (void)state;
    check_narrow(&f16);
}
static void f16_round_trip(void **state)
{
    (void)state;
    check_round_trip(&f16);
}
static void f16_sweep(void **state)
{
    (void)state;
    check_sweep(&f16);
}
static void bf16_widen(void **state)
{
    (void)state;
    check_widen(&bf16);
}
static void bf16_narrow(void **state)
{
    (void)state;
    check_narrow(&bf16);
}
static void bf16_round_trip(void **state)
{
    (void)state;
    check_round_trip(&bf16);
}
static void bf16_sweep(void **state)
{
    (void)state;
    check_sweep(&bf16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f8_codes), cmocka_unit_test(f16_widen),       cmocka_unit_test(f16_narrow), cmocka_unit_test(f16_round_trip),
        cmocka_unit_test(f16_sweep),       cmocka_unit_test(bf16_widen), cmocka_unit_test(bf16_narrow),
        cmocka_unit_test(bf16_round_trip), cmocka_unit_test(bf16_sweep),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("half", tests, NULL, NULL);
}
