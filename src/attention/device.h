/* SPDX-License-Identifier: Apache-2.0
 *
 * The half of attention for backends whose memory is not the host's: what sequence.c, cache.c, sketch.c, stats.c and
 * snapshot.c call where attn_seq.device is set. The rule for what lies where: rows, sketch rows, tables, lengths,
 * counters and sums of moments on the device; options, how many rows there are, bands and bases on the host.
 */
#ifndef SR_ATTENTION_DEVICE_H
#define SR_ATTENTION_DEVICE_H

#include "attention/sequence.h"
#include "backend/device_attn.h"

sr_status sr_device_seq_new(struct attn_seq *s, sr_error *err); /* what is made so far on failure, free takes */
void sr_device_seq_free(struct attn_seq *s);
void sr_device_route_changed(struct attn_seq *s);
void sr_device_bases_dropped(struct attn_seq *s);

size_t sr_device_sketch_row_bytes(const struct attention *a, const sr_route_options *o);
/* The rows, or sketch rows, of chunk number `chunk` lie at base from now on. */
void sr_device_place_chunk(struct attn_seq *s, uint8_t *base, int32_t chunk);
void sr_device_place_sketch(struct attn_seq *s, uint8_t *base, int32_t chunk);

void sr_device_append(struct attn_seq *s, int32_t layer, const float *k, const float *v, int32_t n);
void sr_device_prefill(struct attn_seq *s, int32_t layer, const float *q, int32_t pos0, int32_t n, float *out);

/* Sums of the sequence's own moments: forgotten; brought to the host, where bases and files are made. */
void sr_device_own_reset(struct attn_seq *s);
sr_status sr_device_own_fetch(const struct attn_seq *s, sr_error *err);
void sr_device_own_place(struct attn_seq *s); /* and the other way */

/* The sinks found: to the host's record of them; and the other way. */
sr_status sr_device_found_fetch(struct attn_seq *s, sr_error *err);
void sr_device_found_place(struct attn_seq *s);

/* The trail: only rows before `len` are left; to the host's record of it; and the other way. */
void sr_device_trail_truncate(struct attn_seq *s, int32_t len);
sr_status sr_device_trail_fetch(struct attn_seq *s, sr_error *err);
sr_status sr_device_trail_place(struct attn_seq *s, sr_error *err);

/* Adds what the device has counted; fills the arrays of sr_attn_seq_heat; sets the counters to 0. */
void sr_device_stats(const struct attn_seq *s, sr_route_stats *out);
void sr_device_heat(const struct attn_seq *s);
void sr_device_stats_reset(struct attn_seq *s);

/* sr_attn_seq_visit's fn on a copy of device memory, which then goes back: n rows of a run, as the host has them; the
 * scales of heads, if there are. */
struct device_run { const char *what; void *data; sr_dtype type; int32_t n; };
sr_status sr_device_visit_rows(struct attn_seq *s, attn_piece_fn *fn, void *ctx, const struct device_run *run, sr_error *err);
sr_status sr_device_visit_scales(struct attn_seq *s, attn_piece_fn *fn, void *ctx, sr_error *err);

#endif
