/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters of lists. Sorting is stable and, as Jinja has it, blind to case unless asked.
 */
#include "text/jinja_filters.h"

#include <string.h>

static const char *const no_names[] = {NULL};

#define CHECK(what, least, most, names)                                                                      \
    if (!sr_jinja_args_check(r, what, a, least, most, names)) return sr_jinja_undefined("", 0)

static struct jval copy_of(struct jrun *r, const struct jval *v)
{
    const struct jlist *l = sr_jinja_iterate(r, v);
    struct jval out = sr_jinja_list(r, JINJA_LIST, l ? l->n : 0);

    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) sr_jinja_push(r, &out, l->v[i]);
    return out;
}

struct jval sr_jinja_f_list(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("list", 0, 0, no_names);
    return copy_of(r, v);
}

struct jval sr_jinja_f_first(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("first", 0, 0, no_names);
    const struct jlist *l = sr_jinja_iterate(r, v);
    return l && l->n ? l->v[0] : sr_jinja_undefined("first", 5);
}

struct jval sr_jinja_f_last(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("last", 0, 0, no_names);
    const struct jlist *l = sr_jinja_iterate(r, v);
    return l && l->n ? l->v[l->n - 1] : sr_jinja_undefined("last", 4);
}

/* x.a.b for "a.b"; numbers are places in a list. */
static struct jval by_path(struct jrun *r, struct jval x, const struct jval *path)
{
    const char *p, *end;

    if (path->kind == JINJA_INT) return sr_jinja_item(r, &x, path);
    if (path->kind != JINJA_STRING)
        return sr_jinja_fail(r, SR_ERR_USAGE, "an attribute is %s, want its name", sr_jinja_kind_name(path));
    p = path->u.s.p;
    end = p + path->u.s.n;
    while (p < end && r->status == SR_OK) {
        const char *dot = memchr(p, '.', (size_t)(end - p));
        struct jval key = sr_jinja_string(p, (size_t)((dot ? dot : end) - p), 0);
        int64_t at = 0;
        size_t i = 0;
        for (; i < key.u.s.n && i < 9 && p[i] >= '0' && p[i] <= '9'; i++) at = at * 10 + (p[i] - '0');
        if (i > 0 && i == key.u.s.n) key = sr_jinja_int(at);
        x = sr_jinja_item(r, &x, &key);
        p = dot ? dot + 1 : end;
    }
    return x;
}

struct jval sr_jinja_f_join(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"d", "attribute", NULL};
    struct jbuf b = {0};
    CHECK("join", 0, 2, names);
    const struct jval *between = sr_jinja_arg(a, 0, "d"), *path = sr_jinja_arg(a, 1, "attribute");
    const struct jlist *l = sr_jinja_iterate(r, v);
    struct jval sep = between ? sr_jinja_str(r, between) : sr_jinja_text("");
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        struct jval item = path ? by_path(r, l->v[i], path) : l->v[i];
        if (r->status == SR_OK) item = sr_jinja_str(r, &item);
        if (r->status != SR_OK) break;
        if (i) sr_jinja_add(r, &b, &sep);
        sr_jinja_add(r, &b, &item);
    }
    return sr_jinja_built(r, &b);
}

struct jval sr_jinja_f_reverse(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    CHECK("reverse", 0, 0, no_names);
    if (v->kind == JINJA_STRING || sr_jinja_is_list(v)) return sr_jinja_slice(r, v, NULL, NULL, -1);
    struct jval keys = copy_of(r, v);
    return r->status == SR_OK ? sr_jinja_slice(r, &keys, NULL, NULL, -1) : keys;
}

/* ---- order ---- */

struct order {
    const struct jval *path;
    int case_sensitive, descending;
};

static struct jval sort_key(struct jrun *r, const struct jval *v, const struct order *o)
{
    struct jval key = o->path ? by_path(r, *v, o->path) : *v;

    return r->status == SR_OK && key.kind == JINJA_STRING && !o->case_sensitive
               ? sr_jinja_case(r, &key, JINJA_LOWER)
               : key;
}

/* Merges by keys; k and v are the keys and what goes with them. */
static void merge_sort(struct jrun *r, struct jval *k, struct jval *v, size_t n, const struct order *o)
{
    struct jval *tk = sr_jinja_take(r, n * sizeof *tk), *tv = sr_jinja_take(r, n * sizeof *tv);

    if (!tk || !tv) return;
    for (size_t width = 1; width < n && r->status == SR_OK; width *= 2)
        for (size_t begin = 0; begin + width < n && sr_jinja_step(r, width); begin += 2 * width) {
            size_t mid = begin + width, end = mid + width < n ? mid + width : n, i = begin, j = mid,
                   out = begin;
            while (i < mid || j < end) {
                int c = i < mid && j < end ? sr_jinja_compare(r, &k[i], &k[j]) : i < mid ? -1 : 1;
                if (o->descending && i < mid && j < end) c = -c;
                size_t from = c <= 0 && i < mid ? i++ : j++;
                tk[out] = k[from];
                tv[out++] = v[from];
            }
            memcpy(k + begin, tk + begin, (end - begin) * sizeof *k);
            memcpy(v + begin, tv + begin, (end - begin) * sizeof *v);
        }
}

static void sort_by(struct jrun *r, struct jlist *l, const struct order *o)
{
    struct jval *keys = sr_jinja_take(r, l->n * sizeof *keys);

    for (size_t i = 0; keys && i < l->n && r->status == SR_OK; i++) keys[i] = sort_key(r, &l->v[i], o);
    if (keys && r->status == SR_OK && l->n > 1) merge_sort(r, keys, l->v, l->n, o);
}

struct jval sr_jinja_f_sort(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"reverse", "case_sensitive", "attribute", NULL};
    CHECK("sort", 0, 3, names);
    const struct jval *back = sr_jinja_arg(a, 0, "reverse"),
                      *sensitive = sr_jinja_arg(a, 1, "case_sensitive");
    struct order o = {sr_jinja_arg(a, 2, "attribute"), sensitive && sr_jinja_truth(sensitive),
                      back && sr_jinja_truth(back)};
    struct jval out = copy_of(r, v);
    if (r->status == SR_OK) sort_by(r, out.u.list, &o);
    return out;
}

struct jval sr_jinja_f_dictsort(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"case_sensitive", "by", "reverse", NULL};
    const struct jstr items = {"items", 5, NULL};
    const struct jargs nothing = {.n = 0};
    CHECK("dictsort", 0, 3, names);
    const struct jval *sensitive = sr_jinja_arg(a, 0, "case_sensitive"), *by = sr_jinja_arg(a, 1, "by"),
                      *back = sr_jinja_arg(a, 2, "reverse");
    struct jval place = sr_jinja_int(by && sr_jinja_is(by, "value"));
    struct order o = {&place, sensitive && sr_jinja_truth(sensitive), back && sr_jinja_truth(back)};
    if (v->kind != JINJA_DICT) return sr_jinja_fail(r, SR_ERR_USAGE, "dictsort of %s", sr_jinja_kind_name(v));
    struct jval m = sr_jinja_method(r, v, &items);
    if (r->status != SR_OK) return m;
    struct jval out = m.u.bound->fn(r, v, &nothing);
    if (r->status == SR_OK) sort_by(r, out.u.list, &o);
    return out;
}

struct jval sr_jinja_f_unique(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"case_sensitive", "attribute", NULL};
    CHECK("unique", 0, 2, names);
    const struct jval *sensitive = sr_jinja_arg(a, 0, "case_sensitive");
    struct order o = {sr_jinja_arg(a, 1, "attribute"), sensitive && sr_jinja_truth(sensitive), 0};
    const struct jlist *l = sr_jinja_iterate(r, v);
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0), seen = sr_jinja_list(r, JINJA_LIST, 0);
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        struct jval key = sort_key(r, &l->v[i], &o);
        if (r->status != SR_OK || sr_jinja_contains(r, &seen, &key)) continue;
        sr_jinja_push(r, &seen, key);
        sr_jinja_push(r, &out, l->v[i]);
    }
    return out;
}

static struct jval extreme(struct jrun *r, const struct jval *v, const struct jargs *a, int want)
{
    static const char *const names[] = {"case_sensitive", "attribute", NULL};
    CHECK(want < 0 ? "min" : "max", 0, 2, names);
    const struct jval *sensitive = sr_jinja_arg(a, 0, "case_sensitive");
    struct order o = {sr_jinja_arg(a, 1, "attribute"), sensitive && sr_jinja_truth(sensitive), 0};
    const struct jlist *l = sr_jinja_iterate(r, v);
    struct jval best = sr_jinja_undefined("item", 4), best_key = best;
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        struct jval key = sort_key(r, &l->v[i], &o);
        int c = i && r->status == SR_OK ? sr_jinja_compare(r, &key, &best_key) : want;
        if (r->status != SR_OK || (want < 0 ? c >= 0 : c <= 0)) continue;
        best = l->v[i];
        best_key = key;
    }
    return best;
}
struct jval sr_jinja_f_min(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    return extreme(r, v, a, -1);
}
struct jval sr_jinja_f_max(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    return extreme(r, v, a, 1);
}

struct jval sr_jinja_f_sum(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"attribute", "start", NULL};
    int64_t whole = 0;
    double real = 0;
    int is_real = 0;
    CHECK("sum", 0, 2, names);
    const struct jval *path = sr_jinja_arg(a, 0, "attribute");
    const struct jlist *l = sr_jinja_iterate(r, v);
    whole = sr_jinja_arg_int(r, a, 1, "start", 0);
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        struct jval x = path ? by_path(r, l->v[i], path) : l->v[i];
        if (!sr_jinja_is_number(&x))
            return sr_jinja_fail(r, SR_ERR_USAGE, "sum: item %zu is %s", i, sr_jinja_kind_name(&x));
        if (x.kind == JINJA_FLOAT) {
            is_real = 1;
            real += x.u.f;
        } else if (__builtin_add_overflow(whole, x.u.i, &whole)) {
            return sr_jinja_fail(r, SR_ERR_USAGE, "an integer beyond 64 bits");
        }
    }
    return is_real ? sr_jinja_float(real + (double)whole) : sr_jinja_int(whole);
}

struct jval sr_jinja_f_batch(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    static const char *const names[] = {"fill_with", NULL};
    CHECK("batch", 1, 2, names);
    const struct jval *fill = sr_jinja_arg(a, 1, "fill_with");
    int64_t n = sr_jinja_arg_int(r, a, 0, NULL, 0);
    const struct jlist *l = sr_jinja_iterate(r, v);
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0), row = out;
    if (n < 1 || n > 1000000) return sr_jinja_fail(r, SR_ERR_USAGE, "batch: %lld items", (long long)n);
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        if (i % (size_t)n == 0) {
            row = sr_jinja_list(r, JINJA_LIST, 0);
            sr_jinja_push(r, &out, row);
        }
        sr_jinja_push(r, &row, l->v[i]);
    }
    while (fill && l && l->n && r->status == SR_OK && row.u.list->n < (size_t)n)
        sr_jinja_push(r, &row, *fill);
    return out;
}

/* ---- map, select and their like ---- */

/* Calls fn with the arguments from `skip` on. */
struct jval sr_jinja_apply(struct jrun *r, jinja_fn *fn, const struct jval *v, const struct jargs *a,
                           int skip)
{
    struct jargs rest = {.n = 0};

    for (int i = skip; i < a->n; i++) {
        rest.v[rest.n] = a->v[i];
        rest.name[rest.n++] = a->name[i];
    }
    rest.n_pos = a->n_pos > skip ? a->n_pos - skip : 0;
    return fn(r, v, &rest);
}

static struct jval not_known(struct jrun *r, const char *what, const struct jval *name)
{
    char shown[40];

    sr_escape(shown, sizeof shown, name->u.s.p, name->u.s.n);
    return sr_jinja_fail(r, SR_ERR_UNSUPPORTED, "%s \"%s\" is not known", what, shown);
}

struct jval sr_jinja_f_map(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    const struct jval *path = sr_jinja_arg(a, -1, "attribute"), *missing = sr_jinja_arg(a, -1, "default");
    const struct jlist *l = sr_jinja_truth(v) ? sr_jinja_iterate(r, v) : NULL; /* none gives nothing here */
    jinja_fn *fn = NULL;

    if (!path && (a->n_pos < 1 || a->v[0].kind != JINJA_STRING))
        return sr_jinja_fail(r, SR_ERR_USAGE, "map wants a filter or an attribute");
    if (!path && !(fn = sr_jinja_filter_find(&a->v[0].u.s))) return not_known(r, "filter", &a->v[0]);
    struct jval out = sr_jinja_list(r, JINJA_LIST, l ? l->n : 0);
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        struct jval x = path ? by_path(r, l->v[i], path) : sr_jinja_undefined("", 0);
        if (!path && sr_jinja_enter(r)) { /* map('map', ...) goes round through here */
            x = sr_jinja_apply(r, fn, &l->v[i], a, 1);
            sr_jinja_leave(r);
        }
        if (path && missing && x.kind == JINJA_UNDEFINED) x = *missing;
        sr_jinja_push(r, &out, x);
    }
    return out;
}

/* Items for which the test (or truth itself) gives `want`; with_path: the first argument is an attribute. */
static struct jval choose(struct jrun *r, const struct jval *v, const struct jargs *a, int with_path,
                          int want)
{
    const struct jlist *l = sr_jinja_truth(v) ? sr_jinja_iterate(r, v) : NULL;
    struct jval out = sr_jinja_list(r, JINJA_LIST, 0);
    jinja_fn *fn = NULL;

    if (with_path && a->n_pos < 1) return sr_jinja_fail(r, SR_ERR_USAGE, "selectattr wants an attribute");
    if (a->n_pos > with_path) {
        const struct jval *name = &a->v[with_path];
        if (name->kind != JINJA_STRING || !(fn = sr_jinja_test_find(&name->u.s)))
            return not_known(r, "test",
                             name->kind == JINJA_STRING
                                 ? name
                                 : &(struct jval){.kind = JINJA_STRING, .u.s = {"", 0, NULL}});
    }
    for (size_t i = 0; l && i < l->n && sr_jinja_step(r, 1); i++) {
        struct jval x = with_path ? by_path(r, l->v[i], &a->v[0]) : l->v[i];
        if (r->status == SR_OK && fn) x = sr_jinja_apply(r, fn, &x, a, with_path + 1);
        if (r->status == SR_OK && sr_jinja_truth(&x) == want) sr_jinja_push(r, &out, l->v[i]);
    }
    return out;
}

struct jval sr_jinja_f_select(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    return choose(r, v, a, 0, 1);
}
struct jval sr_jinja_f_reject(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    return choose(r, v, a, 0, 0);
}
struct jval sr_jinja_f_selectattr(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    return choose(r, v, a, 1, 1);
}
struct jval sr_jinja_f_rejectattr(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    return choose(r, v, a, 1, 0);
}
