"""Examples to batches: for each question its passage and others that do not answer it, cut as a reader cuts them.

What a question stands beside is drawn anew in every epoch, the same for equal seeds: passages of their own, or all
in one long text, with the right one now and then left out. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from random import Random

import torch

from edge_sdk.errors import ConfigError
from edge_sdk.model_files.tokenizer import Pieces
from edge_sdk.readers.windows import Window, Windows

from ..training_data.example import Example
from .bert import pad
from .reader_model import Batch

_NEIGHBOURS = 8  # passages that resemble a question, of which distractors are drawn
_COMMON = 0.02  # share of passages beyond which a token says nothing of what a passage is about
_SORTED = 512  # questions that are sorted by length together


@dataclass(frozen=True, slots=True)
class Mixture:
    """How questions are put to the reader: shares of them, and passages beside the right one.

    `alone`: no other passage; `absent`: the right passage is left out; `joined`: passages follow each other as one
    text; `near`: a distractor is one that resembles the question, not any.
    """

    distractors: int = 1
    alone: float = 0.25
    absent: float = 0.15
    joined: float = 0.4
    near: float = 0.6


@dataclass(frozen=True, slots=True)
class Item:
    """An example in tokens: spans are (first, last) tokens of the passage, empty where it holds no answer."""

    question: list[int]
    passage: int
    spans: tuple[tuple[int, int], ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A question's windows with the spans that are right in each, in tokens of the window."""

    windows: list[Window]
    texts: list[Pieces]
    spans: list[list[tuple[int, int]]]

    @property
    def longest(self) -> int:
        return max(len(window.ids) for window in self.windows)


class ReaderData:
    """All examples of a training, tokenized once; those whose answer stands nowhere in the passage are left out."""

    def __init__(self, examples: Sequence[Example], windows: Windows) -> None:
        """Raises `ConfigError` when nothing is left."""
        self._windows = windows
        texts = list(dict.fromkeys(example.passage for example in examples))
        numbers = {text: at for at, text in enumerate(texts)}
        self._texts = [text.casefold() for text in texts]
        self._passages = [windows.tokenizer.pieces(text) for text in texts]
        self.items: list[Item] = []
        for example in examples:
            at = numbers[example.passage]
            spans = tuple(token_spans(example.passage, self._passages[at], example.answers))
            if self._passages[at].ids and (spans or not example.answers):
                answers = tuple(answer.casefold() for answer in example.answers)
                self.items.append(Item(windows.question(example.question), at, spans, answers))
        if not any(item.spans for item in self.items):
            raise ConfigError("no example has its answer in its passage", hint="answers are copied from passages")
        self._near = _Neighbours(self._passages)
        facts = [asdict(windows.limits), *(asdict(item) for item in self.items), texts]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def batches(self, epoch: int, *, mixture: Mixture, tokens: int, seed: int = 0) -> list[list[Group]]:
        """The questions of an epoch in the order in which they are read: `tokens` a batch, padding counted."""
        random = Random(f"{seed} {epoch}")
        order = random.sample(self.items, len(self.items))
        made: list[list[Group]] = []
        for start in range(0, len(order), _SORTED):
            groups = [self._group(item, random, mixture) for item in order[start : start + _SORTED]]
            batch: list[Group] = []
            for group in sorted(groups, key=lambda group: group.longest):
                if batch and sum(len(each.windows) for each in (*batch, group)) * group.longest > tokens:
                    made.append(batch)
                    batch = []
                batch.append(group)
            made.append(batch)
        random.shuffle(made)
        return made

    def _group(self, item: Item, random: Random, mixture: Mixture) -> Group:
        absent = bool(item.spans) and random.random() < mixture.absent
        count = 0 if not absent and random.random() < mixture.alone else mixture.distractors + absent
        others = self._distractors(item, count, random, mixture.near)
        chosen = others if absent and others else [item.passage, *others]
        random.shuffle(chosen)
        if random.random() < mixture.joined:
            text, spans = self._joined(chosen, item)
            return self._cut(item, [text], [spans])
        spans_of = [list(item.spans) if at == item.passage else [] for at in chosen]
        return self._cut(item, [self._passages[at] for at in chosen], spans_of)

    def _distractors(self, item: Item, count: int, random: Random, near: float) -> list[int]:
        """Other passages, near ones among them, that hold none of the accepted answers; perhaps fewer."""
        close = self._near.of(item.question)
        found: list[int] = []
        for _ in range(8 * count):  # tries: in a small set most passages may hold the answer
            if len(found) == count:
                break
            at = random.choice(close) if close and random.random() < near else random.randrange(len(self._texts))
            known = at == item.passage or at in found or not self._passages[at].ids
            if not known and not any(answer in self._texts[at] for answer in item.answers):
                found.append(at)
        return found

    def _joined(self, chosen: Sequence[int], item: Item) -> tuple[Pieces, list[tuple[int, int]]]:
        """Passages as one text; offsets in characters mean nothing there and are left as they are."""
        text, spans = Pieces([], [], [], []), []
        for at in chosen:
            if at == item.passage:
                spans = [(first + len(text.ids), last + len(text.ids)) for first, last in item.spans]
            part = self._passages[at]
            text = Pieces(
                text.ids + part.ids, text.starts + part.starts, text.ends + part.ends, text.leads + part.leads
            )
        return text, spans

    def _cut(self, item: Item, texts: list[Pieces], spans: list[list[tuple[int, int]]]) -> Group:
        windows = [window for at, text in enumerate(texts) for window in self._windows.cut(item.question, text, at)]
        inside = []
        for window in windows:
            shift = window.first - window.offset
            moved = [(first + shift, last + shift) for first, last in spans[window.passage]]
            inside.append([(first, last) for first, last in moved if window.first <= first and last < window.last])
        return Group(windows, [texts[window.passage] for window in windows], inside)


class _Neighbours:
    """Passages that share rare tokens with a question, by the sum of inverse document frequencies."""

    def __init__(self, passages: Sequence[Pieces]) -> None:
        self._holders: dict[int, list[int]] = defaultdict(list)
        for at, passage in enumerate(passages):
            for token in set(passage.ids):
                self._holders[token].append(at)
        self._most, self._count = max(_COMMON * len(passages), 8.0), len(passages)

    def of(self, question: Sequence[int]) -> list[int]:
        scores: Counter[int] = Counter()
        for token in set(question):
            holders = self._holders.get(token, ())
            if len(holders) <= self._most:
                for at in holders:
                    scores[at] += math.log(1 + self._count / len(holders))  # type: ignore[assignment]
        return [at for at, _ in scores.most_common(_NEIGHBOURS)]


def token_spans(text: str, pieces: Pieces, answers: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last token of every place where the first answer that stands in the text does, as whole words.

    A place that begins or ends within a word is none, unless there is no other: then the words around it count.
    """
    for answer in filter(None, answers):
        if answer not in text:
            continue
        whole, cut = list[tuple[int, int]](), list[tuple[int, int]]()
        at = text.find(answer)
        while at >= 0:
            span = _tokens_of(pieces, at, at + len(answer))
            if span is not None:
                exact = pieces.starts[span[0]] == at and pieces.ends[span[1]] == at + len(answer)
                (whole if exact else cut).append(span)
            at = text.find(answer, at + 1)
        yield from dict.fromkeys(whole or cut)
        return


def _tokens_of(pieces: Pieces, start: int, end: int) -> tuple[int, int] | None:
    """The tokens of the words that characters `start` to `end` touch."""
    places = zip(pieces.starts, pieces.ends, strict=True)
    inside = [at for at, (first, last) in enumerate(places) if first < end and last > start]
    if not inside:
        return None
    first, last, trails = inside[0], inside[-1], pieces.trails
    while not pieces.leads[first]:
        first -= 1
    while not trails[last]:
        last += 1
    return first, last


def make_batch(groups: Sequence[Group]) -> Batch:
    """The windows of several questions as tensors."""
    windows = [window for group in groups for window in group.windows]
    ids, mask = pad([window.ids for window in windows])
    segments, _ = pad([window.segments for window in windows])
    may_start, may_end, starts, ends = (torch.zeros(ids.shape, dtype=torch.bool) for _ in range(4))
    holds = torch.zeros(len(windows))
    member = torch.zeros((len(groups), len(windows)), dtype=torch.bool)
    row = 0
    for number, group in enumerate(groups):
        answered = any(group.spans)
        for window, text, spans in zip(group.windows, group.texts, group.spans, strict=True):
            inside = slice(window.offset, window.offset + window.last - window.first)
            may_start[row, window.first : window.last] = torch.tensor(text.leads[inside])
            may_end[row, window.first : window.last] = torch.tensor(text.trails[inside])
            may_start[row, 0] = may_end[row, 0] = True
            starts[row, [first for first, _ in spans]] = True
            ends[row, [last for _, last in spans]] = True
            starts[row, 0] = ends[row, 0] = not answered
            holds[row], member[number, row] = float(bool(spans)), True
            row += 1
    return Batch(ids, mask, segments, may_start, may_end, starts, ends, holds, member)
