"""The forms in which an ONNX model can be made smaller, each a function from a float32 model to a smaller one.

Matrix products go through onnxruntime's own quantizers, or are stored as 8-bit codes with a scale for each output;
tables of embeddings always have a scale for each row. Knows nothing of how well or how fast a form computes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device import cpu_features
from edge_sdk.encoders.bert_graph import quantize
from edge_sdk.errors import ConfigError, EngineError, MissingExtraError
from edge_sdk.model_files.onnx_session import MAX_BYTES, OnnxFile

from .folder import import_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

Floats = NDArray[np.float32]

LEAST_OPSET = 13  # the first whose DequantizeLinear has an axis
BLOCK = 32  # inputs that share a scale in MatMulNBits, as in GGUF's Q4_0
_LEAST_ROWS = 64  # a shorter table, such as that of token types, weighs nothing


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write a model: `make` changes the model that it is given, or returns another."""

    name: str
    meaning: str
    make: Callable[[ModelProto], ModelProto]


# --- the parts of a graph ---------------------------------------------------------------------------


def load_float_model(file: OnnxFile) -> ModelProto:
    """A model with all its weights in memory and a name for every node.

    Raises `ConfigError` for a model without float32 matrices, too old or too large, and `MissingExtraError` without
    the onnx package.
    """
    size = sum(path.stat().st_size for path in (file.path, *file.external))
    if size > MAX_BYTES:
        raise ConfigError(f"{file.path} has {size:,} bytes of weights; models up to 2 GiB can be quantized")
    onnx = import_onnx()
    try:
        model: ModelProto = onnx.load(str(file.path))
    except Exception as error:  # protobuf's classes share no base with those of onnx
        raise EngineError(f"onnx cannot read {file.path}: {' '.join(str(error).split())[:200]}") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise ConfigError(
            f"{file.path} has opset {opset}, and quantizing needs {LEAST_OPSET}", hint="export it again"
        )
    if not _users(model, "MatMul", 1):
        raise ConfigError(
            f"{file.path} holds no float32 matrices to quantize", hint="take the float32 model, not a quantized one"
        )
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"  # the quantizers tell nodes apart by name
    return model


def store_matrices(model: ModelProto, spelling: Literal["dequantize", "cast"]) -> ModelProto:
    """Give every matrix that is multiplied with 8-bit codes and a scale for each output; products stay in floats.

    The largest weight has the scale: at 8 bits a scale of least squared error changed MiniLM's cosines by .00005.
    """
    from onnx import helper

    for name, matrix in _users(model, "MatMul", 1).items():
        codes, scales = quantize(matrix, 1)
        _store(model, name, codes, scales if spelling == "dequantize" else scales[None])
        if spelling == "dequantize":
            restore = [helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scales"], [name], axis=1)]
        else:
            restore = _restored(name)
        _prepend(model, restore)
    return model


def store_tables(model: ModelProto, *, whole: bool) -> ModelProto:
    """Give every table of embeddings 8-bit codes, a scale for each row.

    `whole` spells the table as a product, which our kernel reads and onnxruntime unpacks once, to full size; else
    rows are looked up as codes and stay small in memory.
    """
    from onnx import helper

    for name, table in _users(model, "Gather", 0).items():
        if len(table) < _LEAST_ROWS:
            continue
        codes, scales = quantize(table, 0)
        _store(model, name, codes, scales[:, None])
        if whole:
            _prepend(model, _restored(name))
            continue
        nodes = list(model.graph.node)
        del model.graph.node[:]
        for node in nodes:
            if node.op_type != "Gather" or node.input[0] != name:
                model.graph.node.append(node)
                continue
            out, index = node.output[0], node.input[1]
            model.graph.node.extend(
                (
                    helper.make_node("Gather", [f"{name}_codes", index], [f"{out}_codes"], name=node.name),
                    helper.make_node("Gather", [f"{name}_scales", index], [f"{out}_scales"]),
                    helper.make_node("Cast", [f"{out}_codes"], [f"{out}_floats"], to=1),
                    helper.make_node("Mul", [f"{out}_floats", f"{out}_scales"], [out]),
                )
            )
    return model


def _users(model: ModelProto, operator: str, place: int) -> dict[str, Floats]:
    """The stored float32 matrices, by name, that are input `place` of such operators and of nothing else."""
    from onnx import TensorProto, numpy_helper

    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(output.name for output in model.graph.output)
    found = Counter(
        node.input[place]
        for node in model.graph.node
        if node.op_type == operator
        and len(node.input) > place
        and not any(attribute.name == "axis" and attribute.i for attribute in node.attribute)
    )
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and 0 < found[tensor.name] == uses[tensor.name]
    }


def _store(model: ModelProto, name: str, codes: NDArray[np.int8], scales: Floats) -> None:
    from onnx import numpy_helper

    stored = model.graph.initializer
    stored.remove(next(tensor for tensor in stored if tensor.name == name))
    given = [entry for entry in model.graph.input if entry.name == name]  # older files list weights as inputs
    for entry in given:
        model.graph.input.remove(entry)
    stored.append(numpy_helper.from_array(codes, f"{name}_codes"))
    stored.append(numpy_helper.from_array(scales, f"{name}_scales"))


def _restored(name: str) -> list[Any]:
    from onnx import helper

    return [
        helper.make_node("Cast", [f"{name}_codes"], [f"{name}_floats"], to=1),
        helper.make_node("Mul", [f"{name}_floats", f"{name}_scales"], [name]),
    ]


def _prepend(model: ModelProto, nodes: list[Any]) -> None:
    after = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *after])


# --- onnxruntime's quantizers -----------------------------------------------------------------------


def dynamic(model: ModelProto, *, per_channel: bool = True, signed: bool = True) -> ModelProto:
    """`quantize_dynamic` of the matrix products: activations get 8 bits while the model runs, one scale a tensor.

    Where an x86 processor has no VNNI, weights get 7 bits: its 8-bit products saturate.
    """
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    features = set(cpu_features())
    add_pre_process_metadata(model)  # else it advises a pass that onnxruntime runs anyway when it loads the file
    with _quiet(), _scratch() as scratch:
        # Given a path, it would write its own copy of the model into the folder of the source.
        quantize_dynamic(
            model,
            scratch,
            op_types_to_quantize=["MatMul"],
            per_channel=per_channel,
            reduce_range="avx2" in features and not features & {"avx512_vnni", "avx_vnni"},
            weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            # Behind an operator of onnxruntime's own, shape inference cannot tell.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return _load(scratch)


def blocks(model: ModelProto, *, bits: int, search: bool = False, block: int = BLOCK) -> ModelProto:
    """`MatMulNBits`: `block` inputs share a scale; activations get 8 bits in the same blocks (accuracy level 4).

    `search` seeks scales and zero points as llama.cpp's k-quants do, else the largest weight gives the scale.
    """
    with _quiet():
        try:
            from onnxruntime.quantization.matmul_nbits_quantizer import (
                DefaultWeightOnlyQuantConfig,
                KQuantWeightOnlyQuantConfig,
                MatMulNBitsQuantizer,
            )
        except ImportError as error:
            raise MissingExtraError("quantizing ONNX models to blocks", "quantize") from error
        if search:
            # Its zero points are packed in pairs over the ends of rows, so it fails on odd numbers of blocks.
            odd = [
                node.name
                for node in model.graph.node
                if node.op_type == "MatMul" and -(-_inputs(model, node) // block) % 2
            ]
            seeker = MatMulNBitsQuantizer(
                model,
                block_size=block,
                accuracy_level=4,
                nodes_to_exclude=odd,
                algo_config=KQuantWeightOnlyQuantConfig(),
            )
            seeker.process()
            model = seeker.model.model
        plain = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=4, bits=bits)
        quantizer = MatMulNBitsQuantizer(model, algo_config=plain)
        quantizer.process()
        made: ModelProto = quantizer.model.model
    return made


def _inputs(model: ModelProto, node: Any) -> int:
    """Rows of the stored matrix that a product has; 0 where it has none."""
    return next((tensor.dims[0] for tensor in model.graph.initializer if tensor.name == node.input[1]), 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizers print and log their progress, each in its own way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _scratch() -> Iterator[Path]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        yield Path(folder, "model.onnx")


def _load(path: Path) -> ModelProto:
    import onnx

    model: ModelProto = onnx.load(str(path))
    return model


# --- the forms --------------------------------------------------------------------------------------


def _weights_only(spelling: Literal["dequantize", "cast"]) -> Callable[[ModelProto], ModelProto]:
    return lambda model: store_tables(store_matrices(model, spelling), whole=True)


def _with_tables(made: ModelProto) -> ModelProto:
    return store_tables(made, whole=False)


ENCODER_FORMS = (
    Form("int8", "8-bit weights, a scale for each output: our kernel takes the codes", _weights_only("dequantize")),
    Form("int8-cast", "the same behind Cast and Mul, as published files have them", _weights_only("cast")),
    Form(
        "int8-dynamic",
        "8-bit activations with one scale a tensor, a weight scale each output",
        lambda model: _with_tables(dynamic(model)),
    ),
    Form(
        "int8-dynamic-tensor",
        "the same with one weight scale a matrix",
        lambda model: _with_tables(dynamic(model, per_channel=False)),
    ),
    Form(
        "int8-dynamic-unsigned",
        "int8-dynamic with unsigned weights",
        lambda model: _with_tables(dynamic(model, signed=False)),
    ),
    Form("int8-dynamic-matrices", "int8-dynamic, tables of embeddings left in floats", dynamic),
    Form(
        "int8-blocks",
        f"8-bit weights and activations in blocks of {BLOCK}",
        lambda model: _with_tables(blocks(model, bits=8)),
    ),
    Form(
        "int4",
        f"4-bit weights in blocks of {BLOCK}, tables 8-bit",
        lambda model: _with_tables(blocks(model, bits=4)),
    ),
)
DECODER_FORMS = (
    Form(
        "int4-searched",
        f"4-bit weights in blocks of {BLOCK} with zero points, sought as in k-quants; tables 8-bit",
        lambda model: _with_tables(blocks(model, bits=4, search=True)),
    ),
    Form(
        "int4",
        f"4-bit weights in blocks of {BLOCK}, symmetric, rounded to nearest; tables 8-bit",
        lambda model: _with_tables(blocks(model, bits=4)),
    ),
    Form(
        "int8-blocks",
        f"8-bit weights and activations in blocks of {BLOCK}",
        lambda model: _with_tables(blocks(model, bits=8)),
    ),
    Form(
        "int8-dynamic",
        "8-bit activations with one scale a tensor: read one token at a time",
        lambda model: _with_tables(dynamic(model)),
    ),
)
