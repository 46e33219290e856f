/* SPDX-License-Identifier: Apache-2.0
 *
 * What the VNNI matvec files share: how a slot's integer dot becomes a float. Included by files built with AVX-512
 * VNNI only.
 */
#ifndef SR_CPU_MATMUL_VNNI_INLINE_H
#define SR_CPU_MATMUL_VNNI_INLINE_H

#include "cpu/matmul/ahead_inline.h"
#include "cpu/matmul/lanes_inline.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Weight scale and offset of 16 slots. */
struct slots { __m512 scale, offset; };

INLINE __m512i at512(const void *p) { return _mm512_loadu_si512(p); }
INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
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

/* Lane i of the result is slot first + i / 2^lanes_log2. */
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

/* Rows r .. r + n - 1 (n <= 16) for T tokens from t0: the accumulator of token t0 + t and row r + i into sums[t][i]. */
typedef void block_fn(const struct matvec_args *a, int64_t r, int n, int32_t t0, int T, __m512 (*sums)[16]);

INLINE void some_tokens(const struct matvec_args *a, int32_t t0, int T, block_fn *block)
{
    __m512 sums[4][16];
    for (int64_t r = 0; r < a->n_rows; r += 16) {
        block(a, r, a->n_rows - r < 16 ? (int)(a->n_rows - r) : 16, t0, T, sums);
        for (int t = 0; t < T; t++) store_rows(a, r, t0 + t, sums[t]);
    }
}

/* 4, 2, 1 tokens at a time: a task's rows stay in the first caches meanwhile. */
INLINE void all_tokens(const struct matvec_args *a, block_fn *block)
{
    int32_t t = 0;
    for (; t + 4 <= a->n; t += 4) some_tokens(a, t, 4, block);
    for (; t + 2 <= a->n; t += 2) some_tokens(a, t, 2, block);
    for (; t < a->n; t++) some_tokens(a, t, 1, block);
}

#endif
