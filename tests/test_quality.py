"""A question scores by what its own passage adds to it, and is scored once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder
from quantize.training_data import quality
from quantize.training_data.example import Example
from quantize.training_data.quality import question_scores, similarity_scores

TOWER = "The Skerry Light was built from red granite by Ellen Marsh between 1871 and 1874."
OTHER = "Photosynthesis turns carbon dioxide and water into sugar with the energy of light."


def test_an_encoder_scores_the_own_passage_above_another_one() -> None:
    score = similarity_scores(FakeEncoder())
    fits, other = (score(Example("Who built the Skerry Light?", passage)) for passage in (TOWER, OTHER))
    assert 1 >= fits > other + 0.1


@pytest.mark.model
def test_the_own_passage_scores_above_another_one_and_scores_are_kept(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "CONTEXT", 160)
    kept = tmp_path / "scores.jsonl"
    fits, other = (Example("Who built the Skerry Light?", passage) for passage in (TOWER, OTHER))
    long = Example("Who built the Skerry Light? " * 60, TOWER * 200)
    with question_scores(smollm2_path, kept=kept, threads=1) as score:
        first = [score(fits), score(other), score(long)]
        assert 1 > first[0] > first[1] + 0.05
        assert score(fits) == first[0]
    lines = kept.read_text().splitlines()
    assert len(lines) == 4
    with question_scores(smollm2_path, kept=kept, threads=1) as score:
        assert [score(fits), score(other), score(long)] == first
    assert kept.read_text().splitlines() == lines


@pytest.mark.model
def test_scores_of_something_else_are_refused(smollm2_path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "scores.jsonl"
    kept.write_text('{"facts": {"model": "another", "lead": "?", "context": 1}}\n')
    with pytest.raises(ConfigError, match="another"), question_scores(smollm2_path, kept=kept):
        pass
