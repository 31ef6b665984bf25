"""Recipes: strict reading, and the whole way from documents and a teacher to an answer from the signed bundle."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import tiny_llama
from loopback import Loopback
from made_recipes import merged, teach, toml, write_bert_folder, write_documents, write_intents

from edge_sdk.bundle.cache import open_bundle, verify_bundle
from edge_sdk.bundle.signature import make_keys
from edge_sdk.cli import main
from edge_sdk.errors import ConfigError
from quantize.gguf_models.tensors import GgufModel
from quantize.recipes.recipe import read_recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "distill.toml"


def write(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "recipe.toml"
    path.write_text(toml(merged(tomllib.loads(EXAMPLE.read_text("utf-8")), changes)), encoding="utf-8")
    return path


def test_the_example_has_the_values_that_it_calls_defaults(tmp_path: Path) -> None:
    found = read_recipe(EXAMPLE)
    least = write(tmp_path, {})
    least.write_text('name = "manuals"\n[teacher]\nmodel = "qwen2.5-coder-1.5b-instruct"\n[data]\ndocuments = "x"\n'
                     "[reader]\n[decoder]\n[encoder]\n")  # fmt: skip
    default = read_recipe(least)
    assert found.work == EXAMPLE.parent / "work"
    assert (found.teacher, found.reader, found.decoder, found.encoder) == (
        default.teacher,
        default.reader,
        default.decoder,
        default.encoder,
    )


def test_paths_may_hold_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DATA", str(tmp_path / "data"))
    recipe = read_recipe(write(tmp_path, {"data": {"documents": "$EDGE_DATA/manuals"}}))
    assert recipe.data.documents == (tmp_path / "data" / "manuals",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "My Manuals"}, "recipe.toml.name is 'My Manuals'"),
        ({"nme": "x"}, "recipe.toml has an unknown key nme; did you mean name?"),
        ({"path": "x"}, "recipe.toml has an unknown key path"),
        ({"reader": {"epochs": 0}}, "recipe.toml.reader.epochs is 0, not from 1 to 1000"),
        ({"decoder": {"method": "half"}}, "recipe.toml.decoder.method is 'half'; use one of adapter, full"),
        ({"decoder": {"extractive": True}}, "recipe.toml.decoder is extractive but has no evidence_tokens"),
        ({"teacher": {"remote": "http://x"}}, "recipe.toml.teacher needs either a model or a remote"),
        ({"teacher": {"model": None, "remote": "http://x"}}, "has a remote but no remote_model"),
        ({"teacher": {"budget": "1.00/total"}}, "has a budget but no prices"),
        ({"teacher": {"prices": "cheap"}}, "the prices 'cheap' are not two"),
        ({"teacher": None}, "has documents but no teacher"),
        ({"data": {"held_out": 0.5, "calibration": 0.5}}, "leaves nothing to learn from"),
        ({"reader": None, "decoder": None, "encoder": None}, "recipe.toml makes nothing"),
        (
            {"reader": None, "decoder": {"start": "a.edge", "extractive": True, "evidence_tokens": 64}},
            "recipe.toml.decoder chooses beside a reader that [bundle] would not hold",
        ),
        ({"work": "$NO_SUCH_FOLDER/work"}, "recipe.toml.work names $NO_SUCH_FOLDER, which is not set"),
        ({"head": {"A B": {"examples": "x"}}}, "recipe.toml.head"),
        ({"work": "manuals/work"}, "would read what it writes"),
        ({"bundle": {"out": "manuals/m.edge"}}, "would read what it writes"),
        ({"data": {"documents": None, "unlabelled": "q.jsonl"}}, "has questions to answer but no documents"),
        ({"evaluate": {"floor": {"token_f1": "good"}}}, "recipe.toml.evaluate.floor.token_f1 is 'good'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write(tmp_path, {})
    if "head" in changes:
        path.write_text(path.read_text() + '\n[head."A B"]\nexamples = "x"\n')
    else:
        path = write(tmp_path, changes)
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# --- the whole way ----------------------------------------------------------------------------------


class Workshop:
    """A recipe over tiny models, with its teacher behind HTTP."""

    def __init__(self, folder: Path, teacher: Loopback) -> None:
        self.folder, self.teacher = folder, teacher
        self.home, self.out = folder / "home", folder / "manuals.edge"
        write_documents(folder / "manuals", 14)
        tiny = str(write_bert_folder(folder / "tiny-bert"))
        decoder = str(tiny_llama(folder / "tiny-f32.gguf", context=4096))
        intents = str(write_intents(folder / "intents.jsonl"))
        self.public, _ = make_keys(folder / "key")
        self.recipe = write(
            folder,
            {
                "teacher": {"model": None, "remote": teacher.url, "remote_model": "lamp", "prices": "1.00/2.00",
                            "budget": "0.50/total"},
                "data": {"encoder": tiny, "unanswerable": 0.3, "calibration": 0.2},
                "reader": {"base": tiny, "epochs": 2, "tokens": 4096, "learning_rate": 0.01},
                "decoder": {"base": decoder, "epochs": 1, "rank": 2, "prompt_tokens": 2000,
                            "evidence_tokens": 60, "extractive": True},
                "encoder": {"base": tiny, "dimension": 8},
                "head": {"intent": {"examples": intents, "test": intents, "base": tiny}},
                "evaluate": {"questions": 20, "floor": {"token_f1": 0.0}},
                "bundle": {"key": "key"},
            },
        )  # fmt: skip

    def distill(self, *more: str) -> int:
        return main(["distill", str(self.recipe), "--home", str(self.home), "--threads", "1", *more])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    for package in ("torch", "onnx", "cryptography", "llama_cpp", "matplotlib"):
        pytest.importorskip(package)
    with Loopback(teach) as teacher:
        yield Workshop(tmp_path_factory.mktemp("recipe"), teacher)


@contextmanager
def rewriting(workshop: Workshop) -> Iterator[str]:
    """The text of its recipe, which is put back afterwards."""
    text = workshop.recipe.read_text()
    try:
        yield text
    finally:
        workshop.recipe.write_text(text)


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_documents_and_a_teacher_become_a_signed_bundle_that_answers(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workshop.distill("--plan", "--json") == 0
    states = {each["name"]: each["state"] for each in document(capsys)["stages"]}
    assert states["passages"] == "to do" and states["pack"] == "waits"

    assert workshop.distill("--json") == 0, capsys.readouterr().err
    made = document(capsys)
    figures = {each["stage"]: each["figures"] for each in made["stages"]}
    assert list(figures) == ["passages", "teacher", "data", "curate", "reader", "reader-export", "decoder",
                             "decoder-export", "encoder", "head-intent", "assemble", "calibrate", "evaluate",
                             "pack"]  # fmt: skip
    assert figures["passages"]["passages"] == 14 and figures["teacher"]["kept"] == 42
    assert 0 < made["cost"] < 0.5
    assert set(figures["pack"]["roles"]) == {
        "adapter:default",
        "decoder",
        "encoder",
        "evaluation",
        "head:intent",
        "reader",
    }
    assert "too few" in figures["calibrate"]["why"]
    found = figures["evaluate"]["figures"]
    assert found["decoder"] and found["tiny-f32, untrained"]
    assert found["lamp (teacher)"]["token_f1"] == 1.0 and found["lamp (teacher)"]["cites_right"] == 1.0
    assert found["best sentence (no model)"]["token_f1"] < 0.6
    checked = verify_bundle(workshop.out, workshop.home, require_signature=True, keys=[workshop.public])
    assert checked.inspection.manifest.figures["figures"] == found

    report = next(Path(each["folder"]) for each in made["stages"] if each["stage"] == "evaluate")
    page = (report / "report.html").read_text("utf-8")
    assert "<svg" in page and "src=" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert "best sentence" in (report / "report.md").read_text("utf-8")

    store = str(workshop.folder / "store.db")
    shared = ["--home", str(workshop.home), "--store", store, "--bundle", str(workshop.out), "--json"]
    assert main(["add", str(workshop.folder / "manuals"), *shared]) == 0
    capsys.readouterr()
    question = "Who built the lighthouse of Norrin?"
    assert main(["ask", question, *shared, "--max-tokens", "8", "--when-unsure", "local"]) == 0
    answer = document(capsys)
    assert answer["route"] == "local" and answer["model"] == "tiny-f32"
    assert answer["hits"] and "reader" in str(sorted(answer["signals"]))
    assert any(reason.startswith("read sentences of") for reason in answer["reasons"])


def test_a_second_run_makes_and_asks_nothing(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.distill("--json")
    capsys.readouterr()
    asked, before = len(workshop.teacher.requests), workshop.out.stat().st_mtime_ns
    assert workshop.distill("--json") == 0
    made = document(capsys)
    assert all(each["cached"] for each in made["stages"]) and made["cost"] == 0
    assert len(workshop.teacher.requests) == asked and workshop.out.stat().st_mtime_ns == before


def test_a_reader_learns_more_from_that_of_a_bundle(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.distill("--json")
    with rewriting(workshop) as text:
        copy = workshop.folder / "earlier.edge"
        copy.write_bytes(workshop.out.read_bytes())
        workshop.recipe.write_text(text.replace("[reader]", "[reader]\nstart = 'earlier.edge'"))
        capsys.readouterr()
        assert workshop.distill("--until", "reader-export", "--json") == 0
        stages = {each["stage"]: each for each in document(capsys)["stages"]}
        assert stages["curate"]["cached"] and not stages["reader"]["cached"]
        workshop.recipe.write_text(text.replace("[reader]", "[reader]\nstart = 'none.edge'"))
        assert workshop.distill("--until", "reader-export") == 1
        assert "there is no bundle" in capsys.readouterr().err
        workshop.recipe.write_text(text.replace("[reader]", "[reader]\nstart = 'manuals.edge'"))
        assert workshop.distill() == 1
        assert "would start from what it writes" in capsys.readouterr().err


def test_a_decoder_goes_on_from_the_adapter_of_a_bundle(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.distill("--json")
    with rewriting(workshop) as text:
        copy = workshop.folder / "before.edge"
        copy.write_bytes(workshop.out.read_bytes())
        slowly = "[decoder]\nstart = 'before.edge'\nlearning_rate = 1e-7"
        workshop.recipe.write_text(text.replace("[decoder]", slowly))
        capsys.readouterr()
        assert workshop.distill("--until", "decoder-export", "--json") == 0
        stages = {each["stage"]: each for each in document(capsys)["stages"]}
        assert stages["reader-export"]["cached"] and not stages["decoder"]["cached"]
        (shipped,) = open_bundle(copy, workshop.home).paths("adapter:default")
        before, after = GgufModel(shipped), GgufModel(Path(stages["decoder-export"]["folder"]) / "adapter.gguf")
        for name in before.tensors:
            np.testing.assert_allclose(after.floats(name), before.floats(name), atol=1e-3)
        begun = text.replace("[decoder]", "[decoder]\nstart = 'before.edge'")
        workshop.recipe.write_text(begun.replace("rank = 2", "rank = 3"))
        assert workshop.distill("--plan") == 1
        assert "holds an adapter of rank 2 and alpha 4, not 3 and 6" in capsys.readouterr().err
        workshop.recipe.write_text(begun.replace('method = "adapter"', 'method = "full"'))
        assert workshop.distill() == 1
        assert "starts from an adapter but trains all weights" in capsys.readouterr().err
        workshop.recipe.write_text(text.replace("[decoder]", "[decoder]\nstart = 'manuals.edge'"))
        assert workshop.distill() == 1
        assert "would start from what it writes" in capsys.readouterr().err


def test_a_decoder_without_a_reader_of_its_own_learns_and_is_judged_beside_that_of_its_bundle(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.distill("--json")
    stages = {each["stage"]: each for each in document(capsys)["stages"]}
    values = tomllib.loads(workshop.recipe.read_text("utf-8"))
    examples = str(Path(stages["data"]["folder"]) / "examples.jsonl")
    alone = {
        "name": "again",
        "data": {"examples": examples, "encoder": values["data"]["encoder"], "held_out": 0.3},
        "decoder": values["decoder"] | {"start": "manuals.edge"},
        "evaluate": {"questions": 4},
    }  # fmt: skip
    path = workshop.folder / "again.toml"
    path.write_text(toml(alone))
    code = main(["distill", str(path), "--home", str(workshop.home), "--threads", "1", "--json"])
    assert code == 0, capsys.readouterr().err
    made = {each["stage"]: each for each in document(capsys)["stages"]}
    assert "reader" not in made and made["decoder"]["figures"]["finished"]
    report = json.loads((Path(made["evaluate"]["folder"]) / "evaluation.json").read_text())
    sizes = {name: system["megabytes"] for name, system in report["systems"].items()}
    reader = open_bundle(workshop.out, workshop.home).directory("reader")
    assert reader is not None
    beside = sum(each.stat().st_size for each in reader.iterdir()) / 1e6
    assert sizes["decoder"] > beside + (workshop.folder / "tiny-f32.gguf").stat().st_size / 1e6


def test_what_was_asked_once_is_not_asked_for_other_rules(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer passages: other stages, the same replies."""
    workshop.distill("--until", "teacher", "--json")
    asked = len(workshop.teacher.requests)
    with rewriting(workshop) as text:
        workshop.recipe.write_text(text.replace("[data]", "[data]\npassages = 10"))
        capsys.readouterr()
        assert workshop.distill("--until", "curate", "--json") == 0
    made = {each["stage"]: each for each in document(capsys)["stages"]}
    assert made["passages"]["figures"]["passages"] == 10 and not made["teacher"]["cached"]
    assert len(workshop.teacher.requests) == asked
