"""llama.cpp behind Python types: a loaded model with its context, and the choice of tokens.

The one place that knows ctypes and the C functions of llama-cpp-python's low-level module. It knows nothing of
prompts or text. Nothing here may be used by two threads at once; `engine_gguf` sees to that.
"""

from __future__ import annotations

import ctypes
import os
import platform
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import EngineError, GrammarError, MissingExtraError
from ..kernel_faces import flag, logits
from ..records import GenerateOptions
from .gbnf import check_grammar
from .json_schema import checked_schema
from .native_thread import NativeThread
from .profile import DEFAULT, Tuning

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

_ABORTED = 2  # what llama_decode returns then
_ERROR, _CONTINUED = 4, 5  # levels of ggml's log
_SPECIAL = 1 << 0 | 1 << 3  # LLAMA_TOKEN_ATTR_UNKNOWN and _CONTROL: what is parsed as a special token
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
# The converter lets a string hold control characters, and then it is no JSON. Naming what is allowed also keeps out
# byte sequences beyond the last character of Unicode.
_CHARACTER = (r'char ::= [^"\\]', r"char ::= [ !#-\[\]-~\u0080-\uD7FF\uE000-\U0010FFFF]")
_COLDEST = 1e-4  # below it the logits divided by the temperature overflow
_PENALTY_WINDOW = 64  # the last tokens that `repeat_penalty` looks at, as in llama.cpp

_complaints: deque[str] = deque(maxlen=3)


@cache
def library() -> Any:
    """llama-cpp-python's low-level module: started, and its log kept off standard error.

    Where another process keeps a core busy, the threads of GNU OpenMP wait for each other by spinning until the
    scheduler takes the core away, at each of a thousand steps a token: 0.2 tokens a second instead of 140
    (SmolLM2, two x86-64 cores). With 1,000 spins, some 15 microseconds, it is 18 to 30, for 2 % less when idle.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):  # elsewhere a spin is far shorter
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when the library is loaded
    try:
        import llama_cpp.llama_cpp as found
    except ImportError as error:
        raise MissingExtraError("running GGUF models", "gguf") from error
    module: Any = found
    level = 0

    def listen(at: int, text: bytes, _data: object) -> None:
        nonlocal level
        level = level if at == _CONTINUED else at
        if level == _ERROR:
            _complaints.append(text.decode("utf-8", "replace").strip())

    callback = module.llama_log_callback(listen)
    module.llama_log_set(callback, None)
    module.edge_log_callback = callback  # native code may call it for as long as the module lives
    module.llama_backend_init()
    return module


class LlamaModel:
    """A model, one context of it, and `seen`, the tokens whose keys and values that context holds."""

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int,
        gpu_layers: int,
        tuning: Tuning = DEFAULT,
        observer: Any = None,
    ) -> None:
        """Load `path`, whose header has been checked. Raises `EngineError` with llama.cpp's own words.

        `observer`, a `ggml_backend_sched_eval_callback`, is asked about every operation; it must not raise.
        """
        self._lib = lib = library()
        _complaints.clear()
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers, settings.load_mode = gpu_layers, lib.LLAMA_LOAD_MODE_MMAP
        model = lib.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), settings)
        if not model:
            raise EngineError(f"llama.cpp cannot load {path.name}: {_complaint()}")
        settings = lib.llama_context_default_params()
        self._batch = min(tuning.batch, context)
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, self._batch, self._batch
        if tuning.flash_attention is not None:
            settings.flash_attn_type = int(tuning.flash_attention)
        settings.type_k = settings.type_v = getattr(lib, f"GGML_TYPE_{tuning.cache_type}")
        settings.n_threads = settings.n_threads_batch = threads
        if observer is not None:
            settings.cb_eval = self._observer = observer  # kept alive as long as the context
        handle = lib.llama_init_from_model(model, settings)
        memory = handle and lib.llama_get_memory(handle)
        self._thread = NativeThread("edge-llama")
        self._free = weakref.finalize(self, _free, lib, handle, model, self._thread)
        self._free.atexit = False  # another thread may still be at work then, and the process ends anyway
        if not handle or not memory:
            self.close()
            what = f"a context of {context} tokens" if not handle else "text: it is not a language model"
            raise EngineError(f"llama.cpp cannot make {what} with {path.name}: {_complaint()}")
        self._context, self._memory, self.vocabulary = handle, memory, lib.llama_model_get_vocab(model)
        self.size = int(lib.llama_vocab_n_tokens(self.vocabulary))
        self.seen: list[int] = []
        self._pieces: dict[int, bytes] = {}
        self._stop = flag.Flag()
        self._token = (ctypes.c_int32 * 1)()
        self._single = lib.llama_batch(n_tokens=1, token=self._token)

    def close(self) -> None:
        """Free both; again does nothing. Nothing else may be called afterwards."""
        self._free()
        self._thread.join()

    # --- vocabulary -------------------------------------------------------------------------------------

    def tokenize(self, text: bytes) -> list[int]:
        """Tokens of UTF-8 text; what spells a special token becomes that token. None is added."""
        # A token has a byte at least, and some vocabularies put a space before the first.
        tokens = (ctypes.c_int32 * (len(text) + 8))()
        count = self._lib.llama_tokenize(self.vocabulary, text, len(text), tokens, len(tokens), False, True)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(text)} bytes")
        return tokens[:count]

    def begin(self) -> int | None:
        """The token that every prompt has to begin with, if one has to."""
        lib = self._lib
        return self._known(lib.llama_vocab_bos) if lib.llama_vocab_get_add_bos(self.vocabulary) else None

    def start(self) -> int | None:
        """A token that stands for an empty prompt."""
        begin = self._known(self._lib.llama_vocab_bos)
        return self._known(self._lib.llama_vocab_eos) if begin is None else begin

    def special(self) -> tuple[str, str]:
        """How the vocabulary spells the beginning and the end of a text, "" where it has none."""
        begin, end = self._known(self._lib.llama_vocab_bos), self._known(self._lib.llama_vocab_eos)
        return self._spelled(begin), self._spelled(end)

    def control_tokens(self) -> list[str]:
        """All texts that `tokenize` turns into special tokens."""
        attributes = self._lib.llama_vocab_get_attr
        return [self._spelled(at) for at in range(self.size) if attributes(self.vocabulary, at) & _SPECIAL]

    def is_end(self, token: int) -> bool:
        """Whether the model says with `token` that it has finished."""
        return bool(self._lib.llama_vocab_is_eog(self.vocabulary, token))

    def piece(self, token: int) -> bytes:
        """The bytes of a token in the answer; control tokens have none."""
        found = self._pieces.get(token)
        if found is None:
            buffer, size = ctypes.create_string_buffer(64), 64
            count = self._lib.llama_token_to_piece(self.vocabulary, token, buffer, size, 0, False)
            if count < 0:
                buffer, size = ctypes.create_string_buffer(-count), -count
                count = self._lib.llama_token_to_piece(self.vocabulary, token, buffer, size, 0, False)
            found = self._pieces[token] = buffer.raw[:count]
        return found

    def _known(self, which: Callable[[Any], int]) -> int | None:
        token = which(self.vocabulary)
        return None if token < 0 else token

    def _spelled(self, token: int | None) -> str:
        if token is None:
            return ""
        return bytes(self._lib.llama_vocab_get_text(self.vocabulary, token)).decode("utf-8", "replace")

    # --- evaluation -------------------------------------------------------------------------------------

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Forget what is beyond the longest prefix shared with `prompt`; return the length of what is kept.

        At least the last token is left to evaluate: its logits are what an answer starts from. Models whose memory
        cannot be cut (recurrent ones) forget everything.
        """
        shared = 0
        for old, new in zip(self.seen, prompt[:-1], strict=False):
            if old != new:
                break
            shared += 1
        # Always, for an interrupted evaluation may have left more behind than `seen` tells.
        if not self._lib.llama_memory_seq_rm(self._memory, 0, shared, -1):
            self._lib.llama_memory_clear(self._memory, True)
            shared = 0
        del self.seen[shared:]
        return shared

    def prefill(self, tokens: Sequence[int], stopped: Callable[[], bool]) -> bool:
        """Evaluate `tokens` after those seen. False where `stopped` became true before the end.

        An exception in the waiting thread, Ctrl-C above all, stops it too and is raised when it has stopped.
        """
        self._stop.set(False)
        return self._thread.run(lambda: self._evaluate(tokens), self._stop.set, stopped)

    def _evaluate(self, tokens: Sequence[int]) -> bool:
        lib = self._lib
        row = (ctypes.c_int32 * len(tokens))(*tokens)
        lib.llama_set_abort_callback(self._context, self._stop.callback, self._stop.address)
        try:
            for start in range(0, len(tokens), self._batch):
                count = min(self._batch, len(tokens) - start)
                first = ctypes.cast(ctypes.byref(row, start * ctypes.sizeof(ctypes.c_int32)), lib.llama_token_p)
                if self._stop.is_set() or not self._decode(lib.llama_batch(n_tokens=count, token=first)):
                    return False
                self.seen += tokens[start : start + count]
        finally:
            lib.llama_set_abort_callback(self._context, lib.ggml_abort_callback(), None)
        return True

    def advance(self, token: int) -> None:
        """Evaluate one token after those seen."""
        self._token[0] = token
        self._thread.run(lambda: self._decode(self._single))
        self.seen.append(token)  # not before: `seen` may lack what the memory holds, never the reverse

    def _decode(self, batch: Any) -> bool:
        code = self._lib.llama_decode(self._context, batch)
        if code and code != _ABORTED:
            self._lib.llama_memory_clear(self._memory, True)
            self.seen.clear()
            raise EngineError(f"llama.cpp fails to evaluate {batch.n_tokens} tokens (code {code}): {_complaint()}")
        return not code

    def row(self) -> Any:
        """The logits behind the last token evaluated: a pointer to `size` floats, good until the next one."""
        row = self._lib.llama_get_logits_ith(self._context, -1)
        if not row:
            raise EngineError("the model gives no logits", hint="use a language model")
        return row


class Sampler:
    """Chooses tokens of one answer as `options` say, and measures each from the raw logits.

    Greedy without penalty or grammar needs the kernel alone. With a grammar a token is chosen freely first, and
    among what the grammar allows only where it does not allow that one, as llama.cpp's own programs do.
    """

    def __init__(self, model: LlamaModel, options: GenerateOptions, prompt: Sequence[int]) -> None:
        """Raises `GrammarError` for a bad schema or grammar. `prompt` counts for the penalty on repetition."""
        self._model, self._lib = model, library()
        lib = self._lib
        text = options.grammar if options.json_schema is None else json_schema_to_gbnf(options.json_schema)
        self._grammar = None if text is None else _grammar(model, text)
        self._chain = None
        if options.temperature > 0 or options.repeat_penalty != 1.0:
            self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            for sampler in _samplers(lib, options, model.size):
                lib.llama_sampler_chain_add(self._chain, sampler)
            for token in prompt[-_PENALTY_WINDOW:]:
                lib.llama_sampler_accept(self._chain, token)
        weakref.finalize(self, _free_samplers, lib, self._grammar, self._chain).atexit = False
        self._ids = np.arange(model.size if text or self._chain else 0, dtype=np.int32)
        self._candidates = np.zeros(len(self._ids), _CANDIDATE)

    def choose(self) -> LogitsFigures:
        """The next token, as `chosen`, with its figures."""
        row = self._model.row()
        try:
            figures = logits.measure_at(row, self._model.size)
        except ValueError as error:
            raise EngineError(f"the model fails: {error}", hint="its file may be damaged") from error
        chosen = figures.best if self._chain is None else self._draw(row, constrained=False)
        if self._grammar is not None and not self._allows(chosen):
            chosen = self._draw(row, constrained=True)
        for sampler in (self._grammar, self._chain):
            if sampler is not None:
                self._lib.llama_sampler_accept(sampler, chosen)
        if chosen == figures.best:
            return figures
        return replace(figures, chosen=chosen, logprob=min(0.0, row[chosen] - figures.logsumexp))

    def _draw(self, row: Any, *, constrained: bool) -> int:
        candidates = self._candidates
        candidates["id"], candidates["logit"] = self._ids, np.ctypeslib.as_array(row, (self._model.size,))
        array = self._array(candidates)
        if constrained:
            self._lib.llama_sampler_apply(self._grammar, array)
            best = int(candidates["logit"].argmax())
            if candidates["logit"][best] == -np.inf:
                raise EngineError("the grammar allows no token that the model has", hint="loosen the grammar")
            if self._chain is None:
                return best
        self._lib.llama_sampler_apply(self._chain, array)
        if array.selected < 0:
            raise EngineError("llama.cpp selected no token")
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        candidate = np.zeros(1, _CANDIDATE)
        candidate["id"] = token
        self._lib.llama_sampler_apply(self._grammar, self._array(candidate))
        return bool(candidate["logit"][0] == 0.0)

    def _array(self, candidates: Any) -> Any:
        data = candidates.ctypes.data_as(self._lib.llama_token_data_p)
        return self._lib.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)


def json_schema_to_gbnf(schema: str) -> str:
    """The grammar of a JSON Schema document, by llama-cpp-python's converter. Raises `GrammarError`.

    Only what the converter really enforces is accepted; see `json_schema`.
    """
    from llama_cpp.llama_grammar import SchemaConverter

    content, make = checked_schema(schema), cast(Any, SchemaConverter)
    converter = make(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    converter._format_literal = _literal
    try:
        converter.visit(converter.resolve_refs(content, "schema"), "")
        return str(converter.format_grammar()).replace(*_CHARACTER)
    except Exception as error:  # it asserts, and looks up what is not there
        raise GrammarError(f"the JSON schema cannot be made a grammar: {error or type(error).__name__}") from error


def _literal(text: str) -> str:
    """A literal of the grammar. The converter's own leaves backslashes alone, so that a quoted quote breaks it."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _grammar(model: LlamaModel, text: str) -> Any:
    check_grammar(text)
    _complaints.clear()
    sampler = library().llama_sampler_init_grammar(model.vocabulary, text.encode("utf-8", "replace"), b"root")
    if not sampler:
        raise GrammarError(f"llama.cpp refuses the grammar: {_complaint()}")
    return sampler


def _samplers(lib: Any, options: GenerateOptions, size: int) -> list[Any]:
    """In llama.cpp's order. The seed avoids the value that means "at random"."""
    samplers = []
    if options.repeat_penalty != 1.0:
        samplers.append(lib.llama_sampler_init_penalties(size, _PENALTY_WINDOW, options.repeat_penalty, 0.0, 0.0))
    if options.temperature == 0:
        return [*samplers, lib.llama_sampler_init_greedy()]
    return [
        *samplers,
        lib.llama_sampler_init_top_k(max(0, min(options.top_k, size))),
        lib.llama_sampler_init_top_p(options.top_p, 1),
        lib.llama_sampler_init_min_p(options.min_p, 1),
        lib.llama_sampler_init_temp(max(options.temperature, _COLDEST)),
        lib.llama_sampler_init_dist(options.seed % 0xFFFFFFFF),
    ]


def _complaint() -> str:
    return "; ".join(_complaints) or "it gives no reason"


def _free(lib: Any, context: Any, model: Any, thread: NativeThread) -> None:
    def free() -> bool:
        if context:
            lib.llama_free(context)
        lib.llama_model_free(model)
        return True

    thread.end(free)  # there, so that it comes after whatever still computes


def _free_samplers(lib: Any, *samplers: Any) -> None:
    for sampler in samplers:
        if sampler is not None:
            lib.llama_sampler_free(sampler)
