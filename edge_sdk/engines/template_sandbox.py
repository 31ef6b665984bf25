"""Jinja for templates written by strangers: a sandbox that also bounds time and memory.

Jinja's own sandbox keeps a template from Python's internals, but lets it loop for hours and build strings of any
size. Here every pass of a loop, call and string is paid from a budget that depends on the input alone, so that a
template either ends within it or fails, the same on every machine. Knows nothing of chats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from ..errors import TemplateError

MAX_TEMPLATE = 64 << 10  # characters
_LONGEST_FACTOR, _LONGEST = 4, 64 << 10  # of any string and of the output: 4 for each character of input, and 64 Ki
_WORK_FACTOR, _WORK = 64, 2_000_000  # units: a character, an item, a node of the template's syntax
_CALL = 20  # units
_FILTERS = (
    "abs capitalize count d default dictsort first float indent int items join last length list lower map max min"
    " reject rejectattr replace reverse safe select selectattr sort string title tojson trim unique upper"
).split()
_TEXT_METHODS = (
    "capitalize count endswith find index isalnum isalpha isdigit islower isspace istitle isupper join lower lstrip"
    " partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines"
    " startswith strip title upper"
)
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}


class BoundedTemplate:
    """A template that renders within limits, or raises `TemplateError`. Threads may share one.

    >>> BoundedTemplate("{{ greeting }} {{ 'x' * 3 }}").render(5, greeting="Hello")
    'Hello xxx'
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise TemplateError(f"the chat template has {len(source)} characters, more than {MAX_TEMPLATE}")
        environment = _Environment()
        try:
            self._template = environment.from_string(_AddMeters().visit(environment.parse(source)))
        except TemplateError:
            raise
        except Exception as error:  # Jinja's errors, and RecursionError and SyntaxError of what it compiles to
            raise TemplateError(f"the chat template is no valid template: {error}") from error

    def render(self, size: int, **variables: object) -> str:
        """The output for `variables`, whose texts have `size` characters together: the limits grow with it."""
        meter = _Meter(size)
        token = _METER.set(meter)
        try:
            pieces, written = [], 0
            for piece in self._template.generate(**variables):
                written += len(piece)
                if written > meter.longest:
                    meter.fail("writes too much")
                pieces.append(piece)
            return "".join(pieces)
        except TemplateError:
            raise
        except Exception as error:  # a stranger's program may fail in any way: TypeError, RecursionError, ...
            raise TemplateError(f"the chat template fails: {error or type(error).__name__}") from error
        finally:
            _METER.reset(token)


# --- the budget -------------------------------------------------------------------------------------


class _Meter:
    """The work that one rendering may still do."""

    def __init__(self, size: int) -> None:
        self.longest = _LONGEST + _LONGEST_FACTOR * size
        self.left = _WORK + _WORK_FACTOR * size

    def fail(self, what: str) -> NoReturn:
        raise TemplateError(f"the chat template {what}", hint="use a model with a sound template")

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            self.fail("does too much work")

    def grow(self, size: int) -> None:
        """Before a string or list of `size` is made."""
        if size > self.longest:
            self.fail(f"makes a value of {size} characters or items")
        self.spend(size)

    def weigh(self, value: object) -> int:
        """Characters and items of a value written out, and its depth times its items, all within the limits.

        A list may hold another one several times over, and so be huge when printed though small in memory.
        """
        weight, todo = 0, [(value, 1)]
        while todo:
            item, depth = todo.pop()
            weight += depth
            if isinstance(item, str):
                weight += len(item)
            elif isinstance(item, Mapping):
                todo += [(part, depth + 1) for pair in item.items() for part in pair]
            elif isinstance(item, (list, tuple)):
                todo += [(part, depth + 1) for part in item]
            elif item is not None and not isinstance(item, (bool, int, float, Undefined)):
                self.fail(f"writes a value of the type {type(item).__name__}")
            if weight + len(todo) > self.longest:
                self.fail("makes a value that is too large")
        self.spend(weight)
        return weight

    def text(self, value: object) -> str:
        """`value` as text."""
        if not isinstance(value, str):
            self.weigh(value)
            value = str(value)
        self.grow(len(value))
        return value


_METER: ContextVar[_Meter] = ContextVar("_METER")


def _size(value: object) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 1


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that pays for what it is given and what it makes."""

    @wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        meter = _METER.get()
        meter.spend(_CALL + sum(map(_size, arguments)) + sum(map(_size, options.values())))
        result = function(*arguments, **options)
        meter.grow(_size(result))
        return result

    return wrapper


# --- what grows without bound in plain Jinja --------------------------------------------------------


def _replace(text: object, old: str, new: str, count: int | None = None) -> str:
    meter, whole = _METER.get(), _METER.get().text(text)
    old, new = meter.text(old), meter.text(new)
    times = whole.count(old) if count is None or count < 0 else min(count, whole.count(old))
    meter.grow(len(whole) + times * len(new))
    return whole.replace(old, new, times)


def _join(items: Iterable[object], separator: object = "", attribute: str | None = None) -> str:
    meter = _METER.get()
    if attribute is not None:
        meter.fail("joins by attribute")
    between = meter.text(separator)
    texts = [meter.text(item) for item in items]
    meter.grow(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def _indent(text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    meter, whole = _METER.get(), _METER.get().text(text)
    padding = width if isinstance(width, str) else " " * min(int(width), 64)
    lines = whole.splitlines(keepends=True)
    meter.grow(len(whole) + len(lines) * len(padding))
    return "".join(
        padding + line if (index or first) and (blank or line.strip()) else line for index, line in enumerate(lines)
    )


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    meter = _METER.get()
    meter.grow(meter.weigh(value) * (1 + (indent or 0)))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _range(*bounds: int) -> range:
    result = safe_range(*bounds)
    _METER.get().grow(len(result))
    return result


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(f"the chat template refuses these messages: {_METER.get().text(message)}")


def _strftime_now(form: str) -> str:
    _METER.get().spend(_CALL)
    return datetime.now().strftime(form[:100])


@pass_context
def _finalize(_context: Context, value: object) -> object:
    return _METER.get().text(value)


# --- Jinja, metered ---------------------------------------------------------------------------------


class _Generation(Extension):
    """`{% generation %}`, by which transformers marks what the assistant says; here it is only passed through."""

    tags = {"generation"}  # noqa: RUF012 (so it is in Jinja's class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with the filters, methods and operators that chat templates need, each of them metered."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=_finalize,
            optimized=False,  # or what the meters return would be worked out once, at compile time
        )
        own: dict[str, Callable[..., Any]] = {
            "replace": _replace,
            "join": _join,
            "indent": _indent,
            "tojson": _to_json,
            "string": _text,
            "safe": _text,
        }
        self.filters = {name: _metered(own.get(name) or FILTERS[name]) for name in _FILTERS}
        self.filters |= {"+spend": _spend, "+pay": _pay, "+weigh": _weigh, "+concat": _join}
        tests: Mapping[str, Any] = TESTS
        self.tests = {name: _metered(test) for name, test in tests.items()}
        self.globals = {
            "range": _range,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is not among the methods allowed: a width in it takes any amount of memory."""

    def call(self, context: Context, function: Any, /, *arguments: Any, **options: Any) -> Any:
        meter = _METER.get()
        meter.spend(_CALL + sum(map(_size, arguments)) + sum(map(_size, options.values())))
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *arguments, **options)
        if isinstance(owner, str) and name == "join":
            return _join(arguments[0], owner)
        meter.spend(_size(owner))
        result = super().call(context, function, *arguments, **options)
        meter.grow(_size(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        sequences = [value for value in (left, right) if isinstance(value, (str, list, tuple))]
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not allowed")
        if operator == "*" and sequences:
            meter.grow(len(sequences[0]) * max(0, *(value for value in (left, right) if isinstance(value, int))))
        else:
            meter.grow(sum(map(len, sequences)))
        if any(isinstance(value, int) and value.bit_length() > 64 for value in (left, right)):
            meter.fail("calculates with numbers that are too large")
        if operator == "**" and not (abs(left) <= 1 << 16 and abs(right) <= 16):
            meter.fail("calculates a power that is too large")
        result = super().call_binop(context, operator, left, right)
        return result if isinstance(result, (str, int, float)) else _weigh(result)


def _spend(units: int) -> bool:
    _METER.get().spend(units)
    return True


def _pay(value: object) -> object:
    _METER.get().spend(1 + _size(value) // 8)
    return value


def _weigh(value: object) -> object:
    _METER.get().weigh(value)
    return value


def _text(value: object) -> str:
    return _METER.get().text(value)


class _AddMeters(NodeTransformer):
    """Adds to a template's syntax what the environment cannot intercept: passes of loops, `~`, literals."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise TemplateError("the chat template has a recursive loop, which is not allowed")
        spend = _filter("+spend", nodes.Const(_weight(node)))
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(spend, node.test)
        node.body.insert(0, nodes.ExprStmt(spend))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        spend = _filter("+spend", nodes.Const(_weight(node)))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(spend))
        return node

    visit_CallBlock = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter("+concat", nodes.List(node.nodes))

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        self.generic_visit(node)
        return _filter("+weigh", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx != "load" else _filter("+weigh", node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filter("+pay", node.expr)
        for operand in node.ops:
            operand.expr = _filter("+pay", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter("+pay", node.node)
        return node


def _filter(name: str, node: nodes.Expr) -> nodes.Filter:
    """An application of one of the filters that a template cannot name."""
    return nodes.Filter(node, name, [], [], None, None)


def _weight(node: nodes.Node) -> int:
    """What one pass through a loop or macro costs: its syntax and its text, whether or not all of it runs."""
    return _CALL + sum(
        len(part.data) if isinstance(part, nodes.TemplateData) else 1 for part in node.find_all(nodes.Node)
    )
