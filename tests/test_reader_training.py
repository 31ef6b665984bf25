"""Training a reader, on tiny random weights: it learns, goes on where it stopped, and ships what was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event

import numpy as np
import pytest
import torch
from bert_models import random_weights, write_bert
from made_readers import write_word_pieces

from edge_sdk.encoders.bert_graph import read_bert
from edge_sdk.errors import ConfigError
from edge_sdk.kernel_faces import bert as kernel
from edge_sdk.model_files.onnx_graph import OnnxGraph
from edge_sdk.model_files.onnx_session import OnnxSession, inspect_onnx
from edge_sdk.model_files.tokenizer import Tokenizer
from edge_sdk.readers.description import Description
from edge_sdk.readers.reader import Reader
from edge_sdk.readers.windows import Limits, Windows
from quantize.students.bert import Bert, BertShape, pad
from quantize.students.reader_data import Mixture, ReaderData, make_batch, token_spans
from quantize.students.reader_export import export_reader
from quantize.students.reader_model import ReaderModel, reader_loss
from quantize.students.reader_training import ReaderTraining, Trained, train_reader
from quantize.training_data.example import Example

COLOURS = ("red", "green", "blue", "black", "white", "brown")
THINGS = ("button", "lever", "lamp", "door", "wheel", "bell")
LIMITS = Limits(window=48, question=12, answer=4, overlap=8)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Steps this small take ten times as long on two threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("words")
    write_word_pieces(made / "tokenizer.json", (*COLOURS, *THINGS, "the", "is", "what", "colour", "of"))
    return made


@pytest.fixture(scope="module")
def windows(folder: Path) -> Windows:
    return Windows(Tokenizer.open(folder / "tokenizer.json", literal=True), LIMITS)


def examples(count: int = 48) -> list[Example]:
    """Passages that give several things a colour, and questions for that of one."""
    made, random = [], Random(0)
    for _ in range(count):
        things, colours = random.sample(THINGS, 3), random.sample(COLOURS, 3)
        passage = " ".join(f"The {thing} is {colour}." for thing, colour in zip(things, colours, strict=True))
        made.append(Example(f"What colour is the {things[1]}?", passage, (colours[1],)))
    return made


def new_model(windows: Windows, seed: int = 0) -> ReaderModel:
    torch.manual_seed(seed)
    body = Bert(BertShape(2, 32, 2, 64, windows.tokenizer.size, 64), dropout=0.1)
    torch.nn.init.normal_(body.words.weight, std=0.5)
    torch.nn.init.normal_(body.positions.weight, std=0.1)
    return ReaderModel(body)


class CancelAfter(Event):
    """Is set after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def step(self, done: float, total: float | None, detail: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.set()


SETTINGS = ReaderTraining(epochs=2, tokens=512, learning_rate=3e-3, freeze_words=False)


def weights(model: ReaderModel) -> dict[str, list[float]]:
    return {name: values.flatten().tolist() for name, values in model.state_dict().items()}


def test_it_learns_to_read(windows: Windows, folder: Path, tmp_path: Path) -> None:
    model, data = new_model(windows), ReaderData(examples(100), windows)
    told: list[float] = []
    settings = replace(
        SETTINGS, epochs=10, tokens=256, mixture=Mixture(distractors=0, absent=0.0, joined=0.0, alone=1.0)
    )
    done = train_reader(model, data, settings, device="cpu", progress=lambda at, whole, detail: told.append(at))
    assert done.finished and done.questions == 10 * 100 and done.tokens > done.questions
    assert told == sorted(told) and told[-1] == 1.0
    export_reader(model, folder / "tokenizer.json", tmp_path / "reader", Description(LIMITS), form="float32")
    reader, asked = Reader.open(tmp_path / "reader", threads=1), examples(40)
    said = [reader.read(each.question, [each.passage]).best for each in asked]
    right = sum(span is not None and span.text == each.answers[0] for span, each in zip(said, asked, strict=True))
    assert right >= 30  # by chance 13 of 40 colours


def test_interrupted_training_ends_with_the_same_weights(windows: Windows, tmp_path: Path) -> None:
    data, whole, parts = ReaderData(examples(), windows), new_model(windows), new_model(windows)
    expected = train_reader(whole, data, SETTINGS, device="cpu")
    stops = 0
    while True:
        cancel = CancelAfter(3)
        found = train_reader(
            parts, data, SETTINGS, checkpoint=tmp_path / "ckpt", device="cpu", progress=cancel.step, cancel=cancel
        )
        if found.finished:
            break
        stops += 1
        parts = new_model(windows, seed=stops)  # what a new process begins with counts for nothing
    assert stops >= 2
    assert weights(parts) == weights(whole)
    assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)


def test_a_finished_training_is_not_done_again(windows: Windows, tmp_path: Path) -> None:
    data, model = ReaderData(examples(), windows), new_model(windows)
    first = train_reader(model, data, SETTINGS, checkpoint=tmp_path / "ckpt", device="cpu")
    again = new_model(windows, seed=1)
    assert train_reader(again, data, SETTINGS, checkpoint=tmp_path / "ckpt", device="cpu") == first
    assert weights(again) == weights(model)


def test_a_checkpoint_of_another_training_is_refused(windows: Windows, tmp_path: Path) -> None:
    data = ReaderData(examples(), windows)
    train_reader(new_model(windows), data, SETTINGS, checkpoint=tmp_path / "ckpt", device="cpu")
    others = ReaderData(examples(47), windows)
    with pytest.raises(ConfigError, match="made with another data"):
        train_reader(new_model(windows), others, SETTINGS, checkpoint=tmp_path / "ckpt", device="cpu")
    with pytest.raises(ConfigError, match="made with another settings"):
        changed = replace(SETTINGS, seed=1)
        train_reader(new_model(windows), data, changed, checkpoint=tmp_path / "ckpt", device="cpu")
    (tmp_path / "ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="is no checkpoint"):
        train_reader(new_model(windows), data, SETTINGS, checkpoint=tmp_path / "ckpt", device="cpu")


def test_frozen_words_stay_as_they_are(windows: Windows) -> None:
    model = new_model(windows)
    before, place = model.body.words.weight.clone(), model.body.positions.weight.clone()
    train_reader(
        model, ReaderData(examples(), windows), replace(SETTINGS, epochs=1, freeze_words=True), device="cpu"
    )
    assert torch.equal(model.body.words.weight, before)
    assert not torch.equal(model.body.positions.weight, place)


# --- what ships -----------------------------------------------------------------------------------------


def torch_scores(model: ReaderModel, windows: Windows, question: str, passage: str) -> np.ndarray:
    (window,) = windows.cut(windows.question(question), windows.tokenizer.pieces(passage))
    with torch.no_grad():
        scores = model.eval()(torch.tensor([window.ids]), None, torch.tensor([window.segments]))
    return scores[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trained(windows: Windows) -> ReaderModel:
    model = new_model(windows)
    train_reader(model, ReaderData(examples(), windows), SETTINGS, device="cpu")
    return model


def test_the_exported_graph_computes_what_was_trained(
    windows: Windows, folder: Path, trained: ReaderModel, tmp_path: Path
) -> None:
    export_reader(trained, folder / "tokenizer.json", tmp_path / "out", Description(LIMITS), form="float32")
    reader, one = Reader.open(tmp_path / "out", threads=1), examples(1)[0]
    (found,) = reader.score(one.question, [one.passage]).scores
    assert np.abs(found - torch_scores(trained, windows, one.question, one.passage)).max() < 1e-4


def test_eight_bits_read_as_float32_does(folder: Path, trained: ReaderModel, tmp_path: Path) -> None:
    samples = [(each.question, each.passage) for each in examples(20)]
    told = Description(LIMITS, trained={"steps": 1})
    parity = export_reader(trained, folder / "tokenizer.json", tmp_path / "out", told, samples=samples)
    assert parity is not None and parity.windows == 20
    assert parity.same_start >= 0.8 and parity.same_end >= 0.8 and 0 < parity.mean_difference < 0.3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        "reader.json",
        "tokenizer.json",
    ]
    assert Reader.open(tmp_path / "out", threads=1).description == told


def test_equal_weights_give_equal_files(folder: Path, trained: ReaderModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_reader(trained, folder / "tokenizer.json", tmp_path / name, Description(LIMITS))
    for file in ("model.onnx", "reader.json", "tokenizer.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_unknown_form_leaves_nothing(folder: Path, trained: ReaderModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no form 'int3'"):
        export_reader(trained, folder / "tokenizer.json", tmp_path / "out", Description(LIMITS), form="int3")
    assert not list(tmp_path.iterdir())


def test_the_kernel_finds_its_bert_in_an_exported_reader(
    windows: Windows, folder: Path, trained: ReaderModel, tmp_path: Path
) -> None:
    export_reader(trained, folder / "tokenizer.json", tmp_path / "out", Description(LIMITS), form="int8")
    found = read_bert(OnnxGraph(inspect_onnx(tmp_path / "out" / "model.onnx")))
    assert (found.heads, len(found.layers), found.words.shape) == (2, 2, (windows.tokenizer.size, 32))


def test_an_exported_reader_learns_more(
    windows: Windows, folder: Path, trained: ReaderModel, tmp_path: Path
) -> None:
    one = examples(1)[0]
    expected = torch_scores(trained, windows, one.question, one.passage)
    for form, most in (("float32", 1e-4), ("int8", 0.3)):
        export_reader(trained, folder / "tokenizer.json", tmp_path / form, Description(LIMITS), form=form)
        again = ReaderModel.go_on(tmp_path / form).eval()
        assert np.abs(torch_scores(again, windows, one.question, one.passage) - expected).mean() < most
    data = ReaderData(examples(), windows)
    more = train_reader(again, data, SETTINGS, device="cpu")
    anew = train_reader(new_model(windows), data, SETTINGS, device="cpu")
    assert more.loss < anew.loss, "it goes on from what it knew"


def test_an_encoder_is_no_reader_to_go_on_with(tmp_path: Path) -> None:
    write_bert(tmp_path, random_weights(hidden=32, heads=2, inner=64, layers=2, words=259, positions=40), "plain")
    with pytest.raises(ConfigError, match="is no reader that can learn more: it has no segments"):
        ReaderModel.go_on(tmp_path)


# --- the encoder ----------------------------------------------------------------------------------------


def test_the_torch_encoder_computes_what_the_file_does(tmp_path: Path) -> None:
    made = random_weights(hidden=32, heads=2, inner=64, layers=2, words=259, positions=40)
    write_bert(tmp_path, made, "plain")
    ids, mask = pad([[5, 9, 200, 31], [7, 8]])
    feeds = {
        "input_ids": ids.numpy(),
        "attention_mask": mask.numpy().astype(np.int64),
        "token_type_ids": 0 * ids.numpy(),
    }
    session = OnnxSession.open(tmp_path / "model.onnx", threads=1)
    expected = session.run(["last_hidden_state"], feeds)[0].numpy()
    with torch.no_grad():
        found = Bert.open(tmp_path).eval()(ids, mask).numpy()
    assert np.abs(found - expected)[mask.numpy()].max() < 1e-4


def test_float_weights_are_not_for_the_kernel(tmp_path: Path) -> None:
    from edge_sdk.encoders.bert_graph import read_float_bert

    write_bert(tmp_path, random_weights(hidden=64, heads=2, inner=128, layers=1, words=259, positions=8), "plain")
    floats = read_float_bert(OnnxGraph(inspect_onnx(tmp_path / "model.onnx")))
    assert floats.words.dtype == np.float32 and set(floats.word_scales.tolist()) == {1.0}
    if kernel.best_path() is not None:
        with pytest.raises(ValueError, match="has to be"):
            kernel.BertKernel(floats)


# --- data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("The red, red lamp", ("red",), ["red", "red"]),
        ("The redder lamp", ("red",), ["redder"]),  # only there: the word around it
        ("The redder, red lamp", ("red",), ["red"]),
        ("The red lamp is", ("green", "lamp is", "red"), ["lamp is"]),  # the first answer that stands there
        ("The red lamp", ("",), []),
        ("The red lamp", ("lever",), []),
    ],
)
def test_answers_are_found_as_whole_words(
    windows: Windows, text: str, answers: Sequence[str], found: list[str]
) -> None:
    pieces = windows.tokenizer.pieces(text)
    spans = list(token_spans(text, pieces, answers))
    assert [text[pieces.starts[first] : pieces.ends[last]] for first, last in spans] == found


@pytest.mark.parametrize(
    "mixture", [Mixture(), Mixture(joined=1.0), Mixture(joined=0.0, absent=1.0, distractors=2)]
)
def test_what_a_batch_says_is_right_is_the_answer(windows: Windows, mixture: Mixture) -> None:
    every = examples()
    data = ReaderData([*every, Example("What colour is the moon?", every[0].passage)], windows)
    answers: dict[tuple[int, ...], set[str]] = {}
    for each in every:
        answers.setdefault(tuple(windows.question(each.question)), set()).add(each.answers[0])
    present = 0
    for groups in data.batches(0, mixture=mixture, tokens=1024):
        batch = make_batch(groups)
        assert batch.ids.numel() <= 1024 or len(groups) == 1
        for number, group in enumerate(groups):
            rows = batch.member[number].nonzero().flatten().tolist()
            assert len(rows) == len(group.windows)
            for row in rows:
                spelled = [windows.tokenizer.spelling(token) for token in batch.ids[row].tolist()]
                starts, ends = (part[row].nonzero().flatten().tolist() for part in (batch.starts, batch.ends))
                if starts == [0]:
                    assert ends == [0] and not any(group.spans) and batch.holds[row] == 0
                    continue
                question = tuple(batch.ids[row, 1 : group.windows[0].first - 1].tolist())
                assert {spelled[at] for at in (*starts, *ends)} <= answers[question]
                assert (batch.holds[row] == 1) == bool(starts)
                assert batch.may_start[row, starts].all() and batch.may_end[row, ends].all()
            present += any(group.spans)
    assert present == 0 if mixture.absent == 1.0 else present > 0.6 * len(every)


def test_epochs_differ_and_equal_seeds_do_not(windows: Windows) -> None:
    def ids(epoch: int, seed: int) -> list[list[int]]:
        batches = ReaderData(examples(), windows).batches(epoch, mixture=Mixture(), tokens=512, seed=seed)
        return [window.ids for groups in batches for group in groups for window in group.windows]

    assert ids(0, 0) == ids(0, 0)
    assert ids(0, 0) != ids(1, 0) and ids(0, 0) != ids(0, 1)


def test_examples_without_their_answer_are_left_out(windows: Windows) -> None:
    data = ReaderData([*examples(3), Example("What colour?", "The lamp is red.", ("yellow",))], windows)
    assert len(data.items) == 3
    with pytest.raises(ConfigError, match="no example has its answer"):
        ReaderData([Example("What colour?", "The lamp is red.", ("yellow",))], windows)


def test_probabilities_are_shared_by_the_passages_of_a_question(windows: Windows) -> None:
    data = ReaderData(examples(), windows)
    mixture = Mixture(distractors=1, absent=0.0, joined=0.0, alone=0.0)
    groups = data.batches(0, mixture=mixture, tokens=2048)[0]
    batch = make_batch(groups)
    scores = torch.zeros((*batch.ids.shape, 3))
    starts, ends = (
        [int(allowed[batch.member[at]].sum()) for at in range(len(groups))]
        for allowed in (batch.may_start, batch.may_end)
    )
    expected = np.log(starts).mean() + np.log(ends).mean() + np.log(2)
    assert reader_loss(scores, batch).item() == pytest.approx(expected, rel=1e-5)


def test_what_a_training_says_of_itself() -> None:
    assert Trained(True, 1, 2, 3, 4.0, 5.0).finished
