"""Measures a cold start: from starting a process to the first word of an answer, in parts, each time anew.

Files are in the system's cache after a first round that does not count. The clock is the monotonic one, which all
processes of a machine share. Knows nothing of how the result is shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..device import describe
from ..errors import EngineError
from .apart import environment, last_words, peak_mb, quiet
from .energy import EnergyMeter
from .summary import rounded, summarise

if TYPE_CHECKING:
    from ..config import Settings
    from ..prompt import Style

Progress = Callable[[float, float | None, str], None]
PYTHON = {
    "bare": ["-c", "pass"],
    "import": ["-c", "import edge_sdk"],
    "help": ["-m", "edge_sdk.cli", "--help"],
}
"""What a bare Python takes, beside `import edge_sdk` and `edge --help`."""
PARTS = ("python", "import", "open", "encoder", "model", "first_token", "rest")
"""Of ours: interpreter, our modules, store and settings, encoder, language model, search and prefill, the rest."""
RATIOS = ("first_token_ms", "whole_ms")


def bench_start(
    settings: Settings,
    question: str,
    *,
    rounds: int = 5,
    style: Style = "full",
    max_tokens: int = 32,
    k: int = 8,
    peer_tokens: int = 600,
    with_peers: bool = True,
    progress: Progress = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Start and ask, so many times; the JSON document of `edge bench start`.

    `contenders` NAME has the median over the rounds, `p95` and `spread`: `first_token_ms` and `whole_ms` from the
    start of the process, and its `parts_ms`. The peer is `llama_cpp.Llama` with the model's own file and its
    defaults, on a prompt of whole passages of at most `peer_tokens` tokens, which it need not search for. What this
    module itself needs to be imported is left out of all. `python_ms` is of interpreters alone. `joules` are of the
    whole processor, None where the system does not tell. Prompts that other processes have kept on the disk are not
    used: the question is the same every time.
    """
    from .ask import private_store, settings_flags

    meter = EnergyMeter()
    python: list[dict[str, float]] = []
    rows: dict[str, list[dict[str, float | None]]] = {"edge": []}
    parts: dict[str, list[dict[str, float]]] = {"edge": []}
    with private_store(settings) as own:
        manner = {
            "question": question,
            "style": style,
            "max_tokens": max_tokens,
            "k": k,
            "peer_tokens": peer_tokens,
        }
        commands = {"edge": ("cold_edge", [json.dumps(settings_flags(own)), json.dumps(manner)], "")}
        told: dict[str, Any] = {}
        for number in range(rounds + 1):
            python.append({name: _milliseconds(arguments) for name, arguments in PYTHON.items()})
            turns = list(commands)
            for name in turns[number % len(turns) :] + turns[: number % len(turns)]:
                progress(number, rounds + 1, name)
                meter.start()
                run = _cold(name, *commands[name])
                if number:
                    rows.setdefault(name, []).append({**run.figures, "joules": meter.joules()})
                    parts.setdefault(name, []).append(run.parts)
                elif name == "edge":
                    told = run.told
            if not number and with_peers and told["file"].endswith(".gguf"):
                context = -(-(peer_tokens + max_tokens + 64) // 256) * 256
                commands["llama_class"] = (
                    "cold_llama",
                    [told["file"], str(context), str(max_tokens)],
                    told["prompt"],
                )
                _cold("llama_class", *commands["llama_class"])
    progress(rounds + 1, rounds + 1, "")
    quotients = {
        name: [{m: row[m] / ours[m] for m in RATIOS} for row, ours in zip(of, rows["edge"], strict=True)]  # type: ignore[operator]
        for name, of in rows.items()
        if name != "edge"
    }
    return {
        "contenders": {name: {**summarise(of), "parts_ms": summarise(parts[name])} for name, of in rows.items()},
        "ratios": {f"{name}_to_edge": summarise(of) for name, of in quotients.items()},
        "python_ms": summarise(python[1:]),
        "python_to_bare": {
            name: rounded(median(row[name] / row["bare"] for row in python[1:])) for name in ("import", "help")
        },
        "settings": {
            "model": told["model"],
            "encoder": Path(settings.encoder).name,
            "threads": settings.threads,
            "rounds": rounds,
            "style": style,
            "max_tokens": max_tokens,
            "k": k,
            "peer_tokens": peer_tokens,
        },
        "machine": describe(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _milliseconds(arguments: Sequence[str]) -> float:
    """Of a Python with these arguments, to its end."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, env=environment(), check=False)
    if done.returncode:
        raise EngineError(f"python {' '.join(arguments)} ended with {done.returncode}")
    return (time.perf_counter() - started) * 1e3


class _Run:
    """What a process has told, on the clock of the one that started it."""

    def __init__(self, started: float, told: dict[str, Any]) -> None:
        marks = {name: float(at) for name, at in told.pop("marks")}
        harness = marks.pop("harness") - marks["python"]
        ends = [at - started - (0 if name == "python" else harness) for name, at in marks.items()]
        begins = [0.0, *ends[:-1]]
        self.parts = {name: (end - begin) * 1e3 for name, begin, end in zip(marks, begins, ends, strict=True)}
        until = dict(zip(marks, ends, strict=True))
        self.figures: dict[str, float | None] = {
            "first_token_ms": until["first_token"] * 1e3,
            "whole_ms": until["rest"] * 1e3,
            "peak_mb": told.pop("peak_mb"),
        }
        self.told = told


def _cold(name: str, function: str, arguments: Sequence[str], given: str) -> _Run:
    script = f"import time; at = time.monotonic(); from {__name__} import {function}; {function}(at)"
    with tempfile.TemporaryFile() as complaints:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            input=given.encode(),
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment(),
            check=False,
        )
        if done.returncode:
            raise EngineError(f"measuring {name} failed: {last_words(complaints)}")
    return _Run(started, json.loads(done.stdout.splitlines()[-1]))


# --- in the new process -----------------------------------------------------------------------------


class _Marks:
    """When what was done."""

    def __init__(self, begun: float) -> None:
        self.marks = [("python", begun), ("harness", time.monotonic())]

    def done(self, name: str) -> None:
        self.marks.append((name, time.monotonic()))


def cold_edge(begun: float) -> None:
    """An assistant opened as by an app, and one answer; arguments and reply as JSON."""
    marks, answers = _Marks(begun), quiet()
    flags, manner = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    from ..config import load_settings
    from ..edge import Edge
    from ..route import Policy

    marks.done("import")
    settings = load_settings(flags)
    edge = Edge.open(settings=settings, policy=Policy("local"))
    marks.done("open")
    _ = edge.encoder
    marks.done("encoder")
    engine = edge.engine
    marks.done("model")
    asked = {name: manner[name] for name in ("style", "max_tokens", "k")}
    for event in edge.stream(manner["question"], **asked):
        if event.kind in ("provisional", "final") and marks.marks[-1][0] == "model":
            marks.done("first_token")
    marks.done("rest")
    peak = peak_mb()  # before the peer's prompt is made
    from ..loading import choose_decoder
    from ..prompt import build_prompt

    most = manner["peer_tokens"]
    hits = edge.search(manner["question"], manner["k"])
    prompt = build_prompt(
        manner["question"],
        hits,
        render=engine.render,
        count=engine.count,
        budget=most,
        limit=most,
        style=manner["style"],
        numbered=False,
    )
    told = {"model": engine.name, "file": str(choose_decoder(settings).path), "prompt": prompt.text}
    _tell(answers, marks, peak, told)
    edge.close()


def cold_llama(begun: float) -> None:
    """`llama_cpp.Llama` on the prompt that comes on standard input."""
    marks, answers = _Marks(begun), quiet()
    file, context, tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    prompt = sys.stdin.read()
    from .engine import LlamaClass

    model = LlamaClass(file, 0, context)  # imports its package
    marks.done("model")
    first, rest, produced = model.run(prompt, tokens)
    if not produced:
        raise EngineError("llama_cpp.Llama ended its answer at once")
    at = marks.marks[-1][1]
    marks.marks += [("first_token", at + first / 1e3), ("rest", at + (first + rest) / 1e3)]
    _tell(answers, marks, peak_mb(), {})


def _tell(answers: Any, marks: _Marks, peak: float, told: Mapping[str, Any]) -> None:
    answers.write(json.dumps({"marks": marks.marks, "peak_mb": peak, **told}) + "\n")
    answers.flush()
