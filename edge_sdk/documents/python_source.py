"""Python modules as documents: `py:json` is the documentation in a module's own docstrings and signatures.

No user code runs: `python_modules` finds and reads modules without importing them. Here their names are put
in order and written as text. Knows nothing of passages and the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import DocumentError
from ..records import ParsedDocument
from .outline import OutlineWriter
from .python_definitions import Definition
from .python_modules import (
    Module,
    describe_compiled,
    find_module,
    is_public_part,
    offered_names,
    parents,
    read_module,
    submodules,
    trace_name,
)

PREFIX = "py:"
MEDIA_TYPE = "text/x-python"

_HIDDEN_BASES = {"object", "ABC", "abc.ABC"}
_EXCEPTIONS = ("Error", "Exception", "Warning")
_UNINFORMATIVE = {"(*args, **kwargs)", "(self, /, *args, **kwargs)", "(/, *args, **kwargs)"}


def list_modules(source: str) -> list[str]:
    """The documents that `py:NAME` stands for: the module, and for a package each public module in it.

    Modules whose name begins with an underscore, and tests, are left out. Raises `DocumentError` when there
    is no such module.
    """
    try:
        root = find_module(_module_name(source))
        return [PREFIX + root.name, *(PREFIX + name for name in submodules(root))]
    except DocumentError as error:
        raise DocumentError(f"{source}: {error.message}", hint=error.hint) from error


def parse_module(source: str) -> ParsedDocument | None:
    """The documentation of one module, or None where nothing in it is documented.

    Each function, class and method is a section: a line with its full name and signature, then its docstring.
    What a package re-exports is named as users import it (`asyncio.Queue`, not `asyncio.queues.Queue`). The
    content hash is that of the text, because part of it may have no source. Raises `DocumentError`.
    """
    try:
        return _ModuleText(find_module(_module_name(source))).write()
    except DocumentError as error:
        raise DocumentError(f"{source}: {error.message}", hint=error.hint) from error


class _ModuleText:
    """Writes the document of one module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._own = read_module(module)
        self._compiled = describe_compiled(module)
        if module.source is None and module.directories is None and not self._compiled:
            raise DocumentError("it has no source, and only compiled modules of the standard library are described")
        self._writer = OutlineWriter()
        self._function_docs: set[str] = set()

    def write(self) -> ParsedDocument | None:
        name = self._module.name
        doc = self._own.doc or str(self._compiled.get("doc", ""))
        names = [(public, self._resolve(public)) for public in self._public_names()]
        documented = [(public, found) for public, found in names if found is not None and found.documented]
        if not doc and not documented and self._module.source is not None:
            return None
        self._function_docs = {found.doc for _, found in documented if found.kind != "class"}
        self._writer.heading(1, name, show=False)
        self._writer.block(f"{name} module: {doc}" if doc else "")
        for public, definition in documented:
            self._definition(public, definition)
        self._lines("constants", self._constants())
        bare = [(public, found) for public, found in names if found is not None and not found.documented]
        self._lines("without documentation", [_first_line(self._path(public), found) for public, found in bare])
        text, sections = self._writer.finish()
        if not text:
            return None
        digest = hashlib.sha256(text.encode()).hexdigest()
        return ParsedDocument(PREFIX + name, f"{name} module", text, sections, digest, MEDIA_TYPE)

    def _public_names(self) -> Iterator[str]:
        """Every public name once, except those that belong to the document of another module."""
        above: set[str] = set()  # what the packages around it offer
        for parent in parents(self._module):
            above |= set(describe_compiled(parent).get("names", ()))
        for public in dict.fromkeys([*offered_names(self._module), *self._compiled.get("names", ())]):
            found = trace_name(self._module, public)
            if found is None and public in above:
                continue  # compiled: the package documents it
            if found is None or not is_public_part(found[0], self._module):
                yield public

    def _resolve(self, public: str) -> Definition | None:
        """From the source if that has a docstring, else from the compiled object."""
        found = trace_name(self._module, public)
        if found is not None and found[1].documented:
            return found[1]
        entry = self._compiled.get("entries", {}).get(public)
        return _from_entry(entry) if entry else found[1] if found else None

    def _path(self, public: str) -> str:
        """The shortest dotted path under which users reach the name."""
        best = self._module.name
        for parent in parents(self._module):
            if public in offered_names(parent):
                best = parent.name
        return f"{best}.{public}"

    def _definition(self, public: str, definition: Definition) -> None:
        path = self._path(public)
        self._writer.heading(2, public, show=False)
        self._writer.block(_entry(path, definition))
        for member in definition.members:
            if member.doc not in self._function_docs:  # `random.Random.choice` is `random.choice`
                self._writer.heading(3, member.name, show=False)
                self._writer.block(_entry(f"{path}.{member.name}", member))

    def _constants(self) -> list[str]:
        """What is assigned in this very module, with the value where that is a plain one."""
        computed: Mapping[str, str] = self._compiled.get("constants", {})
        names = [name for name in self._own.constants if self._own.exports is None or name in self._own.exports]
        values = {name: self._own.constants[name] or computed.get(name, "") for name in names}
        if self._module.source is None:
            values |= computed
        return [f"{self._module.name}.{name} = {value}" for name, value in values.items() if value]

    def _lines(self, heading: str, lines: list[str]) -> None:
        self._writer.heading(2, heading, show=False)
        self._writer.block("\n".join(lines))


def _module_name(source: str) -> str:
    name = source.removeprefix(PREFIX)
    if not all(part.isidentifier() for part in name.split(".")):
        raise DocumentError(f"{name!r} is no module name", hint="write it like py:json or py:os.path")
    return name


def _from_entry(entry: Mapping[str, Any]) -> Definition:
    return Definition(
        name=entry["name"],
        kind=entry["kind"],
        signature=entry["signature"],
        doc=entry["doc"],
        bases=tuple(entry.get("bases", ())),
        members=tuple(_from_entry(member) for member in entry.get("members", ())),
    )


def _entry(path: str, definition: Definition) -> str:
    """A definition as text: its first line, a blank one, its docstring."""
    line, doc = _first_line(path, definition), definition.doc
    first, _, rest = doc.partition("\n\n")
    if rest and first.startswith(f"{definition.name}(") and first.endswith(")"):
        doc = rest  # the docstring of old began with the signature
    return f"{line}\n\n{doc}"


def _first_line(path: str, definition: Definition) -> str:
    """The signature as a user writes the call: `async asyncio.Queue.get()`."""
    signature = "" if definition.signature in _UNINFORMATIVE else definition.signature
    match definition.kind:
        case "class":
            bases = [base for base in definition.bases if base not in _HIDDEN_BASES and not _is_private(base)]
            word = "exception" if any(name.endswith(_EXCEPTIONS) for name in (path, *bases)) else "class"
            return f"{word} {path}{signature}" + (f", a subclass of {', '.join(bases)}" if bases else "")
        case "value":
            return path
        case "async function":
            return f"async {path}{signature or '(...)'}"
        case _:
            return f"{path}{signature or '(...)'}"


def _is_private(dotted: str) -> bool:
    return any(part.startswith("_") for part in dotted.partition("[")[0].split("."))
