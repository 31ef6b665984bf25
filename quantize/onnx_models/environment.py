"""The Python environment that exports models: optimum's pinned corner, kept apart from everything else.

optimum-onnx needs a transformers below 4.58, so it can rarely share an environment with what trains models. This
one if it fits, else one of its own under `EDGE_HOME`. Knows nothing of models.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge_sdk.config import Settings
from edge_sdk.device import free_disk
from edge_sdk.errors import DiskFullError, EngineError, MissingExtraError, OfflineError
from edge_sdk.hub.partial import storage_errors

Update = Callable[[float, float | None, str], None]

REQUIREMENTS = (
    "torch==2.13.0",
    "optimum[onnxruntime]>=2.1,<2.2",
    "optimum-onnx==0.1.0",
    "transformers>=4.57,<4.58",
)
"""Tested together; `optimum` 2.3 has no ONNX export, and optimum-onnx takes no newer transformers."""
_READY = "ready.json"
_ROOM = 4 << 30  # bytes: torch alone is 1 GB where its wheel has no CUDA, several where it has


def export_python(settings: Settings) -> Path:
    """The Python that can export: this one, or that of the environment under `EDGE_HOME`.

    Raises `MissingExtraError` where there is neither.
    """
    if _fits():
        return Path(sys.executable)
    folder = _folder(settings)
    if _is_ready(folder):
        return _python(folder)
    error = MissingExtraError("exporting to ONNX", "export")
    error.hint += ", or `edge export --make-environment` to keep its pinned versions apart"
    raise error


def make_environment(settings: Settings, *, progress: Update = lambda done, total, detail: None) -> Path:
    """Build the environment under `EDGE_HOME` unless it is there; return its Python. Minutes, and gigabytes.

    An interrupted one is built anew. Raises `OfflineError`, `DiskFullError`, and `EngineError` with what pip said.
    """
    folder = _folder(settings)
    if _is_ready(folder):
        return _python(folder)
    if settings.offline:
        raise OfflineError("the environment for exporting is not there, and offline nothing is fetched")
    if free_disk(folder) < _ROOM:
        raise DiskFullError(
            f"{folder} needs {_ROOM / 1e9:.0f} GB and {free_disk(folder) / 1e9:.1f} GB are free",
            hint="set EDGE_HOME to a larger disk",
        )
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        progress(0, None, "making an environment")
        _run([sys.executable, "-m", "venv", str(folder)], progress)
        pip = [str(_python(folder)), "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
        _run([*pip, *REQUIREMENTS], progress)
        (folder / _READY).write_text(json.dumps({"requirements": REQUIREMENTS}))
    return _python(folder)


def _fits() -> bool:
    """Whether this environment holds what an export needs, by what its packages say of themselves."""
    try:
        version("torch")
        found = version("optimum-onnx"), version("optimum"), version("transformers")
    except PackageNotFoundError:
        return False
    return found[1].startswith("2.1.") and found[2].startswith("4.57.")


def _folder(settings: Settings) -> Path:
    return settings.home.absolute() / "environments" / "onnx-export"


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_ready(folder: Path) -> bool:
    """Whether the environment was finished, and for these versions; its last file says so."""
    try:
        said = json.loads((folder / _READY).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("requirements") == [*REQUIREMENTS] and _python(folder).exists()


def _run(command: list[str], progress: Update) -> None:
    """Run a command, each line that it prints is a step; Ctrl-C ends it."""
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            assert child.stdout is not None
            for line in child.stdout:
                said.append(line.strip())
                progress(len(said), None, said[-1])
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        why = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "it printed nothing")
        raise EngineError(f"the environment for exporting cannot be made: {why[:300]}", hint="check the network")
