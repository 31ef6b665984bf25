"""The likeliest tokens at each place: what is written is read again, and a file that was cut off is mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_sdk.errors import ConfigError, StoreDamagedError
from quantize.teachers.top_logits import TopLogits, TopLogitsFile, joined, top_of

KEYS = ["0a" * 32, "1b" * 32, "2c" * 32]


def made(places: int, k: int = 4, vocabulary: int = 500, seed: int = 0) -> TopLogits:
    rows = np.random.default_rng(seed).normal(0, 3, (places, vocabulary)).astype(np.float32)
    return joined([top_of(row, float(np.log(np.exp(row).sum())), int(row.argmax()), k) for row in rows])


def opened(path: Path, *, teacher: str = "t", vocabulary: int = 500, k: int = 4) -> TopLogitsFile:
    return TopLogitsFile.open(path, teacher=teacher, vocabulary=vocabulary, k=k)


def same(found: TopLogits | None, expected: TopLogits) -> bool:
    return (
        found is not None
        and np.array_equal(found.chosen, expected.chosen)
        and np.array_equal(found.ids, expected.ids)
        and np.allclose(found.logprobs, expected.logprobs, rtol=1e-3, atol=1e-6)
        and np.allclose(found.tail, expected.tail, rtol=1e-3, atol=1e-6)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "top.bin"


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32)), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_the_likeliest_and_the_tail_are_the_whole_distribution(row: np.ndarray, k: int) -> None:
    logsumexp = float(np.log(np.exp(row.astype(np.float64)).sum()))
    top = top_of(row, logsumexp, 0, k)
    kept = min(k, row.size)
    assert top.ids.shape == top.logprobs.shape == (1, kept) and len(set(top.ids[0].tolist())) == kept
    assert row[top.ids[0]].tolist() == sorted(row.tolist(), reverse=True)[:kept]
    assert float(np.exp(top.logprobs.astype(np.float64)).sum() + np.exp(top.tail)[0]) == pytest.approx(1, abs=1e-5)
    assert (top.logprobs <= 0).all()


@pytest.mark.parametrize("vocabulary", [500, 1 << 16, 152_000])
def test_what_is_written_is_read_again(path: Path, vocabulary: int) -> None:
    tops = [made(places, vocabulary=vocabulary, seed=places) for places in (3, 1, 7)]
    with opened(path, vocabulary=vocabulary) as file:
        for key, top in zip(KEYS, tops, strict=True):
            file.append(key, top)
            assert same(file.get(key), top)
    with TopLogitsFile.read(path) as file:
        assert list(file) == KEYS and (file.teacher, file.vocabulary, file.k) == ("t", vocabulary, 4)
        assert all(same(file.get(key), top) for key, top in zip(KEYS, tops, strict=True))
        assert file.get("ff" * 32) is None


@pytest.mark.parametrize(("vocabulary", "each"), [(49_152, 132), (151_936, 165)])
def test_a_place_takes_as_many_bytes_as_is_said(path: Path, vocabulary: int, each: int) -> None:
    with opened(path, vocabulary=vocabulary, k=32) as file:
        before = path.stat().st_size
        file.append(KEYS[0], made(10, k=32, vocabulary=vocabulary))
    assert path.stat().st_size - before == 10 * each + 8 + 32 + 4


def test_a_place_where_one_token_is_certain_has_no_tail(path: Path) -> None:
    row = np.array([0, 200, -200], np.float32)
    with opened(path, vocabulary=3, k=2) as file:
        file.append(KEYS[0], top_of(row, 200.0, 1, 2))
        top = file.get(KEYS[0])
    assert top is not None and top.tail.tolist() == [-np.inf] and top.logprobs[0, 0] == 0


def test_what_is_written_last_for_a_key_counts(path: Path) -> None:
    with opened(path) as file:
        for seed in range(3):
            file.append(KEYS[0], made(2, seed=seed))
    with opened(path) as file:
        assert len(file) == 1 and same(file.get(KEYS[0]), made(2, seed=2))


def test_a_file_cut_off_anywhere_keeps_its_whole_records_and_goes_on(path: Path) -> None:
    ends = []
    with opened(path) as file:
        start = path.stat().st_size
        for key in KEYS:
            file.append(key, made(2))
            ends.append(path.stat().st_size)
    content = path.read_bytes()
    for length in range(start, len(content)):
        path.write_bytes(content[:length])
        with TopLogitsFile.read(path) as file:
            assert len(file) == sum(end <= length for end in ends)
        if length % 7 == 0:
            with opened(path) as file:
                whole = len(file)
                file.append("ff" * 32, made(1))
            with TopLogitsFile.read(path) as file:
                assert len(file) == whole + 1 and same(file.get("ff" * 32), made(1))


def test_damage_is_found(path: Path) -> None:
    with opened(path) as file:
        start = path.stat().st_size
        for key in KEYS:
            file.append(key, made(2))
    content = bytearray(path.read_bytes())
    content[start + 60] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreDamagedError, match="byte"):
        TopLogitsFile.read(path)
    with pytest.raises(StoreDamagedError):
        opened(path)
    assert path.read_bytes() == bytes(content)


@given(content=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_other_files_are_refused_and_left_alone(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("other") / "x"
    for start in (b"", b"EDGETOP1", b"EDGETOP1\x02\0\0\0{}", b"EDGETOP1\x02\0\0\0[]"):
        if start + content:
            path.write_bytes(start + content)
            with pytest.raises(StoreDamagedError):
                opened(path)
            assert path.read_bytes() == start + content


def test_a_file_of_something_else_is_refused(path: Path, tmp_path: Path) -> None:
    opened(path).close()
    for other in ({"teacher": "u"}, {"vocabulary": 501}, {"k": 5}):
        with pytest.raises(ConfigError, match=f"another {next(iter(other))}"):
            opened(path, **other)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be"):
        TopLogitsFile.read(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be"):
        opened(tmp_path)
