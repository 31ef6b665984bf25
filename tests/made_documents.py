"""Made-up documents and a deterministic encoder for tests of the store and of retrieval."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sdk.records import Chunk, ParsedDocument
from edge_sdk.storage.store import Store


class WordEncoder:
    """Sums a random vector for each word, so that texts which share words are close. The same on any machine."""

    def __init__(self, dimension: int = 32, seed: int = 0) -> None:
        self.dimension = dimension
        self.fingerprint = f"words-{dimension}-{seed}"
        self._seed = seed
        self._words: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row += sum((self._word(word) for word in re.findall(r"\w+", text.lower())), np.float32(0))
            row /= np.linalg.norm(row) or 1
        return rows

    def _word(self, word: str) -> NDArray[np.float32]:
        if word not in self._words:
            digest = hashlib.sha256(f"{self._seed} {word}".encode("utf-8", "replace")).digest()
            random = np.random.default_rng(int.from_bytes(digest[:8]))
            self._words[word] = random.standard_normal(self.dimension).astype(np.float32)
        return self._words[word]


def made(name: str, *texts: str, heading: str = "", title: str = "") -> tuple[ParsedDocument, list[Chunk]]:
    """A document of these passages, one under the other."""
    whole = "\n\n".join(texts)
    chunks, start = [], 0
    for text in texts:
        chunks.append(Chunk(text, start, start + len(text), heading))
        start += len(text) + 2
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
    return ParsedDocument(name, title, whole, (), digest, "text/plain"), chunks


def put(store: Store, encoder: WordEncoder, name: str, *texts: str, heading: str = "", title: str = "") -> str:
    """Store such a document, embedded as ingest does it but for the headings."""
    document, chunks = made(name, *texts, heading=heading, title=title)
    store.use_encoder(encoder.fingerprint, encoder.dimension)
    return store.put(document, chunks, encoder.encode(texts))
