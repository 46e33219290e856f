/* SPDX-License-Identifier: Apache-2.0
 *
 * Mass of scored rows, and shares of the rows kept, 16 rows per register. Rows are compressed in the register and stored
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

void sr_sketch_share_avx512(const struct sketch_share *a)
{
    for (int32_t i = 0; i < a->n; i += 16) {
        const int32_t left = a->n - i;
        const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1u);
        __m512 t = _mm512_set1_ps(-INFINITY);
        for (int32_t g = 0; g < a->group; g++) {
            float *at = a->kept + g * SR_CHUNK_ROWS + i;
            const __m512 x = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, at), _mm512_set1_ps(a->log_total[g]));
            t = _mm512_max_ps(x, t);
            _mm512_mask_storeu_ps(at, mask, sr_exp_avx512(x));
        }
        const __m512 depth = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), t), _mm512_set1_ps(a->bins_per_nat));
        const __m512 bin = _mm512_min_ps(_mm512_max_ps(depth, _mm512_setzero_ps()), _mm512_set1_ps(SR_SKETCH_BINS - 1));
        const __mmask16 needed = _mm512_cmp_ps_mask(t, _mm512_set1_ps(a->cut), _CMP_GE_OQ);
        const __m512i out = _mm512_mask_cvttps_epi32(_mm512_set1_epi32(SR_SKETCH_BINS), needed, bin);
        _mm256_mask_storeu_epi16(a->bin + i, mask, _mm512_cvtepi32_epi16(out));
    }
}
