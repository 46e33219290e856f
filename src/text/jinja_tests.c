/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests: "x is NAME".
 */
#include "text/jinja_eval.h"

#include <string.h>

static struct jval yes(int b)
{
    return sr_jinja_bool(b);
}

#define KIND_TEST(name, condition)                                                                           \
    static struct jval name(struct jrun *r, const struct jval *v, const struct jargs *a)                     \
    {                                                                                                        \
        (void)r;                                                                                             \
        (void)a;                                                                                             \
        return yes(condition);                                                                               \
    }

KIND_TEST(t_defined, v->kind != JINJA_UNDEFINED)
KIND_TEST(t_undefined, v->kind == JINJA_UNDEFINED)
KIND_TEST(t_none, v->kind == JINJA_NONE)
KIND_TEST(t_boolean, v->kind == JINJA_BOOL)
KIND_TEST(t_true, v->kind == JINJA_BOOL && v->u.i)
KIND_TEST(t_false, v->kind == JINJA_BOOL && !v->u.i)
KIND_TEST(t_integer, v->kind == JINJA_INT)
KIND_TEST(t_float, v->kind == JINJA_FLOAT)
KIND_TEST(t_number, sr_jinja_is_number(v))
KIND_TEST(t_string, v->kind == JINJA_STRING)
KIND_TEST(t_mapping, v->kind == JINJA_DICT)
KIND_TEST(t_sequence, v->kind == JINJA_STRING || v->kind == JINJA_DICT || v->kind == JINJA_UNDEFINED ||
                          sr_jinja_is_list(v))
KIND_TEST(t_iterable, v->kind == JINJA_STRING || v->kind == JINJA_DICT || v->kind == JINJA_UNDEFINED ||
                          v->kind == JINJA_LOOP || sr_jinja_is_list(v))
KIND_TEST(t_callable, v->kind == JINJA_BOUND || v->kind == JINJA_MACRO)

/* The one argument of a test, or NULL after failing. */
static const struct jval *other(struct jrun *r, const struct jargs *a)
{
    if (a->n == 1 && a->n_pos == 1) return &a->v[0];
    sr_jinja_fail(r, SR_ERR_USAGE, "a test with %d arguments, want 1", a->n);
    return NULL;
}

#define PAIR_TEST(name, condition)                                                                           \
    static struct jval name(struct jrun *r, const struct jval *v, const struct jargs *a)                     \
    {                                                                                                        \
        const struct jval *b = other(r, a);                                                                  \
        return b ? yes(condition) : *v;                                                                      \
    }

PAIR_TEST(t_eq, sr_jinja_equal(r, v, b))
PAIR_TEST(t_ne, !sr_jinja_equal(r, v, b))
PAIR_TEST(t_lt, sr_jinja_compare(r, v, b) < 0)
PAIR_TEST(t_le, sr_jinja_compare(r, v, b) <= 0)
PAIR_TEST(t_gt, sr_jinja_compare(r, v, b) > 0)
PAIR_TEST(t_ge, sr_jinja_compare(r, v, b) >= 0)
PAIR_TEST(t_in, sr_jinja_contains(r, b, v))
PAIR_TEST(t_sameas, v->kind == b->kind && sr_jinja_equal(r, v, b))

static struct jval t_divisible(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    const struct jval *b = other(r, a);

    if (!b) return *v;
    if (v->kind != JINJA_INT || b->kind != JINJA_INT || b->u.i == 0)
        return sr_jinja_fail(r, SR_ERR_USAGE, "divisibleby wants integers");
    return yes(b->u.i == -1 || v->u.i % b->u.i == 0);
}

static struct jval parity(struct jrun *r, const struct jval *v, int want)
{
    if (v->kind != JINJA_INT && v->kind != JINJA_BOOL)
        return sr_jinja_fail(r, SR_ERR_USAGE, "odd or even: %s", sr_jinja_kind_name(v));
    return yes((v->u.i % 2 != 0) == want);
}
static struct jval t_odd(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    (void)a;
    return parity(r, v, 1);
}
static struct jval t_even(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    (void)a;
    return parity(r, v, 0);
}

/* Some letter, and all of them in this case. */
static struct jval in_case(struct jrun *r, const struct jval *v, enum jinja_case c)
{
    if (v->kind != JINJA_STRING) return yes(0);
    struct jval same = sr_jinja_case(r, v, c),
                opposite = sr_jinja_case(r, v, c == JINJA_UPPER ? JINJA_LOWER : JINJA_UPPER);
    return r->status == SR_OK ? yes(sr_jinja_equal(r, v, &same) && !sr_jinja_equal(r, v, &opposite)) : same;
}
static struct jval t_upper(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    (void)a;
    return in_case(r, v, JINJA_UPPER);
}
static struct jval t_lower(struct jrun *r, const struct jval *v, const struct jargs *a)
{
    (void)a;
    return in_case(r, v, JINJA_LOWER);
}

jinja_fn *sr_jinja_test_find(const struct jstr *name)
{
    static const struct {
        const char *name;
        jinja_fn *fn;
    } table[] = {{"defined", t_defined},
                 {"undefined", t_undefined},
                 {"none", t_none},
                 {"boolean", t_boolean},
                 {"true", t_true},
                 {"false", t_false},
                 {"integer", t_integer},
                 {"float", t_float},
                 {"number", t_number},
                 {"string", t_string},
                 {"mapping", t_mapping},
                 {"sequence", t_sequence},
                 {"iterable", t_iterable},
                 {"callable", t_callable},
                 {"eq", t_eq},
                 {"equalto", t_eq},
                 {"==", t_eq},
                 {"ne", t_ne},
                 {"!=", t_ne},
                 {"lt", t_lt},
                 {"lessthan", t_lt},
                 {"<", t_lt},
                 {"le", t_le},
                 {"<=", t_le},
                 {"gt", t_gt},
                 {"greaterthan", t_gt},
                 {">", t_gt},
                 {"ge", t_ge},
                 {">=", t_ge},
                 {"in", t_in},
                 {"sameas", t_sameas},
                 {"divisibleby", t_divisible},
                 {"odd", t_odd},
                 {"even", t_even},
                 {"upper", t_upper},
                 {"lower", t_lower}};

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strlen(table[i].name) == name->n && memcmp(table[i].name, name->p, name->n) == 0)
            return table[i].fn;
    return NULL;
}
