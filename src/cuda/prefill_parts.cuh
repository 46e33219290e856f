/* SPDX-License-Identifier: Apache-2.0
 *
 * What both prefill kernels have: asynchronous copies, a warp's 16 queries in the registers that products of 16 rows want,
 * and the softmax over a tile of logits. Row lane / 4 and the row 8 below it, columns 2 (lane % 4) and the one beside it of
 * every 8, are a lane's; mma.sync and wgmma agree on that.
 */
#ifndef SR_CUDA_PREFILL_PARTS_CUH
#define SR_CUDA_PREFILL_PARTS_CUH

#include "cuda/prefill_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

namespace prefill {

static __device__ __forceinline__ uint32_t pack(float a, float b, const __half *)
{
    const __half2 h = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t *>(&h);
}
static __device__ __forceinline__ uint32_t pack(float a, float b, const __nv_bfloat16 *)
{
    const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t *>(&h);
}

/* 16 bytes, or zeros. */
static __device__ __forceinline__ void copy16(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
static __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

/* Eight q8_0 values of row r as f16: codes first in a page, then scales. */
static __device__ __forceinline__ uint4 widen8(const uint8_t *page, int r, int at, int d)
{
    const uint2 codes = *reinterpret_cast<const uint2 *>(page + r * d + at);
    const float s = __half2float(reinterpret_cast<const __half *>(page + SR_PAGE_ROWS * d)[(r * d + at) / 32]);
    uint4 out;
    uint32_t *w = &out.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t pair = (i < 2 ? codes.x : codes.y) >> 16 * (i & 1);
        w[i] = pack(s * (float)(int8_t)pair, s * (float)(int8_t)(pair >> 8), static_cast<const __half *>(nullptr));
    }
    return out;
}

/* Eight f8_e4m3 codes as f16; their head's scale meets the queries and the sums. */
static __device__ __forceinline__ uint4 widen8_f8(const uint8_t *page, int r, int at, int d)
{
    const uint2 codes = *reinterpret_cast<const uint2 *>(page + r * d + at);
    uint4 out;
    uint32_t *w = &out.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)((i < 2 ? codes.x : codes.y) >> 16 * (i & 1)), __NV_E4M3);
        w[i] = (uint32_t)h.x | (uint32_t)h.y << 16;
    }
    return out;
}

template <int D>
struct queries {
    uint32_t q[D / 16][4];
    float o[D / 8][4];
    float m[2], l[2]; /* of rows lane / 4 and lane / 4 + 8; l of this lane's columns only */
    int64_t pos;      /* of row 0 */
};

template <typename T, int D>
static __device__ __forceinline__ void load_queries(struct queries<D> *w, const struct prefill_params &p, int head, int64_t row, int lane)
{
    const int64_t stride = (int64_t)p.n_kv_heads * p.group * p.head_dim;
    const float scale = p.k_scale ? p.scale * p.k_scale[head / p.group] : p.scale;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t r = row + lane / 4 + (j & 1) * 8;
            const int at = i * 16 + lane % 4 * 2 + (j >> 1) * 8;
            float2 x = make_float2(0.0f, 0.0f);
            if (r < p.n && at < p.head_dim) x = *reinterpret_cast<const float2 *>(p.q + r * stride + head * p.head_dim + at);
            w->q[i][j] = pack(x.x * scale, x.y * scale, static_cast<const T *>(nullptr));
        }
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++) w->o[i][0] = w->o[i][1] = w->o[i][2] = w->o[i][3] = 0.0f;
    w->m[0] = w->m[1] = -INFINITY;
    w->l[0] = w->l[1] = 0.0f;
    w->pos = p.pos0 + row;
}

/* 2^x, below the normal numbers 0. */
static __device__ __forceinline__ float exp2_of(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/* Logits of keys after a query's own position count for nothing; the tile begins at key `first`. */
template <int D, int N>
static __device__ __forceinline__ void hide_future(const struct queries<D> &w, int64_t first, int lane, float (&s)[N][4])
{
    const int own = (int)(w.pos - first) + lane / 4 - lane % 4 * 2; /* the last column seen, from this lane's first */
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (j * 8 + (i & 1) > own + (i >> 1) * 8) s[j][i] = -INFINITY;
    }
}

/* Logits to weights exp(s - m); m and l move on. What was summed before is to be multiplied by shrink. */
template <int D, int N>
static __device__ __forceinline__ void soften(struct queries<D> *w, float (&s)[N][4], float (&shrink)[2])
{
    const float log2e = 1.44269504f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float m = w->m[half];
#pragma unroll
        for (int j = 0; j < N; j++) m = fmaxf(m, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        m = quad_max(m);
        const float seen = m == -INFINITY ? 0.0f : m, base = seen * log2e;
        shrink[half] = exp2_of((w->m[half] - seen) * log2e); /* exactly 1 where m stays: how rows are dealt to blocks changes no bit */
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[j][i] = exp2_of(s[j][i] * log2e - base);
                sum += s[j][i];
            }
        }
        w->l[half] = w->l[half] * shrink[half] + sum;
        w->m[half] = m;
    }
}

template <int D>
static __device__ __forceinline__ void shrink_outputs(struct queries<D> *w, const float (&shrink)[2])
{
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) w->o[i][j] *= shrink[j / 2];
    }
}

template <int D>
static __device__ __forceinline__ void store_outputs(const struct queries<D> &w, const struct prefill_params &p, int head, int64_t row, int lane)
{
    const int64_t stride = (int64_t)p.n_kv_heads * p.group * p.head_dim;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float l = w.l[half] + __shfl_xor_sync(0xffffffffu, w.l[half], 1);
        l += __shfl_xor_sync(0xffffffffu, l, 2);
        const int64_t r = row + lane / 4 + half * 8;
        if (r >= p.n) continue;
        const float by = (p.v_scale ? p.v_scale[head / p.group] : 1.0f) / l;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const int at = i * 8 + lane % 4 * 2;
            if (at < p.head_dim)
                *reinterpret_cast<float2 *>(p.out + r * stride + head * p.head_dim + at) = make_float2(w.o[i][2 * half] * by, w.o[i][2 * half + 1] * by);
        }
    }
}

} // namespace prefill

#endif
