"""The examples run as they stand, on real models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


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
        "demo.QUESTIONS = [demo.QUESTIONS[0], demo.QUESTIONS[-1]];"
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
    assert "the question without an answer was recognised" in done.stdout
    assert "Traceback" not in done.stderr
