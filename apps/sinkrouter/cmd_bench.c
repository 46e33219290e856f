/* SPDX-License-Identifier: Apache-2.0
 *
 * bench: tokens per second of prefill and decode at several depths, decode once per route mode. Only the
 * forward pass is timed: no tokenizer, no sampler. The cache at a depth is filled once per model and types
 * and shared by all tests.
 */
#include "bench_op.h"
#include "bench_row.h"
#include "commands.h"
#include "corpus.h"
#include "diag.h"
#include "interrupt.h"
#include "progress.h"
#include "setup.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct bench {
    const struct options *o; /* with every list filled in */
    sr_model *model;
    sr_model_info info;
    sr_session *sessions[SR_BATCH_MAX]; /* [n_sessions], made when first wanted; of one model, options and corpus */
    sr_session_options session_options;
    int32_t n_sessions, parallel; /* how many decode together in this test */
    sr_batch *batch;              /* for `parallel` sessions where that is more than one */
    struct corpus corpus;
    int32_t n_ctx;
    struct bench_test test; /* settings of the loops around it */
    uint64_t *samples;
    json_t *rows;
};

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1000000000u * (uint64_t)t.tv_sec + (uint64_t)t.tv_nsec;
}

/* A session holds exactly the corpus's first `depth` tokens. */
static sr_status go_to_depth(const struct bench *b, sr_session *s, int32_t depth, sr_error *err)
{
    int32_t len = sr_session_len(s), done = 0;
    sr_status st = SR_OK;
    if (len > depth) st = sr_session_truncate(s, depth, err);
    if (st || len >= depth) return st;
    if (b->o->fill) return sr_session_fill_random(s, depth, 1, err);
    st = sr_session_prefill(s, b->corpus.ids + len, depth - len, sr_progress_show, NULL, &done, err);
    sr_progress_clear();
    return st;
}

/* As many sessions as the test wants, each at the depth and in the test's mode. One is filled before the next is
 * made, so that its check for memory sees what those before it took. */
static sr_status ready(struct bench *b, int32_t depth, sr_error *err)
{
    sr_status st = SR_OK;
    for (int32_t i = 0; i < b->parallel && !st && !sr_interrupt_pending(); i++) {
        if (i == b->n_sessions) {
            st = sr_session_new(&b->sessions[i], b->model, &b->session_options, err);
            if (st) return st;
            b->n_sessions++;
        }
        st = go_to_depth(b, b->sessions[i], depth, err);
        if (!st) st = sr_session_route_set(b->sessions[i], &b->test.route, err);
    }
    return st;
}

/* The timed part: p tokens prefilled, then n decoded in each session, from `depth` on. */
static sr_status one_run(struct bench *b, int32_t depth, int32_t p, int32_t n, sr_error *err)
{
    const int32_t *ids = b->corpus.ids + depth;
    int32_t done = 0, same[SR_BATCH_MAX];
    uint64_t began = 0, now;
    sr_status st = p ? sr_session_prefill(b->sessions[0], ids, p, NULL, NULL, &done, err) : SR_OK;
    for (int32_t i = 0; i < n && !st; i++, began = now) {
        if (i == 0) began = clock_ns();
        for (int32_t k = 0; k < b->parallel; k++) same[k] = ids[p + i];
        st = b->parallel == 1 ? sr_session_decode(b->sessions[0], same[0], err)
                              : sr_batch_decode(b->batch, b->sessions, same, b->parallel, err);
        now = clock_ns();
        if (now - began > b->test.max_step_ns) b->test.max_step_ns = now - began;
    }
    return st;
}

static void show_profile(const struct bench *b)
{
    double ms;
    int64_t calls;
    const char *op;
    for (int32_t i = 0; (op = sr_session_profile(b->sessions[0], i, &ms, &calls)) != NULL; i++)
        if (calls) sr_say("profile %-16s %10.2f ms %10lld calls", op, ms, (long long)calls);
}

/* KL and contract of the same steps against dense, every decision audited, untimed. */
static sr_status compare_mode(struct bench *b, int32_t depth, int32_t n, struct comparison *out,
                              sr_error *err)
{
    struct compare c;
    int done = 0;
    sr_status st = go_to_depth(b, b->sessions[0], depth, err);
    if (!st) st = sr_compare_init(&c, b->info.n_vocab, b->corpus.ids + depth, n, err);
    if (st) return st;
    st = sr_compare_dense(&c, b->sessions[0], &b->test.route, err);
    if (!st) st = sr_compare_mode(&c, b->sessions[0], &b->test.route, NULL, NULL, out, &done, err);
    sr_progress_clear();
    sr_compare_fini(&c);
    return st;
}

/* All repetitions of one test with one mode, and its row. */
static sr_status run_test(struct bench *b, int32_t depth, int32_t p, int32_t n, sr_error *err)
{
    const struct options *o = b->o;
    struct comparison compared;
    sr_session_stats stats;
    sr_status st = SR_OK;
    if (o->delay) sleep((unsigned)o->delay);
    for (int64_t r = o->no_warmup ? 0 : -1; r < o->repetitions; r++) {
        st = ready(b, depth, err);
        if (st || sr_interrupt_pending()) return st;
        if (r <= 0) {
            sr_session_stats_reset(b->sessions[0]);
            b->test.max_step_ns = 0;
        }
        uint64_t began = clock_ns();
        st = one_run(b, depth, p, r < 0 && !p ? 1 : n, err); /* a single token warms decode up */
        if (st) return st;
        if (r >= 0) b->samples[r] = clock_ns() - began;
    }
    sr_session_get_stats(b->sessions[0], &stats);
    if (o->profile) show_profile(b);
    b->test.n_prompt = p;
    b->test.n_gen = n;
    b->test.n_depth = depth;
    b->test.is_random = b->o->fill && depth > 0;
    b->test.n_parallel = b->parallel;
    b->test.stats = n ? &stats.route : NULL;
    b->test.compared = NULL;
    if (o->file && n && !p) {
        if ((st = compare_mode(b, depth, n, &compared, err)) != SR_OK || sr_interrupt_pending()) return st;
        b->test.compared = &compared;
    }
    json_array_append_new(b->rows, sr_bench_row(&b->test));
    return st;
}

/* A test that decodes, once per mode. */
static sr_status run_modes(struct bench *b, int32_t depth, int32_t p, int32_t n, sr_error *err)
{
    size_t first = json_array_size(b->rows);
    sr_status st = SR_OK;
    for (int32_t i = 0; i < b->o->route.n && !st && !sr_interrupt_pending(); i++) {
        st = sr_setup_route(&b->test.route, b->o, b->o->route.v[i], err);
        if (!st) sr_setup_warn_min(&b->test.route, b->n_ctx);
        if (!st) st = run_test(b, depth, p, n, err);
    }
    sr_bench_ratios(b->rows, first);
    return st;
}

/* A test of decoding alone, for each count of sessions that decode together. */
static sr_status run_parallel(struct bench *b, int32_t depth, int32_t n, sr_error *err)
{
    sr_status st = SR_OK;
    for (int32_t i = 0; i < b->o->parallel.n && !st && !sr_interrupt_pending(); i++) {
        b->parallel = (int32_t)b->o->parallel.v[i];
        if (b->parallel > 1) st = sr_batch_new(&b->batch, b->model, b->parallel, err);
        if (!st) st = run_modes(b, depth, 0, n, err);
        sr_batch_free(b->batch);
        b->batch = NULL;
    }
    b->parallel = 1;
    return st;
}

static sr_status run_depth(struct bench *b, int32_t depth, sr_error *err)
{
    const struct options *o = b->o;
    sr_status st = sr_setup_route(&b->test.route, o, "dense", err); /* prefill is exact in every mode */
    for (int32_t i = 0; i < o->n_prompt.n && !st && !sr_interrupt_pending(); i++)
        if (o->n_prompt.v[i]) st = run_test(b, depth, (int32_t)o->n_prompt.v[i], 0, err);
    for (int32_t i = 0; i < o->n_gen.n && !st && !sr_interrupt_pending(); i++)
        if (o->n_gen.v[i]) st = run_parallel(b, depth, (int32_t)o->n_gen.v[i], err);
    for (int32_t i = 0; i < o->prompt_gen.n && !st && !sr_interrupt_pending(); i++)
        st = run_modes(b, depth, (int32_t)o->prompt_gen.v[i][0], (int32_t)o->prompt_gen.v[i][1], err);
    return st;
}

/* All depths with one choice of types and batch. */
static sr_status run_session(struct bench *b, sr_error *err)
{
    const struct options *o = b->o;
    sr_session_options *s = &b->session_options;
    *s = sr_session_options_default();
    sr_status st = sr_setup_dtype(&s->k_type, b->test.type_k, err);
    if (!st) st = sr_setup_dtype(&s->v_type, b->test.type_v, err);
    s->n_ctx = b->n_ctx;
    s->allow_extrapolation = o->allow_extrapolation;
    s->n_batch = sr_setup_batch(b->test.n_batch, b->test.n_ubatch);
    if (!st) st = sr_setup_route(&s->route, o, "dense", err);
    b->parallel = 1;
    for (int32_t i = 0; i < o->depth.n && !st && !sr_interrupt_pending(); i++)
        st = run_depth(b, (int32_t)o->depth.v[i], err);
    for (int32_t i = 0; i < b->n_sessions; i++) sr_session_free(b->sessions[i]);
    b->n_sessions = 0;
    return st;
}

/* Calls run_session for every combination of batch sizes, types and -fa; i counts through their product. */
static sr_status run_product(struct bench *b, sr_error *err)
{
    const struct options *o = b->o;
    int64_t n = (int64_t)o->batch.n * o->ubatch.n * o->type_k.n * o->type_v.n * o->flash_list.n;
    sr_status st = SR_OK;
    for (int64_t i = 0; i < n && !st && !sr_interrupt_pending(); i++) {
        int64_t k = i;
        b->test.flash = o->flash_list.v[k % o->flash_list.n], k /= o->flash_list.n;
        b->test.type_v = o->type_v.v[k % o->type_v.n], k /= o->type_v.n;
        b->test.type_k = o->type_k.v[k % o->type_k.n], k /= o->type_k.n;
        b->test.n_ubatch = o->ubatch.v[k % o->ubatch.n], k /= o->ubatch.n;
        b->test.n_batch = o->batch.v[k % o->batch.n];
        st = run_session(b, err);
    }
    return st;
}

static sr_status run_model(struct bench *b, int32_t model, int threads, sr_error *err)
{
    const struct options *o = b->o;
    sr_status st = sr_setup_model(&b->model, o, model, threads, err);
    if (st) return st;
    sr_model_get_info(b->model, &b->info);
    b->test.model = &b->info;
    if (b->n_ctx > b->info.n_ctx_train && !o->allow_extrapolation)
        st = sr_refuse(err, SR_ERR_USAGE,
                       "-d: %d tokens with the test, the model was trained for %d (--allow-extrapolation)",
                       b->n_ctx, b->info.n_ctx_train);
    else if (o->file)
        st = sr_corpus_text(&b->corpus, o, b->model, b->n_ctx, b->n_ctx, err);
    else
        st = sr_corpus_random(&b->corpus, b->n_ctx, b->info.n_vocab, o->seed >= 0 ? (uint64_t)o->seed : 1,
                              err);
    if (!st) st = run_product(b, err);
    sr_corpus_free(&b->corpus);
    sr_model_close(b->model);
    b->model = NULL;
    return st;
}

/* ---- set-up
 * ------------------------------------------------------------------------------------------------------- */

static void default_int(struct int_list *l, int64_t v)
{
    if (l->n) return;
    l->n = 1;
    l->v[0] = v;
}

static void default_text(struct text_list *l, const char *v)
{
    if (l->n) return;
    l->n = 1;
    l->v[0] = v;
}

static void fill_lists(struct options *o)
{
    int only_pairs = o->prompt_gen.n && !o->n_prompt.n && !o->n_gen.n;
    default_int(&o->n_prompt, only_pairs ? 0 : 512);
    default_int(&o->n_gen, only_pairs ? 0 : 128);
    default_int(&o->depth, 0);
    default_int(&o->parallel, 1);
    default_int(&o->threads, 0);
    default_int(&o->batch, 2048);
    default_int(&o->ubatch, 512);
    default_text(&o->type_k, "f16");
    default_text(&o->type_v, "f16");
    default_text(&o->flash_list, "auto");
    default_text(&o->route, "dense");
}

static int64_t largest(const struct int_list *l)
{
    int64_t most = 0;
    for (int32_t i = 0; i < l->n; i++)
        if (l->v[i] > most) most = l->v[i];
    return most;
}

/* Tokens the deepest test needs; 0 when there is nothing to run. */
static int64_t tokens_needed(const struct options *o)
{
    int64_t most = largest(&o->n_prompt) > largest(&o->n_gen) ? largest(&o->n_prompt) : largest(&o->n_gen);
    for (int32_t i = 0; i < o->prompt_gen.n; i++)
        if (o->prompt_gen.v[i][0] + o->prompt_gen.v[i][1] > most)
            most = o->prompt_gen.v[i][0] + o->prompt_gen.v[i][1];
    return most ? most + largest(&o->depth) : 0;
}

static void print(const struct bench *b)
{
    sr_table_print(stdout, sr_table_format(b->o->output, TABLE_MD), b->rows, sr_bench_columns,
                   sr_bench_n_columns);
    if (b->o->output_err)
        sr_table_print(stderr, sr_table_format(b->o->output_err, TABLE_MD), b->rows, sr_bench_columns,
                       sr_bench_n_columns);
}

int sr_cmd_bench(const struct options *given, sr_error *err)
{
    struct options o = *given;
    struct bench b = {.o = &o};
    sr_route_options checked;
    fill_lists(&o);
    sr_status st = sr_bench_op_check(given, err);
    if (st || given->op) return st ? (int)st : sr_bench_op(given, err);
    int64_t need = tokens_needed(&o);
    st = sr_setup_check_model(&o, 1, err);
    if (!st && need == 0) st = sr_refuse(err, SR_ERR_USAGE, "-p 0 -n 0: nothing to run");
    if (!st && need > INT32_MAX)
        st = sr_refuse(err, SR_ERR_USAGE, "-d: %lld tokens are too many", (long long)need);
    for (int32_t i = 0; i < o.route.n && !st; i++) st = sr_setup_route(&checked, &o, o.route.v[i], err);
    if (st) return st;
    o.n_ctx = b.n_ctx = (int32_t)need;
    b.rows = json_array();
    b.samples = calloc((size_t)o.repetitions, sizeof *b.samples);
    b.test.samples_ns = b.samples;
    b.test.n_samples = o.repetitions;
    if (!b.samples) st = sr_refuse(err, SR_ERR_RESOURCE, "-r %lld: no memory", (long long)o.repetitions);
    for (int32_t m = 0; m < o.models.n; m++)
        for (int32_t t = 0; t < o.threads.n && !st && !sr_interrupt_pending(); t++)
            st = run_model(&b, m, (int)o.threads.v[t], err);
    if (!st || json_array_size(b.rows)) print(&b);
    json_decref(b.rows);
    free(b.samples);
    return st ? (int)st : sr_interrupt_pending() ? 128 + sr_interrupt_pending() : 0;
}
