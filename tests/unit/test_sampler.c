/* SPDX-License-Identifier: Apache-2.0
 *
 * The sampler against a plain reference of each filter, and its draws against the distribution they come from.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"

#include "base/memory.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = 500 };

static sr_error err;

static sr_sampler_options plain(void)
{
    sr_sampler_options o = sr_sampler_options_default();
    o.temperature = 1.0f;
    o.top_k = 0;
    o.top_p = 1.0f;
    o.min_p = 0.0f;
    o.seed = 7;
    return o;
}

static void random_logits(uint64_t seed, float *x, int n, double spread)
{
    struct rng r;
    sr_rng_seed(&r, seed);
    for (int i = 0; i < n; i++) x[i] = (float)((sr_rng_unit(&r) + sr_rng_unit(&r) + sr_rng_unit(&r) - 1.5) * spread);
}

/* ---- reference: one filter after the other on a list of probabilities, no cleverness ---- */

struct ref { double logit[V]; int alive[V]; int n; };

static void ref_probs(const struct ref *r, double *p)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < r->n; i++)
        if (r->alive[i] && r->logit[i] > top) top = r->logit[i];
    for (int i = 0; i < r->n; i++) sum += p[i] = r->alive[i] ? exp(r->logit[i] - top) : 0.0;
    for (int i = 0; i < r->n; i++) p[i] /= sum;
}

/* Rank of i among the living: how many come before it. */
static int ref_rank(const struct ref *r, int i)
{
    int rank = 0;
    for (int j = 0; j < r->n; j++)
        rank += r->alive[j] && (r->logit[j] > r->logit[i] || (r->logit[j] == r->logit[i] && j < i));
    return rank;
}

static void ref_top_k(struct ref *r, int k)
{
    int keep[V];
    if (k <= 0) return;
    for (int i = 0; i < r->n; i++) keep[i] = r->alive[i] && ref_rank(r, i) < k;
    memcpy(r->alive, keep, sizeof(int) * (size_t)r->n);
}

static void ref_top_p(struct ref *r, double top_p)
{
    double p[V], before[V];
    if (top_p >= 1.0) return;
    ref_probs(r, p);
    for (int i = 0; i < r->n; i++) {
        before[i] = 0;
        for (int j = 0; j < r->n; j++)
            if (r->alive[j] && ref_rank(r, j) < ref_rank(r, i)) before[i] += p[j];
    }
    for (int i = 0; i < r->n; i++) r->alive[i] &= before[i] < top_p; /* the one that crosses stays */
}

static void ref_min_p(struct ref *r, double min_p)
{
    double p[V], top = 0;
    ref_probs(r, p);
    for (int i = 0; i < r->n; i++) top = fmax(top, p[i]);
    for (int i = 0; i < r->n; i++) r->alive[i] &= p[i] >= min_p * top;
}

static void ref_penalties(struct ref *r, const sr_sampler_options *o, const int32_t *tokens, int n)
{
    for (int i = 0; i < r->n; i++) {
        int count = 0;
        for (int t = o->repeat_last_n < 0 || n < o->repeat_last_n ? 0 : n - o->repeat_last_n; t < n; t++) count += tokens[t] == i;
        if (!count) continue;
        r->logit[i] = r->logit[i] <= 0 ? r->logit[i] * (double)o->repeat_penalty : r->logit[i] / (double)o->repeat_penalty;
        r->logit[i] -= count * (double)o->frequency_penalty + (double)o->presence_penalty;
    }
}

static void ref_run(struct ref *r, const sr_sampler_options *o, const float *logits, int n, const int32_t *tokens, int n_tokens)
{
    r->n = n;
    for (int i = 0; i < n; i++) {
        r->logit[i] = (double)logits[i];
        r->alive[i] = logits[i] > -INFINITY;
    }
    for (const char *s = o->order; *s; s += strcspn(s, ";"), s += *s == ';') {
        if (s[0] == 'p') ref_penalties(r, o, tokens, n_tokens);
        if (strncmp(s, "top_k", 5) == 0) ref_top_k(r, o->top_k);
        if (strncmp(s, "top_p", 5) == 0) ref_top_p(r, (double)o->top_p);
        if (strncmp(s, "min_p", 5) == 0 && o->min_p > 0) ref_min_p(r, (double)o->min_p);
        if (strncmp(s, "temp", 4) == 0)
            for (int i = 0; i < n; i++) r->logit[i] /= (double)o->temperature;
    }
}

/* Draws often and compares counts with the reference's probabilities: nothing outside the support, and a chi-square of
 * tokens expected at least 8 times that a right sampler exceeds once in a million seeds (Wilson-Hilferty at 4.9 sigma).
 * Seeds are fixed: a pass is a pass for ever. */
static void same_distribution(const sr_sampler_options *o, const float *logits, int n, const int32_t *tokens, int n_tokens)
{
    enum { DRAWS = 5000 };
    static struct ref r;
    static int count[V];
    double p[V], chi = 0, rest_p = 1, rest_n = DRAWS;
    int cells = 0;
    sr_sampler *s;
    memset(count, 0, sizeof(count));
    ref_run(&r, o, logits, n, tokens, n_tokens);
    ref_probs(&r, p);
    assert_int_equal(sr_sampler_new(&s, o, n, &err), SR_OK);
    for (int i = 0; i < DRAWS; i++) {
        int32_t id;
        assert_int_equal(sr_sampler_next(s, logits, tokens, n_tokens, &id, &err), SR_OK);
        assert_in_range(id, 0, n - 1);
        if (!r.alive[id]) fail_msg("token %d drawn, though a filter took it out", id);
        count[id]++;
    }
    sr_sampler_free(s);
    for (int i = 0; i < n; i++) {
        if (p[i] * DRAWS < 8) continue;
        chi += (count[i] - p[i] * DRAWS) * (count[i] - p[i] * DRAWS) / (p[i] * DRAWS);
        rest_p -= p[i];
        rest_n -= count[i];
        cells++;
    }
    if (rest_p * DRAWS >= 8) {
        chi += (rest_n - rest_p * DRAWS) * (rest_n - rest_p * DRAWS) / (rest_p * DRAWS);
        cells++;
    }
    const double k = cells > 1 ? cells - 1 : 1, limit = k * pow(1 - 2 / (9 * k) + 4.9 * sqrt(2 / (9 * k)), 3);
    if (chi > limit) fail_msg("chi-square %.1f over %d cells, limit %.1f", chi, cells, limit);
}

static void each_filter(void **state)
{
    (void)state;
    float x[V];
    for (int round = 0; round < 3; round++) {
        random_logits((uint64_t)round + 1, x, V, 4.0 + 2 * round);
        sr_sampler_options o = plain();
        same_distribution(&o, x, V, NULL, 0);
        o.top_k = 7 + 40 * round;
        same_distribution(&o, x, V, NULL, 0);
        o = plain();
        o.top_p = 0.35f + 0.3f * (float)round;
        same_distribution(&o, x, V, NULL, 0);
        o = plain();
        o.min_p = 0.2f - 0.09f * (float)round;
        same_distribution(&o, x, V, NULL, 0);
        o = plain();
        o.temperature = 0.4f + 0.8f * (float)round;
        same_distribution(&o, x, V, NULL, 0);
    }
}

static void chains(void **state)
{
    (void)state;
    float x[V];
    int32_t tokens[200];
    struct rng r;
    static const char *const orders[] = {"penalties;top_k;top_p;min_p;temperature", "temperature;top_k;top_p;min_p",
                                         "min_p;penalties;top_p;temperature;top_k", "top_p", ""};
    sr_rng_seed(&r, 3);
    for (int i = 0; i < 200; i++) tokens[i] = (int32_t)(sr_rng_u64(&r) % 60);
    random_logits(11, x, V, 6);
    x[3] = x[17] = x[99]; /* ties */
    x[5] = -INFINITY;
    for (size_t k = 0; k < sizeof(orders) / sizeof(orders[0]); k++) {
        sr_sampler_options o = sr_sampler_options_default();
        o.order = orders[k];
        o.top_k = 60;
        o.top_p = 0.9f;
        o.min_p = 0.01f;
        o.temperature = 1.7f;
        o.repeat_penalty = 1.2f;
        o.presence_penalty = 0.5f;
        o.frequency_penalty = -0.1f;
        o.repeat_last_n = k % 2 ? -1 : 64;
        same_distribution(&o, x, V, tokens, 200);
    }
}

/* A long front: top_p sorts in growing steps and must stop at the same place. */
static void flat_top_p(void **state)
{
    (void)state;
    float x[V];
    random_logits(5, x, V, 0.3);
    sr_sampler_options o = plain();
    o.top_p = 0.97f;
    same_distribution(&o, x, V, NULL, 0);
    for (int i = 0; i < V; i++) x[i] = 1.0f; /* all tied: the lowest ids stay */
    o.top_k = 10;
    o.top_p = 0.55f;
    same_distribution(&o, x, V, NULL, 0);
}

static int32_t next(sr_sampler *s, const float *x, const int32_t *tokens, int n)
{
    int32_t id = -1;
    assert_int_equal(sr_sampler_next(s, x, tokens, n, &id, &err), SR_OK);
    return id;
}

static void greedy(void **state)
{
    (void)state;
    const float x[6] = {1.0f, 4.0f, -2.0f, 4.0f, 3.9f, -INFINITY};
    const int32_t seen[] = {1, 1, 3};
    sr_sampler_options o = sr_sampler_options_default();
    sr_sampler *s;
    o.temperature = 0;
    assert_int_equal(sr_sampler_new(&s, &o, 6, &err), SR_OK);
    assert_int_equal(next(s, x, NULL, 0), 1); /* the lowest id of a tie */
    sr_sampler_free(s);
    o.repeat_penalty = 1.5f;
    assert_int_equal(sr_sampler_new(&s, &o, 6, &err), SR_OK);
    assert_int_equal(next(s, x, seen, 3), 4); /* both tied ones were said */
    assert_int_equal(next(s, x, NULL, 0), 1); /* and are free again without a past */
    sr_sampler_free(s);
}

static void seeds(void **state)
{
    (void)state;
    float x[V];
    sr_sampler *a, *b, *c;
    sr_sampler_options o = plain();
    int differ = 0;
    random_logits(2, x, V, 3);
    assert_int_equal(sr_sampler_new(&a, &o, V, &err), SR_OK);
    assert_int_equal(sr_sampler_new(&b, &o, V, &err), SR_OK);
    o.seed++;
    assert_int_equal(sr_sampler_new(&c, &o, V, &err), SR_OK);
    for (int i = 0; i < 200; i++) {
        const int32_t id = next(a, x, NULL, 0);
        assert_int_equal(id, next(b, x, NULL, 0));
        differ += id != next(c, x, NULL, 0);
    }
    assert_true(differ > 50);
    sr_sampler_free(a);
    sr_sampler_free(b);
    sr_sampler_free(c);
    assert_int_not_equal(sr_seed_random(), sr_seed_random());
}

static void bad_logits(void **state)
{
    (void)state;
    float x[4] = {0, 1, NAN, 2};
    int32_t id = 77;
    sr_sampler *s;
    sr_sampler_options o = sr_sampler_options_default();
    assert_int_equal(sr_sampler_new(&s, &o, 4, &err), SR_OK);
    assert_int_equal(sr_sampler_next(s, x, NULL, 0, &id, &err), SR_ERR_NUMERIC);
    assert_non_null(strstr(err.text, "token 2"));
    x[2] = INFINITY;
    assert_int_equal(sr_sampler_next(s, x, NULL, 0, &id, &err), SR_ERR_NUMERIC);
    for (int i = 0; i < 4; i++) x[i] = -INFINITY;
    assert_int_equal(sr_sampler_next(s, x, NULL, 0, &id, &err), SR_ERR_NUMERIC);
    assert_int_equal(id, 77);
    x[1] = -3.0f; /* one candidate left */
    for (int i = 0; i < 20; i++) assert_int_equal(next(s, x, NULL, 0), 1);
    const int32_t outside[] = {-1, 4, 1 << 30, 1};
    o.repeat_penalty = 2;
    sr_sampler_free(s);
    assert_int_equal(sr_sampler_new(&s, &o, 4, &err), SR_OK);
    assert_int_equal(next(s, x, outside, 4), 1);
    sr_sampler_free(s);
}

static void refused(sr_sampler_options o, const char *needle)
{
    sr_sampler *s = NULL;
    assert_int_equal(sr_sampler_new(&s, &o, V, &err), SR_ERR_USAGE);
    assert_null(s);
    if (!strstr(err.text, needle)) fail_msg("\"%s\" is not in: %s", needle, err.text);
}

static void bad_options(void **state)
{
    (void)state;
    const sr_sampler_options d = sr_sampler_options_default();
    sr_sampler_options o = d;
    refused((o = d, o.temperature = NAN, o), "temperature");
    refused((o = d, o.top_p = 1.5f, o), "top_p 1.5");
    refused((o = d, o.top_p = -0.1f, o), "top_p");
    refused((o = d, o.min_p = NAN, o), "min_p");
    refused((o = d, o.repeat_penalty = 0, o), "repeat_penalty");
    refused((o = d, o.presence_penalty = INFINITY, o), "presence_penalty");
    refused((o = d, o.repeat_last_n = -2, o), "repeat_last_n");
    refused((o = d, o.order = "top_k;xtc", o), "xtc");
    refused((o = d, o.order = "top_k;top_p;top_k", o), "top_k is there twice");
    refused((o = d, o.order = "top_k;%s\n", o), "%s\\x0a");
    sr_sampler *s;
    assert_int_equal(sr_sampler_new(&s, &d, 0, &err), SR_ERR_USAGE);
}

static void no_allocation(void **state)
{
    (void)state;
    float x[V];
    int32_t tokens[64] = {0};
    sr_sampler *s;
    sr_sampler_options o = sr_sampler_options_default();
    o.repeat_penalty = 1.1f;
    random_logits(9, x, V, 5);
    assert_int_equal(sr_sampler_new(&s, &o, V, &err), SR_OK);
    const uint64_t before = sr_alloc_count();
    for (int i = 0; i < 100; i++) next(s, x, tokens, 64);
    assert_int_equal(sr_alloc_count(), before);
    sr_sampler_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_filter), cmocka_unit_test(chains), cmocka_unit_test(flat_top_p),
                                       cmocka_unit_test(greedy), cmocka_unit_test(seeds), cmocka_unit_test(bad_logits),
                                       cmocka_unit_test(bad_options), cmocka_unit_test(no_allocation)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
