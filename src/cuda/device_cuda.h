/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's inside (C++): one struct that all its ops share, how kernels are launched, and the ops of the
 * table, each defined in the file of its name. One stream carries everything. An op cannot fail: what goes wrong is
 * kept, the first fault only, and told by the next download.
 *
 * Kernels are launched so that one may start while the one before it ends (programmatic dependent launch, from compute
 * capability 9.0 on): each begins with sr_grid_begin() and touches what others have written only after it.
 */
#ifndef SR_CUDA_DEVICE_CUDA_H
#define SR_CUDA_DEVICE_CUDA_H

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <stdint.h>

extern "C" {
#include "backend/backend.h"
#include "base/memory.h"
}

struct matmul_cuda; /* matmul_cuda.cu */
struct rope_cuda;   /* smallops_cuda.cu */
struct attn_device; /* attention_cuda.cu */
struct moe_cuda;    /* moe_cuda.cu */
struct held_cuda;   /* fuse_cuda.cu */
struct device_step_args; /* backend/device_attn.h */

/* The last launch: anything, or a product whose blocks have much or little shared memory (matvec_cuda.cu). */
enum sr_cuda_room { SR_CUDA_OTHER, SR_CUDA_LARGE, SR_CUDA_SMALL };

struct backend_cuda {
    struct backend base; /* first: a struct backend * is a struct backend_cuda * */
    int device, n_sms;
    bool overlaps; /* kernels may be launched dependently */
    bool recording;
    uint64_t recordings; /* begun so far */
    enum sr_cuda_room after_matvec; /* what the last launch was */
    struct { const float *x; int64_t n, d; } rounded; /* [n][d] that the last op also wrote as bf16, as products want it; x NULL: none */
    size_t shared_bytes;  /* that a block may have */
    void *made;           /* codes that products make for products, room for made_elems (matvec_cuda.cu) */
    int64_t made_elems;
    uint8_t *many;        /* codes of several tokens, room for many_bytes, and of how many quads the present op has made them; 0: none */
    size_t many_bytes;
    int32_t many_quads;
    struct held_cuda *held;
    cudaStream_t stream;
    void *landing; /* page-locked, for downloads; or NULL */
    struct matmul_cuda *matmul;
    struct rope_cuda *rope;
    struct attn_device *attn;
    struct moe_cuda *moe;
    sr_error fault; /* status SR_OK: none */
    char text[96];
};

static inline struct backend_cuda *sr_cuda_of(struct backend *b) { return reinterpret_cast<struct backend_cuda *>(b); }

/* backend_cuda.cu: keeps the first fault. */
void sr_cuda_note(struct backend_cuda *c, cudaError_t e, const char *what);
void sr_cuda_note_status(struct backend_cuda *c, const sr_error *err);
/* A failed call as a status with its text. */
sr_status sr_cuda_fail(cudaError_t e, const char *what, sr_error *err);
sr_status sr_cuda_new(struct backend *b, void **out, size_t bytes, const char *what, sr_error *err);
void sr_cuda_delete(struct backend *b, void *block);

/* read_cuda.cu */
void sr_cuda_read(struct backend *b, const struct read_args *a);

/* weights_cuda.cu */
sr_status sr_cuda_weight_prepare(struct backend *b, struct weight *w, sr_error *err);
void sr_cuda_weight_release(struct backend *b, struct weight *w);

/* matmul_cuda.cu */
void sr_cuda_matmul(struct backend *b, const struct matmul_args *a);
sr_status sr_cuda_matmul_reserve(struct backend *b, int32_t max_n, int64_t max_in, int64_t max_out, sr_error *err);
/* Where an op that stores x [n][d] may put it as bf16 too, for the product that comes next; NULL: nowhere. */
struct __nv_bfloat16 *sr_cuda_round_beside(struct backend_cuda *c, const float *x, int64_t n, int64_t d);
sr_status sr_cuda_matmul_init(struct backend_cuda *c, sr_error *err);
void sr_cuda_matmul_fini(struct backend_cuda *c);

/* fuse_cuda.cu: ops that may be held back, to be done together with the next. Every other op is in the table as
 * sr_cuda_flushed<op>, which does first what is held back. */
sr_status sr_cuda_fuse_init(struct backend_cuda *c, sr_error *err);
void sr_cuda_fuse_fini(struct backend_cuda *c);
void sr_cuda_flush(struct backend_cuda *c);
void sr_cuda_hold_product(struct backend_cuda *c, const struct matmul_args *a); /* of one token */
void sr_cuda_norm(struct backend *b, const struct norm_args *a);
void sr_cuda_add_norm(struct backend *b, const struct add_args *a, const struct norm_args *n);
void sr_cuda_silu_mul(struct backend *b, const struct silu_mul_args *a);
void sr_cuda_rope(struct backend *b, const struct rope_args *a);
/* Whether what is held back is a rope for each of these steps, of just its q and k; then they are the caller's. Everything else is done. */
bool sr_cuda_take_ropes(struct backend_cuda *c, const struct device_step_args *a, int32_t n, struct rope_args *out);

/* rope_append.cu: that rope, and its k (the second array) with the v of `row` into the cache of one sequence and layer, as
 * sr_attn_cuda_append would; and what the step keeps. */
struct attn_cuda_append;
struct attn_cuda_cache;
void sr_cuda_rope_append(struct backend_cuda *c, const struct rope_args *r, const struct attn_cuda_append *row, const struct attn_cuda_cache *cache,
                         const struct device_step_args *a);

/* smallops_cuda.cu */
void sr_cuda_norm_now(struct backend_cuda *c, const struct norm_args *a);
void sr_cuda_add_norm_now(struct backend_cuda *c, const struct add_args *a, const struct norm_args *n);
void sr_cuda_silu_now(struct backend_cuda *c, const struct silu_mul_args *a);
void sr_cuda_rope_now(struct backend_cuda *c, const struct rope_args *a);
/* Cosines and sines of its positions, [n][n_dims / 2]; launched now if they are not there. */
void sr_cuda_rope_angles(struct backend_cuda *c, const struct rope_args *a, const float **cos, const float **sin);
/* The same for n ropes of one token and one spec: row i is of a[i]. Returns whether they were there. */
bool sr_cuda_rope_angles_each(struct backend_cuda *c, const struct rope_args *a, int32_t n, const float **cos, const float **sin);
void sr_cuda_add(struct backend *b, const struct add_args *a);
sr_status sr_cuda_rope_reserve(struct backend_cuda *c, int32_t max_n, sr_error *err);
void sr_cuda_rope_fini(struct backend_cuda *c);

/* moe_cuda.cu */
sr_status sr_cuda_experts_prepare(struct backend *b, struct weight *w, sr_error *err); /* weight_release takes it back */
void sr_cuda_topk(struct backend *b, const struct topk_args *a);
void sr_cuda_moe(struct backend *b, const struct moe_args *a);
sr_status sr_cuda_moe_reserve(struct backend *b, const struct moe_shape *s, sr_error *err);
void sr_cuda_moe_fini(struct backend_cuda *c);

/* embed_cuda.cu */
void sr_cuda_embed(struct backend *b, const struct embed_args *a);

/* attention_cuda.cu */
extern const struct device_attn_ops sr_cuda_attn_ops;
void sr_cuda_attn_fini(struct backend_cuda *c);

/* prefill_cuda.cu */
struct prefill_params;
void sr_cuda_prefill(struct backend_cuda *c, const struct prefill_params *p);

template <auto OP> struct sr_cuda_flushing;
template <typename R, typename... A, R (*OP)(struct backend *, A...)> struct sr_cuda_flushing<OP> {
    static R call(struct backend *b, A... args)
    {
        sr_cuda_flush(sr_cuda_of(b));
        return OP(b, args...);
    }
};
template <auto OP> constexpr auto sr_cuda_flushed = &sr_cuda_flushing<OP>::call;

/* ---- launching ---- */

#define SR_CUDA_THREADS 256

template <typename... P, typename... A>
static inline void sr_cuda_launch(struct backend_cuda *c, const char *what, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                  A... args)
{
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = c->stream;
    config.attrs = &overlap;
    config.numAttrs = c->overlaps ? 1 : 0;
    sr_cuda_note(c, cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), what);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/* Lets the next kernel start, then waits for the one before. What lies between may read what nobody writes. */
static __device__ __forceinline__ void sr_grid_next() { asm volatile("griddepcontrol.launch_dependents;"); }
static __device__ __forceinline__ void sr_grid_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
static __device__ __forceinline__ void sr_grid_next() {}
static __device__ __forceinline__ void sr_grid_wait() {}
#endif

static __device__ __forceinline__ void sr_grid_begin()
{
    sr_grid_next();
    sr_grid_wait();
}

#endif
