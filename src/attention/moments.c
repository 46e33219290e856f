/* SPDX-License-Identifier: Apache-2.0
 *
 * Collecting moments. Rows are turned back to before the embedding and kept until the first row of the next block of
 * positions comes, blocks being cut at multiples of 32 whatever the batch; their products are then taken at once in float
 * and added to sums in double. So the sums do not depend on how tokens were batched nor on the threads. What is still held
 * when somebody asks is added for him.
 */
#include "attention/moments_parts.h"

#include <assert.h>
#include <cblas.h>
#include <string.h>

#include "attention/blas.h"
#include "attention/rotation.h"
#include "base/memory.h"
#include "base/pool.h"

/* Where the next position is FROZEN, none counts. */
#define FROZEN INT32_MAX

enum { BLOCK = SR_MOMENTS_BLOCK, Q_NEXT = 0, K_NEXT, Q_COUNT, K_COUNT, Q_HELD, K_HELD, N_COUNTS };

/* Floats of turned rows held per layer: [n_kv_heads][query rows BLOCK * group, key rows BLOCK][d]. */
static size_t held_unit(const struct moments_shape *s)
{
    return (size_t)BLOCK * (size_t)(s->n_heads / s->n_kv_heads + 1) * (size_t)s->head_dim;
}

static size_t held_layer(const struct moments_shape *s)
{
    return (size_t)s->n_kv_heads * held_unit(s);
}

static size_t product_floats(const struct moments_shape *s)
{
    return (size_t)s->n_kv_heads * (size_t)s->head_dim * (size_t)s->head_dim;
}

sr_status sr_moments_new(struct moments **out, const struct moments_shape *shape,
                         const struct rotation *rotation, sr_error *err)
{
    size_t bytes = sr_moments_units(shape) * sr_moments_unit(shape) * sizeof(double);
    struct moments *m = sr_alloc_zero(1, sizeof *m);
    if (!m) return sr_fail_memory(err, sizeof *m, "moments");
    sr_blas_single_thread();
    m->shape = *shape;
    m->rotation = rotation;
    m->sums = sr_region_map(bytes);
    m->held = sr_region_map((size_t)shape->n_layers * held_layer(shape) * sizeof(float));
    m->end = SR_MOMENTS_LAST;
    m->turn = sr_region_map((size_t)SR_MOMENTS_END * (size_t)shape->head_dim * sizeof(float));
    m->counts = sr_alloc_zero((size_t)shape->n_layers * N_COUNTS, sizeof *m->counts);
    m->product = sr_alloc(product_floats(shape) * sizeof(float));
    if (!m->sums || !m->held || !m->turn || !m->counts || !m->product) {
        sr_moments_free(m);
        return sr_fail_memory(err, bytes, "moments");
    }
    *out = m;
    return SR_OK;
}

void sr_moments_free(struct moments *m)
{
    if (!m) return;
    const struct moments_shape *s = &m->shape;
    sr_region_unmap(m->sums, sr_moments_units(s) * sr_moments_unit(s) * sizeof(double));
    if (m->held) sr_region_unmap(m->held, (size_t)s->n_layers * held_layer(s) * sizeof(float));
    sr_region_unmap(m->turn, (size_t)SR_MOMENTS_END * (size_t)s->head_dim * sizeof(float));
    sr_free(m->stored);
    sr_free(m->counts);
    sr_free(m->product);
    sr_free(m);
}

void sr_moments_extend(struct moments *m, int64_t end)
{
    assert(end <= SR_MOMENTS_END);
    m->end = end;
}

/* The last rows held are those of the positions before `next`. */
static void freeze_count(const struct moments *m, int64_t pos, int64_t *next, int64_t *count, int64_t *held)
{
    int64_t late = (*next < m->end ? *next : m->end) - pos;
    if (*next == FROZEN || late < 0) late = 0;
    if (late > *held) late = *held;
    *count -= late;
    *held -= late;
    *next = FROZEN;
}

void sr_moments_freeze(struct moments *m, int64_t pos)
{
    assert(sr_moments_ready(m));
    for (int32_t l = 0; m->sums && l < m->shape.n_layers; l++) {
        int64_t *c = m->counts + l * N_COUNTS;
        freeze_count(m, pos, &c[Q_NEXT], &c[Q_COUNT], &c[Q_HELD]);
        freeze_count(m, pos, &c[K_NEXT], &c[K_COUNT], &c[K_HELD]);
    }
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

/* One call: rows of one kind (q or k) of one layer at positions [from, to), all of which count. */
struct adding {
    struct moments *m;
    const float *rows; /* of position `from`; [n][stride] */
    int64_t stride, from, to;
    int32_t layer, n_heads; /* heads of one KV group: the group's query heads, or 1 */
    int is_key;
};

/* sum += X' X for the block's rows X [n][d], j >= i; for keys also the sum of the rows. */
static void add_block(const struct adding *a, int32_t group, const float *x, int32_t n)
{
    const struct moments_shape *s = &a->m->shape;
    size_t d = (size_t)s->head_dim, dd = d * d;
    double *unit =
        a->m->sums + ((size_t)a->layer * (size_t)s->n_kv_heads + (size_t)group) * sr_moments_unit(s);
    double *sum = unit + (a->is_key ? dd : 0), *mean = unit + 2 * dd;
    float *product = a->m->product + (size_t)group * dd;
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, s->head_dim, n, 1.0f, x, s->head_dim, 0.0f, product,
                s->head_dim);
    for (size_t i = 0; i < d; i++)
        for (size_t j = i; j < d; j++) sum[i * d + j] += (double)product[i * d + j];
    for (int32_t r = 0; a->is_key && r < n; r++)
        for (size_t i = 0; i < d; i++) mean[i] += (double)x[(size_t)r * d + i];
}

static void add_group(void *ctx, int32_t group, int32_t thread)
{
    (void)thread;
    const struct adding *a = ctx;
    const struct moments_shape *s = &a->m->shape;
    size_t d = (size_t)s->head_dim, queries = (size_t)BLOCK * (size_t)(s->n_heads / s->n_kv_heads) * d;
    float *held = a->m->held + (size_t)a->layer * held_layer(s) + (size_t)group * held_unit(s) +
                  (a->is_key ? queries : 0);
    int64_t n = a->m->counts[a->layer * N_COUNTS + (a->is_key ? K_HELD : Q_HELD)];
    for (int64_t p = a->from; p < a->to; p++) {
        const float *row = a->rows + (p - a->from) * a->stride + (int64_t)group * a->n_heads * s->head_dim;
        if (n > 0 && (p % BLOCK == 0 || n == BLOCK)) {
            add_block(a, group, held, (int32_t)n * a->n_heads);
            n = 0;
        }
        for (int32_t h = 0; h < a->n_heads; h++)
            sr_rotation_undo(a->m->rotation, a->m->turn + (size_t)p * d, row + h * s->head_dim,
                             held + (size_t)(n * a->n_heads + h) * d);
        n++;
    }
}

void sr_moments_fold(struct moments *m)
{
    const struct moments_shape *s = &m->shape;
    const int32_t per_group = s->n_heads / s->n_kv_heads;
    const size_t queries = (size_t)BLOCK * (size_t)per_group * (size_t)s->head_dim;
    for (int32_t l = 0; l < s->n_layers; l++) {
        for (int is_key = 0; is_key < 2; is_key++) {
            int64_t *held = m->counts + l * N_COUNTS + (is_key ? K_HELD : Q_HELD);
            const struct adding a = {.m = m, .layer = l, .n_heads = is_key ? 1 : per_group, .is_key = is_key};
            for (int32_t g = 0; *held && g < s->n_kv_heads; g++)
                add_block(&a, g, m->held + (size_t)l * held_layer(s) + (size_t)g * held_unit(s) + (is_key ? queries : 0),
                          (int32_t)*held * a.n_heads);
            *held = 0;
        }
    }
}

/* Rows held after [from, to) were added: the same arithmetic for every group. */
static int64_t held_after(int64_t n, int64_t from, int64_t to)
{
    for (int64_t p = from; p < to; p++) n = p % BLOCK == 0 || n == BLOCK ? 1 : n + 1;
    return n;
}

void sr_moments_note(struct moments *m, int32_t layer, int is_key, int64_t pos0, int32_t n, int64_t *from, int64_t *to)
{
    int64_t *c = m->counts + layer * N_COUNTS, *next = c + (is_key ? K_NEXT : Q_NEXT);
    if (*next < SR_MOMENTS_LAST && pos0 > *next && pos0 > SR_MOMENTS_FIRST) *next = FROZEN; /* a gap: never ready */
    *from = *next > SR_MOMENTS_FIRST ? *next : SR_MOMENTS_FIRST;
    *to = pos0 + n;
    if (*from < pos0) *from = pos0;
    if (*to > *next) *next = *to;
    if (*to > m->end) *to = m->end;
    if (*from < *to) c[is_key ? K_COUNT : Q_COUNT] += *to - *from;
}

void sr_moments_make_plain(struct moments *m)
{
    const struct moments_shape *s = &m->shape;
    const int64_t all = SR_MOMENTS_LAST - SR_MOMENTS_FIRST, d = s->head_dim;
    const double n_q = (double)all * (s->n_heads / s->n_kv_heads) / (double)d; /* queries are divided by sqrt(d) */
    memset(m->sums, 0, sr_moments_sums_bytes(m));
    for (size_t u = 0; u < sr_moments_units(s); u++) {
        double *unit = m->sums + u * sr_moments_unit(s);
        for (int64_t i = 0; i < d; i++) {
            unit[i * d + i] = n_q;
            unit[d * d + i * d + i] = (double)all;
        }
    }
    for (int32_t l = 0; l < s->n_layers; l++) {
        int64_t *c = m->counts + l * N_COUNTS;
        c[Q_NEXT] = c[K_NEXT] = FROZEN;
        c[Q_COUNT] = c[K_COUNT] = all;
        c[Q_HELD] = c[K_HELD] = 0;
    }
}

double *sr_moments_sums(struct moments *m)
{
    return m->sums;
}

size_t sr_moments_sums_bytes(const struct moments *m)
{
    return sr_moments_units(&m->shape) * sr_moments_unit(&m->shape) * sizeof *m->sums;
}

/* Cuts the rows to positions that count and deals the groups. A gap (rows never attended) may leave a block
 * short; such moments never become complete. */
static void add_rows(struct adding *a, struct pool *pool, int32_t n, int64_t pos0)
{
    struct moments *m = a->m;
    int64_t *c = m->counts + a->layer * N_COUNTS;
    sr_moments_note(m, a->layer, a->is_key, pos0, n, &a->from, &a->to);
    if (a->from >= a->to) return;
    a->rows += (a->from - pos0) * a->stride;
    for (; m->turned < a->to; m->turned++)
        sr_rotation_turn(m->rotation, m->turned, m->turn + m->turned * m->shape.head_dim);
    sr_pool_run(a->to - a->from > 4 ? pool : NULL, m->shape.n_kv_heads, add_group, a);
    int64_t *held = c + (a->is_key ? K_HELD : Q_HELD);
    *held = held_after(*held, a->from, a->to);
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
    return m->sums && (c[Q_NEXT] < m->end || c[K_NEXT] < m->end);
}

int sr_moments_ready(const struct moments *m)
{
    const int64_t all = SR_MOMENTS_LAST - SR_MOMENTS_FIRST;
    if (m->stored) return 1;
    for (int32_t l = 0; l < m->shape.n_layers; l++) {
        const int64_t *c = m->counts + l * N_COUNTS;
        if (c[Q_COUNT] < all || c[K_COUNT] < all) return 0;
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
    const int64_t group = m->shape.n_heads / m->shape.n_kv_heads, held_q = c[Q_HELD] * group, held_k = c[K_HELD];
    const float *q = m->held + (size_t)layer * held_layer(&m->shape) + (size_t)kv_head * held_unit(&m->shape);
    const float *k = q + (size_t)BLOCK * (size_t)group * d;
    for (size_t i = 0; i < d; i++) {
        for (size_t j = i; j < d; j++) {
            double sum_q = m->sums[at + i * d + j], sum_k = m->sums[at + dd + i * d + j];
            for (int64_t r = 0; r < held_q; r++) sum_q += (double)q[r * (int64_t)d + (int64_t)i] * (double)q[r * (int64_t)d + (int64_t)j];
            for (int64_t r = 0; r < held_k; r++) sum_k += (double)k[r * (int64_t)d + (int64_t)i] * (double)k[r * (int64_t)d + (int64_t)j];
            mq[i * d + j] = mq[j * d + i] = (float)(sum_q / n_q);
            mk[i * d + j] = mk[j * d + i] = (float)(sum_k / n_k);
        }
        double sum = m->sums[at + 2 * dd + i];
        for (int64_t r = 0; r < held_k; r++) sum += (double)k[r * (int64_t)d + (int64_t)i];
        mean_k[i] = (float)(sum / n_k);
    }
}

uint64_t sr_moments_id(const struct moments *m)
{
    return m->id;
}

void *sr_moments_piece(struct moments *m, int index, size_t *bytes)
{
    const struct moments_shape *s = &m->shape;
    if (index == 0) {
        *bytes = (size_t)s->n_layers * N_COUNTS * sizeof *m->counts;
        return m->counts;
    }
    if (index <= s->n_layers) {
        size_t layer = (size_t)s->n_kv_heads * sr_moments_unit(s);
        *bytes = layer * sizeof(double);
        return m->sums + (size_t)(index - 1) * layer;
    }
    if (index > 2 * s->n_layers) return NULL;
    *bytes = held_layer(s) * sizeof(float);
    return m->held + (size_t)(index - 1 - s->n_layers) * held_layer(s);
}

int sr_moments_check(const struct moments *m)
{
    for (int32_t l = 0; l < m->shape.n_layers; l++) {
        const int64_t *c = m->counts + l * N_COUNTS;
        for (int i = 0; i < N_COUNTS; i++) {
            int64_t limit = i >= Q_HELD ? BLOCK : i >= Q_COUNT ? SR_MOMENTS_END : FROZEN;
            if (c[i] < 0 || c[i] > limit) return -1;
        }
    }
    return 0;
}
