// SPDX-License-Identifier: Apache-2.0
//
// Sketch rows from K rows: y = analysis (k - mu), rounded to codes. A block takes one page of a unit: the page's codes are
// brought to shared memory, those of the rows asked for replaced, and all written back.
#include "cuda/sketch_parts.cuh"

namespace sr {

static __device__ __forceinline__ uint32_t code_of(float y, float step, int32_t bits, int32_t *clipped)
{
    const float half = (float)(1 << (bits - 1)), c = floorf(y / step) + half;
    if (c >= 0 && c < 2 * half) return (uint32_t)c;
    ++*clipped;
    return c >= 2 * half ? (uint32_t)(2 * half) - 1u : 0u; // NaN too
}

enum { AT_ONCE = 4 }; // coordinates whose loads are under way together

// One warp, one row, coordinates part, part + n_parts, ... of it. Lane j % 32 gets the code of coordinate j.
static __device__ void encode_row(const encode_params &p, const struct sketch_basis &basis, const uint8_t *page, float scale, int row,
                                  int part, int n_parts, uint32_t *codes, int32_t *clipped)
{
    const int lane = threadIdx.x % WARP, d = p.head_dim, bits = p.a.sketch.bits, rank = p.a.sketch.rank;
    float k[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int e = lane + i * WARP;
        k[i] = e < d ? element_of(p.type, page, row, d, e) * scale - basis.mu[e] : 0.0f;
    }
    for (int first = part; first < rank; first += AT_ONCE * n_parts) {
        float y[AT_ONCE];
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            const int j = min(first + c * n_parts, rank - 1);
            y[c] = 0;
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (lane + i * WARP < d) y[c] += basis.analysis[j * d + lane + i * WARP] * k[i];
        }
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            const int j = first + c * n_parts;
#pragma unroll
            for (int i = 1; i < WARP; i *= 2) y[c] += __shfl_xor_sync(~0u, y[c], i);
            if (j >= rank || lane != j % WARP) continue;
            const code_place at = place_of(bits, row, j);
            const uint32_t code = code_of(y[c], basis.step[j], bits, clipped), mask = (1u << bits) - 1u;
            atomicAnd(&codes[at.word], ~(mask << at.shift));
            atomicOr(&codes[at.word], code << at.shift);
        }
    }
}

__global__ void encode_kernel(const __grid_constant__ encode_params p)
{
    extern __shared__ uint32_t codes[];
    __shared__ int32_t all_clipped;
    wait_for_previous();
    let_next_start();
    const int u = blockIdx.x / p.n_pages, len = p.cache.kv_len[u / p.n_kv_heads], end = len - p.a.window;
    const int64_t wanted = (int64_t)end - p.a.n_last;
    const int first = wanted > p.a.n_sinks ? (int)wanted : p.a.n_sinks;
    const int at = first / SR_PAGE_ROWS + blockIdx.x % p.n_pages, words = (p.a.sketch.rank + 15) / 16 * 32 * p.a.sketch.bits;
    const int row0 = max(first, at * SR_PAGE_ROWS), row1 = min(end, (at + 1) * SR_PAGE_ROWS);
    if (row0 >= row1) return;
    uint32_t *y = (uint32_t *)p.cache.y_page[(int64_t)u * p.cache.max_pages + at];
    const uint8_t *page = (const uint8_t *)p.cache.k_page[(int64_t)u * p.cache.max_pages + at];
    const float scale = p.type == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[u % p.n_kv_heads] : 1.0f;
    const struct sketch_basis basis = p.a.sketch.basis[u];
    const bool whole = row1 - row0 == SR_PAGE_ROWS;
    int32_t clipped = 0;
    for (int i = threadIdx.x; i < words; i += blockDim.x) codes[i] = whole ? 0 : y[i];
    if (threadIdx.x == 0) all_clipped = 0;
    __syncthreads();
    // A step encodes one row: then all warps share it, since one alone would wait for every coordinate's loads in turn.
    const int warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP, n_rows = row1 - row0;
    const int n_parts = n_rows < n_warps ? n_warps / n_rows : 1, rows_at_once = n_warps / n_parts;
    for (int row = row0 + warp / n_parts; row < row1 && warp / n_parts < rows_at_once; row += rows_at_once)
        encode_row(p, basis, page, scale, row % SR_PAGE_ROWS, warp % n_parts, n_parts, codes, &clipped);
    atomicAdd(&all_clipped, clipped);
    __syncthreads();
    for (int i = threadIdx.x; i < words; i += blockDim.x) y[i] = codes[i];
    if (threadIdx.x != 0 || !p.a.counters) return;
    atomicAdd((unsigned long long *)&p.a.counters[u].encoded_rows, (unsigned long long)(row1 - row0));
    atomicAdd((unsigned long long *)&p.a.counters[u].clipped, (unsigned long long)all_clipped);
}

} // namespace sr
