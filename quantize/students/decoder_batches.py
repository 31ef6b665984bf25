"""Sheets to the tensors of a step: what attends to what, where something is to be said, and what that is.

Knows nothing of models or of how sheets were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edge_sdk.errors import ConfigError

from ..teachers.top_logits import TopLogits, joined
from .decoder_data import Sheet

_SORTED = 256  # sheets that are sorted by length together
_UNKNOWN = TopLogits(
    np.zeros(0, np.int32), np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32), np.zeros(0, np.float32)
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sheets as tensors [batch, length], `seen` [batch, length, length].

    `places` [answers' tokens, 2] are the rows and columns at which the tokens `labels` are to be said. Of `soft` of
    them [n], by their number, a teacher found `likely` [n, k] with `logprobs` [n, k], and all else with `tail` [n].
    `chosen` of them [m] are chosen among themselves and `rivals` [m, k], behind which -1 fills up.
    """

    tokens: Tensor
    positions: Tensor
    seen: Tensor
    places: Tensor
    labels: Tensor
    soft: Tensor
    likely: Tensor
    logprobs: Tensor
    tail: Tensor
    chosen: Tensor
    rivals: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))


def planned(sheets: Sequence[Sheet], tokens: int, seed: str) -> list[list[Sheet]]:
    """The steps of an epoch: sheets of about equal length together, as many as `tokens` allow, in random order.

    Padding counts. Raises `ConfigError` where there are no sheets.
    """
    random = Random(seed)
    order = random.sample(sheets, len(sheets))
    made: list[list[Sheet]] = []
    for start in range(0, len(order), _SORTED):
        batch: list[Sheet] = []
        for sheet in sorted(order[start : start + _SORTED], key=lambda each: each.length):
            if batch and (len(batch) + 1) * sheet.length > tokens:
                made.append(batch)
                batch = []
            batch.append(sheet)
        made.append(batch)
    if not made:
        raise ConfigError("there is nothing to train on", hint="give more examples, or a larger prompt")
    random.shuffle(made)
    return made


def make_batch(sheets: Sequence[Sheet]) -> Batch:
    """Sheets side by side. A branch attends to the prefix and to itself; its positions follow the prefix."""
    length = max(sheet.length for sheet in sheets)
    tokens, positions, parts = (torch.zeros((len(sheets), length), dtype=torch.long) for _ in range(3))
    parts -= 1  # padding is a part of its own
    places, labels, soft = list[tuple[int, int]](), list[int](), list[int]()
    known: list[TopLogits] = []
    beside: dict[int, Tensor] = {}
    for row, sheet in enumerate(sheets):
        start = len(sheet.prefix)
        tokens[row, :start], positions[row, :start] = torch.tensor(sheet.prefix), torch.arange(start)
        parts[row, :start] = 0
        at = start
        for number, branch in enumerate(sheet.branches, 1):
            end = at + len(branch.tokens)
            tokens[row, at:end] = torch.tensor(branch.tokens)
            positions[row, at:end] = torch.arange(start, start + end - at)
            parts[row, at:end] = number
            if branch.soft is not None:
                soft += range(len(labels), len(labels) + len(branch.soft.chosen))
                known.append(branch.soft)
            beside |= {len(labels) + step: torch.tensor(each) for step, each in enumerate(branch.rivals) if each}
            places += [(row, place) for place in range(at + branch.answer - 1, end - 1)]
            labels += branch.tokens[branch.answer :]
            at = end
    same = parts[:, :, None] == parts[:, None, :]
    earlier = torch.ones((length, length), dtype=torch.bool).tril()
    seen = (same | (parts[:, None, :] == 0)) & earlier
    top = joined(known) if known else _UNKNOWN
    return Batch(
        tokens,
        positions,
        seen,
        torch.tensor(places),
        torch.tensor(labels),
        torch.tensor(soft, dtype=torch.long),
        torch.from_numpy(top.ids).long(),
        torch.from_numpy(top.logprobs),
        torch.from_numpy(top.tail),
        torch.tensor(list(beside), dtype=torch.long),
        _padded(list(beside.values())),
    )


def _padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=-1) if rows else torch.zeros((0, 0), dtype=torch.long)
