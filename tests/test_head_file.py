"""Heads on disk: they come back as they were, and what is not one is refused in one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.confidence.logistic import Logistic, Steps, Term
from edge_sdk.errors import ModelDamagedError, ModelError, ModelNotFoundError
from edge_sdk.heads.classifier import IntentHead
from edge_sdk.heads.head_file import HeadWeights, read_head, write_head
from edge_sdk.heads.word_features import Vocabulary

EXAMPLES = (("play a song", 0), ("set a timer", 1))


def head(kind: str = "words") -> HeadWeights:
    random = np.random.default_rng(0)
    vocabulary = Vocabulary.of([text for text, _ in EXAMPLES], most=100) if kind != "vectors" else None
    dimension = 0 if kind == "words" else 16
    features = dimension + (0 if vocabulary is None else len(vocabulary.places))
    return HeadWeights(
        labels=("music", "timer"),
        codes=random.integers(-127, 128, (features, 2)).astype(np.int8),
        scales=random.uniform(0.001, 0.01, features).astype(np.float32),
        intercepts=np.array([0.1, -0.1], np.float32),
        right=Logistic(0.5, {"lead": Term(1.0, 0.5, 0.7)}),
        inside=Logistic(0.2, {"nearest": Term(0.5, 0.1, 1.5)}, Steps((-1.0, 1.0), (-2.0, 2.0))),
        examples=EXAMPLES,
        vectors=random.integers(-127, 128, (2, dimension)).astype(np.int8),
        vocabulary=vocabulary,
        encoder=None if kind == "words" else "0" * 64,
        figures={"n": 2},
    )


@pytest.mark.parametrize("kind", ["words", "vectors", "both"])
def test_a_head_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    before = head(kind)
    assert before.kind == kind
    write_head(tmp_path, before)
    after = read_head(tmp_path)
    for name in ("labels", "right", "inside", "examples", "encoder", "figures", "kind"):
        assert getattr(after, name) == getattr(before, name)
    for name in ("codes", "scales", "intercepts", "vectors"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.npz"]


def damaged(values: dict[str, Any], *path: str | int, to: object) -> None:
    for step in path[:-1]:
        values = values[step]  # type: ignore[index]
    values[path[-1]] = to  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("format",), 2, "its format is 2, this version reads 1"),
        (("kind",), "trees", "its kind 'trees'"),
        (("kind",), "vectors", "do not go together"),
        (("labels",), ["music"], "1 labels"),
        (("labels",), ["music", "music"], "1 of them different"),
        (("labels",), ["music", 7], "'7' is no text"),
        (("labels", 0), "x" * 10_001, "is no text of 1 to"),
        (("encoder",), "0" * 64, "do not go together"),
        (("terms", 0), "zzz", "terms are not sorted"),
        (("terms",), ["a"], "its rarities are"),
        (("terms",), None, "neither words nor vectors"),
        (("examples",), [], "it has no examples"),
        (("examples", 0, 1), 2, "is no example"),
        (("examples", 0, 1), True, "is no whole number"),
        (("examples", 0), ["a"], "is no example"),
        (("right", "intercept"), 1e300, "is no number"),
        (("right", "intercept"), float("nan"), "is no number"),
        (("right", "terms", "lead", "deviation"), 0, "the deviation of 'lead' is 0"),
        (("right", "terms", "lead"), {"mean": 0}, "deviation is missing"),
        (("inside", "steps"), [[1.0, -1.0], [0.0, 1.0]], "do not rise"),
        (("inside", "steps"), [[1.0], [0.0, 1.0]], "are not pairs"),
        (("figures",), [], "is no object"),
        (("surprise",), 1, "unknown field 'surprise'"),
    ],
)
def test_what_is_wrong_in_the_json_is_named(
    tmp_path: Path, path: tuple[str | int, ...], to: object, message: str
) -> None:
    write_head(tmp_path, head())
    file = tmp_path / "head.json"
    values = json.loads(file.read_text())
    damaged(values, *path, to=to)
    file.write_text(json.dumps(values))
    with pytest.raises(ModelDamagedError, match=message.replace("'", ".")):
        read_head(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("codes", lambda array: array.astype(np.int16), "codes are int16"),
        ("codes", lambda array: array[:, :1], "codes are int8 of shape"),
        ("scales", lambda array: array[1:], "scales are float32 of shape"),
        ("scales", lambda array: array * np.float32(np.nan), "not all of its scales"),
        ("intercepts", lambda array: array + np.float32(1e9), "not all of its intercepts"),
        ("rarities", lambda array: array.astype(object), "head.npz"),
        ("rarities", lambda array: None, "without rarities"),
    ],
)
def test_what_is_wrong_in_the_arrays_is_named(
    tmp_path: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    write_head(tmp_path, head())
    file = tmp_path / "head.npz"
    with np.load(file) as found:
        arrays = dict(found)
    changed = change(arrays.pop(name))
    np.savez(file, **arrays, **({} if changed is None else {name: changed}))
    with pytest.raises(ModelDamagedError, match=message):
        read_head(tmp_path)


def test_arrays_that_unpack_to_more_than_the_file_are_refused(tmp_path: Path) -> None:
    write_head(tmp_path, head())
    np.savez_compressed(tmp_path / "head.npz", codes=np.zeros((1000, 1000), np.int8))
    with pytest.raises(ModelDamagedError, match="unpacks to more"):
        read_head(tmp_path)


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), name=st.sampled_from(["head.json", "head.npz"]))
def test_any_damage_is_one_line_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int, name: str
) -> None:
    folder = tmp_path_factory.mktemp("head")
    write_head(folder, head())
    data = bytearray((folder / name).read_bytes())
    data[at % len(data)] ^= 1 << bit
    (folder / name).write_bytes(data)
    try:
        found = IntentHead.open(folder).classify("play a song")
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert 0 <= found.probability <= 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"head\.json"):
        read_head(tmp_path)
    write_head(tmp_path, head())
    (tmp_path / "head.npz").unlink()
    with pytest.raises(ModelNotFoundError, match=r"head\.npz"):
        read_head(tmp_path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    write_head(tmp_path, head())
    content = io.BytesIO()
    np.savez(content, codes=np.array([print], object))
    (tmp_path / "head.npz").write_bytes(content.getvalue())
    with pytest.raises(ModelDamagedError, match="allow_pickle=False"):
        read_head(tmp_path)
