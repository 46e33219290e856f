/* SPDX-License-Identifier: Apache-2.0
 *
 * The structs behind sequence.h, shared by the files of this folder that each do one thing with them:
 * sequence.c (life and rows), cache.c (storage), sketch.c (bases and sketch rows), decode.c (one routed
 * step), follow.c (the trail), audit.c, stats.c, snapshot.c (session files).
 */
#ifndef SR_ATTENTION_TIMELINE_H
#define SR_ATTENTION_TIMELINE_H

#include "attention/basis.h"
#include "attention/contract.h"
#include "attention/device.h"
#include "attention/moments.h"
#include "attention/observe.h"
#include "attention/policy.h"
#include "attention/rotation.h"
#include "attention/sequence.h"
#include "attention/sinks.h"
#include "attention/trail.h"

#define SR_FOUND_ROWS (SR_SINKS_MOST + SR_TRAIL_ROWS)

/* What a decode step works in: arrays over the units of all its sequences, one block made by decode.c. */
struct decode_scratch {
    int32_t room; /* units */
    void *block;
    struct attn_unit *units;
    struct sketch_basis *basis;
    struct attn_touched *touched, *audit_touched, *probe_touched;
    uint8_t *kind, *set, *bytes, *audited, *whole, *trial;
    int32_t **list, **more;
    int32_t *n_list, *n_chosen, *n_more;
    struct observed **observed;
    const int32_t **found, **drawn;
    int32_t *n_found, *n_drawn;
    int32_t *found_rows; /* [n_units][SR_FOUND_ROWS] where `found` has more than sinks */
    int32_t *top, *n_top; /* [n_units][SR_SKETCH_TOP], [n_units] */
    float *unread, *eps, *score, *near_m, *near_l, *found_l;
    struct attn_state state, audit_state, probe_state;
    struct kv_append_args *append; /* [n_kv_heads] */
    struct attn_unit *seq_units;   /* [n_kv_heads] */
    struct sketch_basis *seq_basis;
    int32_t *row0, *row1;
    int64_t *clipped;
};

struct attention {
    struct backend *backend;
    struct pool *pool; /* the backend's; may be NULL */
    struct attention_config c;
    int32_t group; /* query heads per KV head */
    struct rotation rotation;
    struct moments *moments; /* from a file, or NULL */
    uint64_t n_keys;         /* given out by sr_attn_step_key */
    struct attention *lower; /* of the layers before these, or NULL; owned */
    struct attn_seq **seqs;  /* [n_seqs] living ones: those that stand on `moments` share their bases */
    int32_t n_seqs, seqs_room;
    struct decode_scratch scratch;
};

/* A chunk is SR_CHUNK_ROWS rows of every layer and KV group: [layer][group][K run, V run]; sketch rows lie in
 * chunks of their own: [half][layer][group][run], one half for the band in use and one, where there is another band to
 * come, for the next. */
struct attn_seq {
    struct attention *a;
    struct attn_shape shape;
    int32_t max_len;
    sr_route_options route;
    int32_t *len; /* [n_layers] */

    int32_t n_chunks, n_sketch_chunks, table_room;
    void **k, **v, **y, **y_next;   /* [n_layers][n_kv_heads][table_room] runs */
    void **region, **sketch_region; /* [table_room]: of the first chunk of each, NULL of the others */
    float *scales;                  /* [2][n_layers][n_kv_heads] of K and V rows of a scaled type, on the host; else NULL */
    size_t touched;                 /* bytes of the last chunk that were committed ahead of its rows */
    int32_t *list; /* [2][n_kv_heads][n_chunks * SR_CHUNK_ROWS] rows chosen in the layer at hand, and by its
                      audits; then one run more, of the lot */
    int32_t lot_to, n_lot; /* rows [0, lot_to) were drawn from, n_lot of them drawn (route.keep) */

    struct sketch_shape sketch;
    int32_t sketch_first;     /* rows before it are sinks and have no sketch */
    struct band_bases *bases; /* NULL: none, or to be made again for `band` */
    int32_t band;             /* that the sketch rows belong to; -1: there are none */
    int32_t *sketch_to;       /* [n_layers] rows [sketch_first, sketch_to) are encoded */
    struct band_bases *next;  /* of band + 1, made ahead; NULL: not begun */
    int32_t *next_to;         /* [n_layers] rows [sketch_first, next_to) are encoded in y_next */
    int32_t next_from;        /* steps before the band at which that began */
    struct moments *own;      /* collected from this sequence; NULL if there was a file from the start */
    int use_own;              /* the sketch stands on `own` */
    struct contract *contract;
    struct observer *observer; /* NULL: baselines cannot be used */
    struct sinks *sinks; /* found beyond the first positions */
    struct trail trail;  /* rows that the step before says to read; not on a device */

    sr_route_watch_fn *watch; /* every decision is audited and told; NULL: the option's share is audited */
    void *watch_user;

    int is_lower;     /* somebody's lower sequence */
    int skips_sketch; /* on a device, the file that is being restored has a sketch: the host's, so it is made anew */
    size_t skipped_row_bytes;

    struct attn_seq *lower; /* of the layers before these, or NULL; owned */
    int64_t *heat;          /* [2][units of all layers]: what sr_attn_seq_heat tells where there are lower layers */

    struct device_seq *device; /* device.c, where memory is not the host's; else NULL. Then runs, and what the
                                  counters below say, are the device's. */
    sr_route_stats stats;
    int64_t *near_only, *decisions; /* [n_layers][n_kv_heads] */
};

/* snapshot.c: SR_ERR_FORMAT unless all of these scales of rows are powers of two */
sr_status sr_scales_check(const float *scales, size_t n, sr_error *err);

/* sequence.c: whether the layer still has positions to count for the sequence's own moments */
int sr_seq_collects(const struct attn_seq *s, int32_t layer);

/* cache.c */
sr_status sr_cache_reserve(struct attn_seq *s, int32_t len, sr_error *err);
void sr_cache_ahead(struct attn_seq *s, int32_t len); /* before a decode step to len rows, which have been reserved */
sr_status sr_cache_sketch_reserve(struct attn_seq *s, const struct sketch_shape *shape, sr_error *err);
void sr_cache_free(struct attn_seq *s);
void sr_cache_units(const struct attn_seq *s, int32_t layer,
                    struct attn_unit *out); /* [n_kv_heads]; q is not set */
size_t sr_cache_chunk_bytes(const struct attn_seq *s);
int32_t sr_cache_region_chunks(void **region, int32_t first, int32_t n_chunks); /* of the region that begins with chunk `first` */
size_t sr_cache_sketch_chunk_bytes(const struct attn_seq *s, const struct sketch_shape *shape);

/* lot.c: rows before `end` drawn with the probability route.keep, rising; the same for all layers and groups */
const int32_t *sr_lot_get(struct attn_seq *s, int32_t end, int32_t *n);

/* sketch.c */
struct sketch_shape sr_sketch_shape_of(const struct attention *a, const sr_route_options *o);
int sr_sketch_has_moments(const struct attn_seq *s);
/* Makes the bases that the layer's present length asks for and encodes its rows up to the window. */
sr_status sr_sketch_sync(struct attn_seq *s, int32_t layer, sr_error *err);
/* The bases alone, for a step over len rows; with another band the sketch rows are none. */
sr_status sr_sketch_rebase(struct attn_seq *s, int32_t len, sr_error *err);
/* After it: this step's share of the bases of the next band. */
#define SR_BAND_LEAD 1000
sr_status sr_sketch_prepare(struct attn_seq *s, int32_t len, sr_error *err);
int sr_sketch_uses_own(const struct attn_seq *s);
void sr_sketch_drop(struct attn_seq *s); /* rows and bases are forgotten; memory stays */
uint64_t sr_sketch_bases_bytes(const struct attn_seq *s);

/* decode.c: the policy that serves the layer at its present length */
const struct policy *sr_decode_policy(const struct attn_seq *s, int32_t layer);
sr_status sr_decode_reserve(struct attention *a, int32_t n_units, sr_error *err);

/* One run of sequences that are planned together, after it was executed. */
struct decoded {
    struct attention *a;
    struct attn_seq *const *seqs;
    int32_t n_seqs, layer, n_units;
    const struct policy *policy;
    int is_routed; /* the policy was asked; else dense for one of the reasons in policy.h */
    const struct route_plan *plan;
    const float *out; /* [n_units][group][head_dim] */
};
/* audit.c: attends some units densely into a state apart and compares; the output stays as it is. */
void sr_audit(const struct decoded *d);
/* follow.c: adds the trail's rows to the sinks found of the sequence's units, of which `first` is the first; and after the step
 * was read, notes what its heads had large shares in. */
void sr_trail_follow(struct decode_scratch *w, struct attn_seq *s, int32_t layer, int32_t first);
void sr_trail_lay(const struct decoded *d);
/* stats.c */
void sr_stats_add(sr_route_stats *sum, const sr_route_stats *s); /* but for the steps */
void sr_stats_count(const struct decoded *d);

#endif
