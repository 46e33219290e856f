/* SPDX-License-Identifier: Apache-2.0
 *
 * The specification of the small ops.
 */
#include "cpu/kernels.h"

#include <math.h>

void sr_norm_scalar(const float *x, float *y, const float *w, int64_t d, float eps)
{
    double sum = 0.0;
    for (int64_t i = 0; i < d; i++) sum += (double)x[i] * (double)x[i];
    const float scale = (float)(1.0 / sqrt(sum / (double)d + (double)eps));
    for (int64_t i = 0; i < d; i++) y[i] = x[i] * scale * w[i];
}

static void rotate(float *a, float *b, float c, float s)
{
    const float u = *a, v = *b;
    *a = u * c - v * s;
    *b = u * s + v * c;
}

void sr_rope_pairs_scalar(float *x, const float *cos, const float *sin, int64_t half)
{
    for (int64_t i = 0; i < half; i++) rotate(x + 2 * i, x + 2 * i + 1, cos[i], sin[i]);
}

void sr_rope_halves_scalar(float *x, const float *cos, const float *sin, int64_t half)
{
    for (int64_t i = 0; i < half; i++) rotate(x + i, x + i + half, cos[i], sin[i]);
}

void sr_silu_mul_scalar(const float *gate, const float *up, float *h, int64_t n)
{
    for (int64_t i = 0; i < n; i++) h[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void sr_add_scalar(float *x, const float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}
