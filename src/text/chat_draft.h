/* SPDX-License-Identifier: Apache-2.0
 *
 * Putting a rendered chat together piece by piece, and the string functions that templates use. The first
 * failure sticks in `status`, so that a renderer reads like the template it stands for.
 */
#ifndef SR_TEXT_CHAT_DRAFT_H
#define SR_TEXT_CHAT_DRAFT_H

#include "text/chat.h"

struct chat_cut {
    size_t begin;
    int from_user;
};

struct chat_draft {
    char *text;
    size_t n, cap;
    struct chat_cut *cut;
    int32_t n_cuts, cap_cuts;
    sr_status status;
    sr_error *err;
};

void sr_chat_draft_fixed(struct chat_draft *d, const char *text); /* what the template writes */
void sr_chat_draft_user(struct chat_draft *d, const char *text,
                        size_t bytes); /* what a person or model wrote */
/* Hands everything over to *out, or frees it when something failed. */
sr_status sr_chat_draft_finish(struct chat_draft *d, struct chat_text *out);

struct chat_slice {
    const char *s;
    size_t n;
};
/* Python's str.strip, lstrip and rstrip of white space. */
struct chat_slice sr_chat_strip(struct chat_slice x);
struct chat_slice sr_chat_rstrip(struct chat_slice x);
/* Only newlines. */
struct chat_slice sr_chat_lstrip_newlines(struct chat_slice x);
struct chat_slice sr_chat_rstrip_newlines(struct chat_slice x);
/* What comes before the first, or after the last `mark`; all of x if there is none. */
struct chat_slice sr_chat_before(struct chat_slice x, const char *mark);
struct chat_slice sr_chat_after_last(struct chat_slice x, const char *mark);

#endif
