/* SPDX-License-Identifier: Apache-2.0
 *
 * Logits of Q4_0 keys in integers; all else is the AVX-512 kernel's. Widening four bits to a float costs three
 * instructions for 16 elements, as much as the products of three heads. Here 16 rows' codes are turned, four elements to
 * a lane, and one instruction multiplies 64 of them. A head's query is kept as whole numbers of at most 127 * 256 in
 * magnitude, two signed bytes each: its elements are off by max |q| / 65024 at most. Sums of a block are exact, so a
 * row's logit does not depend on the rows beside it.
 */
#include "cpu/kernels.h"
#include "cpu/attn/attn_avx512.h"

#include <math.h>

enum { ROWS = 16, BLOCK_BYTES = 18, MAX_BLOCKS = SR_ATTN_MAX_DIM / SR_KV_BLOCK };

/* One block of a head's query, four elements to a lane. */
struct query_block { int32_t high[8], low[8]; };
/* start: -8 times the sum of a block's elements, since codes stand for themselves less 8. */
struct query { float scale; int32_t start[MAX_BLOCKS]; struct query_block block[MAX_BLOCKS]; };

/* 16 whole numbers as pairs of bytes: x = 256 high + low. The low byte of x, taken with its sign, is low. */
SR_INLINE void split16(__m512i x, int32_t *high, int32_t *low)
{
    const __m512i top = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(top));
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(x));
}

static void split_query(const float *q, int32_t d, struct query *out)
{
    __m512 inverse;
    out->scale = sr_query_scale_avx512(q, d, &inverse);
    for (int32_t b = 0; b < d / SR_KV_BLOCK; b += 4) { /* four sums at once: whole numbers below 2^24, exact as floats */
        __m512 sum[4];
        SR_UNROLL for (int j = 0; j < 4; j++) {
            sum[j] = _mm512_setzero_ps();
            if (b + j >= d / SR_KV_BLOCK) continue;
            struct query_block *to = &out->block[b + j];
            const float *from = q + (b + j) * SR_KV_BLOCK;
            const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from), inverse));
            const __m512i y = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + 16), inverse));
            split16(x, to->high, to->low);
            split16(y, to->high + 4, to->low + 4);
            sum[j] = _mm512_cvtepi32_ps(_mm512_add_epi32(x, y));
        }
        const __m128 four = _mm_mul_ps(sr_sum4_avx512(sum[0], sum[1], sum[2], sum[3]), _mm_set1_ps(-8));
        _mm_storeu_si128((__m128i *)(void *)&out->start[b], _mm_cvtps_epi32(four));
    }
}

SR_INLINE __m512i four_rows(const uint8_t *const *row, size_t at)
{
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(row[0] + at)));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)(row[4] + at)), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)(row[8] + at)), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)(row[12] + at)), 3);
}

/* Codes of a block of 16 rows: register j holds elements 4 j .. 4 j + 3 of every row. */
SR_INLINE void turn_codes(const uint8_t *const *row, size_t at, __m512i *code)
{
    __m512i x[4], t[4];
    SR_UNROLL for (int i = 0; i < 4; i++) x[i] = four_rows(row + i, at);
    t[0] = _mm512_unpacklo_epi32(x[0], x[1]);
    t[1] = _mm512_unpackhi_epi32(x[0], x[1]);
    t[2] = _mm512_unpacklo_epi32(x[2], x[3]);
    t[3] = _mm512_unpackhi_epi32(x[2], x[3]);
    SR_UNROLL for (int i = 0; i < 2; i++) {
        x[2 * i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        x[2 * i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    }
    const __m512i nibble = _mm512_set1_epi8(15);
    SR_UNROLL for (int i = 0; i < 4; i++) {
        code[i] = _mm512_and_si512(x[i], nibble);
        code[i + 4] = _mm512_and_si512(_mm512_srli_epi16(x[i], 4), nibble);
    }
}

/* Products of a block of 16 rows with one head's query, in steps of its scale. */
SR_INLINE __m512 block_products(const __m512i *code, const struct query_block *q, int32_t start)
{
    __m512i high = _mm512_setzero_si512(), low = _mm512_set1_epi32(start);
    SR_UNROLL for (int i = 0; i < 8; i++) {
        high = _mm512_dpbusd_epi32(high, code[i], _mm512_set1_epi32(q->high[i]));
        low = _mm512_dpbusd_epi32(low, code[i], _mm512_set1_epi32(q->low[i]));
    }
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}

/* Rows [i, i + n) of the block, n at most 16; meanwhile the same rows of V are fetched. */
static void logits_of_rows(const struct attn_block *a, const struct query *q, sr_block_scales scale, int32_t i, int32_t n, sr_block_weights p)
{
    const struct attn_shape *s = a->shape;
    const int32_t n_blocks = s->head_dim / SR_KV_BLOCK;
    const uint8_t *row[ROWS];
    for (int32_t r = 0; r < ROWS; r++) row[r] = a->k[i + (r < n ? r : n - 1)]; /* a short tile repeats its last row */
    for (int32_t b = 0; b < n_blocks; b++) {
        __m512i code[8];
        const __m512 by = _mm512_loadu_ps(&scale[b][i]);
        turn_codes(row, (size_t)(BLOCK_BYTES * b + 2), code);
        for (int32_t r = n * b / n_blocks; r < n * (b + 1) / n_blocks; r++) sr_prefetch_row_avx512(a->v[i + r], s->v_row_bytes);
        for (int32_t g = 0; g < s->group; g++) {
            const __m512 sum = b ? _mm512_loadu_ps(&p[g][i]) : _mm512_setzero_ps();
            const __m512 x = _mm512_fmadd_ps(block_products(code, &q[g].block[b], q[g].start[b]), by, sum);
            _mm512_storeu_ps(&p[g][i], b + 1 < n_blocks ? x : _mm512_mul_ps(x, _mm512_set1_ps(q[g].scale)));
        }
    }
}

void sr_attn_block_vnni(const struct attn_block *a)
{
    const struct attn_shape *s = a->shape;
    sr_block_weights p;
    sr_block_scales scale;
    struct query q[SR_ATTN_MAX_GROUP];
    if (s->k_type != SR_DTYPE_Q4_0) {
        sr_attn_block_avx512(a);
        return;
    }
    for (int32_t g = 0; g < s->group; g++) split_query(a->q + g * s->head_dim, s->head_dim, &q[g]);
    sr_load_scales_avx512(SR_DTYPE_Q4_0, a->k, a->n, s->head_dim, scale);
    for (int32_t i = 0; i < a->n; i += ROWS) logits_of_rows(a, q, scale, i, a->n - i < ROWS ? a->n - i : ROWS, p);
    *a->k_rows += a->n;
    sr_attn_outputs_avx512(a, p);
}
