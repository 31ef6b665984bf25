"""What a Python source file defines, read from its syntax tree: nothing is imported or run.

Finds documented functions, classes, methods and constants, the names in `__all__`, and what is imported from
where. Knows nothing of files and other modules: `python_source` puts them together.
"""

from __future__ import annotations

import ast
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

MAX_CONSTANT = 100
"""Characters of a constant's value that are worth showing."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Definition:
    """A public name. `signature` follows the name: `(a, b=1) -> int`, or "" where there is none.

    A `value` is what is not called: a property, a special form such as `typing.Optional`.
    """

    name: str
    kind: Literal["function", "async function", "class", "value"]
    signature: str
    doc: str
    bases: tuple[str, ...] = ()
    members: tuple[Definition, ...] = ()

    @property
    def documented(self) -> bool:
        """Whether it or one of its members has a docstring."""
        return bool(self.doc or self.members)


@dataclass(slots=True)
class ModuleDefinitions:
    """The names of one module. `exports` is None without `__all__`; it may be incomplete where that is computed."""

    doc: str
    exports: list[str] | None = None
    exports_complete: bool = True
    definitions: dict[str, Definition] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)  # "" where the value has to be computed
    aliases: dict[str, str] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)  # local name: (module, name there)
    star_imports: list[str] = field(default_factory=list)


def read_definitions(source: bytes, name: str, *, is_package: bool) -> ModuleDefinitions:
    """The definitions in the source file of module `name`.

    Raises what `ast.parse` raises: `SyntaxError`, `ValueError`, and for deep nesting `RecursionError` or
    `MemoryError`.

    >>> module = read_definitions(b"def pour(cup, *, hot: bool = True):\\n    'Fill it.'", "tea", is_package=False)
    >>> module.definitions["pour"].signature, module.definitions["pour"].doc
    ('(cup, *, hot: bool=True)', 'Fill it.')
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        tree = ast.parse(source)
    _keep_bases_of_numbers(tree, source.splitlines())
    module = ModuleDefinitions(ast.get_docstring(tree) or "")
    package = name if is_package else name.rpartition(".")[0]
    for node in _flat(tree.body):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                _keep(module, _function(node, in_class=False))
            case ast.ClassDef():
                _keep(module, _class(node))
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                _assignment(module, target, value)
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                _assignment(module, target, value)
            case ast.AugAssign(target=ast.Name(id="__all__"), value=value):
                _export(module, value)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="__all__")), args=[value])):
                _export(module, value)
            case ast.ImportFrom():
                _import_from(module, node, package)
    return module


class _Literal(int):
    """A whole number that is shown as its author wrote it: `0o666`, not 438."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _keep_bases_of_numbers(tree: ast.Module, lines: Sequence[bytes]) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or type(node.value) is not int:
            continue
        if node.value > 7 and node.lineno <= len(lines):  # an odd encoding may hold other lines
            text = lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode("utf-8", "replace")
            if text[:2].lower() in ("0o", "0x", "0b"):
                node.value = _Literal(node.value)
                node.value.text = text


def _flat(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, those under `if`, `try` and `with` included."""
    for node in body:
        match node:
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                continue
            case ast.If() | ast.Try() | ast.With():
                yield from _flat(node.body)
                for handler in getattr(node, "handlers", ()):
                    yield from _flat(handler.body)
                yield from _flat(getattr(node, "orelse", ()))
                yield from _flat(getattr(node, "finalbody", ()))
            case _:
                yield node


def _keep(module: ModuleDefinitions, definition: Definition | None) -> None:
    """Of several definitions of a name the first that is documented counts."""
    if definition is None:
        return
    earlier = module.definitions.get(definition.name)
    if earlier is None or (definition.documented and not earlier.documented):
        module.definitions[definition.name] = definition


def _function(node: Function, *, in_class: bool) -> Definition | None:
    decorators = [_dotted(decorator).rpartition(".")[2] for decorator in node.decorator_list]
    if "overload" in decorators or {"setter", "deleter", "register"} & set(decorators):
        return None
    doc = ast.get_docstring(node) or ""
    if in_class and any(name in ("property", "cached_property", "abstractproperty") for name in decorators):
        return Definition(node.name, "value", "", doc)
    arguments = node.args
    leading = [*arguments.posonlyargs, *arguments.args]
    if not in_class and leading and leading[0].arg == "self" and decorators:
        return Definition(node.name, "value", "", doc)  # a special form: `typing.Optional`
    bound = in_class and "staticmethod" not in decorators
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    kind: Literal["function", "async function"] = (
        "async function" if isinstance(node, ast.AsyncFunctionDef) else "function"
    )
    return Definition(node.name, kind, f"({_arguments(arguments, bound=bound)}){returns}", doc)


def _arguments(arguments: ast.arguments, *, bound: bool) -> str:
    if bound:  # drop `self` or `cls`
        if arguments.posonlyargs:
            arguments.posonlyargs.pop(0)
        elif arguments.args:
            arguments.args.pop(0)
    return ast.unparse(arguments)


def _class(node: ast.ClassDef) -> Definition:
    bases = tuple(ast.unparse(base) for base in node.bases)
    doc = ast.get_docstring(node) or ""
    signature = _fields(node, bases)
    members: list[Definition] = []
    values: list[str] = []
    for statement in _flat(node.body):
        match statement:
            case ast.FunctionDef(name="__init__") | ast.FunctionDef(name="__new__"):
                first = _function(statement, in_class=True)
                if first and (statement.name == "__init__" or not signature):
                    signature = first.signature.removesuffix(" -> None")
                    doc = "\n\n".join(part for part in (doc, first.doc) if part)
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not statement.name.startswith("_"):
                method = _function(statement, in_class=True)
                if method and method.doc and all(method.name != member.name for member in members):
                    members.append(method)
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Constant() as value) if _is_enum(bases):
                values.append(f"{target} = {ast.unparse(value)}")
    if values:
        doc = "\n\n".join(part for part in (doc, "\n".join(values)) if part)
    return Definition(node.name, "class", signature, doc, bases, tuple(members))


def _fields(node: ast.ClassDef, bases: Sequence[str]) -> str:
    """The constructor of a dataclass or typed named tuple, from its annotated fields."""
    decorators = {_dotted(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if "dataclass" not in decorators and not any(base.endswith("NamedTuple") for base in bases):
        return ""
    fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
    return "(" + ", ".join(ast.unparse(statement) for statement in fields) + ")"


def _is_enum(bases: Sequence[str]) -> bool:
    return any(base.endswith(("Enum", "Flag")) for base in bases)


def _assignment(module: ModuleDefinitions, target: str, value: ast.expr) -> None:
    if target == "__all__":
        module.exports = None
        _export(module, value)
        return
    match value:
        case ast.Name() | ast.Attribute():
            module.aliases.setdefault(target, _dotted(value))
        case _ if not target.startswith("_"):
            text = ast.unparse(value) if isinstance(value, ast.Constant) and value.value is not None else ""
            module.constants.setdefault(target, text if len(text) <= MAX_CONSTANT else "")


def _export(module: ModuleDefinitions, value: ast.expr) -> None:
    """Add what is certain of `value` to the exports; note when some of it is not."""
    names: list[str] = []
    parts = [value]
    while parts:
        part = parts.pop(0)
        match part:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                parts = [*elements, *parts]
            case ast.Constant(value=str() as name):
                names.append(name)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                parts = [left, right, *parts]
            case _:
                module.exports_complete = False
    module.exports = [*(module.exports or ()), *names]


def _import_from(module: ModuleDefinitions, node: ast.ImportFrom, package: str) -> None:
    try:
        origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    except (ImportError, ValueError):  # beyond the top of the package
        return
    for alias in node.names:
        if alias.name == "*":
            module.star_imports.append(origin)
        else:
            module.imports.setdefault(alias.asname or alias.name, (origin, alias.name))


def _dotted(node: ast.expr) -> str:
    """`a.b` of an attribute, a name or a call of one; "" for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{_dotted(value)}.{attribute}"
        case ast.Call(func=function):
            return _dotted(function)
    return ""
