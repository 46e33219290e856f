/* SPDX-License-Identifier: Apache-2.0
 *
 * Scratch of the attention and sketch ops: one block, laid out for the largest shapes reserved so far. The step
 * allocates nothing; what an op needs beyond the reserve is the caller's mistake (assert).
 */
#ifndef SR_CPU_ATTN_SCRATCH_H
#define SR_CPU_ATTN_SCRATCH_H

#include "base/memory.h"
#include "cpu/ops_cpu.h"

#include <assert.h>
#include <stdatomic.h>

/* A unit's rows are dealt in pieces of SR_PIECE_ROWS, of twice that beyond SR_LONG_ROWS, of four times that beyond four
 * times as many, and again of twice that where there would be more than SR_MAX_PIECES: a function of the number of rows
 * alone, so that the thread count changes nothing. Small pieces deal short contexts evenly; a piece begins with rows that
 * nobody could fetch ahead. */
#define SR_PIECE_ROWS 256
#define SR_LONG_ROWS 2048
#define SR_MAX_PIECES 64

/* Entries [first, first + n) of a unit's rows, whatever the set's order of them; or of its list. */
struct attn_piece { int32_t unit, first, n, is_list; };

/* Pieces of a unit: [first, first + n), the first n_near of them before a list, and how many are not yet done. */
struct attn_unit_work { atomic_int left; int32_t first, n, n_near; };

/* A chunk's part of a unit's far rows: [row0, row1) within the chunk. */
struct choose_span { int32_t unit, chunk, row0, row1, n_kept; };

enum { QUERY_TODO, QUERY_CLAIMED, QUERY_READY };

/* A unit while its rows are chosen. Spans are [first, first + n). */
struct choose_unit {
    atomic_int left, query;          /* spans not yet done; whether w and base are there */
    int32_t first, n, n_far;
    float cut, base[SR_ATTN_MAX_GROUP], more[SR_ATTN_MAX_GROUP]; /* of the second plane */
    float open[SR_ATTN_MAX_GROUP];   /* log mass of a row from which on its run is read */
    float from[SR_ATTN_MAX_GROUP];   /* what logits are taken relative to: log mass of the near part, if there is any */
    int has_near[SR_ATTN_MAX_GROUP];
    atomic_uint seen[SR_ATTN_MAX_GROUP]; /* mass of the near part and of the spans done so far over exp(from): a float's bits */
    float *w;                        /* [group][sr_sketch_padded(sketch)] */
    float *sums;                     /* [SR_SKETCH_BINS][sr_sketch_width(group)] shares by bin */
    int32_t n_bins;                  /* the first so many of them are filled */
    int32_t end;                     /* the first bin that was not listed; SR_SKETCH_BINS if there is no further one */
    float log_total[SR_ATTN_MAX_GROUP];
    double far_share[SR_ATTN_MAX_GROUP], unread[SR_ATTN_MAX_GROUP]; /* estimated */
};

struct attn_limits { int32_t n_units, max_len, group, head_dim, n_threads; };

struct attn_scratch {
    struct attn_limits limits;
    void *block;
    size_t bytes;                    /* of it */
    int32_t max_pieces;              /* of all units together */
    struct attn_piece *pieces;       /* [max_pieces] */
    struct attn_unit_work *work;     /* [n_units] */
    float *q;                        /* [n_units][group][head_dim] queries times the scale of scaled keys */
    float *o, *m, *l;                /* states of pieces: [max_pieces][group][head_dim], [max_pieces][group] twice */
    struct attn_touched *touched;    /* [max_pieces] */

    int32_t max_spans, n_spans;      /* of all units together: room, and of the choice */
    struct choose_span *spans;       /* [max_spans] */
    struct choose_unit *choose;      /* [n_units] */
    int32_t *more;                   /* [n_units] */
    float *span_max, *span_sum, *span_from; /* [max_spans][SR_ATTN_MAX_GROUP]; sum of exp(logit - from) */
    float *kept;                     /* [max_spans][group][SR_SKETCH_STRIDE] */
    int32_t *kept_rows;              /* [max_spans][SR_CHUNK_ROWS] */
    uint16_t *kept_bins;             /* [max_spans][SR_CHUNK_ROWS] */
    struct attn_touched *span_touched;/* [max_spans] */

    size_t thread_bytes;
    uint8_t *threads;                /* [n_threads][thread_bytes] */
};

static inline void *sr_attn_thread_scratch(const struct attn_scratch *s, int32_t thread)
{
    return s->threads + (size_t)thread * s->thread_bytes;
}

#endif
