/* SPDX-License-Identifier: Apache-2.0
 *
 * Values of the template interpreter (jinja.h) and the run that they live in. Everything that a run makes
 * lies in its arena and is freed at once at its end; values are small and copied. The first failure sticks in
 * run->status: functions after it return quickly, with values that nobody reads.
 *
 * A string knows for each byte whether it comes from a person or a model (`from` != 0) or from the template:
 * the tokenizer lets only the template's bytes become control tokens. `from` is NULL where one answer holds
 * for all.
 */
#ifndef SR_TEXT_JINJA_VALUE_H
#define SR_TEXT_JINJA_VALUE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

enum jinja_kind {
    JINJA_UNDEFINED, /* s: the name that was not found */
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_NAMESPACE, /* a dict that may be changed */
    JINJA_LOOP,
    JINJA_BOUND, /* a function of ours, with the value it belongs to */
    JINJA_MACRO
};

struct jstr {
    const char *p;
    size_t n;
    const uint8_t *from; /* [n], or NULL: all bytes as `user` says */
};

struct jval {
    enum jinja_kind kind;
    int user; /* of a string without `from` */
    union {
        int64_t i; /* also BOOL */
        double f;
        struct jstr s;
        struct jlist *list;
        struct jdict *dict;
        struct jloop *loop;
        const struct jbound *bound;
        struct jmacro *macro;
    } u;
};

struct jlist {
    struct jval *v;
    size_t n, cap;
};
struct jpair {
    struct jval key, value;
};
struct jdict {
    struct jpair *v;
    size_t n, cap;
};
struct jloop {
    const struct jlist *items;
    size_t index;        /* from 0 */
    struct jval changed; /* what loop.changed() saw last; a tuple, or undefined */
};

/* Arguments of a call: positional ones first. */
enum { JINJA_MAX_ARGS = 12 };
struct jargs {
    struct jval v[JINJA_MAX_ARGS];
    struct jstr name[JINJA_MAX_ARGS]; /* p NULL: positional */
    int n, n_pos;
};

struct jrun;
typedef struct jval jinja_fn(struct jrun *r, const struct jval *self, const struct jargs *a);
struct jbound {
    jinja_fn *fn;
    struct jval self;
    const char *name;
};

/* One run of a program. Limits are set at its beginning. */
struct jrun {
    struct jinja_chunk *chunks;
    size_t used, limit;      /* bytes of the arena */
    uint64_t steps, n_steps; /* done, allowed */
    size_t output_limit;
    int depth;    /* nested evaluations */
    int32_t line; /* of the template, for messages */
    sr_status status;
    sr_error *err;
    int64_t now; /* seconds since 1970, for strftime_now; < 0: not offered */
    struct jscope *root;
};

enum { JINJA_MAX_DEPTH = 400 }; /* nested evaluations, and levels of a data structure that is walked */

/* ---- the run ---- */

void sr_jinja_run_free(struct jrun *r);
/* Memory of the run, zeroed; NULL when something has failed or fails now. */
void *sr_jinja_take(struct jrun *r, size_t bytes);
/* Counts `n` units of work; 0 when the run has failed or fails now. */
int sr_jinja_step(struct jrun *r, uint64_t n);
/* Fails with "chat template, line N: ...". Returns undefined, to be returned on. */
struct jval sr_jinja_fail(struct jrun *r, sr_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int sr_jinja_enter(struct jrun *r); /* one level deeper, or 0 */
void sr_jinja_leave(struct jrun *r);

/* ---- making values ---- */

struct jval sr_jinja_undefined(const char *name, size_t n);
struct jval sr_jinja_none(void);
struct jval sr_jinja_bool(int b);
struct jval sr_jinja_int(int64_t i);
struct jval sr_jinja_float(double f);
struct jval sr_jinja_string(const char *p, size_t n, int user); /* borrowed bytes */
struct jval sr_jinja_text(const char *s);                       /* a constant of ours, the template's */
struct jval sr_jinja_list(struct jrun *r, enum jinja_kind kind, size_t room);
void sr_jinja_push(struct jrun *r, struct jval *list, struct jval v);
struct jval sr_jinja_dict(struct jrun *r, enum jinja_kind kind, size_t room);
void sr_jinja_put(struct jrun *r, struct jval *dict, struct jval key, struct jval value); /* replaces */
struct jval sr_jinja_bind(struct jrun *r, jinja_fn *fn, const char *name, struct jval self);

/* ---- asking values ---- */

int sr_jinja_truth(const struct jval *v);
int sr_jinja_is_list(const struct jval *v); /* or tuple */
int sr_jinja_is_number(const struct jval *v);
int sr_jinja_is(const struct jval *v, const char *text); /* a string with exactly this text */
double sr_jinja_real(const struct jval *v);
const char *sr_jinja_kind_name(const struct jval *v);
int sr_jinja_equal(struct jrun *r, const struct jval *a, const struct jval *b);
/* < 0, 0, > 0; fails for kinds without an order. */
int sr_jinja_compare(struct jrun *r, const struct jval *a, const struct jval *b);
/* The value of a key, or NULL. */
const struct jval *sr_jinja_find(struct jrun *r, const struct jdict *d, const struct jval *key);
const struct jval *sr_jinja_find_text(const struct jdict *d, const char *key, size_t n);
/* Items of a list, keys of a dict, characters of a string, as a list; undefined gives none. Fails for others.
 */
const struct jlist *sr_jinja_iterate(struct jrun *r, const struct jval *v);
/* Number of items or characters; fails for kinds without a length. */
int64_t sr_jinja_length(struct jrun *r, const struct jval *v);

/* ---- arguments ---- */

/* The argument at this place or with this name (name may be NULL), or NULL. */
const struct jval *sr_jinja_arg(const struct jargs *a, int at, const char *name);
int64_t sr_jinja_arg_int(struct jrun *r, const struct jargs *a, int at, const char *name, int64_t missing);
/* Fails when there are more positional ones or a name that is not in the NULL-terminated list. */
int sr_jinja_args_check(struct jrun *r, const char *what, const struct jargs *a, int least, int most,
                        const char *const *names);

#endif
