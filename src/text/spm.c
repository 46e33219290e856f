/* SPDX-License-Identifier: Apache-2.0
 *
 * The merge loop wants small ranks first and SentencePiece wants high scores first, so a rank is the score's
 * bits mapped to an unsigned integer that falls as the score rises.
 */
#include "text/spm.h"

#include <string.h>

#include "base/half.h"
#include "base/memory.h"
#include "text/utf8.h"

#define MARK       "\xE2\x96\x81" /* U+2581 */
#define MARK_BYTES 3

#define KEY_CHARSMAP "tokenizer.ggml.precompiled_charsmap"

/* A normalisation table is not applied by this kind of tokenizer: a well-formed one is refused as unsupported
 * (ids would silently differ), a broken one as broken. Layout: u32 size of a trie in bytes, trie,
 * zero-terminated texts. */
static sr_status check_charsmap(const struct gguf *g, sr_error *err)
{
    const struct gguf_value *a = sr_gguf_find(g, KEY_CHARSMAP);
    uint32_t trie;

    if (!a) return SR_OK;
    if (a->type != GGUF_ARRAY || (a->elem_type != GGUF_I8 && a->elem_type != GGUF_U8))
        return sr_gguf_reject(g, err, KEY_CHARSMAP ": not an array of bytes");
    if (a->count == 0) return SR_OK;
    if (a->count < 4) return sr_gguf_reject(g, err, KEY_CHARSMAP ": %d bytes, at least 4", (int)a->count);
    memcpy(&trie, a->data, 4);
    if (trie % 4 != 0 || trie > a->count - 4)
        return sr_gguf_reject(g, err, KEY_CHARSMAP ": trie of %u bytes in %llu", trie,
                              (unsigned long long)a->count);
    if (trie + 4 < a->count && a->data[a->count - 1] != 0)
        return sr_gguf_reject(g, err, KEY_CHARSMAP ": last replacement text is not terminated");
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: " KEY_CHARSMAP ": normalisation by a table is not supported",
                   sr_gguf_path(g));
}

static sr_status map_bytes(struct spm *s, const struct gguf *g, int32_t unknown, sr_error *err)
{
    const struct vocab *v = s->vocab;

    memset(s->byte_id, 0xFF, sizeof s->byte_id);
    for (int32_t id = v->n - 1; id >= 0; id--) /* downwards: of two for one byte the first stays */
        if (v->kind[id] == TOKEN_BYTE)
            s->byte_id[sr_vocab_byte_value(sr_vocab_text(v, id), sr_vocab_bytes(v, id))] = id;
    for (int b = 0; b < 256; b++) {
        if (s->byte_id[b] < 0) s->byte_id[b] = unknown;
        if (s->byte_id[b] < 0)
            return sr_gguf_reject(g, err,
                                  "tokenizer.ggml.tokens: no byte token <0x%02X> and no unknown token", b);
    }
    return SR_OK;
}

sr_status sr_spm_open(struct spm *s, const struct vocab *v, const struct gguf *g, int32_t unknown,
                      sr_error *err)
{
    struct gguf_str scheme = {NULL, 0};

    s->vocab = v;
    s->space_prefix = 1;
    SR_TRY(check_charsmap(g, err));
    SR_TRY(sr_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &s->space_prefix, &(int){0}, err));
    SR_TRY(sr_gguf_get_str(g, "tokenizer.hf.metaspace", &scheme, &s->metaspace, err));
    s->first_only = s->metaspace && scheme.bytes == 5 && memcmp(scheme.data, "first", 5) == 0;
    return map_bytes(s, g, unknown, err);
}

/* ---- encoding ---- */

struct spm_text {
    const struct vocab *vocab;
    const char *text; /* with U+2581 for spaces */
};

static int32_t find_mergeable(const struct vocab *v, const char *text, size_t bytes)
{
    int32_t id = sr_vocab_find(v, text, bytes);

    if (id < 0) return -1;
    return v->kind[id] == TOKEN_CONTROL || v->kind[id] == TOKEN_UNKNOWN || v->kind[id] == TOKEN_BYTE ? -1
                                                                                                     : id;
}

static uint32_t rank_of_score(float score)
{
    uint32_t u = sr_bits_of_f32(score + 0.0f); /* -0 and 0 are one score */

    return u & 0x80000000u ? u : ~(u | 0x80000000u);
}

static int rank_of_pair(const void *ctx, const struct symbol *l, const struct symbol *r, uint32_t *rank,
                        int32_t *id)
{
    const struct spm_text *t = ctx;

    *id = find_mergeable(t->vocab, t->text + l->at, (size_t)l->bytes + r->bytes);
    if (*id < 0) return 0;
    *rank = rank_of_score(t->vocab->score[*id]);
    return 1;
}

static size_t mark_spaces(const char *text, size_t bytes, int prefix, char *out)
{
    size_t n = 0;

    if (prefix) {
        memcpy(out, MARK, MARK_BYTES);
        n = MARK_BYTES;
    }
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == ' ') {
            memcpy(out + n, MARK, MARK_BYTES);
            n += MARK_BYTES;
        } else {
            out[n++] = text[i];
        }
    }
    return n;
}

/* One symbol per character, an invalid byte being one. */
static int32_t cut_characters(const struct vocab *v, const char *text, size_t bytes, struct symbol *sym)
{
    int32_t n = 0;

    for (size_t at = 0; at < bytes; n++) {
        uint32_t cp;
        int valid, len = sr_utf8_decode((const uint8_t *)text + at, bytes - at, &cp, &valid);
        sym[n] = (struct symbol){
            .id = find_mergeable(v, text + at, (size_t)len), .at = (uint32_t)at, .bytes = (uint32_t)len};
        at += (size_t)len;
    }
    return n;
}

static sr_status emit(const struct spm *s, const char *text, const struct pair_merge *m,
                      struct token_list *out, sr_error *err)
{
    for (int32_t i = 0; i >= 0; i = m->sym[i].next) {
        const struct symbol *y = &m->sym[i];
        if (y->id >= 0) {
            SR_TRY(sr_token_list_push(out, y->id, err));
            continue;
        }
        for (uint32_t b = 0; b < y->bytes; b++)
            SR_TRY(sr_token_list_push(out, s->byte_id[(uint8_t)text[y->at + b]], err));
    }
    return SR_OK;
}

static int wants_prefix(const struct spm *s, const char *text, size_t bytes, enum spm_place place)
{
    if (!s->space_prefix || place == SPM_WITHIN || (s->first_only && place != SPM_BEGIN)) return 0;
    return !s->metaspace ||
           (text[0] != ' ' && !(bytes >= MARK_BYTES && memcmp(text, MARK, MARK_BYTES) == 0));
}

sr_status sr_spm_encode(const struct spm *s, const char *text, size_t bytes, enum spm_place place,
                        struct pair_merge *scratch, struct token_list *out, sr_error *err)
{
    size_t n_spaces = 0, cap;
    char *marked;
    sr_status st;

    if (bytes == 0) return SR_OK;
    for (size_t i = 0; i < bytes; i++) n_spaces += text[i] == ' ';
    cap = bytes + n_spaces * (MARK_BYTES - 1) + MARK_BYTES;
    marked = sr_alloc(cap);
    if (!marked) return sr_fail_memory(err, cap, "text to tokenize");
    st = sr_pair_merge_reserve(scratch, bytes + 1, err);
    if (st == SR_OK) {
        struct spm_text t = {s->vocab, marked};
        size_t n = mark_spaces(text, bytes, wants_prefix(s, text, bytes, place), marked);
        int32_t n_sym = cut_characters(s->vocab, marked, n, scratch->sym);
        if (s->merges)
            sr_pair_merge_run(scratch, n_sym, sr_bpe_rank_of_pair, s->merges);
        else
            sr_pair_merge_run(scratch, n_sym, rank_of_pair, &t);
        st = emit(s, marked, scratch, out, err);
    }
    sr_free(marked);
    return st;
}

size_t sr_spm_decode(const char *text, size_t bytes, char *out, size_t cap)
{
    size_t full = 0;

    for (size_t at = 0; at < bytes; full++) {
        int mark = bytes - at >= MARK_BYTES && memcmp(text + at, MARK, MARK_BYTES) == 0;
        if (full < cap) out[full] = mark ? ' ' : text[at];
        at += mark ? MARK_BYTES : 1;
    }
    return full;
}
