/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention on an NVIDIA GPU: launchers of the kernels in src/cuda/attn_*.cu and sketch_*.cu. Plain C, so that
 * the backend, the tests and the bench share it.
 *
 * Every pointer inside an argument struct is device memory unless its comment says host; the structs themselves are
 * read on the host during the call and go to the kernels by value. Launchers enqueue on `stream` (a cudaStream_t) and
 * return: they never synchronise and never allocate, and may be captured in a CUDA graph. Lengths, eps and choices are
 * read from device memory by the kernels, so one captured graph serves a growing context. Grids depend on the card and
 * on the number of units alone. The same arguments give the same bits: no float is ever added by an atomic.
 *
 * A *unit* is one (sequence, KV group): unit u = sequence * n_kv_heads + group. Order of calls for one layer of one
 * decode step, after kv_len has been raised to count the new token:
 *
 *     sr_attn_cuda_append                              always
 *     sr_attn_cuda_attend(set ATTN_ALL)                dense
 *     sr_attn_cuda_attend(set ATTN_NEAR)               window
 *     sr_attn_cuda_paper, then attend(kinds)           paper
 *     sr_attn_cuda_choose, attend_and_look             mass, every far row but the newest being encoded; with a trail,
 *                                                      sr_attn_cuda_follow before the first layer
 *     sr_attn_cuda_audit                               window, paper and mass, where audits are on
 */
#ifndef SR_CUDA_ATTN_CUDA_H
#define SR_CUDA_ATTN_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

#include "backend/args.h"
#include "backend/found_sinks.h"
#include "backend/trail_rows.h"
#include "base/status.h"

typedef struct CUstream_st *sr_cuda_stream; /* is cudaStream_t */

/* ---- what does not change from step to step ---- */

/* Facts of the card that the grids are made from; capability 90 where both the card and the code loaded are Hopper's. */
struct attn_cuda_card { int32_t n_sms, capability; /* 80, 90 */ };

/* Of the current device. SR_ERR_UNSUPPORTED below compute capability 8.0. */
sr_status sr_attn_cuda_card(struct attn_cuda_card *out, sr_error *err);

/* kv_type: BF16, F16, F8_E4M3 (value = code * scale of its head; it saturates, and a NaN is read as 480 scales), Q8_0
 * (head_dim a multiple of 32).
 * head_dim 64, 80, 96, 128 or 256; group 1..16. */
struct attn_cuda_shape { int32_t head_dim, group, n_kv_heads; sr_dtype kv_type; };

/* SR_ERR_UNSUPPORTED names the field. */
sr_status sr_attn_cuda_check(const struct attn_cuda_shape *s, sr_error *err);

/* A page holds SR_PAGE_ROWS rows of K or of V of one unit; 64-byte aligned. Rows lie one after another; in Q8_0 the
 * codes of all rows come first ([64][head_dim] int8), then the scales ([64][head_dim / 32] f16): as many bytes as in a
 * file, all of them aligned. */
size_t sr_attn_cuda_page_bytes(const struct attn_cuda_shape *s);

/* Sketch: `bits` 4 or 8. A sketch page holds SR_PAGE_ROWS rows, interleaved for the matrix units: for each 16
 * coordinates (zeros beyond `rank`), 32 lanes of 16 (4 bits) or 32 (8 bits) bytes. 16-byte aligned. */
size_t sr_attn_cuda_sketch_page_bytes(int32_t rank, int32_t bits);

/* The cache of one layer. Page p of unit u is at page[u * max_pages + p]. */
struct attn_cuda_cache {
    void *const *k_page, *const *v_page;  /* [n_units][max_pages] device pointers */
    void *const *y_page;                  /* likewise, of the sketch; NULL without one */
    const float *k_scale, *v_scale;       /* [n_kv_heads], F8_E4M3 only; NULL is 1 */
    const int32_t *kv_len;                /* [n_seqs] rows present, the current token's included */
    int32_t max_pages, n_seqs;
};

/* What was read and decided, added up over steps by the kernels that did it, one entry per unit of a layer. */
struct attn_cuda_counters {
    uint64_t k_rows, v_rows, y_rows;      /* read for attention; of the sketch */
    uint64_t encoded_rows, clipped;       /* K rows read to encode them; coordinates out of range */
    uint64_t again_rows;                  /* near K rows read for the choice, which attend reads and counts too */
    uint64_t kinds[4];                    /* decisions by enum attn_cuda_kind */
    uint64_t dense_rows;                  /* rows that dense attention would have read */
    /* audits: units, their rows, and cases (heads of audited units) */
    uint64_t audits, audit_rows, cases, above_eps, broken;
    double unread_sum, unread_max, output_error_sum, output_error_max, estimate_sum;
    uint64_t far_rows, far_rows_uncorrected; /* of audited units: listed by the threshold; eps itself would have listed */
};

/* Scratch of one stream, shared by all layers. Its memory must be zero before the first use; kernels leave what must be
 * zero so. */
struct attn_cuda_limits { int32_t n_units, max_len, group, head_dim; };
size_t sr_attn_cuda_workspace_bytes(const struct attn_cuda_card *card, const struct attn_cuda_limits *l);

struct attn_cuda {                        /* host; common to all calls */
    struct attn_cuda_card card;
    struct attn_cuda_shape shape;
    struct attn_cuda_limits limits;       /* as given to workspace_bytes */
    void *workspace;
    sr_cuda_stream stream;
};

/* ---- append ---- */

/* Rows kv_len - n .. kv_len - 1 of every sequence, from k, v [n_seqs][n][n_kv_heads * head_dim] (`stride` elements from
 * row to row; src_type F32, F16 or BF16). `found`: the sinks among them are noted (backend/found_sinks.h). A row 0 that
 * comes alone sets k_scale and v_scale (F8_E4M3, one sequence) as sr_attn_cuda_scales would. */
struct attn_cuda_append {
    const void *k, *v;
    sr_dtype src_type;
    int64_t stride;
    int32_t n;
    struct found_sinks *found;            /* [n_units] or NULL */
    float *k_scale, *v_scale;             /* [n_kv_heads] or NULL */
};
sr_status sr_attn_cuda_append(const struct attn_cuda *c, const struct attn_cuda_cache *cache,
                              const struct attn_cuda_append *a, sr_error *err);

/* Sets the scales of the heads (F8_E4M3) from n rows, f32, that are to be appended: a power of two, at least 1/16, with
 * which the largest number seen is stored as less than 32, 14 times below where codes end. */
struct attn_cuda_scales { const float *k, *v; int64_t stride; int32_t n; float *k_scale, *v_scale; /* [n_kv_heads] */ };
sr_status sr_attn_cuda_scales(const struct attn_cuda *c, const struct attn_cuda_scales *a, sr_error *err);

/* ---- attend ---- */

/* Which rows of a unit are attended to. The first four are enum route_kind of attention/policy.h. */
enum attn_cuda_kind { CUDA_READ_NONE, CUDA_READ_NEAR, CUDA_READ_NEAR_LIST, CUDA_READ_ALL, CUDA_READ_LIST };

/* Work is dealt from the rows that are really read: any unit may have none of them, or all.
 * q [n_seqs][n_kv_heads * group * head_dim] floats; `scale` is applied to the logits (1 if q is divided already). */
struct attn_cuda_attend {
    const float *q;
    float scale;
    const uint8_t *kinds;                 /* [n_units] enum attn_cuda_kind, or NULL: `kind` for all */
    enum attn_cuda_kind kind;
    const int32_t *list, *n_list;         /* [n_units][list_stride] rows, [n_units]; for the LIST kinds, else better NULL */
    int64_t list_stride;
    int32_t n_sinks, window;              /* for the NEAR kinds; a near part that covers all rows is all rows */
    float *out;                           /* [n_units][group][head_dim] o / l, 0 where nothing was read; or NULL */
    struct attn_state state;              /* of what was read; o NULL: not wanted (m and l then neither) */
    int merge;                            /* `state` holds a state that is merged in first */
    struct attn_cuda_counters *counters;  /* [n_units] or NULL */
    int audit;                            /* rows are counted as audit_rows, kinds are not counted */
    int after_append;                     /* 1: what the kernel before in the stream writes, q and the last row of each sequence apart, is not
                                           * read here, so that most may be done while it runs; the kinds have no lists then */
};
sr_status sr_attn_cuda_attend(const struct attn_cuda *c, const struct attn_cuda_cache *cache,
                              const struct attn_cuda_attend *a, sr_error *err);

/* One of several sequences that lie anywhere: its tables of this layer, [n_kv_heads][max_pages], and which of the rows of q and out are
 * its, [n_kv_heads * group][head_dim] each. */
struct attn_cuda_seq {
    void *const *k_page, *const *v_page;
    const int32_t *kv_len;                /* at least 1 */
    struct attn_cuda_counters *counters;  /* [n_kv_heads] or NULL */
    int32_t max_pages, row;
};
enum { ATTN_CUDA_SEQS = 16 };

/* Whether sequences of this shape are attended to in one launch. */
int sr_attn_cuda_joins(const struct attn_cuda *c);
/* Attention over all rows, or sinks and window, of n sequences, at most ATTN_CUDA_SEQS: `a` without kinds, lists and state. */
sr_status sr_attn_cuda_attend_seqs(const struct attn_cuda *c, const struct attn_cuda_seq *seqs, int32_t n, const struct attn_cuda_attend *a, sr_error *err);

/* ---- paper ---- */

/* score[u] = mean over heads of cos(q, k_0); kinds[u] = NONE where score > tau(kv_len), else ALL. Sequences shorter than
 * min_len are ALL. */
struct attn_cuda_paper {
    const float *q;
    double tau[4], tau_scale, tau_min_len, tau_max_len;
    int32_t min_len;
    float *score;                         /* [n_units] */
    uint8_t *kinds;                       /* [n_units] */
    struct attn_cuda_counters *counters;
};
sr_status sr_attn_cuda_paper(const struct attn_cuda *c, const struct attn_cuda_cache *cache,
                             const struct attn_cuda_paper *a, sr_error *err);

/* ---- mass ---- */

struct attn_cuda_sketch { int32_t rank, bits; const struct sketch_basis *basis; /* [n_units], of device pointers */ };

/* Encodes rows [max(n_sinks, kv_len - window - n_last), kv_len - window): n_last = 1 in a step, INT32_MAX for all. */
struct attn_cuda_encode {
    struct attn_cuda_sketch sketch;
    int32_t n_sinks, window, n_last;
    struct attn_cuda_counters *counters;
};
sr_status sr_attn_cuda_encode(const struct attn_cuda *c, const struct attn_cuda_cache *cache,
                              const struct attn_cuda_encode *a, sr_error *err);

/* The rows that a step of one sequence reads in any case, in all its layers: what the step before noted, with the rows about it in
 * [n_sinks, kv_len - window), and the sinks found. Then the step's own notes begin. A step's _look notes rows. */
struct attn_cuda_follow {
    int32_t *trail;                       /* [SR_TRAIL_WORDS(max_len)] */
    int32_t max_len;
    const int32_t *kv_len;
    const struct found_sinks *found;      /* [n_units], of all layers */
    struct always_rows *always;           /* [n_units] out */
    int32_t n_units, n_sinks, window;
};
sr_status sr_attn_cuda_follow(const struct attn_cuda *c, const struct attn_cuda_follow *a, sr_error *err);

/* What audits of earlier steps say of a unit; enum device_trust. */
enum attn_cuda_trust { CUDA_ROUTED, CUDA_WHOLE, CUDA_TRIAL };

/* Near logits (exact), scan of the sketch, histogram, choice in whole bins, list: as struct sketch_choose_args says; found
 * sinks are listed too. Sequences shorter than min_len, or not longer than sinks and window, and units that are WHOLE become
 * ALL without a scan. */
struct attn_cuda_choose {
    struct attn_cuda_sketch sketch;
    const float *q;
    float scale;
    int32_t n_sinks, window, min_len;
    const float *eps;                     /* [n_seqs] threshold of the estimate */
    const float *keep;                    /* [n_units] or NULL: measure instead with this share of far rows, at random */
    const struct found_sinks *found;      /* [n_units] or NULL */
    const struct always_rows *always;     /* [n_units] or NULL: instead of those, read in any case as they are */
    const uint8_t *trust;                 /* [n_units] enum attn_cuda_trust, or NULL: all ROUTED */
    const float *plain_eps;               /* [n_seqs] or NULL, uncorrected: how many rows would this have listed? */
    int32_t *n_chosen;                    /* [n_units][2] out or NULL: rows of the list without found sinks; and with plain_eps */
    float *total;                         /* [n_units][group] out or NULL: log of the estimated total; NaN for ALL */
    uint8_t *kinds;                       /* [n_units] out: NEAR, NEAR_LIST or ALL */
    int32_t *list, *n_list;               /* [n_units][list_stride], rising; [n_units] */
    int64_t list_stride;
    float *unread;                        /* [n_units][group] estimated unread share, or NULL; NaN for ALL */
    float *logits;                        /* tests: [n_units][group][list_stride] estimated, or NULL */
    int encodes;                          /* 1: also does what _encode with n_last 1 would do before it. Then the kernel before in
                                           * the stream writes nothing that is read here but q and the last row of each sequence, so
                                           * that the rest is read while it runs */
    int look;                             /* 1: _look follows. Found sinks count as near then, and behind a unit's list lie the rows that
                                           * were not chosen but may be yet */
    int notes;                            /* 1: _look notes rows; those of a share that may be worth it are named */
    int32_t levels;                       /* tests: at most so many rows, 8 or more, that four lanes keep in shared memory, and no marks there; 0: what fits */
    struct attn_cuda_counters *counters;
};
sr_status sr_attn_cuda_choose(const struct attn_cuda *c, const struct attn_cuda_cache *cache,
                              const struct attn_cuda_choose *a, sr_error *err);

/* ---- second look ---- */

/* After _choose with `look` and _attend of what it chose, with a state: as struct sketch_more_args says. State, output and the
 * estimate are brought up to date. With a trail it notes, of what was read by then, the rows of the trail that are no sinks and
 * those that the estimate gave .05 or more: whose share of some head is SR_TRAIL_SHARE or more. */
struct attn_cuda_look {
    const float *q;
    float scale;
    const float *eps;                     /* [n_seqs], of the choice */
    uint8_t *kinds;                       /* [n_units] of the choice; NEAR becomes NEAR_LIST where rows are added */
    const int32_t *list, *n_list;         /* likewise */
    int64_t list_stride;
    float *unread;                        /* [n_units][group] of the choice, or NULL */
    struct attn_state state;              /* of what was read */
    float *out;
    struct attn_cuda_counters *counters;  /* [n_units] or NULL */
    int32_t *trail;                       /* [n_seqs][SR_TRAIL_WORDS(trail_len)], or NULL: nothing is noted */
    int32_t trail_len;
    const struct always_rows *always;     /* of the choice, which had `notes` */
    int only_notes;                       /* 1: of a choice without `look`, which is left as it is */
};
sr_status sr_attn_cuda_look(const struct attn_cuda *c, const struct attn_cuda_cache *cache,
                            const struct attn_cuda_look *a, sr_error *err);

/* Both, of what a choice made of one sequence (no unit is NONE), by one kernel where there is one for the shape. `a` has lists, a state that `l` has
 * too, and no `merge`. */
sr_status sr_attn_cuda_attend_and_look(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_attend *a,
                                       const struct attn_cuda_look *l, sr_error *err);

/* ---- audit ---- */

/* What an audit found; struct device_case. */
struct attn_cuda_case {
    int32_t kv_len, is_drawn;
    float unread[16], estimate[16], sink[16], sink_estimate[16], cosine;
};

/* Audits a seeded fraction of the units, those on trial and, where watched, all: attends them densely into `dense` and
 * compares with the state and the output of the routed step. The hash and the record are those of attention/audit.c. */
struct attn_cuda_audit {
    const float *q;
    float scale;
    const float *fraction;                /* [n_seqs] */
    const uint8_t *trust;                 /* [n_units] or NULL */
    int is_watched, is_routed;            /* not routed: watched only, and no cases are counted */
    uint64_t seed;
    int32_t layer, min_len, n_sinks, window;
    int keeps_near;                       /* steps not longer than sinks and window are not routed: window and mass */
    const uint8_t *routed;                /* [n_units] kinds of the step, or NULL: all are `kind` */
    enum attn_cuda_kind kind;
    const float *eps, *unread;            /* [n_seqs]; [n_units][group] estimate of the choice, or NULL */
    const int32_t *n_chosen;              /* [n_units][2] of the choice, or NULL: not counted */
    struct attn_state state;              /* routed */
    const float *out;
    struct attn_state dense;              /* scratch like `state` */
    uint8_t *kinds;                       /* [n_units] scratch */
    struct attn_cuda_counters *counters;
    struct attn_cuda_case *cases;         /* [n_units] or NULL; may be memory of the host */
};
sr_status sr_attn_cuda_audit(const struct attn_cuda *c, const struct attn_cuda_cache *cache,
                             const struct attn_cuda_audit *a, sr_error *err);

#ifdef __cplusplus
}
#endif

#endif
