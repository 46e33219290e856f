// SPDX-License-Identifier: Apache-2.0
//
// The product of a few tokens with weights that are read once: what a decode step waits for. One block an SM takes units
// (a tile of 16 rows; a tile of each of two products that are joined by silu) in turns; its warps share all of its work
// evenly, cut where it may fall, so that 16 rows fill a block as well as 16,000. Each warp streams its part through a ring
// in shared memory. The ring is filled before the kernel waits for the one before it, since weights depend on nobody:
// while the last kernel ends, its successor's weights are on their way.
//
// A block that has silu's results of 16 rows together also makes codes of them, for the product that comes next (acts_cuda.h).
//
// The order of every sum depends on shapes and on the number of SMs alone.
#ifndef SR_CUDA_MATVEC_KERNEL_CUH
#define SR_CUDA_MATVEC_KERNEL_CUH

#include "cuda/matvec_streams.cuh"

enum { TAKE_BATCH = 9 }; // times 16 bytes of a thread

// A choice's first kernel that starts early takes instructions and memory from the product before it; one that starts late shares its SMs
// with the choice, which asks for its pages meanwhile: better with up to so many rows (docs/notes/gpu-routed.md).
constexpr int32_t LATE_BELOW = 65536;

typedef void matvec_kernel(matvec_params);

// Sums of a unit that several warps share: of the warp in which it begins ([1]) and of those in which it does not.
template <int N> struct matvec_space {
    uint8_t zeros[256];
    uint64_t bars[ACT_WARPS][MOST_DEPTH];
    float norm_part[ACT_WARPS];
    float slot[ACT_WARPS][2][2][TILE_ROWS][N]; // [warp][where it begins][part]
};

// Of what lies before the activations: that, and room to arrange them anew where they become codes.
template <int N> static constexpr __host__ __device__ size_t sr_space_bytes(bool makes)
{
    return (sizeof(matvec_space<N>) + 127) / 128 * 128 + (makes ? (size_t)ACT_STAGING : 0);
}

// ---- results ----

template <int N> struct unit_sums { float v[2][2][N]; }; // [part][row g or g + 8]

// What row `lane` of a unit is added to.
static __device__ __forceinline__ float old_of(const matvec_params &p, int32_t unit, int lane)
{
    const int64_t row = (int64_t)unit * TILE_ROWS + lane;
    return p.add_to && lane < TILE_ROWS && row < p.p[0].n_out ? __ldcg(p.add_to + row) : 0.0f;
}

// Row `lane` of a unit, of which lanes below TILE_ROWS have the sums; whole warps call.
template <int N>
static __device__ __forceinline__ void finish_unit(const matvec_params &p, int32_t unit, int n, float first, float second, float old, int lane)
{
    int32_t tile;
    const matvec_product &m = p.p[product_of(p, unit, &tile)];
    const int64_t row = (int64_t)tile * TILE_ROWS + lane;
    const bool mine = lane < TILE_ROWS && row < m.n_out && n < p.n_tokens;
    float y = first + (mine && m.bias ? m.bias[row] : 0.0f);
    if (p.parts == 2) {
        const float up = second + (mine && p.p[1].bias ? p.p[1].bias[row] : 0.0f);
        if (mine) p.p[1].y[row] = up;
        y = y / (1.0f + expf(-y)) * up;
    }
    if (p.add_to) y += old;
    if (mine) (p.add_to ? p.add_to : m.y + n * m.y_stride)[row] = y;
    if (N == 1 && p.makes.codes) put_lanes(p.makes, tile, mine ? y : 0.0f, lane);
}

// What a warp has of a unit, to where it and others find it. Lane 4 g + t keeps row g (t 0) or g + 8 (t 1).
template <int N>
static __device__ __forceinline__ void keep_sums(matvec_space<N> &s, const unit_sums<N> &u, bool begins, int lane)
{
    const int i = lane % 4, r = lane / 4 + 8 * i;
    float(*slot)[TILE_ROWS][N] = s.slot[threadIdx.x / 32][begins];
    if (i > 1) return;
#pragma unroll
    for (int n = 0; n < N; n++) {
        slot[0][r][n] = i ? u.v[0][1][n] : u.v[0][0][n];
        slot[1][r][n] = i ? u.v[1][1][n] : u.v[1][0][n];
    }
}

// The unit that this warp joins from several warps' parts: it lies around the warp's first place, and the warp before it
// holds its beginning. Negative: none.
static __device__ __forceinline__ int32_t unit_to_join(const matvec_span &s, int warp)
{
    if (warp == 0 || s.begin >= s.total || s.step == 0) return -1;
    const int32_t before = bound_of(s.total, warp - 1);
    return before <= s.unit * s.unit_steps && before < s.begin ? s.unit : -1;
}

// A unit of the block that begins in warp `from` and goes on in those from there on, up to place `end`.
template <int N>
static __device__ __forceinline__ void join_unit(const matvec_params &p, const matvec_space<N> &s, const matvec_span &span, int32_t unit, int from,
                                                 float old, int lane)
{
    const int32_t end = (unit + 1) * span.unit_steps;
    const int r = lane % TILE_ROWS;
#pragma unroll
    for (int n = 0; n < N; n++) {
        float first = s.slot[from][1][0][r][n], second = s.slot[from][1][1][r][n];
#pragma unroll 1
        for (int w = from + 1; w < ACT_WARPS && bound_of(span.total, w) < end; w++) {
            if (bound_of(span.total, w) == bound_of(span.total, w + 1)) continue;
            first += s.slot[w][0][0][r][n];
            second += s.slot[w][0][1][r][n];
        }
        finish_unit<N>(p, unit_at(unit), n, first, second, old, lane);
    }
}

// ---- the kernel ----

// Sums of the lanes of a row; the lanes' own start anew.
template <int N> static __device__ __forceinline__ void gather_rows(float (&acc)[2][N], float (&to)[2][N])
{
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            float x = acc[i][n];
            x += __shfl_xor_sync(0xffffffffu, x, 1);
            to[i][n] = x + __shfl_xor_sync(0xffffffffu, x, 2);
            acc[i][n] = 0;
        }
}

// All of a warp's span, unit by unit, and at last the unit that it joins (`join`, or negative). What ends a unit is there once,
// for both: a kernel waits for the instructions of what it seldom does.
template <class F, int N>
static __device__ __forceinline__ void multiply_span(const matvec_params &p, const matvec_span &s, walk_of<F> &fill, const ring_of<F> &ring,
                                                     const typename F::reader &reader, matvec_space<N> &space, int32_t join, float join_old, int lane)
{
    const int warp = (int)threadIdx.x / 32;
    float acc[2][N] = {};
    unit_sums<N> sums = {};
    stream_of<F, N> stream = {ring.at, ring.bars, 0, 0};
    int32_t at = s.begin, unit = s.unit, step = s.step, tile;
    bool begins = step == 0;
#pragma unroll 1
    for (;;) {
        const bool is_last = at >= s.end;
        if (is_last) {
            __syncthreads();
            if (join < 0) return;
            unit = join;
        } else {
            const int32_t part = step >= p.steps, first = part ? step - p.steps : step;
            const int32_t n = p.steps - first < s.end - at ? p.steps - first : s.end - at;
            stream.multiply(p, fill, reader, first, n, p.p[product_of(p, unit_at(unit), &tile)].second, acc, lane);
            at += n;
            step += n;
            if (part) gather_rows<N>(acc, sums.v[1]);
            else gather_rows<N>(acc, sums.v[0]);
            if (step < s.unit_steps && at < s.end) continue;
            keep_sums<N>(space, sums, begins, lane);
            const bool is_whole = begins && step == s.unit_steps;
            sums = unit_sums<N>{};
            begins = true;
            step = 0;
            if (!is_whole) {
                unit++;
                continue;
            }
            __syncwarp();
        }
        const float old = is_last ? join_old : old_of(p, unit_at(unit), lane);
        join_unit<N>(p, space, s, unit, is_last ? warp - 1 : warp, old, lane);
        if (is_last) return;
        __syncwarp();
        unit++;
    }
}

// The activations that the product before has made, by all threads, all loads under way at once. Not by the copy engine, which
// has the rings of two kernels to fill first; and no block asks for the same bytes twice, since all blocks ask at this moment.
static __device__ __forceinline__ void take_acts(const matvec_params &p, uint8_t *acts)
{
    const int32_t n_codes = p.quads * 16, n = n_codes + p.acts.n_in / 32; // of 16 bytes
    const uint4 *codes = reinterpret_cast<const uint4 *>(p.takes.codes), *meta = reinterpret_cast<const uint4 *>(p.takes.meta) - n_codes;
#pragma unroll 1
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += TAKE_BATCH * ACT_THREADS) {
        uint4 v[TAKE_BATCH];
#pragma unroll
        for (int k = 0; k < TAKE_BATCH; k++) {
            const int32_t at = i + k * ACT_THREADS;
            if (at < n) v[k] = __ldcg((at < n_codes ? codes : meta) + at);
        }
#pragma unroll
        for (int k = 0; k < TAKE_BATCH; k++)
            if (i + k * ACT_THREADS < n) reinterpret_cast<uint4 *>(acts)[i + k * ACT_THREADS] = v[k];
    }
}

// The same of several tokens, which lie one behind the other as they will.
static __device__ __forceinline__ void take_all(const matvec_params &p, uint8_t *acts)
{
    const int32_t n = p.n_tokens * p.act_bytes / 16;
    const uint4 *from = reinterpret_cast<const uint4 *>(p.takes.codes);
#pragma unroll 1
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += TAKE_BATCH * ACT_THREADS) {
        uint4 v[TAKE_BATCH];
#pragma unroll
        for (int k = 0; k < TAKE_BATCH; k++)
            if (i + k * ACT_THREADS < n) v[k] = __ldcg(from + i + k * ACT_THREADS);
#pragma unroll
        for (int k = 0; k < TAKE_BATCH; k++)
            if (i + k * ACT_THREADS < n) reinterpret_cast<uint4 *>(acts)[i + k * ACT_THREADS] = v[k];
    }
}

template <class F, int N> static __global__ void __launch_bounds__(ACT_THREADS, N == 1 ? 2 : 1) matvec_kernel_of(const __grid_constant__ matvec_params p)
{
    extern __shared__ __align__(128) uint8_t shared[];
    matvec_space<N> &space = *reinterpret_cast<matvec_space<N> *>(shared);
    float *staging = reinterpret_cast<float *>(shared + sr_space_bytes<N>(false));
    const bool takes = F::QUANTIZED && (N > 1 || p.takes.codes);
    uint8_t *acts = shared + sr_space_bytes<N>(F::QUANTIZED && !takes);
    // From one lane: so the compiler knows that it is one for all, and what hangs on it needs neither loops nor votes.
    const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0), lane = (int)threadIdx.x % 32;
    uint8_t *memory = acts + N * p.act_bytes + (size_t)warp * p.depth * F::STAGE;
    const bool late = p.late && *p.late < LATE_BELOW;
    if (!late) sr_grid_next();
    const int32_t units = (p.n_units - (int32_t)blockIdx.x + (int32_t)gridDim.x - 1) / (int32_t)gridDim.x, unit_steps = p.parts * p.steps;
    const int32_t total = units * unit_steps;
    const int32_t begin = bound_of(total, warp);
    const matvec_span span = {begin, bound_of(total, warp + 1), unit_steps, total, begin / unit_steps, begin % unit_steps};
    walk_of<F> fill;
    fill.start(p, span);
    if (p.clears)
        for (int i = lane * 16; i < p.depth * F::STAGE; i += 512) *reinterpret_cast<uint4 *>(memory + i) = make_uint4(0, 0, 0, 0);
    const ring_of<F> ring(memory, space.bars[warp]);
    ring.begin(lane);
#pragma unroll 1
    for (int i = 0; i < p.depth; i++) {
        fill.copy(p, ring.bar(i), ring.stage(i), lane);
        ring_filled();
    }
    act_pieces norm_w;
    if (!takes) first_weights(p.acts, norm_w);
    if (threadIdx.x < 16) reinterpret_cast<uint4 *>(space.zeros)[threadIdx.x] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (int n = 0; (N == 1 || !takes) && n < p.n_tokens; n++)
        clear_padding<F::QUANTIZED>(acts + n * p.act_bytes, p.quads, p.acts.n_in, p.steps * F::PER_STEP);
    sr_grid_wait();
    if (late) sr_grid_next();
    const int32_t join = unit_to_join(span, warp);
    const float join_old = join >= 0 ? old_of(p, unit_at(join), lane) : 0.0f;
    if (takes) {
        if constexpr (N == 1) take_acts(p, acts);
        else take_all(p, acts);
    } else {
#pragma unroll 1
        for (int n = 0; n < p.n_tokens; n++) {
            act_source from = p.acts;
            from.x += n * p.x_stride;
            make_acts<F::QUANTIZED>(from, norm_w, acts + n * p.act_bytes, p.quads, space.norm_part, staging);
        }
    }
    __syncthreads();
    const typename F::reader reader(acts, space.zeros, p.quads, p.act_bytes, lane);
    multiply_span<F, N>(p, span, fill, ring, reader, space, join, join_old, lane);
}

#endif
