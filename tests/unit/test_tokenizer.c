/* SPDX-License-Identifier: Apache-2.0
 *
 * Merging, special tokens, fallbacks and decoding on vocabularies small enough to follow by hand; refusals
 * are in test_tokenizer_bad.c, real vocabularies in test_tokenizer_vectors.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "vocab_build.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct sr_tv v;

static void expect(const struct tokenizer *t, const char *text, enum token_special mode, const char *want)
{
    const char *got = sr_tv_ids(t, text, strlen(text), mode);
    if (strcmp(got, want) != 0) fail_msg("\"%s\": ids %s, want %s", text, got, want);
}

/* ---- byte-level BPE ---- */

/* 256 "ab", 257 "bc", 258 "abc", 259 "aa", 260 "aaaa", 261 U+0120 "a" */
static void small_bpe(const char *pre)
{
    sr_tv_bpe(&v, pre);
    sr_tv_add(&v, "ab", 0, 0);
    sr_tv_add(&v, "bc", 0, 0);
    sr_tv_add(&v, "abc", 0, 0);
    sr_tv_add(&v, "aa", 0, 0);
    sr_tv_add(&v, "aaaa", 0, 0);
    sr_tv_add(&v,
              "\xC4\xA0"
              "a",
              0, 0);
    sr_tv_merge(&v, "b c");
    sr_tv_merge(&v, "a b");
    sr_tv_merge(&v, "a bc");
    sr_tv_merge(&v, "a a");
    sr_tv_merge(&v, "aa aa");
    sr_tv_merge(&v, "\xC4\xA0 a");
}

static void merges_by_rank_then_left(void **state)
{
    (void)state;
    small_bpe("gpt-2");
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "abc", SPECIAL_AS_TEXT, "258"); /* "b c" first although "a b" is further left */
    expect(t, "ab", SPECIAL_AS_TEXT, "256");
    expect(t, "aaa", SPECIAL_AS_TEXT, "259 97"); /* leftmost of two equal pairs */
    expect(t, "aaaaa", SPECIAL_AS_TEXT, "260 97");
    expect(t, "aaaaaaaaa", SPECIAL_AS_TEXT, "260 260 97");
    expect(t, " aa", SPECIAL_AS_TEXT, "32 259"); /* "a a" outranks the space's merge */
    expect(t, "", SPECIAL_AS_TEXT, "");
    assert_string_equal(sr_tokenizer_model_name(t), "bpe/gpt-2");
    assert_int_equal(sr_tokenizer_vocab_size(t), 262);
    sr_tokenizer_close(t);
}

static void first_of_two_equal_merges_counts(void **state)
{
    (void)state;
    small_bpe("gpt-2");
    sr_tv_merge(&v, "b c"); /* last rank: must not replace the first */
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "abc", SPECIAL_AS_TEXT, "258");
    sr_tokenizer_close(t);
}

static void whole_words_only_for_llama3(void **state)
{
    (void)state;
    for (int llama = 0; llama < 2; llama++) {
        sr_tv_bpe(&v, llama ? "llama-bpe" : "qwen2");
        int32_t word = sr_tv_add(&v, "hello", 0, 0);
        v.bos = sr_tv_add(&v, "world", TOKEN_CONTROL, 0);
        struct tokenizer *t = sr_tv_open(&v);
        char id[16];
        snprintf(id, sizeof id, "%d", word);
        expect(t, "hello", SPECIAL_AS_TEXT, llama ? id : "104 101 108 108 111");
        expect(t, "world", SPECIAL_AS_TEXT, "119 111 114 108 100"); /* never a control token */
        assert_int_equal(sr_tokenizer_adds_bos(t), llama);
        sr_tokenizer_close(t);
    }
}

static void text_never_merges_into_control(void **state)
{
    (void)state;
    sr_tv_bpe(&v, "gpt-2");
    sr_tv_add(&v, "ab", TOKEN_CONTROL, 0);
    sr_tv_merge(&v, "a b");
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "ab", SPECIAL_AS_TEXT, "97 98");
    expect(t, "ab", SPECIAL_PARSE, "256");
    sr_tokenizer_close(t);
}

static void bytes_without_a_token(void **state)
{
    (void)state;
    for (int unknown = 0; unknown < 3; unknown++) {
        sr_tv_bpe(&v, "gpt-2");
        v.tokens['q'] = "not-q";
        int32_t id = sr_tv_add(&v, "<unk>", unknown == 1 ? TOKEN_UNKNOWN : TOKEN_CONTROL, 0);
        if (unknown) v.unknown = id;
        struct tokenizer *t = sr_tv_open(&v);
        /* left out, or the unknown token, but never a control token */
        expect(t, "aqb", SPECIAL_AS_TEXT, unknown == 1 ? "97 256 98" : "97 98");
        expect(t, "q", SPECIAL_AS_TEXT, unknown == 1 ? "256" : "");
        sr_tokenizer_close(t);
    }
}

static void any_bytes_round_trip(void **state)
{
    (void)state;
    static const char *const rules[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    uint32_t x = 7;
    for (size_t r = 0; r < 4; r++) {
        small_bpe(rules[r]);
        v.bos = 0;
        struct tokenizer *t = sr_tv_open(&v);
        for (int round = 0; round < 400; round++) {
            char text[64];
            size_t n = (x >> 8) % sizeof text, bytes;
            for (size_t i = 0; i < n; i++) {
                x = x * 1664525u + 1013904223u;
                text[i] = round % 2 ? (char)(x >> 24) : "abc 1\n'\xC3\xA9\xE2\x80\xA8"[(x >> 24) % 12];
            }
            x = x * 1664525u + 1013904223u;
            struct token_list l = {0};
            assert_int_equal(sr_tokenize(t, text, n, SPECIAL_PARSE, &l, NULL), SR_OK);
            char *back = sr_tv_text(t, &l, &bytes);
            assert_int_equal(bytes, n);
            assert_memory_equal(back, text, n);
            free(back);
            sr_token_list_free(&l);
        }
        sr_tokenizer_close(t);
    }
}

/* ---- special tokens ---- */

static void special_tokens_match_by_kind(void **state)
{
    (void)state;
    sr_tv_bpe(&v, "gpt-2");
    sr_tv_add(&v, "<|end|>", TOKEN_CONTROL, 0);  /* 256 */
    sr_tv_add(&v, "<think>", TOKEN_USER, 0);     /* 257 */
    sr_tv_add(&v, "  ", TOKEN_USER, 0);          /* 258 */
    sr_tv_add(&v, "    ", TOKEN_USER, 0);        /* 259 */
    sr_tv_add(&v, "<|end|>x", TOKEN_CONTROL, 0); /* 260 */
    sr_tv_add(&v, "", TOKEN_CONTROL, 0);         /* 261: matches nothing */
    sr_tv_add(&v, "<think>", TOKEN_CONTROL, 0);  /* 262: the same text again */
    sr_tv_add(&v, "<pad>", TOKEN_UNUSED, 0);     /* 263 */
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "a<|end|>b", SPECIAL_PARSE, "97 256 98");
    expect(t, "<|end|>", SPECIAL_AS_TEXT, "60 124 101 110 100 124 62");
    expect(t, "<think><think>", SPECIAL_AS_TEXT, "257 257");
    expect(t, "<think>", SPECIAL_PARSE, "257");
    expect(t, "<|end|>x<|end|>y", SPECIAL_PARSE, "260 256 121"); /* the longest wins */
    expect(t, "       a", SPECIAL_AS_TEXT, "259 258 32 97");
    expect(t, "<|end|", SPECIAL_PARSE, "60 124 101 110 100 124");
    expect(t, "<pad>", SPECIAL_PARSE, "60 112 97 100 62");
    assert_int_equal(sr_tokenizer_find(t, "<think>", 7), 257);
    assert_int_equal(sr_tokenizer_find(t, "<thin", 5), -1);
    assert_int_equal(sr_tokenizer_kind(t, 258), TOKEN_USER);
    sr_tokenizer_close(t);
}

static void end_tokens(void **state)
{
    (void)state;
    sr_tv_bpe(&v, "gpt-2");
    v.eos = 'e';
    int32_t im = sr_tv_add(&v, "<|im_end|>", TOKEN_CONTROL, 0);
    int32_t word = sr_tv_add(&v, "<|eot_id|>", TOKEN_NORMAL, 0);
    int32_t start = sr_tv_add(&v, "<|im_start|>", TOKEN_CONTROL, 0);
    struct tokenizer *t = sr_tv_open(&v);
    assert_true(sr_tokenizer_is_end(t, 'e'));
    assert_true(sr_tokenizer_is_end(t, im));
    assert_false(sr_tokenizer_is_end(t, word));
    assert_false(sr_tokenizer_is_end(t, start));
    assert_false(sr_tokenizer_is_end(t, -1));
    assert_false(sr_tokenizer_is_end(t, 1 << 30));
    assert_int_equal(sr_tokenizer_eos(t), 'e');
    assert_int_equal(sr_tokenizer_bos(t), -1);
    assert_false(sr_tokenizer_adds_bos(t) || sr_tokenizer_adds_eos(t));
    sr_tokenizer_close(t);
}

static void shows_control_only_when_asked(void **state)
{
    (void)state;
    sr_tv_bpe(&v, "gpt-2");
    int32_t c = sr_tv_add(&v, "<|end|>", TOKEN_CONTROL, 0), u = sr_tv_add(&v, "<think>", TOKEN_USER, 0);
    int32_t p = sr_tv_add(&v, "[PAD]", TOKEN_UNUSED, 0), w = sr_tv_add(&v, "\xC4\xA0hi", 0, 0);
    struct tokenizer *t = sr_tv_open(&v);
    char out[16] = "................";
    assert_int_equal(sr_token_bytes(t, c, 0, out, sizeof out), 0);
    assert_int_equal(sr_token_bytes(t, p, 0, out, sizeof out), 0);
    assert_int_equal(sr_token_bytes(t, c, 1, out, sizeof out), 7);
    assert_memory_equal(out, "<|end|>", 7);
    assert_int_equal(sr_token_bytes(t, u, 0, out, sizeof out), 7);
    assert_int_equal(sr_token_bytes(t, w, 0, out, 2), 3); /* the full length, two bytes written */
    assert_memory_equal(out, " hhink>", 7);
    assert_int_equal(sr_token_bytes(t, w, 0, NULL, 0), 3);
    sr_tokenizer_close(t);
}

/* ---- SentencePiece ---- */

#define MARK "\xE2\x96\x81"

/* 259 MARK, 260 a, 261 b, 262 ab, 263 MARK a, 264 MARK ab, 265 MARK MARK, 266 é */
static void small_spm(void)
{
    sr_tv_spm(&v);
    sr_tv_add(&v, MARK, 0, -1);
    sr_tv_add(&v, "a", 0, -2);
    sr_tv_add(&v, "b", 0, -3);
    sr_tv_add(&v, "ab", 0, -10);
    sr_tv_add(&v, MARK "a", 0, -5);
    sr_tv_add(&v, MARK "ab", 0, -20);
    sr_tv_add(&v, MARK MARK, 0, -5);
    sr_tv_add(&v, "\xC3\xA9", 0, -4);
}

static void spm_merges_by_score(void **state)
{
    (void)state;
    small_spm();
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "ab", SPECIAL_AS_TEXT, "264"); /* prefix and a (-5), then b */
    expect(t, "a ab", SPECIAL_AS_TEXT, "263 264");
    expect(t, "  a", SPECIAL_AS_TEXT,
           "265 263"); /* three marks and an a; of equal scores the leftmost pair first */
    expect(t, "abab", SPECIAL_AS_TEXT, "264 262");
    expect(t,
           "\xC3\xA9"
           "c",
           SPECIAL_AS_TEXT, "259 266 102"); /* c is byte 0x63 = 3 + 99 */
    expect(t, "\n", SPECIAL_AS_TEXT, "259 13");
    expect(t, "\xE4\xBD\xA0", SPECIAL_AS_TEXT, "259 231 192 163");
    expect(t, "", SPECIAL_AS_TEXT, "");
    expect(t, "a</s>ab", SPECIAL_PARSE, "263 2 264"); /* text after a special token gets the prefix again */
    assert_true(sr_tokenizer_adds_bos(t));
    assert_true(sr_tokenizer_strips_first_space(t));
    assert_string_equal(sr_tokenizer_model_name(t), "spm");
    sr_tokenizer_close(t);
}

static void spm_text_never_becomes_reserved(void **state)
{
    (void)state;
    small_spm();
    sr_tv_add(&v, "<", 0, -9); /* with these, merging by text alone would build both */
    sr_tv_add(&v, "/s>", 0, -9);
    sr_tv_add(&v, "</s", 0, -9);
    sr_tv_add(&v, "/", 0, -9);
    sr_tv_add(&v, "s", 0, -9);
    sr_tv_add(&v, ">", 0, -9);
    sr_tv_add(&v, "/s", 0, -8);
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "</s>", SPECIAL_AS_TEXT, "259 269 272"); /* "</s" and ">", not token 2 */
    expect(t, "</s>", SPECIAL_PARSE, "2");
    sr_tokenizer_close(t);
}

static void spm_flags(void **state)
{
    (void)state;
    small_spm();
    v.add_space_prefix = 0;
    v.add_bos = 0;
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "ab", SPECIAL_AS_TEXT, "262");
    expect(t, " ab", SPECIAL_AS_TEXT, "264");
    assert_false(sr_tokenizer_adds_bos(t));
    assert_false(sr_tokenizer_strips_first_space(t));
    sr_tokenizer_close(t);
}

static void spm_without_byte_tokens(void **state)
{
    (void)state;
    sr_tv_spm(&v);
    v.n = 3; /* <unk> <s> </s> */
    sr_tv_add(&v, "a", 0, -1);
    struct tokenizer *t = sr_tv_open(&v);
    expect(t, "a\n", SPECIAL_AS_TEXT, "0 0 0 3 0"); /* each byte of the mark, a, newline */
    sr_tokenizer_close(t);
}

static void spm_round_trip(void **state)
{
    (void)state;
    static const char *const texts[] = {"ab a  b\n\tc", " lead", "\xFF\xC3(",
                                        "na\xC3\xAFve \xE4\xBD\xA0\xF0\x9F\x98\x80", MARK "x"};
    small_spm();
    struct tokenizer *t = sr_tv_open(&v);
    for (size_t i = 0; i < 5; i++) {
        struct token_list l = {0};
        size_t bytes;
        assert_int_equal(sr_tokenize(t, texts[i], strlen(texts[i]), SPECIAL_AS_TEXT, &l, NULL), SR_OK);
        char *back = sr_tv_text(t, &l, &bytes);
        /* a literal U+2581 comes back as a space: the scheme cannot tell them apart */
        const char *want = i == 4 ? " x" : texts[i];
        assert_int_equal(back[0], ' ');
        assert_string_equal(back + 1, want);
        free(back);
        sr_token_list_free(&l);
    }
    sr_tokenizer_close(t);
}

/* ---- memory ---- */

static void list_is_untouched_by_failure(void **state)
{
    (void)state;
    small_bpe("gpt-2");
    struct tokenizer *t = sr_tv_open(&v);
    int n_failures = 0;
    for (uint64_t n = 1; n < 50; n++) {
        struct token_list l = {0};
        sr_error err = {0};
        assert_int_equal(sr_token_list_push(&l, 7, NULL), SR_OK);
        sr_alloc_fail_at(n);
        sr_status st = sr_tokenize(t, "abc abc abc<think>", 18, SPECIAL_PARSE, &l, &err);
        sr_alloc_fail_at(0);
        if (st != SR_OK) {
            n_failures++;
            assert_int_equal(st, SR_ERR_RESOURCE);
            assert_int_equal(l.n, 1);
            assert_int_equal(l.ids[0], 7);
        }
        sr_token_list_free(&l);
    }
    assert_true(n_failures >= 2);
    sr_tokenizer_close(t);
}

static void open_survives_every_allocation_failure(void **state)
{
    (void)state;
    for (int spm = 0; spm < 2; spm++) {
        struct gguf *g = NULL;
        int n_failures = 0;
        if (spm)
            small_spm();
        else
            small_bpe("smollm");
        assert_int_equal(sr_gguf_open(&g, sr_tv_save(&v, "alloc.gguf"), NULL), SR_OK);
        for (uint64_t n = 1; n < 100; n++) {
            struct tokenizer *t = NULL;
            sr_error err = {0};
            sr_alloc_fail_at(n);
            sr_status st = sr_tokenizer_open(&t, g, &err);
            sr_alloc_fail_at(0);
            assert_true(st == SR_OK || st == SR_ERR_RESOURCE);
            if (st == SR_OK)
                sr_tokenizer_close(t);
            else
                assert_null(t);
            n_failures += st != SR_OK;
        }
        assert_true(n_failures >= 6);
        sr_gguf_close(g);
    }
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
        cmocka_unit_test(merges_by_rank_then_left),
        cmocka_unit_test(first_of_two_equal_merges_counts),
        cmocka_unit_test(whole_words_only_for_llama3),
        cmocka_unit_test(text_never_merges_into_control),
        cmocka_unit_test(bytes_without_a_token),
        cmocka_unit_test(any_bytes_round_trip),
        cmocka_unit_test(special_tokens_match_by_kind),
        cmocka_unit_test(end_tokens),
        cmocka_unit_test(shows_control_only_when_asked),
        cmocka_unit_test(spm_merges_by_score),
        cmocka_unit_test(spm_text_never_becomes_reserved),
        cmocka_unit_test(spm_flags),
        cmocka_unit_test(spm_without_byte_tokens),
        cmocka_unit_test(spm_round_trip),
        cmocka_unit_test(list_is_untouched_by_failure),
        cmocka_unit_test(open_survives_every_allocation_failure),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, clean);
}
