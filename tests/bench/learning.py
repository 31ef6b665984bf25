"""A stream of questions that repeats itself, before a real remote: its share and the quality, part by part.

    .venv/bin/python tests/bench/learning.py --data squad --asked asked.jsonl --remote http://127.0.0.1:8080/v1 \
        --remote-model NAME --model smollm2-135m-instruct

`asked.jsonl` is what `edge eval route --out` has kept, with the remote's answers. A calibration is made on one half
of its questions, the stream is drawn from the other half. Answers of the remote are accepted as the runtime does it
by itself, by agreement; with `--approve` a user is played who accepts those that are right. One JSON document is
the last line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sdk.commands.measure import stamped
from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.config import load_settings
from edge_sdk.edge import Edge
from edge_sdk.route import Policy
from quantize.asking import read_asked
from quantize.calibrate import Target, calibrate
from quantize.collection import fill_store, read_answerable, store_path
from quantize.evaluate import Question
from quantize.evaluate_learning import evaluate_learning, question_stream
from quantize.metrics import contains


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("data", "asked"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("remote", "remote-model", "model"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--encoder", default="minilm-l6-int8")
    parser.add_argument("--reader")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--risk", choices=["marginal", "regret"], default="regret")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--approve", action="store_true", help="play a user who accepts right answers")
    given = parser.parse_args()
    names = ("remote", "remote_model", "model", "encoder", "reader", "threads")
    flags = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    settings = load_settings({**flags, "privacy": "prefer_local", "privacy_send": "selected"})
    file, documents, _ = read_answerable(given.data)
    kept = store_path(settings, file, Path(settings.encoder).name)
    asked = read_asked(given.asked)
    fitting, others = asked[::2], asked[1::2]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.db"
        if kept.exists():
            shutil.copyfile(kept, store)
        own = replace(settings, store=store, prefix_cache=0)
        with Edge.open(settings=own, policy=Policy(when_unsure="remote")) as edge:
            fill_store(edge.store, edge.encoder, documents)
            target = Target(kind=given.risk, alpha=given.alpha)
            calibration = calibrate(fitting, edge.setup("brief"), target=target)
            edge.calibrations = Calibrations(Path(folder) / "calibrations")
            edge.calibrations.save(calibration)
            learned = edge.learned
            assert learned is not None
            right = {each.question: each.answers for each in others}

            def ask(question: str) -> tuple[str, str]:
                answer = edge.ask(question, style="brief", max_tokens=48)
                if given.approve and answer.route == "remote":
                    for row in learned.answers("quarantine"):
                        if contains(row.answer, right.get(row.question, ())) > 0:
                            learned.accept(row.id)
                return answer.route, answer.text

            questions = [Question(str(at), each.question, each.answers, "") for at, each in enumerate(others)]
            stream = question_stream(questions, given.questions)
            found: dict[str, Any] = evaluate_learning(stream, ask, progress=told)
    facts = {"model": given.model, "data": given.data.name, "fitted_on": len(fitting), "approve": given.approve}
    found |= {"threshold": calibration.certificate and calibration.certificate.threshold}
    result = stamped("", facts | {name: value for name, value in found.items() if name != "questions"})
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(json.dumps(result | {"command": " ".join([".venv/bin/python tests/bench/learning.py", *words])}))


def told(done: float, total: float | None, detail: str) -> None:
    if done % 20 == 0:
        print(f"{done:.0f} of {total or 0:.0f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
