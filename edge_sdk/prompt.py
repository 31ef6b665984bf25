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
_SYSTEM: dict[Style, str] = {
    "full": (
        "You answer questions from the numbered passages that the user gives you, and from nothing else. "
        "Be short and concrete: one to three sentences, then a short code example if the passages support it. "
        "After each statement cite the passage it comes from, like [1]. "
        f"If the passages do not hold the answer, reply only: {NOT_FOUND}"
    ),
    "brief": (
        "Answer the question from the numbered passages. Reply with only the exact words of the answer, "
        "as few as possible, copied from the passages, and then the number of the passage, like [1]."
    ),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent to the model. `passages[n - 1]` is what the answer cites as `[n]`."""

    messages: tuple[Message, ...]
    text: str  # the messages after the chat template
    tokens: int
    passages: tuple[Hit, ...]
    left_out: int  # retrieved passages that had no room


def build_prompt(
    question: str,
    hits: Sequence[Hit],
    *,
    render: Callable[[Sequence[Message]], str],
    count: Callable[[str], int],
    budget: int,
    style: Style = "full",
    history: Sequence[Message] = (),
) -> Prompt:
    """Take the best passages, in rank order, for as long as the whole rendered prompt stays within `budget` tokens.

    `budget` counts everything: system text, `history`, passages, question and the template's own tokens. The
    question is always in, so that a budget too small for it shows in `tokens`; what to do then is the caller's
    decision. A passage that does not fit is passed over and a shorter one behind it may still come in.
    """
    chosen: list[Hit] = []

    def rendered(passages: Sequence[Hit]) -> tuple[tuple[Message, ...], str, int]:
        messages = (
            Message("system", _SYSTEM[style]),
            *history,
            Message("user", _user_text(question, passages)),
        )
        text = render(messages)
        return messages, text, count(text)

    messages, text, tokens = rendered(())
    for hit in hits:
        attempt = rendered([*chosen, hit])
        if attempt[2] <= budget:
            chosen.append(hit)
            messages, text, tokens = attempt
    return Prompt(messages, text, tokens, tuple(chosen), len(hits) - len(chosen))


def _user_text(question: str, passages: Sequence[Hit]) -> str:
    """Passages first: a fixed beginning lets the KV cache keep more when only the question changes."""
    blocks = [f"[{number}] {_label(hit)}{hit.passage.text}" for number, hit in enumerate(passages, 1)]
    return "\n\n".join([*blocks, f"Question: {question}"])


def _label(hit: Hit) -> str:
    heading = hit.passage.heading or hit.passage.title
    return f"{heading}: " if heading and not hit.passage.text.startswith(heading) else ""
