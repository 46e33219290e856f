/* SPDX-License-Identifier: Apache-2.0
 *
 * The one error convention: functions return sr_status, fill an optional sr_error, and forward with SR_TRY.
 * Text taken from files is escaped before it reaches an error line (sr_escape), so that a hostile name can
 * neither break the line nor be a format string.
 */
#ifndef SR_BASE_STATUS_H
#define SR_BASE_STATUS_H

#include "sinkrouter/base.h"

/* Forward a failure to the caller. Use only where nothing is owned yet; else `goto fail`. */
#define SR_TRY(call)                        \
    do {                                    \
        sr_status sr_try_ = (call);         \
        if (sr_try_ != SR_OK) return sr_try_; \
    } while (0)

/* Same inside a function that owns something: needs a local `sr_status st` and a label `fail`. */
#define SR_TRY_GOTO(call)                   \
    do {                                    \
        st = (call);                        \
        if (st != SR_OK) goto fail;         \
    } while (0)

/* Fill *err (if not NULL) and return `status`, so that `return sr_fail(err, SR_ERR_FORMAT, "...")` reads well. */
sr_status sr_fail(sr_error *err, sr_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The failure of an allocation of `bytes` bytes for `what`. */
sr_status sr_fail_memory(sr_error *err, size_t bytes, const char *what);

/* Printable one-line form of arbitrary bytes: control characters, quotes, backslashes and invalid UTF-8 become
 * \xNN; longer text is cut with "...". Returns dst, always terminated. dst_bytes >= 8. */
const char *sr_escape(char *dst, size_t dst_bytes, const char *src, size_t src_bytes);

void sr_log(sr_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
