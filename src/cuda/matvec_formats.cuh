// SPDX-License-Identifier: Apache-2.0
//
// What a warp does with one step of a tile of 16 rows: copies of the bytes into its own part of shared memory, and their
// product with activations that lie there. Lane 4 g + t has rows g and g + 8 of the tile, and every fourth group (or 16
// bytes) along them, from t on; it adds up its own share of both rows.
//
// Quantized: m16n8k32 products of bytes. The lanes of a row have different groups at each k, and each group its own scale,
// so the second matrix keeps groups apart: its columns 2 t and 2 t + 1 hold the high and low bytes of the activations of
// lane t's group, and zeros elsewhere. Each lane so receives the sums of its own two rows and half of a group.
#ifndef SR_CUDA_MATVEC_FORMATS_CUH
#define SR_CUDA_MATVEC_FORMATS_CUH

#include "cuda/acts_cuda.h"

#include <cuda_bf16.h>

struct matvec_product {
    const uint8_t *w;
    const float *bias;
    float *y;
    int64_t y_stride, n_out, row_bytes; // row_bytes: float types
    int32_t end_unit;                   // units of this product and those before it
    int32_t second;                     // of the second type, where two are mixed
};

// ---- copies into a warp's ring ----

enum { MOST_DEPTH = 4 };

static __device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Bytes that come in one piece, by the copy engine (9.0) or 16 at a time. `bar` is the stage's barrier.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
static __device__ __forceinline__ void ring_begin(uint64_t *bars, int lane)
{
    if (lane < MOST_DEPTH) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(bars + lane)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
}
static __device__ __forceinline__ void ring_expect(uint64_t *bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
// Read once a step, weights are the first to leave the card's cache: kernels' code and small tables are needed again in the next layer.
static __device__ __forceinline__ void ring_piece(uint64_t *bar, void *to, const void *from, int bytes)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar)), "l"(policy) : "memory");
}
// One piece, by the first lane.
static __device__ __forceinline__ void ring_copy(uint64_t *bar, uint8_t *to, const uint8_t *from, int bytes, int lane)
{
    if (lane != 0) return;
    ring_expect(bar, bytes);
    ring_piece(bar, to, from, bytes);
}
// TILE_ROWS pieces, each by a lane.
static __device__ __forceinline__ void ring_copy_rows(uint64_t *bar, uint8_t *to, const uint8_t *from, int bytes, int lane)
{
    if (lane == 0) ring_expect(bar, TILE_ROWS * bytes);
    __syncwarp();
    if (lane < TILE_ROWS) ring_piece(bar, to, from, bytes);
}
static __device__ __forceinline__ void ring_filled() {}
static __device__ __forceinline__ void ring_wait(uint64_t *bar, uint32_t phase, int)
{
    uint32_t done = 0;
    while (!done)
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done) : "r"(shared_address(bar)), "r"(phase) : "memory");
}
#else
static __device__ __forceinline__ void ring_begin(uint64_t *, int) { __syncwarp(); }
static __device__ __forceinline__ void copy16(void *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
static __device__ __forceinline__ void ring_copy(uint64_t *, uint8_t *to, const uint8_t *from, int bytes, int lane)
{
    for (int i = lane * 16; i < bytes; i += 512) copy16(to + i, from + i);
}
static __device__ __forceinline__ void ring_copy_rows(uint64_t *, uint8_t *to, const uint8_t *from, int bytes, int lane)
{
    for (int i = 0; lane < TILE_ROWS && i < bytes; i += 16) copy16(to + i, from + i);
}
static __device__ __forceinline__ void ring_filled() { asm volatile("cp.async.commit_group;" ::: "memory"); }
static __device__ __forceinline__ void ring_wait(uint64_t *, uint32_t, int depth)
{
    asm volatile("{\n\t.reg .pred p, q, r;\n\tsetp.eq.s32 p, %0, 4;\n\tsetp.eq.s32 q, %0, 3;\n\tsetp.eq.s32 r, %0, 2;\n\t"
                 "@p cp.async.wait_group 3;\n\t@q cp.async.wait_group 2;\n\t@r cp.async.wait_group 1;\n\t}" ::"r"(depth) : "memory");
    __syncwarp();
}
#endif

// ---- quantized ----

template <bool IS_SIGNED>
static __device__ __forceinline__ void mma_bytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    if constexpr (IS_SIGNED)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Codes of four bits need no shift: those of a group's second half stay 16 times as large, and their scale becomes a 16th.
static constexpr __host__ __device__ bool raises(int type) { return sr_record(type).code_bytes == 16 && sr_record(type).high_bytes == 0; }

template <int TYPE> static __device__ __forceinline__ void unpack_raised(const group_bits &b, uint32_t (&w)[8])
{
    if constexpr (raises(TYPE)) {
        const uint32_t c[4] = {b.codes.x, b.codes.y, b.codes.z, b.codes.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            w[j] = c[j] & 0x0f0f0f0fu;
            w[4 + j] = c[j] & 0xf0f0f0f0u;
        }
    } else {
        unpack<TYPE>(b, w);
    }
}

// Where a lane reads activations: zeros everywhere but in the columns of its own group.
struct act_reader {
    const uint8_t *codes, *meta;
    int32_t stride, token_stride, act_bytes;

    __device__ __forceinline__ act_reader(const uint8_t *acts, const uint8_t *zeros, int32_t quads, int32_t bytes, int lane)
    {
        const int g = lane / 4, t = lane % 4;
        const bool own = g / 2 == t;
        codes = own ? acts + g % 2 * 64 + t * 16 : zeros;
        meta = acts + quads * 256 + t * 16;
        stride = own ? 256 : 0;
        token_stride = own ? bytes : 0;
        act_bytes = bytes;
    }
};

// A step is a record.
template <int TYPE> struct quant_format {
    static constexpr plane_record F = sr_record(TYPE);
    static constexpr int BYTES = F.bytes, STAGE = (F.bytes + 127) / 128 * 128, PER_STEP = F.quads * QUAD * 32;
    static constexpr bool QUANTIZED = true;
    typedef act_reader reader;

    struct source {
        const uint8_t *at;
        __device__ __forceinline__ void seek(const matvec_product &m, int32_t tile, int32_t step, int32_t steps, int)
        {
            at = m.w + ((int64_t)tile * steps + step) * BYTES;
        }
        // The next step, to be called in order.
        __device__ __forceinline__ void copy(uint64_t *bar, uint8_t *to, int lane)
        {
            ring_copy(bar, to, at, BYTES, lane);
            at += BYTES;
        }
    };

    template <int N>
    static __device__ __forceinline__ void consume(const uint8_t *stage, int32_t step, const reader &r, float (&acc)[2][N], int lane, bool = false)
    {
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int u = 0; u < F.quads; u++) {
            uint32_t w[2][8];
            group_scale scale[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const plane_place place = {stage, g + 8 * i, u * QUAD + t};
                unpack_raised<TYPE>(load_bits<TYPE>(place), w[i]);
                scale[i] = load_scale<TYPE>(place);
            }
            const int32_t quad = step * F.quads + u;
#pragma unroll
            for (int n = 0; n < N; n++) {
                const uint8_t *b = r.codes + quad * r.stride + n * r.token_stride;
                const uint4 first = *reinterpret_cast<const uint4 *>(b), second = *reinterpret_cast<const uint4 *>(b + 128);
                const uint32_t b0[4] = {first.x, first.y, first.z, first.w}, b1[4] = {second.x, second.y, second.z, second.w};
                // d of both halves of the group, and d times the sum of codes of both
                const float4 meta = *reinterpret_cast<const float4 *>(r.meta + quad * (QUAD * 16) + n * r.act_bytes);
                const float second_d = raises(TYPE) ? meta.y * 0.0625f : meta.y;
                int c[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
#pragma unroll
                for (int k = 0; k < 4; k += 2) { // eight elements of a half, of each of four groups
                    mma_bytes<!raises(TYPE)>(c, w[0][k], w[1][k], w[0][k + 1], w[1][k + 1], b0[k], b0[k + 1]);
                    mma_bytes<!raises(TYPE)>(e, w[0][4 + k], w[1][4 + k], w[0][5 + k], w[1][5 + k], b1[k], b1[k + 1]);
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &a = acc[i][n];
                    a = fmaf(scale[i].scale[0] * meta.x, (float)(128 * c[2 * i] + c[2 * i + 1]), a);
                    a = fmaf(scale[i].scale[1] * second_d, (float)(128 * e[2 * i] + e[2 * i + 1]), a);
                    if constexpr (TYPE == SR_DTYPE_Q6_K) a = fmaf(scale[i].offset[0], meta.z, fmaf(scale[i].offset[1], meta.w, a));
                    else if constexpr (TYPE != SR_DTYPE_Q8_0) a = fmaf(scale[i].offset[0], meta.z + meta.w, a);
                }
            }
        }
    }
};

// Two types with the same steps in one launch: q, k and v often differ so.
template <int A, int B> struct mixed_format {
    typedef quant_format<A> first;
    typedef quant_format<B> other;
    static_assert(first::PER_STEP == other::PER_STEP, "steps of the same length");
    static constexpr int STAGE = first::STAGE > other::STAGE ? first::STAGE : other::STAGE, PER_STEP = first::PER_STEP;
    static constexpr bool QUANTIZED = true;
    typedef act_reader reader;

    struct source {
        const uint8_t *at;
        int32_t bytes;
        __device__ __forceinline__ void seek(const matvec_product &m, int32_t tile, int32_t step, int32_t steps, int)
        {
            bytes = m.second ? other::BYTES : first::BYTES;
            at = m.w + ((int64_t)tile * steps + step) * bytes;
        }
        __device__ __forceinline__ void copy(uint64_t *bar, uint8_t *to, int lane)
        {
            ring_copy(bar, to, at, bytes, lane);
            at += bytes;
        }
    };

    template <int N>
    static __device__ __forceinline__ void consume(const uint8_t *stage, int32_t step, const reader &r, float (&acc)[2][N], int lane, bool second)
    {
        if (second) other::template consume<N>(stage, step, r, acc, lane);
        else first::template consume<N>(stage, step, r, acc, lane);
    }
};

// ---- float ----

static __device__ __forceinline__ void widen(uint4 b, float (&w)[4], const float *) { *reinterpret_cast<uint4 *>(w) = b; }
static __device__ __forceinline__ void widen(uint4 b, float (&w)[8], const __half *)
{
    const __half2 *h = reinterpret_cast<const __half2 *>(&b);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 f = __half22float2(h[i]);
        w[2 * i] = f.x;
        w[2 * i + 1] = f.y;
    }
}
static __device__ __forceinline__ void widen(uint4 b, float (&w)[8], const __nv_bfloat16 *)
{
    const uint32_t u[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w[2 * i] = __uint_as_float(u[i] << 16);
        w[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
    }
}

struct float_reader {
    const uint8_t *acts;
    int32_t act_bytes;
    __device__ __forceinline__ float_reader(const uint8_t *a, const uint8_t *, int32_t, int32_t bytes, int) : acts(a), act_bytes(bytes) {}
};

// A step is ROW bytes of each row; in the ring rows lie STRIDE apart, so that eight lanes that read two of them meet no
// bank twice. Where a row ends within a step, what follows meets zeros, and must be no NaN: the ring is cleared first.
template <typename T> struct float_format {
    static constexpr int PER = 16 / (int)sizeof(T), ROW = 256, STRIDE = ROW + 64, STAGE = TILE_ROWS * STRIDE, PER_STEP = ROW / (int)sizeof(T);
    static constexpr bool QUANTIZED = false;
    typedef float_reader reader;

    struct source {
        const uint8_t *row; // of lane `lane` < TILE_ROWS
        int32_t left;       // bytes of it
        __device__ __forceinline__ void seek(const matvec_product &m, int32_t tile, int32_t step, int32_t, int lane)
        {
            const int64_t r = (int64_t)tile * TILE_ROWS + lane % TILE_ROWS, known = r < m.n_out ? r : m.n_out - 1;
            row = m.w + known * m.row_bytes + step * ROW;
            left = (int32_t)m.row_bytes - step * ROW;
        }
        __device__ __forceinline__ void copy(uint64_t *bar, uint8_t *to, int lane)
        {
            ring_copy_rows(bar, to + lane * STRIDE, row, left < ROW ? left : ROW, lane);
            row += ROW;
            left -= ROW;
        }
    };

    template <int N>
    static __device__ __forceinline__ void consume(const uint8_t *stage, int32_t step, const reader &r, float (&acc)[2][N], int lane, bool = false)
    {
        const int t = lane % 4;
#pragma unroll
        for (int k = 0; k < ROW / 64; k++) {
            float w[2][PER];
#pragma unroll
            for (int i = 0; i < 2; i++)
                widen(*reinterpret_cast<const uint4 *>(stage + (lane / 4 + 8 * i) * STRIDE + k * 64 + t * 16), w[i], static_cast<const T *>(NULL));
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float *at = reinterpret_cast<const float *>(r.acts + n * r.act_bytes) + step * PER_STEP + (k * 4 + t) * PER;
#pragma unroll
                for (int e = 0; e < PER; e += 4) {
                    const float4 x = *reinterpret_cast<const float4 *>(at + e);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        acc[i][n] = fmaf(w[i][e], x.x, acc[i][n]);
                        acc[i][n] = fmaf(w[i][e + 1], x.y, acc[i][n]);
                        acc[i][n] = fmaf(w[i][e + 2], x.z, acc[i][n]);
                        acc[i][n] = fmaf(w[i][e + 3], x.w, acc[i][n]);
                    }
                }
            }
        }
    }
};

#endif
