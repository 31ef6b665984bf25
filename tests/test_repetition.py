"""Where a text begins to say the same again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.repetition import Repetition

ONE = "The library opens at nine in winter."
OTHER = "It is closed on the first of May."


def cut(text: str, size: int = 1) -> str | None:
    """What is left of a text that comes in pieces; None where nothing repeats."""
    seen = Repetition()
    for start in range(0, len(text), size):
        if (end := seen.grow(text[start : start + size])) is not None:
            return text[:end]
    return None


def test_a_sentence_that_comes_again_ends_the_text_before_it() -> None:
    assert cut(f"{ONE} {ONE} {ONE}") == f"{ONE} "
    assert cut(f"{ONE} {OTHER} {ONE} {OTHER}") == f"{ONE} {OTHER} "
    assert cut(f"{ONE}\n\n{ONE.upper()}\nand so on") == f"{ONE}\n\n"
    assert cut(f'He said "{ONE}" {OTHER} {OTHER} ') == f'He said "{ONE}" {OTHER} '


def test_short_lines_code_and_a_sentence_under_way_may_say_it_again() -> None:
    assert cut("Yes. No. Yes. No. Yes. ") is None
    assert cut("| a | b |\n| a | b |\n| a | b |\n") is None
    line = "for each in the list of all names:\n"
    assert cut(f"```\n{line}{line}{line}```\n") is None
    assert cut(f"```\n{line}```\n{line}{line}") == f"```\n{line}```\n{line}"
    assert cut(f"{ONE} {ONE}") is None  # it may go on


@given(
    st.lists(st.sampled_from([ONE, OTHER, "Yes.", "A much longer sentence than the others, by far."]), max_size=6)
)
def test_what_is_left_repeats_nothing_however_it_comes(sentences: list[str]) -> None:
    text = " ".join(sentences) + " "
    left = cut(text)
    assert cut(text, 7) == cut(text, len(text)) == left
    long = [each for each in sentences if len(each.split()) >= 5]
    assert (left is None) == (len(set(long)) == len(long))
    if left is not None:
        assert text.startswith(left)
        assert cut(left) is None
