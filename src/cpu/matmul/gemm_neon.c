/* SPDX-License-Identifier: Apache-2.0
 *
 * Many tokens in f32, NEON: rows expanded to floats, dot products of 4 rows x 4 tokens at a time in 16 accumulators.
 * Activations are packed by the scalar variant ([token][padded k]).
 */
#include "cpu/kernels.h"

#include <arm_neon.h>
#include <string.h>

/* Tokens t .. t + 3, rows r .. r + 3 as far as they exist; w, x: rows `stride` apart. */
static void dots4x4(const struct gemm_args *a, const float *w, const float *x, int64_t stride, int32_t t, int32_t r)
{
    float32x4_t acc[4][4];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) acc[i / 4][i % 4] = vdupq_n_f32(0);
    for (int64_t k = 0; k < stride; k += 4) {
        float32x4_t wk[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) wk[j] = vld1q_f32(w + j * stride + k);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const float32x4_t xk = vld1q_f32(x + i * stride + k);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) acc[i][j] = vfmaq_f32(acc[i][j], wk[j], xk);
        }
    }
    for (int32_t i = 0; i < 4 && t + i < a->n; i++)
        for (int32_t j = 0; j < 4 && r + j < a->n_rows; j++)
            a->y[(t + i) * a->y_stride + r + j] = vaddvq_f32(acc[i][j]) + (a->bias ? a->bias[r + j] : 0.0f);
}

void sr_gemm_neon(const struct gemm_args *a)
{
    const int64_t stride = sr_gemm_padded(a->n_in);
    float *w = a->scratch;
    for (int32_t r = 0; r < a->n_rows; r++) {
        a->dequant(a->w + (size_t)r * a->row_bytes, w + r * stride, a->n_in);
        memset(w + r * stride + a->n_in, 0, (size_t)(stride - a->n_in) * sizeof(float));
    }
    for (int32_t t = 0; t < a->n; t += 4) {
        const uint8_t *block = a->packed + (size_t)(t / SR_GEMM_TOKENS) * sr_gemm_block_bytes(a->n_in);
        const float *x = (const float *)(const void *)block + t % SR_GEMM_TOKENS * stride;
        for (int32_t r = 0; r < a->n_rows; r += 4) dots4x4(a, w + r * stride, x, stride, t, r);
    }
}
