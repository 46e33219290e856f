/* SPDX-License-Identifier: Apache-2.0
 *
 * What the baselines of other papers need and routing does not: attention sums over the prefill, its last queries,
 * statistics of pages, exact logits. For measurements: it costs time and memory, and sequences have none unless
 * asked before their first token. All of it on the host, through backend ops.
 *
 * One `struct observed` per (layer, KV group). What a policy keeps between steps belongs to one run: it begins anew
 * when route options are set, or when a step does not follow the one before it.
 */
#ifndef SR_ATTENTION_OBSERVE_H
#define SR_ATTENTION_OBSERVE_H

#include "backend/backend.h"

#define SR_OBSERVED_LAST   32 /* the last queries of the prefill that are kept */
#define SR_OBSERVED_STRIDE 8  /* of the other queries every eighth adds to the sums, with this weight */
#define SR_PAGE_TOKENS     16

struct observer;
struct pool;

struct observed {
    struct observer *from;
    int32_t layer, kv_head, max_len;
    float *column; /* [max_len] attention that the prefill gave to each row, summed over queries and heads */
    float *pages;  /* [max_len / SR_PAGE_TOKENS][4][head_dim]: least, largest, mean, standard deviation of keys */
    int32_t n_rows;   /* rows that came; pages that are whole are complete */
    int32_t prefill;  /* rows that the prefill attended to */
    /* of one run */
    int32_t run_len;  /* kv_len of the last step planned; 0: not begun */
    int32_t n_kept;
    uint8_t *kept;    /* [max_len] the policy's choice */
    float *score;     /* [max_len] the policy's sums */
};

sr_status sr_observer_new(struct observer **out, struct backend *b, const struct attn_shape *shape, int32_t n_layers,
                          int32_t n_kv_heads, int32_t max_len, sr_error *err);
void sr_observer_free(struct observer *o);
void sr_observer_truncate(struct observer *o, int32_t len);
/* Ends the runs of all units. */
void sr_observer_restart(struct observer *o);
/* 1 for rows whose token is punctuation: FastGen's policies ask. */
void sr_observer_mark(struct observer *o, int32_t pos, int is_punctuation);
const uint8_t *sr_observer_marks(const struct observer *o);

/* n rows from pos0 on were appended; units [n_kv_heads] of the layer. */
void sr_observer_keys(struct observer *o, int32_t layer, const struct attn_unit *units, int32_t n, int32_t pos0);
/* Queries of n prefilled rows [n][n_heads * head_dim], divided by sqrt(head_dim); units [n_kv_heads] of the layer. */
void sr_observer_queries(struct observer *o, int32_t layer, const struct attn_unit *units, const float *q, int32_t n,
                         int32_t pos0);
struct observed *sr_observed_get(struct observer *o, int32_t layer, int32_t kv_head);

/* Exact logits of the unit's rows: returns [group][max_len], good until the next call. */
float *sr_observed_logits(struct observed *u, const struct attn_unit *unit);
/* Shares of the attention in place of logits, over rows [0, n). */
void sr_observed_softmax(float *x, int32_t n);
/* Attention of the prefill's last queries, summed over queries and heads, over rows [0, n): out [n]. n is at most the
 * rows before the first of these queries. */
void sr_observed_votes(struct observed *u, const struct attn_unit *unit, int32_t n, float *out);
int32_t sr_observed_last_count(const struct observed *u);

/* Marks the n largest of score[first, last) in set, the lowest rows among equals. */
void sr_observed_top(struct observed *u, const float *score, int32_t first, int32_t last, int32_t n, uint8_t *set);
/* The rows marked in set[0, len), rising; returns how many. */
int32_t sr_observed_list(const uint8_t *set, int32_t len, int32_t *list);
/* Marks the n best whole pages that lie in [first, last) by score [page]; returns the pages there are. */
int32_t sr_observed_pages(struct observed *u, const float *score, int32_t first, int32_t last, int32_t n, uint8_t *set);
/* Scratch [max_len] floats, not used by the calls above except pages. */
float *sr_observed_scratch(struct observed *u);
/* Scratch of max_len pairs of 4 bytes each. */
void *sr_observed_pairs(struct observed *u);

#endif
