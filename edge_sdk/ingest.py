"""Documents in: finds what the sources name, skips what has not changed, parses, cuts, embeds, stores.

A document is durable, as a whole, when its report is there, so an interrupted run is resumed by running it again.
While documents are stored, a thread embeds the next ones; small ones are embedded, and stored, several together.
Knows nothing of formats, encoders' insides or SQL.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Protocol

from .device import give_way
from .documents.chunk import chunk_document, embedding_text
from .documents.parse import DEFAULT_LIMITS, SUFFIXES, ParseLimits, content_hash, parse_bytes, read_document
from .documents.python_source import PREFIX, list_modules, parse_module
from .errors import DocumentError, EngineError, MissingExtraError
from .records import AddReport, Chunk, ParsedDocument

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .encoders.embed import Encoder
    from .storage.store import Store

SLICE = 128
"""Passages that are embedded at once, of one document or of several: between two slices a run can be cancelled."""
_LEAST = SLICE // 8  # for which an idle encoder is woken
_AHEAD = 2 * SLICE  # passages that are cut before those in front of them are stored
_DOCUMENTS_AHEAD = 64  # of which most may be unchanged, and so without passages


Sources = str | Path | Iterable[str | Path]
"""One source or several."""


class Progress(Protocol):
    """Told before each document, and within long ones, how far a run is; at the end `done == total`."""

    def __call__(self, done: int, total: int, name: str, /) -> None: ...


def add(
    store: Store,
    encoder: Encoder,
    sources: Sources,
    *,
    limits: ParseLimits = DEFAULT_LIMITS,
    progress: Progress | None = None,
    cancel: Event | None = None,
    again: bool = False,
    background: bool = True,
    left_out: Callable[[str], None] | None = None,
) -> Iterator[AddReport]:
    """Add or update documents, one report each, in order.

    A source is a file, a folder (searched at any depth for the suffixes that `parse` knows; hidden files are
    skipped) or `py:module` (a package stands for all its public modules). What fails is reported as `failed`
    and the rest goes on; errors of the store and the encoder are raised. A document whose content hash is
    that of the stored one is `unchanged`, unless `again` is set. Setting `cancel` ends the run before the
    next document or slice of passages; what is stored is still reported. Documents whose vectors are there are
    stored together when the first report of them is asked for; the encoder is called in a thread of its own, which
    gives way to other threads and processes if this is to be in the `background`. `left_out` is told of each file
    in a folder whose suffix `parse` does not know.
    """
    if isinstance(sources, str | os.PathLike):  # its letters are no paths
        sources = [sources]
    store.use_encoder(encoder.fingerprint, encoder.dimension)
    return _Run(store, encoder, limits, progress, cancel or Event(), again, background, left_out).reports(sources)


def document_name(source: str | Path) -> str:
    """The name under which a source is stored: `py:module` as it is, a path absolute and without links.

    So adding the same file from another directory does not store it twice.
    """
    try:
        text = os.fspath(source)
    except TypeError as error:
        raise DocumentError(f"{source!r} is no path", hint="give a file, a folder or py:MODULE") from error
    if not isinstance(text, str) or not text.strip():  # "" would be the current folder
        raise DocumentError(f"{text!r} is no path", hint="give a file, a folder or py:MODULE")
    if text.startswith(PREFIX):
        return text
    try:
        return os.path.realpath(os.path.expanduser(text))  # noqa: PTH111 - Path raises on unknown users
    except ValueError as error:
        raise DocumentError(f"{text!r} is no path: {error}") from error


# --- what the sources name --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    """A document to add: a module, a file, or what is wrong with its source."""

    name: str
    path: Path | None = None
    package: str = ""  # the `py:` source that this module was found by, when there are several
    error: str = ""
    left_out: bool = False  # no document, unless it is named itself


def _tasks(source: str | Path) -> Iterator[_Task]:
    try:
        name = document_name(source)
        if name.startswith(PREFIX):
            modules = list_modules(name)
            yield from (_Task(module, package=name if len(modules) > 1 else "") for module in modules)
        elif os.path.isdir(name):  # noqa: PTH112 - Path raises where a name is too long
            yield from _folder(name)
        else:
            yield _Task(name, path=Path(name))
    except DocumentError as error:
        yield _Task(source if isinstance(source, str) else repr(source), error=str(error))


def _folder(root: str) -> Iterator[_Task]:
    """The documents in a folder, in order of their names; links are followed, but to no folder twice."""
    seen: set[str] = set()
    unreadable: list[OSError] = []
    found = 0
    for folder, folders, files in os.walk(root, onerror=unreadable.append, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith("."):
                known = Path(file).suffix.lower() in SUFFIXES
                found += known
                path = os.path.realpath(Path(folder, file))
                if not os.path.exists(path):  # noqa: PTH110 - Path raises where a link leads to itself
                    path = str(Path(folder, file))  # the error names the link, for its target nobody may know
                yield _Task(path, path=Path(path), left_out=not known)
    for error in unreadable:
        yield _Task(str(error.filename), error=f"{error.filename}: it cannot be read ({error.strerror})")
    if not found and not unreadable:
        raise DocumentError(
            f"{root}: there are no documents in it", hint=f"it is searched for {', '.join(SUFFIXES)}"
        )


# --- one document after the other -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document in passages, whose vectors are on their way: `parts` are slices, each with first row and count."""

    document: ParsedDocument
    chunks: Sequence[Chunk]
    vectors: NDArray[np.float32]
    parts: list[tuple[int, int, Future[None]]] = field(default_factory=list)

    def is_embedded(self) -> bool:
        """Whether all vectors are there, without a wait and without an error."""
        sent = sum(count for _, count, _ in self.parts)  # the last passages may still wait for their slice
        done = (part.done() and part.exception() is None for _, _, part in self.parts)
        return sent == len(self.chunks) and all(done)


class _Ahead:
    """Embeds passages in a thread of its own, slice by slice, so that memory stays flat."""

    def __init__(self, encoder: Encoder, background: bool) -> None:
        self._encoder = encoder
        self._pool = ThreadPoolExecutor(1, "edge-ingest", initializer=give_way if background else None)
        self._last: Future[None] = Future()
        self._last.set_result(None)
        self._texts: list[str] = []
        self._rows: list[tuple[_Cut, int, int]] = []  # of which document, from which row on, how many

    def close(self) -> None:
        """Wait for the slice at hand and drop the others."""
        self._pool.shutdown(cancel_futures=True)

    def add(self, document: ParsedDocument, chunks: Sequence[Chunk]) -> _Cut:
        """Take a document; its passages go when a slice is full, when the encoder is idle, or at `flush_for`."""
        import numpy as np

        cut = _Cut(document, chunks, np.empty((len(chunks), self._encoder.dimension), np.float32))
        start = 0
        while start < len(chunks):
            part = chunks[start : start + SLICE - len(self._texts)]
            self._texts += [embedding_text(chunk.heading, chunk.text) for chunk in part]
            self._rows.append((cut, start, len(part)))
            start += len(part)
            if len(self._texts) == SLICE or (len(self._texts) >= _LEAST and self._last.done()):
                self._submit()
        return cut

    def flush_for(self, cut: _Cut) -> None:
        """Do not wait for a whole slice when passages of this document are in it."""
        if any(one is cut for one, _, _ in self._rows):
            self._submit()

    def _submit(self) -> None:
        self._last = self._pool.submit(self._embed, self._texts, self._rows)
        for cut, start, count in self._rows:
            cut.parts.append((start, count, self._last))
        self._texts, self._rows = [], []

    def _embed(self, texts: list[str], rows: list[tuple[_Cut, int, int]]) -> None:
        vectors, at = self._encoder.encode(texts), 0
        expected = len(texts), self._encoder.dimension
        if vectors.shape != expected:  # a single row would be spread over all passages
            raise EngineError(f"the encoder gave vectors of shape {vectors.shape}, not {expected}")
        for cut, start, count in rows:
            cut.vectors[start : start + count] = vectors[at : at + count]
            at += count


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `add`."""

    store: Store
    encoder: Encoder
    limits: ParseLimits
    progress: Progress | None
    cancel: Event
    again: bool
    background: bool
    left_out: Callable[[str], None] | None

    def reports(self, sources: Iterable[str | Path]) -> Iterator[AddReport]:
        named = [task for source in sources for task in _tasks(source)]
        wanted = {task.name: task for task in named if not task.left_out}
        tasks = list(wanted.values())
        if self.left_out is not None:
            for name in {task.name: None for task in named if task.name not in wanted}:
                self.left_out(name)
        silent = {task.package for task in tasks if task.package}
        with closing(_Ahead(self.encoder, self.background)) as ahead:
            prepared: deque[_Cut | AddReport | None] = deque()
            for done, task in enumerate(tasks):
                if self.cancel.is_set() and not (prepared and isinstance(prepared[0], AddReport)):
                    return  # after the reports of what has been stored
                self._tell(done, len(tasks), task.name)
                self._prepare_from(tasks, done, prepared, ahead)
                found = prepared[0]
                if isinstance(found, _Cut):
                    if not self._wait(found, done, len(tasks)):
                        return
                    self._store(prepared)
                report = prepared.popleft()
                if isinstance(report, AddReport):
                    silent.discard(task.package)
                    yield report
        for package in sorted(silent):
            yield AddReport(package, "failed", error=f"{package}: nothing in it is documented")
        self._tell(len(tasks), len(tasks), "")

    def _prepare_from(
        self, tasks: Sequence[_Task], done: int, prepared: deque[_Cut | AddReport | None], ahead: _Ahead
    ) -> None:
        """Prepare the task at hand and, where it has passages to wait for, the next ones meanwhile."""
        passages = sum(len(one.chunks) for one in prepared if isinstance(one, _Cut))
        for task in tasks[done + len(prepared) : done + _DOCUMENTS_AHEAD]:
            if prepared and (passages >= _AHEAD or not isinstance(prepared[0], _Cut)):
                break
            found = self._prepare(task)
            if isinstance(found, ParsedDocument):
                cut = ahead.add(found, chunk_document(found))
                passages += len(cut.chunks)
                prepared.append(cut)
            else:
                prepared.append(found)
        first = prepared[0]
        if isinstance(first, _Cut):
            ahead.flush_for(first)

    def _store(self, prepared: deque[_Cut | AddReport | None]) -> None:
        """Store the documents whose vectors are there, in one transaction; their reports take their places."""
        cuts: dict[int, _Cut] = {}
        for at, one in enumerate(prepared):
            if isinstance(one, _Cut):
                if not one.is_embedded():
                    break
                cuts[at] = one
        statuses = self.store.put_all([(cut.document, cut.chunks, cut.vectors) for cut in cuts.values()])
        for (at, cut), status in zip(cuts.items(), statuses, strict=True):
            prepared[at] = AddReport(cut.document.name, status, passages=len(cut.chunks))

    def _prepare(self, task: _Task) -> ParsedDocument | AddReport | None:
        """The document if it has to be stored, a report if not; None for an undocumented part of a package."""
        try:
            if task.error:
                return AddReport(task.name, "failed", error=task.error)
            if task.path is not None:
                data = read_document(task.path, self.limits)
                if self._is_stored(task.name, content_hash(data)):
                    return AddReport(task.name, "unchanged")
                return parse_bytes(data, task.name, suffix=task.path.suffix, limits=self.limits)
            document = parse_module(task.name)
        except (DocumentError, MissingExtraError) as error:
            return AddReport(task.name, "failed", error=str(error))
        if document is None:
            missing = AddReport(task.name, "failed", error=f"{task.name}: nothing in it is documented")
            return None if task.package else missing
        return AddReport(task.name, "unchanged") if self._is_stored(task.name, document.content_hash) else document

    def _is_stored(self, name: str, digest: str) -> bool:
        return not self.again and self.store.content_hash(name) == digest

    def _wait(self, cut: _Cut, done: int, total: int) -> bool:
        """Wait for the vectors of all passages; False when cancelled."""
        for start, _, slice_ in cut.parts:
            if self.cancel.is_set():
                return False
            if start:
                self._tell(done, total, f"{cut.document.name} ({start} of {len(cut.chunks)} passages)")
            slice_.result()
        return True

    def _tell(self, done: int, total: int, name: str) -> None:
        if self.progress is not None:
            self.progress(done, total, name)
