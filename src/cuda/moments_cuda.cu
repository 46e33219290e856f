/* SPDX-License-Identifier: Apache-2.0
 *
 * Second moments of rows before rotary embedding, on the device. A block holds a 16 x 16 tile of one group's matrix,
 * one element a thread, and adds the rows' products in double in the order of positions: however the rows come in
 * batches, the sums have the same bits.
 */
#include "cuda/prefill_cuda.h"

extern "C" {
#include "backend/device_attn.h"
}

enum { TILE = 16, ROWS = 16 /* at a time */ };

/* Element e of a row at position pos, turned back. */
static __device__ float turned_back(const struct device_moments_args &a, const float *row, int64_t pos, int e)
{
    const int half = a.n_dims / 2;
    if (a.kind == ROPE_NONE || e >= a.n_dims) return row[e] * a.scale;
    const bool neox = a.kind == ROPE_NEOX, second = neox ? e >= half : e % 2;
    const int pair = neox ? e % half : e / 2;
    const float x = row[neox ? pair : 2 * pair] * a.scale, y = row[neox ? pair + half : 2 * pair + 1] * a.scale;
    const float2 fine = ((const float2 *)a.turn)[pos % SR_TURN_STEP * half + pair];
    const float2 coarse = ((const float2 *)a.turn)[(SR_TURN_STEP + pos / SR_TURN_STEP) * half + pair];
    const float c = coarse.x * fine.x - coarse.y * fine.y, s = coarse.y * fine.x + coarse.x * fine.y;
    return second ? y * c - x * s : x * c + y * s;
}

struct moments_pair { struct device_moments_args a[2]; };

static __global__ void moments_kernel(const __grid_constant__ moments_pair pair)
{
    const struct device_moments_args &a = pair.a[blockIdx.x >= (unsigned)pair.a[0].n_kv_heads];
    __shared__ float left[ROWS][TILE], right[ROWS][TILE];
    const int i0 = blockIdx.y * TILE, j0 = blockIdx.z * TILE, ti = threadIdx.y, tj = threadIdx.x, d = a.head_dim, g = (int)blockIdx.x % a.n_kv_heads;
    sr_grid_next();
    if (j0 < i0) return; /* symmetric: elements j >= i are kept */
    if (!a.kv_len) sr_grid_wait(); /* in a step nobody writes the sums that come first */
    const int64_t pos0 = a.kv_len ? *a.kv_len - 1 : a.pos0, stride = (int64_t)a.n_kv_heads * a.per_group * d;
    const int64_t rows = (int64_t)a.n * a.per_group;
    double *unit = a.sums + g * a.unit_len + (a.is_key ? (int64_t)d * d : 0);
    const int i = i0 + ti, j = j0 + tj;
    const bool inside = i < d && j < d, is_mean = a.is_key && i0 == 0 && ti == 0 && inside;
    double sum = inside ? unit[(int64_t)i * d + j] : 0, mean = is_mean ? unit[(int64_t)d * d + j] : 0;
    sr_grid_wait();
    float x = 0, y = 0; /* of the rows to come, on their way while those before are added */
    for (int64_t r0 = -ROWS; r0 < rows; r0 += ROWS) {
        const int64_t r = r0 + ROWS + ti, pos = pos0 + r / a.per_group;
        const bool counts = r < rows && pos >= a.first && pos < a.end;
        const float *row = a.rows + r / a.per_group * stride + ((int64_t)g * a.per_group + r % a.per_group) * d;
        left[ti][tj] = x, right[ti][tj] = y;
        x = counts && i0 + tj < d ? turned_back(a, row, pos, i0 + tj) : 0.0f;
        y = counts && j < d ? turned_back(a, row, pos, j) : 0.0f;
        __syncthreads();
        if (r0 >= 0)
            for (int k = 0; k < ROWS; k++) {
                sum += (double)left[k][ti] * (double)right[k][tj];
                if (is_mean) mean += (double)right[k][tj];
            }
        __syncthreads();
    }
    if (inside && j >= i) unit[(int64_t)i * d + j] = sum;
    if (is_mean) unit[(int64_t)d * d + j] = mean;
}

void sr_cuda_moments(struct backend *b, const struct device_moments_args *a, int32_t n)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const unsigned tiles = (unsigned)((a->head_dim + TILE - 1) / TILE);
    const moments_pair pair = {{a[0], a[n - 1]}};
    sr_cuda_launch(c, "moments", moments_kernel, dim3((unsigned)(a->n_kv_heads * n), tiles, tiles), dim3(TILE, TILE), 0, pair);
}
