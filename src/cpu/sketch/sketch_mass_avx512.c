/* SPDX-License-Identifier: Apache-2.0
 *
 * Mass of scored rows, shares of the rows kept, and picks among them, 16 rows per register. Rows are compressed in the register and stored
 * whole: what lies beyond the last one kept is overwritten by the next ones, and there is room for it.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

static __m512i iota(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

static int32_t keep_rows(const struct sketch_mass *a, int32_t row, __mmask16 keep, int32_t n)
{
    const __m512i rows = _mm512_add_epi32(iota(), _mm512_set1_epi32(a->first_row + row));
    _mm512_storeu_si512(a->kept_rows + n, _mm512_maskz_compress_epi32(keep, rows));
    for (int32_t g = 0; g < a->group; g++) {
        const __m512 x = _mm512_loadu_ps(a->logits + g * SR_CHUNK_ROWS + row);
        _mm512_storeu_ps(a->kept + g * SR_CHUNK_ROWS + n, _mm512_maskz_compress_ps(keep, x));
    }
    return n + __builtin_popcount(keep);
}

/* A head's constants, and its sums so far. exp(x - max) is taken in base 2. */
struct mass_head { __m512 shift, least, sum; };

void sr_sketch_mass_avx512(struct sketch_mass *a)
{
    const __m512 log2e = _mm512_set1_ps(0x1.715476p+0f);
    struct mass_head head[SR_ATTN_MAX_GROUP];
    int32_t n = 0;
    for (int32_t g = 0; g < a->group; g++)
        head[g] = (struct mass_head){_mm512_set1_ps(-a->max[g] * 0x1.715476p+0f), _mm512_set1_ps(a->floor[g] + a->cut),
                                     _mm512_setzero_ps()};
    for (int32_t row = a->row0 & ~15; row < a->row1; row += 16) {
        const uint32_t from = row < a->row0 ? (uint32_t)(a->row0 - row) : 0, left = (uint32_t)(a->row1 - row);
        const uint32_t inside = (0xffffu << from) & (left >= 16 ? 0xffffu : (1u << left) - 1u);
        __mmask16 keep = 0;
        for (int32_t g = 0; g < a->group; g++) {
            const __m512 x = _mm512_loadu_ps(a->logits + g * SR_CHUNK_ROWS + row);
            head[g].sum = _mm512_add_ps(head[g].sum, sr_exp2_rough_avx512(_mm512_fmadd_ps(x, log2e, head[g].shift)));
            keep |= _mm512_cmp_ps_mask(x, head[g].least, _CMP_GE_OQ);
        }
        keep &= (__mmask16)inside;
        if (keep) n = keep_rows(a, row, keep, n);
    }
    for (int32_t g = 0; g < a->group; g++) a->sum[g] = _mm512_reduce_add_ps(head[g].sum);
    a->n_kept = n;
}

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

void sr_sketch_share_avx512(const struct sketch_share *a)
{
    const int32_t width = sr_sketch_width(a->group);
    const __m512i behind = _mm512_add_epi32(iota(), _mm512_set1_epi32(SR_SKETCH_BINS));
    for (int32_t i = 0; i < a->n; i += 16) {
        const int32_t left = a->n - i;
        const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1u);
        __m512 x[SR_ATTN_MAX_GROUP], t = _mm512_set1_ps(-INFINITY);
        uint16_t bin[16];
        for (int32_t g = 0; g < width; g++) x[g] = _mm512_setzero_ps();
        for (int32_t g = 0; g < a->group; g++) {
            const __m512 log_share = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, a->kept + g * SR_CHUNK_ROWS + i), _mm512_set1_ps(a->log_total[g]));
            t = _mm512_max_ps(log_share, t);
            x[g] = sr_exp_avx512(log_share);
        }
        const __m512 depth = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), t), _mm512_set1_ps(a->bins_per_nat));
        const __m512 clamped = _mm512_min_ps(_mm512_max_ps(depth, _mm512_setzero_ps()), _mm512_set1_ps(SR_SKETCH_BINS - 1));
        const __mmask16 needed = _mm512_mask_cmp_ps_mask(mask, t, _mm512_set1_ps(a->cut), _CMP_GE_OQ);
        const __m256i out = _mm512_cvtepi32_epi16(_mm512_mask_cvttps_epi32(behind, needed, clamped));
        _mm256_mask_storeu_epi16(a->bin + i, mask, out);
        _mm256_storeu_si256((__m256i *)(void *)bin, out);
        for (int32_t g = 0; g < a->group; g += 4) add_shares(x + g, bin, width, a->sums + g);
    }
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
