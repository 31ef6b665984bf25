"""Names that stand for private values on their way out and are put back in the reply, also while it streams.

A vault belongs to one conversation and lives in memory only. It knows nothing of how values are found or of what
is sent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from typing import NoReturn

from .detectors import Finding, merged
from .patterns import DROPPED

# As it may come back: `EMAIL_1`, and `EMAIL\_1` from a model that writes Markdown. Not within a word or number.
_PSEUDONYM = re.compile(r"(?<![^\W_])([A-Z]{2,20})\\?_([1-9][0-9]{0,8})(?![^\W_])")
_MARK = re.compile(r"\[[A-Z]{2,20}\]")


class Vault:
    """Values and their pseudonyms: `EMAIL_1` always stands for the same text, and `restore` undoes `hide`.

    Kinds in `DROPPED` (keys, tokens, passwords, cards) become `[KEY]` and the like, the same for every value: they
    help no answer, so nothing could be put back even if the reply asked for it. Not shared between threads, never
    written anywhere, and neither its text form nor a pickle holds a value.

    >>> vault = Vault()
    >>> hidden = vault.hide("From jo@x.de", [Finding(5, 12, "EMAIL")])
    >>> hidden, vault.restore("Reply to EMAIL_1."), vault
    ('From EMAIL_1', 'Reply to jo@x.de.', Vault(1 value))
    """

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._pseudonyms: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()  # spelled out in some text, so never given to a value
        self._beginnings: set[str] = set()
        self._next: dict[str, count[int]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Vault({len(self)} value{'s' * (len(self) != 1)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault is not written anywhere")

    def hide(
        self, text: str, findings: Iterable[Finding], *, reversible: bool = True, counts: Counter[str] | None = None
    ) -> str:
        """`text` with every find replaced; `counts` is told how many of each kind.

        A find that touches letters or digits takes them with it, so that its pseudonym stands alone. Where the text
        itself spells a pseudonym in use, that too is hidden behind one: what comes back is what was written.
        """
        spelled = []
        for match in _PSEUDONYM.finditer(text):
            if _name(match) in self._values:
                spelled.append(Finding(*match.span(), match[1]))
            else:
                self._taken.add(_name(match))
        together = merged([*(_alone(text, finding) for finding in findings), *spelled])
        if counts is not None:
            counts.update(finding.kind for finding in together)

        def mark(finding: Finding) -> str:
            if finding.kind in DROPPED or not reversible:
                return f"[{finding.kind}]"
            return self._pseudonym(finding.kind, text[finding.start : finding.end])

        return _replaced(text, together, mark)

    def restore(self, text: str) -> str:
        """`text` with the value for every pseudonym of this vault; others stay as they are."""
        return _PSEUDONYM.sub(self._value, text)

    def restorer(self) -> Restorer:
        """`restore` for a text that comes in pieces."""
        return Restorer(self)

    def _value(self, match: re.Match[str]) -> str:
        return self._values.get(_name(match), match[0])

    def _pseudonym(self, kind: str, value: str) -> str:
        known = self._pseudonyms.get((kind, value))
        if known:
            return known
        numbers = self._next.setdefault(kind, count(1))
        name = next(name for number in numbers if (name := f"{kind}_{number}") not in self._taken)
        self._pseudonyms[kind, value], self._values[name] = name, value
        for spelling in (name, name.replace("_", "\\_")):
            self._beginnings |= {spelling[:end] for end in range(1, len(spelling) + 1)}
        return name


class Restorer:
    """Restores a stream: `push` each piece and show what it gives, then `finish`.

    Only what may be the beginning of one of the vault's pseudonyms is held back, at most a few characters. The
    pieces may be cut anywhere: together the results are `vault.restore` of the whole.

    >>> vault = Vault()
    >>> _ = vault.hide("jo@x.de", [Finding(0, 7, "EMAIL")])
    >>> restorer = vault.restorer()
    >>> [restorer.push("Write to EM"), restorer.push("AIL_1"), restorer.push(" now"), restorer.finish()]
    ['Write to ', '', 'jo@x.de now', '']
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._before, self._held = "", ""  # the last character given out, for the word boundary; what waits

    def push(self, piece: str) -> str:
        """Take the next piece; returns what can be shown by now."""
        text = self._before + self._held + piece
        begin, keep = len(self._before), len(text)
        longest = max(map(len, self._vault._beginnings), default=0)
        for at in range(max(begin, len(text) - longest), len(text)):
            alone = at == 0 or not text[at - 1].isalnum()
            if alone and text[at:] in self._vault._beginnings:
                keep = at
                break
        return self._give(text, begin, keep)

    def finish(self) -> str:
        """The end of the text has come; returns what was held back."""
        text = self._before + self._held
        return self._give(text, len(self._before), len(text))

    def _give(self, text: str, begin: int, keep: int) -> str:
        """Restore and return `text[begin:keep]`; what follows is held, and tells where a number ends."""
        parts: list[str] = []
        at = begin
        for match in _PSEUDONYM.finditer(text, begin):
            if match.end() > keep:
                break
            parts += text[at : match.start()], self._vault._value(match)
            at = match.end()
        self._before, self._held = text[max(0, keep - 1) : keep], text[keep:]
        return "".join([*parts, text[at:keep]])


def drop(text: str, findings: Iterable[Finding]) -> str:
    """`text` with every find replaced for good, whatever its kind.

    >>> drop("Mail jo@x.de", [Finding(5, 12, "EMAIL")])
    'Mail [EMAIL]'
    """
    together = merged(_alone(text, finding) for finding in findings)
    return _replaced(text, together, lambda finding: f"[{finding.kind}]")


def is_marked(text: str) -> bool:
    """Whether nothing but pseudonyms, marks like `[KEY]` and signs is left in a text.

    >>> is_marked("EMAIL_1, [CARD]"), is_marked("EMAIL_1 of Jo")
    (True, False)
    """
    return not any(map(str.isalnum, _MARK.sub("", _PSEUDONYM.sub("", text))))


def _replaced(text: str, findings: Iterable[Finding], mark: Callable[[Finding], str]) -> str:
    parts: list[str] = []
    at = 0
    for finding in findings:
        parts += text[at : finding.start], mark(finding)
        at = finding.end
    return "".join([*parts, text[at:]])


def _name(match: re.Match[str]) -> str:
    return f"{match[1]}_{match[2]}"


def _alone(text: str, finding: Finding) -> Finding:
    start, end = finding.start, finding.end
    while start > 0 and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum():
        end += 1
    return Finding(start, end, finding.kind)
