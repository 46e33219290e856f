/* SPDX-License-Identifier: Apache-2.0
 *
 * Collecting moments. The product of two turned-back values is added to its sum token by token and, within a
 * token, head by head: the order of additions to one sum is the order of positions, whatever the batch and
 * the threads.
 */
#include "attention/moments_parts.h"

#include <assert.h>
#include <string.h>

#include "attention/rotation.h"
#include "base/memory.h"
#include "base/pool.h"

enum { BLOCK = 32, COLUMNS = 8, Q_NEXT = 0, K_NEXT, Q_COUNT, K_COUNT, N_COUNTS };

sr_status sr_moments_new(struct moments **out, const struct moments_shape *shape,
                         const struct rotation *rotation, sr_error *err)
{
    size_t bytes = sr_moments_units(shape) * sr_moments_unit(shape) * sizeof(double);
    struct moments *m = sr_alloc_zero(1, sizeof *m);
    if (!m) return sr_fail_memory(err, sizeof *m, "moments");
    m->shape = *shape;
    m->rotation = rotation;
    m->sums = sr_region_map(bytes);
    m->counts = sr_alloc_zero((size_t)shape->n_layers * N_COUNTS, sizeof *m->counts);
    m->turn = sr_alloc((size_t)BLOCK * (size_t)shape->head_dim * sizeof *m->turn);
    if (!m->sums || !m->counts || !m->turn) {
        sr_moments_free(m);
        return sr_fail_memory(err, bytes, "moments");
    }
    *out = m;
    return SR_OK;
}

void sr_moments_free(struct moments *m)
{
    if (!m) return;
    sr_region_unmap(m->sums, sr_moments_units(&m->shape) * sr_moments_unit(&m->shape) * sizeof(double));
    sr_free(m->stored);
    sr_free(m->counts);
    sr_free(m->turn);
    sr_free(m);
}

void sr_moments_reset(struct moments *m)
{
    assert(m->sums);
    for (int32_t l = 0; l < m->shape.n_layers; l++) { /* layers that saw nothing stay uncommitted */
        int64_t *c = m->counts + l * N_COUNTS;
        size_t layer = (size_t)m->shape.n_kv_heads * sr_moments_unit(&m->shape);
        if (c[Q_COUNT] || c[K_COUNT]) memset(m->sums + (size_t)l * layer, 0, layer * sizeof(double));
        memset(c, 0, N_COUNTS * sizeof *c);
    }
}

/* One call: rows of one kind (q or k) of one layer. */
struct adding {
    struct moments *m;
    const float *rows; /* first row that counts; [n][stride] */
    int64_t stride;
    int32_t layer, n, n_heads; /* heads of one KV group: the group's query heads, or 1 */
    int is_key;
};

/* sum[i][j] += x_i x_j for the rows x of one block, j >= the row's tile. Columns are held in registers over
 * the rows, so each sum still grows row by row. The product of two doubles that were floats before turning is
 * rounded: that is the same rounding in every batch. */
static void add_products(double *sum, const double *x, int32_t n_rows, int32_t d)
{
    for (int32_t i = 0; i < d; i++) {
        for (int32_t j0 = i / COLUMNS * COLUMNS; j0 < d; j0 += COLUMNS) {
            double acc[COLUMNS], *s = sum + (size_t)i * (size_t)d + j0;
            memcpy(acc, s, sizeof acc);
            for (int32_t r = 0; r < n_rows; r++) {
                const double *row = x + (size_t)r * (size_t)d;
                for (int k = 0; k < COLUMNS; k++) acc[k] += row[i] * row[j0 + k];
            }
            memcpy(s, acc, sizeof acc);
        }
    }
}

static void add_group(void *ctx, int32_t group, int32_t thread)
{
    (void)thread;
    const struct adding *a = ctx;
    const struct moments_shape *shape = &a->m->shape;
    int32_t d = shape->head_dim;
    size_t dd = (size_t)d * (size_t)d;
    double *unit =
        a->m->sums + ((size_t)a->layer * (size_t)shape->n_kv_heads + (size_t)group) * sr_moments_unit(shape);
    double x[BLOCK * 256];
    int32_t fit = BLOCK / a->n_heads > 0 ? BLOCK / a->n_heads : 1;
    for (int32_t t0 = 0; t0 < a->n; t0 += fit) {
        int32_t n = a->n - t0 < fit ? a->n - t0 : fit;
        for (int32_t t = 0; t < n; t++) {
            for (int32_t h = 0; h < a->n_heads; h++) {
                const float *row = a->rows + (t0 + t) * a->stride + (int64_t)(group * a->n_heads + h) * d;
                sr_rotation_undo(a->m->rotation, a->m->turn + (size_t)(t0 + t) * (size_t)d, row,
                                 x + (size_t)(t * a->n_heads + h) * (size_t)d);
            }
        }
        add_products(unit + (a->is_key ? dd : 0), x, n * a->n_heads, d);
        for (int32_t r = 0; a->is_key && r < n; r++) {
            for (int32_t i = 0; i < d; i++) unit[2 * dd + (size_t)i] += x[r * d + i];
        }
    }
}

/* Cuts the rows to positions that count, and deals blocks of tokens over groups. */
static void add_rows(struct adding *a, struct pool *pool, int32_t n, int64_t pos0)
{
    int64_t *c = a->m->counts + a->layer * N_COUNTS, *next = c + (a->is_key ? K_NEXT : Q_NEXT);
    int64_t from = *next > SR_MOMENTS_FIRST ? *next : SR_MOMENTS_FIRST, to = pos0 + n;
    if (from < pos0) from = pos0;
    if (to > *next) *next = to;
    if (to > SR_MOMENTS_LAST) to = SR_MOMENTS_LAST;
    if (from >= to) return;
    const float *rows = a->rows + (from - pos0) * a->stride;
    for (int64_t p = from; p < to; p += BLOCK) {
        a->n = to - p < BLOCK ? (int32_t)(to - p) : BLOCK;
        a->rows = rows + (p - from) * a->stride;
        for (int32_t t = 0; t < a->n; t++)
            sr_rotation_turn(a->m->rotation, p + t, a->m->turn + t * a->m->shape.head_dim);
        sr_pool_run(a->n > 1 ? pool : NULL, a->m->shape.n_kv_heads, add_group, a);
    }
    c[a->is_key ? K_COUNT : Q_COUNT] += to - from;
}

void sr_moments_add_q(struct moments *m, struct pool *pool, int32_t layer, const float *q, int32_t n,
                      int64_t pos0)
{
    struct adding a = {.m = m,
                       .rows = q,
                       .stride = (int64_t)m->shape.n_heads * m->shape.head_dim,
                       .layer = layer,
                       .n_heads = m->shape.n_heads / m->shape.n_kv_heads};
    add_rows(&a, pool, n, pos0);
}

void sr_moments_add_k(struct moments *m, struct pool *pool, int32_t layer, const float *k, int32_t n,
                      int64_t pos0)
{
    struct adding a = {.m = m,
                       .rows = k,
                       .stride = (int64_t)m->shape.n_kv_heads * m->shape.head_dim,
                       .layer = layer,
                       .n_heads = 1,
                       .is_key = 1};
    add_rows(&a, pool, n, pos0);
}

int sr_moments_wants(const struct moments *m, int32_t layer)
{
    const int64_t *c = m->counts + layer * N_COUNTS;
    return m->sums && (c[Q_NEXT] < SR_MOMENTS_LAST || c[K_NEXT] < SR_MOMENTS_LAST);
}

int sr_moments_ready(const struct moments *m)
{
    const int64_t all = SR_MOMENTS_LAST - SR_MOMENTS_FIRST;
    if (m->stored) return 1;
    for (int32_t l = 0; l < m->shape.n_layers; l++) {
        const int64_t *c = m->counts + l * N_COUNTS;
        if (c[Q_COUNT] != all || c[K_COUNT] != all) return 0;
    }
    return 1;
}

int64_t sr_moments_rows(const struct moments *m)
{
    int64_t least = SR_MOMENTS_LAST - SR_MOMENTS_FIRST;
    for (int32_t l = 0; m->sums && l < m->shape.n_layers; l++) {
        int64_t n = m->counts[l * N_COUNTS + Q_COUNT];
        if (n < least) least = n;
    }
    return least;
}

void sr_moments_get(const struct moments *m, int32_t layer, int32_t kv_head, double *mq, double *mk,
                    double *mean_k)
{
    size_t d = (size_t)m->shape.head_dim, dd = d * d;
    size_t at = ((size_t)layer * (size_t)m->shape.n_kv_heads + (size_t)kv_head) * sr_moments_unit(&m->shape);
    if (m->stored) {
        for (size_t i = 0; i < dd; i++) mq[i] = m->stored[at + i];
        for (size_t i = 0; i < dd; i++) mk[i] = m->stored[at + dd + i];
        for (size_t i = 0; i < d; i++) mean_k[i] = m->stored[at + 2 * dd + i];
        return;
    }
    const int64_t *c = m->counts + layer * N_COUNTS;
    double n_q = (double)c[Q_COUNT] * (m->shape.n_heads / m->shape.n_kv_heads), n_k = (double)c[K_COUNT];
    for (size_t i = 0; i < d; i++) {
        for (size_t j = i; j < d; j++) {
            mq[i * d + j] = mq[j * d + i] = (float)(m->sums[at + i * d + j] / n_q);
            mk[i * d + j] = mk[j * d + i] = (float)(m->sums[at + dd + i * d + j] / n_k);
        }
        mean_k[i] = (float)(m->sums[at + 2 * dd + i] / n_k);
    }
}

uint64_t sr_moments_id(const struct moments *m)
{
    return m->id;
}

void *sr_moments_piece(struct moments *m, int index, size_t *bytes)
{
    if (index == 0) {
        *bytes = (size_t)m->shape.n_layers * N_COUNTS * sizeof *m->counts;
        return m->counts;
    }
    if (index > m->shape.n_layers) return NULL;
    size_t layer = (size_t)m->shape.n_kv_heads * sr_moments_unit(&m->shape);
    *bytes = layer * sizeof(double);
    return m->sums + (size_t)(index - 1) * layer;
}
