/* SPDX-License-Identifier: Apache-2.0
 *
 * See trail.h. The constants were chosen on hidden numbers (docs/notes/routing-experiments.md): of the heads that missed more than a quarter of
 * their mass nine in ten missed a row that this names.
 */
#include "attention/trail.h"

#include <string.h>

void sr_trail_step(struct trail *t, int32_t kv_len)
{
    if (t->step == kv_len) return;
    const int goes_on = t->step > 0 && t->step == kv_len - 1;
    t->n = goes_on ? t->n_now : 0;
    memcpy(t->rows, t->now, (size_t)t->n * sizeof *t->rows);
    t->n_now = 0;
    t->step = kv_len;
}

int32_t sr_trail_get(const struct trail *t, int32_t first, int32_t last, int32_t *rows)
{
    int32_t n = 0, next = first;
    for (int32_t i = 0; i < t->n; i++) {
        int32_t row = t->rows[i] - SR_TRAIL_BEFORE;
        if (row < next) row = next;
        for (; row <= t->rows[i] + SR_TRAIL_AFTER && row < last; row++) rows[n++] = row;
        if (row > next) next = row;
    }
    return n;
}

static int32_t smallest(const struct trail *t)
{
    int32_t least = 0;
    for (int32_t i = 1; i < t->n_now; i++)
        if (t->share[i] < t->share[least]) least = i;
    return least;
}

static void take_out(struct trail *t, int32_t at)
{
    const size_t after = (size_t)(--t->n_now - at);
    memmove(t->now + at, t->now + at + 1, after * sizeof *t->now);
    memmove(t->share + at, t->share + at + 1, after * sizeof *t->share);
}

void sr_trail_note(struct trail *t, int32_t row, float share)
{
    int32_t at = 0;
    if (!(share >= SR_TRAIL_SHARE)) return;
    while (at < t->n_now && t->now[at] < row) at++;
    if (at < t->n_now && t->now[at] == row) {
        if (share > t->share[at]) t->share[at] = share;
        return;
    }
    if (t->n_now == SR_TRAIL_NOTED) {
        const int32_t least = smallest(t);
        if (share <= t->share[least]) return;
        take_out(t, least);
        at -= least < at;
    }
    const size_t after = (size_t)(t->n_now++ - at);
    memmove(t->now + at + 1, t->now + at, after * sizeof *t->now);
    memmove(t->share + at + 1, t->share + at, after * sizeof *t->share);
    t->now[at] = row;
    t->share[at] = share;
}

/* The step that a cut undoes may be made again: what the step before it left stays. */
void sr_trail_truncate(struct trail *t, int32_t len)
{
    if (t->step <= len) return;
    t->n_now = 0;
    if (t->step > len + 1) *t = (struct trail){0};
}

static int rises(const int32_t *rows, int32_t n, int32_t len)
{
    for (int32_t i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= len || (i && rows[i] <= rows[i - 1])) return 0;
    return 1;
}

int sr_trail_check(const struct trail *t, int32_t len)
{
    if (t->n < 0 || t->n > SR_TRAIL_NOTED || t->n_now < 0 || t->n_now > SR_TRAIL_NOTED || t->step < 0) return -1;
    for (int32_t i = 0; i < t->n_now; i++)
        if (!(t->share[i] >= SR_TRAIL_SHARE)) return -1;
    return rises(t->rows, t->n, len) && rises(t->now, t->n_now, len) ? 0 : -1;
}
