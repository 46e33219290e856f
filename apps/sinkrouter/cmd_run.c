/* SPDX-License-Identifier: Apache-2.0
 *
 * run: one prompt, one answer. The answer is all that standard output gets.
 */
#include "commands.h"
#include "diag.h"
#include "interrupt.h"
#include "prompt.h"
#include "setup.h"
#include "summary.h"

#include <errno.h>
#include <string.h>

/* Tokens of the whole prompt: through the chat template, or raw. */
static sr_status tokens_of(const struct talk *t, const struct text *prompt, int32_t **ids, int32_t *n,
                           int *with_thinking, sr_error *err)
{
    if (!t->use_template)
        return sr_tokenize(t->model, prompt->data, prompt->bytes, sr_setup_bos(t->o), 1, ids, n, err);
    struct text system;
    sr_status st = sr_prompt_system(&system, t->o, err);
    if (st) return st;
    sr_message m[2] = {{.role = SR_ROLE_SYSTEM, .text = system.data, .bytes = system.bytes},
                       {.role = SR_ROLE_USER, .text = prompt->data, .bytes = prompt->bytes}};
    int skip = system.bytes == 0;
    *with_thinking = sr_talk_mode(t, m + skip, 2 - skip);
    st = sr_chat_tokens(t->model, &t->chat, m + skip, 2 - skip, ids, n, err);
    sr_text_free(&system);
    return st;
}

static void show_prompt(struct talk *t, const char *text)
{
    if (t->color) sr_stream_raw(&t->out, "\033[33m");
    sr_stream_raw(&t->out, text);
    if (t->color) sr_stream_raw(&t->out, "\033[0m");
}

static sr_status answer_prompt(struct talk *t, struct answer *a, sr_error *err)
{
    struct text prompt;
    int32_t *ids = NULL, n = 0;
    int with_thinking = 0;
    sr_status st = sr_prompt_text(&prompt, t, err);
    if (st) return st;
    st = tokens_of(t, &prompt, &ids, &n, &with_thinking, err);
    if (!st && n == 0) st = sr_refuse(err, SR_ERR_USAGE, "-p: the prompt has no tokens");
    if (!st) {
        sr_prompt_show_ids(t, ids, n);
        if (t->o->display_prompt) show_prompt(t, prompt.data);
        st = sr_talk_answer(t, ids, n, with_thinking, a, err);
    }
    if (!st && t->out.kept.bytes && t->out.kept.data[t->out.kept.bytes - 1] != '\n')
        sr_stream_raw(&t->out, "\n");
    if (!st && t->out.error) a->stop = STOP_OUTPUT;
    sr_tokens_free(ids);
    sr_text_free(&prompt);
    return st;
}

/* What is kept when the answer ended, however it did: the session first. */
static int finish(struct talk *t, const struct answer *a, sr_error *err)
{
    if (!t->o->no_timings) sr_summary_show(a);
    sr_status st = sr_talk_save(t, err);
    if (!st) st = sr_stats_write(t, a, 1, err);
    if (st) return st;
    if (a->stop == STOP_OUTPUT)
        return sr_refuse(err, SR_ERR_IO, "standard output: %s", strerror(t->out.error));
    return a->stop == STOP_SIGNAL ? 128 + sr_interrupt_pending() : 0;
}

int sr_cmd_run(const struct options *o, sr_error *err)
{
    struct talk t;
    struct answer a = {0};
    if (!o->prompt && !o->file)
        return sr_refuse(err, SR_ERR_USAGE, "-p: missing; give a prompt, a document with -f, or both");
    int rc = (int)sr_talk_open(&t, o, err);
    if (!rc) rc = (int)answer_prompt(&t, &a, err);
    if (rc) sr_talk_rescue(&t);
    else rc = finish(&t, &a, err);
    sr_answer_free(&a);
    sr_talk_close(&t);
    return rc;
}
