"""The gate: nothing leaves unless everything says that it may, and whatever raises, nothing leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.fallback.remote import OpenAIRemote
from edge_sdk.privacy import gate
from edge_sdk.privacy.detectors import Finding
from edge_sdk.privacy.gate import LONGEST, Consent, Outgoing, PastTurn, PrivacyPolicy, Withheld, prepare
from edge_sdk.privacy.pseudonyms import Vault
from edge_sdk.records import Passage

OPEN = PrivacyPolicy("prefer_local")
ALL = PrivacyPolicy("prefer_local", "all")
QUESTION = "Is jo@x.de known?"


def passage(text: str, label: str = "", id: int = 7) -> Passage:
    return Passage(id, "/home/jo/diary.md", "diary.md", "Mail", text, 0, len(text), label)


def out(result: Outgoing | Withheld) -> Outgoing:
    assert isinstance(result, Outgoing), result
    return result


def why(result: Outgoing | Withheld) -> str:
    assert isinstance(result, Withheld), result
    return result.reason


def test_by_default_nothing_leaves() -> None:
    assert why(prepare(PrivacyPolicy(), QUESTION)) == "the privacy mode is local_only: nothing leaves this device"
    assert PrivacyPolicy().send == "question"


@pytest.mark.parametrize("field", ["mode", "send", "level"])
def test_an_unknown_setting_is_an_error(field: str) -> None:
    with pytest.raises(ConfigError, match="everything"):
        PrivacyPolicy(**{field: "everything"})  # type: ignore[arg-type]


def test_a_mode_that_got_in_unchecked_sends_nothing() -> None:
    policy = PrivacyPolicy("prefer_remote")
    object.__setattr__(policy, "mode", "yes")
    assert "nothing leaves" in why(prepare(policy, QUESTION))


def test_question_mode_sends_the_question_alone_and_redacted() -> None:
    sent = out(prepare(OPEN, QUESTION, [passage("The code is 4711.")], [PastTurn("Earlier?", "Yes.")]))
    assert [message.role for message in sent.messages] == ["system", "user"]
    assert sent.messages[-1].content == "Is EMAIL_1 known?"
    assert sent.contents == {"question": 17}
    assert sent.passages == ()
    assert b"4711" not in sent.payload and b"Earlier" not in sent.payload


def test_selected_mode_sends_the_passages_of_the_prompt_but_not_where_they_come_from() -> None:
    policy = PrivacyPolicy("prefer_local", "selected")
    sent = out(
        prepare(policy, QUESTION, [passage("From jo@x.de."), passage("Tea.", "public", 8)], [PastTurn("A?", "B.")])
    )
    assert sent.messages[-1].content == "[1] Mail: From EMAIL_1.\n\n[2] Mail: Tea.\n\nQuestion: Is EMAIL_1 known?"
    assert sent.passages == (7, 8)
    assert sent.entities == {"EMAIL": 2}
    assert sent.contents == {"question": 17, "passages": 23 + 14}
    assert b"diary" not in sent.payload


def test_all_mode_sends_earlier_turns_too_under_the_same_pseudonyms() -> None:
    vault = Vault()
    first = out(prepare(ALL, QUESTION, vault=vault))
    assert first.vault is vault
    sent = out(prepare(ALL, "And who is it?", history=[PastTurn(QUESTION, "jo@x.de is known.")], vault=vault))
    assert [(message.role, message.content) for message in sent.messages[1:]] == [
        ("user", "Is EMAIL_1 known?"),
        ("assistant", "EMAIL_1 is known."),
        ("user", "And who is it?"),
    ]
    assert vault.restore("It is EMAIL_1.") == "It is jo@x.de."


@pytest.mark.parametrize("send", ["question", "selected", "all"])
@pytest.mark.parametrize("label", ["private", "Public", "secret", " ", "local-only"])
def test_a_passage_that_is_not_open_keeps_the_whole_turn_here(send: str, label: str) -> None:
    policy = PrivacyPolicy("prefer_remote", send)  # type: ignore[arg-type]
    assert "nothing of this turn leaves" in why(prepare(policy, QUESTION, [passage("x"), passage("y", label)]))
    reason = why(prepare(policy, QUESTION, history=[PastTurn("A?", "B.", ("", label))]))
    assert "earlier in this conversation" in reason
    assert ("counts as private" in reason) == (label != "private")


def test_secrets_are_dropped_and_private_values_come_back() -> None:
    sent = out(
        prepare(OPEN, f"Mail jo@x.de the card 4111 1111 1111 1111 and password=hunter2, key {'AKIA' + 'A2' * 8}")
    )
    text = sent.messages[-1].content
    assert text == "Mail EMAIL_1 the card [CARD] and password=[PASSWORD] key [KEY]"
    assert sent.vault.restore(text).startswith("Mail jo@x.de the card [CARD]")
    assert sent.entities == {"EMAIL": 1, "CARD": 1, "PASSWORD": 1, "KEY": 1}
    assert "NAME_1" in sent.messages[0].content  # the remote is told what the marks are


def test_at_the_level_redact_nothing_comes_back() -> None:
    sent = out(prepare(PrivacyPolicy("prefer_local", level="redact"), QUESTION))
    assert sent.messages[-1].content == "Is [EMAIL] known?"
    assert len(sent.vault) == 0


def test_without_private_values_the_question_goes_as_it_is() -> None:
    sent = out(prepare(OPEN, "Who wrote Faust?"))
    assert sent.messages[-1].content == "Who wrote Faust?"
    assert "NAME_1" not in sent.messages[0].content
    assert sent.entities == {}


def test_the_payload_is_what_the_remote_sends_byte_for_byte() -> None:
    remote = OpenAIRemote("http://127.0.0.1:9", "large")
    sent = out(prepare(OPEN, QUESTION, preview=lambda messages: remote.preview(messages, max_tokens=64)))
    assert sent.payload == remote.preview(sent.messages, max_tokens=64)
    assert sent.sha256 == hashlib.sha256(sent.payload).hexdigest()
    described = json.loads(json.dumps(sent.describe()))
    assert described["bytes"] == len(sent.payload)
    assert "jo@x.de" not in repr(sent) + json.dumps(described)


# --- consent ----------------------------------------------------------------------------------------


def test_ask_without_anybody_to_ask_is_a_refusal() -> None:
    assert why(prepare(PrivacyPolicy("ask"), QUESTION)) == "the privacy mode is ask, and there is nobody to ask"


def test_the_hook_sees_the_exact_payload_and_only_true_is_a_yes() -> None:
    seen: list[Outgoing] = []

    def agree(outgoing: Outgoing) -> bool:
        seen.append(outgoing)
        return True

    assert prepare(PrivacyPolicy("ask"), QUESTION, consent=agree) is seen[0]
    assert b"EMAIL_1" in seen[0].payload
    for answer in (False, None, 1, "yes"):
        consent: Consent = lambda _, answer=answer: answer  # type: ignore[assignment,misc]  # noqa: E731
        assert (
            why(prepare(PrivacyPolicy("ask"), QUESTION, consent=consent))
            == "you did not agree to what was to be sent"
        )


def test_the_hook_is_not_asked_about_what_may_not_leave() -> None:
    def never(outgoing: Outgoing) -> bool:
        raise AssertionError("asked")

    assert "private" in why(prepare(PrivacyPolicy("ask"), QUESTION, [passage("x", "private")], consent=never))
    assert "no question" in why(prepare(PrivacyPolicy("ask"), " \n", consent=never))


# --- failing closed ---------------------------------------------------------------------------------


def fail(*_: object) -> bool:
    raise RuntimeError("jo@x.de broke it")


@pytest.mark.parametrize("step", ["rules", "layer", "preview", "consent"])
def test_whatever_raises_nothing_is_sent_and_nothing_is_quoted(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if step == "rules":
        monkeypatch.setattr(gate, "find", fail)
    result = prepare(
        PrivacyPolicy("ask"),
        QUESTION,
        detectors=[fail] if step == "layer" else [],  # type: ignore[list-item]
        preview=fail if step == "preview" else None,  # type: ignore[arg-type]
        consent=fail if step == "consent" else lambda _: True,
    )
    assert isinstance(result, Withheld)
    assert (result.cause, result.reason.endswith("failed (RuntimeError), nothing was sent")) == ("failure", True)
    assert "jo@" not in result.reason


@pytest.mark.parametrize(
    "finding",
    [Finding(-1, 3, "NAME"), Finding(0, 999, "NAME"), Finding(3, 3, "NAME"), Finding(0, 1, "a name"), "x", None],
)
def test_a_layer_that_gives_nonsense_sends_nothing(finding: object) -> None:
    result = prepare(OPEN, QUESTION, detectors=[lambda _: [finding]])  # type: ignore[list-item]
    assert isinstance(result, Withheld) and result.cause == "failure"


def test_wrong_types_send_nothing() -> None:
    assert isinstance(prepare(OPEN, None), Withheld)  # type: ignore[arg-type]
    assert isinstance(prepare(OPEN, QUESTION, [None]), Withheld)  # type: ignore[list-item]
    assert isinstance(prepare(None, QUESTION), Withheld)  # type: ignore[arg-type]


def test_more_than_can_be_checked_is_not_sent() -> None:
    assert "more than" in why(prepare(OPEN, "a " * LONGEST))


def test_a_further_layer_adds_to_the_rules() -> None:
    def names(text: str) -> Sequence[Finding]:
        at = text.find("Ada")
        return [Finding(at, at + 3, "PERSON")] if at >= 0 else []

    sent = out(prepare(OPEN, "Is Ada at jo@x.de?", detectors=[names]))
    assert sent.messages[-1].content == "Is PERSON_1 at EMAIL_1?"


def test_what_shows_only_when_its_neighbour_is_gone_is_dropped() -> None:
    def late(text: str) -> Sequence[Finding]:
        at = text.find("EMAIL_1 Ada")
        return [Finding(at, at + 11, "PERSON")] if at >= 0 else []

    assert out(prepare(OPEN, "Is jo@x.de Ada?", detectors=[late])).messages[-1].content == "Is [PERSON]?"


def test_what_is_found_again_and_again_is_not_sent() -> None:
    def everything(text: str) -> Sequence[Finding]:
        return [Finding(0, 1, "NAME")] if text[0] != "[" else [Finding(len(text) - 1, len(text), "NAME")]

    assert "could not be told" in why(prepare(OPEN, "x y z", detectors=[everything]))


# --- the words of documents -------------------------------------------------------------------------


@given(
    st.text(max_size=60),
    st.sampled_from(["", "public", "private", "?"]),
    st.sampled_from(["local_only", "ask", "prefer_local"]),
)
def test_the_words_of_a_passage_never_turn_a_no_into_a_yes(text: str, label: str, mode: str) -> None:
    """Whether anything leaves is the same for every wording; only a failed check can take a yes back."""
    policy = PrivacyPolicy(mode, "selected")  # type: ignore[arg-type]
    plain = prepare(policy, "Who?", [passage("Plain words.", label)])
    worded = prepare(policy, "Who?", [passage(text, label)])
    if isinstance(plain, Withheld):
        assert worded == plain


@given(st.text(max_size=60), st.text(max_size=60))
def test_in_question_mode_the_words_of_passages_and_turns_change_no_byte(text: str, said: str) -> None:
    alone = out(prepare(OPEN, QUESTION))
    beside = out(prepare(OPEN, QUESTION, [passage(text)], [PastTurn(said, text)]))
    assert beside.payload == alone.payload


@given(st.text(max_size=80))
def test_any_question_gives_a_request_or_a_reason(question: str) -> None:
    result = prepare(OPEN, question)
    if isinstance(result, Outgoing):
        assert json.loads(result.payload)[-1]["role"] == "user"
    else:
        assert result.reason


def test_the_refusal_takes_no_text() -> None:
    """The decision's own inputs: settings and labels. Text has no way in."""
    parameters = set(gate._refusal.__annotations__) - {"return"}
    assert parameters == {"policy", "labels", "earlier", "asked"}


def test_errors_are_not_passed_on_as_they_are() -> None:
    def leaky(text: str) -> Sequence[Finding]:
        raise EdgeError(f"cannot read {text}")

    assert "jo@" not in why(prepare(OPEN, QUESTION, detectors=[leaky]))
