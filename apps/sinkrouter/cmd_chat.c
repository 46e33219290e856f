/* SPDX-License-Identifier: Apache-2.0
 *
 * chat: turns over one session. Only what a turn adds is prefilled. Ctrl-C stops an answer; at the prompt,
 * twice ends the program.
 *
 * The next turn's tokens are those of the whole conversation through the template if they begin with what the
 * session holds. They may not: an answer need not be tokenized the way the model wrote it, a template may
 * trim it, a restored session has no messages. Then the turn is what the template puts between an empty
 * answer and the end of the new message, after the tokens the session has.
 */
#include "commands.h"
#include "diag.h"
#include "interrupt.h"
#include "line_input.h"
#include "prompt.h"
#include "setup.h"
#include "summary.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct chat {
    struct talk t;
    struct line_input *input;
    struct text system, first; /* first: -f and -p, put before the first message */
    sr_message *messages;      /* texts owned */
    int32_t n_messages;
    int knows_all; /* the messages are all that the session holds */
    struct answer *answers;
    int32_t n_answers;
};

struct ids {
    int32_t *v, n;
};

/* ---- messages
 * ------------------------------------------------------------------------------------------------------ */

static sr_status add_message(struct chat *c, sr_role role, const char *s, size_t bytes, sr_error *err)
{
    sr_message *grown = realloc(c->messages, ((size_t)c->n_messages + 1) * sizeof *grown);
    struct text copy = {0};
    if (!grown) return sr_refuse(err, SR_ERR_RESOURCE, "no memory for message %d", c->n_messages);
    c->messages = grown;
    sr_status st = sr_text_add(&copy, "", s, bytes, err);
    if (st) return st;
    c->messages[c->n_messages++] = (sr_message){.role = role, .text = copy.data, .bytes = copy.bytes};
    return SR_OK;
}

static void drop_messages(struct chat *c, int32_t keep)
{
    while (c->n_messages > keep) {
        free((char *)c->messages[--c->n_messages].text);
        free((char *)c->messages[c->n_messages].reasoning);
    }
}

static sr_status clear(struct chat *c, sr_error *err)
{
    drop_messages(c, 0);
    c->knows_all = 1;
    sr_status st = sr_session_truncate(c->t.session, 0, err);
    if (!st && c->system.bytes) st = add_message(c, SR_ROLE_SYSTEM, c->system.data, c->system.bytes, err);
    return st;
}

/* ---- the next turn's tokens
 * ------------------------------------------------------------------------------------------ */

static sr_status render(struct chat *c, const sr_message *m, int32_t n, struct ids *out, sr_error *err)
{
    return sr_chat_tokens(c->t.model, &c->t.chat, m, n, &out->v, &out->n, err);
}

static int begins_with(const struct ids *a, const int32_t *b, int32_t n)
{
    return a->n > n && memcmp(a->v, b, (size_t)n * sizeof *b) == 0;
}

/* The session's tokens, then what the template writes from the end of an answer on. Leaves out->v NULL if
 * this template does not add its turns one after the other. */
static sr_status continue_tokens(struct chat *c, struct ids *out, sr_error *err)
{
    const sr_message *last = &c->messages[c->n_messages - 1];
    const sr_message m[3] = {{.role = SR_ROLE_USER, .text = "x", .bytes = 1}, {.role = SR_ROLE_ASSISTANT}, *last};
    struct ids before = {0}, after = {0};
    int32_t held = sr_session_len(c->t.session);
    *out = (struct ids){0};
    sr_status st = render(c, m, 1, &before, err);
    if (!st) st = render(c, m, 3, &after, err);
    if (!st && begins_with(&after, before.v, before.n)) {
        int32_t more = after.n - before.n;
        out->n = held + more;
        out->v = malloc((size_t)out->n * sizeof *out->v);
        if (!out->v) st = sr_refuse(err, SR_ERR_RESOURCE, "no memory for %d tokens", out->n);
        if (!st) memcpy(out->v, sr_session_tokens(c->t.session), (size_t)held * sizeof *out->v);
        if (!st) memcpy(out->v + held, after.v + before.n, (size_t)more * sizeof *out->v);
    }
    sr_tokens_free(before.v);
    sr_tokens_free(after.v);
    return st;
}

/* A template drops the thinking of earlier turns, so what the session holds is not what comes next: the last answer is
 * read again without it. */
static sr_status take_turn(struct chat *c, struct answer *a, sr_error *err)
{
    struct ids whole = {0}, part = {0};
    int32_t held = sr_session_len(c->t.session);
    int forgets = c->t.thinking && c->knows_all, with_thinking = sr_talk_mode(&c->t, c->messages, c->n_messages);
    sr_status st = c->knows_all || held == 0 ? render(c, c->messages, c->n_messages, &whole, err) : SR_OK;
    int is_usable = whole.v && begins_with(&whole, sr_session_tokens(c->t.session), held);
    if (!st && !is_usable && !forgets && held > 0) st = continue_tokens(c, &part, err);
    if (!st && !part.v && !whole.v) st = render(c, c->messages, c->n_messages, &whole, err);
    const struct ids *next = part.v ? &part : &whole;
    if (!st) {
        sr_prompt_show_ids(&c->t, next->v, next->n);
        st = sr_talk_answer(&c->t, next->v, next->n, with_thinking, a, err);
    }
    sr_tokens_free(whole.v);
    free(part.v);
    return st;
}

/* Takes the answer's texts over. */
static void keep_answer(struct chat *c, struct answer *a)
{
    struct answer *grown = realloc(c->answers, ((size_t)c->n_answers + 1) * sizeof *grown);
    if (grown) c->answers = grown;
    if (grown) c->answers[c->n_answers++] = *a;
    if (!grown) sr_answer_free(a); /* --stats then lacks it */
}

/* The answer as a message, its thinking beside it. */
static sr_status add_answer(struct chat *c, const struct answer *a, sr_error *err)
{
    struct text reasoning = {0};
    const struct text *kept = &c->t.out.kept;
    sr_status st = add_message(c, SR_ROLE_ASSISTANT, kept->data ? kept->data : "", kept->bytes, err);
    if (st || !a->reasoning.bytes) return st;
    st = sr_text_add(&reasoning, "", a->reasoning.data, a->reasoning.bytes, err);
    c->messages[c->n_messages - 1].reasoning = reasoning.data;
    c->messages[c->n_messages - 1].reasoning_bytes = reasoning.bytes;
    return st;
}

/* Asks and prints. A prompt that does not fit is said and forgotten: the conversation goes on, unless it has one turn. */
static sr_status ask(struct chat *c, const char *text, size_t bytes, sr_error *err)
{
    struct answer a = {0};
    struct text message = {0};
    int32_t before = c->n_messages;
    sr_status st = SR_OK;
    if (c->first.bytes) st = sr_text_add(&message, "", c->first.data, c->first.bytes, err);
    if (!st) st = sr_text_add(&message, "\n\n", text, bytes, err);
    if (!st) st = add_message(c, SR_ROLE_USER, message.data, message.bytes, err);
    sr_text_free(&message);
    if (!st) st = take_turn(c, &a, err);
    if (st == SR_ERR_USAGE && !c->t.o->single_turn) {
        sr_say("%s; /clear begins anew", err->text);
        drop_messages(c, before);
        return SR_OK;
    }
    if (st) {
        sr_answer_free(&a);
        return st;
    }
    sr_text_free(&c->first);
    sr_stream_raw(&c->t.out, "\n");
    if (!c->t.o->no_timings) sr_summary_show(&a);
    st = add_answer(c, &a, err);
    keep_answer(c, &a);
    return st;
}

/* ---- commands
 * -------------------------------------------------------------------------------------------------------- */

static void show_route(const struct chat *c)
{
    sr_route_options r;
    char with[64] = "";
    sr_session_route_get(c->t.session, &r);
    if (r.mode == SR_ROUTE_MASS)
        snprintf(with, sizeof with, ", eps %g, window %d, sinks %d", (double)r.eps, r.window, r.n_sinks);
    else if (r.mode == SR_ROUTE_PAPER && (r.tau[1] != 0 || r.tau[2] != 0 || r.tau[3] != 0))
        snprintf(with, sizeof with, ", tau by length");
    else if (r.mode == SR_ROUTE_PAPER)
        snprintf(with, sizeof with, ", tau %g", r.tau[0]);
    else if (r.mode == SR_ROUTE_WINDOW)
        snprintf(with, sizeof with, ", window %d, sinks %d", r.window, r.n_sinks);
    if (r.mode == SR_ROUTE_DENSE)
        sr_say("route dense");
    else
        sr_say("route %s%s, dense below %d tokens", sr_route_mode_name(r.mode), with, r.min_len);
}

/* /route [mode [eps or tau]] */
static void set_route(struct chat *c, const char *arguments)
{
    char mode[16] = "", number[24] = "", rest[2] = "", *end;
    sr_route_options r;
    sr_error err;
    sr_session_route_get(c->t.session, &r);
    int n = sscanf(arguments, "%15s %23s %1s", mode, number, rest);
    if (n >= 1) {
        double v = strtod(number, &end);
        sr_status st = sr_route_mode_find(&r.mode, mode, &err);
        if (!st && (n > 2 || (n == 2 && (*end || !*number))))
            st = sr_refuse(&err, SR_ERR_USAGE, "/route [MODE [NUMBER]]");
        if (!st && n == 2 && r.mode != SR_ROUTE_PAPER && r.mode != SR_ROUTE_MASS)
            st = sr_refuse(&err, SR_ERR_USAGE, "/route %s takes no number; mass EPS and paper TAU do", sr_route_mode_name(r.mode));
        if (!st && n == 1 && r.mode == SR_ROUTE_PAPER && !r.tau_set)
            st = sr_refuse(&err, SR_ERR_USAGE, "/route paper TAU: the first time it needs a threshold");
        if (!st && n == 2 && r.mode == SR_ROUTE_PAPER) {
            r.tau_set = 1;
            r.tau[0] = v;
            r.tau[1] = r.tau[2] = r.tau[3] = 0;
        } else if (!st && n == 2) {
            r.eps = (float)v;
        }
        if (!st) st = sr_session_route_set(c->t.session, &r, &err);
        if (st) {
            sr_say("%s", err.text);
            return;
        }
        c->t.route = r;
    }
    show_route(c);
}

static void show_stats(const struct chat *c)
{
    uint64_t kv, sketch;
    char a[24], b[24];
    sr_session_memory(c->t.session, &kv, &sketch);
    sr_say("%d answer%s, %d of %d tokens of context used, K/V %s, sketch %s", c->n_answers, c->n_answers == 1 ? "" : "s",
           sr_session_len(c->t.session), sr_session_n_ctx(c->t.session),
           sr_bytes_text(a, sizeof a, (double)kv), sr_bytes_text(b, sizeof b, (double)sketch));
    if (c->n_answers) sr_summary_show(&c->answers[c->n_answers - 1]);
}

static void show_help(void)
{
    sr_say("/help            this text");
    sr_say("/clear           forget the conversation and free its cache");
    sr_say("/route [M [X]]   the mode: dense, mass EPS, paper TAU or window");
    sr_say("/think, /no_think  from here on; in a message: for this turn");
    sr_say("/stats           context used and the last answer's numbers");
    sr_say("/quit            end (also Ctrl-D)");
    sr_say("a line ending in \\ goes on in the next; Ctrl-C stops an answer");
}

/* Qwen3's switches are words of a message; alone on a line they are for all turns to come. */
static int is_switched_message(const char *line)
{
    size_t n = strcspn(line, " \t\n");
    if (!((n == 6 && memcmp(line, "/think", n) == 0) || (n == 9 && memcmp(line, "/no_think", n) == 0))) return 0;
    return line[n + strspn(line + n, " \t\n")] != '\0';
}

static void set_think(struct chat *c, int on)
{
    if (c->t.thinks == SR_THINKS_CHOICE) c->t.chat.think = on;
    sr_say("%s", c->t.thinks != SR_THINKS_CHOICE ? "this model's thinking cannot be switched" : on ? "thinking on" : "thinking off");
}

/* A line that begins with a slash. 1: quit. */
static int command(struct chat *c, const char *line, sr_status *st, sr_error *err)
{
    size_t n = strcspn(line, " \t");
    if (n == 5 && memcmp(line, "/quit", n) == 0) return 1;
    if (n == 5 && memcmp(line, "/help", n) == 0)
        show_help();
    else if (n == 6 && memcmp(line, "/clear", n) == 0)
        *st = clear(c, err);
    else if (n == 6 && memcmp(line, "/route", n) == 0)
        set_route(c, line + n);
    else if (n == 6 && memcmp(line, "/stats", n) == 0)
        show_stats(c);
    else if ((n == 6 && memcmp(line, "/think", n) == 0) || (n == 9 && memcmp(line, "/no_think", n) == 0))
        set_think(c, n == 6);
    else
        sr_say("unknown command; /help lists them");
    return 0;
}

/* ---- the conversation
 * -------------------------------------------------------------------------------------------------- */

/* Whether the signal that came, if any, ends the program: Ctrl-C does not, unless nobody is there to type on.
 */
static int ends_by_signal(const struct chat *c, int at_prompt)
{
    int sig = sr_interrupt_pending();
    return sig && (sig != SIGINT || (at_prompt && !sr_line_input_is_terminal(c->input)));
}

/* A line that is no UTF-8 is said and left out. */
static int is_text(const struct text *line)
{
    size_t good = sr_text_valid(line->data, line->bytes);
    if (good == line->bytes) return 1;
    sr_say("byte %zu of the message (0x%02x) is not UTF-8", good, (unsigned)(unsigned char)line->data[good]);
    return 0;
}

static sr_status converse(struct chat *c, sr_error *err)
{
    struct text line = {0};
    sr_status st = SR_OK;
    int warned = 0;
    while (!st && !c->t.out.error) {
        enum line_result r = sr_line_input_read(c->input, &line);
        if (r == LINE_INTERRUPTED) {
            if (warned || ends_by_signal(c, 1)) break;
            sr_interrupt_clear();
            sr_stream_raw(&c->t.out, "\n");
            sr_say("Ctrl-C again, /quit or Ctrl-D ends");
            warned = 1;
            continue;
        }
        if (r == LINE_END) break;
        warned = 0;
        size_t blank = strspn(line.data, " \t");
        if (line.data[blank] == '\0' || !is_text(&line)) continue;
        if (line.data[0] == '/' && !is_switched_message(line.data)) {
            if (command(c, line.data, &st, err)) break;
            continue;
        }
        st = ask(c, line.data, line.bytes, err);
        if (ends_by_signal(c, 0) || c->t.o->single_turn) break;
        sr_interrupt_clear();
    }
    sr_text_free(&line);
    return st;
}

static sr_status begin(struct chat *c, sr_error *err)
{
    const struct options *o = c->t.o;
    sr_status st = sr_prompt_system(&c->system, o, err);
    if (st) return st;
    c->knows_all = !c->t.restored;
    if (c->system.bytes) st = add_message(c, SR_ROLE_SYSTEM, c->system.data, c->system.bytes, err);
    if (!st && !(c->input = sr_line_input_new(c->t.color)))
        st = sr_refuse(err, SR_ERR_RESOURCE, "no memory for line editing");
    return st ? st : sr_prompt_text(&c->first, &c->t, err);
}

/* -p is the first message; a document alone waits for the first question. */
static sr_status first_turn(struct chat *c, sr_error *err)
{
    struct text message = c->first;
    if (!c->t.o->prompt) return SR_OK;
    c->first = (struct text){0};
    sr_status st = ask(c, message.data, message.bytes, err);
    sr_text_free(&message);
    return st;
}

static int finish(struct chat *c, sr_error *err)
{
    sr_status st = sr_talk_save(&c->t, err);
    if (!st) st = sr_stats_write(&c->t, c->answers, c->n_answers, err);
    if (st) return st;
    if (c->t.out.error) return sr_refuse(err, SR_ERR_IO, "standard output: %s", strerror(c->t.out.error));
    int sig = sr_interrupt_pending();
    return sig && sig != SIGINT ? 128 + sig : 0;
}

/* Where a turn failed, what the turns before it left. */
static void rescue(struct chat *c)
{
    sr_error err;
    sr_talk_rescue(&c->t);
    if (c->n_answers && sr_stats_write(&c->t, c->answers, c->n_answers, &err) != SR_OK) sr_say("%s", err.text);
}

int sr_cmd_chat(const struct options *o, sr_error *err)
{
    struct chat c = {0};
    int rc = (int)sr_talk_open(&c.t, o, err);
    if (!rc) rc = (int)begin(&c, err);
    if (!rc) {
        sr_note("%s, context %d tokens, route %s; /help lists commands",
                *c.t.info.name ? c.t.info.name : c.t.info.architecture, sr_session_n_ctx(c.t.session),
                sr_route_mode_name(c.t.route.mode));
        rc = (int)first_turn(&c, err);
        if (!rc && !(o->single_turn && o->prompt) && !ends_by_signal(&c, 0)) {
            sr_interrupt_clear();
            rc = (int)converse(&c, err);
        }
        if (rc) rescue(&c);
        else rc = finish(&c, err);
    }
    sr_line_input_free(c.input);
    drop_messages(&c, 0);
    free(c.messages);
    for (int32_t i = 0; i < c.n_answers; i++) sr_answer_free(&c.answers[i]);
    free(c.answers);
    sr_text_free(&c.system);
    sr_text_free(&c.first);
    sr_talk_close(&c.t);
    return rc;
}
