"""The engine for ONNX decoders, so that an install without llama.cpp still answers: a graph with a KV cache.

It reads what transformers and optimum export: `past_key_values.N.key` in, `present.N.key` out, `tokenizer.json`,
`config.json` and the chat template beside them. It knows nothing of documents or prompts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kernels.logits import measure

from ..device import default_threads
from ..errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    GrammarError,
)
from ..model_files.onnx_session import OnnxFile, OnnxSession, TensorSpec, find_model
from ..model_files.tokenizer import Tokenizer
from ..model_files.transformers_config import DecoderConfig
from ..records import FinishReason, GenerateOptions, GenerationResult, Message, Token
from .chat_template import ChatTemplate
from .engine import Generation, TextStream, check_options, file_fingerprint
from .sampling import Sampler

_MAX_TEXT = 4 << 20  # characters to tokenize at once: seconds, and some hundred megabytes
_PREFILL_TOKENS = 128  # of one run; cancelling is looked at in between
_LOGIT_BYTES = 16 << 20  # of one run: a large vocabulary makes the runs of a prefill shorter
# Tokens that end a turn in the usual chat formats: they do, even where the settings forget one (as in llama.cpp).
_ENDS = {"<|im_end|>", "<|end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"}
_ENDS |= {"</s>", "<eos>"}
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


class OnnxEngine:
    """A decoder in onnxruntime; implements `edge_sdk.engines.engine.Engine`.

    JSON schemas and grammars are refused with `GrammarError`: this engine cannot constrain its output.
    """

    def __init__(
        self,
        name: str,
        decoder: CachedDecoder,
        tokenizer: Tokenizer,
        config: DecoderConfig,
        context: int,
        fingerprint: Callable[[], str],
    ) -> None:
        """Use `open`; this takes what it has loaded."""
        self._fingerprint = fingerprint
        self._name, self._tokenizer = name, tokenizer
        self._context = min(context, config.positions or context)
        special = tokenizer.special_spellings()
        self._template = ChatTemplate(
            config.template, bos_token=config.begin_text, eos_token=config.end_text, control_tokens=sorted(special)
        )
        spelled = {config.end_text, *(_ENDS & special)}
        self._ends = config.end_ids | {at for at in map(tokenizer.id, spelled) if at is not None}
        self._begin = tokenizer.id(config.begin_text) if config.adds_begin else None
        self._decoder: CachedDecoder | None = decoder
        self._busy = Lock()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        name: str | None = None,
        context: int | None = None,
        threads: int | None = None,
        sha256: str | None = None,
    ) -> Self:
        """Load a folder: one `*.onnx`, `tokenizer.json`, and as far as there are any, its settings.

        `context` is at most what `config.json` allows, and 4,096 unless given; `threads` follows the device. Raises
        `ModelNotFoundError`, `ModelDamagedError`, and `EngineError` for a model that is no such decoder.
        `sha256` is that of the `*.onnx` file, where it is known.
        """
        threads = default_threads() if threads is None else threads
        context = 4096 if context is None else context
        if threads < 1 or context < 1:
            raise ConfigError(f"{threads} threads and a context of {context} tokens", hint="use 1 or more of each")
        name = name or directory.name
        tokenizer = Tokenizer.open(directory / "tokenizer.json")
        config = DecoderConfig.read(directory)
        path = find_model(directory)
        decoder = CachedDecoder(name, OnnxSession.open(path, threads=threads), config)
        return cls(name, decoder, tokenizer, config, context, lambda: sha256 or file_fingerprint(path))

    @property
    def name(self) -> str:
        """The model's name as the user knows it."""
        return self._name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, hexadecimal."""
        return self._fingerprint()

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may take together."""
        return self._context

    def count(self, text: str) -> int:
        """Exact number of tokens that `generate` would evaluate for `text` as the whole prompt.

        That includes the token that some models want at the beginning. Raises `EngineError` for a text of more
        than 4 Mi characters.
        """
        return len(self._tokens(text))

    def render(self, messages: Sequence[Message]) -> str:
        """The model's chat template applied, or ChatML where it has none; see `Engine.render`."""
        self._loaded()
        return self._template.render(messages)

    def generate(self, prompt: str, options: GenerateOptions, cancel: Event | None = None) -> Generation:
        """Start generating; see `Engine.generate`. All of `prompt` is tokenized with special tokens.

        The engine is taken when the first token is asked for and free again when the generation ends, is closed or
        is dropped; another one meanwhile raises `EngineError`. The token with which the model ends its answer comes
        too, its text empty but for what was held back.
        """
        check_options(options)
        if options.json_schema is not None or options.grammar is not None or options.choices:
            raise GrammarError(
                f"{self._name} runs in onnxruntime, which cannot hold its output to a schema, grammar or choices",
                hint="use a GGUF model",
            )
        if len(prompt) > 16 * self.context and len(prompt) > self._tokenizer.longest * self.context:
            least = -(-len(prompt) // self._tokenizer.longest)  # too long whatever it says, so it is not tokenized
            raise ContextOverflowError(least, options.max_tokens, self.context)
        tokens = self._tokens(prompt)
        if not tokens:
            raise EngineError("the prompt is empty")
        if len(tokens) + options.max_tokens > self.context:
            raise ContextOverflowError(len(tokens), options.max_tokens, self.context)
        return Generation(self._run(tokens, options, Sampler(options), cancel or Event()))

    def close(self) -> None:
        """Free the model; a running generation ends with `EngineError`. Again does nothing."""
        self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tokens(self, text: str) -> list[int]:
        self._loaded()
        if len(text) > _MAX_TEXT:
            raise EngineError(f"a text of {len(text)} characters is too long, the limit is {_MAX_TEXT}")
        tokens = self._tokenizer.encode(text)
        if self._begin is not None and tokens[:1] != [self._begin]:
            tokens.insert(0, self._begin)
        return tokens

    def _loaded(self) -> CachedDecoder:
        if self._decoder is None:
            raise EngineError(f"{self._name} is closed")
        return self._decoder

    def _run(
        self, prompt: list[int], options: GenerateOptions, sampler: Sampler, cancel: Event
    ) -> Generator[Token, None, GenerationResult]:
        if not self._busy.acquire(blocking=False):
            raise EngineError(f"{self._name} is busy with another generation", hint="close that one first")
        try:
            prefill, decode, produced = _Stopwatch(), _Stopwatch(), 0
            with prefill:
                cached = self._loaded().keep_prefix(prompt)

            def result(reason: FinishReason) -> GenerationResult:
                return GenerationResult(
                    reason, len(prompt), cached, produced, prefill.milliseconds, decode.milliseconds
                )

            logits = np.empty(0, np.float32)
            for part in self._loaded().parts(prompt[cached:]):
                if cancel.is_set():
                    return result("cancelled")
                with prefill:
                    logits = self._loaded().feed(part)
            stream, history = TextStream(options.stop), list(prompt)
            while not cancel.is_set():
                with decode:
                    if produced:
                        logits = self._loaded().feed(history[-1:])
                    chosen = sampler.choose(logits, history)
                    figures = measure(logits, chosen)
                history.append(chosen)
                produced += 1
                ended = chosen in self._ends
                text = "" if ended else stream.push(self._tokenizer.piece(chosen))
                last = ended or stream.stopped or produced == options.max_tokens
                text += stream.finish() if last else ""
                yield Token(chosen, text, figures.logprob, figures.entropy, figures.margin)
                if last:
                    return result("stop" if ended or stream.stopped else "length")
            return result("cancelled")
        finally:
            self._busy.release()


# --- the graph --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """The tokens that a decoder has read, and their keys and values by input name."""

    tokens: list[int]
    past: Mapping[str, Any]


class CachedDecoder:
    """A decoder graph together with the keys and values of the tokens that it has read.

    A dynamically quantized graph is given one token at a time: it rounds the activations of a run by the
    largest of them, so tokens that share a run spoil each other. (MiniMind2-small reads English at 4.5 nats a
    token one by one, 5.8 in runs of 64, 6.7 in runs of 128.) Then, too, a reused prefix equals a cold one exactly.
    """

    def __init__(self, name: str, session: OnnxSession, config: DecoderConfig) -> None:
        self._name, self._session = name, session
        past = {at: spec for at, spec in session.inputs.items() if _PAST.fullmatch(at)}
        self._outputs = ["logits", *(at.replace("past_key_values", "present") for at in past)]
        known = {"input_ids", "attention_mask", "position_ids", "use_cache_branch", "num_logits_to_keep", *past}
        missing = sorted({"input_ids", *self._outputs} - {*session.inputs, *session.outputs})
        unknown = sorted(set(session.inputs) - known)
        if not past or missing or unknown:
            what = f"wants {unknown[0]}" if unknown else f"has no {missing[0] if missing else 'past_key_values'}"
            raise EngineError(f"{name} is not a decoder with a KV cache that can be run: it {what}")
        empty = {at: np.zeros(_past_shape(name, spec, config), spec.dtype) for at, spec in past.items()}
        self._nothing = self._seen = _Seen([], empty)
        vocabulary = self.feed([0]).size  # a first run, so that a wrong model fails here
        self._seen = self._nothing
        self._run_tokens = _run_tokens(session.file, vocabulary)

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Forget what was read beyond the longest prefix shared with `prompt`; return that prefix's length.

        At least the last token of the prompt is left to feed: its logits are what a generation starts from.
        """
        seen = self._seen
        shared = 0
        for old, new in zip(seen.tokens, prompt[:-1], strict=False):
            if old != new:
                break
            shared += 1
        if shared == 0:
            self._seen = self._nothing
        elif shared < len(seen.tokens):
            past = {at: _first(value, shared) for at, value in seen.past.items()}
            self._seen = _Seen(seen.tokens[:shared], past)
        return shared

    def parts(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Pieces of a prompt that are fed one after the other."""
        return (tokens[at : at + self._run_tokens] for at in range(0, len(tokens), self._run_tokens))

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read `tokens` after those before; return the logits [vocabulary] behind the last. All or nothing."""
        seen = self._seen
        total = len(seen.tokens) + len(tokens)
        feeds = {
            "input_ids": np.array([tokens]),
            "attention_mask": np.ones((1, total)),
            "position_ids": np.arange(len(seen.tokens), total)[None],
            "use_cache_branch": np.array([bool(seen.tokens)]),
            "num_logits_to_keep": np.array(1),
        }
        declared = {at: feeds[at].astype(spec.dtype) for at, spec in self._session.inputs.items() if at in feeds}
        logits, *present = self._session.run(self._outputs, {**declared, **seen.past})
        rows = logits.numpy()
        if rows.ndim != 3 or not rows.size:
            raise EngineError(f"{self._name} gave logits of shape {list(rows.shape)}")
        self._seen = _Seen([*seen.tokens, *tokens], dict(zip(seen.past, present, strict=True)))
        return np.array(rows[0, -1], np.float32)


def _first(value: Any, count: int) -> NDArray[Any]:
    """The keys or values of the first `count` tokens, from native memory or from an earlier cut."""
    whole = value if isinstance(value, np.ndarray) else value.numpy()
    return np.ascontiguousarray(whole[:, :, :count])


def _past_shape(name: str, spec: TensorSpec, config: DecoderConfig) -> tuple[int, int, int, int]:
    """[1, key-value heads, 0, head size]; what the graph leaves open comes from `config.json`."""
    if len(spec.shape) != 4 or spec.shape[2] is not None:
        raise EngineError(f"{name} keeps {spec.name} as {list(spec.shape)}, not as [batch, heads, past, size]")
    heads, size = spec.shape[1] or config.heads, spec.shape[3] or config.head_size
    if not heads or not size:
        raise EngineError(f"{name} does not say the shape of {spec.name}", hint="its config.json may be missing")
    return 1, heads, 0, size


def _run_tokens(file: OnnxFile, vocabulary: int) -> int:
    if file.quantizes_activations:
        return 1
    return min(_PREFILL_TOKENS, max(16, _LOGIT_BYTES // (4 * vocabulary)))


class _Stopwatch:
    """Adds up the time spent within it."""

    def __init__(self) -> None:
        self.milliseconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.milliseconds += (time.perf_counter() - self._started) * 1000.0
