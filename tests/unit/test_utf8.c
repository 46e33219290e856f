/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8: every code point there and back, every two-byte start against a plain second decoder, and the stream
 * filter on all ways to cut a text (rows TK11 and TK15 of the bad-input contract).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "text/utf8.h"

#include <stdio.h>
#include <string.h>

static void every_code_point(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        char s[4];
        uint32_t back;
        int valid, n = sr_utf8_encode(c, s), surrogate = c >= 0xD800 && c <= 0xDFFF;
        assert_int_equal(n, c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4);
        assert_int_equal(sr_utf8_decode((uint8_t *)s, (size_t)n, &back, &valid), n);
        assert_int_equal(back, surrogate ? 0xFFFD : c);
        assert_true(valid);
        assert_true(sr_utf8_valid(s, (size_t)n));
        for (int cut = 1; cut < n; cut++) {
            assert_int_equal(sr_utf8_decode((uint8_t *)s, (size_t)cut, &back, &valid), 1);
            assert_false(valid);
            assert_int_equal(back, 0xFFFD);
        }
    }
    char s[4];
    assert_int_equal(sr_utf8_encode(0x110000, s), 3);
    assert_memory_equal(s, "\xEF\xBF\xBD", 3);
}

/* By arithmetic instead of by ranges: strip the length bits, then ask whether the value needed that length.
 */
static int naive_length(const uint8_t *s, size_t n)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    int len = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
    uint32_t c = len == 1 ? s[0] : s[0] & (0xFFu >> (len + 1));

    if (len == 0 || (size_t)len > n) return 0;
    for (int i = 1; i < len; i++) {
        if (s[i] >> 6 != 2) return 0;
        c = c << 6 | (s[i] & 63u);
    }
    return c >= least[len] && c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF) ? len : 0;
}

static void every_beginning(void **state)
{
    static const uint8_t tails[][2] = {{0x80, 0x80}, {0xBF, 0xBF}, {0x80, 'a'}, {'a', 0x80}, {0xC2, 0x80}};

    (void)state;
    for (uint32_t two = 0; two < 0x10000; two++)
        for (size_t k = 0; k < 5; k++) {
            uint8_t s[4] = {(uint8_t)(two >> 8), (uint8_t)two, tails[k][0], tails[k][1]};
            uint32_t c;
            int valid, want = naive_length(s, 4), got = sr_utf8_decode(s, 4, &c, &valid);
            assert_int_equal(valid, want > 0);
            assert_int_equal(got, want > 0 ? want : 1);
            if (want)
                assert_int_equal(sr_utf8_valid(s, (size_t)want), 1);
            else
                assert_int_equal(sr_utf8_valid(s, 4), 0);
        }
}

static size_t streamed(const char *text, size_t n, size_t cut_a, size_t cut_b, char *out)
{
    struct utf8_stream u = {0};
    size_t w = sr_utf8_stream_push(&u, text, cut_a, out);
    w += sr_utf8_stream_push(&u, text + cut_a, cut_b - cut_a, out + w);
    assert_true(sr_utf8_valid(out, w));
    w += sr_utf8_stream_push(&u, text + cut_b, n - cut_b, out + w);
    return w + sr_utf8_stream_finish(&u, out + w);
}

static void stream_cut_anywhere(void **state)
{
    static const char text[] = "a\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80z\xEF\xBB\xBF";
    size_t n = sizeof text - 1;
    char out[256];

    (void)state;
    for (size_t a = 0; a <= n; a++)
        for (size_t b = a; b <= n; b++) {
            assert_int_equal(streamed(text, n, a, b, out), n);
            assert_memory_equal(out, text, n);
        }
}

static void stream_holds_back(void **state)
{
    struct utf8_stream u = {0};
    char out[64];

    (void)state;
    assert_int_equal(sr_utf8_stream_push(&u, "\xF0\x9F", 2, out), 0);
    assert_int_equal(sr_utf8_stream_push(&u, "\x98", 1, out), 0);
    assert_int_equal(sr_utf8_stream_push(&u, "\x80!", 2, out), 5);
    assert_memory_equal(out, "\xF0\x9F\x98\x80!", 5);
    assert_int_equal(sr_utf8_stream_finish(&u, out), 0);
}

static void stream_replaces(void **state)
{
    static const struct {
        const char *in;
        int n_replaced;
        const char *rest;
    } rows[] = {
        {"\x80", 1, ""},
        {"\xFF\xFE", 2, ""},
        {"\xC0\xAF", 2, ""},
        {"\xED\xA0\x80", 3, ""},
        {"\xF4\x90\x80\x80", 4, ""},
        {"\xE4\xBD", 2, ""},
        {"\xE4\xBDx", 2, "x"},
        {"\xF0\x9F\x98\xC3\xA9", 3, "\xC3\xA9"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t n = strlen(rows[i].in);
        char out[64], want[64] = "";
        for (int k = 0; k < rows[i].n_replaced; k++) strcat(want, "\xEF\xBF\xBD");
        strcat(want, rows[i].rest);
        for (size_t cut = 0; cut <= n; cut++) {
            size_t w = streamed(rows[i].in, n, cut, cut, out);
            assert_int_equal(w, strlen(want));
            assert_memory_equal(out, want, w);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point),    cmocka_unit_test(every_beginning),
        cmocka_unit_test(stream_cut_anywhere), cmocka_unit_test(stream_holds_back),
        cmocka_unit_test(stream_replaces),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("utf8", tests, NULL, NULL);
}
