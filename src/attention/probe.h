/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of sinkrouter/measure.h: a stack of layers of random rows on a given backend, and runs through it.
 */
#ifndef SR_ATTENTION_PROBE_H
#define SR_ATTENTION_PROBE_H

#include "sinkrouter/measure.h"
#include "backend/backend.h"

struct stack;

/* o->device and o->n_threads are not looked at. The backend must outlive it. */
sr_status sr_stack_new(struct stack **out, struct backend *b, const sr_probe_options *o, sr_error *err);
void sr_stack_free(struct stack *s); /* NULL is fine */
/* As sr_probe_run. */
sr_status sr_stack_run(struct stack *s, const sr_route_options *route, int32_t n_skipped, int32_t n, double *samples_ns,
                       sr_probe_result *out, sr_error *err);

#endif
