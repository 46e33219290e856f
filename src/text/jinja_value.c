/* SPDX-License-Identifier: Apache-2.0
 *
 * The arena of a run, and what values are and how they compare, as Python has it.
 */
#include "text/jinja_value.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "text/utf8.h"

/* ---- the run ---- */

struct jinja_chunk {
    struct jinja_chunk *next;
    size_t used, bytes;
    _Alignas(16) unsigned char data[];
};

void sr_jinja_run_free(struct jrun *r)
{
    while (r->chunks) {
        struct jinja_chunk *next = r->chunks->next;
        sr_free(r->chunks);
        r->chunks = next;
    }
}

struct jval sr_jinja_fail(struct jrun *r, sr_status status, const char *fmt, ...)
{
    char text[200];
    va_list args;

    if (r->status == SR_OK) {
        va_start(args, fmt);
        vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        r->status = sr_fail(r->err, status, "chat template, line %d: %s", (int)r->line, text);
    }
    return sr_jinja_undefined("", 0);
}

int sr_jinja_step(struct jrun *r, uint64_t n)
{
    if (r->status != SR_OK) return 0;
    r->steps += n;
    if (r->steps <= r->n_steps) return 1;
    sr_jinja_fail(r, SR_ERR_FORMAT, "more than %llu steps, the limit", (unsigned long long)r->n_steps);
    return 0;
}

static struct jinja_chunk *add_chunk(struct jrun *r, size_t bytes)
{
    size_t room = bytes > 65536 ? bytes : 65536;
    struct jinja_chunk *c = sr_alloc(sizeof *c + room);

    if (!c) {
        r->status = sr_fail_memory(r->err, room, "chat template");
        return NULL;
    }
    *c = (struct jinja_chunk){.next = r->chunks, .bytes = room};
    r->chunks = c;
    return c;
}

void *sr_jinja_take(struct jrun *r, size_t bytes)
{
    struct jinja_chunk *c = r->chunks;
    void *p;

    if (r->status != SR_OK) return NULL;
    if (bytes > r->limit || r->limit - bytes < r->used) {
        sr_jinja_fail(r, SR_ERR_FORMAT, "more than %zu MiB of memory, the limit", r->limit >> 20);
        return NULL;
    }
    bytes = (bytes + 15) & ~(size_t)15;
    if (!c || c->bytes - c->used < bytes) c = add_chunk(r, bytes);
    if (!c || !sr_jinja_step(r, bytes / 128)) return NULL;
    p = c->data + c->used;
    c->used += bytes;
    r->used += bytes;
    memset(p, 0, bytes);
    return p;
}

int sr_jinja_enter(struct jrun *r)
{
    if (r->status != SR_OK) return 0;
    if (r->depth == JINJA_MAX_DEPTH) {
        sr_jinja_fail(r, SR_ERR_FORMAT, "nested deeper than %d levels, the limit", JINJA_MAX_DEPTH);
        return 0;
    }
    r->depth++;
    return 1;
}

void sr_jinja_leave(struct jrun *r)
{
    r->depth--;
}

/* ---- making values ---- */

struct jval sr_jinja_undefined(const char *name, size_t n)
{
    return (struct jval){.kind = JINJA_UNDEFINED, .u.s = {name, n, NULL}};
}
struct jval sr_jinja_none(void)
{
    return (struct jval){.kind = JINJA_NONE};
}
struct jval sr_jinja_bool(int b)
{
    return (struct jval){.kind = JINJA_BOOL, .u.i = b != 0};
}
struct jval sr_jinja_int(int64_t i)
{
    return (struct jval){.kind = JINJA_INT, .u.i = i};
}
struct jval sr_jinja_float(double f)
{
    return (struct jval){.kind = JINJA_FLOAT, .u.f = f};
}
struct jval sr_jinja_string(const char *p, size_t n, int user)
{
    return (struct jval){.kind = JINJA_STRING, .user = user, .u.s = {n ? p : "", n, NULL}};
}
struct jval sr_jinja_text(const char *s)
{
    return sr_jinja_string(s, strlen(s), 0);
}

struct jval sr_jinja_list(struct jrun *r, enum jinja_kind kind, size_t room)
{
    struct jval v = {.kind = kind, .u.list = sr_jinja_take(r, sizeof(struct jlist))};

    if (!v.u.list || room > SIZE_MAX / 64) return sr_jinja_undefined("", 0);
    v.u.list->cap = room;
    v.u.list->v = room ? sr_jinja_take(r, room * sizeof *v.u.list->v) : NULL;
    return r->status == SR_OK ? v : sr_jinja_undefined("", 0);
}

/* v, which has room for n items, or a copy of twice the room; NULL: the run has failed. */
static void *with_room(struct jrun *r, void *v, size_t n, size_t *cap, size_t item)
{
    if (n < *cap) return v;
    const size_t more = *cap ? 2 * *cap : 4;
    void *grown = sr_jinja_take(r, more * item);
    if (!grown) return NULL;
    if (n) memcpy(grown, v, n * item);
    *cap = more;
    return grown;
}

void sr_jinja_push(struct jrun *r, struct jval *list, struct jval v)
{
    struct jlist *l = list->u.list;
    struct jval *room = r->status == SR_OK ? with_room(r, l->v, l->n, &l->cap, sizeof v) : NULL;

    if (!room) return;
    l->v = room;
    l->v[l->n++] = v;
}

struct jval sr_jinja_dict(struct jrun *r, enum jinja_kind kind, size_t room)
{
    struct jval v = {.kind = kind, .u.dict = sr_jinja_take(r, sizeof(struct jdict))};

    if (!v.u.dict || room > SIZE_MAX / 128) return sr_jinja_undefined("", 0);
    v.u.dict->cap = room;
    v.u.dict->v = room ? sr_jinja_take(r, room * sizeof *v.u.dict->v) : NULL;
    return r->status == SR_OK ? v : sr_jinja_undefined("", 0);
}

static void append_pair(struct jrun *r, struct jdict *d, struct jpair p)
{
    struct jpair *room = with_room(r, d->v, d->n, &d->cap, sizeof p);

    if (!room) return;
    d->v = room;
    d->v[d->n++] = p;
}

void sr_jinja_put(struct jrun *r, struct jval *dict, struct jval key, struct jval value)
{
    struct jval *old;

    if (r->status != SR_OK) return;
    old = (struct jval *)sr_jinja_find(r, dict->u.dict, &key);
    if (old)
        *old = value;
    else
        append_pair(r, dict->u.dict, (struct jpair){key, value});
}

struct jval sr_jinja_bind(struct jrun *r, jinja_fn *fn, const char *name, struct jval self)
{
    struct jbound *b = sr_jinja_take(r, sizeof *b);

    if (!b) return sr_jinja_undefined("", 0);
    *b = (struct jbound){fn, self, name};
    return (struct jval){.kind = JINJA_BOUND, .u.bound = b};
}

/* ---- asking values ---- */

int sr_jinja_truth(const struct jval *v)
{
    switch (v->kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE: return 0;
    case JINJA_BOOL:
    case JINJA_INT: return v->u.i != 0;
    case JINJA_FLOAT: return v->u.f != 0;
    case JINJA_STRING: return v->u.s.n > 0;
    case JINJA_LIST:
    case JINJA_TUPLE: return v->u.list->n > 0;
    case JINJA_DICT: return v->u.dict->n > 0;
    default: return 1;
    }
}

int sr_jinja_is_list(const struct jval *v)
{
    return v->kind == JINJA_LIST || v->kind == JINJA_TUPLE;
}

int sr_jinja_is_number(const struct jval *v)
{
    return v->kind == JINJA_BOOL || v->kind == JINJA_INT || v->kind == JINJA_FLOAT;
}

int sr_jinja_is(const struct jval *v, const char *text)
{
    return v->kind == JINJA_STRING && v->u.s.n == strlen(text) && memcmp(v->u.s.p, text, v->u.s.n) == 0;
}

double sr_jinja_real(const struct jval *v)
{
    return v->kind == JINJA_FLOAT ? v->u.f : (double)v->u.i;
}

const char *sr_jinja_kind_name(const struct jval *v)
{
    static const char *const names[] = {"undefined", "none",       "a boolean", "an integer", "a number",
                                        "a string",  "a list",     "a tuple",   "a mapping",  "a namespace",
                                        "a loop",    "a function", "a macro"};
    return names[v->kind];
}

static int equal_lists(struct jrun *r, const struct jlist *a, const struct jlist *b)
{
    if (a->n != b->n) return 0;
    for (size_t i = 0; i < a->n; i++)
        if (!sr_jinja_equal(r, &a->v[i], &b->v[i])) return 0;
    return 1;
}

static int equal_dicts(struct jrun *r, const struct jdict *a, const struct jdict *b)
{
    if (a->n != b->n) return 0;
    for (size_t i = 0; i < a->n; i++) {
        const struct jval *other = sr_jinja_find(r, b, &a->v[i].key);
        if (!other || !sr_jinja_equal(r, &a->v[i].value, other)) return 0;
    }
    return 1;
}

int sr_jinja_equal(struct jrun *r, const struct jval *a, const struct jval *b)
{
    int same = 0;

    if (sr_jinja_is_number(a) && sr_jinja_is_number(b))
        return a->kind == JINJA_FLOAT || b->kind == JINJA_FLOAT ? sr_jinja_real(a) == sr_jinja_real(b)
                                                                : a->u.i == b->u.i;
    if (a->kind != b->kind) return 0;
    if (a->kind == JINJA_UNDEFINED || a->kind == JINJA_NONE) return 1;
    if (a->kind == JINJA_STRING)
        return a->u.s.n == b->u.s.n && sr_jinja_step(r, a->u.s.n / 64 + 1) &&
               memcmp(a->u.s.p, b->u.s.p, a->u.s.n) == 0;
    if (!sr_jinja_enter(r)) return 0;
    if (sr_jinja_step(r, 1)) {
        if (sr_jinja_is_list(a))
            same = equal_lists(r, a->u.list, b->u.list);
        else if (a->kind == JINJA_DICT)
            same = equal_dicts(r, a->u.dict, b->u.dict);
        else
            same = a->u.dict == b->u.dict;
    }
    sr_jinja_leave(r);
    return same;
}

static int sign(double a, double b)
{
    return (a > b) - (a < b);
}

int sr_jinja_compare(struct jrun *r, const struct jval *a, const struct jval *b)
{
    if (a->kind != JINJA_FLOAT && b->kind != JINJA_FLOAT && sr_jinja_is_number(a) && sr_jinja_is_number(b))
        return (a->u.i > b->u.i) - (a->u.i < b->u.i);
    if (sr_jinja_is_number(a) && sr_jinja_is_number(b)) return sign(sr_jinja_real(a), sr_jinja_real(b));
    if (a->kind == JINJA_STRING && b->kind == JINJA_STRING) {
        size_t n = a->u.s.n < b->u.s.n ? a->u.s.n : b->u.s.n;
        if (!sr_jinja_step(r, n / 64 + 1)) return 0;
        int c = memcmp(a->u.s.p, b->u.s.p, n);
        return c ? c : (a->u.s.n > b->u.s.n) - (a->u.s.n < b->u.s.n);
    }
    sr_jinja_fail(r, SR_ERR_USAGE, "%s and %s have no order", sr_jinja_kind_name(a), sr_jinja_kind_name(b));
    return 0;
}

const struct jval *sr_jinja_find(struct jrun *r, const struct jdict *d, const struct jval *key)
{
    if (!sr_jinja_step(r, d->n / 4 + 1)) return NULL;
    for (size_t i = 0; i < d->n; i++)
        if (sr_jinja_equal(r, &d->v[i].key, key)) return &d->v[i].value;
    return NULL;
}

const struct jval *sr_jinja_find_text(const struct jdict *d, const char *key, size_t n)
{
    for (size_t i = 0; i < d->n; i++) {
        const struct jval *k = &d->v[i].key;
        if (k->kind == JINJA_STRING && k->u.s.n == n && memcmp(k->u.s.p, key, n) == 0) return &d->v[i].value;
    }
    return NULL;
}

static const struct jlist *characters(struct jrun *r, const struct jval *v)
{
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0);
    const struct jstr *s = &v->u.s;

    for (size_t at = 0; at < s->n && r->status == SR_OK;) {
        uint32_t cp;
        int valid, n = sr_utf8_decode((const uint8_t *)s->p + at, s->n - at, &cp, &valid);
        struct jval c = sr_jinja_string(s->p + at, (size_t)n, v->user);
        if (s->from) c.u.s.from = s->from + at;
        sr_jinja_push(r, &out, c);
        at += (size_t)n;
    }
    return r->status == SR_OK ? out.u.list : NULL;
}

const struct jlist *sr_jinja_iterate(struct jrun *r, const struct jval *v)
{
    static const struct jlist nothing = {NULL, 0, 0};
    struct jval keys;

    if (r->status != SR_OK) return NULL;
    switch (v->kind) {
    case JINJA_UNDEFINED: return &nothing;
    case JINJA_LIST:
    case JINJA_TUPLE: return v->u.list;
    case JINJA_STRING: return characters(r, v);
    case JINJA_DICT:
        keys = sr_jinja_list(r, JINJA_LIST, v->u.dict->n);
        for (size_t i = 0; i < v->u.dict->n && r->status == SR_OK; i++)
            sr_jinja_push(r, &keys, v->u.dict->v[i].key);
        return r->status == SR_OK ? keys.u.list : NULL;
    default: sr_jinja_fail(r, SR_ERR_USAGE, "%s cannot be looped over", sr_jinja_kind_name(v)); return NULL;
    }
}

int64_t sr_jinja_length(struct jrun *r, const struct jval *v)
{
    int64_t n = 0;

    switch (v->kind) {
    case JINJA_UNDEFINED: return 0;
    case JINJA_LIST:
    case JINJA_TUPLE: return (int64_t)v->u.list->n;
    case JINJA_DICT: return (int64_t)v->u.dict->n;
    case JINJA_STRING:
        if (!sr_jinja_step(r, v->u.s.n / 32 + 1)) return 0;
        for (size_t at = 0; at < v->u.s.n; n++) {
            uint32_t cp;
            int valid;
            at += (size_t)sr_utf8_decode((const uint8_t *)v->u.s.p + at, v->u.s.n - at, &cp, &valid);
        }
        return n;
    default: sr_jinja_fail(r, SR_ERR_USAGE, "%s has no length", sr_jinja_kind_name(v)); return 0;
    }
}

/* ---- arguments ---- */

static int name_is(const struct jstr *s, const char *name)
{
    return s->p && s->n == strlen(name) && memcmp(s->p, name, s->n) == 0;
}

const struct jval *sr_jinja_arg(const struct jargs *a, int at, const char *name)
{
    if (at >= 0 && at < a->n_pos) return &a->v[at];
    for (int i = a->n_pos; name && i < a->n; i++)
        if (name_is(&a->name[i], name)) return &a->v[i];
    return NULL;
}

int64_t sr_jinja_arg_int(struct jrun *r, const struct jargs *a, int at, const char *name, int64_t missing)
{
    const struct jval *v = sr_jinja_arg(a, at, name);

    if (!v || v->kind == JINJA_NONE) return missing;
    if (v->kind == JINJA_INT || v->kind == JINJA_BOOL) return v->u.i;
    sr_jinja_fail(r, SR_ERR_USAGE, "argument %d is %s, want an integer", at + 1, sr_jinja_kind_name(v));
    return missing;
}

int sr_jinja_args_check(struct jrun *r, const char *what, const struct jargs *a, int least, int most,
                        const char *const *names)
{
    char shown[40];

    if (r->status != SR_OK) return 0;
    if (a->n < least || a->n_pos > most) {
        sr_jinja_fail(r, SR_ERR_USAGE, "%s: %d arguments, want %d to %d", what, a->n, least, most);
        return 0;
    }
    for (int i = a->n_pos; i < a->n; i++) {
        const char *const *k = names;
        while (k && *k && !name_is(&a->name[i], *k)) k++;
        if (k && *k) continue;
        sr_escape(shown, sizeof shown, a->name[i].p, a->name[i].n);
        sr_jinja_fail(r, SR_ERR_UNSUPPORTED, "%s: argument \"%s\" is not known", what, shown);
        return 0;
    }
    return 1;
}
