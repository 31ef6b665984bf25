"""A text that says the same sentence again: small models may go on like that until they are stopped.

Knows nothing of models or of how a text is made.
"""

from __future__ import annotations

import re

_END = re.compile(r"[.!?][\"')\]]*\s+|\s*\n+\s*")
_FENCE = "```"
_LEAST = 5  # words; shorter lines come again in lists and tables


class Repetition:
    """Watches a text as it grows, piece by piece.

    >>> seen = Repetition()
    >>> seen.grow("It opens at nine in winter. "), seen.grow("It opens at ten in summer. ")
    (None, None)
    >>> seen.grow("It opens at nine in winter. It opens")
    55
    """

    def __init__(self) -> None:
        self._text = ""
        self._start = 0  # of the sentence that is not over yet
        self._said: set[str] = set()

    def grow(self, piece: str) -> int | None:
        """Where the text begins to repeat itself, as a length, once a whole sentence of it has come again.

        Code between fences may say things twice.
        """
        self._text += piece
        while end := _END.search(self._text, self._start):
            start, self._start = self._start, end.end()
            words = re.findall(r"\w+", self._text[start : end.start()].casefold())
            if len(words) < _LEAST or self._text.count(_FENCE, 0, start) % 2:
                continue
            sentence = " ".join(words)
            if sentence in self._said:
                return start
            self._said.add(sentence)
        return None
