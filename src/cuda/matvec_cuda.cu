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
#include "cuda/device_cuda.h"
#include "cuda/planes_cuda.h"

#include <assert.h>
#include <cuda_bf16.h>

enum { WARPS = 8, THREADS = 32 * WARPS, ROWS = 2 /* of a warp */, BLOCK_ROWS = WARPS * ROWS, TOKENS = 4 };

struct product { struct cuda_planes w; const float *bias; float *y; int64_t y_stride, n_out; unsigned end_block; };

struct matvec_params {
    struct product p[SR_MATMUL_MAX];
    int32_t n_products;
    const float *x;
    int64_t x_stride, n_in;
};

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* The product that this block works for, and its first row. */
static __device__ __forceinline__ int find_product(const struct matvec_params &p, int64_t *row)
{
    unsigned from = 0;
    int i = 0;
    for (; i + 1 < p.n_products && blockIdx.x >= p.p[i].end_block; i++) from = p.p[i].end_block;
    *row = (int64_t)(blockIdx.x - from) * BLOCK_ROWS + threadIdx.x / 32 * ROWS;
    return i;
}

/* ---- quantized ---- */

/* Activations of one token in shared memory: four planes of 16 bytes per group (high bytes of elements 0..15 and
 * 16..31, then low bytes), then d, and d times the sum of the codes of each half. */
struct act_planes { uint4 *byte[4]; float *d; float2 *sum; };

static __host__ __device__ size_t act_bytes(int64_t groups) { return (size_t)groups * (4 * 16 + 4 + 8 + 4); }

static __device__ __forceinline__ act_planes acts_at(uint8_t *base, int64_t groups, int t)
{
    uint8_t *p = base + (size_t)t * act_bytes(groups);
    act_planes a;
    for (int i = 0; i < 4; i++) a.byte[i] = reinterpret_cast<uint4 *>(p) + i * groups;
    p += 64 * groups;
    a.sum = reinterpret_cast<float2 *>(p);
    a.d = reinterpret_cast<float *>(p + 8 * groups);
    return a;
}

/* One lane per element; a warp does a group. The codes of cpu/matmul's quantize_q8. */
static __device__ void quantize_group(const act_planes &a, const float *x, int64_t g, int lane)
{
    const float v = x[g * 32 + lane];
    float most = fabsf(v);
    bool odd = !(v == v);
    for (int i = 16; i > 0; i >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
    odd = __any_sync(0xffffffffu, odd);
    const float d = odd ? __int_as_float(0x7fc00000) : most / 16256.0f;
    const float inverse = most > 1e-30f && !odd && most < __int_as_float(0x7f800000) ? 16256.0f / most : 0.0f;
    const int code = inverse > 0.0f ? __float2int_rn(v * inverse) : 0, high = (code + 64 + (1 << 20)) / 128 - (1 << 13);
    int sum = code;
    for (int i = 8; i > 0; i >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    const int other = __shfl_xor_sync(0xffffffffu, sum, 16);
    reinterpret_cast<int8_t *>(a.byte[lane / 16] + g)[lane % 16] = (int8_t)high;
    reinterpret_cast<int8_t *>(a.byte[2 + lane / 16] + g)[lane % 16] = (int8_t)(code - 128 * high);
    if (lane == 0) {
        a.d[g] = d;
        a.sum[g] = make_float2(d * (float)sum, d * (float)other);
    }
}

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

template <int TYPE, int N>
static __global__ void __launch_bounds__(THREADS) quant_kernel(const __grid_constant__ struct matvec_params p)
{
    extern __shared__ __align__(16) uint8_t shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t groups = p.n_in / 32;
    int64_t row;
    const struct product &m = p.p[find_product(p, &row)];
    sr_grid_begin();
    for (int64_t i = warp; i < groups * N; i += WARPS)
        quantize_group(acts_at(shared, groups, (int)(i / groups)), p.x + i / groups * p.x_stride, i % groups, lane);
    __syncthreads();
    float acc[ROWS][N] = {};
    const int64_t last = m.n_out - 1;
#pragma unroll 2
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
template <typename T>
static __global__ void __launch_bounds__(THREADS) float_kernel(const __grid_constant__ struct matvec_params p)
{
    constexpr int PER = 16 / (int)sizeof(T);
    extern __shared__ float4 acts[];
    const int lane = threadIdx.x % 32;
    const int64_t chunks = p.n_in / PER;
    int64_t row;
    const struct product &m = p.p[find_product(p, &row)];
    sr_grid_begin();
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

static matvec_kernel *quant_kernel_of(sr_dtype type, bool one)
{
    switch (type) {
    case SR_DTYPE_Q8_0: return one ? quant_kernel<SR_DTYPE_Q8_0, 1> : quant_kernel<SR_DTYPE_Q8_0, TOKENS>;
    case SR_DTYPE_Q4_0: return one ? quant_kernel<SR_DTYPE_Q4_0, 1> : quant_kernel<SR_DTYPE_Q4_0, TOKENS>;
    case SR_DTYPE_Q4_1: return one ? quant_kernel<SR_DTYPE_Q4_1, 1> : quant_kernel<SR_DTYPE_Q4_1, TOKENS>;
    case SR_DTYPE_Q5_0: return one ? quant_kernel<SR_DTYPE_Q5_0, 1> : quant_kernel<SR_DTYPE_Q5_0, TOKENS>;
    case SR_DTYPE_Q5_1: return one ? quant_kernel<SR_DTYPE_Q5_1, 1> : quant_kernel<SR_DTYPE_Q5_1, TOKENS>;
    case SR_DTYPE_Q4_K: return one ? quant_kernel<SR_DTYPE_Q4_K, 1> : quant_kernel<SR_DTYPE_Q4_K, TOKENS>;
    case SR_DTYPE_Q5_K: return one ? quant_kernel<SR_DTYPE_Q5_K, 1> : quant_kernel<SR_DTYPE_Q5_K, TOKENS>;
    case SR_DTYPE_Q6_K: return one ? quant_kernel<SR_DTYPE_Q6_K, 1> : quant_kernel<SR_DTYPE_Q6_K, TOKENS>;
    default: return NULL;
    }
}

static matvec_kernel *float_kernel_of(sr_dtype type)
{
    return type == SR_DTYPE_F32 ? float_kernel<float> : type == SR_DTYPE_F16 ? float_kernel<__half> : float_kernel<__nv_bfloat16>;
}

/* Products [from, from + count) of a, which share a type; n is 1 or TOKENS. */
static void launch_products(struct backend_cuda *c, const struct matmul_args *a, int from, int count, int32_t t0, int32_t n)
{
    const sr_dtype type = a->w[from]->dtype;
    struct matvec_params p = {};
    unsigned blocks = 0;
    p.n_products = count;
    p.x = a->x + t0 * a->x_stride;
    p.x_stride = a->x_stride;
    p.n_in = a->w[from]->n_in;
    for (int i = 0; i < count; i++) {
        const struct weight *w = a->w[from + i];
        blocks += (unsigned)((w->n_out + BLOCK_ROWS - 1) / BLOCK_ROWS);
        p.p[i] = product{*sr_planes_of(w), a->bias[from + i], a->y[from + i] + t0 * a->y_stride[from + i], a->y_stride[from + i], w->n_out,
                         blocks};
    }
    const bool is_float = sr_is_float_type(type);
    matvec_kernel *k = is_float ? float_kernel_of(type) : quant_kernel_of(type, n == 1);
    const size_t shared = is_float ? (size_t)p.n_in * sizeof(float) : (size_t)n * act_bytes(p.n_in / 32);
    if (shared > 48 * 1024) sr_cuda_note(c, cudaFuncSetAttribute((const void *)k, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), "matvec");
    sr_cuda_launch(c, "matvec", k, dim3(blocks), dim3(THREADS), shared, p);
}

/* Tokens [t0, t0 + n) of a: n at most TOKENS, and 1 for float weights. */
void sr_cuda_matvec(struct backend_cuda *c, const struct matmul_args *a, int32_t t0, int32_t n)
{
    for (int from = 0, count; from < a->n_weights; from += count) {
        for (count = 1; from + count < a->n_weights && a->w[from + count]->dtype == a->w[from]->dtype;) count++;
        if (n == TOKENS && !sr_is_float_type(a->w[from]->dtype)) {
            launch_products(c, a, from, count, t0, n);
            continue;
        }
        for (int32_t t = 0; t < n; t++) launch_products(c, a, from, count, t0 + t, 1);
    }
}
