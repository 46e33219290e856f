/* SPDX-License-Identifier: Apache-2.0
 *
 * Many tokens with AMX: TDPBF16PS on 32 tokens x 32 rows at a time, four accumulator tiles, so that each tile loaded is
 * used twice. bf16 rather than int8 tiles: scales differ every 32 elements of k, which is half a tile row of int8, and
 * undoing that in floats after each step costs more than the doubled rate gains; bf16 needs no scales and rounds less
 * than 8-bit activations do. (The same with VDPBF16PS was slower than f32 FMAs, 105 against 130 GFLOP/s, and is left out.)
 *
 * A *tile* is 16 x 32 bf16 = 1 KiB. Packed:
 *   activations: [block of 32 tokens][half of 16][k / 32] tiles of [16 tokens][32 k]
 *   panel:       [half of 16 rows][k / 32] tiles of [16 pairs of k][16 rows][2]
 */
#include "cpu/kernels.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { TILE_BYTES = 1024, CHUNK = 256 };

INLINE int64_t steps_of(int64_t n_in) { return sr_gemm_padded(n_in) / 32; }
INLINE const uint8_t *packed_tiles(const struct gemm_args *a, int32_t t) /* tiles of the 16 tokens from t */
{
    return a->packed + (size_t)(t / SR_GEMM_TOKENS) * sr_gemm_block_bytes(a->n_in) +
           (size_t)(t % SR_GEMM_TOKENS / 16 * steps_of(a->n_in)) * TILE_BYTES;
}

/* 16 x 16 32-bit lanes, in place. */
INLINE void transpose16(__m512i *v)
{
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* b[4 i + j]: lane q holds column 4 q + j of rows 4 i .. 4 i + 3 */
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i even01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), odd01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        const __m512i even23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88), odd23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        v[j] = _mm512_shuffle_i32x4(even01, even23, 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
        v[4 + j] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
        v[12 + j] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
    }
}

INLINE __m512i narrow32(const float *x) { return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)); }

/* Expands up to 16 rows into the tiles of one panel half; floats is room for [16][CHUNK]. Missing rows and elements
 * are 0. */
static void fill_panel(const struct gemm_args *a, int32_t row0, uint8_t *tiles, float *floats)
{
    const int32_t n_rows = a->n_rows - row0 < 16 ? a->n_rows - row0 : 16;
    const int64_t padded = sr_gemm_padded(a->n_in);
    const size_t chunk_bytes = a->row_bytes * CHUNK / (size_t)a->n_in; /* exact wherever a second chunk exists */
    if (n_rows < 16) memset(floats + n_rows * CHUNK, 0, (size_t)(16 - n_rows) * CHUNK * sizeof(float));
    for (int64_t k = 0; k < padded; k += CHUNK) {
        const int64_t n = a->n_in - k < CHUNK ? a->n_in - k : CHUNK, n_padded = padded - k < CHUNK ? padded - k : CHUNK;
        for (int32_t r = 0; r < n_rows; r++) {
            float *row = floats + r * CHUNK;
            a->dequant(a->w + (size_t)(row0 + r) * a->row_bytes + (size_t)(k / CHUNK) * chunk_bytes, row, n);
            if (n < n_padded) memset(row + n, 0, (size_t)(n_padded - n) * sizeof(float));
        }
        for (int64_t i = 0; i < n_padded; i += 32, tiles += TILE_BYTES) {
            __m512i v[16];
#pragma GCC unroll 16
            for (int r = 0; r < 16; r++) v[r] = narrow32(floats + r * CHUNK + i);
            transpose16(v);
#pragma GCC unroll 16
            for (int r = 0; r < 16; r++) _mm512_store_si512(tiles + 64 * r, v[r]);
        }
    }
}

void sr_gemm_bf16_pack_amx(const struct gemm_pack_args *a)
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

/* ---- products ------------------------------------------------------------------------------------------------ */

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

void sr_gemm_bf16_amx(const struct gemm_args *a)
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
