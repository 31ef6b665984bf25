"""Start-up of `import edge_sdk` and `edge --help` beside a bare Python, taking turns; prints one JSON line.

Run it with the Python of the environment that has edge-sdk: `.venv/bin/python tests/bench/startup.py`.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from edge_sdk.device import cpu_name

ROUNDS = 25
CONTENDERS = {
    "bare": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import edge_sdk"],
    "help": [str(Path(sys.executable).with_name("edge")), "--help"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    rounds = [{name: seconds(command) for name, command in CONTENDERS.items()} for _ in range(ROUNDS)]
    result = {
        "command": ".venv/bin/python tests/bench/startup.py",
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu_name(), "python": sys.version.split()[0]},
        "rounds": ROUNDS,
        "milliseconds": {name: statistics.median(row[name] for row in rounds) * 1000 for name in CONTENDERS},
        "to_bare": {name: statistics.median(row[name] / row["bare"] for row in rounds) for name in CONTENDERS},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
