"""Citations: marks to evidence, invented ones dropped, quotes exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.citations import is_refusal, resolve_citations
from edge_sdk.prompt import NOT_FOUND
from edge_sdk.records import Hit, Passage

TEXT = "The pump holds 4 litres. Press the red button to reset it. Never open the lid while it runs."
OTHER = "Batteries last two years.\nReplace both at the same time."
OFFSET = 100


def hits() -> list[Hit]:
    return [
        Hit(Passage(1, "manual.md", "Manual", "Manual › Reset", TEXT, OFFSET, OFFSET + len(TEXT)), 0.03),
        Hit(Passage(2, "power.md", "Power", "", OTHER, 0, len(OTHER)), 0.02),
    ]


def test_a_mark_becomes_the_sentence_that_supports_the_claim_before_it() -> None:
    cited = resolve_citations("You reset it with the red button [1]. Batteries last two years [2].", hits())
    assert [citation.quote for citation in cited.citations] == [
        "Press the red button to reset it.",
        "Batteries last two years.",
    ]
    assert [citation.document for citation in cited.citations] == ["manual.md", "power.md"]
    assert all(citation.by == "model" for citation in cited.citations)


def test_offsets_count_from_the_start_of_the_document() -> None:
    (citation,) = resolve_citations("The red button resets it [1].", hits()).citations
    assert citation.start == OFFSET + TEXT.index("Press")
    assert citation.end - citation.start == len(citation.quote)


def test_invented_numbers_are_dropped_from_the_text_and_counted() -> None:
    cited = resolve_citations("It holds 4 litres [1, 7] and floats [9].", hits())
    assert cited.text == "It holds 4 litres [1] and floats."
    assert cited.dropped == 2
    assert [citation.number for citation in cited.citations] == [1]


def test_where_another_passage_says_it_that_one_is_the_evidence() -> None:
    for answer, number, quote in (
        ("[1] The batteries last two years.", 1, "Batteries last two years."),
        ("Press the red button to reset [2]. Then never open it.", 2, "Press the red button to reset it."),
    ):
        cited = resolve_citations(answer, hits())
        assert cited.text == answer
        (citation,) = cited.citations
        assert (citation.number, citation.quote, citation.by) == (number, quote, "match")
        (passage,) = (hit.passage for hit in hits() if hit.passage.document == citation.document)
        assert passage.text[citation.start - passage.start : citation.end - passage.start] == quote


def test_the_cited_passage_stays_where_it_is_not_clearly_wrong() -> None:
    for answer in (
        "The pump has red batteries [1].",  # neither says it
        "Press the button, replace both batteries [2].",  # both say some of it
        "Batteries last two years [1][2].",  # the other is cited already
        "Batteries last two years [1]. Press the red button [1].",  # it stands for something else, too
    ):
        cited = resolve_citations(answer, hits())
        assert cited.text == answer
        assert all(citation.by == "model" for citation in cited.citations)


def test_an_uncited_answer_gets_the_sentence_that_holds_its_words() -> None:
    (citation,) = resolve_citations("two years", hits()).citations
    assert (citation.by, citation.number, citation.quote) == ("match", 2, "Batteries last two years.")


def test_an_uncited_answer_without_support_gets_no_citation() -> None:
    assert resolve_citations("Quantum entanglement of photons", hits()).citations == ()


def test_a_refusal_gets_no_citation() -> None:
    assert resolve_citations(NOT_FOUND, hits()).citations == ()


def test_refusals_are_told_from_answers() -> None:
    for refusal in (
        NOT_FOUND,
        "The passages do not contain the answer.",
        "There is no information about Paris in the text.",
        "This is not mentioned in the provided passages.",
    ):
        assert is_refusal(refusal), refusal
    for answer in (
        "It does not block.",
        "Returns None if the key is not in the dictionary.",
        "Do not open the lid.",
    ):
        assert not is_refusal(answer), answer


@given(st.text(alphabet="ab1[]2,9 .\n", max_size=80))
def test_any_text_resolves_to_exact_quotes_of_known_passages(answer: str) -> None:
    passages = hits()
    cited = resolve_citations(answer, passages)
    for citation in cited.citations:
        passage = passages[citation.number - 1].passage
        assert passage.text[citation.start - passage.start : citation.end - passage.start] == citation.quote
    assert resolve_citations(cited.text, passages).dropped == 0


def test_a_mark_before_its_statement_finds_the_sentence_after_it() -> None:
    (citation,) = resolve_citations("[1] Press the red button to reset it.", hits()).citations
    assert citation.quote == "Press the red button to reset it."


def test_a_mark_after_an_empty_phrase_stands_for_what_was_said_before() -> None:
    (citation,) = resolve_citations("The red button resets the pump. This is in [1].", hits()).citations
    assert citation.quote == "Press the red button to reset it."


def test_a_wrapped_line_does_not_end_a_sentence_and_a_blank_one_does() -> None:
    text = "Heading\n\nThe cache can grow\nwithout any bound when the size is None. Else it cannot."
    passage = [Hit(Passage(1, "d", "", "", text, 0, len(text)), 1.0)]
    (citation,) = resolve_citations("Without bound the cache can grow [1].", passage).citations
    assert citation.quote == "The cache can grow\nwithout any bound when the size is None."
