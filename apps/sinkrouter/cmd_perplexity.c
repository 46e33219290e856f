/* SPDX-License-Identifier: Apache-2.0
 *
 * perplexity: what routing costs on a text. The text's first tokens are prefilled exactly, the next ones fed
 * one by one through the decode path, dense first, then every mode and setting from the same cache. Every
 * decision is audited.
 * --task niah hides numbers in the text instead and asks for them after the prefill.
 */
#include "commands.h"
#include "compare.h"
#include "corpus.h"
#include "detector.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "setup.h"
#include "table.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { QUESTION_TOKENS = 32 }; /* room for a needle's question, unless the vocabulary needs more */

struct run {
    const struct options *o;
    sr_model *model;
    sr_model_info info;
    sr_session *session;
    struct corpus corpus;
    int32_t n_prefill, n_decode;
    struct compare compare;
    struct needle needles[MAX_NEEDLES];
    int32_t n_question; /* room for one */
    int is_niah;
    json_t *rows;
};

/* A table for who looks on, lines for a script. */
static enum table_format format_of(const struct run *r)
{
    return sr_table_format(r->o->output, isatty(1) ? TABLE_MD : TABLE_JSONL);
}

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : NAN;
}

/* ---- one combination
 * -------------------------------------------------------------------------------------------- */

/* Whether --route-budget means something to the mode. A window is one too: its sinks and last rows. */
static int has_budget(sr_route_mode mode)
{
    return mode >= SR_ROUTE_QUEST && mode <= SR_ROUTE_TOPK;
}

/* The settings' part of a row: null where the mode has no such setting. */
static json_t *settings_row(const struct run *r, const sr_route_options *ro)
{
    json_t *j = json_object();
    int is_mass = ro->mode == SR_ROUTE_MASS, is_dense = ro->mode == SR_ROUTE_DENSE;
    int is_near = is_mass || ro->mode == SR_ROUTE_WINDOW || ro->mode == SR_ROUTE_PAGES || ro->mode >= SR_ROUTE_TOPK;
    int32_t rank = ro->rank ? ro->rank : r->info.sketch_rank;
    json_object_set_new(j, "mode", json_string(sr_route_mode_name(ro->mode)));
    json_object_set_new(j, "rank", is_mass ? json_integer(rank) : json_null());
    json_object_set_new(j, "eps", is_dense ? json_null() : number(round((double)ro->eps * 1e6) / 1e6));
    json_object_set_new(j, "delta", is_mass ? number(round((double)ro->delta * 1e6) / 1e6) : json_null());
    json_object_set_new(j, "tau",
                        ro->mode == SR_ROUTE_PAPER && !r->o->tau_file ? number(ro->tau[0]) : json_null());
    json_object_set_new(j, "window",
                        is_near ? json_integer(ro->window) : json_null());
    json_object_set_new(j, "budget", has_budget(ro->mode) ? json_integer(ro->budget) : json_null());
    json_object_set_new(j, "prefill", json_integer(r->n_prefill));
    json_object_set_new(j, "tile", json_integer((json_int_t)r->o->tile));
    return j;
}

static void result_row(json_t *j, const struct comparison *c, int32_t decoded)
{
    const sr_route_stats *s = &c->route;
    json_object_set_new(j, "decoded", json_integer(decoded));
    json_object_set_new(j, "read", number(ratio((double)s->kv_bytes, (double)s->dense_bytes)));
    json_object_set_new(j, "kl", number(c->kl));
    json_object_set_new(j, "ppl", number(c->ppl));
    json_object_set_new(j, "ppl_ratio", number(c->ppl_ratio));
    json_object_set_new(j, "top1", number(c->top1));
    json_object_set_new(j, "above_eps", number(ratio((double)s->above_eps, (double)s->cases)));
    json_object_set_new(j, "contract_broken", number(ratio((double)s->broken, (double)s->cases)));
    json_object_set_new(j, "audited", json_integer((json_int_t)s->cases));
    json_object_set_new(j, "threshold", number(round(ratio(s->threshold_sum, (double)s->thresholds) * 1e6) / 1e6));
    json_object_set_new(j, "correction", number(s->far_rows ? ratio((double)s->far_rows, (double)s->far_rows_uncorrected) - 1 : NAN));
    json_object_set_new(j, "open", number(ratio((double)s->units_open, (double)s->units)));
}

/* How well the cosine and the estimate find groups that sit on the first row, and how true the estimate is. */
static void detector_row(json_t *j, const struct detector *d)
{
    json_object_set_new(j, "sink_rate", number(sr_detector_rate(d)));
    json_object_set_new(j, "auprc_cosine", number(sr_detector_auprc(d, SCORE_COSINE)));
    json_object_set_new(j, "auprc_estimate", number(sr_detector_auprc(d, SCORE_ESTIMATE)));
    json_object_set_new(j, "unread_at_eps", number(sr_detector_at_eps(d)));
}

/* --speed: the same steps again without audits, timed. */
static sr_status add_speed(struct run *r, const sr_route_options *ro, json_t *row, const struct comparison *c,
                           sr_error *err)
{
    sr_route_options timed = *ro;
    sr_session_stats stats;
    int32_t at = sr_session_len(r->session);
    timed.audit = ro->delta > 0 ? ro->audit : 0; /* a correction lives on audits */
    sr_status st = sr_session_route_set(r->session, &timed, err);
    if (st) return st;
    sr_session_stats_reset(r->session);
    for (int32_t i = 0; i < r->n_decode && !sr_interrupt_pending(); i++)
        if ((st = sr_session_decode(r->session, r->corpus.ids[r->n_prefill + i], err)) != SR_OK) return st;
    sr_session_get_stats(r->session, &stats);
    json_object_set_new(row, "tokens_per_second",
                        number(ratio(1e3 * (double)stats.decode_tokens, stats.decode_ms)));
    json_object_set_new(row, "kv_bytes_per_token",
                        number(ratio((double)c->route.kv_bytes, (double)c->route.steps)));
    return sr_session_truncate(r->session, at, err);
}

/* Needles found: those with one number, each in the order of asking, and numbers of the one that has several. */
struct found { int32_t hits, asked, value_hits, values_asked; uint8_t hit[MAX_NEEDLES]; };

/* The question is decoded, then a greedy answer of at most n tokens. */
static sr_status answer(struct run *r, const char *question, int32_t n, char *said, size_t room, sr_error *err)
{
    int32_t *ids, n_ids;
    size_t at = 0;
    sr_status st = sr_tokenize(r->model, question, strlen(question), SR_BOS_OFF, 0, &ids, &n_ids, err);
    if (st) return st;
    for (int32_t k = 0; k < n_ids && !st; k++) st = sr_session_decode(r->session, ids[k], err);
    sr_tokens_free(ids);
    for (int32_t k = 0; k < n && !st; k++) {
        const float *logits = sr_session_logits(r->session);
        int32_t id = 0;
        for (int32_t v = 1; v < r->info.n_vocab; v++)
            if (logits[v] > logits[id]) id = v;
        if (sr_token_is_end(r->model, id)) break;
        size_t len = sr_token_text(r->model, id, 0, said + at, room - 1 - at);
        at += len < room - 1 - at ? len : room - 1 - at;
        st = sr_session_decode(r->session, id, err);
    }
    said[at] = '\0';
    return st;
}

/* Asks for every needle from the same cache. */
static sr_status ask_needles(struct run *r, const sr_route_options *ro, struct comparison *c, struct found *f,
                             int *done, sr_error *err)
{
    sr_session_stats stats;
    sr_status st = sr_session_route_set(r->session, ro, err);
    sr_session_watch(r->session, sr_compare_ignore, NULL);
    sr_session_stats_reset(r->session);
    *f = (struct found){0};
    for (int32_t i = 0; i < r->o->needles && !st && !sr_interrupt_pending(); i++) {
        const struct needle *n = &r->needles[i];
        char said[2048];
        int32_t hits = 0;
        st = answer(r, n->question, r->n_decode * n->n_values, said, sizeof said, err);
        if (st) break;
        for (int32_t v = 0; v < n->n_values; v++) hits += strstr(said, n->digits[v]) != NULL;
        if (n->n_values == 1) f->hit[f->asked] = (uint8_t)hits;
        *(n->n_values > 1 ? &f->value_hits : &f->hits) += hits;
        *(n->n_values > 1 ? &f->values_asked : &f->asked) += n->n_values;
        st = sr_session_truncate(r->session, r->n_prefill, err);
        sr_progress_show(NULL, sr_route_mode_name(ro->mode), (double)(i + 1) / (double)r->o->needles);
    }
    sr_session_watch(r->session, NULL, NULL);
    sr_session_get_stats(r->session, &stats);
    *c = (struct comparison){.kl = NAN, .ppl = NAN, .ppl_ratio = NAN, .top1 = NAN, .route = stats.route};
    *done = !sr_interrupt_pending();
    return st;
}

static sr_status measure(struct run *r, const sr_route_options *ro, sr_error *err)
{
    struct comparison c;
    int done;
    struct found needles = {0};
    struct detector found = {.eps = ro->mode == SR_ROUTE_MASS && !(ro->delta > 0) ? ro->eps : 0};
    sr_status st = r->is_niah ? ask_needles(r, ro, &c, &needles, &done, err)
                              : sr_compare_mode(&r->compare, r->session, ro, sr_detector_watch, &found, &c, &done, err);
    sr_progress_clear();
    if (st || !done) {
        sr_detector_free(&found);
        return st;
    }
    json_t *row = settings_row(r, ro);
    result_row(row, &c, (int32_t)c.route.steps);
    detector_row(row, &found);
    sr_detector_free(&found);
    if (r->is_niah) {
        json_object_set_new(row, "hits", json_integer(needles.hits));
        json_object_set_new(row, "asked", json_integer(needles.asked));
        json_t *each = json_array();
        for (int32_t i = 0; i < needles.asked; i++) json_array_append_new(each, json_integer(needles.hit[i]));
        json_object_set_new(row, "each", each);
        if (needles.values_asked > 0) {
            json_object_set_new(row, "value_hits", json_integer(needles.value_hits));
            json_object_set_new(row, "values_asked", json_integer(needles.values_asked));
        }
    } else if (r->o->speed) {
        st = add_speed(r, ro, row, &c, err);
    }
    json_array_append_new(r->rows, row);
    if (format_of(r) >= TABLE_JSON) {
        json_dumpf(row, stdout, JSON_REAL_PRECISION(9)); /* at once: a sweep is long */
        putchar('\n');
        if ((fflush(stdout) || ferror(stdout)) && !st) st = sr_refuse(err, SR_ERR_IO, "standard output: %s", strerror(errno));
    }
    return st;
}

/* Tokens of the longest context that is decoded in. */
static int32_t longest(const struct run *r)
{
    const int32_t decoded = r->is_niah ? r->n_decode * (int32_t)r->o->values + r->n_question : r->n_decode;
    return r->n_prefill * (int32_t)r->o->tile + decoded;
}

/* All settings of one mode: the lists that mean something to it. */
static sr_status measure_mode(struct run *r, const char *mode, sr_error *err)
{
    const struct options *o = r->o;
    sr_route_options base;
    sr_status st = sr_setup_route(&base, o, mode, err);
    if (st) return st;
    sr_setup_warn_tau(&base, r->n_prefill);
    sr_setup_warn_min(&base, longest(r));
    int is_mass = base.mode == SR_ROUTE_MASS, is_paper = base.mode == SR_ROUTE_PAPER;
    int has_eps = is_mass || base.mode == SR_ROUTE_TOPP;
    int32_t n_rank = is_mass && o->rank.n ? o->rank.n : 1, n_eps = has_eps && o->eps.n ? o->eps.n : 1;
    int32_t n_tau = is_paper && o->tau.n ? o->tau.n : 1, n_delta = is_mass && o->delta.n ? o->delta.n : 1;
    int is_window = base.mode == SR_ROUTE_WINDOW && o->budget.n > 0;
    int32_t n_budget = (has_budget(base.mode) && o->budget.n) || is_window ? o->budget.n : 1;
    for (int32_t i = 0; i < n_rank * n_delta * n_eps * n_tau * n_budget && !sr_interrupt_pending(); i++) {
        sr_route_options ro = base;
        if (n_budget > 1 || is_window) ro.budget = (int32_t)o->budget.v[i];
        if (is_window) ro.window = ro.budget > ro.n_sinks ? ro.budget - ro.n_sinks : 1;
        if (has_eps && o->eps.n) ro.eps = (float)o->eps.v[i % n_eps];
        if (is_mass && o->delta.n) ro.delta = (float)o->delta.v[i / n_eps % n_delta];
        if (is_mass && o->rank.n) ro.rank = (int32_t)o->rank.v[i / (n_eps * n_delta)];
        if (is_paper && o->tau.n) ro.tau[0] = o->tau.v[i];
        if ((st = measure(r, &ro, err)) != SR_OK) return st;
    }
    return SR_OK;
}

/* ---- output
 * ----------------------------------------------------------------------------------------------------- */

static void cell_mode(char *dst, size_t n, const json_t *row)
{
    snprintf(dst, n, "%s", json_string_value(json_object_get(row, "mode")));
}

static void cell_setting(char *dst, size_t n, const json_t *row)
{
    double rank = sr_field(row, "rank"), eps = sr_field(row, "eps"), tau = sr_field(row, "tau"),
           window = sr_field(row, "window"), budget = sr_field(row, "budget");
    *dst = '\0';
    if (rank == rank && sr_field(row, "delta") > 0)
        snprintf(dst, n, "rank %.0f, eps %g, delta %g", rank, eps, sr_field(row, "delta"));
    else if (rank == rank)
        snprintf(dst, n, "rank %.0f, eps %g", rank, eps);
    else if (tau == tau)
        snprintf(dst, n, "tau %g", tau);
    else if (budget == budget)
        snprintf(dst, n, "%.0f rows", budget);
    else if (strcmp(json_string_value(json_object_get(row, "mode")), "topp") == 0)
        snprintf(dst, n, "eps %g", eps);
    else if (window == window)
        snprintf(dst, n, "window %.0f", window);
}

TABLE_CELL(cell_speed, "tokens_per_second", "%.1f", 1)
TABLE_CELL(cell_bytes, "kv_bytes_per_token", "%.2f MB", 1e-6)
TABLE_CELL(cell_read, "read", "%.3f", 1)
TABLE_CELL(cell_kl, "kl", "%.4f", 1)
TABLE_CELL(cell_ppl, "ppl", "%.3f", 1)
TABLE_CELL(cell_ppl_ratio, "ppl_ratio", "%.4f", 1)
TABLE_CELL(cell_top1, "top1", "%.3f", 1)
TABLE_CELL(cell_above, "above_eps", "%.2f %%", 100)
TABLE_CELL(cell_broken, "contract_broken", "%.2f %%", 100)

static void cell_hits(char *dst, size_t n, const json_t *row)
{
    *dst = '\0';
    double asked = sr_field(row, "asked"), values = sr_field(row, "values_asked");
    if (asked > 0 && values > 0)
        snprintf(dst, n, "%.0f of %.0f, values %.0f of %.0f", sr_field(row, "hits"), asked, sr_field(row, "value_hits"), values);
    else if (asked > 0 || values > 0)
        snprintf(dst, n, "%.0f of %.0f", asked > 0 ? sr_field(row, "hits") : sr_field(row, "value_hits"), asked > 0 ? asked : values);
}

static void print_rows(const struct run *r)
{
    static const struct column columns[] = {{"mode", 0, cell_mode},
                                            {"setting", 0, cell_setting},
                                            {"decode tok/s", 1, cell_speed},
                                            {"KV read/token", 1, cell_bytes},
                                            {"read", 1, cell_read},
                                            {"KL", 1, cell_kl},
                                            {"ppl", 1, cell_ppl},
                                            {"ppl ratio", 1, cell_ppl_ratio},
                                            {"top-1", 1, cell_top1},
                                            {"found", 1, cell_hits},
                                            {"> eps", 1, cell_above},
                                            {"> 2 eps", 1, cell_broken}};
    if (format_of(r) < TABLE_JSON)
        sr_table_print(stdout, format_of(r), r->rows, columns, (int)(sizeof columns / sizeof columns[0]));
}

/* ---- set-up
 * ----------------------------------------------------------------------------------------------------- */

/* Every mode's flags are checked before the long prefill. */
static sr_status check_modes(const struct text_list *modes, const struct options *o, sr_error *err)
{
    for (int32_t i = 0; i < modes->n; i++) {
        sr_route_options ro;
        sr_status st = sr_setup_route(&ro, o, modes->v[i], err);
        if (st) return st;
    }
    return SR_OK;
}

static sr_status read_corpus(struct run *r, sr_error *err)
{
    const struct options *o = r->o;
    int32_t trained = r->info.n_ctx_train;
    r->n_prefill = (int32_t)o->n_ctx;
    if (r->is_niah) {
        sr_status st = sr_corpus_questions(r->needles, o, r->model, &r->n_question, err);
        if (st) return st;
        if (r->n_question < QUESTION_TOKENS) r->n_question = QUESTION_TOKENS;
        r->n_decode = o->n_predict > 0 ? (int32_t)o->n_predict : 16;
        const int64_t answer = (int64_t)r->n_decode * o->values + r->n_question;
        const int64_t whole = o->n_ctx ? o->n_ctx + answer : trained;
        if (answer >= whole || whole > INT32_MAX)
            return sr_refuse(err, SR_ERR_USAGE, "-n %d: %lld tokens of answers do not fit a context of %lld", r->n_decode,
                             (long long)answer, o->n_ctx ? (long long)INT32_MAX - o->n_ctx : (long long)trained);
        r->n_prefill = (int32_t)(whole - answer);
        return sr_corpus_needles(&r->corpus, r->needles, o, r->model, r->n_prefill, err);
    }
    r->n_decode = o->n_predict > 0 ? (int32_t)o->n_predict : 96;
    int64_t wanted = o->n_ctx + r->n_decode;
    if ((wanted > trained || (o->tile > 1 && o->n_ctx * o->tile + r->n_decode > trained)) && !o->allow_extrapolation)
        return sr_refuse(
            err, SR_ERR_USAGE,
            "-c %lld: with -n %d and --tile %lld more than the %d tokens the model was trained for (--allow-extrapolation)",
            (long long)o->n_ctx, r->n_decode, (long long)o->tile, trained);
    if (o->tile > 1 && !o->n_ctx) return sr_refuse(err, SR_ERR_USAGE, "--tile %lld: -c says how many tokens are repeated", (long long)o->tile);
    if (o->n_ctx * o->tile + r->n_decode > INT32_MAX)
        return sr_refuse(err, SR_ERR_USAGE, "-c %lld: with -n %d and --tile %lld more than %d tokens", (long long)o->n_ctx,
                         r->n_decode, (long long)o->tile, INT32_MAX);
    sr_status st = sr_corpus_text(&r->corpus, o, r->model, o->n_ctx ? (int32_t)wanted : 0, trained, err);
    if (!st && !r->n_prefill) r->n_prefill = r->corpus.n - r->n_decode;
    if (!st && r->n_prefill < 1)
        st = sr_refuse(err, SR_ERR_USAGE, "-f: the text has %d tokens, more than %d are needed (-n)",
                       r->corpus.n, r->n_decode);
    return st;
}

static sr_status prefill(struct run *r, const struct text_list *modes, sr_error *err)
{
    sr_session_options s;
    int32_t done = 0;
    sr_status st = sr_setup_session(&s, r->o, err);
    s.n_ctx = longest(r);
    if (!st) st = sr_session_new(&r->session, r->model, &s, err);
    for (int32_t i = 0; !st && i < modes->n; i++) {
        sr_route_mode mode;
        st = sr_route_mode_find(&mode, modes->v[i], err);
        if (!st && mode >= SR_ROUTE_QUEST) st = sr_session_observe(r->session, err);
    }
    if (!st)
        st = sr_session_prefill(r->session, r->corpus.ids, r->n_prefill, sr_progress_show, NULL, &done, err);
    sr_progress_clear();
    if (!st && r->o->tile > 1 && done == r->n_prefill) st = sr_session_tile(r->session, (int32_t)r->o->tile, err);
    return st;
}

static sr_status run_all(struct run *r, const struct text_list *modes, sr_error *err)
{
    sr_route_options ro;
    sr_status st = read_corpus(r, err);
    if (!st) st = prefill(r, modes, err);
    if (!st) st = sr_setup_route(&ro, r->o, "dense", err);
    if (!st && !r->is_niah && !sr_interrupt_pending()) {
        st = sr_compare_init(&r->compare, r->info.n_vocab, r->corpus.ids + r->n_prefill, r->n_decode, err);
        if (!st) st = sr_compare_dense(&r->compare, r->session, &ro, err);
    }
    for (int32_t i = 0; i < modes->n && !st && !sr_interrupt_pending(); i++)
        st = measure_mode(r, modes->v[i], err);
    sr_progress_clear();
    print_rows(r);
    return st;
}

int sr_cmd_perplexity(const struct options *o, sr_error *err)
{
    static const struct text_list usual = {3, {"dense", "window", "mass"}};
    const struct text_list *modes = o->route.n ? &o->route : &usual;
    struct run r = {.o = o, .is_niah = strcmp(o->task, "niah") == 0};
    sr_status st = sr_setup_check_model(o, 0, err);
    if (!st && o->tile > 1 && r.is_niah) st = sr_refuse(err, SR_ERR_USAGE, "--tile: of a text, not with --task niah");
    if (!st && !o->file && !r.is_niah) st = sr_refuse(err, SR_ERR_USAGE, "-f: missing; give a text");
    if (!st) st = check_modes(modes, o, err);
    if (!st) st = sr_setup_model(&r.model, o, 0, 0, err);
    if (st) return st;
    sr_model_get_info(r.model, &r.info);
    r.rows = json_array();
    st = run_all(&r, modes, err);
    json_decref(r.rows);
    sr_compare_fini(&r.compare);
    sr_corpus_free(&r.corpus);
    sr_session_free(r.session);
    sr_model_close(r.model);
    return st ? (int)st : sr_interrupt_pending() ? 128 + sr_interrupt_pending() : 0;
}
