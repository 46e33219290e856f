/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention where the device plans: the second half of the op table on backends whose memory is not the host's. A
 * policy's rule is data here (enum device_rule); the device carries it out, from the scores to the counters, and the
 * host is asked nothing in between. What changes from step to step, lengths above all, lies in device memory, so that
 * a recorded step serves a growing context.
 *
 * All structs are read during the call. Pointers are the device's where not said otherwise.
 */
#ifndef SR_BACKEND_DEVICE_ATTN_H
#define SR_BACKEND_DEVICE_ATTN_H

#include "backend/args.h"
#include "backend/trail_rows.h"
#include "base/status.h"

struct backend;

/* The rows of one sequence. Page p (SR_PAGE_ROWS rows) of KV group g in layer l: page[(l * n_kv_heads + g) * max_pages
 * + p]. How rows lie in a page is the device's business. */
struct device_cache {
    struct attn_shape shape;
    struct sketch_shape sketch;     /* row_bytes as sketch_row_bytes says */
    int32_t n_kv_heads, max_pages;
    void **k_page, **v_page, **y_page;
    float *k_scale, *v_scale;       /* [n_layers][n_kv_heads], F8_E4M3 only: append and step set them from the rows that
                                       come with position 0 */
    const int32_t *kv_len;          /* rows present, the ones being worked on included */
    struct found_sinks *found;      /* [n_layers][n_kv_heads], kept by append and step; what lies at or after an appended
                                       row is forgotten, all of it while rows below SR_SINKS_REFERENCE come */
};

/* Writes the addresses of n pages from page `first` on into the tables of all n_units (layer, group): page i of unit u
 * is at base + u * unit_bytes + i * page_bytes. */
struct device_place_args {
    void **table;
    uint8_t *base;
    size_t unit_bytes, page_bytes;
    int32_t n_units, max_pages, first, n;
};

enum device_rule {
    RULE_NONE,   /* the policy has no rule: the device cannot run it */
    RULE_ALL,    /* every row */
    RULE_NEAR,   /* sinks and window */
    RULE_COSINE, /* nothing where the mean cosine with row 0 is above tau(kv_len), else all */
    RULE_MASS    /* near, and far rows until at most the threshold of the attention is estimated unread; found sinks too */
};

/* What audits of earlier steps say of a unit (attention/contract.h). */
enum device_trust { TRUST_ROUTED, TRUST_WHOLE /* read it whole */, TRUST_TRIAL /* routed, and audited for certain */ };

/* Changes from step to step; in the device's memory. */
struct device_terms {
    float threshold; /* of the estimate */
    float audit;     /* share of units audited */
    float eps;       /* of the contract, for counters */
    float plain;     /* the threshold that no audit has corrected */
};

/* The trail of one sequence (RULE_MASS): its first layer's step takes what the step before noted, all layers read that in any
 * case and note rows for the step after (backend/trail_rows.h). */
struct device_trail {
    int32_t *words;                 /* [SR_TRAIL_WORDS(max_len)] */
    int32_t max_len, n_units;
    struct always_rows *always;     /* [n_units]: layers times KV groups */
};

/* A policy with its options, as the device sees them. */
struct device_route {
    enum device_rule rule;
    int32_t n_sinks, window;
    int32_t dense_layers;           /* the first layers are read whole */
    const struct device_terms *terms;
    const float *keep;              /* [n_kv_heads] or NULL: this share of the far rows instead, at random (measurements) */
    double tau[4], tau_scale, tau_min_len, tau_max_len;
    uint64_t seed;
    int keeps_near;
    int looks;                      /* RULE_MASS: as struct sketch_more_args says */
    const struct device_trail *trail; /* host memory; or NULL: none is followed */
    int has_audits;                 /* units may be audited; 0: none will be */
    int is_watched;                 /* all are, RULE_ALL too (which counts no cases) */
    int is_corrected;               /* far rows are counted at audited units, and those that the plain threshold would list */
};

enum device_kind { KIND_NONE, KIND_NEAR, KIND_NEAR_LIST, KIND_ALL };

/* Counted by the kernels that did it, per (layer, KV group), added up over steps. */
struct device_counters {
    uint64_t k_rows, v_rows, y_rows;
    uint64_t encoded_rows, clipped;
    uint64_t again_rows;            /* K rows read for the choice that the same layer attends to: not in k_rows */
    uint64_t kinds[4];              /* decisions, by enum device_kind */
    uint64_t dense_rows;
    uint64_t audits, audit_rows, cases, above_eps, broken;
    double unread_sum, unread_max, output_error_sum, output_error_max, estimate_sum;
    uint64_t far_rows, far_rows_uncorrected;
};

/* The audit of a unit's last step, in memory that host and device share: written where the unit was audited, and good
 * once that step is over. */
struct device_case {
    int32_t kv_len;                 /* of the step */
    int32_t is_drawn;               /* by lot or on trial; 0: only because it is watched */
    float unread[16], estimate[16]; /* by head, as struct sr_route_case has them; the last two and cosine if watched */
    float sink[16], sink_estimate[16];
    float cosine;
};

/* One token of one sequence through one layer: its row is appended, the row that leaves the window encoded, rows are
 * chosen and attended to, counted and audited. kv_len counts the token already. */
struct device_step_args {
    const struct device_cache *cache;
    const struct device_route *route;
    const float *q, *k, *v;         /* [n_heads][head_dim], [n_kv_heads][head_dim]; q not yet scaled; k NULL: the row is there */
    float *out;
    const struct sketch_basis *basis; /* [n_kv_heads] of this layer, RULE_MASS only */
    struct device_counters *counters; /* [n_kv_heads] of this layer */
    const uint8_t *trust;           /* likewise, enum device_trust; RULE_MASS only */
    struct device_case *cases;      /* likewise, as the device sees them */
    float *q_kept, *k_kept;         /* or NULL: [SR_KEPT_ROWS] of q and of k, rotated, whose row (*kv_len - 1) % SR_KEPT_ROWS this
                                       step writes, for moments to come */
    int32_t layer;
};
#define SR_KEPT_ROWS 32
#define SR_STEP_SEQS 16

/* n new rows of one layer, already counted by kv_len = pos0 + n: append stores them, prefill attends exactly. */
struct device_rows_args {
    const struct device_cache *cache;
    const float *k, *v;             /* append: [n][n_kv_heads * head_dim] */
    const float *q;                 /* prefill: [n][n_heads * head_dim], not yet scaled */
    float *out;
    int32_t layer, n;
    int64_t pos0;
};

/* Encodes the last n_last rows before the window's, of one layer. */
struct device_encode_args {
    const struct device_cache *cache;
    const struct sketch_basis *basis;
    struct device_counters *counters;
    int32_t layer, n_sinks, window, n_last;
};

/* Adds second moments of rows, turned back to before rotary embedding, to sums [n_kv_heads][unit_len] in double, in
 * the order of positions (attention/moments.h). */
#define SR_TURN_STEP 64
struct device_moments_args {
    double *sums;                   /* [unit_len]: M_q [d][d], M_k [d][d], m_k [d]; elements j >= i of the matrices */
    int64_t unit_len;
    const float *rows;              /* [n][n_kv_heads * per_group][head_dim] */
    const float *turn;              /* [SR_TURN_STEP + ...][n_dims / 2] cos and sin: of positions 0, 1, ..., and over the
                                     * embedding's magnitude of positions 0, SR_TURN_STEP, 2 SR_TURN_STEP ...: two make any */
    int32_t n_kv_heads, per_group, head_dim, n, n_dims, first, end; /* positions [first, end) count */
    int64_t pos0;
    enum rope_kind kind;
    float scale;                    /* of the rows */
    int is_key;
};

struct device_attn_ops {
    /* SR_ERR_UNSUPPORTED names what the kernels lack. */
    sr_status (*check)(struct backend *b, const struct attn_shape *shape, int32_t n_kv_heads, sr_error *err);
    size_t (*sketch_row_bytes)(int32_t rank, int32_t bits);
    /* Scratch of the steps to come; called outside of them. */
    sr_status (*reserve)(struct backend *b, const struct attn_shape *shape, int32_t n_kv_heads, int32_t max_len, sr_error *err);
    void (*place)(struct backend *b, const struct device_place_args *a);
    /* Whole pages as the host's rows, and back; host memory on both sides. */
    void (*rows_of_page)(sr_dtype type, int32_t head_dim, const void *page, void *rows);
    void (*page_of_rows)(sr_dtype type, int32_t head_dim, const void *rows, void *page);
    void (*append)(struct backend *b, const struct device_rows_args *a);
    void (*prefill)(struct backend *b, const struct device_rows_args *a);
    void (*encode)(struct backend *b, const struct device_encode_args *a);
    void (*moments)(struct backend *b, const struct device_moments_args *a, int32_t n); /* n: 1, or 2 of the same rows, queries and keys */
    /* A layer's step of each of n sequences, 1..SR_STEP_SEQS; those that are alike may be done at once. */
    void (*step)(struct backend *b, const struct device_step_args *a, int32_t n);
};

#endif
