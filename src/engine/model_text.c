/* SPDX-License-Identifier: Apache-2.0
 *
 * Text in and out of a model: the tokenizer and the chat templates behind the public functions.
 */
#include "engine/model.h"

#include "base/memory.h"
#include "text/utf8.h"

#include <string.h>

static sr_status need_tokenizer(const struct sr_model *m, sr_error *err)
{
    if (m->tokenizer) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: the file has no tokenizer that can be used", m->path);
}

/* Puts id before what the list holds. */
static sr_status push_front(struct token_list *l, int32_t id, sr_error *err)
{
    SR_TRY(sr_token_list_push(l, id, err));
    memmove(l->ids + 1, l->ids, (size_t)(l->n - 1) * sizeof(*l->ids));
    l->ids[0] = id;
    return SR_OK;
}

/* Hands the list's block over as a plain array. */
static sr_status give(struct token_list *l, int32_t **ids, int32_t *n, sr_error *err)
{
    if (l->n > INT32_MAX) return sr_fail(err, SR_ERR_USAGE, "text of %lld tokens: the limit is 2^31", (long long)l->n);
    if (!l->ids) { /* an empty text still gives a block to free */
        l->ids = sr_alloc(sizeof(*l->ids));
        if (!l->ids) return sr_fail_memory(err, sizeof(*l->ids), "tokens");
    }
    *ids = l->ids;
    *n = (int32_t)l->n;
    return SR_OK;
}

sr_status sr_tokenize(const sr_model *m, const char *text, size_t bytes, sr_bos bos, int parse_special, int32_t **ids,
                      int32_t *n, sr_error *err)
{
    if (!m || !ids || !n || (!text && bytes)) return sr_fail(err, SR_ERR_USAGE, "sr_tokenize: an argument is NULL");
    SR_TRY(need_tokenizer(m, err));
    struct token_list l = {0};
    sr_status st = SR_OK;
    const int with_bos = bos == SR_BOS_AUTO ? sr_tokenizer_adds_bos(m->tokenizer) : bos == SR_BOS_ON;
    if (with_bos) {
        const int32_t id = sr_tokenizer_bos(m->tokenizer);
        if (id < 0) return sr_fail(err, SR_ERR_USAGE, "%s: the file names no BOS token", m->path);
        SR_TRY_GOTO(sr_token_list_push(&l, id, err));
    }
    SR_TRY_GOTO(sr_tokenizer_encode(m->tokenizer, bytes ? text : "", bytes, parse_special ? SPECIAL_PARSE : SPECIAL_AS_TEXT, &l, err));
    SR_TRY_GOTO(give(&l, ids, n, err));
    return SR_OK;
fail:
    sr_token_list_free(&l);
    return st;
}

void sr_tokens_free(int32_t *ids)
{
    struct token_list l = {.ids = ids};
    sr_token_list_free(&l);
}

size_t sr_token_text(const sr_model *m, int32_t id, int show_control, char *out, size_t cap)
{
    if (!m || !m->tokenizer || id < 0 || id >= sr_tokenizer_vocab_size(m->tokenizer)) return 0;
    return sr_token_bytes(m->tokenizer, id, show_control, out, cap);
}

int sr_token_is_end(const sr_model *m, int32_t id)
{
    if (!m || !m->tokenizer || id < 0 || id >= sr_tokenizer_vocab_size(m->tokenizer)) return 0;
    return sr_tokenizer_is_end(m->tokenizer, id);
}

size_t sr_utf8_push(sr_utf8_hold *u, const void *bytes, size_t n, char *out)
{
    struct utf8_stream s = {.n_held = u->n_held};
    memcpy(s.held, u->held, sizeof(s.held));
    const size_t got = sr_utf8_stream_push(&s, bytes, n, out);
    u->n_held = s.n_held;
    memcpy(u->held, s.held, sizeof(s.held));
    return got;
}

size_t sr_utf8_finish(sr_utf8_hold *u, char *out)
{
    struct utf8_stream s = {.n_held = u->n_held};
    memcpy(s.held, u->held, sizeof(s.held));
    *u = (sr_utf8_hold){0};
    return sr_utf8_stream_finish(&s, out);
}

/* ---- chat ---- */

static sr_status choose_template(const struct sr_model *m, const char *name, enum chat_template *out, sr_error *err)
{
    if (name) return sr_chat_template_find(out, name, err);
    if (!m->chat_known) {
        struct gguf_str s;
        SR_TRY(sr_gguf_get_str(m->file, "tokenizer.chat_template", &s, NULL, err));
        return sr_chat_template_detect(out, s.data, s.bytes, err);
    }
    if (m->chat == CHAT_NONE)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: the file has no chat template; name one with --chat-template", m->path);
    *out = m->chat;
    return SR_OK;
}

static sr_status render(const struct sr_model *m, enum chat_template t, const struct chat_message *msgs, int32_t n_msgs,
                        int generation_prompt, struct token_list *l, sr_error *err)
{
    const struct chat_options o = {.add_generation_prompt = generation_prompt, .think = -1};
    struct chat_text text = {0};
    SR_TRY(sr_chat_render(&text, t, msgs, n_msgs, &o, err));
    const sr_status st = sr_chat_tokenize(&text, m->tokenizer, l, err);
    sr_chat_text_free(&text);
    if (st != SR_OK) return st;
    const int32_t bos = sr_tokenizer_bos(m->tokenizer); /* a template that prints it itself has it already */
    if (sr_tokenizer_adds_bos(m->tokenizer) && bos >= 0 && (l->n == 0 || l->ids[0] != bos)) return push_front(l, bos, err);
    return SR_OK;
}

sr_status sr_chat_tokens(const sr_model *m, const char *template_name, const sr_message *msgs, int32_t n_msgs,
                         int generation_prompt, int32_t **ids, int32_t *n, sr_error *err)
{
    static const enum chat_role roles[] = {CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT};
    if (!m || !msgs || n_msgs < 1 || !ids || !n) return sr_fail(err, SR_ERR_USAGE, "sr_chat_tokens: no messages");
    SR_TRY(need_tokenizer(m, err));
    enum chat_template t;
    SR_TRY(choose_template(m, template_name, &t, err));
    struct chat_message *copy = sr_alloc((size_t)n_msgs * sizeof(*copy));
    if (!copy) return sr_fail_memory(err, (size_t)n_msgs * sizeof(*copy), "chat messages");
    struct token_list l = {0};
    sr_status st = SR_OK;
    for (int32_t i = 0; i < n_msgs; i++) {
        if ((unsigned)msgs[i].role > SR_ROLE_ASSISTANT) {
            st = sr_fail(err, SR_ERR_USAGE, "message %d: role %d, want 0..2", i, (int)msgs[i].role);
            goto fail;
        }
        copy[i] = (struct chat_message){.role = roles[msgs[i].role], .text = msgs[i].text, .bytes = msgs[i].bytes};
    }
    SR_TRY_GOTO(render(m, t, copy, n_msgs, generation_prompt, &l, err));
    SR_TRY_GOTO(give(&l, ids, n, err));
    sr_free(copy);
    return SR_OK;
fail:
    sr_token_list_free(&l);
    sr_free(copy);
    return st;
}

sr_status sr_chat_template_check(const sr_model *m, const char *template_name, const char *const **stop_texts, sr_error *err)
{
    enum chat_template t;
    if (!m) return sr_fail(err, SR_ERR_USAGE, "sr_chat_template_check: no model");
    SR_TRY(choose_template(m, template_name, &t, err));
    if (stop_texts) *stop_texts = sr_chat_stop_texts(t);
    return SR_OK;
}
