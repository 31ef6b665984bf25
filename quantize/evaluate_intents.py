"""`edge eval intents`: heads from a few examples a label, on a set with texts that have none of its labels.

It reads the file of CLINC150 (Larson et al., EMNLP 2019): lists of [text, label] under `train`, `test`, `oos_train`
and `oos_test`. Everything is fitted to a draw from `train` and to `oos_train`; the other two only judge.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from threading import Event as Flag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.encoders.embed import Encoder
from edge_sdk.errors import ConfigError
from edge_sdk.heads.classifier import IntentHead

from .collection import Update
from .pack import encoder_files
from .route_metrics import auroc, expected_calibration_error
from .students.heads import Labelled, fit_head

PARTS = ("train", "test", "oos_train", "oos_test")
_TIMED = 300  # texts, one at a time
Rows = Sequence[tuple[str, str]]


@dataclass
class _Remembering:
    """An encoder that is asked once for each text, for every draw is judged on the same ones."""

    encoder: Encoder
    known: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.known.update(zip(new, self.encoder.encode(new), strict=True))
        return np.array([self.known[text] for text in texts], np.float32).reshape(len(texts), self.dimension)


def evaluate_intents(
    data: Path,
    *,
    encoder: Encoder | None = None,
    words: bool = False,
    encoder_folder: Path | None = None,
    shots: int = 10,
    seeds: int = 5,
    outside: bool = True,
    share: float | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> dict[str, Any]:
    """Fit a head to `shots` examples of each label, once for each draw, and judge it; the JSON document.

    What is read follows from `encoder` and `words` as in `fit_head`; the bytes of the encoder's folder count with
    those of the head. Without `outside`, nothing that is out of scope is fitted to; `share` is as there too. Of
    each figure there is the mean, the least and the most over the draws: `accuracy` of texts that have a label;
    `out_of_scope_auroc`, how well the others are told from them, and `out_of_scope_found`, how many of them are
    found when 5 % of those that have a label are refused; `right_auroc` and `calibration_error` of the probability
    that the label is right, over both; `ms`, the median of one text at a time. Raises `ConfigError`.
    """
    parts = read_intents(data)
    remembering = None if encoder is None else _Remembering(encoder)
    carried = 0 if encoder_folder is None else sum(path.stat().st_size for path in encoder_files(encoder_folder))
    draws: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            if cancel is not None and cancel.is_set():
                break
            progress(seed, seeds, "fitting and judging")
            folder = Path(scratch, f"{seed}")
            examples = [Labelled(*each) for each in draw(parts["train"], shots, seed)]
            examples += [Labelled(text, None) for text, _ in parts["oos_train"] if outside]
            made = fit_head(examples, folder, encoder=remembering, words=words, share=share, seed=seed)
            draws.append(
                judge(IntentHead.open(folder, _loader(remembering)), parts)
                | milliseconds(IntentHead.open(folder, _loader(encoder)), parts["test"][:_TIMED])
                | {"fit_seconds": made["seconds"], "bytes": made["bytes"] + carried}
            )
    figures = {name: [each[name] for each in draws] for name in (draws[0] if draws else ())}
    return {
        "data": data.name,
        "features": "words" if encoder is None else "both" if words else "vectors",
        "shots": shots,
        "fitted_out_of_scope": len(parts["oos_train"]) if outside else 0,
        "draws": len(draws),
        "n": {name: len(parts[name]) for name in ("test", "oos_test")},
        **{
            name: {"mean": fmean(values), "least": min(values), "most": max(values)}
            for name, values in figures.items()
        },
    }


def read_intents(data: Path) -> dict[str, Rows]:
    """The parts of the file, or of the one `*.json` file in a folder. Raises `ConfigError`."""
    found = sorted(data.glob("*.json")) if data.is_dir() else [data]
    if len(found) != 1:
        raise ConfigError(f"{data} holds {len(found)} .json files", hint="give the file itself")
    try:
        values = json.loads(found[0].read_bytes())
        parts: dict[str, Rows] = {name: [(str(text), str(label)) for text, label in values[name]] for name in PARTS}
    except OSError as error:
        raise ConfigError(f"{found[0]} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        what = f"{type(error).__name__}: {str(error)[:80]}"
        raise ConfigError(
            f"{found[0]} is no set of intents ({what})", hint=f"it needs {', '.join(PARTS)}"
        ) from error
    if not parts["test"] or not parts["oos_test"]:
        raise ConfigError(f"{found[0]} has nothing to judge on", hint="fill test and oos_test")
    return parts


def draw(rows: Rows, shots: int, seed: int) -> Iterator[tuple[str, str]]:
    """`shots` rows of each label, or all where there are fewer; equal seeds, equal rows."""
    by_label: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        by_label.setdefault(row[1], []).append(row)
    random = np.random.default_rng(seed)
    for label in sorted(by_label):
        mine = by_label[label]
        yield from (mine[at] for at in random.permutation(len(mine))[:shots])


def judge(head: IntentHead, parts: Mapping[str, Rows]) -> dict[str, float]:
    """What a head is worth on the texts that have a label and on those that have none."""
    inside = head.classify_all([text for text, _ in parts["test"]])
    outside = head.classify_all([text for text, _ in parts["oos_test"]])
    right = [found.label == label for found, (_, label) in zip(inside, parts["test"], strict=True)]
    everything = [*inside, *outside]
    truly = [*right, *[False] * len(outside)]
    probabilities = [found.probability for found in everything]
    scored = {"accuracy": fmean(right), "right_auroc": auroc(probabilities, truly)}
    scored["calibration_error"] = expected_calibration_error(probabilities, truly)
    strange = [found.out_of_scope for found in everything if found.out_of_scope is not None]
    if strange:
        unknown = [False] * len(inside) + [True] * len(outside)
        scored["out_of_scope_auroc"] = auroc(strange, unknown)
        refused = float(np.quantile(strange[: len(inside)], 0.95))
        scored["out_of_scope_found"] = fmean(each > refused for each in strange[len(inside) :])
    return scored


def milliseconds(head: IntentHead, rows: Rows) -> dict[str, float]:
    """Of one text at a time, all of it: the median and the 99th percentile."""
    spent = []
    for text, _ in rows:
        started = time.perf_counter()
        head.classify(text)
        spent.append((time.perf_counter() - started) * 1e3)
    return {"ms": median(spent), "ms_99": float(np.quantile(spent, 0.99))}


def _loader(encoder: Encoder | None) -> Callable[[], Encoder] | None:
    return None if encoder is None else lambda: encoder
