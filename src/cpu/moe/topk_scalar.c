/* SPDX-License-Identifier: Apache-2.0
 *
 * The choice of experts. One pass per choice: k is 8 of 128, so a pass costs less than keeping a heap would.
 */
#include "cpu/kernels.h"

#include <math.h>

static float rank_of(float logit) { return logit == logit ? logit : -INFINITY; }

/* Index of the largest logit that is not among ids[0..j), the first of equal ones. */
static int32_t next_best(const float *logits, int32_t n, const int32_t *ids, int32_t j)
{
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++) {
        if (best >= 0 && !(rank_of(logits[i]) > rank_of(logits[best]))) continue;
        int32_t taken = 0;
        while (taken < j && ids[taken] != i) taken++;
        if (taken == j) best = i;
    }
    return best;
}

void sr_topk_scalar(const float *logits, int32_t n, int32_t k, int32_t normalize, int32_t *ids, float *weight)
{
    double sum = 0.0;
    for (int32_t j = 0; j < k; j++) ids[j] = next_best(logits, n, ids, j);
    const double most = logits[ids[0]];
    for (int32_t j = 0; j < k; j++) weight[j] = (float)exp((double)logits[ids[j]] - most);
    if (normalize)
        for (int32_t j = 0; j < k; j++) sum += (double)weight[j];
    else
        for (int32_t i = 0; i < n; i++) sum += exp((double)logits[i] - most);
    for (int32_t j = 0; j < k; j++) weight[j] = (float)((double)weight[j] / sum);
}
