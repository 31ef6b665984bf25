"""The template sandbox against hostile templates: they fail, they fail soon, and they reach nothing."""

from __future__ import annotations

import contextlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.template_sandbox import MAX_TEMPLATE, BoundedTemplate
from edge_sdk.errors import TemplateError

BIG = "'a' * 60000"
LOOP = "{% for i in range(60000) %}"
GROWING = "{% set n = namespace(x=START) %}{% for i in range(90) %}STEP{% endfor %}{{ n.x | string | length }}"


def growing(start: str, step: str) -> str:
    return GROWING.replace("START", start).replace("STEP", step)


HOSTILE = {
    "nested loops": LOOP * 2 + "{% endfor %}{% endfor %}",
    "nested loops that write": LOOP * 2 + "x{% endfor %}{% endfor %}",
    "nested loops that pass over all": LOOP + "{% for j in range(60000) if false %}{% endfor %}{% endfor %}",
    "a loop over a long text": "{% set x = " + BIG + " %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop(range(9000)) }}{% endfor %}",
    "a range too long": "{% for i in range(10 ** 9) %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "a caller in loops": "{% macro m() %}" + LOOP + "{{ caller() }}{% endfor %}{% endmacro %}{% call m() %}"
    "{% for j in range(9000) %}{% endfor %}{% endcall %}",
    "a text times a number": "{{ 'a' * 10 ** 10 }}",
    "a number times a text": "{{ 10 ** 10 * 'a' }}",
    "a list times a number": "{{ ['a'] * 10 ** 9 }}",
    "long texts in a long list": "{% set x = " + BIG + " %}{% set y = [x] * 60000 %}{{ y | join | length }}",
    "a tower of powers": "{{ 10 ** 10 ** 10 }}",
    "a number that is squared": growing("10", "{% set n.x = n.x * n.x %}"),
    "a text that is doubled": growing("'aa'", "{% set n.x = n.x + n.x %}"),
    "a text that is doubled by ~": growing("'aa'", "{% set n.x = n.x ~ n.x %}"),
    "a text that is doubled in a block": growing("'aa'", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    "text in a block in a loop": "{% set x %}" + LOOP + "y" * 60_000 + "{% endfor %}{% endset %}",
    "a list of itself": growing("['a']", "{% set n.x = [n.x, n.x] %}"),
    "a tuple of itself": growing("('a',)", "{% set n.x = (n.x, n.x) %}"),
    "a dict of itself": growing("{'a': 1}", "{% set n.x = {'a': n.x, 'b': n.x} %}"),
    "lists added": growing("[[1]]", "{% set n.x = [n.x] + [n.x] %}"),
    "namespaces of namespaces": growing("namespace(a=1)", "{% set n.x = namespace(a=n.x, b=n.x) %}"),
    "a long separator": "{{ range(60000) | join(" + BIG + ") }}",
    "a long separator as a method": "{{ (" + BIG + ").join(['b'] * 60000) }}",
    "a replacement by much": "{{ (" + BIG + ") | replace('a', " + BIG + ") }}",
    "a replacement of nothing": "{{ (" + BIG + ").replace('', " + BIG + ") }}",
    "replacements in map": "{{ range(60000) | map('replace', '1', " + BIG + ") | list | length }}",
    "a deep indent": "{{ ('a\n' * 30000) | indent(60000) }}",
    "a wide indent": "{{ ('a\n' * 30000) | indent(" + BIG + ") }}",
    "a wide JSON": "{{ [1] * 900 | tojson(indent=10 ** 9) }}",
    "comparisons": "{% set x = "
    + BIG
    + " %}{% set y = "
    + BIG
    + " %}"
    + LOOP
    + "{% if x == y %}{% endif %}{% endfor %}",
    "searches in a list": "{% set x = range(60000) | list %}" + LOOP + "{% if -1 in x %}{% endif %}{% endfor %}",
    "searches by a test": "{% set x = range(60000) | list %}" + LOOP + "{% if -1 is in x %}{% endif %}{% endfor %}",
    "slices": "{% set x = " + BIG + " %}" + LOOP + "{% set y = x[1:] %}{% endfor %}",
    "sorting": "{% set x = range(9000) | list %}" + LOOP + "{% set y = x | sort %}{% endfor %}",
    "splitting": "{% set x = 'a ' * 30000 %}" + LOOP + "{% set y = x.split() %}{% endfor %}",
    "much output": "{% for i in range(9) %}{{ " + BIG + " }}{% endfor %}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "str.format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "% formatting": "{{ '%1000000000d' % 1 }}",
    "the format filter": "{{ '%1000000000d' | format(1) }}",
    "the center filter": "{{ 'a' | center(10 ** 9) }}",
    "the center filter in map": "{{ ['a'] | map('center', 10 ** 9) | list }}",
    "the round filter": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "str.ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "str.zfill": "{{ 'a'.zfill(10 ** 9) }}",
    "str.expandtabs": "{{ '\t'.expandtabs(10 ** 9) }}",
    "lipsum": "{{ lipsum(n=10 ** 9) }}",
    "the class of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the class by subscript": "{{ ''['__class__'].__mro__ }}",
    "the class by the attr filter": "{{ '' | attr('__class__') }}",
    "the class by map": "{{ [''] | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "the globals of a function": "{{ raise_exception.__globals__['__builtins__'] }}",
    "the globals of a class": "{{ namespace.__init__.__globals__ }}",
    "the code of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "the context": "{{ self._TemplateReference__context.environment }}",
    "importing": "{% import 'os' as os %}",
    "including": "{% include '/etc/passwd' %}",
    "extending": "{% extends 'base' %}",
    "changing a list": "{{ things.append(1) }}",
    "changing a dict": "{{ things[0].update({'a': 2}) }}",
    "deep lists": "{{ " + "[" * 3_000 + "]" * 3_000 + " }}",
    "deep sums": "{{ " + "1 + " * 15_000 + "1 }}",
    "deep loops": "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
    "division by zero": "{{ 1 / 0 }}",
    "a template that is too long": "x" * (MAX_TEMPLATE + 1),
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_in_a_template_error(source: str) -> None:
    """Each would run for hours, take gigabytes or leave the sandbox if its trick worked."""
    things = [{"a": 1}]
    with pytest.raises(TemplateError) as caught:
        BoundedTemplate(source).render(2, things=things)
    assert len(str(caught.value)) < 400
    assert things == [{"a": 1}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ cycler }}{{ joiner }}{{ dict }}{{ open }}{{ __import__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ (range(3) | map('string')).gi_frame }}",
    ],
)
def test_what_is_not_there_prints_as_nothing(source: str) -> None:
    assert BoundedTemplate(source).render(0) == ""


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("{{ ' a ' | trim }}{{ 'b' | upper }}{{ 'cd' | length }}{{ [3, 1] | sort | join('-') }}", "aB21-3"),
        ("{{ {'b': [1, 'é', none, true]} | tojson }}", '{"b": [1, "é", null, true]}'),
        ("{{ [{'a': 1}] | tojson(indent=2) }}", '[\n  {\n    "a": 1\n  }\n]'),
        ("{{ 'a,b'.split(',')[-1] }}{{ 'x'.startswith('x') }}{{ 'a-b'.replace('-', '+') }}", "bTruea+b"),
        ("{{ ','.join(['a', 'b']) }}{{ [1, none, 'c'] | join('/') }}", "a,b1/None/c"),
        ("{{ [1, [2, 'x']] }}{{ {'a': 1.5} }}{{ none }}", "[1, [2, 'x']]{'a': 1.5}None"),
        ("{% for k, v in {'a': 1}.items() %}{{ loop.last }}{{ k }}{{ v }}{% endfor %}", "Truea1"),
        ("{{ [1, 2, 3][1:] | length }}{{ 7 % 4 }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ -1 + 2.5 }}", "23381.5"),
        ("{{ items | selectattr('n', 'gt', 1) | map(attribute='n') | list | first }}", "2"),
        ("{% macro m(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call m('b') %}!{% endcall %}", "<b!>"),
        ("{{ 'a\nb' | indent(2) }}|{{ 'ab'[::-1] }}|{{ 'x' ~ 1 ~ none }}", "a\n  b|ba|x1None"),
        ("{{ missing | default('d') }}{{ missing is defined }}{{ 'a' in 'abc' }}{{ 2 is even }}", "dFalseTrueTrue"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{% filter upper %}a{% endfilter %}{% set x %}b{% endset %}{{ x }}", "Ab"),
    ],
)
def test_what_templates_really_do_works(source: str, output: str) -> None:
    assert BoundedTemplate(source).render(10, items=[{"n": 1}, {"n": 2}]) == output


def test_the_limits_grow_with_the_input() -> None:
    source = "{% for i in range(4) %}{{ text }}{% endfor %}"
    text = "x" * 200_000
    assert len(BoundedTemplate(source).render(len(text), text=text)) == 800_000
    with pytest.raises(TemplateError, match="200000 characters"):
        BoundedTemplate(source).render(0, text=text)


def test_the_same_budget_is_spent_each_time() -> None:
    template = BoundedTemplate("{% for i in range(n) %}{% for j in range(300) %}{% endfor %}{% endfor %}")
    assert [template.render(0, n=100) for _ in range(5)] == [""] * 5
    for _ in range(2):
        with pytest.raises(TemplateError, match="too much work"):
            template.render(0, n=1_000)


@given(st.text("{}%ab |'.+*~[]()=# \n", max_size=40))
def test_random_templates_render_or_end_in_a_template_error(source: str) -> None:
    with contextlib.suppress(TemplateError):
        assert isinstance(BoundedTemplate(source).render(0, a="x", b=[1]), str)


def test_deep_recursion_leaves_the_interpreter_usable() -> None:
    before = sys.getrecursionlimit()
    with pytest.raises(TemplateError):
        BoundedTemplate(HOSTILE["deep sums"])
    assert sys.getrecursionlimit() == before
