/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations in shared memory as the products of a few tokens meet them (C++), made by every block for itself: normed
 * on the way, where a norm comes first. Float weights meet floats. Quantized ones meet codes of 15 bits per group of 32,
 * as on the CPU, split into two bytes so that integer products are exact: code = 128 high + low.
 *
 * Codes lie in pieces of four groups (256 bytes), as the lanes of a warp read them: [half of a group][high, low][group]
 * [16 elements]; behind all of them, per group, d, d times the sum of the codes of each half, and of both.
 */
#ifndef SR_CUDA_ACTS_CUDA_H
#define SR_CUDA_ACTS_CUDA_H

#include "cuda/planes_cuda.h"

enum { ACT_WARPS = 8, ACT_THREADS = 32 * ACT_WARPS, ACT_BATCH = 8 /* pieces of 4 elements that a thread has under way */ };

static constexpr __host__ __device__ int32_t sr_act_bytes(bool quantized, int32_t quads, int32_t padded)
{
    return quantized ? quads * (256 + QUAD * 16) : padded * (int32_t)sizeof(float);
}

struct act_source {
    const float *x, *norm_w; /* norm_w NULL: as they are */
    float *norm_y;           /* where block 0 stores what was normed, or NULL */
    float eps;
    int32_t n_in;
};

static __device__ __forceinline__ float sum_of_lanes(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* Pieces i and i + ACT_THREADS of 4 elements, of groups that eight lanes share; whole warps call, n is the number of
 * pieces. The codes of cpu/matmul's quantize_q8: NaN and infinity show in d. Two at once, since each is one long chain. */
static __device__ __forceinline__ void put_codes(uint8_t *acts, int32_t quads, int32_t i, int32_t n, const float4 (&v)[2])
{
    uint32_t most[2], high[2] = {0, 0}, low[2] = {0, 0};
    int sum[2] = {0, 0}, other[2];
    float inverse[2];
#pragma unroll
    for (int k = 0; k < 2; k++)
        most[k] = max(max(__float_as_uint(v[k].x) & 0x7fffffffu, __float_as_uint(v[k].y) & 0x7fffffffu),
                      max(__float_as_uint(v[k].z) & 0x7fffffffu, __float_as_uint(v[k].w) & 0x7fffffffu));
#pragma unroll
    for (int l = 1; l < 8; l *= 2)
#pragma unroll
        for (int k = 0; k < 2; k++) most[k] = max(most[k], __shfl_xor_sync(0xffffffffu, most[k], l));
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float top = __uint_as_float(most[k]), x[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
        inverse[k] = top > 1e-30f && most[k] < 0x7f800000u ? __fdividef(16256.0f, top) : 0.0f;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int code = __float2int_rn(x[e] * inverse[k]), h = (code + 64) >> 7; /* infinity and NaN times 0 give code 0 */
            high[k] |= (uint32_t)(h & 255) << 8 * e;
            low[k] |= (uint32_t)((code - 128 * h) & 255) << 8 * e;
            sum[k] += code;
        }
    }
#pragma unroll
    for (int l = 1; l < 4; l *= 2)
#pragma unroll
        for (int k = 0; k < 2; k++) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], l);
#pragma unroll
    for (int k = 0; k < 2; k++) other[k] = __shfl_xor_sync(0xffffffffu, sum[k], 4);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int32_t at = i + k * ACT_THREADS, g = at / 8, word = at % 8;
        if (at >= n) continue;
        uint8_t *to = acts + g / QUAD * 256 + word / 4 * 128 + g % QUAD * 16 + word % 4 * 4;
        *reinterpret_cast<uint32_t *>(to) = high[k];
        *reinterpret_cast<uint32_t *>(to + 64) = low[k];
        if (word) continue;
        const float d = __uint_as_float(most[k]) * (1.0f / 16256.0f), first = d * (float)sum[k], second = d * (float)other[k];
        reinterpret_cast<float4 *>(acts + quads * 256)[g] = make_float4(d, first, second, first + second);
    }
}

/* What a thread holds of the activations: pieces tid, tid + ACT_THREADS, ... from `base` on, of n. */
struct act_batch {
    float4 v[ACT_BATCH];

    __device__ __forceinline__ void load(const float *x, int32_t base, int32_t n)
    {
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k++) {
            const int32_t i = base + k * ACT_THREADS + (int32_t)threadIdx.x;
            v[k] = i < n ? __ldcg(reinterpret_cast<const float4 *>(x) + i) : make_float4(0, 0, 0, 0);
        }
    }
    __device__ __forceinline__ float squares() const
    {
        float s = 0;
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k++) s += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
        return s;
    }
    __device__ __forceinline__ void scale(float f, const act_batch &w)
    {
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k++)
            v[k] = make_float4(v[k].x * f * w.v[k].x, v[k].y * f * w.v[k].y, v[k].z * f * w.v[k].z, v[k].w * f * w.v[k].w);
    }
    template <bool QUANTIZED> __device__ __forceinline__ void put(uint8_t *acts, int32_t quads, int32_t base, int32_t n, float *copy) const
    {
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k += 2) {
            const int32_t i = base + k * ACT_THREADS + (int32_t)threadIdx.x;
            if (base + k * ACT_THREADS >= n) return;
            if constexpr (QUANTIZED) put_codes(acts, quads, i, n, {v[k], v[k + 1]});
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (i + j * ACT_THREADS >= n) continue;
                if constexpr (!QUANTIZED) reinterpret_cast<float4 *>(acts)[i + j * ACT_THREADS] = v[k + j];
                if (copy) reinterpret_cast<float4 *>(copy)[i + j * ACT_THREADS] = v[k + j];
            }
        }
    }
};

/* What is padded, for one token; before anything is waited for. */
template <bool QUANTIZED> static __device__ __forceinline__ void clear_padding(uint8_t *acts, int32_t quads, int32_t n_in, int32_t padded)
{
    if constexpr (QUANTIZED) {
        const int32_t g = n_in / 32 + (int32_t)threadIdx.x;
        if (g < quads * QUAD) reinterpret_cast<float4 *>(acts + quads * 256)[g] = make_float4(0, 0, 0, 0);
    } else {
        if (n_in + (int32_t)threadIdx.x < padded) reinterpret_cast<float *>(acts)[n_in + threadIdx.x] = 0;
    }
}

/* The activations of one token, by all threads; `w` holds the first norm weights, `part` is ACT_WARPS floats to share. */
template <bool QUANTIZED>
static __device__ __forceinline__ void make_acts(const struct act_source &s, act_batch &w, uint8_t *acts, int32_t quads, float *part)
{
    const int32_t n = s.n_in / 4, each = ACT_BATCH * ACT_THREADS;
    float *copy = s.norm_w && blockIdx.x == 0 ? s.norm_y : NULL;
    float f = 1;
    act_batch x;
    x.load(s.x, 0, n);
    if (s.norm_w) {
        float squares = x.squares();
        for (int32_t base = each; base < n; base += each) {
            x.load(s.x, base, n);
            squares += x.squares();
        }
        squares = sum_of_lanes(squares);
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = squares;
        __syncthreads();
        squares = 0;
#pragma unroll
        for (int i = 0; i < ACT_WARPS; i++) squares += part[i];
        f = 1.0f / sqrtf(squares / (float)s.n_in + s.eps);
        if (n > each) x.load(s.x, 0, n);
    }
    for (int32_t base = 0;;) {
        if (s.norm_w) x.scale(f, w);
        x.put<QUANTIZED>(acts, quads, base, n, copy);
        base += each;
        if (base >= n) return;
        x.load(s.x, base, n);
        if (s.norm_w) w.load(s.norm_w, base, n);
    }
}

#endif
