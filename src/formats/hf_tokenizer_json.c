/* SPDX-License-Identifier: Apache-2.0
 *
 * tokenizer.json: a description of a tokenizer as a chain of parts. Only chains that our own matchers compute exactly
 * are taken, recognised part by part and regular expressions by their exact text; any other part is refused by name.
 */
#include "formats/hf_parts.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

#define LETTERS_AND_REST  "[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define ANY_CASE_TO_WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"

/* Regular expressions that a hand-written matcher exists for, and its name. */
static const struct { const char *regex, *name; } rules[] = {
    {ANY_CASE_TO_WORDS "\\p{N}{1,3}| ?" LETTERS_AND_REST, "llama-bpe"},
    {ANY_CASE_TO_WORDS "\\p{N}| ?" LETTERS_AND_REST, "qwen2"},
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2"}};

enum { MAX_STEPS = 8 };

struct chain {
    struct json_at at[MAX_STEPS];
    const char *type[MAX_STEPS];
    int n;
};

struct tokenizer_json {
    struct hf *h;
    struct json_at at, model;
    struct hf_vocab *v;
    int byte_level, byte_fallback;
    const char *unknown; /* text of the unknown token or NULL */
};

/* ---- chains ---- */

static sr_status push_step(struct tokenizer_json *t, struct chain *c, const char *where, const json_t *step)
{
    struct json_at *a = &c->at[c->n];
    *a = (struct json_at){t->h->path, where, step};
    if (c->n == MAX_STEPS) return sr_json_unsupported(a, t->h->err, NULL, "more than %d parts", MAX_STEPS);
    if (!json_is_object(step)) return sr_json_reject(a, t->h->err, NULL, "a part is not an object");
    return sr_json_string(a, "type", &c->type[c->n++], NULL, t->h->err);
}

/* The parts under `key`: none, one, or those of a Sequence. */
static sr_status read_chain(struct tokenizer_json *t, const char *key, const char *list, const char *where, struct chain *c)
{
    const json_t *o, *parts;
    int found;
    c->n = 0;
    SR_TRY(sr_json_member(&t->at, key, JSON_OBJECT, &o, &found, t->h->err));
    if (!o) return SR_OK;
    SR_TRY(push_step(t, c, where, o));
    if (strcmp(c->type[0], "Sequence") != 0) return SR_OK;
    SR_TRY(sr_json_member(&c->at[0], list, JSON_ARRAY, &parts, NULL, t->h->err));
    c->n = 0;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        if (c->n == MAX_STEPS - 1) return sr_json_unsupported(&t->at, t->h->err, key, "more than %d parts", MAX_STEPS - 1);
        SR_TRY(push_step(t, c, where, json_array_get(parts, i)));
    }
    return SR_OK;
}

static int is(const struct chain *c, int i, const char *type) { return i < c->n && strcmp(c->type[i], type) == 0; }

static sr_status refuse_step(const struct tokenizer_json *t, const struct chain *c, int i)
{
    char text[48];
    return sr_json_unsupported(&c->at[i], t->h->err, NULL, "\"%s\" is not supported here",
                               sr_escape(text, sizeof(text), c->type[i], strlen(c->type[i])));
}

/* The flag must have this value; absent counts as `otherwise`. */
static sr_status want_flag(const struct tokenizer_json *t, const struct json_at *a, const char *key, int value, int otherwise)
{
    int found, b = otherwise;
    SR_TRY(sr_json_bool(a, key, &b, &found, t->h->err));
    return b == value ? SR_OK : sr_json_unsupported(a, t->h->err, key, "%s is not supported", b ? "true" : "false");
}

/* ---- pre-tokenizer ---- */

static sr_status match_regex(const struct tokenizer_json *t, const struct json_at *a, const char **name)
{
    const json_t *pattern;
    const char *regex = NULL, *behavior = NULL;
    char text[64];
    int found;
    SR_TRY(sr_json_member(a, "pattern", JSON_OBJECT, &pattern, NULL, t->h->err));
    const struct json_at p = {a->path, "$.pre_tokenizer.pattern", pattern};
    SR_TRY(sr_json_string(&p, "Regex", &regex, &found, t->h->err));
    if (!regex) return sr_json_unsupported(&p, t->h->err, NULL, "a plain string is not supported");
    SR_TRY(sr_json_string(a, "behavior", &behavior, NULL, t->h->err));
    if (strcmp(behavior, "Isolated") != 0) return sr_json_unsupported(a, t->h->err, "behavior", "only Isolated is supported");
    SR_TRY(want_flag(t, a, "invert", 0, 0));
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (strcmp(rules[i].regex, regex) != 0) continue;
        *name = rules[i].name;
        return SR_OK;
    }
    return sr_json_unsupported(&p, t->h->err, "Regex", "\"%s\" is not one of those known here", sr_escape(text, sizeof(text), regex, strlen(regex)));
}

/* ByteLevel, alone, after one Split, or after Digits. */
static sr_status put_byte_level(struct tokenizer_json *t, const struct chain *c)
{
    const int last = c->n - 1;
    const char *name = "gpt-2";
    if (c->n > 2) return refuse_step(t, c, 0);
    SR_TRY(want_flag(t, &c->at[last], "add_prefix_space", 0, 1));
    if (is(c, 0, "Split")) {
        SR_TRY(match_regex(t, &c->at[0], &name));
        SR_TRY(want_flag(t, &c->at[last], "use_regex", 0, 1));
    } else {
        SR_TRY(want_flag(t, &c->at[last], "use_regex", 1, 1));
        if (c->n == 2 && !is(c, 0, "Digits")) return refuse_step(t, c, 0);
        if (c->n == 2) SR_TRY(want_flag(t, &c->at[0], "individual_digits", 1, 0));
        if (c->n == 2) name = "smollm";
    }
    return sr_source_put_str(t->h->g, "tokenizer.ggml.pre", name, strlen(name), t->h->err);
}

/* How a space comes before the first word: Metaspace says it here, older files in the normalizer. */
static sr_status put_metaspace(struct tokenizer_json *t, const struct chain *c)
{
    const char *scheme = "always", *mark = "\xE2\x96\x81";
    int found, before;
    if (c->n > 1) return refuse_step(t, c, 1);
    SR_TRY(sr_json_string(&c->at[0], "replacement", &mark, &found, t->h->err));
    if (strcmp(mark, "\xE2\x96\x81") != 0) return sr_json_unsupported(&c->at[0], t->h->err, "replacement", "only U+2581 is supported");
    SR_TRY(want_flag(t, &c->at[0], "split", 0, 1));
    if (sr_json_bool(&c->at[0], "add_prefix_space", &before, &found, t->h->err) == SR_OK && found && !before) scheme = "never";
    SR_TRY(sr_json_string(&c->at[0], "prepend_scheme", &scheme, &found, t->h->err));
    if (strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0 && strcmp(scheme, "never") != 0)
        return sr_json_reject(&c->at[0], t->h->err, "prepend_scheme", "want always, first or never");
    SR_TRY(sr_source_put_bool(t->h->g, "tokenizer.ggml.add_space_prefix", strcmp(scheme, "never") != 0, t->h->err));
    return sr_source_put_str(t->h->g, "tokenizer.hf.metaspace", scheme, strlen(scheme), t->h->err);
}

/* ---- normalizer ---- */

static sr_status put_byte_level_normalizer(struct tokenizer_json *t, const struct chain *c)
{
    if (c->n == 0) return SR_OK;
    if (!is(c, 0, "NFC")) return refuse_step(t, c, 0);
    if (c->n > 1) return refuse_step(t, c, 1);
    return sr_source_put_str(t->h->g, "tokenizer.hf.normalizer", "NFC", 3, t->h->err);
}

static int member_is(const json_t *o, const char *key, const char *text)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s && strcmp(s, text) == 0;
}

/* Prepend U+2581 (or not), then every space to U+2581; nothing at all where Metaspace does both. */
static sr_status put_space_normalizer(struct tokenizer_json *t, const struct chain *c, int metaspace)
{
    int i = 0;
    const int prepend = is(c, 0, "Prepend");
    if (prepend && !member_is(c->at[0].object, "prepend", "\xE2\x96\x81")) return refuse_step(t, c, 0);
    i += prepend;
    if (i < c->n) {
        if (!is(c, i, "Replace") || !member_is(json_object_get(c->at[i].object, "pattern"), "String", " ") ||
            !member_is(c->at[i].object, "content", "\xE2\x96\x81"))
            return refuse_step(t, c, i);
        i++;
    }
    if (i < c->n) return refuse_step(t, c, i);
    if (metaspace) return c->n ? refuse_step(t, c, 0) : SR_OK;
    if (i == prepend) return sr_json_unsupported(&t->at, t->h->err, "normalizer", "spaces are not replaced by U+2581");
    return sr_source_put_bool(t->h->g, "tokenizer.ggml.add_space_prefix", prepend, t->h->err);
}

/* ---- vocabulary ---- */

static sr_status read_tokens(struct tokenizer_json *t)
{
    const json_t *vocab;
    const char *text;
    json_t *id;
    SR_TRY(sr_json_member(&t->model, "vocab", JSON_OBJECT, &vocab, NULL, t->h->err));
    const struct json_at a = {t->h->path, "$.model.vocab", vocab};
    json_object_foreach((json_t *)(uintptr_t)vocab, text, id) {
        const size_t n = strlen(text);
        const json_int_t i = json_is_integer(id) ? json_integer_value(id) : -1;
        int kind = 1;
        if (i < 0 || i >= 1 << 24) return sr_json_reject(&a, t->h->err, text, "its id is no integer in 0..%d", (1 << 24) - 1);
        if (i < t->v->n && t->v->token[i].kind) return sr_json_reject(&a, t->h->err, text, "id %lld is given twice", (long long)i);
        if (!t->byte_level && n == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>') kind = 6;
        SR_TRY(sr_hf_vocab_set(t->v, i, (struct hf_token){text, n, kind, 0}, t->h->err));
    }
    return t->v->n ? SR_OK : sr_json_reject(&a, t->h->err, NULL, "empty");
}

/* "<|...|>" counts as control even where a file does not say so: text of a user must not become one. */
static int kind_of_added(const struct tokenizer_json *t, const char *text, size_t n, int special)
{
    if (t->unknown && strcmp(text, t->unknown) == 0) return 2;
    return special || (n > 4 && memcmp(text, "<|", 2) == 0 && memcmp(text + n - 2, "|>", 2) == 0) ? 3 : 4;
}

static sr_status add_token(struct tokenizer_json *t, const json_t *entry)
{
    const struct json_at a = {t->h->path, "$.added_tokens", entry};
    const char *text = NULL;
    int64_t id = 0;
    int special = 0, found;
    if (!json_is_object(entry)) return sr_json_reject(&a, t->h->err, NULL, "an entry is not an object");
    SR_TRY(sr_json_string(&a, "content", &text, NULL, t->h->err));
    SR_TRY(sr_json_int(&a, "id", 0, (1 << 24) - 1, &id, NULL, t->h->err));
    SR_TRY(sr_json_bool(&a, "special", &special, &found, t->h->err));
    SR_TRY(want_flag(t, &a, "single_word", 0, 0));
    SR_TRY(want_flag(t, &a, "lstrip", 0, 0));
    SR_TRY(want_flag(t, &a, "rstrip", 0, 0));
    const size_t n = strlen(text);
    if (n == 0) return sr_json_reject(&a, t->h->err, "content", "empty");
    if (id < t->v->n && t->v->token[id].kind && (t->v->token[id].bytes != n || memcmp(t->v->token[id].text, text, n) != 0))
        return sr_json_reject(&a, t->h->err, "id", "%lld is another token in the vocabulary", (long long)id);
    return sr_hf_vocab_set(t->v, id, (struct hf_token){text, n, kind_of_added(t, text, n, special), -1000.0f}, t->h->err);
}

static sr_status read_added(struct tokenizer_json *t)
{
    const json_t *list;
    int found;
    SR_TRY(sr_json_member(&t->at, "added_tokens", JSON_ARRAY, &list, &found, t->h->err));
    for (size_t i = 0; i < json_array_size(list); i++) SR_TRY(add_token(t, json_array_get(list, i)));
    return SR_OK;
}

/* ---- merges ---- */

/* "A B" or ["A", "B"], as "A B". */
static sr_status push_merge(const struct tokenizer_json *t, struct packed_strs *p, const json_t *m, size_t i)
{
    const struct json_at a = {t->h->path, "$.model.merges", t->model.object};
    if (json_is_string(m)) return sr_packed_strs_push(p, json_string_value(m), json_string_length(m), t->h->err);
    const char *left = json_string_value(json_array_get(m, 0)), *right = json_string_value(json_array_get(m, 1));
    if (!json_is_array(m) || json_array_size(m) != 2 || !left || !right) return sr_json_reject(&a, t->h->err, NULL, "merge %zu is not two texts", i);
    const size_t l = strlen(left), r = strlen(right);
    if (l == 0 || r == 0 || memchr(left, ' ', l) || memchr(right, ' ', r))
        return sr_json_reject(&a, t->h->err, NULL, "merge %zu: a text is empty or holds a space", i);
    char *both = sr_alloc(l + r + 1);
    if (!both) return sr_fail_memory(t->h->err, l + r + 1, "a merge");
    memcpy(both, left, l);
    both[l] = ' ';
    memcpy(both + l + 1, right, r);
    const sr_status st = sr_packed_strs_push(p, both, l + r + 1, t->h->err);
    sr_free(both);
    return st;
}

static sr_status put_merges(const struct tokenizer_json *t)
{
    const json_t *list;
    struct packed_strs p = {0};
    SR_TRY(sr_json_member(&t->model, "merges", JSON_ARRAY, &list, NULL, t->h->err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const sr_status st = push_merge(t, &p, json_array_get(list, i), i);
        if (st == SR_OK) continue;
        sr_free(p.data);
        return st;
    }
    return sr_source_put_strs(t->h->g, "tokenizer.ggml.merges", &p, t->h->err);
}

/* ---- the model ---- */

static sr_status read_model(struct tokenizer_json *t)
{
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *o;
    const char *type = "BPE", *s;
    char text[48];
    int found;
    SR_TRY(sr_json_member(&t->at, "model", JSON_OBJECT, &o, NULL, t->h->err));
    t->model = (struct json_at){t->h->path, "$.model", o};
    SR_TRY(sr_json_string(&t->model, "type", &type, &found, t->h->err));
    if (strcmp(type, "BPE") != 0)
        return sr_json_unsupported(&t->model, t->h->err, "type", "\"%s\" is not supported, only BPE", sr_escape(text, sizeof(text), type, strlen(type)));
    for (size_t i = 0; i < 2; i++) {
        s = "";
        SR_TRY(sr_json_string(&t->model, empty[i], &s, &found, t->h->err));
        if (*s) return sr_json_unsupported(&t->model, t->h->err, empty[i], "is set, and is not supported");
    }
    double dropout = 0;
    SR_TRY(sr_json_number(&t->model, "dropout", &dropout, &found, t->h->err));
    if (dropout != 0) return sr_json_unsupported(&t->model, t->h->err, "dropout", "%g is not supported", dropout);
    SR_TRY(sr_json_string(&t->model, "unk_token", &t->unknown, &found, t->h->err));
    return sr_json_bool(&t->model, "byte_fallback", &t->byte_fallback, &found, t->h->err);
}

static sr_status put_kind(struct tokenizer_json *t, const struct chain *pre, const struct chain *norm)
{
    const int metaspace = is(pre, 0, "Metaspace");
    int ignore = 0, found;
    t->byte_level = pre->n > 0 && is(pre, pre->n - 1, "ByteLevel");
    if (t->byte_level) {
        SR_TRY(sr_source_put_str(t->h->g, "tokenizer.ggml.model", "gpt2", 4, t->h->err));
        SR_TRY(put_byte_level(t, pre));
        SR_TRY(put_byte_level_normalizer(t, norm));
        SR_TRY(sr_json_bool(&t->model, "ignore_merges", &ignore, &found, t->h->err));
        return sr_source_put_bool(t->h->g, "tokenizer.hf.ignore_merges", ignore, t->h->err);
    }
    if (pre->n > 0 && !metaspace) return refuse_step(t, pre, 0);
    if (!t->byte_fallback) return sr_json_unsupported(&t->model, t->h->err, "byte_fallback", "a vocabulary without ByteLevel needs it");
    SR_TRY(want_flag(t, &t->model, "ignore_merges", 0, 0));
    SR_TRY(sr_source_put_str(t->h->g, "tokenizer.ggml.model", "llama", 5, t->h->err));
    if (metaspace) SR_TRY(put_metaspace(t, pre));
    return put_space_normalizer(t, norm, metaspace);
}

/* A template that puts a special token before the text adds BOS. */
static sr_status read_post_processor(struct tokenizer_json *t, int *adds_bos)
{
    struct chain c;
    const json_t *single;
    *adds_bos = 0;
    SR_TRY(read_chain(t, "post_processor", "processors", "$.post_processor", &c));
    for (int i = 0; i < c.n; i++) {
        if (is(&c, i, "ByteLevel")) continue;
        if (!is(&c, i, "TemplateProcessing")) return refuse_step(t, &c, i);
        SR_TRY(sr_json_member(&c.at[i], "single", JSON_ARRAY, &single, NULL, t->h->err));
        *adds_bos = json_object_get(json_array_get(single, 0), "SpecialToken") != NULL;
    }
    return SR_OK;
}

sr_status sr_hf_read_tokenizer_json(struct hf *h, const json_t *doc, struct hf_vocab *v, int *adds_bos)
{
    struct tokenizer_json t = {.h = h, .at = {h->path, "$", doc}, .v = v};
    struct chain pre, norm;
    SR_TRY(read_model(&t));
    SR_TRY(read_chain(&t, "pre_tokenizer", "pretokenizers", "$.pre_tokenizer", &pre));
    SR_TRY(read_chain(&t, "normalizer", "normalizers", "$.normalizer", &norm));
    SR_TRY(put_kind(&t, &pre, &norm));
    SR_TRY(read_tokens(&t));
    SR_TRY(read_added(&t));
    SR_TRY(read_post_processor(&t, adds_bos));
    if (t.unknown) {
        const int32_t id = sr_hf_vocab_find(v, t.unknown);
        if (id >= 0) SR_TRY(sr_source_put_u32(h->g, "tokenizer.ggml.unknown_token_id", (uint32_t)id, h->err));
    }
    return put_merges(&t);
}
