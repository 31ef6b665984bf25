from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx_files import (
    decoder_tensors,
    external_tensor,
    field,
    model,
    node,
    tensor,
    value,
    varint,
    write_decoder,
    write_encoder,
)

from edge_sdk.errors import EdgeError, EngineError, ModelDamagedError, ModelError, ModelNotFoundError
from edge_sdk.model_files.onnx_session import MAX_DEPTH, OnnxSession, find_model, inspect_onnx

_OUTPUT = value("y", "float32", [2, 2])


def _negation(tensors: list[bytes]) -> bytes:
    return model([node("Neg", ["x"], "y")], tensors, [], [_OUTPUT])


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_whole_file_is_loaded_and_run(tmp_path: Path) -> None:
    table = np.array([[1, 2], [3, 4]], np.float32)
    session = OnnxSession.open(_write(tmp_path / "m.onnx", _negation([tensor("x", table)])), threads=1)
    assert np.array_equal(session.run(["y"], {})[0].numpy(), -table)
    assert session.outputs["y"].shape == (2, 2)
    assert session.file.operators == {"Neg"}


def test_every_cut_is_refused_before_native_code(tmp_path: Path) -> None:
    whole = _negation([tensor("x", np.ones((2, 2), np.float32))])
    for size in range(len(whole)):
        with pytest.raises(ModelDamagedError) as caught:
            inspect_onnx(_write(tmp_path / "m.onnx", whole[:size]))
        assert "\n" not in str(caught.value) and "m.onnx" in str(caught.value)
    inspect_onnx(_write(tmp_path / "m.onnx", whole))


@given(content=st.binary(max_size=400))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    assume(not {ord(":"), ord("B")} <= set(content))  # the tags of the two fields that a model must have
    with pytest.raises(ModelDamagedError):
        inspect_onnx(_write(tmp_path / "m.onnx", content))


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_file_ends_in_a_model_error_or_a_check_passed(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(_negation([external_tensor("x", (2, 2), "m.data")]))
    for at, byte in flips:
        content[at % len(content)] = byte
    (tmp_path / "m.data").write_bytes(bytes(16))
    try:
        file = inspect_onnx(_write(tmp_path / "m.onnx", bytes(content)))
    except ModelError:
        return
    assert set(file.external) <= {tmp_path / "m.data", tmp_path / "m.onnx"}


@pytest.mark.parametrize(
    "location",
    [
        "../outside.data",
        "/etc/hostname",
        "sub/inside.data",
        "sub\\inside.data",
        "C:outside.data",
        "",
        ".",
        "..",
        "./m.data",
        "m.data/../m.data",
        "m\0.data",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "outside.data").write_bytes(bytes(16))
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "inside.data").write_bytes(bytes(16))
    (folder / "m.data").write_bytes(bytes(16))
    path = _write(folder / "m.onnx", _negation([external_tensor("x", (2, 2), location)]))
    with pytest.raises(ModelDamagedError, match="only a file beside it"):
        inspect_onnx(path)


@pytest.mark.parametrize("hidden_in", ["attribute", "sparse", "subgraph", "function", "sparse attribute"])
def test_external_data_is_found_wherever_it_hides(tmp_path: Path, hidden_in: str) -> None:
    bad = external_tensor("x", (2, 2), "../outside.data")
    sparse = field(1, bad)
    graph_parts = {
        "attribute": field(1, field(5, field(5, bad)) + field(4, "Constant")),
        "sparse": field(15, sparse),
        "subgraph": field(1, field(5, field(6, field(5, bad))) + field(4, "If")),
        "sparse attribute": field(1, field(5, field(22, sparse)) + field(4, "Constant")),
    }
    function = field(25, field(7, field(5, field(5, bad)))) if hidden_in == "function" else b""
    content = field(7, graph_parts.get(hidden_in, b"")) + field(8, field(2, 17)) + function
    with pytest.raises(ModelDamagedError, match="only a file beside it"):
        inspect_onnx(_write(tmp_path / "m.onnx", content))


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    table = np.arange(4, dtype=np.float32).reshape(2, 2)
    (tmp_path / "m.data").write_bytes(table.tobytes())
    path = _write(tmp_path / "m.onnx", _negation([external_tensor("x", (2, 2), "m.data")]))
    session = OnnxSession.open(path, threads=1)
    assert session.file.external == (tmp_path / "m.data",)
    assert np.array_equal(session.run(["y"], {})[0].numpy(), -table)


@pytest.mark.parametrize("kind", ["missing", "symlink", "folder", "fifo"])
def test_external_data_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    data = folder / "m.data"
    (tmp_path / "target").write_bytes(bytes(16))
    if kind == "symlink":
        data.symlink_to(tmp_path / "target")
    elif kind == "folder":
        data.mkdir()
    elif kind == "fifo":
        os.mkfifo(data)
    path = _write(folder / "m.onnx", _negation([external_tensor("x", (2, 2), "m.data")]))
    with pytest.raises(ModelDamagedError, match=r"m\.data"):
        inspect_onnx(path)


def test_a_field_number_beyond_32_bits_does_not_hide_a_field(tmp_path: Path) -> None:
    graph = field(5, external_tensor("x", (2, 2), "../outside.data"))
    hidden = varint((7 << 3 | 2) | 1 << 32) + varint(len(graph)) + graph
    content = field(7, b"") + hidden + field(8, field(2, 17))
    with pytest.raises(ModelDamagedError, match="holds no field"):
        inspect_onnx(_write(tmp_path / "m.onnx", content))


def test_graphs_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(MAX_DEPTH):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(ModelDamagedError, match="nested"):
        inspect_onnx(_write(tmp_path / "m.onnx", field(7, graph) + field(8, field(2, 17))))


@pytest.mark.parametrize("change", [(b"Neg", b"Nag"), (b"\x01y", b"\x01\xff")])  # an operator, a name
def test_a_graph_that_the_runtime_refuses_is_one_line_and_prints_nothing(
    tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    content = _negation([tensor("x", np.ones((2, 2), np.float32))]).replace(*change)
    path = _write(tmp_path / "m.onnx", content)
    code = (
        "import sys; from pathlib import Path; from edge_sdk.model_files.onnx_session import OnnxSession\n"
        "from edge_sdk.errors import EdgeError\n"
        "try: OnnxSession.open(Path(sys.argv[1]), threads=1)\n"
        "except EdgeError as error: assert '\\n' not in str(error), error\n"
        "else: raise SystemExit('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_feed_is_an_engine_error(tmp_path: Path) -> None:
    write_encoder(tmp_path, np.ones((259, 4), np.float32))
    session = OnnxSession.open(tmp_path / "model.onnx", threads=1)
    with pytest.raises(EngineError, match=r"model\.onnx"):
        session.run(["last_hidden_state"], {"input_ids": np.zeros((1, 1), np.int64)})


def test_dynamic_quantization_is_seen(tmp_path: Path) -> None:
    write_encoder(tmp_path / "plain", np.ones((259, 4), np.float32))
    write_encoder(tmp_path / "quantized", np.ones((259, 4), np.float32), quantized=True)
    assert not inspect_onnx(tmp_path / "plain" / "model.onnx").quantizes_activations
    assert inspect_onnx(tmp_path / "quantized" / "model.onnx").quantizes_activations


def test_the_model_of_a_folder_is_found_or_named_as_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no"):
        find_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match="holds no"):
        find_model(tmp_path / "nowhere")
    (tmp_path / "a.onnx").touch()
    assert find_model(tmp_path).name == "a.onnx"
    (tmp_path / "b.onnx").touch()
    with pytest.raises(ModelNotFoundError, match="holds 2"):
        find_model(tmp_path)
    (tmp_path / "model_quantized.onnx").touch()
    assert find_model(tmp_path).name == "model_quantized.onnx"
    (tmp_path / "model.onnx").touch()
    assert find_model(tmp_path).name == "model.onnx"


def test_a_missing_file_and_a_folder_are_model_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.onnx", tmp_path):
        with pytest.raises(ModelError):
            inspect_onnx(path)


@pytest.mark.campaign
def test_two_thousand_mutants_load_or_end_in_one_line(tmp_path: Path) -> None:
    """Bytes of the structure, not of the weights, are changed; a crash of the runtime would end the test run."""
    tensors = decoder_tensors(width=2, context=8)
    write_decoder(tmp_path, tensors)
    path = tmp_path / "model.onnx"
    whole = path.read_bytes()
    weights = [(whole.find(array.tobytes()), array.nbytes) for array in tensors.values()]
    places = [at for at in range(len(whole)) if not any(start <= at < start + size for start, size in weights)]
    random, ends = np.random.default_rng(0), {"loaded": 0, "refused": 0}
    for _ in range(2000):
        content = bytearray(whole)
        for at in random.choice(places, size=random.integers(1, 5)):
            content[at] = random.integers(256)
        path.write_bytes(content)
        try:
            OnnxSession.open(path, threads=1)
            ends["loaded"] += 1
        except EdgeError as error:
            assert "\n" not in str(error)
            ends["refused"] += 1
    assert min(ends.values()) > 20, ends
