/* SPDX-License-Identifier: Apache-2.0
 *
 * What a model is, read and checked from metadata: numbers, rotary embedding, which optional parts it has. A family is
 * a row of data here, not a copy of the forward pass. Rows GM11-GM16 of the bad-input contract end here.
 */
#ifndef SR_MODEL_CONFIG_H
#define SR_MODEL_CONFIG_H

#include "backend/args.h"
#include "formats/gguf.h"

struct model_config {
    char architecture[16];
    char name[96]; /* escaped, may be empty */
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    float norm_eps;
    double rope_base;
    struct rope_spec rope;
    int qkv_bias; /* family fact: q, k and v must have biases; elsewhere they may */
    int qk_norm;  /* family fact: q and k heads are normed before rotary embedding */
    int32_t n_experts, n_experts_used; /* 0: no mixture; else every layer's feed-forward is one of experts of width n_ff */
};

/* Families that this build knows: llama, qwen2 (biases, other rotary pairs), qwen3 (QK-norm, no biases) and qwen3moe
 * (experts). An unknown architecture is SR_ERR_UNSUPPORTED and lists them, and so is a key of a known one that asks for
 * what the pass does not compute. */
sr_status sr_config_read(struct model_config *out, const struct gguf *g, sr_error *err);

/* "llama, qwen2, qwen3, qwen3moe" */
const char *sr_config_families(void);

#endif
