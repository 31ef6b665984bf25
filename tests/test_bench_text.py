from __future__ import annotations

from collections import Counter

from edge_sdk.bench.text import WORDS, MadeText
from edge_sdk.retrieval.fulltext import STOP_WORDS


def test_made_text_has_common_words_rare_words_and_stop_words() -> None:
    document, chunks = MadeText(seed=0).document("one.txt", 200)
    assert [document.text[chunk.start : chunk.end] for chunk in chunks] == [chunk.text for chunk in chunks]
    assert {len(chunk.text.split()) for chunk in chunks} == {WORDS}
    words = document.text.split()
    assert 0.39 < sum(word in STOP_WORDS for word in words) / len(words) < 0.41
    having = Counter(word for chunk in chunks for word in set(chunk.text.split()) - STOP_WORDS)
    assert max(having.values()) > len(chunks) / 4
    assert list(having.values()).count(1) > 1000


def test_made_questions_are_reproducible_and_have_the_length_asked_for() -> None:
    text, again = MadeText(seed=3), MadeText(seed=3)
    for words in (6, 14, 60):
        question = text.question(words)
        assert question == again.question(words)
        assert len(question.split()) == words
        assert 0 < sum(word in STOP_WORDS for word in question.split()) < words
