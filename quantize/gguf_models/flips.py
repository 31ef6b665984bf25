"""Which answers of a question set change between two language models, and how far their confidence moves.

Equal accuracy hides answers that flip (arXiv 2407.09141), so questions are compared one by one: both models get the
same prompts, made of the passages that retrieval finds, and answer greedily as in `quantize.evaluate`. Knows
nothing of what made the models differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path
from threading import Event as Flag

from edge_sdk.config import Settings
from edge_sdk.edge import Edge
from edge_sdk.errors import ConfigError
from edge_sdk.loading import load_encoder, open_store
from edge_sdk.prompt import Reading
from edge_sdk.route import Policy

from ..asking import Asked, ask_all
from ..calibrate import LABELLERS, Labeller
from ..collection import Update, fill_store, read_answerable, store_path
from ..metrics import bootstrap
from ..route_metrics import auroc

Span = tuple[float, float]

_BRIEF_TOKENS = 48  # of an answer, as in `quantize.evaluate`


@dataclass(frozen=True, slots=True)
class Flips:
    """Answers of model B, the candidate, beside those of model A, the reference, to the same `n` questions.

    `right_` are shares of right answers; `lost` counts those that only A has right, `gained` those that only B has;
    `identical` is the share of answers with the very same text. `mean_logprob_` averages the mean log-probability
    that each model gives its own answer, and `auroc_` says how well that tells its right answers from its wrong
    ones (None where it has only one kind). Intervals are of the differences B - A, question by question, 95 %.
    """

    n: int
    right_a: float
    right_b: float
    right_change: float
    right_change_interval: Span
    lost: int
    gained: int
    identical: float
    mean_logprob_a: float
    mean_logprob_b: float
    logprob_change: float
    logprob_change_interval: Span
    auroc_a: float | None
    auroc_b: float | None


def answer_questions(
    model: Path,
    data: Path,
    settings: Settings,
    *,
    reading: Reading | None = None,
    limit: int | None = None,
    out: Path | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> list[Asked]:
    """The answers of a GGUF file to the questions of a folder, from a store of its passages alone.

    `data` is laid out as `quantize.collection.read_answerable` has it. `reading` decides the size of a prompt: give
    a candidate that of its reference (`InstalledModel.reading`), so that both are asked the same. Only the first
    `limit` questions are asked. `out` keeps the answers (JSONL) and resumes; it is refused where another model gave
    them. Nothing leaves the device, whatever the settings say. `cancel` ends with the answers so far.
    """
    from edge_sdk.engines.engine_gguf import GgufEngine

    file, documents, questions = read_answerable(data)
    own = replace(settings, store=store_path(settings, file, Path(settings.encoder).name))

    def load() -> tuple[GgufEngine, Reading]:
        return GgufEngine.open(model, context=own.context, threads=own.threads), reading or Reading()

    store = open_store(own)  # the edge closes it
    with Edge(store, lambda: load_encoder(own), load, policy=Policy(when_unsure="local")) as edge:
        fill_store(edge.store, edge.encoder, documents, progress, cancel)
        return ask_all(
            edge,
            questions[:limit],
            out=out,
            style="brief",
            max_tokens=_BRIEF_TOKENS,
            progress=progress,
            cancel=cancel,
        )


def compare_answers(a: Sequence[Asked], b: Sequence[Asked], *, labeller: Labeller = "contains") -> Flips:
    """Compare the answers that two models gave to the same questions; those that only one was asked do not count.

    An answer is right as `labeller` says, by default where it contains an accepted one. A question for which
    nothing was retrieved is answered by neither and has no log-probability. Raises `ConfigError` without any
    question that both were asked.
    """
    theirs = {asked.question: asked for asked in b}
    pairs = [(asked, theirs[asked.question]) for asked in a if asked.question in theirs]
    if not pairs:
        raise ConfigError("no question was answered by both models", hint="give both the same questions")
    judge, _ = LABELLERS[labeller]
    right_a, right_b = ([judge(pair[side].text, pair[side].answers) for pair in pairs] for side in (0, 1))
    change = bootstrap([int(ours) - int(before) for before, ours in zip(right_a, right_b, strict=True)])
    sure = [(x.signals["mean_logprob"], y.signals["mean_logprob"]) for x, y in pairs if _told(x) and _told(y)]
    shift = bootstrap([ours - before for before, ours in sure] or [0.0])
    return Flips(
        n=len(pairs),
        right_a=sum(right_a) / len(pairs),
        right_b=sum(right_b) / len(pairs),
        right_change=change.mean,
        right_change_interval=(change.low, change.high),
        lost=sum(before and not ours for before, ours in zip(right_a, right_b, strict=True)),
        gained=sum(ours and not before for before, ours in zip(right_a, right_b, strict=True)),
        identical=sum(x.text == y.text for x, y in pairs) / len(pairs),
        mean_logprob_a=fsum(before for before, _ in sure) / max(1, len(sure)),
        mean_logprob_b=fsum(ours for _, ours in sure) / max(1, len(sure)),
        logprob_change=shift.mean,
        logprob_change_interval=(shift.low, shift.high),
        auroc_a=_auroc([pair[0] for pair in pairs], right_a),
        auroc_b=_auroc([pair[1] for pair in pairs], right_b),
    )


def measure_flips(
    reference: Path,
    candidate: Path,
    data: Path,
    settings: Settings,
    *,
    reading: Reading | None = None,
    limit: int | None = None,
    out: Path | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> Flips:
    """Ask both models and compare; see `answer_questions` and `compare_answers`.

    The answers are kept beside `out`, as `NAME.a.jsonl` and `NAME.b.jsonl`. Setting `cancel` compares what both
    have answered, and raises `KeyboardInterrupt` where that is nothing.
    """
    found = []
    for side, model in (("a", reference), ("b", candidate)):
        kept = None if out is None else out.with_suffix(f".{side}.jsonl")
        found.append(
            answer_questions(
                model,
                data,
                settings,
                reading=reading,
                limit=limit,
                out=kept,
                progress=progress,
                cancel=cancel,
            )
        )
    asked_a, asked_b = ({asked.question for asked in each} for each in found)
    if cancel is not None and cancel.is_set() and asked_a.isdisjoint(asked_b):
        raise KeyboardInterrupt
    return compare_answers(*found)


def _told(asked: Asked) -> bool:
    return "mean_logprob" in asked.signals


def _auroc(asked: Sequence[Asked], right: Sequence[bool]) -> float | None:
    known = [(each.signals["mean_logprob"], good) for each, good in zip(asked, right, strict=True) if _told(each)]
    if len({good for _, good in known}) < 2:
        return None
    return auroc([logprob for logprob, _ in known], [float(good) for _, good in known])
