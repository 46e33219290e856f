/* SPDX-License-Identifier: Apache-2.0
 *
 * Rendering. Each function below does what the published template of its family does for system, user and
 * assistant messages without tools; strip and newline rules are theirs, white space included.
 */
#include "text/chat.h"

#include <string.h>

#include "base/memory.h"
#include "text/chat_draft.h"
#include "text/chat_sentences.h"
#include "text/tokenizer_parts.h"

struct conversation {
    const struct chat_message *m;
    int32_t n;
    const struct chat_options *o;
};

static const char *role_name(enum chat_role r)
{
    return r == CHAT_SYSTEM ? "system" : r == CHAT_USER ? "user" : "assistant";
}

static struct chat_slice content_of(const struct chat_message *m)
{
    return (struct chat_slice){m->text, m->bytes};
}
static void put(struct chat_draft *d, const char *text)
{
    sr_chat_draft_fixed(d, text);
}
static void put_user(struct chat_draft *d, struct chat_slice x)
{
    sr_chat_draft_user(d, x.s, x.n);
}

static void refuse(struct chat_draft *d, enum chat_template t, int32_t i, const char *why)
{
    if (d->status == SR_OK)
        d->status = sr_fail(d->err, SR_ERR_USAGE, "chat template %s: message %d: %s",
                            sr_chat_template_name(t), i, why);
}

/* ---- ChatML ---- */

static void chatml_open(struct chat_draft *d, enum chat_role r)
{
    put(d, "<|im_start|>");
    put(d, role_name(r));
    put(d, "\n");
}

static void chatml(struct chat_draft *d, const struct conversation *c, const char *default_system)
{
    if (default_system && c->m[0].role != CHAT_SYSTEM) {
        chatml_open(d, CHAT_SYSTEM);
        put(d, default_system);
        put(d, "<|im_end|>\n");
    }
    for (int32_t i = 0; i < c->n; i++) {
        chatml_open(d, c->m[i].role);
        put_user(d, content_of(&c->m[i]));
        put(d, "<|im_end|>\n");
    }
    if (c->o->add_generation_prompt) chatml_open(d, CHAT_ASSISTANT);
}

/* ---- Qwen3 ---- */

static int begins_with(struct chat_slice x, const char *s)
{
    return x.n >= strlen(s) && memcmp(x.s, s, strlen(s)) == 0;
}

static int ends_with(struct chat_slice x, const char *s)
{
    return x.n >= strlen(s) && memcmp(x.s + x.n - strlen(s), s, strlen(s)) == 0;
}

/* Index of the last message in which a person asks something; tool results in the user role do not count. */
static int32_t last_question(const struct conversation *c)
{
    for (int32_t i = c->n - 1; i >= 0; i--) {
        struct chat_slice x = content_of(&c->m[i]);
        if (c->m[i].role == CHAT_USER &&
            !(begins_with(x, "<tool_response>") && ends_with(x, "</tool_response>")))
            return i;
    }
    return c->n - 1;
}

/* An answer: thinking is dropped from turns before the last question and kept after it. */
static void qwen3_answer(struct chat_draft *d, const struct conversation *c, int32_t i, int32_t question)
{
    struct chat_slice whole = content_of(&c->m[i]), answer = whole, thoughts = {NULL, 0};

    if (whole.n > 0 && memmem(whole.s, whole.n, "</think>", 8)) {
        answer = sr_chat_lstrip_newlines(sr_chat_after_last(whole, "</think>"));
        thoughts = sr_chat_rstrip_newlines(sr_chat_before(whole, "</think>"));
        thoughts = sr_chat_lstrip_newlines(sr_chat_after_last(thoughts, "<think>"));
    }
    if (i > question && (i == c->n - 1 || thoughts.n > 0)) {
        put(d, "<think>\n");
        put_user(d, sr_chat_rstrip_newlines(thoughts));
        put(d, "\n</think>\n\n");
        answer = sr_chat_lstrip_newlines(answer);
    }
    put_user(d, answer);
}

static void qwen3(struct chat_draft *d, const struct conversation *c)
{
    int32_t question = last_question(c);

    for (int32_t i = 0; i < c->n; i++) {
        chatml_open(d, c->m[i].role);
        if (c->m[i].role == CHAT_ASSISTANT)
            qwen3_answer(d, c, i, question);
        else
            put_user(d, content_of(&c->m[i]));
        put(d, "<|im_end|>\n");
    }
    if (!c->o->add_generation_prompt) return;
    chatml_open(d, CHAT_ASSISTANT);
    if (c->o->think == 0) put(d, "<think>\n\n</think>\n\n");
}

/* ---- Llama ---- */

/* Turns after an optional system message must be user, assistant, user ... */
static int alternates(struct chat_draft *d, const struct conversation *c, enum chat_template t, int32_t first)
{
    for (int32_t i = first; i < c->n; i++) {
        enum chat_role want = (i - first) % 2 == 0 ? CHAT_USER : CHAT_ASSISTANT;
        if (c->m[i].role == want) continue;
        refuse(d, t, i,
               c->m[i].role == CHAT_SYSTEM ? "a system message can only come first"
                                           : "roles must alternate user, assistant, user, ...");
        return 0;
    }
    if (first == c->n) refuse(d, t, c->n, "a user message is needed");
    return first < c->n;
}

/* The first question carries the system text, and the pair is stripped as one string: an empty question takes
 * the empty lines after the system text with it. */
static void llama2_system(struct chat_draft *d, struct chat_slice system, int has_question)
{
    put(d, "<<SYS>>\n");
    put_user(d, system);
    put(d, has_question ? "\n<</SYS>>\n\n" : "\n<</SYS>>");
}

static void llama2(struct chat_draft *d, const struct conversation *c)
{
    int32_t first = c->m[0].role == CHAT_SYSTEM;

    if (!alternates(d, c, CHAT_LLAMA2, first)) return;
    for (int32_t i = first; i < c->n; i++) {
        struct chat_slice x = sr_chat_strip(content_of(&c->m[i]));
        if (c->m[i].role == CHAT_USER) {
            put(d, "<s>[INST] ");
            if (first && i == first) {
                x = sr_chat_rstrip(content_of(&c->m[i]));
                llama2_system(d, content_of(&c->m[0]), x.n > 0);
            }
            put_user(d, x);
            put(d, " [/INST]");
        } else {
            put(d, " ");
            put_user(d, x);
            put(d, " </s>");
        }
    }
}

static void llama3_open(struct chat_draft *d, const char *role)
{
    put(d, "<|start_header_id|>");
    put(d, role);
    put(d, "<|end_header_id|>\n\n");
}

static void llama3_turns(struct chat_draft *d, const struct conversation *c, int32_t first)
{
    for (int32_t i = first; i < c->n; i++) {
        llama3_open(d, role_name(c->m[i].role));
        put_user(d, sr_chat_strip(content_of(&c->m[i])));
        put(d, "<|eot_id|>");
    }
    if (c->o->add_generation_prompt) llama3_open(d, "assistant");
}

static void llama31(struct chat_draft *d, const struct conversation *c)
{
    int32_t first = c->m[0].role == CHAT_SYSTEM;
    const char *date = c->o->date ? c->o->date : SR_CHAT_LLAMA31_DATE;

    put(d, "<|begin_of_text|>");
    llama3_open(d, "system");
    put(d, SR_CHAT_LLAMA31_CUTOFF "Today Date: ");
    sr_chat_draft_user(d, date, strlen(date));
    put(d, "\n\n");
    if (first) put_user(d, sr_chat_strip(content_of(&c->m[0])));
    put(d, "<|eot_id|>");
    llama3_turns(d, c, first);
}

/* ---- Vicuna, Zephyr ---- */

static void vicuna(struct chat_draft *d, const struct conversation *c)
{
    int32_t first = c->m[0].role == CHAT_SYSTEM;
    int has_system = !first || c->m[0].bytes > 0;

    if (!alternates(d, c, CHAT_VICUNA, first)) return;
    if (first)
        put_user(d, content_of(&c->m[0]));
    else
        put(d, SR_CHAT_VICUNA_SYSTEM);
    for (int32_t i = first; i < c->n; i++) {
        if (c->m[i].role == CHAT_USER) {
            put(d, i == first && has_system ? " USER: " : "USER: ");
            put_user(d, content_of(&c->m[i]));
        } else {
            put(d, " ASSISTANT: ");
            put_user(d, content_of(&c->m[i]));
            put(d, "</s>");
        }
    }
    if (c->o->add_generation_prompt) put(d, c->m[c->n - 1].role == CHAT_USER ? " ASSISTANT:" : "ASSISTANT:");
}

static void zephyr(struct chat_draft *d, const struct conversation *c)
{
    for (int32_t i = 0; i < c->n; i++) {
        put(d, "<|");
        put(d, role_name(c->m[i].role));
        put(d, "|>\n");
        put_user(d, content_of(&c->m[i]));
        put(d, "</s>\n");
    }
    if (c->o->add_generation_prompt) put(d, "<|assistant|>\n");
}

/* ---- entry points ---- */

static void render(struct chat_draft *d, const struct conversation *c, enum chat_template t)
{
    switch (t) {
    case CHAT_NONE:
        d->status = sr_fail(d->err, SR_ERR_USAGE,
                            "the model declares no chat template; name one with --chat-template");
        break;
    case CHAT_CHATML: chatml(d, c, NULL); break;
    case CHAT_SMOLLM2: chatml(d, c, SR_CHAT_SMOLLM2_SYSTEM); break;
    case CHAT_QWEN25: chatml(d, c, SR_CHAT_QWEN25_SYSTEM); break;
    case CHAT_QWEN3: qwen3(d, c); break;
    case CHAT_LLAMA2: llama2(d, c); break;
    case CHAT_LLAMA3:
        put(d, "<|begin_of_text|>");
        llama3_turns(d, c, 0);
        break;
    case CHAT_LLAMA31: llama31(d, c); break;
    case CHAT_VICUNA: vicuna(d, c); break;
    case CHAT_ZEPHYR: zephyr(d, c); break;
    }
}

sr_status sr_chat_render(struct chat_text *out, enum chat_template t, const struct chat_message *m, int32_t n,
                         const struct chat_options *o, sr_error *err)
{
    struct conversation c = {m, n, o};
    struct chat_draft d = {.err = err};

    if (n < 1) return sr_fail(err, SR_ERR_USAGE, "chat: no message");
    render(&d, &c, t);
    SR_TRY(sr_chat_draft_finish(&d, out));
    out->of = t;
    return SR_OK;
}

void sr_chat_text_free(struct chat_text *c)
{
    sr_free(c->text);
    sr_free(c->pieces);
    *c = (struct chat_text){0};
}

/* Without these as tokens a model of the family would read its own turn marks as words. ChatML is also used
 * over vocabularies that lack its marks, as plain text, so it asks for none. */
static const char *const *needed_tokens(enum chat_template t)
{
    static const char *const none[] = {NULL}, *const sp_end[] = {"</s>", NULL},
                             *const sp_both[] = {"<s>", "</s>", NULL};
    static const char *const llama3[] = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                         "<|eot_id|>", NULL};

    if (t == CHAT_LLAMA2) return sp_both;
    if (t == CHAT_VICUNA || t == CHAT_ZEPHYR) return sp_end;
    return t == CHAT_LLAMA3 || t == CHAT_LLAMA31 ? llama3 : none;
}

sr_status sr_chat_tokenize(const struct chat_text *c, const struct tokenizer *t, struct token_list *out,
                           sr_error *err)
{
    struct text_part *parts;
    sr_status st;

    for (const char *const *need = needed_tokens(c->of); *need; need++)
        if (sr_tokenizer_find(t, *need, strlen(*need)) < 0)
            return sr_fail(err, SR_ERR_UNSUPPORTED, "chat template %s: the vocabulary has no token %s",
                           sr_chat_template_name(c->of), *need);
    parts = sr_alloc((size_t)c->n_pieces * sizeof *parts);
    if (!parts) return sr_fail_memory(err, (size_t)c->n_pieces * sizeof *parts, "chat pieces");
    for (int32_t i = 0; i < c->n_pieces; i++)
        parts[i] =
            (struct text_part){c->pieces[i].bytes, c->pieces[i].from_user ? SPECIAL_AS_TEXT : SPECIAL_PARSE};
    st = sr_tokenize_parts(t, c->text, parts, c->n_pieces, out, err);
    sr_free(parts);
    return st;
}

const char *const *sr_chat_stop_texts(enum chat_template t)
{
    static const char *const none[] = {NULL}, *const vicuna_stops[] = {"USER:", NULL};

    return t == CHAT_VICUNA ? vicuna_stops : none;
}
