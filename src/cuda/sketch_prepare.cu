// SPDX-License-Identifier: Apache-2.0
//
// What a choice needs before it reads the sketch, spread over the card: the queries in the basis, the exact logits of the
// near rows, the code of the row that left the window. The next kernel meanwhile asks for its sketch pages. In the engine q and k
// come as the product leaves them: each block rotates the queries of its unit for itself, and a warp of a unit appends the row.
#include "cuda/sketch_encode.cuh"
#include "cuda/sketch_prepare.cuh"

namespace sr {

// ---- near rows ----

// The logit of a row, of head h by lane h.
template <int T> static __device__ __forceinline__ float logit_of(const choose_params &p, int u, const row_of_warp &k, const float *q)
{
    const int lane = threadIdx.x % WARP;
    const float scale = T == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[u % p.n_kv_heads] : 1.0f;
    float mine = 0;
#pragma unroll 1
    for (int h0 = 0; h0 < p.group; h0 += 4) {
        const float y = __shfl_sync(~0u, dot_four(q + h0 * p.head_dim, k, p.head_dim), lane % 4 * 8);
        if (lane / 4 == h0 / 4) mine = y * scale;
    }
    return mine;
}

// Exact logits of near rows: rows `at`, at + STRIDE, ..., one warp a row, three of them under way. Lane i finds the page of the i-th.
template <int T> struct near_rows {
    static constexpr int STRIDE = CHOOSE_PARTS * NEAR_WARPS;
    const choose_params &p;
    const bool lacks_last; // another warp has the newest row
    int32_t u, len, n_near, n, at, i, next; // `next` is the row that is loaded next, the i-th of those with a known page
    int32_t found;                          // less n_near: the first far one of those read in any case, which count as near where a second look follows
    uint64_t lane_page;                     // of the i-th of them by lane i, and its place there
    int32_t lane_slot;
    row_of_warp k[3];

    __device__ __forceinline__ int32_t row_at(int32_t j) const
    {
        if (j >= n_near) return __ldcg(always_of(p, u) + 1 + found + j);
        return j < p.a.n_sinks ? j : len - p.a.window + j - p.a.n_sinks;
    }

    __device__ __forceinline__ near_rows(const choose_params &p_, int u_, int32_t len_, bool routed, bool lacks_last_)
        : p(p_), lacks_last(lacks_last_), u(u_), len(len_), n_near(min(p_.a.n_sinks + p_.a.window, len_)), n(n_near), at((int)blockIdx.x + CHOOSE_PARTS * ((int)threadIdx.x / WARP)), i(WARP), next(at)
    {
        const int32_t *always = always_of(p, u);
        if (at >= STRIDE || !routed) n = 0; // the warp that encodes
        else if (always && hides_always(p)) add_found(always);
        find_pages();
#pragma unroll
        for (int j = 0; j < 3; j++) load(k[j]);
        ask_for_rest();
    }
    // Rows behind those three are brought to the card's cache, as far as their pages are known.
    __device__ __forceinline__ void ask_for_rest() const
    {
        const int lane = threadIdx.x % WARP;
        const int32_t mine = at + lane * STRIDE;
        if (lane < 3 || mine >= n || mine == n_near - 1) return;
        const int bytes = p.head_dim * (T == ELEM_F16 || T == ELEM_BF16 ? 2 : 1);
        const uint8_t *row = (const uint8_t *)lane_page + lane_slot * bytes;
#pragma unroll 1
        for (int i = 0; i < bytes; i += 64) asm volatile("prefetch.global.L2 [%0];" :: "l"(row + i));
    }
    // Of rising rows; one may be added meanwhile, which is near: their number is read before them.
    __device__ __forceinline__ void add_found(const int32_t *always)
    {
        constexpr int ROUNDS = (SR_ALWAYS_ROWS + WARP - 1) / WARP;
        const int lane = threadIdx.x % WARP, most = most_always(p);
        int32_t row[ROUNDS], before = 0, upto = 0, n_always;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(n_always) : "l"(always) : "memory");
        n_always = min(n_always, most);
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) row[i] = lane + i * WARP < n_always ? __ldcg(always + 1 + lane + i * WARP) : 0;
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            const bool is_there = lane + i * WARP < n_always;
            before += __popc(__ballot_sync(~0u, is_there && row[i] < p.a.n_sinks)), upto += __popc(__ballot_sync(~0u, is_there && row[i] < len - p.a.window));
        }
        found = before - n_near;
        n += max(upto - before, 0);
    }
    // Those of the rows that are loaded next.
    __device__ __forceinline__ void find_pages()
    {
        const int32_t mine = next + (int32_t)(threadIdx.x % WARP) * STRIDE;
        const int32_t row = mine < n ? row_at(mine) : 0;
        lane_page = (uint64_t)p.cache.k_page[(size_t)u * p.cache.max_pages + row / SR_PAGE_ROWS];
        lane_slot = row % SR_PAGE_ROWS;
        i = 0;
    }
    // The last row is the kernel's before to write.
    __device__ __forceinline__ void load(row_of_warp &to)
    {
        if (next >= n) return;
        const uint8_t *page = (const uint8_t *)__shfl_sync(~0u, lane_page, i);
        const int slot = __shfl_sync(~0u, lane_slot, i++);
        const bool is_last = next == n_near - 1;
        if (is_last && !lacks_last) wait_for_previous();
        if (!is_last || !lacks_last) to.load(T, page, slot, p.head_dim);
        next += STRIDE;
    }
    // Lane h has the maximum and the sum of head h.
    __device__ __forceinline__ float2 attend(const float *q)
    {
        float2 ml = make_float2(-CUDART_INF_F, 0);
#pragma unroll 1
        for (; at < n; at += STRIDE) {
            if (!lacks_last || at != n_near - 1) ml = join(ml, make_float2(logit_of<T>(p, u, k[0], q), 1.0f));
            k[0] = k[1], k[1] = k[2];
            if (i == WARP) find_pages();
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

// The same of queries that are still to be rotated, pairs of elements by turns; the unit's first block leaves them as attention wants them.
static __device__ __forceinline__ void turn_queries(const choose_params &p, const turn_params &t, int u, float *q)
{
    const float factor = p.a.scale * LOG2E;
    const int d = p.head_dim, pairs = d / 2, half = t.a.half;
    const int64_t mine = (int64_t)u * p.group * d;
    float *kept = t.a.q_kept ? t.a.q_kept + kept_row(t) * p.n_units * p.group * d + mine : NULL;
#pragma unroll 1
    for (int i = threadIdx.x; i < (p.group + 3) / 4 * 4 * pairs; i += PREPARE_THREADS) {
        const int h = i / pairs, j = i % pairs, at = h * d + (j < half && t.a.neox ? j : 2 * j), next = at + (j < half && t.a.neox ? half : 1);
        float2 y = make_float2(0, 0);
        if (h < p.group) y = make_float2(__ldcg(t.a.q + mine + at), __ldcg(t.a.q + mine + next));
        if (j < half) y = turned(y.x, y.y, t.a.cos[j], t.a.sin[j]);
        q[at] = y.x * factor, q[next] = y.y * factor;
        if (blockIdx.x > 0 || h >= p.group) continue;
        t.a.q_to[mine + at] = y.x, t.a.q_to[mine + next] = y.y;
        if (kept) kept[at] = y.x, kept[next] = y.y;
    }
}

// The step's own row of a unit, in shared memory; by a warp. Its key is stored first, whose logit is wanted.
template <int T> struct own_row {
    alignas(16) float k[MOST_DIM], v[MOST_DIM];
    row_place at;

    // What is there before the kernel before has ended.
    __device__ __forceinline__ void find(const turn_params &t, int u)
    {
        row_place place;
        place.find(t, u);
        if (threadIdx.x % WARP == 0) at = place;
    }
    // Then: asked for, and nothing waits for it.
    __device__ __forceinline__ void ask(const turn_params &t, int u)
    {
        const uint32_t to_k = (uint32_t)__cvta_generic_to_shared(k), to_v = (uint32_t)__cvta_generic_to_shared(v);
        const int64_t mine = (int64_t)u * t.head_dim;
#pragma unroll 1
        for (int i = 4 * (threadIdx.x % WARP); i < t.head_dim; i += 4 * WARP) copy_in(to_k + 4 * i, (uint64_t)(t.a.k + mine + i)), copy_in(to_v + 4 * i, (uint64_t)(t.a.v + mine + i));
        end_group();
    }
    __device__ __forceinline__ void store_key(const turn_params &t, int u)
    {
        const int lane = threadIdx.x % WARP;
        wait_groups<0>();
        __syncwarp();
#pragma unroll 1
        for (int j = lane; j < t.a.half; j += WARP) {
            const int first = t.a.neox ? j : 2 * j, second = t.a.neox ? j + t.a.half : 2 * j + 1;
            const float2 y = turned(k[first], k[second], t.a.cos[j], t.a.sin[j]);
            k[first] = y.x, k[second] = y.y;
        }
        __syncwarp();
        row_place place = at;
        begin_scales(t, place, u, k, v, lane);
        __syncwarp();
        if (lane == 0) at = place;
        store_row(T, t, place.k, place.row, k, place.k_inverse, lane);
        __syncwarp();
    }
    __device__ __forceinline__ void store_rest(const turn_params &t, int u) const
    {
        const int lane = threadIdx.x % WARP;
        store_row(T, t, at.v, at.row, v, at.v_inverse, lane);
        note_head(t, at, u, k, v, lane);
    }
};

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
template <int T> struct row_codes {
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
        const float scale = T == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[u % p.n_kv_heads] : 1.0f;
        row_of_warp k;
        page = (uint32_t *)p.cache.y_page[at];
        if (p.a.window == 0) wait_for_previous(); // the step's own row
        load_centred(k, T, (const uint8_t *)p.cache.k_page[at], row % SR_PAGE_ROWS, p.head_dim, scale, basis.mu);
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

// What does not come from the kernel before is read before it ends: all but q, k and v, or the queries and the newest row of each sequence.
template <int T> __global__ void __launch_bounds__(PREPARE_THREADS, 4) prepare_kernel_of(const __grid_constant__ choose_params p, const __grid_constant__ turn_params t)
{
    extern __shared__ __align__(16) float q[]; // [group, up to a multiple of 4][head_dim], times scale and log2 e
    __shared__ float2 near_of[PREPARE_WARPS][16];
    __shared__ own_row<T> own;
    const int u = blockIdx.y, w = threadIdx.x / WARP, lane = threadIdx.x % WARP, d = p.head_dim;
    if (!p.a.encodes) wait_for_previous();
    let_next_start();
    const int32_t len = p.cache.kv_len[u / p.n_kv_heads];
    const struct sketch_basis basis = p.a.sketch.basis[u];
    const int j0 = (int)gridDim.x - 1 - (int)blockIdx.x + CHOOSE_PARTS * w; // mu is not for a block that encodes
    const bool routed = is_routed(p, u, len), appends = t.a.q && w == NEAR_WARPS && blockIdx.x == CHOOSE_PARTS - 1;
    row_of_warp row;
    if (routed) load_row(row, basis, j0, d);
    if (appends) own.find(t, u);
    if (p.a.encodes && w == NEAR_WARPS)
#pragma unroll 1
        for (int j = 4 * blockIdx.x; j < p.a.sketch.rank; j += 4 * CHOOSE_PARTS) { // one round, mostly
            row_codes<T> codes;
            codes.make(p, basis, u, len, j);
            wait_for_previous();
            codes.write(p, u);
        }
    near_rows<T> near(p, u, len, routed, t.a.q != NULL);
    wait_for_previous();
    if (appends) own.ask(t, u);
    if (t.a.q) turn_queries(p, t, u, q);
    else if (routed) load_queries(p, u, q);
    if (appends) own.store_key(t, u);
    if (routed && (int)gridDim.y <= p.w.n_exchanges) clear_exchange(p, u);
    if (p.a.notes && blockIdx.x == 0 && threadIdx.x == 0) weighty_of(p, u)->n = 0;
    __syncthreads();
    if (routed) project(p, basis, j0, row, q, query_of(p, u));
    float2 ml;
    if (appends) {
        row_of_warp newest;
        newest.load(T, own.at.k, own.at.row % SR_PAGE_ROWS, d);
        ml = make_float2(logit_of<T>(p, u, newest, q), 1.0f);
    } else {
        ml = near.attend(q);
    }
    if (lane < 16) near_of[w][lane] = ml; // none of the last warp's, but for the newest row's
    __syncthreads();
    if (routed && threadIdx.x < 16) {
        float2 all = near_of[0][threadIdx.x];
#pragma unroll 1
        for (int i = 1; i < PREPARE_WARPS; i++) all = join(all, near_of[i][threadIdx.x]);
        query_of(p, u)->near[blockIdx.x][threadIdx.x] = all;
    }
    if (appends) own.store_rest(t, u);
}

prepare_code *sr_prepare_code(int type)
{
    switch (type) {
    case ELEM_BF16: return prepare_kernel_of<ELEM_BF16>;
    case ELEM_F16: return prepare_kernel_of<ELEM_F16>;
    case ELEM_F8: return prepare_kernel_of<ELEM_F8>;
    default: return prepare_kernel_of<ELEM_Q8>;
    }
}

size_t sr_prepare_smem(const choose_params &p) { return (size_t)(p.group + 3) / 4 * 4 * (size_t)p.head_dim * sizeof(float); }

} // namespace sr
