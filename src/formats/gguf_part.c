/* SPDX-License-Identifier: Apache-2.0
 *
 * Header and key-value part of one GGUF file. Values stay where they lie in the mapping; what is built is a table
 * of where they are. Arrays of strings are walked once here so that later walks need no checks.
 */
#include "formats/gguf_part.h"

#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are read in place");

#define HEADER_BYTES 24
#define MIN_VALUE_BYTES (8 + 1 + 4 + 1) /* key length, a one-byte key, type, a one-byte value */

static const uint8_t scalar_bytes[] = {
    [GGUF_U8] = 1, [GGUF_I8] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4,
    [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

/* ---- error lines -------------------------------------------------------------------------------------------- */

const char *sr_gguf_shown_path(char *dst, const char *path)
{
    const size_t bytes = strlen(path), room = 90;
    if (bytes <= room) return sr_escape(dst, GGUF_SHOWN_PATH_BYTES, path, bytes);
    memcpy(dst, "...", 3);
    sr_escape(dst + 3, GGUF_SHOWN_PATH_BYTES - 3, path + bytes - (room - 3), room - 3);
    return dst;
}

const char *sr_gguf_shown_name(char *dst, struct gguf_str name)
{
    return sr_escape(dst, GGUF_SHOWN_NAME_BYTES, name.data, name.bytes);
}

sr_status sr_gguf_part_reject(const struct gguf_part *p, size_t at, sr_error *err, const char *fmt, ...)
{
    char path[GGUF_SHOWN_PATH_BYTES], text[SR_ERROR_TEXT_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return sr_fail(err, SR_ERR_FORMAT, "%s: offset %zu: %s", sr_gguf_shown_path(path, p->file.path), at, text);
}

/* Length in bytes of the UTF-8 sequence at s, 0 if it is not a shortest-form scalar value. */
static size_t utf8_sequence(const uint8_t *s, size_t left)
{
    const uint8_t a = s[0];
    if (a < 0x80) return 1;
    const size_t n = a >= 0xf0 ? 4 : a >= 0xe0 ? 3 : 2;
    if (a < 0xc2 || a > 0xf4 || n > left) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((a == 0xe0 && s[1] < 0xa0) || (a == 0xed && s[1] > 0x9f)) return 0; /* overlong, surrogate */
    if ((a == 0xf0 && s[1] < 0x90) || (a == 0xf4 && s[1] > 0x8f)) return 0; /* overlong, past U+10FFFF */
    return n;
}

int sr_gguf_name_valid(struct gguf_str name)
{
    const uint8_t *s = (const uint8_t *)name.data;
    for (size_t i = 0; i < name.bytes;) {
        const size_t n = s[i] ? utf8_sequence(s + i, name.bytes - i) : 0;
        if (n == 0) return 0;
        i += n;
    }
    return 1;
}

/* ---- header ------------------------------------------------------------------------------------------------- */

static int starts_with(const struct mapfile *f, size_t at, const char *text)
{
    const size_t n = strlen(text);
    return f->bytes >= at + n && memcmp(f->data + at, text, n) == 0;
}

/* What a file without the magic looks like, for the people who downloaded the wrong thing. */
static const char *content_hint(const struct mapfile *f)
{
    size_t at = 0;
    if (starts_with(f, 0, "version https://git-lfs")) return "a Git LFS pointer: fetch the real file with git lfs pull";
    if (starts_with(f, 0, "PK\003\004")) return "a ZIP archive: unpack it first";
    if (starts_with(f, 0, "\037\213")) return "gzip data: unpack it first";
    if (starts_with(f, 0, "tjgg") || starts_with(f, 0, "lmgg") || starts_with(f, 0, "fmgg"))
        return "an old GGML file from before GGUF: convert it";
    if (starts_with(f, 8, "{\"") || starts_with(f, 8, "{ ")) return "a safetensors file: give the folder that it lies in";
    while (at < f->bytes && at < 64 && (f->data[at] <= ' ' || f->data[at] >= 0x80)) at++;
    if (at < f->bytes && f->data[at] == '<') return "an HTML or XML page, perhaps an error page of a download";
    if (at < f->bytes && f->data[at] == '{') return "JSON text, not a model";
    return NULL;
}

static sr_status check_version(const struct gguf_part *p, sr_error *err)
{
    char path[GGUF_SHOWN_PATH_BYTES];
    if (p->version == 2 || p->version == 3) return SR_OK;
    sr_gguf_shown_path(path, p->file.path);
    if (p->version != 0 && (p->version & 0xffffu) == 0)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: offset 4: version 0x%08x: a big-endian GGUF file, only little-endian is read",
                       path, (unsigned)p->version);
    return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: offset 4: GGUF version %u, supported are 2 and 3", path, (unsigned)p->version);
}

static sr_status read_header(struct gguf_part *p, struct cursor *c, uint64_t *n_tensors, uint64_t *n_values, sr_error *err)
{
    const uint8_t *magic;
    if (p->file.bytes < HEADER_BYTES)
        return sr_gguf_part_reject(p, 0, err, "too short: %zu bytes, a GGUF header has %d", p->file.bytes, HEADER_BYTES);
    SR_TRY(sr_read_span(c, 4, &magic, "magic", err));
    if (memcmp(magic, "GGUF", 4) != 0) {
        const char *hint = content_hint(&p->file);
        return sr_gguf_part_reject(p, 0, err, "magic bytes %02x %02x %02x %02x, a GGUF file has 47 47 55 46%s%s", magic[0],
                                   magic[1], magic[2], magic[3], hint ? "; this looks like " : "", hint ? hint : "");
    }
    SR_TRY(sr_read_u32(c, &p->version, "version", err));
    SR_TRY(check_version(p, err));
    SR_TRY(sr_read_u64(c, n_tensors, "number of tensors", err));
    return sr_read_u64(c, n_values, "number of values", err);
}

/* ---- values ------------------------------------------------------------------------------------------------- */

static sr_status read_key(struct gguf_part *p, struct cursor *c, struct gguf_str *key, sr_error *err)
{
    const size_t at = c->at;
    uint64_t bytes;
    const uint8_t *data;
    char shown[GGUF_SHOWN_NAME_BYTES];
    SR_TRY(sr_read_u64(c, &bytes, "key length", err));
    if (bytes == 0) return sr_gguf_part_reject(p, at, err, "empty key");
    if (bytes > GGUF_MAX_KEY_BYTES)
        return sr_gguf_part_reject(p, at, err, "key length %llu, limit %d", (unsigned long long)bytes, GGUF_MAX_KEY_BYTES);
    SR_TRY(sr_read_span(c, bytes, &data, "key", err));
    *key = (struct gguf_str){(const char *)data, (size_t)bytes};
    if (!sr_gguf_name_valid(*key))
        return sr_gguf_part_reject(p, at, err, "key %s: NUL or invalid UTF-8", sr_gguf_shown_name(shown, *key));
    return SR_OK;
}

static sr_status check_string_length(const struct gguf_part *p, size_t at, uint64_t bytes, size_t left, sr_error *err)
{
    if (bytes > GGUF_MAX_STRING_BYTES)
        return sr_gguf_part_reject(p, at, err, "string length %llu, limit %llu", (unsigned long long)bytes,
                                   (unsigned long long)GGUF_MAX_STRING_BYTES);
    if (bytes > left)
        return sr_gguf_part_reject(p, at, err, "string length %llu, %zu bytes left in the file", (unsigned long long)bytes, left);
    return SR_OK;
}

/* One pass over `count` strings; leaves the cursor behind the last one. */
static sr_status walk_strings(const struct gguf_part *p, struct cursor *c, uint64_t count, sr_error *err)
{
    const size_t end = p->file.bytes;
    if (count > (end - c->at) / 8)
        return sr_gguf_part_reject(p, c->at, err, "%llu strings need at least 8 bytes each, %zu bytes left in the file",
                                   (unsigned long long)count, end - c->at);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t bytes;
        SR_TRY(sr_read_u64(c, &bytes, "string length", err));
        SR_TRY(check_string_length(p, c->at - 8, bytes, end - c->at, err));
        c->at += (size_t)bytes;
    }
    return SR_OK;
}

static sr_status check_bools(const struct gguf_part *p, const struct gguf_value *v, sr_error *err)
{
    char key[GGUF_SHOWN_NAME_BYTES];
    for (uint64_t i = 0; i < v->count; i++)
        if (v->data[i] > 1)
            return sr_gguf_part_reject(p, v->file_offset + (size_t)i, err, "%s: bool byte %d, only 0 and 1 are legal",
                                       sr_gguf_shown_name(key, v->key), v->data[i]);
    return SR_OK;
}

static sr_status read_array_head(struct gguf_part *p, struct cursor *c, struct gguf_value *v, sr_error *err)
{
    const size_t at = c->at;
    uint32_t type;
    char key[GGUF_SHOWN_NAME_BYTES];
    SR_TRY(sr_read_u32(c, &type, "array element type", err));
    SR_TRY(sr_read_u64(c, &v->count, "array length", err));
    if (type == GGUF_ARRAY)
        return sr_gguf_part_reject(p, at, err, "%s: an array of arrays is not read", sr_gguf_shown_name(key, v->key));
    if (type > GGUF_F64)
        return sr_gguf_part_reject(p, at, err, "%s: array element type %u, limit %d", sr_gguf_shown_name(key, v->key),
                                   (unsigned)type, GGUF_F64);
    v->elem_type = (enum gguf_type)type;
    return SR_OK;
}

/* v->elem_type and v->count are set: borrow the elements and step over them. */
static sr_status read_elements(struct gguf_part *p, struct cursor *c, struct gguf_value *v, sr_error *err)
{
    const size_t left = p->file.bytes - c->at, elem_bytes = scalar_bytes[v->elem_type];
    char key[GGUF_SHOWN_NAME_BYTES];
    v->file_offset = c->at;
    v->data = p->file.data + c->at;
    if (v->elem_type == GGUF_STRING) return walk_strings(p, c, v->count, err);
    if (v->count > left / elem_bytes)
        return sr_gguf_part_reject(p, c->at, err, "%s: %llu elements of %zu bytes, %zu bytes left in the file",
                                   sr_gguf_shown_name(key, v->key), (unsigned long long)v->count, elem_bytes, left);
    c->at += (size_t)v->count * elem_bytes;
    return v->elem_type == GGUF_BOOL ? check_bools(p, v, err) : SR_OK;
}

static sr_status read_value(struct gguf_part *p, struct cursor *c, struct gguf_value *v, sr_error *err)
{
    uint32_t type;
    char key[GGUF_SHOWN_NAME_BYTES];
    SR_TRY(read_key(p, c, &v->key, err));
    SR_TRY(sr_read_u32(c, &type, "value type", err));
    if (type > GGUF_F64)
        return sr_gguf_part_reject(p, c->at - 4, err, "%s: value type %u, limit %d", sr_gguf_shown_name(key, v->key),
                                   (unsigned)type, GGUF_F64);
    v->type = v->elem_type = (enum gguf_type)type;
    v->count = 1;
    if (v->type == GGUF_ARRAY) SR_TRY(read_array_head(p, c, v, err));
    return read_elements(p, c, v, err);
}

sr_status sr_gguf_part_check_count(const struct gguf_part *p, const struct cursor *c, const struct gguf_count *n, sr_error *err)
{
    const size_t left = p->file.bytes - c->at;
    if (n->n > (uint64_t)n->most)
        return sr_gguf_part_reject(p, n->at, err, "%llu %s, limit %d", (unsigned long long)n->n, n->what, n->most);
    if (n->n > left / (size_t)n->min_bytes)
        return sr_gguf_part_reject(p, n->at, err, "%llu %s need at least %d bytes each, %zu bytes left in the file", (unsigned long long)n->n,
                                   n->what, n->min_bytes, left);
    return SR_OK;
}

static sr_status read_values(struct gguf_part *p, struct cursor *c, uint64_t n, sr_error *err)
{
    const struct gguf_count count = {"values", 16, n, GGUF_MAX_VALUES, MIN_VALUE_BYTES};
    SR_TRY(sr_gguf_part_check_count(p, c, &count, err));
    p->values = sr_alloc_zero((size_t)n, sizeof(*p->values));
    if (!p->values) return sr_fail_memory(err, (size_t)n * sizeof(*p->values), "values of a GGUF file");
    SR_TRY(sr_name_table_init(&p->keys, p->values, sizeof(*p->values), (int64_t)n, err));
    for (uint64_t i = 0; i < n; i++, p->n_values++) {
        const size_t at = c->at;
        char key[GGUF_SHOWN_NAME_BYTES];
        SR_TRY(read_value(p, c, &p->values[i], err));
        const int64_t first = sr_name_table_add(&p->keys, (int64_t)i);
        if (first >= 0)
            return sr_gguf_part_reject(p, at, err, "duplicate key %s, first with its value at offset %zu",
                                       sr_gguf_shown_name(key, p->values[i].key), p->values[first].file_offset);
    }
    return SR_OK;
}

static sr_status read_alignment(struct gguf_part *p, sr_error *err)
{
    const struct gguf_value *v = sr_gguf_part_find(p, "general.alignment");
    uint32_t a;
    p->alignment = 32;
    if (!v) return SR_OK;
    if (v->type != GGUF_U32)
        return sr_gguf_part_reject(p, v->file_offset, err, "general.alignment: value type %d, must be u32 (%d)", v->type, GGUF_U32);
    memcpy(&a, v->data, 4);
    if (a < GGUF_MIN_ALIGNMENT || a > GGUF_MAX_ALIGNMENT || (a & (a - 1)) != 0)
        return sr_gguf_part_reject(p, v->file_offset, err, "general.alignment: %u, must be a power of two in %d..%d",
                                   (unsigned)a, GGUF_MIN_ALIGNMENT, GGUF_MAX_ALIGNMENT);
    p->alignment = a;
    return SR_OK;
}

/* ---- a file ------------------------------------------------------------------------------------------------- */

const struct gguf_value *sr_gguf_part_find(const struct gguf_part *p, const char *key)
{
    const int64_t i = sr_name_table_find(&p->keys, key, strlen(key));
    return i < 0 ? NULL : &p->values[i];
}

sr_status sr_gguf_part_open(struct gguf_part *p, const char *path, sr_error *err)
{
    sr_status st;
    uint64_t n_tensors, n_values;
    memset(p, 0, sizeof(*p));
    SR_TRY(sr_mapfile_open(&p->file, path, err));
    struct cursor c = {&p->file, 0};
    SR_TRY_GOTO(read_header(p, &c, &n_tensors, &n_values, err));
    SR_TRY_GOTO(read_values(p, &c, n_values, err));
    SR_TRY_GOTO(read_alignment(p, err));
    SR_TRY_GOTO(sr_gguf_part_read_infos(p, &c, n_tensors, err));
    return SR_OK;
fail:
    sr_gguf_part_close(p);
    return st;
}

void sr_gguf_part_close(struct gguf_part *p)
{
    sr_free(p->tensors);
    sr_free(p->values);
    sr_name_table_fini(&p->keys);
    sr_mapfile_close(&p->file);
    memset(p, 0, sizeof(*p));
}
