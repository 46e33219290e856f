/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/hf_shards.h"

#include "base/memory.h"
#include "formats/gguf_model.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME  "model.safetensors.index.json"

enum { MAX_SHARDS = 1000, MAX_INDEX_BYTES = 64 << 20 };

/* ---- files ---- */

static sr_status add_file(struct hf_shards *s, struct hf *h, const char *path)
{
    int32_t part;
    SR_TRY(sr_source_add_file(h->g, path, &part, h->err));
    struct st_header *all = sr_realloc(s->headers, (size_t)s->n_headers * sizeof(*all), ((size_t)s->n_headers + 1) * sizeof(*all));
    if (!all) return sr_fail_memory(h->err, sizeof(*all), "a safetensors file");
    s->headers = all;
    SR_TRY(sr_st_header_read(&all[s->n_headers], sr_gguf_file_of(h->g, part), part, h->err));
    s->n_headers++;
    return SR_OK;
}

/* Whether the real file lies in the folder, or in ../../blobs of it. */
static int lies_within(const struct hf *h, const char *path)
{
    char blobs[HF_MAX_PATH], *real = realpath(path, NULL), *folder = realpath(h->folder, NULL), *cache = NULL;
    int within = 0;
    if (sr_hf_join(h, blobs, "../../blobs") == SR_OK) cache = realpath(blobs, NULL);
    char *slash = real ? strrchr(real, '/') : NULL;
    if (slash) *slash = 0;
    if (slash && folder) within = strcmp(real, folder) == 0 || (cache && strcmp(real, cache) == 0);
    free(real);
    free(folder);
    free(cache);
    return within;
}

static sr_status check_shard_name(struct hf *h, const struct json_at *index, const char *name, char path[HF_MAX_PATH])
{
    static const char end[] = ".safetensors";
    const size_t n = strlen(name), tail = sizeof(end) - 1;
    char shown[64];
    sr_escape(shown, sizeof(shown), name, n);
    if (n <= tail || n > 255 || name[0] == '.' || strchr(name, '/') || strcmp(name + n - tail, end) != 0)
        return sr_json_reject(index, h->err, NULL, "\"%s\" is no name of a safetensors file in this folder", shown);
    SR_TRY(sr_hf_join(h, path, name));
    if (access(path, F_OK) != 0) return sr_json_reject(index, h->err, NULL, "shard \"%s\" is missing", shown);
    if (!lies_within(h, path)) return sr_json_reject(index, h->err, NULL, "shard \"%s\" is a link to outside of the folder", shown);
    return SR_OK;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* The files that the map names, each once, in the order of their names. */
static sr_status open_named(struct hf_shards *s, struct hf *h, const struct json_at *index)
{
    const size_t n = json_object_size(index->object);
    const char *key, **names = sr_alloc((n + 1) * sizeof(*names));
    char path[HF_MAX_PATH];
    size_t k = 0;
    sr_status st = SR_OK;
    json_t *v;
    if (!names) return sr_fail_memory(h->err, n * sizeof(*names), "names of shards");
    json_object_foreach((json_t *)(uintptr_t)index->object, key, v) {
        if (!json_is_string(v)) {
            st = sr_json_reject(index, h->err, key, "not a string");
            goto fail;
        }
        names[k++] = json_string_value(v);
    }
    qsort(names, k, sizeof(*names), by_text);
    for (size_t i = 0; i < k; i++) {
        if (i > 0 && strcmp(names[i], names[i - 1]) == 0) continue;
        if (s->n_headers >= MAX_SHARDS) {
            st = sr_json_reject(index, h->err, NULL, "more than %d shards", MAX_SHARDS);
            goto fail;
        }
        SR_TRY_GOTO(check_shard_name(h, index, names[i], path));
        SR_TRY_GOTO(add_file(s, h, path));
    }
fail:
    sr_free(names);
    return st;
}

/* ---- the list ---- */

static sr_status join_lists(struct hf_shards *s, struct hf *h)
{
    int64_t n = 0, k = 0;
    for (int32_t i = 0; i < s->n_headers; i++) n += s->headers[i].n;
    if (n > GGUF_MAX_TENSORS)
        return sr_gguf_reject(h->g, h->err, "%lld tensors in %d files, limit %d", (long long)n, s->n_headers, GGUF_MAX_TENSORS);
    s->tensors = sr_alloc((size_t)n * sizeof(*s->tensors));
    if (!s->tensors) return sr_fail_memory(h->err, (size_t)n * sizeof(*s->tensors), "tensors of a model folder");
    for (int32_t i = 0; i < s->n_headers; i++) {
        if (s->headers[i].n) memcpy(s->tensors + k, s->headers[i].tensors, (size_t)s->headers[i].n * sizeof(*s->tensors));
        k += s->headers[i].n;
    }
    s->n = n;
    SR_TRY(sr_name_table_init(&s->names, s->tensors, sizeof(*s->tensors), n, h->err));
    for (int64_t i = 0; i < n; i++) {
        char name[GGUF_SHOWN_NAME_BYTES];
        if (sr_name_table_add(&s->names, i) >= 0)
            return sr_gguf_reject(h->g, h->err, "tensor %s is in two files", sr_gguf_shown_name(name, s->tensors[i].name));
    }
    return SR_OK;
}

/* Every tensor lies where the index has it. */
static sr_status check_map(struct hf_shards *s, struct hf *h, const struct json_at *index)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)index->object, key, v) {
        const struct st_tensor *t = sr_hf_shards_find(s, key);
        const char *name = json_string_value(v), *file = t ? sr_gguf_file_of(h->g, t->part)->path : NULL;
        char shown[64];
        if (file && strcmp(strrchr(file, '/') + 1, name) == 0) continue;
        return sr_json_reject(index, h->err, key, "this tensor is not in \"%s\"", sr_escape(shown, sizeof(shown), name, strlen(name)));
    }
    return SR_OK;
}

static sr_status open_index(struct hf_shards *s, struct hf *h, json_t *doc, const char *path)
{
    const struct json_at a = {path, "$", doc};
    const json_t *map;
    SR_TRY(sr_json_member(&a, "weight_map", JSON_OBJECT, &map, NULL, h->err));
    const struct json_at index = {path, "$.weight_map", map};
    if (json_object_size(map) == 0) return sr_json_reject(&index, h->err, NULL, "empty");
    SR_TRY(open_named(s, h, &index));
    SR_TRY(join_lists(s, h));
    return check_map(s, h, &index);
}

sr_status sr_hf_shards_open(struct hf_shards *s, struct hf *h)
{
    char path[HF_MAX_PATH];
    json_t *doc;
    if (sr_hf_exists(h, SINGLE_NAME)) {
        SR_TRY(sr_hf_join(h, path, SINGLE_NAME));
        SR_TRY(add_file(s, h, path));
        return join_lists(s, h);
    }
    if (!sr_hf_exists(h, INDEX_NAME))
        return sr_fail(h->err, SR_ERR_IO, "%s: neither " SINGLE_NAME " nor " INDEX_NAME " is there", h->folder);
    SR_TRY(sr_hf_join(h, path, INDEX_NAME));
    SR_TRY(sr_json_load(&doc, path, MAX_INDEX_BYTES, JSON_INTEGERS, h->err));
    const sr_status st = open_index(s, h, doc, path);
    json_decref(doc);
    return st;
}

void sr_hf_shards_free(struct hf_shards *s)
{
    for (int32_t i = 0; i < s->n_headers; i++) sr_st_header_free(&s->headers[i]);
    sr_free(s->headers);
    sr_free(s->tensors);
    sr_name_table_fini(&s->names);
    *s = (struct hf_shards){0};
}

struct st_tensor *sr_hf_shards_find(const struct hf_shards *s, const char *name)
{
    const int64_t i = sr_name_table_find(&s->names, name, strlen(name));
    return i < 0 ? NULL : &s->tensors[i];
}
