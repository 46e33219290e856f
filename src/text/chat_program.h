/* SPDX-License-Identifier: Apache-2.0
 *
 * A chat template is a Jinja program. This reads one just far enough to compare it: a canonical text in which
 * quoting, spacing, white-space control, x["y"] against x.y and "a" + "b" against "ab" make no difference,
 * and the list of its words. Nothing is executed.
 */
#ifndef SR_TEXT_CHAT_PROGRAM_H
#define SR_TEXT_CHAT_PROGRAM_H

#include "base/status.h"

enum program_kind {
    PROGRAM_TEXT, /* a string literal, or text outside of tags: decoded, in double quotes in the canonical
                     text */
    PROGRAM_NAME,
    PROGRAM_MARK /* one character of anything else, or a tag's two */
};

struct program_token {
    enum program_kind kind;
    uint32_t at, bytes; /* in canon; of a TEXT without its quotes */
};

struct chat_program {
    char *canon;
    size_t n;
    struct program_token *token;
    int32_t n_tokens;
};

#define SR_CHAT_PROGRAM_MAX_BYTES ((size_t)1 << 20)

/* SR_ERR_FORMAT for a tag or string that does not end, or a program above the size limit. */
sr_status sr_chat_program_read(struct chat_program *p, const char *text, size_t bytes, sr_error *err);
void sr_chat_program_free(struct chat_program *p);
/* Whether the canonical text contains s. */
int sr_chat_program_has(const struct chat_program *p, const char *s);

#endif
