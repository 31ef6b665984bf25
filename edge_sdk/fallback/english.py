"""English as far as comparing two questions needs it: function words, inflection, synonyms, courtesies.

Small tables and rules, no grammar; another language passes through and is compared word by word. Knows nothing of
what is compared.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

ASKS = {word: word for word in ("who", "whose", "where", "when", "why", "how", "what", "whether")} | {
    "which": "what",
    "whom": "who",
}
"""Question words to what they ask for."""

LIGHT = frozenset(
    """a an the of in on at for with about as to into by and that there i you we me my our your us one am is are was
    were be been being do does did done have has had having please exactly actually really called named known termed
    located situated so just then between""".split()
)
"""Words that tell no question from another one, once those in the tables below have been looked at."""

NEGATIONS = frozenset("not no never none nobody nothing neither nor without except unless".split())
DIRECTING = {
    word: word for word in "from to by than before after over under against since until above below".split()
} | {"into": "to", "till": "until"}
"""Prepositions that give the word after them its role."""

HAPPEN = frozenset("happen happens happened occur occurs occurred".split())
DEICTIC = frozenset(
    """today tonight tomorrow yesterday now currently current latest newest recent recently nowadays upcoming here
    weather my mine our ours""".split()
)
"""Words whose meaning changes with the day, the place and the person who asks."""

PRONOUNS = frozenset("it its he him his she her hers they them their theirs this these those".split())
AUXILIARIES = {
    "future": frozenset("will shall".split()),
    "past": frozenset("was were did had".split()),
    "present": frozenset("is are am do does has have be".split()),
}
NUMBERS = dict(
    zip(
        "zero two three four five six seven eight nine ten eleven twelve twenty".split(),
        "0 2 3 4 5 6 7 8 9 10 11 12 20".split(),
        strict=True,
    )
) | dict(
    zip(
        "first second third fourth fifth sixth seventh eighth ninth tenth".split(),
        "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th".split(),
        strict=True,
    )
)


def _bases(table: str) -> dict[str, str]:
    entries = (entry.partition(":") for entry in table.split())
    return {form: base for base, _, forms in entries for form in forms.split(",")}


PAST = _bases(
    """be:been begin:began,begun beat:beaten become:became bite:bit,bitten break:broke,broken bring:brought
    build:built buy:bought catch:caught choose:chose,chosen come:came deal:dealt do:done draw:drew,drawn
    drink:drank,drunk drive:drove,driven eat:ate,eaten fall:fell,fallen feed:fed fight:fought find:found
    fly:flew,flown forget:forgot,forgotten freeze:froze,frozen get:got,gotten give:gave,given go:went,gone
    grow:grew,grown hang:hung hear:heard hide:hid,hidden hold:held keep:kept know:knew lay:laid lead:led leave:left
    lend:lent lose:lost make:made mean:meant meet:met pay:paid ride:rode,ridden rise:rose,risen run:ran say:said
    see:saw,seen sell:sold send:sent shoot:shot sing:sang,sung sink:sank,sunk sit:sat sleep:slept speak:spoke,spoken
    spend:spent stand:stood steal:stole,stolen swim:swam,swum take:took,taken teach:taught tell:told think:thought
    throw:threw,thrown use:used wake:woke,woken wear:wore,worn win:won write:wrote,written"""
)
"""Irregular past forms to their verbs."""

_IRREGULAR = PAST | _bases(
    """man:men woman:women child:children foot:feet tooth:teeth mouse:mice person:people die:dying lie:lying
    use:using"""
)
_SYNONYMS = """begin start commence|end finish conclude|big large|biggest largest|small little|smallest littlest
    buy purchase|make create build construct|happen occur|movie film|car automobile|country nation|doctor physician
    job occupation profession|fast quick rapid|fastest quickest|repair fix|delete remove erase|show display
    change alter modify|need require|help assist|allow permit|choose select pick|phone telephone
    photo picture photograph|tv television|type kind sort|write author writer|receive obtain get|reside live
    utilize use|important significant"""


def _stem(word: str) -> str:
    """Strips plural, "-ed", "-ing" and a last "e"; writes "-our" and "-ise" as Americans do.

    >>> [_stem(word) for word in ("cities", "stopped", "making", "colours", "organised", "glass", "node_1")]
    ['city', 'stop', 'mak', 'color', 'organiz', 'glass', 'node_1']
    """
    if len(word) < 4 or not word.isalpha():
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and not set("aeiouy").isdisjoint(rest):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    if len(word) > 2:
        word = word.removesuffix("e")
    if len(word) > 5 and word.endswith("is"):
        word = word[:-2] + "iz"
    return word[:-3] + "or" if len(word) > 4 and word.endswith("our") else word


_STANDS_FOR = {
    _stem(other): _stem(group.split()[0])
    for line in _SYNONYMS.splitlines()
    for group in line.split("|")
    for other in group.split()
}


@lru_cache(maxsize=4096)
def meaning(word: str) -> str:
    """A word in small letters without its inflection, or the word that stands for its synonyms.

    >>> meaning("films") == meaning("movie"), meaning("written") == meaning("writes"), meaning("largest")
    (True, True, 'biggest')
    """
    stem = _stem(_IRREGULAR.get(word, word))
    return _STANDS_FOR.get(stem, stem)


_MAKERS = {
    "author": "wrote",
    "inventor": "invented",
    "founder": "founded",
    "creator": "created",
    "composer": "composed",
    "designer": "designed",
    "discoverer": "discovered",
    "builder": "built",
}
_ASKED = "(?=(?:(?:in|at|on|for|by|to|from|with) )?(?:who|what|which|where|when|why|how|whose|if|whether)\\b)"
_REWRITES = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"\b(?:[a-z]\.){2,}", lambda match: match[0].replace(".", "").upper()),  # U.S. is US, not us
        (r"\bwon't\b", "will not"),
        (r"\bcan(?:'t|not)\b", "can not"),
        (r"n't\b", " not"),
        (r"'re\b", " are"),
        (r"'ll\b", " will"),
        (r"'ve\b", " have"),
        (r"\b(who|what|where|when|why|how|it|that|there)'s\b", r"\1 is"),
        (r"\b(who|what|where|when|why|how)'d\b", r"\1 did"),
        (r"'s\b|(?<=s)'(?=\s)", ""),
        (r"^\W*(?:(?:please|hi|hello|hey)\W+){1,4}", ""),
        (
            r"^\W*(?:(?:can|could|would|will) you (?:please )?(?:tell|explain|say)(?: to)?(?: me)?"
            r"|do you (?:happen to )?know|does any(?:one|body) know|tell me|i wonder|any idea"
            r"|i(?: would|'d)? (?:like|want|need) to know) " + _ASKED,
            "",
        ),
        (r"^\W*(?:name|list|state|identify|tell me|give me) (?=(?:the|an?)\b)", "what is "),
        (r"\b(?:for|due to) (?:what|which) reason\b", "why"),
        (r"\bwhat (?:is|was|are|were) the reasons? (?:that|for|why)\b", "why"),
        (r"\bhow come\b", "why"),
        (r"\bwhat is the way to\b", "how to"),
        (r"\bwhat do (?:you|we|people) call\b", "what is"),
        (r"\bis it possible (?:for (?:me|us|you|one) )?to\b", "can"),
        (r"\bhow (?:tall|high) (is|was)\b", r"what \1 the height of"),
        (r"\bhow old (is|was)\b", r"what \1 the age of"),
        (r"\bhow much does (.{1,80}?) cost\b|\bwhat does (.{1,80}?) cost\b", r"what is the price of \1\2"),
        (r"\b(?:at the same time|at once)\b", "simultaneously"),
        (
            r"\bwho (?:is|was) the (author|inventor|founder|creator|composer|designer|discoverer|builder) of\b",
            lambda match: f"who {_MAKERS[match[1].lower()]}",
        ),
        (r"\bwho was the winner of\b", "who won"),
        (r"\bwhat (?:is|was) the name of the (?:person|man|woman) (?:who|that)\b", "who"),
        (r"\bwho (?:is|was) the (?:person|man|woman|one) (?:who|that)\b", "who"),
        (r"\b(?:what|which) (?:person|man|woman)\b", "who"),
        (r"\bthe names? of\b", ""),
        (r"\b(?:(?:in|during|at|on) )?(?:what|which) (?:year|date|time)\b", "when"),
        (r"\bat (?:what|which) (?:point|moment)\b", "when"),
        (r"\b(?:(?:in|at) )?(?:what|which) (?:place|location)\b", "where"),
        (r"\b(?:take|takes|took|taken|taking) place\b", "happened"),
        (r"\b(?:per ?cent|percentage)\b", "%"),
    )
)


def rewritten(question: str) -> str:
    """The question without contractions, courtesies and the ways around a question word.

    >>> rewritten("Could you tell me in what year it'll end?")
    'when it will end?'
    """
    text = unicodedata.normalize("NFKC", question).replace("’", "'").replace("ʼ", "'")
    text = " ".join(text.split())
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text
