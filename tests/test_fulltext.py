from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_sdk.retrieval.fulltext import (
    MAX_BYTES,
    MAX_REPEATS,
    MAX_STOP_WORDS,
    MAX_TERMS,
    RAREST,
    SMALL_STORE,
    match_expression,
    match_terms,
    telling,
)

ORDINARY = (
    "what's the c++ policy?",
    "is node.js ok?",
    "e-mail: how?",
    "user@example.com",
    "path/to/file.txt",
    'say "hello"',
    "a AND b OR NOT c",
    "NEAR(one two)",
    "title:secret",
    "(unbalanced",
    "50% off*",
    "-minus ^caret",
)
# Whatever the keyboard gives, lone surrogates and NUL included, mixed with what FTS5 has a meaning for.
SYNTAX = st.sampled_from(['"', "'", "*", "^", "(", ")", "AND", "OR", "NOT", "NEAR(", ":", "+", "-", "\0", "\ud800"])
WORDS = st.sampled_from("the who is policy run executor node.js c++ café user@example.com run_in_executor".split())
ANY_TEXT = st.lists(st.text(st.characters(codec=None), max_size=8) | SYNTAX | WORDS, max_size=80).map(" ".join)
ANY_TEXT |= st.lists(st.text(st.characters(codec=None), max_size=3) | SYNTAX, max_size=40).map("".join)


@pytest.fixture(scope="module")
def index() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE VIRTUAL TABLE f USING fts5 (text, tokenize = 'porter unicode61 remove_diacritics 2')"
    )
    connection.executemany(
        "INSERT INTO f (rowid, text) VALUES (?, ?)",
        (
            (1, "Use C++ only where the policy allows it."),
            (2, "node.js runs JavaScript"),
            (3, "write to user@example.com"),
            (4, "loop.run_in_executor(pool, function) runs a function in a pool"),
            (5, "run the executor"),
            (6, "Straße, café and naïve"),
            (7, "हिन्दी में लिखा"),
            (8, "who is who"),
            (9, "re\u0301sume\u0301s of the guests"),
        ),
    )
    yield connection
    connection.close()


def found(index: sqlite3.Connection, question: str) -> list[int]:
    expression = match_expression(question)
    if not expression:
        return []
    return [row[0] for row in index.execute("SELECT rowid FROM f WHERE f MATCH ? ORDER BY rank", (expression,))]


@settings(max_examples=1000, deadline=None)
@example("")
@example('"')
@example("\0")
@example("\u0301")
@example("\ud800\udfff")
@example("(" * 3000)
@example("\U000e0001 \u200b \ue000")
@given(ANY_TEXT)
def test_no_text_is_a_syntax_error(index: sqlite3.Connection, text: str) -> None:
    found(index, text)


@settings(max_examples=1000, deadline=None)
@given(ANY_TEXT.map(lambda text: text * 20))
def test_an_expression_stays_within_its_limits(text: str) -> None:
    expression = match_expression(text)
    assert len(expression.encode()) <= MAX_BYTES
    assert sum(len(term.split(" ")) for term in expression.split(" OR ")) <= MAX_TERMS


@pytest.mark.campaign
@settings(max_examples=100_000, deadline=None)
@given(ANY_TEXT)
def test_no_text_of_a_hundred_thousand_is_a_syntax_error(index: sqlite3.Connection, text: str) -> None:
    found(index, text)


def test_unquoted_questions_would_be_syntax_errors(index: sqlite3.Connection) -> None:
    """The twin of the tests above: they would notice if the quoting went."""
    failed = 0
    for question in ORDINARY:
        try:
            index.execute("SELECT rowid FROM f WHERE f MATCH ?", (question,)).fetchall()
        except sqlite3.OperationalError:
            failed += 1
    assert failed >= len(ORDINARY) * 3 // 4


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("what's the c++ policy?", 1),
        ("is node.js ok?", 2),
        ("is node ok?", 2),
        ("whose is user@example.com?", 3),
        ("asyncio.loop.run_in_executor", 4),
        ("STRASSE oder Straße", 6),
        ("cafe", 6),
        ("naive", 6),
        ("हिन्दी", 7),
        ("who is who", 8),
        ("r\u00e9sum\u00e9s", 9),
        ("the policies", 1),
    ],
)
def test_ordinary_questions_find_what_they_mean(index: sqlite3.Connection, question: str, first: int) -> None:
    assert found(index, question)[0] == first


def test_operators_are_words() -> None:
    assert match_expression("cats NOT dogs NEAR home") == '"cats" OR "dogs" OR "NEAR" OR "home"'


def test_stop_words_are_dropped_only_when_something_is_left() -> None:
    assert match_expression("what is the weight of it?") == '"weight"'
    assert match_expression("To be or not to be") == '"To" OR "be" OR "or" OR "not"'
    assert match_expression("the of and to a in is was he for").count('"') == 2 * MAX_STOP_WORDS


def test_contractions_leave_no_single_letters() -> None:
    assert match_expression("Why doesn't Anna's cat eat? I won't") == '"Anna" OR "cat" OR "eat"'
    assert match_expression("who won the game in 1999") == '"won" OR "game" OR "1999"'
    assert match_expression("it’s O’Brien") == '"O" OR "Brien"'


def test_repeated_terms_count_as_often_as_they_stand_up_to_a_limit() -> None:
    assert match_expression("error after Error") == '"error" OR "Error"'
    assert match_expression("error " * 50 + "code") == '"error" OR ' * MAX_REPEATS + '"code"'


def test_identifiers_become_the_phrases_of_their_endings_and_their_parts() -> None:
    assert match_expression("loop.run_in_executor()") == (
        '"loop run in executor" OR "run in executor" OR "loop" OR "run" OR "executor"'
    )
    assert match_expression("state-of-the-art, and/or e.g. this") == '"state" OR "art"'


def test_the_passage_about_the_identifier_comes_first(index: sqlite3.Connection) -> None:
    assert found(index, "run_in_executor")[:2] == [4, 5]


def test_a_hundred_thousand_characters_are_cut_to_their_first_terms() -> None:
    assert match_expression(" ".join(f"alpha{n}" for n in range(20_000))).count("alpha") == MAX_TERMS
    assert match_expression("a" * 100_000) == ""  # no word is that long
    assert match_expression("." * 100_000) == ""
    assert match_expression("a.b_" * 25_000).startswith('"b" OR "b"')


# --- terms that tell something ----------------------------------------------------------------------

LARGE = 20 * SMALL_STORE


def kept(having: dict[str, int], passages: int = LARGE) -> list[str]:
    return telling(list(having), passages, lambda term, limit: min(having[term], limit))


def test_a_term_of_more_than_half_of_the_passages_is_not_searched_for() -> None:
    assert kept({"python": LARGE // 2 + 1, "parse": LARGE // 2, "json": 3}) == ["parse", "json"]
    assert kept({"python": LARGE, "manual": LARGE}) == ["python", "manual"]  # there is nothing else


def test_of_a_long_question_the_rarest_terms_stay_and_all_that_are_not_common() -> None:
    rarest = {f"a{n}": LARGE // 10 + n for n in range(RAREST)}
    assert kept({"z": LARGE // 5, **rarest}) == list(rarest)
    few = {f"b{n}": LARGE // 20 for n in range(3 * RAREST)}
    assert kept({"z": LARGE // 5, **few}) == list(few)


def test_nothing_is_counted_where_the_store_is_small() -> None:
    def count(term: str, limit: int) -> int:
        raise AssertionError(term)

    assert telling(["python", "python"], SMALL_STORE, count) == ["python", "python"]
    assert telling([], LARGE, count) == []


@given(
    st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz")), st.dictionaries(st.characters(), st.integers(0, LARGE))
)
def test_what_is_left_is_in_order_with_its_repeats_and_never_nothing(
    terms: list[str], known: dict[str, int]
) -> None:
    having = {term: known.get(term, ord(term) * 1000 % LARGE) for term in terms}
    left = telling(terms, LARGE, lambda term, limit: min(having[term], limit))
    assert left == [term for term in terms if term in left]
    assert bool(left) == bool(terms)
    assert {term for term in terms if having[term] <= LARGE // 20} <= set(left)


def test_each_term_is_an_expression_by_itself(index: sqlite3.Connection) -> None:
    terms = match_terms("loop.run_in_executor() OR the policy")
    assert terms == ['"loop run in executor"', '"run in executor"', '"loop"', '"run"', '"executor"', '"policy"']
    for term in terms:
        assert index.execute("SELECT count(*) FROM f WHERE f MATCH ?", (term,)).fetchone()
