// SPDX-License-Identifier: Apache-2.0
//
// One warp and 16 cache rows: fragments straight from device memory to registers, no shared memory between.
//
// The matrix units see keys as rows and heads as columns: S' = K Q' and O' = V' P', eight heads to a tile, so that a group
// of 4 wastes half a tile and not three quarters. Which elements of a row make one k step is free as long as K and Q
// agree, so each lane takes 16 neighbouring bytes of a row and calls them its share of two (16-bit) or four (8-bit)
// steps. V needs pairs of keys for one column: a lane takes the same 16 bytes of its four keys and interleaves them.
#ifndef SR_CUDA_ATTN_TILE_CUH
#define SR_CUDA_ATTN_TILE_CUH

#include "cuda/attn_parts.cuh"

namespace sr {

template <int D, int T> struct tile_shape {
    static constexpr int BYTES = is_wide(T) ? 2 : 1;
    static constexpr int STEPS = D / 16;                          // k steps over a row, and blocks of 16 columns
    static constexpr int K_RUN = is_wide(T) ? 2 : T == ELEM_Q8 ? 2 : 4; // k steps that one load serves
    static constexpr int V_RUN = is_wide(T) ? 4 : 8;              // column blocks that one load serves
    static constexpr int K_WORDS = is_wide(T) ? 2 * STEPS : STEPS;
    static constexpr int V_WORDS = is_wide(T) ? STEPS : (STEPS + 1) / 2;
    static constexpr int BLOCKS = D / 32;                         // of scales, Q8 only
};

// Where run number `at` of a row cut into runs of at most `most` begins; runs halve until they fit.
__host__ __device__ constexpr int run_length(int left, int most) { return most <= left ? most : run_length(left, most / 2); }

// First element, within a row, of the four that lane `t` of four has in k step `s`.
template <int D, int T> __device__ __forceinline__ int k_element(int s, int t)
{
    constexpr int steps = tile_shape<D, T>::STEPS, most = tile_shape<D, T>::K_RUN;
    if (steps % most == 0) return s / most * 16 * most + 4 * most * t + 4 * (s % most);
    int at = 0, run = run_length(steps, most);
    while (s >= at + run) {
        at += run;
        run = run_length(steps - at, most);
    }
    return 16 * at + 4 * run * t + 4 * (s - at);
}

// Column of o that lane group `g` of eight has in block `j`, `odd` of its two.
template <int D, int T> __device__ __forceinline__ int v_column(int j, int g, int odd)
{
    constexpr int steps = tile_shape<D, T>::STEPS;
    constexpr int most = tile_shape<D, T>::V_RUN;
    if (steps % most == 0) return j / most * 16 * most + 2 * most * g + 2 * (j % most) + odd;
    int at = 0, run = run_length(steps, most);
    while (j >= at + run) {
        at += run;
        run = run_length(steps - at, most);
    }
    return 16 * at + 2 * run * g + 2 * (j - at) + odd;
}

template <int D, int T, bool LOCAL = false, int AT = 0> __device__ __forceinline__ void load_k(uint32_t *w, const uint8_t *row, int t, uint32_t turn = 0)
{
    using S = tile_shape<D, T>;
    if constexpr (AT < S::STEPS) {
        constexpr int run = run_length(S::STEPS - AT, S::K_RUN), bytes = 4 * run * S::BYTES;
        load_bytes<bytes, LOCAL>(w + AT * S::BYTES, row + ((uint32_t)(16 * AT * S::BYTES + bytes * t) ^ turn));
        load_k<D, T, LOCAL, AT + run>(w, row, t, turn);
    }
}

template <int D, int T, int AT = 0> __device__ __forceinline__ void load_v(uint32_t *w, const uint8_t *row, int g)
{
    using S = tile_shape<D, T>;
    if constexpr (AT < S::STEPS) {
        constexpr int run = run_length(S::STEPS - AT, S::V_RUN), bytes = 2 * run * S::BYTES;
        load_bytes<bytes>(w + AT * S::BYTES / 2, row + 16 * AT * S::BYTES + bytes * g);
        load_v<D, T, AT + run>(w, row, g);
    }
}

// Scales of one Q8 row, as pairs of f16.
template <int D> __device__ __forceinline__ void load_scales(uint32_t *w, const uint8_t *p)
{
    constexpr int n = D / 32;
    if constexpr (n % 4 == 0) {
#pragma unroll
        for (int i = 0; i < n / 2; i += 2) load8(w + i, p + 4 * i);
    } else if constexpr (n % 2 == 0) {
        load4(w, p);
    } else {
#pragma unroll
        for (int i = 0; i < n; i++) {
            uint32_t x;
            load2(&x, p + 2 * i);
            w[i / 2] = i % 2 ? w[i / 2] | x << 16 : x;
        }
    }
}

// Scales of the columns that lane group g holds, one for each run of V.
template <int D, int AT = 0> __device__ __forceinline__ void load_column_scales(uint32_t *w, const uint8_t *p, int g)
{
    using S = tile_shape<D, ELEM_Q8>;
    if constexpr (AT < S::STEPS) {
        constexpr int run = run_length(S::STEPS - AT, S::V_RUN);
        load2(w, p + 2 * ((16 * AT + 2 * run * g) / 32));
        load_column_scales<D, AT + run>(w + 1, p, g);
    }
}

// Number of the run of V that holds block j.
template <int D, int T> __host__ __device__ constexpr int v_run_of(int j)
{
    int at = 0, i = 0;
    for (;;) {
        const int run = run_length(tile_shape<D, T>::STEPS - at, tile_shape<D, T>::V_RUN);
        if (j < at + run) return i;
        at += run;
        i++;
    }
}

// ---- K ----

template <int D, int T> struct k_tile {
    using S = tile_shape<D, T>;
    uint32_t w[2][S::K_WORDS];                                    // rows g and g + 8
    uint32_t scale[T == ELEM_Q8 ? 2 : 1][T == ELEM_Q8 ? (S::BLOCKS + 1) / 2 : 1];

    __device__ __forceinline__ void load(uint64_t address, int lane)
    {
        const int g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint64_t from = __shfl_sync(~0u, address, g + 8 * i);
            const uint8_t *p = (const uint8_t *)from;
            if constexpr (T == ELEM_Q8) {
                const uint32_t r = from % SR_PAGE_ROWS;
                p -= r;
                load_k<D, T>(w[i], p + r * D, t);
                load_scales<D>(scale[i], p + SR_PAGE_ROWS * D + r * (D / 16));
            } else {
                load_k<D, T>(w[i], p, t);
            }
        }
    }

    // From shared memory: row g, and row g + 8 eight `step`s on; what lies at x of a row is at x ^ turn.
    __device__ __forceinline__ void load_local(const uint8_t *row, int step, uint32_t turn, int lane)
    {
        load_k<D, T, true>(w[0], row, lane & 3, turn);
        load_k<D, T, true>(w[1], row + 8 * step, lane & 3, turn);
    }

    __device__ __forceinline__ void fragment(uint32_t *a, int s) const
    {
        if constexpr (is_wide(T)) {
            a[0] = w[0][2 * s], a[1] = w[1][2 * s], a[2] = w[0][2 * s + 1], a[3] = w[1][2 * s + 1];
        } else if constexpr (T == ELEM_F8) {
            a[0] = half2_of_f8_even(w[0][s]), a[2] = half2_of_f8_odd(w[0][s]);
            a[1] = half2_of_f8_even(w[1][s]), a[3] = half2_of_f8_odd(w[1][s]);
        } else {
            const uint32_t x = w[0][s] ^ 0x80808080u, y = w[1][s] ^ 0x80808080u;
            a[0] = half2_of_s8<0x4140>(x), a[2] = half2_of_s8<0x4342>(x);
            a[1] = half2_of_s8<0x4140>(y), a[3] = half2_of_s8<0x4342>(y);
        }
    }

    __device__ __forceinline__ float scale_of(int row, int block) const
    {
        const __half2 x = *(const __half2 *)&scale[row][block / 2];
        return block % 2 ? __high2float(x) : __low2float(x);
    }

    // c[nt]: keys g (0, 1) and g + 8 (2, 3) by heads 2 t and 2 t + 1. q: this lane's share of each k step, a warp apart.
    template <int NT> __device__ __forceinline__ void logits(float c[NT][4], const uint2 *q) const
    {
        constexpr int CHAINS = T == ELEM_Q8 ? S::BLOCKS : 2; // sums that do not wait for each other; Q8: one for each scale
        float x[CHAINS][NT][4] = {};
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            uint32_t a[4];
            fragment(a, s);
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint32_t b[2];
                load_shared(b, q + (n * S::STEPS + s) * WARP);
                mma<T>(x[T == ELEM_Q8 ? s / 2 : s % 2][n], a, b);
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                c[n][i] = 0;
#pragma unroll
                for (int j = 0; j < CHAINS; j++) c[n][i] += T == ELEM_Q8 ? scale_of(i / 2, j) * x[j][n][i] : x[j][n][i];
            }
    }
};

// ---- V ----

template <int D, int T> struct v_tile {
    using S = tile_shape<D, T>;
    static constexpr int RUNS = T == ELEM_Q8 ? v_run_of<D, T>(S::STEPS - 1) + 1 : 1;
    uint32_t w[4][S::V_WORDS];                                    // keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9
    uint32_t scale[T == ELEM_Q8 ? 4 : 1][RUNS];

    __device__ __forceinline__ void load(uint64_t address, int lane)
    {
        const int g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint64_t from = __shfl_sync(~0u, address, 16 + 2 * t + (i & 1) + 8 * (i >> 1));
            const uint8_t *p = (const uint8_t *)from;
            if constexpr (T == ELEM_Q8) {
                const uint32_t r = from % SR_PAGE_ROWS;
                p -= r;
                load_v<D, T>(w[i], p + r * D, g);
                load_column_scales<D>(scale[i], p + SR_PAGE_ROWS * D + r * (D / 16), g);
            } else {
                load_v<D, T>(w[i], p, g);
            }
        }
    }

    // Columns of block j by keys.
    __device__ __forceinline__ void fragment(uint32_t *a, int j) const
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t *x = w[2 * i], *y = w[2 * i + 1];
            if constexpr (is_wide(T)) {
                a[2 * i] = __byte_perm(x[j], y[j], 0x5410);
                a[2 * i + 1] = __byte_perm(x[j], y[j], 0x7632);
            } else {
                if constexpr (T == ELEM_F8) {
                    const uint32_t b = __byte_perm(x[j / 2], y[j / 2], j % 2 ? 0x7632 : 0x5410);
                    a[2 * i] = half2_of_f8_even(b);
                    a[2 * i + 1] = half2_of_f8_odd(b);
                } else {
                    const uint32_t b = __byte_perm(x[j / 2], y[j / 2], j % 2 ? 0x7362 : 0x5140);
                    const int run = v_run_of<D, T>(j);
                    const uint32_t both = scale[2 * i][run] | scale[2 * i + 1][run] << 16;
                    a[2 * i] = mul_half2(half2_of_s8<0x4140>(b ^ 0x80808080u), both);
                    a[2 * i + 1] = mul_half2(half2_of_s8<0x4342>(b ^ 0x80808080u), both);
                }
            }
        }
    }

    // o += V' P with V from shared memory, a load of each row at a time; row is row 2 t, turned by `turn` as 2 t + 8 is, and those
    // after them by `turn_1`.
    template <int NT, int AT = 0>
    __device__ __forceinline__ void add_local(float o[S::STEPS][NT][4], const uint32_t p[NT][2], const uint8_t *row, int step, uint32_t turn,
                                              uint32_t turn_1, int g)
    {
        if constexpr (AT < S::STEPS) {
            constexpr int run = run_length(S::STEPS - AT, S::V_RUN), bytes = 2 * run * S::BYTES;
#pragma unroll
            for (int i = 0; i < 4; i++)
                load_bytes<bytes, true>(w[i] + AT * S::BYTES / 2, row + ((i & 1) + (i & 2) * 4) * step +
                                                                      ((uint32_t)(16 * AT * S::BYTES + bytes * g) ^ (i & 1 ? turn_1 : turn)));
#pragma unroll
            for (int j = AT; j < AT + run; j++) {
                uint32_t a[4];
                fragment(a, j);
#pragma unroll
                for (int n = 0; n < NT; n++) mma<T>(o[j][n], a, p[n]);
            }
            asm volatile("" ::: "memory"); // the next loads stay behind
            add_local<NT, AT + run>(o, p, row, step, turn, turn_1, g);
        }
    }

    template <int NT> __device__ __forceinline__ void add(float o[S::STEPS][NT][4], const uint32_t p[NT][2]) const
    {
#pragma unroll
        for (int j = 0; j < S::STEPS; j++) {
            uint32_t a[4];
            fragment(a, j);
#pragma unroll
            for (int n = 0; n < NT; n++) mma<T>(o[j][n], a, p[n]);
        }
    }
};

} // namespace sr

#endif
