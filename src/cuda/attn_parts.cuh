// SPDX-License-Identifier: Apache-2.0
//
// What the attention kernels share: matrix-unit instructions, streaming loads, conversions of cache elements, programmatic
// launch, and the parameters of the attend kernel.
#ifndef SR_CUDA_ATTN_PARTS_CUH
#define SR_CUDA_ATTN_PARTS_CUH

#include "cuda/attn_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <math_constants.h>

namespace sr {

constexpr int WARP = 32, MAX_WARPS = 16, TILE = 16;
constexpr int MAX_UNITS = 1024; // of one launch, head blocks counted one by one
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

enum elem { ELEM_BF16, ELEM_F16, ELEM_F8, ELEM_Q8 };
__host__ __device__ constexpr bool is_wide(int t) { return t == ELEM_BF16 || t == ELEM_F16; }

struct attend_params {
    const float *q;
    float scale;
    const uint8_t *kinds;
    int kind;
    const int32_t *list, *n_list;
    int64_t list_stride;
    int32_t n_sinks, window;
    struct attn_cuda_cache cache;
    int32_t n_sms, n_units, n_kv_heads, group, n_sub; // n_sub blocks of heads share a unit's rows
    float *out, *o, *m, *l;
    int merge, audit, after_append;
    int in_line; // without lists: many units, or several sequences
    struct attn_cuda_counters *counters;
    // workspace: partial states by slot, 2 n_slots of them, their maxima and sums, and the counters of those done
    float *part_o, *part_ml;
    int32_t n_slots;
    unsigned *done;   // [MAX_UNITS]
    unsigned *done_1; // [first-level groups]
};

// Of sequences that lie anywhere: the cache of the base says how many, and nothing else.
struct seqs_params : attend_params { struct attn_cuda_seq seq[ATTN_CUDA_SEQS]; };

// A kernel, its threads and bytes of shared memory, how many of its blocks an SM holds, and the kernels of the same shape without
// lists, if there are such: of sequences whose tables lie together, and of such that lie anywhere.
struct attend_code { void (*kernel)(attend_params); int threads, smem, blocks; void (*plain)(attend_params); void (*seqs)(seqs_params); };

// Of a call.
attend_params sr_attend_params(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_attend *a);

// Instances by head size and by blocks of 8 heads (1 or 2); no kernel where there is none. has_ring: the code is Hopper's.
attend_code attend_bf16(int d, int nt, bool has_ring);
attend_code attend_f16(int d, int nt, bool has_ring);
attend_code attend_f8(int d, int nt, bool has_ring);
attend_code attend_q8(int d, int nt, bool has_ring);

// Where rows go to registers, one block an SM. Long 16-bit rows under way fill the registers of 8 warps; short and 8-bit ones are less in registers and
// more work for each byte, which more warps hide.
__host__ __device__ constexpr int attend_warps(int d, int nt, int t)
{
    return d * nt <= (is_wide(t) ? 80 : 128) ? 16 : 8;
}
// Tiles of 16 rows that a warp has under way.
__host__ __device__ constexpr int attend_tiles(int d, int nt, int t) { return !is_wide(t) && d * nt <= 64 ? 2 : 1; }

// ---- launches ----

// A launch with this attribute may begin while the kernel before it ends; every kernel here waits before its first access.
template <typename... P, typename... A>
inline cudaError_t launch(void (*kernel)(P...), dim3 grid, int block, size_t smem, const struct attn_cuda *c, A... args)
{
    cudaLaunchAttribute attr = {};
    attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)block);
    config.dynamicSmemBytes = smem;
    config.stream = (cudaStream_t)c->stream;
    config.attrs = &attr;
    config.numAttrs = c->card.capability >= 90 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, P(args)...);
}

static __device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- loads that pass by L1 ----

static __device__ __forceinline__ void load16(uint32_t *r, const uint8_t *p)
{
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(p));
}

static __device__ __forceinline__ void load8(uint32_t *r, const uint8_t *p)
{
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "l"(p));
}

static __device__ __forceinline__ void load4(uint32_t *r, const uint8_t *p)
{
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(r[0]) : "l"(p));
}

static __device__ __forceinline__ void load2(uint32_t *r, const uint8_t *p)
{
    unsigned short x;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(x) : "l"(p));
    r[0] = x;
}

template <int BYTES, bool LOCAL = false> static __device__ __forceinline__ void load_bytes(uint32_t *r, const uint8_t *p)
{
    if constexpr (LOCAL && BYTES == 16) {
        const uint4 x = *(const uint4 *)p;
        r[0] = x.x, r[1] = x.y, r[2] = x.z, r[3] = x.w;
    } else if constexpr (LOCAL && BYTES == 8) {
        const uint2 x = *(const uint2 *)p;
        r[0] = x.x, r[1] = x.y;
    } else if constexpr (LOCAL && BYTES == 4) r[0] = *(const uint32_t *)p;
    else if constexpr (LOCAL) r[0] = *(const uint16_t *)p;
    else if constexpr (BYTES == 16) load16(r, p);
    else if constexpr (BYTES == 8) load8(r, p);
    else if constexpr (BYTES == 4) load4(r, p);
    else load2(r, p);
}

// ---- copies to shared memory ----

static __device__ __forceinline__ void copy_in(uint32_t to, uint64_t from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
}

static __device__ __forceinline__ void copy_or_clear(uint32_t to, uint64_t from, bool copies)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(copies ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// All but the last n groups of this thread have come.
template <int n> static __device__ __forceinline__ void wait_groups() { asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory"); }

// A load that stays where it is written: queries kept in registers over the loop would push out rows under way.
static __device__ __forceinline__ void load_shared(uint32_t *r, const uint2 *p)
{
    asm volatile("ld.volatile.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"((uint32_t)__cvta_generic_to_shared(p)));
}

// ---- matrix units ----

template <int T> static __device__ __forceinline__ void mma(float *c, const uint32_t *a, const uint32_t *b)
{
    if constexpr (T == ELEM_BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Turns an 8 x 8 matrix of 16-bit elements spread over the warp.
static __device__ __forceinline__ uint32_t turn(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

template <int T> static __device__ __forceinline__ uint32_t pack(float lo, float hi)
{
    if constexpr (T == ELEM_BF16) {
        const __nv_bfloat162 x = __floats2bfloat162_rn(lo, hi);
        return *(const uint32_t *)&x;
    } else {
        const __half2 x = __floats2half2_rn(lo, hi);
        return *(const uint32_t *)&x;
    }
}

static __device__ __forceinline__ float exp2_of(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- bytes to pairs of f16 ----

// e4m3 bytes 0 and 2, or 1 and 3, of x as f16, times 2^-8: the bits moved one place, the sign two. The instruction for it
// runs at an eighth of the rate of these; it knows NaN, which a cache that saturates does not hold.
static __device__ __forceinline__ uint32_t half2_of_f8_even(uint32_t x)
{
    return (x << 8 & 0x80008000u) | (x << 7 & 0x3f803f80u);
}
static __device__ __forceinline__ uint32_t half2_of_f8_odd(uint32_t x)
{
    return (x & 0x80008000u) | (x >> 1 & 0x3f803f80u);
}
constexpr float F8_UNIT = 256.0f;

// Biased bytes b0 and b1 of x as f16: 0x6400 + u is 1024 + u.
template <int SELECT> static __device__ __forceinline__ uint32_t half2_of_s8(uint32_t biased)
{
    const uint32_t x = __byte_perm(biased, 0x64646464u, SELECT), bias = 0x64806480u;
    const __half2 y = __hsub2(*(const __half2 *)&x, *(const __half2 *)&bias);
    return *(const uint32_t *)&y;
}

static __device__ __forceinline__ uint32_t mul_half2(uint32_t x, uint32_t y)
{
    const __half2 z = __hmul2(*(const __half2 *)&x, *(const __half2 *)&y);
    return *(const uint32_t *)&z;
}

// ---- a warp ----

// The sum of x over this lane and those before it.
static __device__ __forceinline__ int32_t sum_up_to(int32_t x)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) {
        const int32_t y = __shfl_up_sync(~0u, x, i);
        if ((int)(threadIdx.x % WARP) >= i) x += y;
    }
    return x;
}

} // namespace sr

#endif
