"""A calibration: for one set-up, how signals become a probability, and from which one on local answers are served.

A file of JSON for each set-up and task under `$EDGE_HOME/calibrations`. It is read strictly, and one that was made
for another model, prompt, sampler or retrieval is not used but named. Knows nothing of how it was fitted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..errors import CalibrationError
from .certificate import OF_REGRET, Certificate, Kind
from .logistic import Estimate, Logistic, Steps, Term
from .neighbours import Neighbours
from .setup import UNCALIBRATED, Setup
from .signals import STAGES, Stage

VERSION = 3
_LARGEST = 1e9
_HINT = "run `edge calibrate` again"


@dataclass(frozen=True, slots=True)
class Label:
    """A calibration question that the models never saw: what they gave it, and who was right. For reports."""

    probability: float
    right: bool
    remote_right: bool | None


@dataclass(frozen=True, slots=True)
class TaskScale:
    """How a task's log-odds differ from those of all tasks: multiplied, then shifted; from `n` of its questions."""

    slope: float
    shift: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """What was fitted for one set-up.

    `models` holds one model a stage. Below `hand_off_before` (a probability) or `hand_off_window` (nats) an answer
    is given up early; None: never. `certificate` holds the threshold of served answers, `held_out` the questions
    that it was counted on. `remote` gives the probability that the remote answers rightly, by what is known before
    a word is generated; None where its answers were not known.
    """

    setup: Setup
    created: str
    labels: str
    n: int
    models: Mapping[Stage, Logistic]
    remote: Logistic | None
    tasks: Mapping[str, TaskScale]
    hand_off_before: float | None
    hand_off_window: float | None
    certificate: Certificate | None
    held_out: tuple[Label, ...]
    neighbours: Neighbours

    def estimate(self, stage: Stage, signals: Mapping[str, float], task: str = "") -> Estimate:
        """The probability that the local answer is right, as far as this stage can tell."""
        estimate = self.models[stage].estimate(signals)
        scale = self.tasks.get(task)
        if scale is None:
            return estimate
        scaled = {name: scale.slope * part for name, part in estimate.contributions.items()}
        return Estimate.of(scale.slope * estimate.intercept + scale.shift, scaled)

    def remote_estimate(self, kind: Kind, signals: Mapping[str, float]) -> Estimate | None:
        """The probability that the remote answers rightly, where `kind` is about regret; see `no_regret`."""
        return None if self.remote is None or kind not in OF_REGRET else self.remote.estimate(signals)

    def serves(self, score: float) -> bool:
        """Whether an answer with this score may be served; without a certificate any may."""
        return self.certificate is None or self.certificate.serves(score)

    def with_certificate(self, certificate: Certificate | None) -> Calibration:
        """The same calibration under another target."""
        return replace(self, certificate=certificate)


class Calibrations:
    """The calibrations in a folder, and behind them those that came with the models, in the folder `shipped`."""

    def __init__(self, folder: Path, shipped: Path | None = None) -> None:
        self.folder, self.shipped = folder, shipped
        self._found: dict[str, tuple[Calibration | None, str]] = {}  # by the set-up's fingerprint

    def look_up(self, setup: Callable[[], Setup | None]) -> tuple[Calibration | None, str]:
        """Like `find`, each set-up once; a damaged file is a reason as well.

        The set-up, which may take loading models, is worked out only where there is any calibration.
        """
        if self.is_empty():
            return None, UNCALIBRATED
        try:
            wanted = setup()
            if wanted is None:
                return None, UNCALIBRATED
            if wanted.fingerprint not in self._found:
                self._found[wanted.fingerprint] = self.find(wanted)
            return self._found[wanted.fingerprint]
        except CalibrationError as error:
            return None, str(error)

    def find(self, setup: Setup) -> tuple[Calibration | None, str]:
        """The calibration for a set-up; else None, and in a sentence why there is none.

        Raises `CalibrationError` for a file that is damaged.
        """
        name = self.path(setup).name
        for path in self._files():
            if path.name == name:
                return load(path, setup), ""
        others = [load(other) for other in self._files()]
        if not others:
            return None, "no calibration"
        closest = min(others, key=lambda each: len(each.setup.differences(setup)))
        changed = ", ".join(closest.setup.differences(setup))
        return None, f"the calibration of {closest.created} does not hold: {changed} changed; calibrate again"

    def is_empty(self) -> bool:
        """Whether there is none at all, so that a set-up need not be worked out."""
        return not self._files()

    def path(self, setup: Setup) -> Path:
        """Where the calibration of a set-up is."""
        return self.folder / f"{setup.fingerprint[:16]}.json"

    def _files(self) -> list[Path]:
        folders = [self.folder] if self.shipped is None else [self.folder, self.shipped]
        return [path for folder in folders for path in sorted(folder.glob("*.json"))]

    def save(self, calibration: Calibration) -> Path:
        """Write a calibration in place of an older one of the same set-up, whole or not at all."""
        path = self.path(calibration.setup)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            text = json.dumps(_to_json(calibration), allow_nan=False)
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, ValueError) as error:
            with suppress(OSError):
                temporary.unlink()
            reason = error.strerror if isinstance(error, OSError) else error
            raise CalibrationError(f"{path} cannot be written: {reason}") from error
        return path


def load(path: Path, setup: Setup | None = None) -> Calibration:
    """Read a calibration. Raises `CalibrationError` in one line when it is damaged, or not of `setup`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] == 2 and values["no_regret"] is None:  # otherwise the same
            values |= {"version": VERSION, "remote": None}
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}")
        calibration = _from_json(values)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error.message}", hint=_HINT) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise CalibrationError(
            f"{path} is no calibration ({type(error).__name__}: {reason})", hint=_HINT
        ) from error
    if setup is not None and calibration.setup.fingerprint != setup.fingerprint:
        changed = ", ".join(calibration.setup.differences(setup))
        raise CalibrationError(f"{path} was made for another set-up ({changed})", hint=_HINT)
    return calibration


# --- the file ---------------------------------------------------------------------------------------


def _to_json(it: Calibration) -> dict[str, Any]:
    return {
        "version": VERSION,
        "setup": dict(it.setup.parts),
        "created": it.created,
        "labels": it.labels,
        "n": it.n,
        "models": {stage: _model_to_json(model) for stage, model in it.models.items()},
        "remote": None if it.remote is None else _model_to_json(it.remote),
        "tasks": {name: [scale.slope, scale.shift, scale.n] for name, scale in it.tasks.items()},
        "hand_off_before": it.hand_off_before,
        "hand_off_window": it.hand_off_window,
        "certificate": None if it.certificate is None else json.loads(it.certificate.to_json()),
        "held_out": [[each.probability, each.right, each.remote_right] for each in it.held_out],
        "neighbours": it.neighbours.to_json(),
    }


def _from_json(values: Mapping[str, Any]) -> Calibration:
    certificate = values["certificate"]
    models = {stage: _model_from_json(values["models"][stage], stage) for stage in STAGES}
    remote = values["remote"]
    return Calibration(
        setup=Setup({name: _text(part) for name, part in values["setup"].items()}),
        created=_text(values["created"]),
        labels=_text(values["labels"]),
        n=_count(values["n"]),
        models=models,
        remote=None if remote is None else _model_from_json(remote, "before"),
        tasks={
            name: TaskScale(_positive(slope), _finite(shift), _count(n))
            for name, (slope, shift, n) in values["tasks"].items()
        },
        hand_off_before=_finite_or_none(values["hand_off_before"]),
        hand_off_window=_finite_or_none(values["hand_off_window"]),
        certificate=None if certificate is None else Certificate.from_json(json.dumps(certificate)),
        held_out=tuple(
            Label(_share(probability), _flag(right), None if far is None else _flag(far))
            for probability, right, far in values["held_out"]
        ),
        neighbours=Neighbours.from_json(values["neighbours"]),
    )


def _model_to_json(model: Logistic) -> dict[str, Any]:
    terms = {name: [term.mean, term.deviation, term.weight] for name, term in model.terms.items()}
    steps = None if model.steps is None else [list(model.steps.bounds), list(model.steps.values)]
    return {"intercept": model.intercept, "terms": terms, "steps": steps}


def _model_from_json(values: Mapping[str, Any], stage: Stage) -> Logistic:
    terms = {}
    for name, (mean, deviation, weight) in values["terms"].items():
        if name not in STAGES[stage]:
            raise ValueError(f"there is no signal {name!r} at the stage {stage!r}")
        terms[cast(str, name)] = Term(_finite(mean), _positive(deviation), _finite(weight))
    steps = None
    if values["steps"] is not None:
        bounds, heights = ([_finite(each) for each in part] for part in values["steps"])
        if not bounds or len(bounds) != len(heights) or sorted(bounds) != bounds or sorted(heights) != heights:
            raise ValueError("the steps do not rise")
        steps = Steps(tuple(bounds), tuple(heights))
    return Logistic(_finite(values["intercept"]), terms, steps)


def _finite(value: object) -> float:
    """A number that a fit may give; sums and products of such numbers stay finite."""
    if type(value) not in (int, float) or not abs(cast(float, value)) <= _LARGEST:
        raise ValueError(f"{str(value)[:40]!r} is not a number that a fit gives")
    return float(cast(float, value))


def _finite_or_none(value: object) -> float | None:
    return None if value is None else _finite(value)


def _positive(value: object) -> float:
    if _finite(value) <= 0:
        raise ValueError(f"{value} is not above 0")
    return _finite(value)


def _share(value: object) -> float:
    if not 0 <= _finite(value) <= 1:
        raise ValueError(f"{value} is no probability")
    return _finite(value)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]!r} is neither true nor false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value
