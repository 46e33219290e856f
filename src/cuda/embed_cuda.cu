/* SPDX-License-Identifier: Apache-2.0
 *
 * embed: rows of the token table as floats. One thread per group of 32 elements, per element in float types.
 */
#include "cuda/device_cuda.h"
#include "cuda/planes_cuda.h"

#include <cuda_bf16.h>

template <int TYPE>
static __global__ void embed_kernel(const struct cuda_planes w, const int32_t *ids, float *x, int64_t n_in)
{
    const int64_t g = (int64_t)blockIdx.y * blockDim.x + threadIdx.x, t = blockIdx.x;
    sr_grid_begin();
    if (g >= w.groups) return;
    const plane_place at = sr_place(w, sr_record(TYPE), ids[t], g);
    const group_scale s = load_scale<TYPE>(at);
    uint32_t bytes[8];
    unpack<TYPE>(load_bits<TYPE>(at), bytes);
#pragma unroll
    for (int e = 0; e < 32; e++) x[t * n_in + g * 32 + e] = element_of<TYPE>(bytes, s, e);
}

static __device__ float as_float(float x) { return x; }
static __device__ float as_float(__half x) { return __half2float(x); }
static __device__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
static __global__ void embed_float_kernel(const T *w, const int32_t *ids, float *x, int64_t n_in)
{
    const int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x, t = blockIdx.x;
    sr_grid_begin();
    if (i < n_in) x[t * n_in + i] = as_float(w[ids[t] * n_in + i]);
}

#define EMBED(type) \
    case type: sr_cuda_launch(c, "embed", embed_kernel<type>, groups, dim3(64), 0, p, a->ids, a->x, n_in); break
#define EMBED_FLOAT(type, T) \
    case type: sr_cuda_launch(c, "embed", embed_float_kernel<T>, elements, dim3(SR_CUDA_THREADS), 0, (const T *)p.codes, a->ids, a->x, n_in); break

void sr_cuda_embed(struct backend *b, const struct embed_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const struct cuda_planes p = *sr_planes_of(a->w);
    const int64_t n_in = a->w->n_in;
    const dim3 groups((unsigned)a->n, (unsigned)((p.groups + 63) / 64));
    const dim3 elements((unsigned)a->n, (unsigned)((n_in + SR_CUDA_THREADS - 1) / SR_CUDA_THREADS));
    switch (a->w->dtype) {
        EMBED(SR_DTYPE_Q8_0);
        EMBED(SR_DTYPE_Q4_0);
        EMBED(SR_DTYPE_Q4_1);
        EMBED(SR_DTYPE_Q5_0);
        EMBED(SR_DTYPE_Q5_1);
        EMBED(SR_DTYPE_Q4_K);
        EMBED(SR_DTYPE_Q5_K);
        EMBED(SR_DTYPE_Q6_K);
        EMBED_FLOAT(SR_DTYPE_F32, float);
        EMBED_FLOAT(SR_DTYPE_F16, __half);
        EMBED_FLOAT(SR_DTYPE_BF16, __nv_bfloat16);
    default: break; /* weight_prepare has refused it */
    }
}
