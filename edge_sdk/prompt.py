"""From a question and retrieved passages to messages for a model, within an exact token budget.

Knows nothing of engines: counting and the chat template come in as functions. Nothing is cut silently: the
result says which passages are in and how many had no room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .records import Hit, Message

Style = Literal["full", "brief"]

NOT_FOUND = "The documents do not say."
NOT_SURE = "The answer found is too uncertain to be given."


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads documents best, as measured and kept in the catalog.

    `prompt_tokens` is the size of a whole prompt; `numbered` passages are for models that can cite them as `[n]`,
    the very small ones answer better from plain text and are cited by matching words, as brief answers always are.
    `evidence_tokens` is how many tokens of sentences are chosen from the passages; 0 means whole passages. An
    `extractive` one answers in the words of a passage, and so can be held to those that a reader found (`choices`).
    """

    prompt_tokens: int = 560
    numbered: bool = True
    evidence_tokens: int = 0
    extractive: bool = False


_NUMBERED = (
    "You answer questions about documents. Use the numbered passages below. Answer in one to three sentences and "
    f"cite the passage after each, like [1]. If the passages are about something else, reply: {NOT_FOUND}"
)
_PLAIN = "Answer the question from the text in one or two sentences."
# Asked for a few words and a number, models of every size give one or the other: with plain passages and an example
# Qwen2.5-1.5B answers briefly and right, and the words themselves lead back to the passage.
_BRIEF = "Answer with the exact words from the text, as few as possible."
_BRIEF_EXAMPLE = (
    Message(
        "user",
        "The Eiffel Tower was finished in March 1889 and is 330 metres tall.\n\n"
        "Question: When was the Eiffel Tower finished?",
    ),
    Message("assistant", "March 1889"),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent to the model. The answer cites `passages[n - 1]` as `[n]`; `shown[n - 1]` is sent of it."""

    messages: tuple[Message, ...]
    text: str  # the messages after the chat template
    tokens: int
    passages: tuple[Hit, ...]
    left_out: int  # retrieved passages that had no room
    shown: tuple[str, ...]


def whole(hit: Hit) -> str:
    """All of a passage's text."""
    return hit.passage.text


def build_prompt(
    question: str,
    hits: Sequence[Hit],
    *,
    render: Callable[[Sequence[Message]], str],
    count: Callable[[str], int],
    budget: int,
    limit: int,
    style: Style = "full",
    numbered: bool = True,
    history: Sequence[Message] = (),
    shown: Callable[[Hit], str] = whole,
) -> Prompt:
    """Take the best passages, in rank order, for as long as the whole rendered prompt stays within `budget` tokens.

    `budget` counts everything: system text, `history`, passages, question and the template's own tokens. A passage
    that does not fit is passed over and a shorter one behind it may still come in; only the very best passage may
    exceed the budget, up to `limit`, because answering without it is pointless. The question is always in, so a
    limit too small for it shows in `tokens`; what to do then is the caller's decision. `shown` says what of a
    passage the model is given.
    """
    chosen: list[Hit] = []
    brief = style == "brief"
    numbered = numbered and not brief
    system = _BRIEF if brief else _NUMBERED if numbered else _PLAIN
    opening = (Message("system", system), *(_BRIEF_EXAMPLE if brief else ()))

    def rendered(passages: Sequence[Hit]) -> tuple[tuple[Message, ...], str, int]:
        blocks = [
            _numbered(number, hit, shown(hit)) if numbered else shown(hit) for number, hit in enumerate(passages, 1)
        ]
        messages = (*opening, *history, Message("user", _user_text(question, blocks)))
        text = render(messages)
        return messages, text, count(text)

    messages, text, tokens = rendered(())
    for hit in hits:
        attempt = rendered([*chosen, hit])
        if attempt[2] <= (budget if chosen or hit is not hits[0] else max(budget, limit)):
            chosen.append(hit)
            messages, text, tokens = attempt
    return Prompt(messages, text, tokens, tuple(chosen), len(hits) - len(chosen), tuple(map(shown, chosen)))


def _user_text(question: str, blocks: Sequence[str]) -> str:
    """Passages first: a fixed beginning lets the KV cache keep more when only the question changes."""
    return "\n\n".join([*blocks, f"Question: {question}"])


def _numbered(number: int, hit: Hit, text: str) -> str:
    heading = hit.passage.heading or hit.passage.title
    return f"[{number}] {heading}: {text}" if heading and not text.startswith(heading) else f"[{number}] {text}"
