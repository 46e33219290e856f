/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary frequencies. All in double: at position 200,000 one float ulp of the angle is 0.016 rad.
 */
#include "model/rotary.h"

#include <math.h>

static const double two_pi = 6.283185307179586476925286766559;

/* Index of the frequency that turns `rotations` times over the original context. */
static double yarn_index(const struct rope_params *p, int32_t n_dims, double rotations)
{
    return n_dims * log(p->original_len / (two_pi * rotations)) / (2.0 * log(p->base));
}

/* YaRN (arXiv 2309.00071): slow frequencies are interpolated, fast ones kept, with a linear ramp between. */
static void yarn(struct rope_spec *spec, const struct rope_params *p)
{
    const double low = fmax(floor(yarn_index(p, spec->n_dims, p->beta_fast)), 0.0);
    const double high = fmin(ceil(yarn_index(p, spec->n_dims, p->beta_slow)), spec->n_dims - 1.0);
    for (int32_t i = 0; i < spec->n_dims / 2; i++) {
        const double ramp = fmin(fmax((i - low) / fmax(0.001, high - low), 0.0), 1.0);
        const double inv = spec->inv_freq[i], keep = (1.0 - ramp) * p->ext_factor;
        spec->inv_freq[i] = inv / p->factor * (1.0 - keep) + inv * keep;
    }
    spec->magnitude = p->ext_factor == 0.0 ? p->attn_factor : p->attn_factor * (0.1 * log(p->factor) + 1.0);
}

void sr_rotary_fill(struct rope_spec *spec, const struct rope_params *p)
{
    spec->magnitude = 1.0;
    for (int32_t i = 0; i < spec->n_dims / 2; i++)
        spec->inv_freq[i] = pow(p->base, -2.0 * i / spec->n_dims);
    if (p->scaling == ROPE_SCALING_YARN) yarn(spec, p);
    if (p->scaling == ROPE_SCALING_LINEAR)
        for (int32_t i = 0; i < spec->n_dims / 2; i++) spec->inv_freq[i] /= p->factor;
}

void sr_rotary_divide(struct rope_spec *spec, const float *divisor)
{
    for (int32_t i = 0; i < spec->n_dims / 2; i++) spec->inv_freq[i] /= (double)divisor[i];
}
