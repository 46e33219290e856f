/* SPDX-License-Identifier: Apache-2.0
 *
 * Text in and out of a model: the tokenizer behind the public functions.
 */
#include "engine/model.h"

#include "base/memory.h"
#include "text/utf8.h"

#include <string.h>

sr_status sr_model_need_tokenizer(const struct sr_model *m, sr_error *err)
{
    if (m->tokenizer) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: the file has no tokenizer that can be used", m->path);
}

/* Hands the list's block over as a plain array. */
sr_status sr_tokens_give(struct token_list *l, int32_t **ids, int32_t *n, sr_error *err)
{
    if (l->n > INT32_MAX) return sr_fail(err, SR_ERR_USAGE, "text of %lld tokens: the limit is 2^31", (long long)l->n);
    if (!l->ids) { /* an empty text still gives a block to free */
        l->ids = sr_alloc(sizeof(*l->ids));
        if (!l->ids) return sr_fail_memory(err, sizeof(*l->ids), "tokens");
    }
    *ids = l->ids;
    *n = (int32_t)l->n;
    return SR_OK;
}

sr_status sr_tokenize(const sr_model *m, const char *text, size_t bytes, sr_bos bos, int parse_special, int32_t **ids,
                      int32_t *n, sr_error *err)
{
    if (!m || !ids || !n || (!text && bytes)) return sr_fail(err, SR_ERR_USAGE, "sr_tokenize: an argument is NULL");
    SR_TRY(sr_model_need_tokenizer(m, err));
    struct token_list l = {0};
    sr_status st = SR_OK;
    const int with_bos = bos == SR_BOS_AUTO ? sr_tokenizer_adds_bos(m->tokenizer) : bos == SR_BOS_ON;
    if (with_bos) {
        const int32_t id = sr_tokenizer_bos(m->tokenizer);
        if (id < 0) return sr_fail(err, SR_ERR_USAGE, "%s: the file names no BOS token", m->path);
        SR_TRY_GOTO(sr_token_list_push(&l, id, err));
    }
    SR_TRY_GOTO(sr_tokenizer_encode(m->tokenizer, bytes ? text : "", bytes, parse_special ? SPECIAL_PARSE : SPECIAL_AS_TEXT, &l, err));
    SR_TRY_GOTO(sr_tokens_give(&l, ids, n, err));
    return SR_OK;
fail:
    sr_token_list_free(&l);
    return st;
}

void sr_tokens_free(int32_t *ids)
{
    struct token_list l = {.ids = ids};
    sr_token_list_free(&l);
}

size_t sr_token_text(const sr_model *m, int32_t id, int show_control, char *out, size_t cap)
{
    if (!m || !m->tokenizer || id < 0 || id >= sr_tokenizer_vocab_size(m->tokenizer)) return 0;
    return sr_token_bytes(m->tokenizer, id, show_control, out, cap);
}

int sr_token_is_end(const sr_model *m, int32_t id)
{
    if (!m || !m->tokenizer || id < 0 || id >= sr_tokenizer_vocab_size(m->tokenizer)) return 0;
    return sr_tokenizer_is_end(m->tokenizer, id);
}

size_t sr_utf8_push(sr_utf8_hold *u, const void *bytes, size_t n, char *out)
{
    struct utf8_stream s = {.n_held = u->n_held};
    memcpy(s.held, u->held, sizeof(s.held));
    const size_t got = sr_utf8_stream_push(&s, bytes, n, out);
    u->n_held = s.n_held;
    memcpy(u->held, s.held, sizeof(s.held));
    return got;
}

size_t sr_utf8_finish(sr_utf8_hold *u, char *out)
{
    struct utf8_stream s = {.n_held = u->n_held};
    memcpy(s.held, u->held, sizeof(s.held));
    *u = (sr_utf8_hold){0};
    return sr_utf8_stream_finish(&s, out);
}
