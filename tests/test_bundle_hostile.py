"""Damaged and hostile bundles are refused before any native code runs: 2,000 flipped bits, 500 made-up attacks."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_files import content_ranges, make_bundle, put_together, take_apart
from hostile_bundles import ATTACKS

from edge_sdk.bundle import cache
from edge_sdk.bundle.archive import Archive
from edge_sdk.bundle.signature import make_keys
from edge_sdk.config import load_settings
from edge_sdk.errors import BundleError, SignatureError
from edge_sdk.loading import load_encoder, load_engine

FLIPS, HOSTILE = 2_000, 500


class _Reached(Exception):
    """Native code would have run."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle, and the same one signed."""
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("bundles")
    make_keys(folder / "key")
    for name in ("plain", "signed"):
        (folder / name).mkdir()
    return {"plain": make_bundle(folder / "plain"), "signed": make_bundle(folder / "signed", folder / "key")}


@pytest.fixture
def natives(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts every way into native code: llama.cpp, onnxruntime, tokenizers, the encoders. None of them runs."""
    count: Counter[str] = Counter()

    def instead(name: str) -> Callable[..., Any]:
        def reached(*arguments: object, **options: object) -> None:
            count[name] += 1
            raise _Reached(name)

        return reached

    for name in (
        "edge_sdk.engines.engine_gguf.GgufEngine.open",
        "edge_sdk.engines.engine_onnx.OnnxEngine.open",
        "edge_sdk.engines.llama_library.library",
        "edge_sdk.encoders.encoders.open_encoder",
        "edge_sdk.encoders.static_encoder.StaticEncoder.open",
        "edge_sdk.model_files.onnx_session.OnnxSession.open",
        "edge_sdk.model_files.tokenizer.Tokenizer.open",
    ):
        monkeypatch.setattr(name, instead(name))
    return count


def open_all(path: Path, home: Path) -> None:
    """Both models of a bundle, on a device that has never seen it."""
    settings = load_settings({"home": home, "bundle": path, "offline": True}, {})
    for load in (load_engine, load_encoder):
        load(settings)


def refused(path: Path, home: Path) -> str:
    """The error of a bundle, which must leave nothing behind that could be loaded."""
    with pytest.raises(BundleError) as caught:
        open_all(path, home)
    left = [each for each in home.rglob("*") if each.is_dir() and each.name != "bundles"]
    assert not left, f"{left} after {caught.value}"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flips(path: Path, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Byte and bit of flips: half of them in headers, manifest, signature and directory, half in files."""
    listed = [
        range_ for name, range_ in content_ranges(path).items() if name not in ("bundle.json", "signature.json")
    ]
    content = [at for range_ in listed for at in range_]
    inside = set(content)
    structure = [at for at in range(path.stat().st_size) if at not in inside]
    pick = random.Random(seed)
    for number in range(count):
        yield pick.choice(structure if number % 2 else content), pick.randrange(8)


def test_a_sound_bundle_reaches_native_code(
    bundles: dict[str, Path], natives: Counter[str], tmp_path: Path
) -> None:
    """Else the counts below would say nothing."""
    for number, path in enumerate(bundles.values(), 1):
        with pytest.raises(_Reached):
            open_all(path, tmp_path / str(number))
        assert sum(natives.values()) == number


@pytest.mark.parametrize("name", ["plain", "signed"])
def test_every_flipped_bit_is_refused_before_native_code(
    bundles: dict[str, Path], natives: Counter[str], tmp_path: Path, name: str
) -> None:
    sound, changed = bundles[name].read_bytes(), tmp_path / "changed.edge"
    for at, bit in flips(bundles[name], FLIPS // 2, seed=len(name)):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << bit
        changed.write_bytes(damaged)
        refused(changed, tmp_path / "home")
    assert not natives


def test_a_flip_in_the_signature_makes_it_invalid(bundles: dict[str, Path], tmp_path: Path) -> None:
    sound, changed = bundles["signed"].read_bytes(), tmp_path / "changed.edge"
    for at in list(content_ranges(bundles["signed"])["signature.json"])[::5]:
        damaged = bytearray(sound)
        damaged[at] ^= 1
        changed.write_bytes(damaged)
        with pytest.raises(BundleError, match="CRC-32"):  # the zip's own check sees it first
            open_all(changed, tmp_path / "home")
    values, files = take_apart(bundles["signed"])
    for at in range(0, len(files["signature.json"]), 5):
        content = bytearray(files["signature.json"])
        content[at] ^= 1
        changed.write_bytes(put_together(values, {**files, "signature.json": bytes(content)}))
        with pytest.raises(SignatureError, match="the signature is invalid"):
            open_all(changed, tmp_path / "home")


def test_every_hostile_archive_is_refused_before_native_code(
    bundles: dict[str, Path], natives: Counter[str], tmp_path: Path
) -> None:
    values, files = take_apart(bundles["plain"])
    reasons: dict[str, set[str]] = {attack.__name__: set() for attack in ATTACKS}
    outside = tmp_path / "outside"
    (outside / "inside").mkdir(parents=True)
    for number in range(HOSTILE):
        attack = ATTACKS[number % len(ATTACKS)]
        content = attack(random.Random(number), copy.deepcopy(values), dict(files))
        assert content != bundles["plain"].read_bytes(), (number, attack.__name__)
        path = outside / "inside" / "hostile.edge"
        path.write_bytes(content)
        try:
            reasons[attack.__name__].add(refused(path, outside / "inside" / "home"))
        except BaseException as error:
            raise AssertionError(f"attack {number}, {attack.__name__}") from error
        path.unlink()
    assert not natives
    assert [each.name for each in outside.iterdir()] == ["inside"]
    assert sum(map(len, reasons.values())) > HOSTILE / 4  # they are refused for many reasons, not for one
    assert all(reasons.values())


def test_without_the_hashes_flipped_weights_would_be_loaded(
    bundles: dict[str, Path], natives: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sabotage that the tests above must catch."""
    monkeypatch.setattr(Archive, "blocks", lambda archive, entry: archive.raw_blocks(entry.path))
    monkeypatch.setattr(cache, "_is_right", lambda *_: False)
    weights = content_ranges(bundles["plain"])["decoder/tiny-f32.gguf"]
    damaged, changed = bytearray(bundles["plain"].read_bytes()), tmp_path / "changed.edge"
    damaged[weights.stop - 100] ^= 1
    changed.write_bytes(damaged)
    with pytest.raises(_Reached):
        open_all(changed, tmp_path / "home")
    assert sum(natives.values()) == 1
