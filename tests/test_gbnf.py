"""Grammars: what llama.cpp could not survive is refused with the place of the fault."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.gbnf import MAX_BYTES, MAX_NESTING, check_grammar
from edge_sdk.errors import GrammarError

JSON_GRAMMAR = r"""
# the grammar of llama.cpp's json.gbnf
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    "text",
    [
        JSON_GRAMMAR,
        'root ::= "yes" | "no"',
        'root ::= ("a"? "b"*)* .+ [^\\n]{2,} "\\u00e9" [\\U0001F600-\\U0001F64F]',
        "root ::= item{0,1999}\nitem ::= [a-z]+ # remark\n",
        'root ::= "a" root | ""',
        'root ::= a b\r\na ::= "" | "x"\r\nb ::= "y"',
        "root ::= " + "(" * MAX_NESTING + '"a"' + ")" * MAX_NESTING,
        "root ::= " + " | ".join('"a"' for _ in range(4_000)),
    ],
)
def test_sound_grammars_pass(text: str) -> None:
    check_grammar(text)


CHAIN = "\n".join(f"r{at} ::= r{at + 1}" for at in range(700))
DOUBLING = "\n".join(f"a{at} ::= a{at + 1} | a{at + 1}" for at in range(30))
OPTIONAL = "\n".join(f"a{at} ::= a{at + 1} a{at + 1}" for at in range(30))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no rule named root"),
        ('a ::= "b"', "no rule named root"),
        ("root ::= foo", "'foo' without defining it"),
        ('root ::= "a"\nroot ::= "b"', "line 2 .*defined twice"),
        ('root ::= root "a" | "b"', "'root' is left-recursive"),
        ('root ::= x\nx ::= y "a"\ny ::= x | "c"', "left-recursive"),
        ('root ::= e root "x" | "y"\ne ::= f\nf ::= ""', "left-recursive"),  # llama.cpp misses this one
        ('root ::= ("a"? root)', "left-recursive"),
        ('root ::= "a', "ends early"),
        ("root ::= [a-", "ends early"),
        ('root ::= "\\q"', "escape is unknown"),
        ("root ::= []", "class is empty"),
        ("root ::= [^]", "class is empty"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a")', "unexpected text"),
        ('root = "a"', "`::=` is missing"),
        ('::= "a"', "name is missing"),
        ("root ::= *", "unexpected text"),
        ('root ::= ""*', "empty literal is repeated"),
        ('root ::= "a"{3,1}', "out of range"),  # llama.cpp would count down from 2^64
        ('root ::= "a"{2000}', "2000 rules and more"),
        ('root ::= (((("a"{1000}){1000}){1000}){1000}){1000}', "2000 rules and more"),
        ('root ::= ("a"?){0,500}', "something that may be empty"),
        ('root ::= "a\0b"', "not a character"),
        ('root ::= "\\UFFFFFFFF"', "not a character"),
        ("root ::= [\\uD800]", "not a character"),
        ("root ::= <[1000]>", "unexpected text"),
        ("root ::= <|im_end|>", "unexpected text"),
        ("root ::= " + "(" * 501 + '"a"' + ")" * 501, "more than 500 deep"),
        ("root ::= r0\n" + CHAIN + '\nr700 ::= "a"', "begins in too many ways"),
        ("root ::= a0\n" + DOUBLING + '\na30 ::= "x"', "begins in too many ways"),
        ("root ::= a0\n" + OPTIONAL + '\na30 ::= "x"?', "begins in too many ways"),
        ("root ::= " + " | ".join('"a"' for _ in range(6_000)), "begins in too many ways"),
        ("root ::= " + '"a"{1999} ' * 200, "too large"),
        ('root ::= "' + "a" * MAX_BYTES + '"', "bytes, more than"),
    ],
)
def test_grammars_that_would_hurt_are_refused(text: str, match: str) -> None:
    with pytest.raises(GrammarError, match=match):
        check_grammar(text)


@given(st.text('abroot:=()|*+?{}[]^".-\\ \n0123,<>é', max_size=60))
def test_any_text_passes_or_is_a_grammar_error(text: str) -> None:
    with contextlib.suppress(GrammarError):
        check_grammar("root ::= " + text)
