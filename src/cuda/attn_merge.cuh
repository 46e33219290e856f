// SPDX-License-Identifier: Apache-2.0
//
// Partial states become one: those of a block's warps, through shared memory, then those of a unit's blocks, by whoever is
// last (a ticket, no second kernel).
//
// Nobody waits until what it stored is there. A part lies in device memory negated, its zeros as -0, so that a word of zeros says
// "still to come"; a block takes its ticket when its tiles are done, before it has left its part, and the last one looks again where
// it finds zeros: those who took theirs before it are running, and wait for nobody. What was read becomes zeros again.
//
// A state lies as [head][d] with the elements of a head in the order of the fragments, so that stores of a warp meet no
// banks twice: 16 j + 2 g + i is column v_column(j, g, i). Every thread merges four elements of one head and weighs the parts
// by itself.
#ifndef SR_CUDA_ATTN_MERGE_CUH
#define SR_CUDA_ATTN_MERGE_CUH

#include "cuda/attn_state.cuh"

namespace sr {

// Parts that are merged at once; more in two levels, neighbours first.
constexpr int MAX_FLAT = 48;

struct warp_sums { float m[MAX_WARPS][16], l[MAX_WARPS][16]; };

struct merge_space : warp_sums {
    float weight[MAX_FLAT][16]; // of parts
    float top[16], sum[16];     // maximum and sum of all of them
    int32_t is_last;
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
__device__ __forceinline__ void leave_state(warp_state<D, NT, T, TILES> &s, int n_heads, warp_sums &ms, float *mine)
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
template <int D, int WARPS> __device__ __forceinline__ piece merge_warps(const warp_sums &ms, const float *red, int stride, int i)
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
struct with_prior { float m, l, inverse, own, prior; };

static __device__ __forceinline__ float inverse_of(float l) { return l == 0 ? 0.0f : 1.0f / l; }

static __device__ __forceinline__ with_prior join_prior(const attend_params &p, int64_t h, float m, float l)
{
    if (!p.merge) return with_prior{m, l, inverse_of(l), 1, 0};
    const float m0 = p.m[h] * LOG2E, l0 = p.l[h], top = fmaxf(m, m0), base = top == -CUDART_INF_F ? 0.0f : top;
    const float own = exp2_of(m - base), prior = exp2_of(m0 - base);
    const float sum = l * own + l0 * prior;
    return with_prior{top, sum, inverse_of(sum), own, prior};
}

// Two neighbouring elements of a head: o belongs to a state of maximum m and sum l.
static __device__ __forceinline__ void finish(const attend_params &p, int64_t at, float2 o, const with_prior &x)
{
    if (p.merge) {
        const float2 old = *(const float2 *)(p.o + at);
        o = make_float2(o.x * x.own + old.x * x.prior, o.y * x.own + old.y * x.prior);
    }
    if (p.out) *(float2 *)(p.out + at) = make_float2(o.x * x.inverse, o.y * x.inverse);
    if (p.o) *(float2 *)(p.o + at) = o;
}

// By one thread of one block of a unit; nothing waits for it.
static __device__ __forceinline__ void add_to(uint64_t *c, uint32_t n) { atomicAdd((unsigned long long *)c, (unsigned long long)n); }

static __device__ __forceinline__ void count_to(struct attn_cuda_counters *c, int audit, int kind, int32_t rows, int32_t len)
{
    if (audit) {
        add_to(&c->audit_rows, rows);
        return;
    }
    add_to(&c->k_rows, rows);
    add_to(&c->v_rows, rows);
    add_to(&c->kinds[kind == CUDA_READ_LIST ? CUDA_READ_NEAR_LIST : kind], 1);
    add_to(&c->dense_rows, len);
}
static __device__ __forceinline__ void count(const attend_params &p, int u, int kind, int32_t rows, int32_t len)
{
    if (p.counters) count_to(p.counters + u, p.audit, kind, rows, len);
}

// A unit's first part does it.
static __device__ __forceinline__ void count_share(const attend_params &p, const share_space &ss)
{
    const int u = unit_of(p, ss.s.u);
    if (threadIdx.x == 0 && ss.s.part == 0 && sub_of(p, ss.s.u) == 0) count(p, u, kind_of(p, u), ss.rows.n, len_of(p, u));
}

// ---- words of parts ----

static __device__ __forceinline__ uint32_t word_of(float x) { return __float_as_uint(-(x + 0.0f)); }
static __device__ __forceinline__ float of_word(uint32_t w) { return -__uint_as_float(w); }
static __device__ __forceinline__ bool is_there(uint4 w) { return min(min(w.x, w.y), min(w.z, w.w)) != 0; }

static __device__ __forceinline__ uint4 peek4(const float4 *p)
{
    uint4 w;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(p) : "memory");
    return w;
}

static __device__ __forceinline__ uint2 peek2(const float2 *p)
{
    uint2 w;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(p) : "memory");
    return w;
}

static __device__ __forceinline__ void poke4(float4 *p, uint4 w)
{
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
}

static __device__ __forceinline__ void poke2(float2 *p, uint2 w)
{
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" :: "l"(p), "r"(w.x), "r"(w.y) : "memory");
}

static __device__ __forceinline__ void leave_part(const attend_params &p, int32_t slot, int words, int i, int per_head, const piece &x)
{
    poke4((float4 *)(p.part_o + (int64_t)slot * words) + i, make_uint4(word_of(x.o.x), word_of(x.o.y), word_of(x.o.z), word_of(x.o.w)));
    if (i % per_head == 0) poke2((float2 *)p.part_ml + slot * 16 + i / per_head, make_uint2(word_of(x.m), word_of(x.l)));
}

// ---- who merges ----

// Which of a unit's parts are merged together: all, or `stride` neighbours, and then what they come to.
struct merge_group { int32_t from, step, n, level_slots; };

static __device__ __forceinline__ int32_t stride_of(int32_t n_parts)
{
    int32_t stride = 1;
    if (n_parts > MAX_FLAT)
#pragma unroll 1
        while (stride * stride < n_parts) stride++;
    return stride;
}

static __device__ __forceinline__ merge_group first_group(const share &s, int32_t stride)
{
    if (stride == 1) return merge_group{0, 1, s.n_parts, 0};
    asm volatile("" : "+r"(stride)); // else the divisions come before
    const int32_t near = s.part / stride * stride;
    return merge_group{near, 1, min(s.n_parts - near, stride), 0};
}

static __device__ __forceinline__ int32_t slot_in(const share &s, const merge_group &g, int32_t i)
{
    return g.level_slots + slot_of_part(s, g.from + i * g.step);
}

static __device__ __forceinline__ unsigned *turns_of(const attend_params &p, const share &s, int32_t stride, const merge_group &g)
{
    return stride == 1 ? p.done + s.u : p.done_1 + slot_in(s, g, 0);
}

// A ticket of those of a share's group: how many were taken before. Thread 0.
static __device__ __forceinline__ unsigned take_turn(const attend_params &p, const share &s)
{
    if (threadIdx.x != 0 || s.n_parts == 1) return 0;
    const int32_t stride = stride_of(s.n_parts);
    return atomicAdd(turns_of(p, s, stride, first_group(s, stride)), 1u);
}

// Whether that was the last; then the counter starts anew. All threads.
static __device__ __forceinline__ bool is_last_turn(unsigned *turns, unsigned turn, int32_t n, merge_space &ms)
{
    if (threadIdx.x == 0) {
        ms.is_last = turn == (unsigned)n - 1;
        if (ms.is_last) *(volatile unsigned *)turns = 0;
    }
    __syncthreads();
    return *(volatile int32_t *)&ms.is_last != 0;
}

// ---- merging ----

// Weights, maxima and sums of the parts of a group, by all warps: a head each, a part or two a lane.
static __device__ __forceinline__ void weigh_parts(const attend_params &p, const share &s, const merge_group &g, int n_heads, merge_space &ms)
{
    const int lane = threadIdx.x % WARP;
#pragma unroll 1
    for (int h = threadIdx.x / WARP; h < n_heads; h += blockDim.x / WARP) {
        float m[2], l[2], top = -CUDART_INF_F, sum = 0;
        float2 *at[2];
        uint2 w[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            at[k] = (float2 *)p.part_ml + slot_in(s, g, min(lane + k * WARP, g.n - 1)) * 16 + h;
            w[k] = peek2(at[k]);
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const bool is_part = lane + k * WARP < g.n;
#pragma unroll 1
            while (is_part && (w[k].x == 0 || w[k].y == 0)) w[k] = peek2(at[k]);
            m[k] = is_part ? of_word(w[k].x) : -CUDART_INF_F;
            l[k] = is_part ? of_word(w[k].y) : 0;
            top = fmaxf(top, m[k]);
        }
        __syncwarp();
#pragma unroll
        for (int k = 0; k < 2; k++)
            if (lane + k * WARP < g.n) poke2(at[k], make_uint2(0, 0));
#pragma unroll
        for (int i = 1; i < WARP; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float f = exp2_of(m[k] - base_of(top));
            sum += l[k] * f;
            if (lane + k * WARP < g.n) ms.weight[lane + k * WARP][h] = f;
        }
#pragma unroll
        for (int i = 1; i < WARP; i *= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (lane == 0) ms.top[h] = top, ms.sum[h] = sum;
    }
}

// As many teams of threads as there are for a state share the parts of a group; the first one's have the pieces afterwards. Every
// thread has what it will read brought to a place of its own in `room`, so many bytes.
template <int D, int NT, int THREADS, int PER>
static __device__ __forceinline__ void merge_parts(const attend_params &p, const share &s, const merge_group &g, int n_heads, float *room, int bytes,
                                                   merge_space &ms, piece own[PER])
{
    constexpr int FULL = 2 * NT * D, HALF = NT * D, words = 8 * NT * D, BATCH = 4;
    const int span = n_heads <= 4 * NT ? HALF : FULL, tid = threadIdx.x;
    const int teams = max(1, n_heads <= 4 * NT ? THREADS / HALF : THREADS / FULL), fits = bytes / (THREADS * 16);
    int team = 0;
#pragma unroll
    for (int k = 1; k < THREADS / HALF; k++) team += tid >= k * span;
    const int mine = tid - team * span;
    float4 *const places = (float4 *)room + tid;
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(places);
#pragma unroll 1
    for (int k = 0; k < PER; k++) {
        const int i = mine + k * THREADS, end = team < teams && i < n_heads * (D / 4) ? g.n : 0;
        float4 o = make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (int first = team; first == team || first < end; first += fits * teams) {
            const int last = min(end, first + fits * teams);
            float4 *const parts = (float4 *)p.part_o + i;
#pragma unroll 1
            for (int part = first, c = 0; part < last; part += teams, c++)
                copy_in(to + c * THREADS * 16, (uint64_t)(parts + (int64_t)slot_in(s, g, part) * (words / 4)));
            end_group();
            if (k == 0 && first == team) { // while they are on their way
                weigh_parts(p, s, g, n_heads, ms);
                __syncthreads();
            }
            wait_groups<0>();
#pragma unroll 1
            for (int part = first, c = 0; part < last; part += BATCH * teams, c += BATCH) {
                uint4 w[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; b++) w[b] = *(const uint4 *)(places + min(c + b, fits - 1) * THREADS);
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    if (part + b * teams >= last) continue;
                    float4 *const at = parts + (int64_t)slot_in(s, g, part + b * teams) * (words / 4);
#pragma unroll 1
                    while (!is_there(w[b])) w[b] = peek4(at);
                    poke4(at, make_uint4(0, 0, 0, 0));
                    add_part(o, make_float4(of_word(w[b].x), of_word(w[b].y), of_word(w[b].z), of_word(w[b].w)), ms.weight[part + b * teams][i / (D / 4)]);
                }
            }
        }
        const int h = min(i / (D / 4), n_heads - 1);
#pragma unroll
        for (int j = 0; j < PER; j++) // own stays in registers
            if (j == k) own[j] = piece{o, ms.top[h], ms.sum[h]};
    }
    if (teams == 1) return;
    *places = own[0].o;
    __syncthreads();
    if (team > 0) return;
#pragma unroll 1
    for (int j = 1; j < teams; j++) add_part(own[0].o, places[j * span], 1.0f);
}

static __device__ __forceinline__ float v_scale_of(const attend_params &p, int u, bool is_f8)
{
    return !is_f8 ? 1.0f : p.cache.v_scale ? F8_UNIT * p.cache.v_scale[u % p.n_kv_heads] : F8_UNIT;
}

// What piece i of the heads from h_first on comes to.
template <int D, int T>
__device__ __forceinline__ void finish_piece(const attend_params &p, int64_t h_first, int i, const float4 &o, float v_scale, const with_prior &x)
{
    const int at = i % (D / 4) * 4, j = at / 16, g = at / 2 % 8;
    const int64_t h = h_first + i / (D / 4);
    finish(p, h * D + v_column<D, T>(j, g, 0), make_float2(o.x * v_scale, o.y * v_scale), x);
    finish(p, h * D + v_column<D, T>(j, g + 1, 0), make_float2(o.z * v_scale, o.w * v_scale), x);
    if (at == 0 && p.o) p.m[h] = x.m * LN2, p.l[h] = x.l;
}

// What a unit's pieces come to.
template <int D, int T, int PER>
__device__ __forceinline__ void finish_pieces(const attend_params &p, int u, int64_t h_first, int pieces, const piece own[PER])
{
    const float v_scale = v_scale_of(p, u, T == ELEM_F8);
    with_prior x[PER];
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * blockDim.x;
        if (i < pieces) x[k] = join_prior(p, h_first + i / (D / 4), own[k].m, own[k].l);
    }
    if (p.merge) __syncthreads(); // all have read the state's m and l
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * blockDim.x;
        if (i < pieces) finish_piece<D, T>(p, h_first, i, own[k].o, v_scale, x[k]);
    }
}

// All threads, once the warps' states are left and a barrier is passed. They lie in `red`, `red_stride` floats apart; it
// has `bytes`.
template <int D, int NT, int T, int WARPS>
__device__ __forceinline__ void merge_blocks(const attend_params &p, const share &s, merge_space &ms, float *red, int red_stride, int bytes)
{
    constexpr int THREADS = WARPS * WARP, words = 8 * NT * D, PER = (words / 4 + THREADS - 1) / THREADS;
    const int u = unit_of(p, s.u), h0 = sub_of(p, s.u) * 8 * NT, n_heads = min(p.group - h0, 8 * NT), pieces = n_heads * (D / 4);
    unsigned turn = take_turn(p, s); // now: those who have theirs are about to leave their parts, which the last one finds there
    piece own[PER];
#pragma unroll
    for (int k = 0; k < PER; k++) {
        const int i = threadIdx.x + k * THREADS;
        if (i < pieces) own[k] = merge_warps<D, WARPS>(ms, red, red_stride, i);
    }
    if (s.n_parts > 1) {
        int32_t stride = stride_of(s.n_parts);
        merge_group g = first_group(s, stride);
        int32_t at = s.part - g.from;
        unsigned *turns = turns_of(p, s, stride, g);
#pragma unroll 1
        for (;;) {
#pragma unroll
            for (int k = 0; k < PER; k++) {
                const int i = threadIdx.x + k * THREADS;
                if (i < pieces) leave_part(p, slot_in(s, g, at), words, i, D / 4, own[k]);
            }
            if (!is_last_turn(turns, turn, g.n, ms)) return;
            merge_parts<D, NT, THREADS, PER>(p, s, g, n_heads, red, bytes, ms, own);
            if (g.step * g.n >= s.n_parts) break;
            asm volatile("" : "+r"(stride)); // else its divisions come before the loop
            at = s.part / stride;
            g = merge_group{0, stride, (s.n_parts + stride - 1) / stride, p.n_slots};
            turns = p.done + s.u;
            if (threadIdx.x == 0) turn = atomicAdd(turns, 1u);
        }
    }
    finish_pieces<D, T, PER>(p, u, (int64_t)u * p.group + h0, pieces, own);
}

// A unit that reads nothing: what the state held stays.
static __device__ __forceinline__ void write_empty(const attend_params &p, int d, int u)
{
#pragma unroll 1
    for (int i = 2 * threadIdx.x; i < p.group * d; i += 2 * blockDim.x) {
        const int64_t h = (int64_t)u * p.group + i / d;
        finish(p, h * d + i % d, make_float2(0, 0), p.merge ? with_prior{p.m[h], p.l[h], inverse_of(p.l[h]), 0, 1} : with_prior{0, 0, 0, 0, 0});
        if (!p.merge && p.o && i % d == 0) p.m[h] = -CUDART_INF_F, p.l[h] = 0;
    }
    if (threadIdx.x == 0) count(p, u, kind_of(p, u), 0, len_of(p, u));
}

// This block's part of those; `empty` says which, where they are few.
static __device__ __forceinline__ void write_all_empty(const attend_params &p, int d, int n, bool few, unsigned empty)
{
#pragma unroll 1
    for (int e = blockIdx.x; e < n; e += gridDim.x)
        if (sub_of(p, e) == 0 && (few ? (empty >> e & 1u) != 0 : rows_of(p, unit_of(p, e)).n == 0)) write_empty(p, d, unit_of(p, e));
}

} // namespace sr

#endif
