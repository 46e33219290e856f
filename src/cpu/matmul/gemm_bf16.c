/* SPDX-License-Identifier: Apache-2.0
 *
 * Many tokens with AVX-512 BF16: both factors rounded to bf16, sums in f32. The pack is AMX's too.
 */
#include "cpu/matmul/gemm_inline.h"

void sr_gemm_pack_bf16(const struct gemm_pack_args *a)
{
    const int64_t steps = steps_of(a->n_in);
    uint8_t *out = a->packed;
    for (int32_t t = 0; t < SR_GEMM_TOKENS; t++) {
        uint8_t *tile = out + (size_t)(t / 16 * steps) * TILE_BYTES + (size_t)(t % 16) * 64;
        const float *x = a->x + t * a->x_stride;
        for (int64_t k = 0; k < 32 * steps; k += 32, tile += TILE_BYTES) {
            const int64_t n = t < a->n ? a->n_in - k : 0;
            const __mmask16 m0 = n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1u);
            const __mmask16 m1 = n >= 32 ? 0xffff : n <= 16 ? 0 : (__mmask16)((1u << (n - 16)) - 1u);
            const __m512 x0 = _mm512_maskz_loadu_ps(m0, x + k), x1 = _mm512_maskz_loadu_ps(m1, x + k + 16);
            _mm512_store_si512(tile, (__m512i)_mm512_cvtne2ps_pbh(x1, x0));
        }
    }
}

enum { TOKENS = 8 };

/* 8 tokens (from token `first` of their tiles) times 32 rows. */
static void multiply8(const struct gemm_args *a, const uint8_t *tokens, const uint8_t *panel, int32_t t0)
{
    const int64_t steps = steps_of(a->n_in);
    __m512 acc[TOKENS][2];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) acc[t][0] = acc[t][1] = _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; s++)
        for (int k = 0; k < 16; k++) {
            const uint8_t *w = panel + (size_t)s * TILE_BYTES + 64 * k, *x = tokens + (size_t)s * TILE_BYTES + 4 * k;
            const __m512bh w0 = (__m512bh)_mm512_load_si512(w), w1 = (__m512bh)_mm512_load_si512(w + (size_t)steps * TILE_BYTES);
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
                int32_t pair;
                memcpy(&pair, x + 64 * t, 4);
                const __m512bh xt = (__m512bh)_mm512_set1_epi32(pair);
                acc[t][0] = _mm512_dpbf16_ps(acc[t][0], w0, xt);
                acc[t][1] = _mm512_dpbf16_ps(acc[t][1], w1, xt);
            }
        }
    const __mmask16 m0 = a->n_rows >= 16 ? 0xffff : (__mmask16)((1u << a->n_rows) - 1u);
    const __mmask16 m1 = a->n_rows >= 32 ? 0xffff : a->n_rows <= 16 ? 0 : (__mmask16)((1u << (a->n_rows - 16)) - 1u);
    const __m512 b0 = a->bias ? _mm512_maskz_loadu_ps(m0, a->bias) : _mm512_setzero_ps();
    const __m512 b1 = a->bias ? _mm512_maskz_loadu_ps(m1, a->bias + 16) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) {
        if (t0 + t >= a->n) break;
        float *y = a->y + (t0 + t) * a->y_stride;
        _mm512_mask_storeu_ps(y, m0, _mm512_add_ps(acc[t][0], b0));
        _mm512_mask_storeu_ps(y + 16, m1, _mm512_add_ps(acc[t][1], b1));
    }
}

void sr_gemm_bf16(const struct gemm_args *a)
{
    uint8_t *panel = a->scratch;
    const size_t half_bytes = (size_t)steps_of(a->n_in) * TILE_BYTES;
    float *floats = (float *)(void *)(panel + 2 * half_bytes);
    for (int32_t h = 0; h < 2; h++) {
        if (16 * h < a->n_rows) fill_panel(a, 16 * h, panel + (size_t)h * half_bytes, floats);
        else memset(panel + (size_t)h * half_bytes, 0, half_bytes);
    }
    for (int32_t t = 0; t < a->n; t += TOKENS) multiply8(a, packed_tiles(a, t) + (size_t)(t % 16) * 64, panel, t);
}
