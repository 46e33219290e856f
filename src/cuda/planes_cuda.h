/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights on the device (C++). Float types lie as in the file. Quantized ones keep their bits but not their order: they
 * lie in records of 16 rows times 128 elements (256 in the K types), in the order in which a decode product reads them,
 * so that a warp streams whole records. Elements go in groups of 32 along a row; rows are padded to whole records, with
 * zeros. A record holds, for each row r and group g of it, one kind of datum after another:
 *
 *   codes   16 bytes: byte j holds the low four bits of elements j and 16 + j (Q8_0: two such pieces, its elements)
 *   high    one word for Q5: bit 8 b + j is the fifth bit of element 4 j + b; two for Q6_K: bits 8 b + 2 j of word w are
 *           the upper two of element 16 w + 4 j + b
 *   scales  f16 d, or f16 d and m (Q4_1, Q5_1); Q4_K and Q5_K: 16 bytes per row, as in the file; Q6_K: two int8
 *   extra   Q6_K: d as a float, per row
 *
 * An element is scale * code + offset; scale and offset hold for half a group.
 */
#ifndef SR_CUDA_PLANES_CUDA_H
#define SR_CUDA_PLANES_CUDA_H

#include "backend/args.h"

#include <cuda_fp16.h>
#include <stdint.h>

struct cuda_planes {
    const uint8_t *codes;  /* the records, [tiles of 16 rows][steps]; float types: rows as in the file */
    int64_t groups, steps; /* per row; records per tile */
};

/* What weight.packed points to. */
struct cuda_weight { void *block; struct cuda_planes planes; };

static inline const struct cuda_planes *sr_planes_of(const struct weight *w) { return &static_cast<const struct cuda_weight *>(w->packed)->planes; }

static inline bool sr_is_float_type(sr_dtype t) { return t == SR_DTYPE_F32 || t == SR_DTYPE_F16 || t == SR_DTYPE_BF16; }

enum { TILE_ROWS = 16, QUAD = 4 /* groups that the lanes of a row take at once */ };

static constexpr __host__ __device__ bool sr_is_k45(int type) { return type == SR_DTYPE_Q4_K || type == SR_DTYPE_Q5_K; }

/* Where things lie in a record of `quads` times four groups; bytes 0: not a quantized type. */
struct plane_record { int quads, code_bytes, high_bytes, scale_bytes /* of a group; Q4_K, Q5_K: 0 */, high, scales, extra, bytes; };

static constexpr __host__ __device__ struct plane_record sr_record_of(int quads, int codes, int high, int scale, bool has_extra)
{
    const int n = quads * QUAD * TILE_ROWS, at_high = n * codes, at_scales = at_high + n * high;
    const int at_extra = at_scales + (scale ? n * scale : TILE_ROWS * 16);
    return plane_record{quads, codes, high, scale, at_high, at_scales, at_extra, at_extra + (has_extra ? TILE_ROWS * 4 : 0)};
}

static constexpr __host__ __device__ struct plane_record sr_record(int type)
{
    return type == SR_DTYPE_Q8_0   ? sr_record_of(1, 32, 0, 2, false)
           : type == SR_DTYPE_Q4_0 ? sr_record_of(1, 16, 0, 2, false)
           : type == SR_DTYPE_Q4_1 ? sr_record_of(1, 16, 0, 4, false)
           : type == SR_DTYPE_Q5_0 ? sr_record_of(1, 16, 4, 2, false)
           : type == SR_DTYPE_Q5_1 ? sr_record_of(1, 16, 4, 4, false)
           : type == SR_DTYPE_Q4_K ? sr_record_of(2, 16, 0, 0, false)
           : type == SR_DTYPE_Q5_K ? sr_record_of(2, 16, 4, 0, false)
           : type == SR_DTYPE_Q6_K ? sr_record_of(2, 16, 8, 2, true)
                                   : plane_record{};
}

/* Row r and group g of a record. */
struct plane_place { const uint8_t *record; int r, g; };

static __host__ __device__ __forceinline__ plane_place sr_place(const struct cuda_planes &p, const struct plane_record &f, int64_t row, int64_t g)
{
    const int n = f.quads * QUAD;
    return plane_place{p.codes + (row / TILE_ROWS * p.steps + g / n) * f.bytes, (int)(row % TILE_ROWS), (int)(g % n)};
}

/* Of the record's groups, in the order of lanes. */
static __host__ __device__ __forceinline__ int sr_place_index(const plane_place &at) { return (at.g / QUAD * TILE_ROWS + at.r) * QUAD + at.g % QUAD; }

/* Where 16 bytes of codes are: half 0 or 1 of Q8_0's. */
static __host__ __device__ __forceinline__ int sr_code_offset(const plane_place &at, const struct plane_record &f, int half)
{
    return f.code_bytes == 16 ? sr_place_index(at) * 16 : ((at.g / QUAD * 2 + half) * TILE_ROWS * QUAD + at.r * QUAD + at.g % QUAD) * 16;
}

/* scale and offset of the two halves of a group */
struct group_scale { float scale[2], offset[2]; };

/* Six-bit scale and minimum of group j of 8, from the header of Q4_K and Q5_K. */
static __device__ __forceinline__ group_scale k_scale(uint4 header, int j)
{
    const uint32_t low = header.y >> 8 * (j & 3), mid = header.z >> 8 * (j & 3), top = header.w >> 8 * (j & 3);
    const uint32_t s = j < 4 ? low & 63u : (top & 15u) | (low >> 2 & 48u);
    const uint32_t m = j < 4 ? mid & 63u : (top >> 4 & 15u) | (mid >> 2 & 48u);
    const __half2 d = *reinterpret_cast<const __half2 *>(&header.x);
    const float scale = __low2float(d) * (float)s, offset = -__high2float(d) * (float)m;
    return {{scale, scale}, {offset, offset}};
}

/* Of a type without such a header: `mine` is the group's, `extra` the row's. */
template <int TYPE>
static __device__ __forceinline__ group_scale plain_scale(const uint8_t *mine, const uint8_t *extra)
{
    if constexpr (TYPE == SR_DTYPE_Q6_K) {
        const char2 s = *reinterpret_cast<const char2 *>(mine);
        const float d = *reinterpret_cast<const float *>(extra), a = d * (float)s.x, b = d * (float)s.y;
        return {{a, b}, {-32.0f * a, -32.0f * b}};
    } else if constexpr (TYPE == SR_DTYPE_Q4_1 || TYPE == SR_DTYPE_Q5_1) {
        const __half2 d = *reinterpret_cast<const __half2 *>(mine);
        const float s = __low2float(d), m = __high2float(d);
        return {{s, s}, {m, m}};
    } else {
        const float d = __half2float(*reinterpret_cast<const __half *>(mine));
        const float o = TYPE == SR_DTYPE_Q4_0 ? -8.0f * d : TYPE == SR_DTYPE_Q5_0 ? -16.0f * d : 0.0f;
        return {{d, d}, {o, o}};
    }
}

template <int TYPE>
static __device__ __forceinline__ group_scale load_scale(const plane_place &at)
{
    constexpr plane_record F = sr_record(TYPE);
    const uint8_t *scales = at.record + F.scales;
    if constexpr (sr_is_k45(TYPE)) return k_scale(reinterpret_cast<const uint4 *>(scales)[at.r], at.g);
    else return plain_scale<TYPE>(scales + sr_place_index(at) * F.scale_bytes, at.record + F.extra + at.r * 4);
}

/* The stored bits of a group, and its 32 codes as bytes: code 4 j + b in byte b of word j. */
struct group_bits { uint4 codes, more; uint2 high; };

template <int TYPE>
static __device__ __forceinline__ group_bits load_bits(const plane_place &at)
{
    constexpr plane_record F = sr_record(TYPE);
    group_bits b;
    const uint8_t *high = at.record + F.high + sr_place_index(at) * F.high_bytes;
    b.codes = *reinterpret_cast<const uint4 *>(at.record + sr_code_offset(at, F, 0));
    if constexpr (F.code_bytes == 32) b.more = *reinterpret_cast<const uint4 *>(at.record + sr_code_offset(at, F, 1));
    if constexpr (F.high_bytes == 4) b.high.x = *reinterpret_cast<const uint32_t *>(high);
    if constexpr (F.high_bytes == 8) b.high = *reinterpret_cast<const uint2 *>(high);
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
    if constexpr (sr_record(TYPE).high_bytes == 4) {
#pragma unroll
        for (int j = 0; j < 8; j++) w[j] |= (b.high.x >> j & 0x01010101u) << 4;
    }
    if constexpr (sr_record(TYPE).high_bytes == 8) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[j] |= (b.high.x >> 2 * j & 0x03030303u) << 4;
            w[4 + j] |= (b.high.y >> 2 * j & 0x03030303u) << 4;
        }
    }
}

/* Bytes 8 h ... 8 h + 7 of a group's codes with what they need, and its elements 8 h ... 8 h + 7 and 16 on from them as bytes. */
struct half_bits { uint2 codes, more, high; };

template <int TYPE>
static __device__ __forceinline__ half_bits load_half(const plane_place &at, int h)
{
    constexpr plane_record F = sr_record(TYPE);
    half_bits b;
    const uint8_t *high = at.record + F.high + sr_place_index(at) * F.high_bytes;
    b.codes = __ldcs(reinterpret_cast<const uint2 *>(at.record + sr_code_offset(at, F, 0)) + h);
    if constexpr (F.code_bytes == 32) b.more = __ldcs(reinterpret_cast<const uint2 *>(at.record + sr_code_offset(at, F, 1)) + h);
    if constexpr (F.high_bytes == 4) b.high.x = __ldcs(reinterpret_cast<const uint32_t *>(high));
    if constexpr (F.high_bytes == 8) b.high = __ldcs(reinterpret_cast<const uint2 *>(high));
    return b;
}

template <int TYPE>
static __device__ __forceinline__ void unpack_half(const half_bits &b, int h, uint32_t (&w)[4])
{
    const uint32_t c[2] = {b.codes.x, b.codes.y}, m[2] = {b.more.x, b.more.y};
#pragma unroll
    for (int j = 0; j < 2; j++) {
        w[j] = TYPE == SR_DTYPE_Q8_0 ? c[j] : c[j] & 0x0f0f0f0fu;
        w[2 + j] = TYPE == SR_DTYPE_Q8_0 ? m[j] : c[j] >> 4 & 0x0f0f0f0fu;
        if constexpr (sr_record(TYPE).high_bytes == 4) {
            w[j] |= (b.high.x >> (2 * h + j) & 0x01010101u) << 4;
            w[2 + j] |= (b.high.x >> (4 + 2 * h + j) & 0x01010101u) << 4;
        }
        if constexpr (sr_record(TYPE).high_bytes == 8) {
            w[j] |= (b.high.x >> 2 * (2 * h + j) & 0x03030303u) << 4;
            w[2 + j] |= (b.high.y >> 2 * (2 * h + j) & 0x03030303u) << 4;
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
