/* SPDX-License-Identifier: Apache-2.0
 *
 * Fields of config.json to keys of GGUF. A field that is absent gets the default of the published class of that model
 * type; a field that would change the result and is not at its neutral value refuses the folder by name. What a
 * number may be is asked in model/config.c, where GGUF files are asked too.
 */
#include "formats/hf_parts.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

struct hf_family {
    const char *model_type, *arch;
    int32_t head_dim; /* default of the class; 0: hidden_size / num_attention_heads */
    enum { NO_EXPERTS, EXPERTS, MIXTRAL_EXPERTS } experts;
};

static const struct hf_family families[] = {
    {"llama", "llama", 0, NO_EXPERTS}, {"Yi", "llama", 0, NO_EXPERTS}, {"mistral", "llama", 0, NO_EXPERTS},
    {"qwen2", "qwen2", 0, NO_EXPERTS}, {"qwen3", "qwen3", 128, NO_EXPERTS}, {"qwen3_moe", "qwen3moe", 128, EXPERTS}, {"mixtral", "llama", 0, MIXTRAL_EXPERTS}};

#define KNOWN_TYPES "llama, Yi, mistral, mixtral, qwen2, qwen3, qwen3_moe"

/* Fields that change the result: the value beside them, or absence and null, is what is computed here. */
static const struct { const char *key; enum { WANT_FALSE, WANT_NUMBER, WANT_TEXT, WANT_NONE } want; double number; const char *text; } neutral[] = {
    {"mlp_bias", WANT_FALSE, 0, NULL},           {"use_sliding_window", WANT_FALSE, 0, NULL},
    {"hidden_act", WANT_TEXT, 0, "silu"},        {"hidden_activation", WANT_TEXT, 0, "silu"},
    {"partial_rotary_factor", WANT_NUMBER, 1, NULL}, {"decoder_sparse_step", WANT_NUMBER, 1, NULL},
    {"logits_scaling", WANT_NUMBER, 1, NULL},    {"logit_scale", WANT_NUMBER, 1, NULL},
    {"embedding_multiplier", WANT_NUMBER, 1, NULL}, {"residual_multiplier", WANT_NUMBER, 1, NULL},
    {"attention_multiplier", WANT_NONE, 0, NULL}, {"attn_logit_softcapping", WANT_NONE, 0, NULL},
    {"final_logit_softcapping", WANT_NONE, 0, NULL}, {"clip_qkv", WANT_NONE, 0, NULL},
    {"query_pre_attn_scalar", WANT_NONE, 0, NULL}, {"mlp_only_layers", WANT_NONE, 0, NULL},
    {"no_rope_layers", WANT_NONE, 0, NULL},      {"shared_expert_intermediate_size", WANT_NONE, 0, NULL},
    {"n_shared_experts", WANT_NONE, 0, NULL},    {"quantization_config", WANT_NONE, 0, NULL},
    {"rope_interleaved", WANT_FALSE, 0, NULL},   {"is_encoder_decoder", WANT_FALSE, 0, NULL}};

/* ---- what is refused ---- */

static int is_neutral(const json_t *v, size_t i)
{
    if (!v || json_is_null(v) || json_is_false(v)) return 1;
    switch (neutral[i].want) {
    case WANT_NUMBER: return json_is_number(v) && json_number_value(v) == neutral[i].number;
    case WANT_TEXT: return json_is_string(v) && strcmp(json_string_value(v), neutral[i].text) == 0;
    case WANT_NONE: return (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0);
    default: return 0;
    }
}

static sr_status refuse_others(struct hf *h, const struct json_at *a)
{
    char text[48];
    for (size_t i = 0; i < sizeof(neutral) / sizeof(neutral[0]); i++) {
        const json_t *v = json_object_get(a->object, neutral[i].key);
        if (is_neutral(v, i)) continue;
        const json_t *method = json_is_object(v) ? json_object_get(v, "quant_method") : NULL;
        const char *s = json_string_value(json_is_string(v) ? v : method);
        if (s) return sr_json_unsupported(a, h->err, neutral[i].key, "\"%s\" is not supported", sr_escape(text, sizeof(text), s, strlen(s)));
        if (json_is_number(v)) return sr_json_unsupported(a, h->err, neutral[i].key, "%g is not supported", json_number_value(v));
        return sr_json_unsupported(a, h->err, neutral[i].key, "is set, and is not supported");
    }
    return SR_OK;
}

/* Newer writers name each layer's kind of attention. */
static sr_status check_layer_types(struct hf *h, const struct json_at *a)
{
    const json_t *types, *v;
    size_t i;
    int found;
    SR_TRY(sr_json_member(a, "layer_types", JSON_ARRAY, &types, &found, h->err));
    for (i = 0; types && i < json_array_size(types); i++) {
        char text[48];
        v = json_array_get(types, i);
        const char *s = json_is_string(v) ? json_string_value(v) : "";
        if (strcmp(s, "full_attention") != 0)
            return sr_json_unsupported(a, h->err, "layer_types", "layer %zu is \"%s\", only full_attention is supported", i,
                                       sr_escape(text, sizeof(text), s, strlen(s)));
    }
    return SR_OK;
}

/* Of llama's kin, mistral and mixtral have a window without a switch for it. */
static sr_status check_window(struct hf *h, const struct json_at *a, const struct hf_family *f)
{
    const json_t *w = json_object_get(a->object, "sliding_window");
    const int has_window = strcmp(f->model_type, "mistral") == 0 || strcmp(f->model_type, "mixtral") == 0;
    if (!has_window || !w || json_is_null(w)) return SR_OK;
    return sr_json_unsupported(a, h->err, "sliding_window", "is set, and is not supported");
}

/* ---- numbers ---- */

static sr_status find_family(struct hf *h, const struct json_at *a, const struct hf_family **out)
{
    const char *type = NULL;
    char text[48];
    SR_TRY(sr_json_string(a, "model_type", &type, NULL, h->err));
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        if (strcmp(families[i].model_type, type) != 0) continue;
        *out = &families[i];
        h->arch = families[i].arch;
        return SR_OK;
    }
    return sr_json_unsupported(a, h->err, "model_type", "\"%s\" is not known here; known: %s", sr_escape(text, sizeof(text), type, strlen(type)),
                               KNOWN_TYPES);
}

static sr_status put_int(struct hf *h, const char *name, int64_t v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", h->arch, name);
    return sr_source_put_u32(h->g, key, (uint32_t)v, h->err);
}

static sr_status put_float(struct hf *h, const char *name, double v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", h->arch, name);
    return sr_source_put_float(h->g, key, v, h->err);
}

/* Reads field -> puts key. */
static sr_status pass_int(struct hf *h, const struct json_at *a, const char *field, const char *key, int64_t *out)
{
    SR_TRY(sr_json_int(a, field, 0, INT32_MAX, out, NULL, h->err));
    return put_int(h, key, *out);
}

/* The width of an expert is intermediate_size, and the weights of those used are always normalised. */
static sr_status read_mixtral(struct hf *h, const struct json_at *a)
{
    int64_t n = 8, used = 2;
    SR_TRY(pass_int(h, a, "num_local_experts", "expert_count", &n));
    SR_TRY(pass_int(h, a, "num_experts_per_tok", "expert_used_count", &used));
    h->n_experts = (int32_t)n;
    h->experts_in = "block_sparse_moe.experts.";
    return SR_OK;
}

static sr_status read_experts(struct hf *h, const struct json_at *a)
{
    int64_t n = 0, used = 8, ff = 0;
    int norm = 0, found;
    const char *key = json_object_get(a->object, "num_experts") ? "num_experts" : "num_local_experts";
    SR_TRY(pass_int(h, a, key, "expert_count", &n));
    SR_TRY(pass_int(h, a, "num_experts_per_tok", "expert_used_count", &used));
    SR_TRY(pass_int(h, a, "moe_intermediate_size", "expert_feed_forward_length", &ff));
    SR_TRY(sr_json_bool(a, "norm_topk_prob", &norm, &found, h->err));
    if (!norm) return sr_json_unsupported(a, h->err, "norm_topk_prob", "false: weights of experts that are not normalised are not supported");
    h->n_experts = (int32_t)n;
    h->experts_in = "mlp.experts.";
    return SR_OK;
}

static sr_status read_heads(struct hf *h, const struct json_at *a, const struct hf_family *f, int64_t width)
{
    int64_t heads = 0, kv, dim = f->head_dim;
    int found;
    SR_TRY(pass_int(h, a, "num_attention_heads", "attention.head_count", &heads));
    kv = heads;
    SR_TRY(sr_json_int(a, "num_key_value_heads", 0, INT32_MAX, &kv, &found, h->err));
    SR_TRY(put_int(h, "attention.head_count_kv", kv));
    h->n_kv_heads = (int32_t)kv;
    SR_TRY(sr_json_int(a, "head_dim", 1, INT32_MAX, &dim, &found, h->err));
    if (!dim && heads && width % heads)
        return sr_json_reject(a, h->err, "hidden_size", "%lld is not divisible by %lld heads", (long long)width, (long long)heads);
    if (!dim) dim = heads ? width / heads : 0;
    h->head_dim = (int32_t)dim;
    SR_TRY(put_int(h, "attention.key_length", dim));
    SR_TRY(put_int(h, "attention.value_length", dim));
    return put_int(h, "rope.dimension_count", dim);
}

static sr_status read_shape(struct hf *h, const struct json_at *a, const struct hf_family *f)
{
    int64_t width = 0, layers = 0, vocab = 0, v = 0;
    double eps = 1e-6;
    int found;
    SR_TRY(pass_int(h, a, "num_hidden_layers", "block_count", &layers));
    SR_TRY(pass_int(h, a, "hidden_size", "embedding_length", &width));
    SR_TRY(pass_int(h, a, "intermediate_size", "feed_forward_length", &v));
    SR_TRY(pass_int(h, a, "max_position_embeddings", "context_length", &v));
    SR_TRY(pass_int(h, a, "vocab_size", "vocab_size", &vocab));
    if (layers < 1 || layers > 512) return sr_json_reject(a, h->err, "num_hidden_layers", "%lld, want 1..512", (long long)layers);
    if (vocab < 1 || vocab > 1 << 24) return sr_json_reject(a, h->err, "vocab_size", "%lld, want 1..%d", (long long)vocab, 1 << 24);
    h->n_layers = (int32_t)layers;
    h->n_vocab = (int32_t)vocab;
    SR_TRY(sr_json_number(a, "rms_norm_eps", &eps, &found, h->err));
    SR_TRY(put_float(h, "attention.layer_norm_rms_epsilon", eps));
    SR_TRY(read_heads(h, a, f, width));
    if (f->experts) SR_TRY(f->experts == EXPERTS ? read_experts(h, a) : read_mixtral(h, a));
    return sr_json_bool(a, "tie_word_embeddings", &h->tied, &found, h->err);
}

/* The folder's own name stands for the model's. */
static sr_status put_names(struct hf *h)
{
    size_t n = strlen(h->folder);
    while (n > 1 && h->folder[n - 1] == '/') n--;
    size_t from = n;
    while (from > 0 && h->folder[from - 1] != '/') from--;
    SR_TRY(sr_source_put_str(h->g, "general.architecture", h->arch, strlen(h->arch), h->err));
    return sr_source_put_str(h->g, "general.name", h->folder + from, n - from, h->err);
}

/* Sampling that the publisher recommends, under the keys that newer GGUF files have. */
static sr_status put_sampling(struct hf *h)
{
    static const struct { const char *field, *key; int integer; } rows[] = {
        {"temperature", "general.sampling.temp", 0},   {"top_p", "general.sampling.top_p", 0},
        {"min_p", "general.sampling.min_p", 0},        {"top_k", "general.sampling.top_k", 1},
        {"repetition_penalty", "general.sampling.penalty_repeat", 0}};
    const struct json_at a = {h->generation_path, "$", h->generation};
    for (size_t i = 0; h->generation && i < sizeof(rows) / sizeof(rows[0]); i++) {
        int64_t n = 0;
        double x = 0;
        int found;
        if (rows[i].integer) SR_TRY(sr_json_int(&a, rows[i].field, 0, INT32_MAX, &n, &found, h->err));
        else SR_TRY(sr_json_number(&a, rows[i].field, &x, &found, h->err));
        if (!found) continue;
        SR_TRY(rows[i].integer ? sr_source_put_u32(h->g, rows[i].key, (uint32_t)n, h->err)
                               : sr_source_put_float(h->g, rows[i].key, x, h->err));
    }
    return SR_OK;
}

sr_status sr_hf_read_config(struct hf *h)
{
    const struct json_at a = {h->config_path, "$", h->config};
    const struct hf_family *f = NULL;
    SR_TRY(find_family(h, &a, &f));
    SR_TRY(put_names(h));
    SR_TRY(refuse_others(h, &a));
    SR_TRY(check_layer_types(h, &a));
    SR_TRY(check_window(h, &a, f));
    SR_TRY(read_shape(h, &a, f));
    SR_TRY(put_sampling(h));
    return sr_hf_read_rope(h);
}
