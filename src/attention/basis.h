/* SPDX-License-Identifier: Apache-2.0
 *
 * The sketch basis of a band of positions from the model's moments (docs/routing.md). Band b serves the steps
 * whose position (kv_len - 1) is in [b h, (b + 1) h), h = 2,000: queries are averaged over the rotations of h
 * positions on either side of the band's middle, keys over all positions before the band's end. A basis is a
 * function of (model, layer, KV group, band, rank, bits) and of nothing else. Eigenvectors by LAPACK, each
 * problem on one thread, so the bits do not depend on the pool.
 */
#ifndef SR_ATTENTION_BASIS_H
#define SR_ATTENTION_BASIS_H

#include "attention/moments.h"
#include "attention/rotation.h"

#define SR_BAND_TOKENS 2000

/* The sketch on the host of these options, 0 for a rank that none asked for. In large groups, where a row is read if any of many
 * heads seems to want it, mixed codes of whole pairs of words, one for each 64 elements of the head, spare more rows than they
 * cost (docs/routing.md, "Mixed codes"). */
static inline struct sketch_shape sr_sketch_host_shape(int32_t head_dim, int32_t group, int32_t rank, int32_t bits)
{
    const int is_mixed = rank == 0 && bits == 4 && group > 4, pairs = head_dim < 128 ? 1 : head_dim / 64;
    const int32_t usual = is_mixed ? SR_SKETCH_FIRST + pairs * SKETCH_PAIR : SR_SKETCH_FIRST + head_dim / 4;
    struct sketch_shape s = {.rank = rank ? rank : usual < head_dim ? usual : head_dim, .bits = is_mixed ? SR_SKETCH_MIXED : bits};
    s.row_bytes = sr_sketch_host_row_bytes(s.rank, s.bits);
    return s;
}

/* What the bases of a band are made from. */
struct basis_spec {
    const struct moments *moments;
    const struct rotation *rotation;
    struct moments_shape shape;
    int32_t band, rank, bits;
};

/* All bases of one band: [n_layers][n_kv_heads]. Counted references, so that sequences can share one; not
 * thread-safe. */
struct band_bases;

/* The band of a step over kv_len rows; always 0 for a model whose basis is the same everywhere (no rotation).
 */
int32_t sr_band_of(const struct rotation *r, int32_t kv_len);
/* Steps from the one over kv_len rows to the first of the next band, at least 1; INT32_MAX where no other band comes. */
int32_t sr_band_left(const struct rotation *r, int32_t kv_len);

/* Comes with one reference. SR_ERR_NUMERIC names layer and group where moments are not finite. */
sr_status sr_bases_new(struct band_bases **out, const struct basis_spec *spec, struct pool *pool,
                       sr_error *err);
/* The same a few at a time: after begin none is made; make adds the next n, of (layer, KV group) in order; ready for use
 * once none is left. Who makes which, and when, changes no bit. spec's moments must live until then. */
sr_status sr_bases_begin(struct band_bases **out, const struct basis_spec *spec, const struct pool *pool, sr_error *err);
int32_t sr_bases_left(const struct band_bases *b);
sr_status sr_bases_make(struct band_bases *b, int32_t n, struct pool *pool, sr_error *err);
struct band_bases *sr_bases_ref(struct band_bases *b);
void sr_bases_unref(struct band_bases *b); /* NULL is fine */
int sr_bases_refs(const struct band_bases *b);
/* Whether it is the one of this band, rank and bits. */
int sr_bases_match(const struct band_bases *b, int32_t band, int32_t rank, int32_t bits);
void sr_bases_get(const struct band_bases *b, int32_t layer, int32_t kv_head, struct sketch_basis *out);
/* All of it as one block of floats, [n_layers][n_kv_heads][unit]: for copies. */
const float *sr_bases_data(const struct band_bases *b);
size_t sr_bases_unit(const struct band_bases *b);
size_t sr_bases_bytes(const struct band_bases *b); /* while they are being made: the workspace too */

#endif
