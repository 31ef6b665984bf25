"""The rules: how keys, passwords, cards, accounts, addresses and numbers of people look when written plainly.

A rule is a kind, a pattern and a check of what it found. Every pattern is bounded or possessive, so a text of any
content is searched in linear time. It knows nothing of encodings, of overlaps or of what becomes of a find.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import checksums

DROPPED = ("KEY", "TOKEN", "PASSWORD", "CARD", "SECRET")
"""Kinds that help no answer and must never be put back, the most specific first; others get pseudonyms."""

# Addresses that every machine has identify nobody, and questions about networks are full of them.
_EVERYBODYS_ADDRESSES = {"127.0.0.1", "0.0.0.0", "255.255.255.255", "255.255.255.0", "::1", "::"}
_UUID = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}(?![0-9A-Za-z])")
_LONGEST_PEM = 20_000  # characters; the largest keys in use take 13,000


@dataclass(frozen=True, slots=True)
class Rule:
    """A match of `pattern` (its group `value` where it has one) is a find of `kind` if `check` says so.

    `check` gives how many characters, from the beginning, are the find; 0 for none.
    """

    kind: str
    pattern: re.Pattern[str]
    check: Callable[[str], int] | None = None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of every find. After a match that fails its check the search goes on within it."""
        at = 0
        while match := self.pattern.search(text, at):
            group = "value" if self.pattern.groupindex else 0
            start, end = match.span(group)
            length = self.check(match[group]) if self.check else end - start
            if length:
                yield start, start + length
            at = max(start + length, match.start() + 1) if self.check else max(end, match.start() + 1)


def _if(test: Callable[[str], bool]) -> Callable[[str], int]:
    return lambda text: len(text) if test(text) else 0


def _rule(kind: str, pattern: str, test: Callable[[str], bool] | None = None, *, ignore_case: bool = False) -> Rule:
    flags = re.IGNORECASE if ignore_case else re.NOFLAG
    return Rule(kind, re.compile(pattern, flags), _if(test) if test else None)


# --- checks -----------------------------------------------------------------------------------------


def looks_random(text: str) -> bool:
    """Whether a run of letters and digits was drawn by a machine: its classes change too often for words.

    The share of neighbours of different class (capital, small, digit) is 0.62 in random base 62, 0.47 in random
    hexadecimal and about 0.3 in CamelCase; separators are left out, else every hyphenated phrase would be random.

    >>> looks_random("q7Rk2LmX9vT4bN8cW1zY"), looks_random("test-http-server-2-handler"), looks_random("9" * 40)
    (True, False, False)
    """
    return any(map(_changes_class_often, {text, *re.split(r"[^A-Za-z0-9]+", text)}))


def _changes_class_often(text: str) -> bool:
    letters = re.sub(r"[^A-Za-z0-9]", "", text)
    runs = re.findall(r"[a-z]+|[A-Z]+|[0-9]+", letters)
    if len(letters) < 20 or _entropy(letters) < 2.8:
        return False
    digits, mixed = any(run[0].isdigit() for run in runs), not (letters.islower() or letters.isupper())
    floor = (0.4 if digits else 0.45) if mixed else 0.25
    return (digits or mixed) and len(runs) - 1 >= floor * (len(letters) - 1)


def _looks_secret(text: str) -> bool:
    return looks_random(text) and not _UUID.fullmatch(text)


def _entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _ipv4(text: str) -> bool:
    return text not in _EVERYBODYS_ADDRESSES and all(int(part) < 256 for part in text.split("."))


def _ipv6(text: str) -> bool:
    groups = text.split(":")
    if text in _EVERYBODYS_ADDRESSES or (len(groups) < 5 and max(map(len, groups)) < 3):
        return False  # `a::b` is a name and `[1::2]` a slice in programming languages
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _has_mixed_signs(text: str) -> bool:
    """More than a word: a digit, a special sign within, or capitals after a small letter."""
    return bool(re.search(r"[0-9]|[^\W_][^\w\s'’.,;:!?)\"-]|[a-z][A-Z]", text))


def _phone_digits(least: int, most: int) -> Callable[[str], bool]:
    return lambda text: least <= len(checksums.digits_of(text)) <= most


def _pem_length(text: str) -> int:
    """To the end line, or, where that is missing, as far as the lines look like one."""
    head = text.index("-----", 10) + 5
    mark = re.compile(r"-----(?:BEGIN|END)[^-\n]{0,60}-----").search(text, head)
    if mark and mark[0].startswith("-----END"):
        return mark.end()
    body = re.compile(r"(?:\s*+(?:\\[rn])*+[A-Za-z0-9+/=]{16,}+)*+").match(text, head)
    return body.end() if body else head


def _putty_length(text: str) -> int:
    """To the checksum in the last line; where that is missing, all that may belong to it."""
    end = re.search(r"Private-MAC:\s*[0-9A-Fa-f]+", text)
    return end.end() if end else len(text)


# --- rules ------------------------------------------------------------------------------------------

_A = r"(?<![A-Za-z0-9])"  # not within a word; an underscore may be an escape or emphasis
_Z = r"(?![A-Za-z0-9])"
_D = r"(?<![0-9])(?<![0-9]\.)"
_E = r"(?![0-9])(?!\.[0-9])"
_SEP = r"[ \t\n./+_-]{1,3}"

_PREFIXED_KEYS = "|".join(
    (
        r"(?:AKIA|ASIA|AGPA|AIDA|AROA|AIPA|ANPA|ANVA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS
        r"AIza[\w-]{30,}+",  # Google
        r"GOCSPX-[\w-]{20,}+",
        r"ya29\.[\w-]{20,}+",
        r"gh[pousr]_\w{20,}+",  # GitHub
        r"github_pat_\w{20,}+",
        r"gl(?:pat|ptt|rt|dt|soat|ft|imt|agent|cbt|ffct)-[\w.-]{16,}+",  # GitLab
        r"xox[a-z](?:\.xox[a-z])?-[\w-]{10,}+",  # Slack
        r"xapp-[\w-]{10,}+",
        r"(?:sk|pk|rk)_(?:live|test)_\w{10,}+",  # Stripe
        r"whsec_[\w+/=]{16,}+",
        r"sk-[\w-]{16,}+",  # OpenAI and those who copied its form
        r"(?:gsk|r8|pplx|xai|lin_api|dop_v1|doo_v1|dor_v1|npm|hf|pypi|nvapi|rubygems|pat|sbp|glc|tfp)[_-]\w{20,}+",
        r"sq0[a-z]{3}-[\w-]{20,}+",  # Square
        r"SG\.[\w-]{16,}+\.[\w-]{16,}+",  # SendGrid
        r"(?:AC|SK)[0-9a-f]{32}",  # Twilio
        r"key-[0-9a-f]{32}",  # Mailgun
        r"shp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}",  # Shopify
        r"dapi[0-9a-f]{32}",  # Databricks
        r"hv[sbr]\.[\w-]{20,}+",  # Vault
        r"AGE-SECRET-KEY-1[A-Z0-9]{50,}+",
        r"[0-9]{8,10}:[\w-]{35}",  # Telegram
        r"\w{3}[0-9]Q~[\w~.-]{31,34}",  # Azure client secret
    )
)
_NAMES_OF_SECRETS = (
    r"(?:pass(?:word|wort|wd|code|phrase)|\bpass\b|\bpwd|\bpw\b|kennwort|mot[ _]de[ _]passe|contrase(?:ñ|n)a|senha"
    r"|\bpin\b|secret(?!ar|ion|ly)|token(?!i[sz]|s\b|s_)|api[ _-]?key|access[ _-]?key|private[ _-]?key"
    r"|account[ _-]?key|auth[ _-]?key|encryption[ _-]?key|signing[ _-]?key|shared[ _-]?key"
    r"|credentials?|authorization|\bsig\b|session[ _-]?(?:id|key)"
    r"|cookie|\botp\b|(?:verification|one[ -]time|security|recovery) code)"
)
_QUOTED = r"""\\?"(?:[^"\\\n]|\\.){1,2000}+"|'(?:[^'\\\n]|\\.){1,2000}+'|`[^`\n]{1,2000}+`"""

RULES = (
    Rule(
        "KEY",
        re.compile(rf"-----BEGIN[^-\n]{{0,40}}PRIVATE KEY[^-\n]{{0,20}}-----[\s\S]{{0,{_LONGEST_PEM}}}"),
        _pem_length,
    ),
    # The end of a key whose beginning is in another passage, with the words before it.
    _rule(
        "KEY",
        r"(?<![A-Za-z0-9+/=\s])\s*+(?P<value>(?:[A-Za-z0-9+/=]++\s*+){1,200}+-----END[^-\n]{0,40}PRIVATE KEY"
        r"[^-\n]{0,20}-----)",
    ),
    Rule("KEY", re.compile(rf"{_A}PuTTY-User-Key-File-[\s\S]{{0,{_LONGEST_PEM}}}"), _putty_length),
    _rule("KEY", rf"{_A}(?:{_PREFIXED_KEYS}){_Z}"),
    # The secret half of an AWS key is 40 characters without any mark; near an identifier it need not look random.
    _rule(
        "KEY",
        rf"{_A}(?:AKIA|ASIA)[A-Z0-9]{{16}}{_Z}[\s\S]{{0,200}}?(?<![A-Za-z0-9/+])(?P<value>[A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+])",
    ),
    _rule(
        "KEY",
        rf"(?<![A-Za-z0-9/+])(?P<value>[A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+])(?=[\s\S]{{0,200}}?(?:AKIA|ASIA)[A-Z0-9]{{16}}{_Z})",
    ),
    _rule("KEY", r"https?://hooks\.slack\.com/[\w/]{10,}+|https?://(?:\w{1,10}\.)?discord(?:app)?\.com/api/webhooks/[\w/-]{10,}+"),
    _rule("TOKEN", r"(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{2,}+(?:\.[\w-]*+){0,3}"),
    _rule("TOKEN", rf"{_A}bearer\s{{1,5}}(?P<value>[\w.~+/=-]{{12,}}+)", _has_mixed_signs, ignore_case=True),
    _rule(
        "TOKEN",
        r"authorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:(?:basic|bearer|token|digest|apikey)\s{1,3})?(?P<value>[^\s\"']{4,}+)",
        ignore_case=True,
    ),
    _rule("PASSWORD", rf"{_A}[A-Za-z][A-Za-z0-9+.-]{{1,30}}://(?P<value>[^\s:/@]{{0,128}}:[^\s@]{{1,256}}@\S+)"),
    _rule("PASSWORD", r"[A-Za-z]://(?P<value>[^\s:/@]{16,256}@\S+)"),  # a token instead of a name
    _rule("PASSWORD", r"(?<![\w-])(?:-u|--user)[ =][\"']?(?P<value>[^\s:]{1,128}:\S+)"),  # curl
    _rule(
        "PASSWORD",
        rf"{_NAMES_OF_SECRETS}[\w.-]{{0,24}}[\"'\]\\]{{0,3}}\s{{0,4}}(?:=>|:=|={{1,2}}|:|->|>)\s{{0,4}}"
        rf"(?P<value>{_QUOTED}|\S{{4,}}+)",
        ignore_case=True,
    ),
    _rule(
        "PASSWORD",
        rf"{_NAMES_OF_SECRETS}[\w.-]{{0,24}}\s{{1,4}}"
        rf"(?:(?:is|was|ist|lautet|es|est|set to|changed to)[\s:]{{1,3}})?"
        rf"(?P<value>{_QUOTED}|\S{{4,}}+)",
        _has_mixed_signs,
        ignore_case=True,
    ),
    _rule(
        "PASSWORD",
        r"(?:pass ?phrase|(?:seed|recovery|secret|backup) (?:phrase|words)|mnemonic)\W{1,4}(?:is\W{1,3})?"
        r"(?P<value>(?:[a-z]{2,12}[ ,]{1,2}){3,30}[a-z]{2,12})",
        ignore_case=True,
    ),
    *(
        _rule("CARD", pattern, checksums.card)
        for pattern in (
            rf"(?<![0-9])(?<![0-9]\.)[2-68][0-9]{{12,18}}{_E}",
            rf"(?<![0-9])[2-68][0-9]{{3}}(?:{_SEP}[0-9]{{4}}){{3}}(?![0-9])",
            rf"(?<![0-9])[2-68][0-9]{{3}}(?:{_SEP}[0-9]{{4}}){{3}}{_SEP}[0-9]{{1,3}}(?![0-9])",
            rf"(?<![0-9])4[0-9]{{3}}(?:{_SEP}[0-9]{{3}}){{3}}(?![0-9])",
            rf"(?<![0-9])3[0-9]{{3}}{_SEP}[0-9]{{6}}{_SEP}[0-9]{{4,5}}(?![0-9])",
        )
    ),
    _rule("CARD", rf"\b(?:cvv2?|cvc2?)\W{{1,3}}(?:is )?(?P<value>[0-9]{{3,4}}){_E}", ignore_case=True),
    Rule(
        "IBAN",
        re.compile(r"[A-Z]{2}[0-9]{2}(?:[ .\t\n-]{0,2}[A-Z0-9]){11,30}", re.IGNORECASE),
        checksums.iban_length,
    ),
    _rule(
        "EMAIL",
        r"[\w.%+'-]{1,64}+(?:@|\s?[\[(]at[\])]\s?)"
        r"(?:[\w-]{1,63}+(?:\.|\s?[\[(](?:dot|punkt)[\])]\s?)){1,6}[^\W\d_]{2,24}",
    ),
    _rule("IP", r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])", _ipv4),
    _rule(
        "IP",
        r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{2,39}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3})?(?![\w:])",
        _ipv6,
    ),
    _rule("MAC", r"(?<![\w:-])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?![\w:-])"),
    _rule("ID", rf"{_D}[0-9]{{3}}[ -][0-9]{{2}}[ -][0-9]{{4}}{_E}", checksums.social_security),
    _rule("ID", rf"{_A}[A-CEGHJ-PR-TW-Z]{{2}}(?:[ -]?[0-9]{{2}}){{3}}[ -]?[A-D]{_Z}"),  # UK NINO
    _rule("ID", rf"{_A}(?:[0-9]{{8}}|[XYZ][ -]?[0-9]{{7}})[ -]?[A-Z]{_Z}", checksums.spanish_id),
    _rule(
        "ID",
        rf"{_D}[12] ?[0-9]{{2}} ?[0-9]{{2}} ?(?:[0-9]{{2}}|2[AB]) ?[0-9]{{3}} ?[0-9]{{3}} ?[0-9]{{2}}{_E}",
        checksums.french_id,
    ),
    _rule("ID", rf"{_D}[1-9][0-9] ?[0-9]{{3}} ?[0-9]{{3}} ?[0-9]{{3}}{_E}", checksums.german_id),
    _rule("ID", rf"{_D}[0-9]{{11}}{_E}", checksums.polish_id),
    _rule("ID", rf"{_D}[0-9]{{3}}\.?[0-9]{{3}}\.?[0-9]{{3}}-?[0-9]{{2}}{_E}", checksums.brazilian_id),
    _rule("ID", rf"{_D}[1-9][0-9]{{16}}[0-9Xx]{_Z}", checksums.chinese_id),
    _rule("ID", rf"{_D}756[. ]?[0-9]{{4}}[. ]?[0-9]{{4}}[. ]?[0-9]{{2}}{_E}", checksums.swiss_id),
    Rule("ID", _UUID),
    _rule(
        "ID",
        r"\b(?:ssn|social security|passport|reisepass|account|acct|konto|sort code|routing|tax id|steuer-?id"
        r"|licen[cs]e|national id|id card|insurance|patient|customer|member|mrn)"
        r"(?:[ -]?(?:no|number|nummer|nr|id)\b)?[.:#=\s]{1,4}(?:is\s)?"
        r"(?P<value>(?=(?:[A-Z]{0,3}[ -]?[0-9][ -]?){4})[A-Z0-9][A-Z0-9-]{3,29})",
        ignore_case=True,
    ),
    _rule("PHONE", r"(?<![\w+])\+[ ]?[1-9](?:[ ()./\u2011-]{0,3}[0-9]){6,14}(?![0-9])", _phone_digits(7, 15)),
    _rule("PHONE", rf"{_D}00[1-9](?:[ ()/.-]{{0,3}}[0-9]){{8,13}}{_E}", _phone_digits(10, 16)),
    _rule("PHONE", rf"{_D}(?:\([2-9][0-9]{{2}}\) ?|[2-9][0-9]{{2}}[-. ])[0-9]{{3}}[-. ][0-9]{{4}}{_E}"),  # USA
    _rule("PHONE", rf"{_D}[2-9][0-9]{{2}}[2-9][0-9]{{6}}{_E}"),
    _rule("PHONE", rf"{_D}1[-. ][2-9][0-9]{{2}}[-. ][0-9]{{3}}[-. ][0-9]{{4}}{_E}"),
    _rule("PHONE", rf"{_D}0[1-9](?:[ .-]?[0-9]{{2}}){{4}}{_E}"),  # France
    _rule(
        "PHONE",  # Germany, Britain, Italy and others: an area code with a zero, then groups
        rf"{_D}(?:0[1-9][0-9]{{1,4}}[ /-]{{1,3}}|\(0[1-9][0-9]{{1,4}}\)[ /-]{{0,3}})"
        rf"[0-9]{{2,9}}(?:[ -]{{1,2}}[0-9]{{1,6}}){{0,4}}{_E}",
        _phone_digits(8, 13),
    ),
    _rule("PHONE", rf"{_D}0[1-9][0-9]{{8,10}}{_E}"),
    _rule("PHONE", rf"{_D}[6-9][0-9]{{4}}[ -][0-9]{{5}}{_E}"),  # India
    _rule(
        "PHONE",
        r"\b(?:tele(?:ph|f)on[eo]?|phone|tel|mobile?|cell|handy|fax|call(?: me)?(?: (?:at|on))?|whatsapp"
        r"|sms|text me at)(?: (?:no|number|nummer)\b)?[.: ]{1,4}(?:is )?"
        r"(?P<value>[+(]{0,2}[0-9](?:[ ()/.-]{0,3}[0-9]){5,14})(?![0-9])",
        ignore_case=True,
    ),
    _rule("SECRET", r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{20,}+={0,2}", _looks_secret),
)  # fmt: skip
