/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary embedding as a rotation of pairs, in double: turning rows back to before the embedding, and the
 * averages of rotated moments over a range of positions in closed form. Elements that are not rotated are
 * pairs of frequency 0, so that models without rotary embedding, or with part of the head rotated, need no
 * other code.
 */
#ifndef SR_ATTENTION_ROTATION_H
#define SR_ATTENTION_ROTATION_H

#include "backend/args.h"

#define SR_MAX_PAIRS 128

struct rotation {
    int32_t n_pairs;                                   /* head_dim / 2 */
    int16_t first[SR_MAX_PAIRS], second[SR_MAX_PAIRS]; /* the elements of a pair */
    double freq[SR_MAX_PAIRS];                         /* radians per position */
    double scale[SR_MAX_PAIRS];                        /* 1, or the magnitude of the embedding */
};

/* head_dim even, <= 256. */
void sr_rotation_init(struct rotation *r, const struct rope_spec *spec, int32_t head_dim);

/* dst[2 * n_pairs] = R_p^-1 src; turn [n_pairs][2] holds what that takes: cos and sin of p freq over scale.
 */
void sr_rotation_turn(const struct rotation *r, int64_t pos, float *turn);
void sr_rotation_undo(const struct rotation *r, const float *turn, const float *src, float *dst);

/* Mean of exp(i p theta) over the whole numbers p in [p0, p1]. */
void sr_phase_mean(double theta, int64_t p0, int64_t p1, double mean[2]);

/* The means of exp(i p (f_i - f_j)) and exp(i p (f_i + f_j)) over p in [p0, p1], scaled: what all averages
 * over one range need. Storage is the caller's: diff, sum [n_pairs][n_pairs][2], each [n_pairs][2]. */
struct rotation_means {
    double *diff, *sum, *each;
};
void sr_rotation_means(const struct rotation *r, int64_t p0, int64_t p1, struct rotation_means *out);

/* out = mean of R_p M R_p' (M, out [d][d], not the same); out = mean of R_p m. */
void sr_rotation_mean_matrix(const struct rotation *r, const struct rotation_means *t, const double *m,
                             double *out);
void sr_rotation_mean_vector(const struct rotation *r, const struct rotation_means *t, const double *m,
                             double *out);

#endif
