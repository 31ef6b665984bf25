"""Which tokens of a byte-level BPE a smaller vocabulary keeps, so that texts of its tokens are read as before.

Knows tokens, their kinds and their merges; nothing of files or texts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise

from edge_sdk.errors import ConfigError

from .tokenizer_json import NORMAL, UNUSED, ByteBpe

_ROUND = 64
"""Rows of a matrix come in multiples of this: the fast layouts of ggml take eight or sixteen rows together."""


def choose_tokens(
    bpe: ByteBpe,
    counts: Mapping[int, int],
    always: Collection[int] = (),
    *,
    size: int | None = None,
    coverage: float = 1.0,
) -> list[int]:
    """Ids to keep, ascending: those of `always`, single bytes, special tokens, and the most frequent of `counts`.

    The number is a multiple of 64 where that is possible; what is left of it goes to the tokens merged first.
    Raises `ConfigError` where `size` is below what has to be kept, or not below what there is.
    """
    total = len(bpe.tokens)
    if size is not None and size >= total:
        raise ConfigError(f"the vocabulary has {total:,} tokens, no more than {size:,}", hint="name a smaller size")
    parts = Merges(bpe)
    kept: set[int] = set()
    for at, (token, kind) in enumerate(zip(bpe.tokens, bpe.types, strict=True)):
        if len(token) == 1 or kind not in (NORMAL, UNUSED):
            kept.add(at)
    for at in always:
        kept |= parts.of(at)
    if size is not None and size < len(kept):
        raise ConfigError(
            f"{len(kept):,} tokens have to be kept, more than {size:,}: bytes, special tokens and prompts",
            hint=f"the smallest size is {len(kept):,}",
        )
    limit = total if size is None else size
    if size is not None and (rounded := size // _ROUND * _ROUND) >= len(kept):
        limit = rounded
    enough, seen = coverage * sum(counts.values()), sum(counts.get(at, 0) for at in kept)
    for at, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if at in kept or seen >= enough:
            continue
        needed = parts.of(at) - kept
        if len(kept) + len(needed) <= limit:
            kept |= needed
            seen += sum(counts.get(each, 0) for each in needed)
    limit = min(-(-len(kept) // _ROUND) * _ROUND, total) if size is None else limit
    for at, kind in enumerate(bpe.types):
        if len(kept) >= limit:
            break
        if kind == NORMAL and at not in kept and len(needed := parts.of(at) - kept) <= limit - len(kept):
            kept |= needed
    return sorted(kept)


class Merges:
    """From which tokens each token is merged.

    Byte-pair encoding never merges across the ends of a token that it arrives at, so a token is made by the same
    merges within every word: those that happen when its own letters are encoded. With all of them kept, and in
    their order, a text that was read as kept tokens is read as the same ones afterwards.
    """

    def __init__(self, bpe: ByteBpe) -> None:
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, merge in enumerate(bpe.merges):
            first, _, second = merge.partition(" ")
            self._ranks.setdefault((first, second), rank)
        self._ids = {token: at for at, token in enumerate(bpe.tokens)}
        self._bpe = bpe

    def of(self, token: int) -> set[int]:
        """The token, and all that comes up on the way to it."""
        if self._bpe.types[token] != NORMAL:
            return {token}
        found, parts = {token}, list(self._bpe.tokens[token])
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairwise(parts)]
            if (best := min(ranks)) == len(self._ranks):
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            if parts[at] in self._ids:
                found.add(self._ids[parts[at]])
        return found
