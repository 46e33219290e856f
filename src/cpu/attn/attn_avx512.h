/* SPDX-License-Identifier: Apache-2.0
 *
 * What the AVX-512 attention and sketch kernels share: cache elements as floats, the exponential, small sums. Only
 * files built for AVX-512 include it.
 */
#ifndef SR_CPU_ATTN_ATTN_AVX512_H
#define SR_CPU_ATTN_ATTN_AVX512_H

#include "cpu/kernels.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define SR_INLINE static inline __attribute__((always_inline))
/* Before a loop over registers: at -O2 gcc would keep them in memory. */
#define SR_UNROLL _Pragma("GCC unroll 16")

/* Scale of the block that holds element i of a row of a blocked type. */
SR_INLINE __m512 sr_scale_avx512(sr_dtype type, const uint8_t *row, int32_t i)
{
    uint16_t h;
    memcpy(&h, row + i / SR_KV_BLOCK * sr_kv_block_bytes(type), 2);
    return _mm512_set1_ps(_cvtsh_ss(h));
}

/* The 16 bytes of the Q4_0 block that holds element i, one to a lane. */
SR_INLINE __m512i sr_q4_bytes_avx512(const uint8_t *row, int32_t i)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(row + i / 32 * 18 + 2)));
}

/* What the low four bits of each lane stand for: the shuffle looks at nothing else. */
SR_INLINE __m512 sr_q4_values_avx512(__m512i codes)
{
    return _mm512_permutexvar_ps(codes, _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
}

/* e4m3 as f16 of 2^-8 times the value, which is a move of its bits, below the normal numbers too; but for NaN. */
SR_INLINE __m512 sr_of_f8_avx512(__m128i bytes)
{
    const __m256i h = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7), _mm256_set1_epi16((short)0xbf80));
    const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_or_si128(bytes, _mm_set1_epi8((char)0x80)), _mm_set1_epi8((char)0xff));
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_mask_mov_epi16(h, nan, _mm256_set1_epi16(0x7e00))), _mm512_set1_ps(256.0f));
}

/* Elements [i, i + 16) of a row, i a multiple of 16. `type` is a constant of the caller. Blocked and scaled types come
 * without their scale. */
SR_INLINE __m512 sr_load16_avx512(sr_dtype type, const uint8_t *row, int32_t i)
{
    switch (type) {
    case SR_DTYPE_F32: return _mm512_loadu_ps((const float *)(const void *)row + i);
    case SR_DTYPE_F16: return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i)));
    case SR_DTYPE_BF16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i))), 16));
    case SR_DTYPE_F8_E4M3: return sr_of_f8_avx512(_mm_loadu_si128((const __m128i *)(const void *)(row + i)));
    case SR_DTYPE_Q8_0:
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
            _mm_loadu_si128((const __m128i *)(const void *)(row + i / 32 * 34 + 2 + i % 32))));
    default: return sr_q4_values_avx512(_mm512_srl_epi32(sr_q4_bytes_avx512(row, i), _mm_cvtsi32_si128(i % 32 / 16 * 4)));
    }
}

/* The j-th 16 elements behind i, i a multiple of 32, j a constant: both halves of a Q4_0 block share one load. */
SR_INLINE __m512 sr_load16_at_avx512(sr_dtype type, const uint8_t *row, int32_t i, const int j)
{
    if (type != SR_DTYPE_Q4_0) return sr_load16_avx512(type, row, i + 16 * j);
    const __m512i w = sr_q4_bytes_avx512(row + j / 2 * 18, i);
    return sr_q4_values_avx512(j % 2 ? _mm512_srli_epi32(w, 4) : w);
}

/* Same where only the first elements, those of `mask`, exist; the others are 0. Never for a blocked type. */
SR_INLINE __m512 sr_load_part_avx512(sr_dtype type, const uint8_t *row, int32_t i, __mmask16 mask)
{
    if (type == SR_DTYPE_F32) return _mm512_maskz_loadu_ps(mask, (const float *)(const void *)row + i);
    if (type == SR_DTYPE_F8_E4M3) return sr_of_f8_avx512(_mm_maskz_loadu_epi8(mask, row + i));
    const __m256i h = _mm256_maskz_loadu_epi16(mask, row + 2 * i);
    if (type == SR_DTYPE_F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

SR_INLINE __m512i sr_iota_avx512(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

/* ---- blocks of rows ---- */

enum { SR_LINE = 64 };

typedef float sr_block_weights[SR_ATTN_MAX_GROUP][SR_ATTN_BLOCK];
/* Scales of rows of a blocked type, as floats: of each block of 32 elements, one per row. */
typedef float sr_block_scales[SR_ATTN_MAX_DIM / SR_KV_BLOCK][SR_ATTN_BLOCK];

SR_INLINE void sr_prefetch_row_avx512(const uint8_t *row, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)((uintptr_t)row & ~(uintptr_t)(SR_LINE - 1)); /* each line once: requests are few */
    for (; p < row + bytes; p += SR_LINE) _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* Rows that lie together are one stream, asked for a page before they are read; the first lines of a page go to the second
 * cache a page before that, since the processor's own prefetcher follows inside a page only. Where requests come in bursts
 * the products wait behind them: each is made by itself between two of these. */
enum { SR_AHEAD = 4096, SR_AHEAD_WIDE = 8192, SR_PAGE_BYTES = 4096, SR_PAGE_FIRST = 512 };

/* at: what is about to be read. */
SR_INLINE void sr_fetch_ahead_avx512(const uint8_t *at, const int ahead)
{
    _mm_prefetch((const char *)at + ahead, _MM_HINT_T0);
    if ((uintptr_t)at % SR_PAGE_BYTES < SR_PAGE_FIRST) _mm_prefetch((const char *)at + ahead + SR_PAGE_BYTES, _MM_HINT_T1);
}

/* The same to the second cache, for the matrix units: what they wait for is far behind. */
SR_INLINE void sr_fetch_far_avx512(const uint8_t *at, const int ahead)
{
    _mm_prefetch((const char *)at + ahead, _MM_HINT_T1);
    if ((uintptr_t)at % SR_PAGE_BYTES < SR_PAGE_FIRST) _mm_prefetch((const char *)at + ahead + SR_PAGE_BYTES, _MM_HINT_T1);
}

SR_INLINE int sr_is_together_avx512(const uint8_t *const *row, int32_t n, size_t bytes)
{
    return n > 0 && row[n - 1] == row[0] + (size_t)(n - 1) * bytes;
}

/* Whether a whole block's rows are two streams. */
SR_INLINE int sr_is_stream_avx512(const struct attn_block *a)
{
    return a->n == SR_ATTN_BLOCK && sr_is_together_avx512(a->k, a->n, a->shape->k_row_bytes) &&
           sr_is_together_avx512(a->v, a->n, a->shape->v_row_bytes);
}

/* Whether the next block is the streams' continuation, or begins two others. */
enum { SR_NEXT_FOLLOWS = 1, SR_NEXT_JUMPS = 2 };
SR_INLINE int sr_next_avx512(const struct attn_block *a)
{
    const size_t k_bytes = a->shape->k_row_bytes;
    if (a->n_next > 0 && a->next_k[0] == a->k[a->n - 1] + k_bytes) return SR_NEXT_FOLLOWS;
    return a->n_next == SR_ATTN_BLOCK && sr_is_together_avx512(a->next_k, a->n_next, k_bytes) &&
           sr_is_together_avx512(a->next_v, a->n_next, a->shape->v_row_bytes) ? SR_NEXT_JUMPS : 0;
}

/* From where to ask for what lies `ahead` of a block's row i: beyond the block's end are, if not NULL, the rows from next on. */
SR_INLINE const uint8_t *sr_stream_at_avx512(const uint8_t *const *row, int32_t i, size_t bytes, const uint8_t *next, size_t ahead)
{
    const size_t left = (size_t)(SR_ATTN_BLOCK - i) * bytes;
    return next && left <= ahead ? (const uint8_t *)((uintptr_t)next - left) : row[i];
}

/* Scales of 16 rows of blocks b and, if there is one, b + 1: both are in the first 36 bytes. One permutation puts them into
 * every place, a mask keeps those of the row's own. */
SR_INLINE __m512i sr_scale_pairs_avx512(const sr_dtype type, const uint8_t *const *row, int32_t b, int32_t d)
{
    const int one = (b + 1) * SR_KV_BLOCK == d;
    const __m512i order = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16((int16_t)(sr_kv_block_bytes(type) / 2)), 1);
    const size_t at = (size_t)(b * sr_kv_block_bytes(type));
    __m512i all = _mm512_setzero_si512(), own = _mm512_set_epi64(0, 0, 0, 0xffff, 0, 0, 0, 0xffff);
    const __m512i next = _mm512_set_epi16(30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 31, 14, 13, 12, 11, 10, 9, 8, 7, 6,
                                          5, 4, 3, 2, 1, 0, 15);
    SR_UNROLL for (int r = 0; r < 16; r++) {
        const __m128i *p = (const __m128i *)(const void *)(row[r] + at);
        const __m512i x = one                      ? _mm512_castsi128_si512(_mm_loadu_si128(p))
                          : type == SR_DTYPE_Q4_0 ? _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p))
                                                   : _mm512_loadu_si512(p);
        all = _mm512_ternarylogic_epi32(all, _mm512_permutexvar_epi16(order, x), own, 0xf8); /* all | x & own */
        own = _mm512_permutexvar_epi16(next, own);
    }
    return all;
}

/* Reading the scales of all rows first and widening them 16 at a time spares the products three shuffles per scale.
 * Those up to the next multiple of 16 rows are written too, as copies of the last row's. */
SR_INLINE void sr_load_scales_avx512(const sr_dtype type, const uint8_t *const *row, int32_t n, int32_t d, sr_block_scales out)
{
    const uint8_t *last[16];
    for (int32_t i = 0; i < n; i += 16) {
        const uint8_t *const *from = row + i;
        for (int32_t r = 0; r < 16 && n - i < 16; r++) last[r] = row[i + r < n ? i + r : n - 1];
        if (n - i < 16) from = last;
        for (int32_t b = 0; b < d / SR_KV_BLOCK; b += 2) {
            const __m512i x = sr_scale_pairs_avx512(type, from, b, d);
            _mm512_storeu_ps(&out[b][i], _mm512_cvtph_ps(_mm512_castsi512_si256(x)));
            if (b + 1 < d / SR_KV_BLOCK) _mm512_storeu_ps(&out[b + 1][i], _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)));
        }
    }
}

/* Parts of attn_block_avx512.c: the logits of a block; they become weights, the states move on. */
void sr_attn_logits_avx512(const struct attn_block *a, sr_block_weights p);
void sr_attn_outputs_avx512(const struct attn_block *a, sr_block_weights p);
/* The step between the two: m and l move on, shrink is what old outputs are to be multiplied by. */
void sr_attn_weights_avx512(const struct attn_block *a, sr_block_weights p, float *shrink);
/* Part of attn_block_amx.c: K and V both in 16 bits, head_dim a multiple of 32. */
void sr_attn_half_amx(const struct attn_block *a);
/* Part of attn_block_amx.c: K or V in Q8_0, neither in Q4_0, a group of two heads at least. */
void sr_attn_bytes_amx(const struct attn_block *a);

/* ---- arithmetic ---- */

/* exp(x) for x <= 88 within 3 roundings; 0 below -87, where the result would leave the normal numbers; NaN stays.
 * x = n ln 2 + r, exp(r) = 1 + r + r^2 p(r) with p fitted for the least largest relative error on |r| <= ln 2 / 2. */
SR_INLINE __m512 sr_exp_avx512(__m512 x)
{
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0x1.10628cp-7f), r, _mm512_set1_ps(0x1.572a0cp-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5557aep-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffdfcp-2f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, p, n);
}

/* 2^x for x <= 127 within 2^-18; 0 below -126; NaN stays. x - floor(x) and 2^floor(x) are one instruction each; a result
 * below the normal numbers would cost the latter a hundred cycles. */
SR_INLINE __m512 sr_exp2_rough_avx512(__m512 x)
{
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0x1.bb7ceep-7f), r, _mm512_set1_ps(0x1.aa13f8p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ee7984p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62d166p-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.00002cp+0f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, x);
}

/* The four sums of a, b, c, d. */
SR_INLINE __m128 sr_sum4_avx512(__m512 a, __m512 b, __m512 c, __m512 d)
{
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d ab2 = _mm512_castps_pd(ab), cd2 = _mm512_castps_pd(cd);
    const __m512 t = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
    const __m256 u = _mm256_add_ps(_mm512_castps512_ps256(t), _mm512_extractf32x8_ps(t, 1));
    return _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1));
}

/* The largest lane of each; none is NaN. */
SR_INLINE __m128 sr_max4_avx512(__m512 a, __m512 b, __m512 c, __m512 d)
{
    const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d ab2 = _mm512_castps_pd(ab), cd2 = _mm512_castps_pd(cd);
    const __m512 t = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
    const __m256 u = _mm256_max_ps(_mm512_castps512_ps256(t), _mm512_extractf32x8_ps(t, 1));
    return _mm_max_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1));
}

/* r[i] lane j becomes r[j] lane i. */
SR_INLINE void sr_transpose16_avx512(__m512 *r)
{
    __m512 t[16];
    SR_UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    SR_UNROLL for (int i = 0; i < 16; i += 4)
        SR_UNROLL for (int j = 0; j < 2; j++) {
            const __m512d x = _mm512_castps_pd(t[i + j]), y = _mm512_castps_pd(t[i + 2 + j]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    SR_UNROLL for (int i = 0; i < 16; i += 8)
        SR_UNROLL for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0xdd);
        }
    SR_UNROLL for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
    }
}

/* The scale of a query whose elements become whole numbers of two signed bytes, and its inverse to multiply them with;
 * NaN and 0 where an element is NaN or an infinity. */
SR_INLINE float sr_query_scale_avx512(const float *q, int32_t d, __m512 *inverse)
{
    __m512 most = _mm512_setzero_ps(), zeros = most;
    for (int32_t i = 0; i < d; i += 16) {
        const __m512 x = _mm512_loadu_ps(q + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(x));
        zeros = _mm512_fmadd_ps(x, _mm512_setzero_ps(), zeros); /* NaN where an element is not finite */
    }
    const float max = _mm512_reduce_max_ps(most), one_over = 32512.0f / max;
    const int bad = _mm512_cmp_ps_mask(zeros, zeros, _CMP_UNORD_Q) != 0;
    *inverse = _mm512_set1_ps(isfinite(one_over) && !bad ? one_over : 0.0f);
    return bad ? NAN : max / 32512.0f;
}

/* Elements [i, i + 16) of a row of d; beyond d they are 0 and not read. */
SR_INLINE __m512 sr_widen_avx512(const sr_dtype type, const uint8_t *row, int32_t i, int32_t d)
{
    if (!sr_kv_is_blocked(type) && i + 16 > d) return sr_load_part_avx512(type, row, i, 0xff);
    const __m512 x = sr_load16_avx512(type, row, i);
    return sr_kv_is_blocked(type) ? _mm512_mul_ps(x, sr_scale_avx512(type, row, i)) : x;
}

#endif
