// SPDX-License-Identifier: Apache-2.0
//
// Rows as they lie in pages, four elements at a time, and copies to shared memory that nobody waits for: for the second look.
#ifndef SR_CUDA_LOOK_ROWS_CUH
#define SR_CUDA_LOOK_ROWS_CUH

#include "cuda/attn_parts.cuh"

namespace sr {

// ---- rows as they lie ----

// Four elements of a row, from element i on, without its head's scale.
template <int T> struct four_of_row {
    uint32_t w[is_wide(T) ? 2 : 1], scale;

    __device__ __forceinline__ void load(uint64_t at, int d, int i)
    {
        const uint8_t *page = (const uint8_t *)(at / SR_PAGE_ROWS * SR_PAGE_ROWS);
        const int slot = (int)(at % SR_PAGE_ROWS);
        if constexpr (is_wide(T)) load8(w, page + 2 * (slot * d + i));
        else load4(w, page + slot * d + i);
        if constexpr (T == ELEM_Q8) load2(&scale, page + SR_PAGE_ROWS * d + 2 * (slot * (d / 32) + i / 32));
    }
    __device__ __forceinline__ float4 get() const
    {
        if constexpr (T == ELEM_BF16)
            return make_float4(__uint_as_float(w[0] << 16), __uint_as_float(w[0] & 0xffff0000u), __uint_as_float(w[1] << 16), __uint_as_float(w[1] & 0xffff0000u));
        if constexpr (T == ELEM_Q8) {
            const __half_raw h = {(unsigned short)scale};
            const float f = __half2float(*(const __half *)&h);
            return make_float4((float)(int8_t)w[0] * f, (float)(int8_t)(w[0] >> 8) * f, (float)(int8_t)(w[0] >> 16) * f, (float)((int32_t)w[0] >> 24) * f);
        }
        uint32_t lo = w[0], hi = w[is_wide(T) ? 1 : 0];
        if constexpr (T == ELEM_F8) lo = half2_of_f8_even(w[0]), hi = half2_of_f8_odd(w[0]);
        const float2 a = __half22float2(*(const __half2 *)&lo), b = __half22float2(*(const __half2 *)&hi);
        return T == ELEM_F8 ? make_float4(a.x, b.x, a.y, b.y) : make_float4(a.x, a.y, b.x, b.y);
    }
};

// What a stored element is multiplied by.
template <int T> static __device__ __forceinline__ float unit_of_head(const float *scales, int head)
{
    return T != ELEM_F8 ? 1.0f : scales ? F8_UNIT * scales[head] : F8_UNIT;
}

static __device__ __forceinline__ float dot4(const float4 &a, const float4 &b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

constexpr int ROW_LANES = 8; // of a row that is asked for or scored

// Has a row of some bytes, 512 at most, brought to L2, by its lanes. Its scales come with whoever reads them.
static __device__ __forceinline__ void ask_for(uint64_t at, int bytes)
{
    const int i = threadIdx.x % ROW_LANES * 64;
    if (i < bytes) asm volatile("prefetch.global.L2 [%0];" :: "l"((const uint8_t *)(at / SR_PAGE_ROWS * SR_PAGE_ROWS) + at % SR_PAGE_ROWS * bytes + i));
}

// ---- copies that nobody waits for ----

// Of 16 bytes those that are there; the others become 0.
static __device__ __forceinline__ void copy16(void *to, const void *from, int there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(there) : "memory");
}

static __device__ __forceinline__ void copy8(void *to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

// All that this block's threads have asked for is there. Has a barrier.
static __device__ __forceinline__ void await_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

} // namespace sr

#endif
