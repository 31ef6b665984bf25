"""The chat page in a real browser: what it shows, what it never does, and what it asks of the server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser
from served import KEY, QUESTION, Make, SlowEngine, assistants, served

from edge_sdk.fakes import FakeEngine
from edge_sdk.prompt import NOT_FOUND

FILES = Path(__file__).parents[1] / "edge_sdk" / "serving" / "page"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> **Press** [1]"
DONE = "document.querySelectorAll('.facts').length === {} && document.querySelector('#stop').hidden"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with assistants(tmp_path) as build:
        yield build


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as opened:
        yield opened


def opened(page: Page, client: Any) -> None:
    page.open(str(client.base_url))
    page.until("document.querySelector('#status')?.textContent.startsWith('fake')")


def ask(page: Page, question: str) -> None:
    page.evaluate("document.querySelector('#question').focus()")
    page.type(question)


def text(page: Page, selector: str, last: bool = True) -> str:
    found = f"[...document.querySelectorAll({selector!r})]{'.at(-1)' if last else '[0]'}"
    return str(page.evaluate(f"{found}?.textContent"))


def test_an_answer_stands_with_its_evidence_and_its_reasons(make: Make, page: Page) -> None:
    with served(make()) as client:
        opened(page, client)
        ask(page, QUESTION)
        page.until(DONE.format(1))
        assert text(page, ".question") == QUESTION
        assert text(page, ".text") == "Press the red button [1]."
        assert text(page, ".evidence q") == "Press the red button to reset the pump."
        facts = text(page, ".facts")
        assert "answered on this device (fake)" in facts
        assert "probability unknown" in facts
        assert "nothing left this device" in facts
        assert "the passages support an answer" in text(page, ".why")
    assert page.said == []


def test_a_follow_up_carries_the_chat_and_a_new_chat_does_not(make: Make, page: Page) -> None:
    engine = FakeEngine(["Press the red button [1].", "It says so [1].", "Four litres [1]."])
    with served(make(engine)) as client:
        opened(page, client)
        ask(page, QUESTION)
        page.until(DONE.format(1))
        ask(page, "Why the red button of the pump?")
        page.until(DONE.format(2))
        assert QUESTION in engine.prompts[-1]
        page.evaluate("document.querySelector('#anew').click()")
        assert page.evaluate("document.querySelectorAll('article').length") == 0
        ask(page, "How much water does the tank hold?")
        page.until(DONE.format(1))
    assert QUESTION not in engine.prompts[-1]


def test_what_documents_and_models_say_is_never_taken_for_html(make: Make, page: Page) -> None:
    document = f"# {HOSTILE}\n\nPress the red button to reset the pump {HOSTILE}.\n"
    with served(make(HOSTILE, document)) as client:
        opened(page, client)
        ask(page, f"How do I reset the pump? {HOSTILE}")
        page.until(DONE.format(1))
        assert text(page, ".text") == HOSTILE
        assert page.evaluate("document.title") == "edge"
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_words_that_do_not_count_make_room_for_those_that_do(make: Make, page: Page) -> None:
    with served(make("The documents do not say anything about red buttons.")) as client:
        opened(page, client)
        ask(page, QUESTION)
        page.until(DONE.format(1))
        assert text(page, ".text") == NOT_FOUND
        assert "found no answer" in text(page, ".note")
        assert "not answered" in text(page, ".facts")


def test_stop_ends_the_answer_here_and_there(make: Make, page: Page) -> None:
    engine = SlowEngine()
    with served(make(engine)) as client:
        opened(page, client)
        ask(page, QUESTION)
        page.until("document.querySelector('.text')?.textContent.includes('w3')")
        page.evaluate("document.querySelector('#stop').click()")
        page.until("document.querySelector('.note')?.textContent === 'stopped'")
        page.until("fetch('/health').then((reply) => reply.json()).then((found) => found.requests === 0)")
        assert engine.cancelled == 1
        assert page.evaluate("!document.querySelector('#send').hidden")


def test_an_error_is_said_and_the_next_question_is_answered(make: Make, page: Page) -> None:
    with served(make()) as client:
        opened(page, client)
        ask(page, "pump " * 300_000 + "?")
        assert "do not fit a context" in page.until("document.querySelector('.error')?.textContent")
        ask(page, QUESTION)
        page.until(DONE.format(1))
        assert text(page, ".text") == "Press the red button [1]."


def test_a_key_is_asked_for_until_it_is_right(make: Make, page: Page) -> None:
    with served(make(), key=KEY) as client:
        page.open(str(client.base_url))
        for key in ("wrong", KEY):
            page.until("document.querySelector('#key')?.open")
            page.evaluate("document.querySelector('#secret').focus()")
            page.type(key)
        page.until("document.querySelector('#status').textContent.startsWith('fake')")
        ask(page, QUESTION)
        page.until(DONE.format(1))


def test_the_page_reaches_nothing_but_its_server(make: Make) -> None:
    with served(make(), key=KEY) as client:
        replies = {path: client.get(path) for path in ("/", "/page.css", "/page.js")}
    for path, reply in replies.items():
        assert reply.status_code == 200, f"{path} holds nothing worth a key"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert not re.search(r"https?://|//\w+\.\w", re.sub(r"(?m)^\s*//.*$", "", reply.text)), (
            f"{path} names a host"
        )
    assert replies["/page.js"].headers["content-type"].startswith("text/javascript")
    script = (FILES / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
