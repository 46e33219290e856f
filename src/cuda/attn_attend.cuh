// SPDX-License-Identifier: Apache-2.0
//
// The attend kernel: decode attention over whatever rows were chosen, all heads of a group packed. Here for cards before
// Hopper and for Q8_0, whose rows lie in two places; attn_ring.cuh is the other one.
//
// Every warp streams tiles of 16 rows on its own, straight to registers: while it works on one tile, the next one's K and V
// are under way, and the row numbers and page pointers of the tile after that. There is no barrier until a share ends.
#ifndef SR_CUDA_ATTN_ATTEND_CUH
#define SR_CUDA_ATTN_ATTEND_CUH

#include "cuda/attn_plain.cuh"

namespace sr {

// The tiles that a warp has under way, and where the next ones are.
template <int D, int NT, int T> struct stream {
    static constexpr int TILES = attend_tiles(D, NT, T);
    k_tile<D, T> k[TILES];
    v_tile<D, T> v[TILES];
    uint64_t at[TILES];
    int32_t row[TILES];  // of `at`, then of what follows
    void *const *pages;  // of K or V, by lane

    __device__ __forceinline__ void find_rows(const share_space &ss, int32_t tile)
    {
        const volatile unit_rows &rows = ss.rows; // read anew each time: in registers they would push out rows under way
#pragma unroll
        for (int i = 0; i < TILES; i++) row[i] = lane_row(rows, tile + i);
    }
    __device__ __forceinline__ void find_addresses()
    {
#pragma unroll
        for (int i = 0; i < TILES; i++) at[i] = lane_address<D, T>(pages, row[i]);
    }
    __device__ __forceinline__ void load_k(int lane)
    {
#pragma unroll
        for (int i = 0; i < TILES; i++) k[i].load(at[i], lane);
    }
    __device__ __forceinline__ void load_v(int lane)
    {
#pragma unroll
        for (int i = 0; i < TILES; i++) v[i].load(at[i], lane);
    }
};

template <int D, int NT, int T>
__device__ __forceinline__ void attend_share(const attend_params &p, const share_space &ss, warp_state<D, NT, T, attend_tiles(D, NT, T)> &state, uint2 *q)
{
    constexpr int TILES = attend_tiles(D, NT, T), STEP = attend_warps(D, NT, T) * TILES;
    const int lane = threadIdx.x % WARP, g = lane >> 2;
    const int u = unit_of(p, ss.s.u), h0 = sub_of(p, ss.s.u) * 8 * NT;
    const bool split = T == ELEM_BF16 && NT == 1 && p.group - h0 <= 4;
    stream<D, NT, T> flow;
    flow.pages = (lane < TILE ? p.cache.k_page : p.cache.v_page) + (int64_t)u * p.cache.max_pages;
    int32_t tile = ss.s.t0 + threadIdx.x / WARP * TILES;
    flow.find_rows(ss, tile);
    flow.find_addresses();
    flow.find_rows(ss, tile + STEP);
    flow.load_k(lane);
    flow.load_v(lane);
    flow.find_addresses();
    flow.find_rows(ss, tile + 2 * STEP);
    query_part<D, NT, T, attend_warps(D, NT, T) * WARP> queries;
    queries.load(p, u, h0, split);
    queries.store(p, h0, split, q);
    for (bool more = tile < ss.s.t1; more; tile += STEP) {
        more = tile + STEP < *(const volatile int32_t *)&ss.s.t1;
        float x[TILES][NT][4];
        uint32_t weights[TILES][NT][2];
#pragma unroll
        for (int i = 0; i < TILES; i++) flow.k[i].template logits<NT>(x[i], q + lane);
        if (more) flow.load_k(lane);
        const float scale = *(const volatile float *)&ss.scale;
        const int32_t left = *(const volatile int32_t *)&ss.limit - tile * TILE;
#pragma unroll
        for (int i = 0; i < TILES * NT * 4; i++) {
            float &y = x[i / 4 / NT][i / 4 % NT][i % 4];
            if (split) y += __shfl_xor_sync(~0u, y, 2);
            y = g + i / 4 / NT * TILE + (i & 2) * 4 < left ? y * scale : -CUDART_INF_F;
        }
        state.weigh(x, weights);
#pragma unroll
        for (int i = 0; i < TILES; i++) flow.v[i].template add<NT>(state.o, weights[i]);
        if (more) {
            flow.load_v(lane);
            flow.find_addresses();
            flow.find_rows(ss, tile + 3 * STEP);
        }
    }
}

template <int D, int NT, int T>
__global__ void __launch_bounds__(attend_warps(D, NT, T) * WARP, 1) attend_kernel_of(const __grid_constant__ attend_params p)
{
    if constexpr (T != ELEM_Q8 && HAS_RING) return; // never launched
    extern __shared__ float red[];
    __shared__ merge_space ms;
    __shared__ share_space ss;
    __shared__ uint2 q[NT * (D / 16) * WARP];
    wait_for_previous();
    let_next_start();
    const int n = p.n_units * p.n_sub;
    const bool few = n <= WARP && deal_few<T>(p, n, ss);
    for (bool is_first = true;; is_first = false) {
        if (!few) deal_many<T>(p, n, is_first, ss, *(deal_table *)red);
        if (is_first) write_all_empty(p, D, n, few, ss.empty);
        if (!ss.more) return;
        const share s = ss.s;
        count_share(p, ss);
        warp_state<D, NT, T, attend_tiles(D, NT, T)> state;
        state.clear();
        attend_share<D, NT, T>(p, ss, state, q);
        leave_state<D, NT, T>(state, min(p.group - sub_of(p, s.u) * 8 * NT, 8 * NT), ms, red + threadIdx.x / WARP * state_words(D, NT));
        __syncthreads();
        merge_blocks<D, NT, T, attend_warps(D, NT, T)>(p, s, ms, red, state_words(D, NT),
                                                              attend_warps(D, NT, T) * state_words(D, NT) * (int)sizeof(float));
        if (few) return;
    }
}

template <int D, int NT, int T> attend_code code_of(bool has_ring)
{
    if constexpr (T != ELEM_Q8) {
        using S = ring_shape<D, NT, T>;
        void (*seqs)(seqs_params) = NULL;
        if constexpr (is_wide(T)) seqs = seqs_kernel_of<D, NT, T>;
        if (has_ring) return attend_code{ring_kernel_of<D, NT, T>, S::WARPS * WARP, S::BYTES, S::BLOCKS, plain_kernel_of<D, NT, T>, seqs};
    }
    constexpr int warps = attend_warps(D, NT, T);
    return attend_code{attend_kernel_of<D, NT, T>, warps * WARP, warps * state_words(D, NT) * sizeof(float), 1, NULL, NULL};
}

template <int D, int T> attend_code instance(int nt, bool has_ring)
{
    if (nt == 1) return code_of<D, 1, T>(has_ring);
    if constexpr (D < 256) {
        if (nt == 2) return code_of<D, 2, T>(has_ring);
    }
    return attend_code{};
}

template <int T> attend_code instance_of(int d, int nt, bool has_ring)
{
    switch (d) {
    case 64: return instance<64, T>(nt, has_ring);
    case 80: if constexpr (T != ELEM_Q8) return instance<80, T>(nt, has_ring); else return attend_code{};
    case 96: return instance<96, T>(nt, has_ring);
    case 128: return instance<128, T>(nt, has_ring);
    case 256: return instance<256, T>(nt, has_ring);
    default: return attend_code{};
    }
}

} // namespace sr

#endif
