/* SPDX-License-Identifier: Apache-2.0
 *
 * Conversations to tokens: which template, what it is shown, and whether its answers begin with thinking.
 */
#include "engine/model.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

sr_chat_options sr_chat_options_default(void)
{
    return (sr_chat_options){.generation_prompt = 1, .think = -1};
}

/* ---- the template ---- */

/* One that was opened for a call, or the model's. */
struct choice {
    const struct chat_template *use;
    struct chat_template *own;
};

static sr_status choose_template(const struct sr_model *m, const sr_chat_options *o, struct choice *c,
                                 sr_error *err)
{
    struct gguf_str s;
    *c = (struct choice){NULL, NULL};
    if (o->template_name || o->template_text) {
        SR_TRY(o->template_name ? sr_chat_template_open_name(&c->own, o->template_name, err)
                                : sr_chat_template_open(&c->own, o->template_text, o->template_bytes, err));
        c->use = c->own;
        return SR_OK;
    }
    c->use = m->chat;
    if (m->chat) return SR_OK;
    if (!m->has_chat)
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "%s: the file has no chat template; name one with --chat-template", m->path);
    /* It could not be used at open: the reason is found again. */
    SR_TRY(sr_gguf_get_str(m->file, "tokenizer.chat_template", &s, NULL, err));
    SR_TRY(sr_chat_template_open(&c->own, s.data, s.bytes, err));
    c->use = c->own;
    return SR_OK;
}

sr_status sr_chat_template_check(const sr_model *m, const sr_chat_options *o, const char *const **stop_texts,
                                 sr_error *err)
{
    const sr_chat_options plain = sr_chat_options_default();
    struct choice c;
    if (!m) return sr_fail(err, SR_ERR_USAGE, "sr_chat_template_check: no model");
    SR_TRY(choose_template(m, o ? o : &plain, &c, err));
    if (stop_texts) *stop_texts = sr_chat_stop_texts(c.use);
    sr_chat_template_close(c.own);
    return SR_OK;
}

/* ---- rendering ---- */

/* Text of a special token, "" without one. Tokens of templates are short. */
static void token_text(const struct sr_model *m, int32_t id, char out[64])
{
    size_t n = id >= 0 && m->tokenizer ? sr_token_bytes(m->tokenizer, id, 1, out, 63) : 0;
    out[n < 63 ? n : 0] = '\0';
}

static sr_status copy_messages(struct chat_message *to, const sr_message *from, int32_t n, sr_error *err)
{
    static const enum chat_role roles[] = {CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL};
    for (int32_t i = 0; i < n; i++) {
        const sr_message *f = &from[i];
        if ((unsigned)f->role > SR_ROLE_TOOL)
            return sr_fail(err, SR_ERR_USAGE, "message %d: role %d, want 0..3", i, (int)f->role);
        if (!f->text && f->bytes) return sr_fail(err, SR_ERR_USAGE, "message %d: its text is NULL", i);
        to[i] = (struct chat_message){.role = roles[f->role],
                                      .text = f->text ? f->text : "",
                                      .bytes = f->bytes,
                                      .reasoning = f->reasoning,
                                      .reasoning_bytes = f->reasoning_bytes,
                                      .tool_calls = f->tool_calls,
                                      .tool_call_id = f->tool_call_id,
                                      .name = f->name};
    }
    return SR_OK;
}

static sr_status render(const struct sr_model *m, const sr_chat_options *o, const struct choice *c,
                        const sr_message *msgs, int32_t n, struct chat_text *out, sr_error *err)
{
    char bos[64] = "", eos[64] = "";
    if (m->tokenizer) token_text(m, sr_tokenizer_bos(m->tokenizer), bos);
    if (m->tokenizer) token_text(m, sr_tokenizer_eos(m->tokenizer), eos);
    const struct chat_options how = {.add_generation_prompt = o->generation_prompt,
                                     .think = o->think,
                                     .tools = o->tools,
                                     .extra = o->variables,
                                     .bos = bos,
                                     .eos = eos,
                                     .now = (int64_t)time(NULL)};
    struct chat_message *copy = sr_alloc((size_t)n * sizeof(*copy));
    if (!copy) return sr_fail_memory(err, (size_t)n * sizeof(*copy), "chat messages");
    sr_status st = copy_messages(copy, msgs, n, err);
    if (st == SR_OK) st = sr_chat_render(out, c->use, copy, n, &how, err);
    sr_free(copy);
    return st;
}

sr_status sr_chat_string(const sr_model *m, const sr_chat_options *o, const sr_message *msgs, int32_t n_msgs,
                         char **text, size_t *bytes, sr_error *err)
{
    const sr_chat_options plain = sr_chat_options_default();
    struct chat_text out = {0};
    struct choice c;
    if (!m || !msgs || n_msgs < 1 || !text || !bytes)
        return sr_fail(err, SR_ERR_USAGE, "sr_chat_string: no messages");
    if (!o) o = &plain;
    SR_TRY(choose_template(m, o, &c, err));
    const sr_status st = render(m, o, &c, msgs, n_msgs, &out, err);
    sr_chat_template_close(c.own);
    if (st != SR_OK) return st;
    *text = out.text;
    *bytes = out.bytes;
    out.text = NULL;
    sr_chat_text_free(&out);
    return SR_OK;
}

void sr_chat_string_free(char *text)
{
    sr_free(text);
}

/* Puts id before what the list holds. */
static sr_status push_front(struct token_list *l, int32_t id, sr_error *err)
{
    SR_TRY(sr_token_list_push(l, id, err));
    memmove(l->ids + 1, l->ids, (size_t)(l->n - 1) * sizeof(*l->ids));
    l->ids[0] = id;
    return SR_OK;
}

static sr_status tokens(const struct sr_model *m, const struct chat_text *text, const struct choice *c,
                        struct token_list *l, sr_error *err)
{
    SR_TRY(sr_chat_tokenize(text, c->use, m->tokenizer, l, err));
    const int32_t bos = sr_tokenizer_bos(m->tokenizer); /* a template that prints it itself has it already */
    if (sr_tokenizer_adds_bos(m->tokenizer) && bos >= 0 && (l->n == 0 || l->ids[0] != bos))
        return push_front(l, bos, err);
    return SR_OK;
}

sr_status sr_chat_tokens(const sr_model *m, const sr_chat_options *o, const sr_message *msgs, int32_t n_msgs,
                         int32_t **ids, int32_t *n, sr_error *err)
{
    const sr_chat_options plain = sr_chat_options_default();
    struct chat_text text = {0};
    struct token_list l = {0};
    struct choice c;
    sr_status st = SR_OK;
    if (!m || !msgs || n_msgs < 1 || !ids || !n)
        return sr_fail(err, SR_ERR_USAGE, "sr_chat_tokens: no messages");
    if (!o) o = &plain;
    SR_TRY(sr_model_need_tokenizer(m, err));
    SR_TRY(choose_template(m, o, &c, err));
    SR_TRY_GOTO(render(m, o, &c, msgs, n_msgs, &text, err));
    SR_TRY_GOTO(tokens(m, &text, &c, &l, err));
    SR_TRY_GOTO(sr_tokens_give(&l, ids, n, err));
    l = (struct token_list){0};
fail:
    sr_token_list_free(&l);
    sr_chat_text_free(&text);
    sr_chat_template_close(c.own);
    return st;
}

/* ---- thinking ---- */

sr_thinks sr_chat_thinks(const sr_model *m, const sr_chat_options *o)
{
    const sr_chat_options plain = sr_chat_options_default();
    struct choice c;
    if (!m || !m->tokenizer || sr_tokenizer_find(m->tokenizer, "<think>", 7) < 0 ||
        sr_tokenizer_find(m->tokenizer, "</think>", 8) < 0)
        return SR_THINKS_NEVER;
    if (choose_template(m, o ? o : &plain, &c, NULL) != SR_OK) return SR_THINKS_NEVER;
    const sr_thinks t = sr_chat_template_has_think(c.use)      ? SR_THINKS_CHOICE
                        : sr_chat_template_writes_think(c.use) ? SR_THINKS_ALWAYS
                                                               : SR_THINKS_NEVER;
    sr_chat_template_close(c.own);
    return t;
}

static int is_word_edge(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* The last switch of one text, or -1. */
static int switch_of(const char *s, size_t n)
{
    static const char *const words[] = {"/no_think", "/think"};
    int found = -1;
    for (size_t i = 0; i < n; i++)
        for (int k = 0; s[i] == '/' && k < 2; k++) {
            const size_t len = strlen(words[k]);
            if (n - i < len || memcmp(s + i, words[k], len) != 0) continue;
            if ((i == 0 || is_word_edge(s[i - 1])) && (i + len == n || is_word_edge(s[i + len]))) found = k;
        }
    return found;
}

int sr_chat_soft_switch(const sr_message *msgs, int32_t n_msgs)
{
    for (int32_t i = n_msgs - 1; i >= 0; i--) {
        if (msgs[i].role != SR_ROLE_USER && msgs[i].role != SR_ROLE_SYSTEM) continue;
        const int found = msgs[i].text ? switch_of(msgs[i].text, msgs[i].bytes) : -1;
        if (found >= 0) return found;
    }
    return -1;
}

/* ---- sampling ---- */

static int is_qwen3(const sr_model *m)
{
    return strcmp(m->architecture, "qwen3") == 0 || strcmp(m->architecture, "qwen3moe") == 0;
}

/* What the file recommends under this name, where the sampler would take it. */
static int file_advice(const sr_model *m, const char *name, double lo, double hi, float *out)
{
    char key[48];
    double v = 0;
    int found = 0;
    snprintf(key, sizeof key, "general.sampling.%s", name);
    if (sr_gguf_get_float(m->file, key, &v, &found, NULL) != SR_OK || !found || !(v >= lo && v <= hi)) return 0;
    *out = (float)v;
    return 1;
}

/* The keys of newer GGUF files, which a folder's generation_config.json is read into. */
static int take_file_advice(const sr_model *m, sr_sampler_options *o)
{
    int64_t k = 0;
    int known = 0;
    known |= file_advice(m, "temp", 0, 100, &o->temperature);
    known |= file_advice(m, "top_p", 0, 1, &o->top_p);
    known |= file_advice(m, "min_p", 0, 1, &o->min_p);
    known |= file_advice(m, "penalty_repeat", 1e-3, 1e3, &o->repeat_penalty);
    int has_k = 0;
    if (sr_gguf_get_int(m->file, "general.sampling.top_k", 0, INT32_MAX, &k, &has_k, NULL) != SR_OK || !has_k) return known;
    o->top_k = (int32_t)k;
    return 1;
}

int sr_sampler_advice(const sr_model *m, int thinking, sr_sampler_options *o)
{
    if (!m) return 0;
    if (!is_qwen3(m)) return take_file_advice(m, o);
    /* Qwen3's authors tuned these with the temperature applied first. */
    o->temperature = thinking ? 0.6f : 0.7f;
    o->top_p = thinking ? 0.95f : 0.8f;
    o->top_k = 20;
    o->min_p = 0;
    o->order = "penalties;temperature;top_k;top_p;min_p";
    /* A model that can do both has its thinking advice in its file. */
    if (thinking || sr_chat_thinks(m, NULL) != SR_THINKS_CHOICE) take_file_advice(m, o);
    return 1;
}
