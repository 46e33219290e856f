// SPDX-License-Identifier: Apache-2.0
//
// What a choice needs before it reads the sketch, spread over the card: the queries in the basis, the exact logits of the
// near rows, the code of the row that left the window. The next kernel meanwhile asks for its sketch pages.
#include "cuda/sketch_encode.cuh"

namespace sr {

// ---- near rows ----

// Exact logits of near rows: rows `at`, at + STRIDE, ..., one warp a row, three of them under way. Lane i finds the page of the i-th.
struct near_rows {
    static constexpr int STRIDE = CHOOSE_PARTS * NEAR_WARPS;
    const choose_params &p;
    int32_t u, len, n_near, n, at, i, next; // `next` is the row that is loaded next, the i-th of those with a known page
    int32_t found;                          // less n_near: the first far one of those read in any case, which count as near where a second look follows
    uint64_t lane_page;
    row_of_warp k[3];

    __device__ __forceinline__ int32_t row_at(int32_t j) const
    {
        if (j >= n_near) return __ldcg(always_of(p, u) + 1 + found + j);
        return j < p.a.n_sinks ? j : len - p.a.window + j - p.a.n_sinks;
    }

    __device__ __forceinline__ near_rows(const choose_params &p_, int u_, int32_t len_)
        : p(p_), u(u_), len(len_), n_near(min(p_.a.n_sinks + p_.a.window, len_)), n(n_near), at((int)blockIdx.x + CHOOSE_PARTS * ((int)threadIdx.x / WARP)), i(WARP), next(at)
    {
        const int32_t *always = always_of(p, u);
        if (always && hides_always(p)) add_found(always);
        if (at >= STRIDE) n = 0; // the warp that encodes
#pragma unroll
        for (int j = 0; j < 3; j++) load(k[j]);
    }
    // Of rising rows; the kernel before may add one, which is near.
    __device__ __forceinline__ void add_found(const int32_t *always)
    {
        constexpr int ROUNDS = (SR_ALWAYS_ROWS + WARP - 1) / WARP;
        const int lane = threadIdx.x % WARP, most = most_always(p);
        int32_t row[ROUNDS], before = 0, upto = 0;
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) row[i] = lane + i * WARP < most ? __ldcg(always + 1 + lane + i * WARP) : 0;
        const int32_t n_always = min(__ldcg(always), most);
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            const bool is_there = lane + i * WARP < n_always;
            before += __popc(__ballot_sync(~0u, is_there && row[i] < p.a.n_sinks)), upto += __popc(__ballot_sync(~0u, is_there && row[i] < len - p.a.window));
        }
        found = before - n_near;
        n += max(upto - before, 0);
    }
    // The last row is the kernel's before to write.
    __device__ __forceinline__ void load(row_of_warp &to)
    {
        if (next >= n) return;
        if (i == WARP) {
            const int32_t mine = next + (int32_t)(threadIdx.x % WARP) * STRIDE;
            if (mine < n) lane_page = (uint64_t)p.cache.k_page[(size_t)u * p.cache.max_pages + row_at(mine) / SR_PAGE_ROWS];
            i = 0;
        }
        const uint8_t *page = (const uint8_t *)__shfl_sync(~0u, lane_page, i++);
        if (next == n_near - 1) wait_for_previous();
        to.load(p.type, page, row_at(next) % SR_PAGE_ROWS, p.head_dim);
        next += STRIDE;
    }
    // Lane h has the maximum and the sum of head h.
    __device__ __forceinline__ float2 attend(const float *q)
    {
        const int lane = threadIdx.x % WARP;
        const float scale = p.type == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[u % p.n_kv_heads] : 1.0f;
        float2 ml = make_float2(-CUDART_INF_F, 0);
#pragma unroll 1
        for (; at < n; at += STRIDE) {
            float mine = 0;
#pragma unroll 1
            for (int h0 = 0; h0 < p.group; h0 += 4) {
                const float y = __shfl_sync(~0u, dot_four(q + h0 * p.head_dim, k[0], p.head_dim), lane % 4 * 8);
                if (lane / 4 == h0 / 4) mine = y * scale;
            }
            ml = join(ml, make_float2(mine, 1.0f));
            k[0] = k[1], k[1] = k[2];
            load(k[2]);
        }
        return ml;
    }
};

// ---- the kernel ----

// The blocks of a unit meet in memory that is made ready here, once the choice before is over.
static __device__ __forceinline__ void clear_exchange(const choose_params &p, int u)
{
    choose_exchange *x = exchange_of(p, u);
    const int words = CHOOSE_BINS * heads_room(p.group) / 4, i = blockIdx.x * PREPARE_WARPS * WARP + threadIdx.x;
    if (i < words) ((uint4 *)x->sums)[i] = make_uint4(0, 0, 0, 0);
    if (i < CHOOSE_PARTS * 16) x->totals[i / 16][i % 16] = NOT_YET;
    if (i < SR_ALWAYS_ROWS) x->found[i] = -1;
    if (i == 0) x->arrived = 0;
}

static __device__ __forceinline__ void load_queries(const choose_params &p, int u, float *q)
{
    const float factor = p.a.scale * LOG2E;
#pragma unroll 1
    for (int i = threadIdx.x; i < (p.group + 3) / 4 * p.head_dim; i += PREPARE_THREADS) {
        const float4 x = 4 * i < p.group * p.head_dim ? ((const float4 *)(p.a.q + (size_t)u * p.group * p.head_dim))[i] : make_float4(0, 0, 0, 0);
        ((float4 *)q)[i] = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
    }
}

// Row j of the matrix that projects; mu after the last.
static __device__ __forceinline__ void load_row(row_of_warp &row, const struct sketch_basis &basis, int j, int d)
{
    if (j <= d) row.load(j < d ? basis.synthesis + (size_t)j * d : basis.mu, d);
}

// The warp's coordinates of the projected queries, from j on, whose row is there, and the products with mu.
static __device__ __forceinline__ void project(const choose_params &p, const struct sketch_basis &basis, int j, row_of_warp &row, const float *q, choose_query *to)
{
    const int lane = threadIdx.x % WARP, d = p.head_dim;
#pragma unroll 1
    while (j <= d) {
#pragma unroll 1
        for (int h0 = 0; h0 < p.group; h0 += 4) {
            const float z = dot_four(q + h0 * d, row, d);
            const int h = h0 + lane / 8;
            if (lane % 8 == 0 && h < p.group) (j < d ? to->z[h][j] : to->q_mu[h]) = z;
        }
        j += CHOOSE_PARTS * PREPARE_WARPS;
        load_row(row, basis, j, d);
    }
}

// The row that left the window: a warp makes four of its codes, from coordinate j on. Nobody else writes to its page.
struct row_codes {
    uint32_t *page; // NULL: none
    uint32_t before; // the word that they go to
    four_codes codes;
    int32_t j, clipped;

    __device__ __forceinline__ void make(const choose_params &p, const struct sketch_basis &basis, int u, int32_t len, int j_)
    {
        const int row = len - p.a.window - 1;
        page = NULL, j = j_, clipped = 0;
        if (row < p.a.n_sinks || j >= p.a.sketch.rank) return;
        const size_t at = (size_t)u * p.cache.max_pages + row / SR_PAGE_ROWS;
        const float scale = p.type == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[u % p.n_kv_heads] : 1.0f;
        row_of_warp k;
        page = (uint32_t *)p.cache.y_page[at];
        if (p.a.window == 0) wait_for_previous(); // the step's own row
        load_centred(k, p.type, (const uint8_t *)p.cache.k_page[at], row % SR_PAGE_ROWS, p.head_dim, scale, basis.mu);
        codes = encode_four(basis, k, p.head_dim, p.a.sketch.rank, p.a.sketch.bits, row % SR_PAGE_ROWS, j, &clipped);
        before = page[codes.word];
    }
    __device__ __forceinline__ void write(const choose_params &p, int u) const
    {
        if (!page) return;
        if (threadIdx.x % WARP == 0) page[codes.word] = (before & ~codes.mask) | codes.bits;
        count_encoded(p.a.counters ? p.a.counters + u : NULL, j == 0, clipped);
    }
};

// Where the rank is large there are more of them.
static __device__ __forceinline__ void encode_rest(const choose_params &p, const struct sketch_basis &basis, int u, int32_t len, row_codes &codes)
{
#pragma unroll 1
    for (int j = codes.j + 4 * CHOOSE_PARTS; j < p.a.sketch.rank; j += 4 * CHOOSE_PARTS) {
        codes.make(p, basis, u, len, j);
        codes.write(p, u);
    }
}

// What does not come from the kernel before is read before it ends: all but the queries and the newest row of each sequence.
__global__ void __launch_bounds__(PREPARE_THREADS, 4) prepare_kernel(const __grid_constant__ choose_params p)
{
    extern __shared__ __align__(16) float q[]; // [group, up to a multiple of 4][head_dim], times scale and log2 e
    __shared__ float2 near_of[NEAR_WARPS][16];
    const int u = blockIdx.y, w = threadIdx.x / WARP, lane = threadIdx.x % WARP, d = p.head_dim;
    if (!p.a.encodes) wait_for_previous();
    let_next_start();
    const int32_t len = p.cache.kv_len[u / p.n_kv_heads];
    const struct sketch_basis basis = p.a.sketch.basis[u];
    const int j0 = (int)gridDim.x - 1 - (int)blockIdx.x + CHOOSE_PARTS * w; // mu is not for a block that encodes
    row_of_warp row;
    load_row(row, basis, j0, d);
    row_codes codes;
    const bool encodes = p.a.encodes && w == NEAR_WARPS;
    if (encodes) codes.make(p, basis, u, len, 4 * blockIdx.x);
    if (!is_routed(p, u, len)) {
        wait_for_previous();
        if (encodes) codes.write(p, u), encode_rest(p, basis, u, len, codes);
        return;
    }
    near_rows near(p, u, len);
    wait_for_previous();
    if (encodes) codes.write(p, u);
    load_queries(p, u, q);
    if ((int)gridDim.y <= p.w.n_exchanges) clear_exchange(p, u);
    if (p.a.notes && blockIdx.x == 0 && threadIdx.x == 0) weighty_of(p, u)->n = 0;
    __syncthreads();
    project(p, basis, j0, row, q, query_of(p, u));
    const float2 ml = near.attend(q);
    if (encodes) encode_rest(p, basis, u, len, codes);
    if (lane < 16 && w < NEAR_WARPS) near_of[w][lane] = ml;
    __syncthreads();
    if (threadIdx.x < 16) {
        float2 all = near_of[0][threadIdx.x];
#pragma unroll 1
        for (int i = 1; i < NEAR_WARPS; i++) all = join(all, near_of[i][threadIdx.x]);
        query_of(p, u)->near[blockIdx.x][threadIdx.x] = all;
    }
}

size_t sr_prepare_smem(const choose_params &p) { return (size_t)(p.group + 3) / 4 * 4 * (size_t)p.head_dim * sizeof(float); }

} // namespace sr
