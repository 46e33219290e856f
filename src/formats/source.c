/* SPDX-License-Identifier: Apache-2.0
 *
 * Every value is one heap block: its key, then its data in the packed form that gguf_values.c reads.
 */
#include "formats/source.h"

#include "base/memory.h"
#include "formats/gguf_model.h"

#include <assert.h>
#include <string.h>

sr_status sr_source_keep(struct gguf *g, void *block, size_t bytes, sr_error *err)
{
    const size_t n = (size_t)g->n_blocks;
    if (!block) return sr_fail_memory(err, bytes, "a model folder");
    if ((n & (n - 1)) == 0) { /* the list doubles */
        const size_t room = n ? 2 * n : 1;
        void **blocks = sr_realloc(g->blocks, n * sizeof(*blocks), room * sizeof(*blocks));
        if (!blocks) {
            sr_free(block);
            return sr_fail_memory(err, room * sizeof(*blocks), "a model folder");
        }
        g->blocks = blocks;
    }
    g->blocks[g->n_blocks++] = block;
    return SR_OK;
}

sr_status sr_source_begin(struct gguf **out, const char *path, sr_error *err)
{
    struct gguf *g = sr_alloc_zero(1, sizeof(*g));
    struct gguf_part *p;
    sr_status st;
    if (!g) return sr_fail_memory(err, sizeof(*g), "a model folder");
    g->is_folder = 1;
    SR_TRY_GOTO(sr_gguf_new_part(g, &p, err));
    const size_t n = strlen(path) + 1;
    p->file.path = sr_alloc(n);
    p->values = sr_alloc_zero(SOURCE_MAX_VALUES, sizeof(*p->values));
    if (!p->file.path || !p->values) {
        st = sr_fail_memory(err, n, "a model folder");
        goto fail;
    }
    memcpy(p->file.path, path, n);
    *out = g;
    return SR_OK;
fail:
    sr_gguf_close(g);
    return st;
}

/* ---- values ---- */

static void add_value(struct gguf *g, const struct gguf_value *v)
{
    struct gguf_part *p = g->parts[0];
    assert(p->n_values < SOURCE_MAX_VALUES);
    p->values[p->n_values++] = *v;
}

static sr_status put(struct gguf *g, const char *key, struct gguf_value v, const void *data, size_t bytes, sr_error *err)
{
    const size_t n = strlen(key);
    uint8_t *block = sr_alloc(n + bytes);
    SR_TRY(sr_source_keep(g, block, n + bytes, err));
    memcpy(block, key, n);
    if (bytes) memcpy(block + n, data, bytes);
    v.key = (struct gguf_str){(const char *)block, n};
    v.data = block + n;
    add_value(g, &v);
    return SR_OK;
}

static struct gguf_value scalar(enum gguf_type type) { return (struct gguf_value){.type = type, .elem_type = type, .count = 1}; }

static struct gguf_value array(enum gguf_type elem, size_t n)
{
    return (struct gguf_value){.type = GGUF_ARRAY, .elem_type = elem, .count = n};
}

sr_status sr_source_put_u32(struct gguf *g, const char *key, uint32_t v, sr_error *err)
{
    return put(g, key, scalar(GGUF_U32), &v, sizeof(v), err);
}

/* Doubles stay doubles: a config's 1e-05 is not first rounded to a float. */
sr_status sr_source_put_float(struct gguf *g, const char *key, double v, sr_error *err)
{
    return put(g, key, scalar(GGUF_F64), &v, sizeof(v), err);
}

sr_status sr_source_put_bool(struct gguf *g, const char *key, int v, sr_error *err)
{
    return put(g, key, scalar(GGUF_BOOL), &(uint8_t){v != 0}, 1, err);
}

sr_status sr_source_put_i32s(struct gguf *g, const char *key, const int32_t *v, size_t n, sr_error *err)
{
    return put(g, key, array(GGUF_I32, n), v, n * sizeof(*v), err);
}

sr_status sr_source_put_f32s(struct gguf *g, const char *key, const float *v, size_t n, sr_error *err)
{
    return put(g, key, array(GGUF_F32, n), v, n * sizeof(*v), err);
}

sr_status sr_source_put_str(struct gguf *g, const char *key, const char *text, size_t bytes, sr_error *err)
{
    struct packed_strs p = {0};
    SR_TRY(sr_packed_strs_push(&p, text, bytes, err));
    const sr_status st = put(g, key, scalar(GGUF_STRING), p.data, p.used, err);
    sr_free(p.data);
    return st;
}

sr_status sr_packed_strs_push(struct packed_strs *p, const char *text, size_t bytes, sr_error *err)
{
    const uint64_t n = bytes;
    if (bytes + sizeof(n) > p->cap - p->used) {
        const size_t cap = 2 * p->cap + bytes + sizeof(n);
        uint8_t *data = sr_realloc(p->data, p->used, cap);
        if (!data) {
            sr_free(p->data);
            *p = (struct packed_strs){0};
            return sr_fail_memory(err, cap, "strings of a model folder");
        }
        p->data = data;
        p->cap = cap;
    }
    memcpy(p->data + p->used, &n, sizeof(n));
    if (bytes) memcpy(p->data + p->used + sizeof(n), text, bytes);
    p->used += bytes + sizeof(n);
    p->n++;
    return SR_OK;
}

sr_status sr_source_put_strs(struct gguf *g, const char *key, struct packed_strs *p, sr_error *err)
{
    void *data = p->data ? p->data : sr_alloc(1);
    const size_t n = strlen(key), count = p->n, bytes = p->used;
    *p = (struct packed_strs){0};
    SR_TRY(sr_source_keep(g, data, bytes, err));
    char *name = sr_alloc(n);
    SR_TRY(sr_source_keep(g, name, n, err));
    memcpy(name, key, n);
    struct gguf_value v = array(GGUF_STRING, count);
    v.key = (struct gguf_str){name, n};
    v.data = data;
    add_value(g, &v);
    return SR_OK;
}

/* ---- tensors ---- */

sr_status sr_source_add_file(struct gguf *g, const char *path, int32_t *part, sr_error *err)
{
    struct gguf_part *p;
    SR_TRY(sr_gguf_new_part(g, &p, err));
    *part = g->n_parts - 1 - g->is_folder;
    return sr_mapfile_open(&p->file, path, err);
}

sr_status sr_source_reserve(struct gguf *g, int64_t n, sr_error *err)
{
    assert(!g->tensors);
    g->tensors = sr_alloc_zero((size_t)n, sizeof(*g->tensors));
    if (!g->tensors) return sr_fail_memory(err, (size_t)n * sizeof(*g->tensors), "tensors of a model folder");
    g->tensors_room = n;
    return SR_OK;
}

sr_status sr_source_add_pieces(struct gguf *g, const struct gguf_tensor *t, const uint8_t **pieces, int64_t head_rows, sr_error *err)
{
    struct gguf_tensor scattered = *t;
    const size_t n = (size_t)g->n_gathers;
    SR_TRY(sr_source_keep(g, pieces, 0, err));
    if ((n & (n - 1)) == 0) {
        const size_t room = n ? 2 * n : 1;
        struct gguf_gather *all = sr_realloc(g->gathers, n * sizeof(*all), room * sizeof(*all));
        if (!all) return sr_fail_memory(err, room * sizeof(*all), "tensors of a model folder");
        g->gathers = all;
    }
    g->gathers[g->n_gathers++] = (struct gguf_gather){g->n_tensors, pieces, head_rows};
    scattered.data = NULL;
    return sr_source_add_tensor(g, &scattered, err);
}

sr_status sr_source_add_tensor(struct gguf *g, const struct gguf_tensor *t, sr_error *err)
{
    assert(g->n_tensors < g->tensors_room && t->name.bytes <= GGUF_MAX_NAME_BYTES);
    char *name = sr_alloc(t->name.bytes);
    SR_TRY(sr_source_keep(g, name, t->name.bytes, err));
    memcpy(name, t->name.data, t->name.bytes);
    g->tensors[g->n_tensors] = *t;
    g->tensors[g->n_tensors++].name.data = name;
    return SR_OK;
}

sr_status sr_source_finish(struct gguf *g, sr_error *err)
{
    struct gguf_part *p = g->parts[0];
    SR_TRY(sr_name_table_init(&p->keys, p->values, sizeof(*p->values), p->n_values, err));
    for (int64_t i = 0; i < p->n_values; i++) {
        const int64_t first = sr_name_table_add(&p->keys, i);
        (void)first;
        assert(first < 0);
    }
    return sr_gguf_index_tensors(g, err);
}
