/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels of codes on the matrix units do alike (attn_block_amx.c, attn_bytes_amx.c and attn_keys_amx.c): rows put
 * together, requests for rows to come, values of Q8_0 turned, logits made weights relative to the largest of their block, sums
 * added to the output.
 */
#ifndef SR_CPU_ATTN_ATTN_WEIGHTS_AMX_H
#define SR_CPU_ATTN_ATTN_WEIGHTS_AMX_H

#include "cpu/attn/attn_amx_inline.h"

#include <math.h>
#include <string.h>

/* ---- rows ---- */

/* 64 rows together, if need be in `copies`; those behind the last one are copies of it and will have no weight. */
static inline const uint8_t *all_rows(uint8_t *copies, const uint8_t *const *row, int32_t n, size_t bytes)
{
    if (n == SR_ATTN_BLOCK && sr_is_together_avx512(row, n, bytes)) return row[0];
    for (int32_t i = 0; i < SR_ATTN_BLOCK; i++) memcpy(copies + (size_t)i * bytes, row[i < n ? i : n - 1], bytes);
    return copies;
}

/* What to fetch meanwhile: what follows a stream, a line at each of the slots that are spread over the instructions, or rows to
 * come, a few at a time. */
struct ahead { const uint8_t *stream; const uint8_t *const *row; size_t bytes; int32_t n, rows; };

static inline struct ahead ahead_of(const uint8_t *stream, const uint8_t *const *row, int32_t n, size_t bytes, int32_t n_steps)
{
    return (struct ahead){stream, row, bytes, n, (n + n_steps - 1) / n_steps};
}

SR_INLINE void fetch_rows(struct ahead *h)
{
    for (int32_t i = 0; i < h->rows && h->n > 0; i++, h->n--) sr_prefetch_row_avx512(*h->row++, h->bytes);
}

/* ---- values ---- */

SR_INLINE __m256i load32(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

/* The Q8_0 block at p of rows 0, 16, 32 and 48 from there, four rows to a lane: elements 0..15, then 16..31. Pairs of two rows
 * have elements 4 j .. and 16 + 4 j .. in lane j, so that the halves of the pairs are the two tiles. */
SR_INLINE void turn_q8_values(const uint8_t *p, size_t row_bytes, uint8_t *first, uint8_t *second)
{
    const __m512i order = _mm512_set_epi32(0x3f1f3e1e, 0x3d1d3c1c, 0x2f0f2e0e, 0x2d0d2c0c, 0x3b1b3a1a, 0x39193818, 0x2b0b2a0a, 0x29092808,
                                           0x37173616, 0x35153414, 0x27072606, 0x25052404, 0x33133212, 0x31113010, 0x23032202, 0x21012000);
    const __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(load32(p + 2)), load32(p + 2 + 16 * row_bytes), 1);
    const __m512i y = _mm512_inserti64x4(_mm512_castsi256_si512(load32(p + 2 + 32 * row_bytes)), load32(p + 2 + 48 * row_bytes), 1);
    const __m512i x2 = _mm512_permutexvar_epi8(order, x), y2 = _mm512_permutexvar_epi8(order, y);
    _mm512_store_si512(first, _mm512_unpacklo_epi16(x2, y2));
    _mm512_store_si512(second, _mm512_unpackhi_epi16(x2, y2));
}

/* ---- weights ---- */

/* Logits of four heads; those beyond n are set to -inf. Their largest; NaN never wins. */
SR_INLINE __m128 tops_of(float (*p)[SR_ATTN_BLOCK], int32_t n)
{
    const __m512 least = _mm512_set1_ps(-INFINITY);
    __m512 top[4];
    SR_UNROLL for (int g = 0; g < 4; g++) {
        SR_UNROLL for (int i = 0; i < 4 && n < SR_ATTN_BLOCK; i++)
            if (n < 16 * i + 16) _mm512_mask_storeu_ps(&p[g][16 * i], (__mmask16)(n <= 16 * i ? 0xffff : 0xffffu << (n - 16 * i)), least);
        top[g] = _mm512_max_ps(_mm512_loadu_ps(&p[g][0]), least);
        SR_UNROLL for (int i = 1; i < 4; i++) top[g] = _mm512_max_ps(_mm512_loadu_ps(&p[g][16 * i]), top[g]);
    }
    return sr_max4_avx512(top[0], top[1], top[2], top[3]);
}

/* Logits of four heads become weights with the largest 1; returns their sums. */
SR_INLINE __m128 weigh(float (*p)[SR_ATTN_BLOCK], const float *base)
{
    __m512 sum[4];
    SR_UNROLL for (int g = 0; g < 4; g++) {
        sum[g] = _mm512_setzero_ps();
        SR_UNROLL for (int i = 0; i < 4; i++) {
            const __m512 x = sr_exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(&p[g][16 * i]), _mm512_set1_ps(base[g])));
            _mm512_storeu_ps(&p[g][16 * i], x);
            sum[g] = _mm512_add_ps(sum[g], x);
        }
    }
    return sr_sum4_avx512(sum[0], sum[1], sum[2], sum[3]);
}

/* The largest logit of each head to base; logits beyond n, and of heads beyond the group up to a multiple of four, are set. */
static inline void tops_of_all(const struct attn_block *a, sr_block_weights p, float *base)
{
    for (int32_t g = a->shape->group; g % 4; g++) memset(p[g], 0, sizeof(p[g]));
    for (int32_t g = 0; g < a->shape->group; g += 4) _mm_storeu_ps(base + g, tops_of(p + g, a->n));
}

/* Logits become weights with the largest of each head, which tops_of_all left in base, 1; m and l move on. top: what that
 * largest is in terms of l, NaN for a head whose total is NaN; shrink: the factor of the old output. */
static inline void weights_of(const struct attn_block *a, sr_block_weights p, float *base, float *top, float *shrink)
{
    const int32_t group = a->shape->group;
    const __mmask16 heads = (__mmask16)((1u << group) - 1);
    float sum[SR_ATTN_MAX_GROUP] = {0};
    const __m512 none = _mm512_set1_ps(-INFINITY), zeros = _mm512_setzero_ps();
    const __m512 best = _mm512_mask_loadu_ps(none, heads, base), old = _mm512_mask_loadu_ps(none, heads, a->m);
    const __m512 m = _mm512_max_ps(best, old);
    const __m512 from = _mm512_mask_mov_ps(m, _mm512_cmp_ps_mask(m, none, _CMP_EQ_OQ), zeros);
    _mm512_storeu_ps(base, _mm512_mask_mov_ps(best, _mm512_cmp_ps_mask(best, none, _CMP_EQ_OQ), zeros));
    for (int32_t g = 0; g < group; g += 4) _mm_storeu_ps(sum + g, weigh(p + g, base + g));
    const __m512 t = sr_exp_avx512(_mm512_sub_ps(best, from)), s = sr_exp_avx512(_mm512_sub_ps(old, from));
    const __m512 l = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(heads, a->l), s, _mm512_mul_ps(_mm512_maskz_loadu_ps(heads, sum), t));
    _mm512_mask_storeu_ps(a->m, heads, m);
    _mm512_mask_storeu_ps(a->l, heads, l);
    _mm512_storeu_ps(shrink, s);
    _mm512_storeu_ps(top, _mm512_mask_mov_ps(t, _mm512_cmp_ps_mask(l, l, _CMP_UNORD_Q), l));
}

/* Scales of 64 rows, the largest made `one`. Returns what that was; NaN if one of them is not finite. */
SR_INLINE float level_scales(__m512 *scale, const float one)
{
    __m512 most = _mm512_setzero_ps(), zeros = most;
    SR_UNROLL for (int i = 0; i < 4; i++) {
        most = _mm512_max_ps(most, _mm512_abs_ps(scale[i]));
        zeros = _mm512_fmadd_ps(scale[i], _mm512_setzero_ps(), zeros);
    }
    if (_mm512_cmp_ps_mask(zeros, zeros, _CMP_UNORD_Q)) return NAN;
    const float max = _mm512_reduce_max_ps(most);
    const __m512 by = _mm512_set1_ps(max > 0 ? one / max : 0.0f);
    SR_UNROLL for (int i = 0; i < 4; i++) scale[i] = _mm512_mul_ps(scale[i], by);
    return max;
}

/* A weight times its scale has three bytes: off by 2^-22 of the largest of the 64 rows at most. */
enum { DIGITS = 3, WEIGHT_TILES = DIGITS * SR_ATTN_MAX_GROUP / 16, WEIGHT_ONE = 127 << 16, WEIGHT_BIAS = 0x8080 };

/* Bytes of weights times scales, each byte of all 64 rows together. Byte 4 l + i belongs to row 16 i + l. */
SR_INLINE void split_weights(const float *p, const __m512 *scale, uint8_t *low, uint8_t *mid, uint8_t *high)
{
    const __m512i even = _mm512_set1_epi32(0x00ff00ff), flip = _mm512_set1_epi8((char)0x80);
    __m512i x[4], t[4];
    SR_UNROLL for (int i = 0; i < 4; i++)
        x[i] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(p + 16 * i), scale[i], _mm512_set1_ps((float)WEIGHT_BIAS)));
    SR_UNROLL for (int i = 0; i < 2; i++) { /* even bytes of two, odd bytes of two */
        t[2 * i] = _mm512_ternarylogic_epi32(even, x[2 * i], _mm512_slli_epi32(x[2 * i + 1], 8), 0xca);
        t[2 * i + 1] = _mm512_ternarylogic_epi32(even, _mm512_srli_epi32(x[2 * i], 8), x[2 * i + 1], 0xca);
    }
    const __mmask32 odd = 0xaaaaaaaa;
    _mm512_store_si512(low, _mm512_xor_si512(flip, _mm512_mask_blend_epi16(odd, t[0], _mm512_slli_epi32(t[2], 16))));
    _mm512_store_si512(mid, _mm512_xor_si512(flip, _mm512_mask_blend_epi16(odd, t[1], _mm512_slli_epi32(t[3], 16))));
    _mm512_store_si512(high, _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(t[0], 16), t[2]));
}

/* ---- outputs ---- */

/* Sums of a block's 32 elements, [byte of the weights][group] rows of 16, those of its first half and of its second, go to o, its elements of
 * the first head. */
SR_INLINE void add_values(int32_t (*first)[16], int32_t (*second)[16], const struct attn_block *a, float scale, const float *top,
                          const float *shrink, float *o)
{
    const int32_t group = a->shape->group;
    for (int32_t g = 0; g < group; g++, o += a->shape->head_dim) {
        const __m512 by = _mm512_set1_ps(top[g] * scale), old = _mm512_set1_ps(shrink[g]);
        SR_UNROLL for (int h = 0; h < 2; h++) {
            int32_t(*out)[16] = h ? second : first;
            const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(out[2 * group + g]), 8), _mm512_load_si512(out[group + g]));
            const __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256), _mm512_cvtepi32_ps(_mm512_load_si512(out[g])));
            _mm512_storeu_ps(o + 16 * h, _mm512_fmadd_ps(x, by, _mm512_mul_ps(_mm512_loadu_ps(o + 16 * h), old)));
        }
    }
}

#endif
