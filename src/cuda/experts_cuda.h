/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrices of experts on the device (C++): rows of blocks as in the file, one expert behind the other, so that a group of
 * 32 elements is read from wherever the choice falls.
 */
#ifndef SR_CUDA_EXPERTS_CUDA_H
#define SR_CUDA_EXPERTS_CUDA_H

#include "backend/args.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

/* Bytes of a block and groups of 32 in it; float types: of 32 elements. */
struct expert_block { int bytes, groups; };

static constexpr __host__ __device__ struct expert_block sr_expert_block(int type)
{
    return type == SR_DTYPE_F32    ? expert_block{128, 1}
           : type == SR_DTYPE_F16  ? expert_block{64, 1}
           : type == SR_DTYPE_BF16 ? expert_block{64, 1}
           : type == SR_DTYPE_Q8_0 ? expert_block{34, 1}
           : type == SR_DTYPE_Q4_0 ? expert_block{18, 1}
           : type == SR_DTYPE_Q4_1 ? expert_block{20, 1}
           : type == SR_DTYPE_Q5_0 ? expert_block{22, 1}
           : type == SR_DTYPE_Q5_1 ? expert_block{24, 1}
           : type == SR_DTYPE_Q4_K ? expert_block{144, 8}
           : type == SR_DTYPE_Q5_K ? expert_block{176, 8}
           : type == SR_DTYPE_Q6_K ? expert_block{210, 8}
                                   : expert_block{0, 1};
}

/* 4 N bytes from an address that is a multiple of 2. */
template <int N>
static __device__ __forceinline__ void load_words(uint32_t (&w)[N], const uint8_t *from)
{
    const uint16_t *p = reinterpret_cast<const uint16_t *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) w[i] = (uint32_t)__ldg(p + 2 * i) | (uint32_t)__ldg(p + 2 * i + 1) << 16;
}

static __device__ __forceinline__ float load_half(const uint8_t *p) { return __half2float(__ldg(reinterpret_cast<const __half *>(p))); }
static __device__ __forceinline__ uint32_t byte_of(const uint32_t *w, int i) { return w[i / 4] >> 8 * (i % 4) & 255u; }

/* 32 elements of f16 or bf16 in 16-byte pieces. */
template <int TYPE>
static __device__ __forceinline__ void read_short_floats(const uint8_t *b, float (&v)[32])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 u = __ldg(reinterpret_cast<const uint4 *>(b) + i);
        const uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const __half2 h = *reinterpret_cast<const __half2 *>(&w[k]);
            v[8 * i + 2 * k] = TYPE == SR_DTYPE_F16 ? __low2float(h) : __uint_as_float(w[k] << 16);
            v[8 * i + 2 * k + 1] = TYPE == SR_DTYPE_F16 ? __high2float(h) : __uint_as_float(w[k] & 0xffff0000u);
        }
    }
}

/* Blocks of 32 with four or five bits: element e of 16 in the low half of byte e, e + 16 in the high one. */
template <int TYPE>
static __device__ __forceinline__ void read_nibbles(const uint8_t *b, float (&v)[32])
{
    constexpr bool has_min = TYPE == SR_DTYPE_Q4_1 || TYPE == SR_DTYPE_Q5_1, is_five = TYPE == SR_DTYPE_Q5_0 || TYPE == SR_DTYPE_Q5_1;
    const float d = load_half(b), m = has_min ? load_half(b + 2) : (is_five ? -16.0f : -8.0f) * d;
    uint32_t high[1] = {0}, codes[4];
    if constexpr (is_five) load_words(high, b + (has_min ? 4 : 2));
    load_words(codes, b + (has_min ? 4 : 2) + (is_five ? 4 : 0));
#pragma unroll
    for (int e = 0; e < 32; e++) v[e] = fmaf(d, (float)((byte_of(codes, e % 16) >> (e < 16 ? 0 : 4) & 15u) | (high[0] >> e & 1u) << 4), m);
}

/* Group j of 8 of Q4_K and Q5_K. */
template <int TYPE>
static __device__ __forceinline__ void read_k45(const uint8_t *b, int j, float (&v)[32])
{
    const uint4 h = __ldg(reinterpret_cast<const uint4 *>(b));
    const __half2 d = *reinterpret_cast<const __half2 *>(&h.x);
    const uint32_t low = h.y >> 8 * (j & 3), mid = h.z >> 8 * (j & 3), top = h.w >> 8 * (j & 3);
    const uint32_t s = j < 4 ? low & 63u : (top & 15u) | (low >> 2 & 48u), m = j < 4 ? mid & 63u : (top >> 4 & 15u) | (mid >> 2 & 48u);
    const float scale = __low2float(d) * (float)s, offset = -__high2float(d) * (float)m;
    const uint4 *codes = reinterpret_cast<const uint4 *>(b + (TYPE == SR_DTYPE_Q5_K ? 48 : 16) + 32 * (j / 2));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 c = __ldg(codes + i);
        const uint32_t w[4] = {c.x, c.y, c.z, c.w};
        uint4 q = make_uint4(0, 0, 0, 0);
        if constexpr (TYPE == SR_DTYPE_Q5_K) q = __ldg(reinterpret_cast<const uint4 *>(b + 16) + i);
        const uint32_t bits[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int e = 0; e < 16; e++)
            v[16 * i + e] = fmaf(scale, (float)((byte_of(w, e) >> 4 * (j % 2) & 15u) | (byte_of(bits, e) >> j & 1u) << 4), offset);
    }
}

static __device__ __forceinline__ void read_q6_k(const uint8_t *b, int j, float (&v)[32])
{
    const int n = j / 4, k = j % 4;
    const float d = load_half(b + 208);
    const uint8_t *scales = b + 192 + 2 * j;
    uint32_t low[8], high[8];
    load_words(low, b + 64 * n + 32 * (k & 1));
    load_words(high, b + 128 + 32 * n);
#pragma unroll
    for (int e = 0; e < 32; e++) {
        const int code = (int)((byte_of(low, e) >> (k >= 2 ? 4 : 0) & 15u) | (byte_of(high, e) >> 2 * k & 3u) << 4) - 32;
        v[e] = d * (float)(int8_t)__ldg(scales + e / 16) * (float)code;
    }
}

/* Group g of a row, as floats. */
template <int TYPE>
static __device__ __forceinline__ void read_group(const uint8_t *row, int64_t g, float (&v)[32])
{
    constexpr expert_block B = sr_expert_block(TYPE);
    const uint8_t *b = row + g / B.groups * B.bytes;
    const int j = (int)(g % B.groups);
    if constexpr (TYPE == SR_DTYPE_F32) {
#pragma unroll
        for (int i = 0; i < 8; i++) *reinterpret_cast<float4 *>(v + 4 * i) = __ldg(reinterpret_cast<const float4 *>(b) + i);
    } else if constexpr (TYPE == SR_DTYPE_F16 || TYPE == SR_DTYPE_BF16) {
        read_short_floats<TYPE>(b, v);
    } else if constexpr (TYPE == SR_DTYPE_Q8_0) {
        const float d = load_half(b);
        uint32_t codes[8];
        load_words(codes, b + 2);
#pragma unroll
        for (int e = 0; e < 32; e++) v[e] = d * (float)(int8_t)byte_of(codes, e);
    } else if constexpr (TYPE == SR_DTYPE_Q4_K || TYPE == SR_DTYPE_Q5_K) {
        read_k45<TYPE>(b, j, v);
    } else if constexpr (TYPE == SR_DTYPE_Q6_K) {
        read_q6_k(b, j, v);
    } else {
        read_nibbles<TYPE>(b, v);
    }
}

#endif
