/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files about text say together: a vocabulary by id, filled up to the model's size with unused tokens, the
 * ids that begin and end a text, and the chat template.
 */
#include "formats/hf_parts.h"

#include "base/mapfile.h"
#include "base/memory.h"
#include "formats/gguf_part.h"
#include "formats/sentencepiece.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_END_IDS = 64, MAX_IDS = 1 << 24, MAX_TEMPLATE_BYTES = 1 << 20, KIND_UNUSED = 5 };

/* ---- a vocabulary by id ---- */

sr_status sr_hf_vocab_set(struct hf_vocab *v, int64_t id, struct hf_token t, sr_error *err)
{
    if (id >= v->cap) {
        int64_t cap = v->cap ? v->cap : 1024;
        while (cap <= id) cap *= 2;
        struct hf_token *token = sr_realloc(v->token, (size_t)v->cap * sizeof(*token), (size_t)cap * sizeof(*token));
        if (!token) return sr_fail_memory(err, (size_t)cap * sizeof(*token), "tokens");
        memset(token + v->cap, 0, (size_t)(cap - v->cap) * sizeof(*token));
        v->token = token;
        v->cap = (int32_t)cap;
    }
    v->token[id] = t;
    if (id >= v->n) v->n = (int32_t)id + 1;
    return SR_OK;
}

int32_t sr_hf_vocab_find(const struct hf_vocab *v, const char *text)
{
    const size_t n = strlen(text);
    for (int32_t id = v->n - 1; id >= 0; id--) /* special tokens tend to be last */
        if (v->token[id].kind && v->token[id].bytes == n && memcmp(v->token[id].text, text, n) == 0) return id;
    return -1;
}

struct hf_text {
    struct hf *h;
    struct hf_vocab v;
    json_t *doc, *added;     /* owners of the texts */
    struct mapfile model;
    int has_scores, adds_bos;
    int32_t bos, eos;
};

static sr_status put_vocab(struct hf_text *t)
{
    const int32_t n = t->h->n_vocab > t->v.n ? t->h->n_vocab : t->v.n;
    struct packed_strs texts = {0};
    int32_t *kinds = sr_alloc((size_t)n * sizeof(*kinds));
    float *scores = sr_alloc((size_t)n * sizeof(*scores));
    sr_status st = SR_OK;
    char pad[32];
    if (!kinds || !scores) {
        st = sr_fail_memory(t->h->err, (size_t)n * sizeof(*scores), "tokens");
        goto fail;
    }
    for (int32_t id = 0; id < n; id++) {
        const struct hf_token *k = id < t->v.n && t->v.token[id].kind ? &t->v.token[id] : NULL;
        const int pad_bytes = snprintf(pad, sizeof(pad), "[PAD%d]", id);
        kinds[id] = k ? k->kind : KIND_UNUSED;
        scores[id] = k ? k->score : -10000.0f;
        SR_TRY_GOTO(sr_packed_strs_push(&texts, k ? k->text : pad, k ? k->bytes : (size_t)pad_bytes, t->h->err));
    }
    SR_TRY_GOTO(sr_source_put_strs(t->h->g, "tokenizer.ggml.tokens", &texts, t->h->err));
    SR_TRY_GOTO(sr_source_put_i32s(t->h->g, "tokenizer.ggml.token_type", kinds, (size_t)n, t->h->err));
    if (t->has_scores) SR_TRY_GOTO(sr_source_put_f32s(t->h->g, "tokenizer.ggml.scores", scores, (size_t)n, t->h->err));
fail:
    sr_free(texts.data);
    sr_free(kinds);
    sr_free(scores);
    return st;
}

/* ---- tokenizer.model ---- */

static sr_status refuse_model(const struct hf_text *t, const char *what)
{
    char path[GGUF_SHOWN_PATH_BYTES];
    return sr_fail(t->h->err, SR_ERR_UNSUPPORTED, "%s: %s", sr_gguf_shown_path(path, t->h->path), what);
}

static sr_status check_model(const struct hf_text *t, const struct sp_model *m)
{
    if (m->algorithm != 2) return refuse_model(t, m->algorithm == 1 ? "a unigram model is not supported, only BPE" : "only BPE models are supported");
    if (m->charsmap_bytes) return refuse_model(t, "normalisation by a table is not supported");
    if (m->remove_extra_whitespaces) return refuse_model(t, "remove_extra_whitespaces is not supported");
    if (!m->escape_whitespaces) return refuse_model(t, "escape_whitespaces false is not supported");
    if (m->whitespace_suffix) return refuse_model(t, "treat_whitespace_as_suffix is not supported");
    if (!m->byte_fallback) return refuse_model(t, "a vocabulary without byte_fallback is not supported");
    return SR_OK;
}

static sr_status take_pieces(struct hf_text *t, const struct sp_model *m)
{
    struct hf *h = t->h;
    for (int32_t i = 0; i < m->n; i++) {
        const struct sp_piece *p = &m->pieces[i];
        SR_TRY(sr_hf_vocab_set(&t->v, i, (struct hf_token){p->text, p->bytes, p->kind, p->score}, h->err));
    }
    t->has_scores = 1;
    t->adds_bos = 1;
    t->bos = m->bos_id < m->n ? m->bos_id : -1;
    t->eos = m->eos_id < m->n ? m->eos_id : -1;
    SR_TRY(sr_source_put_str(h->g, "tokenizer.ggml.model", "llama", 5, h->err));
    if (m->unk_id >= 0 && m->unk_id < m->n) SR_TRY(sr_source_put_u32(h->g, "tokenizer.ggml.unknown_token_id", (uint32_t)m->unk_id, h->err));
    return sr_source_put_bool(h->g, "tokenizer.ggml.add_space_prefix", m->add_dummy_prefix, h->err);
}

/* One token beside the model's own: a new one, or a kind for one that is there. */
static sr_status add_beside(struct hf_text *t, const struct json_at *a, const char *text, int64_t id, int special)
{
    if (id < 0 || id >= MAX_IDS) return sr_json_reject(a, t->h->err, text, "id %lld, want 0..%d", (long long)id, MAX_IDS - 1);
    const struct hf_token *old = id < t->v.n ? &t->v.token[id] : NULL;
    if (old && old->kind && (old->bytes != strlen(text) || memcmp(old->text, text, old->bytes) != 0))
        return sr_json_reject(a, t->h->err, text, "id %lld is another token of tokenizer.model", (long long)id);
    if (old && old->kind && old->kind != 1) return SR_OK;
    return sr_hf_vocab_set(&t->v, id, (struct hf_token){text, strlen(text), special ? 3 : 4, -1000.0f}, t->h->err);
}

/* added_tokens.json: {text: id}. */
static sr_status read_added_file(struct hf_text *t)
{
    char path[HF_MAX_PATH];
    const char *text;
    json_t *id;
    if (!sr_hf_exists(t->h, "added_tokens.json")) return SR_OK;
    SR_TRY(sr_hf_join(t->h, path, "added_tokens.json"));
    SR_TRY(sr_json_load(&t->added, path, HF_MAX_CONFIG_BYTES, JSON_INTEGERS, t->h->err));
    const struct json_at a = {path, "$", t->added};
    json_object_foreach(t->added, text, id) {
        if (!json_is_integer(id)) return sr_json_reject(&a, t->h->err, text, "its id is no integer");
        SR_TRY(add_beside(t, &a, text, json_integer_value(id), text[0] == '<' && text[strlen(text) - 1] == '>'));
    }
    return SR_OK;
}

/* tokenizer_config.json's added_tokens_decoder: {"id": {"content": text, "special": bool}}. */
static sr_status read_decoder(struct hf_text *t)
{
    const struct json_at a = {t->h->tok_config_path, "$", t->h->tok_config};
    const json_t *map;
    const char *key;
    json_t *entry;
    int found;
    if (!t->h->tok_config) return SR_OK;
    SR_TRY(sr_json_member(&a, "added_tokens_decoder", JSON_OBJECT, &map, &found, t->h->err));
    json_object_foreach((json_t *)(uintptr_t)map, key, entry) {
        const struct json_at e = {a.path, "$.added_tokens_decoder", entry};
        const char *text = NULL;
        char *end;
        int special = 0;
        const long id = strtol(key, &end, 10);
        if (!json_is_object(entry) || *end || end == key) return sr_json_reject(&e, t->h->err, key, "not an id with an object");
        SR_TRY(sr_json_string(&e, "content", &text, NULL, t->h->err));
        SR_TRY(sr_json_bool(&e, "special", &special, &found, t->h->err));
        SR_TRY(add_beside(t, &e, text, id, special));
    }
    return SR_OK;
}

static sr_status read_model_file(struct hf_text *t)
{
    struct sp_model m = {0};
    char path[GGUF_SHOWN_PATH_BYTES];
    SR_TRY(sr_mapfile_open(&t->model, t->h->path, t->h->err));
    if (t->model.bytes > HF_MAX_TOKENIZER_BYTES)
        return sr_fail(t->h->err, SR_ERR_FORMAT, "%s: %zu bytes, limit %d", sr_gguf_shown_path(path, t->h->path), t->model.bytes, HF_MAX_TOKENIZER_BYTES);
    SR_TRY(sr_sp_read(&m, t->model.data, t->model.bytes, t->h->path, t->h->err));
    sr_status st = check_model(t, &m);
    if (st == SR_OK) st = take_pieces(t, &m);
    sr_sp_free(&m);
    if (st == SR_OK) st = read_decoder(t);
    return st == SR_OK ? read_added_file(t) : st;
}

/* ---- ids ---- */

/* The token that tokenizer_config.json names: a text, or an object with one; -1 for null. Unchanged where absent. */
static sr_status named_token(const struct hf_text *t, const char *key, int32_t *id)
{
    const json_t *v = json_object_get(t->h->tok_config, key);
    if (!v) return SR_OK;
    if (json_is_object(v)) v = json_object_get(v, "content");
    *id = json_is_string(v) ? sr_hf_vocab_find(&t->v, json_string_value(v)) : -1;
    return SR_OK;
}

static sr_status push_ends(const struct hf_text *t, const json_t *doc, const char *path, int32_t *ids, size_t *n)
{
    const struct json_at a = {path, "$", doc};
    const json_t *v = json_object_get(doc, "eos_token_id");
    const int32_t n_ids = t->h->n_vocab > t->v.n ? t->h->n_vocab : t->v.n;
    const size_t count = json_is_array(v) ? json_array_size(v) : v && !json_is_null(v);
    for (size_t i = 0; i < count; i++) {
        const json_t *e = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(e) || json_integer_value(e) < 0 || json_integer_value(e) >= n_ids)
            return sr_json_reject(&a, t->h->err, "eos_token_id", "not a token id below %d", n_ids);
        if (*n == MAX_END_IDS) return sr_json_reject(&a, t->h->err, "eos_token_id", "more than %d ids", MAX_END_IDS);
        ids[(*n)++] = (int32_t)json_integer_value(e);
    }
    return SR_OK;
}

static sr_status put_flag(const struct hf_text *t, const char *key, const char *ours, int value)
{
    const struct json_at a = {t->h->tok_config_path, "$", t->h->tok_config};
    int found;
    if (t->h->tok_config) SR_TRY(sr_json_bool(&a, key, &value, &found, t->h->err));
    return sr_source_put_bool(t->h->g, ours, value, t->h->err);
}

static sr_status put_ids(struct hf_text *t)
{
    struct gguf *g = t->h->g;
    sr_error *err = t->h->err;
    int32_t ends[MAX_END_IDS];
    size_t n = 0;
    SR_TRY(named_token(t, "bos_token", &t->bos));
    SR_TRY(named_token(t, "eos_token", &t->eos));
    SR_TRY(push_ends(t, t->h->generation, t->h->generation_path, ends, &n));
    if (n == 0) SR_TRY(push_ends(t, t->h->config, t->h->config_path, ends, &n)); /* the other one has the last word */
    if (t->eos < 0 && n > 0) t->eos = ends[0];
    if (t->bos >= 0) SR_TRY(sr_source_put_u32(g, "tokenizer.ggml.bos_token_id", (uint32_t)t->bos, err));
    if (t->eos >= 0) SR_TRY(sr_source_put_u32(g, "tokenizer.ggml.eos_token_id", (uint32_t)t->eos, err));
    if (n) SR_TRY(sr_source_put_i32s(g, "tokenizer.hf.end_token_ids", ends, n, err));
    SR_TRY(put_flag(t, "add_bos_token", "tokenizer.ggml.add_bos_token", t->adds_bos && t->bos >= 0));
    return put_flag(t, "add_eos_token", "tokenizer.ggml.add_eos_token", 0);
}

static sr_status read_text(struct hf_text *t)
{
    struct hf *h = t->h;
    if (sr_hf_exists(h, "tokenizer.json")) {
        SR_TRY(sr_json_load(&t->doc, h->path, HF_MAX_TOKENIZER_BYTES, JSON_INTEGERS, h->err));
        SR_TRY(sr_hf_read_tokenizer_json(h, t->doc, &t->v, &t->adds_bos));
    } else if (sr_hf_exists(h, "tokenizer.model")) {
        SR_TRY(read_model_file(t));
    } else {
        return sr_fail(h->err, SR_ERR_IO, "%s: neither tokenizer.json nor tokenizer.model is there", h->folder);
    }
    if (h->config && t->v.n > h->n_vocab)
        return sr_gguf_reject(h->g, h->err, "the tokenizer has %d tokens, config.json's vocab_size is %d", t->v.n, h->n_vocab);
    SR_TRY(put_vocab(t));
    return put_ids(t);
}

sr_status sr_hf_read_tokenizer(struct hf *h)
{
    struct hf_text t = {.h = h, .bos = -1, .eos = -1};
    const sr_status st = read_text(&t);
    sr_free(t.v.token);
    json_decref(t.doc);
    json_decref(t.added);
    sr_mapfile_close(&t.model);
    return st;
}

/* ---- chat template ---- */

/* The text itself, or of a list of named ones that called "default". */
static const json_t *template_of(const json_t *v)
{
    if (!json_is_array(v)) return json_is_string(v) ? v : NULL;
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *e = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(e, "name"));
        if (name && strcmp(name, "default") == 0 && json_is_string(json_object_get(e, "template"))) return json_object_get(e, "template");
    }
    return NULL;
}

static sr_status put_template_file(struct hf *h)
{
    struct mapfile f;
    char path[GGUF_SHOWN_PATH_BYTES];
    SR_TRY(sr_mapfile_open(&f, h->path, h->err));
    const sr_status st = f.bytes > MAX_TEMPLATE_BYTES
                             ? sr_fail(h->err, SR_ERR_FORMAT, "%s: %zu bytes, limit %d", sr_gguf_shown_path(path, h->path), f.bytes, MAX_TEMPLATE_BYTES)
                             : sr_source_put_str(h->g, "tokenizer.chat_template", f.bytes ? (const char *)f.data : "", f.bytes, h->err);
    sr_mapfile_close(&f);
    return st;
}

sr_status sr_hf_read_chat_template(struct hf *h)
{
    if (sr_hf_exists(h, "chat_template.jinja")) return put_template_file(h);
    const json_t *v = template_of(json_object_get(h->tok_config, "chat_template"));
    if (!v) return SR_OK;
    return sr_source_put_str(h->g, "tokenizer.chat_template", json_string_value(v), json_string_length(v), h->err);
}
