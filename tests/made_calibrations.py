"""Made-up calibrations, answers and signals for tests of what is fitted on them and decided by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edge_sdk.confidence.calibration import Calibration, Label, TaskScale
from edge_sdk.confidence.certificate import Certificate, Kind
from edge_sdk.confidence.logistic import Logistic, Steps, Term
from edge_sdk.confidence.neighbours import gather
from edge_sdk.confidence.risk import certify
from edge_sdk.confidence.setup import Setup
from edge_sdk.confidence.signals import SIGNALS
from edge_sdk.records import Hit, Passage, Token
from quantize.asking import Asked

DIMENSION = 16
SETUP = Setup({"model": "a1", "prompt": "b2", "sampler": "c3", "retrieval": "d4", "signals": "e5"})


def passage(text: str, heading: str = "", id: int = 1) -> Passage:
    return Passage(id, "a.md", "Title", heading, text, 0, len(text))


def hit(text: str, score: float = 1.0, *, heading: str = "", similarity: float | None = 0.8, rank: int = 1) -> Hit:
    return Hit(passage(text, heading, rank), score, rank, 3.0, rank, similarity)


def token(text: str, logprob: float = -0.1, entropy: float = 0.4, margin: float = 2.0) -> Token:
    return Token(1, text, logprob, entropy, margin)


def vectors(count: int, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def certificate(threshold: float | None = 0.6, n: int = 99, kind: Kind = "marginal") -> Certificate:
    """One that serves from `threshold` on: everything above was right."""
    if threshold is None:
        return certify([0.5] * 20, [True] * 20, alpha=0.1, date="2026-01-02")
    scores = [threshold + (1 - threshold) * at / n for at in range(n)]
    far = [True] * n
    return certify(scores, [False] * n, alpha=0.1, kind=kind, remote_right=far, labels="made up", date="2026-01-02")


def calibration(
    *,
    setup: Setup = SETUP,
    after: Mapping[str, Term] | None = None,
    before: Mapping[str, Term] | None = None,
    steps: Steps | None = None,
    remote: Mapping[str, Term] | None = None,
    tasks: Mapping[str, TaskScale] | None = None,
    hand_off_before: float | None = None,
    hand_off_window: float | None = None,
    certified: Certificate | None = None,
    questions: Sequence[str] = ("Who built it?", "When was it built?", "Where is it?"),
    dimension: int = DIMENSION,
) -> Calibration:
    early = Logistic(0.2, dict(before or {"words_found": Term(0.5, 0.2, 0.8)}))
    late = dict(after or {"evidence": Term(0.4, 0.3, 1.1), "mean_logprob": Term(-0.4, 0.2, 0.5)})
    right = [at % 2 == 0 for at in range(len(questions))]
    return Calibration(
        setup=setup,
        created="2026-01-02",
        labels="made up",
        n=len(questions),
        models={"before": early, "first": early, "after": Logistic(-0.3, late, steps)},
        remote=None if remote is None else Logistic(0.4, dict(remote)),
        tasks=dict(tasks or {}),
        hand_off_before=hand_off_before,
        hand_off_window=hand_off_window,
        certificate=certified,
        held_out=(Label(0.7, True, None), Label(0.4, False, True)),
        neighbours=gather(questions, right, vectors(len(questions), dimension=dimension)),
    )


def asked(count: int, *, seed: int = 0, share: float = 0.6, tasks: Sequence[str] = ("",)) -> list[Asked]:
    """Answers whose rightness hangs on `evidence` and `mean_logprob`; the accepted answer to each is "yes"."""
    random = np.random.default_rng(seed)
    base = float(np.log(share / (1 - share)))
    rows = []
    for at, vector in enumerate(vectors(count, seed)):
        drawn = {name: float(random.normal()) for name in ("evidence", "mean_logprob", "words_found", "lead")}
        log_odds = base + 2.0 * drawn["evidence"] + drawn["mean_logprob"] + 0.8 * drawn["words_found"]
        right = random.random() < 1 / (1 + np.exp(-log_odds))
        signals = {**drawn, "window_logprob": drawn["mean_logprob"] - 1, "refusal": 0.0}
        text = "yes" if right else "no"
        numbers = tuple(float(each) for each in vector)
        rows.append(
            Asked(f"Question {seed}.{at}?", ("yes",), tasks[at % len(tasks)], text, "local", signals, numbers)
        )
    return rows


def with_remote(rows: Sequence[Asked], right: bool = True) -> list[Asked]:
    return [replace(row, remote="yes" if right else "no") for row in rows]


def with_a_remote_that_fails(rows: Sequence[Asked]) -> list[Asked]:
    """A remote that has right just what `lead` says; the local answers do not depend on that."""
    return [replace(row, remote="yes" if row.signals["lead"] > 0 else "no") for row in rows]


def noisy(count: int, seed: int) -> list[Asked]:
    """Like `asked`, with only `evidence` saying anything, among twenty signals of noise."""
    names = [signal.name for signal in SIGNALS if signal.sign == 0 or signal.stage == "after"]
    random = np.random.default_rng([seed, 7])
    rows = []
    for each in asked(count, seed=seed, share=0.5):
        noise = {name: float(random.normal()) for name in names}
        rows.append(replace(each, signals=noise | {"evidence": each.signals["evidence"], "refusal": 0.0}))
    return rows
