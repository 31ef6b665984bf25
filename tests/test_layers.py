"""Imports run one way: the table here is the one in ARCHITECTURE.md, and the sources are held to it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports from rows above its own and, within its row, only from its own group (between two bars): the
# parts of one thing that has been split over several files, in the order in which they build on each other.
ROWS = (
    "errors | records",
    "config | device | catalog | chunk | conversation | prompt citations | fulltext ranking | kernel_faces vectors"
    " | sse completions | plain_text outline | engine | sampling | json_schema gbnf"
    " | template_sandbox chat_template | gguf_header | transformers_config | tokenizer | onnx_session onnx_graph"
    " | database segments schema",
    "fakes | embed bert_graph bert static_encoder encoders vector_reader store"
    " | native_thread llama engine_gguf | engine_onnx | exchange remote | partial archive download"
    " | parse_markdown parse_html parse_pdf parse_docx parse_worker parse"
    " | python_definitions python_modules python_worker python_source",
    "models | ingest | retrieve",
    "route | loading | doctor",
    "edge",
    "bench_engine bench_ingest bench_search bench_text bench_retrieve"
    " cli_options cli_answers cli_distill cli_documents cli_measure cli_models cli",
)

# Every third-party package and the modules that may import it. Small and everywhere: numpy.
OWNERS = {
    "apsw": "bench_search",
    "bm25s": "quantize.evaluate_retrieval",
    "bs4": "parse_html",
    "click": "cli*",
    "docx": "parse_docx",
    "faiss": "bench_search",
    "httpx": "exchange remote download",
    "jinja2": "template_sandbox",
    "llama_cpp": "llama engine_gguf bench_engine quantize.*",
    "markdown_it": "parse_markdown",
    "numpy": "* kernels.* quantize.*",
    "onnxruntime": "onnx_session",
    "psutil": "bench_*",
    "pypdf": "parse_pdf",
    "rich": "cli*",
    "sqlite_utils": "store schema",
    "sqlite_vec": "bench_search",
    "tokenizers": "tokenizer",
    "torch": "quantize.*",
    "transformers": "quantize.*",
    "optimum": "quantize.*",
    "usearch": "bench_search",
}  # fmt: skip
IMPORTS_BY_NAME = (
    "edge_sdk.__init__",
    "edge_sdk.cli",
    "edge_sdk.cli_distill",
    "edge_sdk.cli_measure",
    "edge_sdk.doctor",
    "edge_sdk.python_worker",
)
PACKAGES = ("kernels", "edge_sdk", "quantize")  # each imports from itself and those before it
HEAVY = ("numpy", "onnxruntime", "llama_cpp", "httpx", "sqlite_utils", "tokenizers", "jinja2", "torch",
         "transformers", "rich", "click", "bs4", "pypdf", "docx")  # fmt: skip


def places() -> dict[str, tuple[int, int, int]]:
    """Module name to row, group and place in the group."""
    return {
        name: (row, group, place)
        for row, groups in enumerate(ROWS)
        for group, names in enumerate(groups.split("|"))
        for place, name in enumerate(names.split())
    }


def modules(package: str) -> dict[str, Path]:
    return {f"{package}.{path.stem}": path for path in sorted((ROOT / package).glob("*.py"))}


def imports(path: Path, package: str) -> Iterator[tuple[str, int]]:
    """Full names of what a file imports, wherever the statement stands, with the line."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{path.name}:{node.lineno} imports from above its package"
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            if base in PACKAGES:  # `from . import schema` is a module, `from . import __version__` is not
                names = [f"{base}.{name.name}" for name in node.names]
                yield from ((name if name in modules(base) else base, node.lineno) for name in names)
            else:
                yield base, node.lineno


def all_imports() -> Iterator[tuple[str, str, str]]:
    """Importing module, imported module, and the place to look at."""
    for package in PACKAGES:
        for name, path in modules(package).items():
            for imported, line in imports(path, package):
                yield name, imported, f"{path.relative_to(ROOT)}:{line}"


def test_every_module_of_the_runtime_has_a_row() -> None:
    known, present = set(places()), {name.partition(".")[2] for name in modules("edge_sdk")} - {"__init__"}
    assert sum(len(row.replace("|", " ").split()) for row in ROWS) == len(known), (
        "a module stands in the table twice"
    )
    assert not present - known, f"add {sorted(present - known)} to ROWS here and to the table in ARCHITECTURE.md"
    assert not known - present, f"take {sorted(known - present)} out of ROWS here and out of ARCHITECTURE.md"


def test_architecture_md_names_every_group() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    groups = [group.split() for row in ROWS for group in row.split("|")]
    missing = [names for names in groups if not any(f"`{name}`" in text for name in names)]
    assert not missing, f"the table in ARCHITECTURE.md names none of {missing}"


def test_a_module_imports_only_from_rows_above_its_own() -> None:
    table, wrong = places(), []
    for importer, imported, where in all_imports():
        if not (importer.startswith("edge_sdk.") and imported.startswith("edge_sdk.")):
            continue
        upper, lower = table.get(imported.split(".")[1]), table.get(importer.split(".")[1])
        if upper is None or lower is None:
            continue  # the test of the table reports these
        if not (upper[0] < lower[0] or (upper[:2] == lower[:2] and upper[2] < lower[2])):
            wrong.append(f"{where} imports {imported}, which does not stand above it")
    assert not wrong, "\n".join(wrong)


def test_packages_import_one_way() -> None:
    """`kernels <- edge_sdk <- quantize`; the command line reaches the toolchain by name only."""
    for importer, imported, where in all_imports():
        package, top = importer.split(".")[0], imported.split(".")[0]
        if top in PACKAGES:
            assert PACKAGES.index(top) <= PACKAGES.index(package), f"{where} imports {imported}"


def test_each_third_party_package_lives_behind_its_modules() -> None:
    wrong = []
    for importer, imported, where in all_imports():
        top = imported.split(".")[0]
        if top in PACKAGES or top in sys.stdlib_module_names:
            continue
        if top not in OWNERS:
            wrong.append(f"{where} imports {top}: name it in OWNERS here and in pyproject.toml, or do without")
        elif not any(_owns(pattern, importer) for pattern in OWNERS[top].split()):
            wrong.append(f"{where} imports {top}, which only {OWNERS[top]} may")
    assert not wrong, "\n".join(wrong)


def _owns(pattern: str, importer: str) -> bool:
    full = pattern if "." in pattern else f"edge_sdk.{pattern}"
    return importer.startswith(full[:-1]) if full.endswith("*") else importer == full


def test_imports_by_name_are_few() -> None:
    """`import_module` hides an import from this test, so only the lazy tables of names use it."""
    for package in PACKAGES:
        for module, path in modules(package).items():
            tree = ast.walk(ast.parse(path.read_bytes()))
            words = {getattr(node, "attr", getattr(node, "id", "")) for node in tree}
            hidden = words & {"import_module", "__import__"}
            assert module in IMPORTS_BY_NAME or not hidden, f"{module} imports by name; write the import out"


def test_kernels_is_a_namespace_folder() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), (
        "kernels/ must have no __init__.py: another well-known package owns the import name `kernels` and "
        "transformers imports it, so a regular package here would break it"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import edge_sdk",
        "import edge_sdk; edge_sdk.Edge",
        "import edge_sdk.remote",
        "import edge_sdk.cli",
        "import edge_sdk.cli; assert edge_sdk.cli.main(['--help']) == 0",
    ],
)
def test_start_up_loads_nothing_heavy(statement: str) -> None:
    script = f"import sys; {statement}; print('\\nloaded:', *sorted(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
