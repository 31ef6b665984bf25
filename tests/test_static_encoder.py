"""Static encoders: what the runtime promises of their vectors, damaged files, and how well they are distilled."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_files import VOCABULARY, write_encoder, write_tokenizer

from edge_sdk.bench.ingest import bench_ingest
from edge_sdk.cli import main
from edge_sdk.config import load_settings
from edge_sdk.encoders.embed import Encoder
from edge_sdk.encoders.encoders import encoder_backend, open_encoder
from edge_sdk.encoders.static_encoder import StaticEncoder, WordTokens
from edge_sdk.errors import ConfigError, EngineError, ModelDamagedError, ModelError, ModelNotFoundError
from edge_sdk.hub.models import resolve
from edge_sdk.model_files.tokenizer import Tokenizer
from quantize.static_encoder import distil_static, refine, shorten, token_frequencies

DIMENSION = 8
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, 16)).astype(np.float32)


def write_static(folder: Path, codes: np.ndarray, scales: np.ndarray, **description: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "static.npz", codes=codes, scales=scales)
    facts = {"format": 1, "name": "made up", "dimension": codes.shape[-1]} | description
    (folder / "static.json").write_text(json.dumps(facts))
    write_tokenizer(folder)


def codes_and_scales() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (VOCABULARY, DIMENSION)).astype(np.int8)
    return codes, random.uniform(0.001, 0.01, VOCABULARY).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    write_static(folder, *codes_and_scales())
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> StaticEncoder:
    return StaticEncoder.open(folder, max_tokens=32)


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=60)  # spells no special token


@given(texts=st.lists(PLAIN, max_size=12))
def test_vectors_are_normalised_sums_in_the_order_of_the_texts(encoder: StaticEncoder, texts: list[str]) -> None:
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), DIMENSION)
    assert vectors.dtype == np.float32
    codes, scales = codes_and_scales()
    for vector, text in zip(vectors, texts, strict=True):
        ids = list("".join(text.split()).encode())[:32]
        total = (codes[ids] * scales[ids, None].astype(np.float64)).sum(axis=0)
        assert vector == pytest.approx(total / (np.linalg.norm(total) or 1), abs=1e-4)


@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=12), at=st.integers(0, 11))
def test_a_text_has_the_same_bits_alone_and_among_others(encoder: StaticEncoder, texts: list[str], at: int) -> None:
    at %= len(texts)
    assert np.array_equal(encoder.encode([texts[at]])[0], encoder.encode(texts)[at])


def test_it_is_an_encoder_that_open_encoder_finds(folder: Path, encoder: StaticEncoder) -> None:
    protocol: Encoder = open_encoder(folder, max_tokens=32)
    assert isinstance(protocol, StaticEncoder)
    assert protocol.dimension == DIMENSION
    assert len(bytes.fromhex(protocol.fingerprint)) == 32
    assert protocol.fingerprint == encoder.fingerprint != open_encoder(folder, max_tokens=64).fingerprint
    assert encoder_backend(folder) == "token vectors (static)"
    found = resolve(str(folder), load_settings({}, {}))
    assert (found.role, found.format, found.path) == ("encoder", "static", folder / "static.npz")


@pytest.mark.parametrize("text", ["", " \n\t", "\ud800"])
def test_odd_texts_give_unit_vectors_or_zeros(encoder: StaticEncoder, text: str) -> None:
    length = float(np.linalg.norm(encoder.encode([text])[0]))
    assert length == pytest.approx(1 if text.strip() else 0, abs=1e-5)


def test_no_texts_give_no_rows(encoder: StaticEncoder) -> None:
    assert encoder.encode([]).shape == (0, DIMENSION)


def test_the_fingerprint_follows_the_vectors_and_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    codes, scales = codes_and_scales()
    before = StaticEncoder.open(folder).fingerprint
    write_static(tmp_path, codes, scales, name="other", source="elsewhere")
    assert StaticEncoder.open(tmp_path).fingerprint == before
    codes[0, 0] += 1
    write_static(tmp_path, codes, scales)
    changed = StaticEncoder.open(tmp_path).fingerprint
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    assert len({before, changed, StaticEncoder.open(tmp_path).fingerprint}) == 3


def test_memory_does_not_grow_with_the_words_that_were_seen(folder: Path) -> None:
    encoder = StaticEncoder.open(folder)
    texts = ["word " * 100, "x" * 1_000_000]
    encoder.encode(texts)
    tracemalloc.start()
    for start in range(0, 60_000, 500):
        encoder.encode([" ".join(f"{number:x}" for number in range(start, start + 500))])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000 * 200


def test_words_are_remembered_without_changing_their_tokens(folder: Path) -> None:
    words = WordTokens(Tokenizer.open(folder / "tokenizer.json"), max_tokens=6)
    assert words.ids("ab  cd").tobytes() == words.ids("ab\ncd").tobytes()
    assert words.ids("ab cd").tolist() == list(b"abcd")
    assert words.ids("abcdefgh i").tolist() == list(b"abcdef")
    assert set(words) == {"ab", "cd", "abcdefgh", "i"}


def test_neither_onnxruntime_nor_the_kernels_are_loaded(folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from edge_sdk.encoders.static_encoder import StaticEncoder
StaticEncoder.open(Path({str(folder)!r})).encode(["a"])
assert "onnxruntime" not in sys.modules and "kernels.bert" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- files that are not what they should be ---------------------------------------------------------


@settings(deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_is_one_line_or_harmless(folder: Path, at: int, bit: int, cut: bool) -> None:
    """A changed bit lies in the arrays, which have a checksum, or where nothing reads it."""
    whole = (folder / "static.npz").read_bytes()
    at %= len(whole)
    content = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    expected = StaticEncoder.open(folder).encode(["tea"])
    try:
        (folder / "static.npz").write_bytes(content)
        got = StaticEncoder.open(folder).encode(["tea"])
    except ModelDamagedError as error:
        assert "\n" not in str(error) and "static.npz" in str(error)
    else:
        assert not cut
        assert np.array_equal(got, expected)
    finally:
        (folder / "static.npz").write_bytes(whole)


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


ONES = np.ones(VOCABULARY, np.float32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "static.npz is no static encoder"),
        (b"PK\x05\x06" + bytes(18), "codes"),
        (_npz(codes=np.zeros((VOCABULARY, 8), np.int8)), "scales"),
        (_npz(codes=np.zeros((VOCABULARY, 8), np.int16), scales=ONES), "codes are int16"),
        (_npz(codes=np.zeros(VOCABULARY, np.int8), scales=ONES), "codes are int8 of shape"),
        (_npz(codes=np.zeros((VOCABULARY, 8), np.int8), scales=ONES[1:]), "scales are float32 of shape"),
        (_npz(codes=np.zeros((VOCABULARY, 8), np.int8), scales=ONES * np.float32("nan")), "from 0 to 1000"),
        (_npz(codes=np.zeros((VOCABULARY, 8), np.int8), scales=ONES * np.float32(1e38)), "from 0 to 1000"),
        (_npz(codes=np.zeros((VOCABULARY, 4), np.int8), scales=ONES), "says 8 dimensions, there are 4"),
        (_npz(codes=np.zeros((9, 8), np.int8), scales=ONES[:9]), "259 tokens, static.npz has 9"),
        (_npz(codes=np.array([object()]), scales=ONES), "static.npz is no static encoder"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    write_static(tmp_path, *codes_and_scales())
    (tmp_path / "static.npz").write_bytes(content)
    with pytest.raises(ModelDamagedError, match=reason) as caught:
        StaticEncoder.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"format": 2, "dimension": 8}', b'{"format": 1}']
)
def test_a_wrong_description_is_one_line(tmp_path: Path, content: bytes) -> None:
    write_static(tmp_path, *codes_and_scales())
    (tmp_path / "static.json").write_bytes(content)
    with pytest.raises(ModelDamagedError, match=r"static\.json is no static encoder"):
        StaticEncoder.open(tmp_path)


@pytest.mark.parametrize("name", ["static.npz", "static.json", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_static(tmp_path, *codes_and_scales())
    (tmp_path / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name):
        StaticEncoder.open(tmp_path)


# --- distillation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose states are the rows of a table: distilled without weights, it would come back exactly."""
    folder = tmp_path_factory.mktemp("source")
    write_encoder(folder, TABLE)
    return folder


def _documents(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    random = np.random.default_rng(1)
    texts = ["".join(random.choice(list("abcdefghijklmnop "), 60)).strip() for _ in range(count)]
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    return texts


def test_a_distilled_encoder_opens_and_documents_bring_it_closer(source: Path, tmp_path: Path) -> None:
    texts = _documents(tmp_path / "documents", 60)
    (tmp_path / "documents" / "empty.md").touch()
    seen: list[str] = []
    plain = distil_static(source, tmp_path / "plain", name="made", dimension=16)
    fitted = distil_static(
        source,
        tmp_path / "fitted",
        name="made",
        dimension=16,
        texts=[tmp_path / "documents"],
        progress=lambda done, total, detail: seen.append(detail),
    )
    assert (plain["passages"], fitted["passages"]) == (0, 60)
    assert [Path(str(reason).split(":")[0]).name for reason in fitted["skipped"]] == ["empty.md"]  # type: ignore[attr-defined]
    assert set(seen) == {"asking the encoder", "fitting passages"}
    # The table's own mean is taken away, so what is kept is which texts are close, not where they lie.
    truth = _similarities(open_encoder(source), texts)
    errors = [
        np.abs(_similarities(StaticEncoder.open(tmp_path / name), texts) - truth).mean()
        for name in ("plain", "fitted")
    ]
    assert errors[1] < 0.85 * errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "fitted", "plain"]


def _similarities(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    vectors = encoder.encode(texts)
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors @ vectors.T)


def test_passages_can_be_given_as_they_are(source: Path, tmp_path: Path) -> None:
    passages = ["a word or two", "another passage", "a word or two"]
    made = distil_static(source, tmp_path / "fitted", name="made up", passages=passages)
    distil_static(source, tmp_path / "plain", name="made up")
    assert (made["passages"], made["skipped"]) == (2, [])
    vectors = [StaticEncoder.open(tmp_path / name).encode(passages[:1]) for name in ("plain", "fitted")]
    assert not np.array_equal(*vectors)


def test_blocks_of_texts_are_solved_to_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    tokens = [random.integers(0, 400, 8).astype(np.int32) for _ in range(90)] + [np.zeros(0, np.int32)]
    table = random.normal(size=(400, 6)).astype(np.float32)
    weights = random.uniform(0.1, 1, 400).astype(np.float32)
    targets = random.normal(size=(91, 6)).astype(np.float32)
    whole = refine(table, weights, tokens, targets)

    def error(block: int, sweeps: int) -> float:
        monkeypatch.setattr("quantize.static_encoder._BLOCK", block)
        monkeypatch.setattr("quantize.static_encoder.SWEEPS", sweeps)
        return float(np.abs(refine(table, weights, tokens, targets) - whole).max())

    assert error(40, sweeps=40) < 1e-3
    assert error(40, sweeps=1) > 1e-2  # one sweep is not enough
    assert error(91, sweeps=1) < 1e-5


def test_tokens_that_no_document_holds_get_the_frequency_of_their_rank() -> None:
    spellings = ["[PAD]", "[unused1]", ".", "the", "of", "tea", "##ing"]
    prior = token_frequencies([], spellings)
    assert prior[2] == prior[3] > prior[4] > prior[5] > prior[6]
    counted = token_frequencies([np.array([5] * 100_000, np.int32)], spellings)
    assert counted.argmax() == 5
    assert counted[3] > counted[4] > 0


def test_shortening_keeps_what_is_frequent() -> None:
    table = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0.1]], np.float32)
    short = shorten(table, np.array([0.001, 0.499, 0.5]), 1)
    assert np.abs(short).ravel() == pytest.approx([0, 1, 0], abs=1e-5)
    with pytest.raises(EngineError, match="every token the same"):
        shorten(np.zeros((3, 3), np.float32), np.ones(3), 1)


def test_what_stands_in_the_way_is_said_before_any_work(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        distil_static(source, tmp_path / "there", name="made")
    with pytest.raises(ConfigError, match="dimension 17 is not from 1 to the 16 of made"):
        distil_static(source, tmp_path / "out", name="made", dimension=17)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError):
        distil_static(source, tmp_path / "file" / "out", name="made")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing_behind(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distil_static(source, tmp_path / "out", name="made")
    assert not list(tmp_path.iterdir())


def test_the_command_makes_an_encoder_that_other_commands_take(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _documents(tmp_path / "documents", 3)
    out, store = str(tmp_path / "out"), str(tmp_path / "store.db")
    documents = str(tmp_path / "documents")
    assert main(["distill", "static", str(source), out, "--dimension", "12", "--text", documents, "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made["dimension"], made["passages"], made["tokens"]) == (12, 3, VOCABULARY)
    assert main(["add", documents, "--encoder", out, "--store", store]) == 0
    assert main(["search", "abc", "--encoder", out, "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["hits"]
    assert main(["distill", "static", str(source), out]) == 1
    assert "exists already" in capsys.readouterr().err


def test_its_speed_is_measured_beside_the_encoder_that_it_came_from(folder: Path, source: Path) -> None:
    with pytest.raises(ConfigError, match="give a --reference"):
        bench_ingest(folder, ["A passage."])
    report = bench_ingest(folder, ["A passage."], reference=source, batches=(1,), repeats=1, threads=1)
    assert set(report["encoders"]) == {"edge", "reference_edge", "reference_1"}
    assert report["backend"] == "token vectors (static)"


PASSAGES = [
    "Descale the kettle once a month: fill it with water and vinegar, boil it and leave it for an hour.",
    "The warranty covers faults of material for two years from the day of purchase; keep the receipt.",
    "To reset the router, press the small button at its back for ten seconds until the lights go out.",
    "Dogs should be vaccinated against rabies; the vet notes the date in the animal's passport.",
    "The train to the airport leaves every twenty minutes from platform four.",
    "Bake the bread at two hundred degrees until the crust is brown and sounds hollow.",
]
QUESTIONS = [
    "How do I remove limescale from my kettle?",
    "How long does the guarantee last?",
    "What can I do to restart the router?",
    "Which vaccination does my dog need?",
    "When does the airport train leave?",
    "How hot must the oven be for bread?",
]


@pytest.mark.model
def test_a_distilled_minilm_finds_the_right_passages_and_ranks_like_minilm(
    minilm_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "manual.md"
    file.write_text("\n\n".join(f"# {number}\n\n{text}" for number, text in enumerate(PASSAGES)))
    made = distil_static(minilm_dir, tmp_path / "out", name="minilm-l6-int8", texts=[file])
    assert made["tokens"] == 30522 and made["dimension"] == 256
    static, teacher = StaticEncoder.open(tmp_path / "out"), open_encoder(minilm_dir)
    ours = static.encode(QUESTIONS) @ static.encode(PASSAGES).T
    theirs = teacher.encode(QUESTIONS) @ teacher.encode(PASSAGES).T
    assert (theirs.argmax(axis=1) == range(6)).all()
    assert (ours.argmax(axis=1) == range(6)).sum() >= 5
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.7


def test_a_file_that_unpacks_to_more_than_its_size_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    codes = np.zeros((VOCABULARY * 400, DIMENSION), np.int8)
    write_static(tmp_path, codes, np.zeros(len(codes), np.float32))
    np.savez_compressed(tmp_path / "static.npz", codes=codes, scales=np.zeros(len(codes), np.float32))
    size = (tmp_path / "static.npz").stat().st_size
    tracemalloc.start()
    with pytest.raises(ModelDamagedError, match="unpacks to more"):
        StaticEncoder.open(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < codes.nbytes / 2 + 3 * size
