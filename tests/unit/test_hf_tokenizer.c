/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokenizers of model folders: tokenizer.json of Llama 3 and Qwen 3 and tokenizer.model and tokenizer.json of a small
 * SentencePiece vocabulary, and for comparison the GGUF of Llama 2's, over whole books in four languages and code, against numbers and hashes of the ids that
 * PyPI's tokenizers and sentencepiece give (tools/make-tokenizer-hashes.py). The published vocabularies and the books
 * lie outside of the tree; without them those tests are skipped.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "vocab_build.h"

#include "formats/hf_folder.h"
#include "text/nfc.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GOLDEN "tests/golden/"

static sr_error err;

/* ---- folders ---- */

static void put_file(const char *folder, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

/* A fresh folder with the output of `command` as file `name`. */
static const char *folder_of(const char *name, const char *command, const char *source)
{
    static char path[256];
    static int n;
    char line[1024], sub[32];
    snprintf(sub, sizeof sub, "hf-%d", n++);
    snprintf(path, sizeof path, "%s", sr_tb_path(sub));
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(line, sizeof line, "%s '%s' > '%s/%s'", command, source, path, name);
    assert_int_equal(system(line), 0);
    return path;
}

static struct tokenizer *open_folder(const char *path)
{
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    if (sr_hf_open(&g, path, HF_TOKENIZER, &err) != SR_OK) fail_msg("%s", err.text);
    if (sr_tokenizer_open(&t, g, &err) != SR_OK) fail_msg("%s", err.text);
    sr_gguf_close(g);
    return t;
}

static const char *shared_or_skip(const char *name)
{
    const char *path = sr_tb_shared(name);
    if (!path) skip();
    return path;
}

static struct tokenizer *open_published(const char *name)
{
    char file[128];
    snprintf(file, sizeof file, "data/tokenizers/%s.tokenizer.json.xz", name);
    const char *source = shared_or_skip(file);
    if (system("xz --version >/dev/null 2>&1") != 0) skip();
    return open_folder(folder_of("tokenizer.json", "xz -dc", source));
}

static struct tokenizer *open_named(const char *name)
{
    char path[128];
    if (strcmp(name, "llama-spm") == 0) return sr_tv_open_file(shared_or_skip("data/tokenizer-vectors/ggml-vocab-llama-spm.gguf"));
    if (strncmp(name, "spm", 3) != 0) return open_published(name);
    snprintf(path, sizeof path, GOLDEN "%s", name);
    return open_folder(folder_of(strstr(name, ".model") ? "tokenizer.model" : "tokenizer.json", "cat", path));
}

/* ---- books ---- */

static uint64_t hash_of(const struct token_list *l)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < l->n; i++)
        for (int k = 0; k < 4; k++) h = (h ^ ((uint32_t)l->ids[i] >> 8 * k & 255)) * 0x100000001b3u;
    return h;
}

static void check_book(const struct tokenizer *t, const char *name, const char *file, long long n, unsigned long long hash)
{
    struct token_list l = {0};
    char path[160];
    size_t bytes;
    snprintf(path, sizeof path, "data/%s", file);
    char *text = sr_tv_read(shared_or_skip(path), &bytes);
    assert_int_equal(sr_tokenizer_encode(t, text, bytes, SPECIAL_AS_TEXT, &l, &err), SR_OK);
    if (l.n != n || hash_of(&l) != hash)
        fail_msg("%s of %s: %lld ids, hash %016llx; want %lld, %016llx", file, name, (long long)l.n, (unsigned long long)hash_of(&l), n, hash);
    sr_token_list_free(&l);
    free(text);
}

static void books(void **state)
{
    const char *name = *state;
    char line[256], which[64], file[128];
    long long n;
    unsigned long long hash;
    int seen = 0;
    shared_or_skip("data/text/en/moby_dick.txt");
    struct tokenizer *t = open_named(name);
    FILE *f = fopen(GOLDEN "tokenizer_hashes.txt", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        assert_int_equal(sscanf(line, "%63s %127s %lld %llx", which, file, &n, &hash), 4);
        if (strcmp(which, name) != 0) continue;
        check_book(t, name, file, n, hash);
        seen++;
    }
    fclose(f);
    assert_int_equal(seen, 7);
    sr_tokenizer_close(t);
}

/* ---- the 46 texts, through the folder ---- */

#define SEPARATOR "\n__ggml_vocab_test__\n"

static void vectors(void **state)
{
    const char *const *names = *state; /* of the folder, of the vectors */
    char path[128];
    size_t bytes;
    int n = 0;
    struct tokenizer *t = open_named(names[0]);
    snprintf(path, sizeof path, "data/tokenizer-vectors/ggml-vocab-%s.gguf.inp", names[1]);
    char *texts = sr_tv_read(shared_or_skip(path), &bytes), *text = texts;
    snprintf(path, sizeof path, "data/tokenizer-vectors/ggml-vocab-%s.gguf.out", names[1]);
    char *wanted = sr_tv_read(shared_or_skip(path), &bytes), *line = wanted;
    for (char *end; (end = strstr(text, SEPARATOR)) != NULL; text = end + strlen(SEPARATOR), n++) {
        char *newline = strchr(line, '\n');
        assert_non_null(newline);
        *newline = 0;
        while (*line == ' ') line++;
        for (char *last = newline; last > line && last[-1] == ' ';) *--last = 0;
        const char *got = sr_tv_ids(t, text, (size_t)(end - text), SPECIAL_AS_TEXT);
        if (strcmp(got, line) != 0) fail_msg("%s, text %d: ids %s, want %s", names[1], n, got, line);
        line = newline + 1;
    }
    assert_int_equal(n, 46);
    free(texts);
    free(wanted);
    sr_tokenizer_close(t);
}

/* ---- NFC ---- */

static void nfc_of(const char *in, size_t in_bytes, const char *want, size_t want_bytes)
{
    char *out;
    size_t bytes;
    assert_int_equal(sr_nfc(in, in_bytes, &out, &bytes, &err), SR_OK);
    assert_int_equal(bytes, want_bytes);
    assert_memory_equal(out ? out : in, want, want_bytes);
    sr_free(out);
}

#define NFC(in, want) nfc_of(in, sizeof(in) - 1, want, sizeof(want) - 1)

static void normal_forms(void **state)
{
    (void)state;
    NFC("plain", "plain");
    NFC("", "");
    NFC("e\xCC\x81", "\xC3\xA9");                                  /* e, acute */
    NFC("xe\xCC\x81y\xFF", "x\xC3\xA9y\xFF");                      /* an invalid byte stays */
    NFC("\xFF\xCC\x81", "\xFF\xCC\x81");                           /* and nothing joins it */
    NFC("a\xCC\xA3\xCC\x82", "\xE1\xBA\xAD");                      /* below, then above */
    NFC("a\xCC\x82\xCC\xA3", "\xE1\xBA\xAD");                      /* the other way round */
    NFC("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81");    /* Hangul */
    NFC("\xE2\x84\xAB", "\xC3\x85");                               /* the sign for Angstrom */
    NFC("\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC");                /* excluded from composition */
    NFC("\xE4\xBD\xA0\xE5\xA5\xBD", "\xE4\xBD\xA0\xE5\xA5\xBD");
}

/* 200,000 marks whose classes alternate: quadratic ordering would take minutes. */
static void many_marks(void **state)
{
    enum { N = 100000 };
    char *text = malloc(4 * N + 1), *out;
    size_t bytes;
    (void)state;
    text[0] = 'a';
    for (int i = 0; i < N; i++) memcpy(text + 1 + 4 * i, "\xCC\x8D\xCC\xA4", 4); /* U+030D of 230, U+0324 of 220 */
    assert_int_equal(sr_nfc(text, 4 * N + 1, &out, &bytes, &err), SR_OK);
    assert_int_equal(bytes, 4 * N + 1);
    assert_memory_equal(out + 1, "\xCC\xA4\xCC\xA4", 4); /* the lower class first */
    assert_memory_equal(out + bytes - 4, "\xCC\x8D\xCC\x8D", 4);
    sr_free(out);
    free(text);
}

/* ---- what a tokenizer.json says ---- */

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define MODEL(more) "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"abb\":3}," more "\"merges\":[\"a b\",[\"ab\",\"b\"]]}"
#define ADDED "\"added_tokens\":[{\"id\":4,\"content\":\"<|x|>\",\"special\":false},{\"id\":5,\"content\":\"<u>\",\"special\":false}," \
              "{\"id\":7,\"content\":\"<s>\",\"special\":true}],"

static struct gguf *open_text(const char *json, const char *config)
{
    struct gguf *g = NULL;
    const char *folder = folder_of("tokenizer.json", "cat", "/dev/null");
    put_file(folder, "tokenizer.json", json);
    if (config) put_file(folder, "tokenizer_config.json", config);
    return sr_hf_open(&g, folder, HF_TOKENIZER, &err) == SR_OK ? g : NULL;
}

static void refused(sr_status status, const char *says, const char *json)
{
    if (open_text(json, NULL)) fail_msg("taken, should say %s: %s", says, json);
    if (err.status != status || !strstr(err.text, says)) fail_msg("%d \"%s\", want %d \"%s\"", (int)err.status, err.text, (int)status, says);
}

static void both_forms_of_merges(void **state)
{
    struct tokenizer *t = NULL;
    (void)state;
    struct gguf *g = open_text("{" ADDED "\"pre_tokenizer\":" BYTE_LEVEL "," MODEL("") "}",
                               "{\"add_bos_token\":true,\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"<|x|>\",\"model_max_length\":1000000000000000019884624838656}");
    if (!g) fail_msg("%s", err.text);
    assert_int_equal(sr_tokenizer_open(&t, g, &err), SR_OK);
    assert_string_equal(sr_tv_ids(t, "abb<u><|x|>", 11, SPECIAL_AS_TEXT), "3 5"); /* no tokens for < | x > */
    assert_string_equal(sr_tv_ids(t, "abb<u><|x|>", 11, SPECIAL_PARSE), "3 5 4");
    assert_int_equal(sr_tokenizer_vocab_size(t), 8);
    assert_int_equal(sr_tokenizer_kind(t, 6), TOKEN_UNUSED);
    assert_int_equal(sr_tokenizer_bos(t), 7);
    assert_true(sr_tokenizer_adds_bos(t));
    assert_int_equal(sr_tokenizer_eos(t), 4);
    sr_tokenizer_close(t);
    sr_gguf_close(g);
}

static void refused_parts(void **state)
{
    (void)state;
    refused(SR_ERR_UNSUPPORTED, "\"Whitespace\" is not supported", "{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," MODEL("") "}");
    refused(SR_ERR_UNSUPPORTED, "is not one of those known",
            "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s+\"},\"behavior\":"
            "\"Isolated\",\"invert\":false}," BYTE_LEVEL "]}," MODEL("") "}");
    refused(SR_ERR_UNSUPPORTED, "\"Lowercase\" is not supported",
            "{\"normalizer\":{\"type\":\"Lowercase\"},\"pre_tokenizer\":" BYTE_LEVEL "," MODEL("") "}");
    refused(SR_ERR_UNSUPPORTED, "add_prefix_space", "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"}," MODEL("") "}");
    refused(SR_ERR_UNSUPPORTED, "\"Unigram\" is not supported", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}");
    refused(SR_ERR_UNSUPPORTED, "dropout", "{\"pre_tokenizer\":" BYTE_LEVEL "," MODEL("\"dropout\":0.1,") "}");
    refused(SR_ERR_UNSUPPORTED, "byte_fallback", "{" MODEL("") "}");
    refused(SR_ERR_UNSUPPORTED, "lstrip",
            "{\"added_tokens\":[{\"id\":9,\"content\":\"x\",\"lstrip\":true}],\"pre_tokenizer\":" BYTE_LEVEL "," MODEL("") "}");
}

static void refused_content(void **state)
{
    (void)state;
    refused(SR_ERR_FORMAT, "not a JSON object", "[]");
    refused(SR_ERR_FORMAT, "line 1", "{\"model\":");
    refused(SR_ERR_FORMAT, "$.model: missing", "{}");
    refused(SR_ERR_FORMAT, "duplicate", "{\"model\":{},\"model\":{}}");
    refused(SR_ERR_FORMAT, "$.model.vocab: missing", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"merges\":[]}}");
    refused(SR_ERR_FORMAT, "empty", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{},\"merges\":[]}}");
    refused(SR_ERR_FORMAT, "an array, want an object", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":[],\"merges\":[]}}");
    refused(SR_ERR_FORMAT, "its id is no integer", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}");
    refused(SR_ERR_FORMAT, "its id is no integer", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":4294967295},\"merges\":[]}}");
    refused(SR_ERR_FORMAT, "id 0 is given twice", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}");
    refused(SR_ERR_FORMAT, "merge 0 is not two texts", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}");
    refused(SR_ERR_FORMAT, "holds a space", "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a \",\"b\"]]}}");
    refused(SR_ERR_FORMAT, "another token", "{\"added_tokens\":[{\"id\":0,\"content\":\"x\"}],\"pre_tokenizer\":" BYTE_LEVEL "," MODEL("") "}");
}

/* 100,000 brackets end at the parser's limit of depth. */
static void deep(void **state)
{
    enum { N = 100000 };
    char *json = malloc(N + 1);
    (void)state;
    memcpy(json, "{\"a\":", 5);
    memset(json + 5, '[', N - 5);
    json[N] = 0;
    refused(SR_ERR_FORMAT, "depth", json);
    free(json);
}

static void no_files(void **state)
{
    struct gguf *g = NULL;
    (void)state;
    assert_int_equal(sr_hf_open(&g, folder_of("x", "cat", "/dev/null"), HF_TOKENIZER, &err), SR_ERR_IO);
    assert_non_null(strstr(err.text, "neither tokenizer.json nor tokenizer.model"));
}

/* ---- tokenizer.model ---- */

static void model_refused(sr_status status, const char *says, const void *data, size_t bytes)
{
    struct gguf *g = NULL;
    char path[512];
    const char *folder = folder_of("tokenizer.model", "cat", "/dev/null");
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    FILE *f = fopen(path, "wb");
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
    assert_int_equal(sr_hf_open(&g, folder, HF_TOKENIZER, &err), status);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say %s", err.text, says);
}

#define MODEL_REFUSED(status, says, bytes) model_refused(status, says, bytes, sizeof(bytes) - 1)

static void refused_models(void **state)
{
    (void)state;
    MODEL_REFUSED(SR_ERR_FORMAT, "ends within a number", "\x0A");
    MODEL_REFUSED(SR_ERR_FORMAT, "of 127 bytes, 0 left", "\x0A\x7F");
    MODEL_REFUSED(SR_ERR_FORMAT, "more than 10 bytes", "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF");
    MODEL_REFUSED(SR_ERR_FORMAT, "wire type 3", "\x0B\x01");
    MODEL_REFUSED(SR_ERR_FORMAT, "wire type 0, must be 2", "\x08\x01");
    MODEL_REFUSED(SR_ERR_FORMAT, "field number 0", "\x02\x01");
    MODEL_REFUSED(SR_ERR_FORMAT, "piece of type 9", "\x0A\x02\x18\x09");
    MODEL_REFUSED(SR_ERR_FORMAT, "not a finite number", "\x0A\x05\x15\x00\x00\xC0\x7F");
    MODEL_REFUSED(SR_ERR_UNSUPPORTED, "unigram", "\x0A\x03\x0A\x01\x61");
    MODEL_REFUSED(SR_ERR_UNSUPPORTED, "normalisation by a table", "\x12\x02\x18\x02\x1A\x05\x12\x01\x00\x20\x00");
    MODEL_REFUSED(SR_ERR_UNSUPPORTED, "remove_extra_whitespaces", "\x12\x02\x18\x02");
    MODEL_REFUSED(SR_ERR_UNSUPPORTED, "byte_fallback", "\x12\x02\x18\x02\x1A\x02\x20\x00");
}

static void kinds_of_model(void **state)
{
    (void)state;
    struct tokenizer *t = open_named("spm_small.model");
    assert_int_equal(sr_tokenizer_vocab_size(t), 3000);
    assert_int_equal(sr_tokenizer_kind(t, 0), TOKEN_UNKNOWN);
    assert_int_equal(sr_tokenizer_kind(t, sr_tokenizer_find(t, "<|im_end|>", 10)), TOKEN_CONTROL);
    assert_int_equal(sr_tokenizer_kind(t, sr_tokenizer_find(t, "<fim>", 5)), TOKEN_USER);
    assert_int_equal(sr_tokenizer_kind(t, sr_tokenizer_find(t, "<0x41>", 6)), TOKEN_BYTE);
    assert_int_equal(sr_tokenizer_bos(t), 1);
    assert_int_equal(sr_tokenizer_eos(t), 2);
    assert_true(sr_tokenizer_adds_bos(t));
    sr_tokenizer_close(t);
}

static int clean(void **state)
{
    (void)state;
    sr_tb_clean();
    return 0;
}

#define BOOKS(n)      {"books of " n, books, NULL, NULL, (void *)(uintptr_t)n}
#define VECTORS(f, v) {"vectors of " v, vectors, NULL, NULL, (void *)(uintptr_t)(const char *const[]){f, v}}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOOKS("llama3_1"), BOOKS("qwen3"), BOOKS("llama-spm"), BOOKS("spm_small.model"), BOOKS("spm_small.json"), BOOKS("spm_prefix.json"),
        VECTORS("llama3_1", "llama-bpe"), VECTORS("qwen3", "qwen2"), VECTORS("qwen3", "deepseek-r1-qwen"),
        cmocka_unit_test(normal_forms), cmocka_unit_test(many_marks), cmocka_unit_test(both_forms_of_merges),
        cmocka_unit_test(refused_parts), cmocka_unit_test(refused_content), cmocka_unit_test(deep), cmocka_unit_test(no_files),
        cmocka_unit_test(refused_models), cmocka_unit_test(kinds_of_model),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("hf_tokenizer", tests, NULL, clean);
}
