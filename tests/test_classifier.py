"""Heads at work: labels, probabilities, reasons, and encoders that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_intents import INTENTS, STRANGE, labelled

from edge_sdk.errors import ModelError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.heads.classifier import IntentHead, signals
from quantize.students.heads import fit_head


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "words"
    fit_head(labelled(), folder)
    return folder


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "vectors"
    fit_head(labelled(), folder, encoder=FakeEncoder())
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "both"
    fit_head(labelled(), folder, encoder=FakeEncoder(), words=True)
    return folder


def test_requests_get_their_label_and_strangers_are_told_from_them(words: Path) -> None:
    head = IntentHead.open(words)
    asked = {
        "please set a timer for the tea": "timer",
        "play that song again": "music",
        "is rain coming": "weather",
    }
    found = head.classify_all(list(asked))
    assert [each.label for each in found] == list(asked.values())
    strange = head.classify("is the emperor of china older than his brother")
    assert strange.out_of_scope is not None
    assert all(each.out_of_scope is not None and each.out_of_scope < strange.out_of_scope for each in found)
    assert strange.probability < min(each.probability for each in found)


@pytest.mark.parametrize("text", ["", " ", "\x00", "日本語", "x" * 10_000, "\ud800"])
def test_odd_texts_have_a_label_and_a_probability(words: Path, text: str) -> None:
    found = IntentHead.open(words).classify(text, explain=True)
    assert found.label in INTENTS and 0 <= found.probability <= 1 - (found.out_of_scope or 0)


def test_the_most_alike_examples_come_first(words: Path) -> None:
    found = IntentHead.open(words).classify("play the next song")
    assert (found.nearest[0].text, found.nearest[0].label) == ("play the next song", "music")
    assert found.nearest[0].similarity == pytest.approx(1, abs=1e-5)
    similarities = [each.similarity for each in found.nearest]
    assert similarities == sorted(similarities, reverse=True)


def test_reasons_of_words_are_exact_parts_of_the_lead(words: Path) -> None:
    head = IntentHead.open(words)
    text = "play song"
    row = head.features.rows([text])[0]
    found = head.classify(text, explain=True)
    scores = dict(zip(head.labels, head.scores(row).tolist(), strict=True))
    flat = dict(zip(head.labels, head.scores(np.zeros_like(row)).tolist(), strict=True))
    lead = scores[found.label] - scores[found.second] - (flat[found.label] - flat[found.second])
    parts = head.reasons(text, row, found.label, found.second, count=1000)
    assert sum(reason.weight for reason in parts) == pytest.approx(lead, abs=1e-3)
    assert found.reasons == parts[: len(found.reasons)]
    assert {"play", "song"} & {reason.part for reason in found.reasons}


def test_reasons_of_vectors_are_words_that_are_missed(vectors: Path) -> None:
    head = IntentHead.open(vectors, FakeEncoder)
    found = head.classify("hello play song", explain=True)
    assert found.label == "music"
    assert {reason.part for reason in found.reasons} == {"hello", "play", "song"}
    assert found.reasons[0].part in ("play", "song") and found.reasons[0].weight > 0


def test_the_terms_of_a_label_are_what_its_examples_share(words: Path, vectors: Path) -> None:
    head = IntentHead.open(words)
    assert "timer" in {reason.part for reason in head.top_terms("timer", 5)}
    assert "list" in {reason.part for reason in head.top_terms("shopping", 8)}
    assert IntentHead.open(vectors, FakeEncoder).top_terms("timer") == ()
    with pytest.raises(ModelError, match="no label 'tea'"):
        head.top_terms("tea")


def test_words_and_vectors_side_by_side_are_the_mean_of_both(words: Path, vectors: Path, both: Path) -> None:
    one, other, mixed = (IntentHead.open(folder, FakeEncoder) for folder in (words, vectors, both))
    text = "please play the next song"
    cosines = [head.features.cosines(head.features.rows([text])[0]) for head in (one, other, mixed)]
    assert cosines[2] == pytest.approx((cosines[0] + cosines[1]) / 2, abs=0.01)  # vectors are kept in 8 bits
    assert "song" in {reason.part for reason in mixed.top_terms("music", 8)}
    found = mixed.classify(text, explain=True)
    assert found.label == "music" and found.nearest[0].text == "play the next song"
    row, contrast = mixed.features.rows([text])[0], np.ones(mixed.features.rows([text]).shape[1], np.float32)
    parts = mixed.features.parts(text, row, contrast)
    assert {"please", "song", "next song"} <= {part for part, _ in parts}
    width = FakeEncoder().dimension
    exact = dict(parts[len(text.split()) :])  # those of words come last
    assert sum(exact.values()) == pytest.approx(row[width:].sum(), abs=1e-4)


def test_vectors_of_another_length_than_the_encoders_are_refused(vectors: Path, tmp_path: Path) -> None:
    for file in ("head.json", "head.npz"):
        (tmp_path / file).write_bytes((vectors / file).read_bytes())
    with np.load(tmp_path / "head.npz") as found:
        arrays = dict(found)
    short = {name: arrays[name][..., :9] if name == "vectors" else arrays[name][:9] for name in arrays}
    np.savez(tmp_path / "head.npz", **(short | {"intercepts": arrays["intercepts"]}))
    with pytest.raises(ModelError, match="the head has vectors of 9 dimensions"):
        IntentHead.open(tmp_path, FakeEncoder)


def test_another_encoder_than_the_one_it_was_fitted_with_is_refused(vectors: Path) -> None:
    with pytest.raises(ModelError, match="there is none"):
        IntentHead.open(vectors)
    with pytest.raises(ModelError, match="was fitted to the encoder"):
        IntentHead.open(vectors, lambda: FakeEncoder(64))


def test_a_head_over_words_loads_no_encoder(words: Path) -> None:
    def fail() -> FakeEncoder:
        raise AssertionError

    assert IntentHead.open(words, fail).classify(STRANGE[0]).label in INTENTS


def test_signals_say_nothing_of_which_label_it_is() -> None:
    scores, cosines, owners = np.array([3.0, 1.0, -2.0]), np.array([0.9, 0.1, 0.2]), np.array([0, 1, 2])
    turned = signals(scores[::-1], cosines[::-1], owners)
    assert turned == pytest.approx(signals(scores, cosines, owners))
    assert signals(scores, cosines[::-1], owners)["agreement"] == 0
