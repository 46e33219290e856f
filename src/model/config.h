/* SPDX-License-Identifier: Apache-2.0
 *
 * What a model is, read and checked from metadata: numbers, rotary embedding, which optional parts it has. A family is
 * a row of data here, not a copy of the forward pass. Rows GM11-GM16 of the bad-input contract end here.
 */
#ifndef SR_MODEL_CONFIG_H
#define SR_MODEL_CONFIG_H

#include "backend/args.h"
#include "formats/gguf.h"
#include "model/rotary.h"

struct model_config {
    char architecture[16];
    char name[96]; /* escaped, may be empty */
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    float norm_eps;
    struct rope_params scaling; /* what rope is made from, with the divisors */
    struct rope_spec rope;
    float divisor[128];         /* [rope.n_dims / 2] of the frequencies: Llama 3.1; used if has_divisors */
    int has_divisors;
    int qkv_bias; /* family fact: q, k and v must have biases; elsewhere they may */
    int qk_norm;  /* family fact: q and k heads are normed before rotary embedding */
    int32_t n_experts, n_experts_used; /* 0: no mixture; else every layer's feed-forward is one of experts of width n_ff */
};

/* Families that this build knows: llama, qwen2 (biases, other rotary pairs), qwen3 (QK-norm, no biases) and qwen3moe
 * (experts). An unknown architecture is SR_ERR_UNSUPPORTED and lists them, and so is a key of a known one that asks for
 * what the pass does not compute. */
sr_status sr_config_read(struct model_config *out, const struct gguf *g, sr_error *err);

/* What a caller wants other than the file: 0 leaves a number as it is. */
struct rope_override {
    int has_scaling, has_ext_factor;
    enum rope_scaling scaling;
    double base, factor, original_len, beta_fast, beta_slow, ext_factor, attn_factor;
};

/* Makes the rotary embedding anew. The trained context becomes what the scaling is for: original_len * factor, or
 * original_len where the file's scaling is switched off. SR_ERR_USAGE names the number that cannot be. */
sr_status sr_config_override_rope(struct model_config *c, const struct rope_override *o, sr_error *err);

/* The part of sr_config_read that looks at every key "<architecture>.*" (config_keys.c). */
sr_status sr_config_check_keys(const struct gguf *g, const struct model_config *c, sr_error *err);

/* "llama, qwen2, qwen3, qwen3moe" */
const char *sr_config_families(void);

#endif
