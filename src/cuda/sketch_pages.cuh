// SPDX-License-Identifier: Apache-2.0
//
// The sketch pages of one warp, in two passes. With room for them they are copied whole to shared memory in batches, two of
// them under way, so that a warp waits once a batch; those that the first pass ends with are there when the second begins.
// Without, their words are read from device memory as they are due.
#ifndef SR_CUDA_SKETCH_PAGES_CUH
#define SR_CUDA_SKETCH_PAGES_CUH

#include "cuda/sketch_team.cuh"

namespace sr {

constexpr int CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / WARP;
constexpr int MAX_RING = 24; // pages of a warp

// Page k of the warp is table[k * CHOOSE_WARPS]. Batches are numbered as they are copied: those of the first pass, then, where
// there are more than two, the first ones again; the second pass begins with the last two of the first.
struct page_stream {
    void *const *table;
    uint64_t lane_page;   // of this lane in the batch to be copied next; without room, page `lane` of the 32 under way
    uint32_t slots, full; // of the warp, in shared memory
    int32_t n, bytes, fresh; // fresh: a page that the kernel before may be writing, or -1
    int32_t batch, batches, kept; // pages of a batch (0: no room); kept: number of the batch that the second pass begins with

    __device__ __forceinline__ int32_t base_of(int32_t number) const { return (number < batches ? number : number - batches) * batch; }
    __device__ __forceinline__ int32_t count_of(int32_t number) const { return batch ? min(batch, n - base_of(number)) : n; }
    __device__ __forceinline__ void find(int32_t number)
    {
        const int lane = threadIdx.x % WARP;
        if (number < batches + kept && lane < count_of(number)) lane_page = (uint64_t)table[(base_of(number) + lane) * CHOOSE_WARPS];
    }

    // One lane's page of a batch.
    __device__ __forceinline__ void copy_page(int32_t number)
    {
#if __CUDA_ARCH__ >= 900
        const int lane = threadIdx.x % WARP;
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                     :: "r"(slots + ((number & 1) * batch + lane) * bytes), "l"(lane_page), "r"(bytes), "r"(full + (number & 1) * 8) : "memory");
#endif
    }
    __device__ __forceinline__ void copy(int32_t number, bool is_begin)
    {
#if __CUDA_ARCH__ >= 900
        const int lane = threadIdx.x % WARP, count = count_of(number);
        if (lane == 0)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(full + (number & 1) * 8), "r"(count * bytes) : "memory");
        __syncwarp();
        if (lane < count) {
            const bool is_fresh = base_of(number) + lane == fresh;
            if (is_fresh && !is_begin) wait_for_previous();
            if (!is_fresh || !is_begin) copy_page(number);
        }
        if (!is_begin) find(number + 1);
        __syncwarp();
#endif
    }

    // `count` pages from `first` on; room for `ring` of them.
    __device__ __forceinline__ void begin(void *const *first, int32_t count, int32_t fresh_, int32_t ring, int32_t bytes_, void *slots_, void *full_)
    {
        table = first, n = count, bytes = bytes_, fresh = fresh_, batch = ring / 2;
        batches = batch ? (n + batch - 1) / batch : n > 0;
        kept = batch && batches > 2 ? batches - 2 : 0;
        slots = shared_of(slots_), full = shared_of(full_);
        if (!batch) return;
#if __CUDA_ARCH__ >= 900
        const int lane = threadIdx.x % WARP;
        if (lane < 2) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(full + lane * 8) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
#endif
        find(0);
        __syncwarp();
    }
    __device__ __forceinline__ void start()
    {
        for (int32_t i = 0; i < 2 && i < batches && batch; i++) {
            copy(i, true);
            find(i + 1 < 2 && i + 1 < batches ? i + 1 : 2);
        }
    }

    // Before the first pass: the page left out at the beginning.
    __device__ __forceinline__ void complete()
    {
        if (fresh < 0) return;
        if (!batch) wait_for_previous();
        else if (fresh < 2 * batch && (int)(threadIdx.x % WARP) == fresh % batch) {
            const uint64_t next = lane_page;
            wait_for_previous();
            lane_page = (uint64_t)table[fresh * CHOOSE_WARPS];
            copy_page(fresh / batch);
            lane_page = next;
        }
        __syncwarp();
    }

    // All lanes; afterwards the pages of the batch are there.
    __device__ __forceinline__ void wait(int32_t number) const
    {
        if (batch)
            while (!is_complete(full + (number & 1) * 8, number >> 1 & 1)) {}
    }
    // Where page i of a batch is: an address in shared memory, or without room in device memory.
    __device__ __forceinline__ uint64_t page(int32_t number, int32_t i)
    {
        if (batch) return slots + ((number & 1) * batch + i) * bytes;
        if (i % WARP == 0) lane_page = (uint64_t)table[min(i + (int32_t)(threadIdx.x % WARP), n - 1) * CHOOSE_WARPS];
        return __shfl_sync(~0u, lane_page, i % WARP);
    }
    // The batch is read: its place is free where the pass does not end with it.
    __device__ __forceinline__ void release(int32_t number, bool is_second)
    {
        if (kept == 0 || (!is_second && number >= kept) || number + 2 >= batches + kept) return;
        __syncwarp();
        copy(number + 2, false);
    }
};

} // namespace sr

#endif
