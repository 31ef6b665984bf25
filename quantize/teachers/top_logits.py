"""The most likely tokens at each place of a teacher's replies, in one compact file that only grows.

Of each place: the k most likely tokens with the logarithms of their probabilities, and that of all others together.
Nothing is renormalised, so a student can learn from k + 1 classes (the tail is one) without a bias to the head.
Knows nothing of models; the file's layout is at `TopLogitsFile`.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError, DiskFullError, StoreDamagedError

_MAGIC = b"EDGETOP1"
_FACTS, _RECORD = struct.Struct("<I"), struct.Struct("<II")  # bytes of the facts; of a record, and its CRC-32
_KEY = 32  # bytes of a request's key
_MOST_FACTS = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class TopLogits:
    """What was likely at n places, one after the other.

    `ids` int32 [n, k] are the most likely tokens, the likeliest first, `logprobs` float32 [n, k] the natural
    logarithms of their probabilities, `tail` float32 [n] that of all others together, -inf where there are none,
    and `chosen` int32 [n] the tokens that the reply has.
    """

    chosen: NDArray[np.int32]
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    tail: NDArray[np.float32]


def top_of(row: NDArray[np.float32], logsumexp: float, chosen: int, k: int) -> TopLogits:
    """One place, from its row of logits and the logarithm of the sum of their exponentials.

    >>> top = top_of(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0.0, 1, 2)
    >>> top.ids.tolist(), np.exp(top.logprobs).round(3), np.exp(top.tail).round(3)
    ([[1, 2]], array([[0.5, 0.3]], dtype=float32), array([0.2], dtype=float32))
    """
    k = min(k, row.size)
    places = np.argpartition(row, row.size - k)[row.size - k :]
    places = places[np.lexsort((places, -row[places]))]
    logprobs = np.minimum(row[places].astype(np.float64) - logsumexp, 0.0)
    rest = max(0.0, 1.0 - float(np.exp(logprobs).sum())) if k < row.size else 0.0
    with np.errstate(divide="ignore"):
        tail = np.log(np.array([rest]))
    return TopLogits(
        np.array([chosen], np.int32),
        places.astype(np.int32)[None],
        logprobs.astype(np.float32)[None],
        tail.astype(np.float32),
    )


def joined(places: Sequence[TopLogits]) -> TopLogits:
    """Places, of which there is one at least, one after the other."""
    return TopLogits(
        np.concatenate([place.chosen for place in places]),
        np.concatenate([place.ids for place in places]),
        np.concatenate([place.logprobs for place in places]),
        np.concatenate([place.tail for place in places]),
    )


class TopLogitsFile:
    """A file of them, by the keys of requests: `get` what was appended, also by an earlier run.

    Eight bytes of magic, the length of the facts and the facts as JSON, then records: length, CRC-32, key, number
    of places, chosen tokens, ids, logarithms, tails, each of these as one array, all little-endian. A token takes
    two bytes in a vocabulary of up to 65,536 and else three, a logarithm two (half precision: 0.05 %); so with
    k = 32 a place takes 132 bytes of SmolLM2's vocabulary and 165 of Qwen's.
    """

    def __init__(self, path: Path, file: IO[bytes], facts: dict[str, Any], start: int) -> None:
        """Use `open` or `read`."""
        self.path, self._file = path, file
        self.teacher, self.vocabulary, self.k = str(facts["teacher"]), int(facts["vocabulary"]), int(facts["k"])
        self._width = 2 if self.vocabulary <= 1 << 16 else 3
        self._places: dict[str, tuple[int, int]] = {}
        self._end = self._scan(start)

    @classmethod
    def open(cls, path: Path, *, teacher: str, vocabulary: int, k: int) -> Self:
        """Open a file to append to, making it where it does not exist.

        What a run that was killed while writing has left of its last record is taken away. Raises `ConfigError`
        for a file of another teacher or another k, and `StoreDamagedError` for one that is none or is damaged.
        """
        facts = {"teacher": teacher, "vocabulary": vocabulary, "k": k}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
            try:
                if not file.tell():
                    text = json.dumps(facts).encode()
                    file.write(_MAGIC + _FACTS.pack(len(text)) + text)
                    file.flush()
                found, start = _facts(path, file)
                for name, value in facts.items():
                    if found.get(name) != value:
                        raise ConfigError(
                            f"{path} has another {name}: {str(found.get(name))[:24]}, now {str(value)[:24]}",
                            hint="name another file, or delete this one",
                        )
                kept = cls(path, file, found, start)
                file.truncate(kept._end)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error.strerror}", hint="name another file") from error
        return kept

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open a file that exists, to read it only. Raises as `open` does."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="name another file") from error
        try:
            return cls(path, file, *_facts(path, file))
        except BaseException:
            file.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def get(self, key: str) -> TopLogits | None:
        """What was appended last for a request's key; None where nothing was."""
        if key not in self._places:
            return None
        start, size = self._places[key]
        self._file.seek(start)
        return self._unpacked(self._file.read(size))

    def append(self, key: str, top: TopLogits) -> None:
        """Keep a reply's; it is on the disk when this returns."""
        content = bytes.fromhex(key) + self._packed(top)
        self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(_RECORD.pack(len(content), zlib.crc32(content)) + content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # what is left of it would be taken away by the next `open`
                self._file.truncate(self._end)
            raise DiskFullError(
                f"{self.path} cannot be written: {error.strerror}", hint="free some space"
            ) from error
        start = self._end + _RECORD.size + _KEY
        self._places[key], self._end = (start, len(content) - _KEY), start + len(content) - _KEY

    def close(self) -> None:
        """Close the file; again does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- bytes ------------------------------------------------------------------------------------------

    def _scan(self, at: int) -> int:
        """Find the records; where the last whole one ends."""
        size = self._file.seek(0, os.SEEK_END)
        while True:
            self._file.seek(at)
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                return at
            length, checksum = _RECORD.unpack(head)
            end = at + _RECORD.size + length
            if end > size:  # cut off while it was written
                return at
            content = self._file.read(length)
            if zlib.crc32(content) != checksum or len(content) < _KEY + 4 or not self._adds_up(content[_KEY:]):
                if end == size:
                    return at
                raise _damaged(self.path, f"the record at byte {at} is not what was written")
            self._places[content[:_KEY].hex()] = at + _RECORD.size + _KEY, length - _KEY
            at = end

    def _adds_up(self, content: bytes) -> bool:
        count = int(_FACTS.unpack_from(content)[0])
        return len(content) == 4 + count * (self.k + 1) * (self._width + 2)

    def _packed(self, top: TopLogits) -> bytes:
        numbers = np.concatenate([top.chosen, top.ids.reshape(-1)]).astype("<u4").view(np.uint8).reshape(-1, 4)
        half = np.concatenate([top.logprobs.reshape(-1), top.tail]).astype("<f2")
        return _FACTS.pack(len(top.chosen)) + numbers[:, : self._width].tobytes() + half.tobytes()

    def _unpacked(self, content: bytes) -> TopLogits:
        count = int(_FACTS.unpack_from(content)[0])
        cells = count * (self.k + 1)
        wide = np.zeros((cells, 4), np.uint8)
        packed = np.frombuffer(content, np.uint8, cells * self._width, 4)
        wide[:, : self._width] = packed.reshape(cells, self._width)
        numbers = wide.reshape(-1).view("<u4").astype(np.int32, copy=False)
        half = np.frombuffer(content, "<f2", cells, 4 + cells * self._width).astype(np.float32)
        return TopLogits(
            numbers[:count],
            numbers[count:].reshape(count, self.k),
            half[: count * self.k].reshape(count, self.k),
            half[count * self.k :],
        )


def _facts(path: Path, file: IO[bytes]) -> tuple[dict[str, Any], int]:
    """What the file says of itself, and where its records begin."""
    file.seek(0)
    head = file.read(len(_MAGIC) + _FACTS.size)
    if head[: len(_MAGIC)] != _MAGIC or len(head) < len(_MAGIC) + _FACTS.size:
        raise _damaged(path, "it holds no top logits")
    length = int(_FACTS.unpack_from(head, len(_MAGIC))[0])
    try:
        found = json.loads(file.read(min(length, _MOST_FACTS)))
        if not (isinstance(found["teacher"], str) and found["vocabulary"] > 0 and found["k"] > 0):
            raise ValueError("its facts make no sense")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"its facts cannot be read: {error}") from error
    return found, len(head) + length


def _damaged(path: Path, what: str) -> StoreDamagedError:
    return StoreDamagedError(f"{path} is damaged: {what}", hint="delete it, and label again what it held")
