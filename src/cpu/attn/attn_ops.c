/* SPDX-License-Identifier: Apache-2.0
 *
 * The attention ops around the rows: storing new rows, single logits, the finish, the paper's cosine, and causal prefill.
 */
#include "cpu/attn/attn_scratch.h"
#include "cpu/attn/kv_row.h"

#include <math.h>

/* ---- kv_append ---- */

/* Rows of one task, and the number of rows above which the pool is worth its start. */
enum { APPEND_ROWS = 64, APPEND_SERIAL = 16 };

struct append_job { const struct kv_append_args *a; const struct backend_cpu *c; int32_t n_blocks; };

/* One row; of a scaled type, over the scale, which is a power of two. */
static void store_row(const struct backend_cpu *c, sr_dtype type, const struct kv_rows *r, const float *src, void *dst, int32_t d)
{
    float scaled[SR_ATTN_MAX_DIM];
    if (sr_kv_is_scaled(type)) {
        const float inverse = 1.0f / r->scale;
        for (int32_t i = 0; i < d; i++) scaled[i] = src[i] * inverse;
        src = scaled;
    }
    c->k.kv_store(type, src, dst, d);
}

static void append_rows(const struct backend_cpu *c, const struct kv_append_args *a, int32_t t0, int32_t t1)
{
    const struct attn_shape *s = a->shape;
    for (int32_t t = t0; t < t1; t++) {
        store_row(c, s->k_type, &a->k, a->k_src + t * a->stride, sr_row_at(&a->k, a->pos0 + t, s->k_row_bytes), s->head_dim);
        store_row(c, s->v_type, &a->v, a->v_src + t * a->stride, sr_row_at(&a->v, a->pos0 + t, s->v_row_bytes), s->head_dim);
    }
}

static void append_task(void *ctx, int32_t task, int32_t thread)
{
    const struct append_job *j = ctx;
    const struct kv_append_args *a = &j->a[task / j->n_blocks];
    const int32_t t0 = task % j->n_blocks * APPEND_ROWS, t1 = t0 + APPEND_ROWS;
    (void)thread;
    append_rows(j->c, a, t0, t1 < a->n ? t1 : a->n);
}

void sr_cpu_kv_append(struct backend *b, const struct kv_append_args *a, int32_t n_units)
{
    struct append_job job = {a, sr_cpu_of(b), 0};
    int32_t most = 0;
    for (int32_t u = 0; u < n_units; u++) most = a[u].n > most ? a[u].n : most;
    job.n_blocks = (most + APPEND_ROWS - 1) / APPEND_ROWS;
    if (most > APPEND_SERIAL)
        sr_pool_run(job.c->pool, job.n_blocks * n_units, append_task, &job);
    else
        for (int32_t u = 0; u < n_units; u++) append_rows(job.c, &a[u], 0, a[u].n);
}

/* ---- attn_logits ---- */

/* How many of the rows lie next to the first one. */
static int32_t count_run(const int32_t *rows, int32_t n)
{
    int32_t i = 1;
    while (i < n && rows[i] == rows[0] + i && rows[i] % SR_CHUNK_ROWS != 0) i++;
    return i;
}

void sr_cpu_attn_logits(struct backend *b, const struct attn_logits_args *a)
{
    const struct cpu_kernels *kernels = &sr_cpu_of(b)->k;
    const struct attn_shape *s = a->shape;
    const int is_plain = s->k_type == SR_DTYPE_F32 || s->k_type == SR_DTYPE_F16 || s->k_type == SR_DTYPE_BF16;
    const int32_t d = s->head_dim;
    float k[SR_ATTN_MAX_DIM];
    for (int32_t i = 0, n; i < a->n; i += n) {
        const uint8_t *row = sr_row_at(&a->unit->k, a->rows[i], s->k_row_bytes);
        n = is_plain ? count_run(a->rows + i, a->n - i) : 1;
        assert(a->rows[i] >= 0 && a->rows[i] + n <= a->unit->kv_len);
        if (!is_plain) sr_row_load(s->k_type, row, k, d);
        for (int32_t g = 0; g < s->group; g += SR_MATVEC_TOKENS) {
            const struct acts acts = {.x = a->unit->q + g * d, .x_stride = d};
            (is_plain ? sr_cpu_matvec_of(kernels, s->k_type) : kernels->matvec_f32)(&(struct matvec_args){
                .w = is_plain ? row : (const uint8_t *)k, .row_bytes = s->k_row_bytes, .n_rows = n, .n_in = d, .acts = &acts,
                .n = s->group - g < SR_MATVEC_TOKENS ? s->group - g : SR_MATVEC_TOKENS, .y = a->logits + g * a->n + i, .y_stride = a->n});
        }
    }
    const float scale = sr_kv_scale(&a->unit->k, s->k_type);
    for (int32_t i = 0; i < a->n * s->group; i++) a->logits[i] *= scale;
}

/* ---- attn_finish ---- */

void sr_cpu_attn_finish(struct backend *b, const struct attn_finish_args *a)
{
    const int32_t d = a->shape->head_dim;
    (void)b;
    for (int64_t h = 0; h < (int64_t)a->n_units * a->shape->group; h++) {
        const float l = a->state.l[h], inverse = l == 0 ? 0 : 1.0f / l;
        for (int32_t i = 0; i < d; i++) a->out[h * d + i] = a->state.o[h * d + i] * inverse;
    }
}

/* ---- attn_cosine ---- */

static double dot(const float *x, const float *y, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

void sr_cpu_attn_cosine(struct backend *b, const struct attn_cosine_args *a)
{
    const struct attn_shape *s = a->shape;
    const int32_t d = s->head_dim;
    float k[SR_ATTN_MAX_DIM];
    (void)b;
    for (int32_t u = 0; u < a->n_units; u++) {
        double sum = 0;
        sr_row_load(s->k_type, sr_row_at(&a->units[u].k, 0, s->k_row_bytes), k, d); /* a scale does not turn it */
        a->touched[u].k_rows++;
        const double k_norm = sqrt(dot(k, k, d));
        for (int32_t g = 0; g < s->group; g++) {
            const float *q = a->units[u].q + g * d;
            const double norms = sqrt(dot(q, q, d)) * k_norm;
            sum += norms == 0 ? 0 : dot(q, k, d) / norms; /* a zero vector has no direction */
        }
        a->score[u] = (float)(sum / s->group);
    }
}

/* ---- attn_prefill ---- */

struct prefill_job { const struct attn_prefill_args *a; const struct backend_cpu *c; int32_t n_blocks, block; };

/* Later queries see more rows: they go first, so that the threads end together. */
static void prefill_task(void *ctx, int32_t task, int32_t thread)
{
    const struct prefill_job *j = ctx;
    const struct attn_prefill_args *a = j->a;
    const int32_t u = task % a->n_units, t0 = (j->n_blocks - 1 - task / a->n_units) * j->block;
    const int64_t at = (int64_t)u * a->shape->group * a->shape->head_dim;
    const struct attn_flash f = {
        .shape = a->shape, .unit = &a->units[u],
        .q = a->q + t0 * a->q_stride + at, .q_stride = a->q_stride,
        .out = a->out + t0 * a->out_stride + at, .out_stride = a->out_stride,
        .pos = a->pos0 + t0, .n_q = a->n - t0 < j->block ? a->n - t0 : j->block,
        .scratch = sr_attn_thread_scratch(j->c->attn, thread),
    };
    j->c->k.attn_flash(&f);
}

/* A query's result does not depend on which queries share its block, so the block may follow the thread count: small
 * enough to give every thread a few, large enough that converting the rows is cheap beside using them. */
static int32_t queries_per_block(const struct attn_prefill_args *a, int32_t n_threads)
{
    int32_t most = SR_FLASH_ROWS / a->shape->group, block = most;
    while (block > most / 8 && (a->n + block - 1) / block * a->n_units < 3 * n_threads) block /= 2;
    return block;
}

void sr_cpu_attn_prefill(struct backend *b, const struct attn_prefill_args *a)
{
    const struct backend_cpu *c = sr_cpu_of(b);
    assert(c->attn && a->shape->head_dim <= c->attn->limits.head_dim);
    struct prefill_job job = {a, c, 0, queries_per_block(a, sr_pool_threads(c->pool))};
    job.n_blocks = (a->n + job.block - 1) / job.block;
    sr_pool_run(c->pool, job.n_blocks * a->n_units, prefill_task, &job);
}
