/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary frequencies of a model: the base formula and what files do to it (linear scaling, YaRN, per-frequency
 * divisors). Knows no file; model/config.c reads the keys.
 */
#ifndef SR_MODEL_ROTARY_H
#define SR_MODEL_ROTARY_H

#include "backend/args.h"

enum rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_YARN };

struct rope_params {
    enum rope_scaling scaling;
    double base, factor;                 /* factor >= 1 stretches the context */
    double original_len;                 /* YaRN: context of the unscaled training */
    double beta_fast, beta_slow;         /* YaRN: rotations within original_len where scaling starts and is full */
    double ext_factor;                   /* YaRN: share of the unscaled frequency that the ramp keeps; 1 */
    double attn_factor;                  /* YaRN: multiplies the magnitude 0.1 ln(factor) + 1 (1 with ext_factor 0) */
};

/* Fills inv_freq and magnitude; kind and n_dims are set already. */
void sr_rotary_fill(struct rope_spec *spec, const struct rope_params *p);

/* Divides inv_freq[i] by divisor[i] ([n_dims / 2], all > 0): how GGUF stores the scaling of Llama 3.1. */
void sr_rotary_divide(struct rope_spec *spec, const float *divisor);

#endif
