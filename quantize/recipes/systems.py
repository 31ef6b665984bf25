"""Every kind of model as something that answers tasks: readers, decoders, teachers, and a rule without any model.

Each is asked as it is at run time: decoders with the prompts of `edge ask`, readers with whole passages. Knows
nothing of what an answer is worth.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from threading import Event

from edge_sdk.choices import RULE as OFFER
from edge_sdk.choices import choices, completed
from edge_sdk.citations import is_refusal, resolve_citations
from edge_sdk.encoders.embed import Encoder
from edge_sdk.engines.engine import Engine
from edge_sdk.errors import ContextOverflowError
from edge_sdk.evidence import RULE, choose
from edge_sdk.extracting import READ
from edge_sdk.prompt import Style, build_prompt
from edge_sdk.readers.extract import Extract
from edge_sdk.readers.reader import Reader
from edge_sdk.records import GenerateOptions, Hit, Passage, Token

from ..teachers.teacher import Reply, Teacher
from ..training_data.passages import SourcePassage
from ..training_data.questions import evidence_request, is_unanswered, parse_evidence
from .evaluation import Given, Task

MAX_TOKENS = 64
"""Of a decoder's answer: more than a short one with its mark takes."""
UNSURE = 0.5
"""Probability that the passages hold an answer, below which a reader would rather not answer."""
_MARK = re.compile(r"\s*\[\d+\]")
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^\s.!?][^.!?]*[.!?]*")


class ReaderSystem:
    """A reader, which takes the words of its answer from a passage and so cites it."""

    def __init__(self, reader: Reader, folder: Path, name: str) -> None:
        self.name, self._reader = name, reader
        self.fingerprint, self.bytes = f"reader {reader.fingerprint}", size_of(folder)

    def answers(self, tasks: Sequence[Task], cancel: Event | None = None) -> Iterator[tuple[int, Given]]:
        """See `System.answers`."""
        for at, task in enumerate(tasks):
            if cancel is not None and cancel.is_set():
                return
            started = time.perf_counter()
            found = self._reader.read(task.question, task.passages)
            milliseconds = (time.perf_counter() - started) * 1000
            if found.best is None:
                yield at, Given("", refused=True, milliseconds=milliseconds)
                continue
            signals = {"score": found.best.score, "support": found.support, "passage": max(found.passages)}
            signals |= {"margin": min(found.margin, 50.0)}  # infinite where there is no second span
            if found.probability is not None:
                signals["answerable"] = found.probability
            yield (
                at,
                Given(
                    found.best.text,
                    cited=found.best.passage,
                    refused=found.probability is not None and found.probability < UNSURE,
                    signals=signals,
                    milliseconds=milliseconds,
                ),
            )


@dataclass(frozen=True, slots=True)
class Evidence:
    """So many `tokens` of sentences in the place of whole passages, chosen as `edge ask` does with these models.

    But all passages of a task count as found equally well.
    """

    tokens: int
    encoder: Encoder | None = None
    reader: Reader | None = None

    @property
    def fingerprint(self) -> str:
        """Names all that decides what is chosen."""
        models = [each.fingerprint for each in (self.encoder, self.reader) if each is not None]
        return f"{self.tokens} of {RULE} {' '.join(models)}"

    def read(self, question: str, hits: Sequence[Hit]) -> Extract | None:
        """What the reader finds."""
        return self.reader.read(question, [hit.passage.text for hit in hits[:READ]]) if self.reader else None

    def texts(self, question: str, hits: Sequence[Hit], engine: Engine, extract: Extract | None) -> dict[Hit, str]:
        """What the engine is given of each passage that it is given anything of."""
        likely = extract.likely if extract is not None else ()
        encode = self.encoder.encode if self.encoder is not None else None
        excerpts = choose(question, hits, self.tokens, count=engine.count, encode=encode, likely=likely)
        return {excerpt.hit: excerpt.text for excerpt in excerpts}


class DecoderSystem:
    """A language model with the prompt of `edge ask`: all passages of a task, or sentences of them, are in it."""

    def __init__(
        self,
        engine: Engine,
        files: Sequence[Path],
        name: str,
        *,
        style: Style = "full",
        numbered: bool = True,
        evidence: Evidence | None = None,
        extractive: bool = False,
    ) -> None:
        """`files` are those that a device needs for it; without `evidence` it is given whole passages.

        An `extractive` one is held to what the reader of `evidence` finds.
        """
        self.name, self._engine, self._style, self._numbered = name, engine, style, numbered
        self._evidence, self._extractive = evidence, extractive
        chosen = f" {evidence.fingerprint}" if evidence is not None else ""
        chosen += f" {OFFER}" if extractive else ""
        self.fingerprint = f"decoder {engine.fingerprint} {style} {numbered} {MAX_TOKENS}{chosen}"
        self.bytes = sum(map(size_of, files))

    def answers(self, tasks: Sequence[Task], cancel: Event | None = None) -> Iterator[tuple[int, Given]]:
        """See `System.answers`. Raises `ContextOverflowError` for passages that do not fit the context."""
        for at, task in enumerate(tasks):
            found = self._answer(task, cancel)
            if cancel is not None and cancel.is_set():
                return
            yield at, found

    def _answer(self, task: Task, cancel: Event | None) -> Given:
        hits = [
            Hit(Passage(at, f"passage {at}", "", "", text, 0, len(text)), 1.0)
            for at, text in enumerate(task.passages)
        ]
        engine, room = self._engine, self._engine.context - MAX_TOKENS
        started = time.perf_counter()
        texts, extract = {hit: hit.passage.text for hit in hits}, None
        if self._evidence is not None:
            extract = self._evidence.read(task.question, hits)
            texts = self._evidence.texts(task.question, hits, engine, extract)
        prompt = build_prompt(
            task.question, list(texts), render=engine.render, count=engine.count, budget=room, limit=room,
            style=self._style, numbered=self._numbered, shown=texts.__getitem__,
        )  # fmt: skip
        if prompt.left_out:
            raise ContextOverflowError(engine.count(" ".join(texts.values())), MAX_TOKENS, engine.context)
        numbered = self._numbered and self._style == "full"
        offered = choices(extract, hits, prompt, numbered=numbered) if self._extractive else ()
        options = GenerateOptions(max_tokens=MAX_TOKENS, choices=offered)
        generation = engine.generate(prompt.text, options, cancel)
        tokens = list(generation)
        said = "".join(token.text for token in tokens).strip()
        given = completed(said, offered, generation.result)
        milliseconds = (time.perf_counter() - started) * 1000
        cited = resolve_citations(given, prompt.passages)
        places = [int(citation.document.removeprefix("passage ")) for citation in cited.citations]
        text = _MARK.sub("", cited.text).strip()
        return Given(
            text,
            cited=places[0] if len(set(places)) == 1 else None,
            refused=is_refusal(text) or not text,
            signals=_sureness(tokens, refused=is_refusal(text)),
            tokens=len(tokens),
            milliseconds=milliseconds,
        )


def _sureness(tokens: Sequence[Token], *, refused: bool) -> dict[str, float]:
    if not tokens:
        return {}
    logprobs = [token.logprob for token in tokens]
    return {
        "mean log-probability": fmean(logprobs),
        "least log-probability": min(logprobs),
        "margin": fmean(token.margin for token in tokens),
        "answers": float(not refused),
    }


class TeacherSystem:
    """A teacher, asked as it is for training data: for the passage and the answer in its words."""

    def __init__(self, teacher: Teacher, name: str, bytes: int | None = None) -> None:
        self.name, self.bytes, self._teacher = name, bytes, teacher
        self.fingerprint = f"teacher {teacher.fingerprint}"
        self.cost = 0.0

    def answers(self, tasks: Sequence[Task], cancel: Event | None = None) -> Iterator[tuple[int, Given]]:
        """See `System.answers`. How long an answer takes is not known of requests that are computed together."""
        requests = [
            evidence_request(task.question, [SourcePassage(text) for text in task.passages]) for task in tasks
        ]
        for at, reply in self._teacher.replies(requests, cancel):
            self.cost += reply.cost
            yield at, _from_reply(reply, len(tasks[at].passages))


def _from_reply(reply: Reply, passages: int) -> Given:
    number, said = parse_evidence(reply)
    signals = {}
    if reply.logprobs:
        signals = {"mean log-probability": fmean(reply.logprobs), "least log-probability": min(reply.logprobs)}
    return Given(
        said,
        cited=number - 1 if number is not None and 0 < number <= passages else None,
        refused=is_unanswered(said),
        signals=signals,
        tokens=reply.completion_tokens,
    )


class SentenceRule:
    """The sentence that holds most of the question's words, rare ones counting more: what any reader must beat."""

    name, fingerprint = "best sentence (no model)", "sentence rule 1"
    bytes: int | None = 0

    def answers(self, tasks: Sequence[Task], cancel: Event | None = None) -> Iterator[tuple[int, Given]]:
        """See `System.answers`."""
        for at, task in enumerate(tasks):
            if cancel is not None and cancel.is_set():
                return
            started = time.perf_counter()
            score, passage, sentence = best_sentence(task.question, task.passages)
            milliseconds = (time.perf_counter() - started) * 1000
            yield at, Given(sentence, passage, signals={"answerable": score}, milliseconds=milliseconds)


def best_sentence(question: str, passages: Sequence[str]) -> tuple[float, int | None, str]:
    """The share of the question's words, weighed by rarity, that a sentence has; its passage; the sentence.

    >>> best_sentence("Where is the source?", ["It rains.", "It is long. The source is in the Alps."])[1:]
    (1, 'The source is in the Alps.')
    """
    sentences = [(at, match[0].strip()) for at, text in enumerate(passages) for match in _SENTENCE.finditer(text)]
    words = [frozenset(map(str.lower, _WORD.findall(sentence))) for _, sentence in sentences]
    counts = Counter(word for each in words for word in each)
    wanted = {word: math.log(1 + len(words) / (1 + counts[word])) for word in _WORD.findall(question.lower())}
    total = sum(wanted.values())
    best: tuple[float, int | None, str] = (0.0, None, "")
    for (at, sentence), each in zip(sentences, words, strict=True):
        share = sum(weight for word, weight in wanted.items() if word in each) / total if total else 0.0
        if share > best[0]:
            best = (share, at, sentence)
    return best


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def name_digest(*parts: str) -> str:
    """A short name for a set-up."""
    return sha256("\0".join(parts).encode()).hexdigest()[:16]
