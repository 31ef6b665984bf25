"""The reader as it is trained: a BERT with three scores a token, and the loss over all passages of a question.

Scores are those of `edge_sdk.readers.reader`: answer starts here, answer ends here, and, at the first token, the
log-odds that the passage holds an answer. Knows nothing of texts or of how batches are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.encoders.bert_graph import NotBertError
from edge_sdk.errors import ConfigError
from edge_sdk.model_files.onnx_graph import OnnxGraph
from edge_sdk.model_files.onnx_session import find_model, inspect_onnx
from edge_sdk.readers.scorer import read_head

from .bert import Bert

START, END, HOLDS = range(3)


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of several questions, padded: all but the last three are [windows, tokens].

    `may_start` and `may_end` are true at the first token, which stands for "no answer", and where words of the
    passage start or end; `starts` and `ends` where right answers do, or at the first token of every window of a
    question that none answers. `holds` [windows] is 1.0 where the window holds an answer; `member` [questions,
    windows] says which windows are whose.
    """

    ids: Tensor
    mask: Tensor
    segments: Tensor
    may_start: Tensor
    may_end: Tensor
    starts: Tensor
    ends: Tensor
    holds: Tensor
    member: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch in the memory of a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))


class ReaderModel(nn.Module):
    """Scores [windows, tokens, 3] of a batch, in float32."""

    def __init__(self, body: Bert) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.shape.hidden, 3)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def open(cls, directory: Path, *, dropout: float = 0.1) -> ReaderModel:
        """A new head on the encoder of a folder. Raises what `Bert.open` raises."""
        return cls(Bert.open(directory, dropout=dropout))

    @classmethod
    def go_on(cls, directory: Path, *, dropout: float = 0.1) -> ReaderModel:
        """The reader of a folder that was exported, so that it learns more; from 8 bits, its weights as they are.

        Raises what `Bert.open` raises, and `ConfigError` where it is no reader of ours.
        """
        graph = OnnxGraph(inspect_onnx(find_model(directory)))
        model = cls(Bert.from_graph(graph, dropout=dropout))
        try:
            segments, head, bias = read_head(graph, model.body.shape.hidden)
        except NotBertError as error:
            hint = "name the folder of a reader, or a bundle that holds one"
            raise ConfigError(f"{graph.file.path} is no reader that can learn more: {error}", hint=hint) from error
        with torch.no_grad():
            model.body.segments.weight.copy_(torch.from_numpy(segments))
            model.head.weight.copy_(torch.from_numpy(head.T.copy()))
            model.head.bias.copy_(torch.from_numpy(bias))
        return model

    def forward(self, ids: Tensor, mask: Tensor | None, segments: Tensor) -> Tensor:
        return self.head(self.body(ids, mask, segments)).float()  # type: ignore[no-any-return]


def reader_loss(scores: Tensor, batch: Batch, *, holds_weight: float = 1.0) -> Tensor:
    """The mean over questions of -log p(start) - log p(end), with the entropy of `holds` added.

    Probabilities are shared by all windows of a question (Clark and Gardner 2018, arXiv:1710.10723); where an
    answer stands several times, any will do.
    """
    starts = _shared(scores[..., START], batch.may_start, batch.starts, batch.member)
    ends = _shared(scores[..., END], batch.may_end, batch.ends, batch.member)
    holds = functional.binary_cross_entropy_with_logits(scores[:, 0, HOLDS], batch.holds)
    return starts + ends + holds_weight * holds


def _shared(scores: Tensor, allowed: Tensor, right: Tensor, member: Tensor) -> Tensor:
    """The mean of -log p of what is right, over questions."""

    def total(kept: Tensor) -> Tensor:
        windows = scores.masked_fill(~kept, -1e9).logsumexp(1)  # finite: -inf less -inf has no gradient
        return windows.expand(member.shape).masked_fill(~member, -1e9).logsumexp(1)

    return (total(allowed) - total(right)).mean()
