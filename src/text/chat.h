/* SPDX-License-Identifier: Apache-2.0
 *
 * Chat templates: the program of a model file, run by the interpreter of jinja.h, or one of ours by name for
 * files that have none. Output is a list of pieces, so that what a template wrote may contain control tokens
 * and what a person or a model wrote may not. A template is immutable after open: any number of threads may
 * render with it.
 */
#ifndef SR_TEXT_CHAT_H
#define SR_TEXT_CHAT_H

#include "text/tokenizer.h"

struct chat_template;

/* A program. SR_ERR_FORMAT or SR_ERR_UNSUPPORTED says in which line it cannot be read and why. */
sr_status sr_chat_template_open(struct chat_template **out, const char *program, size_t bytes, sr_error *err);
/* One of ours (--chat-template): chatml, smollm2, qwen2.5, qwen3, llama2, llama3, llama3.1, vicuna, zephyr.
 */
sr_status sr_chat_template_open_name(struct chat_template **out, const char *name, sr_error *err);
void sr_chat_template_close(struct chat_template *t);
const char *sr_chat_template_name(const struct chat_template *t); /* "jinja" for a program */
/* Names of ours, by number from 0; NULL after the last. */
const char *sr_chat_template_known(int i);
/* Whether it has the variable that turns thinking off and on. */
int sr_chat_template_has_think(const struct chat_template *t);
/* Whether its texts have a mark of thinking. */
int sr_chat_template_writes_think(const struct chat_template *t);

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL };
/* All borrowed; only role and text must be there. */
struct chat_message {
    enum chat_role role;
    const char *text;
    size_t bytes;
    const char *reasoning; /* an assistant's thinking; NULL: none given */
    size_t reasoning_bytes;
    const char *tool_calls; /* an assistant's: JSON array as in the OpenAI API; arguments may be an object or
                               JSON text */
    const char *tool_call_id, *name; /* of a tool's result */
};

struct chat_options {
    int add_generation_prompt;
    int think;             /* enable_thinking: -1 left to the template, 0 false, 1 true */
    const char *tools;     /* JSON array, or NULL */
    const char *extra;     /* JSON object of more variables, or NULL */
    const char *bos, *eos; /* texts of the tokens; NULL: "" */
    int64_t now;           /* seconds since 1970 for strftime_now; < 0: the function is not there */
};

struct chat_piece {
    const char *data;
    size_t bytes;
    int from_user;
};
/* Rendered text: `text` owned; pieces index into it, in order and without gaps. Some templates write the BOS
 * token here: a caller that adds BOS does so only where the tokens do not begin with it. */
struct chat_text {
    char *text;
    size_t bytes;
    struct chat_piece *pieces;
    int32_t n_pieces;
};
void sr_chat_text_free(struct chat_text *c);

/* Renders all messages. SR_ERR_USAGE: the template refuses the conversation, or JSON of the options or of a
 * message is wrong; SR_ERR_FORMAT: it went beyond a limit of jinja.h. */
sr_status sr_chat_render(struct chat_text *out, const struct chat_template *t, const struct chat_message *m,
                         int32_t n, const struct chat_options *o, sr_error *err);

/* Tokenizes a rendered text: template pieces with SPECIAL_PARSE, user pieces with SPECIAL_AS_TEXT.
 * Neighbouring ordinary text is tokenized as one run, exactly as the whole string would be. A vocabulary
 * without the tokens that a template of ours begins and ends turns with is SR_ERR_UNSUPPORTED. On failure
 * *out is as before. */
sr_status sr_chat_tokenize(const struct chat_text *c, const struct chat_template *by,
                           const struct tokenizer *t, struct token_list *out, sr_error *err);

/* Texts that end an assistant turn beyond the end tokens (Vicuna's "USER:"); NULL-terminated list, static. */
const char *const *sr_chat_stop_texts(const struct chat_template *t);

#endif
