/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations in shared memory as the products of a few tokens meet them (C++). Float weights meet floats. Quantized ones
 * meet codes of 15 bits, as on the CPU but with a scale for each 16 of them, so that the block which computes 16 rows of a
 * product can make the codes that the next product wants. A code is split into two bytes, so that integer products are
 * exact: code = 128 high + low.
 *
 * Codes lie in pieces of four groups of 32 (256 bytes), as the lanes of a warp read them: [half of a group][high, low]
 * [group][16 elements]; apart from them lie, per group, d of both halves and d times the sum of the codes of both.
 *
 * Either they are there already (struct made_acts), or every block makes them for itself from floats, normed on the way
 * where a norm comes first.
 */
#ifndef SR_CUDA_ACTS_CUDA_H
#define SR_CUDA_ACTS_CUDA_H

#include "cuda/planes_cuda.h"

enum {
    ACT_WARPS = 8,
    ACT_THREADS = 32 * ACT_WARPS,
    ACT_BATCH = 4,                           /* pieces of 4 elements that a lane takes at once */
    ACT_CHUNK = 32 * ACT_BATCH,              /* pieces of a warp at once */
    ACT_PITCH = 20,                          /* floats from one lane's 16 elements to the next one's: no bank is met twice */
    ACT_LOW = 64,                            /* from high bytes to low ones */
    ACT_STAGING = ACT_WARPS * 32 * ACT_PITCH * (int)sizeof(float),
};

static constexpr __host__ __device__ int32_t sr_act_bytes(bool quantized, int32_t quads, int32_t padded)
{
    return quantized ? quads * (256 + QUAD * 16) : padded * (int32_t)sizeof(float);
}

/* Codes in device memory, as the product before made them: in shared memory `meta` follows the codes, here it is apart. */
struct made_acts { uint8_t *codes; float4 *meta; };

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

/* The larger of two; NaN where one is. */
static __device__ __forceinline__ float most_of(float a, float b)
{
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

/* Byte `at` of each of four words. */
template <int AT> static __device__ __forceinline__ uint32_t bytes_of(const uint32_t *w)
{
    return __byte_perm(__byte_perm(w[0], w[1], AT | (AT + 4) << 4), __byte_perm(w[2], w[3], AT | (AT + 4) << 4), 0x5410);
}

/* What elements are multiplied with to become codes, of which the largest is `top`. The codes of cpu/matmul's quantize_q8:
 * NaN and infinity show in d. */
static __device__ __forceinline__ float codes_of(float top)
{
    return top > 1e-30f && top < __uint_as_float(0x7f800000u) ? __fdividef(16256.0f, top) : 0.0f;
}
static __device__ __forceinline__ float scale_of_codes(float top) { return top * (1.0f / 16256.0f); }

/* Rounded to an integer, which is in the low bits. */
static __device__ __forceinline__ uint32_t code_bits(float x, float inverse) { return __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), 12582912.0f)); }
static __device__ __forceinline__ int code_of(uint32_t bits) { return (int)(bits - 0x4b400000u); }

/* Twice (code + 64): high is byte 1, low + 64 is byte 0 / 2. */
static __device__ __forceinline__ uint32_t split_code(uint32_t bits) { return 2 * bits + 128; }
static __device__ __forceinline__ uint32_t low_bytes(uint32_t b)
{
    const uint32_t moved = (b >> 1 & 0x7f7f7f7fu) ^ 0x40404040u;
    return moved | (moved & 0x40404040u) << 1;
}

/* Where the high bytes of half h begin, and the place of its d; that of the sum is two behind. The low bytes are ACT_LOW on. */
static __device__ __forceinline__ int32_t half_codes(int32_t h) { return h / (2 * QUAD) * 256 + h % 2 * 128 + h / 2 % QUAD * 16; }
static __device__ __forceinline__ int32_t half_meta(int32_t h) { return h / 2 * 4 + h % 2; }

/* Half a group a lane, 16 elements; of `halves` in all this is half h. */
static __device__ __forceinline__ void put_half(uint8_t *acts, int32_t quads, int32_t h, int32_t halves, const float *x)
{
    uint32_t w[16], high[4], low[4];
    float top = fabsf(x[0]);
    int sum = 0;
#pragma unroll
    for (int i = 1; i < 16; i++) top = most_of(top, fabsf(x[i]));
    const float inverse = codes_of(top);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const uint32_t bits = code_bits(x[i], inverse);
        sum += code_of(bits);
        w[i] = split_code(bits);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        high[i] = bytes_of<1>(w + 4 * i);
        low[i] = low_bytes(bytes_of<0>(w + 4 * i));
    }
    if (h >= halves) return;
    *reinterpret_cast<uint4 *>(acts + half_codes(h)) = make_uint4(high[0], high[1], high[2], high[3]);
    *reinterpret_cast<uint4 *>(acts + half_codes(h) + ACT_LOW) = make_uint4(low[0], low[1], low[2], low[3]);
    float *meta = reinterpret_cast<float *>(acts + quads * 256) + half_meta(h);
    meta[0] = scale_of_codes(top);
    meta[2] = scale_of_codes(top) * (float)sum;
}

/* The same for the elements of 16 lanes, one each; lanes from 16 on have zeros, whole warps call. */
static __device__ __forceinline__ void put_lanes(const struct made_acts &to, int32_t h, float x, int lane)
{
    float top = fabsf(x);
#pragma unroll
    for (int i = 8; i > 0; i >>= 1) top = most_of(top, __shfl_xor_sync(0xffffffffu, top, i));
    const uint32_t bits = code_bits(x, codes_of(top)), w = split_code(bits);
    int sum = code_of(bits);
#pragma unroll
    for (int i = 8; i > 0; i >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (lane >= 16) return;
    to.codes[half_codes(h) + lane] = (uint8_t)(w >> 8);
    to.codes[half_codes(h) + ACT_LOW + lane] = (uint8_t)low_bytes(w & 255u);
    float *meta = reinterpret_cast<float *>(to.meta) + half_meta(h);
    if (lane == 0) meta[0] = scale_of_codes(top);
    if (lane == 1) meta[2] = scale_of_codes(top) * (float)sum;
}

/* Pieces of a lane: lane, lane + 32, ... of a chunk. */
struct act_pieces {
    float4 v[ACT_BATCH];

    /* `at` is the lane's first piece, `left` how many lie from it on; `none` stands where there is none. */
    __device__ __forceinline__ void load(const float4 *at, int32_t left, float none)
    {
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k++) v[k] = 32 * k < left ? __ldcg(at + 32 * k) : make_float4(none, none, none, none);
    }
    __device__ __forceinline__ void store(float4 *at, int32_t left) const
    {
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k++)
            if (32 * k < left) at[32 * k] = v[k];
    }
    __device__ __forceinline__ float squares() const
    {
        float s = 0;
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k++) s += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
        return s;
    }
    __device__ __forceinline__ void scale(float f, const act_pieces &w)
    {
#pragma unroll
        for (int k = 0; k < ACT_BATCH; k++)
            v[k] = make_float4(v[k].x * f * w.v[k].x, v[k].y * f * w.v[k].y, v[k].z * f * w.v[k].z, v[k].w * f * w.v[k].w);
    }
};

/* A lane's first piece. */
static __device__ __forceinline__ int32_t act_first() { return (int32_t)threadIdx.x / 32 * ACT_CHUNK + (int32_t)threadIdx.x % 32; }

/* The norm weights of a warp's first chunk; without a norm ones, so that no loop needs a branch that doubles its code. */
static __device__ __forceinline__ void first_weights(const struct act_source &s, act_pieces &w)
{
    w.load(reinterpret_cast<const float4 *>(s.norm_w) + act_first(), s.norm_w ? s.n_in / 4 - act_first() : 0, 1.0f);
}

/* 1 / the root of the mean square of x, of which a warp's first two chunks are here; `part` is ACT_WARPS floats to share. */
static __device__ __forceinline__ float norm_factor(const struct act_source &s, const act_pieces &x, const act_pieces &next, float *part)
{
    float squares = x.squares() + next.squares();
#pragma unroll 1
    for (int32_t i = (int32_t)threadIdx.x + 2 * ACT_WARPS * ACT_CHUNK; i < s.n_in / 4; i += ACT_THREADS) {
        const float4 v = __ldcg(reinterpret_cast<const float4 *>(s.x) + i);
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    squares = sum_of_lanes(squares);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = squares;
    __syncthreads();
    squares = 0;
#pragma unroll
    for (int i = 0; i < ACT_WARPS; i++) squares += part[i];
    return 1.0f / sqrtf(squares / (float)s.n_in + s.eps);
}

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

/* Codes of a chunk whose first half group is `h`, by way of `stage`, from which each lane takes 16 neighbouring elements. */
static __device__ __forceinline__ void put_chunk(uint8_t *acts, int32_t quads, int32_t h, int32_t halves, const act_pieces &x, float *stage)
{
    const int lane = (int)threadIdx.x % 32;
    float4 mine[4];
#pragma unroll
    for (int k = 0; k < ACT_BATCH; k++) *reinterpret_cast<float4 *>(stage + (8 * k + lane / 4) * ACT_PITCH + lane % 4 * 4) = x.v[k];
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 4; k++) mine[k] = *reinterpret_cast<const float4 *>(stage + lane * ACT_PITCH + 4 * k);
    __syncwarp();
    const float e[16] = {mine[0].x, mine[0].y, mine[0].z, mine[0].w, mine[1].x, mine[1].y, mine[1].z, mine[1].w,
                         mine[2].x, mine[2].y, mine[2].z, mine[2].w, mine[3].x, mine[3].y, mine[3].z, mine[3].w};
    put_half(acts, quads, h + lane, halves, e);
}

/* The activations of one token, by all threads; `w` holds the first norm weights, `staging` is ACT_STAGING bytes. What runs
 * once in a kernel is fetched as it runs, so the loop is not unrolled. */
template <bool QUANTIZED>
static __device__ __forceinline__ void make_acts(const struct act_source &s, act_pieces &w, uint8_t *acts, int32_t quads, float *part, float *staging)
{
    const int32_t step = ACT_WARPS * ACT_CHUNK, n = s.n_in / 4, warp = (int32_t)threadIdx.x / 32;
    const float4 *from = reinterpret_cast<const float4 *>(s.x) + act_first(), *from_w = reinterpret_cast<const float4 *>(s.norm_w) + act_first();
    float4 *copy = s.norm_w && s.norm_y && blockIdx.x == 0 ? reinterpret_cast<float4 *>(s.norm_y) + act_first() : NULL;
    int32_t left = n - act_first(), base = warp * ACT_CHUNK;
    act_pieces x, next;
    x.load(from, left, 0);
    next.load(from + step, left - step, 0);
    const float f = s.norm_w ? norm_factor(s, x, next, part) : 1.0f;
#pragma unroll 1
    for (; base < n; base += step, left -= step, from += step, from_w += step) {
        x.scale(f, w);
        if constexpr (QUANTIZED) put_chunk(acts, quads, base / 4, n / 4, x, staging + warp * 32 * ACT_PITCH);
        else x.store(reinterpret_cast<float4 *>(acts) + base + (int32_t)threadIdx.x % 32, left);
        if (copy) {
            x.store(copy, left);
            copy += step;
        }
        x = next;
        next.load(from + 2 * step, left - 2 * step, 0);
        w.load(from_w + step, s.norm_w ? left - step : 0, 1.0f);
    }
}

#endif
