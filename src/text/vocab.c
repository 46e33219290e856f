/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading a vocabulary. A file's arrays are believed only after their types and counts agree; every refusal
 * names the file, the key and the element.
 */
#include "text/vocab.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "base/memory.h"

#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_TYPES  "tokenizer.ggml.token_type"
#define KEY_SCORES "tokenizer.ggml.scores"

static sr_status tokens_array(const struct gguf *g, const struct gguf_value **out, sr_error *err)
{
    const struct gguf_value *a = sr_gguf_find(g, KEY_TOKENS);

    if (!a) return sr_gguf_reject(g, err, KEY_TOKENS ": missing");
    if (a->type != GGUF_ARRAY || a->elem_type != GGUF_STRING)
        return sr_gguf_reject(g, err, KEY_TOKENS ": not an array of strings");
    if (a->count == 0) return sr_gguf_reject(g, err, KEY_TOKENS ": empty");
    if (a->count > SR_VOCAB_MAX_TOKENS)
        return sr_gguf_reject(g, err, KEY_TOKENS ": %llu tokens, at most %d", (unsigned long long)a->count,
                              SR_VOCAB_MAX_TOKENS);
    *out = a;
    return SR_OK;
}

/* Total size of all texts, with each one checked against the limit. */
static sr_status measure(struct vocab *v, const struct gguf *g, const struct gguf_value *a, size_t *total,
                         sr_error *err)
{
    const uint8_t *at = NULL;
    uint64_t i = 0;
    struct gguf_str s;
    int32_t id = 0;

    *total = 0;
    for (; sr_gguf_next_str(a, &at, &i, &s); id++) {
        if (s.bytes > SR_VOCAB_MAX_TOKEN_BYTES)
            return sr_gguf_reject(g, err, KEY_TOKENS "[%d]: %zu bytes, at most %d", id, s.bytes,
                                  SR_VOCAB_MAX_TOKEN_BYTES);
        if (s.bytes > v->max_bytes) v->max_bytes = s.bytes;
        *total += s.bytes;
        if (*total > INT32_MAX) return sr_gguf_reject(g, err, KEY_TOKENS ": more than 2 GiB of text");
    }
    return SR_OK;
}

static sr_status copy_texts(struct vocab *v, const struct gguf *g, const struct gguf_value *a, sr_error *err)
{
    const uint8_t *at = NULL;
    uint64_t i = 0;
    struct gguf_str s;
    size_t total, used = 0;
    int32_t id = 0;

    SR_TRY(measure(v, g, a, &total, err));
    v->n = (int32_t)a->count;
    v->pool = sr_alloc(total + 1);
    v->start = sr_alloc(((size_t)v->n + 1) * sizeof *v->start);
    if (!v->pool || !v->start) return sr_fail_memory(err, total, "token texts");
    for (; sr_gguf_next_str(a, &at, &i, &s); id++) {
        v->start[id] = (uint32_t)used;
        memcpy(v->pool + used, s.data, s.bytes);
        used += s.bytes;
    }
    v->start[v->n] = (uint32_t)used;
    return SR_OK;
}

/* The array `key` must have one element per token. */
static sr_status check_count(const struct vocab *v, const struct gguf *g, const struct gguf_value *a,
                             const char *key, sr_error *err)
{
    if (a->count == (uint64_t)v->n) return SR_OK;
    return sr_gguf_reject(g, err, "%s: %llu elements for %d tokens", key, (unsigned long long)a->count, v->n);
}

static sr_status load_kinds(struct vocab *v, const struct gguf *g, sr_error *err)
{
    const struct gguf_value *a = sr_gguf_find(g, KEY_TYPES);

    v->kind = sr_alloc((size_t)v->n);
    if (!v->kind) return sr_fail_memory(err, (size_t)v->n, "token types");
    memset(v->kind, TOKEN_NORMAL, (size_t)v->n);
    if (!a) return SR_OK;
    if (a->type != GGUF_ARRAY || (a->elem_type != GGUF_I32 && a->elem_type != GGUF_U32))
        return sr_gguf_reject(g, err, KEY_TYPES ": not an array of 32-bit integers");
    SR_TRY(check_count(v, g, a, KEY_TYPES, err));
    for (int32_t id = 0; id < v->n; id++) {
        int64_t k = sr_gguf_integer(a, (uint64_t)id);
        if (k < TOKEN_NORMAL || k > TOKEN_BYTE)
            return sr_gguf_reject(g, err, KEY_TYPES "[%d]: %lld, want 1 to 6", id, (long long)k);
        if (k == TOKEN_BYTE && sr_vocab_byte_value(sr_vocab_text(v, id), sr_vocab_bytes(v, id)) < 0) {
            char text[40];
            sr_escape(text, sizeof text, sr_vocab_text(v, id), sr_vocab_bytes(v, id));
            return sr_gguf_reject(g, err, KEY_TOKENS "[%d]: byte token \"%s\", want <0xHH>", id, text);
        }
        v->kind[id] = (uint8_t)k;
    }
    return SR_OK;
}

static sr_status load_scores(struct vocab *v, const struct gguf *g, sr_error *err)
{
    const struct gguf_value *a = sr_gguf_find(g, KEY_SCORES);

    if (!a) return sr_gguf_reject(g, err, KEY_SCORES ": missing");
    if (a->type != GGUF_ARRAY || a->elem_type != GGUF_F32)
        return sr_gguf_reject(g, err, KEY_SCORES ": not an array of f32");
    SR_TRY(check_count(v, g, a, KEY_SCORES, err));
    v->score = sr_alloc((size_t)v->n * sizeof *v->score);
    if (!v->score) return sr_fail_memory(err, (size_t)v->n * sizeof *v->score, "token scores");
    for (int32_t id = 0; id < v->n; id++) {
        float s = (float)sr_gguf_number(a, (uint64_t)id);
        if (!isfinite(s)) return sr_gguf_reject(g, err, KEY_SCORES "[%d]: not a finite number", id);
        v->score[id] = s;
    }
    return SR_OK;
}

/* ---- text to id ---- */

/* Slot that holds this text, or the free one where it belongs. */
static uint32_t slot_of(const struct vocab *v, const char *text, size_t bytes)
{
    uint32_t i = (uint32_t)XXH3_64bits(text, bytes) & v->mask;

    for (;; i = (i + 1) & v->mask) {
        int32_t id = v->slot[i];
        if (id < 0) return i;
        if (sr_vocab_bytes(v, id) == bytes && memcmp(sr_vocab_text(v, id), text, bytes) == 0) return i;
    }
}

static sr_status build_hash(struct vocab *v, sr_error *err)
{
    uint32_t slots = 16;

    while (slots < (uint32_t)v->n * 2) slots *= 2;
    v->mask = slots - 1;
    v->slot = sr_alloc(slots * sizeof *v->slot);
    if (!v->slot) return sr_fail_memory(err, slots * sizeof *v->slot, "token table");
    memset(v->slot, 0xFF, slots * sizeof *v->slot);
    for (int32_t id = 0; id < v->n; id++) {
        uint32_t i = slot_of(v, sr_vocab_text(v, id), sr_vocab_bytes(v, id));
        if (v->slot[i] < 0) v->slot[i] = id;
    }
    return SR_OK;
}

int32_t sr_vocab_find(const struct vocab *v, const char *text, size_t bytes)
{
    return bytes > v->max_bytes ? -1 : v->slot[slot_of(v, text, bytes)];
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int sr_vocab_byte_value(const char *text, size_t bytes)
{
    int high, low;

    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    high = hex_digit(text[3]);
    low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

sr_status sr_vocab_load(struct vocab *v, const struct gguf *g, int with_scores, sr_error *err)
{
    const struct gguf_value *a = NULL;
    sr_status st;

    SR_TRY(tokens_array(g, &a, err));
    SR_TRY_GOTO(copy_texts(v, g, a, err));
    SR_TRY_GOTO(load_kinds(v, g, err));
    if (with_scores) SR_TRY_GOTO(load_scores(v, g, err));
    SR_TRY_GOTO(build_hash(v, err));
    return SR_OK;
fail:
    sr_vocab_fini(v);
    return st;
}

void sr_vocab_fini(struct vocab *v)
{
    sr_free(v->pool);
    sr_free(v->start);
    sr_free(v->kind);
    sr_free(v->score);
    sr_free(v->slot);
    *v = (struct vocab){0};
}
