/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cuda_run.h"

#include <stdlib.h>
#include <string.h>

sr_error cuda_err;

void need_gpu(void)
{
    char line[160];
    if (sr_device_get(0, line, sizeof line)) return;
    print_message("SKIP: no GPU\n");
    skip();
}

struct run open_part(const char *path, const char *device, int n_gpu_layers, const sr_session_options *o)
{
    struct run r;
    sr_model_options mo = sr_model_options_default();
    sr_model_info info;
    mo.device = device;
    mo.n_gpu_layers = n_gpu_layers;
    OK(sr_model_open(&r.m, path, &mo, &cuda_err));
    OK(sr_session_new(&r.s, r.m, o, &cuda_err));
    sr_model_get_info(r.m, &info);
    r.n_vocab = info.n_vocab;
    return r;
}

struct run open_run(const char *path, const char *device, const sr_session_options *o) { return open_part(path, device, -1, o); }

void close_run(struct run *r)
{
    sr_session_free(r->s);
    sr_model_close(r->m);
}

float *logits_of(struct run *r, const int32_t *ids, int32_t n, int32_t n_all)
{
    float *out = malloc((size_t)n_all * (size_t)r->n_vocab * sizeof(float));
    if (n) OK(sr_session_prefill_logits(r->s, ids, n, out, &cuda_err));
    for (int32_t t = n; t < n_all; t++) {
        OK(sr_session_decode(r->s, ids[t], &cuda_err));
        memcpy(out + (size_t)t * (size_t)r->n_vocab, sr_session_logits(r->s), (size_t)r->n_vocab * sizeof(float));
    }
    return out;
}
