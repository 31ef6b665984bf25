"""`edge eval retrieval`: our ranking beside BM25, vectors and their plain fusions, on a collection with judgements.

Every document becomes one document of a store of its own; long ones are chunked, and a document's place is that of
its best passage. All systems answer every question, taking turns, over the same passages and vectors.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from threading import Event as Flag
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_sdk import loading
from edge_sdk.config import Settings
from edge_sdk.documents.chunk import embedding_text
from edge_sdk.errors import ConfigError
from edge_sdk.records import Passage
from edge_sdk.retrieval.fulltext import match_expression
from edge_sdk.retrieval.retrieve import retrieve
from edge_sdk.storage.store import Store

from .collection import Query, Update, documents_file, fill_store, read_documents, read_queries, store_path
from .metrics import bootstrap, ndcg_at, recall_at, reciprocal_rank

if TYPE_CHECKING:
    from edge_sdk.encoders.embed import Encoder

DEPTH = 10
"""Documents of a ranking that count."""
SYSTEMS = {
    "bm25": "FTS5 (porter), each word of the question once, joined by OR",
    "bm25_stop": "FTS5 (porter), our query: stop words dropped, repeats kept",
    "bm25s": "the bm25s package with its defaults, where it is installed",
    "vector": "cosine of the vectors",
    "rrf": "bm25 and vector by reciprocal rank, k = 60",
    "rrf_stop": "bm25_stop and vector by reciprocal rank, k = 60",
    "rrf_bm25s": "bm25s and vector by reciprocal rank, k = 60",
    "edge": "edge_sdk.retrieval.retrieve",
}
"""What is measured."""
_WITHOUT_VECTORS = ("bm25", "bm25_stop", "bm25s")
_RANKING = 100  # passages that each ranking contributes to a plain fusion
_HITS = 30  # passages asked of `retrieve`: enough for `DEPTH` documents that were chunked

Ranker = Callable[[str, NDArray[np.float32]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one system did with one question."""

    ndcg_at_10: float
    recall_at_10: float
    mrr: float
    ms: float


def evaluate_retrieval(
    data: Path,
    settings: Settings,
    *,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> dict[str, object]:
    """Run every system on every judged question of the folder (its layout: `collection`); the JSON document.

    `systems` NAME holds the means over questions of `ndcg_at_10`, `recall_at_10` and `mrr`, all of the first ten
    documents, with their 95 % bootstrap `intervals`, and `ms_per_query`, to which encoding the question counts
    (`encode_ms_per_query` alone) where vectors take part. `edge_minus_best_fusion` compares edge with the fusion
    that has the highest nDCG, question by question. The store stays under `settings.home/eval` for the next run;
    `cancel` ends with the questions answered so far.
    """
    queries, file = read_queries(data), documents_file(data)
    encoder = loading.load_encoder(settings)
    outcomes: dict[str, list[_Outcome]] = {}
    encoding: list[float] = []
    with Store.open(store_path(settings, file, f"{encoder.fingerprint} {file.name}")) as store:
        fill_store(store, encoder, read_documents(file), progress, cancel)
        passages = store.passages(store.vector_index().ids.tolist())
        owners = {passage.id: passage.document for passage in passages}
        if not passages and not (cancel is not None and cancel.is_set()):
            raise ConfigError(f"{file} holds no text")
        rankers = _rankers(store, encoder, passages) if passages else {}
        for number, query in enumerate(queries):
            if cancel is not None and cancel.is_set():
                break
            progress(number, len(queries), query.text)
            started = time.perf_counter()
            vector = encoder.encode([query.text])[0]
            encoding.append((time.perf_counter() - started) * 1000)
            # Whoever comes first finds cold caches: the turn goes round.
            names = list(rankers)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                outcomes.setdefault(name, []).append(_outcome(rankers[name], query, vector, owners))
    result: dict[str, object] = {"data": data.name, "n": len(encoding), "passages": len(passages)}
    if not encoding:
        return result
    result["encode_ms_per_query"] = fmean(encoding)
    result["systems"] = {name: _summary(name, outcomes[name], fmean(encoding)) for name in rankers}
    result["edge_minus_best_fusion"] = _lead(outcomes)
    return result


def _rankers(store: Store, encoder: Encoder, passages: Sequence[Passage]) -> dict[str, Ranker]:
    """Each system as a function from a question and its vector to passages, best first."""
    index = store.vector_index()

    def bm25(question: str, vector: NDArray[np.float32]) -> Sequence[int]:
        return [id for id, _ in store.search_text(plain_expression(question), _RANKING)]

    def bm25_stop(question: str, vector: NDArray[np.float32]) -> Sequence[int]:
        return [id for id, _ in store.search_text(match_expression(question), _RANKING)]

    def by_vector(question: str, vector: NDArray[np.float32]) -> Sequence[int]:
        ids, _ = index.top_k(vector, _RANKING)
        return [int(id) for id in ids]

    def edge(question: str, vector: NDArray[np.float32]) -> Sequence[int]:
        return [hit.passage.id for hit in retrieve(store, _Encoded(encoder, vector), question, _HITS)]

    def fused(text: Ranker) -> Ranker:
        return lambda question, vector: reciprocal_rank_fusion(text(question, vector), by_vector(question, vector))

    rankers: dict[str, Ranker] = {"bm25": bm25, "bm25_stop": bm25_stop, "vector": by_vector}
    rankers |= {"rrf": fused(bm25), "rrf_stop": fused(bm25_stop), "edge": edge}
    if find_spec("bm25s") is not None:
        peer = _bm25s(passages)
        rankers |= {"bm25s": peer, "rrf_bm25s": fused(peer)}
    return {name: rankers[name] for name in SYSTEMS if name in rankers}


def _bm25s(passages: Sequence[Passage]) -> Ranker:
    """The peer package over the same passages, each with its heading."""
    import bm25s

    ids = [passage.id for passage in passages]
    peer = bm25s.BM25()
    texts = [embedding_text(passage.heading, passage.text) for passage in passages]
    peer.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def rank(question: str, vector: NDArray[np.float32]) -> Sequence[int]:
        words = bm25s.tokenize([question], show_progress=False)
        rows, scores = peer.retrieve(words, k=min(_RANKING, len(ids)), show_progress=False)
        return [ids[row] for row, score in zip(rows[0], scores[0], strict=True) if score > 0]

    return rank


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An encoder that was asked already, so that `retrieve` is timed without it."""

    encoder: Encoder
    vector: NDArray[np.float32]

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.vector[None]


def plain_expression(question: str) -> str:
    """The FTS5 query that most programs send: every word once, quoted, joined by OR.

    >>> plain_expression("What is the C++ policy? The policy!")
    '"what" OR "is" OR "the" OR "c" OR "policy"'
    """
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", question.lower())))


def reciprocal_rank_fusion(*rankings: Sequence[int]) -> list[int]:
    """Ids by the sum of 1 / (60 + place) (Cormack, Clarke and Büttcher, SIGIR 2009), ties by id.

    >>> reciprocal_rank_fusion([7, 8], [9, 7])
    [7, 9, 8]
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for place, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + 1 / (60 + place)
    return sorted(scores, key=lambda id: (-scores[id], id))


def _outcome(rank: Ranker, query: Query, vector: NDArray[np.float32], owners: Mapping[int, str]) -> _Outcome:
    started = time.perf_counter()
    ids = rank(query.text, vector)
    ms = (time.perf_counter() - started) * 1000
    documents = list(dict.fromkeys(owners[id] for id in ids))[:DEPTH]
    return _Outcome(
        ndcg_at(documents, query.relevant, DEPTH),
        recall_at(documents, query.relevant, DEPTH),
        reciprocal_rank(documents, query.relevant),
        ms,
    )


def _summary(name: str, outcomes: Sequence[_Outcome], encode_ms: float) -> dict[str, object]:
    measured = {
        metric: bootstrap([getattr(outcome, metric) for outcome in outcomes])
        for metric in ("ndcg_at_10", "recall_at_10", "mrr")
    }
    ms = fmean(outcome.ms for outcome in outcomes)
    return {
        "what": SYSTEMS[name],
        **{metric: interval.mean for metric, interval in measured.items()},
        "intervals": {metric: [interval.low, interval.high] for metric, interval in measured.items()},
        "ms_per_query": ms if name in _WITHOUT_VECTORS else ms + encode_ms,
        "ms_without_encoding": ms,
    }


def _lead(outcomes: Mapping[str, Sequence[_Outcome]]) -> dict[str, object]:
    """How far edge is ahead of the best fusion in nDCG@10: paired by question, so the interval is of the lead."""
    ndcg = {name: [outcome.ndcg_at_10 for outcome in each] for name, each in outcomes.items()}
    best = max((name for name in ndcg if name.startswith("rrf")), key=lambda name: fmean(ndcg[name]))
    lead = bootstrap([ours - theirs for ours, theirs in zip(ndcg["edge"], ndcg[best], strict=True)])
    return {"fusion": best, "ndcg_at_10": lead.mean, "interval": [lead.low, lead.high]}
