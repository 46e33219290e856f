/* SPDX-License-Identifier: Apache-2.0
 *
 * Vocabularies that must be refused (rows TK1 to TK9 of the bad-input contract) and texts that must not take
 * long (TK10). Every refusal is one printable line that names the file and the key.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "vocab_build.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct sr_tv v;

static void refused_file(const char *path, sr_status status, const char *needle)
{
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    sr_error err = {0};

    sr_status st = sr_gguf_open(&g, path, &err);
    if (st == SR_OK) st = sr_tokenizer_open(&t, g, &err);
    sr_gguf_close(g);
    if (st != status) fail_msg("status %d (%s), want %d for %s", (int)st, err.text, (int)status, needle);
    assert_null(t);
    assert_int_equal(err.status, status);
    assert_non_null(strstr(err.text, path));
    if (!strstr(err.text, needle)) fail_msg("\"%s\" does not say \"%s\"", err.text, needle);
    for (const char *p = err.text; *p; p++) assert_true((uint8_t)*p >= 0x20 && *p != 0x7F);
}

static void refused(sr_status status, const char *needle)
{
    refused_file(sr_tv_save(&v, "bad.gguf"), status, needle);
}

static void abc(void)
{
    sr_tv_bpe(&v, "gpt-2");
    sr_tv_add(&v, "ab", 0, 0);
}

/* ---- a file made by hand: model, pre and whatever the test puts in ---- */

static struct sr_tb raw;

static void begin_raw(uint64_t n_more)
{
    sr_tb_begin(&raw, 0, 2 + n_more);
    sr_tb_kv_str(&raw, "tokenizer.ggml.model", "gpt2");
    sr_tb_kv_str(&raw, "tokenizer.ggml.pre", "gpt-2");
}

static void put_tokens(uint64_t n)
{
    sr_tb_kv_array(&raw, "tokenizer.ggml.tokens", GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) {
        char c[2] = {(char)('a' + i % 26), 0};
        sr_tb_text(&raw, c);
    }
}

static void raw_refused(sr_status status, const char *needle)
{
    refused_file(sr_tb_save(&raw, "raw.gguf"), status, needle);
    sr_tb_free(&raw);
}

static void tk1_tokens(void **state)
{
    (void)state;
    begin_raw(0);
    raw_refused(SR_ERR_FORMAT, "tokenizer.ggml.tokens: missing");
    begin_raw(1);
    put_tokens(0);
    raw_refused(SR_ERR_FORMAT, "tokenizer.ggml.tokens: empty");
    begin_raw(1);
    sr_tb_kv_array(&raw, "tokenizer.ggml.tokens", GGUF_U32, 3);
    sr_tb_zeros(&raw, 12);
    raw_refused(SR_ERR_FORMAT, "not an array of strings");
    begin_raw(1);
    sr_tb_kv_str(&raw, "tokenizer.ggml.tokens", "abc");
    raw_refused(SR_ERR_FORMAT, "not an array of strings");
}

static void tk1_model_and_rule(void **state)
{
    (void)state;
    abc();
    v.model = "bert";
    refused(SR_ERR_UNSUPPORTED, "\"bert\"");
    v.model = NULL;
    refused(SR_ERR_FORMAT, "tokenizer.ggml.model");
    abc();
    v.pre = "falcon";
    refused(SR_ERR_UNSUPPORTED, "\"falcon\" is not supported; known: gpt-2,");
    v.pre = "default";
    refused(SR_ERR_UNSUPPORTED, "\"default\"");
    v.pre = "x\ny%s";
    refused(SR_ERR_UNSUPPORTED, "tokenizer.ggml.pre");
    v.pre = NULL;
    refused(SR_ERR_UNSUPPORTED, "tokenizer.ggml.pre: missing");
}

static void tk2_types_and_scores(void **state)
{
    (void)state;
    begin_raw(2);
    put_tokens(3);
    sr_tb_kv_array(&raw, "tokenizer.ggml.token_type", GGUF_I32, 2);
    sr_tb_zeros(&raw, 8);
    raw_refused(SR_ERR_FORMAT, "token_type: 2 elements for 3 tokens");
    begin_raw(2);
    put_tokens(3);
    sr_tb_kv_array(&raw, "tokenizer.ggml.token_type", GGUF_U8, 3);
    sr_tb_zeros(&raw, 3);
    raw_refused(SR_ERR_FORMAT, "token_type: not an array");
    abc();
    v.types[3] = 7;
    refused(SR_ERR_FORMAT, "token_type[3]: 7");
    sr_tv_spm(&v);
    v.scores[258] = NAN;
    refused(SR_ERR_FORMAT, "scores[258]");

    for (int kind = 0; kind < 3; kind++) { /* absent; bytes, as many as tokens; one too few */
        sr_tb_begin(&raw, 0, kind ? 3 : 2);
        sr_tb_kv_str(&raw, "tokenizer.ggml.model", "llama");
        put_tokens(4);
        if (kind)
            sr_tb_kv_array(&raw, "tokenizer.ggml.scores", kind == 1 ? GGUF_U8 : GGUF_F32, kind == 1 ? 4 : 3);
        if (kind) sr_tb_zeros(&raw, kind == 1 ? 4 : 12);
        raw_refused(SR_ERR_FORMAT, kind == 0   ? "scores: missing"
                                   : kind == 1 ? "not an array of f32"
                                               : "3 elements for 4");
    }
}

static void tk4_ids_outside(void **state)
{
    (void)state;
    abc();
    v.eos = 0xFFFFFFFF;
    refused(SR_ERR_FORMAT, "tokenizer.ggml.eos_token_id");
    v.eos = (int64_t)v.n;
    refused(SR_ERR_FORMAT, "tokenizer.ggml.eos_token_id");
    abc();
    v.bos = (int64_t)v.n;
    refused(SR_ERR_FORMAT, "tokenizer.ggml.bos_token_id");
    abc();
    v.add_bos = 1;
    refused(SR_ERR_FORMAT, "tokenizer.ggml.bos_token_id: missing");
    v.n = 1;
    v.add_bos = -1;
    refused(SR_ERR_FORMAT, "1 token");
    abc();
    v.eos = (int64_t)v.n - 1;
    sr_tokenizer_close(sr_tv_open(&v)); /* the last one is fine */
}

static void tk5_byte_tokens(void **state)
{
    (void)state;
    static const char *const bad[] = {"<0x-1>", "<0xZZ>", "<0x1FF>", "<0x1>", "0x41", "<0X41>", "<0x 1>", ""};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        sr_tv_spm(&v);
        v.tokens[100] = bad[i];
        refused(SR_ERR_FORMAT, "tokenizer.ggml.tokens[100]: byte token");
    }
    sr_tv_spm(&v);
    v.tokens[0x2A + 3] = "<0x2a>"; /* lower case is the same byte */
    sr_tokenizer_close(sr_tv_open(&v));
}

static void tk6_odd_tokens_are_defined(void **state)
{
    (void)state;
    abc();
    int32_t first = sr_tv_add(&v, "twice", TOKEN_USER, 0), second = sr_tv_add(&v, "twice", TOKEN_USER, 0);
    sr_tv_add(&v, "", TOKEN_USER, 0);
    sr_tv_add(&v, "", 0, 0);
    struct tokenizer *t = sr_tv_open(&v);
    char want[32];
    snprintf(want, sizeof want, "%d %d", first, first);
    assert_string_equal(sr_tv_ids(t, "twicetwice", 10, SPECIAL_AS_TEXT), want);
    assert_int_equal(sr_tokenizer_find(t, "twice", 5), first);
    assert_int_equal(sr_token_bytes(t, second, 0, NULL, 0), 5);
    assert_int_equal(sr_token_bytes(t, second + 1, 0, NULL, 0), 0);
    assert_string_equal(sr_tv_ids(t, "a\0b", 3, SPECIAL_AS_TEXT), "97 0 98"); /* NUL is a byte like others */
    sr_tokenizer_close(t);
}

static void tk6_nul_in_a_token(void **state)
{
    (void)state;
    begin_raw(2);
    sr_tb_kv_array(&raw, "tokenizer.ggml.tokens", GGUF_STRING, 3);
    sr_tb_text(&raw, "a");
    sr_tb_text(&raw, "b");
    sr_tb_u64(&raw, 3);
    sr_tb_put(&raw, "a\0b", 3);
    sr_tb_kv_array(&raw, "tokenizer.ggml.merges", GGUF_STRING, 0);
    struct tokenizer *t = sr_tv_open_file(sr_tb_save(&raw, "nul.gguf"));
    assert_int_equal(sr_tokenizer_find(t, "a\0b", 3), 2);
    assert_int_equal(sr_tokenizer_find(t, "a", 1), 0);
    assert_string_equal(sr_tv_ids(t, "a\0b", 3, SPECIAL_AS_TEXT), "0 1"); /* the NUL byte has no token */
    sr_tokenizer_close(t);
    sr_tb_free(&raw);
}

static void tk6_no_way_to_write_a_byte(void **state)
{
    (void)state;
    sr_tv_spm(&v);
    v.tokens[3 + '\n'] = "<0x0B>"; /* no newline token */
    v.types[0] = TOKEN_CONTROL;    /* and no unknown token that may stand in text */
    refused(SR_ERR_FORMAT, "no byte token <0x0A>");
    sr_tv_bpe(&v, "gpt-2");
    for (uint64_t i = 0; i < v.n; i++) v.tokens[i] = "long";
    refused(SR_ERR_FORMAT, "no token stands for a single byte");
}

static void tk7_merges(void **state)
{
    (void)state;
    static const char *const bad[] = {"ab", "a", "", " ", "a ", " a", "a zz", "zz a", "a  b", "b a", "a b c"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        abc();
        sr_tv_merge(&v, "a b");
        sr_tv_merge(&v, bad[i]);
        refused(SR_ERR_FORMAT, "tokenizer.ggml.merges[1]");
    }
    begin_raw(1);
    put_tokens(3);
    raw_refused(SR_ERR_FORMAT, "tokenizer.ggml.merges: missing");
    begin_raw(2);
    put_tokens(3);
    sr_tb_kv_array(&raw, "tokenizer.ggml.merges", GGUF_U32, 1);
    sr_tb_u32(&raw, 0);
    raw_refused(SR_ERR_FORMAT, "tokenizer.ggml.merges: not an array of strings");
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts); /* not wall time: other programs may share the machine */
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static double seconds_to_load(uint64_t n_merges)
{
    begin_raw(2);
    put_tokens(26);
    sr_tb_set_u64(&raw, raw.bytes - 26 * 9 - 8, 27); /* one token more than put */
    sr_tb_text(&raw, "ab");
    sr_tb_kv_array(&raw, "tokenizer.ggml.merges", GGUF_STRING, n_merges);
    for (uint64_t i = 0; i < n_merges; i++) sr_tb_text(&raw, "a b");
    const char *path = sr_tb_save(&raw, "merges.gguf");
    sr_tb_free(&raw);
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        double begin = now();
        sr_tokenizer_close(sr_tv_open_file(path));
        double s = now() - begin;
        if (s < best) best = s;
    }
    return best;
}

/* Eight times as many: a quadratic load would take 64 times as long. */
static void tk7_many_merges(void **state)
{
    (void)state;
    double few = 0, many = 0;
    for (int attempt = 0; attempt < 4; attempt++) {
        few = seconds_to_load(1u << 17);
        many = seconds_to_load(1u << 20);
        if (many < 24 * few && many < 2) return;
    }
    fail_msg("2^17 merges %.3f s, 2^20 merges %.3f s", few, many);
}

static void tk8_charsmap(void **state)
{
    (void)state;
    static const struct {
        uint32_t n;
        const char *bytes;
        sr_status want;
        const char *needle;
    } rows[] = {
        {1, "x", SR_ERR_FORMAT, "1 bytes"},
        {3, "xyz", SR_ERR_FORMAT, "3 bytes"},
        {8,
         "\xFF\xFF\xFF\x7F"
         "abcd",
         SR_ERR_FORMAT, "trie of"},
        {8,
         "\x03\0\0\0"
         "abcd",
         SR_ERR_FORMAT, "trie of"},
        {10,
         "\x04\0\0\0"
         "abcdxy",
         SR_ERR_FORMAT, "not terminated"},
        {10,
         "\x04\0\0\0"
         "abcdx\0",
         SR_ERR_UNSUPPORTED, "normalisation"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        sr_tb_begin(&raw, 0, 4);
        sr_tb_kv_str(&raw, "tokenizer.ggml.model", "llama");
        put_tokens(4);
        sr_tb_kv_array(&raw, "tokenizer.ggml.scores", GGUF_F32, 4);
        sr_tb_zeros(&raw, 16);
        sr_tb_kv_array(&raw, "tokenizer.ggml.precompiled_charsmap", GGUF_U8, rows[i].n);
        sr_tb_put(&raw, rows[i].bytes, rows[i].n);
        raw_refused(rows[i].want, rows[i].needle);
    }
}

static void tk9_long_token(void **state)
{
    (void)state;
    begin_raw(1);
    sr_tb_kv_array(&raw, "tokenizer.ggml.tokens", GGUF_STRING, 2);
    sr_tb_text(&raw, "a");
    sr_tb_u64(&raw, 70000);
    sr_tb_zeros(&raw, 70000);
    raw_refused(SR_ERR_FORMAT, "tokenizer.ggml.tokens[1]: 70000 bytes, at most 65536");
    begin_raw(1);
    sr_tb_kv_array(&raw, "tokenizer.ggml.tokens", GGUF_STRING, 2);
    sr_tb_text(&raw, "a");
    sr_tb_u64(&raw, (uint64_t)1 << 31);
    raw_refused(SR_ERR_FORMAT, "offset"); /* the reader of the file stops it */
}

/* ---- TK10 ---- */

static double seconds_for(const struct tokenizer *t, const char *text, size_t bytes)
{
    struct token_list l = {0};
    double begin = now(), s;

    assert_int_equal(sr_tokenize(t, text, bytes, SPECIAL_PARSE, &l, NULL), SR_OK);
    s = now() - begin;
    assert_true(l.n > 0);
    sr_token_list_free(&l);
    return s;
}

/* The least of the runs at each size; one run will do, more follow only if the machine was noisy. */
static void expect_linear(const struct tokenizer *t, const char *unit)
{
    size_t half = 1 << 20, width = strlen(unit);
    char *text = malloc(2 * half);
    double one = 1e9, two = 1e9;

    assert_non_null(text);
    for (size_t i = 0; i < 2 * half; i++) text[i] = unit[i % width];
    for (int run = 0; run < 12; run++) {
        double a = seconds_for(t, text, half), b = seconds_for(t, text, 2 * half);
        if (a < one) one = a;
        if (b < two) two = b;
        if (one < 2 && two < 2.5 * one) break;
    }
    free(text);
    if (one >= 2 || two >= 2.5 * one)
        fail_msg("%s, repeated \"%s\": 1 MiB %.3f s, 2 MiB %.3f s", sr_tokenizer_model_name(t), unit, one,
                 two);
}

enum { N_UNITS = 10, N_BASIC = 5 };
static const char *const units[N_UNITS] = {"Z", " ",  "_", "\xE4\xB8\xAD", "\n",
                                           "7", " a", "'", "\xFF",         "\xE3\x80\x80"};

static void tk10_bpe(void **state)
{
    (void)state;
    static const char *const rules[] = {"gpt-2", "smollm", "llama-bpe"};
    for (size_t r = 0; r < 3; r++) {
        sr_tv_bpe(&v, rules[r]);
        v.bos = 0;
        sr_tv_add(&v, "ZZ", 0, 0);
        sr_tv_add(&v, "ZZZZ", 0, 0);
        sr_tv_add(&v, "__", 0, 0);
        sr_tv_add(&v, "\xC4\xA0\xC4\xA0", 0, 0);
        sr_tv_add(&v, "ZZZ!", TOKEN_USER, 0);
        sr_tv_merge(&v, "Z Z");
        sr_tv_merge(&v, "ZZ ZZ");
        sr_tv_merge(&v, "_ _");
        sr_tv_merge(&v, "\xC4\xA0 \xC4\xA0");
        struct tokenizer *t = sr_tv_open(&v);
        for (size_t i = 0; i < (r == 0 ? N_UNITS : N_BASIC); i++) expect_linear(t, units[i]);
        sr_tokenizer_close(t);
    }
}

static void tk10_spm(void **state)
{
    (void)state;
    sr_tv_spm(&v);
    sr_tv_add(&v, "\xE2\x96\x81\xE2\x96\x81", 0, -1);
    sr_tv_add(&v, "ZZ", 0, -2);
    sr_tv_add(&v, "ZZZZ", 0, -3);
    sr_tv_add(&v, "__", 0, -4);
    struct tokenizer *t = sr_tv_open(&v);
    for (size_t i = 0; i < N_UNITS; i++) expect_linear(t, units[i]);
    sr_tokenizer_close(t);
}

static int clean(void **state)
{
    (void)state;
    sr_tb_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tk1_tokens),
        cmocka_unit_test(tk1_model_and_rule),
        cmocka_unit_test(tk2_types_and_scores),
        cmocka_unit_test(tk4_ids_outside),
        cmocka_unit_test(tk5_byte_tokens),
        cmocka_unit_test(tk6_odd_tokens_are_defined),
        cmocka_unit_test(tk6_nul_in_a_token),
        cmocka_unit_test(tk6_no_way_to_write_a_byte),
        cmocka_unit_test(tk7_merges),
        cmocka_unit_test(tk7_many_merges),
        cmocka_unit_test(tk8_charsmap),
        cmocka_unit_test(tk9_long_token),
        cmocka_unit_test(tk10_bpe),
        cmocka_unit_test(tk10_spm),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("tokenizer_bad", tests, NULL, clean);
}
