/* SPDX-License-Identifier: Apache-2.0
 *
 * Prompts from flags.
 */
#include "prompt.h"
#include "diag.h"

#include <string.h>

/* Cuts a text where its first n tokens end, at a whole character. */
static sr_status cut_to_tokens(struct text *doc, const sr_model *m, int64_t n, sr_error *err)
{
    int32_t *ids, total;
    sr_status st = sr_tokenize(m, doc->data, doc->bytes, SR_BOS_OFF, 0, &ids, &total, err);
    if (st) return st;
    if (total > n) {
        size_t bytes = 0;
        for (int64_t i = 0; i < n; i++) bytes += sr_token_text(m, ids[i], 1, NULL, 0);
        if (bytes > doc->bytes) bytes = doc->bytes;
        while (bytes > 0 && ((unsigned char)doc->data[bytes] & 0xc0) == 0x80) bytes--;
        sr_note("--file-tokens %lld: the first %zu of %zu bytes (%d tokens) are used", (long long)n, bytes,
                doc->bytes, total);
        doc->bytes = bytes;
        doc->data[bytes] = '\0';
    }
    sr_tokens_free(ids);
    return SR_OK;
}

sr_status sr_prompt_text(struct text *out, const struct talk *t, sr_error *err)
{
    const struct options *o = t->o;
    struct text doc = {0}, question = {0};
    sr_status st = SR_OK;
    if (o->file) st = sr_text_read(&doc, "-f", o->file, err);
    if (!st && o->file && o->file_tokens) st = cut_to_tokens(&doc, t->model, o->file_tokens, err);
    if (!st && o->prompt) st = sr_text_copy(&question, o->prompt, !o->no_escape, err);
    if (!st && question.bytes) {
        int ends_line = doc.bytes && doc.data[doc.bytes - 1] == '\n';
        st = sr_text_add(&doc, ends_line ? "\n" : "\n\n", question.data, question.bytes, err);
    }
    sr_text_free(&question);
    if (st)
        sr_text_free(&doc);
    else
        *out = doc;
    return st;
}

sr_status sr_prompt_system(struct text *out, const struct options *o, sr_error *err)
{
    *out = (struct text){0};
    if (o->system && o->system_file) return sr_refuse(err, SR_ERR_USAGE, "-sys: not together with -sysf");
    if (o->system) return sr_text_copy(out, o->system, !o->no_escape, err);
    if (o->system_file) return sr_text_read(out, "-sysf", o->system_file, err);
    return SR_OK;
}

void sr_prompt_show_ids(const struct talk *t, const int32_t *ids, int32_t n)
{
    if (!t->o->verbose_prompt) return;
    char text[512];
    for (int32_t i = 0; i < n;) {
        int at = snprintf(text, sizeof text, "prompt tokens %d..:", i);
        for (; i < n && at + 16 < (int)sizeof text; i++)
            at += snprintf(text + at, sizeof text - (size_t)at, " %d", ids[i]);
        sr_say("%s", text);
    }
}
