/* SPDX-License-Identifier: Apache-2.0
 *
 * Many tokens with AMX: TDPBF16PS on 32 tokens x 32 rows at a time, four accumulator tiles, so that each tile loaded is
 * used twice. bf16 rather than int8 tiles: scales differ every 32 elements of k, which is half a tile row of int8, and
 * undoing that in floats after each step costs more than the doubled rate gains; bf16 needs no scales and rounds less
 * than 8-bit activations do.
 */
#include "cpu/matmul/gemm_inline.h"

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t col_bytes[16];
    uint8_t rows[16];
};

/* The compiler must not move memory accesses across tile instructions. */
INLINE void order(void) { __asm__ volatile("" ::: "memory"); }

/* Tiles 0..3: accumulators [16 tokens][16 rows] for (tokens 0, rows 0), (0, 1), (1, 0), (1, 1); 4, 5 tokens; 6, 7 rows. */
static void multiply32(const uint8_t *x0, const uint8_t *x1, const uint8_t *w0, const uint8_t *w1, int64_t steps)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; s++) {
        const size_t at = (size_t)s * TILE_BYTES;
        _tile_loadd(4, x0 + at, 64);
        _tile_loadd(6, w0 + at, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w1 + at, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x1 + at, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

/* 16 tokens only. */
static void multiply16(const uint8_t *x0, const uint8_t *w0, const uint8_t *w1, int64_t steps)
{
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t s = 0; s < steps; s++) {
        const size_t at = (size_t)s * TILE_BYTES;
        _tile_loadd(4, x0 + at, 64);
        _tile_loadd(6, w0 + at, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w1 + at, 64);
        _tile_dpbf16ps(1, 4, 7);
    }
}

/* From sums [32 tokens][32 rows] to y, what exists of it. */
static void copy_out(const struct gemm_args *a, const float *sums, int32_t t0)
{
    const __mmask16 m0 = a->n_rows >= 16 ? 0xffff : (__mmask16)((1u << a->n_rows) - 1u);
    const __mmask16 m1 = a->n_rows >= 32 ? 0xffff : a->n_rows <= 16 ? 0 : (__mmask16)((1u << (a->n_rows - 16)) - 1u);
    const __m512 b0 = a->bias ? _mm512_maskz_loadu_ps(m0, a->bias) : _mm512_setzero_ps();
    const __m512 b1 = a->bias ? _mm512_maskz_loadu_ps(m1, a->bias + 16) : _mm512_setzero_ps();
    for (int32_t t = 0; t < SR_GEMM_TOKENS && t0 + t < a->n; t++) {
        float *y = a->y + (t0 + t) * a->y_stride;
        _mm512_mask_storeu_ps(y, m0, _mm512_add_ps(_mm512_load_ps(sums + 32 * t), b0));
        _mm512_mask_storeu_ps(y + 16, m1, _mm512_add_ps(_mm512_load_ps(sums + 32 * t + 16), b1));
    }
}

static void store_tiles(const struct gemm_args *a, float *sums, int32_t t0, int both)
{
    const int direct = both && t0 + SR_GEMM_TOKENS <= a->n && a->n_rows == SR_GEMM_ROWS && !a->bias;
    float *out = direct ? a->y + t0 * a->y_stride : sums;
    const size_t stride = (direct ? (size_t)a->y_stride : 32) * sizeof(float);
    _tile_stored(0, out, stride);
    _tile_stored(1, out + 16, stride);
    if (both) {
        _tile_stored(2, out + 16 * (stride / sizeof(float)), stride);
        _tile_stored(3, out + 16 * (stride / sizeof(float)) + 16, stride);
    }
    order();
    if (!direct) copy_out(a, sums, t0);
}

void sr_gemm_amx(const struct gemm_args *a)
{
    uint8_t *panel = a->scratch;
    const int64_t steps = steps_of(a->n_in);
    const size_t half_bytes = (size_t)steps * TILE_BYTES;
    float *floats = (float *)(void *)(panel + 2 * half_bytes); /* of the panel's making, then the sums */
    struct tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = 16;
        config.col_bytes[i] = 64;
    }
    for (int32_t h = 0; h < 2; h++) {
        if (16 * h < a->n_rows) fill_panel(a, 16 * h, panel + (size_t)h * half_bytes, floats);
        else memset(panel + (size_t)h * half_bytes, 0, half_bytes);
    }
    order();
    _tile_loadconfig(&config);
    for (int32_t t = 0; t < a->n; t += SR_GEMM_TOKENS) {
        const uint8_t *x = packed_tiles(a, t);
        const int both = t + 16 < a->n;
        if (both) multiply32(x, x + half_bytes, panel, panel + half_bytes, steps);
        else multiply16(x, panel, panel + half_bytes, steps);
        store_tiles(a, floats, t, both);
    }
    _tile_release();
}
