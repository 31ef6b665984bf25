"""Checks grammars before they reach llama.cpp.

llama.cpp overflows its stack on deep nesting, runs for hours on ambiguous rules, and prints to standard error where
a grammar does not parse; none of it can be caught. The language, GBNF, is that of llama.cpp's grammars/README.md,
less its token references. Knows nothing of tokens or models.
"""

from __future__ import annotations

import re
from typing import NoReturn

from ..errors import GrammarError

MAX_BYTES, MAX_NESTING = 128 << 10, 500
_MAX_REPEATS, _MAX_SYMBOLS, _MAX_STARTS, _MAX_CHAIN = 2_000, 200_000, 5_000, 600
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_OR_LINE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_CHARACTER = re.compile(
    r"""\\x([0-9a-fA-F]{2}) | \\u([0-9a-fA-F]{4}) | \\U([0-9a-fA-F]{8}) | \\([trn\\"\[\]-]) | ([^\\])""", re.VERBOSE
)
_REPEAT = re.compile(r"[*+?]|\{[ \t]*(\d{1,6})[ \t]*(?:(,)[ \t]*(\d{1,6})?[ \t]*)?\}")

_Sequence = list[str | None]  # names of rules; None consumes a character
_Rules = dict[str, list[_Sequence]]


def check_grammar(text: str) -> None:
    """Raise `GrammarError`, with the line, for a grammar that llama.cpp could not compile safely.

    >>> check_grammar('root ::= "yes" | "no"')
    >>> check_grammar('root ::= root "a"')
    Traceback (most recent call last):
    ...
    edge_sdk.errors.GrammarError: the rule 'root' is left-recursive
    """
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise GrammarError(f"the grammar has {size} bytes, more than {MAX_BYTES}")
    parser = _Parser(text)
    rules = parser.parse()
    if "root" not in rules:
        raise GrammarError("the grammar has no rule named root")
    for sequences in rules.values():
        for sequence in sequences:
            for name in sequence:
                if name is not None and name not in rules:
                    raise GrammarError(f"the grammar uses the rule {name!r} without defining it")
    nullable = _nullable(rules)
    for item in parser.counted:
        if nullable.issuperset(item):
            raise GrammarError("the grammar repeats, a bounded number of times, something that may be empty")
    _check_starts(rules, nullable)


class _Parser:
    """Flattens a grammar: each group and each repetition becomes a rule of its own."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.rules: _Rules = {}
        self.symbols = 0
        self.made = 0  # rules that llama.cpp makes up for groups and repetitions
        self.counted: list[_Sequence] = []  # what is repeated with an upper bound

    def fail(self, message: str) -> NoReturn:
        line = self.text.count("\n", 0, self.at) + 1
        raise GrammarError(f"line {line} of the grammar: {message}, at {self.text[self.at : self.at + 20]!r}")

    def skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found.group()

    def parse(self) -> _Rules:
        self.skip(_SPACE_OR_LINE)
        while self.at < len(self.text):
            name = self.skip(_NAME)
            if not name:
                self.fail("a rule's name is missing")
            if name in self.rules:
                self.fail(f"the rule {name!r} is defined twice")
            self.skip(_SPACE)
            if not self.text.startswith("::=", self.at):
                self.fail("`::=` is missing")
            self.at += 3
            self.skip(_SPACE_OR_LINE)
            self.rules[name] = self.alternatives()
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                self.fail("unexpected text")
            self.skip(_SPACE_OR_LINE)
        return self.rules

    def alternatives(self) -> list[_Sequence]:
        """The right side of a rule. Open groups wait on a list, so that nesting does not use Python's stack."""
        waiting: list[tuple[list[_Sequence], int]] = []
        here: list[_Sequence] = [[]]
        while True:
            self.skip(_SPACE_OR_LINE if waiting else _SPACE)
            mark = self.text[self.at : self.at + 1]
            if mark == "(":
                if len(waiting) == MAX_NESTING:
                    self.fail(f"groups are nested more than {MAX_NESTING} deep")
                self.at += 1
                waiting.append((here, self.made))
                self.made += 1
                here = [[]]
            elif mark == ")" and waiting:
                self.at += 1
                group = self.rule(here)
                here, made = waiting.pop()
                self.add(here, group, self.made - made, bool(waiting))
            elif mark == "|":
                self.at += 1
                self.skip(_SPACE_OR_LINE)
                here.append([])
            elif mark and (mark in '"[.' or _NAME.match(mark)):
                self.add(here, self.item(mark), 1, bool(waiting))
            elif waiting:
                self.fail("a group is not closed")
            else:
                return here

    def item(self, mark: str) -> _Sequence:
        if mark == '"':
            return [None] * self.characters('"')
        if mark == "[":
            if not self.characters("]"):
                self.fail("a character class is empty")
            return [None]
        if mark == ".":
            self.at += 1
            return [None]
        return [self.skip(_NAME)]

    def characters(self, end: str) -> int:
        """Read a literal or a character class up to `end`; return the number of characters in it."""
        self.at += 1
        if end == "]" and self.text.startswith("^", self.at):
            self.at += 1
        count = 0
        while not self.text.startswith(end, self.at):
            found = _CHARACTER.match(self.text, self.at)
            if found is None or not found.group():
                self.fail("an escape is unknown or the text ends early")
            code = next((int(group, 16) for group in found.groups()[:3] if group), None)
            code = ord(found.group()[-1]) if code is None else code
            if code > 0x10FFFF or 0xD800 <= code < 0xE000 or (code == 0 and end == '"'):
                self.fail("this is not a character that a text may hold")
            self.at = found.end()
            count += 1
        self.at += 1
        return count

    def rule(self, sequences: list[_Sequence]) -> _Sequence:
        name = f"group {len(self.rules)}"  # no name in a grammar has a space
        self.rules[name] = sequences
        return [name]

    def add(self, here: list[_Sequence], item: _Sequence, weight: int, nested: bool) -> None:
        """Append an item to the sequence being read, repeated as the text that follows says.

        `weight` is the number of rules behind the item; llama.cpp refuses 2,000 and more after repetition.
        """
        self.skip(_SPACE_OR_LINE if nested else _SPACE)
        while found := _REPEAT.match(self.text, self.at):
            if not item:
                self.fail("an empty literal is repeated")
            mark = found.group()[0]
            least = {"*": 0, "+": 1, "?": 0}.get(mark, int(found.group(1) or 0))
            most = {"*": None, "+": None, "?": 1}.get(mark, least)
            if found.group(2):
                most = int(found.group(3)) if found.group(3) else None
            weight *= most or least or 1
            if (most is not None and most < least) or weight >= _MAX_REPEATS:
                self.fail(f"a repetition is out of range or comes to {_MAX_REPEATS} rules and more")
            self.at = found.end()
            self.made += 1 if most is None else most - least
            if most is not None and most > 1:
                self.counted.append(item)
            # One optional item starts in as many ways as the row of them that llama.cpp makes.
            item = item * least + ([] if most == least else self.rule([item, []]))
            self.symbols += len(item)
            if self.symbols > _MAX_SYMBOLS:
                self.fail("the grammar is too large")
            self.skip(_SPACE_OR_LINE if nested else _SPACE)
        self.symbols += len(item)
        here[-1].extend(item)


def _nullable(rules: _Rules) -> set[str]:
    """The rules that match the empty text."""
    missing: dict[tuple[str, int], int] = {}
    users: dict[str, list[tuple[str, int]]] = {}
    todo: list[str] = []
    for name, sequences in rules.items():
        for index, sequence in enumerate(sequences):
            if None in sequence:
                continue
            missing[name, index] = len(sequence)
            for symbol in sequence:
                users.setdefault(symbol or "", []).append((name, index))
            if not sequence:
                todo.append(name)
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for user in users.get(name, ()):
            missing[user] -= 1
            if not missing[user]:
                todo.append(user[0])
    return found


def _check_starts(rules: _Rules, nullable: set[str]) -> None:
    """Bound the ways in which any rule, and the rest of any sequence, can begin; refuse left recursion."""
    starts: dict[str, int] = {}
    chain: dict[str, int] = {}
    for root in rules:
        path: dict[str, None] = {}
        todo = [(root, False)]
        while todo:
            name, done = todo.pop()
            if done:
                del path[name]
                leading = [symbol for sequence in rules[name] for symbol in _leading(sequence, nullable)]
                starts[name] = 1 + sum(1 if symbol is None else starts[symbol] for symbol in leading)
                chain[name] = 1 + max((chain[symbol] for symbol in leading if symbol is not None), default=0)
                if starts[name] > _MAX_STARTS or chain[name] > _MAX_CHAIN:
                    raise GrammarError(
                        f"the rule {_shown(name)!r} begins in too many ways", hint="make it less ambiguous"
                    )
            elif name in path:
                raise GrammarError(f"the rule {_shown(name)!r} is left-recursive")
            elif name not in starts:
                path[name] = None
                todo.append((name, True))
                todo += [
                    (symbol, False) for sequence in rules[name] for symbol in _leading(sequence, nullable) if symbol
                ]
    for name, sequences in rules.items():
        for sequence in sequences:
            ways = 0
            for symbol in reversed(sequence):
                ways = (1 if symbol is None else starts[symbol]) + (ways if symbol in nullable else 0)
                if ways > _MAX_STARTS:
                    raise GrammarError(f"the rule {_shown(name)!r} goes on in too many ways")


def _leading(sequence: _Sequence, nullable: set[str]) -> _Sequence:
    """The symbols that may be the first one to match something."""
    for count, symbol in enumerate(sequence, 1):
        if symbol not in nullable:
            return sequence[:count]
    return sequence


def _shown(name: str) -> str:
    return "( … )" if name.startswith("group ") else name
