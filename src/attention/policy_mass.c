/* SPDX-License-Identifier: Apache-2.0
 *
 * mass: the near part is attended exactly; the sketch estimates the logit of every far row; the fewest far
 * rows are listed such that no head of the group leaves more than eps of its attention unread. Once they are
 * read the estimate is compared with them, and more are listed where it was too low.
 *
 * Sinks among the far rows are read whatever the estimate says, which is far off for keys as unlike the others. With
 * a second look they are attended first: the total that shares are of has them exactly, and the comparison is of
 * ordinary rows.
 */
#include "attention/policy.h"

#include <math.h>
#include <string.h>

/* Both rise, the list has room for all rows. */
static void add_found(const struct route_step *step, const struct route_plan *p, int32_t u)
{
    const int32_t *found = step->found[u];
    int32_t *list = p->list[u], n = p->n_list[u], n_found = step->n_found[u], n_new = 0;
    for (int32_t i = 0, j = 0; j < n_found; j++) {
        while (i < n && list[i] < found[j]) i++;
        n_new += i == n || list[i] != found[j];
    }
    p->n_list[u] = n + n_new;
    for (int32_t i = n - 1, j = n_found - 1, at = n + n_new - 1; j >= 0; at--) {
        int is_old = i >= 0 && list[i] >= found[j];
        if (is_old && list[i] == found[j]) j--;
        list[at] = is_old ? list[i--] : found[j--];
    }
}

/* Far rows by lot, so that models without a meaning can be measured: the choice was made and is thrown away. */
static void take_drawn(const struct route_step *step, const struct route_plan *p, int32_t u)
{
    const int32_t *drawn = step->drawn[u], *found = step->found[u], n_found = step->options->look ? step->n_found[u] : 0;
    int32_t n = 0;
    for (int32_t i = 0, f = 0; i < step->n_drawn[u]; i++) {
        while (f < n_found && found[f] < drawn[i]) f++;
        const int is_read = drawn[i] < step->options->n_sinks || (f < n_found && found[f] == drawn[i]);
        if (!is_read) p->list[u][n++] = drawn[i];
    }
    p->n_list[u] = n;
}

static struct sketch_choose_args choice_of(const struct route_step *step, const struct route_plan *p)
{
    const sr_route_options *o = step->options;
    return (struct sketch_choose_args){
        .shape = step->shape,
        .sketch = step->sketch,
        .units = step->units,
        .basis = step->basis,
        .mask = step->bytes,
        .n_units = step->n_units,
        .n_sinks = o->n_sinks,
        .window = o->window,
        .eps = step->eps,
        .near_state = {NULL, step->near_m, step->near_l},
        .list = p->list,
        .n_list = p->n_list,
        .unread = p->unread,
        .touched = step->touched,
        .found = o->look ? step->found : NULL,
        .n_found = step->n_found,
        .top = step->top,
        .n_top = step->n_top,
    };
}

/* The near part, or everything of units that are read whole; with a second look the rows found too. */
static void attend_near(const struct route_step *step)
{
    const sr_route_options *o = step->options;
    const int32_t group = step->shape->group;
    const struct attn_rows_args rows = {
        .shape = step->shape,
        .units = step->units,
        .set = step->bytes,
        .list = step->found,
        .n_list = step->n_found,
        .n_units = step->n_units,
        .n_sinks = o->n_sinks,
        .window = o->window,
        .state = step->state,
        .near_m = step->near_m,
        .near_l = step->near_l,
        .touched = step->touched,
    };
    for (int32_t u = 0; u < step->n_units; u++)
        step->bytes[u] = step->whole[u] ? ATTN_ALL : o->look && step->n_found[u] > 0 ? ATTN_NEAR_LIST : ATTN_NEAR;
    step->backend->ops->attn_rows(step->backend, &rows);
    for (int32_t h = 0; h < step->n_units * group; h++) {
        step->found_l[h] = o->look ? 0 : INFINITY; /* listed, if not attended now */
        if (step->bytes[h / group] == ATTN_NEAR_LIST)
            step->found_l[h] = step->state.l[h] - step->near_l[h] * expf(step->near_m[h] - step->state.m[h]);
    }
}

static void plan(const struct route_step *step, struct route_plan *p)
{
    size_t n_heads = (size_t)step->n_units * (size_t)step->shape->group;
    attend_near(step);
    memcpy(step->near_m, step->state.m, n_heads * sizeof(float));
    memcpy(step->near_l, step->state.l, n_heads * sizeof(float));
    for (int32_t u = 0; u < step->n_units; u++) step->bytes[u] = !step->whole[u];
    const struct sketch_choose_args choice = choice_of(step, p);
    step->backend->ops->sketch_choose(step->backend, &choice);
    p->near_done = 1;
    for (int32_t u = 0; u < step->n_units; u++) {
        if (step->drawn[u]) take_drawn(step, p, u);
        p->n_chosen[u] = p->n_list[u];
        if (!step->whole[u] && !step->options->look) add_found(step, p, u);
        p->kind[u] = step->whole[u] ? READ_ALL : p->n_list[u] > 0 ? READ_NEAR_LIST : READ_NEAR;
    }
}

/* Rows by lot say nothing about the estimate. */
static void look(const struct route_step *step, struct route_plan *p)
{
    for (int32_t u = 0; u < step->n_units; u++) {
        step->bytes[u] = !step->whole[u] && !step->drawn[u];
        p->more[u] = p->list[u] + p->n_list[u];
    }
    const struct sketch_choose_args choice = choice_of(step, p);
    step->backend->ops->sketch_more(step->backend, &(struct sketch_more_args){
                                                       .choice = &choice,
                                                       .mask = step->bytes,
                                                       .read = step->state,
                                                       .more = p->more,
                                                       .n_more = p->n_more,
                                                   });
}

const struct policy sr_policy_mass = {.name = "mass",
                                      .needs_sketch = 1,
                                      .keeps_near = 1,
                                      .has_contract = 1,
                                      .rule = RULE_MASS,
                                      .plan = plan,
                                      .look = look};
