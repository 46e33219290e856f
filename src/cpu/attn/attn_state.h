/* SPDX-License-Identifier: Apache-2.0
 *
 * The attention state (o, m, l) of one head, and the one merge. States over disjoint sets of keys combine in any
 * order to the same state within rounding; the empty state (0, -inf, 0) changes nothing, bit for bit.
 */
#ifndef SR_CPU_ATTN_STATE_H
#define SR_CPU_ATTN_STATE_H

#include <stdint.h>

/* One head's state, borrowed. */
struct head_state { float *o, *m, *l; };

void sr_head_state_clear(struct head_state s, int32_t d);
/* into = into + from. */
void sr_head_state_merge(struct head_state into, struct head_state from, int32_t d);

#endif
