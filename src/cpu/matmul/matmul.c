/* SPDX-License-Identifier: Apache-2.0
 *
 * The matmul op. Few tokens: activations are quantized once, then every weight row is read once, where it lies, by a
 * matvec kernel. Many tokens: activations are packed once, panels of rows are expanded and multiplied with all of
 * them. Both deal fixed blocks of rows to the pool, and all products of one call share one region, so results do not
 * depend on the number of threads.
 */
#include "cpu/ops_cpu.h"

#include "base/memory.h"
#include "cpu/matmul/act_rows_inline.h"
#include "formats/quant.h"

#include <assert.h>

struct matmul_scratch {
    int32_t max_n;
    int64_t max_in;
    uint8_t *block;         /* one allocation, laid out by scratch_layout */
    struct act_rows rows;   /* GEMM_MIN_TOKENS - 1 tokens of max_in */
    uint8_t *packed;        /* max_n tokens in blocks of SR_GEMM_TOKENS */
    uint8_t *threads;       /* sr_gemm_scratch_bytes(max_in) for each thread */
};

static int32_t n_token_blocks(int32_t n) { return (n + SR_GEMM_TOKENS - 1) / SR_GEMM_TOKENS; }

static void scratch_layout(struct matmul_scratch *s, struct arena *a, int n_threads)
{
    act_rows_layout(&s->rows, a, GEMM_MIN_TOKENS - 1, s->max_in);
    s->packed = sr_arena_take(a, (size_t)n_token_blocks(s->max_n), sr_gemm_block_bytes(s->max_in));
    s->threads = sr_arena_take(a, (size_t)n_threads, sr_gemm_scratch_bytes(s->max_in));
}

sr_status sr_cpu_matmul_reserve(struct backend *b, int32_t max_n, int64_t max_in, int64_t max_out, sr_error *err)
{
    struct backend_cpu *c = sr_cpu_of(b);
    struct matmul_scratch *s = c->matmul;
    (void)max_out;
    SR_TRY(sr_cpu_rope_reserve(c, max_n, err));
    if (!s) {
        c->matmul = s = sr_alloc_zero(1, sizeof(*s));
        if (!s) return sr_fail_memory(err, sizeof(*s), "matmul scratch");
    }
    if (max_n <= s->max_n && max_in <= s->max_in) return SR_OK;
    struct matmul_scratch grown = {.max_n = max_n > s->max_n ? max_n : s->max_n,
                                   .max_in = max_in > s->max_in ? max_in : s->max_in};
    struct arena a = {NULL, 0};
    scratch_layout(&grown, &a, sr_pool_threads(c->pool));
    grown.block = sr_alloc(a.used);
    if (!grown.block) return sr_fail_memory(err, a.used, "matmul scratch");
    a = (struct arena){grown.block, 0};
    scratch_layout(&grown, &a, sr_pool_threads(c->pool));
    sr_free(s->block);
    *s = grown;
    return SR_OK;
}

void sr_cpu_matmul_fini(struct backend_cpu *c)
{
    if (!c->matmul) return;
    sr_free(c->matmul->block);
    sr_free(c->matmul);
    c->matmul = NULL;
}

/* ---- row blocks ------------------------------------------------------------------------------------------------ */

struct region {
    struct backend_cpu *c;
    const struct matmul_args *a;
    int32_t block_rows[SR_MATMUL_MAX];
    sr_gemm_pack_fn *pack;
    sr_gemm_fn *gemm;
};

struct row_block { int32_t product; int64_t row, n_rows; };

static int32_t count_blocks(const struct region *g)
{
    int64_t n = 0;
    for (int32_t i = 0; i < g->a->n_weights; i++)
        n += (g->a->w[i]->n_out + g->block_rows[i] - 1) / g->block_rows[i];
    return (int32_t)n;
}

static struct row_block find_block(const struct region *g, int32_t task)
{
    struct row_block r = {0, 0, 0};
    for (;; r.product++) {
        const int64_t rows = g->block_rows[r.product], n_out = g->a->w[r.product]->n_out;
        const int32_t blocks = (int32_t)((n_out + rows - 1) / rows);
        if (task < blocks) {
            r.row = task * rows;
            r.n_rows = n_out - r.row < rows ? n_out - r.row : rows;
            return r;
        }
        task -= blocks;
    }
}

static const float *bias_at(const struct matmul_args *a, struct row_block r)
{
    return a->bias[r.product] ? a->bias[r.product] + r.row : NULL;
}

static float *output_at(const struct region *g, struct row_block r, int32_t token)
{
    return g->a->y[r.product] + token * g->a->y_stride[r.product] + r.row;
}

static const uint8_t *rows_at(const struct weight *w, int64_t row) { return (const uint8_t *)w->data + (size_t)row * w->row_bytes; }

/* ---- few tokens ------------------------------------------------------------------------------------------------- */

/* All tokens, as many at a time as a kernel takes: from the second time on the rows come from the core's caches. */
static void matvec_task(void *ctx, int32_t task, int32_t thread)
{
    const struct region *g = ctx;
    const struct matmul_args *a = g->a;
    const struct row_block r = find_block(g, task);
    const struct weight *w = a->w[r.product];
    (void)thread;
    for (int32_t t = 0; t < a->n; t += SR_MATVEC_TOKENS) {
        const struct acts acts = acts_of_rows(&g->c->matmul->rows, t, w->n_in, a->x + t * a->x_stride, a->x_stride);
        sr_cpu_matvec_of(&g->c->k, w->dtype)(&(struct matvec_args){
            .w = rows_at(w, r.row), .row_bytes = w->row_bytes, .n_rows = r.n_rows, .n_in = w->n_in,
            .acts = &acts, .n = a->n - t < SR_MATVEC_TOKENS ? a->n - t : SR_MATVEC_TOKENS, .bias = bias_at(a, r),
            .y = output_at(g, r, t), .y_stride = a->y_stride[r.product]});
    }
}

static void quantize_inputs(const struct region *g)
{
    const struct matmul_args *a = g->a;
    int quantized = 0;
    for (int32_t i = 0; i < a->n_weights; i++) quantized |= !acts_are_float(a->w[i]->dtype);
    for (int32_t t = 0; quantized && t < a->n; t++)
        act_rows_fill(&g->c->matmul->rows, t, &g->c->k, a->x + t * a->x_stride, a->w[0]->n_in);
}

static void matmul_few(struct region *g)
{
    for (int32_t i = 0; i < g->a->n_weights; i++) g->block_rows[i] = matvec_task_rows(g->a->w[i]->row_bytes);
    quantize_inputs(g);
    sr_pool_run(g->c->pool, count_blocks(g), matvec_task, g);
}

/* ---- many tokens ------------------------------------------------------------------------------------------------ */

static void pack_task(void *ctx, int32_t task, int32_t thread)
{
    const struct region *g = ctx;
    const int64_t n_in = g->a->w[0]->n_in;
    const int32_t t0 = task * SR_GEMM_TOKENS, left = g->a->n - t0;
    (void)thread;
    g->pack(&(struct gemm_pack_args){
        .x = g->a->x + t0 * g->a->x_stride, .x_stride = g->a->x_stride, .n_in = n_in,
        .n = left < SR_GEMM_TOKENS ? left : SR_GEMM_TOKENS,
        .packed = g->c->matmul->packed + (size_t)task * sr_gemm_block_bytes(n_in)});
}

static void gemm_task(void *ctx, int32_t task, int32_t thread)
{
    const struct region *g = ctx;
    const struct row_block r = find_block(g, task);
    const struct weight *w = g->a->w[r.product];
    struct matmul_scratch *s = g->c->matmul;
    g->gemm(&(struct gemm_args){
        .w = rows_at(w, r.row), .row_bytes = w->row_bytes, .dequant = sr_cpu_dequant_of(&g->c->k, w->dtype),
        .n_in = w->n_in, .n_rows = (int32_t)r.n_rows, .n = g->a->n, .packed = s->packed, .bias = bias_at(g->a, r),
        .y = output_at(g, r, 0), .y_stride = g->a->y_stride[r.product],
        .scratch = s->threads + (size_t)thread * sr_gemm_scratch_bytes(s->max_in)});
}

/* Weights kept in f32 are kept so for their accuracy: bf16 tiles would lose it. */
static void matmul_many(struct region *g)
{
    const struct cpu_kernels *k = &g->c->k;
    int bf16 = sr_cpu_has_bf16(k);
    for (int32_t i = 0; i < g->a->n_weights; i++) {
        g->block_rows[i] = SR_GEMM_ROWS;
        bf16 &= g->a->w[i]->dtype != SR_DTYPE_F32;
    }
    g->pack = bf16 ? k->gemm_bf16_pack : k->gemm_pack;
    g->gemm = bf16 ? k->gemm_bf16 : k->gemm;
    sr_pool_run(g->c->pool, n_token_blocks(g->a->n), pack_task, g);
    sr_pool_run(g->c->pool, count_blocks(g), gemm_task, g);
}

void sr_cpu_matmul(struct backend *b, const struct matmul_args *a)
{
    struct region g = {.c = sr_cpu_of(b), .a = a};
    const struct matmul_scratch *s = g.c->matmul;
    assert(s && a->n <= s->max_n && a->n_weights >= 1 && a->n_weights <= SR_MATMUL_MAX);
    for (int32_t i = 0; i < a->n_weights; i++) assert(a->w[i]->n_in == a->w[0]->n_in && a->w[i]->n_in <= s->max_in);
    (void)s;
    if (a->n < GEMM_MIN_TOKENS) matmul_few(&g);
    else matmul_many(&g);
}
