/* SPDX-License-Identifier: Apache-2.0
 *
 * The forward pass of a pre-norm transformer:
 *     a = norm(x); q, k, v = W a + b; rotate; x += Wo attention(q, cache); b = norm(x); x += Wdown(silu(Wgate b) * Wup b)
 * and logits = Wout norm(x). With experts the last term is the weighted sum over those that the router picks. Prefill
 * and decode differ only in who computes attention. All buffers are laid out once for max_n tokens: a pass allocates
 * nothing. Where the backend's memory is not the host's, ids go there before a pass, logits come back after it, and a
 * decode step is recorded once and replayed. Where the first layers are another backend's, a pass of its own does them
 * and hands over the residual stream.
 */
#include "model/forward.h"

#include "backend/device_attn.h"
#include "base/memory.h"

#include <assert.h>
#include <time.h>

enum op { OP_EMBED, OP_NORM, OP_QKV, OP_ROPE, OP_APPEND, OP_ATTENTION, OP_OUT, OP_GATE_UP, OP_SILU, OP_DOWN, OP_ADD,
          OP_LOGITS, OP_ROUTER, OP_EXPERTS, N_OPS };

static const char *const op_names[N_OPS] = {"embed", "norm", "qkv", "rope", "append", "attention", "attn_out", "gate_up",
                                            "silu_mul", "down", "add", "logits", "router", "experts"};

enum { LOGIT_ROWS = 16 /* brought to the host at a time */, STEP_PARTS = 2 /* of a recorded step */ };

struct forward {
    const struct model_config *c;
    const struct model_weights *w;
    struct backend *b;
    int32_t max_n;
    int32_t first, end;  /* layers */
    struct forward *lower; /* the layers before them, or NULL; owned */
    struct attn_seq **lower_seqs; /* [max_n], owned by the pass above it */
    int64_t q_dim, kv_dim;
    float *x, *h;        /* [max_n][n_embd]: residual stream, normed or projected rows */
    float *q, *attn;     /* [max_n][q_dim] */
    float *k, *v;        /* [max_n][kv_dim] */
    float *gate, *up;    /* [max_n][n_ff]; without experts */
    float *router;       /* [max_n][n_experts]; this and the next two with experts */
    float *share;        /* [max_n][n_experts_used] */
    int32_t *expert;     /* [max_n][n_experts_used] */
    void *block;         /* owns all of these; the backend's memory */
    int32_t *ids;        /* [max_n] and logits [LOGIT_ROWS][n_vocab]: only where memory is not the host's */
    float *logits;
    struct recording *step[STEP_PARTS]; /* the decode step of these n_keys sequences, or NULL */
    uint64_t *step_keys, step_generation; /* [max_n] */
    int32_t n_keys;
    int64_t clock_ns;    /* when the last op ended */
    int64_t ns[N_OPS], calls[N_OPS];
};

static void forward_layout(struct forward *f, struct arena *a, const struct model_config *c, int32_t max_n)
{
    const size_t n = (size_t)max_n, q = (size_t)c->n_heads * (size_t)c->head_dim, kv = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    f->x = sr_arena_take(a, n * (size_t)c->n_embd, sizeof(float));
    f->h = sr_arena_take(a, n * (size_t)c->n_embd, sizeof(float));
    f->q = sr_arena_take(a, n * q, sizeof(float));
    f->attn = sr_arena_take(a, n * q, sizeof(float));
    f->k = sr_arena_take(a, n * kv, sizeof(float));
    f->v = sr_arena_take(a, n * kv, sizeof(float));
    const size_t ff = c->n_experts ? 0 : (size_t)c->n_ff;
    f->gate = sr_arena_take(a, n * ff, sizeof(float));
    f->up = sr_arena_take(a, n * ff, sizeof(float));
    f->router = sr_arena_take(a, n * (size_t)c->n_experts, sizeof(float));
    f->share = sr_arena_take(a, n * (size_t)c->n_experts_used, sizeof(float));
    f->expert = sr_arena_take(a, n * (size_t)c->n_experts_used, sizeof(int32_t));
    if (!f->b || !f->b->has_own_memory) return;
    f->ids = sr_arena_take(a, n, sizeof(int32_t));
    f->logits = sr_arena_take(a, (size_t)LOGIT_ROWS * (size_t)c->n_vocab, sizeof(float));
}

size_t sr_forward_bytes(const struct model_config *c, struct backend *b, int32_t max_n)
{
    struct forward f = {.b = b};
    struct arena a = {0};
    forward_layout(&f, &a, c, max_n);
    return a.used;
}

static int64_t max3(int64_t a, int64_t b, int64_t c) { return a > b ? (a > c ? a : c) : (b > c ? b : c); }

static sr_status new_part(struct forward **out, const struct model_config *c, const struct model_weights *w, struct backend *b,
                          int32_t max_n, sr_error *err)
{
    assert(max_n > 0);
    const size_t bytes = sr_forward_bytes(c, b, max_n);
    struct forward *f = sr_alloc_zero(1, sizeof(*f));
    if (!f) return sr_fail_memory(err, sizeof(*f), "forward pass");
    *f = (struct forward){.c = c, .w = w, .b = b, .max_n = max_n, .q_dim = (int64_t)c->n_heads * c->head_dim,
                          .kv_dim = (int64_t)c->n_kv_heads * c->head_dim, .end = c->n_layers};
    sr_status st;
    SR_TRY_GOTO(b->ops->mem_new(b, &f->block, bytes, "forward pass", err));
    struct arena a = {.base = f->block};
    forward_layout(f, &a, c, max_n);
    const int64_t widest = max3(c->n_embd, c->n_ff, f->q_dim);
    SR_TRY_GOTO(b->ops->matmul_reserve(b, max_n, widest, max3(widest, c->n_vocab, 0), err));
    if (b->has_own_memory && !(f->step_keys = sr_alloc((size_t)max_n * sizeof(*f->step_keys)))) {
        st = sr_fail_memory(err, (size_t)max_n * sizeof(*f->step_keys), "forward pass");
        goto fail;
    }
    const struct moe_shape moe = {.max_n = max_n, .n_used = c->n_experts_used, .n_experts = c->n_experts, .n_embd = c->n_embd,
                                  .n_ff = c->n_ff};
    if (c->n_experts) SR_TRY_GOTO(b->ops->moe_reserve(b, &moe, err));
    *out = f;
    return SR_OK;
fail:
    sr_forward_free(f);
    return st;
}

sr_status sr_forward_new(struct forward **out, const struct model_config *c, const struct model_weights *w, struct backend *b,
                         int32_t max_n, sr_error *err)
{
    struct forward *f;
    sr_status st;
    SR_TRY(new_part(&f, c, w, b, max_n, err));
    if (w->n_lower) {
        f->first = w->n_lower;
        f->lower_seqs = sr_alloc((size_t)max_n * sizeof(*f->lower_seqs));
        if (!f->lower_seqs) {
            st = sr_fail_memory(err, (size_t)max_n * sizeof(*f->lower_seqs), "forward pass");
            goto fail;
        }
        SR_TRY_GOTO(new_part(&f->lower, c, w, w->lower, max_n, err));
        f->lower->end = w->n_lower;
    }
    *out = f;
    return SR_OK;
fail:
    sr_forward_free(f);
    return st;
}

static void drop_step(struct forward *f)
{
    for (int i = 0; i < STEP_PARTS; i++) {
        if (f->step[i]) f->b->ops->record_free(f->b, f->step[i]);
        f->step[i] = NULL;
    }
}

void sr_forward_free(struct forward *f)
{
    if (!f) return;
    sr_forward_free(f->lower);
    sr_free(f->lower_seqs);
    drop_step(f);
    sr_free(f->step_keys);
    f->b->ops->mem_free(f->b, f->block);
    sr_free(f);
}

/* ---- profile ---- */

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The time since the last op ended belongs to this one. */
static void lap(struct forward *f, enum op op)
{
    const int64_t t = now_ns();
    f->ns[op] += t - f->clock_ns;
    f->calls[op]++;
    f->clock_ns = t;
}

const char *sr_forward_profile(const struct forward *f, int32_t i, double *ms, int64_t *calls)
{
    if (i < 0 || i >= N_OPS) return NULL;
    *ms = (double)(f->ns[i] + (f->lower ? f->lower->ns[i] : 0)) * 1e-6;
    *calls = f->calls[i] + (f->lower ? f->lower->calls[i] : 0);
    return op_names[i];
}

void sr_forward_profile_reset(struct forward *f)
{
    for (int i = 0; i < N_OPS; i++) f->ns[i] = f->calls[i] = 0;
    if (f->lower) sr_forward_profile_reset(f->lower);
}

/* ---- the parts of a layer; n rows of the buffers, from the first ---- */

static void norm(struct forward *f, const float *x, const float *w, int32_t n)
{
    f->b->ops->norm(f->b, &(struct norm_args){.x = x, .y = f->h, .w = w, .d = f->c->n_embd, .n = n, .heads = 1,
                                              .eps = f->c->norm_eps});
    lap(f, OP_NORM);
}

static void norm_heads(struct forward *f, float *x, const float *w, int32_t heads, int32_t n)
{
    if (!w) return;
    f->b->ops->norm(f->b, &(struct norm_args){.x = x, .y = x, .w = w, .d = f->c->head_dim, .n = n, .heads = heads,
                                              .eps = f->c->norm_eps});
    lap(f, OP_NORM);
}

static void qkv(struct forward *f, const struct layer_weights *y, int32_t n)
{
    f->b->ops->matmul(f->b, &(struct matmul_args){
        .n_weights = 3, .w = {&y->q, &y->k, &y->v}, .bias = {y->q_bias, y->k_bias, y->v_bias}, .y = {f->q, f->k, f->v},
        .y_stride = {f->q_dim, f->kv_dim, f->kv_dim}, .x = f->h, .x_stride = f->c->n_embd, .n = n});
    lap(f, OP_QKV);
    norm_heads(f, f->q, y->q_norm, f->c->n_heads, n);
    norm_heads(f, f->k, y->k_norm, f->c->n_kv_heads, n);
}

/* Rotates rows [row, row + n), the first of them at position pos0, and plus *pos where that is given. */
static void rotate(struct forward *f, int64_t row, int32_t n, int64_t pos0, const int32_t *pos)
{
    const struct model_config *c = f->c;
    const struct rope_args a = {.x = f->q + row * f->q_dim, .spec = &c->rope, .stride = f->q_dim, .n = n, .heads = c->n_heads,
                          .head_dim = c->head_dim, .pos0 = pos0, .pos = pos, .x2 = f->k + row * f->kv_dim, .stride2 = f->kv_dim,
                          .heads2 = c->n_kv_heads};
    f->b->ops->rope(f->b, &a);
}

/* y = W x for n rows; n_embd, q_dim or n_ff wide. */
static void project(struct forward *f, const struct weight *w, const float *x, float *y, int32_t n)
{
    f->b->ops->matmul(f->b, &(struct matmul_args){.n_weights = 1, .w = {w}, .y = {y}, .y_stride = {w->n_out}, .x = x,
                                                  .x_stride = w->n_in, .n = n});
}

/* x += h, then h = norm(x): the end of one half of a layer and the beginning of the next. Without w the addition alone. */
static void add_norm(struct forward *f, float *x, const float *w, int32_t n)
{
    const int64_t d = f->c->n_embd;
    if (!w) f->b->ops->add(f->b, &(struct add_args){.x = x, .y = f->h, .d = d, .n = n});
    else f->b->ops->add_norm(f->b, &(struct add_args){.x = x, .y = f->h, .d = d, .n = n},
                        &(struct norm_args){.x = x, .y = f->h, .w = w, .d = d, .n = n, .heads = 1, .eps = f->c->norm_eps});
    lap(f, OP_ADD);
}

/* h = feed-forward of h, n rows. */
static void feed_forward(struct forward *f, const struct layer_weights *y, int32_t n)
{
    const int64_t d = f->c->n_embd, ff = f->c->n_ff;
    f->b->ops->matmul(f->b, &(struct matmul_args){.n_weights = 2, .w = {&y->gate, &y->up}, .y = {f->gate, f->up},
                                                  .y_stride = {ff, ff}, .x = f->h, .x_stride = d, .n = n});
    lap(f, OP_GATE_UP);
    f->b->ops->silu_mul(f->b, &(struct silu_mul_args){.gate = f->gate, .up = f->up, .h = f->gate, .d = ff, .n = n});
    lap(f, OP_SILU);
    project(f, &y->down, f->gate, f->h, n);
    lap(f, OP_DOWN);
}

/* The same by the experts that the router picks for each row. */
static void experts(struct forward *f, const struct layer_weights *y, int32_t n)
{
    const int32_t n_used = f->c->n_experts_used;
    project(f, &y->router, f->h, f->router, n);
    f->b->ops->topk(f->b, &(struct topk_args){.logits = f->router, .ids = f->expert, .weight = f->share, .n = n,
                                              .n_experts = f->c->n_experts, .n_used = n_used, .normalize = 1});
    lap(f, OP_ROUTER);
    f->b->ops->moe(f->b, &(struct moe_args){.gate = &y->gate, .up = &y->up, .down = &y->down, .x = f->h, .ids = f->expert,
                                            .weight = f->share, .y = f->h, .n = n, .n_used = n_used});
    lap(f, OP_EXPERTS);
}

/* After attention, for rows [from, from + n) of x; leaves x normed by `next` in the first n rows of h. */
static void rest_of_layer(struct forward *f, const struct layer_weights *y, int32_t from, int32_t n, const float *next)
{
    float *x = f->x + (int64_t)from * f->c->n_embd;
    project(f, &y->o, f->attn + from * f->q_dim, f->h, n);
    lap(f, OP_OUT);
    add_norm(f, x, y->ffn_norm, n);
    if (f->c->n_experts) experts(f, y, n);
    else feed_forward(f, y, n);
    add_norm(f, x, next, n);
}

/* The norm that follows layer i; after the last of a lower pass it is the other's. */
static const float *norm_after(const struct forward *f, int32_t i)
{
    if (i + 1 == f->end && f->end < f->c->n_layers) return NULL;
    return i + 1 < f->c->n_layers ? f->w->layers[i + 1].attn_norm : f->w->output_norm;
}

/* ids as the ops want them. */
static const int32_t *place_ids(struct forward *f, const int32_t *ids, int32_t n)
{
    if (!f->b->has_own_memory) return ids;
    f->b->ops->upload(f->b, f->ids, ids, (size_t)n * sizeof(*ids));
    return f->ids;
}

/* x is the lower pass's, already here, or embedded. */
static void begin(struct forward *f, const int32_t *ids, int32_t n)
{
    if (!f->lower) f->b->ops->embed(f->b, &(struct embed_args){.w = &f->w->embd, .ids = ids, .x = f->x, .n = n});
    lap(f, OP_EMBED);
    norm(f, f->x, f->w->layers[f->first].attn_norm, n);
}

static void bring_lower(struct forward *f, int32_t n)
{
    f->b->ops->upload(f->b, f->x, f->lower->x, (size_t)n * (size_t)f->c->n_embd * sizeof(float));
    f->clock_ns = now_ns();
}

/* Logits of rows [from, from + n) of h, in the backend's memory. */
static void project_logits(struct forward *f, int32_t from, int32_t n, float *logits)
{
    project(f, &f->w->output, f->h + (int64_t)from * f->c->n_embd, logits, n);
    lap(f, OP_LOGITS);
}

/* The same, to the host: in parts, since a batch of them is larger than all other buffers. */
static sr_status bring_logits(struct forward *f, int32_t n, float *logits, sr_error *err)
{
    const int64_t n_vocab = f->c->n_vocab;
    if (!f->b->has_own_memory) {
        if (n) project_logits(f, 0, n, logits);
        return SR_OK;
    }
    for (int32_t at = 0, part; at < n; at += part) {
        part = n - at < LOGIT_ROWS ? n - at : LOGIT_ROWS;
        project_logits(f, at, part, f->logits);
        SR_TRY(f->b->ops->download(f->b, logits + at * n_vocab, f->logits, (size_t)(part * n_vocab) * sizeof(float), err));
    }
    return SR_OK;
}

/* The layers of one pass; n_out: rows, the last ones, that are wanted after the last layer. */
static void prefill_layers(struct forward *f, struct attn_seq *s, const int32_t *ids, int32_t n, int32_t n_out)
{
    const int64_t pos0 = sr_attn_seq_len(s, 0);
    const int32_t last = f->c->n_layers - 1;
    f->clock_ns = now_ns();
    begin(f, f->lower ? NULL : place_ids(f, ids, n), n);
    for (int32_t i = f->first; i < f->end; i++) {
        const struct layer_weights *y = &f->w->layers[i];
        qkv(f, y, n);
        rotate(f, 0, n, pos0, NULL);
        lap(f, OP_ROPE);
        sr_attn_append(s, i - f->first, f->k, f->v, n);
        lap(f, OP_APPEND);
        sr_attn_prefill(s, i - f->first, f->q, n, f->attn);
        lap(f, OP_ATTENTION);
        /* Past the last attention only rows whose logits are wanted matter. */
        const int32_t rows = i == last ? n_out : n;
        if (rows) rest_of_layer(f, y, n - rows, rows, norm_after(f, i));
    }
}

sr_status sr_forward_prefill(struct forward *f, struct attn_seq *s, const int32_t *ids, int32_t n, int want, float *logits,
                             sr_error *err)
{
    assert(n > 0 && n <= f->max_n);
    const int32_t n_out = want == 2 ? n : want;
    if (f->lower) {
        prefill_layers(f->lower, sr_attn_seq_lower(s), ids, n, n);
        bring_lower(f, n);
    }
    prefill_layers(f, s, ids, n, n_out);
    return bring_logits(f, n_out, logits, err);
}

/* ---- decode ---- */

static sr_status attend_on_host(struct forward *f, struct attention *a, struct attn_seq *const *seqs, int32_t n_seqs, int32_t i,
                                sr_error *err)
{
    i -= f->first;
    for (int32_t s = 0; s < n_seqs; s++) rotate(f, s, 1, sr_attn_seq_len(seqs[s], i), NULL);
    lap(f, OP_ROPE);
    for (int32_t s = 0; s < n_seqs; s++) sr_attn_append(seqs[s], i, f->k + s * f->kv_dim, f->v + s * f->kv_dim, 1);
    lap(f, OP_APPEND);
    return sr_attn_decode(a, seqs, n_seqs, i, f->q, f->attn, err);
}

/* The position comes from the device, which does the rest too. */
static void attend_on_device(struct forward *f, struct attn_seq *const *seqs, int32_t n_seqs, int32_t i)
{
    for (int32_t s = 0, n; s < n_seqs; s += n) {
        n = n_seqs - s < SR_STEP_SEQS ? n_seqs - s : SR_STEP_SEQS;
        for (int32_t k = s; k < s + n; k++) rotate(f, k, 1, -1, sr_attn_step_len(seqs[k]));
        sr_attn_step(seqs + s, n, i - f->first, f->q + s * f->q_dim, f->k + s * f->kv_dim, f->v + s * f->kv_dim, f->attn + s * f->q_dim);
    }
}

/* Layers [from, to); the first one's input is made too. */
static sr_status decode_layers(struct forward *f, struct attention *a, struct attn_seq *const *seqs, const int32_t *ids,
                               int32_t n_seqs, int32_t from, int32_t to, sr_error *err)
{
    if (from == f->first) begin(f, ids, n_seqs);
    for (int32_t i = from; i < to; i++) {
        const struct layer_weights *y = &f->w->layers[i];
        qkv(f, y, n_seqs);
        if (f->b->has_own_memory) attend_on_device(f, seqs, n_seqs, i);
        else SR_TRY(attend_on_host(f, a, seqs, n_seqs, i, err));
        lap(f, OP_ATTENTION);
        rest_of_layer(f, y, 0, n_seqs, norm_after(f, i));
    }
    return SR_OK;
}

static sr_status record_part(struct forward *f, struct attention *a, struct attn_seq *const *seqs, int32_t n_seqs, int32_t from,
                             int32_t to, struct recording **out, sr_error *err)
{
    const struct backend_ops *ops = f->b->ops;
    SR_TRY(ops->record_begin(f->b, err));
    const sr_status st = decode_layers(f, a, seqs, f->ids, n_seqs, from, to, err);
    if (to == f->end && n_seqs <= LOGIT_ROWS) project_logits(f, 0, n_seqs, f->logits);
    SR_TRY(ops->record_end(f->b, out, err));
    return st;
}

/* Whether the last step was of these sequences, each with the tables and the policy that it has now. */
static int is_same_step(const struct forward *f, struct attn_seq *const *seqs, int32_t n_seqs)
{
    int same = f->n_keys == n_seqs && f->step_generation == f->b->generation;
    for (int32_t s = 0; s < n_seqs && same; s++) same = f->step_keys[s] == sr_attn_step_key(seqs[s]);
    return same;
}

/* The launches of a step are recorded, with the logits, and replayed until a sequence asks for other ones: its key changes
 * when its policy or its tables do. Handing a recording over takes the host longer the longer it is, so a step is two: while
 * the device does the first layers, the host hands over the others. */
static sr_status record_step(struct forward *f, struct attention *a, struct attn_seq *const *seqs, int32_t n_seqs, sr_error *err)
{
    const int32_t some = f->first + (f->end - f->first + 7) / 8;
    f->n_keys = 0; /* should this fail */
    SR_TRY(record_part(f, a, seqs, n_seqs, f->first, some, &f->step[0], err));
    if (some < f->end) SR_TRY(record_part(f, a, seqs, n_seqs, some, f->end, &f->step[1], err));
    f->n_keys = n_seqs;
    return SR_OK;
}

/* A step of several sequences is recorded when the same ones come again: in a batch that changes each time it would not pay. */
static sr_status launch_step(struct forward *f, struct attention *a, struct attn_seq *const *seqs, int32_t n_seqs, sr_error *err)
{
    const struct backend_ops *ops = f->b->ops;
    const int is_same = is_same_step(f, seqs, n_seqs), is_kept = is_same && f->step[0];
    if (!is_kept) drop_step(f);
    for (int32_t s = 0; s < n_seqs; s++) f->step_keys[s] = sr_attn_step_key(seqs[s]);
    f->step_generation = f->b->generation;
    f->n_keys = n_seqs;
    if (!ops->record_begin || (n_seqs > 1 && !is_same)) {
        SR_TRY(decode_layers(f, a, seqs, f->ids, n_seqs, f->first, f->end, err));
        if (n_seqs <= LOGIT_ROWS) project_logits(f, 0, n_seqs, f->logits);
        return SR_OK;
    }
    if (!is_kept) SR_TRY(record_step(f, a, seqs, n_seqs, err));
    for (int i = 0; i < STEP_PARTS; i++)
        if (f->step[i]) ops->replay(f->b, f->step[i]);
    return SR_OK;
}

/* Logits of all, each to where its own are wanted: they are many bytes to be copied once more. */
static sr_status bring_each(struct forward *f, int32_t n_seqs, float *const *logits, sr_error *err)
{
    const size_t n_vocab = (size_t)f->c->n_vocab;
    for (int32_t s = 0; s < n_seqs; s++) {
        const int32_t row = s % LOGIT_ROWS, left = n_seqs - s;
        if (n_seqs > LOGIT_ROWS && row == 0) project_logits(f, s, left < LOGIT_ROWS ? left : LOGIT_ROWS, f->logits);
        SR_TRY(f->b->ops->download(f->b, logits[s], f->logits + (size_t)row * n_vocab, n_vocab * sizeof(float), err));
    }
    return SR_OK;
}

static sr_status decode_on_device(struct forward *f, struct attention *a, struct attn_seq *const *seqs, const int32_t *ids,
                                  int32_t n_seqs, float *const *logits, sr_error *err)
{
    for (int32_t s = 0; s < n_seqs; s++) SR_TRY(sr_attn_step_begin(seqs[s], err));
    if (!f->lower) place_ids(f, ids, n_seqs);
    SR_TRY(launch_step(f, a, seqs, n_seqs, err));
    SR_TRY(bring_each(f, n_seqs, logits, err));
    for (int32_t s = 0; s < n_seqs; s++) sr_attn_step_end(seqs[s]);
    return SR_OK;
}

static sr_status decode_lower(struct forward *f, struct attention *a, struct attn_seq *const *seqs, const int32_t *ids,
                              int32_t n_seqs, sr_error *err)
{
    for (int32_t s = 0; s < n_seqs; s++) f->lower_seqs[s] = sr_attn_seq_lower(seqs[s]);
    f->lower->clock_ns = now_ns();
    SR_TRY(decode_layers(f->lower, sr_attn_lower(a), f->lower_seqs, ids, n_seqs, f->lower->first, f->lower->end, err));
    bring_lower(f, n_seqs);
    return SR_OK;
}

sr_status sr_forward_decode(struct forward *f, struct attention *a, struct attn_seq *const *seqs, const int32_t *ids,
                            int32_t n_seqs, float *const *logits, sr_error *err)
{
    assert(n_seqs > 0 && n_seqs <= f->max_n);
    f->clock_ns = now_ns();
    if (f->lower) SR_TRY(decode_lower(f, a, seqs, ids, n_seqs, err));
    if (f->b->has_own_memory) return decode_on_device(f, a, seqs, ids, n_seqs, logits, err);
    SR_TRY(decode_layers(f, a, seqs, ids, n_seqs, f->first, f->end, err));
    assert(logits[n_seqs - 1] == logits[0] + (int64_t)(n_seqs - 1) * f->c->n_vocab);
    project_logits(f, 0, n_seqs, logits[0]);
    return SR_OK;
}
