"""What may follow: where the last tokens stood before, in the prompt or the answer, the tokens behind that place.

An answer that quotes its passages repeats them token by token. A new token costs a few dictionary entries, whether
it repeats anything or not; nothing is ever searched. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (4, 3, 2)  # of the n-grams by which a place is found, the longest first


class PromptLookup:
    """The tokens of a prompt and its answer so far, each n-gram of them with the place behind its last occurrence.

    A place once found is followed for as long as it goes on as the answer does; only then another is looked up.

    >>> lookup = PromptLookup([7, 1, 2, 3, 4, 5, 9])
    >>> lookup.append(1), lookup.match
    (None, 0)
    >>> lookup.append(2), lookup.match, lookup.draft(3)
    (None, 2, [3, 4, 5])
    >>> lookup.append(3), lookup.match, lookup.draft(9)
    (None, 3, [4, 5, 9, 1, 2, 3])
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        """The end of the prompt is not looked up: an answer begins anew."""
        self._tokens = list(prompt)
        self._behind: dict[tuple[int, ...], int] = {}
        self._place = 0
        self.match = 0
        """Tokens at the end that stand before the place found, as far as they were looked at; 0 without one."""
        for size in _SIZES:
            grams = zip(*(self._tokens[start:] for start in range(size)), strict=False)
            self._behind.update(zip(grams, range(size, len(self._tokens) + 1), strict=False))

    def append(self, token: int) -> None:
        """The token that came next."""
        tokens = self._tokens
        follows = self.match > 0 and tokens[self._place] == token
        self._place, self.match = (self._place + 1, self.match + 1) if follows else (0, 0)
        tokens.append(token)
        end = len(tokens)
        for size in _SIZES:
            if end < size:
                continue
            gram = tuple(tokens[end - size :])
            if not self.match and (place := self._behind.get(gram)):
                self._place, self.match = place, size
            self._behind[gram] = end

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens behind the place found, none without one."""
        return self._tokens[self._place : self._place + most] if self.match else []
