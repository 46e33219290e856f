// SPDX-License-Identifier: Apache-2.0
//
// Attention over lists and the second look in one kernel, for Hopper, one sequence, and the head sizes and groups that are common: nothing lies
// between it and what takes its output, and most often the look has nothing to do.
//
// Tiles of 16 rows come by the rings of attn_ring.cuh. A unit's blocks leave their parts in device memory as attn_merge.cuh says, its last ones, up to
// LOOK_PARTS of them, merge slices of 32 pieces each, and since all of these read every head's maxima and sums each knows by itself whether there is
// more to read, and then goes on as look_parts.cuh says. They wait only for blocks that start before them. Rows to be noted are looked at by the
// unit's first block; it waits for the unit's last ones, which is no danger: these blocks are few beside those that a card holds.
#ifndef SR_CUDA_ATTN_LIST_CUH
#define SR_CUDA_ATTN_LIST_CUH

#include "cuda/attn_join.cuh"
#include "cuda/attn_ring.cuh"
#include "cuda/look_parts.cuh"

namespace sr {

constexpr int LIST_HEADS = 8;       // of a group, at most
constexpr int LIST_PARTS = 256;     // of a unit, at most
// One block an SM: no second one has room, but one of a product's does, which has 256 threads of 120, and fills its ring meanwhile.
constexpr int LIST_THREADS = LOOK_THREADS + WARP, LIST_REGISTERS = 120;
constexpr int LIST_LEAST_TILES = 4; // of a block, if a unit has so many
static_assert((LOOK_PARTS + 1) * LIST_HEADS <= JOIN_SLICES && LOOK_THREADS == 8 * WARP, "a copy of maxima and sums for each block that reads them");

template <int D, int T> using list_ring = ring<D, 1, T, false>;
template <int D, int T> using list_shape = ring_shape<D, 1, T>;

// ---- dealing ----

// This block's share, which each warp finds and one thread, `writes`, stores; false: none. Units are near, near and a list, or whole.
template <int T> static __device__ __forceinline__ bool deal_list(const attend_params &p, bool writes, share_space &ss, int32_t &my_kind)
{
    const int lane = threadIdx.x % WARP, n = p.n_units;
    const int32_t len = __ldcg(p.cache.kv_len), near = p.n_sinks + p.window;
    const int32_t kind = lane < n ? __ldcg(p.kinds + lane) : CUDA_READ_NEAR, listed = lane < n ? min(max(__ldcg(p.n_list + lane), 0), len) : 0;
    const int32_t whole = kind == CUDA_READ_ALL || near >= len ? len : 0;
    const int32_t n_rows = lane < n ? (whole ? len : near) + (kind == CUDA_READ_NEAR_LIST ? listed : 0) : 0;
    const int32_t tiles = tiles_of(n_rows), total = __reduce_add_sync(~0u, tiles), grid = gridDim.x;
    const int32_t most = (tiles + LIST_LEAST_TILES - 1) / LIST_LEAST_TILES;
    const int32_t blocks = min(most, 1 + (int32_t)((float)tiles * __fdividef((float)(grid - n), (float)total) * .9999f)), end = sum_up_to(blocks);
    const unsigned mine = __ballot_sync(~0u, (int)blockIdx.x >= end - blocks && (int)blockIdx.x < end);
    if (!mine) return false;
    const int u = __ffs(mine) - 1;
    const int32_t n_parts = __shfl_sync(~0u, blocks, u), first = __shfl_sync(~0u, end, u) - n_parts, part = blockIdx.x - first, my_rows = __shfl_sync(~0u, n_rows, u);
    const int32_t head = __shfl_sync(~0u, whole, u);
    const int32_t of_mine = __shfl_sync(~0u, kind, u);
    if (writes) {
        my_kind = of_mine;
        const unit_rows rows = {my_rows, head ? head : p.n_sinks, head ? head : near, len - near, p.list + u * p.list_stride};
        set_share<T>(p, ss, share{u, part * list_shape<128, T>::WARPS, tiles_of(my_rows), part, n_parts, first, first + 1, 1}, rows);
        ss.stride = n_parts * list_shape<128, T>::WARPS;
    }
    return true;
}

// This warp's first tiles, up to t1. Rows are masked.
template <int D, int T> static __device__ __forceinline__ void fill_list(list_ring<D, T> &flow, const share_space &ss, int32_t tile, int32_t t1, int32_t mask)
{
    using S = list_shape<D, T>;
    const int off = threadIdx.x % WARP < TILE ? S::K_AHEAD : S::V_AHEAD;
    const int32_t stride = ss.stride;
    int32_t row[S::K_AHEAD + 2];
    where at[S::K_AHEAD];
#pragma unroll
    for (int i = 0; i < S::K_AHEAD + 2; i++) row[i] = lane_row(ss.rows, tile + (i < S::K_AHEAD ? i : i - S::K_AHEAD + off) * stride) & mask;
#pragma unroll
    for (int i = 0; i < S::K_AHEAD; i++) at[i] = flow.find(row[i]);
    flow.now = flow.find(row[S::K_AHEAD]);
    flow.row = row[S::K_AHEAD + 1];
#pragma unroll 1
    for (int k = 0; k < S::SLOTS; k++, tile += k % 2 ? 0 : stride) {
        if (tile < t1) flow.ask(k % 2, k, at[0]);
        end_group();
#pragma unroll
        for (int i = 0; i < S::K_AHEAD - 1 && k % 2; i++) at[i] = at[i + 1];
    }
}

// ---- parts ----

// Of a block: its place from the unit's end, and what it does there.
struct list_role { int32_t rank, copies, copy; bool looks, notes; };

static __device__ __forceinline__ list_role role_of(const share &s, bool unit_notes)
{
    list_role r;
    r.rank = s.n_parts - 1 - s.part, r.copies = min(s.n_parts, LOOK_PARTS);
    r.looks = r.rank < r.copies, r.notes = unit_notes && s.part == 0;
    r.copy = r.looks ? r.rank : LOOK_PARTS;
    return r;
}

static __device__ __forceinline__ float2 *list_ml(const attend_params &p, int32_t slot, int copy, int h) { return (float2 *)p.part_ml + slot * JOIN_SLICES + copy * LIST_HEADS + h; }

// The block's part to device memory; its maxima and sums once for each block that reads them.
template <int D, int T> static __device__ __forceinline__ void leave_own(const attend_params &p, const share &s, const list_role &r, bool unit_notes, const warp_sums &ms)
{
    using S = list_shape<D, T>;
    const int i = threadIdx.x, copy = i % (D / 4), h = i / (D / 4);
    if (i >= p.group * (D / 4)) return;
    const int32_t slot = slot_of_part(s, s.part);
    const piece own = merge_warps<D, S::WARPS>(ms, (const float *)ring_memory, S::ROOM / (int)sizeof(float), i);
    poke4(o_of<D, 1>(p, slot, i), make_uint4(word_of(own.o.x), word_of(own.o.y), word_of(own.o.z), word_of(own.o.w)));
    if (copy < r.copies || (copy == LOOK_PARTS && unit_notes && s.n_parts > LOOK_PARTS)) poke2(list_ml(p, slot, copy, h), make_uint2(word_of(own.m), word_of(own.l)));
}

// Of all parts, in shared memory, from its begin on.
template <int D> struct list_sums {
    float4 o[8][WARP];              // of a slice, by warp
    float top[LIST_HEADS], sum[LIST_HEADS];
    float m[LIST_PARTS][LIST_HEADS]; // of the parts
};

// Head `warp`'s maxima and sums of all parts; `words` are those of part `lane`.
template <int D> static __device__ __forceinline__ void total_of(const attend_params &p, const share &s, const list_role &r, uint2 words, list_sums<D> &x)
{
    const int w = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (w >= p.group) return;
    float m = -CUDART_INF_F, l = 0;
#pragma unroll 1
    for (int32_t part = lane; part < s.n_parts; part += WARP) {
        float2 *const at = list_ml(p, slot_of_part(s, part), r.copy, w);
        if (part >= WARP) words = make_uint2(0, 0);
#pragma unroll 1
        while (words.x == 0 || words.y == 0) words = peek2(at);
        poke2(at, make_uint2(0, 0));
        const float2 both = join(make_float2(m, l), make_float2(of_word(words.x), of_word(words.y)));
        x.m[part][w] = of_word(words.x), m = both.x, l = both.y;
    }
    __syncwarp();
    const float top = max_of_lanes(m), sum = sum_of_lanes(l * exp2_of(m - base_of(top)));
    if (lane == 0) x.top[w] = top, x.sum[w] = sum;
}

// The unit's totals, and its slices rank, rank + copies and so on, once all parts are there: output and state. All threads.
template <int D, int T> static __device__ __forceinline__ void join_list(const attend_params &p, const share &s, const list_role &r, list_sums<D> &x)
{
    using S = list_shape<D, T>;
    const int w = threadIdx.x / WARP, lane = threadIdx.x % WARP, pieces = p.group * (D / 4);
    const float v_scale = v_scale_of(p, s.u, T == ELEM_F8);
    bool knows = false;
#pragma unroll 1
    for (int k = r.looks ? r.rank : pieces; !knows || k * WARP < pieces; k += r.copies) {
        const int i = k * WARP + lane, h = min(i / (D / 4), p.group - 1);
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (int32_t first = w; first - w < s.n_parts; first += 2 * S::WARPS) {
            const bool asks = !knows && w < p.group && lane < s.n_parts;
            const float2 *const at = list_ml(p, slot_of_part(s, asks ? lane : 0), r.copy, asks ? w : 0);
            float4 *to[2];
            uint4 o[2];
            uint2 ml;
            bool has[2], more;
#pragma unroll
            for (int b = 0; b < 2; b++) {
                has[b] = i < pieces && first + b * S::WARPS < s.n_parts;
                to[b] = o_of<D, 1>(p, slot_of_part(s, has[b] ? first + b * S::WARPS : 0), has[b] ? i : 0);
            }
#pragma unroll 1
            do {
                ml = asks ? peek2(at) : make_uint2(1, 1);
                o[0] = has[0] ? peek4(to[0]) : make_uint4(1, 1, 1, 1), o[1] = has[1] ? peek4(to[1]) : make_uint4(1, 1, 1, 1);
                more = !is_there(o[0]) || !is_there(o[1]) || min(ml.x, ml.y) == 0;
            } while (more);
            if (!knows) {
                total_of(p, s, r, ml, x);
                __syncthreads();
                knows = true;
            }
#pragma unroll
            for (int b = 0; b < 2; b++) {
                if (!has[b]) continue;
                poke4(to[b], make_uint4(0, 0, 0, 0));
                const float f = exp2_of(x.m[first + b * S::WARPS][h] - base_of(x.top[h]));
                add_part(sum, make_float4(of_word(o[b].x), of_word(o[b].y), of_word(o[b].z), of_word(o[b].w)), f);
            }
        }
        if (!r.looks || k * WARP >= pieces) return;
        x.o[w][lane] = sum;
        __syncthreads();
        if (w == 0 && i < pieces) {
#pragma unroll 1
            for (int j = 1; j < S::WARPS; j++) add_part(sum, x.o[j][lane], 1.0f);
            finish_piece<D, T>(p, (int64_t)s.u * p.group, i, sum, v_scale, with_prior{x.top[h], x.sum[h], inverse_of(x.sum[h]), 1, 0});
        }
        if ((k + r.copies) * WARP < pieces) __syncthreads(); // where another slice is summed
    }
}

// ---- the look ----

// What is read on, if anything is.
template <int D, int T, int H>
static __device__ __forceinline__ void look_on(const look_params &look, int32_t u, const list_role &r, const rest_words &rest, int end, const known &before, float2 state, float *q,
                                               look_space<H> &s)
{
    const int lane = threadIdx.x % WARP;
    const stretch x = stretch_of<H>(look, u, r.rank, r.copies, rest);
    const bool reports = r.rank == r.copies - 1; // the one that has the least to merge
    if (end == CHOOSE_BINS) {
        if (reports && !look.a.only_notes) count_more(look, x, 0);
        return;
    }
    const seen now = see(look, before, state);
    if (!__any_sync(~0u, lane < look.group && before.unread > now.limit)) { // alike in all warps
        if (reports) report(look, u, now, before.unread), count_more(look, x, 0);
        return;
    }
    __syncthreads(); // all have read the sums
    copy_rest(x, x.from, s);
    copy_left(look, x.u, s);
    copy_pages(look, x, s);
    copy_q<H>(look, x.u, q);
    if ((int)threadIdx.x < H) s.m[threadIdx.x] = -CUDART_INF_F, s.l[threadIdx.x] = 0, s.m0[threadIdx.x] = now.m, s.l0[threadIdx.x] = now.l;
    if (threadIdx.x == 0) s.total = 0;
    await_copies();
    const int last = new_end(s, now, end);
    if (reports) report(look, u, now, lane < H ? s.left[last - 1][lane] : 0.0f);
    read_on<T, H, true>(look, x, last, q, s);
}

// What follows once the warps' states are left and a barrier is passed.
template <int D, int T, int H>
static __device__ __forceinline__ void end_list(const attend_params &p, const look_params &look, const share_space &ss, int32_t kind, int end, const warp_sums &ms)
{
    look_space<H> &space = *(look_space<H> *)ring_memory;
    list_sums<D> &sums = *(list_sums<D> *)ring_memory;
    float *const q = (float *)(ring_memory + sizeof(look_space<H>));
    const share s = ss.s;
    const bool unit_notes = look.a.trail && kind == CUDA_READ_NEAR_LIST;
    const list_role role = role_of(s, unit_notes);
    const int lane = threadIdx.x % WARP;
    leave_own<D, T>(p, s, role, unit_notes, ms);
    if (threadIdx.x == 0 && s.part == 0) count(p, s.u, kind, ss.rows.n, __ldcg(p.cache.kv_len));
    if (!role.looks && !role.notes) return;
    const rest_words rest = rest_words_of(look, s.u); // on the way while the others' parts are
    known before = {};
    if (end < CHOOSE_BINS) before = recall(look, s.u, end, H);
    __syncthreads(); // what the warps left is read
    candidate<H> noted;
    noted.row = -1;
    if (role.notes) {
        copy_q<H>(look, s.u, q);
        noted = find_candidate<T, H>(look, s.u, q, space);
    }
    join_list<D, T>(p, s, role, sums);
    const float2 state = lane < p.group ? make_float2(sums.top[lane], sums.sum[lane]) : make_float2(-CUDART_INF_F, 0);
    if (role.notes) note(look, s.u, noted, state);
    if (role.looks) look_on<D, T, H>(look, s.u, role, rest, end, before, state, q, space);
}

// ---- the kernel ----

static __device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" :: "n"(LOOK_THREADS) : "memory"); } // of the warps that work

// A warp more than those that work practises: before the choice has ended it goes the same way up to its first tile, with whatever the list holds
// then in place of this layer's and row 0 for each row, so that instructions are near when they are needed. Nothing of it is used.
template <int D, int T, int H>
__global__ void __maxnreg__(LIST_REGISTERS) list_kernel_of(const __grid_constant__ attend_params p, const __grid_constant__ look_params look)
{
    if constexpr (!HAS_RING) return; // never launched
    __shared__ warp_sums ms;
    __shared__ share_space spaces[2];
    __shared__ int32_t kinds[2];
    __shared__ uint2 q[D / 16 * WARP];
    const bool practises = __shfl_sync(~0u, (int)threadIdx.x, 0) >= LOOK_THREADS;
    share_space &ss = spaces[practises];
    if (!practises) wait_for_previous();
    if (!deal_list<T>(p, threadIdx.x % LOOK_THREADS == 0, ss, kinds[practises])) return;
    if (practises) __syncwarp();
    else meet();
    const bool split = T == ELEM_BF16 && p.group <= 4;
    query_part<D, 1, T, LOOK_THREADS> queries;
    queries.load(p, ss.s.u, 0, split);
    const int end = look.a.only_notes ? (int)CHOOSE_BINS : __ldcg(&look.rests[ss.s.u].end);
    list_ring<D, T> flow;
    flow.slot = 0;
    flow.pages = (threadIdx.x % WARP < TILE ? p.cache.k_page : p.cache.v_page) + (int64_t)ss.s.u * p.cache.max_pages;
    const int32_t tile = ss.s.t0 + (practises ? 0 : (int)threadIdx.x / WARP), t1 = practises ? tile + 1 : ss.s.t1;
    uint2 *const my_q = practises ? (uint2 *)(flow.memory() + 2 * list_shape<D, T>::SLOT) : q;
    fill_list<D, T>(flow, ss, tile, t1, practises ? 0 : -1);
    if (!practises) let_next_start();
    queries.put(p, 0, split, my_q);
    if (!practises) meet();
    {
        warp_state<D, 1, T, 1> state;
        state.clear();
        attend_tiles_of<D, 1, T, true>(p, ss, flow, state, my_q, tile, t1);
        leave_state<D, 1, T>(state, practises ? 0 : p.group, ms, (float *)flow.memory());
    }
    if (practises) {
        asm volatile("cp.async.wait_all;" ::: "memory"); // others will have this memory
        return;
    }
    meet();
    end_list<D, T, H>(p, look, ss, kinds[0], end, ms);
}

// ---- launch ----

struct list_code { void (*kernel)(attend_params, look_params); int smem; };

template <int D, int T, int H> static list_code list_code_for()
{
    constexpr int look = (int)sizeof(look_space<H>) + H * D * (int)sizeof(float), q = D / 16 * WARP * (int)sizeof(uint2),
                  room = list_shape<D, T>::BYTES + 2 * list_shape<D, T>::SLOT + q; // two slots and queries of the one that practises
    return list_code{list_kernel_of<D, T, H>, look > room ? look : room};
}

// No kernel: none for this shape.
template <int T> static list_code list_instance_of(int d, int group)
{
    if (group > LIST_HEADS || (d != 64 && d != 128)) return list_code{};
    if (d == 64) return group <= 4 ? list_code_for<64, T, 4>() : list_code_for<64, T, 8>();
    return group <= 4 ? list_code_for<128, T, 4>() : list_code_for<128, T, 8>();
}

list_code list_bf16(int d, int group);
list_code list_f16(int d, int group);
list_code list_f8(int d, int group);

} // namespace sr

#endif
