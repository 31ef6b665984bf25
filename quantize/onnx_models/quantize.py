"""`edge quantize` for ONNX: every form of a model is written, measured on this device, and the best one kept.

A smaller file may be slower, and may compute something else: so each form is run beside its source, in onnxruntime
and as the runtime would run it, and has to stay close to it. Knows nothing of how a form is written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from edge_sdk.device import available_memory, default_threads
from edge_sdk.encoders.embed import Encoder, OnnxEncoder
from edge_sdk.encoders.encoders import encoder_backend, open_encoder
from edge_sdk.errors import ConfigError, EdgeError, EngineError, MissingExtraError, ModelError, ModelNotFoundError
from edge_sdk.model_files.onnx_graph import OnnxGraph
from edge_sdk.model_files.onnx_session import OnnxFile, find_model, inspect_onnx

from .folder import copy_companions, describe_files, describe_graph, new_folder, write_record
from .forms import DECODER_FORMS, ENCODER_FORMS, Form, load_float_model
from .parity import DecoderFolder, compare_logits, compare_vectors, decoder_tokens, made_up_texts

Update = Callable[[float, float | None, str], None]
Kind = Literal["encoder", "decoder"]

RECORD = "quantization.json"
AUTO = "auto"
FLOORS: Mapping[Kind, float] = {"encoder": 0.99, "decoder": 0.9}
"""What `auto` demands unless told otherwise: mean cosine, or the share of tokens with the same best next token."""
CLOSE = 0.9  # figures within a tenth of the best count as equal: measurements differ by as much
_MEMORY = 5  # times the source: it, its copy in the quantizer, and two models that run
_PROMPT, _ANSWER = 96, 16  # tokens that a decoder is timed with; retrieval reads far more than it writes


@dataclass(frozen=True, slots=True)
class Measured:
    """A form as it was measured. `agreement` is what a floor is about: mean cosine, or top-1 agreement.

    `speedup` is that of the runtime to the source in onnxruntime, side by side; `native_speedup` that of
    onnxruntime, which runs the form where there is no kernel for it.
    """

    name: str
    meaning: str
    bytes: int
    agreement: float
    speedup: float
    native_speedup: float
    details: Mapping[str, Any]


def quantize_onnx(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    method: str = AUTO,
    texts: Sequence[str] | None = None,
    floor: float | None = None,
    beside: Sequence[Path] = (),
    rounds: int = 3,
    threads: int | None = None,
    progress: Update = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Make the folder `out` from the float32 model of the folder `source`; the JSON document of the command.

    `method` is the name of a form (`ENCODER_FORMS`, `DECODER_FORMS`) or `auto`: all are tried and `choose` takes
    one. `texts` are what models are compared on, by default made-up ones; the user's own documents say more.
    `beside` are folders of models to measure as well. The record `quantization.json` holds what is returned.
    Nothing is at `out` before all is done. Raises `ConfigError` for what cannot be asked, `ModelError` when no form
    reaches the floor or memory is short, `DiskFullError`, and what opening the models raises.
    """
    threads = default_threads() if threads is None else threads
    if threads < 1 or rounds < 1:
        raise ConfigError(f"{threads} threads and {rounds} rounds", hint="use 1 or more of each")
    if floor is not None and not 0 < floor <= 1:
        raise ConfigError(f"the floor is {floor}, not above 0 and at most 1")
    file = inspect_onnx(find_model(source))
    if not (source / "tokenizer.json").is_file():
        raise ModelNotFoundError(f"there is no {source / 'tokenizer.json'}", hint="put the model's tokenizer there")
    kind: Kind = "decoder" if any(at.startswith("past_key_values.") for at in OnnxGraph(file).inputs) else "encoder"
    forms = _forms(kind, method)
    size = sum(path.stat().st_size for path in (file.path, *file.external))
    _check_memory(size)
    least = (FLOORS[kind] if method == AUTO else 0.0) if floor is None else floor
    bench = (_EncoderBench if kind == "encoder" else _DecoderBench)(source, texts, threads, rounds)

    rows: list[Measured] = []
    failures: dict[str, str] = {}
    total = len(forms) + 1 + len(beside)
    with new_folder(out, room=size * (1 + len(forms) // 3)) as part:
        load_float_model(file)  # what cannot be quantized at all is said once, before anything is measured
        progress(0, total, "the source")
        others = [bench.measure("source", "what is quantized", source)]
        for folder in beside:
            progress(len(others), total, folder.name)
            others.append(bench.measure(folder.resolve().name, "given to be measured beside", folder))
        for form in forms:
            progress(len(others) + len(rows) + len(failures), total, form.name)
            try:
                rows.append(bench.measure(form.name, form.meaning, _write(file, form, part / form.name)))
            except MissingExtraError:
                raise
            except EdgeError as error:  # one form may not suit a graph, or onnxruntime may not run it
                if method != AUTO:
                    raise
                failures[form.name] = str(error)
        chosen = choose(rows, least)
        for path in (part / chosen.name).iterdir():
            path.replace(part / path.name)
        for form in forms:
            shutil.rmtree(part / form.name, ignore_errors=True)
        copy_companions(source, part)
        made = inspect_onnx(find_model(part))
        record = {
            "kind": kind,
            "method": chosen.name,
            "floor": least,
            **bench.settings(),
            "source": {"name": name or source.resolve().name, "files": describe_files(source)},
            "chosen": _row(chosen),
            "candidates": [_row(row) for row in sorted(rows, key=lambda row: -row.speedup)],
            "beside": [_row(row) for row in others],
            "failed": failures,
            "bytes_ratio": round(chosen.bytes / size, 4),
            **describe_graph(made),
        }
        result = write_record(part, RECORD, record)
    progress(total, total, "")
    return result


def choose(rows: Sequence[Measured], floor: float) -> Measured:
    """The fastest of what agrees enough; of what is as fast within a tenth the smallest, of what is as small
    within a tenth the fastest in onnxruntime, and of what then is left the one that agrees best.

    Raises `ModelError` with the closest when nothing agrees enough.
    """
    left = [row for row in rows if row.agreement >= floor]
    if not left:
        closest = max(rows, key=lambda row: row.agreement, default=None)
        reached = f"the closest, {closest.name}, reaches {closest.agreement:.4f}" if closest else "none can be run"
        raise ModelError(
            f"no form of the model agrees with it to {floor:g}: {reached}",
            hint="lower the floor, or keep the source",
        )
    orders: tuple[Callable[[Measured], float], ...] = (
        lambda row: row.speedup,
        lambda row: 1 / row.bytes,
        lambda row: row.native_speedup,
    )
    for figure in orders:
        best = max(map(figure, left))
        left = [row for row in left if figure(row) >= CLOSE * best]
    return max(left, key=lambda row: row.agreement)


def _forms(kind: Kind, method: str) -> tuple[Form, ...]:
    forms = ENCODER_FORMS if kind == "encoder" else DECODER_FORMS
    found = tuple(form for form in forms if method in (AUTO, form.name))
    if not found:
        names = ", ".join((AUTO, *(form.name for form in forms)))
        raise ConfigError(f"there is no method {method!r} for an ONNX {kind}", hint=f"use one of {names}")
    return found


def _check_memory(size: int) -> None:
    room = available_memory()
    if room is not None and room < _MEMORY * size:
        raise ModelError(
            f"quantizing needs about {_MEMORY * size / 1e6:,.0f} MB of memory and {room / 1e6:,.0f} MB are free",
            hint="close other programs, or do it on a larger machine",
        )


def _write(file: OnnxFile, form: Form, folder: Path) -> Path:
    """Write one form of a model, with what it needs to run, into a new folder."""
    import onnx

    folder.mkdir()
    copy_companions(file.path.parent, folder)
    try:
        onnx.save(form.make(load_float_model(file)), str(folder / "model.onnx"))
    except (EdgeError, OSError):
        raise
    except Exception as error:  # the quantizers raise whatever comes
        raise EngineError(f"{form.name} cannot be made: {' '.join(str(error).split())[:200]}") from error
    return folder


def _row(row: Measured) -> dict[str, Any]:
    facts = asdict(row)
    return {**facts.pop("details"), **facts}


def _size(folder: Path) -> int:
    """Bytes of the model, its external data included."""
    file = inspect_onnx(find_model(folder))
    return sum(path.stat().st_size for path in (file.path, *file.external))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- measuring --------------------------------------------------------------------------------------


class _EncoderBench:
    """Runs encoders beside the source, which onnxruntime runs: that is the best there is without this package."""

    def __init__(self, source: Path, texts: Sequence[str] | None, threads: int, rounds: int) -> None:
        self.texts, self.threads, self.rounds = list(texts or made_up_texts()), threads, rounds
        self.reference = OnnxEncoder.open(source, threads=threads)
        self.vectors = self.reference.encode(self.texts)

    def settings(self) -> dict[str, Any]:
        return {"texts": len(self.texts), "threads": self.threads, "rounds": self.rounds}

    def measure(self, name: str, meaning: str, folder: Path) -> Measured:
        native = OnnxEncoder.open(folder, threads=self.threads)
        ours = open_encoder(folder, threads=self.threads)
        runs: dict[str, Encoder] = {"reference": self.reference, "native": native}
        if not isinstance(ours, OnnxEncoder):
            runs["ours"] = ours
        parities = {at: compare_vectors(self.vectors, encoder.encode(self.texts)) for at, encoder in runs.items()}
        seconds: dict[str, list[float]] = {at: [] for at in runs}
        for number in range(self.rounds):
            names = list(runs)
            for at in names[number % len(names) :] + names[: number % len(names)]:  # a busy moment hits all
                seconds[at].append(_seconds(lambda encoder=runs[at]: encoder.encode(self.texts)))  # type: ignore[misc]

        def figures(at: str) -> dict[str, Any]:
            return {
                "passages_per_second": round(len(self.texts) / median(seconds[at]), 2),
                "cosine_mean": parities[at].cosine_mean,
                "cosine_min": parities[at].cosine_min,
            }

        def speedup(at: str) -> float:
            return round(median(a / b for a, b in zip(seconds["reference"], seconds[at], strict=True)), 3)

        at = "ours" if "ours" in runs else "native"
        details = {"backend": encoder_backend(folder), "edge": figures(at), "onnxruntime": figures("native")}
        return Measured(
            name, meaning, _size(folder), parities[at].cosine_mean, speedup(at), speedup("native"), details
        )


class _DecoderBench:
    """Runs decoders beside the source, token by token for what they say and as an engine does for speed."""

    def __init__(self, source: Path, texts: Sequence[str] | None, threads: int, rounds: int) -> None:
        self.threads, self.rounds = threads, rounds
        self.reference = DecoderFolder(source, threads=threads)
        self.tokens = decoder_tokens(source, texts)
        everything = [token for text in self.tokens for token in text]
        self.prompt, self.answer = everything[:_PROMPT], everything[-_ANSWER:]

    def settings(self) -> dict[str, Any]:
        return {"tokens": sum(map(len, self.tokens)), "threads": self.threads, "rounds": self.rounds}

    def measure(self, name: str, meaning: str, folder: Path) -> Measured:
        candidate = DecoderFolder(folder, threads=self.threads)
        parity = compare_logits(self.reference.logits(self.tokens), candidate.logits(self.tokens))
        reference: list[tuple[float, float]] = []
        ours: list[tuple[float, float]] = []
        for number in range(self.rounds):
            order = ((self.reference, reference), (candidate, ours))
            for decoder, times in order if number % 2 else reversed(order):
                prefill = _seconds(lambda decoder=decoder: decoder.prefill(self.prompt))  # type: ignore[misc]
                decode = _seconds(lambda decoder=decoder: decoder.decode(self.answer))  # type: ignore[misc]
                times.append((prefill, decode))
        details = {
            **asdict(parity),
            "prefill_tokens_per_second": round(len(self.prompt) / median(prefill for prefill, _ in ours), 1),
            "decode_tokens_per_second": round(len(self.answer) / median(decode for _, decode in ours), 1),
        }
        speedup = round(median(sum(a) / sum(b) for a, b in zip(reference, ours, strict=True)), 3)
        return Measured(name, meaning, _size(folder), parity.top1_agreement, speedup, speedup, details)
