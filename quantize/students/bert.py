"""A BERT encoder in torch, written out: the body of every encoder that is trained.

Post-norm layers, learned positions, exact GELU (Devlin et al. 2019, arXiv:1810.04805). Weights come from the ONNX
file of an encoder and go back as plain arrays. Knows nothing of heads, losses or files that it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.encoders.bert_graph import NotBertError, read_float_bert
from edge_sdk.errors import ConfigError
from edge_sdk.kernel_faces import bert as kernel
from edge_sdk.model_files.onnx_graph import OnnxGraph
from edge_sdk.model_files.onnx_session import find_model, inspect_onnx

SEGMENTS = 2
"""Parts of a pair: the first has no embedding of its own, the second one that starts at zero."""


@dataclass(frozen=True, slots=True)
class BertShape:
    """Sizes of an encoder; `inner` is that of the feed-forward part."""

    layers: int
    hidden: int
    heads: int
    inner: int
    words: int
    positions: int
    epsilon: float = 1e-12


class BertLayer(nn.Module):
    """Attention and feed-forward, each followed by a normalisation of its sum with what went around it."""

    def __init__(self, shape: BertShape, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(shape.hidden, shape.hidden) for _ in range(4))
        self.up, self.down = nn.Linear(shape.hidden, shape.inner), nn.Linear(shape.inner, shape.hidden)
        self.attended, self.fed = (nn.LayerNorm(shape.hidden, shape.epsilon) for _ in range(2))

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States [texts, tokens, hidden]; `mask` [texts, 1, 1, tokens] is true where there is a token."""
        dropout = self.dropout if self.training else 0.0
        query, key, value = (self._split(part(states)) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
        output = self.output(mixed.transpose(1, 2).flatten(2))
        states = self.attended(states + functional.dropout(output, dropout))
        fed = self.down(functional.gelu(self.up(states)))
        return cast(Tensor, self.fed(states + functional.dropout(fed, dropout)))

    def _split(self, states: Tensor) -> Tensor:
        texts, tokens, _ = states.shape
        return states.view(texts, tokens, self.heads, -1).transpose(1, 2)


class Bert(nn.Module):
    """Token ids to token states. `dropout` holds while training, for embeddings and for what layers add.

    Not for attention: to draw a number for every pair of tokens takes a processor a fifth of the whole step.
    """

    def __init__(self, shape: BertShape, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.words = nn.Embedding(shape.words, shape.hidden)
        self.positions = nn.Embedding(shape.positions, shape.hidden)
        self.segments = nn.Embedding(SEGMENTS, shape.hidden)
        self.embedded = nn.LayerNorm(shape.hidden, shape.epsilon)
        self.layers = nn.ModuleList(BertLayer(shape, dropout) for _ in range(shape.layers))
        nn.init.zeros_(self.segments.weight)

    def forward(self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """States [texts, tokens, hidden] of ids [texts, tokens].

        `mask` [texts, tokens] is true where there is a token; without one there is no padding. `segments` are 0 or
        1 for each token, all 0 without them.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        states = self.words(ids) + self.positions(places)
        if segments is not None:
            states = states + self.segments(segments)
        states = functional.dropout(self.embedded(states), self.dropout, self.training)
        wide = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            states = layer(states, wide)
        return cast(Tensor, states)

    @classmethod
    def open(cls, directory: Path, *, dropout: float = 0.1) -> Bert:
        """The encoder of a folder's ONNX file, in float32. Raises `ConfigError` where it is no BERT."""
        return cls.from_graph(OnnxGraph(inspect_onnx(find_model(directory))), dropout=dropout)

    @classmethod
    def from_graph(cls, graph: OnnxGraph, *, dropout: float = 0.1) -> Bert:
        """The encoder of a graph in floats or 8 bits, in float32. Raises `ConfigError` where it is no BERT."""
        try:
            weights = read_float_bert(graph)
        except NotBertError as error:
            raise ConfigError(
                f"{graph.file.path} cannot be trained: {error}", hint="take a BERT, such as minilm-l6"
            ) from error
        return cls.from_weights(weights, dropout=dropout)

    @classmethod
    def from_weights(cls, weights: kernel.BertWeights, *, dropout: float = 0.1) -> Bert:
        """The encoder that the kernel computes with these weights, codes times scales."""
        words, hidden = weights.words.shape
        inner = len(weights.layers[0].up.bias)
        shape = BertShape(
            len(weights.layers), hidden, weights.heads, inner, words, len(weights.positions), weights.epsilon
        )
        model = cls(shape, dropout=dropout)
        with torch.no_grad():
            _set(model.words.weight, weights.words * weights.word_scales[:, None])
            _set(model.positions.weight, weights.positions)
            _set_norm(model.embedded, weights.embedded)
            for module, layer in zip(model.layers, weights.layers, strict=True):
                for name in ("query", "key", "value", "output", "up", "down"):
                    linear: kernel.Linear = getattr(layer, name)
                    _set(getattr(module, name).weight, (linear.codes * linear.scales).T)
                    _set(getattr(module, name).bias, linear.bias)
                for name in ("attended", "fed"):
                    _set_norm(getattr(module, name), getattr(layer, name))
        return model


def pad(texts: list[list[int]], filler: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of texts as one tensor [texts, tokens of the longest] and the mask of what is no filler.

    >>> ids, mask = pad([[5, 6], [7]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [7, 0]], [[True, True], [True, False]])
    """
    longest = max(map(len, texts), default=0)
    ids = torch.full((len(texts), longest), filler)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = True
    return ids, mask


def _set(parameter: Tensor, values: NDArray[np.float32]) -> None:
    parameter.copy_(torch.from_numpy(np.array(values, np.float32)))  # a copy: files are mapped read-only


def _set_norm(module: nn.LayerNorm, norm: kernel.Norm) -> None:
    _set(module.weight, norm.gamma)
    _set(module.bias, norm.beta)
