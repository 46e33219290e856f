/* SPDX-License-Identifier: Apache-2.0
 *
 * The attention of a stack of layers: what the public attention.h and the engine's forward pass both stand
 * on. `struct attention` is the shape, the backend and the model's bases (shared by its sequences); `struct
 * attn_seq` is one timeline: K/V rows, sketch rows, route options, counters. attention must outlive its
 * sequences.
 *
 * Order of calls for one step of one layer: append (the new rows), then prefill or decode (over them).
 */
#ifndef SR_ATTENTION_SEQUENCE_H
#define SR_ATTENTION_SEQUENCE_H

#include "sinkrouter/attention.h"
#include "backend/backend.h"

struct attention;
struct attn_seq;
struct moments;

struct attention_config {
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
    struct rope_spec rope;
    int32_t n_lower; /* the first so many layers are another backend's, whose memory is the host's */
    struct backend *lower;
};

sr_status sr_attn_new(struct attention **out, struct backend *b, const struct attention_config *c,
                      sr_error *err);
void sr_attn_free(struct attention *a);
/* With n_lower, the attention and the sequence of the lower layers, else NULL. What is said to a sequence is said to its
 * lower one too, and what it tells is of both; only the calls that take a layer or a step are each one's own, with layers
 * counted from its first. */
struct attention *sr_attn_lower(const struct attention *a);
struct attn_seq *sr_attn_seq_lower(const struct attn_seq *s);
/* The model's moments from a file (see moments.h); sequences made later, and present ones without a sketch,
 * use them. */
sr_status sr_attn_load_moments(struct attention *a, const char *path, sr_error *err);
int sr_attn_has_moments(const struct attention *a);
/* Writes the moments a sequence would use: the file's if loaded, else its own; SR_ERR_USAGE while those are
 * not complete (positions 4..2,047 not all attended yet). */
sr_status sr_attn_seq_save_moments(const struct attn_seq *s, const char *path, sr_error *err);

struct attn_seq_config {
    sr_dtype k_type, v_type;
    int32_t max_len;
    sr_route_options route;
};

sr_status sr_attn_seq_new(struct attn_seq **out, struct attention *a, const struct attn_seq_config *c,
                          sr_error *err);
void sr_attn_seq_free(struct attn_seq *s);

/* Makes room for positions [0, len): chunks are allocated here and nowhere else. SR_ERR_USAGE beyond max_len,
 * SR_ERR_RESOURCE naming the bytes needed. */
sr_status sr_attn_seq_reserve(struct attn_seq *s, int32_t len, sr_error *err);
int32_t sr_attn_seq_len(const struct attn_seq *s, int32_t layer);
sr_status sr_attn_seq_truncate(struct attn_seq *s, int32_t len, sr_error *err);
/* Frees all rows (the /clear of chat). */
void sr_attn_seq_clear(struct attn_seq *s);
sr_status sr_attn_seq_route_set(struct attn_seq *s, const sr_route_options *r, sr_error *err);
/* From now on every decision is audited, counted and told to fn; NULL ends it. */
void sr_attn_seq_watch(struct attn_seq *s, sr_route_watch_fn *fn, void *user);
/* Before the first token: what the baselines need is collected (observe.h). mark: whether a position's token is
 * punctuation; only once observed. */
sr_status sr_attn_seq_observe(struct attn_seq *s, sr_error *err);
void sr_attn_seq_mark(struct attn_seq *s, int32_t pos, int is_punctuation);
const sr_route_options *sr_attn_seq_route(const struct attn_seq *s);

/* k, v [n][n_kv_heads * head_dim] after rotary embedding. Room must have been reserved. */
void sr_attn_append(struct attn_seq *s, int32_t layer, const float *k, const float *v, int32_t n);
/* Exact; q [n][n_heads * head_dim], any scale is applied inside (q / sqrt(head_dim)); collects moments. q is
 * scaled in place. */
void sr_attn_prefill(struct attn_seq *s, int32_t layer, float *q, int32_t n, float *out);
/* The same for n tokens from position pos0 on, which need not be the last ones. */
void sr_attn_prefill_at(struct attn_seq *s, int32_t layer, float *q, int32_t pos0, int32_t n, float *out);
/* One token for each of n_seqs sequences of the same attention; q, out [n_seqs][n_heads * head_dim]. q is
 * scaled in place. Allocates nothing except when a new band's bases are made (once per 2,000 tokens). */
sr_status sr_attn_decode(struct attention *a, struct attn_seq *const *seqs, int32_t n_seqs, int32_t layer,
                         float *q, float *out, sr_error *err);

/* Holds len random rows afterwards and nothing else: to measure speed without a prefill. first: the host's key row 0
 * [n_kv_heads * head_dim] of every layer, or NULL. */
sr_status sr_attn_seq_fill_random(struct attn_seq *s, int32_t len, uint64_t seed, const float *first, sr_error *err);
/* Repeats the rows from the fifth on until they are there `copies` times, keys turned to their new positions (exactly, but
 * for the cache's rounding): to measure with real keys at lengths that nobody prefills. */
sr_status sr_attn_seq_tile(struct attn_seq *s, int32_t copies, sr_error *err);
/* What queries are multiplied by. */
float sr_attn_scale(const struct attention *a);

/* Where the backend's memory is not the host's, q, k, v and out are the backend's, a step is begun for the sequence as a
 * whole and its launches may be recorded: begin (never recorded) counts the new token and brings lengths, bases and
 * sketch rows up to date; step, for each layer in order, appends (k NULL: its row is there), routes, attends and counts,
 * for n sequences of one attention, at most SR_STEP_SEQS, whose q, k, v and out lie one behind the other. q is not scaled. end, after a download that followed the step, takes what its audits found and tells the watcher.
 * A recording is good as long as the key is the same. The token's position is one less than what _len points to. */
sr_status sr_attn_step_begin(struct attn_seq *s, sr_error *err);
const int32_t *sr_attn_step_len(const struct attn_seq *s);
uint64_t sr_attn_step_key(const struct attn_seq *s);
void sr_attn_step(struct attn_seq *const *seqs, int32_t n, int32_t layer, const float *q, const float *k, const float *v, float *out);
void sr_attn_step_end(struct attn_seq *s);

void sr_attn_seq_stats(const struct attn_seq *s, sr_route_stats *out);
void sr_attn_seq_stats_reset(struct attn_seq *s);
void sr_attn_seq_memory(const struct attn_seq *s, uint64_t *kv_bytes, uint64_t *sketch_bytes);
/* Per (layer, KV group): decisions near-only or none, and decisions in all, for heat maps; arrays
 * [n_layers][n_kv_heads]. */
void sr_attn_seq_heat(const struct attn_seq *s, const int64_t **near_only, const int64_t **decisions);

/* Exact bytes of the sequence for session files, in pieces, always in the same order: fn gets each piece of
 * memory in turn (read it to save; fill it to restore). Restoring: make the sequence with the same config,
 * reserve len, call sr_attn_seq_set_len, then visit and fill. Covers K/V rows, the session's own moments if
 * it uses them, the sinks found, what audits taught, and the sketch rows with the band they belong to. */
typedef sr_status attn_piece_fn(void *ctx, const char *what, void *data, size_t bytes, sr_error *err);
sr_status sr_attn_seq_visit(struct attn_seq *s, attn_piece_fn *fn, void *ctx, sr_error *err);
sr_status sr_attn_seq_set_len(struct attn_seq *s, int32_t len, sr_error *err);
/* The fixed-size facts that visit's pieces depend on: written first (every field), given to state_set on
 * restore before the visit; state_set also does set_len. Refuses another sketch shape or other moments
 * (SR_ERR_UNSUPPORTED names it). */
struct attn_seq_state {
    int32_t len, band;           /* band -1: no sketch */
    int32_t own_moments;         /* 0 not kept, 1 being collected, 2 the sketch stands on them */
    int32_t rank, bits, n_sinks; /* of the sketch */
    int64_t moments_rows;
    uint64_t moments_id; /* hash of the moments file in use, 0 if none */
};
void sr_attn_seq_state_get(const struct attn_seq *s, struct attn_seq_state *out);
sr_status sr_attn_seq_state_set(struct attn_seq *s, const struct attn_seq_state *st, sr_error *err);
/* Ends a restore. SR_ERR_NUMERIC naming layer, group and row if a K or V row holds NaN or infinity. */
sr_status sr_attn_seq_check(struct attn_seq *s, sr_error *err);

#endif
