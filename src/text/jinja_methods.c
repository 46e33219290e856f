/* SPDX-License-Identifier: Apache-2.0
 *
 * Methods of strings, mappings and lists, and the functions that a program finds by name. Nothing changes a
 * value in place: as in the sandbox that templates are published for, append and its like do not exist.
 */
#include "text/jinja_eval.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static const char *const no_names[] = {NULL};

/* The i-th argument as a string; NULL when it is missing or none. Another kind fails. */
static const struct jval *text_arg(struct jrun *r, const struct jargs *a, int i, const char *name)
{
    const struct jval *v = sr_jinja_arg(a, i, name);

    if (!v || v->kind == JINJA_NONE || v->kind == JINJA_STRING)
        return v && v->kind == JINJA_STRING ? v : NULL;
    sr_jinja_fail(r, SR_ERR_USAGE, "argument %d is %s, want a string", i + 1, sr_jinja_kind_name(v));
    return NULL;
}

#define CHECK(what, least, most, names)                                                                      \
    if (!sr_jinja_args_check(r, what, a, least, most, names)) return sr_jinja_undefined("", 0)

/* ---- strings ---- */

static struct jval strip_sides(struct jrun *r, const struct jval *self, const struct jargs *a, int sides)
{
    CHECK("strip", 0, 1, no_names);
    const struct jval *chars = text_arg(r, a, 0, NULL);
    return r->status == SR_OK ? sr_jinja_strip(r, self, chars, sides) : *self;
}
static struct jval m_strip(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return strip_sides(r, self, a, JINJA_STRIP_LEFT | JINJA_STRIP_RIGHT);
}
static struct jval m_lstrip(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return strip_sides(r, self, a, JINJA_STRIP_LEFT);
}
static struct jval m_rstrip(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return strip_sides(r, self, a, JINJA_STRIP_RIGHT);
}

static struct jval split_from(struct jrun *r, const struct jval *self, const struct jargs *a, int right)
{
    static const char *const names[] = {"sep", "maxsplit", NULL};
    CHECK("split", 0, 2, names);
    const struct jval *sep = text_arg(r, a, 0, "sep");
    int64_t most = sr_jinja_arg_int(r, a, 1, "maxsplit", -1);
    return r->status == SR_OK ? sr_jinja_split(r, self, sep, most, right) : *self;
}
static struct jval m_split(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return split_from(r, self, a, 0);
}
static struct jval m_rsplit(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return split_from(r, self, a, 1);
}

static struct jval m_splitlines(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    const char *p = self->u.s.p;
    size_t n = self->u.s.n, begin = 0;
    CHECK("splitlines", 0, 0, no_names);
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0);
    for (size_t i = 0; i < n && sr_jinja_step(r, 1); i++) {
        if (p[i] != '\n' && p[i] != '\r') continue;
        sr_jinja_push(r, &out, sr_jinja_part(self, begin, i));
        if (p[i] == '\r' && i + 1 < n && p[i + 1] == '\n') i++;
        begin = i + 1;
    }
    if (begin < n) sr_jinja_push(r, &out, sr_jinja_part(self, begin, n));
    return out;
}

static int has_edge(const struct jval *s, const struct jval *edge, int at_end)
{
    if (edge->kind != JINJA_STRING || edge->u.s.n > s->u.s.n) return 0;
    return memcmp(s->u.s.p + (at_end ? s->u.s.n - edge->u.s.n : 0), edge->u.s.p, edge->u.s.n) == 0;
}

static struct jval edge_of(struct jrun *r, const struct jval *self, const struct jargs *a, int at_end)
{
    CHECK(at_end ? "endswith" : "startswith", 1, 1, no_names);
    if (a->v[0].kind == JINJA_TUPLE) {
        for (size_t i = 0; i < a->v[0].u.list->n && sr_jinja_step(r, 1); i++)
            if (has_edge(self, &a->v[0].u.list->v[i], at_end)) return sr_jinja_bool(1);
        return sr_jinja_bool(0);
    }
    const struct jval *edge = text_arg(r, a, 0, NULL);
    if (!edge) return sr_jinja_fail(r, SR_ERR_USAGE, "%s wants a string", at_end ? "endswith" : "startswith");
    return sr_jinja_bool(has_edge(self, edge, at_end));
}
static struct jval m_startswith(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return edge_of(r, self, a, 0);
}
static struct jval m_endswith(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return edge_of(r, self, a, 1);
}

static struct jval without_edge(struct jrun *r, const struct jval *self, const struct jargs *a, int at_end)
{
    CHECK(at_end ? "removesuffix" : "removeprefix", 1, 1, no_names);
    const struct jval *edge = text_arg(r, a, 0, NULL);
    if (!edge || !has_edge(self, edge, at_end)) return *self;
    return at_end ? sr_jinja_part(self, 0, self->u.s.n - edge->u.s.n)
                  : sr_jinja_part(self, edge->u.s.n, self->u.s.n);
}
static struct jval m_removeprefix(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return without_edge(r, self, a, 0);
}
static struct jval m_removesuffix(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return without_edge(r, self, a, 1);
}

static struct jval m_replace(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    static const char *const names[] = {"count", NULL};
    CHECK("replace", 2, 3, names);
    const struct jval *old = text_arg(r, a, 0, NULL), *fresh = text_arg(r, a, 1, NULL);
    int64_t most = sr_jinja_arg_int(r, a, 2, "count", -1);
    if (!old || !fresh) return sr_jinja_fail(r, SR_ERR_USAGE, "replace wants two strings");
    return sr_jinja_replace(r, self, old, fresh, most);
}

static struct jval m_find(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("find", 1, 1, no_names);
    const struct jval *what = text_arg(r, a, 0, NULL);
    if (!what) return sr_jinja_fail(r, SR_ERR_USAGE, "find wants a string");
    size_t at = sr_jinja_search(r, self, 0, what);
    struct jval before = sr_jinja_part(self, 0, at == SIZE_MAX ? 0 : at);
    return sr_jinja_int(at == SIZE_MAX ? -1 : sr_jinja_length(r, &before));
}

static struct jval m_count(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    int64_t n = 0;
    CHECK("count", 1, 1, no_names);
    if (sr_jinja_is_list(self)) {
        for (size_t i = 0; i < self->u.list->n && sr_jinja_step(r, 1); i++)
            n += sr_jinja_equal(r, &self->u.list->v[i], &a->v[0]);
        return sr_jinja_int(n);
    }
    const struct jval *what = text_arg(r, a, 0, NULL);
    if (!what || what->u.s.n == 0)
        return sr_jinja_fail(r, SR_ERR_USAGE, "count wants a string that is not empty");
    for (size_t at = 0; (at = sr_jinja_search(r, self, at, what)) != SIZE_MAX && sr_jinja_step(r, 1); n++)
        at += what->u.s.n;
    return sr_jinja_int(n);
}

static struct jval m_upper(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("upper", 0, 0, no_names);
    return sr_jinja_case(r, self, JINJA_UPPER);
}
static struct jval m_lower(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("lower", 0, 0, no_names);
    return sr_jinja_case(r, self, JINJA_LOWER);
}
static struct jval m_title(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("title", 0, 0, no_names);
    return sr_jinja_case(r, self, JINJA_TITLE);
}
static struct jval m_capitalize(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("capitalize", 0, 0, no_names);
    return sr_jinja_case(r, self, JINJA_CAPITAL);
}

static struct jval m_join(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    struct jbuf b = {0};
    CHECK("join", 1, 1, no_names);
    const struct jlist *l = sr_jinja_iterate(r, &a->v[0]);
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        if (i) sr_jinja_add(r, &b, self);
        if (l->v[i].kind != JINJA_STRING)
            return sr_jinja_fail(r, SR_ERR_USAGE, "join: item %zu is %s", i, sr_jinja_kind_name(&l->v[i]));
        sr_jinja_add(r, &b, &l->v[i]);
    }
    return sr_jinja_built(r, &b);
}

/* The argument that "", "0" or "name" between braces stands for, or NULL. */
static const struct jval *field(const struct jargs *a, const char *p, size_t n, int *next)
{
    char name[32];
    int at = 0;
    size_t i = 0;

    if (n == 0) return sr_jinja_arg(a, (*next)++, NULL);
    for (; i < n && i < 3 && p[i] >= '0' && p[i] <= '9'; i++) at = at * 10 + (p[i] - '0');
    if (i == n) return sr_jinja_arg(a, at, NULL);
    if (n >= sizeof name) return NULL;
    memcpy(name, p, n);
    name[n] = 0;
    return sr_jinja_arg(a, -1, name);
}

static struct jval m_format(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    const char *p = self->u.s.p, *end = p + self->u.s.n;
    struct jbuf b = {0};
    int next = 0;

    while (p < end && sr_jinja_step(r, 1)) {
        struct jval part = sr_jinja_part(self, (size_t)(p - self->u.s.p), (size_t)(p - self->u.s.p) + 1);
        const char *close = *p == '{' ? memchr(p, '}', (size_t)(end - p)) : p;
        if ((*p == '{' || *p == '}') && p + 1 < end && p[1] == *p) {
            p++;
            close = p;
        } else if (*p == '{') {
            const struct jval *v = close ? field(a, p + 1, (size_t)(close - p) - 1, &next) : NULL;
            if (!v)
                return sr_jinja_fail(r, SR_ERR_UNSUPPORTED,
                                     "format: only {}, {0} and {name}, each with its argument");
            part = sr_jinja_str(r, v);
        }
        if (r->status == SR_OK) sr_jinja_add(r, &b, &part);
        p = close + 1;
    }
    return sr_jinja_built(r, &b);
}

static int only(const struct jval *s, int (*is)(char))
{
    for (size_t i = 0; i < s->u.s.n; i++)
        if (!is(s->u.s.p[i])) return 0;
    return s->u.s.n > 0;
}
static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}
static int is_ascii_space(char c)
{
    return c == ' ' || (c >= 9 && c <= 13);
}
static struct jval m_isdigit(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("isdigit", 0, 0, no_names);
    return sr_jinja_bool(only(self, is_digit));
}
static struct jval m_isspace(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("isspace", 0, 0, no_names);
    return sr_jinja_bool(only(self, is_ascii_space));
}

/* ---- mappings, lists, loops ---- */

enum { KEYS = 1, VALUES = 2 };
static struct jval pairs_of(struct jrun *r, const struct jval *self, const struct jargs *a, int what)
{
    CHECK("items", 0, 0, no_names);
    struct jval out = sr_jinja_list(r, JINJA_LIST, self->u.dict->n);
    for (size_t i = 0; i < self->u.dict->n && sr_jinja_step(r, 1); i++) {
        const struct jpair *p = &self->u.dict->v[i];
        struct jval one = what == KEYS ? p->key : p->value;
        if (what == (KEYS | VALUES)) {
            one = sr_jinja_list(r, JINJA_TUPLE, 2);
            sr_jinja_push(r, &one, p->key);
            sr_jinja_push(r, &one, p->value);
        }
        sr_jinja_push(r, &out, one);
    }
    return out;
}
static struct jval m_items(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return pairs_of(r, self, a, KEYS | VALUES);
}
static struct jval m_keys(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return pairs_of(r, self, a, KEYS);
}
static struct jval m_values(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    return pairs_of(r, self, a, VALUES);
}

static struct jval m_get(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("get", 1, 2, no_names);
    const struct jval *v = sr_jinja_find(r, self->u.dict, &a->v[0]);
    return v ? *v : a->n > 1 ? a->v[1] : sr_jinja_none();
}

static struct jval m_index(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("index", 1, 1, no_names);
    for (size_t i = 0; i < self->u.list->n && sr_jinja_step(r, 1); i++)
        if (sr_jinja_equal(r, &self->u.list->v[i], &a->v[0])) return sr_jinja_int((int64_t)i);
    return sr_jinja_fail(r, SR_ERR_USAGE, "index: the value is not in the list");
}

static struct jval m_cycle(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("cycle", 1, JINJA_MAX_ARGS, no_names);
    return a->v[self->u.loop->index % (size_t)a->n];
}

static struct jval m_changed(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    CHECK("changed", 1, JINJA_MAX_ARGS, no_names);
    struct jval now = sr_jinja_list(r, JINJA_TUPLE, (size_t)a->n);
    for (int i = 0; i < a->n; i++) sr_jinja_push(r, &now, a->v[i]);
    int same = r->status == SR_OK && sr_jinja_equal(r, &now, &self->u.loop->changed);
    self->u.loop->changed = now;
    return sr_jinja_bool(!same);
}

/* ---- finding them ---- */

struct method {
    const char *name;
    jinja_fn *fn;
};
static const struct method of_strings[] = {{"strip", m_strip},
                                           {"lstrip", m_lstrip},
                                           {"rstrip", m_rstrip},
                                           {"split", m_split},
                                           {"rsplit", m_rsplit},
                                           {"splitlines", m_splitlines},
                                           {"startswith", m_startswith},
                                           {"endswith", m_endswith},
                                           {"replace", m_replace},
                                           {"removeprefix", m_removeprefix},
                                           {"removesuffix", m_removesuffix},
                                           {"find", m_find},
                                           {"count", m_count},
                                           {"upper", m_upper},
                                           {"lower", m_lower},
                                           {"title", m_title},
                                           {"capitalize", m_capitalize},
                                           {"join", m_join},
                                           {"format", m_format},
                                           {"isdigit", m_isdigit},
                                           {"isspace", m_isspace},
                                           {NULL, NULL}};
static const struct method of_dicts[] = {
    {"items", m_items}, {"keys", m_keys}, {"values", m_values}, {"get", m_get}, {NULL, NULL}};
static const struct method of_lists[] = {{"index", m_index}, {"count", m_count}, {NULL, NULL}};
static const struct method of_loops[] = {{"cycle", m_cycle}, {"changed", m_changed}, {NULL, NULL}};

struct jval sr_jinja_method(struct jrun *r, const struct jval *x, const struct jstr *name)
{
    const struct method *m = x->kind == JINJA_STRING ? of_strings
                             : x->kind == JINJA_DICT ? of_dicts
                             : x->kind == JINJA_LOOP ? of_loops
                             : sr_jinja_is_list(x)   ? of_lists
                                                     : NULL;

    for (; m && m->name; m++)
        if (strlen(m->name) == name->n && memcmp(m->name, name->p, name->n) == 0)
            return sr_jinja_bind(r, m->fn, m->name, *x);
    return sr_jinja_undefined(name->p, name->n);
}

/* ---- functions ---- */

static struct jval f_range(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    enum { MOST = 100000 }; /* as the sandbox of Jinja has it */
    (void)self;
    CHECK("range", 1, 3, no_names);
    int64_t first = a->n > 1 ? sr_jinja_arg_int(r, a, 0, NULL, 0) : 0,
            last = sr_jinja_arg_int(r, a, a->n > 1, NULL, 0), step = sr_jinja_arg_int(r, a, 2, NULL, 1);
    if (r->status != SR_OK) return sr_jinja_undefined("", 0);
    if (step == 0) return sr_jinja_fail(r, SR_ERR_USAGE, "range: a step of 0");
    double count = ((double)last - (double)first) / (double)step;
    if (count > MOST) return sr_jinja_fail(r, SR_ERR_FORMAT, "range: more than %d numbers, the limit", MOST);
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0);
    for (int64_t i = first; (step > 0 ? i < last : i > last) && sr_jinja_step(r, 1);) {
        sr_jinja_push(r, &out, sr_jinja_int(i));
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    return out;
}

static struct jval mapping_of(struct jrun *r, const struct jargs *a, enum jinja_kind kind)
{
    struct jval out = sr_jinja_dict(r, kind, 0);

    if (a->n_pos > 1)
        return sr_jinja_fail(r, SR_ERR_USAGE, "namespace: %d positional arguments, want at most 1", a->n_pos);
    if (a->n_pos == 1 && a->v[0].kind != JINJA_DICT)
        return sr_jinja_fail(r, SR_ERR_USAGE, "namespace: want a mapping");
    for (size_t i = 0; a->n_pos == 1 && i < a->v[0].u.dict->n && r->status == SR_OK; i++)
        sr_jinja_put(r, &out, a->v[0].u.dict->v[i].key, a->v[0].u.dict->v[i].value);
    for (int i = a->n_pos; i < a->n; i++)
        sr_jinja_put(r, &out, sr_jinja_string(a->name[i].p, a->name[i].n, 0), a->v[i]);
    return out;
}
static struct jval f_namespace(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    (void)self;
    return mapping_of(r, a, JINJA_NAMESPACE);
}
static struct jval f_dict(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    (void)self;
    return mapping_of(r, a, JINJA_DICT);
}

static struct jval f_raise(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    char shown[160];
    (void)self;
    CHECK("raise_exception", 1, 1, no_names);
    struct jval text = sr_jinja_str(r, &a->v[0]);
    if (r->status != SR_OK) return text;
    sr_escape(shown, sizeof shown, text.u.s.p, text.u.s.n);
    return sr_jinja_fail(r, SR_ERR_USAGE, "it refuses the conversation: %s", shown);
}

static struct jval f_strftime(struct jrun *r, const struct jval *self, const struct jargs *a)
{
    char format[64], text[256];
    struct tm tm;
    time_t now = (time_t)r->now;
    (void)self;
    CHECK("strftime_now", 1, 1, no_names);
    const struct jval *given = text_arg(r, a, 0, NULL);
    if (!given || given->u.s.n >= sizeof format || !localtime_r(&now, &tm))
        return sr_jinja_fail(r, SR_ERR_USAGE, "strftime_now: want a format of at most %zu bytes",
                             sizeof format - 1);
    memcpy(format, given->u.s.p, given->u.s.n);
    format[given->u.s.n] = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored                                                                               \
    "-Wformat-nonliteral" /* strftime writes at most sizeof text whatever the format */
    size_t n = strftime(text, sizeof text, format, &tm);
#pragma GCC diagnostic pop
    char *kept = sr_jinja_take(r, n + 1);
    if (!kept) return sr_jinja_undefined("", 0);
    memcpy(kept, text, n);
    return sr_jinja_string(kept, n, 0);
}

void sr_jinja_set_globals(struct jrun *r)
{
    static const struct method functions[] = {
        {"range", f_range}, {"namespace", f_namespace}, {"dict", f_dict}, {"raise_exception", f_raise}};

    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        struct jstr name = {functions[i].name, strlen(functions[i].name), NULL};
        sr_jinja_assign(r, r->root, name,
                        sr_jinja_bind(r, functions[i].fn, functions[i].name, sr_jinja_none()));
    }
    if (r->now >= 0)
        sr_jinja_assign(r, r->root, (struct jstr){"strftime_now", 12, NULL},
                        sr_jinja_bind(r, f_strftime, "strftime_now", sr_jinja_none()));
}
