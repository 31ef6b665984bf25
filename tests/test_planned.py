"""Files by budget, by bound and by plan, from a tiny model to the end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf_files import tiny_llama

from edge_sdk.cli import main
from edge_sdk.errors import ConfigError
from edge_sdk.model_files.gguf_header import read_header
from edge_sdk.prompt import Reading
from quantize.gguf_models import planned
from quantize.gguf_models.allocation import Plan
from quantize.gguf_models.planned import quantize_by_plan, quantize_to_bound
from quantize.gguf_models.workbench import Workbench, language_reference

WORDS = "river stone winter garden music window paper bridge market silver forest morning".split()
TEXT = " ".join(WORDS[(at * at + at // 7) % len(WORDS)] for at in range(3_500))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", embed=64, feed=128)


def test_the_file_fits_the_budget_and_is_judged_on_other_text(model: Path, tmp_path: Path) -> None:
    budget = model.stat().st_size // 3
    found = quantize_to_bound(model, tmp_path / "out" / "a.gguf", [TEXT], name="made up", budget=budget, threads=1)
    assert found.bytes == found.path.stat().st_size <= budget
    assert found.divergence is not None and found.divergence.kld_mean > 0
    assert [path.name for path in found.path.parent.iterdir()] == ["a.gguf"]
    larger = quantize_to_bound(
        model, tmp_path / "b.gguf", [TEXT], name="made up", budget=2 * budget, threads=1
    ).divergence
    assert larger is not None and larger.kld_mean < found.divergence.kld_mean


def test_the_smallest_file_within_a_divergence_is_within_it(model: Path, tmp_path: Path) -> None:
    loose, tight = (
        quantize_to_bound(model, tmp_path / f"{bound}.gguf", [TEXT], name="x", most_divergence=bound, threads=1)
        for bound in (0.05, 0.003)
    )
    for bound, found in ((0.05, loose), (0.003, tight)):
        assert found.divergence is not None and found.divergence.kld_mean <= bound
        assert found.path.stat().st_size == found.bytes
    assert loose.bytes < tight.bytes < model.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.003.gguf", "0.05.gguf", "tiny.gguf"]


def test_a_bound_that_cannot_be_met_is_said_with_what_can(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be made as small as 0\.0 MB") as error:
        quantize_to_bound(model, tmp_path / "a.gguf", [TEXT], name="x", budget=1_000, threads=1)
    least = int(float(str(error.value.hint).split()[2]) * 1e6)
    found = quantize_to_bound(model, tmp_path / "b.gguf", [TEXT], name="x", budget=least, threads=1)
    assert found.bytes <= least
    found.path.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    with pytest.raises(ConfigError, match="too few to measure with"):
        quantize_to_bound(model, tmp_path / "a.gguf", ["short"], name="x", budget=1_000_000, threads=1)


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planned, "Workbench", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ConfigError, match=r"cannot be made as small as 0\.0 MB") as error:
        quantize_to_bound(model, tmp_path / "new" / "a.gguf", [TEXT], name="x", budget=1_000)
    assert error.value.hint.startswith("give --budget-mb 0.")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    for budget in ("-5", "0"):
        assert main(["quantize", str(model), str(tmp_path / "a.gguf"), "--budget-mb", budget]) == 2
        assert "--budget-mb" in capsys.readouterr().err


def test_a_plan_gives_the_same_bytes_again(model: Path, tmp_path: Path) -> None:
    plan = Plan({"blk.0.ffn_up.weight": "Q4_0", "blk.0.ffn_down.weight": "Q8_0"})
    one = quantize_by_plan(model, tmp_path / "a.gguf", plan)
    other = quantize_by_plan(model, tmp_path / "b.gguf", plan, threads=2)
    assert one.path.read_bytes() == other.path.read_bytes()
    with pytest.raises(ConfigError, match="needs a text"):
        quantize_by_plan(model, tmp_path / "c.gguf", Plan(plan.types, rounded=["blk.0.ffn_up.weight"]))


def test_the_reference_is_the_model_de_quantized(model: Path, tmp_path: Path) -> None:
    small = quantize_by_plan(model, tmp_path / "a.gguf", Plan({"blk.0.ffn_up.weight": "Q4_0"})).path
    with Workbench(small, [TEXT], name="x", threads=1, folder=tmp_path) as bench:
        assert bench.judging.compare(small).kld_mean < 1e-4
        assert bench.judging.compare(model).kld_mean > bench.judging.compare(small).kld_mean
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "tiny.gguf"]


def test_every_python_has_text_to_tune_with() -> None:
    assert sum(map(len, language_reference())) > 300_000


def test_the_command_makes_plans_that_can_be_given_back(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, plan = tmp_path / "text.txt", tmp_path / "plan.json"
    text.write_text(TEXT)
    out = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    budget = f"{model.stat().st_size / 2.5e6:.3f}"
    given = ["--calibration-text", str(text), "--threads", "1", "--json"]
    assert main(["quantize", str(model), str(out[0]), "--budget-mb", budget, "--save-plan", str(plan), *given]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["bytes"] == out[0].stat().st_size <= float(budget) * 1e6
    assert document["kld_mean"] > 0
    edited = json.loads(plan.read_text())
    edited["types"]["blk.0.ffn_up.weight"] = "Q8_0"
    plan.write_text(json.dumps(edited))
    assert main(["quantize", str(model), str(out[1]), "--plan", str(plan), *given]) == 0
    types = {tensor.name: tensor.type for tensor in read_header(out[1]).tensors}
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert main(["quantize", str(model), str(out[1]), "--plan", str(plan), *given]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["quantize", str(model), str(tmp_path / "x.gguf"), "--budget-mb", "1", "--type", "Q8_0"]) == 2
    assert main(["quantize", str(model), str(tmp_path / "x.gguf"), "--budget-mb", "1"]) == 1
    assert "--calibration-text" in capsys.readouterr().err


def test_tuning_asks_the_very_file_with_the_models_own_prompts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the file of a profile that an earlier run has left, nor with the prompts of an unknown model."""
    from edge_sdk.commands.tune import _answers
    from edge_sdk.config import load_settings
    from edge_sdk.hub.models import InstalledModel
    from quantize.gguf_models import flips

    seen: list[tuple[Path, int]] = []

    def answer(path: Path, *_: object, reading: Reading, **__: object) -> list[SimpleNamespace]:
        seen.append((path, reading.prompt_tokens))
        return [SimpleNamespace(text="a river", answers=("river",)), SimpleNamespace(text="no", answers=("river",))]

    monkeypatch.setattr(flips, "answer_questions", answer)
    monkeypatch.setattr(InstalledModel, "reading", Reading(321))
    installed = InstalledModel("tiny", "decoder", "gguf", model, model.parent)
    contained = _answers(installed, load_settings({"home": tmp_path}), tmp_path, 2)
    assert contained(model) == 0.5
    assert seen == [(model, 321)]


def test_tuning_writes_the_profile_and_forgets_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = tiny_llama(tmp_path / "long.gguf", embed=64, feed=128, context=2048)
    home = ["--home", str(tmp_path / "home"), "--threads", "1"]
    picture = tmp_path / "front.png"
    code = main(
        ["tune", str(tiny), "--type", "Q8_0", "--type", "Q4_0", "--repeats", "1", "--max-kld", "10",
         "--plot", str(picture), "--json", *home]
    )  # fmt: skip
    assert code == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {each["name"] for each in document["candidates"]} >= {"as published", "Q8_0", "Q4_0"}
    assert sum(each["name"] == document["chosen"] for each in document["candidates"]) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    (profile,) = (tmp_path / "home" / "profiles").iterdir()
    assert json.loads(profile.read_text())["model"] == "long"
    assert main(["tune", str(tiny), "--forget", *home]) == 0
    assert not profile.exists()
