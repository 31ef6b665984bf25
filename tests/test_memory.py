"""What a model takes by its header, and that nothing above the budget is loaded."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf_files import tiny_llama
from gguf_headers import made_header
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from edge_sdk.engines import engine_gguf
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.memory import RESERVE, estimate_memory, fit_tuning, room
from edge_sdk.engines.profile import Tuning
from edge_sdk.errors import NotEnoughMemoryError
from edge_sdk.model_files.gguf_header import GgufHeader, read_header

MIB = 1 << 20


def any_header(pick: random.Random) -> GgufHeader:
    heads = pick.choice([4, 8, 16, 32])
    return made_header(
        layers=pick.randint(1, 48),
        width=heads * pick.choice([16, 64, 80, 128]),
        heads=heads,
        kv_heads=pick.choice([1, 2, heads]),
        vocabulary=pick.choice([300, 32_000, 151_936]),
        kind=pick.choice(["F16", "Q4_0", "Q4_1", "Q4_K", "Q8_0"]),
        tied=pick.random() < 0.5,
    )


def test_no_load_of_2000_combinations_is_above_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    pick = random.Random(7)
    now: dict[str, int] = {}
    loads = refusals = 0
    header = made_header()

    def load(path: Path, *, context: int, tuning: Tuning, **others: object) -> SimpleNamespace:
        nonlocal loads
        loads += 1
        needed = estimate_memory(header, context, tuning).needed
        assert needed <= room(now["free"])
        assert now["free"] - needed >= min(now["free"] // 5, RESERVE)
        return SimpleNamespace(close=lambda: None, forgets=True)

    monkeypatch.setattr(engine_gguf, "read_header", lambda path: header)
    monkeypatch.setattr(engine_gguf, "LlamaModel", load)
    monkeypatch.setattr(engine_gguf, "available_memory", lambda: now["free"])
    for _ in range(2000):
        header = any_header(pick)
        context = int(2 ** pick.uniform(6, 17))
        tuning = Tuning(pick.choice([64, 512, 2048]), pick.choice([None, True, False]))
        # From far too little to plenty, and often close to what is needed.
        needed = estimate_memory(header, context, tuning).needed
        now["free"] = int(needed * pick.choice([pick.uniform(0.0, 2.0), pick.uniform(0.9, 1.4)]))
        try:
            GgufEngine.open(Path("made.gguf"), context=context, threads=1, tuning=tuning).close()
        except NotEnoughMemoryError as refusal:
            refusals += 1
            assert refusal.room == room(now["free"]) < sum(refusal.parts.values())
            if refusal.context is not None and refusal.cache_type is not None:
                smaller = Tuning(64, tuning.flash_attention, refusal.cache_type)
                assert refusal.context <= context
                assert estimate_memory(header, refusal.context, smaller).needed <= room(now["free"])
                fit_tuning("made", header, refusal.context, smaller, now["free"])
    assert loads + refusals == 2000
    assert loads > 300
    assert refusals > 300


def test_a_refusal_names_every_part_and_settings_that_fit() -> None:
    header = made_header(layers=24, heads=8, kv_heads=8)
    full = estimate_memory(header, 8192)
    eighths = estimate_memory(header, 8192, Tuning(64, cache_type="Q8_0"))
    free = int(eighths.needed / 0.8) + MIB
    with pytest.raises(NotEnoughMemoryError, match=r"made needs .* for weights, .* for evaluation") as caught:
        fit_tuning("made", header, 8192, Tuning(), free)
    error = caught.value
    assert "--cache-type q8_0" in error.hint
    assert "--context" not in error.hint
    assert (error.context, error.cache_type) == (8192, "Q8_0")
    assert f"{full.cache >> 20} MiB for a context of 8192 tokens, but {free >> 20} MiB are free" in str(error)
    with pytest.raises(NotEnoughMemoryError, match=r"--context \d+") as caught:
        fit_tuning("made", header, 8192, Tuning(flash_attention=False), free)  # then there are no 8 bits
    assert caught.value.cache_type == "F16"
    with pytest.raises(NotEnoughMemoryError, match="use a smaller model, or close") as caught:
        fit_tuning("made", header, 8192, Tuning(), 10 * MIB)
    assert caught.value.context is None


def test_where_only_a_smaller_batch_fits_it_is_taken() -> None:
    header = made_header(width=2048)
    wanted, least = (estimate_memory(header, 4096, Tuning(batch)).needed for batch in (2048, 128))
    assert least < wanted
    free = int(least / 0.8) + MIB
    assert fit_tuning("made", header, 4096, Tuning(2048), free).batch == 128
    assert fit_tuning("made", header, 4096, Tuning(2048), 64 << 30).batch == 2048
    assert fit_tuning("made", header, 4096, Tuning(2048), None).batch == 2048


@given(context=st.integers(64, 1 << 17), batch=st.integers(1, 4096))
def test_more_context_or_larger_batches_never_take_less(context: int, batch: int) -> None:
    header = made_header()
    here = estimate_memory(header, context, Tuning(batch))
    assert estimate_memory(header, context + 512, Tuning(batch)).needed > here.needed
    assert estimate_memory(header, context, Tuning(batch + 64)).needed >= here.needed
    assert estimate_memory(header, context, Tuning(batch, cache_type="Q8_0")).cache < here.cache
    assert here.peak == here.needed + here.spare
    assert sum(here.parts().values()) == here.needed


def test_what_the_kernels_copy_counts_once_where_it_is_needed_and_twice_at_the_peak() -> None:
    plain, copied = made_header(kind="Q4_1"), made_header(kind="IQ4_NL")
    layers = sum(tensor.bytes for tensor in copied.tensors[1:])
    tied = copied.tensors[0].bytes
    assert estimate_memory(plain, 512, machine="x86_64").copies == 0
    found = estimate_memory(copied, 512, machine="AMD64")
    assert (found.copies, found.spare) == (
        layers + tied,
        layers,
    )  # rows of the vocabulary are looked up as they are
    untied = estimate_memory(made_header(kind="IQ4_NL", tied=False), 512, machine="x86_64")
    assert (untied.copies, untied.spare) == (layers + tied, layers + tied)
    assert estimate_memory(made_header(kind="Q8_0"), 512, machine="arm64").copies > 0
    assert estimate_memory(copied, 512, machine="riscv64").copies == 0
    assert estimate_memory(copied, 512, Tuning(repack=False), machine="x86_64").copies == 0


def test_the_estimate_of_a_real_file_holds_its_parts(tmp_path: Path) -> None:
    header = read_header(tiny_llama(tmp_path / "tiny.gguf"))
    found = estimate_memory(header, 300, adapter=1000)
    assert found.weights == header.file_bytes
    assert found.cache == header.kv_bytes(512)  # cells come in 256
    assert found.adapter == 1000
    assert found.copies == 0
