"""Static encoders beside the encoder that they come from: ranking by vectors alone and fused, speed, bytes.

    .venv/bin/python tests/bench/static_encoder.py --data cranfield --data squad --other wiki_passages

For each collection one static encoder is fitted to its documents (never to its questions), and one to the passages
of another collection, for documents that were not known when it was made. One JSON document is the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from edge_sdk.commands.measure import stamped
from edge_sdk.config import Settings, load_settings
from edge_sdk.documents.chunk import chunk_document, embedding_text
from edge_sdk.encoders.embed import Encoder
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.hub.models import resolve
from quantize.collection import documents_file, read_documents
from quantize.evaluate_retrieval import evaluate_retrieval
from quantize.static_encoder import distil_static


def passages_of(data: Path) -> list[str]:
    """The texts that a store of the collection would embed."""
    documents = read_documents(documents_file(data))
    return [embedding_text(each.heading, each.text) for document in documents for each in chunk_document(document)]


def rate(encoder: Encoder, passages: list[str]) -> float:
    """Passages a second of processor time: a busy machine changes it little, and both have one thread."""
    encoder.encode(passages[:20])
    started = time.thread_time()
    encoder.encode(passages)
    return len(passages) / (time.thread_time() - started)


def speed(source: Path, static: Path, passages: list[str], rounds: int) -> dict[str, Any]:
    """Both on one thread, taking turns, opened anew each time: a static encoder remembers words."""
    folders = {"source": source, "static": static}
    rows = [
        {name: rate(open_encoder(folder, threads=1), passages) for name, folder in folders.items()}
        for _ in range(rounds)
    ]
    ratios = sorted(row["static"] / row["source"] for row in rows)
    return {
        "passages": len(passages),
        "threads": 1,
        "rounds": rounds,
        "passages_per_second": {name: median(row[name] for row in rows) for name in folders},
        "ratio": median(ratios),
        "ratios": [ratios[0], ratios[-1]],
    }


def ndcg(data: Path, encoder: Path | str, settings: Settings) -> dict[str, float]:
    """nDCG@10 of the vectors alone and of the whole retrieval."""
    found: Any = evaluate_retrieval(data, replace(settings, encoder=str(encoder)))["systems"]
    return {name: found[system]["ndcg_at_10"] for name, system in (("vectors", "vector"), ("fused", "edge"))}


def measure(
    data: Path, source: Path, unseen: Path | None, settings: Settings, rounds: int, dimension: int | None
) -> dict[str, Any]:
    passages = passages_of(data)
    with tempfile.TemporaryDirectory() as scratch:
        own, fitted = replace(settings, home=Path(scratch)), Path(scratch, "fitted")
        made = distil_static(source, fitted, name=source.name, passages=passages, dimension=dimension)
        row: dict[str, Any] = {"source": ndcg(data, source, settings), "static": ndcg(data, fitted, own)}
        if unseen is not None:
            row["static_unseen"] = ndcg(data, unseen, own)
        row["kept"] = {
            name: {each: row[name][each] / row["source"][each] for each in row[name]}
            for name in row
            if name != "source"
        }
        return row | {"bytes": made["bytes"], "speed": speed(source, fitted, passages, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", default="minilm-l6-int8")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--other", type=Path, help="a collection to fit to, for documents that are not known")
    parser.add_argument("--other-passages", type=int, default=2000)
    parser.add_argument("--dimension", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    settings = load_settings({"encoder": given.encoder})
    source = resolve(given.encoder, settings).directory
    with tempfile.TemporaryDirectory() as scratch:
        unseen = Path(scratch, "unseen") if given.other else None
        if unseen is not None:
            others = passages_of(given.other)[: given.other_passages]
            distil_static(source, unseen, name=source.name, passages=others, dimension=given.dimension)
        rows = {
            data.name: measure(data, source, unseen, settings, given.rounds, given.dimension) for data in given.data
        }
    result = stamped("", {"encoder": given.encoder, "other": given.other and given.other.name, "sets": rows})
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(json.dumps(result | {"command": " ".join([".venv/bin/python tests/bench/static_encoder.py", *words])}))


if __name__ == "__main__":
    main()
