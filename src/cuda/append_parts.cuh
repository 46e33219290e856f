// SPDX-License-Identifier: Apache-2.0
//
// How a row goes into a page, and what its norms say: for the kernels that append rows.
#ifndef SR_CUDA_APPEND_PARTS_CUH
#define SR_CUDA_APPEND_PARTS_CUH

#include "cuda/attn_small.cuh"

namespace sr {

// A block of 32 elements, one a lane, as the CPU rounds it: NaN and infinity show in the scale.
static __device__ __forceinline__ void store_q8(uint8_t *page, int slot, int d, int block, float x)
{
    const int lane = threadIdx.x % WARP;
    float max = isnan(x) ? 0.0f : fabsf(x);
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, i));
    const bool bad = __any_sync(~0u, isnan(x)) || isinf(max);
    const float scale = bad ? CUDART_NAN_F : max / 127.0f, inverse = !bad && max > 0 ? 127.0f / max : 0.0f;
    page[slot * d + block * 32 + lane] = (uint8_t)(int8_t)(bad ? 0 : __float2int_rn(x * inverse));
    if (lane == 0) ((__half *)(page + SR_PAGE_ROWS * d))[slot * (d / 32) + block] = __float2half_rn(scale);
}

// Element i of row `slot`, by lane i % 32; whole warps call. `inverse` is 1 over its head's scale, F8 only.
static __device__ __forceinline__ void store_element(int type, uint8_t *page, int slot, int d, int i, float x, float inverse)
{
    if (type == ELEM_Q8) store_q8(page, slot, d, i / 32, x);
    else if (type == ELEM_BF16) ((__nv_bfloat16 *)page)[slot * d + i] = __float2bfloat16_rn(x);
    else if (type == ELEM_F16) ((__half *)page)[slot * d + i] = __float2half_rn(x);
    else page[slot * d + i] = __nv_cvt_float_to_fp8(x * inverse, __NV_SATFINITE, __NV_E4M3);
}

// The scale of a head whose first rows are at most `max`: attention/sequence.c has the rule.
static __device__ __forceinline__ float scale_of_most(float max)
{
    return exp2f((float)(max < CUDART_INF_F ? ilogbf(fmaxf(max, 1.0f)) - 4 : 0));
}

// Of a first row that comes alone: 1 over its head's scale, which is written down. A warp; each lane brings the most of its elements.
static __device__ __forceinline__ float begin_scale(float *scale, float max)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, i));
    const float mine = scale_of_most(max);
    if (threadIdx.x % WARP == 0) *scale = mine;
    return 1.0f / mine;
}

// ---- found sinks: attention/sinks.c has the rule ----

static __device__ __forceinline__ bool is_sink(const struct found_sinks &u, float k, float v)
{
    return v <= SR_SINKS_VALUE * u.mean_v && k <= SR_SINKS_KEY * u.mean_k;
}

// Of a row whose lanes brought sums of squares: the same bits however rows come.
static __device__ __forceinline__ float norm_of_lanes(float sum)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) sum += __shfl_xor_sync(~0u, sum, i);
    return sqrtf(sum);
}

// One thread; rows come in order, and one that comes again replaces all from it on.
static __device__ void note_row(struct found_sinks &u, int row, float k, float v)
{
    while (u.n > 0 && (row < SR_SINKS_REFERENCE || u.rows[u.n - 1] >= row)) u.n--;
    if (row >= SR_SINKS_REFERENCE) {
        if (u.n < SR_SINKS_MOST && is_sink(u, k, v)) {
            u.rows[u.n] = row;
            __threadfence(); // a kernel's other blocks may be reading them
            u.n++;
        }
        return;
    }
    u.k[row] = k;
    u.v[row] = v;
    if (row < SR_SINKS_REFERENCE - 1) return;
    double sum_k = 0, sum_v = 0;
    for (int i = SR_SINKS_FIRST; i < SR_SINKS_REFERENCE; i++) sum_k += u.k[i], sum_v += u.v[i];
    u.mean_k = (float)(sum_k / (SR_SINKS_REFERENCE - SR_SINKS_FIRST));
    u.mean_v = (float)(sum_v / (SR_SINKS_REFERENCE - SR_SINKS_FIRST));
    for (int i = 0; i < SR_SINKS_REFERENCE && u.n < SR_SINKS_MOST; i++)
        if (is_sink(u, u.k[i], u.v[i])) u.rows[u.n++] = i;
}

} // namespace sr

#endif
