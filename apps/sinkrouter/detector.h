/* SPDX-License-Identifier: Apache-2.0
 *
 * How well a score finds the paper's label: the mean share of the first row over a group's heads is above .65. Scores
 * are the cosine of the paper and the router's estimate of the same share. A watcher collects decisions; the area
 * under the precision-recall curve is average precision, ties taken together. And how true the estimate of the unread mass
 * is where it decides: cases that it puts little below the threshold.
 */
#ifndef SR_APP_DETECTOR_H
#define SR_APP_DETECTOR_H

#include "sinkrouter/engine.h"

struct decision {
    float sink, estimate, cosine; /* means over the heads; estimate is NaN where there is none */
    int32_t layer, kv_len;
};

struct detector {
    struct decision *v;
    size_t n, room;
    int is_short; /* memory ran out: what follows was not kept */
    float eps;    /* the caller's; 0: none, or a threshold that moves */
    size_t n_at_eps;
    double unread_at_eps; /* sum of the true shares */
};

enum detector_score { SCORE_COSINE, SCORE_ESTIMATE };

/* A sr_route_watch_fn; user is a struct detector, at first {0} but for eps. */
void sr_detector_watch(void *user, const sr_route_case *c);
void sr_detector_free(struct detector *d);
/* Share of decisions that have the label. */
double sr_detector_rate(const struct detector *d);
/* NaN without a decision that has the label, or without the score. */
double sr_detector_auprc(const struct detector *d, enum detector_score which);
/* Mean true unread mass, over eps, of cases whose estimate was .8 to 1 of the threshold. NaN without one. */
double sr_detector_at_eps(const struct detector *d);

#endif
