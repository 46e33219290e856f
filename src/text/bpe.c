/* SPDX-License-Identifier: Apache-2.0
 *
 * Merges are looked up by the pair of token ids, so that merging touches no text. Of a pair that is listed
 * twice the first rank counts. A merge whose result is a control token is not entered: text must never turn
 * into one.
 */
#include "text/bpe.h"

#include <string.h>

#include "base/memory.h"
#include "text/utf8.h"

#define KEY_MERGES "tokenizer.ggml.merges"
#define KEY_PRE    "tokenizer.ggml.pre"
#define KEY_IGNORE "tokenizer.hf.ignore_merges"

/* ---- the byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 upwards ---- */

static int stands_for_itself(uint32_t c)
{
    return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
}

static uint32_t char_of_byte(uint32_t byte)
{
    uint32_t c = 0x100;

    if (stands_for_itself(byte)) return byte;
    for (uint32_t b = 0; b < byte; b++) c += !stands_for_itself(b);
    return c;
}

/* Byte that the character stands for, or -1. The inverse of char_of_byte: the 68 bytes are 00-20, 7F-A0 and
 * AD. */
static int byte_of_char(uint32_t c)
{
    if (stands_for_itself(c)) return (int)c;
    if (c >= 0x100 && c <= 0x120) return (int)(c - 0x100);
    if (c >= 0x121 && c <= 0x142) return (int)(c - 0x121 + 0x7F);
    return c == 0x143 ? 0xAD : -1;
}

size_t sr_bpe_decode(const char *text, size_t bytes, char *out, size_t cap)
{
    size_t full = 0;

    for (size_t at = 0; at < bytes;) {
        uint32_t cp;
        int valid, n = sr_utf8_decode((const uint8_t *)text + at, bytes - at, &cp, &valid);
        int byte = valid ? byte_of_char(cp) : -1;
        char one = (char)byte;
        const char *from = byte >= 0 ? &one : text + at;
        size_t width = byte >= 0 ? 1 : (size_t)n;
        for (size_t i = 0; i < width; i++, full++)
            if (full < cap) out[full] = from[i];
        at += (size_t)n;
    }
    return full;
}

/* ---- merges ---- */

static struct bpe_merge *slot_of(const struct bpe *b, uint64_t pair)
{
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    uint32_t i = (uint32_t)(h >> 32) & b->mask;

    while (b->merge[i].id >= 0 && b->merge[i].pair != pair) i = (i + 1) & b->mask;
    return &b->merge[i];
}

/* Ids of "A B" and of AB; AB is put together in `joined`, which has room for s.bytes. */
static int parse_merge(const struct vocab *v, struct gguf_str s, char *joined, int32_t *left, int32_t *right,
                       int32_t *id)
{
    const char *space = s.bytes > 1 ? memchr(s.data + 1, ' ', s.bytes - 1) : NULL;
    size_t l, r;

    if (!space) return 0;
    l = (size_t)(space - s.data);
    r = s.bytes - l - 1;
    memcpy(joined, s.data, l);
    memcpy(joined + l, space + 1, r);
    *left = sr_vocab_find(v, s.data, l);
    *right = sr_vocab_find(v, space + 1, r);
    *id = sr_vocab_find(v, joined, l + r);
    return r > 0 && *left >= 0 && *right >= 0 && *id >= 0;
}

static sr_status add_merges(struct bpe *b, const struct gguf *g, const struct gguf_value *a, char *joined,
                            sr_error *err)
{
    const uint8_t *at = NULL;
    uint64_t i = 0;
    struct gguf_str s;

    for (uint32_t rank = 0; sr_gguf_next_str(a, &at, &i, &s); rank++) {
        int32_t left, right, id;
        if (s.bytes > 2 * SR_VOCAB_MAX_TOKEN_BYTES + 1 ||
            !parse_merge(b->vocab, s, joined, &left, &right, &id)) {
            char text[64];
            sr_escape(text, sizeof text, s.data, s.bytes);
            return sr_gguf_reject(g, err, KEY_MERGES "[%u]: \"%s\" is not two tokens whose join is a token",
                                  rank, text);
        }
        if (b->vocab->kind[id] == TOKEN_CONTROL) continue;
        uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
        struct bpe_merge *m = slot_of(b, pair);
        if (m->id < 0) *m = (struct bpe_merge){pair, rank, id};
    }
    return SR_OK;
}

static sr_status load_merges(struct bpe *b, const struct gguf *g, sr_error *err)
{
    const struct gguf_value *a = sr_gguf_find(g, KEY_MERGES);
    uint32_t slots = 16;
    char *joined;
    sr_status st;

    if (!a) return sr_gguf_reject(g, err, KEY_MERGES ": missing");
    if (a->type != GGUF_ARRAY || a->elem_type != GGUF_STRING)
        return sr_gguf_reject(g, err, KEY_MERGES ": not an array of strings");
    if (a->count > SR_VOCAB_MAX_TOKENS)
        return sr_gguf_reject(g, err, KEY_MERGES ": %llu merges, at most %d", (unsigned long long)a->count,
                              SR_VOCAB_MAX_TOKENS);
    while (slots < a->count + a->count / 2) slots *= 2;
    b->mask = slots - 1;
    b->merge = sr_alloc(slots * sizeof *b->merge);
    joined = sr_alloc(2 * SR_VOCAB_MAX_TOKEN_BYTES + 1);
    if (b->merge) memset(b->merge, 0xFF, slots * sizeof *b->merge);
    st = b->merge && joined ? add_merges(b, g, a, joined, err)
                            : sr_fail_memory(err, slots * sizeof *b->merge, "merge table");
    sr_free(joined);
    return st;
}

/* ---- opening ---- */

static sr_status find_rule(struct bpe *b, const struct gguf *g, sr_error *err)
{
    struct gguf_str name = {NULL, 0};
    int found;
    char text[64];

    SR_TRY(sr_gguf_get_str(g, KEY_PRE, &name, &found, err));
    if (!found)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: " KEY_PRE ": missing, and no rule is guessed; known: %s",
                       sr_gguf_path(g), sr_pretokenizer_names());
    b->pre = sr_pretokenizer_find(name.data, name.bytes);
    if (b->pre) {
        b->whole_words = b->pre->whole_words;
        return sr_gguf_get_bool(g, KEY_IGNORE, &b->whole_words, &found, err);
    }
    sr_escape(text, sizeof text, name.data, name.bytes);
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: " KEY_PRE ": \"%s\" is not supported; known: %s",
                   sr_gguf_path(g), text, sr_pretokenizer_names());
}

static sr_status map_bytes(struct bpe *b, const struct gguf *g, int32_t unknown, sr_error *err)
{
    int n_known = 0;

    for (uint32_t byte = 0; byte < 256; byte++) {
        char text[4];
        int n = sr_utf8_encode(char_of_byte(byte), text);
        int32_t id = sr_vocab_find(b->vocab, text, (size_t)n);
        if (id >= 0 && b->vocab->kind[id] == TOKEN_CONTROL) id = -1;
        n_known += id >= 0;
        b->byte_id[byte] = id >= 0 ? id : unknown;
    }
    if (n_known == 0)
        return sr_gguf_reject(g, err, "tokenizer.ggml.tokens: no token stands for a single byte");
    return SR_OK;
}

sr_status sr_bpe_open(struct bpe *b, const struct vocab *v, const struct gguf *g, int32_t unknown,
                      sr_error *err)
{
    sr_status st;

    b->vocab = v;
    SR_TRY_GOTO(find_rule(b, g, err));
    SR_TRY_GOTO(map_bytes(b, g, unknown, err));
    SR_TRY_GOTO(load_merges(b, g, err));
    return SR_OK;
fail:
    sr_bpe_fini(b);
    return st;
}

sr_status sr_bpe_open_merges(struct bpe *b, const struct vocab *v, const struct gguf *g, sr_error *err)
{
    b->vocab = v;
    const sr_status st = load_merges(b, g, err);
    if (st != SR_OK) sr_bpe_fini(b);
    return st;
}

void sr_bpe_fini(struct bpe *b)
{
    sr_free(b->merge);
    *b = (struct bpe){0};
}

/* ---- encoding ---- */

int sr_bpe_rank_of_pair(const void *ctx, const struct symbol *l, const struct symbol *r, uint32_t *rank,
                        int32_t *id)
{
    const struct bpe_merge *m = slot_of(ctx, (uint64_t)(uint32_t)l->id << 32 | (uint32_t)r->id);

    *rank = m->rank;
    *id = m->id;
    return m->id >= 0;
}

/* The id of a whole word that may be taken without merging, or -1. Its text is the bytes mapped to
 * characters. */
static int32_t whole_word(const struct bpe *b, const uint8_t *word, size_t bytes)
{
    char mapped[512];
    size_t n = 0;
    int32_t id;

    if (bytes > sizeof mapped / 2) return -1;
    for (size_t i = 0; i < bytes; i++) n += (size_t)sr_utf8_encode(char_of_byte(word[i]), mapped + n);
    id = sr_vocab_find(b->vocab, mapped, n);
    return id >= 0 && b->vocab->kind[id] == TOKEN_NORMAL ? id : -1;
}

static sr_status encode_word(const struct bpe *b, const uint8_t *word, size_t bytes,
                             struct pair_merge *scratch, struct token_list *out, sr_error *err)
{
    int32_t n = 0;

    if (b->whole_words) {
        int32_t id = whole_word(b, word, bytes);
        if (id >= 0) return sr_token_list_push(out, id, err);
    }
    SR_TRY(sr_pair_merge_reserve(scratch, bytes, err));
    for (size_t i = 0; i < bytes; i++)
        if (b->byte_id[word[i]] >= 0)
            scratch->sym[n++] = (struct symbol){.id = b->byte_id[word[i]], .bytes = 1};
    if (n == 0) return SR_OK;
    sr_pair_merge_run(scratch, n, sr_bpe_rank_of_pair, b);
    for (int32_t i = 0; i >= 0; i = scratch->sym[i].next)
        SR_TRY(sr_token_list_push(out, scratch->sym[i].id, err));
    return SR_OK;
}

sr_status sr_bpe_encode(const struct bpe *b, const char *text, size_t bytes, struct pair_merge *scratch,
                        struct token_list *out, sr_error *err)
{
    const uint8_t *s = (const uint8_t *)text;

    for (size_t at = 0; at < bytes;) {
        size_t end = sr_pretokenizer_word(b->pre, s, bytes, at);
        SR_TRY(encode_word(b, s + at, end - at, scratch, out, err));
        at = end;
    }
    return SR_OK;
}
