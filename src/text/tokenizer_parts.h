/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokenizing a text whose parts differ in what may match as a special token; for chat.c.
 */
#ifndef SR_TEXT_TOKENIZER_PARTS_H
#define SR_TEXT_TOKENIZER_PARTS_H

#include "text/tokenizer.h"

struct text_part {
    size_t bytes;
    enum token_special special;
};

/* The parts lie in `text` one after another. A special token matches within one part only; the ordinary text
 * between special tokens is one run whatever part it comes from. */
sr_status sr_tokenize_parts(const struct tokenizer *t, const char *text, const struct text_part *parts,
                            int32_t n_parts, struct token_list *out, sr_error *err);

#endif
