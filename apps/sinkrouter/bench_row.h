/* SPDX-License-Identifier: Apache-2.0
 *
 * One result of bench as a JSON object with llama-bench's field names, and the columns of its Markdown table.
 */
#ifndef SR_APP_BENCH_ROW_H
#define SR_APP_BENCH_ROW_H

#include "compare.h"
#include "table.h"

#include <stdint.h>

struct bench_test {
    const sr_model_info *model;
    const char *type_k, *type_v, *flash;
    int64_t n_batch, n_ubatch;
    int64_t n_prompt, n_gen, n_depth;
    int is_random; /* the cache at this depth holds random numbers */
    int32_t n_parallel; /* sessions that decode together; rates are of all of them */
    sr_route_options route;
    int64_t n_samples;
    const uint64_t *samples_ns;        /* [n_samples] */
    uint64_t max_step_ns;              /* the slowest decode step of all of them */
    const sr_route_stats *stats;       /* of all timed decode steps; NULL for prefill */
    const struct comparison *compared; /* with -f; NULL otherwise */
};

/* Fields of every row: build and machine (backend: as sr_model_info.backend has it); when. */
void sr_bench_put_build(json_t *j, const char *backend);
void sr_bench_put_time(json_t *j);

json_t *sr_bench_row(const struct bench_test *t);
/* Sets "ratio" of the rows from `first` on: tokens/s over the dense row of the same test, where there is one.
 */
void sr_bench_ratios(json_t *rows, size_t first);

/* The mode, and where its choice was replaced by a lot the share drawn. */
void sr_bench_route_cell(char *dst, size_t n, const json_t *row);
extern const struct column sr_bench_columns[];
extern const int sr_bench_n_columns;

#endif
