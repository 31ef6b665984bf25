"""The command line: light start, one-line errors, exit codes, JSON as the last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_documents import WordEncoder, put

from edge_sdk.cli import COMMANDS, main
from edge_sdk.storage.store import Store

HEAVY = ("numpy", "onnxruntime", "llama_cpp", "httpx", "sqlite_utils", "tokenizers", "jinja2", "rich", "click")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_sdk.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from edge_sdk.cli import main; main(['--help']);"
        f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: edge {name}" in out
    assert "--json" in out


def test_an_unknown_command_is_wrong_usage_and_names_what_comes_close(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serach", "x"]) == 2
    assert "`edge search`" in capsys.readouterr().err
    assert main(["bench"]) == 2
    assert "`edge bench engine`" in capsys.readouterr().err


def test_a_wrong_option_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "x", "--frobnicate"]) == 2
    assert "--frobnicate" in capsys.readouterr().err


def test_a_failure_is_one_line_and_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "why?", "--store", str(tmp_path / "none.db")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("edge: there is no store at")
    assert "edge add" in error


@pytest.mark.parametrize(
    "command",
    [
        *("list", "label a.md private", "remove a.md", "search tower", "reindex", "spend", "outbox list"),
        *("outbox send", "outbox drop", "learned list", "learned drop 1", "route explain 1"),
    ],
)
def test_a_wrong_path_is_not_made_into_an_empty_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "nowhere" / "s.db"
    assert main([*command.split(), "--store", str(path)]) == 1
    assert f"there is no store at {path}; run `edge add PATH` first" in capsys.readouterr().err
    assert not path.parent.exists()


def test_an_unknown_model_names_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "smolm2"]) == 1
    error = capsys.readouterr().err
    assert "smollm2" in error
    assert error.count("\n") == 1


def test_a_bad_setting_names_its_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_CONTEXT", "many")
    assert main(["list"]) == 1
    assert "'many' (environment)" in capsys.readouterr().err


def test_when_unsure_remote_needs_a_remote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "why?", "--when-unsure", "remote", "--store", str(tmp_path / "s.db")]) == 1
    assert "--remote URL" in capsys.readouterr().err


def test_json_is_the_last_line_of_standard_output() -> None:
    done = run("models", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["models"]
    assert done.stderr == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m edge_sdk.cli models | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line in which `edge` is the command."""
    line = command.replace("edge ", f"{sys.executable} -m edge_sdk.cli ")
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


@pytest.mark.parametrize("command", ["models", "models --json", "--help"])
def test_a_pipe_that_nobody_reads_is_no_error(command: str) -> None:
    done = shell(f"edge {command} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_within_a_command_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("edge_sdk.hub.models.list_models", broken)
    assert main(["models"]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", ["models", "models --json", "--help", "models --help", "--version"])
def test_output_for_which_there_is_no_space_is_one_line(command: str) -> None:
    done = shell(f"edge {command} > /dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "edge: the output cannot be written: No space left on device\n",
    )


def test_characters_that_the_output_lacks_are_spelled_out(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        put(store, WordEncoder(), "caf\u00e9.md", "the tower of Tarn")
    done = run("list", "--store", str(tmp_path / "s.db"), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\xe9.md" in done.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(tmp_path: Path, closed: str) -> None:
    with Store.open(tmp_path / "s.db") as store:
        put(store, WordEncoder(), "a.md", "the tower of Tarn")
    done = shell(f"edge ask 'Who?' {closed}", EDGE_STORE=str(tmp_path / "s.db"), EDGE_ENCODER=str(tmp_path))
    assert done.returncode == 1 and "unexpected" not in done.stderr  # there is no encoder: an error like any other
    assert shell(f"edge nosuch {closed}").returncode == 2


def test_an_interrupt_while_packages_are_imported_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = run("models", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert (done.returncode, done.stderr) == (130, "\nedge: interrupted\n")


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_sdk.hub.models.list_models", interrupted)
    assert main(["models"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_unless_verbose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("edge_sdk.hub.models.list_models", broken)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == "edge: unexpected RuntimeError: two lines; run again with -v and report it\n"
    with pytest.raises(RuntimeError):
        main(["models", "-v"])
