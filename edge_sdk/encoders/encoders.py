"""The encoder of a folder: token vectors where it holds them, else our BERT kernel, else onnxruntime.

The only place that chooses between encoders. Knows nothing of names, catalogs or settings.
"""

from __future__ import annotations

from pathlib import Path

from ..kernel_faces import bert
from ..model_files.onnx_session import find_model, inspect_onnx
from .bert import BertEncoder, load_kernel
from .bert_graph import NotBertError
from .embed import Encoder, OnnxEncoder
from .static_encoder import STATIC_FILE, StaticEncoder


def open_encoder(
    directory: Path, *, name: str | None = None, threads: int | None = None, max_tokens: int = 256
) -> Encoder:
    """Open the encoder of a folder: a static one, one on our kernel, or on onnxruntime where that is the only way.

    `encoder_backend` says which and why. Raises what `StaticEncoder.open` and `OnnxEncoder.open` raise.
    """
    if is_static(directory):
        return StaticEncoder.open(directory, name=name, max_tokens=max_tokens)
    if _lacks_kernel() is None:
        try:
            return BertEncoder.open(directory, name=name, threads=threads, max_tokens=max_tokens)
        except NotBertError:
            pass
    return OnnxEncoder.open(directory, name=name, threads=threads, max_tokens=max_tokens)


def encoder_backend(directory: Path, *, max_tokens: int = 256) -> str:
    """What `open_encoder` would compute with, in one line: `kernel (avx2)`, or `onnxruntime: ` and the reason.

    Raises `ModelNotFoundError` or `ModelDamagedError`.
    """
    if is_static(directory):
        return "token vectors (static)"
    reason = _lacks_kernel()
    if reason is None:
        try:
            load_kernel(inspect_onnx(find_model(directory)), max_tokens)
            return f"kernel ({bert.best_path()})"
        except NotBertError as error:
            reason = f"not a BERT that the kernel knows: {error}"
    return f"onnxruntime: {reason}"


def is_static(directory: Path) -> bool:
    """Whether the folder is that of a static encoder."""
    return (directory / STATIC_FILE).is_file()


def _lacks_kernel() -> str | None:
    """Why this machine has no kernel that is faster than onnxruntime."""
    best = bert.best_path()
    if best is None:
        return "the kernels were not compiled"
    return "this CPU has no instructions that the kernel is fast with" if best == bert.PORTABLE else None
