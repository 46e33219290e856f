/* SPDX-License-Identifier: Apache-2.0
 *
 * Float rows times float activations, AVX-512: four accumulators of 16 lanes, f16 and bf16 widened on the fly. The
 * order of the sums depends on n_in only.
 */
#include "cpu/kernels.h"
#include "cpu/matmul/ahead_inline.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

/* 16 weights at element i of the row; the masked form reads only the elements of the mask. */
typedef __m512 load_fn(const uint8_t *row, int64_t i);
typedef __m512 load_some_fn(const uint8_t *row, int64_t i, __mmask16 mask);

INLINE __m512 load_f32(const uint8_t *row, int64_t i) { return _mm512_loadu_ps(row + 4 * i); }
INLINE __m512 some_f32(const uint8_t *row, int64_t i, __mmask16 m) { return _mm512_maskz_loadu_ps(m, row + 4 * i); }

INLINE __m512 load_f16(const uint8_t *row, int64_t i) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i))); }
INLINE __m512 some_f16(const uint8_t *row, int64_t i, __mmask16 m) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, row + 2 * i)); }

INLINE __m512 widen_bf16(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
INLINE __m512 load_bf16(const uint8_t *row, int64_t i) { return widen_bf16(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i))); }
INLINE __m512 some_bf16(const uint8_t *row, int64_t i, __mmask16 m) { return widen_bf16(_mm256_maskz_loadu_epi16(m, row + 2 * i)); }

INLINE void row_dot(const struct matvec_args *a, int64_t r, int32_t t0, int T, int bytes, load_fn *load, load_some_fn *some)
{
    const uint8_t *row = a->w + (size_t)r * a->row_bytes;
    const float *x = a->acts->x + t0 * a->acts->x_stride;
    const int64_t stride = a->acts->x_stride, n = a->n_in;
    __m512 acc[4][4];
    int64_t i = 0;
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) acc[j / 4][j % 4] = _mm512_setzero_ps();
    for (; i + 64 <= n; i += 64) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            if (j % (64 / bytes / 16) == 0) fetch_ahead(row + bytes * (i + 16 * j), 64);
            const __m512 w = load(row, i + 16 * j);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) acc[t][j] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + t * stride + i + 16 * j), acc[t][j]);
        }
    }
    for (; i < n; i += 16) {
        const __mmask16 m = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1u) : 0xffff;
        const __m512 w = some(row, i, m);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[t][0] = _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(m, x + t * stride + i), acc[t][0]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(acc[t][0], acc[t][1]), _mm512_add_ps(acc[t][2], acc[t][3]));
        a->y[(t0 + t) * a->y_stride + r] = _mm512_reduce_add_ps(sum) + (a->bias ? a->bias[r] : 0.0f);
    }
}

/* bytes: of an element */
INLINE void all_rows(const struct matvec_args *a, int bytes, load_fn *load, load_some_fn *some)
{
    int32_t t = 0;
    for (; t + 4 <= a->n; t += 4)
        for (int64_t r = 0; r < a->n_rows; r++) row_dot(a, r, t, 4, bytes, load, some);
    for (; t + 2 <= a->n; t += 2)
        for (int64_t r = 0; r < a->n_rows; r++) row_dot(a, r, t, 2, bytes, load, some);
    for (; t < a->n; t++)
        for (int64_t r = 0; r < a->n_rows; r++) row_dot(a, r, t, 1, bytes, load, some);
}

void sr_matvec_f32_avx512(const struct matvec_args *a) { all_rows(a, 4, load_f32, some_f32); }
void sr_matvec_f16_avx512(const struct matvec_args *a) { all_rows(a, 2, load_f16, some_f16); }
void sr_matvec_bf16_avx512(const struct matvec_args *a) { all_rows(a, 2, load_bf16, some_bf16); }
