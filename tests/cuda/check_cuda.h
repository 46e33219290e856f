// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA tests share: calls that must succeed (the program bails out with what failed), TAP's first word and its last.
#ifndef SR_TESTS_CHECK_CUDA_H
#define SR_TESTS_CHECK_CUDA_H

#include "sinkrouter/base.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

static sr_error err;
static int passed, failed;

// Ends the program where there is no GPU.
static inline void want_gpu()
{
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess && n > 0) return;
    printf("1..0 # SKIP no GPU\n");
    exit(0);
}

// The plan and the count; the exit status.
static inline int end_tests()
{
    printf("1..%d\n%d passed, %d failed, 0 skipped\n", passed + failed, passed, failed);
    return failed != 0;
}

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
