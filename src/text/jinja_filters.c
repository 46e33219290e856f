/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters of single values, and the table of all filters. Those of lists are in jinja_lists.c.
 */
#include "text/jinja_filters.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

static const char *const no_names[] = {NULL};

#define CHECK(what, least, most, names)                                                                      \
    if (!sr_jinja_args_check(r, what, a, least, most, names)) return sr_jinja_undefined("", 0)

/* ---- JSON ---- */

/* Other characters stand in strings only: as \u escapes, two for those beyond 16 bits. */
static struct jval only_ascii(struct jrun *r, const struct jval *v)
{
    struct jbuf b = {0};
    char text[16];

    for (size_t at = 0; at < v->u.s.n && sr_jinja_step(r, 1);) {
        uint32_t c;
        int valid, n = sr_utf8_decode((const uint8_t *)v->u.s.p + at, v->u.s.n - at, &c, &valid);
        struct jval one = sr_jinja_part(v, at, at + (size_t)n);
        if (c > 0xFFFF)
            snprintf(text, sizeof text, "\\u%04x\\u%04x", (unsigned)(0xD7C0 + (c >> 10)),
                     (unsigned)(0xDC00 + (c & 0x3FF)));
        else
            snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
        if (c < 0x80)
            sr_jinja_add(r, &b, &one);
        else
            sr_jinja_add_bytes(r, &b, text, strlen(text), one.u.s.from ? one.u.s.from[0] : one.user);
        at += (size_t)n;
    }
    return sr_jinja_built(r, &b);
}

static struct jval f_tojson(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys", NULL};
    CHECK("tojson", 0, 4, names);
    const struct jval *ascii = sr_jinja_arg(a, 0, "ensure_ascii"), *indent = sr_jinja_arg(a, 1, "indent"),
                      *separators = sr_jinja_arg(a, 2, "separators"), *sort = sr_jinja_arg(a, 3, "sort_keys");
    if (a->n_pos == 1 && a->n == 1 && ascii->kind == JINJA_INT) { /* Jinja's own filter has indent first */
        indent = ascii;
        ascii = NULL;
    }
    struct jdump how = {.indent = -1,
                        .sort_keys = sort && sr_jinja_truth(sort),
                        .item_separator = sr_jinja_text(", "),
                        .key_separator = sr_jinja_text(": ")};
    if (indent && indent->kind == JINJA_INT && indent->u.i >= 0 && indent->u.i <= 64) {
        how.indent = indent->u.i;
        how.item_separator = sr_jinja_text(",");
    } else if (indent && indent->kind != JINJA_NONE) {
        return sr_jinja_fail(r, SR_ERR_USAGE, "tojson: indent must be an integer, 0 to 64");
    }
    if (separators && separators->kind != JINJA_NONE) {
        if (!sr_jinja_is_list(separators) || separators->u.list->n != 2 ||
            separators->u.list->v[0].kind != JINJA_STRING || separators->u.list->v[1].kind != JINJA_STRING)
            return sr_jinja_fail(r, SR_ERR_USAGE, "tojson: separators must be two strings");
        how.item_separator = separators->u.list->v[0];
        how.key_separator = separators->u.list->v[1];
    }
    struct jval out = sr_jinja_dump(r, v, &how);
    return ascii && sr_jinja_truth(ascii) && r->status == SR_OK ? only_ascii(r, &out) : out;
}

/* llama.cpp's; a text that is no JSON is refused. */
static struct jval f_from_json(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("from_json", 0, 0, no_names);
    if (v->kind != JINJA_STRING)
        return sr_jinja_fail(r, SR_ERR_USAGE, "from_json of %s", sr_jinja_kind_name(v));
    return sr_jinja_load(r, "from_json", v->u.s.p, v->u.s.n);
}

/* ---- text ---- */

static struct jval as_text(struct jrun *r, const struct jval *v)
{
    struct jval s = sr_jinja_str(r, v);
    return r->status == SR_OK ? s : sr_jinja_text("");
}

static struct jval f_string(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("string", 0, 0, no_names);
    return as_text(r, v);
}

static struct jval f_trim(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"chars", NULL};
    CHECK("trim", 0, 1, names);
    const struct jval *chars = sr_jinja_arg(a, 0, "chars");
    struct jval s = as_text(r, v);
    if (chars && chars->kind != JINJA_STRING) chars = NULL;
    return sr_jinja_strip(r, &s, chars, JINJA_STRIP_LEFT | JINJA_STRIP_RIGHT);
}

static struct jval f_upper(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("upper", 0, 0, no_names);
    struct jval s = as_text(r, v);
    return sr_jinja_case(r, &s, JINJA_UPPER);
}
static struct jval f_lower(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("lower", 0, 0, no_names);
    struct jval s = as_text(r, v);
    return sr_jinja_case(r, &s, JINJA_LOWER);
}
static struct jval f_capitalize(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("capitalize", 0, 0, no_names);
    struct jval s = as_text(r, v);
    return sr_jinja_case(r, &s, JINJA_CAPITAL);
}
/* Jinja's own: a word begins after white space, a hyphen or a bracket, not after any letterless character. */
static struct jval f_title(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    struct jbuf b = {0};
    size_t begin = 0;
    CHECK("title", 0, 0, no_names);
    struct jval s = as_text(r, v);
    for (size_t i = 0; i <= s.u.s.n && r->status == SR_OK; i++) {
        if (i < s.u.s.n && !(i > begin && strchr(" \t\n\r\f\v-({[<", s.u.s.p[i - 1]))) continue;
        struct jval word = sr_jinja_part(&s, begin, i);
        word = sr_jinja_case(r, &word, JINJA_CAPITAL);
        if (r->status == SR_OK) sr_jinja_add(r, &b, &word);
        begin = i;
    }
    return sr_jinja_built(r, &b);
}

static struct jval f_replace(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"count", NULL};
    CHECK("replace", 2, 3, names);
    struct jval s = as_text(r, v), old = as_text(r, &a->v[0]), fresh = as_text(r, &a->v[1]);
    int64_t most = sr_jinja_arg_int(r, a, 2, "count", -1);
    return r->status == SR_OK ? sr_jinja_replace(r, &s, &old, &fresh, most) : s;
}

/* HTML's five characters. */
static struct jval f_escape(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const table[] = {"&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&#39;", "\"", "&#34;"};
    CHECK("escape", 0, 0, no_names);
    struct jval s = as_text(r, v);
    for (size_t i = 0; i < 10 && r->status == SR_OK; i += 2) {
        struct jval old = sr_jinja_text(table[i]), fresh = sr_jinja_text(table[i + 1]);
        s = sr_jinja_replace(r, &s, &old, &fresh, -1);
    }
    return s;
}

static struct jval f_indent(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"width", "first", "blank", NULL};
    struct jbuf b = {0};
    CHECK("indent", 0, 3, names);
    const struct jval *width = sr_jinja_arg(a, 0, "width"), *first = sr_jinja_arg(a, 1, "first"),
                      *blank = sr_jinja_arg(a, 2, "blank");
    struct jval s = as_text(r, v), pad = sr_jinja_text("    "), eol = sr_jinja_text("\n");
    if (width && width->kind == JINJA_STRING) pad = *width;
    if (width && width->kind == JINJA_INT) {
        struct jbuf spaces = {0};
        for (int64_t i = 0; i < width->u.i && sr_jinja_step(r, 1); i++) sr_jinja_add_text(r, &spaces, " ");
        pad = sr_jinja_built(r, &spaces);
    }
    struct jval lines = sr_jinja_split(r, &s, &eol, -1, 0);
    for (size_t i = 0; r->status == SR_OK && i < lines.u.list->n; i++) {
        const struct jval *line = &lines.u.list->v[i];
        int wanted =
            i == 0 ? first && sr_jinja_truth(first) : line->u.s.n > 0 || (blank && sr_jinja_truth(blank));
        if (i) sr_jinja_add_text(r, &b, "\n");
        if (wanted) sr_jinja_add(r, &b, &pad);
        sr_jinja_add(r, &b, line);
    }
    return sr_jinja_built(r, &b);
}

/* printf style with %s, %d and %% only. */
static struct jval f_format(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    struct jbuf b = {0};
    int next = 0;
    struct jval s = as_text(r, v);
    for (size_t i = 0; i < s.u.s.n && r->status == SR_OK; i++) {
        char c = s.u.s.p[i], kind = i + 1 < s.u.s.n ? s.u.s.p[i + 1] : 0;
        struct jval part = sr_jinja_part(&s, i, i + 1);
        if (c == '%') i++;
        if (c == '%' && kind != '%') {
            if ((kind != 's' && kind != 'd') || next >= a->n_pos)
                return sr_jinja_fail(r, SR_ERR_UNSUPPORTED,
                                     "format: only %%s and %%d, each with its argument");
            part = as_text(r, &a->v[next++]);
        }
        sr_jinja_add(r, &b, &part);
    }
    return sr_jinja_built(r, &b);
}

/* ---- numbers, defaults ---- */

static struct jval f_default(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"default_value", "boolean", NULL};
    CHECK("default", 0, 2, names);
    const struct jval *value = sr_jinja_arg(a, 0, "default_value"), *boolean = sr_jinja_arg(a, 1, "boolean");
    int missing = v->kind == JINJA_UNDEFINED || (boolean && sr_jinja_truth(boolean) && !sr_jinja_truth(v));
    return !missing ? *v : value ? *value : sr_jinja_text("");
}

/* The number a string holds, spaces around it aside; 0 when it is none. */
static int read_number(const struct jval *v, double *out)
{
    char text[64], *end;
    size_t n = v->kind == JINJA_STRING ? v->u.s.n : 0;

    if (sr_jinja_is_number(v)) return *out = sr_jinja_real(v), 1;
    if (n == 0 || n >= sizeof text) return 0;
    memcpy(text, v->u.s.p, n);
    text[n] = 0;
    *out = strtod(text, &end);
    while (isspace((unsigned char)*end)) end++;
    return *end == 0 && strpbrk(text, "0123456789") != NULL && !strpbrk(text, "xXnN");
}

static struct jval f_int(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"default", NULL};
    double f;
    CHECK("int", 0, 1, names);
    if (v->kind == JINJA_INT || v->kind == JINJA_BOOL) return sr_jinja_int(v->u.i);
    if (!read_number(v, &f) || !(fabs(f) < 9e18))
        return sr_jinja_int(sr_jinja_arg_int(r, a, 0, "default", 0));
    if (v->kind == JINJA_STRING && !memchr(v->u.s.p, '.', v->u.s.n) && !memchr(v->u.s.p, 'e', v->u.s.n)) {
        char text[64] = "";
        memcpy(text, v->u.s.p, v->u.s.n);
        return sr_jinja_int(strtoll(text, NULL, 10));
    }
    return sr_jinja_int((int64_t)f);
}

static struct jval f_float(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"default", NULL};
    double f = 0;
    CHECK("float", 0, 1, names);
    const struct jval *missing = sr_jinja_arg(a, 0, "default");
    if (read_number(v, &f)) return sr_jinja_float(f);
    return sr_jinja_float(missing && sr_jinja_is_number(missing) ? sr_jinja_real(missing) : 0);
}

static struct jval f_abs(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("abs", 0, 0, no_names);
    if (v->kind == JINJA_FLOAT) return sr_jinja_float(fabs(v->u.f));
    if (!sr_jinja_is_number(v) || v->u.i == INT64_MIN)
        return sr_jinja_fail(r, SR_ERR_USAGE, "abs of %s", sr_jinja_kind_name(v));
    return sr_jinja_int(v->u.i < 0 ? -v->u.i : v->u.i);
}

static struct jval f_round(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"precision", "method", NULL};
    CHECK("round", 0, 2, names);
    const struct jval *method = sr_jinja_arg(a, 1, "method");
    int64_t digits = sr_jinja_arg_int(r, a, 0, "precision", 0);
    if (!sr_jinja_is_number(v) || digits < 0 || digits > 15)
        return sr_jinja_fail(r, SR_ERR_USAGE, "round of %s to %lld digits", sr_jinja_kind_name(v),
                             (long long)digits);
    double scale = pow(10, (double)digits), f = sr_jinja_real(v) * scale;
    if (method && sr_jinja_is(method, "ceil")) return sr_jinja_float(ceil(f) / scale);
    if (method && sr_jinja_is(method, "floor")) return sr_jinja_float(floor(f) / scale);
    return sr_jinja_float(rint(f) / scale);
}

static struct jval f_items(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    const struct jstr name = {"items", 5, NULL};
    CHECK("items", 0, 0, no_names);
    if (v->kind == JINJA_UNDEFINED) return sr_jinja_list(r, JINJA_LIST, 0);
    if (v->kind != JINJA_DICT) return sr_jinja_fail(r, SR_ERR_USAGE, "items of %s", sr_jinja_kind_name(v));
    struct jval m = sr_jinja_method(r, v, &name);
    return r->status == SR_OK ? m.u.bound->fn(r, v, a) : m;
}

static struct jval f_length(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("length", 0, 0, no_names);
    return sr_jinja_int(sr_jinja_length(r, v));
}

static struct jval f_attr(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("attr", 1, 1, no_names);
    if (a->v[0].kind != JINJA_STRING) return sr_jinja_fail(r, SR_ERR_USAGE, "attr wants a name");
    if (a->v[0].u.s.n > 1 && memcmp(a->v[0].u.s.p, "__", 2) == 0)
        return sr_jinja_fail(r, SR_ERR_UNSUPPORTED, "attr: the attribute is not available");
    return v->kind == JINJA_NAMESPACE || v->kind == JINJA_LOOP ? sr_jinja_attribute(r, v, &a->v[0].u.s)
                                                               : sr_jinja_method(r, v, &a->v[0].u.s);
}

/* ---- the table ---- */

jinja_fn *sr_jinja_filter_find(const struct jstr *name)
{
    static const struct {
        const char *name;
        jinja_fn *fn;
    } table[] = {{"tojson", f_tojson},
                 {"from_json", f_from_json},
                 {"string", f_string},
                 {"trim", f_trim},
                 {"upper", f_upper},
                 {"lower", f_lower},
                 {"capitalize", f_capitalize},
                 {"title", f_title},
                 {"replace", f_replace},
                 {"escape", f_escape},
                 {"e", f_escape},
                 {"safe", f_string},
                 {"indent", f_indent},
                 {"format", f_format},
                 {"default", f_default},
                 {"d", f_default},
                 {"int", f_int},
                 {"float", f_float},
                 {"abs", f_abs},
                 {"round", f_round},
                 {"items", f_items},
                 {"length", f_length},
                 {"count", f_length},
                 {"attr", f_attr},
                 {"list", sr_jinja_f_list},
                 {"first", sr_jinja_f_first},
                 {"last", sr_jinja_f_last},
                 {"join", sr_jinja_f_join},
                 {"reverse", sr_jinja_f_reverse},
                 {"sort", sr_jinja_f_sort},
                 {"dictsort", sr_jinja_f_dictsort},
                 {"unique", sr_jinja_f_unique},
                 {"sum", sr_jinja_f_sum},
                 {"min", sr_jinja_f_min},
                 {"max", sr_jinja_f_max},
                 {"map", sr_jinja_f_map},
                 {"select", sr_jinja_f_select},
                 {"reject", sr_jinja_f_reject},
                 {"selectattr", sr_jinja_f_selectattr},
                 {"rejectattr", sr_jinja_f_rejectattr},
                 {"batch", sr_jinja_f_batch}};

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strlen(table[i].name) == name->n && memcmp(table[i].name, name->p, name->n) == 0)
            return table[i].fn;
    return NULL;
}
