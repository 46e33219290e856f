// SPDX-License-Identifier: Apache-2.0
//
// What the checks of the CUDA attention ops share: a cache with random rows, filled by the append op and read back as it holds
// them, attention over any of its rows in double, bases for its sketch, and the count of what passed.
#ifndef SR_TESTS_ATTN_CACHE_CUDA_H
#define SR_TESTS_ATTN_CACHE_CUDA_H

#include "check_cuda.h"
#include "cuda/attn_small.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

static int plant;
static std::mt19937 rng(11);

static inline void report(bool good, const std::string &name, const std::string &why)
{
    good ? passed++ : failed++;
    printf("%s %d - %s%s%s\n", good ? "ok" : "not ok", passed + failed, name.c_str(), good ? "" : ": ", good ? "" : why.c_str());
}

// Memory of the device that copies itself back and forth; ends with a guard that must stay.
template <typename T> struct array {
    T *p = nullptr;
    size_t n = 0;
    explicit array(size_t n_, int fill = 0) : n(n_)
    {
        CHECK(cudaMalloc(&p, n * sizeof(T) + 256));
        CHECK(cudaMemset(p, fill, n * sizeof(T)));
        CHECK(cudaMemset((char *)p + n * sizeof(T), 0x5a, 256));
    }
    explicit array(const std::vector<T> &v) : array(v.size()) { CHECK(cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice)); }
    array(const array &) = delete;
    ~array() { cudaFree(p); }
    std::vector<T> get() const
    {
        std::vector<T> v(n);
        CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
    bool guarded() const
    {
        unsigned char g[256];
        CHECK(cudaMemcpy(g, (char *)p + n * sizeof(T), 256, cudaMemcpyDeviceToHost));
        return std::all_of(g, g + 256, [](unsigned char c) { return c == 0x5a; });
    }
};

// ---- a cache with random rows ----

struct shape { int d, group, n_kv, n_seqs, len; sr_dtype type; };

static inline float unit_of(sr_dtype t) { return t == SR_DTYPE_BF16 ? 0x1p-8f : 0x1p-11f; } // of what a product's operands are rounded to

static inline std::string name_of(const shape &s)
{
    char text[96];
    snprintf(text, sizeof text, "%s d %d group %d kv %d seqs %d len %d", sr_dtype_name(s.type), s.d, s.group, s.n_kv, s.n_seqs, s.len);
    return text;
}

struct world {
    shape s;
    attn_cuda c = {};
    attn_cuda_cache cache = {};
    int n_units, max_pages, rank, bits;
    size_t page, y_page;
    array<uint8_t> k, v, y, work;
    array<void *> kt, vt, yt;
    array<float> q, ks, vs;
    array<int32_t> lens;
    std::vector<double> kd, vd; // rows as the cache holds them
    std::vector<float> qh;
    std::vector<int> len;

    world(const shape &s_, int rank_ = 16, int bits_ = 4);
    double kr(int u, int row, int i) const { return kd[((size_t)u * max_pages * SR_PAGE_ROWS + row) * s.d + i]; }
    double vr(int u, int row, int i) const { return vd[((size_t)u * max_pages * SR_PAGE_ROWS + row) * s.d + i]; }
    void fill();
    void read_back(const array<uint8_t> &from, const float *scales, std::vector<double> &to) const;
    double scale() const { return 1 / std::sqrt((double)s.d); }
};

static inline attn_cuda context_of(const shape &s)
{
    attn_cuda c = {};
    TRY(sr_attn_cuda_card(&c.card, &err));
    c.shape = attn_cuda_shape{s.d, s.group, s.n_kv, s.type};
    c.limits = attn_cuda_limits{s.n_seqs * s.n_kv, s.len + 64, s.group, s.d};
    TRY(sr_attn_cuda_check(&c.shape, &err));
    return c;
}

static inline std::vector<void *> pages_of(uint8_t *base, size_t bytes, int n)
{
    std::vector<void *> v(n);
    for (int i = 0; i < n; i++) v[i] = base + (size_t)i * bytes;
    std::shuffle(v.begin(), v.end(), rng);
    return v;
}

static inline std::vector<int> lens_of(const shape &s)
{
    std::vector<int> v(s.n_seqs);
    for (int i = 0; i < s.n_seqs; i++) v[i] = i == 0 ? s.len : 1 + (int)(rng() % s.len);
    return v;
}

static inline std::vector<float> normals(size_t n, float scale)
{
    std::normal_distribution<float> d(0, scale);
    std::vector<float> v(n);
    for (float &x : v) x = d(rng);
    return v;
}

inline world::world(const shape &s_, int rank_, int bits_)
    : s(s_), c(context_of(s_)), n_units(s.n_seqs * s.n_kv), max_pages((s.len + 63) / 64), rank(rank_), bits(bits_),
      page(sr_attn_cuda_page_bytes(&c.shape)), y_page(sr_attn_cuda_sketch_page_bytes(rank, bits)), k(page * n_units * max_pages, 0xff),
      v(page * n_units * max_pages, 0xff), y(y_page * n_units * max_pages), work(sr_attn_cuda_workspace_bytes(&c.card, &c.limits)),
      kt(pages_of(k.p, page, n_units * max_pages)), vt(pages_of(v.p, page, n_units * max_pages)), yt(pages_of(y.p, y_page, n_units * max_pages)),
      q(normals((size_t)n_units * s.group * s.d, 1.0f)), ks(std::vector<float>(s.n_kv, 0.5f)), vs(std::vector<float>(s.n_kv, 2.0f)),
      lens(lens_of(s))
{
    c.workspace = work.p;
    cache = attn_cuda_cache{kt.p, vt.p, yt.p, ks.p, vs.p, lens.p, max_pages, s.n_seqs};
    qh = q.get();
    len = lens.get();
    fill();
}

// Rows through the append op: first all but one with n = len - 1, then one more, as prefill and a step do.
inline void world::fill()
{
    const int most = *std::max_element(len.begin(), len.end());
    const size_t width = (size_t)s.n_kv * s.d;
    const std::vector<float> kf = normals((size_t)s.n_seqs * most * width, 1.0f), vf = normals((size_t)s.n_seqs * most * width, 1.0f);
    const array<float> dk(kf), dv(vf);
    const attn_cuda_append a = {dk.p, dv.p, SR_DTYPE_F32, (int64_t)width, most, NULL, NULL, NULL};
    TRY(sr_attn_cuda_append(&c, &cache, &a, &err)); // shorter sequences keep the last rows
    CHECK(cudaDeviceSynchronize());
    read_back(k, s.type == SR_DTYPE_F8_E4M3 ? ks.get().data() : nullptr, kd);
    read_back(v, s.type == SR_DTYPE_F8_E4M3 ? vs.get().data() : nullptr, vd);
    double worst = 0;
    const double u = s.type == SR_DTYPE_BF16 ? 0x1p-8 : s.type == SR_DTYPE_F16 ? 0x1p-11 : s.type == SR_DTYPE_Q8_0 ? 0 : 0x1p-4;
    for (int seq = 0; seq < s.n_seqs; seq++)
        for (int row = 0; row < len[seq]; row++)
            for (size_t i = 0; i < width; i++) {
                const double want = kf[((size_t)seq * most + row + most - len[seq]) * width + i];
                const double got = kr(seq * s.n_kv + (int)i / s.d, row, (int)i % s.d);
                const double tolerance = s.type == SR_DTYPE_Q8_0 ? 5.0 / 127 : std::fabs(want) * u + (s.type == SR_DTYPE_F8_E4M3 ? 0x1p-10 : 1e-7);
                worst = std::max(worst, std::fabs(got - want) / tolerance);
            }
    report(worst <= 1, "append " + name_of(s), "worst " + std::to_string(worst) + " of the tolerance");
}

inline void world::read_back(const array<uint8_t> &from, const float *scales, std::vector<double> &to) const
{
    const std::vector<uint8_t> bytes = from.get();
    const std::vector<void *> table = (&from == &k ? kt : vt).get();
    to.assign((size_t)n_units * max_pages * SR_PAGE_ROWS * s.d, 0);
    for (int u = 0; u < n_units; u++)
        for (int row = 0; row < len[u / s.n_kv]; row++) {
            const uint8_t *p = bytes.data() + ((uint8_t *)table[(size_t)u * max_pages + row / 64] - from.p);
            for (int i = 0; i < s.d; i++) {
                const size_t e = (size_t)(row % 64) * s.d + i;
                double x;
                if (s.type == SR_DTYPE_BF16) x = __bfloat162float(((const __nv_bfloat16 *)p)[e]);
                else if (s.type == SR_DTYPE_F16) x = __half2float(((const __half *)p)[e]);
                else if (s.type == SR_DTYPE_Q8_0) x = (double)(int8_t)p[e] * __half2float(((const __half *)(p + 64 * s.d))[e / 32]);
                else x = __half2float(__half(__nv_cvt_fp8_to_halfraw(p[e], __NV_E4M3))) * scales[u % s.n_kv];
                to[((size_t)u * max_pages * SR_PAGE_ROWS + row) * s.d + i] = x;
            }
        }
}

// ---- attend ----

struct truth { std::vector<double> o, size; double m, l; }; // of one head: o / l, and what the sums of o ran over

static inline truth attend(const world &w, int u, int h, const std::vector<int> &rows)
{
    truth t = {std::vector<double>(w.s.d, 0), std::vector<double>(w.s.d, 0), -INFINITY, 0};
    std::vector<double> x(rows.size());
    const float *q = w.qh.data() + ((size_t)u * w.s.group + h) * w.s.d;
    for (size_t i = 0; i < rows.size(); i++) {
        for (int j = 0; j < w.s.d; j++) x[i] += q[j] * w.kr(u, rows[i], j);
        x[i] *= w.scale();
        t.m = std::max(t.m, x[i]);
    }
    for (double &y : x) t.l += y = std::exp(y - t.m);
    for (size_t i = 0; i < rows.size(); i++)
        for (int j = 0; j < w.s.d; j++) t.o[j] += x[i] / t.l * w.vr(u, rows[i], j), t.size[j] += x[i] / t.l * std::fabs(w.vr(u, rows[i], j));
    return t;
}

static inline std::vector<int> rows_of(int kind, int len, int sinks, int window, const std::vector<int> &list)
{
    std::vector<int> rows;
    const bool near = kind == CUDA_READ_NEAR || kind == CUDA_READ_NEAR_LIST;
    for (int i = 0; i < len && kind != CUDA_READ_NONE; i++)
        if (kind == CUDA_READ_ALL || (near && (sinks + window >= len || i < sinks || i >= len - window))) rows.push_back(i);
    if (kind == CUDA_READ_LIST || (kind == CUDA_READ_NEAR_LIST && sinks + window < len)) rows.insert(rows.end(), list.begin(), list.end());
    return rows;
}

// The error of a logit is that of its operands' rounding, which moves a weight by as much; weights are rounded too. Sums of
// random roundings grow as a root; eight such deviations are never reached by chance.
static inline double tolerance_of(const world &w, const truth &t, double x)
{
    const double u = unit_of(w.s.type), logit = std::sqrt((double)w.s.d) * w.scale() * 3 * u;
    return x * 4 * (u + logit) + 2e-6 * x + 1e-6 + (t.l == 0);
}

// ---- bases ----

struct bases {
    std::vector<std::vector<float>> host; // mu, analysis, synthesis, step, lambda of each unit
    std::vector<array<float> *> owned;
    std::vector<sketch_basis> table;
    // `away`: by how much the estimates of a unit's first head are lower.
    explicit bases(const world &w, double away = 0)
    {
        for (int u = 0; u < w.n_units; u++) {
            const float *q = w.qh.data() + (size_t)u * w.s.group * w.s.d;
            double qq = 0;
            for (int i = 0; i < w.s.d; i++) qq += (double)q[i] * q[i];
            std::vector<float> parts[5] = {normals(w.s.d, 0.2f), normals((size_t)w.rank * w.s.d, 0.1f), normals((size_t)w.s.d * w.s.d, 0.1f),
                                           std::vector<float>(w.rank, w.bits == 4 ? 0.5f : 0.04f), std::vector<float>(w.s.d, 0.02f)};
            for (int i = 0; i < w.s.d; i++) parts[0][i] -= (float)(away * q[i] / (qq * w.scale()));
            const float *p[5];
            for (int i = 0; i < 5; i++) owned.push_back(new array<float>(parts[i])), p[i] = owned.back()->p, host.push_back(parts[i]);
            table.push_back(sketch_basis{p[0], p[1], p[2], p[3], p[4]});
        }
    }
    ~bases() { for (auto *p : owned) delete p; }
    const std::vector<float> &part(int u, int i) const { return host[(size_t)u * 5 + i]; }
};

#endif
