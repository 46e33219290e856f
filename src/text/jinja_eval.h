/* SPDX-License-Identifier: Apache-2.0
 *
 * What the interpreter's files share: scopes, and evaluation.
 */
#ifndef SR_TEXT_JINJA_EVAL_H
#define SR_TEXT_JINJA_EVAL_H

#include "text/jinja_parse.h"
#include "text/jinja_text.h"

/* A loop's body, a macro's body and a with block have scopes of their own; an if has not. */
struct jvar {
    struct jstr name;
    struct jval v;
    struct jvar *next;
};
struct jscope {
    struct jscope *parent;
    struct jvar *vars;
};
struct jmacro {
    const struct jnode *def;
    struct jscope *scope; /* of its definition */
};

struct jscope *sr_jinja_scope(struct jrun *r, struct jscope *parent);
void sr_jinja_assign(struct jrun *r, struct jscope *s, struct jstr name, struct jval v);
const struct jval *sr_jinja_lookup(struct jrun *r, const struct jscope *s, const struct jstr *name);

struct jval sr_jinja_eval(struct jrun *r, struct jscope *s, const struct jnode *n);
/* Runs a macro; in jinja_run.c. */
struct jval sr_jinja_call_macro(struct jrun *r, const struct jmacro *m, const struct jargs *a);

/* x.name and x[key]; undefined where it has neither. */
struct jval sr_jinja_attribute(struct jrun *r, const struct jval *x, const struct jstr *name);
struct jval sr_jinja_item(struct jrun *r, const struct jval *x, const struct jval *key);
/* A method of strings, mappings or lists, bound to x, or undefined. */
struct jval sr_jinja_method(struct jrun *r, const struct jval *x, const struct jstr *name);
int sr_jinja_contains(struct jrun *r, const struct jval *all, const struct jval *one);
/* Sets range, namespace, dict, raise_exception and strftime_now. */
void sr_jinja_set_globals(struct jrun *r);

/* A filter or test by name on a value, for map, select and their like. */
struct jval sr_jinja_apply(struct jrun *r, jinja_fn *fn, const struct jval *v, const struct jargs *a,
                           int skip);

#endif
