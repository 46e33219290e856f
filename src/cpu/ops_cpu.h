/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU backend's inside: one struct that all its ops share, and the ops of the table, each defined in the file of
 * its name under src/cpu. Scratch that an op keeps between calls hangs off the backend as a pointer to a struct that
 * only the op's own files know; it grows in the op's _reserve, outside the step, and dies in its _fini.
 */
#ifndef SR_CPU_OPS_CPU_H
#define SR_CPU_OPS_CPU_H

#include "backend/backend.h"
#include "base/pool.h"
#include "cpu/kernels.h"

struct backend_cpu {
    struct backend base;          /* first: a struct backend * is a struct backend_cpu * */
    struct cpu_kernels k;
    struct pool *pool;
    struct matmul_scratch *matmul;/* matmul/matmul.c */
    struct moe_scratch *moe;      /* moe/moe.c */
    struct rope_cache *rope;      /* smallops/smallops.c */
    struct attn_scratch *attn;    /* attn/, sketch/ */
    char text[64];
};

static inline struct backend_cpu *sr_cpu_of(struct backend *b) { return (struct backend_cpu *)(void *)b; }

/* readmem/ */
void sr_cpu_read(struct backend *b, const struct read_args *a);

/* matmul/matmul.c */
void sr_cpu_matmul(struct backend *b, const struct matmul_args *a);
sr_status sr_cpu_matmul_reserve(struct backend *b, int32_t max_n, int64_t max_in, int64_t max_out, sr_error *err);
void sr_cpu_matmul_fini(struct backend_cpu *c);

/* moe/ */
void sr_cpu_topk(struct backend *b, const struct topk_args *a);
void sr_cpu_moe(struct backend *b, const struct moe_args *a);
sr_status sr_cpu_moe_reserve(struct backend *b, const struct moe_shape *shape, sr_error *err);
void sr_cpu_moe_fini(struct backend_cpu *c);

/* smallops/smallops.c */
void sr_cpu_norm(struct backend *b, const struct norm_args *a);
void sr_cpu_rope(struct backend *b, const struct rope_args *a);
void sr_cpu_silu_mul(struct backend *b, const struct silu_mul_args *a);
void sr_cpu_add(struct backend *b, const struct add_args *a);
void sr_cpu_add_norm(struct backend *b, const struct add_args *a, const struct norm_args *n);
void sr_cpu_embed(struct backend *b, const struct embed_args *a);
sr_status sr_cpu_smallops_init(struct backend_cpu *c, sr_error *err);
void sr_cpu_smallops_fini(struct backend_cpu *c);
sr_status sr_cpu_rope_reserve(struct backend_cpu *c, int32_t max_n, sr_error *err); /* tokens of one call */

/* attn/ */
void sr_cpu_kv_append(struct backend *b, const struct kv_append_args *a, int32_t n_units);
void sr_cpu_attn_prefill(struct backend *b, const struct attn_prefill_args *a);
void sr_cpu_attn_rows(struct backend *b, const struct attn_rows_args *a);
void sr_cpu_attn_logits(struct backend *b, const struct attn_logits_args *a);
void sr_cpu_attn_finish(struct backend *b, const struct attn_finish_args *a);
void sr_cpu_attn_cosine(struct backend *b, const struct attn_cosine_args *a);
sr_status sr_cpu_attn_reserve(struct backend *b, const struct attn_shape *shape, int32_t n_units, int32_t max_len, sr_error *err);
void sr_cpu_attn_fini(struct backend_cpu *c);

/* sketch/ */
void sr_cpu_sketch_encode(struct backend *b, const struct sketch_encode_args *a);
void sr_cpu_sketch_choose(struct backend *b, const struct sketch_choose_args *a);
void sr_cpu_sketch_more(struct backend *b, const struct sketch_more_args *a);

#endif
