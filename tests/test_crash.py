from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_writer import ENCODER, as_stored, put_version, stored
from made_documents import WordEncoder

from edge_sdk.storage.store import Store

TESTS = Path(__file__).parent
KILLS = [200, pytest.param(2000, marks=pytest.mark.campaign)]


class Writers:
    """The program `crash_writer`, which forks what is to be killed."""

    def __init__(self, prefix: tuple[str, ...] = ()) -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self._program = subprocess.Popen(
            [*prefix, sys.executable, str(TESTS / "crash_writer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )

    def start(self, *orders: dict[str, Any]) -> list[int]:
        """Give the orders; the process ids of the workers."""
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(orders) + "\n")
        self._program.stdin.flush()
        self._early: list[list[str]] = []
        while (said := self._next())[0] != "start":  # a worker may speak first
            self._early.append(said)
        return [int(pid) for pid in said[1:]]

    def until(self, *words: str) -> list[list[str]]:
        """What the workers say up to the first line that begins with one of `words`, that line included."""
        lines, self._early = self._early, []
        while not lines or lines[-1][0] not in words:
            lines.append(self._next())
        return lines

    def run(self, *orders: dict[str, Any]) -> list[list[str]]:
        """Give the orders and wait for the end; fails when a worker does."""
        self.start(*orders)
        lines = self.until("end")
        assert set(lines[-1][1:]) == {"0"}, lines
        return lines[:-1]

    def close(self) -> None:
        self._program.communicate()

    def _next(self) -> list[str]:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        assert line, "the writer ended"
        return line.split()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    program = Writers()
    yield program
    program.close()


class Ledger:
    """What the store must hold, from what was acknowledged, and may hold, from what had begun."""

    def __init__(self) -> None:
        self._acknowledged: dict[str, str] = {}
        self._begun: dict[str, set[str]] = {}
        self.steps = 0

    def note(self, lines: list[list[str]]) -> None:
        for word, *rest in lines:
            if word == "begin":
                self._begun.setdefault(rest[0], set()).add(rest[1])
            elif word == "ack":
                self._acknowledged[rest[0]] = rest[1]
                self._begun.pop(rest[0], None)
                self.steps += 1

    def compare(self, found: dict[str, Any]) -> list[str]:
        """What is lost, torn or unsound. What is found is from now on expected."""
        wrong = list(found["problems"])
        documents = found["documents"]
        for name in self._acknowledged.keys() | self._begun.keys() | documents.keys():
            allowed = {self._acknowledged.get(name, "gone"), *self._begun.get(name, ())}
            there = json.loads(json.dumps(documents.get(name)))
            match = [v for v in allowed if there == (None if v == "gone" else as_stored(name, int(v)))]
            if match:
                self._acknowledged[name] = match[0]
            else:
                wrong.append(f"{name}: expected {' or '.join(sorted(allowed))}, found {str(there)[:60]}")
        self._begun.clear()
        return wrong


def kill_while_writing(
    writers: Writers, path: Path, ledger: Ledger, chance: random.Random, number: int, **order: Any
) -> tuple[bool, bool]:
    """One worker, killed at a random moment; whether it had acknowledged anything, and was inside a step."""
    (pid,) = writers.start({"work": "write", "path": str(path), "first": number * 1000, "count": 900, **order})
    lines = []
    if chance.random() < 0.8:  # on a busy machine a mere delay would fall before the first acknowledgement
        lines = writers.until("ack", "end")
    time.sleep(chance.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    lines += writers.until("end")
    assert lines[-1] == ["end", str(-signal.SIGKILL)], lines
    ledger.note(lines[:-1])
    return any(line[0] == "ack" for line in lines), len(lines) > 1 and lines[-2][0] == "begin"


def segments_ever(path: Path) -> int:
    """How many segments a store has had; their numbers are never used again."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        ((number,),) = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'vector_segments'")
    return int(number)


@pytest.mark.parametrize("kills", KILLS)
def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(
    writers: Writers, tmp_path: Path, kills: int
) -> None:
    chance, ledger = random.Random(2), Ledger()
    after_first = inside = 0
    for number in range(kills):
        acknowledged, begun = kill_while_writing(writers, tmp_path / "s.db", ledger, chance, number)
        after_first, inside = after_first + acknowledged, inside + begun
        if number % 2:  # every other time the next writer recovers the log
            assert ledger.compare(stored(tmp_path / "s.db")) == []
    sealed = segments_ever(tmp_path / "s.db")
    print(
        f"{kills} kills: {after_first} after the first of {ledger.steps} acknowledgements, {inside} inside a step, "
        f"{sealed} segments sealed"
    )
    assert after_first >= kills * 0.6
    assert inside >= kills * 0.2
    assert sealed >= ledger.steps * 0.2


def test_the_kills_would_notice_an_early_acknowledgement(writers: Writers, tmp_path: Path) -> None:
    """The sabotage twin: acknowledged before COMMIT, something is soon lost."""
    chance, ledger = random.Random(3), Ledger()
    for number in range(200):
        kill_while_writing(writers, tmp_path / "s.db", ledger, chance, number, early=True)
        if ledger.compare(stored(tmp_path / "s.db")):
            return
    pytest.fail("nothing was lost")


def test_a_killed_reindex_leaves_one_encoder_s_vectors_and_goes_on(writers: Writers, tmp_path: Path) -> None:
    path, chance, ended, interrupted = tmp_path / "s.db", random.Random(4), 0, 0
    with Store.open(path, encoder_fingerprint=ENCODER.fingerprint, dimension=ENCODER.dimension) as store:
        for number in range(100):
            put_version(store, str(number), 4)  # 500 passages, 8 batches
    encoders = [ENCODER, WordEncoder(24, seed=1)]
    for _ in range(40):
        target = encoders[1]
        (pid,) = writers.start({"work": "reindex", "path": str(path), "dimension": 24, "seed": 1})
        writers.until("ack", "done")
        time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        writers.until("end")
        with Store.open(path) as store:
            assert store.check() == []
            recorded = store.encoder()
            assert recorded is not None
            encoder = next(encoder for encoder in encoders if encoder.fingerprint == recorded.fingerprint)
            index = store.vector_index()
            assert len(index) == store.counts().passages == 500
            passage = store.passages(index.ids[-1:].tolist())[0]
            text = f"{passage.heading}\n{passage.text}" if encoder is target else passage.text
            assert index.cosines(encoder.encode([text])[0], [passage.id])[0] > 0.99
        interrupted += encoder is not target
        if encoder is target:
            ended += 1
            if ended == 3:
                break
            path.unlink()
            with Store.open(path, encoder_fingerprint=ENCODER.fingerprint, dimension=ENCODER.dimension) as store:
                for number in range(100):
                    put_version(store, str(number), 4)
    print(f"{ended} reindexed in spite of {interrupted} kills")
    assert ended == 3
    assert interrupted >= 3


def test_four_processes_write_one_new_store_and_lose_nothing(writers: Writers, tmp_path: Path) -> None:
    path, ledger = tmp_path / "s.db", Ledger()
    for first in (0, 1000):
        ledger.note(
            writers.run(
                *({"work": "write", "path": str(path), "first": first, "count": 40, "worker": w} for w in "abcd")
            )
        )
    assert ledger.steps == 2 * 4 * 40
    assert ledger.compare(stored(path)) == []


def test_reading_goes_on_while_another_process_writes(writers: Writers, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store.open(path).close()
    (pid,) = writers.start({"work": "write", "path": str(path), "first": 0, "count": 100_000, "only_add": True})
    lines = writers.until("ack")
    seen = 0
    with Store.open(path) as store:
        while seen < 200:
            counts = store.counts()
            assert counts.passages >= seen
            seen = counts.passages
            index = store.vector_index()
            assert len(index) >= seen
            hits = store.search_text('"passage"', 100_000)
            assert len(hits) >= len(index)
            assert len(store.passages([id for id, _ in hits[:50]])) == min(50, len(hits))
        assert store.check() == []
    os.kill(pid, signal.SIGKILL)
    lines += writers.until("end")
    ledger = Ledger()
    ledger.note(lines[:-1])
    assert ledger.steps > 1
    assert ledger.compare(stored(path)) == []


def check_full(lines: list[list[str]], found: dict[str, Any]) -> int:
    """After a full disk: one clear line, all that was acknowledged there, and searchable."""
    ledger = Ledger()
    ledger.note(lines)
    said = {line[0]: line[1:] for line in lines}
    assert "no space to write to store" in " ".join(said["full"])
    assert ledger.compare(found) == []
    if ledger.steps:
        passages = sum(len(passages) for _, _, passages in found["documents"].values())
        assert said["found"] == [str(passages), str(passages)]
    return ledger.steps


def test_a_file_size_limit_anywhere_loses_nothing(writers: Writers, tmp_path: Path) -> None:
    written = []
    for pages in (*range(1, 60, 5), *range(60, 300, 24)):
        path = tmp_path / f"{pages}.db"
        lines = writers.run({"work": "fill", "path": str(path), "limit": pages * 4096 + 100})
        written.append(check_full(lines, stored(path)))
        with Store.open(path, encoder_fingerprint=ENCODER.fingerprint, dimension=ENCODER.dimension) as store:
            put_version(store, "later", 3)  # with space it goes on
    assert min(written) == 0
    assert max(written) > 10


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    inside = ("unshare", "--map-root-user", "--mount")
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("unshare with a mount namespace is not permitted here")
    for kilobytes in (64, 256, 600, 1200):
        mount = f'mount -t tmpfs -o size={kilobytes}k none "$0" && exec "$@"'
        program = Writers((*inside, "sh", "-c", mount, str(tmp_path)))
        path = str(tmp_path / "s.db")
        lines = program.run({"work": "fill", "path": path})
        (description,) = program.run({"work": "describe", "path": path}) if kilobytes > 64 else (None,)
        program.close()
        if description is not None:
            assert check_full(lines, json.loads(" ".join(description[1:]))) > 0
        else:
            assert "full" in {line[0] for line in lines}


def test_adding_files_loses_nothing_acknowledged_in_200_kills(
    writers: Writers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way of `edge add`: parse, chunk, embed, store; each run goes on where the one before was killed."""
    folder, path = tmp_path / "documents", tmp_path / "store.db"
    folder.mkdir()
    chance, acknowledged, after_first, kills = random.Random(7), set[str](), 0, 200
    for number in range(60):
        text = f"# Document {number}\n\n" + f"Passage of document {number}. " * 60
        (folder / f"{number:02}.md").write_text(text, encoding="utf-8")
    for kill in range(kills):
        (folder / f"{chance.randrange(60):02}.md").write_text(f"# Changed\n\nIn round {kill}.\n", encoding="utf-8")
        (worker,) = writers.start({"work": "add", "path": str(path), "folder": str(folder)})
        time.sleep(chance.uniform(0.005, 0.12))
        os.kill(worker, signal.SIGKILL)
        lines = [line for line in writers.until("end") if line[0] == "ack"]
        after_first += bool(lines)
        acknowledged |= {line[1] for line in lines}
        if kill % 10 == 9:
            with Store.open(path) as store:
                assert store.check() == []
                assert acknowledged <= {Path(document.name).name for document in store.documents()}
    with capsys.disabled():
        print(
            f"\nedge add: {kills} kills, {after_first} after an acknowledgement, {len(acknowledged)} names, 0 lost"
        )
    assert after_first >= 0.6 * kills
