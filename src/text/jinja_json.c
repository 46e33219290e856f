/* SPDX-License-Identifier: Apache-2.0
 *
 * Values as text: Python's str() and repr(), json.dumps, and values from JSON.
 */
#include "text/jinja_text.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_json(struct jrun *r, struct jbuf *b, const struct jval *v, const struct jdump *how,
                     int64_t level);
static void add_repr(struct jrun *r, struct jbuf *b, const struct jval *v);

/* ---- numbers ---- */

/* The shortest digits that read back as f, in Python's form: 1.0, 0.1, 1e+16, 1e-05. */
static void real_text(char *out, size_t out_bytes, double f)
{
    char digits[40];
    int exponent, n = 0;

    if (isnan(f) || isinf(f)) {
        snprintf(out, out_bytes, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    for (int precision = 0; precision <= 16; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, f);
        n = precision;
        if (strtod(digits, NULL) == f) break;
    }
    exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16)
        snprintf(out, out_bytes, "%.*e", n, f);
    else
        snprintf(out, out_bytes, "%.*f", n - exponent > 1 ? n - exponent : 1, f);
}

static void add_number(struct jrun *r, struct jbuf *b, const struct jval *v, int json)
{
    char text[400];

    if (v->kind == JINJA_INT)
        snprintf(text, sizeof text, "%lld", (long long)v->u.i);
    else
        real_text(text, sizeof text, v->u.f);
    if (json && v->kind == JINJA_FLOAT && !isfinite(v->u.f))
        snprintf(text, sizeof text, "%s", isnan(v->u.f) ? "NaN" : v->u.f > 0 ? "Infinity" : "-Infinity");
    sr_jinja_add_text(r, b, text);
}

/* ---- str, repr ---- */

/* Runs of ordinary bytes go over as they are; escape() writes what a byte becomes, or returns 0. */
static void add_escaped(struct jrun *r, struct jbuf *b, const struct jval *v,
                        int (*escape)(char *out, unsigned char c, char quote), char quote)
{
    const struct jstr *s = &v->u.s;
    char text[8] = "";
    size_t begin = 0;

    sr_jinja_step(r, s->n / 8);
    for (size_t i = 0; i < s->n && r->status == SR_OK; i++) {
        if (!escape(text, (unsigned char)s->p[i], quote)) continue;
        struct jval plain = sr_jinja_part(v, begin, i);
        sr_jinja_add(r, b, &plain);
        sr_jinja_add_bytes(r, b, text, strlen(text), s->from ? s->from[i] : v->user);
        begin = i + 1;
    }
    struct jval rest = sr_jinja_part(v, begin, s->n);
    sr_jinja_add(r, b, &rest);
}

static int escape_repr(char *out, unsigned char c, char quote)
{
    const char *known = "\nn\rr\tt\\\\";

    for (; *known; known += 2)
        if ((unsigned char)*known == c) return sprintf(out, "\\%c", known[1]);
    if (c == (unsigned char)quote) return sprintf(out, "\\%c", c);
    return c < 0x20 || c == 0x7F ? sprintf(out, "\\x%02x", c) : 0;
}

static void add_quoted(struct jrun *r, struct jbuf *b, const struct jval *v)
{
    int single = v->u.s.n && memchr(v->u.s.p, '\'', v->u.s.n),
        twice = v->u.s.n && memchr(v->u.s.p, '"', v->u.s.n);
    char quote[2] = {single && !twice ? '"' : '\'', 0};

    sr_jinja_add_text(r, b, quote);
    add_escaped(r, b, v, escape_repr, quote[0]);
    sr_jinja_add_text(r, b, quote);
}

static void add_list_repr(struct jrun *r, struct jbuf *b, const struct jval *v)
{
    int tuple = v->kind == JINJA_TUPLE;

    sr_jinja_add_text(r, b, tuple ? "(" : "[");
    for (size_t i = 0; i < v->u.list->n && r->status == SR_OK; i++) {
        if (i) sr_jinja_add_text(r, b, ", ");
        add_repr(r, b, &v->u.list->v[i]);
    }
    sr_jinja_add_text(r, b, tuple ? (v->u.list->n == 1 ? ",)" : ")") : "]");
}

static void add_dict_repr(struct jrun *r, struct jbuf *b, const struct jval *v)
{
    sr_jinja_add_text(r, b, "{");
    for (size_t i = 0; i < v->u.dict->n && r->status == SR_OK; i++) {
        if (i) sr_jinja_add_text(r, b, ", ");
        add_repr(r, b, &v->u.dict->v[i].key);
        sr_jinja_add_text(r, b, ": ");
        add_repr(r, b, &v->u.dict->v[i].value);
    }
    sr_jinja_add_text(r, b, "}");
}

static void add_repr(struct jrun *r, struct jbuf *b, const struct jval *v)
{
    if (!sr_jinja_enter(r)) return;
    sr_jinja_step(r, 1);
    switch (v->kind) {
    case JINJA_UNDEFINED: sr_jinja_add_text(r, b, "Undefined"); break;
    case JINJA_NONE: sr_jinja_add_text(r, b, "None"); break;
    case JINJA_BOOL: sr_jinja_add_text(r, b, v->u.i ? "True" : "False"); break;
    case JINJA_INT:
    case JINJA_FLOAT: add_number(r, b, v, 0); break;
    case JINJA_STRING: add_quoted(r, b, v); break;
    case JINJA_LIST:
    case JINJA_TUPLE: add_list_repr(r, b, v); break;
    case JINJA_DICT: add_dict_repr(r, b, v); break;
    default: sr_jinja_fail(r, SR_ERR_USAGE, "%s has no text", sr_jinja_kind_name(v)); break;
    }
    sr_jinja_leave(r);
}

struct jval sr_jinja_str(struct jrun *r, const struct jval *v)
{
    struct jbuf b = {0};

    if (v->kind == JINJA_STRING) return *v;
    if (v->kind != JINJA_UNDEFINED) add_repr(r, &b, v);
    return sr_jinja_built(r, &b);
}

/* ---- to JSON ---- */

static int escape_json(char *out, unsigned char c, char quote)
{
    const char *known = "\nn\rr\tt\bb\ff\\\\";

    for (; *known; known += 2)
        if ((unsigned char)*known == c) return sprintf(out, "\\%c", known[1]);
    if (c == (unsigned char)quote) return sprintf(out, "\\\"");
    return c < 0x20 ? sprintf(out, "\\u%04x", c) : 0;
}

static void add_json_string(struct jrun *r, struct jbuf *b, const struct jval *v)
{
    sr_jinja_add_text(r, b, "\"");
    add_escaped(r, b, v, escape_json, '"');
    sr_jinja_add_text(r, b, "\"");
}

static void new_line(struct jrun *r, struct jbuf *b, const struct jdump *how, int64_t level)
{
    if (how->indent < 0) return;
    sr_jinja_add_text(r, b, "\n");
    for (int64_t i = 0; i < level * how->indent && sr_jinja_step(r, 1); i++) sr_jinja_add_text(r, b, " ");
}

static void add_json_list(struct jrun *r, struct jbuf *b, const struct jval *v, const struct jdump *how,
                          int64_t level)
{
    const struct jlist *l = v->u.list;

    sr_jinja_add_text(r, b, "[");
    for (size_t i = 0; i < l->n && r->status == SR_OK; i++) {
        if (i) sr_jinja_add(r, b, &how->item_separator);
        new_line(r, b, how, level + 1);
        add_json(r, b, &l->v[i], how, level + 1);
    }
    if (l->n) new_line(r, b, how, level);
    sr_jinja_add_text(r, b, "]");
}

/* The i-th pair in the order of writing. Quadratic, and counted as such. */
static const struct jpair *pair_at(struct jrun *r, const struct jdict *d, size_t i, const struct jdump *how)
{
    if (!how->sort_keys) return &d->v[i];
    for (size_t k = 0; k < d->n && sr_jinja_step(r, d->n); k++) {
        size_t before = 0;
        for (size_t j = 0; j < d->n; j++)
            before += j != k && sr_jinja_compare(r, &d->v[j].key, &d->v[k].key) < 0;
        if (before == i) return &d->v[k];
    }
    return &d->v[i];
}

static void add_json_dict(struct jrun *r, struct jbuf *b, const struct jval *v, const struct jdump *how,
                          int64_t level)
{
    const struct jdict *d = v->u.dict;

    sr_jinja_add_text(r, b, "{");
    for (size_t i = 0; i < d->n && r->status == SR_OK; i++) {
        const struct jpair *p = pair_at(r, d, i, how);
        struct jval key = p->key;
        if (i) sr_jinja_add(r, b, &how->item_separator);
        new_line(r, b, how, level + 1);
        if (key.kind != JINJA_STRING) key = sr_jinja_str(r, &key);
        if (r->status == SR_OK) add_json_string(r, b, &key);
        sr_jinja_add(r, b, &how->key_separator);
        add_json(r, b, &p->value, how, level + 1);
    }
    if (d->n) new_line(r, b, how, level);
    sr_jinja_add_text(r, b, "}");
}

static void add_json(struct jrun *r, struct jbuf *b, const struct jval *v, const struct jdump *how,
                     int64_t level)
{
    if (!sr_jinja_enter(r)) return;
    sr_jinja_step(r, 1);
    switch (v->kind) {
    case JINJA_NONE: sr_jinja_add_text(r, b, "null"); break;
    case JINJA_BOOL: sr_jinja_add_text(r, b, v->u.i ? "true" : "false"); break;
    case JINJA_INT:
    case JINJA_FLOAT: add_number(r, b, v, 1); break;
    case JINJA_STRING: add_json_string(r, b, v); break;
    case JINJA_LIST:
    case JINJA_TUPLE: add_json_list(r, b, v, how, level); break;
    case JINJA_DICT: add_json_dict(r, b, v, how, level); break;
    default: sr_jinja_fail(r, SR_ERR_USAGE, "tojson: %s is not JSON", sr_jinja_kind_name(v)); break;
    }
    sr_jinja_leave(r);
}

struct jval sr_jinja_dump(struct jrun *r, const struct jval *v, const struct jdump *how)
{
    struct jbuf b = {0};

    add_json(r, &b, v, how, 0);
    return sr_jinja_built(r, &b);
}

/* ---- from JSON ---- */

/* Bytes that outlive the JSON document. */
static struct jval own_string(struct jrun *r, const char *p, size_t n)
{
    char *copy = sr_jinja_take(r, n + 1);

    if (!copy) return sr_jinja_undefined("", 0);
    memcpy(copy, p, n);
    return sr_jinja_string(copy, n, 1);
}

static struct jval from_json(struct jrun *r, json_t *j)
{
    struct jval v = sr_jinja_none();
    json_t *item;
    const char *key;
    size_t i;

    if (!sr_jinja_enter(r)) return sr_jinja_undefined("", 0);
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        v = sr_jinja_dict(r, JINJA_DICT, json_object_size(j));
        json_object_foreach(j, key, item)
        {
            if (r->status != SR_OK) break;
            struct jval k = own_string(r, key, strlen(key)),
                        x = from_json(r, item); /* a JSON object's keys differ */
            if (r->status == SR_OK) v.u.dict->v[v.u.dict->n++] = (struct jpair){k, x};
        }
        break;
    case JSON_ARRAY:
        v = sr_jinja_list(r, JINJA_LIST, json_array_size(j));
        json_array_foreach(j, i, item) sr_jinja_push(r, &v, from_json(r, item));
        break;
    case JSON_STRING: v = own_string(r, json_string_value(j), json_string_length(j)); break;
    case JSON_INTEGER: v = sr_jinja_int(json_integer_value(j)); break;
    case JSON_REAL: v = sr_jinja_float(json_real_value(j)); break;
    case JSON_TRUE: v = sr_jinja_bool(1); break;
    case JSON_FALSE: v = sr_jinja_bool(0); break;
    case JSON_NULL: break;
    }
    sr_jinja_leave(r);
    return v;
}

struct jval sr_jinja_load(struct jrun *r, const char *what, const char *json, size_t bytes)
{
    json_error_t error;
    json_t *j;
    struct jval v;

    if (r->status != SR_OK) return sr_jinja_undefined("", 0);
    j = json_loadb(json, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (!j) {
        char shown[120];
        r->status = sr_fail(r->err, SR_ERR_USAGE, "%s: not JSON at byte %d: %s", what, error.position,
                            sr_escape(shown, sizeof shown, error.text, strlen(error.text)));
        return sr_jinja_undefined("", 0);
    }
    v = from_json(r, j);
    json_decref(j);
    return v;
}
