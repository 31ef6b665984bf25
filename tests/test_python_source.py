"""Python modules as documents: nothing of the user's is run, and what users call things by is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.documents import python_modules
from edge_sdk.documents.chunk import chunk_document
from edge_sdk.documents.python_definitions import read_definitions
from edge_sdk.documents.python_source import list_modules, parse_module
from edge_sdk.errors import DocumentError
from edge_sdk.records import ParsedDocument


def parsed(source: str) -> ParsedDocument:
    document = parse_module(source)
    assert document is not None
    return document


def entry(document: ParsedDocument, *path: str) -> str:
    """The text under the headings, those of the module first."""
    (found,) = [section for section in document.sections if section.headings == path]
    return document.text[found.start : found.end]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on the path of modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    """Write modules by their paths, `.py` understood."""
    for name, source in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


# --- the standard library ---------------------------------------------------------------------------


def test_a_module_is_its_docstring_and_an_entry_for_each_function() -> None:
    document = parsed("py:json")
    assert (document.name, document.title, document.media_type) == ("py:json", "json module", "text/x-python")
    assert entry(document, "json").startswith("json module: JSON (JavaScript Object Notation)")
    dumps = entry(document, "json", "dumps")
    assert dumps.startswith("json.dumps(obj, *, skipkeys=False, ensure_ascii=True,")
    assert "Serialize ``obj`` to a JSON formatted ``str``." in dumps


def test_passages_of_a_module_are_exact() -> None:
    document = parsed("py:argparse")
    for chunk in chunk_document(document):
        assert chunk.text == document.text[chunk.start : chunk.end]
        assert chunk.heading.startswith("argparse")


def test_methods_stand_under_their_class() -> None:
    document = parsed("py:pathlib")
    assert entry(document, "pathlib", "Path", "read_text").startswith("pathlib.Path.read_text(encoding=None,")
    assert entry(document, "pathlib", "Path", "mkdir").startswith("pathlib.Path.mkdir(mode=0o777,")
    assert entry(document, "pathlib", "PurePath", "stem").startswith("pathlib.PurePath.stem\n\nThe final path")


@pytest.mark.parametrize(
    ("source", "path", "text"),
    [
        ("py:math", ("math", "gcd"), "Greatest Common Divisor"),
        ("py:time", ("time", "sleep"), "Delay execution"),
        ("py:itertools", ("itertools", "chain", "from_iterable"), "itertools.chain.from_iterable("),
        ("py:collections", ("collections", "deque", "appendleft"), "Add an element to the left side"),
        ("py:functools", ("functools", "reduce"), "cumulatively"),
        ("py:heapq", ("heapq", "heappush"), "heapq.heappush(heap, item)"),
        ("py:sqlite3", ("sqlite3", "connect"), "Open"),
        ("py:os", ("os", "listdir"), "os.listdir(path=None)"),
        ("py:datetime", ("datetime", "datetime", "strptime"), "datetime.datetime.strptime("),
        ("py:builtins", ("builtins", "str", "split"), "builtins.str.split("),
        ("py:random", ("random", "choice"), "random.choice("),
        ("py:struct", ("struct",), "The optional first format char indicates byte order"),
        ("py:re", ("re", "Match", "group"), "re.Match.group("),
        ("py:hashlib", ("hashlib", "sha256"), "hashlib.sha256("),
    ],
)
def test_what_is_written_in_c_is_documented_too(source: str, path: tuple[str, ...], text: str) -> None:
    assert text in entry(parsed(source), *path)


def test_constants_are_listed_with_their_values() -> None:
    assert "string.ascii_letters = 'abcdefghijklmnopqrstuvwxyzABC" in entry(
        parsed("py:string"), "string", "constants"
    )
    assert "math.pi = 3.14159" in entry(parsed("py:math"), "math", "constants")


def test_names_without_documentation_are_listed_with_their_signatures() -> None:
    assert "class csv.DictReader(f, fieldnames=None" in entry(parsed("py:csv"), "csv", "without documentation")


def test_names_that_stand_for_no_file_of_their_own_are_found() -> None:
    assert entry(parsed("py:os.path"), "os.path", "join").startswith("os.path.join(")
    assert "os.path.exists(path)" in parsed("py:os.path").text
    assert "class collections.abc.Mapping" in parsed("py:collections.abc").text


def test_a_package_is_a_document_for_each_public_module() -> None:
    modules = list_modules("py:asyncio")
    assert modules[0] == "py:asyncio"
    assert {"py:asyncio.queues", "py:asyncio.tasks"} < set(modules)
    assert modules == sorted(set(modules))
    assert not [name for name in list_modules("py:unittest") if "._" in name or ".test" in name]
    assert list_modules("py:json.decoder") == ["py:json.decoder"]


def test_what_a_package_re_exports_is_named_as_users_import_it_and_once() -> None:
    queues = parsed("py:asyncio.queues")
    assert entry(queues, "asyncio.queues", "Queue").startswith("class asyncio.Queue(maxsize=0)")
    assert entry(queues, "asyncio.queues", "Queue", "get").startswith("async asyncio.Queue.get()")
    assert "class asyncio.Queue" not in parsed("py:asyncio").text
    pools = parsed("py:concurrent.futures.thread")
    assert "class concurrent.futures.ThreadPoolExecutor(" in pools.text
    assert "class concurrent.futures.Future()" in parsed("py:concurrent.futures").text  # from a private module
    assert parse_module("py:sqlite3.dbapi2") is None  # all of it is in py:sqlite3


def test_documents_are_the_same_every_time() -> None:
    first = parsed("py:functools")
    python_modules.describe_compiled.cache_clear()
    assert parsed("py:functools") == first
    assert " at 0x" not in parsed("py:inspect").text


def test_modules_that_act_when_imported_are_only_read() -> None:
    """Importing `antigravity` opens a browser and `this` prints."""
    for name in ("antigravity", "this"):
        assert python_modules.describe_compiled(python_modules.find_module(name)) == {}


def test_the_child_takes_nothing_of_the_users_for_the_standard_library(tmp_path: Path) -> None:
    write(tmp_path, {"math": "raise SystemExit('this is not math')", "json": "raise SystemExit('nor json')"})
    worker = Path(python_modules.__file__).with_name("python_worker.py")
    for name in ("math", "json"):
        done = subprocess.run(
            [sys.executable, "-I", "-S", worker, name],
            capture_output=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b'"doc"' in done.stdout


def test_a_file_of_the_user_is_not_taken_for_the_standard_library(package: Path) -> None:
    write(package, {"json": '"""Mine."""'})
    assert "Mine." not in parsed("py:json").text


def test_a_child_that_fails_leaves_what_the_source_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    python_modules.describe_compiled.cache_clear()
    monkeypatch.setattr(python_modules.sys, "executable", "/nonexistent/python")
    assert "heapq.heappush(heap, item)" in parsed("py:heapq").text
    with pytest.raises(DocumentError, match="py:math: it has no source"):
        parse_module("py:math")
    python_modules.describe_compiled.cache_clear()


# --- modules of the user ----------------------------------------------------------------------------

TEA = '''
"""Tea and cups."""
import pathlib
from typing import overload, NamedTuple
from dataclasses import dataclass
import enum

pathlib.Path(__file__).with_name("ran").touch()

STRENGTH = 3
_SECRET = "hidden"
NAMES = ["a", "b"]

@overload
def pour(cup: int) -> int: ...
@overload
def pour(cup: str) -> str: ...
def pour(cup, *, hot: bool = True, mask=0xFF):
    """Fill the cup."""

async def drink(cup: "Cup", /, *sips, **more) -> None:
    """Empty it."""

def _hidden():
    """Not shown."""

def undocumented(x=1): pass

class Cup(pathlib.Path, Exception):
    """A cup."""
    def __init__(self, size: int = 2) -> None:
        """Of a size."""
    @property
    def level(self):
        """How full."""
    @level.setter
    def level(self, value): "not this"
    @classmethod
    def large(cls, extra=1):
        """A large one."""
    @staticmethod
    def wash(cup):
        """Clean."""
    def quiet(self): pass
    def _own(self): "private"

@dataclass
class Order:
    """What is wanted."""
    name: str
    count: int = 1

class Point(NamedTuple):
    """On a map."""
    x: float
    y: float = 0

class Kind(enum.Enum):
    """Of tea."""
    GREEN = 1
    BLACK = "b"

if True:
    def late(): "Defined under a condition."
try:
    from _missing import *
except ImportError:
    def fallback(): "Defined in a handler."
if __name__ == "__main__":
    def script(): "Only when run."
'''


def test_a_module_of_the_user_is_read_and_never_run(package: Path) -> None:
    write(package, {"tea_module": TEA})
    document = parsed("py:tea_module")
    assert not (package / "ran").exists()
    assert "tea_module" not in sys.modules
    lines = document.text.splitlines()
    for expected in (
        "tea_module module: Tea and cups.",
        "tea_module.pour(cup, *, hot: bool=True, mask=0xFF)",
        "async tea_module.drink(cup: 'Cup', /, *sips, **more) -> None",
        "exception tea_module.Cup(size: int=2), a subclass of pathlib.Path, Exception",
        "Of a size.",
        "tea_module.Cup.level",
        "tea_module.Cup.large(extra=1)",
        "tea_module.Cup.wash(cup)",
        "class tea_module.Order(name: str, count: int = 1)",
        "class tea_module.Point(x: float, y: float = 0), a subclass of NamedTuple",
        "GREEN = 1",
        "BLACK = 'b'",
        "tea_module.late()",
        "tea_module.fallback()",
        "tea_module.STRENGTH = 3",
        "tea_module.undocumented(x=1)",
    ):
        assert expected in lines
    for unseen in ("_hidden", "_SECRET", "hidden", "not this", "quiet", "private", "script", "NAMES"):
        assert unseen not in document.text


def test_a_package_of_the_user_is_followed_without_importing_it(package: Path) -> None:
    lids = (
        '__all__ = ["Lid"]\n__all__ += ["Knob"]\ndef Lid(): "Closes."\ndef Knob(): "On top."\ndef other(): "No."\n'
    )
    write(
        package,
        {
            "pots/__init__": "raise SystemExit\nfrom ._core import Pot\nfrom .lids import *\nfrom . import lids\n",
            "pots/_core": 'class Pot:\n    """Holds tea."""\n',
            "pots/lids": lids,
            "pots/tests/__init__": "",
            "pots/test_lids": '"""A test."""',
            "pots/deep/__init__": '"""Deeper."""\nfrom ..lids import Lid\n',
            "pots/deep/er": 'def well(): "At the bottom."\n',
            "pots/bad": "def (:",
        },
    )
    assert list_modules("py:pots") == [
        "py:pots", "py:pots.bad", "py:pots.deep", "py:pots.deep.er", "py:pots.lids",
    ]  # fmt: skip
    assert parsed("py:pots").text == "class pots.Pot\n\nHolds tea."
    lids = parsed("py:pots.lids").text
    assert "pots.Lid()\n\nCloses." in lids
    assert "pots.Knob()" in lids
    assert "other" not in lids
    assert parsed("py:pots.deep.er").text == "pots.deep.er.well()\n\nAt the bottom."
    with pytest.raises(DocumentError, match=r"^py:pots\.bad: its source cannot be parsed"):
        parse_module("py:pots.bad")


def test_an_edited_module_is_read_again(package: Path) -> None:
    write(package, {"edited_one": '"""Before."""'})
    assert "Before" in parsed("py:edited_one").text
    write(package, {"edited_one": '"""After it."""'})
    assert "After" in parsed("py:edited_one").text


def test_modules_that_import_each_other_in_a_circle_end(package: Path) -> None:
    write(
        package,
        {
            "ring/__init__": "from .a import *\n",
            "ring/a": "from .b import *\ndef one(): 'One.'\n",
            "ring/b": "from .a import *\nfrom . import *\nname = name2\nname2 = name\n",
        },
    )
    assert parsed("py:ring.a").text == "ring.one()\n\nOne."
    assert parse_module("py:ring") is None  # the one function is in py:ring.a


def test_a_module_without_documentation_is_no_document(package: Path) -> None:
    write(package, {"bare_module": "x = 1\ndef f(): pass\n"})
    assert parse_module("py:bare_module") is None


@pytest.mark.parametrize("name", ["no_such_module", "json.nothing", "json.dumps", "math.pi", "os.path.join"])
def test_an_unknown_module_is_one_line(name: str) -> None:
    with pytest.raises(DocumentError) as caught:
        list_modules(f"py:{name}")
    assert str(caught.value) == f"py:{name}: there is no module {name!r}; check its name, or install it"
    with pytest.raises(DocumentError, match="there is no module"):
        parse_module(f"py:{name}")


@pytest.mark.parametrize("name", ["", ".", "a..b", "../x", "a b", "json.", "a/b", "json\0", "1x"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(DocumentError, match="is no module name; write it like py:json"):
        list_modules(f"py:{name}")


def test_a_compiled_module_of_the_user_is_refused() -> None:
    with pytest.raises(DocumentError, match="only compiled modules of the standard library"):
        parse_module("py:numpy._core._multiarray_umath")


def test_a_huge_source_file_is_refused(package: Path) -> None:
    write(package, {"huge_module": "#" * 5_000_001})
    with pytest.raises(DocumentError, match="py:huge_module: its source has 5,000,001 bytes"):
        parse_module("py:huge_module")


@pytest.mark.parametrize(
    "source",
    ["(" * 100_000, "x = " + "-" * 200_000 + "1", "\0", "# coding: nothing\n", "def f(:", "\ufeff\ufeff"],
    ids=["deep", "deeper", "nul", "coding", "syntax", "marks"],
)
def test_hostile_sources_are_one_line(package: Path, source: str) -> None:
    write(package, {"hostile_module": source})
    with pytest.raises(DocumentError, match="its source cannot be parsed") as caught:
        parse_module("py:hostile_module")
    assert "\n" not in str(caught.value)


def test_other_encodings_are_read(package: Path) -> None:
    (package / "latin_module.py").write_bytes('# coding: latin-1\n"""Größe."""\nX = 0xFF\n'.encode("latin-1"))
    text = parsed("py:latin_module").text
    assert "Größe." in text
    assert "latin_module.X = 0xFF" in text


@given(st.text(alphabet=st.sampled_from("def class(:)=x_y,*\n \t'\"@#0xifall[]+."), max_size=120))
@settings(max_examples=300)
def test_any_source_is_read_or_refused_as_ast_does(source: str) -> None:
    try:
        module = read_definitions(source.encode(), "m", is_package=False)
    except (SyntaxError, ValueError):
        return
    assert all(name.isidentifier() for name in module.definitions)


def test_exports_are_read_as_far_as_they_are_certain() -> None:
    source = b"__all__ = ['a'] + other.__all__\n__all__ += ('b',)\n__all__.extend(['c'])\n__all__.append('d')\n"
    module = read_definitions(source, "m", is_package=False)
    assert module.exports == ["a", "b", "c", "d"]
    assert not module.exports_complete
    assert read_definitions(b"x = 1", "m", is_package=False).exports is None
