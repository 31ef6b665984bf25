"""A request to the pieces of its answer: from the documents by `Edge`, or from the language model alone.

Runs in a thread of the server's. Knows nothing of HTTP and of JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from ..edge import Edge
from ..errors import RequestError
from ..records import Answer, TokenCounts
from .desk import Work
from .requests import DOCUMENTS, ChatRequest, EmbeddingRequest
from .turns import Asked, Turns

ENCODER = "edge-encoder"
"""The name of the model that makes vectors."""
MOST_TOKENS = 512
"""Of a language model's answer, unless the request says otherwise; `Edge` has a default of its own."""
_TEXTS = 16  # that are embedded before a look at whether anybody waits for them
_NO_SYSTEM = "the system message was left out: answers come from the documents, in words that were calibrated"


@dataclass(frozen=True, slots=True)
class Scored:
    """A token as text with its log-probability, in nats."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the answer, or why what came before is `dropped`."""

    text: str = ""
    dropped: str = ""
    tokens: tuple[Scored, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The whole answer: the pieces since the last that was dropped. `answer` where it is from the documents."""

    text: str
    finish_reason: str
    tokens: TokenCounts
    answer: Answer | None = None
    question: str = ""
    scored: tuple[Scored, ...] = ()


def joined(items: Iterable[Piece | End]) -> list[Piece | End]:
    """The same answer, with text that was not dropped between in one piece.

    >>> joined([Piece("Press "), Piece("it."), Piece(dropped="unsure"), Piece("No.")])[0].text
    'Press it.'
    """
    made: list[Piece | End] = []
    for item in items:
        last = made[-1] if made else None
        if isinstance(item, Piece) and isinstance(last, Piece) and not (item.dropped or last.dropped):
            made[-1] = Piece(last.text + item.text, tokens=last.tokens + item.tokens)
        else:
            made.append(item)
    return made


class Answering:
    """What one `Edge` can be asked over the wire. For several threads, as far as its engine is."""

    def __init__(self, edge: Edge) -> None:
        """Load all that answers need, so that the first does not wait for it. Raises `EdgeError`."""
        self.edge, self._turns = edge, Turns()
        with edge.idle.busy():
            _ = edge.encoder, edge.extractor
            self.models = (DOCUMENTS, edge.engine.name)
            """The names that a chat may give: of answers from the documents, and of the language model alone."""

    def chat(self, request: ChatRequest) -> Work[Piece | End]:
        """What gives the pieces and then the end; once its flag is set it ends at the next token.

        Raises `RequestError` for what no work is needed to refuse.
        """
        if request.model == DOCUMENTS:
            return partial(self._from_documents, request, self._turns.asked(request.messages))
        if request.model in self.models:
            return partial(self._from_model, request)
        raise _unknown(request.model, self.models)

    def embed(self, request: EmbeddingRequest) -> Work[NDArray[np.float32]]:
        """What gives vectors [texts, dimension] of length 1, some at a time. Raises `RequestError`."""
        if request.model not in ("", ENCODER):
            raise _unknown(request.model, [ENCODER])
        return partial(self._vectors, request.texts)

    def _vectors(self, texts: Sequence[str], cancel: Flag) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(texts), _TEXTS):
            if cancel.is_set():
                return
            yield self.edge.encoder.encode(texts[start : start + _TEXTS])

    def _from_documents(self, request: ChatRequest, asked: Asked, cancel: Flag) -> Iterator[Piece | End]:
        wanted, notices = request.documents, list[str]()
        limit = {} if request.max_tokens is None else {"max_tokens": request.max_tokens}
        shown = ""
        for event in self.edge.stream(
            asked.question,
            style=wanted.style,
            k=wanted.k,
            task=wanted.task,
            hold=wanted.hold,
            conversation=asked.chat,
            cancel=cancel,
            **limit,
        ):
            if event.answer is not None:
                answer = event.answer
                self._turns.remember(asked, answer)
                if shown.strip() != answer.text.strip():
                    if shown:
                        yield Piece(dropped=answer.reasons[-1])
                    yield Piece(answer.text)
                if any(message.role == "system" for message in request.messages):
                    notices.append(_NO_SYSTEM)
                answer = replace(answer, reasons=(*answer.reasons, *notices))
                reason = "length" if answer.route == "local" and answer.signals.get("cut") else "stop"
                yield End(answer.text, reason, answer.tokens, answer, asked.question)
            elif event.kind == "notice":
                notices.append(event.text)
            elif wanted.hold is None:
                continue  # nothing that may be taken back: a remote may fail after its first words
            elif event.kind == "provisional":
                shown += event.text
                yield Piece(event.text)
            elif event.kind == "handoff":
                shown = ""
                yield Piece(dropped=event.text)

    def _from_model(self, request: ChatRequest, cancel: Flag) -> Iterator[Piece | End]:
        with self.edge.idle.busy():
            engine = self.edge.engine
            prompt = engine.render(request.messages)
            room = max(1, engine.context - engine.count(prompt))
            options = replace(request.options, max_tokens=request.max_tokens or min(MOST_TOKENS, room))
            generation = engine.generate(prompt, options, cancel)
            scored: list[Scored] = []
            try:
                for token in generation:
                    scored.append(Scored(token.text, token.logprob))
                    if token.text:
                        yield Piece(token.text, tokens=(scored[-1],))
            finally:
                generation.close()
            end = generation.result
            tokens = TokenCounts(end.prompt_tokens, end.cached_tokens, end.completion_tokens)
            reason = "length" if end.finish_reason == "length" else "stop"
            text = "".join(each.text for each in scored)
            yield End(text, reason, tokens, scored=tuple(each for each in scored if each.text))


def _unknown(name: str, known: Sequence[str]) -> RequestError:
    return RequestError(f"there is no model {name[:80]!r}", status=404, hint=f"there is {' and '.join(known)}")
