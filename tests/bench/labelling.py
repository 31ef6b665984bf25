"""A teacher in batches beside one-by-one calls of `llama_cpp.Llama`: the same file, passages and instruction.

The peers take turns in blocks of passages, so that a machine that slows down slows both. Each block begins with
nothing in the cache, and both keep the instruction, which all prompts begin with. Prints one JSON document.

    tests/bench/labelling.py --model qwen2.5-coder-1.5b-instruct --passages 100 --tokens 64 --types IQ4_NL,Q4_0
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_cpp import Llama

from edge_sdk.config import load_settings
from edge_sdk.device import default_threads, describe
from edge_sdk.documents.chunk import chunk_document
from edge_sdk.documents.python_source import parse_module
from edge_sdk.engines.llama_library import library
from edge_sdk.hub.models import resolve
from edge_sdk.records import Message
from quantize.collection import read_jsonl
from quantize.gguf_models.quantizer import quantize_file
from quantize.metrics import token_f1
from quantize.teachers.gguf_teacher import GgufTeacher
from quantize.teachers.teacher import Request

INSTRUCTION = (
    "You write questions for a quiz. Read the passage and write three questions that it answers, each with its "
    "short answer, which must stand in the passage word for word. Number them. Write nothing else."
)
SHOWN = 500  # characters of a passage
MODULES = (
    "json",
    "csv",
    "shutil",
    "tempfile",
    "argparse",
    "pathlib",
    "logging",
    "statistics",
    "textwrap",
    "random",
)


@dataclass
class Peer:
    """What one way of asking took, and what came back."""

    seconds: list[float] = field(default_factory=list)  # a block
    first: float = 0.0  # of them until the first token of each passage, where they are asked one by one
    texts: list[str] = field(default_factory=list)
    tokens: int = 0


Ask = Callable[[list[Request], Peer], None]


def passages(data: Path | None, count: int) -> list[str]:
    """Passages of a JSON-lines file {text}, or of the documentation of Python's own modules."""
    if data is not None:
        found = [str(row["text"]) for row in read_jsonl(data)]
    else:
        documents = [document for name in MODULES if (document := parse_module(f"py:{name}"))]
        chunks = [chunk.text for document in documents for chunk in chunk_document(document)]
        found = [text[:SHOWN] for text in chunks if len(text) > SHOWN / 2]
    if len(found) < count:
        raise SystemExit(f"there are {len(found)} passages, not {count}: give more with --data")
    return found[:: len(found) // count][:count]


def requests_for(texts: list[str], tokens: int) -> list[Request]:
    return [
        Request((Message("system", INSTRUCTION), Message("user", f"Passage: {text}")), max_tokens=tokens)
        for text in texts
    ]


def one_by_one(llama: Any) -> Ask:
    def ask(block: list[Request], peer: Peer) -> None:
        llama.reset()
        for request in block:
            started = time.perf_counter()
            messages = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            chunks = llama.create_chat_completion(
                messages, max_tokens=request.max_tokens, temperature=0.0, repeat_penalty=1.0, stream=True
            )
            pieces: list[str] = []
            for chunk in chunks:
                if not pieces:
                    peer.first += time.perf_counter() - started
                pieces.append(chunk["choices"][0]["delta"].get("content") or "")
            peer.texts.append("".join(pieces))
            peer.tokens += sum(bool(piece) for piece in pieces)

    return ask


def in_batches(teacher: GgufTeacher) -> Ask:
    def ask(block: list[Request], peer: Peer) -> None:
        found = dict(teacher.replies(block))
        for position in range(len(block)):
            peer.texts.append(found[position].text)
            peer.tokens += found[position].completion_tokens

    return ask


def likeness(found: list[str], expected: list[str]) -> dict[str, float]:
    """How far replies are the reference's: the share of equal ones, and the mean overlap of words."""
    return {
        "same": statistics.fmean(a == b for a, b in zip(found, expected, strict=True)),
        "token_f1": statistics.fmean(token_f1(a, (b,)) for a, b in zip(found, expected, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-instruct", help="a name or a GGUF file")
    parser.add_argument("--data", type=Path, help="JSON lines {text}; the documentation of Python, else")
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64, help="generated for each passage, at most")
    parser.add_argument("--sequences", type=int, default=50, help="at once; those of a block, best")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--types", default="", help="the teacher quantized again, with commas: IQ4_NL,Q4_0")
    parser.add_argument("--work", type=Path, help="a folder for those files; a temporary one, else")
    options = parser.parse_args()
    model = Path(options.model)
    model = model if model.is_file() else resolve(options.model, load_settings()).path
    requests = requests_for(passages(options.data, options.passages), options.tokens)
    library()  # its log is kept off standard error
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        files = {"batched": model} | {name: faster(model, work, name) for name in options.types.split(",") if name}
        print(json.dumps(measured(options, files, requests)))


def faster(model: Path, work: Path, name: str) -> Path:
    """The teacher quantized again; what stands in the folder is taken as it is."""
    out = work / f"{model.stem}-{name}.gguf"
    if not out.exists():
        say(f"quantizing to {name}")
        quantize_file(model, out, name)
    return out


def measured(options: argparse.Namespace, files: dict[str, Path], requests: list[Request]) -> dict[str, object]:
    """All peers over all blocks, the first one of a block another each time."""
    model = files["batched"]
    peers = {name: Peer() for name in ("one_by_one", *files)}
    with GgufTeacher.open(model, threads=1) as teacher:
        longest = max(teacher.count(request) for request in requests) + options.tokens
    llama = Llama(
        str(model), n_ctx=longest, n_threads=options.threads, n_threads_batch=options.threads, verbose=False
    )
    asks = {"one_by_one": one_by_one(llama)}
    teachers = {
        name: GgufTeacher.open(path, sequences=options.sequences, threads=options.threads)
        for name, path in files.items()
    }
    asks |= {name: in_batches(teacher) for name, teacher in teachers.items()}
    for name, ask in asks.items():  # weights are read, buffers made
        ask(requests[:1], Peer())
        say(f"{name} is ready")
    size = -(-len(requests) // options.blocks)
    for number, start in enumerate(range(0, len(requests), size)):
        order = list(asks)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            started = time.perf_counter()
            asks[name](requests[start : start + size], peers[name])
            peers[name].seconds.append(time.perf_counter() - started)
            say(f"block {number + 1} {name}: {peers[name].seconds[-1]:.1f} s")
    for teacher in teachers.values():
        teacher.close()
    return report(options, model, peers, len(requests))


def report(options: argparse.Namespace, model: Path, peers: dict[str, Peer], count: int) -> dict[str, object]:
    single = peers["one_by_one"]
    total = sum(single.seconds)
    rows = {}
    for name, peer in peers.items():
        rows[name] = {
            "seconds": round(sum(peer.seconds), 2),
            "passages_per_second": round(count / sum(peer.seconds), 3),
            "generated_tokens": peer.tokens,
            "times_one_by_one": round(total / sum(peer.seconds), 3),
            "times_one_by_one_by_block": [
                round(theirs / ours, 3) for theirs, ours in zip(single.seconds, peer.seconds, strict=True)
            ],
            **{key: round(value, 3) for key, value in likeness(peer.texts, single.texts).items()},
        }
    return {
        "model": model.name,
        "passages": count,
        "tokens": options.tokens,
        "sequences": options.sequences,
        "threads": options.threads,
        "peers": rows,
        # Batching makes decoding cheaper and prefill hardly: with decoding for nothing, this would be left.
        "prefill_share_one_by_one": round(single.first / total, 3),
        "most_if_decoding_were_free": round(total / single.first, 2),
        "machine": describe(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
