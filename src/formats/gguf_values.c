/* SPDX-License-Identifier: Apache-2.0
 *
 * Typed reads of GGUF values. Lengths and bounds were checked at open, so nothing here can read outside; what is
 * left to check is type and range, and every refusal names file, offset, key, value and limit.
 */
#include "formats/gguf.h"

#include <assert.h>
#include <string.h>

static const char *const type_names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

/* ---- raw elements ------------------------------------------------------------------------------------------- */

#define ELEMENT(type, v, i) (*(type *)memcpy(&(type){0}, (v)->data + (size_t)(i) * sizeof(type), sizeof(type)))

int64_t sr_gguf_integer(const struct gguf_value *v, uint64_t i)
{
    assert(i < v->count);
    switch (v->elem_type) {
    case GGUF_U8: case GGUF_BOOL: return v->data[i];
    case GGUF_I8: return (int8_t)v->data[i];
    case GGUF_U16: return ELEMENT(uint16_t, v, i);
    case GGUF_I16: return ELEMENT(int16_t, v, i);
    case GGUF_U32: return ELEMENT(uint32_t, v, i);
    case GGUF_I32: return ELEMENT(int32_t, v, i);
    case GGUF_I64: return ELEMENT(int64_t, v, i);
    case GGUF_U64: {
        const uint64_t u = ELEMENT(uint64_t, v, i);
        return u > INT64_MAX ? INT64_MAX : (int64_t)u;
    }
    default: assert(!"an integer type"); return 0;
    }
}

double sr_gguf_number(const struct gguf_value *v, uint64_t i)
{
    assert(i < v->count);
    switch (v->elem_type) {
    case GGUF_F32: return (double)ELEMENT(float, v, i);
    case GGUF_F64: return ELEMENT(double, v, i);
    case GGUF_U64: return (double)ELEMENT(uint64_t, v, i);
    default: return (double)sr_gguf_integer(v, i);
    }
}

int sr_gguf_next_str(const struct gguf_value *array, const uint8_t **at, uint64_t *i, struct gguf_str *out)
{
    uint64_t bytes;
    assert(array->elem_type == GGUF_STRING);
    if (!*at) {
        *at = array->data;
        *i = 0;
    } else {
        ++*i;
    }
    if (*i >= array->count) return 0;
    memcpy(&bytes, *at, 8);
    *out = (struct gguf_str){(const char *)*at + 8, (size_t)bytes};
    *at += 8 + bytes;
    return 1;
}

/* ---- typed reads -------------------------------------------------------------------------------------------- */

static sr_status lookup(const struct gguf *g, const char *key, const struct gguf_value **v, int *found, sr_error *err)
{
    *v = sr_gguf_find(g, key);
    if (found) *found = *v != NULL;
    if (*v || found) return SR_OK;
    return sr_gguf_reject(g, err, "%s: this key is missing", key);
}

static sr_status wrong_type(const struct gguf *g, const struct gguf_value *v, const char *key, const char *want, sr_error *err)
{
    return sr_gguf_reject(g, err, "offset %zu: %s: has type %s, must be %s", v->file_offset, key, type_names[v->type], want);
}

sr_status sr_gguf_get_int(const struct gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out, int *found, sr_error *err)
{
    const struct gguf_value *v;
    SR_TRY(lookup(g, key, &v, found, err));
    if (!v) return SR_OK;
    if (v->type == GGUF_U64 && ELEMENT(uint64_t, v, 0) > INT64_MAX)
        return sr_gguf_reject(g, err, "offset %zu: %s: %llu, must be %lld..%lld", v->file_offset, key,
                              (unsigned long long)ELEMENT(uint64_t, v, 0), (long long)lo, (long long)hi);
    switch (v->type) {
    case GGUF_U8: case GGUF_I8: case GGUF_U16: case GGUF_I16: case GGUF_U32: case GGUF_I32: case GGUF_U64: case GGUF_I64: break;
    default: return wrong_type(g, v, key, "an integer", err);
    }
    const int64_t n = sr_gguf_integer(v, 0);
    if (n < lo || n > hi)
        return sr_gguf_reject(g, err, "offset %zu: %s: %lld, must be %lld..%lld", v->file_offset, key, (long long)n, (long long)lo, (long long)hi);
    *out = n;
    return SR_OK;
}

sr_status sr_gguf_get_float(const struct gguf *g, const char *key, double *out, int *found, sr_error *err)
{
    const struct gguf_value *v;
    SR_TRY(lookup(g, key, &v, found, err));
    if (!v) return SR_OK;
    if (v->type != GGUF_F32 && v->type != GGUF_F64) return wrong_type(g, v, key, "f32 or f64", err);
    *out = sr_gguf_number(v, 0);
    return SR_OK;
}

sr_status sr_gguf_get_bool(const struct gguf *g, const char *key, int *out, int *found, sr_error *err)
{
    const struct gguf_value *v;
    SR_TRY(lookup(g, key, &v, found, err));
    if (!v) return SR_OK;
    if (v->type != GGUF_BOOL) return wrong_type(g, v, key, "bool", err);
    *out = v->data[0];
    return SR_OK;
}

sr_status sr_gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out, int *found, sr_error *err)
{
    const struct gguf_value *v;
    const uint8_t *at = NULL;
    uint64_t i = 0;
    SR_TRY(lookup(g, key, &v, found, err));
    if (!v) return SR_OK;
    if (v->type != GGUF_STRING) return wrong_type(g, v, key, "a string", err);
    sr_gguf_next_str(v, &at, &i, out);
    return SR_OK;
}
