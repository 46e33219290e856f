/* SPDX-License-Identifier: Apache-2.0
 *
 * Many tokens in f32, AVX-512 without bf16: rows expanded to floats, dot products of 4 rows x 4 tokens at a time in 16
 * accumulators, so that 8 loads feed 16 FMAs. Activations are packed by the scalar variant ([token][padded k]).
 */
#include "cpu/matmul/lanes_inline.h"

#include <string.h>

/* w, x: 4 rows `stride` apart. Result lane 4 t + r. */
static inline __m512 dots4x4(const float *w, const float *x, int64_t stride)
{
    __m512 acc[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < stride; k += 16) {
        __m512 wk[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) wk[r] = _mm512_loadu_ps(w + r * stride + k);
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            const __m512 xk = _mm512_loadu_ps(x + t * stride + k);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) acc[4 * t + r] = _mm512_fmadd_ps(wk[r], xk, acc[4 * t + r]);
        }
    }
    return sums16(acc);
}

static void store4x4(const struct gemm_args *a, __m512 dots, int32_t t, int32_t r)
{
    float sums[16];
    _mm512_storeu_ps(sums, dots);
    for (int32_t i = 0; i < 4 && t + i < a->n; i++)
        for (int32_t j = 0; j < 4 && r + j < a->n_rows; j++)
            a->y[(t + i) * a->y_stride + r + j] = sums[4 * i + j] + (a->bias ? a->bias[r + j] : 0.0f);
}

void sr_gemm_avx512(const struct gemm_args *a)
{
    const int64_t stride = sr_gemm_padded(a->n_in);
    float *w = a->scratch;
    for (int32_t r = 0; r < a->n_rows; r++) {
        a->dequant(a->w + (size_t)r * a->row_bytes, w + r * stride, a->n_in);
        memset(w + r * stride + a->n_in, 0, (size_t)(stride - a->n_in) * sizeof(float));
    }
    for (int32_t t = 0; t < a->n; t += 4) {
        const float *x = (const float *)(const void *)(a->packed + (size_t)(t / SR_GEMM_TOKENS) * sr_gemm_block_bytes(a->n_in)) +
                         t % SR_GEMM_TOKENS * stride;
        for (int32_t r = 0; r < a->n_rows; r += 4) store4x4(a, dots4x4(w + r * stride, x, stride), t, r);
    }
}
