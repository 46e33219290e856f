// SPDX-License-Identifier: Apache-2.0
//
// prefill_gpu: causal prefill attention of one layer on a GPU, our kernels. bench/prefill_peers.py times cuDNN and others on
// the same shapes in the same lease.
//
//     prefill_gpu [--ctx 2048,8192,32768] [--reps N]
//
// n rows over themselves; a multiply and an add count as two operations, keys that a query may not see as none. Medians of
// single launches between events. K, V and queries are random.
#include "cuda/attn_cuda.h"
#include "cuda/prefill_cuda.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
#include "formats/quant.h"
}

#define CHECK(call)                                                                                      \
    do {                                                                                                 \
        const cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) fprintf(stderr, "prefill_gpu: %s: %s\n", #call, cudaGetErrorString(e_)), exit(1); \
    } while (0)

static sr_error err;
static int reps = 9;

// About normal: the sum of four bytes of a hash.
__global__ void fill(float *x, size_t n, uint32_t seed)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t h = ((uint32_t)i + seed) * 0x9e3779b1u;
        h = (h ^ h >> 15) * 0x85ebca77u;
        h = (h ^ h >> 13) * 0xc2b2ae3du;
        h ^= h >> 16;
        x[i] = ((float)(h & 255) + (float)(h >> 8 & 255) + (float)(h >> 16 & 255) + (float)(h >> 24) - 510.0f) / 148.0f;
    }
}

template <typename T> static T *memory(size_t n)
{
    T *p;
    CHECK(cudaMalloc(&p, n * sizeof(T)));
    return p;
}

static float *random_rows(size_t n, uint32_t seed)
{
    float *x = memory<float>(n);
    fill<<<1024, 256>>>(x, n, seed);
    return x;
}

static double median_us(void (*prefill)(struct backend_cuda *, const struct prefill_params *), const struct prefill_params &p)
{
    struct backend_cuda c = {};
    std::vector<float> times;
    cudaEvent_t a, b;
    CHECK(cudaEventCreate(&a));
    CHECK(cudaEventCreate(&b));
    for (int i = 0; i < reps + 2; i++) {
        float ms;
        CHECK(cudaEventRecord(a));
        prefill(&c, &p);
        CHECK(cudaEventRecord(b));
        CHECK(cudaEventSynchronize(b));
        CHECK(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2) times.push_back(ms * 1000);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

static void bench(int len, int n_kv, int group, int d, sr_dtype type)
{
    attn_cuda a = {};
    const int pages = (len + 2 * SR_PAGE_ROWS - 1) / (2 * SR_PAGE_ROWS) * 2;
    if (sr_attn_cuda_card(&a.card, &err) != SR_OK) fprintf(stderr, "prefill_gpu: %s\n", err.text), exit(1);
    a.shape = attn_cuda_shape{d, group, n_kv, type};
    a.limits = attn_cuda_limits{n_kv, pages * SR_PAGE_ROWS, group, d};
    const size_t page = sr_attn_cuda_page_bytes(&a.shape), n_pages = (size_t)n_kv * pages, width = (size_t)n_kv * d;
    uint8_t *k = memory<uint8_t>(n_pages * page), *v = memory<uint8_t>(n_pages * page);
    std::vector<void *> at[2];
    for (size_t i = 0; i < n_pages; i++) at[0].push_back(k + i * page), at[1].push_back(v + i * page);
    void **tables = memory<void *>(2 * n_pages);
    for (int i = 0; i < 2; i++) CHECK(cudaMemcpy(tables + i * n_pages, at[i].data(), n_pages * sizeof(void *), cudaMemcpyHostToDevice));
    int32_t *kv_len = memory<int32_t>(1);
    CHECK(cudaMemcpy(kv_len, &len, sizeof len, cudaMemcpyHostToDevice));
    float *scales = memory<float>(n_kv);
    std::vector<float> ones(n_kv, 1.0f);
    CHECK(cudaMemcpy(scales, ones.data(), n_kv * sizeof(float), cudaMemcpyHostToDevice));
    float *rows[4] = {random_rows(len * width, 1), random_rows(len * width, 2), random_rows(len * width * group, 3), memory<float>(len * width * group)};
    const attn_cuda_cache cache = {tables, tables + n_pages, NULL, scales, scales, kv_len, pages, 1};
    const attn_cuda_append append = {rows[0], rows[1], SR_DTYPE_F32, (int64_t)width, len, NULL, NULL, NULL};
    if (sr_attn_cuda_append(&a, &cache, &append, &err) != SR_OK) fprintf(stderr, "prefill_gpu: %s\n", err.text), exit(1);
    const bool scaled = type == SR_DTYPE_F8_E4M3;
    const struct prefill_params p = {tables, tables + n_pages, scaled ? scales : NULL, scaled ? scales : NULL, rows[2], rows[3], type, pages, n_kv, group, d,
                                     len, 0, 1.0f / sqrtf((float)d)};
    const double work = 4.0 * ((double)len * (len + 1) / 2) * d * n_kv * group;
    const double mma = median_us(sr_cuda_prefill_mma, p), used = median_us(sr_cuda_prefill, p);
    printf("%-8s d %-4d %2d/%-3d %7d %10.1f us %7.1f TFLOP/s %10.1f us by mma %6.1f TFLOP/s\n", sr_dtype_name(type), d, n_kv * group, n_kv, len, used,
           work / used / 1e6, mma, work / mma / 1e6);
    CHECK(cudaDeviceSynchronize());
    for (void *b : {(void *)k, (void *)v, (void *)tables, (void *)kv_len, (void *)scales, (void *)rows[0], (void *)rows[1], (void *)rows[2], (void *)rows[3]})
        CHECK(cudaFree(b));
}

int main(int argc, char **argv)
{
    std::string ctx = "2048,8192,32768";
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--ctx")) ctx = argv[i + 1];
        else if (!strcmp(argv[i], "--reps")) reps = atoi(argv[i + 1]);
        else fprintf(stderr, "prefill_gpu: %s: want --ctx or --reps\n", argv[i]), exit(2);
    }
    std::vector<int> lens;
    for (char *s = strtok(&ctx[0], ","); s; s = strtok(NULL, ",")) lens.push_back(atoi(s));
    for (int len : lens) bench(len, 8, 4, 128, SR_DTYPE_BF16);
    for (sr_dtype type : {SR_DTYPE_F16, SR_DTYPE_F8_E4M3, SR_DTYPE_Q8_0}) bench(8192, 8, 4, 128, type);
    for (int len : lens) bench(len, 8, 4, 64, SR_DTYPE_BF16);
    bench(8192, 2, 7, 64, SR_DTYPE_F16);
    bench(8192, 8, 4, 96, SR_DTYPE_BF16);
    bench(8192, 4, 4, 256, SR_DTYPE_BF16);
    return 0;
}
