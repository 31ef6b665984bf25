"""A trained reader to the folder that `edge_sdk.readers` opens: smaller, checked beside what it was made from.

Knows nothing of training or of questions.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge_sdk.errors import ConfigError
from edge_sdk.model_files.onnx_session import inspect_onnx
from edge_sdk.model_files.tokenizer import Tokenizer
from edge_sdk.readers.description import Description
from edge_sdk.readers.scorer import OnnxScorer, open_scorer
from edge_sdk.readers.windows import Windows

from ..onnx_models.folder import import_onnx, new_folder
from ..onnx_models.forms import ENCODER_FORMS
from .reader_graph import reader_graph
from .reader_model import ReaderModel

FLOAT = "float32"
FORMS = (FLOAT, *(form.name for form in ENCODER_FORMS))
DEFAULT_FORM = "int8"


@dataclass(frozen=True, slots=True)
class Parity:
    """A smaller form beside the float32 one, on the same windows: shares of them with the same best token to start
    at, and to end at, and the mean difference of scores, in log-odds."""

    windows: int
    same_start: float
    same_end: float
    mean_difference: float


def export_reader(
    model: ReaderModel,
    tokenizer: Path,
    out: Path,
    description: Description,
    *,
    form: str = DEFAULT_FORM,
    samples: Sequence[tuple[str, str]] = (),
) -> Parity | None:
    """Make the new folder `out` with `model.onnx`, `tokenizer.json` and `reader.json`.

    `samples` are questions and passages on which the form is run beside the float32 model; None without any. Equal
    arguments give equal bytes. Nothing is at `out` before all is done. Raises `ConfigError`, `MissingExtraError`,
    `DiskFullError`, and `EngineError` where the form cannot be run.
    """
    if form not in FORMS:
        raise ConfigError(f"there is no form {form!r}", hint=f"use one of {', '.join(FORMS)}")
    onnx = import_onnx()
    graph = reader_graph(model.eval())
    windows = Windows(Tokenizer.open(tokenizer, literal=True), description.limits)
    with new_folder(out, room=2 * graph.ByteSize()) as part:
        whole = part / "float32.onnx"
        onnx.save(graph, str(whole))
        if form != FLOAT:
            graph = next(each for each in ENCODER_FORMS if each.name == form).make(graph)
        onnx.save(graph, str(part / "model.onnx"))
        shutil.copyfile(tokenizer, part / "tokenizer.json")
        description.write(part)
        parity = _compare(whole, part / "model.onnx", windows, samples) if samples else None
        whole.unlink()
    return parity


def _compare(whole: Path, made: Path, windows: Windows, samples: Sequence[tuple[str, str]]) -> Parity:
    longest = windows.limits.window
    scorers = OnnxScorer(inspect_onnx(whole), 1), open_scorer(inspect_onnx(made), longest, 1)
    same, differences = [], []
    for question, passage in samples:
        pieces = windows.tokenizer.pieces(passage)
        for window in windows.cut(windows.question(question), pieces):
            expected, found = (scorer.scores([window])[0] for scorer in scorers)
            text = slice(window.first, window.last)
            same.append((expected[text, :2].argmax(0) == found[text, :2].argmax(0)).tolist())
            differences.append(float(np.abs(expected - found).mean()))
    if not same:
        raise ConfigError("no sample has a passage with words")
    starts, ends = np.mean(same, axis=0)
    return Parity(len(same), float(starts), float(ends), float(np.mean(differences)))


def parity_row(parity: Parity | None) -> dict[str, float]:
    """The parity for a record; empty without one."""
    return {} if parity is None else asdict(parity)
