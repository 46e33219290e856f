/* SPDX-License-Identifier: Apache-2.0
 *
 * attn_rows: attention of one query per head over the rows that a policy has set. The rows of every unit are cut into
 * pieces, dealt over the pool; each piece gives a state; whoever finishes a unit's last piece merges them in order.
 */
#include "cpu/attn/attn_scratch.h"
#include "cpu/attn/attn_state.h"
#include "cpu/attn/kv_row.h"

struct rows_job { const struct attn_rows_args *a; const struct backend_cpu *c; struct attn_scratch *s; int32_t n_pieces; };

/* ---- which rows ---- */

static int near_covers_all(const struct attn_rows_args *a, int32_t u)
{
    return a->n_sinks + a->window >= a->units[u].kv_len;
}

static int has_list(const struct attn_rows_args *a, int32_t u)
{
    return a->set[u] == ATTN_LIST || a->set[u] == ATTN_NEAR_LIST;
}

/* Those that are not of a list. */
static int32_t count_rows(const struct attn_rows_args *a, int32_t u)
{
    switch ((enum attn_set)a->set[u]) {
    case ATTN_NONE:
    case ATTN_LIST: return 0;
    case ATTN_NEAR:
    case ATTN_NEAR_LIST: return near_covers_all(a, u) ? a->units[u].kv_len : a->n_sinks + a->window;
    case ATTN_ALL: break;
    }
    return a->units[u].kv_len;
}

/* A run of consecutive rows, as addresses. Rows of a chunk lie together, so the address is looked up once per chunk. */
static void run_rows(const struct kv_rows *r, size_t row_bytes, int32_t row, int32_t n, const uint8_t **out)
{
    while (n > 0) {
        const int32_t left = SR_CHUNK_ROWS - row % SR_CHUNK_ROWS, take = n < left ? n : left;
        const uint8_t *p = sr_row_at(r, row, row_bytes);
        for (int32_t i = 0; i < take; i++) *out++ = p + (size_t)i * row_bytes;
        row += take;
        n -= take;
    }
}

struct block_rows { const uint8_t *k[SR_ATTN_BLOCK], *v[SR_ATTN_BLOCK]; int32_t n; };

static void run_both(const struct attn_rows_args *a, int32_t u, int32_t row, int32_t n, struct block_rows *b, int32_t at)
{
    run_rows(&a->units[u].k, a->shape->k_row_bytes, row, n, b->k + at);
    run_rows(&a->units[u].v, a->shape->v_row_bytes, row, n, b->v + at);
}

/* Entries [first, first + n) of a piece's rows. */
static void resolve(const struct attn_rows_args *a, const struct attn_piece *p, int32_t first, int32_t n, struct block_rows *b)
{
    const int32_t u = p->unit;
    const struct attn_unit *unit = &a->units[u];
    b->n = n;
    if (p->is_list) {
        const int32_t *list = a->list[u] + first;
        for (int32_t i = 0; i < n; i++) {
            assert(list[i] >= 0 && list[i] < unit->kv_len);
            b->k[i] = sr_row_at(&unit->k, list[i], a->shape->k_row_bytes);
            b->v[i] = sr_row_at(&unit->v, list[i], a->shape->v_row_bytes);
        }
    } else if (a->set[u] != ATTN_ALL && !near_covers_all(a, u)) {
        const int32_t sinks = first >= a->n_sinks ? 0 : n < a->n_sinks - first ? n : a->n_sinks - first;
        run_both(a, u, first, sinks, b, 0);
        run_both(a, u, unit->kv_len - a->window + first + sinks - a->n_sinks, n - sinks, b, sinks);
    } else {
        run_both(a, u, first, n, b, 0);
    }
}

/* ---- pieces ---- */

static struct head_state piece_head(const struct rows_job *j, int32_t piece, int32_t g)
{
    const struct attn_shape *s = j->a->shape;
    const size_t at = (size_t)piece * (size_t)s->group + (size_t)g;
    return (struct head_state){j->s->o + at * (size_t)s->head_dim, j->s->m + at, j->s->l + at};
}

static struct head_state result_head(const struct attn_rows_args *a, int32_t u, int32_t g)
{
    const size_t at = (size_t)u * (size_t)a->shape->group + (size_t)g;
    return (struct head_state){a->state.o + at * (size_t)a->shape->head_dim, a->state.m + at, a->state.l + at};
}

static void tell_near(const struct rows_job *j, int32_t u, int32_t g, struct head_state s)
{
    if (!j->a->near_m || j->a->set[u] != ATTN_NEAR_LIST) return;
    j->a->near_m[u * j->a->shape->group + g] = *s.m;
    j->a->near_l[u * j->a->shape->group + g] = *s.l;
}

static void merge_unit(const struct rows_job *j, int32_t u)
{
    const struct attn_unit_work *w = &j->s->work[u];
    for (int32_t g = 0; g < j->a->shape->group; g++) {
        const struct head_state into = result_head(j->a, u, g);
        if (!j->a->merge) sr_head_state_clear(into, j->a->shape->head_dim);
        for (int32_t p = 0; p <= w->n; p++) {
            if (p == w->n_near) tell_near(j, u, g, into);
            if (p < w->n) sr_head_state_merge(into, piece_head(j, w->first + p, g), j->a->shape->head_dim);
        }
    }
    for (int32_t p = 0; p < w->n; p++) {
        j->a->touched[u].k_rows += j->s->touched[w->first + p].k_rows;
        j->a->touched[u].v_rows += j->s->touched[w->first + p].v_rows;
    }
}

/* ---- scaled types: kernels take rows as they are stored ---- */

static const float *query_of(const struct rows_job *j, int32_t u)
{
    const struct attn_shape *s = j->a->shape;
    return sr_kv_is_scaled(s->k_type) ? j->s->q + (size_t)u * (size_t)(s->group * s->head_dim) : j->a->units[u].q;
}

/* (scale K) q = K (scale q), to the bit since the scale is a power of two; likewise p (scale V). */
static void scale_query(const struct rows_job *j, int32_t u)
{
    const struct attn_shape *s = j->a->shape;
    const int32_t n = s->group * s->head_dim;
    float *to = j->s->q + (size_t)u * (size_t)n;
    for (int32_t i = 0; i < n; i++) to[i] = j->a->units[u].q[i] * j->a->units[u].k.scale;
}

static void scale_output(const struct rows_job *j, int32_t u, float *o)
{
    const struct attn_shape *s = j->a->shape;
    for (int32_t i = 0; sr_kv_is_scaled(s->v_type) && i < s->group * s->head_dim; i++) o[i] *= j->a->units[u].v.scale;
}

/* The first rows of what this thread probably does next. */
static void resolve_next(const struct rows_job *j, int32_t piece, struct block_rows *b)
{
    b->n = 0;
    if (piece + 1 == j->n_pieces) return;
    const struct attn_piece *p = &j->s->pieces[piece + 1];
    resolve(j->a, p, p->first, p->n < SR_ATTN_BLOCK ? p->n : SR_ATTN_BLOCK, b);
}

/* A task of the pool. Two sets of addresses: while one block is computed, the next one's K rows are fetched. */
static void run_piece(void *ctx, int32_t task, int32_t thread)
{
    const struct rows_job *j = ctx;
    const struct attn_rows_args *a = j->a;
    const struct attn_piece *p = &j->s->pieces[task];
    struct block_rows rows[2];
    struct attn_touched *touched = &j->s->touched[task];
    const struct head_state first = piece_head(j, task, 0);
    struct attn_block b = {.shape = a->shape, .q = query_of(j, p->unit), .o = first.o, .m = first.m, .l = first.l,
                           .k_rows = &touched->k_rows, .v_rows = &touched->v_rows,
                           .scratch = sr_attn_thread_scratch(j->s, thread), .begins = 1, .is_list = p->is_list};
    *touched = (struct attn_touched){0};
    for (int32_t g = 0; g < a->shape->group; g++) sr_head_state_clear(piece_head(j, task, g), a->shape->head_dim);
    int32_t now = 0, at = p->first;
    const int32_t end = p->first + p->n;
    resolve(a, p, at, p->n < SR_ATTN_BLOCK ? p->n : SR_ATTN_BLOCK, &rows[0]);
    for (; at < end; now ^= 1) {
        const struct block_rows *cur = &rows[now];
        at += cur->n;
        if (at < end) resolve(a, p, at, end - at < SR_ATTN_BLOCK ? end - at : SR_ATTN_BLOCK, &rows[now ^ 1]);
        else resolve_next(j, task, &rows[now ^ 1]);
        b.k = cur->k;
        b.v = cur->v;
        b.n = cur->n;
        b.next_k = rows[now ^ 1].k;
        b.next_v = rows[now ^ 1].v;
        b.n_next = rows[now ^ 1].n;
        b.ends = at == end;
        j->c->k.attn_block(&b);
        b.begins = 0;
    }
    scale_output(j, p->unit, first.o);
    if (atomic_fetch_sub_explicit(&j->s->work[p->unit].left, 1, memory_order_acq_rel) == 1) merge_unit(j, p->unit);
}

static int32_t piece_rows(int32_t n_rows)
{
    int32_t rows = n_rows > 4 * SR_LONG_ROWS ? 4 * SR_PIECE_ROWS : n_rows > SR_LONG_ROWS ? 2 * SR_PIECE_ROWS : SR_PIECE_ROWS;
    while (n_rows > rows * SR_MAX_PIECES) rows *= 2;
    return rows;
}

/* Pieces of whole blocks, as equal as can be: 260 rows are 128 and 132, not 256 and 4. Long runs keep theirs, which are
 * chunks. Returns how many there are now. */
static int32_t cut_rows(struct attn_piece *pieces, int32_t n_pieces, int32_t u, int32_t n, int is_list)
{
    const int32_t rows = piece_rows(n), n_parts = (n + rows - 1) / rows, n_blocks = (n + SR_ATTN_BLOCK - 1) / SR_ATTN_BLOCK;
    for (int32_t i = 0; i < n_parts; i++) {
        const int is_even = rows < SR_CHUNK_ROWS;
        const int32_t first = is_even ? (int32_t)((int64_t)n_blocks * i / n_parts) * SR_ATTN_BLOCK : i * rows;
        const int32_t end = is_even ? (int32_t)((int64_t)n_blocks * (i + 1) / n_parts) * SR_ATTN_BLOCK : (i + 1) * rows;
        pieces[n_pieces++] = (struct attn_piece){u, first, (end < n ? end : n) - first, is_list};
    }
    return n_pieces;
}

void sr_cpu_attn_rows(struct backend *b, const struct attn_rows_args *a)
{
    struct backend_cpu *c = sr_cpu_of(b);
    struct rows_job job = {a, c, c->attn, 0};
    struct attn_scratch *s = c->attn;
    int32_t n_pieces = 0;
    assert(s && a->n_units <= s->limits.n_units && a->shape->group <= s->limits.group &&
           a->shape->head_dim <= s->limits.head_dim);
    for (int32_t u = 0; u < a->n_units; u++) {
        struct attn_unit_work *w = &s->work[u];
        w->first = n_pieces;
        n_pieces = cut_rows(s->pieces, n_pieces, u, count_rows(a, u), 0);
        w->n_near = n_pieces - w->first;
        if (has_list(a, u)) n_pieces = cut_rows(s->pieces, n_pieces, u, a->n_list[u], 1);
        assert(n_pieces <= s->max_pieces);
        w->n = n_pieces - w->first;
        atomic_store_explicit(&w->left, w->n, memory_order_relaxed);
        if (w->n == 0) merge_unit(&job, u);
        else if (sr_kv_is_scaled(a->shape->k_type)) scale_query(&job, u);
    }
    job.n_pieces = n_pieces;
    sr_pool_run(c->pool, n_pieces, run_piece, &job);
}
