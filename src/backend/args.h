/* SPDX-License-Identifier: Apache-2.0
 *
 * Arguments of the ops: plain structs, pointers into the backend's memory, shapes in comments. Valid as C11 and
 * C++17, so that CUDA code shares them. Matrices are row-major; strides are in elements.
 *
 * Maths letters: q k v o (output), m (running maximum of the logits), l (sum of exp(logit - m)).
 * An attention *state* is (o, m, l) with o unnormalised: the attention output is o / l. Over no keys: o = 0,
 * m = -inf, l = 0. States over disjoint key sets combine by the one merge.
 */
#ifndef SR_BACKEND_ARGS_H
#define SR_BACKEND_ARGS_H

#include "backend/kv_type.h"

/* y = W x: row r of W (n_in elements of `dtype`, row_bytes apart) gives element r of y. */
struct weight {
    const void *data;   /* borrowed from the model file's mapping */
    void *packed;       /* a backend's own arrangement, or NULL; owned by the backend (weight_prepare/release) */
    sr_dtype dtype;
    int64_t n_out, n_in;
    size_t row_bytes;
    int32_t n_experts;  /* above 0: that many matrices of n_out rows, one behind the other, */
    const uint8_t *const *experts; /* or, where this is not NULL, each at its own place; data is that of the first */
};

#define SR_MATMUL_MAX 3

/* Up to three products that share their input (q k v; gate up): y[i][t][r] = W[i] x[t] (+ bias[i]). */
struct matmul_args {
    int32_t n_weights;                       /* 1..SR_MATMUL_MAX */
    const struct weight *w[SR_MATMUL_MAX];
    const float *bias[SR_MATMUL_MAX];        /* [n_out] or NULL */
    float *y[SR_MATMUL_MAX];                 /* [n][y_stride] */
    int64_t y_stride[SR_MATMUL_MAX];
    const float *x;                          /* [n][x_stride] */
    int64_t x_stride;
    int32_t n;                               /* tokens */
};

/* y[t] = x[t] * w / sqrt(mean(x[t]^2) + eps); rows of d. y may be x. With `heads` > 1 a row holds that many vectors
 * of d, each normed with the same w (QK-norm). */
struct norm_args { const float *x; float *y; const float *w; int64_t d; int32_t n, heads; float eps; };

enum rope_kind { ROPE_NONE, ROPE_NORM /* pairs (2i, 2i+1) */, ROPE_NEOX /* pairs (i, i + n_dims/2) */ };

/* The rotary embedding of a model: a description, not data of a token. */
struct rope_spec {
    enum rope_kind kind;
    int32_t n_dims;        /* leading elements of a head that are rotated; even */
    double inv_freq[128];  /* [n_dims / 2] radians per position, scaling already applied */
    double magnitude;      /* cos and sin are multiplied by it (YaRN); else 1 */
};

/* In place on x [n][heads][head_dim] and, where given, on x2 likewise; position of row t is pos0 + t, and plus *pos
 * where that is given. Angles in double. `spec` is the host's. */
struct rope_args {
    float *x;
    const struct rope_spec *spec;
    int64_t stride;
    int32_t n, heads, head_dim;
    int64_t pos0;
    const int32_t *pos;
    float *x2;
    int64_t stride2;
    int32_t heads2;
};

/* h[t][i] = silu(gate[t][i]) * up[t][i]; h may be gate. */
struct silu_mul_args { const float *gate, *up; float *h; int64_t d; int32_t n; };

/* x[t] += y[t] */
struct add_args { float *x; const float *y; int64_t d; int32_t n; };

/* x[t] = row ids[t] of w, as floats */
struct embed_args { const struct weight *w; const int32_t *ids; float *x; int32_t n; };

/* ---- memory itself ------------------------------------------------------------------------------------------- */

/* Reads and does nothing else: what memory gives, for measurements. Either `bytes` from base on, or the rows of a list.
 * Sizes are multiples of 8, base of 64. The exclusive or of all 64-bit words read changes *sum: none can be left out. */
struct read_args {
    const uint8_t *base;
    size_t bytes;
    const int32_t *rows;  /* [n_rows] or NULL: row i is at base + rows[i] * row_bytes */
    int32_t n_rows;
    size_t row_bytes;
    uint64_t *sum;
};

/* ---- mixture of experts ------------------------------------------------------------------------------------- */

/* Per token the n_used largest of its logits, in falling order, ties to the lower id. weight = softmax over all
 * n_experts logits, divided by the sum over the chosen ones if `normalize`. NaN ranks below every number. */
struct topk_args {
    const float *logits;  /* [n][n_experts] */
    int32_t *ids;         /* [n][n_used] out */
    float *weight;        /* [n][n_used] out */
    int32_t n, n_experts, n_used, normalize;
};

/* y[t] = sum over j < n_used, in rising j, of weight[t][j] * Wdown(silu(Wgate x[t]) * Wup x[t]), the matrices of expert
 * ids[t][j]. Only the matrices of chosen experts are read. y may be x. */
struct moe_args {
    const struct weight *gate, *up, *down; /* gate, up: n_embd to n_ff; down: n_ff to n_embd */
    const float *x;       /* [n][n_embd] */
    const int32_t *ids;   /* [n][n_used], no expert twice for one token */
    const float *weight;  /* [n][n_used] */
    float *y;             /* [n][n_embd] */
    int32_t n, n_used;
};

/* The largest that will come. */
struct moe_shape { int32_t max_n, n_used, n_experts; int64_t n_embd, n_ff; };

/* ---- attention -------------------------------------------------------------------------------------------- */

#define SR_CHUNK_ROWS 1024  /* rows of one (layer, KV group) that lie together */
#define SR_PAGE_ROWS 64     /* granule of whole pages in the kernels and in the tests */

/* Storage of K or V of one (sequence, layer, KV group): row i is at chunk[i / 1024] + (i % 1024) * row_bytes. Rows of a
 * scaled type are stored over `scale`, a power of two; for other types it has no meaning. */
struct kv_rows { void *const *chunk; float scale; };

/* What elements of stored rows are to be multiplied by. */
static inline float sr_kv_scale(const struct kv_rows *r, sr_dtype type) { return sr_kv_is_scaled(type) ? r->scale : 1.0f; }

/* One (sequence, KV group) of one layer: the unit of routing. */
struct attn_unit {
    const float *q;       /* [group][head_dim], already divided by sqrt(head_dim) */
    struct kv_rows k, v;
    struct kv_rows y;     /* sketch rows, sketch_row_bytes each; NULL chunk if there is none */
    int32_t kv_len;       /* rows present, the current token's included */
};

struct attn_shape {
    int32_t head_dim;     /* multiple of 8, <= 256 */
    int32_t group;        /* query heads per KV head, 1..16 */
    sr_dtype k_type, v_type;          /* a kv_type.h type */
    size_t k_row_bytes, v_row_bytes;
};

/* States of n units. */
struct attn_state {
    float *o;             /* [n][group][head_dim] */
    float *m, *l;         /* [n][group] */
};

/* What kernels touched, added up by the kernels themselves, one entry per unit. */
struct attn_touched { int64_t k_rows, v_rows, y_rows, y_bytes /* of the sketch, which need not be whole rows */; };

/* Rows of n tokens into a unit's cache: k, v [n][kv_stride] floats at rows pos0..pos0+n-1. */
struct kv_append_args {
    const struct attn_shape *shape;
    struct kv_rows k, v;
    const float *k_src, *v_src;
    int64_t stride;
    int64_t pos0;
    int32_t n;
};

/* Causal attention of n query rows at positions pos0..pos0+n-1 over rows [0, pos0 + t] of the cache (the n new rows
 * are already appended). q and out [n][n_heads * head_dim]; q is divided by sqrt(head_dim) already. */
struct attn_prefill_args {
    const struct attn_shape *shape;
    const struct attn_unit *units;   /* [n_kv_heads]; their q is not used */
    int32_t n_units;
    const float *q;
    float *out;
    int64_t q_stride, out_stride;
    int64_t pos0;
    int32_t n;
};

/* Which rows of a unit are attended to. */
enum attn_set {
    ATTN_NONE,   /* nothing: the empty state */
    ATTN_NEAR,   /* rows [0, n_sinks) and [kv_len - window, kv_len) */
    ATTN_LIST,   /* rows list[0 .. n_list), rising, no duplicates */
    ATTN_NEAR_LIST, /* first those, then the list, none of which is near: the same bits as one after the other */
    ATTN_ALL
};

struct attn_rows_args {
    const struct attn_shape *shape;
    const struct attn_unit *units;
    const uint8_t *set;              /* [n_units] enum attn_set */
    const int32_t *const *list;      /* [n_units], used where set has a list */
    const int32_t *n_list;           /* [n_units] */
    int32_t n_units, n_sinks, window;
    struct attn_state state;         /* result; with `merge` non-zero it is merged into what is there */
    int merge;
    float *near_m, *near_l;          /* [n_units][group] of ATTN_NEAR_LIST: the state before its list; NULL: not wanted */
    struct attn_touched *touched;    /* [n_units], added to */
};

/* logits[head][i] of row rows[i]. Nothing is counted as read: for rows that the step has read. */
struct attn_logits_args {
    const struct attn_shape *shape;
    const struct attn_unit *unit;
    const int32_t *rows;             /* [n], rising */
    int32_t n;
    float *logits;                   /* [group][n] */
};

/* out[unit][head][d] = o / l, and 0 where l is 0. */
struct attn_finish_args { const struct attn_shape *shape; struct attn_state state; float *out; int32_t n_units; };

/* ---- sketch (method: docs/routing.md) ------------------------------------------------------------------------ */

/* The basis of one (layer, KV group) in one band of positions. Key: y = analysis (k - mu), rounded. Query:
 * z = synthesis q. Estimated logit of a row = q.mu + sum_{j<rank} z_j y_j + correction, one number per head:
 * (sum_{j<rank} z_j^2 step_j^2 / 12 + sum_{j>=rank} z_j^2 lambda_j) / 2; codes of few bits have sr_sketch_rounding for 1 / 12. */
struct sketch_basis {
    const float *mu;         /* [head_dim] */
    const float *analysis;   /* [rank][head_dim] */
    const float *synthesis;  /* [head_dim][head_dim]: row j gives z_j */
    const float *step;       /* [rank] */
    const float *lambda;     /* [head_dim], falling, >= 0 */
};

/* Stored row: a code for each of `rank` coordinates. One of b bits, c in [0, 2^b), means level (c - 2^(b-1) + 1/2) * step.
 * `bits` is 4 or 8, of all codes, or SR_SKETCH_MIXED, which only the host has. Where they lie in a chunk is the backend's own:
 * only encode and choose touch them. */
struct sketch_shape { int32_t rank, bits; size_t row_bytes; };

/* In the host's memory the first SR_SKETCH_FIRST coordinates are a plane of their own, and the others words of 4 bytes, of 32 /
 * bits codes each. Mixed codes have 4 bits in the first plane; behind it words are pairs, of 16 fields of 2 bits and of 32 of 1
 * bit. Of n pairs the first 8 n coordinates have 3 bits (the upper two in a field of 2, the lowest in one of 1), the next 8 n
 * have 2, and the other 24 n have 1. */
#define SR_SKETCH_FIRST 4
#define SR_SKETCH_MIXED 2
enum { SKETCH_TWOS = 16, SKETCH_ONES = 32, SKETCH_THREES = 8, SKETCH_PAIR = 40 /* fields of a pair, coordinates of 3 bits (as many have 2), all */ };
static inline int32_t sr_sketch_host_words(int32_t rank, int32_t bits)
{
    const int32_t rest = rank > SR_SKETCH_FIRST ? rank - SR_SKETCH_FIRST : 0;
    return bits == SR_SKETCH_MIXED ? (rest + SKETCH_PAIR - 1) / SKETCH_PAIR * 2 : (rest * bits + 31) / 32;
}
static inline size_t sr_sketch_host_row_bytes(int32_t rank, int32_t bits)
{
    return (size_t)((bits == 8 ? 8 : 4) * SR_SKETCH_FIRST / 8 + sr_sketch_host_words(rank, bits) * 4);
}
/* Bits of coordinate j. */
static inline int32_t sr_sketch_code_bits(const struct sketch_shape *s, int32_t j)
{
    const int32_t eights = sr_sketch_host_words(s->rank, s->bits) / 2 * SKETCH_THREES, rest = j - SR_SKETCH_FIRST;
    if (s->bits != SR_SKETCH_MIXED) return s->bits;
    return rest < 0 ? 4 : rest < eights ? 3 : rest < 2 * eights ? 2 : 1;
}
/* What rounding adds to the variance of a coordinate, over step^2. With few levels the values beyond the last one count too: of the
 * texts of docs/routing.md. */
static inline float sr_sketch_rounding(int32_t code_bits)
{
    return code_bits == 1 ? 0.132f : code_bits == 2 ? 0.104f : code_bits == 3 ? 0.089f : 1.0f / 12;
}

/* Encodes rows [row0, row1) of a unit from its K cache. Adds the number of clipped values to *clipped and the
 * K rows read to touched->k_rows if `touched` is given. */
struct sketch_encode_args {
    const struct attn_shape *shape;
    const struct sketch_shape *sketch;
    const struct attn_unit *units;          /* [n_units] */
    const struct sketch_basis *basis;       /* [n_units] */
    const int32_t *row0, *row1;             /* [n_units] */
    int32_t n_units;
    int64_t *clipped;                       /* [n_units] */
    struct attn_touched *touched;           /* [n_units] or NULL */
};

/* Scores the far rows [n_sinks, kv_len - window) of each unit with its sketch, and chooses: the shortest prefix of
 * far rows, in falling order of group score (max over heads of the row's share exp(logit - log total); total over
 * the near state, exact, and the far rows, estimated), such that for every head the unread share is <= eps and no row
 * of a share of eps / SR_SKETCH_SURE is left out (where there are fewer far rows: eps / their number). Whole histogram
 * bins. Units with mask 0 are left alone.
 * A backend may estimate the logits of a short run of rows by their first coordinates alone, the others counted by their
 * variance, if no row of the run has so a share of SR_SKETCH_OPEN eps / n_far rows, nor one of eps / SR_SKETCH_SURE, of a
 * head's near part. */
#define SR_SKETCH_SURE 64
#define SR_SKETCH_OPEN 10
/* Rows named as weighty: at most so many of a unit, those whose group score is so much. */
#define SR_SKETCH_TOP 32
#define SR_SKETCH_WEIGHTY 0.05f
struct sketch_choose_args {
    const struct attn_shape *shape;
    const struct sketch_shape *sketch;
    const struct attn_unit *units;
    const struct sketch_basis *basis;
    const uint8_t *mask;             /* [n_units] */
    int32_t n_units, n_sinks, window;
    const float *eps;                /* [n_units] */
    struct attn_state near_state;    /* exact states of the near parts and of `found`; only m and l are used */
    int32_t **list;                  /* [n_units] out: chosen rows, rising; room for kv_len each */
    int32_t *n_list;                 /* [n_units] out */
    float *unread;                   /* [n_units][group] out: estimated unread share */
    float *far_share;                /* NULL, or for tests [n_units][group] out: estimated share of all far rows */
    float *const *logits;            /* NULL, or for tests [n_units] -> [group][kv_len] estimated logits of far rows */
    struct attn_touched *touched;    /* [n_units], y_rows and y_bytes added */
    const int32_t *const *found;     /* NULL, or [n_units] far rows, rising, that near_state has too: they are neither
                                        estimated nor listed */
    const int32_t *n_found;          /* [n_units] */
    int32_t *top;                    /* NULL, or [n_units][SR_SKETCH_TOP] out: weighty rows of the list, rising */
    int32_t *n_top;                  /* [n_units] out */
};

/* The second look, after a choice and before the next: what was listed is exact now, and where the estimate
 * had too little for it, it has too little for the rest. With E the exact and e the estimated mass of the rows listed, u
 * the estimated mass of the others, all over the estimated total: r = max(1, (E + u) / (e + u)), and the unread share is
 * r u / (near + E + r u). Of a unit that has a head above eps the next bins are listed, until no head is or none is left. */
struct sketch_more_args {
    const struct sketch_choose_args *choice; /* as it was called; its `unread` is brought up to date */
    const uint8_t *mask;             /* [n_units] */
    struct attn_state read;          /* exact states of everything read: near_state and listed; only m and l are used */
    int32_t **more;                  /* [n_units] out: rows besides those read, rising; room for the rest of kv_len each */
    int32_t *n_more;                 /* [n_units] out; 0 where the mask is */
};

/* cos(q_head, k_row0) averaged over the heads of each unit (method of the paper): score[n_units]. */
struct attn_cosine_args {
    const struct attn_shape *shape;
    const struct attn_unit *units;
    int32_t n_units;
    float *score;
    struct attn_touched *touched;
};

#endif
