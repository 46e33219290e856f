/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokenizers built from a GGUF's own vocabulary: byte-level BPE ("gpt2") and SentencePiece-style ("llama").
 * Cost is linear (up to a log) in the text. Immutable after open: any number of threads may encode and decode.
 * What differs between models is data: a pre-tokenizer (a row of tokenizer_pre.c) and flags of the file.
 */
#ifndef SR_TEXT_TOKENIZER_H
#define SR_TEXT_TOKENIZER_H

#include "formats/gguf.h"

struct tokenizer;

/* Rows TK1-TK9 of the bad-input contract: SR_ERR_FORMAT; a pre-tokenizer or model that is not known:
 * SR_ERR_UNSUPPORTED naming it and listing the known ones. g may be closed afterwards. */
sr_status sr_tokenizer_open(struct tokenizer **out, const struct gguf *g, sr_error *err);
void sr_tokenizer_close(struct tokenizer *t);

int32_t sr_tokenizer_vocab_size(const struct tokenizer *t);
const char *sr_tokenizer_model_name(const struct tokenizer *t); /* "bpe/llama-bpe", "spm" */

enum token_kind { TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_USER = 4, TOKEN_UNUSED = 5, TOKEN_BYTE = 6 };
enum token_kind sr_tokenizer_kind(const struct tokenizer *t, int32_t id);

/* Ids the file declares, -1 where it declares none. */
int32_t sr_tokenizer_bos(const struct tokenizer *t);
int32_t sr_tokenizer_eos(const struct tokenizer *t);
int sr_tokenizer_adds_bos(const struct tokenizer *t);
int sr_tokenizer_adds_eos(const struct tokenizer *t);
/* End of generation: eos, eot, eom ids and every control token whose text is a known end mark. */
int sr_tokenizer_is_end(const struct tokenizer *t, int32_t id);
/* Id of the token with exactly this text, or -1. */
int32_t sr_tokenizer_find(const struct tokenizer *t, const char *text, size_t bytes);

/* A growable list of ids, owned by the caller; {0} to begin with. */
struct token_list { int32_t *ids; int64_t n, cap; };
void sr_token_list_free(struct token_list *l);
sr_status sr_token_list_push(struct token_list *l, int32_t id, sr_error *err);

enum token_special {
    SPECIAL_AS_TEXT, /* control tokens in the text stay text; only user-defined ones match */
    SPECIAL_PARSE    /* control tokens match too: for text that a template wrote */
};
/* Appends the ids of text[0..bytes) to l; no BOS/EOS is added here. Any bytes are accepted. The macro keeps the older
 * name alive for the files of this folder; engine.h gives that name to a public function. */
#ifndef SINKROUTER_ENGINE_H
#define sr_tokenize sr_tokenizer_encode
#endif
sr_status sr_tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, enum token_special special,
                      struct token_list *l, sr_error *err);

/* The raw bytes of one token as they stand in running text (byte-level mapping undone, U+2581 -> space; control and
 * unused tokens give nothing unless show_control). Writes at most cap bytes, returns the full length. The leading
 * space that SentencePiece adds to a text is the caller's to drop: see sr_tokenizer_strips_first_space. */
size_t sr_token_bytes(const struct tokenizer *t, int32_t id, int show_control, char *out, size_t cap);
int sr_tokenizer_strips_first_space(const struct tokenizer *t);

#endif
