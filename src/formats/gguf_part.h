/* SPDX-License-Identifier: Apache-2.0
 *
 * One GGUF file, checked and listed; gguf.c joins the files of a split model. Used by gguf.c, gguf_part.c and
 * gguf_infos.c only.
 *
 * A count from a file is never believed before two things are asked: is it within our limit, and can the bytes
 * that are left hold that many of the smallest legal entry. The limits keep the tables of one file below 64 MiB.
 */
#ifndef SR_FORMATS_GGUF_PART_H
#define SR_FORMATS_GGUF_PART_H

#include "formats/name_table.h"

#define GGUF_MAX_VALUES 262144
#define GGUF_MAX_TENSORS 262144     /* over all parts of a model */
#define GGUF_MAX_KEY_BYTES 65535
#define GGUF_MAX_NAME_BYTES 63
#define GGUF_MAX_STRING_BYTES ((uint64_t)1 << 30)
#define GGUF_MIN_ALIGNMENT 8
#define GGUF_MAX_ALIGNMENT 2097152  /* a huge page */

struct gguf_part {
    struct mapfile file;
    uint32_t version;
    uint32_t alignment;
    struct gguf_value *values;
    int64_t n_values;
    struct name_table keys;
    struct gguf_tensor *tensors; /* `part` is 0 until gguf.c sets it */
    int64_t n_tensors;
};

/* All of the file but its tensor data is read and checked. On failure nothing is left open. */
sr_status sr_gguf_part_open(struct gguf_part *p, const char *path, sr_error *err);
void sr_gguf_part_close(struct gguf_part *p);

/* Reads n_tensors tensor infos at the cursor and checks where their data lies (gguf_infos.c). */
sr_status sr_gguf_part_read_infos(struct gguf_part *p, struct cursor *c, uint64_t n_tensors, sr_error *err);

/* So many things are declared at offset `at`: no more than the limit, and no more than the rest of the file can hold. */
struct gguf_count {
    const char *what;
    size_t at;
    uint64_t n;
    int most, min_bytes;
};
sr_status sr_gguf_part_check_count(const struct gguf_part *p, const struct cursor *c, const struct gguf_count *n, sr_error *err);

const struct gguf_value *sr_gguf_part_find(const struct gguf_part *p, const char *key);

/* SR_ERR_FORMAT "<path>: offset N: ...". The text is taken as printable: escape names before. */
sr_status sr_gguf_part_reject(const struct gguf_part *p, size_t at, sr_error *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* The file's name for error lines: escaped, and the end of it where it is long. */
#define GGUF_SHOWN_PATH_BYTES 112
const char *sr_gguf_shown_path(char *dst, const char *path);

/* A key or name for error lines. */
#define GGUF_SHOWN_NAME_BYTES 72
const char *sr_gguf_shown_name(char *dst, struct gguf_str name);

/* Valid UTF-8 without NUL. */
int sr_gguf_name_valid(struct gguf_str name);

#endif
