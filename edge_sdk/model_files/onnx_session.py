"""Opens ONNX files in onnxruntime, which it alone knows, and keeps errors to one line.

Before native code sees a file, its protobuf structure is walked in plain Python: a cut file is refused, and so is
one that names data outside its own folder (`../`, absolute paths, links, onnxruntime's in-memory addresses).
It knows nothing of what the tensors mean. The folder is trusted not to change between the check and the load.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import EngineError, ModelDamagedError, ModelNotFoundError

MAX_BYTES = 2**31 - 1  # what protobuf can hold; larger models keep their weights in external data
MAX_FIELDS = 2_000_000  # a real graph has thousands: some seconds of walking at most
MAX_DEPTH = 64

# Which fields of which message lead on, by the numbers of onnx.proto3. Whatever is not named here is skipped.
_INTO: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "opset": {},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX file whose structure was checked. `external` are the data files that its graph names."""

    path: Path
    external: tuple[Path, ...]
    operators: frozenset[str]

    @property
    def quantizes_activations(self) -> bool:
        """Whether activations are quantized with one scale for a whole input, as `quantize_dynamic` does.

        Then a token's result depends on what shares the run with it: on its batch, its padding, its chunk.
        """
        return any(name.startswith("DynamicQuantize") for name in self.operators)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A declared input or output. A dimension is a number, or None where it varies."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


def find_model(directory: Path) -> Path:
    """The one `*.onnx` file of a folder; of several, `model.onnx`, else `model_quantized.onnx`."""
    found = sorted(directory.glob("*.onnx"))
    if len(found) == 1:
        return found[0]
    for usual in ("model.onnx", "model_quantized.onnx"):
        if directory / usual in found:
            return directory / usual
    count = "no" if not found else str(len(found))
    raise ModelNotFoundError(f"{directory} holds {count} *.onnx files", hint="it must hold one, or model.onnx")


def inspect_onnx(path: Path) -> OnnxFile:
    """Walk the structure of an ONNX file: some milliseconds, whatever the weights weigh.

    Raises `ModelDamagedError` for what is not a whole ONNX file or names data that it must not read.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES:
            raise ModelDamagedError(f"{path} is {size} bytes, not an ONNX file", hint="pull the model again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Walk(data)
            found.message("model", 0, len(data), 0)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
    except (_Damage, UnicodeDecodeError) as error:
        raise ModelDamagedError(f"{path} is not a whole ONNX file: {error}", hint="pull the model again") from error
    if not {"graph", "opset"} <= found.seen:
        raise ModelDamagedError(f"{path} holds no ONNX graph", hint="pull the model again")
    external = tuple(_beside(path, name) for name in sorted(found.locations))
    return OnnxFile(path, external, frozenset(found.operators))


class OnnxSession:
    """A loaded model on the CPU. `run` may be called from one thread at a time or from several."""

    def __init__(self, file: OnnxFile, native: Any, runtime: ModuleType) -> None:
        self.file = file
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in map(_spec, native.get_inputs())}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in map(_spec, native.get_outputs())}
        self._native = native
        self._value = runtime.OrtValue.ortvalue_from_numpy

    @classmethod
    def open(cls, path: Path, *, threads: int) -> OnnxSession:
        """Check and load a file. No custom operators are ever registered.

        Idle threads sleep instead of spinning, and tensors go back to the allocator: a second busy process
        halves spinning threads, and an arena keeps the largest batch that ever ran.
        """
        file = inspect_onnx(path)
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False  # plans for one shape; ours vary from run to run
        options.log_severity_level = 4  # what goes wrong is raised, not printed
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            providers = ["CPUExecutionProvider"]
            native = runtime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
            return cls(file, native, runtime)
        except Exception as error:  # its classes share no base of their own
            raise EngineError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Run the graph. Feeds are arrays or values of an earlier run; results are values in native memory.

        `value.numpy()` copies one out; feeding it back copies nothing, which is what a KV cache needs.
        """
        values = {name: self._value(feed) if isinstance(feed, np.ndarray) else feed for name, feed in feeds.items()}
        try:
            return list(self._native.run_with_ort_values(list(outputs), values))
        except Exception as error:
            raise EngineError(f"onnxruntime failed on {self.file.path.name}: {_first_line(error)}") from error


def import_onnxruntime() -> ModuleType:
    """The package, or an `EngineError` that says how to get it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"onnxruntime cannot be imported: {error}", hint="run `pip install onnxruntime`"
        ) from error
    return onnxruntime  # type: ignore[no-any-return]


# --- the walk ---------------------------------------------------------------------------------------


class _Damage(ValueError):
    pass


@dataclass(slots=True)
class _Walk:
    data: mmap.mmap
    locations: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    fields: int = 0

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Damage("graphs are nested too deeply")
        into = _INTO[kind]
        for number, first, last in self._parts(start, end):
            child = into.get(number)
            if child is None:
                continue
            self.seen.add(child)
            if child == "external":
                entry = {key: self.data[at:to] for key, at, to in self._parts(first, last)}
                if entry.get(1) == b"location":
                    self.locations.add(entry.get(2, b"").decode())
            elif child == "operator":
                self.operators.add(self.data[first:last].decode())
            else:
                self.message(child, first, last, depth + 1)

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, start and end of each length-delimited field; numbers of fixed size are stepped over."""
        at = start
        while at < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise _Damage(f"more than {MAX_FIELDS} fields")
            key, at = self._varint(at)
            wire = key & 7
            if key >= 1 << 32:  # protobuf drops the high bits, so the number would mean another field there
                raise _Damage(f"byte {at} holds no field")
            if wire == 2:
                size, at = self._varint(at)
                if at + size > end:
                    raise _Damage(f"a field at byte {at} is longer than what holds it")
                yield key >> 3, at, at + size
                at += size
            elif wire == 0:
                _, at = self._varint(at)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise _Damage(f"byte {at} holds no field")
        if at != end:
            raise _Damage(f"it ends inside a field at byte {end}")

    def _varint(self, at: int) -> tuple[int, int]:
        result = 0
        for shift in range(0, 70, 7):
            if at >= len(self.data):
                break
            byte = self.data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result, at
        raise _Damage(f"a number at byte {at} does not end")


def _beside(model: Path, name: str) -> Path:
    """The data file `name` in the model's own folder: a regular file, reached through no path and no link."""
    if (
        name in ("", ".", "..")
        or "\0" in name
        or not PurePosixPath(name).name == name == PureWindowsPath(name).name
    ):
        raise ModelDamagedError(f"{model} names {name!r} as its data: only a file beside it may be read")
    path = model.parent / name
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise ModelDamagedError(f"{model} needs its data file {name!r}", hint="pull the model again") from error
    if not stat.S_ISREG(mode):
        raise ModelDamagedError(f"{model} names {name!r} as its data, which is not a regular file")
    return path


# --- small things -----------------------------------------------------------------------------------

_DTYPES = {"float": "float32", "double": "float64"}


def _spec(native: Any) -> TensorSpec:
    element = str(native.type).removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype(_DTYPES.get(element, element))
    except TypeError:  # a sequence, a map, bfloat16: nothing that we feed or read
        dtype = np.dtype(object)
    shape = tuple(size if isinstance(size, int) else None for size in native.shape or ())
    return TensorSpec(str(native.name), dtype, shape)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:240]
