#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs small programs with jinja2 and writes tests/golden/jinja_vectors.json.

    make-jinja-vectors.py > tests/golden/jinja_vectors.json

The programs were written for this purpose; each uses what published chat templates use, with the settings that
transformers runs those with. "rendered": null means that jinja2 raises an error. Needs jinja2; nothing in the build or
the tests calls this.
"""
import json
import sys

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTEXT = {
    "s": "Hello, World", "empty": "", "pad": " \n x y\t ", "uni": "na\u00efve \u4f60\u597d \U0001f600", "quote": "it's \"so\"\\\n\x01",
    "n": 7, "z": 0, "neg": -7, "f": 2.5, "big": 1e20, "small": 0.00001, "t": True, "no": False, "nil": None,
    "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3]], "e": [],
    "d": {"b": 1, "a": "two", "items": [1]}, "deep": {"x": {"y": [{"z": "found"}]}},
    "people": [{"name": "Bo", "age": 3, "tags": ["u"]}, {"name": "al", "age": 1}, {"name": "Cy", "age": 2, "tags": []}],
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "A"},
                 {"role": "assistant", "content": "<think>\nhm\n</think>\n\nB", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "y": [1.5, None, True, "\u00e9"]}}}]},
                 {"role": "tool", "content": "42"}, {"role": "user", "content": " C "}],
}

PROGRAMS = r"""
plain text
{{ s }} {{ n }} {{ f }} {{ t }} {{ nil }} {{ missing }}|
{{ l }} {{ d }} {{ words }} {{ nested }} {{ (1, 'x') }} {{ (1,) }} {{ [] }} {{ {} }} {{ quote }} {{ [quote] }}
{{ big }} {{ small }} {{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 123456789.125 }} {{ 1/3 }} {{ -2.5e-7 }}
{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ 7 // 2 }} {{ neg // 2 }} {{ neg % 3 }} {{ 7 % -3 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 7 / 2 }}
{{ 1 ~ 2 ~ 'x' ~ nil ~ t }} {{ 'a' + 'b' }} {{ 'a' 'b' "c" }} {{ 'ab' * 3 }} {{ [1] * 2 + [3] }}
{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ t == 1 }} {{ 'a' != 'b' }} {{ not t }} {{ not not 3 }}
{{ 1 in l }} {{ 9 not in l }} {{ 'ell' in s }} {{ 'b' in d }} {{ 'x' in missing }} {{ '' in s }} {{ not 1 in l }}
{{ 3 and 0 or 'x' }} {{ '' or none }} {{ t and 'yes' }} {{ 'a' if t else 'b' }} {{ 'a' if no }}| {{ 'a' if no else 'b' if no else 'c' }}
{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[:-3] }} {{ s[::-1] }} {{ s[::2] }} {{ s[20:] }}| {{ s[-3:] }} {{ s[5:2] }}| {{ uni[2:7] }} {{ uni[::-1] }} {{ uni[-1] }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[:10:2] }} {{ l[-2:] }} {{ l[2:0:-1] }} {{ l[9] }}| {{ (1,2,3)[1:] }}
{{ d.b }} {{ d['a'] }} {{ d['items'] }} {{ d.missing }}| {{ d['missing'] is defined }} {{ deep.x.y[0].z }} {{ deep['x']['y'][0]['z'] }} {{ d.get('a') }} {{ d.get('q', 5) }} {{ d.get('q') }}
{{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d | items | list }} {{ d | list }} {{ d | length }}
{{ missing.attr }}
{{ missing[0] }}
{{ missing + 'x' }}
{{ nil + 'x' }}
{{ 1 + 'x' }}
{{ 'x' + 1 }}
{{ l['a'] }}|{{ n.foo }}|{{ s.foo }}|
{{ 1 // 0 }}
{{ 'a' < 1 }}
{{ missing() }}
{{ raise_exception('stop') }}
{{ s | upper }} {{ s | lower }} {{ 'hello wORLD' | capitalize }} {{ 'hello wORLD foo-bar' | title }} {{ uni | upper }}
{{ pad | trim }}| {{ pad.strip() }}| {{ pad.lstrip() }}| {{ pad.rstrip() }}| {{ 'xxaxx'.strip('x') }} {{ 'abcba'.lstrip('ab') }} {{ '\n\nq\n'.strip('\n') }} {{ 'xay' | trim('xy') }}
{{ s.split(', ') }} {{ pad.split() }} {{ 'a,b,,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a b  c'.split(none, 1) }} {{ 'a\nb\r\nc\n'.splitlines() }} {{ ''.split(',') }} {{ ''.split() }}
{{ s.startswith('Hell') }} {{ s.endswith('ld') }} {{ s.startswith(('x', 'H')) }} {{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ s | replace('o', '0') }} {{ s.upper() }} {{ s.title() }} {{ s.find('o') }} {{ s.find('q') }} {{ s.count('l') }} {{ uni.find('\u597d') }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ '123'.isdigit() }} {{ ', '.join(['a', 'b']) }} {{ 'a'.capitalize() }} {{ ' \t'.isspace() }}
{{ l | length }} {{ s | length }} {{ uni | length }} {{ missing | length }} {{ s | count }} {{ empty | length }}
{{ l | join(', ') }} {{ l | join }} {{ words | join('-') | upper }} {{ people | join('/', attribute='name') }} {{ s | join('.') }}
{{ l | first }} {{ l | last }} {{ e | first }}| {{ s | first }} {{ s | last }} {{ l | reverse | list }} {{ s | reverse }} {{ l | sort }} {{ l | sort(reverse=true) }} {{ words | sort }} {{ words | sort(case_sensitive=true) }}
{{ people | map(attribute='name') | list }} {{ words | map('upper') | join }} {{ people | map(attribute='tags', default='-') | list }} {{ people | selectattr('age', 'gt', 1) | map(attribute='name') | join(',') }} {{ people | selectattr('tags') | list | length }} {{ people | rejectattr('tags', 'defined') | map(attribute='name') | list }}
{{ l | select('odd') | list }} {{ l | reject('equalto', 1) | list }} {{ [0, 1, '', 'x'] | select | list }} {{ l | sum }} {{ people | sum(attribute='age') }} {{ l | min }} {{ l | max }} {{ people | sort(attribute='age') | map(attribute='name') | list }} {{ [1, 2, 1, 'a', 'A'] | unique | list }}
{{ d | dictsort }} {{ {'b': 2, 'A': 1} | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(false, 'value') }} {{ [1,2,3] | batch(2) | list }} {{ [1,2,3] | batch(2, 0) | list }}
{{ missing | default('x') }} {{ empty | default('x') }}| {{ empty | default('x', true) }} {{ nil | d('y') }} {{ missing | default }}|
{{ '42' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ 3.9 | int }} {{ '3.9' | int }} {{ '2.5' | float }} {{ 5 | string ~ 'x' }} {{ -5 | abs }} {{ 2.567 | round(1) }} {{ 2.5 | round }} {{ 2.1 | round(0, 'ceil') }} {{ ' 42 ' | int }}
{{ d | tojson }} {{ deep | tojson }} {{ quote | tojson }} {{ uni | tojson }} {{ [1, 2.5, none, true, 'x'] | tojson }} {{ {} | tojson }} {{ [] | tojson }} {{ '<&>' | tojson }} {{ 1e20 | tojson }}
{{ d | tojson(indent=2) }} {{ people | tojson(indent=4) }} {{ e | tojson(indent=2) }} {{ {} | tojson(indent=2) }}
{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }} {{ {'a': [1]} | tojson(separators=(',', ':'), indent=1) }}
{{ missing | tojson }}
{{ [uni, '\U0001f600'] | tojson(ensure_ascii=true) }} {{ '{} {}'.format(1, 'x') }} {{ '{1}{0} {k} {{}}'.format('a', 'b', k=3) }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(1, blank=true) }}|{{ 'a\nb' | indent('> ') }}
{{ '%s has %d' | format('x', 3) }} {{ '<a href="x">' | escape }} {{ s | safe }} {{ 'x' | string }} {{ n | string | length }} {{ d | attr('b') }}|
{{ s is string }} {{ n is number }} {{ n is integer }} {{ f is float }} {{ t is boolean }} {{ d is mapping }} {{ l is iterable }} {{ s is iterable }} {{ l is sequence }} {{ n is iterable }} {{ nil is none }} {{ missing is undefined }} {{ t is true }} {{ 1 is true }} {{ no is false }} {{ t is integer }} {{ t is number }}
{{ n is odd }} {{ n is even }} {{ 9 is divisibleby 3 }} {{ n is eq 7 }} {{ n is equalto(7) }} {{ n is ne 7 }} {{ n is gt 3 }} {{ n is lessthan(3) }} {{ 1 is in [1] }} {{ 'AB' is upper }} {{ 'ab' is lower }} {{ n is not none }} {{ not n is none }} {{ s is not string and t }} {{ raise_exception is callable }} {{ nil is sameas none }} {{ d is sequence }} {{ missing is iterable }}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ x }};{% endfor %}
{% for x in e %}x{% else %}none{% endfor %} {% for x in l if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% else %}no{% endfor %} {% for c in 'ab' %}[{{ c }}]{% endfor %} {% for k in d %}{{ k }}{% endfor %} {% for x in missing %}x{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for a, b in [[1, 2], (3, 4)] %}{{ a + b }} {% endfor %} {% for i in range(3) %}{{ i }}{% endfor %} {% for i in range(5, 0, -2) %}{{ i }}{% endfor %} {% for i in range(2, 4) %}{{ i }}{% endfor %}
{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {{ loop.cycle('a', 'b') }} {{ loop.changed(x > 1) }};{% endfor %}
{% for x in nested %}{% for y in x %}{{ loop.depth }}{{ loop.index }}{{ y }} {% endfor %}{% set outer = loop.index %}{% for y in x %}{{ outer }}{% endfor %}{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}
{% for a, b in [[1, 2, 3]] %}{% endfor %}
{% for x in n %}{% endfor %}
{% if n > 5 %}big{% elif n > 2 %}mid{% else %}small{% endif %}{% if z %}x{% elif no %}y{% elif l %}list{% endif %}{% if not e %}empty{% endif %}{% if nil is none and t or no %}ok{% endif %}
{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}{% set ns = namespace(v=0, w='q') %}{% for i in l %}{% set ns.v = ns.v + i %}{% endfor %}{{ ns.v }}{{ ns.w }}{{ ns.nope }}|{% if t %}{% set y = 5 %}{% endif %}{{ y }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t2 = 1, 2 %}{{ t2 }}{% set c %}block {{ n }}{% endset %}{{ c }}{% set c | upper %}up {{ s }}{% endset %}{{ c }}{% with q = 3, r = q %}{{ q }}{{ r }}{% endwith %}{{ q }}|
{% set d.x = 1 %}
{% macro hi(name, greet='Hi', n=2) %}{{ greet }} {{ name }}{{ n }}!{% endmacro %}{{ hi('Bo') }} {{ hi('Al', greet='Yo') }} {{ hi(name='C', n=9) }} {{ hi() }} {% set x = hi('q') %}{{ x | upper }}
{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * (fact(n - 1) | int) }}{% endif %}{% endmacro %}{{ fact(6) }} {% macro g() %}{{ n }}{% endmacro %}{{ g() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{# comment #}a{#- c -#} b {#- c #} c
{%- for x in l -%} {{ x }} {%- endfor -%} end
   {{ n }}   {%+ if t %} kept{% endif %}   {% if t +%} x{% endif %}
{% raw %}{{ not run }} {% if %}{% endraw %} after
{% raw -%}  a  {%- endraw %} b
x{%- if t %} a {%- endif -%}   y
{{- s -}}   z   {{ n }}
{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': {}} }}{{ '}}' }}{{ "%}" }}
{{ 'tab\tnl\nq\'d\\ \x41\u00e9 \q' }} {{ "a\"b" }}
{{ messages[0]['role'] == 'system' }} {{ messages[1:] | length }} {{ messages | map(attribute='role') | join(' ') }} {{ messages[-1].content.strip() }} {{ (messages | last).content | trim }} {{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}
{% for m in messages[::-1] %}{{ m.role[0] }}{{ loop.index0 }}{% endfor %} {% for m in messages %}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}|{{ m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}{% endif %}{% endfor %}
{% for m in messages if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }},{% endfor %}{% endfor %}{% endfor %}
{%- set sys = messages[0].content if messages[0].role == 'system' else none %}{{ sys }}{% if sys is not none %}!{% endif %}{% set rest = messages[1:] if sys else messages %}{{ rest | length }}
{{ strftime_now is defined }} {{ tools is defined }} {{ tools is not none }} {% if tools %}t{% endif %}{{ (tools or []) | length }}
{{ ('a' ~ 'b') | upper }} {{ 'a' ~ 'b' | upper }} {{ -1 | abs }} {{ 'x' if 'a' in ['a'] else 'y' }} {{ [1, 2, 3,] }} {{ (1) }} {{ 1_000 }} {{ True and False }} {{ None }}
{{ dict(a=1, b='x') }} {{ dict({'c': 2}, a=1) }} {{ namespace(a=1).a }} {{ range(3) | list }} {{ [1, 2] == [1, 2] }} {{ {'a': 1} == {'a': 1.0} }} {{ (1, 2) == [1, 2] }}
{{ d.0 }}|{{ l.0 }} {{ 'abc' | list }} {{ 5 | float }} {{ '%' ~ 5 }} {{ "x" | upper | lower }} {{ 1 == 1 and 2 != 3 }}
{% generation %}x{{ n }}{% endgeneration %}
{{ 10 | string | int + 5 }} {{ l | map('string') | join(',') }} {{ words | map('replace', 'a', 'z') | list }} {{ [[1, 'b'], [0, 'a']] | map(attribute=1) | list }} {{ [{'a': {'b': 3}}] | map(attribute='a.b') | list }}
{{ 'a' is in('abc') }} {{ 'Q' in 'abc' or 'b' in 'abc' }} {{ l is defined and l | length > 2 }} {{ (l | length) - 1 }} {{ loop is defined }}
""".strip("\n")

# Programs of several lines; separated by a line of dashes.
LONG = r"""
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
[{{ system }}]
{% for message in messages %}
    {% if message.role == 'user' %}
        {{- '<u>' + message.content + '</u>\n' }}
    {% elif message.role == 'tool' %}
  tool: {{ message.content }}
    {% else %}
        {# an answer #}
  {{ message.content }}  
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}<a>{% endif %}
-----
{% macro render(x, level=0) %}
{% if x is mapping %}
{% for k, v in x | dictsort %}
{{ '  ' * level }}{{ k }}:
{{ render(v, level + 1) -}}
{% endfor %}
{% elif x is iterable and x is not string %}
{% for v in x %}
{{ '  ' * level }}- {{ v }}
{% endfor %}
{% else %}
{{ '  ' * level }}{{ x }}
{% endif %}
{% endmacro %}
{{ render(deep) }}
{{ render(d) }}
-----

  leading space and lines

{%- set ns = namespace(is_first=true, last=-1) %}
{% for m in messages %}
  {%- if m.role == "user" %}
    {%- set ns.last = loop.index0 %}
  {% endif %}
{%- endfor %}
last {{ ns.last }}
{% for m in messages %}{% if loop.index0 > ns.last - 1 and not loop.first %}
{{ loop.index0 }}{{ "," if not loop.last }}{% endif %}{% endfor %}

{{ '\n' }}
-----
   {% if t %}   
   yes   
   {% endif %}   
done
   {%+ if t %} kept{% endif %}
   {% if t +%}
 x{% endif %}
{{ messages[1].content
   ~ "x" }}{% set long = [
  1, 2,
] %}{{ long }}
{%
  if t
%}
multi
{% endif
%}
""".strip("\n")


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def fail(why):
    raise jinja2.TemplateError(why)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = fail
    env.globals["strftime_now"] = lambda fmt: "now"
    return env


def programs():
    for line in PROGRAMS.split("\n"):
        yield line
    for text in LONG.split("\n-----\n"):
        yield text
        yield text + "\n\n"
        yield text.replace("\n", "\r\n")


def main():
    env = environment()
    rows = []
    for program in programs():
        try:
            text = env.from_string(program).render(**json.loads(json.dumps(CONTEXT)))
        except (jinja2.TemplateError, TypeError, ZeroDivisionError, ValueError) as e:
            sys.stderr.write(f"error {e!r}: {program}\n")
            text = None
        rows.append(json.dumps({"program": program, "rendered": text}))
    sys.stdout.write('{"context": ' + json.dumps(CONTEXT) + ',\n"rows": [\n' + ",\n".join(rows) + "\n]}\n")


if __name__ == "__main__":
    main()
