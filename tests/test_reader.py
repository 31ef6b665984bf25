"""Reading at run time: spans that are what they say, shares over all passages, and folders that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from math import exp, inf, log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_readers import write_reader

from edge_sdk.errors import ConfigError, EdgeError, EngineError, ModelDamagedError, ModelNotFoundError
from edge_sdk.readers.description import Answerability, Description
from edge_sdk.readers.reader import Reader
from edge_sdk.readers.windows import Limits

WORDS = {"[CLS]": (0.0, 0.0, 1.0), "red": (4.0, 3.0, 0.0), "blue": (2.0, 1.0, 0.0), "button": (-5.0, 5.0, 0.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reader")
    write_reader(made, WORDS)
    return made


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader.open(folder, threads=1)


def test_the_best_words_of_all_passages_are_found_where_they_stand(reader: Reader) -> None:
    passages = ["A blue one.", "Press the Red\n button, then wait."]
    found = reader.read("What to press?", passages)
    assert found.best is not None
    assert (found.best.passage, found.best.text) == (1, "Red\n button")
    assert passages[1][found.best.start : found.best.end] == found.best.text
    assert found.others[0].text == "blue"
    assert found.margin == pytest.approx((4 + 5) - (2 + 1))
    assert found.support == pytest.approx(4 + 5 - 2 * log(2))  # "no answer" is there once for each passage
    assert found.passages == (1.0, 1.0)
    assert found.probability is None


def test_scores_are_logarithms_of_shares_among_all_passages(reader: Reader) -> None:
    alone, beside = (reader.read("Which?", texts) for texts in (["red"], ["red", "red", "x"]))
    assert alone.best is not None and beside.best is not None
    assert exp(alone.best.score) == pytest.approx(exp(4) / (exp(4) + 1) * exp(3) / (exp(3) + 1), rel=1e-4)
    assert beside.best.score < alone.best.score - 1
    assert beside.margin > 9  # the same words elsewhere say nothing else


def test_the_probability_of_an_answer_is_that_of_the_calibration(folder: Path, tmp_path: Path) -> None:
    write_reader(tmp_path, WORDS, description=Description(answerability=Answerability(-3.0, 0.5, 1.0)))
    sure, unsure = (Reader.open(tmp_path, threads=1).read("Which?", [text]) for text in ("red", "nothing"))
    assert sure.probability == pytest.approx(1 / (1 + exp(3.0 - 0.5 * sure.support - 1.0)))
    assert unsure.probability is not None and unsure.probability < 0.02 < 0.8 < (sure.probability or 0)


def test_an_answer_far_into_a_long_passage_is_found(tmp_path: Path) -> None:
    write_reader(tmp_path, WORDS, description=Description(Limits(window=24, question=8, overlap=4)))
    passage = "x " * 500 + "red button" + " x" * 500
    found = Reader.open(tmp_path, threads=1).read("Which?", [passage])
    assert found.best is not None and (found.best.start, found.best.text) == (1000, "red button")


def test_an_answer_is_no_longer_than_the_limit(tmp_path: Path) -> None:
    write_reader(tmp_path, WORDS, description=Description(Limits(answer=2)))
    found = Reader.open(tmp_path, threads=1).read("Which?", ["red x x x button"])
    assert found.best is not None and found.best.text == "red"


@pytest.mark.parametrize("passages", [[], [""], [" \n", "\u200b"]])
def test_without_words_there_is_no_answer(reader: Reader, passages: list[str]) -> None:
    found = reader.read("Which?", passages)
    assert found.best is None and found.others == () and found.support == -inf
    assert found.passages == (-inf,) * len(passages)


def test_a_passage_that_spells_the_frame_cannot_pretend_to_be_one(reader: Reader) -> None:
    found = reader.read("Which? [SEP] red", ["[CLS] [SEP] blue [PAD]"])
    assert found.best is not None and found.best.text == "blue"


TEXT = st.text(st.characters(exclude_categories=()), max_size=30)


@settings(deadline=None)
@given(TEXT, st.lists(TEXT, max_size=3))
def test_a_span_is_whole_words_of_its_passage_whatever_the_text(question: str, passages: list[str]) -> None:
    found = READER.read(question, passages)
    for span in (*found.others, *([found.best] if found.best else [])):
        text = passages[span.passage]
        assert 0 <= span.start <= span.end <= len(text) and text[span.start : span.end] == span.text
        for at in (span.start, span.end):
            inside = 0 < at < len(text) and text[at - 1].isascii() and text[at].isascii()
            assert not (inside and text[at - 1].isalnum() and text[at].isalnum())


def test_reading_is_the_same_for_several_threads(folder: Path, reader: Reader) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"{'x ' * number}red button" for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: reader.read("Which?", [text]), texts))
    assert together == [reader.read("Which?", [text]) for text in texts]


def test_the_fingerprint_names_everything_that_decides(folder: Path, reader: Reader, tmp_path: Path) -> None:
    write_reader(tmp_path / "same", WORDS)
    write_reader(tmp_path / "weights", {**WORDS, "red": (4.0, 3.1, 0.0)})
    write_reader(tmp_path / "limits", WORDS, description=Description(Limits(answer=9)))
    same, *others = (Reader.open(tmp_path / name, threads=1) for name in ("same", "weights", "limits"))
    assert same.fingerprint == reader.fingerprint
    assert len({reader.fingerprint, *(other.fingerprint for other in others)}) == 3


# --- folders that are refused -------------------------------------------------------------------------


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("reader.json", "tokenizer.json", "model.onnx"):
        broken = tmp_path / name
        write_reader(broken, WORDS)
        (broken / name).unlink()
        with pytest.raises(ModelNotFoundError, match=name if name != "model.onnx" else "onnx"):
            Reader.open(broken, threads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "its format is 2"),
        ({"limits": None}, "not subscriptable"),
        ({"limits": {"window": 256}}, "lacks 'question'"),
        ({"limits": {"window": 1e3, "question": 1, "answer": 1, "overlap": 0}}, "`window` is 1000.0"),
        ({"limits": {"window": 9999, "question": 1, "answer": 1, "overlap": 0}}, "longer than 4096"),
        ({"limits": {"window": 20, "question": 18, "answer": 1, "overlap": 0}}, "a reader cannot have"),
        ({"passage_weight": "1"}, "`passage_weight` is '1'"),
        ({"passage_weight": float("nan")}, "not a number"),
        ({"answerability": {"bias": 1, "span": 2}}, "lacks 'passage'"),
        ({"answerability": {"bias": 1, "span": 2, "passage": 1e9}}, "not a number"),
        ({"trained": []}, "`trained` is no JSON object"),
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_reader(tmp_path, WORDS)
    content = json.loads((tmp_path / "reader.json").read_text())
    (tmp_path / "reader.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ModelDamagedError, match=message):
        Reader.open(tmp_path, threads=1)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{}" + b" " * (1 << 20)])
def test_bytes_that_are_no_description_are_refused(tmp_path: Path, content: bytes) -> None:
    write_reader(tmp_path, WORDS)
    (tmp_path / "reader.json").write_bytes(content)
    with pytest.raises(ModelDamagedError, match="no reader's description"):
        Reader.open(tmp_path, threads=1)


@settings(deadline=None)
@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_description_ends_in_anything_but_an_error(content: bytes) -> None:
    path = FOLDER / "reader.json"
    path.write_bytes(content)
    with pytest.raises(EdgeError):
        Description.read(FOLDER)


def test_a_description_survives_being_written(tmp_path: Path) -> None:
    told = Description(Limits(window=160), 0.5, Answerability(1.0, -2.0, 0.25), {"steps": 3})
    told.write(tmp_path)
    assert Description.read(tmp_path) == told


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    write_reader(tmp_path / "name", WORDS, output="logits")
    with pytest.raises(ModelDamagedError, match="no reader: it has inputs input_ids, token_type_ids"):
        Reader.open(tmp_path / "name", threads=1)
    write_reader(tmp_path / "shape", WORDS, columns=2)
    with pytest.raises(EngineError, match="gave scores of shape"):
        Reader.open(tmp_path / "shape", threads=1)
    write_reader(tmp_path / "nan", {**WORDS, "[CLS]": (np.nan, 0.0, 0.0)})
    with pytest.raises(EngineError, match="not finite"):
        Reader.open(tmp_path / "nan", threads=1)


def test_a_tokenizer_with_more_words_than_the_model_fails_as_an_error(tmp_path: Path) -> None:
    write_reader(tmp_path, WORDS)
    write_reader(tmp_path / "larger", WORDS | {f"word{number}": (0.0, 0.0, 0.0) for number in range(9)})
    (tmp_path / "larger" / "tokenizer.json").replace(tmp_path / "tokenizer.json")
    with pytest.raises(EngineError, match="onnxruntime failed"):
        Reader.open(tmp_path, threads=1).read("Which?", ["az"])


def test_threads_are_counted_from_one(folder: Path) -> None:
    with pytest.raises(ConfigError, match="threads is 0"):
        Reader.open(folder, threads=0)


def test_reading_takes_no_torch_and_no_onnx_package(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edge_sdk.readers.reader import Reader;"
        f"print(Reader.open(Path({str(folder)!r}), threads=1).read('Which?', ['red']).best.text);"
        "print(sorted({'torch', 'onnx', 'transformers', 'llama_cpp'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["red", "[]"], done.stderr


def test_a_weight_of_passages_moves_the_choice_to_the_better_passage(reader: Reader) -> None:
    scores = reader.score("Which?", ["red", "blue"])
    second = scores.scores[1].copy()
    second[0, 2] = 9.0
    told = replace(scores, scores=[scores.scores[0] - np.array([0, 0, 9], np.float32), second])
    plain, weighed = told.extract(30), told.extract(30, passage_weight=2.0)
    assert plain.best is not None and weighed.best is not None
    assert (plain.best.text, weighed.best.text) == ("red", "blue")


@pytest.mark.parametrize(("sure", "text"), [(9.0, "blue"), (1.2, "red blue button")])
def test_where_the_ends_are_uncertain_the_answer_holds_what_most_likely_ones_share(
    reader: Reader, sure: float, text: str
) -> None:
    scores = reader.score("Which?", ["red blue button"])
    window, first = scores.scores[0].copy(), scores.windows[0].first
    window[first : first + 3] = np.array([[1.0, -9, 0], [sure, sure - 0.2, 0], [-9, 0.9, 0]], np.float32)
    found = replace(scores, scores=[window]).extract(30)
    assert found.best is not None and found.best.text == text


@settings(max_examples=50)
@given(st.lists(st.floats(-4, 4, width=32), min_size=8, max_size=8))
def test_what_the_words_hold_is_the_probability_of_all_spans_within_them(edges: list[float]) -> None:
    scores = READER.score("Which?", ["red blue button"])
    window, first = scores.scores[0].copy(), scores.windows[0].first
    rows = [0, first, first + 1, first + 2]
    window[rows, :2] = np.array(edges, np.float32).reshape(4, 2)
    found = replace(scores, scores=[window]).extract(30)
    starts, ends = (np.exp(window[rows, side]) / np.exp(window[rows, side]).sum() for side in (0, 1))
    words, held = ["red", "blue", "button"], 0.0
    assert found.best is not None
    for one in range(3):
        for last in range(one, 3):
            if set(words[one : last + 1]) <= set(found.best.text.split()):
                held += starts[1 + one] * ends[1 + last]
    assert found.held == pytest.approx(held, abs=1e-5)


def test_what_one_window_has_found_no_other_takes_back(tmp_path: Path) -> None:
    """The windows of a long passage overlap; one that sees no answer scores the same words, too."""
    write_reader(tmp_path, WORDS)
    opened = Reader.open(tmp_path, threads=1)
    scores = opened.score("Which?", ["red blue button " * 100])
    assert len(scores.windows) > 1
    first, rest = scores.scores[0].copy(), [np.zeros_like(each) for each in scores.scores[1:]]
    overlap = scores.windows[1].offset - scores.windows[0].offset + scores.windows[0].first
    first[overlap, 0] = first[overlap, 1] = 20.0
    found = replace(scores, scores=[first, *rest]).extract(30)
    assert found.best is not None and found.best.text in WORDS and found.best.score > -1


def _made() -> tuple[Path, Reader]:
    from tempfile import mkdtemp

    made = Path(mkdtemp())
    write_reader(made, WORDS)
    return made, Reader.open(made, threads=1)


FOLDER, READER = _made()  # for Hypothesis, which takes no fixtures of functions
