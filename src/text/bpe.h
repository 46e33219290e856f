/* SPDX-License-Identifier: Apache-2.0
 *
 * Byte-level BPE: words from a pre-tokenizer, bytes as printable characters (the "gpt2" alphabet), pairs
 * merged by the rank of the file's list. A byte without a token of its own (SmolLM2 has 21 such) becomes the
 * unknown token if that may stand in text, else it is left out, as the published implementations do.
 */
#ifndef SR_TEXT_BPE_H
#define SR_TEXT_BPE_H

#include "text/pair_merge.h"
#include "text/pretokenize.h"
#include "text/vocab.h"

struct bpe_merge {
    uint64_t pair; /* left id, right id */
    uint32_t rank;
    int32_t id; /* of the joined token; -1: free slot */
};

struct bpe {
    const struct vocab *vocab; /* borrowed from the tokenizer */
    const struct pretokenizer *pre;
    struct bpe_merge *merge; /* [mask + 1] by pair */
    uint32_t mask;
    int whole_words; /* a word that is a token is taken without merging */
    int32_t byte_id[256]; /* -1: left out */
};

/* b must be zeroed. unknown is the id for bytes without a token, or -1. On failure nothing is owned. */
sr_status sr_bpe_open(struct bpe *b, const struct vocab *v, const struct gguf *g, int32_t unknown,
                      sr_error *err);
void sr_bpe_fini(struct bpe *b);

/* The list of merges alone, for a vocabulary of another kind; b must be zeroed and is not owned on failure. */
sr_status sr_bpe_open_merges(struct bpe *b, const struct vocab *v, const struct gguf *g, sr_error *err);
/* Rank of joining two tokens, and the token they give; 0 if the list has no such pair. ctx is a struct bpe. */
int sr_bpe_rank_of_pair(const void *ctx, const struct symbol *l, const struct symbol *r, uint32_t *rank,
                        int32_t *id);

/* Appends the ids of a text without special tokens. */
sr_status sr_bpe_encode(const struct bpe *b, const char *text, size_t bytes, struct pair_merge *scratch,
                        struct token_list *out, sr_error *err);

/* The bytes that a token's text stands for; at most cap are written, the full number is returned. A character
 * outside the alphabet stands for its own UTF-8. */
size_t sr_bpe_decode(const char *text, size_t bytes, char *out, size_t cap);

#endif
