// SPDX-License-Identifier: Apache-2.0
//
// The second look of `mass`, all but its kernels: attn_look.cu has one that follows attention, attn_list.cuh does it within. What was read is
// exact now, and says by how much the estimate is too low for the rest. Of a unit that has a head above eps then the next bins are read and merged
// in; struct sketch_more_args has the rule.
//
// A unit has a few blocks. Each finds by itself where the bins end, and which rows that makes: up to a hundred or so are read by one block, which
// leaves nothing to merge with, more by several. Their logits come by eight lanes a row, then their values, a thread four columns. All of it runs
// once, mostly, so that what it takes is instructions that nobody has fetched: loops stay loops.
#ifndef SR_CUDA_LOOK_PARTS_CUH
#define SR_CUDA_LOOK_PARTS_CUH

#include "cuda/attn_deal.cuh"
#include "cuda/look_rows.cuh"
#include "cuda/sketch_rows.cuh"

namespace sr {

constexpr int LOOK_WARPS = 8, LOOK_THREADS = LOOK_WARPS * WARP, LOOK_PARTS = 8; // blocks of a unit, at most
constexpr int LOOK_ROWS = 512;            // read together
constexpr int LOOK_EACH = 96;             // another block is not worth its merge for less
constexpr int LOOK_PAGES = 512;           // addresses are fetched ahead where a unit has no more
__host__ __device__ constexpr int look_step(int h) { return h > 8 ? 2048 : 4096; } // of the rest, looked at together

struct look_params {
    struct attn_cuda_look a;
    struct attn_cuda_cache cache;
    choose_rest *rests;
    const weighty_rows *weighty;
    const float *left;         // [n_units][CHOOSE_BINS][H]
    float *part_o, *part_ml;   // [n_units][n_parts][group][d] and of 16 maxima and sums
    unsigned *done;
    int32_t head_dim, n_kv_heads, group, n_parts;
};

// ---- a block's own ----

// H: room for heads.
template <int H> struct alignas(16) look_space {
    union {
        float x[LOOK_ROWS][H];                 // logits, then weights
        float sums[LOOK_THREADS * 4 * H];      // of the teams: [team][head][column]
        struct {                               // before there are logits
            float left[CHOOSE_BINS][H];        // what is unread once the bins up to each are read
            uint64_t pages[2][LOOK_PAGES];     // of K and V
        };
    };
    uint64_t k_at[LOOK_ROWS], v_at[LOOK_ROWS]; // page and, in the bits that its alignment leaves, place in it
    int32_t rest[look_step(H) + 4];            // rest_of rows, from `skew` on
    float m0[H], l0[H];                        // of what was read before
    float m[H], l[H], raise[H];                // of what is added; what a new maximum makes of the sums before it
    int32_t warp_rows[LOOK_WARPS], total, turn;
};

// What a block looks at: entries [from, to) of a unit's rest; n_parts of its blocks do, each at its own stretch or, where the rest is
// short, all at all of it.
// `used` of the blocks have rows in the end.
struct stretch { int32_t u, part, n_parts, used, from, to; bool is_common, has_pages, was_near, is_found /* the list has rows read in any case alone */; int skew; const int32_t *rest; };

struct rest_words { int32_t n, n_list, n_found, kind; };

static __device__ __forceinline__ rest_words rest_words_of(const look_params &p, int32_t u)
{
    return rest_words{__ldcg(&p.rests[u].n), __ldcg(p.a.n_list + u), __ldcg(&p.rests[u].n_found), __ldcg(p.a.kinds + u)};
}

template <int H> static __device__ __forceinline__ stretch stretch_of(const look_params &p, int32_t u, int32_t part, int32_t n_parts, const rest_words &r)
{
    const int32_t n = r.n;
    stretch x = {u, part, n_parts, n_parts, 0, n, n <= look_step(H), p.cache.max_pages <= LOOK_PAGES, r.kind == CUDA_READ_NEAR,
                 r.n_list > 0 && r.n_list == r.n_found, 0, p.a.list + u * p.a.list_stride + r.n_list};
    if (!x.is_common) x.from = n * part / n_parts, x.to = n * (part + 1) / n_parts;
    x.skew = (int)((uint64_t)(x.rest + x.from) / 4 % 4);
    return x;
}

// Queries of the heads; absent heads' are 0.
template <int H> static __device__ __forceinline__ void copy_q(const look_params &p, int u, float *q)
{
    const int n = p.group * p.head_dim;
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < H * p.head_dim; i += 4 * LOOK_THREADS) copy16(q + i, p.a.q + (int64_t)u * n + (i < n ? i : 0), i < n ? 16 : 0);
}

// ---- how far to read ----

// Of head `lane`: what the choice knew, and what its estimated unread share is multiplied by, the share that is at most eps then, and
// the state.
struct known { float near, log_total, far, unread, eps; };
struct seen { float scale, limit, m, l; };

static __device__ __forceinline__ known recall(const look_params &p, int u, int end, int room)
{
    const int h = threadIdx.x % WARP;
    if (h >= p.group) return known{};
    const choose_rest &rest = p.rests[u];
    return known{__ldcg(&rest.near[h]), __ldcg(&rest.log_total[h]), __ldcg(&rest.far[h]),
                 __ldcg(p.left + ((int64_t)u * CHOOSE_BINS + max(end - 1, 0)) * room + h), p.a.eps[u / p.n_kv_heads]};
}

// Maximum, as a power of 2, and sum of head `lane`.
static __device__ __forceinline__ float2 state_of(const look_params &p, int u)
{
    const int h = threadIdx.x % WARP;
    return h < p.group ? make_float2(__ldcg(p.a.state.m + u * p.group + h) * LOG2E, __ldcg(p.a.state.l + u * p.group + h)) : make_float2(-CUDART_INF_F, 0);
}

static __device__ __forceinline__ seen see(const look_params &p, const known &k, float2 state)
{
    if ((int)threadIdx.x % WARP >= p.group) return seen{0, CUDART_INF_F, -CUDART_INF_F, 0};
    const float m = state.x, l = state.y, unread = fmaxf(k.unread, 0.0f);
    const float all = l * exp2_of(m - k.log_total), exact = all < k.near ? 0.0f : all - k.near, estimated = k.far - unread;
    const float r = estimated + unread > 0 && exact > estimated ? __fdividef(exact + unread, estimated + unread) : 1.0f;
    const float scale = __fdividef(r, k.near + exact + r * unread);
    return seen{scale, __fdividef(k.eps, scale), m, l};
}

template <int H> static __device__ __forceinline__ void copy_left(const look_params &p, int u, look_space<H> &s)
{
    const float *from = p.left + (int64_t)u * CHOOSE_BINS * H;
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < CHOOSE_BINS * H; i += 4 * LOOK_THREADS) copy16(&s.left[0][0] + i, from + i, 16);
}

// Where the bins end, from `end` on, once no head is above its limit. All threads. A share that is no number is not above.
template <int H> static __device__ __forceinline__ int new_end(const look_space<H> &s, const seen &x, int end)
{
    int n = end;
#pragma unroll 1
    for (int b = threadIdx.x; b < CHOOSE_BINS; b += LOOK_THREADS) {
        bool bad = false;
#pragma unroll
        for (int h = 0; h < H; h += 4) {
            const float4 left = *(const float4 *)&s.left[b][h];
            const float limit[4] = {__shfl_sync(~0u, x.limit, h), __shfl_sync(~0u, x.limit, h + 1), __shfl_sync(~0u, x.limit, h + 2), __shfl_sync(~0u, x.limit, h + 3)};
            bad |= left.x > limit[0] || left.y > limit[1] || left.z > limit[2] || left.w > limit[3];
        }
        n += __syncthreads_count(bad && b >= end - 1);
    }
    return min(n, (int)CHOOSE_BINS);
}

// The estimate where the bins left `unread`, by lanes; a unit's first block.
static __device__ __forceinline__ void report(const look_params &p, int u, const seen &x, float unread)
{
    if (p.a.unread && (int)threadIdx.x < p.group) p.a.unread[u * p.group + threadIdx.x] = unread > 0 ? unread * x.scale : 0.0f;
}

// ---- which rows ----

// Asks for what fits of the rest, from entry `from` on.
template <int H> static __device__ __forceinline__ void copy_rest(const stretch &x, int32_t from, look_space<H> &s)
{
    const int32_t n = x.skew + min(x.to - from, look_step(H));
    const int32_t *first = x.rest + from - x.skew; // on a boundary of 16 bytes
#pragma unroll 1
    for (int32_t i = 4 * threadIdx.x; i < n; i += 4 * LOOK_THREADS) copy16(s.rest + i, first + i, min(4 * (n - i), 16));
}

// How many of n entries lie before bin `end`; *before gets those of the warps before this one. Has a barrier.
template <int H> static __device__ __forceinline__ int32_t count_rows(const int32_t *rest, int32_t n, int end, look_space<H> &s, int32_t *before)
{
    const int w = threadIdx.x / WARP;
    int32_t mine = 0, all;
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < n; i += LOOK_THREADS) mine += bin_of_rest(rest[i]) < end;
    mine = __reduce_add_sync(~0u, mine);
    if (threadIdx.x % WARP == 0) s.warp_rows[w] = mine;
    __syncthreads();
    all = (int)threadIdx.x % WARP < LOOK_WARPS ? s.warp_rows[threadIdx.x % WARP] : 0;
    *before = __reduce_add_sync(~0u, (int)threadIdx.x % WARP < w ? all : 0);
    return __reduce_add_sync(~0u, all);
}

// Of those, the rows of rank [from, to) go to s, and are asked for. Has a barrier.
template <int T, int H>
static __device__ __forceinline__ void take_rows(const look_params &p, const stretch &x, int32_t n, int end, int32_t before, int32_t from, int32_t to, look_space<H> &s)
{
    const int lane = threadIdx.x % WARP, bytes = p.head_dim * (is_wide(T) ? 2 : 1);
    const int64_t first = (int64_t)x.u * p.cache.max_pages;
#pragma unroll 1
    for (int32_t i = threadIdx.x; i - lane < n && before < to; i += LOOK_THREADS) {
        const int32_t entry = i < n ? s.rest[x.skew + i] : -1;
        const unsigned some = __ballot_sync(~0u, i < n && bin_of_rest(entry) < end);
        const int32_t rank = before + __popc(some & ((1u << lane) - 1u));
        if ((some >> lane & 1u) && rank >= from && rank < to) {
            const int32_t row = row_of_rest(entry), page = row / SR_PAGE_ROWS, slot = row % SR_PAGE_ROWS;
            const uint64_t k_at = (x.has_pages ? s.pages[0][page] : (uint64_t)p.cache.k_page[first + page]) | slot;
            const uint64_t v_at = (x.has_pages ? s.pages[1][page] : (uint64_t)p.cache.v_page[first + page]) | slot;
            s.k_at[rank - from] = k_at, s.v_at[rank - from] = v_at;
        }
        before += __popc(some);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x / ROW_LANES; i < to - from; i += LOOK_THREADS / ROW_LANES) ask_for(s.k_at[i], bytes), ask_for(s.v_at[i], bytes);
}

template <int H> static __device__ __forceinline__ void copy_pages(const look_params &p, const stretch &x, look_space<H> &s)
{
    if (!x.has_pages) return;
    const int64_t first = (int64_t)x.u * p.cache.max_pages;
#pragma unroll 1
    for (int i = threadIdx.x; i < p.cache.max_pages; i += LOOK_THREADS) copy8(&s.pages[0][i], p.cache.k_page + first + i), copy8(&s.pages[1][i], p.cache.v_page + first + i);
}

// ---- attention ----

// Logits of n rows, some lanes a row, mostly two rows at once.
template <int T, int H> static __device__ __forceinline__ void score_rows(const look_params &p, int u, int n, const float *q, look_space<H> &s)
{
    constexpr int STEP = LOOK_THREADS / ROW_LANES, ROWS = H < 16 ? 2 : 1, MOST = H < 8 ? 4 : 2; // at once; loads of each under way
    const float factor = p.a.scale * LOG2E * unit_of_head<T>(p.cache.k_scale, u % p.n_kv_heads);
    const int lane = threadIdx.x % ROW_LANES, d = p.head_dim;
#pragma unroll 1
    for (int i = threadIdx.x / ROW_LANES; i - (int)(threadIdx.x % WARP / ROW_LANES) < n; i += ROWS * STEP) {
        uint64_t at[ROWS];
        float y[ROWS][H] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) at[r] = s.k_at[min(i + r * STEP, n - 1)];
#pragma unroll 1
        for (int first = 4 * lane; first - 4 * lane < d; first += 4 * ROW_LANES * MOST) {
            four_of_row<T> k[MOST][ROWS];
#pragma unroll
            for (int m = 0; m < MOST; m++)
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    if (first + 4 * ROW_LANES * m < d) k[m][r].load(at[r], d, first + 4 * ROW_LANES * m);
#pragma unroll
            for (int m = 0; m < MOST; m++) {
                if (first + 4 * ROW_LANES * m >= d) break;
                float4 x[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; r++) x[r] = k[m][r].get();
#pragma unroll
                for (int h = 0; h < H; h++) {
                    const float4 z = *(const float4 *)(q + h * d + first + 4 * ROW_LANES * m);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) y[r][h] += dot4(x[r], z);
                }
            }
        }
        __syncwarp();
#pragma unroll
        for (int h = 0; h < H; h++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int j = 1; j < ROW_LANES; j *= 2) y[r][h] += __shfl_xor_sync(~0u, y[r][h], j);
                if (lane == h % ROW_LANES && i + r * STEP < n) s.x[i + r * STEP][h] = y[r][h] * factor;
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
    static constexpr int AHEAD = H < 8 ? 8 : 4; // rows under way
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
        for (int first = team; first < n && team < teams; first += teams * AHEAD) {
            four_of_row<T> v[AHEAD];
#pragma unroll
            for (int r = 0; r < AHEAD; r++) v[r].load(s.v_at[min(first + r * teams, n - 1)], d, 4 * place);
#pragma unroll
            for (int r = 0; r < AHEAD; r++) {
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
#pragma unroll 4
    for (int t = 0; t < teams; t++) {
        const float4 x = *(const float4 *)&s.sums[(t * H + h) * d + at];
        o.x += x.x, o.y += x.y, o.z += x.z, o.w += x.w;
    }
    return o;
}

// ---- merge ----

static __device__ __forceinline__ float base_of_top(float top) { return top == -CUDART_INF_F ? 0.0f : top; }

// Piece i of the state as it was.
static __device__ __forceinline__ float4 load_piece(const look_params &p, int u, int i) { return __ldcg((const float4 *)(p.a.state.o + (int64_t)u * p.group * p.head_dim) + i); }

// Piece i, of sums o that belong to maximum m and sum l, is merged with what was read before, x.
template <int T, int H>
static __device__ __forceinline__ void merge_piece(const look_params &p, int u, int i, const float4 &x, const float4 &o, float m, float l, const look_space<H> &s)
{
    const int d = p.head_dim, h = i / (d / 4);
    const int64_t head = (int64_t)u * p.group + h, at = head * d + i % (d / 4) * 4;
    const float top = fmaxf(m, s.m0[h]), base = base_of_top(top), prior = exp2_of(s.m0[h] - base), weight = exp2_of(m - base);
    const float all = l * weight + s.l0[h] * prior, own = weight * unit_of_head<T>(p.cache.v_scale, u % p.n_kv_heads), inverse = all == 0 ? 0.0f : 1.0f / all;
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
        const float4 before = load_piece(p, x.u, i);
        float m = -CUDART_INF_F, l = 0;
#pragma unroll
        for (int k = 0; k < LOOK_PARTS; k++) {
            ml[k] = k < x.used ? __ldcg((const float2 *)p.part_ml + (slot + k) * 16 + h) : make_float2(-CUDART_INF_F, 0);
            part[k] = k < x.used ? __ldcg((const float4 *)p.part_o + (slot + k) * pieces + i) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int k = 0; k < LOOK_PARTS; k++) m = fmaxf(m, ml[k].x);
#pragma unroll
        for (int k = 0; k < LOOK_PARTS; k++) {
            const float f = exp2_of(ml[k].x - base_of_top(m));
            l += ml[k].y * f;
            o.x += part[k].x * f, o.y += part[k].y * f, o.z += part[k].z * f, o.w += part[k].w * f;
        }
        merge_piece<T, H>(p, x.u, i, before, o, m, l, s);
    }
}

// Others of the unit may be counting.
static __device__ __forceinline__ void count_up(uint64_t *c, int64_t n) { atomicAdd((unsigned long long *)c, (unsigned long long)n); }

// n rows were added. One block of a unit: sinks count as near.
static __device__ __forceinline__ void count_more(const look_params &p, const stretch &x, int32_t n)
{
    const bool is_near = n == 0 && x.is_found, was_near = n > 0 && x.was_near;
    if (threadIdx.x != 0 || (n == 0 && !is_near)) return;
    if (was_near) p.a.kinds[x.u] = CUDA_READ_NEAR_LIST;
    if (!p.a.counters) return;
    struct attn_cuda_counters *c = p.a.counters + x.u;
    const int from = was_near ? CUDA_READ_NEAR : CUDA_READ_NEAR_LIST;
    if (n > 0) count_up(&c->k_rows, n), count_up(&c->v_rows, n);
    if (was_near || is_near) count_up(&c->kinds[from], -1), count_up(&c->kinds[CUDA_READ_NEAR + CUDA_READ_NEAR_LIST - from], 1);
}

// WITHIN attention the state that this is merged with was left by several blocks: the last of them to come here does it.
template <int T, int H, bool WITHIN> static __device__ __forceinline__ void finish(const look_params &p, const stretch &x, look_space<H> &s)
{
    const int d = p.head_dim, pieces = p.group * (d / 4);
    const int64_t slot = (int64_t)x.u * p.n_parts + x.part;
#pragma unroll 1
    for (int i = threadIdx.x; i < pieces && (s.total > 0 || x.used > 1) && x.part < x.used; i += LOOK_THREADS) {
        const int h = i / (d / 4);
        const float4 before = load_piece(p, x.u, i), o = sum_of_teams(s, d, i);
        if (!WITHIN && x.n_parts == 1) merge_piece<T, H>(p, x.u, i, before, o, s.m[h], s.l[h], s);
        else ((float4 *)p.part_o)[slot * pieces + i] = o;
    }
    if (!WITHIN && x.n_parts == 1) {
        count_more(p, x, s.total);
        return;
    }
    if ((int)threadIdx.x < p.group && x.part < x.used) ((float2 *)p.part_ml)[slot * 16 + threadIdx.x] = make_float2(s.m[threadIdx.x], s.l[threadIdx.x]);
    if (threadIdx.x == 0 && s.total > 0) atomicAdd(&p.rests[x.u].n_more, s.total);
    if (!comes_last(p, x, s)) return;
    const int32_t n = __ldcg(&p.rests[x.u].n_more);
    if (n > 0) merge_parts<T, H>(p, x, s);
    count_more(p, x, n);
}

// ---- notes ----

// A row that may be worth noting, one a thread, and its logits; -1: none.
template <int H> struct candidate { int32_t row; float x[H]; };

// Those of the trail, then those that the choice found weighty. All threads; what is in s is lost.
template <int T, int H> static __device__ __forceinline__ candidate<H> find_candidate(const look_params &p, int u, const float *q, look_space<H> &s)
{
    static_assert(SR_TRAIL_ROWS + WEIGHTY_ROWS <= LOOK_THREADS, "one row a thread");
    const int i = threadIdx.x;
    const always_rows &always = p.a.always[u];
    const weighty_rows &weighty = p.weighty[u];
    const int32_t n_trail = __ldcg(&always.n_trail), found = __ldcg(&weighty.n), n_weighty = found > WEIGHTY_ROWS ? 0 : found, n = n_trail + n_weighty;
    candidate<H> c;
    c.row = i < n_trail ? __ldcg(&always.trail[i]) : i < n ? __ldcg(&weighty.rows[i - n_trail]) : -1;
    if (n == 0) return c;
    if (c.row >= 0) s.k_at[i] = (uint64_t)p.cache.k_page[(int64_t)u * p.cache.max_pages + c.row / SR_PAGE_ROWS] | (uint32_t)(c.row % SR_PAGE_ROWS);
    await_copies(); // of q
    score_rows<T, H>(p, u, n, q, s);
#pragma unroll
    for (int h = 0; h < H; h++) c.x[h] = i < n ? s.x[i][h] : 0;
    __syncthreads();
    return c;
}

// Of head `lane`: the logarithm of what was read, as a power of 2.
static __device__ __forceinline__ float log_read(const look_params &p, float2 state)
{
    return (int)threadIdx.x % WARP < p.group ? state.x + __log2f(state.y) : CUDART_INF_F;
}

// Whole warps call. Rows and shares come in any order, and from any unit: what is there in the end does not show it.
template <int H> static __device__ __forceinline__ void note(const look_params &p, int u, const candidate<H> &c, float2 state)
{
    const float all = log_read(p, state);
    float top = -CUDART_INF_F;
#pragma unroll
    for (int h = 0; h < H; h++) top = fmaxf(top, c.x[h] - __shfl_sync(~0u, all, h));
    const float share = fminf(exp2_of(top), 1.0f);
    if (c.row < 0 || !(share >= SR_TRAIL_SHARE)) return;
    const int32_t seq = u / p.n_kv_heads, half = __ldcg(p.cache.kv_len + seq) % 2;
    int32_t *const trail = p.a.trail + (size_t)seq * SR_TRAIL_WORDS(p.a.trail_len);
    if (atomicMax(trail + SR_TRAIL_SHARES_AT(p.a.trail_len, half) + c.row, __float_as_int(share)) == 0)
        trail[SR_TRAIL_ROWS_AT(p.a.trail_len, half) + atomicAdd(trail + SR_TRAIL_COUNTS + half, 1)] = c.row;
}

// ---- reading ----

template <int T, int H, bool WITHIN> static __device__ __forceinline__ void read_on(const look_params &p, stretch x, int end, const float *q, look_space<H> &s)
{
    value_sums<T, H> sums;
#pragma unroll
    for (int h = 0; h < H; h++) sums.o[h][0] = sums.o[h][1] = sums.o[h][2] = sums.o[h][3] = 0;
#pragma unroll 1
    for (int32_t at = x.from; at == x.from || at < x.to; at += look_step(H)) {
        if (at > x.from) copy_rest(x, at, s), await_copies();
        const int32_t n = min(x.to - at, look_step(H));
        int32_t before, from = 0, to = count_rows(s.rest + x.skew, n, end, s, &before);
        if (x.is_common) {
            const int32_t all = to;
            x.used = max(min((all + LOOK_EACH - 1) / LOOK_EACH, x.n_parts), 1);
            if (!WITHIN) x.n_parts = x.used;
            if (!WITHIN && x.part >= x.used) return;
            from = x.part < x.used ? all * x.part / x.used : 0, to = x.part < x.used ? all * (x.part + 1) / x.used : 0;
        }
#pragma unroll 1
        for (; from < to; from += LOOK_ROWS) {
            const int32_t rows = min(to - from, LOOK_ROWS);
            take_rows<T>(p, x, n, end, before, from, from + rows, s);
            x.has_pages = false; // logits take their place
            score_rows<T, H>(p, x.u, rows, q, s);
            weigh_rows(rows, s);
            sums.add(p, rows, s);
            if (threadIdx.x == 0) s.total += rows;
        }
        __syncthreads();
    }
    sums.leave(p.head_dim, s);
    finish<T, H, WITHIN>(p, x, s);
}

} // namespace sr

#endif
