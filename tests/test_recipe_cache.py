"""A result is made once for one content of its inputs, is whole or not there; its maker can be killed anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError
from quantize.recipes.cache import RECORD, SCRATCH, Work, input_digest, stage_key

KEY = stage_key("data", 1, {}, {})


def make(work: Work, content: str = "text", key: str = KEY) -> Path:
    folder = work.begin("data", key)
    (folder / "out.txt").write_text(content)
    return work.finish("data", key, {"rows": 3}, 1.5, 0.25).folder


def test_what_is_done_is_found_with_its_figures(tmp_path: Path) -> None:
    with Work(tmp_path).hold():
        made = make(Work(tmp_path))
    found = Work(tmp_path).find("data", KEY)
    assert found is not None
    assert (found.folder, found.figures, found.seconds, found.cost) == (made, {"rows": 3}, 1.5, 0.25)
    assert Work(tmp_path).last_seconds("data") == 1.5 and Work(tmp_path).last_seconds("other") is None


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    work, keys = Work(tmp_path), [stage_key("data", version, {}, {}) for version in (1, 2, 3)]
    for key, content in zip(keys, ("text", "text", "other"), strict=True):
        make(work, content, key)
    digests = [found.digest for key in keys if (found := work.find("data", key))]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("change", [("settings", {"a": 2}), ("version", 2), ("inputs", {"x": "2"}), ("stage", "b")])
def test_all_that_decides_a_result_is_in_its_key(change: tuple[str, object]) -> None:
    values: dict[str, object] = {"stage": "a", "version": 1, "settings": {"a": 1}, "inputs": {"x": "1"}}
    assert stage_key(**values) != stage_key(**{**values, change[0]: change[1]})  # type: ignore[arg-type]


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("1")
    first = input_digest(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    assert input_digest(tmp_path) == first
    (tmp_path / "deep" / "a").rename(tmp_path / "deep" / "b")
    second = input_digest(tmp_path)
    (tmp_path / "deep" / "b").write_text("2")
    assert len({first, second, input_digest(tmp_path), input_digest(tmp_path / "deep" / "b")}) == 4
    with pytest.raises(ConfigError, match="cannot be read"):
        input_digest(tmp_path / "none")


def test_what_was_begun_keeps_its_scratch_and_nothing_else(tmp_path: Path) -> None:
    work = Work(tmp_path)
    folder = work.begin("data", KEY)
    (folder / SCRATCH / "journal").write_text("kept")
    (folder / "half.txt").write_text("half")
    assert work.begun("data", KEY) and work.find("data", KEY) is None
    again = Work(tmp_path).begin("data", KEY)
    assert (again / SCRATCH / "journal").read_text() == "kept" and not (again / "half.txt").exists()
    done = make(Work(tmp_path))
    assert sorted(path.name for path in done.iterdir()) == ["out.txt", RECORD]
    assert not work.begun("data", KEY)


@pytest.mark.parametrize("damage", ["change", "remove", "add", "record", "no record"])
def test_a_damaged_result_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = make(Work(tmp_path))
    if damage == "change":
        (folder / "out.txt").write_text("texT")
    elif damage == "remove":
        (folder / "out.txt").unlink()
    elif damage == "add":
        (folder / "more.txt").write_text("x")
    elif damage == "record":
        (folder / RECORD).write_text("[" * 100_000)
    else:
        (folder / RECORD).unlink()
    work = Work(tmp_path)
    assert work.find("data", KEY) is None
    make(work)
    assert Work(tmp_path).find("data", KEY) is not None


def test_a_key_that_begins_alike_is_another(tmp_path: Path) -> None:
    make(Work(tmp_path))
    assert Work(tmp_path).find("data", KEY[:16] + "0" * 48) is None


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from quantize.recipes.cache import Work\n"
        "with Work(Path(sys.argv[1])).hold():\n    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None and other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process is at work"), Work(tmp_path).hold():
            pass
    finally:
        other.kill()  # and a lock does not outlive its process
        other.communicate()
    with Work(tmp_path).hold():
        pass


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), Work(tmp_path / "file" / "work").hold():
        pass


def test_the_latest_time_counts(tmp_path: Path) -> None:
    work = Work(tmp_path)
    for seconds in (1, 2, 3):
        key = stage_key("data", seconds, {}, {})
        work.begin("data", key)
        folder = work.finish("data", key, {}, seconds, 0).folder
        os.utime(folder / RECORD, (time.time() - abs(2 - seconds) * 100,) * 2)
    (tmp_path / "data-broken").mkdir()
    (tmp_path / "data-broken" / RECORD).write_text(json.dumps({"stage": "data"}))
    assert work.last_seconds("data") == 2
