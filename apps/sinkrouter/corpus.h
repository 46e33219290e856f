/* SPDX-License-Identifier: Apache-2.0
 *
 * Token sequences that measurements run on: of a text, random, or a document with needles.
 */
#ifndef SR_APP_CORPUS_H
#define SR_APP_CORPUS_H

#include "options.h"

struct corpus {
    int32_t *ids; /* owned, by free() */
    int32_t n;
};

void sr_corpus_free(struct corpus *c);
/* The first n tokens of -f from --offset on, BOS as --bos says; fewer if the text ends. n 0: up to most. */
sr_status sr_corpus_text(struct corpus *c, const struct options *o, const sr_model *m, int32_t n,
                         int32_t most, sr_error *err);
/* n random tokens, the same for the same seed. */
sr_status sr_corpus_random(struct corpus *c, int32_t n, int32_t n_vocab, uint64_t seed, sr_error *err);

enum { NEEDLE_TEXT = 128, MAX_NEEDLES = 64, MAX_VALUES = 8 };
struct needle {
    char question[NEEDLE_TEXT]; /* "\nThe special magic number for <word> is" */
    char digits[MAX_VALUES][8];
    int32_t n_values;           /* 1, or of the last needle --values: its sentences lie between those of the others */
};
/* What is asked: words, numbers of values and questions; *most = the tokens of the longest question. */
sr_status sr_corpus_questions(struct needle *needles, const struct options *o, const sr_model *m, int32_t *most, sr_error *err);
/* n tokens: -f's text, or filler of our own, with the sentences of these needles at even depths; fills in their numbers. */
sr_status sr_corpus_needles(struct corpus *c, struct needle *needles, const struct options *o, const sr_model *m, int32_t n,
                            sr_error *err);

#endif
