/* SPDX-License-Identifier: Apache-2.0
 *
 * What the attention kernels on the matrix units share: a barrier for tiles, a float as the sum of two bf16 values. Only
 * files built for AMX include it, after attn_avx512.h or before.
 */
#ifndef SR_CPU_ATTN_ATTN_AMX_INLINE_H
#define SR_CPU_ATTN_ATTN_AMX_INLINE_H

#include "cpu/attn/attn_avx512.h"

/* Loads of tiles are not known to the compiler as reads of memory, nor stores as writes. */
SR_INLINE void in_memory(void) { __asm__ volatile("" ::: "memory"); }

/* Lanes of pairs: x in the low halves, y in the high ones. */
SR_INLINE __m512i sr_pair_bf16(__m512 x, __m512 y)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                                           3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

SR_INLINE __m512 sr_low_of(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }
SR_INLINE __m512 sr_high_of(__m512i pair) { return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000))); }

/* What hi leaves of x and y. */
SR_INLINE __m512i sr_rest_bf16(__m512 x, __m512 y, __m512i hi)
{
    return sr_pair_bf16(_mm512_sub_ps(x, sr_low_of(hi)), _mm512_sub_ps(y, sr_high_of(hi)));
}

#endif
