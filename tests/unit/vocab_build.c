/* SPDX-License-Identifier: Apache-2.0 */
#include "vocab_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

/* The byte alphabet, spelled out a second time: bytes that have no printable Latin-1 character count up from
 * 256. */
static const char *byte_character(int byte)
{
    static char text[256][5];
    static int made;
    uint32_t next = 256;

    for (uint32_t b = 0; b < 256 && !made; b++) {
        int printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        text[b][sr_utf8_encode(printable ? b : next++, text[b])] = 0;
    }
    made = 1;
    return text[byte];
}

void sr_tv_bpe(struct sr_tv *v, const char *pre)
{
    *v = (struct sr_tv){.model = "gpt2",
                        .pre = pre,
                        .bos = -1,
                        .eos = -1,
                        .unknown = -1,
                        .add_bos = -1,
                        .add_space_prefix = -1};
    for (int b = 0; b < 256; b++) sr_tv_add(v, byte_character(b), TOKEN_NORMAL, 0);
}

void sr_tv_spm(struct sr_tv *v)
{
    static char text[256][8];

    *v = (struct sr_tv){
        .model = "llama", .bos = 1, .eos = 2, .unknown = 0, .add_bos = -1, .add_space_prefix = -1};
    sr_tv_add(v, "<unk>", TOKEN_UNKNOWN, 0);
    sr_tv_add(v, "<s>", TOKEN_CONTROL, 0);
    sr_tv_add(v, "</s>", TOKEN_CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(text[b], sizeof text[b], "<0x%02X>", (unsigned)b);
        sr_tv_add(v, text[b], TOKEN_BYTE, 0);
    }
}

int32_t sr_tv_add(struct sr_tv *v, const char *text, int32_t type, float score)
{
    assert_true(v->n < 700);
    v->tokens[v->n] = text;
    v->types[v->n] = type;
    v->scores[v->n] = score;
    return (int32_t)v->n++;
}

void sr_tv_merge(struct sr_tv *v, const char *merge)
{
    assert_true(v->n_merges < 64);
    v->merges[v->n_merges++] = merge;
}

const char *sr_tv_save(const struct sr_tv *v, const char *name)
{
    struct sr_tb b = {0};
    int spm = v->model && strcmp(v->model, "llama") == 0;
    uint64_t n_values = 3 + (v->model != NULL) + (v->pre != NULL) + (v->bos >= 0) + (v->eos >= 0) +
                        (v->unknown >= 0) + (v->add_bos >= 0) + (v->add_space_prefix >= 0);
    const char *path;

    n_values += (v->architecture != NULL) + (v->chat_template != NULL) + (v->temperature > 0);
    sr_tb_begin(&b, 0, n_values);
    if (v->model) sr_tb_kv_str(&b, "tokenizer.ggml.model", v->model);
    if (v->pre) sr_tb_kv_str(&b, "tokenizer.ggml.pre", v->pre);
    sr_tb_kv_array(&b, "tokenizer.ggml.tokens", 8, v->n);
    for (uint64_t i = 0; i < v->n; i++) sr_tb_text(&b, v->tokens[i]);
    sr_tb_kv_array(&b, "tokenizer.ggml.token_type", 5, v->n);
    for (uint64_t i = 0; i < v->n; i++) sr_tb_u32(&b, v->types[i] ? (uint32_t)v->types[i] : TOKEN_NORMAL);
    if (spm) {
        sr_tb_kv_array(&b, "tokenizer.ggml.scores", 6, v->n);
        sr_tb_put(&b, v->scores, v->n * sizeof(float));
    } else {
        sr_tb_kv_array(&b, "tokenizer.ggml.merges", 8, v->n_merges);
        for (uint64_t i = 0; i < v->n_merges; i++) sr_tb_text(&b, v->merges[i]);
    }
    if (v->bos >= 0) sr_tb_kv_u32(&b, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    if (v->eos >= 0) sr_tb_kv_u32(&b, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos);
    if (v->unknown >= 0) sr_tb_kv_u32(&b, "tokenizer.ggml.unknown_token_id", (uint32_t)v->unknown);
    if (v->add_bos >= 0) {
        sr_tb_key(&b, "tokenizer.ggml.add_bos_token", 7);
        sr_tb_u8(&b, (uint8_t)v->add_bos);
    }
    if (v->add_space_prefix >= 0) {
        sr_tb_key(&b, "tokenizer.ggml.add_space_prefix", 7);
        sr_tb_u8(&b, (uint8_t)v->add_space_prefix);
    }
    if (v->architecture) sr_tb_kv_str(&b, "general.architecture", v->architecture);
    if (v->chat_template) sr_tb_kv_str(&b, "tokenizer.chat_template", v->chat_template);
    if (v->temperature > 0) {
        sr_tb_key(&b, "general.sampling.temp", 6);
        sr_tb_put(&b, &v->temperature, sizeof(float));
    }
    path = sr_tb_save(&b, name);
    sr_tb_free(&b);
    return path;
}

struct tokenizer *sr_tv_open_file(const char *path)
{
    struct tokenizer *t = NULL;
    struct gguf *g = NULL;
    sr_error err = {0};

    if (sr_gguf_open(&g, path, &err) != SR_OK) fail_msg("%s", err.text);
    if (sr_tokenizer_open(&t, g, &err) != SR_OK) fail_msg("%s", err.text);
    sr_gguf_close(g); /* nothing may be borrowed from it */
    return t;
}

struct tokenizer *sr_tv_open(const struct sr_tv *v)
{
    return sr_tv_open_file(sr_tv_save(v, "vocab.gguf"));
}

const char *sr_tv_ids(const struct tokenizer *t, const char *text, size_t bytes, enum token_special mode)
{
    static char out[8192];
    struct token_list l = {0};
    sr_error err = {0};
    size_t n = 0;

    if (sr_tokenize(t, text, bytes, mode, &l, &err) != SR_OK) fail_msg("%s", err.text);
    out[0] = 0;
    for (int64_t i = 0; i < l.n; i++) {
        n += (size_t)snprintf(out + n, sizeof out - n, i ? " %d" : "%d", l.ids[i]);
        assert_true(n < sizeof out);
    }
    sr_token_list_free(&l);
    return out;
}

char *sr_tv_text(const struct tokenizer *t, const struct token_list *l, size_t *bytes)
{
    size_t n = 0, at = 0;
    char *out;

    for (int64_t i = 0; i < l->n; i++) n += sr_token_bytes(t, l->ids[i], 0, NULL, 0);
    out = malloc(n + 1);
    assert_non_null(out);
    for (int64_t i = 0; i < l->n; i++) at += sr_token_bytes(t, l->ids[i], 0, out + at, n - at);
    assert_int_equal(at, n);
    out[n] = 0;
    *bytes = n;
    return out;
}

char *sr_tv_read(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *data;
    long n;

    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    n = ftell(f);
    rewind(f);
    data = malloc((size_t)n + 1);
    assert_non_null(data);
    *bytes = fread(data, 1, (size_t)n, f);
    data[*bytes] = 0;
    fclose(f);
    return data;
}
