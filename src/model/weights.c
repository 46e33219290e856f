/* SPDX-License-Identifier: Apache-2.0
 *
 * Finds and checks tensors. Every name that a config needs is asked for once, through `take`; what is missing is
 * collected so that one message lists it, and what nobody asked for is reported as a warning.
 */
#include "model/weights.h"

#include "base/memory.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PER_LAYER = 15 };

/* A file being taken apart. */
struct loader {
    const struct gguf *g;
    const struct model_config *c;
    struct model_weights *w;
    struct backend *backend;
    const struct weights_options *o;
    sr_error *err;
    const struct gguf_tensor **used; /* tensors asked for and found */
    int64_t n_used, n_missing;
    char missing[160];
};

static void note_missing(struct loader *l, const char *name)
{
    const size_t at = strlen(l->missing), left = sizeof(l->missing) - at;
    if (strlen(name) + 2 < left) snprintf(l->missing + at, left, "%s%s", at ? ", " : "", name);
    l->n_missing++;
}

static sr_status reject_shape(struct loader *l, const struct gguf_tensor *t, const char *name, const int64_t want[3])
{
    char experts[32] = "";
    if (want[2]) snprintf(experts, sizeof(experts), ", %lld", (long long)want[2]);
    return sr_gguf_reject(l->g, l->err, "%s: shape [%lld, %lld, %lld, %lld], want [%lld, %lld%s]", name, (long long)t->ne[0],
                          (long long)t->ne[1], (long long)t->ne[2], (long long)t->ne[3], (long long)want[0],
                          (long long)(want[1] ? want[1] : 1), experts);
}

/* want: n_in, n_out or 0 for a vector, experts or 0. NULL with SR_OK where the tensor is absent; a required one is then noted. */
static sr_status take(struct loader *l, const char *name, int required, const int64_t want[3],
                      const struct gguf_tensor **out)
{
    const struct gguf_tensor *t = sr_gguf_find_tensor(l->g, name);
    *out = t;
    if (!t) {
        if (required) note_missing(l, name);
        return SR_OK;
    }
    const int64_t rows = want[1] ? want[1] : 1, matrices = want[2] ? want[2] : 1;
    if (t->ne[0] != want[0] || t->ne[1] != rows || t->ne[2] != matrices || t->ne[3] != 1)
        return reject_shape(l, t, name, want);
    if (!want[1]) SR_TRY(sr_gguf_check_tensor(l->g, t, l->err));
    assert(l->n_used < 8 + (int64_t)PER_LAYER * l->c->n_layers);
    l->used[l->n_used++] = t;
    return SR_OK;
}

/* ---- vectors: always owned floats, a few hundred KiB in all ---- */

static sr_status take_vector(struct loader *l, const struct backend *backend, const char *name, int required, int64_t n,
                             const float **out)
{
    const struct gguf_tensor *t;
    *out = NULL;
    SR_TRY(take(l, name, required, (const int64_t[3]){n}, &t));
    if (!t) return SR_OK;
    struct model_weights *w = l->w;
    assert(w->used_floats + (size_t)n <= w->n_floats);
    float *dst = w->floats + w->used_floats;
    sr_dequantize_row(t->dtype, t->data, dst, n);
    w->used_floats += ((size_t)n + 15) / 16 * 16;
    *out = w->placed_floats && backend == l->backend ? w->placed_floats + (dst - w->floats) : dst;
    return SR_OK;
}

static size_t count_floats(const struct model_config *c)
{
    const size_t pad = 16, d = (size_t)c->n_embd + pad, h = (size_t)c->head_dim + pad;
    const size_t q = (size_t)c->n_heads * (size_t)c->head_dim + pad, kv = (size_t)c->n_kv_heads * (size_t)c->head_dim + pad;
    return d + (size_t)c->n_layers * (2 * d + 2 * h + q + 2 * kv);
}

/* ---- matrices ---- */

static void set_weight(struct loader *l, const struct backend *b, struct weight *w, const struct gguf_tensor *t)
{
    *w = (struct weight){.data = t->data, .dtype = t->dtype, .n_in = t->ne[0], .n_out = t->ne[1],
                         .row_bytes = sr_row_bytes(t->dtype, t->ne[0])};
    w->experts = t->pieces;
    if (!l->w->copy || t->owned || b->has_own_memory) return;
    uint8_t *dst = l->w->copy + l->w->used_copy;
    assert(l->w->used_copy + t->bytes <= l->w->copy_bytes);
    const size_t piece = t->pieces ? t->bytes / (size_t)t->ne[2] : t->bytes;
    for (int64_t k = 0; k < (t->pieces ? t->ne[2] : 1); k++) memcpy(dst + (size_t)k * piece, t->pieces ? t->pieces[k] : t->data, piece);
    w->experts = NULL;
    l->w->used_copy += (t->bytes + 63) / 64 * 64;
    w->data = dst;
}

/* What a device has no kernel for is told by name, and where there is one. */
static sr_status prepare(struct loader *l, struct backend *b, const char *name, struct weight *w)
{
    sr_error why;
    const sr_status st = b->ops->weight_prepare(b, w, &why);
    if (st == SR_ERR_UNSUPPORTED && b->has_own_memory)
        return sr_fail(l->err, st, "%s: %s; --device none computes with it on the CPU", name, why.text);
    return st == SR_OK ? st : sr_fail(l->err, st, "%s", why.text);
}

/* shape: n_in, n_out, number of experts or 0. */
static sr_status take_matrix(struct loader *l, struct backend *b, const char *name, int required, const int64_t shape[3],
                             struct weight *w)
{
    const struct gguf_tensor *t;
    SR_TRY(take(l, name, required, shape, &t));
    if (!t) return SR_OK;
    set_weight(l, b, w, t);
    w->n_experts = (int32_t)shape[2];
    return prepare(l, b, name, w);
}

/* Whose layer i is. */
static struct backend *backend_of(const struct model_weights *w, struct backend *upper, int32_t i)
{
    return i < w->n_lower ? w->lower : upper;
}

static sr_status take_layer(struct loader *l, int32_t i)
{
    const struct model_config *c = l->c;
    struct layer_weights *y = &l->w->layers[i];
    struct backend *b = backend_of(l->w, l->backend, i);
    const int64_t d = c->n_embd, f = c->n_ff, q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    const int64_t e = c->n_experts;
    const struct { const char *name; int64_t shape[3]; struct weight *w; } matrices[] = {
        {"attn_q", {d, q}, &y->q},
        {"attn_k", {d, kv}, &y->k},
        {"attn_v", {d, kv}, &y->v},
        {"attn_output", {q, d}, &y->o},
        {e ? "ffn_gate_exps" : "ffn_gate", {d, f, e}, &y->gate},
        {e ? "ffn_up_exps" : "ffn_up", {d, f, e}, &y->up},
        {e ? "ffn_down_exps" : "ffn_down", {f, d, e}, &y->down},
        {"ffn_gate_inp", {d, e}, &y->router}};
    const struct { const char *name; int required; int64_t n; const float **v; } vectors[] = {
        {"attn_norm.weight", 1, d, &y->attn_norm},
        {"ffn_norm.weight", 1, d, &y->ffn_norm},
        {"attn_q.bias", c->qkv_bias, q, &y->q_bias},
        {"attn_k.bias", c->qkv_bias, kv, &y->k_bias},
        {"attn_v.bias", c->qkv_bias, kv, &y->v_bias},
        {"attn_q_norm.weight", c->qk_norm, c->qk_norm ? c->head_dim : 0, &y->q_norm},
        {"attn_k_norm.weight", c->qk_norm, c->qk_norm ? c->head_dim : 0, &y->k_norm}};
    char name[64];
    for (size_t k = 0; k < sizeof(matrices) / sizeof(matrices[0]); k++) {
        if (matrices[k].shape[1] == 0) continue; /* no experts, no router */
        snprintf(name, sizeof(name), "blk.%d.%s.weight", i, matrices[k].name);
        SR_TRY(take_matrix(l, b, name, 1, matrices[k].shape, matrices[k].w));
    }
    for (size_t k = 0; k < sizeof(vectors) / sizeof(vectors[0]); k++) {
        *vectors[k].v = NULL;
        if (vectors[k].n == 0) continue; /* not of this family */
        snprintf(name, sizeof(name), "blk.%d.%s", i, vectors[k].name);
        SR_TRY(take_vector(l, b, name, vectors[k].required, vectors[k].n, vectors[k].v));
    }
    if (l->o->progress && l->o->progress(l->o->user, "load", (i + 1.0) / c->n_layers))
        return sr_fail(l->err, SR_ERR_USAGE, "loading was cancelled");
    return SR_OK;
}

static sr_status take_all(struct loader *l)
{
    const struct model_config *c = l->c;
    struct model_weights *w = l->w;
    const int64_t shape[3] = {c->n_embd, c->n_vocab};
    SR_TRY(take_matrix(l, backend_of(w, l->backend, 0), "token_embd.weight", 1, shape, &w->embd));
    SR_TRY(take_vector(l, l->backend, "output_norm.weight", 1, c->n_embd, &w->output_norm));
    SR_TRY(take_matrix(l, l->backend, "output.weight", 0, shape, &w->output));
    if (!w->output.data && w->n_lower && w->embd.data) { /* tied, but the two are on different devices */
        w->output = w->embd;
        w->output.packed = NULL;
        SR_TRY(prepare(l, l->backend, "token_embd.weight", &w->output));
    }
    w->tied = w->output.data == NULL;
    if (w->tied) w->output = w->embd;
    for (int32_t i = 0; i < c->n_layers; i++) SR_TRY(take_layer(l, i));
    const struct gguf_tensor *freqs = sr_gguf_find_tensor(l->g, "rope_freqs.weight"); /* config.c has read it */
    if (freqs) l->used[l->n_used++] = freqs;
    return SR_OK;
}

/* ---- what is missing, what is left over ---- */

static sr_status report_missing(struct loader *l)
{
    if (l->n_missing == 0) return SR_OK;
    static const char *const fused[] = {"blk.0.attn_qkv.weight", "blk.0.ffn_gate_up.weight", "blk.0.ffn_gate_up_exps.weight"};
    for (size_t i = 0; i < sizeof(fused) / sizeof(fused[0]); i++)
        if (sr_gguf_find_tensor(l->g, fused[i]))
            return sr_fail(l->err, SR_ERR_UNSUPPORTED, "%s: matrices fused into one are not supported; missing: %s", fused[i],
                           l->missing);
    static const char apart[] = "blk.0.ffn_gate.0.weight"; /* files of before April 2024 */
    if (sr_gguf_find_tensor(l->g, apart))
        return sr_fail(l->err, SR_ERR_UNSUPPORTED, "%s: experts in tensors of their own are not supported: the file is to be converted anew", apart);
    return sr_gguf_reject(l->g, l->err, "%lld tensors are missing: %s", (long long)l->n_missing, l->missing);
}

static int is_used(const struct loader *l, const struct gguf_tensor *t)
{
    for (int64_t i = 0; i < l->n_used; i++)
        if (l->used[i] == t) return 1;
    return 0;
}

static int starts_with(struct gguf_str s, const char *text) { return s.bytes >= strlen(text) && memcmp(s.data, text, strlen(text)) == 0; }

static int ends_with(struct gguf_str s, const char *text)
{
    const size_t n = strlen(text);
    return s.bytes >= n && memcmp(s.data + s.bytes - n, text, n) == 0;
}

/* A tensor whose name says that it is part of a layer or of the output changes the result; old converters' tables of
 * frequencies do not. */
static int matters(struct gguf_str name)
{
    static const char *const parts[] = {"blk.", "output.", "output_norm.", "token_embd", "position_embd", "token_types", "cls"};
    if (ends_with(name, "attn_rot_embd.weight") || ends_with(name, "rotary_emb.inv_freq")) return 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (starts_with(name, parts[i])) return 1;
    return 0;
}

/* Tensors that nobody asked for: those that would matter are refused, the rest is one warning. */
static sr_status report_extra(const struct loader *l)
{
    const int64_t n = sr_gguf_n_tensors(l->g);
    const struct gguf_tensor *first = NULL;
    char name[80];
    if (n == l->n_used) return SR_OK;
    for (int64_t i = 0; i < n; i++) {
        const struct gguf_tensor *t = sr_gguf_tensor(l->g, i);
        if (is_used(l, t)) continue;
        if (!first) first = t;
        if (matters(t->name))
            return sr_fail(l->err, SR_ERR_UNSUPPORTED, "%s: not a tensor of a %s model as it is computed here",
                           sr_escape(name, sizeof(name), t->name.data, t->name.bytes), l->c->architecture);
    }
    sr_log(SR_LOG_WARN, "%s: %lld tensors are not used, the first is %s", sr_gguf_path(l->g), (long long)(n - l->n_used),
           sr_escape(name, sizeof(name), first->name.data, first->name.bytes));
    return SR_OK;
}

/* ---- memory ---- */

/* Whether a tensor lies with the lower layers. */
static int is_lower(const struct gguf_tensor *t, int32_t n_lower)
{
    char name[64];
    int layer;
    if (n_lower == 0) return 0;
    if (starts_with(t->name, "token_embd.")) return 1;
    snprintf(name, sizeof(name), "%.*s", (int)(t->name.bytes < 60 ? t->name.bytes : 60), t->name.data);
    return sscanf(name, "blk.%9d.", &layer) == 1 && layer < n_lower;
}

uint64_t sr_weights_upper_bytes(const struct gguf *g, const struct model_config *c, int32_t n_lower)
{
    const struct gguf_tensor *embd = sr_gguf_find_tensor(g, "token_embd.weight");
    uint64_t bytes = n_lower && embd && !sr_gguf_find_tensor(g, "output.weight") ? embd->bytes : 0;
    for (int64_t i = 0; i < sr_gguf_n_tensors(g); i++)
        if (!is_lower(sr_gguf_tensor(g, i), n_lower)) bytes += sr_gguf_tensor(g, i)->bytes;
    return bytes + count_floats(c) * sizeof(float);
}

/* Room for copies of all tensors that are used in the host's memory. */
static sr_status reserve_copy(struct loader *l)
{
    size_t need = 0;
    for (int64_t i = 0; i < sr_gguf_n_tensors(l->g); i++) {
        const struct gguf_tensor *t = sr_gguf_tensor(l->g, i);
        if (!t->owned && (!l->backend->has_own_memory || is_lower(t, l->w->n_lower))) need += (t->bytes + 63) / 64 * 64;
    }
    const uint64_t have = sr_memory_available();
    if (need > have)
        return sr_fail(l->err, SR_ERR_RESOURCE, "%s: weights in memory need %zu bytes, %llu available", sr_gguf_path(l->g),
                       need, (unsigned long long)have);
    l->w->copy = sr_region_map(need);
    if (!l->w->copy) return sr_fail_memory(l->err, need, "weights");
    l->w->copy_bytes = need;
    return SR_OK;
}

/* Whether the matrices will fit, before the first of them is sent; and the place of the vectors. */
static sr_status reserve_device(struct loader *l)
{
    const int32_t n_layers = l->c->n_layers, n_lower = l->w->n_lower;
    const uint64_t have = l->backend->ops->mem_available(l->backend), need = sr_weights_upper_bytes(l->g, l->c, n_lower);
    int32_t fits = n_lower + 1;
    if (need > have) {
        while (fits < n_layers && sr_weights_upper_bytes(l->g, l->c, fits) > have) fits++;
        return sr_fail(l->err, SR_ERR_RESOURCE,
                       "%s: the weights of %d layers need %llu bytes of device memory, %llu free: %llu are missing; -ngl %d fits", sr_gguf_path(l->g),
                       n_layers - n_lower, (unsigned long long)need, (unsigned long long)have, (unsigned long long)(need - have), n_layers - fits);
    }
    return l->backend->ops->mem_new(l->backend, (void **)&l->w->placed_floats, l->w->n_floats * sizeof(float), "weights", l->err);
}

static void lock_range(const void *p, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)p / page * page;
    static int said;
    if (mlock((const void *)from, (uintptr_t)p + bytes - from) && !said) {
        said = 1;
        sr_log(SR_LOG_WARN, "weights are not locked in memory: %s", strerror(errno));
    }
}

static void lock_all(const struct loader *l)
{
    if (l->w->copy) lock_range(l->w->copy, l->w->used_copy);
    if (l->w->copy) return;
    for (int64_t i = 0; i < l->n_used; i++) {
        const struct gguf_tensor *t = l->used[i];
        if (!t->pieces) lock_range(t->data, t->bytes);
        for (int64_t k = 0; t->pieces && k < t->ne[2]; k++) lock_range(t->pieces[k], t->bytes / (size_t)t->ne[2]);
    }
}

sr_status sr_weights_check(const struct gguf *g, const struct weights_options *o, sr_error *err)
{
    const int64_t n = sr_gguf_n_tensors(g);
    for (int64_t i = 0; i < n; i++) {
        SR_TRY(sr_gguf_check_tensor(g, sr_gguf_tensor(g, i), err));
        if (o->progress && o->progress(o->user, "check", (double)(i + 1) / (double)n))
            return sr_fail(err, SR_ERR_USAGE, "loading was cancelled");
    }
    return SR_OK;
}

sr_status sr_weights_load(struct model_weights *out, const struct gguf *g, const struct model_config *c, struct backend *b,
                          const struct weights_options *o, sr_error *err)
{
    struct model_weights w = {.n_layers = c->n_layers, .n_lower = o->n_lower, .lower = o->lower, .n_floats = count_floats(c)};
    struct loader l = {.g = g, .c = c, .w = &w, .backend = b, .o = o, .err = err};
    const size_t n_used = 8 + (size_t)PER_LAYER * (size_t)c->n_layers;
    sr_status st = SR_ERR_RESOURCE;
    w.layers = sr_alloc_zero((size_t)c->n_layers, sizeof(*w.layers));
    w.floats = sr_alloc(w.n_floats * sizeof(float));
    l.used = sr_alloc(n_used * sizeof(*l.used));
    if (!w.layers || !w.floats || !l.used) {
        sr_fail_memory(err, w.n_floats * sizeof(float), "tensor tables");
        goto fail;
    }
    if (o->check) SR_TRY_GOTO(sr_weights_check(g, o, err));
    if (b->has_own_memory) SR_TRY_GOTO(reserve_device(&l));
    if (o->copy && (o->n_lower || !b->has_own_memory)) SR_TRY_GOTO(reserve_copy(&l));
    SR_TRY_GOTO(take_all(&l));
    if (w.placed_floats) b->ops->upload(b, w.placed_floats, w.floats, w.n_floats * sizeof(float));
    SR_TRY_GOTO(report_missing(&l));
    SR_TRY_GOTO(report_extra(&l));
    if (o->lock) lock_all(&l);
    sr_free(l.used);
    *out = w;
    return SR_OK;
fail:
    sr_free(l.used);
    sr_weights_free(&w, b);
    return st;
}

static void release(struct backend *b, struct weight *w)
{
    if (w->data) b->ops->weight_release(b, w);
    w->data = NULL;
}

void sr_weights_free(struct model_weights *w, struct backend *b)
{
    for (int32_t i = 0; w->layers && i < w->n_layers; i++) {
        struct layer_weights *y = &w->layers[i];
        struct weight *all[] = {&y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down, &y->router};
        for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) release(backend_of(w, b, i), all[k]);
    }
    if (!w->tied) release(b, &w->output);
    release(backend_of(w, b, 0), &w->embd);
    b->ops->mem_free(b, w->placed_floats);
    sr_free(w->layers);
    sr_free(w->floats);
    sr_region_unmap(w->copy, w->copy_bytes);
    *w = (struct model_weights){0};
}
