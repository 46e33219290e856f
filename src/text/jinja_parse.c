/* SPDX-License-Identifier: Apache-2.0
 *
 * Statements.
 */
#include "text/jinja_parse.h"

#include <string.h>

int sr_jinja_is_mark(const struct jparse *p, const char *s)
{
    return sr_jinja_lex_is(&p->x, JTOK_MARK, s);
}

int sr_jinja_is_name(const struct jparse *p, const char *s)
{
    return sr_jinja_lex_is(&p->x, JTOK_NAME, s);
}

int sr_jinja_accept_mark(struct jparse *p, const char *s)
{
    if (!sr_jinja_is_mark(p, s)) return 0;
    sr_jinja_lex_next(&p->x);
    return 1;
}

int sr_jinja_accept_name(struct jparse *p, const char *s)
{
    if (!sr_jinja_is_name(p, s)) return 0;
    sr_jinja_lex_next(&p->x);
    return 1;
}

static struct jnode *body(struct jparse *p, const char *const *ends);

static int end_block(struct jparse *p)
{
    if (p->x.kind != JTOK_BLOCK_END) return sr_jinja_syntax(p, "\"%}\""), 0;
    sr_jinja_lex_next(&p->x);
    return 1;
}

static struct jnode *statement_node(struct jparse *p, enum jnode_kind kind, int32_t line)
{
    struct jnode *n = sr_jinja_node(p, kind, NULL, NULL);

    if (n) n->line = line;
    return n;
}

/* ---- blocks ---- */

/* At the condition of if or elif; reads up to endif, which it takes. elif is one level deeper in the tree
 * only. */
static struct jnode *if_block(struct jparse *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    struct jnode *head = NULL, **at = &head;

    for (;;) {
        struct jnode *n = statement_node(p, JN_IF, p->x.line);
        *at = n;
        if (!n || !(n->a = sr_jinja_expressions(p, 0)) || !end_block(p)) return NULL;
        n->b = body(p, ends);
        at = &n->c;
        if (sr_jinja_accept_name(p, "elif")) continue;
        if (sr_jinja_accept_name(p, "else")) {
            if (!end_block(p)) return NULL;
            n->c = body(p, last);
        }
        if (p->x.kind == JTOK_BAD || !sr_jinja_accept_name(p, "endif")) return sr_jinja_syntax(p, "endif");
        return head;
    }
}

static struct jnode *for_block(struct jparse *p)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    struct jnode *n = statement_node(p, JN_FOR, p->x.line);

    if (!n || !(n->a = sr_jinja_target(p))) return NULL;
    if (n->a->kind == JN_ATTR || !sr_jinja_accept_name(p, "in")) return sr_jinja_syntax(p, "\"in\"");
    if (!(n->b = sr_jinja_expressions(p, 1))) return NULL;
    if (sr_jinja_accept_name(p, "if") && !(n->e = sr_jinja_expression(p))) return NULL;
    if (sr_jinja_is_name(p, "recursive")) {
        p->r->line = p->x.line;
        sr_jinja_fail(p->r, SR_ERR_UNSUPPORTED, "recursive loops are not supported");
        p->x.kind = JTOK_BAD;
        return NULL;
    }
    if (!end_block(p)) return NULL;
    p->in_loop++;
    n->c = body(p, ends);
    p->in_loop--;
    if (sr_jinja_accept_name(p, "else")) {
        if (!end_block(p)) return NULL;
        n->d = body(p, last);
    }
    return sr_jinja_accept_name(p, "endfor") ? n : sr_jinja_syntax(p, "endfor");
}

static struct jnode *set_block(struct jparse *p)
{
    static const char *const ends[] = {"endset", NULL};
    struct jnode *n = statement_node(p, JN_SET, p->x.line), *text;

    if (!n || !(n->a = sr_jinja_target(p))) return NULL;
    if (sr_jinja_accept_mark(p, "=")) return (n->b = sr_jinja_expressions(p, 0)) ? n : NULL;
    n->kind = JN_SET_BLOCK;
    text = sr_jinja_node(p, JN_NAME, NULL, NULL); /* of a name that no program can write: the body's text */
    if (!text) return NULL;
    text->name = (struct jstr){"%", 1, NULL};
    n->b = sr_jinja_filters_after(p, text);
    if (!n->b || !end_block(p)) return NULL;
    n->c = body(p, ends);
    return sr_jinja_accept_name(p, "endset") ? n : sr_jinja_syntax(p, "endset");
}

static struct jnode *parameters(struct jparse *p)
{
    struct jnode *head = NULL, **tail = &head;
    int count = 0;

    if (!sr_jinja_expect(p, "(")) return NULL;
    while (!sr_jinja_accept_mark(p, ")")) {
        struct jnode *n = sr_jinja_node(p, JN_ARG, NULL, NULL);
        if (!n || p->x.kind != JTOK_NAME) return sr_jinja_syntax(p, "the name of a parameter");
        if (++count > JINJA_MAX_ARGS) return sr_jinja_syntax(p, "one of at most 12 parameters");
        n->name = p->x.s;
        sr_jinja_lex_next(&p->x);
        if (sr_jinja_accept_mark(p, "=") && !(n->a = sr_jinja_expression(p))) return NULL;
        *tail = n;
        tail = &n->next;
        if (!sr_jinja_lex_is(&p->x, JTOK_MARK, ")") && !sr_jinja_expect(p, ",")) return NULL;
    }
    return head;
}

static struct jnode *macro_block(struct jparse *p)
{
    static const char *const ends[] = {"endmacro", NULL};
    struct jnode *n = statement_node(p, JN_MACRO, p->x.line);
    int loops = p->in_loop;

    if (!n || p->x.kind != JTOK_NAME) return sr_jinja_syntax(p, "the name of a macro");
    n->name = p->x.s;
    sr_jinja_lex_next(&p->x);
    n->b = parameters(p);
    if (p->x.kind == JTOK_BAD || !end_block(p)) return NULL;
    p->in_loop = 0;
    n->c = body(p, ends);
    p->in_loop = loops;
    if (!sr_jinja_accept_name(p, "endmacro")) return sr_jinja_syntax(p, "endmacro");
    if (p->x.kind == JTOK_NAME) sr_jinja_lex_next(&p->x);
    return n;
}

static struct jnode *with_block(struct jparse *p)
{
    static const char *const ends[] = {"endwith", NULL};
    struct jnode *n = statement_node(p, JN_WITH, p->x.line), **tail = n ? &n->a : NULL;

    while (n && p->x.kind == JTOK_NAME) {
        struct jnode *set = statement_node(p, JN_SET, p->x.line);
        if (!set || !(set->a = sr_jinja_target(p)) || !sr_jinja_expect(p, "=") ||
            !(set->b = sr_jinja_expression(p)))
            return NULL;
        *tail = set;
        tail = &set->next;
        if (!sr_jinja_accept_mark(p, ",")) break;
    }
    if (!n || !end_block(p)) return NULL;
    n->c = body(p, ends);
    return sr_jinja_accept_name(p, "endwith") ? n : sr_jinja_syntax(p, "endwith");
}

/* {% generation %} marks an answer for training; its content is what counts. */
static struct jnode *generation_block(struct jparse *p)
{
    static const char *const ends[] = {"endgeneration", NULL};
    struct jnode *n = statement_node(p, JN_IF, p->x.line), *yes;

    if (!n || !end_block(p)) return NULL;
    yes = sr_jinja_node(p, JN_VALUE, NULL, NULL);
    if (!yes) return NULL;
    yes->value = sr_jinja_bool(1);
    n->a = yes;
    n->b = body(p, ends);
    return sr_jinja_accept_name(p, "endgeneration") ? n : sr_jinja_syntax(p, "endgeneration");
}

static struct jnode *loop_control(struct jparse *p, enum jnode_kind kind)
{
    if (p->in_loop == 0) return sr_jinja_syntax(p, "break or continue inside a loop");
    return statement_node(p, kind, p->x.line);
}

static struct jnode *refuse_block(struct jparse *p, const struct jstr *name)
{
    static const char *const real[] = {"extends", "include", "import",     "from",  "block", "call",
                                       "filter",  "do",      "autoescape", "trans", "debug"};
    char shown[40];

    p->r->line = p->x.line;
    sr_escape(shown, sizeof shown, name->p, name->n);
    for (size_t i = 0; i < sizeof real / sizeof real[0]; i++)
        if (strlen(real[i]) == name->n && memcmp(real[i], name->p, name->n) == 0) {
            sr_jinja_fail(p->r, SR_ERR_UNSUPPORTED, "{%% %s %%} is not supported", shown);
            p->x.kind = JTOK_BAD;
            return NULL;
        }
    sr_jinja_fail(p->r, SR_ERR_FORMAT, "statement \"%s\" is not known here", shown);
    p->x.kind = JTOK_BAD;
    return NULL;
}

static struct jnode *block(struct jparse *p)
{
    static const struct {
        const char *name;
        struct jnode *(*parse)(struct jparse *p);
    } blocks[] = {
        {"if", if_block},       {"for", for_block},   {"set", set_block},
        {"macro", macro_block}, {"with", with_block}, {"generation", generation_block},
    };
    struct jstr name = p->x.s;

    if (p->x.kind != JTOK_NAME) return sr_jinja_syntax(p, "the name of a statement");
    sr_jinja_lex_next(&p->x);
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        if (strlen(blocks[i].name) == name.n && memcmp(blocks[i].name, name.p, name.n) == 0)
            return blocks[i].parse(p);
    if (name.n == 5 && memcmp(name.p, "break", 5) == 0) return loop_control(p, JN_BREAK);
    if (name.n == 8 && memcmp(name.p, "continue", 8) == 0) return loop_control(p, JN_CONTINUE);
    return refuse_block(p, &name);
}

/* ---- lists of statements ---- */

static int is_end(const struct jparse *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (sr_jinja_is_name(p, *ends)) return 1;
    return 0;
}

static struct jnode *output(struct jparse *p)
{
    struct jnode *n = statement_node(p, JN_OUTPUT, p->x.line);

    sr_jinja_lex_next(&p->x);
    if (!n || !(n->a = sr_jinja_expressions(p, 0))) return NULL;
    if (p->x.kind != JTOK_VAR_END) return sr_jinja_syntax(p, "\"}}\"");
    sr_jinja_lex_next(&p->x);
    return n;
}

static struct jnode *text(struct jparse *p)
{
    struct jnode *n = statement_node(p, JN_TEXT, p->x.line);

    if (n) n->value = sr_jinja_string(p->x.s.p, p->x.s.n, 0);
    sr_jinja_lex_next(&p->x);
    return n;
}

/* Statements up to a block whose name is one of `ends` (NULL: up to the end of the program). That name is
 * then the current token. */
static struct jnode *statements(struct jparse *p, const char *const *ends)
{
    struct jnode *head = NULL, **tail = &head, *n;

    while (p->x.kind != JTOK_END && p->x.kind != JTOK_BAD) {
        if (p->x.kind == JTOK_BLOCK) {
            sr_jinja_lex_next(&p->x);
            if (is_end(p, ends)) return head;
            n = block(p);
            if (!n || !end_block(p)) return NULL;
        } else {
            n = p->x.kind == JTOK_VAR ? output(p) : text(p);
        }
        if (!n) return NULL;
        *tail = n;
        tail = &n->next;
    }
    if (ends && p->x.kind == JTOK_END) return sr_jinja_syntax(p, ends[1] ? ends[1] : ends[0]);
    return head;
}

static struct jnode *body(struct jparse *p, const char *const *ends)
{
    struct jnode *n;

    if (p->nesting >= JINJA_MAX_NESTING / 2) {
        p->r->line = p->x.line;
        sr_jinja_fail(p->r, SR_ERR_FORMAT, "blocks nested deeper than %d levels, the limit",
                      JINJA_MAX_NESTING / 2);
        p->x.kind = JTOK_BAD;
        return NULL;
    }
    p->nesting++;
    n = statements(p, ends);
    p->nesting--;
    return n;
}

struct jnode *sr_jinja_parse(struct jrun *r, const char *source, size_t bytes)
{
    struct jparse p = {.r = r};
    struct jnode *n;

    sr_jinja_lex_begin(&p.x, r, source, bytes);
    n = body(&p, NULL);
    if (r->status == SR_OK && p.x.kind == JTOK_BAD) sr_jinja_syntax(&p, "a template");
    return r->status == SR_OK ? n : NULL;
}
