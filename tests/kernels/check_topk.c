/* SPDX-License-Identifier: Apache-2.0
 *
 * Check of the choice of experts: ids exactly, weights against the softmax in double.
 */
#include "check.h"

#include <math.h>

enum { MOST = 512 };

void sr_spoilt_topk(const float *logits, int32_t n, int32_t k, int32_t normalize, int32_t *ids, float *weight)
{
    ((sr_topk_fn *)sr_check_now->real)(logits, n, k, normalize, ids, weight);
    sr_check_spoil(&weight[k / 2]);
}

/* logit a of index i comes before logit b of index j */
static int before(float a, int32_t i, float b, int32_t j)
{
    if (a != a || b != b) return (a == a && b != b) || ((a == a) == (b == b) && i < j);
    return a > b || (a == b && i < j);
}

static void check_choice(struct check *c, const float *logits, int32_t n, int32_t k, int32_t normalize)
{
    int32_t *ids = sr_check_out(c, (size_t)k * sizeof(int32_t)), place[MOST] = {0};
    float *weight = sr_check_out(c, (size_t)k * sizeof(float));
    double sum = 0.0, top = 0.0;
    ((sr_topk_fn *)c->fn)(logits, n, k, normalize, ids, weight);
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < n; j++) place[i] += j != i && before(logits[j], j, logits[i], i);
    for (int32_t i = 0; i < n; i++)
        if (place[i] == 0) top = logits[i];
    for (int32_t i = 0; i < n; i++)
        if (!normalize || place[i] < k) sum += exp((double)logits[i] - top);
    for (int32_t j = 0; j < k; j++) {
        if (ids[j] < 0 || ids[j] >= n || place[ids[j]] != j) {
            sr_check_fail(c, "choice %d of %d among %d is %d", j, k, n, ids[j]);
            return;
        }
        const double want = exp((double)logits[ids[j]] - top) / sum;
        if (!sr_check_near(c, "weight", j, weight[j], want, 3 * SR_CHECK_U * want + 1e-45)) return;
    }
}

struct topk_call { sr_topk_fn *fn; const float *logits; int32_t ids[8]; float weight[8]; };

static void call_topk(void *ctx)
{
    struct topk_call *t = ctx;
    t->fn(t->logits, 128, 8, 1, t->ids, t->weight);
}

void sr_check_topk(struct check *c)
{
    static const int32_t sizes[][2] = {{1, 1}, {2, 1}, {2, 2}, {5, 3}, {8, 8}, {16, 4}, {64, 6}, {128, 8}, {MOST, 16}};
    float *logits = sr_check_in(c, MOST * sizeof(float));
    if (c->bench) {
        struct topk_call t = {.fn = (sr_topk_fn *)c->fn, .logits = logits};
        sr_check_fill_normal(c, logits, 128, 2.0);
        sr_check_time(c, "8 of 128", 128 * 4, 0, call_topk, &t);
        return;
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        const int32_t n = sizes[i][0], k = sizes[i][1];
        for (int normalize = 0; normalize < 2; normalize++) {
            sr_check_fill_normal(c, logits, n, 2.0);
            check_choice(c, logits, n, k, normalize);
            for (int32_t j = 0; j < n; j++) logits[j] = (float)(j % 3); /* ties */
            check_choice(c, logits, n, k, normalize);
            for (int32_t j = 0; j < n; j++) logits[j] = j % 2 ? -1e4f : 1e4f; /* huge; -inf after them */
            logits[n - 1] = n > 1 ? -INFINITY : 0.0f;
            check_choice(c, logits, n, k, normalize);
        }
    }
    for (int32_t j = 0; j < 8; j++) logits[j] = j < 4 ? NAN : (float)j;
    int32_t ids[3];
    float weight[3];
    ((sr_topk_fn *)c->fn)(logits, 8, 3, 1, ids, weight);
    if (ids[0] != 7 || ids[1] != 6 || ids[2] != 5) sr_check_fail(c, "NaN was chosen: %d %d %d", ids[0], ids[1], ids[2]);
}
