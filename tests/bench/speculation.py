"""Decoding with and without drafts, answer by answer: seconds, and whether the tokens are the same.

    .venv/bin/python tests/bench/speculation.py model.gguf --data squad --questions 12 --rounds 3

Three kinds of answers: a sentence quoted from a passage (its first words are given, for the smallest models quote
nothing of their own accord), an ordinary answer from a passage, and a free one without. Both ways take turns on one
loaded model; only decoding is timed, for the prompt is evaluated in the same way. `ratio` is plain seconds over
those with drafts. One JSON document is the last line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from edge_sdk.commands.measure import stamped
from edge_sdk.device import default_threads
from edge_sdk.engines.decoding import Speculation
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.profile import Tuning
from edge_sdk.records import GenerateOptions, GenerationResult, Message

ASKED = {
    "quoting": "Quote the sentence of the text that answers the question, word for word.",
    "ordinary": "Answer the question from the text in one or two sentences.",
    "free": "Answer the question in a few sentences.",
}
GIVEN = 4  # words of the sentence to quote
SHORTEST = 12  # tokens of an answer whose time means something


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prompts(engine: GgufEngine, data: Path, kind: str) -> Iterator[str]:
    """One for each question; none for those whose sentence is too short to be quoted."""
    passages = {each["id"]: each["text"] for each in read(data / "passages.jsonl")}
    for each in read(data / "questions.jsonl"):
        passage, start = passages[each["passage_id"]], ""
        if kind == "quoting":
            sentences = re.split(r"(?<=[.!?]) ", passage)
            words = next((s.split() for s in sentences if each["answers"][0] in s), [])
            if len(words) < 4 * GIVEN:
                continue
            start = " ".join(words[:GIVEN])
        text = "" if kind == "free" else f"{passage}\n\n"
        user = Message("user", f"{text}Question: {each['question']}")
        yield engine.render([Message("system", ASKED[kind]), user]) + start


def run(
    engine: GgufEngine, prompt: str, tokens: int, drafts: Speculation | None
) -> tuple[list[int], GenerationResult]:
    engine._speculation = drafts
    generation = engine.generate(prompt, GenerateOptions(max_tokens=tokens))
    return [token.id for token in generation], generation.result


def compare(engine: GgufEngine, made: Iterable[str], questions: int, tokens: int, rounds: int) -> dict[str, Any]:
    """What one kind of answers gives; short ones are passed over."""
    drafts = Speculation()
    rows: list[dict[str, Any]] = []
    turn = count()
    for prompt in made:
        if len(rows) == questions:
            break
        _, result = run(engine, prompt, tokens, None)  # not counted: it evaluates the prompt
        if result.completion_tokens < SHORTEST:
            continue
        expected, _ = run(engine, prompt, tokens, None)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        same, drafted, accepted = True, 0, 0
        for _ in range(rounds):
            first = next(turn) % 2 == 0
            for drafting in (first, not first):
                given, result = run(engine, prompt, tokens, drafts if drafting else None)
                seconds[drafting].append(result.decode_ms / 1e3)
                same = same and given == expected
                drafted, accepted = drafted + result.drafted_tokens, accepted + result.accepted_tokens
        ratios = [plain / ours for plain, ours in zip(seconds[False], seconds[True], strict=True)]
        rows.append(
            {
                "tokens": len(expected),
                "plain_tokens_per_second": round(len(expected) / median(seconds[False]), 1),
                "ratio": round(median(ratios), 3),
                "drafted": drafted // rounds,
                "accepted": accepted // rounds,
                "same": same,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    ratios = [row["ratio"] for row in rows]
    return {
        "answers": len(rows),
        "median_ratio": median(ratios),
        "least_ratio": min(ratios),
        "most_ratio": max(ratios),
        "accepted_of_drafted": round(sum(r["accepted"] for r in rows) / max(1, sum(r["drafted"] for r in rows)), 3),
        "all_the_same": all(row["same"] for row in rows),
        "rows": rows,
        "costs": {size: round(cost, 2) for size, cost in drafts.lengths.costs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="passages.jsonl and questions.jsonl")
    parser.add_argument("--questions", type=int, default=12, help="answers of each kind")
    parser.add_argument("--tokens", type=int, default=64, help="at most, of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="of both ways, for each answer")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--batch", type=int, default=Tuning().batch)
    parser.add_argument("--cache-type", default=Tuning().cache_type, choices=("F16", "Q8_0"))
    parser.add_argument("--kinds", nargs="+", choices=ASKED, default=list(ASKED))
    given = parser.parse_args()
    tuning = Tuning(batch=given.batch, cache_type=given.cache_type)
    with GgufEngine.open(given.model, context=2048, threads=given.threads, tuning=tuning) as engine:
        run(engine, engine.render([Message("user", "Count to twenty.")]), 32, None)
        found = {
            kind: compare(engine, prompts(engine, given.data, kind), given.questions, given.tokens, given.rounds)
            for kind in given.kinds
        }
    facts = {"model": given.model.name, "threads": given.threads, "cache_type": given.cache_type}
    result = stamped(
        "", {**facts, "data": given.data.name, "rounds": given.rounds, "tokens": given.tokens, "kinds": found}
    )
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(json.dumps(result | {"command": " ".join([".venv/bin/python tests/bench/speculation.py", *words])}))


if __name__ == "__main__":
    main()
