/* SPDX-License-Identifier: Apache-2.0
 *
 * Expressions to values. Each step is counted and each level of nesting too, so that time and the C stack are
 * bounded whatever the program says.
 */
#include "text/jinja_eval.h"

#include <math.h>
#include <string.h>

/* ---- scopes ---- */

struct jscope *sr_jinja_scope(struct jrun *r, struct jscope *parent)
{
    struct jscope *s = sr_jinja_take(r, sizeof *s);

    if (s) s->parent = parent;
    return s;
}

static struct jvar *find_var(const struct jscope *s, const struct jstr *name)
{
    for (struct jvar *v = s->vars; v; v = v->next)
        if (v->name.n == name->n && memcmp(v->name.p, name->p, name->n) == 0) return v;
    return NULL;
}

void sr_jinja_assign(struct jrun *r, struct jscope *s, struct jstr name, struct jval v)
{
    struct jvar *var;

    if (!s || r->status != SR_OK) return;
    var = find_var(s, &name);
    if (!var) {
        var = sr_jinja_take(r, sizeof *var);
        if (!var) return;
        *var = (struct jvar){.name = name, .next = s->vars};
        s->vars = var;
    }
    var->v = v;
}

const struct jval *sr_jinja_lookup(struct jrun *r, const struct jscope *s, const struct jstr *name)
{
    for (; s && sr_jinja_step(r, 1); s = s->parent) {
        struct jvar *v = find_var(s, name);
        if (v) return &v->v;
    }
    return NULL;
}

/* ---- attributes and items ---- */

static struct jval loop_attribute(const struct jval *x, const struct jstr *name)
{
    const struct jloop *l = x->u.loop;
    int64_t i = (int64_t)l->index, n = (int64_t)l->items->n;
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"index", i + 1}, {"index0", i}, {"revindex", n - i}, {"revindex0", n - i - 1},
                   {"length", n},    {"depth", 1},  {"depth0", 0}}; /* only recursive loops are deeper */

    for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++)
        if (strlen(numbers[k].name) == name->n && memcmp(numbers[k].name, name->p, name->n) == 0)
            return sr_jinja_int(numbers[k].value);
    if (name->n == 5 && memcmp(name->p, "first", 5) == 0) return sr_jinja_bool(i == 0);
    if (name->n == 4 && memcmp(name->p, "last", 4) == 0) return sr_jinja_bool(i == n - 1);
    if (name->n == 8 && memcmp(name->p, "previtem", 8) == 0 && i > 0) return l->items->v[i - 1];
    if (name->n == 8 && memcmp(name->p, "nextitem", 8) == 0 && i < n - 1) return l->items->v[i + 1];
    return sr_jinja_undefined(name->p, name->n);
}

static struct jval undefined_has_none(struct jrun *r, const struct jval *x, const char *what)
{
    char shown[60];

    sr_escape(shown, sizeof shown, x->u.s.p, x->u.s.n);
    return sr_jinja_fail(r, SR_ERR_USAGE, "\"%s\" is undefined and has no %s", shown, what);
}

struct jval sr_jinja_attribute(struct jrun *r, const struct jval *x, const struct jstr *name)
{
    const struct jval *v;
    struct jval method;

    if (x->kind == JINJA_UNDEFINED) return undefined_has_none(r, x, "attributes");
    method = sr_jinja_method(r, x, name);
    if (method.kind != JINJA_UNDEFINED) return method;
    if (x->kind == JINJA_LOOP) return loop_attribute(x, name);
    if (x->kind != JINJA_DICT && x->kind != JINJA_NAMESPACE) return method;
    if (!sr_jinja_step(r, x->u.dict->n / 8)) return method;
    v = sr_jinja_find_text(x->u.dict, name->p, name->n);
    return v ? *v : sr_jinja_undefined(name->p, name->n);
}

static struct jval item_at(struct jrun *r, const struct jval *x, int64_t at)
{
    int64_t n = sr_jinja_length(r, x);

    if (at < 0) at += n;
    if (at < 0 || at >= n || r->status != SR_OK) return sr_jinja_undefined("item", 4);
    if (x->kind != JINJA_STRING) return x->u.list->v[at];
    const int64_t end = at + 1;
    return sr_jinja_slice(r, x, &at, &end, 1);
}

struct jval sr_jinja_item(struct jrun *r, const struct jval *x, const struct jval *key)
{
    const struct jval *v;

    if (x->kind == JINJA_UNDEFINED) return undefined_has_none(r, x, "items");
    if (x->kind == JINJA_DICT && (v = sr_jinja_find(r, x->u.dict, key)) != NULL) return *v;
    if ((sr_jinja_is_list(x) || x->kind == JINJA_STRING) &&
        (key->kind == JINJA_INT || key->kind == JINJA_BOOL))
        return item_at(r, x, key->u.i);
    if (key->kind == JINJA_STRING) return sr_jinja_attribute(r, x, &key->u.s);
    return sr_jinja_undefined("item", 4);
}

int sr_jinja_contains(struct jrun *r, const struct jval *all, const struct jval *one)
{
    switch (all->kind) {
    case JINJA_UNDEFINED: return 0;
    case JINJA_DICT: return sr_jinja_find(r, all->u.dict, one) != NULL;
    case JINJA_STRING:
        if (one->kind == JINJA_STRING) return sr_jinja_search(r, all, 0, one) != SIZE_MAX;
        sr_jinja_fail(r, SR_ERR_USAGE, "in: %s is not looked for in a string", sr_jinja_kind_name(one));
        return 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
        for (size_t i = 0; i < all->u.list->n && sr_jinja_step(r, 1); i++)
            if (sr_jinja_equal(r, &all->u.list->v[i], one)) return 1;
        return 0;
    default: sr_jinja_fail(r, SR_ERR_USAGE, "in: %s has no items", sr_jinja_kind_name(all)); return 0;
    }
}

/* ---- arithmetic ---- */

static struct jval cannot(struct jrun *r, int op, const struct jval *a, const struct jval *b)
{
    const char *name = op == 'f' ? "//" : op == '^' ? "**" : NULL;
    char one[2] = {(char)op, 0};

    return sr_jinja_fail(r, SR_ERR_USAGE, "%s %s %s is not possible", sr_jinja_kind_name(a),
                         name ? name : one, sr_jinja_kind_name(b));
}

static struct jval real_arithmetic(struct jrun *r, int op, double a, double b)
{
    if ((op == '/' || op == 'f' || op == '%') && b == 0)
        return sr_jinja_fail(r, SR_ERR_USAGE, "division by zero");
    switch (op) {
    case '+': return sr_jinja_float(a + b);
    case '-': return sr_jinja_float(a - b);
    case '*': return sr_jinja_float(a * b);
    case '/': return sr_jinja_float(a / b);
    case 'f': return sr_jinja_float(floor(a / b));
    case '%': return sr_jinja_float(a - b * floor(a / b));
    default: return sr_jinja_float(pow(a, b));
    }
}

static struct jval int_power(struct jrun *r, int64_t a, int64_t b)
{
    int64_t v = 1;

    if (b < 0) return real_arithmetic(r, '^', (double)a, (double)b);
    if (a == 0 || a == 1) return sr_jinja_int(b == 0 ? 1 : a);
    if (a == -1) return sr_jinja_int(b % 2 ? -1 : 1);
    for (; b > 0; b--)
        if (__builtin_mul_overflow(v, a, &v))
            return sr_jinja_fail(r, SR_ERR_USAGE, "an integer beyond 64 bits");
    return sr_jinja_int(v);
}

static struct jval int_arithmetic(struct jrun *r, int op, int64_t a, int64_t b)
{
    int64_t v = 0;
    int overflow = 0;

    if ((op == 'f' || op == '%') && b == 0) return sr_jinja_fail(r, SR_ERR_USAGE, "division by zero");
    if ((op == 'f' || op == '%') && b == -1)
        return op == '%' ? sr_jinja_int(0) : int_arithmetic(r, '-', 0, a);
    switch (op) {
    case '+': overflow = __builtin_add_overflow(a, b, &v); break;
    case '-': overflow = __builtin_sub_overflow(a, b, &v); break;
    case '*': overflow = __builtin_mul_overflow(a, b, &v); break;
    case '/': return real_arithmetic(r, op, (double)a, (double)b);
    case 'f': v = a / b - (a % b != 0 && (a % b < 0) != (b < 0)); break;
    case '%': v = a % b + ((a % b != 0 && (a % b < 0) != (b < 0)) ? b : 0); break;
    default: return int_power(r, a, b);
    }
    return overflow ? sr_jinja_fail(r, SR_ERR_USAGE, "an integer beyond 64 bits") : sr_jinja_int(v);
}

static struct jval repeat(struct jrun *r, const struct jval *v, int64_t times)
{
    struct jbuf b = {0};
    struct jval out;

    if (v->kind == JINJA_STRING) {
        for (int64_t i = 0; i < times && v->u.s.n && sr_jinja_step(r, 1); i++) sr_jinja_add(r, &b, v);
        return sr_jinja_built(r, &b);
    }
    out = sr_jinja_list(r, v->kind, 0);
    for (int64_t i = 0; i < times && v->u.list->n && r->status == SR_OK; i++)
        for (size_t k = 0; k < v->u.list->n && sr_jinja_step(r, 1); k++)
            sr_jinja_push(r, &out, v->u.list->v[k]);
    return out;
}

static struct jval join_lists(struct jrun *r, const struct jval *a, const struct jval *b)
{
    struct jval out = sr_jinja_list(r, a->kind, a->u.list->n + b->u.list->n);

    for (size_t i = 0; i < a->u.list->n && sr_jinja_step(r, 1); i++) sr_jinja_push(r, &out, a->u.list->v[i]);
    for (size_t i = 0; i < b->u.list->n && sr_jinja_step(r, 1); i++) sr_jinja_push(r, &out, b->u.list->v[i]);
    return out;
}

static struct jval arithmetic(struct jrun *r, int op, const struct jval *a, const struct jval *b)
{
    if (op == '~') {
        const struct jval x = sr_jinja_str(r, a), y = sr_jinja_str(r, b);
        return r->status == SR_OK ? sr_jinja_concat(r, &x, &y) : x;
    }
    if (sr_jinja_is_number(a) && sr_jinja_is_number(b)) {
        if (a->kind == JINJA_FLOAT || b->kind == JINJA_FLOAT)
            return real_arithmetic(r, op, sr_jinja_real(a), sr_jinja_real(b));
        return int_arithmetic(r, op, a->u.i, b->u.i);
    }
    if (op == '+' && a->kind == JINJA_STRING && b->kind == JINJA_STRING) return sr_jinja_concat(r, a, b);
    if (op == '+' && sr_jinja_is_list(a) && a->kind == b->kind) return join_lists(r, a, b);
    if (op == '*' && (a->kind == JINJA_STRING || sr_jinja_is_list(a)) && b->kind == JINJA_INT)
        return repeat(r, a, b->u.i);
    if (op == '*' && (b->kind == JINJA_STRING || sr_jinja_is_list(b)) && a->kind == JINJA_INT)
        return repeat(r, b, a->u.i);
    if (a->kind == JINJA_UNDEFINED || b->kind == JINJA_UNDEFINED)
        return undefined_has_none(r, a->kind == JINJA_UNDEFINED ? a : b, "value");
    return cannot(r, op, a, b);
}

static struct jval negative(struct jrun *r, const struct jval *a, int minus)
{
    if (!sr_jinja_is_number(a)) return cannot(r, minus ? '-' : '+', a, a);
    if (!minus) return a->kind == JINJA_FLOAT ? *a : sr_jinja_int(a->u.i);
    return a->kind == JINJA_FLOAT ? sr_jinja_float(-a->u.f) : int_arithmetic(r, '-', 0, a->u.i);
}

static int holds(struct jrun *r, int op, const struct jval *a, const struct jval *b)
{
    switch (op) {
    case '=': return sr_jinja_equal(r, a, b);
    case '!': return !sr_jinja_equal(r, a, b);
    case '<': return sr_jinja_compare(r, a, b) < 0;
    case '>': return sr_jinja_compare(r, a, b) > 0;
    case 'l': return sr_jinja_compare(r, a, b) <= 0;
    case 'g': return sr_jinja_compare(r, a, b) >= 0;
    case 'i': return sr_jinja_contains(r, b, a);
    default: return !sr_jinja_contains(r, b, a);
    }
}

static struct jval compare_chain(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval a = sr_jinja_eval(r, s, n->a), b;

    for (const struct jnode *link = n->b; link && r->status == SR_OK; link = link->next, a = b) {
        b = sr_jinja_eval(r, s, link->a);
        if (r->status != SR_OK || !holds(r, link->op, &a, &b)) return sr_jinja_bool(0);
    }
    return sr_jinja_bool(1);
}

/* ---- calls ---- */

static void eval_args(struct jrun *r, struct jscope *s, const struct jnode *n, struct jargs *a)
{
    a->n = a->n_pos = 0;
    for (; n && a->n < JINJA_MAX_ARGS && r->status == SR_OK; n = n->next) {
        a->name[a->n] = n->name;
        a->v[a->n++] = sr_jinja_eval(r, s, n->a);
        if (!n->name.p) a->n_pos = a->n;
    }
}

static struct jval call(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval f = sr_jinja_eval(r, s, n->a);
    struct jargs a;

    eval_args(r, s, n->b, &a);
    if (r->status != SR_OK) return f;
    r->line = n->line;
    if (f.kind == JINJA_BOUND) return f.u.bound->fn(r, &f.u.bound->self, &a);
    if (f.kind == JINJA_MACRO) return sr_jinja_call_macro(r, f.u.macro, &a);
    if (f.kind != JINJA_UNDEFINED)
        return sr_jinja_fail(r, SR_ERR_USAGE, "%s cannot be called", sr_jinja_kind_name(&f));
    char shown[60];
    sr_escape(shown, sizeof shown, f.u.s.p, f.u.s.n);
    return sr_jinja_fail(r, SR_ERR_UNSUPPORTED, "function \"%s\" is not known", shown);
}

static struct jval filter_or_test(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval v = sr_jinja_eval(r, s, n->a);
    struct jargs a;

    eval_args(r, s, n->b, &a);
    if (r->status != SR_OK) return v;
    r->line = n->line;
    return n->fn(r, &v, &a);
}

static struct jval list_of(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval out = sr_jinja_list(r, n->kind == JN_LIST ? JINJA_LIST : JINJA_TUPLE, 0);

    for (const struct jnode *item = n->a; item && r->status == SR_OK; item = item->next)
        sr_jinja_push(r, &out, sr_jinja_eval(r, s, item));
    return out;
}

static struct jval dict_of(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval out = sr_jinja_dict(r, JINJA_DICT, 0);

    for (const struct jnode *pair = n->a; pair && r->status == SR_OK; pair = pair->next) {
        struct jval key = sr_jinja_eval(r, s, pair->a), value = sr_jinja_eval(r, s, pair->b);
        sr_jinja_put(r, &out, key, value);
    }
    return out;
}

static struct jval slice(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval x = sr_jinja_eval(r, s, n->a);
    const struct jnode *parts[3] = {n->b, n->c, n->d};
    int64_t at[3] = {0, 0, 1};
    int given[3] = {0, 0, 0};

    for (int i = 0; i < 3 && r->status == SR_OK; i++) {
        struct jval v = parts[i] ? sr_jinja_eval(r, s, parts[i]) : sr_jinja_none();
        if (v.kind == JINJA_NONE || r->status != SR_OK) continue;
        if (v.kind != JINJA_INT && v.kind != JINJA_BOOL)
            return sr_jinja_fail(r, SR_ERR_USAGE, "a slice from or to %s", sr_jinja_kind_name(&v));
        at[i] = v.u.i;
        given[i] = 1;
    }
    if (r->status != SR_OK) return x;
    return sr_jinja_slice(r, &x, given[0] ? &at[0] : NULL, given[1] ? &at[1] : NULL, at[2]);
}

static struct jval choose(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval condition = sr_jinja_eval(r, s, n->b);

    if (r->status != SR_OK) return condition;
    if (sr_jinja_truth(&condition)) return sr_jinja_eval(r, s, n->a);
    return n->c ? sr_jinja_eval(r, s, n->c) : sr_jinja_undefined("value", 5);
}

static struct jval eval(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    const struct jval *found;
    struct jval a, b;

    switch (n->kind) {
    case JN_VALUE: return n->value;
    case JN_NAME:
        found = sr_jinja_lookup(r, s, &n->name);
        return found ? *found : sr_jinja_undefined(n->name.p, n->name.n);
    case JN_LIST:
    case JN_TUPLE: return list_of(r, s, n);
    case JN_DICT: return dict_of(r, s, n);
    case JN_SLICE: return slice(r, s, n);
    case JN_CALL: return call(r, s, n);
    case JN_FILTER:
    case JN_TEST: return filter_or_test(r, s, n);
    case JN_COND: return choose(r, s, n);
    case JN_COMPARE: return compare_chain(r, s, n);
    default: break;
    }
    a = sr_jinja_eval(r, s, n->a);
    if (r->status != SR_OK) return a;
    switch (n->kind) {
    case JN_ATTR: return sr_jinja_attribute(r, &a, &n->name);
    case JN_NOT: return sr_jinja_bool(!sr_jinja_truth(&a));
    case JN_NEG: return negative(r, &a, 1);
    case JN_POS: return negative(r, &a, 0);
    case JN_AND: return sr_jinja_truth(&a) ? sr_jinja_eval(r, s, n->b) : a;
    case JN_OR: return sr_jinja_truth(&a) ? a : sr_jinja_eval(r, s, n->b);
    default: break;
    }
    b = sr_jinja_eval(r, s, n->b);
    if (r->status != SR_OK) return b;
    return n->kind == JN_ITEM ? sr_jinja_item(r, &a, &b) : arithmetic(r, n->op, &a, &b);
}

struct jval sr_jinja_eval(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jval v;

    if (!sr_jinja_enter(r)) return sr_jinja_undefined("", 0);
    sr_jinja_step(r, 1);
    r->line = n->line;
    v = eval(r, s, n);
    sr_jinja_leave(r);
    return v;
}
