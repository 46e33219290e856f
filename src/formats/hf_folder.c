/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/hf_folder.h"

#include "base/memory.h"
#include "formats/hf_parts.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int sr_is_folder(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

sr_status sr_hf_join(const struct hf *h, char dst[HF_MAX_PATH], const char *name)
{
    const int n = snprintf(dst, HF_MAX_PATH, "%s/%s", h->folder, name);
    if (n >= 0 && n < HF_MAX_PATH) return SR_OK;
    return sr_fail(h->err, SR_ERR_IO, "%s: the name of the folder is too long", name);
}

int sr_hf_exists(struct hf *h, const char *name)
{
    return sr_hf_join(h, h->path, name) == SR_OK && access(h->path, F_OK) == 0;
}

/* A file that may be absent, with its path kept for messages. */
static sr_status load(struct hf *h, const char *name, char path[HF_MAX_PATH], enum json_numbers numbers, int required, json_t **out)
{
    SR_TRY(sr_hf_join(h, path, name));
    if (!required && access(path, F_OK) != 0) return SR_OK;
    return sr_json_load(out, path, HF_MAX_CONFIG_BYTES, numbers, h->err);
}

static sr_status read_folder(struct hf *h, enum hf_what what)
{
    char name[160];
    if (what == HF_MODEL && !sr_hf_exists(h, "config.json"))
        return sr_fail(h->err, SR_ERR_IO, "%s: a directory without config.json; a GGUF file is given by its own name",
                       sr_escape(name, sizeof(name), h->folder, strlen(h->folder)));
    SR_TRY(load(h, "config.json", h->config_path, JSON_INTEGERS, what == HF_MODEL, &h->config));
    SR_TRY(load(h, "generation_config.json", h->generation_path, JSON_INTEGERS, 0, &h->generation));
    SR_TRY(load(h, "tokenizer_config.json", h->tok_config_path, JSON_ALL_REALS, 0, &h->tok_config));
    SR_TRY(sr_source_begin(&h->g, h->folder, h->err));
    if (h->config) SR_TRY(sr_hf_read_config(h));
    SR_TRY(sr_hf_read_tokenizer(h));
    SR_TRY(sr_hf_read_chat_template(h));
    if (what == HF_MODEL) SR_TRY(sr_hf_read_tensors(h));
    return sr_source_finish(h->g, h->err);
}

sr_status sr_hf_open(struct gguf **out, const char *path, enum hf_what what, sr_error *err)
{
    struct hf *h = sr_alloc_zero(1, sizeof(*h));
    if (!h) return sr_fail_memory(err, sizeof(*h), "a model folder");
    h->folder = path;
    h->err = err;
    const sr_status st = read_folder(h, what);
    if (st == SR_OK) *out = h->g;
    else sr_gguf_close(h->g);
    json_decref(h->config);
    json_decref(h->generation);
    json_decref(h->tok_config);
    sr_free(h);
    return st;
}
