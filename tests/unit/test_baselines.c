/* SPDX-License-Identifier: Apache-2.0
 *
 * The baselines against their rules in plain code: bounds by true shares, pages by their boxes, what is evicted and never
 * comes back. Every mode's output is attention over the rows it names, and its counters name them too.
 */
#include "attn_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "attention/timeline.h"
#include "formats/quant.h"

enum { LAYERS = 3, KV = 2, GROUP = 3, DIM = 64, PROMPT = 700, LEN = 760, STRIDE = KV * GROUP * DIM };

static struct attn_world *world;

static sr_route_options route(sr_route_mode mode, int32_t budget)
{
    sr_route_options o = sr_route_options_default();
    o.mode = mode;
    o.budget = budget;
    o.min_len = 0;
    o.window = 64;
    o.audit = 1;
    return o;
}

/* The prompt is prefilled as dense would; then the mode is set. */
static void open_with(struct attn_bench *b, const sr_route_options *o, int32_t batch)
{
    sr_route_options dense = route(SR_ROUTE_DENSE, 0);
    sr_bench_open(b, world, SR_DTYPE_F16, SR_DTYPE_F16, &dense, 2, NULL);
    assert_int_equal(sr_attn_seq_observe(b->seq, NULL), SR_OK);
    sr_bench_prefill(b, world, 0, PROMPT, batch, NULL);
    assert_int_equal(sr_attn_seq_route_set(b->seq, o, NULL), SR_OK);
}

static int32_t rows_read(const struct attn_bench *b, int32_t layer, int32_t g, uint8_t *read)
{
    const struct decode_scratch *w = &b->attention->scratch;
    const sr_route_options *o = &b->seq->route;
    int32_t len = b->seq->len[layer], n = 0;
    enum route_kind kind = (enum route_kind)w->kind[g];
    int has_near = kind == READ_NEAR || kind == READ_NEAR_LIST, has_list = kind == READ_LIST || kind == READ_NEAR_LIST;
    for (int32_t i = 0; i < len; i++)
        read[i] = kind == READ_ALL || (has_near && (i < o->n_sinks || i >= len - o->window));
    for (int32_t i = 0; has_list && i < w->n_list[g]; i++) {
        assert_true(w->list[g][i] >= 0 && w->list[g][i] < len && !read[w->list[g][i]]);
        read[w->list[g][i]] = 1;
    }
    for (int32_t i = 0; i < len; i++) n += read[i];
    return n;
}

/* The largest share of any head of the group. */
static void best_shares(int32_t layer, int32_t g, int32_t pos, double *best)
{
    static double logits[LEN];
    memset(best, 0, LEN * sizeof *best);
    for (int32_t h = g * GROUP; h < (g + 1) * GROUP; h++) {
        double max = -1e30, sum = 0;
        sr_world_logits(world, layer, h, pos, logits);
        for (int32_t i = 0; i <= pos; i++) max = fmax(max, logits[i]);
        for (int32_t i = 0; i <= pos; i++) sum += exp(logits[i] - max);
        for (int32_t i = 0; i <= pos; i++) best[i] = fmax(best[i], exp(logits[i] - max) / sum);
    }
}

typedef void check_fn(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n);

/* Decodes; every unit's output and the counters are checked here, its rows by the mode's own check. */
static void run_mode(const sr_route_options *o, check_fn *check)
{
    struct attn_bench b;
    float out[LAYERS * STRIDE];
    uint8_t read[LEN];
    double want[DIM];
    int64_t n_rows = 0;
    sr_route_stats st;
    open_with(&b, o, 128);
    for (int32_t p = PROMPT; p < LEN; p++) {
        assert_int_equal(sr_attn_seq_reserve(b.seq, p + 1, NULL), SR_OK);
        for (int32_t l = 0; l < LAYERS; l++) {
            sr_attn_append(b.seq, l, sr_world_k(world, l, p), sr_world_v(world, l, p), 1);
            sr_bench_again(&b, world, l, p, out + l * STRIDE);
            for (int32_t g = 0; g < KV; g++) {
                int32_t n = rows_read(&b, l, g, read);
                n_rows += n;
                for (int32_t h = g * GROUP; h < (g + 1) * GROUP; h++) {
                    sr_world_attend(world, l, h, p, read, want);
                    for (int32_t i = 0; i < DIM; i++)
                        assert_float_equal(out[l * STRIDE + h * DIM + i], want[i], 5e-5);
                }
                check(&b, l, g, p, read, n);
            }
        }
    }
    sr_attn_seq_stats(b.seq, &st);
    assert_int_equal(st.v_rows, n_rows);
    assert_int_equal(st.steps, LEN - PROMPT);
    sr_bench_close(&b);
}

/* ---- bounds ---- */

static void check_topk(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    double best[LEN], least = 1, most = 0;
    assert_int_equal(n, b->seq->route.budget);
    best_shares(layer, g, pos, best);
    for (int32_t i = 4; i < pos + 1 - 64; i++) {
        least = read[i] ? fmin(least, best[i]) : least;
        most = read[i] ? most : fmax(most, best[i]);
    }
    assert_true(least >= most * (1 - 1e-3));
}

static void check_topp(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    double eps = (double)b->seq->route.eps, worst = 0, with_one_less = 0, best[LEN], ignored[DIM];
    uint8_t less[LEN];
    (void)n;
    int32_t weakest = -1;
    best_shares(layer, g, pos, best);
    memcpy(less, read, sizeof less);
    for (int32_t i = 4; i < pos + 1 - 64; i++) {
        if (read[i] && (weakest < 0 || best[i] < best[weakest])) weakest = i;
    }
    if (weakest >= 0) less[weakest] = 0;
    for (int32_t h = g * GROUP; h < (g + 1) * GROUP; h++) {
        worst = fmax(worst, sr_world_attend(world, layer, h, pos, read, ignored));
        with_one_less = fmax(with_one_less, sr_world_attend(world, layer, h, pos, less, ignored));
    }
    assert_true(worst <= eps * (1 + 1e-3));
    if (weakest >= 0) assert_true(with_one_less > eps * (1 - 1e-3)); /* not one row more than needed */
}

static void test_bounds(void **state)
{
    (void)state;
    sr_route_options o = route(SR_ROUTE_TOPK, 120);
    run_mode(&o, check_topk);
    o = route(SR_ROUTE_TOPP, 0);
    run_mode(&o, check_topp);
}

/* ---- pages ---- */

/* Score of page p in double over the keys that the world has. */
static double page_score(int32_t layer, int32_t g, int32_t pos, int32_t p, int is_box)
{
    double best = -1e30;
    for (int32_t h = g * GROUP; h < (g + 1) * GROUP; h++) {
        double sum = 0;
        for (int32_t i = 0; i < DIM; i++) {
            double q = (double)sr_world_q(world, layer, pos)[h * DIM + i] / 8, lo = 1e30, hi = -1e30, m = 0, s = 0;
            for (int32_t r = p * 16; r < p * 16 + 16; r++) {
                double k = (double)sr_world_k(world, layer, r)[g * DIM + i];
                lo = fmin(lo, k);
                hi = fmax(hi, k);
                m += k / 16;
                s += k * k / 16;
            }
            sum += is_box ? fmax(q * lo, q * hi) : q * m + fabs(q) * sqrt(fmax(s - m * m, 0));
        }
        best = fmax(best, sum);
    }
    return best;
}

static void check_pages(int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t from, int32_t to, int is_box)
{
    double least = 1e30, most = -1e30;
    for (int32_t p = from; p < to; p++) {
        double score = page_score(layer, g, pos, p, is_box);
        for (int32_t i = 1; i < 16; i++) assert_int_equal(read[p * 16 + i], read[p * 16]);
        least = read[p * 16] ? fmin(least, score) : least;
        most = read[p * 16] ? most : fmax(most, score);
    }
    assert_true(least >= most - 1e-3);
}

static void check_quest(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    int32_t len = pos + 1;
    if (layer < 2) {
        assert_int_equal(n, len);
        return;
    }
    assert_true(n <= b->seq->route.budget && n > b->seq->route.budget - 16);
    for (int32_t i = len / 16 * 16; i < len; i++) assert_true(read[i]);
    check_pages(layer, g, pos, read, 0, len / 16, 1);
    assert_true(b->attention->scratch.touched[g].k_rows == n + 2 * (len / 16)); /* boxes are read too */
}

static void check_mean(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    assert_int_equal(n, (b->seq->route.budget - 68) / 16 * 16 + 68);
    check_pages(layer, g, pos, read, 1, (pos + 1 - 64) / 16, 0);
}

static void test_pages(void **state)
{
    (void)state;
    sr_route_options o = route(SR_ROUTE_QUEST, 100);
    run_mode(&o, check_quest);
    o = route(SR_ROUTE_PAGES, 150);
    run_mode(&o, check_mean);
}

/* ---- evicting ---- */

static uint8_t was_read[LAYERS][KV][LEN];

static void check_evicts(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    uint8_t *before = was_read[layer][g];
    assert_int_equal(n, b->seq->route.budget);
    for (int32_t i = pos + 1 - b->seq->route.budget / 2; i <= pos; i++) assert_true(read[i]);
    for (int32_t i = 0; pos > PROMPT && i < pos; i++) assert_true(!read[i] || before[i]); /* never comes back */
    memcpy(before, read, (size_t)pos + 1);
}

static void check_fixed(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    uint8_t *before = was_read[layer][g];
    assert_int_equal(n, b->seq->route.budget + pos + 1 - PROMPT);
    for (int32_t i = PROMPT - 32; i <= pos; i++) assert_true(read[i]);
    if (pos > PROMPT) assert_memory_equal(before, read, PROMPT);
    memcpy(before, read, (size_t)pos + 1);
}

static void check_full(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    (void)b;
    (void)layer;
    (void)g;
    (void)read;
    assert_int_equal(n, pos + 1);
}

static void check_special(const struct attn_bench *b, int32_t layer, int32_t g, int32_t pos, const uint8_t *read, int32_t n)
{
    (void)b;
    (void)layer;
    (void)g;
    assert_int_equal(n, 2);
    assert_true(read[0] && read[pos]);
}

static void test_evicting(void **state)
{
    (void)state;
    sr_route_options o = route(SR_ROUTE_H2O, 90);
    run_mode(&o, check_evicts);
    o = route(SR_ROUTE_SNAPKV, 90);
    run_mode(&o, check_fixed);
    o = route(SR_ROUTE_FASTGEN, 60);
    o.eps = 1e-4f;
    run_mode(&o, check_full);
    o.eps = .999f;
    run_mode(&o, check_special);
}

/* Rows that the prompt's queries attend to are the ones kept: more of their attention than the same number at random. */
static void test_sums(void **state)
{
    struct attn_bench b[2];
    double total = 0, truth[LEN] = {0}, logits[LEN], kept = 0;
    sr_route_options o = route(SR_ROUTE_H2O, 100);
    (void)state;
    for (int i = 0; i < 2; i++) open_with(&b[i], &o, i ? 7 : 300); /* batches do not show */
    for (int32_t g = 0; g < KV; g++) {
        const struct observed *x = sr_observed_get(b[0].seq->observer, 1, g),
                              *y = sr_observed_get(b[1].seq->observer, 1, g);
        for (int32_t i = 0; i < PROMPT; i++) /* products of bf16: a logit of 5 is off by .02 at most */
            assert_float_equal(x->column[i], y->column[i], .02 * (double)x->column[i] + 1e-4);
    }
    for (int32_t p = 0; p < PROMPT; p += 8) {
        for (int32_t h = 0; h < GROUP; h++) {
            double sum = 0;
            sr_world_logits(world, 1, h, p, logits);
            for (int32_t i = 0; i <= p; i++) sum += exp(logits[i]);
            for (int32_t i = 0; i <= p; i++) truth[i] += 8 * exp(logits[i]) / sum;
        }
    }
    const float *column = sr_observed_get(b[0].seq->observer, 1, 0)->column;
    for (int32_t i = 0; i < PROMPT; i++) {
        assert_float_equal(column[i], truth[i], .02 * truth[i] + .02);
        total += truth[i];
    }
    float out[LAYERS * STRIDE];
    uint8_t read[LEN];
    sr_bench_step(&b[0], world, PROMPT, out);
    sr_bench_again(&b[0], world, 1, PROMPT, out);
    rows_read(&b[0], 1, 0, read);
    for (int32_t i = 0; i < PROMPT; i++) kept += read[i] ? truth[i] : 0;
    assert_true(kept > 1.5 * total * 100 / PROMPT);
    for (int i = 0; i < 2; i++) sr_bench_close(&b[i]);
}

/* A run begins anew when the sequence was cut back: the same rows as the first time. */
static void test_runs_begin_anew(void **state)
{
    static const sr_route_mode modes[] = {SR_ROUTE_QUEST, SR_ROUTE_PAGES, SR_ROUTE_H2O, SR_ROUTE_SNAPKV, SR_ROUTE_FASTGEN,
                                          SR_ROUTE_TOPK, SR_ROUTE_TOPP};
    float first[LAYERS * STRIDE], again[LAYERS * STRIDE];
    struct attn_bench b;
    sr_route_options o = route(SR_ROUTE_DENSE, 0);
    (void)state;
    open_with(&b, &o, 128);
    for (int i = 0; i < 7; i++) {
        o = route(modes[i], 110);
        assert_int_equal(sr_attn_seq_route_set(b.seq, &o, NULL), SR_OK);
        for (int32_t p = PROMPT; p < LEN; p++) sr_bench_step(&b, world, p, first);
        assert_int_equal(sr_attn_seq_truncate(b.seq, PROMPT, NULL), SR_OK);
        for (int32_t p = PROMPT; p < LEN; p++) sr_bench_step(&b, world, p, again);
        assert_memory_equal(first, again, sizeof first);
        assert_int_equal(sr_attn_seq_truncate(b.seq, PROMPT, NULL), SR_OK);
    }
    sr_bench_close(&b);
}

static void test_refusals(void **state)
{
    struct attn_bench b;
    sr_route_options o = route(SR_ROUTE_DENSE, 0);
    sr_error err = {SR_OK, ""};
    (void)state;
    sr_bench_open(&b, world, SR_DTYPE_F16, SR_DTYPE_F16, &o, 1, NULL);
    o = route(SR_ROUTE_QUEST, 100);
    assert_int_equal(sr_attn_seq_route_set(b.seq, &o, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "quest"));
    struct attn_seq_config c = {SR_DTYPE_F16, SR_DTYPE_F16, LEN, o};
    struct attn_seq *s;
    assert_int_equal(sr_attn_seq_new(&s, b.attention, &c, &err), SR_ERR_USAGE);
    sr_bench_fill(&b, world, 0, 10);
    assert_int_equal(sr_attn_seq_observe(b.seq, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "10 tokens"));
    o.budget = 0;
    assert_int_equal(sr_attn_seq_route_set(b.seq, &o, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "budget 0"));
    o = route(SR_ROUTE_TOPK, 68);
    assert_int_equal(sr_attn_seq_route_set(b.seq, &o, &err), SR_ERR_USAGE);
    assert_non_null(strstr(err.text, "more than 68"));
    sr_bench_close(&b);
    o = route(SR_ROUTE_DENSE, 0);
    sr_bench_open(&b, world, SR_DTYPE_F8_E4M3, SR_DTYPE_F16, &o, 1, NULL);
    assert_int_equal(sr_attn_seq_observe(b.seq, &err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "K cache of f8_e4m3"));
    sr_bench_close(&b);
}

static int make_world(void **state)
{
    (void)state;
    world = sr_world_new(LAYERS, KV, GROUP, DIM, LEN, 4);
    sr_world_round(world, SR_DTYPE_F16, SR_DTYPE_F16);
    return 0;
}

static int free_world(void **state)
{
    (void)state;
    sr_world_free(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bounds), cmocka_unit_test(test_pages),           cmocka_unit_test(test_evicting),
        cmocka_unit_test(test_sums),   cmocka_unit_test(test_runs_begin_anew), cmocka_unit_test(test_refusals),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_world, free_world);
}
