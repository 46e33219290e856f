// SPDX-License-Identifier: Apache-2.0
//
// The sketch pages of one warp, in two passes. With room for them they are copied whole to shared memory in batches, two of
// them under way, so that a warp waits once a batch; those that the first pass ends with are there when the second begins.
// Without, their words are read from device memory as they are due.
#ifndef SR_CUDA_SKETCH_PAGES_CUH
#define SR_CUDA_SKETCH_PAGES_CUH

#include "cuda/sketch_parts.cuh"

namespace sr {

constexpr int CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / WARP;
constexpr int MAX_RING = 24; // pages of a warp

static __device__ __forceinline__ uint32_t shared_of(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// By address in shared memory: as pointers of any kind they would be made anew, from special registers, at each use.
static __device__ __forceinline__ float4 load_shared4(uint32_t at)
{
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at) : "memory");
    return x;
}
static __device__ __forceinline__ float load_shared(uint32_t at)
{
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
    return x;
}
static __device__ __forceinline__ void add_shared(uint32_t at, uint32_t x) { asm volatile("red.shared.add.u32 [%0], %1;" :: "r"(at), "r"(x) : "memory"); }

static __device__ __forceinline__ bool is_complete(uint32_t barrier, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
    uint32_t done;
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    return done;
#else
    return true;
#endif
}

// Page k of the warp is table[k * CHOOSE_WARPS]. Batches are numbered as they are copied: those of the first pass, then, where
// there are more than two, those before the last two again, backwards, since the card's cache has the latest; the second pass
// begins with the last two of the first.
struct page_stream {
    void *const *table;
    uint64_t lane_page;   // of this lane in the batch to be copied next; without room, page `lane` of the 32 under way
    uint32_t slots, full; // of the warp, in shared memory
    int32_t n, bytes, slot_bytes, fresh; // fresh: a page that the kernel before may be writing, or -1
    int32_t batch, batches, kept; // pages of a batch (0: no room); kept: number of the batch that the second pass begins with

    __device__ __forceinline__ int32_t base_of(int32_t number) const { return (number < batches ? number : 2 * batches - 3 - number) * batch; } // without room 0
    __device__ __forceinline__ int32_t count_of(int32_t number) const { return batch ? min(batch, n - base_of(number)) : n; }
    __device__ __forceinline__ void find(int32_t number)
    {
        const int lane = threadIdx.x % WARP;
        if (number < batches + kept && lane < count_of(number)) lane_page = (uint64_t)table[(base_of(number) + lane) * CHOOSE_WARPS];
    }

    // This lane's page to the i-th slot.
    __device__ __forceinline__ void copy_page(int32_t number, int32_t i)
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                     :: "r"(slots + i * slot_bytes), "l"(lane_page), "r"(bytes), "r"(full + (number & 1) * 8) : "memory");
#endif
    }
    __device__ __forceinline__ void expect(int32_t number)
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(full + (number & 1) * 8), "r"(count_of(number) * bytes) : "memory");
#endif
    }
    __device__ __forceinline__ void copy(int32_t number)
    {
        const int lane = threadIdx.x % WARP;
        if (lane == 0) expect(number);
        __syncwarp();
        if (lane < count_of(number)) {
            if (base_of(number) + lane == fresh) wait_for_previous();
            copy_page(number, (number & 1) * batch + lane);
        }
        find(number + 1);
        __syncwarp();
    }

    // `count` pages from `first` on; room for `ring` of them.
    __device__ __forceinline__ void begin(void *const *first, int32_t count, int32_t fresh_, int32_t ring, int32_t bytes_, int32_t slot_bytes_, void *slots_, void *full_)
    {
        const int lane = threadIdx.x % WARP;
        table = first, n = count, bytes = bytes_, slot_bytes = slot_bytes_, fresh = fresh_, batch = ring / 2;
        batches = batch ? (n + batch - 1) / batch : n > 0;
        kept = batch && batches > 2 ? batches - 2 : 0;
        slots = shared_of(slots_), full = shared_of(full_);
        if (!batch) return;
        if (lane < min(2 * batch, n)) lane_page = (uint64_t)table[lane * CHOOSE_WARPS]; // of both first batches
#if __CUDA_ARCH__ >= 900
        if (lane < 2) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(full + lane * 8) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
#endif
        __syncwarp();
    }
    __device__ __forceinline__ void start()
    {
        const int lane = threadIdx.x % WARP;
        if (!batch) return;
        if (lane < 2 && lane < batches) expect(lane);
        __syncwarp();
        if (lane < min(2 * batch, n) && lane != fresh) copy_page(lane >= batch, lane);
        find(2);
        __syncwarp();
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
            copy_page(fresh / batch, fresh);
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
    // Where page i of a batch is, and afterwards its logits; without room these have the one slot.
    __device__ __forceinline__ uint32_t slot(int32_t number, int32_t i) const { return slots + (batch ? (number & 1) * batch + i : 0) * slot_bytes; }
    // Whether pages of a batch keep their place from pass to pass.
    __device__ __forceinline__ bool is_kept(int32_t number) const { return batch && number >= kept && number < batches; }
    // Page i in device memory, without room.
    __device__ __forceinline__ const uint8_t *page(int32_t i)
    {
        if (i % WARP == 0) lane_page = (uint64_t)table[min(i + (int32_t)(threadIdx.x % WARP), n - 1) * CHOOSE_WARPS];
        return (const uint8_t *)__shfl_sync(~0u, lane_page, i % WARP);
    }
    // The batch is read: its place is free where the pass does not end with it.
    __device__ __forceinline__ void release(int32_t number, bool is_second)
    {
        if (kept == 0 || (!is_second && number >= kept) || number + 2 >= batches + kept) return;
#if __CUDA_ARCH__ >= 900
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); // what was written there comes before the copy
#endif
        __syncwarp();
        copy(number + 2);
    }
};

} // namespace sr

#endif
