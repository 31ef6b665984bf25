"""A decoder learns its lessons, goes on where it was stopped, and is written so that llama.cpp says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from gguf_files import tiny_llama

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")

import torch

from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.errors import ConfigError
from edge_sdk.model_files.gguf_adapter import read_adapter
from edge_sdk.model_files.gguf_header import read_header
from edge_sdk.prompt import Reading
from edge_sdk.records import GenerateOptions, Message
from quantize.gguf_models.tensors import GgufModel
from quantize.students.decoder_batches import make_batch
from quantize.students.decoder_data import Branch, Sheet, soft_sheets
from quantize.students.decoder_export import AdapterFacts, load_adapter, merged_weights, write_adapter, write_model
from quantize.students.decoder_lora import Lora, add_grid, add_lora
from quantize.students.decoder_model import DecoderModel
from quantize.students.decoder_training import DecoderTraining, train_decoder
from quantize.teachers.teacher import Request
from quantize.teachers.top_logits import TopLogits, TopLogitsFile

PROMPT = "the rain and the sea"
FEW = DecoderTraining(epochs=12, tokens=60, learning_rate=2e-2, warm_up=0.1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def sheets(epoch: int) -> list[Sheet]:
    """Three prefixes; after each, 200 + n is to follow n and 2 is to end it."""
    random = np.random.default_rng(epoch)
    made = []
    for _ in range(6):
        prefix = tuple(random.integers(3, 90, 12).tolist())
        asked = random.integers(10, 14, 3).tolist()
        made.append(Sheet(prefix, tuple(Branch((100, each, 200 + each, 2), 2) for each in asked)))
    return made


def fresh(tiny: Path, rank: int = 4) -> DecoderModel:
    model = DecoderModel.from_gguf(tiny)
    add_lora(model, Lora(rank=rank, alpha=8.0))
    return model


def first_logits(engine: GgufEngine) -> np.ndarray:
    for _ in engine.generate(PROMPT, GenerateOptions(max_tokens=1)):
        pass
    return np.ctypeslib.as_array(engine._model.row(), (engine._model.size,)).copy()


def says(model: DecoderModel, engine: GgufEngine) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model.logits(model(torch.tensor([engine.tokens(PROMPT)])))[0, -1].numpy()
    return found


def test_a_decoder_learns_what_follows_what(tiny: Path) -> None:
    model = fresh(tiny)
    before = train_decoder(fresh(tiny), sheets, DecoderTraining(epochs=1, tokens=60, learning_rate=1e-9))
    found = train_decoder(model, sheets, FEW)
    assert found.finished
    assert (found.answers, found.tokens) == (12 * 18, 12 * 6 * (12 + 12))
    assert found.loss < 0.6 * before.loss


def test_a_batch_asks_for_answers_and_nothing_else() -> None:
    batch = make_batch([Sheet((5, 6), (Branch((7, 8, 9, 2), 2), Branch((7, 9, 2), 1))), Sheet((5,), ())])
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 2, 7, 9, 2], [5, *[0] * 8]]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4]
    assert batch.places.tolist() == [[0, 3], [0, 4], [0, 6], [0, 7]]
    assert batch.labels.tolist() == [9, 2, 9, 2]
    assert batch.seen[0, 7].nonzero()[:, 0].tolist() == [0, 1, 6, 7]
    assert batch.seen[0, 5].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.seen.any(-1).all()  # padding too sees something, or its softmax is no number


def test_rivals_stand_where_their_answers_tokens_are_to_be_said() -> None:
    branches = (Branch((7, 8, 9, 2), 2, rivals=((4, 5), ())), Branch((7, 9, 2), 1, rivals=((), (6,))))
    batch = make_batch([Sheet((5, 6), branches), Sheet((5,), (Branch((7, 2), 1),))])
    assert batch.labels.tolist() == [9, 2, 9, 2, 2]
    assert batch.chosen.tolist() == [0, 3]
    assert batch.rivals.tolist() == [[4, 5], [6, -1]]
    assert make_batch([Sheet((5,), (Branch((7, 2), 1),))]).chosen.tolist() == []


def test_a_decoder_learns_to_tell_an_answer_from_its_rivals(tiny: Path) -> None:
    """Nothing but the choice is learned: of all other tokens the right one may stay unlikely."""

    def beside(epoch: int) -> list[Sheet]:
        return [
            Sheet(
                sheet.prefix,
                tuple(
                    Branch(each.tokens, each.answer, rivals=(tuple({210, 211, 212, 213} - {each.tokens[2]}), ()))
                    for each in sheet.branches
                ),
            )
            for sheet in sheets(epoch)
        ]

    few = replace(FEW, choosing=1.0)
    before = train_decoder(fresh(tiny), beside, replace(few, epochs=1, learning_rate=1e-9))
    found = train_decoder(fresh(tiny), beside, few)
    assert found.loss < 0.6 * before.loss


@pytest.mark.parametrize("grid", [False, True])
def test_an_interrupted_training_ends_as_if_it_had_not_been(tiny: Path, tmp_path: Path, grid: bool) -> None:
    settings = DecoderTraining(epochs=3, tokens=80, learning_rate=2e-3, confidence=0.3, grid_steps=2)

    def begun() -> DecoderModel:
        model = DecoderModel.from_gguf(tiny) if grid else fresh(tiny)
        if grid:
            add_grid(model, "Q4_0")
        return model

    whole = begun()
    straight = train_decoder(whole, sheets, settings)
    resumed, runs = begun(), 0
    while True:
        cancel = Event()
        steps = 0

        def stop(done: float, total: float | None, detail: str) -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                cancel.set()  # noqa: B023

        resumed, runs = begun(), runs + 1
        found = train_decoder(resumed, sheets, settings, checkpoint=tmp_path / "c.pt", progress=stop, cancel=cancel)
        if found.finished:
            break
    assert runs > 2
    assert (found.steps, found.answers, found.loss) == (straight.steps, straight.answers, straight.loss)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_checkpoint_of_another_training_is_refused(tiny: Path, tmp_path: Path) -> None:
    few = DecoderTraining(epochs=1, tokens=400)
    train_decoder(fresh(tiny), sheets, few, checkpoint=tmp_path / "c.pt")
    others: list[tuple[DecoderModel, Callable[[int], list[Sheet]], DecoderTraining, str]] = [
        (fresh(tiny), sheets, DecoderTraining(epochs=2, tokens=400), "settings"),
        (fresh(tiny), lambda epoch: sheets(epoch + 9), few, "sheets"),
        (fresh(tiny, 2), sheets, few, "trained"),
    ]
    for model, given, settings, what in others:
        with pytest.raises(ConfigError, match=f"made with another {what}"):
            train_decoder(model, given, settings, checkpoint=tmp_path / "c.pt")
    with pytest.raises(ConfigError, match="nothing to train on"):
        train_decoder(fresh(tiny), lambda epoch: [], few)


def test_an_adapter_is_in_llama_cpp_what_it_was_in_torch(tiny: Path, tmp_path: Path) -> None:
    model = fresh(tiny)
    train_decoder(model, sheets, FEW)
    facts = AdapterFacts("learned", base="tiny", reading=Reading(512, False, 64, True), licence="Apache-2.0")
    header = write_adapter(model, tiny, tmp_path / "a.gguf", facts)
    assert (header.alpha, header.rank, header.base) == (8.0, 4, "tiny")
    assert (header.prompt_tokens, header.numbered, header.evidence_tokens) == (512, False, 64)
    assert header.extractive
    assert header == read_adapter(tmp_path / "a.gguf", read_header(tiny))
    with GgufEngine.open(tiny, context=256, threads=1) as engine:
        plain = first_logits(engine)
        engine.use_adapter(tmp_path / "a.gguf")
        adapted = first_logits(engine)
        np.testing.assert_allclose(adapted, says(model, engine), atol=2e-2)
    assert np.abs(adapted - plain).max() > 0.5


def test_an_adapter_goes_on_from_its_file(tiny: Path, tmp_path: Path) -> None:
    model, again = fresh(tiny), fresh(tiny)
    train_decoder(model, sheets, FEW)
    write_adapter(model, tiny, tmp_path / "a.gguf", AdapterFacts("learned"))
    load_adapter(again, tmp_path / "a.gguf")
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-3)
    still = replace(FEW, epochs=1, learning_rate=1e-9)
    assert train_decoder(again, sheets, still).loss < 0.6 * train_decoder(fresh(tiny), sheets, still).loss
    with pytest.raises(ConfigError, match="rank 4, alpha 8") as refused:
        load_adapter(fresh(tiny, 2), tmp_path / "a.gguf")
    assert "use rank = 4" in refused.value.hint


def test_merged_weights_are_the_adapted_model(tiny: Path, tmp_path: Path) -> None:
    model = fresh(tiny)
    train_decoder(model, sheets, FEW)
    header = write_model(model, tiny, tmp_path / "m.gguf", type="F32")
    assert {tensor.name for tensor in header.tensors} == set(GgufModel(tiny).tensors)
    with GgufEngine.open(tmp_path / "m.gguf", context=256, threads=1) as engine:
        np.testing.assert_allclose(first_logits(engine), says(model, engine), atol=2e-2)
    smaller = write_model(model, tiny, tmp_path / "q.gguf", type="Q8_0")
    kinds = {tensor.name: tensor.type for tensor in smaller.tensors}
    assert (kinds["blk.0.ffn_up.weight"], kinds["token_embd.weight"]) == ("Q8_0", "F32")


def test_weights_trained_on_a_grid_lose_nothing_when_they_are_quantized(tiny: Path, tmp_path: Path) -> None:
    model = DecoderModel.from_gguf(tiny)
    add_grid(model, "Q4_0")
    train_decoder(model, sheets, DecoderTraining(epochs=2, tokens=160, learning_rate=1e-3, grid_steps=1))
    write_model(model, tiny, tmp_path / "q.gguf", type="Q4_0")
    written = GgufModel(tmp_path / "q.gguf")
    layer = model.blk[0].ffn_up
    used = (layer.weight + layer.rounding).detach().numpy()
    np.testing.assert_allclose(written.floats("blk.0.ffn_up.weight"), used, atol=1e-6)


def test_a_student_of_some_layers_is_a_model_of_its_own(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "deep.gguf", layers=4)
    model = DecoderModel.from_gguf(source, layers=[0, 3])
    header = write_model(model, source, tmp_path / "short.gguf", type="F32", layers=[0, 3])
    assert header.n_layer == 2
    deep, short = GgufModel(source), GgufModel(tmp_path / "short.gguf")
    np.testing.assert_array_equal(short.floats("blk.1.attn_k.weight"), deep.floats("blk.3.attn_k.weight"))
    with GgufEngine.open(tmp_path / "short.gguf", context=256, threads=1) as engine:
        np.testing.assert_allclose(first_logits(engine), says(model, engine), atol=2e-2)


def test_a_teacher_of_the_same_vocabulary_is_learned_by_its_likelihoods(tmp_path: Path) -> None:
    """Two thirds for one token, one third for another: a student of its words alone learns the first only."""
    source = tiny_llama(tmp_path / "tiny.gguf")
    request = Request((Message("user", "the sea"),))
    likely = np.array([[201, 202]], np.int32)
    with (
        np.errstate(divide="ignore"),
        GgufEngine.open(source, context=256, threads=1) as engine,
        TopLogitsFile.open(tmp_path / "top", teacher="t", vocabulary=267, k=2) as top,
    ):
        chosen, logprobs = np.array([201], np.int32), np.log(np.array([[2 / 3, 1 / 3]], np.float32))
        top.append(request.key, TopLogits(chosen, likely, logprobs, np.log(np.zeros(1, np.float32))))
        (sheet,) = soft_sheets([request, Request((Message("user", "unknown"),))], top, engine)
        prompt = engine.tokens(engine.render(request.messages))
        assert [*sheet.prefix, *sheet.branches[0].tokens] == [*prompt, 201]
        smaller = tmp_path / "small"
        with TopLogitsFile.open(smaller, teacher="t", vocabulary=50, k=2) as few:
            few.append(request.key, TopLogits(chosen, likely, logprobs, np.log(np.zeros(1, np.float32))))
            with pytest.raises(ConfigError, match="is not among the 50 of small"):
                soft_sheets([request], few, engine)

    def learned(soft: float) -> list[float]:
        model = fresh(source)
        train_decoder(model, lambda epoch: [sheet], DecoderTraining(epochs=60, learning_rate=1e-2, soft=soft))
        with torch.inference_mode():
            shares: torch.Tensor = model.logits(model(torch.tensor([prompt])))[0, -1].softmax(-1)
        return shares[[201, 202]].tolist()  # type: ignore[no-any-return]

    first, second = learned(1.0)
    assert 0.4 < first < 0.7
    assert 0.15 < second < 0.4
    assert learned(0.0)[1] < 0.05


def test_what_cannot_be_written_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no LoRA matrices"):
        write_adapter(DecoderModel.from_gguf(tiny), tiny, tmp_path / "a.gguf", AdapterFacts("x"))
    model = fresh(tiny)
    with torch.no_grad():
        model.blk[0].attn_q.lora_b += 1e6
    with pytest.raises(ConfigError, match=r"blk\.0\.attn_q\.weight has a trained weight that is no number in half"):
        write_adapter(model, tiny, tmp_path / "a.gguf", AdapterFacts("x"))
    other = tiny_llama(tmp_path / "other.gguf", embed=64)
    with pytest.raises(ConfigError, match=r"has no token_embd\.weight of the student's shape"):
        write_model(model, other, tmp_path / "m.gguf", type="F32")
    assert not list(tmp_path.glob("[am].gguf"))
    assert merged_weights(model).keys() == GgufModel(tiny).tensors.keys()
