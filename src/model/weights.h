/* SPDX-License-Identifier: Apache-2.0
 *
 * The tensors of a model, found by name, checked against the config's shapes, borrowed from the mapping. Norms and
 * other F32 tensors are scanned for NaN here; the rest on request. Rows GT12, GT13, GT15 end here.
 */
#ifndef SR_MODEL_WEIGHTS_H
#define SR_MODEL_WEIGHTS_H

#include "backend/backend.h"
#include "model/config.h"

struct layer_weights {
    const float *attn_norm, *ffn_norm;               /* [n_embd] */
    const float *q_norm, *k_norm;                    /* [head_dim] or NULL */
    const float *q_bias, *k_bias, *v_bias;           /* or NULL */
    struct weight q, k, v, o, gate, up, down;
};

struct model_weights {
    struct weight embd, output;                      /* output shares embd's data when tied */
    const float *output_norm;
    struct layer_weights *layers;                    /* [n_layers], owned */
    int32_t n_layers;
    int tied;
    float *floats;                                   /* owned copies where a file's F32 data is not 4-byte aligned */
};

sr_status sr_weights_load(struct model_weights *out, const struct gguf *g, const struct model_config *c, struct backend *b, sr_error *err);
void sr_weights_free(struct model_weights *w, struct backend *b);

#endif
