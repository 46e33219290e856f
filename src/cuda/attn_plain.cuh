// SPDX-License-Identifier: Apache-2.0
//
// The attend kernel for Hopper where a step reads all rows of one sequence, or its sinks and window, in every unit that reads
// anything: no lists. Then a block's share follows from the length and its own number, and every tile is 16 neighbouring rows of
// a page, so that nothing is dealt, looked up row by row or searched for. It does what attn_ring.cuh does, in a quarter of the
// instructions: a kernel that runs once a layer finds none of them in its SM's caches.
//
// The tiles of a unit go round its blocks, eight at a time, one for each warp. A lane keeps the addresses of K (lanes below 16) or V
// of one tile of its warp, so that a load brings those of 16 tiles.
#ifndef SR_CUDA_ATTN_PLAIN_CUH
#define SR_CUDA_ATTN_PLAIN_CUH

#include "cuda/attn_ring.cuh"

namespace sr {

// Rows [0, head) and [near, len). Tile t of the unit is tile t of the cache below head_tiles, t + skip from there on; what it has of
// other rows is masked.
struct plain_rows {
    int32_t len, head, near, tiles, whole, head_tiles, skip; // whole: tiles of which all rows are there

    __device__ __forceinline__ bool has(int32_t row) const { return (uint32_t)(row - near) < (uint32_t)(len - near) || row < head; }
};

static __device__ __forceinline__ plain_rows plain_rows_of(const attend_params &p, int kind, int32_t len)
{
    plain_rows r = {len, 0, 0, tiles_of(len), len / TILE, 0, 0};
    if (kind != CUDA_READ_ALL && p.n_sinks + p.window < len) {
        r.head = p.n_sinks;
        r.near = len - p.window;
        r.head_tiles = tiles_of(r.head);
        r.skip = max(r.near / TILE - r.head_tiles, 0);
        r.tiles -= r.skip;
        r.whole -= r.skip;
    }
    return r;
}

// Which head block this one works for, and as which of at most how many.
struct plain_place { int32_t u, part, most, first_slot; int kind; };

// Where kinds say which units read nothing, the others share all blocks. Writes what those that read nothing leave.
template <int D> static __device__ __forceinline__ plain_place place_by_kinds(const attend_params &p)
{
    const int lane = threadIdx.x % WARP, block = blockIdx.y * gridDim.x + blockIdx.x;
    const int kind = lane < p.n_units ? __ldcg(p.kinds + lane) : (int)CUDA_READ_NONE;
    const unsigned active = __ballot_sync(~0u, kind != CUDA_READ_NONE);
    const int n = max(__popc(active) * p.n_sub, 1), most = gridDim.x * gridDim.y / n, i = block / most;
    const bool is_mine = (active >> lane & 1u) && __popc(active & ((1u << lane) - 1)) == unit_of(p, i);
    const unsigned mine = __ballot_sync(~0u, is_mine);
    if (block < p.n_units && !(active >> block & 1u)) write_empty(p, D, block);
    if (mine == 0) return plain_place{0, most, most, 0, CUDA_READ_NONE};
    const int unit = __ffs(mine) - 1;
    return plain_place{unit * p.n_sub + sub_of(p, i), block - i * most, most, i * most, __shfl_sync(~0u, kind, unit)};
}

// ---- one warp's tiles ----

template <int D, int NT, int T> struct plain_ring {
    using S = ring_shape<D, NT, T>;
    static constexpr int RUN = WARP / 2;
    void *const *pages;      // of K or V, by lane
    uint64_t now, next;      // addresses of the tiles of this run and of the next, by lane
    int32_t tile, stride;    // of lane 0 in `next`; from one tile of a warp to the next
    int slot;                // of the item that is used next

    __device__ __forceinline__ uint64_t find(const plain_rows &r, int32_t first, int32_t step) const
    {
        const int32_t t = first + (int32_t)(threadIdx.x % RUN) * step, at = t < r.head_tiles ? t : t + r.skip;
        constexpr int PER_PAGE = SR_PAGE_ROWS / TILE;
        return t < r.tiles ? (uint64_t)__ldcg((const unsigned long long *)pages + at / PER_PAGE) + at % PER_PAGE * (TILE * S::ROW) : 0;
    }

    // Has K (v = 0) or V of the warp's tile j, the unit's tile t if it has so many, brought to a slot: one group of copies. Rows that are
    // not there yet come as zeros: what lies there may be no number, and no weight makes that nothing.
    __device__ __forceinline__ void ask(const plain_rows &r, int v, int j, int32_t t, int to_slot) const
    {
        const int lane = own_lane();
        const uint64_t from = __shfl_sync(~0u, now, v * RUN + j % RUN) + 16 * lane;
        const uint32_t to = (uint32_t)__cvta_generic_to_shared(ring<D, NT, T>::memory()) + to_slot * S::SLOT;
        if (t < r.whole) S::template copy<true>(to, from, lane);
        else if (t < r.tiles) S::template copy<false>(to, from, lane, r.len % TILE);
        end_group();
    }

    // The next item is used up, by all lanes: its slot is for K or V of tile j, if there is one.
    __device__ __forceinline__ void refill(const plain_rows &r, int v, int j, int32_t t)
    {
        __syncwarp();
        if (v == 0 && j % RUN == 0) now = next, tile += RUN * stride, next = find(r, tile, stride);
        ask(r, v, j, t, slot);
        if (++slot == S::SLOTS) slot = 0;
    }

    __device__ __forceinline__ const uint8_t *wait() const
    {
        wait_groups<S::SLOTS - 1>();
        __syncwarp();
        return ring<D, NT, T>::memory() + slot * S::SLOT;
    }
};

template <int D, int NT, int T>
__device__ __forceinline__ void attend_plain(const plain_rows &r, plain_ring<D, NT, T> &flow, warp_state<D, NT, T, 1> &state, int32_t tile, float scale, bool split,
                                             const uint2 *q)
{
    using S = ring_shape<D, NT, T>;
    const int32_t stride = flow.stride;
    int j = 0;
#pragma unroll 1
    for (; tile < r.tiles; tile += stride, j++) {
        float x[1][NT][4];
        uint32_t weights[1][NT][2];
        {
            k_tile<D, T> k;
            const int lane = own_lane();
            const uint8_t *rows_k = flow.wait() + (lane >> 2) * S::STEP;
            k.load_local(rows_k, S::STEP, S::turn_of(lane >> 2), lane);
            k.template logits<NT>(x[0], q + lane);
        }
        flow.refill(r, S::SLOTS % 2, j + S::V_AHEAD, tile + S::V_AHEAD * stride);
        const int32_t row = (tile < r.head_tiles ? tile : tile + r.skip) * TILE;
        bool is_read[2];
#pragma unroll
        for (int i = 0; i < 2; i++) is_read[i] = r.has(row + 8 * i + (own_lane() >> 2));
#pragma unroll
        for (int i = 0; i < NT * 4; i++) {
            float &y = x[0][i / 4][i % 4];
            const float low = T == ELEM_BF16 && NT == 1 ? __shfl_xor_sync(~0u, y, 2) : 0.0f;
            y += split ? low : 0.0f; // no branch: the loop would be there twice
            y = is_read[i % 4 / 2] ? y * scale : -CUDART_INF_F;
        }
        state.weigh(x, weights);
        {
            v_tile<D, T> v;
            const int lane = own_lane();
            const uint8_t *rows_v = flow.wait() + (lane & 3) * 2 * S::STEP;
            v.template add_local<NT>(state.o, weights[0], rows_v, S::STEP, S::turn_of((lane & 3) * 2), S::turn_of((lane & 3) * 2 + 1), lane >> 2);
        }
        flow.refill(r, 1 - S::SLOTS % 2, j + S::K_AHEAD, tile + S::K_AHEAD * stride);
    }
}

template <int D, int NT, int T>
__global__ void __launch_bounds__(ring_shape<D, NT, T>::WARPS * WARP, ring_shape<D, NT, T>::BLOCKS) plain_kernel_of(const __grid_constant__ attend_params p)
{
    if constexpr (!HAS_RING) return; // never launched
    using S = ring_shape<D, NT, T>;
    __shared__ merge_space ms;
    __shared__ uint2 q[NT * (D / 16) * WARP];
    if (!p.after_append) wait_for_previous();
    const int32_t len = __ldcg(p.cache.kv_len);
    const plain_place at = p.kinds ? place_by_kinds<D>(p)
                                   : plain_place{(int32_t)blockIdx.x, (int32_t)blockIdx.y, (int32_t)gridDim.y, (int32_t)(blockIdx.x * gridDim.y), p.kind};
    const int unit = unit_of(p, at.u), h0 = sub_of(p, at.u) * 8 * NT;
    const int32_t tile = at.part * S::WARPS + threadIdx.x / WARP;
    plain_ring<D, NT, T> flow;
    flow.pages = (threadIdx.x % WARP < flow.RUN ? p.cache.k_page : p.cache.v_page) + (int64_t)unit * p.cache.max_pages;
    flow.slot = 0;
    const plain_rows rows = plain_rows_of(p, at.kind, len);
    // Few tiles: one block an SM, so that the next kernel's come in beside it; and none without a tile for each warp.
    const int32_t most = rows.tiles * S::BLOCKS < WIDE_TILES * at.most ? at.most / S::BLOCKS : at.most;
    const int32_t parts = max(1, min(most, (rows.tiles + S::WARPS - 1) / S::WARPS));
    if (at.part >= parts) return;
    const share s = {at.u, 0, 0, at.part, parts, at.first_slot, at.first_slot + 1, 1};
    const bool split = T == ELEM_BF16 && NT == 1 && p.group - h0 <= 4;
    flow.stride = parts * S::WARPS;
    flow.now = flow.find(rows, tile, flow.stride);
    flow.tile = tile + flow.RUN * flow.stride;
    flow.next = flow.find(rows, flow.tile, flow.stride);
    const float scale = p.scale * LOG2E * (T != ELEM_F8 ? 1.0f : p.cache.k_scale ? F8_UNIT * p.cache.k_scale[unit] : F8_UNIT);
    if (p.after_append) wait_for_previous();
    query_part<D, NT, T, S::WARPS * WARP> queries;
    queries.load(p, unit, h0, split);
#pragma unroll 1
    for (int k = 0; k < S::SLOTS; k++) flow.ask(rows, k % 2, k / 2, tile + k / 2 * flow.stride, k);
    let_next_start();
    if (s.part == 0 && h0 == 0 && threadIdx.x == 0) count(p, unit, at.kind, rows.near ? rows.head + len - rows.near : len, len);
    queries.store(p, h0, split, q);
    {
        warp_state<D, NT, T, 1> state;
        state.clear();
        attend_plain<D, NT, T>(rows, flow, state, tile, scale, split, q);
        leave_state<D, NT, T>(state, heads_of<NT>(p, s.u), ms, (float *)ring<D, NT, T>::memory());
    }
    __syncthreads();
    merge_blocks<D, NT, T, S::WARPS>(p, s, ms, (float *)ring_memory, S::ROOM / (int)sizeof(float), S::BYTES);
}

} // namespace sr

#endif
