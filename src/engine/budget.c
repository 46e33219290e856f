/* SPDX-License-Identifier: Apache-2.0
 *
 * Thinking with a budget. A state machine over the tokens of one answer: before the block, inside it, forcing
 * its end, after it. The tokens that end a block early are fed like any other: the model then answers from
 * what it has thought.
 */
#include "engine/model.h"

#include "base/memory.h"
#include "text/utf8.h"

#include <string.h>

/* Qwen's own code ends a block with these words; they were not trained for it. */
#define EARLY_END                                                                                            \
    "Considering the limited time by the user, I have to give the solution based on the thinking directly "  \
    "now.\n"

enum state { BEFORE, INSIDE, FORCING, AFTER };

struct sr_thinking {
    const struct sr_model *model;
    int32_t open, close; /* ids of <think> and </think> */
    int32_t budget;
    struct token_list ending; /* fed when the budget is used up, </think> included */
    int32_t n_forced;         /* of them */
    enum state state;
    struct utf8_stream letters;
    sr_thinking_counts counts;
};

sr_thinking_options sr_thinking_options_default(void)
{
    return (sr_thinking_options){.budget = -1};
}

/* A budget of 0 gives the empty block that the template writes when thinking is off. */
static sr_status make_ending(struct sr_thinking *t, const sr_thinking_options *o, sr_error *err)
{
    const struct tokenizer *tk = t->model->tokenizer;
    const char *message = o->message ? o->message : EARLY_END;
    static const char before[] = "\n\n", after[] = "</think>\n\n";
    SR_TRY(sr_tokenizer_encode(tk, before, 2, SPECIAL_PARSE, &t->ending, err));
    if (o->budget == 0 && !o->message)
        return sr_tokenizer_encode(tk, after, sizeof(after) - 1, SPECIAL_PARSE, &t->ending, err);
    t->ending.n = 0; /* as one text: a tokenizer may join its parts */
    const size_t n = strlen(message), total = 2 + n + sizeof(after) - 1;
    char *text = sr_alloc(total);
    if (!text) return sr_fail_memory(err, total, "the end of thinking");
    memcpy(text, before, 2);
    memcpy(text + 2, message, n);
    memcpy(text + 2 + n, after, sizeof(after) - 1);
    const sr_status st = sr_tokenizer_encode(tk, text, total, SPECIAL_PARSE, &t->ending, err);
    sr_free(text);
    return st;
}

sr_status sr_thinking_new(sr_thinking **out, const sr_model *m, const sr_thinking_options *o, sr_error *err)
{
    const sr_thinking_options plain = sr_thinking_options_default();
    if (!out || !m) return sr_fail(err, SR_ERR_USAGE, "sr_thinking_new: an argument is NULL");
    if (!o) o = &plain;
    if (o->budget < -1) return sr_fail(err, SR_ERR_USAGE, "thinking budget: %d, want -1 or more", o->budget);
    SR_TRY(sr_model_need_tokenizer(m, err));
    const int32_t open = sr_tokenizer_find(m->tokenizer, "<think>", 7),
                  close = sr_tokenizer_find(m->tokenizer, "</think>", 8);
    if (open < 0 || close < 0)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: the vocabulary has no tokens <think> and </think>",
                       m->path);
    sr_thinking *t = sr_alloc_zero(1, sizeof(*t));
    if (!t) return sr_fail_memory(err, sizeof(*t), "thinking");
    *t = (sr_thinking){.model = m, .open = open, .close = close, .budget = o->budget};
    const sr_status st = make_ending(t, o, err);
    if (st != SR_OK) {
        sr_thinking_free(t);
        return st;
    }
    *out = t;
    return SR_OK;
}

void sr_thinking_free(sr_thinking *t)
{
    if (!t) return;
    sr_token_list_free(&t->ending);
    sr_free(t);
}

/* Whether the budget ends the block now: not in the middle of a character. */
static void check_budget(struct sr_thinking *t)
{
    if (t->state != INSIDE || t->budget < 0 || t->counts.thinking < t->budget || t->letters.n_held > 0)
        return;
    t->state = FORCING;
    t->n_forced = 0;
    t->counts.ended_by_budget = 1;
}

static void enter_block(struct sr_thinking *t)
{
    t->state = INSIDE;
    t->letters = (struct utf8_stream){.n_held = 0};
    check_budget(t);
}

void sr_thinking_begin(sr_thinking *t, const int32_t *prompt, int32_t n)
{
    t->counts = (sr_thinking_counts){0};
    t->state = BEFORE;
    t->n_forced = 0;
    /* Only the turn that is open counts: marks of earlier turns are in front of the last end token. */
    for (int32_t i = n - 1;
         i >= 0 && t->state == BEFORE && !sr_tokenizer_is_end(t->model->tokenizer, prompt[i]); i--) {
        if (prompt[i] == t->open) enter_block(t);
        if (prompt[i] == t->close) t->state = AFTER;
    }
}

int32_t sr_thinking_forced(const sr_thinking *t)
{
    return t->state == FORCING && t->n_forced < t->ending.n ? t->ending.ids[t->n_forced] : -1;
}

/* A token of the ending; behind the last one the answer begins. */
static sr_part push_forced(struct sr_thinking *t, int32_t id)
{
    t->counts.forced++;
    t->n_forced++;
    int closed = 0;
    for (int32_t i = 0; i < t->n_forced && i < t->ending.n; i++) closed |= t->ending.ids[i] == t->close;
    if (t->n_forced >= t->ending.n) t->state = AFTER;
    return closed || id == t->close ? SR_PART_MARK : SR_PART_THOUGHT;
}

/* Letters of a token, to know whether a character is unfinished. Long tokens end one. */
static void follow_letters(struct sr_thinking *t, int32_t id)
{
    char bytes[64], out[3 * 68];
    const size_t n = sr_token_bytes(t->model->tokenizer, id, 0, bytes, sizeof(bytes));
    if (n <= sizeof(bytes))
        sr_utf8_stream_push(&t->letters, bytes, n, out);
    else
        t->letters.n_held = 0;
}

sr_part sr_thinking_push(sr_thinking *t, int32_t id)
{
    if (t->state == FORCING) return push_forced(t, id);
    if (id == t->open && t->state == BEFORE) {
        enter_block(t);
        return SR_PART_MARK;
    }
    if (id == t->close && t->state == INSIDE) {
        t->state = AFTER;
        return SR_PART_MARK;
    }
    if (t->state == INSIDE) {
        t->counts.thinking++;
        follow_letters(t, id);
        check_budget(t);
        return SR_PART_THOUGHT;
    }
    t->counts.answer++;
    return SR_PART_ANSWER;
}

void sr_thinking_get_counts(const sr_thinking *t, sr_thinking_counts *out)
{
    *out = t->counts;
    out->is_open = t->state == INSIDE || t->state == FORCING;
}
