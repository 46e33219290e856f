// SPDX-License-Identifier: Apache-2.0
//
// Partial states become one: those of a block's warps, through shared memory, then those of a unit's blocks, by whoever is
// last (a ticket, no second kernel).
//
// A state lies as [head][d] with the elements of a head in the order of the fragments, so that stores of a warp meet no
// banks twice: 16 j + 2 g + i is column v_column(j, g, i). Every thread merges four elements of one head and weighs the parts
// by itself.
#ifndef SR_CUDA_ATTN_MERGE_CUH
#define SR_CUDA_ATTN_MERGE_CUH

#include "cuda/attn_state.cuh"

namespace sr {

// Partial states are merged at once up to this many floats and parts, else in two levels.
constexpr int FLAT_WORDS = 16384, MAX_FLAT = 48;

struct merge_space {
    float m[MAX_WARPS][16], l[MAX_WARPS][16];
    float2 part[MAX_FLAT][16]; // m, l
    int32_t turn;
};

// Floats of one warp's state in shared memory: heads are set apart by a few banks.
__host__ __device__ constexpr int head_words(int d) { return d + 4; }
__host__ __device__ constexpr int state_words(int d, int nt) { return 8 * nt * head_words(d); }

// Four elements of a head, from element 4 (i % (D / 4)) of head i / (D / 4) on, and the maximum and sum of what they are of.
struct piece { float4 o; float m, l; };

static __device__ __forceinline__ void add_part(float4 &o, const float4 &x, float f)
{
    o.x += x.x * f, o.y += x.y * f, o.z += x.z * f, o.w += x.w * f;
}

static __device__ __forceinline__ float base_of(float top) { return top == -CUDART_INF_F ? 0.0f : top; }

// ---- the warps of a block ----

// A warp's state goes to `mine` and its maxima and sums to ms.
template <int D, int NT, int T, int TILES>
__device__ __forceinline__ void leave_state(warp_state<D, NT, T, TILES> &s, int n_heads, merge_space &ms, float *mine)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int i = 4; i < WARP; i *= 2) s.l[n][h] += __shfl_xor_sync(~0u, s.l[n][h], i);
            const int head = 8 * n + 2 * t + h;
            if (lane < 4) ms.m[w][head] = s.m[n][h], ms.l[w][head] = s.l[n][h];
            if (head >= n_heads) continue;
            float *to = mine + head * head_words(D) + 2 * g;
#pragma unroll
            for (int j = 0; j < D / 16; j++) *(float2 *)(to + 16 * j) = make_float2(s.o[j][n][h], s.o[j][n][h + 2]);
        }
}

// Piece i of the block's state; `red` holds the warps' states, `stride` floats apart.
template <int D, int WARPS> __device__ __forceinline__ piece merge_warps(const merge_space &ms, const float *red, int stride, int i)
{
    const int h = i / (D / 4), at = i % (D / 4) * 4;
    piece x = {make_float4(0, 0, 0, 0), -CUDART_INF_F, 0};
#pragma unroll
    for (int w = 0; w < WARPS; w++) x.m = fmaxf(x.m, ms.m[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float f = exp2_of(ms.m[w][h] - base_of(x.m));
        x.l += ms.l[w][h] * f;
        add_part(x.o, *(const float4 *)(red + w * stride + h * head_words(D) + at), f);
    }
    return x;
}

// ---- the blocks of a unit ----

// The maximum and sum of the joint state with what the state held already, and the weights of both.
struct with_prior { float m, l, own, prior; };

static __device__ __forceinline__ with_prior join_prior(const attend_params &p, int64_t h, float m, float l)
{
    if (!p.merge) return with_prior{m, l, 1, 0};
    const float m0 = p.m[h] * LOG2E, l0 = p.l[h], top = fmaxf(m, m0), base = top == -CUDART_INF_F ? 0.0f : top;
    const float own = exp2_of(m - base), prior = exp2_of(m0 - base);
    return with_prior{top, l * own + l0 * prior, own, prior};
}

// Two neighbouring elements of a head: o belongs to a state of maximum m and sum l.
static __device__ __forceinline__ void finish(const attend_params &p, int64_t at, float2 o, const with_prior &x)
{
    if (p.merge) {
        const float2 old = *(const float2 *)(p.o + at);
        o = make_float2(o.x * x.own + old.x * x.prior, o.y * x.own + old.y * x.prior);
    }
    const float inverse = x.l == 0 ? 0.0f : 1.0f / x.l;
    if (p.out) *(float2 *)(p.out + at) = make_float2(o.x * inverse, o.y * inverse);
    if (p.o) *(float2 *)(p.o + at) = o;
}

static __device__ __forceinline__ void count(const attend_params &p, int u, int32_t rows)
{
    if (!p.counters) return;
    struct attn_cuda_counters *c = p.counters + u;
    if (p.audit) {
        c->audit_rows += rows;
        return;
    }
    const int kind = kind_of(p, u);
    c->k_rows += rows;
    c->v_rows += rows;
    c->kinds[kind == CUDA_READ_LIST ? CUDA_READ_NEAR_LIST : kind]++;
    c->dense_rows += p.cache.kv_len[u / p.n_kv_heads];
}

// Whether this block is the last of n to come here; the counter starts anew. All threads.
static __device__ __forceinline__ bool is_last(unsigned *done, unsigned n, merge_space &ms)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(done) : "memory");
        ms.turn = before == n - 1;
        if (ms.turn) *done = 0;
    }
    __syncthreads();
    return ms.turn != 0;
}

// The maxima and sums of all parts, to shared memory; all threads.
static __device__ __forceinline__ void gather_weights(const attend_params &p, const share &s, int from, int stride, int n, merge_space &ms)
{
#pragma unroll 1
    for (int e = threadIdx.x; e < n * 16; e += blockDim.x)
        ms.part[e / 16][e % 16] = __ldcg((const float2 *)p.part_ml + (int64_t)slot_of_part(s, from + e / 16 * stride) * 16 + e % 16);
    __syncthreads();
}

// Merges parts from, from + stride, ... (n of them) of a share's unit. As many teams of threads as there are share the parts, in
// fixed order; the first one's have the pieces afterwards.
template <int D, int PER>
static __device__ __forceinline__ void merge_parts(const attend_params &p, const share &s, int from, int stride, int n, int pieces, int words,
                                                   float4 *sums, merge_space &ms, piece own[PER])
{
    constexpr int BATCH = 8;
    const int threads = blockDim.x, teams = max(1, threads / pieces), team = teams > 1 ? threadIdx.x / pieces : 0;
    const int mine = threadIdx.x - team * pieces;
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = mine + k * threads, h = i / (D / 4), end = i < pieces && team < teams ? n : 0;
        piece x = {make_float4(0, 0, 0, 0), -CUDART_INF_F, 0};
#pragma unroll 1
        for (int first = team; first == team || first < end; first += BATCH * teams) {
            float4 o[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                const int part = min(first + j * teams, n - 1);
                if (end) o[j] = __ldcg((const float4 *)(p.part_o + (int64_t)slot_of_part(s, from + part * stride) * words) + i);
            }
            if (first == team) { // while the parts are on their way
                if (k == 0) gather_weights(p, s, from, stride, n, ms);
#pragma unroll 4
                for (int e = 0; e < end; e++) x.m = fmaxf(x.m, ms.part[e][h].x);
#pragma unroll 4
                for (int e = 0; e < end; e++) x.l += ms.part[e][h].y * exp2_of(ms.part[e][h].x - base_of(x.m));
            }
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                const int part = first + j * teams;
                if (part < end) add_part(x.o, o[j], exp2_of(ms.part[part][h].x - base_of(x.m)));
            }
        }
        own[k] = x;
    }
    if (teams == 1) return;
    sums[threadIdx.x] = own[0].o;
    __syncthreads();
    if (team > 0) return;
#pragma unroll 1
    for (int j = 1; j < teams; j++) add_part(own[0].o, sums[j * pieces + mine], 1.0f);
}

static __device__ __forceinline__ void leave_part(const attend_params &p, int32_t slot, int words, int i, int per_head, const piece &x)
{
    ((float4 *)(p.part_o + (int64_t)slot * words))[i] = x.o;
    if (i % per_head == 0) ((float2 *)p.part_ml)[slot * 16 + i / per_head] = make_float2(x.m, x.l);
}

// What a unit's pieces come to.
template <int D, int T, int PER>
__device__ __forceinline__ void finish_pieces(const attend_params &p, int u, int64_t h_first, int pieces, const piece own[PER])
{
    const float v_scale = T != ELEM_F8 ? 1.0f : p.cache.v_scale ? F8_UNIT * p.cache.v_scale[u % p.n_kv_heads] : F8_UNIT;
    with_prior x[PER];
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * blockDim.x;
        if (i < pieces) x[k] = join_prior(p, h_first + i / (D / 4), own[k].m, own[k].l);
    }
    if (p.merge) __syncthreads(); // all have read the state's m and l
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * blockDim.x, at = i % (D / 4) * 4, j = at / 16, g = at / 2 % 8;
        const int64_t h = h_first + i / (D / 4);
        if (i >= pieces) continue;
        const float4 o = own[k].o;
        finish(p, h * D + v_column<D, T>(j, g, 0), make_float2(o.x * v_scale, o.y * v_scale), x[k]);
        finish(p, h * D + v_column<D, T>(j, g + 1, 0), make_float2(o.z * v_scale, o.w * v_scale), x[k]);
        if (at == 0 && p.o) p.m[h] = x[k].m * LN2, p.l[h] = x[k].l;
    }
}

// All threads, once the warps' states are left and a barrier passed.
template <int D, int NT, int T, int WARPS>
__device__ __forceinline__ void merge_blocks(const attend_params &p, const share &s, int32_t rows, merge_space &ms, float *red, int red_stride)
{
    constexpr int THREADS = WARPS * WARP, words = 8 * NT * D, PER = (words / 4 + THREADS - 1) / THREADS;
    const int u = s.u / p.n_sub, h0 = s.u % p.n_sub * 8 * NT, n_heads = min(p.group - h0, 8 * NT), pieces = n_heads * (D / 4);
    piece own[PER];
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * THREADS;
        if (i < pieces) own[k] = merge_warps<D, WARPS>(ms, red, red_stride, i);
    }
    // the block's own state, then that of some neighbours' where there are many, then the unit's
    int32_t n = s.n_parts, stride = 1;
    if (n * n_heads * D > FLAT_WORDS || n > MAX_FLAT)
#pragma unroll 1
        while (stride * stride < n) stride++;
    const int32_t near = s.part / stride * stride;
#pragma unroll 1
    for (int level = n == 1 ? 2 : stride == 1 ? 1 : 0; level < 2; level++) {
        const int32_t slot = slot_of_part(s, level == 0 || stride == 1 ? s.part : near);
#pragma unroll
        for (int k = 0; k < PER; k++) {
            const int i = threadIdx.x + k * THREADS;
            if (i < pieces) leave_part(p, slot, words, i, D / 4, own[k]);
        }
        const int32_t from = level == 0 ? near : 0, step = level == 0 ? 1 : stride;
        const int32_t parts = level == 0 ? min(n - near, stride) : (n + stride - 1) / stride;
        if (!is_last(level == 0 ? p.done_1 + slot_of_part(s, near) : p.done + s.u, (unsigned)parts, ms)) return;
        merge_parts<D, PER>(p, s, from, step, parts, pieces, words, (float4 *)red, ms, own);
    }
    finish_pieces<D, T, PER>(p, u, (int64_t)u * p.group + h0, pieces, own);
    if (threadIdx.x == 0 && h0 == 0) count(p, u, rows);
}

// A unit that reads nothing: what the state held stays.
static __device__ __forceinline__ void write_empty(const attend_params &p, int d, int u)
{
#pragma unroll 1
    for (int i = 2 * threadIdx.x; i < p.group * d; i += 2 * blockDim.x) {
        const int64_t h = (int64_t)u * p.group + i / d;
        finish(p, h * d + i % d, make_float2(0, 0), p.merge ? with_prior{p.m[h], p.l[h], 0, 1} : with_prior{0, 0, 0, 0});
        if (!p.merge && p.o && i % d == 0) p.m[h] = -CUDART_INF_F, p.l[h] = 0;
    }
    if (threadIdx.x == 0) count(p, u, 0);
}

// This block's part of those; `empty` says which, where they are few.
static __device__ __forceinline__ void write_all_empty(const attend_params &p, int d, int n, bool few, unsigned empty)
{
#pragma unroll 1
    for (int e = blockIdx.x; e < n; e += gridDim.x)
        if (e % p.n_sub == 0 && (few ? (empty >> e & 1u) != 0 : rows_of(p, e / p.n_sub).n == 0)) write_empty(p, d, e / p.n_sub);
}

} // namespace sr

#endif
