// SPDX-License-Identifier: Apache-2.0
//
// The sketch pages of one warp, in two passes. With a ring they are copied whole to shared memory, as many as there is
// room for under way at once, and those that the first pass ends with are there when the second begins. Without, their
// words are read from device memory as they are due.
#ifndef SR_CUDA_SKETCH_PAGES_CUH
#define SR_CUDA_SKETCH_PAGES_CUH

#include "cuda/sketch_team.cuh"

namespace sr {

constexpr int CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / WARP;
constexpr int MAX_RING = 24;

// Page k of the warp is table[k * CHOOSE_WARPS]. In the ring pages are numbered as they are copied: those of the first pass,
// then, where there are more than the ring holds, the first ones again; the second pass begins with the last `ring` ones.
struct page_stream {
    void *const *table;
    uint64_t lane_page;   // ring: page of this lane's next number; else page `lane` of the 32 under way
    uint32_t slots, full; // of the warp, in shared memory
    int32_t n, ring, bytes, kept, fresh; // kept: number of the page that the second pass begins with; fresh: may not be written yet
    int32_t slot, turn;   // of the next number that is waited for
    bool early;

    __device__ __forceinline__ uint64_t page_of(int32_t number) const { return (uint64_t)table[(number < n ? number : number - n) * CHOOSE_WARPS]; }

    __device__ __forceinline__ void copy(int32_t number)
    {
#if __CUDA_ARCH__ >= 900
        const int lane = threadIdx.x % WARP;
        if (early && number == fresh) wait_for_previous();
        const uint32_t to = slots + lane * bytes, bar = full + lane * 8;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                     :: "r"(to), "l"(lane_page), "r"(bytes), "r"(bar) : "memory");
        if (number + ring < n + kept) lane_page = page_of(number + ring);
#endif
    }

    // `count` pages from `first` on; the one numbered `fresh_` (-1: none) is written by the kernel before.
    __device__ __forceinline__ void begin(void *const *first, int32_t count, int32_t fresh_, int32_t ring_, int32_t bytes_, void *slots_, void *full_)
    {
        const int lane = threadIdx.x % WARP;
        table = first, n = count, ring = ring_, bytes = bytes_, early = fresh_ >= 0, fresh = fresh_;
        kept = ring && n > ring ? n - ring : 0;
        slot = turn = 0;
        slots = shared_of(slots_), full = shared_of(full_);
        if (!ring) return;
        if (lane < ring) {
#if __CUDA_ARCH__ >= 900
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(full + lane * 8) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
            if (lane < n) lane_page = page_of(lane);
        }
    }
    __device__ __forceinline__ void start()
    {
        const int lane = threadIdx.x % WARP;
        if (lane < ring && lane < n && (!early || lane != fresh)) copy(lane);
        __syncwarp();
    }

    // Before the first pass: the page left out at the beginning.
    __device__ __forceinline__ void complete()
    {
        const int lane = threadIdx.x % WARP;
        if (early && ring && fresh < ring && lane == fresh) copy(lane);
        if (early && !ring && fresh < n) wait_for_previous();
        early = early && fresh >= ring;
        __syncwarp();
    }

    // Where number i is, all lanes: an address in shared memory with a ring, else in device memory, where numbers are those of
    // pages, from 0 in each pass.
    __device__ __forceinline__ uint64_t ready(int32_t i)
    {
        if (ring) {
            while (!is_complete(full + slot * 8, turn)) {}
            const uint32_t at = slots + slot * bytes;
            if (++slot == ring) slot = 0, turn ^= 1;
            return at;
        }
        const int lane = threadIdx.x % WARP;
        if (i % WARP == 0) lane_page = (uint64_t)table[min(i + lane, n - 1) * CHOOSE_WARPS];
        return __shfl_sync(~0u, lane_page, i % WARP);
    }

    // Number i is read: its place is free where the pass does not end with it.
    __device__ __forceinline__ void release(int32_t i, bool is_second)
    {
#if __CUDA_ARCH__ >= 900
        if (kept == 0 || i + ring >= n + kept || (!is_second && i >= kept)) return;
        __syncwarp();
        if ((int)(threadIdx.x % WARP) == i % ring) copy(i + ring);
        __syncwarp();
#endif
    }

    // The numbers of the second pass begin here.
    __device__ __forceinline__ void rewind()
    {
        if (!ring) return;
        slot = kept % ring;
        turn = kept / ring & 1;
    }
};

} // namespace sr

#endif
