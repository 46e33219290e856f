/* SPDX-License-Identifier: Apache-2.0
 *
 * The trail (attention/trail.h says what it is for): the rule's numbers, and what a device keeps of it in its own memory. A step
 * over kv_len rows notes rows and shares in the half of kv_len's parity, and takes what the step before left in the other; so a
 * step that is made again finds the same. A half counts only for the step it names.
 */
#ifndef SR_BACKEND_TRAIL_ROWS_H
#define SR_BACKEND_TRAIL_ROWS_H

#include "backend/found_sinks.h"

#include <stddef.h>

/* The share that makes a row worth noting; the rows before and after it that are read too; of one step, the rows noted and
 * all that are read for them. */
#define SR_TRAIL_SHARE 0.1f
enum { SR_TRAIL_BEFORE = 1, SR_TRAIL_AFTER = 2, SR_TRAIL_NOTED = 16, SR_TRAIL_ROWS = SR_TRAIL_NOTED * (1 + SR_TRAIL_BEFORE + SR_TRAIL_AFTER) };
enum { SR_ALWAYS_ROWS = SR_SINKS_MOST + SR_TRAIL_ROWS };

/* What a step reads in one (layer, KV group) in any case: the sinks found, and what the step before left. Rows rise. */
struct always_rows {
    int32_t n, rows[SR_ALWAYS_ROWS];
    int32_t n_trail, trail[SR_TRAIL_ROWS]; /* those of them that are no sinks */
};

/* Of words of 4 bytes: which step each half is of (its kv_len; 0: none), how many rows it noted, then the halves: the rows in
 * any order, and of each row of the sequence the largest share noted, as a float that is 0 where nothing was. */
enum { SR_TRAIL_STEPS = 0, SR_TRAIL_COUNTS = 2, SR_TRAIL_HEAD = 4 };
#define SR_TRAIL_WORDS(max_len)            (SR_TRAIL_HEAD + 4 * (size_t)(max_len))
#define SR_TRAIL_ROWS_AT(max_len, half)    (SR_TRAIL_HEAD + (size_t)(half) * (size_t)(max_len))
#define SR_TRAIL_SHARES_AT(max_len, half)  (SR_TRAIL_HEAD + (2 + (size_t)(half)) * (size_t)(max_len))

#endif
