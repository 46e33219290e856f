/* SPDX-License-Identifier: Apache-2.0
 *
 * GGUF tensor infos and data: rows GT of the bad-input contract by name.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "gguf_expect.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define TYPE_I8 24

static struct sr_tb b;

/* One tensor "t" and `data_bytes` bytes of data section. */
static void build_one(uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset, size_t data_bytes)
{
    sr_tb_begin(&b, 1, 0);
    sr_tb_info(&b, "t", n_dims, ne, type, offset);
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, data_bytes);
}

#define NE(...) ((const uint64_t[4]){__VA_ARGS__})

static void gt1_number_of_dimensions(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 5, 0x80000000u, 0xffffffffu};
    for (int i = 0; i < 4; i++) {
        build_one(bad[i], NE(8, 1, 1, 1), SR_DTYPE_F32, 0, 64);
        sr_tb_refused(&b, SR_ERR_FORMAT, "tensor t: ");
    }
    for (uint32_t n = 1; n <= 4; n++) {
        build_one(n, NE(2, 3, 4, 5), SR_DTYPE_F32, 0, 4 * 120);
        struct gguf *g = sr_tb_opened(&b);
        const struct gguf_tensor *t = sr_gguf_tensor(g, 0);
        assert_int_equal(t->n_dims, n);
        for (uint32_t i = 0; i < 4; i++) assert_int_equal(t->ne[i], i < n ? i + 2 : 1);
        assert_int_equal(t->bytes, 4 * t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]);
        sr_gguf_close(g);
    }
}

static void gt2_dimension_zero_or_huge(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        uint64_t ne[4] = {1, 1, 1, 1};
        ne[i] = 0;
        build_one(4, ne, SR_DTYPE_F32, 0, 64);
        sr_tb_refused(&b, SR_ERR_FORMAT, "is 0, must be");
        ne[i] = (uint64_t)1 << 63;
        build_one(4, ne, SR_DTYPE_F32, 0, 64);
        sr_tb_refused(&b, SR_ERR_FORMAT, "is 9223372036854775808, must be");
        ne[i] = UINT64_MAX;
        build_one(4, ne, TYPE_I8, 0, 64);
        sr_tb_refused(&b, SR_ERR_FORMAT, "must be");
    }
    build_one(2, NE(0, (uint64_t)INT64_MAX), SR_DTYPE_Q4_0, 0, 64);
    sr_tb_refused(&b, SR_ERR_FORMAT, "dimension 0");
}

static void gt3_elements_wrap(void **state)
{
    (void)state;
    build_one(4, NE(INT64_MAX, 2, 1, 1), TYPE_I8, 0, 64);
    sr_tb_refused(&b, SR_ERR_FORMAT, "more than 2^63-1 elements");
    build_one(4, NE((uint64_t)1 << 32, (uint64_t)1 << 32, 1, 1), SR_DTYPE_F32, 0, 64);
    sr_tb_refused(&b, SR_ERR_FORMAT, "more than 2^63-1 elements");
    build_one(4, NE((uint64_t)1 << 32, (uint64_t)1 << 31, 4, 1), SR_DTYPE_Q4_K, 0, 64);
    sr_tb_refused(&b, SR_ERR_FORMAT, "more than 2^63-1 elements");
}

static void gt4_bytes_wrap(void **state)
{
    (void)state;
    build_one(4, NE(4, (1u << 30) - 1, (1u << 30) + 1, 1), SR_DTYPE_F32, 0, 64); /* 2^64 - 16 bytes */
    sr_tb_refused(&b, SR_ERR_FORMAT, "bytes");
    build_one(1, NE((uint64_t)1 << 62), SR_DTYPE_F32, 0, 64);
    sr_tb_refused(&b, SR_ERR_FORMAT, "bytes");
    build_one(1, NE((uint64_t)1 << 61), 28, 0, 64);
    sr_tb_refused(&b, SR_ERR_FORMAT, "bytes");
}

static void gt5_sum_wraps(void **state)
{
    (void)state;
    const uint64_t ne = 0x7FFFFFFFFFFFFFC0u;
    sr_tb_begin(&b, 2, 0);
    sr_tb_info(&b, "a", 1, &ne, TYPE_I8, 0);
    sr_tb_info(&b, "b", 1, &ne, TYPE_I8, ne);
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, 256);
    sr_tb_refused(&b, SR_ERR_FORMAT, "tensor a: 9223372036854775744 bytes");
}

static void gt6_row_count_grown(void **state)
{
    (void)state;
    build_one(2, NE(576, 4), SR_DTYPE_Q8_0, 0, 4 * 612);
    sr_gguf_close(sr_tb_opened(&b));
    build_one(2, NE(576, ((uint64_t)1 << 42) + 1), SR_DTYPE_Q8_0, 0, 4 * 612);
    sr_tb_refused(&b, SR_ERR_FORMAT, "the data section has 2448");
}

static void gt7_type_ids(void **state)
{
    (void)state;
    static const uint32_t never[] = {0xffffffffu, 4, 5, 31, 33, 36, 38, 0x80000000u, 43, 255};
    static const struct { uint32_t id; const char *name; } foreign[] = {
        {16, "iq2_xxs"}, {17, "iq2_xs"}, {19, "iq1_s"}, {23, "iq4_xs"}, {24, "i8"}, {28, "f64"}, {35, "tq2_0"}, {39, "mxfp4"}, {42, "q2_0"}};
    for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
        build_one(1, NE(256), never[i], 0, 4096);
        sr_tb_refused(&b, SR_ERR_FORMAT, "tensor t: type id");
    }
    for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) {
        char text[64];
        snprintf(text, sizeof(text), "tensor t has type %s", foreign[i].name);
        build_one(1, NE(256), foreign[i].id, 0, 4096);
        sr_tb_refused(&b, SR_ERR_UNSUPPORTED, text);
    }
    build_one(1, NE(256), 17, 0, 73); /* broken comes before foreign: a block has 74 bytes */
    sr_tb_refused(&b, SR_ERR_FORMAT, "tensor t: 74 bytes");
}

static void gt8_part_of_a_block(void **state)
{
    (void)state;
    static const struct { uint32_t type; uint64_t n; } bad[] = {{2, 31}, {2, 33}, {8, 1}, {12, 255}, {12, 128}, {14, 32}, {20, 16}, {17, 255}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        build_one(2, NE(bad[i].n, 256), bad[i].type, 0, 1 << 16);
        sr_tb_refused(&b, SR_ERR_FORMAT, "has blocks of");
    }
}

static void gt9_offsets(void **state)
{
    (void)state;
    static const struct { uint64_t offset; const char *text; } bad[] = {
        {1, "alignment"}, {8, "alignment"}, {33, "alignment"}, {96, "the data section has 96"}, {128, "the data section has 96"},
        {(uint64_t)0 - 32, "the data section has 96"}, {(uint64_t)1 << 63, "the data section has 96"}, {(uint64_t)0 - 64, "the data section has 96"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        build_one(1, NE(8), SR_DTYPE_F32, bad[i].offset, 96);
        sr_tb_refused(&b, SR_ERR_FORMAT, bad[i].text);
    }
    build_one(1, NE(8), SR_DTYPE_F32, 64, 96); /* ends with the file */
    sr_gguf_close(sr_tb_opened(&b));
    b.bytes--;
    sr_tb_refused(&b, SR_ERR_FORMAT, "tensor t: 32 bytes at data offset 64");
}

static void gt9_alignment_of_the_file(void **state)
{
    (void)state;
    static const uint32_t alignments[] = {8, 64, 4096};
    for (int i = 0; i < 3; i++) {
        const uint32_t a = alignments[i];
        sr_tb_begin(&b, 2, 1);
        sr_tb_kv_u32(&b, "general.alignment", a);
        sr_tb_info(&b, "x", 1, NE(2), SR_DTYPE_F32, 0);
        sr_tb_info(&b, "y", 1, NE(2), SR_DTYPE_F32, a);
        sr_tb_pad(&b, a);
        const size_t data = b.bytes;
        sr_tb_zeros(&b, a + 8);
        struct gguf *g = sr_tb_opened(&b);
        assert_int_equal(sr_gguf_find_tensor(g, "x")->file_offset, data);
        assert_int_equal(sr_gguf_find_tensor(g, "y")->file_offset, data + a);
        sr_gguf_close(g);
    }
}

static void gt10_overlaps(void **state)
{
    (void)state;
    static const uint64_t second[] = {0, 32, 64};
    for (int i = 0; i < 3; i++) {
        for (int swap = 0; swap < 2; swap++) {
            sr_tb_begin(&b, 3, 0);
            sr_tb_info(&b, "far", 1, NE(8), SR_DTYPE_F32, 128);
            if (swap) sr_tb_info(&b, "over", 1, NE(8), SR_DTYPE_F32, second[i]);
            sr_tb_info(&b, "under", 1, NE(17), SR_DTYPE_F32, 0);
            if (!swap) sr_tb_info(&b, "over", 1, NE(8), SR_DTYPE_F32, second[i]);
            sr_tb_pad(&b, 32);
            sr_tb_zeros(&b, 256);
            sr_tb_refused(&b, SR_ERR_FORMAT, "under");
            sr_tb_refused(&b, SR_ERR_FORMAT, "over");
        }
    }
    /* the span of 2 blocks stored for a tensor that needs 3: its tail would be the next tensor */
    sr_tb_begin(&b, 2, 0);
    sr_tb_info(&b, "short", 1, NE(96), SR_DTYPE_Q8_0, 0);
    sr_tb_info(&b, "next", 1, NE(32), SR_DTYPE_Q8_0, 96);
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, 256);
    sr_tb_refused(&b, SR_ERR_FORMAT, "tensor next begins inside tensor short, which has 102 bytes");
}

static void any_order_and_gaps(void **state)
{
    (void)state;
    enum { N = 100000 };
    sr_tb_begin(&b, N, 0);
    for (uint64_t i = 0; i < N; i++) { /* shuffled by a step that is prime to N, every slot 64 bytes with 28 used */
        char name[24];
        snprintf(name, sizeof(name), "blk.%llu.w", (unsigned long long)i);
        sr_tb_info(&b, name, 1, NE(7), SR_DTYPE_F32, 64 * (i * 7919 % N));
    }
    sr_tb_pad(&b, 32);
    const size_t data = b.bytes;
    sr_tb_zeros(&b, (size_t)64 * N);
    const double from = sr_tb_seconds();
    struct gguf *g = sr_tb_opened(&b);
    for (uint64_t i = 0; i < N; i++) {
        char name[24];
        snprintf(name, sizeof(name), "blk.%llu.w", (unsigned long long)i);
        const struct gguf_tensor *t = sr_gguf_find_tensor(g, name);
        assert_ptr_equal(t, sr_gguf_tensor(g, (int64_t)i));
        assert_int_equal(t->file_offset, data + 64 * (i * 7919 % N));
    }
    sr_gguf_close(g);
    assert_true(sr_tb_seconds() - from < 2.0);
    sr_tb_begin(&b, 0, 0); /* the same with one overlap in the middle is found */
    sr_tb_set_u64(&b, 8, N);
    for (uint64_t i = 0; i < N; i++) {
        char name[24];
        snprintf(name, sizeof(name), "t%llu", (unsigned long long)i);
        sr_tb_info(&b, name, 1, NE(i == 4711 ? 17 : 7), SR_DTYPE_F32, 64 * (i * 7919 % N));
    }
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, (size_t)64 * N);
    sr_tb_refused(&b, SR_ERR_FORMAT, "inside tensor t4711");
}

static void gt11_names(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {0, 64, 65, UINT64_MAX, (uint64_t)1 << 63};
    for (int i = 0; i < 5; i++) {
        sr_tb_begin(&b, 1, 0);
        sr_tb_u64(&b, lengths[i]);
        for (int k = 0; k < 200; k++) sr_tb_u8(&b, 'n');
        sr_tb_refused(&b, SR_ERR_FORMAT, "tensor name length");
    }
    sr_tb_begin(&b, 1, 0); /* the longest legal name */
    sr_tb_info(&b, "123456789012345678901234567890123456789012345678901234567890123", 1, NE(8), SR_DTYPE_F32, 0);
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, 32);
    sr_gguf_close(sr_tb_opened(&b));
    sr_tb_begin(&b, 3, 0);
    sr_tb_info(&b, "same", 1, NE(8), SR_DTYPE_F32, 0);
    sr_tb_info(&b, "other", 1, NE(8), SR_DTYPE_F32, 32);
    sr_tb_info(&b, "same", 1, NE(8), SR_DTYPE_F32, 64);
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, 96);
    sr_tb_refused(&b, SR_ERR_FORMAT, "duplicate tensor name same");
}

static void gt11_name_text(void **state)
{
    (void)state;
    static const struct { const char *text; size_t bytes; } bad[] = {{"a\0b", 3}, {"\xff\xfe", 2}, {"w\xc3", 2}};
    for (int i = 0; i < 3; i++) {
        sr_tb_begin(&b, 1, 0);
        sr_tb_u64(&b, bad[i].bytes);
        sr_tb_put(&b, bad[i].text, bad[i].bytes);
        sr_tb_u32(&b, 1), sr_tb_u64(&b, 8), sr_tb_u32(&b, 0), sr_tb_u64(&b, 0);
        sr_tb_pad(&b, 32);
        sr_tb_zeros(&b, 32);
        sr_tb_refused(&b, SR_ERR_FORMAT, "NUL or invalid UTF-8");
    }
    build_one(1, NE(8), 17, 0, 0);
    b.data[24 + 8] = '\n'; /* the name */
    sr_tb_refused(&b, SR_ERR_FORMAT, "tensor \\x0a: ");
}

static void gt14_cut_data(void **state)
{
    (void)state;
    build_one(2, NE(32, 3), SR_DTYPE_Q4_0, 0, 54);
    sr_gguf_close(sr_tb_opened(&b));
    b.bytes--;
    sr_tb_refused(&b, SR_ERR_FORMAT, "tensor t: 54 bytes at data offset 0, the data section has 53");
    b.bytes -= 53; /* all of the data */
    sr_tb_refused(&b, SR_ERR_FORMAT, "the data section has 0");
    while (b.bytes % 32 != 1) b.bytes--; /* and the padding before it */
    sr_tb_refused(&b, SR_ERR_FORMAT, "");
}

static void gt14_no_tensors_no_padding(void **state)
{
    (void)state;
    sr_tb_count_warnings();
    sr_tb_begin(&b, 0, 1);
    sr_tb_kv_u32(&b, "k", 1);
    sr_gguf_close(sr_tb_opened(&b));
    sr_tb_pad(&b, 32);
    sr_gguf_close(sr_tb_opened(&b));
    assert_int_equal(sr_tb_warnings(), 0);
    sr_tb_u8(&b, 0);
    sr_gguf_close(sr_tb_opened(&b));
    assert_int_equal(sr_tb_warnings(), 1);
}

static void gt15_not_finite(void **state)
{
    (void)state;
    const float nan_value = NAN;
    sr_error err;
    sr_tb_begin(&b, 3, 0);
    sr_tb_info(&b, "norm", 1, NE(8), SR_DTYPE_F32, 0);
    sr_tb_info(&b, "q", 2, NE(64, 5), SR_DTYPE_Q8_0, 32);
    sr_tb_info(&b, "k", 3, NE(256, 2, 2), SR_DTYPE_Q4_K, 384);
    sr_tb_pad(&b, 32);
    const size_t data = b.bytes;
    sr_tb_zeros(&b, 384 + 4 * 144);
    struct gguf *g = sr_tb_opened(&b);
    for (int i = 0; i < 3; i++) assert_int_equal(sr_gguf_check_tensor(g, sr_gguf_tensor(g, i), &err), SR_OK);
    sr_gguf_close(g);
    memcpy(b.data + data + 4 * 5, &nan_value, 4);
    b.data[data + 32 + 3 * 68 + 34 + 1] = 0x7c; /* row 3, second block: d = +Inf */
    b.data[data + 384 + 3 * 144 + 3] = 0xfe;    /* row 3 of 4: dmin = NaN */
    g = sr_tb_opened(&b);
    static const char *const want[] = {"tensor norm: row 0, element 5: NaN or infinite value", "tensor q: row 3, element 32: NaN or infinite block scale",
                                       "tensor k: row 3, element 0: NaN or infinite block scale"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(sr_gguf_check_tensor(g, sr_gguf_tensor(g, i), &err), SR_ERR_FORMAT);
        if (!strstr(err.text, want[i])) fail_msg("%s", err.text);
    }
    sr_gguf_close(g);
}

static void data_is_where_it_is_said(void **state)
{
    (void)state;
    float x[8], y[8];
    for (int i = 0; i < 8; i++) x[i] = (float)i - 3.5f;
    sr_tb_begin(&b, 2, 0);
    sr_tb_info(&b, "second", 1, NE(8), SR_DTYPE_F32, 32);
    sr_tb_info(&b, "first", 1, NE(8), SR_DTYPE_F32, 0);
    sr_tb_pad(&b, 32);
    sr_tb_zeros(&b, 32);
    sr_tb_put(&b, x, sizeof(x));
    struct gguf *g = sr_tb_opened(&b);
    sr_dequantize_row(SR_DTYPE_F32, sr_gguf_find_tensor(g, "second")->data, y, 8);
    assert_memory_equal(x, y, sizeof(x));
    sr_dequantize_row(SR_DTYPE_F32, sr_gguf_find_tensor(g, "first")->data, y, 8);
    for (int i = 0; i < 8; i++) assert_true(y[i] == 0.0f);
    sr_gguf_close(g);
}

static int clean(void **state)
{
    (void)state;
    sr_tb_free(&b);
    sr_tb_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gt1_number_of_dimensions), cmocka_unit_test(gt2_dimension_zero_or_huge), cmocka_unit_test(gt3_elements_wrap),
        cmocka_unit_test(gt4_bytes_wrap),           cmocka_unit_test(gt5_sum_wraps),              cmocka_unit_test(gt6_row_count_grown),
        cmocka_unit_test(gt7_type_ids),             cmocka_unit_test(gt8_part_of_a_block),        cmocka_unit_test(gt9_offsets),
        cmocka_unit_test(gt9_alignment_of_the_file), cmocka_unit_test(gt10_overlaps),             cmocka_unit_test(any_order_and_gaps),
        cmocka_unit_test(gt11_names),               cmocka_unit_test(gt11_name_text),             cmocka_unit_test(gt14_cut_data),
        cmocka_unit_test(gt14_no_tensors_no_padding), cmocka_unit_test(gt15_not_finite),          cmocka_unit_test(data_is_where_it_is_said),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("gguf tensors", tests, NULL, clean);
}
