"""`edge tune`: the file and the settings that suit a model on this device, found by measuring.

Candidate files are made and compared with the model's own in divergence, bytes and speed; then, for the best of
them, threads, batch size, flash attention and the type of the KV cache. Everything measured is kept at once, so
that an interrupted run goes on where it stopped. The result is a profile that the engine loads by itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

from edge_sdk.bench.engine import Worker, made_prompt
from edge_sdk.device import cpu_name, default_threads
from edge_sdk.engines.profile import Profile, Tuning
from edge_sdk.engines.repacking import copied_tensors, decide_repacking
from edge_sdk.errors import ConfigError
from edge_sdk.hub.partial import hash_file
from edge_sdk.model_files.gguf_header import read_header

from .allocation import Choice, Plan, allocate, smallest
from .gguf_format import Update
from .mixed import EMBEDDING, OUTPUT, Costs, Source, build, measure_costs, plan_of
from .workbench import Workbench

UNIFORM = ("BF16", "Q8_0", "IQ4_NL", "Q4_0")
"""Types that whole files are made of. BF16 reads fastest of all where the processor multiplies it by itself."""
MIXED = (0.5, 0.75, 0.9, 0.95)
WIDE = (0.5, 0.75, 0.95)
"""Shares of the speed-up that is possible for a question which mixed files should have: those of at most 8 bits a
weight, and those of any size."""
Times = Callable[[str, str], tuple[float, float]]
OWN = "as published"
_PROMPT, _ANSWER, _CONTEXT = 600, 64, 1024
_LONGEST, _STEPS = 8, 10  # times _ANSWER; halvings of what lies between
_WIDE = ("F32", "F16", "BF16")
_WARM_UP = (16, 4)
_GAIN = 1.03  # a setting that gains less is left as it is: such differences come and go


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file, or the model's own, with what was measured of it. Rates are in tokens a second."""

    name: str
    bytes: int
    divergence: float
    prefill: float
    decode: float
    prefill_ratio: float  # of the model's own file, medians of quotients within rounds
    decode_ratio: float
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    contained: float | None = None  # share of right answers, where questions were given


@dataclass(frozen=True, slots=True)
class Setting:
    """Threads and tuning with the rates that they gave, as ratios to the engine's own defaults."""

    threads: int
    tuning: Tuning
    prefill_ratio: float
    decode_ratio: float


class Tuner:
    """Candidates of one model in a folder of their own, where what was measured is kept as well."""

    def __init__(
        self,
        bench: Workbench,
        folder: Path,
        *,
        threads: int | None = None,
        repeats: int = 5,
        answers: Callable[[Path], float] | None = None,
        asked: str = "",
        progress: Update = lambda done, total, detail: None,
        cancel: Event | None = None,
    ) -> None:
        """`answers` gives the share of questions that a file answers rightly, and `asked` names the questions."""
        self.source, self._bench, self.folder = bench.source, bench, folder
        self.threads, self._repeats, self._answers = threads or default_threads(), repeats, answers
        self._asked = asked
        self._progress, self._cancel = progress, cancel
        folder.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, Any] = _read(folder / "measured.json", cpu_name())
        self._files: dict[str, Path] = {}

    # --- files ------------------------------------------------------------------------------------------

    def candidates(
        self,
        uniform: Sequence[str] = UNIFORM,
        mixed: Sequence[float] = MIXED,
        wide: Sequence[float] = WIDE,
    ) -> list[Candidate]:
        """Make and measure all files, the model's own first. Where no type is faster, nothing is mixed.

        Questions are asked to those of the front, which are worth their time.
        """
        files = self._files = {OWN: self.source.model.path} | {type: self._uniform(type) for type in uniform}
        narrow = [type for type in uniform if type not in _WIDE]
        wanted = [("mixed", narrow, share) for share in mixed]
        wanted += [("wide", list(uniform), share) for share in wide if len(narrow) < len(uniform)]
        if wanted:
            times = self._times(uniform, self._rates(files))
            for kind, types, share in wanted:
                if (plan := self._plan_for(share, types, times)) is not None:
                    name = f"{kind} {share:.0%}"
                    files[name] = self._file(f"{name[:-1].replace(' ', '-')}-{'-'.join(types)}", plan)
        rates = self._rates(files)
        found = [self._candidate(name, path, rates[name]) for name, path in files.items()]
        best = {each.name for each in front(found)}
        return [self._asked_too(each) if each.name in best else each for each in found]

    def path(self, name: str) -> Path:
        """The file of a candidate that was measured."""
        return self._files[name]

    def _uniform(self, type: str) -> Path:
        """All matrices in one type, but the embeddings in 8 bits at least: they are read, not multiplied."""
        names = self.source.tensors
        types = {name: "Q8_0" if name in ("token_embd.weight", "output.weight") else type for name in names}
        return self._file(type, Plan(types))

    def _times(self, uniform: Sequence[str], rates: Mapping[str, Mapping[str, float]]) -> Times:
        """Nanoseconds for which a matrix in a type keeps a typical prompt, and one token more, waiting.

        As whole files have shown. A prefill wants the output of its last token only, so the output matrix counts
        for decoding alone.
        """
        blocks = sum(prod(each.shape) for name, each in self.source.tensors.items() if name.startswith("blk."))
        every = blocks + max(
            (prod(each.shape) for name, each in self.source.tensors.items() if name in (OUTPUT, EMBEDDING)),
            default=0,
        )
        prefill, decode = (
            {type: 1e9 * tokens / (rates[type][rate] * weights) for type in (OWN, *uniform)}
            for rate, tokens, weights in (("prefill", _PROMPT, blocks), ("decode", 1, every))
        )

        def times(name: str, type: str) -> tuple[float, float]:
            kind, weights = type if type in uniform else OWN, prod(self.source.tensors[name].shape)
            return (weights * prefill[kind] if name.startswith("blk.") else 0.0), weights * decode[kind]

        return times

    def _plan_for(self, share: float, types: Sequence[str], times: Times) -> Plan | None:
        """The plan of least divergence that has this share of the possible speed-up; None where there is none.

        Where it would decode more slowly than the model's own file, it is made for longer answers, as long as it
        takes for it not to.
        """
        costs = self._costs()
        own = {name: self.source.tensors[name].type for name in costs.choices}
        allowed = {
            name: [choice for choice in options if choice.type in (*types, own[name])]
            for name, options in costs.choices.items()
        }

        def allocated(tokens: float) -> dict[str, Choice] | None:
            def price(name: str, type: str) -> int:
                prefill, decode = times(name, type)
                return round(prefill + tokens * decode)

            priced = replace(costs, choices=allowed).priced(price)
            slow, fast = sum(price(name, type) for name, type in own.items()), smallest(priced.choices)
            budget = slow / (1 + share * (slow / fast - 1))
            return allocate(priced.choices, max(int(budget), fast)) if fast < slow else None

        def decodes(chosen: Mapping[str, Choice]) -> bool:
            longest = sum(times(name, type)[1] for name, type in own.items()) / _GAIN
            return sum(times(name, choice.type)[1] for name, choice in chosen.items()) <= longest

        if (best := allocated(_ANSWER)) is None:
            return None
        low, high = float(_ANSWER), float(_ANSWER * _LONGEST)
        for _ in range(0 if decodes(best) else _STEPS):
            middle = (low * high) ** 0.5
            found = allocated(middle)
            if found is not None and not decodes(found):
                low = middle
                continue
            high, best = middle, found or best
        return plan_of(self.source, costs, best)

    def _file(self, name: str, plan: Plan) -> Path:
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            build(self.source, plan, path, threads=self.threads, progress=self._progress, cancel=self._cancel)
            plan.save(path.with_suffix(".plan.json"))
        return path

    def _costs(self) -> Costs:
        def measure() -> dict[str, Any]:
            return measure_costs(
                self.source,
                lambda path: self._bench.planning.compare(path, cancel=self._cancel).kld_mean,
                threads=self.threads,
                folder=self.folder,
                progress=self._progress,
                cancel=self._cancel,
            ).to_json()

        return Costs.from_json(self._measured("costs", measure))

    def _candidate(self, name: str, path: Path, rates: Mapping[str, Any]) -> Candidate:
        divergence = self._measured(f"divergence {path.name}", lambda: self._diverged(path))
        return Candidate(name, path.stat().st_size, divergence, **rates)

    def _asked_too(self, candidate: Candidate) -> Candidate:
        if self._answers is None:
            return candidate
        answers, path = self._answers, self._files[candidate.name]
        self._progress(0, None, f"questions to {candidate.name}")
        found = self._measured(f"contained {path.name} {self._asked}", lambda: answers(path))
        return replace(candidate, contained=found)

    def _diverged(self, path: Path) -> float:
        return self._bench.judging.compare(path, progress=self._progress, cancel=self._cancel).kld_mean

    def _rates(self, files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """Speed of all files, taking turns; measured anew when a file has joined them."""
        settings = json.dumps(asdict(Tuning()))  # what was measured with other defaults does not count
        key = f"rates {self.threads} {settings} " + " ".join(path.name for path in files.values())
        runs = {name: (path, self.threads, Tuning()) for name, path in files.items()}
        found: dict[str, dict[str, Any]] = self._measured(key, lambda: self._race(runs, OWN))
        return found

    # --- settings ---------------------------------------------------------------------------------------

    def settings(self, path: Path) -> list[Setting]:
        """Rates of a file under other settings than the defaults, which come first."""
        default = (self.threads, Tuning())
        tried = [
            default,
            *((threads, Tuning()) for threads in range(1, self.threads)),
            *((self.threads, Tuning(batch=batch)) for batch in (128, 256, 1024)),
            *((self.threads, Tuning(flash_attention=on)) for on in (True, False)),
        ]
        header = self.source.model.header
        made = read_header(path)
        if copied_tensors(made):
            tried.append((self.threads, Tuning(repack=not decide_repacking(Tuning(), made).repack)))
        if header.n_embd and header.n_head and header.n_embd // header.n_head % 32 == 0:
            tried.append((self.threads, Tuning(flash_attention=True, cache_type="Q8_0")))
        names = {f"{threads} {json.dumps(asdict(tuning))}": (threads, tuning) for threads, tuning in tried}
        first = next(iter(names))
        runs = {name: (path, *setting) for name, setting in names.items()}
        rates = self._measured(f"settings {path.name} " + " ".join(names), lambda: self._race(runs, first))
        return [
            Setting(threads, tuning, rates[name]["prefill_ratio"], rates[name]["decode_ratio"])
            for name, (threads, tuning) in names.items()
        ]

    # --- keeping ----------------------------------------------------------------------------------------

    def _race(self, runs: Mapping[str, tuple[Path, int, Tuning]], against: str) -> dict[str, dict[str, Any]]:
        return race(runs, against, repeats=self._repeats, progress=self._progress, cancel=self._cancel)

    def _measured(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was measured under this key, now or in a run before."""
        if key not in self._kept:
            self._kept[key] = measure()
            path = self.folder / "measured.json"
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps({"device": cpu_name(), "measured": self._kept}) + "\n", "utf-8")
            partial.replace(path)
        return self._kept[key]


def race(
    runs: Mapping[str, tuple[Path, int, Tuning]],
    against: str,
    *,
    repeats: int = 5,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> dict[str, dict[str, Any]]:
    """Prefill and decode of several files and settings: loaded together, taking turns, a new prompt each round.

    Rates in tokens a second are medians, with their least and most in `spread`; ratios to the run `against` are
    medians of quotients within rounds.
    """
    workers: dict[str, Worker] = {}
    rounds: list[dict[str, dict[str, float]]] = []
    try:
        for name, (path, threads, tuning) in runs.items():
            workers[name] = Worker("edge", path, threads, _CONTEXT, asdict(tuning))
        for number in range(repeats + 1):
            wanted, tokens = (_PROMPT, _ANSWER) if number else _WARM_UP
            prompt = made_prompt(workers[against].count, wanted, number)
            order = list(workers)[number % len(workers) :] + list(workers)[: number % len(workers)]
            turn = {}
            for at, name in enumerate(order):
                if cancel is not None and cancel.is_set():
                    raise KeyboardInterrupt
                progress(number * len(workers) + at, (repeats + 1) * len(workers), f"speed: {name}")
                turn[name] = workers[name].measure(prompt, tokens)
            if number:
                rounds.append(turn)
    finally:
        for worker in workers.values():
            worker.stop()
    return {name: _summary(rounds, name, against) for name in runs}


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in one of divergence, bytes, prefill and decode without being worse in another."""

    def merits(each: Candidate) -> tuple[float, ...]:
        return (-each.divergence, -each.bytes, each.prefill_ratio, each.decode_ratio)

    def beaten(each: Candidate) -> bool:
        mine = merits(each)
        return any(
            all(a >= b for a, b in zip(merits(other), mine, strict=True)) and merits(other) != mine
            for other in candidates
        )

    return [each for each in candidates if not beaten(each)]


def choose(candidates: Sequence[Candidate], *, most_divergence: float, most_bytes: int | None = None) -> Candidate:
    """The one with the fastest prefill, among those within the bounds whose decoding is no slower.

    Answers from documents wait for the prefill. The model's own file is always within the bounds.
    """
    own = next(each for each in candidates if each.name == OWN)
    allowed = [
        each
        for each in candidates
        if each.divergence <= most_divergence
        and (most_bytes is None or each.bytes <= most_bytes)
        and each.decode_ratio >= 1
    ]
    return max([own, *allowed], key=lambda each: each.prefill_ratio)


def choose_setting(settings: Sequence[Setting]) -> Setting:
    """The best of those that gain clearly in prefill and lose nothing clear in decoding; the first, else.

    The KV cache stays in half precision: what 8 bits do to answers was not measured.
    """
    allowed = [
        each
        for each in settings
        if each.prefill_ratio >= _GAIN and each.decode_ratio >= 1 / _GAIN and each.tuning.cache_type == "F16"
    ]
    return max(allowed, key=lambda each: each.prefill_ratio, default=settings[0])


def make_profile(source: Source, chosen: Path, setting: Setting, figures: Mapping[str, object]) -> Profile:
    """The profile of a model for this device."""
    own = source.model.path
    return Profile(
        model=own.stem,
        bytes=own.stat().st_size,
        file="" if chosen == own else str(chosen.resolve()),
        sha256="" if chosen == own else hash_file(chosen),
        threads=setting.threads,
        tuning=setting.tuning,
        device=cpu_name(),
        figures=dict(figures),
    )


def _summary(rounds: Sequence[Mapping[str, Mapping[str, float]]], name: str, against: str) -> dict[str, Any]:
    found: dict[str, Any] = {"spread": {}}
    for short in ("prefill", "decode"):
        measure = f"{short}_tokens_per_second"
        values = [turn[name][measure] for turn in rounds]
        found[short] = round(median(values), 1)
        found[f"{short}_ratio"] = round(median(turn[name][measure] / turn[against][measure] for turn in rounds), 3)
        found["spread"][short] = (round(min(values), 1), round(max(values), 1))
    return found


def _read(path: Path, device: str) -> dict[str, Any]:
    """What earlier runs on this processor have kept."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return dict(found["measured"]) if found["device"] == device else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="delete it") from error
