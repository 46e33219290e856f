/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of one to four tokens with weights that are read once, where they lie: what a decode step waits for. A warp
 * takes a few rows; its lanes take groups along them, 16 bytes of codes at a time.
 *
 * Quantized weights: the activations become codes of 15 bits per group of 32, as on the CPU, split into two bytes so
 * that byte dot products (dp4a) are exact: code = 128 high + low. Then row . x = sum over groups of
 * scale * d * (128 W.high + W.low) + offset * d * (sum of codes). Float weights: f32 activations and sums.
 *
 * The order of every sum depends on shapes alone.
 */
#include "cuda/acts_cuda.h"
#include "cuda/planes_cuda.h"

#include <assert.h>
#include <cuda_bf16.h>

enum { WARPS = 8, THREADS = 32 * WARPS, TOKENS = 4, ASK_BYTES = 65536 };

struct product { struct cuda_planes w; const float *bias; float *y; int64_t y_stride, n_out; unsigned end_block; };

struct matvec_params {
    struct product p[SR_MATMUL_MAX];
    int32_t n_products;
    const float *x;      /* of one token; float weights */
    const uint8_t *acts; /* codes of the tokens, act_bytes each; quantized weights */
    int64_t n_in;
};

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* The product that this block works for, and its first row. */
template <int ROWS>
static __device__ __forceinline__ int find_product(const struct matvec_params &p, int64_t *row)
{
    unsigned from = 0;
    int i = 0;
    for (; i + 1 < p.n_products && blockIdx.x >= p.p[i].end_block; i++) from = p.p[i].end_block;
    *row = (int64_t)(blockIdx.x - from) * (WARPS * ROWS) + threadIdx.x / 32 * ROWS;
    return i;
}

/* Asks for the first bytes that this block will read, before it knows the activations: weights wait for nobody. */
static __device__ __forceinline__ void ask_for(const uint8_t *from, int64_t bytes)
{
    const int64_t most = bytes < ASK_BYTES ? bytes : ASK_BYTES;
    for (int64_t i = (int64_t)threadIdx.x * 128; i < most; i += THREADS * 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}

template <int ROWS>
static __device__ __forceinline__ void ask_for_rows(const struct product &m, int64_t row, int64_t row_bytes)
{
    const int64_t first = row - threadIdx.x / 32 * ROWS, n = m.n_out - first < WARPS * ROWS ? m.n_out - first : WARPS * ROWS;
    ask_for(m.w.codes + first * row_bytes, n * row_bytes);
}

/* ---- quantized ---- */

static __device__ __forceinline__ int dot16(const uint32_t *w, uint4 a)
{
    int s = __dp4a((int)w[0], (int)a.x, 0);
    s = __dp4a((int)w[1], (int)a.y, s);
    s = __dp4a((int)w[2], (int)a.z, s);
    return __dp4a((int)w[3], (int)a.w, s);
}

template <int TYPE>
static __device__ __forceinline__ float dot_group(const uint32_t (&w)[8], const group_scale &s, const act_planes &a, int64_t g)
{
    const int first = 128 * dot16(w, a.byte[0][g]) + dot16(w, a.byte[2][g]);
    const int second = 128 * dot16(w + 4, a.byte[1][g]) + dot16(w + 4, a.byte[3][g]);
    const float d = a.d[g];
    const float2 sum = a.sum[g];
    if constexpr (TYPE == SR_DTYPE_Q6_K)
        return d * (s.scale[0] * (float)first + s.scale[1] * (float)second) + (s.offset[0] * sum.x + s.offset[1] * sum.y);
    if constexpr (TYPE == SR_DTYPE_Q8_0) return d * s.scale[0] * (float)(first + second);
    return d * s.scale[0] * (float)(first + second) + s.offset[0] * (sum.x + sum.y);
}

/* Once per op, where nobody has done it: every block of the product below would otherwise wait for the same
 * conversions. A warp does a group. */
static __global__ void quantize_kernel(const float *x, int64_t x_stride, uint8_t *acts, int64_t groups)
{
    const int64_t g = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    sr_grid_begin();
    const int lane = (int)threadIdx.x % 32;
    if (g < groups) quantize_group(acts_at(acts, groups, (int)blockIdx.y), x[blockIdx.y * x_stride + g * 32 + lane], g, lane);
}

template <int TYPE, int N, int ROWS>
static __global__ void __launch_bounds__(THREADS) quant_kernel(const __grid_constant__ struct matvec_params p)
{
    extern __shared__ __align__(16) uint8_t shared[];
    const int lane = threadIdx.x % 32;
    const int64_t groups = p.n_in / 32;
    int64_t row;
    const struct product &m = p.p[find_product<ROWS>(p, &row)];
    sr_grid_next();
    ask_for_rows<ROWS>(m, row, groups * sr_plane_bytes(TYPE).codes);
    sr_grid_wait();
    const int pieces = (int)(N * act_bytes(groups) / 16);
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < pieces; i += THREADS) reinterpret_cast<uint4 *>(shared)[i] = reinterpret_cast<const uint4 *>(p.acts)[i];
    __syncthreads();
    float acc[ROWS][N] = {};
    const int64_t last = m.n_out - 1;
#pragma unroll(4 / ROWS)
    for (int64_t g = lane; g < groups; g += 32) {
        group_bits bits[ROWS];
        group_scale scale[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t at = (row + r < last ? row + r : last) * groups + g;
            bits[r] = load_bits<TYPE>(m.w, at);
            scale[r] = load_scale<TYPE>(m.w, at);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            uint32_t w[8];
            unpack<TYPE>(bits[r], w);
#pragma unroll
            for (int t = 0; t < N; t++) acc[r][t] += dot_group<TYPE>(w, scale[r], acts_at(shared, groups, t), g);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int t = 0; t < N; t++) {
            const float y = warp_sum(acc[r][t]);
            if (lane == 0 && row + r < m.n_out) m.y[t * m.y_stride + row + r] = y + (m.bias ? m.bias[row + r] : 0.0f);
        }
    }
}

/* ---- float ---- */

/* 16 bytes of weights as 8 floats (4 of them for f32). */
static __device__ __forceinline__ void widen(uint4 b, float (&w)[4], const float *) { *reinterpret_cast<uint4 *>(w) = b; }
static __device__ __forceinline__ void widen(uint4 b, float (&w)[8], const __half *)
{
    const __half2 *h = reinterpret_cast<const __half2 *>(&b);
    for (int i = 0; i < 4; i++) {
        const float2 f = __half22float2(h[i]);
        w[2 * i] = f.x;
        w[2 * i + 1] = f.y;
    }
}
static __device__ __forceinline__ void widen(uint4 b, float (&w)[8], const __nv_bfloat16 *)
{
    const uint32_t u[4] = {b.x, b.y, b.z, b.w};
    for (int i = 0; i < 4; i++) {
        w[2 * i] = __uint_as_float(u[i] << 16);
        w[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
    }
}

/* One token. Element 8 i + e of x is in plane e / 4, so that lanes read neighbouring 16 bytes. */
template <typename T, int ROWS>
static __global__ void __launch_bounds__(THREADS) float_kernel(const __grid_constant__ struct matvec_params p)
{
    constexpr int PER = 16 / (int)sizeof(T);
    extern __shared__ float4 acts[];
    const int lane = threadIdx.x % 32;
    const int64_t chunks = p.n_in / PER;
    int64_t row;
    const struct product &m = p.p[find_product<ROWS>(p, &row)];
    sr_grid_next();
    ask_for_rows<ROWS>(m, row, chunks * 16);
    sr_grid_wait();
    for (int64_t i = threadIdx.x; i < p.n_in / 4; i += THREADS)
        acts[i % (PER / 4) * chunks + i / (PER / 4)] = reinterpret_cast<const float4 *>(p.x)[i];
    __syncthreads();
    float acc[ROWS] = {};
    const int64_t last = m.n_out - 1;
#pragma unroll 4
    for (int64_t i = lane; i < chunks; i += 32) {
        uint4 bits[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            bits[r] = __ldcs(reinterpret_cast<const uint4 *>(m.w.codes) + (row + r < last ? row + r : last) * chunks + i);
        float x[PER];
#pragma unroll
        for (int k = 0; k < PER / 4; k++) *reinterpret_cast<float4 *>(x + 4 * k) = acts[k * chunks + i];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float w[PER];
            widen(bits[r], w, static_cast<const T *>(NULL));
#pragma unroll
            for (int k = 0; k < PER; k++) acc[r] = fmaf(w[k], x[k], acc[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float y = warp_sum(acc[r]);
        if (lane == 0 && row + r < m.n_out) m.y[row + r] = y + (m.bias ? m.bias[row + r] : 0.0f);
    }
}

/* ---- launching ---- */

typedef void matvec_kernel(struct matvec_params);

#define QUANT(type) \
    case type: return n > 1 ? quant_kernel<type, TOKENS, 2> : rows == 1 ? quant_kernel<type, 1, 1> : quant_kernel<type, 1, 2>

static matvec_kernel *quant_kernel_of(sr_dtype type, int32_t n, int rows)
{
    switch (type) {
        QUANT(SR_DTYPE_Q8_0);
        QUANT(SR_DTYPE_Q4_0);
        QUANT(SR_DTYPE_Q4_1);
        QUANT(SR_DTYPE_Q5_0);
        QUANT(SR_DTYPE_Q5_1);
        QUANT(SR_DTYPE_Q4_K);
        QUANT(SR_DTYPE_Q5_K);
        QUANT(SR_DTYPE_Q6_K);
    default: return NULL;
    }
}

template <int ROWS>
static matvec_kernel *float_kernel_of(sr_dtype type)
{
    return type == SR_DTYPE_F32 ? float_kernel<float, ROWS> : type == SR_DTYPE_F16 ? float_kernel<__half, ROWS> : float_kernel<__nv_bfloat16, ROWS>;
}

/* Rows of a warp: two share what is read of the activations, one keeps more warps at work where there are few rows. */
static int rows_of(const struct backend_cuda *c, const struct matmul_args *a, int from, int count, int32_t n)
{
    int64_t all = 0;
    for (int i = 0; i < count; i++) all += a->w[from + i]->n_out;
    return n == 1 && all < (int64_t)c->n_sms * WARPS * 2 * 4 ? 1 : 2;
}

/* Products [from, from + count) of a, which share a type; n is 1 or TOKENS. */
static void launch_products(struct backend_cuda *c, const struct matmul_args *a, int from, int count, int32_t t0, int32_t n)
{
    const sr_dtype type = a->w[from]->dtype;
    const int rows = rows_of(c, a, from, count, n), block_rows = WARPS * rows;
    struct matvec_params p = {};
    unsigned blocks = 0;
    p.n_products = count;
    p.x = a->x + t0 * a->x_stride;
    p.acts = sr_cuda_acts(c);
    p.n_in = a->w[from]->n_in;
    for (int i = 0; i < count; i++) {
        const struct weight *w = a->w[from + i];
        blocks += (unsigned)((w->n_out + block_rows - 1) / block_rows);
        p.p[i] = product{*sr_planes_of(w), a->bias[from + i], a->y[from + i] + t0 * a->y_stride[from + i], a->y_stride[from + i], w->n_out,
                         blocks};
    }
    const bool is_float = sr_is_float_type(type);
    matvec_kernel *k = !is_float ? quant_kernel_of(type, n, rows) : rows == 1 ? float_kernel_of<1>(type) : float_kernel_of<2>(type);
    const size_t shared = is_float ? (size_t)p.n_in * sizeof(float) : (size_t)n * act_bytes(p.n_in / 32);
    if (shared > 48 * 1024) sr_cuda_note(c, cudaFuncSetAttribute((const void *)k, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), "matvec");
    sr_cuda_launch(c, "matvec", k, dim3(blocks), dim3(THREADS), shared, p);
}

size_t sr_cuda_acts_bytes(int64_t max_in) { return TOKENS * act_bytes((max_in + 31) / 32); }

static void quantize(struct backend_cuda *c, const struct matmul_args *a, int32_t t0, int32_t n)
{
    const int64_t groups = a->w[0]->n_in / 32;
    const dim3 grid((unsigned)((groups + WARPS - 1) / WARPS), (unsigned)n);
    sr_cuda_launch(c, "quantize", quantize_kernel, grid, dim3(THREADS), 0, a->x + t0 * a->x_stride, a->x_stride, sr_cuda_acts(c), groups);
}

/* Tokens [t0, t0 + n) of a; n is 1 or TOKENS. */
void sr_cuda_matvec(struct backend_cuda *c, const struct matmul_args *a, int32_t t0, int32_t n)
{
    bool quantized = false;
    for (int i = 0; i < a->n_weights; i++) quantized |= !sr_is_float_type(a->w[i]->dtype);
    if (quantized && !(n == 1 && t0 == 0 && a->x == c->acts_of)) {
        c->acts_of = NULL;
        quantize(c, a, t0, n);
    }
    for (int i = 0; i < a->n_weights; i++) c->acts_of = c->acts_of == a->y[i] ? NULL : c->acts_of;
    for (int from = 0, count; from < a->n_weights; from += count) {
        for (count = 1; from + count < a->n_weights && a->w[from + count]->dtype == a->w[from]->dtype;) count++;
        const bool is_float = sr_is_float_type(a->w[from]->dtype);
        for (int32_t t = 0; t < n; t += is_float ? 1 : n) launch_products(c, a, from, count, t0 + t, is_float ? 1 : n);
    }
}
