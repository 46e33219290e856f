/* SPDX-License-Identifier: Apache-2.0
 *
 * window: sinks and the last tokens, as StreamingLLM, but nothing is evicted.
 */
#include "attention/policy.h"

#include <string.h>

static void plan(const struct route_step *step, struct route_plan *p)
{
    memset(p->kind, READ_NEAR, (size_t)step->n_units);
}

const struct policy sr_policy_window = {.name = "window", .keeps_near = 1, .rule = RULE_NEAR, .plan = plan};
