/* SPDX-License-Identifier: Apache-2.0
 *
 * Values in expressions, and what follows one: attribute, item, call, filter, test.
 */
#include "text/jinja_parse.h"

#include <string.h>

struct jnode *sr_jinja_syntax(struct jparse *p, const char *want)
{
    char shown[40];

    p->r->line = p->x.line;
    if (p->x.kind == JTOK_BAD) return NULL;
    if (p->x.kind == JTOK_END)
        sr_jinja_fail(p->r, SR_ERR_FORMAT, "the template ends, want %s", want);
    else if (p->x.kind == JTOK_NAME || p->x.kind == JTOK_MARK || p->x.kind == JTOK_STRING)
        sr_jinja_fail(p->r, SR_ERR_FORMAT, "\"%s\" is not %s",
                      sr_escape(shown, sizeof shown, p->x.s.p, p->x.s.n), want);
    else
        sr_jinja_fail(p->r, SR_ERR_FORMAT, "want %s", want);
    p->x.kind = JTOK_BAD;
    return NULL;
}

int sr_jinja_expect(struct jparse *p, const char *mark)
{
    char want[16] = "\"";

    if (sr_jinja_lex_is(&p->x, JTOK_MARK, mark)) {
        sr_jinja_lex_next(&p->x);
        return 1;
    }
    strcat(strcat(want, mark), "\"");
    sr_jinja_syntax(p, want);
    return 0;
}

static int max_depth(const struct jnode *n, int depth)
{
    return n && n->depth > depth ? n->depth : depth;
}

/* The tree's depth bounds the recursion of whoever walks it. */
struct jnode *sr_jinja_node(struct jparse *p, enum jnode_kind kind, struct jnode *a, struct jnode *b)
{
    struct jnode *n = sr_jinja_take(p->r, sizeof *n);

    if (!n) return NULL;
    *n = (struct jnode){.kind = kind, .a = a, .b = b, .line = p->x.line};
    n->depth = 1 + max_depth(a, max_depth(b, 0));
    if (n->depth <= JINJA_MAX_NESTING) return n;
    p->r->line = p->x.line;
    sr_jinja_fail(p->r, SR_ERR_FORMAT, "nested deeper than %d levels, the limit", JINJA_MAX_NESTING);
    p->x.kind = JTOK_BAD;
    return NULL;
}

/* ---- values ---- */

static struct jnode *constant(struct jparse *p, struct jval v)
{
    struct jnode *n = sr_jinja_node(p, JN_VALUE, NULL, NULL);

    if (n) n->value = v;
    sr_jinja_lex_next(&p->x);
    return n;
}

static struct jnode *name_or_constant(struct jparse *p)
{
    static const char *const reserved[] = {"if", "else", "for", "in", "is", "and", "or", "not"};
    struct jnode *n;

    if (sr_jinja_is_name(p, "true") || sr_jinja_is_name(p, "True")) return constant(p, sr_jinja_bool(1));
    if (sr_jinja_is_name(p, "false") || sr_jinja_is_name(p, "False")) return constant(p, sr_jinja_bool(0));
    if (sr_jinja_is_name(p, "none") || sr_jinja_is_name(p, "None")) return constant(p, sr_jinja_none());
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++)
        if (sr_jinja_is_name(p, reserved[i])) return sr_jinja_syntax(p, "a value");
    n = sr_jinja_node(p, JN_NAME, NULL, NULL);
    if (n) n->name = p->x.s;
    sr_jinja_lex_next(&p->x);
    return n;
}

/* Neighbouring strings are one. */
static struct jnode *string_constant(struct jparse *p)
{
    struct jstr s = p->x.s;
    struct jnode *n = constant(p, sr_jinja_string(s.p, s.n, 0));

    while (n && p->x.kind == JTOK_STRING) {
        char *joined = sr_jinja_take(p->r, s.n + p->x.s.n);
        if (!joined) return NULL;
        memcpy(joined, s.p, s.n);
        memcpy(joined + s.n, p->x.s.p, p->x.s.n);
        s = (struct jstr){joined, s.n + p->x.s.n, NULL};
        n->value = sr_jinja_string(s.p, s.n, 0);
        sr_jinja_lex_next(&p->x);
    }
    return n;
}

/* Items up to the closing mark, which is moved past. */
static struct jnode *items(struct jparse *p, const char *close, struct jnode *first, int *n_depth)
{
    struct jnode *head = first, **tail = first ? &first->next : &head;

    while (!sr_jinja_accept_mark(p, close)) {
        struct jnode *e = sr_jinja_expression(p);
        if (!e) return NULL;
        *n_depth = max_depth(e, *n_depth);
        *tail = e;
        tail = &e->next;
        if (!sr_jinja_is_mark(p, close) && !sr_jinja_expect(p, ",")) return NULL;
    }
    return head;
}

struct jnode *sr_jinja_node_over(struct jparse *p, enum jnode_kind kind, struct jnode *a, int depth)
{
    struct jnode deepest = {.depth = depth}, *n = sr_jinja_node(p, kind, &deepest, NULL);

    if (n) n->a = a;
    return n;
}

static struct jnode *brackets(struct jparse *p)
{
    int depth = 0;
    struct jnode *e;

    sr_jinja_lex_next(&p->x);
    if (sr_jinja_accept_mark(p, ")")) return sr_jinja_node(p, JN_TUPLE, NULL, NULL);
    e = sr_jinja_expression(p);
    if (!e || sr_jinja_accept_mark(p, ")")) return e;
    if (!sr_jinja_expect(p, ",")) return NULL;
    depth = e->depth;
    e = items(p, ")", e, &depth);
    return p->x.kind == JTOK_BAD ? NULL : sr_jinja_node_over(p, JN_TUPLE, e, depth);
}

static struct jnode *list(struct jparse *p)
{
    int depth = 0;
    struct jnode *first;

    sr_jinja_lex_next(&p->x);
    first = items(p, "]", NULL, &depth);
    return p->x.kind == JTOK_BAD ? NULL : sr_jinja_node_over(p, JN_LIST, first, depth);
}

static struct jnode *dict(struct jparse *p)
{
    struct jnode *head = NULL, **tail = &head;
    int depth = 0;

    sr_jinja_lex_next(&p->x);
    while (!sr_jinja_accept_mark(p, "}")) {
        struct jnode *key = sr_jinja_expression(p), *value, *pair;
        if (!key || !sr_jinja_expect(p, ":") || !(value = sr_jinja_expression(p))) return NULL;
        pair = sr_jinja_node(p, JN_ARG, key, value);
        if (!pair) return NULL;
        depth = max_depth(pair, depth);
        *tail = pair;
        tail = &pair->next;
        if (!sr_jinja_is_mark(p, "}") && !sr_jinja_expect(p, ",")) return NULL;
    }
    return sr_jinja_node_over(p, JN_DICT, head, depth);
}

struct jnode *sr_jinja_primary(struct jparse *p)
{
    switch (p->x.kind) {
    case JTOK_NAME: return name_or_constant(p);
    case JTOK_STRING: return string_constant(p);
    case JTOK_INT: return constant(p, sr_jinja_int(p->x.i));
    case JTOK_FLOAT: return constant(p, sr_jinja_float(p->x.f));
    default: break;
    }
    if (sr_jinja_is_mark(p, "(")) return brackets(p);
    if (sr_jinja_is_mark(p, "[")) return list(p);
    if (sr_jinja_is_mark(p, "{")) return dict(p);
    return sr_jinja_syntax(p, "a value");
}

/* ---- what follows a value ---- */

/* One argument at the current token; *named gets whether it has a name. */
static struct jnode *argument(struct jparse *p, int *named)
{
    struct jnode *e, *n;

    if (sr_jinja_is_mark(p, "*") || sr_jinja_is_mark(p, "**")) {
        p->r->line = p->x.line;
        sr_jinja_fail(p->r, SR_ERR_UNSUPPORTED, "* and ** arguments are not supported");
        p->x.kind = JTOK_BAD;
        return NULL;
    }
    e = sr_jinja_expression(p);
    if (!e) return NULL;
    *named = e->kind == JN_NAME && sr_jinja_accept_mark(p, "=");
    n = sr_jinja_node(p, JN_ARG, *named ? sr_jinja_expression(p) : e, NULL);
    if (n && *named) n->name = e->name;
    return n && n->a ? n : NULL;
}

/* Arguments behind "(", as a list of JN_ARG; *depth grows to theirs. */
static struct jnode *arguments(struct jparse *p, int *depth)
{
    struct jnode *head = NULL, **tail = &head;
    int count = 0, seen_name = 0;

    while (!sr_jinja_accept_mark(p, ")")) {
        int named = 0;
        struct jnode *n = argument(p, &named);
        if (!n) return NULL;
        if (seen_name && !named) return sr_jinja_syntax(p, "a named argument, as those before it");
        if (++count > JINJA_MAX_ARGS) return sr_jinja_syntax(p, "one of at most 12 arguments");
        seen_name |= named;
        *depth = max_depth(n, *depth);
        *tail = n;
        tail = &n->next;
        if (!sr_jinja_is_mark(p, ")") && !sr_jinja_expect(p, ",")) return NULL;
    }
    return head;
}

static struct jnode *call(struct jparse *p, enum jnode_kind kind, struct jnode *a, jinja_fn *fn)
{
    int depth = a->depth;
    struct jnode *args = NULL, *n;

    if (sr_jinja_accept_mark(p, "(")) args = arguments(p, &depth);
    if (p->x.kind == JTOK_BAD) return NULL;
    n = sr_jinja_node_over(p, kind, a, depth);
    if (!n) return NULL;
    n->b = args;
    n->fn = fn;
    return n;
}

/* Python's inner names lead out of a template; nothing behind them exists here. */
static struct jnode *attribute(struct jparse *p, struct jnode *a)
{
    struct jnode *n;

    if (p->x.kind == JTOK_INT) {
        struct jnode *at = constant(p, sr_jinja_int(p->x.i));
        return at ? sr_jinja_node(p, JN_ITEM, a, at) : NULL;
    }
    if (p->x.kind != JTOK_NAME) return sr_jinja_syntax(p, "the name of an attribute");
    if (p->x.s.n > 2 && memcmp(p->x.s.p, "__", 2) == 0) {
        char shown[40];
        p->r->line = p->x.line;
        sr_jinja_fail(p->r, SR_ERR_UNSUPPORTED, "attribute %s is not available",
                      sr_escape(shown, sizeof shown, p->x.s.p, p->x.s.n));
        p->x.kind = JTOK_BAD;
        return NULL;
    }
    n = sr_jinja_node(p, JN_ATTR, a, NULL);
    if (n) n->name = p->x.s;
    sr_jinja_lex_next(&p->x);
    return n;
}

static struct jnode *subscript(struct jparse *p, struct jnode *a)
{
    struct jnode *part[3] = {NULL, NULL, NULL}, *n;
    int colons = 0, depth = a->depth;

    while (!sr_jinja_is_mark(p, "]")) {
        if (sr_jinja_is_mark(p, ":")) {
            if (++colons > 2) return sr_jinja_syntax(p, "\"]\"");
            sr_jinja_lex_next(&p->x);
            continue;
        }
        if (part[colons]) return sr_jinja_syntax(p, "\"]\"");
        part[colons] = sr_jinja_expression(p);
        if (!part[colons]) return NULL;
        depth = max_depth(part[colons], depth);
    }
    if (!colons && !part[0]) return sr_jinja_syntax(p, "an index");
    sr_jinja_lex_next(&p->x);
    n = sr_jinja_node_over(p, colons ? JN_SLICE : JN_ITEM, a, depth);
    if (!n) return NULL;
    n->b = part[0];
    n->c = part[1];
    n->d = part[2];
    return n;
}

/* Attributes, items and calls. */
struct jnode *sr_jinja_postfix(struct jparse *p, struct jnode *a)
{
    while (a) {
        if (sr_jinja_accept_mark(p, "."))
            a = attribute(p, a);
        else if (sr_jinja_accept_mark(p, "["))
            a = subscript(p, a);
        else if (sr_jinja_is_mark(p, "("))
            a = call(p, JN_CALL, a, NULL);
        else
            break;
    }
    return a;
}

static void not_known(struct jparse *p, const char *what, const struct jstr *name)
{
    char shown[40];

    p->r->line = p->x.line;
    sr_jinja_fail(p->r, SR_ERR_UNSUPPORTED, "%s \"%s\" is not known", what,
                  sr_escape(shown, sizeof shown, name->p, name->n));
    p->x.kind = JTOK_BAD;
}

static struct jnode *filter(struct jparse *p, struct jnode *a)
{
    struct jstr name = p->x.s;
    jinja_fn *fn;

    if (p->x.kind != JTOK_NAME) return sr_jinja_syntax(p, "the name of a filter");
    fn = sr_jinja_filter_find(&name);
    if (!fn) {
        not_known(p, "filter", &name);
        return NULL;
    }
    sr_jinja_lex_next(&p->x);
    return call(p, JN_FILTER, a, fn);
}

/* An argument without brackets: "is divisibleby 3". */
static int begins_argument(const struct jparse *p)
{
    static const char *const others[] = {"else", "or", "and", "is", "if", "in", "not"};

    if (p->x.kind == JTOK_STRING || p->x.kind == JTOK_INT || p->x.kind == JTOK_FLOAT) return 1;
    if (sr_jinja_is_mark(p, "[") || sr_jinja_is_mark(p, "{")) return 1;
    if (p->x.kind != JTOK_NAME) return 0;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (sr_jinja_is_name(p, others[i])) return 0;
    return 1;
}

static struct jnode *test(struct jparse *p, struct jnode *a)
{
    int negated = sr_jinja_accept_name(p, "not");
    struct jstr name = p->x.s;
    struct jnode *n;
    jinja_fn *fn;

    if (p->x.kind != JTOK_NAME) return sr_jinja_syntax(p, "the name of a test");
    fn = sr_jinja_test_find(&name);
    if (!fn) {
        not_known(p, "test", &name);
        return NULL;
    }
    sr_jinja_lex_next(&p->x);
    if (begins_argument(p)) {
        struct jnode *given = sr_jinja_postfix(p, sr_jinja_primary(p)),
                     *arg = given ? sr_jinja_node(p, JN_ARG, given, NULL) : NULL;
        n = arg ? sr_jinja_node(p, JN_TEST, a, arg) : NULL;
        if (n) n->fn = fn;
    } else {
        n = call(p, JN_TEST, a, fn);
    }
    return n && negated ? sr_jinja_node(p, JN_NOT, n, NULL) : n;
}

struct jnode *sr_jinja_filters_after(struct jparse *p, struct jnode *a)
{
    while (a && sr_jinja_accept_mark(p, "|")) a = filter(p, a);
    return a;
}

struct jnode *sr_jinja_filters_and_tests(struct jparse *p, struct jnode *a)
{
    while (a) {
        if (sr_jinja_accept_mark(p, "|"))
            a = filter(p, a);
        else if (sr_jinja_accept_name(p, "is"))
            a = test(p, a);
        else if (sr_jinja_is_mark(p, "("))
            a = call(p, JN_CALL, a, NULL);
        else
            break;
    }
    return a;
}
