/* SPDX-License-Identifier: Apache-2.0
 *
 * Floats into a cache row, byte for byte as the scalar kv_store.
 */
#include "base/half.h"
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <assert.h>
#include <math.h>

static __mmask16 head_of(int64_t left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1u); }

static void store_f16(const float *x, uint8_t *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = head_of(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        /* the instruction keeps the payload of a NaN, the specification has one NaN of each sign */
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), minus = _mm512_movepi32_mask(_mm512_castps_si512(v));
        __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
        h = _mm256_mask_mov_epi16(h, nan, _mm256_mask_mov_epi16(_mm256_set1_epi16(0x7e00), minus, _mm256_set1_epi16((short)0xfe00)));
        _mm256_mask_storeu_epi16(dst + 2 * i, mask, h);
    }
}

static void store_bf16(const float *x, uint8_t *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = head_of(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i u = _mm512_castps_si512(v), high = _mm512_srli_epi32(u, 16);
        const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
        r = _mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40));
        _mm256_mask_storeu_epi16(dst + 2 * i, mask, _mm512_cvtepi32_epi16(r));
    }
}

/* As sr_f8_of_f32. */
static void store_f8(const float *x, uint8_t *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = head_of(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(mask, x + i), mag = _mm512_abs_ps(v);
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), small = _mm512_cmp_ps_mask(mag, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
        const __m512i u = _mm512_castps_si512(_mm512_min_ps(mag, _mm512_set1_ps(448.0f)));
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 20), _mm512_set1_epi32(1));
        __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7ffff - 0x3c000000)), 20);
        const __m512i steps = _mm512_castps_si512(_mm512_add_ps(mag, _mm512_set1_ps(16384.0f)));
        r = _mm512_mask_sub_epi32(r, small, steps, _mm512_set1_epi32(0x46800000));
        r = _mm512_mask_or_epi32(r, _mm512_movepi32_mask(_mm512_castps_si512(v)), r, _mm512_set1_epi32(0x80));
        r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7f));
        _mm_mask_storeu_epi8(dst + i, mask, _mm512_cvtepi32_epi8(r));
    }
}

static void store_q8_block(const float *x, uint8_t *dst)
{
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const float max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
    const int bad = nan || isinf(max);
    const float scale = bad ? NAN : max / 127.0f, inverse = !bad && max > 0 ? 127.0f / max : 0.0f;
    const uint16_t h = sr_f16_of_f32(scale);
    memcpy(dst, &h, 2);
    const __mmask16 keep = bad ? 0 : 0xffff;
    const __m512 by = _mm512_set1_ps(inverse);
    const __m512i qa = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(a, by)), qb = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(b, by));
    _mm_storeu_si128((__m128i *)(void *)(dst + 2), _mm512_cvtepi32_epi8(qa));
    _mm_storeu_si128((__m128i *)(void *)(dst + 18), _mm512_cvtepi32_epi8(qb));
}

static void store_q4_block(const float *x, uint8_t *dst)
{
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16), mag_a = _mm512_abs_ps(a), mag_b = _mm512_abs_ps(b);
    const float max = _mm512_reduce_max_ps(_mm512_max_ps(mag_a, mag_b));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
    const int bad = nan || isinf(max);
    const uint32_t low = _mm512_cmp_ps_mask(mag_a, _mm512_set1_ps(max), _CMP_EQ_OQ);
    const uint32_t high = _mm512_cmp_ps_mask(mag_b, _mm512_set1_ps(max), _CMP_EQ_OQ);
    const float scale = bad ? NAN : (max > 0 ? x[__builtin_ctz(low | high << 16)] : 0.0f) / -8.0f, one_over = 1.0f / scale;
    const __m512 inverse = _mm512_set1_ps(isfinite(one_over) ? one_over : 0.0f), half = _mm512_set1_ps(8.5f);
    const uint16_t h = sr_f16_of_f32(scale);
    memcpy(dst, &h, 2);
    const __mmask16 keep = bad ? 0 : 0xffff;
    const __m512i most = _mm512_set1_epi32(15);
    const __m512i qa = _mm512_cvttps_epi32(_mm512_mask_add_ps(half, keep, _mm512_mul_ps(a, inverse), half));
    const __m512i qb = _mm512_cvttps_epi32(_mm512_mask_add_ps(half, keep, _mm512_mul_ps(b, inverse), half));
    const __m512i bytes = _mm512_or_si512(_mm512_min_epi32(qa, most), _mm512_slli_epi32(_mm512_min_epi32(qb, most), 4));
    _mm_storeu_si128((__m128i *)(void *)(dst + 2), _mm512_cvtepi32_epi8(bytes));
}

void sr_kv_store_avx512(sr_dtype type, const float *src, void *dst, int64_t n)
{
    uint8_t *out = dst;
    switch (type) {
    case SR_DTYPE_F32: memcpy(out, src, (size_t)n * 4); return;
    case SR_DTYPE_F16: store_f16(src, out, n); return;
    case SR_DTYPE_BF16: store_bf16(src, out, n); return;
    case SR_DTYPE_F8_E4M3: store_f8(src, out, n); return;
    default: break;
    }
    assert(sr_kv_is_blocked(type) && n % SR_KV_BLOCK == 0);
    for (int64_t b = 0; b < n; b += SR_KV_BLOCK, out += sr_kv_block_bytes(type)) {
        if (type == SR_DTYPE_Q8_0) store_q8_block(src + b, out);
        else store_q4_block(src + b, out);
    }
}
