/* SPDX-License-Identifier: Apache-2.0
 *
 * The generation loop of run and chat.
 */
#include "talk.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "setup.h"
#include "talk_think.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *sr_stop_name(enum stop_reason reason)
{
    static const char *const names[] = {"end", "limit", "context", "signal", "output"};
    return names[reason];
}

/* ---- open
 * ------------------------------------------------------------------------------------------------------- */

/* --chat-template takes a name or, as in llama.cpp, a program. */
static sr_status read_template(struct talk *t, sr_error *err)
{
    const struct options *o = t->o;
    t->chat.variables = o->chat_template_kwargs;
    if (o->chat_template && o->chat_template_file)
        return sr_refuse(err, SR_ERR_USAGE, "--chat-template: not together with --chat-template-file");
    if (o->chat_template && (strstr(o->chat_template, "{{") || strstr(o->chat_template, "{%"))) {
        t->chat.template_text = o->chat_template;
        t->chat.template_bytes = strlen(o->chat_template);
    } else {
        t->chat.template_name = o->chat_template;
    }
    if (!o->chat_template_file) return SR_OK;
    sr_status st = sr_text_read(&t->template_text, "--chat-template-file", o->chat_template_file, err);
    t->chat.template_text = t->template_text.data;
    t->chat.template_bytes = t->template_text.bytes;
    return st;
}

/* Whether the template is used, and the stop texts that come with it. */
static sr_status pick_template(struct talk *t, const char *const **stop_texts, sr_error *err)
{
    const struct options *o = t->o;
    int has_none = strcmp(t->info.chat_template, "none") == 0, is_given = o->chat_template || o->chat_template_file;
    *stop_texts = NULL;
    if (o->no_conversation && (o->conversation || is_given))
        return sr_refuse(err, SR_ERR_USAGE, "-no-cnv: not together with %s",
                         o->conversation ? "-cnv" : "--chat-template");
    if (o->no_conversation) return SR_OK;
    sr_status st = read_template(t, err);
    if (st) return st;
    if (has_none && !is_given) {
        if (o->command == CMD_RUN && !o->conversation) {
            if (o->system || o->system_file)
                return sr_refuse(err, SR_ERR_USAGE,
                                 "-sys: the model has no chat template; give --chat-template");
            return SR_OK;
        }
        return sr_refuse(err, SR_ERR_UNSUPPORTED,
                         "the model has no chat template; give --chat-template NAME, or use run");
    }
    t->use_template = 1;
    st = sr_chat_template_check(t->model, &t->chat, stop_texts, err);
    return st ? st : sr_talk_think_open(t, err);
}

static sr_status list_stops(struct talk *t, sr_error *err)
{
    const struct options *o = t->o;
    t->stop_list = calloc((size_t)o->stops.n + 1, sizeof *t->stop_list);
    if (!t->stop_list) return sr_refuse(err, SR_ERR_RESOURCE, "no memory for the stop texts");
    for (int32_t i = 0; i < o->stops.n; i++) {
        sr_status st = sr_text_copy(&t->stop_texts[i], o->stops.v[i], !o->no_escape, err);
        if (st) return st;
        t->stop_list[i] = t->stop_texts[i].data;
    }
    return SR_OK;
}

/* Restores --session where the file exists. */
static sr_status restore(struct talk *t, sr_error *err)
{
    const char *path = t->o->session;
    char shown[120];
    if (!path) return SR_OK;
    if (access(path, F_OK) != 0 && errno == ENOENT) {
        sr_note("--session %s: new", sr_visible(shown, sizeof shown, path));
        return SR_OK;
    }
    sr_status st = sr_session_restore(t->session, path, err);
    if (st) return st;
    t->restored = 1;
    sr_note("--session %s: %d tokens restored", sr_visible(shown, sizeof shown, path),
            sr_session_len(t->session));
    return SR_OK;
}

static sr_status open_session(struct talk *t, sr_error *err)
{
    sr_session_options s;
    sr_status st = sr_setup_session(&s, t->o, err);
    if (!st) st = sr_setup_route(&s.route, t->o, NULL, err);
    if (st) return st;
    if (t->o->min_len < 0) {
        sr_model_info info;
        sr_model_get_info(t->model, &info);
        s.route.min_len = info.route_min;
    }
    t->route = s.route;
    if ((st = sr_session_new(&t->session, t->model, &s, err)) != SR_OK) return st;
    if (s.route.mode == SR_ROUTE_PAPER && t->o->tau_file &&
        sr_session_n_ctx(t->session) > s.route.tau_max_len)
        sr_note("--route-tau-file: beyond %.0f tokens the value at %.0f is used", s.route.tau_max_len,
                s.route.tau_max_len);
    return restore(t, err);
}

/* With -tb the model has the larger of the two numbers of threads, and each phase uses its own. */
static sr_status open_model(struct talk *t, sr_error *err)
{
    const struct options *o = t->o;
    int decode = o->threads.n ? (int)o->threads.v[0] : 0,
        batch = o->threads_batch.n ? (int)o->threads_batch.v[0] : 0;
    sr_status st = sr_setup_model(&t->model, o, 0, batch > decode && decode ? batch : decode, err);
    if (st) return st;
    sr_model_get_info(t->model, &t->info);
    t->decode_threads = decode && decode < t->info.n_threads ? decode : 0;
    if (batch > t->info.n_threads)
        sr_note("-tb %d: without -t there are %d threads", batch, t->info.n_threads);
    t->batch_threads = batch && batch < t->info.n_threads ? batch : 0;
    return SR_OK;
}

static int wants_color(const struct options *o)
{
    const char *no_color = getenv("NO_COLOR");
    if (o->color == CHOICE_ON || o->color == CHOICE_OFF) return o->color == CHOICE_ON;
    return isatty(1) && !(no_color && *no_color);
}

sr_status sr_talk_open(struct talk *t, const struct options *o, sr_error *err)
{
    const char *const *stop_texts;
    *t = (struct talk){.o = o, .color = wants_color(o), .chat = sr_chat_options_default()};
    sr_route_options checked; /* before the model is loaded: wrong usage should not wait for it */
    sr_status st = sr_setup_check_model(o, 0, err);
    if (!st) st = sr_setup_route(&checked, o, NULL, err);
    if (!st) st = sr_setup_check_input("-f", o->file, err);
    if (!st) st = sr_setup_check_input("-sysf", o->system_file, err);
    if (!st) st = sr_setup_check_output("--session", o->session, err);
    if (!st) st = sr_setup_check_output("--stats", o->stats, err);
    if (!st) st = open_model(t, err);
    if (st) return st;
    st = pick_template(t, &stop_texts, err);
    if (!st) st = list_stops(t, err);
    if (!st) t->seed = sr_setup_seed(o);
    for (int i = 0; i < 2 && !st; i++) st = sr_setup_sampler(&t->sampler[i], t->seed, o, t->model, i, err);
    if (!st) st = open_session(t, err);
    if (!st && o->ignore_eos && !(t->logits = malloc((size_t)t->info.n_vocab * sizeof *t->logits)))
        st = sr_refuse(err, SR_ERR_RESOURCE, "no memory for %d logits", t->info.n_vocab);
    sr_stream_init(&t->out, 1, t->stop_list, stop_texts);
    sr_stream_init(&t->thoughts, t->thoughts_shown ? 1 : -1, NULL, NULL);
    t->thoughts.drops_newlines = 1;
    return st;
}

void sr_talk_close(struct talk *t)
{
    sr_stream_fini(&t->out);
    sr_stream_fini(&t->thoughts);
    sr_thinking_free(t->thinking);
    for (int i = 0; i < 2; i++) sr_sampler_free(t->sampler[i]);
    sr_session_free(t->session);
    sr_model_close(t->model);
    for (int i = 0; i < LIST_MAX; i++) sr_text_free(&t->stop_texts[i]);
    free(t->stop_list);
    sr_text_free(&t->template_text);
    free(t->logits);
}

/* ---- answer
 * ----------------------------------------------------------------------------------------------------- */

static const float *logits_without_end(struct talk *t)
{
    const float *l = sr_session_logits(t->session);
    if (!t->logits || !l) return l;
    memcpy(t->logits, l, (size_t)t->info.n_vocab * sizeof *l);
    for (int32_t i = 0; i < t->info.n_vocab; i++)
        if (sr_token_is_end(t->model, i)) t->logits[i] = -INFINITY;
    return t->logits;
}

static sr_status push_token(struct talk *t, struct stream *to, int32_t id, sr_error *err)
{
    char small[256], *bytes = small;
    size_t n = sr_token_text(t->model, id, t->o->special, small, sizeof small);
    if (n > sizeof small) {
        if (!(bytes = malloc(n)))
            return sr_refuse(err, SR_ERR_RESOURCE, "no memory for a token of %zu bytes", n);
        sr_token_text(t->model, id, t->o->special, bytes, n);
    }
    sr_status st = sr_stream_push(to, bytes, n, err);
    if (bytes != small) free(bytes);
    return st;
}

/* Shows a token where it belongs: thinking apart from the answer. */
static sr_status show_token(struct talk *t, int32_t id, sr_error *err)
{
    sr_part part;
    sr_status st = sr_talk_think_push(t, id, &part, err);
    if (st || part == SR_PART_MARK) return st;
    return push_token(t, part == SR_PART_THOUGHT ? &t->thoughts : &t->out, id, err);
}

/* The next token: one that ends thinking, or the sampler's. */
static sr_status next_token(struct talk *t, int with_thinking, int32_t *id, sr_error *err)
{
    *id = t->thinking ? sr_thinking_forced(t->thinking) : -1;
    if (*id >= 0) return SR_OK;
    return sr_sampler_next(t->sampler[with_thinking], logits_without_end(t), sr_session_tokens(t->session),
                           sr_session_len(t->session), id, err);
}

/* Decodes until something ends the answer. */
static sr_status generate(struct talk *t, int with_thinking, struct answer *a, sr_error *err)
{
    for (;;) {
        int32_t id;
        if (t->o->n_predict >= 0 && a->generated >= t->o->n_predict) return a->stop = STOP_LIMIT, SR_OK;
        if (sr_interrupt_pending()) return a->stop = STOP_SIGNAL, SR_OK;
        sr_status st = next_token(t, with_thinking, &id, err);
        if (st) return st;
        int is_end = sr_token_is_end(t->model, id);
        if (!is_end || t->o->special) st = show_token(t, id, err);
        if (st) return st;
        if (is_end) return a->stop = STOP_END, SR_OK;
        a->generated++;
        if (t->out.error || t->thoughts.error) return a->stop = STOP_OUTPUT, SR_OK;
        if (sr_session_len(t->session) == sr_session_n_ctx(t->session)) return a->stop = STOP_FULL, SR_OK;
        /* The last token is decoded too: the session then holds the whole answer, for the next turn and for
         * --session. */
        if ((st = sr_session_decode(t->session, id, err)) != SR_OK) return st;
        if (t->out.is_stopped) return a->stop = STOP_END, SR_OK;
    }
}

/* Once there is something to be drawn: an error before that is the only line. */
static void tell_seed(struct talk *t)
{
    const struct options *o = t->o;
    if (!t->told_seed && o->seed < 0 && !o->greedy && o->temp != 0) sr_note("seed %llu", (unsigned long long)t->seed);
    t->told_seed = 1;
}

sr_status sr_talk_answer(struct talk *t, const int32_t *ids, int32_t n, int with_thinking, struct answer *a, sr_error *err)
{
    int32_t n_ctx = sr_session_n_ctx(t->session);
    *a = (struct answer){.prompt_tokens = n, .stop = STOP_SIGNAL};
    if (n > n_ctx)
        return sr_refuse(err, SR_ERR_USAGE,
                         "the prompt has %d tokens, the context %d (-c; the model was trained for %d)", n,
                         n_ctx, t->info.n_ctx_train);
    tell_seed(t);
    sr_stream_restart(&t->out);
    sr_talk_think_begin(t, ids, n);
    sr_session_stats_reset(t->session);
    sr_status st = sr_model_limit_threads(t->model, t->batch_threads, err);
    if (!st) st = sr_session_sync(t->session, ids, n, sr_progress_show, NULL, &a->reused, err);
    sr_progress_clear();
    if (st) return st;
    t->is_ahead = 1;
    a->prefilled = sr_session_len(t->session) - a->reused;
    sr_setup_warn_tau(&t->route, sr_session_len(t->session));
    if (sr_session_len(t->session) == n) {
        st = sr_model_limit_threads(t->model, t->decode_threads, err);
        if (!st) st = generate(t, with_thinking, a, err);
        sr_status thought = sr_talk_think_end(t, a, err), finished = sr_stream_finish(&t->out, err);
        if (!st) st = thought ? thought : finished;
        if (t->out.error) a->stop = STOP_OUTPUT;
    }
    sr_session_get_stats(t->session, &a->stats);
    if (!st && a->stop == STOP_FULL) sr_note("stopped: the context of %d tokens is full", n_ctx);
    return st;
}

sr_status sr_talk_save(struct talk *t, sr_error *err)
{
    char shown[120];
    if (!t->o->session || !t->session) return SR_OK;
    sr_status st = sr_session_save(t->session, t->o->session, err);
    if (!st)
        sr_note("--session %s: %d tokens saved", sr_visible(shown, sizeof shown, t->o->session),
                sr_session_len(t->session));
    return st;
}

void sr_talk_rescue(struct talk *t)
{
    sr_error err;
    if (t->is_ahead && sr_talk_save(t, &err) != SR_OK) sr_say("%s", err.text);
}
