/* SPDX-License-Identifier: Apache-2.0
 *
 * norm, rope, silu_mul and add on the device. A row is normed by one block, whose threads add in a fixed order. The
 * angles of the rotary embedding are computed in double once per (spec, positions) and kept, since every layer of a
 * pass asks for the same ones.
 */
#include "cuda/device_cuda.h"
#include "cuda/rope_turn.h"

#include <assert.h>
#include <cuda_bf16.h>
#include <initializer_list>
#include <string.h>

/* ---- norm ---- */

/* Sum over the block, in every thread. */
static __device__ float block_sum(float x)
{
    __shared__ float part[32];
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : 0.0f;
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* V floats that lie together, aligned so. */
template <int V> struct __align__(4 * V) several { float at[V]; };

template <int V> static __device__ __forceinline__ several<V> load(const float *p) { return *reinterpret_cast<const several<V> *>(p); }
template <int V> static __device__ __forceinline__ void store(float *p, const several<V> &x) { *reinterpret_cast<several<V> *>(p) = x; }

/* As bf16 too, where a product of many tokens comes next. */
template <int V> static __device__ __forceinline__ void store_rounded(__nv_bfloat16 *p, const several<V> &x)
{
    struct __align__(2 * V) { __nv_bfloat16 at[V]; } y;
#pragma unroll
    for (int i = 0; i < V; i++) y.at[i] = __float2bfloat16_rn(x.at[i]);
    *reinterpret_cast<decltype(y) *>(p) = y;
}

static bool is_aligned(std::initializer_list<const void *> pointers, int64_t elems)
{
    uintptr_t all = (uintptr_t)elems * sizeof(float);
    for (const void *p : pointers) all |= (uintptr_t)p;
    return all % 16 == 0;
}

struct norm_params { const float *x, *add, *w; float *sum, *y; __nv_bfloat16 *rounded; int64_t d; float eps; };

template <int V> static __device__ __forceinline__ several<V> norm_input(const struct norm_params &p, int64_t at)
{
    several<V> x = load<V>(p.x + at);
    if (!p.add) return x;
    const several<V> add = load<V>(p.add + at);
#pragma unroll
    for (int j = 0; j < V; j++) x.at[j] += add.at[j];
    store<V>(p.sum + at, x);
    return x;
}

template <int V>
static __device__ __forceinline__ void norm_output(const struct norm_params &p, int64_t row, int64_t i, several<V> x, float scale)
{
    const several<V> w = load<V>(p.w + i);
#pragma unroll
    for (int j = 0; j < V; j++) x.at[j] = x.at[j] * scale * w.at[j];
    store<V>(p.y + row + i, x);
    if (p.rounded) store_rounded<V>(p.rounded + row + i, x);
}

/* y = norm(x + add) * w; x + add is stored to `sum`. Without `add`, of x alone. */
template <int V> static __global__ void norm_kernel(const __grid_constant__ struct norm_params p)
{
    enum { HELD = 2 }; /* what a thread keeps; the rest of a long row is read again, by the thread that wrote it */
    const int64_t row = blockIdx.x * p.d, first = threadIdx.x * V, step = blockDim.x * V;
    float squares = 0.0f;
    several<V> held[HELD];
    sr_grid_begin();
#pragma unroll
    for (int k = 0; k < HELD; k++)
        if (first + k * step < p.d) held[k] = norm_input<V>(p, row + first + k * step);
#pragma unroll
    for (int k = 0; k < HELD; k++)
#pragma unroll
        for (int j = 0; j < V; j++)
            if (first + k * step < p.d) squares += held[k].at[j] * held[k].at[j];
    for (int64_t i = first + HELD * step; i < p.d; i += step) {
        const several<V> x = norm_input<V>(p, row + i);
        for (int j = 0; j < V; j++) squares += x.at[j] * x.at[j];
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / (float)p.d + p.eps);
#pragma unroll
    for (int k = 0; k < HELD; k++)
        if (first + k * step < p.d) norm_output<V>(p, row, first + k * step, held[k], scale);
    for (int64_t i = first + HELD * step; i < p.d; i += step) norm_output<V>(p, row, i, load<V>((p.add ? p.sum : p.x) + row + i), scale);
}

static void launch_norm(struct backend_cuda *c, const struct norm_params *p, int64_t rows)
{
    const bool by_four = is_aligned({p->x, p->add, p->w, p->sum, p->y}, p->d);
    const int64_t want = (p->d / (by_four ? 8 : 2) + 31) / 32 * 32;
    const unsigned threads = want < 32 ? 32 : want > 1024 ? 1024 : (unsigned)want;
    sr_cuda_launch(c, "norm", by_four ? norm_kernel<4> : norm_kernel<1>, dim3((unsigned)rows), dim3(threads), 0, *p);
}

void sr_cuda_norm_now(struct backend_cuda *c, const struct norm_args *a)
{
    const struct norm_params p = {a->x, NULL, a->w, NULL, a->y, a->heads == 1 ? sr_cuda_round_beside(c, a->y, a->n, a->d) : NULL, a->d, a->eps};
    launch_norm(c, &p, (int64_t)a->n * a->heads);
}

void sr_cuda_add_norm_now(struct backend_cuda *c, const struct add_args *a, const struct norm_args *n)
{
    const struct norm_params p = {a->x, a->y, n->w, a->x, n->y, sr_cuda_round_beside(c, n->y, n->n, n->d), n->d, n->eps};
    launch_norm(c, &p, n->n);
}

/* ---- silu_mul, add ---- */

struct silu_params { const float *gate, *up; float *h; __nv_bfloat16 *rounded; int64_t n; };

template <int V> static __global__ void silu_kernel(const __grid_constant__ struct silu_params p)
{
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    sr_grid_begin();
    if (i >= p.n) return;
    several<V> x = load<V>(p.gate + i);
    const several<V> up = load<V>(p.up + i);
#pragma unroll
    for (int j = 0; j < V; j++) x.at[j] = x.at[j] / (1.0f + expf(-x.at[j])) * up.at[j];
    store<V>(p.h + i, x);
    if (p.rounded) store_rounded<V>(p.rounded + i, x);
}

static __global__ void add_kernel(float *x, const float *y, int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    sr_grid_begin();
    if (i < n) x[i] += y[i];
}

static dim3 blocks_for(int64_t n) { return dim3((unsigned)((n + SR_CUDA_THREADS - 1) / SR_CUDA_THREADS)); }

void sr_cuda_silu_now(struct backend_cuda *c, const struct silu_mul_args *a)
{
    const struct silu_params p = {a->gate, a->up, a->h, sr_cuda_round_beside(c, a->h, a->n, a->d), a->d * a->n};
    const bool by_four = is_aligned({a->gate, a->up, a->h}, p.n);
    sr_cuda_launch(c, "silu_mul", by_four ? silu_kernel<4> : silu_kernel<1>, blocks_for(by_four ? p.n / 4 : p.n), dim3(SR_CUDA_THREADS), 0, p);
}

void sr_cuda_add(struct backend *b, const struct add_args *a)
{
    const int64_t n = a->d * a->n;
    sr_cuda_launch(sr_cuda_of(b), "add", add_kernel, blocks_for(n), dim3(SR_CUDA_THREADS), 0, a->x, a->y, n);
}

/* ---- rope ---- */

enum { MAX_HALF = 128 };

struct rope_cuda {
    struct rope_spec spec;  /* of the angles present */
    float *cos, *sin;       /* [max_n][half] */
    int32_t max_n, n;       /* room; angles present (0: none) of positions pos0 + *pos .. */
    int64_t pos0;
    const int32_t *pos;
    int32_t n_each;         /* or of these, pos0 + *each[i]; n is 0 then */
    const int32_t *each[SR_STEP_SEQS];
    uint64_t recording;     /* what was computed in a recording holds in it alone; 0 outside */
};

struct angle_params { struct rope_spec spec; int64_t pos0; const int32_t *pos; float *cos, *sin; };

static __global__ void angle_kernel(const __grid_constant__ struct angle_params p)
{
    const int i = (int)threadIdx.x, half = p.spec.n_dims / 2;
    const int64_t at = blockIdx.x;
    sr_grid_begin();
    if (i >= half) return;
    double s, c;
    sincos((double)(p.pos0 + at + (p.pos ? *p.pos : 0)) * p.spec.inv_freq[i], &s, &c);
    p.cos[at * half + i] = (float)(c * p.spec.magnitude);
    p.sin[at * half + i] = (float)(s * p.spec.magnitude);
}

struct each_angle_params { struct rope_spec spec; int64_t pos0; const int32_t *pos[SR_STEP_SEQS]; float *cos, *sin; };

/* The same of positions that lie apart. */
static __global__ void each_angle_kernel(const __grid_constant__ struct each_angle_params p)
{
    const int i = (int)threadIdx.x, half = p.spec.n_dims / 2, at = (int)blockIdx.x;
    sr_grid_begin();
    if (i >= half) return;
    double s, c;
    sincos((double)(p.pos0 + *p.pos[at]) * p.spec.inv_freq[i], &s, &c);
    p.cos[at * half + i] = (float)(c * p.spec.magnitude);
    p.sin[at * half + i] = (float)(s * p.spec.magnitude);
}

struct rope_params { float *x[2]; int64_t stride[2]; int heads[2], head_dim, half, neox; const float *cos, *sin; };

enum { ROPE_THREADS = 128, ROPE_HEADS = 4 /* of a thread, at most */ };

/* V pairs of a few heads a thread: all are read before the first is written. */
template <int V> static __global__ void __launch_bounds__(ROPE_THREADS) rope_kernel(const __grid_constant__ struct rope_params p)
{
    const int lanes = p.half / V, at_once = ROPE_THREADS / lanes, i = threadIdx.x % lanes * V, n = p.heads[0] + p.heads[1];
    const int64_t t = blockIdx.x;
    several<V> a[ROPE_HEADS], b[ROPE_HEADS];
    float *first[ROPE_HEADS];
    sr_grid_begin();
    if ((int)threadIdx.x >= lanes * at_once) return;
    const several<V> c = load<V>(p.cos + t * p.half + i), s = load<V>(p.sin + t * p.half + i);
#pragma unroll
    for (int k = 0; k < ROPE_HEADS; k++) {
        const int h = (int)(blockIdx.y + k * gridDim.y) * at_once + threadIdx.x / lanes, second = h >= p.heads[0];
        first[k] = h < n ? p.x[second] + t * p.stride[second] + (int64_t)(second ? h - p.heads[0] : h) * p.head_dim : NULL;
        if (!first[k]) continue;
        if (p.neox) {
            a[k] = load<V>(first[k] + i), b[k] = load<V>(first[k] + i + p.half);
        } else {
            const several<2 * V> both = load<2 * V>(first[k] + 2 * i);
#pragma unroll
            for (int j = 0; j < V; j++) a[k].at[j] = both.at[2 * j], b[k].at[j] = both.at[2 * j + 1];
        }
    }
#pragma unroll
    for (int k = 0; k < ROPE_HEADS; k++) {
        if (!first[k]) continue;
        several<V> y, z;
#pragma unroll
        for (int j = 0; j < V; j++) {
            y.at[j] = a[k].at[j] * c.at[j] - b[k].at[j] * s.at[j];
            z.at[j] = a[k].at[j] * s.at[j] + b[k].at[j] * c.at[j];
        }
        if (p.neox) {
            store<V>(first[k] + i, y), store<V>(first[k] + i + p.half, z);
        } else {
            several<2 * V> both;
#pragma unroll
            for (int j = 0; j < V; j++) both.at[2 * j] = y.at[j], both.at[2 * j + 1] = z.at[j];
            store<2 * V>(first[k] + 2 * i, both);
        }
    }
}

static void launch_rope(struct backend_cuda *c, const struct rope_params *p, int32_t n)
{
    const bool by_two = p->half % 2 == 0 && is_aligned({p->x[0], p->x[1]}, p->stride[0] | p->stride[1] | p->head_dim);
    const int heads = p->heads[0] + p->heads[1], at_once = ROPE_THREADS / (by_two ? p->half / 2 : p->half), groups = (heads + at_once - 1) / at_once;
    const dim3 grid((unsigned)n, (unsigned)((groups + ROPE_HEADS - 1) / ROPE_HEADS));
    sr_cuda_launch(c, "rope", by_two ? rope_kernel<2> : rope_kernel<1>, grid, dim3(ROPE_THREADS), 0, *p);
}

static bool same_spec(const struct rope_spec *a, const struct rope_spec *b)
{
    return a->kind == b->kind && a->n_dims == b->n_dims && a->magnitude == b->magnitude &&
           memcmp(a->inv_freq, b->inv_freq, (size_t)(a->n_dims / 2) * sizeof(double)) == 0;
}

/* The row of its angles, or negative: they are not there. */
static int32_t angles_at(const struct backend_cuda *c, const struct rope_args *a)
{
    const struct rope_cuda *r = c->rope;
    const uint64_t recording = c->recording ? c->recordings : 0;
    const bool same = same_spec(&r->spec, a->spec), is_constant = !a->pos || c->recording;
    if (!same || !is_constant || r->pos0 != a->pos0 || r->recording != recording) return -1;
    for (int32_t i = 0; i < r->n_each && a->n == 1; i++)
        if (r->each[i] == a->pos) return i;
    return r->n >= a->n && r->pos == a->pos ? 0 : -1;
}

bool sr_cuda_rope_has_angles(const struct backend_cuda *c, const struct rope_args *a) { return angles_at(c, a) >= 0; }

/* What is there from now on is of this spec and these positions. */
static void begin_angles(struct backend_cuda *c, const struct rope_args *a, int32_t n, int32_t n_each)
{
    struct rope_cuda *r = c->rope;
    r->spec = *a->spec;
    r->pos0 = a->pos0;
    r->pos = a->pos;
    r->n = n;
    r->n_each = n_each;
    r->recording = c->recording ? c->recordings : 0;
}

static int32_t find_angles(struct backend_cuda *c, const struct rope_args *a)
{
    const struct rope_cuda *r = c->rope;
    const int32_t at = angles_at(c, a);
    if (at >= 0) return at;
    begin_angles(c, a, a->n, 0);
    const struct angle_params p = {*a->spec, a->pos0, a->pos, r->cos, r->sin};
    sr_cuda_launch(c, "angles", angle_kernel, dim3((unsigned)a->n), dim3(MAX_HALF), 0, p);
    return 0;
}

bool sr_cuda_rope_angles_each(struct backend_cuda *c, const struct rope_args *a, int32_t n, const float **cos, const float **sin)
{
    struct rope_cuda *r = c->rope;
    bool are_there = r->n_each == n;
    assert(n <= r->max_n && n <= SR_STEP_SEQS && a->spec->n_dims <= 2 * MAX_HALF);
    for (int32_t i = 0; i < n && are_there; i++) are_there = angles_at(c, &a[i]) == i;
    *cos = r->cos;
    *sin = r->sin;
    if (are_there) return true;
    begin_angles(c, a, 0, n);
    struct each_angle_params p = {*a->spec, a->pos0, {}, r->cos, r->sin};
    for (int32_t i = 0; i < n; i++) p.pos[i] = r->each[i] = a[i].pos;
    sr_cuda_launch(c, "angles", each_angle_kernel, dim3((unsigned)n), dim3(MAX_HALF), 0, p);
    return false;
}

void sr_cuda_rope_angles(struct backend_cuda *c, const struct rope_args *a, const float **cos, const float **sin)
{
    assert(a->n <= c->rope->max_n && a->spec->n_dims <= 2 * MAX_HALF);
    const int64_t at = (int64_t)find_angles(c, a) * (a->spec->n_dims / 2);
    *cos = c->rope->cos + at;
    *sin = c->rope->sin + at;
}

void sr_cuda_rope_now(struct backend_cuda *c, const struct rope_args *a)
{
    const float *cos, *sin;
    sr_cuda_rope_angles(c, a, &cos, &sin);
    const int half = a->spec->n_dims / 2;
    const struct rope_params p = {{a->x, a->x2}, {a->stride, a->stride2}, {a->heads, a->x2 ? a->heads2 : 0}, a->head_dim, half,
                                  a->spec->kind == ROPE_NEOX, cos, sin};
    launch_rope(c, &p, a->n);
}

sr_status sr_cuda_rope_reserve(struct backend_cuda *c, int32_t max_n, sr_error *err)
{
    if (!c->rope) {
        c->rope = static_cast<struct rope_cuda *>(sr_alloc_zero(1, sizeof *c->rope));
        if (!c->rope) return sr_fail_memory(err, sizeof *c->rope, "rotary angles");
    }
    struct rope_cuda *r = c->rope;
    if (max_n <= r->max_n) return SR_OK;
    const size_t bytes = (size_t)max_n * MAX_HALF * sizeof(float);
    float *block;
    SR_TRY(sr_cuda_new(&c->base, (void **)&block, 2 * bytes, "rotary angles", err));
    sr_cuda_delete(&c->base, r->cos);
    r->cos = block;
    r->sin = block + (size_t)max_n * MAX_HALF;
    r->max_n = max_n;
    r->n = r->n_each = 0;
    c->base.generation++;
    return SR_OK;
}

void sr_cuda_rope_fini(struct backend_cuda *c)
{
    if (!c->rope) return;
    sr_cuda_delete(&c->base, c->rope->cos);
    sr_free(c->rope);
    c->rope = NULL;
}
