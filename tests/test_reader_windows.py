"""Pairs of question and passage cut to windows: every token of a passage is in one, none is invented."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_readers import write_word_pieces
from onnx_files import write_tokenizer

from edge_sdk.errors import ConfigError, ModelDamagedError
from edge_sdk.model_files.tokenizer import Tokenizer
from edge_sdk.readers.windows import Limits, Windows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    write_word_pieces(path, ("the", "red", "button", "is", "press"))
    return Tokenizer.open(path, literal=True)


def test_a_pair_is_framed_as_bert_has_it(tokenizer: Tokenizer) -> None:
    windows = Windows(tokenizer, Limits())
    (window,) = windows.cut(windows.question("Press?"), tokenizer.pieces("The red button"), 3)
    spelled = [tokenizer.spelling(token) for token in window.ids]
    assert spelled == ["[CLS]", "press", "?", "[SEP]", "the", "red", "button", "[SEP]"]
    assert window.segments == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (window.passage, window.first, window.last, window.offset) == (3, 4, 7, 0)


def test_special_tokens_that_a_document_spells_out_stay_text(tokenizer: Tokenizer) -> None:
    windows = Windows(tokenizer, Limits())
    (window,) = windows.cut(windows.question("[SEP]"), tokenizer.pieces("a [CLS] b [SEP]"))
    frame = [tokenizer.spelling(token) for token in window.ids]
    assert frame.count("[CLS]") == 1 and frame.count("[SEP]") == 2


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.integers(1, 30), st.integers(0, 29))
def test_windows_cover_a_passage_in_order(size: int, question: int, room: int, overlap: int) -> None:
    overlap = min(overlap, room - 1)
    limits = Limits(window=room + question + 3, question=question, overlap=overlap)
    windows = Windows(TOKENIZER, limits)
    pieces = TOKENIZER.pieces("x " * size)
    cut = list(windows.cut(windows.question("y " * 9), pieces))
    covered: list[int] = []
    for window in cut:
        assert len(window.ids) <= limits.window
        assert window.ids[window.first : window.last] == pieces.ids[window.offset :][: window.last - window.first]
        assert not covered or window.offset == covered[-1] + 1 - overlap
        covered = sorted({*covered, *range(window.offset, window.offset + window.last - window.first)})
    assert covered == list(range(size))


TEXT = st.text(st.characters(exclude_categories=()), max_size=40)


@settings(deadline=None)
@given(TEXT)
def test_tokens_know_their_characters_whatever_the_text(text: str) -> None:
    pieces = TOKENIZER.pieces(text)
    assert len(pieces.ids) == len(pieces.starts) == len(pieces.ends) == len(pieces.leads) == len(pieces.trails)
    assert all(0 <= start <= end <= len(text) for start, end in zip(pieces.starts, pieces.ends, strict=True))
    assert pieces.starts == sorted(pieces.starts)
    assert not pieces.ids or (pieces.leads[0] and pieces.trails[-1])


def test_offsets_count_characters_that_utf_16_needs_two_units_for(tokenizer: Tokenizer) -> None:
    text = "\U0001f600 naïve \ud83d red"
    pieces = tokenizer.pieces(text)
    assert text[pieces.starts[-1] : pieces.ends[-1]] == "red"


@pytest.mark.parametrize(
    "limits", [{"window": 60}, {"overlap": 189}, {"question": 0}, {"answer": 0}, {"overlap": -1}]
)
def test_limits_that_leave_no_room_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="a window holds a question and new text"):
        Limits(**limits)


def test_a_tokenizer_without_a_frame_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(ModelDamagedError, match=r"no \[CLS\] and \[SEP\]"):
        Windows(Tokenizer.open(tmp_path / "tokenizer.json"), Limits())


def _made() -> Tokenizer:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        write_word_pieces(Path(folder, "tokenizer.json"), ("x", "y"))
        return Tokenizer.open(Path(folder, "tokenizer.json"), literal=True)


TOKENIZER = _made()  # for Hypothesis, which takes no fixtures of functions
