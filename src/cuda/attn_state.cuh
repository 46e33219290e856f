// SPDX-License-Identifier: Apache-2.0
//
// What both attend kernels share: the state of a warp, where rows are, queries in shared memory, shares.
//
// The running maximum is moved only when a logit exceeds it by more than SLACK, so that most tiles need no exchange between
// lanes: p is then at most 2^SLACK, which neither bf16, f16 nor the sums mind.
#ifndef SR_CUDA_ATTN_STATE_CUH
#define SR_CUDA_ATTN_STATE_CUH

#include "cuda/attn_deal.cuh"
#include "cuda/attn_tile.cuh"

namespace sr {

constexpr float SLACK = 8.0f;

template <int D, int NT, int T, int TILES> struct warp_state {
    static constexpr int STEPS = D / 16;
    float o[STEPS][NT][4];   // columns v_column(j, g, c / 2) of heads 8 nt + 2 t + c % 2
    float m[NT][2], l[NT][2];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int j = 0; j < STEPS; j++)
#pragma unroll
            for (int i = 0; i < NT * 4; i++) o[j][i / 4][i % 4] = 0;
#pragma unroll
        for (int n = 0; n < NT; n++) m[n][0] = m[n][1] = -CUDART_INF_F, l[n][0] = l[n][1] = 0;
    }

    __device__ __forceinline__ void scale(int n, float f0, float f1)
    {
#pragma unroll
        for (int j = 0; j < STEPS; j++) o[j][n][0] *= f0, o[j][n][1] *= f1, o[j][n][2] *= f0, o[j][n][3] *= f1;
    }

    // Moves the maxima up to those of x. While everything is -inf, so are they.
    __device__ __forceinline__ void raise(const float x[TILES][NT][4])
    {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float f[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float top = m[n][h];
#pragma unroll
                for (int i = 0; i < TILES; i++) top = fmaxf(top, fmaxf(x[i][n][h], x[i][n][h + 2]));
#pragma unroll
                for (int i = 4; i < WARP; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
                f[h] = top == -CUDART_INF_F ? 1.0f : exp2_of(m[n][h] - top);
                m[n][h] = top;
                l[n][h] *= f[h];
            }
            scale(n, f[0], f[1]);
        }
    }

    // Logits, in powers of 2, become weights in the shape that the product with V wants.
    __device__ __forceinline__ void weigh(float x[TILES][NT][4], uint32_t p[TILES][NT][2])
    {
        bool up = false;
#pragma unroll
        for (int i = 0; i < TILES * NT * 4; i++) up |= x[i / 4 / NT][i / 4 % NT][i % 4] > m[i / 4 % NT][i & 1] + SLACK;
        if (__any_sync(~0u, up)) raise(x);
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int n = 0; n < NT; n++) {
                float w[4];
#pragma unroll
                for (int c = 0; c < 4; c++) w[c] = exp2_of(x[i][n][c] - (m[n][c & 1] == -CUDART_INF_F ? 0.0f : m[n][c & 1]));
                l[n][0] += w[0] + w[2], l[n][1] += w[1] + w[3];
                p[i][n][0] = turn(pack<T>(w[0], w[1]));
                p[i][n][1] = turn(pack<T>(w[2], w[3]));
            }
    }
};

// ---- where the next rows are ----

// Lane i < 16 looks up row i of a tile in K, lane 16 + i in V.
template <typename R> __device__ __forceinline__ int32_t lane_row(const R &rows, int32_t tile)
{
    const int32_t n = rows.n, i = min(tile * TILE + (int32_t)(threadIdx.x % TILE), n - 1);
    if (i < rows.head) return i;
    const int32_t near = rows.near;
    return i < near ? i + rows.shift : ((const int32_t *)rows.list)[i - near];
}

// A Q8 row is in two places: its page, with its number there in the low bits that alignment leaves free.
template <int D, int T> __device__ __forceinline__ uint64_t lane_address(void *const *pages, int32_t row)
{
    const uint64_t page = (uint64_t)pages[row / SR_PAGE_ROWS];
    const uint32_t slot = row % SR_PAGE_ROWS;
    return T == ELEM_Q8 ? page | slot : page + slot * D * tile_shape<D, T>::BYTES;
}

// A thread's part of the queries of a share, on the way: loads come before those of rows, which would be waited for too.
template <int D, int NT, int T, int THREADS> struct query_part {
    static constexpr int N = NT * (D / 16) * WARP, PER = (N + THREADS - 1) / THREADS;
    float4 x[PER];

    // Head within the group of item i; bf16's rounding of a query would show, so groups of up to 4 have what it leaves of each as
    // four more heads: `split`.
    __device__ static __forceinline__ int head_of(int h0, bool split, int i)
    {
        const int g = i % WARP >> 2;
        return h0 + i / (D / 16 * WARP) * 8 + (split ? g & 3 : g);
    }

    __device__ __forceinline__ void load(const attend_params &p, int u, int h0, bool split)
    {
#pragma unroll
        for (int k = 0; k < PER; k++) {
            const int i = threadIdx.x + k * THREADS, h = head_of(h0, split, i);
            const float *row = p.q + ((int64_t)u * p.group + (h < p.group ? h : 0)) * D;
            if (i < N) x[k] = *(const float4 *)(row + k_element<D, T>(i / WARP % (D / 16), i & 3));
        }
    }

    // To shared memory, as the lanes will want it.
    __device__ __forceinline__ void put(const attend_params &p, int h0, bool split, uint2 *q) const
    {
#pragma unroll
        for (int k = 0; k < PER; k++) {
            const int i = threadIdx.x + k * THREADS;
            if (i >= N) continue;
            const float keep = head_of(h0, split, i) < p.group ? 1.0f : 0.0f;
            float v[4] = {x[k].x * keep, x[k].y * keep, x[k].z * keep, x[k].w * keep};
            if (split && i % WARP >> 2 >= 4)
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] -= __bfloat162float(__float2bfloat16_rn(v[j]));
            q[i] = T == ELEM_F8 ? make_uint2(pack<T>(v[0], v[2]), pack<T>(v[1], v[3])) // as its bytes are taken apart
                                : make_uint2(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]));
        }
    }
    // The same, and a barrier.
    __device__ __forceinline__ void store(const attend_params &p, int h0, bool split, uint2 *q) const
    {
        put(p, h0, split, q);
        __syncthreads();
    }
};

// ---- shares ----

// What the warps of a block have in common.
struct share_space {
    share s;
    unit_rows rows;
    float scale;
    int32_t limit;   // rows before the share's end
    int32_t at, end; // of the line or of the blocks
    unsigned empty;  // head blocks that read nothing, where they are few
    int32_t stride;  // of a list, from a tile of a warp to its next
    bool few, more;
};

template <int T> __device__ __forceinline__ void set_share(const attend_params &p, share_space &ss, const share &s, const unit_rows &rows)
{
    const int head = unit_of(p, s.u) % p.n_kv_heads;
    ss.s = s;
    ss.rows = rows;
    ss.limit = min(rows.n, s.t1 * TILE);
    ss.scale = p.scale * LOG2E * (T != ELEM_F8 ? 1.0f : p.cache.k_scale ? F8_UNIT * p.cache.k_scale[head] : F8_UNIT);
}

// The one share of a block where there are few units; false if they are too many for that. Ends with a barrier.
template <int T> __device__ __forceinline__ bool deal_few(const attend_params &p, int n, share_space &ss)
{
    const warp_deal w = deal_in_warp(p, n);
    if (threadIdx.x == 0) ss.few = w.apart;
    if (!w.apart) return false;
    if (threadIdx.x == 0) {
        ss.more = w.has_share;
        ss.empty = w.empty;
        if (w.has_share) set_share<T>(p, ss, w.s, w.rows);
    }
    __syncthreads();
    return true;
}

// The next share of a block where there are many. Where the table lies other things may lie between shares: it is made anew.
template <int T>
__device__ __forceinline__ void deal_many(const attend_params &p, int n, bool is_first, share_space &ss, deal_table &table)
{
    __syncthreads();
    const bool apart = deal_in_block(p, table, n);
    const int32_t total = table.tiles[n];
    if (is_first) {
        if (threadIdx.x == 0) {
            ss.few = false;
            ss.at = apart ? (int32_t)blockIdx.x : line_start(blockIdx.x, total);
            ss.end = apart ? (ss.at < table.blocks[n] ? ss.at + 1 : ss.at) : line_start((int64_t)blockIdx.x + 1, total);
        }
        __syncthreads();
    }
    const int u = ss.at < ss.end ? find_entry(apart ? table.blocks : table.tiles, n, ss.at, &table.found) : -1;
    if (threadIdx.x == 0) {
        ss.more = u >= 0;
        if (u >= 0) {
            const share s = apart ? share_apart(u, table.tiles[u + 1] - table.tiles[u], table.blocks[u], table.blocks[u + 1] - table.blocks[u])
                                  : share_of_line(table, u, total);
            set_share<T>(p, ss, s, rows_of(p, unit_of(p, u)));
            ss.at = apart ? ss.end : table.tiles[u] + s.t1;
        }
    }
    __syncthreads();
}

} // namespace sr

#endif
