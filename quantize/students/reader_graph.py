"""A trained reader as an ONNX graph, node by node: what onnxruntime runs, and what our quantizers can make smaller.

Equal weights give equal bytes. Attention is onnxruntime's own operator, the rest is standard ONNX; one text a run,
so there is no mask. Knows nothing of files beside the model or of quantization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_sdk.readers.scorer import HEAD, HEAD_BIAS, OUTPUT, SEGMENTS

from ..onnx_models.folder import import_onnx
from .bert import BertLayer
from .reader_model import ReaderModel

if TYPE_CHECKING:
    from onnx import ModelProto

STATES = "last_hidden_state"
_OPSETS = {"": 20, "com.microsoft": 1}  # 20: the first with Gelu


def reader_graph(model: ReaderModel) -> ModelProto:
    """Inputs `input_ids` and `token_type_ids` [1, tokens]; outputs `scores` [1, tokens, 3] and the token states.

    Raises `MissingExtraError` without the onnx package.
    """
    return _Graph(model).made()


class _Graph:
    def __init__(self, model: ReaderModel) -> None:
        self._onnx, self._model = import_onnx(), model
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self._known: list[Any] = []  # types of what standard operators do not compute: quantizers ask for them

    def made(self) -> ModelProto:
        helper, types = self._onnx.helper, self._onnx.TensorProto
        body = self._model.body
        # The first segment has an embedding too once it is trained: it goes into the positions.
        segments = _array(body.segments.weight)
        positions = self._stored("positions", _array(body.positions.weight) + segments[0])
        count = self._add("Shape", "input_ids", start=1, end=2)
        every = self._stored("places", np.arange(len(_array(body.positions.weight))))
        places = self._add("Slice", every, self._stored("zero", np.array([0])), count, "zero")
        words = self._add("Gather", self._stored("words", _array(body.words.weight)), "input_ids")
        parts = self._add("Gather", self._stored(SEGMENTS, segments - segments[0]), "token_type_ids")
        states = self._add("Add", self._add("Add", words, parts), self._add("Gather", positions, places))
        states = self._norm(states, body.embedded, "embedded")
        for number, layer in enumerate(body.layers):
            assert isinstance(layer, BertLayer)
            states = self._layer(states, layer, f"layer{number}")
        self._nodes.append(helper.make_node("Identity", [states], [STATES]))
        # As Einsum, so that the quantizers, which look for MatMul, leave these few weights as they are.
        head = self._stored(HEAD, _array(self._model.head.weight).T)
        product = self._add("Einsum", states, head, equation="bth,hs->bts")
        self._nodes.append(
            helper.make_node("Add", [product, self._stored(HEAD_BIAS, _array(self._model.head.bias))], [OUTPUT])
        )
        tokens = [1, "tokens"]
        graph = helper.make_graph(
            self._nodes,
            "reader",
            [helper.make_tensor_value_info(name, types.INT64, tokens) for name in ("input_ids", "token_type_ids")],
            [self._floats(OUTPUT, 3), self._floats(STATES, body.shape.hidden)],
            self._tensors,
            value_info=self._known,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        made: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="edge-sdk")
        return made

    def _floats(self, name: str, width: int) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, [1, "tokens", width])

    def _layer(self, states: str, layer: BertLayer, name: str) -> str:
        query, key, value = (
            self._linear(states, getattr(layer, part), f"{name}.{part}") for part in ("query", "key", "value")
        )
        mixed = self._add("MultiHeadAttention", query, key, value, domain="com.microsoft", num_heads=layer.heads)
        self._known.append(self._floats(mixed, layer.output.in_features))
        output = self._linear(mixed, layer.output, f"{name}.output")
        states = self._norm(self._add("Add", output, states), layer.attended, f"{name}.attended")
        inner = self._add("Gelu", self._linear(states, layer.up, f"{name}.up"))
        return self._norm(
            self._add("Add", self._linear(inner, layer.down, f"{name}.down"), states), layer.fed, f"{name}.fed"
        )

    def _linear(self, states: str, layer: nn.Linear, name: str) -> str:
        product = self._add("MatMul", states, self._stored(name, _array(layer.weight).T))
        return self._add("Add", product, self._stored(f"{name}.bias", _array(layer.bias)))

    def _norm(self, states: str, norm: nn.LayerNorm, name: str) -> str:
        scale, shift = (
            self._stored(f"{name}.scale", _array(norm.weight)),
            self._stored(f"{name}.shift", _array(norm.bias)),
        )
        return self._add("LayerNormalization", states, scale, shift, axis=-1, epsilon=float(norm.eps))

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def _stored(self, name: str, values: NDArray[Any]) -> str:
        self._tensors.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def _array(parameter: Tensor) -> NDArray[np.float32]:
    return parameter.detach().cpu().numpy()
