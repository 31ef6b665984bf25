"""Many generations at once on a tiny model that llama.cpp really runs: the answers of `GgufEngine`, each alone."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from failing_llama import failing
from gguf_files import tiny_llama
from lora_files import tiny_adapter

pytest.importorskip("llama_cpp")

from edge_sdk.engines import batch_engine, batch_worker, sequences
from edge_sdk.engines.batch_engine import BatchEngine
from edge_sdk.engines.engine import Engine, Generation
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.llama import LlamaModel
from edge_sdk.engines.llama_sampler import Sampler
from edge_sdk.engines.memory import estimate_memory, room
from edge_sdk.engines.sequences import SequenceContext
from edge_sdk.errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    GrammarError,
    ModelDamagedError,
    ModelNotFoundError,
    TemplateError,
)
from edge_sdk.model_files.gguf_header import read_header
from edge_sdk.records import GenerateOptions, Message, Token
from kernels import library
from kernels.logits import LogitsFigures

needs_c = pytest.mark.skipif(
    library.load("edge_greedy") is None, reason="the C kernels are not built; `make install` does where it can"
)

SYSTEM = "the rhine flows through basel and on to the sea; "
PROMPTS = tuple(f"{SYSTEM}{end}" for end in ("a comet", "the hat", "an inn", "", "and the rain " * 9, "a"))
TEN = GenerateOptions(max_tokens=10)
LONG = "the rain and the sea and " * 600
DEADLINE = 30.0  # seconds after which a thread is given up as stuck


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("batches") / "tiny.gguf", context=16_384)


@pytest.fixture(params=[2047, 2048], ids=["shared", "apart"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[BatchEngine]:
    """In cells that are shared, or with cells for every sequence."""
    with BatchEngine.open(tiny, context=512, cells=request.param, sequences=4, threads=1) as opened:
        yield opened


@pytest.fixture
def roomy(tiny: Path) -> Iterator[BatchEngine]:
    """With a context in which a prefill takes many polls."""
    with BatchEngine.open(tiny, context=16_384, sequences=2, threads=1) as opened:
        yield opened


def ids(generation: Generation) -> list[int]:
    return [token.id for token in generation]


def text(generation: Generation) -> str:
    return "".join(token.text for token in generation)


def one_by_one(path: Path, prompts: tuple[str, ...], options: GenerateOptions = TEN) -> list[list[Token]]:
    with GgufEngine.open(path, context=512, threads=1) as opened:
        return [list(opened.generate(prompt, options)) for prompt in prompts]


def alike(found: list[Token], expected: list[Token], *, drawn: bool = False) -> None:
    """Equal up to where two tokens are about as likely; equal figures as far as that.

    A token that is `drawn` by chance may be the next one where the number drawn lies between two.
    """
    for at, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        if ours.id != theirs.id:
            assert at if drawn else theirs.margin < 0.02
            return
        figures = (ours.logprob, ours.entropy, ours.margin)
        assert figures == pytest.approx((theirs.logprob, theirs.entropy, theirs.margin), abs=0.02)
    assert len(found) == len(expected)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; as long as a stuck one would take, it fails."""
    ends = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < ends, "it never comes"
        time.sleep(0.001)


# --- answers ----------------------------------------------------------------------------------------


def test_it_is_an_engine(engine: BatchEngine, tiny: Path) -> None:
    used: Engine = engine
    with GgufEngine.open(tiny, context=512, threads=1) as single:
        assert (used.name, used.context, used.fingerprint) == (single.name, 512, single.fingerprint)
        talk = [Message("user", "hi <|im_end|>")]
        assert used.render(talk) == single.render(talk)
        for prompt in ("", SYSTEM, "<|im_start|>user\nhi<|im_end|>", "\ud800 half", "nul\0nul"):
            assert engine.tokens(prompt) == single.tokens(prompt)


@pytest.mark.parametrize("sequences", [1, 3, 8])
def test_generations_begun_together_are_those_of_one_after_the_other(tiny: Path, sequences: int) -> None:
    expected = one_by_one(tiny, PROMPTS)
    with BatchEngine.open(tiny, context=512, cells=1024, sequences=sequences, threads=1) as opened:
        running = [opened.generate(prompt, TEN) for prompt in PROMPTS]
        for generation, theirs in zip(running, expected, strict=True):
            alike(list(generation), theirs)
            assert generation.result.completion_tokens == len(theirs)
            assert generation.result.finish_reason == "length"


def test_threads_share_an_engine(tiny: Path, engine: BatchEngine) -> None:
    expected = one_by_one(tiny, PROMPTS)
    found: list[tuple[int, list[Token]]] = []

    def ask(number: int) -> None:
        for turn in range(4):
            which = (number + turn) % len(PROMPTS)
            found.append((which, list(engine.generate(PROMPTS[which], TEN))))

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(found) == 32
    for which, tokens in found:
        alike(tokens, expected[which])


def test_options_are_each_generations_own(engine: BatchEngine, tiny: Path) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    asked = [
        TEN,
        GenerateOptions(max_tokens=30, grammar='root ::= "the hat" " is"? "."'),
        GenerateOptions(max_tokens=60, json_schema=schema),
        GenerateOptions(max_tokens=10, temperature=1.2, seed=3),
        GenerateOptions(max_tokens=10, temperature=1.2, seed=4, repeat_penalty=1.3),
        GenerateOptions(max_tokens=20, repeat_penalty=2.0),
        GenerateOptions(max_tokens=1),
    ]
    with GgufEngine.open(tiny, context=512, threads=1) as single:
        expected = [list(single.generate(SYSTEM, options)) for options in asked]
    running = [engine.generate(SYSTEM, options) for options in asked]
    for generation, theirs, options in zip(running, expected, asked, strict=True):
        tokens = list(generation)
        alike(tokens, theirs, drawn=options.temperature > 0)
        assert generation.result.completion_tokens == len(tokens)


def test_stop_strings_end_one_and_not_the_others(engine: BatchEngine) -> None:
    whole = text(engine.generate(SYSTEM, TEN))
    stop = whole[3:5]
    stopped, other = (engine.generate(SYSTEM, GenerateOptions(max_tokens=10, stop=each)) for each in ((stop,), ()))
    assert text(stopped) == whole[: whole.index(stop)] and stopped.result.finish_reason == "stop"
    assert text(other) == whole


def test_candidates_are_samples_of_one_prompt_that_is_evaluated_once(engine: BatchEngine) -> None:
    options = GenerateOptions(max_tokens=10, temperature=1.5, top_p=1.0, seed=5)
    running = engine.candidates(SYSTEM, 4, options)
    found = [ids(each) for each in running]
    length = engine.count(SYSTEM)
    assert [each.result.cached_tokens for each in running] == [0, length - 1, length - 1, length - 1]
    assert len({tuple(each) for each in found}) > 1
    assert [ids(each) for each in engine.candidates(SYSTEM, 4, options)] == found


def test_common_beginnings_are_computed_once_and_told(engine: BatchEngine) -> None:
    running = [engine.generate(prompt, TEN) for prompt in PROMPTS]
    for generation in running:
        ids(generation)
    shared = engine.count(SYSTEM) - 1  # the last tokens of it may be another one with what follows
    assert [each.result.cached_tokens >= shared - 2 for each in running] == [False] + [True] * 5
    again = engine.generate(PROMPTS[5], TEN)
    ids(again)
    assert again.result.cached_tokens == again.result.prompt_tokens - 1


def test_the_next_turn_of_a_chat_goes_on_from_the_answer(engine: BatchEngine) -> None:
    talk = [Message("user", "hi")]
    prompt = engine.render(talk)
    first = engine.generate(prompt, GenerateOptions(max_tokens=30, grammar='root ::= "a long answer"'))
    talk += [Message("assistant", text(first)), Message("user", "more")]
    turn = engine.generate(engine.render(talk), TEN)
    ids(turn)
    assert turn.result.cached_tokens > engine.count(prompt) + 3


def test_an_adapter_counts(tiny: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "a.gguf")
    with GgufEngine.open(tiny, context=512, threads=1, adapter=adapter) as single:
        expected, named = list(single.generate(SYSTEM, TEN)), single.fingerprint
    with BatchEngine.open(tiny, context=512, threads=1, adapter=adapter) as opened:
        assert opened.fingerprint == named
        alike(list(opened.generate(SYSTEM, TEN)), expected)


def test_a_generation_that_nobody_reads_holds_up_no_other(engine: BatchEngine) -> None:
    unread = [engine.generate(prompt, GenerateOptions(max_tokens=200)) for prompt in PROMPTS[:3]]
    assert len(ids(engine.generate(SYSTEM, TEN))) == 10
    assert [len(ids(each)) for each in unread] == [200] * 3


@pytest.mark.parametrize(("free", "apart"), [(1 << 40, True), (1 << 29, False), (None, False)])
def test_every_sequence_has_its_own_cells_where_that_takes_little_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, apart: bool
) -> None:
    monkeypatch.setattr(batch_engine, "available_memory", lambda: free)
    made = list[SequenceContext]()
    monkeypatch.setattr(
        batch_engine, "SequenceContext", lambda *given, **by: made.append(SequenceContext(*given, **by)) or made[0]
    )
    with BatchEngine.open(tiny, context=16_384, sequences=64, threads=1) as opened:
        assert made[0].apart == apart
        assert made[0].cells == 16_384 * (64 if apart else 2)
        assert len(ids(opened.generate(PROMPTS[0], TEN))) == 10


@pytest.mark.parametrize("context", [16, 300, 512])
def test_cells_of_its_own_are_counted_as_llama_cpp_rounds_them(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, context: int
) -> None:
    made = list[SequenceContext]()
    monkeypatch.setattr(batch_engine, "available_memory", lambda: 1 << 40)
    monkeypatch.setattr(
        batch_engine, "SequenceContext", lambda *given, **by: made.append(SequenceContext(*given, **by)) or made[0]
    )
    with BatchEngine.open(tiny, context=context, sequences=3, threads=1):
        found = made[0]._lib.llama_n_ctx(made[0]._context)
    assert found == made[0].cells == 3 * (256 if context == 16 else 512)


def test_what_nobody_asked_for_makes_no_model_too_large(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of its own for each would take little of what is free, but with the model they would be too much."""
    header = read_header(tiny)
    shared = estimate_memory(header, 2 * 16_384).needed
    free = next(size for size in range(shared, 1 << 33, 1 << 20) if room(size) >= shared)
    monkeypatch.setattr(batch_engine, "_OWN_SHARE", 1.0)
    monkeypatch.setattr(batch_engine, "available_memory", lambda: free)
    with BatchEngine.open(tiny, context=16_384, sequences=64, threads=1) as opened:
        assert len(ids(opened.generate(PROMPTS[0], TEN))) == 10


def test_more_than_the_cells_hold_wait_for_room(tiny: Path) -> None:
    expected = one_by_one(tiny, PROMPTS)
    with BatchEngine.open(tiny, context=200, cells=200, sequences=4, threads=1) as opened:
        running = [opened.generate(prompt, TEN) for prompt in PROMPTS]
        for generation, theirs in zip(running, expected, strict=True):
            alike(list(generation), theirs)


# --- fairness ---------------------------------------------------------------------------------------


@needs_c
@pytest.mark.parametrize("stop", [(), ("a",), (" t", "he")])
def test_an_answer_that_is_alone_comes_in_groups_and_says_the_same(
    engine: BatchEngine, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, sizes = GenerateOptions(max_tokens=60, stop=stop), list[int]()
    context = engine._worker._context
    ids(engine.generate(SYSTEM, TEN))  # what begins like it is in the memory from now on
    greedily = context.advance_greedily

    def counted(*given: Any) -> Any:
        found = greedily(*given)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(context, "advance_greedily", counted)
    grouped = engine.generate(SYSTEM, options)
    tokens = list(grouped)
    assert max(sizes) > 1
    monkeypatch.setattr(engine._worker._model, "_greedy", None)
    single = engine.generate(SYSTEM, options)
    assert [(token.id, token.text) for token in tokens] == [(token.id, token.text) for token in single]
    assert grouped.result.finish_reason == single.result.finish_reason
    assert ids(engine.generate(SYSTEM, options)) == [
        token.id for token in tokens
    ]  # behind what the groups have left


@needs_c
@pytest.mark.parametrize(("behind", "what"), [(0, "code 3"), (7, "code 3"), (0, "NaN"), (7, "NaN")])
def test_what_fails_within_a_group_fails_there_and_nothing_else(
    engine: BatchEngine, behind: int, what: str
) -> None:
    options, given = GenerateOptions(max_tokens=20), list[int]()
    before = ids(engine.generate(SYSTEM, options))
    with failing(engine._worker._model, behind, what), pytest.raises(EngineError, match=what):
        given += (token.id for token in engine.generate(SYSTEM, options))
    assert given == before[: 1 + behind]
    assert ids(engine.generate(SYSTEM, options)) == before


@needs_c
def test_all_of_a_group_is_handed_over_before_the_next_is_computed(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, held = engine._worker._context, list[int]()
    greedily = context.advance_greedily

    def noted(sequence: int, position: int, token: int, most: int, seconds: float) -> Any:
        held.append(len(engine._worker._asked[0].made._held))
        return greedily(sequence, position, token, min(most, 3), seconds)

    monkeypatch.setattr(context, "advance_greedily", noted)
    assert len(ids(engine.generate(SYSTEM, GenerateOptions(max_tokens=16)))) == 16
    assert held == [0] * 5


def test_answers_get_their_tokens_in_step_and_prompts_come_in_parts(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch is written down: what runs has one token in each, and long prompts do not fill one up."""
    batches: list[dict[int, int]] = [{}]
    asked = Event()
    context = engine._worker._context
    engine._worker._model._greedy = None  # what is alone would come in groups
    add, compute = context.add, context.compute

    def noted(sequence: int, start: int, tokens: np.ndarray, *, wanted: bool) -> int:
        batches[-1][sequence] = len(tokens)
        return add(sequence, start, tokens, wanted=wanted)

    def counted() -> bool:
        batches.append({})
        return (len(batches) == 2 or asked.wait(DEADLINE)) and compute()

    monkeypatch.setattr(context, "add", noted)
    monkeypatch.setattr(context, "compute", counted)
    monkeypatch.setattr(batch_worker, "_STALL", 0.0)
    first = engine.generate("the hat", GenerateOptions(max_tokens=100))
    next(first)
    others = [engine.generate("x" * 300 + str(number), GenerateOptions(max_tokens=40)) for number in range(3)]
    asked.set()
    for generation in (first, *others):
        ids(generation)
    answering: set[int] = set()
    for batch in batches[1:-1]:
        assert sum(count for count in batch.values() if count > 1) <= 32 or len(batch) == 1
        assert answering <= batch.keys() or len(batch) < 4, "each answer under way has a token in each batch"
        answering = {sequence for sequence, count in batch.items() if count == 1}
    assert any(len(batch) == 4 and set(batch.values()) == {1} for batch in batches)


def test_first_come_first_served(tiny: Path) -> None:
    with BatchEngine.open(tiny, context=512, sequences=1, threads=1) as opened:
        ended: list[int] = []
        running = [opened.generate(f"{number} {SYSTEM}", TEN) for number in range(5)]

        def read(number: int) -> None:
            ids(running[number])
            ended.append(number)

        threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(5)]
        for thread in reversed(threads):
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert sorted(ended) == list(range(5))
        begun = [generation._tokens._asked._began for generation in running]  # type: ignore[attr-defined]
        assert begun == sorted(begun)


# --- stopping ---------------------------------------------------------------------------------------


def test_cancelled_before_it_starts(engine: BatchEngine) -> None:
    cancel = Event()
    cancel.set()
    generation = engine.generate(SYSTEM, TEN, cancel)
    assert ids(generation) == []
    assert (generation.result.finish_reason, generation.result.completion_tokens) == ("cancelled", 0)


def test_cancelled_while_others_go_on(engine: BatchEngine, tiny: Path) -> None:
    expected = one_by_one(tiny, PROMPTS[1:3])
    cancel = Event()
    cancelled = engine.generate(PROMPTS[0], GenerateOptions(max_tokens=400), cancel)
    others = [engine.generate(prompt, TEN) for prompt in PROMPTS[1:3]]
    seen = [next(cancelled), next(cancelled)]
    cancel.set()
    assert list(cancelled) == []
    assert (cancelled.result.finish_reason, cancelled.result.completion_tokens) == ("cancelled", len(seen))
    for generation, theirs in zip(others, expected, strict=True):
        alike(list(generation), theirs)
    until(lambda: engine.running == 0)


def test_cancelled_within_a_prefill_the_sequence_is_free_and_what_is_evaluated_stays_right(
    roomy: BatchEngine, tiny: Path
) -> None:
    cancel = Event()
    generation = roomy.generate(LONG, TEN, cancel)
    until(lambda: roomy.running == 1)
    cancel.set()
    assert ids(generation) == [] and generation.result.finish_reason == "cancelled"
    until(lambda: roomy.running == 0)
    (expected,) = one_by_one(tiny, (LONG[:400],))
    alike(list(roomy.generate(LONG[:400], TEN)), expected)


def test_cancelled_while_it_waits_for_its_turn(tiny: Path) -> None:
    with BatchEngine.open(tiny, context=16_384, sequences=1, threads=1) as opened:
        cancel = Event()
        first = opened.generate(LONG, GenerateOptions(max_tokens=50))
        waiting = opened.generate("the hat", TEN, cancel)
        cancel.set()
        assert ids(waiting) == [] and waiting.result.finish_reason == "cancelled"
        first.close()
        assert len(ids(opened.generate("the hat", TEN))) == 10


@pytest.mark.parametrize("read", [0, 2])
def test_a_generation_that_is_closed_or_dropped_gives_its_place_away(tiny: Path, read: int) -> None:
    with BatchEngine.open(tiny, context=16_384, sequences=1, threads=1) as opened:
        for close in (True, False):
            generation = opened.generate(SYSTEM, GenerateOptions(max_tokens=10_000))
            for _ in range(read):
                next(generation)
            if close:
                generation.close()
                assert list(generation) == []
            del generation
            gc.collect()
            assert len(ids(opened.generate("the hat", TEN))) == 10


def test_an_exception_of_the_reader_gives_the_place_away(roomy: BatchEngine) -> None:
    class Interrupting(Event):
        def is_set(self) -> bool:
            if threading.current_thread() is threading.main_thread() and roomy.running:
                raise KeyboardInterrupt
            return False

    with pytest.raises(KeyboardInterrupt):
        ids(roomy.generate(LONG, TEN, Interrupting()))
    until(lambda: roomy.running == 0)
    assert len(ids(roomy.generate(SYSTEM, TEN))) == 10


def test_closing_ends_all_generations_with_an_error(tiny: Path) -> None:
    opened = BatchEngine.open(tiny, context=16_384, sequences=2, threads=1)
    running = [opened.generate(prompt, GenerateOptions(max_tokens=300)) for prompt in (SYSTEM, LONG, "waits")]
    next(running[0])
    closing = threading.Thread(target=opened.close, daemon=True)
    closing.start()
    until(lambda: opened._worker._closed)
    for generation in running:
        with pytest.raises(EngineError, match="is closed"):
            ids(generation)
    closing.join(DEADLINE)
    assert not closing.is_alive() and not opened._worker._thread.is_alive()
    opened.close()
    for ask in (lambda: opened.count("a"), lambda: opened.render([]), lambda: opened.generate("a", TEN)):
        with pytest.raises(EngineError, match="is closed"):
            ask()


def test_an_engine_that_is_dropped_frees_its_memory_also_with_generations_unread(tiny: Path) -> None:
    opened = BatchEngine.open(tiny, context=512, sequences=2, threads=1)
    free, thread = opened._model._free, opened._worker._thread
    running = [opened.generate(SYSTEM, GenerateOptions(max_tokens=300)) for _ in range(3)]
    next(running[0])
    del opened
    gc.collect()
    assert free.alive and next(running[1])  # what is read keeps it
    running.clear()
    gc.collect()
    thread.join(DEADLINE)
    assert not thread.is_alive() and not free.alive


@pytest.mark.parametrize("last", ["next(answers[0])", "del answers, engine"])
def test_a_program_may_end_at_any_time(tiny: Path, last: str) -> None:
    program = (
        "from pathlib import Path\n"
        "from edge_sdk.engines.batch_engine import BatchEngine\n"
        "from edge_sdk.records import GenerateOptions\n"
        f"engine = BatchEngine.open(Path({str(tiny)!r}), context=512, threads=1)\n"
        "answers = [engine.generate(f'the {n}', GenerateOptions(max_tokens=400)) for n in range(9)]\n"
        f"{last}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- errors -----------------------------------------------------------------------------------------


def test_what_cannot_be_answered_is_refused_before_any_work(engine: BatchEngine) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        engine.generate("x" * 505, GenerateOptions(max_tokens=8))
    assert (caught.value.prompt_tokens, caught.value.max_tokens, caught.value.context) == (505, 8, 512)
    with pytest.raises(ContextOverflowError):
        engine.generate("x" * 10**6, TEN)
    for options, error in (
        (GenerateOptions(max_tokens=0), ConfigError),
        (GenerateOptions(temperature=-1.0), ConfigError),
        (GenerateOptions(grammar='root ::= "open'), GrammarError),
        (GenerateOptions(json_schema="{"), GrammarError),
        (GenerateOptions(json_schema="{}", grammar="x"), GrammarError),
    ):
        with pytest.raises(error):
            engine.generate("a", options)
    assert engine.running == 0


def test_an_error_belongs_to_its_own_generation(engine: BatchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Sampler):
        greedy = False  # type: ignore[assignment]

        def __init__(self, model: LlamaModel, options: GenerateOptions, prompt: list[int]) -> None:
            super().__init__(model, options, prompt)
            self.left = 5 if options.seed == 1 else -1

        def choose(self, row: object = None) -> LogitsFigures:
            self.left -= 1
            if not self.left:
                raise EngineError("the grammar allows no token that the model has")
            return super().choose(row)

    monkeypatch.setattr(batch_worker, "Sampler", Failing)
    bad = engine.generate(SYSTEM, GenerateOptions(max_tokens=50, seed=1))
    good = engine.generate(SYSTEM, GenerateOptions(max_tokens=50, seed=2))
    with pytest.raises(EngineError, match="allows no token"):
        ids(bad)
    assert len(ids(good)) == 50
    assert len(ids(engine.generate(SYSTEM, TEN))) == 10


def test_where_llama_cpp_fails_those_in_the_batch_end_with_its_error(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine._worker._context, "_lib", _Failing(engine._worker._context._lib))
        running = [engine.generate(prompt, TEN) for prompt in PROMPTS[:2]]
        for generation in running:
            with pytest.raises(EngineError, match="code -3"):
                ids(generation)
    assert len(ids(engine.generate(SYSTEM, TEN))) == 10


class _Failing:
    """llama.cpp out of memory."""

    def __init__(self, lib: object) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> object:
        return (lambda *_: -3) if name == "llama_decode" else getattr(self._lib, name)


@pytest.mark.parametrize(
    "settings", [{"threads": 0}, {"context": 0}, {"sequences": 0}, {"sequences": 257}, {"cells": -1}]
)
def test_settings_that_cannot_be_used_are_refused(tiny: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        BatchEngine.open(tiny, **settings)  # type: ignore[arg-type]


def test_files_and_templates_are_checked_as_for_one_generation(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFoundError):
        BatchEngine.open(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelDamagedError):
        BatchEngine.open(tmp_path / "bad.gguf")
    with (
        BatchEngine.open(tiny, threads=1, template="{{ raise_exception('no system turn') }}") as opened,
        pytest.raises(TemplateError, match="no system turn"),
    ):
        opened.render([Message("system", "x")])
    monkeypatch.setattr(batch_engine, "available_memory", lambda: 1 << 20)
    with pytest.raises(EngineError, match="4 MiB for a context of 32768 tokens, but 1 MiB are free"):
        BatchEngine.open(tiny, context=16_384)


# --- SmolLM2 ----------------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_answers_together_as_one_after_the_other(smollm2_path: Path) -> None:
    options = GenerateOptions(max_tokens=12)
    asked = ("What is the capital of France?", "Name three colours.", "What is a comet?")
    with GgufEngine.open(smollm2_path, context=512, threads=1) as single:
        prompts = [single.render([Message("user", each)]) for each in asked]
        expected = [list(single.generate(prompt, options)) for prompt in prompts]
    with BatchEngine.open(smollm2_path, context=512, sequences=3, threads=1) as opened:
        running = [opened.generate(prompt, options) for prompt in prompts]
        for generation, theirs in zip(running, expected, strict=True):
            for ours, other in zip(list(generation), theirs, strict=False):
                if ours.id != other.id:
                    assert other.margin < 0.3  # rounding of a four-bit model in another order
                    break


@pytest.mark.campaign
def test_200_cancels_at_random_points_free_their_place_within_a_second(smollm2_path: Path) -> None:
    """In prefills too, for most prompts are long; alone, beside others that go on, and all at once."""
    pick, waits, within = random.Random(7), list[float](), 0

    def held(asked: list[object]) -> bool:
        return any(each.answer in asked for each in [*opened._worker.batching._running])

    with BatchEngine.open(smollm2_path, context=2048, cells=8192, sequences=4) as opened:
        while len(waits) < 200:
            count = pick.choice((1, 1, 2, 4))
            cancels = [Event() for _ in range(count)]
            running = [
                opened.generate(
                    f"{len(waits)} {at} " + "the rain and the sea " * pick.randrange(pick.choice((2, 300))),
                    GenerateOptions(max_tokens=200),
                    cancel,
                )
                for at, cancel in enumerate(cancels)
            ]
            time.sleep(pick.random() * 0.4)
            together = pick.random() < 0.5
            for group in [range(count)] if together else [[at] for at in range(count)]:
                asked = [running[at]._tokens._asked for at in group]  # type: ignore[attr-defined]
                within += sum(not each._produced and not each.over for each in asked)
                started = time.perf_counter()
                for at in group:
                    cancels[at].set()
                until(lambda: all(each.over for each in asked) and not held(asked))  # noqa: B023
                waits += [time.perf_counter() - started] * len(asked)
            for generation in running:
                assert len(ids(generation)) < 200
            assert opened.running == 0
    print(f"\n{len(waits)} cancels, {within} before the first token: {max(waits):.3f} s at most,", end=" ")
    print(f"{sorted(waits)[len(waits) // 2]:.3f} s in the median until the place was free")
    assert within > 50 and max(waits) < 1.0


def test_fewer_threads_compute_where_two_wait_for_each_other(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchEngine.open(tiny, context=16_384, sequences=2, threads=2) as opened:
        context, now, ran = opened._worker._context, [0.0], list[int]()
        opened._worker._model._greedy = None  # that has a clock of its own

        def beside_a_busy_process() -> float:
            ran.append(context._running)
            now[0] += 0.005 if context._running == 1 else 0.5
            return now[0]

        monkeypatch.setattr(sequences, "time", SimpleNamespace(perf_counter=beside_a_busy_process))
        list(opened.generate(PROMPTS[0], GenerateOptions(max_tokens=40)))
        assert ran[0] == 2 and ran[-1] == 1
        assert ran.count(1) > ran.count(2)


def test_answers_that_are_computed_together_keep_to_their_own_choices(engine: BatchEngine) -> None:
    wanted = ("zebra", "a lion", "both")
    running = [
        engine.generate(SYSTEM, GenerateOptions(max_tokens=30, choices=((each, 0.0), ("neither", -500.0))))
        for each in wanted
    ]
    assert tuple(map(text, running)) == wanted
