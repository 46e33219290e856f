/* SPDX-License-Identifier: Apache-2.0
 *
 * SentencePiece-style BPE ("llama"): spaces become U+2581, characters are merged by the score of the joined
 * text, what has no token falls back to byte tokens. As in the published library, a text can merge into
 * normal, user-defined and unused tokens, never into control, unknown or byte tokens.
 */
#ifndef SR_TEXT_SPM_H
#define SR_TEXT_SPM_H

#include "text/bpe.h"
#include "text/pair_merge.h"
#include "text/vocab.h"

struct spm {
    const struct vocab *vocab; /* borrowed from the tokenizer */
    const struct bpe *merges;  /* borrowed: pairs are joined by their rank in a list; NULL: by the score of the joined text */
    int space_prefix;
    int metaspace;  /* no prefix before a text that begins with a space */
    int first_only; /* the prefix comes before the whole text alone, not after special tokens */
    int32_t byte_id[256]; /* byte token, else the unknown token */
};

/* s must be zeroed but for `merges`. unknown is the id for what has no token, or -1. */
sr_status sr_spm_open(struct spm *s, const struct vocab *v, const struct gguf *g, int32_t unknown,
                      sr_error *err);

enum spm_place { SPM_BEGIN, SPM_AFTER_SPECIAL, SPM_WITHIN };
/* Appends the ids of a text without special tokens; `place` is what comes before it. */
sr_status sr_spm_encode(const struct spm *s, const char *text, size_t bytes, enum spm_place place,
                        struct pair_merge *scratch, struct token_list *out, sr_error *err);

/* The bytes that a token's text stands for (U+2581 is a space); at most cap are written, the full number
 * returned. */
size_t sr_spm_decode(const char *text, size_t bytes, char *out, size_t cap);

#endif
