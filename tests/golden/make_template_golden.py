#!/usr/bin/env python3
"""Chat templates as Jinja2 renders them with transformers' settings, for tests/test_template.cpp.

    python tests/golden/make_template_golden.py [--gguf SmolLM2-135M-Instruct.gguf]

Made with jinja2 3.1.6, Python 3.11. Reads tests/golden/text/templates/*.jinja, each in the structure of a family's own
template, and writes tests/golden/text/templates.json:
  language  small templates with what they print, or null where Jinja2 raises an error
  pieces    what conversations are drawn from (chat() here and in the test)
  families  of each template: 8 digits of the SHA-256 of every conversation's text, "" where Jinja2 raises an error,
            and the text of the first one
"""
import argparse
import hashlib
import json
import os

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")
N_CHATS = 150
PIECES = ["Hello", " ", "\n", "", "What is 2 + 2?", "It's 4.", "  padded  ", "\n\nlines\n", "<think>\nhm, 2 + 2\n</think>\n\nfour", "</think>", "<think>",
          "<|im_end|>", "{{ 7 * 7 }}", "{% raw %}", "caf\u00e9 \U0001f99c", "\u4f60\u597d", "\"quoted\" 'single' \\", "\u3000wide\u3000", "<tool_response>", "</tool_response>",
          "\u00a0\u0085", "[INST]", "<b>&amp;</b>", "tab\there", "\x1c\x1f"]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Generation(jinja2.ext.Extension):
    """{% generation %} as transformers has it, for the text alone."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller):
        return caller()


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env  # strftime_now is left out: a text must not depend on the day


def chat(number):
    state = 77 + number

    def draw(n):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % n

    draw(2)
    messages = []
    if draw(3) == 0:
        messages.append({"role": "system", "content": PIECES[draw(len(PIECES))]})
    for i in range(1 + draw(6)):
        role = ["user", "assistant"][i % 2]
        if draw(16) == 0:
            role = ["system", "user", "assistant"][draw(3)]
        content = "".join(PIECES[draw(len(PIECES))] for _ in range(draw(4)))
        messages.append({"role": role, "content": content})
    return messages


VARIABLES = {"a": 1, "b": -7, "x": 2.5, "s": "Hello World", "t": "  pad\u00e9  ", "empty": "", "no": None, "yes": True, "l": [3, 1, 2], "words": ["b", "a", "C"],
             "d": {"k": "v", "n": 1, "items_": [1, {"z": None}]}, "people": [{"name": "Al", "age": 3, "on": True}, {"name": "bo", "age": 1, "on": False}, {"name": "Cy", "age": 2}], "q": "it's", "u": "\u4f60\u597d!"}
LANGUAGE = r"""{{ a + 2 * 3 - 4 / 2 }}|{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}
{{ 1 / 3 }} {{ 10 / 2 }} {{ 1e16 }} {{ 1e15 }} {{ 0.0001 }} {{ 0.00001 }} {{ 123456789.125 }} {{ 1_000 }} {{ 1.0 }} {{ -0.0 }}
{{ a ~ b ~ x ~ no ~ yes ~ l ~ d }}|{{ (1, 'a') }} {{ (1,) }} {{ () }} {{ [] }} {{ {} }} {{ {'a': [1, (2, 3)]} }}
{{ [q, 'say "x"', "both ' and \"", 'nl\n\t\\', u] }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ yes == 1 }} {{ 'a' == 1 }} {{ no == false }} {{ l == [3, 1, 2] }} {{ d == d }}
{{ 1 in l }} {{ 9 not in l }} {{ 'ell' in s }} {{ 'k' in d }} {{ 'x' in nothing }} {{ not 1 in l }}
{{ s if a else q }} {{ s if no }}|{{ 'x' if no else 'y' if empty else 'z' }} {{ no or 'or' }} {{ a and q }} {{ not a }} {{ empty and a }}|
{{ s[0] }} {{ s[-1] }} {{ s[2:5] }} {{ s[::-1] }} {{ s[:-3] }} {{ s[99:] }}|{{ u[0] }} {{ u[1:] }} {{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[::2] }} {{ s[-99:2] }} {{ s[4:1:-1] }}
{{ l[9] }}|{{ d.k }} {{ d['k'] }} {{ d.missing }}|{{ d['missing'] }}|{{ nothing }}|{{ no.x }}|{{ s.x }}|{{ a.b }}|{{ d.items_[1].z }} {{ l.0 }}
{{ nothing.x }}
{{ nothing + 'a' }}
{{ 'a' + 1 }}
{{ 1 + no }}
{{ l + [4] }} {{ 'ab' * 2 }} {{ 2 * 'ab' }} {{ [1] * 3 }} {{ 'a' 'b' }}
{{ t | trim }}|{{ t.strip() }}|{{ t.lstrip() }}|{{ t.rstrip() }}|{{ 'xxaxx'.strip('x') }} {{ 'abcba' | trim('ab') }} {{ s.lstrip('He') }}
{{ s | length }} {{ u | length }} {{ l | count }} {{ d | length }} {{ nothing | length }} {{ s.upper() }} {{ s | lower }} {{ s.title() }} {{ "it's a dog-day (now)" | title }} {{ "it's a".title() }} {{ 'hELLO wORLD' | capitalize }}
{{ d | tojson }} {{ l | tojson(indent=2) }} {{ d | tojson(indent=1) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ 'é"\\\n\x01' | tojson }} {{ 'é🦜' | tojson(ensure_ascii=true) }} {{ d | tojson(separators=(',', ':')) }} {{ {'b': 1, 'a': 2.5} | tojson(sort_keys=true) }} {{ [true, none, 1.0] | tojson }}
{{ l | join }} {{ l | join(', ') }} {{ people | join('+', attribute='name') }} {{ 'abc' | join('-') }} {{ ', '.join(words) }}
{{ l | first }} {{ l | last }} {{ s | first }} {{ [] | first }}|{{ l | sort }} {{ l | sort(reverse=true) }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ people | sort(attribute='age') | map(attribute='name') | list }}
{{ nothing | default('dflt') }} {{ empty | default('dflt') }}|{{ empty | default('dflt', true) }} {{ no | d('x', boolean=true) }} {{ nothing | default }}|
{{ people | map(attribute='name') | list }} {{ words | map('upper') | join(' ') }} {{ people | map(attribute='on', default='?') | list }} {{ l | map('string') | list }}
{{ people | selectattr('on') | map(attribute='name') | list }} {{ people | selectattr('on', 'defined') | list | length }} {{ people | rejectattr('age', 'equalto', 2) | map(attribute='name') | list }} {{ people | selectattr('name', 'in', ['Al', 'Cy']) | map(attribute='age') | list }} {{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ [0, 1, ''] | select | list }}
{{ 5 | string + '!' }} {{ '42' | int + 1 }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '3.9' | int }} {{ 3.9 | int }} {{ '2.5' | float }} {{ 'z' | float(1.5) }} {{ b | abs }} {{ ' 12 ' | int }}
{{ d.items() | list }} {{ d | items | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.get('k') }} {{ d.get('zz') }} {{ d.get('zz', 'q') }} {{ {'b': 1, 'a': 2} | dictsort }}
{{ s.replace('l', 'L') }} {{ s | replace('o', '0', 1) }} {{ s.replace('l', 'L', 2) }} {{ 'abc'.replace('', '-') }} {{ s | safe }} {{ l | reverse | list }} {{ 'abc' | reverse }} {{ ['a', 'A', 'b'] | unique | list }} {{ l | min }} {{ l | max }}
{{ words | min }} {{ words | max }} {{ ['B', 'a'] | min(case_sensitive=true) }} {{ ['B', 'a'] | max(true) }} {{ ['a', 'A'] | max }} {{ ['A', 'a'] | min }} {{ [] | min }}|{{ 'hEy' | max }} {{ [2, 1.5, true] | min }} {{ [[1, 'b'], [1, 'a']] | min }} {{ d | max }} {{ nothing | max }}|
{{ (people | min(attribute='age')).name }} {{ (people | max(attribute='name')).name }} {{ (people | max(false, 'name')).age }} {{ (people | max(true, 'name')).age }} {{ (people | min(case_sensitive=true, attribute='name')).name }} {{ [[1, 5], [2, 4]] | min(attribute=1) }} {{ [[1, 5], [2, 4]] | max(attribute='1') }} {{ [{'a': {'b': 2}}, {'a': {'b': 1}}] | min(attribute='a.b') }} {{ [{'a': [3, 9]}, {'a': [4, 8]}] | max(attribute='a.1') }} {{ l | min(attribute=none) }}
{{ people | min(attribute='on') }} {{ people | max(attribute='zz') }}
{{ l | min(1, 2, 3) }}
{{ [1, 'a'] | max }}
{{ l | batch(2) | list }} {{ l | batch(2, 'x') | list }} {{ l | batch(3, 'x') | list }} {{ l | batch(5, 0) | list }} {{ l | batch(5) | list }} {{ [] | batch(2, 'x') | list }} {{ 'abcde' | batch(2, '-') | list }} {{ d | batch(2) | list }} {{ l | batch(linecount=2, fill_with=none) | list }} {{ l | batch(0) | list }} {{ l | batch(-1, 'x') | list }} {{ range(7) | batch(3, '') | map('join', '+') | join('|') }} {{ nothing | batch(2) | list }}
{% for row in range(5) | batch(2, '&') %}[{% for c in row %}{{ c }}{% endfor %}]{% endfor %}{{ l | batch }}
{{ people[:2] | groupby('on') }} {{ people | groupby('name') | map('first') | list }} {% for g in people[:2] | groupby('on') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join(',') }};{{ g[0] }}{{ g['grouper'] }}{{ g | length }}{% endfor %}
{% for k, v in people | groupby('age') %}{{ k }}={{ v[0].name }};{% endfor %}{{ people | groupby(attribute='on', default=false) | map(attribute='grouper') | list }} {{ people[:2] | groupby('on') | map(attribute='list') | map('length') | list }} {{ people | groupby('name', case_sensitive=true) | map(attribute='grouper') | list }} {{ [{'k': 'b'}, {'k': 'B'}, {'k': 'a'}] | groupby('k') }} {{ [{'k': 'b'}, {'k': 'B'}, {'k': 'a'}] | groupby('k', case_sensitive=true) }} {{ [{'k': 'B'}, {'k': 'b'}] | groupby('k', 'x', true) }} {{ [[1, 'x'], [2, 'y'], [1, 'z']] | groupby(0) }} {{ [[1, 'x'], [1, 'z']] | groupby('0') }} {{ [{'a': {'b': 1}}, {'a': {}}] | groupby('a.b', default=0) }} {{ [] | groupby('x') }}
{% for g in people[:2] | groupby('on') %}{{ g }} {{ g == (g.grouper, g.list) }} {{ g.nope }} {{ g is sequence }}{% endfor %} {{ people | groupby('age', 7) | list | tojson }}
{{ people | groupby('on') }}{{ people | groupby('zz') }}
{{ people | groupby }}
{{ s | wordcount }} {{ '' | wordcount }} {{ '  a  b ' | wordcount }} {{ "it's a dog-day" | wordcount }} {{ u | wordcount }} {{ t | wordcount }} {{ 'a_b c_ _' | wordcount }} {{ '1,2;3.5' | wordcount }} {{ 12.5 | wordcount }} {{ l | wordcount }} {{ no | wordcount }} {{ 'e\u0301e \u00bd \u2167 \u3007\u3042-\u30a2' | wordcount }} {{ nothing | wordcount }} {{ 'a\u00a0b\u200bc' | wordcount }}
[{{ s | center(20) }}] [{{ s | center(21) }}] [{{ s | center }}] [{{ 'ab' | center(5) }}] [{{ 'abc' | center(6) }}] [{{ u | center(7) }}] [{{ s | center(3) }}] [{{ s | center(-4) }}] [{{ 12 | center(width=5) }}] [{{ '' | center(3) }}] [{{ no | center(7) }}] [{{ nothing | center(2) }}]
{{ s | center(80, 'x') }}
{{ s | wordcount(1) }}
{{ ['a', 'A', 'b'] | unique(true) | list }} {{ people | unique(attribute='on') | map(attribute='name') | list }} {{ [{'k': 'x'}, {'k': 'X'}] | unique(false, 'k') | list }} {{ [{'k': 'x'}, {'k': 'X'}] | unique(case_sensitive=true, attribute='k') | list }} {{ [[1, 2], [1, 3]] | map(attribute=1) | list }} {{ [[1, 2], [1, 3]] | map(attribute='1') | list }} {{ [{'a': {'b': 1}}, {}] | map(attribute='a.b', default={'b': 5}) | list }} {{ [[2], [1]] | sort(attribute=0) }} {{ [[2], [1]] | sort(attribute='0') }} {{ people | selectattr('name', 'eq', 'Al') | map(attribute='age', default=none) | list }} {{ [[0, 1], [1, 0]] | selectattr(0) | list }} {{ [[1], [2]] | join('-', attribute=0) }}
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a b  c d'.split(none, 2) }} {{ 'abc'.split('x') }} {{ ''.split(',') }} {{ ''.split() }} {{ 'l1\nl2\r\nl3'.splitlines() }} {{ 'a\n\nb\n'.splitlines(true) }}
{{ s.startswith('He') }} {{ s.endswith(('x', 'ld')) }} {{ s.find('o') }} {{ u.find('!') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ s.count('l') }} {{ '12'.isdigit() }} {{ ''.isdigit() }} {{ ' '.isspace() }} {{ s.removeprefix('Hell') }} {{ s.removesuffix('x') }}
{{ a is defined }} {{ nothing is defined }} {{ nothing is undefined }} {{ no is none }} {{ s is string }} {{ d is mapping }} {{ l is iterable }} {{ s is iterable }} {{ l is sequence }} {{ d is sequence }} {{ a is number }} {{ x is number }} {{ yes is number }} {{ a is integer }} {{ x is float }} {{ yes is boolean }} {{ yes is true }} {{ a is true }} {{ a is odd }} {{ 6 is divisibleby 3 }} {{ a is divisibleby(2) }} {{ 'A' is upper }} {{ 'a' is lower }} {{ a is not none }} {{ no is not defined }} {{ 1 is in [1] }} {{ a is eq 1 }} {{ a is ne(2) }} {{ a is gt 0 }} {{ a is sequence }} {{ range is callable }} {{ a is equalto 1 and b is lt 0 }}
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }};{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in u %}[{{ c }}]{% endfor %}{% for i in [] %}x{% else %}none{% endfor %}{% for i in nothing %}x{% else %}undef{% endfor %}
{% for i in range(5) if i % 2 %}{{ i }}/{{ loop.length }} {% endfor %}{{ range(3) | list }} {{ range(5, 1, -2) | list }} {{ range(2, 4) | list }}
{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% set y = 1 %}{% for i in l %}{{ y }}{% set y = 5 %}{{ y }}{% endfor %}{{ y }}{% if true %}{% set y = 9 %}{% endif %}{{ y }}
{% set ns = namespace(n=0) %}{% for i in l %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ ns.missing }}{% set p, r = 1, 2 %}{{ p }}{{ r }}{% set z %}block {{ a }}{% endset %}{{ z }}{% set z | upper | trim %} shout {% endset %}{{ z }}
{% macro m(p, r='dr') %}[{{ p }}{{ r }}{{ y }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(r=3, p=4) }}{{ m() }}{% set y = 'g' %}{{ m('c') }}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}
{% if a == 1 %}one{% elif a == 2 %}two{% else %}more{% endif %}{% if no %}x{% elif yes %}y{% endif %}{% if l and d and s %}full{% endif %}
{% raw %}{{ raw }} {% if %}{% endraw %}{# comment {{ x }} #}after{#- c -#}   tight
a  {%- if yes %}  b  {%- endif %}  c {{- ' d ' -}}  e
   {% if yes %}
  indented {{ a }}
   {% endif %}
 x {% if yes %} y
{% endif %}z
{%+ if yes %}kept{% endif +%}
end
{{ "esc\t\x41\u00e9\101\'\"\q" }} {{ 'two
lines' }}
{{ raise_exception('no') }}
{{ s | nosuch }}
{{ 1 is nosuch }}
{% include 'x' %}
{{ l.append(4) }}
{{ s.__class__ }}|{{ s['__class__'] }}
{{ range(10) | sum_ }}
{% for i in 5 %}{% endfor %}
{{ namespace(a=1).a }}{{ dict(a=1, b='x') }}{{ dict(a=1).a }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}
{{ a if a is defined and a is not none else 'n' }}{{ -a }}{{ +a }}{{ -x }}{{ - b | abs }}{{ not a == 2 }}{{ (a == 1) == (b == 1) }}{{ a == 1 and not b == 1 }}
{{ messages[0].role if messages is defined else 'none' }}{{ {'a': {'b': {'c': 1}}}.a.b.c }}{{ {'a': [1, 2]}['a'][1] }}{{ [[1, 2], [3]][0][1] }}
{{ s == 'Hello World' and 'yes' or 'no' }}{{ (l | length) > 2 }}{{ l | length > 2 }}{{ s ~ '!' | upper }}{{ s + '!' | upper }}{{ a + b | abs }}
{{ 'a' if false }}{{ [nothing] }}{{ true }}{{ True }}{{ none }}{{ None }}{{ 1, 2 }}
{% set d2 = {'role': 'x', 'content': [{'type': 'text', 'text': 'hi'}]} %}{% for c in d2.content if c.type == 'text' %}{{ c['text'] }}{% endfor %}{{ d2.content[0].text }}{{ d2['content'] is string }}
{% set generation = 3 %}{{ generation }}{% generation %}gen{{ a }}{% endgeneration %}{%- generation -%}  tight  {%- endgeneration -%}
{{ 9223372036854775807 }} {{ 1 if 1.0 is float else 2 }} {{ 5.0 | int }} {{ 'x' * 0 }}|{{ 10 | string | length }}
{% for x in [1, 2] %}{% for y in [1, 2] %}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }}{% endfor %}{% for x in [1] %}{% set loop_ = loop %}{{ loop_.index }}{% endfor %}{{ x }}
{{ strftime_now is defined }} {{ lipsum_ is defined }}
{{ }}
{% if %}{% endif %}
{% for %}{% endfor %}
{{ 'open }}
{{ (1 }}
{% endif %}
{% if a %}
{{ a b }}
{{ a | }}
{{ .a }}
{# open
{{ 1 ++ }}
{{ people | sort(attribute='on,age') }}
{{ people | sort(attribute='name,age', reverse=true) | map(attribute='name') | list }} {{ [{'a': 1, 'b': 'B'}, {'a': 1, 'b': 'a'}, {'a': 0, 'b': 'z'}] | sort(attribute='a,b') }} {{ [{'a': 1, 'b': 'B'}, {'a': 1, 'b': 'a'}] | sort(attribute='a,b', case_sensitive=true) }} {{ [[1, 'x'], [0, 'y']] | sort(attribute='0,1') }}
{{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'b': 1, 'a': 2} | dictsort(reverse=true) }} {{ {'b': 1, 'a': 2} | dictsort(false, 'value', true) }} {{ {'b': 'x', 'a': 'X', 'c': 'W'} | dictsort(true, 'value') }} {{ {'b': 'x', 'a': 'X', 'c': 'W'} | dictsort(by='value') }} {{ {'B': 1, 'a': 2} | dictsort }} {{ {'B': 1, 'a': 2} | dictsort(case_sensitive=true) }}
{{ {'b': 1} | dictsort(by='neither') }}
{% filter upper %}abc{{ s }}{% endfilter %}{% filter trim | replace('a', 'e') %}  abc  {% set w = 1 %}{% endfilter %}{{ w }}
{% with w = 3, v = a %}{{ w }}{{ v }}{% set w = 4 %}{{ w }}{% endwith %}{{ w }}{% with %}{{ a }}{% set w = 2 %}{% endwith %}{{ w }}
{% for i in l %}{{ loop.cycle('a', 'b') }}{% endfor %}
{% set w = 1 %}{% set v %}{{ w }}{% set w = 3 %}{{ w }}{% endset %}{{ v }}{{ w }}{% generation %}{{ w }}{% set w = 4 %}{{ w }}{% endgeneration %}{{ w }}{% for i in l %}{% generation %}{{ loop.index }}{% set z = i %}{% endgeneration %}{{ z }}{% endfor %}
{% macro m(p, q) %}{{ p }}{{ q }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(3, *(4,)) }}{{ [m][0](*'xy') }}{{ s.replace(*['l', 'L']) }}
{{ 'T' if l | select('gt', 9) else 'F' }}{{ 'T' if l | select('gt', 9) | list else 'F' }}{% set v = l | map('string') %}{{ v | list }}{{ v | list }}{% set v = l | reject('eq', 3) %}{{ v | first }}{{ v | list }}{% set v = l | map('string') %}{{ '1' in v }}{{ v | list }}{{ l | unique | reverse }}
{{ l | map('string') | length }}
{{ l | select | last }}
{{ l | reverse | length }}
{{ (l | map('string'))[0] }}|{{ (l | reverse)[0] is defined }}|{{ d.items()[0] }}|{{ range(5)[1:3] | list }}{{ range(3)[1] }}{{ range(3) == range(3) }}{{ range(3) == [0, 1, 2] }}{{ range(3) | length }}{{ d.keys() | length }}{{ 1 if {}.keys() else 0 }}
{{ d.keys() is sequence }}{{ range(3) is sequence }}{{ l | map('string') is sequence }}{{ (l | map('string')) is sequence }}{{ (l | map('string')) is iterable }}{{ d.items() is iterable }}
{{ d.keys() | tojson }}
{{ range(3) | tojson }}
{{ range(2) + [1] }}
{{ d.keys() + [1] }}
{{ l | first(1) }}
{{ l | length(3) }}
{{ [1, 2] < (1, 3) }}
{{ 'é\u200b\xad\x80🦜' | list }} {{ ['\u2028', '\ue000', '\x7f', '\u3000', '\u0300', '\U000e0001', '\ufeff', '\u00a0'] }}
{{ '\N{DASHES}' }}"""


def language():
    """Each line of LANGUAGE alone, and runs of lines whose newlines matter."""
    lines = LANGUAGE.split("\n")
    whole = "   {% if yes %}   \n  indented {{ a }}\n   {% endif %}   \n x {% if yes %} y\n{% endif %}z\n{%+ if yes %}kept{% endif +%}\nend\n"
    spaced = "<  {%- for i in l -%}\n  {{ i }}\n  {%- endfor %}  >\n\n  {#- c -#}\n  {{- a -}}  \n  {% raw -%}  r  {%- endraw %}\n  {% set v = 1 %}\n\tt {% set w = 2 %} \n{{ v }}\r\n{{ w }}\r\n\r\n"
    env = environment()
    out = []
    for text in lines + [whole, spaced, "a\n", "a\n\n", "", "\n", "{{ a }}\n", "  {# x #}\n  b", "{% if yes %}\n\n{% endif %}\n", "x\n  {%- if yes %} y {% endif -%}\n z", "{{ '{{' }}{{ '}}' }}{{ {'a': {}} }}"]:
        try:
            printed = env.from_string(text).render(**VARIABLES)
        except Exception:
            printed = None
        out.append([text, printed])
    return out


def families(gguf_path):
    texts = {}
    for file in sorted(os.listdir(os.path.join(HERE, "templates"))):
        with open(os.path.join(HERE, "templates", file), encoding="utf-8", newline="") as f:
            texts[file[:-len(".jinja")]] = f.read()
    if gguf_path:
        import gguf
        texts["smollm2-gguf"] = gguf.GGUFReader(gguf_path).fields["tokenizer.chat_template"].contents()
    out = {}
    for name, text in texts.items():
        template = environment().from_string(text)
        rendered = []
        for i in range(N_CHATS):
            for ask in (False, True):
                try:
                    rendered.append(template.render(messages=chat(i), tools=None, documents=None, add_generation_prompt=ask, **TOKENS))
                except jinja2.exceptions.TemplateError:
                    rendered.append(None)
        out[name] = {"hashes": " ".join("-" if r is None else hashlib.sha256(r.encode()).hexdigest()[:8] for r in rendered), "first": next(r for r in rendered if r)}
        print(name, sum(r is None for r in rendered), "errors of", len(rendered))
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf")
    args = parser.parse_args()
    with open(os.path.join(HERE, "templates.json"), "w", encoding="utf-8") as f:
        json.dump({"variables": VARIABLES, "language": language(), "pieces": PIECES, "n_chats": N_CHATS, "families": families(args.gguf)}, f,
                  ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
