/* SPDX-License-Identifier: Apache-2.0
 *
 * See contract.h. Scores lie twice: in the order of arrival, so that the oldest can leave, and sorted, so that
 * a quantile is one look.
 */
#include "attention/contract.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

/* Steps of the level: the value of Gibbs and Candes' experiments. */
static const double gain = 0.005;
/* Shares of eps: the threshold before enough cases are there to say anything (it kept 99 % of cases within eps on the
 * texts of docs/routing.md), and the one that it never falls below. */
static const double first = 1.0 / 4, least = 1.0 / 64;
/* A score says nothing more above this, nor below 0. */
static const float most = 1e6f;

enum { FIRST_HOLD = 512, LAST_HOLD = 8192 };

struct breaker {
    int32_t failed; /* bit i: the i-th last audit failed */
    int32_t hold;   /* rows that the unit stays whole for, once open */
    int32_t until;  /* kv_len at which an open one is tried; 0: closed */
    int32_t noted;  /* the step at hand audited this unit */
};

/* One block: this, breakers, notes. What a session file keeps is all of it. */
struct contract {
    int32_t n_units, group;
    int32_t pos; /* of the step whose audits are noted; -1: none */
    int32_t n, next;
    double level; /* of the quantile's complement: delta at first; negative: not begun */
    float threshold, pad;
    float by_age[SR_CONTRACT_SCORES], sorted[SR_CONTRACT_SCORES];
};

static struct breaker *breakers(const struct contract *c)
{
    return (struct breaker *)(c + 1);
}

/* [n_units][group] true unread shares of the step at hand */
static float *notes(const struct contract *c)
{
    return (float *)(breakers(c) + c->n_units);
}

static size_t bytes_of(int32_t n_units, int32_t group)
{
    return sizeof(struct contract) + (size_t)n_units * sizeof(struct breaker) +
           (size_t)n_units * (size_t)group * sizeof(float);
}

sr_status sr_contract_new(struct contract **out, int32_t n_units, int32_t group, sr_error *err)
{
    size_t bytes = bytes_of(n_units, group);
    struct contract *c = sr_alloc(bytes);
    if (!c) return sr_fail_memory(err, bytes, "contract");
    sr_contract_restart(c, n_units, group);
    *out = c;
    return SR_OK;
}

void sr_contract_free(struct contract *c)
{
    sr_free(c);
}

void sr_contract_restart(struct contract *c, int32_t n_units, int32_t group)
{
    memset(c, 0, bytes_of(n_units, group));
    c->n_units = n_units;
    c->group = group;
    c->pos = -1;
    c->level = -1;
}

/* ---- scores ---- */

/* Index of the first sorted score that is not below x. */
static int32_t place_of(const struct contract *c, float x)
{
    int32_t lo = 0, hi = c->n;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (c->sorted[mid] < x)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void add_score(struct contract *c, float x)
{
    if (c->n == SR_CONTRACT_SCORES) {
        int32_t at = place_of(c, c->by_age[c->next]);
        at = at < c->n ? at : c->n - 1;
        memmove(c->sorted + at, c->sorted + at + 1, (size_t)(c->n - 1 - at) * sizeof(float));
        c->n--;
    }
    int32_t at = place_of(c, x);
    memmove(c->sorted + at + 1, c->sorted + at, (size_t)(c->n - at) * sizeof(float));
    c->sorted[at] = x;
    c->by_age[c->next] = x;
    c->next = (c->next + 1) % SR_CONTRACT_SCORES;
    c->n++;
}

/* Split conformal: with n scores, the ceil((n + 1)(1 - level))-th smallest, and nothing is enough where there
 * is none. Few cases say little of the quantile, and the heads of a unit say much the same: the level is made
 * stricter by two standard errors of a share over n / group draws, which the level's own steps take back with
 * time. */
static float corrected(const struct contract *c, const sr_route_options *o)
{
    const double eps = (double)o->eps, delta = (double)o->delta, top = (double)sr_contract_uncorrected(o);
    double n = (double)c->n / c->group, level = c->level - 2 * sqrt(delta * (1 - delta) / (n > 1 ? n : 1));
    double k = ceil((c->n + 1) * (1 - level));
    if (k > c->n) return (float)(eps * (c->n < SR_CONTRACT_WARM ? first : least));
    double score = (double)c->sorted[k < 1 ? 0 : (int32_t)k - 1], threshold = score * top > eps ? eps / score : top;
    return (float)(threshold > eps * least ? threshold : eps * least);
}

static void settle_scores(struct contract *c, const sr_route_options *o)
{
    double eps = (double)o->eps, delta = (double)o->delta;
    if (c->level < 0) {
        c->level = delta;
        c->threshold = (float)(eps * first);
    }
    double in_force = (double)c->threshold;
    for (int32_t i = 0; i < c->n_units * c->group; i++) {
        if (!breakers(c)[i / c->group].noted) continue;
        double unread = (double)notes(c)[i], score = unread / in_force;
        c->level += gain * (delta - (unread <= eps ? 0 : 1));
        add_score(c, score < (double)most ? (float)score : most); /* NaN becomes the worst */
    }
    c->level = c->level < 0 ? 0 : c->level < 0.999 ? c->level : 0.999;
    c->threshold = corrected(c, o);
}

/* ---- breakers ---- */

enum { FAILS_OF = 4, FAILS = 2 }; /* two failed audits of the last four open it */

static int ones(int32_t bits)
{
    return __builtin_popcount((unsigned)bits);
}

/* Why the audit in the notes should open the breaker, or -1. */
static int cause_of(const struct contract *c, int32_t unit, const struct breaker *b, double eps)
{
    const float *unread = notes(c) + (size_t)unit * (size_t)c->group;
    double worst = 0;
    for (int32_t h = 0; h < c->group; h++) {
        if (!isfinite(unread[h])) return SR_BREAK_NUMERIC;
        if ((double)unread[h] > worst) worst = (double)unread[h];
    }
    if (worst > 0.5 && worst > 2 * eps) return SR_BREAK_LOST;
    if (ones(b->failed) >= FAILS || (b->until && (b->failed & 1))) return SR_BREAK_UNREAD;
    return -1;
}

static void settle_breaker(struct contract *c, int32_t unit, const sr_route_options *o, sr_route_stats *stats)
{
    struct breaker *b = &breakers(c)[unit];
    const float *unread = notes(c) + (size_t)unit * (size_t)c->group;
    int failed = 0;
    for (int32_t h = 0; h < c->group; h++) failed |= !(unread[h] <= 2 * o->eps);
    b->failed = (b->failed << 1 | failed) & ((1 << FAILS_OF) - 1);
    int cause = cause_of(c, unit, b, (double)o->eps), was_open = b->until > 0;
    if (cause < 0) {
        stats->breaker_closed += was_open;
        if (was_open) *b = (struct breaker){0, 0, 0, 0};
        return;
    }
    b->hold = b->hold ? 2 * b->hold : FIRST_HOLD;
    if (b->hold > LAST_HOLD) b->hold = LAST_HOLD;
    b->until = c->pos + 1 + b->hold;
    b->failed = 0;
    stats->breaker_opened[cause]++;
}

enum unit_trust sr_contract_trust(const struct contract *c, int32_t unit, int32_t kv_len)
{
    const struct breaker *b = &breakers(c)[unit];
    if (b->until == 0) return UNIT_ROUTED;
    /* a sequence that was cut back waits no longer than one that was not */
    return kv_len >= b->until || kv_len < b->until - b->hold ? UNIT_TRIAL : UNIT_WHOLE;
}

/* ---- steps ---- */

static void settle(struct contract *c, const sr_route_options *o, sr_route_stats *stats)
{
    int any = 0;
    for (int32_t u = 0; u < c->n_units; u++) any |= breakers(c)[u].noted;
    if (any && o->delta > 0) settle_scores(c, o);
    for (int32_t u = 0; any && u < c->n_units; u++) {
        if (breakers(c)[u].noted && o->breaker) settle_breaker(c, u, o, stats);
        breakers(c)[u].noted = 0;
    }
}

void sr_contract_step(struct contract *c, int32_t pos, const sr_route_options *o, sr_route_stats *stats)
{
    if (c->pos == pos) return;
    if (c->pos >= 0 && c->pos == pos - 1) settle(c, o, stats);
    for (int32_t u = 0; u < c->n_units; u++) breakers(c)[u].noted = 0;
    c->pos = pos;
}

void sr_contract_note(struct contract *c, int32_t unit, int32_t kv_len, const double *unread)
{
    if (c->pos != kv_len - 1) return;
    breakers(c)[unit].noted = 1;
    for (int32_t h = 0; h < c->group; h++) notes(c)[unit * c->group + h] = (float)unread[h];
}

float sr_contract_uncorrected(const sr_route_options *o)
{
    const double eps = (double)o->eps;
    return o->look ? (float)(SR_CONTRACT_ODDS * eps / (1 + (SR_CONTRACT_ODDS - 1) * eps)) : o->eps;
}

float sr_contract_threshold(const struct contract *c, const sr_route_options *o)
{
    if (!(o->delta > 0)) return sr_contract_uncorrected(o);
    return c->level < 0 ? (float)((double)o->eps * first) : c->threshold;
}

double sr_contract_audit_share(const struct contract *c, const sr_route_options *o)
{
    double share = (double)o->audit;
    return o->delta > 0 && c->n < SR_CONTRACT_WARM && share < 0.0625 ? 0.0625 : share;
}

/* ---- session files ---- */

void *sr_contract_piece(struct contract *c, int32_t len, const sr_route_options *o, sr_route_stats *stats,
                        size_t *bytes)
{
    if (c->pos >= 0 && c->pos == len - 1) settle(c, o, stats);
    *bytes = bytes_of(c->n_units, c->group);
    return c;
}

int sr_contract_check(const struct contract *c, int32_t n_units, int32_t group)
{
    if (c->n_units != n_units || c->group != group || c->n < 0 || c->n > SR_CONTRACT_SCORES || c->next < 0 || c->next >= SR_CONTRACT_SCORES || c->pos < -1 ||
        !(c->level >= -1 && c->level < 1) || !(c->threshold >= 0 && c->threshold < 1))
        return -1;
    for (int32_t i = 0; i < c->n; i++) {
        if (!(c->sorted[i] >= 0 && c->sorted[i] <= most) || (i && c->sorted[i] < c->sorted[i - 1])) return -1;
    }
    for (int32_t u = 0; u < c->n_units; u++) {
        const struct breaker *b = &breakers(c)[u];
        if (b->failed < 0 || b->failed >= 1 << FAILS_OF || b->hold < 0 || b->hold > LAST_HOLD || b->until < 0)
            return -1;
    }
    return 0;
}
