/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a tokenizer from a file's keys, cutting special tokens out of a text, and tokens back to bytes.
 * What lies between special tokens goes to bpe.c or spm.c.
 */
#include "text/tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "text/bpe.h"
#include "text/nfc.h"
#include "text/spm.h"
#include "text/special.h"
#include "text/tokenizer_parts.h"
#include "text/vocab.h"

#define MAX_TEXT_BYTES                                                                                       \
    ((size_t)1 << 29) /* symbols are counted in int32, and a space takes three bytes in spm.c */

#define KEY_ENDS       "tokenizer.hf.end_token_ids"
#define KEY_NORMALIZER "tokenizer.hf.normalizer"

enum { MAX_ENDS = 64 };
enum model { MODEL_BPE, MODEL_SPM };

struct tokenizer {
    enum model model;
    struct vocab vocab;
    struct specials specials;
    struct bpe bpe;
    struct spm spm;
    int32_t bos, eos, eot, eom, unknown; /* -1: not declared */
    int32_t end[MAX_ENDS]; /* further ids that end a generation */
    int32_t n_ends;
    int add_bos, add_eos;
    int nfc; /* text is brought to Unicode's form NFC first */
    char name[32];
};

/* ---- opening ---- */

static sr_status find_model(struct tokenizer *t, const struct gguf *g, sr_error *err)
{
    struct gguf_str s = {NULL, 0};
    char text[64];

    SR_TRY(sr_gguf_get_str(g, "tokenizer.ggml.model", &s, NULL, err));
    if (s.bytes == 4 && memcmp(s.data, "gpt2", 4) == 0) {
        t->model = MODEL_BPE;
    } else if (s.bytes == 5 && memcmp(s.data, "llama", 5) == 0) {
        t->model = MODEL_SPM;
    } else {
        sr_escape(text, sizeof text, s.data, s.bytes);
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "%s: tokenizer.ggml.model: \"%s\" is not supported; known: gpt2, llama",
                       sr_gguf_path(g), text);
    }
    return SR_OK;
}

static sr_status get_id(const struct tokenizer *t, const struct gguf *g, const char *key, int32_t *out,
                        sr_error *err)
{
    int64_t id = -1;

    SR_TRY(sr_gguf_get_int(g, key, 0, t->vocab.n - 1, &id, &(int){0}, err));
    *out = (int32_t)id;
    return SR_OK;
}

/* Of model folders, whose config may list several ids that end a generation. */
static sr_status load_ends(struct tokenizer *t, const struct gguf *g, sr_error *err)
{
    const struct gguf_value *a = sr_gguf_find(g, KEY_ENDS);

    if (!a) return SR_OK;
    if (a->type != GGUF_ARRAY || a->elem_type != GGUF_I32 || a->count > MAX_ENDS)
        return sr_gguf_reject(g, err, KEY_ENDS ": not an array of at most %d i32", MAX_ENDS);
    for (; (uint64_t)t->n_ends < a->count; t->n_ends++) {
        int64_t id = sr_gguf_integer(a, (uint64_t)t->n_ends);
        if (id < 0 || id >= t->vocab.n)
            return sr_gguf_reject(g, err, KEY_ENDS ": id %lld, want 0..%d", (long long)id, t->vocab.n - 1);
        t->end[t->n_ends] = (int32_t)id;
    }
    return SR_OK;
}

static sr_status load_normalizer(struct tokenizer *t, const struct gguf *g, sr_error *err)
{
    struct gguf_str s = {NULL, 0};
    int found;

    SR_TRY(sr_gguf_get_str(g, KEY_NORMALIZER, &s, &found, err));
    if (!found) return SR_OK;
    t->nfc = s.bytes == 3 && memcmp(s.data, "NFC", 3) == 0;
    if (t->nfc) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: " KEY_NORMALIZER ": only NFC is supported", sr_gguf_path(g));
}

static sr_status load_ids(struct tokenizer *t, const struct gguf *g, sr_error *err)
{
    SR_TRY(get_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err));
    SR_TRY(get_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err));
    SR_TRY(get_id(t, g, "tokenizer.ggml.eot_token_id", &t->eot, err));
    SR_TRY(get_id(t, g, "tokenizer.ggml.eom_token_id", &t->eom, err));
    SR_TRY(get_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unknown, err));
    for (int32_t id = 0; t->unknown < 0 && id < t->vocab.n; id++)
        if (t->vocab.kind[id] == TOKEN_UNKNOWN) t->unknown = id;
    return load_ends(t, g, err);
}

static sr_status load_flags(struct tokenizer *t, const struct gguf *g, sr_error *err)
{
    int found;

    t->add_bos = t->model == MODEL_SPM || t->bpe.pre->adds_bos;
    SR_TRY(sr_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &t->add_bos, &found, err));
    SR_TRY(sr_gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &t->add_eos, &found, err));
    if (t->add_bos && t->bos < 0)
        return sr_gguf_reject(g, err, "tokenizer.ggml.bos_token_id: missing, but texts are to begin with it");
    if (t->add_eos && t->eos < 0)
        return sr_gguf_reject(g, err, "tokenizer.ggml.eos_token_id: missing, but texts are to end with it");
    return SR_OK;
}

static sr_status load(struct tokenizer *t, const struct gguf *g, sr_error *err)
{
    int32_t fallback;
    int by_merges;

    SR_TRY(find_model(t, g, err));
    by_merges = t->model == MODEL_SPM && !sr_gguf_find(g, "tokenizer.ggml.scores") &&
                sr_gguf_find(g, "tokenizer.ggml.merges");
    SR_TRY(sr_vocab_load(&t->vocab, g, t->model == MODEL_SPM && !by_merges, err));
    if (t->vocab.n < 2) return sr_gguf_reject(g, err, "tokenizer.ggml.tokens: 1 token, at least 2");
    SR_TRY(load_ids(t, g, err));
    /* a control token must not come from text, so it cannot stand for what has no token */
    fallback = t->unknown >= 0 && t->vocab.kind[t->unknown] != TOKEN_CONTROL ? t->unknown : -1;
    if (t->model == MODEL_BPE) {
        SR_TRY(sr_bpe_open(&t->bpe, &t->vocab, g, fallback, err));
        snprintf(t->name, sizeof t->name, "bpe/%s", t->bpe.pre->name);
    } else {
        if (by_merges) SR_TRY(sr_bpe_open_merges(&t->bpe, &t->vocab, g, err));
        if (by_merges) t->spm.merges = &t->bpe;
        SR_TRY(sr_spm_open(&t->spm, &t->vocab, g, fallback, err));
        snprintf(t->name, sizeof t->name, by_merges ? "spm/merges" : "spm");
    }
    SR_TRY(load_flags(t, g, err));
    SR_TRY(load_normalizer(t, g, err));
    return sr_specials_load(&t->specials, &t->vocab, err);
}

sr_status sr_tokenizer_open(struct tokenizer **out, const struct gguf *g, sr_error *err)
{
    struct tokenizer *t = sr_alloc_zero(1, sizeof *t);
    sr_status st;

    if (!t) return sr_fail_memory(err, sizeof *t, "tokenizer");
    st = load(t, g, err);
    if (st != SR_OK) {
        sr_tokenizer_close(t);
        return st;
    }
    *out = t;
    return SR_OK;
}

void sr_tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    sr_specials_fini(&t->specials);
    sr_bpe_fini(&t->bpe);
    sr_vocab_fini(&t->vocab);
    sr_free(t);
}

/* ---- facts ---- */

int32_t sr_tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->vocab.n;
}
const char *sr_tokenizer_model_name(const struct tokenizer *t)
{
    return t->name;
}
enum token_kind sr_tokenizer_kind(const struct tokenizer *t, int32_t id)
{
    return t->vocab.kind[id];
}
int32_t sr_tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}
int32_t sr_tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}
int sr_tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->add_bos;
}
int sr_tokenizer_adds_eos(const struct tokenizer *t)
{
    return t->add_eos;
}
int sr_tokenizer_strips_first_space(const struct tokenizer *t)
{
    return t->model == MODEL_SPM && t->spm.space_prefix;
}

int32_t sr_tokenizer_find(const struct tokenizer *t, const char *text, size_t bytes)
{
    return sr_vocab_find(&t->vocab, text, bytes);
}

int sr_tokenizer_is_end(const struct tokenizer *t, int32_t id)
{
    static const char *const marks[] = {"</s>",       "<|endoftext|>", "<|im_end|>", "<|end_of_text|>",
                                        "<|eot_id|>", "<|eom_id|>",    "<|end|>",    "<end_of_turn>",
                                        "<EOT>",      "<|EOT|>"};

    if (id < 0 || id >= t->vocab.n) return 0;
    if (id == t->eos || id == t->eot || id == t->eom) return 1;
    for (int32_t i = 0; i < t->n_ends; i++)
        if (id == t->end[i]) return 1;
    if (t->vocab.kind[id] != TOKEN_CONTROL) return 0;
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        if (strlen(marks[i]) == sr_vocab_bytes(&t->vocab, id) &&
            memcmp(marks[i], sr_vocab_text(&t->vocab, id), strlen(marks[i])) == 0)
            return 1;
    return 0;
}

/* ---- lists ---- */

void sr_token_list_free(struct token_list *l)
{
    sr_free(l->ids);
    *l = (struct token_list){0};
}

sr_status sr_token_list_push(struct token_list *l, int32_t id, sr_error *err)
{
    if (l->n == l->cap) {
        int64_t cap = l->cap ? l->cap * 2 : 64;
        int32_t *ids = sr_realloc(l->ids, (size_t)l->cap * sizeof *ids, (size_t)cap * sizeof *ids);
        if (!ids) return sr_fail_memory(err, (size_t)cap * sizeof *ids, "token list");
        l->ids = ids;
        l->cap = cap;
    }
    l->ids[l->n++] = id;
    return SR_OK;
}

/* ---- text to tokens ---- */

/* One call's state: ordinary text waits in [run, at) until a special token or the end closes it. */
struct encoding {
    const struct tokenizer *t;
    const char *text;
    struct pair_merge scratch;
    struct token_list *out;
    size_t run;        /* where the waiting text begins */
    int after_special; /* nothing or a special token comes before it */
};

static sr_status encode_run(struct encoding *e, const char *s, size_t bytes, sr_error *err)
{
    enum spm_place place = e->run == 0 ? SPM_BEGIN : e->after_special ? SPM_AFTER_SPECIAL : SPM_WITHIN;

    if (e->t->model == MODEL_BPE) return sr_bpe_encode(&e->t->bpe, s, bytes, &e->scratch, e->out, err);
    return sr_spm_encode(&e->t->spm, s, bytes, place, &e->scratch, e->out, err);
}

static sr_status close_run(struct encoding *e, size_t end, sr_error *err)
{
    const char *s = e->text + e->run;
    size_t bytes = end - e->run;
    char *normal = NULL;
    sr_status st;

    if (bytes == 0) return SR_OK;
    if (e->t->nfc) SR_TRY(sr_nfc(s, bytes, &normal, &bytes, err));
    st = encode_run(e, normal ? normal : s, bytes, err);
    sr_free(normal);
    e->after_special = 0;
    return st;
}

static sr_status encode_part(struct encoding *e, size_t begin, size_t end, enum token_special mode,
                             sr_error *err)
{
    for (size_t at = begin; at < end;) {
        int32_t id = -1;
        size_t n = sr_specials_match(&e->t->specials, &e->t->vocab, e->text + at, end - at, mode, &id);
        if (n == 0) {
            at++;
            continue;
        }
        SR_TRY(close_run(e, at, err));
        SR_TRY(sr_token_list_push(e->out, id, err));
        at += n;
        e->run = at;
        e->after_special = 1;
    }
    return SR_OK;
}

sr_status sr_tokenize_parts(const struct tokenizer *t, const char *text, const struct text_part *parts,
                            int32_t n_parts, struct token_list *out, sr_error *err)
{
    struct encoding e = {.t = t, .text = text, .out = out, .after_special = 1};
    int64_t n_before = out->n;
    size_t at = 0, bytes = 0;
    sr_status st;

    for (int32_t i = 0; i < n_parts; i++) {
        if (parts[i].bytes > MAX_TEXT_BYTES - bytes)
            return sr_fail(err, SR_ERR_USAGE, "text to tokenize: more than %zu bytes", MAX_TEXT_BYTES);
        bytes += parts[i].bytes;
    }
    for (int32_t i = 0; i < n_parts; i++) {
        SR_TRY_GOTO(encode_part(&e, at, at + parts[i].bytes, parts[i].special, err));
        at += parts[i].bytes;
    }
    SR_TRY_GOTO(close_run(&e, bytes, err));
    sr_pair_merge_fini(&e.scratch);
    return SR_OK;
fail:
    sr_pair_merge_fini(&e.scratch);
    out->n = n_before;
    return st;
}

sr_status sr_tokenize(const struct tokenizer *t, const char *text, size_t bytes, enum token_special special,
                      struct token_list *l, sr_error *err)
{
    struct text_part whole = {bytes, special};

    return sr_tokenize_parts(t, text, &whole, 1, l, err);
}

/* ---- tokens to text ---- */

size_t sr_token_bytes(const struct tokenizer *t, int32_t id, int show_control, char *out, size_t cap)
{
    const char *text = sr_vocab_text(&t->vocab, id);
    size_t bytes = sr_vocab_bytes(&t->vocab, id);

    switch ((enum token_kind)t->vocab.kind[id]) {
    case TOKEN_CONTROL:
    case TOKEN_UNUSED:
        if (!show_control) return 0;
        break;
    case TOKEN_BYTE:
        if (cap > 0) out[0] = (char)sr_vocab_byte_value(text, bytes);
        return 1;
    case TOKEN_NORMAL:
        return t->model == MODEL_BPE ? sr_bpe_decode(text, bytes, out, cap)
                                     : sr_spm_decode(text, bytes, out, cap);
    case TOKEN_USER:
        if (t->model == MODEL_SPM) return sr_spm_decode(text, bytes, out, cap);
        break;
    case TOKEN_UNKNOWN: break;
    }
    if (cap > 0) memcpy(out, text, bytes < cap ? bytes : cap);
    return bytes;
}
