/* SPDX-License-Identifier: Apache-2.0
 *
 * The workspace of the attention kernels: one list of its parts, measured without a base and placed with one.
 */
#ifndef SR_CUDA_ATTN_WORK_H
#define SR_CUDA_ATTN_WORK_H

#include "cuda/attn_cuda.h"

enum {
    WORK_UNITS = 1024,    /* head blocks of units in one launch */
    WORK_HEAD_WORDS = 2048, /* o of a partial state: 8 heads of 256, or 16 of 128 */
    WORK_PART_SLICES = 128, /* maxima and sums of a partial state: one a slice that a block merges */
    CHOOSE_BINS = 512,
    CHOOSE_PARTS = 16       /* blocks of one unit, at most */
};

struct attn_work {
    /* attend: partial states by slot, then those that several come to; zero between launches, as the counters are */
    unsigned *done, *done_1;
    float *part_o, *part_ml;
    float *spare_o, *spare_ml;            /* as many slots of anything, for other kernels */
    /* choose */
    void *queries;                        /* [n_units] struct choose_query */
    void *exchange;                       /* [n_exchanges] struct choose_exchange, for units that several blocks share */
    int32_t n_exchanges;
    uint32_t *chosen, *codes;             /* [n_units][max_len] a bit of each row, and row and bin of those that have one, where shared memory has
                                           * no room */
    int32_t max_len;
    void *weighty;                        /* [n_units] struct weighty_rows */
    /* second look */
    void *rests;                          /* [n_units] struct choose_rest */
    float *left;                          /* [n_units][CHOOSE_BINS][heads, up to 4, 8 or 16] unread once the bins up to each are read */
    int32_t slots;
};

/* Returns the bytes used from `base`, which may be NULL. */
size_t sr_attn_work_place(struct attn_work *w, void *base, const struct attn_cuda_card *card, const struct attn_cuda_limits *l);

#endif
