"""Time to the first token of a prompt of 600 tokens whose first 500 are kept, beside none kept and beside `Llama`.

`.venv/bin/python tests/bench/prefix.py --model-file PUBLISHED.gguf --tuned-file TUNED.gguf`. Each measurement runs
in a process of its own, contenders taking turns; the clock starts when the model is loaded. Our engine answers two
prompts that share their first 500 tokens with one that an earlier process has left; the second is the one of the
same process. `llama_class` is `llama_cpp.Llama` with default settings on the published file, but for a context that
the prompt fits in; the others use the tuned file, or the published one where there is none. `none` has no cache,
`miss` an empty one, which shows what looking and keeping cost. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_sdk import device

CONTEXT = 4096
SHARED, WHOLE = 500, 600
PROMPTS = "prompts.json"
WORDS = (
    "the valve of a pump opens when water in its tank rises above that mark and closes slowly while air leaves by"
    " another pipe so every third reading shows how far pressure fell during those last hours of work near a gate"
).split()
CONTENDERS = ("llama_class", "none", "miss", "fresh_process", "published_fresh_process")


def text(seed: int, words: int) -> str:
    """Words in an order that does not repeat."""
    state, chosen = seed, []
    for _ in range(words):
        state = (state * 1103515245 + 12345) % (1 << 31)
        chosen.append(WORDS[(state >> 8) % len(WORDS)])
    return " ".join(chosen)


def prompts(engine: Any) -> list[str]:
    """Three prompts of WHOLE tokens that share their first SHARED, and a line break."""

    def grown(begin: str, seed: int, tokens: int) -> str:
        """The most words that fit, and full stops for the rest."""
        row = f" {text(seed, tokens)}".split(" ")
        low, high = 0, len(row)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if engine.count(begin + " ".join(row[:middle])) <= tokens else (low, middle - 1)
            )
        grown = begin + " ".join(row[:low])
        while engine.count(grown) < tokens:
            grown += " ."
        return grown

    beginning = grown("Answer from the text.", 1, SHARED)
    # The words after the beginning differ from the first one on.
    return [grown(f"{beginning}\n{first}", seed, WHOLE) for seed, first in enumerate(("One", "Two", "Six"), 7)]


def first_token(engine: Any, prompt: str) -> dict[str, Any]:
    from edge_sdk.records import GenerateOptions

    started = time.perf_counter()
    generation = engine.generate(prompt, GenerateOptions(max_tokens=2))
    token = next(generation)
    milliseconds = (time.perf_counter() - started) * 1e3
    rest = list(generation)  # to its end, when what is worth keeping is copied
    whole = (time.perf_counter() - started) * 1e3
    end = generation.result
    ids = [token.id, *(each.id for each in rest)]
    return {
        "ms": milliseconds,
        "whole_ms": whole,
        "cached": end.cached_tokens,
        "prompt": end.prompt_tokens,
        "ids": ids,
        "logprob": token.logprob,
    }


def work(contender: str, file: Path, folder: Path, threads: int | None, tuning: dict[str, Any]) -> dict[str, Any]:
    """One process: load, warm up with another prompt, then the prompts."""
    from edge_sdk.engines.engine_gguf import GgufEngine
    from edge_sdk.engines.prefix_cache import PrefixCache
    from edge_sdk.engines.profile import Tuning

    if contender == "llama_class":
        return llama_class(file, _prompts(folder))
    kept = tempfile.mkdtemp(dir=folder) if contender == "miss" else str(folder / "prefixes")
    cache = None if contender == "none" else PrefixCache(Path(kept), 256 << 20)
    started = time.perf_counter()
    with GgufEngine.open(
        file, context=CONTEXT, threads=threads, tuning=Tuning(**tuning), prefix_cache=cache
    ) as engine:
        loaded = (time.perf_counter() - started) * 1e3
        if contender == "fill":
            (folder / PROMPTS).write_text(json.dumps(prompts(engine)))
            return {"first": first_token(engine, _prompts(folder)[0])}
        _, two, three = _prompts(folder)
        list(engine.generate("x", _one_token()))  # the weights are in memory then; nothing so short is kept
        return {"load_ms": loaded, "first": first_token(engine, two), "second": first_token(engine, three)}


def _prompts(folder: Path) -> list[str]:
    return list(json.loads((folder / PROMPTS).read_text()))


def _one_token() -> Any:
    from edge_sdk.records import GenerateOptions

    return GenerateOptions(max_tokens=1)


def llama_class(file: Path, texts: list[str]) -> dict[str, Any]:
    """The high-level class, from the text to the first piece of its answer."""
    from llama_cpp import Llama

    make: Any = Llama
    llama = make(str(file), n_ctx=CONTEXT, verbose=False)
    llama.create_completion("x", max_tokens=1)

    started = time.perf_counter()
    stream = llama.create_completion(texts[1], max_tokens=2, temperature=0.0, stream=True)
    next(part for part in stream if part["choices"][0]["text"])
    milliseconds = (time.perf_counter() - started) * 1e3
    list(stream)
    return {"first": {"ms": milliseconds, "prompt": len(llama.tokenize(texts[1].encode(), special=True))}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-file", type=Path, required=True, help="as published")
    parser.add_argument("--tuned-file", type=Path, help="as `edge tune` found it")
    parser.add_argument("--tuning", default="{}", help='of the tuned file, as {"batch": 256}')
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        row = work(given.work, given.model_file, given.folder, given.threads, json.loads(given.tuning))
        print(json.dumps(row))
        return
    tuned: Path = given.tuned_file or given.model_file
    with tempfile.TemporaryDirectory() as folder:

        def apart(contender: str, file: Path, tuning: str) -> dict[str, Any]:
            command = [sys.executable, __file__, "--work", contender, "--model-file", str(file), "--folder", folder]
            command += ["--tuning", tuning, *(["--threads", str(given.threads)] if given.threads else [])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        for file, tuning in ((given.model_file, "{}"), (tuned, given.tuning)):
            apart("fill", file, tuning)
        kept = Path(folder) / "prefixes"
        file_bytes = [path.stat().st_size for path in kept.rglob("*.kv")]
        rounds = []
        for _ in range(given.rounds):
            rounds.append(
                {
                    "llama_class": apart("llama_class", given.model_file, "{}"),
                    "none": apart("none", tuned, given.tuning),
                    "miss": apart("miss", tuned, given.tuning),
                    "fresh_process": apart("fresh_process", tuned, given.tuning),
                    "published_fresh_process": apart("fresh_process", given.model_file, "{}"),
                }
            )
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    result = {
        "command": " ".join([".venv/bin/python tests/bench/prefix.py", *words]),
        "date": datetime.date.today().isoformat(),
        "machine": device.describe(),
        "rounds": given.rounds,
        "file_bytes": file_bytes,
    }
    print(json.dumps(result | summary(rounds)))


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians; ratios are of one round each."""
    engines = CONTENDERS[1:]

    def median(figure: Callable[[dict[str, dict[str, Any]]], float]) -> float:
        return statistics.median(figure(row) for row in rounds)

    def sooner(contender: str, which: str = "first") -> float:
        return median(lambda row: row["llama_class"]["first"]["ms"] / row[contender][which]["ms"])

    def miss(which: str) -> float:
        return median(lambda row: row["miss"]["first"][which] / row["none"]["first"][which])

    pairs = [(row["none"]["first"], row["fresh_process"]["first"]) for row in rounds]
    ttft = {name: median(lambda row, name=name: row[name]["first"]["ms"]) for name in CONTENDERS}  # type: ignore[misc]
    return {
        "prompt_tokens": {name: rounds[0][name]["first"]["prompt"] for name in CONTENDERS},
        "cached_tokens": {
            name: [[row[name][which]["cached"] for which in ("first", "second")] for row in rounds]
            for name in engines
        },
        "same_tokens": all(cold["ids"] == warm["ids"] for cold, warm in pairs),
        "largest_logprob_difference": max(abs(cold["logprob"] - warm["logprob"]) for cold, warm in pairs),
        "ttft_ms": {**ttft, "same_process": median(lambda row: row["fresh_process"]["second"]["ms"])},
        "load_ms": {name: median(lambda row, name=name: row[name]["load_ms"]) for name in engines},  # type: ignore[misc]
        "times_sooner_than_llama_class": {
            **{name: sooner(name) for name in engines},
            "same_process": sooner("fresh_process", "second"),
        },
        "times_sooner_than_none": median(
            lambda row: row["none"]["first"]["ms"] / row["fresh_process"]["first"]["ms"]
        ),
        "miss_to_none": {"ttft": miss("ms"), "whole_answer": miss("whole_ms")},
    }


if __name__ == "__main__":
    main()
