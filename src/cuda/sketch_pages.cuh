// SPDX-License-Identifier: Apache-2.0
//
// The sketch pages of one warp, copied to shared memory ahead of their use. A page comes in steps of 16 coordinates, each of
// which is a slot of a ring; a lane copies the bytes that it will read itself, and so waits for nobody.
#ifndef SR_CUDA_SKETCH_PAGES_CUH
#define SR_CUDA_SKETCH_PAGES_CUH

#include "cuda/sketch_parts.cuh"

namespace sr {

static __device__ __forceinline__ uint32_t shared_of(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// By address in shared memory: as pointers of any kind they would be made anew, from special registers, at each use.
static __device__ __forceinline__ float4 load_shared4(uint32_t at)
{
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at) : "memory");
    return x;
}
static __device__ __forceinline__ void store_shared(uint32_t at, uint32_t x) { asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(x) : "memory"); }
static __device__ __forceinline__ void add_shared(uint32_t at, uint32_t x) { asm volatile("red.shared.add.u32 [%0], %1;" :: "r"(at), "r"(x) : "memory"); }

template <int n> static __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory"); }

// Page k of the warp is table[k * CHOOSE_WARPS]. All slots but one are under way or there. PAGES: so many slots of up to two
// steps, what a rank of up to 32 has; 0: slots of a step, as many as the launch says.
template <int BITS, int PAGES> struct page_ring {
    static constexpr int STEP = 4 * BITS * WARP, SLOT = PAGES ? 2 * STEP : STEP; // bytes
    static constexpr int MOST = 8192, BYTES = PAGES * SLOT;                      // the longest ring; one of pages
    void *const *table;
    uint64_t lane_page, from; // of this lane among 32 pages; its bytes of what is asked for next
    uint32_t slots, at, size; // of the lane, in shared memory: its ring, the slot used next, bytes of the ring
    int32_t n, next, left;    // pages; the one asked for next and its steps that are left
    int32_t steps;

    __device__ __forceinline__ uint32_t bytes() const { return PAGES ? BYTES : size; }
    __device__ __forceinline__ void find()
    {
        const int lane = threadIdx.x % WARP;
        if (next % WARP == 0 && next + lane < n) lane_page = (uint64_t)table[(next + lane) * CHOOSE_WARPS];
        from = __shfl_sync(~0u, lane_page, next) + lane * (4 * BITS); // of lane next % 32
        left = steps;
    }
    // Read once a step, pages are the first to leave the card's cache: what lies there besides is needed sooner.
    static __device__ __forceinline__ void copy(uint32_t to, uint64_t from)
    {
        uint64_t policy;
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#pragma unroll
        for (int i = 0; i < BITS / 4; i++)
            asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" :: "r"(to + 16 * i), "l"(from + 16 * i), "l"(policy) : "memory");
    }
    __device__ __forceinline__ void ask(uint32_t to)
    {
        if (next < n) {
            copy(slots + to, from);
            if (PAGES) {
                if (steps > 1) copy(slots + to + STEP, from + STEP);
                next++, find();
            } else {
                from += STEP;
                if (--left == 0) next++, find();
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    // From page `first` on; nothing is under way.
    __device__ __forceinline__ void begin(int32_t first)
    {
        const int lane = threadIdx.x % WARP, page = first / WARP * WARP + lane;
        lane_page = page < n ? (uint64_t)table[page * CHOOSE_WARPS] : 0;
        next = first, at = 0;
        find();
    }
    // Fills the ring with pages before `end`: from slot `to` on, all but the last. Returns the first left free.
    __device__ __forceinline__ uint32_t fill(uint32_t to, int32_t end)
    {
#pragma unroll 1
        for (; to < bytes() - SLOT && (next < end || end == n); to += SLOT) ask(to);
        return to;
    }
    static __device__ __forceinline__ void read(uint32_t *words, uint32_t from_)
    {
#pragma unroll
        for (int i = 0; i < BITS; i += 4)
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3]) : "r"(from_ + 4 * i) : "memory");
    }
    // This lane's words of the next slot: a step, or two of which the second may hold anything. The slot asked for is that
    // before, which has been read.
    __device__ __forceinline__ void take(uint32_t *words)
    {
        if (PAGES) wait_copies<PAGES ? PAGES - 2 : 0>();
        else if (size == MOST) wait_copies<MOST / STEP - 2>();
        else if (size == MOST / 2) wait_copies<MOST / STEP / 2 - 2>();
        else wait_copies<MOST / STEP / 4 - 2>();
        read(words, slots + at);
        if (PAGES) read(words + BITS, slots + at + STEP);
        ask((at - SLOT) & (bytes() - 1));
        at = (at + SLOT) & (bytes() - 1);
    }
};

} // namespace sr

#endif
