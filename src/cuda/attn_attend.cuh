// SPDX-License-Identifier: Apache-2.0
//
// The attend kernel: decode attention over whatever rows were chosen, all heads of a group packed.
//
// Every warp streams tiles of 16 rows on its own: while it works on one tile, the next one's K and V are under way, and
// the row numbers and page pointers of the tile after that. There is no barrier until a share ends; then the warps of a
// block merge their states, and the last block of a unit merges those of its blocks (a ticket, no second kernel). The
// running maximum is moved only when a logit exceeds it by more than SLACK, so that most tiles need no exchange between
// lanes: p is then at most 2^SLACK, which neither bf16, f16 nor the sums mind.
#ifndef SR_CUDA_ATTN_ATTEND_CUH
#define SR_CUDA_ATTN_ATTEND_CUH

#include "cuda/attn_deal.cuh"
#include "cuda/attn_tile.cuh"

namespace sr {

constexpr float SLACK = 8.0f;
// Partial states are merged at once up to this many floats, else in two levels.
constexpr int FLAT_WORDS = 16384;

template <int D, int NT, int T> struct warp_state {
    static constexpr int STEPS = D / 16, TILES = attend_tiles(D, NT, T);
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
// The fields are read anew each time: in registers they would push out rows under way.
__device__ __forceinline__ int32_t lane_row(const volatile unit_rows &rows, int32_t tile)
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

// To shared memory, as the lanes will want it. bf16's rounding of a query would show; groups of up to 4 have room for what
// it leaves of each, as four more heads: `split`.
template <int D, int NT, int T>
__device__ __forceinline__ void load_q(const attend_params &p, int u, int h0, bool split, uint2 *q)
{
    for (int i = threadIdx.x; i < NT * (D / 16) * WARP; i += blockDim.x) {
        const int lane = i % WARP, s = i / WARP % (D / 16), g = lane >> 2;
        const int h = h0 + i / (D / 16 * WARP) * 8 + (split ? g & 3 : g);
        const float *row = p.q + ((int64_t)u * p.group + (h < p.group ? h : 0)) * D;
        const float keep = h < p.group ? 1.0f : 0.0f;
        const float4 x = *(const float4 *)(row + k_element<D, T>(s, lane & 3));
        float v[4] = {x.x * keep, x.y * keep, x.z * keep, x.w * keep};
        if (split && g >= 4)
#pragma unroll
            for (int j = 0; j < 4; j++) v[j] -= __bfloat162float(__float2bfloat16_rn(v[j]));
        q[i] = T == ELEM_F8 ? make_uint2(pack<T>(v[0], v[2]), pack<T>(v[1], v[3])) // as its bytes are taken apart
                            : make_uint2(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]));
    }
    __syncthreads();
}

// ---- one share, one warp ----

// What the warps of a block have in common, kept from their registers.
struct share_space {
    share s;
    unit_rows rows;
    float scale;
    int32_t limit;   // rows before the share's end
    int32_t at, end; // of the line or of the blocks
    bool more;
    int32_t touched[MAX_WARPS];
};

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
#pragma unroll
        for (int i = 0; i < TILES; i++) row[i] = lane_row(ss.rows, tile + i);
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
__device__ __forceinline__ void attend_share(const attend_params &p, share_space &ss, warp_state<D, NT, T> &state, uint2 *q)
{
    constexpr int TILES = attend_tiles(D, NT, T), STEP = attend_warps(D, NT, T) * TILES;
    const int lane = threadIdx.x % WARP, g = lane >> 2;
    const int u = ss.s.u / p.n_sub, h0 = ss.s.u % p.n_sub * 8 * NT;
    const bool split = T == ELEM_BF16 && NT == 1 && p.group - h0 <= 4;
    stream<D, NT, T> flow;
    flow.pages = (lane < TILE ? p.cache.k_page : p.cache.v_page) + (int64_t)u * p.cache.max_pages;
    int32_t tile = ss.s.t0 + threadIdx.x / WARP * TILES, touched = 0;
    flow.find_rows(ss, tile);
    flow.find_addresses();
    flow.find_rows(ss, tile + STEP);
    flow.load_k(lane);
    flow.load_v(lane);
    flow.find_addresses();
    flow.find_rows(ss, tile + 2 * STEP);
    load_q<D, NT, T>(p, u, h0, split, q);
    for (bool more = tile < ss.s.t1; more; tile += STEP) {
        more = tile + STEP < *(volatile int32_t *)&ss.s.t1;
        float x[TILES][NT][4];
        uint32_t weights[TILES][NT][2];
#pragma unroll
        for (int i = 0; i < TILES; i++) flow.k[i].template logits<NT>(x[i], q + lane);
        if (more) flow.load_k(lane);
        const float scale = *(volatile float *)&ss.scale;
        const int32_t left = *(volatile int32_t *)&ss.limit - tile * TILE;
        touched += min(left, TILES * TILE);
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
    if (lane == 0) ss.touched[threadIdx.x / WARP] = touched;
}

// ---- the warps of a block ----

// The order of o in a partial state is that of the fragments: element e is register e / (8 LANES) of lane 4 g + t with
// g = e / LANES % 8 and t = e % LANES. Groups of up to 4 heads fill only half of the lanes.
struct fragment_order {
    int32_t lanes, lane_bits, n; // 2 or 4 lanes of each four, and the elements of a state

    __device__ __forceinline__ fragment_order(int n_heads, int words)
    {
        lane_bits = n_heads <= 4 ? 1 : 2;
        lanes = 1 << lane_bits;
        n = words >> (2 - lane_bits);
    }
    __device__ __forceinline__ int reg(int e) const { return e >> (lane_bits + 3); }
    __device__ __forceinline__ int group(int e) const { return e >> lane_bits & 7; }
    __device__ __forceinline__ int quad(int e) const { return e & (lanes - 1); }
    template <int NT> __device__ __forceinline__ int head(int e) const { return (reg(e) / 4 % NT) * 8 + 2 * quad(e) + (e >> (lane_bits + 3) & 1); }
    template <int D, int NT, int T> __device__ __forceinline__ int column(int e) const
    {
        return v_column<D, T>(reg(e) / (4 * NT), group(e), reg(e) >> 1 & 1);
    }
};

constexpr int MAX_FLAT = 128; // parts that one merge can weigh

struct merge_space {
    float m[MAX_WARPS][16], l[MAX_WARPS][16];
    float top[16], sum[16];
    float weight[MAX_FLAT][16], part_l[MAX_FLAT][16];
    int32_t turn, rows;
};

// All threads; afterwards ms.top and ms.sum are the block's, and `red` holds every warp's share of o in its fragments.
template <int D, int NT, int T>
__device__ __forceinline__ void merge_warps(warp_state<D, NT, T> &s, merge_space &ms, float *red)
{
    constexpr int WARPS = attend_warps(D, NT, T);
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, t = lane & 3;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int i = 4; i < WARP; i *= 2) s.l[n][h] += __shfl_xor_sync(~0u, s.l[n][h], i);
            if (lane < 4) ms.m[w][8 * n + 2 * t + h] = s.m[n][h], ms.l[w][8 * n + 2 * t + h] = s.l[n][h];
        }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float f[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int head = 8 * n + 2 * t + h;
            float top = -CUDART_INF_F, sum = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) top = fmaxf(top, ms.m[i][head]);
            const float base = top == -CUDART_INF_F ? 0.0f : top;
#pragma unroll
            for (int i = 0; i < WARPS; i++) sum += ms.l[i][head] * exp2_of(ms.m[i][head] - base);
            f[h] = exp2_of(s.m[n][h] - base);
            if (threadIdx.x < 4) ms.top[head] = top, ms.sum[head] = sum;
        }
        s.scale(n, f[0], f[1]);
    }
#pragma unroll
    for (int j = 0; j < D / 16; j++)
#pragma unroll
        for (int i = 0; i < NT * 4; i++) red[(w * (D / 16 * NT * 4) + j * NT * 4 + i) * WARP + lane] = s.o[j][i / 4][i % 4];
    __syncthreads();
}

// Element e of the block's o.
template <int D, int NT, int T> __device__ __forceinline__ float block_o(const float *red, const fragment_order &order, int e)
{
    constexpr int words = D / 16 * NT * 4 * WARP;
    const float *p = red + order.reg(e) * WARP + order.group(e) * 4 + order.quad(e);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < attend_warps(D, NT, T); i++) sum += p[i * words];
    return sum;
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

// Element d of a head: o belongs to a state of maximum m and sum l.
template <int D> __device__ __forceinline__ void finish(const attend_params &p, int64_t h, int d, float o, const with_prior &x)
{
    if (p.merge) o = o * x.own + p.o[h * D + d] * x.prior;
    if (p.out) p.out[h * D + d] = x.l == 0 ? 0.0f : o / x.l;
    if (p.o) p.o[h * D + d] = o;
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

// The state's m and l, once all threads have read what was there.
static __device__ __forceinline__ void finish_heads(const attend_params &p, int64_t h0, int n_heads, const merge_space &ms)
{
    with_prior x = {0, 0, 0, 0};
    const bool mine = (int)threadIdx.x < n_heads;
    if (mine) x = join_prior(p, h0 + threadIdx.x, ms.top[threadIdx.x], ms.sum[threadIdx.x]);
    __syncthreads();
    if (mine && p.o) p.m[h0 + threadIdx.x] = x.m * LN2, p.l[h0 + threadIdx.x] = x.l;
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

// The weights of n parts and the maximum and sum of their joint state. All threads; parts' o may be on their way meanwhile.
static __device__ __forceinline__ void weigh_parts(const attend_params &p, const share &s, int from, int stride, int n, int n_heads, merge_space &ms)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP;
    for (int i = threadIdx.x; i < n * 16; i += blockDim.x) {
        const float2 ml = __ldcg((const float2 *)p.part_ml + (int64_t)slot_of_part(s, from + i / 16 * stride) * 16 + i % 16);
        ms.weight[i / 16][i % 16] = ml.x, ms.part_l[i / 16][i % 16] = ml.y;
    }
    if (w == 0) {
        int32_t rows = 0;
        for (int i = lane; i < n; i += WARP) rows += __ldcg(p.part_rows + slot_of_part(s, from + i * stride));
        rows = __reduce_add_sync(~0u, rows);
        if (lane == 0) ms.rows = rows;
    }
    __syncthreads();
    for (int h = w; h < n_heads; h += blockDim.x / WARP) {
        float top = -CUDART_INF_F, sum = 0;
        for (int i = lane; i < n; i += WARP) top = fmaxf(top, ms.weight[i][h]);
#pragma unroll
        for (int i = 1; i < WARP; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
        const float base = top == -CUDART_INF_F ? 0.0f : top;
        for (int i = lane; i < n; i += WARP) {
            const float f = exp2_of(ms.weight[i][h] - base);
            ms.weight[i][h] = f;
            sum += ms.part_l[i][h] * f;
        }
#pragma unroll
        for (int i = 1; i < WARP; i *= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (lane == 0) ms.top[h] = top, ms.sum[h] = sum;
    }
    __syncthreads();
}

// Merges parts from, from + stride, ... (n of them) of a share's unit into red. As many teams of threads as there are share
// the parts, in fixed order.
template <int NT, int BATCH>
static __device__ __forceinline__ void merge_parts(const attend_params &p, const share &s, int from, int stride, int n,
                                                   const fragment_order &order, int n_heads, int words, float *red, merge_space &ms)
{
    const int pieces = order.n / 4, teams = (int)blockDim.x > pieces ? blockDim.x / pieces : 1;
    float4 *sums = (float4 *)red;
#pragma unroll 1
    for (int base = 0; base < pieces; base += blockDim.x) {
        const int team = teams > 1 ? threadIdx.x / pieces : 0, piece = base + threadIdx.x - team * pieces;
        const bool mine = piece < pieces && team < teams;
        float4 o = make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (int first = 0; first < n; first += BATCH * teams) {
            float4 x[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                const int part = min(first + team + j * teams, n - 1);
                if (mine) x[j] = __ldcg((const float4 *)(p.part_o + (int64_t)slot_of_part(s, from + part * stride) * words) + piece);
            }
            if (base == 0 && first == 0) weigh_parts(p, s, from, stride, n, n_heads, ms); // while the parts are on their way
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                const int part = first + team + j * teams;
                if (!mine || part >= n) continue;
                const float *f = ms.weight[part];
                o.x += x[j].x * f[order.head<NT>(piece * 4)], o.y += x[j].y * f[order.head<NT>(piece * 4 + 1)];
                o.z += x[j].z * f[order.head<NT>(piece * 4 + 2)], o.w += x[j].w * f[order.head<NT>(piece * 4 + 3)];
            }
        }
        if (mine) sums[team * pieces + piece] = o;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < order.n && teams > 1; i += blockDim.x) {
        float sum = red[i];
        for (int j = 1; j < teams; j++) sum += red[j * order.n + i];
        red[i] = sum; // each thread its own element
    }
    __syncthreads();
}

template <int D, int NT, int T>
__device__ __forceinline__ void merge_blocks(const attend_params &p, const share_space &ss, merge_space &ms, float *red)
{
    const share s = ss.s;
    const int u = s.u / p.n_sub, h0 = s.u % p.n_sub * 8 * NT, n_heads = min(p.group - h0, 8 * NT);
    const int64_t h_first = (int64_t)u * p.group + h0;
    constexpr int words = 8 * NT * D;
    const fragment_order order(n_heads, words);
    if (threadIdx.x == 0) {
        int32_t rows = 0;
        for (int i = 0; i < attend_warps(D, NT, T); i++) rows += ss.touched[i];
        ms.rows = rows;
    }
    // the block's own state, then that of some neighbours' where there are many, then the unit's: red, ms.top, ms.sum, ms.rows
    int32_t n = s.n_parts, stride = 1;
    if (n * order.n > FLAT_WORDS || n > MAX_FLAT)
        while (stride * stride < n) stride++;
    const int32_t near = s.part / stride * stride;
    float own[(words + attend_warps(D, NT, T) * WARP - 1) / (attend_warps(D, NT, T) * WARP)];
#pragma unroll
    for (int i = 0; i < (int)(sizeof own / sizeof *own); i++) {
        const int e = threadIdx.x + i * blockDim.x;
        own[i] = e < order.n ? block_o<D, NT, T>(red, order, e) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < (int)(sizeof own / sizeof *own); i++)
        if ((int)(threadIdx.x + i * blockDim.x) < order.n) red[threadIdx.x + i * blockDim.x] = own[i];
    __syncthreads();
#pragma unroll 1
    for (int level = n == 1 ? 2 : stride == 1 ? 1 : 0; level < 2; level++) {
        const bool is_own = level == 0 || stride == 1;
        const int32_t slot = is_own ? s.slot : slot_of_part(s, near);
        for (int e = threadIdx.x; e < order.n; e += blockDim.x) p.part_o[(int64_t)slot * words + e] = red[e];
        if (threadIdx.x < 16) ((float2 *)p.part_ml)[slot * 16 + threadIdx.x] = make_float2(ms.top[threadIdx.x % (8 * NT)], ms.sum[threadIdx.x % (8 * NT)]);
        if (threadIdx.x == 0) p.part_rows[slot] = ms.rows;
        const int32_t from = level == 0 ? near : 0, step = level == 0 ? 1 : stride;
        const int32_t parts = level == 0 ? min(n - near, stride) : (n + stride - 1) / stride;
        if (!is_last(level == 0 ? p.done_1 + slot_of_part(s, near) : p.done + s.u, (unsigned)parts, ms)) return;
        merge_parts<NT, T == ELEM_Q8 ? 2 : attend_warps(D, NT, T) == 16 ? 4 : 8>(p, s, from, step, parts, order, n_heads, words, red, ms);
    }
    const float v_scale = T != ELEM_F8 ? 1.0f : p.cache.v_scale ? F8_UNIT * p.cache.v_scale[u % p.n_kv_heads] : F8_UNIT;
#pragma unroll 1
    for (int e = threadIdx.x; e < order.n; e += blockDim.x) {
        const int head = order.head<NT>(e);
        if (head >= n_heads) continue;
        finish<D>(p, h_first + head, order.column<D, NT, T>(e), red[e] * v_scale, join_prior(p, h_first + head, ms.top[head], ms.sum[head]));
    }
    finish_heads(p, h_first, n_heads, ms);
    if (threadIdx.x == 0 && h0 == 0) count(p, u, ms.rows);
}

// A unit that reads nothing: what the state held stays.
template <int D> __device__ __forceinline__ void write_empty(const attend_params &p, int u)
{
    for (int i = threadIdx.x; i < p.group * D; i += blockDim.x) {
        const int64_t h = (int64_t)u * p.group + i / D;
        finish<D>(p, h, i % D, 0, p.merge ? with_prior{p.m[h], p.l[h], 0, 1} : with_prior{0, 0, 0, 0});
        if (!p.merge && p.o && i % D == 0) p.m[h] = -CUDART_INF_F, p.l[h] = 0;
    }
    if (threadIdx.x == 0) count(p, u, 0);
}

// ---- the kernel ----

template <int T> __device__ __forceinline__ void set_share(const attend_params &p, share_space &ss, const share &s, const unit_rows &rows)
{
    const int head = s.u / p.n_sub % p.n_kv_heads;
    ss.s = s;
    ss.rows = rows;
    ss.limit = min(rows.n, s.t1 * TILE);
    ss.scale = p.scale * LOG2E * (T != ELEM_F8 ? 1.0f : p.cache.k_scale ? F8_UNIT * p.cache.k_scale[head] : F8_UNIT);
}

// The one share of a block where there are few units; false if they are too many for that. Ends with a barrier.
template <int D, int T> __device__ __forceinline__ bool deal_few(const attend_params &p, int n, share_space &ss, merge_space &ms)
{
    const warp_deal w = deal_in_warp(p, n);
    if (!w.apart) return false;
    if (threadIdx.x == 0) {
        ss.more = w.has_share;
        if (w.has_share) set_share<T>(p, ss, w.s, w.rows);
    }
    for (int e = blockIdx.x; e < n; e += gridDim.x)
        if (w.empty >> e & 1u && e % p.n_sub == 0) write_empty<D>(p, e / p.n_sub);
    __syncthreads();
    return true;
}

// The next share of a block where there are many. The table lies where the warps' states go, so each share makes it anew.
template <int D, int T>
__device__ __forceinline__ void deal_many(const attend_params &p, int n, bool is_first, share_space &ss, merge_space &ms, deal_table &table)
{
    __syncthreads();
    const bool apart = deal_in_block(p, table, n);
    const int32_t total = table.tiles[n];
    if (is_first) {
        for (int e = blockIdx.x; e < n; e += gridDim.x)
            if (table.tiles[e + 1] == table.tiles[e] && e % p.n_sub == 0) write_empty<D>(p, e / p.n_sub);
        if (threadIdx.x == 0) {
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
            set_share<T>(p, ss, s, rows_of(p, u / p.n_sub));
            ss.at = apart ? ss.end : table.tiles[u] + s.t1;
        }
    }
    __syncthreads();
}

template <int D, int NT, int T>
__global__ void __launch_bounds__(attend_warps(D, NT, T) * WARP, 1) attend_kernel_of(const __grid_constant__ attend_params p)
{
    extern __shared__ float red[];
    __shared__ merge_space ms;
    __shared__ share_space ss;
    __shared__ uint2 q[NT * (D / 16) * WARP];
    wait_for_previous();
    let_next_start();
    const int n = p.n_units * p.n_sub;
    const bool few = n <= WARP && deal_few<D, T>(p, n, ss, ms);
    for (bool is_first = true;; is_first = false) {
        if (!few) deal_many<D, T>(p, n, is_first, ss, ms, *(deal_table *)red);
        if (!ss.more) return;
        warp_state<D, NT, T> state;
        state.clear();
        attend_share<D, NT, T>(p, ss, state, q);
        merge_warps<D, NT, T>(state, ms, red);
        merge_blocks<D, NT, T>(p, ss, ms, red);
        if (few) return;
    }
}

template <int D, int T> attend_kernel *instance(int nt)
{
    if (nt == 1) return attend_kernel_of<D, 1, T>;
    if constexpr (D < 256) {
        if (nt == 2) return attend_kernel_of<D, 2, T>;
    }
    return nullptr;
}

template <int T> attend_kernel *instance_of(int d, int nt)
{
    switch (d) {
    case 64: return instance<64, T>(nt);
    case 80: if constexpr (T != ELEM_Q8) return instance<80, T>(nt); else return nullptr;
    case 96: return instance<96, T>(nt);
    case 128: return instance<128, T>(nt);
    case 256: return instance<256, T>(nt);
    default: return nullptr;
    }
}

} // namespace sr

#endif
