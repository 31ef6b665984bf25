"""What a teacher is asked to make questions of a passage, and to answer them; and what its replies say.

Prompts begin alike, and those about one passage go on alike, so that a teacher that keeps what it has read reads
little. Knows nothing of teachers, of what is kept of the replies, or of files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edge_sdk.records import Message

from ..teachers.teacher import Reply, Request
from .passages import SourcePassage

MOST_PAIRS = 4
"""Questions that a passage is asked for at once: beyond that they repeat themselves and their facts."""
CHARACTERS_A_PAIR = 110
"""Of a passage; a shorter one is asked for fewer questions, as it holds fewer facts."""
UNANSWERED = "not in the text"
"""The teacher's words for a question that the passage does not answer."""

_TOKENS_A_PAIR = 48
_ANSWER_TOKENS = 24
_LONGEST_REPLY = 8000  # characters that are looked at
_ASK = (
    "You write quiz questions about a text, in your own words. Every question names the person, place, work or "
    'thing that it is about, never "he", "it" or "the film", so that it is understood without the text. Every '
    "answer is a name, a date, a number or a few words, copied exactly from the text, and is not in its question."
)
_TEXT = (
    "The Skerry Light on Fara Island was built from red granite by Ellen Marsh between 1871 and 1874. Its lamp, "
    "which burned whale oil until 1902, could be seen 31 kilometres away. A storm destroyed the keeper's house in "
    "1928, so the lamp has been run from the harbour of Tarn since then."
)
_ASKED = (
    "Q: Who was the builder of the Skerry Light? A: Ellen Marsh\n"
    "Q: From what distance was the lamp of the Skerry Light visible? A: 31 kilometres\n"
    "Q: Which fuel did the Skerry Light use at first? A: whale oil\n"
    "Q: Why did control of the Skerry Light move to Tarn? A: A storm destroyed the keeper's house"
)
_ANSWER = (
    "Answer the question from the text, with the exact words of the text and as few as possible. "
    f"If the text does not answer it, reply: {UNANSWERED}"
)
_EXAMPLES = (
    ("Where does the Skerry Light stand?", "Fara Island"),
    ("Who owns the harbour of Tarn?", UNANSWERED),
    ("What happened in 1928?", "A storm destroyed the keeper's house"),
)
_FIND = (
    "Answer the question from one of the numbered texts: its number in brackets, then its exact words, as few as "
    f"possible. If no text answers it, reply: {UNANSWERED}"
)
_FIND_TEXTS = (SourcePassage("Tarn is a fishing town with a harbour and 900 people.", "Tarn"), SourcePassage(_TEXT))
_PAIR = re.compile(
    r"\bQ(?:uestion)?\s*\d*\s*[:.)]\s*(?P<question>[^\n?]+\?)[\s*\"']*"
    r"\bA(?:nswer)?\s*\d*\s*[:.)]\s*(?P<answer>[^\n]+?)\s*(?=\bQ(?:uestion)?\s*\d*\s*[:.)]|\n|\Z)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and the answer that came with it, as the teacher wrote them."""

    question: str
    answer: str


def question_request(
    passage: SourcePassage, most: int = MOST_PAIRS, *, temperature: float = 0.0, seed: int = 0
) -> Request:
    """Ask for questions with their answers, the fewer the shorter the passage is, up to `most`."""
    count = max(1, min(most, len(passage.text) // CHARACTERS_A_PAIR))
    turns = (
        Message("system", _ASK),
        Message("user", _question_turn(SourcePassage(_TEXT, "Skerry Light"), 4)),
        Message("assistant", _ASKED),
        Message("user", _question_turn(passage, count)),
    )
    return Request(turns, max_tokens=_TOKENS_A_PAIR * count, temperature=temperature, seed=seed)


def _question_turn(passage: SourcePassage, count: int) -> str:
    return f"{titled(passage)}\n\nWrite {count} question{'s' * (count > 1)} about this text."


def titled(passage: SourcePassage) -> str:
    """A passage as a teacher reads it: under its title, unless it begins with that."""
    if not passage.title or passage.text.casefold().startswith(passage.title.casefold()):
        return f"Text: {passage.text}"
    return f"Title: {passage.title}\nText: {passage.text}"


def parse_pairs(reply: Reply) -> list[Pair]:
    """The questions of a reply with their answers, `Q: ...? A: ...` in one line or in two, numbered or not.

    What is cut off at the end, and questions that come twice, are left out.

    >>> reply = Reply("1. Q: Who came? A: Ann.\\n**Question 2:** When?\\n**Answer:** in 1889", "stop", 0, 0)
    >>> [(pair.question, pair.answer) for pair in parse_pairs(reply)]
    [('Who came?', 'Ann.'), ('When?', 'in 1889')]
    """
    text = reply.text[:_LONGEST_REPLY].replace("**", "")
    pairs: dict[str, Pair] = {}
    for match in _PAIR.finditer(text):
        if match.end() == len(text) and reply.finish_reason != "stop":
            break
        question = " ".join(match["question"].split())
        pairs.setdefault(question.casefold(), Pair(question, match["answer"].strip()))
    return list(pairs.values())


def answer_request(question: str, passage: SourcePassage, *, temperature: float = 0.0, seed: int = 0) -> Request:
    """Ask for the answer in the passage's own words, or for `UNANSWERED`."""
    text = f"Text: {_TEXT}"
    turns = [Message("system", _ANSWER)]
    for at, (asked, answer) in enumerate(_EXAMPLES):
        turns.append(Message("user", f"{text}\n\nQuestion: {asked}" if not at else f"Question: {asked}"))
        turns.append(Message("assistant", answer))
    turns.append(Message("user", f"{titled(passage)}\n\nQuestion: {question}"))
    return Request(tuple(turns), max_tokens=_ANSWER_TOKENS, temperature=temperature, seed=seed, stop=("\n",))


def evidence_request(question: str, passages: Sequence[SourcePassage]) -> Request:
    """Ask which of some numbered passages answers the question, and for the answer in its own words."""
    turns = (
        Message("system", _FIND),
        Message("user", f"{_numbered(_FIND_TEXTS)}\n\nQuestion: Where does the Skerry Light stand?"),
        Message("assistant", "[2] Fara Island"),
        Message("user", "Question: Who owns the harbour of Tarn?"),
        Message("assistant", UNANSWERED),
        Message("user", f"{_numbered(passages)}\n\nQuestion: {question}"),
    )
    return Request(turns, max_tokens=_ANSWER_TOKENS, stop=("\n",))


def _numbered(passages: Sequence[SourcePassage]) -> str:
    return "\n\n".join(f"[{number}] {titled(passage)}" for number, passage in enumerate(passages, 1))


def parse_evidence(reply: Reply) -> tuple[int | None, str]:
    """The number of the passage, where one is given, and the answer.

    >>> parse_evidence(Reply("[2] Fara Island", "stop", 0, 0)), parse_evidence(Reply("1889.", "stop", 0, 0))
    ((2, 'Fara Island'), (None, '1889.'))
    """
    text = reply.text.strip()
    match = re.match(r"\[(\d{1,3})\][:.]?\s*", text) or re.search(r"\s*\[(\d{1,3})\]\W*$", text)
    if match is None:
        return None, text
    return int(match[1]), (text[: match.start()] + text[match.end() :]).strip()


def is_unanswered(reply: str) -> bool:
    """Whether the teacher found no answer.

    >>> is_unanswered("Not in the text."), is_unanswered("in 1889")
    (True, False)
    """
    said = " ".join(re.findall(r"\w+", reply.casefold()))
    return (
        not said
        or said.startswith(UNANSWERED)
        or bool(re.match(r"(?:the text does not|not (?:mentioned|stated|specified|given))\b", said))
    )
