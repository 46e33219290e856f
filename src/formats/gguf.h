/* SPDX-License-Identifier: Apache-2.0
 *
 * A model on disk as values and tensors: the one interface that the config, the weights, the tokenizer and inspect read.
 *
 * GGUF v2/v3 reader over mapped files, split files included. Open checks everything that the header says (sizes,
 * offsets, overlaps, duplicates) before anything is believed; afterwards tensors and values are borrowed from the
 * mapping and live as long as the gguf. No tensor data is touched at open.
 *
 * Rows GH, GM1-GM10, GM17, GT1-GT11, GT14, GT16 of the bad-input contract end here; checks that need to know a
 * model (GM11-16, GT12, GT13) are in model/config.c and model/weights.c.
 */
#ifndef SR_FORMATS_GGUF_H
#define SR_FORMATS_GGUF_H

#include "base/mapfile.h"
#include "formats/quant.h"

enum gguf_type { GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING,
                 GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64 };

struct gguf_str { const char *data; size_t bytes; };      /* borrowed, not terminated */

struct gguf_value {
    struct gguf_str key;
    enum gguf_type type;
    enum gguf_type elem_type; /* of an array */
    uint64_t count;           /* elements of an array, else 1 */
    size_t file_offset;       /* of the value, for error messages */
    const uint8_t *data;      /* raw bytes, packed; strings: u64 length + bytes, back to back */
};

struct gguf_tensor {
    struct gguf_str name;
    sr_dtype dtype;
    int32_t n_dims;           /* 1..4 */
    int64_t ne[4];            /* ne[0] is contiguous; unused dims are 1 */
    const void *data;         /* borrowed from the mapping, unaligned by contract of the file (>= 8 in practice) */
    size_t bytes;
    int32_t part;             /* which file of a split model */
    size_t file_offset;
    const uint8_t *const *pieces; /* NULL, or [ne[2]]: the matrices lie apart (experts of a folder), and data is the first's */
    int owned;                /* the data was made at load (formats/settle.h) and lies in the gguf's memory, not in a file */
};

struct gguf;

/* path may be a folder with config.json and safetensors (formats/hf_folder.h): its values then stand under the same keys,
 * its tensors under the same names, and only what the functions below say differs. */
sr_status sr_gguf_open(struct gguf **out, const char *path, sr_error *err);
void sr_gguf_close(struct gguf *g);

const char *sr_gguf_path(const struct gguf *g);
int32_t sr_gguf_version(const struct gguf *g);
int32_t sr_gguf_n_parts(const struct gguf *g);
size_t sr_gguf_file_bytes(const struct gguf *g);  /* all parts */
size_t sr_gguf_weight_bytes(const struct gguf *g); /* what the weights take in memory once they are read */
const struct mapfile *sr_gguf_file_of(const struct gguf *g, int32_t part); /* as in gguf_tensor.part */
/* A folder: version 0. */
int sr_gguf_is_folder(const struct gguf *g);
int64_t sr_gguf_n_values(const struct gguf *g);
const struct gguf_value *sr_gguf_value(const struct gguf *g, int64_t i);
int64_t sr_gguf_n_tensors(const struct gguf *g);
const struct gguf_tensor *sr_gguf_tensor(const struct gguf *g, int64_t i);

/* NULL if absent. Hashed look-ups. */
const struct gguf_value *sr_gguf_find(const struct gguf *g, const char *key);
const struct gguf_tensor *sr_gguf_find_tensor(const struct gguf *g, const char *name);

/* Typed reads. `found` (may be NULL) tells whether the key was there; when absent *out keeps its value, or, with
 * found == NULL, absence is SR_ERR_FORMAT. A present value of the wrong type or outside [lo, hi] is
 * SR_ERR_FORMAT naming file, key, value and limit. Integers of any width are accepted for integers, f32 and f64 for
 * floats. */
sr_status sr_gguf_get_int(const struct gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out, int *found, sr_error *err);
sr_status sr_gguf_get_float(const struct gguf *g, const char *key, double *out, int *found, sr_error *err);
sr_status sr_gguf_get_bool(const struct gguf *g, const char *key, int *out, int *found, sr_error *err);
sr_status sr_gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out, int *found, sr_error *err);

/* Walks an array of strings: start with *at = NULL; returns 0 after the last one. Bounds were checked at open. */
int sr_gguf_next_str(const struct gguf_value *array, const uint8_t **at, uint64_t *i, struct gguf_str *out);
/* Element i of a numeric array (or of a scalar, i == 0) as a double / integer. Assert on type. */
double sr_gguf_number(const struct gguf_value *v, uint64_t i);
int64_t sr_gguf_integer(const struct gguf_value *v, uint64_t i);

/* SR_ERR_FORMAT with "<path>: <key>: ..." prefix helper for model code: names the file and escapes. */
sr_status sr_gguf_reject(const struct gguf *g, sr_error *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Where row `row` of ne[1] * ne[2] * ne[3] lies. */
const uint8_t *sr_gguf_row(const struct gguf_tensor *t, int64_t row);

/* Scans all data of the tensor for NaN/Inf in values or scales (row GT15); names tensor and row. */
sr_status sr_gguf_check_tensor(const struct gguf *g, const struct gguf_tensor *t, sr_error *err);

#endif
