/* SPDX-License-Identifier: Apache-2.0
 *
 * The keys of a known architecture that this pass knows, and the values at which the others change nothing. What is not
 * here may ask for anything, so it is refused by name: a wrong answer is worse than none.
 */
#include "model/config.h"

#include <string.h>

enum rule {
    FREE,    /* read elsewhere, or without effect on the result */
    OFF,     /* 0 or false */
    ON,      /* 1 or true */
    FACTOR,  /* a multiplier: 1, or 0 for none */
    WINDOW   /* 0, or no smaller than the context */
};

static const struct { const char *name; enum rule rule; } keys[] = {
    {"context_length", FREE}, {"embedding_length", FREE}, {"block_count", FREE}, {"feed_forward_length", FREE},
    {"vocab_size", FREE}, {"tensor_data_layout", FREE}, {"pooling_type", FREE},
    {"attention.head_count", FREE}, {"attention.head_count_kv", FREE}, {"attention.key_length", FREE}, {"attention.value_length", FREE},
    {"attention.layer_norm_rms_epsilon", FREE}, {"attention.layer_norm_epsilon", FREE},
    {"rope.dimension_count", FREE}, {"rope.freq_base", FREE}, {"rope.scale_linear", FREE},
    {"rope.scaling.type", FREE}, {"rope.scaling.factor", FREE}, {"rope.scaling.original_context_length", FREE},
    {"rope.scaling.finetuned", FREE}, {"rope.scaling.attn_factor", FREE}, {"rope.scaling.ext_factor", FREE},
    {"rope.scaling.beta_fast", FREE}, {"rope.scaling.beta_slow", FREE}, {"rope.scaling.yarn_attn_factor", FREE},
    {"rope.scaling.yarn_ext_factor", FREE}, {"rope.scaling.yarn_beta_fast", FREE}, {"rope.scaling.yarn_beta_slow", FREE},
    {"rope.scaling.yarn_log_multiplier", FREE},
    {"expert_count", FREE}, {"expert_used_count", FREE}, {"expert_feed_forward_length", FREE},
    {"attention.causal", ON}, {"attention.sliding_window", WINDOW}, {"attention.clamp_kqv", OFF}, {"attention.max_alibi_bias", OFF},
    {"attn_logit_softcapping", OFF}, {"final_logit_softcapping", OFF}, {"use_parallel_residual", OFF},
    {"logit_scale", FACTOR}, {"residual_scale", FACTOR}, {"embedding_scale", FACTOR},
    {"expert_weights_norm", ON}, {"expert_gating_func", FACTOR /* softmax */}, {"expert_weights_scale", FACTOR},
    {"expert_shared_count", OFF}, {"expert_shared_feed_forward_length", OFF}, {"expert_group_count", FACTOR},
    {"expert_group_used_count", FACTOR}, {"leading_dense_block_count", OFF}, {"moe_every_n_layers", FACTOR},
    {"interleave_moe_layer_step", FACTOR}, {"nextn_predict_layers", OFF},
};

static int is_neutral(enum rule rule, double v, const struct model_config *c)
{
    switch (rule) {
    case FREE: return 1;
    case OFF: return v == 0;
    case ON: return v == 1;
    case FACTOR: return v == 0 || v == 1;
    case WINDOW: return v == 0 || v >= c->n_ctx_train;
    }
    return 0;
}

static sr_status check(const struct gguf *g, const struct gguf_value *v, const char *name, size_t bytes, const struct model_config *c,
                       sr_error *err)
{
    char shown[96];
    sr_escape(shown, sizeof(shown), v->key.data, v->key.bytes);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (strlen(keys[i].name) != bytes || memcmp(keys[i].name, name, bytes) != 0) continue;
        if (keys[i].rule == FREE) return SR_OK;
        if (v->type == GGUF_ARRAY || v->type == GGUF_STRING) return sr_gguf_reject(g, err, "%s: not a number", shown);
        const double x = v->type == GGUF_BOOL ? v->data[0] : sr_gguf_number(v, 0);
        if (is_neutral(keys[i].rule, x, c)) return SR_OK;
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: %g changes what the model computes, and is not supported", shown, x);
    }
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: not known here, and may change what the model computes", shown);
}

sr_status sr_config_check_keys(const struct gguf *g, const struct model_config *c, sr_error *err)
{
    const size_t prefix = strlen(c->architecture);
    for (int64_t i = 0; i < sr_gguf_n_values(g); i++) {
        const struct gguf_value *v = sr_gguf_value(g, i);
        if (v->key.bytes <= prefix || memcmp(v->key.data, c->architecture, prefix) != 0 || v->key.data[prefix] != '.') continue;
        SR_TRY(check(g, v, v->key.data + prefix + 1, v->key.bytes - prefix - 1, c, err));
    }
    return SR_OK;
}
