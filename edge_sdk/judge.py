"""What becomes of one question: its signals gathered, its probability, and the decision before, during and after.

Without a calibration it decides as `route` does, by retrieval support and refusals, and has no probability. A
calibration can only hand off more: what it promises is kept by the decision at the end. Knows nothing of remotes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from .confidence.logistic import no_regret
from .confidence.setup import UNCALIBRATED
from .confidence.signals import SIGNALS, Stage, TokenTrace
from .confidence.signals import after as signals_after
from .confidence.signals import before as signals_before
from .records import Contribution, Explanation, FinishReason, Hit, Reckoning, Token
from .route import Decision, Policy, decide_after, decide_before, unsure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .confidence.calibration import Calibration, Calibrations
    from .confidence.logistic import Estimate
    from .confidence.setup import Setup
    from .readers.extract import Extract

_NEAREST = 3  # calibration questions that an explanation shows
_WHAT = {signal.name: signal.what for signal in SIGNALS} | {"calibration": "correction by isotonic calibration"}


class Judge:
    """Follows one question from retrieval to the end of its local answer. `decision` is the latest one.

    Without `calibration` the `note` says why there is none. `vector` is that of the question; without it there are
    no neighbours. `extract` is what a reader found, where there is one. `signals` collects what was measured.
    """

    def __init__(
        self,
        question: str,
        hits: Sequence[Hit],
        policy: Policy,
        *,
        calibration: Calibration | None = None,
        note: str = "",
        vector: NDArray[np.float32] | None = None,
        extract: Extract | None = None,
        task: str = "",
    ) -> None:
        if calibration is not None and vector is not None and calibration.neighbours.dimension != len(vector):
            note = (
                f"the calibration's questions have vectors of {calibration.neighbours.dimension}, not {len(vector)}"
            )
            calibration = None
        self._question, self._policy, self._calibration = question, policy, calibration
        self._note, self._vector, self._extract, self._task = note, vector, extract, task
        self._trace, self._doubted_window = TokenTrace(), False
        self.gave_up = False
        """Whether the answer was given up early: one may exist all the same."""
        self.signals: dict[str, float] = signals_before(question, hits, extract)
        if calibration is not None and vector is not None:
            self.signals |= calibration.neighbours.signals(vector)
        self.explanation = self._explain("before")
        self.decision = self._decide_before(question, hits)

    @classmethod
    def appoint(
        cls,
        question: str,
        hits: Sequence[Hit],
        policy: Policy,
        calibrations: Calibrations | None,
        setup: Callable[[], Setup | None],
        *,
        encode: Callable[[str], NDArray[np.float32]],
        follows_up: bool = False,
        extract: Extract | None = None,
        task: str = "",
    ) -> Judge:
        """The judge of a question, with the calibration, if any, that holds for the set-up that answers it."""
        calibration: Calibration | None = None
        if not hits:
            note = "no passage was found"
        elif follows_up:
            note = "calibrations know no earlier turns"
        else:
            calibration, note = (None, UNCALIBRATED) if calibrations is None else calibrations.look_up(setup)
        vector = None if calibration is None else encode(question)
        return cls(
            question, hits, policy, calibration=calibration, note=note, vector=vector, extract=extract, task=task
        )

    def _decide_before(self, question: str, hits: Sequence[Hit]) -> Decision:
        decision = decide_before(question, hits, self._policy)
        limit = self._calibration.hand_off_before if self._calibration else None
        if decision.route != "local" or limit is None:
            return decision
        probability = self.explanation.probability or 0.0
        if probability >= limit:
            return decision
        reason = f"right with probability {probability:.2f} only before generating, limit {limit:.2f}"
        decision = self._doubt(decision, reason)
        self.gave_up = decision.route != "local"
        return decision

    def sees(self, token: Token) -> bool:
        """Take the next token; True when the answer is to be given up now. That happens at most once."""
        self._trace.add(token)
        limit = self._calibration.hand_off_window if self._calibration else None
        lowest = self._trace.lowest_window
        if limit is None or lowest is None or lowest >= limit or self._doubted_window:
            return False
        self._doubted_window = True
        self.signals |= self._trace.signals()
        self.explanation = self._explain("during")
        reason = f"given up while generating: 8 tokens in a row at {lowest:.2f} nats, limit {limit:.2f}"
        self.decision = self._doubt(self.decision, reason)
        self.gave_up = self.decision.route != "local"
        return self.gave_up

    def ends(
        self,
        answer: str,
        passages: Sequence[Hit],
        *,
        finish_reason: FinishReason,
        refusal: bool,
        choice_held: float | None = None,
    ) -> Decision:
        """The decision on the whole answer; `passages` are those of the prompt, best first. See also `SIGNALS`."""
        self.signals |= self._trace.signals()
        self.signals |= signals_after(
            self._question,
            passages,
            answer,
            finish_reason=finish_reason,
            refusal=refusal,
            extract=self._extract,
            choice_held=choice_held,
        )
        if finish_reason == "cancelled":
            self.explanation = Explanation("during", note="the answer was cancelled")
            return self.decision
        self.explanation = self._explain("after")
        self.decision = decide_after(self.decision, refusal, self._policy)
        probability, calibration = self.explanation.probability, self._calibration
        if self.decision.route == "local" and calibration is not None and probability is not None:
            safe = self.explanation.no_regret
            score = probability if safe is None else safe
            if calibration.serves(score):
                return self.decision
            threshold = self.explanation.threshold
            limit = "nothing is certified to be served" if threshold is None else f"threshold {threshold:.2f}"
            what = "right" if safe is None else "no worse than the remote's"
            self.decision = self._doubt(self.decision, f"{what} with probability {score:.2f} only, {limit}")
        return self.decision

    def _doubt(self, decision: Decision, reason: str) -> Decision:
        if self._policy.when_unsure == "local":
            return Decision("local", (*decision.reasons, reason, "answered all the same, as asked"))
        return unsure((*decision.reasons, reason), self._policy)

    def _explain(self, stage: Literal["before", "during", "after"]) -> Explanation:
        calibration = self._calibration
        if calibration is None:
            return Explanation(stage, note=self._note)
        model: Stage = "first" if stage == "during" else stage
        estimate = calibration.estimate(model, self.signals, self._task)
        certificate = calibration.certificate
        remote: Estimate | None = None
        if certificate is not None and stage == "after":
            remote = calibration.remote_estimate(certificate.kind, self.signals)
        return Explanation(
            stage=stage,
            probability=estimate.probability,
            intercept=estimate.intercept,
            contributions=_sorted_parts(estimate, self.signals),
            threshold=certificate.threshold if certificate else None,
            promise=certificate.sentence() if certificate else "",
            nearest=() if self._vector is None else tuple(calibration.neighbours.nearest(self._vector, _NEAREST)),
            note=f"relative to {calibration.labels}, {calibration.n} questions of {calibration.created}",
            remote=None if remote is None else _reckoning(remote, self.signals),
            no_regret=None if remote is None else no_regret(estimate.probability, remote.probability),
        )


def _reckoning(estimate: Estimate, signals: Mapping[str, float]) -> Reckoning:
    return Reckoning(estimate.probability, estimate.intercept, _sorted_parts(estimate, signals))


def _sorted_parts(estimate: Estimate, signals: Mapping[str, float]) -> tuple[Contribution, ...]:
    parts = estimate.contributions.items()
    found = [Contribution(name, signals.get(name), part, _WHAT[name]) for name, part in parts]
    return tuple(sorted(found, key=lambda each: -abs(each.log_odds)))
