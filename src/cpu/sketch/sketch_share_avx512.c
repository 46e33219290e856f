/* SPDX-License-Identifier: Apache-2.0
 *
 * Shares of the rows kept, and picks among them, 16 rows per register.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

/* Columns to rows: lane k of register r becomes row 4 k + r of 4 heads. */
SR_INLINE void turn4(const __m512 *x, __m512 *row)
{
    const __m512 a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
    const __m512 c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
    row[0] = _mm512_shuffle_ps(a, c, 0x44);
    row[1] = _mm512_shuffle_ps(a, c, 0xee);
    row[2] = _mm512_shuffle_ps(b, d, 0x44);
    row[3] = _mm512_shuffle_ps(b, d, 0xee);
}

/* Adds the shares of 16 rows, x = 4 heads of them, to the four columns of their bins at `sums`. */
SR_INLINE void add_four(const __m512 *x, const uint16_t *bin, int32_t width, float *sums)
{
    float turned[4][16] __attribute__((aligned(64)));
    __m512 row[4];
    turn4(x, row);
    SR_UNROLL for (int r = 0; r < 4; r++) _mm512_store_ps(turned[r], row[r]);
    SR_UNROLL for (int i = 0; i < 16; i++) {
        float *sum = sums + bin[i] * width;
        _mm_store_ps(sum, _mm_add_ps(_mm_load_ps(sum), _mm_load_ps(turned[i % 4] + i / 4 * 4)));
    }
}

/* The same of 8 heads, which are a row of the table, with half the additions. */
SR_INLINE void add_eight(const __m512 *x, const uint16_t *bin, float *sums)
{
    float turned[8][16] __attribute__((aligned(64))); /* rows r and 4 + r, then 8 + r and 12 + r */
    __m512 low[4], high[4];
    turn4(x, low);
    turn4(x + 4, high);
    SR_UNROLL for (int r = 0; r < 4; r++) {
        const __m512 first = _mm512_shuffle_f32x4(low[r], high[r], 0x44), second = _mm512_shuffle_f32x4(low[r], high[r], 0xee);
        _mm512_store_ps(turned[2 * r], _mm512_shuffle_f32x4(first, first, 0xd8));
        _mm512_store_ps(turned[2 * r + 1], _mm512_shuffle_f32x4(second, second, 0xd8));
    }
    SR_UNROLL for (int i = 0; i < 16; i++) {
        float *sum = sums + bin[i] * 8;
        _mm256_store_ps(sum, _mm256_add_ps(_mm256_load_ps(sum), _mm256_load_ps(turned[2 * (i % 4) + i / 8] + i / 4 % 2 * 8)));
    }
}

/* x: log shares of 16 rows by head, up to a whole number of four heads. Rows that are not `needed` have any bin and add nothing. */
SR_INLINE void add_rows(const struct sketch_share *a, __m512 *x, __mmask16 needed, const uint16_t *bin)
{
    const int32_t width = sr_sketch_width(a->group);
    for (int32_t g = 0; g < width; g++)
        x[g] = g < a->group ? _mm512_maskz_mov_ps(needed, sr_exp_avx512(x[g])) : _mm512_setzero_ps();
    if (width == 8) add_eight(x, bin, a->sums);
    else
        for (int32_t g = 0; g < width; g += 4) add_four(x + g, bin, width, a->sums + g);
}

SR_INLINE void share_rows(const struct sketch_share *a, int32_t i, __mmask16 mask)
{
    __m512 x[SR_ATTN_MAX_GROUP], t = _mm512_set1_ps(-INFINITY);
    uint16_t bin[16] __attribute__((aligned(32)));
    for (int32_t g = 0; g < a->group; g++) {
        x[g] = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, a->kept + g * SR_SKETCH_STRIDE + i), _mm512_set1_ps(a->log_total[g]));
        t = _mm512_max_ps(x[g], t);
    }
    const __m512 depth = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), t), _mm512_set1_ps(a->bins_per_nat));
    const __m512 clamped = _mm512_min_ps(_mm512_max_ps(depth, _mm512_setzero_ps()), _mm512_set1_ps(SR_SKETCH_BINS - 1));
    const __mmask16 needed = _mm512_mask_cmp_ps_mask(mask, t, _mm512_set1_ps(a->cut), _CMP_GE_OQ);
    const __m512i bins = _mm512_cvttps_epi32(clamped), told = _mm512_mask_mov_epi32(_mm512_set1_epi32(SR_SKETCH_BINS), needed, bins);
    _mm256_mask_storeu_epi16(a->bin + i, mask, _mm512_cvtepi32_epi16(told));
    if (!needed) return;
    _mm256_store_si256((__m256i *)(void *)bin, _mm512_cvtepi32_epi16(_mm512_maskz_mov_epi32(needed, bins)));
    add_rows(a, x, needed, bin);
}

void sr_sketch_share_avx512(const struct sketch_share *a)
{
    int32_t i = 0;
    for (; i + 16 <= a->n; i += 16) share_rows(a, i, 0xffff);
    if (i < a->n) share_rows(a, i, (__mmask16)((1u << (a->n - i)) - 1u));
}

int32_t sr_sketch_pick_avx512(const struct sketch_pick *a)
{
    int32_t n = 0;
    for (int32_t i = 0; i < a->n; i += 16) {
        const int32_t left = a->n - i;
        const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1u);
        const __m256i above = _mm256_sub_epi16(_mm256_maskz_loadu_epi16(mask, a->bin + i), _mm256_set1_epi16((short)a->first));
        const __mmask16 pick = _mm256_mask_cmplt_epu16_mask(mask, above, _mm256_set1_epi16((short)(a->end - a->first)));
        const int32_t n_picked = __builtin_popcount(pick);
        const __m512i rows = _mm512_maskz_compress_epi32(pick, _mm512_maskz_loadu_epi32(pick, a->rows + i));
        _mm512_mask_storeu_epi32(a->list + n, (__mmask16)((1u << n_picked) - 1u), rows);
        n += n_picked;
    }
    return n;
}
