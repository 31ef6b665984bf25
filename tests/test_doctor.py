"""The doctor reports what it finds, in words with a next step, and survives what it meets."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import sys
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest
from gguf_files import tiny_llama
from made_calibrations import calibration
from made_documents import WordEncoder, put
from made_readers import write_reader
from packages import catalog_entry, content

from edge_sdk import device, doctor
from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.config import Settings, load_settings
from edge_sdk.doctor import Report, diagnose
from edge_sdk.engines.profile import Profile
from edge_sdk.hub.models import pull, resolve
from edge_sdk.storage.store import Store

WEIGHTS = content(10_000)


@pytest.fixture
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home with a decoder and the encoder of the settings, both made up; native packages are not tried."""
    source = tmp_path / "source"
    source.write_bytes(WEIGHTS)
    (tmp_path / "home").mkdir()
    entries = [
        catalog_entry(name, {file: WEIGHTS}, {file: [f"file:{source}"]}, role=role, format=form)
        for name, file, role, form in [
            ("writer", "m.gguf", "decoder", "gguf"),
            ("minilm-l6-int8", "model.onnx", "encoder", "onnx"),
        ]
    ]
    (tmp_path / "home" / "catalog.toml").write_text("\n".join(entries))
    settings = load_settings({"home": tmp_path / "home"}, {})
    for name in ("writer", "minilm-l6-int8"):
        pull(name, settings)
    monkeypatch.setattr(doctor, "_native", lambda package, code, problems: "1.0")
    monkeypatch.setattr(doctor, "_kernels", lambda notes, problems: "compiled C")
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0")
    monkeypatch.setattr(doctor, "_has_llama", lambda: True)
    monkeypatch.setattr(doctor, "_runs_on", lambda encoder: "kernel (avx2)")
    return settings


def rows(report: Report, title: str) -> dict[str, str]:
    return dict(next(section.rows for section in report.sections if section.title == title))


def test_a_healthy_set_up_has_no_problems_and_every_section(healthy: Settings) -> None:
    report = diagnose(healthy)
    assert report.problems == ()
    assert [section.title for section in report.sections][:4] == ["versions", "machine", "models", "settings"]
    assert rows(report, "models").keys() == {"writer", "minilm-l6-int8", "encoder runs on"}
    assert "present, sha256" in rows(report, "models")["writer"]
    assert rows(report, "settings")["offline"] == "False (default)"
    assert rows(report, "settings")["remote"] == "not set (default)"
    assert sqlite3.sqlite_version in rows(report, "versions")["sqlite"]


def test_a_reader_is_named_and_one_that_is_none_is_a_problem(healthy: Settings, tmp_path: Path) -> None:
    write_reader(tmp_path / "reader", {"source": (3.0, 3.0, 0.0)})
    report = diagnose(replace(healthy, reader=str(tmp_path / "reader")))
    assert report.problems == ()
    assert "cannot tell how likely" in rows(report, "models")["reader"]
    report = diagnose(replace(healthy, reader=str(tmp_path / "none")))
    assert "there is no file" in report.problems[0]
    assert "reader" not in rows(report, "models")


def test_a_tuned_model_says_what_it_is_loaded_as(healthy: Settings) -> None:
    path = resolve("writer", healthy).path
    profile = Profile(
        path.stem, path.stat().st_size, threads=2, device=device.cpu_name(), figures={"prefill_ratio": 2.34}
    )
    where = profile.save(healthy.home)
    report = diagnose(healthy)
    assert rows(report, "models")["writer tuned"] == "its own file, 2 threads, prefill 2.3 times as fast"
    where.write_text("{")
    assert [problem for problem in diagnose(healthy).problems if "is no profile" in problem]


def test_what_a_model_would_take_stands_beside_what_it_may(
    healthy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_llama(tmp_path / "tiny.gguf")
    entry = catalog_entry("tiny", {"t.gguf": source.read_bytes()}, {"t.gguf": [f"file:{source}"]})
    with (healthy.home / "catalog.toml").open("a") as catalog:
        catalog.write("\n" + entry)
    pull("tiny", healthy)
    monkeypatch.setattr(device, "available_memory", lambda: 1_000_000_000)
    found = rows(diagnose(healthy), "models")
    assert "writer memory" not in found  # its header is none
    pattern = (
        r"\d+ MB with a context of 512 \(weights 0, context 0, evaluation \d+, runtime \d+\); 800 MB may be taken"
    )
    assert re.fullmatch(pattern, found["tiny memory"])
    assert rows(diagnose(replace(healthy, context=256)), "models")["tiny memory"] != found["tiny memory"]


def test_a_store_is_read_and_a_damaged_one_is_a_problem(healthy: Settings) -> None:
    with Store.open(healthy.store) as store:
        for number in range(20):
            put(store, WordEncoder(), f"{number}.md", f"the tower of Tarn, {number}", "it is red")
    report = diagnose(healthy)
    assert report.problems == ()
    assert rows(report, "store")["documents"] == "20, in 40 passages"
    sound = healthy.store.read_bytes()
    healthy.store.write_bytes(sound.replace(b"the tower of Tarn, 7", b"the tower of Turn, 7"))
    (problem,) = diagnose(healthy).problems
    assert "passage 15 of '7.md' does not match its checksum" in problem
    assert "restore a copy" in problem
    healthy.store.write_bytes(sound[: len(sound) // 2])
    (problem,) = diagnose(healthy).problems
    assert str(healthy.store) in problem
    assert "damaged" in problem


def test_every_byte_of_a_store_may_be_wrong_without_the_doctor_failing(healthy: Settings) -> None:
    with Store.open(healthy.store) as store:
        put(store, WordEncoder(), "a.md", "the tower of Tarn", "it is red")
    sound, random = healthy.store.read_bytes(), Random(0)
    for _ in range(15):
        damaged = bytearray(sound)
        for _ in range(400):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        healthy.store.write_bytes(damaged)
        assert diagnose(healthy).problems


def test_a_damaged_calibration_is_a_problem(healthy: Settings) -> None:
    path = Calibrations(healthy.home / "calibrations").save(calibration())
    assert diagnose(healthy).problems == ()
    path.write_bytes(path.read_bytes()[:-100])
    (problem,) = diagnose(healthy).problems
    assert f"{path} is no calibration" in problem


def test_the_report_is_json(healthy: Settings) -> None:
    document = json.loads(json.dumps(asdict(diagnose(healthy))))
    assert document["problems"] == []
    assert document["sections"][0]["title"] == "versions"


def test_a_fresh_home_names_the_commands_that_fill_it(tmp_path: Path, healthy: Settings) -> None:
    report = diagnose(load_settings({"home": tmp_path / "new"}, {}))
    assert [problem for problem in report.problems if "edge pull minilm-l6-int8" in problem]
    assert [problem for problem in report.problems if "edge pull smollm2-135m-instruct" in problem]
    assert not (tmp_path / "new").exists()


def test_a_damaged_model_is_one_problem_with_its_command(healthy: Settings) -> None:
    (healthy.home / "models/minilm-l6-int8/model.onnx").write_bytes(b"cut")
    (problem,) = diagnose(healthy).problems
    assert "minilm-l6-int8 is damaged" in problem
    assert "3 bytes, expected 10000" in problem
    assert "edge pull minilm-l6-int8" in problem


def test_a_model_setting_that_names_nothing_is_a_problem(healthy: Settings) -> None:
    report = diagnose(load_settings({"home": healthy.home, "model": "writter"}, {}))
    assert report.problems == (
        "model 'writter' is not in the catalog; did you mean writer? `edge models` lists the models",
    )


def test_a_gguf_model_without_llama_cpp_names_the_extra(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_has_llama", lambda: False)
    (problem,) = diagnose(healthy).problems
    assert "pip install 'edge-sdk[gguf]'" in problem


def test_too_little_memory_and_disk_are_problems(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda: 0)
    monkeypatch.setattr(device, "free_disk", lambda path: 1_000_000)
    problems = diagnose(healthy).problems
    assert len(problems) == 2
    assert "1 MB are free at" in problems[0]
    assert "0.0 GB are free" in problems[1]


def test_a_bad_catalog_is_a_problem_and_the_rest_is_reported(healthy: Settings) -> None:
    (healthy.home / "catalog.toml").write_text("[[model")
    report = diagnose(healthy)
    assert len(report.problems) == 1
    assert "is not a catalog" in report.problems[0]
    assert rows(report, "machine")["usable cores"] == str(device.usable_cores())


def test_a_home_below_a_file_is_a_problem(healthy: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problems = diagnose(replace(healthy, home=tmp_path / "file" / "home")).problems
    assert any(f"{tmp_path / 'file'} cannot be written" in problem for problem in problems)


def test_nothing_is_fetched(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    assert diagnose(healthy).problems == ()


# --- packages with native code ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value", "problem"),
    [
        ("import json; print('noise'); print(json.dumps(['1.2', 'AVX2 FMA']))", "1.2 · AVX2 FMA", ""),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "9.9, crashes (SIGILL)",
            "crashes when it is loaded (SIGILL)",
        ),
        (
            "raise ImportError('libgomp.so.1: cannot open')",
            "9.9, cannot be loaded",
            "(ImportError: libgomp.so.1: cannot open)",
        ),
        ("print('rubbish')", "9.9, cannot be loaded", "(no output)"),
        ("", "9.9, cannot be loaded", "(no output)"),
    ],
)
def test_a_native_package_is_tried_in_a_child(
    monkeypatch: pytest.MonkeyPatch, code: str, value: str, problem: str
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "9.9")
    problems: list[str] = []
    assert doctor._native("package", code, problems) == value
    if problem:
        assert problem in problems[0]
        assert "reinstall it with `pip install" in problems[0]
    else:
        assert problems == []


def test_a_native_package_that_hangs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "9.9")
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 0.2)
    problems: list[str] = []
    assert doctor._native("package", "import threading; threading.Event().wait()", problems) == "9.9"
    assert "timed out" in problems[0]


def test_a_missing_package_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    problems: list[str] = []
    assert doctor._native("no-such-package-of-this-name", "raise SystemExit(1)", problems) is None
    assert problems == []


def test_the_real_packages_are_reported() -> None:
    problems: list[str] = []
    found = doctor._native("onnxruntime", doctor._ONNX, problems)
    assert found is not None
    assert "CPUExecutionProvider" in found
    if doctor._has_llama():
        llama = doctor._native("llama-cpp-python", doctor._LLAMA, problems)
        assert llama is not None
        assert " · " in llama
    assert problems == []


def test_a_sqlite_without_full_text_search_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def execute(self, sql: str) -> None:
            raise sqlite3.OperationalError("no such module: fts5")

        def close(self) -> None:
            pass

    monkeypatch.setattr(sqlite3, "connect", lambda path: Connection())
    problems: list[str] = []
    assert doctor._sqlite([], problems).endswith("without FTS5")
    assert "no FTS5" in problems[0]


def test_an_old_sqlite_is_a_note_and_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, count in (((3, 51, 2), 1), ((3, 51, 3), 0)):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        notes: list[str] = []
        problems: list[str] = []
        doctor._sqlite(notes, problems)
        assert (len(notes), problems) == (count, [])


@pytest.mark.parametrize(("backend", "notes", "problems"), [("c", 0, 0), ("numpy", 1, 0), (None, 0, 1)])
def test_kernels_without_c_are_a_note_and_missing_ones_a_problem(
    monkeypatch: pytest.MonkeyPatch, backend: str | None, notes: int, problems: int
) -> None:
    def load(name: str) -> object:
        assert name in ("kernels.logits", "kernels.scan")
        if backend is None:
            raise ImportError(name)
        face = {"backend": staticmethod(lambda: backend), "instruction_sets": staticmethod(lambda: [1])}
        return type("Kernels", (), {**face, "INSTRUCTION_SETS": {1: "portable"}})

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    said: tuple[list[str], list[str]] = ([], [])
    doctor._kernels(*said)
    assert (len(said[0]), len(said[1])) == (notes, problems)
