"""An encoder, a reader and an engine without weights, so that apps and tests run the whole flow in milliseconds.

All are deterministic on every machine and keep the contracts of the real ones. They know no language: the
encoder counts words, the engine says what it was told to say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import takewhile
from threading import Event
from typing import TYPE_CHECKING

from .engines.engine import Generation, TextStream, check_options
from .engines.paths import Paths
from .errors import ContextOverflowError, EngineError, GrammarError
from .records import FinishReason, GenerateOptions, GenerationResult, Message, Token

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .readers.extract import Extract

_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\s*\w{1,6}|\s*[^\w\s]|\s+$")
_OTHERS = 9  # tokens over which the fake spreads what the chosen one leaves


class FakeEncoder:
    """Hashed bag of words (Weinberger et al., arXiv:0902.2206): texts that share words get close vectors.

    >>> tea, cup, car = FakeEncoder().encode(["brew the tea", "brew tea in a cup", "start a car"])
    >>> bool(tea @ cup > tea @ car)
    True
    """

    def __init__(self, dimension: int = 256) -> None:
        self._dimension = dimension

    @property
    def fingerprint(self) -> str:
        """Depends on the dimension alone."""
        return hashlib.sha256(f"fake encoder 1: {self._dimension}".encode()).hexdigest()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), dimension] of length 1; zeros for a text without a word."""
        import numpy as np

        vectors = np.zeros((len(texts), self._dimension), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
                row[int.from_bytes(digest[:7], "little") % self._dimension] += 1 if digest[7] & 1 else -1
            row /= np.linalg.norm(row) or 1
        return vectors


class FakeReader:
    """Finds the answers that it was told, wherever they stand in a passage.

    >>> FakeReader({"Which button?": "red"}).read("Which button?", ["Press it.", "Press the red one."]).best.passage
    1
    """

    name = "fake reader"

    def __init__(self, answers: Mapping[str, str], support: float = 6.0) -> None:
        """`support` is the log-odds that it has of an answer; what it was not told has as much against it."""
        self._answers, self._support = dict(answers), support

    @property
    def fingerprint(self) -> str:
        """Depends on what it was told."""
        return hashlib.sha256(json.dumps([self._answers, self._support]).encode()).hexdigest()

    def read(self, question: str, passages: Sequence[str]) -> Extract:
        """The first place of the answer; none where it stands nowhere."""
        from .readers.extract import Extract, Span

        answer = self._answers.get(question, "")
        for number, passage in enumerate(passages):
            start = passage.find(answer) if answer else -1
            if start >= 0:
                odds = tuple(self._support if at == number else -self._support for at in range(len(passages)))
                best = Span(number, start, start + len(answer), answer, -0.1)
                return Extract(best, (), self._support, self._support, odds, None, likely=(best,))
        return Extract(None, (), 0.0, -self._support, (-self._support,) * len(passages), None)


class FakeEngine:
    """Answers from a script, piece by piece, with signals that fit together, and keeps the engine's contract.

    `script` is one answer for all prompts, a sequence whose answers are given in turn (the last one again and
    again), or a function of the prompt. `confidence` is the probability of a typical token; the rest is spread
    evenly over nine others. A fake cannot obey a grammar: `grammar` raises `GrammarError`, and so does
    `json_schema` unless the scripted answer is JSON. Of `choices` it takes the scripted answer, or else the one for
    which most speaks; their shares are those of their weights.

    >>> engine = FakeEngine("Boil it. [1]")
    >>> "".join(token.text for token in engine.generate("How?", GenerateOptions()))
    'Boil it. [1]'
    """

    def __init__(
        self,
        script: str | Sequence[str] | Callable[[str], str] = "I do not know.",
        *,
        name: str = "fake",
        context: int = 4096,
        confidence: float = 0.8,
    ) -> None:
        if not 0.2 <= confidence < 1:
            raise ValueError(f"confidence {confidence} is not from 0.2 to below 1")
        self._script = [script] if isinstance(script, str) else script
        self._name, self._context, self._confidence = name, context, confidence
        self._previous: list[str] = []
        self._closed = False
        self.prompts: list[str] = []
        """Every prompt that was generated from, for tests to look at."""

    @property
    def name(self) -> str:
        """The name given."""
        return self._name

    @property
    def fingerprint(self) -> str:
        """Depends on the name alone."""
        return hashlib.sha256(f"fake engine 1: {self._name}".encode()).hexdigest()

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may take together."""
        return self._context

    def count(self, text: str) -> int:
        """Pieces of up to six letters, and single signs."""
        self._require_open()
        return len(_PIECE.findall(text))

    def render(self, messages: Sequence[Message]) -> str:
        """`<|role|>` lines; a `<|` in a message's content is broken up."""
        self._require_open()
        turns = [f"<|{message.role}|>\n{message.content.replace('<|', '< |')}\n" for message in messages]
        return "".join(turns) + "<|assistant|>\n"

    def generate(self, prompt: str, options: GenerateOptions, cancel: Event | None = None) -> Generation:
        """See `Engine.generate`. All times are 0 and what a prompt shares with the one before is cached."""
        self._require_open()
        check_options(options)
        pieces = _PIECE.findall(prompt)
        if len(pieces) + options.max_tokens > self._context:
            raise ContextOverflowError(len(pieces), options.max_tokens, self._context)
        answer = self._answer(prompt)
        if options.choices and answer not in dict(options.choices):
            answer = max(options.choices, key=lambda choice: choice[1])[0]
        _check_grammar(options, answer)
        cached = _shared(self._previous, pieces[:-1])  # the last token is always evaluated
        self._previous = pieces
        self.prompts.append(prompt)
        return Generation(self._tokens(answer, options, cancel or Event(), len(pieces), cached))

    def close(self) -> None:
        """Further calls raise `EngineError`."""
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError(f"engine {self._name!r} is closed", hint="open it again")

    def _answer(self, prompt: str) -> str:
        if callable(self._script):
            return self._script(prompt)
        return self._script[min(len(self.prompts), len(self._script) - 1)]

    def _tokens(
        self, answer: str, options: GenerateOptions, cancel: Event, prompt_tokens: int, cached: int
    ) -> Generator[Token, None, GenerationResult]:
        stream, produced = TextStream(options.stop), 0
        reason: FinishReason = "stop"
        pieces = _PIECE.findall(answer)
        for at, piece in enumerate(pieces):
            if cancel.is_set() or produced == options.max_tokens:
                reason = "cancelled" if cancel.is_set() else "length"
                break
            produced += 1
            text = stream.push(piece.encode("utf-8", "replace"))
            if at == len(pieces) - 1:
                text += stream.finish()
            yield self._token(piece, at, text)
            if stream.stopped:
                break
        paths = [((number,), weight) for number, (_, weight) in enumerate(options.choices)]
        shares = Paths(paths).shares() if paths else ()
        return GenerationResult(reason, prompt_tokens, cached, produced, 0.0, 0.0, shares=shares)

    def _token(self, piece: str, at: int, text: str) -> Token:
        digest = hashlib.blake2b(f"{at} {piece}".encode("utf-8", "replace"), digest_size=8).digest()
        number = int.from_bytes(digest[:4], "little")
        probability = self._confidence ** (0.5 + digest[4] / 255)  # between the power of 0.5 and of 1.5
        other = (1 - probability) / _OTHERS
        return Token(
            id=number % 50_000,
            text=text,
            logprob=math.log(probability),
            entropy=-probability * math.log(probability) - _OTHERS * other * math.log(other),
            margin=max(0.0, math.log(probability / other)),
        )


def _check_grammar(options: GenerateOptions, answer: str) -> None:
    if options.grammar is not None:
        raise GrammarError("a fake engine cannot obey a grammar", hint="use a real engine, or no grammar")
    if options.json_schema is None:
        return
    for what, text in (("the JSON schema", options.json_schema), ("the scripted answer", answer)):
        try:
            json.loads(text)
        except ValueError as error:
            raise GrammarError(f"{what} is not JSON: {error}") from error


def _shared(previous: Sequence[str], pieces: Sequence[str]) -> int:
    """How many pieces two prompts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(previous, pieces, strict=False)))
