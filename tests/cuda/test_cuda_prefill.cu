// SPDX-License-Identifier: Apache-2.0
//
// Prefill attention on a GPU against double precision, by each kernel that the card and the type allow: every cache type,
// head sizes, groups, rows that begin and end anywhere, memory behind the last row poisoned with NaN. The same bits twice
// and however the rows come in parts. Without a GPU: SKIP. SR_PLANT=1 leaves a key out of what is wanted. SR_QUICK=1:
// few rows of every kernel, for compute-sanitizer.
#include "check_cuda.h"
#include "cuda/attn_cuda.h"
#include "cuda/prefill_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

extern "C" {
#include "formats/quant.h"
}

static std::mt19937 rng(7);

struct shape { sr_dtype type; int d, n_kv, group, pos0, n; };

static std::string name_of(const shape &s)
{
    return std::string(sr_dtype_name(s.type)) + " d " + std::to_string(s.d) + ", " + std::to_string(s.n_kv * s.group) + "/" + std::to_string(s.n_kv) +
           " heads, rows " + std::to_string(s.pos0) + " to " + std::to_string(s.pos0 + s.n);
}

static void report(bool good, const std::string &what, double worst)
{
    good ? passed++ : failed++;
    printf("%s %d - %s\n# worst %.3f of the tolerance\n", good ? "ok" : "not ok", passed + failed, what.c_str(), worst);
}

static std::vector<float> normals(size_t n, float size)
{
    std::normal_distribution<float> normal(0, size);
    std::vector<float> x(n);
    for (float &y : x) y = normal(rng);
    return x;
}

template <typename T> static T *on_device(const std::vector<T> &v)
{
    T *p;
    CHECK(cudaMalloc(&p, v.size() * sizeof(T)));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

// A cache of one sequence, its rows as doubles, and queries.
struct world {
    shape s;
    struct backend_cuda c = {};
    prefill_params p = {};
    std::vector<float> q;
    std::vector<double> k, v;
    std::vector<void *> blocks;

    explicit world(const shape &s_) : s(s_)
    {
        const int len = s.pos0 + s.n, pages = (len + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS;
        const float ks = 0.5f, vs = 2.0f;
        attn_cuda a = {};
        TRY(sr_attn_cuda_card(&a.card, &err));
        a.shape = attn_cuda_shape{s.d, s.group, s.n_kv, s.type};
        a.limits = attn_cuda_limits{s.n_kv, pages * SR_PAGE_ROWS, s.group, s.d};
        const size_t page = sr_attn_cuda_page_bytes(&a.shape), bytes = page * s.n_kv * pages;
        uint8_t *kp = (uint8_t *)take(on_device(std::vector<uint8_t>(bytes, 0xff))), *vp = (uint8_t *)take(on_device(std::vector<uint8_t>(bytes, 0xff)));
        void **kt = table(kp, page, s.n_kv * pages), **vt = table(vp, page, s.n_kv * pages);
        float *k_scale = (float *)take(on_device(std::vector<float>(s.n_kv, ks))), *v_scale = (float *)take(on_device(std::vector<float>(s.n_kv, vs)));
        int32_t *kv_len = (int32_t *)take(on_device(std::vector<int32_t>(1, len)));
        const attn_cuda_cache rows = {kt, vt, NULL, k_scale, v_scale, kv_len, pages, 1};
        float *kf = (float *)take(on_device(normals((size_t)len * s.n_kv * s.d, 1.0f))), *vf = (float *)take(on_device(normals((size_t)len * s.n_kv * s.d, 1.0f)));
        const attn_cuda_append append = {kf, vf, SR_DTYPE_F32, (int64_t)s.n_kv * s.d, len, NULL, NULL, NULL};
        TRY(sr_attn_cuda_append(&a, &rows, &append, &err));
        CHECK(cudaDeviceSynchronize());
        read_back(k, kp, kt, page, pages, ks);
        read_back(v, vp, vt, page, pages, vs);
        q = normals((size_t)s.n * s.n_kv * s.group * s.d, 1.5f);
        p = prefill_params{kt, vt, s.type == SR_DTYPE_F8_E4M3 ? k_scale : NULL, s.type == SR_DTYPE_F8_E4M3 ? v_scale : NULL,
                           (float *)take(on_device(q)), (float *)take(on_device(q)), s.type, pages, s.n_kv, s.group, s.d, s.n, s.pos0, 1.0f / sqrtf((float)s.d)};
    }
    ~world()
    {
        for (void *b : blocks) cudaFree(b);
    }
    world(const world &) = delete;

    void *take(void *b)
    {
        blocks.push_back(b);
        return b;
    }

    // Pages in no order.
    void **table(uint8_t *base, size_t page, int n)
    {
        std::vector<void *> at;
        for (int i = 0; i < n; i++) at.push_back(base + (size_t)i * page);
        std::shuffle(at.begin(), at.end(), rng);
        return (void **)take(on_device(at));
    }

    void read_back(std::vector<double> &to, const uint8_t *base, void *const *pages_of, size_t page, int pages, float scale) const
    {
        const int len = s.pos0 + s.n;
        std::vector<uint8_t> bytes(page * s.n_kv * pages);
        std::vector<void *> at(s.n_kv * pages);
        CHECK(cudaMemcpy(bytes.data(), base, bytes.size(), cudaMemcpyDeviceToHost));
        CHECK(cudaMemcpy(at.data(), pages_of, at.size() * sizeof(void *), cudaMemcpyDeviceToHost));
        to.resize((size_t)s.n_kv * len * s.d);
        for (int g = 0; g < s.n_kv; g++)
            for (int row = 0; row < len; row++) {
                const uint8_t *b = bytes.data() + ((uint8_t *)at[g * pages + row / SR_PAGE_ROWS] - base);
                for (int i = 0; i < s.d; i++) {
                    const size_t e = (size_t)(row % SR_PAGE_ROWS) * s.d + i;
                    double x;
                    if (s.type == SR_DTYPE_BF16) x = __bfloat162float(((const __nv_bfloat16 *)b)[e]);
                    else if (s.type == SR_DTYPE_F16) x = __half2float(((const __half *)b)[e]);
                    else if (s.type == SR_DTYPE_Q8_0) x = (double)(int8_t)b[e] * __half2float(((const __half *)(b + SR_PAGE_ROWS * s.d))[e / 32]);
                    else x = __half2float(__half(__nv_cvt_fp8_to_halfraw(b[e], __NV_E4M3))) * scale;
                    to[((size_t)g * len + row) * s.d + i] = x;
                }
            }
    }

    // Rows in parts of `part`.
    std::vector<float> run(void (*prefill)(struct backend_cuda *, const struct prefill_params *), int part)
    {
        std::vector<float> out(q.size());
        const size_t width = (size_t)s.n_kv * s.group * s.d;
        CHECK(cudaMemset(p.out, 0xff, q.size() * sizeof(float)));
        for (int at = 0; at < s.n; at += part) {
            prefill_params x = p;
            x.q += at * width, x.out += at * width, x.pos0 += at, x.n = std::min(part, s.n - at);
            prefill(&c, &x);
        }
        CHECK(cudaDeviceSynchronize());
        if (c.fault.status != SR_OK) printf("Bail out! %s\n", c.fault.text), exit(1);
        CHECK(cudaMemcpy(out.data(), p.out, out.size() * sizeof(float), cudaMemcpyDeviceToHost));
        return out;
    }

    // How far row t of a head is off, in tolerances: u for q, for weights, for codes widened to f16, and sums in float.
    double off(const std::vector<float> &out, int t, int head) const
    {
        const int len = s.pos0 + s.n, seen = s.pos0 + t + 1 - (getenv("SR_PLANT") ? 1 : 0), g = head / s.group;
        const double u = s.type == SR_DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
        std::vector<double> x(seen), o(s.d), size(s.d);
        double m = -INFINITY, l = 0, most = 0;
        const size_t at = ((size_t)t * s.n_kv * s.group + head) * s.d;
        for (int i = 0; i < seen; i++) {
            double sum = 0;
            for (int j = 0; j < s.d; j++) x[i] += q[at + j] * k[((size_t)g * len + i) * s.d + j], sum += std::fabs(q[at + j] * k[((size_t)g * len + i) * s.d + j]);
            x[i] *= p.scale;
            m = std::max(m, x[i]);
            most = std::max(most, sum * p.scale);
        }
        for (double &y : x) l += y = std::exp(y - m);
        for (int i = 0; i < seen; i++)
            for (int j = 0; j < s.d; j++) {
                const double y = x[i] / l * v[((size_t)g * len + i) * s.d + j];
                o[j] += y, size[j] += std::fabs(y);
            }
        // roundings of q and of codes to T are random in sign: sqrt(d) of them stand against the sum of sizes
        const double e = most * (2 * u / std::sqrt((double)s.d) + (s.d + 4) * 0x1p-23);
        double worst = 0;
        for (int j = 0; j < s.d; j++) worst = std::max(worst, std::fabs(out[at + j] - o[j]) / (size[j] * (2 * e + 2 * u + (seen + 8) * 0x1p-23)));
        return std::isnan(worst) ? INFINITY : worst;
    }
};

static void check(const shape &s, const char *kernel, void (*prefill)(struct backend_cuda *, const struct prefill_params *))
{
    world w(s);
    const std::vector<float> out = w.run(prefill, s.n), again = w.run(prefill, s.n), parts = w.run(prefill, 77);
    double worst = 0;
    for (int i = 0; i < 12; i++) {
        const int t = i == 0 ? 0 : i == 1 ? s.n - 1 : (int)(rng() % s.n);
        for (int head = 0; head < s.n_kv * s.group; head += s.n_kv * s.group > 4 ? 3 : 1) worst = std::max(worst, w.off(out, t, head));
    }
    for (float x : out) worst = std::isnan(x) ? INFINITY : worst;
    report(worst <= 1, std::string(kernel) + ", " + name_of(s), worst);
    report(memcmp(out.data(), again.data(), out.size() * sizeof(float)) == 0, std::string(kernel) + ", the same bits twice, " + name_of(s), 0);
    report(memcmp(out.data(), parts.data(), out.size() * sizeof(float)) == 0, std::string(kernel) + ", the same bits in parts, " + name_of(s), 0);
}

int main()
{
    want_gpu();
    const bool quick = getenv("SR_QUICK") != NULL;
    std::vector<shape> shapes;
    for (sr_dtype t : {SR_DTYPE_BF16, SR_DTYPE_F16, SR_DTYPE_Q8_0, SR_DTYPE_F8_E4M3})
        for (int d : {64, 128, 96, 256}) {
            if (quick) {
                shapes.push_back({t, d, 1, 3, 130, 200});
                continue;
            }
            shapes.push_back({t, d, 2, 3, 0, 300});
            shapes.push_back({t, d, 1, 4, 1000, 129});
            if (d <= 128) shapes.push_back({t, d, 2, 1, 63, 1}), shapes.push_back({t, d, 1, 2, 0, 1100});
        }
    shapes.push_back({SR_DTYPE_F16, 80, 1, 4, 33, 200});
    int n_wgmma = 0;
    for (const shape &s : shapes) {
        prefill_params p = {};
        p.head_dim = s.d;
        check(s, "mma", sr_cuda_prefill_mma);
        if (!sr_cuda_prefill_has_wgmma(&p)) continue;
        check(s, "wgmma", sr_cuda_prefill_wgmma);
        n_wgmma++;
    }
    printf("# %d shapes by wgmma\n", n_wgmma);
    return end_tests();
}
