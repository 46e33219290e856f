/* SPDX-License-Identifier: Apache-2.0
 *
 * Sinks beyond the first positions. A sink's key and value are small (Gu et al., arXiv 2410.10781): SmolLM2 makes one
 * of about every eightieth token in layers 3 to 10, each with the norms of the first key and value. They are found
 * as rows are appended, from norms relative to those of the sequence's first rows, and `mass` always reads them.
 *
 * What is found is a function of the rows that the sequence holds, however they came. Where a device finds them the
 * record here is a copy, for session files.
 */
#ifndef SR_ATTENTION_SINKS_H
#define SR_ATTENTION_SINKS_H

#include "backend/found_sinks.h"
#include "base/status.h"

struct sinks;

sr_status sr_sinks_new(struct sinks **out, int32_t n_layers, int32_t n_kv_heads, int32_t head_dim, sr_error *err);
void sr_sinks_free(struct sinks *s);
void sr_sinks_truncate(struct sinks *s, int32_t len);
/* n rows of a layer from position pos0 on; k, v [n][n_kv_heads * head_dim]. */
void sr_sinks_append(struct sinks *s, int32_t layer, const float *k, const float *v, int32_t n, int32_t pos0);
/* Rows found in [first, last), rising. */
int32_t sr_sinks_get(const struct sinks *s, int32_t layer, int32_t kv_head, int32_t first, int32_t last,
                     const int32_t **rows);

/* The whole state in one piece, for session files; -1 if what was filled in is not possible. */
void *sr_sinks_piece(struct sinks *s, size_t *bytes);
int sr_sinks_check(const struct sinks *s, int32_t len);

#endif
