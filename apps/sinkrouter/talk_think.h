/* SPDX-License-Identifier: Apache-2.0
 *
 * Thinking in run and chat: what --think and its like ask for, and thoughts on their way to the terminal.
 */
#ifndef SR_APP_TALK_THINK_H
#define SR_APP_TALK_THINK_H

#include "talk.h"

/* Once the template is known. Refuses what the model cannot do. */
sr_status sr_talk_think_open(struct talk *t, sr_error *err);
/* Around an answer; push: which part a token belongs to, before it goes to its stream. */
void sr_talk_think_begin(struct talk *t, const int32_t *prompt, int32_t n);
sr_status sr_talk_think_push(struct talk *t, int32_t id, sr_part *part, sr_error *err);
sr_status sr_talk_think_end(struct talk *t, struct answer *a, sr_error *err);

#endif
