/* SPDX-License-Identifier: Apache-2.0
 *
 * SIGINT, SIGTERM and SIGHUP set a flag that loops look at; the second one of a kind ends the program at
 * once. SIGPIPE is ignored, so that a closed reader is an error of write(). System calls are not restarted.
 */
#ifndef SR_APP_INTERRUPT_H
#define SR_APP_INTERRUPT_H

void sr_interrupt_init(void);
/* The signal that came, 0 if none. */
int sr_interrupt_pending(void);
void sr_interrupt_clear(void);

#endif
