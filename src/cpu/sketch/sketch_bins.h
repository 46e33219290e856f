/* SPDX-License-Identifier: Apache-2.0
 *
 * A unit's scan, and the histogram of its kept rows in falling order of their largest share. Few units need more than its
 * upper part, so the scan keeps no rows for the lower one; whoever needs that scans the unit once more. What a bin holds
 * depends neither on that nor on the order of the threads.
 */
#ifndef SR_CPU_SKETCH_SKETCH_BINS_H
#define SR_CPU_SKETCH_SKETCH_BINS_H

#include "cpu/attn/attn_scratch.h"

/* A unit, and the thread that works on it. */
struct unit_job { const struct sketch_choose_args *a; const struct backend_cpu *c; struct attn_scratch *s; int32_t unit, thread; };

/* The log share from which on the scan keeps rows, of a cut. */
float sr_bins_upper(float cut);

/* Scans a span of the unit: its totals, and the rows kept from floor[group] + cut on. Adds to *touched. Returns 0 if the sums
 * are not relative to the unit's `from`. The logits stay in the thread's scratch. */
int sr_span_scan(const struct unit_job *j, int32_t span, const float *floor, float cut, struct attn_touched *touched);

/* The upper part; the unit's log_total is known. */
void sr_bins_fill(const struct unit_job *j);

/* Whether bin number i, below SR_SKETCH_BINS, is there, and how those that are not come: all of the unit's spans are scanned again,
 * by any threads, then one thread fills the bins. sr_bins_take does it alone where it has to. */
int sr_bins_has(const struct unit_job *j, int32_t i);
void sr_bins_scan_again(const struct unit_job *j, int32_t span);
void sr_bins_fill_all(const struct unit_job *j);

/* Takes what bin number i, below SR_SKETCH_BINS, holds off unread[group]. */
void sr_bins_take(const struct unit_job *j, int32_t i, double *unread);

/* Likewise of bins [0, end), up to the first that is not there; returns how many these are. */
int32_t sr_bins_take_first(const struct unit_job *j, int32_t end, double *unread);

/* At most n rows of bins [0, end), of which all were taken, rising; returns their number. */
int32_t sr_bins_top(const struct unit_job *j, int32_t end, int32_t *rows, int32_t n);

/* Rows of bins [first, end), of which all were taken, rising; returns their number. */
int32_t sr_bins_list(const struct unit_job *j, int32_t first, int32_t end, int32_t *list);

#endif
