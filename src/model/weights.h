/* SPDX-License-Identifier: Apache-2.0
 *
 * The tensors of a model, found by name, checked against the config's shapes, borrowed from the mapping (or copied on
 * request). Norms and other small float tensors are scanned for NaN here; the rest on request. Rows GT12, GT13, GT15
 * of the bad-input contract end here.
 */
#ifndef SR_MODEL_WEIGHTS_H
#define SR_MODEL_WEIGHTS_H

#include "backend/backend.h"
#include "model/config.h"

struct layer_weights {
    const float *attn_norm, *ffn_norm;     /* [n_embd] */
    const float *q_norm, *k_norm;          /* [head_dim] or NULL */
    const float *q_bias, *k_bias, *v_bias; /* or NULL */
    struct weight q, k, v, o;
    struct weight gate, up, down;          /* of all experts where the model has them */
    struct weight router;                  /* n_embd to n_experts, or no data */
};

struct model_weights {
    struct weight embd, output; /* output shares embd's data when tied */
    const float *output_norm;
    struct layer_weights *layers; /* [n_layers], owned */
    int32_t n_layers;
    int32_t n_lower;             /* the first so many layers, and embd, are the lower backend's, whose memory is the host's */
    struct backend *lower;
    int tied;                    /* output is embd's: its data, and what the backend made of it */
    float *floats; /* owned: the vectors as aligned floats */
    float *placed_floats; /* the same in the backend's memory, where that is not the host's: what the pointers above mean */
    size_t n_floats, used_floats;
    uint8_t *copy; /* owned copy of the matrices, or NULL: they are borrowed from the mapping */
    size_t copy_bytes, used_copy;
};

/* Called with the share done of a stage; non-zero cancels (SR_ERR_USAGE). */
typedef int weights_progress_fn(void *user, const char *stage, double share);

struct weights_options {
    int check; /* scan every tensor */
    int copy;  /* read the matrices into memory, so that the file is not needed afterwards */
    int lock;  /* lock the matrices in memory; a refusal is logged */
    int32_t n_lower; /* layers of `lower`; the others are the backend's */
    struct backend *lower;
    weights_progress_fn *progress;
    void *user;
};

sr_status sr_weights_load(struct model_weights *out, const struct gguf *g, const struct model_config *c, struct backend *b,
                          const struct weights_options *o, sr_error *err);
void sr_weights_free(struct model_weights *w, struct backend *b);
/* Bytes of what lies with layers [n_lower, n_layers): all but embd where n_lower is above 0, which output then copies if it is tied. */
uint64_t sr_weights_upper_bytes(const struct gguf *g, const struct model_config *c, int32_t n_lower);

/* Scans every tensor of the file for NaN and infinity: SR_ERR_NUMERIC names the first one's tensor and row. */
sr_status sr_weights_check(const struct gguf *g, const struct weights_options *o, sr_error *err);

#endif
