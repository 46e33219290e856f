/* SPDX-License-Identifier: Apache-2.0
 *
 * Sums across lanes, AVX-512. One order for every vector, (0+2)+(1+3) in a quarter, then the quarters in pairs, so that a
 * result does not depend on which 16 are summed together.
 */
#ifndef SR_CPU_MATMUL_LANES_INLINE_H
#define SR_CPU_MATMUL_LANES_INLINE_H

#include "cpu/kernels.h"

#include <immintrin.h>

/* Sums of the lanes of 16 vectors, in order. */
static inline __m512 sums16(const __m512 *v)
{
    __m512 a[8], b[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) /* lanes of a quarter: 2i 2i+1 2i 2i+1 */
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* each quarter holds partial sums of 4i .. 4i+3 */
        const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    const __m512 lo = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    const __m512 hi = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(lo, hi, 0x88), _mm512_shuffle_f32x4(lo, hi, 0xdd));
}

/* y[t][r .. r + n) from the lane sums of 16 rows' accumulators, n <= 16; bias added. */
static inline void store_rows(const struct matvec_args *a, int64_t r, int32_t t, __m512 *acc)
{
    const int64_t n = a->n_rows - r;
    const __mmask16 m = n < 16 ? (__mmask16)((1u << n) - 1u) : 0xffff;
    __m512 sum;
    for (int64_t i = n; i < 16; i++) acc[i] = _mm512_setzero_ps();
    sum = sums16(acc);
    if (a->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(m, a->bias + r));
    _mm512_mask_storeu_ps(a->y + t * a->y_stride + r, m, sum);
}

#endif
