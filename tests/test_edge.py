"""The whole flow with fakes: evidence, abstaining, handing off, what leaves the device, conversations."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

import pytest
from made_calibrations import calibration

from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.confidence.neighbours import Neighbours, gather
from edge_sdk.config import load_settings
from edge_sdk.conversation import Conversation
from edge_sdk.edge import Edge
from edge_sdk.errors import (
    ConfigError,
    ContextOverflowError,
    EdgeError,
    ModelNotFoundError,
    OfflineError,
    RemoteTimeoutError,
    RemoteUnreachableError,
)
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.fallback.remote import FakeRemote
from edge_sdk.handoff import MAX_TOKENS
from edge_sdk.privacy.gate import PrivacyPolicy
from edge_sdk.prompt import NOT_FOUND, Reading
from edge_sdk.records import Event, Message
from edge_sdk.route import Policy
from edge_sdk.storage.store import Store

MANUAL = "# Pump\n\nPress the red button to reset the pump. The tank holds four litres of water.\n"
SECRET = "The alarm code is 4711-zebra."
QUESTION = "How do I reset the pump?"
OPEN = PrivacyPolicy("prefer_local")

Make = Callable[..., Edge]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Build an assistant over two small documents; the last argument is the engine's script."""
    made: list[Edge] = []
    (tmp_path / "manual.md").write_text(MANUAL, encoding="utf-8")
    (tmp_path / "secret.txt").write_text(SECRET, encoding="utf-8")

    def build(script: object = "Press the red button [1].", *, context: int = 4096, **options: object) -> Edge:
        engine = script if isinstance(script, FakeEngine) else FakeEngine(script, context=context)  # type: ignore[arg-type]
        edge = Edge(
            Store.open(tmp_path / "store.db"),
            lambda: FakeEncoder(),
            lambda: (engine, Reading(600, True)),
            **options,  # type: ignore[arg-type]
        )
        edge.add([tmp_path])
        made.append(edge)
        return edge

    yield build
    for edge in made:
        edge.close()


def test_an_answer_carries_its_evidence_and_no_invented_probability(make: Make) -> None:
    answer = make().ask(QUESTION)
    assert answer.text == "Press the red button [1]."
    (citation,) = answer.citations
    assert citation.quote == "Press the red button to reset the pump."
    assert MANUAL[citation.start : citation.end] == citation.quote
    assert (answer.route, answer.probability, answer.model) == ("local", None, "fake")
    assert not answer.left_device
    assert any("probability unknown" in reason for reason in answer.reasons)


def test_events_come_in_order_and_the_pieces_are_the_answer(make: Make) -> None:
    events = list(make("Press the red button [1].").stream(QUESTION))
    kinds = [event.kind for event in events]
    assert kinds[0] == "retrieved"
    assert kinds[-1] == "final"
    assert set(kinds[1:-1]) == {"provisional"}
    assert "".join(event.text for event in events if event.kind == "provisional") == "Press the red button [1]."


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": None},
        {"k": "8"},
        {"style": "nosuch"},
        {"max_tokens": None},
        {"max_tokens": 0},
        {"conversation": "x"},
        {"cancel": True},
        {"hold": "a"},
    ],
)
def test_what_is_no_question_and_no_way_to_answer_is_one_line(make: Make, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        list(make().stream(**{"question": QUESTION, **wrong}))  # type: ignore[arg-type]


def test_nothing_is_opened_once_it_is_closed(make: Make) -> None:
    edge = make()
    edge.close()
    for part in ("engine", "extractor", "learned"):
        with pytest.raises(EdgeError, match="closed"):
            getattr(edge, part)


def test_settings_and_what_would_change_them_are_not_given_together(tmp_path: Path) -> None:
    settings = load_settings({"store": tmp_path / "a.db"})
    with pytest.raises(ConfigError, match="both settings and store, privacy"):
        Edge.open(tmp_path / "b.db", settings=settings, privacy="ask")
    with pytest.raises(ConfigError, match="no setting 'require_signatur'; use require_signature"):
        Edge.open(tmp_path / "b.db", require_signatur=True)
    assert not list(tmp_path.iterdir())


def test_one_source_need_not_be_a_list_and_none_is_not_the_current_folder(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge, folder = make(), tmp_path / "folder"
    folder.mkdir()
    (folder / "one.md").write_text("One.")
    monkeypatch.chdir(folder)
    reports = edge.add(["", "  ", None, b"one.md", "x" * 300, "one.md"])  # type: ignore[list-item]
    assert [report.status for report in reports] == ["failed"] * 5 + ["added"]
    assert [report.status for report in edge.add("one.md")] == ["unchanged"]
    assert len(edge.store.documents()) == 3


def test_models_are_opened_once_however_many_threads_ask(tmp_path: Path) -> None:
    opened = list[str]()

    def slowly(what: str) -> None:
        time.sleep(0.05)
        opened.append(what)

    def encoder() -> FakeEncoder:
        slowly("encoder")
        return FakeEncoder()

    def engine() -> tuple[FakeEngine, Reading]:
        slowly("engine")
        return FakeEngine(lambda prompt: "Press the red button [1]."), Reading(600, True)

    (tmp_path / "manual.md").write_text(MANUAL, encoding="utf-8")
    with Edge(Store.open(tmp_path / "store.db"), encoder, engine) as edge, ThreadPoolExecutor(6) as pool:
        pool.submit(edge.add, [tmp_path / "manual.md"]).result()
        answers = list(pool.map(edge.ask, [QUESTION] * 12))
        assert {answer.text for answer in answers} == {"Press the red button [1]."}
        assert sorted(opened) == ["encoder", "engine"]
        edge.unload()
        list(pool.map(edge.ask, [QUESTION] * 6))
    assert sorted(opened) == ["encoder", "engine", "engine"]


def test_without_support_it_abstains_before_generating(make: Make) -> None:
    engine = FakeEngine("Canberra")
    answer = make(engine).ask("Who won the chess olympiad?")
    assert (answer.route, answer.text, answer.citations) == ("abstain", NOT_FOUND, ())
    assert engine.prompts == []
    assert "floor" in answer.reasons[-1]


def test_a_refusal_of_the_model_is_an_abstention(make: Make) -> None:
    answer = make(NOT_FOUND).ask(QUESTION)
    assert (answer.route, answer.text) == ("abstain", NOT_FOUND)
    assert answer.tokens.completion > 0


def test_an_empty_store_abstains_without_loading_a_model(tmp_path: Path) -> None:
    def fail() -> tuple[FakeEngine, Reading]:
        raise AssertionError("the model was loaded")

    with Edge(Store.open(tmp_path / "empty.db"), lambda: FakeEncoder(), fail) as edge:
        assert edge.ask("anything?").route == "abstain"
        assert edge.search("anything?") == []


def test_when_unsure_remote_sends_the_question_and_nothing_else(make: Make) -> None:
    remote = FakeRemote(["Nobody ", "knows."])
    edge = make(remote=remote, privacy=OPEN)
    events = list(edge.stream("Who won the chess olympiad?"))
    answer = events[-1].answer
    assert answer is not None
    assert (answer.route, answer.text, answer.model) == ("remote", "Nobody knows.", "fake-remote")
    assert dict(answer.left_device) == {"question": len("Who won the chess olympiad?")}
    assert [event.kind for event in events] == ["retrieved", "handoff", "provisional", "provisional", "final"]
    sent = " ".join(message.content for request in remote.requests for message in request)
    assert "4711" not in sent
    assert "pump" not in sent


def test_a_supported_question_never_reaches_the_remote(make: Make) -> None:
    remote = FakeRemote()
    assert make(remote=remote, privacy=OPEN).ask(QUESTION).route == "local"
    assert remote.requests == []


def test_a_configured_remote_is_not_asked_unless_the_policy_says_so(make: Make) -> None:
    remote = FakeRemote()
    assert make(remote=remote).ask("Who won the chess olympiad?").route == "abstain"
    assert remote.requests == []


@pytest.mark.parametrize(
    "error", [RemoteTimeoutError("no reply within 60 s"), OfflineError("offline is set; nothing was sent")]
)
def test_a_failing_remote_leaves_an_abstention_with_the_reason(make: Make, error: Exception) -> None:
    answer = make(remote=FakeRemote(error), privacy=OPEN).ask("Who won the chess olympiad?")  # type: ignore[arg-type]
    assert answer.text == NOT_FOUND
    assert answer.route == ("queued" if isinstance(error, OfflineError) else "abstain")
    assert str(error) in answer.reasons[-1]


def test_in_the_default_privacy_mode_nothing_leaves_whatever_the_policy_says(make: Make) -> None:
    remote = FakeRemote(["Never."])
    answer = make(remote=remote, policy=Policy("remote")).ask("Who won the chess olympiad?")
    assert (answer.route, dict(answer.left_device)) == ("abstain", {})
    assert "local_only" in answer.reasons[-1]
    assert remote.requests == []


def test_a_private_passage_in_the_prompt_keeps_the_turn_on_the_device(make: Make, tmp_path: Path) -> None:
    remote = FakeRemote(["Never."])
    edge = make("The documents do not say.", remote=remote, privacy=OPEN)
    assert edge.store.set_label(str(tmp_path / "manual.md"), "private")
    answer = edge.ask(QUESTION)
    assert answer.route == "abstain"
    assert "private" in answer.reasons[-1]
    assert remote.requests == []


def test_private_values_come_back_in_the_reply_and_never_leave(make: Make) -> None:
    remote = FakeRemote(["Write to EMA", "IL_1 then."])
    events = list(make(remote=remote, privacy=OPEN).stream("Who at jo@firm.example won the chess olympiad?"))
    answer = events[-1].answer
    assert answer is not None
    assert answer.text == "Write to jo@firm.example then."
    assert "".join(event.text for event in events if event.kind == "provisional") == answer.text
    assert "jo@firm" not in str(remote.requests)


def test_an_accepted_remote_answer_is_given_again_without_a_call(make: Make) -> None:
    remote = FakeRemote(["Ding Liren"], ["Ding Liren"], ["Somebody else"])
    edge = make(remote=remote, privacy=OPEN)
    routes = [edge.ask("Who won the chess olympiad in 2018?").route for _ in range(3)]
    assert routes == ["remote", "remote", "local"]
    known = edge.ask("Who won the chess olympiad in 2018?")
    assert known.text == "Ding Liren"
    assert any("not from your documents" in reason for reason in known.reasons)
    assert not known.citations
    assert edge.ask("Who won the chess olympiad in 2022?").text == "Somebody else"
    assert len(remote.requests) == 3


def test_what_was_accepted_is_given_without_a_remote_too(make: Make) -> None:
    asked = "Who won the chess olympiad in 2018?"
    remote = FakeRemote(["Ding Liren"])
    online = make(remote=remote, privacy=OPEN)
    online.ask(asked)
    assert online.learned is not None
    (kept,) = online.learned.answers("quarantine")
    online.learned.accept(kept.id)
    for edge in (make(), make(remote=FakeRemote(), privacy=PrivacyPolicy("local_only"))):
        answer = edge.ask(asked)
        assert (answer.text, answer.route, answer.left_device) == ("Ding Liren", "local", {})
        assert any("not from your documents" in reason for reason in answer.reasons)
        assert edge.ask("Who won the chess olympiad in 2022?").route == "abstain"


def test_where_nothing_was_learned_no_encoder_is_needed_to_abstain(tmp_path: Path) -> None:
    def missing() -> FakeEncoder:
        raise ModelNotFoundError("no encoder")

    with Edge(Store.open(tmp_path / "s.db"), missing, lambda: (FakeEngine("Never."), Reading(600, True))) as edge:
        assert edge.ask(QUESTION).route == "abstain"


def test_in_mode_ask_the_user_sees_the_exact_bytes(make: Make) -> None:
    seen: list[bytes] = []
    remote = FakeRemote(["Nobody."])
    edge = make(
        remote=remote, privacy=PrivacyPolicy("ask"), consent=lambda outgoing: seen.append(outgoing.payload) or True
    )
    assert edge.ask("Who won the chess olympiad?").route == "remote"
    assert seen == [remote.preview(remote.requests[0], max_tokens=MAX_TOKENS)]


def test_preferring_the_remote_asks_it_first_and_falls_back_to_the_documents(make: Make) -> None:
    remote = FakeRemote(["From afar."], RemoteTimeoutError("no reply within 60 s"))
    edge = make(remote=remote, privacy=PrivacyPolicy("prefer_remote"))
    assert edge.ask(QUESTION).text == "From afar."
    answer = edge.ask("Where is the red button?")
    assert (answer.route, answer.text) == ("local", "Press the red button [1].")
    assert any("no reply within 60 s" in reason for reason in answer.reasons)


@pytest.mark.parametrize(
    ("wrong", "left"),
    [
        (RemoteTimeoutError("no reply within 60 s"), {"question": len("Where is the red button?")}),
        (RemoteUnreachableError("refused"), {}),
        (OfflineError("offline"), {}),
    ],
)
def test_what_was_sent_in_vain_has_left_the_device_all_the_same(
    make: Make, wrong: Exception, left: dict[str, int]
) -> None:
    edge = make(remote=FakeRemote(wrong), privacy=PrivacyPolicy("prefer_remote"))
    answer = edge.ask("Where is the red button?")
    assert (answer.route, answer.left_device) == ("local", left)
    assert ("left the device: nothing" in answer.explain()) == (not left)
    assert json.loads(edge.store.decision(answer.id) or "")["left_device"] == left


def test_what_the_remote_has_said_is_a_turn_of_the_conversation(make: Make) -> None:
    remote, chat = FakeRemote(["Georges Bizet."], ["In 1838."]), Conversation()
    edge = make(remote=remote, privacy=PrivacyPolicy("prefer_remote", "all"))
    edge.ask("Who wrote the opera Carmen?", conversation=chat)
    edge.ask("When was he born?", conversation=chat)
    assert [turn.assistant.content for turn in chat.turns] == ["Georges Bizet.", "In 1838."]
    assert "Bizet" in "".join(message.content for message in remote.requests[1])


def test_an_answer_given_up_early_is_still_delivered_when_the_remote_fails(make: Make, tmp_path: Path) -> None:
    remote = FakeRemote(RemoteTimeoutError("no reply within 60 s"))
    edge = make(remote=remote, privacy=OPEN, calibrations=Calibrations(tmp_path / "calibrations"))
    found = replace(calibration(), setup=edge.setup(), hand_off_before=1.0, neighbours=near(edge))
    edge.calibrations.save(found)
    answer = edge.ask(QUESTION)
    assert (answer.route, answer.text) == ("local", "Press the red button [1].")
    assert any("before generating" in reason for reason in answer.reasons)
    assert any("no reply within 60 s" in reason for reason in answer.reasons)
    assert answer.probability is None


def test_with_earlier_turns_there_is_no_probability(make: Make, tmp_path: Path) -> None:
    edge = make(calibrations=Calibrations(tmp_path / "calibrations"))
    edge.calibrations.save(replace(calibration(), setup=edge.setup(), neighbours=near(edge)))
    conversation = Conversation()
    first = edge.ask(QUESTION, conversation=conversation)
    assert first.probability is not None
    assert "left the device: nothing" in first.explain()
    second = edge.ask(QUESTION, conversation=conversation)
    assert second.probability is None
    assert any("earlier turns" in reason for reason in second.reasons)


def near(edge: Edge) -> Neighbours:
    """One calibration question, as the edge's encoder sees it."""
    return gather(["How is it reset?"], [True], edge.encoder.encode(["How is it reset?"]))


def test_invented_citations_are_dropped_counted_and_said(make: Make) -> None:
    answer = make("Press the red button [1] [9].").ask(QUESTION)
    assert answer.text == "Press the red button [1]."
    assert answer.dropped_citations == 1
    assert any("1 citations pointed at no passage" in reason for reason in answer.reasons)


def test_cancelling_keeps_what_there_was_and_says_so(make: Make) -> None:
    edge, cancel = make("one two three four five six"), Flag()
    pieces, answer = [], None
    for event in edge.stream(QUESTION, cancel=cancel):
        if event.kind == "provisional":
            pieces.append(event.text)
            cancel.set()
        answer = event.answer or answer
    assert answer is not None
    assert answer.text == "".join(pieces).strip() == "one"
    assert "cancelled" in answer.reasons


def test_a_question_that_does_not_fit_is_an_error_with_numbers(make: Make) -> None:
    with pytest.raises(ContextOverflowError, match="do not fit a context of 64"):
        make(context=64).ask(QUESTION + " pump" * 200, max_tokens=32)


def test_a_conversation_keeps_turns_as_sent_and_reuses_the_prefix(make: Make) -> None:
    edge, chat = make(["Press the red button [1].", "Four litres [1]."]), Conversation()
    edge.ask(QUESTION, conversation=chat)
    answer = edge.ask("How much water does the tank of the pump hold?", conversation=chat)
    assert answer.text == "Four litres [1]."
    assert answer.tokens.cached > 20
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


def test_a_follow_up_is_searched_with_the_question_before_it(make: Make) -> None:
    edge, chat = make(), Conversation()
    edge.ask(QUESTION, conversation=chat)
    answer = edge.ask("Why?", conversation=chat)
    assert answer.route == "local"
    assert "searched together with the question before" in answer.reasons


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(make: Make) -> None:
    edge, chat = make("Press the red button [1].", context=500), Conversation()
    notices: list[Event] = []
    for _ in range(6):
        notices += [
            event for event in edge.stream(QUESTION, conversation=chat, max_tokens=40) if event.kind == "notice"
        ]
    assert notices
    assert len(chat.messages) < 12


def test_a_private_turn_that_has_no_room_any_more_still_keeps_the_chat_here(make: Make) -> None:
    remote = FakeRemote(["Never."], ["Never."])
    edge = make(
        lambda prompt: NOT_FOUND if "chess" in prompt else "Press the red button [1].",
        context=500,
        remote=remote,
        privacy=PrivacyPolicy("prefer_local", "all"),
    )
    chat = Conversation()
    chat.append("When does it open?", Message("user", "The vault opens at noon."), "At noon.", ["private"])
    for _ in range(6):
        edge.ask(QUESTION, conversation=chat, max_tokens=40)
    assert "noon" not in "".join(message.content for message in chat.messages), "it was left out"
    answer = edge.ask("Who won the chess olympiad?", conversation=chat, max_tokens=40)
    assert (answer.route, answer.left_device, remote.requests) == ("abstain", {}, [])
    assert any("private" in reason for reason in answer.reasons)


def test_a_long_chat_is_cut_in_few_steps(make: Make) -> None:
    class Counting(FakeEngine):
        counts = 0

        def count(self, text: str) -> int:
            self.counts += 1
            return super().count(text)

    engine, chat = Counting("Press the red button [1].", context=700), Conversation()
    for number in range(1000):
        chat.append("?", Message("user", f"What is {number}?"), f"It is {number} red buttons.")
    assert make(engine).ask(QUESTION, conversation=chat, max_tokens=40).route == "local"
    assert engine.counts < 60
    assert 2 < len(chat.turns) < 60
    newest = chat.turns[-2].assistant.content
    assert newest == "It is 999 red buttons."
    exact = chat.messages[:-2]
    assert engine.count(engine.render(exact)) <= 700 - 40 - 600, "they fit beside the prompt"


def test_what_was_cancelled_is_not_handed_off(make: Make) -> None:
    remote, gone = FakeRemote(["Never."]), Flag()
    gone.set()
    edge = make(remote=remote, privacy=OPEN)
    answer = edge.ask("Who won the chess olympiad?", cancel=gone)
    assert (remote.requests, answer.left_device) == ([], {})
    assert any("cancelled" in reason for reason in answer.reasons)


def test_offline_add_search_and_ask_open_no_socket(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    edge = make()
    assert edge.search(QUESTION)
    assert edge.ask(QUESTION).route == "local"


def test_a_reported_document_is_a_report_and_not_an_exception(make: Make, tmp_path: Path) -> None:
    edge = make()
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    (report,) = edge.add([tmp_path / "broken.pdf"])
    assert report.status == "failed"
    assert "broken.pdf" in report.error


def test_settings_reach_the_parts(tmp_path: Path) -> None:
    settings = load_settings(
        {"store": tmp_path / "s.db", "remote": "http://127.0.0.1:9/v1", "remote_model": "m"}, {}
    )
    with Edge.open(settings=settings) as edge:
        assert edge.remote is not None
        assert edge.remote.remote.model == "m"
        assert edge.store.path == tmp_path / "s.db"
