/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU backend: opens the thread pool, picks the kernels and fills the op table. The ops themselves live in the
 * folders beside this file. Weights stay where the file's mapping has them: nothing is prepared per weight.
 */
#include "cpu/ops_cpu.h"

#include "base/memory.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void cpu_close(struct backend *b)
{
    struct backend_cpu *c = sr_cpu_of(b);
    sr_cpu_attn_fini(c);
    sr_cpu_moe_fini(c);
    sr_cpu_matmul_fini(c);
    sr_cpu_smallops_fini(c);
    sr_pool_free(c->pool);
    sr_free(c);
}

static const char *cpu_describe(const struct backend *b) { return ((const struct backend_cpu *)(const void *)b)->text; }

/* ---- memory: the host's ---- */

static sr_status cpu_mem_new(struct backend *b, void **out, size_t bytes, const char *what, sr_error *err)
{
    (void)b;
    *out = sr_alloc(bytes);
    return *out ? SR_OK : sr_fail_memory(err, bytes, what);
}

static void cpu_mem_free(struct backend *b, void *block)
{
    (void)b;
    sr_free(block);
}

static void cpu_mem_clear(struct backend *b, void *dst, size_t bytes)
{
    (void)b;
    memset(dst, 0, bytes);
}

static void cpu_upload(struct backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    memcpy(dst, src, bytes);
}

static sr_status cpu_download(struct backend *b, void *dst, const void *src, size_t bytes, sr_error *err)
{
    (void)b;
    (void)err;
    memcpy(dst, src, bytes);
    return SR_OK;
}

static uint64_t cpu_mem_available(struct backend *b)
{
    (void)b;
    return sr_memory_available();
}

/* ---- weights ---- */

static sr_status cpu_weight_prepare(struct backend *b, struct weight *w, sr_error *err)
{
    (void)b;
    (void)err;
    w->packed = NULL;
    return SR_OK;
}

static void cpu_weight_release(struct backend *b, struct weight *w)
{
    (void)b;
    assert(!w->packed);
    (void)w;
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .describe = cpu_describe,
    .mem_new = cpu_mem_new,
    .mem_free = cpu_mem_free,
    .mem_clear = cpu_mem_clear,
    .upload = cpu_upload,
    .download = cpu_download,
    .mem_available = cpu_mem_available,
    .read = sr_cpu_read,
    .weight_prepare = cpu_weight_prepare,
    .weight_release = cpu_weight_release,
    .matmul = sr_cpu_matmul,
    .norm = sr_cpu_norm,
    .rope = sr_cpu_rope,
    .silu_mul = sr_cpu_silu_mul,
    .add = sr_cpu_add,
    .add_norm = sr_cpu_add_norm,
    .embed = sr_cpu_embed,
    .topk = sr_cpu_topk,
    .moe = sr_cpu_moe,
    .kv_append = sr_cpu_kv_append,
    .attn_prefill = sr_cpu_attn_prefill,
    .attn_rows = sr_cpu_attn_rows,
    .attn_logits = sr_cpu_attn_logits,
    .attn_finish = sr_cpu_attn_finish,
    .attn_cosine = sr_cpu_attn_cosine,
    .sketch_encode = sr_cpu_sketch_encode,
    .sketch_choose = sr_cpu_sketch_choose,
    .sketch_more = sr_cpu_sketch_more,
    .attn_reserve = sr_cpu_attn_reserve,
    .matmul_reserve = sr_cpu_matmul_reserve,
    .moe_reserve = sr_cpu_moe_reserve,
};

/* The machine's mask, capped by SR_ISA. Naming an ISA that the machine lacks caps nothing away below it. */
static sr_status choose_mask(uint32_t *mask, sr_error *err)
{
    const char *cap = getenv("SR_ISA");
    *mask = sr_cpu_isa_mask();
    if (!cap || !*cap) return SR_OK;
    const enum cpu_isa isa = sr_cpu_isa_find(cap);
    if (isa == ISA_COUNT) {
        char name[48];
        return sr_fail(err, SR_ERR_USAGE, "SR_ISA: \"%s\" is not one of scalar, avx2, avx512, vnni, bf16, amx, neon",
                       sr_escape(name, sizeof(name), cap, strlen(cap)));
    }
    *mask &= sr_cpu_isa_below(isa);
    return SR_OK;
}

static enum cpu_isa best_isa(uint32_t mask)
{
    int best = ISA_SCALAR;
    for (int i = 0; i < ISA_COUNT; i++)
        if (mask >> i & 1u) best = i;
    return (enum cpu_isa)best;
}

sr_status sr_backend_cpu_open(struct backend **out, int n_threads, sr_error *err)
{
    uint32_t mask;
    sr_status st;
    SR_TRY(choose_mask(&mask, err));
    struct backend_cpu *c = sr_alloc_zero(1, sizeof(*c));
    if (!c) return sr_fail_memory(err, sizeof(*c), "cpu backend");
    c->base.ops = &cpu_ops;
    sr_cpu_kernels_fill(&c->k, mask);
    SR_TRY_GOTO(sr_pool_new(&c->pool, n_threads, err));
    SR_TRY_GOTO(sr_cpu_smallops_init(c, err));
    c->base.pool = c->pool;
    const int n = sr_pool_threads(c->pool);
    snprintf(c->text, sizeof(c->text), "cpu, %s, %d thread%s", sr_cpu_isa_name(best_isa(mask)), n, n == 1 ? "" : "s");
    *out = &c->base;
    return SR_OK;
fail:
    cpu_close(&c->base);
    return st;
}
