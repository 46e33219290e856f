// SPDX-License-Identifier: Apache-2.0
//
// Encodes many rows. A block takes one page of a unit: the page's codes are brought to shared memory, those of the rows asked
// for replaced, and all written back. The row of a step is encoded by the kernel in sketch_prepare.cu.
#include "cuda/sketch_encode.cuh"

namespace sr {

__global__ void encode_kernel(const __grid_constant__ encode_params p)
{
    extern __shared__ uint32_t codes[];
    wait_for_previous(); // and the next one waits for the end: there are some that read codes before they wait
    const int u = blockIdx.x / p.n_pages, len = p.cache.kv_len[u / p.n_kv_heads], end = len - p.a.window, d = p.head_dim;
    const int64_t wanted = (int64_t)end - p.a.n_last;
    const int first = wanted > p.a.n_sinks ? (int)wanted : p.a.n_sinks, rank = p.a.sketch.rank, bits = p.a.sketch.bits;
    const int at = first / SR_PAGE_ROWS + blockIdx.x % p.n_pages, words = (rank + 15) / 16 * 32 * bits;
    const int row0 = max(first, at * SR_PAGE_ROWS), row1 = min(end, (at + 1) * SR_PAGE_ROWS);
    if (row0 >= row1) return;
    uint32_t *y = (uint32_t *)p.cache.y_page[(int64_t)u * p.cache.max_pages + at];
    const uint8_t *page = (const uint8_t *)p.cache.k_page[(int64_t)u * p.cache.max_pages + at];
    const float scale = p.type == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[u % p.n_kv_heads] : 1.0f;
    const struct sketch_basis basis = p.a.sketch.basis[u];
    const bool whole = row1 - row0 == SR_PAGE_ROWS;
    int32_t clipped = 0, n = 0;
    for (int i = threadIdx.x; i < words; i += blockDim.x) codes[i] = whole ? 0 : y[i];
    __syncthreads();
    for (int row = row0 + threadIdx.x / WARP; row < row1; row += blockDim.x / WARP, n++) {
        row_of_warp k;
        load_centred(k, p.type, page, row % SR_PAGE_ROWS, d, scale, basis.mu);
#pragma unroll 2
        for (int j = 0; j < rank; j += 4) {
            const four_codes c = encode_four(basis, k, d, rank, bits, row % SR_PAGE_ROWS, j, &clipped);
            if (threadIdx.x % WARP != 0) continue;
            atomicAnd(&codes[c.word], ~c.mask); // other rows have bits of it
            atomicOr(&codes[c.word], c.bits);
        }
    }
    count_encoded(p.a.counters ? p.a.counters + u : NULL, n, clipped);
    __syncthreads();
    for (int i = threadIdx.x; i < words; i += blockDim.x) y[i] = codes[i];
}

} // namespace sr
