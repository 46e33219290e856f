/* SPDX-License-Identifier: Apache-2.0
 *
 * Metadata to numbers, every one checked before it is believed: limits are far above any model that exists and far
 * below what could overflow a size.
 */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_LAYERS = 512,
    MAX_EMBD = 1 << 18,
    MAX_FF = 1 << 20,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 256, /* of the attention kernels */
    MAX_GROUP = 16,
    MAX_VOCAB = 1 << 24,
    MAX_CTX = 1 << 30,
    MAX_EXPERTS = 4096
};

struct family {
    const char *name;
    enum rope_kind rope;
    int qkv_bias, qk_norm;
    enum { NO_EXPERTS, EXPERTS, MAY_HAVE_EXPERTS } experts;
};

/* Mixtral's files call themselves llama. */
static const struct family families[] = {
    {.name = "llama", .rope = ROPE_NORM, .experts = MAY_HAVE_EXPERTS},
    {.name = "qwen2", .rope = ROPE_NEOX, .qkv_bias = 1},
    {.name = "qwen3", .rope = ROPE_NEOX, .qk_norm = 1},
    {.name = "qwen3moe", .rope = ROPE_NEOX, .qk_norm = 1, .experts = EXPERTS},
};

enum { N_FAMILIES = sizeof(families) / sizeof(families[0]) };

const char *sr_config_families(void) { return "llama, qwen2, qwen3, qwen3moe"; }

/* One file being read: keys are "<architecture>.<name>". */
struct reader {
    const struct gguf *g;
    struct model_config *c;
    sr_error *err;
    char key[96];
};

static const char *key_of(struct reader *r, const char *name)
{
    snprintf(r->key, sizeof(r->key), "%s.%s", r->c->architecture, name);
    return r->key;
}

static sr_status read_int(struct reader *r, const char *name, int64_t lo, int64_t hi, int32_t *out, int *found)
{
    int64_t v = *out;
    SR_TRY(sr_gguf_get_int(r->g, key_of(r, name), lo, hi, &v, found, r->err));
    *out = (int32_t)v;
    return SR_OK;
}

/* A number above lo and at most hi; NaN fails both comparisons. */
static sr_status read_float(struct reader *r, const char *name, double lo, double hi, double *out, int *found)
{
    double v = *out;
    SR_TRY(sr_gguf_get_float(r->g, key_of(r, name), &v, found, r->err));
    if (found && !*found) return SR_OK;
    if (!(v > lo && v <= hi))
        return sr_gguf_reject(r->g, r->err, "%s: value %g, want a number above %g and at most %g", r->key, v, lo, hi);
    *out = v;
    return SR_OK;
}

static int is_integer(enum gguf_type t)
{
    return t != GGUF_F32 && t != GGUF_F64 && t != GGUF_BOOL && t != GGUF_STRING && t != GGUF_ARRAY;
}

/* Keys that a file may give once or per layer. Layers that differ are valid, but not what this pass computes. */
static sr_status read_per_layer(struct reader *r, const char *name, int64_t hi, int32_t *out, int *found)
{
    const struct gguf_value *v = sr_gguf_find(r->g, key_of(r, name));
    if (!v || v->type != GGUF_ARRAY) return read_int(r, name, 1, hi, out, found);
    if (!is_integer(v->elem_type))
        return sr_gguf_reject(r->g, r->err, "%s: array of a type that is no integer", r->key);
    if (v->count < (uint64_t)r->c->n_layers)
        return sr_gguf_reject(r->g, r->err, "%s: %llu values for %d layers", r->key, (unsigned long long)v->count,
                              r->c->n_layers);
    const int64_t first = sr_gguf_integer(v, 0);
    for (int32_t i = 0; i < r->c->n_layers; i++) {
        const int64_t x = sr_gguf_integer(v, (uint64_t)i);
        if (x < 1 || x > hi)
            return sr_gguf_reject(r->g, r->err, "%s: value %lld of layer %d, want 1..%lld", r->key, (long long)x, i,
                                  (long long)hi);
        if (x != first)
            return sr_fail(r->err, SR_ERR_UNSUPPORTED, "%s: layers differ (%lld, layer %d: %lld); they must be alike",
                           r->key, (long long)first, i, (long long)x);
    }
    *out = (int32_t)first;
    if (found) *found = 1;
    return SR_OK;
}

static sr_status read_family(struct reader *r, const struct family **out)
{
    struct gguf_str s;
    SR_TRY(sr_gguf_get_str(r->g, "general.architecture", &s, NULL, r->err));
    if (s.bytes == 0) return sr_gguf_reject(r->g, r->err, "general.architecture is empty");
    for (int i = 0; i < N_FAMILIES; i++) {
        if (s.bytes != strlen(families[i].name) || memcmp(s.data, families[i].name, s.bytes) != 0) continue;
        snprintf(r->c->architecture, sizeof(r->c->architecture), "%s", families[i].name);
        *out = &families[i];
        return SR_OK;
    }
    char text[48];
    return sr_fail(r->err, SR_ERR_UNSUPPORTED, "general.architecture: \"%s\" is not known here; known: %s",
                   sr_escape(text, sizeof(text), s.data, s.bytes), sr_config_families());
}

/* Number and width of experts. Inconsistent numbers are a bad file; experts in a family without them are refused. */
static sr_status read_experts(struct reader *r, const struct family *f)
{
    struct model_config *c = r->c;
    int32_t count = 0, used = 0;
    int found;
    SR_TRY(read_int(r, "expert_count", 0, MAX_EXPERTS, &count, &found));
    SR_TRY(read_int(r, "expert_used_count", 0, MAX_EXPERTS, &used, &found));
    if (used > count)
        return sr_gguf_reject(r->g, r->err, "%s: %d of %d experts used", key_of(r, "expert_used_count"), used, count);
    if (count > 0 && used == 0)
        return sr_gguf_reject(r->g, r->err, "%s: none of %d experts used", key_of(r, "expert_used_count"), count);
    if (count > 0 && f->experts == NO_EXPERTS)
        return sr_fail(r->err, SR_ERR_UNSUPPORTED, "%s: %d: mixtures of experts are not supported for this architecture",
                       key_of(r, "expert_count"), count);
    if (count == 0 && f->experts == EXPERTS) return sr_gguf_reject(r->g, r->err, "%s: 0 experts", key_of(r, "expert_count"));
    c->n_experts = count;
    c->n_experts_used = used;
    if (count == 0) return SR_OK;
    const int32_t whole = c->n_ff; /* of all experts used, but of one in files called llama */
    if (f->experts == EXPERTS) c->n_ff = whole / used > 0 ? whole / used : 1;
    return read_int(r, "expert_feed_forward_length", 1, MAX_FF, &c->n_ff, &found);
}

static sr_status read_head_dim(struct reader *r)
{
    struct model_config *c = r->c;
    int found;
    SR_TRY(read_int(r, "attention.key_length", 1, MAX_EMBD, &c->head_dim, &found));
    if (!found) {
        if (c->n_embd % c->n_heads)
            return sr_gguf_reject(r->g, r->err, "%s: %d is not divisible by %d heads", key_of(r, "embedding_length"),
                                  c->n_embd, c->n_heads);
        c->head_dim = c->n_embd / c->n_heads;
    }
    int32_t v_dim = c->head_dim;
    SR_TRY(read_int(r, "attention.value_length", 1, MAX_EMBD, &v_dim, &found));
    if (v_dim != c->head_dim)
        return sr_fail(r->err, SR_ERR_UNSUPPORTED, "%s: %d differs from key length %d",
                       key_of(r, "attention.value_length"), v_dim, c->head_dim);
    if (c->head_dim % 8 || c->head_dim > MAX_HEAD_DIM)
        return sr_fail(r->err, SR_ERR_UNSUPPORTED, "%s: head size %d, supported are multiples of 8 up to %d",
                       c->architecture, c->head_dim, MAX_HEAD_DIM);
    return SR_OK;
}

static sr_status read_shape(struct reader *r)
{
    struct model_config *c = r->c;
    int found;
    SR_TRY(read_int(r, "block_count", 1, MAX_LAYERS, &c->n_layers, NULL));
    SR_TRY(read_int(r, "embedding_length", 1, MAX_EMBD, &c->n_embd, NULL));
    SR_TRY(read_int(r, "context_length", 1, MAX_CTX, &c->n_ctx_train, NULL));
    SR_TRY(read_per_layer(r, "feed_forward_length", MAX_FF, &c->n_ff, NULL));
    SR_TRY(read_per_layer(r, "attention.head_count", MAX_HEADS, &c->n_heads, NULL));
    c->n_kv_heads = c->n_heads;
    SR_TRY(read_per_layer(r, "attention.head_count_kv", MAX_HEADS, &c->n_kv_heads, &found));
    if (c->n_heads % c->n_kv_heads)
        return sr_gguf_reject(r->g, r->err, "%s: %d heads are not a multiple of %d KV heads",
                              key_of(r, "attention.head_count_kv"), c->n_heads, c->n_kv_heads);
    if (c->n_heads / c->n_kv_heads > MAX_GROUP)
        return sr_fail(r->err, SR_ERR_UNSUPPORTED, "%s: %d heads per KV head, supported are up to %d",
                       key_of(r, "attention.head_count_kv"), c->n_heads / c->n_kv_heads, MAX_GROUP);
    SR_TRY(read_head_dim(r));
    double eps = 0;
    SR_TRY(read_float(r, "attention.layer_norm_rms_epsilon", 0.0, 1.0, &eps, NULL));
    c->norm_eps = (float)eps;
    return SR_OK;
}

/* The vocabulary is as long as the list of tokens; files without one name the number. */
static sr_status read_vocab(struct reader *r)
{
    const struct gguf_value *tokens = sr_gguf_find(r->g, "tokenizer.ggml.tokens");
    if (!tokens || tokens->type != GGUF_ARRAY) return read_int(r, "vocab_size", 1, MAX_VOCAB, &r->c->n_vocab, NULL);
    if (tokens->count < 1 || tokens->count > MAX_VOCAB)
        return sr_gguf_reject(r->g, r->err, "tokenizer.ggml.tokens: %llu tokens, want 1..%d",
                              (unsigned long long)tokens->count, MAX_VOCAB);
    r->c->n_vocab = (int32_t)tokens->count;
    return SR_OK;
}

/* ---- rotary embedding ---- */

static sr_status read_scaling_type(struct reader *r, enum rope_scaling *out)
{
    static const struct { const char *name; enum rope_scaling type; } types[] = {
        {"none", ROPE_SCALING_NONE}, {"linear", ROPE_SCALING_LINEAR}, {"yarn", ROPE_SCALING_YARN}};
    struct gguf_str s;
    int found;
    *out = ROPE_SCALING_LINEAR;
    SR_TRY(sr_gguf_get_str(r->g, key_of(r, "rope.scaling.type"), &s, &found, r->err));
    if (!found) return SR_OK;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (s.bytes != strlen(types[i].name) || memcmp(s.data, types[i].name, s.bytes) != 0) continue;
        *out = types[i].type;
        return SR_OK;
    }
    char text[32];
    return sr_fail(r->err, SR_ERR_UNSUPPORTED, "%s: \"%s\" is not known here; known: none, linear, yarn", r->key,
                   sr_escape(text, sizeof(text), s.data, s.bytes));
}

/* The older and the newer spelling of one number. */
static sr_status read_either(struct reader *r, const char *name, const char *other, double lo, double hi, double *out)
{
    int found;
    SR_TRY(read_float(r, other, lo, hi, out, &found));
    return read_float(r, name, lo, hi, out, &found);
}

static void stretch(struct model_config *c, double n_ctx)
{
    if (n_ctx > c->n_ctx_train) c->n_ctx_train = n_ctx < MAX_CTX ? (int32_t)n_ctx : MAX_CTX;
}

static sr_status read_yarn(struct reader *r, struct rope_params *p)
{
    int found;
    double ext = -1.0, log_mul = 0.0;
    SR_TRY(read_either(r, "rope.scaling.yarn_beta_fast", "rope.scaling.beta_fast", 0.0, 1e6, &p->beta_fast));
    SR_TRY(read_either(r, "rope.scaling.yarn_beta_slow", "rope.scaling.beta_slow", 0.0, 1e6, &p->beta_slow));
    SR_TRY(read_either(r, "rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor", 0.0, 1e3, &p->attn_factor));
    SR_TRY(read_either(r, "rope.scaling.yarn_ext_factor", "rope.scaling.ext_factor", -2.0, 10.0, &ext));
    SR_TRY(read_float(r, "rope.scaling.yarn_log_multiplier", -1e3, 1e3, &log_mul, &found));
    p->ext_factor = ext < 0 ? 1.0 : ext;
    if (log_mul != 0.0)
        return sr_fail(r->err, SR_ERR_UNSUPPORTED, "%s: %g, only 0 is supported",
                       key_of(r, "rope.scaling.yarn_log_multiplier"), log_mul);
    stretch(r->c, p->original_len * p->factor);
    return SR_OK;
}

static sr_status read_divisors(struct reader *r)
{
    const struct gguf_tensor *t = sr_gguf_find_tensor(r->g, "rope_freqs.weight");
    struct rope_spec *spec = &r->c->rope;
    if (!t) return SR_OK;
    if (t->dtype != SR_DTYPE_F32 || t->n_dims != 1 || t->ne[0] != spec->n_dims / 2)
        return sr_gguf_reject(r->g, r->err, "rope_freqs.weight: %lld elements of type %s, want %d of f32",
                              (long long)t->ne[0], sr_dtype_name(t->dtype), spec->n_dims / 2);
    float *divisor = r->c->divisor;
    memcpy(divisor, t->data, (size_t)(spec->n_dims / 2) * sizeof(float));
    for (int32_t i = 0; i < spec->n_dims / 2; i++)
        if (!(divisor[i] > 0.0f && divisor[i] <= 1e6f))
            return sr_gguf_reject(r->g, r->err, "rope_freqs.weight: element %d is %g, want a number above 0 and at most 1e6",
                                  i, (double)divisor[i]);
    r->c->has_divisors = 1;
    return SR_OK;
}

static void make_rope(struct model_config *c)
{
    sr_rotary_fill(&c->rope, &c->scaling);
    if (c->has_divisors) sr_rotary_divide(&c->rope, c->divisor);
}

static sr_status read_rope(struct reader *r, const struct family *f)
{
    struct model_config *c = r->c;
    struct rope_params p = {.base = 10000.0, .factor = 1.0, .beta_fast = 32.0, .beta_slow = 1.0, .attn_factor = 1.0, .ext_factor = 1.0};
    int found;
    int32_t n_dims = c->head_dim, original = c->n_ctx_train;
    SR_TRY(read_int(r, "rope.dimension_count", 1, MAX_HEAD_DIM, &n_dims, &found));
    if (n_dims != c->head_dim)
        return sr_gguf_reject(r->g, r->err, "%s: %d, want the head size %d", key_of(r, "rope.dimension_count"), n_dims,
                              c->head_dim);
    SR_TRY(read_float(r, "rope.freq_base", 1.0, 1e15, &p.base, &found));
    SR_TRY(read_scaling_type(r, &p.scaling));
    SR_TRY(read_either(r, "rope.scaling.factor", "rope.scale_linear", 0.0, 1e6, &p.factor));
    SR_TRY(read_int(r, "rope.scaling.original_context_length", 1, MAX_CTX, &original, &found));
    p.original_len = original;
    if (p.scaling == ROPE_SCALING_YARN) SR_TRY(read_yarn(r, &p));
    c->scaling = p;
    c->rope.kind = f->rope;
    c->rope.n_dims = n_dims;
    SR_TRY(read_divisors(r));
    make_rope(c);
    return SR_OK;
}

/* ---- other scaling than the file's ---- */

/* lo < v <= hi, or 0: not given. NaN fails. */
static sr_status check_override(const char *name, double v, double lo, double hi, sr_error *err)
{
    if (v == 0.0 || (v > lo && v <= hi)) return SR_OK;
    return sr_fail(err, SR_ERR_USAGE, "rope %s: %g, want a number above %g and at most %g", name, v, lo, hi);
}

static sr_status check_overrides(const struct rope_override *o, sr_error *err)
{
    SR_TRY(check_override("frequency base", o->base, 1.0, 1e15, err));
    SR_TRY(check_override("scale", o->factor, 0.0, 1e6, err));
    SR_TRY(check_override("original context", o->original_len, 0.0, MAX_CTX, err));
    SR_TRY(check_override("beta fast", o->beta_fast, 0.0, 1e6, err));
    SR_TRY(check_override("beta slow", o->beta_slow, 0.0, 1e6, err));
    SR_TRY(check_override("attention factor", o->attn_factor, 0.0, 1e3, err));
    return o->has_ext_factor ? check_override("extrapolation factor", o->ext_factor, 0.0, 10.0, err) : SR_OK;
}

sr_status sr_config_override_rope(struct model_config *c, const struct rope_override *o, sr_error *err)
{
    struct rope_params *p = &c->scaling;
    SR_TRY(check_overrides(o, err));
    if (o->has_scaling && o->scaling != p->scaling) p->factor = 1.0; /* the file's number was for the other one */
    if (o->has_scaling) p->scaling = o->scaling;
    if (o->base > 0) p->base = o->base;
    if (o->factor > 0) p->factor = o->factor;
    if (o->original_len > 0) p->original_len = o->original_len;
    if (o->beta_fast > 0) p->beta_fast = o->beta_fast;
    if (o->beta_slow > 0) p->beta_slow = o->beta_slow;
    if (o->attn_factor > 0) p->attn_factor = o->attn_factor;
    if (o->has_ext_factor) p->ext_factor = o->ext_factor;
    if (o->has_scaling && o->scaling == ROPE_SCALING_NONE && p->original_len < c->n_ctx_train) c->n_ctx_train = (int32_t)p->original_len;
    if (p->scaling != ROPE_SCALING_NONE && (o->has_scaling || o->factor > 0)) stretch(c, p->original_len * p->factor);
    make_rope(c);
    return SR_OK;
}

sr_status sr_config_read(struct model_config *out, const struct gguf *g, sr_error *err)
{
    struct model_config c = {0};
    struct reader r = {.g = g, .c = &c, .err = err};
    const struct family *f = NULL;
    struct gguf_str name = {0};
    int found;
    SR_TRY(read_family(&r, &f));
    c.qkv_bias = f->qkv_bias;
    c.qk_norm = f->qk_norm;
    SR_TRY(sr_gguf_get_str(g, "general.name", &name, &found, err));
    if (found) sr_escape(c.name, sizeof(c.name), name.data, name.bytes);
    SR_TRY(read_shape(&r));
    SR_TRY(read_experts(&r, f));
    SR_TRY(read_vocab(&r));
    SR_TRY(read_rope(&r, f));
    SR_TRY(sr_config_check_keys(g, &c, err));
    *out = c;
    return SR_OK;
}
