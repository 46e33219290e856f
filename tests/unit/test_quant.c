/* SPDX-License-Identifier: Apache-2.0
 *
 * Block types: bit for bit against vectors of an independent implementation where the shared data is present, and
 * against values worked out by hand from the layouts everywhere.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/half.h"
#include "formats/quant.h"
#include "gguf_build.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define ROW 1024
#define F16_ONE 0x3c00u

static const sr_dtype all_types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1,
                                     SR_DTYPE_Q8_0, SR_DTYPE_Q2_K, SR_DTYPE_Q3_K, SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K, SR_DTYPE_IQ4_NL};
static const int n_types = (int)(sizeof(all_types) / sizeof(all_types[0]));

static void put_u16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* ---- names and sizes ---------------------------------------------------------------------------------------- */

static void names_and_sizes(void **state)
{
    (void)state;
    static const struct { int id; const char *name; int elems, bytes; } want[] = {
        {0, "f32", 1, 4}, {1, "f16", 1, 2}, {2, "q4_0", 32, 18}, {3, "q4_1", 32, 20}, {6, "q5_0", 32, 22}, {7, "q5_1", 32, 24},
        {8, "q8_0", 32, 34}, {10, "q2_K", 256, 84}, {11, "q3_K", 256, 110}, {12, "q4_K", 256, 144}, {13, "q5_K", 256, 176},
        {14, "q6_K", 256, 210}, {20, "iq4_nl", 32, 18}, {30, "bf16", 1, 2},
    };
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        const struct dtype_traits *t = sr_dtype_find(want[i].id);
        assert_non_null(t);
        assert_string_equal(t->name, want[i].name);
        assert_string_equal(sr_dtype_name((sr_dtype)want[i].id), want[i].name);
        assert_int_equal(t->block_elems, want[i].elems);
        assert_int_equal(t->block_bytes, want[i].bytes);
        assert_int_equal(sr_row_bytes((sr_dtype)want[i].id, 1024), 1024 / want[i].elems * want[i].bytes);
        assert_int_equal(sr_row_bytes((sr_dtype)want[i].id, 0), 0);
    }
}

static void names_of_unsupported_types(void **state)
{
    (void)state;
    static const struct { int id; const char *name; } named[] = {
        {9, "q8_1"}, {15, "q8_K"}, {16, "iq2_xxs"}, {17, "iq2_xs"}, {18, "iq3_xxs"}, {19, "iq1_s"}, {21, "iq3_s"}, {22, "iq2_s"},
        {23, "iq4_xs"}, {24, "i8"}, {25, "i16"}, {26, "i32"}, {27, "i64"}, {28, "f64"}, {29, "iq1_m"}, {34, "tq1_0"}, {35, "tq2_0"},
        {39, "mxfp4"}, {40, "nvfp4"}, {41, "q1_0"}, {42, "q2_0"},
    };
    static const int64_t never[] = {-1, 4, 5, 31, 32, 33, 36, 37, 38, 43, 255, INT32_MAX, (int64_t)1 << 32, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof(named) / sizeof(named[0]); i++) {
        assert_string_equal(sr_gguf_type_name(named[i].id), named[i].name);
        assert_null(sr_dtype_find(named[i].id));
        assert_null(sr_dtype_name((sr_dtype)named[i].id));
    }
    for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
        assert_null(sr_gguf_type_name(never[i]));
        assert_null(sr_gguf_type_find(never[i]));
        assert_null(sr_dtype_find(never[i]));
    }
}

/* ---- blocks made by hand ------------------------------------------------------------------------------------ */

struct poke { int at, byte; };
struct hand_block {
    sr_dtype dtype;
    struct poke pokes[10]; /* into a block of zeros; ends with at < 0 */
    struct { int e; float value; } want[6]; /* ends with e < 0 */
};

/* f16: 1.0 = 00 3c, 2.0 = 00 40, 0.5 = 00 38 */
static const struct hand_block hand_blocks[] = {
    {SR_DTYPE_Q4_0, {{1, 0x40}, {2, 0xf1}, {17, 0x08}, {-1, 0}}, {{0, -14}, {16, 14}, {15, 0}, {31, -16}, {1, -16}, {-1, 0}}},
    {SR_DTYPE_Q4_1, {{1, 0x40}, {3, 0x3c}, {4, 0xf1}, {-1, 0}}, {{0, 3}, {16, 31}, {1, 1}, {-1, 0}}},
    {SR_DTYPE_Q5_0, {{1, 0x3c}, {2, 0x01}, {5, 0x80}, {6, 0x21}, {21, 0x43}, {-1, 0}}, {{0, 1}, {16, -14}, {15, -13}, {31, 4}, {-1, 0}}},
    {SR_DTYPE_Q5_1, {{1, 0x40}, {3, 0x38}, {4, 0x02}, {9, 0x03}, {-1, 0}}, {{1, 38.5f}, {0, 0.5f}, {17, 0.5f}, {-1, 0}}},
    {SR_DTYPE_Q8_0, {{1, 0x38}, {2, 0x80}, {33, 0x7f}, {-1, 0}}, {{0, -64}, {31, 63.5f}, {1, 0}, {-1, 0}}},
    {SR_DTYPE_IQ4_NL, {{1, 0x3c}, {2, 0x0f}, {17, 0x87}, {-1, 0}}, {{0, 113}, {16, -127}, {15, -10}, {31, 1}, {-1, 0}}},
    /* group 9 is elements 144..159: second half, bit pair 0; scale 3, min 2; element 145 has q = 2 */
    {SR_DTYPE_Q2_K, {{81, 0x40}, {83, 0x38}, {9, 0x23}, {16 + 32 + 17, 0x02}, {-1, 0}}, {{145, 11}, {144, -1}, {0, 0}, {-1, 0}}},
    /* scale of group 0 is 33 - 32 = 1, of the others -32; element 0: q = 3 with its high bit, element 1: q = -4 */
    {SR_DTYPE_Q3_K, {{109, 0x3c}, {96, 0x01}, {104, 0x02}, {0, 0x01}, {32, 0x03}, {-1, 0}}, {{0, 3}, {1, -4}, {16, 128}, {255, 128}, {-1, 0}}},
    /* j = 1: scale 5, min 3; j = 4: scale from sc[8] and sc[0], 2 + 16*1, min 1 + 16*2 */
    {SR_DTYPE_Q4_K, {{1, 0x3c}, {3, 0x38}, {5, 0x05}, {9, 0x03}, {4, 0x40}, {8, 0x80}, {12, 0x12}, {16, 0x70}, {16 + 64, 0x09}, {-1, 0}},
     {{32, 33.5f}, {33, -1.5f}, {128, 145.5f}, {129, -16.5f}, {0, 0}, {-1, 0}}},
    /* j = 1, l = 0: q = 7 + 16; j = 7, l = 31: q = 16 alone, scale 1 */
    {SR_DTYPE_Q5_K, {{1, 0x3c}, {5, 0x05}, {15, 0x01}, {16, 0x02}, {47, 0x80}, {48, 0x70}, {-1, 0}}, {{32, 115}, {33, 0}, {255, 16}, {254, 0}, {-1, 0}}},
    /* element 0: 1 + 16*3 - 32 = 17; element 64 shares the byte's high nibble: 2 + 16*0 - 32; scale 11 of element 191: -1 */
    {SR_DTYPE_Q6_K, {{209, 0x40}, {192, 0x03}, {192 + 4, 0x01}, {192 + 11, 0xff}, {0, 0x21}, {128, 0x03}, {-1, 0}},
     {{0, 102}, {1, -192}, {64, -60}, {191, 64}, {16, 0}, {-1, 0}}},
};

static void blocks_by_hand(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(hand_blocks) / sizeof(hand_blocks[0]); i++) {
        const struct hand_block *h = &hand_blocks[i];
        uint8_t block[256] = {0};
        float y[256];
        for (const struct poke *p = h->pokes; p->at >= 0; p++) block[p->at] = (uint8_t)p->byte;
        sr_dequantize_row(h->dtype, block, y, sr_dtype_find(h->dtype)->block_elems);
        for (int k = 0; h->want[k].e >= 0; k++)
            if (y[h->want[k].e] != h->want[k].value)
                fail_msg("%s: element %d is %g, want %g", sr_dtype_name(h->dtype), h->want[k].e, (double)y[h->want[k].e], (double)h->want[k].value);
    }
}

static void float_rows(void **state)
{
    (void)state;
    static const float x[5] = {0.0f, -1.5f, 65504.0f, 3.0e-7f, -2.0f};
    uint8_t raw[20];
    float y[5];
    for (int t = 0; t < 3; t++) {
        assert_int_equal(sr_quantize_row(all_types[t], x, raw, 5, NULL), SR_OK);
        sr_dequantize_row(all_types[t], raw, y, 5);
        for (int i = 0; i < 5; i++) {
            const float want = t == 0 ? x[i] : t == 1 ? sr_f32_of_f16(sr_f16_of_f32(x[i])) : sr_f32_of_bf16(sr_bf16_of_f32(x[i]));
            assert_int_equal(sr_bits_of_f32(y[i]), sr_bits_of_f32(want));
        }
    }
}

/* ---- vectors ------------------------------------------------------------------------------------------------ */

static size_t read_vector(const char *type, const char *suffix, void *dst, size_t room)
{
    char name[64];
    snprintf(name, sizeof(name), "data/quant-vectors/%s%s", type, suffix);
    const char *path = sr_tb_shared(name);
    FILE *f = path ? fopen(path, "rb") : NULL;
    if (!f) return 0;
    const size_t n = fread(dst, 1, room, f);
    fclose(f);
    return n;
}

static void dequantize_vectors(void **state)
{
    (void)state;
    int seen = 0;
    for (int t = 0; t < n_types; t++) {
        static uint8_t raw[4 * ROW + 1];
        static float want[ROW], have[ROW];
        const char *name = sr_dtype_name(all_types[t]);
        const size_t bytes = read_vector(name, ".raw", raw, sizeof(raw));
        if (bytes == 0) continue;
        assert_int_equal(bytes, sr_row_bytes(all_types[t], ROW));
        assert_int_equal(read_vector(name, ".f32", want, sizeof(want)), sizeof(want));
        sr_dequantize_row(all_types[t], raw, have, ROW);
        for (int i = 0; i < ROW; i++)
            if (sr_bits_of_f32(have[i]) != sr_bits_of_f32(want[i]))
                fail_msg("%s: element %d is %.9g, want %.9g", name, i, (double)have[i], (double)want[i]);
        assert_int_equal(sr_row_find_nonfinite(all_types[t], raw, ROW), -1);
        seen++;
    }
    if (seen == 0) skip();
    assert_int_equal(seen, n_types - 1); /* there is no vector for f32 */
}

static void quantize_vectors(void **state)
{
    (void)state;
    int seen = 0;
    for (int t = 1; t < 8; t++) {
        static uint8_t want[4 * ROW], have[4 * ROW];
        static float in[ROW];
        const char *name = sr_dtype_name(all_types[t]);
        const size_t bytes = read_vector(name, ".raw", want, sizeof(want));
        if (bytes == 0) continue;
        assert_int_equal(read_vector(name, ".in.f32", in, sizeof(in)), sizeof(in));
        assert_int_equal(sr_quantize_row(all_types[t], in, have, ROW, NULL), SR_OK);
        for (size_t i = 0; i < bytes; i++)
            if (have[i] != want[i]) fail_msg("%s: byte %zu is %02x, want %02x", name, i, have[i], want[i]);
        seen++;
    }
    if (seen == 0) skip();
    assert_int_equal(seen, 7);
}

/* ---- quantisers --------------------------------------------------------------------------------------------- */

static float pseudo(uint32_t *s)
{
    *s = *s * 1664525u + 1013904223u;
    return (float)(int32_t)*s / 2147483648.0f;
}

/* Every element within half a step of what was put in (a whole one at the end that the code range cuts off). */
static void quantize_error_bounds(void **state)
{
    (void)state;
    static const struct { sr_dtype dtype; float steps; } types[] = {
        {SR_DTYPE_Q4_0, 8}, {SR_DTYPE_Q5_0, 16}, {SR_DTYPE_Q4_1, 7.5f}, {SR_DTYPE_Q5_1, 15.5f}, {SR_DTYPE_Q8_0, 127}};
    uint32_t seed = 1;
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        float x[64], y[64];
        uint8_t raw[80];
        for (int i = 0; i < 64; i++) x[i] = 3.0f * pseudo(&seed);
        assert_int_equal(sr_quantize_row(types[t].dtype, x, raw, 64, NULL), SR_OK);
        sr_dequantize_row(types[t].dtype, raw, y, 64);
        for (int i = 0; i < 64; i++) {
            const float step = 3.0f / types[t].steps;
            assert_true(fabsf(x[i] - y[i]) <= step * 1.01f);
        }
    }
}

static void quantize_extremes(void **state)
{
    (void)state;
    static const float scales[] = {0.0f, 1e-45f, 1e-40f, 1e-30f, 1e-8f, 65504.0f};
    for (int t = 3; t < 8; t++) {
        for (size_t s = 0; s < sizeof(scales) / sizeof(scales[0]); s++) {
            float x[32], y[32];
            uint8_t raw[34];
            for (int i = 0; i < 32; i++) x[i] = (i % 2 ? -scales[s] : scales[s]) * (float)(i + 1) / 32.0f;
            assert_int_equal(sr_quantize_row(all_types[t], x, raw, 32, NULL), SR_OK);
            assert_int_equal(sr_row_find_nonfinite(all_types[t], raw, 32), -1);
            sr_dequantize_row(all_types[t], raw, y, 32);
            for (int i = 0; i < 32; i++) assert_true(fabsf(x[i] - y[i]) <= 0.14f * scales[s] + 1e-6f);
        }
    }
}

/* Sum of squared errors over that of the values, 64 blocks of normal-like numbers with some that stand out. */
static double relative_error(sr_dtype dtype, double offset)
{
    enum { N = 64 * 256 };
    static float x[N], y[N];
    static uint8_t raw[4 * N];
    uint32_t seed = 11;
    double lost = 0, all = 0;
    for (int i = 0; i < N; i++) {
        float sum = (float)offset;
        for (int k = 0; k < 12; k++) sum += pseudo(&seed);
        x[i] = i % 97 == 0 ? 4 * sum : sum;
    }
    assert_int_equal(sr_quantize_row(dtype, x, raw, N, NULL), SR_OK);
    assert_int_equal(sr_row_find_nonfinite(dtype, raw, N), -1);
    sr_dequantize_row(dtype, raw, y, N);
    for (int i = 0; i < N; i++) {
        lost += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        all += (double)x[i] * (double)x[i];
    }
    return lost / all;
}

/* What the search is for: less error than the plain types of at least as many bits (q4_0 and q4_1 have 4.5 and 5, q5_0 and
 * q5_1 5.5 and 6, these 4.5, 5.5 and 6.56), with and without an offset; each further bit takes at least half of it. */
static void searched_types(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const double offset = i * 3.0, q4 = relative_error(SR_DTYPE_Q4_K, offset), q5 = relative_error(SR_DTYPE_Q5_K, offset);
        const double q6 = relative_error(SR_DTYPE_Q6_K, offset);
        assert_true(q4 < relative_error(SR_DTYPE_Q4_0, offset) && q4 < relative_error(SR_DTYPE_Q4_1, offset));
        assert_true(q5 < relative_error(SR_DTYPE_Q5_0, offset) && q5 < relative_error(SR_DTYPE_Q5_1, offset));
        assert_true(q5 < 0.5 * q4 && q6 < q5);
    }
}

static void searched_extremes(void **state)
{
    static const sr_dtype types[] = {SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K};
    static const float scales[] = {0.0f, 1e-45f, 1e-40f, 1e-30f, 1e-8f, 1.0f, 65504.0f};
    (void)state;
    for (int t = 0; t < 3; t++)
        for (size_t s = 0; s < sizeof(scales) / sizeof(scales[0]); s++)
            for (int sign = -1; sign <= 2; sign++) { /* all below zero, all zero, all above, mixed */
                float x[256], y[256];
                uint8_t raw[256];
                for (int i = 0; i < 256; i++) x[i] = scales[s] * (sign == 2 ? (i % 2 ? -1.0f : 1.0f) : (float)sign) * (float)(i % 32 + 1) / 32.0f;
                assert_int_equal(sr_quantize_row(types[t], x, raw, 256, NULL), SR_OK);
                assert_int_equal(sr_row_find_nonfinite(types[t], raw, 256), -1);
                sr_dequantize_row(types[t], raw, y, 256);
                /* half a step of 15 over the range of two, and as much for the rounding of scales to six bits */
                for (int i = 0; i < 256; i++) assert_true(fabsf(x[i] - y[i]) <= scales[s] * 2.0f / 15.0f + 1e-6f);
            }
}

static void quantize_refuses(void **state)
{
    (void)state;
    uint8_t raw[512];
    float x[256] = {0};
    sr_error err;
    for (int t = 3; t < 8; t++) {
        static const float bad[] = {NAN, INFINITY, -INFINITY, 65520.0f, -3e38f};
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
            x[37] = bad[i];
            assert_int_equal(sr_quantize_row(all_types[t], x, raw, 64, &err), SR_ERR_NUMERIC);
            assert_non_null(strstr(err.text, "element 37"));
        }
    }
    static const sr_dtype searched[] = {SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K};
    for (int t = 0; t < 3; t++) {
        assert_int_equal(sr_quantize_row(searched[t], x, raw, 256, &err), SR_ERR_NUMERIC);
        assert_non_null(strstr(err.text, "element 37"));
    }
    x[37] = 0;
    for (int t = 8; t < n_types; t++) {
        if (all_types[t] == SR_DTYPE_Q4_K || all_types[t] == SR_DTYPE_Q5_K || all_types[t] == SR_DTYPE_Q6_K) continue;
        assert_int_equal(sr_quantize_row(all_types[t], x, raw, 256, &err), SR_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.text, sr_dtype_name(all_types[t])));
    }
}

/* ---- non-finite search -------------------------------------------------------------------------------------- */

static void nonfinite_values(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int t = 0; t < 3; t++) {
        for (int i = 0; i < 3; i++) {
            float x[9] = {0.0f, 65504.0f, -65504.0f, 1e-40f};
            uint8_t raw[36];
            assert_int_equal(sr_quantize_row(all_types[t], x, raw, 9, NULL), SR_OK);
            assert_int_equal(sr_row_find_nonfinite(all_types[t], raw, 9), -1);
            x[7] = x[8] = bad[i];
            assert_int_equal(sr_quantize_row(all_types[t], x, raw, 9, NULL), SR_OK);
            assert_int_equal(sr_row_find_nonfinite(all_types[t], raw, 9), 7);
        }
    }
}

static void nonfinite_scales(void **state)
{
    (void)state;
    static const int scale_at[][2] = {{0, -1}, {0, 2}, {0, -1}, {0, 2}, {0, -1}, {80, 82}, {108, -1}, {0, 2}, {0, 2}, {208, -1}, {0, -1}};
    for (int t = 3; t < n_types; t++) {
        const struct dtype_traits *traits = sr_dtype_find(all_types[t]);
        for (int s = 0; s < 2 && scale_at[t - 3][s] >= 0; s++) {
            uint8_t raw[4 * 256];
            memset(raw, 0, sizeof(raw));
            for (int b = 0; b < 4; b++) put_u16(raw + b * traits->block_bytes + scale_at[t - 3][s], F16_ONE);
            assert_int_equal(sr_row_find_nonfinite(all_types[t], raw, 4 * traits->block_elems), -1);
            put_u16(raw + 2 * traits->block_bytes + scale_at[t - 3][s], s ? 0x7e00u : 0xfc00u);
            assert_int_equal(sr_row_find_nonfinite(all_types[t], raw, 4 * traits->block_elems), 2 * traits->block_elems);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_sizes),      cmocka_unit_test(names_of_unsupported_types), cmocka_unit_test(blocks_by_hand),
        cmocka_unit_test(float_rows),           cmocka_unit_test(dequantize_vectors),         cmocka_unit_test(quantize_vectors),
        cmocka_unit_test(quantize_error_bounds), cmocka_unit_test(quantize_extremes),         cmocka_unit_test(quantize_refuses), cmocka_unit_test(searched_types), cmocka_unit_test(searched_extremes),
        cmocka_unit_test(nonfinite_values),     cmocka_unit_test(nonfinite_scales),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
