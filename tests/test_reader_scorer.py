"""The kernel and onnxruntime compute a reader alike: each window by itself, both parts of a pair embedded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_readers import write_word_pieces

from edge_sdk.encoders.bert_graph import NotBertError
from edge_sdk.errors import EngineError
from edge_sdk.kernel_faces import bert as kernel
from edge_sdk.model_files.onnx_session import OnnxFile, inspect_onnx
from edge_sdk.readers.description import Description
from edge_sdk.readers.scorer import KernelScorer, OnnxScorer, open_scorer
from edge_sdk.readers.windows import Limits, Window
from quantize.students.bert import Bert, BertShape
from quantize.students.reader_export import export_reader
from quantize.students.reader_model import ReaderModel

if kernel.best_path() in (None, kernel.PORTABLE) or not kernel.has_states():
    pytest.skip("the kernels were not compiled, or are not fast here", allow_module_level=True)

LONGEST = 48
WINDOWS = [
    Window(at, [2, *range(5, 5 + size // 2), 3, *range(60, 60 + size), 3], size // 2 + 2, 0)
    for at, size in enumerate((1, 4, 9, 30))
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    """A reader with random weights, all of them large enough to matter."""
    folder = tmp_path_factory.mktemp("reader")
    size = write_word_pieces(folder / "tokenizer.json")
    torch.manual_seed(0)
    model = ReaderModel(Bert(BertShape(2, 64, 2, 128, size, LONGEST)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.15)
    export_reader(model, folder / "tokenizer.json", folder / "out", Description(Limits(LONGEST, 8, 5, 8)))
    return inspect_onnx(folder / "out" / "model.onnx")


def test_both_give_close_scores(file: OnnxFile) -> None:
    ours, theirs = KernelScorer(file, LONGEST, 1).scores(WINDOWS), OnnxScorer(file, 1).scores(WINDOWS)
    spread = np.concatenate(theirs).std()
    for window, found, expected in zip(WINDOWS, ours, theirs, strict=True):
        assert found.shape == expected.shape == (len(window.ids), 3)
        assert np.abs(found - expected).max() < 0.1 * spread


def test_the_second_part_of_a_pair_has_an_embedding_of_its_own(file: OnnxFile) -> None:
    whole = [Window(0, WINDOWS[2].ids, len(WINDOWS[2].ids), 0), WINDOWS[2]]
    for scorer in (KernelScorer(file, LONGEST, 1), OnnxScorer(file, 1)):
        one, two = scorer.scores(whole)
        assert np.abs(one - two).max() > 0.02


def test_a_window_has_the_same_bits_whatever_is_beside_it(file: OnnxFile) -> None:
    alone, several = KernelScorer(file, LONGEST, 1), KernelScorer(file, LONGEST, 3)
    together = several.scores(WINDOWS * 5)
    for at, found in enumerate(together):
        assert np.array_equal(found, alone.scores([WINDOWS[at % len(WINDOWS)]])[0])


def test_the_kernel_is_taken_where_it_knows_the_model(file: OnnxFile) -> None:
    assert isinstance(open_scorer(file, LONGEST, 1), KernelScorer)
    with pytest.raises(NotBertError, match="48 positions for 49 tokens"):
        KernelScorer(file, LONGEST + 1, 1)


@pytest.mark.parametrize("ids", [[10**6], [-1], [2] * 200])
def test_tokens_that_the_model_does_not_have_are_an_error(file: OnnxFile, ids: list[int]) -> None:
    with pytest.raises(EngineError, match="does not fit the model"):
        KernelScorer(file, LONGEST, 1).scores([Window(0, ids, 1, 0)])


def test_states_want_a_place_for_every_token() -> None:
    from bert_models import random_weights

    model = kernel.BertKernel(random_weights(hidden=64, heads=2, inner=96, layers=1, words=80, positions=70))
    workspace = model.workspace(8, 8)
    for places in ([0], [0, 70], [0, -1]):
        with pytest.raises(ValueError, match="do not fit"):
            model.states([1, 2], places, workspace)
    with pytest.raises(ValueError, match="do not fit"):
        model.states([1] * 9, list(range(9)), workspace)
    counted, moved = (model.states([1, 2], places, workspace) for places in ([0, 1], [0, 9]))
    mean = counted.mean(axis=0)
    assert np.allclose(model.encode([[1, 2]], workspace)[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert not np.array_equal(counted, moved)
    assert model.states([], [], workspace).shape == (0, 64)
