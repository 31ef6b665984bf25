"""From a question to the best passages: BM25 and vectors over the whole corpus, fused, and feedback from the best.

Knows nothing of prompts, models or what is done with the passages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..records import Hit, Passage
from ..storage.schema import storable
from .fulltext import any_of, match_terms, telling
from .ranking import best_first, feed_back, fuse, word_vectors

if TYPE_CHECKING:
    from ..encoders.embed import Encoder
    from ..storage.store import Store
    from ..storage.vectors import VectorIndex

RANKING = "scores fused, feedback in words and vectors, 1"
"""Names what orders the hits; to be changed with it, as calibrations depend on it."""
LEADING = 50
"""How many of the best candidates take part in the feedback; their texts and vectors are read."""
_TEXT_DEPTH = 10  # times `candidates`: FTS5 scores every match whatever the limit, and vectors find some of these
SAME_TEXT = 0.9
"""Share of common word triples from which two passages count as one text."""


def retrieve(
    store: Store, encoder: Encoder | None, question: str, k: int = 8, *, candidates: int = 100
) -> list[Hit]:
    """The k best passages, best first; an empty store or question gives an empty list.

    Two rankings look at everything and propose their `candidates` best: BM25 (FTS5) of the terms that are `telling`
    and the cosine of the vectors; without an encoder BM25 alone. Their scores are fused, and the `LEADING` best are
    ranked again by how much they are like those in front, in words and in vectors (`ranking`). Of passages with
    nearly the same text only the best stays, private if one of them is. A hit's `score` is between 0 and 1; with
    an encoder every hit has its `similarity` to the question, wherever it was found. Raises `EncoderMismatchError`
    when the store's vectors are another's.
    """
    question = storable(question)
    if k < 1 or not question.strip():
        return []
    candidates = max(candidates, k)
    asked = None if encoder is None else _ask_vectors(store, encoder, question)
    total = store.counts().passages if asked is None else len(asked.index)  # which costs less
    terms = telling(match_terms(question), total, store.count_text)
    bm25 = dict(store.search_text(any_of(terms), candidates * _TEXT_DEPTH))
    nearest = [] if asked is None else asked.index.top_k(asked.query, candidates)[0].tolist()
    ids = np.array(sorted({*list(bm25)[:candidates], *nearest}), np.int64)
    cosines = None if asked is None else asked.index.cosines(asked.query, ids.tolist()).astype(np.float64)
    if cosines is not None:  # without those added since the index was read: they have no vector in it
        ids, cosines = ids[~np.isnan(cosines)], cosines[~np.isnan(cosines)]
    scores = fuse(np.array([bm25.get(id, 0.0) for id in ids.tolist()]), cosines)
    best = best_first(scores, ids)[: max(LEADING, k)]
    passages = {passage.id: passage for passage in store.passages(ids[best].tolist())}
    best = best[[id in passages for id in ids[best].tolist()]]  # without those deleted since

    leading = best[:LEADING]
    spaces = [word_vectors([_words(passages[id]) for id in ids[leading].tolist()])]
    if asked is not None:
        spaces.append(asked.index.vectors(ids[leading].tolist()))
    scores /= 2  # what follows the leading ones stays behind them
    scores[leading] = feed_back(2 * scores[leading], spaces)
    best = best[best_first(scores[best], ids[best])]

    places = [{id: place for place, id in enumerate(ranking, 1)} for ranking in (bm25, nearest)]
    similarities = {} if cosines is None else dict(zip(ids.tolist(), cosines.tolist(), strict=True))
    final = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    return [
        Hit(
            passage,
            score=final[passage.id],
            bm25_rank=places[0].get(passage.id),
            bm25=bm25.get(passage.id),
            vector_rank=places[1].get(passage.id),
            similarity=similarities.get(passage.id),
        )
        for passage in _distinct([passages[id] for id in ids[best].tolist()], k)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """The vectors of a store and that of a question."""

    index: VectorIndex
    query: NDArray[np.float32]


def _ask_vectors(store: Store, encoder: Encoder, question: str) -> _Asked | None:
    """None where there is nothing to compare: an empty store, a question without a token."""
    store.use_encoder(encoder.fingerprint, encoder.dimension)
    index = store.vector_index()
    if not len(index):
        return None
    query = encoder.encode([question])[0]
    if not np.isfinite(query).all():
        raise EngineError("the encoder gave numbers that are not finite", hint="its file may be damaged")
    return _Asked(index, query) if query.any() else None


def _distinct(passages: Sequence[Passage], k: int) -> list[Passage]:
    """The first k passages that do not repeat an earlier one.

    One that says what a private one says has that one's label: a copy without it opens nothing.
    """
    kept: list[Passage] = []
    texts: list[frozenset[tuple[str, ...]]] = []
    for passage in passages:
        if len(kept) == k and passage.open:
            continue
        triples = _word_triples(_words(passage))
        same = [at for at, other in enumerate(texts) if _overlap(triples, other) >= SAME_TEXT]
        for at in same:
            if kept[at].open and not passage.open:
                kept[at] = replace(kept[at], label=passage.label)
        if not same and len(kept) < k:
            kept.append(passage)
            texts.append(triples)
    return kept


def _words(passage: Passage) -> str:
    return f"{passage.heading}\n{passage.text}"


def _word_triples(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold()) or [text]
    return frozenset(tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2)))


def _overlap(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Jaccard similarity of two sets that are not empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
