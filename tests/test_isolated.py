"""The engine in a worker process: the same answers as in this one, and only one request is lost with the worker."""

from __future__ import annotations

import gc
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from gguf_files import tiny_llama

pytest.importorskip("llama_cpp")

from edge_sdk.engines import isolated, worker_process
from edge_sdk.engines import worker as worker_module
from edge_sdk.engines.engine import Engine
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.isolated import IsolatedEngine
from edge_sdk.engines.opening import Opening
from edge_sdk.engines.worker_process import worker_environment
from edge_sdk.errors import (
    ConfigError,
    ContextOverflowError,
    EngineCrashedError,
    EngineError,
    GrammarError,
    ModelDamagedError,
    ModelNotFoundError,
)
from edge_sdk.fakes import FakeEngine
from edge_sdk.records import GenerateOptions, Message

PROMPT = "the cat and the hat, "
TEN = GenerateOptions(max_tokens=10)
MANY = GenerateOptions(max_tokens=400)
LONG = "the rain and the sea and " * 600
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")
PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=16_384)


@pytest.fixture(scope="module")
def opening(tiny: Path) -> Opening:
    return Opening(tiny, context=16_384, threads=1)


@pytest.fixture(scope="module")
def shared(opening: Opening) -> Iterator[IsolatedEngine]:
    with IsolatedEngine(opening) as opened:
        yield opened


@pytest.fixture
def engine(shared: IsolatedEngine) -> Iterator[IsolatedEngine]:
    yield shared
    gc.collect()
    assert len(list(shared.generate(PROMPT, TEN))) == 10, "it is free again after every test"


@pytest.fixture(scope="module")
def here(tiny: Path) -> Iterator[GgufEngine]:
    with GgufEngine.open(tiny, context=16_384, threads=1) as opened:
        yield opened


class AfterPolls(Event):
    """An event that is found set when it has been looked at often enough."""

    def __init__(self, polls: int) -> None:
        super().__init__()
        self.left = polls

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


def gone(pid: int) -> bool:
    """Whether a process has ended and has been waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def another_runs(engine: IsolatedEngine, pid: int) -> bool:
    """Whether the worker with this id is no longer the engine's; there may be none."""
    return engine.pid != pid


def worker(engine: IsolatedEngine) -> int:
    engine.count("")  # one that has loaded the model
    assert engine.pid is not None
    return engine.pid


# --- the engine's contract --------------------------------------------------------------------------


def test_an_answer_is_one_of_the_choices(engine: IsolatedEngine, here: GgufEngine) -> None:
    options = GenerateOptions(max_tokens=40, choices=(("zebra", -1), ("a zebra", -1.5), ("an ape", -2.0)))
    tokens = list(engine.generate(PROMPT, options))
    assert "".join(token.text for token in tokens) in dict(options.choices)
    assert tokens == list(here.generate(PROMPT, options))


def test_it_is_an_engine_and_says_what_the_one_inside_says(engine: IsolatedEngine, here: GgufEngine) -> None:
    same: Engine = engine
    assert (same.name, same.fingerprint, same.context) == (here.name, here.fingerprint, here.context)
    turns = [Message("user", "Hi <|im_end|>"), Message("assistant", "Ho"), Message("user", "é")]
    assert same.render(turns) == here.render(turns)
    assert same.count(LONG) == here.count(LONG)


@pytest.mark.parametrize(
    "options",
    [TEN, GenerateOptions(max_tokens=70), replace(TEN, temperature=0.9, seed=3), replace(TEN, stop=("e", "th"))],
)
def test_the_tokens_are_those_of_the_engine_inside(
    engine: IsolatedEngine, here: GgufEngine, options: GenerateOptions
) -> None:
    for each in (engine, here):  # what is reused of the prompt before decides on the last bits
        list(each.generate("z", TEN))
    far, near = engine.generate(PROMPT, options), here.generate(PROMPT, options)
    assert list(far) == list(near)
    for result in (far.result, near.result):
        assert result.prefill_ms > 0
    assert replace(far.result, prefill_ms=0, decode_ms=0, cached_tokens=0) == replace(
        near.result, prefill_ms=0, decode_ms=0, cached_tokens=0
    )


@pytest.mark.parametrize(
    "text", ["", "é 漢字 🎉", "\x00\x7f\u2028", "half \ud83d a pair", "\N{ZERO WIDTH JOINER}" * 3]
)
def test_any_text_comes_through(engine: IsolatedEngine, here: GgufEngine, text: str) -> None:
    assert engine.count(text) == here.count(text)
    prompt = engine.render([Message("user", text)])
    assert prompt == here.render([Message("user", text)])
    assert [token.text for token in engine.generate(prompt, TEN)] == [
        token.text for token in here.generate(prompt, TEN)
    ]


def test_a_large_text_comes_through(engine: IsolatedEngine) -> None:
    assert engine.count("the " * 500_000) > 500_000


def test_errors_are_those_of_the_engine_inside(engine: IsolatedEngine) -> None:
    with pytest.raises(ContextOverflowError) as overflow:
        engine.generate(LONG * 4, TEN)
    assert (overflow.value.max_tokens, overflow.value.context) == (10, 16_384)
    assert overflow.value.prompt_tokens > 16_384
    with pytest.raises(GrammarError):
        engine.generate(PROMPT, replace(TEN, json_schema='{"type": "no such"}'))
    with pytest.raises(ConfigError):
        engine.generate(PROMPT, replace(TEN, max_tokens=0))
    with pytest.raises(EngineError, match="too long"):
        engine.count("a" * (17 << 20))


def test_opening_fails_as_it_does_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        IsolatedEngine(Opening(tmp_path / "none.gguf"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 60)
    with pytest.raises(ModelDamagedError):
        IsolatedEngine(Opening(bad))


def test_a_second_generation_is_refused_while_one_runs(engine: IsolatedEngine) -> None:
    first = engine.generate(PROMPT, MANY)
    next(first)
    with pytest.raises(EngineError, match="busy"):
        next(engine.generate(PROMPT, TEN))
    assert engine.count(PROMPT) > 0
    first.close()
    assert len(list(engine.generate(PROMPT, TEN))) == 10


def test_dropped_generations_leave_it_free(engine: IsolatedEngine) -> None:
    for _ in range(3):
        engine.generate(PROMPT, MANY)  # never begun
        for _ in engine.generate(PROMPT, MANY):
            break
    gc.collect()
    assert len(list(engine.generate(PROMPT, TEN))) == 10


def test_cancelling_ends_at_the_next_token(engine: IsolatedEngine) -> None:
    cancel, seen = Event(), 0
    generation = engine.generate(PROMPT, MANY, cancel)
    for _ in generation:
        seen += 1
        if seen == 5:
            cancel.set()
    assert (generation.result.finish_reason, generation.result.completion_tokens, seen) == ("cancelled", 5, 5)
    before = Event()
    before.set()
    generation = engine.generate(PROMPT, MANY, before)
    assert list(generation) == []
    assert generation.result.finish_reason == "cancelled"


def test_cancelling_after_the_last_token_changes_nothing(engine: IsolatedEngine) -> None:
    cancel = Event()
    generation = engine.generate(PROMPT, TEN, cancel)
    for _ in range(10):
        next(generation)
    cancel.set()
    assert next(generation, None) is None
    assert generation.result.finish_reason == "length"


def test_a_prefill_is_cancelled_before_its_end(engine: IsolatedEngine) -> None:
    generation = engine.generate("x" + LONG, TEN, AfterPolls(2))
    assert list(generation) == []
    assert generation.result.finish_reason == "cancelled"
    again = engine.generate("x" + LONG, TEN)
    list(again)
    assert again.result.cached_tokens < again.result.prompt_tokens - 1


def test_a_worker_computes_no_more_than_what_is_wanted() -> None:
    sent: list[list[Any]] = []
    served = worker_module._Served(sent.append)
    engine = FakeEngine("one two three four five six seven eight nine ten eleven twelve")
    cancel = Event()
    served.add(1, worker_module._Run(engine.generate("p", MANY, cancel), cancel))
    served.more(1, 3)
    assert eventually(lambda: sum(len(each[2]) for each in sent) == 3)
    (run,) = served._runs.values()
    assert run.wanted._value == 0
    served.more(1, 4)
    assert eventually(lambda: sum(len(each[2]) for each in sent) == 7)
    served.stop(1)
    assert eventually(lambda: sent[-1][1] == "end")
    assert sum(len(each[2]) for each in sent[:-1]) < 12
    assert not served._runs


def test_tokens_of_a_quick_model_come_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[Any]] = []
    served = worker_module._Served(sent.append)
    monkeypatch.setattr(worker_module, "_GATHER", 1000.0)
    served.add(1, worker_module._Run(FakeEngine("one two three four").generate("p", MANY), Event()))
    served.more(1, 100)
    assert eventually(lambda: bool(sent) and sent[-1][1] == "end")
    first, rest, end = sent
    assert (len(first[2]), len(rest[2])) == (1, end[2]["completion_tokens"] - 1)


# --- what the worker has and may --------------------------------------------------------------------


@PROC
def test_it_gets_no_keys_and_no_open_files(
    opening: Opening, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("EDGE_REMOTE_KEY", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "HOME"):
        monkeypatch.setenv(name, "planted-secret")
    with (tmp_path / "open").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        with IsolatedEngine(opening) as engine:
            assert len(list(engine.generate(PROMPT, TEN))) == 10
            root = Path(f"/proc/{engine.pid}")
            try:
                environment = (root / "environ").read_bytes()
                files = [str(each.readlink()) for each in (root / "fd").iterdir()]
            except PermissionError:  # a process that nobody may look into, which is right
                environment, files = repr(worker_environment()).encode(), []
            line = (root / "cmdline").read_bytes()
    assert b"planted-secret" not in environment + line
    assert b"PYTHONPATH" in environment
    assert not [each for each in files if "open" in each]


def test_its_environment_is_a_list_of_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        monkeypatch.delenv(name)
    bare = worker_environment()
    monkeypatch.setenv("ANYTHING_NEW", "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert worker_environment() == {**bare, "OMP_NUM_THREADS": "2"}


@POSIX
def test_interrupts_at_the_terminal_are_not_for_it(engine: IsolatedEngine) -> None:
    pid = worker(engine)
    assert os.getsid(pid) == pid != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is a process of its own and no more")
def test_it_says_what_could_be_enforced(engine: IsolatedEngine) -> None:
    assert engine.confinement[:2] == ("a process of its own", "ends with its parent")


# --- crashes ----------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_crash_while_streaming_costs_one_request(engine: IsolatedEngine, number: signal.Signals) -> None:
    pid = worker(engine)
    generation = engine.generate(PROMPT, MANY)
    next(generation)
    os.kill(pid, number)
    with pytest.raises(EngineCrashedError) as crash:
        list(generation)
    assert (crash.value.model, crash.value.ending.split(",")[0]) == ("tiny", number.name)
    assert number.name in str(crash.value)
    assert len(list(engine.generate(PROMPT, TEN))) == 10
    assert engine.pid != pid
    assert gone(pid)


@POSIX
def test_a_crash_while_nothing_runs_costs_nothing(engine: IsolatedEngine) -> None:
    pid = worker(engine)
    os.kill(pid, signal.SIGSEGV)
    assert eventually(lambda: engine.pid not in (None, pid))
    assert engine.count(PROMPT) > 0


@POSIX
def test_all_requests_that_wait_learn_of_the_crash(engine: IsolatedEngine) -> None:
    pid = worker(engine)
    os.kill(pid, signal.SIGSTOP)
    failed: list[EngineError] = []

    def count() -> None:
        try:
            engine.count(PROMPT)
        except EngineError as error:
            failed.append(error)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    process = engine._slot.process
    assert process is not None
    assert eventually(lambda: len(process._boxes) == 3)
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(20)
    assert [type(error) for error in failed] == [EngineCrashedError] * 3


@POSIX
def test_a_worker_that_crashes_again_and_again_is_left_alone(
    quick: IsolatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        pid = worker(quick)
        os.kill(pid, signal.SIGSEGV)
        assert eventually(partial(another_runs, quick, pid))
    with pytest.raises(EngineCrashedError, match="3 times within a minute") as crash:
        quick.count(PROMPT)
    assert "left alone" in crash.value.hint
    assert quick.pid is None
    monkeypatch.setattr(isolated, "_WITHIN", 0.0)
    assert quick.count(PROMPT) == 7


@POSIX
def test_a_token_shows_that_it_works(quick: IsolatedEngine) -> None:
    for _ in range(4):
        pid = worker(quick)
        assert next(quick.generate(PROMPT, TEN)).text == "a"
        os.kill(pid, signal.SIGSEGV)
        assert eventually(partial(another_runs, quick, pid))
    assert quick.count(PROMPT) == 7


def test_a_file_that_has_changed_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_instead(monkeypatch, FAKE)
    path = tmp_path / "model.gguf"
    path.write_text("one")
    with IsolatedEngine(Opening(path)) as engine:
        path.write_text("another")
        process = engine._slot.process
        assert process is not None
        process.kill()
        assert eventually(lambda: engine.pid is None)
        with pytest.raises(EngineError, match="has changed"):
            engine.count(PROMPT)


@pytest.mark.parametrize(
    ("script", "ending"),
    [
        ("os.write(1, b'not a message at all')", "no message"),
        ("os.write(1, bytes([0, 0, 0, 2]) + b'[]')", "no message"),
        ("os.write(1, bytes([0, 0, 0, 13]) + b'[0,\"ready\",{}]')", "no message"),
        ("os.write(1, bytes([0, 0, 0, 13]) + b'[0,\"error\",{}]')", "no message"),
        ("sys.stderr.write('GGML_ASSERT: \\x1b[31mit\\n'); sys.stderr.flush(); os.abort()", "SIGABRT, GGML_ASSERT"),
        ("os._exit(3)", "exit status 3"),
    ],
)
def test_a_worker_that_talks_nonsense_is_an_error(
    opening: Opening, monkeypatch: pytest.MonkeyPatch, script: str, ending: str
) -> None:
    start_instead(monkeypatch, f"import os, sys; {script}; sys.stdin.read()")
    with pytest.raises(EngineCrashedError, match=ending) as crash:
        IsolatedEngine(opening)
    assert "\x1b" not in str(crash.value)


def test_a_worker_that_floods_its_reader_is_ended(quick: IsolatedEngine) -> None:
    pid = worker(quick)
    generation = quick.generate(PROMPT, TEN)
    process = quick._slot.process
    assert process is not None
    for _ in range(300):
        process.send(max(process._boxes), "more", 1)
    assert eventually(lambda: quick.pid != pid)
    with pytest.raises(EngineCrashedError, match="more than it was asked for"):
        list(generation)


def test_a_process_that_cannot_be_started_is_an_error(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> subprocess.Popen[bytes]:
        raise OSError("out of processes")

    monkeypatch.setattr(worker_process, "_start", start)
    with pytest.raises(EngineError, match="out of processes"):
        IsolatedEngine(opening)


@pytest.mark.parametrize("answer", ["seven", None, True])
def test_an_answer_of_the_wrong_kind_is_an_error(
    opening: Opening, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    start_instead(monkeypatch, FAKE.replace("7  # count", repr(answer)))
    with IsolatedEngine(opening) as engine, pytest.raises(EngineCrashedError, match="no answer"):
        engine.count(PROMPT)


FAKE = """
import json, sys
def say(*message):
    body = json.dumps(message).encode()
    sys.stdout.buffer.write(len(body).to_bytes(4, "big") + body)
    sys.stdout.buffer.flush()
say(0, "ready", {"name": "fake", "context": 9, "confinement": []})
while head := sys.stdin.buffer.read(4):
    number, kind, *_ = json.loads(sys.stdin.buffer.read(int.from_bytes(head, "big")))
    if kind == "count":
        say(number, "done", 7  # count
        )
    elif kind == "generate":
        say(number, "done", None)
    elif kind == "more":
        say(number, "tokens", [[1, "a", -0.5, 0.5, 1.5]])
"""


@pytest.fixture
def quick(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedEngine]:
    """With a worker that starts in no time and has no model."""
    start_instead(monkeypatch, FAKE)
    with IsolatedEngine(opening) as opened:
        yield opened


def start_instead(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-S", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    monkeypatch.setattr(worker_process, "_start", start)


# --- the end ----------------------------------------------------------------------------------------


@POSIX
def test_closing_ends_the_worker_and_what_runs(opening: Opening) -> None:
    engine = IsolatedEngine(opening)
    pid = worker(engine)
    generation = engine.generate(PROMPT, GenerateOptions(max_tokens=10_000))
    next(generation)
    engine.close()
    engine.close()
    assert gone(pid)
    with pytest.raises(EngineError, match="tiny is closed"):
        list(generation)
    with pytest.raises(EngineError, match="tiny is closed"):
        engine.count(PROMPT)


@PROC
def test_nothing_is_left_open(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    start_instead(monkeypatch, FAKE)
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    for end in (IsolatedEngine.close, lambda engine: os.kill(engine.pid, signal.SIGKILL)):
        engine = IsolatedEngine(opening)
        end(engine)
        engine.close()
    assert eventually(lambda: threading.active_count() == threads)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@POSIX
def test_a_dropped_engine_ends_its_worker(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    start_instead(monkeypatch, FAKE)
    engine = IsolatedEngine(opening)
    pid = worker(engine)
    del engine
    gc.collect()
    assert eventually(lambda: gone(pid))


PARENT = """
import os, signal, sys
from pathlib import Path
from edge_sdk.engines.isolated import IsolatedEngine
from edge_sdk.engines.opening import Opening
from edge_sdk.records import GenerateOptions
engine = IsolatedEngine(Opening(Path(sys.argv[1]), context=16384, threads=1))
generation = engine.generate("the", GenerateOptions(max_tokens=16000))
next(generation)
print(engine.pid, flush=True)
{end}
"""


@POSIX
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise KeyboardInterrupt"])
def test_the_worker_ends_with_its_parent(tiny: Path, end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT.format(end=end), tiny],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[1],
        timeout=60,
    )
    pid = int(done.stdout)
    assert eventually(lambda: gone(pid) or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    """Ended, and left to an init process that does not wait for its children: some containers have one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def test_where_no_process_can_be_started_it_says_so(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EngineError, match="cannot start"):
        IsolatedEngine(opening)


# --- campaigns on real weights ----------------------------------------------------------------------

NUMBERS = " ".join(map(str, range(1, 60)))
WORDS = "the sea and the rain and a boat that waits for the wind "


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[IsolatedEngine]:
    with IsolatedEngine(Opening(smollm2_path, context=2048)) as opened:
        yield opened


def figures(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "worst": round(max(values), 3)}


@POSIX
@pytest.mark.model
@pytest.mark.campaign
def test_50_kills_while_streaming_cost_50_requests(
    smollm2_path: Path, smollm2: IsolatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_AHEAD", 2)  # no answer is complete before it is read
    loads, backs, pick = [], [], random.Random(3)
    for _ in range(5):
        started = time.perf_counter()
        with IsolatedEngine(Opening(smollm2_path, context=2048)) as other:
            loads.append(time.perf_counter() - started)
            assert other.pid is not None
    for _ in range(50):
        generation = smollm2.generate(NUMBERS, GenerateOptions(max_tokens=200))
        for _ in range(pick.randint(1, 20)):
            next(generation)
        os.kill(worker(smollm2), signal.SIGKILL)
        killed = time.perf_counter()
        with pytest.raises(EngineCrashedError, match="SIGKILL"):
            list(generation)
        smollm2.count(WORDS)
        backs.append(time.perf_counter() - killed)
        assert len(list(smollm2.generate(WORDS, TEN))) > 0
    print({"load seconds": figures(loads), "service back after seconds": figures(backs)})
    assert max(backs) < statistics.median(loads) + 2


@pytest.mark.model
@pytest.mark.campaign
def test_200_cancels_free_the_slot_within_a_second(smollm2: IsolatedEngine) -> None:
    seconds, reasons, pick = [], Counter[str](), random.Random(5)
    list(smollm2.generate(WORDS * 100, TEN))  # its weights are read from the disk now
    for turn in range(200):
        cancel, when = Event(), [0.0]

        def stop(cancel: Event = cancel, when: list[float] = when) -> None:
            when[0] = time.perf_counter()
            cancel.set()

        prompt = f"{turn} " + WORDS * pick.choice([1, 10, 40, 100])
        timer = threading.Timer(pick.uniform(0, 1.5), stop)
        timer.start()
        generation = smollm2.generate(prompt, GenerateOptions(max_tokens=200), cancel)
        tokens = len(list(generation))
        ended, result = time.perf_counter(), generation.result
        assert result.completion_tokens == tokens
        cut = result.finish_reason == "cancelled"
        reasons["in the prefill" if cut and not tokens else "while decoding" if cut else "ended before"] += 1
        if cut:
            seconds.append(ended - when[0])
        timer.cancel()
        timer.join()
    print({"cancelled": dict(reasons), "seconds until it is free": figures(seconds)})
    assert len(seconds) > 100
    assert reasons["in the prefill"] > 10
    assert max(seconds) < 1


def test_many_at_once_say_what_each_says_alone(tiny: Path, here: GgufEngine) -> None:
    prompts = [f"{PROMPT}{end}" for end in ("a comet", "the rain", "", "an inn")] * 2
    alone = [[token.id for token in here.generate(prompt, TEN)] for prompt in prompts]
    with IsolatedEngine(Opening(tiny, context=512, threads=1, sequences=3)) as engine:
        running = [engine.generate(prompt, TEN) for prompt in prompts]
        found = [[token.id for token in each] for each in reversed(running)]  # none holds up another
    assert found[::-1] == alone


@POSIX
def test_a_request_that_a_worker_never_takes_is_given_up(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_LONGEST", 1.0)
    with IsolatedEngine(Opening(tiny, context=512, threads=1)) as engine:
        stuck = worker(engine)
        os.kill(stuck, signal.SIGSTOP)
        gone = Event()
        gone.set()
        cancelled = engine.generate(PROMPT, TEN, gone)
        assert (list(cancelled), cancelled.result.finish_reason) == ([], "cancelled")
        assert engine.pid == stuck
        with pytest.raises(EngineCrashedError, match="did not answer within 1 s"):
            engine.count(PROMPT)
        assert eventually(lambda: gone_or_new(engine, stuck))
        monkeypatch.setattr(isolated, "_LONGEST", 60.0)
        assert len(list(engine.generate(PROMPT, TEN))) == 10


def gone_or_new(engine: IsolatedEngine, pid: int) -> bool:
    return gone(pid) and another_runs(engine, pid)
