// SPDX-License-Identifier: Apache-2.0
//
// Sinks that the device finds as rows are appended, against the rule in plain loops: the same rows and means however the
// rows come in batches, one by one too, after the sequence was cut back, and no more than are kept. Without a GPU: SKIP.
// SR_PLANT=1 asks for a row that is none.
#include "check_cuda.h"
#include "cuda/attn_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

enum { D = 64, N_KV = 3, LEN = 900 };

static std::vector<float> keys((size_t)LEN * N_KV * D), values((size_t)LEN * N_KV * D);

// Rows of size about 1; in group g every (29 + 8 g)th row is small, in group 2 only its key is.
static void make_rows()
{
    std::mt19937 rng(3);
    std::normal_distribution<float> normal(0, 1);
    for (int row = 0; row < LEN; row++)
        for (int g = 0; g < N_KV; g++) {
            const bool is_small = row % (29 + 8 * g) == 17;
            for (int i = 0; i < D; i++) {
                const size_t at = ((size_t)row * N_KV + g) * D + i;
                keys[at] = normal(rng) * (is_small ? 0.3f : 1.0f);
                values[at] = normal(rng) * (is_small && g < 2 ? 0.1f : 1.0f);
            }
        }
}

static double norm(const std::vector<float> &x, int row, int g)
{
    double sum = 0;
    for (int i = 0; i < D; i++) sum += (double)x[((size_t)row * N_KV + g) * D + i] * x[((size_t)row * N_KV + g) * D + i];
    return std::sqrt(sum);
}

static std::vector<int> found_of(int g, int len)
{
    double k = 0, v = 0;
    const double n = SR_SINKS_REFERENCE - SR_SINKS_FIRST;
    for (int row = SR_SINKS_FIRST; row < SR_SINKS_REFERENCE; row++) k += norm(keys, row, g), v += norm(values, row, g);
    std::vector<int> rows;
    for (int row = 0; row < len && len >= SR_SINKS_REFERENCE && rows.size() < SR_SINKS_MOST; row++)
        if (norm(values, row, g) <= SR_SINKS_VALUE * v / n && norm(keys, row, g) <= SR_SINKS_KEY * k / n) rows.push_back(row);
    return rows;
}

struct cache {
    attn_cuda c = {};
    attn_cuda_cache rows = {};
    found_sinks *found;
    float *k, *v;
    int32_t *len;

    cache()
    {
        const int pages = (LEN + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS;
        TRY(sr_attn_cuda_card(&c.card, &err));
        c.shape = attn_cuda_shape{D, 4, N_KV, SR_DTYPE_F16};
        c.limits = attn_cuda_limits{N_KV, pages * SR_PAGE_ROWS, 4, D};
        const size_t page = sr_attn_cuda_page_bytes(&c.shape);
        uint8_t *memory;
        void **table;
        CHECK(cudaMalloc(&memory, page * N_KV * pages));
        CHECK(cudaMalloc(&table, N_KV * pages * sizeof(void *)));
        CHECK(cudaMalloc(&c.workspace, sr_attn_cuda_workspace_bytes(&c.card, &c.limits)));
        CHECK(cudaMalloc(&found, N_KV * sizeof *found));
        CHECK(cudaMalloc(&len, sizeof *len));
        CHECK(cudaMalloc(&k, keys.size() * sizeof *k));
        CHECK(cudaMalloc(&v, values.size() * sizeof *v));
        CHECK(cudaMemset(found, 0, N_KV * sizeof *found));
        CHECK(cudaMemcpy(k, keys.data(), keys.size() * sizeof *k, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(v, values.data(), values.size() * sizeof *v, cudaMemcpyHostToDevice));
        std::vector<void *> addresses;
        for (int i = 0; i < N_KV * pages; i++) addresses.push_back(memory + (size_t)i * page);
        CHECK(cudaMemcpy(table, addresses.data(), addresses.size() * sizeof(void *), cudaMemcpyHostToDevice));
        rows = attn_cuda_cache{table, table, NULL, NULL, NULL, len, pages, 1};
    }

    void append(int from, int n)
    {
        const int32_t to = from + n;
        const size_t at = (size_t)from * N_KV * D;
        CHECK(cudaMemcpy(len, &to, sizeof to, cudaMemcpyHostToDevice));
        const attn_cuda_append a = {k + at, v + at, SR_DTYPE_F32, (int64_t)N_KV * D, n, found, NULL, NULL};
        TRY(sr_attn_cuda_append(&c, &rows, &a, &err));
        CHECK(cudaDeviceSynchronize());
    }
};

static void check(const char *name, const std::vector<std::pair<int, int>> &batches)
{
    cache w;
    int len = 0;
    for (const auto &b : batches) w.append(b.first, b.second), len = b.first + b.second;
    std::vector<found_sinks> got(N_KV);
    CHECK(cudaMemcpy(got.data(), w.found, N_KV * sizeof(found_sinks), cudaMemcpyDeviceToHost));
    bool good = true;
    for (int g = 0; g < N_KV; g++) {
        std::vector<int> want = found_of(g, len);
        if (getenv("SR_PLANT")) want.push_back(LEN);
        good &= got[g].n == (int)want.size() && (g == 2 || len < SR_SINKS_REFERENCE || !want.empty());
        for (int i = 0; good && i < got[g].n; i++) good &= got[g].rows[i] == want[i];
    }
    good ? passed++ : failed++;
    printf("%s %d - found sinks, %s\n", good ? "ok" : "not ok", passed + failed, name);
}

int main()
{
    want_gpu();
    make_rows();
    std::vector<std::pair<int, int>> ones, parts;
    for (int i = 0; i < 400; i++) ones.push_back({i, 1});
    for (int at = 0, i = 0; at < LEN; at += 37 + i % 5, i++) parts.push_back({at, std::min(37 + i % 5, LEN - at)});
    check("one batch", {{0, LEN}});
    check("row by row", ones);
    check("batches of about 40", parts);
    check("nothing before the reference is there", {{0, 255}});
    check("the reference alone", {{0, 200}, {200, 56}});
    check("cut back to 300", {{0, LEN}, {300, 1}, {301, 200}});
    check("cut back below the reference", {{0, LEN}, {100, 100}});
    check("and grown again", {{0, LEN}, {100, 100}, {200, 1}, {201, 400}});
    return end_tests();
}
