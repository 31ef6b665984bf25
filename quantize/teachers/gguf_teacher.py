"""A teacher that is a local GGUF file: llama.cpp evaluates many requests in one batch.

Decoding one token at a time, a processor waits for memory; with the tokens of other requests beside it the weights
are read once for all of them. What requests begin with alike is computed once too, and a request that is done makes
room for the next at once. Knows nothing of where replies are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Self

import numpy as np

from edge_sdk.device import available_memory, default_threads
from edge_sdk.engines.batching import Batching
from edge_sdk.engines.cells import Tokens, shared_prefix
from edge_sdk.engines.engine import check_options, file_fingerprint
from edge_sdk.engines.llama_library import library
from edge_sdk.engines.profile import DEFAULT, Tuning
from edge_sdk.engines.prompt_tokens import PromptTokens
from edge_sdk.engines.repacking import decide_repacking
from edge_sdk.engines.sequences import MOST_SEQUENCES, SequenceContext, SequenceModel
from edge_sdk.errors import ConfigError, EngineError
from edge_sdk.model_files.gguf_header import GgufHeader, read_header
from edge_sdk.records import GenerateOptions

from .batching import Done, Prompt, Replying, most_needed, sorted_order
from .teacher import Reply, Request
from .top_logits import TopLogitsFile

_MEMORY_SHARE = 0.5  # of the free memory may hold keys and values
_LONGEST = 1 << 20  # tokens, where nothing else sets a limit


class GgufTeacher:
    """A GGUF model that answers requests in batches; `replies` runs once at a time.

    Greedy replies are those of one request after the other, but for rounding: the sums of a batch have another
    order, and where two tokens are about as likely the other one may be chosen.

    >>> teacher = GgufTeacher.open(Path("model.gguf"))  # doctest: +SKIP
    >>> for position, reply in teacher.replies([Request((Message("user", "Hi"),))]):  # doctest: +SKIP
    ...     print(position, reply.text)
    """

    def __init__(
        self,
        model: SequenceModel,
        header: GgufHeader,
        path: Path,
        *,
        sequences: int,
        cells: int | None,
        tuning: Tuning,
        top_logits: Path | None,
        top_k: int,
        sha256: str | None,
    ) -> None:
        """Use `open`; this takes what it has loaded."""
        self._model, self._header, self._path, self._sha256 = model, header, path, sha256
        self._sequences, self._cells, self._tuning = sequences, cells, tuning
        self._top_logits, self._top_k = top_logits, top_k
        self._text = PromptTokens(model, header, path.name)
        self._context: SequenceContext | None = None
        self._taken, self._native, self._closed = Lock(), Lock(), Event()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        sequences: int = 64,
        cells: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        tuning: Tuning = DEFAULT,
        template: str | None = None,
        top_logits: Path | None = None,
        top_k: int = 32,
        sha256: str | None = None,
    ) -> Self:
        """Check the file's header, then load it.

        Up to `sequences` requests run at once, fewer where they do not fit `cells`, the tokens that the key-value
        cache holds; by default there are as many as the requests can need, within half of the free memory.
        `template` is a chat template to use instead of the file's, `sha256` the file's, where that is known.
        `top_logits` is a file that takes the `top_k` likeliest tokens at each place of a reply before it is given.

        Raises `ModelNotFoundError`, `ModelDamagedError`, `EngineError`, `ConfigError` and `MissingExtraError`.
        """
        library()
        threads = default_threads() if threads is None else threads
        if not 1 <= sequences <= MOST_SEQUENCES or threads < 1 or (cells is not None and cells < 1):
            raise ConfigError(
                f"{sequences} sequences in {'any number of' if cells is None else cells} cells, {threads} threads",
                hint=f"use 1 to {MOST_SEQUENCES} sequences, and 1 or more of the others",
            )
        if top_k < 1:
            raise ConfigError(f"the {top_k} likeliest tokens", hint="use a top_k of 1 or more")
        header = read_header(path)
        if template is not None:
            header = replace(header, chat_template=template)
        free = available_memory()
        if free is not None and header.file_bytes > free:
            raise EngineError(
                f"{path.name} needs {header.file_bytes >> 20} MiB, but {free >> 20} MiB are free",
                hint="use a smaller teacher",
            )
        tuning = decide_repacking(tuning, header)
        model = SequenceModel(path, threads=threads, gpu_layers=gpu_layers, tuning=tuning)
        return cls(
            model,
            header,
            path,
            sequences=sequences,
            cells=cells,
            tuning=tuning,
            top_logits=top_logits,
            top_k=top_k,
            sha256=sha256,
        )

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the file, and the beginning of that of the chat template."""
        template = (self._header.chat_template or "").encode("utf-8", "replace")
        digest = self._sha256 or file_fingerprint(self._path)
        return f"gguf {digest} template {hashlib.sha256(template).hexdigest()[:16]}"

    def count(self, request: Request) -> int:
        """Exact number of tokens of a request's prompt."""
        return len(self._tokens(1, request))

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        """See `Teacher.replies`. All requests are checked before the first is answered.

        Raises `EngineError` naming the first request that does not fit, `ConfigError` for one whose values cannot
        be used, `TemplateError` for messages that the model's template refuses.
        """
        if not self._taken.acquire(blocking=False):
            raise EngineError(f"{self._path.name} is answering other requests", hint="finish those first")
        cancel = cancel or Event()

        def stopped() -> bool:
            return cancel.is_set() or self._closed.is_set()

        try:
            with self._inside() as model:
                prompts = self._prompts(requests)
                file = self._top_file
                if not prompts:
                    return
                # What one prompt can leave is all that is of use to the next, in the order in which they come.
                keep = max(prompt.cells for prompt in prompts)
                batching: Batching[Replying] = Batching(self._room_for(model, prompts), keep=keep)
                done: list[Done] = []
                for prompt in prompts:
                    batching.add(Replying(model, prompt, done, top=0 if file is None else file.k))
            while batching.pending:
                with self._inside():
                    evaluated = batching.step(stopped)
                if evaluated is None:
                    break
                for each in done:
                    if file is not None and each.top is not None:
                        file.append(each.prompt.request.key, each.top)
                    yield each.prompt.position, each.reply
                done.clear()
            self._check_open()
        finally:
            self._taken.release()

    def close(self) -> None:
        """Free the model; running `replies` end with `EngineError`. Again does nothing."""
        self._closed.set()  # a running batch looks at it
        with self._native:
            self._text.close()
            if self._context is not None:
                self._context.close()
                self._context = None
            self._model.close()
            if (file := self.__dict__.get("_top_file")) is not None:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _inside(self) -> Iterator[SequenceModel]:
        """The model, to this thread alone."""
        with self._native:
            self._check_open()
            yield self._model

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineError(f"{self._path.name} is closed")

    @cached_property
    def _top_file(self) -> TopLogitsFile | None:
        if self._top_logits is None:
            return None
        return TopLogitsFile.open(
            self._top_logits,
            teacher=self.fingerprint,
            vocabulary=self._model.size,
            k=min(self._top_k, self._model.size),
        )

    def _prompts(self, requests: Sequence[Request]) -> list[Prompt]:
        """All requests as tokens, in the order in which they share most."""
        tokens = [self._tokens(number, request) for number, request in enumerate(requests, 1)]
        prompts: list[Prompt] = []
        for at in sorted_order(tokens):
            shared = shared_prefix(prompts[-1].tokens, tokens[at]) if prompts else 0
            # The last token of a prompt is always evaluated: an answer starts from its logits.
            prompts.append(Prompt(at, requests[at], tokens[at], min(shared, len(tokens[at]) - 1)))
        return prompts

    def _tokens(self, number: int, request: Request) -> Tokens:
        check_options(GenerateOptions(max_tokens=request.max_tokens, temperature=request.temperature))
        most = self._header.context_length or _LONGEST
        prompt = self._text.render(request.messages)
        if self._text.least(prompt) > most:  # too long whatever it says
            raise _too_long(number, request, f"{len(prompt.encode('utf-8', 'replace'))} bytes", most)
        try:
            tokens = self._text.tokens(prompt)
        except EngineError as error:
            raise EngineError(f"{_named(number, request)}: {error.message}") from error
        if len(tokens) + request.max_tokens > most:
            raise _too_long(number, request, f"{len(tokens)} tokens", most)
        return np.array(tokens, np.int32)

    def _room_for(self, model: SequenceModel, prompts: Sequence[Prompt]) -> SequenceContext:
        """An empty context that holds as many of the prompts at once as can be wanted, or as memory allows."""
        largest = max(prompts, key=lambda prompt: prompt.cells)
        common = min((prompt.shared for prompt in prompts[1:]), default=0)
        needed = most_needed([prompt.cells for prompt in prompts], common, self._sequences)
        if self._context is not None and needed <= self._context.cells:
            self._context.clear()
            return self._context
        if self._context is not None:
            self._context.close()
            self._context = None
        room = self._cells or self._memory_room()
        if largest.cells > room:
            length = f"{len(largest.tokens)} tokens"
            raise _too_long(largest.position + 1, largest.request, length, room, "there is room for")
        self._context = SequenceContext(
            model,
            cells=min(needed, room),
            sequences=self._sequences,
            batch=max(self._tuning.batch, self._sequences),
            tuning=self._tuning,
        )
        return self._context

    def _memory_room(self) -> int:
        """Cells that a part of the free memory can hold."""
        free, each = available_memory(), self._header.kv_bytes(1)
        return _LONGEST if free is None or not each else int(free * _MEMORY_SHARE) // each


def _named(number: int, request: Request) -> str:
    words = request.messages[-1].content if request.messages else ""
    return f"request {number} ({' '.join(words.split())[:40]!r})"


def _too_long(number: int, request: Request, length: str, most: int, who: str = "the model takes") -> EngineError:
    return EngineError(
        f"{_named(number, request)} has {length} and {request.max_tokens} for the answer, but {who} {most} tokens",
        hint="shorten it or leave it out",
    )
