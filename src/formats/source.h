/* SPDX-License-Identifier: Apache-2.0
 *
 * A struct gguf put together in memory: how a folder of other files takes the shape that the rest of the program reads.
 * Values are copied; tensors are borrowed from the files added here. Begin, put, finish; on failure the caller closes
 * what it has with sr_gguf_close. Names and keys are trusted: they come from code, not from files.
 */
#ifndef SR_FORMATS_SOURCE_H
#define SR_FORMATS_SOURCE_H

#include "formats/gguf.h"

enum { SOURCE_MAX_VALUES = 96 };

/* `path` is the folder's name for messages. */
sr_status sr_source_begin(struct gguf **out, const char *path, sr_error *err);

sr_status sr_source_put_u32(struct gguf *g, const char *key, uint32_t v, sr_error *err);
sr_status sr_source_put_float(struct gguf *g, const char *key, double v, sr_error *err);
sr_status sr_source_put_bool(struct gguf *g, const char *key, int v, sr_error *err);
sr_status sr_source_put_str(struct gguf *g, const char *key, const char *text, size_t bytes, sr_error *err);
sr_status sr_source_put_i32s(struct gguf *g, const char *key, const int32_t *v, size_t n, sr_error *err);
sr_status sr_source_put_f32s(struct gguf *g, const char *key, const float *v, size_t n, sr_error *err);

/* An array of strings, packed as in a file; {0} to begin with. put takes its memory over, also on failure. */
struct packed_strs {
    uint8_t *data;
    size_t used, cap;
    uint64_t n;
};
sr_status sr_packed_strs_push(struct packed_strs *p, const char *text, size_t bytes, sr_error *err);
sr_status sr_source_put_strs(struct gguf *g, const char *key, struct packed_strs *p, sr_error *err);

/* Maps one more file; *part is its number in gguf_tensor.part. */
sr_status sr_source_add_file(struct gguf *g, const char *path, int32_t *part, sr_error *err);

/* Room for n tensors in all, once, before the first. */
sr_status sr_source_reserve(struct gguf *g, int64_t n, sr_error *err);
/* t->name is copied; dtype, n_dims, ne, bytes, part, file_offset and data stand. */
sr_status sr_source_add_tensor(struct gguf *g, const struct gguf_tensor *t, sr_error *err);
/* One that is put together at load (struct gguf_gather); t->data is not used. pieces: [ne[2]] pointers, a block of
 * sr_alloc that the gguf takes over, also on failure. */
sr_status sr_source_add_pieces(struct gguf *g, const struct gguf_tensor *t, const uint8_t **pieces, int64_t head_rows, sr_error *err);
/* A block of sr_alloc that lives as long as the gguf: freed here on failure. NULL fails as memory. */
sr_status sr_source_keep(struct gguf *g, void *block, size_t bytes, sr_error *err);

/* The name tables; nothing may be put afterwards. */
sr_status sr_source_finish(struct gguf *g, sr_error *err);

#endif
