"""Imports run one way: the table here is the one in ARCHITECTURE.md, and the sources are held to it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A package or module of the runtime imports only from rows above its own.
ROWS = (
    "errors records",
    "config device conversation idle opened_once repetition kernel_faces json_values",
    "documents model_files prompt privacy",
    "citations engines encoders hub",
    "storage readers",
    "retrieval ingest fallback fakes",
    "confidence evidence choices",
    "heads",
    "bundle",
    "route loading doctor",
    "judge handoff",
    "drafting",
    "extracting",
    "parts",
    "walk",
    "edge",
    "bench serving",
    "commands cli",
)
# Within a package, a module imports only from its own group (between two bars), and there from what stands before
# it: the parts of one thing that has been split over several files, in the order in which they build on each other.
PARTS = {
    "documents": "plain_text outline chunk parse_markdown parse_html parse_pdf parse_docx parse_worker parse"
    " python_definitions python_modules python_worker python_source",
    "model_files": "gguf_header gguf_adapter | transformers_config | tokenizer | onnx_session onnx_graph",
    "fallback": "sse completions exchange endpoint remote breaker budget ledger caller outbox"
    " | english rewording agreement learned_table learned",
    "engines": "engine sampling json_pattern json_exclusive json_schema gbnf paths template_sandbox chat_template"
    " native_thread handover ahead profile repacking memory threads llama_library llama_state llama_vocabulary"
    " llama llama_sampler prompt_tokens sequences cells places batching prompt_lookup draft_length decoding"
    " prefix_file prefix_folder prefix_cache engine_gguf batch_worker batch_engine engine_onnx opening"
    " confinement messages worker worker_process isolated load_probe",
    "encoders": "embed bert_graph bert static_encoder encoders",
    "readers": "windows spans description overlap extract scorer reader",
    "hub": "catalog partial archive download models",
    "storage": "vectors database segments version_3 schema vector_reader decisions store",
    "retrieval": "fulltext ranking retrieve",
    "heads": "features word_features vector_features head_file classifier",
    "confidence": "binomial certificate risk signals setup logistic neighbours calibration",
    "bundle": "canonical fields manifest signature archive folder checks cache",
    "privacy": "checksums patterns views detectors presidio pseudonyms gate canaries",
    "serving": "requests turns desk answering replies guard app server",
    "bench": "summary energy apart engine peers ask start ingest | search text retrieve | compare | plot",
    "commands": "options answers bundle convert distill export documents fallback learned measure head eval_models"
    " models privacy quantize_onnx quantize tune route bench serve cache",
}

# Every third-party package and the modules that may import it. Small and everywhere: numpy.
OWNERS = {
    "apsw": "bench.search",
    "bm25s": "quantize.evaluate_retrieval",
    "bs4": "documents.parse_html",
    "click": "commands.* cli",
    "cryptography": "bundle.signature",
    "docx": "documents.parse_docx",
    "faiss": "bench.search",
    "httpx": "fallback.exchange fallback.remote hub.download",
    "jinja2": "engines.template_sandbox",
    "llama_cpp": "engines.llama_library engines.llama_state engines.llama_sampler bench.engine quantize.*",
    "matplotlib": "bench.plot quantize.plot_route quantize.plot_front quantize.recipes.plots",
    "markdown_it": "documents.parse_markdown",
    "numpy": "* kernels.* quantize.*",
    "onnx": "quantize.onnx_models.* quantize.students.reader_graph",
    "onnxruntime": "model_files.onnx_session quantize.onnx_models.*",
    "presidio_analyzer": "privacy.presidio",
    "psutil": "bench.*",
    "pypdf": "documents.parse_pdf",
    "ray": "quantize.recipes.shards",
    "rich": "commands.* cli",
    "sqlite_utils": "storage.store storage.schema",
    "sqlite_vec": "bench.search",
    "starlette": "serving.app",
    "tokenizers": "model_files.tokenizer",
    "torch": "quantize.*",
    "transformers": "quantize.*",
    "optimum": "quantize.*",
    "usearch": "bench.search",
    "uvicorn": "commands.serve serving.server",
}  # fmt: skip
IMPORTS_BY_NAME = (
    "edge_sdk.__init__",
    "edge_sdk.cli",
    "edge_sdk.commands.bench",
    "edge_sdk.commands.bundle",
    "edge_sdk.commands.convert",
    "edge_sdk.commands.distill",
    "edge_sdk.commands.eval_models",
    "edge_sdk.commands.export",
    "edge_sdk.commands.head",
    "edge_sdk.commands.measure",
    "edge_sdk.commands.quantize",
    "edge_sdk.commands.quantize_onnx",
    "edge_sdk.commands.route",
    "edge_sdk.commands.tune",
    "edge_sdk.doctor",
    "edge_sdk.documents.python_worker",
)
PACKAGES = ("kernels", "edge_sdk", "quantize")  # each imports from itself and those before it
HEAVY = ("numpy", "onnxruntime", "llama_cpp", "httpx", "sqlite_utils", "tokenizers", "jinja2", "torch",
         "transformers", "rich", "click", "bs4", "pypdf", "docx")  # fmt: skip


def rows() -> dict[str, int]:
    """Package or module of the runtime to its row."""
    return {name: row for row, names in enumerate(ROWS) for name in names.split()}


def parts(package: str) -> dict[str, tuple[int, int]]:
    """Module of a package of the runtime to its group and its place in the group."""
    groups = enumerate(PARTS[package].split("|"))
    return {name: (at, place) for at, group in groups for place, name in enumerate(group.split())}


def modules(package: str) -> dict[str, Path]:
    """Full name of every module to its file; that of a package's `__init__.py` ends with `.__init__`."""
    found = sorted((ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in found}


def imports(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Full names of what a module imports, wherever the statement stands, with the line."""
    known = modules(name.split(".")[0])
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((each.name, node.lineno) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            assert above or not node.level, f"{path.name}:{node.lineno} imports from above its package"
            base = ".".join([*above, *filter(None, [node.module])])
            for each in node.names:  # `from . import schema` is a module, `from . import __version__` is not
                full = f"{base}.{each.name}"
                yield (full if full in known else base), node.lineno


def all_imports() -> Iterator[tuple[str, str, str]]:
    """Importing module, imported module, and the place to look at."""
    for package in PACKAGES:
        for name, path in modules(package).items():
            for imported, line in imports(name, path):
                yield name, imported, f"{path.relative_to(ROOT)}:{line}"


def test_every_module_of_the_runtime_has_a_row() -> None:
    present = [name.split(".")[1:] for name in modules("edge_sdk")]
    for package in {name[0] for name in present if len(name) > 1}:
        inside = {name[1] for name in present if name[0] == package} - {"__init__"}
        assert inside == parts(package).keys(), f"make PARTS[{package!r}] hold what edge_sdk/{package} holds"
        assert len(PARTS[package].replace("|", " ").split()) == len(inside), f"twice in PARTS[{package!r}]"
    assert {name[0] for name in present} - {"__init__"} == rows().keys(), "make ROWS hold what edge_sdk holds"
    assert len(" ".join(ROWS).split()) == len(rows()), "twice in ROWS"


def test_architecture_md_names_every_package_and_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = [name for name in rows() if not (f"`{name}`" in text or f"`{name}/`" in text)]
    inside = [f"{package}/{part}" for package in PARTS for part in parts(package) if f"`{part}`" not in text]
    assert not names + inside, f"the tables in ARCHITECTURE.md do not name {names + inside}"


def test_a_module_imports_only_from_rows_above_its_own() -> None:
    table, wrong = rows(), []
    for importer, imported, where in all_imports():
        lower, upper = importer.split(".")[1:], imported.split(".")[1:]
        if not (importer.startswith("edge_sdk.") and imported.startswith("edge_sdk.")):
            continue
        if lower[0] != upper[0]:
            fine = lower[0] == "__init__" or table[upper[0]] < table[lower[0]]
        else:
            below, above = parts(lower[0])[lower[1]], parts(lower[0])[upper[1]]
            fine = above[0] == below[0] and above[1] < below[1]
        if not fine:
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
    full = pattern if pattern.split(".")[0] in PACKAGES else f"edge_sdk.{pattern}"
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
        "import edge_sdk.fallback.remote",
        "import edge_sdk.cli",
        "import edge_sdk.cli; assert edge_sdk.cli.main(['--help']) == 0",
    ],
)
def test_start_up_loads_nothing_heavy(statement: str) -> None:
    script = f"import sys; {statement}; print('\\nloaded:', *sorted(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
