/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights on the device (C++). Float types lie as in the file. Quantized ones keep their bits but not their order: what
 * one thread wants at once lies together and aligned. Elements go in groups of 32 along a row, and each kind of datum
 * has a plane of its own, [rows][groups]:
 *
 *   codes   16 bytes: byte j holds the low four bits of elements j and 16 + j (Q8_0: 32 bytes, its elements)
 *   high    one word for Q5: bit 8 b + j is the fifth bit of element 4 j + b; two for Q6_K: bits 8 b + 2 j of word w are
 *           the upper two of element 16 w + 4 j + b
 *   scales  f16 d, or f16 d and m (Q4_1, Q5_1); Q4_K and Q5_K: 16 bytes per 8 groups, as in the file; Q6_K: two int8
 *   extra   Q6_K: f16 d per 8 groups
 *
 * An element is scale * code + offset; scale and offset hold for half a group.
 */
#ifndef SR_CUDA_PLANES_CUDA_H
#define SR_CUDA_PLANES_CUDA_H

#include "backend/args.h"

#include <cuda_fp16.h>
#include <stdint.h>

struct cuda_planes {
    const uint8_t *codes, *high, *scales, *extra; /* of one block; float types: codes */
    int64_t groups;                               /* per row */
};

/* What weight.packed points to. */
struct cuda_weight { void *block; struct cuda_planes planes; };

static inline const struct cuda_planes *sr_planes_of(const struct weight *w) { return &static_cast<const struct cuda_weight *>(w->packed)->planes; }

static inline bool sr_is_float_type(sr_dtype t) { return t == SR_DTYPE_F32 || t == SR_DTYPE_F16 || t == SR_DTYPE_BF16; }

/* Bytes of a group in each plane. */
struct plane_bytes { int codes, high, scales_per_8, extra_per_8; };

static constexpr __host__ __device__ struct plane_bytes sr_plane_bytes(int type)
{
    return type == SR_DTYPE_Q8_0   ? plane_bytes{32, 0, 16, 0}
           : type == SR_DTYPE_Q4_0 ? plane_bytes{16, 0, 16, 0}
           : type == SR_DTYPE_Q4_1 ? plane_bytes{16, 0, 32, 0}
           : type == SR_DTYPE_Q5_0 ? plane_bytes{16, 4, 16, 0}
           : type == SR_DTYPE_Q5_1 ? plane_bytes{16, 4, 32, 0}
           : type == SR_DTYPE_Q4_K ? plane_bytes{16, 0, 16, 0}
           : type == SR_DTYPE_Q5_K ? plane_bytes{16, 4, 16, 0}
           : type == SR_DTYPE_Q6_K ? plane_bytes{16, 8, 16, 2}
                                   : plane_bytes{0, 0, 0, 0};
}

/* scale and offset of the two halves of a group */
struct group_scale { float scale[2], offset[2]; };

/* Six-bit scale and minimum of group j of 8, from the header of Q4_K and Q5_K. */
static __device__ __forceinline__ group_scale k_scale(uint4 header, int j)
{
    const uint32_t low = header.y >> 8 * (j & 3), mid = header.z >> 8 * (j & 3), top = header.w >> 8 * (j & 3);
    const uint32_t s = j < 4 ? low & 63u : (top & 15u) | (low >> 6 & 3u) << 4;
    const uint32_t m = j < 4 ? mid & 63u : (top >> 4 & 15u) | (mid >> 6 & 3u) << 4;
    const __half2 d = *reinterpret_cast<const __half2 *>(&header.x);
    const float scale = __low2float(d) * (float)s, offset = -__high2float(d) * (float)m;
    return {{scale, scale}, {offset, offset}};
}

/* Group g, counted over all rows. n_in % 256 == 0 for the K types, so that 8 groups never cross rows. */
template <int TYPE>
static __device__ __forceinline__ group_scale load_scale(const struct cuda_planes &p, int64_t g)
{
    if constexpr (TYPE == SR_DTYPE_Q4_K || TYPE == SR_DTYPE_Q5_K) {
        return k_scale(__ldg(reinterpret_cast<const uint4 *>(p.scales) + g / 8), (int)(g % 8));
    } else if constexpr (TYPE == SR_DTYPE_Q6_K) {
        const char2 s = __ldg(reinterpret_cast<const char2 *>(p.scales) + g);
        const float d = __half2float(__ldg(reinterpret_cast<const __half *>(p.extra) + g / 8));
        const float a = d * (float)s.x, b = d * (float)s.y;
        return {{a, b}, {-32.0f * a, -32.0f * b}};
    } else if constexpr (TYPE == SR_DTYPE_Q4_1 || TYPE == SR_DTYPE_Q5_1) {
        const __half2 d = __ldg(reinterpret_cast<const __half2 *>(p.scales) + g);
        const float s = __low2float(d), m = __high2float(d);
        return {{s, s}, {m, m}};
    } else {
        const float d = __half2float(__ldg(reinterpret_cast<const __half *>(p.scales) + g));
        const float o = TYPE == SR_DTYPE_Q4_0 ? -8.0f * d : TYPE == SR_DTYPE_Q5_0 ? -16.0f * d : 0.0f;
        return {{d, d}, {o, o}};
    }
}

/* The stored bits of a group, and its 32 codes as bytes: code 4 j + b in byte b of word j. */
struct group_bits { uint4 codes, more; uint2 high; };

template <int TYPE>
static __device__ __forceinline__ group_bits load_bits(const struct cuda_planes &p, int64_t g)
{
    group_bits b;
    if constexpr (TYPE == SR_DTYPE_Q8_0) {
        b.codes = __ldcs(reinterpret_cast<const uint4 *>(p.codes) + 2 * g);
        b.more = __ldcs(reinterpret_cast<const uint4 *>(p.codes) + 2 * g + 1);
    } else {
        b.codes = __ldcs(reinterpret_cast<const uint4 *>(p.codes) + g);
        if constexpr (sr_plane_bytes(TYPE).high == 4) b.high.x = __ldcs(reinterpret_cast<const uint32_t *>(p.high) + g);
        if constexpr (sr_plane_bytes(TYPE).high == 8) b.high = __ldcs(reinterpret_cast<const uint2 *>(p.high) + g);
    }
    return b;
}

template <int TYPE>
static __device__ __forceinline__ void unpack(const group_bits &b, uint32_t (&w)[8])
{
    const uint32_t c[4] = {b.codes.x, b.codes.y, b.codes.z, b.codes.w};
    if constexpr (TYPE == SR_DTYPE_Q8_0) {
        const uint32_t m[4] = {b.more.x, b.more.y, b.more.z, b.more.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[j] = c[j];
            w[4 + j] = m[j];
        }
    } else {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[j] = c[j] & 0x0f0f0f0fu;
            w[4 + j] = c[j] >> 4 & 0x0f0f0f0fu;
        }
    }
    if constexpr (sr_plane_bytes(TYPE).high == 4) {
#pragma unroll
        for (int j = 0; j < 8; j++) w[j] |= (b.high.x >> j & 0x01010101u) << 4;
    }
    if constexpr (sr_plane_bytes(TYPE).high == 8) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[j] |= (b.high.x >> 2 * j & 0x03030303u) << 4;
            w[4 + j] |= (b.high.y >> 2 * j & 0x03030303u) << 4;
        }
    }
}

/* Element e of a group, for conversions. */
template <int TYPE>
static __device__ __forceinline__ float element_of(const uint32_t (&w)[8], const group_scale &s, int e)
{
    const uint32_t byte = w[e / 4] >> 8 * (e % 4) & 255u;
    const float code = TYPE == SR_DTYPE_Q8_0 ? (float)(int8_t)byte : (float)byte;
    return fmaf(s.scale[e / 16], code, s.offset[e / 16]);
}

#endif
