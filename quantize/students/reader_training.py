"""Trains a reader: one loop, on the processor or a GPU, that goes on where it was interrupted.

Equal seeds, examples and settings give equal weights, interrupted or not. Knows nothing of where examples come from
or of what becomes of the model.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

import torch

from ..collection import Update
from .checkpoint import load_checkpoint, save_checkpoint
from .reader_data import Mixture, ReaderData, make_batch
from .reader_model import ReaderModel, reader_loss

_LONGEST_GRADIENT = 1.0  # longer ones are scaled down to it
_SHOWN = 100  # steps whose mean loss is shown


@dataclass(frozen=True, slots=True)
class ReaderTraining:
    """How a reader is trained. `tokens` of a batch count padding; the head learns `head_speed` times as fast.

    `freeze_words` leaves the embeddings of words as they are: most words of later questions are in no example.
    """

    epochs: int = 3
    tokens: int = 2048
    learning_rate: float = 1e-4
    head_speed: float = 5.0
    warm_up: float = 0.06
    weight_decay: float = 0.01
    freeze_words: bool = True
    seed: int = 0
    mixture: Mixture = field(default_factory=Mixture)


@dataclass(frozen=True, slots=True)
class Trained:
    """How far a training came; `loss` is the mean of the last hundred steps, `tokens` count padding."""

    finished: bool
    steps: int
    questions: int
    tokens: int
    seconds: float
    loss: float


def train_reader(
    model: ReaderModel,
    data: ReaderData,
    settings: ReaderTraining,
    *,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    device: str | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> Trained:
    """Train `model` in place; it ends on the processor, ready to be exported.

    `device` is a GPU where there is one. The file `checkpoint` is written every `checkpoint_seconds` and when
    `cancel` is set, and what it holds is gone on with. Raises `ConfigError` for one of another training.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    facts = {"data": data.fingerprint, "shape": asdict(model.body.shape), "settings": asdict(settings)}
    model.to(where).train()
    model.body.words.weight.requires_grad_(not settings.freeze_words)
    optimizer = _optimizer(model, settings)
    epoch = at = steps = questions = tokens = 0
    seconds, losses = 0.0, list[float]()
    state = load_checkpoint(checkpoint, facts) if checkpoint is not None else None
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, at, steps, questions, tokens = (state[name] for name in _COUNTS)
        seconds, losses = state["seconds"], state["losses"]

    def save() -> None:
        if checkpoint is not None:
            now: dict[str, Any] = dict(zip(_COUNTS, (epoch, at, steps, questions, tokens), strict=True))
            now |= {"seconds": seconds, "losses": losses}
            save_checkpoint(
                checkpoint, facts, now | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            )

    last_saved = time.monotonic()
    while epoch < settings.epochs:
        batches = data.batches(epoch, mixture=settings.mixture, tokens=settings.tokens, seed=settings.seed)
        while at < len(batches):
            if cancel is not None and cancel.is_set():
                save()
                return Trained(False, steps, questions, tokens, seconds, _mean(losses))
            started = time.monotonic()
            done = (epoch + at / len(batches)) / settings.epochs
            progress(done, 1.0, f"epoch {epoch + 1} of {settings.epochs}, loss {_mean(losses):.3f}")
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _rate(done, settings.warm_up)
            torch.manual_seed(settings.seed * 1_000_003 + steps)  # dropout: the same after an interruption
            batch = make_batch(batches[at]).to(where)
            with torch.autocast(where.type, torch.bfloat16):
                scores = model(batch.ids, batch.mask, batch.segments)
            loss = reader_loss(scores, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), _LONGEST_GRADIENT)
            optimizer.step()
            losses = [*losses[1 - _SHOWN :], loss.item()]
            at, steps = at + 1, steps + 1
            questions, tokens = questions + len(batches[at - 1]), tokens + batch.ids.numel()
            seconds += time.monotonic() - started
            if time.monotonic() - last_saved > checkpoint_seconds:
                save()
                last_saved = time.monotonic()
        epoch, at = epoch + 1, 0
    save()
    model.to("cpu").eval()
    progress(1.0, 1.0, f"loss {_mean(losses):.3f}")
    return Trained(True, steps, questions, tokens, seconds, _mean(losses))


_COUNTS = ("epoch", "at", "steps", "questions", "tokens")


def _optimizer(model: ReaderModel, settings: ReaderTraining) -> torch.optim.AdamW:
    """AdamW; vectors (biases and normalisations) do not decay."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = []
    for speed, inside in ((settings.head_speed, True), (1.0, False)):
        part = [parameter for name, parameter in named if name.startswith("head.") == inside]
        for decay in (settings.weight_decay, 0.0):
            kept = [parameter for parameter in part if (parameter.ndim > 1) == (decay > 0)]
            if kept:
                groups.append({"params": kept, "weight_decay": decay, "peak": settings.learning_rate * speed})
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _rate(done: float, warm_up: float) -> float:
    """Up in a straight line to 1 at `warm_up`, then down to 0 at 1."""
    return done / warm_up if done < warm_up else (1 - done) / (1 - warm_up)


def _mean(losses: list[float]) -> float:
    return fmean(losses) if losses else float("nan")
