/* SPDX-License-Identifier: Apache-2.0
 *
 * paper: SinkRouter as published (arXiv 2604.16883). A KV group whose queries point along the first key, by
 * the mean cosine over its heads, is taken to sit on the sink: it reads nothing and its output is 0.
 */
#include "attention/policy.h"

#include <math.h>

enum { DENSE_LAYERS = 2 }; /* the first layers are never skipped */

double sr_route_tau(const sr_route_options *o, int32_t kv_len)
{
    const double *c = o->tau;
    if (c[1] == 0 && c[2] == 0 && c[3] == 0) return c[0];
    double len = kv_len; /* outside the lengths it was fitted on the cubic leaves the range of a cosine */
    if (len > o->tau_max_len) len = o->tau_max_len;
    if (len < o->tau_min_len) len = o->tau_min_len;
    double x = len / o->tau_scale;
    return c[0] + x * (c[1] + x * (c[2] + x * c[3]));
}

static sr_status check(const sr_route_options *o, sr_error *err)
{
    if (!o->tau_set)
        return sr_fail(err, SR_ERR_USAGE,
                       "route mode paper needs a threshold: give --route-tau or a calibration file");
    for (int i = 0; i < 4; i++) {
        if (!isfinite(o->tau[i]))
            return sr_fail(err, SR_ERR_USAGE, "route tau[%d] %g: want a number", i, o->tau[i]);
    }
    if (o->tau[1] == 0 && o->tau[2] == 0 && o->tau[3] == 0) return SR_OK;
    if (!(o->tau_scale > 0))
        return sr_fail(err, SR_ERR_USAGE, "route tau_scale %g: want more than 0", o->tau_scale);
    if (!(o->tau_min_len <= o->tau_max_len)) {
        return sr_fail(err, SR_ERR_USAGE, "route tau_min_len %g: want at most tau_max_len %g", o->tau_min_len,
                       o->tau_max_len);
    }
    return SR_OK;
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    if (step->layer < DENSE_LAYERS) {
        for (int32_t u = 0; u < step->n_units; u++) p->kind[u] = READ_ALL;
        return;
    }
    step->backend->ops->attn_cosine(step->backend, &(struct attn_cosine_args){
                                                       .shape = step->shape,
                                                       .units = step->units,
                                                       .n_units = step->n_units,
                                                       .score = step->score,
                                                       .touched = step->touched,
                                                   });
    for (int32_t u = 0; u < step->n_units; u++) {
        p->kind[u] =
            step->score[u] > sr_route_tau(step->options, step->units[u].kv_len) ? READ_NONE : READ_ALL;
    }
}

const struct policy sr_policy_paper = {.name = "paper", .check = check, .rule = RULE_COSINE, .dense_layers = DENSE_LAYERS, .plan = plan};
