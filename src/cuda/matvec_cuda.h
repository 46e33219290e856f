/* SPDX-License-Identifier: Apache-2.0
 *
 * What the products of a few tokens are asked for (C++): the products themselves, and what may be done with their input
 * and output on the way, so that a decode step needs few launches. fuse_cuda.cu decides which ops become one.
 */
#ifndef SR_CUDA_MATVEC_CUDA_H
#define SR_CUDA_MATVEC_CUDA_H

#include "cuda/device_cuda.h"

enum { MATVEC_TOKENS = 8, MATVEC_FEW = 4 }; /* of one launch, at most; and of one whose sums take fewer registers and less memory */

struct matvec_extra {
    bool norms;             /* the input is norm.x normed; it is stored to norm.y too. One token */
    struct norm_args norm;
    float *add_to;          /* the one product is added to this, instead of stored; or NULL. One token */
    bool silu;              /* two products: y[0] becomes silu(y[0]) * y[1]. One token */
    bool makes;             /* codes of silu's results are made too (acts_cuda.h), for the product that comes next */
    bool takes;             /* that product: the codes of its input are there */
    const int32_t *late;    /* position of the token, on the device, or NULL: up to LATE_BELOW (matvec_kernel.cuh) the next kernel, which has more to
                             * do before it waits than to fill rings, does not start before the kernel before this one has ended */
};

/* Room for such codes of up to n elements; what is made needs it. */
sr_status sr_cuda_made_reserve(struct backend_cuda *c, int64_t n, sr_error *err);
void sr_cuda_made_free(struct backend_cuda *c);

/* Room for codes of up to max_n tokens, for products of several. */
sr_status sr_cuda_many_reserve(struct backend_cuda *c, int32_t max_n, int64_t n_in, sr_error *err);

/* Tokens [t0, t0 + n) of a; n at most MATVEC_TOKENS. */
void sr_cuda_matvec(struct backend_cuda *c, const struct matmul_args *a, const struct matvec_extra *extra, int32_t t0, int32_t n);

#endif
