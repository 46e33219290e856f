// SPDX-License-Identifier: Apache-2.0
//
// Where a sketch's codes lie, what the kernels of the choice leave for one another, and their parameters.
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
constexpr int CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / WARP;
constexpr int PREPARE_WARPS = 8, NEAR_WARPS = PREPARE_WARPS - 1, PREPARE_THREADS = PREPARE_WARPS * WARP; // the last warp encodes
constexpr unsigned long long NOT_YET = ~0ull; // no pair of floats that a kernel makes

// What is known of a unit's query before its sketch is read.
struct choose_query {
    float z[16][256];                 // queries in the basis, logits in powers of 2
    float q_mu[16];
    float2 near[CHOOSE_PARTS][16];    // maximum and sum of the near rows' exponentials, in parts
};

// What the blocks of a unit tell one another.
struct choose_exchange {
    unsigned long long totals[CHOOSE_PARTS][16]; // of the parts' far rows, sum and maximum; NOT_YET
    uint32_t sums[16 * CHOOSE_BINS];             // by head, fixed-point shares of all rows by bin
    uint32_t rows[CHOOSE_PARTS][CHOOSE_BINS];    // rows of a part in the bins up to each
    int32_t found[SR_ALWAYS_ROWS];               // rows listed in any case: part * 65536 + bin, or -1
    unsigned arrived, unused[15];
};

// What a second look goes on from. Logarithms are of 2, shares of the estimated total.
struct choose_rest {
    float log_total[16], near[16], far[16];
    int32_t end;                      // the first bin that is not listed; CHOOSE_BINS: there is nothing to look for
    int32_t n_found;                  // sinks in the list that were not chosen
    int32_t n;                        // rows in the bins from `end` on; they follow those of the list, as rest_of makes them
    int32_t n_more;                   // of these, rows that the look has read so far
};

// Rows that are chosen and may have a share that is worth noting: by the estimate WEIGHTY of some head or more. No more than 20 of
// each head; where there were more than have room, none is noted.
constexpr int WEIGHTY_ROWS = 256 - SR_TRAIL_ROWS;
constexpr float LOG_WEIGHTY = -4.321928f; // of .05, base 2
struct weighty_rows { int32_t n, rows[WEIGHTY_ROWS]; };

constexpr int32_t MAX_REST_ROWS = (1 << 23) - 1; // of a unit; -1 is none of them
static __device__ __forceinline__ int32_t rest_of(int32_t row, int bin) { return (int32_t)((uint32_t)row << 9 | (uint32_t)bin); }
static __device__ __forceinline__ int32_t row_of_rest(int32_t x) { return (int32_t)((uint32_t)x >> 9); }
static __device__ __forceinline__ int bin_of_rest(int32_t x) { return x & (CHOOSE_BINS - 1); }
static_assert(CHOOSE_BINS == 1 << 9, "a bin beside a row");

struct encode_params { struct attn_cuda_encode a; struct attn_cuda_cache cache; int32_t head_dim, n_kv_heads, type, n_pages; };
struct choose_params {
    struct attn_cuda_choose a;
    struct attn_cuda_cache cache;
    struct attn_work w;
    int32_t head_dim, n_kv_heads, group, n_units, type;
    int32_t ring, rings_at, levels, stacks_at, bits_at; // of the plan
};

// n_parts blocks for each unit, and how they use their shared memory: a ring of `ring` bytes of each warp, room for `levels` survivors of each of its
// quads, a bit of each row (at 0: in the workspace), and where they lie. No kernel: there is not enough.
typedef void choose_kernel(choose_params);
struct choose_plan { choose_kernel *kernel; size_t smem; int32_t n_parts, ring, rings_at, levels, stacks_at, bits_at; };

__global__ void encode_kernel(const __grid_constant__ encode_params p);
// The plan for p, all but its plan filled in, where a block may have `room` bytes.
choose_plan sr_choose_plan(const choose_params &p, int32_t n_parts, int bits, size_t room);
int sr_choose_threads(void);
size_t sr_prepare_smem(const choose_params &p);

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

static __device__ __forceinline__ bool is_routed(const choose_params &p, int u, int32_t len)
{
    return len >= p.a.min_len && len > p.a.n_sinks + p.a.window && !(p.a.trust && p.a.trust[u] == CUDA_WHOLE);
}

static __device__ __forceinline__ choose_query *query_of(const choose_params &p, int u) { return (choose_query *)p.w.queries + u; }
static __device__ __forceinline__ choose_exchange *exchange_of(const choose_params &p, int u) { return (choose_exchange *)p.w.exchange + u; }
static __device__ __forceinline__ choose_rest *rest_of_unit(const choose_params &p, int u) { return (choose_rest *)p.w.rests + u; }
static __device__ __forceinline__ weighty_rows *weighty_of(const choose_params &p, int u) { return (weighty_rows *)p.w.weighty + u; }

// What a unit reads in any case: how many rows, then the rows, rising; room for `most`. NULL: none.
static_assert(offsetof(found_sinks, rows) == sizeof(int32_t) && offsetof(always_rows, rows) == sizeof(int32_t), "rows follow their number");
static __device__ __forceinline__ const int32_t *always_of(const choose_params &p, int u)
{
    if (p.a.always) return (const int32_t *)(p.a.always + u);
    return p.a.found ? (const int32_t *)(p.a.found + u) : NULL;
}
static __device__ __forceinline__ int most_always(const choose_params &p) { return p.a.always ? (int)SR_ALWAYS_ROWS : (int)SR_SINKS_MOST; }
// Whether those count as near; else they are listed like others.
static __device__ __forceinline__ bool hides_always(const choose_params &p) { return p.a.look && !p.a.keep; }
__host__ __device__ constexpr int heads_room(int group) { return group <= 4 ? 4 : group <= 8 ? 8 : 16; } // of the sums

// ---- over a warp ----

static __device__ __forceinline__ float sum_of_lanes(float x)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

static __device__ __forceinline__ float max_of_lanes(float x)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

// m, l: the maximum and the sum of exponentials of what came so far.
static __device__ __forceinline__ float2 join(float2 a, float2 b)
{
    const float top = fmaxf(a.x, b.x), base = top == -CUDART_INF_F ? 0.0f : top;
    return make_float2(top, a.y * exp2_of(a.x - base) + b.y * exp2_of(b.x - base));
}

// Of lanes that are `from`, 2 from, ... below `to` apart; all of them have it.
static __device__ __forceinline__ float2 join_lanes(float2 ml, int from, int to)
{
#pragma unroll
    for (int i = from; i < to; i *= 2) ml = join(ml, make_float2(__shfl_xor_sync(~0u, ml.x, i), __shfl_xor_sync(~0u, ml.y, i)));
    return ml;
}

} // namespace sr

#endif
