/* SPDX-License-Identifier: Apache-2.0
 *
 * Mixtures of experts. The choice stays on the device: kernels look up which expert a slot (one of a token's choices) is
 * for, so that nothing waits for the host and a step can be recorded.
 *
 * A few tokens: a warp takes a row of gate and the same of up, in f32, then a row of down over all slots of its token;
 * only the bytes of chosen experts are read. Many tokens: slots are sorted by expert; a block takes 64 rows of an
 * expert and all of its slots, 64 at a time, in bf16 with sums in f32, as the prefill's other products. Weights kept in f32
 * stay so, a token at a time.
 */
#include "cuda/device_cuda.h"
#include "cuda/experts_cuda.h"
#include "cuda/planes_cuda.h"

extern "C" {
#include "formats/quant.h"
}

#include <assert.h>
#include <math.h>

enum { WARPS = 8, THREADS = 32 * WARPS, GEMM_MIN_TOKENS = 16, MAX_EXPERTS = 1024, MAX_SHARED = 160 * 1024 };

/* ---- weights ---- */

static sr_status check_experts(const struct weight *w, sr_error *err)
{
    if (sr_expert_block(w->dtype).bytes == 0)
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "CUDA: experts of type %s: want f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_K, q5_K or q6_K", sr_dtype_name(w->dtype));
    if (w->n_in % 32 || w->n_experts > MAX_EXPERTS)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA: %d experts with rows of %lld: want at most %d, and rows of a multiple of 32", w->n_experts,
                       (long long)w->n_in, MAX_EXPERTS);
    return SR_OK;
}

sr_status sr_cuda_experts_prepare(struct backend *b, struct weight *w, sr_error *err)
{
    SR_TRY(check_experts(w, err));
    const size_t each = (size_t)w->n_out * w->row_bytes, all = each * (size_t)w->n_experts;
    struct cuda_weight *p = static_cast<struct cuda_weight *>(sr_alloc_zero(1, sizeof *p));
    if (!p) return sr_fail_memory(err, sizeof *p, "weight");
    const sr_status st = sr_cuda_new(b, &p->block, all, "experts", err);
    if (st != SR_OK) {
        sr_free(p);
        return st;
    }
    uint8_t *to = static_cast<uint8_t *>(p->block);
    if (!w->experts) b->ops->upload(b, to, w->data, all);
    for (int32_t e = 0; w->experts && e < w->n_experts; e++) b->ops->upload(b, to + (size_t)e * each, w->experts[e], each);
    p->planes.codes = to;
    w->packed = p;
    return SR_OK;
}

/* One matrix of all experts. */
struct expert_rows { const uint8_t *data; int64_t n_out, n_in; size_t row_bytes; };

static struct expert_rows rows_of(const struct weight *w) { return {sr_planes_of(w)->codes, w->n_out, w->n_in, w->row_bytes}; }

static __device__ __forceinline__ const uint8_t *row_of(const struct expert_rows &m, int expert, int64_t row)
{
    return m.data + ((size_t)expert * (size_t)m.n_out + (size_t)row) * m.row_bytes;
}

/* ---- scratch ---- */

struct moe_cuda {
    struct moe_shape shape;
    void *block;
    float *gate, *up, *out; /* [slots][n_ff], the same, [slots][n_embd] */
    int32_t *start, *order; /* [n_experts + 1], [slots]: slots by expert */
};

static void layout(struct arena *a, struct moe_cuda *m)
{
    const struct moe_shape *s = &m->shape;
    const size_t slots = (size_t)s->max_n * (size_t)s->n_used;
    m->gate = static_cast<float *>(sr_arena_take(a, slots * (size_t)s->n_ff, sizeof(float)));
    m->up = static_cast<float *>(sr_arena_take(a, slots * (size_t)s->n_ff, sizeof(float)));
    m->out = static_cast<float *>(sr_arena_take(a, slots * (size_t)s->n_embd, sizeof(float)));
    m->start = static_cast<int32_t *>(sr_arena_take(a, (size_t)s->n_experts + 1, sizeof(int32_t)));
    m->order = static_cast<int32_t *>(sr_arena_take(a, slots, sizeof(int32_t)));
}

template <typename T> static T most(T a, T b) { return a > b ? a : b; }

sr_status sr_cuda_moe_reserve(struct backend *b, const struct moe_shape *s, sr_error *err)
{
    struct backend_cuda *c = sr_cuda_of(b);
    if (most((int64_t)s->n_used * s->n_ff, s->n_embd) * (int64_t)sizeof(float) > MAX_SHARED)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA: %d experts of width %lld for a token: want a product of at most %d", s->n_used,
                       (long long)s->n_ff, (int)(MAX_SHARED / sizeof(float)));
    if (!c->moe) {
        c->moe = static_cast<struct moe_cuda *>(sr_alloc_zero(1, sizeof *c->moe));
        if (!c->moe) return sr_fail_memory(err, sizeof *c->moe, "experts");
    }
    struct moe_cuda grown = {};
    const struct moe_shape *have = &c->moe->shape;
    grown.shape = moe_shape{most(have->max_n, s->max_n), most(have->n_used, s->n_used), most(have->n_experts, s->n_experts),
                            most(have->n_embd, s->n_embd), most(have->n_ff, s->n_ff)};
    struct arena before = {NULL, 0}, after = {NULL, 0};
    struct moe_cuda old = *c->moe;
    layout(&before, &old);
    layout(&after, &grown);
    if (c->moe->block && after.used == before.used) return SR_OK;
    SR_TRY(sr_cuda_new(b, &grown.block, after.used, "experts", err));
    after = arena{static_cast<uint8_t *>(grown.block), 0};
    layout(&after, &grown);
    sr_cuda_delete(b, c->moe->block);
    *c->moe = grown;
    b->generation++;
    return SR_OK;
}

void sr_cuda_moe_fini(struct backend_cuda *c)
{
    if (!c->moe) return;
    sr_cuda_delete(&c->base, c->moe->block);
    sr_free(c->moe);
    c->moe = NULL;
}

/* ---- the choice ---- */

struct ranked { float rank; int id; };

static __device__ __forceinline__ bool is_before(const ranked &a, const ranked &b) { return a.rank > b.rank || (a.rank == b.rank && a.id < b.id); }

/* One warp a token: each choice is the first in order behind the one before it. Weights as topk_scalar.c has them. */
static __global__ void topk_kernel(const __grid_constant__ struct topk_args a)
{
    sr_grid_begin();
    const int lane = threadIdx.x;
    const float *logits = a.logits + (int64_t)blockIdx.x * a.n_experts;
    int32_t *ids = a.ids + (int64_t)blockIdx.x * a.n_used;
    float *weight = a.weight + (int64_t)blockIdx.x * a.n_used;
    ranked last = {INFINITY, -1};
    for (int j = 0; j < a.n_used; j++) {
        ranked best = {-INFINITY, a.n_experts};
        for (int i = lane; i < a.n_experts; i += 32) {
            const ranked x = {logits[i] == logits[i] ? logits[i] : -INFINITY, i};
            if (is_before(last, x) && is_before(x, best)) best = x;
        }
#pragma unroll
        for (int k = 16; k > 0; k >>= 1) {
            const ranked x = {__shfl_xor_sync(0xffffffffu, best.rank, k), __shfl_xor_sync(0xffffffffu, best.id, k)};
            if (is_before(x, best)) best = x;
        }
        if (lane == 0) ids[j] = best.id;
        last = best;
    }
    if (lane != 0) return;
    const double top = logits[ids[0]];
    double sum = 0;
    for (int j = 0; j < a.n_used; j++) weight[j] = (float)exp((double)logits[ids[j]] - top);
    for (int j = 0; a.normalize && j < a.n_used; j++) sum += (double)weight[j];
    for (int i = 0; !a.normalize && i < a.n_experts; i++) sum += exp((double)logits[i] - top);
    for (int j = 0; j < a.n_used; j++) weight[j] = (float)((double)weight[j] / sum);
}

void sr_cuda_topk(struct backend *b, const struct topk_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    sr_cuda_launch(c, "choice of experts", topk_kernel, dim3((unsigned)a->n), dim3(32), 0, *a);
}

/* ---- a few tokens ---- */

static __device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

static __device__ __forceinline__ float silu_mul(float g, float u) { return g / (1.0f + expf(-g)) * u; }

struct few_params {
    struct expert_rows gate, up, down;
    const float *x, *weight;
    const int32_t *ids;
    float *h, *y; /* [slots][n_ff], [n][n_embd] */
    int32_t n_used;
};

/* Element e of group g at [e][g], so that lanes of neighbouring groups read neighbouring words. */
static __device__ __forceinline__ void turn(float *to, const float *from, int64_t n_in, int64_t groups)
{
    for (int64_t i = threadIdx.x; i < n_in; i += THREADS) to[i % 32 * groups + i / 32] = from[i];
}

static __device__ __forceinline__ float dot32(const float (&w)[32], const float *x, int64_t groups)
{
    float s = 0;
#pragma unroll
    for (int e = 0; e < 32; e++) s = fmaf(w[e], x[e * groups], s);
    return s;
}

/* h = silu(gate x) * up x: block (rows, slot of a token, token). */
template <int GATE, int UP>
static __global__ void __launch_bounds__(THREADS) few_up_kernel(const __grid_constant__ struct few_params p)
{
    extern __shared__ float x[];
    sr_grid_begin();
    const int64_t groups = p.gate.n_in / 32, slot = (int64_t)blockIdx.z * p.n_used + blockIdx.y, row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int expert = p.ids[slot], lane = threadIdx.x % 32;
    turn(x, p.x + blockIdx.z * p.gate.n_in, p.gate.n_in, groups);
    __syncthreads();
    if (row >= p.gate.n_out) return;
    const uint8_t *gate = row_of(p.gate, expert, row), *up = row_of(p.up, expert, row);
    float g = 0, u = 0;
    for (int64_t at = lane; at < groups; at += 32) {
        float v[32];
        read_group<GATE>(gate, at, v);
        g += dot32(v, x + at, groups);
        read_group<UP>(up, at, v);
        u += dot32(v, x + at, groups);
    }
    g = warp_sum(g);
    u = warp_sum(u);
    if (lane == 0) p.h[slot * p.gate.n_out + row] = silu_mul(g, u);
}

/* y = sum over slots of weight * down h: block (rows, token). A lane takes groups of all slots, in order. */
template <int DOWN>
static __global__ void __launch_bounds__(THREADS) few_down_kernel(const __grid_constant__ struct few_params p)
{
    extern __shared__ float h[];
    sr_grid_begin();
    const int64_t n_in = p.down.n_in, groups = n_in / 32, token = blockIdx.y, row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int32_t *ids = p.ids + token * p.n_used;
    const int lane = threadIdx.x % 32;
    for (int j = 0; j < p.n_used; j++) turn(h + j * n_in, p.h + (token * p.n_used + j) * n_in, n_in, groups);
    __syncthreads();
    if (row >= p.down.n_out) return;
    float y = 0;
    for (int64_t at = lane; at < groups * p.n_used; at += 32) {
        const int64_t j = at / groups, g = at % groups;
        float v[32];
        read_group<DOWN>(row_of(p.down, ids[j], row), g, v);
        y = fmaf(p.weight[token * p.n_used + j], dot32(v, h + j * n_in + g, groups), y);
    }
    y = warp_sum(y);
    if (lane == 0) p.y[token * p.down.n_out + row] = y;
}

/* ---- many tokens ---- */

/* slots[start[e] .. start[e + 1]) of `order` are expert e's, rising. One block, one thread an expert. */
static __global__ void sort_kernel(const int32_t *ids, int32_t n_slots, int32_t n_experts, int32_t *start, int32_t *order)
{
    __shared__ int32_t counts[MAX_EXPERTS];
    sr_grid_begin();
    const int e = threadIdx.x;
    int32_t n = 0, at = 0;
    for (int32_t i = 0; i < n_slots; i++) n += ids[i] == e;
    counts[e] = n;
    __syncthreads();
    for (int i = 0; i < e; i++) at += counts[i];
    if (e < n_experts) start[e] = at;
    if (e == n_experts - 1) start[n_experts] = at + n;
    for (int32_t i = 0; i < n_slots; i++)
        if (ids[i] == e) order[at++] = i;
}

enum { TILE = 64, TILE_THREADS = 128, STRIDE = TILE + 8 };

struct many_params {
    struct expert_rows w;
    const float *x;         /* row slot / per_row of n_in */
    const int32_t *start, *order;
    float *y;               /* [slots][n_out] */
    int32_t per_row;
};

static __device__ __forceinline__ void put_bf16(__nv_bfloat16 *to, const float (&v)[32])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __nv_bfloat162 p[4];
#pragma unroll
        for (int k = 0; k < 4; k++) p[k] = __floats2bfloat162_rn(v[8 * i + 2 * k], v[8 * i + 2 * k + 1]);
        *reinterpret_cast<uint4 *>(to + 8 * i) = *reinterpret_cast<const uint4 *>(p);
    }
}

static __device__ __forceinline__ void load4(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(p)) : "memory");
}

static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* One step of 64 elements: a warp's 16 rows times 64 slots. */
static __device__ __forceinline__ void multiply(float (&acc)[8][4], const __nv_bfloat16 (*w)[STRIDE], const __nv_bfloat16 (*x)[STRIDE], int lane)
{
    const int row = threadIdx.x / 32 * 16;
#pragma unroll
    for (int k = 0; k < TILE; k += 16) {
        uint32_t a[4];
        load4(a, &w[row + lane % 16][k + lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
            uint32_t b[4];
            load4(b, &x[(n + lane / 16) * 8 + lane % 8][k + lane / 8 % 2 * 8]);
            mma(acc[n], a, b[0], b[1]);
            mma(acc[n + 1], a, b[2], b[3]);
        }
    }
}

/* Block (rows, expert). A thread brings 32 elements of a row of weights and of a slot's row each step. */
template <int TYPE>
static __global__ void __launch_bounds__(TILE_THREADS) many_kernel(const __grid_constant__ struct many_params p)
{
    __shared__ __align__(16) __nv_bfloat16 w[TILE][STRIDE], x[TILE][STRIDE];
    sr_grid_begin();
    const int32_t begin = p.start[blockIdx.y], end = p.start[blockIdx.y + 1];
    const int lane = threadIdx.x % 32, mine = threadIdx.x / 2, half = threadIdx.x % 2;
    const int64_t row = (int64_t)blockIdx.x * TILE, groups = p.w.n_in / 32;
    const uint8_t *from = row_of(p.w, (int)blockIdx.y, row + mine < p.w.n_out ? row + mine : row);
    for (int32_t s = begin; s < end; s += TILE) {
        const int32_t slot = s + mine < end ? p.order[s + mine] : -1;
        const float *in = p.x + (int64_t)(slot < 0 ? 0 : slot / p.per_row) * p.w.n_in;
        float acc[8][4] = {};
        for (int64_t g = half; g < groups + half; g += 2) {
            float v[32] = {};
            if (g < groups) read_group<TYPE>(from, g, v);
            put_bf16(&w[mine][32 * half], v);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const bool there = slot >= 0 && g < groups;
                *reinterpret_cast<float4 *>(v + 4 * i) = there ? reinterpret_cast<const float4 *>(in + 32 * g)[i] : make_float4(0, 0, 0, 0);
            }
            put_bf16(&x[mine][32 * half], v);
            __syncthreads();
            multiply(acc, w, x, lane);
            __syncthreads();
        }
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int32_t at = s + n * 8 + lane % 4 * 2 + (i & 1);
                const int64_t r = row + threadIdx.x / 32 * 16 + lane / 4 + (i >> 1) * 8;
                if (at < end && r < p.w.n_out) p.y[p.order[at] * p.w.n_out + r] = acc[n][i];
            }
        }
    }
}

static __global__ void silu_kernel(float *gate, const float *up, int64_t n)
{
    sr_grid_begin();
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) gate[i] = silu_mul(gate[i], up[i]);
}

static __global__ void combine_kernel(const float *out, const float *weight, float *y, int64_t d, int32_t n_used)
{
    sr_grid_begin();
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, t = blockIdx.y;
    float sum = 0;
    if (i >= d) return;
    for (int j = 0; j < n_used; j++) sum = fmaf(weight[t * n_used + j], out[(t * n_used + j) * d + i], sum);
    y[t * d + i] = sum;
}

/* ---- launching ---- */

#define TYPES(OF)                                                                                                                     \
    OF(SR_DTYPE_F32) OF(SR_DTYPE_F16) OF(SR_DTYPE_BF16) OF(SR_DTYPE_Q8_0) OF(SR_DTYPE_Q4_0) OF(SR_DTYPE_Q4_1) OF(SR_DTYPE_Q5_0)        \
    OF(SR_DTYPE_Q5_1) OF(SR_DTYPE_Q4_K) OF(SR_DTYPE_Q5_K) OF(SR_DTYPE_Q6_K)

typedef void few_kernel(struct few_params);
typedef void many_kernel_fn(struct many_params);

/* weight_prepare has refused other types. */
static few_kernel *up_kernel_of(sr_dtype type)
{
#define CASE(t) case t: return few_up_kernel<t, t>;
    switch (type) { TYPES(CASE) default: return NULL; }
#undef CASE
}
static few_kernel *down_kernel_of(sr_dtype type)
{
#define CASE(t) case t: return few_down_kernel<t>;
    switch (type) { TYPES(CASE) default: return NULL; }
#undef CASE
}
static many_kernel_fn *many_kernel_of(sr_dtype type)
{
#define CASE(t) case t: return many_kernel<t>;
    switch (type) { TYPES(CASE) default: return NULL; }
#undef CASE
}

static unsigned blocks_of(int64_t n, int64_t each) { return (unsigned)((n + each - 1) / each); }

static void launch_few(struct backend_cuda *c, const char *what, few_kernel *k, dim3 grid, size_t shared, const struct few_params &p)
{
    if (shared > 48 * 1024) sr_cuda_note(c, cudaFuncSetAttribute((const void *)k, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), what);
    sr_cuda_launch(c, what, k, grid, dim3(THREADS), shared, p);
}

static void few(struct backend_cuda *c, const struct moe_args *a)
{
    const int64_t d = a->gate->n_in, ff = a->gate->n_out;
    const struct few_params p = {rows_of(a->gate), rows_of(a->up), rows_of(a->down), a->x, a->weight, a->ids, c->moe->gate, a->y, a->n_used};
    launch_few(c, "experts", up_kernel_of(a->gate->dtype), dim3(blocks_of(ff, WARPS), (unsigned)a->n_used, (unsigned)a->n),
               (size_t)d * sizeof(float), p);
    launch_few(c, "experts", down_kernel_of(a->down->dtype), dim3(blocks_of(d, WARPS), (unsigned)a->n), (size_t)(a->n_used * ff) * sizeof(float), p);
}

static void product_of_slots(struct backend_cuda *c, const struct weight *w, const float *x, int32_t per_row, float *y)
{
    const struct many_params p = {rows_of(w), x, c->moe->start, c->moe->order, y, per_row};
    sr_cuda_launch(c, "experts", many_kernel_of(w->dtype), dim3(blocks_of(w->n_out, TILE), (unsigned)w->n_experts), dim3(TILE_THREADS), 0, p);
}

static void many(struct backend_cuda *c, const struct moe_args *a)
{
    struct moe_cuda *m = c->moe;
    const int32_t n_slots = a->n * a->n_used, n_experts = a->gate->n_experts;
    const int64_t d = a->gate->n_in, elems = n_slots * a->gate->n_out;
    sr_cuda_launch(c, "experts", sort_kernel, dim3(1), dim3((unsigned)(n_experts + 31) / 32 * 32), 0, a->ids, n_slots, n_experts, m->start, m->order);
    product_of_slots(c, a->gate, a->x, a->n_used, m->gate);
    product_of_slots(c, a->up, a->x, a->n_used, m->up);
    sr_cuda_launch(c, "experts", silu_kernel, dim3(blocks_of(elems, THREADS)), dim3(THREADS), 0, m->gate, m->up, elems);
    product_of_slots(c, a->down, m->gate, 1, m->out);
    sr_cuda_launch(c, "experts", combine_kernel, dim3(blocks_of(d, THREADS), (unsigned)a->n), dim3(THREADS), 0, m->out, a->weight, a->y, d, a->n_used);
}

void sr_cuda_moe(struct backend *b, const struct moe_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const bool same = a->gate->dtype == a->up->dtype; /* few's first kernel reads both at once */
    assert(c->moe && a->n <= c->moe->shape.max_n && a->n_used <= c->moe->shape.n_used);
    if (same && (a->n < GEMM_MIN_TOKENS || a->gate->dtype == SR_DTYPE_F32)) few(c, a);
    else many(c, a);
}
