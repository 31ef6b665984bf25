"""Questions that their passage does not answer, made on purpose: from answered ones, with a near passage instead.

A reader that has seen only answerable questions always finds something. Knows nothing of teachers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from edge_sdk.encoders.embed import Encoder
from edge_sdk.storage.vectors import VectorIndex, quantize_rows

from .example import Example
from .grounding import groundedness
from .passages import SourcePassage

SHARE = 1 / 3
"""Of the answered questions that are asked of another passage, too; as in SQuAD 2.0 (Rajpurkar et al. 2018)."""
NEAREST = 4
"""Passages, the nearest without the answer, of which one is taken."""
_LOOKED_AT = 24  # nearest passages; those that hold the answer fall out


def unanswerable_examples(
    examples: Sequence[Example],
    passages: Sequence[SourcePassage],
    encoder: Encoder,
    *,
    share: float = SHARE,
) -> Iterator[Example]:
    """For a share of the answered examples, the same question with a passage that does not hold an answer.

    One of the passages nearest to the question, so that it is about nearly the same; none that has an answer, or
    all its words. Which questions and which passages follows from the texts, not from their order. An example whose
    near passages all hold the answer gives none.
    """
    chosen = [example for example in examples if example.answers and _draw(example, "ask") < share]
    distinct = list({passage.text: passage for passage in passages}.values())
    if not chosen or not distinct:
        return
    vectors = encoder.encode([passage.text for passage in distinct])
    index = VectorIndex.of(np.arange(len(distinct)), *quantize_rows(vectors))
    for example, query in zip(chosen, encoder.encode([example.question for example in chosen]), strict=True):
        rows, _ = index.top_k(query, _LOOKED_AT)
        texts = (distinct[row].text for row in rows.tolist())
        near = [text for text in texts if text != example.passage and not _holds(text, example)][:NEAREST]
        if near:
            text = near[int(_draw(example, "take") * len(near))]
            yield Example(example.question, text, (), example.source)


def _holds(passage: str, example: Example) -> bool:
    return any(groundedness(answer, passage) == 1.0 for answer in example.answers)


def _draw(example: Example, what: str) -> float:
    """A number from 0 to 1 that follows from the example and what it is drawn for."""
    digest = hashlib.sha256(f"{what} {example.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
