"""Answers that are drafted and verified: those of plain decoding, token by token, and what they leave behind."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from gguf_files import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from edge_sdk.engines import decoding
from edge_sdk.engines.decoding import Decoding, Speculation
from edge_sdk.engines.draft_length import DraftLength
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.kernel_faces import logits
from edge_sdk.records import GenerateOptions, Message

END = 0


class Eager(DraftLength):
    """Drafts whatever can be drafted, of any length."""

    def choose(self, match: int, most: int) -> int:
        return min(most, 7) if match else 0

    def batch(self, size: int, seconds: float) -> None:
        assert 2 <= size <= 8
        assert seconds >= 0


# --- on a model that is a function of its tokens ----------------------------------------------------


class Function:
    """A model whose next token follows from the last two, and its sampler.

    Where the best two are close, a batch takes the second, and one of `wrong` tokens or more always does: neither
    must be believed. Where a plain answer may come in groups, they are of up to `group` tokens.
    """

    greedy = forgets = True

    def __init__(self, seed: int, prompt: Sequence[int], batch: int, wrong: int = 99, group: int = 0) -> None:
        self.seed, self.seen, self.batch, self.wrong, self.group = seed, list(prompt), batch, wrong, group
        self.ahead: list[int] = []
        self.together, self.threads = 1, 1

    def advance(self, token: int, draft: Sequence[int] = ()) -> None:
        assert not self.ahead, "something of an earlier draft is still there"
        assert 1 + len(draft) <= self.batch
        assert END not in draft
        self.seen.append(token)
        self.ahead, self.together = list(draft), 1 + len(draft)

    def advance_greedily(self, token: int, most: int, seconds: float) -> list[Any]:
        assert most > 0 < seconds
        found: list[Any] = []
        while len(found) < min(most, self.group) and token != END:
            self.advance(token)
            found.append(self.choose())
            token = found[-1].chosen
        return found

    def keep(self, token: int) -> None:
        assert self.ahead.pop(0) == token
        self.seen.append(token)

    def cut(self, length: int) -> None:
        del self.seen[length:]
        self.ahead = []

    def is_end(self, token: int) -> bool:
        return token == END

    def choose(self) -> Any:
        pick = random.Random(hash((self.seed, *self.seen[-2:])))
        margin = pick.choice((0.0004, 5.0, 5.0, 5.0))
        best, second = pick.sample(range(8), 2)
        believable = self.together == 1 or (self.together < self.wrong and margin > 0.02)
        chosen = best if believable else second
        return logits.LogitsFigures(chosen, chosen, -0.1, 0.2, margin, 1.0 if self.together < self.wrong else 1.1)


def answer(model: Function, most: int, speculation: Speculation | None) -> tuple[list[int], Decoding]:
    """Tokens to the end, or to so many."""
    answering = Decoding(model, model, list(model.seen), speculation)  # type: ignore[arg-type]
    tokens: list[int] = []
    while len(tokens) < most and tokens[-1:] != [END]:
        tokens.append(answering.next(most - len(tokens)).chosen)
    return tokens, answering


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 7), min_size=1, max_size=60),
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(2, 9),
)
def test_a_drafted_answer_is_the_plain_one(seed: int, prompt: list[int], most: int, batch: int, wrong: int) -> None:
    drafted, plain = Function(seed, prompt, batch, wrong), Function(seed, prompt, batch)
    tokens, answering = answer(drafted, most, Speculation(Eager()))
    assert tokens == answer(plain, most, None)[0]
    assert drafted.seen == plain.seen  # not the last one given, and nothing that was only drafted
    answering.end(len(tokens))
    assert (drafted.seen, drafted.ahead) == (plain.seen, [])
    assert answering.accepted <= min(answering.drafted, len(tokens))


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 7), min_size=1, max_size=9),
    st.integers(1, 40),
    st.integers(1, 9),
)
def test_a_plain_answer_in_groups_is_that_token_by_token(
    seed: int, prompt: list[int], most: int, group: int
) -> None:
    grouped, plain = Function(seed, prompt, 1, group=group), Function(seed, prompt, 1)
    tokens, answering = answer(grouped, most, None)
    assert tokens == answer(plain, most, None)[0]
    assert grouped.seen == plain.seen
    left, answering = answer(grouped := Function(seed, prompt, 1, group=group), max(1, most // 2), None)
    assert grouped.seen[: len(prompt) + len(left) - 1] == [*prompt, *left[:-1]]  # and what was chosen beyond that
    answering.end(len(left))
    assert (grouped.seen, answering.at_hand) == ([*prompt, *left[:-1]], False)


def test_an_answer_that_goes_round_is_mostly_accepted() -> None:
    model = Function(1, [1], 512)
    model.choose = lambda: logits.LogitsFigures(t := model.seen[-1] % 5 + 1, t, -0.1, 0.2, 5.0, 1.0)  # type: ignore[method-assign]
    tokens, answering = answer(model, 50, Speculation(Eager()))
    assert tokens[:6] == [2, 3, 4, 5, 1, 2]
    assert answering.accepted > 30


# --- on a tiny model that llama.cpp runs ------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=1024)


@pytest.fixture(scope="module")
def plain(tiny: Path) -> Iterator[GgufEngine]:
    with GgufEngine.open(tiny, threads=1, speculation=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def eager(tiny: Path) -> Iterator[GgufEngine]:
    with GgufEngine.open(tiny, threads=1) as opened:
        opened._speculation = Speculation(Eager())
        yield opened


def held(engine: GgufEngine) -> int:
    """Tokens in llama.cpp's memory."""
    lib, model = engine._model._lib, engine._model
    return int(lib.llama_memory_seq_pos_max(model._memory, 0)) + 1


TEXTS = st.lists(st.sampled_from(["the cat", " and the hat", "x", " in", " rain, ", "é"]), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(1, 60), st.lists(st.text("aehtn ", min_size=1, max_size=2), max_size=2))
def test_text_and_end_are_those_of_plain_decoding(
    plain: GgufEngine, eager: GgufEngine, words: list[str], most: int, stop: list[str]
) -> None:
    options = GenerateOptions(max_tokens=most, stop=tuple(stop))
    ours, theirs = (engine.generate("".join(words), options) for engine in (eager, plain))
    mine, its = list(ours), list(theirs)
    assert [(token.id, token.text) for token in mine] == [(token.id, token.text) for token in its]
    for one, other in zip(mine, its, strict=True):
        assert (one.logprob, one.entropy, one.margin) == pytest.approx(
            (other.logprob, other.entropy, other.margin), abs=1e-2
        )
    assert ours.result.finish_reason == theirs.result.finish_reason
    assert eager._model.seen == plain._model.seen
    assert held(eager) == len(eager._model.seen)


PROMPT = "the cat and the hat, " * 3


def test_a_repeating_answer_is_drafted_and_says_so(plain: GgufEngine, eager: GgufEngine) -> None:
    generation = eager.generate(PROMPT, GenerateOptions(max_tokens=60))
    assert len(list(generation)) == 60
    assert 10 < generation.result.accepted_tokens <= generation.result.drafted_tokens
    sampled = eager.generate(PROMPT, GenerateOptions(max_tokens=60, temperature=0.5))
    list(sampled)
    penalised = eager.generate(PROMPT, GenerateOptions(max_tokens=60, repeat_penalty=1.1))
    list(penalised)
    constrained = eager.generate(PROMPT, GenerateOptions(max_tokens=60, grammar='root ::= "ab"*'))
    list(constrained)
    alone = plain.generate(PROMPT, GenerateOptions(max_tokens=60))
    list(alone)
    assert {each.result.drafted_tokens for each in (sampled, penalised, constrained, alone)} == {0}


@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
@pytest.mark.parametrize("given", [1, 20, 27, 30, 31, 32, 33])
def test_an_answer_may_end_anywhere(plain: GgufEngine, eager: GgufEngine, given: int, how: str) -> None:
    cancel = Event()
    generation = eager.generate(PROMPT, GenerateOptions(max_tokens=60), cancel)
    tokens = [next(generation).id for _ in range(given)]
    if how == "cancel":
        cancel.set()
        assert list(generation) == []
        assert (generation.result.finish_reason, generation.result.completion_tokens) == ("cancelled", given)
    elif how == "close":
        generation.close()
    del generation
    assert eager._model.seen == eager.tokens(PROMPT) + tokens[:-1]
    assert held(eager) == len(eager._model.seen)
    following = eager.generate(PROMPT + "so", GenerateOptions(max_tokens=20))
    assert [token.id for token in following] == [
        token.id for token in plain.generate(PROMPT + "so", GenerateOptions(max_tokens=20))
    ]


def test_batches_that_say_something_else_are_never_believed(
    plain: GgufEngine, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_SAME", -1.0)
    with GgufEngine.open(tiny, threads=1) as opened:
        opened._speculation = Speculation(Eager())
        generation = opened.generate(PROMPT, GenerateOptions(max_tokens=60))
        tokens = [token.id for token in generation]
    assert tokens == [token.id for token in plain.generate(PROMPT, GenerateOptions(max_tokens=60))]
    assert generation.result.drafted_tokens == 0
    assert opened._speculation.trust.largest(200, 1) == 1


def test_a_close_decision_is_made_alone(
    plain: GgufEngine, eager: GgufEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_CLOSE", float("inf"))
    generation = eager.generate(PROMPT, GenerateOptions(max_tokens=40))
    assert [token.id for token in generation] == [
        token.id for token in plain.generate(PROMPT, GenerateOptions(max_tokens=40))
    ]
    assert (generation.result.drafted_tokens > 0, generation.result.accepted_tokens) == (True, 0)


def test_a_memory_that_cannot_be_cut_holds_the_same_in_the_end(tiny: Path, plain: GgufEngine) -> None:
    with GgufEngine.open(tiny, threads=1) as opened:
        opened._speculation = Speculation(Eager())
        lib = opened._model._lib
        opened._model._lib = _Refusing(lib)
        generation = opened.generate(PROMPT, GenerateOptions(max_tokens=40))
        assert [token.id for token in generation] == [
            token.id for token in plain.generate(PROMPT, GenerateOptions(max_tokens=40))
        ]
        assert generation.result.drafted_tokens > 0
        opened._model._lib = lib
        assert held(opened) == len(opened._model.seen)


class _Refusing:
    """llama.cpp with a memory of which no part can be removed."""

    def __init__(self, lib: object) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> object:
        return (lambda *_: False) if name == "llama_memory_seq_rm" else getattr(self._lib, name)


def test_a_batch_is_no_larger_than_the_context_allows(tiny: Path, plain: GgufEngine) -> None:
    from edge_sdk.engines.profile import Tuning

    with GgufEngine.open(tiny, threads=1, tuning=Tuning(batch=4)) as opened:
        opened._speculation = Speculation(Eager())
        generation = opened.generate(PROMPT, GenerateOptions(max_tokens=40))
        tokens = [token.id for token in generation]
        assert generation.result.accepted_tokens > 0
    assert tokens == [token.id for token in plain.generate(PROMPT, GenerateOptions(max_tokens=40))]


# --- on SmolLM2 -------------------------------------------------------------------------------------

PASSAGE = (
    "The harbour of Tarn was built between 1871 and 1879 by the engineer Elsa Brandt. Its northern pier is 412 "
    "metres long and carries a lighthouse of grey granite. In the winter of 1903 a storm broke the southern pier, "
    "and it was not repaired before 1911, when the fishing fleet had grown to ninety boats."
)


@pytest.mark.model
@pytest.mark.parametrize(
    "question",
    ["Who built the harbour of Tarn?", "What happened in the winter of 1903?", "How long is the northern pier?"],
)
def test_quoting_answers_are_those_of_plain_decoding(smollm2_path: Path, question: str) -> None:
    ask = "Quote the sentence of the text that answers the question, word for word."
    options = GenerateOptions(max_tokens=40)
    answers, drafted = [], 0
    for speculation in (False, True):
        with GgufEngine.open(smollm2_path, context=512, threads=1, speculation=speculation) as engine:
            if speculation:
                engine._speculation = Speculation(Eager())
            prompt = engine.render([Message("system", ask), Message("user", f"{PASSAGE}\n\nQuestion: {question}")])
            generation = engine.generate(prompt, options)
            answers.append([token.id for token in generation])
            drafted += generation.result.accepted_tokens
    assert answers[0] == answers[1]
    assert drafted > 2
