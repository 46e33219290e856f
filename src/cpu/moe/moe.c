/* SPDX-License-Identifier: Apache-2.0
 *
 * Mixture of experts. A call has n * n_used slots, one per (token, chosen expert); they are sorted by expert, so that an
 * expert's weights are read once for all of its tokens. Experts with many tokens go through the matmul op one after
 * another. The rest, which in decode is all, goes through two shared regions of matvec tasks, so that the threads
 * wait twice per call and not twice per expert. Each slot has its own result; they are weighted and added per token
 * in the order of the choice, so results depend neither on threads nor on the order of experts.
 */
#include "cpu/ops_cpu.h"

#include "base/memory.h"
#include "cpu/matmul/act_rows_inline.h"

#include <assert.h>
#include <string.h>

enum { SERIAL_ELEMENTS = 32768 };

/* Slots [first, first + n) of one expert. Their inputs are rows input .. of the gathered ones, their rows between the
 * products are rows hidden .. of the quantized ones. */
struct run { int32_t expert, first, n, input, hidden; };

struct moe_scratch {
    struct moe_shape shape;
    uint8_t *block;           /* one allocation, laid out by scratch_layout */
    int32_t *slot;            /* [max_n][n_used]: where a token's choice lies */
    int32_t *token;           /* [slots] whose */
    int32_t *start;           /* [n_experts + 1] first slot of each expert */
    struct run *few;          /* runs of at most SR_MATVEC_TOKENS slots */
    float *gate, *up;         /* [slots][n_ff] */
    float *out;               /* [slots][n_embd] */
    float *gathered;          /* rows of x: [max_n] of one expert, or those of all few runs */
    struct act_rows rows;     /* the same rows quantized, then the rows of gate */
};

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void scratch_layout(struct moe_scratch *s, struct arena *a)
{
    const struct moe_shape *m = &s->shape;
    const int64_t slots = (int64_t)m->max_n * m->n_used, few = least(slots, (int64_t)m->n_experts * (GEMM_MIN_TOKENS - 1));
    const size_t ff = (size_t)m->n_ff, d = (size_t)m->n_embd, n = (size_t)slots;
    s->slot = sr_arena_take(a, n, sizeof(int32_t));
    s->token = sr_arena_take(a, n, sizeof(int32_t));
    s->start = sr_arena_take(a, (size_t)m->n_experts + 1, sizeof(int32_t));
    s->few = sr_arena_take(a, (size_t)few, sizeof(struct run));
    s->gate = sr_arena_take(a, n * ff, sizeof(float));
    s->up = sr_arena_take(a, n * ff, sizeof(float));
    s->out = sr_arena_take(a, n * d, sizeof(float));
    s->gathered = sr_arena_take(a, (size_t)most(m->max_n, few) * d, sizeof(float));
    act_rows_layout(&s->rows, a, (size_t)few, most(m->n_embd, m->n_ff));
}

static struct moe_shape larger(struct moe_shape a, const struct moe_shape *b)
{
    a.max_n = (int32_t)most(a.max_n, b->max_n);
    a.n_used = (int32_t)most(a.n_used, b->n_used);
    a.n_experts = (int32_t)most(a.n_experts, b->n_experts);
    a.n_embd = most(a.n_embd, b->n_embd);
    a.n_ff = most(a.n_ff, b->n_ff);
    return a;
}

sr_status sr_cpu_moe_reserve(struct backend *b, const struct moe_shape *shape, sr_error *err)
{
    struct backend_cpu *c = sr_cpu_of(b);
    if (!c->moe) {
        c->moe = sr_alloc_zero(1, sizeof(*c->moe));
        if (!c->moe) return sr_fail_memory(err, sizeof(*c->moe), "expert scratch");
    }
    struct moe_scratch grown = {.shape = larger(c->moe->shape, shape)};
    if (memcmp(&grown.shape, &c->moe->shape, sizeof(grown.shape)) == 0) return SR_OK;
    struct arena a = {NULL, 0};
    scratch_layout(&grown, &a);
    grown.block = sr_alloc(a.used);
    if (!grown.block) return sr_fail_memory(err, a.used, "expert scratch");
    a = (struct arena){grown.block, 0};
    scratch_layout(&grown, &a);
    sr_free(c->moe->block);
    *c->moe = grown;
    return SR_OK;
}

void sr_cpu_moe_fini(struct backend_cpu *c)
{
    if (!c->moe) return;
    sr_free(c->moe->block);
    sr_free(c->moe);
    c->moe = NULL;
}

/* ---- the choice ------------------------------------------------------------------------------------------------- */

struct topk_call { struct backend_cpu *c; const struct topk_args *a; };

static void topk_row(void *ctx, int32_t t, int32_t thread)
{
    const struct topk_call *g = ctx;
    const struct topk_args *a = g->a;
    (void)thread;
    g->c->k.topk(a->logits + (int64_t)t * a->n_experts, a->n_experts, a->n_used, a->normalize, a->ids + (int64_t)t * a->n_used,
                 a->weight + (int64_t)t * a->n_used);
}

void sr_cpu_topk(struct backend *b, const struct topk_args *a)
{
    struct topk_call g = {sr_cpu_of(b), a};
    assert(a->n_used >= 1 && a->n_used <= a->n_experts);
    sr_pool_run(a->n > 1 && (int64_t)a->n * a->n_experts * a->n_used > SERIAL_ELEMENTS ? g.c->pool : NULL, a->n, topk_row, &g);
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

struct call {
    struct backend_cpu *c;
    struct moe_scratch *s;
    const struct moe_args *a;
    int64_t d, ff;
    int32_t n_slots, n_few, n_few_slots; /* the slots of few runs have rows 0 .. n_few_slots of the quantized ones */
    int32_t rows_ff, rows_d;             /* rows of a weight per task */
};

/* Counting sort of the choices by expert; within an expert tokens rise. */
static void sort_slots(const struct call *g)
{
    const struct moe_args *a = g->a;
    int32_t *start = g->s->start;
    const int32_t n_experts = a->gate->n_experts;
    memset(start, 0, ((size_t)n_experts + 1) * sizeof(*start));
    for (int32_t i = 0; i < g->n_slots; i++) {
        assert(a->ids[i] >= 0 && a->ids[i] < n_experts);
        start[a->ids[i] + 1]++;
    }
    for (int32_t e = 0; e < n_experts; e++) start[e + 1] += start[e];
    for (int32_t i = 0; i < g->n_slots; i++) {
        g->s->slot[i] = start[a->ids[i]]++;
        g->s->token[g->s->slot[i]] = i / a->n_used;
    }
    for (int32_t e = n_experts; e > 0; e--) start[e] = start[e - 1]; /* each had moved to the next one's start */
    start[0] = 0;
}

static struct weight expert_of(const struct weight *w, int32_t expert)
{
    struct weight e = *w;
    if (w->experts) e.data = w->experts[expert];
    else e.data = (const uint8_t *)w->data + (size_t)expert * (size_t)w->n_out * w->row_bytes;
    e.experts = NULL;
    e.packed = NULL;
    e.n_experts = 0;
    return e;
}

/* ---- an expert with many tokens ------------------------------------------------------------------------------------ */

static void many(const struct call *g, int32_t expert, int32_t first, int32_t n)
{
    struct backend *b = &g->c->base;
    const struct weight gate = expert_of(g->a->gate, expert), up = expert_of(g->a->up, expert), down = expert_of(g->a->down, expert);
    float *hg = g->s->gate + first * g->ff, *hu = g->s->up + first * g->ff;
    for (int32_t i = 0; i < n; i++)
        memcpy(g->s->gathered + i * g->d, g->a->x + g->s->token[first + i] * g->d, (size_t)g->d * sizeof(float));
    sr_cpu_matmul(b, &(struct matmul_args){.n_weights = 2, .w = {&gate, &up}, .y = {hg, hu}, .y_stride = {g->ff, g->ff},
                                           .x = g->s->gathered, .x_stride = g->d, .n = n});
    sr_cpu_silu_mul(b, &(struct silu_mul_args){.gate = hg, .up = hu, .h = hg, .d = g->ff, .n = n});
    sr_cpu_matmul(b, &(struct matmul_args){.n_weights = 1, .w = {&down}, .y = {g->s->out + first * g->d}, .y_stride = {g->d},
                                           .x = hg, .x_stride = g->ff, .n = n});
}

/* ---- all experts with few tokens ----------------------------------------------------------------------------------- */

/* Cuts an expert's slots into runs for the matvec kernels. One token's activations serve all of its slots. */
static void add_few(struct call *g, int32_t expert, int32_t first, int32_t n)
{
    for (int32_t at = 0; at < n; at += SR_MATVEC_TOKENS) {
        const int32_t part = n - at < SR_MATVEC_TOKENS ? n - at : SR_MATVEC_TOKENS;
        g->s->few[g->n_few++] = (struct run){.expert = expert, .first = first + at, .n = part, .hidden = g->n_few_slots,
                                             .input = g->a->n == 1 ? 0 : g->n_few_slots};
        g->n_few_slots += part;
    }
}

static void fill_input(void *ctx, int32_t i, int32_t thread)
{
    const struct call *g = ctx;
    const struct run *r = &g->s->few[i];
    const int quantized = !acts_are_float(g->a->gate->dtype) || !acts_are_float(g->a->up->dtype);
    (void)thread;
    for (int32_t k = 0; k < r->n; k++) {
        float *x = g->s->gathered + (r->input + k) * g->d;
        memcpy(x, g->a->x + g->s->token[r->first + k] * g->d, (size_t)g->d * sizeof(float));
        if (quantized) act_rows_fill(&g->s->rows, r->input + k, &g->c->k, x, g->d);
    }
}

/* Rows [row, row + n_rows) of one weight for the tokens of one run; y is the run's first row. */
static void multiply(const struct call *g, const struct run *r, const struct weight *w, int32_t row, int32_t n_rows, const struct acts *acts,
                     float *y)
{
    const struct weight e = expert_of(w, r->expert);
    sr_cpu_matvec_of(&g->c->k, w->dtype)(&(struct matvec_args){
        .w = (const uint8_t *)e.data + (size_t)row * e.row_bytes, .row_bytes = e.row_bytes, .n_rows = n_rows, .n_in = e.n_in,
        .acts = acts, .n = r->n, .y = y + row, .y_stride = e.n_out});
}

static int32_t n_blocks(int64_t n_out, int32_t rows) { return (int32_t)((n_out + rows - 1) / rows); }

/* Tasks: of each run the row blocks of gate, then those of up. */
static void gate_up_task(void *ctx, int32_t task, int32_t thread)
{
    const struct call *g = ctx;
    const int32_t blocks = n_blocks(g->ff, g->rows_ff), part = task % (2 * blocks), row = part % blocks * g->rows_ff;
    const struct run *r = &g->s->few[task / (2 * blocks)];
    const struct acts acts = acts_of_rows(&g->s->rows, r->input, g->d, g->s->gathered + r->input * g->d, g->d);
    (void)thread;
    multiply(g, r, part < blocks ? g->a->gate : g->a->up, row, (int32_t)least(g->rows_ff, g->ff - row), &acts,
             (part < blocks ? g->s->gate : g->s->up) + r->first * g->ff);
}

static void hidden_task(void *ctx, int32_t i, int32_t thread)
{
    const struct call *g = ctx;
    const struct run *r = &g->s->few[i];
    (void)thread;
    for (int32_t k = 0; k < r->n; k++) {
        float *h = g->s->gate + (r->first + k) * g->ff;
        g->c->k.silu_mul(h, g->s->up + (r->first + k) * g->ff, h, g->ff);
        if (!acts_are_float(g->a->down->dtype)) act_rows_fill(&g->s->rows, r->hidden + k, &g->c->k, h, g->ff);
    }
}

static void down_task(void *ctx, int32_t task, int32_t thread)
{
    const struct call *g = ctx;
    const int32_t blocks = n_blocks(g->d, g->rows_d), row = task % blocks * g->rows_d;
    const struct run *r = &g->s->few[task / blocks];
    const struct acts acts = acts_of_rows(&g->s->rows, r->hidden, g->ff, g->s->gate + r->first * g->ff, g->ff);
    (void)thread;
    multiply(g, r, g->a->down, row, (int32_t)least(g->rows_d, g->d - row), &acts, g->s->out + r->first * g->d);
}

static void few(struct call *g)
{
    struct pool *pool = g->c->pool;
    const int inputs = g->a->n == 1 ? 1 : g->n_few;
    if (!g->n_few) return;
    g->rows_ff = matvec_task_rows(g->a->gate->row_bytes);
    g->rows_d = matvec_task_rows(g->a->down->row_bytes);
    sr_pool_run(inputs * g->d > SERIAL_ELEMENTS ? pool : NULL, inputs, fill_input, g);
    sr_pool_run(pool, g->n_few * 2 * n_blocks(g->ff, g->rows_ff), gate_up_task, g);
    sr_pool_run(g->n_few_slots * g->ff * 4 > SERIAL_ELEMENTS ? pool : NULL, g->n_few, hidden_task, g);
    sr_pool_run(pool, g->n_few * n_blocks(g->d, g->rows_d), down_task, g);
}

/* ---- the op ------------------------------------------------------------------------------------------------------- */

static void combine_row(void *ctx, int32_t t, int32_t thread)
{
    const struct call *g = ctx;
    const int32_t k = g->a->n_used, *slot = g->s->slot + (int64_t)t * k;
    const float *weight = g->a->weight + (int64_t)t * k;
    float *y = g->a->y + t * g->d;
    (void)thread;
    for (int64_t i = 0; i < g->d; i++) {
        float sum = 0.0f;
        for (int32_t j = 0; j < k; j++) sum += weight[j] * g->s->out[slot[j] * g->d + i];
        y[i] = sum;
    }
}

void sr_cpu_moe(struct backend *b, const struct moe_args *a)
{
    struct backend_cpu *c = sr_cpu_of(b);
    struct call g = {.c = c, .s = c->moe, .a = a, .d = a->gate->n_in, .ff = a->gate->n_out, .n_slots = a->n * a->n_used};
    const struct moe_shape *m = &g.s->shape;
    assert(a->n <= m->max_n && a->n_used <= m->n_used && a->gate->n_experts <= m->n_experts && g.d <= m->n_embd && g.ff <= m->n_ff);
    assert(a->up->n_in == g.d && a->up->n_out == g.ff && a->down->n_in == g.ff && a->down->n_out == g.d);
    (void)m;
    sort_slots(&g);
    for (int32_t e = 0; e < a->gate->n_experts; e++) {
        const int32_t first = g.s->start[e], n = g.s->start[e + 1] - first;
        if (n < GEMM_MIN_TOKENS) add_few(&g, e, first, n);
    }
    few(&g);
    for (int32_t e = 0; e < a->gate->n_experts; e++) {
        const int32_t first = g.s->start[e], n = g.s->start[e + 1] - first;
        if (n >= GEMM_MIN_TOKENS) many(&g, e, first, n);
    }
    sr_pool_run(a->n * g.d * a->n_used > SERIAL_ELEMENTS ? c->pool : NULL, a->n, combine_row, &g);
}
