/* SPDX-License-Identifier: Apache-2.0
 *
 * Pre-tokenizers of byte-level BPE vocabularies: the rules that cut a text into words before merging. The
 * published rules are regular expressions; here each is a matcher over code points, because a backtracking
 * engine needs stack for long runs of one class and ours must be linear on any input. A row is a name that
 * GGUF files use (tokenizer.ggml.pre) and its flags. Knows nothing of vocabularies.
 */
#ifndef SR_TEXT_PRETOKENIZE_H
#define SR_TEXT_PRETOKENIZE_H

#include <stddef.h>
#include <stdint.h>

enum pre_rule {
    PRE_GPT2,  /* case-sensitive contractions, " ?" before letters, numbers and others */
    PRE_LLAMA3 /* any-case contractions, one leading non-letter, newlines stay with what precedes them */
};

struct pretokenizer {
    const char *name;
    enum pre_rule rule;
    int digits;       /* most digits in one word (PRE_LLAMA3) */
    int digits_apart; /* a first pass cuts every number character off (PRE_GPT2) */
    int adds_bos;     /* when the file does not say */
    int whole_words;  /* a word that is a vocabulary entry is taken without merging */
};

/* By the name in a file; NULL if unknown. */
const struct pretokenizer *sr_pretokenizer_find(const char *name, size_t bytes);
/* All names, separated by ", ": for the message of a refusal. */
const char *sr_pretokenizer_names(void);

/* End (exclusive) of the word that begins at `at` < n. Invalid bytes count as one character each, of no
 * class. */
size_t sr_pretokenizer_word(const struct pretokenizer *p, const uint8_t *s, size_t n, size_t at);

#endif
