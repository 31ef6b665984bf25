"""Kept prefixes: found by their tokens and all that a state follows from, checked, bounded, and never an error.

Most of it with a context made up here, whose state is its tokens; then on llama.cpp, with a tiny model and SmolLM2.
"""

from __future__ import annotations

import gc
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from gguf_files import tiny_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_files import tiny_adapter
from made_documents import made

from edge_sdk import loading
from edge_sdk.cli import main
from edge_sdk.config import load_settings
from edge_sdk.engines import prefix_cache, prefix_folder
from edge_sdk.engines.prefix_cache import PrefixCache, state_key
from edge_sdk.engines.prefix_file import Prefix, State, read_prefix, write_prefix
from edge_sdk.engines.prefix_folder import PrefixFolder
from edge_sdk.engines.profile import Tuning
from edge_sdk.fakes import FakeEncoder
from edge_sdk.records import GenerateOptions
from edge_sdk.storage.store import Store

KEY, OTHER = b"k" * 32, b"o" * 32
LIMIT = 1 << 20
SYSTEM, FIRST, SECOND = [*range(100)], [*range(1000, 1400)], [*range(2000, 2400)]


class Context:
    """A context whose state is its tokens, 16 bytes each; restoring anything but what was copied is an error."""

    def __init__(self, forgets: bool = True) -> None:
        self.seen: list[int] = []
        self.forgets = forgets
        self.copied = self.restored = 0

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        shared = 0
        while shared < min(len(self.seen), len(prompt) - 1) and self.seen[shared] == prompt[shared]:
            shared += 1
        if not self.forgets and shared < len(self.seen):
            shared = 0
        del self.seen[shared:]
        return shared

    def state(self, most: int) -> State | None:
        if len(self.seen) * 16 > most:
            return None
        self.copied += 1
        return np.repeat(np.asarray(self.seen, "<i4"), 4).view(np.uint8)

    def restore(self, tokens: Sequence[int], state: State) -> bool:
        self.restored += 1
        assert state.view("<i4")[::4].tolist() == tokens
        self.seen[:] = tokens
        return True

    def ask(self, cache: PrefixCache, prompt: Sequence[int], answer: Sequence[int] = (), key: bytes = KEY) -> int:
        """A generation; how many tokens of the prompt were not evaluated."""
        kept = cache.begin(key, self, prompt)
        assert self.seen == list(prompt[:kept])
        self.seen += [*prompt[kept:], *answer]
        cache.end(key, self)
        return kept


def asked(folder: Path, *prompts: Sequence[int], forgets: bool = True, key: bytes = KEY, limit: int = LIMIT) -> int:
    """What the last of some prompts was spared, in a process of its own."""
    cache, context = PrefixCache(folder, limit), Context(forgets)
    spared = [context.ask(cache, prompt, key=key) for prompt in prompts]
    cache.close()
    return spared[-1]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


def sizes(folder: Path) -> list[int]:
    """How many tokens each file has."""
    return sorted(len(read_prefix(path, KEY).tokens) for path in files(folder))


# --- what is found ----------------------------------------------------------------------------------


def test_a_second_process_starts_where_the_first_ended(tmp_path: Path) -> None:
    assert asked(tmp_path, SYSTEM + FIRST) == 0
    assert (
        asked(tmp_path, SYSTEM + FIRST) == len(SYSTEM + FIRST) - 1
    )  # an answer starts from the last token's logits
    assert asked(tmp_path, SYSTEM + FIRST + SECOND) == len(SYSTEM + FIRST)


def test_a_prompt_that_shares_only_the_beginning_is_spared_that(tmp_path: Path) -> None:
    asked(tmp_path, SYSTEM + FIRST)
    assert asked(tmp_path, SYSTEM + FIRST[:300] + SECOND) == len(SYSTEM) + 300


def test_the_answer_belongs_to_the_prefix(tmp_path: Path) -> None:
    cache, context = PrefixCache(tmp_path, LIMIT), Context()
    context.ask(cache, SYSTEM, FIRST)
    cache.close()
    assert asked(tmp_path, SYSTEM + FIRST + SECOND) == len(SYSTEM + FIRST)


def test_conversations_that_take_turns_are_restored_from_memory(tmp_path: Path) -> None:
    cache, context = PrefixCache(tmp_path, LIMIT), Context()
    context.ask(cache, FIRST)
    context.ask(cache, SECOND)
    assert context.ask(cache, FIRST + SYSTEM) == len(FIRST)
    assert not files(tmp_path)  # nothing was written yet: the engine had no rest
    cache.close()


def test_what_differs_in_anything_but_tokens_is_never_found(tmp_path: Path) -> None:
    asked(tmp_path, FIRST)
    assert asked(tmp_path, FIRST, key=OTHER) == 0
    assert asked(tmp_path, FIRST) > 0


@pytest.mark.parametrize(
    ("fingerprint", "template", "setup"),
    [("b", "t", {"n_ctx": 1}), ("a", "u", {"n_ctx": 1}), ("a", "t", {"n_ctx": 2}), ("a", None, {"n_ctx": 1})],
)
def test_a_key_names_model_template_and_settings(
    fingerprint: str, template: str | None, setup: dict[str, object]
) -> None:
    assert state_key("a", "t", {"n_ctx": 1}) == state_key("a", "t", {"n_ctx": 1})
    assert state_key("a", "t", {"n_ctx": 1}) != state_key(fingerprint, template, setup)


def test_a_long_prefix_is_not_read_for_the_little_that_it_shares(tmp_path: Path) -> None:
    asked(tmp_path, [*range(50), *range(5000, 6000)])
    assert asked(tmp_path, [*range(50), *FIRST]) == 0
    asked(tmp_path / "short", [*range(50), *range(5000, 5100)])
    assert asked(tmp_path / "short", [*range(50), *FIRST]) == 50


PROMPTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=PROMPTS, forgets=st.booleans())
def test_whatever_is_asked_the_context_holds_the_prompts_own_tokens(
    steps: list[tuple[int, int, int, int]], forgets: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A walk over few beginnings; `Context` checks every state. And what a cold process finds pays, or is left."""
    folder = tmp_path_factory.mktemp("walk")
    cache, context = PrefixCache(folder, 1 << 16), Context(forgets)
    for branch, shared, own, what in steps:
        prompt = [*range(shared), *(1000 * (branch + 1) + number for number in range(own))]
        if what == 0:
            cache.close()
            cache, context = PrefixCache(folder, 1 << 16), Context(forgets)
        before = {path: read_prefix(path, KEY).tokens.tolist() for path in files(folder)}
        spared = context.ask(cache, prompt, answer=range(9000, 9000 + 7 * what))
        if what == 0:
            gains = [prefix_cache._usable(np.asarray(row, np.int32), np.asarray(prompt[:-1], np.int32), forgets)
                     - len(row) // prefix_cache._DISK for row in before.values()]  # fmt: skip
            best = max(gains, default=0)
            assert spared >= best if best >= prefix_cache._LEAST else spared == 0
    cache.close()
    assert sum(path.stat().st_size for path in files(folder)) < (1 << 16) + 4096


# --- what is kept -----------------------------------------------------------------------------------


def test_the_beginning_that_prompts_share_gets_a_small_file_of_its_own(tmp_path: Path) -> None:
    asked(tmp_path, SYSTEM + FIRST)
    asked(tmp_path, SYSTEM + SECOND)
    assert sizes(tmp_path) == [100, 500, 500]
    third = PrefixCache(tmp_path, LIMIT)
    context = Context()
    assert context.ask(third, [*SYSTEM, *range(3000, 3400)]) == 100
    assert context.restored == 1
    third.close()


def test_too_little_is_not_kept(tmp_path: Path) -> None:
    asked(tmp_path, SYSTEM[: prefix_cache._LEAST - 1])
    assert not files(tmp_path)


def test_the_same_again_is_neither_copied_nor_written(tmp_path: Path) -> None:
    asked(tmp_path, FIRST)
    cache, context = PrefixCache(tmp_path, LIMIT), Context()
    for end in range(100):
        context.ask(cache, [*FIRST, end])
    assert context.copied == 0
    cache.close()
    assert len(files(tmp_path)) == 1


def test_a_growing_conversation_is_copied_when_it_has_grown_by_a_third(tmp_path: Path) -> None:
    cache, context = PrefixCache(tmp_path, 16 * LIMIT), Context()
    for length in range(100, 4000, 20):
        context.ask(cache, range(length))
    assert context.copied < 15
    cache.close()
    assert len(files(tmp_path)) == 1  # those before are needless


def test_what_a_longer_prefix_makes_needless_is_deleted_on_the_disk(tmp_path: Path) -> None:
    asked(tmp_path, range(300))
    asked(tmp_path, range(500))
    assert sizes(tmp_path) == [500]
    asked(tmp_path, range(2000))
    assert sizes(tmp_path) == [500, 2000]  # far longer: the short one is quicker to read


def test_a_memory_that_cannot_be_cut_is_restored_whole_or_not_at_all(tmp_path: Path) -> None:
    asked(tmp_path, FIRST, forgets=False)
    assert asked(tmp_path, FIRST, forgets=False) == 0
    assert asked(tmp_path, FIRST[:300] + SECOND, forgets=False) == 0
    assert asked(tmp_path, FIRST + SECOND, forgets=False) == len(FIRST)


def test_a_state_that_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(tmp_path, FIRST, limit=16 * len(FIRST))  # more than half of the limit
    assert not files(tmp_path)
    monkeypatch.setattr(prefix_cache, "available_memory", lambda: 16 * len(FIRST))
    asked(tmp_path, FIRST)
    assert not files(tmp_path)


# --- when it is written -----------------------------------------------------------------------------


def test_it_is_written_when_the_engine_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "_QUIET", 0.0)
    cache, context = PrefixCache(tmp_path, LIMIT), Context()
    context.ask(cache, FIRST)
    assert cache._timer is not None
    cache._timer.join()
    assert sizes(tmp_path) == [400]
    cache.begin(KEY, context, SECOND)
    context.seen += SECOND
    cache._kept.save_at_rest()  # as a timer that was too late to be stopped
    assert sizes(tmp_path) == [400]
    cache.end(KEY, context)
    cache.close()
    assert sizes(tmp_path) == [400, 400]


def test_a_cache_that_is_dropped_writes_what_it_has(tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, LIMIT)
    Context().ask(cache, FIRST)
    del cache
    gc.collect()
    assert sizes(tmp_path) == [400]


def test_memory_is_bounded(tmp_path: Path) -> None:
    limit = 16 * 4000
    cache, context = PrefixCache(tmp_path, limit), Context()
    for number in range(20):
        context.ask(cache, range(1000 * number, 1000 * number + 300))
        held = sum(len(prefix.state) for _, prefix in cache._kept.prefixes.values())
        assert held <= limit // 4
        assert cache._kept.unsaved.keys() <= cache._kept.prefixes.keys()
    cache.close()


# --- the folder -------------------------------------------------------------------------------------


def prefix(*tokens: int, size: int = 1000) -> Prefix:
    return Prefix(np.asarray(tokens, np.int32), np.arange(size, dtype=np.uint8))


def saved(folder: PrefixFolder, *tokens: int, size: int = 1000, key: bytes = KEY) -> Path:
    made = prefix(*tokens, size=size)
    path = folder.path(key, made.tokens)
    assert folder.save(path, key, made)
    return path


def test_a_file_is_private_whole_and_alone(tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path / "prefixes", LIMIT)
    path = saved(folder, 1, 2, 3)
    assert [found for found in (tmp_path / "prefixes").rglob("*") if found.is_file()] == [path]
    back = folder.load(path, KEY)
    assert back is not None
    assert back.tokens.tolist() == [1, 2, 3]
    assert np.array_equal(back.state, prefix(1).state)
    if os.name == "posix":
        modes = {stat.S_IMODE(found.stat().st_mode) for found in (path, path.parent, tmp_path / "prefixes")}
        assert modes == {0o600, 0o700}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_deleted_and_never_used(data: st.DataObject, tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path, LIMIT)
    path = saved(folder, *range(40), size=200)
    whole = bytearray(path.read_bytes())
    damage = data.draw(st.sampled_from(["flip", "cut", "more", "zero"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if damage == "flip":
        for place in data.draw(st.sets(st.integers(0, len(whole) - 1), min_size=1, max_size=5)):
            whole[place] ^= data.draw(st.integers(1, 255))
    elif damage == "cut":
        del whole[at:]
    elif damage == "more":
        whole += bytes(at + 1)
    else:
        whole[at:] = bytes(len(whole) - at)
    changed = bytes(whole) != path.read_bytes()
    path.write_bytes(whole)
    listed = PrefixFolder(tmp_path, LIMIT).prefixes(KEY)
    assert (path in listed) <= (path.exists())
    if path in listed:
        assert listed[path].tolist() == [*range(40)]
    assert (PrefixFolder(tmp_path, LIMIT).load(path, KEY) is None) == changed
    assert path.exists() != changed


def test_a_prefix_in_the_place_of_another_model_is_not_used(tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path, LIMIT)
    mine, foreign = saved(folder, *range(40)), saved(folder, *range(40), key=OTHER)
    foreign.replace(mine)
    assert folder.load(mine, KEY) is None
    assert not mine.exists()


def test_what_fails_to_load_is_evaluated_and_the_next_best_is_used(tmp_path: Path) -> None:
    asked(tmp_path, range(300))
    asked(tmp_path, range(1000))
    longest = max(files(tmp_path), key=lambda path: path.stat().st_size)
    content = bytearray(longest.read_bytes())
    content[-1] ^= 1
    longest.write_bytes(content)
    assert asked(tmp_path, range(999)) == 300


def test_a_state_that_the_context_refuses_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(tmp_path, FIRST)

    def refuse(self: Context, tokens: Sequence[int], state: State) -> bool:
        self.seen.clear()
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Context, "restore", refuse)
        cache, context = PrefixCache(tmp_path, LIMIT), Context()
        assert cache.begin(KEY, context, FIRST) == 0
        cache.close()
    assert not files(tmp_path)


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path, 8000)
    paths = [saved(folder, number) for number in range(5)]
    for age, path in enumerate(paths):
        os.utime(path, (10**9 - age, 10**9 - age))
    assert folder.load(paths[4], KEY) is not None  # the oldest, but it is used
    more = [saved(folder, number) for number in range(5, 8)]
    assert set(files(tmp_path)) == {paths[0], paths[1], paths[2], paths[4], *more}
    assert folder.usage() == (7, sum(path.stat().st_size for path in files(tmp_path)))


def test_parts_that_nobody_finished_are_deleted_when_they_are_old(tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path, LIMIT)
    path = saved(folder, 1)
    old, new = path.with_suffix(".1-1.part"), path.with_suffix(".1-2.part")
    for part in (old, new):
        part.write_bytes(b"?")
    os.utime(old, (10**9, 10**9))
    saved(folder, 2)
    assert (old.exists(), new.exists()) == (False, True)


def test_clearing_leaves_nothing(tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path / "prefixes", LIMIT)
    saved(folder, 1)
    folder.model_hash(saved(folder, 2))
    assert folder.clear() > 2000
    assert [*(tmp_path / "prefixes").iterdir()] == []
    assert (folder.usage(), folder.clear()) == ((0, 0), 0)


def test_a_folder_that_cannot_be_used_is_like_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert asked(tmp_path / "file", FIRST, SECOND, FIRST) == len(FIRST) - 1  # from memory
    assert (tmp_path / "file").read_text() == "in the way"
    folder = PrefixFolder(tmp_path / "file", LIMIT)
    assert (folder.prefixes(KEY), folder.usage(), folder.clear()) == ({}, (0, 0), 0)


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_folder, "free_disk", lambda path: LIMIT)
    assert asked(tmp_path, FIRST) == 0
    assert not files(tmp_path)


def test_a_write_that_fails_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "k.kv").mkdir()
    (tmp_path / "k.kv" / "x").touch()
    with pytest.raises(OSError, match=r"k\.kv"):
        write_prefix(tmp_path / "k.kv", KEY, prefix(1))
    assert [path.name for path in tmp_path.iterdir()] == ["k.kv"]


def test_processes_may_share_a_folder(tmp_path: Path) -> None:
    """Each writes, reads and evicts; every state that is found is right, which `Context` checks."""
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(12):
                start = 1000 * ((turn + number) % 5)
                cache, context = PrefixCache(tmp_path, 12_000), Context()
                context.ask(cache, [*range(start, start + 150), turn])
                cache.close()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert PrefixFolder(tmp_path, 0).usage()[1] <= 5 * 12_000


def test_a_models_hash_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "m.gguf", tmp_path / "prefixes"
    file.write_bytes(b"abc")
    first = PrefixFolder(folder, LIMIT).model_hash(file)
    with monkeypatch.context() as patch:
        patch.setattr(prefix_folder, "file_fingerprint", lambda path: pytest.fail("read again"))
        assert PrefixFolder(folder, LIMIT).model_hash(file) == first
    file.write_bytes(b"abcd")
    assert PrefixFolder(folder, LIMIT).model_hash(file) != first
    (folder / "models.json").write_text("[]")
    assert PrefixFolder(folder, LIMIT).model_hash(file) != first


# --- with llama.cpp ---------------------------------------------------------------------------------

TEN = GenerateOptions(max_tokens=10)
BEGINNING = "the rain and the sea and " * 8
PROMPT, ANOTHER = BEGINNING + "a question in the end", BEGINNING + "the end of another one"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=4096, layers=2, embed=64)


Figures = tuple[int, list[tuple[int, float, float, float]]]


def answered(
    tiny: Path, folder: Path | None, *prompts: str, options: GenerateOptions = TEN, **opening: Any
) -> Figures:
    """What the last of some prompts was spared, and its tokens with their figures, from an engine of its own."""
    from edge_sdk.engines.engine_gguf import GgufEngine

    cache = None if folder is None else PrefixCache(folder, 8 * LIMIT)
    with GgufEngine.open(tiny, **{"context": 512, "threads": 1, "prefix_cache": cache, **opening}) as engine:
        for prompt in prompts:
            generation = engine.generate(prompt, options)
            figures = [(token.id, token.logprob, token.entropy, token.margin) for token in generation]
        return generation.result.cached_tokens, figures


def alike(one: Figures, two: Figures) -> bool:
    """The same distributions, token by token; the same tokens alone would prove nothing.

    llama.cpp adds up in another order when a prompt is evaluated in two parts: a difference of .01 here.
    """
    return np.allclose(one[1], two[1], rtol=0, atol=0.05)


def test_a_restored_context_gives_the_figures_of_one_that_never_went_away(tiny: Path, tmp_path: Path) -> None:
    answered(tiny, tmp_path, PROMPT)
    restored, kept = answered(tiny, tmp_path, ANOTHER), answered(tiny, None, PROMPT, ANOTHER)
    assert restored == kept
    assert 100 < restored[0] < len(BEGINNING)


def test_a_restored_context_gives_the_figures_of_a_cold_one(tiny: Path, tmp_path: Path) -> None:
    answered(tiny, tmp_path, PROMPT)
    for prompt in (ANOTHER, PROMPT):
        warm, cold = answered(tiny, tmp_path, prompt), answered(tiny, None, prompt)
        assert cold[0] == 0
        assert warm[0] > 100
        assert alike(warm, cold)


def test_a_state_under_the_tokens_of_another_would_be_noticed(tiny: Path, tmp_path: Path) -> None:
    """What the test above rests on: with the wrong state the figures differ."""
    one, two, short = tmp_path / "one", tmp_path / "two", GenerateOptions(max_tokens=1)
    answered(tiny, one, PROMPT, options=short)
    answered(tiny, two, PROMPT.replace("sea", "bet"), options=short)  # as many tokens
    (right,), (wrong,) = files(one), files(two)
    key = wrong.read_bytes()[8:40]
    made = Prefix(read_prefix(right, key).tokens, read_prefix(wrong, key).state)
    write_prefix(right, key, made)
    swapped = answered(tiny, one, PROMPT)
    assert swapped[0] > 100
    assert not alike(swapped, answered(tiny, None, PROMPT))


@pytest.mark.parametrize(
    "opening",
    [
        {"template": "{{ messages[0]['content'] }}"},
        {"context": 256},
        {"tuning": Tuning(batch=64)},
        {"tuning": Tuning(cache_type="Q8_0")},
        {"tuning": Tuning(flash_attention=False)},
        {"sha256": "0" * 64},
    ],
    ids=str,
)
def test_another_model_template_or_setting_is_not_served(
    tiny: Path, tmp_path: Path, opening: dict[str, Any]
) -> None:
    answered(tiny, tmp_path, PROMPT)
    assert answered(tiny, tmp_path, PROMPT, **opening)[0] == 0
    assert answered(tiny, tmp_path, PROMPT, **opening)[0] > 100
    assert answered(tiny, tmp_path, PROMPT)[0] > 100


def test_an_adapter_has_prefixes_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from edge_sdk.engines.engine_gguf import GgufEngine

    tiny, adapter = tiny_llama(tmp_path / "tiny.gguf"), tiny_adapter(tmp_path / "a.gguf")
    cold = answered(tiny, None, PROMPT, adapter=adapter)
    folder = tmp_path / "prefixes"
    answered(tiny, folder, PROMPT)
    with GgufEngine.open(tiny, context=512, threads=1, prefix_cache=PrefixCache(folder, LIMIT)) as engine:
        for used, cached in ((adapter, False), (None, True), (adapter, True)):
            engine.use_adapter(used)
            generation = engine.generate(PROMPT, TEN)
            figures = [(token.id, token.logprob, token.entropy, token.margin) for token in generation]
            assert (generation.result.cached_tokens > 100) == cached
            if used:
                assert alike((0, figures), cold)


def test_a_damaged_file_costs_nothing_but_the_time(tiny: Path, tmp_path: Path) -> None:
    answered(tiny, tmp_path, PROMPT)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    cold = answered(tiny, None, PROMPT)
    assert answered(tiny, tmp_path, PROMPT) == cold


def test_a_state_that_llama_cpp_refuses_is_deleted(tiny: Path, tmp_path: Path) -> None:
    answered(tiny, tmp_path, PROMPT)
    (path,) = files(tmp_path)
    key = path.read_bytes()[8:40]
    for state in (np.zeros(64, np.uint8), read_prefix(path, key).state[:-8].copy(), np.full(999, 255, np.uint8)):
        write_prefix(path, key, Prefix(read_prefix(path, key).tokens, state))
        assert answered(tiny, tmp_path, PROMPT) == answered(tiny, None, PROMPT)
        assert len(read_prefix(path, key).state) > 10_000  # the one of now


def test_two_conversations_take_turns_without_being_evaluated_again(tiny: Path, tmp_path: Path) -> None:
    other = "an inn in the hand " * 8
    assert answered(tiny, None, PROMPT, other, PROMPT + " and")[0] < 24
    warm = answered(tiny, tmp_path, PROMPT, other, PROMPT + " and")
    assert warm[0] > 100
    assert alike(warm, answered(tiny, None, PROMPT + " and"))


@pytest.mark.parametrize("end", ["cancelled", "closed", "dropped", "stopped in the prefill"])
def test_however_a_generation_ends_what_is_kept_is_right(tiny: Path, tmp_path: Path, end: str) -> None:
    from edge_sdk.engines.engine_gguf import GgufEngine

    cancel, long = Event(), BEGINNING * 20
    with GgufEngine.open(
        tiny, context=4096, threads=1, tuning=Tuning(batch=64), prefix_cache=PrefixCache(tmp_path, 8 * LIMIT)
    ) as engine:
        if end == "stopped in the prefill":
            cancel.is_set = lambda: len(engine._model.seen) > 0  # type: ignore[method-assign]
            assert list(engine.generate(long, TEN, cancel)) == []
        else:
            generation = engine.generate(PROMPT, TEN, cancel)
            next(generation)
            next(generation)
            if end == "cancelled":
                cancel.set()
                assert list(generation) == []
            elif end == "closed":
                generation.close()
            del generation
    prompt = long if end == "stopped in the prefill" else PROMPT
    opening: dict[str, Any] = {"context": 4096, "tuning": Tuning(batch=64)}
    warm, cold = answered(tiny, tmp_path, prompt, **opening), answered(tiny, None, prompt, **opening)
    assert warm[0] > 24
    assert alike(warm, cold)


def test_without_a_cache_nothing_is_written(tiny: Path, tmp_path: Path) -> None:
    options = {"home": tmp_path, "offline": True, "model": str(tiny), "context": 512, "threads": 1}
    for limit in (0, 256):
        engine, _ = loading.load_engine(load_settings({**options, "prefix_cache": limit}, {}))
        list(engine.generate(PROMPT, TEN))
        engine.close()
        assert len(files(tmp_path)) == (1 if limit else 0)
    assert (tmp_path / "prefixes" / "models.json").exists()  # a file given by its path was hashed once


def test_removing_a_document_clears_what_may_hold_its_text(tmp_path: Path) -> None:
    saved(PrefixFolder(tmp_path / "prefixes", LIMIT), 1, 2)
    encoder = FakeEncoder()
    where = {"encoder_fingerprint": encoder.fingerprint, "dimension": encoder.dimension}
    with Store.open(tmp_path / "store.db", **where) as store:  # type: ignore[arg-type]
        document, chunks = made("a.txt", "A text.")
        store.put(document, chunks, encoder.encode(["A text."]))
    assert main(["remove", "b.txt", "--home", str(tmp_path)]) == 1
    assert len(files(tmp_path)) == 1
    assert main(["remove", "a.txt", "--home", str(tmp_path)]) == 0
    assert not files(tmp_path)


def test_a_document_that_changed_clears_what_may_hold_its_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_encoder", lambda settings: FakeEncoder())
    page = tmp_path / "page.txt"
    page.write_text("The old tariff is nine crowns.")
    add = ["add", str(page), "--home", str(tmp_path)]
    assert main(add) == 0
    saved(PrefixFolder(tmp_path / "prefixes", LIMIT), 1, 2)
    assert main(add) == 0  # unchanged
    assert len(files(tmp_path)) == 1
    page.write_text("The new tariff is ten crowns.")
    assert main(add) == 0
    assert not files(tmp_path)


def test_the_command_shows_and_clears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path), "--json"]
    folder = PrefixFolder(tmp_path / "prefixes", LIMIT)
    saved(folder, 1, 2)
    size = folder.usage()[1]
    assert main(["cache", "show", *home]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"folder": str(folder.folder), "prefixes": 1, "bytes": size, "limit": 256 << 20}
    assert main(["cache", "clear", *home]) == 0
    assert json.loads(capsys.readouterr().out) == {"freed": size}
    assert main(["cache", "show", "--home", str(tmp_path)]) == 0
    assert "0 prefixes, 0.0 of at most 256 MB" in capsys.readouterr().out


PROGRAM = """
import json, sys
from pathlib import Path
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.prefix_cache import PrefixCache
from edge_sdk.fakes import FakeEncoder
from edge_sdk.records import GenerateOptions
from edge_sdk.storage.store import Store
file, folder, close, *prompts = sys.argv[1:]
cache = PrefixCache(Path(folder), 256 << 20)
engine = GgufEngine.open(Path(file), context=512, threads=1, prefix_cache=cache)
for prompt in prompts:
    generation = engine.generate(prompt, GenerateOptions(max_tokens=10))
    tokens = [(token.id, token.logprob, token.entropy, token.margin) for token in generation]
    print(json.dumps([generation.result.cached_tokens, tokens]))
if close:
    engine.close()
"""


def in_a_process(file: Path, folder: Path, *prompts: str, close: bool = True) -> list[Figures]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), str(folder), "1" if close else "", *prompts],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [(cached, [tuple(token) for token in tokens]) for cached, tokens in rows]


@pytest.mark.parametrize("close", [True, False])
def test_a_program_that_ends_leaves_its_prefix_closed_or_not(tiny: Path, tmp_path: Path, close: bool) -> None:
    in_a_process(tiny, tmp_path, PROMPT, close=close)
    assert len(files(tmp_path)) == 1
    assert answered(tiny, tmp_path, ANOTHER) == answered(tiny, None, PROMPT, ANOTHER)


@pytest.mark.model
def test_smollm2_starts_warm_in_a_second_process(smollm2_path: Path, tmp_path: Path) -> None:
    beginning = "The pump is switched on by the green key. " * 12
    one, two = beginning + "What is the key for?", beginning + "To switch it on, you have to press"
    _, kept = in_a_process(smollm2_path, tmp_path, one, two)
    (restored,) = in_a_process(smollm2_path, tmp_path, two)
    assert restored == kept
    assert 100 < restored[0] < 150
    assert len(restored[1]) > 1
