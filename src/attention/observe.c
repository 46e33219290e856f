/* SPDX-License-Identifier: Apache-2.0
 *
 * See observe.h. Logits come from the backend's matrix product, with the rows of K as the weight.
 */
#include "attention/observe.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "formats/quant.h"

enum { BLOCK = 64 }; /* queries of a KV group whose attention is summed at a time */

struct observer {
    struct backend *backend;
    struct attn_shape shape;
    int32_t n_layers, n_kv_heads, max_len, room; /* room: max_len in whole chunks */
    struct observed *units;                      /* [n_layers][n_kv_heads] */
    float *last; /* [n_layers][n_kv_heads][SR_OBSERVED_LAST][group][head_dim]: position p at p modulo the count */
    int32_t *last_pos; /* [n_layers] of the newest query, -1: none */
    uint8_t *marks;    /* [max_len] */
    float *logits;     /* [BLOCK * group][room] */
    float *queries;    /* [BLOCK * group][head_dim] */
    float *scratch, *order, *pairs; /* [room], [room], [2 * room] */
    void *block;       /* a region */
    size_t block_bytes;
};

static void layout(struct arena *a, struct observer *o)
{
    size_t n = (size_t)o->n_layers * (size_t)o->n_kv_heads, room = (size_t)o->room,
           group = (size_t)o->shape.group, d = (size_t)o->shape.head_dim;
    o->units = sr_arena_take(a, n, sizeof *o->units);
    o->last = sr_arena_take(a, n * SR_OBSERVED_LAST * group * d, sizeof(float));
    o->last_pos = sr_arena_take(a, (size_t)o->n_layers, sizeof *o->last_pos);
    o->marks = sr_arena_take(a, room, 1);
    o->logits = sr_arena_take(a, BLOCK * group * room, sizeof(float));
    o->queries = sr_arena_take(a, BLOCK * group * d, sizeof(float));
    o->scratch = sr_arena_take(a, room, sizeof(float));
    o->order = sr_arena_take(a, room, sizeof(float));
    o->pairs = sr_arena_take(a, 2 * room, sizeof(float));
    for (size_t i = 0; i < n; i++) {
        float *column = sr_arena_take(a, room, sizeof(float)), *score = sr_arena_take(a, room, sizeof(float));
        float *pages = sr_arena_take(a, room / SR_PAGE_TOKENS * 4 * d, sizeof(float));
        uint8_t *kept = sr_arena_take(a, room, 1);
        if (!o->units) continue;
        o->units[i] = (struct observed){.from = o,
                                        .layer = (int32_t)i / o->n_kv_heads,
                                        .kv_head = (int32_t)i % o->n_kv_heads,
                                        .max_len = o->room,
                                        .column = column,
                                        .pages = pages,
                                        .kept = kept,
                                        .score = score};
    }
}

sr_status sr_observer_new(struct observer **out, struct backend *b, const struct attn_shape *shape, int32_t n_layers,
                          int32_t n_kv_heads, int32_t max_len, sr_error *err)
{
    struct observer *o = sr_alloc_zero(1, sizeof *o);
    if (!o) return sr_fail_memory(err, sizeof *o, "observer");
    int32_t room = (int32_t)(((int64_t)max_len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS * SR_CHUNK_ROWS);
    *o = (struct observer){.backend = b, .shape = *shape, .n_layers = n_layers, .n_kv_heads = n_kv_heads,
                           .max_len = max_len, .room = room};
    struct arena a = {NULL, 0};
    layout(&a, o);
    size_t bytes = a.used;
    sr_status st = b->ops->matmul_reserve(b, BLOCK * shape->group, shape->head_dim, SR_CHUNK_ROWS, err);
    void *block = st == SR_OK ? sr_region_map(bytes) : NULL;
    if (!block) {
        sr_free(o);
        return st ? st : sr_fail_memory(err, bytes, "observer");
    }
    a = (struct arena){block, 0};
    layout(&a, o);
    o->block = block;
    o->block_bytes = bytes;
    for (int32_t l = 0; l < n_layers; l++) o->last_pos[l] = -1;
    *out = o;
    return SR_OK;
}

void sr_observer_free(struct observer *o)
{
    if (!o) return;
    sr_region_unmap(o->block, o->block_bytes);
    sr_free(o);
}

/* Sums that later rows' queries added stay: measurements cut back to the end of the prefill, never into it. */
void sr_observer_truncate(struct observer *o, int32_t len)
{
    for (int32_t i = 0; i < o->n_layers * o->n_kv_heads; i++) {
        struct observed *u = &o->units[i];
        if (u->n_rows > len) u->n_rows = len;
        if (len > 0) continue;
        u->prefill = 0;
        memset(u->column, 0, (size_t)u->max_len * sizeof(float));
    }
    sr_observer_restart(o);
}

void sr_observer_restart(struct observer *o)
{
    for (int32_t i = 0; i < o->n_layers * o->n_kv_heads; i++) o->units[i].run_len = 0;
}

void sr_observer_mark(struct observer *o, int32_t pos, int is_punctuation)
{
    o->marks[pos] = is_punctuation != 0;
}

const uint8_t *sr_observer_marks(const struct observer *o)
{
    return o->marks;
}

struct observed *sr_observed_get(struct observer *o, int32_t layer, int32_t kv_head)
{
    return &o->units[layer * o->n_kv_heads + kv_head];
}

float *sr_observed_scratch(struct observed *u)
{
    return u->from->scratch;
}

void *sr_observed_pairs(struct observed *u)
{
    return u->from->pairs;
}

/* ---- keys ---- */

static void page_statistics(const struct observer *o, const struct attn_unit *unit, int32_t page, float *least)
{
    int32_t d = o->shape.head_dim, row = page * SR_PAGE_TOKENS;
    float *most = least + d, *mean = most + d, *spread = mean + d, k[256];
    const uint8_t *rows = (const uint8_t *)unit->k.chunk[row / SR_CHUNK_ROWS] +
                          (size_t)(row % SR_CHUNK_ROWS) * o->shape.k_row_bytes;
    for (int32_t t = 0; t < SR_PAGE_TOKENS; t++) {
        sr_dequantize_row(o->shape.k_type, rows + (size_t)t * o->shape.k_row_bytes, k, d);
        for (int32_t i = 0; i < d; i++) {
            least[i] = t == 0 || k[i] < least[i] ? k[i] : least[i];
            most[i] = t == 0 || k[i] > most[i] ? k[i] : most[i];
            mean[i] = (t == 0 ? 0 : mean[i]) + k[i] / SR_PAGE_TOKENS;
            spread[i] = (t == 0 ? 0 : spread[i]) + k[i] * k[i] / SR_PAGE_TOKENS;
        }
    }
    for (int32_t i = 0; i < d; i++) {
        float variance = spread[i] - mean[i] * mean[i];
        spread[i] = variance > 0 ? sqrtf(variance) : 0;
    }
}

void sr_observer_keys(struct observer *o, int32_t layer, const struct attn_unit *units, int32_t n, int32_t pos0)
{
    for (int32_t g = 0; g < o->n_kv_heads; g++) {
        struct observed *u = sr_observed_get(o, layer, g);
        for (int32_t page = pos0 / SR_PAGE_TOKENS; (page + 1) * SR_PAGE_TOKENS <= pos0 + n; page++)
            page_statistics(o, &units[g], page, u->pages + (size_t)page * 4 * (size_t)o->shape.head_dim);
        u->n_rows = pos0 + n;
    }
}

/* ---- logits ---- */

/* y [n][room] = q [n][head_dim] times rows [0, len) of K */
static void multiply(struct observer *o, const struct attn_unit *unit, const float *q, int32_t n, int32_t len)
{
    for (int32_t row = 0; row < len; row += SR_CHUNK_ROWS) {
        struct weight w = {.data = unit->k.chunk[row / SR_CHUNK_ROWS],
                           .dtype = o->shape.k_type,
                           .n_out = len - row < SR_CHUNK_ROWS ? len - row : SR_CHUNK_ROWS,
                           .n_in = o->shape.head_dim,
                           .row_bytes = o->shape.k_row_bytes};
        o->backend->ops->matmul(o->backend, &(struct matmul_args){.n_weights = 1,
                                                                  .w = {&w},
                                                                  .y = {o->logits + row},
                                                                  .y_stride = {o->room},
                                                                  .x = q,
                                                                  .x_stride = o->shape.head_dim,
                                                                  .n = n});
    }
}

float *sr_observed_logits(struct observed *u, const struct attn_unit *unit)
{
    multiply(u->from, unit, unit->q, u->from->shape.group, unit->kv_len);
    return u->from->logits;
}

void sr_observed_softmax(float *x, int32_t n)
{
    float max = -INFINITY;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int32_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += (double)x[i];
    }
    float scale = (float)(1 / sum);
    for (int32_t i = 0; i < n; i++) x[i] *= scale;
}

/* ---- queries ---- */

struct summing {
    struct observer *o;
    const int32_t *pos; /* [n_q / group] */
    int32_t n_q, len;
    float weight, *column;
};

static void softmax_task(void *ctx, int32_t task, int32_t thread)
{
    const struct summing *s = ctx;
    (void)thread;
    sr_observed_softmax(s->o->logits + (size_t)task * (size_t)s->o->room, s->pos[task / s->o->shape.group] + 1);
}

static void column_task(void *ctx, int32_t task, int32_t thread)
{
    const struct summing *s = ctx;
    int32_t from = task * SR_CHUNK_ROWS, to = from + SR_CHUNK_ROWS < s->len ? from + SR_CHUNK_ROWS : s->len;
    (void)thread;
    for (int32_t q = 0; q < s->n_q; q++) {
        const float *p = s->o->logits + (size_t)q * (size_t)s->o->room;
        int32_t end = s->pos[q / s->o->shape.group] + 1 < to ? s->pos[q / s->o->shape.group] + 1 : to;
        for (int32_t i = from; i < end; i++) s->column[i] += s->weight * p[i];
    }
}

/* Attention of n positions' queries, in o->queries, added to the sums. */
static void add_columns(struct observer *o, const struct attn_unit *unit, const int32_t *pos, int32_t n, float weight,
                        float *column)
{
    struct summing s = {o, pos, n * o->shape.group, pos[n - 1] + 1, weight, column};
    struct pool *pool = sr_backend_pool(o->backend);
    multiply(o, unit, o->queries, s.n_q, s.len);
    sr_pool_run(pool, s.n_q, softmax_task, &s);
    sr_pool_run(pool, (s.len + SR_CHUNK_ROWS - 1) / SR_CHUNK_ROWS, column_task, &s);
}

static float *last_query(struct observer *o, int32_t layer, int32_t g, int32_t pos)
{
    size_t size = (size_t)o->shape.group * (size_t)o->shape.head_dim;
    return o->last + (((size_t)layer * (size_t)o->n_kv_heads + (size_t)g) * SR_OBSERVED_LAST +
                      (size_t)(pos % SR_OBSERVED_LAST)) *
                         size;
}

void sr_observer_queries(struct observer *o, int32_t layer, const struct attn_unit *units, const float *q, int32_t n,
                         int32_t pos0)
{
    size_t size = (size_t)o->shape.group * (size_t)o->shape.head_dim;
    for (int32_t g = 0; g < o->n_kv_heads; g++) {
        struct observed *u = sr_observed_get(o, layer, g);
        int32_t pos[BLOCK], m = 0;
        for (int32_t t = 0; t < n; t++) {
            const float *from = q + ((size_t)t * (size_t)o->n_kv_heads + (size_t)g) * size;
            memcpy(last_query(o, layer, g, pos0 + t), from, size * sizeof(float));
            if ((pos0 + t) % SR_OBSERVED_STRIDE == 0) {
                memcpy(o->queries + (size_t)m * size, from, size * sizeof(float));
                pos[m++] = pos0 + t;
            }
            if (m == BLOCK || (m && t == n - 1)) {
                add_columns(o, &units[g], pos, m, SR_OBSERVED_STRIDE, u->column);
                m = 0;
            }
        }
        u->prefill = pos0 + n;
    }
    o->last_pos[layer] = pos0 + n - 1;
}

int32_t sr_observed_last_count(const struct observed *u)
{
    int32_t n = u->from->last_pos[u->layer] + 1;
    return n < SR_OBSERVED_LAST ? n : SR_OBSERVED_LAST;
}

void sr_observed_votes(struct observed *u, const struct attn_unit *unit, int32_t n, float *out)
{
    struct observer *o = u->from;
    size_t size = (size_t)o->shape.group * (size_t)o->shape.head_dim;
    int32_t count = sr_observed_last_count(u), pos[SR_OBSERVED_LAST], newest = o->last_pos[u->layer];
    for (int32_t i = 0; i < count; i++) {
        pos[i] = newest - count + 1 + i;
        memcpy(o->queries + (size_t)i * size, last_query(o, u->layer, u->kv_head, pos[i]), size * sizeof(float));
    }
    memset(o->order, 0, (size_t)o->room * sizeof(float));
    if (count) add_columns(o, unit, pos, count, 1, o->order);
    memcpy(out, o->order, (size_t)n * sizeof(float));
}

/* ---- choices ---- */

static float kth_largest(float *v, int32_t n, int32_t k)
{
    int32_t lo = 0, hi = n - 1;
    k = k - 1;
    while (lo < hi) { /* Hoare's selection, falling */
        float pivot = v[lo + (hi - lo) / 2];
        int32_t i = lo, j = hi;
        while (i <= j) {
            while (v[i] > pivot) i++;
            while (v[j] < pivot) j--;
            if (i > j) break;
            float t = v[i];
            v[i++] = v[j];
            v[j--] = t;
        }
        if (k <= j)
            hi = j;
        else if (k >= i)
            lo = i;
        else
            break;
    }
    return v[k];
}

void sr_observed_top(struct observed *u, const float *score, int32_t first, int32_t last, int32_t n, uint8_t *set)
{
    int32_t m = last - first;
    if (n <= 0 || m <= 0) return;
    if (n >= m) {
        memset(set + first, 1, (size_t)m);
        return;
    }
    memcpy(u->from->order, score + first, (size_t)m * sizeof(float));
    float least = kth_largest(u->from->order, m, n);
    int32_t above = 0;
    for (int32_t i = first; i < last; i++) above += score[i] > least;
    for (int32_t i = first, equal = n - above; i < last; i++) {
        if (score[i] > least || (score[i] == least && equal-- > 0)) set[i] = 1;
    }
}

int32_t sr_observed_list(const uint8_t *set, int32_t len, int32_t *list)
{
    int32_t n = 0;
    for (int32_t i = 0; i < len; i++) {
        if (set[i]) list[n++] = i;
    }
    return n;
}

int32_t sr_observed_pages(struct observed *u, const float *score, int32_t first, int32_t last, int32_t n, uint8_t *set)
{
    int32_t from = (first + SR_PAGE_TOKENS - 1) / SR_PAGE_TOKENS, to = last / SR_PAGE_TOKENS;
    uint8_t *chosen = (uint8_t *)u->from->scratch;
    if (to <= from) return 0;
    memset(chosen, 0, (size_t)to);
    sr_observed_top(u, score, from, to, n, chosen);
    for (int32_t p = from; p < to; p++) {
        if (chosen[p]) memset(set + p * SR_PAGE_TOKENS, 1, SR_PAGE_TOKENS);
    }
    return to - from;
}
