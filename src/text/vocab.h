/* SPDX-License-Identifier: Apache-2.0
 *
 * The tokens of a file as the tokenizers need them: texts copied into one block, kinds, scores, and a hash
 * table from text to id. All reading and checking of the tokenizer.ggml.* arrays is here. Immutable after
 * load.
 */
#ifndef SR_TEXT_VOCAB_H
#define SR_TEXT_VOCAB_H

#include "text/tokenizer.h"

#define SR_VOCAB_MAX_TOKENS      (1 << 24)
#define SR_VOCAB_MAX_TOKEN_BYTES 65536

struct vocab {
    int32_t n;
    size_t max_bytes; /* of the longest token */
    char *pool;       /* the texts, back to back */
    uint32_t *start;  /* [n + 1] into pool */
    uint8_t *kind;    /* [n] enum token_kind */
    float *score;     /* [n], or NULL */
    int32_t *slot;    /* [mask + 1] ids by text, -1 free; of equal texts the first */
    uint32_t mask;
};

/* v must be zeroed. On failure nothing is owned. Scores are wanted finite and complete where with_scores. */
sr_status sr_vocab_load(struct vocab *v, const struct gguf *g, int with_scores, sr_error *err);
void sr_vocab_fini(struct vocab *v);

static inline const char *sr_vocab_text(const struct vocab *v, int32_t id)
{
    return v->pool + v->start[id];
}
static inline size_t sr_vocab_bytes(const struct vocab *v, int32_t id)
{
    return v->start[id + 1] - v->start[id];
}

/* Id of the token with this text, or -1. */
int32_t sr_vocab_find(const struct vocab *v, const char *text, size_t bytes);

/* Number of a byte token "<0xHH>", or -1 if the text is not exactly that. */
int sr_vocab_byte_value(const char *text, size_t bytes);

#endif
