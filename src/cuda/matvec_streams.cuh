// SPDX-License-Identifier: Apache-2.0
//
// How a warp goes through its part of a block's products (matvec_kernel.cuh): what it has brought to its ring, ahead of the products, and
// the products of steps as they come.
//
// Quantized: one record's bits are loaded from the ring while the sums of the one before are made, so that no warp waits for shared memory,
// and a record's memory is filled anew before it is multiplied. Floats are used where they lie: a step has so many that holding the next
// one's costs more than it gives (128256 x 4096 of bf16 279 us instead of 249).
#ifndef SR_CUDA_MATVEC_STREAMS_CUH
#define SR_CUDA_MATVEC_STREAMS_CUH

#include "cuda/matvec_cuda.h"
#include "cuda/matvec_formats.cuh"

#include <type_traits>

struct matvec_params {
    struct matvec_product p[SR_MATMUL_MAX];
    int32_t n_products, n_units, parts; // parts 2: a unit is a tile of p[0] and one of p[1]
    int32_t steps;                      // of a tile
    int32_t depth;                      // of a warp's ring
    int32_t n_tokens, quads, act_bytes;
    struct act_source acts;             // of the first token
    int64_t x_stride;
    float *add_to;
    struct made_acts takes, makes;      // activations of this product, if they are there; what it makes for the next one
    bool clears;                        // the ring is cleared first
    const int32_t *late;                // of matvec_extra
};

// The work of a warp: places [begin, end) of the block's, each a step of a unit.
struct matvec_span { int32_t begin, end, unit_steps, total, unit, step; }; // unit, step: of begin

static __device__ __forceinline__ int32_t bound_of(int32_t total, int warp) { return (int32_t)((uint32_t)total * (uint32_t)warp / ACT_WARPS); }

static __device__ __forceinline__ int32_t unit_at(int32_t i) { return (int32_t)(blockIdx.x + i * gridDim.x); }

// The product that a unit belongs to, and its tile in it.
static __device__ __forceinline__ int product_of(const matvec_params &p, int32_t unit, int32_t *tile)
{
    int i = 0;
    *tile = unit;
    if (p.parts == 2) return 0;
#pragma unroll 1
    for (; i + 1 < p.n_products && unit >= p.p[i].end_unit; i++) *tile = unit - p.p[i].end_unit;
    return i;
}

// ---- records ----

// By addresses in shared memory that are made once: from pointers they would be made anew at each turn of the loop.
template <class F> struct record_ring {
    uint32_t at, bars;
    __device__ __forceinline__ record_ring(uint8_t *ring, uint64_t *b) : at(shared_address(ring)), bars(shared_address(b))
    {
        asm volatile("" : "+r"(at), "+r"(bars));
    }
    __device__ __forceinline__ void begin(int lane) const { ring_begin(bars, lane); }
    __device__ __forceinline__ uint32_t bar(int i) const { return bars + 8 * i; }
    __device__ __forceinline__ uint32_t stage(int i) const { return at + i * F::STAGE; }
};

// Where a walk through a span is, which goes ahead of the products.
struct walk_place {
    int32_t unit, part, left;  // of the block; of the unit; steps of this tile, 0: the next one is not yet looked up
    int32_t first;             // step of the tile to come
    int32_t steps;             // still to be copied: of a record_walk after this tile, of a row_walk in all

    __device__ __forceinline__ void start(const matvec_params &p, const matvec_span &s)
    {
        unit = s.unit;
        part = s.step >= p.steps;
        steps = s.end - s.begin;
        left = 0;
        first = s.step - part * p.steps;
    }
};

// Record by record.
template <class F> struct record_walk : walk_place {
    typename F::source source;

    __device__ __forceinline__ void seek(const matvec_params &p, int lane)
    {
        int32_t tile;
        const int i = product_of(p, unit_at(unit), &tile);
        source.seek(p.p[i + part], tile, first, p.steps, lane);
        left = p.steps - first < steps ? p.steps - first : steps;
        steps -= left;
        first = 0;
        part = part + 1 < p.parts;
        unit += !part;
    }
    __device__ __forceinline__ void copy(const matvec_params &p, uint32_t bar, uint32_t to, int lane)
    {
        if (left == 0) {
            if (steps == 0) return;
            seek(p, lane);
        }
        source.copy(bar, to, lane);
        left--;
    }
};

// A warp's ring, and where in it the record to come is.
template <class F, int N> struct record_stream {
    uint32_t ring, bars; // addresses in shared memory
    uint32_t stage, phase;

    // Places [at, at + n) of a span, all of one tile and of type S. Of each record the next one's bits are loaded as soon as its own are
    // spent, and its memory is filled anew as soon as they are there.
    template <class S>
    __device__ __forceinline__ void multiply_as(const matvec_params &p, record_walk<F> &fill, const typename F::reader &reader, int32_t first, int32_t n,
                                                float (&acc)[2][N], int lane)
    {
        typename S::bits bits;
        uint32_t taken = 0;
        const auto take = [&] {
            ring_wait(bars + 8 * stage, phase, p.depth);
            S::load(bits, ring + stage * F::STAGE, lane);
            taken = stage++;
            if (stage < (uint32_t)p.depth) return;
            stage = 0;
            phase ^= 1u;
        };
        const auto give = [&] {
            __syncwarp();
            fill.copy(p, bars + 8 * taken, ring + taken * F::STAGE, lane);
            ring_filled();
        };
        take();
#pragma unroll 1
        for (int32_t i = 0; i < n; i++)
            S::template consume<N>(bits, first + i, reader, acc, lane, give, [&] {
                if (i + 1 < n) take();
            });
    }

    __device__ __forceinline__ void multiply(const matvec_params &p, record_walk<F> &fill, const typename F::reader &reader, int32_t first, int32_t n,
                                             bool second, float (&acc)[2][N], int lane)
    {
        if constexpr (F::MIXED) {
            if (second) multiply_as<typename F::other>(p, fill, reader, first, n, acc, lane);
            else multiply_as<typename F::first>(p, fill, reader, first, n, acc, lane);
        } else {
            multiply_as<F>(p, fill, reader, first, n, acc, lane);
        }
    }
};

// ---- rows of floats ----

template <class F> struct row_ring {
    uint8_t *at;
    uint64_t *bars;
    __device__ __forceinline__ row_ring(uint8_t *ring, uint64_t *b) : at(ring), bars(b) {}
    __device__ __forceinline__ void begin(int lane) const { ring_begin(shared_address(bars), lane); }
    __device__ __forceinline__ uint64_t *bar(int i) const { return bars + i; }
    __device__ __forceinline__ uint8_t *stage(int i) const { return at + i * F::STAGE; }
};

// Row by row.
template <class F> struct row_walk : walk_place {
    typename F::source source;

    __device__ __forceinline__ void seek(const matvec_params &p, int32_t at, int lane)
    {
        int32_t tile;
        const int i = product_of(p, unit_at(unit), &tile);
        left = p.steps - at;
        source.seek(p.p[i + part], tile, at, p.steps, lane);
    }
    __device__ __forceinline__ void copy(const matvec_params &p, uint64_t *bar, uint8_t *to, int lane)
    {
        if (steps == 0) return;
        if (left == 0) {
            seek(p, first, lane);
            first = 0;
        }
        source.copy(bar, to, lane);
        steps--;
        if (--left) return;
        part = part + 1 < p.parts;
        unit += !part;
    }
};

// A step is used up where it lies, and its memory filled anew.
template <class F, int N> struct row_stream {
    uint8_t *ring;
    uint64_t *bars;
    uint32_t stage, phase;

    __device__ __forceinline__ void multiply(const matvec_params &p, row_walk<F> &fill, const typename F::reader &reader, int32_t first, int32_t n,
                                             bool second, float (&acc)[2][N], int lane)
    {
#pragma unroll 1
        for (int32_t i = 0; i < n; i++) {
            uint8_t *here = ring + stage * F::STAGE;
            ring_wait(shared_address(bars + stage), phase, p.depth);
            F::template consume<N>(here, first + i, reader, acc, lane, second);
            __syncwarp();
            fill.copy(p, bars + stage, here, lane);
            ring_filled();
            stage++;
            if (stage < (uint32_t)p.depth) continue;
            stage = 0;
            phase ^= 1u;
        }
    }
};

// ---- by format ----

template <class F> using walk_of = std::conditional_t<F::QUANTIZED, record_walk<F>, row_walk<F>>;
template <class F> using ring_of = std::conditional_t<F::QUANTIZED, record_ring<F>, row_ring<F>>;
template <class F, int N> using stream_of = std::conditional_t<F::QUANTIZED, record_stream<F, N>, row_stream<F, N>>;

#endif
