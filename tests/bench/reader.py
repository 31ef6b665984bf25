"""A reader on a question set: beside distractors, behind our retrieval, without the right passage; speed and bytes.

    .venv/bin/python tests/bench/reader.py READER --data squad --threads 2

Distractors are taken from the collection: those that retrieval ranks highest (`near`), or any (`random`). One JSON
document is the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edge_sdk.commands.measure import stamped
from edge_sdk.config import load_settings
from edge_sdk.readers.reader import Reader
from quantize.students.reader_evaluation import evaluate_reader, rank_passages


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm-l6-int8")
    parser.add_argument("--limit", type=int, help="only the first questions")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    ranked = rank_passages(given.data, load_settings({"encoder": given.encoder}), limit=given.limit)
    reader = Reader.open(given.reader, threads=given.threads)
    size = sum(path.stat().st_size for path in given.reader.iterdir())
    facts = {"reader": reader.fingerprint, "bytes": size, "threads": given.threads, "data": given.data.name}
    result = stamped("", {**facts, **evaluate_reader(reader, ranked)})
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(json.dumps(result | {"command": " ".join([".venv/bin/python tests/bench/reader.py", *words])}))


if __name__ == "__main__":
    main()
