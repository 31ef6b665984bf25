"""What each weight matrix of a GGUF model is multiplied with, seen while llama.cpp computes.

llama.cpp asks a callback about every operation of its graph; the operands are read through a mirror of
`struct ggml_tensor`, which is compared with tensors of the library's own making before anything is trusted.
Knows nothing of what is made of the activations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Event as Flag
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_sdk.engines.llama import LlamaModel
from edge_sdk.engines.llama_library import library
from edge_sdk.errors import EngineError

from .window_logits import LogitModel

Floats = NDArray[np.float32]
Visit = Callable[[str, int, Floats, NDArray[np.int32] | None], None]
"""Called with the weight's name, a number that matrices with the same input share within one evaluation, the rows
that it was multiplied with [rows, columns], and the expert of each row where the weight is a stack of experts."""

_F32, _I32 = 0, 26  # ggml's numbers of the types


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h. The fastest dimension comes first."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Operations(NamedTuple):
    """ggml's numbers of the operations that use weights."""

    multiply: int
    multiply_experts: int


class ObservedModel(LogitModel):
    """A loaded model that shows `visit` the input of each of the weights that are named."""

    def __init__(self, path: Path, *, context: int, threads: int, weights: Collection[str], visit: Visit) -> None:
        """Load `path`, whose header has been checked. Raises `EngineError` as `operations` does."""
        self._ggml, self._operations = _ggml(), operations()
        self._weights, self._visit, self._error = frozenset(weights), visit, list[BaseException]()
        observer = library().ggml_backend_sched_eval_callback(self._observe)
        LlamaModel.__init__(self, path, context=context, threads=threads, gpu_layers=0, observer=observer)
        self._worker = self._thread

    def evaluate(self, window: NDArray[np.int32], cancel: Flag | None = None) -> None:
        """Evaluate all tokens of a window but the last; `cancel` raises `KeyboardInterrupt`."""
        try:
            for _ in self.logits(window, 0, cancel):
                self._raise()
        except KeyboardInterrupt:  # so ends what was stopped, by whomever
            self._raise()
            raise

    def _raise(self) -> None:
        if self._error:
            raise self._error.pop()

    def _observe(self, address: int, ask: bool, _data: object) -> bool:
        """Asked before an operation whether it is of interest, and after it to look; no exception may pass."""
        if self._stop.is_set():
            return False
        try:
            node = GgmlTensor.from_address(address)
            if node.op not in self._operations:
                return False
            name = GgmlTensor.from_address(node.src[0]).name.decode("utf-8", "replace")
            if ask or name not in self._weights:
                return name in self._weights
            self._look(name, node)
            return True
        except BaseException as error:
            self._error[:] = [error]
            self._stop.set(True)
            return False

    def _look(self, name: str, node: GgmlTensor) -> None:
        rows = self._read(node.src[1], _F32, np.float32)
        if node.op == self._operations.multiply:
            if GgmlTensor.from_address(node.src[0]).ne[2] == 1:  # stacks that are used without routing are left out
                self._visit(name, node.src[1], rows.reshape(-1, rows.shape[-1]), None)
            return
        experts = self._read(node.src[2], _I32, np.int32)[0, 0]  # [tokens, experts of each]
        each = np.broadcast_to(rows[0], (*experts.shape, rows.shape[-1]))  # a token may have one row for them all
        self._visit(name, node.src[1], each.reshape(-1, rows.shape[-1]), experts.reshape(-1))

    def _read(self, address: int, kind: int, form: type[np.float32] | type[np.int32]) -> NDArray[Any]:
        """A tensor's elements [4 dimensions, slowest first], from wherever they lie and however they are spaced."""
        tensor = GgmlTensor.from_address(address)
        if tensor.type != kind:
            raise EngineError(f"llama.cpp keeps {tensor.name.decode('utf-8', 'replace')!r} as type {tensor.type}")
        size = self._ggml.ggml_nbytes(address)
        content = np.empty(size, np.uint8)
        self._ggml.ggml_backend_tensor_get(address, content.ctypes.data, 0, size)
        return elements(tensor, form, content)


def elements(tensor: GgmlTensor, form: type[np.generic], content: NDArray[np.uint8]) -> NDArray[Any]:
    """A tensor's bytes as its elements [4 dimensions, slowest first]; they need not lie side by side.

    >>> tensor = GgmlTensor(ne=(2, 2, 1, 1), nb=(4, 12, 24, 24))
    >>> elements(tensor, np.int32, np.arange(5, dtype=np.int32).view(np.uint8)).tolist()
    [[[[0, 1], [3, 4]]]]
    """
    return np.ndarray(tuple(tensor.ne)[::-1], form, content, strides=tuple(tensor.nb)[::-1])


@cache
def operations() -> _Operations:
    """ggml's numbers of its multiplications, after a check that `GgmlTensor` is what this library uses.

    Raises `EngineError` with the version of the package where it is not.
    """
    lib = _ggml()
    context = lib.ggml_init(_InitParams(1 << 16, None, True))
    try:
        weight, input_ = lib.ggml_new_tensor_2d(context, _F32, 3, 5), lib.ggml_new_tensor_2d(context, _F32, 3, 7)
        lib.ggml_set_name(weight, b"a weight")
        product = lib.ggml_mul_mat(context, weight, input_)
        stack, rows = lib.ggml_new_tensor_3d(context, _F32, 3, 5, 2), lib.ggml_new_tensor_3d(context, _F32, 3, 1, 7)
        ids = lib.ggml_new_tensor_2d(context, _I32, 1, 7)
        routed = lib.ggml_mul_mat_id(context, stack, rows, ids)
        made, one, other = (GgmlTensor.from_address(each) for each in (weight, product, routed))
        facts = (made.type, made.name, list(made.ne), list(made.nb), list(one.ne), one.src[:3], other.src[:3])
        expected = (
            *(_F32, b"a weight", [3, 5, 1, 1], [4, 12, 60, 60], [5, 7, 1, 1]),
            *([weight, input_, None], [stack, rows, ids]),
        )
        name = lib.ggml_op_name
        if facts != expected or (name(one.op), name(other.op)) != (b"MUL_MAT", b"MUL_MAT_ID"):
            raise EngineError(
                f"llama-cpp-python {version('llama-cpp-python')} lays out its tensors in a way that is not known",
                hint="pip install 'llama-cpp-python>=0.3.36,<0.4'",
            )
        return _Operations(one.op, other.op)
    finally:
        lib.ggml_free(context)


@cache
def _ggml() -> Any:
    """ggml's functions for tensors. Pointers are whole numbers here."""
    library()
    from llama_cpp._ggml import libggml

    pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    forms = {
        "ggml_init": (pointer, _InitParams),
        "ggml_free": (None, pointer),
        "ggml_new_tensor_2d": (pointer, pointer, number, long, long),
        "ggml_new_tensor_3d": (pointer, pointer, number, long, long, long),
        "ggml_set_name": (pointer, pointer, ctypes.c_char_p),
        "ggml_mul_mat": (pointer, pointer, pointer, pointer),
        "ggml_mul_mat_id": (pointer, pointer, pointer, pointer, pointer),
        "ggml_op_name": (ctypes.c_char_p, number),
        "ggml_nbytes": (ctypes.c_size_t, pointer),
        "ggml_backend_tensor_get": (None, pointer, pointer, ctypes.c_size_t, ctypes.c_size_t),
    }
    for name, (result, *arguments) in forms.items():
        try:
            function = getattr(libggml, name)
        except AttributeError:
            raise EngineError(
                f"llama-cpp-python {version('llama-cpp-python')} lacks {name}",
                hint="pip install 'llama-cpp-python>=0.3.36,<0.4'",
            ) from None
        function.restype, function.argtypes = result, arguments
    return libggml
