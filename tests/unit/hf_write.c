/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "hf_write.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[][2] = {
    {"token_embd.weight", "model.embed_tokens.weight"}, {"output_norm.weight", "model.norm.weight"}, {"output.weight", "lm_head.weight"}};
static const char *const layer_names[][2] = {
    {"attn_norm.weight", "input_layernorm.weight"}, {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},   {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},   {"attn_output.weight", "self_attn.o_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},       {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.bias", "self_attn.v_proj.bias"},       {"attn_q_norm.weight", "self_attn.q_norm.weight"},
    {"attn_k_norm.weight", "self_attn.k_norm.weight"}, {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},        {"ffn_down.weight", "mlp.down_proj.weight"},
    {"ffn_gate_inp.weight", "mlp.gate.weight"}};

struct piece { char name[96]; char dtype[8]; int64_t shape[3]; int n_dims; uint8_t *data; size_t bytes; };

struct folder {
    const struct gguf *g;
    const struct hf_write *o;
    const char *path;
    char arch[16];
    struct piece pieces[1024];
    int n;
};

static sr_error err;

/* ---- tensors ---- */

static void push(struct folder *f, const char *name, sr_dtype dtype, const int64_t *shape, int n_dims, const float *x)
{
    static const struct { sr_dtype t; const char *name; } types[] = {{SR_DTYPE_F32, "F32"}, {SR_DTYPE_F16, "F16"}, {SR_DTYPE_BF16, "BF16"}};
    int64_t n = 1;
    assert_true(f->n < 1024);
    struct piece *p = &f->pieces[f->n++];
    memset(p, 0, sizeof(*p));
    snprintf(p->name, sizeof(p->name), "%s", name);
    for (int i = 0; i < 3; i++)
        if (types[i].t == dtype) snprintf(p->dtype, sizeof(p->dtype), "%s", types[i].name);
    assert_true(p->dtype[0]);
    p->n_dims = n_dims;
    for (int i = 0; i < n_dims; i++) n *= p->shape[i] = shape[i];
    p->bytes = sr_row_bytes(dtype, n);
    p->data = malloc(p->bytes);
    assert_int_equal(sr_quantize_row(dtype, x, p->data, n, &err), SR_OK);
}

/* Row head * d + 2 i + s of a GGUF is row head * d + s d/2 + i here. */
static void unpermute(float *x, int64_t rows, int64_t width, int64_t d)
{
    float *y = malloc((size_t)(rows * width) * sizeof(*y));
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r % d, to = r - at + (at % 2) * (d / 2) + at / 2;
        memcpy(y + to * width, x + r * width, (size_t)width * sizeof(*y));
    }
    memcpy(x, y, (size_t)(rows * width) * sizeof(*y));
    free(y);
}

static float *floats_of(const struct folder *f, const struct gguf_tensor *t, const char *rest)
{
    const int64_t rows = t->ne[1] * t->ne[2];
    int64_t d = 0;
    float *x = malloc((size_t)(t->ne[0] * rows) * sizeof(*x));
    char key[64];
    for (int64_t r = 0; r < rows; r++)
        sr_dequantize_row(t->dtype, (const uint8_t *)t->data + (size_t)r * sr_row_bytes(t->dtype, t->ne[0]), x + r * t->ne[0], t->ne[0]);
    snprintf(key, sizeof(key), "%s.attention.key_length", f->arch);
    assert_int_equal(sr_gguf_get_int(f->g, key, 1, 4096, &d, NULL, &err), SR_OK);
    if (strcmp(f->arch, "llama") == 0 && (strncmp(rest, "attn_q.", 7) == 0 || strncmp(rest, "attn_k.", 7) == 0)) {
        if (t->n_dims == 1) unpermute(x, t->ne[0], 1, d);
        else unpermute(x, rows, t->ne[0], d);
    }
    return x;
}

static sr_dtype type_for(const struct folder *f, const struct gguf_tensor *t)
{
    return t->n_dims == 1 || f->o->keep_type ? t->dtype : f->o->dtype;
}

static void push_plain(struct folder *f, const struct gguf_tensor *t, const char *name, const char *rest)
{
    float *x = floats_of(f, t, rest);
    const int64_t shape[2] = {t->n_dims == 1 ? t->ne[0] : t->ne[1], t->ne[0]};
    push(f, name, type_for(f, t), shape, t->n_dims, x);
    free(x);
}

static int is_mixtral(const struct folder *f)
{
    return strcmp(f->arch, "llama") == 0 && sr_gguf_find(f->g, "llama.expert_count");
}

static void push_experts(struct folder *f, const struct gguf_tensor *t, int layer, const char *kind)
{
    float *x = floats_of(f, t, kind);
    char name[96];
    for (int64_t e = 0; e < t->ne[2]; e++) {
        if (is_mixtral(f))
            snprintf(name, sizeof(name), "model.layers.%d.block_sparse_moe.experts.%d.%s.weight", layer, (int)e,
                     *kind == 'g' ? "w1" : *kind == 'u' ? "w3" : "w2");
        else snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.%d.%s_proj.weight", layer, (int)e, kind);
        push(f, name, type_for(f, t), (const int64_t[2]){t->ne[1], t->ne[0]}, 2, x + e * t->ne[0] * t->ne[1]);
    }
    free(x);
}

static const struct gguf_tensor *layer_tensor(const struct folder *f, int layer, const char *rest)
{
    char name[64];
    snprintf(name, sizeof(name), "blk.%d.%s", layer, rest);
    return sr_gguf_find_tensor(f->g, name);
}

static void push_fused(struct folder *f, int layer)
{
    const struct gguf_tensor *gate = layer_tensor(f, layer, "ffn_gate_exps.weight"), *up = layer_tensor(f, layer, "ffn_up_exps.weight");
    const struct gguf_tensor *down = layer_tensor(f, layer, "ffn_down_exps.weight");
    float *a = floats_of(f, gate, ""), *b = floats_of(f, up, ""), *d = floats_of(f, down, "");
    const int64_t n = gate->ne[0] * gate->ne[1];
    float *both = malloc((size_t)(2 * n * gate->ne[2]) * sizeof(*both));
    char name[96];
    for (int64_t e = 0; e < gate->ne[2]; e++) {
        memcpy(both + 2 * e * n, a + e * n, (size_t)n * sizeof(*a));
        memcpy(both + (2 * e + 1) * n, b + e * n, (size_t)n * sizeof(*b));
    }
    snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.gate_up_proj", layer);
    push(f, name, type_for(f, gate), (const int64_t[3]){gate->ne[2], 2 * gate->ne[1], gate->ne[0]}, 3, both);
    snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.down_proj", layer);
    push(f, name, type_for(f, down), (const int64_t[3]){down->ne[2], down->ne[1], down->ne[0]}, 3, d);
    free(a);
    free(b);
    free(d);
    free(both);
}

static void push_layer_tensor(struct folder *f, const struct gguf_tensor *t, int layer, const char *rest)
{
    char name[96];
    for (size_t i = 0; i < sizeof(layer_names) / sizeof(layer_names[0]); i++) {
        if (strcmp(layer_names[i][0], rest) != 0) continue;
        const char *theirs = is_mixtral(f) && strcmp(rest, "ffn_gate_inp.weight") == 0 ? "block_sparse_moe.gate.weight" : layer_names[i][1];
        snprintf(name, sizeof(name), "model.layers.%d.%s", layer, theirs);
        push_plain(f, t, name, rest);
        return;
    }
    static const char *const kinds[] = {"gate", "up", "down"};
    for (int k = 0; k < 3; k++) {
        snprintf(name, sizeof(name), "ffn_%s_exps.weight", kinds[k]);
        if (strcmp(name, rest) != 0) continue;
        if (!f->o->fused_experts) push_experts(f, t, layer, kinds[k]);
        else if (k == 0) push_fused(f, layer);
        return;
    }
    fail_msg("hf_write: no name for %s", rest);
}

static void push_all(struct folder *f)
{
    for (int64_t i = 0; i < sr_gguf_n_tensors(f->g); i++) {
        const struct gguf_tensor *t = sr_gguf_tensor(f->g, i);
        char name[64], *rest;
        snprintf(name, sizeof(name), "%.*s", (int)t->name.bytes, t->name.data);
        if (strcmp(name, "rope_freqs.weight") == 0) continue;
        if (strncmp(name, "blk.", 4) == 0) {
            const long layer = strtol(name + 4, &rest, 10);
            push_layer_tensor(f, t, (int)layer, rest + 1);
            continue;
        }
        for (int k = 0; k < 3; k++)
            if (strcmp(names[k][0], name) == 0) push_plain(f, t, names[k][1], "");
    }
}

/* ---- files ---- */

static FILE *open_file(const char *folder, const char *name)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    return f;
}

static void put_json(const char *folder, const char *name, json_t *j)
{
    FILE *f = open_file(folder, name);
    assert_int_equal(json_dumpf(j, f, JSON_INDENT(1)), 0);
    fclose(f);
    json_decref(j);
}

static void put_header(FILE *f, const char *text, int odd)
{
    uint64_t n = strlen(text);
    while (n % 8 != (odd ? 3u : 0u)) n++;
    fwrite(&n, 8, 1, f);
    fprintf(f, "%s%*s", text, (int)(n - strlen(text)), "");
}

/* Every n-th piece, from the last backwards so that the order of the data is not that of the names. */
static void put_tensors(const struct folder *f, const char *name, int shard, int n_shards, json_t *map)
{
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    size_t at = 0;
    for (int i = f->n - 1 - shard; i >= 0; i -= n_shards) {
        const struct piece *p = &f->pieces[i];
        json_t *shape = json_array();
        for (int d = 0; d < p->n_dims; d++) json_array_append_new(shape, json_integer((json_int_t)p->shape[d]));
        json_object_set_new(header, p->name, json_pack("{s:s,s:o,s:[I,I]}", "dtype", p->dtype, "shape", shape, "data_offsets", (json_int_t)at,
                                                       (json_int_t)(at + p->bytes)));
        json_object_set_new(map, p->name, json_string(name));
        at += p->bytes;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    FILE *out = open_file(f->path, name);
    put_header(out, text, f->o->odd_header);
    for (int i = f->n - 1 - shard; i >= 0; i -= n_shards) fwrite(f->pieces[i].data, 1, f->pieces[i].bytes, out);
    assert_int_equal(fclose(out), 0);
    free(text);
    json_decref(header);
}

static void put_weights(const struct folder *f)
{
    json_t *map = json_object();
    char name[64];
    const int n = f->o->n_shards;
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", i + 1, n);
        put_tensors(f, n > 1 ? name : "model.safetensors", i, n, map);
    }
    if (n > 1) put_json(f->path, "model.safetensors.index.json", json_pack("{s:{s:i},s:o}", "metadata", "total_size", 1, "weight_map", map));
    else json_decref(map);
}

void hf_write_raw(const char *path, const char *header, size_t data_bytes)
{
    FILE *f = fopen(path, "wb");
    const uint64_t n = strlen(header);
    assert_non_null(f);
    fwrite(&n, 8, 1, f);
    fwrite(header, 1, n, f);
    for (size_t i = 0; i < data_bytes; i++) fputc(0, f);
    assert_int_equal(fclose(f), 0);
}

/* ---- config.json ---- */

static void copy_int(const struct folder *f, json_t *c, const char *key, const char *name)
{
    char full[96];
    int64_t v = 0;
    int found;
    snprintf(full, sizeof(full), "%s.%s", f->arch, key);
    assert_int_equal(sr_gguf_get_int(f->g, full, INT64_MIN, INT64_MAX, &v, &found, &err), SR_OK);
    if (found) json_object_set_new(c, name, json_integer((json_int_t)v));
}

static double float_of(const struct folder *f, const char *key)
{
    char full[96];
    double v = 0;
    int found;
    snprintf(full, sizeof(full), "%s.%s", f->arch, key);
    assert_int_equal(sr_gguf_get_float(f->g, full, &v, &found, &err), SR_OK);
    return v;
}

static json_t *scaling_of(const struct folder *f)
{
    const struct gguf_tensor *t = sr_gguf_find_tensor(f->g, "rope_freqs.weight");
    char key[64];
    struct gguf_str s;
    int found;
    if (t) {
        float last;
        memcpy(&last, (const uint8_t *)t->data + t->bytes - sizeof(last), sizeof(last));
        return json_pack("{s:s,s:f,s:f,s:f,s:f}", "rope_type", "llama3", "factor", (double)last, "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                         "original_max_position_embeddings", f->o->llama3_old_len);
    }
    snprintf(key, sizeof(key), "%s.rope.scaling.type", f->arch);
    if (sr_gguf_get_str(f->g, key, &s, &found, &err) != SR_OK || !found) return json_null();
    json_t *o = json_pack("{s:s#,s:f}", "type", s.data, (int)s.bytes, "factor", float_of(f, "rope.scaling.factor"));
    copy_int(f, o, "rope.scaling.original_context_length", "original_max_position_embeddings");
    return o;
}

static json_t *config_of(struct folder *f)
{
    static const char *const ints[][2] = {
        {"block_count", "num_hidden_layers"}, {"embedding_length", "hidden_size"}, {"feed_forward_length", "intermediate_size"},
        {"attention.head_count", "num_attention_heads"}, {"attention.head_count_kv", "num_key_value_heads"},
        {"attention.key_length", "head_dim"}, {"context_length", "max_position_embeddings"}, {"expert_count", "num_experts"},
        {"expert_used_count", "num_experts_per_tok"}, {"expert_feed_forward_length", "moe_intermediate_size"}};
    const struct gguf_tensor *e = sr_gguf_find_tensor(f->g, "token_embd.weight");
    json_t *c = json_pack("{s:s,s:s,s:f,s:f,s:b,s:I,s:b}", "model_type", is_mixtral(f) ? "mixtral" : strcmp(f->arch, "qwen3moe") ? f->arch : "qwen3_moe", "hidden_act", "silu",
                          "rms_norm_eps", float_of(f, "attention.layer_norm_rms_epsilon"), "rope_theta", float_of(f, "rope.freq_base"),
                          "tie_word_embeddings", !sr_gguf_find_tensor(f->g, "output.weight"), "vocab_size", (json_int_t)e->ne[1],
                          "norm_topk_prob", 1);
    for (size_t i = 0; i < sizeof(ints) / sizeof(ints[0]); i++) copy_int(f, c, ints[i][0], ints[i][1]);
    if (is_mixtral(f)) json_object_set_new(c, "num_local_experts", json_incref(json_object_get(c, "num_experts")));
    if (is_mixtral(f)) json_object_del(c, "num_experts");
    json_object_set_new(c, "rope_scaling", scaling_of(f));
    if (f->o->config) json_object_update_new(c, f->o->config);
    return c;
}

/* ---- tokenizer ---- */

static void put_tokenizer(const struct folder *f)
{
    const struct gguf_value *tokens = sr_gguf_find(f->g, "tokenizer.ggml.tokens"), *types = sr_gguf_find(f->g, "tokenizer.ggml.token_type");
    const struct gguf_value *merges = sr_gguf_find(f->g, "tokenizer.ggml.merges");
    json_t *vocab = json_object(), *added = json_array(), *list = json_array();
    struct gguf_str s;
    const uint8_t *at = NULL;
    uint64_t i = 0;
    for (; sr_gguf_next_str(tokens, &at, &i, &s);) {
        if (sr_gguf_integer(types, i) != 3) json_object_setn_new(vocab, s.data, s.bytes, json_integer((json_int_t)i));
        else json_array_append_new(added, json_pack("{s:I,s:s#,s:b}", "id", (json_int_t)i, "content", s.data, (int)s.bytes, "special", 1));
    }
    for (at = NULL, i = 0; sr_gguf_next_str(merges, &at, &i, &s);) json_array_append_new(list, json_stringn(s.data, s.bytes));
    put_json(f->path, "tokenizer.json",
             json_pack("{s:o,s:{s:s,s:b,s:b},s:{s:s,s:o,s:o}}", "added_tokens", added, "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0,
                       "use_regex", 1, "model", "type", "BPE", "vocab", vocab, "merges", list));
    json_t *c = json_pack("{s:s,s:n}", "eos_token", "<|im_end|>", "bos_token");
    if (sr_gguf_get_str(f->g, "tokenizer.chat_template", &s, &(int){0}, NULL) == SR_OK)
        json_object_set_new(c, "chat_template", json_stringn(s.data, s.bytes));
    put_json(f->path, "tokenizer_config.json", c);
}

void hf_write_folder(const char *gguf, const char *folder, const struct hf_write *o)
{
    static struct folder f;
    struct hf_write one = *o;
    struct gguf *g = NULL;
    struct gguf_str arch;
    if (one.n_shards < 1) one.n_shards = 1;
    if (sr_gguf_open(&g, gguf, &err) != SR_OK) fail_msg("hf_write: %s", err.text);
    f = (struct folder){.g = g, .o = &one, .path = folder};
    assert_int_equal(sr_gguf_get_str(g, "general.architecture", &arch, NULL, &err), SR_OK);
    snprintf(f.arch, sizeof(f.arch), "%.*s", (int)arch.bytes, arch.data);
    push_all(&f);
    put_json(folder, "config.json", config_of(&f));
    put_tokenizer(&f);
    put_weights(&f);
    for (int i = 0; i < f.n; i++) free(f.pieces[i].data);
    sr_gguf_close(g);
}
