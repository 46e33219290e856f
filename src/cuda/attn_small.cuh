// SPDX-License-Identifier: Apache-2.0
//
// The small kernels around attention, for their launchers.
#ifndef SR_CUDA_ATTN_SMALL_CUH
#define SR_CUDA_ATTN_SMALL_CUH

#include "cuda/attn_parts.cuh"

namespace sr {

struct append_params {
    struct attn_cuda_append a;
    struct attn_cuda_cache cache;
    int32_t head_dim, n_kv_heads, type;
    int32_t row0, n_rows; // of the a.n rows of each sequence: those of this launch
    float *norms;         // [n_units][K, V][n_rows], where a.n > 1 and sinks are looked for
};
struct paper_params { struct attn_cuda_paper a; struct attn_cuda_cache cache; int32_t head_dim, n_kv_heads, group, n_units, type; };
struct audit_params { struct attn_cuda_audit a; struct attn_cuda_cache cache; int32_t head_dim, n_kv_heads, group, n_units, type; };

struct scales_params { struct attn_cuda_scales a; int32_t head_dim; };

constexpr int SINK_ROWS = 256; // threads of sinks_kernel, and rows that it looks at together

__global__ void scales_kernel(const __grid_constant__ scales_params p);
__global__ void append_kernel(const __grid_constant__ append_params p);
__global__ void sinks_kernel(const __grid_constant__ append_params p); // found sinks of more rows than one, after append_kernel; a block a unit
__global__ void paper_kernel(const __grid_constant__ paper_params p);
__global__ void audit_mark_kernel(const __grid_constant__ audit_params p);
__global__ void audit_record_kernel(const __grid_constant__ audit_params p);

// Element i of a row of a page, without its head's scale.
static __device__ __forceinline__ float element_of(int type, const uint8_t *page, int slot, int d, int i)
{
    if (type == ELEM_BF16) return __bfloat162float(((const __nv_bfloat16 *)page)[slot * d + i]);
    if (type == ELEM_F16) return __half2float(((const __half *)page)[slot * d + i]);
    if (type == ELEM_F8) {
        const __half_raw h = __nv_cvt_fp8_to_halfraw(page[slot * d + i], __NV_E4M3);
        return __half2float(*(const __half *)&h);
    }
    return (float)(int8_t)page[slot * d + i] * __half2float(((const __half *)(page + SR_PAGE_ROWS * d))[slot * (d / 32) + i / 32]);
}

// ---- for launchers ----

static inline sr_status launched(cudaError_t e, const char *what, sr_error *err)
{
    if (e == cudaSuccess) e = cudaGetLastError();
    if (e == cudaSuccess) return SR_OK;
    return sr_fail(err, SR_ERR_RESOURCE, "CUDA: %s: %s", what, cudaGetErrorString(e));
}

// Of a K/V type; -1: not among those of a GPU.
static inline int elem_of(sr_dtype t)
{
    switch ((int)t) {
    case SR_DTYPE_BF16: return ELEM_BF16;
    case SR_DTYPE_F16: return ELEM_F16;
    case SR_DTYPE_F8_E4M3: return ELEM_F8;
    case SR_DTYPE_Q8_0: return ELEM_Q8;
    default: return -1;
    }
}

static inline int n_units_of(const struct attn_cuda *c, const struct attn_cuda_cache *cache) { return cache->n_seqs * c->shape.n_kv_heads; }

} // namespace sr

#endif
