"""The examples run as they stand, on real models."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.bundle.cache import verify_bundle
from edge_sdk.confidence.calibration import Calibrations, load
from edge_sdk.config import Settings, load_settings
from edge_sdk.edge import Edge
from edge_sdk.errors import EdgeError
from edge_sdk.fakes import FakeEngine
from edge_sdk.hub.catalog import load_catalog
from edge_sdk.hub.models import InstalledModel, resolve
from edge_sdk.loading import load_encoder, open_store
from quantize.asking import read_questions

EXAMPLES = Path(__file__).parents[1] / "examples"
DEMO = EXAMPLES / "python_helper"
ASSISTANT = EXAMPLES / "assistant" / "assistant.edge"
LARGE = "qwen2.5-coder-1.5b-instruct"


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"quickstart.py", "python_helper.py"}


@pytest.mark.model
def test_the_quickstart_answers_with_evidence(edge_home: Path, smollm2_path: Path, minilm_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "EDGE_HOME": str(edge_home), "EDGE_MODEL": "smollm2", "EDGE_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "route: local, probability: None" in done.stdout


@pytest.mark.model
def test_the_demo_reads_modules_and_knows_what_it_does_not_know(
    edge_home: Path, smollm2_path: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    """With three modules and the small model: the flow and the honesty are tested, not the small model's wit."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import python_helper as demo;"
        "demo.MODULES = ['pathlib', 'heapq', 'functools'];"
        "demo.QUESTIONS = [demo.QUESTIONS[3], demo.QUESTIONS[-1]];"
        "demo.LARGE_NEEDS = 1 << 60; demo.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES)],
        capture_output=True,
        text=True,
        env={**os.environ, "EDGE_HOME": str(edge_home), "EDGE_STORE": str(tmp_path / "s.db"), "EDGE_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "smollm2-135m-instruct" in done.stdout
    assert "right with probability" in done.stdout
    assert "the question without an answer was recognised" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_demos_calibrations_are_of_its_questions_and_of_todays_rules(
    model_settings: Settings, minilm_dir: Path, tmp_path: Path
) -> None:
    """Model and chat template are not looked at; that takes the model, as in the next tests."""
    questions = read_questions(DEMO / "questions.jsonl")
    asked = {question for question, _, _ in questions}
    assert not any(f'"{question}"' in (EXAMPLES / "python_helper.py").read_text() for question in asked)
    calibrations = [load(path) for path in (DEMO / "calibrations").glob("*.json")]
    for found in calibrations:
        assert found.n == len(questions)
        assert set(found.neighbours.questions) <= asked
    own = replace(model_settings, encoder=str(minilm_dir), store=tmp_path / "s.db")
    spec = load_catalog().find(LARGE)
    reading = InstalledModel(LARGE, "decoder", "gguf", tmp_path, tmp_path, spec).reading
    with Edge(
        open_store(own), lambda: load_encoder(own), lambda: (FakeEngine(context=own.context), reading)
    ) as edge:
        assert ["model", "prompt"] in [found.setup.differences(edge.setup()) for found in calibrations]


@pytest.mark.model
def test_the_demos_calibration_holds_for_its_model(
    model_settings: Settings, minilm_dir: Path, tmp_path: Path
) -> None:
    own = replace(model_settings, model=LARGE, encoder=str(minilm_dir), store=tmp_path / "s.db")
    try:
        resolve(LARGE, own)
    except EdgeError as error:
        pytest.skip(str(error))
    with Edge.open(settings=own) as edge:
        found, note = Calibrations(tmp_path, shipped=DEMO / "calibrations").find(edge.setup())
    assert found is not None, note


@pytest.mark.model
def test_a_calibration_of_the_demo_holds_for_the_small_model_with_the_assistant(
    edge_home: Path, smollm2_path: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    given = {"home": edge_home, "offline": True, "bundle": ASSISTANT, "store": tmp_path / "s.db", "prefix_cache": 0}
    with Edge.open(settings=load_settings(given, {})) as edge:
        found, note = Calibrations(tmp_path, shipped=DEMO / "calibrations").find(edge.setup())
    assert found is not None, note


def test_the_assistant_is_whole_small_and_says_its_licence(tmp_path: Path) -> None:
    found = verify_bundle(ASSISTANT, tmp_path)
    manifest = found.inspection.manifest
    assert set(manifest.roles()) == {"reader", "adapter:default"}
    assert found.inspection.bytes <= 40e6
    assert all(entry.licence == "Apache-2.0" for entry in manifest.files)
