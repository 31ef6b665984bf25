"""A text that goes round in circles: small models may say the same again and again until they are stopped.

Knows nothing of models or of how a text is made.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]\w*|\d+\w*[^\W\d_]\w*")  # with a letter: rows of numbers come again in tables
_MARK = re.compile(r"(?:(?<=[.!?\]])[ \t]+|\s*\n\s*)(?:\d{1,3}[.)]|[-*•])\s*$")  # of the next item of a list
_FENCE = "```"
_TIMES = 3
_LEAST = 16  # letters of what comes again


class Repetition:
    """Watches a text as it grows, piece by piece.

    What counts are words alone: neither marks nor numbers, which loops may count up. Said three times, one directly
    after the other, and outside code between fences, a passage is a loop; twice may be meant.

    >>> seen = Repetition()
    >>> seen.grow("It opens at nine in winter [1]. " * 2), seen.grow("It opens at nine in winter"), seen.grow(".")
    (None, None, 32)
    """

    def __init__(self) -> None:
        self._text = ""
        self._words: list[str] = []
        self._starts: list[int] = []
        self._read = 0  # so much of the text has been taken apart

    def grow(self, piece: str) -> int | None:
        """Where the text begins to repeat itself, as a length, once it has done so twice; call it no more then."""
        self._text += piece
        ends = len(self._text)
        while ends > self._read and self._text[ends - 1].isalnum():
            ends -= 1  # a word that may go on
        for found in _WORD.finditer(self._text, self._read, ends):
            self._words.append(found[0].casefold())
            self._starts.append(found.start())
            if (period := self._period()) and not self._text.count(_FENCE, 0, found.start()) % 2:
                again = self._starts[len(self._words) - (_TIMES - 1) * period]
                mark = _MARK.search(self._text, 0, again)
                return mark.start() if mark else again
        self._read = ends
        return None

    def _period(self) -> int:
        """Words of what the last of them say three times; 0 where they do not."""
        words = self._words
        for period in range(1, len(words) // _TIMES + 1):
            if words[-1] != words[-1 - period]:
                continue
            last = words[-period:]
            if sum(map(len, last)) < _LEAST:
                continue
            if all(words[-at * period : (1 - at) * period] == last for at in range(2, _TIMES + 1)):
                return period
        return 0
