/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations as quantized weights meet them (C++): codes of 15 bits per group of 32, in two bytes. Who computes
 * activations of one token writes their codes beside them: sr_cuda_acts_for says where, and notes whose they are, so
 * that the product that follows need not convert them. Whatever else may write memory forgets that note.
 */
#ifndef SR_CUDA_ACTS_CUDA_H
#define SR_CUDA_ACTS_CUDA_H

#include "cuda/device_cuda.h"

/* Codes of one token's activations: four planes of 16 bytes per group (high bytes of elements 0..15 and
 * 16..31, then low bytes), then d, and d times the sum of the codes of each half. */
struct act_planes { uint4 *byte[4]; float *d; float2 *sum; };

static __host__ __device__ size_t act_bytes(int64_t groups) { return (size_t)groups * (4 * 16 + 4 + 8 + 4); } /* whole uint4 */

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

/* v is the lane's element of group g; a whole warp calls. The codes of cpu/matmul's quantize_q8. */
static __device__ void quantize_group(const act_planes &a, float v, int64_t g, int lane)
{
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

/* Where the codes of n tokens of x (rows of d) go, or NULL: not wanted. */
static inline uint8_t *sr_cuda_acts_for(struct backend_cuda *c, const float *x, int64_t d, int32_t n)
{
    c->acts_of = n == 1 && d % 32 == 0 && d <= sr_cuda_acts_width(c) ? x : NULL;
    return c->acts_of ? sr_cuda_acts(c) : NULL;
}

#endif
