/* SPDX-License-Identifier: Apache-2.0
 *
 * The policy interface: routing is data. For one layer of one step a policy says, for each unit (sequence, KV
 * group), which rows are read; attention executes it and knows no policy. A policy calls backend ops through
 * the step and never a kernel. A new policy is one file and one row in policy.c.
 *
 * A policy is asked only about steps that are to be routed: at least min_len rows, more rows than sinks and
 * window, and with sketch rows over the whole far part if it needs a sketch. All other steps are dense.
 */
#ifndef SR_ATTENTION_POLICY_H
#define SR_ATTENTION_POLICY_H

#include "sinkrouter/attention.h"
#include "backend/backend.h"
#include "backend/device_attn.h"

struct observed; /* observe.h: what baselines of other papers look at */

/* What one step of one layer offers to a policy. Arrays over the n units that share this policy and its
 * options. */
struct route_step {
    struct backend *backend;
    const struct attn_shape *shape;
    const struct sketch_shape *sketch;
    const sr_route_options *options;
    int32_t layer, n_units;
    const struct attn_unit *units;
    const struct sketch_basis *basis; /* [n_units] if the policy needs a sketch */
    struct attn_state
        state; /* [n_units]: a policy that attends the near part while deciding leaves it here */
    struct attn_touched *touched; /* [n_units] of every row that deciding touched */
    const float *eps;             /* [n_units] threshold for the estimate */
    const uint8_t *whole;         /* [n_units] read it whole: its breaker is open */
    struct observed *const *observed; /* [n_units] if the policy needs it */
    const int32_t *const *found;  /* [n_units] far rows that are read in any case, rising: sinks, and the trail's */
    const int32_t *n_found;       /* [n_units] */
    const int32_t *const *drawn;  /* [n_units] NULL, or rows to be read instead of those chosen, rising (measurements) */
    const int32_t *n_drawn;       /* [n_units] */
    float *near_m, *near_l;       /* [n_units][group] for audits: what was read before the choice, as left by the policy */
    float *found_l;               /* [n_units][group] likewise: what `found` has in near_l */
    int32_t *top;                 /* NULL, or [n_units][SR_SKETCH_TOP] out: rows chosen that the estimate gives much */
    int32_t *n_top;               /* [n_units] out */
    uint8_t *bytes;               /* [n_units] scratch */
    float *score;                 /* [n_units] scratch */
};

enum route_kind { READ_NONE /* output 0 */, READ_NEAR, READ_NEAR_LIST, READ_LIST /* and nothing else */, READ_ALL };

/* The decision; storage is the step's. */
struct route_plan {
    uint8_t *kind;  /* [n_units] enum route_kind */
    int near_done;  /* the state of every unit already holds the near part, or everything where the kind is
                       ALL; no kind is NONE then */
    int32_t **list; /* [n_units] rows, rising; far ones only if READ_NEAR_LIST; room for kv_len */
    int32_t *n_list;
    int32_t *n_chosen; /* [n_units] rows of the list that an estimate chose */
    float *unread; /* [n_units][group] estimated unread share; NaN, as it comes, where there is no estimate */
    int32_t **more; /* [n_units] rows that a second look adds, rising */
    int32_t *n_more; /* [n_units] */
};

struct policy {
    const char *name; /* as --route takes it */
    int needs_sketch,
        keeps_near,   /* sinks and window are always read, so that short contexts are dense */
        has_contract,   /* audits correct its threshold and open breakers */
        needs_observer, /* for measurements: the sequence must have been observed from its first token on */
        has_budget;     /* reads o->budget rows: must be given */
    sr_status (*check)(const sr_route_options *o,
                       sr_error *err); /* beyond the ranges of options.c; may be NULL */
    enum device_rule rule; /* the same decision as data, for a device that plans; RULE_NONE: hosts only */
    int32_t dense_layers;  /* the rule leaves the first layers dense */
    void (*plan)(const struct route_step *step, struct route_plan *plan);
    /* NULL, or asked after the plan was carried out, the step's state being of what was read: lists `more`. */
    void (*look)(const struct route_step *step, struct route_plan *plan);
};

/* NULL for a value that is not a mode. */
const struct policy *sr_policy_find(sr_route_mode mode);

extern const struct policy sr_policy_dense, sr_policy_mass, sr_policy_paper, sr_policy_window, sr_policy_quest,
    sr_policy_pages, sr_policy_h2o, sr_policy_snapkv, sr_policy_fastgen, sr_policy_topk, sr_policy_topp;

/* Ranges of every field, then the policy's own check; head_dim bounds the rank. SR_ERR_USAGE names field and
 * value. */
sr_status sr_route_check(const sr_route_options *o, int32_t head_dim, sr_error *err);
/* The paper's threshold for kv_len rows. */
double sr_route_tau(const sr_route_options *o, int32_t kv_len);

#endif
