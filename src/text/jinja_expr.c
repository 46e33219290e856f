/* SPDX-License-Identifier: Apache-2.0
 *
 * Operators. The levels of binding are Jinja's: if-else, or, and, not, comparison, + -, ~, * / // %, sign,
 * power; what binds tighter is in jinja_value_expr.c.
 */
#include "text/jinja_parse.h"

#include <string.h>

static int max_depth(const struct jnode *n, int depth)
{
    return n && n->depth > depth ? n->depth : depth;
}

/* Every way around a circle of expressions passes here or through expression(): both count levels. */
static int deeper(struct jparse *p)
{
    if (p->nesting < JINJA_MAX_NESTING) {
        p->nesting++;
        return 1;
    }
    p->r->line = p->x.line;
    sr_jinja_fail(p->r, SR_ERR_FORMAT, "nested deeper than %d levels, the limit", JINJA_MAX_NESTING);
    p->x.kind = JTOK_BAD;
    return 0;
}

static struct jnode *signed_value(struct jparse *p, int with_filters)
{
    struct jnode *n = NULL;
    int minus = sr_jinja_is_mark(p, "-");

    if (!deeper(p)) return NULL;
    if (minus || sr_jinja_is_mark(p, "+")) {
        sr_jinja_lex_next(&p->x);
        n = signed_value(p, 0);
        if (n) n = sr_jinja_node(p, minus ? JN_NEG : JN_POS, n, NULL);
    } else {
        n = sr_jinja_primary(p);
    }
    n = sr_jinja_postfix(p, n);
    if (n && with_filters) n = sr_jinja_filters_and_tests(p, n);
    p->nesting--;
    return n;
}

static struct jnode *binary(struct jparse *p, int op, struct jnode *a, struct jnode *b)
{
    struct jnode *n = a && b ? sr_jinja_node(p, JN_BINARY, a, b) : NULL;

    if (n) n->op = op;
    return n;
}

static struct jnode *power(struct jparse *p)
{
    struct jnode *a = signed_value(p, 1);

    while (a && sr_jinja_accept_mark(p, "**")) a = binary(p, '^', a, signed_value(p, 1));
    return a;
}

static struct jnode *product(struct jparse *p)
{
    struct jnode *a = power(p);

    while (a) {
        int op = sr_jinja_accept_mark(p, "*")    ? '*'
                 : sr_jinja_accept_mark(p, "//") ? 'f'
                 : sr_jinja_accept_mark(p, "/")  ? '/'
                 : sr_jinja_accept_mark(p, "%")  ? '%'
                                                 : 0;
        if (!op) break;
        a = binary(p, op, a, power(p));
    }
    return a;
}

static struct jnode *concatenation(struct jparse *p)
{
    struct jnode *a = product(p);

    while (a && sr_jinja_accept_mark(p, "~")) a = binary(p, '~', a, product(p));
    return a;
}

static struct jnode *sum(struct jparse *p)
{
    struct jnode *a = concatenation(p);

    while (a) {
        int op = sr_jinja_accept_mark(p, "+") ? '+' : sr_jinja_accept_mark(p, "-") ? '-' : 0;
        if (!op) break;
        a = binary(p, op, a, concatenation(p));
    }
    return a;
}

static int comparison_op(struct jparse *p)
{
    static const struct {
        const char *mark;
        int op;
    } marks[] = {{"==", '='}, {"!=", '!'}, {"<=", 'l'}, {">=", 'g'}, {"<", '<'}, {">", '>'}};

    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        if (sr_jinja_accept_mark(p, marks[i].mark)) return marks[i].op;
    if (sr_jinja_accept_name(p, "in")) return 'i';
    if (!sr_jinja_accept_name(p, "not")) return 0;
    if (sr_jinja_accept_name(p, "in")) return 'n';
    sr_jinja_syntax(p, "\"in\"");
    return 0;
}

static struct jnode *comparison(struct jparse *p)
{
    struct jnode *a = sum(p), *head = NULL, **tail = &head, *n;
    int depth = a ? a->depth : 0, op;

    while (a && (op = comparison_op(p)) != 0) {
        struct jnode *b = sum(p), *link = b ? sr_jinja_node(p, JN_LINK, b, NULL) : NULL;
        if (!link) return NULL;
        link->op = op;
        depth = max_depth(link, depth);
        *tail = link;
        tail = &link->next;
    }
    if (!head || p->x.kind == JTOK_BAD) return p->x.kind == JTOK_BAD ? NULL : a;
    n = sr_jinja_node_over(p, JN_COMPARE, a, depth);
    if (n) n->b = head;
    return n;
}

static struct jnode *negation(struct jparse *p)
{
    int n_not = 0;
    struct jnode *a;

    while (sr_jinja_accept_name(p, "not")) n_not++;
    a = comparison(p);
    if (n_not == 0 || !a) return a;
    a = sr_jinja_node(p, JN_NOT, a, NULL); /* an even number of them still gives a boolean */
    return a && n_not % 2 == 0 ? sr_jinja_node(p, JN_NOT, a, NULL) : a;
}

static struct jnode *conjunction(struct jparse *p)
{
    struct jnode *a = negation(p);

    while (a && sr_jinja_accept_name(p, "and")) {
        struct jnode *b = negation(p);
        a = b ? sr_jinja_node(p, JN_AND, a, b) : NULL;
    }
    return a;
}

struct jnode *sr_jinja_expression_plain(struct jparse *p)
{
    struct jnode *a;

    if (!deeper(p)) return NULL;
    a = conjunction(p);
    while (a && sr_jinja_accept_name(p, "or")) {
        struct jnode *b = conjunction(p);
        a = b ? sr_jinja_node(p, JN_OR, a, b) : NULL;
    }
    p->nesting--;
    return a;
}

struct jnode *sr_jinja_expression(struct jparse *p)
{
    struct jnode *a = sr_jinja_expression_plain(p), *n;

    while (a && sr_jinja_accept_name(p, "if")) {
        struct jnode *condition = sr_jinja_expression_plain(p), *other = NULL;
        if (!condition) return NULL;
        if (sr_jinja_accept_name(p, "else")) {
            if (!deeper(p)) return NULL;
            other = sr_jinja_expression(p);
            p->nesting--;
            if (!other) return NULL;
        }
        n = sr_jinja_node_over(p, JN_COND, a, max_depth(a, max_depth(condition, max_depth(other, 0))));
        if (!n) return NULL;
        n->b = condition;
        n->c = other;
        a = n;
    }
    return a;
}

/* "a, b" without brackets is a tuple; a comma at the end makes one of a single value. */
struct jnode *sr_jinja_expressions(struct jparse *p, int plain)
{
    struct jnode *first = plain ? sr_jinja_expression_plain(p) : sr_jinja_expression(p), **tail;
    int depth;

    if (!first || !sr_jinja_is_mark(p, ",")) return first;
    depth = first->depth;
    tail = &first->next;
    while (sr_jinja_accept_mark(p, ",")) {
        struct jnode *e;
        if (p->x.kind == JTOK_BLOCK_END || p->x.kind == JTOK_VAR_END) break;
        e = plain ? sr_jinja_expression_plain(p) : sr_jinja_expression(p);
        if (!e) return NULL;
        depth = max_depth(e, depth);
        *tail = e;
        tail = &e->next;
    }
    return sr_jinja_node_over(p, JN_TUPLE, first, depth);
}

static struct jnode *target_name(struct jparse *p)
{
    struct jnode *n;

    if (p->x.kind != JTOK_NAME || sr_jinja_is_name(p, "in")) return sr_jinja_syntax(p, "a name to set");
    n = sr_jinja_node(p, JN_NAME, NULL, NULL);
    if (n) n->name = p->x.s;
    sr_jinja_lex_next(&p->x);
    return n;
}

struct jnode *sr_jinja_target(struct jparse *p)
{
    int bracket = sr_jinja_accept_mark(p, "(");
    struct jnode *first = target_name(p), **tail;

    if (first && !bracket && sr_jinja_accept_mark(p, ".")) {
        struct jnode *n = sr_jinja_node(p, JN_ATTR, first, NULL);
        if (n && p->x.kind == JTOK_NAME) {
            n->name = p->x.s;
            sr_jinja_lex_next(&p->x);
            return n;
        }
        return sr_jinja_syntax(p, "the name of an attribute");
    }
    if (!first || !sr_jinja_is_mark(p, ",")) return bracket && !sr_jinja_expect(p, ")") ? NULL : first;
    tail = &first->next;
    while (sr_jinja_accept_mark(p, ",")) {
        struct jnode *n;
        if (p->x.kind != JTOK_NAME || sr_jinja_is_name(p, "in")) break;
        n = target_name(p);
        if (!n) return NULL;
        *tail = n;
        tail = &n->next;
    }
    if (bracket && !sr_jinja_expect(p, ")")) return NULL;
    return sr_jinja_node_over(p, JN_TUPLE, first, 1);
}
