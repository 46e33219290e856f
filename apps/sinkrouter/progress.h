/* SPDX-License-Identifier: Apache-2.0
 *
 * Progress of load, prefill and evaluation: a bar on a terminal, plain lines at the quarters of a longer
 * stage otherwise, nothing with --quiet. Shown on standard error.
 */
#ifndef SR_APP_PROGRESS_H
#define SR_APP_PROGRESS_H

/* An sr_progress_fn; user is unused. Non-zero once a signal is pending, which cancels the stage. */
int sr_progress_show(void *user, const char *stage, double share);
/* Removes the bar. */
void sr_progress_clear(void);

#endif
