/* SPDX-License-Identifier: Apache-2.0
 *
 * Vocabularies for tests: small ones described in place, opened through a GGUF file. For cmocka tests.
 */
#ifndef SR_TESTS_VOCAB_BUILD_H
#define SR_TESTS_VOCAB_BUILD_H

#include "gguf_build.h"
#include "text/tokenizer.h"

struct sr_tv {
    const char *model, *pre; /* NULL: key left out */
    const char *tokens[700];
    int32_t types[700]; /* 0 stands for normal */
    float scores[700];  /* written for model "llama" */
    uint64_t n;
    const char *merges[64];
    uint64_t n_merges;
    int64_t bos, eos, unknown;     /* -1: left out */
    int add_bos, add_space_prefix; /* -1: left out */
    const char *architecture, *chat_template; /* NULL: left out */
    float temperature;             /* general.sampling.temp; 0: left out */
};

/* "gpt2" with the given pre-tokenizer and the 256 characters of the byte alphabet as tokens 0..255. */
void sr_tv_bpe(struct sr_tv *v, const char *pre);
/* "llama" with <unk> <s> </s> and 256 byte tokens, ids 0..258. */
void sr_tv_spm(struct sr_tv *v);
int32_t sr_tv_add(struct sr_tv *v, const char *text, int32_t type, float score); /* returns the id */
void sr_tv_merge(struct sr_tv *v, const char *merge);

/* Path of a file with this vocabulary. */
const char *sr_tv_save(const struct sr_tv *v, const char *name);
/* Opens; failure fails the test. */
struct tokenizer *sr_tv_open(const struct sr_tv *v);
struct tokenizer *sr_tv_open_file(const char *path);

/* Ids as "1 2 3" of the text, in a static buffer. */
const char *sr_tv_ids(const struct tokenizer *t, const char *text, size_t bytes, enum token_special mode);
/* Bytes of a list of tokens, malloc'd; *bytes gets their number. */
char *sr_tv_text(const struct tokenizer *t, const struct token_list *l, size_t *bytes);
/* Whole file, malloc'd and terminated; NULL if it cannot be read. */
char *sr_tv_read(const char *path, size_t *bytes);

#endif
