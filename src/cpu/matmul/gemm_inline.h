/* SPDX-License-Identifier: Apache-2.0
 *
 * The packed forms of the bf16 products, shared by the AVX-512 BF16 and AMX files. A *tile* is 16 x 32 bf16 = 1 KiB.
 *   activations: [block of 32 tokens][half of 16][k / 32] tiles of [16 tokens][32 k]
 *   panel:       [half of 16 rows][k / 32] tiles of [16 pairs of k][16 rows][2]
 * so that VDPBF16PS and TDPBF16PS both find the two neighbours in k of a row in one 32-bit lane.
 */
#ifndef SR_CPU_MATMUL_GEMM_INLINE_H
#define SR_CPU_MATMUL_GEMM_INLINE_H

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
static inline void fill_panel(const struct gemm_args *a, int32_t row0, uint8_t *tiles, float *floats)
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

#endif
