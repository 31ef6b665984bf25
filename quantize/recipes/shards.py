"""Work in shards, one after the other in this process or side by side on a Ray cluster; the results are the same.

Teachers and encoders can be run so: each worker opens its own and keeps it. Ray (the `ray` extra) schedules, with
its report of usage to its makers switched off. Knows nothing of what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache, partial
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from edge_sdk.errors import EdgeError, MissingExtraError

from ..teachers.teacher import Reply, Request, Teacher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_sdk.encoders.embed import Encoder

Shard = TypeVar("Shard")
Found = TypeVar("Found")
Opened = TypeVar("Opened")
_WAITING = 2  # shards under way for each processor, so that none waits for the next


class Runner(Protocol):
    """Computes a function of each shard."""

    def map(self, function: Callable[[Shard], Found], shards: Sequence[Shard]) -> Iterator[tuple[int, Found]]:
        """The number of a shard and its result, in the order in which they are done.

        Closing the iterator drops what has not begun. On other machines function and shards are pickled.
        """


class Here:
    """One after the other, in this process."""

    def map(self, function: Callable[[Shard], Found], shards: Sequence[Shard]) -> Iterator[tuple[int, Found]]:
        """See `Runner.map`."""
        yield from ((number, function(shard)) for number, shard in enumerate(shards))


class OnRay:
    """Side by side on a Ray cluster, each shard on `processors` of them. Close it, or use it in a `with`."""

    def __init__(self, address: str = "local", *, processors: float = 1) -> None:
        """`address` is "local" for a cluster of this machine alone, that of a cluster, or "auto" for one that runs.

        Raises `MissingExtraError` without Ray, `EdgeError` where no cluster can be reached.
        """
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError:
            raise MissingExtraError("a Ray cluster", "ray") from None
        self._ray: Any = ray
        self._processors = processors
        try:
            more = {"include_dashboard": False} if address == "local" else {}
            self._ray.init(address, log_to_driver=False, logging_level="ERROR", **more)
        except Exception as error:  # Ray raises many kinds, that its own processes did not start among them
            raise EdgeError(f"no Ray cluster at {address}: {error}", hint="check [scale] ray") from error

    def map(self, function: Callable[[Shard], Found], shards: Sequence[Shard]) -> Iterator[tuple[int, Found]]:
        """See `Runner.map`. Raises `EdgeError` for one that a worker raised, or that Ray lost."""
        remote = self._ray.remote(num_cpus=self._processors)(_guarded)
        most = max(1, int(self._ray.cluster_resources().get("CPU", 1) / self._processors)) * _WAITING
        waiting: dict[Any, int] = {}
        queue = iter(enumerate(shards))
        try:
            while True:
                for number, shard in queue:
                    waiting[remote.remote(function, shard)] = number
                    if len(waiting) >= most:
                        break
                if not waiting:
                    return
                (done, *_), _ = self._ray.wait(list(waiting), num_returns=1)
                number, result = waiting.pop(done), self._get(done)
                yield number, result
        finally:
            for reference in waiting:
                self._ray.cancel(reference)

    def _get(self, reference: Any) -> Any:
        try:
            message, hint, result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise EdgeError(f"a shard was lost on Ray: {last}") from error
        if message is not None:
            raise EdgeError(message, hint=hint)
        return result

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _guarded(function: Callable[[Any], Any], shard: Any) -> tuple[str | None, str, Any]:
    """An `EdgeError` comes back as its words: those with more arguments cannot be pickled."""
    try:
        return None, "", function(shard)
    except EdgeError as error:
        return error.message, error.hint, None


class ShardedTeacher:
    """A `Teacher` whose requests are answered in shards, each worker having a teacher of its own.

    What a shard has not finished when the process dies is asked again: for teachers that cost time, not money.
    """

    def __init__(self, open_teacher: Callable[[], Teacher], fingerprint: str, runner: Runner, size: int) -> None:
        """`open_teacher` can be pickled and equals its copies, such as a frozen dataclass with `__call__`."""
        self.fingerprint = fingerprint
        self._open, self._runner, self._size = open_teacher, runner, size

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        """See `Teacher.replies`."""
        shards = cut(requests, self._size)
        with closing(self._runner.map(partial(_replies, self._open), shards)) as done:  # type: ignore[type-var]
            for number, replies in done:
                yield from ((number * self._size + at, reply) for at, reply in replies)
                if cancel is not None and cancel.is_set():
                    return


class ShardedEncoder:
    """An `Encoder` whose texts are encoded in shards, each worker having an encoder of its own."""

    def __init__(
        self, open_encoder: Callable[[], Encoder], runner: Runner, size: int, *, fingerprint: str, dimension: int
    ) -> None:
        """`open_encoder` is as in `ShardedTeacher`; the other two are that encoder's."""
        self.fingerprint, self.dimension = fingerprint, dimension
        self._open, self._runner, self._size = open_encoder, runner, size

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        import numpy as np

        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for number, rows in self._runner.map(partial(_vectors, self._open), cut(texts, self._size)):
            vectors[number * self._size : number * self._size + len(rows)] = rows
        return vectors


def cut(items: Sequence[Shard], size: int) -> list[Sequence[Shard]]:
    """The items in their order, `size` at a time.

    >>> cut("abcde", 2)
    ['ab', 'cd', 'e']
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


@lru_cache(maxsize=2)  # a teacher and an encoder
def _opened(open_it: Callable[[], Opened]) -> Opened:
    """What a worker has opened, for all its shards."""
    return open_it()


def _replies(open_teacher: Callable[[], Teacher], requests: Sequence[Request]) -> list[tuple[int, Reply]]:
    return list(_opened(open_teacher).replies(requests))


def _vectors(open_encoder: Callable[[], Encoder], texts: Sequence[str]) -> NDArray[np.float32]:
    encoder: Encoder = _opened(open_encoder)
    return encoder.encode(texts)
