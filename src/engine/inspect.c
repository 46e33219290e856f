/* SPDX-License-Identifier: Apache-2.0
 *
 * Metadata and tensors of a model file as printable lines.
 */
#include "engine/model.h"

#include <stdio.h>
#include <string.h>

static const char *const type_names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64",
                                         "f64"};

int64_t sr_model_n_metadata(const sr_model *m) { return sr_gguf_n_values(m->file); }

static int is_float(enum gguf_type t) { return t == GGUF_F32 || t == GGUF_F64; }

/* Element i of v in a few characters. */
static void element_text(const struct gguf_value *v, enum gguf_type type, uint64_t i, char *out, size_t bytes)
{
    if (is_float(type)) snprintf(out, bytes, "%.9g", sr_gguf_number(v, i));
    else if (type == GGUF_BOOL) snprintf(out, bytes, "%s", v->data[i] ? "true" : "false");
    else if (type == GGUF_U64) snprintf(out, bytes, "%llu", (unsigned long long)sr_gguf_integer(v, i));
    else snprintf(out, bytes, "%lld", (long long)sr_gguf_integer(v, i));
}

/* A string value is a length and its bytes; the reader has checked both. */
static struct gguf_str string_of(const struct gguf_value *v)
{
    struct gguf_str s = {.data = (const char *)v->data + 8};
    for (int i = 7; i >= 0; i--) s.bytes = s.bytes << 8 | v->data[i];
    return s;
}

static void append(char *out, size_t bytes, const char *text)
{
    const size_t at = strlen(out);
    if (at + strlen(text) + 4 < bytes) snprintf(out + at, bytes - at, "%s", text);
    else if (at + 4 < bytes && (at < 3 || strcmp(out + at - 3, "...") != 0)) snprintf(out + at, bytes - at, "...");
}

static void array_text(const struct gguf_value *v, char *out, size_t bytes)
{
    enum { SHOWN = 8 };
    char item[64], line[80];
    const uint8_t *at = NULL;
    uint64_t i = 0;
    struct gguf_str s;
    snprintf(out, bytes, "[");
    for (uint64_t k = 0; k < v->count && k < SHOWN; k++) {
        if (v->elem_type == GGUF_STRING) {
            if (!sr_gguf_next_str(v, &at, &i, &s)) break;
            sr_escape(item, sizeof(item), s.data, s.bytes);
            snprintf(line, sizeof(line), "%s\"%s\"", k ? ", " : "", item);
        } else {
            element_text(v, v->elem_type, k, item, sizeof(item));
            snprintf(line, sizeof(line), "%s%s", k ? ", " : "", item);
        }
        append(out, bytes, line);
    }
    append(out, bytes, v->count > SHOWN ? ", ...]" : "]");
}

sr_status sr_model_metadata(const sr_model *m, int64_t i, char *key, size_t key_bytes, char *type, size_t type_bytes,
                            char *value, size_t value_bytes)
{
    enum { LEAST = 8 };
    if (!m || i < 0 || i >= sr_gguf_n_values(m->file) || key_bytes < LEAST || type_bytes < LEAST || value_bytes < LEAST)
        return SR_ERR_USAGE;
    const struct gguf_value *v = sr_gguf_value(m->file, i);
    sr_escape(key, key_bytes, v->key.data, v->key.bytes);
    if (v->type == GGUF_ARRAY) {
        snprintf(type, type_bytes, "%s[%llu]", type_names[v->elem_type], (unsigned long long)v->count);
        array_text(v, value, value_bytes);
        return SR_OK;
    }
    snprintf(type, type_bytes, "%s", type_names[v->type]);
    if (v->type == GGUF_STRING) {
        const struct gguf_str s = string_of(v);
        sr_escape(value, value_bytes, s.data, s.bytes);
    } else {
        element_text(v, v->type, 0, value, value_bytes);
    }
    return SR_OK;
}

sr_status sr_model_tensor(const sr_model *m, int64_t i, sr_tensor_info *out)
{
    if (!m || !out || i < 0 || i >= sr_gguf_n_tensors(m->file)) return SR_ERR_USAGE;
    const struct gguf_tensor *t = sr_gguf_tensor(m->file, i);
    const char *type = sr_gguf_type_name((int64_t)t->dtype);
    *out = (sr_tensor_info){.type = type ? type : "?", .n_dims = t->n_dims, .bytes = t->bytes, .file_offset = t->file_offset,
                            .part = t->part};
    memcpy(out->ne, t->ne, sizeof(out->ne));
    sr_escape(out->name, sizeof(out->name), t->name.data, t->name.bytes);
    return SR_OK;
}
