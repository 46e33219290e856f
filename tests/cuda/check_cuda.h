// SPDX-License-Identifier: Apache-2.0
//
// Calls of the CUDA tests that must succeed: the program bails out with what failed.
#ifndef SR_TESTS_CHECK_CUDA_H
#define SR_TESTS_CHECK_CUDA_H

#include "sinkrouter/base.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

static sr_error err;

#define CHECK(call)                                                                                      \
    do {                                                                                                 \
        const cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) printf("Bail out! %s: %s\n", #call, cudaGetErrorString(e_)), exit(1);     \
    } while (0)
#define TRY(call)                                                                                        \
    do {                                                                                                 \
        if ((call) != SR_OK) printf("Bail out! %s\n", err.text), exit(1);                                \
    } while (0)

#endif
