/* SPDX-License-Identifier: Apache-2.0
 *
 * How texts are cut into words. Rows give the words joined by '|' after the published rule of each family.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "text/pretokenize.h"

#include <stdio.h>
#include <string.h>

static const struct pretokenizer *rule(const char *name)
{
    const struct pretokenizer *p = sr_pretokenizer_find(name, strlen(name));
    assert_non_null(p);
    return p;
}

static void expect(const char *name, const char *text, const char *want)
{
    char got[512];
    size_t n = strlen(text), w = 0;

    for (size_t at = 0; at < n;) {
        size_t end = sr_pretokenizer_word(rule(name), (const uint8_t *)text, n, at);
        assert_true(end > at && end <= n);
        if (at) got[w++] = '|';
        memcpy(got + w, text + at, end - at);
        w += end - at;
        at = end;
    }
    got[w] = 0;
    if (strcmp(got, want) != 0) fail_msg("%s: \"%s\" cut as \"%s\", want \"%s\"", name, text, got, want);
}

static void gpt2_words(void **state)
{
    (void)state;
    expect("gpt-2", "Hello world", "Hello| world");
    expect("gpt-2", "I'll can't WE'RE they're", "I|'ll| can|'t| WE|'|RE| they|'re");
    expect("gpt-2", "a1b22 333", "a|1|b|22| 333");
    expect("gpt-2", "x  y", "x| | y");
    expect("gpt-2", "x   ", "x|   ");
    expect("gpt-2", "x \n\n y", "x| \n\n| y");
    expect("gpt-2", "x\n\ny", "x|\n|\n|y");
    expect("gpt-2", "(a) ... b!!", "(|a|)| ...| b|!!");
    expect("gpt-2", "\t\tif", "\t|\t|if");
    expect("gpt-2",
           "a\xC2\xA0"
           "b",
           "a|\xC2\xA0|b"); /* no-break space is white space */
    expect("gpt-2",
           "\xE4\xBD\xA0\xE5\xA5\xBD"
           "1",
           "\xE4\xBD\xA0\xE5\xA5\xBD|1");
    expect("gpt-2", "2\xC2\xBD", "2\xC2\xBD");  /* one half is a number */
    expect("gpt-2", "e\xCC\x81", "e|\xCC\x81"); /* a combining mark is neither */
    expect("mpt", "a1b22 333", "a|1|b|22| 333");
}

static void smollm_words(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        static const char *const same[] = {"smollm", "starcoder", "refact"};
        expect(same[i], "a1b22 333", "a|1|b|2|2| |3|3|3");
        expect(same[i], "x  9", "x|  |9"); /* white space ends at the number: the look-ahead sees an end */
        expect(same[i], "x 9 y", "x| |9| y");
        expect(same[i], "x  y", "x| | y");
        expect(same[i], " x 1 ", " x| |1| ");
        expect(same[i], "\n\n7", "\n\n|7");
        expect(same[i], "2\xC2\xBD", "2|\xC2\xBD");
        expect(same[i], "it's", "it|'s");
    }
}

static void llama3_words(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        static const char *const same[] = {"llama-bpe", "llama3", "llama-v3"};
        expect(same[i], "Hello world", "Hello| world");
        expect(same[i], "I'LL can't", "I|'LL| can|'t");
        expect(same[i], "12345 6", "123|45| |6");
        expect(same[i], "a\n\n  b", "a|\n\n| | b");
        expect(same[i], "a \n \nb", "a| \n \n|b");
        expect(same[i], "a;\n\nb", "a|;\n\n|b");
        expect(same[i], "(word)", "(word|)");
        expect(same[i], "\tif", "\tif");
        expect(same[i], "  (", " | (");
        expect(same[i], "x   ", "x|   ");
        expect(same[i], "a\r\nb", "a|\r\n|b");
        expect(same[i], "'x", "'x");
    }
}

static void qwen2_words(void **state)
{
    (void)state;
    expect("qwen2", "12345 6", "1|2|3|4|5| |6");
    expect("qwen2", "I'LL be", "I|'LL| be");
    expect("deepseek-r1-qwen", "v2.5", "v|2|.|5");
}

static void invalid_bytes_are_of_no_class(void **state)
{
    (void)state;
    expect("gpt-2",
           "a\xFF\xFE"
           "b",
           "a|\xFF\xFE|b");
    expect("llama-bpe",
           "a\xFF"
           "b",
           "a|\xFF"
           "b");
    expect("qwen2", "\xE4\xBD", "\xE4\xBD");
    expect("smollm", " \xC0\xAF 1", " \xC0\xAF| |1");
}

static void names(void **state)
{
    static const char *const unknown[] = {"",    "default", "falcon", "deepseek-coder",
                                          "gpt", "gpt-22",  "Qwen2"};

    (void)state;
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        assert_null(sr_pretokenizer_find(unknown[i], strlen(unknown[i])));
    char list[256], *save = NULL;
    int n = 0;
    snprintf(list, sizeof list, "%s", sr_pretokenizer_names());
    for (char *w = strtok_r(list, ", ", &save); w; w = strtok_r(NULL, ", ", &save), n++) (void)rule(w);
    assert_int_equal(n, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_words),
        cmocka_unit_test(smollm_words),
        cmocka_unit_test(llama3_words),
        cmocka_unit_test(qwen2_words),
        cmocka_unit_test(invalid_bytes_are_of_no_class),
        cmocka_unit_test(names),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("pretokenize", tests, NULL, NULL);
}
