"""What a language-model engine is: the protocol, the running generation, and the text that may be shown.

Both adapters (`engine_gguf`, `engine_onnx`) build on this. It knows nothing of llama.cpp or onnxruntime.
"""

from __future__ import annotations

import codecs
import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Protocol

from ..errors import ConfigError, EngineError, GrammarError
from ..records import GenerateOptions, GenerationResult, Message, Token


class Generation(Iterator[Token]):
    """A running generation: iterate for tokens, then read `result`. Closing it early frees the engine.

    >>> def two() -> Generator[Token, None, GenerationResult]:
    ...     yield Token(1, "a", -0.1, 0.2, 3.0)
    ...     return GenerationResult("stop", 5, 0, 1, 2.0, 1.0)
    >>> generation = Generation(two())
    >>> [token.text for token in generation], generation.result.finish_reason
    (['a'], 'stop')
    """

    def __init__(self, tokens: Generator[Token, None, GenerationResult], ready: Callable[[], bool] = bool) -> None:
        """`ready` says whether the next token is there already, as far as that is known."""
        self._tokens, self._ready = tokens, ready
        self._result: GenerationResult | None = None

    def __next__(self) -> Token:
        try:
            return next(self._tokens)
        except StopIteration as stop:
            if stop.value is not None:
                self._result = stop.value
            raise StopIteration from None

    @property
    def ready(self) -> bool:
        """Whether the next token, or the end, comes without waiting; False where that is not known."""
        return self._ready()

    @property
    def result(self) -> GenerationResult:
        """How it ended; raises `EngineError` while tokens are still to come."""
        if self._result is None:
            raise EngineError("the generation has not finished", hint="iterate over it to the end first")
        return self._result

    def close(self) -> None:
        """Stop now; the engine is free for the next prompt."""
        self._tokens.close()


class Engine(Protocol):
    """A loaded language model that serves one generation at a time."""

    @property
    def name(self) -> str:
        """The model's name as the user knows it."""

    @property
    def fingerprint(self) -> str:
        """Names the weights, an adapter's too: a SHA-256, hexadecimal. May take as long as reading the file."""

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may take together."""

    def count(self, text: str) -> int:
        """Exact number of tokens of `text` in a prompt."""

    def render(self, messages: Sequence[Message]) -> str:
        """The model's chat template applied, ending where the assistant's turn begins.

        Control tokens spelled out in a message's content are defused: they stay text.
        """

    def generate(self, prompt: str, options: GenerateOptions, cancel: Event | None = None) -> Generation:
        """Start generating. Setting `cancel` ends it at the next token, or within the prefill.

        The token by which the model ends its answer comes too: its text is what was held back, mostly nothing.
        Raises `ContextOverflowError` before any work when prompt and `max_tokens` do not fit, `GrammarError` when
        a schema, grammar or choice is bad or cannot be honoured, and `ConfigError` for options that cannot be used.
        """

    def close(self) -> None:
        """Free the model. Further calls raise `EngineError`."""


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. Raises `EngineError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}") from error


def adapted_fingerprint(model: str, adapter: str) -> str:
    """Of a model that runs with an adapter, from the fingerprints of both files."""
    return hashlib.sha256(f"{model} {adapter}".encode()).hexdigest()


def check_options(options: GenerateOptions) -> None:
    """Raise `ConfigError` for values that cannot be used, `GrammarError` for two of schema, grammar and choices.

    >>> check_options(GenerateOptions(temperature=-1.0))
    Traceback (most recent call last):
    ...
    edge_sdk.errors.ConfigError: temperature is -1.0; use 0 or more
    """
    if options.max_tokens < 1:
        raise ConfigError(f"max_tokens is {options.max_tokens}", hint="use 1 or more")
    stop: object = options.stop
    if isinstance(stop, str):  # each of its letters would end the answer
        raise ConfigError(f"stop is the text {stop!r}", hint="use a tuple of texts")
    for name in ("temperature", "top_p", "min_p", "repeat_penalty"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} is {value}", hint="use 0 or more")
    if options.repeat_penalty == 0:
        raise ConfigError("repeat_penalty is 0", hint="use 1 for none")
    if options.json_schema is not None and options.grammar is not None:
        raise GrammarError("both a JSON schema and a grammar are given", hint="use one of them")
    if options.choices and not (options.json_schema is None and options.grammar is None):
        raise GrammarError("both choices and a schema or grammar are given", hint="use one of them")
    for choice in options.choices:
        if not _is_choice(choice):
            raise ConfigError(f"{str(choice)[:60]!r} is no choice", hint="use pairs of a text and a finite weight")


def _is_choice(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], str) or not value[0]:
        return False
    return isinstance(value[1], int | float) and math.isfinite(value[1])


class TextStream:
    """Turns token bytes into text that may be shown at once: whole characters, and no part of a stop string.

    >>> stream = TextStream(("END",))
    >>> [stream.push(piece) for piece in (b"caf\\xc3", b"\\xa9 E", b"N", b"D more")]
    ['caf', 'é ', '', '']
    >>> stream.stopped, stream.finish()
    (True, '')
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Add the bytes of one token; return the text that has become safe to show."""
        return self._release(self._decoder.decode(piece), final=False)

    def finish(self) -> str:
        """End of generation: return what was held back."""
        return self._release(self._decoder.decode(b"", True), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        # Of several stop strings the one that ends first counts, however the text came in pieces.
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
