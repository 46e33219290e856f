// SPDX-License-Identifier: Apache-2.0
//
// Rows of up to 256 elements over a warp, and their products by fours.
#ifndef SR_CUDA_SKETCH_ROWS_CUH
#define SR_CUDA_SKETCH_ROWS_CUH

#include "cuda/sketch_parts.cuh"

namespace sr {

// Elements i .. i + 3 of a row of a page, without its head's scale.
static __device__ __forceinline__ float4 elements_of(int type, const uint8_t *page, int slot, int d, int i)
{
    const int at = slot * d + i;
    if (type == ELEM_BF16) {
        const uint2 x = *(const uint2 *)(page + 2 * at);
        return make_float4(__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u), __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000u));
    }
    if (type == ELEM_F16) {
        const uint2 x = *(const uint2 *)(page + 2 * at);
        const float2 lo = __half22float2(*(const __half2 *)&x.x), hi = __half22float2(*(const __half2 *)&x.y);
        return make_float4(lo.x, lo.y, hi.x, hi.y);
    }
    const uint32_t x = *(const uint32_t *)(page + at);
    if (type == ELEM_F8) {
        const __half2_raw lo = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(x & 0xffffu), __NV_E4M3), hi = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(x >> 16), __NV_E4M3);
        const float2 a = __half22float2(*(const __half2 *)&lo), b = __half22float2(*(const __half2 *)&hi);
        return make_float4(a.x, a.y, b.x, b.y);
    }
    const float scale = __half2float(((const __half *)(page + SR_PAGE_ROWS * d))[slot * (d / 32) + i / 32]);
    return make_float4((float)(int8_t)x * scale, (float)(int8_t)(x >> 8) * scale, (float)(int8_t)(x >> 16) * scale, (float)((int32_t)x >> 24) * scale);
}

// Up to 256 elements of a row over a warp: lane i has 4 from 4 i and 4 from 128 + 4 i on.
struct row_of_warp {
    float4 x[2];

    static __device__ __forceinline__ bool is_in(int i, int d) { return i * 128 + 4 * (int)(threadIdx.x % WARP) < d; }
    __device__ __forceinline__ void load(const float *row, int d)
    {
        const float4 *from = (const float4 *)row + threadIdx.x % WARP;
        x[0] = is_in(0, d) ? from[0] : make_float4(0, 0, 0, 0);
        x[1] = is_in(1, d) ? from[WARP] : make_float4(0, 0, 0, 0);
    }
    // Of a page, without its head's scale.
    __device__ __forceinline__ void load(int type, const uint8_t *page, int slot, int d)
    {
        const int lane = threadIdx.x % WARP;
        x[0] = is_in(0, d) ? elements_of(type, page, slot, d, 4 * lane) : make_float4(0, 0, 0, 0);
        x[1] = make_float4(0, 0, 0, 0);
        if (d > 128 && is_in(1, d)) x[1] = elements_of(type, page, slot, d, 128 + 4 * lane);
    }
    __device__ __forceinline__ float dot(const float *q, int d) const // the lane's share
    {
        float y = 0;
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (is_in(i, d)) {
                const float4 z = ((const float4 *)q)[i * WARP + threadIdx.x % WARP];
                y += x[i].x * z.x + x[i].y * z.y + x[i].z * z.z + x[i].w * z.w;
            }
        return y;
    }
};

// Four sums over the warp of the lanes' shares: lane i has that of y[i / 8].
static __device__ __forceinline__ float sum_four(const float *y)
{
    const int lane = threadIdx.x % WARP;
    const bool upper = lane & 16, odd = lane & 8;
    const float a = upper ? y[2] : y[0], b = upper ? y[3] : y[1];
    const float c = a + __shfl_xor_sync(~0u, upper ? y[0] : y[2], 16), e = b + __shfl_xor_sync(~0u, upper ? y[1] : y[3], 16);
    float z = (odd ? e : c) + __shfl_xor_sync(~0u, odd ? c : e, 8);
#pragma unroll
    for (int i = 1; i < 8; i *= 2) z += __shfl_xor_sync(~0u, z, i);
    return z;
}

// Products of a row with four others, d elements apart: lane i has that of the (i / 8)th.
static __device__ __forceinline__ float dot_four(const float *q, const row_of_warp &row, int d)
{
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; i++) y[i] = row.dot(q + i * d, d);
    return sum_four(y);
}

} // namespace sr

#endif
