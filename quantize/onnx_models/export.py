"""`edge export`: encoders and small decoders from a Hugging Face folder to ONNX, and proof that they say the same.

optimum does the work in a process of its own (`export_worker`), which also runs the original on some texts; what
comes back is run here, in onnxruntime, and has to agree. Knows nothing of how environments are made.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device import available_memory, default_threads
from edge_sdk.encoders.embed import CHARACTERS_PER_TOKEN, OnnxEncoder
from edge_sdk.encoders.encoders import encoder_backend
from edge_sdk.errors import ConfigError, EngineError, ModelDamagedError, ModelError, ModelNotFoundError
from edge_sdk.hub.partial import hash_file, storage_errors
from edge_sdk.model_files.onnx_session import find_model, inspect_onnx
from edge_sdk.model_files.tokenizer import Tokenizer

from ..gguf_models.safetensors_files import open_weights, parse_json
from .folder import copy_companions, describe_graph, import_onnx, new_folder, write_record
from .parity import DecoderFolder, compare_logits, compare_vectors, decoder_tokens, made_up_texts

Update = Callable[[float, float | None, str], None]
Kind = Literal["encoder", "decoder"]
Floats = NDArray[np.float32]

RECORD = "export.json"
LEAST_COSINE = 0.9999
LEAST_AGREEMENT = 0.99  # of the best next token: ties and last digits may differ
MAX_TOKENS = 256  # of a text that encoders are compared on
_TASKS: Mapping[Kind, str] = {"encoder": "feature-extraction", "decoder": "text-generation-with-past"}
_MEMORY, _ROOM = 5, 4  # times the weights: torch's, the exporter's, ours; on disk its files, its copy and ours
_WORKER = Path(__file__).with_name("export_worker.py")


def export_onnx(
    source: Path,
    out: Path,
    *,
    python: Path,
    texts: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Update = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Export the folder `source` (`config.json`, `model.safetensors`, `tokenizer.json`) to the new folder `out`.

    `python` is that of `environment.export_python`. What is returned also lies in `out` as `export.json`. Nothing
    is at `out` before the exported model has agreed with the original: mean cosine of vectors from 0.9999, the same
    best next token for 99 of 100. Raises `ConfigError` for a kind of model that the runtime cannot run,
    `ModelNotFoundError` or `ModelDamagedError` for a folder that is not whole, `EngineError` when the export fails
    or does not agree, `ModelError` or `DiskFullError` when memory or disk are short.
    """
    threads = default_threads() if threads is None else threads
    import_onnx()  # needed at the end, so said at the beginning
    kind = read_kind(source)
    weights = open_weights(source)
    size = 4 * sum(int(np.prod(shape)) for shape in weights.shapes.values())  # in float32
    room = available_memory()
    if room is not None and room < _MEMORY * size:
        raise ModelError(
            f"exporting needs about {_MEMORY * size / 1e6:,.0f} MB of memory and {room / 1e6:,.0f} MB are free",
            hint="close other programs, or do it on a larger machine",
        )
    texts, ids = _tokens(kind, source, texts)
    with (
        new_folder(out, room=_ROOM * size) as part,
        TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work,
    ):
        scratch = Path(work)
        progress(0, 3, "exporting")
        results, versions = _export(kind, source, scratch, ids, python, threads)
        for path in (scratch / "model").iterdir():
            if path.suffix == ".onnx" or path.name.startswith("model.onnx"):
                path.replace(part / path.name)
        copy_companions(source, part)
        progress(1, 3, "comparing")
        file = inspect_onnx(find_model(part))
        parity = _compare(kind, part, texts, ids, results, threads)
        progress(2, 3, "checksums")
        record = {
            "kind": kind,
            "task": _TASKS[kind],
            "parity": parity,
            "source": {"name": source.resolve().name, "files": _source_files(source)},
            "tools": versions,
            **({"backend": encoder_backend(part)} if kind == "encoder" else {}),
            **describe_graph(file),
        }
        result = write_record(part, RECORD, record)
    progress(3, 3, "")
    return result


def read_kind(source: Path) -> Kind:
    """Whether a folder holds an encoder or a decoder, from its `config.json`; only what the runtime can run.

    Raises `ModelNotFoundError`, `ModelDamagedError`, and `ConfigError` for other kinds of models.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (source / name).is_file():
            raise ModelNotFoundError(
                f"there is no {source / name}", hint="give a folder as `save_pretrained` writes it"
            )
    config = _object(source / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelDamagedError(f"{source / 'config.json'} names no model_type", hint="save the model again")
    if config.get("is_encoder_decoder") is True:
        raise ConfigError(f"{source} is an encoder-decoder, which the runtime cannot run")
    if "auto_map" in config:
        raise ConfigError(f"{source} needs code that it brings along, and that is never run")
    found = config.get("architectures")
    names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    if any(name.endswith("ForCausalLM") for name in names):
        return "decoder"
    if names and not all(name.endswith(("Model", "ForMaskedLM", "ForPreTraining")) for name in names):
        raise ConfigError(
            f"{source} is a {names[0]}; text encoders and causal language models can be exported",
            hint="a head of its own is lost on the way to a text encoder",
        )
    pooling = source / "1_Pooling" / "config.json"
    if pooling.is_file() and _object(pooling).get("pooling_mode_mean_tokens") is not True:
        raise ConfigError(f"{source} does not average its token states, as the runtime does; see {pooling}")
    return "encoder"


def _object(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes(), path)
    except OSError as error:
        raise ModelDamagedError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ModelDamagedError(f"{path} is no JSON object", hint="save the model again")
    return content


def _tokens(kind: Kind, source: Path, texts: Sequence[str] | None) -> tuple[list[str], list[list[int]]]:
    """The texts to compare on, and what the runtime would feed for them."""
    if kind == "decoder":
        return [], decoder_tokens(source, texts)
    tokenizer = Tokenizer.open(source / "tokenizer.json", max_tokens=MAX_TOKENS)
    cut = [text[: MAX_TOKENS * CHARACTERS_PER_TOKEN] for text in texts or made_up_texts()]
    pairs = [(text, ids) for text in cut if (ids := tokenizer.encode(text, framed=True))]
    return [text for text, _ in pairs], [ids for _, ids in pairs]


def _export(
    kind: Kind, source: Path, scratch: Path, ids: list[list[int]], python: Path, threads: int
) -> tuple[Floats, dict[str, str]]:
    """Run the worker; the original's results on `ids`, and the versions of its tools."""
    request = {
        "source": str(source.resolve()),
        "out": str(scratch / "model"),
        "task": _TASKS[kind],
        "ids": ids,
        "threads": threads,
        "results": str(scratch / "results.npy"),
        "versions": str(scratch / "versions.json"),
    }
    (scratch / "request.json").write_text(json.dumps(request))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [str(python), "-I", str(_WORKER), str(scratch / "request.json")],  # -I: nothing of ours is in its way
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **offline},
    )
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise EngineError(f"optimum cannot export {source}: {said[-1][:300] if said else 'its process ended'}")
    with storage_errors(scratch):
        results = np.load(scratch / "results.npy", allow_pickle=False)
        return results, json.loads((scratch / "versions.json").read_text())


def _compare(
    kind: Kind, folder: Path, texts: list[str], ids: list[list[int]], results: Floats, threads: int
) -> dict[str, Any]:
    """Run what was exported and compare it with the original's results. Raises `EngineError` when it differs."""
    if kind == "encoder":
        encoder = OnnxEncoder.open(folder, threads=threads, max_tokens=MAX_TOKENS)
        vectors = compare_vectors(results, encoder.encode(texts))
        agrees, said = vectors.cosine_mean >= LEAST_COSINE, f"a mean cosine of {vectors.cosine_mean}"
        parity = asdict(vectors)
    else:
        logits = compare_logits(iter(results), DecoderFolder(folder, threads=threads).logits(ids))
        agrees, said = logits.top1_agreement >= LEAST_AGREEMENT, f"a top-1 agreement of {logits.top1_agreement}"
        parity = asdict(logits)
    if not agrees:
        raise EngineError(f"what optimum exported differs from the original: {said}", hint="export another way")
    return parity


def _source_files(source: Path) -> list[dict[str, Any]]:
    """The files that decide what the model computes."""
    files = [*sorted(source.glob("*.safetensors")), source / "config.json", source / "tokenizer.json"]
    return [{"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)} for path in files]
