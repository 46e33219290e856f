/* SPDX-License-Identifier: Apache-2.0
 *
 * A Jinja program as a tree. Filters and tests are found by name while parsing, so an unknown one is refused
 * before anything runs. The tree is no deeper than JINJA_MAX_NESTING levels.
 */
#ifndef SR_TEXT_JINJA_PARSE_H
#define SR_TEXT_JINJA_PARSE_H

#include "text/jinja_lex.h"

enum { JINJA_MAX_NESTING = 200 };

enum jnode_kind {
    /* expressions */
    JN_VALUE,   /* value */
    JN_NAME,    /* name */
    JN_LIST,    /* a: items by next */
    JN_TUPLE,   /* the same */
    JN_DICT,    /* a: keys by next, each with its value in b */
    JN_ATTR,    /* a . name */
    JN_ITEM,    /* a [ b ] */
    JN_SLICE,   /* a [ b : c : d ], NULL where left out */
    JN_CALL,    /* a ( b: JN_ARG by next ) */
    JN_FILTER,  /* a | fn ( b ) */
    JN_TEST,    /* a is fn ( b ) */
    JN_ARG,     /* a, with name or without */
    JN_NOT,     /* a */
    JN_NEG,     /* a */
    JN_POS,     /* a */
    JN_AND,     /* a, b */
    JN_OR,      /* a, b */
    JN_COND,    /* a if b else c (NULL: undefined) */
    JN_BINARY,  /* a op b: + - * / % ~, 'f' for //, '^' for ** */
    JN_COMPARE, /* a, then b: JN_LINK by next */
    JN_LINK,    /* op a: '=' '!' '<' '>' 'l' (<=) 'g' (>=) 'i' (in) 'n' (not in) */
    /* statements, by next */
    JN_TEXT,      /* value */
    JN_OUTPUT,    /* a */
    JN_IF,        /* a: condition, b: body, c: else body (an elif is a JN_IF in it) */
    JN_FOR,       /* a: target, b: iterated, c: body, d: else body, e: filter */
    JN_SET,       /* a: target (JN_NAME, JN_TUPLE of names, JN_ATTR), b: value */
    JN_SET_BLOCK, /* a: target, c: body, b: the body's text through filters */
    JN_MACRO,     /* name; b: parameters (JN_ARG with default a or none), c: body */
    JN_WITH,      /* a: JN_SET by next, c: body */
    JN_BREAK,
    JN_CONTINUE
};

struct jnode {
    enum jnode_kind kind;
    int op, depth;
    int32_t line;
    struct jnode *a, *b, *c, *d, *e, *next;
    struct jstr name;
    struct jval value;
    jinja_fn *fn;
};

struct jparse {
    struct jlex x;
    struct jrun *r;
    int nesting; /* of the parser's own calls */
    int in_loop; /* of the loops around, for break and continue */
    int in_macro;
};

/* The body of the whole program; NULL when r->status says why, or when it is empty. */
struct jnode *sr_jinja_parse(struct jrun *r, const char *text, size_t bytes);

/* ---- between the parser's files ---- */

/* Whether the present token is this mark or name; accept moves past it then. */
int sr_jinja_is_mark(const struct jparse *p, const char *s);
int sr_jinja_is_name(const struct jparse *p, const char *s);
int sr_jinja_accept_mark(struct jparse *p, const char *s);
int sr_jinja_accept_name(struct jparse *p, const char *s);
struct jnode *sr_jinja_expression(struct jparse *p);             /* with if-else */
struct jnode *sr_jinja_expression_plain(struct jparse *p);       /* without */
struct jnode *sr_jinja_expressions(struct jparse *p, int plain); /* one, or a tuple without brackets */
struct jnode *sr_jinja_filters_after(struct jparse *p,
                                     struct jnode *a); /* "| f | g" behind a, as far as there is */
struct jnode *sr_jinja_target(struct jparse *p);       /* a name, or names with commas */
struct jnode *sr_jinja_node(struct jparse *p, enum jnode_kind kind, struct jnode *a, struct jnode *b);
struct jnode *sr_jinja_node_over(struct jparse *p, enum jnode_kind kind, struct jnode *a,
                                 int depth);                       /* over children this deep */
struct jnode *sr_jinja_primary(struct jparse *p);                  /* a value alone */
struct jnode *sr_jinja_postfix(struct jparse *p, struct jnode *a); /* with attributes, items and calls */
struct jnode *sr_jinja_filters_and_tests(struct jparse *p, struct jnode *a);
struct jnode *sr_jinja_syntax(struct jparse *p, const char *want); /* fails; NULL */
int sr_jinja_expect(struct jparse *p, const char *mark);           /* this mark, moved past; 0: failed */

/* Filters and tests by name, or NULL. */
jinja_fn *sr_jinja_filter_find(const struct jstr *name);
jinja_fn *sr_jinja_test_find(const struct jstr *name);

#endif
