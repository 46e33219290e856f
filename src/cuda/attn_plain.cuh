// SPDX-License-Identifier: Apache-2.0
//
// The attend kernel for Hopper where a step reads all rows of a sequence, or its sinks and window, in every unit that reads
// anything: no lists. Then a block's share follows from the lengths and its own number, and every tile is 16 neighbouring rows of
// a page, so that nothing is dealt, looked up row by row or searched for. It does what attn_ring.cuh does, in a quarter of the
// instructions: a kernel that runs once a layer finds none of them in its SM's caches.
//
// Of one sequence the tiles of a unit go round its blocks, eight at a time, one for each warp. Of several, or where units are many, the
// tiles of all lie in a line of which each block takes a stretch. A lane keeps the addresses of K (lanes below 16) or V of one
// tile of its warp, so that a load brings those of 16 tiles.
//
// One block an SM: a warp then has registers enough that its loads from shared memory run ahead of what waits for them, and the parts of a
// unit are half as many. Its ring is that of two blocks an SM all the same: more bytes under way bring none sooner, and make SMs less equal.
#ifndef SR_CUDA_ATTN_PLAIN_CUH
#define SR_CUDA_ATTN_PLAIN_CUH

#include "cuda/attn_join.cuh"
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

// Where rows are long a block's warps meet each so many tiles, else the last of them ends 10 us after the first at 512K; where rows are short
// instructions are what is waited for, and a meeting costs more than it gives.
constexpr int BEAT = 8;
template <int D, int T> constexpr bool KEEPS_TOGETHER = is_wide(T) && D >= 128;

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
        // Those that are ahead wait, with their rings full, as long as all have tiles left.
        if (KEEPS_TOGETHER<D, T> && j % BEAT == BEAT - 1 && tile - (int32_t)(threadIdx.x / WARP) + S::WARPS <= r.tiles) __syncthreads();
    }
}

// ---- many units: a line of tiles ----

// Tiles of all head blocks, and the blocks that have some. Not a block that crosses from one head block to the next: `apart`.
struct plain_line {
    int32_t total, blocks;
    bool apart;

    __device__ __forceinline__ int32_t start(int32_t block) const { return (int32_t)((int64_t)total * block / blocks); }
    __device__ __forceinline__ int32_t block_of(int32_t x) const { return (int32_t)(((int64_t)(x + 1) * blocks - 1) / total); }
};

// What a sequence has of its own, by its number in the launch: its length, its first unit in q and out, the pages of a unit, its counters.
static __device__ __forceinline__ const int32_t *len_at(const attend_params &p, int32_t seq) { return p.cache.kv_len + seq; }
static __device__ __forceinline__ const int32_t *len_at(const seqs_params &p, int32_t seq) { return p.seq[seq].kv_len; }
static __device__ __forceinline__ int32_t row_at(const attend_params &, int32_t seq) { return seq; }
static __device__ __forceinline__ int32_t row_at(const seqs_params &p, int32_t seq) { return p.seq[seq].row; }
static __device__ __forceinline__ void *const *pages_at(const attend_params &p, int32_t, int unit, bool is_k)
{
    return (is_k ? p.cache.k_page : p.cache.v_page) + (int64_t)unit * p.cache.max_pages;
}
static __device__ __forceinline__ void *const *pages_at(const seqs_params &p, int32_t seq, int unit, bool is_k)
{
    return (is_k ? p.seq[seq].k_page : p.seq[seq].v_page) + (int64_t)(unit % p.n_kv_heads) * p.seq[seq].max_pages;
}

template <class P> static __device__ __forceinline__ int32_t len_in_line(const P &p, int32_t seq) { return seq < p.cache.n_seqs ? __ldcg(len_at(p, seq)) : 0; }
static __device__ __forceinline__ int32_t tiles_in_line(const attend_params &p, int32_t len) { return len > 0 ? plain_rows_of(p, p.kind, len).tiles : 0; }

// As many blocks as there are, or a few less where sequences are equally long and no block crosses then. By a warp.
template <class P> static __device__ __forceinline__ plain_line line_of(const P &p)
{
    const int32_t n_heads = p.n_kv_heads * p.n_sub, n = p.cache.n_seqs * n_heads;
    int32_t total = 0, least = INT32_MAX, longest = 0;
#pragma unroll 1
    for (int32_t seq = threadIdx.x % WARP; seq - (int32_t)(threadIdx.x % WARP) < p.cache.n_seqs; seq += WARP) {
        const int32_t tiles = tiles_in_line(p, len_in_line(p, seq));
        total += __reduce_add_sync(~0u, tiles);
        least = min(least, __reduce_min_sync(~0u, seq < p.cache.n_seqs ? tiles : INT32_MAX));
        longest = max(longest, __reduce_max_sync(~0u, tiles));
    }
    total *= n_heads;
    const int32_t blocks = max(1, min((int32_t)gridDim.x, total / LEAST_TILES)), even = blocks / n * n;
    const bool apart = least == longest && 16 * even >= 15 * blocks;
    return plain_line{total, apart ? even : blocks, apart};
}

// What a block does at once: tiles `tile`, tile + stride and so on of a head block are its warps' first, second ...
struct plain_share {
    share s;
    plain_rows rows;
    int32_t seq, len, tile, stride;
    int kind;
};

// A stretch of one head block's tiles, from tile x of the line on and before tile `to`. By a warp.
template <int D, int NT, int T, class P> static __device__ __forceinline__ plain_share share_in_line(const P &p, const plain_line &line, int32_t x, int32_t to)
{
    const int lane = threadIdx.x % WARP, n_heads = p.n_kv_heads * p.n_sub;
    int32_t seq = 0, before = 0, len, tiles; // before: of one head block of each sequence
#pragma unroll 1
    for (;; seq += WARP) {
        len = len_in_line(p, seq + lane);
        tiles = tiles_in_line(p, len);
        const int32_t end = before + sum_up_to(tiles);
        const unsigned behind = __ballot_sync(~0u, end * n_heads > x);
        const int l = behind ? __ffs(behind) - 1 : WARP - 1;
        before = __shfl_sync(~0u, behind ? end - tiles : end, l);
        if (!behind) continue; // x is some sequence's
        len = __shfl_sync(~0u, len, l);
        tiles = __shfl_sync(~0u, tiles, l);
        seq += l;
        break;
    }
    const int32_t i = (x - before * n_heads) / tiles, begin = before * n_heads + i * tiles;
    const int32_t first = line.block_of(begin), last = line.block_of(begin + tiles - 1);
    plain_share y;
    y.s = share{row_at(p, seq) * n_heads + i, x - begin, min(to - begin, tiles), (int32_t)blockIdx.x - first, last - first + 1,
                2 * first + (begin > line.start(first)), 2 * (first + 1), 2};
    y.seq = seq;
    y.len = len;
    y.kind = p.kind;
    y.rows = plain_rows_of(p, p.kind, len);
    y.rows.tiles = y.s.t1;
    y.rows.whole = min(y.rows.whole, y.s.t1);
    y.tile = y.s.t0 + threadIdx.x / WARP;
    y.stride = ring_shape<D, NT, T>::WARPS;
    return y;
}

// Sequences of which nothing is there.
template <int D> static __device__ __forceinline__ void write_empty_in_line(const attend_params &p)
{
#pragma unroll 1
    for (int u = blockIdx.x; u < p.n_units; u += gridDim.x)
        if (len_of(p, u) <= 0) write_empty(p, D, u);
}

// ---- the kernel ----

// This block's part of one sequence's unit; none where its number of parts is 0.
template <int D, int NT, int T> static __device__ __forceinline__ plain_share share_of_block(const attend_params &p)
{
    using S = ring_shape<D, NT, T>;
    plain_share x;
    x.seq = 0;
    x.len = __ldcg(p.cache.kv_len);
    const plain_place at = p.kinds ? place_by_kinds<D>(p)
                                   : plain_place{(int32_t)blockIdx.x, (int32_t)blockIdx.y, (int32_t)gridDim.y, (int32_t)(blockIdx.x * gridDim.y), p.kind};
    x.kind = at.kind;
    x.rows = plain_rows_of(p, at.kind, x.len);
    const int32_t parts = max(1, min(at.most, (x.rows.tiles + S::WARPS - 1) / S::WARPS)); // none without a tile for each warp
    x.s = share{at.u, 0, 0, at.part, at.part < parts ? parts : 0, at.first_slot, at.first_slot + 1, 1};
    x.tile = at.part * S::WARPS + threadIdx.x / WARP;
    x.stride = parts * S::WARPS;
    return x;
}

// What a block has in common. Over the loop it is kept here: its registers are few.
struct plain_space {
    merge_space ms;
    share s;
    join_plan join;
    plain_line line;
    int32_t at, end; // of the line: what is left of the block's stretch
    int32_t kind, len, n_rows;
};

static __device__ __forceinline__ void count_plain(const attend_params &p, int32_t, const plain_space &space)
{
    if (space.s.part == 0 && sub_of(p, space.s.u) == 0) count(p, unit_of(p, space.s.u), space.kind, space.n_rows, space.len);
}
static __device__ __forceinline__ void count_plain(const seqs_params &p, int32_t seq, const plain_space &space)
{
    struct attn_cuda_counters *c = p.seq[seq].counters;
    if (c && space.s.part == 0 && sub_of(p, space.s.u) == 0) count_to(c + unit_of(p, space.s.u) % p.n_kv_heads, 0, space.kind, space.n_rows, space.len);
}

template <class P> static __device__ __forceinline__ void begin_line(const P &p, plain_space &space)
{
    const plain_line line = line_of(p);
    const int32_t block = blockIdx.x;
    if (threadIdx.x != 0) return;
    space.line = line;
    space.at = block < line.blocks ? line.start(block) : 0;
    space.end = block < line.blocks ? line.start(block + 1) : 0;
}

template <int D, int NT, int T, class P>
__device__ __forceinline__ void attend_plain_share(const P &p, const plain_share &x, plain_space &space, uint2 *q)
{
    using S = ring_shape<D, NT, T>;
    const int unit = unit_of(p, x.s.u), h0 = sub_of(p, x.s.u) * 8 * NT, head = unit % p.n_kv_heads;
    plain_ring<D, NT, T> flow;
    flow.pages = pages_at(p, x.seq, unit, threadIdx.x % WARP < flow.RUN);
    flow.slot = 0;
    flow.stride = x.stride;
    flow.now = flow.find(x.rows, x.tile, x.stride);
    flow.tile = x.tile + flow.RUN * x.stride;
    flow.next = flow.find(x.rows, flow.tile, x.stride);
    const bool split = T == ELEM_BF16 && NT == 1 && p.group - h0 <= 4;
    const float scale = p.scale * LOG2E * (T != ELEM_F8 ? 1.0f : p.cache.k_scale ? F8_UNIT * p.cache.k_scale[head] : F8_UNIT);
    const float v_scale = v_scale_of(p, unit, T == ELEM_F8);
    if (p.after_append) wait_for_previous();
    query_part<D, NT, T, S::WARPS * WARP> queries;
    queries.load(p, unit, h0, split);
#pragma unroll 1
    for (int k = 0; k < S::SLOTS; k++) flow.ask(x.rows, k % 2, k / 2, x.tile + k / 2 * x.stride, k);
    let_next_start();
    if (threadIdx.x == 0) {
        space.s = x.s;
        space.join = join_plan_of<D>(p, x.s, 8 * NT, !p.in_line || space.line.apart ? JOIN_LAST : JOIN_FIRST, S::WARPS * WARP, v_scale);
        space.kind = x.kind;
        space.len = x.len;
        space.n_rows = x.rows.near ? x.rows.head + x.len - x.rows.near : x.len;
    }
    queries.store(p, h0, split, q);
    if (threadIdx.x == 0) count_plain(p, x.seq, space);
    {
        warp_state<D, NT, T, 1> state;
        state.clear();
        attend_plain<D, NT, T>(x.rows, flow, state, x.tile, scale, split, q);
        leave_state<D, NT, T>(state, heads_of<NT>(p, *(const volatile int32_t *)&space.s.u), space.ms, (float *)ring<D, NT, T>::memory());
    }
    __syncthreads();
    join_blocks<D, NT, T, S::WARPS>(p, space.s, space.join, space.ms, (float *)ring_memory, S::ROOM / (int)sizeof(float));
}

// So many that no second block of this kernel comes beside the first, but one of a product's does, which has 112 and fills its ring meanwhile.
__host__ __device__ constexpr int plain_registers(int d, int nt) { return d * nt <= 128 ? 144 : 248; }

template <int D, int NT, int T>
__global__ void __maxnreg__(plain_registers(D, NT)) plain_kernel_of(const __grid_constant__ attend_params p)
{
    if constexpr (!HAS_RING) return; // never launched
    __shared__ plain_space space;
    __shared__ uint2 q[NT * (D / 16) * WARP];
    if (!p.after_append) wait_for_previous();
#pragma unroll 1
    for (bool is_first = true;; is_first = false) {
        plain_share x;
        if (!p.in_line) {
            if (!is_first) return;
            x = share_of_block<D, NT, T>(p);
            if (x.s.n_parts == 0) return;
        } else {
            if (is_first) begin_line(p, space);
            __syncthreads(); // what the last share left in memory is read
            const int32_t at = space.at, end = space.end;
            if (at >= end) break;
            x = share_in_line<D, NT, T>(p, space.line, at, end);
            __syncthreads();
            if (threadIdx.x == 0) space.at = at + x.s.t1 - x.s.t0;
        }
        attend_plain_share<D, NT, T>(p, x, space, q);
    }
    write_empty_in_line<D>(p);
}

// Sequences that lie anywhere, each of at least one row, in a line: sessions that step together.
template <int D, int NT, int T>
__global__ void __maxnreg__(plain_registers(D, NT)) seqs_kernel_of(const __grid_constant__ seqs_params p)
{
    if constexpr (!HAS_RING) return; // never launched
    __shared__ plain_space space;
    __shared__ uint2 q[NT * (D / 16) * WARP];
    wait_for_previous();
    begin_line(p, space);
#pragma unroll 1
    for (;;) {
        __syncthreads(); // what the last share left in memory is read
        const int32_t at = space.at, end = space.end;
        if (at >= end) return;
        const plain_share x = share_in_line<D, NT, T>(p, space.line, at, end);
        __syncthreads();
        if (threadIdx.x == 0) space.at = at + x.s.t1 - x.s.t0;
        attend_plain_share<D, NT, T>(p, x, space, q);
    }
}

} // namespace sr

#endif
