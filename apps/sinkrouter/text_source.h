/* SPDX-License-Identifier: Apache-2.0
 *
 * Texts from files, standard input and the command line.
 */
#ifndef SR_APP_TEXT_SOURCE_H
#define SR_APP_TEXT_SOURCE_H

#include "sinkrouter/base.h"

struct text {
    char *data; /* owned, terminated; may hold NUL inside */
    size_t bytes;
};

/* "-" reads standard input. SR_ERR_FORMAT with the offset of the first byte that is not UTF-8; flag names the
 * option in messages. */
sr_status sr_text_read(struct text *out, const char *flag, const char *path, sr_error *err);
/* A copy, with \n \t \r \\ \' \" \xHH replaced if escapes is set. */
sr_status sr_text_copy(struct text *out, const char *s, int escapes, sr_error *err);
/* Adds s, and before it `between` if there is text already. */
sr_status sr_text_add(struct text *t, const char *between, const char *s, size_t bytes, sr_error *err);
void sr_text_free(struct text *t);

/* Offset of the first byte that is not part of well-formed UTF-8, or n. */
size_t sr_text_valid(const char *text, size_t n);
/* Byte offset of the character with this number, or the length. */
size_t sr_text_offset(const char *s, size_t bytes, int64_t chars);

#endif
