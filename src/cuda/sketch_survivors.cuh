// SPDX-License-Identifier: Apache-2.0
//
// Survivors: the rows that may be chosen, kept while the sketch is read once. Whether a row may be is a question of the total,
// which nobody has before all is read; but the near part is known, and a row whose share of that is too small for every head
// will have less of the whole. What is kept besides is dropped when the total is there, so that the choice is the same.
//
// Four lanes, a quad, have the heads of a row; each quad has a stack of its own in shared memory, those of a warp side by
// side: a level is [NT][8 quads][4 heads] exponentials. The low bits of the first four say which row it is. A warp whose
// stacks are full only sums; it reads the rest of its pages once more when it knows the total.
#ifndef SR_CUDA_SKETCH_SURVIVORS_CUH
#define SR_CUDA_SKETCH_SURVIVORS_CUH

#include "cuda/sketch_score.cuh"

namespace sr {

constexpr uint32_t TAG = 31;   // low bits of an exponential, which their error reaches
constexpr int LEAST_LEVELS = 8; // what a page may bring to a quad

// What rows may be chosen, and how they are put into bins; logarithms of shares.
struct bin_rule { float cut, per_octave, keep; };

// Rows drawn by lot: of a lane's rows, 8 i and 32 + 8 i at bit 8 i.
static __device__ __forceinline__ uint2 draw(const part &x, int page, float share)
{
    const int lane = threadIdx.x % WARP, row = page * SR_PAGE_ROWS + lane;
    const uint32_t below = (uint32_t)(share * 65536.0f), n = (uint32_t)(x.end - x.first);
    uint32_t h = (uint32_t)row * 2654435761u ^ (uint32_t)x.u * 40503u;
    h = (h ^ h >> 15) * 2246822519u;
    const bool lo = h >> 16 < below && (uint32_t)(row - x.first) < n, hi = h * 3266489917u >> 16 < below && (uint32_t)(row + WARP - x.first) < n;
    return make_uint2(__ballot_sync(~0u, lo) >> lane / 4, __ballot_sync(~0u, hi) >> lane / 4);
}

// A lane's words of a row, one behind the other by 128 bytes, where `is_in` is not 0; predicates cost less than branches.
template <int NT> static __device__ __forceinline__ void store_if(uint32_t is_in, const float *e, uint32_t tag, uint32_t &at)
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const uint32_t word = (__float_as_uint(e[n]) & ~TAG) | (n == 0 ? tag : 0);
        asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %1, 0;\n @p st.shared.u32 [%0], %2;\n}" :: "r"(at + n * 128), "r"(is_in), "r"(word) : "memory");
    }
    asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %1, 0;\n @p add.u32 %0, %0, %2;\n}" : "+r"(at) : "r"(is_in), "n"(NT * 128));
}

template <int NT> struct survivors {
    static constexpr int LEVEL = 128 * NT; // bytes
    uint32_t base, at, full; // of the lane: its first word, its next, and where a page may not fit any more
    bool is_full;            // of the warp
    float least[NT], peak[NT]; // exponentials of its heads that survive; the largest of those that did

    __device__ __forceinline__ void begin(uint32_t stacks, int levels)
    {
        at = base = stacks + threadIdx.x % WARP * 4, full = base + (levels - LEAST_LEVELS) * LEVEL, is_full = false;
#pragma unroll
        for (int n = 0; n < NT; n++) peak[n] = 0;
    }
    __device__ __forceinline__ void survive_from(float x)
    {
#pragma unroll
        for (int n = 0; n < NT; n++) least[n] = x;
    }
    // Keeps nothing more, and knows no maximum.
    __device__ __forceinline__ void close()
    {
        survive_from(CUDART_INF_F);
        is_full = false;
#pragma unroll
        for (int n = 0; n < NT; n++) peak[n] = CUDART_INF_F;
    }
    // Page k of the warp, e: exponentials of row 8 i + lane / 4.
    __device__ __forceinline__ void push(int k, const float (*e)[NT], uint2 drawn)
    {
        const int lane = threadIdx.x % WARP;
        bool some = ((drawn.x | drawn.y) & 0x01010101u) != 0;
        float top[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = fmaxf(e[2 * i][n], e[2 * i + 1][n]);
            top[n] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
            some |= top[n] >= least[n];
        }
        if (!__any_sync(~0u, some)) return;
#pragma unroll
        for (int n = 0; n < NT; n++) peak[n] = fmaxf(peak[n], top[n]);
        const uint32_t quad = 15u << (lane & ~3), step = lane % 4 == 0;
        uint32_t tag = (uint32_t)k << 3 >> 5 * (lane % 4) & TAG;
#pragma unroll
        for (int i = 0; i < 8; i++, tag += step) {
            bool is_in = false;
#pragma unroll
            for (int n = 0; n < NT; n++) is_in |= e[i][n] >= least[n];
            store_if<NT>((__ballot_sync(~0u, is_in) & quad) | ((i < 4 ? drawn.x : drawn.y) & 1u << i % 4 * 8), e[i], tag, at);
        }
        is_full = __any_sync(~0u, at > full);
    }
};

// ---- with the total ----

// Rows of a warp that have bins, as rest_of makes them, counted from the part's first: they lie where its survivors were, or in device memory where these come in several loads.
struct binned { uint32_t *codes; int32_t n; };

// Puts the warp's survivors into bins, 32 at a time: four levels. Afterwards the stacks are empty.
template <int NT>
static __device__ __forceinline__ void bin_survivors(const bin_rule &rule, const part &x, choose_space<NT> &s, const uint32_t *bits, survivors<NT> &from, binned &to,
                                                     weighty_rows *weighty)
{
    const int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, g = lane % 8;
    __syncwarp();
    const int32_t count = __shfl_sync(~0u, (int32_t)(from.at - from.base) / from.LEVEL, 4 * g), most = __reduce_max_sync(~0u, count);
    const uint32_t first = __shfl_sync(~0u, from.base, 0) + g * 16, rows = shared_of(s.rows), sums = shared_of(s.sums), shares = shared_of(s.share);
#pragma unroll 1
    for (int level = lane / 8; level - lane / 8 < most; level += 4) {
        float e[4 * NT], top = 0;
        uint32_t id = 0;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const float4 words = load_shared4(first + level * from.LEVEL + n * 128), share = load_shared4(shares + 16 * n);
            const float word[4] = {words.x, words.y, words.z, words.w}, of_total[4] = {share.x, share.y, share.z, share.w};
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const uint32_t bits_of = __float_as_uint(word[c]);
                if (n == 0) id |= (bits_of & TAG) << 5 * c;
                e[4 * n + c] = __uint_as_float(bits_of & ~TAG) * of_total[c];
                top = fmaxf(top, e[4 * n + c]);
            }
        }
        const int32_t at = ((int32_t)(id >> 3) * CHOOSE_WARPS + w) * SR_PAGE_ROWS + (int32_t)(id & 7u) * 8 + g;
        const float score = __log2f(top);
        const bool is_in = level < count && (rule.keep >= 0 || score >= rule.cut);
        int bin = (int)fminf(fmaxf(-score * rule.per_octave, 0.0f), CHOOSE_BINS - 1.0f);
        if (rule.keep >= 0) bin = at % CHOOSE_BINS; // whatever they are, not all in one
        if (is_in && bits[at / 32] >> at % 32 & 1u)
#pragma unroll 1
            for (int i = 0; i < SR_ALWAYS_ROWS; i++)
                if (s.found_at[i] == at) s.found[i] = x.index << 16 | bin;
        if (weighty && is_in && score >= LOG_WEIGHTY) {
            const int i = atomicAdd(&weighty->n, 1);
            if (i < WEIGHTY_ROWS) weighty->rows[i] = x.page0 * SR_PAGE_ROWS + at;
        }
        const unsigned some = __ballot_sync(~0u, is_in);
        __syncwarp(); // all have read where codes go
        if (is_in) {
            to.codes[to.n + __popc(some & ((1u << lane) - 1u))] = (uint32_t)rest_of(at, bin);
            add_shared(rows + 4 * bin, 1);
#pragma unroll
            for (int h = 0; h < 4 * NT; h++) // an absent head's share is 0
                add_shared(sums + (h * CHOOSE_BINS + bin) * 4, (uint32_t)(fminf(e[h], 1.0f) * SHARE_UNIT));
        }
        to.n += __popc(some);
    }
    from.at = from.base;
    __syncwarp();
}

} // namespace sr

#endif
