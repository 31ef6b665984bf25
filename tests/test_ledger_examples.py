"""Learned answers become examples only with the passage that holds them, and nothing that was redacted does."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.documents.chunk import chunk_document
from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.fallback.learned import LearnedAnswers
from edge_sdk.fallback.learned_table import Provenance
from edge_sdk.records import ParsedDocument, Section
from edge_sdk.storage.store import Store
from quantize.recipes.ledger_examples import ledger_examples
from quantize.training_data.drops import Drops

PASSAGE = "The boiler of the Aldra is drained through the brass valve under the left tank, once a year in May."
ENCODER = FakeEncoder()


def fill(path: Path, *turns: tuple[str, str, bool]) -> None:
    """A store with a passage, and accepted answers (question, answer, redacted)."""
    with Store.open(path) as store:
        store.use_encoder(ENCODER.fingerprint, ENCODER.dimension)
        for number, text in enumerate((PASSAGE, "Sails are washed with fresh water and dried in the wind.")):
            document = ParsedDocument(f"d{number}", "", text, (Section(0, len(text)),), str(number), "text/plain")
            store.put(document, chunk_document(document), ENCODER.encode([text]))
        learned = LearnedAnswers(store.database, ENCODER.fingerprint)
        for question, answer, redacted in turns:
            provenance = Provenance("https://far", "large", "2026-11-21", redacted=redacted)
            found = learned.learn(question, ENCODER.encode([question])[0], answer, provenance)
            assert found.id is not None
            learned.accept(found.id)


def test_an_accepted_answer_comes_with_its_passage(tmp_path: Path) -> None:
    fill(tmp_path / "s.db", ("How is the boiler of the Aldra drained?", "through the Brass Valve.", False))
    (found,) = ledger_examples(tmp_path / "s.db")
    assert (found.passage, found.answers, found.source) == (PASSAGE, ("through the brass valve",), "ledger")
    assert found.span is not None


def test_what_no_passage_holds_and_what_was_redacted_is_left_out(tmp_path: Path) -> None:
    fill(
        tmp_path / "s.db",
        ("Which paint is used for the hull of the Aldra?", "Red lead.", False),
        ("When is the boiler of the Aldra drained?", "in May", True),
    )
    drops = Drops()
    assert list(ledger_examples(tmp_path / "s.db", drops)) == []
    assert {name: reason.count for name, reason in drops.reasons.items()} == {
        "redacted before it was sent": 1,
        "no passage holds the answer": 1,
    }


def test_there_must_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no store"):
        list(ledger_examples(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()
