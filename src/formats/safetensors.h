/* SPDX-License-Identifier: Apache-2.0
 *
 * The header of a safetensors file: u64 N, N bytes of JSON, then tensor data that the tensors tile exactly. Everything
 * the header says is checked before any of it is believed (rows SF1-SF9 of the bad-input contract); tensor data is
 * not touched. Knows no model.
 */
#ifndef SR_FORMATS_SAFETENSORS_H
#define SR_FORMATS_SAFETENSORS_H

#include "formats/gguf_part.h"

enum { ST_MAX_HEADER_BYTES = 32 << 20, ST_MAX_DIMS = 8 };

/* A tensor as the file has it: row-major, the last dimension contiguous. */
struct st_tensor {
    struct gguf_str name; /* first: name tables look for it here. Owned by the header it came from */
    char dtype[12];       /* "BF16" */
    int32_t n_dims;
    int64_t shape[ST_MAX_DIMS];
    int64_t n_elems;
    const uint8_t *data; /* borrowed from the mapping; any alignment */
    size_t bytes, file_offset;
    int32_t part;        /* for the caller */
    int32_t used;        /* for the caller; 0 */
};

struct st_header {
    void *json; /* owner of the names */
    struct st_tensor *tensors; /* [n], in the order of the data */
    int64_t n;
};

/* Reads the header of a mapped file. `part` is written to every tensor. On failure nothing is owned. */
sr_status sr_st_header_read(struct st_header *h, const struct mapfile *f, int32_t part, sr_error *err);
void sr_st_header_free(struct st_header *h);

/* Element type of a dtype name of this format that can be read here, or -1. */
int sr_st_dtype_find(const char *name);

#endif
