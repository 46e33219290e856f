/* SPDX-License-Identifier: Apache-2.0
 *
 * Random but structured queries, keys and values for the attention tests, and a double-precision dense
 * reference. Every KV group has a sink key at position 0, topics that come and go every few dozen tokens, and
 * noise; a head mixes sink and topic its own way. Everything is rotated by position, as in a model, so that
 * moments before rotation mean something.
 */
#ifndef SR_TESTS_ATTN_WORLD_H
#define SR_TESTS_ATTN_WORLD_H

#include "attention/sequence.h"

struct attn_world {
    int32_t n_layers, n_heads, n_kv_heads, head_dim, len;
    struct rope_spec rope;
    float *q, *k, *v; /* [n_layers][len][n_heads or n_kv_heads][head_dim] */
};

struct attn_world *sr_world_new(int32_t n_layers, int32_t n_kv_heads, int32_t group, int32_t head_dim,
                                int32_t len, uint64_t seed);
void sr_world_free(struct attn_world *w);

float *sr_world_q(const struct attn_world *w, int32_t layer, int32_t pos);
float *sr_world_k(const struct attn_world *w, int32_t layer, int32_t pos);
float *sr_world_v(const struct attn_world *w, int32_t layer, int32_t pos);

/* What the cache returns for the rows: k and v become the values that `type` stores. */
void sr_world_round(struct attn_world *w, sr_dtype k_type, sr_dtype v_type);

/* Logits of one head over rows [0, kv_len), already divided by sqrt(head_dim), and the output of attending to
 * the rows whose read[i] is non-zero (NULL: all); returns the share of the attention that lies in rows not
 * read. */
void sr_world_logits(const struct attn_world *w, int32_t layer, int32_t head, int32_t pos, double *logits);
double sr_world_attend(const struct attn_world *w, int32_t layer, int32_t head, int32_t pos,
                       const uint8_t *read, double *out);

/* Writes the moments of the world's positions 4..2,047 to a new temporary file; the caller unlinks it. */
void sr_world_moments(const struct attn_world *w, char path[64]);

/* Backend, attention and one sequence over the world's shape. All asserts inside. */
/* `moments` is a file or NULL. */
struct attn_bench {
    struct backend *backend;
    struct attention *attention;
    struct attn_seq *seq;
};
void sr_bench_open(struct attn_bench *b, const struct attn_world *w, sr_dtype k_type, sr_dtype v_type,
                   const sr_route_options *route, int n_threads, const char *moments);
void sr_bench_close(struct attn_bench *b);
/* Appends and prefills positions [from, to) of all layers, in batches; out [n_layers][len][n_heads *
 * head_dim] or NULL. */
void sr_bench_prefill(struct attn_bench *b, const struct attn_world *w, int32_t from, int32_t to,
                      int32_t batch, float *out);
/* Rows [from, to) of all layers without attention over them: quick, where moments come from a file. */
void sr_bench_fill(struct attn_bench *b, const struct attn_world *w, int32_t from, int32_t to);
/* Appends position pos and decodes it, all layers; out [n_layers][n_heads * head_dim]. */
void sr_bench_step(struct attn_bench *b, const struct attn_world *w, int32_t pos, float *out);
/* Decodes position pos once more without appending. */
void sr_bench_again(struct attn_bench *b, const struct attn_world *w, int32_t layer, int32_t pos, float *out);

/* Every code of the sketch gets its sign turned. On memory that the host can write. */
void sr_spoil_sketch(struct attn_seq *s);

/* What a session file would keep, in memory: for sr_attn_seq_visit, first to be recorded, then to be played. data is the caller's
 * to free; n: pieces recorded and not yet played. */
struct tape { uint8_t *data; size_t used, at; int n; };
sr_status sr_tape_record(void *tape, const char *what, void *data, size_t bytes, sr_error *err);
sr_status sr_tape_play(void *tape, const char *what, void *data, size_t bytes, sr_error *err);

/* No audits; a threshold of .3 for `paper`. */
sr_route_options sr_world_route(sr_route_mode mode);

/* What the tests of one program share: a world and the file of its moments, which a group's setup makes and this frees. */
extern struct shared_world {
    struct attn_world *world;
    char moments[64];
} sr_shared;
int sr_shared_free(void **state);
/* A sequence over the shared world and moments with rows [0, len): K and V in f16, two threads. */
void sr_shared_open(struct attn_bench *b, const sr_route_options *route, int32_t len);
/* Decodes pos, in a sequence that never saw anything else, or in `b` and compares with such a one. */
void sr_shared_fresh(const sr_route_options *route, int32_t pos, float *out);
void sr_shared_assert_step(struct attn_bench *b, int32_t pos);

#endif
