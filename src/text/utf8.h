/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8 with defined behaviour on any bytes, and the filter that lets only whole characters into a stream.
 */
#ifndef SR_TEXT_UTF8_H
#define SR_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Decodes one character at s (n > 0 bytes left). Returns its length 1..4 and the code point; an invalid,
 * overlong, surrogate or cut sequence returns 1 with *cp = 0xFFFD and *valid = 0. */
int sr_utf8_decode(const uint8_t *s, size_t n, uint32_t *cp, int *valid);
int sr_utf8_encode(uint32_t cp, char out[4]); /* returns 1..4 */
int sr_utf8_valid(const void *s, size_t n);

/* Holds the bytes of an unfinished character between pushes. push appends to `out` (capacity n + 4 bytes) every
 * byte that is part of a whole character; a byte that can never become one turns into U+FFFD (so out needs
 * 3 * (n + 4)). Returns the number of bytes written. finish flushes a rest as U+FFFD. Not thread-safe. */
struct utf8_stream { uint8_t held[4]; int32_t n_held; };
size_t sr_utf8_stream_push(struct utf8_stream *u, const void *bytes, size_t n, char *out);
size_t sr_utf8_stream_finish(struct utf8_stream *u, char *out);

#endif
