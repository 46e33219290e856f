/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the heads of the step before looked. A head that wakes up looks for one row, and that is where the sketch is worst:
 * what is rare has a key that agrees with the query in what the sketch leaves out. But heads wake up together, and text that
 * is copied is read row by row. So a row with a large share of some head, in any layer, is noted together with the rows about
 * it, and `mass` reads these in every layer of the next step before it chooses.
 *
 * A function of the steps before, of a sequence that goes on: one that is cut or prefilled begins anew. What a failed step
 * noted it notes again.
 */
#ifndef SR_ATTENTION_TRAIL_H
#define SR_ATTENTION_TRAIL_H

#include "backend/trail_rows.h"

/* Rows rise. What a session file keeps is all of it; zero is a trail that has not begun. */
struct trail {
    int32_t step; /* that notes now: its kv_len */
    int32_t n, n_now;
    int32_t rows[SR_TRAIL_NOTED], now[SR_TRAIL_NOTED];
    float share[SR_TRAIL_NOTED]; /* of `now` */
};

/* Called first in every layer of a step over kv_len rows. */
void sr_trail_step(struct trail *t, int32_t kv_len);
/* The rows that the step before leaves to this one, in [first, last), rising; room for SR_TRAIL_ROWS. Returns their number. */
int32_t sr_trail_get(const struct trail *t, int32_t first, int32_t last, int32_t *rows);
/* A row's share of a head. Of too many rows those with the smallest shares are dropped. */
void sr_trail_note(struct trail *t, int32_t row, float share);
/* Only rows before `len` are left. */
void sr_trail_truncate(struct trail *t, int32_t len);
/* After it was filled from a file: -1 if it is not possible. */
int sr_trail_check(const struct trail *t, int32_t len);

#endif
