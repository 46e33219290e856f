// SPDX-License-Identifier: Apache-2.0
//
// The parts of a unit become one, by all of its last blocks: each of them takes a slice of the state, some neighbouring columns of one
// head, reads it of every part and waits for those that have not come. No ticket, nobody has more to read than about 3 times 16 bytes a
// thread, and a part's way to who merges it is one store and two loads.
//
// Who merges are a unit's parts with the highest numbers: of a grid's blocks those that start last. Then they wait only for blocks that run
// or are done, which wait for nobody but parts before them. Words of parts are as in attn_merge.cuh, but a part's maximum and sum lie in memory
// once for each slice: whoever reads them makes them zeros again.
#ifndef SR_CUDA_ATTN_JOIN_CUH
#define SR_CUDA_ATTN_JOIN_CUH

#include "cuda/attn_merge.cuh"
#include "cuda/attn_work.h"

namespace sr {

constexpr int JOIN_BATCH = 3;    // parts that a thread asks for at once
constexpr int LEAST_BITS = 2;    // a slice has 2^2 pieces of 16 bytes, or more
constexpr int JOIN_SLICES = WORK_PART_SLICES; // of a part, at most

// Pieces that share a maximum and a sum in memory: a power of two that divides those of a head. As the power.
__host__ __device__ constexpr int most_bits(int d)
{
    int bits = LEAST_BITS;
    while (bits < 5 && d / 4 % (2 << bits) == 0) bits++;
    return bits;
}

static_assert(LEAST_BITS == most_bits(80) && 16 * 128 / 4 >> LEAST_BITS <= JOIN_SLICES && 8 * 256 / 4 >> LEAST_BITS <= JOIN_SLICES, "slices");

// Pieces of a slice: fewer, and more blocks that merge, where there are many parts.
static __device__ __forceinline__ int bits_of(int32_t n_parts, int pieces, int threads)
{
    int bits = LEAST_BITS;
#pragma unroll 1
    while (1 << bits < min(pieces, threads) && n_parts << (bits + 1) <= JOIN_BATCH * threads) bits++;
    return bits;
}

// b joins a.
static __device__ __forceinline__ void join_piece(piece &a, const piece &b)
{
    const float top = fmaxf(a.m, b.m), f = exp2_of(a.m - base_of(top)), g = exp2_of(b.m - base_of(top));
    a.o = make_float4(a.o.x * f, a.o.y * f, a.o.z * f, a.o.w * f);
    add_part(a.o, b.o, g);
    a.l = a.l * f + b.l * g;
    a.m = top;
}

// How a unit's parts are merged, by slices of 2^bits pieces; 2^ml_bits of them share a maximum and a sum in memory. This block begins with slice
// `last` and goes on with last - step and so on: with none where last < 0.
struct join_plan { int32_t bits, ml_bits, pieces, last, step; float v_scale; };

// Which parts merge: the last ones, or the first alone, where that is a block's last share and the others are the first ones of theirs.
enum joins { JOIN_LAST, JOIN_FIRST };

template <int D> static __device__ __forceinline__ join_plan join_plan_of(const attend_params &p, const share &s, int heads, joins how, int threads, float v_scale)
{
    join_plan x;
    x.v_scale = v_scale;
    x.pieces = min(p.group - sub_of(p, s.u) * heads, heads) * (D / 4);
    x.bits = bits_of(s.n_parts, x.pieces, threads);
    x.ml_bits = min(x.bits, most_bits(D));
    // A state that is merged in is read and written by one block, and a head's maximum and sum with its first slice: last.
    const bool alone = how == JOIN_FIRST || p.merge;
    const int32_t rank = how == JOIN_FIRST ? s.part : s.n_parts - 1 - s.part;
    x.last = alone && rank > 0 ? -1 : ((x.pieces - 1) >> x.bits) - rank;
    x.step = alone ? 1 : s.n_parts;
    return x;
}

template <int D, int NT> static __device__ __forceinline__ float4 *o_of(const attend_params &p, int32_t slot, int i)
{
    return (float4 *)p.part_o + (int64_t)slot * (2 * NT * D) + i;
}
static __device__ __forceinline__ float2 *ml_of(const attend_params &p, int32_t slot, int i) { return (float2 *)p.part_ml + slot * JOIN_SLICES + i; }

// Piece i of the parts first, first + teams and so on, at most JOIN_BATCH of them, once they are there; they are zeros afterwards.
template <int D, int NT>
static __device__ __forceinline__ piece take_parts(const attend_params &p, const share &s, const join_plan &of, int32_t first, int teams, int i)
{
    uint2 ml[JOIN_BATCH];
    uint4 o[JOIN_BATCH];
    const auto has = [&](int b) { return first + b * teams < s.n_parts && i < of.pieces; };
    const auto slot = [&](int b) { return slot_of_part(s, min(first + b * teams, s.n_parts - 1)); };
#pragma unroll 1
    for (bool more = true; more;) {
        more = false;
#pragma unroll
        for (int b = 0; b < JOIN_BATCH; b++) {
            ml[b] = has(b) ? peek2(ml_of(p, slot(b), i >> of.ml_bits)) : make_uint2(1, 1);
            o[b] = has(b) ? peek4(o_of<D, NT>(p, slot(b), i)) : make_uint4(1, 1, 1, 1);
        }
#pragma unroll
        for (int b = 0; b < JOIN_BATCH; b++) more |= min(ml[b].x, ml[b].y) == 0 || !is_there(o[b]);
    }
    __syncwarp(); // all lanes have read maxima and sums
    piece x = {make_float4(0, 0, 0, 0), -CUDART_INF_F, 0};
#pragma unroll
    for (int b = 0; b < JOIN_BATCH; b++) {
        if (!has(b)) continue;
        poke4(o_of<D, NT>(p, slot(b), i), make_uint4(0, 0, 0, 0));
        if ((i & ((1 << of.ml_bits) - 1)) == 0) poke2(ml_of(p, slot(b), i >> of.ml_bits), make_uint2(0, 0));
        x.m = fmaxf(x.m, of_word(ml[b].x));
    }
#pragma unroll
    for (int b = 0; b < JOIN_BATCH; b++) {
        if (!has(b)) continue;
        const float f = exp2_of(of_word(ml[b].x) - base_of(x.m));
        x.l += of_word(ml[b].y) * f;
        add_part(x.o, make_float4(of_word(o[b].x), of_word(o[b].y), of_word(o[b].z), of_word(o[b].w)), f);
    }
    return x;
}

// Of a slice of the unit's state a piece for each of the first 2^bits threads, by all. `room` has 24 bytes for each thread.
template <int D, int NT, int WARPS>
static __device__ __forceinline__ piece join_slice(const attend_params &p, const share &s, const join_plan &of, int slice, float4 *room)
{
    constexpr int THREADS = WARPS * WARP;
    const int tid = threadIdx.x, lane = tid % WARP, wide = 1 << of.bits, i = (slice << of.bits) + (tid & (wide - 1)), teams = THREADS >> of.bits;
    float2 *const ml = (float2 *)(room + THREADS);
    piece x = {make_float4(0, 0, 0, 0), -CUDART_INF_F, 0};
#pragma unroll 1
    for (int32_t first = 0; first < s.n_parts; first += JOIN_BATCH * teams) join_piece(x, take_parts<D, NT>(p, s, of, first + (tid >> of.bits), teams, i));
#pragma unroll 1
    for (int k = wide; k < WARP; k *= 2) {
        const float4 o = make_float4(__shfl_xor_sync(~0u, x.o.x, k), __shfl_xor_sync(~0u, x.o.y, k), __shfl_xor_sync(~0u, x.o.z, k), __shfl_xor_sync(~0u, x.o.w, k));
        join_piece(x, piece{o, __shfl_xor_sync(~0u, x.m, k), __shfl_xor_sync(~0u, x.l, k)});
    }
    __syncthreads(); // what lay in `room` is read
    if (lane < wide) room[tid] = x.o, ml[tid] = make_float2(x.m, x.l);
    __syncthreads();
    if (tid >= wide) return x;
    const int step = max(wide, WARP);
    float m[WARPS];
#pragma unroll
    for (int k = 0; k < WARPS; k++) {
        m[k] = tid + k * step < THREADS ? ml[tid + k * step].x : -CUDART_INF_F;
        x.m = fmaxf(x.m, m[k]);
    }
    x.o = make_float4(0, 0, 0, 0), x.l = 0;
#pragma unroll
    for (int k = 0; k < WARPS; k++) {
        const int at = min(tid + k * step, THREADS - 1);
        const float f = exp2_of(m[k] - base_of(x.m));
        x.l += ml[at].y * f;
        add_part(x.o, room[at], f);
    }
    return x;
}

// All threads, once the warps' states are left and a barrier is passed. They lie in `red`, `red_stride` floats apart.
template <int D, int NT, int T, int WARPS>
__device__ __forceinline__ void join_blocks(const attend_params &p, const share &s, const join_plan &of, const merge_space &ms, float *red, int red_stride)
{
    constexpr int THREADS = WARPS * WARP, PER = (2 * NT * D + THREADS - 1) / THREADS;
    const int u = unit_of(p, s.u), pieces = of.pieces;
    const int64_t h_first = (int64_t)u * p.group + sub_of(p, s.u) * 8 * NT;
    piece own[PER];
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * THREADS;
        if (i < pieces) own[k] = merge_warps<D, WARPS>(ms, red, red_stride, i);
    }
    if (s.n_parts == 1) {
        finish_pieces<D, T, PER>(p, u, h_first, pieces, own);
        return;
    }
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * THREADS;
        if (i >= pieces) continue;
        const int32_t slot = slot_of_part(s, s.part);
        poke4(o_of<D, NT>(p, slot, i), make_uint4(word_of(own[k].o.x), word_of(own[k].o.y), word_of(own[k].o.z), word_of(own[k].o.w)));
        if ((i & ((1 << of.ml_bits) - 1)) == 0) poke2(ml_of(p, slot, i >> of.ml_bits), make_uint2(word_of(own[k].m), word_of(own[k].l)));
    }
#pragma unroll 1
    for (int k = of.last; k >= 0; k -= of.step) {
        const int i = (k << of.bits) + threadIdx.x;
        const bool is_mine = i < min(pieces, (k + 1) << of.bits);
        const piece x = join_slice<D, NT, WARPS>(p, s, of, k, (float4 *)red);
        with_prior y;
        if (is_mine) y = join_prior(p, h_first + i / (D / 4), x.m, x.l);
        if (p.merge) __syncthreads(); // all have read the state's m and l
        if (is_mine) finish_piece<D, T>(p, h_first, i, x.o, of.v_scale, y);
    }
}

} // namespace sr

#endif
