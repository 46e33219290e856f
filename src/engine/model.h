/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of an sr_model, for the files of this folder: what was opened, in the order of its closing. Immutable
 * after open, except for the backend's scratch.
 */
#ifndef SR_ENGINE_MODEL_H
#define SR_ENGINE_MODEL_H

#include "sinkrouter/engine.h"

#include "attention/sequence.h"
#include "model/weights.h"
#include "text/chat.h"
#include "text/tokenizer.h"

struct sr_model {
    char *path;
    struct gguf *file;
    struct model_config config;
    int has_config;             /* 0: only metadata (and a tokenizer) could be used */
    struct tokenizer *tokenizer;/* NULL with metadata_only where the file's is not usable */
    struct backend *backend;    /* from here on NULL with vocab_only */
    struct backend *lower;      /* of the first n_lower layers, a CPU; NULL with n_lower 0 */
    int32_t n_lower;
    char placed[224];           /* what is where, as sr_model_info.backend has it */
    struct model_weights weights;
    struct attention *attention;
    struct chat_template *chat; /* NULL: the file has none that can be used */
    int has_chat;               /* the file has a template, whatever it is */
    int is_synthetic;           /* its weights are random, as it says */
    char architecture[48], name[96], type_name[16];
    int64_t n_params;
    uint64_t identity[2];       /* hash of every part's header and of samples of each tensor */
};

/* K/V bytes that one token takes in all layers, and bytes of the sketch of n tokens for these options. */
int32_t sr_model_sketch_rank(const struct sr_model *m); /* where the options ask for none */
uint64_t sr_model_sketch_bytes(const struct sr_model *m, const sr_route_options *r, int32_t n_ctx);

/* SR_ERR_UNSUPPORTED where the file has none that can be used. */
sr_status sr_model_need_tokenizer(const struct sr_model *m, sr_error *err);
/* Hands a list's block over as a plain array; the list is then the caller's no more. */
sr_status sr_tokens_give(struct token_list *l, int32_t **ids, int32_t *n, sr_error *err);

/* Fills defaults (n_ctx 0) and checks; SR_ERR_USAGE names the option, its value and the limit. */
sr_status sr_session_options_check(const struct sr_model *m, sr_session_options *o, sr_error *err);

#endif
