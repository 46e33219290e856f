/* SPDX-License-Identifier: Apache-2.0
 *
 * The interpreter of chat templates: against texts that jinja2 rendered, at its limits (rows JT1 to JT3 of
 * the bad-input contract), and where a byte came from through every operation on strings.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "text/jinja.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Runs a program; `context` is a JSON object or NULL. The text is malloc'd into *out on success. */
static sr_status run(const char *program, size_t bytes, json_t *context, char **out, sr_error *err)
{
    struct jinja *j;
    struct jrun r;
    struct jval v;
    const char *key;
    json_t *item;
    sr_status st = sr_jinja_open(&j, program, bytes, err);

    if (st != SR_OK) return st;
    st = sr_jinja_begin(&r, 0, err);
    r.now = 0;
    json_object_foreach(context, key, item)
    {
        char *text = json_dumps(item, JSON_ENCODE_ANY);
        sr_jinja_set(&r, key, sr_jinja_load(&r, key, text, strlen(text)));
        free(text);
    }
    st = sr_jinja_run(&r, j, &v);
    if (st == SR_OK && out) {
        *out = malloc(v.u.s.n + 1);
        memcpy(*out, v.u.s.p, v.u.s.n);
        (*out)[v.u.s.n] = 0;
    }
    sr_jinja_run_free(&r);
    sr_jinja_close(j);
    return st;
}

static void expect_text(const char *program, const char *context, const char *want)
{
    json_t *c = json_loads(context, 0, NULL);
    sr_error err = {0};
    char *got = NULL;

    if (run(program, strlen(program), c, &got, &err) != SR_OK) fail_msg("%s: %s", program, err.text);
    if (strcmp(got, want) != 0) fail_msg("%s: \"%s\", want \"%s\"", program, got, want);
    free(got);
    json_decref(c);
}

static void expect_error(const char *program, sr_status want, const char *part)
{
    sr_error err = {0};
    char *got = NULL;

    if (run(program, strlen(program), NULL, &got, &err) == SR_OK)
        fail_msg("%s: rendered \"%s\"", program, got);
    if (err.status != want || !strstr(err.text, part))
        fail_msg("%s: status %d \"%s\", want %d \"%s\"", program, err.status, err.text, want, part);
}

static void agrees_with_jinja2(void **state)
{
    json_t *doc = json_load_file("tests/golden/jinja_vectors.json", 0, NULL), *row;
    size_t i;

    (void)state;
    assert_true(json_array_size(json_object_get(doc, "rows")) > 80);
    json_array_foreach(json_object_get(doc, "rows"), i, row)
    {
        json_t *program = json_object_get(row, "program"), *want = json_object_get(row, "rendered");
        sr_error err = {0};
        char *got = NULL;
        sr_status st = run(json_string_value(program), json_string_length(program),
                           json_object_get(doc, "context"), &got, &err);
        if (json_is_null(want)) {
            if (st == SR_OK) fail_msg("%s: rendered \"%s\", want an error", json_string_value(program), got);
            assert_non_null(strstr(err.text, "chat template, line "));
            continue;
        }
        if (st != SR_OK) fail_msg("%s: %s", json_string_value(program), err.text);
        if (strcmp(got, json_string_value(want)) != 0)
            fail_msg("%s\n got \"%s\"\nwant \"%s\"", json_string_value(program), got,
                     json_string_value(want));
        free(got);
    }
    json_decref(doc);
}

static char *repeated(const char *s, int n, const char *middle, const char *end)
{
    size_t len = strlen(s), len_end = strlen(end);
    char *out = malloc((len + len_end) * (size_t)n + strlen(middle) + 1), *p = out;

    for (int i = 0; i < n; i++, p += len) memcpy(p, s, len);
    strcpy(p, middle);
    p += strlen(middle);
    for (int i = 0; i < n; i++, p += len_end) memcpy(p, end, len_end);
    *p = 0;
    return out;
}

static void expect_nested(const char *open, int n, const char *middle, const char *close)
{
    char *body = repeated(open, n, middle, close), *whole = malloc(strlen(body) + 16);

    if (open[0] == '{')
        strcpy(whole, body);
    else
        sprintf(whole, "{{ %s }}", body);
    expect_error(whole, SR_ERR_FORMAT, "the limit");
    free(body);
    free(whole);
}

static void jt1_depth(void **state)
{
    (void)state;
    expect_error("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", SR_ERR_FORMAT,
                 "nested deeper than");
    expect_nested("(", 5000, "1", ")");
    expect_nested("[", 5000, "1", "]");
    expect_nested("{% if 1 %}", 5000, "x", "{% endif %}");
    expect_nested("{% for x in [1] %}", 101, "x", "{% endfor %}");
    expect_nested("- ", 5000, "1", "");
    expect_nested("1 if 1 else ", 5000, "1", "");
    expect_nested("1 + ", 5000, "1", "");
    expect_nested("", 5000, "x", ".a");
    expect_nested("", 5000, "x", "|upper");
    expect_nested("", 5000, "x", " ~ 1");
    expect_text("{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor "
                "%}{{ ns.x | length }}",
                "{}", "1");
    expect_error("{% set ns = namespace(x=[]) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor "
                 "%}{{ ns.x }}",
                 SR_ERR_FORMAT, "nested deeper than");
    expect_error("{% set ns = namespace(x=[]) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor "
                 "%}{{ ns.x == [ns.x] }}{{ ns.x | tojson }}",
                 SR_ERR_FORMAT, "nested deeper than");
    expect_text("{{ not not not not t }}{% if 1 %}{% elif 2 %}{% endif %}", "{\"t\":1}", "True");
}

static void jt2_steps_and_size(void **state)
{
    clock_t begin = clock();

    (void)state;
    expect_error("{% for i in range(1000000000) %}{% endfor %}", SR_ERR_FORMAT, "range: more than 100000");
    expect_error("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
                 SR_ERR_FORMAT, "the limit");
    expect_error("{% set ns = namespace(s='0123456789abcdef') %}{% for i in range(64) %}{% set ns.s = ns.s + "
                 "ns.s %}{% endfor %}{{ ns.s }}",
                 SR_ERR_FORMAT, "the limit");
    expect_error("{{ 'x' * 1000000000000 }}", SR_ERR_FORMAT, "the limit");
    expect_error("{{ [1] * 1000000000000 }}", SR_ERR_FORMAT, "the limit");
    expect_error("{% for i in range(100000) %}{{ "
                 "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                 "xxxxxxxxxxxxxxxxx' }}{% endfor %}",
                 SR_ERR_FORMAT, "a text of more than 4 MiB");
    expect_error(
        "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}{% if 'zz' in s %}{% endif %}{% endfor %}",
        SR_ERR_FORMAT, "steps");
    expect_error(
        "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
        SR_ERR_FORMAT, "the limit");
    expect_error("{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}{{ s[999:1000] }}{{ s | length "
                 "}}{% endfor %}",
                 SR_ERR_FORMAT, "steps");
    expect_error("{{ 'a\\n' | indent(100000000) }}", SR_ERR_FORMAT, "the limit");
    expect_error("{{ 2 ** 64 }}", SR_ERR_USAGE, "64 bits");
    expect_error("{{ 9223372036854775807 + 1 }}", SR_ERR_USAGE, "64 bits");
    assert_true((double)(clock() - begin) / CLOCKS_PER_SEC <
                60); /* also under sanitizers; without them about a second */
}

static void jt3_escapes_and_unknown_names(void **state)
{
    static const char *const refused[] = {"{{ ''.__class__ }}",
                                          "{{ messages.__globals__ }}",
                                          "{{ x | attr('__class__') }}",
                                          "{% import 'os' as os %}",
                                          "{% include 'x' %}",
                                          "{% extends 'x' %}",
                                          "{% from 'x' import y %}",
                                          "{% block a %}{% endblock %}",
                                          "{% call m() %}{% endcall %}",
                                          "{% do x %}",
                                          "{% filter upper %}x{% endfilter %}",
                                          "{% for x in y recursive %}{% endfor %}",
                                          "{{ x | nosuch }}",
                                          "{{ x is nosuch }}",
                                          "{% if 0 %}{{ x | pprint }}{% endif %}",
                                          "{{ cycler('a') }}",
                                          "{{ [1] | map('nosuch') }}",
                                          "{{ [1] | select('nosuch') }}",
                                          "{{ f(*x) }}",
                                          "{{ f(**x) }}",
                                          "{{ '{:d}'.format(1) }}"};

    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        expect_error(refused[i], SR_ERR_UNSUPPORTED, "chat template, line 1: ");
    expect_error("a\nb\n{{ x | nosuch }}", SR_ERR_UNSUPPORTED, "line 3: filter \"nosuch\" is not known");
    expect_error("{{ '' ['__class__'].mro }}", SR_ERR_USAGE, "undefined");
}

static void broken_programs(void **state)
{
    static const char *const broken[] = {"{{",
                                         "{% 'x",
                                         "{{ 'a\\",
                                         "{#",
                                         "{{ }}",
                                         "{{ 1 2 }}",
                                         "{% if %}{% endif %}",
                                         "{% if 1 %}",
                                         "{% endif %}",
                                         "{% else %}",
                                         "{% for %}{% endfor %}",
                                         "{% for x %}{% endfor %}",
                                         "{% for 1 in x %}{% endfor %}",
                                         "{% set %}",
                                         "{% set x %}",
                                         "{% set 1 = 2 %}",
                                         "{{ (1 }}",
                                         "{{ [1 }}",
                                         "{{ {1} }}",
                                         "{{ {1: } }}",
                                         "{{ x. }}",
                                         "{{ x[] }}",
                                         "{{ x[1:2:3:4] }}",
                                         "{{ x | }}",
                                         "{{ x is }}",
                                         "{{ 1 + }}",
                                         "{{ not }}",
                                         "{{ f(a=1, 2) }}",
                                         "{% nosuch %}",
                                         "{% break %}",
                                         "{% macro %}{% endmacro %}",
                                         "{% macro m( %}{% endmacro %}",
                                         "{% macro m(1) %}{% endmacro %}",
                                         "{% raw %}",
                                         "{{ 'x }}",
                                         "{{ $ }}",
                                         "{{ '\\xZZ' }}",
                                         "{{ '\\ud800' }}",
                                         "{{ 99999999999999999999 }}",
                                         "{% if 1 %}{% endfor %}",
                                         "{{ a if }}",
                                         "{{ a if b else }}",
                                         "{% %}",
                                         "{{ f(1,2,3,4,5,6,7,8,9,10,11,12,13) }}",
                                         "{{ in }}",
                                         "\x01\xff{{"};
    static const char whole[] = "{% set ns = namespace(a=1) %}{% for m in messages[::-1] if m %}{{ '<|x|>' ~ "
                                "m.role | upper }}{% else %}{% endfor %}";

    (void)state;
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++)
        expect_error(broken[i], SR_ERR_FORMAT, "chat template, line 1: ");
    for (size_t n = 0; n < sizeof whole; n++) {
        char cut[sizeof whole];
        memcpy(cut, whole, n);
        cut[n] = 0;
        run(cut, n, NULL, NULL, NULL); /* whatever it is, it ends */
    }
    char *big = malloc(JINJA_MAX_PROGRAM + 2);
    memset(big, 'x', JINJA_MAX_PROGRAM + 1);
    big[JINJA_MAX_PROGRAM + 1] = 0;
    expect_error(big, SR_ERR_FORMAT, "at most 1048576");
    big[JINJA_MAX_PROGRAM] = 0;
    assert_int_equal(run(big, JINJA_MAX_PROGRAM, NULL, NULL, NULL), SR_OK);
    for (size_t i = 0; i + 7 < JINJA_MAX_PROGRAM; i += 7)
        memcpy(big + i, "{{ a }}", 7); /* many nodes: linear, within the memory it has */
    sr_status st = run(big, JINJA_MAX_PROGRAM - 7, NULL, NULL, NULL);
    assert_true(st == SR_OK || st == SR_ERR_FORMAT);
    free(big);
}

/* Each byte of the text: 'u' where it comes from the context, 't' from the template. */
static void expect_origin(const char *expression, const char *text, const char *origin)
{
    char program[256], got[64] = "";
    struct jinja *j;
    struct jrun r;
    struct jval v;
    sr_error err = {0};

    snprintf(program, sizeof program, "{{ %s }}", expression);
    assert_int_equal(sr_jinja_open(&j, program, strlen(program), &err), SR_OK);
    assert_int_equal(sr_jinja_begin(&r, 0, &err), SR_OK);
    sr_jinja_set(&r, "u", sr_jinja_string("u u", 3, 1));
    sr_jinja_set(&r, "d", sr_jinja_load(&r, "d", "{\"k\":[\"v\"]}", 11));
    if (sr_jinja_run(&r, j, &v) != SR_OK) fail_msg("%s: %s", program, err.text);
    assert_int_equal(v.u.s.n, strlen(text));
    assert_memory_equal(v.u.s.p, text, v.u.s.n);
    for (size_t i = 0; i < v.u.s.n; i++) got[i] = (v.u.s.from ? v.u.s.from[i] : v.user) ? 'u' : 't';
    if (strcmp(got, origin) != 0) fail_msg("%s: %s, want %s", expression, got, origin);
    sr_jinja_run_free(&r);
    sr_jinja_close(j);
}

static void origin_of_bytes(void **state)
{
    (void)state;
    expect_origin("'a' + u + 'b'", "au ub", "tuuut");
    expect_origin("('a' ~ u)[::-1]", "u ua", "uuut");
    expect_origin("('a' + u)[1:] | upper", "U U", "uuu");
    expect_origin("('a' + u) | upper", "AU U", "tuuu");
    expect_origin("u.replace(' ', '--')", "u--u", "uttu");
    expect_origin("'x y'.replace('y', u)", "x u u", "ttuuu");
    expect_origin("u.split() | join('+')", "u+u", "utu");
    expect_origin("(' ' ~ u ~ ' ') | trim", "u u", "uuu");
    expect_origin("d | tojson", "{\"k\": [\"v\"]}", "ttutttttuttt");
    expect_origin("d", "{'k': ['v']}", "ttutttttuttt");
    expect_origin("('<' ~ u)[0] ~ ('<' ~ u)[1]", "<u", "tu");
    expect_origin("('<' ~ u) | first ~ u | last", "<u", "tu");
    expect_origin("u | title", "U U", "uuu");
    expect_origin("(u ~ '\\nx') | indent(1)", "u u\n x",
                  "uuutt"
                  "t");
}

static void survives_every_allocation_failure(void **state)
{
    static const char program[] =
        "{% macro m(x) %}{{ x | upper }}{% endmacro %}{% for x in 'abc' * 30000 %}{{ m(x) }}{% endfor %}";
    int n_failures = 0;

    (void)state;
    for (uint64_t n = 1; n < 40; n++) {
        char *out = NULL;
        sr_alloc_fail_at(n);
        sr_status st = run(program, sizeof program - 1, NULL, &out, NULL);
        sr_alloc_fail_at(0);
        assert_true(st == SR_OK || st == SR_ERR_RESOURCE);
        n_failures += st != SR_OK;
        free(out);
    }
    assert_true(n_failures >= 20);
}

static void strftime_only_when_offered(void **state)
{
    (void)state;
    expect_text("{{ strftime_now('%Y') in ['1969', '1970'] }}", "{}", "True");
    struct jinja *j;
    struct jrun r;
    struct jval v;
    static const char program[] = "{{ strftime_now is defined }}";
    assert_int_equal(sr_jinja_open(&j, program, sizeof program - 1, NULL), SR_OK);
    assert_int_equal(sr_jinja_begin(&r, 0, NULL), SR_OK);
    assert_int_equal(sr_jinja_run(&r, j, &v), SR_OK);
    assert_memory_equal(v.u.s.p, "False", 5);
    sr_jinja_run_free(&r);
    sr_jinja_close(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_jinja2),
        cmocka_unit_test(jt1_depth),
        cmocka_unit_test(jt2_steps_and_size),
        cmocka_unit_test(jt3_escapes_and_unknown_names),
        cmocka_unit_test(broken_programs),
        cmocka_unit_test(origin_of_bytes),
        cmocka_unit_test(survives_every_allocation_failure),
        cmocka_unit_test(strftime_only_when_offered),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("jinja", tests, NULL, NULL);
}
