/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefill attention and the moments collected beside it (C++).
 */
#ifndef SR_CUDA_PREFILL_CUDA_H
#define SR_CUDA_PREFILL_CUDA_H

#include "cuda/device_cuda.h"

/* Causal attention of n query rows at positions pos0 .. pos0 + n - 1 over the pages of one layer. */
struct prefill_params {
    void *const *k_page, *const *v_page; /* [n_kv_heads][max_pages] */
    const float *k_scale, *v_scale;      /* [n_kv_heads], F8_E4M3 only */
    const float *q;                      /* [n][n_kv_heads * group * head_dim] */
    float *out;
    int kv_type;
    int32_t max_pages, n_kv_heads, group, head_dim, n;
    int64_t pos0;
    float scale;
};
void sr_cuda_prefill(struct backend_cuda *c, const struct prefill_params *p);

/* By which kernel: mma takes all types and sizes; wgmma is there in machine code for compute capability 9.0a alone. */
void sr_cuda_prefill_mma(struct backend_cuda *c, const struct prefill_params *p);
void sr_cuda_prefill_wgmma(struct backend_cuda *c, const struct prefill_params *p);
bool sr_cuda_prefill_has_wgmma(const struct prefill_params *p);

struct device_moments_args;
void sr_cuda_moments(struct backend *b, const struct device_moments_args *a, int32_t n);

#endif
