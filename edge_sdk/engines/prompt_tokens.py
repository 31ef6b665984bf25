"""What a GGUF model makes of text: messages to a prompt by its chat template, a prompt to tokens that fit.

Only the vocabulary is read, so any thread may ask while another one computes. Knows nothing of contexts or answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from ..errors import ContextOverflowError, EngineError
from ..model_files.gguf_header import GgufHeader
from ..records import Message
from .chat_template import ChatTemplate
from .llama import LlamaModel

_MAX_TEXT = 16 << 20  # bytes of a text; llama.cpp counts in 32 bits and slows down on long ones


class PromptTokens:
    """The template and the vocabulary of a loaded model. `close` it before the model."""

    def __init__(self, model: LlamaModel, header: GgufHeader, name: str) -> None:
        self._model, self._source, self._name = model, header.chat_template, name
        self._longest = max(1, header.longest_token)  # bytes
        self._reading, self._closed = threading.Lock(), False

    @contextmanager
    def reading(self) -> Iterator[LlamaModel]:
        """The model, which is not freed meanwhile. Raises `EngineError` when it is closed."""
        with self._reading:
            if self._closed:
                raise EngineError(f"{self._name} is closed")
            yield self._model

    def close(self) -> None:
        """When this returns nobody reads the vocabulary any more."""
        with self._reading:
            self._closed = True

    @cached_property
    def _template(self) -> ChatTemplate:
        with self.reading() as model:
            begin, end = model.special()
            control = model.control_tokens()
        return ChatTemplate(self._source, bos_token=begin, eos_token=end, control_tokens=control)

    def render(self, messages: Sequence[Message]) -> str:
        """See `Engine.render`; ChatML where the model has no template. Raises `TemplateError`."""
        return self._template.render(messages)

    def tokens(self, text: str) -> list[int]:
        """The tokens of `text` as a whole prompt, special ones too, and the first that the model wants.

        Raises `EngineError` for a text of more than 16 MiB, and for none where the model cannot begin with nothing.
        """
        raw = text.encode("utf-8", "replace")  # half a surrogate pair is not text; it becomes a question mark
        if len(raw) > _MAX_TEXT:
            raise EngineError(f"a text of {len(raw)} bytes is too long, the limit is {_MAX_TEXT}")
        with self.reading() as model:
            tokens, begin = model.tokenize(raw), model.begin()
            if begin is not None and tokens[:1] != [begin]:
                tokens.insert(0, begin)
            if not tokens and (start := model.start()) is not None:  # an answer needs something to start from
                tokens = [start]
        if not tokens:
            raise EngineError("the prompt is empty, and the model has no token to begin with")
        return tokens

    def least(self, text: str) -> int:
        """So many tokens at least `text` has, known without tokenizing it."""
        return -(-len(text.encode("utf-8", "replace")) // self._longest)

    def fitting(self, prompt: str, max_tokens: int, context: int) -> list[int]:
        """`tokens` of a prompt; raises `ContextOverflowError` where they and the answer exceed `context`."""
        if (least := self.least(prompt)) > context:  # too long whatever it says
            raise ContextOverflowError(least, max_tokens, context)
        tokens = self.tokens(prompt)
        if len(tokens) + max_tokens > context:
            raise ContextOverflowError(len(tokens), max_tokens, context)
        return tokens
