// SPDX-License-Identifier: Apache-2.0
//
// Dealing: from the rows that each unit reads, known on the device only, every block finds its own share.
//
// With few units every unit gets blocks in proportion to its rows and no block crosses from unit to unit; up to 32 head
// blocks each warp works that out by itself, one lane a head block. With many, blocks take equal stretches of all tiles
// in a line and may cross. Blocks that share a unit leave partial states; who is last merges them.
#ifndef SR_CUDA_ATTN_DEAL_CUH
#define SR_CUDA_ATTN_DEAL_CUH

#include "cuda/attn_parts.cuh"

namespace sr {

// The rows of a unit, in the order they are attended: entry i is row i below `head`, i + shift below `near`, else a list's.
struct unit_rows {
    int32_t n, head, near, shift;
    const int32_t *list;
};

// A unit has one head block or two.
static __device__ __forceinline__ int unit_of(const attend_params &p, int head_block) { return head_block >> (p.n_sub - 1); }
static __device__ __forceinline__ int sub_of(const attend_params &p, int head_block) { return head_block & (p.n_sub - 1); }

static __device__ __forceinline__ int32_t len_of(const attend_params &p, int u) { return __ldcg(p.cache.kv_len + (p.cache.n_seqs == 1 ? 0 : u / p.n_kv_heads)); }

__device__ __forceinline__ int kind_of(const attend_params &p, int u) { return p.kinds ? __ldcg(p.kinds + u) : p.kind; }

__device__ __forceinline__ unit_rows rows_of(const attend_params &p, int u)
{
    const int32_t n_list = p.n_list ? __ldcg(p.n_list + u) : 0, len = len_of(p, u);
    const int kind = kind_of(p, u);
    const bool has_list = kind == CUDA_READ_NEAR_LIST || kind == CUDA_READ_LIST;
    const bool has_near = kind == CUDA_READ_NEAR_LIST || kind == CUDA_READ_NEAR;
    unit_rows r = {0, 0, 0, 0, p.list + u * p.list_stride};
    if (kind == CUDA_READ_ALL || (has_near && p.n_sinks + p.window >= len)) {
        r.n = r.head = r.near = len;
    } else if (has_near) {
        r.head = p.n_sinks;
        r.n = r.near = p.n_sinks + p.window;
        r.shift = len - p.window - p.n_sinks;
    }
    r.n += has_list ? n_list : 0;
    return r;
}

// One share of a block: tiles [t0, t1) of head block u, which is part `part` of n_parts. Parts' states lie in slots `step`
// apart; only part 0's may be elsewhere.
struct share { int32_t u, t0, t1, part, n_parts, slot_0, slot_1, step; };

struct deal_table {
    int32_t tiles[MAX_UNITS + 1];   // tiles before each head block
    int32_t blocks[MAX_UNITS + 1];  // blocks before it, where no block crosses
    int32_t sums[2][MAX_WARPS];
    int32_t found;
};

static __device__ __forceinline__ int32_t tiles_of(int32_t rows) { return (rows + TILE - 1) / TILE; }

constexpr int WIDE_TILES = 64; // an SM: below, one block of each is enough, and the next kernel's fill their rings beside them
constexpr int LEAST_TILES = 8; // of a block: one for each warp; less is not worth another part to merge

static __device__ __forceinline__ int32_t blocks_of(int32_t tiles, int32_t spare, int32_t total)
{
    if (tiles == 0) return 0;
    const int32_t n = 1 + (int32_t)((uint32_t)tiles * (uint32_t)spare / (uint32_t)total); // below 2^32 up to 2^28 rows
    const int32_t most = (tiles + LEAST_TILES - 1) / LEAST_TILES;
    return n < most ? n : most;
}

static __device__ __forceinline__ share share_apart(int u, int32_t tiles, int32_t first, int32_t n)
{
    const int32_t i = blockIdx.x - first, each = tiles / n, rest = tiles % n; // the first `rest` blocks take one more
    const int32_t t0 = i * each + (i < rest ? i : rest);
    return share{u, t0, t0 + each + (i < rest), i, n, first, first + 1, 1};
}

// ---- up to 32 head blocks: a warp's own work ----

struct warp_deal { bool apart, has_share; unsigned empty; share s; unit_rows rows; };

static __device__ __forceinline__ warp_deal deal_in_warp(const attend_params &p, int n)
{
    const int lane = threadIdx.x % WARP;
    warp_deal w = {};
    unit_rows r = {};
    if (lane < n) r = rows_of(p, unit_of(p, lane));
    const int32_t tiles = tiles_of(r.n), total = __reduce_add_sync(~0u, tiles);
    const unsigned active = __ballot_sync(~0u, tiles > 0), grid = total < p.n_sms * WIDE_TILES ? p.n_sms : gridDim.x;
    w.empty = ~active;
    w.apart = 2 * __popc(active) <= (int)grid;
    if (!w.apart || total == 0) return w;
    const int32_t blocks = blocks_of(tiles, grid - __popc(active), total), end = sum_up_to(blocks);
    const unsigned mine = __ballot_sync(~0u, (int)blockIdx.x >= end - blocks && (int)blockIdx.x < end);
    w.has_share = mine != 0;
    if (!mine) return w;
    const int u = __ffs(mine) - 1;
    w.s = share_apart(u, __shfl_sync(~0u, tiles, u), __shfl_sync(~0u, end - blocks, u), __shfl_sync(~0u, blocks, u));
    w.rows = unit_rows{__shfl_sync(~0u, r.n, u), __shfl_sync(~0u, r.head, u), __shfl_sync(~0u, r.near, u), __shfl_sync(~0u, r.shift, u),
                       (const int32_t *)__shfl_sync(~0u, (uint64_t)r.list, u)};
    return w;
}

// ---- more: the block's ----

// Exclusive sums of `x` over the threads of a block; *total gets the whole.
static __device__ __forceinline__ int32_t sum_before(int32_t x, int32_t *scratch, int32_t *total)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP;
    const int32_t sum = sum_up_to(x);
    if (lane == WARP - 1) scratch[w] = sum;
    __syncthreads();
    int32_t before = 0, all = 0;
#pragma unroll 1
    for (int i = 0; i < (int)blockDim.x / WARP; i++) {
        before += i < w ? scratch[i] : 0;
        all += scratch[i];
    }
    *total = all;
    return before + sum - x;
}

// Fills the table: n entries, all threads. Returns whether blocks keep to one unit.
static __device__ __forceinline__ bool deal_in_block(const attend_params &p, deal_table &t, int n)
{
    int32_t total = 0, active = 0, passed = 0;
#pragma unroll 1
    for (int base = 0; base < n; base += blockDim.x) {
        const int e = base + threadIdx.x;
        const int32_t tiles = e < n ? tiles_of(rows_of(p, unit_of(p, e)).n) : 0;
        int32_t sum;
        const int32_t before = sum_before(tiles, t.sums[0], &sum);
        if (e < n) t.tiles[e] = total + before;
        total += sum;
        active += __syncthreads_count(tiles > 0);
    }
    if (threadIdx.x == 0) t.tiles[n] = total;
    __syncthreads();
    const int32_t grid = gridDim.x;
    if (2 * active > grid || total == 0) return false;
#pragma unroll 1
    for (int base = 0; base < n; base += blockDim.x) {
        const int e = base + threadIdx.x;
        const int32_t blocks = e < n ? blocks_of(t.tiles[e + 1] - t.tiles[e], grid - active, total) : 0;
        int32_t sum;
        const int32_t before = sum_before(blocks, t.sums[1], &sum);
        if (e < n) t.blocks[e] = passed + before;
        passed += sum;
        __syncthreads();
    }
    if (threadIdx.x == 0) t.blocks[n] = passed;
    __syncthreads();
    return true;
}

// The entry whose range in `starts` holds x; by all threads.
static __device__ __forceinline__ int find_entry(const int32_t *starts, int n, int32_t x, int32_t *found)
{
#pragma unroll 1
    for (int e = threadIdx.x; e < n; e += blockDim.x)
        if (starts[e] <= x && x < starts[e + 1]) *found = e;
    __syncthreads();
    return *found;
}

// ---- a line of tiles ----

static __device__ __forceinline__ int32_t line_start(int64_t block, int64_t total) { return (int32_t)(total * block / gridDim.x); }

// The block in which tile t of the line lies.
static __device__ __forceinline__ int32_t block_of_tile(int64_t t, int64_t total)
{
    return (int32_t)(((t + 1) * gridDim.x - 1) / total);
}

// A block leaves at most two partial states: one of a unit that began before it, and one of its last.
static __device__ __forceinline__ share share_of_line(const deal_table &t, int u, int32_t total)
{
    const int32_t begin = t.tiles[u], end = t.tiles[u + 1];
    const int32_t from = line_start(blockIdx.x, total), to = line_start((int64_t)blockIdx.x + 1, total);
    const int32_t first = block_of_tile(begin, total), last = block_of_tile(end - 1, total);
    return share{u, (from > begin ? from : begin) - begin, (to < end ? to : end) - begin, (int32_t)blockIdx.x - first, last - first + 1,
                 2 * first + (begin > line_start(first, total)), 2 * (first + 1), 2};
}

static __device__ __forceinline__ int32_t slot_of_part(const share &s, int32_t i) { return i == 0 ? s.slot_0 : s.slot_1 + (i - 1) * s.step; }

} // namespace sr

#endif
