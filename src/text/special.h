/* SPDX-License-Identifier: Apache-2.0
 *
 * Finds special tokens in raw text: the longest one at the leftmost place. Candidates are control, unknown
 * and user-defined tokens, sorted by text; a match narrows the sorted range one byte at a time.
 */
#ifndef SR_TEXT_SPECIAL_H
#define SR_TEXT_SPECIAL_H

#include "text/vocab.h"

struct special_text {
    const char *text; /* borrowed from the vocabulary */
    uint32_t bytes;
    int32_t id;
};

struct specials {
    struct special_text *row; /* [n] sorted by text, equal texts by id */
    int32_t n;
    int32_t first[257]; /* rows that begin with byte b: [first[b], first[b + 1]) */
};

sr_status sr_specials_load(struct specials *s, const struct vocab *v, sr_error *err);
void sr_specials_fini(struct specials *s);

/* Length of the longest special token at text[0..bytes), 0 if none; *id gets its id. With SPECIAL_AS_TEXT
 * only user-defined tokens match. */
size_t sr_specials_match(const struct specials *s, const struct vocab *v, const char *text, size_t bytes,
                         enum token_special mode, int32_t *id);

#endif
