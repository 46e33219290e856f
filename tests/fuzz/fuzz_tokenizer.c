/* SPDX-License-Identifier: Apache-2.0
 *
 * A vocabulary from bytes and a text from bytes. The input describes tokens, kinds, merges and ids; a file is
 * made of them in memory, opened, and if it is accepted the text is tokenized: ids must be in range and,
 * where every byte has a token, the text must come back. Layout: flags, rule, counts, then pieces of one
 * length byte each.
 */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "text/tokenizer.h"
#include "text/utf8.h"

static void require(int holds)
{
    if (!holds) abort();
}

struct input {
    const uint8_t *p;
    size_t n;
};

static uint8_t take(struct input *in)
{
    if (in->n == 0) return 0;
    in->n--;
    return *in->p++;
}

static struct input take_piece(struct input *in)
{
    size_t n = take(in);
    struct input piece = {in->p, n < in->n ? n : in->n};

    in->p += piece.n;
    in->n -= piece.n;
    return piece;
}

/* ---- a file in memory ---- */

struct bytes {
    uint8_t data[1 << 16];
    size_t n;
};

static void put(struct bytes *b, const void *data, size_t n)
{
    if (n > sizeof b->data - b->n) n = sizeof b->data - b->n; /* a cut file is a good input too */
    if (n) memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void put_u32(struct bytes *b, uint32_t v)
{
    put(b, &v, 4);
}
static void put_u64(struct bytes *b, uint64_t v)
{
    put(b, &v, 8);
}

static void put_text(struct bytes *b, const void *s, size_t n)
{
    put_u64(b, n);
    put(b, s, n);
}

static void put_key(struct bytes *b, const char *key, uint32_t type)
{
    put_text(b, key, strlen(key));
    put_u32(b, type);
}

static void put_array(struct bytes *b, const char *key, uint32_t type, uint64_t n)
{
    put_key(b, key, GGUF_ARRAY);
    put_u32(b, type);
    put_u64(b, n);
}

enum {
    FLAG_SPM = 1,
    FLAG_ALPHABET = 2,
    FLAG_SCORES_MISSING = 4,
    FLAG_TYPES_MISSING = 8,
    FLAG_IDS = 16,
    FLAG_PARSE = 32
};

static void put_alphabet(struct bytes *b, int spm)
{
    uint32_t next = 256;

    for (uint32_t c = 0; c < 256; c++) {
        char text[8];
        int printable = (c > 0x20 && c < 0x7F) || (c > 0xA0 && c != 0xAD);
        if (spm)
            put_text(b, text, (size_t)snprintf(text, sizeof text, "<0x%02X>", c));
        else
            put_text(b, text, (size_t)sr_utf8_encode(printable ? c : next++, text));
    }
}

static void make_file(struct bytes *b, struct input *in, uint8_t flags)
{
    static const char *const rules[] = {"gpt-2", "smollm", "llama-bpe", "qwen2", "mpt", "nonesuch"};
    int spm = flags & FLAG_SPM, alphabet = flags & FLAG_ALPHABET;
    const char *rule = rules[take(in) % 6];
    uint32_t n = take(in), n_merges = take(in), n_base = alphabet ? 256 : 0;
    uint64_t n_values = 4 + !(flags & FLAG_TYPES_MISSING) + (flags & FLAG_IDS ? 3 : 0);

    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, 0);
    put_u64(b, n_values);
    put_key(b, "tokenizer.ggml.model", GGUF_STRING);
    put_text(b, spm ? "llama" : "gpt2", spm ? 5 : 4);
    put_key(b, "tokenizer.ggml.pre", GGUF_STRING);
    put_text(b, rule, strlen(rule));
    put_array(b, "tokenizer.ggml.tokens", GGUF_STRING, n_base + n);
    if (alphabet) put_alphabet(b, spm);
    struct input tokens = *in;
    for (uint32_t i = 0; i < n; i++) {
        struct input t = take_piece(in);
        put_text(b, t.p, t.n);
    }
    if (!(flags & FLAG_TYPES_MISSING)) {
        put_array(b, "tokenizer.ggml.token_type", GGUF_I32, n_base + n);
        for (uint32_t i = 0; i < n_base; i++) put_u32(b, spm ? TOKEN_BYTE : TOKEN_NORMAL);
        for (uint32_t i = 0; i < n; i++) put_u32(b, 1 + take(in) % 6);
    }
    if (spm) {
        put_array(b, "tokenizer.ggml.scores", GGUF_F32, flags & FLAG_SCORES_MISSING ? n : n_base + n);
        for (uint32_t i = 0; i < n_base + n; i++)
            put_u32(b, i < n_base ? 0 : (uint32_t)take(in) << 24 | take(in));
    } else {
        put_array(b, "tokenizer.ggml.merges", GGUF_STRING, n_merges);
        for (uint32_t i = 0; i < n_merges; i++) { /* two tokens where the input gives none better */
            struct input t = i % 2 ? take_piece(in) : take_piece(&tokens);
            put_text(b, t.p, t.n);
        }
    }
    if (!(flags & FLAG_IDS)) return;
    static const char *const ids[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                                      "tokenizer.ggml.unknown_token_id"};
    for (int i = 0; i < 3; i++) {
        put_key(b, ids[i], GGUF_U32);
        put_u32(b, n_base + take(in));
    }
}

static struct tokenizer *open_bytes(const struct bytes *b)
{
    struct tokenizer *t = NULL;
    struct gguf *g = NULL;
    sr_error err;
    char path[32];
    int fd = memfd_create("vocab", 0);

    require(fd >= 0 && write(fd, b->data, b->n) == (ssize_t)b->n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (sr_gguf_open(&g, path, &err) == SR_OK && sr_tokenizer_open(&t, g, &err) != SR_OK)
        require(t == NULL && err.text[0]);
    sr_gguf_close(g);
    close(fd);
    return t;
}

/* With the whole alphabet nothing is lost: the kinds of token that print nothing cannot come from text. */
static void require_round_trip(const struct tokenizer *t, const struct token_list *l, const uint8_t *text,
                               size_t n)
{
    size_t at = 0;
    char out[256];

    for (int64_t i = 0; i < l->n; i++) {
        size_t k = sr_token_bytes(t, l->ids[i], 1, out, sizeof out);
        require(k <= 255 && k <= n - at && memcmp(out, text + at, k) == 0);
        at += k;
    }
    require(at == n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bytes b;
    struct input in = {data, size};
    uint8_t flags = take(&in);
    struct token_list l = {0};
    struct tokenizer *t;

    b.n = 0;
    make_file(&b, &in, flags);
    t = open_bytes(&b);
    if (!t) return 0;
    require(sr_tokenize(t, (const char *)in.p, in.n, flags & FLAG_PARSE ? SPECIAL_PARSE : SPECIAL_AS_TEXT, &l,
                        NULL) == SR_OK);
    for (int64_t i = 0; i < l.n; i++) {
        char out[8];
        require(l.ids[i] >= 0 && l.ids[i] < sr_tokenizer_vocab_size(t));
        sr_token_bytes(t, l.ids[i], 0, out, sizeof out);
        sr_tokenizer_is_end(t, l.ids[i]);
        if (!(flags & FLAG_PARSE)) require(sr_tokenizer_kind(t, l.ids[i]) != TOKEN_CONTROL);
    }
    if ((flags & FLAG_ALPHABET) && !(flags & FLAG_SPM)) require_round_trip(t, &l, in.p, in.n);
    sr_token_list_free(&l);
    sr_tokenizer_close(t);
    return 0;
}
