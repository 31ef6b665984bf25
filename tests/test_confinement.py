"""What a confined process can no longer do: everything it says is tried from inside such a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.engines.confinement import confinement_here
from edge_sdk.engines.worker_process import worker_environment

TRY = """
import ctypes, json, os, socket, sys
import numpy, importlib
from pathlib import Path
from edge_sdk.engines.confinement import confine

given, secret, folder, parent = sys.argv[1:5]
holds = confine([Path(given)])

def happens(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

found = {
    "holds": holds,
    "given": happens(lambda: Path(given).read_bytes()),
    "package": happens(lambda: importlib.import_module("numpy.linalg")),
    "standard library": happens(lambda: importlib.import_module("wave")),
    "machine": happens(lambda: Path("/proc/meminfo").read_bytes()),
    "inet": happens(lambda: socket.socket()),
    "inet6": happens(lambda: socket.socket(socket.AF_INET6)),
    "unix": happens(lambda: socket.socket(socket.AF_UNIX)),
    "program": happens(lambda: os.execv("/bin/true", ["true"])),
    "signal": happens(lambda: os.kill(int(parent), 0)),
    "secret file": happens(lambda: Path(secret).read_bytes()),
    "list": happens(lambda: os.listdir(folder)),
    "write": happens(lambda: Path(folder, "new").write_bytes(b"")),
    "write to given": happens(lambda: Path(given).open("r+b")),
    "delete": happens(lambda: os.unlink(secret)),
    "environment of the parent": happens(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
    "its command line": happens(lambda: Path(f"/proc/{parent}/cmdline").read_bytes()),
}
print(json.dumps(found))
"""
FINE = ("given", "package", "standard library", "machine")


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("confined")
    given, secret = folder / "given", folder / "secret"
    given.write_text("model")
    secret.write_text("key")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        done = subprocess.run(
            [sys.executable, "-c", TRY, given, secret, folder, str(other.pid)],
            capture_output=True,
            check=False,
            env={"OPENBLAS_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[1],
        )
        other.communicate(b"\n")
    assert done.returncode == 0, done.stderr.decode()
    assert secret.read_text() == "key"
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_what_it_needs_still_works(tried: dict[str, str]) -> None:
    assert {name: tried[name] for name in FINE} == dict.fromkeys(FINE, "done")


def test_no_network_no_programs_no_other_processes(tried: dict[str, str]) -> None:
    if not any("seccomp" in each for each in tried["holds"]):
        pytest.skip("this system has no seccomp filters")
    names = ("inet", "inet6", "unix", "program", "signal")
    assert {name: tried[name] for name in names} == dict.fromkeys(names, "PermissionError")


def test_no_files_but_those_given(tried: dict[str, str]) -> None:
    if not any("Landlock" in each for each in tried["holds"]):
        pytest.skip("this system has no Landlock")
    names = ("secret file", "list", "write", "write to given", "delete")
    names = (*names, "environment of the parent", "its command line")
    assert {name: tried[name] for name in names} == dict.fromkeys(names, "PermissionError")


def test_what_is_claimed_is_what_was_found(tried: dict[str, str]) -> None:
    """Where the kernel does not do it, nothing is said of it: threads that are there already are not bound."""
    script = (
        "import json, threading; from edge_sdk.engines.confinement import confine\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start(); print(json.dumps(confine()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert not [each for each in json.loads(done.stdout) if "Landlock" in each or "seccomp" in each]


def test_another_process_tells_what_can_be_enforced_here(tried: dict[str, str]) -> None:
    assert list(confinement_here(worker_environment())) == tried["holds"]
    assert confinement_here({"PYTHONHOME": "/nowhere"}) == ()
