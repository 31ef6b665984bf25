"""What is measured of a question and its local answer: scalars that cost next to nothing, each with its formula.

Nothing is asked of the model and nothing is sampled again. Token signals come from the raw distribution (nats); the
sum of log-probabilities is not among them, as it measures length. What they are worth is learned elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..records import FinishReason, Hit, Token
from ..retrieval.fulltext import STOP_WORDS

if TYPE_CHECKING:
    from ..readers.extract import Extract

Stage = Literal["before", "first", "after"]
Signals = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Signal:
    """A scalar: when it is known, what it is, and whether more of it speaks for (1) or against (-1) the answer.

    `sign` is 0 where either may be true, as for the form of a question.
    """

    name: str
    stage: Stage
    sign: Literal[-1, 0, 1]
    what: str


SIGNALS = (
    Signal("similarity", "before", 1, "largest cosine of question and passage"),
    Signal("lead", "before", 1, "fused retrieval score of the best passage less that of the second"),
    Signal("agreement", "before", 1, "of BM25 and vectors, the share that put the best passage first"),
    Signal("words_found", "before", 1, "largest share of the question's words in one passage"),
    Signal("supporters", "before", 0, "log(1 + passages within a tenth of the best score)"),
    Signal("question_words", "before", 0, "log(1 + words of the question that carry meaning)"),
    Signal("asks_number", "before", 0, "1 if it asks when, how many, how much or which year"),
    Signal("asks_name", "before", 0, "1 if it asks who, whom, whose or where"),
    Signal("asks_why", "before", 0, "1 if it asks why or how"),
    Signal("familiarity", "before", 0, "largest cosine to a calibration question"),
    Signal("past_success", "before", 1, "share of right answers to the ten nearest of these, drawn to the average"),
    Signal("reader_support", "before", 1, "the reader's log-odds that its words answer, and not none, at most 10"),
    Signal("reader_lead", "before", 1, "lead of its words over the next best (nats, at most 10)"),
    Signal("reader_passage", "before", 1, "its largest log-odds that a passage holds an answer, at most 10"),
    Signal("reader_held", "before", 1, "probability of the likely words that its own hold, all of them"),
    Signal("first_logprob", "first", 1, "log-probability of the first token"),
    Signal("first_margin", "first", 1, "its lead over the second best token, at most 5"),
    Signal("first_entropy", "first", -1, "entropy at the first token"),
    Signal("mean_logprob", "after", 1, "mean log-probability over content tokens"),
    Signal("low_logprob", "after", 1, "10 % quantile of the log-probability over content tokens"),
    Signal("min_logprob", "after", 1, "smallest log-probability of a content token"),
    Signal("window_logprob", "after", 1, "smallest mean log-probability of 8 tokens in a row"),
    Signal("mean_margin", "after", 1, "mean lead over the second best token, each at most 5, over content tokens"),
    Signal("mean_entropy", "after", -1, "mean entropy over content tokens"),
    Signal("answer_words", "after", 0, "log(1 + words of the answer that carry meaning)"),
    Signal("cut", "after", -1, "1 if the answer was cut at the token limit"),
    Signal("refusal", "after", -1, "1 if the answer says that the documents do not hold it"),
    Signal("hedge", "after", -1, "1 if the answer hedges (perhaps, it seems, I think)"),
    # A sentence's shares: of the answer's new words (those that the question lacks), and of the question's.
    Signal("evidence", "after", 1, "largest product of the two shares of a sentence of the passages"),
    Signal("evidence_question", "after", 1, "share of the question's words in the sentence with most new words"),
    Signal("evidence_lag", "after", -1, "largest share of the question's words in any sentence, less that share"),
    Signal("grounded", "after", 1, "share of the answer's words that stand in the passages"),
    Signal("grounded_best", "after", 1, "share of the answer's new words that stand in the best passage"),
    Signal("longest_span", "after", 1, "longest run of the answer's words that stands in a passage, by its words"),
    Signal("grounded_numbers", "after", 1, "share of the answer's numbers that stand there; 1 without any"),
    Signal("grounded_names", "after", 1, "share of its capitalised words that stand there; 1 without any"),
    Signal("reader_agrees", "after", 1, "share of the reader's words that the answer has"),
    Signal("choice_held", "after", 1, "probability of the choices that its words hold, all of them; 0 without any"),
    Signal("kind", "after", 1, "1 unless a number or a name is asked for and the answer has none"),
)
STAGES: dict[Stage, tuple[str, ...]] = {
    "before": tuple(signal.name for signal in SIGNALS if signal.stage == "before"),
    "first": tuple(signal.name for signal in SIGNALS if signal.stage != "after"),
    "after": tuple(signal.name for signal in SIGNALS),
}
"""The signals that are known at each stage."""

WINDOW = 8  # tokens
FORMULAS = 1  # one more with every change of how a signal is computed: calibrations depend on it
_MOST = 5.0  # nats of a lead; beyond, a token is certain
_MOST_READ = 10.0  # the same of a reader's scores
_STEM = 5  # letters by which two words count as the same, as in `route`
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z][^\W\d_]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_ASKS_NUMBER = re.compile(
    r"\b(?:when|how (?:many|much|long|old|far|often|large|big)|(?:what|which) (?:year|date|percentage))\b"
)
_ASKS_NAME = re.compile(r"\b(?:who|whom|whose|where)\b")
_ASKS_WHY = re.compile(r"\b(?:why|how)\b")
_SPELLED = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred "
    "thousand million billion first second third once twice half none no never always daily weekly".split()
)
_HEDGE = re.compile(
    r"\b(?:perhaps|maybe|probably|possibly|might|i think|i believe|it seems|not sure|unclear|likely)\b",
    re.IGNORECASE,
)


def before(question: str, hits: Sequence[Hit], extract: Extract | None = None) -> dict[str, float]:
    """What is known once passages are retrieved, and read where there is a reader.

    Without an encoder there is no `similarity`.
    """
    words = _stems(question)
    found = max((len(words & _stems(f"{hit.passage.heading} {hit.passage.text}")) for hit in hits), default=0)
    scores = sorted((hit.score for hit in hits), reverse=True)
    asked = question.casefold()
    number, name = bool(_ASKS_NUMBER.search(asked)), bool(_ASKS_NAME.search(asked))
    signals = {
        "lead": scores[0] - scores[1] if len(scores) > 1 else sum(scores),
        "agreement": ((hits[0].bm25_rank == 1) + (hits[0].vector_rank == 1)) / 2 if hits else 0.0,
        "words_found": found / len(words) if words else 0.0,
        "supporters": math.log1p(sum(score >= 0.9 * scores[0] for score in scores)),
        "question_words": math.log1p(len(words)),
        "asks_number": float(number),
        "asks_name": float(name),
        "asks_why": float(bool(_ASKS_WHY.search(asked)) and not number),
    }
    cosines = [hit.similarity for hit in hits if hit.similarity is not None]
    return signals | ({"similarity": max(cosines)} if cosines else {}) | (_read(extract) if extract else {})


def _read(extract: Extract) -> dict[str, float]:
    values = {
        "reader_support": extract.support,
        "reader_lead": extract.margin,
        "reader_passage": max(extract.passages, default=0.0),
        "reader_held": extract.held,
    }
    return {name: min(max(value, -_MOST_READ), _MOST_READ) for name, value in values.items()}


class TokenTrace:
    """Collects the signals of a generation while it runs.

    >>> trace = TokenTrace()
    >>> trace.add(Token(1, "Basel", -0.5, 0.9, 2.0))
    >>> trace.add(Token(2, ".", -0.1, 0.2, 9.0))
    >>> trace.signals()["mean_logprob"], trace.signals()["window_logprob"]
    (-0.5, -0.3)
    """

    def __init__(self) -> None:
        self._tokens: list[Token] = []
        self._window = 0.0  # sum of the last `WINDOW` log-probabilities
        self.lowest_window: float | None = None
        """Smallest mean log-probability of `WINDOW` tokens in a row so far; None before there are as many."""

    def add(self, token: Token) -> None:
        """Take the next token."""
        self._tokens.append(token)
        self._window += token.logprob
        if len(self._tokens) > WINDOW:
            self._window -= self._tokens[-WINDOW - 1].logprob
        if len(self._tokens) >= WINDOW:
            mean = self._window / WINDOW
            self.lowest_window = mean if self.lowest_window is None else min(self.lowest_window, mean)

    def first(self) -> dict[str, float]:
        """Signals of the first token; none before it."""
        if not self._tokens:
            return {}
        token = self._tokens[0]
        return {
            "first_logprob": token.logprob,
            "first_margin": min(token.margin, _MOST),
            "first_entropy": token.entropy,
        }

    def signals(self) -> dict[str, float]:
        """Signals of all tokens so far; none without one.

        Content tokens are those with a letter or digit; where there is none, all.
        """
        if not self._tokens:
            return {}
        content = [token for token in self._tokens if _WORD.search(token.text)] or self._tokens
        logprobs = sorted(token.logprob for token in content)
        mean = math.fsum(token.logprob for token in self._tokens) / len(self._tokens)
        return self.first() | {
            "mean_logprob": math.fsum(logprobs) / len(content),
            "low_logprob": logprobs[len(content) // 10],
            "min_logprob": logprobs[0],
            "window_logprob": mean if self.lowest_window is None else self.lowest_window,
            "mean_margin": math.fsum(min(token.margin, _MOST) for token in content) / len(content),
            "mean_entropy": math.fsum(token.entropy for token in content) / len(content),
        }


def after(
    question: str,
    passages: Sequence[Hit],
    answer: str,
    *,
    finish_reason: FinishReason,
    refusal: bool,
    extract: Extract | None = None,
    choice_held: float | None = None,
) -> dict[str, float]:
    """What the answer's words say, beside the passages that the model was given, best first, and the reader.

    `choice_held` is known where the model was to choose among answers.
    """
    words = _WORD.findall(answer.casefold())
    meant, asked = _stems(answer), _stems(question)
    new = meant - asked
    sentences = [
        _stems(sentence)
        for hit in passages
        for sentence in _SENTENCE.split(f"{hit.passage.heading}\n{hit.passage.text}")
    ]
    shares = [(_share(new, sentence), _share(asked, sentence)) for sentence in sentences] or [(0.0, 0.0)]
    most_new = max(share for share, _ in shares)
    beside = max(share for of_new, share in shares if of_new == most_new)
    text = "\n".join(f"{hit.passage.heading} {hit.passage.text}" for hit in passages)
    held, folded = _stems(text), text.casefold()
    numbers, names = _NUMBER.findall(answer), _NAME.findall(answer)
    wants_number, wants_name = (bool(kind.search(question.casefold())) for kind in (_ASKS_NUMBER, _ASKS_NAME))
    has_number, has_name = bool(numbers) or not _SPELLED.isdisjoint(words), answer != answer.casefold()
    known = {} if choice_held is None else {"choice_held": choice_held}
    if extract is not None and extract.best is not None:
        known["reader_agrees"] = _share(frozenset(_WORD.findall(extract.best.text.casefold())), frozenset(words))
    return known | {
        "answer_words": math.log1p(len(meant)),
        "cut": float(finish_reason == "length"),
        "refusal": float(refusal),
        "hedge": float(bool(_HEDGE.search(answer))),
        "evidence": max(of_new * of_asked for of_new, of_asked in shares),
        "evidence_question": beside,
        "evidence_lag": max(share for _, share in shares) - beside,
        "grounded": _share(meant, held),
        "grounded_best": _share(new, _stems(f"{passages[0].passage.heading} {passages[0].passage.text}"))
        if passages
        else 0.0,
        "longest_span": _longest_span(words, _WORD.findall(folded)) / len(words) if words else 0.0,
        "grounded_numbers": sum(map(set(_NUMBER.findall(text)).__contains__, numbers)) / len(numbers)
        if numbers
        else 1.0,
        "grounded_names": sum(name.casefold() in folded for name in names) / len(names) if names else 1.0,
        "kind": float((has_number or not wants_number) and (has_name or not wants_name)),
    }


def _stems(text: str) -> frozenset[str]:
    """The words that carry meaning, by their first letters."""
    return frozenset(word[:_STEM] for word in _WORD.findall(text.casefold()) if word not in STOP_WORDS)


def _share(words: frozenset[str], among: frozenset[str]) -> float:
    return len(words & among) / len(words) if words else 0.0


def _longest_span(words: Sequence[str], text: Sequence[str]) -> int:
    """Length of the longest run of `words` that stands in `text`, word by word."""
    places: dict[str, list[int]] = {}
    for at, word in enumerate(text):
        places.setdefault(word, []).append(at)
    best = 0
    ending: dict[int, int] = {}  # place in the text -> length of the run that ends there
    for word in words:
        ending = {at: ending.get(at - 1, 0) + 1 for at in places.get(word, ())}
        best = max(best, max(ending.values(), default=0))
    return best
