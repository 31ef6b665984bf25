"""A head on disk: `head.json` and `head.npz`, read without trust and written whole or not at all.

Every number and text is checked before anything computes with it; nothing in the files is executed. Knows nothing
of how a head is used or fitted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from ..confidence.logistic import Logistic, Steps, Term
from ..errors import ModelDamagedError, ModelNotFoundError
from .word_features import Vocabulary

HEAD_FILE, ARRAYS_FILE = "head.json", "head.npz"
FORMAT = 1
_MOST_BYTES = 1 << 28
_MOST_LABELS, _MOST_TERMS, _MOST_EXAMPLES = 10_000, 1_000_000, 1_000_000
LONGEST = 10_000
"""Characters of a label, a term or an example."""
_LARGEST = 1e6  # of any number: sums and products of such stay finite

_T = TypeVar("_T")
Kind = Literal["words", "vectors", "both"]
Example = tuple[str, int]
"""A text and the place of its label."""


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """A linear classifier of unit features with what turns its scores into probabilities.

    Scores are `features @ (codes * scales) + intercepts`; `codes` int8 [features, labels], `scales` float32
    [features], `intercepts` float32 [labels]. `inside` gives the probability that a text has one of the labels,
    None where nothing was known of others; `right` that it is the best one, for those that have one. Features are
    the vectors of the encoder with the fingerprint `encoder`, those of `vocabulary`, or both in this order;
    `vectors` int8 [examples, dimension] are those of the examples.
    """

    labels: tuple[str, ...]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    intercepts: NDArray[np.float32]
    right: Logistic
    inside: Logistic | None
    examples: tuple[Example, ...]
    vectors: NDArray[np.int8]
    vocabulary: Vocabulary | None = None
    encoder: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the features are."""
        return _kind(self.vocabulary is not None, self.encoder is not None)


def is_head(folder: Path) -> bool:
    """Whether the folder is that of a head."""
    return (folder / HEAD_FILE).is_file()


def write_head(folder: Path, head: HeadWeights) -> None:
    """Write both files into an existing folder; the JSON, which makes it a head, comes last."""
    described = {
        "format": FORMAT,
        "kind": head.kind,
        "labels": list(head.labels),
        "encoder": head.encoder,
        "right": _logistic_to_json(head.right),
        "inside": None if head.inside is None else _logistic_to_json(head.inside),
        "examples": [list(example) for example in head.examples],
        "terms": None if head.vocabulary is None else list(head.vocabulary.places),
        "figures": dict(head.figures),
    }
    arrays: dict[str, Any] = {"codes": head.codes, "scales": head.scales, "intercepts": head.intercepts}
    if head.encoder is not None:
        arrays["vectors"] = head.vectors
    if head.vocabulary is not None:
        arrays["rarities"] = np.asarray(head.vocabulary.rarities, np.float32)
    content = BytesIO()
    np.savez(content, **arrays)
    for name, data in ((ARRAYS_FILE, content.getvalue()), (HEAD_FILE, json.dumps(described).encode())):
        part = folder / f".{name}.{os.getpid()}"
        try:
            part.write_bytes(data)
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)


def read_head(folder: Path) -> HeadWeights:
    """Read both files. Raises `ModelNotFoundError`, and `ModelDamagedError` for what is not `write_head`'s."""
    described, arrays = _read(folder / HEAD_FILE), _read(folder / ARRAYS_FILE)
    try:
        return _head(_Fields(json.loads(described)), _arrays(arrays))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelDamagedError(f"{folder} holds no head: {what}", hint="run `edge head fit` again") from error


# --- what the files must be -------------------------------------------------------------------------


def _head(it: _Fields, arrays: Mapping[str, NDArray[Any]]) -> HeadWeights:
    if (made := it.take("format", _whole)) != FORMAT:
        _refuse(f"its format is {made}, this version reads {FORMAT}")
    kind, labels = it.take("kind", _text), tuple(it.take("labels", _list_of(_text, _MOST_LABELS)))
    if len(labels) < 2 or len(set(labels)) != len(labels):
        _refuse(f"it has {len(labels)} labels, {len(set(labels))} of them different")
    terms, vocabulary = it.take("terms", _optional(_list_of(_text, _MOST_TERMS))), None
    encoder = it.take("encoder", _optional(_text))
    if kind != _kind(terms is not None, encoder is not None):
        _refuse(f"its kind {kind[:40]!r}, its terms and its encoder do not go together")
    if terms is not None:
        if terms != sorted(set(terms)):
            _refuse("its terms are not sorted")
        rarities = _array(arrays, "rarities", np.float32, (len(terms),))
        vocabulary = Vocabulary({term: place for place, term in enumerate(terms)}, rarities.tolist())
    examples = tuple(it.take("examples", _list_of(_example(len(labels)), _MOST_EXAMPLES)))
    if not examples:
        _refuse("it has no examples")
    vectors = np.zeros((len(examples), 0), np.int8)
    if encoder is not None:
        vectors = _array(arrays, "vectors", np.int8, (len(examples), None))
    codes = _array(arrays, "codes", np.int8, (vectors.shape[1] + len(terms or ()), len(labels)))
    made_of = HeadWeights(
        labels=labels,
        codes=codes,
        scales=_array(arrays, "scales", np.float32, (len(codes),)),
        intercepts=_array(arrays, "intercepts", np.float32, (len(labels),)),
        right=it.take("right", _logistic),
        inside=it.take("inside", _optional(_logistic)),
        examples=examples,
        vectors=vectors,
        vocabulary=vocabulary,
        encoder=encoder,
        figures=it.take("figures", _mapping),
    )
    it.end()
    return made_of


def _kind(words: bool, vectors: bool) -> Kind:
    if not words and not vectors:
        _refuse("it reads neither words nor vectors")
    return "both" if words and vectors else "words" if words else "vectors"


class _Fields:
    """A JSON object whose fields are taken one by one; what is left over at the end is an error."""

    def __init__(self, values: object) -> None:
        self._values = dict(_mapping(values))

    def take(self, name: str, read: Callable[[object], _T]) -> _T:
        if name not in self._values:
            _refuse(f"{name} is missing")
        try:
            return read(self._values.pop(name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def end(self) -> None:
        if self._values:
            _refuse(f"it has the unknown field {min(self._values)[:60]!r}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}", hint="run `edge head fit` to make a head") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise ModelDamagedError(f"{path} has more than {_MOST_BYTES} bytes")
    return content


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    try:
        with ZipFile(BytesIO(content)) as archive:  # written uncompressed: more is a bomb
            if any(member.file_size > len(content) for member in archive.infolist()):
                _refuse(f"{ARRAYS_FILE} unpacks to more than its size")
        with np.load(BytesIO(content), allow_pickle=False) as arrays:  # checks the CRC-32 of what it reads
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile and numpy raise whatever the bytes lead them to
        raise ValueError(f"{ARRAYS_FILE}: {error}") from error


def _array(
    arrays: Mapping[str, NDArray[Any]], name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> NDArray[Any]:
    found = arrays.get(name)
    if found is None:
        _refuse(f"{ARRAYS_FILE} is without {name}")
    wrong = found.ndim != len(shape) or any(b not in (None, a) for a, b in zip(found.shape, shape, strict=True))
    if found.dtype != dtype or wrong:
        _refuse(f"its {name} are {found.dtype} of shape {list(found.shape)}, not {list(shape)}")
    if dtype is np.float32 and not (np.abs(found) <= _LARGEST).all():
        _refuse(f"not all of its {name} are numbers up to {_LARGEST:g}")
    return np.ascontiguousarray(found)


def _logistic_to_json(model: Logistic) -> dict[str, Any]:
    return {
        "intercept": model.intercept,
        "terms": {name: asdict(term) for name, term in model.terms.items()},
        "steps": None if model.steps is None else [list(model.steps.bounds), list(model.steps.values)],
    }


def _logistic(value: object) -> Logistic:
    it = _Fields(value)
    intercept, terms = it.take("intercept", _number), {}
    for name, values in it.take("terms", _mapping).items():
        term = _Fields(values)
        mean, deviation, weight = (term.take(each, _number) for each in ("mean", "deviation", "weight"))
        term.end()
        if deviation <= 0:
            _refuse(f"the deviation of {name[:40]!r} is {deviation}")
        terms[name] = Term(mean, deviation, weight)
    columns = it.take("steps", _optional(_list_of(_list_of(_number, _MOST_EXAMPLES), 2)))
    it.end()
    if columns is None:
        return Logistic(intercept, terms)
    if len(columns) != 2 or not columns[0] or len(columns[0]) != len(columns[1]):
        _refuse("its steps are not pairs")
    if any(column != sorted(column) for column in columns):
        _refuse("its steps do not rise")
    return Logistic(intercept, terms, Steps(tuple(columns[0]), tuple(columns[1])))


def _example(labels: int) -> Callable[[object], Example]:
    def read(value: object) -> Example:
        if not isinstance(value, list) or len(value) != 2 or not 0 <= _whole(value[1]) < labels:
            _refuse(f"{str(value)[:60]!r} is no example")
        return _text(value[0]), _whole(value[1])

    return read


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{str(value)[:40]!r} is no object")
    return value


def _list_of(read: Callable[[object], _T], most: int) -> Callable[[object], list[_T]]:
    def read_all(value: object) -> list[_T]:
        if not isinstance(value, list) or len(value) > most:
            _refuse(f"{str(value)[:40]!r} is no list of at most {most:,}")
        return [read(each) for each in value]

    return read_all


def _optional(read: Callable[[object], _T]) -> Callable[[object], _T | None]:
    return lambda value: None if value is None else read(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
        _refuse(f"{str(value)[:40]!r} is no text of 1 to {LONGEST:,} characters")
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        _refuse(f"{str(value)[:40]!r} is no whole number")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        _refuse(f"{str(value)[:40]!r} is no number up to {_LARGEST:g}")
    return float(value)


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)
