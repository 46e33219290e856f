/* SPDX-License-Identifier: Apache-2.0
 *
 * KV cache, router and attention for any engine: no model needed. The caller owns q, k and v; this library
 * keeps the keys and values of one sequence, decides at each decode step which of them are read, and returns
 * the attention output with a count of every row that was touched.
 *
 *     sr_attention_new -> per token: for each layer  append, then attend -> stats -> free
 *
 * Conventions. Arrays are float, row-major. A token's q is [n_heads][head_dim], its k and v
 * [n_kv_heads][head_dim], after rotary embedding; query head h reads KV head h / (n_heads / n_kv_heads).
 * Logits are q.k / sqrt(head_dim). Decode attention is routed; prefill attention is always exact. K and V
 * rows are never evicted: turning routing off gives dense attention over the same cache.
 *
 * Threads: one thread per sr_attention at a time; its own pool does the work. Results are the same bits for
 * any number of threads.
 */
#ifndef SINKROUTER_ATTENTION_H
#define SINKROUTER_ATTENTION_H

#include "sinkrouter/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a decode step reads. docs/routing.md has the methods; the seed is SinkRouter, arXiv 2604.16883. */
typedef enum sr_route_mode {
    SR_ROUTE_DENSE = 0, /* every key */
    SR_ROUTE_MASS = 1,  /* sinks, window, and far keys until about eps of the attention mass is unread, by estimate */
    SR_ROUTE_PAPER = 2, /* skip a KV group (output 0) when mean cos(q, k_0) > tau; first two layers dense */
    SR_ROUTE_WINDOW = 3, /* sinks and window only */
    /* Baselines for measurements, slow, on sequences that were observed from their first token on. */
    SR_ROUTE_QUEST = 4,   /* arXiv 2406.10774 */
    SR_ROUTE_PAGES = 5,   /* as mass, with pages scored by mean and deviation of their keys */
    SR_ROUTE_H2O = 6,     /* arXiv 2306.14048 */
    SR_ROUTE_SNAPKV = 7,  /* arXiv 2404.14469 */
    SR_ROUTE_FASTGEN = 8, /* arXiv 2310.01801 */
    SR_ROUTE_TOPK = 9,    /* bound: the rows of the largest true shares */
    SR_ROUTE_TOPP = 10    /* bound: mass with true shares */
} sr_route_mode;

typedef struct sr_route_options {
    sr_route_mode mode;
    float eps;       /* mass: unread share that a head may have, by estimate, which it has in the mean where the
                        estimate just allows it, (0, 1); default 0.1 */
    float delta;     /* mass: the threshold is corrected from audits until the true unread share is <= eps in
                        1 - delta of the cases, [0, 1); default 0: the estimate alone decides */
    int32_t window;  /* last tokens always read, 1..65536; default 256 */
    int32_t n_sinks; /* first tokens always read, 0..1024; default 4 */
    int32_t budget;  /* baselines: rows read per step and unit; 0: none given */
    int32_t min_len; /* below this many cached tokens every mode is dense; default 2048 */
    int32_t rank;    /* sketch coordinates per key, 1..head_dim; 0 = head_dim / 4 + 4, GPU + 0; groups of more than 4 on the
                        CPU: 44 of 4 to 1 bits, 40 more for each further 64 of head_dim (with 4 for bits) */
    int32_t bits;    /* bits per coordinate, 4 or 8; default 4 */
    float audit;     /* fraction of (layer, KV group, step) checked against dense, 0..1; default 0.01 */
    int breaker;     /* mass: a (layer, KV group) whose audits fail is read whole for a while; default 1 */
    int look;        /* mass: once the chosen keys are read, read further ones where the estimate was too low for them;
                        default 1 */
    int trail;       /* mass: read in every layer what some head had a large share in at the step before; default 1 */
    uint64_t seed;   /* of the choice of audits; default 0 */
    float keep;      /* mass, to measure with random weights: this share of the far keys, drawn at random, instead of a
                        choice, [0, 1]; default 0, off */
    /* paper: threshold c[0] + c[1] x + c[2] x^2 + c[3] x^3 with x = clamp(len, min, max) / scale. A constant
     * tau is c = {tau, 0, 0, 0}. tau_set == 0 makes `paper` a usage error. */
    int tau_set;
    double tau[4], tau_scale, tau_min_len, tau_max_len;
} sr_route_options;

SR_API sr_route_options sr_route_options_default(void);
SR_API const char *sr_route_mode_name(sr_route_mode mode); /* "dense" ... */
SR_API sr_status sr_route_mode_find(sr_route_mode *out, const char *name, sr_error *err);

/* How the caller's q and k were rotated: needed by `mass` to carry its basis between positions. */
typedef enum sr_rope_kind {
    SR_ROPE_NONE = 0,
    SR_ROPE_NORM = 1 /* pairs (2i, 2i+1) */,
    SR_ROPE_NEOX = 2 /* (i, i + n/2) */
} sr_rope_kind;

typedef struct sr_attention_options {
    int32_t n_layers, n_heads, n_kv_heads,
        head_dim;            /* head_dim a multiple of 8, <= 256; n_heads / n_kv_heads <= 16 */
    sr_dtype k_type, v_type; /* F32 F16 BF16 F8_E4M3 Q8_0 Q4_0; default F16 */
    int32_t max_len;         /* tokens; memory grows as they come */
    int n_threads;           /* 0 = physical cores */
    sr_rope_kind rope_kind;
    int32_t rope_dims;           /* 0 = head_dim */
    double rope_base;            /* default 10000; ignored if inv_freq is given */
    const double *rope_inv_freq; /* [rope_dims / 2] radians per position, or NULL; copied */
    sr_route_options route;
} sr_attention_options;

SR_API sr_attention_options sr_attention_options_default(void);

typedef struct sr_attention sr_attention;

SR_API sr_status sr_attention_new(sr_attention **out, const sr_attention_options *o, sr_error *err);
SR_API void sr_attention_free(sr_attention *a);

/* Adds n tokens to a layer: k, v [n][n_kv_heads][head_dim]. Every layer receives the same tokens, in order; a
 * layer may run ahead of the others. SR_ERR_USAGE when max_len would be exceeded; nothing is changed then. */
SR_API sr_status sr_attention_append(sr_attention *a, int32_t layer, const float *k, const float *v,
                                     int32_t n, sr_error *err);

/* Exact causal attention of the last n tokens of the layer. q, out [n][n_heads][head_dim]. Also collects the
 * moments that `mass` needs, up to the first routed step (decode does too), unless a moments file was given; if
 * any of the positions 4..2,047 is never attended, `mass` reads everything until a file is loaded. */
SR_API sr_status sr_attention_prefill(sr_attention *a, int32_t layer, const float *q, int32_t n, float *out,
                                      sr_error *err);

/* Routed attention of the layer's last token. q, out [n_heads][head_dim]. */
SR_API sr_status sr_attention_decode(sr_attention *a, int32_t layer, const float *q, float *out,
                                     sr_error *err);

/* Tokens in the layer. */
SR_API int32_t sr_attention_len(const sr_attention *a, int32_t layer);
/* Forgets all tokens from position len on, in every layer. */
SR_API sr_status sr_attention_truncate(sr_attention *a, int32_t len, sr_error *err);

/* Takes effect at the next decode; the cache stays. */
SR_API sr_status sr_attention_route_set(sr_attention *a, const sr_route_options *route, sr_error *err);

/* Second moments of q and k before rotary embedding, per (layer, KV group): a property of the model. */
SR_API sr_status sr_attention_moments_load(sr_attention *a, const char *path, sr_error *err);
SR_API sr_status sr_attention_moments_save(const sr_attention *a, const char *path, sr_error *err);

/* Why a breaker opened. */
typedef enum sr_break {
    SR_BREAK_UNREAD = 0,  /* two of a unit's last four audits found more than 2 eps unread, or its trial did */
    SR_BREAK_LOST = 1,    /* one found more than half unread */
    SR_BREAK_NUMERIC = 2, /* one gave no number */
    SR_BREAK_CAUSES = 3
} sr_break;

/* Counts since creation or the last reset; decode steps only. Bytes are of rows that kernels touched. */
typedef struct sr_route_stats {
    int64_t steps; /* decoded tokens */
    int64_t units; /* (layer, KV group) decisions */
    int64_t units_all, units_near, units_list,
        units_none; /* what they were: everything, sinks+window, a list, nothing */
    int64_t k_rows, v_rows, sketch_rows;
    uint64_t kv_bytes;             /* K and V rows and sketch rows read, re-projection included */
    uint64_t sketch_bytes;         /* of these: sketch rows, and K rows read to project keys anew */
    uint64_t dense_bytes;          /* what dense decoding would have read */
    uint64_t audit_bytes;          /* read by audits, not in kv_bytes */
    uint64_t again_bytes;          /* K rows that a step reads a second time at once, out of a GPU's cache; not in kv_bytes */
    int64_t audits;                /* audited units */
    int64_t cases;                 /* audited (unit, query head) */
    int64_t above_eps;             /* cases with true unread mass > eps */
    int64_t broken;                /* cases with true unread mass > 2 eps */
    double unread_sum, unread_max; /* true unread mass over cases */
    double estimate_sum;           /* estimated unread mass over the same cases (mass only) */
    double output_error_sum, output_error_max; /* |o - o_dense| / |o_dense| over cases */
    int64_t clipped, encoded;                  /* sketch values clipped, of how many written */
    /* delta: far rows listed at the audited units, and those that eps uncorrected would have listed; the
     * threshold given to the estimate, summed over routed decisions */
    int64_t far_rows, far_rows_uncorrected;
    double threshold_sum;
    int64_t thresholds;
    int64_t breaker_opened[SR_BREAK_CAUSES], breaker_closed; /* closed: a trial passed */
    int64_t units_open;                                      /* decisions that a breaker made */
} sr_route_stats;

/* What one decision looked like, for measurements. Pointers hold during the call. */
typedef struct sr_route_case {
    int32_t layer, kv_head, kv_len, n_heads; /* n_heads: of the group */
    int is_routed;                           /* 0: dense by its mode or length */
    const float *unread, *estimate;          /* [n_heads] unread share, true and estimated (NaN: no estimate) */
    const float *sink, *sink_estimate;       /* [n_heads] share of the first row, the same: of what was read and the estimate of the rest */
    float cosine;                            /* mean over the heads of cos(q, first row) */
    float threshold;                         /* that the estimate was held to: docs/routing.md, "Threshold" */
} sr_route_case;
typedef void sr_route_watch_fn(void *user, const sr_route_case *c);
/* From now on every decision is audited, counted and told to fn, which must not call back; NULL ends it. What audits
 * teach (delta, breaker) is still only the option's share of them, so that a watched run decides as any other. */
SR_API void sr_attention_watch(sr_attention *a, sr_route_watch_fn *fn, void *user);

SR_API void sr_attention_stats(const sr_attention *a, sr_route_stats *out);
SR_API void sr_attention_stats_reset(sr_attention *a);
/* Bytes held for K/V, and for the sketch and its bases. */
SR_API void sr_attention_memory(const sr_attention *a, uint64_t *kv_bytes, uint64_t *sketch_bytes);

#ifdef __cplusplus
}
#endif

#endif
