/* SPDX-License-Identifier: Apache-2.0
 *
 * A fixed set of threads that runs loops. A loop has n independent tasks; which thread runs a task never changes
 * what the task computes, so results do not depend on the number of threads. The caller works too. Threads
 * spin briefly between loops and then sleep. One loop at a time per pool; loops do not nest.
 */
#ifndef SR_BASE_POOL_H
#define SR_BASE_POOL_H

#include "base/status.h"

struct pool;

/* n_threads counts the caller: 1 starts no thread. 0 picks the number of physical cores this process may use.
 * Range 1..512, else SR_ERR_USAGE; a thread that cannot be started is SR_ERR_RESOURCE. */
sr_status sr_pool_new(struct pool **out, int n_threads, sr_error *err);
void sr_pool_free(struct pool *p);
int sr_pool_threads(const struct pool *p);
/* From the next loop on at most n_threads take tasks, the caller included; 0 or more than there are: all. The others
 * stay for later, so scratch is still indexed by sr_pool_threads. Not while a loop runs. */
void sr_pool_limit(struct pool *p, int n_threads);

/* Runs fn(ctx, task, thread) for every task in [0, n_tasks); thread in [0, n_threads) indexes scratch. Tasks are
 * dealt dynamically, to each thread in rising order at first. Returns when all are done. p may be NULL: runs them in the caller. */
typedef void pool_fn(void *ctx, int32_t task, int32_t thread);
void sr_pool_run(struct pool *p, int32_t n_tasks, pool_fn *fn, void *ctx);

#endif
