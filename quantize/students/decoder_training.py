"""Trains a decoder on sheets: one loop, on the processor or a GPU, that goes on where it was interrupted.

Equal seeds, sheets and settings give equal weights, interrupted or not. What is trained follows from the model:
matrices beside frozen weights, or all weights, on a quantizer's grid or not (`decoder_lora`). Knows nothing of
where sheets come from or of what becomes of the model.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

import torch

from edge_sdk.errors import ConfigError

from ..collection import Update
from .checkpoint import load_checkpoint, save_checkpoint
from .decoder_batches import make_batch, planned
from .decoder_data import Sheet
from .decoder_lora import refresh_grid
from .decoder_loss import answer_loss, choice_loss, confidence_loss, distillation_loss
from .decoder_model import DecoderModel

_LONGEST_GRADIENT = 1.0  # longer ones are scaled down to it
_SHOWN = 50  # steps whose mean loss is shown


@dataclass(frozen=True, slots=True)
class DecoderTraining:
    """How a decoder is trained. `tokens` of a step count padding.

    `learning_rate` suits LoRA; all weights want about a twentieth of it. `confidence` is the share of steps at the
    end that teach to be sure only when right (`confidence_loss`, with `alpha`). `mixed` computes in bfloat16 where
    all weights are trained. Weights on a grid are rounded anew every `grid_steps`. `soft` is the
    share of the loss, where a teacher's likelihoods are known, that is the divergence from them; `choosing`, where
    answers have rivals, however few, the share that is the choice among these.
    """

    epochs: int = 2
    tokens: int = 4096
    learning_rate: float = 4e-4
    warm_up: float = 0.05
    weight_decay: float = 0.0
    confidence: float = 0.0
    alpha: float = 0.5
    mixed: bool = False
    grid_steps: int = 16
    soft: float = 0.9
    choosing: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.tokens, self.grid_steps) < 1 or self.learning_rate <= 0:
            raise ConfigError(f"nothing can be trained with {self}")
        shares = (self.confidence, self.alpha, self.soft, self.choosing, self.warm_up)
        if not all(0 <= each <= 1 for each in shares) or self.warm_up == 1:
            raise ConfigError(f"shares of {self} are not between 0 and 1")


@dataclass(frozen=True, slots=True)
class Trained:
    """How far a training came; `loss` is the mean of the last fifty steps, `tokens` count no padding."""

    finished: bool
    steps: int
    answers: int
    tokens: int
    seconds: float
    loss: float


def train_decoder(
    model: DecoderModel,
    epochs: Callable[[int], Sequence[Sheet]],
    settings: DecoderTraining,
    *,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 120.0,
    device: str | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> Trained:
    """Train what of `model` wants gradients, in place; it ends on the processor, ready to be exported.

    `epochs` gives the sheets of an epoch by its number, from 0; equal numbers, equal sheets. `device` is a GPU
    where there is one. The file `checkpoint` is written every `checkpoint_seconds` and when `cancel` is set, and
    goes on where it stopped when it is there. Raises `ConfigError` for one of another training, and for no sheets.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(where).train()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    grid = dict(model.named_buffers())  # what rounding adds; empty without a grid
    sheets = epochs(0)

    def steps_of(number: int) -> list[list[Sheet]]:
        if number == settings.epochs:
            return []
        return planned(epochs(number) if number else sheets, settings.tokens, f"{settings.seed} {number}")

    batches = steps_of(0)
    facts = {
        "sheets": _fingerprint(sheets),
        "trained": hashlib.sha256(repr([(n, tuple(p.shape)) for n, p in trained.items()]).encode()).hexdigest(),
        "settings": asdict(settings),
    }
    optimizer = torch.optim.AdamW(
        trained.values(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    epoch = at = steps = answers = tokens = 0
    seconds, losses = 0.0, list[float]()
    if (state := load_checkpoint(checkpoint, facts) if checkpoint is not None else None) is not None:
        with torch.no_grad():
            for name, value in state["weights"].items():
                trained[name].copy_(value)
            for name, value in state["grid"].items():
                grid[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        epoch, at, steps, answers, tokens = (state[name] for name in ("epoch", "at", "steps", "answers", "tokens"))
        seconds, losses = state["seconds"], state["losses"]
        batches = steps_of(epoch) if epoch else batches
    else:
        torch.manual_seed(settings.seed)
    started = saved = time.perf_counter()

    def save() -> None:
        if checkpoint is not None:
            numbers = {"epoch": epoch, "at": at, "steps": steps, "answers": answers, "tokens": tokens}
            kept = {"weights": trained, "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
            kept["grid"] = grid
            spent = seconds + time.perf_counter() - started
            save_checkpoint(checkpoint, facts, {**numbers, **kept, "seconds": spent, "losses": losses})

    while epoch < settings.epochs:
        if cancel is not None and cancel.is_set():
            break
        if at == len(batches):
            epoch, at = epoch + 1, 0
            batches = steps_of(epoch)
            continue
        done = (epoch + at / len(batches)) / settings.epochs
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(done, settings.warm_up)
        losses = [*losses[1 - _SHOWN :], _step(model, batches[at], optimizer, settings, done, where)]
        steps, at = steps + 1, at + 1
        answers += sum(len(sheet.branches) for sheet in batches[at - 1])
        tokens += sum(sheet.length for sheet in batches[at - 1])
        if steps % settings.grid_steps == 0:
            refresh_grid(model)
        progress(done, 1.0, f"epoch {epoch + 1} of {settings.epochs}, loss {fmean(losses):.3f}")
        if time.perf_counter() - saved > checkpoint_seconds:
            save()
            saved = time.perf_counter()
    save()
    model.to("cpu").eval()
    seconds += time.perf_counter() - started
    return Trained(epoch == settings.epochs, steps, answers, tokens, seconds, fmean(losses) if losses else 0.0)


def _step(
    model: DecoderModel,
    sheets: Sequence[Sheet],
    optimizer: torch.optim.Optimizer,
    settings: DecoderTraining,
    done: float,
    where: torch.device,
) -> float:
    """One step of the optimizer; its loss."""
    batch = make_batch(sheets).to(where)
    with torch.autocast(where.type, torch.bfloat16) if settings.mixed else nullcontext():
        hidden = model(batch.tokens, batch.positions, batch.seen)
    logits = model.logits(hidden[batch.places[:, 0], batch.places[:, 1]])
    sure = done >= 1 - settings.confidence
    loss = confidence_loss(logits, batch.labels, settings.alpha) if sure else answer_loss(logits, batch.labels)
    if len(batch.soft):
        share = settings.soft * len(batch.soft) / len(batch.labels)
        taught = distillation_loss(logits[batch.soft], batch.likely, batch.logprobs, batch.tail)
        loss = (1 - share) * loss + share * taught
    if len(batch.chosen):
        chosen = choice_loss(logits[batch.chosen], batch.labels[batch.chosen], batch.rivals)
        loss = (1 - settings.choosing) * loss + settings.choosing * chosen
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    wanting: list[Any] = [each for group in optimizer.param_groups for each in group["params"]]
    torch.nn.utils.clip_grad_norm_(wanting, _LONGEST_GRADIENT)
    optimizer.step()
    return float(loss.detach())


def _schedule(done: float, warm_up: float) -> float:
    """The share of the full learning rate: up in a line, then down along a cosine to nothing.

    >>> [round(_schedule(done, 0.1), 2) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.01, 0.5, 1.0, 0.5, 0.0]
    """
    if done < warm_up:
        return max(done / warm_up, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _fingerprint(sheets: Sequence[Sheet]) -> str:
    digest = hashlib.sha256()
    for sheet in sheets:
        for branch in sheet.branches:
            digest.update(repr((sheet.prefix, branch.tokens, branch.answer, branch.rivals)).encode())
            if branch.soft is not None:
                digest.update(branch.soft.ids.tobytes() + branch.soft.logprobs.tobytes())
    return digest.hexdigest()
