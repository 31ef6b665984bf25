"""What quantizing by measurement needs of a text: a part to learn inputs from, one to plan with, one to judge by.

Candidates are compared with the model de-quantized, for a quantized file's own arithmetic adds noise: SmolLM2's
published file diverges from its own weights in single precision by .0026. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from types import TracebackType
from typing import Self

from edge_sdk.device import available_memory
from edge_sdk.errors import ConfigError

from .ggml import quantize_rows
from .gguf_format import Update
from .importance import collect_importance
from .importance_matrix import Importance
from .mixed import WIDEST, Source
from .reference import Reference
from .tensors import GgufModel, write_gguf

TOKENS, POSITIONS, PLANNING = 8_192, 1_024, 512
"""Tokens to learn inputs from; positions at which a file is judged, and at which the many probes of a plan are."""
LARGEST = 500_000_000
"""Weights up to which inputs are correlated, so that rounding can keep outputs: beyond, that takes hours."""
_LEARNED, _PLANNED = 0.6, 0.8  # of a text; the rest is for judging
_LEAST_CHARACTERS = 20_000


class Workbench:
    """A model with its importance, and references on text that had no part in it."""

    def __init__(
        self,
        model: Path,
        texts: Sequence[str],
        *,
        name: str,
        importance: Importance | None = None,
        tokens: int = TOKENS,
        threads: int | None = None,
        folder: Path | None = None,
        progress: Update = lambda done, total, detail: None,
        cancel: Event | None = None,
    ) -> None:
        """`name` says where the texts are from. Without `importance`, `tokens` of the first part are read for it.

        `folder` is where the de-quantized model stands for a while.

        Raises `ConfigError` for too short a text, and what `collect_importance` and `Reference.of` raise.
        """
        text = "\n\n".join(texts)
        if len(text) < _LEAST_CHARACTERS:
            raise ConfigError(
                f"the text has {len(text)} characters, too few to measure with", hint=f"give {_LEAST_CHARACTERS}"
            )
        opened = GgufModel(model)
        learned, planned = (int(share * len(text)) for share in (_LEARNED, _PLANNED))
        matrices = Source(opened).tensors
        small = sum(prod(each.shape) for each in matrices.values()) <= LARGEST
        narrow = [name for name, each in matrices.items() if small and each.shape[0] <= WIDEST]
        self.source = Source(
            opened,
            importance
            or collect_importance(
                model,
                text[:learned],
                source=name,
                max_tokens=tokens,
                threads=threads,
                products=narrow,
                progress=progress,
                cancel=cancel,
            ),
        )
        with ExitStack() as stack:
            scratch = stack.enter_context(TemporaryDirectory(dir=folder, prefix="edge-reference-"))
            exact = dequantized(opened, Path(scratch) / "reference.gguf", progress=progress, cancel=cancel)
            self.planning, self.judging = (
                stack.enter_context(
                    Reference.of(
                        exact, part, positions=positions, threads=threads, progress=progress, cancel=cancel
                    )
                )
                for part, positions in ((text[learned:planned], PLANNING), (text[planned:], POSITIONS))
            )
            exact.unlink()
            self._references = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._references.close()


def dequantized(
    model: GgufModel,
    out: Path,
    *,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> Path:
    """The model with its weights as plain numbers: in single precision where memory allows, in half, else."""
    weights = [tensor for tensor in model.header.tensors if tensor.type not in ("F32", "F16", "BF16")]
    size = 4 * sum(prod(tensor.shape) for tensor in weights)
    free = available_memory()
    type = "F32" if free is None or size < free // 2 else "F16"
    write_gguf(
        model,
        out,
        {tensor.name: type for tensor in weights},
        lambda name, type: quantize_rows(model.floats(name), type),
        progress=progress,
        cancel=cancel,
    )
    return out


def language_reference() -> list[str]:
    """English text that every Python has: the language reference behind `help()`."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]
