"""Whether answers that are paid for once pay: the remote's share and the quality over a stream that repeats itself.

And how well a question that was asked before is told from another one. Knows nothing of how questions are answered:
`ask` is any function from a question to a route and a text. Used from a program; there is no command for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge_sdk.confidence.binomial import clopper_pearson_upper
from edge_sdk.errors import ConfigError
from edge_sdk.fallback.learned import SIMILARITY_FLOOR
from edge_sdk.fallback.rewording import difference

from .collection import Update
from .evaluate import Question
from .metrics import bootstrap, contains, token_f1
from .paraphrases import near_misses, paraphrases

Kind = Literal["new", "repeat", "paraphrase"]
Ask = Callable[[str], tuple[str, str]]
Encode = Callable[[Sequence[str]], NDArray[np.float32]]

KNOWN_SHARES = (0.0, 0.5, 0.8)
"""Share of questions that were asked before, in the first, second and last part of a stream."""
_BLOCK = 512  # questions compared with all others at a time


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a stream; `of` is the place of the one that it repeats or puts in other words."""

    question: str
    answers: tuple[str, ...]
    kind: Kind
    of: int | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A share of questions with its exact 95 % upper bound (Clopper and Pearson 1934, one-sided)."""

    count: int
    n: int
    share: float
    upper: float


def question_stream(
    questions: Sequence[Question], n: int = 300, *, shares: Sequence[float] = KNOWN_SHARES, seed: int = 0
) -> list[Asked]:
    """A stream of n questions in equal parts, in each of which a share was asked before, half of it in other words.

    What is repeated is drawn from all that was asked new before. Equal seeds, equal streams. Raises `ConfigError`
    when there are too few questions.
    """
    random = Random(seed)
    fresh = iter(random.sample(list(questions), len(questions)))
    stream: list[Asked] = []
    origins: list[int] = []
    for number in range(n):
        share = shares[number * len(shares) // n]
        if origins and random.random() < share:
            of = random.choice(origins)
            original = stream[of]
            if random.random() < 0.5:
                stream.append(Asked(original.question, original.answers, "repeat", of))
            else:
                _, text = random.choice(list(paraphrases(original.question)))
                stream.append(Asked(text, original.answers, "paraphrase", of))
            continue
        question = next(fresh, None)
        if question is None:
            raise ConfigError(f"{len(questions)} questions are too few for a stream of {n}")
        origins.append(number)
        stream.append(Asked(question.question, question.answers, "new"))
    return stream


def evaluate_learning(
    stream: Sequence[Asked], ask: Ask, *, parts: int = 3, progress: Update = lambda done, total, detail: None
) -> dict[str, object]:
    """Ask the stream in its order; remote share and quality of each part, and of each kind of question.

    Quality is `contains` and `token_f1`, with bootstrap intervals. `paired` is what a repeated or paraphrased
    question scored less what its original did, which no difference between questions can hide; `remote_fall` is
    the first part's remote share less the last one's. The rest is for looking at single questions.
    """
    if len(stream) < parts:
        raise ConfigError(f"a stream of {len(stream)} questions has no {parts} parts")
    rows: list[dict[str, object]] = []
    held: list[float] = []
    f1: list[float] = []
    remote: list[float] = []
    for number, asked in enumerate(stream):
        progress(number, len(stream), asked.question)
        route, text = ask(asked.question)
        held.append(contains(text, asked.answers))
        f1.append(token_f1(text, asked.answers))
        remote.append(float(route == "remote"))
        rows.append({**asdict(asked), "route": route, "text": text, "contains": held[-1], "token_f1": f1[-1]})
    bounds = [len(stream) * part // parts for part in range(parts + 1)]
    again = [(number, asked.of) for number, asked in enumerate(stream) if asked.of is not None]

    def summary(chosen: Sequence[int]) -> dict[str, object]:
        return {
            "n": len(chosen),
            "remote_share": fmean(remote[at] for at in chosen),
            "contains": asdict(bootstrap([held[at] for at in chosen])),
            "token_f1": asdict(bootstrap([f1[at] for at in chosen])),
        }

    kinds = {kind: [at for at, asked in enumerate(stream) if asked.kind == kind] for kind in get_args(Kind)}
    ends = [range(bounds[0], bounds[1]), range(bounds[-2], bounds[-1])]
    return {
        "n": len(stream),
        "parts": [summary(range(start, end)) for start, end in pairwise(bounds)],
        "kinds": {kind: summary(chosen) for kind, chosen in kinds.items() if chosen},
        "remote_fall": fmean(remote[at] for at in ends[0]) - fmean(remote[at] for at in ends[1]),
        "paired": {
            name: asdict(bootstrap([scores[at] - scores[of] for at, of in again])) if again else None
            for name, scores in (("contains", held), ("token_f1", f1))
        },
        "questions": rows,
    }


def measure_questions(
    questions: Sequence[str], encode: Encode, *, floor: float = SIMILARITY_FLOOR, neighbours: int = 8
) -> dict[str, object]:
    """How often a question is taken for another one, and how often a paraphrase for its own.

    `others`: each question against its nearest others (equal texts are one question), with the pairs that were
    taken for one to look at: real ones may ask the same. `near_misses` and `paraphrases`: those made by rules, by
    the name of the rule. Each for the cosine floor alone, for a cosine of .9, and for the floor and the rules.
    """
    texts = list(dict.fromkeys(questions))
    vectors = _encoded(texts, encode)
    nearest = np.zeros(len(texts))
    pairs: list[tuple[float, str, str]] = []
    for at, others, cosines in _neighbours(vectors, neighbours):
        nearest[at] = cosines[0]
        for other, cosine in zip(others, cosines, strict=True):
            if cosine >= floor and not difference(texts[at], texts[other]):
                pairs.append((round(float(cosine), 3), texts[at], texts[other]))
                break
    made = {
        "near_misses": [(text, kind, other) for text in texts for kind, other in near_misses(text, texts)],
        "paraphrases": [(text, kind, other) for text in texts for kind, other in paraphrases(text)],
    }
    return {
        "questions": len(texts),
        "floor": floor,
        "others": {
            "cosine_floor": _share(nearest >= floor),
            "cosine_90": _share(nearest >= 0.9),
            "floor_and_rules": asdict(_counted(len(pairs), len(texts))),
            "pairs": sorted(pairs),
        },
        **{name: _made(rows, dict(zip(texts, vectors, strict=True)), encode, floor) for name, rows in made.items()},
    }


def _made(
    rows: Sequence[tuple[str, str, str]], vectors: dict[str, NDArray[np.float32]], encode: Encode, floor: float
) -> dict[str, object]:
    if not rows:
        return {}
    mine, theirs = np.stack([vectors[text] for text, _, _ in rows]), _encoded([made for _, _, made in rows], encode)
    cosines = np.einsum("nd,nd->n", mine, theirs)
    same = np.array([not difference(text, made) for text, _, made in rows])
    kinds = np.array([kind for _, kind, _ in rows])

    def shares(chosen: NDArray[np.bool_]) -> dict[str, object]:
        return {
            "cosine_floor": _share((cosines >= floor)[chosen]),
            "cosine_90": _share((cosines >= 0.9)[chosen]),
            "floor_and_rules": _share(((cosines >= floor) & same)[chosen]),
        }

    return {
        "all": shares(np.full(len(rows), True)),
        **{str(kind): shares(kinds == kind) for kind in dict.fromkeys(kinds)},
    }


def _encoded(texts: Sequence[str], encode: Encode) -> NDArray[np.float32]:
    return np.concatenate([encode(texts[at : at + 64]) for at in range(0, len(texts), 64)])


def _neighbours(
    vectors: NDArray[np.float32], k: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """Each row's place, and the places and cosines of the k nearest other rows, the nearest first."""
    k = min(k, len(vectors) - 1)
    for start in range(0, len(vectors), _BLOCK):
        scores = vectors[start : start + _BLOCK] @ vectors.T
        for row, cosines in enumerate(scores):
            cosines[start + row] = -np.inf
            best = np.argsort(-cosines)[:k]
            if k:
                yield start + row, best, cosines[best]


def _share(taken: Iterable[bool] | NDArray[np.bool_]) -> dict[str, object]:
    values = list(taken)
    return asdict(_counted(sum(map(bool, values)), len(values)))


def _counted(count: int, n: int) -> Share:
    return Share(count, n, count / n, clopper_pearson_upper(count, n, 0.05))
