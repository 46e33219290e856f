/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch basis of a band of positions from the model's moments (docs/routing.md). Band b serves decode positions
 * [b h, (b+1) h), h = 2,000. A basis is a function of (model, layer, KV group, band, rank) and nothing else.
 * Rotation averages in closed form (sums of cosines); eigenvectors by LAPACK, single-threaded, so the bits do not depend
 * on the pool.
 */
#ifndef SR_ATTENTION_BASIS_H
#define SR_ATTENTION_BASIS_H

#include "attention/moments.h"

#define SR_BAND_TOKENS 2000

/* All bases of one band: [n_layers][n_kv_heads]. Storage is one block. */
struct band_bases;

sr_status sr_bases_new(struct band_bases **out, const struct moments *m, const struct rope_spec *rope, struct pool *pool,
                       int32_t n_layers, int32_t n_kv_heads, int32_t head_dim, int32_t band, int32_t rank, int32_t bits,
                       sr_error *err);
void sr_bases_free(struct band_bases *b);
void sr_bases_get(const struct band_bases *b, int32_t layer, int32_t kv_head, struct sketch_basis *out);
size_t sr_bases_bytes(const struct band_bases *b);

#endif
