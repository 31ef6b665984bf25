"""`edge bundle` from the command line, and the runtime that takes models and calibrations from a bundle."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_files import make_bundle, make_parts, recipe
from made_calibrations import calibration

from edge_sdk import loading
from edge_sdk.bundle.manifest import Sampling
from edge_sdk.cli import main
from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.confidence.setup import Setup
from edge_sdk.config import Settings, load_settings
from edge_sdk.edge import Edge
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.errors import BundleError, ModelNotFoundError, SignatureError
from edge_sdk.fakes import FakeEngine
from edge_sdk.prompt import Reading
from edge_sdk.records import GenerateOptions
from quantize.pack import Part, build_bundle

pytest.importorskip("cryptography")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def as_json(run: Run, *arguments: str | Path) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def failed(run: Run, *arguments: str | Path) -> str:
    code, _, err = run(*arguments)
    assert code == 1
    assert err.startswith("edge: ") and err.count("\n") == 1
    return err


# --- the commands -----------------------------------------------------------------------------------


def build(parts: list[Part], out: Path, *more: str | Path) -> list[str | Path]:
    by_role = {part.role: part for part in parts}
    arguments: list[str | Path] = ["bundle", "build", out, "--name", "demo", "--version", "1.0"]
    for role in ("decoder", "encoder", "calibration", "evaluation", "measurements"):
        arguments += [f"--{role}", by_role[role].path]
    return [*arguments, "--licence-text", by_role["licence"].path, *more]


def test_a_bundle_from_key_to_verified(run: Run, home: Path, tmp_path: Path) -> None:
    parts, out, key = make_parts(tmp_path / "parts"), tmp_path / "demo.edge", tmp_path / "key"
    (tmp_path / "figures.json").write_text('{"kld_mean": 0.004}')
    licences = ("--licence", "Apache-2.0", "--licence", "encoder=MIT")
    made = as_json(run, *build(parts, out, *licences, "--figures", tmp_path / "figures.json"))
    again = as_json(run, *build(parts, tmp_path / "b.edge", *licences, "--figures", tmp_path / "figures.json"))
    assert made["id"] == again["id"]
    assert out.read_bytes() == (tmp_path / "b.edge").read_bytes()
    assert as_json(run, "bundle", "keygen", key)["public_key"] == str(tmp_path / "key.pub")

    found = as_json(run, "bundle", "inspect", out)
    assert found["signature"] == {"state": "unsigned", "key": "", "name": ""}
    assert (found["licence"], found["figures"]) == ("Apache-2.0 AND MIT", {"kld_mean": 0.004})
    assert {each["licence"] for each in found["files"] if each["role"] == "encoder"} == {"MIT"}
    assert found["decoder"]["architecture"] == "llama"
    assert not home.exists()

    assert as_json(run, "bundle", "sign", out, "--key", key)["signature"]["state"] == "unknown key"
    assert "is required" in failed(run, "bundle", "verify", out, "--require-signature")
    checked = as_json(run, "bundle", "verify", out, "--require-signature", "--key", tmp_path / "key.pub")
    assert checked["signature"]["name"] == "key"
    assert len(checked["checked"]) == 7
    (home / "trusted_keys").mkdir(parents=True)
    (tmp_path / "key.pub").rename(home / "trusted_keys" / "maker.pub")
    assert as_json(run, "bundle", "inspect", out, "--require-signature")["signature"]["name"] == "maker"


def test_what_people_read_names_every_file_and_the_signature(run: Run, bundle: Path) -> None:
    _, out, _ = run("bundle", "inspect", bundle)
    for words in ("demo 1.0, Apache-2.0 AND CC-BY-4.0 AND MIT", "not signed", "tiny: llama, F32, gguf", "kld_mean"):
        assert words in out
    for path in ("decoder/tiny-f32.gguf", "encoder/model.onnx", "evaluation/questions.jsonl"):
        assert path in out
    _, out, _ = run("bundle", "verify", bundle)
    assert "decoder/tiny-f32.gguf" in out and "GGUF of 11 tensors, llama" in out and "is sound: 7 files" in out


def test_figures_of_strangers_do_not_reach_the_terminal_as_they_are(run: Run, tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "parts")
    build_bundle(recipe(parts, figures={"\x1b[2J": "\x1b]0;evil\x07 [red]"}), tmp_path / "a.edge")
    _, out, _ = run("bundle", "inspect", tmp_path / "a.edge")
    assert "\\u001b[2J" in out and "[red]" in out
    assert not set(out) & {"\x1b", "\x07"}


def test_bad_input_is_one_line_with_the_next_step(run: Run, bundle: Path, tmp_path: Path) -> None:
    parts, out = make_parts(tmp_path / "parts"), tmp_path / "x.edge"
    assert "give --licence decoder=SPDX" in failed(run, *build(parts, out))
    assert "two things" in failed(run, *build(parts, out, "--licence", "MIT", "--licence", "X"))
    assert "write --head NAME=PATH" in failed(run, *build(parts, out, "--licence", "MIT", "--head", "x"))
    assert "created is 'today'" in failed(run, *build(parts, out, "--licence", "MIT", "--date", "today"))
    nothing = tmp_path / "none.json"
    assert "none.json cannot be read" in failed(run, *build(parts, out, "--licence", "MIT", "--figures", nothing))
    words = tmp_path / "parts" / "words"
    wrong = failed(
        run, "bundle", "build", out, "--name", "d", "--version", "1", "--decoder", words, "--licence", "MIT"
    )
    assert "words has the role encoder, not decoder" in wrong
    assert not out.exists()
    (tmp_path / "bad.edge").write_bytes(bundle.read_bytes()[:-1])
    for command in ("inspect", "verify"):
        assert "bad.edge is not a sound bundle" in failed(run, "bundle", command, tmp_path / "bad.edge")
        assert "there is no bundle" in failed(run, "bundle", command, tmp_path / "none.edge")
    assert "no private key" in failed(run, "bundle", "sign", bundle, "--key", bundle)
    assert run("bundle", "build", out)[0] == 2
    assert run("bundle")[0] == 2


# --- the runtime ------------------------------------------------------------------------------------


def settings(home: Path, **flags: object) -> Settings:
    return load_settings({"home": home, "offline": True, **flags}, {})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the GGUF engine was opened with; a fake is opened instead."""
    seen: list[dict[str, Any]] = []

    def fake(path: Path, **options: Any) -> FakeEngine:
        seen.append({"path": path, **options})
        return FakeEngine(lambda prompt: "An answer.", name=options["name"])

    monkeypatch.setattr(GgufEngine, "open", fake)
    return seen


def test_models_and_how_to_use_them_come_from_the_bundle(
    home: Path, bundle: Path, opened: list[dict[str, Any]]
) -> None:
    found = settings(home, bundle=bundle)
    engine, reading = loading.load_engine(found)
    encoder = loading.load_encoder(found)
    manifest = loading.load_bundle(found).manifest  # type: ignore[union-attr]
    assert engine.name == "tiny"
    assert reading == Reading()
    assert opened[0]["context"] == 256  # as tested, not the default of 4,096
    assert opened[0]["sha256"] == manifest.of("decoder")[0].sha256
    assert opened[0]["path"].parent.parent == home / "bundles" / manifest.id
    assert manifest.encoder is not None
    assert (encoder.fingerprint, encoder.dimension) == (manifest.encoder.fingerprint, 4)
    assert loading.load_sampling(found) == GenerateOptions()


def test_a_bundle_as_a_folder_serves_as_well(
    home: Path, bundle: Path, tmp_path: Path, opened: list[dict[str, Any]]
) -> None:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "folder")
    loading.load_engine(settings(home, bundle=tmp_path / "folder"))
    assert opened[0]["path"] == tmp_path / "folder" / "decoder" / "tiny-f32.gguf"


def test_what_is_given_beside_the_bundle_comes_first(
    home: Path, bundle: Path, tmp_path: Path, opened: list[dict[str, Any]]
) -> None:
    parts = make_parts(tmp_path / "own")
    own, words = parts[0].path, parts[1].path
    loading.load_engine(settings(home, bundle=bundle, model=str(own), context=100))
    assert (opened[0]["path"], opened[0]["context"], opened[0]["template"]) == (own, 100, None)
    loading.load_engine(settings(home, bundle=bundle, context=100))
    assert (opened[1]["path"].name, opened[1]["context"]) == ("tiny-f32.gguf", 100)
    assert loading.load_encoder(settings(home, bundle=bundle, encoder=str(words))).name == "words"  # type: ignore[attr-defined]
    weaker = load_settings({"home": home, "bundle": bundle}, {"EDGE_MODEL": str(own), "EDGE_CONTEXT": "100"})
    loading.load_engine(weaker)  # a flag wins over the environment
    assert (opened[2]["path"].parent.parent.parent, opened[2]["context"]) == (home / "bundles", 256)


def test_a_part_that_the_bundle_lacks_comes_from_the_settings(home: Path, tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "parts")
    build_bundle(recipe([parts[1]]), tmp_path / "encoder-only.edge")
    found = settings(home, bundle=tmp_path / "encoder-only.edge")
    assert loading.load_encoder(found).dimension == 4
    with pytest.raises(ModelNotFoundError, match="no language model is present"):
        loading.load_engine(found)


def test_sampling_template_and_reading_are_the_bundles(
    home: Path, tmp_path: Path, opened: list[dict[str, Any]]
) -> None:
    parts = make_parts(tmp_path / "parts")
    (tmp_path / "own.jinja").write_text("{{ own }}")
    made = recipe(
        [*parts[:2], Part("template", tmp_path / "own.jinja", "MIT")],
        sampling=Sampling(temperature=0.5),
        reading=Reading(330, False, 90, True),
    )
    build_bundle(made, tmp_path / "b.edge")
    found = settings(home, bundle=tmp_path / "b.edge", store=tmp_path / "s.db")
    assert loading.load_engine(found)[1] == Reading(330, False, 90, True)
    assert opened[0]["template"] == "{{ own }}"
    with Edge.open(settings=found) as edge:
        assert edge.drafter.sampling == GenerateOptions(temperature=0.5)


def test_a_calibration_of_the_bundle_is_found_behind_the_users_own(
    home: Path, tmp_path: Path, opened: list[dict[str, Any]]
) -> None:
    parts = make_parts(tmp_path / "parts")
    build_bundle(recipe(parts[:2]), tmp_path / "first.edge")
    flags = {"bundle": tmp_path / "first.edge", "store": tmp_path / "s.db"}
    with Edge.open(settings=settings(home, **flags)) as edge:
        assert edge.calibrations is not None and edge.calibrations.is_empty()
        setup = edge.setup()
    sha = settings_sha(tmp_path / "first.edge")
    setup = Setup({**setup.parts, "model": sha})  # the fake engine has a fingerprint of its own
    path = Calibrations(tmp_path / "made").save(calibration(setup=setup))
    build_bundle(recipe([*parts[:2], Part("calibration", path, "MIT")]), tmp_path / "second.edge")
    with Edge.open(settings=settings(home, **{**flags, "bundle": tmp_path / "second.edge"})) as edge:
        assert edge.calibrations is not None
        found, _ = edge.calibrations.find(setup)
        assert found is not None and found.created == "2026-01-02"
        edge.calibrations.save(replace(found, created="2026-02-02"))
        own, _ = edge.calibrations.find(setup)
        assert own is not None and own.created == "2026-02-02"
    assert [each.name for each in (home / "calibrations").iterdir()] == [path.name]


def settings_sha(bundle: Path) -> str:
    from edge_sdk.bundle.cache import inspect_bundle

    return inspect_bundle(bundle, bundle.parent).manifest.of("decoder")[0].sha256


def test_an_encoder_that_is_not_the_one_described_is_refused(
    home: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_sdk.fakes import FakeEncoder

    monkeypatch.setattr("edge_sdk.encoders.encoders.open_encoder", lambda *_, **__: FakeEncoder(4))
    with pytest.raises(BundleError, match="has the fingerprint"):
        loading.load_encoder(settings(home, bundle=bundle))


def test_a_required_signature_is_required_everywhere(home: Path, bundle: Path, tmp_path: Path) -> None:
    found = settings(home, bundle=bundle, require_signature="1", store=tmp_path / "s.db")
    for load in (loading.load_engine, loading.load_encoder, loading.load_calibrations, loading.load_sampling):
        with pytest.raises(SignatureError):
            load(found)
    with pytest.raises(SignatureError):
        Edge.open(settings=found)
    assert not (tmp_path / "s.db").exists()


def test_documents_are_added_and_found_with_the_bundles_encoder(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("The red lever stops the pump.")
    where = ("--store", tmp_path / "s.db", "--bundle", bundle)
    assert as_json(run, "add", tmp_path / "note.txt", *where)["added"] == 1
    assert run("search", "Which lever stops the pump?", *where)[0] == 0
    bad = tmp_path / "bad.edge"
    bad.write_bytes(bundle.read_bytes()[:-1])
    assert "not a sound bundle" in failed(run, "search", "lever", "--store", tmp_path / "s.db", "--bundle", bad)


def test_the_doctor_says_what_comes_from_the_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    _, out, _ = run("doctor", "--bundle", bundle)
    assert "tiny, from the bundle" in out and "words, from the bundle" in out and "not signed" in out
    assert "no language model" not in out
    words = tmp_path / "parts" / "words"
    make_parts(tmp_path / "parts")
    _, out, _ = run("doctor", "--bundle", bundle, "--encoder", words)
    assert f"{words} (flag) instead of the bundle's words" in out
    _, out, _ = run("doctor", "--bundle", tmp_path / "none.edge")
    assert "there is no bundle" in out


@pytest.mark.model
def test_a_question_is_answered_from_a_bundle_of_real_models(
    run: Run, smollm2_path: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    """The catalog's models are nowhere in this home: both come from the bundle."""
    out = tmp_path / "real.edge"
    models = (
        "--decoder",
        smollm2_path,
        "--encoder",
        minilm_dir,
        "--licence",
        "Apache-2.0",
        "--prompt-tokens",
        "330",
        "--evidence-tokens",
        "120",
        "--extractive",
    )
    made = as_json(run, "bundle", "build", out, "--name", "real", "--version", "1", *models, "--plain")
    assert (made["decoder"]["architecture"], made["encoder"]["dimension"]) == ("llama", 384)
    assert (made["decoder"]["prompt_tokens"], made["decoder"]["evidence_tokens"]) == (330, 120)
    assert made["decoder"]["extractive"]
    (tmp_path / "note.txt").write_text("The kettle is switched off by pressing the red lever.")
    where = ("--store", tmp_path / "s.db", "--bundle", out, "--offline")
    as_json(run, "add", tmp_path / "note.txt", *where)
    answer = as_json(run, "ask", "How is the kettle switched off?", *where, "--max-tokens", "24")
    assert answer["route"] == "local"
    assert answer["text"]
    assert answer["model"] == made["decoder"]["name"]
