/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/json_file.h"

#include "base/mapfile.h"
#include "formats/gguf_part.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- loading ---- */

sr_status sr_json_parse(json_t **out, const char *path, const void *text, size_t bytes, enum json_numbers numbers, sr_error *err)
{
    char shown[GGUF_SHOWN_PATH_BYTES], what[96];
    json_error_t at;
    const size_t flags = JSON_REJECT_DUPLICATES | (numbers == JSON_ALL_REALS ? JSON_DECODE_INT_AS_REAL : 0);
    json_t *j = json_loadb(bytes ? text : "", bytes, flags, &at);
    if (!j && json_error_code(&at) == json_error_out_of_memory) return sr_fail_memory(err, bytes, "parsed JSON");
    if (!j)
        return sr_fail(err, SR_ERR_FORMAT, "%s: line %d, column %d: %s", sr_gguf_shown_path(shown, path), at.line, at.column,
                       sr_escape(what, sizeof(what), at.text, strlen(at.text)));
    if (!json_is_object(j)) {
        json_decref(j);
        return sr_fail(err, SR_ERR_FORMAT, "%s: not a JSON object", sr_gguf_shown_path(shown, path));
    }
    *out = j;
    return SR_OK;
}

sr_status sr_json_load(json_t **out, const char *path, size_t max_bytes, enum json_numbers numbers, sr_error *err)
{
    char shown[GGUF_SHOWN_PATH_BYTES];
    struct mapfile f;
    SR_TRY(sr_mapfile_open(&f, path, err));
    const sr_status st = f.bytes > max_bytes ? sr_fail(err, SR_ERR_FORMAT, "%s: %zu bytes, limit %zu", sr_gguf_shown_path(shown, path),
                                                       f.bytes, max_bytes)
                                             : sr_json_parse(out, path, f.data, f.bytes, numbers, err);
    sr_mapfile_close(&f);
    return st;
}

/* ---- refusals ---- */

__attribute__((format(printf, 5, 0)))
static sr_status refuse(const struct json_at *a, sr_status status, sr_error *err, const char *key, const char *fmt, va_list args)
{
    char shown[GGUF_SHOWN_PATH_BYTES], text[SR_ERROR_TEXT_BYTES], name[48];
    vsnprintf(text, sizeof(text), fmt, args);
    if (!key) return sr_fail(err, status, "%s: %s: %s", sr_gguf_shown_path(shown, a->path), a->where, text);
    return sr_fail(err, status, "%s: %s.%s: %s", sr_gguf_shown_path(shown, a->path), a->where,
                   sr_escape(name, sizeof(name), key, strlen(key)), text);
}

sr_status sr_json_reject(const struct json_at *a, sr_error *err, const char *key, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const sr_status st = refuse(a, SR_ERR_FORMAT, err, key, fmt, args);
    va_end(args);
    return st;
}

sr_status sr_json_unsupported(const struct json_at *a, sr_error *err, const char *key, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const sr_status st = refuse(a, SR_ERR_UNSUPPORTED, err, key, fmt, args);
    va_end(args);
    return st;
}

/* ---- typed reads ---- */

static const char *type_text(const json_t *v)
{
    static const char *const names[] = {[JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array",  [JSON_STRING] = "a string",
                                        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a number", [JSON_TRUE] = "true",
                                        [JSON_FALSE] = "false",        [JSON_NULL] = "null"};
    return names[json_typeof(v)];
}

/* NULL with SR_OK where absent and that is allowed. */
static sr_status look_up(const struct json_at *a, const char *key, const json_t **v, int *found, sr_error *err)
{
    *v = json_object_get(a->object, key);
    if (*v && json_is_null(*v)) *v = NULL;
    if (found) *found = *v != NULL;
    if (!*v && !found) return sr_json_reject(a, err, key, "missing");
    return SR_OK;
}

sr_status sr_json_int(const struct json_at *a, const char *key, int64_t lo, int64_t hi, int64_t *out, int *found, sr_error *err)
{
    const json_t *v;
    SR_TRY(look_up(a, key, &v, found, err));
    if (!v) return SR_OK;
    if (!json_is_integer(v)) return sr_json_reject(a, err, key, "%s, want an integer", type_text(v));
    const int64_t n = json_integer_value(v);
    if (n < lo || n > hi)
        return sr_json_reject(a, err, key, "%lld, want %lld..%lld", (long long)n, (long long)lo, (long long)hi);
    *out = n;
    return SR_OK;
}

sr_status sr_json_number(const struct json_at *a, const char *key, double *out, int *found, sr_error *err)
{
    const json_t *v;
    SR_TRY(look_up(a, key, &v, found, err));
    if (!v) return SR_OK;
    if (!json_is_number(v)) return sr_json_reject(a, err, key, "%s, want a number", type_text(v));
    *out = json_number_value(v);
    return SR_OK;
}

sr_status sr_json_bool(const struct json_at *a, const char *key, int *out, int *found, sr_error *err)
{
    const json_t *v;
    SR_TRY(look_up(a, key, &v, found, err));
    if (!v) return SR_OK;
    if (!json_is_boolean(v)) return sr_json_reject(a, err, key, "%s, want true or false", type_text(v));
    *out = json_is_true(v);
    return SR_OK;
}

sr_status sr_json_string(const struct json_at *a, const char *key, const char **out, int *found, sr_error *err)
{
    const json_t *v;
    SR_TRY(look_up(a, key, &v, found, err));
    if (!v) return SR_OK;
    if (!json_is_string(v)) return sr_json_reject(a, err, key, "%s, want a string", type_text(v));
    *out = json_string_value(v);
    return SR_OK;
}

sr_status sr_json_member(const struct json_at *a, const char *key, json_type type, const json_t **out, int *found, sr_error *err)
{
    const json_t *v;
    SR_TRY(look_up(a, key, &v, found, err));
    *out = NULL;
    if (!v) return SR_OK;
    if (json_typeof(v) != type)
        return sr_json_reject(a, err, key, "%s, want an %s", type_text(v), type == JSON_OBJECT ? "object" : "array");
    *out = v;
    return SR_OK;
}
