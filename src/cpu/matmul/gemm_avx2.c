/* SPDX-License-Identifier: Apache-2.0
 *
 * Many tokens in f32, AVX2: rows expanded to floats, dot products of 4 rows x 2 tokens at a time (8 accumulators, 6
 * loads for 8 FMAs, all in the 16 registers). Activations are packed by the scalar variant ([token][padded k]).
 */
#include "cpu/kernels.h"

#include <immintrin.h>
#include <string.h>

/* Sums of the lanes of 4 vectors, in order. */
static inline __m128 sums4(const __m256 *v)
{
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

/* y of tokens t, t + 1 and rows r .. r + 3 as far as they exist; w, x: rows `stride` apart. */
static void dots4x2(const struct gemm_args *a, const float *w, const float *x, int64_t stride, int32_t t, int32_t r)
{
    __m256 acc[2][4];
    float sums[2][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) acc[0][i] = acc[1][i] = _mm256_setzero_ps();
    for (int64_t k = 0; k < stride; k += 8) {
        const __m256 x0 = _mm256_loadu_ps(x + k), x1 = _mm256_loadu_ps(x + stride + k);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m256 wi = _mm256_loadu_ps(w + i * stride + k);
            acc[0][i] = _mm256_fmadd_ps(wi, x0, acc[0][i]);
            acc[1][i] = _mm256_fmadd_ps(wi, x1, acc[1][i]);
        }
    }
    _mm_storeu_ps(sums[0], sums4(acc[0]));
    _mm_storeu_ps(sums[1], sums4(acc[1]));
    for (int32_t i = 0; i < 2 && t + i < a->n; i++)
        for (int32_t j = 0; j < 4 && r + j < a->n_rows; j++)
            a->y[(t + i) * a->y_stride + r + j] = sums[i][j] + (a->bias ? a->bias[r + j] : 0.0f);
}

void sr_gemm_avx2(const struct gemm_args *a)
{
    const int64_t stride = sr_gemm_padded(a->n_in);
    float *w = a->scratch;
    for (int32_t r = 0; r < a->n_rows; r++) {
        a->dequant(a->w + (size_t)r * a->row_bytes, w + r * stride, a->n_in);
        memset(w + r * stride + a->n_in, 0, (size_t)(stride - a->n_in) * sizeof(float));
    }
    for (int32_t t = 0; t < a->n; t += 2) {
        const float *x = (const float *)(const void *)(a->packed + (size_t)(t / SR_GEMM_TOKENS) * sr_gemm_block_bytes(a->n_in)) +
                         t % SR_GEMM_TOKENS * stride;
        for (int32_t r = 0; r < a->n_rows; r += 4) dots4x2(a, w + r * stride, x, stride, t, r);
    }
}
