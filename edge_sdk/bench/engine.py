"""Measures three ways to run a GGUF model, side by side: our engine, a bare loop over the C functions, `Llama`.

Each contender has a process of its own, so that its peak memory is its own, and they take turns, so that a busy
moment hits all of them. The one module beside `llama` that imports llama_cpp. Knows nothing of how it is shown.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from ..device import default_threads, describe
from ..errors import EngineError, MissingExtraError
from .apart import Apart, answer, peak_mb, quiet
from .energy import EnergyMeter

CONTENDERS = ("edge", "bare", "llama_class")
MEASURES = ("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_ms", "peak_mb")
Progress = Callable[[float, float | None, str], None]
_WORDS = (
    "river stone winter garden music window paper bridge market silver forest morning letter ocean engine"
    " bread shadow yellow summer kitchen mountain story doctor travel evening copper village number science"
).split()
_WARM_UP = (16, 4)  # prompt and answer tokens of a turn that is not counted


class Turn(Protocol):
    """One contender, loaded: answer a prompt and say when its first and its last token came."""

    def count(self, text: str) -> int:
        """Tokens of `text`."""

    def run(self, prompt: str, tokens: int) -> tuple[float, float, int]:
        """Milliseconds to the first token, milliseconds from there to the last, number of tokens."""


def bench_engine(
    models: Mapping[str, Path],
    *,
    prompt_tokens: int = 600,
    decode_tokens: int = 128,
    repeats: int = 5,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure each of `models`; the JSON document of `edge bench engine`.

    `models` NAME CONTENDER holds the medians over `repeats` of `MEASURES` and `spread` with their least and most;
    `ratios` NAME the medians of the quotients within each round, which move less than the figures. Times are taken
    outside of the contender: `ttft_ms` from the call to the first token, prefill as the prompt's tokens over
    that time, decode as the tokens after the first over the time after the first. All are greedy and use `threads`;
    otherwise `Llama` has its default settings. Every round has another prompt, so no cache helps. Where the system
    tells it, `joules` is what the processor used in a turn.
    """
    if find_spec("llama_cpp") is None:
        raise MissingExtraError("`edge bench engine`", "gguf")
    threads = threads or default_threads()
    context = -(-(prompt_tokens + decode_tokens + 32) // 256) * 256
    total, done, meter = len(models) * len(CONTENDERS) * (repeats + 1), 0, EnergyMeter()
    figures: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for name, path in models.items():
        rounds: list[dict[str, dict[str, float]]] = []
        workers = {}
        try:
            for contender in CONTENDERS:
                workers[contender] = Worker(contender, path, threads, context)
            for number in range(repeats + 1):
                wanted, tokens = (prompt_tokens, decode_tokens) if number else _WARM_UP
                prompt = made_prompt(workers["bare"].count, wanted, number)
                measured = {}
                order = CONTENDERS[number % 3 :] + CONTENDERS[: number % 3]
                for contender in order:
                    if progress:
                        progress(done, total, f"{name}: {contender}")
                    meter.start()
                    measured[contender] = workers[contender].measure(prompt, tokens)
                    if (joules := meter.joules()) is not None:
                        measured[contender]["joules"] = joules
                    done += 1
                if number:
                    rounds.append(measured)
        finally:
            for worker in workers.values():
                worker.stop()
        figures[name] = {contender: _summary([turn[contender] for turn in rounds]) for contender in CONTENDERS}
        ratios[name] = {
            f"{measure}_{contender}_to_bare": round(
                median(turn[contender][measure] / turn["bare"][measure] for turn in rounds), 3
            )
            for contender in ("edge", "llama_class")
            for measure in MEASURES
        }
    if progress:
        progress(total, total, "")
    settings = {"prompt_tokens": prompt_tokens, "decode_tokens": decode_tokens, "repeats": repeats}
    return {
        "models": figures,
        "ratios": ratios,
        "settings": {**settings, "threads": threads, "context": context},
        "machine": _machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def made_prompt(count: Callable[[str], int], tokens: int, seed: int) -> str:
    """Words that come to at most `tokens` tokens, and nearly that."""
    pick = random.Random(seed)
    words = [pick.choice(_WORDS) for _ in range(tokens)]
    least, most = 1, len(words)
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if count(" ".join(words[:middle])) <= tokens else (least, middle - 1)
    return " ".join(words[:least])


def _summary(turns: list[dict[str, float]]) -> dict[str, Any]:
    names = (*MEASURES, *(["joules"] if all("joules" in turn for turn in turns) else []))
    columns = {measure: [turn[measure] for turn in turns] for measure in names}
    return {measure: round(median(values), 2) for measure, values in columns.items()} | {
        "spread": {measure: [round(min(values), 2), round(max(values), 2)] for measure, values in columns.items()}
    }


def _machine() -> dict[str, Any]:
    from ..kernel_faces import logits

    return {
        **describe(),
        "llama_cpp_python": version("llama-cpp-python"),
        "kernels": logits.backend(),
    }


# --- processes --------------------------------------------------------------------------------------


class Worker:
    """A contender in a process of its own."""

    def __init__(
        self, contender: str, path: Path, threads: int, context: int, tuning: Mapping[str, object] | None = None
    ) -> None:
        """With 0 threads `Llama` takes what it takes by default; the others want a number."""
        arguments = [contender, str(path), str(threads), str(context), json.dumps(dict(tuning or {}))]
        self._apart = Apart(contender, "edge_sdk.bench.engine", arguments)  # `Llama` has defaults of its own

    def count(self, text: str) -> int:
        return int(self._apart.ask({"count": text})["count"])

    def run(self, prompt: str, tokens: int) -> dict[str, Any]:
        """Milliseconds to the first token (`first_ms`) and from there on (`rest_ms`), tokens `produced`.

        `count` is the prompt's tokens, `peak_mb` the most memory so far.
        """
        return self._apart.ask({"prompt": prompt, "tokens": tokens})

    def measure(self, prompt: str, tokens: int) -> dict[str, float]:
        reply = self.run(prompt, tokens)
        first, rest, produced = reply["first_ms"], reply["rest_ms"], reply["produced"]
        if produced < 2:
            raise EngineError(f"{self._apart.name} ended its answer at once", hint="measure another model")
        return {
            "prefill_tokens_per_second": reply["count"] / first * 1e3,
            "decode_tokens_per_second": (produced - 1) / rest * 1e3,
            "ttft_ms": first,
            "peak_mb": reply["peak_mb"],
        }

    def stop(self) -> None:
        """End the process; it is idle, or its figures are no longer wanted."""
        self._apart.stop()


def _serve(contender: str, path: Path, threads: int, context: int, tuning: Mapping[str, Any]) -> None:
    """The loop of a worker's process."""
    answers = quiet()
    make: dict[str, Callable[[Path, int, int], Turn]] = {"llama_class": LlamaClass}
    make |= {"edge": partial(_Edge, tuning=tuning), "bare": partial(_Bare, tuning=tuning)}
    turn = make[contender](path, threads, context)

    def reply(question: Mapping[str, Any]) -> dict[str, Any]:
        if "count" in question:
            return {"count": turn.count(question["count"])}
        first, rest, produced = turn.run(question["prompt"], question["tokens"])
        count = turn.count(question["prompt"])
        return {"first_ms": first, "rest_ms": rest, "produced": produced, "count": count, "peak_mb": peak_mb()}

    answer(reply, answers)


class Clock:
    """Notes when tokens come."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.times: list[float] = []

    def token(self) -> None:
        self.times.append(time.perf_counter())

    def result(self) -> tuple[float, float, int]:
        first, last = (self.times[0], self.times[-1]) if self.times else (self.started, self.started)
        return (first - self.started) * 1e3, (last - first) * 1e3, len(self.times)


# --- contenders -------------------------------------------------------------------------------------


class _Edge:
    """Our engine as an app uses it: text, and figures for every token."""

    def __init__(self, path: Path, threads: int, context: int, tuning: Mapping[str, Any]) -> None:
        from ..engines.engine_gguf import GgufEngine
        from ..engines.profile import Tuning

        self._engine = GgufEngine.open(path, threads=threads, context=context, tuning=Tuning(**tuning))
        self.count = self._engine.count

    def run(self, prompt: str, tokens: int) -> tuple[float, float, int]:
        from ..records import GenerateOptions

        clock = Clock()
        for _ in self._engine.generate(prompt, GenerateOptions(max_tokens=tokens)):
            clock.token()
        return clock.result()


class _Bare:
    """The least that llama.cpp lets one do: evaluate, take the largest logit, evaluate that.

    With weights repacked where our engine does it too, so that the two differ in nothing but what we add.
    """

    def __init__(self, path: Path, threads: int, context: int, tuning: Mapping[str, Any]) -> None:
        import ctypes

        import llama_cpp.llama_cpp as found

        from ..engines.profile import Tuning
        from ..engines.repacking import decide_repacking
        from ..model_files.gguf_header import read_header

        self._lib = lib = _untyped(found)
        self._ctypes = ctypes
        self._log = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._log, None)
        lib.llama_backend_init()
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = decide_repacking(Tuning(**tuning), read_header(path)).repack
        model = lib.llama_model_load_from_file(str(path).encode(), settings)
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 512, 512
        settings.n_threads = settings.n_threads_batch = threads
        self._context = lib.llama_init_from_model(model, settings)
        self._memory, self._vocabulary = lib.llama_get_memory(self._context), lib.llama_model_get_vocab(model)
        self._size = lib.llama_vocab_n_tokens(self._vocabulary)

    def count(self, text: str) -> int:
        return len(self._tokens(text))

    def _tokens(self, text: str) -> list[int]:
        raw = text.encode()
        tokens = (self._ctypes.c_int32 * (len(raw) + 8))()
        count = self._lib.llama_tokenize(self._vocabulary, raw, len(raw), tokens, len(tokens), True, True)
        return list(tokens[:count])

    def run(self, prompt: str, tokens: int) -> tuple[float, float, int]:
        import numpy as np

        lib, clock = self._lib, Clock()
        lib.llama_memory_clear(self._memory, False)
        ids = self._tokens(prompt)
        todo = (self._ctypes.c_int32 * len(ids))(*ids)
        for start in range(0, len(ids), 512):
            part = self._ctypes.cast(self._ctypes.byref(todo, 4 * start), lib.llama_token_p)
            lib.llama_decode(self._context, lib.llama_batch(n_tokens=min(512, len(ids) - start), token=part))
        one = (self._ctypes.c_int32 * 1)()
        for number in range(tokens):
            if number:
                lib.llama_decode(self._context, lib.llama_batch(n_tokens=1, token=one))
            row = lib.llama_get_logits_ith(self._context, -1)
            one[0] = int(np.ctypeslib.as_array(row, (self._size,)).argmax())
            clock.token()
            if lib.llama_vocab_is_eog(self._vocabulary, one[0]):
                break
        return clock.result()


class LlamaClass:
    """llama-cpp-python's high-level class, streaming greedily; with 0 threads as many as it takes by default."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        from llama_cpp import Llama

        make, most = _untyped(Llama), threads or None
        self._llama = make(str(path), n_ctx=context, n_threads=most, n_threads_batch=most, verbose=False)

    def count(self, text: str) -> int:
        return len(self._llama.tokenize(text.encode(), special=True))

    def run(self, prompt: str, tokens: int) -> tuple[float, float, int]:
        clock = Clock()
        for part in self._llama.create_completion(prompt, max_tokens=tokens, temperature=0.0, stream=True):
            if part["choices"][0]["text"]:  # the last part only says why it ended
                clock.token()
        return clock.result()


def _untyped(value: Any) -> Any:
    """llama_cpp's own annotations are not those of strict typing."""
    return value


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
