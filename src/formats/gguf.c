/* SPDX-License-Identifier: Apache-2.0
 *
 * A model made of one or more GGUF files. Part 1 gives the values; the tensors of all parts form one list and one
 * name space. A shard is believed only when its name, its split.* values and the first part agree.
 */
#include "formats/gguf.h"

#include "base/memory.h"
#include "formats/gguf_model.h"
#include "formats/hf_folder.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MAX_PARTS 65535

/* The tables of one file: records, name slots of 8 bytes at half load, and the order of the tensors. */
_Static_assert(GGUF_MAX_VALUES * (sizeof(struct gguf_value) + 16) + GGUF_MAX_TENSORS * (sizeof(struct gguf_tensor) + 20) <= 64u << 20,
               "a hostile header may cost 64 MiB");

/* ---- parts -------------------------------------------------------------------------------------------------- */

sr_status sr_gguf_new_part(struct gguf *g, struct gguf_part **out, sr_error *err)
{
    const size_t n = (size_t)g->n_parts;
    if ((n & (n - 1)) == 0) { /* the list doubles */
        struct gguf_part **parts = sr_realloc(g->parts, n * sizeof(*parts), (n ? 2 * n : 1) * sizeof(*parts));
        if (!parts) return sr_fail_memory(err, 2 * n * sizeof(*parts), "list of shards");
        g->parts = parts;
    }
    struct gguf_part *p = sr_alloc_zero(1, sizeof(*p));
    if (!p) return sr_fail_memory(err, sizeof(*p), "a model file");
    g->parts[g->n_parts++] = p;
    *out = p;
    return SR_OK;
}

static sr_status add_part(struct gguf *g, const char *path, struct gguf_part **out, sr_error *err)
{
    SR_TRY(sr_gguf_new_part(g, out, err));
    return sr_gguf_part_open(*out, path, err); /* closed with the others if it fails */
}

/* Moves the part's tensors to the model's list. */
static sr_status take_tensors(struct gguf *g, struct gguf_part *p, sr_error *err)
{
    if (!g->tensors) {
        g->tensors = p->tensors;
        g->n_tensors = g->tensors_room = p->n_tensors;
    } else {
        const int64_t n = g->n_tensors + p->n_tensors;
        if (n > GGUF_MAX_TENSORS)
            return sr_gguf_part_reject(p, 8, err, "%lld tensors with those of the shards before, limit %d", (long long)n, GGUF_MAX_TENSORS);
        if (n > g->tensors_room) {
            int64_t room = n > 2 * g->tensors_room ? n : 2 * g->tensors_room;
            if (room > GGUF_MAX_TENSORS) room = GGUF_MAX_TENSORS;
            struct gguf_tensor *all = sr_realloc(g->tensors, (size_t)g->n_tensors * sizeof(*all), (size_t)room * sizeof(*all));
            if (!all) return sr_fail_memory(err, (size_t)room * sizeof(*all), "tensors of a split model");
            g->tensors = all;
            g->tensors_room = room;
        }
        for (int64_t i = 0; i < p->n_tensors; i++) {
            p->tensors[i].part = g->n_parts - 1;
            g->tensors[g->n_tensors + i] = p->tensors[i];
        }
        g->n_tensors = n;
        sr_free(p->tensors);
    }
    p->tensors = NULL;
    return SR_OK;
}

sr_status sr_gguf_index_tensors(struct gguf *g, sr_error *err)
{
    SR_TRY(sr_name_table_init(&g->names, g->tensors, sizeof(*g->tensors), g->n_tensors, err));
    for (int64_t i = 0; i < g->n_tensors; i++) {
        const int64_t first = sr_name_table_add(&g->names, i);
        if (first < 0) continue;
        const struct gguf_tensor *t = &g->tensors[i], *other = &g->tensors[first];
        char name[GGUF_SHOWN_NAME_BYTES];
        sr_gguf_shown_name(name, t->name);
        if (t->part == other->part)
            return sr_gguf_part_reject(g->parts[t->part], t->file_offset, err, "duplicate tensor name %s, first with its data at offset %zu",
                                       name, other->file_offset);
        return sr_gguf_part_reject(g->parts[t->part], t->file_offset, err,
                                   "tensor %s is also in shard %d: a repeated shard, or one of another model", name, other->part + 1);
    }
    return SR_OK;
}

/* ---- split models ------------------------------------------------------------------------------------------- */

static int is_integer(enum gguf_type t)
{
    return t <= GGUF_I32 || t == GGUF_U64 || t == GGUF_I64;
}

/* An integer of a part in [lo, hi]; *out keeps its value where the key is absent. */
static sr_status split_int(const struct gguf_part *p, const char *key, int64_t lo, int64_t hi, int64_t *out, sr_error *err)
{
    const struct gguf_value *v = sr_gguf_part_find(p, key);
    if (!v) return SR_OK;
    if (!is_integer(v->type)) return sr_gguf_part_reject(p, v->file_offset, err, "%s: value type %d is no integer", key, v->type);
    const int64_t n = sr_gguf_integer(v, 0);
    if (n < lo || n > hi)
        return sr_gguf_part_reject(p, v->file_offset, err, "%s: %lld, must be %lld..%lld", key, (long long)n, (long long)lo, (long long)hi);
    *out = n;
    return SR_OK;
}

struct split {
    int64_t no, count, tensors; /* tensors -1: the file does not say */
};

static sr_status read_split(const struct gguf_part *p, struct split *s, sr_error *err)
{
    *s = (struct split){0, 1, -1};
    SR_TRY(split_int(p, "split.count", 1, MAX_PARTS, &s->count, err));
    SR_TRY(split_int(p, "split.no", 0, MAX_PARTS - 1, &s->no, err));
    return split_int(p, "split.tensors.count", 0, INT64_MAX, &s->tensors, err);
}

/* "PREFIX-00001-of-00003.gguf": *prefix_bytes is that of PREFIX. Returns 0 for any other name. */
static int parse_shard_path(const char *path, size_t *prefix_bytes, int *no, int *count)
{
    static const char form[] = "-#####-of-#####.gguf";
    const size_t n = strlen(path), tail = sizeof(form) - 1;
    if (n < tail) return 0;
    const char *s = path + n - tail;
    for (size_t i = 0; i < tail; i++)
        if (form[i] == '#' ? s[i] < '0' || s[i] > '9' : s[i] != form[i]) return 0;
    *prefix_bytes = n - tail;
    *no = *count = 0;
    for (int i = 0; i < 5; i++) {
        *no = *no * 10 + (s[1 + i] - '0');
        *count = *count * 10 + (s[10 + i] - '0');
    }
    return 1;
}

static sr_status check_first_shard(const struct gguf_part *p, const struct split *s, size_t *prefix_bytes, sr_error *err)
{
    int no, count;
    if (!parse_shard_path(p->file.path, prefix_bytes, &no, &count))
        return sr_gguf_part_reject(p, 0, err, "split.count is %lld, but the name is not PREFIX-00001-of-%05lld.gguf", (long long)s->count,
                                   (long long)s->count);
    if (count != s->count)
        return sr_gguf_part_reject(p, 0, err, "the name says %d shards, split.count says %lld", count, (long long)s->count);
    if (no != s->no + 1)
        return sr_gguf_part_reject(p, 0, err, "the name says shard %d, split.no is %lld and must be %d", no, (long long)s->no, no - 1);
    if (no != 1) return sr_gguf_part_reject(p, 0, err, "this is shard %d of %d: open shard 1", no, count);
    return SR_OK;
}

/* Both parts have the text value and it differs. */
static int texts_differ(const struct gguf_part *a, const struct gguf_part *b, const char *key)
{
    const struct gguf_value *x = sr_gguf_part_find(a, key), *y = sr_gguf_part_find(b, key);
    struct gguf_str s, t;
    uint64_t i = 0, j = 0;
    const uint8_t *at_x = NULL, *at_y = NULL;
    if (!x || !y || x->type != GGUF_STRING || y->type != GGUF_STRING) return 0;
    if (!sr_gguf_next_str(x, &at_x, &i, &s) || !sr_gguf_next_str(y, &at_y, &j, &t)) return 0;
    return s.bytes != t.bytes || memcmp(s.data, t.data, s.bytes) != 0;
}

static sr_status check_shard(const struct gguf *g, const struct gguf_part *p, int no, const struct split *first, sr_error *err)
{
    struct split s;
    SR_TRY(read_split(p, &s, err));
    if (!sr_gguf_part_find(p, "split.no") || s.no != no - 1)
        return sr_gguf_part_reject(p, 0, err, "shard %d of %lld: split.no is %lld, must be %d", no, (long long)first->count, (long long)s.no, no - 1);
    if (s.count != first->count)
        return sr_gguf_part_reject(p, 0, err, "shard %d: split.count is %lld, the first shard says %lld", no, (long long)s.count, (long long)first->count);
    if (s.tensors != first->tensors)
        return sr_gguf_part_reject(p, 0, err, "shard %d: split.tensors.count is %lld, the first shard says %lld", no, (long long)s.tensors,
                                   (long long)first->tensors);
    if (texts_differ(g->parts[0], p, "general.architecture") || texts_differ(g->parts[0], p, "general.name"))
        return sr_gguf_part_reject(p, 0, err, "shard %d belongs to another model than the first shard", no);
    return SR_OK;
}

static sr_status open_shard(struct gguf *g, const char *path, int no, const struct split *first, sr_error *err)
{
    struct gguf_part *p;
    char shown[GGUF_SHOWN_PATH_BYTES];
    if (access(path, F_OK) != 0)
        return sr_fail(err, SR_ERR_FORMAT, "%s: shard %d of %lld is missing", sr_gguf_shown_path(shown, path), no, (long long)first->count);
    SR_TRY(add_part(g, path, &p, err));
    SR_TRY(check_shard(g, p, no, first, err));
    SR_TRY(take_tensors(g, p, err));
    sr_free(p->values); /* the first shard has the model's values */
    p->values = NULL;
    p->n_values = 0;
    sr_name_table_fini(&p->keys);
    return SR_OK;
}

static sr_status open_shards(struct gguf *g, const struct split *first, sr_error *err)
{
    const struct gguf_part *p = g->parts[0];
    size_t prefix_bytes = 0;
    sr_status st = SR_OK;
    SR_TRY(check_first_shard(p, first, &prefix_bytes, err));
    const size_t path_bytes = strlen(p->file.path) + 1;
    char *path = sr_alloc(path_bytes);
    if (!path) return sr_fail_memory(err, path_bytes, "path of a shard");
    memcpy(path, p->file.path, path_bytes);
    for (int no = 2; no <= first->count && st == SR_OK; no++) {
        snprintf(path + prefix_bytes, path_bytes - prefix_bytes, "-%05d-of-%05d.gguf", no, (int)first->count);
        st = open_shard(g, path, no, first, err);
    }
    sr_free(path);
    if (st == SR_OK && first->tensors >= 0 && first->tensors != g->n_tensors)
        return sr_gguf_part_reject(p, 0, err, "the %lld shards have %lld tensors, split.tensors.count says %lld", (long long)first->count,
                                   (long long)g->n_tensors, (long long)first->tensors);
    return st;
}

/* ---- open, close -------------------------------------------------------------------------------------------- */

sr_status sr_gguf_open(struct gguf **out, const char *path, sr_error *err)
{
    if (sr_is_folder(path)) return sr_hf_open(out, path, HF_MODEL, err);
    sr_status st;
    struct gguf_part *p;
    struct split split;
    struct gguf *g = sr_alloc_zero(1, sizeof(*g));
    if (!g) return sr_fail_memory(err, sizeof(*g), "a GGUF model");
    SR_TRY_GOTO(add_part(g, path, &p, err));
    SR_TRY_GOTO(read_split(p, &split, err));
    SR_TRY_GOTO(take_tensors(g, p, err));
    if (split.count > 1) {
        SR_TRY_GOTO(open_shards(g, &split, err));
    } else if (split.no != 0) {
        st = sr_gguf_part_reject(p, 0, err, "split.no is %lld of 1 shard, must be 0", (long long)split.no);
        goto fail;
    }
    SR_TRY_GOTO(sr_gguf_index_tensors(g, err));
    *out = g;
    return SR_OK;
fail:
    sr_gguf_close(g);
    return st;
}

void sr_gguf_close(struct gguf *g)
{
    if (!g) return;
    for (int32_t i = 0; i < g->n_parts; i++) {
        sr_gguf_part_close(g->parts[i]);
        sr_free(g->parts[i]);
    }
    for (int64_t i = 0; i < g->n_blocks; i++) sr_free(g->blocks[i]);
    sr_free(g->blocks);
    sr_free(g->gathers);
    sr_free(g->parts);
    sr_free(g->tensors);
    sr_name_table_fini(&g->names);
    sr_region_unmap(g->settled, g->settled_bytes);
    sr_free(g);
}

/* ---- what is in it ------------------------------------------------------------------------------------------ */

const char *sr_gguf_path(const struct gguf *g) { return g->parts[0]->file.path; }
int32_t sr_gguf_version(const struct gguf *g) { return (int32_t)g->parts[0]->version; }
int32_t sr_gguf_n_parts(const struct gguf *g) { return g->n_parts - g->is_folder; }
int sr_gguf_is_folder(const struct gguf *g) { return g->is_folder; }
int64_t sr_gguf_n_values(const struct gguf *g) { return g->parts[0]->n_values; }
const struct gguf_value *sr_gguf_value(const struct gguf *g, int64_t i) { return &g->parts[0]->values[i]; }
int64_t sr_gguf_n_tensors(const struct gguf *g) { return g->n_tensors; }
const struct gguf_tensor *sr_gguf_tensor(const struct gguf *g, int64_t i) { return &g->tensors[i]; }
const struct gguf_value *sr_gguf_find(const struct gguf *g, const char *key) { return sr_gguf_part_find(g->parts[0], key); }

size_t sr_gguf_file_bytes(const struct gguf *g)
{
    size_t bytes = 0;
    for (int32_t i = 0; i < g->n_parts; i++) bytes += g->parts[i]->file.bytes;
    return bytes;
}

const struct gguf_tensor *sr_gguf_find_tensor(const struct gguf *g, const char *name)
{
    const int64_t i = sr_name_table_find(&g->names, name, strlen(name));
    return i < 0 ? NULL : &g->tensors[i];
}

size_t sr_gguf_weight_bytes(const struct gguf *g)
{
    size_t bytes = 0;
    if (!g->is_folder && !g->settled) return sr_gguf_file_bytes(g);
    for (int64_t i = 0; i < g->n_tensors; i++) bytes += g->tensors[i].bytes;
    return bytes;
}

const struct mapfile *sr_gguf_file_of(const struct gguf *g, int32_t part) { return &g->parts[part + g->is_folder]->file; }

static const char *tensor_path(const struct gguf *g, const struct gguf_tensor *t) { return sr_gguf_file_of(g, t->part)->path; }

sr_status sr_gguf_reject(const struct gguf *g, sr_error *err, const char *fmt, ...)
{
    char path[GGUF_SHOWN_PATH_BYTES], text[2 * SR_ERROR_TEXT_BYTES], shown[SR_ERROR_TEXT_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return sr_fail(err, SR_ERR_FORMAT, "%s: %s", sr_gguf_shown_path(path, sr_gguf_path(g)), sr_escape(shown, sizeof(shown), text, strlen(text)));
}

const uint8_t *sr_gguf_row(const struct gguf_tensor *t, int64_t row)
{
    const size_t row_bytes = sr_row_bytes(t->dtype, t->ne[0]);
    if (!t->pieces) return (const uint8_t *)t->data + (size_t)row * row_bytes;
    return t->pieces[row / t->ne[1]] + (size_t)(row % t->ne[1]) * row_bytes;
}

sr_status sr_gguf_check_tensor(const struct gguf *g, const struct gguf_tensor *t, sr_error *err)
{
    const int64_t n_rows = t->ne[1] * t->ne[2] * t->ne[3];
    for (int64_t row = 0; row < n_rows; row++) {
        const int64_t at = sr_row_find_nonfinite(t->dtype, sr_gguf_row(t, row), t->ne[0]);
        char path[GGUF_SHOWN_PATH_BYTES], name[GGUF_SHOWN_NAME_BYTES];
        if (at >= 0)
            return sr_fail(err, SR_ERR_FORMAT, "%s: tensor %s: row %lld, element %lld: NaN or infinite %s", sr_gguf_shown_path(path, tensor_path(g, t)),
                           sr_gguf_shown_name(name, t->name), (long long)row, (long long)at,
                           sr_dtype_find((int64_t)t->dtype)->block_elems == 1 ? "value" : "block scale");
    }
    return SR_OK;
}
