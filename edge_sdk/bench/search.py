"""Measures nearest-neighbour search side by side: our scans, plain numpy, faiss, usearch and sqlite-vec.

Everything is in memory and has one thread; for each query the contenders take turns, so that a busy moment hits all
of them. The module that imports the peers. Knows nothing of how the result is shown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..device import describe
from ..errors import ConfigError, MissingExtraError
from ..kernel_faces import scan
from ..storage.vectors import VectorArena, quantize_rows

Search = Callable[[NDArray[np.float32]], Any]
Progress = Callable[[float, float | None, str], None]
PEERS = {
    "faiss_flat": "faiss",
    "faiss_sq8": "faiss",
    "faiss_binary": "faiss",
    "usearch_i8": "usearch",
    "sqlite_vec_f32": "sqlite_vec",
    "sqlite_vec_i8": "sqlite_vec",
}
K = 10
_BATCH = 1 << 15
_GROUPS = {32_768: 0.02, 4_096: 0.04, 512: 0.08, 64: 0.14, 8: 0.26}  # rows of a group: variance that they share
# Threads are fixed before numpy and the peers are loaded, so the measuring runs in a process of its own.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Contender:
    """A search over the same rows; the memory is what the process grew by while it was built."""

    search: Search
    resident_mb: float


def bench_search(
    rows: Sequence[int],
    dimension: int = 384,
    *,
    queries: int = 30,
    vectors: Path | None = None,
    progress: Progress = lambda done, total, detail: None,
) -> dict[str, Any]:
    """The JSON document of `edge bench search`: the figures at the largest number of rows, and `growth` with all.

    `vectors` is a `.npy` file of float32 rows [n, d] whose last `queries` rows are the questions; without it the
    rows are `clustered_rows`. `recall_at_10` is against the exact float32 search, `ratios` are the medians of the
    quotients within each turn, which move less than the figures. Raises `MissingExtraError` where no peer is
    installed, `ConfigError` for a file that is not such an array.
    """
    if not any(find_spec(package) for package in PEERS.values()):
        raise MissingExtraError("`edge bench search`", "bench")
    if vectors is not None:
        _open(vectors, max(rows), queries)
    growth = []
    for number, count in enumerate(sorted(rows)):
        progress(number, len(rows), f"{count:,} rows")
        growth.append(_measure_apart(count, dimension, queries, vectors))
    progress(len(rows), len(rows), "")
    settings = {"queries": queries, "k": K, "threads": 1, "vectors": vectors.name if vectors else "clustered"}
    return {
        **growth[-1],
        "growth": growth[:-1],
        "settings": {
            **settings,
            "instruction_sets": [scan.INSTRUCTION_SETS[bit] for bit in scan.instruction_sets()],
        },
        "machine": describe(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _measure_apart(count: int, dimension: int, queries: int, vectors: Path | None) -> dict[str, Any]:
    """`measure` in a process of its own: threads are fixed before numpy and the peers are loaded."""
    environment = {
        **os.environ,
        **_ONE_THREAD,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    command = [sys.executable, "-m", __name__, str(count), str(dimension), str(queries), str(vectors or "")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ConfigError(f"measuring {count} rows failed: {said[-1] if said else f'status {done.returncode}'}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _read(path: Path, count: int, queries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    array = _open(path, count, queries)
    return _unit(array[:count]), _unit(array[-queries:])


def _open(path: Path, count: int, queries: int) -> NDArray[np.float32]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a .npy array: {error}", hint="save one with numpy.save") from error
    if array.ndim != 2 or array.dtype != np.float32 or len(array) < count + queries:
        raise ConfigError(f"{path} holds {array.dtype} of {array.shape}, not {count} + {queries} rows of float32")
    if not 1 <= array.shape[1] <= scan.MAX_DIMENSION:
        raise ConfigError(f"{path} has rows of {array.shape[1]}, the kernel takes 1 to {scan.MAX_DIMENSION}")
    return np.asarray(array)


def clustered_rows(
    count: int, dimension: int, queries: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors like those of a sentence encoder for a large collection, and questions about some of them.

    A row belongs to nested groups of 8, 64, … 32,768, which share 0.26, 0.14, 0.08, 0.04 and 0.02 of its variance;
    directions have variances that decay as k^-0.64 and are turned at random. A question leans on the groups of one
    row, and little on that row. Fitted to 38,688 sentences with 1,000 questions that MiniLM encoded: at that size
    cosines of the nearest, the tenth and the hundredth, how near ties are and how well sign bits do are alike.
    White noise would be harder to search than any text.
    """
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, dimension + 1) ** -0.32
    turn = np.linalg.qr(random.standard_normal((dimension, dimension)))[0]
    shape = ((spectrum / np.linalg.norm(spectrum))[:, None] * turn).astype(np.float32)

    def draw(number: int) -> NDArray[np.float32]:
        return np.asarray(random.standard_normal((number, dimension), dtype=np.float32) @ shape)

    groups = [(np.sqrt(np.float32(share)), size, draw(-(-count // size))) for size, share in _GROUPS.items()]

    def shared(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(sum(weight * parts[rows // size] for weight, size, parts in groups))

    total = sum(_GROUPS.values())
    points = np.empty((count, dimension), np.float32)
    for start in range(0, count, _BATCH):
        rows = np.arange(start, min(start + _BATCH, count))
        points[rows] = _unit(shared(rows) + np.sqrt(np.float32(1 - total)) * draw(len(rows)))
    about = random.integers(0, count, queries)
    common = shared(about)
    own = points[about] - common
    return points, _unit(0.55 / np.sqrt(total) * common + 0.22 * own + 0.82 * draw(queries))


def measure(points: NDArray[np.float32], asked: NDArray[np.float32]) -> dict[str, Any]:
    """Search `points` [n, d] for each of `asked` [q, d] with every contender that is installed."""
    truth = _exact(points, asked)
    contenders = dict(_contenders(points))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    recall: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn, query in enumerate(asked):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn == 0:
                contenders[name].search(query)  # not counted: pages are touched, lazy work is done
            started = time.perf_counter()
            found = contenders[name].search(query)
            seconds[name].append(time.perf_counter() - started)
            recall[name].append(len(truth[turn] & {int(row) for row in found}) / len(truth[turn]))
    reading = "read_limit"
    quotients = {
        f"{slow}_to_{fast}": median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))
        for slow, fast in _pairs(names)
    }
    return {
        "rows": len(points),
        "dim": points.shape[1],
        "milliseconds": {name: round(1000 * median(seconds[name]), 3) for name in names if name != reading},
        "read_limit_ms": round(1000 * median(seconds[reading]), 3),
        "recall_at_10": {name: round(float(np.mean(recall[name])), 4) for name in names if name != reading},
        "ratios": {name: round(value, 2) for name, value in quotients.items()},
        "spread_ms": {
            name: [round(1000 * min(seconds[name]), 3), round(1000 * max(seconds[name]), 3)] for name in names
        },
        "resident_mb": {name: round(contenders[name].resident_mb, 1) for name in names if name != reading},
    }


def _exact(points: NDArray[np.float32], asked: NDArray[np.float32]) -> list[set[int]]:
    """The K nearest rows of each question."""
    scores = np.empty((len(asked), len(points)), np.float32)
    for start in range(0, len(points), _BATCH):
        scores[:, start : start + _BATCH] = asked @ points[start : start + _BATCH].T
    return [set(row.tolist()) for row in np.argsort(-scores, axis=1, kind="stable")[:, :K]]


def _unit(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def _resident_mb() -> float:
    """Of this process."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield "edge_int8", "read_limit"
    for ours in ("edge_int8", "edge_two_stage"):
        yield from ((peer, ours) for peer in names if peer not in ("edge_int8", "edge_two_stage", "read_limit"))


def _contenders(points: NDArray[np.float32]) -> Iterator[tuple[str, Contender]]:
    for name, build in _BUILDERS.items():
        package = PEERS.get(name)
        if package is None or find_spec(package):
            before = _resident_mb()
            search = build(points)
            yield name, Contender(search, _resident_mb() - before)


def _edge(points: NDArray[np.float32]) -> VectorArena:
    arena = VectorArena(points.shape[1])
    for start in range(0, len(points), _BATCH):
        part = points[start : start + _BATCH]
        arena.append(np.arange(start, start + len(part)), *quantize_rows(part))
    return arena


def _edge_int8(points: NDArray[np.float32]) -> Search:
    index = _edge(points).snapshot()
    return lambda query: index.top_k(query, K, exact=True)[0]


def _edge_two_stage(points: NDArray[np.float32]) -> Search:
    index = _edge(points).snapshot()
    return lambda query: index.top_k(query, K, exact=False)[0]


def _read_limit(points: NDArray[np.float32]) -> Search:
    memory = np.ones(points.size, np.int8)  # zeros would all be one page

    def read(query: NDArray[np.float32]) -> list[int]:
        scan.read_all(memory)
        return []

    return read


def _numpy_f32(points: NDArray[np.float32]) -> Search:
    return lambda query: np.argpartition(-(points @ query), min(K, len(points) - 1))[:K]


def _faiss(points: NDArray[np.float32], make: Callable[[Any, int], Any]) -> Search:
    import faiss

    faiss.omp_set_num_threads(1)
    index = make(faiss, points.shape[1])
    if not index.is_trained:
        index.train(points[:100_000])
    for start in range(0, len(points), _BATCH):
        index.add(points[start : start + _BATCH])
    return lambda query: index.search(query[None], K)[1][0]


def _faiss_flat(points: NDArray[np.float32]) -> Search:
    return _faiss(points, lambda faiss, dimension: faiss.IndexFlatIP(dimension))


def _faiss_sq8(points: NDArray[np.float32]) -> Search:
    def make(faiss: Any, dimension: int) -> Any:
        return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)

    return _faiss(points, make)


def _faiss_binary(points: NDArray[np.float32]) -> Search:
    import faiss

    index = faiss.IndexBinaryFlat(8 * -(-points.shape[1] // 8))
    index.add(np.packbits(points > 0, axis=1))
    return lambda query: index.search(np.packbits(query > 0)[None], K)[1][0]


def _codes(points: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """One scale for all rows, as the peers want it."""
    scale = np.float32(127 / np.abs(points).max())
    codes = np.empty(points.shape, np.int8)
    for start in range(0, len(points), _BATCH):
        codes[start : start + _BATCH] = np.rint(points[start : start + _BATCH] * scale)
    return codes, scale


def _usearch_i8(points: NDArray[np.float32]) -> Search:
    from usearch import index as usearch

    codes, scale = _codes(points)

    def search(query: NDArray[np.float32]) -> Any:
        wanted = np.clip(np.rint(query * scale), -127, 127).astype(np.int8)
        return usearch.search(codes, wanted, K, usearch.MetricKind.Cos, exact=True, threads=1).keys

    return search


def _sqlite_vec(kind: str, of: str, rows: NDArray[Any], encode: Callable[[NDArray[np.float32]], bytes]) -> Search:
    import apsw
    import sqlite_vec

    connection = apsw.Connection(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    connection.execute(f"CREATE VIRTUAL TABLE peer USING vec0 (vector {kind}[{rows.shape[1]}])")
    with connection:
        numbered = ((number, row.tobytes()) for number, row in enumerate(rows))
        connection.executemany(f"INSERT INTO peer (rowid, vector) VALUES (?, {of})", numbered)
    statement = f"SELECT rowid FROM peer WHERE vector MATCH {of} AND k = {K}"
    return lambda query: [row for (row,) in connection.execute(statement, (encode(query),))]


def _sqlite_vec_f32(points: NDArray[np.float32]) -> Search:
    return _sqlite_vec("float", "?", points, lambda query: query.tobytes())


def _sqlite_vec_i8(points: NDArray[np.float32]) -> Search:
    codes, scale = _codes(points)
    return _sqlite_vec(
        "int8",
        "vec_int8(?)",
        codes,
        lambda query: np.clip(np.rint(query * scale), -127, 127).astype(np.int8).tobytes(),
    )


_BUILDERS: dict[str, Callable[[NDArray[np.float32]], Search]] = {
    "edge_int8": _edge_int8,
    "edge_two_stage": _edge_two_stage,
    "read_limit": _read_limit,
    "numpy_f32": _numpy_f32,
    "faiss_flat": _faiss_flat,
    "faiss_sq8": _faiss_sq8,
    "faiss_binary": _faiss_binary,
    "usearch_i8": _usearch_i8,
    "sqlite_vec_f32": _sqlite_vec_f32,
    "sqlite_vec_i8": _sqlite_vec_i8,
}


if __name__ == "__main__":
    _count, _dimension, _queries, _path = sys.argv[1:]
    if _path:
        _points, _asked = _read(Path(_path), int(_count), int(_queries))
    else:
        _points, _asked = clustered_rows(int(_count), int(_dimension), int(_queries))
    sys.stdout.write(json.dumps(measure(_points, _asked)) + "\n")
