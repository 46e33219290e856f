/* SPDX-License-Identifier: Apache-2.0
 *
 * norm, rope, silu_mul and add on the device. A row is normed by one block, whose threads add in a fixed order. The
 * angles of the rotary embedding are computed in double once per (spec, positions) and kept, since every layer of a
 * pass asks for the same ones.
 */
#include "cuda/device_cuda.h"

#include <assert.h>
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

struct norm_params { const float *x, *add, *w; float *sum, *y; int64_t d; float eps; };

/* y = norm(x + add) * w; x + add is stored to `sum`. Without `add`, of x alone. */
static __global__ void norm_kernel(const struct norm_params p)
{
    const int64_t row = blockIdx.x * p.d;
    float squares = 0.0f;
    sr_grid_begin();
    for (int64_t i = threadIdx.x; i < p.d; i += blockDim.x) {
        float x = p.x[row + i];
        if (p.add) p.sum[row + i] = x += p.add[row + i];
        squares += x * x;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / (float)p.d + p.eps);
    const float *from = p.add ? p.sum : p.x; /* each thread reads what it wrote */
    for (int64_t i = threadIdx.x; i < p.d; i += blockDim.x) p.y[row + i] = from[row + i] * scale * p.w[i];
}

static void launch_norm(struct backend_cuda *c, const struct norm_params *p, int64_t rows)
{
    const int64_t want = (p->d / 4 + 31) / 32 * 32;
    const unsigned threads = want < 32 ? 32 : want > 1024 ? 1024 : (unsigned)want;
    sr_cuda_launch(c, "norm", norm_kernel, dim3((unsigned)rows), dim3(threads), 0, *p);
}

void sr_cuda_norm_now(struct backend_cuda *c, const struct norm_args *a)
{
    const struct norm_params p = {a->x, NULL, a->w, NULL, a->y, a->d, a->eps};
    launch_norm(c, &p, (int64_t)a->n * a->heads);
}

void sr_cuda_add_norm_now(struct backend_cuda *c, const struct add_args *a, const struct norm_args *n)
{
    const struct norm_params p = {a->x, a->y, n->w, a->x, n->y, n->d, n->eps};
    launch_norm(c, &p, n->n);
}

/* ---- silu_mul, add ---- */

static __global__ void silu_kernel(const float *gate, const float *up, float *h, int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    sr_grid_begin();
    if (i < n) h[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
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
    const int64_t n = a->d * a->n;
    sr_cuda_launch(c, "silu_mul", silu_kernel, blocks_for(n), dim3(SR_CUDA_THREADS), 0, a->gate, a->up, a->h, n);
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

struct rope_params { float *x[2]; int64_t stride[2]; int heads[2], head_dim, half, neox; const float *cos, *sin; };

static __global__ void rope_kernel(const struct rope_params p)
{
    sr_grid_begin();
    const int at = blockIdx.y * blockDim.x + threadIdx.x, half = p.half, neox = p.neox;
    const int64_t t = blockIdx.x;
    int h = at / half;
    const int i = at % half, second_array = h >= p.heads[0];
    h -= second_array ? p.heads[0] : 0;
    if (h >= p.heads[second_array]) return;
    float *v = p.x[second_array] + t * p.stride[second_array] + (int64_t)h * p.head_dim;
    float *first = neox ? v + i : v + 2 * i, *second = neox ? v + i + half : v + 2 * i + 1;
    const float c = p.cos[t * half + i], s = p.sin[t * half + i], a = *first, b = *second;
    *first = a * c - b * s;
    *second = a * s + b * c;
}

static bool same_spec(const struct rope_spec *a, const struct rope_spec *b)
{
    return a->kind == b->kind && a->n_dims == b->n_dims && a->magnitude == b->magnitude &&
           memcmp(a->inv_freq, b->inv_freq, (size_t)(a->n_dims / 2) * sizeof(double)) == 0;
}

static void find_angles(struct backend_cuda *c, const struct rope_args *a)
{
    struct rope_cuda *r = c->rope;
    const uint64_t recording = c->recording ? c->recordings : 0;
    const bool same = same_spec(&r->spec, a->spec), is_constant = !a->pos || c->recording;
    if (same && is_constant && r->n >= a->n && r->pos0 == a->pos0 && r->pos == a->pos && r->recording == recording) return;
    r->spec = *a->spec;
    r->pos0 = a->pos0;
    r->pos = a->pos;
    r->n = a->n;
    r->recording = recording;
    const struct angle_params p = {*a->spec, a->pos0, a->pos, r->cos, r->sin};
    sr_cuda_launch(c, "angles", angle_kernel, dim3((unsigned)a->n), dim3(MAX_HALF), 0, p);
}

void sr_cuda_rope_angles(struct backend_cuda *c, const struct rope_args *a, const float **cos, const float **sin)
{
    assert(a->n <= c->rope->max_n && a->spec->n_dims <= 2 * MAX_HALF);
    find_angles(c, a);
    *cos = c->rope->cos;
    *sin = c->rope->sin;
}

void sr_cuda_rope_now(struct backend_cuda *c, const struct rope_args *a)
{
    const float *cos, *sin;
    sr_cuda_rope_angles(c, a, &cos, &sin);
    const int half = a->spec->n_dims / 2;
    const struct rope_params p = {{a->x, a->x2}, {a->stride, a->stride2}, {a->heads, a->x2 ? a->heads2 : 0}, a->head_dim, half,
                                  a->spec->kind == ROPE_NEOX, cos, sin};
    const dim3 grid((unsigned)a->n, (unsigned)(((p.heads[0] + p.heads[1]) * half + 127) / 128));
    sr_cuda_launch(c, "rope", rope_kernel, grid, dim3(128), 0, p);
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
    r->n = 0;
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
