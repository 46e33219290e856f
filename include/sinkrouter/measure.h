/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast decode attention of one layer runs on this machine, beside what its memory gives in the same minutes. No model:
 * keys, values and queries are random numbers, so these are speeds and nothing else.
 *
 *     sr_probe_new (fills the cache) -> for each way of routing  sr_probe_run -> sr_probe_free
 *
 * A probe has as many layers of the given shape as caches of the processor cannot hold, and a run goes through all of them
 * in turn, so that every row comes from memory. Queries make logits of standard deviation 3 that the sketch sees: about one
 * key in twenty then holds nine tenths of the attention.
 *
 * Threads: one thread per probe at a time; its own pool or device does the work.
 */
#ifndef SINKROUTER_MEASURE_H
#define SINKROUTER_MEASURE_H

#include "sinkrouter/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sr_probe sr_probe;

typedef struct sr_probe_options {
    const char *device; /* as in sr_model_options; NULL: the first GPU of a build with CUDA, else the CPU */
    int n_threads;      /* 0 = physical cores */
    int32_t n_heads, n_kv_heads, head_dim, len; /* len: rows of a layer, the current token's included */
    sr_dtype k_type, v_type;
    uint64_t bytes;     /* of K and V of all layers, at least; 0: twice the last cache of the CPU, 1 GiB on a GPU */
} sr_probe_options;

typedef struct sr_probe_result {
    int n_threads;
    int32_t n_layers;            /* that a run goes through */
    uint64_t bytes;              /* read per layer: K, V and sketch rows */
    uint64_t sketch_bytes;       /* of these: sketch rows */
    uint64_t single_bytes;       /* of these: rows of lists, which lie alone */
    uint64_t dense_bytes;        /* what dense attention would read */
    double ns;                   /* per layer, median over the runs */
    double read_gbs, gather_gbs; /* plain reads of as many bytes: contiguous, and of single rows (0: there were none) */
    double limit_ns;             /* what reading the bytes takes at these rates */
} sr_probe_result;

SR_API sr_status sr_probe_new(sr_probe **out, const sr_probe_options *o, sr_error *err);
SR_API void sr_probe_free(sr_probe *p); /* NULL is fine */
/* What computes: "cpu, amx, 2 threads". */
SR_API const char *sr_probe_backend(const sr_probe *p);

/* n runs after one that is not counted; samples_ns [n] receives their times per layer, or is NULL. n_skipped: with
 * SR_ROUTE_PAPER that many KV heads are found to sit on the sink (the threshold is set for it). min_len does not count. */
SR_API sr_status sr_probe_run(sr_probe *p, const sr_route_options *route, int32_t n_skipped, int32_t n, double *samples_ns,
                              sr_probe_result *out, sr_error *err);

#ifdef __cplusplus
}
#endif

#endif
