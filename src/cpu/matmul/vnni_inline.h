/* SPDX-License-Identifier: Apache-2.0
 *
 * What the VNNI matvec files share: how a slot's integer dot becomes a float. Included by files built with AVX-512
 * VNNI only.
 */
#ifndef SR_CPU_MATMUL_VNNI_INLINE_H
#define SR_CPU_MATMUL_VNNI_INLINE_H

#include "cpu/kernels.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Weight scale and offset of 16 slots. */
struct slots { __m512 scale, offset; };

INLINE __m512i at512(const void *p) { return _mm512_loadu_si512(p); }
INLINE __m512i bytes_of(int v) { return _mm512_set1_epi8((char)v); }
INLINE float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}

INLINE __m512 half_to_float(__m512i low16_of_32) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(low16_of_32)); }

/* Lane i of `spread` names the slot of lane i of `dot`. */
INLINE __m512 add_scaled(__m512 acc, __m512i dot, __m512 scale, __m512i spread)
{
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(spread, scale), acc);
}

/* Lane i of the result is slot first + i / lanes_per_slot. */
INLINE __m512i spread_of(int first, int lanes_log2)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_add_epi32(_mm512_srli_epi32(lane, (unsigned)lanes_log2), _mm512_set1_epi32(first));
}

INLINE uint32_t load_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

INLINE void store_result(const struct matvec_args *a, int64_t r, int32_t t, __m512 acc)
{
    a->y[t * a->y_stride + r] = _mm512_reduce_add_ps(acc) + (a->bias ? a->bias[r] : 0.0f);
}

#endif
