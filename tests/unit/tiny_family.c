/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tiny_family.h"

#include <math.h>

void tiny_llama3_divisors(float *out, int n_dims, double base, double factor, double old_len)
{
    const double low = 1, high = 4;
    for (int i = 0; i < n_dims / 2; i++) {
        const double wave = 6.283185307179586 * pow(base, 2.0 * i / n_dims), s = (old_len / wave - low) / (high - low);
        const double inv = wave < old_len / high ? 1 : wave > old_len / low ? 1 / factor : (1 - s) / factor + s;
        out[i] = (float)(1 / inv);
    }
}

#define SCALING(arch, type, times, before)                                                              \
    {                                                                                                   \
        {.key = arch ".rope.scaling.type", .kind = TINY_STR, .str = type},                              \
        {.key = arch ".rope.scaling.factor", .kind = TINY_F32, .f32 = times},                           \
        {.key = arch ".rope.scaling.original_context_length", .kind = TINY_U32, .u32 = before},         \
    }

static const struct tiny_change linear4[] = SCALING("llama", "linear", 4, 512), qwen2_yarn[] = SCALING("qwen2", "yarn", 4, 128),
                                qwen3_yarn[] = SCALING("qwen3", "yarn", 4, 128), moe_yarn[] = SCALING("qwen3moe", "yarn", 2, 256);

static struct tiny_family families[] = {
    {"llama2", {.architecture = "llama", .n_layers = 2, .n_embd = 96, .n_heads = 4, .n_kv_heads = 4, .head_dim = 24, .n_ff = 160,
                .untied = 1, .rope_base = 1e4}},
    {"vicuna-16k", {.architecture = "llama", .n_layers = 2, .n_embd = 64, .n_heads = 4, .n_kv_heads = 4, .head_dim = 16, .n_ff = 96,
                    .untied = 1, .rope_base = 1e4, .changes = linear4, .n_changes = 3}},
    {"llama3.1", {.architecture = "llama", .n_layers = 3, .n_embd = 128, .n_heads = 8, .n_kv_heads = 2, .head_dim = 32, .n_ff = 96,
                  .untied = 1, .rope_base = 5e5}},
    {"llama3.2", {.architecture = "llama", .n_layers = 2, .n_embd = 96, .n_heads = 6, .n_kv_heads = 2, .head_dim = 32, .n_ff = 96,
                  .rope_base = 5e5}},
    {"yi", {.architecture = "llama", .n_layers = 4, .n_embd = 128, .n_heads = 8, .n_kv_heads = 1, .head_dim = 16, .n_ff = 96,
            .untied = 1, .rope_base = 5e6}},
    {"smollm2", {.architecture = "llama", .n_layers = 3, .n_embd = 72, .n_heads = 9, .n_kv_heads = 3, .head_dim = 8, .n_ff = 96,
                 .rope_base = 1e5}},
    {"qwen2", {.architecture = "qwen2", .n_layers = 2, .n_embd = 112, .n_heads = 7, .n_kv_heads = 1, .head_dim = 16, .n_ff = 96,
               .biases = 1, .rope_base = 1e6}},
    {"qwen2.5-yarn", {.architecture = "qwen2", .n_layers = 2, .n_embd = 96, .n_heads = 6, .n_kv_heads = 2, .head_dim = 16, .n_ff = 96,
                      .biases = 1, .untied = 1, .rope_base = 1e6, .changes = qwen2_yarn, .n_changes = 3}},
    {"qwen3", {.architecture = "qwen3", .n_layers = 3, .n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .head_dim = 32, .n_ff = 96,
               .rope_base = 1e6}},
    {"qwen3-yarn", {.architecture = "qwen3", .n_layers = 2, .n_embd = 64, .n_heads = 8, .n_kv_heads = 1, .head_dim = 16, .n_ff = 96,
                    .untied = 1, .rope_base = 1e6, .changes = qwen3_yarn, .n_changes = 3}},
    {"qwen3moe", {.architecture = "qwen3moe", .n_layers = 3, .n_embd = 64, .n_heads = 8, .n_kv_heads = 1, .head_dim = 16, .n_ff = 32,
                  .n_experts = 16, .n_used = 4, .untied = 1, .rope_base = 1e6}},
    {"qwen3moe-yarn", {.architecture = "qwen3moe", .n_layers = 2, .n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .head_dim = 32,
                       .n_ff = 64, .n_experts = 8, .n_used = 2, .rope_base = 1e6, .changes = moe_yarn, .n_changes = 3}},
    {"mixtral", {.architecture = "llama", .n_layers = 3, .n_embd = 64, .n_heads = 8, .n_kv_heads = 2, .head_dim = 16, .n_ff = 32,
                 .n_experts = 8, .n_used = 2, .untied = 1, .rope_base = 1e6}},
};

enum { N_FAMILIES = sizeof(families) / sizeof(families[0]), LLAMA31 = 2, LLAMA32 = 3 };

const struct tiny_family *tiny_families(int *n)
{
    static float divisors[2][16];
    tiny_llama3_divisors(divisors[0], 32, 5e5, 8, 256);
    tiny_llama3_divisors(divisors[1], 32, 5e5, 32, 256);
    families[LLAMA31].spec.rope_freqs = divisors[0];
    families[LLAMA32].spec.rope_freqs = divisors[1];
    for (int i = 0; i < N_FAMILIES; i++) {
        families[i].spec.seed = 500 + (uint64_t)i;
        families[i].spec.n_ctx = 512;
        families[i].spec.dtype = SR_DTYPE_F32;
    }
    *n = N_FAMILIES;
    return families;
}
