/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tiny_model.h"

#include "base/memory.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- numbers ---- */

static uint64_t stream_of(uint64_t seed, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    return seed + h;
}

static uint64_t number(uint64_t stream, uint64_t i)
{
    uint64_t z = stream + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static float unit(uint64_t stream, uint64_t i) { return (float)((double)(number(stream, i) >> 40) / 8388608.0 - 1.0); }

uint64_t tiny_number(uint64_t seed, const char *name, uint64_t i) { return number(stream_of(seed, name), i); }

void tiny_tokens(uint64_t seed, int32_t *ids, int32_t n)
{
    const uint64_t s = stream_of(seed, "tokens");
    for (int32_t i = 0; i < n; i++) ids[i] = (int32_t)(number(s, (uint64_t)i) % TINY_VOCAB);
}

struct tiny_spec tiny_spec_default(void)
{
    return (struct tiny_spec){.architecture = "llama", .n_layers = 2, .n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16,
                              .n_ff = 96, .n_ctx = 512, .dtype = SR_DTYPE_F32, .seed = 1, .rope_base = 10000.0};
}

/* ---- files ---- */

static char folder[64];

/* `name` with what is in it, at most two folders deep. */
static void remove_all(const char *name, int depth)
{
    DIR *d = opendir(name);
    char path[1024];
    for (struct dirent *e; d && (e = readdir(d));) {
        if (e->d_name[0] == '.' && (!e->d_name[1] || e->d_name[1] == '.')) continue;
        snprintf(path, sizeof(path), "%s/%s", name, e->d_name);
        if (unlink(path) && depth < 2) remove_all(path, depth + 1);
    }
    if (d) closedir(d);
    rmdir(name);
}

static void remove_folder(void) { remove_all(folder, 0); }

const char *tiny_path(const char *name)
{
    static char ring[64][128];
    static int next;
    if (!folder[0]) {
        snprintf(folder, sizeof(folder), "/tmp/sr-tiny-XXXXXX");
        assert_non_null(mkdtemp(folder));
        atexit(remove_folder);
    }
    char *path = ring[next++ % 64];
    snprintf(path, sizeof(ring[0]), "%s/%s", folder, name);
    return path;
}

/* ---- values ---- */

static sr_error err;

static void ok(sr_status st)
{
    if (st != SR_OK) fail_msg("tiny model: %s", err.text);
}

struct tiny {
    const struct tiny_spec *s;
    struct gguf_writer *w;
    int used[64]; /* changes that were applied */
};

static void put_change(struct tiny *t, const struct tiny_change *c)
{
    if (c->kind == TINY_U32) ok(sr_gguf_put_u32(t->w, c->key, c->u32, &err));
    if (c->kind == TINY_F32) ok(sr_gguf_put_f32(t->w, c->key, (float)c->f32, &err));
    if (c->kind == TINY_STR) ok(sr_gguf_put_str(t->w, c->key, c->str, &err));
    if (c->kind == TINY_I32S) ok(sr_gguf_put_i32s(t->w, c->key, c->i32s, c->n, &err));
}

/* Whether a change took the key's place. */
static int changed(struct tiny *t, const char *key)
{
    for (int i = 0; i < t->s->n_changes; i++) {
        if (strcmp(t->s->changes[i].key, key) != 0) continue;
        t->used[i] = 1;
        put_change(t, &t->s->changes[i]);
        return 1;
    }
    return 0;
}

static void put_str(struct tiny *t, const char *key, const char *v)
{
    if (!changed(t, key)) ok(sr_gguf_put_str(t->w, key, v, &err));
}

static void put_u32(struct tiny *t, const char *name, int32_t v)
{
    char key[80];
    snprintf(key, sizeof(key), "%s.%s", t->s->architecture, name);
    if (!changed(t, key)) ok(sr_gguf_put_u32(t->w, key, (uint32_t)v, &err));
}

static void put_f32(struct tiny *t, const char *name, double v)
{
    char key[80];
    snprintf(key, sizeof(key), "%s.%s", t->s->architecture, name);
    if (!changed(t, key)) ok(sr_gguf_put_f32(t->w, key, (float)v, &err));
}

/* Byte-level BPE: a token per byte in the usual mapping, a few merges, three control tokens. */
static void put_vocabulary(struct tiny *t)
{
    static char text[TINY_VOCAB][20];
    const char *tokens[TINY_VOCAB];
    int32_t types[TINY_VOCAB];
    int next = 256;
    for (int b = 0; b < 256; b++) {
        const int plain = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        const int cp = plain ? b : next++;
        if (cp < 0x80) snprintf(text[b], sizeof(text[b]), "%c", cp);
        else snprintf(text[b], sizeof(text[b]), "%c%c", 0xc0 | cp >> 6, 0x80 | (cp & 63));
    }
    static const char *const merges[] = {"t h", "th e", "\304\240 a", "e r"};
    static const char *const more[] = {"th", "the", "\304\240a", "er", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unused>"};
    for (int i = 256; i < TINY_VOCAB; i++) snprintf(text[i], sizeof(text[i]), "%s", more[i - 256]);
    for (int i = 0; i < TINY_VOCAB; i++) {
        tokens[i] = text[i];
        types[i] = i >= 260 ? 3 : 1;
    }
    put_str(t, "tokenizer.ggml.model", "gpt2");
    put_str(t, "tokenizer.ggml.pre", "gpt-2");
    if (!changed(t, "tokenizer.ggml.tokens")) ok(sr_gguf_put_strs(t->w, "tokenizer.ggml.tokens", tokens, TINY_VOCAB, &err));
    if (!changed(t, "tokenizer.ggml.token_type"))
        ok(sr_gguf_put_i32s(t->w, "tokenizer.ggml.token_type", types, TINY_VOCAB, &err));
    ok(sr_gguf_put_strs(t->w, "tokenizer.ggml.merges", merges, sizeof(merges) / sizeof(merges[0]), &err));
    ok(sr_gguf_put_u32(t->w, "tokenizer.ggml.eos_token_id", TINY_END, &err));
    put_str(t, "tokenizer.chat_template",
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
}

static void put_values(struct tiny *t)
{
    const struct tiny_spec *s = t->s;
    put_str(t, "general.architecture", s->architecture);
    put_str(t, "general.name", "tiny");
    put_u32(t, "block_count", s->n_layers);
    put_u32(t, "context_length", s->n_ctx);
    put_u32(t, "embedding_length", s->n_embd);
    const int has_width = s->n_experts && strcmp(s->architecture, "llama") != 0; /* Mixtral: the width of one is the only one */
    put_u32(t, "feed_forward_length", has_width ? s->n_ff * s->n_used : s->n_ff);
    if (s->n_experts) {
        put_u32(t, "expert_count", s->n_experts);
        put_u32(t, "expert_used_count", s->n_used);
    }
    if (has_width) put_u32(t, "expert_feed_forward_length", s->n_ff);
    put_u32(t, "attention.head_count", s->n_heads);
    put_u32(t, "attention.head_count_kv", s->n_kv_heads);
    put_u32(t, "attention.key_length", s->head_dim);
    put_u32(t, "attention.value_length", s->head_dim);
    put_u32(t, "rope.dimension_count", s->head_dim);
    put_f32(t, "rope.freq_base", s->rope_base);
    put_f32(t, "attention.layer_norm_rms_epsilon", 1e-5);
    put_vocabulary(t);
    for (int i = 0; i < s->n_changes; i++)
        if (!t->used[i] && s->changes[i].kind != TINY_OMIT) put_change(t, &s->changes[i]);
}

/* ---- tensors ---- */

enum fill { FILL_MATRIX, FILL_SHARP, FILL_NORM, FILL_BIAS, FILL_GIVEN };

struct tensor {
    char name[48];
    enum fill fill;
    sr_dtype dtype;
    int64_t ne[3];
};

struct tensor_list { struct tensor t[256]; int n; };

static const struct tiny_tensor_change *change_of(const struct tiny_spec *s, const char *name)
{
    for (int i = 0; i < s->n_tensor_changes; i++)
        if (strcmp(s->tensor_changes[i].name, name) == 0) return &s->tensor_changes[i];
    return NULL;
}

static void list(struct tensor_list *l, const struct tiny_spec *s, const char *name, enum fill fill, int64_t n_in, int64_t n_out)
{
    const struct tiny_tensor_change *c = change_of(s, name);
    if (c && c->omit) return;
    struct tensor *t = &l->t[l->n++];
    *t = (struct tensor){.fill = fill, .dtype = n_out ? s->dtype : SR_DTYPE_F32, .ne = {n_in, n_out, 1}};
    snprintf(t->name, sizeof(t->name), "%s", name);
    if (c && c->ne[0]) memcpy(t->ne, c->ne, sizeof(c->ne));
}

/* Router and experts of layer i. The router is never quantized. */
static void list_experts(struct tensor_list *l, const struct tiny_spec *s, int32_t i)
{
    static const char *const names[] = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"};
    char name[48];
    snprintf(name, sizeof(name), "blk.%d.ffn_gate_inp.weight", i);
    list(l, s, name, FILL_SHARP, s->n_embd, s->n_experts);
    if (l->n) l->t[l->n - 1].dtype = SR_DTYPE_F32;
    for (int k = 0; k < 3; k++) {
        const int n = l->n;
        snprintf(name, sizeof(name), "blk.%d.%s.weight", i, names[k]);
        list(l, s, name, FILL_MATRIX, k < 2 ? s->n_embd : s->n_ff, k < 2 ? s->n_ff : s->n_embd);
        if (l->n > n) l->t[n].ne[2] = s->n_experts;
    }
}

static void list_layer(struct tensor_list *l, const struct tiny_spec *s, int32_t i)
{
    const int64_t d = s->n_embd, q = (int64_t)s->n_heads * s->head_dim, kv = (int64_t)s->n_kv_heads * s->head_dim, f = s->n_ff;
    const int64_t dense = s->n_experts ? 0 : f, h = strncmp(s->architecture, "qwen3", 5) ? 0 : s->head_dim;
    const struct { const char *name; enum fill fill; int64_t n_in, n_out; int bias; } all[] = {
        {"attn_norm.weight", FILL_NORM, d, 0, 0}, {"attn_q.weight", FILL_SHARP, d, q, 0}, {"attn_k.weight", FILL_SHARP, d, kv, 0},
        {"attn_v.weight", FILL_MATRIX, d, kv, 0}, {"attn_q.bias", FILL_BIAS, q, 0, 1},    {"attn_k.bias", FILL_BIAS, kv, 0, 1},
        {"attn_v.bias", FILL_BIAS, kv, 0, 1},     {"attn_output.weight", FILL_MATRIX, q, d, 0},
        {"ffn_norm.weight", FILL_NORM, d, 0, 0},  {"ffn_gate.weight", FILL_MATRIX, d, dense, -1}, {"ffn_up.weight", FILL_MATRIX, d, dense, -1},
        {"ffn_down.weight", FILL_MATRIX, dense, d, -1}, {"attn_q_norm.weight", FILL_NORM, h, 0, 0}, {"attn_k_norm.weight", FILL_NORM, h, 0, 0}};
    for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
        char name[48];
        if ((all[k].bias > 0 && !s->biases) || all[k].n_in == 0 || (all[k].bias < 0 && all[k].n_out == 0)) continue;
        snprintf(name, sizeof(name), "blk.%d.%s", i, all[k].name);
        list(l, s, name, all[k].fill, all[k].n_in, all[k].n_out);
    }
    if (s->n_experts) list_experts(l, s, i);
}

static void list_all(struct tensor_list *l, const struct tiny_spec *s)
{
    char name[48];
    l->n = 0;
    list(l, s, "token_embd.weight", FILL_MATRIX, s->n_embd, TINY_VOCAB);
    list(l, s, "output_norm.weight", FILL_NORM, s->n_embd, 0);
    if (s->untied) list(l, s, "output.weight", FILL_MATRIX, s->n_embd, TINY_VOCAB);
    if (s->rope_freqs) list(l, s, "rope_freqs.weight", FILL_GIVEN, s->head_dim / 2, 0);
    for (int32_t i = 0; i < s->n_layers; i++) list_layer(l, s, i);
    for (int i = 0; i < s->n_extra; i++) {
        if (i == 0 && s->extra_name) snprintf(name, sizeof(name), "%s", s->extra_name);
        else snprintf(name, sizeof(name), "extra.%d.weight", i);
        list(l, s, name, FILL_NORM, 32, 0);
    }
}

static void fill_row(const struct tiny_spec *s, const struct tensor *t, int64_t row, float *x)
{
    const uint64_t stream = stream_of(s->seed, t->name);
    const double gain = t->fill == FILL_SHARP ? 1.5 : 1.0;
    const float scale = (float)(gain * sqrt(3.0 / (double)t->ne[0]));
    for (int64_t i = 0; i < t->ne[0]; i++) {
        const float u = unit(stream, (uint64_t)(row * t->ne[0] + i));
        x[i] = t->fill == FILL_NORM ? 1.0f + u * 0.25f : t->fill == FILL_BIAS ? u * 0.125f
             : t->fill == FILL_GIVEN ? s->rope_freqs[i] : u * scale;
    }
}

static void put_tensor_data(struct tiny *t, const struct tensor *x)
{
    const struct tiny_tensor_change *c = change_of(t->s, x->name);
    const size_t bytes = sr_row_bytes(x->dtype, x->ne[0]);
    float *row = sr_alloc((size_t)x->ne[0] * sizeof(float));
    uint8_t *packed = sr_alloc(bytes);
    for (int64_t r = 0; r < (x->ne[1] ? x->ne[1] : 1) * x->ne[2]; r++) {
        fill_row(t->s, x, r, row);
        if (c && c->nan_at / x->ne[0] == r && c->nan_at >= 0) row[c->nan_at % x->ne[0]] = NAN;
        ok(sr_quantize_row(x->dtype, row, packed, x->ne[0], &err));
        if (c && c->bad_scale && r == 0) memcpy(packed, "\x00\x7c", 2);
        ok(sr_gguf_put_data(t->w, packed, bytes, &err));
    }
    sr_free(row);
    sr_free(packed);
}

void tiny_model_write(const char *path, const struct tiny_spec *spec)
{
    static struct tensor_list l;
    struct tiny t = {.s = spec};
    ok(sr_gguf_writer_new(&t.w, path, &err));
    put_values(&t);
    list_all(&l, spec);
    for (int i = 0; i < l.n; i++)
        ok(sr_gguf_put_tensor(t.w, l.t[i].name, l.t[i].dtype, l.t[i].ne[2] > 1 ? 3 : l.t[i].ne[1] ? 2 : 1, l.t[i].ne, &err));
    for (int i = 0; i < l.n; i++) put_tensor_data(&t, &l.t[i]);
    ok(sr_gguf_writer_finish(t.w, &err));
}
