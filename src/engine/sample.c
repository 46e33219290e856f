/* SPDX-License-Identifier: Apache-2.0
 *
 * Sampling: a chain of filters over candidates (token, logit), then one draw. Candidates are kept in falling order of
 * logit (lower id first on ties) as far as a filter needs them: `sorted` of them are in place at the front, the rest
 * follow in any order. Nothing is allocated per token.
 */
#include "sinkrouter/engine.h"

#include "base/memory.h"
#include "base/rng.h"
#include "base/status.h"

#include <math.h>
#include <string.h>

enum stage { STAGE_PENALTIES, STAGE_TOP_K, STAGE_TOP_P, STAGE_MIN_P, STAGE_TEMPERATURE, N_STAGES };

static const char *const stage_names[N_STAGES] = {"penalties", "top_k", "top_p", "min_p", "temperature"};

struct candidate {
    float logit;
    int32_t id;
};

struct sr_sampler {
    sr_sampler_options o;
    enum stage order[N_STAGES];
    int n_stages;
    int32_t n_vocab;
    struct rng rng;
    struct candidate *c; /* [n_vocab] */
    int32_t n, sorted;   /* candidates left, and how many of them are in order */
    int32_t *count;      /* [n_vocab] occurrences in the window; zero between calls */
};

sr_sampler_options sr_sampler_options_default(void)
{
    return (sr_sampler_options){.temperature = 0.8f, .top_p = 0.95f, .min_p = 0.05f, .top_k = 40, .repeat_penalty = 1.0f,
                                .repeat_last_n = 64, .order = "penalties;top_k;top_p;min_p;temperature"};
}

uint64_t sr_seed_random(void) { return sr_random_seed(); }

/* ---- options ---- */

static sr_status parse_order(struct sr_sampler *p, const char *order, sr_error *err)
{
    char text[32];
    int seen[N_STAGES] = {0};
    for (const char *s = order; *s;) {
        const size_t n = strcspn(s, ";");
        int k = 0;
        while (k < N_STAGES && (strlen(stage_names[k]) != n || memcmp(s, stage_names[k], n) != 0)) k++;
        if (k == N_STAGES)
            return sr_fail(err, SR_ERR_USAGE, "sampler order: \"%s\" is not one of penalties, top_k, top_p, min_p, temperature",
                           sr_escape(text, sizeof(text), s, n));
        if (seen[k]++) return sr_fail(err, SR_ERR_USAGE, "sampler order: %s is there twice", stage_names[k]);
        p->order[p->n_stages++] = (enum stage)k;
        s += n + (s[n] == ';');
    }
    return SR_OK;
}

static sr_status want_range(const char *name, double v, double lo, double hi, sr_error *err)
{
    if (v >= lo && v <= hi) return SR_OK;
    return sr_fail(err, SR_ERR_USAGE, "%s %g: want %g..%g", name, v, lo, hi);
}

static sr_status check_options(const sr_sampler_options *o, sr_error *err)
{
    SR_TRY(want_range("temperature", (double)o->temperature, -1e6, 1e6, err));
    SR_TRY(want_range("top_p", (double)o->top_p, 0.0, 1.0, err));
    SR_TRY(want_range("min_p", (double)o->min_p, 0.0, 1.0, err));
    SR_TRY(want_range("repeat_penalty", (double)o->repeat_penalty, 1e-3, 1e3, err));
    SR_TRY(want_range("presence_penalty", (double)o->presence_penalty, -1e3, 1e3, err));
    SR_TRY(want_range("frequency_penalty", (double)o->frequency_penalty, -1e3, 1e3, err));
    return want_range("repeat_last_n", (double)o->repeat_last_n, -1.0, 2147483647.0, err);
}

sr_status sr_sampler_new(sr_sampler **out, const sr_sampler_options *o, int32_t n_vocab, sr_error *err)
{
    if (!out || n_vocab < 1) return sr_fail(err, SR_ERR_USAGE, "sampler for %d tokens: want at least 1", n_vocab);
    const sr_sampler_options options = o ? *o : sr_sampler_options_default();
    SR_TRY(check_options(&options, err));
    struct sr_sampler *p = sr_alloc_zero(1, sizeof(*p));
    if (!p) return sr_fail_memory(err, sizeof(*p), "sampler");
    sr_status st;
    p->o = options;
    p->o.order = NULL; /* the caller's */
    p->n_vocab = n_vocab;
    SR_TRY_GOTO(parse_order(p, options.order ? options.order : sr_sampler_options_default().order, err));
    sr_rng_seed(&p->rng, options.seed);
    p->c = sr_alloc((size_t)n_vocab * sizeof(*p->c));
    p->count = sr_alloc_zero((size_t)n_vocab, sizeof(*p->count));
    if (!p->c || !p->count) {
        st = sr_fail_memory(err, (size_t)n_vocab * (sizeof(*p->c) + sizeof(*p->count)), "sampler");
        goto fail;
    }
    *out = p;
    return SR_OK;
fail:
    sr_sampler_free(p);
    return st;
}

void sr_sampler_free(sr_sampler *p)
{
    if (!p) return;
    sr_free(p->c);
    sr_free(p->count);
    sr_free(p);
}

/* ---- partial order ---- */

/* a comes before b. */
static int before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void swap(struct candidate *a, struct candidate *b)
{
    const struct candidate t = *a;
    *a = *b;
    *b = t;
}

/* Sift-down in a heap of n whose root is the candidate that comes last. */
static void sift(struct candidate *h, int32_t n, int32_t i)
{
    for (int32_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && before(h[child], h[child + 1])) child++;
        if (!before(h[i], h[child])) return;
        swap(&h[i], &h[child]);
        i = child;
    }
}

/* Brings the first `want` candidates into place: a heap of the best ones seen, then sorted. Costs one comparison for
 * nearly every candidate when `want` is small. */
static void sort_front(struct sr_sampler *p, int32_t want)
{
    if (want > p->n) want = p->n;
    if (want <= p->sorted) return;
    struct candidate *h = p->c + p->sorted;
    const int32_t k = want - p->sorted, n = p->n - p->sorted;
    for (int32_t i = k / 2 - 1; i >= 0; i--) sift(h, k, i);
    for (int32_t i = k; i < n; i++) {
        if (!before(h[i], h[0])) continue;
        swap(&h[i], &h[0]);
        sift(h, k, 0);
    }
    for (int32_t i = k - 1; i > 0; i--) {
        swap(&h[0], &h[i]);
        sift(h, i, 0);
    }
    p->sorted = want;
}

static float top_logit(const struct sr_sampler *p)
{
    if (p->sorted) return p->c[0].logit;
    float m = p->c[0].logit;
    for (int32_t i = 1; i < p->n; i++)
        if (p->c[i].logit > m) m = p->c[i].logit;
    return m;
}

/* ---- filters ---- */

static void cut(struct sr_sampler *p, int32_t n)
{
    p->n = n;
    if (p->sorted > n) p->sorted = n;
}

static void top_k(struct sr_sampler *p)
{
    if (p->o.top_k <= 0 || p->o.top_k >= p->n) return;
    sort_front(p, p->o.top_k);
    cut(p, p->o.top_k);
}

static double sum_exp(const struct sr_sampler *p, float top)
{
    double sum = 0.0;
    for (int32_t i = 0; i < p->n; i++) sum += exp((double)p->c[i].logit - (double)top);
    return sum;
}

/* The shortest front whose probability reaches top_p; sorted in growing steps, so that a short one costs little. */
static void top_p(struct sr_sampler *p)
{
    if (p->o.top_p >= 1.0f) return;
    const float top = top_logit(p);
    const double want = (double)p->o.top_p * sum_exp(p, top);
    double sum = 0.0;
    for (int32_t i = 0; i < p->n; i++) {
        if (i == p->sorted) sort_front(p, i < 64 ? 64 : 4 * i);
        sum += exp((double)p->c[i].logit - (double)top);
        if (sum >= want) {
            cut(p, i + 1);
            return;
        }
    }
}

/* Keeps p_i >= min_p * p_max; the order of what stays does not change. */
static void min_p(struct sr_sampler *p)
{
    if (p->o.min_p <= 0.0f) return;
    const double least = (double)top_logit(p) + log((double)p->o.min_p);
    int32_t n = 0, sorted = 0;
    for (int32_t i = 0; i < p->n; i++) {
        if ((double)p->c[i].logit < least) continue;
        if (i < p->sorted) sorted++;
        p->c[n++] = p->c[i];
    }
    p->n = n;
    p->sorted = sorted;
}

static void temperature(struct sr_sampler *p)
{
    for (int32_t i = 0; i < p->n; i++) p->c[i].logit /= p->o.temperature;
}

static int penalties_off(const sr_sampler_options *o)
{
    return o->repeat_last_n == 0 || (o->repeat_penalty == 1.0f && o->presence_penalty == 0.0f && o->frequency_penalty == 0.0f);
}

/* Tokens of the window: every occurrence is counted once, and each token is penalised once by its count. Wherever the
 * stage stands in the chain, candidates that are gone stay gone. */
static void penalties(struct sr_sampler *p, const int32_t *tokens, int32_t n_tokens)
{
    if (penalties_off(&p->o)) return;
    const int32_t last = p->o.repeat_last_n, from = last >= 0 && n_tokens > last ? n_tokens - last : 0;
    for (int32_t i = from; i < n_tokens; i++)
        if (tokens[i] >= 0 && tokens[i] < p->n_vocab) p->count[tokens[i]]++;
    for (int32_t i = 0; i < p->n; i++) {
        struct candidate *c = &p->c[i];
        const int32_t count = p->count[c->id];
        if (!count) continue;
        c->logit = c->logit <= 0.0f ? c->logit * p->o.repeat_penalty : c->logit / p->o.repeat_penalty;
        c->logit -= (float)count * p->o.frequency_penalty + p->o.presence_penalty;
    }
    for (int32_t i = from; i < n_tokens; i++)
        if (tokens[i] >= 0 && tokens[i] < p->n_vocab) p->count[tokens[i]] = 0;
    p->sorted = 0;
}

/* ---- one token ---- */

/* -inf forbids a token: it is no candidate. */
static sr_status take_candidates(struct sr_sampler *p, const float *logits, sr_error *err)
{
    int32_t n = 0;
    for (int32_t i = 0; i < p->n_vocab; i++) {
        const float x = logits[i];
        if (!(x < INFINITY))
            return sr_fail(err, SR_ERR_NUMERIC, "logit of token %d is %s", i, isnan(x) ? "NaN" : "infinite");
        if (x > -INFINITY) p->c[n++] = (struct candidate){.logit = x, .id = i};
    }
    p->n = n;
    p->sorted = 0;
    return n ? SR_OK : sr_fail(err, SR_ERR_NUMERIC, "all %d logits are -inf", p->n_vocab);
}

static int32_t greedy(const struct sr_sampler *p)
{
    struct candidate best = p->c[0];
    for (int32_t i = 1; i < p->n; i++)
        if (before(p->c[i], best)) best = p->c[i];
    return best.id;
}

static int32_t draw(struct sr_sampler *p)
{
    const float top = top_logit(p);
    const double want = sr_rng_unit(&p->rng) * sum_exp(p, top);
    double sum = 0.0;
    for (int32_t i = 0; i < p->n; i++) {
        sum += exp((double)p->c[i].logit - (double)top);
        if (sum > want) return p->c[i].id;
    }
    return p->c[p->n - 1].id; /* rounding at the very end */
}

sr_status sr_sampler_next(sr_sampler *p, const float *logits, const int32_t *tokens, int32_t n_tokens, int32_t *id, sr_error *err)
{
    if (!p || !logits || !id || n_tokens < 0 || (!tokens && n_tokens))
        return sr_fail(err, SR_ERR_USAGE, "sr_sampler_next: an argument is NULL");
    SR_TRY(take_candidates(p, logits, err));
    const int is_greedy = p->o.temperature <= 0.0f;
    for (int i = 0; i < p->n_stages; i++) {
        switch (p->order[i]) {
        case STAGE_PENALTIES: penalties(p, tokens, n_tokens); break;
        case STAGE_TOP_K: if (!is_greedy) top_k(p); break;
        case STAGE_TOP_P: if (!is_greedy) top_p(p); break;
        case STAGE_MIN_P: if (!is_greedy) min_p(p); break;
        case STAGE_TEMPERATURE: if (!is_greedy) temperature(p); break;
        case N_STAGES: break;
        }
    }
    *id = is_greedy ? greedy(p) : draw(p);
    return SR_OK;
}
