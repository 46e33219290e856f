/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes GGUF v3 files: for tests, golden models and synthetic models. Values first, then tensors (data is given
 * later, in the same order, in pieces), then finish. Writes to PATH.part and renames, so a reader never sees half.
 */
#ifndef SR_FORMATS_GGUF_WRITE_H
#define SR_FORMATS_GGUF_WRITE_H

#include "formats/gguf.h"

struct gguf_writer;

sr_status sr_gguf_writer_new(struct gguf_writer **out, const char *path, sr_error *err);
sr_status sr_gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t v, sr_error *err);
sr_status sr_gguf_put_f32(struct gguf_writer *w, const char *key, float v, sr_error *err);
sr_status sr_gguf_put_bool(struct gguf_writer *w, const char *key, int v, sr_error *err);
sr_status sr_gguf_put_str(struct gguf_writer *w, const char *key, const char *text, sr_error *err);
sr_status sr_gguf_put_strs(struct gguf_writer *w, const char *key, const char *const *texts, uint64_t n, sr_error *err);
sr_status sr_gguf_put_f32s(struct gguf_writer *w, const char *key, const float *v, uint64_t n, sr_error *err);
sr_status sr_gguf_put_i32s(struct gguf_writer *w, const char *key, const int32_t *v, uint64_t n, sr_error *err);
sr_status sr_gguf_put_tensor(struct gguf_writer *w, const char *name, sr_dtype dtype, int32_t n_dims, const int64_t *ne, sr_error *err);
/* Appends bytes of tensor data; tensors follow in declared order and padding is done here. */
sr_status sr_gguf_put_data(struct gguf_writer *w, const void *data, size_t bytes, sr_error *err);
sr_status sr_gguf_writer_finish(struct gguf_writer *w, sr_error *err); /* frees w, renames into place */
void sr_gguf_writer_abort(struct gguf_writer *w);                       /* frees w, removes the part file */

#endif
