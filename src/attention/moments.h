/* SPDX-License-Identifier: Apache-2.0
 *
 * Second moments of queries and keys before rotary embedding, per (layer, KV group): M_q = E[q q'] over the
 * heads of the group with q already divided by sqrt(head_dim), M_k = E[k k'], m_k = E[k]. They belong to the
 * model.
 *
 * Two ways to have them: collected by a session from its positions [4, 2048), and further ones until they are
 * frozen, as they come, in double and in the order of positions, so that the sums do not depend on how tokens
 * were batched; or read from a checksummed file MODEL.moments. Both give numbers rounded to float, so that a session and the file it wrote
 * make the same basis.
 */
#ifndef SR_ATTENTION_MOMENTS_H
#define SR_ATTENTION_MOMENTS_H

#include "backend/backend.h"

#define SR_MOMENTS_FIRST 4    /* positions before this are sinks: left out */
#define SR_MOMENTS_LAST  2048 /* a session's own moments come from positions [4, 2048) at least */
#define SR_MOMENTS_END   32768 /* and from none beyond this */

struct moments;
struct rotation;

struct moments_shape {
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
};

/* For collecting, up to SR_MOMENTS_LAST. rotation is borrowed. */
sr_status sr_moments_new(struct moments **out, const struct moments_shape *shape,
                         const struct rotation *rotation, sr_error *err);
void sr_moments_free(struct moments *m);
/* From now on positions count up to `end`. */
void sr_moments_extend(struct moments *m, int64_t end);
/* Nothing counts any more: what was collected is in use. They must be ready. Rows at `pos`, the position of the step that
 * freezes them, are taken back: some layers have seen them and some have not. */
void sr_moments_freeze(struct moments *m, int64_t pos);
/* Back to nothing collected. */
void sr_moments_reset(struct moments *m);

/* Adds n tokens of one layer, the first at position pos0; rows outside of what counts and positions that were
 * counted before (a truncated session that goes on) are left out. q [n][n_heads * head_dim] divided by
 * sqrt(head_dim), k [n][n_kv_heads * head_dim], both after rotary embedding. */
void sr_moments_add_q(struct moments *m, struct pool *pool, int32_t layer, const float *q, int32_t n,
                      int64_t pos0);
void sr_moments_add_k(struct moments *m, struct pool *pool, int32_t layer, const float *k, int32_t n,
                      int64_t pos0);
/* The counting alone, for rows whose products somebody else adds to a copy of the sums: of positions [pos0, pos0 + n)
 * those in [*from, *to) count and were not counted before. */
void sr_moments_note(struct moments *m, int32_t layer, int is_key, int64_t pos0, int32_t n, int64_t *from, int64_t *to);
/* Complete at once, as if all coordinates were independent and of variance 1: for caches of random numbers. */
void sr_moments_make_plain(struct moments *m);
double *sr_moments_sums(struct moments *m); /* [n_layers][n_kv_heads][2 d d + d]: M_q, M_k (elements j >= i), m_k */
size_t sr_moments_sums_bytes(const struct moments *m);
/* Whether more would be collected for the layer; whether [4, 2048) has been for all layers. */
int sr_moments_wants(const struct moments *m, int32_t layer);
int sr_moments_ready(const struct moments *m);
/* Positions of [4, 2048) whose queries were counted, the least of all layers. */
int64_t sr_moments_rows(const struct moments *m);

/* Of moments from a file: layers [first, first + n) stay, as layers 0 .. n - 1. */
void sr_moments_keep_layers(struct moments *m, int32_t first, int32_t n);

/* Normalised, every value a float: mq, mk [d][d], mean_k [d]. */
void sr_moments_get(const struct moments *m, int32_t layer, int32_t kv_head, double *mq, double *mk,
                    double *mean_k);
/* Hash of the file they came from; 0 for collected ones. */
uint64_t sr_moments_id(const struct moments *m);

/* The raw sums for session files, in pieces of memory: index 0, 1, ... until NULL. */
void *sr_moments_piece(struct moments *m, int index, size_t *bytes);
/* Adds the rows that wait for a block of positions to be full, for who adds rows to the sums himself. */
void sr_moments_fold(struct moments *m);
/* After pieces were filled from a file: -1 if their counts are not possible. */
int sr_moments_check(const struct moments *m);

/* The file holds shape, rope description and a checksum; load refuses another shape or rope
 * (SR_ERR_UNSUPPORTED names the field), a damaged file (SR_ERR_FORMAT) and NaN (SR_ERR_NUMERIC). Saved
 * through a temporary file and rename. */
sr_status sr_moments_save(const struct moments *m, const struct rope_spec *rope, const char *path,
                          sr_error *err);
sr_status sr_moments_load(struct moments **out, const struct moments_shape *shape,
                          const struct rope_spec *rope, const char *path, sr_error *err);

#endif
