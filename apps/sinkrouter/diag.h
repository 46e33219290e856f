/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything the program says on standard error: one line at a time, control characters made visible, copied to
 * --log-file. Errors are always shown; notes are not with --quiet. Standard output belongs to answers and tables.
 */
#ifndef SR_APP_DIAG_H
#define SR_APP_DIAG_H

#include "sinkrouter/base.h"

#include <stdio.h>

/* Lines of the library: warnings always (unless quiet), the rest when verbose. */
sr_status sr_diag_open(const char *log_file, int quiet, int verbose, sr_error *err);
/* The exit status: rc, or if that is 0 and a line did not get to the log file, that of the error, which is said. */
int sr_diag_close(int rc);
int sr_diag_quiet(void);

__attribute__((format(printf, 1, 2))) void sr_say(const char *fmt, ...);
__attribute__((format(printf, 1, 2))) void sr_note(const char *fmt, ...);

/* Fills *err and returns status. */
__attribute__((format(printf, 3, 4))) sr_status sr_refuse(sr_error *err, sr_status status, const char *fmt,
                                                          ...);

/* text with controls, quotes and bytes that are not UTF-8 as \xNN, cut with "..." at dst_bytes. Returns dst.
 */
const char *sr_visible(char *dst, size_t dst_bytes, const char *text);

/* A line printed above a progress bar must first clear it: progress.c sets this. */
void sr_diag_before_line(void (*clear)(void));

#endif
