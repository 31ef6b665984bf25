"""Languages are told by their commonest words, scripts by their letters; the rest is unknown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.language import WORDS, language

SENTENCES = {
    "en": "The lamp of the tower was replaced in the spring, when the old one had been broken by a storm.",
    "de": "Die Lampe des Turms wurde im Frühling ersetzt, nachdem die alte von einem Sturm zerstört war.",
    "fr": "La lampe de la tour a été remplacée au printemps, quand une tempête avait brisé celle qui était là.",
    "es": "La lámpara de la torre fue cambiada en la primavera, cuando una tormenta había roto la que era vieja.",
    "it": "La lampada della torre è stata cambiata in primavera, quando una tempesta aveva rotto quella che era.",
    "pt": "A lâmpada da torre foi trocada na primavera, quando uma tempestade não deixou mais nada do que era.",
    "nl": "De lamp van de toren werd in het voorjaar vervangen, toen een storm de oude lamp had gebroken.",
    "greek": "Ο λαμπτήρας του πύργου αντικαταστάθηκε την άνοιξη.",
    "arabic": "تم استبدال مصباح البرج في الربيع",
    "japanese": "塔のランプは春に交換された。",
    "cjk": "塔灯在春天更换了。",
    "hangul": "탑의 등은 봄에 교체되었다.",
    "devanagari": "मीनार का दीपक वसंत में बदला गया।",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_recognised(code: str) -> None:
    assert language(SENTENCES[code]) == code


@pytest.mark.parametrize("text", ["", "1234 5678", "foo(bar) += baz[qux]", "Lampan i tornet byttes ut", "Łódź"])
def test_what_is_not_known_is_not_guessed(text: str) -> None:
    assert language(text) == ""


def test_short_questions_of_the_known_languages_are_recognised() -> None:
    assert [language(text) for text in ("Who built the bridge?", "Wer hat die Brücke gebaut?")] == ["en", "de"]


@given(st.text(max_size=200))
def test_any_text_gives_a_known_name_or_none(text: str) -> None:
    assert language(text) in {"", *WORDS, "japanese"} or language(text).isalpha()
