// SPDX-License-Identifier: Apache-2.0
//
// Where a sketch's codes lie, and the parameters of its kernels.
//
// A page of 64 rows is, for each 16 coordinates, 32 lanes of 4 (4 bits) or 8 (8 bits) words: lane 4 g + t has coordinates
// 4 t .. 4 t + 3 of rows g, g + 8, ... g + 56, as the matrix units want them. With 4 bits a word holds two rows, g + 16 i
// and g + 16 i + 8: their pairs of coordinates a nibble apart, the halves of a pair 16 bits apart.
#ifndef SR_CUDA_SKETCH_PARTS_CUH
#define SR_CUDA_SKETCH_PARTS_CUH

#include "cuda/attn_small.cuh"
#include "cuda/attn_work.h"

namespace sr {

constexpr int MAX_RANK_STEPS = 16;

struct encode_params { struct attn_cuda_encode a; struct attn_cuda_cache cache; int32_t head_dim, n_kv_heads, type, n_pages; };
struct choose_params {
    struct attn_cuda_choose a;
    struct attn_cuda_cache cache;
    struct attn_work w;
    int32_t head_dim, n_kv_heads, group, n_units, type;
    int32_t page_bytes, slice, clusters; // slice: bins of which one block sums those of all
    int32_t ring, slots_at, rows_room, rows_at; // of the plan
};

// n_parts blocks for each unit, and how they use their shared memory: `ring` pages of each warp under way (0: none), the bins of `rows_room` rows (0: in
// the workspace), and where both lie.
typedef void choose_kernel(choose_params);
struct choose_plan { choose_kernel *kernel; size_t smem; int32_t n_parts, ring, slots_at, rows_room, rows_at; };

__global__ void encode_kernel(const __grid_constant__ encode_params p);
// The plan for p, all but its plan filled in, where a block may have `room` bytes.
choose_plan sr_choose_plan(const choose_params &p, int32_t n_parts, int bits, size_t room);
int sr_choose_threads(void);
size_t sr_choose_exchange_bytes(int group);

struct code_place { int32_t word, shift; };

static __device__ __forceinline__ code_place place_of(int bits, int row, int j)
{
    const int step = j / 16, t = j % 16 / 4, c = j % 4, lane = row % 8 * 4 + t, i = row / 8;
    if (bits == 8) return code_place{step * 256 + lane * 8 + i, c * 8};
    return code_place{step * 128 + lane * 4 + i / 2, (c / 2 * 2 + i % 2) * 4 + c % 2 * 16};
}

// Rows [first, end) that a step's sketch stands for.
static __device__ __forceinline__ int32_t far_end(int32_t kv_len, int32_t n_sinks, int32_t window)
{
    const int32_t end = kv_len - window;
    return end > n_sinks ? end : n_sinks;
}

} // namespace sr

#endif
