"""Which prefixes of prompts are kept, and which is used again: in memory first, behind it in a folder.

What a context holds is copied after an answer and written when the engine is at rest. A new prompt takes up the
longest prefix that it shares with anything kept, where that is quicker than evaluating it. Knows nothing of text,
and of models only what `Memory` says.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock, Timer
from typing import Protocol

import numpy as np

from ..device import available_memory
from .prefix_file import Prefix, State, Tokens
from .prefix_folder import PrefixFolder

# SmolLM2-135M, the worst case for a cache because it is evaluated so quickly: a token takes 800 microseconds on two
# x86-64 cores; 20 to read its state from the page cache, to check and restore it; 3 to restore it from memory, and
# 3 to copy it out. What is asked for here leaves room for disks that read a tenth as fast.
_LEAST = 16  # tokens that are worth anything
_DISK, _MEMORY = 8, 64  # tokens that must be restored in less than the time of evaluating one
_QUIET = 0.25  # seconds of rest before anything is written


class Memory(Protocol):
    """What of a model is asked: `llama.LlamaModel`."""

    seen: list[int]
    forgets: bool

    def keep_prefix(self, prompt: Sequence[int]) -> int: ...
    def state(self, most: int) -> State | None: ...
    def restore(self, tokens: Sequence[int], state: State) -> bool: ...


def state_key(fingerprint: str, template: str | None, setup: Mapping[str, object]) -> bytes:
    """Names everything but the tokens that a state follows from.

    A template acts only through the tokens; it is in, for what was kept under another one is of no more use.
    """
    text = json.dumps([fingerprint, template or "", dict(setup)], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(slots=True)
class _Kept:
    """The prefixes in memory, least recently used first, and those of them that no file holds yet."""

    folder: PrefixFolder
    prefixes: dict[Path, tuple[bytes, Prefix]] = field(default_factory=dict)
    unsaved: dict[Path, tuple[Path, ...]] = field(default_factory=dict)  # with the files that each makes needless
    # Taken again by the same thread where a dropped generation, or cache, is collected in the midst of it.
    lock: RLock = field(default_factory=RLock)
    saving: RLock = field(default_factory=RLock)
    busy: Event = field(default_factory=Event)

    def save(self) -> None:
        """Write what is in memory only."""
        while self._save_one():
            pass

    def save_at_rest(self) -> None:
        """The same, until the engine has something to do."""
        while not self.busy.is_set() and self._save_one():
            pass

    def _save_one(self) -> bool:
        with self.saving:
            with self.lock:
                path = next(iter(self.unsaved), None)
                if path is None:
                    return False
                needless, (key, prefix) = self.unsaved.pop(path), self.prefixes[path]
            if self.folder.save(path, key, prefix):
                for old in needless:
                    self.folder.drop(old)
            return True


class PrefixCache:
    """The prefixes of one engine, of which one generation runs at a time; the folder serves any number of engines.

    `limit` is in bytes, for the folder; a quarter of it may be in memory, and no single state takes more than half.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = PrefixFolder(folder, limit)
        self._kept = _Kept(self.folder)
        self._listed: dict[Path, Tokens] = {}
        self._timer: Timer | None = None
        self._save_at_last = weakref.finalize(self, self._kept.save)  # when the process ends, too

    def begin(self, key: bytes, memory: Memory, prompt: Sequence[int]) -> int:
        """Make `memory` hold as much of a prompt as is quicker restored than evaluated; how many tokens that is."""
        self._kept.busy.set()
        self._stop_timer()
        held, kept = len(memory.seen), memory.keep_prefix(prompt)
        self._listed = {}
        if len(prompt) - 1 - kept >= _LEAST:
            self._list(key)
            while (found := self._best(key, prompt, kept, memory.forgets)) is not None:
                path, prefix = found
                if memory.restore(prefix.tokens.tolist(), prefix.state):
                    held, kept = len(prefix.tokens), memory.keep_prefix(prompt)
                    break
                kept = memory.keep_prefix(prompt)  # what was there is gone
                self._forget(path)
        # Where prompts part, the next one will: the beginning that they share is worth a small file of its own.
        if 2 * kept <= min(held, len(prompt)):
            self._keep(key, memory)
        return kept

    def end(self, key: bytes, memory: Memory) -> None:
        """After a generation: keep what `memory` holds, where it adds enough to what is kept already."""
        self._keep(key, memory)
        self._kept.busy.clear()
        if self._kept.unsaved:
            self._timer = Timer(_QUIET, self._kept.save_at_rest)
            self._timer.daemon = True  # what it has not written when the process ends, `_save_at_last` writes
            with suppress(RuntimeError):  # the process is ending
                self._timer.start()

    def close(self) -> None:
        """Write what only memory holds, and let go of it."""
        self._stop_timer()
        self._kept.save()
        with self._kept.lock:
            self._kept.prefixes.clear()

    # --- inside -------------------------------------------------------------------------------------

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _list(self, key: bytes) -> None:
        self._listed = self.folder.prefixes(key)
        with self._kept.lock:
            self._listed |= {path: kept.tokens for path, (its, kept) in self._kept.prefixes.items() if its == key}

    def _best(self, key: bytes, prompt: Sequence[int], kept: int, divisible: bool) -> tuple[Path, Prefix] | None:
        """The prefix that saves most, beyond the first `kept` tokens, and is really there."""
        wanted = np.asarray(prompt[:-1], np.int32)
        gains = {
            path: _usable(tokens, wanted, divisible)
            - kept
            - len(tokens) // (_MEMORY if path in self._kept.prefixes else _DISK)
            for path, tokens in self._listed.items()
        }
        for path in sorted(gains, key=gains.__getitem__, reverse=True):
            if gains[path] < _LEAST:
                break
            prefix = self._load(path, key)
            if prefix is not None:
                return path, prefix
            del self._listed[path]
        return None

    def _load(self, path: Path, key: bytes) -> Prefix | None:
        with self._kept.lock:
            entry = self._kept.prefixes.pop(path, None)
            if entry is not None:
                self._kept.prefixes[path] = entry  # now the most recently used
        if entry is not None:
            self.folder.touch(path)
            return entry[1]
        prefix = self.folder.load(path, key)
        if prefix is not None:
            self._remember(path, key, prefix)
        return prefix

    def _keep(self, key: bytes, memory: Memory) -> None:
        tokens = np.asarray(memory.seen, np.int32)
        if len(tokens) < _LEAST:
            return
        if not self._listed:
            self._list(key)
        if any(_serves(old, tokens, memory.forgets) for old in self._listed.values()):
            return
        free = available_memory()
        most = self.folder.limit // 2 if free is None else min(self.folder.limit // 2, free // 4)
        state = memory.state(most)
        if state is None:
            return
        path = self.folder.path(key, tokens)
        needless = [old for old, its in self._listed.items() if memory.forgets and _continues(tokens, its)]
        self._remember(path, key, Prefix(tokens, state), needless)
        for old in needless:
            del self._listed[old]
        self._listed[path] = tokens

    def _remember(self, path: Path, key: bytes, prefix: Prefix, needless: Sequence[Path] | None = None) -> None:
        """Hold a prefix in memory; a new one, with the older ones that it makes `needless`, until it is written."""
        kept = self._kept
        with kept.lock:
            kept.prefixes.pop(path, None)  # the newest comes last
            kept.prefixes[path] = key, prefix
            if needless is not None:
                also = [more for old in needless for more in kept.unsaved.pop(old, ())]
                for old in needless:
                    kept.prefixes.pop(old, None)
                kept.unsaved[path] = (*needless, *also)
            used = sum(len(each.state) for _, each in kept.prefixes.values())
            for old in [*kept.prefixes][:-1]:  # the newest may be larger than all the room
                if used <= self.folder.limit // 4:
                    break
                used -= len(kept.prefixes.pop(old)[1].state)
                kept.unsaved.pop(old, None)  # so much came since that nothing was written: it is not worth it

    def _forget(self, path: Path) -> None:
        del self._listed[path]
        with self._kept.lock:
            self._kept.prefixes.pop(path, None)
            self._kept.unsaved.pop(path, None)
        self.folder.drop(path)


def _usable(tokens: Tokens, prompt: Tokens, divisible: bool) -> int:
    """How many tokens of a prompt a prefix spares. One that cannot be cut spares all of its own or none.

    >>> row = np.arange(9, dtype=np.int32)
    >>> _usable(row[:5], row, True), _usable(np.append(row[:5], np.int32(0)), row, True)
    (5, 5)
    >>> _usable(np.append(row[:5], np.int32(0)), row, False)
    0
    """
    most = min(len(tokens), len(prompt))
    different = np.flatnonzero(tokens[:most] != prompt[:most])
    shared = int(different[0]) if len(different) else most
    return shared if divisible or shared == len(tokens) else 0


def _serves(old: Tokens, tokens: Tokens, divisible: bool) -> bool:
    """Whether a prefix spares a prompt of `tokens` three quarters at least, and is not far longer than it.

    So what grows is copied anew only when it has grown by a third, and a short beginning gets a prefix of its own
    beside the long ones that start with it.
    """
    return 4 * _usable(old, tokens, divisible) >= 3 * len(tokens) and len(old) <= 2 * len(tokens)


def _continues(tokens: Tokens, old: Tokens) -> bool:
    """Whether `tokens` go on where `old` ends and are not far longer, so that nobody needs that one any more."""
    return len(tokens) <= 2 * len(old) and _usable(old, tokens, True) == len(old)
