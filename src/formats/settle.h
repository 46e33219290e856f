/* SPDX-License-Identifier: Apache-2.0
 *
 * What has to be made of a model's tensors before they can be computed with, in one pass over them at load: matrices
 * quantized on request, tensors in pieces or of another order of rows put together, a router's matrix as f32, and copies of what a file has at an
 * odd address. Everything else stays where it lies in the mapped files. The memory is asked for once and checked
 * before; the same bytes come out for any number of threads.
 */
#ifndef SR_FORMATS_SETTLE_H
#define SR_FORMATS_SETTLE_H

#include "base/pool.h"
#include "formats/gguf.h"

struct settle_options {
    const char *quantize; /* float matrices become of this type, by the name a user types ("q4_k_m"); NULL: they stay */
    int (*progress)(void *user, const char *stage, double share); /* NULL, or non-zero cancels (SR_ERR_USAGE) */
    void *user;
};

/* Once per gguf, before tensor data is used. pool may be NULL. Infinite and NaN weights that a type cannot hold are
 * SR_ERR_FORMAT and named; a type that cannot be made is SR_ERR_USAGE. */
sr_status sr_gguf_settle(struct gguf *g, const struct settle_options *o, struct pool *pool, sr_error *err);

#endif
