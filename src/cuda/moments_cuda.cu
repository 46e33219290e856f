/* SPDX-License-Identifier: Apache-2.0
 *
 * Second moments of rows before rotary embedding, on the device. A block holds a tile of one group's matrix and adds the
 * rows' products in double, on the matrix units, in the order of positions: those add one product after another, each
 * rounded, so that however the rows come in batches the sums have the same bits. Elements are taken in an order in which
 * the two of a rotated pair are neighbours; the matrix is symmetric, so that each product is made once.
 */
#include "cuda/prefill_cuda.h"

extern "C" {
#include "backend/device_attn.h"
}

enum { TILE = 32, PIECE = 32 /* rows at a time */, PITCH = TILE + 4 /* lanes of a product meet in no bank */, WARPS = 8, PAIRS = TILE / 2 };

/* Element at place c of that order. */
static __device__ __forceinline__ int element_at(const struct device_moments_args &a, int c)
{
    return a.kind == ROPE_NEOX && c < a.n_dims ? c / 2 + c % 2 * (a.n_dims / 2) : c;
}

/* Where a thread finds the two elements of its pair in a row and their angle in the tables. */
struct pair_place {
    int first, second, angle; /* angle < 0: they are not turned */
    bool is_there;

    __device__ __forceinline__ void find(const struct device_moments_args &a, int q)
    {
        is_there = 2 * q < a.head_dim;
        first = is_there ? element_at(a, 2 * q) : 0;
        second = is_there ? element_at(a, 2 * q + 1) : 0;
        angle = is_there && a.kind != ROPE_NONE && 2 * q < a.n_dims ? q : -1;
    }
};

/* Two elements as they lie in a row, and the angle to turn them back by: as sums of two. */
struct turned_pair {
    float x, y;
    float2 fine, coarse;

    /* Without a branch, so that loads stay together; what does not count is read all the same, and is 0. */
    __device__ __forceinline__ void load(const struct device_moments_args &a, const pair_place &at, const float *row, int pos, bool counts)
    {
        const int half = a.n_dims / 2;
        const float2 *turn = (const float2 *)a.turn;
        const bool turns = at.angle >= 0, reads = counts && at.is_there;
        x = reads ? row[at.first] : 0.0f;
        y = reads ? row[at.second] : 0.0f;
        fine = turns && counts ? turn[pos % SR_TURN_STEP * half + at.angle] : make_float2(1, 0);
        coarse = turns && counts ? turn[(SR_TURN_STEP + pos / SR_TURN_STEP) * half + at.angle] : make_float2(1, 0);
    }
    __device__ __forceinline__ void store(float scale, double *to) const
    {
        const float c = coarse.x * fine.x - coarse.y * fine.y, s = coarse.y * fine.x + coarse.x * fine.y, u = x * scale, v = y * scale;
        *reinterpret_cast<double2 *>(to) = make_double2((double)(u * c + v * s), (double)(v * c - u * s));
    }
};

/* c [8][8] += a [8][4] b [4][8]: a lane's elements are a[lane / 4][lane % 4], b[lane % 4][lane / 4] and two of c[lane / 4]. */
static __device__ __forceinline__ void multiply_add(double (&c)[2], double a, double b)
{
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+d"(c[0]), "+d"(c[1]) : "d"(a), "d"(b));
}

/* This thread's pair of two rows of a piece, of the tile's rows and of its columns. */
struct piece_part {
    enum { N = 2, STEP = PIECE / N };
    pair_place left_at, right_at;
    turned_pair left[N], right[N];
    unsigned token[N], head[N]; /* of the next piece */

    __device__ __forceinline__ void begin(const struct device_moments_args &a)
    {
        left_at.find(a, blockIdx.y * PAIRS + threadIdx.x % PAIRS);
        right_at.find(a, blockIdx.z * PAIRS + threadIdx.x % PAIRS);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const unsigned r = threadIdx.x / PAIRS + STEP * i;
            token[i] = r / (unsigned)a.per_group;
            head[i] = r % (unsigned)a.per_group;
        }
    }
    __device__ __forceinline__ void load(const struct device_moments_args &a, int g, unsigned piece_tokens, unsigned piece_heads)
    {
        const unsigned group = (unsigned)a.per_group;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int pos = (int)a.pos0 + (int)token[i];
            const bool counts = token[i] < (unsigned)a.n && pos >= a.first && pos < a.end;
            const float *row = a.rows + ((int64_t)token[i] * a.n_kv_heads * group + g * group + head[i]) * a.head_dim;
            left[i].load(a, left_at, row, pos, counts);
            if (blockIdx.y != blockIdx.z) right[i].load(a, right_at, row, pos, counts);
            token[i] += piece_tokens;
            head[i] += piece_heads;
            if (head[i] >= group) head[i] -= group, token[i]++;
        }
    }
    __device__ __forceinline__ void store(float scale, double (*rows)[PITCH], double (*columns)[PITCH]) const
    {
        const int at = threadIdx.x % PAIRS * 2;
#pragma unroll
        for (int i = 0; i < N; i++) {
            left[i].store(scale, &rows[threadIdx.x / PAIRS + STEP * i][at]);
            if (rows != columns) right[i].store(scale, &columns[threadIdx.x / PAIRS + STEP * i][at]);
        }
    }
};

/* A warp's part of the tile: 16 rows of 8 columns; and of column threadIdx.x of the first tiles, the sum of its elements. */
struct tile_part {
    double sum[2][2], mean;
    double *unit;
    int i0, j0, dim, mean_at;

    __device__ __forceinline__ double *place(const struct device_moments_args &a, int k, int n) const
    {
        const int lane = threadIdx.x % 32, p = i0 + 8 * k + lane / 4, q = j0 + lane % 4 * 2 + n;
        if (p > q || q >= dim) return NULL;
        const int i = element_at(a, p), j = element_at(a, q);
        return unit + (int64_t)min(i, j) * dim + max(i, j);
    }
    __device__ __forceinline__ void begin(const struct device_moments_args &a, int g)
    {
        const int warp = threadIdx.x / 32, q = blockIdx.z * TILE + threadIdx.x;
        dim = a.head_dim;
        unit = a.sums + g * a.unit_len + (a.is_key ? (int64_t)dim * dim : 0);
        i0 = blockIdx.y * TILE + warp / 4 * 16;
        j0 = blockIdx.z * TILE + warp % 4 * 8;
        mean_at = a.is_key && blockIdx.y == 0 && threadIdx.x < TILE && q < dim ? dim * dim + element_at(a, q) : -1;
        mean = mean_at < 0 ? 0 : unit[mean_at];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const double *at = place(a, k / 2, k % 2);
            sum[k / 2][k % 2] = at ? *at : 0;
        }
    }
    __device__ __forceinline__ void add(const double (*rows)[PITCH], const double (*columns)[PITCH])
    {
        const int lane = threadIdx.x % 32, i = i0 % TILE + lane / 4, j = j0 % TILE + lane / 4;
#pragma unroll
        for (int r = 0; r < PIECE; r += 4) {
            const double b = columns[r + lane % 4][j];
            multiply_add(sum[0], rows[r + lane % 4][i], b);
            multiply_add(sum[1], rows[r + lane % 4][i + 8], b);
        }
        for (int r = 0; mean_at >= 0 && r < PIECE; r++) mean += columns[r][threadIdx.x];
    }
    __device__ __forceinline__ void end(const struct device_moments_args &a) const
    {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            double *at = place(a, k / 2, k % 2);
            if (at) *at = sum[k / 2][k % 2];
        }
        if (mean_at >= 0) unit[mean_at] = mean;
    }
};

struct moments_pair { struct device_moments_args a[2]; };

static __global__ void __launch_bounds__(WARPS * 32) moments_kernel(const __grid_constant__ moments_pair pair)
{
    __shared__ __align__(16) double space[2][2][PIECE][PITCH];
    const struct device_moments_args &a = pair.a[blockIdx.x >= (unsigned)pair.a[0].n_kv_heads];
    const int g = (int)blockIdx.x % a.n_kv_heads, n_rows = a.n * a.per_group;
    const unsigned piece_tokens = PIECE / (unsigned)a.per_group, piece_heads = PIECE % (unsigned)a.per_group;
    const bool is_diagonal = blockIdx.y == blockIdx.z;
    sr_grid_next();
    if (blockIdx.z < blockIdx.y) return; /* symmetric */
    tile_part tile;
    piece_part part;
    part.begin(a);
    sr_grid_wait();
    tile.begin(a, g);
    part.load(a, g, piece_tokens, piece_heads);
    part.store(a.scale, space[0][0], space[0][is_diagonal ? 0 : 1]);
    __syncthreads();
    for (int r0 = 0, now = 0; r0 < n_rows; r0 += PIECE, now ^= 1) {
        const bool more = r0 + PIECE < n_rows;
        if (more) part.load(a, g, piece_tokens, piece_heads);
        tile.add(space[now][0], space[now][is_diagonal ? 0 : 1]);
        if (more) part.store(a.scale, space[now ^ 1][0], space[now ^ 1][is_diagonal ? 0 : 1]);
        __syncthreads();
    }
    tile.end(a);
}

void sr_cuda_moments(struct backend *b, const struct device_moments_args *a, int32_t n)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const unsigned tiles = (unsigned)((a->head_dim + TILE - 1) / TILE);
    const moments_pair pair = {{a[0], a[n - 1]}};
    sr_cuda_launch(c, "moments", moments_kernel, dim3((unsigned)(a->n_kv_heads * n), tiles, tiles), dim3(WARPS * 32), 0, pair);
}
