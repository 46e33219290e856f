/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of whole models on a GPU share: a session on a device, and the logits of a text. Failures end the
 * running test.
 */
#ifndef SR_TESTS_CUDA_RUN_H
#define SR_TESTS_CUDA_RUN_H

#include "sinkrouter/engine.h"

extern sr_error cuda_err;

#define OK(call)                                                       \
    do {                                                               \
        if ((call) != SR_OK) fail_msg("%s: %s", #call, cuda_err.text); \
    } while (0)

void need_gpu(void); /* or the test is skipped */

/* One session on a device. */
struct run {
    sr_model *m;
    sr_session *s;
    int32_t n_vocab;
};
struct run open_part(const char *path, const char *device, int n_gpu_layers, const sr_session_options *o);
struct run open_run(const char *path, const char *device, const sr_session_options *o);
void close_run(struct run *r);

/* n tokens as prefill, the rest one by one; logits of all, [n_all][n_vocab], the caller's. */
float *logits_of(struct run *r, const int32_t *ids, int32_t n, int32_t n_all);

#endif
