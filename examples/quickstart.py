"""The smallest program: add this project's README to a store, ask one question, print the evidence.

Run `edge pull minilm-l6-int8 smollm2-135m-instruct` once before.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edge_sdk import Edge, EdgeError

README = Path(__file__).parent.parent / "README.md"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, Edge.open(Path(folder) / "store.db") as edge:
        edge.add([README])
        answer = edge.ask("Which file holds the documents?")
        print(answer.text)
        for citation in answer.citations:
            print(f'  [{citation.number}] {Path(citation.document).name} {citation.start}: "{citation.quote}"')
        print(f"  route: {answer.route}, probability: {answer.probability}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        sys.exit(f"quickstart: {error}")
