/* SPDX-License-Identifier: Apache-2.0
 *
 * The header grows in two buffers (values, tensor infos) until the first data arrives; then it is written with its
 * final counts and the data streams behind it. The order values, tensors, data is checked, since it comes from
 * callers only: a break of it is SR_ERR_USAGE.
 */
#include "formats/gguf_write.h"

#include "base/mapfile.h"
#include "base/memory.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ALIGNMENT 32
#define MAX_NAME_BYTES 63

struct buffer {
    uint8_t *data;
    size_t bytes, room;
};

struct gguf_writer {
    char *path, *part_path; /* the second in the same block */
    FILE *file;
    struct buffer values, infos;
    uint64_t n_values, n_tensors;
    size_t *sizes;          /* [n_tensors] bytes of each tensor */
    size_t sizes_room;
    size_t data_bytes;      /* of all tensors so far, padded: the next tensor's offset */
    int started;            /* header written, data follows */
    uint64_t at_tensor;     /* the tensor that data goes to, and what it has */
    size_t at_bytes;
};

/* ---- buffers ------------------------------------------------------------------------------------------------ */

static sr_status reserve(struct buffer *b, size_t more, sr_error *err)
{
    size_t need, room;
    if (sr_add_size(b->bytes, more, &need)) return sr_fail_memory(err, SIZE_MAX, "GGUF header");
    if (need <= b->room) return SR_OK;
    room = b->room ? b->room : 4096;
    while (room < need)
        if (sr_mul_size(room, 2, &room)) return sr_fail_memory(err, need, "GGUF header");
    uint8_t *data = sr_realloc(b->data, b->bytes, room);
    if (!data) return sr_fail_memory(err, room, "GGUF header");
    b->data = data;
    b->room = room;
    return SR_OK;
}

/* Room was reserved. */
static void append(struct buffer *b, const void *data, size_t bytes)
{
    if (bytes) memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
}

static void append_u32(struct buffer *b, uint32_t v) { append(b, &v, 4); }
static void append_u64(struct buffer *b, uint64_t v) { append(b, &v, 8); }

static void append_text(struct buffer *b, const char *text, size_t bytes)
{
    append_u64(b, bytes);
    append(b, text, bytes);
}

/* ---- values ------------------------------------------------------------------------------------------------- */

static sr_status misuse(const struct gguf_writer *w, sr_error *err, const char *what, const char *name)
{
    char path[80], shown[80];
    return sr_fail(err, SR_ERR_USAGE, "%s: %s: %s", sr_escape(path, sizeof(path), w->path, strlen(w->path)),
                   sr_escape(shown, sizeof(shown), name, strlen(name)), what);
}

/* Key and type, with room for `bytes` more. */
static sr_status begin_value(struct gguf_writer *w, const char *key, enum gguf_type type, size_t bytes, sr_error *err)
{
    const size_t key_bytes = strlen(key);
    if (w->n_tensors || w->started) return misuse(w, err, "values come before tensors", key);
    if (key_bytes == 0 || key_bytes > 65535) return misuse(w, err, "a key has 1 to 65535 bytes", key);
    if (sr_add_size(bytes, 12 + key_bytes, &bytes)) return sr_fail_memory(err, SIZE_MAX, "GGUF header");
    SR_TRY(reserve(&w->values, bytes, err));
    append_text(&w->values, key, key_bytes);
    append_u32(&w->values, (uint32_t)type);
    w->n_values++;
    return SR_OK;
}

static sr_status put_scalar(struct gguf_writer *w, const char *key, enum gguf_type type, const void *v, size_t bytes, sr_error *err)
{
    SR_TRY(begin_value(w, key, type, bytes, err));
    append(&w->values, v, bytes);
    return SR_OK;
}

static sr_status put_array(struct gguf_writer *w, const char *key, enum gguf_type type, const void *v, uint64_t n, sr_error *err)
{
    size_t bytes;
    if (sr_mul_size((size_t)n, 4, &bytes) || sr_add_size(bytes, 12, &bytes)) return sr_fail_memory(err, SIZE_MAX, "GGUF array");
    SR_TRY(begin_value(w, key, GGUF_ARRAY, bytes, err));
    append_u32(&w->values, (uint32_t)type);
    append_u64(&w->values, n);
    append(&w->values, v, (size_t)n * 4);
    return SR_OK;
}

sr_status sr_gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t v, sr_error *err)
{
    return put_scalar(w, key, GGUF_U32, &v, 4, err);
}

sr_status sr_gguf_put_f32(struct gguf_writer *w, const char *key, float v, sr_error *err)
{
    return put_scalar(w, key, GGUF_F32, &v, 4, err);
}

sr_status sr_gguf_put_bool(struct gguf_writer *w, const char *key, int v, sr_error *err)
{
    const uint8_t b = v != 0;
    return put_scalar(w, key, GGUF_BOOL, &b, 1, err);
}

sr_status sr_gguf_put_str(struct gguf_writer *w, const char *key, const char *text, sr_error *err)
{
    const size_t bytes = strlen(text);
    SR_TRY(begin_value(w, key, GGUF_STRING, bytes + 8, err));
    append_text(&w->values, text, bytes);
    return SR_OK;
}

sr_status sr_gguf_put_strs(struct gguf_writer *w, const char *key, const char *const *texts, uint64_t n, sr_error *err)
{
    size_t bytes = 12;
    for (uint64_t i = 0; i < n; i++) bytes += 8 + strlen(texts[i]); /* the texts are in memory: cannot wrap */
    SR_TRY(begin_value(w, key, GGUF_ARRAY, bytes, err));
    append_u32(&w->values, GGUF_STRING);
    append_u64(&w->values, n);
    for (uint64_t i = 0; i < n; i++) append_text(&w->values, texts[i], strlen(texts[i]));
    return SR_OK;
}

sr_status sr_gguf_put_f32s(struct gguf_writer *w, const char *key, const float *v, uint64_t n, sr_error *err)
{
    return put_array(w, key, GGUF_F32, v, n, err);
}

sr_status sr_gguf_put_i32s(struct gguf_writer *w, const char *key, const int32_t *v, uint64_t n, sr_error *err)
{
    return put_array(w, key, GGUF_I32, v, n, err);
}

/* ---- tensors ------------------------------------------------------------------------------------------------ */

static size_t padding_of(size_t bytes) { return (ALIGNMENT - bytes % ALIGNMENT) % ALIGNMENT; }

/* Bytes of the shape, or 0 where it is not a legal one. */
static size_t tensor_bytes(sr_dtype dtype, int32_t n_dims, const int64_t *ne)
{
    const struct dtype_traits *type = sr_dtype_find((int64_t)dtype);
    size_t elems = 1, bytes;
    if (!type || n_dims < 1 || n_dims > 4 || ne[0] % type->block_elems != 0) return 0;
    for (int i = 0; i < n_dims; i++)
        if (ne[i] < 1 || sr_mul_size(elems, (size_t)ne[i], &elems) || elems > INT64_MAX) return 0;
    if (sr_mul_size(elems / (size_t)type->block_elems, (size_t)type->block_bytes, &bytes) || bytes > INT64_MAX) return 0;
    return bytes;
}

static sr_status remember_size(struct gguf_writer *w, size_t bytes, sr_error *err)
{
    if (w->n_tensors == w->sizes_room) {
        const size_t room = w->sizes_room ? 2 * w->sizes_room : 64;
        size_t *sizes = sr_realloc(w->sizes, w->sizes_room * sizeof(*sizes), room * sizeof(*sizes));
        if (!sizes) return sr_fail_memory(err, room * sizeof(*sizes), "sizes of tensors");
        w->sizes = sizes;
        w->sizes_room = room;
    }
    w->sizes[w->n_tensors++] = bytes;
    return SR_OK;
}

sr_status sr_gguf_put_tensor(struct gguf_writer *w, const char *name, sr_dtype dtype, int32_t n_dims, const int64_t *ne, sr_error *err)
{
    const size_t name_bytes = strlen(name), bytes = tensor_bytes(dtype, n_dims, ne);
    size_t next;
    if (w->started) return misuse(w, err, "tensors come before data", name);
    if (name_bytes == 0 || name_bytes > MAX_NAME_BYTES) return misuse(w, err, "a tensor name has 1 to 63 bytes", name);
    if (bytes == 0) return misuse(w, err, "not a legal shape of its type", name);
    if (sr_add_size(w->data_bytes, bytes + padding_of(bytes), &next)) return misuse(w, err, "too many bytes of data", name);
    SR_TRY(reserve(&w->infos, 8 + name_bytes + 4 + 8 * (size_t)n_dims + 12, err));
    SR_TRY(remember_size(w, bytes, err));
    append_text(&w->infos, name, name_bytes);
    append_u32(&w->infos, (uint32_t)n_dims);
    append(&w->infos, ne, 8 * (size_t)n_dims);
    append_u32(&w->infos, (uint32_t)dtype);
    append_u64(&w->infos, w->data_bytes);
    w->data_bytes = next;
    return SR_OK;
}

/* ---- the file ----------------------------------------------------------------------------------------------- */

static sr_status write_failed(const struct gguf_writer *w, sr_error *err)
{
    char path[160];
    const int code = errno;
    return sr_fail(err, SR_ERR_IO, "%s: cannot write: %s", sr_escape(path, sizeof(path), w->part_path, strlen(w->part_path)), strerror(code));
}

static sr_status write_bytes(struct gguf_writer *w, const void *data, size_t bytes, sr_error *err)
{
    if (bytes == 0 || fwrite(data, 1, bytes, w->file) == bytes) return SR_OK;
    return write_failed(w, err);
}

static sr_status write_padding(struct gguf_writer *w, size_t bytes, sr_error *err)
{
    static const uint8_t zeros[ALIGNMENT];
    return write_bytes(w, zeros, bytes, err);
}

static sr_status start_data(struct gguf_writer *w, sr_error *err)
{
    uint8_t header[24];
    const uint32_t version = 3;
    memcpy(header, "GGUF", 4);
    memcpy(header + 4, &version, 4);
    memcpy(header + 8, &w->n_tensors, 8);
    memcpy(header + 16, &w->n_values, 8);
    w->started = 1;
    SR_TRY(write_bytes(w, header, sizeof(header), err));
    SR_TRY(write_bytes(w, w->values.data, w->values.bytes, err));
    SR_TRY(write_bytes(w, w->infos.data, w->infos.bytes, err));
    if (w->n_tensors == 0) return SR_OK; /* nothing to align */
    return write_padding(w, padding_of(sizeof(header) + w->values.bytes + w->infos.bytes), err);
}

sr_status sr_gguf_put_data(struct gguf_writer *w, const void *data, size_t bytes, sr_error *err)
{
    const uint8_t *at = data;
    if (!w->started) SR_TRY(start_data(w, err));
    while (bytes > 0) {
        if (w->at_tensor == w->n_tensors) return misuse(w, err, "more data than the tensors declared", "data");
        const size_t left = w->sizes[w->at_tensor] - w->at_bytes, n = bytes < left ? bytes : left;
        SR_TRY(write_bytes(w, at, n, err));
        at += n;
        bytes -= n;
        w->at_bytes += n;
        if (n < left) break;
        SR_TRY(write_padding(w, padding_of(w->sizes[w->at_tensor]), err));
        w->at_tensor++;
        w->at_bytes = 0;
    }
    return SR_OK;
}

sr_status sr_gguf_writer_new(struct gguf_writer **out, const char *path, sr_error *err)
{
    const size_t path_bytes = strlen(path) + 1;
    SR_TRY(sr_mapfile_check_target(path, err));
    struct gguf_writer *w = sr_alloc_zero(1, sizeof(*w));
    if (!w) return sr_fail_memory(err, sizeof(*w), "GGUF writer");
    w->path = sr_alloc(2 * path_bytes + 5);
    if (!w->path) {
        sr_free(w);
        return sr_fail_memory(err, 2 * path_bytes + 5, "file name");
    }
    memcpy(w->path, path, path_bytes);
    w->part_path = w->path + path_bytes;
    snprintf(w->part_path, path_bytes + 5, "%s.part", path);
    w->file = fopen(w->part_path, "wbe");
    if (!w->file) {
        const sr_status st = write_failed(w, err);
        sr_gguf_writer_abort(w);
        return st;
    }
    *out = w;
    return SR_OK;
}

static void release(struct gguf_writer *w)
{
    sr_free(w->values.data);
    sr_free(w->infos.data);
    sr_free(w->sizes);
    sr_free(w->path);
    sr_free(w);
}

sr_status sr_gguf_writer_finish(struct gguf_writer *w, sr_error *err)
{
    sr_status st;
    if (!w->started) SR_TRY_GOTO(start_data(w, err));
    if (w->at_tensor != w->n_tensors) {
        st = misuse(w, err, "less data than the tensors declared", "finish");
        goto fail;
    }
    FILE *file = w->file;
    w->file = NULL;
    if (fclose(file) != 0 || rename(w->part_path, w->path) != 0) {
        st = write_failed(w, err);
        remove(w->part_path);
        goto fail;
    }
    release(w);
    return SR_OK;
fail:
    sr_gguf_writer_abort(w);
    return st;
}

void sr_gguf_writer_abort(struct gguf_writer *w)
{
    if (!w) return;
    if (w->file) {
        fclose(w->file);
        remove(w->part_path);
    }
    release(w);
}
