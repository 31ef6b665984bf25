"""llama.cpp's samplers behind Python types: the choice of tokens, and the grammars that limit it.

Each token is measured from the raw logits by our kernel. Knows nothing of prompts or text; like the model it is of,
a sampler may not be used by two threads at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import EngineError, GrammarError
from ..kernel_faces import logits
from ..records import GenerateOptions
from .gbnf import check_grammar
from .json_schema import checked_schema
from .llama import LlamaModel
from .llama_library import complaint, complaints, library
from .paths import Paths

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
# The converter lets a string hold control characters, and then it is no JSON. Naming what is allowed also keeps out
# byte sequences beyond the last character of Unicode, and halves of characters, of which two would count as one.
_HEX = " [0-9a-fA-F]"
_CHARACTERS = (
    (r'char ::= [^"\\]', r"char ::= [ !#-\[\]-~\u0080-\uD7FF\uE000-\U0010FFFF]"),
    (f'"u"{_HEX * 4})', f'"u" ([0-9a-ce-fA-CE-F]{_HEX * 3} | [dD] [0-7]{_HEX * 2}))'),
)
_COLDEST = 1e-4  # below it the logits divided by the temperature overflow
_END = -1  # of a path: any token that ends an answer
_PENALTY_WINDOW = 64  # the last tokens that `repeat_penalty` looks at, as in llama.cpp


class Sampler:
    """Chooses tokens of one answer as `options` say, and measures each from the raw logits.

    Greedy without penalty or grammar needs the kernel alone. With a grammar a token is chosen freely first, and
    among what the grammar allows only where it does not allow that one, as llama.cpp's own programs do. Of choices
    the best is taken branch by branch, whatever the temperature (see `Paths`).
    """

    def __init__(self, model: LlamaModel, options: GenerateOptions, prompt: Sequence[int]) -> None:
        """Raises `GrammarError` for what cannot be obeyed. `prompt` counts for the penalty on repetition."""
        self._model, self._lib = model, library()
        lib = self._lib
        text = options.grammar if options.json_schema is None else json_schema_to_gbnf(options.json_schema)
        self._grammar = None if text is None else _grammar(model, text)
        self._paths, self._chain = _paths(model, options) if options.choices else None, None
        self._ends = model.ends() if options.choices else ()
        if options.choices and not self._ends:
            raise GrammarError("the model has no token that ends an answer, so it cannot choose one")
        if self._paths is None and (options.temperature > 0 or options.repeat_penalty != 1.0):
            self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            for sampler in _samplers(lib, options, model.size):
                lib.llama_sampler_chain_add(self._chain, sampler)
            for token in prompt[-_PENALTY_WINDOW:]:
                lib.llama_sampler_accept(self._chain, token)
        weakref.finalize(self, _free_samplers, lib, self._grammar, self._chain).atexit = False
        self._ids = np.arange(model.size if text or self._chain else 0, dtype=np.int32)
        self._candidates = np.zeros(len(self._ids), _CANDIDATE)

    @property
    def greedy(self) -> bool:
        """Whether the best token is always the one chosen."""
        return self._chain is None and self._grammar is None and self._paths is None

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each choice its probability, as far as the answer has come; none where there are no choices."""
        return self._paths.shares() if self._paths is not None else ()

    def choose(self, row: Any = None) -> LogitsFigures:
        """The next token, as `chosen`, with its figures; from the model's row of logits unless another is given."""
        row = self._model.row() if row is None else row
        try:
            figures = logits.measure_at(row, self._model.size)
        except ValueError as error:
            raise EngineError(f"the model fails: {error}", hint="its file may be damaged") from error
        if self._paths is not None:
            ends = sorted(self._ends, key=lambda token: -row[token])  # the likeliest stands for all

            def logprob(token: int) -> float:
                return float(min(0.0, row[ends[0] if token == _END else token] - figures.logsumexp))

            step = self._paths.take(logprob)
            chosen = ends[0] if step.token == _END else step.token
            own = logprob(step.token)
            return replace(figures, chosen=chosen, logprob=own, entropy=step.entropy, margin=step.margin)
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
    definitions = content.get("$defs", {})
    # Each is made a rule of that name here: the converter would look for references in values and in names, and go
    # as deep as one definition refers to the next.
    converter._refs_being_resolved = {f"#/$defs/{name}" for name in definitions}
    try:
        for name, part in (*definitions.items(), ("answer", content)):
            if (made := converter.visit(part, name)) != name:
                converter._rules[name] = made
        converter._rules["root"] = "answer"  # a property without a name would else be called so
        text = str(converter.format_grammar())
    except Exception as error:  # it asserts, and looks up what is not there
        raise GrammarError(f"the JSON schema cannot be made a grammar: {error or type(error).__name__}") from error
    for converted, ours in _CHARACTERS:
        text = text.replace(converted, ours)
    return text


def _literal(text: str) -> str:
    """A literal of the grammar. The converter's own leaves backslashes alone, so that a quoted quote breaks it."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _grammar(model: LlamaModel, text: str) -> Any:
    check_grammar(text)
    complaints.clear()
    sampler = library().llama_sampler_init_grammar(model.vocabulary, text.encode("utf-8", "replace"), b"root")
    if not sampler:
        raise GrammarError(f"llama.cpp refuses the grammar: {complaint()}")
    return sampler


def _paths(model: LlamaModel, options: GenerateOptions) -> Paths:
    texts = [(text.encode("utf-8", "replace"), weight) for text, weight in options.choices]
    return Paths([((*model.tokenize_inside(text), _END), weight) for text, weight in texts])


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


def _free_samplers(lib: Any, *samplers: Any) -> None:
    for sampler in samplers:
        if sampler is not None:
            lib.llama_sampler_free(sampler)
