/* SPDX-License-Identifier: Apache-2.0
 *
 * Chat templates: known ones, recognised by the template's text and rendered by code here. Output is a list of
 * segments, so that what a template wrote may contain control tokens and what a user wrote may not.
 * An unknown template is SR_ERR_UNSUPPORTED and named by its first characters.
 */
#ifndef SR_TEXT_CHAT_H
#define SR_TEXT_CHAT_H

#include "text/tokenizer.h"

enum chat_template {
    CHAT_NONE,      /* the model declares no template */
    CHAT_CHATML,    /* plain, no default system text (Yi) */
    CHAT_SMOLLM2,   /* ChatML with SmolLM2's default system text */
    CHAT_QWEN25,    /* ChatML with Qwen2.5's default system text and tools wording */
    CHAT_QWEN3,     /* ChatML; thinking removed from history */
    CHAT_LLAMA2,
    CHAT_LLAMA3,    /* 3.0: no system block unless given */
    CHAT_LLAMA31,   /* 3.1/3.3: dated system block always */
    CHAT_VICUNA,
    CHAT_ZEPHYR     /* also TinyLlama */
};

/* By the text of tokenizer.chat_template. */
sr_status sr_chat_template_detect(enum chat_template *out, const char *text, size_t bytes, sr_error *err);
/* By the name a user types (--chat-template): chatml, smollm2, qwen2.5, qwen3, llama2, llama3, llama3.1, vicuna, zephyr. */
sr_status sr_chat_template_find(enum chat_template *out, const char *name, sr_error *err);
const char *sr_chat_template_name(enum chat_template t);

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };
struct chat_message { enum chat_role role; const char *text; size_t bytes; }; /* borrowed */

struct chat_options {
    int add_generation_prompt;
    int think;              /* Qwen3: -1 the template's default, 0 off (empty think block), 1 on */
    const char *date;       /* Llama-3.1: "26 Jul 2024"; NULL = the template's constant */
};

struct chat_piece { const char *data; size_t bytes; int from_user; };
/* Rendered text: `text` owned; pieces index into it, in order and without gaps. Llama-2 and 3 write their BOS here:
 * a caller that adds BOS does so only where the tokens do not begin with it. */
struct chat_text {
    char *text;
    size_t bytes;
    struct chat_piece *pieces;
    int32_t n_pieces;
    enum chat_template of;
};
void sr_chat_text_free(struct chat_text *c);

/* Renders all messages. A role order that the template's own program would refuse is SR_ERR_USAGE. */
sr_status sr_chat_render(struct chat_text *out, enum chat_template t, const struct chat_message *m, int32_t n,
                         const struct chat_options *o, sr_error *err);

/* Tokenizes a rendered text: template pieces with SPECIAL_PARSE, user pieces with SPECIAL_AS_TEXT. Neighbouring
 * ordinary text is tokenized as one run, exactly as the whole string would be. A vocabulary without the tokens that
 * the template begins and ends turns with is SR_ERR_UNSUPPORTED. On failure *out is as before. */
sr_status sr_chat_tokenize(const struct chat_text *c, const struct tokenizer *t, struct token_list *out, sr_error *err);

/* Texts that end an assistant turn beyond the end tokens (Vicuna's "USER:"); NULL-terminated list, static. */
const char *const *sr_chat_stop_texts(enum chat_template t);

#endif
