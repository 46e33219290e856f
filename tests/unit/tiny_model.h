/* SPDX-License-Identifier: Apache-2.0
 *
 * Tiny random models as GGUF files, made from a seed. tools/make-golden.py makes the same numbers: element i of the tensor
 * `name` comes from z = mix(seed + fnv1a64(name) + (i + 1) * 0x9e3779b97f4a7c15) of splitmix64, as u = (z >> 40) / 2^23 - 1
 * in [-1, 1), exact in a float; then matrices are u * (float)(gain * sqrt(3 / n_in)), norms 1 + u / 4, biases u / 8, all in
 * float arithmetic, and token t of a text is mix(..."tokens"...) % n_vocab. Q and K rows are in GGUF order. Tensors of
 * experts are matrices one behind the other, of one name and one count of elements.
 */
#ifndef SR_TESTS_TINY_MODEL_H
#define SR_TESTS_TINY_MODEL_H

#include "formats/gguf_write.h"

enum tiny_change_kind { TINY_OMIT, TINY_U32, TINY_F32, TINY_STR, TINY_I32S };

/* Instead of what the model would have under this key; a key that it has not is added. */
struct tiny_change {
    const char *key;
    enum tiny_change_kind kind;
    uint32_t u32;
    double f32;
    const char *str;
    const int32_t *i32s; /* [n] */
    uint64_t n;
};

/* To one tensor: left out, another shape (ne[0] > 0), or a NaN at an element of its data. */
struct tiny_tensor_change {
    const char *name;
    int omit;
    int64_t ne[2];
    int64_t nan_at; /* -1: none; f32 tensors only */
    int bad_scale;  /* the f16 scale of the first block becomes infinite: q8_0 only */
};

struct tiny_spec {
    const char *architecture;
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_ctx;
    sr_dtype dtype;      /* of the matrices: F32, F16, Q8_0 ... */
    int untied, biases;
    int32_t n_experts, n_used; /* 0: none; else n_ff is the width of one expert */
    uint64_t seed;
    double rope_base;
    const float *rope_freqs; /* [head_dim / 2] or NULL */
    int n_extra;         /* tensors that no model has; the first is called extra_name if that is given */
    const char *extra_name;
    const struct tiny_change *changes;
    int n_changes;
    const struct tiny_tensor_change *tensor_changes;
    int n_tensor_changes;
};

enum { TINY_VOCAB = 264, TINY_END = 262, TINY_START = 261 };

/* 2 layers of 64, 4 heads of 16 over 2 KV heads, f32, 512 tokens of context. */
struct tiny_spec tiny_spec_default(void);
/* Fails the running test if the file cannot be written. */
void tiny_model_write(const char *path, const struct tiny_spec *spec);
void tiny_tokens(uint64_t seed, int32_t *ids, int32_t n);
/* The number z of element i of `name`. */
uint64_t tiny_number(uint64_t seed, const char *name, uint64_t i);

/* A path in a fresh folder of this process; the folder and what is in it goes at exit. Good for the next 63 calls. */
const char *tiny_path(const char *name);

#endif
