from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_documents import WordEncoder, made, put
from numpy.typing import NDArray

from edge_sdk.errors import (
    EdgeError,
    EncoderMismatchError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
)
from edge_sdk.storage import database, decisions, schema, segments
from edge_sdk.storage.store import Store

ENCODER = WordEncoder()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.db", encoder_fingerprint=ENCODER.fingerprint, dimension=ENCODER.dimension)


def texts(store: Store, word: str) -> list[str]:
    return [passage.text for passage in store.passages([id for id, _ in store.search_text(f'"{word}"', 10)])]


def raw(store: Store) -> sqlite3.Connection:
    return sqlite3.connect(store.path)


# --- documents --------------------------------------------------------------------------------------


def test_a_document_comes_back_as_it_was_put(store: Store) -> None:
    document, chunks = made("tea.md", "Boil the water.", "Wait four minutes.", heading="Drinks › Tea", title="Tea")
    assert store.put(document, chunks, ENCODER.encode([chunk.text for chunk in chunks])) == "added"
    (info,) = store.documents()
    assert (info.name, info.title, info.passages, info.characters) == ("tea.md", "Tea", 2, len(document.text))
    assert store.content_hash("tea.md") == info.content_hash == document.content_hash
    assert (store.counts().documents, store.counts().passages) == (1, 2)
    (passage,) = store.passages([id for id, _ in store.search_text('"minutes"', 5)])
    assert (passage.document, passage.title, passage.heading) == ("tea.md", "Tea", "Drinks › Tea")
    assert passage.text == document.text[passage.start : passage.end] == "Wait four minutes."
    assert store.check() == []


def test_titles_and_headings_are_searched_and_stems_and_accents_folded(store: Store) -> None:
    put(store, ENCODER, "a", "Of its uses.", heading="Café", title="Brewing")
    assert texts(store, "brewed") == texts(store, "cafes") == ["Of its uses."]


def test_putting_again_replaces_every_trace(store: Store) -> None:
    put(store, ENCODER, "a", "alpha", "beta", title="Old")
    put(store, ENCODER, "b", "gamma")
    assert put(store, ENCODER, "a", "delta", title="New") == "updated"
    assert [info.title for info in store.documents()] == ["New", ""]
    assert texts(store, "alpha") == texts(store, "old") == []
    assert texts(store, "delta") == texts(store, "new") == ["delta"]
    assert (store.counts().passages, len(store.vector_index())) == (2, 2)
    assert store.check() == []


def test_an_id_is_never_used_again(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    ((first, _),) = store.search_text('"alpha"', 1)
    store.delete("a")
    put(store, ENCODER, "a", "alpha")
    assert store.passages([first]) == []
    assert store.search_text('"alpha"', 1)[0][0] > first


def test_deleting_leaves_nothing_and_says_whether_it_was_there(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    assert store.delete("a") is True
    assert store.delete("a") is False
    assert store.content_hash("a") is None
    assert store.documents() == []
    assert texts(store, "alpha") == []
    assert len(store.vector_index()) == 0
    assert store.check() == []


def test_a_document_without_passages_is_remembered(store: Store) -> None:
    document, _ = made("empty.txt")
    assert store.put(document, [], np.empty((0, ENCODER.dimension), np.float32)) == "added"
    assert store.documents()[0].passages == 0
    assert store.check() == []


def test_passages_come_in_the_order_asked_for_without_those_that_are_gone(store: Store) -> None:
    put(store, ENCODER, "a", "one", "two", "three")
    assert [passage.text for passage in store.passages([3, 99, 1, 3])] == ["three", "one", "three"]


def test_a_put_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, ENCODER, "a", "alpha")

    def fail(*_: object) -> None:
        raise RuntimeError("the last step")

    monkeypatch.setattr(schema, "count_change", fail)
    for name in ("a", "b"):
        with pytest.raises(RuntimeError):
            put(store, ENCODER, name, "beta")
    monkeypatch.undo()
    assert texts(store, "alpha") == ["alpha"]
    assert texts(store, "beta") == []
    assert store.check() == []


def test_surrogates_and_nul_are_replaced_and_offsets_stay(store: Store) -> None:
    put(store, ENCODER, "a", "first", "x\ud800y\0z end", heading="h\udfff", title="t\0")
    (passage,) = store.passages([2])
    assert (passage.text, passage.heading, passage.title) == ("x\ufffdy\ufffdz end", "h\ufffd", "t\ufffd")
    assert (passage.start, passage.end) == (7, 7 + len("x?y?z end"))
    assert texts(store, "end") == [passage.text]
    assert store.check() == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec=None), min_size=1), min_size=1, max_size=4))
def test_any_text_is_stored_replaced_and_deleted_cleanly(store: Store, parts: list[str]) -> None:
    put(store, ENCODER, "any", "something else")
    put(store, ENCODER, "any", *parts, heading=parts[0], title=parts[-1])
    ids = store.vector_index().ids.tolist()
    assert [passage.text for passage in store.passages(ids)] == [schema.storable(part) for part in parts]
    assert store.check() == []
    store.delete("any")
    assert store.check() == []


def test_file_names_that_are_not_text_stay_apart(store: Store) -> None:
    put(store, ENCODER, "caf\udce9", "one")
    put(store, ENCODER, "caf\udce8", "two")
    assert [info.name for info in store.documents()] == ["caf\\udce8", "caf\\udce9"]
    assert store.content_hash("caf\udce9") is not None
    assert store.delete("caf\udce9")
    assert texts(store, "two") == ["two"]


def test_a_passage_that_is_not_in_the_document_is_refused(store: Store) -> None:
    document, chunks = made("a", "alpha")
    with pytest.raises(ValueError, match="another text at 0"):
        store.put(document, [replace(chunks[0], text="ALPHA")], ENCODER.encode(["alpha"]))


def test_a_fts_expression_with_an_error_is_one_line(store: Store) -> None:
    with pytest.raises(StoreError, match="syntax error"):
        store.search_text('"a" AND (', 5)
    assert store.search_text("", 5) == store.search_text('"a"', 0) == []


def test_matches_are_counted_up_to_a_limit(store: Store) -> None:
    put(store, ENCODER, "a", "alpha beta", "alpha", "gamma")
    assert [store.count_text('"alpha"', limit) for limit in (0, 1, 2, 9)] == [0, 1, 2, 2]
    assert store.count_text('"alpha beta" OR "gamma"', 9) == 2


# --- labels and decisions ---------------------------------------------------------------------------


def labels(store: Store) -> dict[str, str]:
    return {passage.document: passage.label for passage in store.passages(store.vector_index().ids.tolist())}


def test_a_passage_has_the_label_of_its_document_unless_it_has_its_own(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    put(store, ENCODER, "b", "beta")
    assert store.set_label("a", "private") is True
    assert store.set_label("missing", "private") is False
    assert labels(store) == {"a": "private", "b": ""}
    change(store, "UPDATE passages SET label = 'public' WHERE document_id = 1")
    assert labels(store)["a"] == "public"
    assert [info.label for info in store.documents()] == ["private", ""]
    assert store.check() == []


def test_an_update_keeps_the_label_until_another_is_given(store: Store) -> None:
    store.use_label("private")
    put(store, ENCODER, "a", "alpha")
    store.use_label(None)
    put(store, ENCODER, "a", "changed")
    put(store, ENCODER, "new", "beta")
    assert labels(store) == {"a": "private", "new": ""}
    store.use_label("public")
    put(store, ENCODER, "a", "changed again")
    assert labels(store) == {"a": "public", "new": ""}


def test_decisions_are_kept_without_the_question_and_the_oldest_are_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MOST", 3)
    for number in range(5):
        store.keep_decision(f"d{number}", f'{{"n": {number}}}', question="Where is the heirloom?", route="local")
    store.keep_decision("d2", '{"n": 22}', question="Where is the heirloom?", route="remote")
    assert [store.decision(f"d{number}") for number in range(5)] == [
        None,
        None,
        '{"n": 22}',
        '{"n": 3}',
        '{"n": 4}',
    ]
    rows = raw(store).execute("SELECT question_hash, route FROM decisions ORDER BY rowid").fetchall()
    assert len({hashed for hashed, _ in rows}) == 1
    assert [route for _, route in rows] == ["local", "local", "remote"]
    assert not any(b"heirloom" in path.read_bytes() for path in store.path.parent.iterdir())


# --- the encoder ------------------------------------------------------------------------------------


def test_the_first_document_records_the_encoder(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        assert store.encoder() is None
        put(store, ENCODER, "a", "alpha")
    with Store.open(tmp_path / "s.db") as store:
        assert store.encoder() == schema.StoredEncoder(ENCODER.fingerprint, ENCODER.dimension)


@pytest.mark.parametrize("other", [WordEncoder(seed=1), WordEncoder(dimension=16)], ids=["model", "dimension"])
def test_another_encoder_is_refused_with_the_way_out(store: Store, other: WordEncoder) -> None:
    put(store, ENCODER, "a", "alpha")
    for attempt in (
        lambda: Store.open(store.path, encoder_fingerprint=other.fingerprint, dimension=other.dimension),
        lambda: store.use_encoder(other.fingerprint, other.dimension),
    ):
        with pytest.raises(EncoderMismatchError, match="edge reindex") as error:
            attempt()
        assert ENCODER.fingerprint[:12] in str(error.value)
        assert other.fingerprint[:12] in str(error.value)
    assert put(store, ENCODER, "b", "beta") == "added"


def test_without_an_encoder_everything_but_put_works(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    with Store.open(store.path) as other:
        assert texts(other, "alpha") == ["alpha"]
        document, chunks = made("b", "beta")
        with pytest.raises(StoreError, match="no encoder was declared"):
            other.put(document, chunks, ENCODER.encode(["beta"]))


def test_an_emptied_store_takes_any_encoder(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    store.delete("a")
    put(store, WordEncoder(dimension=16), "a", "alpha")
    assert store.vector_index().dimension == 16
    assert store.check() == []


def test_vectors_that_would_make_cosines_wrong_are_refused(store: Store) -> None:
    document, chunks = made("a", "alpha", "beta")
    good = ENCODER.encode(["alpha", "beta"])
    for bad, error in (
        (good * 2, StoreError),
        (good * np.nan, StoreError),
        (good[:, :16], EncoderMismatchError),
        (good[:1], ValueError),
    ):
        with pytest.raises(error):
            store.put(document, chunks, bad)
    assert store.documents() == []
    store.put(document, chunks, good * np.array([[1], [0]], np.float32))  # a text without any token


def test_reindexing_replaces_all_vectors_and_the_encoder(store: Store) -> None:
    for number in range(150):
        put(store, ENCODER, f"d{number}", f"passage number {number}", heading=f"h{number}")
    other, seen = WordEncoder(dimension=16), []
    assert store.reindex(other, lambda done, total: seen.append((done, total))) == 150
    assert seen == [(64, 150), (128, 150), (150, 150)]
    index = store.vector_index()
    query = other.encode(["h7\npassage number 7"])[0]
    assert store.passages([int(index.top_k(query, 1)[0][0])])[0].document == "d7"
    assert store.encoder() == schema.StoredEncoder(other.fingerprint, 16)
    assert put(store, other, "new", "alpha") == "added"
    assert store.reindex(other) == 0
    assert store.check() == []


class Interrupted(WordEncoder):
    """Fails, or does something else, when its second batch is asked for."""

    def __init__(self, then: object = None) -> None:
        super().__init__(dimension=16)
        self._batches, self._then = 0, then

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self._batches += 1
        if self._batches == 2:
            if not callable(self._then):
                raise KeyboardInterrupt
            self._then()
        return super().encode(texts)


def test_an_interrupted_reindex_leaves_the_old_vectors_and_goes_on_later(store: Store) -> None:
    for number in range(100):
        put(store, ENCODER, f"d{number}", f"passage {number}")
    before = store.vector_index()
    with pytest.raises(KeyboardInterrupt):
        store.reindex(Interrupted())
    assert store.vector_index() is before
    assert put(store, ENCODER, "late", "a late one") == "added"
    assert store.check() == []
    assert store.reindex(WordEncoder(dimension=16)) == 101 - 64
    assert len(store.vector_index()) == 101
    assert store.check() == []


def test_reindexing_starts_over_for_yet_another_encoder(store: Store) -> None:
    for number in range(100):
        put(store, ENCODER, f"d{number}", f"passage {number}")
    with pytest.raises(KeyboardInterrupt):
        store.reindex(Interrupted())
    assert store.reindex(WordEncoder(dimension=8)) == 100
    assert store.vector_index().dimension == 8


def test_reindexing_sees_what_others_add_and_delete_meanwhile(store: Store) -> None:
    for number in range(100):
        put(store, ENCODER, f"d{number}", f"passage {number}")
    with Store.open(store.path) as other:

        def meanwhile() -> None:
            put(other, ENCODER, "new", "added meanwhile")
            other.delete("d5")
            other.delete("d99")

        store.reindex(Interrupted(meanwhile))
        with pytest.raises(EncoderMismatchError):
            put(other, ENCODER, "newer", "with the old encoder")
        with pytest.raises(EncoderMismatchError):
            other.vector_index()
    assert len(store.vector_index()) == store.counts().passages == 99
    assert store.check() == []


# --- the index in memory ----------------------------------------------------------------------------


def test_the_vector_index_is_read_again_only_after_a_change(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    first = store.vector_index()
    texts(store, "alpha")
    assert store.vector_index() is first
    with Store.open(store.path) as other:
        assert store.vector_index() is first
        put(other, ENCODER, "b", "beta")
    second = store.vector_index()
    assert len(second) == 2
    store.delete("a")
    assert store.vector_index().ids.tolist() == [2]


def test_stored_cosines_are_those_of_the_texts(store: Store) -> None:
    words = [f"word{number} of a passage" for number in range(40)]
    put(store, ENCODER, "a", *words)
    query = ENCODER.encode(["word7 of a passage"])[0]
    exact = ENCODER.encode(words) @ query
    assert np.allclose(store.vector_index().cosines(query, range(1, 41)), exact, atol=0.01)


# --- opening ----------------------------------------------------------------------------------------


def test_the_file_and_its_folder_are_made_for_the_user_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "new" / "deep" / "store.db") as store:
        put(store, ENCODER, "a", "alpha")
        for path in store.path.parent.iterdir():
            assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "name", ["with space.db", "50%.db", "what?.db", "#1.db", "caf\u00e9.db", "file:x.db", "a&b=c.db"]
)
def test_any_file_name_is_taken_literally(tmp_path: Path, name: str) -> None:
    with Store.open(tmp_path / name) as store:
        put(store, ENCODER, "a", "alpha")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with Store.open(tmp_path / name, read_only=True) as store:
        assert texts(store, "alpha") == ["alpha"]


def test_commits_are_made_to_survive_power_loss(store: Store) -> None:
    connection = store._database._connection
    assert connection is not None
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0, "cell_size_check": 1}
    assert {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted} == wanted


def test_without_shared_memory_a_rollback_journal_is_used(tmp_path: Path) -> None:
    """SQLite's unix-dotfile VFS cannot share memory, like some network file systems."""
    uri = f"{(tmp_path / 'x.db').as_uri()}?vfs=unix-dotfile"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    assert database.set_journal_mode(connection, 0) == "delete"
    connection.close()


def test_a_current_store_opens_without_sqlite_utils(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    store.close()
    code = (
        "import sys; from edge_sdk.storage.store import Store; "
        "print(Store.open(sys.argv[1]).counts().passages, 'sqlite_utils' in sys.modules)"
    )
    root = Path(database.__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code, store.path], cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["1", "False"]


def test_a_foreign_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store.open(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match="upgrade edge-sdk"):
        Store.open(store.path)


@pytest.mark.parametrize(
    "content", [b"This is no database at all. " * 100, b"SQLite format 3\0" + b"\xff" * 5000, b"x"]
)
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    with pytest.raises(StoreDamagedError, match="not a store") as error:
        Store.open(path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "store.db").touch()
    with Store.open(tmp_path / "store.db") as store:
        assert put(store, ENCODER, "a", "alpha") == "added"


def test_paths_that_cannot_be_a_store_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "store.db", tmp_path / ("x" * 300), tmp_path / "nul\0"):
        with pytest.raises(StoreError, match="cannot be opened"):
            Store.open(path)
    for path in (tmp_path / "missing.db", tmp_path):
        with pytest.raises(StoreError, match="no store at"):
            Store.open(path, read_only=True)
    with pytest.raises(StoreError, match="empty"):
        Store.open(tmp_path / "file", read_only=True)


def test_a_read_only_store_reads_and_refuses_to_write(store: Store) -> None:
    put(store, ENCODER, "a", "alpha")
    with Store.open(store.path, read_only=True) as reader:
        assert texts(reader, "alpha") == ["alpha"]
        put(store, ENCODER, "b", "beta")
        assert texts(reader, "beta") == ["beta"]
        assert reader.check() == []
        with pytest.raises(StoreError, match="readonly"):
            reader.delete("a")
    assert store.counts().documents == 2


def test_a_store_on_a_read_only_file_system_can_be_read(store: Store, tmp_path: Path) -> None:
    inside = ("unshare", "--map-root-user", "--mount")
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare with a mount namespace is not permitted here")
    put(store, ENCODER, "a", "alpha")
    store.close()
    code = (
        "import sys; from edge_sdk.storage.store import Store; "
        "print(len(Store.open(sys.argv[1], read_only=True).search_text('alpha', 5)))"
    )
    mount = 'mount -t tmpfs none "$0" && cp "$1" "$0/s.db" && mount -o remount,ro "$0" && "$2" -c "$3" "$0/s.db"'
    (tmp_path / "image").mkdir()
    ran = subprocess.run(
        [*inside, "sh", "-c", mount, str(tmp_path / "image"), str(store.path), sys.executable, code],
        cwd=Path(database.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout.strip(), ran.stderr) == ("1", "")


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.counts()


def test_a_store_does_not_survive_a_fork(store: Store) -> None:
    code = """
import os, sys
from edge_sdk.errors import StoreError
from edge_sdk.storage.store import Store
store = Store.open(sys.argv[1])
if os.fork() == 0:
    try:
        store.counts()
    except StoreError as error:
        store.close()
        os._exit(7 if "opened in another process" in str(error) else 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.wait()[1]), store.counts().documents)
"""
    root = Path(database.__file__).parents[2]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code, store.path],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["7", "0"]


# --- several at once --------------------------------------------------------------------------------


def test_a_locked_store_is_busy_after_the_time_allowed(store: Store) -> None:
    with Store.open(store.path, busy_timeout=0.3) as impatient:
        holder = sqlite3.connect(store.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError, match=r"locked by another process \(waited 0\.[3-9] s\)"):
            put(impatient, ENCODER, "a", "alpha")
        assert impatient.counts().documents == 0  # reading goes on
        holder.execute("ROLLBACK")
        assert put(impatient, ENCODER, "a", "alpha") == "added"
        holder.close()


def test_a_writer_waits_for_the_lock(store: Store) -> None:
    holder = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(put, store, ENCODER, "a", "alpha")
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        holder.execute("COMMIT")
        assert waiting.result(timeout=10) == "added"
    holder.close()


def test_threads_share_one_store(store: Store) -> None:
    def work(worker: int) -> None:
        for number in range(12):
            put(store, WordEncoder(), f"w{worker}-{number}", f"shared text {worker} {number}")
            assert store.search_text('"shared"', 5)
            assert len(store.vector_index()) > 0
            if number % 4 == 3:
                assert store.delete(f"w{worker}-{number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert store.counts().documents == 6 * 9
    assert store.check() == []


# --- damage -----------------------------------------------------------------------------------------


def change(store: Store, statement: str) -> None:
    connection = raw(store)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE passages SET text = 'Boil the wine.' WHERE id = 1", "checksum"),
        ("UPDATE passages SET text = 'Boil the wine.' WHERE id = 1", "full-text"),
        ("INSERT INTO passages_fts (passages_fts) VALUES ('delete-all')", "full-text"),
        ("DELETE FROM vector_tail WHERE passage_id = 2", "no vector"),
        ("UPDATE vector_tail SET codes = x'00' WHERE passage_id = 2", "vector of passage 2 does not match"),
        ("DELETE FROM passages WHERE id = 2", "has 1 of 2 passages"),
        ("DELETE FROM documents WHERE id = 1", "belongs to nothing"),
    ],
)
def test_the_check_finds_what_is_wrong(store: Store, statement: str, complaint: str) -> None:
    put(store, ENCODER, "a", "Boil the water.", "Wait.")
    assert store.check() == []
    change(store, statement)
    assert any(complaint in line for line in store.check())


def test_a_passage_that_rotted_is_never_served(store: Store) -> None:
    put(store, ENCODER, "a", "Take 10 drops.", "Wait.")
    change(store, "UPDATE passages SET text = 'Take 90 drops.' WHERE id = 1")
    with pytest.raises(StoreDamagedError, match="passage 1 of 'a' does not match its checksum"):
        store.passages([1])
    assert store.passages([2])[0].text == "Wait."


def test_vectors_of_the_wrong_length_are_damage(store: Store) -> None:
    put(store, ENCODER, "a", "alpha", "beta")
    change(store, "UPDATE vector_tail SET codes = x'00'")
    with pytest.raises(StoreDamagedError):
        store.vector_index()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "store.db"
    with pytest.MonkeyPatch.context() as patch, Store.open(path) as store:
        patch.setattr(segments, "SEGMENT_ROWS", 50)  # four, and a tail of forty
        for number in range(60):
            put(store, ENCODER, f"d{number}", *(f"passage {number} {part} " * 9 for part in "abcd"), title="Title")
    return path


def sound_text(passage: int) -> str:
    return f"passage {(passage - 1) // 4} {'abcd'[(passage - 1) % 4]} " * 9


def use_all(path: Path) -> list[str]:
    """Everything that reads, then a write. What is served is what was stored, or nothing is."""
    with Store.open(path) as store:
        problems = store.check()
        store.documents()
        store.search_text('"passage" OR "title"', 50)
        index = store.vector_index()
        vectors = ENCODER.encode([sound_text(id) for id in index.ids.tolist()])
        assert np.allclose(index.codes * index.scales[:, None], vectors, atol=0.003)
        for passage in store.passages(range(1, 241)):
            assert passage.text == sound_text(passage.id)
        put(store, ENCODER, "d7", "a new version")
        return problems


def test_no_damage_ends_in_anything_but_one_line(sound: Path, tmp_path: Path) -> None:
    """Bit flips, sectors of rubbish and zeros, and truncation, anywhere in the file."""
    chance, content, refused, noticed = random.Random(5), sound.read_bytes(), 0, 0
    for number in range(120):
        image = bytearray(content)
        at = chance.randrange(len(image))
        match number % 4:
            case 0:
                image[at] ^= 1 << chance.randrange(8)
            case 1:
                image[at : at + 512] = chance.randbytes(min(512, len(image) - at))
            case 2:
                at -= at % 4096
                image[at : at + 4096] = bytes(4096)
            case 3:
                del image[max(at, 1) :]
        path = tmp_path / f"{number}.db"
        path.write_bytes(image)
        try:
            noticed += bool(use_all(path))
        except EdgeError as error:
            assert "\n" not in str(error)
            refused += isinstance(error, StoreDamagedError)
        for file in tmp_path.glob(f"{number}.db*"):
            file.unlink()
    assert refused + noticed >= 80  # the rest fell where nothing is kept
    assert refused >= 60


def test_a_schema_that_is_not_text_is_damage(sound: Path, tmp_path: Path) -> None:
    """Python fails to decode SQLite's own message then."""
    path = tmp_path / "store.db"
    path.write_bytes(
        sound.read_bytes().replace(b"CREATE TABLE vector_tail ", b"CREATI\xb1\xff\xff\xffx vector_tail ")
    )
    with pytest.raises(StoreDamagedError):
        Store.open(path)


def test_a_missing_second_half_is_named_damage(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.db"
    shutil.copy(sound, path)
    os.truncate(path, sound.stat().st_size // 2)
    with pytest.raises(StoreDamagedError, match="damaged"):
        use_all(path)
