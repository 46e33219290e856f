// SPDX-License-Identifier: Apache-2.0
//
// The attend kernel for Hopper: rows come by asynchronous copies into rings in shared memory.
//
// Every warp has a ring of its own and asks for its tiles of 16 rows itself, K and V by turns, so that no warp waits for
// another until a share ends, and what is under way takes no registers. The 16 bytes of a row change places by its number, so
// that no two lanes want the same bank at once, neither of K nor of V.
//
// Most kernels leave half of an SM to the next kernel's blocks: these find their shares and fill their rings while this
// one's last tiles and merges are under way, where the caller says that the kernel before writes nothing of what they read.
#ifndef SR_CUDA_ATTN_RING_CUH
#define SR_CUDA_ATTN_RING_CUH

#include "cuda/attn_merge.cuh"

namespace sr {

#if __CUDA_ARCH__ >= 900
constexpr bool HAS_RING = true;
#else
constexpr bool HAS_RING = false;
#endif

template <int D, int NT, int T> struct ring_shape {
    static constexpr int WARPS = 8, BLOCKS = D * NT <= 128 ? 2 : 1;         // blocks that an SM has room for
    static constexpr int ROW = D * tile_shape<D, T>::BYTES, UNITS = ROW / 16; // bytes; 16 of them a copy
    static constexpr bool IS_TURNED = ROW % 128 == 0;                       // else rows lie a little further apart
    static constexpr int STEP = IS_TURNED ? ROW : ROW + 16, SLOT = TILE * STEP;
    static constexpr int STATE = state_words(D, NT) * (int)sizeof(float);
    static constexpr int MOST = (BLOCKS == 2 ? 102400 : 201216) / WARPS / SLOT, SLOTS = MOST < 8 ? MOST : 8;
    static constexpr int ROOM = SLOTS * SLOT > STATE ? SLOTS * SLOT : STATE, BYTES = WARPS * ROOM; // a warp leaves its state where its slots were
    static constexpr int K_AHEAD = (SLOTS + 1) / 2, V_AHEAD = SLOTS / 2;    // tiles from the one used to the one asked for
    static_assert(SLOTS >= 3, "K and V of a tile, and K of the next");

    // What the place of a byte in row r is turned by: neighbours of one lane's rows of V, and pairs of rows of K, differ.
    __device__ static __forceinline__ uint32_t turn_of(int r) { return IS_TURNED ? (uint32_t)(((r >> 1) + 2 * (r & 1)) & 3) << 5 : 0; }
    // Where unit c of a tile goes. Where rows are turned, unit i * WARP + lane goes where unit `lane` goes, i * 512 further, and turned as
    // the first of these.
    __device__ static __forceinline__ uint32_t place(int c)
    {
        const int r = c / UNITS;
        return (uint32_t)(r * STEP) + ((uint32_t)(c % UNITS * 16) ^ turn_of(r));
    }
    // A tile of neighbouring rows; `from` is the lane's part of its first 512 bytes. Not WHOLE: the first `rows` of it, then zeros.
    template <bool WHOLE> __device__ static __forceinline__ void copy(uint32_t to, uint64_t from, int lane, int rows = TILE)
    {
        constexpr int N = TILE * UNITS;
        const uint32_t first = to + place(lane);
        const int left = rows * UNITS - lane; // units from the lane's first on
#pragma unroll
        for (int i = 0; i < (N + WARP - 1) / WARP; i++) {
            const uint32_t at = IS_TURNED ? (first ^ turn_of(i * WARP / UNITS)) + i * 512 : to + place(i * WARP + lane);
            if ((i + 1) * WARP > N && i * WARP + lane >= N) continue;
            if constexpr (WHOLE) copy_in(at, from + i * 512);
            else copy_or_clear(at, from + i * 512, i * WARP < left);
        }
    }
};

// The number of this lane, anew: what is made of it is not kept in registers over the loop, which have no room.
static __device__ __forceinline__ int own_lane()
{
    int lane = threadIdx.x % WARP;
    asm volatile("" : "+r"(lane));
    return lane;
}

template <int NT> __device__ __forceinline__ int heads_of(const attend_params &p, int u) { return min(p.group - sub_of(p, u) * 8 * NT, 8 * NT); }

extern __shared__ __align__(128) uint8_t ring_memory[];

// Where a tile lies, by lane: the page of a row, and the row.
struct where { uint64_t page; int32_t row; };

// MIXED: neighbouring rows of a page are looked for, and copied as one.
template <int D, int NT, int T, bool MIXED = true> struct ring {
    using S = ring_shape<D, NT, T>;
    void *const *pages;      // of K or V, by lane
    int slot;                // of the item that is used next
    where now;               // of the tile asked for next
    int32_t row;             // of the tile after that

    __device__ __forceinline__ where find(int32_t of_row) const { return where{(uint64_t)pages[of_row / SR_PAGE_ROWS], of_row}; }

    __device__ static __forceinline__ uint8_t *memory()
    {
        return ring_memory + (threadIdx.x / WARP) * S::ROOM;
    }

    // Has K (v = 0) or V of a tile brought to a slot: one group of copies.
    __device__ __forceinline__ void ask(int v, int to_slot, const where &x) const
    {
        const int lane = own_lane();
        const uint32_t to = (uint32_t)__cvta_generic_to_shared(memory()) + to_slot * S::SLOT;
        const uint64_t mine = x.page + (uint32_t)(x.row % SR_PAGE_ROWS * S::ROW);
        const int32_t first = MIXED ? __shfl_sync(~0u, x.row, v * TILE) : 0;
        const bool follows = lane / TILE != v || (x.row == first + lane % TILE && first % SR_PAGE_ROWS <= SR_PAGE_ROWS - TILE);
        if (MIXED && __all_sync(~0u, follows)) {
            const uint64_t from = __shfl_sync(~0u, mine, v * TILE) + 16 * lane;
            S::template copy<true>(to, from, lane);
        } else {
#pragma unroll 4
            for (int i = 0; i < TILE * S::UNITS; i += WARP) {
                const int c = i + lane;
                const uint64_t from = __shfl_sync(~0u, mine, v * TILE + c / S::UNITS % TILE) + c % S::UNITS * 16;
                if (c < TILE * S::UNITS) copy_in(to + S::place(c), from);
            }
        }
    }

    // The slot of the next item, once it is there.
    __device__ __forceinline__ const uint8_t *wait() const
    {
        wait_groups<S::SLOTS - 1>();
        __syncwarp();
        return memory() + slot * S::SLOT;
    }

    // The next item is used up, by all lanes: its slot is for the one SLOTS further, if there is one.
    __device__ __forceinline__ void next(int v, bool more)
    {
        __syncwarp();
        if (more) ask(v, slot, now);
        end_group();
        if (++slot == S::SLOTS) slot = 0;
    }
};

// Finds a share's first tiles and asks for them: for those from tile `fresh` on not before the kernel before has ended, which is
// waited for here.
template <int D, int NT, int T>
__device__ __forceinline__ void fill_ring(ring<D, NT, T> &flow, const share_space &ss, int32_t tile, int32_t fresh)
{
    using S = ring_shape<D, NT, T>;
    const int off = threadIdx.x % WARP < TILE ? S::K_AHEAD : S::V_AHEAD;
    const int32_t t1 = ss.s.t1;
    int32_t row[S::K_AHEAD + 2];
    where at[S::K_AHEAD];
#pragma unroll
    for (int i = 0; i < S::K_AHEAD + 2; i++) row[i] = lane_row(ss.rows, tile + (i < S::K_AHEAD ? i : i - S::K_AHEAD + off) * S::WARPS);
#pragma unroll
    for (int i = 0; i < S::K_AHEAD; i++) at[i] = flow.find(row[i]);
    flow.now = flow.find(row[S::K_AHEAD]);
    flow.row = row[S::K_AHEAD + 1];
    int slot = flow.slot;
    bool is_fresh = false;
#pragma unroll 1
    for (int k = 0; k < S::SLOTS; k++, tile += k % 2 ? 0 : S::WARPS) {
        if (!is_fresh && tile >= fresh) wait_for_previous(), is_fresh = true;
        if (tile < t1) flow.ask(k % 2, slot, at[0]);
        end_group();
        if (++slot == S::SLOTS) slot = 0;
#pragma unroll
        for (int i = 0; i < S::K_AHEAD - 1 && k % 2; i++) at[i] = at[i + 1];
    }
    if (!is_fresh) wait_for_previous();
}

// LIST: rows that lie anywhere, and tiles of a warp `stride` apart.
template <int D, int NT, int T, bool LIST = false>
__device__ __forceinline__ void attend_tiles_of(const attend_params &p, const share_space &ss, ring<D, NT, T, !LIST> &flow, warp_state<D, NT, T, 1> &state, const uint2 *q,
                                                int32_t tile, int32_t t1)
{
    using S = ring_shape<D, NT, T>;
    const volatile unit_rows &rows = ss.rows; // what is rarely wanted is read anew each time: half of the registers are the next kernel's
    const int32_t stride = LIST ? ss.stride : S::WARPS;
#pragma unroll 1
    for (; tile < t1; tile += stride) {
        float x[1][NT][4];
        uint32_t weights[1][NT][2];
        {
            k_tile<D, T> k;
            const int lane = own_lane();
            const uint8_t *rows_k = flow.wait() + (lane >> 2) * S::STEP;
            k.load_local(rows_k, S::STEP, S::turn_of(lane >> 2), lane);
            k.template logits<NT>(x[0], q + lane);
        }
        flow.next(S::SLOTS % 2, tile + S::V_AHEAD * stride < t1);
        const int g = own_lane() >> 2;
        const float scale = *(const volatile float *)&ss.scale;
        const int32_t left = *(const volatile int32_t *)&ss.limit - tile * TILE;
#pragma unroll
        for (int i = 0; i < NT * 4; i++) {
            float &y = x[0][i / 4][i % 4];
            const float low = T == ELEM_BF16 && NT == 1 ? __shfl_xor_sync(~0u, y, 2) : 0.0f;
            y += heads_of<NT>(p, *(const volatile int32_t *)&ss.s.u) <= 4 ? low : 0.0f; // no branch: the loop would be there twice
            y = g + (i & 2) * 4 < left ? y * scale : -CUDART_INF_F;
        }
        state.weigh(x, weights);
        {
            v_tile<D, T> v;
            const int lane = own_lane();
            const uint8_t *rows_v = flow.wait() + (lane & 3) * 2 * S::STEP;
            v.template add_local<NT>(state.o, weights[0], rows_v, S::STEP, S::turn_of((lane & 3) * 2), S::turn_of((lane & 3) * 2 + 1), lane >> 2);
        }
        flow.next(1 - S::SLOTS % 2, tile + S::K_AHEAD * stride < t1);
        flow.now = flow.find(flow.row);
        flow.row = lane_row(rows, tile + ((own_lane() < TILE ? S::K_AHEAD : S::V_AHEAD) + 2) * stride);
    }
}

// A share's queries and first tiles; once the kernel before has ended the next one may start.
template <int D, int NT, int T>
__device__ __forceinline__ void begin_share(const attend_params &p, int n, bool is_first, share_space &ss, ring<D, NT, T> &flow, uint2 *q)
{
    const int u = unit_of(p, ss.s.u), h0 = sub_of(p, ss.s.u) * 8 * NT;
    const bool split = T == ELEM_BF16 && NT == 1 && p.group - h0 <= 4, early = is_first && p.after_append;
    query_part<D, NT, T, ring_shape<D, NT, T>::WARPS * WARP> queries;
    if (ss.more) {
        if (!early) queries.load(p, u, h0, split);
        flow.pages = (threadIdx.x % WARP < TILE ? p.cache.k_page : p.cache.v_page) + (int64_t)u * p.cache.max_pages;
        fill_ring<D, NT, T>(flow, ss, ss.s.t0 + threadIdx.x / WARP, early ? (ss.rows.near - 1) / TILE : 0);
        if (early) queries.load(p, u, h0, split);
    } else if (is_first) {
        wait_for_previous();
    }
    if (is_first) {
        let_next_start();
        write_all_empty(p, D, n, ss.few, ss.empty);
    }
    if (!ss.more) return;
    count_share(p, ss);
    queries.store(p, h0, split, q);
}

template <int D, int NT, int T>
__global__ void __launch_bounds__(ring_shape<D, NT, T>::WARPS * WARP, ring_shape<D, NT, T>::BLOCKS) ring_kernel_of(const __grid_constant__ attend_params p)
{
    if constexpr (!HAS_RING) return; // never launched
    using S = ring_shape<D, NT, T>;
    __shared__ union { merge_space ms; deal_table table; } common;
    __shared__ share_space ss;
    __shared__ uint2 q[NT * (D / 16) * WARP];
    const int n = p.n_units * p.n_sub;
    ring<D, NT, T> flow;
    flow.slot = 0;
    if (!p.after_append) wait_for_previous();
    bool is_dealt = n <= WARP && deal_few<T>(p, n, ss);
#pragma unroll 1
    for (bool is_first = true;; is_first = is_dealt = false) {
        if (!is_dealt) deal_many<T>(p, n, is_first, ss, common.table);
        begin_share<D, NT, T>(p, n, is_first, ss, flow, q);
        if (!ss.more) return;
        {
            warp_state<D, NT, T, 1> state;
            state.clear();
            attend_tiles_of<D, NT, T>(p, ss, flow, state, q, ss.s.t0 + threadIdx.x / WARP, ss.s.t1);
            leave_state<D, NT, T>(state, heads_of<NT>(p, ss.s.u), common.ms, (float *)flow.memory());
        }
        __syncthreads();
        merge_blocks<D, NT, T, S::WARPS>(p, ss.s, common.ms, (float *)ring_memory, S::ROOM / (int)sizeof(float), S::BYTES);
        if (ss.few) return;
    }
}

} // namespace sr

#endif
