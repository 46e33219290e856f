/* SPDX-License-Identifier: Apache-2.0
 *
 * A plan first (which tensors, to what type, how many bytes), then one region, then tensor after tensor, rows dealt to
 * threads. A row depends on nothing but itself.
 */
#include "formats/settle.h"

#include "base/memory.h"
#include "formats/gguf_model.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TASK_ELEMS = 1 << 16, ALIGNMENT = 64 };

/* Types of blocks that can be made, by the names that users type. `table` is for the tables at both ends, which are read
 * a row at a time or once a token and whose errors reach every token; `more` for the matrices that gain most by a better
 * type (values, and what returns from the feed-forward part), in the layers where it counts. `less` stands in where a
 * row is no multiple of the block. */
static const struct recipe {
    const char *name;
    sr_dtype dtype, table, more, less;
} recipes[] = {
    {"q4_0", SR_DTYPE_Q4_0, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_F16}, {"q4_1", SR_DTYPE_Q4_1, SR_DTYPE_Q8_0, SR_DTYPE_Q4_1, SR_DTYPE_F16},
    {"q4_k", SR_DTYPE_Q4_K, SR_DTYPE_Q6_K, SR_DTYPE_Q4_K, SR_DTYPE_Q5_0}, {"q4_k_m", SR_DTYPE_Q4_K, SR_DTYPE_Q6_K, SR_DTYPE_Q6_K, SR_DTYPE_Q5_0},
    {"q5_0", SR_DTYPE_Q5_0, SR_DTYPE_Q8_0, SR_DTYPE_Q5_0, SR_DTYPE_F16},
    {"q5_1", SR_DTYPE_Q5_1, SR_DTYPE_Q8_0, SR_DTYPE_Q5_1, SR_DTYPE_F16},
    {"q5_k", SR_DTYPE_Q5_K, SR_DTYPE_Q6_K, SR_DTYPE_Q5_K, SR_DTYPE_Q5_1}, {"q5_k_m", SR_DTYPE_Q5_K, SR_DTYPE_Q6_K, SR_DTYPE_Q6_K, SR_DTYPE_Q5_1},
    {"q6_k", SR_DTYPE_Q6_K, SR_DTYPE_Q6_K, SR_DTYPE_Q6_K, SR_DTYPE_Q8_0}, {"q8_0", SR_DTYPE_Q8_0, SR_DTYPE_Q8_0, SR_DTYPE_Q8_0, SR_DTYPE_F16}};

enum { N_RECIPES = sizeof(recipes) / sizeof(recipes[0]) };

static const struct recipe *find_recipe(const char *name)
{
    for (int i = 0; i < N_RECIPES; i++)
        if (strcmp(recipes[i].name, name) == 0) return &recipes[i];
    return NULL;
}

struct plan {
    const struct recipe *recipe; /* NULL: nothing is quantized */
    int32_t n_layers;
};

/* ---- the plan ---- */

static int is_float(sr_dtype t) { return t == SR_DTYPE_F32 || t == SR_DTYPE_F16 || t == SR_DTYPE_BF16; }

static int ends_with(struct gguf_str name, const char *end)
{
    const size_t n = strlen(end);
    return name.bytes >= n && memcmp(name.data + name.bytes - n, end, n) == 0;
}

static int is_named(struct gguf_str name, const char *text) { return name.bytes == strlen(text) && ends_with(name, text); }

/* "blk.<i>.": i, or -1. */
static int32_t layer_of(struct gguf_str name)
{
    int32_t i = 0;
    size_t at = 4;
    if (name.bytes < 6 || memcmp(name.data, "blk.", 4) != 0) return -1;
    while (at < name.bytes && name.data[at] >= '0' && name.data[at] <= '9' && i < 100000) i = 10 * i + (name.data[at++] - '0');
    return at > 4 ? i : -1;
}

/* The first and the last eighth of the layers, and each third one between. */
static int counts_more(const struct plan *p, const struct gguf_tensor *t)
{
    const int32_t i = layer_of(t->name), n = p->n_layers;
    if (!ends_with(t->name, "attn_v.weight") && !ends_with(t->name, "ffn_down.weight") && !ends_with(t->name, "ffn_down_exps.weight")) return 0;
    return i >= 0 && (i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2);
}

static int has_blocks(sr_dtype dtype, const struct gguf_tensor *t) { return t->ne[0] % sr_dtype_find((int64_t)dtype)->block_elems == 0; }

/* Of a type whose blocks do not divide the row: the smaller type in its place, in the end f16. */
static sr_dtype dividing(sr_dtype dtype, const struct gguf_tensor *t)
{
    for (int i = 0; i < N_RECIPES && !has_blocks(dtype, t); i++)
        if (recipes[i].dtype == dtype) dtype = recipes[i].less;
    return has_blocks(dtype, t) ? dtype : SR_DTYPE_F16;
}

/* Vectors and routers stay float. */
static sr_dtype target_of(const struct gguf_tensor *t, const struct plan *p)
{
    const struct recipe *r = p->recipe;
    if (ends_with(t->name, "ffn_gate_inp.weight") && is_float(t->dtype)) return SR_DTYPE_F32;
    if (!r || !is_float(t->dtype) || t->n_dims < 2 || ends_with(t->name, "_norm.weight")) return t->dtype;
    if (is_named(t->name, "token_embd.weight") || is_named(t->name, "output.weight")) return dividing(r->table, t);
    return dividing(counts_more(p, t) ? r->more : r->dtype, t);
}

static const struct gguf_gather *gather_of(const struct gguf *g, int64_t tensor)
{
    int64_t lo = 0, hi = g->n_gathers;
    while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        if (g->gathers[mid].tensor < tensor) lo = mid + 1;
        else hi = mid;
    }
    return lo < g->n_gathers && g->gathers[lo].tensor == tensor ? &g->gathers[lo] : NULL;
}

/* Kernels read blocks of any type at even addresses, floats at multiples of their size. */
static int is_misaligned(const void *data, sr_dtype dtype) { return (uintptr_t)data % (dtype == SR_DTYPE_F32 ? 4 : 2) != 0; }

/* Experts may lie apart, if each can be read where it is. */
static int can_stay_apart(const struct gguf_gather *a, const struct gguf_tensor *t)
{
    if (a->head_rows) return 0;
    for (int64_t k = 0; k < t->ne[2]; k++)
        if (is_misaligned(a->pieces[k], t->dtype)) return 0;
    return 1;
}

static int is_made(const struct gguf *g, int64_t i, const struct plan *p)
{
    const struct gguf_tensor *t = &g->tensors[i];
    const struct gguf_gather *a = gather_of(g, i);
    if (target_of(t, p) != t->dtype) return 1;
    return t->data ? is_misaligned(t->data, t->dtype) : !can_stay_apart(a, t);
}

static int64_t rows_of(const struct gguf_tensor *t) { return t->ne[1] * t->ne[2] * t->ne[3]; }

static sr_status measure(const struct gguf *g, const struct plan *p, size_t *need, sr_error *err)
{
    *need = 0;
    for (int64_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        size_t bytes;
        if (!is_made(g, i, p)) continue;
        if (sr_mul_size(sr_row_bytes(target_of(t, p), t->ne[0]), (size_t)rows_of(t), &bytes) || sr_add_size(bytes, ALIGNMENT, &bytes) ||
            sr_add_size(*need, bytes, need))
            return sr_gguf_reject(g, err, "tensors of more than 2^64 bytes");
    }
    return SR_OK;
}

/* ---- one tensor ---- */

struct making {
    const struct gguf_tensor *t;
    const struct gguf_gather *gather;
    sr_dtype dtype;
    uint8_t *dst;
    float *scratch; /* [threads][ne[0]] */
    int64_t rows_per_task;
    _Atomic int64_t bad_row; /* the first that has no representation; INT64_MAX: none */
};

static const uint8_t *source_row(const struct making *m, int64_t row)
{
    const size_t bytes = sr_row_bytes(m->t->dtype, m->t->ne[0]);
    if (!m->gather) return (const uint8_t *)m->t->data + (size_t)row * bytes;
    const int64_t d = m->gather->head_rows;
    if (d > 0) row = row - row % d + row % 2 * (d / 2) + row % d / 2;
    return m->gather->pieces[row / m->t->ne[1]] + (size_t)(row % m->t->ne[1]) * bytes;
}

static sr_status make_row(const struct making *m, int64_t row, float *x, sr_error *err)
{
    const int64_t n = m->t->ne[0];
    const uint8_t *src = source_row(m, row);
    uint8_t *dst = m->dst + (size_t)row * sr_row_bytes(m->dtype, n);
    if (m->dtype == m->t->dtype) {
        memcpy(dst, src, sr_row_bytes(m->dtype, n));
        return SR_OK;
    }
    sr_dequantize_row(m->t->dtype, src, x, n);
    return sr_quantize_row(m->dtype, x, dst, n, err);
}

static void note_bad(struct making *m, int64_t row)
{
    int64_t least = atomic_load(&m->bad_row);
    while (row < least && !atomic_compare_exchange_weak(&m->bad_row, &least, row)) continue;
}

static void make_rows(void *ctx, int32_t task, int32_t thread)
{
    struct making *m = ctx;
    const int64_t from = task * m->rows_per_task, n_rows = rows_of(m->t);
    const int64_t to = from + m->rows_per_task < n_rows ? from + m->rows_per_task : n_rows;
    for (int64_t row = from; row < to; row++)
        if (make_row(m, row, m->scratch + (int64_t)thread * m->t->ne[0], NULL) != SR_OK) {
            note_bad(m, row);
            return;
        }
}

static sr_status refuse_row(const struct gguf *g, const struct making *m, int64_t row, sr_error *err)
{
    char name[GGUF_SHOWN_NAME_BYTES];
    sr_error why = {0};
    make_row(m, row, m->scratch, &why);
    return sr_gguf_reject(g, err, "tensor %s, row %lld: %s", sr_gguf_shown_name(name, m->t->name), (long long)row, why.text);
}

/* The file's pages that only this tensor needed are given back: they would count as memory in use. */
static void release_span(const void *data, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t from = ((uintptr_t)data + page - 1) / page * page, to = ((uintptr_t)data + bytes) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

static void release_pages(const struct making *m)
{
    const struct gguf_tensor *t = m->t;
    if (!m->gather && !t->owned) release_span(t->data, t->bytes);
    for (int64_t k = 0; m->gather && k < t->ne[2]; k++) release_span(m->gather->pieces[k], t->bytes / (size_t)t->ne[2]);
}

static sr_status make_tensor(struct gguf *g, int64_t i, struct making *m, struct pool *pool, sr_error *err)
{
    struct gguf_tensor *t = &g->tensors[i];
    const int64_t n_rows = rows_of(t);
    m->t = t;
    m->gather = gather_of(g, i);
    m->rows_per_task = t->ne[0] < TASK_ELEMS ? TASK_ELEMS / t->ne[0] : 1;
    while ((n_rows + m->rows_per_task - 1) / m->rows_per_task > INT32_MAX) m->rows_per_task *= 2;
    atomic_store(&m->bad_row, INT64_MAX);
    sr_pool_run(pool, (int32_t)((n_rows + m->rows_per_task - 1) / m->rows_per_task), make_rows, m);
    const int64_t bad = atomic_load(&m->bad_row);
    if (bad != INT64_MAX) return refuse_row(g, m, bad, err);
    release_pages(m);
    t->dtype = m->dtype;
    t->data = m->dst;
    t->bytes = sr_row_bytes(t->dtype, t->ne[0]) * (size_t)n_rows;
    t->owned = 1;
    return SR_OK;
}

/* ---- all ---- */

static sr_status make_all(struct gguf *g, const struct plan *p, const struct settle_options *o, struct making *m, struct pool *pool,
                          sr_error *err)
{
    size_t used = 0;
    for (int64_t i = 0; i < g->n_tensors; i++) {
        if (is_made(g, i, p)) {
            m->dtype = target_of(&g->tensors[i], p);
            m->dst = (uint8_t *)g->settled + used;
            SR_TRY(make_tensor(g, i, m, pool, err));
            used += (g->tensors[i].bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
        if (o->progress && o->progress(o->user, p->recipe ? "quantize" : "load", (double)(i + 1) / (double)g->n_tensors))
            return sr_fail(err, SR_ERR_USAGE, "loading was cancelled");
    }
    return SR_OK;
}

static int64_t widest_row(const struct gguf *g, const struct plan *p)
{
    int64_t widest = 1;
    for (int64_t i = 0; i < g->n_tensors; i++)
        if (is_made(g, i, p) && g->tensors[i].ne[0] > widest) widest = g->tensors[i].ne[0];
    return widest;
}

/* What was not put together is used in pieces. */
static void leave_apart(struct gguf *g)
{
    for (int64_t k = 0; k < g->n_gathers; k++) {
        struct gguf_tensor *t = &g->tensors[g->gathers[k].tensor];
        if (t->data) continue;
        t->pieces = g->gathers[k].pieces;
        t->data = t->pieces[0];
    }
}

static sr_status make_plan(struct plan *p, const struct gguf *g, const struct settle_options *o, sr_error *err)
{
    char text[32];
    *p = (struct plan){.recipe = o->quantize ? find_recipe(o->quantize) : NULL};
    if (o->quantize && !p->recipe)
        return sr_fail(err, SR_ERR_USAGE, "quantize: \"%s\" is not one of q4_0 q4_1 q4_k q4_k_m q5_0 q5_1 q5_k q5_k_m q6_k q8_0",
                       sr_escape(text, sizeof(text), o->quantize, strlen(o->quantize)));
    for (int64_t i = 0; i < g->n_tensors; i++) {
        const int32_t layer = layer_of(g->tensors[i].name);
        if (layer >= p->n_layers) p->n_layers = layer + 1;
    }
    return SR_OK;
}

sr_status sr_gguf_settle(struct gguf *g, const struct settle_options *o, struct pool *pool, sr_error *err)
{
    struct making m = {0};
    struct plan p;
    size_t need, scratch;
    SR_TRY(make_plan(&p, g, o, err));
    SR_TRY(measure(g, &p, &need, err));
    if (need == 0) {
        leave_apart(g);
        return SR_OK;
    }
    const uint64_t have = sr_memory_available();
    if (need > have)
        return sr_fail(err, SR_ERR_RESOURCE, "%s: tensors made at load need %zu bytes, %llu available", sr_gguf_path(g), need,
                       (unsigned long long)have);
    if (sr_mul_size((size_t)widest_row(g, &p), (size_t)(pool ? sr_pool_threads(pool) : 1) * sizeof(float), &scratch))
        return sr_gguf_reject(g, err, "a row is too long");
    m.scratch = sr_alloc(scratch);
    g->settled = sr_region_map(need);
    g->settled_bytes = g->settled ? need : 0;
    const sr_status st = m.scratch && g->settled ? make_all(g, &p, o, &m, pool, err) : sr_fail_memory(err, need, "tensors made at load");
    sr_free(m.scratch);
    if (st == SR_OK) leave_apart(g);
    return st;
}
