"""The running generation, the checks of options, and the text that may be shown."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.engine import Generation, TextStream, check_options
from edge_sdk.errors import ConfigError, EngineError, GrammarError
from edge_sdk.records import GenerateOptions, GenerationResult, Token

RESULT = GenerationResult("stop", 3, 0, 1, 1.0, 1.0)


def one_token() -> Generator[Token, None, GenerationResult]:
    yield Token(7, "a", -0.5, 0.1, 2.0)
    return RESULT


def test_a_generation_has_a_result_only_at_its_end() -> None:
    generation = Generation(one_token())
    next(generation)
    with pytest.raises(EngineError, match="has not finished"):
        _ = generation.result
    assert list(generation) == []
    assert generation.result == RESULT
    assert list(generation) == []
    assert generation.result == RESULT


def test_closing_a_generation_runs_its_clean_up_and_ends_it() -> None:
    ended = []

    def tokens() -> Generator[Token, None, GenerationResult]:
        try:
            yield from one_token()
        finally:
            ended.append(True)
        return RESULT

    generation = Generation(tokens())
    next(generation)
    generation.close()
    assert ended == [True]
    assert list(generation) == []
    with pytest.raises(EngineError):
        _ = generation.result


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": float("inf")},
        {"min_p": -1.0},
        {"repeat_penalty": 0.0},
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        check_options(GenerateOptions(**options))  # type: ignore[arg-type]


def test_a_schema_and_a_grammar_at_once_are_refused() -> None:
    with pytest.raises(GrammarError, match="both"):
        check_options(GenerateOptions(json_schema="{}", grammar='root ::= "a"'))
    with pytest.raises(GrammarError, match="both"):
        check_options(GenerateOptions(json_schema="{}", choices=(("a", 0.0),)))


@pytest.mark.parametrize(
    "choice",
    [("", 0.0), ("a", float("nan")), ("a", float("-inf")), ("a", None), ("a",), "no", (1, 1.0), None],
)
def test_choices_that_cannot_be_taken_are_refused(choice: object) -> None:
    with pytest.raises(ConfigError, match="is no choice"):
        check_options(GenerateOptions(choices=(("b", 0), choice)))  # type: ignore[arg-type]


# --- text -------------------------------------------------------------------------------------------


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(edges)]


def shown(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    stream = TextStream(stop)
    text = "".join(map(stream.push, pieces)) + stream.finish()
    return text, stream.stopped


def first_stop(text: str, stop: tuple[str, ...]) -> str:
    """The text before the stop string that is complete first: the definition, one character at a time."""
    for end in range(1, len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


@given(st.text(), st.lists(st.integers(0, 400), max_size=8))
def test_text_is_whole_however_its_bytes_are_cut(text: str, cuts: list[int]) -> None:
    assert shown(pieces_of(text.encode("utf-8", "replace"), cuts))[0] == text.encode("utf-8", "replace").decode()


@given(
    st.text("ab<é", max_size=12),
    st.lists(st.text("ab<é", min_size=1, max_size=3), max_size=3).map(tuple),
    st.lists(st.integers(0, 40), max_size=12),
)
def test_stop_strings_cut_the_text_wherever_token_borders_fall(
    text: str, stop: tuple[str, ...], cuts: list[int]
) -> None:
    expected = first_stop(text, stop)
    assert shown(pieces_of(text.encode(), cuts), stop) == (expected, expected != text)


@given(st.binary(max_size=30), st.lists(st.integers(0, 60), max_size=6))
def test_bytes_that_are_no_text_become_replacement_characters(raw: bytes, cuts: list[int]) -> None:
    assert shown(pieces_of(raw, cuts))[0] == raw.decode("utf-8", "replace")


def test_nothing_follows_a_stop_string() -> None:
    stream = TextStream(("\n\n",))
    assert [stream.push(piece) for piece in (b"one\n", b"\ntwo", b"three")] == ["one", "", ""]
    assert (stream.stopped, stream.finish()) == (True, "")


def test_an_empty_stop_string_stops_nothing() -> None:
    assert shown([b"abc"], ("",)) == ("abc", False)
