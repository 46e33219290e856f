/* SPDX-License-Identifier: Apache-2.0
 *
 * The shapes of published models as data, and the tensors that each consists of: for synthetic files and for tests.
 * Running a model never looks here: every number of a real one is read from its file. The tiny-* shapes are of no
 * published model; they have a family's structure at a size for tests.
 */
#ifndef SR_MODEL_SHAPES_H
#define SR_MODEL_SHAPES_H

#include "base/status.h"

enum shape_vocab { VOCAB_LLAMA2, VOCAB_YI, VOCAB_LLAMA3, VOCAB_QWEN, VOCAB_SMOLLM };

struct model_shape {
    const char *name, *architecture;
    enum shape_vocab vocab;
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx;
    double rope_base, norm_eps;
    int tied;
    int32_t n_experts, n_used, n_ff_expert; /* 0 without experts */
    double llama3_factor;                   /* of the frequency scaling of Llama 3.1 over 8,192 positions; 0: none */
};

/* NULL past the last; by name without regard to case, NULL if unknown. */
const struct model_shape *sr_model_shape(int32_t i);
const struct model_shape *sr_model_shape_find(const char *name);

enum shape_role { ROLE_EMBED, ROLE_OUTPUT, ROLE_NORM, ROLE_BIAS, ROLE_FREQS, ROLE_ROUTER, ROLE_MATRIX, ROLE_ATTN_V, ROLE_FFN_DOWN };

struct shape_tensor {
    char name[48];
    enum shape_role role;
    int32_t layer;   /* -1: of none */
    int32_t n_dims;
    int64_t ne[3];
};

/* Tensor i in the order of a file; 0 past the last. */
int sr_shape_tensor(const struct model_shape *s, int32_t i, struct shape_tensor *t);

#endif
