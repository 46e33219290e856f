// SPDX-License-Identifier: Apache-2.0
//
// The blocks that choose for one unit together, and how they give each other numbers.
//
// From 9.0 on they are a cluster: a number given goes to the shared memory of another block and is counted there, and who
// has all that was promised goes on; no fence, no barrier. Elsewhere numbers go through device memory, all blocks of the
// launch run at once, and they meet at a counter.
#ifndef SR_CUDA_SKETCH_TEAM_CUH
#define SR_CUDA_SKETCH_TEAM_CUH

#include "cuda/sketch_parts.cuh"

namespace sr {

constexpr int MAX_PARTS = CHOOSE_PARTS;

enum choose_round { ROUND_QUERY, ROUND_TOTALS, ROUND_BINS, ROUND_SUMS, ROUND_COUNTS, ROUNDS };

// What a block is given by those of its unit. H: heads, with room for more.
template <int H> struct exchange {
    float z[H][256];                              // queries in the basis
    float4 totals[MAX_PARTS][H];                  // maximum and sum of a part's near rows, and of its far rows
    uint32_t inbox[(CHOOSE_BINS + MAX_PARTS) * H]; // fixed-point shares of the parts' rows in the bins of the own slice
    uint32_t sums[CHOOSE_BINS * H];               // of all parts. Before that, where it is shared memory, the part's own bins
    int4 counts[MAX_PARTS];                       // rows of each part: listed, chosen, chosen with the other eps
};

static __device__ __forceinline__ uint32_t shared_of(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

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

template <int H> struct team {
    int index, n, slice; // this part, the parts, the bins of a slice
    exchange<H> *shared, *mine;
    uint32_t full;       // barriers of the rounds, in shared memory
    unsigned *barrier;

    __device__ __forceinline__ team(const choose_params &p, exchange<H> *shared_, uint64_t *full_)
        : index(blockIdx.x), n(gridDim.x), slice(p.slice), shared(shared_), mine(shared_), full(shared_of(full_)), barrier(NULL)
    {
#if __CUDA_ARCH__ < 900
        if (n > 1) mine = (exchange<H> *)p.w.exchange + blockIdx.y * n + index;
        barrier = p.w.barrier + 2 * blockIdx.y;
#endif
    }

    __device__ __forceinline__ int bins_of(int part) const { return max(0, min(slice, CHOOSE_BINS - part * slice)); }

    // What this block will be given in each round; one thread. Nothing may be given before all have begun.
    __device__ __forceinline__ void expect(int group, int d) const
    {
#if __CUDA_ARCH__ >= 900
        const uint32_t row = H * sizeof(uint32_t), bytes[ROUNDS] = {(uint32_t)(group * d) * 4u, (uint32_t)(n * group) * 16u,
                                                                    (uint32_t)(n * bins_of(index)) * row, CHOOSE_BINS * row, (uint32_t)n * 16u};
#pragma unroll
        for (int i = 0; i < ROUNDS; i++)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(full + 8 * i) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#pragma unroll
        for (int i = 0; i < ROUNDS; i++)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(full + 8 * i), "r"(bytes[i]) : "memory");
#endif
    }
    __device__ __forceinline__ void begin() const
    {
#if __CUDA_ARCH__ >= 900
        __syncwarp();
        asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
    }
    __device__ __forceinline__ void began() const
    {
#if __CUDA_ARCH__ >= 900
        __syncwarp();
        asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
    }

    // `place` is in this block's own exchange; the number goes to the same place in that of `part`.
    template <typename V> __device__ __forceinline__ void give(int part, const void *place, V value, int round) const
    {
#if __CUDA_ARCH__ >= 900
        uint32_t to, bar;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_of(place)), "r"(part));
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(bar) : "r"(full + 8 * round), "r"(part));
        const uint32_t *x = (const uint32_t *)&value;
        if constexpr (sizeof(V) == 16)
            asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                         :: "r"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(bar) : "memory");
        else
            asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" :: "r"(to), "r"(x[0]), "r"(bar) : "memory");
#else
        *(V *)((char *)(mine + (part - index)) + ((const char *)place - (const char *)shared)) = value;
#endif
    }

    // All that is given in a round is here. All threads.
    __device__ __forceinline__ void meet(int round) const
    {
#if __CUDA_ARCH__ >= 900
        while (!is_complete(full + 8 * round, 0)) {}
#else
        __syncthreads();
        if (n > 1 && threadIdx.x == 0) {
            unsigned long long before, now;
            asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(barrier) : "memory");
            const unsigned long long target = (before / n + 1) * n;
            do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(barrier) : "memory");
            while (now < target);
        }
        __syncthreads();
#endif
    }
};

} // namespace sr

#endif
