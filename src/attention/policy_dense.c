/* SPDX-License-Identifier: Apache-2.0
 *
 * dense: every row. Also what every other mode is below min_len.
 */
#include "attention/policy.h"

#include <string.h>

static void plan(const struct route_step *step, struct route_plan *p)
{
    memset(p->kind, READ_ALL, (size_t)step->n_units);
}

const struct policy sr_policy_dense = {.name = "dense", .rule = RULE_ALL, .plan = plan};
