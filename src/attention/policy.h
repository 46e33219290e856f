/* SPDX-License-Identifier: Apache-2.0
 *
 * The policy interface: routing is data. For one layer of one step a policy says, for each unit (sequence, KV group),
 * which rows are read; attention executes it and knows no policy. A policy calls backend ops through the step and
 * never a kernel. A new policy is one file and one row in policy.c.
 */
#ifndef SR_ATTENTION_POLICY_H
#define SR_ATTENTION_POLICY_H

#include "sinkrouter/attention.h"
#include "backend/backend.h"

/* What one step of one layer offers to a policy. Arrays over the n units that share this policy. */
struct route_step {
    struct backend *backend;
    const struct attn_shape *shape;
    const struct sketch_shape *sketch;
    const sr_route_options *options;
    int32_t layer, n_units;
    const struct attn_unit *units;
    const struct sketch_basis *basis;   /* [n_units]; valid where has_sketch */
    const uint8_t *has_sketch;          /* [n_units]: sketch rows cover the far part */
    struct attn_state state;            /* filled by a policy that attends the near part while deciding */
    struct attn_touched *touched;
    const float *eps;                   /* [n_units] */
};

enum route_kind { READ_NONE, READ_NEAR, READ_NEAR_LIST, READ_ALL };

/* The decision; storage is the step's scratch. */
struct route_plan {
    uint8_t *kind;        /* [n_units] enum route_kind */
    uint8_t *near_done;   /* [n_units] state already holds the near part */
    int32_t **list;       /* [n_units] far rows, rising (READ_NEAR_LIST) */
    int32_t *n_list;
    float *unread;        /* [n_units][group] estimated unread share, or NaN */
};

struct policy {
    const char *name;
    int needs_sketch;
    sr_status (*check)(const sr_route_options *o, int32_t head_dim, sr_error *err); /* options at route_set */
    void (*plan)(const struct route_step *step, struct route_plan *plan);
};

const struct policy *sr_policy_get(sr_route_mode mode);

#endif
