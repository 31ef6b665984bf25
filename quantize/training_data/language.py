"""Which language a text is in, by its letters and its commonest words.

Knows English, German, French, Spanish, Italian, Portuguese and Dutch by their words, and other letters than Latin
ones by their script. Other languages in Latin letters are unknown, and so are texts with hardly a common word, like
code. Knows nothing of what the text is for.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(
        """the of and to in a is was for that with as by on are from at be this which it were has an or not have his
        her their also its he she they been who had but what when where how did does many during after into than
        you i we there one all can will if about more known""".split()
    ),
    "de": frozenset(
        """der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er
        hat dass sie nach wird bei einer um am sind noch wie einem über was wer wann wurde war welche
        durch""".split()
    ),
    "fr": frozenset(
        """de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec ou son
        aux été cette ses mais comme on d l elle quand où quel quelle fut était leur dont""".split()
    ),
    "es": frozenset(
        """de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este fue ha
        es era desde está cuando quién dónde cuál entre también sobre hasta""".split()
    ),
    "it": frozenset(
        """di e il la che in a per un è del non una sono della le si con da i come anche più ma lo al nel dei alla
        ha gli delle dal questo fu era quando chi dove quale suo sua nella stato""".split()
    ),
    "pt": frozenset(
        """de a o que e do da em um para com não uma os no se na por mais as dos como mas foi ao ele das à seu sua
        ou ser quando muito há nos já está também só pelo quem onde qual era são""".split()
    ),
    "nl": frozenset(
        """de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij door uit naar heeft
        hij ze werd was wie wat waar wanneer welke over hun deze dit nog worden tot""".split()
    ),
}
"""The words that make out a third or more of running text."""

LEAST_SHARE = 0.15
"""Of a text's words that must be common ones of its language; questions and headlines have about 0.3, prose 0.4."""
_SCRIPTS = frozenset(
    """GREEK CYRILLIC ARMENIAN HEBREW ARABIC DEVANAGARI BENGALI GURMUKHI GUJARATI TAMIL TELUGU KANNADA MALAYALAM
        SINHALA THAI LAO TIBETAN MYANMAR GEORGIAN HANGUL ETHIOPIC KHMER MONGOLIAN HIRAGANA KATAKANA CJK""".split()
)
_LATIN_SHARE = 0.5  # of the letters that must be Latin for words to be looked at
_LETTERS = 2000  # looked at
_WORD = re.compile(r"[^\W\d_]+")


def language(text: str) -> str:
    """The code of a language (`en`), the name of a script (`cyrillic`, `cjk`), or "" where it cannot be told.

    >>> [language(text) for text in ("Where is the source of the Rhine?", "Wo ist die Quelle des Rheins?")]
    ['en', 'de']
    >>> language("Где исток реки?"), language("X9 = foo(bar)"), language("")
    ('cyrillic', '', '')
    """
    letters = [letter for letter in text[: 4 * _LETTERS] if letter.isalpha()][:_LETTERS]
    if not letters:
        return ""
    scripts = Counter(map(_script, letters))
    if scripts["LATIN"] < _LATIN_SHARE * len(letters):
        if scripts["HIRAGANA"] + scripts["KATAKANA"]:
            return "japanese"
        name, count = max(scripts.items(), key=lambda item: (item[1], item[0]))
        return name.lower() if name in _SCRIPTS and count >= _LATIN_SHARE * len(letters) else ""
    return _latin(_WORD.findall(text.casefold()))


def _latin(words: list[str]) -> str:
    """The language that most of the words are common in; none on a tie."""
    shares = sorted(
        ((sum(word in common for word in words) / max(1, len(words)), code) for code, common in WORDS.items())
    )
    (second, _), (best, code) = shares[-2:]
    return code if best >= LEAST_SHARE and best > second else ""


def _script(letter: str) -> str:
    return "LATIN" if letter < "ɐ" else unicodedata.name(letter, "").partition(" ")[0]
