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

// Words of shared memory by 32-bit addresses, which need no generic pointer to be made anew at each turn of a loop.
static __device__ __forceinline__ uint4 load_shared16(uint32_t at)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}
static __device__ __forceinline__ uint2 load_shared8(uint32_t at)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}
static __device__ __forceinline__ uint32_t load_shared4(uint32_t at)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}
static __device__ __forceinline__ uint32_t load_shared2(uint32_t at)
{
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
    return v;
}
static __device__ __forceinline__ float4 load_shared_floats(uint32_t at)
{
    const uint4 v = load_shared16(at);
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

// Bytes that come in one piece, by the copy engine (9.0) or 16 at a time. `bar` is the stage's barrier.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
static __device__ __forceinline__ void ring_begin(uint32_t bars, int lane)
{
    if (lane < MOST_DEPTH) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(bars + 8 * lane) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
}
static __device__ __forceinline__ void ring_expect(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// Read once a step, weights are the first to leave the card's cache: kernels' code and small tables are needed again in the next layer.
static __device__ __forceinline__ void ring_piece(uint32_t bar, uint32_t to, const void *from, int bytes)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar), "l"(policy) : "memory");
}
// One piece, by the first lane.
static __device__ __forceinline__ void ring_copy(uint32_t bar, uint32_t to, const uint8_t *from, int bytes, int lane)
{
    if (lane != 0) return;
    ring_expect(bar, bytes);
    ring_piece(bar, to, from, bytes);
}
// TILE_ROWS pieces, each by a lane.
static __device__ __forceinline__ void ring_copy_rows(uint32_t bar, uint32_t to, const uint8_t *from, int bytes, int lane)
{
    if (lane == 0) ring_expect(bar, TILE_ROWS * bytes);
    __syncwarp();
    if (lane < TILE_ROWS) ring_piece(bar, to, from, bytes);
}
static __device__ __forceinline__ void ring_filled() {}
static __device__ __forceinline__ void ring_wait(uint32_t bar, uint32_t phase, int)
{
    uint32_t done = 0;
    while (!done)
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done) : "r"(bar), "r"(phase) : "memory");
}
#else
static __device__ __forceinline__ void ring_begin(uint32_t, int) { __syncwarp(); }
static __device__ __forceinline__ void copy16(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
static __device__ __forceinline__ void ring_copy(uint32_t, uint32_t to, const uint8_t *from, int bytes, int lane)
{
    for (int i = lane * 16; i < bytes; i += 512) copy16(to + i, from + i);
}
static __device__ __forceinline__ void ring_copy_rows(uint32_t, uint32_t to, const uint8_t *from, int bytes, int lane)
{
    for (int i = 0; lane < TILE_ROWS && i < bytes; i += 16) copy16(to + i, from + i);
}
static __device__ __forceinline__ void ring_filled() { asm volatile("cp.async.commit_group;" ::: "memory"); }
static __device__ __forceinline__ void ring_wait(uint32_t, uint32_t, int depth)
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

// Where a lane reads activations: zeros everywhere but in the columns of its own group. Those of eight neighbouring lanes lie in
// banks that their own activations leave free.
struct act_reader {
    uint32_t codes, meta, stride; // addresses in shared memory
    int32_t token_stride, act_bytes;
    uint32_t byte; // of Q4_K's and Q5_K's rows: picks byte t of two words

    __device__ __forceinline__ act_reader(const uint8_t *from, const uint8_t *zero, int32_t quads, int32_t bytes, int lane)
    {
        const uint32_t acts = shared_address(from), zeros = shared_address(zero);
        const uint32_t g = (uint32_t)lane >> 2, t = lane & 3;
        const bool own = g / 2 == t;
        codes = own ? acts + g % 2 * 64 + t * 16 : zeros + (g / 2 + 1) % 4 * 16;
        meta = acts + quads * 256 + t * 16;
        stride = own ? 256 : 0;
        token_stride = own ? bytes : 0;
        act_bytes = bytes;
        byte = 0x4040u + t * 0x1111u;
        asm volatile("" : "+r"(codes), "+r"(meta), "+r"(stride), "+r"(byte)); // not to be made anew from their parts
    }
};

// Activations of a lane's group: codes of both halves; d of both, and d times the sum of codes of both.
struct act_bits { uint4 codes[2]; float4 meta; };

static __device__ __forceinline__ act_bits load_acts(const act_reader &r, int32_t quad, int n)
{
    const uint32_t at = r.codes + quad * r.stride + n * r.token_stride;
    return act_bits{{load_shared16(at), load_shared16(at + 128)}, load_shared_floats(r.meta + quad * (QUAD * 16) + n * r.act_bytes)};
}

// A code's place in a sum: element = scale * (code - CENTER), or scale * code + offset.
static constexpr __host__ __device__ float center_of(int type)
{
    return type == SR_DTYPE_Q4_0 ? 8.0f : type == SR_DTYPE_Q5_0 ? 16.0f : type == SR_DTYPE_Q6_K ? 32.0f : 0.0f;
}
static constexpr __host__ __device__ bool has_offset(int type) { return sr_is_k45(type) || type == SR_DTYPE_Q4_1 || type == SR_DTYPE_Q5_1; }

// Sums of codes of a half group of rows g and g + 8, in two parts: 128 times the first and the second.
typedef int code_sums[4];

static __device__ __forceinline__ float sum_of(const code_sums &c, int i) { return (float)(128 * c[2 * i] + c[2 * i + 1]); }

// A step is a record.
template <int TYPE> struct quant_format {
    static constexpr plane_record F = sr_record(TYPE);
    static constexpr int BYTES = F.bytes, STAGE = F.bytes, PER_STEP = F.quads * QUAD * 32, QUADS = F.quads;
    static constexpr bool QUANTIZED = true, MIXED = false;
    typedef act_reader reader;

    struct source {
        const uint8_t *at;
        __device__ __forceinline__ void seek(const matvec_product &m, int32_t tile, int32_t step, int32_t steps, int)
        {
            at = m.w + ((int64_t)tile * steps + step) * BYTES;
        }
        // The next step, to be called in order.
        __device__ __forceinline__ void copy(uint32_t bar, uint32_t to, int lane)
        {
            ring_copy(bar, to, at, BYTES, lane);
            at += BYTES;
        }
    };

    // What a lane has of a record, as it is stored: of rows g and g + 8. Of each type some of these; Q4_K and Q5_K have headers for scales.
    struct bits {
        group_bits codes[QUADS][2];
        uint4 headers[2];
        uint32_t scales[QUADS][2];
        float d[2];
    };

    // A group's place among those of a record is u * 64 + 32 * i + lane (sr_place_index).
    static __device__ __forceinline__ void load(bits &b, uint32_t stage, int lane)
    {
        const uint32_t codes = stage + lane * 16, high = stage + F.high + lane * F.high_bytes, scales = stage + F.scales + lane * F.scale_bytes;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if constexpr (sr_is_k45(TYPE)) b.headers[i] = load_shared16(stage + F.scales + (lane / 4 + 8 * i) * 16);
            if constexpr (TYPE == SR_DTYPE_Q6_K) b.d[i] = __uint_as_float(load_shared4(stage + F.extra + (lane / 4 + 8 * i) * 4));
#pragma unroll
            for (int u = 0; u < QUADS; u++) {
                const int at = u * 64 + i * 32;
                group_bits &c = b.codes[u][i];
                c.codes = load_shared16(codes + u * 64 * F.code_bytes + i * 512);
                if constexpr (F.code_bytes == 32) c.more = load_shared16(codes + u * 64 * F.code_bytes + 1024 + i * 512);
                if constexpr (F.high_bytes == 4) c.high.x = load_shared4(high + at * 4);
                if constexpr (F.high_bytes == 8) c.high = load_shared8(high + at * 8);
                if constexpr (F.scale_bytes == 2) b.scales[u][i] = load_shared2(scales + at * 2);
                if constexpr (F.scale_bytes == 4) b.scales[u][i] = load_shared4(scales + at * 4);
            }
        }
    }

    struct scales { float scale[QUADS][2][2], offset[QUADS][2]; }; // [unit][row][half of a group]

    // Bytes t of four words, those of Q4_K's and Q5_K's rows.
    static __device__ __forceinline__ void k_scales(const bits &b, uint32_t byte, scales &s)
    {
        const uint32_t low = __byte_perm(b.headers[0].y, b.headers[1].y, byte), mid = __byte_perm(b.headers[0].z, b.headers[1].z, byte);
        const uint32_t top = __byte_perm(b.headers[0].w, b.headers[1].w, byte), both = __byte_perm(low, mid, 0x5410);
        const uint32_t nibbles = (top & 0x0f0fu) | (top >> 4 & 0x0f0f0000u);
        const uint32_t six[2] = {both & 0x3f3f3f3fu, nibbles | (both >> 2 & 0x30303030u)}; // [unit]: scales of both rows, offsets of both
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const __half2 d = *reinterpret_cast<const __half2 *>(&b.headers[i].x);
#pragma unroll
            for (int u = 0; u < 2; u++) {
                s.scale[u][i][0] = s.scale[u][i][1] = __low2float(d) * small_float(six[u], i);
                s.offset[u][i] = -__high2float(d) * small_float(six[u], 2 + i);
            }
        }
    }
    // Byte i of a word: 2^23 more than it, less 2^23.
    static __device__ __forceinline__ float small_float(uint32_t w, int i) { return __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7440u | (uint32_t)i)) - 8388608.0f; }

    static __device__ __forceinline__ void decode(const bits &b, uint32_t byte, scales &s)
    {
        if constexpr (sr_is_k45(TYPE)) {
            k_scales(b, byte, s);
        } else {
#pragma unroll
            for (int u = 0; u < QUADS; u++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const group_scale one = plain_scale<TYPE>(reinterpret_cast<const uint8_t *>(&b.scales[u][i]), reinterpret_cast<const uint8_t *>(&b.d[i]));
                    s.scale[u][i][0] = one.scale[0];
                    s.scale[u][i][1] = one.scale[1];
                    s.offset[u][i] = one.offset[0];
                }
        }
    }

    static __device__ __forceinline__ void multiply(const uint32_t (&w)[2][8], const act_bits &a, code_sums (&c)[2])
    {
        const uint32_t b0[4] = {a.codes[0].x, a.codes[0].y, a.codes[0].z, a.codes[0].w}, b1[4] = {a.codes[1].x, a.codes[1].y, a.codes[1].z, a.codes[1].w};
#pragma unroll
        for (int i = 0; i < 4; i++) c[0][i] = c[1][i] = 0;
#pragma unroll
        for (int k = 0; k < 4; k += 2) { // eight elements of a half, of each of four groups
            mma_bytes<!raises(TYPE)>(c[0], w[0][k], w[1][k], w[0][k + 1], w[1][k + 1], b0[k], b0[k + 1]);
            mma_bytes<!raises(TYPE)>(c[1], w[0][4 + k], w[1][4 + k], w[0][5 + k], w[1][5 + k], b1[k], b1[k + 1]);
        }
    }

    static __device__ __forceinline__ float add(const scales &s, int u, int i, const float4 &meta, const code_sums (&c)[2], float to)
    {
        constexpr float CENTER = center_of(TYPE);
        const float second_d = raises(TYPE) ? meta.y * 0.0625f : meta.y;
        if constexpr (TYPE == SR_DTYPE_Q6_K) {
            to = fmaf(s.scale[u][i][0], fmaf(meta.x, sum_of(c[0], i), -CENTER * meta.z), to);
            return fmaf(s.scale[u][i][1], fmaf(second_d, sum_of(c[1], i), -CENTER * meta.w), to);
        } else {
            float sum = fmaf(second_d, sum_of(c[1], i), meta.x * sum_of(c[0], i));
            if constexpr (CENTER != 0) sum = fmaf(-CENTER, meta.z + meta.w, sum);
            to = fmaf(s.scale[u][i][0], sum, to);
            if constexpr (has_offset(TYPE)) to = fmaf(s.offset[u][i], meta.z + meta.w, to);
            return to;
        }
    }

    // Adds a record's products, whose bits are here. give() is called when its memory may be filled anew, next() when its bits may.
    template <int N, class G, class A>
    static __device__ __forceinline__ void consume(bits &b, int32_t step, const reader &r, float (&acc)[2][N], int lane, G give, A next)
    {
        act_bits a[QUADS];
#pragma unroll
        for (int u = 0; N == 1 && u < QUADS; u++) a[u] = load_acts(r, step * QUADS + u, 0);
        give();
        scales s;
        decode(b, r.byte, s);
        code_sums c[QUADS][2];
#pragma unroll
        for (int u = 0; u < QUADS; u++) {
            uint32_t w[2][8];
#pragma unroll
            for (int i = 0; i < 2; i++) unpack_raised<TYPE>(b.codes[u][i], w[i]);
#pragma unroll
            for (int n = 0; n < N; n++) {
                if constexpr (N > 1) a[u] = load_acts(r, step * QUADS + u, n);
                multiply(w, a[u], c[u]);
#pragma unroll
                for (int i = 0; N > 1 && i < 2; i++) acc[i][n] = add(s, u, i, a[u].meta, c[u], acc[i][n]);
            }
        }
        next();
#pragma unroll
        for (int u = 0; N == 1 && u < QUADS; u++)
#pragma unroll
            for (int i = 0; i < 2; i++) acc[i][0] = add(s, u, i, a[u].meta, c[u], acc[i][0]);
    }
};

// Two types with the same steps in one launch: q, k and v often differ so.
template <int A, int B> struct mixed_format {
    typedef quant_format<A> first;
    typedef quant_format<B> other;
    static_assert(first::PER_STEP == other::PER_STEP, "steps of the same length");
    static constexpr int STAGE = first::STAGE > other::STAGE ? first::STAGE : other::STAGE, PER_STEP = first::PER_STEP;
    static constexpr bool QUANTIZED = true, MIXED = true;
    typedef act_reader reader;

    struct source {
        const uint8_t *at;
        int32_t bytes;
        __device__ __forceinline__ void seek(const matvec_product &m, int32_t tile, int32_t step, int32_t steps, int)
        {
            bytes = m.second ? other::BYTES : first::BYTES;
            at = m.w + ((int64_t)tile * steps + step) * bytes;
        }
        __device__ __forceinline__ void copy(uint32_t bar, uint32_t to, int lane)
        {
            ring_copy(bar, to, at, bytes, lane);
            at += bytes;
        }
    };
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
    static constexpr bool QUANTIZED = false, MIXED = false;
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
            ring_copy_rows(shared_address(bar), shared_address(to + lane * STRIDE), row, left < ROW ? left : ROW, lane);
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
