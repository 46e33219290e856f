/* SPDX-License-Identifier: Apache-2.0
 *
 * Speeds of ik_llama.cpp at a depth, for bench/peers.py: its own llama-bench cannot begin with a filled cache.
 *
 *   ik_driver MODEL KV_TYPE THREADS REPS REPACK DEPTH...     (depths rising)
 *
 * Prints one JSON object per test with llama-bench's field names: 512 tokens prefilled and 64 decoded one by one, each
 * REPS times on top of every depth, after a warm-up. Build with ik_llama.cpp's tree in $IK and its build folder in $B:
 *   c++ -O2 -std=c++17 -I$IK/include -I$IK/ggml/include bench/ik_driver.cpp \
 *       $B/src/libllama.a $B/ggml/src/libggml.a -fopenmp -ldl -o ik_driver
 */
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

enum { BATCH = 2048, MICRO_BATCH = 512, PREFILL = 512, DECODE = 64 };

struct bench {
    llama_context *context;
    std::vector<llama_token> tokens; /* one more than any position */
    int reps;
};

/* Tokens [from, to) in batches. */
void compute(bench &b, int from, int to, int batch)
{
    for (int at = from; at < to; at += batch) {
        const int n = std::min(batch, to - at);
        if (llama_decode(b.context, llama_batch_get_one(b.tokens.data() + at, n, at, 0)) != 0) {
            std::fprintf(stderr, "ik_driver: llama_decode failed at position %d\n", at);
            std::exit(3);
        }
        llama_synchronize(b.context);
    }
}

void test(bench &b, int depth, int n, int batch)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < b.reps; i++) {
        const auto began = std::chrono::steady_clock::now();
        compute(b, depth, depth + n, batch);
        const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
        sum += n / s;
        squares += (n / s) * (n / s);
        llama_kv_cache_seq_rm(b.context, -1, depth, -1);
    }
    const double mean = sum / b.reps;
    const double variance = b.reps > 1 ? std::max(0.0, squares - sum * mean) / (b.reps - 1) : 0;
    std::printf("{\"n_prompt\": %d, \"n_gen\": %d, \"n_depth\": %d, \"avg_ts\": %.6f, \"stddev_ts\": %.6f}\n",
                batch > 1 ? n : 0, batch > 1 ? 0 : n, depth, mean, std::sqrt(variance));
    std::fflush(stdout);
}

llama_context *open(char **argv, int n_context, int &n_vocab)
{
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = 0;
    mp.repack_tensors = std::atoi(argv[5]) != 0;
    mp.use_mmap = !mp.repack_tensors;
    llama_model *model = llama_model_load_from_file(argv[1], mp);
    if (!model) return nullptr;
    n_vocab = llama_n_vocab(model);
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = (uint32_t)n_context;
    cp.n_batch = BATCH;
    cp.n_ubatch = MICRO_BATCH;
    cp.n_threads = cp.n_threads_batch = (uint32_t)std::atoi(argv[3]);
    cp.type_k = cp.type_v = std::strcmp(argv[2], "q8_0") == 0   ? GGML_TYPE_Q8_0
                            : std::strcmp(argv[2], "q4_0") == 0 ? GGML_TYPE_Q4_0
                                                                : GGML_TYPE_F16;
    cp.flash_attn = true;
    return llama_init_from_model(model, cp);
}

} // namespace

int main(int argc, char **argv)
{
    if (argc < 7) {
        std::fprintf(stderr, "usage: ik_driver MODEL f16|q8_0|q4_0 THREADS REPS REPACK DEPTH...\n");
        return 2;
    }
    const int deepest = std::atoi(argv[argc - 1]);
    int n_vocab = 0;
    bench b{open(argv, deepest + PREFILL, n_vocab), {}, std::max(1, std::atoi(argv[4]))};
    if (!b.context) {
        std::fprintf(stderr, "ik_driver: %s: cannot be loaded\n", argv[1]);
        return 3;
    }
    std::mt19937 random(1);
    for (int i = 0; i < deepest + PREFILL; i++) b.tokens.push_back((llama_token)(random() % (unsigned)n_vocab));

    compute(b, 0, PREFILL, BATCH); /* warm both paths up */
    llama_kv_cache_seq_rm(b.context, -1, 8, -1);
    compute(b, 8, 16, 1);
    llama_kv_cache_clear(b.context);
    for (int i = 6, filled = 0; i < argc; i++) {
        const int depth = std::atoi(argv[i]);
        compute(b, filled, depth, BATCH);
        filled = depth;
        test(b, depth, PREFILL, BATCH);
        test(b, depth, DECODE, 1);
    }
    return 0;
}
