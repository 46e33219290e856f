/* SPDX-License-Identifier: Apache-2.0
 *
 * Numbers from the configurations that were published with the models.
 */
#include "model/shapes.h"

/* clang-format off */
#define LLAMA(name, vocab, l, d, h, k, hd, ff, v, ctx, theta, eps, tied, f) \
    {name, "llama", vocab, l, d, h, k, hd, ff, v, ctx, theta, eps, tied, 0, 0, 0, f}
#define LLAMA2(name, l, d, h, k, ff, ctx)            LLAMA(name, VOCAB_LLAMA2, l, d, h, k, 128, ff, 32000, ctx, 1e4, 1e-5, 0, 0)
#define LLAMA3(name, l, d, h, k, hd, ff, tied, f)    LLAMA(name, VOCAB_LLAMA3, l, d, h, k, hd, ff, 128256, 131072, 5e5, 1e-5, tied, f)
#define YI(name, l, d, h, k, ff, ctx, theta, eps)    LLAMA(name, VOCAB_YI, l, d, h, k, 128, ff, 64000, ctx, theta, eps, 0, 0)
#define SMOLLM(name, l, d, h, k, ff, theta)          LLAMA(name, VOCAB_SMOLLM, l, d, h, k, 64, ff, 49152, 8192, theta, 1e-5, 1, 0)
#define QWEN2(name, l, d, h, k, hd, ff, v, tied)     {name, "qwen2", VOCAB_QWEN, l, d, h, k, hd, ff, v, 32768, 1e6, 1e-6, tied, 0, 0, 0, 0}
#define QWEN3(name, l, d, h, ff, ctx, theta, tied)   {name, "qwen3", VOCAB_QWEN, l, d, h, 8, 128, ff, 151936, ctx, theta, 1e-6, tied, 0, 0, 0, 0}
#define QWEN3MOE(name, l, d, h, ff, fe, ctx, theta)  {name, "qwen3moe", VOCAB_QWEN, l, d, h, 4, 128, ff, 151936, ctx, theta, 1e-6, 0, 128, 8, fe, 0}
#define MIXTRAL(name, l, d, h, ff, ctx)              {name, "llama", VOCAB_LLAMA2, l, d, h, 8, 128, ff, 32000, ctx, 1e6, 1e-5, 0, 8, 2, ff, 0}

static const struct model_shape shapes[] = {
    LLAMA2("llama-2-7b", 32, 4096, 32, 32, 11008, 4096),
    LLAMA2("llama-2-13b", 40, 5120, 40, 40, 13824, 4096),
    LLAMA2("llama-2-70b", 80, 8192, 64, 8, 28672, 4096),
    LLAMA2("vicuna-7b", 32, 4096, 32, 32, 11008, 4096),
    LLAMA2("vicuna-13b", 40, 5120, 40, 40, 13824, 4096),
    LLAMA2("llava-1.5-7b", 32, 4096, 32, 32, 11008, 4096),   /* the language part */
    LLAMA2("llava-1.5-13b", 40, 5120, 40, 40, 13824, 4096),
    LLAMA("tinyllama-1.1b", VOCAB_LLAMA2, 22, 2048, 32, 4, 64, 5632, 32000, 2048, 1e4, 1e-5, 0, 0),
    MIXTRAL("mixtral-8x7b", 32, 4096, 32, 14336, 32768),
    MIXTRAL("mixtral-8x22b", 56, 6144, 48, 16384, 65536),
    LLAMA3("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 0, 8),
    LLAMA3("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 0, 8),
    LLAMA3("llama-3.3-70b", 80, 8192, 64, 8, 128, 28672, 0, 8),
    LLAMA3("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 1, 32),
    LLAMA3("llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 1, 32),
    YI("yi-6b", 32, 4096, 32, 4, 11008, 4096, 5e6, 1e-5),
    YI("yi-6b-200k", 32, 4096, 32, 4, 11008, 200000, 5e6, 1e-5),
    YI("yi-9b", 48, 4096, 32, 4, 11008, 4096, 1e4, 1e-6),
    YI("yi-9b-200k", 48, 4096, 32, 4, 11008, 262144, 1e7, 1e-6),
    YI("yi-34b", 60, 7168, 56, 8, 20480, 4096, 5e6, 1e-5),
    YI("yi-34b-200k", 60, 7168, 56, 8, 20480, 200000, 1e7, 1e-5),
    SMOLLM("smollm2-135m", 30, 576, 9, 3, 1536, 1e5),
    SMOLLM("smollm2-360m", 32, 960, 15, 5, 2560, 1e5),
    SMOLLM("smollm2-1.7b", 24, 2048, 32, 32, 8192, 1.3e5),
    QWEN2("qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151936, 1),
    QWEN2("qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 151936, 1),
    QWEN2("qwen2.5-3b", 36, 2048, 16, 2, 128, 11008, 151936, 1),
    QWEN2("qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, 0),
    QWEN2("qwen2.5-14b", 48, 5120, 40, 8, 128, 13824, 152064, 0),
    QWEN2("qwen2.5-32b", 64, 5120, 40, 8, 128, 27648, 152064, 0),
    QWEN2("qwen2.5-72b", 80, 8192, 64, 8, 128, 29568, 152064, 0),
    QWEN3("qwen3-0.6b", 28, 1024, 16, 3072, 40960, 1e6, 1),
    QWEN3("qwen3-1.7b", 28, 2048, 16, 6144, 40960, 1e6, 1),
    QWEN3("qwen3-4b", 36, 2560, 32, 9728, 40960, 1e6, 1),
    QWEN3("qwen3-4b-2507", 36, 2560, 32, 9728, 262144, 5e6, 1),
    QWEN3("qwen3-8b", 36, 4096, 32, 12288, 40960, 1e6, 0),
    QWEN3("qwen3-14b", 40, 5120, 40, 17408, 40960, 1e6, 0),
    QWEN3("qwen3-32b", 64, 5120, 64, 25600, 40960, 1e6, 0),
    QWEN3MOE("qwen3-30b-a3b", 48, 2048, 32, 6144, 768, 40960, 1e6),
    QWEN3MOE("qwen3-30b-a3b-2507", 48, 2048, 32, 6144, 768, 262144, 1e7),
    QWEN3MOE("qwen3-235b-a22b", 94, 4096, 64, 12288, 1536, 40960, 1e6),
    QWEN3MOE("qwen3-235b-a22b-2507", 94, 4096, 64, 12288, 1536, 262144, 5e6),
    LLAMA("tiny-llama2", VOCAB_LLAMA2, 2, 256, 4, 4, 64, 512, 512, 4096, 1e4, 1e-5, 0, 0),
    LLAMA("tiny-llama3", VOCAB_LLAMA3, 2, 256, 8, 2, 32, 512, 512, 131072, 5e5, 1e-5, 1, 8),
    LLAMA("tiny-yi", VOCAB_YI, 2, 256, 8, 1, 32, 512, 512, 200000, 5e6, 1e-5, 0, 0),
    LLAMA("tiny-smollm", VOCAB_SMOLLM, 2, 192, 3, 1, 64, 512, 512, 8192, 1e5, 1e-5, 1, 0),
    {"tiny-mixtral", "llama", VOCAB_LLAMA2, 2, 256, 4, 2, 64, 512, 512, 32768, 1e6, 1e-5, 0, 8, 2, 512, 0},
    {"tiny-qwen2", "qwen2", VOCAB_QWEN, 2, 256, 4, 2, 64, 512, 512, 32768, 1e6, 1e-6, 1, 0, 0, 0, 0},
    {"tiny-qwen3", "qwen3", VOCAB_QWEN, 2, 256, 8, 2, 64, 512, 512, 40960, 1e6, 1e-6, 1, 0, 0, 0, 0},
    {"tiny-qwen3moe", "qwen3moe", VOCAB_QWEN, 2, 256, 8, 1, 64, 1024, 512, 40960, 1e6, 1e-6, 0, 16, 4, 256, 0},
};
/* clang-format on */

const struct model_shape *sr_model_shape(int32_t i)
{
    return i >= 0 && i < (int32_t)(sizeof(shapes) / sizeof(shapes[0])) ? &shapes[i] : NULL;
}
