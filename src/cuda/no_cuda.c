/* SPDX-License-Identifier: Apache-2.0
 *
 * What stands in for src/cuda in a build without it.
 */
#include "backend/backend.h"

sr_status sr_backend_cuda_open(struct backend **out, int index, int n_threads, sr_error *err)
{
    (void)out;
    (void)index;
    (void)n_threads;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "device cuda: this build has no CUDA; `make CUDA=1` builds one that does");
}

int sr_backend_cuda_device(int index, char *line, size_t bytes)
{
    (void)index;
    (void)line;
    (void)bytes;
    return 0;
}
