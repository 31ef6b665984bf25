"""From a question to the best passages: BM25 over the whole corpus and vectors, fused by reciprocal rank.

Knows nothing of prompts, models or what is done with the passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError
from .fulltext import match_expression
from .records import Hit, Passage
from .schema import storable

if TYPE_CHECKING:
    from .embed import Encoder
    from .store import Store
    from .vectors import VectorIndex

RANK_CONSTANT = 10
"""The k of reciprocal rank fusion. With the usual 60, a passage that both rankings put at 30 beats one that a
single ranking puts first. On two rankings 10 found more: recall@5 of 500 SQuAD questions .986 (60: .964), nDCG@10
on CISI .457 (.437), on Cranfield .435 (.438)."""
SAME_TEXT = 0.9
"""Share of common word triples from which two passages count as one text."""


def retrieve(
    store: Store, encoder: Encoder | None, question: str, k: int = 8, *, candidates: int = 50
) -> list[Hit]:
    """The k best passages, best first; an empty store or question gives an empty list.

    Both rankings look at everything and contribute their `candidates` best: BM25 (FTS5) and the cosine of the
    vectors; without an encoder BM25 alone. They are fused by reciprocal rank (Cormack, Clarke and Büttcher, SIGIR
    2009). Of passages with nearly the same text only the best stays. With an encoder every hit has its
    `similarity`, wherever it was found. Raises `EncoderMismatchError` when the store's vectors are another's.
    """
    question = storable(question)
    if k < 1 or not question.strip():
        return []
    candidates = max(candidates, k)
    scores = dict(store.search_text(match_expression(question), candidates))
    rankings = [list(scores)]
    similarities: dict[int, float] = {}
    if encoder is not None:
        index, query = _vectors(store, encoder, question)
        if index is not None and query.any():
            rankings.append(index.top_k(query, candidates)[0].tolist())
        ids = list(dict.fromkeys(id for ranking in rankings for id in ranking))
        if index is not None:
            similarities = dict(zip(ids, index.cosines(query, ids).tolist(), strict=True))
    places = [{id: place for place, id in enumerate(ranking, 1)} for ranking in rankings]
    fused = fuse(rankings)
    passages = {passage.id: passage for passage in store.passages(list(fused))}
    return [
        Hit(
            passage,
            score=fused[passage.id],
            bm25_rank=places[0].get(passage.id),
            bm25=scores.get(passage.id),
            vector_rank=places[1].get(passage.id) if len(places) > 1 else None,
            similarity=similarities.get(passage.id),
        )
        for passage in _distinct([passages[id] for id in fused if id in passages], k)
    ]


def fuse(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    """Reciprocal rank fusion: each id with its score, best first; equal scores in the order of the ids.

    >>> {id: round(score, 3) for id, score in fuse([[7, 8], [9, 7]]).items()}
    {7: 0.174, 9: 0.091, 8: 0.083}
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for place, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + 1 / (RANK_CONSTANT + place)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))


def _vectors(store: Store, encoder: Encoder, question: str) -> tuple[VectorIndex | None, NDArray[np.float32]]:
    """The store's index, None when it is empty, and the question's vector."""
    store.use_encoder(encoder.fingerprint, encoder.dimension)
    index = store.vector_index()
    if not len(index):
        return None, np.zeros(encoder.dimension, np.float32)
    query = encoder.encode([question])[0]
    if not np.isfinite(query).all():
        raise EngineError("the encoder gave numbers that are not finite", hint="its file may be damaged")
    return index, query


def _distinct(passages: Sequence[Passage], k: int) -> list[Passage]:
    """The first k passages that do not repeat an earlier one."""
    kept: list[tuple[Passage, frozenset[tuple[str, ...]]]] = []
    for passage in passages:
        triples = _word_triples(f"{passage.heading}\n{passage.text}")
        if not any(_overlap(triples, other) >= SAME_TEXT for _, other in kept):
            kept.append((passage, triples))
        if len(kept) == k:
            break
    return [passage for passage, _ in kept]


def _word_triples(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold()) or [text]
    return frozenset(tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2)))


def _overlap(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Jaccard similarity of two sets that are not empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
