/* SPDX-License-Identifier: Apache-2.0
 *
 * bench --op attention: decode attention of one layer without a model, beside what memory gives.
 */
#ifndef SR_APP_BENCH_OP_H
#define SR_APP_BENCH_OP_H

#include "options.h"

/* Refuses flags that belong to the other kind of bench. */
sr_status sr_bench_op_check(const struct options *o, sr_error *err);
/* All rows and the table. An exit status, as a command's. */
int sr_bench_op(const struct options *o, sr_error *err);

#endif
