/* SPDX-License-Identifier: Apache-2.0
 *
 * The op table: everything the forward pass and the attention module ask of a device. Written once against this,
 * the model runs on any backend; a backend knows neither models nor policies. Arguments are checked by the callers
 * (shapes come from validated metadata); ops assert. No op synchronises the host with a GPU; sync does.
 *
 * All results are deterministic: the same arguments give the same bits for any number of threads.
 */
#ifndef SR_BACKEND_BACKEND_H
#define SR_BACKEND_BACKEND_H

#include "backend/args.h"
#include "base/status.h"

struct backend;
struct pool;
struct device_attn_ops;
struct recording; /* the ops of a decode step, to be replayed */

struct backend_ops {
    const char *name;                                        /* "cpu" */
    void (*close)(struct backend *b);
    const char *(*describe)(const struct backend *b);        /* "cpu, avx512+vnni, 2 threads" */

    /* Memory of the ops. Every pointer that an args struct holds is the backend's memory, except where args.h says
     * host; on the CPU that is the host's own. Blocks are 256-byte aligned and not cleared. */
    sr_status (*mem_new)(struct backend *b, void **out, size_t bytes, const char *what, sr_error *err);
    void (*mem_free)(struct backend *b, void *block); /* NULL is fine */
    void (*mem_clear)(struct backend *b, void *dst, size_t bytes);
    /* Ordered with the ops; src may be reused at once. */
    void (*upload)(struct backend *b, void *dst, const void *src, size_t bytes);
    /* Waits for everything before it, and reports what went wrong since the last wait (SR_ERR_RESOURCE: a lost device). */
    sr_status (*download)(struct backend *b, void *dst, const void *src, size_t bytes, sr_error *err);
    uint64_t (*mem_available)(struct backend *b);
    /* Memory of the host that ops may write too, at another address: what they wrote is there after the next download.
     * Cleared. NULL where all memory is the host's. */
    sr_status (*shared_new)(struct backend *b, void **host, void **there, size_t bytes, const char *what, sr_error *err);
    void (*shared_free)(struct backend *b, void *host); /* NULL is fine */
    void (*read)(struct backend *b, const struct read_args *a);

    /* NULL where launching ops costs nothing. record_begin .. record_end: ops in between are noted and not run; replay
     * runs them again with the arguments of then, so what changes from step to step lies in the backend's memory. */
    sr_status (*record_begin)(struct backend *b, sr_error *err);
    sr_status (*record_end)(struct backend *b, struct recording **out, sr_error *err);
    void (*replay)(struct backend *b, struct recording *r);
    void (*record_free)(struct backend *b, struct recording *r); /* NULL is fine */

    /* Optional per weight: a backend may keep its own arrangement. `data` is the host's. */
    sr_status (*weight_prepare)(struct backend *b, struct weight *w, sr_error *err);
    void (*weight_release)(struct backend *b, struct weight *w);

    void (*matmul)(struct backend *b, const struct matmul_args *a);
    void (*norm)(struct backend *b, const struct norm_args *a);
    void (*rope)(struct backend *b, const struct rope_args *a);
    void (*silu_mul)(struct backend *b, const struct silu_mul_args *a);
    void (*add)(struct backend *b, const struct add_args *a);
    void (*add_norm)(struct backend *b, const struct add_args *a, const struct norm_args *n); /* add, then norm of its x */
    void (*embed)(struct backend *b, const struct embed_args *a);
    void (*topk)(struct backend *b, const struct topk_args *a);
    void (*moe)(struct backend *b, const struct moe_args *a);

    /* Attention: either planned by the host, unit by unit, with the ops from kv_append to attn_reserve; or by a device
     * (device_attn.h), and they are NULL. */
    const struct device_attn_ops *device_attn;
    void (*kv_append)(struct backend *b, const struct kv_append_args *a, int32_t n_units);   /* a[n_units] */
    void (*attn_prefill)(struct backend *b, const struct attn_prefill_args *a);
    void (*attn_rows)(struct backend *b, const struct attn_rows_args *a);
    void (*attn_logits)(struct backend *b, const struct attn_logits_args *a);
    void (*attn_finish)(struct backend *b, const struct attn_finish_args *a);
    void (*attn_cosine)(struct backend *b, const struct attn_cosine_args *a);
    void (*sketch_encode)(struct backend *b, const struct sketch_encode_args *a);
    void (*sketch_choose)(struct backend *b, const struct sketch_choose_args *a);
    void (*sketch_more)(struct backend *b, const struct sketch_more_args *a);
    /* Scratch that attn_rows and sketch_choose use inside the backend grows here, outside the step, so that a step
     * allocates nothing: called when the context is set up and when it grows. */
    sr_status (*attn_reserve)(struct backend *b, const struct attn_shape *shape, int32_t n_units, int32_t max_len, sr_error *err);
    /* Same for matmul and prefill: the largest n and widths that will come. */
    sr_status (*matmul_reserve)(struct backend *b, int32_t max_n, int64_t max_in, int64_t max_out, sr_error *err);
    /* Same for moe, after matmul_reserve for the same widths and n. */
    sr_status (*moe_reserve)(struct backend *b, const struct moe_shape *shape, sr_error *err);
};

struct backend {
    const struct backend_ops *ops;
    struct pool *pool;  /* for host-side loops outside the op table: eigenvectors, sampling */
    int has_own_memory; /* its memory is not the host's */
    uint64_t generation; /* changes when memory moves that recorded ops use */
};

/* n_threads as sr_pool_new. The ISA is the best the CPU has, capped by the environment variable SR_ISA
 * (scalar, avx2, avx512, vnni, bf16, amx, neon); an unknown name is SR_ERR_USAGE. */
sr_status sr_backend_cpu_open(struct backend **out, int n_threads, sr_error *err);
/* Device `index` of the CUDA driver; SR_ERR_UNSUPPORTED names what is missing, in a build without CUDA the way to one. */
sr_status sr_backend_cuda_open(struct backend **out, int index, int n_threads, sr_error *err);
/* One line about device `index` ("CUDA0: NVIDIA H200 (143771 MiB, 143000 MiB free)"); 0 when there is no such device. */
int sr_backend_cuda_device(int index, char *line, size_t bytes);

static inline void sr_backend_close(struct backend *b) /* NULL is fine */
{
    if (b) b->ops->close(b);
}
static inline struct pool *sr_backend_pool(const struct backend *b) { return b->pool; }

#endif
