/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector layer of the portable attention bodies (attn_block_body.h and others) for AVX2: 8 floats. Only files built
 * for AVX2 include it. vec_neon.h has the same names.
 */
#ifndef SR_CPU_ATTN_VEC_AVX2_H
#define SR_CPU_ATTN_VEC_AVX2_H

#include "backend/kv_type.h"

#include <immintrin.h>
#include <string.h>

#define SR_INLINE static inline __attribute__((always_inline))
#define SR_UNROLL _Pragma("GCC unroll 16")

typedef __m256 vec;
typedef __m256i veci;
enum { VEC = 8, TILE_ROWS = 6, TILE_VECS = 2 /* 12 sums in 16 registers */ };

SR_INLINE vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
SR_INLINE void vec_store(float *p, vec x) { _mm256_storeu_ps(p, x); }
SR_INLINE vec vec_all(float x) { return _mm256_set1_ps(x); }
SR_INLINE vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
SR_INLINE vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
SR_INLINE vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
SR_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
/* The larger; b where a is NaN. */
SR_INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
SR_INLINE vec vec_abs(vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

SR_INLINE float vec_sum(vec a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

/* The largest lane of a vector without NaN. */
SR_INLINE float vec_top(vec a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* Bit i: lane i of a >= lane i of b; and of NaN lanes. */
SR_INLINE unsigned vec_at_least(vec a, vec b) { return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
SR_INLINE unsigned vec_not_less(vec a, vec b) { return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ)); } /* or NaN */
SR_INLINE unsigned vec_nan(vec a) { return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }

/* 2^n p where x >= least or NaN, else 0; n is whole and in -126..127. */
SR_INLINE vec vec_scale2(vec p, vec n, vec x, float least)
{
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const vec r = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(least), _CMP_NLT_UQ), r);
}
SR_INLINE vec vec_round(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SR_INLINE vec vec_select_nan(vec r, vec x) { return _mm256_blendv_ps(r, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }

/* e4m3 as f16 of 2^-8 times the value, which is a move of its bits, below the normal numbers too; but for NaN. */
SR_INLINE vec vec_of_f8(__m128i bytes)
{
    const __m128i h = _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7), _mm_set1_epi16((short)0xbf80));
    const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(h, _mm_set1_epi16(0x3f80)), _mm_set1_epi16(0x3f80));
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(h, _mm_and_si128(nan, _mm_set1_epi16(0x7e00)))), _mm256_set1_ps(256.0f));
}

/* Elements [i, i + VEC) of a row, `type` a constant; blocked and scaled types without their scale. */
SR_INLINE vec vec_row(sr_dtype type, const uint8_t *row, int32_t i)
{
    switch (type) {
    case SR_DTYPE_F32: return _mm256_loadu_ps((const float *)(const void *)row + i);
    case SR_DTYPE_F16: return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i)));
    case SR_DTYPE_BF16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i))), 16));
    case SR_DTYPE_F8_E4M3: return vec_of_f8(_mm_loadl_epi64((const __m128i *)(const void *)(row + i)));
    case SR_DTYPE_Q8_0:
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
            _mm_loadl_epi64((const __m128i *)(const void *)(row + i / 32 * 34 + 2 + i % 32))));
    default: {
        const __m256i w = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(row + i / 32 * 18 + 2 + i % 16)));
        const __m256i code = _mm256_and_si256(i % 32 < 16 ? w : _mm256_srli_epi32(w, 4), _mm256_set1_epi32(15));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
    }
    }
}
SR_INLINE float vec_f16(uint16_t h) { return _cvtsh_ss(h); }

SR_INLINE void vec_prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
SR_INLINE void vec_prefetch_far(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); } /* to the second cache */

/* ---- stores of the cache types ---- */

SR_INLINE void vec_store_f16(uint8_t *dst, vec x)
{
    /* the instruction keeps the payload of a NaN, the specification has one NaN of each sign */
    const vec one = _mm256_or_ps(_mm256_and_ps(x, _mm256_set1_ps(-0.0f)), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
    x = _mm256_blendv_ps(x, one, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    _mm_storeu_si128((__m128i *)(void *)dst, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

SR_INLINE void vec_store_bf16(uint8_t *dst, vec x)
{
    const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i round = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i r = _mm256_blendv_epi8(round, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128((__m128i *)(void *)dst, _mm256_castsi256_si128(packed));
}

/* As sr_f8_of_f32. */
SR_INLINE void vec_store_f8(uint8_t *dst, vec x)
{
    const vec mag = vec_abs(x), top = _mm256_set1_ps(448.0f);
    const __m256i u = _mm256_castps_si256(_mm256_min_ps(mag, top)), odd = _mm256_and_si256(_mm256_srli_epi32(u, 20), _mm256_set1_epi32(1));
    const __m256i round = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7ffff - 0x3c000000)), 20);
    const __m256i steps = _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(mag, _mm256_set1_ps(16384.0f))), _mm256_set1_epi32(0x46800000));
    const __m256i small = _mm256_castps_si256(_mm256_cmp_ps(mag, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ));
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x), 24), _mm256_set1_epi32(0x80));
    const __m256i r = _mm256_or_si256(_mm256_blendv_epi8(round, steps, small), sign);
    const __m256i w = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7f), _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    const __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storel_epi64((__m128i *)(void *)dst, _mm_packus_epi16(h, h));
}

/* Rounded to nearest, ties to even; |x| <= 127. */
SR_INLINE void vec_store_i8(uint8_t *dst, vec x)
{
    const __m256i w = _mm256_cvtps_epi32(x);
    const __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storel_epi64((__m128i *)(void *)dst, _mm_packs_epi16(h, h));
}

/* Bytes of a code from `low` and one from `high`: both are cut to whole numbers and 15 at most; none is negative. */
SR_INLINE void vec_store_nibbles(uint8_t *dst, vec low, vec high)
{
    const __m256i most = _mm256_set1_epi32(15);
    const __m256i a = _mm256_min_epi32(_mm256_cvttps_epi32(low), most), b = _mm256_min_epi32(_mm256_cvttps_epi32(high), most);
    const __m256i w = _mm256_or_si256(a, _mm256_slli_epi32(b, 4));
    const __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storel_epi64((__m128i *)(void *)dst, _mm_packus_epi16(h, h));
}

/* ---- codes ---- */

SR_INLINE veci vec_words(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
/* (word >> shift) & mask as floats */
SR_INLINE vec vec_code(veci words, int shift, int mask)
{
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(words, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(mask)));
}

#endif
