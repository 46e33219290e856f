/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON files of untrusted origin: bounded in size, duplicate keys refused, nesting limited by the parser, and typed
 * reads whose refusals name the file and the place ("$.rope_scaling.factor"). null counts as absent.
 */
#ifndef SR_FORMATS_JSON_FILE_H
#define SR_FORMATS_JSON_FILE_H

#include "base/status.h"

#include <jansson.h>

enum json_numbers {
    JSON_INTEGERS,  /* as they are; one beyond 64 bits refuses the file */
    JSON_ALL_REALS  /* for files that have such (tokenizer_config.json's model_max_length) */
};

/* SR_ERR_IO where the file cannot be read, SR_ERR_FORMAT with line and column where it is no JSON object. */
sr_status sr_json_load(json_t **out, const char *path, size_t max_bytes, enum json_numbers numbers, sr_error *err);
/* The same of text in memory; `path` is for messages. */
sr_status sr_json_parse(json_t **out, const char *path, const void *text, size_t bytes, enum json_numbers numbers, sr_error *err);

/* An object within a file. */
struct json_at {
    const char *path;  /* of the file */
    const char *where; /* "$" or "$.rope_scaling" */
    const json_t *object;
};

/* Absent: *found = 0 and *out is untouched; with found == NULL absence is SR_ERR_FORMAT. */
sr_status sr_json_int(const struct json_at *a, const char *key, int64_t lo, int64_t hi, int64_t *out, int *found, sr_error *err);
sr_status sr_json_number(const struct json_at *a, const char *key, double *out, int *found, sr_error *err);
sr_status sr_json_bool(const struct json_at *a, const char *key, int *out, int *found, sr_error *err);
sr_status sr_json_string(const struct json_at *a, const char *key, const char **out, int *found, sr_error *err);
/* The member must be of this type (JSON_OBJECT, JSON_ARRAY): NULL where absent and found is given. */
sr_status sr_json_member(const struct json_at *a, const char *key, json_type type, const json_t **out, int *found, sr_error *err);

/* SR_ERR_FORMAT "<path>: <where>.<key>: ..."; key may be NULL. */
sr_status sr_json_reject(const struct json_at *a, sr_error *err, const char *key, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* The same as SR_ERR_UNSUPPORTED. */
sr_status sr_json_unsupported(const struct json_at *a, sr_error *err, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
