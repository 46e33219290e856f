/* SPDX-License-Identifier: Apache-2.0
 *
 * Thoughts are dimmed on a terminal and not written to a pipe: standard output holds the answer.
 */
#include "talk_think.h"
#include "diag.h"

#include <string.h>
#include <unistd.h>

static const char *why_not(sr_thinks thinks)
{
    return thinks == SR_THINKS_NEVER
               ? "the model does not think: its vocabulary has no <think>, or its template does not know it"
               : "the template cannot turn thinking off; --think-budget 0 ends it at once";
}

sr_status sr_talk_think_open(struct talk *t, sr_error *err)
{
    const struct options *o = t->o;
    sr_thinking_options how = sr_thinking_options_default();
    t->thinks = sr_chat_thinks(t->model, &t->chat);
    if ((o->think == CHOICE_ON && t->thinks == SR_THINKS_NEVER) ||
        (o->think == CHOICE_OFF && t->thinks == SR_THINKS_ALWAYS))
        return sr_refuse(err, SR_ERR_USAGE, "--think %s: %s", o->think == CHOICE_ON ? "on" : "off",
                         why_not(t->thinks));
    if (t->thinks == SR_THINKS_NEVER) {
        if (o->think_budget >= 0) sr_note("--think-budget has no effect: the model does not think");
        return SR_OK;
    }
    if (t->thinks == SR_THINKS_CHOICE && o->think != CHOICE_UNSET && o->think != CHOICE_AUTO)
        t->chat.think = o->think == CHOICE_ON;
    how.budget = (int32_t)o->think_budget;
    how.message = o->think_message;
    t->thoughts_shown = o->show_thinking == CHOICE_ON || (o->show_thinking != CHOICE_OFF && isatty(1));
    return sr_thinking_new(&t->thinking, t->model, &how, err);
}

int sr_talk_mode(const struct talk *t, const sr_message *msgs, int32_t n_msgs)
{
    if (t->thinks != SR_THINKS_CHOICE) return t->thinks == SR_THINKS_ALWAYS;
    return t->chat.think != 0 && sr_chat_soft_switch(msgs, n_msgs) != 0;
}

static int is_apart(const struct talk *t)
{
    return !t->o->reasoning_format || strcmp(t->o->reasoning_format, "none") != 0;
}

void sr_talk_think_begin(struct talk *t, const int32_t *prompt, int32_t n)
{
    sr_stream_restart(&t->thoughts);
    t->thoughts.skips_newlines = 1;
    t->thoughts.before = t->color ? "\033[2m" : "<think>\n";
    t->thoughts_open = 0;
    t->out.skips_newlines = t->thinking && is_apart(t);
    if (t->thinking) sr_thinking_begin(t->thinking, prompt, n);
}

static sr_status close_thoughts(struct talk *t, sr_error *err)
{
    if (!t->thoughts_open) return SR_OK;
    t->thoughts_open = 0;
    sr_status st = sr_stream_finish(&t->thoughts, err);
    if (t->thoughts.kept.bytes) sr_stream_raw(&t->thoughts, t->color ? "\033[0m\n\n" : "\n</think>\n\n");
    return st;
}

sr_status sr_talk_think_push(struct talk *t, int32_t id, sr_part *part, sr_error *err)
{
    *part = SR_PART_ANSWER;
    if (!t->thinking) return SR_OK;
    *part = sr_thinking_push(t->thinking, id);
    if (!is_apart(t)) *part = SR_PART_ANSWER;
    if (*part != SR_PART_THOUGHT) return close_thoughts(t, err);
    t->thoughts_open = 1;
    return SR_OK;
}

sr_status sr_talk_think_end(struct talk *t, struct answer *a, sr_error *err)
{
    sr_status st = close_thoughts(t, err);
    a->thinks = t->thinking != NULL;
    if (!t->thinking) return st;
    sr_thinking_get_counts(t->thinking, &a->thinking);
    return st ? st
              : sr_text_add(&a->reasoning, "", t->thoughts.kept.data ? t->thoughts.kept.data : "",
                            t->thoughts.kept.bytes, err);
}

void sr_answer_free(struct answer *a)
{
    sr_text_free(&a->reasoning);
}
