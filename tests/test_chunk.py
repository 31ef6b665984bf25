"""Passages: exact offsets, nothing lost, borders where a reader would put them, linear time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.documents.chunk import HEADING_SEPARATOR, LIMIT, SMALL, TARGET, chunk_document
from edge_sdk.records import Chunk, ParsedDocument, Section


def document(text: str, *sections: Section) -> ParsedDocument:
    return ParsedDocument("a.txt", "a", text, sections or (Section(0, len(text)),), "", "text/plain")


def sectioned(*parts: tuple[str, str]) -> ParsedDocument:
    """A document of (heading path, text) parts, one under the other."""
    text, sections = "", []
    for path, part in parts:
        sections.append(Section(len(text), len(text) + len(part), tuple(path.split("/")) if path else ()))
        text += part + "\n\n"
    return document(text, *sections)


def ink(text: str) -> str:
    return "".join(text.split())


def check(parsed: ParsedDocument, chunks: list[Chunk], limit: int) -> None:
    """What holds for the passages of any document."""
    for chunk in chunks:
        assert chunk.text == parsed.text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip() != ""
        assert len(chunk.text) <= limit
    assert all(a.end <= b.start for a, b in itertools.pairwise(chunks))
    assert ink("".join(chunk.text for chunk in chunks)) == ink(parsed.text)


TEXTS = st.text(alphabet=st.sampled_from("ab. !?\n\t\n。é\u3000\x85\x1c-#"), max_size=400) | st.text(max_size=200)


@st.composite
def documents(draw: st.DrawFn) -> ParsedDocument:
    """Any text with any sections that are in order and do not overlap, gaps included."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    headings = st.lists(st.sampled_from(["A", "B", "C"]), max_size=3).map(tuple)
    pairs = [(start, end) for start, end in itertools.pairwise(cuts) if start < end and draw(st.booleans())]
    return document(text, *(Section(start, end, draw(headings)) for start, end in pairs))


@given(documents(), st.integers(1, 60), st.integers(0, 60), st.integers(0, 40))
def test_passages_hold_every_visible_character_once_in_order_and_exactly(
    parsed: ParsedDocument, target: int, more: int, small: int
) -> None:
    check(parsed, chunk_document(parsed, target=target, limit=target + more, small=small), target + more)


@given(documents(), st.integers(1, 60))
def test_a_passage_lies_in_one_section_unless_small_ones_were_joined(parsed: ParsedDocument, target: int) -> None:
    for chunk in chunk_document(parsed, target=target, limit=target * 2, small=0):
        assert not any(
            chunk.start < section.end and section.start < chunk.end
            for section in parsed.sections
            if not (section.start <= chunk.start and chunk.end <= section.end)
        )


@given(documents())
def test_cutting_is_deterministic(parsed: ParsedDocument) -> None:
    assert chunk_document(parsed, target=20, limit=30) == chunk_document(parsed, target=20, limit=30)


def test_a_section_within_the_limit_is_one_passage_under_its_headings() -> None:
    text = "One paragraph.\n\n" + "word " * 200
    (chunk,) = chunk_document(sectioned(("Guide/Install", text)))
    assert chunk.heading == HEADING_SEPARATOR.join(["Guide", "Install"])
    assert len(chunk.text) > TARGET


def test_text_is_cut_at_paragraphs_first() -> None:
    paragraphs = [f"{name} " + "Words are here. " * 25 for name in ("One", "Two", "Three", "Four")]  # 400 each
    chunks = chunk_document(document("\n\n".join(paragraphs)))
    assert [chunk.text.split()[0] for chunk in chunks] == ["One", "Three"]


def test_a_long_paragraph_is_cut_at_sentences_and_not_after_an_abbreviation() -> None:
    text = "The kettle, e.g. the red one, boils. " * 60
    chunks = chunk_document(document(text))
    assert len(chunks) > 1
    assert all(chunk.text.startswith("The kettle") and chunk.text.endswith("boils.") for chunk in chunks)


def test_chinese_is_cut_at_its_full_stops() -> None:
    chunks = chunk_document(document("水壶里的水开了以后再等四分钟。" * 200))
    assert all(chunk.text.endswith("。") for chunk in chunks)


def test_lines_then_words_then_characters_are_the_last_resorts() -> None:
    lines = chunk_document(document("alpha beta gamma\n" * 200))
    assert all(chunk.text.startswith("alpha") and chunk.text.endswith("gamma") for chunk in lines)
    words = chunk_document(document("alpha " * 500))
    assert {word for chunk in words for word in chunk.text.split()} == {"alpha"}
    assert max(len(chunk.text) for chunk in chunk_document(document("x" * 5000))) <= LIMIT


def test_no_tiny_passage_is_left_at_the_end() -> None:
    for size in range(1201, 4000, 97):
        lengths = [len(chunk.text) for chunk in chunk_document(document("word " * (size // 5)))]
        assert min(lengths) > TARGET / 3, (size, lengths)


def test_small_sections_under_one_parent_are_joined_and_keep_their_headings() -> None:
    parsed = sectioned(("math/ceil", "math.ceil(x)"), ("math/floor", "math.floor(x)"), ("re/sub", "re.sub()"))
    assert [chunk.heading for chunk in chunk_document(parsed)] == ["math › ceil, floor", "re › sub"]


def test_a_heading_alone_goes_with_its_first_subsection() -> None:
    body = "Run the installer. " * 10
    parsed = sectioned(("Guide", "# Guide"), ("Guide/Install", body), ("Guide/Use", body))
    chunks = chunk_document(parsed)
    assert [chunk.heading for chunk in chunks] == ["Guide › Install", "Guide › Use"]
    assert chunks[0].text.startswith("# Guide\n\nRun")


def test_a_short_text_is_no_heading_of_its_subsection() -> None:
    parsed = sectioned(("re/Pattern", "class re.Pattern\n\nCompiled."), ("re/Pattern/match", "y" * SMALL))
    assert [chunk.heading for chunk in chunk_document(parsed)] == ["re › Pattern", "re › Pattern › match"]


def test_sections_that_are_not_small_stay_apart() -> None:
    body = "x" * SMALL
    assert len(chunk_document(sectioned(("A/one", body), ("A/two", body)))) == 2


def test_many_small_sections_make_short_lists() -> None:
    parsed = sectioned(*((f"A/{number}", "y" * (SMALL - 1)) for number in range(99)))
    lengths = [len(chunk.text) for chunk in chunk_document(parsed)]
    assert SMALL < max(lengths) <= TARGET // 3
    assert len(lengths) < 30


def test_a_small_section_after_a_long_one_stays_apart() -> None:
    assert len(chunk_document(sectioned(("A/one", "x" * 600), ("A/two", "short")))) == 2


def test_white_space_and_nothing_give_no_passages() -> None:
    assert chunk_document(document(" \n\n\t\u2003 ")) == chunk_document(document("")) == []


@pytest.mark.parametrize(("target", "limit"), [(0, 10), (11, 10), (-1, 10)])
def test_a_target_beyond_the_limit_is_an_error_of_the_caller(target: int, limit: int) -> None:
    with pytest.raises(ValueError, match="target"):
        chunk_document(document("text"), target=target, limit=limit)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000_000,
        " " * 10_000_000 + "x",
        "a " * 1_000_000,
        "\n" * 3_000_000 + ".\n" * 100_000,
        ". " * 500_000,
    ],
    ids=["no-space", "all-space", "words", "lines", "sentences"],
)
def test_huge_texts_take_linear_time(text: str) -> None:
    """A quadratic step anywhere would take minutes here; this takes a second."""
    parsed = document(text)
    check(parsed, chunk_document(parsed), LIMIT)


def test_a_hundred_thousand_tiny_sections_take_linear_time() -> None:
    parsed = sectioned(*((f"A/{number}", "tiny") for number in range(100_000)))
    check(parsed, chunk_document(parsed), LIMIT)
