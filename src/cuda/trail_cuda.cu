// SPDX-License-Identifier: Apache-2.0
//
// What the step before leaves to this one: of the rows that it noted those with the largest shares, with the rows about them, and
// beside the sinks found of every (layer, KV group). One launch a step, before its first layer; nothing of the step itself comes in,
// so all is done while the kernel before runs. Every block finds the rows by itself: they are few.
#include "cuda/attn_small.cuh"

namespace sr {

constexpr int FOLLOW_WARPS = 8, FOLLOW_THREADS = FOLLOW_WARPS * WARP;
static_assert(SR_TRAIL_ROWS == 2 * WARP && SR_TRAIL_NOTED == WARP / 2 && SR_TRAIL_BEFORE + 1 + SR_TRAIL_AFTER == 4, "two rows a lane");

struct follow_params { struct attn_cuda_follow a; };
struct follow_space { unsigned long long keys[FOLLOW_THREADS]; int32_t noted[SR_TRAIL_NOTED], rows[SR_TRAIL_ROWS], n; };

// Rows in falling order of share; of equal ones the first row first.
static __device__ __forceinline__ unsigned long long key_of(const int32_t *rows, const uint32_t *shares, int32_t i)
{
    const int32_t row = rows[i];
    return (unsigned long long)shares[row] << 32 | ~(uint32_t)row;
}

// The first of n noted rows go to s.noted, in that order. Returns how many.
static __device__ __forceinline__ int32_t take_largest(const int32_t *rows, const uint32_t *shares, int32_t n, follow_space &s)
{
    const int t = threadIdx.x;
#pragma unroll 1
    for (int32_t base = 0; base < n; base += FOLLOW_THREADS) {
        const unsigned long long mine = base + t < n ? key_of(rows, shares, base + t) : 0;
        int32_t rank = 0;
#pragma unroll 1
        for (int32_t from = 0; from < n; from += FOLLOW_THREADS) {
            __syncthreads();
            if (from + t < n) s.keys[t] = from == base ? mine : key_of(rows, shares, from + t);
            __syncthreads();
#pragma unroll 4
            for (int32_t i = 0; i < min(FOLLOW_THREADS, n - from); i++) rank += s.keys[i] > mine;
        }
        if (base + t < n && rank < SR_TRAIL_NOTED) s.noted[rank] = (int32_t)~(uint32_t)mine;
    }
    __syncthreads();
    return min(n, (int32_t)SR_TRAIL_NOTED);
}

// The rows about n noted ones, as far as they are in [first, last), rising: to s.rows. A warp, two lanes a noted row.
static __device__ __forceinline__ void add_neighbours(int32_t n, int32_t first, int32_t last, follow_space &s)
{
    const int lane = threadIdx.x % WARP;
    int32_t own = lane < n ? s.noted[lane] : INT32_MAX, place = 0;
#pragma unroll 1
    for (int i = 0; i < n; i++) place += __shfl_sync(~0u, own, i) < own;
    __syncwarp();
    if (lane < n) s.noted[place] = own;
    __syncwarp();
    const int i = lane / 2;
    const int32_t row = i < n ? s.noted[i] - SR_TRAIL_BEFORE + lane % 2 * 2 : INT32_MIN, least = max(first, i > 0 && i < n ? s.noted[i - 1] + SR_TRAIL_AFTER + 1 : 0);
    const bool is_in[2] = {row >= least && row < last, row + 1 >= least && row + 1 < last};
    const int32_t mine = is_in[0] + is_in[1], upto = sum_up_to(mine);
    if (is_in[0]) s.rows[upto - mine] = row;
    if (is_in[1]) s.rows[upto - 1] = row + 1;
    if (lane == WARP - 1) s.n = upto;
}

// A unit's sinks and those rows; a warp.
static __device__ __forceinline__ void unite(const struct found_sinks &found, const follow_space &s, struct always_rows &to)
{
    const int lane = threadIdx.x % WARP;
    const unsigned below = (1u << lane) - 1u;
    const int32_t n_found = found.n, sink = lane < SR_SINKS_MOST ? found.rows[lane] : INT32_MAX;
    int32_t row[2], before[2] = {0, 0}, trail_before = 0; // sinks before each row; of a sink, rows before it that are none
    bool is_new[2];
#pragma unroll
    for (int k = 0; k < 2; k++) is_new[k] = lane + k * WARP < s.n, row[k] = is_new[k] ? s.rows[lane + k * WARP] : INT32_MAX;
#pragma unroll 1
    for (int j = 0; j < n_found; j++) {
        const int32_t other = __shfl_sync(~0u, sink, j);
#pragma unroll
        for (int k = 0; k < 2; k++) is_new[k] &= row[k] != other, before[k] += other < row[k];
    }
    const unsigned some[2] = {__ballot_sync(~0u, is_new[0]), __ballot_sync(~0u, is_new[1])};
#pragma unroll 1
    for (int j = 0; j < n_found; j++) {
        const int32_t other = __shfl_sync(~0u, sink, j);
        const int32_t n = __popc(__ballot_sync(~0u, is_new[0] && row[0] < other)) + __popc(__ballot_sync(~0u, is_new[1] && row[1] < other));
        if (lane == j) trail_before = n;
    }
    if (lane < n_found) to.rows[lane + trail_before] = sink;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int32_t at = __popc(some[k] & below) + (k ? __popc(some[0]) : 0);
        if (is_new[k]) to.rows[before[k] + at] = to.trail[at] = row[k];
    }
    if (lane == 0) to.n_trail = __popc(some[0]) + __popc(some[1]), to.n = n_found + to.n_trail;
}

// The half that this step's notes go to; one block.
static __device__ __forceinline__ void begin_half(const struct attn_cuda_follow &a, int32_t len)
{
    const int half = len % 2;
    const int32_t n = a.trail[SR_TRAIL_COUNTS + half], *rows = a.trail + SR_TRAIL_ROWS_AT(a.max_len, half);
    int32_t *shares = a.trail + SR_TRAIL_SHARES_AT(a.max_len, half);
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < n; i += FOLLOW_THREADS) shares[rows[i]] = 0;
    __syncthreads();
    if (threadIdx.x == 0) a.trail[SR_TRAIL_COUNTS + half] = 0, a.trail[SR_TRAIL_STEPS + half] = len;
}

__global__ void __launch_bounds__(FOLLOW_THREADS) follow_kernel(const __grid_constant__ follow_params p)
{
    __shared__ follow_space s;
    let_next_start();
    const int32_t len = *p.a.kv_len, half = (len - 1) % 2, unit = (int32_t)blockIdx.x * FOLLOW_WARPS + (int32_t)threadIdx.x / WARP;
    const int32_t *rows = p.a.trail + SR_TRAIL_ROWS_AT(p.a.max_len, half);
    const uint32_t *shares = (const uint32_t *)p.a.trail + SR_TRAIL_SHARES_AT(p.a.max_len, half);
    const int32_t n = take_largest(rows, shares, p.a.trail[SR_TRAIL_STEPS + half] == len - 1 ? p.a.trail[SR_TRAIL_COUNTS + half] : 0, s);
    if (threadIdx.x < WARP) add_neighbours(n, p.a.n_sinks, len - p.a.window, s);
    __syncthreads();
    if (unit < p.a.n_units) unite(p.a.found[unit], s, p.a.always[unit]);
    if (blockIdx.x == gridDim.x - 1) begin_half(p.a, len);
    wait_for_previous(); // who waits for this kernel waits for those before it
}

} // namespace sr

using namespace sr;

sr_status sr_attn_cuda_follow(const struct attn_cuda *c, const struct attn_cuda_follow *a, sr_error *err)
{
    const follow_params p = {*a};
    return launched(launch(follow_kernel, (a->n_units + FOLLOW_WARPS - 1) / FOLLOW_WARPS, FOLLOW_THREADS, 0, c, p), "follow", err);
}
