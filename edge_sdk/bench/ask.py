"""Measures questions end to end, to the first word and to the last, beside peers on the same passages.

Ours is `Edge.stream` over a copy of the store, without any remote, in a process of its own. A peer is handed the
prompt ready made, with whole passages up to a number of tokens: it searches nothing. All take turns, question by
question. Knows nothing of how the result is shown, and not whether an answer is right.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device import describe
from ..errors import ConfigError, EngineError, StoreError
from .apart import Apart, answer, peak_mb, quiet
from .energy import EnergyMeter
from .peers import Peer, find_peers
from .summary import rounded, summarise

if TYPE_CHECKING:
    from ..config import Settings
    from ..edge import Edge
    from ..prompt import Reading, Style

Progress = Callable[[float, float | None, str], None]
MEASURES = (
    "first_token_ms",
    "whole_ms",
    "prompt_tokens",
    "completion_tokens",
    "decode_tokens_per_second",
    "peak_mb",
)
"""Of every contender; ours has those of its parts as well."""
RATIOS = ("first_token_ms", "whole_ms", "decode_tokens_per_second")
WARM_UP = "What is this about?"


def bench_ask(
    settings: Settings,
    questions: Sequence[str],
    *,
    style: Style = "full",
    max_tokens: int = 64,
    k: int = 8,
    peer_tokens: int = 600,
    with_peers: bool = True,
    progress: Progress = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Ask each question once; the JSON document of `edge bench ask`.

    `contenders` NAME has for each measure the median over the questions, `p95`, and as `spread` the interval of the
    median; `ratios` the same of the quotients peer / ours, question by question. `first_token_ms` of ours counts
    from the question, with its search, `prefill_ms` from the prompt; that of a peer from the prompt. Peers run the
    model's own file with their defaults (ours may run a tuned one) on a prompt of at most `peer_tokens` tokens.
    `joules` of a question are those of the whole processor, None where the system does not tell; `left_out` says
    why a peer is not there. Raises `ConfigError` without a question or a store, and what opening models raises.
    """
    if not questions:
        raise ConfigError("there is no question to ask", hint="give questions, or a folder with --data")
    meter = EnergyMeter()
    rows: dict[str, list[dict[str, float | None]]] = {"edge": []}
    with private_store(settings) as own, _contender(own, style, max_tokens, k) as edge:
        told = edge.ask({"load": WARM_UP})
        context = -(-(peer_tokens + max_tokens + 64) // 256) * 256
        found, left_out = find_peers(Path(told["file"]), context) if with_peers else ({}, {})
        peers: dict[str, Peer] = {}
        try:
            for name, start in found.items():
                progress(0, len(questions), f"starting {name}")
                peers[name] = start()
                peers[name].run("Hello", 2)
                rows[name] = []
            for number, question in enumerate(questions):
                progress(number, len(questions), question)
                prompt = edge.ask({"prompt": question, "tokens": peer_tokens}) if peers else {}
                turns = list(rows)
                for name in turns[number % len(turns) :] + turns[: number % len(turns)]:
                    meter.start()
                    row = (
                        edge.ask({"question": question})
                        if name == "edge"
                        else _asked(peers[name], prompt, max_tokens)
                    )
                    rows[name].append({**row, "joules": meter.joules()})
        finally:
            for peer in peers.values():
                peer.stop()
    progress(len(questions), len(questions), "")
    return {
        "contenders": {name: {**summarise(of), "peak_mb": _most(of, "peak_mb")} for name, of in rows.items()},
        "ratios": {f"{name}_to_edge": _ratios(rows[name], rows["edge"]) for name in peers},
        "first_question_ms": rounded(told["first_question_ms"]),
        "left_out": left_out,
        "settings": {
            **{name: told[name] for name in ("model", "context", "prompt_tokens", "evidence_tokens")},
            "questions": len(questions),
            "style": style,
            "max_tokens": max_tokens,
            "k": k,
            "encoder": Path(settings.encoder).name,
            "threads": settings.threads,
            **({"peer_tokens": peer_tokens, "peer_context": context} if peers else {}),
        },
        "machine": describe(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _asked(peer: Peer, prompt: Mapping[str, Any], max_tokens: int) -> dict[str, float | None]:
    reply = peer.run(prompt["text"], max_tokens)
    first, rest, produced = reply["first_ms"], reply["rest_ms"], reply["produced"]
    return {
        "first_token_ms": first if produced else None,
        "whole_ms": first + rest if produced else None,
        "prompt_tokens": prompt["count"],
        "completion_tokens": produced,
        "decode_tokens_per_second": (produced - 1) / rest * 1e3 if produced > 1 and rest else None,
        "peak_mb": reply["peak_mb"],
    }


def _most(rows: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    known = [value for row in rows if (value := row.get(name)) is not None]
    return rounded(max(known)) if known else None


def _ratios(
    peer: Sequence[Mapping[str, float | None]], ours: Sequence[Mapping[str, float | None]]
) -> dict[str, object]:
    quotients = [
        {name: theirs[name] / mine[name] if theirs[name] and mine[name] else None for name in RATIOS}  # type: ignore[operator]
        for theirs, mine in zip(peer, ours, strict=True)
    ]
    return summarise(quotients)


@contextmanager
def private_store(settings: Settings) -> Iterator[Settings]:
    """Settings with a copy of their store, which is thrown away: what is asked here is no decision of the user's.

    Raises `ConfigError` where there is no store, `StoreError` where it cannot be copied.
    """
    if not settings.store.exists():
        raise ConfigError(
            f"there is no store at {settings.store}", hint="run `edge add PATH` first, or give --data"
        )
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        copy = Path(folder, "store.db")
        try:
            with closing(sqlite3.connect(settings.store)) as store, closing(sqlite3.connect(copy)) as target:
                store.backup(target)
        except sqlite3.Error as error:
            raise StoreError(f"{settings.store} cannot be copied: {error}") from error
        yield replace(settings, store=copy)


def settings_flags(settings: Settings) -> dict[str, str]:
    """What a process needs to read the same settings: the flags, the rest being in its environment.

    No remote, and no prompts kept on the disk: the same question asked in a run before would be answered at once.
    """
    given = {name: str(getattr(settings, name)) for name, source in settings.sources.items() if source == "flag"}
    return {**given, "home": str(settings.home), "store": str(settings.store), "remote": "", "prefix_cache": "0"}


@contextmanager
def _contender(settings: Settings, style: Style, max_tokens: int, k: int) -> Iterator[Apart]:
    manner = {"style": style, "max_tokens": max_tokens, "k": k}
    found = Apart("edge", __name__, [json.dumps(settings_flags(settings)), json.dumps(manner)])
    try:
        yield found
    finally:
        found.stop()


# --- our process ------------------------------------------------------------------------------------


class Asked:
    """An assistant that answers whatever its documents support, and times itself."""

    def __init__(self, flags: Mapping[str, object], manner: Mapping[str, Any]) -> None:
        from ..config import load_settings

        self._settings, self._manner = load_settings(flags), manner
        self._edge, self._reading = _open(self._settings)

    def reply(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """To one line of JSON: `load`, `prompt` or `question`."""
        if "load" in question:
            return self.load(question["load"])
        if "prompt" in question:
            return self.prompt(question["prompt"], question["tokens"])
        return self.measure(question["question"])

    def load(self, question: str) -> dict[str, Any]:
        """Everything is loaded by a first question, which is not counted among the others."""
        from ..loading import choose_decoder

        started = time.perf_counter()
        self.measure(question)
        engine, reading = self._edge.engine, self._reading()
        return {
            "first_question_ms": (time.perf_counter() - started) * 1e3,
            "model": engine.name,
            "file": str(choose_decoder(self._settings).path),
            "context": engine.context,
            "prompt_tokens": reading.prompt_tokens,
            "evidence_tokens": reading.evidence_tokens,
        }

    def prompt(self, question: str, tokens: int) -> dict[str, Any]:
        """What a peer is given: whole passages in rank order, as many as fit."""
        from ..prompt import build_prompt

        engine = self._edge.engine
        prompt = build_prompt(
            question,
            self._edge.search(question, self._manner["k"]),
            render=engine.render,
            count=engine.count,
            budget=tokens,
            limit=tokens,
            style=self._manner["style"],
            numbered=self._reading().numbered,
        )
        return {"text": prompt.text, "count": prompt.tokens}

    def measure(self, question: str) -> dict[str, Any]:
        """The question answered, in the measures of `bench_ask`."""
        started = time.perf_counter()
        first = ended = None
        for event in self._edge.stream(question, **self._manner):
            if event.kind == "provisional" and first is None:
                first = time.perf_counter()
            if event.answer is not None:
                ended, found = time.perf_counter(), event.answer
        if ended is None:
            raise EngineError("the answer was interrupted")
        times, tokens = found.timings, found.tokens
        decode = times.decode_ms
        return {
            "first_token_ms": ((first or ended) - started) * 1e3,
            "whole_ms": (ended - started) * 1e3,
            "retrieve_ms": times.retrieve_ms,
            "prefill_ms": times.prefill_ms,
            "prompt_tokens": tokens.prompt,
            "cached_tokens": tokens.cached,
            "completion_tokens": tokens.completion,
            "decode_tokens_per_second": (tokens.completion - 1) / decode * 1e3
            if decode and tokens.completion > 1
            else None,
            "peak_mb": peak_mb(),
        }


def _open(settings: Settings) -> tuple[Edge, Callable[[], Reading]]:
    """As `Edge.open`, without a remote, and how the model reads."""
    from .. import loading
    from ..edge import Edge
    from ..route import Policy

    def engine() -> Any:
        loaded.append(loading.load_engine(settings))
        return loaded[-1]

    loaded: list[Any] = []
    edge = Edge(
        loading.open_store(settings),
        lambda: loading.load_encoder(settings),
        engine,
        policy=Policy("local"),
        calibrations=loading.load_calibrations(settings),
        sampling=loading.load_sampling(settings),
        reader=lambda: loading.load_reader(settings),
    )
    return edge, lambda: loaded[-1][1]


if __name__ == "__main__":
    _answers = quiet()
    answer(Asked(json.loads(sys.argv[1]), json.loads(sys.argv[2])).reply, _answers)
