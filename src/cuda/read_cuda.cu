/* SPDX-License-Identifier: Apache-2.0
 *
 * The op that only reads: the limit beside which other ops are measured.
 */
#include "cuda/device_cuda.h"

enum { READ_THREADS = 256, READ_BLOCKS = 8 /* per SM */, AT_ONCE = 8 };

static __device__ void add_up(uint64_t x, uint64_t *sum)
{
    for (int i = 16; i > 0; i /= 2) x ^= __shfl_xor_sync(0xffffffffu, x, i);
    if (threadIdx.x % 32 == 0) atomicXor(reinterpret_cast<unsigned long long *>(sum), (unsigned long long)x);
}

static __global__ void read_kernel(const uint4 *p, size_t n, const uint64_t *tail, int n_tail, uint64_t *sum)
{
    const size_t step = (size_t)gridDim.x * blockDim.x, at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint4 all = make_uint4(0, 0, 0, 0);
    size_t i = at;
    for (; i + (AT_ONCE - 1) * step < n; i += AT_ONCE * step) {
        uint4 x[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) x[j] = __ldcs(p + i + j * step);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) all.x ^= x[j].x, all.y ^= x[j].y, all.z ^= x[j].z, all.w ^= x[j].w;
    }
    for (; i < n; i += step) {
        const uint4 x = __ldcs(p + i);
        all.x ^= x.x, all.y ^= x.y, all.z ^= x.z, all.w ^= x.w;
    }
    uint64_t word = (uint64_t)(all.y ^ all.w) << 32 | (all.x ^ all.z);
    if (at < (size_t)n_tail) word ^= tail[at];
    add_up(word, sum);
}

/* A warp takes a row after the other. */
static __global__ void rows_kernel(const uint64_t *p, const int32_t *rows, int n_rows, int row_words, uint64_t *sum)
{
    const int lane = threadIdx.x % 32, warps = (int)(gridDim.x * blockDim.x / 32), warp = (int)(blockIdx.x * blockDim.x + threadIdx.x) / 32;
    uint64_t all = 0;
    for (int first = warp * AT_ONCE; first < n_rows; first += warps * AT_ONCE) {
        uint64_t x[AT_ONCE];
        for (int word = lane; word < row_words; word += 32) {
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
                x[j] = first + j < n_rows ? __ldcs(p + (size_t)rows[first + j] * (size_t)row_words + word) : 0;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) all ^= x[j];
        }
    }
    add_up(all, sum);
}

void sr_cuda_read(struct backend *b, const struct read_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const int blocks = c->n_sms * READ_BLOCKS;
    if (a->rows) {
        rows_kernel<<<blocks, READ_THREADS, 0, c->stream>>>(reinterpret_cast<const uint64_t *>(a->base), a->rows, a->n_rows,
                                                            (int)(a->row_bytes / 8), a->sum);
    } else {
        const size_t n = a->bytes / 16;
        read_kernel<<<blocks, READ_THREADS, 0, c->stream>>>(reinterpret_cast<const uint4 *>(a->base), n,
                                                            reinterpret_cast<const uint64_t *>(a->base + 16 * n),
                                                            (int)(a->bytes % 16 / 8), a->sum);
    }
    sr_cuda_note(c, cudaGetLastError(), "read");
}
