from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import WordEncoder, put
from numpy.typing import NDArray

from edge_sdk.errors import StoreDamagedError
from edge_sdk.storage import schema, segments, version_3
from edge_sdk.storage import store as store_module
from edge_sdk.storage.store import Store
from edge_sdk.storage.vectors import VectorIndex, quantize_rows

ENCODER = WordEncoder(dimension=16)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "store.db") as store:
        yield store


def opened(path: Path, encoder: WordEncoder = ENCODER) -> Store:
    return Store.open(path, encoder_fingerprint=encoder.fingerprint, dimension=encoder.dimension)


def fill(store: Store, passages: int, first: int = 0) -> None:
    """One document a passage."""
    for number in range(first, first + passages):
        put(store, ENCODER, f"d{number}", f"passage {number}")


def ask(store: Store, query: str) -> list[tuple[int, ...]]:
    with sqlite3.connect(store.path) as connection:
        rows = connection.execute(query).fetchall()
    connection.close()
    return rows


def change(store: Store, statement: str, *parameters: object) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute(statement, parameters)
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
    connection.commit()
    connection.close()


def contents(index: VectorIndex) -> dict[int, tuple[bytes, float]]:
    """What an index serves, in a form that compares: each live id with its codes and scale."""
    found, _ = index.top_k(np.ones(index.dimension, np.float32) / index.dimension**0.5, len(index) + 99)
    ids = index.ids.tolist()
    assert sorted(found.tolist()) == ids
    return dict(zip(ids, zip(map(bytes, index.codes), index.scales.tolist(), strict=True), strict=True))


def reopened(store: Store) -> dict[int, tuple[bytes, float]]:
    with Store.open(store.path, read_only=True) as other:
        return contents(other.vector_index())


class Reads:
    """Counts the segments that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, original = 0, segments._sound

        def counted(sql: sqlite3.Connection, segment: segments._Segment) -> segments.Rows | None:
            self.count += 1
            return original(sql, segment)

        monkeypatch.setattr(segments, "_sound", counted)


# --- writing ----------------------------------------------------------------------------------------


def test_the_tail_is_sealed_when_it_is_long_enough(store: Store) -> None:
    fill(store, 7)
    assert ask(store, "SELECT count(*) FROM vector_segments") == [(0,)]
    fill(store, 1, first=7)
    assert ask(store, "SELECT first_id, last_id, count FROM vector_segments") == [(1, 8, 8)]
    assert ask(store, "SELECT count(*) FROM vector_tail") == [(0,)]
    put(store, ENCODER, "long", *(f"part {number}" for number in range(20)))
    assert ask(store, "SELECT first_id, count FROM vector_segments") == [(1, 8), (9, 8), (17, 8)]
    assert ask(store, "SELECT count(*) FROM vector_tail") == [(4,)]
    assert len(contents(store.vector_index())) == 28
    assert store.check() == []


def test_a_deleted_vector_of_a_segment_leaves_a_tombstone_until_most_are_dead(store: Store) -> None:
    fill(store, 16)
    ((before,), _) = ask(store, "SELECT id FROM vector_segments")
    for number in range(4):
        store.delete(f"d{number}")
    assert ask(store, "SELECT passage_id FROM dead_vectors") == [(1,), (2,), (3,), (4,)]
    assert ask(store, "SELECT id FROM vector_segments WHERE first_id = 1") == [(before,)]
    store.delete("d4")
    assert ask(store, "SELECT * FROM dead_vectors") == []
    assert ask(store, "SELECT first_id, last_id, count FROM vector_segments ORDER BY 1") == [(6, 8, 3), (9, 16, 8)]
    assert sorted(contents(store.vector_index())) == list(range(6, 17))
    assert store.check() == []


def test_small_neighbours_are_merged_and_empty_segments_dropped(store: Store) -> None:
    fill(store, 24)
    for number in (0, 1, 2, 3, 4, 8, 9, 10, 11, 12):
        store.delete(f"d{number}")
    assert ask(store, "SELECT first_id, last_id, count FROM vector_segments ORDER BY 1") == [
        (6, 16, 6),
        (17, 24, 8),
    ]
    for number in (5, 6, 7, 13, 14, 15):
        store.delete(f"d{number}")
    assert ask(store, "SELECT first_id, last_id, count FROM vector_segments") == [(17, 24, 8)]
    assert sorted(contents(store.vector_index())) == list(range(17, 25))
    assert store.check() == []


def test_a_document_over_many_segments_goes_at_once(store: Store) -> None:
    fill(store, 3)
    put(store, ENCODER, "long", *(f"part {number}" for number in range(50)))
    fill(store, 20, first=3)
    assert len(contents(store.vector_index())) == 73
    assert store.delete("long")
    assert len(contents(store.vector_index())) == 23
    assert ask(store, "SELECT sum(count) < 2 * 23 FROM vector_segments") == [(1,)]
    assert store.check() == []


@pytest.mark.parametrize("zeroed", ["scale = NULL", "codes = 'text'", "scale = 'text'", "codes = 5"])
def test_a_row_whose_types_are_lost_with_its_checksum_is_not_served(store: Store, zeroed: str) -> None:
    fill(store, 5)
    with sqlite3.connect(store.path) as connection:  # zeros over the head of a row do not ask the schema
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'vector_tail'")
    connection.close()
    change(store, f"UPDATE vector_tail SET {zeroed}, checksum = NULL WHERE passage_id = 3")
    with pytest.raises(StoreDamagedError, match="passage 3"):
        store.vector_index()
    assert any("passage 3 does not match its checksum" in line for line in store.check())


def test_sealing_refuses_a_damaged_row_of_the_tail(store: Store) -> None:
    """Else its checksum would be a sound segment's from then on."""
    fill(store, 7)
    change(store, "UPDATE vector_tail SET scale = scale * 1.5 WHERE passage_id = 3")
    with pytest.raises(StoreDamagedError, match="passage 3"):
        fill(store, 1, first=7)
    assert store.counts().documents == 7


# --- the same as a dictionary -----------------------------------------------------------------------

WORDS = ["put", "put", "put", "delete", "look", "reopen", "reindex"]
STEPS = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 9), st.integers(0, 12)), min_size=9, max_size=60)


class Impatient(WordEncoder):
    """Stops after some batches, as if the process was killed."""

    def __init__(self, batches: int, dimension: int) -> None:
        super().__init__(dimension)
        self._batches = batches

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self._batches -= 1
        if self._batches < 0:
            raise KeyboardInterrupt
        return super().encode(texts)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, rows=st.integers(2, 9))
def test_any_sequence_of_changes_gives_the_vectors_that_were_put(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], rows: int
) -> None:
    """Against a dictionary; read step by step, by another store at the end only, and from the beginning."""
    path = tmp_path_factory.mktemp("model") / "store.db"
    model: dict[str, list[str]] = {}
    encoder, snapshots = ENCODER, []
    with pytest.MonkeyPatch.context() as patch, opened(path) as store, Store.open(path, read_only=True) as other:
        patch.setattr(segments, "SEGMENT_ROWS", rows)
        patch.setattr(store_module, "_REINDEX_BATCH", 3)
        other.vector_index()
        for number, (step, document, passages) in enumerate(steps):
            name = f"d{document}"
            if step == "put":
                model[name] = [f"text {number} part {part}" for part in range(passages)]
                put(store, encoder, name, *model[name])
            elif step == "delete":
                assert store.delete(name) == (model.pop(name, None) is not None)
            elif step == "look":
                index = store.vector_index()
                snapshots.append((index, contents(index)))
            elif step == "reopen":
                store._vectors.forget()
            else:
                target = WordEncoder(dimension=16 + document % 2)
                with suppress(KeyboardInterrupt):
                    store.reindex(Impatient(passages, target.dimension))
                    encoder = target
        found = contents(store.vector_index())
        assert store.check() == []
        texts = {passage.id: passage.text for passage in store.passages(list(found))}
        assert sorted(texts.values()) == sorted(text for parts in model.values() for text in parts)
        for id, text in texts.items():
            codes, scales = quantize_rows(encoder.encode([text]))
            assert found[id] == (codes[0].tobytes(), scales[0])
        assert contents(other.vector_index()) == reopened(store) == found
        assert all(contents(index) == before for index, before in snapshots), "a snapshot has changed"


# --- reading ----------------------------------------------------------------------------------------


def test_only_new_segments_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 40)
    reads = Reads(monkeypatch)
    assert len(store.vector_index()) == 40
    assert reads.count == 5
    fill(store, 1, first=40)
    assert len(store.vector_index()) == 41
    store.delete("d40")
    store.delete("d3")
    assert len(contents(store.vector_index())) == 39
    assert reads.count == 5
    fill(store, 8, first=50)
    assert len(contents(store.vector_index())) == 47
    assert reads.count == 6
    assert contents(store.vector_index()) == reopened(store)


def test_a_compacted_segment_is_the_only_one_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 40)
    store.vector_index()
    for number in range(8, 13):
        store.delete(f"d{number}")
    reads = Reads(monkeypatch)
    assert sorted(contents(store.vector_index())) == [*range(1, 9), *range(14, 41)]
    assert reads.count == 1
    for number in range(13, 16):
        store.delete(f"d{number}")
    reads.count = 0
    assert sorted(contents(store.vector_index())) == [*range(1, 9), *range(17, 41)]
    assert reads.count == 0


def test_memory_does_not_grow_with_what_is_long_gone(store: Store) -> None:
    for round in range(30):
        for number in range(10):
            put(store, ENCODER, f"d{number}", f"round {round} text {number}")
        assert len(contents(store.vector_index())) == 10
    assert store._vectors._arena is not None
    assert len(store._vectors._arena) < 40
    assert contents(store.vector_index()) == reopened(store)


def test_another_process_s_seals_and_compactions_are_seen(store: Store) -> None:
    with Store.open(store.path, read_only=True) as reader:
        for number in range(60):
            put(store, ENCODER, f"d{number % 13}", *(f"text {number} {part}" for part in range(number % 4)))
            if number % 7 == 0:
                store.delete(f"d{number % 5}")
            assert contents(reader.vector_index()) == reopened(store)


def test_reindexing_goes_by_segments_too(store: Store) -> None:
    fill(store, 50)
    store.delete("d9")
    other, before = WordEncoder(dimension=24), store.vector_index()
    seen = contents(before)
    assert store.reindex(other) == 49
    assert store.check() == []
    assert store.reindex(other) == 0
    assert ask(store, "SELECT count(*), sum(count) FROM vector_segments") == [(6, 48)]
    index = store.vector_index()
    assert (len(contents(index)), index.dimension) == (49, 24)
    assert contents(before) == seen
    put(store, other, "new", "one more")
    assert contents(store.vector_index()) == reopened(store)


# --- damage -----------------------------------------------------------------------------------------


class EqualToAll:
    """Turns verification off where it is compared."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "store.db"
    with pytest.MonkeyPatch.context() as patch, opened(path) as store:
        patch.setattr(segments, "SEGMENT_ROWS", 8)
        fill(store, 30)  # three segments and a tail of six
        store.delete("d2")
    return path


def flip(path: Path, table: str, column: str, chance: random.Random) -> None:
    """One bit of one BLOB."""
    connection = sqlite3.connect(path)
    rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
    row, blob = chance.choice(rows)
    content = bytearray(blob)
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (bytes(content), row))
    connection.commit()
    connection.close()


PLACES = [("vector_segments", column) for column in ("codes", "ids", "scales", "sha256")] + [
    ("vector_tail", "codes")
]


@pytest.mark.parametrize(("table", "column"), PLACES)
def test_a_flipped_bit_is_always_detected_and_never_served(
    sound: Path, tmp_path: Path, table: str, column: str
) -> None:
    chance, path = random.Random(column), tmp_path / "store.db"
    for _ in range(60):
        shutil.copy(sound, path)
        flip(path, table, column, chance)
        with Store.open(path) as store:
            for _ in range(2):  # nor is it served by the next attempt
                with pytest.raises(StoreDamagedError, match=r"vector.*passages? \d.* checksum; run `edge reindex`"):
                    store.vector_index()
            (problem,) = store.check()
            assert "does not match its checksum" in problem


@pytest.mark.parametrize(("table", "column"), [place for place in PLACES if place[1] not in ("sha256", "ids")])
def test_without_the_checksums_damage_would_be_served(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, column: str
) -> None:
    """The sabotage twin."""
    monkeypatch.setattr(segments, "_digest", lambda *_: EqualToAll())
    monkeypatch.setattr(segments, "_checksum", lambda *_: EqualToAll())
    with Store.open(sound, read_only=True) as store:
        whole = contents(store.vector_index())
    chance, path, served = random.Random(column), tmp_path / "store.db", 0
    for _ in range(20):
        shutil.copy(sound, path)
        flip(path, table, column, chance)
        with Store.open(path) as store:
            damaged = contents(store.vector_index())
        assert damaged.keys() == whole.keys()
        served += str(damaged) != str(whole)
    assert served >= 15  # the rest fell on the vector that is dead


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("DELETE FROM vector_segments WHERE first_id = 9", "passage 9 has no vector"),
        ("UPDATE vector_segments SET last_id = last_id + 1 WHERE first_id = 9", "does not match its checksum"),
        ("UPDATE vector_segments SET first_id = first_id - 1 WHERE first_id = 9", "not in the order of ids"),
        ("UPDATE vector_segments SET series = 1 WHERE first_id = 9", "passage 9 has no vector"),
        ("UPDATE vector_segments SET codes = 7 WHERE first_id = 9", "does not match its checksum"),
        ("UPDATE vector_segments SET count = 0 WHERE first_id = 9", "does not match its checksum"),
        ("UPDATE vector_segments SET count = 1 << 40 WHERE first_id = 9", "does not match its checksum"),
        (
            "INSERT INTO dead_vectors SELECT id, 10 FROM vector_segments WHERE first_id = 9",
            "passage 10 has no vector",
        ),
        ("INSERT INTO dead_vectors SELECT id, 99 FROM vector_segments WHERE first_id = 9", "tombstone names"),
        ("INSERT INTO dead_vectors VALUES (77, 9)", "belongs to nothing in vector_segments"),
        ("DELETE FROM dead_vectors", "passage 3 has a vector but no text"),
        ("DELETE FROM vector_tail WHERE passage_id = 30", "passage 30 has no vector"),
        ("UPDATE vector_tail SET passage_id = 31 WHERE passage_id = 30", "passage 30 has no vector"),
        ("UPDATE vector_tail SET passage_id = 3 WHERE passage_id = 30", "not in the order of ids"),
        ("UPDATE vector_tail SET checksum = checksum + 1 WHERE passage_id = 30", "passage 30 does not match"),
        ("UPDATE meta SET value = '15' WHERE key = 'dimension'", "components"),
        ("UPDATE meta SET value = '' WHERE key = 'series'", "is lost"),
    ],
)
def test_the_check_finds_what_is_wrong_with_the_vectors(
    sound: Path, tmp_path: Path, statement: str, complaint: str
) -> None:
    path = tmp_path / "store.db"
    shutil.copy(sound, path)
    with Store.open(path) as store:
        assert store.check() == []
        change(store, statement)
        assert any(complaint in line for line in store.check()), store.check()


@pytest.mark.parametrize("column", ["codes", "count", "first_id", "last_id", "series", "ids"])
@pytest.mark.parametrize("value", ["7", "'text'", "x'00ff'", "1e300", "-1"])
def test_no_value_in_a_segment_does_worse_than_a_store_error(
    sound: Path, tmp_path: Path, column: str, value: str
) -> None:
    path = tmp_path / "store.db"
    shutil.copy(sound, path)
    with Store.open(path) as store:
        whole = contents(store.vector_index())
        change(store, f"UPDATE vector_segments SET {column} = {value} WHERE first_id = 9")
        assert store.check() != []
    with Store.open(path) as store:
        try:
            assert contents(store.vector_index()).items() <= whole.items()
        except StoreDamagedError as error:
            assert "\n" not in str(error)


def test_reindexing_with_the_same_encoder_repairs_damaged_vectors(sound: Path, tmp_path: Path) -> None:
    path, chance = tmp_path / "store.db", random.Random(1)
    shutil.copy(sound, path)
    flip(path, "vector_segments", "codes", chance)
    flip(path, "vector_tail", "codes", chance)
    with opened(path) as store:
        assert store.reindex(ENCODER) == 29
        assert store.check() == []
        assert len(contents(store.vector_index())) == 29


def test_a_damaged_half_of_a_reindexing_is_made_again(sound: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "store.db", WordEncoder(dimension=24)
    shutil.copy(sound, path)

    with opened(path) as store:
        with pytest.raises(KeyboardInterrupt):
            store.reindex(Impatient(0, 24))
        with store._database.writing() as sql:
            to = segments.gathering(sql)
            codes, scales = quantize_rows(other.encode([f"passage {number}" for number in range(12)]))
            ids = np.array([1, 2, *range(4, 14)])
            segments.append(sql, to, segments.Rows(ids, codes, scales))
        assert store.check() == []
        change(store, "UPDATE vector_segments SET scales = zeroblob(32) WHERE series = 1")
        assert store.reindex(other) == 29
        assert store.check() == []


# --- version 1 --------------------------------------------------------------------------------------


def version_1(path: Path, texts: list[str]) -> None:
    """A store as version 1 wrote it, in the middle of a reindexing."""
    from sqlite_utils import Database

    connection = sqlite3.connect(path, isolation_level=None)
    schema._migrations().apply(Database(connection), stop_before="0002_vector_segments")
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    facts = {
        "encoder": ENCODER.fingerprint,
        "dimension": "16",
        "next_encoder": "words-24-0",
        "next_dimension": "24",
    }
    connection.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
    connection.execute("INSERT INTO documents VALUES (1, 'a', '', 'text/plain', 'x', 9, ?, '')", (len(texts),))
    for name, encoder in (("vectors", ENCODER), ("vectors_next", WordEncoder(dimension=24))):
        for number, (text, row, scale) in enumerate(zip(texts, *quantize_rows(encoder.encode(texts)), strict=True)):
            if name == "vectors":
                passage = number + 1, 1, number, "", text, 0, len(text), hashlib.sha256(text.encode()).digest()
                connection.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", passage)
            if name == "vectors" or number < 11:
                connection.execute(
                    f"INSERT INTO {name} VALUES (?, ?, ?)", (number + 1, row.tobytes(), float(scale))
                )
    connection.execute("INSERT INTO passages_fts (passages_fts) VALUES ('rebuild')")
    connection.close()


def test_a_store_of_version_1_migrates_with_all_its_vectors(tmp_path: Path) -> None:
    path, texts = tmp_path / "store.db", [f"passage {number}" for number in range(21)]
    version_1(path, texts)
    with opened(path) as store:
        codes, scales = quantize_rows(ENCODER.encode(texts))
        found = contents(store.vector_index())
        assert found == {n + 1: (codes[n].tobytes(), scales[n]) for n in range(21)}
        assert ask(store, "SELECT series, count FROM vector_segments") == [(0, 8), (0, 8), (1, 8)]
        assert ask(store, "PRAGMA user_version") == [(schema.VERSION,)]
        assert store.check() == []
        assert store.reindex(WordEncoder(dimension=24)) == 10, "it goes on where version 1 was interrupted"
        assert store.check() == []


def test_a_migration_that_fails_leaves_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    version_1(path, [f"passage {number}" for number in range(21)])
    original = segments._seal

    def fail(sql: sqlite3.Connection, series: int, rows: segments.Rows) -> None:
        original(sql, series, rows)
        if rows.ids[0] > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(segments, "_seal", fail)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    monkeypatch.undo()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM vectors").fetchall() == [(21,)]
    assert connection.execute("PRAGMA user_version").fetchall() == [(1,)]
    connection.close()
    with opened(path) as store:
        assert len(store.vector_index()) == 21


def test_a_published_step_is_never_edited() -> None:
    steps = schema._SCHEMA, segments.TABLES, version_3.TABLES
    published = [hashlib.sha256("\n".join(step).encode()).hexdigest()[:16] for step in steps]
    assert published == ["15ef0bfb739cfc44", "89fbed63265eb6ee", "f62ee761411e1679"]


# --- version 2 --------------------------------------------------------------------------------------


def version_2(path: Path, texts: list[str]) -> None:
    """A store as version 2 wrote it: one document of these passages."""
    from sqlite_utils import Database

    connection = sqlite3.connect(path, isolation_level=None)
    schema._migrations().apply(Database(connection), stop_before="0003_routing")
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 2")
    facts = {"encoder": ENCODER.fingerprint, "dimension": "16"}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
    connection.execute("INSERT INTO documents VALUES (1, 'a', '', 'text/plain', 'x', 9, ?, '')", (len(texts),))
    for number, text in enumerate(texts):
        passage = number + 1, 1, number, "", text, 0, len(text), hashlib.sha256(text.encode()).digest()
        connection.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", passage)
    rows = segments.Rows(np.arange(1, len(texts) + 1), *quantize_rows(ENCODER.encode(texts)))
    segments.append(connection, segments.in_service(connection), rows)
    connection.execute("INSERT INTO passages_fts (passages_fts) VALUES ('rebuild')")
    connection.close()


def test_a_store_of_version_2_migrates_and_its_passages_have_no_label(tmp_path: Path) -> None:
    path, texts = tmp_path / "store.db", [f"passage {number}" for number in range(11)]
    version_2(path, texts)
    with opened(path) as store:
        assert ask(store, "PRAGMA user_version") == [(schema.VERSION,)]
        assert [(passage.text, passage.label) for passage in store.passages(range(1, 12))] == [
            (text, "") for text in texts
        ]
        assert len(store.vector_index()) == 11
        assert store.set_label("a", "private")
        assert {passage.label for passage in store.passages(range(1, 12))} == {"private"}
        store.keep_decision("d", "{}", question="Who?", route="local")
        assert store.decision("d") == "{}"
        assert store.check() == []


def test_stores_do_not_share_the_key_of_question_hashes(tmp_path: Path) -> None:
    hashes = set()
    for name in ("one.db", "two.db"):
        version_2(tmp_path / name, ["passage"])
        with opened(tmp_path / name) as store:
            store.keep_decision("d", "{}", question="Who?")
            hashes |= set(ask(store, "SELECT question_hash FROM decisions"))
    assert len(hashes) == 2
