/* SPDX-License-Identifier: Apache-2.0
 *
 * Templates, and rendering and tokenizing with them. What the program sees is what transformers shows it:
 * messages, tools, add_generation_prompt, bos_token, eos_token, and the caller's own variables.
 */
#include "text/chat.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "text/chat_builtin.h"
#include "text/jinja.h"
#include "text/jinja_eval.h"
#include "text/tokenizer_parts.h"

struct chat_template {
    struct jinja *program;
    const struct chat_builtin *ours; /* NULL: of a file */
};

/* ---- templates ---- */

static sr_status open_template(struct chat_template **out, const char *program, size_t bytes,
                               const struct chat_builtin *ours, sr_error *err)
{
    struct chat_template *t = sr_alloc_zero(1, sizeof *t);
    sr_status st;

    *out = NULL;
    if (!t) return sr_fail_memory(err, sizeof *t, "chat template");
    t->ours = ours;
    st = sr_jinja_open(&t->program, program, bytes, err);
    if (st == SR_OK)
        *out = t;
    else
        sr_free(t);
    return st;
}

sr_status sr_chat_template_open(struct chat_template **out, const char *program, size_t bytes, sr_error *err)
{
    return open_template(out, program, bytes, NULL, err);
}

const char *sr_chat_template_known(int i)
{
    return sr_chat_builtins[i].name;
}

sr_status sr_chat_template_open_name(struct chat_template **out, const char *name, sr_error *err)
{
    char shown[40], known[160] = "";
    size_t at = 0;

    *out = NULL;
    for (const struct chat_builtin *b = sr_chat_builtins; b->name; b++) {
        if (strcmp(b->name, name) == 0) return open_template(out, b->program, strlen(b->program), b, err);
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", b->name);
    }
    sr_escape(shown, sizeof shown, name, strlen(name));
    return sr_fail(err, SR_ERR_USAGE, "chat template \"%s\" is not known; known: %s", shown, known);
}

void sr_chat_template_close(struct chat_template *t)
{
    if (!t) return;
    sr_jinja_close(t->program);
    sr_free(t);
}

const char *sr_chat_template_name(const struct chat_template *t)
{
    return t->ours ? t->ours->name : "jinja";
}

int sr_chat_template_has_think(const struct chat_template *t)
{
    return sr_jinja_mentions(t->program, "enable_thinking");
}

int sr_chat_template_writes_think(const struct chat_template *t)
{
    return sr_jinja_writes(t->program, "<think>") || sr_jinja_writes(t->program, "</think>");
}

const char *const *sr_chat_stop_texts(const struct chat_template *t)
{
    static const char *const none[] = {NULL}, *const vicuna[] = {"USER:", NULL};

    return sr_jinja_writes(t->program, "USER: ") && sr_jinja_writes(t->program, "ASSISTANT:") ? vicuna : none;
}

/* ---- what the program sees ---- */

static void put(struct jrun *r, struct jval *dict, const char *key, struct jval v)
{
    sr_jinja_put(r, dict, sr_jinja_text(key), v);
}

/* Clients send arguments as JSON text; templates expect what it says. Text that is no JSON object stays text.
 */
static void open_arguments(struct jrun *r, struct jval *call)
{
    struct jval *function = call->kind == JINJA_DICT
                                ? (struct jval *)sr_jinja_find_text(call->u.dict, "function", 8)
                                : NULL,
                *arguments, v;
    sr_error ignored;

    if (!function || function->kind != JINJA_DICT) return;
    arguments = (struct jval *)sr_jinja_find_text(function->u.dict, "arguments", 9);
    if (!arguments || arguments->kind != JINJA_STRING || r->status != SR_OK) return;
    sr_error *err = r->err;
    r->err = &ignored;
    v = sr_jinja_load(r, "arguments", arguments->u.s.p, arguments->u.s.n);
    r->err = err;
    if (r->status == SR_ERR_USAGE)
        r->status = SR_OK;
    else if (r->status == SR_OK && v.kind == JINJA_DICT)
        *arguments = v;
    else if (r->status != SR_OK && err)
        *err = ignored;
}

static void put_tool_calls(struct jrun *r, struct jval *message, const char *json, int32_t i)
{
    char what[48];
    struct jval calls;

    snprintf(what, sizeof what, "message %d: tool_calls", (int)i);
    calls = sr_jinja_load(r, what, json, strlen(json));
    if (r->status != SR_OK) return;
    if (calls.kind != JINJA_LIST) {
        r->status = sr_fail(r->err, SR_ERR_USAGE, "%s: not a JSON array", what);
        return;
    }
    for (size_t k = 0; k < calls.u.list->n; k++) open_arguments(r, &calls.u.list->v[k]);
    put(r, message, "tool_calls", calls);
}

static struct jval message_value(struct jrun *r, const struct chat_message *m, int32_t i)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    struct jval v = sr_jinja_dict(r, JINJA_DICT, 4);

    if (r->status != SR_OK) return v;
    put(r, &v, "role", sr_jinja_text(roles[m->role]));
    put(r, &v, "content", sr_jinja_string(m->text, m->bytes, 1));
    if (m->reasoning) put(r, &v, "reasoning_content", sr_jinja_string(m->reasoning, m->reasoning_bytes, 1));
    if (m->tool_call_id)
        put(r, &v, "tool_call_id", sr_jinja_string(m->tool_call_id, strlen(m->tool_call_id), 1));
    if (m->name) put(r, &v, "name", sr_jinja_string(m->name, strlen(m->name), 1));
    if (m->tool_calls && r->status == SR_OK) put_tool_calls(r, &v, m->tool_calls, i);
    return v;
}

static void set_tools(struct jrun *r, const char *json)
{
    struct jval tools = sr_jinja_none();

    if (json) tools = sr_jinja_load(r, "tools", json, strlen(json));
    if (r->status == SR_OK && json && tools.kind != JINJA_LIST)
        r->status = sr_fail(r->err, SR_ERR_USAGE, "tools: not a JSON array");
    if (r->status == SR_OK && tools.kind == JINJA_LIST && tools.u.list->n == 0) tools = sr_jinja_none();
    sr_jinja_set(r, "tools", tools);
}

/* The caller's own variables. Those that carry the conversation are not to be replaced (row HT14). */
static void set_extra(struct jrun *r, const char *json)
{
    static const char *const ours[] = {"messages",     "tools",     "add_generation_prompt",
                                       "bos_token",    "eos_token", "raise_exception",
                                       "strftime_now", "range",     "namespace",
                                       "dict",         NULL};
    struct jval all;

    if (!json || r->status != SR_OK) return;
    all = sr_jinja_load(r, "chat template variables", json, strlen(json));
    if (r->status == SR_OK && all.kind != JINJA_DICT)
        r->status = sr_fail(r->err, SR_ERR_USAGE, "chat template variables: not a JSON object");
    for (size_t i = 0; r->status == SR_OK && i < all.u.dict->n; i++) {
        const struct jstr *name = &all.u.dict->v[i].key.u.s;
        for (const char *const *o = ours; *o; o++)
            if (strlen(*o) == name->n && memcmp(*o, name->p, name->n) == 0)
                r->status =
                    sr_fail(r->err, SR_ERR_USAGE, "chat template variables: \"%s\" cannot be set", *o);
        sr_jinja_assign(r, r->root, *name, all.u.dict->v[i].value);
    }
}

static size_t input_bytes(const struct chat_message *m, int32_t n, const struct chat_options *o)
{
    size_t bytes = (o->tools ? strlen(o->tools) : 0) + (o->extra ? strlen(o->extra) : 0);

    for (int32_t i = 0; i < n; i++)
        bytes += 256 + m[i].bytes + m[i].reasoning_bytes + (m[i].tool_calls ? strlen(m[i].tool_calls) : 0);
    return bytes;
}

static void set_variables(struct jrun *r, const struct chat_message *m, int32_t n,
                          const struct chat_options *o)
{
    struct jval messages = sr_jinja_list(r, JINJA_LIST, (size_t)n);

    for (int32_t i = 0; i < n && r->status == SR_OK; i++)
        sr_jinja_push(r, &messages, message_value(r, &m[i], i));
    sr_jinja_set(r, "messages", messages);
    set_tools(r, o->tools);
    sr_jinja_set(r, "add_generation_prompt", sr_jinja_bool(o->add_generation_prompt));
    sr_jinja_set(r, "bos_token", sr_jinja_text(o->bos ? o->bos : ""));
    sr_jinja_set(r, "eos_token", sr_jinja_text(o->eos ? o->eos : ""));
    set_extra(r, o->extra);
    if (o->think >= 0) sr_jinja_set(r, "enable_thinking", sr_jinja_bool(o->think));
    r->now = o->now;
}

/* ---- rendering ---- */

/* Copies the text out of the run and cuts it where the origin changes. */
static sr_status take_text(struct chat_text *out, const struct jval *v, sr_error *err)
{
    const struct jstr *s = &v->u.s;
    int32_t n = s->n > 0;
    size_t begin = 0;

    for (size_t i = 1; s->from && i < s->n; i++) n += s->from[i] != s->from[i - 1];
    *out = (struct chat_text){
        .text = sr_alloc(s->n + 1), .bytes = s->n, .pieces = sr_alloc((size_t)n * sizeof *out->pieces)};
    if (!out->text || !out->pieces) {
        sr_chat_text_free(out);
        return sr_fail_memory(err, s->n + (size_t)n * sizeof *out->pieces, "chat text");
    }
    memcpy(out->text, s->p, s->n);
    out->text[s->n] = 0;
    for (size_t i = 1; i <= s->n; i++) {
        if (i < s->n && (!s->from || s->from[i] == s->from[i - 1])) continue;
        out->pieces[out->n_pieces++] =
            (struct chat_piece){out->text + begin, i - begin, s->from ? s->from[begin] : v->user};
        begin = i;
    }
    return SR_OK;
}

sr_status sr_chat_render(struct chat_text *out, const struct chat_template *t, const struct chat_message *m,
                         int32_t n, const struct chat_options *o, sr_error *err)
{
    struct jrun r;
    struct jval text;
    sr_status st;

    if (n < 1) return sr_fail(err, SR_ERR_USAGE, "chat: no message");
    st = sr_jinja_begin(&r, input_bytes(m, n, o), err);
    if (st == SR_OK) {
        set_variables(&r, m, n, o);
        st = sr_jinja_run(&r, t->program, &text);
    }
    if (st == SR_OK) st = take_text(out, &text, err);
    sr_jinja_run_free(&r);
    return st;
}

void sr_chat_text_free(struct chat_text *c)
{
    sr_free(c->text);
    sr_free(c->pieces);
    *c = (struct chat_text){0};
}

sr_status sr_chat_tokenize(const struct chat_text *c, const struct chat_template *by,
                           const struct tokenizer *t, struct token_list *out, sr_error *err)
{
    struct text_part *parts;
    sr_status st;

    for (const char *const *need = by->ours ? by->ours->needs : NULL; need && *need; need++)
        if (sr_tokenizer_find(t, *need, strlen(*need)) < 0)
            return sr_fail(err, SR_ERR_UNSUPPORTED, "chat template %s: the vocabulary has no token %s",
                           by->ours->name, *need);
    parts = sr_alloc((size_t)c->n_pieces * sizeof *parts);
    if (!parts) return sr_fail_memory(err, (size_t)c->n_pieces * sizeof *parts, "chat pieces");
    for (int32_t i = 0; i < c->n_pieces; i++)
        parts[i] =
            (struct text_part){c->pieces[i].bytes, c->pieces[i].from_user ? SPECIAL_AS_TEXT : SPECIAL_PARSE};
    st = sr_tokenize_parts(t, c->text, parts, c->n_pieces, out, err);
    sr_free(parts);
    return st;
}
