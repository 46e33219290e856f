/* SPDX-License-Identifier: Apache-2.0
 *
 * m = max(m1, m2), l = l1 exp(m1 - m) + l2 exp(m2 - m), o likewise. NaN in m or l of either side reaches l and o.
 */
#include "cpu/attn/attn_state.h"

#include <math.h>
#include <string.h>

void sr_head_state_clear(struct head_state s, int32_t d)
{
    memset(s.o, 0, (size_t)d * sizeof(float));
    *s.m = -INFINITY;
    *s.l = 0;
}

static int is_empty(struct head_state s) { return *s.m == -INFINITY && *s.l == 0; }

void sr_head_state_merge(struct head_state into, struct head_state from, int32_t d)
{
    if (is_empty(from)) return;
    if (is_empty(into)) {
        memcpy(into.o, from.o, (size_t)d * sizeof(float));
        *into.m = *from.m;
        *into.l = *from.l;
        return;
    }
    const float m = *into.m > *from.m ? *into.m : *from.m;
    /* a side that saw only NaN keeps m = -inf, with l NaN: its share must not be -inf - -inf of itself, but is NaN anyway */
    const float a = expf(*into.m - m), b = expf(*from.m - m);
    for (int32_t i = 0; i < d; i++) into.o[i] = into.o[i] * a + from.o[i] * b;
    *into.l = *into.l * a + *from.l * b;
    *into.m = m;
}
