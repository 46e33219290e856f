// SPDX-License-Identifier: Apache-2.0
//
// The second look of `mass`: what was read is exact now, and says by how much the estimate is too low for the rest. Of a unit
// that has a head above eps then the next bins are read and merged in; struct sketch_more_args has the rule.
//
// A unit has a few blocks. While attention still runs they fetch what the choice left: the unread shares by bin, one or two
// bins a thread, and the first of the rows that may be added. Once it is over each finds by itself where the bins end, and
// reads the rows of its stretch: their logits, a warp a row, then their values, a thread four columns. Rows are few, mostly
// some tens of a unit; where they are thousands it is slower than attend would be, and no less right.
#include "cuda/attn_deal.cuh"
#include "cuda/sketch_rows.cuh"

namespace sr {

constexpr int LOOK_WARPS = 8, LOOK_THREADS = LOOK_WARPS * WARP, LOOK_PARTS = 8; // blocks of a unit, at most
constexpr int LOOK_ROWS = 1024;          // read together
constexpr int LOOK_STEP = LOOK_ROWS / 2; // looked at together, of the rest
constexpr int LOOK_STRETCH = 512;        // of the rest; another block is not worth its merge for less
constexpr int LOOK_AHEAD = 4;            // rows under way

struct look_params {
    struct attn_cuda_look a;
    struct attn_cuda_cache cache;
    choose_rest *rests;
    const float *left;         // [n_units][CHOOSE_BINS][H]
    float *part_o, *part_ml;   // [n_units][n_parts][group][d] and of 16 maxima and sums
    unsigned *done;
    int32_t head_dim, n_kv_heads, group, n_parts;
};

// ---- rows as they lie ----

// Four elements of a row, from element i on, without its head's scale.
template <int T> struct four_of_row {
    uint32_t w[is_wide(T) ? 2 : 1], scale;

    __device__ __forceinline__ void load(uint64_t at, int d, int i)
    {
        const uint8_t *page = (const uint8_t *)(at / SR_PAGE_ROWS * SR_PAGE_ROWS);
        const int slot = (int)(at % SR_PAGE_ROWS);
        if constexpr (is_wide(T)) load8(w, page + 2 * (slot * d + i));
        else load4(w, page + slot * d + i);
        if constexpr (T == ELEM_Q8) load2(&scale, page + SR_PAGE_ROWS * d + 2 * (slot * (d / 32) + i / 32));
    }
    __device__ __forceinline__ float4 get() const
    {
        if constexpr (T == ELEM_BF16)
            return make_float4(__uint_as_float(w[0] << 16), __uint_as_float(w[0] & 0xffff0000u), __uint_as_float(w[1] << 16), __uint_as_float(w[1] & 0xffff0000u));
        if constexpr (T == ELEM_Q8) {
            const __half_raw h = {(unsigned short)scale};
            const float f = __half2float(*(const __half *)&h);
            return make_float4((float)(int8_t)w[0] * f, (float)(int8_t)(w[0] >> 8) * f, (float)(int8_t)(w[0] >> 16) * f, (float)((int32_t)w[0] >> 24) * f);
        }
        uint32_t lo = w[0], hi = w[is_wide(T) ? 1 : 0];
        if constexpr (T == ELEM_F8) lo = half2_of_f8_even(w[0]), hi = half2_of_f8_odd(w[0]);
        const float2 a = __half22float2(*(const __half2 *)&lo), b = __half22float2(*(const __half2 *)&hi);
        return T == ELEM_F8 ? make_float4(a.x, b.x, a.y, b.y) : make_float4(a.x, a.y, b.x, b.y);
    }
};

// What a stored element is multiplied by.
template <int T> static __device__ __forceinline__ float unit_of_head(const float *scales, int head)
{
    return T != ELEM_F8 ? 1.0f : scales ? F8_UNIT * scales[head] : F8_UNIT;
}

static __device__ __forceinline__ float dot4(const float4 &a, const float4 &b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Has a row of some bytes brought to L2. Its scales come with whoever reads them.
static __device__ __forceinline__ void ask_for(uint64_t at, int bytes)
{
    const uint8_t *row = (const uint8_t *)(at / SR_PAGE_ROWS * SR_PAGE_ROWS) + at % SR_PAGE_ROWS * bytes;
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(row), "r"(bytes) : "memory");
#else
    for (int i = 0; i < bytes; i += 32) asm volatile("prefetch.global.L2 [%0];" :: "l"(row + i));
#endif
}

// ---- a block's own ----

// H: room for heads.
template <int H> struct look_space {
    union {
        float x[LOOK_ROWS][H];                 // logits, then weights
        float sums[LOOK_THREADS * 4 * H];      // of the teams: [team][head][column]
    };
    uint64_t k_at[LOOK_ROWS], v_at[LOOK_ROWS]; // page and, in the bits that its alignment leaves, place in it
    float m0[H], l0[H];                        // of what was read before
    float m[H], l[H], raise[H];                // of what is added; what a new maximum makes of the sums before it
    int32_t warp_rows[LOOK_WARPS], n, total, turn;
};

// What a block looks at: entries [from, to) of a unit's rest; n_parts of its blocks do.
struct stretch { int32_t u, part, n_parts, from, to; const int32_t *rest; };

static __device__ __forceinline__ stretch stretch_of(const look_params &p)
{
    const int32_t u = (int32_t)blockIdx.x / p.n_parts, part = (int32_t)blockIdx.x % p.n_parts, n = __ldcg(&p.rests[u].n);
    const int32_t n_parts = max(min((n + LOOK_STRETCH - 1) / LOOK_STRETCH, p.n_parts), 1);
    return stretch{u, part, n_parts, (int32_t)((int64_t)n * part / n_parts), (int32_t)((int64_t)n * (part + 1) / n_parts),
                   p.a.list + u * p.a.list_stride + __ldcg(p.a.n_list + u)};
}

// Queries of the heads, times the scale of logits in powers of 2 and that of keys; absent heads' are 0.
template <int T, int H> static __device__ __forceinline__ void load_q(const look_params &p, int u, float *q)
{
    const int d = p.head_dim;
    const float factor = p.a.scale * LOG2E * unit_of_head<T>(p.cache.k_scale, u % p.n_kv_heads);
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < H * d; i += 4 * LOOK_THREADS) {
        const float4 x = i < p.group * d ? *(const float4 *)(p.a.q + (int64_t)u * p.group * d + i) : make_float4(0, 0, 0, 0);
        *(float4 *)(q + i) = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
    }
}

// ---- how far to read ----

// Of head `lane`: what its estimated unread share is multiplied by, the share that is at most eps then, and the state.
struct seen { float scale, limit, m, l; };

static __device__ __forceinline__ seen see(const look_params &p, int u, float unread, float eps)
{
    const int h = threadIdx.x % WARP;
    if (h >= p.group) return seen{0, CUDART_INF_F, -CUDART_INF_F, 0};
    const choose_rest &rest = p.rests[u];
    const float m = __ldcg(p.a.state.m + u * p.group + h) * LOG2E, l = __ldcg(p.a.state.l + u * p.group + h);
    const float near = __ldcg(&rest.near[h]), all = l * exp2_of(m - __ldcg(&rest.log_total[h]));
    const float exact = all < near ? 0.0f : all - near, estimated = __ldcg(&rest.far[h]) - unread;
    const float r = estimated + unread > 0 && exact > estimated ? (exact + unread) / (estimated + unread) : 1.0f;
    const float scale = r / (near + exact + r * unread);
    return seen{scale, eps / scale, m, l};
}

// The bins of a thread: what is unread of each head once they are read.
template <int H> struct own_bins {
    static constexpr int N = CHOOSE_BINS / LOOK_THREADS;
    float left[N][H];

    __device__ static __forceinline__ int bin(int k) { return k * LOOK_THREADS + (int)threadIdx.x; }
    __device__ __forceinline__ void load(const look_params &p, int u)
    {
#pragma unroll
        for (int k = 0; k < N; k++)
#pragma unroll
            for (int i = 0; i < H; i += 4) {
                const float4 x = __ldcg((const float4 *)(p.left + ((int64_t)u * CHOOSE_BINS + bin(k)) * H + i));
                left[k][i] = x.x, left[k][i + 1] = x.y, left[k][i + 2] = x.z, left[k][i + 3] = x.w;
            }
    }
    // Where the bins end, from `end` on, once no head is above its limit. All threads. A share that is no number is not above.
    __device__ __forceinline__ int new_end(const seen &s, int end) const
    {
        bool bad[N] = {};
#pragma unroll
        for (int h = 0; h < H; h++) {
            const float limit = __shfl_sync(~0u, s.limit, h);
#pragma unroll
            for (int k = 0; k < N; k++) bad[k] |= left[k][h] > limit;
        }
        int n = end;
#pragma unroll
        for (int k = 0; k < N; k++) n += __syncthreads_count(bad[k] && bin(k) >= end - 1);
        return min(n, (int)CHOOSE_BINS);
    }
    __device__ __forceinline__ void report(const look_params &p, int u, const seen &s, int end) const
    {
#pragma unroll
        for (int h = 0; h < H; h++) {
            const float scale = __shfl_sync(~0u, s.scale, h);
#pragma unroll
            for (int k = 0; k < N; k++)
                if (bin(k) == end - 1 && h < p.group) p.a.unread[u * p.group + h] = left[k][h] > 0 ? left[k][h] * scale : 0.0f;
        }
    }
};

// ---- which rows ----

struct entries {
    int32_t x[2]; // rest_of a row, or -1
    __device__ __forceinline__ void load(const stretch &s, int32_t from)
    {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int32_t i = from + k * LOOK_THREADS + (int32_t)threadIdx.x;
            x[k] = i < s.to ? __ldcg(s.rest + i) : -1;
        }
    }
};

// Those of the entries that lie before bin `end` go behind the s.n rows that are there, and are asked for. Ends with a barrier.
template <int T, int H> static __device__ __forceinline__ void pick(const look_params &p, int u, const entries &e, int end, look_space<H> &s)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, bytes = p.head_dim * (is_wide(T) ? 2 : 1);
    unsigned some[2];
#pragma unroll
    for (int k = 0; k < 2; k++) some[k] = __ballot_sync(~0u, e.x[k] != -1 && bin_of_rest(e.x[k]) < end);
    if (lane == 0) s.warp_rows[w] = __popc(some[0]) + __popc(some[1]);
    __syncthreads();
    int32_t at = s.n;
    for (int i = 0; i < w; i++) at += s.warp_rows[i];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (some[k] >> lane & 1u) {
            const int32_t row = row_of_rest(e.x[k]), to = at + __popc(some[k] & ((1u << lane) - 1u));
            const int64_t page = (int64_t)u * p.cache.max_pages + row / SR_PAGE_ROWS;
            const uint64_t k_at = (uint64_t)p.cache.k_page[page] | (uint64_t)(row % SR_PAGE_ROWS), v_at = (uint64_t)p.cache.v_page[page] | (uint64_t)(row % SR_PAGE_ROWS);
            ask_for(k_at, bytes), ask_for(v_at, bytes);
            s.k_at[to] = k_at, s.v_at[to] = v_at;
        }
        at += __popc(some[k]);
    }
    __syncthreads();
    if (threadIdx.x == LOOK_THREADS - 1) s.n = at;
    __syncthreads();
}

// ---- attention ----

// Logits of n rows, a warp a row.
template <int T, int H> static __device__ __forceinline__ void score_rows(const look_params &p, int n, const float *q, look_space<H> &s)
{
    const int lane = threadIdx.x % WARP, d = p.head_dim;
    const bool in[2] = {4 * lane < d, 128 + 4 * lane < d};
#pragma unroll 1
    for (int first = threadIdx.x / WARP; first < n; first += LOOK_WARPS * LOOK_AHEAD) {
        four_of_row<T> k[LOOK_AHEAD][2];
        float4 x[LOOK_AHEAD][2];
#pragma unroll
        for (int r = 0; r < LOOK_AHEAD; r++) {
            const uint64_t at = s.k_at[min(first + r * LOOK_WARPS, n - 1)];
            if (in[0]) k[r][0].load(at, d, 4 * lane);
            if (in[1]) k[r][1].load(at, d, 128 + 4 * lane);
        }
#pragma unroll
        for (int r = 0; r < LOOK_AHEAD; r++)
#pragma unroll
            for (int i = 0; i < 2; i++) x[r][i] = in[i] ? k[r][i].get() : make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (int h0 = 0; h0 < H; h0 += 4) {
            float y[LOOK_AHEAD][4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *head = q + (h0 + j) * d + 4 * lane;
                const float4 q0 = in[0] ? *(const float4 *)head : make_float4(0, 0, 0, 0), q1 = in[1] ? *(const float4 *)(head + 128) : make_float4(0, 0, 0, 0);
#pragma unroll
                for (int r = 0; r < LOOK_AHEAD; r++) y[r][j] = dot4(x[r][0], q0) + dot4(x[r][1], q1);
            }
#pragma unroll
            for (int r = 0; r < LOOK_AHEAD; r++) {
                const float z = sum_four(y[r]);
                const int i = first + r * LOOK_WARPS;
                if (lane % 8 == 0 && i < n) s.x[i][h0 + lane / 8] = z;
            }
        }
    }
    __syncthreads();
}

// Logits become weights beside the maximum so far; a warp a head.
template <int H> static __device__ __forceinline__ void weigh_rows(int n, look_space<H> &s)
{
    const int lane = threadIdx.x % WARP;
#pragma unroll 1
    for (int h = threadIdx.x / WARP; h < H; h += LOOK_WARPS) {
        const float before = s.m[h];
        float top = before, sum = 0;
#pragma unroll 1
        for (int i = lane; i < n; i += WARP) top = fmaxf(top, s.x[i][h]);
        top = max_of_lanes(top);
        const float base = top == -CUDART_INF_F ? 0.0f : top;
#pragma unroll 1
        for (int i = lane; i < n; i += WARP) sum += s.x[i][h] = exp2_of(s.x[i][h] - base);
        sum = sum_of_lanes(sum);
        __syncwarp(); // all have read the maximum
        if (lane == 0) {
            const float raise = exp2_of(before - base);
            s.raise[h] = raise, s.l[h] = s.l[h] * raise + sum, s.m[h] = top;
        }
    }
    __syncthreads();
}

// Weighted values of columns 4 place .. of all heads; teams of threads that have a row together take rows by turns.
template <int T, int H> struct value_sums {
    float o[H][4];

    __device__ __forceinline__ void add(const look_params &p, int n, const look_space<H> &s)
    {
        const int d = p.head_dim, per_row = d / 4, teams = LOOK_THREADS / per_row, team = threadIdx.x / per_row, place = threadIdx.x % per_row;
#pragma unroll
        for (int h = 0; h < H; h++) {
            const float raise = s.raise[h];
#pragma unroll
            for (int c = 0; c < 4; c++) o[h][c] *= raise;
        }
#pragma unroll 1
        for (int first = team; first < n && team < teams; first += teams * LOOK_AHEAD) {
            four_of_row<T> v[LOOK_AHEAD];
#pragma unroll
            for (int r = 0; r < LOOK_AHEAD; r++) v[r].load(s.v_at[min(first + r * teams, n - 1)], d, 4 * place);
#pragma unroll
            for (int r = 0; r < LOOK_AHEAD; r++) {
                if (first + r * teams >= n) break;
                const float4 x = v[r].get();
#pragma unroll
                for (int h = 0; h < H; h++) {
                    const float w = s.x[first + r * teams][h];
                    o[h][0] += x.x * w, o[h][1] += x.y * w, o[h][2] += x.z * w, o[h][3] += x.w * w;
                }
            }
        }
        __syncthreads();
    }
    // To s.sums; all weights have been used. Ends with a barrier.
    __device__ __forceinline__ void leave(int d, look_space<H> &s) const
    {
        const int per_row = d / 4, team = threadIdx.x / per_row, place = threadIdx.x % per_row;
        if (team < LOOK_THREADS / per_row)
#pragma unroll
            for (int h = 0; h < H; h++) *(float4 *)&s.sums[(team * H + h) * d + 4 * place] = make_float4(o[h][0], o[h][1], o[h][2], o[h][3]);
        __syncthreads();
    }
};

// Columns from 4 (i % (d / 4)) on of head i / (d / 4).
template <int H> static __device__ __forceinline__ float4 sum_of_teams(const look_space<H> &s, int d, int i)
{
    const int h = i / (d / 4), at = i % (d / 4) * 4, teams = LOOK_THREADS / (d / 4);
    float4 o = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int t = 0; t < teams; t++) {
        const float4 x = *(const float4 *)&s.sums[(t * H + h) * d + at];
        o.x += x.x, o.y += x.y, o.z += x.z, o.w += x.w;
    }
    return o;
}

// ---- merge ----

static __device__ __forceinline__ float base_of_top(float top) { return top == -CUDART_INF_F ? 0.0f : top; }

// Piece i, of sums o that belong to maximum m and sum l, is merged with what was read before.
template <int T, int H> static __device__ __forceinline__ void merge_piece(const look_params &p, int u, int i, const float4 &o, float m, float l, const look_space<H> &s)
{
    const int d = p.head_dim, h = i / (d / 4);
    const int64_t head = (int64_t)u * p.group + h, at = head * d + i % (d / 4) * 4;
    const float top = fmaxf(m, s.m0[h]), base = base_of_top(top), prior = exp2_of(s.m0[h] - base), weight = exp2_of(m - base);
    const float all = l * weight + s.l0[h] * prior, own = weight * unit_of_head<T>(p.cache.v_scale, u % p.n_kv_heads), inverse = all == 0 ? 0.0f : 1.0f / all;
    const float4 x = __ldcg((const float4 *)(p.a.state.o + at));
    const float4 y = make_float4(x.x * prior + o.x * own, x.y * prior + o.y * own, x.z * prior + o.z * own, x.w * prior + o.w * own);
    *(float4 *)(p.a.state.o + at) = y;
    *(float4 *)(p.a.out + at) = make_float4(y.x * inverse, y.y * inverse, y.z * inverse, y.w * inverse);
    if (at == head * d) p.a.state.m[head] = top * LN2, p.a.state.l[head] = all;
}

// Whether this block is the last of the unit's to come here; the counter starts anew. All threads.
template <int H> static __device__ __forceinline__ bool comes_last(const look_params &p, const stretch &x, look_space<H> &s)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(p.done + x.u) : "memory");
        s.turn = before == (unsigned)x.n_parts - 1;
        if (s.turn) p.done[x.u] = 0;
    }
    __syncthreads();
    return s.turn != 0;
}

// The unit's parts, by its last block.
template <int T, int H> static __device__ __forceinline__ void merge_parts(const look_params &p, const stretch &x, const look_space<H> &s)
{
    const int d = p.head_dim, pieces = p.group * (d / 4);
    const int64_t slot = (int64_t)x.u * p.n_parts;
#pragma unroll 1
    for (int i = threadIdx.x; i < pieces; i += LOOK_THREADS) {
        const int h = i / (d / 4);
        float2 ml[LOOK_PARTS];
        float4 part[LOOK_PARTS], o = make_float4(0, 0, 0, 0);
        float m = -CUDART_INF_F, l = 0;
#pragma unroll
        for (int k = 0; k < LOOK_PARTS; k++) {
            ml[k] = k < x.n_parts ? __ldcg((const float2 *)p.part_ml + (slot + k) * 16 + h) : make_float2(-CUDART_INF_F, 0);
            part[k] = k < x.n_parts ? __ldcg((const float4 *)p.part_o + (slot + k) * pieces + i) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int k = 0; k < LOOK_PARTS; k++) m = fmaxf(m, ml[k].x);
#pragma unroll
        for (int k = 0; k < LOOK_PARTS; k++) {
            const float f = exp2_of(ml[k].x - base_of_top(m));
            l += ml[k].y * f;
            o.x += part[k].x * f, o.y += part[k].y * f, o.z += part[k].z * f, o.w += part[k].w * f;
        }
        merge_piece<T, H>(p, x.u, i, o, m, l, s);
    }
}

// n rows were added. One block of a unit, when attention has counted: sinks count as near.
static __device__ __forceinline__ void count_more(const look_params &p, int u, int32_t n)
{
    if (threadIdx.x != 0) return;
    const int32_t n_list = p.a.n_list[u];
    const bool was_near = p.a.kinds[u] == CUDA_READ_NEAR, is_near = n == 0 && n_list > 0 && n_list == p.rests[u].n_found;
    if (was_near && n > 0) p.a.kinds[u] = CUDA_READ_NEAR_LIST;
    if (!p.a.counters || (n == 0 && !is_near)) return;
    struct attn_cuda_counters *c = p.a.counters + u;
    c->k_rows += n, c->v_rows += n;
    if (was_near) c->kinds[CUDA_READ_NEAR]--, c->kinds[CUDA_READ_NEAR_LIST]++;
    if (is_near) c->kinds[CUDA_READ_NEAR_LIST]--, c->kinds[CUDA_READ_NEAR]++;
}

template <int T, int H> static __device__ __forceinline__ void finish(const look_params &p, const stretch &x, look_space<H> &s)
{
    const int d = p.head_dim, pieces = p.group * (d / 4);
    const int64_t slot = (int64_t)x.u * p.n_parts + x.part;
#pragma unroll 1
    for (int i = threadIdx.x; i < pieces && s.total > 0; i += LOOK_THREADS) {
        const int h = i / (d / 4);
        const float4 o = sum_of_teams(s, d, i);
        if (x.n_parts == 1) merge_piece<T, H>(p, x.u, i, o, s.m[h], s.l[h], s);
        else ((float4 *)p.part_o)[slot * pieces + i] = o;
    }
    if (x.n_parts == 1) {
        count_more(p, x.u, s.total);
        return;
    }
    if ((int)threadIdx.x < p.group) ((float2 *)p.part_ml)[slot * 16 + threadIdx.x] = make_float2(s.m[threadIdx.x], s.l[threadIdx.x]);
    if (threadIdx.x == 0 && s.total > 0) atomicAdd(&p.rests[x.u].n_more, s.total);
    if (!comes_last(p, x, s)) return;
    const int32_t n = __ldcg(&p.rests[x.u].n_more);
    if (n > 0) merge_parts<T, H>(p, x, s);
    count_more(p, x.u, n);
}

// ---- the kernel ----

template <int T, int H> static __device__ __forceinline__ void read_on(const look_params &p, const stretch &x, entries e, int end, const float *q, look_space<H> &s)
{
    value_sums<T, H> sums;
#pragma unroll
    for (int h = 0; h < H; h++) sums.o[h][0] = sums.o[h][1] = sums.o[h][2] = sums.o[h][3] = 0;
#pragma unroll 1
    for (int32_t at = x.from; at < x.to; at += LOOK_STEP) {
        entries next;
        next.load(x, at + LOOK_STEP);
        pick<T>(p, x.u, e, end, s);
        e = next;
        const int n = s.n;
        if (n == 0 || (n <= LOOK_ROWS - LOOK_STEP && at + LOOK_STEP < x.to)) continue;
        score_rows<T, H>(p, n, q, s);
        weigh_rows(n, s);
        sums.add(p, n, s);
        if (threadIdx.x == 0) s.total += n, s.n = 0;
    }
    sums.leave(p.head_dim, s);
    finish<T, H>(p, x, s);
}

template <int T, int H> __global__ void __launch_bounds__(LOOK_THREADS, 2) look_kernel_for(const __grid_constant__ look_params p)
{
    extern __shared__ __align__(16) char space[];
    look_space<H> &s = *(look_space<H> *)space;
    float *q = (float *)(space + sizeof(look_space<H>));
    let_next_start();
    const stretch x = stretch_of(p);
    const int end = __ldcg(&p.rests[x.u].end), lane = threadIdx.x % WARP;
    if (end == CHOOSE_BINS || x.part >= x.n_parts) {
        wait_for_previous();
        if (x.part == 0) count_more(p, x.u, 0);
        return;
    }
    // what the choice left is there already: attention waited for it
    entries e;
    e.load(x, x.from);
    own_bins<H> bins;
    bins.load(p, x.u);
    const float eps = p.a.eps[x.u / p.n_kv_heads], unread = lane < H ? __ldcg(p.left + ((int64_t)x.u * CHOOSE_BINS + max(end - 1, 0)) * H + lane) : 0.0f;
    load_q<T, H>(p, x.u, q);
    if ((int)threadIdx.x < H) s.m[threadIdx.x] = -CUDART_INF_F, s.l[threadIdx.x] = 0;
    if (threadIdx.x == 0) s.n = s.total = 0;
    wait_for_previous();
    const seen now = see(p, x.u, fmaxf(unread, 0.0f), eps);
    int last = end;
    const bool more = __any_sync(~0u, lane < p.group && unread > now.limit); // alike in all warps
    if (more) {
        if ((int)threadIdx.x < H) s.m0[threadIdx.x] = now.m, s.l0[threadIdx.x] = now.l;
        last = bins.new_end(now, end); // has a barrier
    }
    if (x.part == 0 && p.a.unread) bins.report(p, x.u, now, last);
    if (more) read_on<T, H>(p, x, e, last, q, s);
    else if (x.part == 0) count_more(p, x.u, 0);
}

// ---- launch ----

struct look_code { void (*kernel)(look_params); size_t smem; };

template <int T, int H> static look_code code_for(int d) { return look_code{look_kernel_for<T, H>, sizeof(look_space<H>) + (size_t)H * (size_t)d * sizeof(float)}; }

template <int T> static look_code code_of(int d, int group) { return group <= 4 ? code_for<T, 4>(d) : group <= 8 ? code_for<T, 8>(d) : code_for<T, 16>(d); }

static look_code code_of(const struct attn_cuda_shape *s)
{
    switch (elem_of(s->kv_type)) {
    case ELEM_BF16: return code_of<ELEM_BF16>(s->head_dim, s->group);
    case ELEM_F16: return code_of<ELEM_F16>(s->head_dim, s->group);
    case ELEM_F8: return code_of<ELEM_F8>(s->head_dim, s->group);
    default: return code_of<ELEM_Q8>(s->head_dim, s->group);
    }
}

} // namespace sr

using namespace sr;

sr_status sr_attn_cuda_look(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_look *a, sr_error *err)
{
    struct attn_work w;
    SR_TRY(sr_attn_cuda_check(&c->shape, err));
    if (c->limits.max_len > MAX_REST_ROWS)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA second look: %d rows: at most %d (--route-look off)", c->limits.max_len, MAX_REST_ROWS);
    sr_attn_work_place(&w, c->workspace, &c->card, &c->limits);
    const int32_t n_units = n_units_of(c, cache), at_once = c->card.n_sms / n_units;
    const look_code code = code_of(&c->shape);
    const look_params p = {*a, *cache, (choose_rest *)w.rests, w.left, w.spare_o, w.spare_ml, w.done, c->shape.head_dim, c->shape.n_kv_heads,
                           c->shape.group, at_once < 1 ? 1 : at_once < LOOK_PARTS ? at_once : LOOK_PARTS};
    SR_TRY(launched(cudaFuncSetAttribute(code.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)code.smem), "shared memory of look", err));
    // divided as for attention, beside whose blocks these begin
    SR_TRY(launched(cudaFuncSetAttribute(code.kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "shared memory of look", err));
    return launched(launch(code.kernel, n_units * p.n_parts, LOOK_THREADS, code.smem, c, p), "look", err);
}
