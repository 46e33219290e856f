/* SPDX-License-Identifier: Apache-2.0
 *
 * mass: the near part is attended exactly; the sketch estimates the logit of every far row; the fewest far
 * rows are listed such that no head of the group leaves more than eps of its attention unread.
 */
#include "attention/policy.h"

#include <string.h>

static void plan(const struct route_step *step, struct route_plan *p)
{
    const sr_route_options *o = step->options;
    memset(step->bytes, ATTN_NEAR, (size_t)step->n_units);
    step->backend->ops->attn_rows(step->backend, &(struct attn_rows_args){
                                                     .shape = step->shape,
                                                     .units = step->units,
                                                     .set = step->bytes,
                                                     .n_units = step->n_units,
                                                     .n_sinks = o->n_sinks,
                                                     .window = o->window,
                                                     .state = step->state,
                                                     .touched = step->touched,
                                                 });
    memset(step->bytes, 1, (size_t)step->n_units);
    step->backend->ops->sketch_choose(step->backend, &(struct sketch_choose_args){
                                                         .shape = step->shape,
                                                         .sketch = step->sketch,
                                                         .units = step->units,
                                                         .basis = step->basis,
                                                         .mask = step->bytes,
                                                         .n_units = step->n_units,
                                                         .n_sinks = o->n_sinks,
                                                         .window = o->window,
                                                         .eps = step->eps,
                                                         .near_state = step->state,
                                                         .list = p->list,
                                                         .n_list = p->n_list,
                                                         .unread = p->unread,
                                                         .touched = step->touched,
                                                     });
    p->near_done = 1;
    for (int32_t u = 0; u < step->n_units; u++) p->kind[u] = p->n_list[u] > 0 ? READ_NEAR_LIST : READ_NEAR;
}

const struct policy sr_policy_mass = {.name = "mass", .needs_sketch = 1, .keeps_near = 1, .plan = plan};
