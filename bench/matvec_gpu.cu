// SPDX-License-Identifier: Apache-2.0
//
// matvec_gpu: products of one token on a GPU, beside what the card can read.
//
//     matvec_gpu [--types q4_K,bf16] [--tokens N] [--reps N]
//
// Each row is the median over replays of one CUDA graph of products that follow one another, with copies of the weights in
// turns, so that the cache of the card does not flatter. The limit is measured first, by a kernel that only reads.
#include "cuda/device_cuda.h"

extern "C" {
#include "base/rng.h"
#include "formats/quant.h"
}

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static sr_error err;
static struct backend *gpu;
static int reps = 9;

static void check(sr_status st)
{
    if (st == SR_OK) return;
    fprintf(stderr, "matvec_gpu: %s\n", err.text);
    exit(1);
}

static void check(cudaError_t e)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "matvec_gpu: %s\n", cudaGetErrorString(e));
    exit(1);
}

// Median us of a replay.
static double replay_us(struct recording *r)
{
    cudaStream_t stream = sr_cuda_of(gpu)->stream;
    cudaEvent_t a, b;
    std::vector<float> times;
    check(cudaEventCreate(&a));
    check(cudaEventCreate(&b));
    for (int i = 0; i < reps + 2; i++) {
        float ms;
        check(cudaEventRecord(a, stream));
        gpu->ops->replay(gpu, r);
        check(cudaEventRecord(b, stream));
        check(cudaEventSynchronize(b));
        check(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2) times.push_back(ms * 1000);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

static __global__ void read_kernel(const uint4 *p, int64_t n, uint32_t *out)
{
    uint32_t x = 0;
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 7 * step < n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = __ldcs(p + i + k * step);
#pragma unroll
        for (int k = 0; k < 8; k++) x ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    if (x == 0x12345678u) *out = x;
}

static double read_limit(void)
{
    const size_t bytes = (size_t)2 << 30;
    void *p, *out;
    check(gpu->ops->mem_new(gpu, &p, bytes, "bench", &err));
    check(gpu->ops->mem_new(gpu, &out, 4, "bench", &err));
    gpu->ops->mem_clear(gpu, p, bytes);
    struct recording *r;
    check(gpu->ops->record_begin(gpu, &err));
    read_kernel<<<sr_cuda_of(gpu)->n_sms * 4, 512, 0, sr_cuda_of(gpu)->stream>>>((const uint4 *)p, (int64_t)(bytes / 16), (uint32_t *)out);
    check(gpu->ops->record_end(gpu, &r, &err));
    const double rate = (double)bytes / replay_us(r) * 1e-3;
    gpu->ops->record_free(gpu, r);
    gpu->ops->mem_free(gpu, p);
    gpu->ops->mem_free(gpu, out);
    return rate;
}

static void measure(sr_dtype type, int64_t n_out, int64_t n_in, int32_t tokens, double limit)
{
    const size_t row = sr_row_bytes(type, n_in), bytes = row * (size_t)n_out;
    const int copies = (int)std::min<size_t>(32, ((size_t)256 << 20) / bytes + 1), calls = std::max(copies, 8);
    std::vector<uint8_t> data(bytes);
    struct rng rng;
    sr_rng_seed(&rng, 1);
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        const uint64_t x = sr_rng_u64(&rng) & 0x3f3f3f3f3f3f3f3full; // finite in every type
        memcpy(data.data() + i, &x, 8);
    }
    std::vector<struct weight> w((size_t)copies);
    for (auto &one : w) {
        one = {};
        one.data = data.data();
        one.dtype = type;
        one.n_out = n_out;
        one.n_in = n_in;
        one.row_bytes = row;
        check(gpu->ops->weight_prepare(gpu, &one, &err));
    }
    std::vector<float> host((size_t)(n_in * tokens));
    for (auto &f : host) f = (float)sr_rng_unit(&rng) - 0.5f;
    float *x, *y;
    check(gpu->ops->mem_new(gpu, (void **)&x, host.size() * sizeof(float), "bench", &err));
    check(gpu->ops->mem_new(gpu, (void **)&y, (size_t)(n_out * tokens) * sizeof(float), "bench", &err));
    gpu->ops->upload(gpu, x, host.data(), host.size() * sizeof(float));
    struct recording *r;
    check(gpu->ops->record_begin(gpu, &err));
    for (int i = 0; i < calls; i++) {
        struct matmul_args a = {};
        a.n_weights = 1;
        a.w[0] = &w[(size_t)(i % copies)];
        a.y[0] = y;
        a.y_stride[0] = n_out;
        a.x = x;
        a.x_stride = n_in;
        a.n = tokens;
        gpu->ops->matmul(gpu, &a);
    }
    check(gpu->ops->record_end(gpu, &r, &err));
    const double us = replay_us(r) / calls, rate = (double)bytes / us * 1e-3;
    printf("| %-5s | %6lld x %5lld | %8.2f | %8.2f | %6.0f | %5.2f |\n", sr_dtype_name(type), (long long)n_out, (long long)n_in, us,
           (double)bytes / limit * 1e-3, rate, rate / limit);
    fflush(stdout);
    check(gpu->ops->download(gpu, host.data(), y, sizeof(float), &err));
    gpu->ops->record_free(gpu, r);
    for (auto &one : w) gpu->ops->weight_release(gpu, &one);
    gpu->ops->mem_free(gpu, x);
    gpu->ops->mem_free(gpu, y);
}

static bool wants(const char *list, const char *name)
{
    if (!list) return true;
    const size_t n = strlen(name);
    for (const char *p = strstr(list, name); p; p = strstr(p + 1, name))
        if ((p == list || p[-1] == ',') && (p[n] == 0 || p[n] == ',')) return true;
    return false;
}

int main(int argc, char **argv)
{
    static const sr_dtype types[] = {SR_DTYPE_Q4_K, SR_DTYPE_Q6_K, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q5_K, SR_DTYPE_Q4_0,
                                     SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1, SR_DTYPE_F16, SR_DTYPE_F32};
    static const struct { int64_t n_out, n_in; } shapes[] = {{4096, 4096}, {6144, 4096}, {4096, 14336}, {28672, 4096}, {128256, 4096}};
    const char *list = NULL;
    int32_t tokens = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--types")) list = argv[i + 1];
        else if (!strcmp(argv[i], "--tokens")) tokens = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--reps")) reps = atoi(argv[i + 1]);
    }
    check(sr_backend_cuda_open(&gpu, 0, 1, &err));
    check(gpu->ops->matmul_reserve(gpu, 8, 14336, 128256, &err));
    const double limit = read_limit();
    printf("%s: reads %.0f GB/s; %d token%s\n\n| type | rows x columns | us | limit | GB/s | of the limit |\n|---|---|--:|--:|--:|--:|\n",
           gpu->ops->describe(gpu), limit, tokens, tokens == 1 ? "" : "s");
    for (const sr_dtype t : types)
        for (size_t s = 0; wants(list, sr_dtype_name(t)) && s < sizeof shapes / sizeof shapes[0]; s++)
            if (s < 4 || list) measure(t, shapes[s].n_out, shapes[s].n_in, tokens, limit);
    sr_backend_close(gpu);
    return 0;
}
