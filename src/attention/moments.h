/* SPDX-License-Identifier: Apache-2.0
 *
 * Second moments of queries and keys before rotary embedding, per (layer, KV group): M_q = E[q q'] over the heads of
 * the group with q already divided by sqrt(head_dim), M_k = E[k k'], m_k = E[k]. They belong to the model. Collected
 * in double from rotated q and k by turning them back; kept as float; stored in a checksummed file MODEL.moments.
 */
#ifndef SR_ATTENTION_MOMENTS_H
#define SR_ATTENTION_MOMENTS_H

#include "backend/backend.h"

#define SR_MOMENTS_FIRST 4      /* positions before this are sinks: left out */
#define SR_MOMENTS_LAST 2048    /* a session's own moments come from positions [4, 2048) */

struct moments;

sr_status sr_moments_new(struct moments **out, int32_t n_layers, int32_t n_kv_heads, int32_t head_dim, sr_error *err);
void sr_moments_free(struct moments *m);

/* Adds n tokens of one layer at positions pos0.. (those below SR_MOMENTS_FIRST are left out, and those from `limit` on).
 * q [n][n_heads * head_dim] scaled, k [n][n_kv_heads * head_dim], both rotated by `rope`. */
void sr_moments_add(struct moments *m, struct pool *pool, int32_t layer, const struct rope_spec *rope, const float *q,
                    const float *k, int32_t n_heads, int32_t n, int64_t pos0, int64_t limit);
int64_t sr_moments_rows(const struct moments *m, int32_t layer);

struct moments_view { const float *mq, *mk, *mean_k; }; /* [d][d], [d][d], [d]; normalised */
void sr_moments_get(const struct moments *m, int32_t layer, int32_t kv_head, struct moments_view *out);

/* The file holds shape, rope description and a checksum; load refuses another shape or rope (SR_ERR_UNSUPPORTED names the
 * field) and a damaged file (SR_ERR_FORMAT). Saved through a temporary file and rename. */
sr_status sr_moments_save(const struct moments *m, const struct rope_spec *rope, const char *path, sr_error *err);
sr_status sr_moments_load(struct moments **out, const struct rope_spec *rope, int32_t n_layers, int32_t n_kv_heads,
                          int32_t head_dim, const char *path, sr_error *err);

#endif
