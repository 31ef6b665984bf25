"""A request to the pieces of its answer: from the documents by `Edge`, or from the language model alone.

Runs in a thread of the server's. Knows nothing of HTTP and of JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from ..edge import Edge
from ..errors import RequestError
from ..records import Answer, TokenCounts
from .requests import DOCUMENTS, ChatRequest, EmbeddingRequest
from .turns import Turns

ENCODER = "edge-encoder"
"""The name of the model that makes vectors."""
MOST_TOKENS = 512
"""Of a language model's answer, unless the request says otherwise; `Edge` has a default of its own."""
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


class Answering:
    """What one `Edge` can be asked over the wire. For several threads, as far as its engine is."""

    def __init__(self, edge: Edge) -> None:
        """Load all that answers need, so that the first does not wait for it. Raises `EdgeError`."""
        self.edge, self._turns = edge, Turns()
        with edge.idle.busy():
            _ = edge.encoder, edge.extractor
            self.models = (DOCUMENTS, edge.engine.name)
            """The names that a chat may give: of answers from the documents, and of the language model alone."""

    def chat(self, request: ChatRequest, cancel: Flag) -> Iterator[Piece | End]:
        """Pieces, then the end. Setting `cancel` ends it at the next token; what has come then counts."""
        if request.model == DOCUMENTS:
            return self._from_documents(request, cancel)
        if request.model in self.models:
            return self._from_model(request, cancel)
        raise _unknown(request.model, self.models)

    def embed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        """Vectors [texts, dimension] of length 1. Raises `RequestError` for another model than the encoder."""
        if request.model not in ("", ENCODER):
            raise _unknown(request.model, [ENCODER])
        return self.edge.encoder.encode(request.texts)

    def _from_documents(self, request: ChatRequest, cancel: Flag) -> Iterator[Piece | End]:
        question, chat = self._turns.conversation(request.messages)
        wanted = request.documents
        limit = {} if request.max_tokens is None else {"max_tokens": request.max_tokens}
        shown = ""
        for event in self.edge.stream(
            question,
            style=wanted.style,
            k=wanted.k,
            task=wanted.task,
            hold=wanted.hold,
            conversation=chat,
            cancel=cancel,
            **limit,
        ):
            if event.answer is not None:
                answer = event.answer
                self._turns.remember(question, answer, chat)
                if any(message.role == "system" for message in request.messages):
                    answer = replace(answer, reasons=(*answer.reasons, _NO_SYSTEM))
                if shown.strip() != answer.text.strip():
                    if shown:
                        yield Piece(dropped=answer.reasons[-1])
                    yield Piece(answer.text)
                reason = "length" if answer.route == "local" and answer.signals.get("cut") else "stop"
                yield End(answer.text, reason, answer.tokens, answer, question)
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
            options = replace(request.options, max_tokens=request.max_tokens or MOST_TOKENS)
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
