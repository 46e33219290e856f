// SPDX-License-Identifier: Apache-2.0
//
// attn_gpu: decode attention of one layer on a GPU, beside what the card can read. K, V and sketches are random, made on
// the device; pages lie in random order.
//
//     attn_gpu [--rows read,dense,f16,f8,q8,groups,dims,batch,paper,window,list,mass,look] [--ctx 8192,32768,131072,524288] [--reps N] [--early 0|1]
//
// --early 1: dense and window rows begin with what does not depend on the kernel before (after_append). The engine does not: it
// gains nothing there.
// Times are medians over replays of CUDA graphs in which every call has its own copy of the cache, so that the cache of
// the card does not flatter. "read" is what a plain kernel takes that only reads as many bytes, in the same run.
#include "cuda/attn_small.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#define CHECK(call)                                                                                                     \
    do {                                                                                                                \
        const cudaError_t e_ = (call);                                                                                  \
        if (e_ != cudaSuccess) {                                                                                        \
            fprintf(stderr, "attn_gpu: %s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));            \
            exit(1);                                                                                                    \
        }                                                                                                               \
    } while (0)
#define TRY(call)                                                                                                       \
    do {                                                                                                                \
        if ((call) != SR_OK) {                                                                                          \
            fprintf(stderr, "attn_gpu: %s\n", err.text);                                                                \
            exit(1);                                                                                                    \
        }                                                                                                               \
    } while (0)

static sr_error err;
static cudaStream_t stream;
static int reps = 9, early = 0;

template <typename T> static T *device(size_t n)
{
    T *p;
    CHECK(cudaMalloc(&p, n * sizeof(T)));
    CHECK(cudaMemset(p, 0, n * sizeof(T)));
    return p;
}

template <typename T> static T *upload(const std::vector<T> &v)
{
    T *p;
    CHECK(cudaMalloc(&p, v.size() * sizeof(T)));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

// ---- timing ----

static float graph_us_once(const std::function<void(int)> &call, int n)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; i++) call(i);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    cudaEvent_t a, b;
    CHECK(cudaEventCreate(&a));
    CHECK(cudaEventCreate(&b));
    for (int r = 0; r < reps + 2; r++) {
        CHECK(cudaEventRecord(a, stream));
        CHECK(cudaGraphLaunch(exec, stream));
        CHECK(cudaEventRecord(b, stream));
        CHECK(cudaEventSynchronize(b));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, a, b));
        if (r >= 2) times.push_back(ms * 1000 / n);
    }
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaEventDestroy(a));
    CHECK(cudaEventDestroy(b));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

static float graph_us(const std::function<void(int)> &call, int n)
{
    float t[3];
    for (float &x : t) x = graph_us_once(call, n);
    std::sort(t, t + 3);
    return t[1];
}

// ---- the read limit ----

template <int UNROLL> __global__ void read_kernel(const uint4 *p, size_t n, uint4 *out)
{
    uint4 acc = make_uint4(0, 0, 0, 0);
    const size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + (UNROLL - 1) * step < n; i += UNROLL * step) {
        uint4 x[UNROLL];
#pragma unroll
        for (int j = 0; j < UNROLL; j++) x[j] = __ldcs(p + i + j * step);
#pragma unroll
        for (int j = 0; j < UNROLL; j++) acc.x ^= x[j].x, acc.y ^= x[j].y, acc.z ^= x[j].z, acc.w ^= x[j].w;
    }
    for (; i < n; i += step) acc.x ^= p[i].x;
    if ((acc.x ^ acc.y ^ acc.z ^ acc.w) == 0x12345678u) out[0] = acc;
}

static void *pool;
static size_t pool_bytes;
static int n_sms;
static std::map<size_t, float> read_times;

// The best of a few shapes of grid.
static float read_us(size_t bytes)
{
    bytes = (bytes + 4095) / 4096 * 4096;
    if (read_times.count(bytes)) return read_times[bytes];
    const int copies = (int)std::min<size_t>(pool_bytes / bytes, std::max<size_t>(4, ((size_t)2 << 30) / bytes));
    float best = 1e30f;
    uint4 *out = device<uint4>(1);
    for (int blocks : {1, 2, 4, 8, 16})
        for (int unroll : {4, 8}) {
            const auto call = [&](int i) {
                const uint4 *p = (const uint4 *)((char *)pool + (size_t)(i % copies) * bytes);
                if (unroll == 4) read_kernel<4><<<n_sms * blocks, blocks == 1 ? 1024 : 256, 0, stream>>>(p, bytes / 16, out);
                else read_kernel<8><<<n_sms * blocks, blocks == 1 ? 1024 : 256, 0, stream>>>(p, bytes / 16, out);
            };
            best = std::min(best, graph_us_once(call, std::max(8, std::min(copies, 64))));
        }
    CHECK(cudaFree(out));
    return read_times[bytes] = best;
}

// ---- a cache of random rows ----

__device__ static uint32_t hash(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return (uint32_t)(x >> 32);
}

// About normal, from four bytes.
__device__ static float normal(uint64_t i)
{
    const uint32_t h = hash(i);
    return ((float)(h & 255) + (float)(h >> 8 & 255) + (float)(h >> 16 & 255) + (float)(h >> 24) - 510.0f) * (1.0f / 147.8f);
}

__global__ void fill_kernel(int type, uint8_t *p, size_t pages, size_t page_bytes, int d, uint64_t seed)
{
    const size_t per_page = (size_t)SR_PAGE_ROWS * d;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < pages * per_page; i += (size_t)gridDim.x * blockDim.x) {
        uint8_t *page = p + i / per_page * page_bytes;
        const size_t e = i % per_page;
        const float x = normal(i + seed);
        if (type == sr::ELEM_BF16) ((__nv_bfloat16 *)page)[e] = __float2bfloat16_rn(x);
        else if (type == sr::ELEM_F16) ((__half *)page)[e] = __float2half_rn(x);
        else if (type == sr::ELEM_F8) page[e] = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
        else {
            page[e] = (uint8_t)(int8_t)fminf(fmaxf(x * 32.0f, -127.0f), 127.0f);
            if (e % 32 == 0) ((__half *)(page + per_page))[e / 32] = __float2half_rn(1.0f / 32);
        }
    }
}

__global__ void fill_floats(float *p, size_t n, uint64_t seed, float factor)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) p[i] = normal(i * 7919 + seed) * factor;
}

struct problem {
    attn_cuda c = {};
    int32_t len = 0, batch = 1, n_units = 0, copies = 0;
    size_t kv_bytes = 0;
    std::vector<attn_cuda_cache> cache;
    std::vector<void *> owned;
    int32_t *lens = nullptr;
    float *q = nullptr, *out = nullptr;
    void *pages = nullptr;

    problem(int len_, int batch_, int n_kv, int group, int d, sr_dtype type, int sketch_bytes_per_row = 0)
    {
        len = len_, batch = batch_, n_units = batch * n_kv;
        TRY(sr_attn_cuda_card(&c.card, &err));
        c.shape = attn_cuda_shape{d, group, n_kv, type};
        c.limits = attn_cuda_limits{n_units, len, group, d};
        c.stream = (sr_cuda_stream)stream;
        c.workspace = keep(device<char>(sr_attn_cuda_workspace_bytes(&c.card, &c.limits)));
        TRY(sr_attn_cuda_check(&c.shape, &err));
        const size_t page = sr_attn_cuda_page_bytes(&c.shape), sketch_page = (size_t)sketch_bytes_per_row * SR_PAGE_ROWS;
        const size_t n_pages = (size_t)(len + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS * n_units;
        kv_bytes = 2 * page * n_pages;
        copies = (int)std::max<size_t>(2, ((size_t)1 << 30) / kv_bytes);
        fill_pool(type, d, page, n_pages, sketch_page);
        lens = keep(upload(std::vector<int32_t>(batch, len)));
        for (attn_cuda_cache &x : cache) x.kv_len = lens;
        q = keep(device<float>((size_t)n_units * group * d));
        out = keep(device<float>((size_t)n_units * group * d));
        fill_floats<<<(n_units * group * d + 255) / 256, 256, 0, stream>>>(q, (size_t)n_units * group * d, 99, 1.0f);
        CHECK(cudaStreamSynchronize(stream));
    }
    ~problem()
    {
        for (void *p : owned) CHECK(cudaFree(p));
    }
    template <typename T> T *keep(T *p)
    {
        owned.push_back(p);
        return p;
    }
    void fill_pool(sr_dtype type, int d, size_t page, size_t n_pages, size_t sketch_page)
    {
        const int t = type == SR_DTYPE_BF16 ? sr::ELEM_BF16 : type == SR_DTYPE_F16 ? sr::ELEM_F16 : type == SR_DTYPE_Q8_0 ? sr::ELEM_Q8 : sr::ELEM_F8;
        char *base = (char *)pool;
        std::mt19937 rng(5);
        const size_t need = (size_t)copies * (kv_bytes + sketch_page * n_pages);
        if (need > pool_bytes) fprintf(stderr, "attn_gpu: %zu bytes of cache\n", need), exit(1);
        for (int i = 0; i < copies; i++) {
            attn_cuda_cache x = {};
            x.max_pages = (int32_t)(n_pages / n_units);
            x.n_seqs = batch;
            void *const **tables[] = {&x.k_page, &x.v_page, &x.y_page};
            for (int j = 0; j < (sketch_page ? 3 : 2); j++) {
                const size_t bytes = j < 2 ? page : sketch_page;
                if (j < 2) fill_kernel<<<n_sms * 8, 256, 0, stream>>>(t, (uint8_t *)base, n_pages, page, d, 1000003ull * j);
                else fill_kernel<<<n_sms * 8, 256, 0, stream>>>(sr::ELEM_BF16, (uint8_t *)base, n_pages, bytes, (int)(bytes / 2 / SR_PAGE_ROWS), 77);
                std::vector<void *> order(n_pages);
                for (size_t k = 0; k < n_pages; k++) order[k] = base + k * bytes;
                std::shuffle(order.begin(), order.end(), rng);
                *tables[j] = keep(upload(order));
                base += n_pages * bytes;
            }
            cache.push_back(x);
        }
    }
    float scale() const { return 1.0f / std::sqrt((float)c.shape.head_dim); }
};

// ---- reference, in double, on the device ----

__global__ void reference_kernel(attn_cuda_cache cache, const float *q, const int32_t *lens, const uint8_t *live, int type, int d, int group, int n_kv,
                                 double scale, double *logits, int64_t max_len, double *out)
{
    const int u = blockIdx.x / group, len = live && !live[u] ? 0 : lens[u / n_kv], tid = threadIdx.x;
    const float *qh = q + (int64_t)blockIdx.x * d;
    double *x = logits + blockIdx.x * max_len;
    __shared__ double red[256];
    double max = -1e300;
    for (int i = tid; i < len; i += 256) {
        const uint8_t *page = (const uint8_t *)cache.k_page[(int64_t)u * cache.max_pages + i / SR_PAGE_ROWS];
        double s = 0;
        for (int j = 0; j < d; j++) s += (double)qh[j] * sr::element_of(type, page, i % SR_PAGE_ROWS, d, j);
        x[i] = s * scale;
        max = fmax(max, x[i]);
    }
    red[tid] = max;
    __syncthreads();
    for (int i = 0; i < 256; i++) max = fmax(max, red[i]);
    __syncthreads();
    double sum = 0;
    for (int i = tid; i < len; i += 256) sum += x[i] = exp(x[i] - max);
    red[tid] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < 256; i++) sum += red[i];
    __syncthreads();
    if (tid >= d) return;
    double o = 0;
    for (int i = 0; i < len; i++)
        o += x[i] * sr::element_of(type, (const uint8_t *)cache.v_page[(int64_t)u * cache.max_pages + i / SR_PAGE_ROWS], i % SR_PAGE_ROWS, d, tid);
    out[(int64_t)blockIdx.x * d + tid] = len ? o / sum : 0;
}

static double error_of(const problem &p, const uint8_t *live)
{
    const attn_cuda_shape &s = p.c.shape;
    const int heads = p.n_units * s.group, n = heads * s.head_dim;
    const int t = s.kv_type == SR_DTYPE_BF16 ? sr::ELEM_BF16 : s.kv_type == SR_DTYPE_F16 ? sr::ELEM_F16 : s.kv_type == SR_DTYPE_Q8_0 ? sr::ELEM_Q8 : sr::ELEM_F8;
    if ((int64_t)heads * p.len > 8 << 20) return NAN;
    double *logits = device<double>((size_t)heads * p.len), *out = device<double>(n);
    reference_kernel<<<heads, 256, 0, stream>>>(p.cache[0], p.q, p.lens, live, t, s.head_dim, s.group, s.n_kv_heads, p.scale(), logits, p.len, out);
    CHECK(cudaStreamSynchronize(stream));
    std::vector<double> want(n);
    std::vector<float> got(n);
    CHECK(cudaMemcpy(want.data(), out, n * sizeof(double), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(got.data(), p.out, n * sizeof(float), cudaMemcpyDeviceToHost));
    CHECK(cudaFree(logits));
    CHECK(cudaFree(out));
    double diff = 0, norm = 0;
    for (int i = 0; i < n; i++) diff += (got[i] - want[i]) * (got[i] - want[i]), norm += want[i] * want[i];
    return std::sqrt(diff / norm);
}

// ---- rows of the table ----

static const char *name_of(sr_dtype t) { return t == SR_DTYPE_BF16 ? "bf16" : t == SR_DTYPE_F16 ? "f16" : t == SR_DTYPE_Q8_0 ? "q8_0" : "f8"; }

static void header()
{
    printf("%-10s %-5s %6s %5s %4s %8s %10s %9s %9s %9s %7s %9s\n", "row", "type", "heads", "d", "seqs", "context", "MB", "us", "read us", "GB/s",
           "read", "err");
}

static void print_row(const char *row, const problem &p, size_t bytes, float us, double error)
{
    const attn_cuda_shape &s = p.c.shape;
    const float read = read_us(bytes);
    printf("%-10s %-5s %3d/%-2d %5d %4d %8d %10.1f %9.2f %9.2f %9.0f %6.1f%% %9.1e\n", row, name_of(s.kv_type), s.n_kv_heads * s.group, s.n_kv_heads,
           s.head_dim, p.batch, p.len, bytes / 1e6, us, read, bytes / us / 1e3, 100 * read / us, error);
    fflush(stdout);
}

static void attend_dense(problem &p, int i)
{
    attn_cuda_attend a = {};
    a.q = p.q;
    a.scale = p.scale();
    a.kind = CUDA_READ_ALL;
    a.out = p.out;
    a.after_append = early;
    TRY(sr_attn_cuda_attend(&p.c, &p.cache[i % p.copies], &a, &err));
}

static void dense(const char *row, int len, int batch, int n_kv, int group, int d, sr_dtype type)
{
    problem p(len, batch, n_kv, group, d, type);
    attend_dense(p, 0);
    const double error = error_of(p, nullptr);
    const float us = graph_us([&](int i) { attend_dense(p, i); }, std::max(p.copies, 8));
    print_row(row, p, p.kv_bytes, us, error);
}

// `skip` of the 8 groups read nothing.
static void paper(int len, int skip)
{
    problem p(len, 1, 8, 4, 128, SR_DTYPE_BF16);
    std::vector<uint8_t> kinds(8, CUDA_READ_ALL), live(8, 1);
    for (int i = 0; i < skip; i++) kinds[i] = CUDA_READ_NONE, live[i] = 0;
    uint8_t *k = p.keep(upload(kinds)), *l = p.keep(upload(live));
    const auto call = [&](int i) {
        attn_cuda_attend a = {};
        a.q = p.q;
        a.scale = p.scale();
        a.kinds = k;
        a.out = p.out;
        TRY(sr_attn_cuda_attend(&p.c, &p.cache[i % p.copies], &a, &err));
    };
    call(0);
    const double error = error_of(p, l);
    const float us = graph_us(call, std::max(p.copies, 8));
    const std::string name = "skip " + std::to_string(skip) + "/8";
    print_row(name.c_str(), p, p.kv_bytes / 8 * (8 - skip), us, error);
}

static void window(int len)
{
    problem p(len, 1, 8, 4, 128, SR_DTYPE_BF16);
    const float us = graph_us([&](int i) {
        attn_cuda_attend a = {};
        a.q = p.q;
        a.scale = p.scale();
        a.kind = CUDA_READ_NEAR;
        a.n_sinks = 4;
        a.window = 256;
        a.out = p.out;
        a.after_append = early;
        TRY(sr_attn_cuda_attend(&p.c, &p.cache[i % p.copies], &a, &err));
    }, std::max(p.copies, 8));
    print_row("window", p, (size_t)260 * 8 * 512, us, NAN);
}

// A random list of `share` of each unit's rows, or all of them in one unit of eight.
static void gather(int len, double share, bool uneven)
{
    problem p(len, 1, 8, 4, 128, SR_DTYPE_BF16);
    std::mt19937 rng(3);
    std::uniform_real_distribution<double> uniform(0, 1);
    std::vector<int32_t> list((size_t)8 * len), n(8);
    size_t rows = 0;
    for (int u = 0; u < 8; u++) {
        const double s = uneven ? (u == 5 ? std::min(1.0, 8 * share) : 0) : share;
        for (int i = 4; i < len - 256; i++)
            if (uniform(rng) < s) list[(size_t)u * len + n[u]++] = i;
        rows += (size_t)n[u] + 260;
    }
    int32_t *dl = p.keep(upload(list)), *dn = p.keep(upload(n));
    const float us = graph_us([&](int i) {
        attn_cuda_attend a = {};
        a.q = p.q;
        a.scale = p.scale();
        a.kind = CUDA_READ_NEAR_LIST;
        a.list = dl;
        a.n_list = dn;
        a.list_stride = len;
        a.n_sinks = 4;
        a.window = 256;
        a.out = p.out;
        TRY(sr_attn_cuda_attend(&p.c, &p.cache[i % p.copies], &a, &err));
    }, std::max(p.copies, 8));
    char name[32];
    snprintf(name, sizeof name, "%s %g%%", uneven ? "one" : "list", 100 * share);
    print_row(name, p, rows * 512, us, NAN);
}

// `mass` at a forced keep rate, the same for all units or all of it in one of eight: choice and attention. Below 0: at that eps.
static void mass(int len, double share, bool uneven)
{
    const int rank = 32, n = 8, d = 128;
    problem p(len, 1, n, 4, d, SR_DTYPE_BF16, rank / 2);
    float *floats = p.keep(device<float>((size_t)d * d));
    fill_floats<<<d * d / 256, 256, 0, stream>>>(floats, (size_t)d * d, 5, 0.1f);
    float *steps = p.keep(upload(std::vector<float>(d, 0.05f)));
    const sketch_basis one = {floats, floats, floats, steps, steps};
    sketch_basis *bases = p.keep(upload(std::vector<sketch_basis>(n, one)));
    std::vector<float> keep(n, (float)share);
    if (uneven)
        for (int u = 0; u < n; u++) keep[u] = u == 5 ? (float)std::min(1.0, n * share) : 0.0f;
    float *eps = p.keep(upload(std::vector<float>(1, share < 0 ? (float)-share : 0.1f))), *dk = share < 0 ? nullptr : p.keep(upload(keep));
    uint8_t *kinds = p.keep(device<uint8_t>(n));
    int32_t *list = p.keep(device<int32_t>((size_t)n * len)), *n_list = p.keep(device<int32_t>(n));
    int encodes = 0;
    const auto choose = [&](int i) {
        attn_cuda_choose a = {};
        a.encodes = encodes;
        a.sketch = attn_cuda_sketch{rank, 4, bases};
        a.q = p.q, a.scale = p.scale(), a.n_sinks = 4, a.window = 256, a.min_len = 2048, a.eps = eps, a.keep = dk;
        a.kinds = kinds, a.list = list, a.n_list = n_list, a.list_stride = len;
        TRY(sr_attn_cuda_choose(&p.c, &p.cache[i % p.copies], &a, &err));
    };
    const auto attend = [&](int i) {
        attn_cuda_attend a = {};
        a.q = p.q, a.scale = p.scale(), a.kinds = kinds, a.list = list, a.n_list = n_list, a.list_stride = len;
        a.n_sinks = 4, a.window = 256, a.out = p.out;
        TRY(sr_attn_cuda_attend(&p.c, &p.cache[i % p.copies], &a, &err));
    };
    const int calls = std::max(p.copies, 8);
    const float us = graph_us([&](int i) { choose(i), attend(i); }, calls), us_choose = graph_us(choose, calls), us_attend = graph_us(attend, calls);
    encodes = 1;
    const float us_step = graph_us([&](int i) { choose(i), attend(i); }, calls);
    std::vector<int32_t> counts(n);
    CHECK(cudaMemcpy(counts.data(), n_list, n * sizeof(int32_t), cudaMemcpyDeviceToHost));
    size_t bytes = 0;
    for (int c : counts) bytes += ((size_t)c + 260) * 512 + (size_t)(len - 260) * 16;
    char name[32];
    snprintf(name, sizeof name, "%s%s %g%s", share < 0 ? "eps" : "mass", uneven ? "1" : "", share < 0 ? -share : 100 * share, share < 0 ? "" : "%");
    print_row(name, p, bytes, us, NAN);
    const float read = read_us(bytes);
    printf("           choose %.2f us, attend %.2f us, with the encoding of a row %.2f us; wanted <= %.2f us\n", us_choose, us_attend, us_step, 1.1 * read + 8);
}

static void read_limit()
{
    for (size_t b = (size_t)4 << 30; b >= (size_t)1 << 23; b /= 2)
        printf("read %8.1f MB %8.2f us %6.0f GB/s\n", b / 1e6, read_us(b), b / read_us(b) / 1e3);
}

// What a second look costs, behind choice and attention by a threshold: a sketch of the keys' first 32 coordinates, which queries
// mostly look at, with logits of a deviation of `spread`. The look has `factor` times the threshold of the choice.
static void look(int len, float spread, float factor)
{
    const int rank = 32, n = 8, d = 128, group = 4;
    problem p(len, 1, n, group, d, SR_DTYPE_BF16, rank / 2);
    std::vector<float> identity((size_t)d * d, 0), q((size_t)n * group * d);
    std::mt19937 rng(3);
    for (int i = 0; i < d; i++) identity[(size_t)i * d + i] = 1;
    for (size_t i = 0; i < q.size(); i++) q[i] = spread * std::sqrt((i % d < 32 ? 128 * .95f / 32 : 128 * .05f / 96)) * (rng() % 2 ? 1.0f : -1.0f);
    CHECK(cudaMemcpy(p.q, q.data(), q.size() * sizeof(float), cudaMemcpyHostToDevice));
    const float *unit = p.keep(upload(identity)), *zero = p.keep(device<float>(d));
    const sketch_basis one = {zero, unit, unit, p.keep(upload(std::vector<float>(d, 0.45f))), p.keep(upload(std::vector<float>(d, 1.0f)))};
    sketch_basis *bases = p.keep(upload(std::vector<sketch_basis>(n, one)));
    float *eps = p.keep(upload(std::vector<float>(1, 0.1f))), *eps_2 = p.keep(upload(std::vector<float>(1, 0.1f * factor)));
    uint8_t *kinds = p.keep(device<uint8_t>(n));
    int32_t *list = p.keep(device<int32_t>((size_t)n * len)), *n_list = p.keep(device<int32_t>(n));
    attn_cuda_counters *counters = p.keep(device<attn_cuda_counters>(n));
    const attn_state state = {p.keep(device<float>((size_t)n * group * d)), p.keep(device<float>(n * group)), p.keep(device<float>(n * group))};
    for (int i = 0; i < p.copies; i++) {
        const attn_cuda_encode e = {{rank, 4, bases}, 4, 256, INT32_MAX, NULL};
        TRY(sr_attn_cuda_encode(&p.c, &p.cache[i], &e, &err));
    }
    std::vector<int32_t> words(SR_TRAIL_WORDS(len), 0); // 16 rows were noted
    words[(len - 1) % 2] = len - 1, words[SR_TRAIL_COUNTS + (len - 1) % 2] = SR_TRAIL_NOTED;
    for (int i = 0; i < SR_TRAIL_NOTED; i++) words[SR_TRAIL_ROWS_AT(len, (len - 1) % 2) + i] = (i + 1) * (len / 18);
    int32_t *trail = p.keep(upload(words));
    always_rows *always = p.keep(device<always_rows>(n));
    const attn_cuda_follow f = {trail, len, p.cache[0].kv_len, p.keep(device<found_sinks>(n)), always, n, 4, 256};
    TRY(sr_attn_cuda_follow(&p.c, &f, &err));
    int looks = 0; // 3: with a trail, 4: rows are counted
    const auto step = [&](int i) {
        attn_cuda_choose a = {};
        a.sketch = attn_cuda_sketch{rank, 4, bases};
        a.q = p.q, a.scale = p.scale(), a.n_sinks = 4, a.window = 256, a.min_len = 2048, a.eps = eps, a.encodes = 1, a.look = looks > 0;
        a.always = looks == 3 ? always : NULL, a.notes = looks == 3;
        a.kinds = kinds, a.list = list, a.n_list = n_list, a.list_stride = len;
        TRY(sr_attn_cuda_choose(&p.c, &p.cache[i % p.copies], &a, &err));
        attn_cuda_attend t = {};
        t.q = p.q, t.scale = p.scale(), t.kinds = kinds, t.list = list, t.n_list = n_list, t.list_stride = len;
        t.n_sinks = 4, t.window = 256, t.out = p.out, t.counters = looks > 3 ? counters : NULL;
        if (looks > 0) t.state = state;
        const attn_cuda_look l = {p.q, t.scale, eps_2, kinds, list, n_list, len, NULL, state, p.out, t.counters, looks == 3 ? trail : NULL, len, always, 0};
        if (looks > 1) TRY(sr_attn_cuda_attend_and_look(&p.c, &p.cache[i % p.copies], &t, &l, &err));
        else TRY(sr_attn_cuda_attend(&p.c, &p.cache[i % p.copies], &t, &err));
    };
    const int calls = std::max(p.copies, 8);
    float us[4];
    for (looks = 0; looks < 4; looks++) us[looks] = graph_us(step, calls);
    step(0);
    std::vector<int32_t> counts(n);
    std::vector<attn_cuda_counters> more(n);
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaMemcpy(counts.data(), n_list, n * sizeof(int32_t), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(more.data(), counters, n * sizeof more[0], cudaMemcpyDeviceToHost));
    int rows = 0, added = 0, units = 0;
    for (int u = 0; u < n; u++) {
        const int more_rows = (int)more[u].k_rows - 260 - counts[u]; // attention's own: near rows and the list
        rows += counts[u], added += more_rows, units += more_rows > 0;
    }
    printf("look %8d: %6d rows listed, %6d added in %d of %d units; choice and attention %.2f us, with state and rest %.2f us, with the look %.2f us, with a trail of 64 rows %.2f us\n", len,
           rows, added, units, n, us[0], us[1], us[2], us[3]);
    fflush(stdout);
}

static std::vector<std::string> split(const char *s)
{
    std::vector<std::string> v;
    for (std::string x; *s; s++) {
        if (*s != ',') x += *s;
        if (*s == ',' || !s[1]) v.push_back(x), x.clear();
    }
    return v;
}

int main(int argc, char **argv)
{
    std::vector<std::string> rows = split("read,dense,f8,q8,groups,dims,batch,paper,window,mass"), ctx = split("8192,32768,131072,524288");
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--rows")) rows = split(argv[i + 1]);
        else if (!strcmp(argv[i], "--ctx")) ctx = split(argv[i + 1]);
        else if (!strcmp(argv[i], "--reps")) reps = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--early")) early = atoi(argv[i + 1]);
        else return fprintf(stderr, "attn_gpu: unknown flag %s\n", argv[i]), 2;
    }
    cudaDeviceProp prop;
    CHECK(cudaGetDeviceProperties(&prop, 0));
    n_sms = prop.multiProcessorCount;
    CHECK(cudaStreamCreate(&stream));
    pool_bytes = (size_t)9 << 30;
    CHECK(cudaMalloc(&pool, pool_bytes));
    fill_kernel<<<n_sms * 8, 256, 0, stream>>>(sr::ELEM_BF16, (uint8_t *)pool, pool_bytes / (64 * 256), 64 * 256, 128, 1);
    CHECK(cudaStreamSynchronize(stream));
    printf("%s, %d SMs, %.0f MB L2\n", prop.name, n_sms, prop.l2CacheSize / 1e6);
    const auto has = [&](const char *x) { return std::find(rows.begin(), rows.end(), x) != rows.end(); };
    if (has("read")) read_limit();
    header();
    for (const std::string &x : ctx) {
        const int len = atoi(x.c_str());
        if (has("dense")) dense("dense", len, 1, 8, 4, 128, SR_DTYPE_BF16);
        if (has("f16")) dense("dense", len, 1, 8, 4, 128, SR_DTYPE_F16);
        if (has("f8")) dense("dense", len, 1, 8, 4, 128, SR_DTYPE_F8_E4M3);
        if (has("q8")) dense("dense", len, 1, 8, 4, 128, SR_DTYPE_Q8_0);
        if (has("window")) window(len);
        if (has("paper") && len >= 32768)
            for (int skip : {4, 6, 7}) paper(len, skip);
        if (has("look"))
            for (float factor : {2.0f, 1.2f, 1.0f, 0.7f, 0.1f}) look(len, 4.5f, factor);
        if (has("mass") && len >= 32768)
            for (double share : {0.0, 0.02, 0.05, 0.1, 0.3}) mass(len, share, false), mass(len, share, true);
        if (has("eps") && len >= 32768)
            for (double eps : {0.1, 0.9}) mass(len, -eps, false);
        if (has("list") && len >= 32768)
            for (double share : {0.0, 0.05, 0.3}) gather(len, share, false);
        if (has("list") && len >= 32768) gather(len, 0.05, true);
    }
    if (has("batch"))
        for (sr_dtype t : {SR_DTYPE_BF16, SR_DTYPE_F8_E4M3}) dense("batch", 32768, 8, 8, 4, 128, t), dense("batch", 8192, 32, 8, 4, 128, t);
    if (has("groups")) {
        const int shapes[][2] = {{32, 1}, {4, 8}, {4, 16}, {8, 5}, {8, 8}, {4, 7}};
        for (const auto &s : shapes) dense("group", 131072, 1, s[0], s[1], 128, SR_DTYPE_BF16);
    }
    if (has("dims"))
        for (int d : {64, 80, 96, 256}) dense("dim", 131072, 1, 8, 4, d, SR_DTYPE_BF16);
    return 0;
}
