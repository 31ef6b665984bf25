"""Requests at once to `edge serve`, over HTTP: tokens a second together, how long each waits, and how evenly.

    tests/bench/serving.py --model smollm2-135m-instruct --at-once 8,16 --rounds 5

The server runs as users start it, the model in a process of its own; every prompt is new. In each round requests
come one after the other and together; ratios are medians of those within a round. `--peer` is llama-cpp-python's
own server with the same file and threads, where it is installed (`llama-cpp-python[server]`): one request at a
time. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from batching import ONE_BY_ONE, Times, figures

from edge_sdk.bench.engine import made_prompt
from edge_sdk.config import load_settings
from edge_sdk.device import default_threads, describe
from edge_sdk.hub.models import resolve


def ask(client: httpx.Client, model: str, prompt: str, tokens: int) -> list[float]:
    """When a request was sent, and when each of its tokens came.

    An event may hold several tokens: all are counted where the server counts them, and shared out by the length of
    the events' texts.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, usage = time.perf_counter(), 0
    events: list[tuple[float, int]] = []
    with client.stream("POST", "chat/completions", json=body) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            now, chunk = time.perf_counter(), json.loads(line.removeprefix("data: "))
            usage = (chunk.get("usage") or {}).get("completion_tokens", usage)
            if text := "".join(choice["delta"].get("content") or "" for choice in chunk["choices"]):
                events.append((now, len(text)))
    total, length, read = usage or len(events), sum(size for _, size in events), 0
    times = [started]
    for number, (now, size) in enumerate(events, 1):
        read += size
        share = read / length if usage else number / total
        times += [now] * (round(total * share) - (len(times) - 1))
    return times


def together(client: httpx.Client, model: str, prompts: list[str], tokens: int) -> Times:
    times: Times = [[] for _ in prompts]
    barrier = threading.Barrier(len(prompts))

    def run(number: int) -> None:
        barrier.wait()
        times[number] = ask(client, model, prompts[number], tokens)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


@contextmanager
def server(words: list[str], port: int) -> Iterator[httpx.Client]:
    """A client of a server that listens."""
    url = f"http://127.0.0.1:{port}/v1/"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            limits = httpx.Limits(max_connections=None)
            with httpx.Client(base_url=url, timeout=300, trust_env=False, limits=limits) as client:
                deadline = time.monotonic() + 120
                while True:
                    try:
                        client.get("models").raise_for_status()
                        break
                    except httpx.HTTPError:
                        if process.poll() is not None or time.monotonic() > deadline:
                            raise SystemExit(f"{' '.join(words)} does not answer") from None
                        time.sleep(0.2)
                yield client
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def measured(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    ports = free_port(), free_port()
    ours = [
        *(sys.executable, "-m", "edge_sdk.cli", "serve", "--port", str(ports[0]), "--threads", str(given.threads)),
        *("--model", str(given.file), "--parallel", str(max(given.at_once)), "--context", str(given.context)),
        *("--store", str(home / "serving-bench.db")),
    ]
    peer = [
        *(sys.executable, "-m", "llama_cpp.server", "--model", str(given.file), "--port", str(ports[1])),
        *("--n_ctx", str(given.context), "--n_threads", str(given.threads)),
        *("--n_threads_batch", str(given.threads), "--interrupt_requests", "false"),
    ]
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(given.rounds + 1):
        row: dict[str, dict[str, float]] = {}
        for name, words, port in (("edge", ours, ports[0]), ("peer", peer, ports[1]))[: 1 + given.peer]:
            with server(words, port) as client:
                model = next(each["id"] for each in client.get("models").json()["data"] if each["id"] != "edge")

                def prompts(count: int, seed: int, before: int = 1_000 * number) -> list[str]:
                    return [made_prompt(lambda text: len(text) // 4, given.prompt_tokens, before + seed + at)
                            for at in range(count)]  # fmt: skip

                ask(client, model, prompts(1, 900)[0], given.tokens)  # warms up
                turns = [1, *given.at_once]
                for count in turns if number % 2 else turns[::-1]:
                    asked = prompts(count if count > 1 else ONE_BY_ONE, 50 * count)
                    times = (
                        together(client, model, asked, given.tokens)
                        if count > 1
                        else [ask(client, model, prompt, given.tokens) for prompt in asked]
                    )
                    row[f"{name}_{count}"] = figures(times, count > 1)
        if number:  # the first round warms up
            rounds.append(row)
            said = {name: round(value["tokens_per_second"]) for name, value in row.items()}
            print(time.strftime("%H:%M:%S"), said, file=sys.stderr, flush=True)

    def ratio(one: str, other: str, measure: str) -> float:
        return round(median(row[one][measure] / row[other][measure] for row in rounds), 3)

    pairs = [(f"edge_{count}", "edge_1") for count in given.at_once]
    if given.peer:
        pairs += [(f"edge_{count}", f"peer_{count}") for count in (1, *given.at_once)]
    ratios = {f"tokens_per_second_{one}_to_{other}": ratio(one, other, "tokens_per_second") for one, other in pairs}
    decoding = {  # of a server that takes one after the other there is no such time
        f"decode_tokens_per_second_edge_{count}_to_edge_1": ratio(
            f"edge_{count}", "edge_1", "decode_tokens_per_second"
        )
        for count in given.at_once
    }
    return {
        "figures": {
            name: {measure: round(median(row[name][measure] for row in rounds), 3) for measure in rounds[0][name]}
            for name in rounds[0]
        },
        "ratios": ratios | decoding,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name or a GGUF file")
    parser.add_argument("--at-once", default="8,16", help="numbers of requests")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96, help="generated for each request, at most")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--peer", action="store_true", help="measure llama-cpp-python's server, too")
    given = parser.parse_args()
    given.at_once = [int(count) for count in given.at_once.split(",")]
    settings = load_settings()
    path = Path(given.model)
    given.file = path if path.is_file() else resolve(given.model, settings).path
    result = measured(given, settings.home)
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    asked = {"prompt_tokens": given.prompt_tokens, "tokens": given.tokens, "context": given.context}
    result |= {
        "command": " ".join([".venv/bin/python tests/bench/serving.py", *words]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe(),
        "model": given.file.name,
        "settings": {**asked, "rounds": given.rounds, "threads": given.threads},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
