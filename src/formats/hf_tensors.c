/* SPDX-License-Identifier: Apache-2.0
 *
 * Names of tensors to those of GGUF, shapes with the contiguous dimension first. Data stays where it lies. Experts, a
 * tensor each in most files, become the one tensor of GGUF as a list of pieces. A tensor inside a layer that is not
 * known would change the result and is refused; what lies outside of the layers is left out with a warning.
 */
#include "formats/hf_shards.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

static const struct { const char *theirs, *ours; } layer_names[] = {
    {"input_layernorm.weight", "attn_norm.weight"},   {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},     {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},     {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},         {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.bias", "attn_v.bias"},         {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"}, {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},          {"mlp.down_proj.weight", "ffn_down.weight"},
    {"mlp.gate.weight", "ffn_gate_inp.weight"},       {"mlp.experts.down_proj", "ffn_down_exps.weight"},
    {"block_sparse_moe.gate.weight", "ffn_gate_inp.weight"}};

static const struct { const char *theirs, *ours; } other_names[] = {
    {"model.embed_tokens.weight", "token_embd.weight"}, {"model.norm.weight", "output_norm.weight"}, {"lm_head.weight", "output.weight"}};

struct hf_reader {
    struct hf *h;
    struct hf_shards s;
    int64_t n_left_out;
    const struct st_tensor *left_out; /* the first */
};

static sr_status reject(const struct hf_reader *r, const struct st_tensor *t, const char *what)
{
    char path[GGUF_SHOWN_PATH_BYTES], name[GGUF_SHOWN_NAME_BYTES];
    return sr_fail(r->h->err, SR_ERR_FORMAT, "%s: offset %zu: tensor %s: %s", sr_gguf_shown_path(path, sr_gguf_file_of(r->h->g, t->part)->path),
                   t->file_offset, sr_gguf_shown_name(name, t->name), what);
}

static sr_status unsupported(const struct hf_reader *r, const struct st_tensor *t, const char *what)
{
    char path[GGUF_SHOWN_PATH_BYTES], name[GGUF_SHOWN_NAME_BYTES];
    return sr_fail(r->h->err, SR_ERR_UNSUPPORTED, "%s: tensor %s: %s", sr_gguf_shown_path(path, sr_gguf_file_of(r->h->g, t->part)->path),
                   sr_gguf_shown_name(name, t->name), what);
}

/* ---- one tensor ---- */

/* The element type, shape and place of t; its name and further pieces are the caller's. */
static sr_status describe(const struct hf_reader *r, const struct st_tensor *t, struct gguf_tensor *out)
{
    char text[80];
    const int dtype = sr_st_dtype_find(t->dtype);
    if (dtype < 0) {
        snprintf(text, sizeof(text), "dtype %s is not supported, only BF16, F16 and F32", t->dtype);
        return unsupported(r, t, text);
    }
    if (t->n_dims < 1 || t->n_dims > 3 || t->n_elems == 0) return reject(r, t, "want 1 to 3 dimensions, none of them 0");
    *out = (struct gguf_tensor){.dtype = (sr_dtype)dtype, .n_dims = t->n_dims, .ne = {1, 1, 1, 1}, .data = t->data,
                                .bytes = t->bytes, .part = t->part, .file_offset = t->file_offset};
    for (int32_t i = 0; i < t->n_dims; i++) out->ne[i] = t->shape[t->n_dims - 1 - i];
    return SR_OK;
}

/* GGUF has the rows of Q and K of the llama family so that the pairs that are rotated together are neighbours; here the
 * two of a pair are half a head apart. */
static int is_reordered(const struct hf_reader *r, const char *name)
{
    const char *rest = strrchr(name, '_');
    return strcmp(r->h->arch, "llama") == 0 && rest && strstr(name, ".attn_") && (strncmp(rest, "_q.", 3) == 0 || strncmp(rest, "_k.", 3) == 0);
}

static sr_status add(struct hf_reader *r, struct st_tensor *t, const char *name)
{
    struct gguf_tensor g;
    SR_TRY(describe(r, t, &g));
    g.name = (struct gguf_str){name, strlen(name)};
    t->used = 1;
    if (!is_reordered(r, name)) return sr_source_add_tensor(r->h->g, &g, r->h->err);
    if (g.n_dims != 2) return unsupported(r, t, "biases are not supported for this family");
    if (r->h->head_dim % 2 || g.ne[1] % r->h->head_dim) return reject(r, t, "its rows are no whole heads of an even size");
    const uint8_t **piece = sr_alloc(sizeof(*piece));
    if (!piece) return sr_fail_memory(r->h->err, sizeof(*piece), "a tensor");
    *piece = t->data;
    return sr_source_add_pieces(r->h->g, &g, piece, r->h->head_dim, r->h->err);
}

/* "model.layers.<i>.<rest>": the number in *layer, 0 where the name is not of that form. */
static const char *rest_of_layer(struct gguf_str name, int32_t *layer)
{
    static const char begin[] = "model.layers.";
    const size_t n = sizeof(begin) - 1;
    size_t at = n;
    *layer = 0;
    if (name.bytes <= n || memcmp(name.data, begin, n) != 0) return NULL;
    while (at < name.bytes && name.data[at] >= '0' && name.data[at] <= '9' && *layer < 100000) *layer = *layer * 10 + (name.data[at++] - '0');
    if (at == n || at - n > 5 || at >= name.bytes || name.data[at] != '.' || (name.data[n] == '0' && at - n > 1)) return NULL;
    return name.data + at + 1; /* names from JSON are terminated */
}

static int ends_with(struct gguf_str name, const char *end)
{
    const size_t n = strlen(end);
    return name.bytes >= n && memcmp(name.data + name.bytes - n, end, n) == 0;
}

/* Whether the rest of a name in a layer is that of an expert's tensor. */
static int is_experts(const struct hf_reader *r, const char *rest)
{
    const char *in = r->h->experts_in ? r->h->experts_in : "mlp.experts.";
    return rest && strncmp(rest, in, strlen(in)) == 0;
}

static sr_status take(struct hf_reader *r, struct st_tensor *t)
{
    char name[64];
    int32_t layer;
    const char *rest = rest_of_layer(t->name, &layer);
    for (size_t i = 0; !rest && i < sizeof(other_names) / sizeof(other_names[0]); i++) {
        if (strcmp(other_names[i].theirs, t->name.data) != 0) continue;
        if (i == 2 && r->h->tied) return SR_OK; /* a copy of the embedding table that the config says is not used */
        return add(r, t, other_names[i].ours);
    }
    for (size_t i = 0; rest && i < sizeof(layer_names) / sizeof(layer_names[0]); i++) {
        if (strcmp(layer_names[i].theirs, rest) != 0) continue;
        snprintf(name, sizeof(name), "blk.%d.%s", layer, layer_names[i].ours);
        return add(r, t, name);
    }
    if (ends_with(t->name, "rotary_emb.inv_freq")) return SR_OK;
    if (is_experts(r, rest)) return SR_OK; /* gathered afterwards */
    if (rest && layer < r->h->n_layers) return unsupported(r, t, "not known here, and it would change the result");
    if (!r->n_left_out++) r->left_out = t;
    return SR_OK;
}

/* ---- experts ---- */

/* Adds blk.<layer>.<name> of n pieces whose data is given; each has the shape of `one`. */
static sr_status add_gathered(struct hf_reader *r, struct gguf_tensor one, int32_t layer, const char *name, const uint8_t **pieces)
{
    char full[64];
    snprintf(full, sizeof(full), "blk.%d.%s", layer, name);
    one.name = (struct gguf_str){full, strlen(full)};
    one.n_dims = 3;
    one.ne[2] = r->h->n_experts;
    if (__builtin_mul_overflow(sr_row_bytes(one.dtype, one.ne[0]) * (size_t)one.ne[1], (size_t)one.ne[2], &one.bytes)) one.bytes = SIZE_MAX;
    return sr_source_add_pieces(r->h->g, &one, pieces, 0, r->h->err);
}

static sr_status gather(struct hf_reader *r, int32_t layer, const char *theirs, const char *ours)
{
    const int32_t n = r->h->n_experts;
    struct gguf_tensor one = {0}, t;
    char name[96];
    for (int32_t e = 0; e < n; e++) { /* all are there before memory is taken for them */
        snprintf(name, sizeof(name), "model.layers.%d.%s%d.%s.weight", layer, r->h->experts_in, e, theirs);
        struct st_tensor *s = sr_hf_shards_find(&r->s, name);
        if (!s) return sr_gguf_reject(r->h->g, r->h->err, "tensor %s is missing", name);
        SR_TRY(describe(r, s, &t));
        if (e == 0) one = t;
        if (t.n_dims != 2) return reject(r, s, "want 2 dimensions");
        if (t.dtype != one.dtype || memcmp(t.ne, one.ne, sizeof(t.ne)) != 0) return reject(r, s, "shape or dtype differs from expert 0");
        s->used = 1;
    }
    const uint8_t **pieces = sr_alloc((size_t)n * sizeof(*pieces));
    if (!pieces) return sr_fail_memory(r->h->err, (size_t)n * sizeof(*pieces), "experts");
    for (int32_t e = 0; e < n; e++) {
        snprintf(name, sizeof(name), "model.layers.%d.%s%d.%s.weight", layer, r->h->experts_in, e, theirs);
        pieces[e] = sr_hf_shards_find(&r->s, name)->data;
    }
    return add_gathered(r, one, layer, ours, pieces);
}

/* One tensor [experts][gate rows, then up rows][width]. */
static sr_status split_fused(struct hf_reader *r, struct st_tensor *s, int32_t layer)
{
    static const char *const ours[2] = {"ffn_gate_exps.weight", "ffn_up_exps.weight"};
    const int32_t n = r->h->n_experts;
    struct gguf_tensor t;
    SR_TRY(describe(r, s, &t));
    if (t.n_dims != 3 || t.ne[2] != n || t.ne[1] % 2) return reject(r, s, "want [experts, 2 * rows, width]");
    t.ne[1] /= 2;
    s->used = 1;
    const size_t half = sr_row_bytes(t.dtype, t.ne[0]) * (size_t)t.ne[1];
    for (size_t k = 0; k < 2; k++) {
        const uint8_t **pieces = sr_alloc((size_t)n * sizeof(*pieces));
        if (!pieces) return sr_fail_memory(r->h->err, (size_t)n * sizeof(*pieces), "experts");
        for (int32_t e = 0; e < n; e++) pieces[e] = s->data + (2 * (size_t)e + k) * half;
        SR_TRY(add_gathered(r, t, layer, ours[k], pieces));
    }
    return SR_OK;
}

static sr_status gather_layer(struct hf_reader *r, int32_t layer)
{
    static const char *const kinds[3][3] = {{"ffn_gate_exps.weight", "gate_proj", "w1"},
                                            {"ffn_up_exps.weight", "up_proj", "w3"},
                                            {"ffn_down_exps.weight", "down_proj", "w2"}};
    const int is_mixtral = strcmp(r->h->arch, "llama") == 0;
    char name[96];
    snprintf(name, sizeof(name), "model.layers.%d.%sgate_up_proj", layer, r->h->experts_in);
    struct st_tensor *fused = sr_hf_shards_find(&r->s, name);
    if (fused) return split_fused(r, fused, layer);
    for (int k = 0; k < 3; k++) SR_TRY(gather(r, layer, kinds[k][1 + is_mixtral], kinds[k][0]));
    return SR_OK;
}

static sr_status check_experts_used(const struct hf_reader *r)
{
    for (int64_t i = 0; i < r->s.n; i++) {
        const struct st_tensor *t = &r->s.tensors[i];
        int32_t layer;
        const char *rest = rest_of_layer(t->name, &layer);
        if (!t->used && layer < r->h->n_layers && is_experts(r, rest))
            return unsupported(r, t, "an expert's tensor that config.json does not call for");
    }
    return SR_OK;
}

/* ---- all ---- */

static sr_status read_all(struct hf_reader *r)
{
    struct hf *h = r->h;
    SR_TRY(sr_hf_shards_open(&r->s, h));
    SR_TRY(sr_source_reserve(h->g, r->s.n + 1 + (h->n_experts ? 3 * (int64_t)h->n_layers : 0), h->err));
    for (int64_t i = 0; i < r->s.n; i++) SR_TRY(take(r, &r->s.tensors[i]));
    for (int32_t i = 0; h->n_experts && i < h->n_layers; i++) SR_TRY(gather_layer(r, i));
    SR_TRY(check_experts_used(r));
    if (sr_hf_has_rope_tensor(h)) SR_TRY(sr_hf_add_rope_tensor(h));
    const struct st_tensor *head = sr_hf_shards_find(&r->s, "lm_head.weight");
    if (!h->tied && !head)
        return sr_gguf_reject(h->g, h->err, "tensor lm_head.weight is missing, and tie_word_embeddings is not true");
    return SR_OK;
}

static void warn_left_out(const struct hf_reader *r)
{
    char name[GGUF_SHOWN_NAME_BYTES];
    if (r->n_left_out)
        sr_log(SR_LOG_WARN, "%s: %lld tensors are not used, the first is %s", r->h->folder, (long long)r->n_left_out,
               sr_gguf_shown_name(name, r->left_out->name));
}

sr_status sr_hf_read_tensors(struct hf *h)
{
    struct hf_reader r = {.h = h};
    const sr_status st = read_all(&r);
    if (st == SR_OK) warn_left_out(&r);
    sr_hf_shards_free(&r.s);
    return st;
}
