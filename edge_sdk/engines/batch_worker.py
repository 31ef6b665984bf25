"""The thread behind a batched engine: it evaluates what is asked in batches and hands each token to its reader.

Which tokens come together is the business of `batching`; this says how much of the prompts may be in a batch, ends
what nobody wants, and passes on what goes wrong. Knows nothing of files.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from ..records import FinishReason, GenerateOptions, GenerationResult, Token
from .batching import Batching
from .engine import TextStream
from .handover import MOMENT, HandOver
from .llama import LlamaModel
from .llama_sampler import Sampler
from .prompt_tokens import PromptTokens
from .sequences import SequenceContext, SequenceModel

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

_STALL = 0.1  # seconds that an answer may have to wait for the prompts of others in its batch
_LEAST_PART = 32  # tokens of a prompt; with fewer the weights are read too often
_LONGEST_WAIT = 0.1  # seconds for tokens of many answers to be read together; the more answers, the more readers
_KEPT_SHARE = 0.25  # of shared cells may hold what ended answers have left


class Asked:
    """A prompt and its answer, between the thread that reads it and the one that computes."""

    def __init__(self, model: LlamaModel, prompt: list[int], options: GenerateOptions, cancel: Event) -> None:
        self.prompt, self.max_tokens = np.array(prompt, np.int32), options.max_tokens
        self.made: HandOver[Token | FinishReason | Exception] = HandOver()
        self.wait = MOMENT  # seconds within which tokens are handed over together
        self.cached, self.dropped, self.over = 0, False, False
        self._model, self._cancel = model, cancel
        self._sampler, self._stream = Sampler(model, options, prompt), TextStream(options.stop)
        self._produced = 0
        self._began = self._first = self._last = time.perf_counter()

    @property
    def unwanted(self) -> bool:
        """Whether nobody wants the rest."""
        return self.dropped or self._cancel.is_set()

    def begin(self, cached: int) -> None:
        """See `Answer.begin`."""
        self.cached, self._began = cached, time.perf_counter()

    def next(self, row: Any) -> int | None:
        """See `Answer.next`. What goes wrong is for whoever reads this answer; the others go on."""
        if self.over:
            return None
        try:
            figures = self._sampler.choose(row)
        except Exception as error:
            self.end(error)
            return None
        return self.take(figures)

    @property
    def greedy(self) -> bool:
        """Whether the best token is always the one chosen."""
        return self._sampler.greedy

    def take(self, figures: LogitsFigures) -> int | None:
        """`next` for what was chosen."""
        if self.over:
            return None
        chosen = figures.chosen
        try:
            ended = self._model.is_end(chosen)
            text = self._stream.push(b"" if ended else self._model.piece(chosen))
        except Exception as error:
            self.end(error)
            return None
        self._last = time.perf_counter()
        self._first = self._first if self._produced else self._last
        self._produced += 1
        reason: FinishReason | None = "stop" if ended or self._stream.stopped else None
        if reason is None and self._produced == self.max_tokens:
            reason = "length"
        text += self._stream.finish() if reason else ""
        self.made.put(Token(chosen, text, figures.logprob, figures.entropy, figures.margin), self.wait)
        if reason:
            self.end(reason)
            return None
        return chosen

    def end(self, how: FinishReason | Exception) -> None:
        """Nothing more comes."""
        if not self.over:
            self.over = True
            self.made.put(how)

    def result(self, reason: FinishReason, tokens: int) -> GenerationResult:
        """How it ended, of which so many tokens were read."""
        prefilling, decoding = max(0.0, self._first - self._began), self._last - self._first
        return GenerationResult(
            reason,
            len(self.prompt),
            self.cached,
            tokens,
            prefilling * 1e3,
            decoding * 1e3 if tokens else 0.0,
            shares=self._sampler.shares,
        )


class BatchWorker:
    """Evaluates what is asked, in batches, on the thread that computes; one of its own watches for what to stop.

    Both sleep while there is nothing to do.
    """

    def __init__(self, model: SequenceModel, context: SequenceContext, prompts: PromptTokens, name: str) -> None:
        self._model, self._context, self._prompts, self._name = model, context, prompts, name
        self.batching: Batching[Asked] = Batching(context, keep=int(context.cells * _KEPT_SHARE))
        self._inbox: SimpleQueue[Asked | None] = SimpleQueue()
        self._asked: list[Asked] = []
        self._closed, self._seconds = False, 0.0  # a token of a prompt, as it was last
        self._thread = threading.Thread(target=self._work, name="edge-batches", daemon=True)
        self._thread.start()

    def add(self, asked: Asked) -> None:
        self._inbox.put(asked)

    def check_open(self) -> None:
        if self._closed:
            raise self._no_longer()

    def _no_longer(self) -> EngineError:
        return EngineError(f"{self._name} is closed")

    def shut(self) -> None:
        """End soon; takes no lock, so that it may come whenever an engine is dropped."""
        self._closed = True
        self._inbox.put(None)

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closed:
                self._take(self._inbox.get())
                self._context.run(self._answer, self._stopped)
        finally:
            self._closed = True
            self._receive()
            for asked in self._asked:
                asked.end(self._no_longer())
            self._prompts.close()
            self._context.close()
            self._model.close()

    def _answer(self) -> bool:
        """On the thread that computes: one batch after the other, until there is nothing left to do."""
        while self._asked and not self._closed:
            self._step()
            self._receive()
        return True

    def _receive(self) -> None:
        with suppress(Empty):
            while True:
                self._take(self._inbox.get_nowait())

    def _take(self, asked: Asked | None) -> None:
        if asked is not None:
            self._asked.append(asked)
            self.batching.add(asked)

    def _step(self) -> None:
        self._end_unwanted()
        over = [asked for asked in self._asked if asked.over]  # as it is now: whoever watches may end more
        for asked in over:
            self.batching.drop(asked)
        self._asked = [asked for asked in self._asked if asked not in over]
        for asked in self._asked:
            asked.wait = min(_LONGEST_WAIT, MOMENT * len(self._asked))
        if not self._asked:
            return
        started = time.perf_counter()
        try:
            if self._follow():
                return
            tokens = self.batching.step(prompts=self._prompt_tokens())
        except EngineError as error:
            for asked in self.batching.clear():
                asked.end(error)
        else:
            if tokens and tokens >= _LEAST_PART:
                self._seconds = (time.perf_counter() - started) / tokens

    def _follow(self) -> bool:
        """Several tokens of a greedy answer that is alone; whether there is nothing else to do in this step."""
        asked = self._asked[0]
        if len(self._asked) > 1 or not asked.greedy:
            return False

        def evaluate(sequence: int, position: int, token: int, most: int) -> list[LogitsFigures]:
            return self._context.advance_greedily(sequence, position, token, most, MOMENT)

        tokens = self.batching.follow(evaluate, Asked.take)
        asked.made.flush()
        return bool(tokens) or asked.over

    def _end_unwanted(self) -> None:
        for asked in self._asked:
            if asked.unwanted:
                asked.end("cancelled")

    def _stopped(self) -> bool:
        """Whether nobody wants the batch that is being evaluated; asked from another thread."""
        self._end_unwanted()
        batch = self.batching.evaluating()
        return self._closed or (bool(batch) and all(asked.over for asked in batch))

    def _prompt_tokens(self) -> int:
        """How many tokens of prompts may be in the next batch: all of it for one that is alone."""
        if len(self._asked) == 1:
            return self._context.batch
        return max(_LEAST_PART, int(_STALL / self._seconds) if self._seconds else 0)
