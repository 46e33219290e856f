/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of policies, and route options: defaults, names, ranges.
 */
#include "attention/policy.h"

#include <math.h>
#include <string.h>

static const struct policy *const policies[] = {
    [SR_ROUTE_DENSE] = &sr_policy_dense,
    [SR_ROUTE_MASS] = &sr_policy_mass,
    [SR_ROUTE_PAPER] = &sr_policy_paper,
    [SR_ROUTE_WINDOW] = &sr_policy_window,
    [SR_ROUTE_QUEST] = &sr_policy_quest,
    [SR_ROUTE_PAGES] = &sr_policy_pages,
    [SR_ROUTE_H2O] = &sr_policy_h2o,
    [SR_ROUTE_SNAPKV] = &sr_policy_snapkv,
    [SR_ROUTE_FASTGEN] = &sr_policy_fastgen,
    [SR_ROUTE_TOPK] = &sr_policy_topk,
    [SR_ROUTE_TOPP] = &sr_policy_topp,
};
enum { N_POLICIES = sizeof policies / sizeof policies[0] };

const struct policy *sr_policy_find(sr_route_mode mode)
{
    return (unsigned)mode < N_POLICIES ? policies[mode] : NULL;
}

sr_route_options sr_route_options_default(void)
{
    return (sr_route_options){
        .mode = SR_ROUTE_MASS,
        .eps = 0.1f,
        .window = 256,
        .n_sinks = 4,
        .min_len = 2048,
        .rank = 0,
        .bits = 4,
        .audit = 0.01f,
        .breaker = 1,
        .look = 1,
        .trail = 1,
        .seed = 0,
        .keep = 0,
        .tau_set = 0,
        .tau_scale = 131072,
        .tau_min_len = 0,
        .tau_max_len = 131072,
    };
}

const char *sr_route_mode_name(sr_route_mode mode)
{
    const struct policy *p = sr_policy_find(mode);
    return p ? p->name : NULL;
}

sr_status sr_route_mode_find(sr_route_mode *out, const char *name, sr_error *err)
{
    if (!out || !name)
        return sr_fail(err, SR_ERR_USAGE, "sr_route_mode_find: %s is NULL", out ? "name" : "out");
    for (int i = 0; i < N_POLICIES; i++) {
        if (strcmp(policies[i]->name, name)) continue;
        *out = (sr_route_mode)i;
        return SR_OK;
    }
    char text[48];
    return sr_fail(err, SR_ERR_USAGE, "route mode \"%s\": want dense, mass, paper or window",
                   sr_escape(text, sizeof text, name, strlen(name)));
}

static sr_status check_range(const char *name, int64_t value, int64_t least, int64_t most, sr_error *err)
{
    if (value >= least && value <= most) return SR_OK;
    return sr_fail(err, SR_ERR_USAGE, "route %s %lld: want %lld..%lld", name, (long long)value,
                   (long long)least, (long long)most);
}

sr_status sr_route_check(const sr_route_options *o, int32_t head_dim, sr_error *err)
{
    const struct policy *p = sr_policy_find(o->mode);
    if (!p) return sr_fail(err, SR_ERR_USAGE, "route mode %d: want 0..%d", (int)o->mode, N_POLICIES - 1);
    if (!(o->eps > 0 && o->eps < 1))
        return sr_fail(err, SR_ERR_USAGE, "route eps %g: want more than 0 and less than 1", (double)o->eps);
    if (!(o->delta >= 0 && o->delta < 1))
        return sr_fail(err, SR_ERR_USAGE, "route delta %g: want 0 or more and less than 1", (double)o->delta);
    if (o->delta > 0 && !(o->audit > 0))
        return sr_fail(err, SR_ERR_USAGE, "route delta %g: needs audits, but audit is 0", (double)o->delta);
    SR_TRY(check_range("window", o->window, 1, 65536, err));
    SR_TRY(check_range("n_sinks", o->n_sinks, 0, 1024, err));
    SR_TRY(check_range("min_len", o->min_len, 0, INT32_MAX, err));
    SR_TRY(check_range("rank", o->rank, 0, head_dim, err));
    if (o->bits != 4 && o->bits != 8)
        return sr_fail(err, SR_ERR_USAGE, "route bits %d: want 4 or 8", o->bits);
    if (!(o->audit >= 0 && o->audit <= 1))
        return sr_fail(err, SR_ERR_USAGE, "route audit %g: want 0..1", (double)o->audit);
    if (p->has_budget && (o->budget < 1 || (p->keeps_near && o->budget <= o->n_sinks + o->window))) {
        return sr_fail(err, SR_ERR_USAGE, "route budget %d: want more than %d rows for %s", o->budget,
                       p->keeps_near ? o->n_sinks + o->window : 0, p->name);
    }
    if (!(o->keep >= 0 && o->keep <= 1))
        return sr_fail(err, SR_ERR_USAGE, "route keep %g: want 0..1", (double)o->keep);
    return p->check ? p->check(o, err) : SR_OK;
}
