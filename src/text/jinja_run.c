/* SPDX-License-Identifier: Apache-2.0
 *
 * Statements to text; opening and running programs.
 */
#include "text/jinja.h"

#include <string.h>

#include "base/memory.h"
#include "text/jinja_eval.h"

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static enum flow run_body(struct jrun *r, struct jscope *s, struct jbuf *out, const struct jnode *n);

/* ---- names ---- */

static void assign_tuple(struct jrun *r, struct jscope *s, const struct jnode *target, const struct jval *v)
{
    const struct jlist *items = sr_jinja_iterate(r, v);
    size_t i = 0, want = 0;

    if (!items) return;
    for (const struct jnode *n = target->a; n; n = n->next) want++;
    if (want != items->n) {
        r->line = target->line;
        sr_jinja_fail(r, SR_ERR_USAGE, "%zu values for %zu names", items->n, want);
        return;
    }
    for (const struct jnode *n = target->a; n; n = n->next) sr_jinja_assign(r, s, n->name, items->v[i++]);
}

static void assign(struct jrun *r, struct jscope *s, const struct jnode *target, struct jval v)
{
    const struct jval *space;

    if (r->status != SR_OK) return;
    if (target->kind == JN_NAME) {
        sr_jinja_assign(r, s, target->name, v);
    } else if (target->kind == JN_TUPLE) {
        assign_tuple(r, s, target, &v);
    } else {
        space = sr_jinja_lookup(r, s, &target->a->name);
        if (space && space->kind == JINJA_NAMESPACE) {
            struct jval all = *space;
            sr_jinja_put(r, &all, sr_jinja_string(target->name.p, target->name.n, 0), v);
        } else {
            r->line = target->line;
            sr_jinja_fail(r, SR_ERR_USAGE, "only attributes of a namespace can be set");
        }
    }
}

static void set_block(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jscope *inner = sr_jinja_scope(r, s);
    struct jbuf text = {0};

    if (!inner) return;
    run_body(r, inner, &text, n->c);
    sr_jinja_assign(r, inner, (struct jstr){"%", 1, NULL}, sr_jinja_built(r, &text));
    if (r->status == SR_OK) assign(r, s, n->a, sr_jinja_eval(r, inner, n->b));
}

/* ---- loops ---- */

/* The items that pass the loop's own condition. */
static const struct jlist *filtered(struct jrun *r, struct jscope *s, const struct jnode *n,
                                    const struct jlist *all)
{
    struct jval out;

    if (!n->e) return all;
    out = sr_jinja_list(r, JINJA_LIST, 0);
    for (size_t i = 0; i < all->n && r->status == SR_OK; i++) {
        struct jscope *inner = sr_jinja_scope(r, s);
        if (!inner) break;
        assign(r, inner, n->a, all->v[i]);
        struct jval yes = r->status == SR_OK ? sr_jinja_eval(r, inner, n->e) : sr_jinja_none();
        if (r->status == SR_OK && sr_jinja_truth(&yes)) sr_jinja_push(r, &out, all->v[i]);
    }
    return r->status == SR_OK ? out.u.list : NULL;
}

static void run_for(struct jrun *r, struct jscope *s, struct jbuf *out, const struct jnode *n)
{
    struct jval over = sr_jinja_eval(r, s, n->b), loop = {.kind = JINJA_LOOP};
    const struct jlist *items = r->status == SR_OK ? sr_jinja_iterate(r, &over) : NULL;

    if (items) items = filtered(r, s, n, items);
    loop.u.loop = sr_jinja_take(r, sizeof *loop.u.loop);
    if (!items || !loop.u.loop) return;
    *loop.u.loop = (struct jloop){.items = items};
    if (items->n == 0) run_body(r, s, out, n->d);
    for (size_t i = 0; i < items->n && sr_jinja_step(r, 1); i++) {
        struct jscope *inner = sr_jinja_scope(r, s);
        if (!inner) return;
        loop.u.loop->index = i;
        sr_jinja_assign(r, inner, (struct jstr){"loop", 4, NULL}, loop);
        assign(r, inner, n->a, items->v[i]);
        if (run_body(r, inner, out, n->c) == FLOW_BREAK) break;
    }
}

/* ---- macros ---- */

/* Positional and named arguments to the macro's parameters; a name it does not have is refused. */
static void bind_parameters(struct jrun *r, struct jscope *s, const struct jmacro *m, const struct jargs *a)
{
    int i = 0, used = 0;
    char name[64], shown[60];

    for (const struct jnode *p = m->def->b; p && r->status == SR_OK; p = p->next, i++) {
        const struct jval *v = NULL;
        if (p->name.n < sizeof name) {
            memcpy(name, p->name.p, p->name.n);
            name[p->name.n] = 0;
            v = sr_jinja_arg(a, i, name);
        }
        used += v != NULL;
        struct jval missing =
            p->a && !v ? sr_jinja_eval(r, s, p->a) : sr_jinja_undefined(p->name.p, p->name.n);
        sr_jinja_assign(r, s, p->name, v ? *v : missing);
    }
    if (used == a->n) return;
    sr_escape(shown, sizeof shown, m->def->name.p, m->def->name.n);
    sr_jinja_fail(r, SR_ERR_USAGE, "macro %s does not take all of its %d arguments", shown, a->n);
}

struct jval sr_jinja_call_macro(struct jrun *r, const struct jmacro *m, const struct jargs *a)
{
    struct jscope *s = sr_jinja_scope(r, m->scope);
    struct jbuf out = {0};

    if (!s) return sr_jinja_undefined("", 0);
    bind_parameters(r, s, m, a);
    run_body(r, s, &out, m->def->c);
    return sr_jinja_built(r, &out);
}

static void define_macro(struct jrun *r, struct jscope *s, const struct jnode *n)
{
    struct jmacro *m = sr_jinja_take(r, sizeof *m);

    if (!m) return;
    *m = (struct jmacro){n, s};
    sr_jinja_assign(r, s, n->name, (struct jval){.kind = JINJA_MACRO, .u.macro = m});
}

/* ---- statements ---- */

static enum flow run_if(struct jrun *r, struct jscope *s, struct jbuf *out, const struct jnode *n)
{
    for (;;) {
        struct jval condition = sr_jinja_eval(r, s, n->a);
        if (r->status != SR_OK) return FLOW_ON;
        if (sr_jinja_truth(&condition)) return run_body(r, s, out, n->b);
        if (!n->c || n->c->kind != JN_IF || n->c->next) return run_body(r, s, out, n->c);
        n = n->c; /* elif, or an if that is all of the else */
    }
}

static void run_with(struct jrun *r, struct jscope *s, struct jbuf *out, const struct jnode *n,
                     enum flow *flow)
{
    struct jscope *inner = sr_jinja_scope(r, s);

    for (const struct jnode *set = n->a; inner && set && r->status == SR_OK; set = set->next)
        assign(r, inner, set->a, sr_jinja_eval(r, s, set->b));
    if (inner) *flow = run_body(r, inner, out, n->c);
}

static enum flow run_statement(struct jrun *r, struct jscope *s, struct jbuf *out, const struct jnode *n)
{
    enum flow flow = FLOW_ON;
    struct jval v;

    switch (n->kind) {
    case JN_TEXT: sr_jinja_add(r, out, &n->value); break;
    case JN_OUTPUT:
        v = sr_jinja_eval(r, s, n->a);
        if (r->status == SR_OK) v = sr_jinja_str(r, &v);
        if (r->status == SR_OK) sr_jinja_add(r, out, &v);
        break;
    case JN_IF: return run_if(r, s, out, n);
    case JN_FOR: run_for(r, s, out, n); break;
    case JN_SET: assign(r, s, n->a, sr_jinja_eval(r, s, n->b)); break;
    case JN_SET_BLOCK: set_block(r, s, n); break;
    case JN_MACRO: define_macro(r, s, n); break;
    case JN_WITH: run_with(r, s, out, n, &flow); break;
    case JN_BREAK: return FLOW_BREAK;
    case JN_CONTINUE: return FLOW_CONTINUE;
    default: break;
    }
    return flow;
}

static enum flow run_body(struct jrun *r, struct jscope *s, struct jbuf *out, const struct jnode *n)
{
    enum flow flow = FLOW_ON;

    if (!n || !sr_jinja_enter(r)) return FLOW_ON;
    for (; n && flow == FLOW_ON && sr_jinja_step(r, 1); n = n->next) {
        r->line = n->line;
        flow = run_statement(r, s, out, n);
    }
    sr_jinja_leave(r);
    return flow;
}

/* ---- programs ---- */

struct jinja {
    struct jrun memory; /* of the tree */
    const struct jnode *body;
    char *text;
    size_t bytes;
};

sr_status sr_jinja_open(struct jinja **out, const char *text, size_t bytes, sr_error *err)
{
    struct jinja *j;
    sr_status st;

    *out = NULL;
    if (bytes > JINJA_MAX_PROGRAM)
        return sr_fail(err, SR_ERR_FORMAT, "chat template: %zu bytes, at most %zu", bytes, JINJA_MAX_PROGRAM);
    j = sr_alloc_zero(1, sizeof *j);
    if (!j) return sr_fail_memory(err, sizeof *j, "chat template");
    j->memory = (struct jrun){.limit = (size_t)48 << 20,
                              .n_steps = UINT64_MAX / 2,
                              .output_limit = JINJA_MAX_PROGRAM,
                              .err = err,
                              .line = 1};
    j->text = sr_jinja_take(&j->memory, bytes + 1);
    j->bytes = bytes;
    if (j->text && bytes) memcpy(j->text, text, bytes);
    if (j->text) j->body = sr_jinja_parse(&j->memory, text, bytes);
    st = j->memory.status;
    j->memory.err = NULL;
    if (st != SR_OK) {
        sr_jinja_close(j);
        return st;
    }
    *out = j;
    return SR_OK;
}

void sr_jinja_close(struct jinja *j)
{
    if (!j) return;
    sr_jinja_run_free(&j->memory);
    sr_free(j);
}

int sr_jinja_mentions(const struct jinja *j, const char *name)
{
    size_t n = strlen(name), at = 0;
    const char *hit;

    while (j->bytes - at >= n && (hit = memmem(j->text + at, j->bytes - at, name, n)) != NULL) {
        size_t begin = (size_t)(hit - j->text), end = begin + n;
        const char *letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
        int alone = (begin == 0 || !memchr(letters, hit[-1], 63)) &&
                    (end == j->bytes || !memchr(letters, hit[n], 63));
        if (alone) return 1;
        at = end;
    }
    return 0;
}

int sr_jinja_writes(const struct jinja *j, const char *s)
{
    return j->bytes > 0 && memmem(j->text, j->bytes, s, strlen(s)) != NULL;
}

sr_status sr_jinja_begin(struct jrun *r, size_t input_bytes, sr_error *err)
{
    const size_t most = SIZE_MAX / 64;

    *r = (struct jrun){.err = err, .now = -1, .line = 1};
    if (input_bytes > most) input_bytes = most;
    r->limit = ((size_t)48 << 20) + 16 * input_bytes;
    r->output_limit = ((size_t)4 << 20) + 4 * input_bytes;
    r->n_steps = 20000000 + 16 * (uint64_t)input_bytes;
    r->root = sr_jinja_scope(r, NULL);
    return r->status;
}

void sr_jinja_set(struct jrun *r, const char *name, struct jval v)
{
    sr_jinja_assign(r, r->root, (struct jstr){name, strlen(name), NULL}, v);
}

sr_status sr_jinja_run(struct jrun *r, const struct jinja *j, struct jval *out)
{
    struct jbuf text = {0};

    sr_jinja_set_globals(r);
    run_body(r, sr_jinja_scope(r, r->root), &text, j->body);
    *out = sr_jinja_built(r, &text);
    return r->status;
}
