/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensor infos of one GGUF file: shapes that cannot wrap, data that lies inside the file, aligned, and no byte in
 * two tensors. Order and gaps are free. Shapes and places are checked before the element type's support is, so a
 * broken file is called broken even when its types are foreign.
 */
#include "formats/gguf_part.h"

#include "base/memory.h"

#define MIN_INFO_BYTES (8 + 1 + 4 + 8 + 4 + 8) /* name length, a one-byte name, n_dims, one dim, type, offset */

static sr_status read_name(struct gguf_part *p, struct cursor *c, struct gguf_str *name, sr_error *err)
{
    const size_t at = c->at;
    uint64_t bytes;
    const uint8_t *data;
    char shown[GGUF_SHOWN_NAME_BYTES];
    SR_TRY(sr_read_u64(c, &bytes, "tensor name length", err));
    if (bytes == 0 || bytes > GGUF_MAX_NAME_BYTES)
        return sr_gguf_part_reject(p, at, err, "tensor name length %llu, must be 1..%d", (unsigned long long)bytes, GGUF_MAX_NAME_BYTES);
    SR_TRY(sr_read_span(c, bytes, &data, "tensor name", err));
    *name = (struct gguf_str){(const char *)data, (size_t)bytes};
    if (!sr_gguf_name_valid(*name))
        return sr_gguf_part_reject(p, at, err, "tensor name %s: NUL or invalid UTF-8", sr_gguf_shown_name(shown, *name));
    return SR_OK;
}

static sr_status read_shape(struct gguf_part *p, struct cursor *c, struct gguf_tensor *t, sr_error *err)
{
    char name[GGUF_SHOWN_NAME_BYTES];
    uint32_t n_dims;
    int64_t elems = 1;
    sr_gguf_shown_name(name, t->name);
    SR_TRY(sr_read_u32(c, &n_dims, "number of dimensions", err));
    if (n_dims < 1 || n_dims > 4)
        return sr_gguf_part_reject(p, c->at - 4, err, "tensor %s: %u dimensions, must be 1..4", name, (unsigned)n_dims);
    t->n_dims = (int32_t)n_dims;
    for (int i = 0; i < 4; i++) {
        uint64_t dim = 1;
        if (i < t->n_dims) SR_TRY(sr_read_u64(c, &dim, "dimension", err));
        if (dim == 0 || dim > INT64_MAX)
            return sr_gguf_part_reject(p, c->at - 8, err, "tensor %s: dimension %d is %llu, must be 1..2^63-1", name, i,
                                       (unsigned long long)dim);
        if (__builtin_mul_overflow(elems, (int64_t)dim, &elems))
            return sr_gguf_part_reject(p, c->at - 8, err, "tensor %s: more than 2^63-1 elements at dimension %d of %llu", name, i,
                                       (unsigned long long)dim);
        t->ne[i] = (int64_t)dim;
    }
    return SR_OK;
}

/* The type id, and the bytes that the shape needs in it. */
static sr_status read_type(struct gguf_part *p, struct cursor *c, struct gguf_tensor *t, sr_error *err)
{
    char name[GGUF_SHOWN_NAME_BYTES];
    uint32_t id;
    sr_gguf_shown_name(name, t->name);
    SR_TRY(sr_read_u32(c, &id, "tensor type", err));
    const struct dtype_traits *type = sr_gguf_type_find((int64_t)id);
    if (!type) return sr_gguf_part_reject(p, c->at - 4, err, "tensor %s: type id %d is unknown or was removed", name, (int)id);
    t->dtype = (sr_dtype)id;
    t->bytes = 1;
    if (type->block_elems == 0) return SR_OK; /* size unknown; refused as unsupported later */
    if (t->ne[0] % type->block_elems != 0)
        return sr_gguf_part_reject(p, c->at - 4, err, "tensor %s: rows of %lld elements, %s has blocks of %d", name,
                                   (long long)t->ne[0], type->name, type->block_elems);
    const size_t blocks = (size_t)(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3] / type->block_elems);
    if (sr_mul_size(blocks, (size_t)type->block_bytes, &t->bytes) || t->bytes > INT64_MAX)
        return sr_gguf_part_reject(p, c->at - 4, err, "tensor %s: %zu blocks of %d bytes are more than 2^63-1 bytes", name, blocks,
                                   type->block_bytes);
    return SR_OK;
}

/* file_offset holds the offset in the data section until place_tensor. */
static sr_status read_info(struct gguf_part *p, struct cursor *c, struct gguf_tensor *t, sr_error *err)
{
    uint64_t offset;
    char name[GGUF_SHOWN_NAME_BYTES];
    SR_TRY(read_name(p, c, &t->name, err));
    SR_TRY(read_shape(p, c, t, err));
    SR_TRY(read_type(p, c, t, err));
    SR_TRY(sr_read_u64(c, &offset, "tensor offset", err));
    if (offset % p->alignment != 0)
        return sr_gguf_part_reject(p, c->at - 8, err, "tensor %s: data offset %llu is not a multiple of the alignment %u",
                                   sr_gguf_shown_name(name, t->name), (unsigned long long)offset, (unsigned)p->alignment);
    t->file_offset = (size_t)offset;
    return SR_OK;
}

static sr_status place_tensor(const struct gguf_part *p, struct gguf_tensor *t, size_t data_start, sr_error *err)
{
    const size_t room = p->file.bytes - data_start, offset = t->file_offset;
    char name[GGUF_SHOWN_NAME_BYTES];
    if (offset > room || t->bytes > room - offset)
        return sr_gguf_part_reject(p, data_start, err, "tensor %s: %zu bytes at data offset %zu, the data section has %zu",
                                   sr_gguf_shown_name(name, t->name), t->bytes, offset, room);
    t->file_offset = data_start + offset;
    t->data = p->file.data + t->file_offset;
    return SR_OK;
}

/* ---- overlaps ----------------------------------------------------------------------------------------------- */

static void sift_down(const struct gguf_tensor *t, uint32_t *order, int64_t at, int64_t n)
{
    const uint32_t moved = order[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && t[order[child + 1]].file_offset > t[order[child]].file_offset) child++;
        if (t[order[child]].file_offset <= t[moved].file_offset) break;
        order[at] = order[child];
    }
    order[at] = moved;
}

/* Heapsort: in place, and no input makes it slow. Files in order, nearly all, skip it. */
static void sort_by_offset(const struct gguf_tensor *t, uint32_t *order, int64_t n)
{
    int sorted = 1;
    for (int64_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
        if (i > 0 && t[i].file_offset < t[i - 1].file_offset) sorted = 0;
    }
    if (sorted) return;
    for (int64_t i = n / 2; i-- > 0;) sift_down(t, order, i, n);
    for (int64_t last = n - 1; last > 0; last--) {
        const uint32_t top = order[0];
        order[0] = order[last];
        order[last] = top;
        sift_down(t, order, 0, last);
    }
}

static sr_status check_overlaps(const struct gguf_part *p, size_t *end, sr_error *err)
{
    uint32_t *order = sr_alloc((size_t)p->n_tensors * sizeof(*order));
    if (!order) return sr_fail_memory(err, (size_t)p->n_tensors * sizeof(*order), "order of the tensors");
    sort_by_offset(p->tensors, order, p->n_tensors);
    sr_status st = SR_OK;
    for (int64_t i = 1; i < p->n_tensors && st == SR_OK; i++) {
        const struct gguf_tensor *a = &p->tensors[order[i - 1]], *b = &p->tensors[order[i]];
        char name_a[GGUF_SHOWN_NAME_BYTES], name_b[GGUF_SHOWN_NAME_BYTES];
        if (a->bytes > b->file_offset - a->file_offset)
            st = sr_gguf_part_reject(p, b->file_offset, err, "tensor %s begins inside tensor %s, which has %zu bytes at offset %zu",
                                     sr_gguf_shown_name(name_b, b->name), sr_gguf_shown_name(name_a, a->name), a->bytes, a->file_offset);
    }
    if (p->n_tensors > 0) {
        const struct gguf_tensor *last = &p->tensors[order[p->n_tensors - 1]];
        *end = last->file_offset + last->bytes;
    }
    sr_free(order);
    return st;
}

/* ---- all infos ---------------------------------------------------------------------------------------------- */

static sr_status check_support(const struct gguf_part *p, sr_error *err)
{
    for (int64_t i = 0; i < p->n_tensors; i++) {
        const struct gguf_tensor *t = &p->tensors[i];
        char path[GGUF_SHOWN_PATH_BYTES], name[GGUF_SHOWN_NAME_BYTES];
        if (!sr_dtype_find((int64_t)t->dtype))
            return sr_fail(err, SR_ERR_UNSUPPORTED, "%s: tensor %s has type %s, which is not supported",
                           sr_gguf_shown_path(path, p->file.path), sr_gguf_shown_name(name, t->name), sr_gguf_type_name((int64_t)t->dtype));
    }
    return SR_OK;
}

static size_t align_up(size_t at, size_t alignment) { return (at + alignment - 1) / alignment * alignment; }

static void warn_of_junk(const struct gguf_part *p, size_t end)
{
    char path[GGUF_SHOWN_PATH_BYTES];
    if (p->file.bytes > align_up(end, p->alignment))
        sr_log(SR_LOG_WARN, "%s: %zu bytes after the data are ignored, from offset %zu on", sr_gguf_shown_path(path, p->file.path),
               p->file.bytes - end, end);
}

sr_status sr_gguf_part_read_infos(struct gguf_part *p, struct cursor *c, uint64_t n_tensors, sr_error *err)
{
    const struct gguf_count n = {"tensors", 8, n_tensors, GGUF_MAX_TENSORS, MIN_INFO_BYTES};
    SR_TRY(sr_gguf_part_check_count(p, c, &n, err));
    p->tensors = sr_alloc_zero((size_t)n_tensors, sizeof(*p->tensors));
    if (!p->tensors) return sr_fail_memory(err, (size_t)n_tensors * sizeof(*p->tensors), "tensors of a GGUF file");
    for (uint64_t i = 0; i < n_tensors; i++, p->n_tensors++) SR_TRY(read_info(p, c, &p->tensors[i], err));

    /* a file without tensors ends right after its values, with no padding */
    const size_t data_start = n_tensors > 0 ? align_up(c->at, p->alignment) : c->at;
    size_t end = data_start;
    if (data_start > p->file.bytes)
        return sr_gguf_part_reject(p, c->at, err, "tensor data begins at offset %zu, the file has %zu bytes", data_start, p->file.bytes);
    for (int64_t i = 0; i < p->n_tensors; i++) SR_TRY(place_tensor(p, &p->tensors[i], data_start, err));
    SR_TRY(check_overlaps(p, &end, err));
    SR_TRY(check_support(p, err));
    warn_of_junk(p, end);
    return SR_OK;
}
