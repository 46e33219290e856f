/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/safetensors.h"

#include "base/memory.h"
#include "formats/json_file.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every dtype that the format names; bits because some are smaller than a byte. */
static const struct { const char *name; int bits, dtype; } dtypes[] = {
    {"F32", 32, SR_DTYPE_F32}, {"F16", 16, SR_DTYPE_F16}, {"BF16", 16, SR_DTYPE_BF16}, {"F64", 64, -1}, {"I64", 64, -1},
    {"U64", 64, -1}, {"I32", 32, -1}, {"U32", 32, -1}, {"I16", 16, -1}, {"U16", 16, -1}, {"I8", 8, -1}, {"U8", 8, -1},
    {"BOOL", 8, -1}, {"F8_E4M3", 8, -1}, {"F8_E5M2", 8, -1}, {"F8_E8M0", 8, -1}, {"C64", 64, -1}, {"F4", 4, -1},
    {"F6_E2M3", 6, -1}, {"F6_E3M2", 6, -1}};

static int find_dtype(const char *name)
{
    for (int i = 0; i < (int)(sizeof(dtypes) / sizeof(dtypes[0])); i++)
        if (strcmp(dtypes[i].name, name) == 0) return i;
    return -1;
}

int sr_st_dtype_find(const char *name)
{
    const int i = find_dtype(name);
    return i < 0 ? -1 : dtypes[i].dtype;
}

struct st_reader {
    const struct mapfile *f;
    size_t data_at, data_bytes;
    struct json_at at; /* of messages */
    char where[GGUF_SHOWN_NAME_BYTES];
    sr_error *err;
};

static sr_status reject(const struct st_reader *r, size_t offset, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static sr_status reject(const struct st_reader *r, size_t offset, const char *fmt, ...)
{
    char text[SR_ERROR_TEXT_BYTES], path[GGUF_SHOWN_PATH_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return sr_fail(r->err, SR_ERR_FORMAT, "%s: offset %zu: %s", sr_gguf_shown_path(path, r->f->path), offset, text);
}

/* ---- one tensor ---- */

static sr_status read_dtype(struct st_reader *r, struct st_tensor *t)
{
    const char *name = NULL;
    char shown[32];
    SR_TRY(sr_json_string(&r->at, "dtype", &name, NULL, r->err));
    if (find_dtype(name) < 0)
        return sr_json_reject(&r->at, r->err, "dtype", "\"%s\" is no dtype of the format", sr_escape(shown, sizeof(shown), name, strlen(name)));
    snprintf(t->dtype, sizeof(t->dtype), "%s", name);
    return SR_OK;
}

static sr_status read_shape(struct st_reader *r, struct st_tensor *t)
{
    const json_t *shape;
    SR_TRY(sr_json_member(&r->at, "shape", JSON_ARRAY, &shape, NULL, r->err));
    const size_t n = json_array_size(shape);
    if (n > ST_MAX_DIMS) return sr_json_reject(&r->at, r->err, "shape", "%zu dimensions, limit %d", n, ST_MAX_DIMS);
    t->n_dims = (int32_t)n;
    t->n_elems = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return sr_json_reject(&r->at, r->err, "shape", "dimension %zu is no whole number from 0", i);
        t->shape[i] = json_integer_value(d);
        if (__builtin_mul_overflow(t->n_elems, t->shape[i], &t->n_elems))
            return sr_json_reject(&r->at, r->err, "shape", "more than 2^63 elements");
    }
    return SR_OK;
}

static sr_status read_span(struct st_reader *r, struct st_tensor *t)
{
    const json_t *span;
    int64_t end[2];
    SR_TRY(sr_json_member(&r->at, "data_offsets", JSON_ARRAY, &span, NULL, r->err));
    if (json_array_size(span) != 2) return sr_json_reject(&r->at, r->err, "data_offsets", "%zu numbers, want 2", json_array_size(span));
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_array_get(span, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return sr_json_reject(&r->at, r->err, "data_offsets", "number %zu is no whole number from 0", i);
        end[i] = json_integer_value(v);
    }
    if (end[0] > end[1] || (uint64_t)end[1] > r->data_bytes)
        return sr_json_reject(&r->at, r->err, "data_offsets", "[%lld, %lld], want a range within %zu bytes", (long long)end[0],
                              (long long)end[1], r->data_bytes);
    t->bytes = (size_t)(end[1] - end[0]);
    t->file_offset = r->data_at + (size_t)end[0];
    t->data = r->f->data + t->file_offset;
    return SR_OK;
}

static sr_status read_tensor(struct st_reader *r, const char *name, const json_t *entry, struct st_tensor *t)
{
    int64_t bits;
    t->name = (struct gguf_str){name, strlen(name)};
    sr_gguf_shown_name(r->where, t->name);
    r->at = (struct json_at){r->f->path, r->where, entry};
    if (!t->name.bytes) return reject(r, 8, "a tensor has no name");
    if (!json_is_object(entry)) return sr_json_reject(&r->at, r->err, NULL, "not an object");
    SR_TRY(read_dtype(r, t));
    SR_TRY(read_shape(r, t));
    SR_TRY(read_span(r, t));
    if (__builtin_mul_overflow(t->n_elems, (int64_t)dtypes[find_dtype(t->dtype)].bits, &bits) || bits % 8 || (uint64_t)bits / 8 != t->bytes)
        return sr_json_reject(&r->at, r->err, "data_offsets", "%zu bytes for %lld elements of %s", t->bytes, (long long)t->n_elems, t->dtype);
    return SR_OK;
}

/* ---- the header ---- */

static int by_offset(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->file_offset != y->file_offset) return x->file_offset < y->file_offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The tensors lie one after another, without a byte between, before or after them. */
static sr_status check_tiling(struct st_reader *r, const struct st_header *h)
{
    size_t at = r->data_at;
    char name[GGUF_SHOWN_NAME_BYTES], before[GGUF_SHOWN_NAME_BYTES] = "";
    for (int64_t i = 0; i < h->n; i++) {
        const struct st_tensor *t = &h->tensors[i];
        sr_gguf_shown_name(name, t->name);
        if (t->file_offset < at) return reject(r, t->file_offset, "tensors %s and %s overlap", before, name);
        if (t->file_offset > at) return reject(r, at, "%zu bytes before tensor %s belong to none", t->file_offset - at, name);
        at += t->bytes;
        memcpy(before, name, sizeof(before));
    }
    if (at != r->f->bytes) return reject(r, at, "%zu bytes after the last tensor", r->f->bytes - at);
    return SR_OK;
}

static sr_status check_metadata(struct st_reader *r, const json_t *meta)
{
    const char *key;
    json_t *v;
    r->at = (struct json_at){r->f->path, "__metadata__", meta};
    if (!json_is_object(meta)) return sr_json_reject(&r->at, r->err, NULL, "not an object");
    json_object_foreach((json_t *)(uintptr_t)meta, key, v)
        if (!json_is_string(v)) return sr_json_reject(&r->at, r->err, key, "not a string");
    return SR_OK;
}

static sr_status read_tensors(struct st_reader *r, struct st_header *h, int32_t part)
{
    const char *name;
    json_t *entry;
    const size_t n = json_object_size(h->json);
    if (n > GGUF_MAX_TENSORS) return reject(r, 8, "%zu tensors, limit %d", n, GGUF_MAX_TENSORS);
    h->tensors = sr_alloc_zero(n, sizeof(*h->tensors));
    if (!h->tensors) return sr_fail_memory(r->err, n * sizeof(*h->tensors), "tensors of a safetensors file");
    json_object_foreach(h->json, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            SR_TRY(check_metadata(r, entry));
            continue;
        }
        h->tensors[h->n].part = part;
        SR_TRY(read_tensor(r, name, entry, &h->tensors[h->n]));
        h->n++;
    }
    qsort(h->tensors, (size_t)h->n, sizeof(*h->tensors), by_offset);
    return check_tiling(r, h);
}

/* Length of the JSON; what is no safetensors file at all gets a hint. */
static sr_status read_length(struct st_reader *r, uint64_t *n)
{
    struct cursor c = {r->f, 0};
    if (r->f->bytes >= 4 && memcmp(r->f->data, "GGUF", 4) == 0) return reject(r, 0, "this is a GGUF file");
    if (r->f->bytes >= 7 && memcmp(r->f->data, "version", 7) == 0) return reject(r, 0, "this is a pointer of Git LFS, not the file");
    SR_TRY(sr_read_u64(&c, n, "length of the header", r->err));
    if (*n > r->f->bytes - 8)
        return reject(r, 0, "header of %llu bytes, %zu left in the file", (unsigned long long)*n, r->f->bytes - 8);
    if (*n > ST_MAX_HEADER_BYTES) return reject(r, 0, "header of %llu bytes, limit %d", (unsigned long long)*n, ST_MAX_HEADER_BYTES);
    if (*n < 2 || r->f->data[8] != '{') return reject(r, 8, "the header does not begin with {");
    return SR_OK;
}

sr_status sr_st_header_read(struct st_header *h, const struct mapfile *f, int32_t part, sr_error *err)
{
    struct st_reader r = {.f = f, .err = err};
    uint64_t n;
    json_t *j;
    *h = (struct st_header){0};
    SR_TRY(read_length(&r, &n));
    r.data_at = 8 + (size_t)n;
    r.data_bytes = f->bytes - r.data_at;
    SR_TRY(sr_json_parse(&j, f->path, f->data + 8, (size_t)n, JSON_INTEGERS, err));
    h->json = j;
    const sr_status st = read_tensors(&r, h, part);
    if (st != SR_OK) sr_st_header_free(h);
    return st;
}

void sr_st_header_free(struct st_header *h)
{
    sr_free(h->tensors);
    json_decref(h->json);
    *h = (struct st_header){0};
}
