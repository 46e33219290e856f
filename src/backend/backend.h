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

struct backend_ops {
    const char *name;                                        /* "cpu" */
    void (*close)(struct backend *b);
    const char *(*describe)(const struct backend *b);        /* "cpu, avx512+vnni, 2 threads" */

    /* Optional per weight: a backend may keep its own arrangement. */
    sr_status (*weight_prepare)(struct backend *b, struct weight *w, sr_error *err);
    void (*weight_release)(struct backend *b, struct weight *w);

    void (*matmul)(struct backend *b, const struct matmul_args *a);
    void (*norm)(struct backend *b, const struct norm_args *a);
    void (*rope)(struct backend *b, const struct rope_args *a);
    void (*silu_mul)(struct backend *b, const struct silu_mul_args *a);
    void (*add)(struct backend *b, const struct add_args *a);
    void (*embed)(struct backend *b, const struct embed_args *a);
    void (*topk)(struct backend *b, const struct topk_args *a);
    void (*moe)(struct backend *b, const struct moe_args *a);

    void (*kv_append)(struct backend *b, const struct kv_append_args *a, int32_t n_units);   /* a[n_units] */
    void (*attn_prefill)(struct backend *b, const struct attn_prefill_args *a);
    void (*attn_rows)(struct backend *b, const struct attn_rows_args *a);
    void (*attn_finish)(struct backend *b, const struct attn_finish_args *a);
    void (*attn_cosine)(struct backend *b, const struct attn_cosine_args *a);
    void (*sketch_encode)(struct backend *b, const struct sketch_encode_args *a);
    void (*sketch_choose)(struct backend *b, const struct sketch_choose_args *a);
    /* Scratch that attn_rows and sketch_choose use inside the backend grows here, outside the step, so that a step
     * allocates nothing: called when the context is set up and when it grows. */
    sr_status (*attn_reserve)(struct backend *b, const struct attn_shape *shape, int32_t n_units, int32_t max_len, sr_error *err);
    /* Same for matmul and prefill: the largest n and widths that will come. */
    sr_status (*matmul_reserve)(struct backend *b, int32_t max_n, int64_t max_in, int64_t max_out, sr_error *err);
    /* Same for moe, after matmul_reserve for the same widths and n. */
    sr_status (*moe_reserve)(struct backend *b, const struct moe_shape *shape, sr_error *err);
};

struct backend { const struct backend_ops *ops; };

/* n_threads as sr_pool_new. The ISA is the best the CPU has, capped by the environment variable SR_ISA
 * (scalar, avx2, avx512, vnni, bf16, amx, neon); an unknown name is SR_ERR_USAGE. */
sr_status sr_backend_cpu_open(struct backend **out, int n_threads, sr_error *err);
void sr_backend_close(struct backend *b); /* NULL is fine */
/* The backend's thread pool, for host-side loops outside the op table (eigenvectors, sampling); NULL on a GPU. */
struct pool *sr_backend_pool(struct backend *b);

#endif
