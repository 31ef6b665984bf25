"""The smallest program: add one file to a store, ask one question, print the answer and its evidence.

Run `edge pull minilm-l6-int8 smollm2-135m-instruct` once before.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edge_sdk import Edge, EdgeError

MANUAL = """# Coffee machine

The tank holds 1.8 litres of water. Descale the machine every three months with citric acid.

To reset the machine, hold the steam button for five seconds until the red lamp blinks.
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manual.md"
        path.write_text(MANUAL, encoding="utf-8")
        with Edge.open(Path(folder) / "store.db") as edge:
            edge.add([path])
            answer = edge.ask("How do I reset the machine?")
    print(answer.text)
    for citation in answer.citations:
        print(f'  {Path(citation.document).name}, characters {citation.start}-{citation.end}: "{citation.quote}"')
    print(f"  route: {answer.route}, probability: {answer.probability}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        sys.exit(f"quickstart: {error}")
