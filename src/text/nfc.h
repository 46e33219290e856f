/* SPDX-License-Identifier: Apache-2.0
 *
 * Unicode normalization form C of a text that may hold any bytes: what is no valid UTF-8 stays as it is. Linear in the
 * text, also for long runs of combining marks.
 */
#ifndef SR_TEXT_NFC_H
#define SR_TEXT_NFC_H

#include "base/status.h"

/* *out is NULL where the text is in the form already; else a block of sr_alloc, with *out_bytes. */
sr_status sr_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes, sr_error *err);

#endif
