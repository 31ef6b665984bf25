"""`edge calibrate`: questions with known answers are asked, the signals fitted, a threshold certified.

Each question runs through `Edge` as a user's would; what was measured is appended to a file as it is made, so an
interrupted run goes on where it stopped. Models are fitted on one part of the questions and the threshold is
counted on the other; which part a question is in follows from a hash of its text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from threading import Event as Flag
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_sdk.confidence.calibration import Calibration, Label, TaskScale
from edge_sdk.confidence.certificate import Certificate, Kind
from edge_sdk.confidence.neighbours import Neighbours, gather
from edge_sdk.confidence.risk import certify
from edge_sdk.confidence.setup import Setup
from edge_sdk.confidence.signals import SIGNALS, STAGES
from edge_sdk.edge import Edge
from edge_sdk.errors import CalibrationError
from edge_sdk.handoff import Handoff, Missed, Topic
from edge_sdk.judge import Judge
from edge_sdk.privacy.gate import Withheld
from edge_sdk.prompt import Style
from edge_sdk.route import Policy

from .collection import Update, read_jsonl
from .fit import fit, platt
from .metrics import contains, exact_match, token_f1

Labeller = Literal["contains", "exact", "f1"]
LABELLERS: dict[Labeller, tuple[Callable[[str, Sequence[str]], bool], str]] = {
    "contains": (lambda text, answers: contains(text, answers) > 0, "an accepted answer contained"),
    "exact": (lambda text, answers: exact_match(text, answers) > 0, "an accepted answer, exactly"),
    "f1": (lambda text, answers: token_f1(text, answers) >= 0.5, "token-F1 of at least 0.5"),
}
THRESHOLD_SHARE = 0.4
"""Of the questions, for the threshold. Fitting 20 weights wants more labels than counting errors does."""
TASK_PRIOR = 10.0
"""How strongly a task's scale is drawn towards that of all tasks."""
LEAST = 40
"""Questions to fit on; on fewer, nothing can be told from chance."""
_HOPELESS, _SEEN = 0.1, 20  # share of right answers, among at least so many, at which an answer is given up early
_SIGNS = {signal.name: signal.sign for signal in SIGNALS}


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was answered locally: its signals, the answer, and who had it right."""

    question: str
    answers: tuple[str, ...]
    task: str
    text: str
    route: str
    signals: Mapping[str, float]
    vector: tuple[float, ...]
    remote: str | None = None  # the remote's answer, where it was asked
    setup: str = ""  # fingerprint of the set-up that answered; "" where it was not noted


@dataclass(frozen=True, slots=True)
class Target:
    """The risk that is to be certified."""

    kind: Kind = "marginal"
    alpha: float = 0.1
    delta: float = 0.1


def read_questions(path: Path) -> list[tuple[str, tuple[str, ...], str]]:
    """Questions, accepted answers and tasks of a JSONL file {question, answers, task}; `task` may be missing."""
    found = []
    for number, row in enumerate(read_jsonl(path), 1):
        question, answers = row.get("question"), row.get("answers", row.get("answer"))
        accepted = [answers] if isinstance(answers, str) else answers
        if not isinstance(question, str) or not isinstance(accepted, list) or not accepted:
            raise CalibrationError(
                f"{path}: object {number} has no question with answers",
                hint='write {"question": "...", "answers": ["..."]}',
            )
        found.append((question, tuple(map(str, accepted)), str(row.get("task", ""))))
    if len({" ".join(question.casefold().split()) for question, _, _ in found}) < len(found):
        raise CalibrationError(f"{path} has a question twice", hint="labels must be of different questions")
    return found


def check_enough(questions: Sequence[object]) -> None:
    """Raise `CalibrationError` for too few questions, before hours are spent on answering them."""
    fitting = len(questions) - round(THRESHOLD_SHARE * len(questions))
    if fitting < LEAST:
        raise CalibrationError(
            f"{len(questions)} questions are too few: {fitting} would be left to fit on",
            hint=f"give {ceil(LEAST / (1 - THRESHOLD_SHARE))} or more",
        )


def ask_all(
    edge: Edge,
    questions: Sequence[tuple[str, tuple[str, ...], str]],
    *,
    out: Path | None = None,
    style: Style = "full",
    max_tokens: int = 256,
    k: int = 8,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> list[Asked]:
    """Answer every question locally, whatever the documents support, and keep what was measured.

    What `out` already holds is not asked again; accepted answers and tasks are those of `questions`, which may have
    been corrected since. Raises `CalibrationError` when another set-up gave the answers in `out`. Where `edge` has
    a remote and may use it, that is asked too, once a question, with what its privacy policy sends (and a question
    that `out` has without its answer is asked again); a call that fails is a `CalibrationError`, and the next run
    goes on from there.
    """
    setup = edge.setup(style, k).fingerprint
    _drop_unfinished_line(out)
    done = {asked.question: asked for asked in read_asked(out)}
    if any(asked.setup not in ("", setup) for asked in done.values()):
        raise CalibrationError(f"{out} has answers of another model, prompt or retrieval", hint="name another file")
    with _answering_locally(edge) as handoff:
        for number, (question, answers, task) in enumerate(questions):
            progress(number, len(questions), question)
            if cancel is not None and cancel.is_set():
                break
            if question in done and (handoff is None or done[question].remote is not None):
                continue
            answer = edge.ask(question, style=style, max_tokens=max_tokens, k=k)
            row = edge.encoder.encode([question])[0]
            vector = tuple(round(float(each), 4) for each in row)
            read = [hit.passage for hit in answer.hits if hit.passage.id in answer.read]
            remote = None if handoff is None else _ask_remote(handoff, Topic(question, row, read))
            done[question] = asked = Asked(
                question, answers, task, answer.text, answer.route, dict(answer.signals), vector, remote, setup
            )
            if out is not None:
                _append(out, json.dumps(asdict(asked)) + "\n")
    progress(len(questions), len(questions), "")
    return [
        replace(done[question], answers=answers, task=task)
        for question, answers, task in questions
        if question in done
    ]


def read_all(
    edge: Edge,
    questions: Sequence[tuple[str, tuple[str, ...], str]],
    *,
    k: int = 8,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> list[Asked]:
    """What the reader of `edge` answers to every question, with its signals: milliseconds each, so none are kept.

    Raises `CalibrationError` without a reader.
    """
    extractor, setup = edge.extractor, edge.reader_setup(k)
    if extractor is None or setup is None:
        raise CalibrationError("there is no reader to calibrate", hint="give --reader")
    found = []
    for number, (question, answers, task) in enumerate(questions):
        progress(number, len(questions), question)
        if cancel is not None and cancel.is_set():
            break
        hits = edge.search(question, k)
        extract = extractor.extract(question, hits)
        draft, judge = extractor.draft(extract, hits), Judge(question, hits, Policy("local"), extract=extract)
        judge.ends(draft.cited.text, hits, finish_reason="stop", refusal=not draft.usable)
        vector = tuple(round(float(each), 4) for each in edge.encoder.encode([question])[0])
        route = "local" if draft.usable else "abstain"
        found.append(
            Asked(question, answers, task, draft.cited.text, route, judge.signals, vector, None, setup.fingerprint)
        )
    progress(len(questions), len(questions), "")
    return found


def halves(target: Target) -> Target:
    """What reader and model may each spend of a risk, so that together they keep the promise.

    A question that the reader answers the model does not, so the wrong answers of both are at most the sum of what
    each would give by itself. Raises `CalibrationError` for `selective`, a share of what is served, which does not
    add up.
    """
    if target.kind == "selective":
        raise CalibrationError(
            "a reader cannot share the risk `selective`", hint="use --risk marginal_hp, or --reader none"
        )
    return replace(target, alpha=target.alpha / 2, delta=target.delta / 2)


@contextmanager
def _answering_locally(edge: Edge) -> Iterator[Handoff | None]:
    """The way to the remote, where one may be asked; `edge` itself does not take it, even where it is preferred."""
    handoff, remote = None if edge.privacy.mode == "local_only" else edge.handoff, edge.remote
    edge.remote = None
    try:
        yield handoff
    finally:
        edge.remote = remote


def _ask_remote(handoff: Handoff, topic: Topic) -> str:
    outgoing = handoff.prepare(topic)
    if isinstance(outgoing, Withheld):
        raise CalibrationError(f"the remote was not asked: {outgoing.reason}")
    pieces = handoff.send(outgoing, topic)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            if isinstance(end.value, Missed):
                raise CalibrationError(end.value.reason, hint="run it again to go on") from None
            return str(end.value.text)


def read_asked(path: Path | None) -> list[Asked]:
    """What `ask_all` has kept so far."""
    if path is None or not path.exists():
        return []
    return [_asked(row, f"{path}: object {number}") for number, row in enumerate(read_jsonl(path), 1)]


def _asked(row: Mapping[str, object], where: str) -> Asked:
    try:
        found = Asked(**row)  # type: ignore[arg-type]
        vector, signals = (np.array(list(part), np.float32) for part in (found.vector, found.signals.values()))
        if not np.isfinite(vector).all() or vector.ndim != 1 or signals.ndim != 1:
            raise ValueError("the vector or the signals are no numbers")
        if not isinstance(row["answers"], list) or not isinstance(row["question"], str):
            raise ValueError("the question is no text or its answers are no list")
        return replace(found, answers=tuple(map(str, found.answers)), vector=tuple(found.vector))
    except (TypeError, ValueError, AttributeError) as error:
        raise CalibrationError(f"{where} is no kept answer: {error}", hint="name another file") from error


def _drop_unfinished_line(out: Path | None) -> None:
    """Take away what a run that was killed while writing has left of its last line."""
    if out is None or not out.exists():
        return
    try:
        content = out.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(out, content.rfind(b"\n") + 1)
    except OSError as error:
        raise CalibrationError(f"{out} cannot be used: {error.strerror}", hint="name another file") from error


def _append(out: Path, line: str) -> None:
    try:
        with out.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise CalibrationError(f"{out} cannot be written: {error.strerror}", hint="name another file") from error


def calibrate(
    asked: Sequence[Asked], setup: Setup, *, labeller: Labeller = "contains", target: Target | None = None
) -> Calibration:
    """Fit a model for each stage, scale it for each task, and certify a threshold on questions it never saw.

    Raises `CalibrationError` when there are too few questions, or nearly all answers are right or wrong.
    """
    fitting, holding = _parts(asked)
    calibration = replace(fitted(fitting, setup, labeller), n=len(asked))
    return certified(calibration, holding, labeller, target or Target())


def fitted(asked: Sequence[Asked], setup: Setup, labeller: Labeller) -> Calibration:
    """A calibration without a certificate, fitted on all these questions. Raises `CalibrationError`."""
    judge, labels = LABELLERS[labeller]
    if len(asked) < LEAST:
        raise CalibrationError(f"{len(asked)} questions are too few to fit on", hint=f"give {LEAST} or more")
    right = [judge(each.text, each.answers) for each in asked]
    vectors = np.array([each.vector for each in asked], np.float32)
    neighbours = gather([each.question for each in asked], right, vectors)
    known = [{**each.signals, **_near(neighbours, each, row)} for row, each in enumerate(asked)]
    try:
        fits = {stage: fit(known, right, {name: _SIGNS[name] for name in STAGES[stage]}) for stage in STAGES}
    except ValueError as error:
        raise CalibrationError(f"nothing can be fitted: {error}", hint="give more questions") from error
    return Calibration(
        setup=setup,
        created=datetime.now(UTC).date().isoformat(),
        labels=labels,
        n=len(asked),
        models={stage: each.model for stage, each in fits.items()},
        tasks=_task_scales([each.task for each in asked], fits["after"].held_out, right),
        hand_off_before=_hopeless_below(fits["before"].held_out, right),
        hand_off_window=_hopeless_below([each.get("window_logprob", 0.0) for each in known], right),
        certificate=None,
        held_out=(),
        neighbours=neighbours,
    )


def certified(
    calibration: Calibration, held_out: Sequence[Asked], labeller: Labeller, target: Target
) -> Calibration:
    """The calibration with its threshold, counted on questions that had no part in fitting it."""
    judge, labels = LABELLERS[labeller]
    rows = tuple(
        Label(
            probability,
            judge(each.text, each.answers),
            None if each.remote is None else judge(each.remote, each.answers),
        )
        for each, probability in zip(held_out, serving_scores(calibration, held_out), strict=True)
    )
    remote = [row.remote_right for row in rows]
    if target.kind.startswith("regret") and None in remote:
        raise CalibrationError("regret needs the remote's answers", hint="give --remote and --remote-model")
    certificate: Certificate = certify(
        [row.probability for row in rows],
        [not row.right for row in rows],
        alpha=target.alpha,
        kind=target.kind,
        delta=target.delta,
        remote_right=None if None in remote else [bool(each) for each in remote],
        labels=labels,
        fingerprints=dict(calibration.setup.parts),
    )
    return replace(calibration, certificate=certificate, held_out=rows)


def probabilities(calibration: Calibration, asked: Iterable[Asked]) -> list[float]:
    """The probability of each answer under a calibration."""
    return [
        calibration.estimate(
            "after", {**each.signals, **_near(calibration.neighbours, each)}, each.task
        ).probability
        for each in asked
    ]


def serving_scores(calibration: Calibration, asked: Iterable[Asked]) -> list[float]:
    """The probabilities, 0 for what is never served: a threshold counts what really is.

    That is an answer which would be given up early, a refusal, and a question without any passage.
    """
    found = []
    for each in asked:
        signals = {**each.signals, **_near(calibration.neighbours, each)}
        early = calibration.estimate("before", signals, each.task).probability < (calibration.hand_off_before or 0)
        window, limit = signals.get("window_logprob"), calibration.hand_off_window
        early = early or (window is not None and limit is not None and window < limit)
        never = early or each.route != "local" or bool(signals.get("refusal"))
        found.append(0.0 if never else calibration.estimate("after", signals, each.task).probability)
    return found


def _near(neighbours: Neighbours, asked: Asked, without: int | None = None) -> Mapping[str, float]:
    return neighbours.signals(np.array(asked.vector, np.float32), without=without)


def _parts(asked: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """Questions to fit on and questions to count the threshold on, by a hash of their text."""
    order = sorted(asked, key=lambda each: hashlib.sha256(each.question.encode()).digest())
    held = round(THRESHOLD_SHARE * len(order))
    return order[held:], order[:held]


def _task_scales(
    tasks: Sequence[str], probabilities: NDArray[np.float64], right: Sequence[bool]
) -> dict[str, TaskScale]:
    """For each named task, how its log-odds differ from those of all, drawn towards no difference at all."""
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    log_odds, labels = np.log(clipped / (1 - clipped)), np.asarray(right, np.float64)
    scales = {}
    for task in sorted(set(tasks) - {""}):
        rows = np.array([each == task for each in tasks])
        slope, shift = platt(log_odds[rows], labels[rows], prior=TASK_PRIOR)
        scales[task] = TaskScale(slope, shift, int(rows.sum()))
    return scales


def _hopeless_below(values: Iterable[float], right: Sequence[bool]) -> float | None:
    """The largest value below which at most a tenth of at least twenty answers were right; None without one."""
    pairs = sorted(zip(values, right, strict=True))
    best, good = None, 0
    for seen, (value, is_right) in enumerate(pairs):
        if seen >= _SEEN and good <= _HOPELESS * seen and value > pairs[seen - 1][0]:
            best = value
        good += is_right
    return best
