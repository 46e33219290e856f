/* SPDX-License-Identifier: Apache-2.0
 *
 * Shares of the rows kept, and picks among them, 16 rows per register. Of many rows kept few have a bin: those are pressed
 * together, so that exponentials are taken of whole registers.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

/* Adds the shares of 16 rows, x = 4 heads of them, to the four columns of their bins at `sums`. */
SR_INLINE void add_shares(const __m512 *x, const uint16_t *bin, int32_t width, float *sums)
{
    const __m512 a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
    const __m512 c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
    float turned[4][16] __attribute__((aligned(64))); /* lane k of register r is row 4 k + r */
    _mm512_store_ps(turned[0], _mm512_shuffle_ps(a, c, 0x44));
    _mm512_store_ps(turned[1], _mm512_shuffle_ps(a, c, 0xee));
    _mm512_store_ps(turned[2], _mm512_shuffle_ps(b, d, 0x44));
    _mm512_store_ps(turned[3], _mm512_shuffle_ps(b, d, 0xee));
    SR_UNROLL for (int i = 0; i < 16; i++) {
        float *sum = sums + bin[i] * width;
        _mm_store_ps(sum, _mm_add_ps(_mm_load_ps(sum), _mm_load_ps(turned[i % 4] + i / 4 * 4)));
    }
}

/* Rows with a bin that wait for 16 of them: log shares by head, and bins. A whole register may be stored behind 15. */
struct waiting { int32_t n; uint16_t bin[32]; float x[SR_ATTN_MAX_GROUP][32]; };

/* The first 16 of them. What stands behind the last one is a bin, too, and adds nothing. */
static void add_waiting(const struct sketch_share *a, struct waiting *w)
{
    const int32_t width = sr_sketch_width(a->group), n = w->n < 16 ? w->n : 16;
    const __mmask16 mask = (__mmask16)((1u << n) - 1u);
    __m512 share[4];
    for (int32_t g = 0; g < a->group; g += 4) {
        SR_UNROLL for (int k = 0; k < 4; k++)
            share[k] = g + k < a->group ? _mm512_maskz_mov_ps(mask, sr_exp_avx512(_mm512_loadu_ps(w->x[g + k]))) : _mm512_setzero_ps();
        add_shares(share, w->bin, width, a->sums + g);
    }
    for (int32_t g = 0; g < a->group; g++) _mm512_storeu_ps(w->x[g], _mm512_loadu_ps(w->x[g] + 16));
    _mm256_storeu_si256((__m256i *)(void *)w->bin, _mm256_loadu_si256((const __m256i *)(const void *)(w->bin + 16)));
    w->n -= n;
}

void sr_sketch_share_avx512(const struct sketch_share *a)
{
    const __m512i behind = _mm512_set1_epi32(SR_SKETCH_BINS);
    struct waiting w;
    w.n = 0;
    memset(w.bin, 0, sizeof(w.bin));
    for (int32_t i = 0; i < a->n; i += 16) {
        const int32_t left = a->n - i;
        const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1u);
        __m512 x[SR_ATTN_MAX_GROUP], t = _mm512_set1_ps(-INFINITY);
        for (int32_t g = 0; g < a->group; g++) {
            x[g] = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, a->kept + g * SR_SKETCH_STRIDE + i), _mm512_set1_ps(a->log_total[g]));
            t = _mm512_max_ps(x[g], t);
        }
        const __m512 depth = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), t), _mm512_set1_ps(a->bins_per_nat));
        const __m512 clamped = _mm512_min_ps(_mm512_max_ps(depth, _mm512_setzero_ps()), _mm512_set1_ps(SR_SKETCH_BINS - 1));
        const __mmask16 needed = _mm512_mask_cmp_ps_mask(mask, t, _mm512_set1_ps(a->cut), _CMP_GE_OQ);
        const __m512i bins = _mm512_mask_cvttps_epi32(behind, needed, clamped);
        _mm256_mask_storeu_epi16(a->bin + i, mask, _mm512_cvtepi32_epi16(bins));
        if (!needed) continue;
        _mm256_storeu_si256((__m256i *)(void *)(w.bin + w.n), _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(needed, bins)));
        for (int32_t g = 0; g < a->group; g++) _mm512_storeu_ps(w.x[g] + w.n, _mm512_maskz_compress_ps(needed, x[g]));
        w.n += __builtin_popcount(needed);
        if (w.n >= 16) add_waiting(a, &w);
    }
    if (w.n > 0) add_waiting(a, &w);
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
