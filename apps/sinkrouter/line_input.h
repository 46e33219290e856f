/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines of a conversation: edited with libedit on a terminal, plain from a pipe. A line that ends in a
 * backslash goes on in the next one.
 */
#ifndef SR_APP_LINE_INPUT_H
#define SR_APP_LINE_INPUT_H

#include "text_source.h"

enum line_result { LINE_OK, LINE_END, LINE_INTERRUPTED };

struct line_input;
/* color: the prompt is green. NULL on lack of memory. */
struct line_input *sr_line_input_new(int color);
void sr_line_input_free(struct line_input *l);
int sr_line_input_is_terminal(const struct line_input *l);
/* The next line without its newline, added to out (which is emptied first). */
enum line_result sr_line_input_read(struct line_input *l, struct text *out);

#endif
