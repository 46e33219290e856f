/* SPDX-License-Identifier: Apache-2.0
 *
 * What is kept of the sinks of one (layer, KV group): the same record on the host (attention/sinks.c, which says what it
 * is for) and in the memory of a device, whose append keeps it there. A row's norms decide: it counts as a sink where its
 * value has at most SR_SINKS_VALUE and its key at most SR_SINKS_KEY of the mean norms of rows [FIRST, REFERENCE).
 */
#ifndef SR_BACKEND_FOUND_SINKS_H
#define SR_BACKEND_FOUND_SINKS_H

#include <stdint.h>

#define SR_SINKS_FIRST     4   /* rows before it are not typical of anything */
#define SR_SINKS_REFERENCE 256 /* rows before it give the means; nothing is found until they are there */
#define SR_SINKS_MOST      16  /* the first ones are kept */
#define SR_SINKS_VALUE     0.35f
#define SR_SINKS_KEY       0.8f

struct found_sinks {
    int32_t n;
    int32_t rows[SR_SINKS_MOST]; /* rising */
    float mean_k, mean_v;
    float k[SR_SINKS_REFERENCE], v[SR_SINKS_REFERENCE]; /* norms of the first rows */
};

#endif
