/* SPDX-License-Identifier: Apache-2.0
 *
 * Real vocabularies against ids from other implementations: 46 texts for each of nine vocabularies, sixty
 * more texts, the refusal of what is not supported, and whole books there and back. The data lies outside of
 * the tree; without it every test here is skipped. Vocabularies that come as tokenizer.json are made into
 * GGUF files first.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "vocab_build.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEPARATOR "\n__ggml_vocab_test__\n"

/* ---- vocabularies ---- */

static const char *shared_or_skip(const char *name)
{
    const char *path = sr_tb_shared(name);
    if (!path) skip();
    return path;
}

/* The GGUF file of a tokenizer.json, made once a run. */
static const char *made_vocab(const char *json, const char *pre)
{
    static char path[512];
    char command[2048], name[64];
    const char *source = shared_or_skip(json);

    snprintf(name, sizeof name, "made-%s.gguf", pre);
    snprintf(path, sizeof path, "%s", sr_tb_path(name));
    if (access(path, R_OK) == 0) return path;
    if (system("python3 -c 'import lzma' 2>/dev/null") != 0) skip();
    snprintf(command, sizeof command, "python3 tools/make-vocab-gguf.py --pre %s '%s' '%s'", pre, source,
             path);
    assert_int_equal(system(command), 0);
    return path;
}

#define LLAMA3_JSON "data/tokenizers/llama3_1.tokenizer.json.xz"
#define QWEN3_JSON  "data/tokenizers/qwen3.tokenizer.json.xz"

static struct tokenizer *open_named(const char *name)
{
    char path[128];

    if (strcmp(name, "llama-bpe") == 0) return sr_tv_open_file(made_vocab(LLAMA3_JSON, name));
    if (strcmp(name, "qwen2") == 0 || strcmp(name, "deepseek-r1-qwen") == 0)
        return sr_tv_open_file(made_vocab(QWEN3_JSON, name));
    snprintf(path, sizeof path, "data/tokenizer-vectors/ggml-vocab-%s.gguf", name);
    return sr_tv_open_file(shared_or_skip(path));
}

static char *read_vectors(const char *name, const char *suffix)
{
    char path[128];
    size_t bytes;

    snprintf(path, sizeof path, "data/tokenizer-vectors/ggml-vocab-%s.gguf.%s", name, suffix);
    return sr_tv_read(shared_or_skip(path), &bytes);
}

/* ---- the 46 texts ---- */

static void trim_spaces(char *s)
{
    size_t n = strlen(s);

    while (n > 0 && s[n - 1] == ' ') s[--n] = 0;
    memmove(s, s + strspn(s, " "), strlen(s + strspn(s, " ")) + 1);
}

static void vectors(void **state)
{
    const char *name = *state;
    struct tokenizer *t = open_named(name);
    char *texts = read_vectors(name, "inp"), *wanted = read_vectors(name, "out"), *text = texts,
         *line = wanted;
    int n = 0;

    for (char *end; (end = strstr(text, SEPARATOR)) != NULL; text = end + strlen(SEPARATOR), n++) {
        char *newline = strchr(line, '\n');
        assert_non_null(newline);
        *newline = 0;
        trim_spaces(line);
        const char *got = sr_tv_ids(t, text, (size_t)(end - text), SPECIAL_AS_TEXT);
        if (strcmp(got, line) != 0) fail_msg("%s, text %d: ids %s, want %s", name, n, got, line);
        line = newline + 1;
    }
    assert_int_equal(n, 46);
    free(texts);
    free(wanted);
    sr_tokenizer_close(t);
}

static void refused(void **state)
{
    char path[128];
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    sr_error err = {0};

    snprintf(path, sizeof path, "data/tokenizer-vectors/ggml-vocab-%s.gguf", (const char *)*state);
    assert_int_equal(sr_gguf_open(&g, shared_or_skip(path), &err), SR_OK);
    assert_int_equal(sr_tokenizer_open(&t, g, &err), SR_ERR_UNSUPPORTED);
    assert_null(t);
    /* by its own name: the pre-tokenizer's, or the kind of model ("bert") */
    snprintf(path, sizeof path, "\"%s\" is not supported",
             strcmp(*state, "bert-bge") == 0 ? "bert" : (const char *)*state);
    if (!strstr(err.text, path)) fail_msg("\"%s\" does not say %s", err.text, path);
    sr_gguf_close(g);
}

/* ---- sixty more ---- */

static const char *ids_of(const json_t *array)
{
    static char out[8192];
    size_t n = 0;

    out[0] = 0;
    for (size_t i = 0; i < json_array_size(array); i++)
        n += (size_t)snprintf(out + n, sizeof out - n, i ? " %lld" : "%lld",
                              (long long)json_integer_value(json_array_get(array, i)));
    return out;
}

/* The text that ends Qwen3's thinking early, as its documentation lists the tokens (src/engine/budget.c). */
static void early_end_of_thinking(void **state)
{
    static const char text[] = "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
                               "</think>\n\n";
    (void)state;
    struct tokenizer *t = open_named("qwen2");
    assert_string_equal(sr_tv_ids(t, text, sizeof text - 1, SPECIAL_PARSE),
                        "271 82796 279 7199 882 553 279 1196 11 358 614 311 2968 279 6291 3118 389 279 7274 5961 1431 624 151668 271");
    sr_tokenizer_close(t);
}

static void extra_vectors(void **state)
{
    static const struct {
        const char *theirs, *ours;
    } vocab[] = {{"llama3", "llama-bpe"}, {"qwen3", "qwen2"}, {"llama2-spm", "llama-spm"}};
    struct tokenizer *t[3];
    int n = 0;
    size_t bytes;

    (void)state;
    char *lines = sr_tv_read(shared_or_skip("data/tokenizer-vectors/extra-vectors.jsonl"), &bytes),
         *save = NULL;
    for (int i = 0; i < 3; i++) t[i] = open_named(vocab[i].ours);
    for (char *line = strtok_r(lines, "\n", &save); line; line = strtok_r(NULL, "\n", &save), n++) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL), *text = json_object_get(row, "text");
        const char *name = json_string_value(json_object_get(row, "tokenizer"));
        int which = 0;
        while (strcmp(vocab[which].theirs, name) != 0) assert_true(++which < 3);
        /* add_space_prefix false means a text within a text: then it follows another part */
        json_t *prefix = json_object_get(row, "add_space_prefix");
        assert_true(!prefix || json_is_true(prefix));
        const char *want = ids_of(json_object_get(row, "ids"));
        const char *got =
            sr_tv_ids(t[which], json_string_value(text), json_string_length(text),
                      json_is_true(json_object_get(row, "parse_special")) ? SPECIAL_PARSE : SPECIAL_AS_TEXT);
        if (strcmp(got, want) != 0) fail_msg("line %d (%s): ids %s, want %s", n + 1, name, got, want);
        json_decref(row);
    }
    assert_int_equal(n, 60);
    for (int i = 0; i < 3; i++) sr_tokenizer_close(t[i]);
    free(lines);
}

/* ---- books there and back ---- */

static const char *const books[] = {
    "data/text/en/moby_dick.txt",          "data/text/en/origin_of_species.txt",
    "data/text/en/tale_of_two_cities.txt", "data/text/fr/madame_bovary.txt",
    "data/text/de/der_stechlin.txt",       "data/text/zh/sanguo_yanyi.txt",
    "data/code/HumanEval_first100.jsonl",
};

static void round_trip(const struct tokenizer *t, const char *name, const char *path)
{
    struct token_list l = {0};
    size_t bytes, n;
    char *text = sr_tv_read(path, &n);

    assert_non_null(text);
    assert_int_equal(sr_tokenize(t, text, n, SPECIAL_AS_TEXT, &l, NULL), SR_OK);
    assert_true((size_t)l.n < n); /* some merging took place */
    char *back = sr_tv_text(t, &l, &bytes);
    size_t skipped = (size_t)sr_tokenizer_strips_first_space(t);
    if (bytes != n + skipped || memcmp(back + skipped, text, n) != 0)
        fail_msg("%s: %s comes back changed", name, path);
    free(back);
    free(text);
    sr_token_list_free(&l);
}

static void books_round_trip(void **state)
{
    struct tokenizer *t = open_named(*state);
    for (size_t i = 0; i < sizeof books / sizeof books[0]; i++)
        round_trip(t, *state, shared_or_skip(books[i]));
    sr_tokenizer_close(t);
}

/* ---- the default model ---- */

#define MODEL "models/SmolLM2-135M-Instruct.Q4_1.gguf"

static void default_model(void **state)
{
    (void)state;
    if (access(MODEL, R_OK) != 0) skip();
    struct tokenizer *t = sr_tv_open_file(MODEL);
    static const struct {
        const char *text, *ids;
    } rows[] = {
        {"Hello, we can use", "19556 28 392 416 722"},
        {"The capital of France is", "504 3575 282 4649 314"},
        {"Hello world! 123", "19556 905 17 216 33 34 35"},
    };
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(sr_tv_ids(t, rows[i].text, strlen(rows[i].text), SPECIAL_AS_TEXT), rows[i].ids);
    assert_string_equal(sr_tv_ids(t, "<|im_start|>", 12, SPECIAL_PARSE), "1");
    assert_true(sr_tokenizer_is_end(t, 2) && sr_tokenizer_is_end(t, 0) && !sr_tokenizer_is_end(t, 1));
    assert_false(sr_tokenizer_adds_bos(t));
    for (size_t i = 0; i < sizeof books / sizeof books[0]; i++)
        if (sr_tb_shared(books[i])) round_trip(t, "smollm", sr_tb_shared(books[i]));
    sr_tokenizer_close(t);
}

static int clean(void **state)
{
    (void)state;
    sr_tb_clean();
    return 0;
}

#define VECTORS(n) cmocka_unit_test_prestate(vectors, n)
#define REFUSED(n) cmocka_unit_test_prestate(refused, n)
#define BOOKS(n)   cmocka_unit_test_prestate(books_round_trip, n)

int main(void)
{
    const struct CMUnitTest tests[] = {
        VECTORS("gpt-2"),
        VECTORS("starcoder"),
        VECTORS("refact"),
        VECTORS("mpt"),
        VECTORS("llama-spm"),
        VECTORS("phi-3"),
        VECTORS("llama-bpe"),
        VECTORS("qwen2"),
        VECTORS("deepseek-r1-qwen"),
        REFUSED("falcon"),
        REFUSED("deepseek-coder"),
        REFUSED("deepseek-llm"),
        REFUSED("bert-bge"),
        cmocka_unit_test(extra_vectors),
        cmocka_unit_test(early_end_of_thinking),
        BOOKS("gpt-2"),
        BOOKS("starcoder"),
        BOOKS("refact"),
        BOOKS("mpt"),
        BOOKS("llama-bpe"),
        BOOKS("qwen2"),
        BOOKS("llama-spm"),
        cmocka_unit_test(default_model),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("tokenizer_vectors", tests, NULL, clean);
}
