// SPDX-License-Identifier: Apache-2.0
//
// Sketch rows from K rows: y = analysis (k - mu), rounded to codes. A warp makes the codes of four neighbouring coordinates
// of a row, which share a word.
#ifndef SR_CUDA_SKETCH_ENCODE_CUH
#define SR_CUDA_SKETCH_ENCODE_CUH

#include "cuda/sketch_rows.cuh"

namespace sr {

static __device__ __forceinline__ uint32_t code_of(float y, float step, int32_t bits, int32_t *clipped)
{
    const float half = (float)(1 << (bits - 1)), c = floorf(y / step) + half;
    if (c >= 0 && c < 2 * half) return (uint32_t)c;
    ++*clipped;
    return c >= 2 * half ? (uint32_t)(2 * half) - 1u : 0u; // NaN too
}

// A row of K, scaled, less mu.
static __device__ __forceinline__ void load_centred(row_of_warp &k, int type, const uint8_t *page, int slot, int d, float scale, const float *mu)
{
    row_of_warp m;
    m.load(mu, d);
    k.load(type, page, slot, d);
#pragma unroll
    for (int i = 0; i < 2; i++)
        k.x[i] = make_float4(k.x[i].x * scale - m.x[i].x, k.x[i].y * scale - m.x[i].y, k.x[i].z * scale - m.x[i].z, k.x[i].w * scale - m.x[i].w);
}

struct four_codes { uint32_t bits, mask; int32_t word; }; // what is to be replaced in a word of the page

// Coordinates j .. j + 3 of a row that is `row`th in its page; those from rank on are left as they are. Clipped ones are
// added in the lanes that find them.
static __device__ __forceinline__ four_codes encode_four(const struct sketch_basis &basis, const row_of_warp &k, int d, int rank, int bits, int row, int j, int32_t *clipped)
{
    const int lane = threadIdx.x % WARP, c = lane / 8;
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; i++) y[i] = k.dot(basis.analysis + (size_t)min(j + i, rank - 1) * d, d);
    const float sum = sum_four(y);
    const code_place at = place_of(bits, row, j + c);
    const bool is_mine = lane % 8 == 0 && j + c < rank;
    uint32_t code = 0;
    if (is_mine) code = code_of(sum, basis.step[j + c], bits, clipped) << at.shift;
    const uint32_t mask = is_mine ? ((1u << bits) - 1u) << at.shift : 0u;
    return four_codes{__reduce_or_sync(~0u, code), __reduce_or_sync(~0u, mask), at.word};
}

// Counts rows and clipped coordinates of a warp.
static __device__ __forceinline__ void count_encoded(struct attn_cuda_counters *counters, int32_t rows, int32_t clipped)
{
    if (!counters) return;
    const int32_t all = __reduce_add_sync(~0u, clipped);
    if (threadIdx.x % WARP != 0) return;
    if (rows) atomicAdd((unsigned long long *)&counters->encoded_rows, (unsigned long long)rows);
    if (all) atomicAdd((unsigned long long *)&counters->clipped, (unsigned long long)all);
}

} // namespace sr

#endif
