"""What calibration promises about wrong local answers, in numbers that can be checked again.

A certificate is read strictly: its counts must give its bound, so that an edited one is refused. Knows nothing of
how the threshold was found (`risk`) or of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date as calendar_date
from math import ceil, isfinite
from typing import Any, Literal, NoReturn, get_args

from ..errors import CalibrationError
from .binomial import clopper_pearson_upper

Kind = Literal["marginal", "marginal_hp", "selective", "regret", "regret_hp"]
IN_EXPECTATION: tuple[Kind, ...] = ("marginal", "regret")
OF_REGRET: tuple[Kind, ...] = ("regret", "regret_hp")
_KINDS: tuple[Kind, ...] = get_args(Kind)
_RISKS: Mapping[Kind, str] = {
    "marginal": "all questions get a wrong local answer",
    "marginal_hp": "all questions get a wrong local answer",
    "selective": "the answers served locally are wrong",
    "regret": "all questions get a wrong local answer that the remote has right",
    "regret_hp": "all questions get a wrong local answer that the remote has right",
}
_HINT = "calibrate again"
_ROUNDING = 1e-9  # between two machines' arithmetic


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold with the promise that it keeps, for questions drawn as the `n` calibration questions were.

    Answers with a score of at least `threshold` may be served locally; None: nothing could be certified, so none
    may. `errors` are counted among the `served` calibration questions, and `bound`, at most `alpha`, is what they
    show: in expectation where `delta` is None, else with probability 1 - `delta`. Without a threshold `bound` is
    None, `smallest_alpha` is the least target that the same labels could show (None: none below 1) and
    `labels_missing` roughly how many labels more the target needs at the rates seen (None: no number would do).
    """

    kind: Kind
    alpha: float
    delta: float | None
    n: int
    served: int
    errors: int
    bound: float | None
    threshold: float | None
    smallest_alpha: float | None
    labels_missing: int | None
    labels: str  # what "right" is relative to: "exact match", "answers of MODEL"
    fingerprints: Mapping[str, str]  # name to hash of everything that the scores depend on
    date: str  # ISO 8601

    @property
    def local_share(self) -> float:
        """Share of the calibration questions that would be served locally."""
        return self.served / self.n if self.n else 0.0

    def serves(self, score: float) -> bool:
        """Whether an answer with this score may be served locally; never for NaN or without a threshold."""
        return self.threshold is not None and score >= self.threshold

    def sentence(self) -> str:
        """The promise, or what is missing for one, as a line for people."""
        sure = "on average" if self.delta is None else f"with {_percent(1 - self.delta)} confidence"
        target = f"{sure} at most {_percent(self.alpha)} of {_RISKS[self.kind]}"
        seen = f"{self.n} labels" + (f" ({self.labels})" if self.labels else "")
        if self.threshold is not None and self.bound is not None:
            wrong = f"{self.errors} of {self.served} served locally count against it, bound {_percent(self.bound)}"
            return f"{target[0].upper()}{target[1:]}: {seen}, {wrong}, threshold {self.threshold:.3g}."
        if self.smallest_alpha is None:
            could = "no target could be shown"
        else:
            could = f"the least target they could show is {ceil(1000 * self.smallest_alpha) / 10:g} %"
        if self.labels_missing is None:
            missing = "more labels would not help at the rates seen"
        else:
            missing = f"about {self.labels_missing} labels more are needed"
        return f"Not certified: {target}. With {seen} {could}; {missing}. Nothing is served locally under it."

    def to_json(self) -> str:
        """One JSON object with the fields by name; `from_json` gives back an equal certificate."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["fingerprints"] = dict(self.fingerprints)
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Certificate:
        """The certificate of `to_json`. Raises `CalibrationError` for what `certify` cannot have made."""
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"the certificate is not JSON: {error}", hint=_HINT) from None
        if not isinstance(values, dict):
            raise CalibrationError("the certificate is not a JSON object", hint=_HINT)
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            odd = sorted(values.keys() ^ names)[0]
            lacks = "has no field" if odd in names else "has the unknown field"
            raise CalibrationError(f"the certificate {lacks} {odd[:40]!r}", hint=_HINT)
        for name, fine in _FORMS.items():
            if not fine(values[name]):
                raise CalibrationError(f"the certificate's {name} cannot be {str(values[name])[:40]!r}", hint=_HINT)
        certificate = cls(**values)
        if flaw := _flaw(certificate):
            raise CalibrationError(f"the certificate contradicts itself: {flaw}", hint=_HINT)
        return certificate


def bound(kind: Kind, errors: int, trials: int, delta: float) -> float:
    """What `errors` of `trials` show: all questions are trials, for `selective` only those served.

    In expectation (errors + 1) / (trials + 1), conformal risk control for a loss of at most 1 (Angelopoulos et al.
    2022, arXiv 2208.02814); else the Clopper-Pearson bound at confidence 1 - `delta`.

    >>> bound("marginal", 4, 99, 0.1), round(bound("marginal_hp", 4, 99, 0.1), 4)
    (0.05, 0.0791)
    """
    if kind in IN_EXPECTATION:
        return (errors + 1) / (trials + 1)
    return clopper_pearson_upper(errors, trials, delta)


def _flaw(it: Certificate) -> str:
    """Why the fields of a certificate, each well-formed, cannot belong together; "" when they can."""
    if (it.delta is None) != (it.kind in IN_EXPECTATION):
        return f"kind {it.kind} with delta {it.delta}"
    if not it.errors <= it.served <= it.n:
        return f"{it.errors} errors among {it.served} served of {it.n}"
    if it.threshold is None:
        return "nothing was certified, yet something was" if it.bound is not None or it.served else ""
    if it.bound is None or not it.served or it.smallest_alpha is not None or it.labels_missing is not None:
        return "a threshold that nothing was certified for"
    shown = bound(it.kind, it.errors, it.served if it.kind == "selective" else it.n, it.delta or 0.0)
    if abs(shown - it.bound) > _ROUNDING:
        return f"its counts show {shown:.4g}, not {it.bound:.4g}"
    return f"bound {it.bound:.4g} above alpha {it.alpha:g}" if it.bound > it.alpha + _ROUNDING else ""


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _is_share(value: Any) -> bool:
    return _is_number(value) and bool(0 < value < 1)


def _is_date(value: Any) -> bool:
    try:
        calendar_date.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


_FORMS = {
    "kind": lambda value: value in _KINDS,
    "alpha": _is_share,
    "delta": lambda value: value is None or _is_share(value),
    "n": _is_count,
    "served": _is_count,
    "errors": _is_count,
    "bound": lambda value: value is None or _is_share(value),
    "threshold": lambda value: value is None or _is_number(value),
    "smallest_alpha": lambda value: value is None or _is_share(value),
    "labels_missing": lambda value: value is None or _is_count(value),
    "labels": lambda value: isinstance(value, str),
    "fingerprints": _is_hashes,
    "date": _is_date,
}
